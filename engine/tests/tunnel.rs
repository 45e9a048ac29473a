//! The tunnel where somebody lies, and routes where somebody is gone.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::tables::{Lease, NextHop};
use flatnet_engine::wire::{IcmpPacket, IcmpType, IpProtocol, Ipv4Packet, TcpFlags};
use std::net::Ipv4Addr;
use std::time::Duration;

fn known(lab: &mut Lab) {
    for (from, to) in [(APP2, BACKEND), (BACKEND, APP2), (APP2, USER)] {
        let frame = lab.udp(from, to, (9, 9), b"");
        lab.send(from, &frame);
        lab.settle(to);
    }
}

/// What an ICMP error says: type, code, and whom it quotes as the destination.
fn error(frame: &[u8]) -> (IcmpType, u8, Ipv4Addr) {
    let (_, _, _, payload) = packet(frame);
    let icmp = IcmpPacket::new_checked(&payload[..]).unwrap();
    assert!(icmp.verify_checksum());
    let quoted = Ipv4Packet::new_quoted(icmp.payload()).unwrap();
    (icmp.icmp_type(), icmp.code(), quoted.destination())
}

/// flannel's own proxy takes datagrams from anybody; here the outer source must hold the lease of the inner source.
#[test]
fn hostile_datagrams_come_to_nothing() {
    let inner = udp_packet(BACKEND, APP1, (1, 7), b"hello", 64);
    let sent_by = |outer: Ipv4Addr, inner: &[u8]| udp_packet(outer, NODE1, (8285, 8285), inner, 64);
    let from = |source, destination| udp_packet(source, destination, (1, 7), b"hello", 64);
    // The node holds the lease of its own pods, but sends itself nothing through the tunnel.
    let of_own = |outer| sent_by(outer, &from(APP2, APP1));
    let mut version_six = inner.clone();
    version_six[0] = 0x65;
    let mut bad_header = inner.clone();
    bad_header[10] ^= 1;
    let mut bad_outer = sent_by(NODE2, &inner);
    bad_outer[26] ^= 1;
    let mut longer_than_said = inner.clone();
    longer_than_said.extend([0; 9]);
    let foreign_source = DropReason::TunnelForeignSource;
    let foreign_destination = DropReason::TunnelForeignDestination;
    for (name, datagram, reason) in [
        ("not a node, RFC 2827, 3", sent_by(USER, &inner), foreign_source),
        (
            "a node's other port, RFC 2827, 3",
            udp_packet(NODE2, NODE1, (8286, 8285), &inner, 64),
            foreign_source,
        ),
        ("the node itself, RFC 1812, 5.3.7", of_own(NODE1), DropReason::Martian),
        ("its other address", of_own(Ipv4Addr::new(10, 1, 15, 1)), DropReason::Martian),
        ("another node's pod, RFC 2827, 3", sent_by(NODE2, &from(APP2, APP1)), foreign_source),
        ("nobody's pod", sent_by(NODE2, &from(Ipv4Addr::new(10, 1, 99, 2), APP1)), foreign_source),
        ("a machine outside", sent_by(NODE2, &from(USER, APP1)), foreign_source),
        ("to another node", sent_by(NODE2, &from(BACKEND, Ipv4Addr::new(10, 1, 99, 2))), foreign_destination),
        ("to the outside", sent_by(NODE2, &from(BACKEND, INTERNET)), foreign_destination),
        ("back into the tunnel", sent_by(NODE2, &from(BACKEND, APP3)), foreign_destination),
        ("truncated header, RFC 1812, 5.2.2", sent_by(NODE2, &inner[..19]), DropReason::TunnelMalformed),
        ("truncated packet", sent_by(NODE2, &inner[..24]), DropReason::TunnelMalformed),
        ("empty", sent_by(NODE2, b""), DropReason::TunnelMalformed),
        ("IPv6 inside", sent_by(NODE2, &version_six), DropReason::TunnelMalformed),
        ("inner header damaged, RFC 1812, 5.2.2", sent_by(NODE2, &bad_header), DropReason::TunnelMalformed),
        ("outer checksum wrong, RFC 768", bad_outer, DropReason::TunnelChecksum),
    ] {
        let mut lab = Lab::new(2);
        known(&mut lab);
        lab.send(USER, &ethernet(mac(NODE1), mac(USER), &datagram));
        assert_eq!(lab.drops(reason), 1, "{name}");
        let seen: usize = [APP1, APP2, APP3, BACKEND].iter().map(|&at| lab.take(at).len()).sum();
        assert_eq!((seen, lab.receive(USER)), (0, vec![]), "{name}: nobody sees it, and nobody answers");
        lab.check();
    }
    // What follows a packet in its datagram is not part of it.
    let mut lab = Lab::new(1);
    known(&mut lab);
    lab.send(USER, &ethernet(mac(NODE1), mac(USER), &sent_by(NODE2, &longer_than_said)));
    let arrived = lab.receive(APP1);
    assert_eq!(arrived[0].len(), 14 + inner.len());
    lab.check();
}

/// RFC 3704, 2.2; RFC 2827, 3; Linux, `rp_filter` 1: pods are behind the tunnel or on docker0, and no way back to them leads out of eth0.
#[test]
fn what_comes_as_from_a_pod_comes_by_the_tunnel() {
    let way_in = |lab: &mut Lab, packet: &[u8]| lab.send(USER, &ethernet(mac(NODE1), mac(USER), packet));
    for (is_vxlan, workers) in [(false, 1), (false, 2), (true, 1), (true, 2)] {
        let mut lab = if is_vxlan { Lab::vxlan(workers) } else { Lab::new(workers) };
        known(&mut lab);
        let good = lab.udp(BACKEND, APP1, (1, 7), b"hello");
        for _ in 0..2 {
            lab.send(BACKEND, &good);
            assert_eq!(lab.receive(APP1).len(), 1);
        }
        let sources = [
            ("another node's", BACKEND),
            ("a pod of its own", APP2),
            ("docker0", Ipv4Addr::new(10, 1, 15, 1)),
            ("flannel0", Ipv4Addr::new(10, 1, 15, 0)),
            ("the broadcast of a peer's subnet", Ipv4Addr::new(10, 1, 20, 255)),
            ("nobody's", Ipv4Addr::new(10, 1, 99, 9)),
        ];
        for (name, source) in sources {
            for (to, port) in [(APP1, 7), (BACKEND, 7), (NODE1, 7), (INTERNET, 7), (VIP, 80), (NODE1, 30_080)]
            {
                let whole = udp_packet(source, to, (1, port), &[0; 64], 64);
                let syn = tcp_packet(source, to, (1, port), TcpFlags::SYN);
                let fragment = fragment_of(&whole, 0..32, true, 0);
                let echo = echo_packet(source, to, IcmpType::EchoRequest, 9, 1);
                let before = lab.drops(DropReason::SpoofedAddress);
                let mut packets = vec![&whole, &whole, &syn, &echo];
                // What is for the node itself is put together first.
                packets.extend((to != NODE1).then_some(&fragment));
                packets.iter().for_each(|packet| way_in(&mut lab, packet));
                let dropped = lab.drops(DropReason::SpoofedAddress) - before;
                assert_eq!(dropped, packets.len() as u64, "{name} to {to}, {workers} workers");
            }
            let seen: usize = [APP1, APP2, APP3, BACKEND].iter().map(|&at| lab.take(at).len()).sum();
            assert_eq!((seen, lab.receive(USER)), (0, vec![]), "{name}: nobody sees it, and nobody answers");
        }
        let bound: usize = lab.workers.iter().map(|worker| worker.bindings().iter(lab.node1).count()).sum();
        assert_eq!(bound, 1, "APP2's way to USER");
        // Who is no pod is believed as before, and so is a pod where it should be.
        way_in(&mut lab, &udp_packet(USER, APP1, (1, 7), b"hello", 64));
        lab.send(BACKEND, &good);
        assert_eq!(lab.receive(APP1).len(), 2);
        // Where the way back leads out of eth0, whoever is there is a machine like any other.
        let id = lab.node1;
        lab.control.tables.publish(|tables| {
            let mut node = (**tables.node(id).unwrap()).clone();
            node.routes.insert(prefix("10.1.99.0/24"), NextHop::Interface { index: 0, gateway: Some(USER) });
            tables.set_node(id, Some(node));
        });
        way_in(&mut lab, &udp_packet(Ipv4Addr::new(10, 1, 99, 9), APP1, (1, 7), b"hello", 64));
        assert_eq!(lab.receive(APP1).len(), 1);
        lab.check();
    }
}

/// RFC 2827, 3: a pod that sends to a node's tunnel has its own node's address there, which masquerades it, but not its tunnel's
/// port. So it can send as nobody, and not into a flow that is known either.
#[test]
fn a_pod_that_is_masqueraded_is_no_tunnel() {
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        known(&mut lab);
        lab.set_backends(vec![flatnet_proxy::Backend::new(APP1, 80, 1)]);
        let before = lab.drops(DropReason::TunnelForeignSource);
        let sources = [APP1, APP2, Ipv4Addr::new(10, 1, 15, 1), Ipv4Addr::new(10, 1, 15, 0)];
        for source in sources {
            let inner = udp_packet(source, BACKEND, (9, 9), b"", 64);
            let frame = lab.udp(APP2, NODE2, (4000, 8285), &inner);
            lab.send(APP2, &frame);
            assert_eq!(lab.settle(BACKEND), Vec::<Vec<u8>>::new(), "{source}");
        }
        assert_eq!(lab.drops(DropReason::TunnelForeignSource) - before, sources.len() as u64);
        // What the tunnel carries goes on.
        let honest = lab.udp(APP2, BACKEND, (9, 9), b"");
        lab.send(APP2, &honest);
        assert_eq!(lab.receive(BACKEND).len(), 1);
        lab.check();
    }
}

/// RFC 1812, 5.2.4.3: the longest prefix wins, whichever came first, and what was covered shows again.
#[test]
fn overlapping_leases_go_by_their_length() {
    let wide = prefix("10.1.16.0/20");
    let narrow = prefix("10.1.20.0/24");
    let lease = |public_ip| Some(Lease { public_ip, vtep: None });
    for order in [[(wide, NODE1), (narrow, NODE2)], [(narrow, NODE2), (wide, NODE1)]] {
        let mut lab = Lab::new(1);
        known(&mut lab);
        lab.control.tables.publish(|tables| tables.set_lease(narrow, None));
        for (subnet, holder) in order {
            lab.control.tables.publish(|tables| tables.set_lease(subnet, lease(holder)));
        }
        let frame = lab.udp(APP2, BACKEND, (5000, 7), b"");
        lab.send(APP2, &frame);
        assert_eq!(lab.receive(BACKEND).len(), 1, "the narrow one leads there");
        lab.control.tables.publish(|tables| tables.set_lease(narrow, None));
        lab.send(APP2, &frame);
        assert_eq!(lab.receive(BACKEND).len(), 0);
        assert_eq!(
            error(&lab.receive(APP2)[0]),
            (IcmpType::DestinationUnreachable, 0, BACKEND),
            "the wide one leads to the node itself"
        );
        lab.control.tables.publish(|tables| tables.set_lease(narrow, lease(NODE2)));
        lab.send(APP2, &frame);
        assert_eq!(lab.receive(BACKEND).len(), 1, "and back");
        lab.check();
    }
}

/// RFC 792; RFC 1812, 5.2.7.1: no route is net unreachable, a next hop that stays silent host unreachable.
#[test]
fn who_sends_to_a_node_that_is_gone_is_told() {
    let mut lab = Lab::new(2);
    let gone = Ipv4Addr::new(192, 168, 66, 13);
    let subnet = prefix("10.1.30.0/24");
    let there = Ipv4Addr::new(10, 1, 30, 2);
    let frame = lab.udp(APP2, there, (5000, 7), b"");
    lab.send(APP2, &frame);
    assert_eq!(error(&lab.receive(APP2)[0]), (IcmpType::DestinationUnreachable, 0, there), "no lease");
    lab.control
        .tables
        .publish(|tables| tables.set_lease(subnet, Some(Lease { public_ip: gone, vtep: None })));
    lab.send(APP2, &frame);
    lab.pass(Duration::from_secs(4));
    assert_eq!(
        error(&lab.receive(APP2)[0]),
        (IcmpType::DestinationUnreachable, 1, there),
        "its holder is silent"
    );
    lab.control.tables.publish(|tables| tables.set_lease(subnet, None));
    lab.send(APP2, &frame);
    assert_eq!(error(&lab.receive(APP2)[0]), (IcmpType::DestinationUnreachable, 0, there), "withdrawn");
    lab.check();
}

/// RFC 1812, 5.3.1: two routers that send each other a packet do so until its TTL ends, and its sender hears of it.
#[test]
fn a_loop_ends_by_ttl_with_an_answer_to_the_pod() {
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        known(&mut lab);
        let nowhere = Ipv4Addr::new(198, 51, 100, 9);
        let isp = lab.isp;
        lab.control.tables.publish(|tables| {
            let mut router = (**tables.node(isp).unwrap()).clone();
            router.routes.insert(prefix("0.0.0.0/0"), NextHop::Interface { index: 0, gateway: Some(NODE2) });
            tables.set_node(isp, Some(router));
        });
        let frame = lab.udp(APP2, nowhere, (5000, 7), b"round and round");
        lab.send(APP2, &frame);
        assert_eq!(lab.drops(DropReason::TtlExpired), 1);
        let told = lab.receive(APP2);
        assert_eq!(error(&told[0]), (IcmpType::TimeExceeded, 0, nowhere));
        let quoted = packet(&told[0]).3;
        let inner = Ipv4Packet::new_quoted(&quoted[8..]).unwrap();
        assert_eq!((inner.source(), inner.protocol()), (APP2, IpProtocol::Udp), "translated back");
        lab.check();
    }
}

/// What is longer than docker0 takes is cut or refused there, though the tunnel carried it.
/// RFC 791, 3.2; RFC 1191, 4.
#[test]
fn an_oversized_inner_packet_does_not_reach_a_pod_whole() {
    let mut lab = Lab::new(1);
    known(&mut lab);
    for may_cut in [false, true] {
        let mut inner = udp_packet(BACKEND, APP1, (1, 7), &[7; 1500], 64);
        let mut header = Ipv4Packet::new_unchecked(&mut inner[..]);
        header.set_fragmentation(!may_cut, false, 0);
        header.fill_header_checksum();
        let datagram = udp_packet(NODE2, NODE1, (8285, 8285), &inner, 64);
        lab.send(USER, &ethernet(mac(NODE1), mac(USER), &datagram));
        let arrived = lab.receive(APP1);
        assert_eq!(arrived.len(), if may_cut { 2 } else { 0 });
        assert!(arrived.iter().all(|frame| frame.len() <= 14 + 1472));
        let told = lab.receive(BACKEND);
        assert_eq!(told.len(), usize::from(!may_cut), "fragmentation needed, back through the tunnel");
    }
    lab.check();
}
