//! What two workers ask of the allocator for frames of known flows, by every way that crosses between them: nothing.
//!
//! `benches/instructions.rs` has the same of one worker, and system calls. One test only: the allocator counts for all threads.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::alloc::System;
use std::hint::black_box;
use std::net::Ipv4Addr;

use cap::Cap;
use common::*;
use flatnet_engine::ledger::{DropReason, Term};
use flatnet_engine::wire::TcpFlags;

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

#[test]
fn two_workers_allocate_nothing_for_known_flows() {
    let mut lab = Lab::new(2);
    let flows = known(&mut lab);
    let machines = [APP1, APP2, APP3, INTERNET];
    machines.iter().for_each(|&machine| drop(lab.take(machine)));
    let counted = |run: &mut dyn FnMut()| {
        let before = ALLOCATOR.total_allocated();
        run();
        ALLOCATOR.total_allocated() - before
    };
    assert!(counted(&mut || drop(black_box(vec![1_u8; 100]))) >= 100, "what allocates is seen");
    for round in 0..3 * WARM_UP {
        let frames = flows.iter().flat_map(|flow| std::iter::repeat_n(flow, FRAMES));
        frames.clone().for_each(|(from, bytes)| lab.push(*from, bytes));
        let Lab { workers, now, .. } = &mut lab;
        let allocated = counted(&mut || {
            for _ in 0..32 {
                workers.iter_mut().for_each(|worker| {
                    worker.run_batch(*now);
                });
            }
        });
        let arrived: usize = machines.map(|machine| lab.take(machine).len()).iter().sum();
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
