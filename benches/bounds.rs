//! What this machine's memory gives at best, for what the rows of many flows and of lone frames are held against.
//!
//! Random cache lines, asked for as far ahead as helps most, in large pages, one core; and how long two lines take from one core
//! to another and back. Nothing of the product runs here but its memory and its prefetch.
#![allow(clippy::unwrap_used, reason = "a bench stops at the first surprise")]

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use flatnet_engine::clock::prefetch;
use flatnet_engine::random::Random;
use flatnet_engine::sys::LargeVec;

/// Words of a cache line.
const LINE: usize = 8;
/// Lines that are read for a figure.
const READS: usize = 2_000_000;
/// Journeys there and back.
const JOURNEYS: usize = 200_000;

fn main() {
    println!("{:>8}  {:>14}  {:>6}", "MEGABYTES", "NS FOR A LINE", "AHEAD");
    for megabytes in [1, 8, 32, 128, 256, 512] {
        let mut words = LargeVec::zeroed(megabytes << 17).unwrap();
        // Every page is there.
        words.iter_mut().step_by(512).for_each(|word| *word = 1);
        let best = [4, 8, 16, 32, 64].map(|ahead| (read(&words, ahead), ahead));
        let (time, ahead) = best.into_iter().min().unwrap();
        println!("{megabytes:>8}  {:>14.1}  {ahead:>6}", time.as_secs_f64() * 1e9 / READS as f64);
    }
    let mut times: Vec<Duration> = journeys();
    times.sort_unstable();
    let [median, late] = [JOURNEYS / 2, JOURNEYS * 99 / 100].map(|at| times[at].as_nanos());
    println!(
        "\nTwo lines from core to core, one there and one back: {median} ns in the median, {late} ns at 99 %."
    );
}

/// Reads lines in random order, each asked for while so many others are read.
fn read(words: &LargeVec<u64>, ahead: usize) -> Duration {
    let (lines, mut random) = (words.len() / LINE, Random::new(7));
    let order: Vec<u32> = (0..READS + ahead).map(|_| (random.below(lines) * LINE) as u32).collect();
    let runs = (0..3).map(|_| {
        let (start, mut sum) = (Instant::now(), 0u64);
        for (&now, &later) in order.iter().zip(&order[ahead..]) {
            prefetch(&words[later as usize]);
            sum = sum.wrapping_add(words[now as usize]);
        }
        black_box(sum);
        start.elapsed()
    });
    runs.min().unwrap()
}

fn journeys() -> Vec<Duration> {
    let there: Arc<[CachePadded<AtomicU64>; 2]> = Arc::default();
    let back = Arc::clone(&there);
    let thread = std::thread::spawn(move || {
        for number in 1..=JOURNEYS as u64 {
            while back[0].load(Ordering::Acquire) != number {
                spin_loop();
            }
            back[1].store(number, Ordering::Release);
        }
    });
    let times = (1..=JOURNEYS as u64).map(|number| {
        let start = Instant::now();
        there[0].store(number, Ordering::Release);
        while there[1].load(Ordering::Acquire) != number {
            spin_loop();
        }
        start.elapsed()
    });
    let times = times.collect();
    thread.join().unwrap();
    times
}
