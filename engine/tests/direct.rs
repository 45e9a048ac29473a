//! Backends that answer by themselves: LVS's direct routing (`ip_vs_dr_xmit`) and tunnel (`ip_vs_tunnel_xmit`).

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::binding::TcpState;
use flatnet_engine::clock::Instant;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::trace::Point;
use flatnet_engine::wire::{EthernetFrame, IcmpPacket, IcmpType, IpProtocol, Ipv4Packet, TcpFlags};
use flatnet_proxy::Forwarding;
use std::net::Ipv4Addr;

const NEAR: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 5);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 1, 20, 5);

/// A network in which one pod, on node-1 or on node-2, serves the VIP that it has on its `lo`.
fn labs(forwarding: Forwarding, server: Ipv4Addr) -> impl Iterator<Item = Lab> {
    (1..=3).map(move |workers| {
        let mut lab = Lab::new(workers);
        let [a, b, c, _] = server.octets();
        let node = if server == NEAR { lab.node1 } else { lab.node2 };
        lab.server(node, server, Ipv4Addr::new(a, b, c, 1), workers - 1);
        lab.serve(|service| {
            service.forwarding = forwarding;
            service.backends = [on("", server, 9)].into();
        });
        lab
    })
}

/// A network whose router answers for the VIP and leads to a machine on the node network.
fn directed(workers: u8, forwarding: Forwarding) -> Lab {
    let mut lab = Lab::new(workers);
    lab.control.serve_on(lab.isp).unwrap();
    lab.serve(|service| {
        service.forwarding = forwarding;
        service.backends = [on("", USER, 9)].into();
    });
    lab
}

fn from_server(lab: &mut Lab, server: Ipv4Addr, packet: &[u8]) {
    lab.send(server, &ethernet(lab.machines[&server].gateway, mac(server), packet));
}

/// The packet as it was sent, but for the TTL.
fn one_hop_on(sent: &[u8]) -> Vec<u8> {
    let mut packet = sent.to_vec();
    let mut header = Ipv4Packet::new_unchecked(&mut packet[..]);
    header.set_time_to_live(header.time_to_live() - 1);
    header.fill_header_checksum();
    packet
}

fn take_all(lab: &mut Lab, at: Ipv4Addr) -> Vec<Vec<u8>> {
    if [USER, INTERNET].contains(&at) { lab.settle(at) } else { lab.receive(at) }
}

fn receive_one(lab: &mut Lab, at: Ipv4Addr) -> Vec<u8> {
    let mut frames = take_all(lab, at);
    assert_eq!(frames.len(), 1, "at {at}");
    frames.remove(0)
}

#[test]
fn direct_routing_changes_the_mac_only_and_the_answer_comes_from_the_vip() {
    for mut lab in labs(Forwarding::DirectRouting, NEAR) {
        for (client, next) in [(APP2, lab.machines[&APP2].gateway), (USER, mac(NODE1))] {
            for flags in [TcpFlags::SYN, TcpFlags::ACK, TcpFlags::ACK] {
                let question = tcp_packet(client, VIP, (1000, 80), flags);
                lab.send(client, &ethernet(next, mac(client), &question));
                lab.receive(USER);
                let frame = receive_one(&mut lab, NEAR);
                assert_eq!(EthernetFrame::new_unchecked(&frame[..]).destination(), mac(NEAR));
                assert_eq!(frame[14..], one_hop_on(&question), "first, decided and cached");
                let answer = tcp_packet(VIP, client, (80, 1000), flags.with(TcpFlags::ACK));
                from_server(&mut lab, NEAR, &answer);
                assert_eq!(receive_one(&mut lab, client)[14..], one_hop_on(&answer), "never masqueraded");
            }
        }
        assert_eq!(lab.drops(DropReason::SpoofedAddress), 0);
        lab.check();
    }
}

/// LVS, `tcp_states` for `IP_VS_DIR_INPUT_ONLY`: the director sees the client's half alone.
#[test]
fn a_half_seen_connection_is_established_when_the_client_acknowledges() {
    for mut lab in labs(Forwarding::DirectRouting, NEAR) {
        let state = |lab: &Lab| {
            let bindings = lab.workers.iter().flat_map(|worker| worker.bindings().iter(lab.node1));
            let left = |ends: Instant| ends.saturating_duration_since(lab.now).as_secs();
            bindings.map(|binding| (binding.tcp_state(), left(binding.ends()))).next().unwrap()
        };
        // Who acknowledges was answered: five days, not the five minutes of what nothing came back of.
        for (flags, expected) in [
            (TcpFlags::SYN, (TcpState::SynSent, 120)),
            (TcpFlags::ACK, (TcpState::Established, 432_000)),
            (TcpFlags::ACK, (TcpState::Established, 432_000)),
            (TcpFlags::FIN.with(TcpFlags::ACK), (TcpState::FinWait, 120)),
        ] {
            let frame = lab.tcp(APP2, VIP, (1000, 80), flags);
            lab.send(APP2, &frame);
            receive_one(&mut lab, NEAR);
            assert_eq!(state(&lab), expected);
        }
        lab.check();
    }
}

#[test]
fn a_tunnel_wraps_the_packet_and_the_answer_comes_from_the_vip() {
    for server in [NEAR, FAR] {
        for mut lab in labs(Forwarding::Tunnel, server) {
            for flags in [TcpFlags::SYN, TcpFlags::ACK, TcpFlags::ACK] {
                let question = tcp_packet(APP2, VIP, (1000, 80), flags);
                lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), &question));
                let frame = receive_one(&mut lab, server);
                let outer = Ipv4Packet::new_checked(&frame[14..]).unwrap();
                assert!(outer.verify_header_checksum() && outer.dont_fragment());
                assert_eq!((outer.protocol(), outer.destination()), (IpProtocol::Unknown(4), server));
                assert_eq!(outer.payload(), one_hop_on(&question));
                let answer = tcp_packet(VIP, APP2, (80, 1000), flags.with(TcpFlags::ACK));
                from_server(&mut lab, server, &answer);
                let (from, to, ..) = packet(&receive_one(&mut lab, APP2));
                assert_eq!((from, to), (VIP, APP2));
            }
            lab.check();
        }
    }
}

#[test]
fn a_tunnels_header_takes_its_room_from_the_mtu() {
    for mut lab in labs(Forwarding::Tunnel, FAR) {
        for (payload, fits) in [(1472 - 20 - 28, true), (1472 - 20 - 27, false)] {
            let question = udp_packet(APP2, VIP, (1000, 80), &vec![0; payload], 64);
            lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), &question));
            assert_eq!(lab.receive(FAR).len(), usize::from(fits));
        }
        assert_eq!(lab.drops(DropReason::FragmentationNeeded), 1);
        lab.receive(APP2);
        lab.check();
    }
}

#[test]
fn only_a_pod_that_has_the_vip_of_such_a_service_may_send_from_it() {
    for mut lab in labs(Forwarding::DirectRouting, NEAR) {
        let answer = |port| udp_packet(VIP, APP2, (port, 1000), b"", 64);
        from_server(&mut lab, NEAR, &answer(80));
        assert_eq!(lab.receive(APP2).len(), 1);
        from_server(&mut lab, NEAR, &answer(81));
        let other = udp_packet(Ipv4Addr::new(10, 96, 0, 11), APP2, (80, 1000), b"", 64);
        from_server(&mut lab, NEAR, &other);
        from_server(&mut lab, APP1, &answer(80));
        assert_eq!(lab.drops(DropReason::SpoofedAddress), 3);
        lab.serve(|service| service.backends = [on("", NEAR, 9)].into());
        from_server(&mut lab, NEAR, &answer(80));
        assert_eq!(
            lab.drops(DropReason::SpoofedAddress),
            4,
            "a Service that translates has no such backends"
        );
        assert!(lab.receive(APP2).is_empty());
        lab.check();
    }
}

/// A backend's answer from its VIP comes by the tunnel of a node, and from nobody else.
#[test]
fn an_answer_through_the_tunnel_comes_from_a_node() {
    for mut lab in labs(Forwarding::Tunnel, FAR) {
        let answer = udp_packet(VIP, APP2, (80, 1000), b"answer", 63);
        let from_port = |port| udp_packet(VIP, APP2, (port, 1000), b"answer", 63);
        for (outer, inner, passes) in [
            (NODE2, answer.clone(), true),
            (USER, answer.clone(), false),
            (Ipv4Addr::new(192, 168, 66, 13), answer, false),
            (NODE2, from_port(81), false),
        ] {
            let datagram = udp_packet(outer, NODE1, (8285, 8285), &inner, 64);
            lab.send(USER, &ethernet(mac(NODE1), mac(USER), &datagram));
            assert_eq!(lab.receive(APP2).len(), usize::from(passes), "from {outer}");
        }
        assert_eq!(lab.drops(DropReason::TunnelForeignSource), 3);
        lab.check();
    }
}

/// A NodePort is an address of the node, which no backend can have: it is translated whatever the Service says.
#[test]
fn node_ports_are_translated() {
    for mut lab in labs(Forwarding::DirectRouting, NEAR) {
        let question = tcp_packet(USER, NODE1, (1000, 30_080), TcpFlags::SYN);
        lab.send(USER, &ethernet(mac(NODE1), mac(USER), &question));
        let (from, to, _, payload) = packet(&receive_one(&mut lab, NEAR));
        assert_eq!((to, ports(&payload).1), (NEAR, 80));
        assert_ne!(from, USER);
        lab.check();
    }
}

/// A director outside the cluster: a router with Services, whose real servers are hosts of its segment.
#[test]
fn a_director_outside_the_cluster_serves_by_all_three_ways() {
    let director = Ipv4Addr::new(192, 168, 66, 1);
    for forwarding in [Forwarding::Nat, Forwarding::DirectRouting, Forwarding::Tunnel] {
        let mut lab = directed(2, forwarding);
        let question = tcp_packet(INTERNET, VIP, (1000, 80), TcpFlags::SYN);
        lab.send(INTERNET, &ethernet(lab.machines[&INTERNET].gateway, mac(INTERNET), &question));
        let frame = receive_one(&mut lab, USER);
        assert_eq!(EthernetFrame::new_unchecked(&frame[..]).destination(), mac(USER));
        match forwarding {
            Forwarding::Nat => {
                let (from, to, _, payload) = packet(&frame);
                assert_eq!((from, to, ports(&payload).1), (director, USER, 80));
                let answer =
                    tcp_packet(USER, director, (80, ports(&payload).0), TcpFlags::SYN.with(TcpFlags::ACK));
                lab.send(USER, &ethernet(mac(director), mac(USER), &answer));
                let frame = lab.settle(INTERNET).remove(0);
                let (from, _, _, payload) = packet(&frame);
                assert_eq!((from, ports(&payload)), (VIP, (80, 1000)));
            }
            Forwarding::DirectRouting => assert_eq!(frame[14..], one_hop_on(&question)),
            Forwarding::Tunnel => {
                let outer = Ipv4Packet::new_checked(&frame[14..]).unwrap();
                assert_eq!((outer.source(), outer.destination()), (director, USER));
                assert_eq!(outer.payload(), one_hop_on(&question));
            }
        }
        lab.check();
    }
}

/// LVS, `ip_vs_in_icmp`; RFC 2003, 4.1 and 5.1: what a router on the way says of the outer packet is told inside, less its
/// header; the director remembers it, and cuts what may be cut.
#[test]
fn a_director_tells_its_client_what_a_router_said_of_the_wrapped_packet() {
    let director = Ipv4Addr::new(192, 168, 66, 1);
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        let isp = lab.isp;
        lab.control.serve_on(isp).unwrap();
        lab.control.set_route(isp, prefix("10.1.20.0/24"), Some(NODE2)).unwrap();
        lab.server(lab.node2, FAR, Ipv4Addr::new(10, 1, 20, 1), workers - 1);
        lab.serve(|service| {
            service.forwarding = Forwarding::Tunnel;
            service.backends = [on("", FAR, 9)].into();
        });
        let ask = |length: usize, may_cut: bool| {
            let mut packet = udp_packet(INTERNET, VIP, (1000, 80), &vec![7; length - 28], 64);
            let mut header = Ipv4Packet::new_unchecked(&mut packet[..]);
            header.set_fragmentation(!may_cut, false, 0);
            header.fill_header_checksum();
            ethernet(mac(Ipv4Addr::new(203, 0, 113, 1)), mac(INTERNET), &packet)
        };
        // node-2's docker0 takes 1,472 bytes, the director's own link 1,500. Twice: by the router's word, and by memory.
        for _ in 0..2 {
            let question = ask(1453, false);
            lab.send(INTERNET, &question);
            let frames = lab.settle(INTERNET);
            assert_eq!(frames.len(), 1);
            let (from, to, _, error) = packet(&frames[0]);
            assert_eq!((from, to), (Ipv4Addr::new(203, 0, 113, 1), INTERNET));
            let error = IcmpPacket::new_unchecked(&error[..]);
            assert_eq!((error.icmp_type(), error.code()), (IcmpType::DestinationUnreachable, 4));
            assert_eq!(error.next_hop_mtu(), 1452);
            let quoted = Ipv4Packet::new_quoted(error.payload()).unwrap();
            assert_eq!((quoted.source(), quoted.destination()), (INTERNET, VIP));
            assert_eq!(&error.payload()[20..28], &question[34..42], "its ports, length and checksum");
            assert!(lab.receive(FAR).is_empty());
        }
        lab.send(INTERNET, &ask(1452, false));
        assert_eq!(receive_one(&mut lab, FAR).len(), 14 + 1472);
        lab.send(INTERNET, &ask(1453, true));
        let pieces = lab.receive(FAR);
        assert_eq!(pieces.len(), 2, "cut inside");
        for piece in pieces {
            let outer = Ipv4Packet::new_checked(&piece[14..]).unwrap();
            assert_eq!((outer.source(), outer.destination(), outer.is_fragment()), (director, FAR, false));
            assert!(Ipv4Packet::new_checked(outer.payload()).unwrap().is_fragment());
        }
        lab.check();
    }
}

/// LVS, `ip_vs_in_icmp`: other errors about the outer packet are told inside as they are, and only those about a packet that
/// this node did wrap for a backend.
#[test]
fn a_director_relays_errors_about_its_own_tunnel_only() {
    let director = Ipv4Addr::new(192, 168, 66, 1);
    for workers in [1, 2] {
        let mut lab = directed(workers, Forwarding::Tunnel);
        let other = Ipv4Addr::new(192, 168, 66, 51);
        let inner = |port| udp_packet(INTERNET, VIP, (1000, port), b"ask", 63);
        for (outer, port, damaged, is_told) in [
            ((director, USER), 80, false, true),
            ((director, USER), 80, true, false),
            ((director, USER), 81, false, false),
            ((director, other), 80, false, false),
            ((other, USER), 80, false, false),
        ] {
            let wrapped = ipv4_packet(outer.0, outer.1, IpProtocol::Unknown(4), 64, &inner(port));
            let mut error = vec![3, 3, 0, 0, 0, 0, 0, 0];
            error.extend(&wrapped);
            let mut icmp = IcmpPacket::new_unchecked(&mut error[..]);
            icmp.fill_checksum();
            icmp.set_checksum(icmp.checksum() ^ u16::from(damaged));
            let error = ipv4_packet(USER, director, IpProtocol::Icmp, 64, &error);
            lab.send(USER, &ethernet(mac(director), mac(USER), &error));
            let told = lab.settle(INTERNET);
            assert_eq!(told.len(), usize::from(is_told), "{outer:?} {port} {damaged}");
            for frame in told {
                let (_, to, _, error) = packet(&frame);
                assert_eq!((to, &error[..2]), (INTERNET, &[3, 3][..]));
                assert_eq!(error[8..], inner(80));
            }
        }
        lab.check();
    }
}

/// Linux, `ip_dont_fragment`; RFC 2003, 5.1: where the path to a backend takes less than 552 bytes, what is wrapped may be cut there,
/// whatever the packet inside forbids; before that the outer header forbids what the inner one does.
#[test]
fn on_a_path_below_the_smallest_mtu_what_is_wrapped_may_be_cut() {
    let director = Ipv4Addr::new(192, 168, 66, 1);
    for workers in [1, 2] {
        let mut lab = directed(workers, Forwarding::Tunnel);
        let ask = |may_cut: bool| {
            let mut packet = udp_packet(INTERNET, VIP, (1000, 80), &[7; 500], 64);
            let mut header = Ipv4Packet::new_unchecked(&mut packet[..]);
            header.set_fragmentation(!may_cut, false, 0);
            header.fill_header_checksum();
            packet
        };
        let next = mac(Ipv4Addr::new(203, 0, 113, 1));
        lab.send(INTERNET, &ethernet(next, mac(INTERNET), &ask(true)));
        lab.settle(USER);
        for (told, forbids) in [(0, true), (552, true), (551, false), (1400, false)] {
            let wrapped = ipv4_packet(director, USER, IpProtocol::Unknown(4), 64, &ask(false));
            let mut error = vec![3, 4, 0, 0, 0, 0];
            error.extend(u16::to_be_bytes(told));
            error.extend(&wrapped);
            IcmpPacket::new_unchecked(&mut error[..]).fill_checksum();
            let error = ipv4_packet(USER, director, IpProtocol::Icmp, 64, &error);
            lab.send(USER, &ethernet(mac(director), mac(USER), &error));
            lab.settle(INTERNET);
            for (may_cut, forbids) in [(false, forbids), (true, false)] {
                lab.send(INTERNET, &ethernet(next, mac(INTERNET), &ask(may_cut)));
                let frame = receive_one(&mut lab, USER);
                let outer = Ipv4Packet::new_checked(&frame[14..]).unwrap();
                assert!(outer.verify_header_checksum());
                assert_eq!(
                    (outer.protocol(), outer.dont_fragment()),
                    (IpProtocol::Unknown(4), forbids),
                    "{told}"
                );
                assert_eq!(outer.payload(), one_hop_on(&ask(may_cut)), "inside it is as it was");
            }
        }
        lab.check();
    }
}

/// An ICMP error about a packet; 700 where it names what fits.
fn error_about(packet: &[u8], (from, to): (Ipv4Addr, Ipv4Addr), (kind, code): (u8, u8)) -> Vec<u8> {
    let mut error = vec![kind, code, 0, 0, 0, 0];
    error.extend(u16::to_be_bytes(if (kind, code) == (3, 4) { 700 } else { 0 }));
    error.extend(packet);
    IcmpPacket::new_unchecked(&mut error[..]).fill_checksum();
    ipv4_packet(from, to, IpProtocol::Icmp, 64, &error)
}

/// Fragmentation needed, port unreachable, time exceeded, parameter problem.
const ERRORS: [(u8, u8); 4] = [(3, 4), (3, 3), (11, 0), (12, 0)];

/// What an outer packet to a backend holds, or the packet itself by direct routing.
fn forwarded(frame: &[u8], forwarding: Forwarding, backend: Ipv4Addr) -> &[u8] {
    assert_eq!(EthernetFrame::new_unchecked(frame).destination(), mac(backend));
    if forwarding == Forwarding::DirectRouting {
        return &frame[14..];
    }
    let outer = Ipv4Packet::new_checked(&frame[14..]).unwrap();
    assert_eq!((outer.protocol(), outer.destination()), (IpProtocol::Unknown(4), backend));
    &frame[14 + outer.header_length()..]
}

/// LVS, `ip_vs_in_icmp`, `ip_vs_icmp_xmit`: what a client says of a backend's answer goes the way of its other packets.
#[test]
fn a_backend_hears_its_clients_errors() {
    for (forwarding, server) in
        [(Forwarding::DirectRouting, NEAR), (Forwarding::Tunnel, NEAR), (Forwarding::Tunnel, FAR)]
    {
        for mut lab in labs(forwarding, server) {
            let gateway = lab.machines[&APP2].gateway;
            let question = udp_packet(APP2, VIP, (1000, 80), b"ask", 64);
            lab.send(APP2, &ethernet(gateway, mac(APP2), &question));
            receive_one(&mut lab, server);
            let answer = udp_packet(VIP, APP2, (80, 1000), b"answer", 62);
            for kind in ERRORS {
                let error = error_about(&answer, (APP2, VIP), kind);
                lab.send(APP2, &ethernet(gateway, mac(APP2), &error));
                let frame = receive_one(&mut lab, server);
                assert_eq!(forwarded(&frame, forwarding, server), one_hop_on(&error), "{kind:?}");
            }
            // Of a connection that nobody knows nothing is told.
            let stranger = udp_packet(VIP, APP2, (80, 1001), b"answer", 62);
            let error = error_about(&stranger, (APP2, VIP), (3, 4));
            lab.send(APP2, &ethernet(gateway, mac(APP2), &error));
            assert!(lab.receive(server).is_empty());
            lab.settle(INTERNET);
            lab.check();
        }
    }
}

/// A director outside that was asked, whose clients are behind another of its interfaces, and another worker, than its
/// backends.
fn directors(forwarding: Forwarding) -> impl Iterator<Item = Lab> {
    (1..=3).map(move |workers| {
        let mut lab = Lab::new(workers);
        let (isp, outside) = (lab.isp, lab.control.tables.current().ports.get(&lab.wires[3].1).unwrap().node);
        let (near, far) = lab.wires[3];
        lab.control.detach(near).unwrap();
        lab.control.detach(far).unwrap();
        lab.control.connect(isp, 1, outside, workers - 1).unwrap();
        lab.control.serve_on(isp).unwrap();
        lab.control.set_route(isp, prefix("10.1.20.0/24"), Some(NODE2)).unwrap();
        lab.server(lab.node2, FAR, Ipv4Addr::new(10, 1, 20, 1), workers - 1);
        let backend = if forwarding == Forwarding::Tunnel { FAR } else { USER };
        lab.serve(|service| {
            service.forwarding = forwarding;
            service.backends = [on("", backend, 9)].into();
        });
        let question = udp_packet(INTERNET, VIP, (1000, 80), b"ask", 64);
        let gateway = lab.machines[&INTERNET].gateway;
        lab.send(INTERNET, &ethernet(gateway, mac(INTERNET), &question));
        lab
    })
}

/// LVS, `ip_vs_in_icmp`, `ip_vs_icmp_xmit`: what a router says of a backend's answer, which never passed the director.
#[test]
fn a_director_sends_errors_about_a_backends_answer_to_the_backend() {
    let (director, router) = (Ipv4Addr::new(192, 168, 66, 1), Ipv4Addr::new(192, 168, 66, 77));
    for (forwarding, backend) in [(Forwarding::DirectRouting, USER), (Forwarding::Tunnel, FAR)] {
        for mut lab in directors(forwarding) {
            assert_eq!(take_all(&mut lab, backend).len(), 1, "what was asked");
            let answer = udp_packet(VIP, INTERNET, (80, 1000), b"answer", 62);
            for kind in ERRORS {
                let error = error_about(&answer, (router, VIP), kind);
                lab.send(USER, &ethernet(mac(director), mac(USER), &error));
                let frame = receive_one(&mut lab, backend);
                assert_eq!(forwarded(&frame, forwarding, backend), one_hop_on(&error), "{kind:?}");
            }
            assert_eq!(lab.drops(DropReason::NoRoute), 0);
            lab.check();
        }
    }
}

/// A director that is its backends' gateway too makes such errors itself (Linux: `ip_vs_in_icmp` on the way out of the host).
#[test]
fn a_director_on_the_answers_way_tells_the_backend() {
    let director = Ipv4Addr::new(192, 168, 66, 1);
    for (forwarding, backend) in [(Forwarding::DirectRouting, USER), (Forwarding::Tunnel, FAR)] {
        for mut lab in directors(forwarding) {
            // The last hop that its TTL allows is the director.
            let ttl = if backend == USER { 1 } else { 2 };
            let answer = udp_packet(VIP, INTERNET, (80, 1000), b"answer", ttl);
            let gateway = if backend == USER { mac(director) } else { lab.machines[&FAR].gateway };
            lab.send(backend, &ethernet(gateway, mac(backend), &answer));
            // What was asked comes first, where the backend's MAC must be asked for: the error waits as well.
            let frames = take_all(&mut lab, backend);
            assert_eq!(frames.len(), 2);
            let frame = &frames[1];
            let (from, to, ttl, error) = packet(&[&[0; 14], forwarded(frame, forwarding, backend)].concat());
            assert_eq!((from, to, ttl), (director, VIP, 64));
            let error = IcmpPacket::new_checked(&error[..]).unwrap();
            assert!(error.verify_checksum());
            assert_eq!((error.icmp_type(), error.code()), (IcmpType::TimeExceeded, 0));
            assert_eq!(Ipv4Packet::new_quoted(error.payload()).unwrap().source(), VIP);
            lab.check();
        }
    }
}

/// RFC 1191: a node tells its own pod what fits, though other pods answer from the same VIP and the way to it leads elsewhere.
#[test]
fn a_node_tells_its_pod_that_an_answer_is_too_long() {
    for forwarding in [Forwarding::Tunnel, Forwarding::DirectRouting] {
        for client in [APP2, USER, INTERNET] {
            for mut lab in labs(forwarding, FAR) {
                let node2 = lab.node2;
                lab.control.tables.publish(|tables| {
                    let mut node = (**tables.node(node2).unwrap()).clone();
                    let next = [NODE1, USER, Ipv4Addr::new(192, 168, 66, 1)];
                    node.link_mtus = next.map(|hop| (hop, 700)).into_iter().collect();
                    tables.set_node(node2, Some(node));
                });
                let fits = if client == APP2 { 672 } else { 700 };
                for (length, is_told) in [(fits, false), (fits + 1, true)] {
                    let mut answer = udp_packet(VIP, client, (80, 1000), &vec![7; length - 28], 64);
                    let mut header = Ipv4Packet::new_unchecked(&mut answer[..]);
                    header.set_fragmentation(true, false, 0);
                    header.fill_header_checksum();
                    from_server(&mut lab, FAR, &answer);
                    assert_eq!(take_all(&mut lab, client).len(), usize::from(!is_told));
                    let told = lab.receive(FAR);
                    assert_eq!(told.len(), usize::from(is_told), "{client} {length}");
                    for frame in told {
                        assert_eq!(
                            EthernetFrame::new_unchecked(&frame[..]).source(),
                            lab.machines[&FAR].gateway
                        );
                        let (from, to, _, error) = packet(&frame);
                        assert_eq!((from, to), (Ipv4Addr::new(10, 1, 20, 1), VIP));
                        let error = IcmpPacket::new_checked(&error[..]).unwrap();
                        assert_eq!((error.icmp_type(), error.code()), (IcmpType::DestinationUnreachable, 4));
                        assert_eq!(usize::from(error.next_hop_mtu()), fits);
                        assert_eq!(&error.payload()[20..28], &answer[20..28]);
                    }
                }
                lab.check();
            }
        }
    }
}

#[test]
fn a_capture_shows_a_wrapped_frame_once_as_it_is_on_the_wire() {
    for (server, point, length) in [(FAR, Point::Tunnel, 20 + 40), (NEAR, Point::Bridge, 14 + 20 + 40)] {
        for mut lab in labs(Forwarding::Tunnel, server) {
            let node = lab.node1;
            lab.workers.iter_mut().for_each(|worker| worker.listen(1, node, point));
            let question = tcp_packet(APP2, VIP, (1000, 80), TcpFlags::SYN);
            lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), &question));
            let taken = lab.workers.iter_mut().flat_map(|worker| worker.observer.take(1).frames);
            let seen: Vec<_> = taken.map(|frame| frame.bytes).collect();
            let wrapped: Vec<_> = seen.iter().filter(|bytes| bytes.len() == length).collect();
            // docker0 sees the frame as it came, too.
            assert_eq!((seen.len(), wrapped.len()), (if server == FAR { 1 } else { 2 }, 1));
            let packet = &wrapped[0][length - 60..];
            assert_eq!(Ipv4Packet::new_checked(packet).unwrap().payload(), one_hop_on(&question));
            lab.check();
        }
    }
}
