//! Fragments on their way through nodes that translate, and packets cut where a link takes less.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::ledger::{DropReason, Term};
use flatnet_engine::wire::{IcmpPacket, IpProtocol, Ipv4Packet, UdpDatagram};
use proptest::prelude::*;
use std::net::Ipv4Addr;

/// Puts fragments together as they arrived; none may be missing, twice, or of another datagram.
fn whole(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut parts: Vec<(usize, bool, Vec<u8>)> = Vec::new();
    let first = Ipv4Packet::new_checked(&frames[0][14..]).unwrap();
    for frame in frames {
        let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
        assert!(packet.verify_header_checksum());
        assert_eq!(
            (packet.source(), packet.destination(), packet.identification()),
            (first.source(), first.destination(), first.identification())
        );
        parts.push((packet.fragment_offset(), packet.more_fragments(), packet.payload().to_vec()));
    }
    parts.sort();
    let mut payload = Vec::new();
    for (index, (offset, more, part)) in parts.iter().enumerate() {
        assert_eq!((*offset, *more), (payload.len(), index + 1 < parts.len()));
        payload.extend(part);
    }
    payload
}

/// Checks a datagram that was put together: its checksum, ports and data.
fn check(frames: &[Vec<u8>], from: Ipv4Addr, to: Ipv4Addr, data: &[u8]) -> (u16, u16) {
    let payload = whole(frames);
    let datagram = UdpDatagram::new_checked(&payload[..]).unwrap();
    assert!(datagram.verify_checksum(from, to), "the transport checksum covers all fragments");
    assert_eq!(datagram.payload(), data);
    (datagram.source_port(), datagram.destination_port())
}

/// Cuts a packet's payload at multiples of eight.
fn cut(packet: &[u8], at: &[usize]) -> Vec<Vec<u8>> {
    let length = packet.len() - 20;
    let ends: Vec<usize> = at.iter().copied().chain([length]).collect();
    let starts = std::iter::once(0).chain(at.iter().copied());
    starts.zip(&ends).map(|(start, &end)| fragment_of(packet, start..end, end < length, start)).collect()
}

fn data(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 % 251) as u8).collect()
}

fn with_identification(mut packet: Vec<u8>, value: u16) -> Vec<u8> {
    let mut header = Ipv4Packet::new_unchecked(&mut packet[..]);
    header.set_identification(value);
    header.fill_header_checksum();
    packet
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// RFC 4787, REQ-14: fragments out of order are translated, whichever worker holds the binding.
    #[test]
    fn fragments_in_any_order_follow_their_first(
        workers in 1u8..4,
        order in Just((0..5usize).collect::<Vec<_>>()).prop_shuffle(),
        outside in prop::bool::ANY,
    ) {
        let mut lab = Lab::new(workers);
        let (to, port) = if outside { (INTERNET, 53) } else { (VIP, 80) };
        // The neighbours get to know each other: what waits for one is bounded to a few frames.
        for known in [INTERNET, APP3] {
            let frame = lab.udp(APP2, known, (9, 9), b"");
            lab.send(APP2, &frame);
            lab.settle(known);
        }
        let data = data(1000);
        let packet = udp_packet(APP2, to, (5000, port), &data, 64);
        let fragments = cut(&packet, &[64, 256, 264, 512]);
        let frames: Vec<_> =
            order.iter().map(|&at| ethernet(lab.machines[&APP2].gateway, mac(APP2), &fragments[at])).collect();
        lab.send_all(APP2, &frames);
        let at: Vec<Ipv4Addr> = [INTERNET, APP1, APP2, APP3]
            .into_iter()
            .filter(|&at| {
                let arrived = lab.receive(at);
                let mine = !arrived.is_empty();
                if mine {
                    let source = if outside { NODE1 } else { APP2 };
                    let (source_port, to_port) = check(&arrived, if at == APP2 { source_of(&arrived) } else { source }, at, &data);
                    assert_eq!(to_port, if outside { 53 } else { 80 });
                    if outside {
                        // The answer comes in fragments as well.
                        let answer = udp_packet(INTERNET, NODE1, (53, source_port), &data, 64);
                        for fragment in cut(&answer, &[512, 520]).iter().rev() {
                            lab.send(INTERNET, &ethernet(lab.machines[&INTERNET].gateway, mac(INTERNET), fragment));
                        }
                        let back = lab.receive(APP2);
                        assert_eq!(check(&back, INTERNET, APP2, &data), (53, 5000));
                    }
                }
                mine
            })
            .collect();
        prop_assert_eq!(at.len(), 1, "{:?}", order);
        lab.check();
    }

    /// RFC 791, 3.2: what is cut fits, and is the whole again at the end; into the tunnel the inner packet is cut.
    #[test]
    fn a_packet_too_long_for_a_link_is_cut(length in 1400usize..1473, base in 0usize..3, more in prop::bool::ANY) {
        let mut lab = Lab::new(1);
        let data = data(length);
        let mut packet = udp_packet(APP2, BACKEND, (5000, 7), &data, 64);
        let mut header = Ipv4Packet::new_unchecked(&mut packet[..]);
        // A fragment that is cut once more keeps its place and whether more follow.
        let is_fragment = base > 0 || more;
        let even = more && (length + 8) % 8 != 0;
        prop_assume!(!even);
        header.set_fragmentation(false, more, base * 4096);
        header.fill_header_checksum();
        if base > 0 {
            // Its first has passed before.
            let first = fragment_of(&udp_packet(APP2, BACKEND, (5000, 7), &data, 64), 0..1400 / 8 * 8, true, 0);
            lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), &first));
            lab.receive(BACKEND);
        }
        lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), &packet));
        let arrived = lab.receive(BACKEND);
        let total = packet.len();
        prop_assert_eq!(arrived.len(), if total > 1472 { 2 } else { 1 });
        prop_assert_eq!(lab.ledger(lab.node1).term(Term::Split), u64::from(total > 1472));
        let mut payload = Vec::<u8>::new();
        for (index, frame) in arrived.iter().enumerate() {
            let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
            prop_assert!(frame.len() - 14 <= 1472 && packet.verify_header_checksum());
            prop_assert_eq!(packet.fragment_offset(), base * 4096 + payload.len());
            prop_assert_eq!(packet.more_fragments(), more || index + 1 < arrived.len());
            payload.extend(packet.payload());
        }
        prop_assert_eq!(payload, &packet[20..]);
        prop_assert!(is_fragment || check(&arrived, APP2, BACKEND, &data) == (5000, 7));
        lab.check();
    }
}

fn source_of(frames: &[Vec<u8>]) -> Ipv4Addr {
    Ipv4Packet::new_unchecked(&frames[0][14..]).source()
}

/// RFC 1858, 4 and RFC 5722 in spirit: once a datagram has lied, nothing more of it passes.
#[test]
fn an_overlap_ends_its_datagram_and_no_other() {
    let mut lab = Lab::new(1);
    let packet = udp_packet(APP2, APP1, (5000, 7), &data(200), 64);
    let other = with_identification(packet.clone(), 77);
    let fragments = cut(&packet, &[64, 128]);
    let lie = fragment_of(&packet, 56..72, true, 56);
    let send = |lab: &mut Lab, packet: &[u8]| {
        lab.send(APP2, &ethernet(mac(APP1), mac(APP2), packet));
        lab.receive(APP1).len()
    };
    assert_eq!((send(&mut lab, &fragments[0]), send(&mut lab, &fragments[0])), (1, 0), "a copy ends nothing");
    assert_eq!((send(&mut lab, &lie), send(&mut lab, &fragments[1])), (0, 0));
    assert_eq!(lab.drops(DropReason::FragmentOverlap), 3);
    let passed: usize = cut(&other, &[64, 128]).iter().map(|fragment| send(&mut lab, fragment)).sum();
    assert_eq!(passed, 3);
    lab.check();
}

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

/// An error that a router sends a node about one of its tunnel's datagrams.
fn too_long(lab: &mut Lab, quoted: &[u8], mtu: u16) {
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(&quoted[..28]);
    IcmpPacket::new_unchecked(&mut message[..]).fill_checksum();
    let error = ipv4_packet(USER, NODE1, IpProtocol::Icmp, 64, &message);
    lab.send(USER, &ethernet(mac(NODE1), mac(USER), &error));
}

/// RFC 1191, 3, for the underlay (RFC 2003, 5.1 has the same for its tunnels): who sends too much into the tunnel is told
/// what fits inside.
#[test]
fn the_path_mtu_of_a_peer_is_learned_and_told_inside() {
    for workers in [1, 2, 3] {
        let mut lab = Lab::new(workers);
        let hello = lab.udp(APP2, BACKEND, (5000, 7), b"");
        lab.send(APP2, &hello);
        lab.receive(BACKEND);
        let long = lab.udp(APP2, BACKEND, (5000, 7), &data(1300));
        let outer = udp_packet(NODE1, NODE2, (8285, 8285), &long[14..], 64);
        lab.send(APP2, &long);
        assert_eq!(lab.receive(BACKEND).len(), 1, "it fits the interface");
        // Not ours, not a peer's, not from the tunnel's port: nobody believes that.
        for forged in [
            udp_packet(NODE2, NODE1, (8285, 8285), &long[14..], 64),
            udp_packet(NODE1, USER, (8285, 8285), &long[14..], 64),
            udp_packet(NODE1, NODE2, (8285, 53), &long[14..], 64),
        ] {
            too_long(&mut lab, &forged, 1300);
        }
        lab.send(APP2, &long);
        assert_eq!((lab.receive(BACKEND).len(), lab.drops(DropReason::IcmpErrorUnmatched)), (1, 3));
        too_long(&mut lab, &outer, 1300);
        lab.send(APP2, &long);
        assert_eq!(lab.receive(BACKEND), Vec::<Vec<u8>>::new());
        let told = lab.receive(APP2);
        let icmp = packet(&told[0]).3;
        let error = IcmpPacket::new_checked(&icmp[..]).unwrap();
        assert_eq!((error.code(), error.next_hop_mtu()), (4, 1300 - 28));
        // What may be cut is cut to that.
        let mut whole = udp_packet(APP2, BACKEND, (5000, 7), &data(1300), 64);
        Ipv4Packet::new_unchecked(&mut whole[..]).set_fragmentation(false, false, 0);
        Ipv4Packet::new_unchecked(&mut whole[..]).fill_header_checksum();
        lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), &whole));
        let arrived = lab.receive(BACKEND);
        assert_eq!((arrived.len(), check(&arrived, APP2, BACKEND, &data(1300))), (2, (5000, 7)));
        // Ten minutes later it may be tried again (RFC 1191, 6.3).
        lab.pass(std::time::Duration::from_secs(601));
        let again = lab.udp(APP2, BACKEND, (5001, 7), &data(1300));
        lab.send(APP2, &again);
        assert_eq!(lab.receive(BACKEND).len(), 1);
        lab.check();
    }
}

/// What a link takes is what its ends know: the sender is told, and the tunnel's room shrinks with its underlay.
#[test]
fn a_links_mtu_changes_while_packets_flow() {
    let mut lab = Lab::new(2);
    let set = |lab: &mut Lab, mtu: Option<u16>| {
        let id = lab.node1;
        lab.control.tables.publish(|tables| {
            let mut node = (**tables.node(id).unwrap()).clone();
            node.link_mtus = mtu.map(|mtu| (NODE2, mtu)).into_iter().collect();
            tables.set_node(id, Some(node));
        });
    };
    let long = lab.udp(APP2, BACKEND, (5000, 7), &data(1300));
    for (mtu, fits) in
        [(None, true), (Some(1200), false), (Some(1356), true), (Some(1355), false), (None, true)]
    {
        set(&mut lab, mtu);
        lab.send(APP2, &long);
        assert_eq!(lab.receive(BACKEND).len(), usize::from(fits), "{mtu:?}");
        let told = lab.receive(APP2);
        assert_eq!(told.len(), usize::from(!fits), "{mtu:?}");
        if let Some(told) = told.first() {
            let icmp = packet(told).3;
            assert_eq!(Some(IcmpPacket::new_unchecked(&icmp[..]).next_hop_mtu() + 28), mtu);
        }
        let other = lab.udp(APP2, USER, (5000, 7), &data(1300));
        lab.send(APP2, &other);
        assert_eq!(lab.settle(USER).len(), 1, "another link");
    }
    lab.check();
}

/// RFC 6864, 4.3: two workers of a node never give one identification to packets that may be cut.
#[test]
fn what_workers_make_of_one_address_differs_in_its_identification() {
    for workers in [2, 3] {
        let mut lab = Lab::new(workers);
        let mut seen = std::collections::BTreeMap::new();
        for round in 0..40u8 {
            for (worker, pod) in [(0, APP1), (workers - 1, APP2)] {
                let expired = lab.echo(pod, INTERNET, 1);
                lab.send(pod, &expired);
                let told = lab.receive(pod);
                let header = Ipv4Packet::new_checked(&told[0][14..]).unwrap();
                assert!(!header.dont_fragment());
                let other = seen.insert(header.identification(), (worker, round));
                assert_eq!(other, None, "{} again", header.identification());
            }
        }
        lab.check();
    }
}
