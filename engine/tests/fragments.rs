//! Fragments on their way through nodes that translate, and packets cut where a link takes less.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::fragments::*;
use common::*;
use flatnet_engine::ledger::{DropReason, Term};
use flatnet_engine::trace::Point;
use flatnet_engine::wire::{IcmpPacket, IpProtocol, Ipv4Packet, UdpDatagram};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

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

/// RFC 1858, 3: what ends a datagram before what is there already is no fragment of it, though it overlaps with nothing.
#[test]
fn a_last_fragment_in_the_middle_is_refused() {
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        let packet = udp_packet(APP2, BACKEND, (5000, 7), &data(500), 64);
        let fragments = [(0, true), (192, true), (64, false), (128, true)]
            .map(|(start, more)| fragment_of(&packet, start..start + 64, more, start));
        for (number, fragment) in fragments.iter().enumerate() {
            lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), fragment));
            assert_eq!(lab.receive(BACKEND).len(), usize::from(number < 2), "{number}");
        }
        assert_eq!(lab.drops(DropReason::FragmentOverlap), 2, "and nothing of the datagram passes any more");
        lab.check();
    }
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

/// Linux, `ip_dont_fragment`: where a router says less than is believed, the tunnel's datagrams may be cut on their way.
#[test]
fn on_a_path_below_the_smallest_mtu_the_tunnels_datagrams_may_be_cut() {
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        let node = lab.node1;
        let hello = lab.udp(APP2, BACKEND, (5000, 7), b"hello");
        lab.send(APP2, &hello);
        lab.receive(BACKEND);
        lab.workers.iter_mut().for_each(|worker| worker.listen(1, node, Point::Interface(0)));
        let outer = udp_packet(NODE1, NODE2, (8285, 8285), &hello[14..], 64);
        for (told, forbids) in [(0, true), (552, true), (551, false), (1400, false)] {
            too_long(&mut lab, &outer, told);
            lab.workers.iter_mut().for_each(|worker| drop(worker.observer.take(1)));
            for _ in 0..2 {
                lab.send(APP2, &hello);
                assert_eq!(lab.receive(BACKEND).len(), 1);
            }
            let seen: Vec<_> =
                lab.workers.iter_mut().flat_map(|worker| worker.observer.take(1).frames).collect();
            assert_eq!(seen.len(), 2);
            for frame in seen {
                assert_eq!(Ipv4Packet::new_unchecked(&frame.bytes[14..]).dont_fragment(), forbids, "{told}");
            }
        }
        let longest = lab.udp(APP2, BACKEND, (5000, 7), &data(552 - 28 - 28));
        lab.send(APP2, &longest);
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

/// Sorts fragments by their identification and puts each datagram together; returns the identifications.
fn datagrams(frames: &[Vec<u8>]) -> Vec<(u16, Vec<u8>)> {
    let mut by_identification: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
    for frame in frames {
        let identification = Ipv4Packet::new_unchecked(&frame[14..]).identification();
        by_identification.entry(identification).or_default().push(frame.clone());
    }
    by_identification.into_iter().map(|(identification, frames)| (identification, whole(&frames))).collect()
}

/// RFC 6864, 5.3.1; RFC 3022, 6.3 and RFC 4963 for what happens else: pods behind one address give the same
/// identification, and their fragments meet at the receiver. Also where the node cuts.
#[test]
fn fragments_of_several_pods_behind_one_address_are_told_apart() {
    for (workers, cuts) in [(1, false), (2, false), (3, false), (1, true), (2, true), (3, true)] {
        let mut lab = Lab::new(workers);
        if cuts {
            let id = lab.node1;
            lab.control.tables.publish(|tables| {
                let mut node = (**tables.node(id).unwrap()).clone();
                node.interfaces[0].mtu = 600;
                tables.set_node(id, Some(node));
            });
        }
        for pod in [APP1, APP2] {
            let hello = lab.udp(pod, INTERNET, (9, 9), b"");
            lab.send(pod, &hello);
            lab.settle(INTERNET);
        }
        let packets = [(APP1, 5001), (APP2, 5002)].map(|(pod, port)| {
            let mut packet = udp_packet(pod, INTERNET, (port, 53), &data(1000), 64);
            Ipv4Packet::new_unchecked(&mut packet[..]).set_fragmentation(false, false, 0);
            (pod, with_identification(packet, 77))
        });
        let pieces = packets.clone().map(|(pod, packet)| {
            let pieces = if cuts { vec![packet] } else { cut(&packet, &[400, 800]) };
            (pod, pieces)
        });
        for number in 0..pieces[0].1.len() {
            for (pod, pieces) in &pieces {
                lab.send(*pod, &ethernet(lab.machines[pod].gateway, mac(*pod), &pieces[number]));
            }
        }
        let arrived = lab.settle(INTERNET);
        let datagrams = datagrams(&arrived);
        assert_eq!((arrived.len(), datagrams.len()), (if cuts { 4 } else { 6 }, 2), "{workers} {cuts}");
        for (identification, payload) in datagrams {
            let datagram = UdpDatagram::new_checked(&payload[..]).unwrap();
            assert!(datagram.verify_checksum(NODE1, INTERNET) && datagram.payload() == data(1000));
            assert_ne!(identification, 77);
        }
        lab.check();
    }
}

/// RFC 6864, 5.3.1: so are the answers of a Service's backends; what is not translated keeps what its sender gave it.
#[test]
fn fragments_from_one_vip_are_told_apart_and_others_stay_as_they_were() {
    for workers in 1..=3 {
        let mut lab = Lab::new(workers);
        let mut from_vip = Vec::new();
        for port in 5000..5006 {
            let ask = lab.udp(BACKEND, VIP, (port, 80), b"ask");
            lab.send(BACKEND, &ask);
            for pod in [APP1, APP2, APP3] {
                for _ in 0..lab.receive(pod).len() {
                    let answer =
                        with_identification(udp_packet(pod, BACKEND, (80, port), &data(1000), 64), 77);
                    for fragment in cut(&answer, &[400, 800]) {
                        lab.send(pod, &ethernet(lab.machines[&pod].gateway, mac(pod), &fragment));
                    }
                }
            }
            from_vip.extend(lab.receive(BACKEND));
        }
        let datagrams = datagrams(&from_vip);
        assert_eq!(datagrams.len(), 6, "{workers}");
        for (_, payload) in datagrams {
            assert!(UdpDatagram::new_checked(&payload[..]).unwrap().verify_checksum(VIP, BACKEND));
        }
        let plain = with_identification(udp_packet(APP2, BACKEND, (5000, 7), &data(1000), 64), 77);
        for fragment in cut(&plain, &[400, 800]) {
            lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), &fragment));
        }
        let arrived = lab.receive(BACKEND);
        assert_eq!(self::datagrams(&arrived).iter().map(|it| it.0).collect::<Vec<_>>(), [77]);
        lab.check();
    }
}
