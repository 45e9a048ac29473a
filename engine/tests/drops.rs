//! Every reason to drop a frame, provoked once, with everything else the ledgers say of it.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "a test stops at the first surprise; one case per reason"
)]

mod common;

use common::*;
use flatnet_engine::binding::Profile;
use flatnet_engine::control::EngineConfig;
use flatnet_engine::frame::ChecksumState;
use flatnet_engine::ledger::{DropReason, Ledger, Term};
use flatnet_engine::link::impairment::Impairment;
use flatnet_engine::link::tunnel_socket::TunnelSocket;
use flatnet_engine::link::{Direction, Link};
use flatnet_engine::masquerade::is_usable;
use flatnet_engine::neighbor::WAITING_LIMIT;
use flatnet_engine::pod::{Pod, PodConfig};
use flatnet_engine::tables::{Guard, Lease, NodeId};
use flatnet_engine::tunnel::Encapsulation;
use flatnet_engine::wire::{
    ArpOperation, EtherType, IcmpPacket, IcmpType, IpProtocol, Ipv4Packet, MacAddress, TcpFlags,
};
use flatnet_proxy::{Forwarding, TrafficPolicy};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

const ISP: Ipv4Addr = Ipv4Addr::new(192, 168, 66, 1);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 77);

/// What the ledgers of all nodes together gained beside the drop.
#[derive(Debug, Default, PartialEq, Eq)]
struct Gained {
    received: u64,
    originated: u64,
    copied: u64,
    sent: u64,
    consumed: u64,
    held: u64,
}

/// One frame in, and it is gone.
const ALONE: Gained = Gained { received: 1, originated: 0, copied: 0, sent: 0, consumed: 0, held: 0 };
/// One frame in at a pod's port; its sender is told by one frame.
const TOLD: Gained = Gained { originated: 1, sent: 1, ..ALONE };
/// One frame in from the user, through the switch to a node.
const FROM_USER: Gained = Gained { received: 2, sent: 1, ..ALONE };
/// The same, and the user is told.
const USER_TOLD: Gained = Gained { received: 3, sent: 3, originated: 1, ..ALONE };

struct Totals(Vec<Ledger>);

impl Totals {
    fn of(lab: &Lab) -> Self {
        Self((0..5).map(|node| lab.ledger(NodeId(node))).collect())
    }

    fn term(&self, term: Term) -> u64 {
        self.0.iter().map(|ledger| ledger.term(term)).sum()
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.0.iter().map(|ledger| ledger.drops(reason)).sum()
    }

    fn held(&self) -> u64 {
        self.0.iter().map(|ledger| ledger.held).sum()
    }

    fn gained_since(&self, before: &Self) -> Gained {
        let term = |term| self.term(term) - before.term(term);
        assert_eq!((term(Term::Split), term(Term::Merged)), (0, 0));
        Gained {
            received: term(Term::Received),
            originated: term(Term::Originated),
            copied: term(Term::Copied),
            sent: term(Term::Sent),
            consumed: term(Term::Consumed),
            held: self.held() - before.held(),
        }
    }
}

/// A network whose machines have all spoken, so that nobody must be looked for.
fn warm(config: &EngineConfig, profile: Profile, encapsulation: Option<Encapsulation>) -> Lab {
    let mut lab = Lab::build_over(config, profile, encapsulation);
    for host in [USER, INTERNET] {
        lab.send(host, &arp(ArpOperation::Request, (mac(host), host), (MacAddress::default(), host)));
    }
    for (from, to) in [(APP2, BACKEND), (BACKEND, APP2), (APP2, INTERNET), (APP2, USER), (BACKEND, USER)] {
        let frame = lab.udp(from, to, (999, 9), b"warm");
        lab.send(from, &frame);
        lab.settle(to);
    }
    for (from, to) in [(USER, INTERNET), (INTERNET, USER)] {
        let frame = lab.udp(from, to, (999, 9), b"warm");
        lab.send(from, &frame);
        lab.settle(to);
    }
    for at in [APP1, APP2, APP3, BACKEND, USER, INTERNET] {
        lab.take(at);
    }
    lab
}

/// Sends a packet from the user straight to a node's interface.
fn to_node(lab: &mut Lab, packet: &[u8]) {
    lab.send(USER, &ethernet(mac(NODE1), mac(USER), packet));
}

fn from_pod(lab: &mut Lab, packet: &[u8]) {
    lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), packet));
}

fn datagram(to: Ipv4Addr) -> Vec<u8> {
    udp_packet(APP2, to, (1000, 7), b"x", 64)
}

/// The port that the node gave the warm-up's flows of APP2.
fn warm_port(lab: &Lab) -> u16 {
    let bindings = lab.workers[0].bindings();
    let ports = bindings.iter(lab.node1).filter(|it| it.original.tuple.source == APP2.to_bits());
    ports.map(|binding| binding.reply.tuple.destination_port).next().unwrap()
}

/// A datagram as flannel would send it, from the user's machine.
fn tunneled(outer: Ipv4Addr, inner: &[u8]) -> Vec<u8> {
    udp_packet(outer, NODE1, (8285, 8285), inner, 64)
}

/// A frame as flannel's vxlan would send it, from the other node's address.
fn in_vxlan(vni: u32, to: MacAddress) -> Vec<u8> {
    let inner = udp_packet(BACKEND, APP2, (1, 2), b"", 64);
    let frame = vxlan_frame(vni, (to, VTEP2), EtherType::Ipv4, &inner);
    udp_packet(NODE2, NODE1, (40_000, 8472), &frame, 64)
}

fn is_vxlans(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::TunnelForeignNetwork
            | DropReason::TunnelForeignMac
            | DropReason::TunnelBroadcast
            | DropReason::TunnelImitated
    )
}

/// The network in which a reason comes up: small where a bound is to be met.
fn network(reason: DropReason) -> Lab {
    let usual = EngineConfig { workers: 1, small_buffers: 2048, large_buffers: 2, ..EngineConfig::default() };
    let profile = if reason == DropReason::NatFiltered { Profile::Rfc } else { Profile::Linux };
    let config = if reason == DropReason::BindingTableFull {
        EngineConfig { bindings: 2, ..usual }
    } else if reason == DropReason::BindingQuota {
        // The warm-up has taken them.
        EngineConfig { client_bindings: 2, ..usual }
    } else if reason == DropReason::TuplesExhausted {
        EngineConfig { client_bindings: u32::MAX, ..usual }
    } else if reason == DropReason::PoolEmpty {
        EngineConfig { large_buffers: 1, ..usual }
    } else if reason == DropReason::WorkerRingFull {
        EngineConfig { workers: 2, small_buffers: 8192, ..usual }
    } else {
        usual
    };
    let tunnel = if is_vxlans(reason) { VXLAN } else { Encapsulation::Udp };
    warm(&config, profile, (reason != DropReason::LeaseOffLink).then_some(tunnel))
}

/// Has a reason come up once; returns what the ledgers must have gained beside.
fn provoke(reason: DropReason, lab: &mut Lab) -> Gained {
    match reason {
        DropReason::RuntFrame => {
            lab.send(APP2, &[0; 13]);
            ALONE
        }
        DropReason::MalformedOffload => {
            // Into the tunnel its checksum must be made, and it has none that could be left out.
            let frame = lab.echo(APP2, BACKEND, 64);
            lab.send_with(APP2, &frame, |record| record.checksum = ChecksumState::Partial);
            ALONE
        }
        DropReason::MulticastSource => {
            lab.send(APP2, &ethernet(mac(APP1), MacAddress::BROADCAST, &datagram(APP1)));
            ALONE
        }
        DropReason::MalformedArp => {
            let frame = arp(ArpOperation::Request, (mac(APP2), APP2), (MacAddress::default(), APP1));
            lab.send(APP2, &frame[..40]);
            ALONE
        }
        DropReason::MalformedIpv4 => {
            let packet = datagram(BACKEND);
            from_pod(lab, &packet[..packet.len() - 1]);
            ALONE
        }
        DropReason::Ipv4Checksum => {
            let mut packet = datagram(BACKEND);
            packet[10] ^= 1;
            from_pod(lab, &packet);
            ALONE
        }
        DropReason::MalformedTransport => {
            let packet = ipv4_packet(APP2, BACKEND, IpProtocol::Udp, 64, &[0; 7]);
            from_pod(lab, &packet);
            ALONE
        }
        DropReason::NotForUs => {
            // The link layer broadcasts it, but it is for one host: all three of the segment refuse it, so the
            // router and the other node are cut off.
            let packet = udp_packet(USER, BACKEND, (1000, 7), b"", 64);
            for (_, switch_end) in [lab.wires[1], lab.wires[2]] {
                lab.control.detach(switch_end).unwrap();
            }
            lab.run();
            lab.send(USER, &ethernet(MacAddress::BROADCAST, mac(USER), &packet));
            FROM_USER
        }
        DropReason::UnhandledProtocol => {
            let mut frame = ethernet(mac(NODE1), mac(USER), &[0; 46]);
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            lab.send(USER, &frame);
            FROM_USER
        }
        DropReason::SpoofedMac => {
            lab.send(APP2, &ethernet(mac(APP1), mac(APP3), &datagram(APP1)));
            ALONE
        }
        DropReason::SpoofedAddress => {
            from_pod(lab, &udp_packet(APP1, BACKEND, (1000, 7), b"", 64));
            ALONE
        }
        DropReason::SpoofedArp => {
            lab.send(APP2, &arp(ArpOperation::Reply, (mac(APP2), APP1), (mac(APP1), APP1)));
            ALONE
        }
        DropReason::Martian => {
            from_pod(lab, &datagram(Ipv4Addr::LOCALHOST));
            ALONE
        }
        DropReason::BridgeSamePort => {
            lab.send(USER, &ethernet(mac(USER), mac(USER), &[0; 46]));
            ALONE
        }
        DropReason::BridgeNoPort => {
            let port = lab.machines[&APP1].port;
            lab.control.detach(port).unwrap();
            lab.send(APP2, &ethernet(MacAddress::BROADCAST, mac(APP2), &datagram(Ipv4Addr::BROADCAST)));
            ALONE
        }
        DropReason::TtlExpired => {
            from_pod(lab, &udp_packet(APP2, BACKEND, (1000, 7), b"", 1));
            TOLD
        }
        DropReason::NoRoute => {
            // The router knows both its networks and nothing else.
            lab.send(USER, &ethernet(mac(ISP), mac(USER), &udp_packet(USER, VIP, (1, 2), b"", 64)));
            USER_TOLD
        }
        DropReason::NoLease => {
            from_pod(lab, &datagram(Ipv4Addr::new(10, 1, 99, 5)));
            TOLD
        }
        DropReason::LeaseOffLink => {
            let lease = Some(Lease { public_ip: INTERNET, vtep: None });
            lab.control.tables.publish(|tables| tables.set_lease(prefix("10.1.30.0/24"), lease));
            from_pod(lab, &datagram(Ipv4Addr::new(10, 1, 30, 5)));
            TOLD
        }
        DropReason::RouterAdvertisement => {
            let mut frame = ethernet(MacAddress::new([0x33, 0x33, 0, 0, 0, 1]), mac(APP2), &[0; 48]);
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            (frame[14], frame[20], frame[54]) = (0x60, 58, 134);
            lab.send(APP2, &frame);
            ALONE
        }
        DropReason::FloodLimit => {
            let broadcast = ethernet(
                MacAddress::BROADCAST,
                mac(APP2),
                &udp_packet(APP2, Ipv4Addr::BROADCAST, (1, 2), b"", 64),
            );
            for _ in 0..4096 / 512 {
                lab.send_all(APP2, &vec![broadcast.clone(); 512]);
                lab.take(APP1);
            }
            lab.send(APP2, &broadcast);
            Gained { received: 4097, sent: 4096, ..ALONE }
        }
        DropReason::FragmentationNeeded => {
            from_pod(lab, &udp_packet(APP2, BACKEND, (1000, 7), &[0; 1445], 64));
            TOLD
        }
        DropReason::MtuExceeded => {
            let id = lab.node1;
            lab.control.tables.publish(|tables| {
                let mut node = (**tables.node(id).unwrap()).clone();
                node.interfaces[0].mtu = 27;
                tables.set_node(id, Some(node));
            });
            from_pod(lab, &fragment_of(&datagram(INTERNET), 0..9, false, 0));
            ALONE
        }
        DropReason::FragmentMalformed => {
            from_pod(lab, &fragment_of(&datagram(VIP), 0..9, true, 0));
            ALONE
        }
        DropReason::FragmentTiny => {
            let segment = tcp_packet(APP2, VIP, (1000, 80), TcpFlags::SYN);
            from_pod(lab, &fragment_of(&segment, 0..16, true, 0));
            ALONE
        }
        DropReason::FragmentOverlap => {
            let packet = udp_packet(APP2, APP1, (1000, 7), &[0; 64], 64);
            from_pod(lab, &fragment_of(&packet, 0..40, true, 0));
            from_pod(lab, &fragment_of(&packet, 32..72, false, 32));
            Gained { received: 2, sent: 1, ..ALONE }
        }
        DropReason::FragmentLimit => {
            for number in 0..129u16 {
                let mut packet = fragment_of(&udp_packet(APP2, VIP, (1, 7), &[0; 64], 64), 32..72, false, 32);
                Ipv4Packet::new_unchecked(&mut packet[..]).set_identification(number);
                Ipv4Packet::new_unchecked(&mut packet[..]).fill_header_checksum();
                from_pod(lab, &packet);
            }
            Gained { received: 129, held: 128, ..Gained::default() }
        }
        DropReason::FragmentTimeout => {
            from_pod(lab, &fragment_of(&udp_packet(APP2, VIP, (1, 7), &[0; 64], 64), 32..72, false, 32));
            lab.pass(Duration::from_secs(30));
            ALONE
        }
        DropReason::NeighborQueueFull => {
            let frames = WAITING_LIMIT as u64 + 1;
            for _ in 0..frames {
                let frame = lab.udp(BACKEND, NOBODY, (1000, 7), b"");
                lab.send(BACKEND, &frame);
            }
            // Each passes two nodes and the switch; all but one wait; two pods' ports are asked at.
            Gained { received: 3 * frames, sent: 2 * frames + 2, originated: 2, held: frames - 1, ..ALONE }
        }
        DropReason::NeighborUnresolved => {
            let frame = lab.udp(BACKEND, NOBODY, (1000, 7), b"");
            lab.send(BACKEND, &frame);
            lab.pass(Duration::from_secs(4));
            // Three requests at two ports each, and an error back to the other node's pod.
            Gained { received: 5, sent: 11, originated: 7, ..ALONE }
        }
        DropReason::TunnelMalformed => {
            to_node(lab, &tunneled(NODE2, b"not a packet"));
            FROM_USER
        }
        DropReason::TunnelChecksum => {
            let mut packet = tunneled(NODE2, &udp_packet(BACKEND, APP2, (1, 2), b"", 64));
            packet[20 + 6] ^= 1;
            to_node(lab, &packet);
            FROM_USER
        }
        DropReason::TunnelForeignNetwork => {
            to_node(lab, &in_vxlan(2, VTEP1));
            FROM_USER
        }
        DropReason::TunnelForeignMac => {
            to_node(lab, &in_vxlan(1, VTEP2));
            FROM_USER
        }
        DropReason::TunnelBroadcast => {
            to_node(lab, &in_vxlan(1, MacAddress::BROADCAST));
            FROM_USER
        }
        DropReason::TunnelImitated => {
            from_pod(lab, &udp_packet(APP2, NODE2, (1000, 8472), b"x", 64));
            ALONE
        }
        DropReason::TunnelForeignSource => {
            to_node(lab, &tunneled(USER, &udp_packet(BACKEND, APP2, (1, 2), b"", 64)));
            FROM_USER
        }
        DropReason::TunnelForeignDestination => {
            to_node(lab, &tunneled(NODE2, &udp_packet(BACKEND, APP3, (1, 2), b"", 64)));
            FROM_USER
        }
        DropReason::NoBackend => {
            lab.set_backends(Vec::new());
            from_pod(lab, &tcp_packet(APP2, VIP, (1000, 80), TcpFlags::SYN));
            TOLD
        }
        DropReason::NoLocalBackend => {
            // externalTrafficPolicy Local, and all backends are on the other node: nobody is told.
            lab.serve(|service| {
                service.external = TrafficPolicy::Local;
                service.backends = [on("node-2", BACKEND, 1)].into();
            });
            to_node(lab, &tcp_packet(USER, NODE1, (1000, 30_080), TcpFlags::SYN));
            FROM_USER
        }
        DropReason::DirectRoutingOffSegment => {
            lab.serve(|service| {
                service.forwarding = Forwarding::DirectRouting;
                service.backends = [on("node-2", BACKEND, 1)].into();
            });
            from_pod(lab, &tcp_packet(APP2, VIP, (1000, 80), TcpFlags::SYN));
            ALONE
        }
        DropReason::ServicePortClosed => {
            from_pod(lab, &datagram(VIP));
            TOLD
        }
        DropReason::ServiceNoConnection => {
            from_pod(lab, &tcp_packet(APP2, VIP, (1000, 80), TcpFlags::ACK));
            TOLD
        }
        DropReason::ServiceUnsupported => {
            from_pod(lab, &echo_packet(APP2, VIP, IcmpType::EchoRequest, 1, 64));
            ALONE
        }
        DropReason::BindingQuota => {
            from_pod(lab, &datagram(INTERNET));
            ALONE
        }
        DropReason::NatFiltered => {
            // The warm-up has asked the internet and the user, the node's gateway has not been asked.
            let stranger = udp_packet(ISP, NODE1, (9, warm_port(lab)), b"", 64);
            lab.send(USER, &ethernet(mac(NODE1), mac(USER), &stranger));
            FROM_USER
        }
        DropReason::TcpResetOutOfWindow => {
            from_pod(lab, &tcp_packet(APP2, INTERNET, (1500, 80), TcpFlags::SYN));
            lab.take(INTERNET);
            let before = lab.ledger(lab.node1).term(Term::Received);
            to_node(lab, &tcp_packet(INTERNET, NODE1, (80, 1500), TcpFlags::RST));
            assert_eq!(lab.ledger(lab.node1).term(Term::Received) - before, 1);
            // Node, switch, router, switch for the SYN.
            Gained { received: 4 + FROM_USER.received, sent: 4 + FROM_USER.sent, ..ALONE }
        }
        DropReason::BindingTableFull => {
            // The warm-up has taken both.
            from_pod(lab, &datagram(INTERNET));
            ALONE
        }
        DropReason::TuplesExhausted => {
            let usable: Vec<u16> = (0..=u16::MAX).filter(|&port| is_usable(port, 8285)).collect();
            for ports in usable.chunks(512) {
                let gateway = lab.machines[&APP2].gateway;
                let frame = |&port: &u16| {
                    ethernet(gateway, mac(APP2), &udp_packet(APP2, INTERNET, (port, 7), b"", 64))
                };
                lab.send_all(APP2, &ports.iter().map(frame).collect::<Vec<_>>());
                lab.take(INTERNET);
            }
            from_pod(lab, &udp_packet(APP2, INTERNET, (1, 7), b"", 64));
            let usable = usable.len();
            // Node, switch, router, switch for each, and one frame that came no further.
            let all = usable as u64;
            Gained { received: 4 * all + 1, sent: 4 * all, ..ALONE }
        }
        DropReason::Untranslatable => {
            from_pod(lab, &echo_packet(APP2, INTERNET, IcmpType::EchoReply, 5, 64));
            ALONE
        }
        DropReason::IcmpErrorUnmatched => {
            let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
            message.extend(udp_packet(NODE1, USER, (5, 6), b"", 64));
            IcmpPacket::new_unchecked(&mut message[..]).fill_checksum();
            to_node(lab, &ipv4_packet(USER, NODE1, IpProtocol::Icmp, 64, &message));
            FROM_USER
        }
        DropReason::TransportChecksum => {
            let mut packet = echo_packet(USER, NODE1, IcmpType::EchoRequest, 1, 64);
            packet[22] ^= 1;
            to_node(lab, &packet);
            FROM_USER
        }
        DropReason::HostClosed => {
            from_pod(lab, &datagram(NODE1));
            TOLD
        }
        DropReason::HostUnsupported => {
            from_pod(lab, &ipv4_packet(APP2, NODE1, IpProtocol::Unknown(47), 64, b"x"));
            TOLD
        }
        DropReason::NoUplink => {
            // In place of its cable the node has the host's own network.
            let (eth0, _) = lab.wires[0];
            let socket =
                TunnelSocket::open(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), Encapsulation::Udp).unwrap();
            lab.workers[0].detach(eth0);
            assert!(lab.workers[0].attach(eth0, Link::TunnelSocket(Box::new(socket))));
            lab.send(APP1, &lab.udp(APP1, INTERNET, (4000, 53), b"x"));
            ALONE
        }
        DropReason::LinkDown => {
            // The endpoint is known, but its link is not there any more.
            let port = lab.machines[&APP1].port;
            lab.workers[0].detach(port);
            lab.send(APP2, &ethernet(mac(APP1), mac(APP2), &datagram(APP1)));
            ALONE
        }
        DropReason::LinkLoss => {
            let (near, _) = lab.wires[0];
            let lossy = Impairment { loss: 1_000_000, ..Impairment::default() };
            lab.workers[0].impair(near, Direction::Out, lossy);
            from_pod(lab, &datagram(BACKEND));
            ALONE
        }
        DropReason::LinkMtu => {
            let (near, _) = lab.wires[0];
            lab.workers[0].impair(
                near,
                Direction::Out,
                Impairment { mtu: Some(100), ..Impairment::default() },
            );
            from_pod(lab, &udp_packet(APP2, BACKEND, (1, 2), &[0; 100], 64));
            ALONE
        }
        DropReason::LinkQueueFull => {
            let frame = ethernet(mac(APP1), mac(APP2), &datagram(APP1));
            for _ in 0..1025 {
                lab.send(APP2, &frame);
            }
            Gained { received: 1025, sent: 1024, ..ALONE }
        }
        DropReason::PodStopped => {
            let address = Ipv4Addr::new(10, 1, 15, 9);
            dead_pod(lab, address);
            lab.send(APP2, &ethernet(mac(address), mac(APP2), &datagram(address)));
            ALONE
        }
        DropReason::WorkerRingFull => {
            // The second worker, which owns APP2's port, stands still.
            let frame = ethernet(mac(APP2), mac(APP1), &udp_packet(APP1, APP2, (1, 2), b"", 64));
            let mut pushed = 0;
            while pushed < 1024 * 4 + 1 {
                let mut buffer = match lab.control.pool.allocate(frame.len()) {
                    Some(buffer) => buffer,
                    None => break,
                };
                lab.control.arena().open(&mut buffer).bytes_mut().copy_from_slice(&frame);
                lab.machines.get_mut(&APP1).unwrap().peer.to_node.push(buffer).unwrap();
                lab.workers[0].run_batch(lab.now);
                pushed += 1;
            }
            assert_eq!(pushed, 4097, "buffers for a full ring and one more");
            let now = lab.now;
            // It runs again, as fast as its port is emptied.
            for _ in 0..64 {
                lab.workers[1].run_batch(now);
                lab.take(APP2);
            }
            Gained { received: 4097, sent: 4096, ..ALONE }
        }
        DropReason::PoolEmpty => {
            // A frame for a large buffer, of which the worker has one, is flooded to three ports.
            let packet = udp_packet(APP2, Ipv4Addr::BROADCAST, (1, 2), &[0; 2100], 64);
            let (node, docker0) = (lab.node1, Ipv4Addr::new(10, 1, 15, 1));
            for stranger in [NOBODY, Ipv4Addr::new(10, 1, 15, 78)] {
                lab.stranger(node, stranger, docker0, 0);
            }
            lab.send(APP2, &ethernet(MacAddress::BROADCAST, mac(APP2), &packet));
            Gained { copied: 2, sent: 2, ..ALONE }
        }
    }
}

/// A pod whose program has ended.
fn dead_pod(lab: &mut Lab, address: Ipv4Addr) {
    let config = PodConfig { address, mac: mac(address), ..PodConfig::default() };
    let mut pod = Pod::new(config);
    pod.kill();
    let guard = Guard { mac: mac(address), address, vip: None };
    lab.control.attach_pod(lab.node1, "dead", Some(guard), 0, pod).unwrap();
    lab.run();
}

#[test]
fn every_reason_is_given_once_and_everything_else_is_as_it_should_be() {
    let mut surprises = Vec::new();
    for &reason in DropReason::ALL {
        let mut lab = network(reason);
        let before = Totals::of(&lab);
        let expected = provoke(reason, &mut lab);
        let after = Totals::of(&lab);
        for &other in DropReason::ALL {
            let gained = after.drops(other) - before.drops(other);
            if gained != u64::from(other == reason) {
                surprises.push(format!("{reason:?}: {gained} times {other:?}"));
            }
        }
        let gained = after.gained_since(&before);
        if gained != expected {
            surprises.push(format!("{reason:?}: {gained:?} instead of {expected:?}"));
        }
        lab.pass(Duration::from_secs(4));
        lab.check();
    }
    assert!(surprises.is_empty(), "{surprises:#?}");
}
