//! What `scripts/bench-peers` compares with: two TAPs, and a frame read from one is written to the other, one by one.
//!
//! No offloads, no batches, a thread each way: `benches/naive_tap A B`. Ends when either TAP is gone.
#![allow(missing_docs, reason = "a program has no items for others")]

use std::io;
use std::sync::Arc;
use std::thread;

use tun_tap::{Iface, Mode};

/// Bytes of the longest frame that a TAP without offloads gives.
const LONGEST: usize = 65_536;

fn main() -> io::Result<()> {
    let names: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let [one, other] = &names[..] else {
        println!("naive_tap: give it the names of two TAPs");
        return Ok(());
    };
    let open = |name: &str| Iface::without_packet_info(name, Mode::Tap).map(Arc::new);
    let (one, other) = (open(one)?, open(other)?);
    let back = (Arc::clone(&other), Arc::clone(&one));
    let there = thread::spawn(move || forward(&one, &other));
    forward(&back.0, &back.1)?;
    there.join().unwrap_or(Ok(()))
}

fn forward(from: &Iface, to: &Iface) -> io::Result<()> {
    let mut frame = vec![0; LONGEST];
    loop {
        let length = from.recv(&mut frame)?;
        // An interface that is down takes nothing.
        let _ = to.send(&frame[..length]);
    }
}
