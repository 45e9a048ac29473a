//! The ways of a packet through two nodes, each hop as the engine recorded it.

mod common;

use common::*;
use flatnet_engine::ledger::{DropReason, Term};
use flatnet_engine::tables::Lease;
use flatnet_engine::wire::{ArpOperation, IcmpPacket, IcmpType, IpProtocol, Ipv4Packet, TcpFlags};
use std::net::Ipv4Addr;

fn hops(lab: &mut Lab, mark: u32) -> Vec<String> {
    lab.hops(mark).into_iter().map(|(node, point, action)| format!("{node}:{point} {action}")).collect()
}

/// IEEE 802.1D, 7.7.
#[test]
fn pods_of_one_node_meet_on_docker0() {
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        let frame = lab.udp(APP1, APP2, (1000, 7), b"hello");
        lab.send_marked(APP1, &frame, 1);
        assert_eq!(lab.receive(APP2), [frame], "bridged untouched");
        assert_eq!(hops(&mut lab, 1), ["node-1:docker0 bridge"]);
        lab.check();
    }
}

#[test]
fn pods_of_two_nodes_meet_through_the_tunnel() {
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        let frame = lab.udp(APP2, BACKEND, (1000, 7), b"hello");
        for mark in 1..4 {
            lab.send_marked(APP2, &frame, mark);
            let arrived = lab.receive(BACKEND);
            assert_eq!(arrived.len(), 1);
            let (source, destination, ttl, payload) = packet(&arrived[0]);
            assert_eq!((source, destination, ttl, &payload[8..]), (APP2, BACKEND, 62, &b"hello"[..]));
        }
        let expected = [
            "node-1:docker0 receive",
            "node-1:flannel0 encapsulate",
            "node-1:eth0 transmit",
            "192.168.66.0/24:switch bridge",
            "node-2:eth0 receive",
            "node-2:flannel0 decapsulate",
            "node-2:docker0 bridge",
        ];
        assert_eq!(hops(&mut lab, 3), expected);
        // Unmarked frames go by the cache and arrive the same.
        for _ in 0..3 {
            lab.send(APP2, &frame);
            let (source, _, ttl, payload) = packet(&lab.receive(BACKEND)[0]);
            assert_eq!((source, ttl, &payload[8..]), (APP2, 62, &b"hello"[..]));
        }
        lab.check();
    }
}

/// LVS's `ip_vs_rr`, and its NAT forwarding.
#[test]
fn a_service_is_balanced_round_robin_and_answers_come_from_it() {
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        let mut counts = [0; 3];
        for port in 0..9 {
            let syn = lab.tcp(BACKEND, VIP, (2000 + port, 80), TcpFlags::SYN);
            lab.send(BACKEND, &syn);
            for (count, backend) in counts.iter_mut().zip([APP1, APP2, APP3]) {
                for frame in lab.receive(backend) {
                    *count += 1;
                    let (source, destination, _, payload) = packet(&frame);
                    assert_eq!((source, destination, ports(&payload)), (BACKEND, backend, (2000 + port, 80)));
                    let reply =
                        lab.tcp(backend, BACKEND, (80, 2000 + port), TcpFlags::SYN.with(TcpFlags::ACK));
                    lab.send(backend, &reply);
                    let answers = lab.receive(BACKEND);
                    let (source, destination, _, payload) = packet(&answers[0]);
                    assert_eq!((source, destination, ports(&payload)), (VIP, BACKEND, (80, 2000 + port)));
                    // Data both ways goes by the cache.
                    for _ in 0..2 {
                        let data = lab.tcp(BACKEND, VIP, (2000 + port, 80), TcpFlags::ACK);
                        lab.send(BACKEND, &data);
                        assert_eq!(packet(&lab.receive(backend)[0]).1, backend);
                        let data = lab.tcp(backend, BACKEND, (80, 2000 + port), TcpFlags::ACK);
                        lab.send(backend, &data);
                        assert_eq!(packet(&lab.receive(BACKEND)[0]).0, VIP);
                    }
                }
            }
        }
        assert_eq!(counts, [3, 3, 3]);
        lab.check();
    }
}

/// RFC 3022, 2.2.
#[test]
fn what_leaves_for_the_internet_is_masqueraded_and_comes_back() {
    for workers in [1, 2] {
        for from in [APP1, APP2] {
            let mut lab = Lab::new(workers);
            for _ in 0..3 {
                let frame = lab.udp(from, INTERNET, (1000, 53), b"ask");
                lab.send(from, &frame);
                let arrived = lab.settle(INTERNET);
                assert_eq!(arrived.len(), 1);
                let (source, destination, ttl, payload) = packet(&arrived[0]);
                assert_eq!((source, destination, ttl), (NODE1, INTERNET, 62));
                let outside_port = ports(&payload).0;
                let reply = lab.udp(INTERNET, NODE1, (53, outside_port), b"answer");
                lab.send(INTERNET, &reply);
                let answers = lab.receive(from);
                let (source, destination, _, payload) = packet(&answers[0]);
                assert_eq!((source, destination, ports(&payload)), (INTERNET, from, (53, 1000)));
            }
            let ping = lab.echo(from, INTERNET, 64);
            lab.send(from, &ping);
            let (source, _, _, payload) = packet(&lab.settle(INTERNET)[0]);
            assert_eq!(source, NODE1);
            let identifier = IcmpPacket::new_unchecked(&payload[..]).identifier();
            let reply = echo_packet(INTERNET, NODE1, IcmpType::EchoReply, identifier, 64);
            let gateway = lab.machines[&INTERNET].gateway;
            lab.send(INTERNET, &ethernet(gateway, mac(INTERNET), &reply));
            let (source, destination, _, payload) = packet(&lab.receive(from)[0]);
            let identifier = IcmpPacket::new_unchecked(&payload[..]).identifier();
            assert_eq!((source, destination, identifier), (INTERNET, from, 77));
            lab.check();
        }
    }
}

/// Kubernetes, Service: type NodePort.
#[test]
fn a_node_port_leads_in_from_outside_on_any_node() {
    for workers in [1, 2] {
        for node in [NODE1, NODE2] {
            let mut lab = Lab::new(workers);
            let mut reached = 0;
            for port in 0..6 {
                let syn = lab.tcp(USER, node, (4000 + port, 30_080), TcpFlags::SYN);
                lab.send(USER, &syn);
                assert_eq!(lab.settle(USER), Vec::<Vec<u8>>::new());
                for backend in [APP1, APP2, APP3] {
                    for frame in lab.receive(backend) {
                        reached += 1;
                        let (source, _, _, payload) = packet(&frame);
                        let client = ports(&payload).0;
                        let reply = lab.tcp(backend, source, (80, client), TcpFlags::SYN.with(TcpFlags::ACK));
                        lab.send(backend, &reply);
                    }
                }
                let answers = lab.settle(USER);
                let (source, destination, _, payload) = packet(&answers[0]);
                assert_eq!((source, destination, ports(&payload)), (node, USER, (30_080, 4000 + port)));
            }
            assert_eq!(reached, 6);
            lab.check();
        }
    }
}

/// RFC 1812, 5.3.1; RFC 792.
#[test]
fn traceroute_shows_docker0_flannel0_and_the_pod() {
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        for (ttl, hop) in [(1, Ipv4Addr::new(10, 1, 15, 1)), (2, Ipv4Addr::new(10, 1, 20, 0))] {
            let probe = lab.udp(APP2, BACKEND, (5000, 33_434), b"");
            let mut probe = probe;
            probe[14..].copy_from_slice(&udp_packet(APP2, BACKEND, (5000, 33_434), b"", ttl));
            lab.send(APP2, &probe);
            let answers = lab.receive(APP2);
            let (source, destination, _, payload) = packet(&answers[0]);
            assert_eq!((source, destination), (hop, APP2));
            let icmp = IcmpPacket::new_unchecked(&payload[..]);
            assert_eq!((icmp.icmp_type(), icmp.code()), (IcmpType::TimeExceeded, 0));
        }
        assert_eq!(lab.drops(DropReason::TtlExpired), 2);
        lab.check();
    }
}

/// RFC 1122, 3.2.2.6.
#[test]
fn the_nodes_own_addresses_answer_echo() {
    let mut lab = Lab::new(2);
    for address in [Ipv4Addr::new(10, 1, 15, 1), Ipv4Addr::new(10, 1, 15, 0), NODE1] {
        let mut ping = lab.echo(APP2, address, 64);
        ping[..6].copy_from_slice(&lab.machines[&APP2].gateway.octets());
        lab.send(APP2, &ping);
        let (source, _, _, payload) = packet(&lab.receive(APP2)[0]);
        let icmp = IcmpPacket::new_unchecked(&payload[..]);
        assert_eq!((source, icmp.icmp_type(), icmp.identifier()), (address, IcmpType::EchoReply, 77));
    }
    lab.check();
}

/// RFC 5508, 4.1; RFC 4787, REQ-10.
#[test]
fn an_error_from_outside_finds_the_pod_behind_the_masquerade() {
    for workers in [1, 2] {
        for from in [APP1, APP2] {
            let mut lab = Lab::new(workers);
            let probe = udp_packet(from, INTERNET, (5000, 33_434), b"", 2);
            let frame = ethernet(lab.machines[&from].gateway, mac(from), &probe);
            lab.send(from, &frame);
            lab.settle(USER);
            let (source, _, _, payload) = packet(&lab.receive(from)[0]);
            assert_eq!(source, Ipv4Addr::new(192, 168, 66, 1));
            let quoted = &payload[8..];
            assert_eq!((&quoted[12..16], ports(&quoted[20..])), (&from.octets()[..], (5000, 33_434)));
            lab.check();
        }
    }
}

/// RFC 1122, 4.1.3.1; RFC 9293, 3.5.2.
#[test]
fn a_service_without_backends_refuses_at_once() {
    let mut lab = Lab::new(1);
    lab.set_backends(Vec::new());
    let syn = lab.tcp(APP2, VIP, (1000, 80), TcpFlags::SYN);
    lab.send(APP2, &syn);
    let (source, _, _, payload) = packet(&lab.receive(APP2)[0]);
    assert_eq!((source, payload[13] & 0x14), (VIP, 0x14), "RST, ACK");
    let datagram = lab.udp(APP2, VIP, (1000, 80), b"x");
    lab.send(APP2, &datagram);
    let (source, _, _, payload) = packet(&lab.receive(APP2)[0]);
    assert_eq!((source, payload[0], payload[1]), (VIP, 3, 3), "port unreachable");
    assert_eq!(lab.drops(DropReason::NoBackend), 2);
    lab.check();
}

#[test]
fn frames_that_wait_at_the_end_are_found_where_they_wait() {
    let mut lab = Lab::new(2);
    let nobody = Ipv4Addr::new(192, 168, 66, 99);
    let frame = lab.udp(APP2, nobody, (1000, 7), b"hello");
    lab.send(APP2, &frame);
    assert!(lab.receive(USER).is_empty(), "nobody answers");
    let ledger = lab.ledger(lab.node1);
    assert!(ledger.balances());
    assert_eq!((ledger.held, lab.finish().held), (1, 1), "it waits for the neighbour's MAC");
}

/// RFC 1122, 3.2.2.6.
#[test]
fn an_echo_request_with_options_is_answered_without_them() {
    let mut lab = Lab::new(1);
    let mut ping = echo_packet(APP2, NODE1, IcmpType::EchoRequest, 77, 64);
    ping.splice(20..20, [1, 1, 1, 0]);
    ping[0] = 0x46;
    let length = ping.len() as u16;
    let mut header = Ipv4Packet::new_unchecked(&mut ping[..]);
    header.set_total_length(length);
    header.fill_header_checksum();
    lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), &ping));
    let (source, _, _, payload) = packet(&lab.receive(APP2)[0]);
    let icmp = IcmpPacket::new_unchecked(&payload[..]);
    assert_eq!((source, icmp.icmp_type(), payload.len()), (NODE1, IcmpType::EchoReply, 16));
    lab.check();
}

/// RFC 1122, 3.2.2.
#[test]
fn nobody_is_told_that_a_directed_broadcast_was_not_taken() {
    let mut lab = Lab::new(1);
    let broadcast = udp_packet(APP2, Ipv4Addr::new(10, 1, 20, 255), (1000, 7), b"", 64);
    lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), &broadcast));
    assert_eq!(lab.receive(APP2), Vec::<Vec<u8>>::new());
    assert_eq!(lab.drops(DropReason::HostUnsupported), 1);
    lab.check();
}

#[test]
fn a_lease_that_moved_ends_what_the_cache_took_from_its_old_holder() {
    let mut lab = Lab::new(1);
    let frame = lab.udp(APP2, BACKEND, (1000, 7), b"hello");
    for _ in 0..3 {
        lab.send(APP2, &frame);
        assert_eq!(lab.receive(BACKEND).len(), 1);
    }
    let lease = Some(Lease { public_ip: USER, vtep: None });
    lab.control.tables.publish(|tables| tables.set_lease(prefix("10.1.15.0/24"), lease));
    lab.send(APP2, &frame);
    assert_eq!(lab.receive(BACKEND), Vec::<Vec<u8>>::new());
    assert_eq!(lab.drops(DropReason::TunnelForeignSource), 1);
    lab.check();
}

#[test]
fn a_station_whose_port_went_is_flooded_for_again() {
    let mut lab = Lab::new(1);
    let announcement = arp(ArpOperation::Request, (mac(USER), USER), (mac(USER), USER));
    lab.send(USER, &announcement);
    let frame = ethernet(mac(USER), mac(NODE1), &udp_packet(NODE1, USER, (1, 2), b"", 64));
    let (switch, other) = (lab.switch, Ipv4Addr::new(192, 168, 66, 51));
    lab.stranger(switch, other, USER, 0);
    for _ in 0..2 {
        lab.send(other, &frame);
        assert_eq!(lab.take(USER).len(), 1, "known");
    }
    let user = lab.machines[&USER].port;
    lab.control.detach(user).unwrap();
    lab.send(other, &frame);
    let ledger = lab.ledger(lab.switch);
    assert_eq!((ledger.drops(DropReason::LinkDown), ledger.term(Term::Copied) > 0), (0, true));
    lab.check();
}

/// RFC 5508, 4.2; RFC 1624, 3.
#[test]
fn a_translated_error_leaves_padding_out_of_its_checksum_and_a_wrong_one_wrong() {
    for wrong in [0, 1] {
        let mut lab = Lab::new(1);
        let frame = lab.udp(APP2, INTERNET, (1000, 53), b"ask");
        lab.send(APP2, &frame);
        let asked = lab.settle(INTERNET).remove(0);
        let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
        message.extend(&asked[14..]);
        IcmpPacket::new_unchecked(&mut message[..]).fill_checksum();
        message[3] ^= wrong;
        let error = ipv4_packet(INTERNET, NODE1, IpProtocol::Icmp, 64, &message);
        let mut frame = ethernet(lab.machines[&INTERNET].gateway, mac(INTERNET), &error);
        frame.extend([0xa5; 9]);
        lab.send(INTERNET, &frame);
        let got = lab.receive(APP2).remove(0);
        let packet = Ipv4Packet::new_checked(&got[14..]).unwrap();
        let icmp = IcmpPacket::new_checked(packet.payload()).unwrap();
        assert_eq!(icmp.verify_checksum(), wrong == 0);
        assert_eq!(&packet.payload()[8 + 12..8 + 16], &APP2.octets());
        lab.check();
    }
}
