//! Whatever comes in on a link is accounted for: no panic, every ledger balances, every buffer returns.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::wire::{
    ArpOperation, IcmpPacket, IcmpType, IpProtocol, Ipv4Packet, MacAddress, TcpFlags, UdpDatagram,
};
use proptest::prelude::*;
use std::net::Ipv4Addr;
use std::time::Duration;

const ISP: Ipv4Addr = Ipv4Addr::new(192, 168, 66, 1);
/// A machine on docker0 that no guard binds to an address.
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 200);
/// Where frames come in: a pod's port, a bridge's port, and the switch, from which nodes and router are reached.
const WAYS_IN: [Ipv4Addr; 4] = [APP2, BACKEND, STRANGER, USER];

fn lab(workers: u8) -> Lab {
    let mut lab = Lab::new(workers);
    let (node, gateway) = (lab.node1, Ipv4Addr::new(10, 1, 15, 1));
    lab.stranger(node, STRANGER, gateway, workers - 1);
    lab
}

/// Frames that are right, of every kind there is.
fn right_frames(from: Ipv4Addr) -> Vec<Vec<u8>> {
    let own = mac(from);
    let gateway = |last| mac(Ipv4Addr::new(10, 1, last, 1));
    let at = match from {
        USER => [mac(NODE1), mac(NODE2), mac(ISP), MacAddress::BROADCAST],
        BACKEND => [gateway(20), mac(APP3), MacAddress::BROADCAST, mac(USER)],
        _ => [gateway(15), mac(APP1), MacAddress::BROADCAST, mac(USER)],
    };
    let mut packets = Vec::new();
    for to in [APP1, APP3, VIP, NODE1, NODE2, INTERNET, USER, Ipv4Addr::new(10, 1, 15, 0)] {
        packets.push(udp_packet(from, to, (1000, 80), b"payload", 64));
        packets.push(udp_packet(from, to, (1000, 30_080), b"", 1));
        packets.push(tcp_packet(from, to, (1000, 80), TcpFlags::SYN));
        packets.push(tcp_packet(from, to, (1000, 80), TcpFlags::ACK));
        packets.push(echo_packet(from, to, IcmpType::EchoRequest, 2000, 64));
        packets.push(error_packet(from, to));
        packets.push(ipv4_packet(from, to, IpProtocol::Unknown(47), 64, b"something"));
    }
    for (outer, inner) in [(NODE2, APP3), (NODE1, APP2), (USER, APP3)] {
        for to in [APP1, APP2, APP3] {
            let inner = udp_packet(inner, to, (1000, 7), b"inner", 64);
            packets.push(udp_packet(outer, NODE1, (8285, 8285), &inner, 64));
        }
    }
    let mut frames: Vec<_> = packets
        .iter()
        .enumerate()
        .map(|(number, packet)| ethernet(at[number % at.len()], own, packet))
        .chain(packets.iter().map(|packet| ethernet(at[0], own, packet)))
        .collect();
    for operation in [ArpOperation::Request, ArpOperation::Reply] {
        for to in [from, APP1, USER, NODE1, Ipv4Addr::new(10, 1, 15, 1), Ipv4Addr::UNSPECIFIED] {
            frames.push(arp(operation, (own, from), (mac(to), to)));
            frames.push(arp(operation, (own, Ipv4Addr::UNSPECIFIED), (mac(to), to)));
        }
    }
    frames
}

fn error_packet(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![3, 4, 0, 0, 0, 0, 5, 0];
    message.extend(udp_packet(to, from, (80, 1000), b"quoted", 60));
    IcmpPacket::new_unchecked(&mut message[..]).fill_checksum();
    ipv4_packet(from, to, IpProtocol::Icmp, 64, &message)
}

/// Makes the header checksums right again, so that damage gets further in.
fn heal(frame: &mut [u8]) {
    let heal_header = |packet: &mut [u8]| {
        if packet.len() >= 20 && usize::from(packet[0] & 0xf) * 4 <= packet.len() && packet[0] & 0xf >= 5 {
            Ipv4Packet::new_unchecked(packet).fill_header_checksum();
        }
    };
    if frame.len() > 62 && frame[36..38] == 8285u16.to_be_bytes() {
        heal_header(&mut frame[42..]);
        UdpDatagram::new_unchecked(&mut frame[34..]).set_checksum(0);
    }
    if frame.len() > 34 && frame[12..14] == [8, 0] {
        heal_header(&mut frame[14..]);
    }
}

#[derive(Debug, Clone)]
enum Damage {
    Flip(usize, u8),
    Set(usize, u8),
    Length(usize, u16),
    Cut(usize),
    Extend(usize, u8),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<usize>(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        2 => (any::<usize>(), any::<u8>()).prop_map(|(at, value)| Damage::Set(at, value)),
        // Where lengths stand: IPv4's, UDP's, the inner IPv4's, the inner UDP's.
        2 => (prop::sample::select(vec![16usize, 20, 38, 44, 66]), any::<u16>())
            .prop_map(|(at, value)| Damage::Length(at, value)),
        1 => any::<usize>().prop_map(Damage::Cut),
        1 => (0usize..1600, any::<u8>()).prop_map(|(by, value)| Damage::Extend(by, value)),
    ]
}

fn hurt(frame: &mut Vec<u8>, damage: &Damage) {
    let length = frame.len().max(1);
    match *damage {
        Damage::Flip(at, bit) => frame.get_mut(at % length).into_iter().for_each(|byte| *byte ^= 1 << bit),
        Damage::Set(at, value) => frame.get_mut(at % length).into_iter().for_each(|byte| *byte = value),
        Damage::Length(at, value) => {
            if let Some(place) = frame.get_mut(at..at + 2) {
                place.copy_from_slice(&value.to_be_bytes());
            }
        }
        Damage::Cut(at) => frame.truncate(at % length),
        Damage::Extend(by, value) => frame.resize((frame.len() + by).min(1980), value),
    }
}

/// Empties all machines, so that no ring fills.
fn drain(lab: &mut Lab) {
    for at in lab.machines.keys().copied().collect::<Vec<_>>() {
        lab.take(at);
    }
}

/// Whatever still waits gives up or goes on; then everything is accounted for.
fn finish(mut lab: Lab) {
    // ARP gives up after some seconds, fragments wait for 30.
    for _ in 0..9 {
        lab.pass(std::time::Duration::from_secs(4));
        drain(&mut lab);
    }
    lab.check();
    for node in 0..5 {
        assert_eq!(lab.ledger(flatnet_engine::tables::NodeId(node)).held, 0);
    }
}

#[test]
fn a_frame_cut_at_any_offset_is_accounted_for() {
    for workers in [1, 2] {
        let mut lab = lab(workers);
        for from in WAYS_IN {
            for frame in right_frames(from) {
                for length in 0..frame.len() {
                    lab.send(from, &frame[..length]);
                    let mut healed = frame[..length].to_vec();
                    heal(&mut healed);
                    lab.send(from, &healed);
                }
                drain(&mut lab);
            }
        }
        finish(lab);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn damaged_frames_are_accounted_for(
        workers in 1u8..3,
        frames in prop::collection::vec(
            (0..WAYS_IN.len(), any::<prop::sample::Index>(), prop::collection::vec(damage(), 0..4), any::<bool>()),
            1..60,
        ),
    ) {
        let mut lab = lab(workers);
        let right: Vec<_> = WAYS_IN.iter().map(|&from| right_frames(from)).collect();
        for (way, index, damages, healed) in frames {
            let mut frame = index.get(&right[way]).clone();
            for damage in &damages {
                hurt(&mut frame, damage);
            }
            if healed {
                heal(&mut frame);
            }
            lab.send(WAYS_IN[way], &frame);
            lab.send(WAYS_IN[way], &frame);
        }
        finish(lab);
    }

    #[test]
    fn noise_is_accounted_for(
        frames in prop::collection::vec((0..WAYS_IN.len(), prop::collection::vec(any::<u8>(), 0..200), 0u8..4), 1..60),
    ) {
        let mut lab = lab(2);
        for (way, mut frame, dress) in frames {
            let from = WAYS_IN[way];
            // Noise that looks like something: addressed, typed, or in the tunnel.
            if dress > 0 && frame.len() > 14 {
                frame[..6].copy_from_slice(&lab.machines[&from].gateway.octets());
                frame[6..12].copy_from_slice(&mac(from).octets());
                frame[12..14].copy_from_slice(if dress == 1 { &[8, 6] } else { &[8, 0] });
            }
            if dress == 3 {
                let datagram = udp_packet(NODE2, NODE1, (8285, 8285), &frame, 64);
                frame = ethernet(mac(NODE1), mac(NODE2), &datagram);
            }
            heal(&mut frame);
            lab.send(from, &frame);
        }
        finish(lab);
    }
}

/// RFC 1812, 4.3.2.8; Linux, `icmp_msgs_per_sec` and `icmp_msgs_burst`: 50 errors at once, then 1,000 a second.
#[test]
fn a_node_sends_no_more_errors_than_it_should() {
    let mut lab = Lab::new(1);
    let mut errors = |pass: Duration| {
        lab.pass(pass);
        for _ in 0..100 {
            let echo = lab.echo(APP1, BACKEND, 1);
            lab.send(APP1, &echo);
        }
        lab.receive(APP1).len()
    };
    assert_eq!(errors(Duration::ZERO), 50);
    assert_eq!(errors(Duration::from_millis(10)), 10);
    assert_eq!(errors(Duration::from_secs(10)), 50);
}
