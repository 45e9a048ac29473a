//! What two workers ask of the allocator and of the system for frames of known flows, by every way that crosses between them:
//! nothing.
//!
//! `benches/instructions.rs` has the same of one worker. One test only: the allocator counts for all threads. It runs once more as
//! a process of its own, which the kernel ends at the first system call between two frames.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::alloc::System;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::process::Command;

use cap::Cap;
use common::*;
use flatnet_engine::ledger::{DropReason, Term};
use flatnet_engine::wire::TcpFlags;
use rustix::thread::{SecureComputingMode, set_secure_computing_mode};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Frames of each flow in a round.
const FRAMES: usize = 8;
/// Rounds after which every queue has the room that it will need.
const WARM_UP: usize = 4;

/// Sends a frame to the internet, or to a backend, and returns the ports that its answer is for.
fn asked(lab: &mut Lab, from: Ipv4Addr, frame: &[u8], at: Ipv4Addr) -> (u16, u16) {
    lab.send(from, frame);
    let arrived = lab.settle(at);
    assert_eq!(arrived.len(), 1, "at {at}");
    let (source, destination) = ports(&packet(&arrived[0]).3);
    (destination, source)
}

/// Flows of which each has a frame by which it goes on: between the workers' pods, through the tunnel, out and back, by the VIP.
fn known(lab: &mut Lab) -> Vec<(Ipv4Addr, Vec<u8>)> {
    let (syn, ack) = (TcpFlags::SYN, TcpFlags::ACK);
    lab.set_backends(vec![on("node-2", APP3, 3)]);
    let mut flows = vec![
        (APP1, lab.udp(APP1, APP2, (1, 2), b"bridge")),
        (APP2, lab.udp(APP2, APP3, (1, 2), b"tunnel")),
        (APP3, lab.udp(APP3, APP1, (1, 2), b"tunnel")),
    ];
    for (client, server, seen, reply_to) in
        [(APP2, INTERNET, INTERNET, NODE1), (APP1, INTERNET, INTERNET, NODE1), (APP2, VIP, APP3, APP2)]
    {
        let port = if server == VIP { 80 } else { 53 };
        let ask = lab.udp(client, server, (4000, port), b"ask");
        let back = asked(lab, client, &ask, seen);
        flows.extend([(client, ask), (seen, lab.udp(seen, reply_to, back, b"answer"))]);
        let back = asked(lab, client, &lab.tcp(client, server, (4000, port), syn), seen);
        let [first, later] = [syn.with(ack), ack].map(|flags| lab.tcp(seen, reply_to, back, flags));
        lab.send(seen, &first);
        flows.extend([(client, lab.tcp(client, server, (4000, port), ack)), (seen, later)]);
    }
    flows
}

/// Set for the process that may ask the system for nothing.
const CONFINED: &str = "FLATNET_CONFINED";
/// What that process says when it has come to its end.
const DONE: &[u8] = b"nothing was asked of the system\n";

#[test]
fn two_workers_ask_for_nothing_for_known_flows() {
    if std::env::var_os(CONFINED).is_some() {
        // The kernel ends the thread alone; that it never returns is the panic that ends the process.
        let _ = std::thread::spawn(confined).join();
        return;
    }
    let test = "two_workers_ask_for_nothing_for_known_flows";
    let this = std::env::current_exe().unwrap();
    let child = |mode: &str| {
        let mut child = Command::new(&this);
        child.args(["--exact", test, "--nocapture"]).env(CONFINED, mode).output().unwrap().stdout
    };
    let says_done = |output: &[u8]| output.windows(DONE.len()).any(|some| some == DONE);
    assert!(!says_done(&child("guilty")), "who asks for something is ended");
    assert!(says_done(&child("forwarding")), "two workers asked the system for something");
    allocate_nothing();
}

/// Runs the workers where the kernel ends whoever asks for more than to write; says so when they did not.
fn confined() {
    let mut lab = Lab::new(2);
    let flows = known(&mut lab);
    for round in 0..=WARM_UP {
        send(&mut lab, &flows);
        if round == WARM_UP {
            set_secure_computing_mode(SecureComputingMode::Strict).unwrap();
        }
        run(&mut lab);
        if round < WARM_UP {
            MACHINES.iter().for_each(|&machine| drop(lab.take(machine)));
        }
    }
    if std::env::var(CONFINED).is_ok_and(|mode| mode == "guilty") {
        std::thread::yield_now();
    }
    rustix::io::write(std::io::stdout(), DONE).unwrap();
    // Nothing but its end is left to it, and that is not allowed either.
    std::process::abort();
}

const MACHINES: [Ipv4Addr; 4] = [APP1, APP2, APP3, INTERNET];

fn send(lab: &mut Lab, flows: &[(Ipv4Addr, Vec<u8>)]) {
    for (from, bytes) in flows {
        (0..FRAMES).for_each(|_| lab.push(*from, bytes));
    }
}

fn run(lab: &mut Lab) {
    for _ in 0..32 {
        for worker in &mut lab.workers {
            worker.run_batch(lab.now);
        }
    }
}

fn allocate_nothing() {
    let mut lab = Lab::new(2);
    let flows = known(&mut lab);
    MACHINES.iter().for_each(|&machine| drop(lab.take(machine)));
    let counted = |run: &mut dyn FnMut()| {
        let before = ALLOCATOR.total_allocated();
        run();
        ALLOCATOR.total_allocated() - before
    };
    assert!(counted(&mut || drop(black_box(vec![1_u8; 100]))) >= 100, "what allocates is seen");
    for round in 0..3 * WARM_UP {
        send(&mut lab, &flows);
        let allocated = counted(&mut || run(&mut lab));
        let arrived: usize = MACHINES.iter().map(|&machine| lab.take(machine).len()).sum();
        assert_eq!(arrived, flows.len() * FRAMES, "{:?}", drops(&lab));
        assert!(round < WARM_UP || allocated == 0, "round {round}: {allocated} bytes");
    }
    assert_eq!(lab.ledger(lab.node1).term(Term::Copied), 0);
    lab.check();
}

fn drops(lab: &Lab) -> Vec<(&'static str, u64)> {
    let all = DropReason::ALL.iter().map(|&reason| (reason.name(), lab.drops(reason)));
    all.filter(|(_, count)| *count > 0).collect()
}
