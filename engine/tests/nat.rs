//! MASQUERADE against a plain model: out and back is the identity, and no two flows are one outside.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::binding::{Profile, Traffic};
use flatnet_engine::clock::Instant;
use flatnet_engine::control::EngineConfig;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::masquerade::{NODE_PORTS, PortRange, is_usable, owner};
use flatnet_engine::wire::{IcmpPacket, IcmpType, IpProtocol, Ipv4Packet, TcpFlags, TcpSegment};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

const TUNNEL_PORT: u16 = 8285;
const PODS: [Ipv4Addr; 4] = [APP1, APP2, APP3, BACKEND];

/// A pod's question to a machine outside; ICMP has an identifier for its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    pod: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    port: u16,
    to_port: u16,
}

/// How a question looks outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Outside {
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    port: u16,
    to_port: u16,
}

#[derive(Debug, Clone, Copy)]
struct Live {
    question: Question,
    begun: Instant,
    traffic: Traffic,
    expires: Instant,
}

impl Live {
    /// A packet of it at a time, as conntrack notes it: an answer counts from the next packet on.
    fn note(&mut self, is_answer: bool, now: Instant) {
        let is_stream = match self.question.protocol {
            6 => true,
            17 => now > self.begun + Duration::from_secs(2),
            _ => false,
        };
        if self.traffic == Traffic::Replied && is_stream {
            self.traffic = Traffic::Assured;
        }
        self.expires = now + lifetime(self.question.protocol, self.traffic);
        if self.traffic == Traffic::Unreplied && is_answer {
            self.traffic = Traffic::Replied;
        }
    }
}

fn question() -> impl Strategy<Value = Question> {
    let port = prop::sample::select(vec![0u16, 53, 1023, 1024, 1280, 1281, 8285, 30_080, 32_768, 40_000]);
    let to = prop::sample::select(vec![INTERNET, USER]);
    let protocol = prop::sample::select(vec![1u8, 6, 17]);
    let to_port = prop::sample::select(vec![53u16, 80]);
    (0..4usize, to, protocol, port, to_port).prop_map(|(pod, to, protocol, port, to_port)| Question {
        pod: PODS[pod],
        to,
        protocol,
        port,
        to_port: if protocol == 1 { 0 } else { to_port },
    })
}

#[derive(Debug, Clone)]
enum Deed {
    Ask(Question, u8),
    /// The model's flow of this index is answered.
    Answer(prop::sample::Index),
    Pass(u64),
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        5 => (question(), 1u8..4).prop_map(|(question, times)| Deed::Ask(question, times)),
        4 => any::<prop::sample::Index>().prop_map(Deed::Answer),
        1 => prop::sample::select(vec![1u64, 3, 9, 31, 119, 121, 299, 301]).prop_map(Deed::Pass),
    ]
}

fn ask(lab: &Lab, question: &Question) -> Vec<u8> {
    let Question { pod, to, protocol, port, to_port } = *question;
    match protocol {
        1 => {
            let gateway = lab.machines[&pod].gateway;
            ethernet(gateway, mac(pod), &echo_packet(pod, to, IcmpType::EchoRequest, port, 64))
        }
        6 => lab.tcp(pod, to, (port, to_port), TcpFlags::ACK),
        _ => lab.udp(pod, to, (port, to_port), b"question"),
    }
}

fn seen_outside(frame: &[u8]) -> Outside {
    let (from, to, _, payload) = packet(frame);
    let protocol: u8 = Ipv4Packet::new_unchecked(&frame[14..]).protocol().into();
    let (port, to_port) = if protocol == 1 {
        (IcmpPacket::new_unchecked(&payload[..]).identifier(), 0)
    } else {
        ports(&payload)
    };
    Outside { from, to, protocol, port, to_port }
}

fn answer(lab: &Lab, outside: &Outside) -> Vec<u8> {
    let Outside { from, to, protocol, port, to_port } = *outside;
    let reply = match IpProtocol::from(protocol) {
        IpProtocol::Icmp => echo_packet(to, from, IcmpType::EchoReply, port, 64),
        IpProtocol::Tcp => tcp_packet(to, from, (to_port, port), TcpFlags::ACK),
        IpProtocol::Udp | IpProtocol::Unknown(_) => udp_packet(to, from, (to_port, port), b"answer", 64),
    };
    let next = if to == USER { mac(from) } else { lab.machines[&to].gateway };
    ethernet(next, mac(to), &reply)
}

/// How long a flow lives after a packet, as conntrack has it.
fn lifetime(protocol: u8, traffic: Traffic) -> Duration {
    Duration::from_secs(match (protocol, traffic) {
        (6, Traffic::Assured) => 432_000,
        (6, Traffic::Unreplied | Traffic::Replied) => 300,
        (17, Traffic::Assured) => 120,
        _ => 30,
    })
}

/// The worker that owns a pod's port in the [`Lab`].
fn worker_of(pod: Ipv4Addr, workers: u8) -> u8 {
    if pod == APP2 || pod == BACKEND { workers - 1 } else { 0 }
}

fn node_of(pod: Ipv4Addr) -> Ipv4Addr {
    if pod == APP1 || pod == APP2 { NODE1 } else { NODE2 }
}

fn check_outside(outside: &Outside, question: &Question, workers: u8) -> Result<(), TestCaseError> {
    prop_assert_eq!((outside.from, outside.to), (node_of(question.pod), question.to));
    prop_assert_eq!((outside.protocol, outside.to_port), (question.protocol, question.to_port));
    prop_assert!(is_usable(outside.port, TUNNEL_PORT) && !NODE_PORTS.contains(&outside.port));
    prop_assert_eq!(owner(outside.port, workers), worker_of(question.pod, workers));
    Ok(())
}

fn run(workers: u8, deeds: &[Deed]) -> Result<(), TestCaseError> {
    let mut lab = Lab::new(workers);
    let mut live: BTreeMap<Outside, Live> = BTreeMap::new();
    let mut known: Vec<Outside> = Vec::new();
    for deed in deeds {
        live.retain(|_, flow| flow.expires > lab.now);
        match deed {
            Deed::Ask(question, times) => {
                for _ in 0..*times {
                    let frame = ask(&lab, question);
                    lab.send(question.pod, &frame);
                    let got = lab.settle(question.to);
                    prop_assert_eq!(got.len(), 1);
                    let outside = seen_outside(&got[0]);
                    check_outside(&outside, question, workers)?;
                    let own = live.iter().find(|(_, flow)| flow.question == *question).map(|(key, _)| *key);
                    prop_assert!(own.is_none_or(|own| own == outside), "a live flow changed its look");
                    let holder = live.get(&outside).map(|flow| flow.question);
                    prop_assert!(holder.is_none_or(|holder| holder == *question), "two flows are one");
                    let new = Live {
                        question: *question,
                        begun: lab.now,
                        traffic: Traffic::Unreplied,
                        expires: lab.now,
                    };
                    live.entry(outside).or_insert(new).note(false, lab.now);
                    known.push(outside);
                }
            }
            Deed::Answer(index) if !known.is_empty() => {
                let outside = *index.get(&known);
                let frame = answer(&lab, &outside);
                lab.send(outside.to, &frame);
                for pod in PODS {
                    let got = lab.receive(pod);
                    let flow = live.get_mut(&outside).filter(|flow| flow.question.pod == pod);
                    prop_assert_eq!(got.len(), usize::from(flow.is_some()), "{:?} at {}", outside, pod);
                    let Some(flow) = flow else { continue };
                    let seen = seen_outside(&got[0]);
                    let question = flow.question;
                    let (port, to_port) = if question.protocol == 1 {
                        (question.port, 0)
                    } else {
                        (question.to_port, question.port)
                    };
                    prop_assert_eq!((seen.from, seen.to), (question.to, question.pod));
                    prop_assert_eq!((seen.port, seen.to_port), (port, to_port));
                    flow.note(true, lab.now);
                }
                // Who answers nobody's question is told so.
                lab.receive(outside.to);
            }
            Deed::Answer(_) => {}
            Deed::Pass(seconds) => lab.pass(Duration::from_secs(*seconds)),
        }
    }
    lab.check();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// RFC 3022, 2 and 4; conntrack's timeouts (`nf_conntrack_*_timeout`).
    #[test]
    fn what_is_masqueraded_comes_back_as_it_went(
        workers in 1u8..3, deeds in prop::collection::vec(deed(), 1..60),
    ) {
        run(workers, &deeds)?;
    }
}

/// RFC 4787, 4.2.1: port preservation.
#[test]
fn a_port_is_kept_where_it_may_be() {
    let mut lab = Lab::new(1);
    let frame = lab.udp(APP1, INTERNET, (40_000, 53), b"");
    lab.send(APP1, &frame);
    assert_eq!(seen_outside(&lab.settle(INTERNET)[0]).port, 40_000);
    let frame = lab.udp(APP2, INTERNET, (40_000, 53), b"");
    lab.send(APP2, &frame);
    assert_ne!(seen_outside(&lab.settle(INTERNET)[0]).port, 40_000, "it is taken");
    lab.check();
}

/// RFC 5508, 4.2; RFC 792: every error that quotes a packet is translated, inwards and outwards, with what it quotes and all
/// checksums, whatever protocol that is.
#[test]
fn errors_of_every_type_are_translated_both_ways() {
    for (workers, protocol) in
        [1u8, 2, 3].into_iter().flat_map(|workers| [(workers, 17u8), (workers, 6), (workers, 1)])
    {
        let mut lab = Lab::new(workers);
        // A port that the second pod does not keep, so that every sum changes: the first has it, or another worker.
        let is_others = |port: &u16| workers == 1 || owner(*port, workers) != worker_of(APP2, workers);
        let port = (32_769..).find(is_others).unwrap();
        let question =
            Question { pod: APP2, to: USER, protocol, port, to_port: if protocol == 1 { 0 } else { 53 } };
        for taken in [Question { pod: APP1, ..question }, question] {
            let frame = ask(&lab, &taken);
            lab.send(taken.pod, &frame);
        }
        let asked = ask(&lab, &question)[14..].to_vec();
        let seen = lab.settle(USER).pop().unwrap();
        let outside = seen_outside(&seen);
        assert_ne!(outside.port, question.port);
        let reply = answer(&lab, &outside);
        lab.send(USER, &reply);
        let inside = lab.receive(APP2).pop().unwrap();
        // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
        for kind in [3u8, 4, 5, 11, 12] {
            let error = |from: Ipv4Addr, to: Ipv4Addr, about: &[u8]| {
                let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
                message.extend(about);
                IcmpPacket::new_unchecked(&mut message[..]).fill_checksum();
                ipv4_packet(from, to, IpProtocol::Icmp, 64, &message)
            };
            let inwards = ethernet(mac(NODE1), mac(USER), &error(USER, NODE1, &seen[14..]));
            let outwards =
                ethernet(lab.machines[&APP2].gateway, mac(APP2), &error(APP2, USER, &inside[14..]));
            lab.send(USER, &inwards);
            let told_inside = lab.receive(APP2);
            lab.send(APP2, &outwards);
            let told_outside = lab.receive(USER);
            for (told, from, quoted) in
                [(&told_inside, USER, &asked[..]), (&told_outside, NODE1, &reply[14..])]
            {
                let name = format!("type {kind} about protocol {protocol} with {workers} workers");
                assert_eq!(told.len(), 1, "{name}");
                let (source, _, _, message) = packet(&told[0]);
                assert_eq!(source, from, "the error itself is masqueraded, too");
                // Ports, identifiers and every checksum are as its sender wrote them; the TTL went down on the way.
                packet(&[&[0; 14], &message[8..]].concat());
                let mut found = message[8..].to_vec();
                let mut header = Ipv4Packet::new_unchecked(&mut found[..]);
                header.set_time_to_live(64);
                header.fill_header_checksum();
                assert_eq!(found, quoted, "{name}");
            }
        }
        lab.check();
    }
}

/// Conntrack's `tcp_timeout_unacknowledged`: what a known flow's segment carries is read from the packet, whatever options it has
/// and however the frame is padded.
#[test]
fn a_known_connection_is_at_rest_once_its_data_are_acknowledged() {
    let mut lab = Lab::new(1);
    let ports = (40_000, 80);
    for (from, flags) in
        [(APP2, TcpFlags::SYN), (USER, TcpFlags::SYN.with(TcpFlags::ACK)), (APP2, TcpFlags::ACK)]
    {
        let (to, ports) = if from == APP2 { (USER, ports) } else { (NODE1, (ports.1, ports.0)) };
        let frame = lab.tcp(from, to, ports, flags);
        lab.send(from, &frame);
        lab.settle(if from == APP2 { USER } else { APP2 });
    }
    let said = |from, place: (u32, u32), payload: usize, padding: usize| {
        let (to, ports) = if from == APP2 { (USER, ports) } else { (NODE1, (ports.1, ports.0)) };
        let mut bytes = vec![1; 32 + payload];
        bytes[..20].copy_from_slice(&tcp_packet(from, to, ports, TcpFlags::ACK)[20..]);
        let mut segment = TcpSegment::new_unchecked(&mut bytes[..]);
        segment.set_header_length(32);
        segment.set_sequence(place.0);
        segment.set_acknowledgement(place.1);
        segment.fill_checksum(from, to);
        let next = if from == APP2 { lab.machines[&APP2].gateway } else { mac(NODE1) };
        let mut frame = ethernet(next, mac(from), &ipv4_packet(from, to, IpProtocol::Tcp, 64, &bytes));
        frame.extend(vec![0; padding]);
        frame
    };
    let talk = [
        ("nothing is sent", said(USER, (1001, 1001), 0, 0), 432_000),
        ("a question", said(APP2, (1001, 1001), 100, 0), 300),
        ("and another", said(APP2, (1101, 1001), 10, 0), 300),
        ("the first is acknowledged", said(USER, (1001, 1101), 0, 0), 300),
        ("the second is", said(USER, (1001, 1111), 0, 6), 432_000),
        ("an answer", said(USER, (1001, 1111), 1, 0), 300),
        ("is acknowledged", said(APP2, (1111, 1002), 0, 6), 432_000),
    ];
    for (what, frame, seconds) in talk {
        let to = if frame[6..12] == mac(APP2).octets() { USER } else { APP2 };
        lab.send(if to == USER { APP2 } else { USER }, &frame);
        assert_eq!(lab.receive(to).len(), 1, "{what}");
        let binding = lab.workers[0].bindings().iter(lab.node1).next().unwrap();
        assert_eq!(binding.ends().saturating_duration_since(binding.last_seen).as_secs(), seconds, "{what}");
    }
    lab.check();
}

/// conntrack's `tcp_conntracks`: an answer to a SYN, a FIN and a reset of no connection are invalid, so that they take no port and leave
/// as they are (`engine/tests/oracle.rs` asks Linux); the rest begins one. RFC 5382 knows no such thing.
#[test]
fn what_ends_or_answers_no_connection_begins_none() {
    let [syn, ack, fin, rst] = [TcpFlags::SYN, TcpFlags::ACK, TcpFlags::FIN, TcpFlags::RST];
    for (flags, begins) in [
        (syn, true),
        (ack, true),
        (syn.with(ack), false),
        (fin, false),
        (fin.with(ack), false),
        (rst, false),
        (rst.with(ack), false),
    ] {
        for (profile, begins) in [(Profile::Linux, begins), (Profile::Rfc, true)] {
            let mut lab = Lab::build_with(&EngineConfig { workers: 1, ..EngineConfig::default() }, profile);
            let frame = lab.tcp(APP1, USER, (4000, 80), flags);
            lab.send(APP1, &frame);
            let source = Ipv4Packet::new_unchecked(&lab.settle(USER)[0][14..]).source();
            let count = lab.workers[0].bindings().iter(lab.node1).count();
            assert_eq!((source, count), if begins { (NODE1, 1) } else { (APP1, 0) }, "{flags:?} {profile:?}");
        }
    }
}

/// RFC 1122, 4.2.2.13; RFC 9293, 3.10.7.4: who waits in TIME-WAIT takes a SYN that lies behind all of the last connection. conntrack's
/// `nf_nat_may_kill`: where no other port is left, that connection's is used anew.
#[test]
fn a_port_in_time_wait_is_used_for_a_new_connection_where_no_other_is_left() {
    const PORTS: PortRange = PortRange { first: 61_000, last: 61_003 };
    let [ack, fin] = [TcpFlags::ACK, TcpFlags::FIN.with(TcpFlags::ACK)];
    let mut lab = Lab::new(1);
    lab.control.set_masquerade_ports(lab.node1, PORTS).unwrap();
    let place = |mut frame: Vec<u8>, (from, to): (Ipv4Addr, Ipv4Addr), sequence, acknowledgement| {
        let mut segment = TcpSegment::new_unchecked(&mut frame[34..]);
        segment.set_sequence(sequence);
        segment.set_acknowledgement(acknowledgement);
        segment.fill_checksum(from, to);
        frame
    };
    // Returns the port that it has outside.
    let open = |lab: &mut Lab, port: u16, sequence: u32| {
        let frame = place(lab.tcp(APP2, USER, (port, 80), TcpFlags::SYN), (APP2, USER), sequence, 0);
        lab.send(APP2, &frame);
        let arrived = lab.settle(USER);
        arrived.first().map(|frame| TcpSegment::new_unchecked(&frame[34..]).source_port())
    };
    let exchange = |lab: &mut Lab, port: u16, outside: u16, segments: &[(Ipv4Addr, TcpFlags, u32, u32)]| {
        for &(from, flags, sequence, acknowledgement) in segments {
            let (to, ports) = if from == APP2 { (USER, (port, 80)) } else { (NODE1, (80, outside)) };
            let frame = place(lab.tcp(from, to, ports, flags), (from, to), sequence, acknowledgement);
            lab.send(from, &frame);
            assert_eq!(lab.settle(if from == APP2 { USER } else { APP2 }).len(), 1);
        }
    };
    let answer = (USER, TcpFlags::SYN.with(ack), 500, 1001);
    let close =
        [(APP2, ack, 1001, 501), (USER, fin, 501, 1001), (APP2, fin, 1001, 502), (USER, ack, 502, 1002)];
    let mut outside = Vec::new();
    for port in 1..=4 {
        let found = open(&mut lab, port, 1000).unwrap();
        exchange(&mut lab, port, found, &[answer]);
        outside.push(found);
    }
    let count = |lab: &Lab| lab.workers[0].bindings().iter(lab.node1).count();
    assert!(PORTS.contains(outside[0]) && outside[3] != outside[0]);
    // All four are open.
    assert_eq!((open(&mut lab, 5, 90_000), lab.drops(DropReason::TuplesExhausted)), (None, 1));
    exchange(&mut lab, 2, outside[1], &close);
    // One is over, but this SYN would be a late one of it.
    assert_eq!((open(&mut lab, 5, 1002), lab.drops(DropReason::TuplesExhausted)), (None, 2));
    assert_eq!((open(&mut lab, 5, 1002 + (1 << 31)), lab.drops(DropReason::TuplesExhausted)), (None, 3));
    assert_eq!((open(&mut lab, 5, 1003), count(&lab)), (Some(outside[1]), 4));
    exchange(&mut lab, 5, outside[1], &[(USER, TcpFlags::SYN.with(ack), 700, 1004), (APP2, ack, 1004, 701)]);
    // It is not over, whatever its port was before.
    assert_eq!((open(&mut lab, 6, 90_000), lab.drops(DropReason::TuplesExhausted)), (None, 4));
    lab.check();
}

/// All ports of the range are another worker's, and in use: the frame is dropped, and nobody asks for ever.
#[test]
fn a_worker_without_ports_of_its_own_gives_up_when_the_other_has_none() {
    let mut lab = Lab::new(2);
    lab.control.set_masquerade_ports(lab.node1, PortRange { first: 61_000, last: 61_003 }).unwrap();
    let from = [APP1, APP2].into_iter().find(|&pod| worker_of(pod, 2) != owner(61_000, 2)).unwrap();
    for port in 1..=6 {
        let frame = lab.udp(from, USER, (port, 9), b"new");
        lab.send(from, &frame);
        assert_eq!(lab.settle(USER).len(), usize::from(port <= 4), "{port}");
    }
    assert_eq!(lab.drops(DropReason::TuplesExhausted), 2);
    lab.check();
}
