//! What this machine's memory gives at best, for what the rows of many flows, of two workers and of lone frames are held against.
//!
//! Random cache lines, asked for as far ahead as helps most, in large pages: read by one core, one of three written as well (a
//! frame writes of what it touches its binding), and by two cores at once, each its own; and how long two lines take from one core
//! to another and back. Nothing of the product runs here but its memory and its prefetch.
#![allow(clippy::unwrap_used, reason = "a bench stops at the first surprise")]

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use flatnet_engine::clock::prefetch;
use flatnet_engine::random::Random;
use flatnet_engine::sys::LargeVec;
use rustix::thread::{CpuSet, sched_setaffinity};

/// Words of a cache line.
const LINE: usize = 8;
/// Lines that are touched for a figure.
const TOUCHES: usize = 2_000_000;
/// Runs of which the shortest counts.
const RUNS: usize = 3;
/// Of so many lines one is written where any is.
const WRITTEN: usize = 3;
/// Journeys there and back.
const JOURNEYS: usize = 200_000;

fn main() {
    println!(
        "NANOSECONDS FOR A LINE\n{:>8}  {:>6}  {:>8}  {:>10}",
        "MEGABYTES", "READ", "WRITTEN", "BOTH CORES"
    );
    for megabytes in [1, 8, 32, 128, 256, 512] {
        let best = |time: fn(usize, usize) -> Duration| {
            let times = [4, 8, 16, 32, 64].map(|ahead| time(megabytes, ahead));
            times.into_iter().min().unwrap().as_secs_f64() * 1e9 / TOUCHES as f64
        };
        let [read, written, both] = [best(alone::<false>), best(alone::<true>), best(both)];
        println!("{megabytes:>9}  {read:>6.1}  {written:>8.1}  {both:>10.1}");
    }
    let mut times: Vec<Duration> = journeys();
    times.sort_unstable();
    let [median, late] = [JOURNEYS / 2, JOURNEYS * 99 / 100].map(|at| times[at].as_nanos());
    println!(
        "\nTwo lines from core to core, one there and one back: {median} ns in the median, {late} ns at 99 %."
    );
}

/// Touches lines of so much memory in random order, each asked for while so many others are touched, one of some written.
fn alone<const WRITE: bool>(megabytes: usize, ahead: usize) -> Duration {
    touch::<WRITE>((megabytes, ahead), 0, || ())
}

/// Two cores do so at once, and write nothing; returns the mean of both.
fn both(megabytes: usize, ahead: usize) -> Duration {
    let barrier = &Barrier::new(2);
    let times = std::thread::scope(|scope| {
        let cores = [0, 1].map(|core| {
            scope.spawn(move || {
                let mut own = CpuSet::new();
                own.set(core);
                sched_setaffinity(None, &own).unwrap();
                touch::<false>((megabytes, ahead), core as u64, || {
                    barrier.wait();
                })
            })
        });
        cores.map(|core| core.join().unwrap())
    });
    times.iter().sum::<Duration>() / 2
}

fn touch<const WRITE: bool>((megabytes, ahead): (usize, usize), seed: u64, begin: impl Fn()) -> Duration {
    let mut words = LargeVec::zeroed(megabytes << 17).unwrap();
    // Every page is there.
    words.iter_mut().step_by(512).for_each(|word| *word = 1);
    let (lines, mut random) = (words.len() / LINE, Random::new(seed));
    let order: Vec<u32> = (0..TOUCHES + ahead).map(|_| (random.below(lines) * LINE) as u32).collect();
    let runs = (0..RUNS).map(|_| {
        begin();
        let (start, mut sum) = (Instant::now(), 0u64);
        for (number, (&now, &later)) in order.iter().zip(&order[ahead..]).enumerate() {
            prefetch(&words[later as usize]);
            let word = &mut words[now as usize];
            sum = sum.wrapping_add(*word);
            if WRITE && number % WRITTEN == 0 {
                *word = sum;
            }
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
