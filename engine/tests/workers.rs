//! What two workers must keep together: the order of a flow, and what each has learned.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::control::EngineConfig;
use flatnet_engine::ledger::{DropReason, Term};
use flatnet_engine::wire::{ArpOperation, MacAddress};
use proptest::prelude::*;
use std::net::Ipv4Addr;

const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 200);

/// Puts a frame into a machine's ring and lets nobody run.
fn push(lab: &mut Lab, from: Ipv4Addr, bytes: &[u8]) {
    let mut frame = lab.control.pool.allocate(bytes.len()).unwrap();
    lab.control.arena().open(&mut frame).bytes_mut().copy_from_slice(bytes);
    lab.machines.get_mut(&from).unwrap().peer.to_node.push(frame).unwrap();
}

fn number_of(frame: &[u8]) -> u32 {
    let (_, _, _, payload) = packet(frame);
    u32::from_be_bytes([payload[8], payload[9], payload[10], payload[11]])
}

/// A masqueraded flow whose answers come in at one worker and whose pod is the other's.
fn answered_by_the_other_worker(lab: &mut Lab) -> (u16, u16) {
    let frame = lab.udp(APP2, INTERNET, (40_000, 53), b"ask");
    lab.send(APP2, &frame);
    let (source, _, _, payload) = packet(&lab.settle(INTERNET)[0]);
    assert_eq!(source, NODE1);
    (53, ports(&payload).0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_flow_that_is_handed_over_stays_in_order_whoever_runs_when(
        turns in prop::collection::vec((0u8..3, 1u32..40), 1..80),
    ) {
        let mut lab = Lab::new(2);
        let back = answered_by_the_other_worker(&mut lab);
        lab.take(APP2);
        let (mut sent, mut seen) = (0u32, Vec::new());
        for (turn, count) in turns {
            if turn < 2 {
                lab.workers[usize::from(turn)].run_batch(lab.now);
            } else {
                for _ in 0..count.min(900 - sent) {
                    let answer = lab.udp(INTERNET, NODE1, back, &sent.to_be_bytes());
                    push(&mut lab, INTERNET, &answer);
                    sent += 1;
                }
            }
            seen.extend(lab.take(APP2).iter().map(|frame| number_of(frame)));
        }
        lab.run();
        seen.extend(lab.take(APP2).iter().map(|frame| number_of(frame)));
        prop_assert_eq!(seen, (0..sent).collect::<Vec<_>>());
        lab.check();
    }

    #[test]
    fn a_flow_of_the_bridge_stays_in_order_across_workers(
        turns in prop::collection::vec((0u8..3, 1u32..40), 1..80),
    ) {
        let mut lab = Lab::new(2);
        let (mut sent, mut seen) = (0u32, Vec::new());
        for (turn, count) in turns {
            if turn < 2 {
                lab.workers[usize::from(turn)].run_batch(lab.now);
            } else {
                for _ in 0..count.min(900 - sent) {
                    let frame = lab.udp(APP1, APP2, (1, 2), &sent.to_be_bytes());
                    push(&mut lab, APP1, &frame);
                    sent += 1;
                }
            }
            seen.extend(lab.take(APP2).iter().map(|frame| number_of(frame)));
        }
        lab.run();
        seen.extend(lab.take(APP2).iter().map(|frame| number_of(frame)));
        prop_assert_eq!(seen, (0..sent).collect::<Vec<_>>());
        lab.check();
    }
}

#[test]
fn a_station_that_one_worker_hears_is_known_to_the_other() {
    let mut lab = Lab::new(2);
    let (node, docker0) = (lab.node1, Ipv4Addr::new(10, 1, 15, 1));
    lab.stranger(node, STRANGER, docker0, 1);
    let announcement =
        arp(ArpOperation::Request, (mac(STRANGER), STRANGER), (MacAddress::default(), STRANGER));
    lab.send(STRANGER, &announcement);
    let copied = lab.ledger(node).term(Term::Copied);
    // APP1's port is the first worker's.
    let frame = lab.udp(APP1, STRANGER, (1, 2), b"");
    lab.send(APP1, &frame);
    assert_eq!((lab.ledger(node).term(Term::Copied), lab.receive(STRANGER)), (copied, vec![frame]));
    lab.check();
}

#[test]
fn a_neighbour_that_one_worker_asked_for_is_known_to_the_other() {
    let mut lab = Lab::new(2);
    let node = lab.node2;
    // APP3's port is the first worker's, eth0 of its node the second's: the answer comes in there.
    let frame = lab.udp(APP3, APP1, (1, 2), b"");
    lab.send(APP3, &frame);
    assert_eq!((lab.receive(APP1).len(), lab.ledger(node).term(Term::Originated)), (1, 1));
    let frame = lab.udp(BACKEND, APP1, (1, 2), b"");
    lab.send(BACKEND, &frame);
    assert_eq!((lab.receive(APP1).len(), lab.ledger(node).term(Term::Originated)), (1, 1), "not asked again");
    lab.check();
}

#[test]
fn what_a_full_ring_between_workers_refuses_is_counted_and_the_rest_arrives() {
    let config =
        EngineConfig { workers: 2, small_buffers: 8192, large_buffers: 2, ..EngineConfig::default() };
    let mut lab = Lab::build(&config);
    let back = answered_by_the_other_worker(&mut lab);
    let mut seen = Vec::new();
    for number in 0..4200u32 {
        let answer = lab.udp(INTERNET, NODE1, back, &number.to_be_bytes());
        push(&mut lab, INTERNET, &answer);
        // Only the first worker runs.
        if number % 32 == 31 {
            for _ in 0..8 {
                lab.workers[0].run_batch(lab.now);
            }
        }
    }
    for _ in 0..8 {
        lab.workers[0].run_batch(lab.now);
    }
    assert_eq!(lab.ledger(lab.node1).held, 4096);
    let lost = lab.drops(DropReason::WorkerRingFull);
    assert_eq!(lost, 4200 - 4096);
    let now = lab.now;
    for _ in 0..32 {
        lab.workers[1].run_batch(now);
        seen.extend(lab.take(APP2).iter().map(|frame| number_of(frame)));
    }
    assert_eq!(seen, (0..4096).collect::<Vec<_>>(), "in order, the last ones refused");
    lab.check();
}
