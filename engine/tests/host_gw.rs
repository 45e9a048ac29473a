//! Nodes without a tunnel: packets go as they are to the node that holds the lease, and from nowhere else.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;
#[path = "common/pods_mtu.rs"]
mod pods_mtu;

use std::net::Ipv4Addr;

use common::*;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::tables::Lease;
use flatnet_engine::trace::Point;
use flatnet_engine::wire::{IcmpType, Ipv4Packet, MacAddress, TcpFlags};
use pods_mtu::assert_pods_mtu;

const DOCKER1: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 1);
const DOCKER2: Ipv4Addr = Ipv4Addr::new(10, 1, 20, 1);

/// A network whose machines have spoken.
fn known(workers: u8) -> Lab {
    let mut lab = Lab::host_gw(workers);
    for (from, to) in [(APP2, BACKEND), (BACKEND, APP2), (APP2, USER), (BACKEND, USER)] {
        let frame = lab.udp(from, to, (9, 9), b"");
        lab.send(from, &frame);
        lab.settle(to);
    }
    for host in [USER, INTERNET] {
        lab.take(host);
    }
    lab
}

fn set_lease(lab: &mut Lab, subnet: &str, holder: Ipv4Addr) {
    let lease = Some(Lease { public_ip: holder, vtep: None });
    lab.control.tables.publish(|tables| tables.set_lease(prefix(subnet), lease));
}

/// Sends the first node a packet from a machine of the node network.
fn to_node(lab: &mut Lab, packet: &[u8]) {
    lab.send(USER, &ethernet(mac(NODE1), mac(USER), packet));
}

/// What a packet says: its ends, and how often it was forwarded.
fn ends(frame: &[u8]) -> (Ipv4Addr, Ipv4Addr, u8) {
    let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
    assert!(packet.verify_header_checksum());
    (packet.source(), packet.destination(), packet.time_to_live())
}

#[test]
fn a_packet_goes_as_it_is_to_the_node_that_holds_the_lease() {
    for workers in [1, 2] {
        let mut lab = known(workers);
        let (node, frame) = (lab.node1, lab.udp(APP2, BACKEND, (5000, 7), b"hello"));
        lab.workers.iter_mut().for_each(|worker| worker.listen(1, node, Point::Interface(0)));
        for _ in 0..2 {
            lab.send(APP2, &frame);
            let arrived = lab.receive(BACKEND);
            assert_eq!((arrived.len(), ends(&arrived[0])), (1, (APP2, BACKEND, 62)));
            assert_eq!(packet(&arrived[0]).3[8..], *b"hello");
        }
        let taken =
            lab.workers.iter_mut().flat_map(|worker| worker.ignore(1, node, Point::Interface(0)).frames);
        let seen: Vec<_> = taken.collect();
        assert_eq!(seen.len(), 2);
        for frame in seen {
            assert_eq!(frame.bytes[..12], [mac(NODE2).octets(), mac(NODE1).octets()].concat());
            assert_eq!((frame.bytes.len(), ends(&frame.bytes)), (14 + 28 + 5, (APP2, BACKEND, 63)));
        }
        // Unwatched, and from memory.
        for _ in 0..2 {
            lab.send(APP2, &frame);
            assert_eq!(ends(&lab.receive(BACKEND)[0]), (APP2, BACKEND, 62));
        }
        lab.check();
    }
}

/// RFC 1191: pods have the link's MTU, since nothing is put in front of their packets.
#[test]
fn pods_have_the_links_mtu() {
    let mut lab = known(2);
    assert_pods_mtu(&mut lab, 1500);
    lab.check();
}

/// Linux: a router speaks from the interface it answers by; without a flannel0 the second is eth0.
#[test]
fn each_node_is_a_hop_and_answers_for_its_addresses() {
    for workers in [1, 2] {
        let mut lab = known(workers);
        for (ttl, hop) in [(1, DOCKER1), (2, NODE2)] {
            let frame = lab.echo(APP2, BACKEND, ttl);
            lab.send(APP2, &frame);
            let told = lab.receive(APP2);
            assert_eq!(ends(&told[0]).0, hop);
            assert_eq!(packet(&told[0]).3[0], u8::from(IcmpType::TimeExceeded));
        }
        for to in [DOCKER2, NODE2] {
            let frame = lab.echo(APP2, to, 64);
            lab.send(APP2, &frame);
            assert_eq!(ends(&lab.receive(APP2)[0]).0, to);
        }
        lab.check();
    }
}

/// flannel, `-s POD-NETWORK ! -d POD-NETWORK -j MASQUERADE`.
#[test]
fn pods_see_each_others_addresses_and_others_the_nodes() {
    let mut lab = known(1);
    let syn = lab.tcp(APP2, BACKEND, (5000, 80), TcpFlags::SYN);
    lab.send(APP2, &syn);
    assert_eq!(ends(&lab.receive(BACKEND)[0]).0, APP2);
    let bound = |lab: &Lab| lab.workers[0].bindings().iter(lab.node1).count();
    let before = bound(&lab);
    let frame = lab.udp(APP2, USER, (5000, 7), b"out");
    lab.send(APP2, &frame);
    assert_eq!(ends(&lab.settle(USER)[0]).0, NODE1);
    assert_eq!(bound(&lab), before + 1);
    // A node itself asks from eth0's address, and is answered there.
    to_node(&mut lab, &udp_packet(NODE2, APP2, (5000, 7), b"ask", 64));
    assert_eq!(ends(&lab.receive(APP2)[0]), (NODE2, APP2, 63));
    let frame = lab.udp(APP2, NODE2, (7, 5000), b"answer");
    lab.workers[0].listen(1, lab.node1, Point::Interface(0));
    lab.send(APP2, &frame);
    let seen = lab.workers[0].observer.take(1).frames;
    assert_eq!(ends(&seen[0].bytes), (APP2, NODE2, 63));
    lab.check();
}

/// kube-proxy: whoever asks from outside is masqueraded, so that the answer comes back; what comes from a pod is not from outside.
#[test]
fn a_node_port_leads_to_a_pod_of_the_other_node() {
    for workers in [1, 2] {
        let mut lab = known(workers);
        lab.serve(|service| service.backends = vec![on("node-2", APP3, 2)].into());
        let syn = tcp_packet(USER, NODE1, (5000, 30_080), TcpFlags::SYN);
        to_node(&mut lab, &syn);
        let asked = lab.receive(APP3);
        let (source, _, ttl) = ends(&asked[0]);
        assert_eq!((source, ttl), (NODE1, 62));
        let port = u16::from_be_bytes([asked[0][34], asked[0][35]]);
        let answer = lab.tcp(APP3, NODE1, (80, port), TcpFlags::SYN.with(TcpFlags::ACK));
        lab.send(APP3, &answer);
        assert_eq!(ends(&lab.settle(USER)[0]).0, NODE1);
        lab.check();
    }
}

/// RFC 3704, 2.2; RFC 2827, 3; Linux, `rp_filter` 1: from a pod's address only by the interface of the way back to it.
#[test]
fn what_comes_as_from_a_pod_must_come_the_way_back() {
    let broadcast = Ipv4Addr::new(10, 1, 20, 255);
    for workers in [1, 2] {
        let mut lab = known(workers);
        let nobody = Ipv4Addr::new(10, 1, 99, 9);
        set_lease(&mut lab, "10.1.30.0/24", INTERNET);
        let far = Ipv4Addr::new(10, 1, 30, 2);
        let cases = [
            ("a pod of its own", APP2, DropReason::SpoofedAddress),
            ("docker0", DOCKER1, DropReason::SpoofedAddress),
            ("nobody's subnet", nobody, DropReason::SpoofedAddress),
            ("a subnet behind a router", far, DropReason::SpoofedAddress),
            ("the broadcast of a peer's subnet", broadcast, DropReason::Martian),
            ("its own", NODE1, DropReason::Martian),
        ];
        for (name, source, reason) in cases {
            for to in [APP1, BACKEND, NODE1, INTERNET] {
                let before = lab.drops(reason);
                to_node(&mut lab, &udp_packet(source, to, (1, 7), b"hello", 64));
                assert_eq!(lab.drops(reason), before + 1, "{name} to {to}");
            }
            let seen: usize = [APP1, APP2, BACKEND].iter().map(|&at| lab.take(at).len()).sum();
            assert_eq!((seen, lab.receive(USER)), (0, vec![]), "{name}: nobody sees it, and nobody answers");
        }
        // As with Linux, who is on the same network is not told from the peer there.
        let good = udp_packet(BACKEND, APP1, (1, 7), b"hello", 64);
        for _ in 0..3 {
            to_node(&mut lab, &good);
            assert_eq!(lab.receive(APP1).len(), 1);
        }
        // What was believed is not when the lease is gone, or another's.
        set_lease(&mut lab, "10.1.20.0/24", INTERNET);
        let before = lab.drops(DropReason::SpoofedAddress);
        to_node(&mut lab, &good);
        assert_eq!((lab.receive(APP1).len(), lab.drops(DropReason::SpoofedAddress)), (0, before + 1));
        set_lease(&mut lab, "10.1.20.0/24", NODE2);
        to_node(&mut lab, &good);
        assert_eq!(lab.receive(APP1).len(), 1);
        lab.check();
    }
}

/// Linux, `PACKET_OTHERHOST`: a switch floods what is for a station it does not know, and a card that listens to all hands it up.
#[test]
fn a_frame_for_another_mac_is_not_the_nodes() {
    for workers in [1, 2] {
        let mut lab = known(workers);
        let packets = [
            udp_packet(BACKEND, APP1, (1, 7), b"as from a pod", 64),
            udp_packet(USER, APP1, (1, 7), b"from outside", 64),
            udp_packet(USER, NODE1, (1, 30_080), b"to a NodePort", 64),
            echo_packet(USER, NODE1, IcmpType::EchoRequest, 9, 64),
        ];
        let strange = MacAddress::new([2, 0, 0, 0, 0, 9]);
        for packet in &packets {
            // Before and after the flow is known by its own.
            for _ in 0..2 {
                let before = lab.ledger(lab.node1).drops(DropReason::NotForUs);
                lab.send(USER, &ethernet(strange, mac(USER), packet));
                assert_eq!(lab.ledger(lab.node1).drops(DropReason::NotForUs), before + 1);
                let seen: usize = [APP1, APP2, APP3].iter().map(|&at| lab.take(at).len()).sum();
                assert_eq!((seen, lab.receive(USER)), (0, vec![]), "nobody sees it, and nobody answers");
                to_node(&mut lab, packet);
                let seen: usize = [APP1, APP2, APP3, USER].iter().map(|&at| lab.receive(at).len()).sum();
                assert_eq!(seen, 1);
            }
        }
        lab.check();
    }
}

/// Linux refuses a gateway that is no neighbour, and flannel leaves such a lease alone.
#[test]
fn a_node_behind_a_router_is_not_reached() {
    for workers in [1, 2] {
        let mut lab = known(workers);
        let holders = [(INTERNET, DropReason::LeaseOffLink), (NODE1, DropReason::NoLease)];
        for (holder, reason) in holders {
            set_lease(&mut lab, "10.1.30.0/24", holder);
            let frame = lab.udp(APP2, Ipv4Addr::new(10, 1, 30, 2), (5000, 7), b"");
            lab.send(APP2, &frame);
            assert_eq!(lab.drops(reason), 1);
            let told = packet(&lab.receive(APP2)[0]);
            assert_eq!(told.3[..2], [3, 0], "network unreachable");
        }
        // A flow that is known finds the node where it is now.
        let frame = lab.udp(APP2, BACKEND, (5000, 7), b"");
        lab.send(APP2, &frame);
        assert_eq!(lab.receive(BACKEND).len(), 1);
        set_lease(&mut lab, "10.1.20.0/24", USER);
        lab.send(APP2, &frame);
        let moved = lab.settle(USER);
        assert_eq!((moved.len(), lab.receive(BACKEND).len()), (1, 0));
        assert_eq!(ends(&moved[0]), (APP2, BACKEND, 63));
        lab.check();
    }
}
