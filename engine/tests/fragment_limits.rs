//! How many fragments a node follows, lets wait and puts together, and from whom.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::fragments::*;
use common::*;
use flatnet_engine::clock::Instant;
use flatnet_engine::control::EngineConfig;
use flatnet_engine::fragment::{Datagram, Fragments, Outcome, TIMEOUT};
use flatnet_engine::ledger::DropReason;
use flatnet_engine::tables::{NodeId, PortId};
use flatnet_engine::wire::Ipv4Packet;
use std::net::Ipv4Addr;

/// One source's flood of fragments takes nothing from another's.
/// RFC 4787, REQ-14; RFC 4963, 2 for what a flood of fragments is.
#[test]
fn a_flood_of_fragments_ends_the_floods_own() {
    let mut lab = Lab::new(1);
    let packet = udp_packet(APP1, VIP, (5000, 80), &data(200), 64);
    let flood = udp_packet(APP2, VIP, (5000, 80), &data(200), 64);
    let fragments = cut(&packet, &[64, 128]);
    lab.send(APP1, &ethernet(lab.machines[&APP1].gateway, mac(APP1), &fragments[2]));
    for number in 0..5000 {
        let fragment = with_identification(cut(&flood, &[64, 128])[1].clone(), number);
        lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), &fragment));
    }
    assert_eq!(lab.ledger(lab.node1).held, 129);
    assert_eq!(lab.drops(DropReason::FragmentLimit), 5000 - 128);
    for fragment in &fragments[..2] {
        lab.send(APP1, &ethernet(lab.machines[&APP1].gateway, mac(APP1), fragment));
    }
    let arrived: usize = [APP1, APP2, APP3].iter().map(|&at| lab.receive(at).len()).sum();
    assert_eq!(arrived, 3);
    lab.check();
}

fn first_of(source: u32, identification: u16) -> Vec<u8> {
    let packet = udp_packet(source.into(), BACKEND, (5000, 7), &data(200), 64);
    with_identification(fragment_of(&packet, 0..64, true, 0), identification)
}

/// Takes the first fragment of a datagram that came by a port of node 1.
fn take_first(fragments: &mut Fragments, port: PortId, source: u32, identification: u16) -> Datagram {
    let bytes = first_of(source, identification);
    let packet = Ipv4Packet::new_checked(&bytes[..]).unwrap();
    let datagram = Datagram::of(NodeId(1), port, &packet);
    assert_eq!(fragments.take(datagram, &packet, (1, 2), 3, Instant::ZERO), Outcome::Pass((1, 2), 3));
    datagram
}

/// RFC 4787, REQ-14a: who sends many fragments has bounded room; others have theirs.
#[test]
fn the_datagrams_that_are_followed_are_bounded() {
    let mut fragments = Fragments::default();
    let taken: Vec<_> = (0..33u32)
        .flat_map(|source| (0..128).map(move |id| (source, id)))
        .map(|(source, id)| take_first(&mut fragments, PortId(9), source, id))
        .collect();
    let (ended, followed) = taken.split_at(128);
    assert_eq!(followed.len(), 4096);
    assert!(followed.iter().all(|datagram| fragments.follows(datagram)), "the oldest give way");
    assert!(!ended.iter().any(|datagram| fragments.follows(datagram)));
    fragments.expire(Instant::ZERO + TIMEOUT);
    assert_eq!(fragments.next_expiry(), None);
}

/// RFC 2827, 3 for why it matters: who spoofs a source elsewhere takes nothing of what that source may have followed.
#[test]
fn the_datagrams_of_a_source_are_bounded_port_by_port() {
    let mut fragments = Fragments::default();
    let mut taken = [8u32, 9]
        .map(|port| (0..128).map(|id| take_first(&mut fragments, PortId(port), 1, id)).collect::<Vec<_>>());
    assert!(taken.iter().flatten().all(|datagram| fragments.follows(datagram)));
    for (index, port) in [(1, 9), (0, 8)] {
        taken[index].push(take_first(&mut fragments, PortId(port), 1, 128));
        let ended = taken[index].remove(0);
        assert!(!fragments.follows(&ended), "its own oldest gives way");
        assert!(taken.iter().flatten().all(|datagram| fragments.follows(datagram)), "and no other");
    }
}

/// Where two ports have as much, the one that asks gives way (ADR 24): neither can end the other's.
#[test]
fn of_two_ports_with_as_many_datagrams_the_one_that_asks_gives_way() {
    for asking in [8u32, 9] {
        let mut fragments = Fragments::default();
        let taken = [8u32, 9].map(|port| {
            let sources = (0..16).flat_map(|source| (0..128).map(move |id| (source, id)));
            sources
                .map(|(source, id)| (port, take_first(&mut fragments, PortId(port), source, id)))
                .collect::<Vec<_>>()
        });
        take_first(&mut fragments, PortId(asking), 99, 0);
        let ended: Vec<_> =
            taken.iter().flatten().filter(|(_, datagram)| !fragments.follows(datagram)).collect();
        assert_eq!(ended, [&taken[asking as usize - 8][0]]);
    }
}

/// Of the frames that wait for a first fragment no more than a quarter are one source's.
#[test]
fn the_frames_of_one_source_that_wait_are_bounded() {
    let config =
        EngineConfig { workers: 1, small_buffers: 4096, large_buffers: 2, ..EngineConfig::default() };
    let mut lab = Lab::build(&config);
    let late = |from, identification, number: usize| {
        let packet = udp_packet(from, BACKEND, (5000, 7), &data(1600), 64);
        let at = 8 + 8 * number;
        with_identification(fragment_of(&packet, at..at + 8, true, at), identification)
    };
    for (identification, number) in (0..4).flat_map(|id| (0..100).map(move |number| (id, number))) {
        lab.send(
            APP2,
            &ethernet(lab.machines[&APP2].gateway, mac(APP2), &late(APP2, identification, number)),
        );
    }
    assert_eq!((lab.ledger(lab.node1).held, lab.drops(DropReason::FragmentLimit)), (256, 400 - 256));
    lab.send(APP1, &ethernet(lab.machines[&APP1].gateway, mac(APP1), &late(APP1, 0, 0)));
    assert_eq!(lab.ledger(lab.node1).held, 257, "another's");
    let spoofed = late(APP2, 500, 0);
    lab.send(USER, &ethernet(mac(NODE1), mac(USER), &spoofed));
    assert_eq!(lab.ledger(lab.node1).held, 258, "what comes by another port");
    lab.pass(TIMEOUT);
    assert_eq!((lab.ledger(lab.node1).held, lab.drops(DropReason::FragmentTimeout)), (0, 258));
    lab.check();
}

/// RFC 791, 3.2: 8 KB cut for the smallest MTU, 68, are 171 fragments, which pass in any order; a datagram of more than 192 ends.
#[test]
fn a_long_datagram_in_the_smallest_fragments_passes_and_a_longer_one_ends() {
    let pieces = |packet: &[u8], piece: usize| -> Vec<Vec<u8>> {
        let at: Vec<usize> =
            (1..).map(|number| number * piece).take_while(|&at| at < packet.len() - 20).collect();
        cut(packet, &at)
    };
    let mut lab = roomy();
    let gateway = lab.machines[&APP1].gateway;
    let long = pieces(&udp_packet(APP1, VIP, (5000, 80), &data(8192), 64), 48);
    assert_eq!(long.len(), 171);
    for fragment in long.iter().rev() {
        lab.send(APP1, &ethernet(gateway, mac(APP1), fragment));
    }
    let arrived: usize = [APP1, APP2, APP3].iter().map(|&at| lab.receive(at).len()).sum();
    assert_eq!((arrived, lab.ledger(lab.node1).held, lab.drops(DropReason::FragmentLimit)), (171, 0, 0));
    let longer = pieces(&udp_packet(APP1, VIP, (5000, 80), &data(1700), 64), 8);
    for fragment in &longer {
        let fragment = with_identification(fragment.clone(), 2);
        lab.send(APP1, &ethernet(gateway, mac(APP1), &fragment));
    }
    let arrived: usize = [APP1, APP2, APP3].iter().map(|&at| lab.receive(at).len()).sum();
    assert_eq!((arrived, lab.drops(DropReason::FragmentLimit)), (192, longer.len() as u64 - 192));
    lab.check();
}

/// RFC 4963, 2: a flood of fragments for a node takes nothing from others.
#[test]
fn what_a_source_has_put_together_is_bounded() {
    let mut lab = with_large_buffers(1);
    let fragments = cut(&long_ping(APP1, NODE1), &[1440, 2880]);
    let flood = cut(&long_ping(APP2, NODE1), &[1440, 2880]);
    for number in 0..400 {
        for fragment in &flood[..2] {
            let fragment = with_identification(fragment.clone(), number);
            lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), &fragment));
        }
    }
    assert!(lab.ledger(lab.node1).held <= 256, "{}", lab.ledger(lab.node1).held);
    assert!(lab.drops(DropReason::FragmentLimit) >= 544);
    for fragment in &fragments {
        lab.send(APP1, &ethernet(lab.machines[&APP1].gateway, mac(APP1), fragment));
    }
    assert_eq!(whole(&lab.receive(APP1)).len(), 3008);
    lab.check();
}

/// A network whose buffers outlast a flood.
fn roomy() -> Lab {
    Lab::build(&EngineConfig { workers: 1, small_buffers: 8192, large_buffers: 2, ..EngineConfig::default() })
}

/// Frames from a machine on the node network that claims to be many others.
fn spoofed(sources: u8, identifications: u16, fragment: impl Fn(Ipv4Addr, u16) -> Vec<u8>) -> Vec<Vec<u8>> {
    let sources = (0..sources).map(|last| Ipv4Addr::new(198, 51, 100, last));
    let packets = sources.flat_map(|from| (0..identifications).map(move |id| (from, id)));
    packets.map(|(from, id)| ethernet(mac(NODE1), mac(USER), &fragment(from, id))).collect()
}

/// RFC 4963, 2: who spoofs many sources at one port takes no room to wait from what comes by another; alone a port has it all.
#[test]
fn spoofed_sources_at_one_port_leave_room_to_wait_to_others() {
    let mut lab = roomy();
    let late = |from, id| {
        let packet = udp_packet(from, APP1, (5000, 7), &data(200), 64);
        with_identification(fragment_of(&packet, 64..128, true, 64), id)
    };
    for frames in spoofed(20, 100, late).chunks(500) {
        lab.send_all(USER, frames);
    }
    assert_eq!((lab.ledger(lab.node1).held, lab.drops(DropReason::FragmentLimit)), (1024, 2000 - 1024));
    let fragments = cut(&udp_packet(APP1, VIP, (5000, 80), &data(200), 64), &[64, 128]);
    for fragment in fragments.iter().rev() {
        lab.send(APP1, &ethernet(lab.machines[&APP1].gateway, mac(APP1), fragment));
    }
    let arrived: usize = [APP1, APP2, APP3].iter().map(|&at| lab.receive(at).len()).sum();
    assert_eq!(arrived, 3);
    assert_eq!(lab.drops(DropReason::FragmentLimit), 2000 - 1024 + 2, "two of the flood's gave way");
    lab.pass(TIMEOUT);
    assert_eq!(lab.ledger(lab.node1).held, 0);
    lab.check();
}

/// RFC 4963, 2: nor does it end the datagrams that are followed for another port.
#[test]
fn spoofed_sources_at_one_port_end_no_other_ports_datagrams() {
    let mut lab = roomy();
    let first = |from, id| {
        let packet = udp_packet(from, APP1, (5000, 7), &data(200), 64);
        with_identification(fragment_of(&packet, 0..64, true, 0), id)
    };
    let fragments = cut(&udp_packet(APP2, VIP, (5000, 80), &data(200), 64), &[64, 128]);
    lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), &fragments[0]));
    let served = [APP1, APP2, APP3].into_iter().find(|&at| !lab.receive(at).is_empty()).unwrap();
    for frames in spoofed(40, 120, first).chunks(500) {
        lab.send_all(USER, frames);
        lab.take(APP1);
    }
    for fragment in &fragments[1..] {
        lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), fragment));
        assert_eq!(lab.receive(served).len(), 1, "it is still followed");
    }
    lab.check();
}

/// RFC 2827, 3 for why it matters: what comes by another port is another datagram, whoever it says it is from.
#[test]
fn a_stranger_cannot_spoil_a_pods_datagram() {
    let mut lab = Lab::new(1);
    let packet = udp_packet(APP2, VIP, (5000, 80), &data(200), 64);
    let fragments = cut(&packet, &[64, 128]);
    let overlap = fragment_of(&packet, 56..136, true, 56);
    lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), &fragments[0]));
    lab.send(USER, &ethernet(mac(NODE1), mac(USER), &overlap));
    for fragment in &fragments[1..] {
        lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), fragment));
    }
    let arrived: usize = [APP1, APP2, APP3].iter().map(|&at| lab.receive(at).len()).sum();
    assert_eq!((arrived, lab.drops(DropReason::FragmentOverlap)), (3, 0));
    lab.check();
}
