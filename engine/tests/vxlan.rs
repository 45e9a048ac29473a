//! The tunnel as a VXLAN: where somebody lies, what is too long, and peers that ask for MACs.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "a test stops at the first surprise; one case per rule"
)]

mod common;
#[path = "common/pods_mtu.rs"]
mod pods_mtu;

use std::net::Ipv4Addr;
use std::time::Duration;

use common::sockets::{PORT, Sockets, address};
use common::superframes::{arrived, segments, unfinished, unfinished_record};
use common::*;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::tables::Lease;
use flatnet_engine::trace::Point;
use flatnet_engine::wire::{
    ArpOperation, ArpPacket, EtherType, EthernetFrame, IcmpPacket, Ipv4Packet, MacAddress, UdpDatagram,
    VxlanPacket,
};
use pods_mtu::assert_pods_mtu;

const VXLAN_PORT: u16 = 8472;
/// flannel0's addresses.
const FLANNEL1: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 0);
const FLANNEL2: Ipv4Addr = Ipv4Addr::new(10, 1, 20, 0);

/// A network whose machines have spoken.
fn known(workers: u8) -> Lab {
    let mut lab = Lab::vxlan(workers);
    for (from, to) in [(APP2, BACKEND), (BACKEND, APP2), (APP2, USER)] {
        let frame = lab.udp(from, to, (9, 9), b"");
        lab.send(from, &frame);
        lab.settle(to);
    }
    lab
}

/// A packet in a frame from the second node's end to the first's.
fn in_frame(packet: &[u8]) -> Vec<u8> {
    vxlan_frame(1, (VTEP1, VTEP2), EtherType::Ipv4, packet)
}

/// Sends the first node a datagram as from a machine of the node network.
fn to_node(lab: &mut Lab, from: Ipv4Addr, payload: &[u8]) {
    let datagram = udp_packet(from, NODE1, (50_000, VXLAN_PORT), payload, 64);
    lab.send(USER, &ethernet(mac(NODE1), mac(USER), &datagram));
}

/// RFC 7348, 5 and 7; RFC 2827, 3; RFC 1812, 5.3.7.
#[test]
fn hostile_datagrams_come_to_nothing() {
    let from = |source, destination| udp_packet(source, destination, (1, 7), b"hello", 64);
    let inner = from(BACKEND, APP1);
    let good = in_frame(&inner);
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    let with = |macs, ethertype| vxlan_frame(1, macs, ethertype, &inner);
    let group = MacAddress::new([1, 0, 0x5e, 0, 0, 1]);
    let cases = [
        ("no flag", NODE2, changed(0, 0), DropReason::TunnelMalformed),
        ("a generic protocol extension", NODE2, changed(0, 0x0c), DropReason::TunnelMalformed),
        ("a group policy", NODE2, changed(0, 0x88), DropReason::TunnelMalformed),
        ("reserved", NODE2, changed(7, 1), DropReason::TunnelMalformed),
        ("another network", NODE2, changed(6, 2), DropReason::TunnelForeignNetwork),
        ("another network, by its first octet", NODE2, changed(4, 1), DropReason::TunnelForeignNetwork),
        ("without a frame", NODE2, good[..8].to_vec(), DropReason::TunnelMalformed),
        ("half a frame's header", NODE2, good[..21].to_vec(), DropReason::TunnelMalformed),
        ("a frame's header alone", NODE2, good[..22].to_vec(), DropReason::TunnelMalformed),
        ("half a packet", NODE2, good[..45].to_vec(), DropReason::TunnelMalformed),
        ("nothing", NODE2, vec![], DropReason::TunnelMalformed),
        ("udp's own", NODE2, inner.clone(), DropReason::TunnelMalformed),
        ("damaged", NODE2, changed(22 + 10, 0), DropReason::TunnelMalformed),
        ("another's MAC", NODE2, with((VTEP2, VTEP2), EtherType::Ipv4), DropReason::TunnelForeignMac),
        (
            "for all",
            NODE2,
            with((MacAddress::BROADCAST, VTEP2), EtherType::Ipv4),
            DropReason::TunnelBroadcast,
        ),
        ("for a group", NODE2, with((group, VTEP2), EtherType::Ipv6), DropReason::TunnelBroadcast),
        ("from a group", NODE2, with((VTEP1, group), EtherType::Ipv4), DropReason::MulticastSource),
        ("IPv6", NODE2, with((VTEP1, VTEP2), EtherType::Ipv6), DropReason::UnhandledProtocol),
        ("a tag", NODE2, with((VTEP1, VTEP2), EtherType::Vlan), DropReason::UnhandledProtocol),
        ("no ARP", NODE2, with((VTEP1, VTEP2), EtherType::Arp), DropReason::MalformedArp),
        ("not a node", USER, good.clone(), DropReason::TunnelForeignSource),
        ("itself", NODE1, in_frame(&from(APP2, APP1)), DropReason::Martian),
        ("another node's pod", NODE2, in_frame(&from(APP2, APP1)), DropReason::TunnelForeignSource),
        ("a machine outside", NODE2, in_frame(&from(USER, APP1)), DropReason::TunnelForeignSource),
        ("to the outside", NODE2, in_frame(&from(BACKEND, INTERNET)), DropReason::TunnelForeignDestination),
        ("back into the tunnel", NODE2, in_frame(&from(BACKEND, APP3)), DropReason::TunnelForeignDestination),
    ];
    for workers in [1, 2] {
        let mut lab = known(workers);
        for (name, outer, payload, reason) in &cases {
            let before = lab.drops(*reason);
            to_node(&mut lab, *outer, payload);
            assert_eq!(lab.drops(*reason), before + 1, "{name}");
            let seen: usize = [APP1, APP2, APP3, BACKEND].iter().map(|&at| lab.take(at).len()).sum();
            assert_eq!((seen, lab.receive(USER)), (0, vec![]), "{name}: nobody sees it, and nobody answers");
        }
        let mut bad_outer = udp_packet(NODE2, NODE1, (50_000, VXLAN_PORT), &good, 64);
        bad_outer[26] ^= 1;
        lab.send(USER, &ethernet(mac(NODE1), mac(USER), &bad_outer));
        assert_eq!(lab.drops(DropReason::TunnelChecksum), 1);
        // From any port, with a checksum and without (RFC 7348, 5), and what follows the packet is not part of it.
        let longer = [&good[..], &[0; 9]].concat();
        for (port, payload) in [(50_000, &good), (8472, &good), (1, &longer)] {
            for has_checksum in [true, false] {
                let mut datagram = udp_packet(NODE2, NODE1, (port, VXLAN_PORT), payload, 64);
                if !has_checksum {
                    datagram[26..28].fill(0);
                }
                lab.send(USER, &ethernet(mac(NODE1), mac(USER), &datagram));
                let arrived = lab.receive(APP1);
                assert_eq!((arrived.len(), arrived[0].len()), (1, 14 + inner.len()), "{port} {has_checksum}");
            }
        }
        lab.check();
    }
}

/// RFC 2827, 3: a pod's datagrams to another node's tunnel would come from its own node's address.
#[test]
fn a_pod_is_no_tunnel() {
    for workers in [1, 2] {
        let mut lab = known(workers);
        let imitation = in_frame(&udp_packet(APP1, BACKEND, (9, 9), b"", 64));
        for to in [NODE2, NODE1] {
            let frame = lab.udp(APP2, to, (4000, VXLAN_PORT), &imitation);
            lab.send(APP2, &frame);
            assert_eq!(lab.settle(BACKEND), Vec::<Vec<u8>>::new());
        }
        assert_eq!(lab.drops(DropReason::TunnelImitated), 1, "to the own node it goes nowhere else");
        // In fragments neither.
        let whole = udp_packet(APP2, NODE2, (4000, VXLAN_PORT), &[7; 100], 64);
        for (range, more) in [(0..64, true), (64..108, false)] {
            let piece = fragment_of(&whole, range.clone(), more, range.start);
            lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), &piece));
        }
        assert_eq!(lab.drops(DropReason::TunnelImitated), 3);
        // The port is everybody's elsewhere.
        let frame = lab.udp(APP2, USER, (4000, VXLAN_PORT), b"hello");
        lab.send(APP2, &frame);
        assert_eq!(lab.settle(USER).len(), 1);
        // Until a node is there: for a flow that is known by then, too.
        let lease = Some(Lease { public_ip: USER, vtep: None });
        lab.control.tables.publish(|tables| tables.set_lease(prefix("10.1.30.0/24"), lease));
        lab.send(APP2, &frame);
        assert_eq!((lab.settle(USER).len(), lab.drops(DropReason::TunnelImitated)), (0, 4));
        lab.check();
    }
}

/// RFC 7348, 4.3: pods' packets have room for 50 bytes of headers, and who sends more is told what fits.
#[test]
fn pods_have_an_mtu_with_room_for_all_headers() {
    let mut lab = known(2);
    let node = lab.node1;
    lab.workers.iter_mut().for_each(|worker| worker.listen(1, node, Point::Interface(0)));
    assert_pods_mtu(&mut lab, 1450);
    let seen: Vec<_> = lab.workers.iter_mut().flat_map(|worker| worker.observer.take(1).frames).collect();
    assert_eq!(seen.iter().map(|frame| frame.bytes.len()).max(), Some(14 + 1500));
    lab.check();
}

/// RFC 1191, 3: a router's word counts whatever port the datagram it quotes came from.
#[test]
fn the_path_mtu_of_a_peer_is_learned_and_told_inside() {
    for workers in [1, 2] {
        let mut lab = known(workers);
        let long = lab.udp(APP2, BACKEND, (5000, 7), &vec![3; 1300]);
        let say = |lab: &mut Lab, from, to, ports| {
            let quoted = udp_packet(from, to, ports, b"", 64);
            let mut message = vec![3, 4, 0, 0, 0, 0];
            message.extend(1300_u16.to_be_bytes());
            message.extend(&quoted[..28]);
            IcmpPacket::new_unchecked(&mut message[..]).fill_checksum();
            let error = ipv4_packet(USER, NODE1, flatnet_engine::wire::IpProtocol::Icmp, 64, &message);
            lab.send(USER, &ethernet(mac(NODE1), mac(USER), &error));
        };
        say(&mut lab, NODE1, USER, (40_000, VXLAN_PORT));
        say(&mut lab, NODE1, NODE2, (40_000, 53));
        lab.send(APP2, &long);
        assert_eq!(lab.receive(BACKEND).len(), 1, "not believed");
        say(&mut lab, NODE1, NODE2, (40_000, VXLAN_PORT));
        lab.send(APP2, &long);
        assert_eq!(lab.receive(BACKEND).len(), 0);
        let icmp = packet(&lab.receive(APP2)[0]).3;
        assert_eq!(IcmpPacket::new_unchecked(&icmp[..]).next_hop_mtu(), 1300 - 50);
        lab.check();
    }
}

/// RFC 826 in the overlay: who has no entry for a node's end asks, and is answered; nobody else is, and for nothing else.
#[test]
fn a_peer_that_asks_for_flannel0s_mac_is_told() {
    let peer = MacAddress::new([0x4e, 0x41, 0xe0, 0x49, 0x09, 0xa4]);
    for workers in [1, 2] {
        let mut lab = known(workers);
        let ask = |lab: &mut Lab, outer, to, operation, target| {
            let arp = arp(operation, (peer, FLANNEL2), (MacAddress::default(), target));
            to_node(lab, outer, &vxlan_frame(1, (to, peer), EtherType::Arp, &arp[14..]));
            let answers = lab.take(USER);
            answers.into_iter().filter(|frame| frame[12..14] == [8, 0]).collect::<Vec<_>>()
        };
        for to in [MacAddress::BROADCAST, VTEP1] {
            let answers = ask(&mut lab, NODE2, to, ArpOperation::Request, FLANNEL1);
            let [answer] = &answers[..] else { panic!("{} answers", answers.len()) };
            let outer = Ipv4Packet::new_checked(&answer[14..]).unwrap();
            assert!(outer.verify_header_checksum());
            assert_eq!((outer.source(), outer.destination()), (NODE1, NODE2));
            let datagram = UdpDatagram::new_checked(outer.payload()).unwrap();
            assert_eq!(datagram.destination_port(), VXLAN_PORT);
            let vxlan = VxlanPacket::new_checked(datagram.payload()).unwrap();
            let frame = EthernetFrame::new_checked(vxlan.payload()).unwrap();
            assert_eq!((vxlan.vni(), frame.destination(), frame.source()), (1, peer, VTEP1));
            let reply = ArpPacket::new_checked(frame.payload()).unwrap();
            assert_eq!(reply.operation(), ArpOperation::Reply);
            assert_eq!((reply.sender_mac(), reply.sender_address()), (VTEP1, FLANNEL1));
            assert_eq!((reply.target_mac(), reply.target_address()), (peer, FLANNEL2));
        }
        let silent = [
            (NODE2, ArpOperation::Request, APP1),
            (NODE2, ArpOperation::Request, NODE1),
            (NODE2, ArpOperation::Reply, FLANNEL1),
        ];
        for (outer, operation, target) in silent {
            assert!(ask(&mut lab, outer, MacAddress::BROADCAST, operation, target).is_empty(), "{target}");
        }
        assert!(ask(&mut lab, USER, MacAddress::BROADCAST, ArpOperation::Request, FLANNEL1).is_empty());
        assert_eq!(lab.drops(DropReason::TunnelForeignSource), 1);
        lab.check();
    }
}

/// A lease may say another MAC, which counts from then on.
#[test]
fn frames_are_for_the_mac_that_the_lease_says() {
    let mut lab = known(1);
    let (node, frame) = (lab.node1, lab.udp(APP2, BACKEND, (5000, 7), b"hello"));
    let peer = MacAddress::new([0x4e, 0x41, 0xe0, 0x49, 0x09, 0xa4]);
    lab.send(APP2, &frame);
    assert_eq!(lab.receive(BACKEND).len(), 1);
    let lease = Lease { public_ip: NODE2, vtep: Some(peer) };
    lab.control.tables.publish(|tables| tables.set_lease(prefix("10.1.20.0/24"), Some(lease)));
    lab.send(APP2, &frame);
    assert_eq!((lab.receive(BACKEND).len(), lab.drops(DropReason::TunnelForeignMac)), (0, 1));
    lab.workers[0].listen(1, node, Point::Interface(0));
    lab.send(APP2, &frame);
    let seen = lab.workers[0].observer.take(1).frames;
    assert_eq!(seen[0].bytes[50..62], [peer.octets(), VTEP1.octets()].concat());
    lab.pass(Duration::from_millis(1));
    lab.check();
}

#[test]
fn frames_cross_the_hosts_network_and_superframes_whole() {
    let mut sockets = Sockets::over(VXLAN, 1, 32);
    let lab = &mut sockets.lab;
    lab.workers[0].listen(1, lab.node2, Point::Interface(0));
    let there = lab.udp(APP1, APP3, (4000, 53), b"there");
    lab.send(APP1, &there);
    assert_eq!(packet(&lab.receive(APP3)[0]).3[8..], *b"there");
    let seen = lab.workers[0].ignore(1, lab.node2, Point::Interface(0));
    let datagram = seen.frames.iter().find(|frame| frame.bytes[12..14] == [8, 0]).unwrap();
    // What a socket sends comes from its port.
    assert_eq!(datagram.bytes[34..38], [PORT.to_be_bytes(); 2].concat());
    assert_eq!(datagram.bytes[50..62], [VTEP2.octets(), VTEP1.octets()].concat());
    for (is_tcp, size, length) in [(true, 1400, 16_807), (false, 1400, 16_807), (true, 1400, 62_000)] {
        let whole = unfinished(lab, (APP1, APP3), 9, is_tcp, length);
        let finished = segments(&whole, size);
        lab.send_all(APP1, &finished);
        let expected = arrived(lab, APP3).0;
        assert_eq!(expected.len(), finished.len());
        let mut most = 0;
        for _ in 0..3 {
            lab.send_with(APP1, &whole, |record| unfinished_record(record, is_tcp, size));
            let (found, superframes) = arrived(lab, APP3);
            assert!(found == expected, "{} of {}", found.len(), expected.len());
            most = most.max(superframes);
        }
        assert!(most > 0, "none came whole");
    }
    sockets.lab.check();
}

#[test]
fn a_sockets_hostile_datagrams_are_dropped_by_name() {
    let mut sockets = Sockets::over(VXLAN, 2, 4);
    sockets.take_peer_away();
    let (peer, stranger) = ((sockets.own[0], 0), (address(2, 9), PORT));
    let packet = udp_packet(APP1, APP3, (4000, 53), b"hello", 64);
    let frame = |vni, to| vxlan_frame(vni, (to, VTEP1), EtherType::Ipv4, &packet);
    let good = frame(1, VTEP2);
    let spoofed = udp_packet(Ipv4Addr::new(10, 1, 30, 2), APP3, (4000, 53), b"hello", 64);
    let spoofed = vxlan_frame(1, (VTEP2, VTEP1), EtherType::Ipv4, &spoofed);
    let cases = [
        (stranger, good.clone(), DropReason::TunnelForeignSource),
        (peer, spoofed, DropReason::TunnelForeignSource),
        (peer, frame(2, VTEP2), DropReason::TunnelForeignNetwork),
        (peer, frame(1, VTEP1), DropReason::TunnelForeignMac),
        (peer, frame(1, MacAddress::BROADCAST), DropReason::TunnelBroadcast),
        (peer, packet.clone(), DropReason::TunnelMalformed),
        (peer, good[..20].to_vec(), DropReason::TunnelMalformed),
    ];
    for (from, payload, reason) in cases {
        assert_eq!(sockets.hostile(from, &payload), [(reason, 1)], "{from:?}: {payload:?}");
    }
    // From any port.
    assert_eq!(sockets.hostile(peer, &good), []);
    assert_eq!(sockets.lab.receive(APP3).len(), 1);
    sockets.lab.check();
}
