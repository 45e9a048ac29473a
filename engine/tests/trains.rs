//! Superframes through sockets: one message of many datagrams each way, and nothing that arrives tells the difference.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use common::sockets::{PORT, Sockets};
use common::superframes::{arrived, segments, unfinished, unfinished_record};
use common::*;
use flatnet_engine::ledger::{DropReason, Ledger, Term};
use flatnet_engine::link::feature::Feature;
use flatnet_engine::sys::{Message, send_messages};
use flatnet_engine::tables::Node;
use flatnet_engine::trace::Point;
use flatnet_engine::tunnel::Encapsulation;
use flatnet_engine::wire::{IcmpPacket, Ipv4Packet, TcpFlags, TcpSegment, UdpDatagram};

/// Payload bytes of a segment.
const SIZE: u16 = 1400;
/// Payload bytes of a superframe of 13 segments.
const LENGTH: usize = 12 * SIZE as usize + 7;
/// Payload bytes of one whose segments need two messages.
const LONG: usize = 65_000;

/// What was dropped, and how often.
type Drops = Vec<(DropReason, u64)>;

fn send_superframe(lab: &mut Lab, whole: &[u8], is_tcp: bool) {
    lab.send_with(APP1, whole, |record| unfinished_record(record, is_tcp, SIZE));
}

/// Sets the switches of both sockets.
fn switch(sockets: &mut Sockets, segments: bool, merges: bool) {
    for port in sockets.ports {
        let link = sockets.lab.workers[0].link(port).unwrap();
        for (feature, on) in [(Feature::Gso, segments), (Feature::Gro, merges)] {
            link.set_feature(feature, on).unwrap();
        }
    }
}

/// What a node counted since.
fn since(after: &Ledger, before: &Ledger, term: Term) -> u64 {
    after.term(term) - before.term(term)
}

#[test]
fn what_arrives_is_what_its_segments_would_have_come_to() {
    for (test, encapsulation) in [(10, Encapsulation::Udp), (14, VXLAN)] {
        what_arrives(Sockets::over(encapsulation, test, 32), encapsulation);
    }
}

fn what_arrives(mut sockets: Sockets, encapsulation: Encapsulation) {
    for (is_tcp, length, count) in [(true, LENGTH, 13), (false, LENGTH, 13), (true, LONG, 47)] {
        let whole = unfinished(&sockets.lab, (APP1, APP3), 9, is_tcp, length);
        let finished = segments(&whole, SIZE);
        assert_eq!(finished.len(), count);
        sockets.lab.send_all(APP1, &finished);
        let (expected, _) = arrived(&mut sockets.lab, APP3);
        assert_eq!(expected.len(), count);
        expected.iter().for_each(|bytes| drop(packet(bytes)));
        for (segments, merges) in [(true, true), (true, false), (false, true), (false, false)] {
            let case = format!("tcp {is_tcp}, {length} bytes, segments {segments}, merges {merges}");
            switch(&mut sockets, segments, merges);
            let lab = &mut sockets.lab;
            // What was long before is met with large buffers.
            send_superframe(lab, &whole, is_tcp);
            assert!(arrived(lab, APP3).0 == expected, "{case}: the first");
            let before = [lab.ledger(lab.node1), lab.ledger(lab.node2)];
            send_superframe(lab, &whole, is_tcp);
            let after = [lab.ledger(lab.node1), lab.ledger(lab.node2)];
            let (found, superframes) = arrived(lab, APP3);
            assert!(found == expected, "{case}: {} frames", found.len());
            // One for each message.
            let messages = count.div_ceil(65_507 / (usize::from(SIZE) + 40 + encapsulation.between()));
            assert_eq!(superframes, if segments && merges { messages.min(count / 2) } else { 0 }, "{case}");
            let news = |node: usize, term| since(&after[node], &before[node], term);
            assert_eq!(news(0, Term::Sent), count as u64, "{case}");
            assert_eq!(news(0, Term::Split), count as u64 - 1, "{case}");
            assert_eq!(news(1, Term::Received), count as u64, "{case}");
            let merged = if superframes > 0 { count - messages } else { 0 };
            assert_eq!(news(1, Term::Merged), merged as u64, "{case}");
        }
    }
    sockets.lab.check();
}

/// One at each node: what comes as one superframe is cut for it, and the first segment's decision holds for the rest.
#[test]
fn a_superframe_of_a_flow_that_nobody_knows_takes_one_decision_a_node() {
    let mut sockets = Sockets::new(15, 32);
    let lab = &mut sockets.lab;
    for port in 9..13 {
        let whole = unfinished(lab, (APP1, APP3), port, true, LENGTH);
        let before = (lab.workers[0].decisions(), lab.ledger(lab.node2));
        send_superframe(lab, &whole, true);
        assert_eq!(arrived(lab, APP3).0.len(), 13);
        let merged = since(&lab.ledger(lab.node2), &before.1, Term::Merged);
        // What was long before is met with large buffers.
        if port > 9 {
            assert_eq!((merged, lab.workers[0].decisions() - before.0), (12, 2), "{port}");
        }
    }
    sockets.lab.check();
}

/// A capture shows what a wire would: each segment finished, behind outer headers of its own.
#[test]
fn whoever_looks_sees_finished_segments_with_right_checksums() {
    let mut sockets = Sockets::new(11, 32);
    let whole = unfinished(&sockets.lab, (APP1, APP3), 9, true, LENGTH);
    let expected: Vec<Vec<u8>> = segments(&whole, SIZE).iter().map(|bytes| packet(bytes).3).collect();
    let lab = &mut sockets.lab;
    // Nobody looks at first, so that what is cached must be decided anew.
    for looks in [false, true, false] {
        if looks {
            lab.workers[0].listen(1, lab.node1, Point::Interface(0));
            lab.workers[0].listen(2, lab.node2, Point::Interface(0));
        }
        for _ in 0..2 {
            send_superframe(lab, &whole, true);
            let (found, superframes) = arrived(lab, APP3);
            let found: Vec<Vec<u8>> = found.iter().map(|bytes| packet(bytes).3).collect();
            assert!(found == expected, "{looks}: {} segments", found.len());
            assert!(!looks || superframes == 0);
        }
        if !looks {
            continue;
        }
        for (capture, node) in [(1, lab.node1), (2, lab.node2)] {
            let seen = lab.workers[0].ignore(capture, node, Point::Interface(0));
            let datagrams = seen.frames.iter().filter(|frame| frame.bytes[12..14] == [8, 0]);
            let inner: Vec<Vec<u8>> = datagrams
                .map(|frame| {
                    let outer = packet(&frame.bytes).3;
                    let datagram = UdpDatagram::new_checked(&outer[..]).unwrap();
                    packet(&[&[0; 14], datagram.payload()].concat()).3
                })
                .collect();
            assert!(inner == [expected.clone(), expected.clone()].concat(), "{} frames", inner.len());
        }
    }
    sockets.lab.check();
}

/// A record that is not true of its frame, which no link but one in memory brings: nothing is sent for it, and nothing lost from sight.
#[test]
fn what_is_no_superframe_though_its_record_says_so_is_dropped_by_name() {
    for is_known in [false, true] {
        let mut sockets = Sockets::new(2, 32);
        let lab = &mut sockets.lab;
        let whole = unfinished(lab, (APP1, APP3), 9, true, LENGTH);
        let bare = unfinished(lab, (APP1, APP3), 9, true, 0);
        let echo = lab.echo(APP1, APP3, 64);
        let lies = [("no payload", &bare, SIZE), ("no size", &whole, 0), ("no segments", &echo, SIZE)];
        if is_known {
            send_superframe(lab, &whole, true);
            lab.send(APP1, &echo);
            assert_eq!(arrived(lab, APP3).0.len(), 13 + 1);
        }
        for (number, (name, bytes, size)) in (1..).zip(lies) {
            lab.send_with(APP1, bytes, |record| unfinished_record(record, true, size));
            assert_eq!(lab.drops(DropReason::MalformedOffload), number, "{name}, known {is_known}");
            assert_eq!(arrived(lab, APP3).0, Vec::<Vec<u8>>::new(), "{name}, known {is_known}");
        }
        sockets.lab.check();
    }
}

/// RFC 1191, 4: the sender is told by the length of a segment, once for a superframe.
#[test]
fn a_path_that_takes_less_than_a_segment_and_its_headers_is_told_to_the_sender() {
    let mut sockets = Sockets::new(12, 32);
    let whole = unfinished(&sockets.lab, (APP1, APP3), 9, true, LENGTH);
    for _ in 0..2 {
        send_superframe(&mut sockets.lab, &whole, true);
        assert_eq!(arrived(&mut sockets.lab, APP3).0.len(), 13);
    }
    // A segment with its headers, inner and outer: 1,468 bytes.
    let longest = 20 + 20 + SIZE + 28;
    let lab = &mut sockets.lab;
    for (mtu, fits) in [(longest, true), (longest - 1, false)] {
        lab.control.tables.publish(|tables| {
            let mut node = Node::clone(tables.node(lab.node1).unwrap());
            node.interfaces[0].mtu = mtu;
            tables.set_node(lab.node1, Some(node));
        });
        send_superframe(lab, &whole, true);
        assert_eq!(arrived(lab, APP3).0.len(), if fits { 13 } else { 0 }, "{mtu}");
        let told = lab.receive(APP1);
        if fits {
            assert!(told.is_empty());
        } else {
            assert_eq!((told.len(), lab.drops(DropReason::FragmentationNeeded)), (1, 1));
            let error = packet(&told[0]).3;
            assert_eq!(IcmpPacket::new_unchecked(&error[..]).next_hop_mtu(), mtu - 28);
        }
    }
    sockets.lab.check();
}

/// A stream's segments as a peer sends them, `count` of 300 bytes.
fn train(count: usize) -> Vec<Vec<u8>> {
    let payload: Vec<u8> = (0..count * 300).map(|at| (at * 7 + at / 251) as u8).collect();
    payload
        .chunks(300)
        .enumerate()
        .map(|(number, part)| segment(APP1, 1001 + 300 * number as u32, part))
        .collect()
}

fn segment(from: Ipv4Addr, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = tcp_packet(from, APP3, (40_000, 9), TcpFlags::ACK);
    bytes.extend(payload);
    let length = bytes.len() as u16;
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    packet.set_fragmentation(true, false, 0);
    packet.set_total_length(length);
    packet.fill_header_checksum();
    let mut header = TcpSegment::new_unchecked(&mut bytes[20..]);
    header.set_sequence(sequence);
    header.fill_checksum(from, APP3);
    bytes
}

/// Sends datagrams of one length as one message from the first node's address and port; returns what arrives behind Ethernet
/// headers, in how many superframes, and what was dropped.
fn send_train(sockets: &mut Sockets, datagrams: &[Vec<u8>]) -> (Vec<Vec<u8>>, usize, Drops) {
    let before = sockets.lab.ledger(sockets.lab.node2);
    let socket = UdpSocket::bind((sockets.own[0], PORT)).unwrap();
    let parts: Vec<IoSlice<'_>> = datagrams.iter().map(|bytes| IoSlice::new(bytes)).collect();
    let to = SocketAddrV4::new(sockets.own[1], PORT);
    let message = Message { to, parts: &parts, segment: datagrams[0].len() as u16 };
    assert_eq!(send_messages(&socket, std::iter::once(message)).unwrap(), 1);
    sockets.lab.run();
    let (found, superframes) = arrived(&mut sockets.lab, APP3);
    let after = sockets.lab.ledger(sockets.lab.node2);
    assert_eq!(since(&after, &before, Term::Received), datagrams.len() as u64);
    let drops = DropReason::ALL.iter().map(|&reason| (reason, after.drops(reason) - before.drops(reason)));
    let found = found.iter().map(|bytes| bytes[14..].to_vec()).collect();
    (found, superframes, drops.filter(|&(_, count)| count > 0).collect())
}

/// As the node forwards them: two routers further.
fn forwarded(datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut all = datagrams.to_vec();
    for bytes in &mut all {
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        packet.set_time_to_live(packet.time_to_live() - 1);
        packet.fill_header_checksum();
    }
    all
}

/// Without identifications, which mean nothing for what must not be cut (RFC 6864).
fn without_identification(mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    for bytes in &mut packets {
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        packet.set_identification(0);
        packet.fill_header_checksum();
    }
    packets
}

#[test]
fn a_train_is_put_together_up_to_what_does_not_belong_to_it() {
    let mut sockets = Sockets::new(13, 32);
    sockets.take_peer_away();
    let good = train(20);
    let of = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut datagrams = good.clone();
        change(&mut datagrams[12]);
        datagrams
    };
    let refill = |bytes: &mut Vec<u8>| Ipv4Packet::new_unchecked(&mut bytes[..]).fill_header_checksum();
    let cases: [(&str, Vec<Vec<u8>>, usize, Drops); 8] = [
        ("all good", good.clone(), 1, vec![]),
        // Whoever only forwards leaves it to the receiver.
        ("a wrong checksum", of(&|it| it[100] ^= 1), 1, vec![]),
        ("a wrong header checksum", of(&|it| it[10] ^= 1), 1, vec![(DropReason::TunnelMalformed, 1)]),
        (
            "another node's pod",
            of(&|it| *it = segment(Ipv4Addr::new(10, 1, 30, 2), 1001 + 12 * 300, &good[12][40..])),
            1,
            vec![(DropReason::TunnelForeignSource, 1)],
        ),
        (
            "to another node's pod",
            of(&|it| {
                it[18] = 30;
                refill(it);
            }),
            1,
            vec![(DropReason::TunnelForeignDestination, 1)],
        ),
        (
            "shorter than it says",
            of(&|it| {
                it[2..4].copy_from_slice(&341_u16.to_be_bytes());
                refill(it);
            }),
            1,
            vec![(DropReason::TunnelMalformed, 1)],
        ),
        ("IPv6", of(&|it| it[0] = 0x60), 1, vec![(DropReason::TunnelMalformed, 1)]),
        (
            "a stranger's train",
            (0..20).map(|number| segment(Ipv4Addr::new(10, 1, 30, 2), 300 * number, &[7; 300])).collect(),
            0,
            vec![(DropReason::TunnelForeignSource, 20)],
        ),
    ];
    // The first is decided about, and long ones are expected then.
    send_train(&mut sockets, &good);
    for (name, datagrams, superframes, drops) in cases {
        let (found, count, dropped) = send_train(&mut sockets, &datagrams);
        assert_eq!((count, &dropped), (superframes, &drops), "{name}");
        let mut expected = forwarded(&datagrams);
        match drops.first() {
            Some(&(_, 1)) => drop(expected.remove(12)),
            Some(_) => expected.clear(),
            None => {}
        }
        let (found, expected) = (without_identification(found), without_identification(expected));
        assert!(found == expected, "{name}: {} of {}", found.len(), expected.len());
    }
    sockets.lab.check();
}
