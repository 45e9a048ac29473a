//! What the cache answers, and what it must not: counted by the decisions that were made.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::trace::Point;
use flatnet_engine::worker::Worker;
use std::net::Ipv4Addr;

fn decisions(lab: &Lab) -> u64 {
    lab.workers.iter().map(Worker::decisions).sum()
}

/// Sends a datagram until everybody on its way knows it.
fn known(lab: &mut Lab, from: Ipv4Addr, to: Ipv4Addr, port: u16) -> Vec<u8> {
    let frame = lab.udp(from, to, (9, port), b"hello");
    for _ in 0..3 {
        lab.send(from, &frame);
        for at in [APP1, APP2, APP3, BACKEND, USER, INTERNET] {
            lab.receive(at);
        }
    }
    frame
}

#[test]
fn a_known_flow_is_decided_no_more() {
    for workers in [1, 2] {
        for (name, from, to, port) in [
            ("bridge", APP2, APP1, 9),
            ("tunnel", APP2, BACKEND, 9),
            ("masquerade", APP2, INTERNET, 9),
            ("service", BACKEND, VIP, 80),
            ("node port", USER, NODE1, 30_080),
        ] {
            let mut lab = Lab::new(workers);
            // The switch learns where the node is: what it floods is decided each time.
            known(&mut lab, APP2, USER, 9);
            let frame = known(&mut lab, from, to, port);
            let before = decisions(&lab);
            assert!(before > 0);
            for _ in 0..10 {
                lab.send(from, &frame);
            }
            assert_eq!(decisions(&lab), before, "{name}, {workers} workers");
            let arrived: usize =
                [APP1, APP2, APP3, BACKEND, INTERNET].iter().map(|&at| lab.take(at).len()).sum();
            assert_eq!(arrived, 10, "{name}, {workers} workers");
            lab.check();
        }
    }
}

/// The guard: the same packet in another frame is another matter, however well its flow is known.
#[test]
fn a_known_flow_in_a_forged_frame_is_decided_anew() {
    let mut lab = Lab::new(1);
    let frame = known(&mut lab, APP2, APP1, 9);
    let mut forged = frame.clone();
    forged[6..12].copy_from_slice(&mac(BACKEND).octets());
    lab.send(APP2, &forged);
    assert_eq!((lab.drops(DropReason::SpoofedMac), lab.take(APP1).len()), (1, 0));

    // By way of docker0 instead of straight: it is routed.
    let mut routed = frame;
    routed[..6].copy_from_slice(&mac(Ipv4Addr::new(10, 1, 15, 1)).octets());
    let time_to_live = routed[22];
    lab.send(APP2, &routed);
    let arrived = lab.take(APP1);
    assert_eq!((arrived.len(), arrived[0][22]), (1, time_to_live - 1));
    lab.check();
}

/// RFC 2827, 3: who does not hold the lease cannot send into a flow that the cache knows from who does.
#[test]
fn a_known_flow_out_of_the_tunnel_keeps_its_outer_source() {
    let mut lab = Lab::new(1);
    known(&mut lab, BACKEND, APP1, 9);
    let inner = udp_packet(BACKEND, APP1, (9, 9), b"hello", 63);
    let sent_by =
        |outer| ethernet(mac(NODE1), mac(USER), &udp_packet(outer, NODE1, (8285, 8285), &inner, 64));
    lab.send(USER, &sent_by(USER));
    assert_eq!((lab.drops(DropReason::TunnelForeignSource), lab.take(APP1).len()), (1, 0));
    let before = decisions(&lab);
    let frame = lab.udp(BACKEND, APP1, (9, 9), b"hello");
    lab.send(BACKEND, &frame);
    assert_eq!((lab.take(APP1).len(), decisions(&lab)), (1, before), "the cache still answers who does");
    lab.check();
}

/// Traces and captures are free when they are off: a known flow is decided no more than if there had never been one, and nothing
/// is noted. A traced frame of the flow, and a capture elsewhere, change nothing for its other frames.
#[test]
fn a_trace_costs_the_frames_that_are_traced_and_a_capture_those_that_pass_it() {
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        let frame = known(&mut lab, APP2, BACKEND, 9);
        let events = |lab: &mut Lab| -> usize {
            lab.workers.iter_mut().map(|worker| std::mem::take(&mut worker.observer.events).len()).sum()
        };
        let ten = |lab: &mut Lab| {
            let before = decisions(lab);
            (0..10).for_each(|_| lab.send(APP2, &frame));
            assert_eq!(lab.take(BACKEND).len(), 10);
            decisions(lab) - before
        };
        assert_eq!((ten(&mut lab), events(&mut lab)), (0, 0), "never on");

        let before = decisions(&lab);
        lab.send_marked(APP2, &frame, 5);
        assert!(decisions(&lab) > before && events(&mut lab) > 0, "a traced frame is decided and tells");
        assert_eq!(lab.take(BACKEND).len(), 1);
        assert_eq!((ten(&mut lab), events(&mut lab)), (0, 0), "after a trace");

        let (on_the_way, elsewhere) = (lab.node1, lab.isp);
        let listen = |lab: &mut Lab, node| {
            lab.workers.iter_mut().for_each(|worker| worker.listen(1, node, Point::Interface(0)));
        };
        let ignore = |lab: &mut Lab, node| -> usize {
            let taken = lab.workers.iter_mut().map(|worker| worker.ignore(1, node, Point::Interface(0)));
            taken.map(|taken| taken.frames.len()).sum()
        };
        listen(&mut lab, elsewhere);
        ten(&mut lab);
        assert_eq!(ten(&mut lab), 0, "a capture that the flow does not pass");
        assert_eq!(ignore(&mut lab, elsewhere), 0);
        listen(&mut lab, on_the_way);
        assert!(ten(&mut lab) >= 10, "a capture that it passes");
        assert_eq!(ignore(&mut lab, on_the_way), 10);
        ten(&mut lab);
        assert_eq!((ten(&mut lab), events(&mut lab)), (0, 0), "after a capture");
        lab.check();
    }
}
