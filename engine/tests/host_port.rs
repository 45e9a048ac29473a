//! The host's own system behind a node: what it reaches, from which addresses, and what reaches it.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::control::host::host_port_mac;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::link::{Link, rings};
use flatnet_engine::masquerade::PortRange;
use flatnet_engine::trace::Point;
use flatnet_engine::wire::{IcmpPacket, IcmpType, IpProtocol, Ipv4Packet, TcpFlags, icmpv4};
use std::net::Ipv4Addr;

/// docker0 and flannel0 of node-1.
const DOCKER0: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 1);
const FLANNEL0: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 0);
/// Ports that the host's programs are not given.
const PORTS: PortRange = PortRange { first: 61_000, last: 65_535 };

/// The lab with a host behind node-1: the machine of docker0's address.
fn lab(workers: u8, watched: bool) -> Lab {
    let mut lab = Lab::new(workers);
    let (link, peer) = rings(1024);
    lab.control.set_masquerade_ports(lab.node1, PORTS).unwrap();
    let port = lab.control.add_host_port(lab.node1, "flatnet0", workers - 1, Link::Rings(link)).unwrap();
    lab.machines.insert(DOCKER0, Machine { peer, port, address: DOCKER0, gateway: host_port_mac(DOCKER0) });
    lab.run();
    if watched {
        lab.decide_always();
    }
    lab
}

/// Every number of workers, by replay and step by step.
fn each(test: impl Fn(Lab)) {
    for (workers, watched) in [(1, false), (2, false), (1, true), (2, true)] {
        test(lab(workers, watched));
    }
}

/// A frame of the host's, as its system writes it on an interface without ARP.
fn of_host(packet: &[u8]) -> Vec<u8> {
    ethernet(host_port_mac(DOCKER0), host_port_mac(DOCKER0), packet)
}

fn from_host(lab: &mut Lab, packet: &[u8]) {
    lab.send(DOCKER0, &of_host(packet));
}

/// The only packet at a machine: addresses, TTL and payload.
fn only(lab: &mut Lab, at: Ipv4Addr) -> (Ipv4Addr, Ipv4Addr, u8, Vec<u8>) {
    let frames = if at == DOCKER0 { lab.take(at) } else { lab.receive(at) };
    assert_eq!(frames.len(), 1, "at {at}");
    packet(&frames[0])
}

#[test]
fn the_host_reaches_pods_here_and_elsewhere_as_one_of_flannels_does() {
    each(|mut lab| {
        for (own, pod, hops) in [(DOCKER0, APP1, 0), (FLANNEL0, APP3, 1)] {
            // The second packet of a flow goes the short way.
            for _ in 0..2 {
                from_host(&mut lab, &udp_packet(own, pod, (40_000, 80), b"asks", 64));
                lab.settle(pod).iter().for_each(|frame| {
                    let (source, destination, ttl, payload) = packet(frame);
                    assert_eq!(
                        (source, destination, ttl),
                        (own, pod, 64 - hops),
                        "host and node are one hop"
                    );
                    assert_eq!((ports(&payload), &payload[8..]), ((40_000, 80), &b"asks"[..]));
                });
                let answer = lab.udp(pod, own, (80, 40_000), b"says");
                // Its own gateway, though it be on the same network by its looks.
                let answer = ethernet(lab.machines[&pod].gateway, mac(pod), &answer[14..]);
                lab.send(pod, &answer);
                let (source, destination, ttl, payload) = only(&mut lab, DOCKER0);
                assert_eq!((source, destination, ttl), (pod, own, 64 - hops));
                assert_eq!(&payload[8..], b"says");
            }
        }
        lab.check();
    });
}

#[test]
fn what_the_host_sends_from_eth0_through_the_tunnel_comes_from_flannel0() {
    each(|mut lab| {
        for _ in 0..2 {
            from_host(&mut lab, &udp_packet(NODE1, APP3, (40_000, 80), b"asks", 64));
            let frames = lab.settle(APP3);
            let (source, _, _, payload) = packet(&frames[0]);
            let (port, _) = ports(&payload);
            assert!(source == FLANNEL0 && PORTS.contains(port), "{source}:{port}");
            let answer = lab.udp(APP3, FLANNEL0, (80, port), b"says");
            lab.send(APP3, &answer);
            let (source, destination, _, payload) = only(&mut lab, DOCKER0);
            assert_eq!((source, destination, ports(&payload)), (APP3, NODE1, (80, 40_000)));
        }
        // A pod here needs no translation: its answer finds the way.
        from_host(&mut lab, &udp_packet(NODE1, APP1, (40_000, 80), b"asks", 64));
        assert_eq!(only(&mut lab, APP1).0, NODE1);
        lab.check();
    });
}

#[test]
fn the_host_reaches_services_by_ports_that_none_of_its_programs_has() {
    each(|mut lab| {
        for (index, backend) in [APP1, APP3].into_iter().enumerate() {
            lab.set_backends(vec![on("any", backend, 0)]);
            let port = 40_000 + index as u16;
            from_host(&mut lab, &tcp_packet(DOCKER0, VIP, (port, 80), TcpFlags::SYN));
            let frames = lab.settle(backend);
            let (source, _, _, payload) = packet(&frames[0]);
            let (through, _) = ports(&payload);
            let own = if backend == APP1 { DOCKER0 } else { FLANNEL0 };
            assert!(source == own && PORTS.contains(through), "{source}:{through}");
            let flags = TcpFlags::SYN.with(TcpFlags::ACK);
            let answer = tcp_packet(backend, own, (80, through), flags);
            let answer = ethernet(lab.machines[&backend].gateway, mac(backend), &answer);
            lab.send(backend, &answer);
            let (source, destination, _, payload) = only(&mut lab, DOCKER0);
            assert_eq!((source, destination, ports(&payload)), (VIP, DOCKER0, (80, port)));
        }
        lab.check();
    });
}

/// A Service of machines outside: the answer comes by eth0, and is the host's all the same.
#[test]
fn the_host_reaches_a_service_of_machines_outside() {
    each(|mut lab| {
        lab.set_backends(vec![on("any", INTERNET, 0)]);
        for _ in 0..2 {
            from_host(&mut lab, &udp_packet(DOCKER0, VIP, (40_000, 80), b"asks", 64));
            let frames = lab.settle(INTERNET);
            let (source, _, _, payload) = packet(&frames[0]);
            let (through, _) = ports(&payload);
            assert!(source == NODE1 && PORTS.contains(through), "{source}:{through}");
            let answer = lab.udp(INTERNET, NODE1, (80, through), b"says");
            lab.send(INTERNET, &answer);
            lab.settle(USER);
            let (source, destination, _, payload) = only(&mut lab, DOCKER0);
            assert_eq!((source, destination, ports(&payload)), (VIP, DOCKER0, (80, 40_000)));
        }
        lab.check();
    });
}

#[test]
fn pods_reach_the_hosts_programs_by_all_of_the_nodes_addresses() {
    each(|mut lab| {
        for own in [DOCKER0, FLANNEL0, NODE1] {
            for _ in 0..2 {
                let asks = udp_packet(APP1, own, (40_000, 80), b"asks", 64);
                let asks = ethernet(mac(DOCKER0), mac(APP1), &asks);
                lab.send(APP1, &asks);
                let (source, destination, ttl, _) = only(&mut lab, DOCKER0);
                assert_eq!((source, destination, ttl), (APP1, own, 64));
                from_host(&mut lab, &udp_packet(own, APP1, (80, 40_000), b"says", 64));
                let (source, destination, ttl, _) = only(&mut lab, APP1);
                assert_eq!((source, destination, ttl), (own, APP1, 64));
            }
        }
        // From another node's pod through the tunnel.
        let asks = lab.udp(APP3, DOCKER0, (40_000, 80), b"asks");
        lab.send(APP3, &asks);
        lab.settle(APP1);
        assert_eq!(only(&mut lab, DOCKER0).0, APP3);
        from_host(&mut lab, &udp_packet(DOCKER0, APP3, (80, 40_000), b"says", 64));
        let frames = lab.settle(APP3);
        assert_eq!(packet(&frames[0]).0, DOCKER0);
        lab.check();
    });
}

/// What comes in by eth0 the host's own system has from there already.
#[test]
fn what_comes_from_outside_is_not_given_to_the_host() {
    each(|mut lab| {
        let asks = lab.udp(USER, NODE1, (40_000, 80), b"asks");
        lab.send(USER, &asks);
        let told = lab.settle(USER);
        let (source, _, _, payload) = packet(&told[0]);
        assert_eq!((source, payload[0]), (NODE1, 3), "the node itself answers");
        assert_eq!(lab.take(DOCKER0), Vec::<Vec<u8>>::new());
        assert_eq!(lab.drops(DropReason::HostClosed), 1);
        lab.check();
    });
}

#[test]
fn the_host_sends_from_the_nodes_addresses_only() {
    each(|mut lab| {
        for other in [APP2, APP3, USER, Ipv4Addr::new(10, 1, 15, 77)] {
            from_host(&mut lab, &udp_packet(other, APP1, (40_000, 80), b"asks", 64));
        }
        assert_eq!(lab.drops(DropReason::SpoofedAddress), 4);
        assert_eq!(lab.receive(APP1), Vec::<Vec<u8>>::new());
        lab.check();
    });
}

/// From an address of its own the host's system would believe nothing (RFC 1812, 5.3.7).
#[test]
fn the_host_is_told_of_a_path_that_takes_less_by_whom_it_asked() {
    each(|mut lab| {
        from_host(&mut lab, &udp_packet(FLANNEL0, APP3, (40_000, 80), &[0; 1460], 64));
        let (source, destination, _, payload) = only(&mut lab, DOCKER0);
        let error = IcmpPacket::new_checked(&payload[..]).unwrap();
        assert_eq!((source, destination), (APP3, FLANNEL0));
        assert_eq!((error.icmp_type(), error.next_hop_mtu()), (IcmpType::DestinationUnreachable, 1472));
        assert_eq!(lab.drops(DropReason::FragmentationNeeded), 1);
        lab.check();
    });
}

#[test]
fn errors_about_what_the_host_sent_reach_it() {
    each(|mut lab| {
        lab.set_backends(vec![on("any", APP1, 0)]);
        for (asked, own) in [(APP1, DOCKER0), (VIP, DOCKER0)] {
            from_host(&mut lab, &udp_packet(own, asked, (40_000, 80), b"asks", 64));
            let arrived = lab.receive(APP1);
            let quoted = &arrived[0][14..];
            let mut error = vec![0; icmpv4::HEADER_LENGTH];
            error.extend(quoted);
            let mut icmp = IcmpPacket::new_unchecked(&mut error[..]);
            icmp.set_type(IcmpType::DestinationUnreachable, 3);
            icmp.fill_checksum();
            let error = ipv4_packet(APP1, own, IpProtocol::Icmp, 64, &error);
            lab.send(APP1, &ethernet(mac(DOCKER0), mac(APP1), &error));
            let (source, destination, _, payload) = only(&mut lab, DOCKER0);
            assert_eq!((source, destination), (asked, own));
            let quoted = Ipv4Packet::new_quoted(&payload[icmpv4::HEADER_LENGTH..]).unwrap();
            assert_eq!((quoted.source(), quoted.destination()), (own, asked));
            assert_eq!(ports(quoted.payload()), (40_000, 80));
        }
        lab.check();
    });
}

#[test]
fn what_passes_between_host_and_node_is_seen_at_the_interface() {
    let mut lab = lab(1, false);
    lab.workers[0].listen(u32::MAX, lab.node1, Point::Interface(1));
    let asks = of_host(&udp_packet(DOCKER0, APP1, (40_000, 80), b"asks", 64));
    lab.send_marked(DOCKER0, &asks, 7);
    let hops: Vec<_> =
        lab.hops(7).into_iter().map(|(_, point, action)| format!("{point} {action}")).collect();
    assert_eq!(hops.first().map(String::as_str), Some("flatnet0 receive"), "{hops:?}");
    lab.receive(APP1);
    lab.check();
}
