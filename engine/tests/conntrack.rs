//! Linux's conntrack as oracle: what it takes a connection for after each packet, for how long it keeps it, and when a port is used
//! anew. The same packets go through a kernel's MASQUERADE and through a node of ours; `/proc/net/nf_conntrack` says what the kernel knows.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "a test stops at the first surprise; one case per rule"
)]

mod common;
// Not part of `common`, which the fuzz targets build, too.
#[path = "common/kernel.rs"]
mod kernel;

use common::*;
use flatnet_engine::binding::Traffic;
use flatnet_engine::masquerade::PortRange;
use flatnet_engine::wire::{IcmpType, IpProtocol, TcpFlags, TcpSegment};
use kernel::{Kernel, Node, Ours, in_a_namespace};
use std::net::Ipv4Addr;
use std::process::Command;

/// The pod's port. The machine outside is asked at port 80.
const PORT: u16 = 4000;
/// The one port that connections to port 81 may have outside.
const NARROW: u16 = 61_007;
/// The kernel counts in seconds, and time passes there.
const TOLERANCE: u64 = 3;

const SYN: TcpFlags = TcpFlags::SYN;
const ACK: TcpFlags = TcpFlags::ACK;
const FIN: TcpFlags = TcpFlags::FIN.with(ACK);
const RST: TcpFlags = TcpFlags::RST;

/// A packet of a connection: who sends it, and what.
type Said = (Ipv4Addr, What);

#[derive(Debug, Clone, Copy)]
enum What {
    /// Flags, sequence and acknowledgement number, bytes.
    Tcp(TcpFlags, u32, u32, usize),
    Udp,
    Echo(IcmpType),
}

/// What is known of a connection: its state, whether it was answered and is assured, and how long it lives without a packet.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    state: String,
    traffic: Traffic,
    seconds: u64,
}

/// The frame of a packet between a pod's port and one outside.
fn frame((from, what): Said, (port, server, outside): (u16, u16, u16)) -> Vec<u8> {
    let (to, ports, next) = match from {
        APP2 => (USER, (port, server), mac(Ipv4Addr::new(10, 1, 15, 1))),
        _ => (NODE1, (server, outside), mac(NODE1)),
    };
    let packet = match what {
        What::Tcp(flags, sequence, acknowledgement, length) => {
            let mut bytes = tcp_packet(from, to, ports, flags)[20..].to_vec();
            bytes.resize(bytes.len() + length, 7);
            let mut segment = TcpSegment::new_unchecked(&mut bytes[..]);
            segment.set_sequence(sequence);
            segment.set_acknowledgement(acknowledgement);
            segment.fill_checksum(from, to);
            ipv4_packet(from, to, IpProtocol::Tcp, 64, &bytes)
        }
        What::Udp => udp_packet(from, to, ports, b"said", 64),
        What::Echo(kind) => echo_packet(from, to, kind, if from == APP2 { port } else { outside }, 64),
    };
    ethernet(next, mac(from), &packet)
}

/// What the kernel knows of the connection from a pod's port.
fn linux(port: u16) -> Option<Known> {
    let table = std::fs::read_to_string("/proc/net/nf_conntrack").unwrap();
    let from = format!(" src={APP2} ");
    let ports = [format!(" sport={port} "), format!(" id={port} ")];
    let is_it = |line: &&str| line.contains(&from) && ports.iter().any(|port| line.contains(port));
    let line = table.lines().find(is_it)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let traffic = match (line.contains("[UNREPLIED]"), line.contains("[ASSURED]")) {
        (true, _) => Traffic::Unreplied,
        (false, true) => Traffic::Assured,
        (false, false) => Traffic::Replied,
    };
    let state = if words[2] == "tcp" { words[5] } else { "" };
    Some(Known { state: state.to_owned(), traffic, seconds: words[4].parse().unwrap() })
}

/// What we know of it.
fn ours(lab: &Lab, port: u16) -> Option<Known> {
    let mut bindings = lab.workers[0].bindings().iter(lab.node1);
    let of_port = |ports: [u16; 2]| ports.contains(&port);
    let binding = bindings.find(|it| {
        let tuple = it.original.tuple;
        of_port([tuple.source_port, tuple.destination_port]) && it.ends() > lab.now
    })?;
    let state = if binding.original.tuple.protocol == 6 { binding.tcp_state().name() } else { "" };
    let seconds = binding.ends().saturating_duration_since(lab.now).as_secs();
    Some(Known { state: state.to_owned(), traffic: binding.traffic, seconds })
}

/// Connections, by what is said. Both ends begin at 1000; a SYN is answered at once.
fn connections() -> Vec<(&'static str, Vec<Said>)> {
    let (pod, server) = (APP2, USER);
    let tcp = |from, flags, sequence, acknowledgement, length| {
        (from, What::Tcp(flags, sequence, acknowledgement, length))
    };
    let opened =
        [tcp(pod, SYN, 1000, 0, 0), tcp(server, SYN.with(ACK), 1000, 1001, 0), tcp(pod, ACK, 1001, 1001, 0)];
    let then = |said: &[Said]| [&opened[..], said].concat();
    vec![
        (
            "data that is acknowledged",
            then(&[
                tcp(pod, ACK, 1001, 1001, 100),
                tcp(server, ACK, 1001, 1101, 0),
                tcp(server, ACK, 1001, 1101, 50),
                tcp(pod, ACK, 1101, 1051, 0),
            ]),
        ),
        (
            "the pod closes first",
            then(&[
                tcp(pod, FIN, 1001, 1001, 0),
                tcp(server, ACK, 1001, 1002, 0),
                tcp(server, FIN, 1001, 1002, 0),
                tcp(pod, ACK, 1002, 1002, 0),
            ]),
        ),
        (
            "the server closes first",
            then(&[
                tcp(server, FIN, 1001, 1001, 0),
                tcp(pod, ACK, 1001, 1002, 0),
                tcp(pod, FIN, 1001, 1002, 0),
                tcp(server, ACK, 1002, 1002, 0),
                // Opened anew from the same port.
                tcp(pod, SYN, 9000, 0, 0),
            ]),
        ),
        (
            "both close at once",
            then(&[
                tcp(pod, FIN, 1001, 1001, 0),
                tcp(server, FIN, 1001, 1001, 0),
                tcp(pod, ACK, 1002, 1002, 0),
                tcp(server, ACK, 1002, 1002, 0),
            ]),
        ),
        ("a reset by the server", then(&[tcp(server, RST, 1001, 0, 0)])),
        ("a reset by the pod", then(&[tcp(pod, RST, 1001, 0, 0)])),
        ("a reset that is out of the window", then(&[tcp(server, RST, 900_000, 0, 0)])),
        (
            "a reset that is in the window, and nowhere due",
            then(&[tcp(server, RST, 1500, 0, 0), tcp(pod, ACK, 1001, 1001, 0)]),
        ),
        (
            "a reset behind what is not acknowledged",
            then(&[tcp(server, ACK, 1001, 1001, 40), tcp(server, RST, 1041, 0, 0)]),
        ),
        ("refused", vec![tcp(pod, SYN, 1000, 0, 0), tcp(server, RST.with(ACK), 0, 1001, 0)]),
        (
            "both open at once",
            vec![
                tcp(pod, SYN, 1000, 0, 0),
                tcp(server, SYN, 1000, 0, 0),
                tcp(pod, SYN.with(ACK), 1000, 1001, 0),
                tcp(server, SYN.with(ACK), 1000, 1001, 0),
            ],
        ),
        ("a SYN sent again", vec![tcp(pod, SYN, 1000, 0, 0), tcp(pod, SYN, 1000, 0, 0)]),
        (
            "open before it was seen",
            vec![
                tcp(pod, ACK, 5000, 6000, 10),
                tcp(server, ACK, 6000, 5010, 20),
                tcp(pod, ACK, 5010, 6020, 0),
            ],
        ),
        ("a question without an answer", vec![(pod, What::Udp), (pod, What::Udp)]),
        ("a question and its answer", vec![(pod, What::Udp), (server, What::Udp), (pod, What::Udp)]),
        (
            "an echo",
            vec![(pod, What::Echo(IcmpType::EchoRequest)), (server, What::Echo(IcmpType::EchoReply))],
        ),
    ]
}

/// The inner part: runs in a namespace of its own.
#[test]
#[ignore = "run by conntrack_and_we_know_the_same, in a namespace"]
fn compare() {
    let (mut kernel, mut us) = (Kernel::new(), Ours::new());
    let (mut differing, mut seen) = (Vec::new(), 0);
    for (number, (name, said)) in connections().into_iter().enumerate() {
        let port = PORT + number as u16;
        for (step, &packet) in said.iter().enumerate() {
            let frames = [frame(packet, (port, 80, port))];
            let ends = (kernel.exchange(packet.0, &frames), us.exchange(packet.0, &frames));
            let known = (linux(port), ours(&us.0, port));
            let is_same = match &known {
                (Some(linux), Some(ours)) => {
                    // Time passes there only.
                    let seconds = linux.seconds..=linux.seconds + TOLERANCE;
                    (&linux.state, linux.traffic) == (&ours.state, ours.traffic)
                        && seconds.contains(&ours.seconds)
                }
                (linux, ours) => linux.is_none() && ours.is_none(),
            };
            seen += usize::from(known.0.is_some());
            // Linux has it end as soon as if the reset had ended it, until somebody says something; here whoever speaks need not be looked at.
            let is_challenged = matches!(packet.1, What::Tcp(RST, 1500, ..));
            if !is_same && !is_challenged || ends.0.keys().ne(ends.1.keys()) {
                let (linux, ours) = known;
                let [to, we_to] = [ends.0, ends.1].map(|ends| ends.into_keys().collect::<Vec<_>>());
                differing.push(format!(
                    "{name}, packet {}: {packet:?}\n  Linux {linux:?} {to:?}\n  ours  {ours:?} {we_to:?}",
                    step + 1
                ));
            }
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
    assert!(seen > 30, "{seen}");
}

#[test]
fn conntrack_and_we_know_the_same() {
    in_a_namespace("compare");
}

/// The inner part: runs in a namespace of its own.
#[test]
#[ignore = "run by a_port_is_used_anew_when_linux_does, in a namespace"]
fn compare_ports() {
    let (mut kernel, mut us) = (Kernel::new(), Ours::new());
    let rule = format!(
        "insert rule ip nat out ip saddr {APP2} tcp dport 81 oifname eth0 masquerade to :{NARROW}-{NARROW}"
    );
    assert!(Command::new("nft").arg(rule).status().unwrap().success());
    let id = us.0.node1;
    us.0.control.set_masquerade_ports(id, PortRange { first: NARROW, last: NARROW }).unwrap();
    let tcp = |from, flags, sequence, acknowledgement| (from, What::Tcp(flags, sequence, acknowledgement, 0));
    let mut say = |port: u16, said: Said| {
        let frames = [frame(said, (port, 81, NARROW))];
        let passed = [kernel.exchange(said.0, &frames), us.exchange(said.0, &frames)].map(|ends| {
            let to = if said.0 == APP2 { USER } else { APP2 };
            let frames = ends.get(&to).map_or(&[][..], |frames| frames);
            frames
                .iter()
                .map(|frame| TcpSegment::new_unchecked(&frame[34..]).source_port())
                .collect::<Vec<_>>()
        });
        assert_eq!(passed[0], passed[1], "{port} {said:?}: Linux, ours");
        passed[1] == [if said.0 == APP2 { NARROW } else { 81 }]
    };
    assert!(say(1, tcp(APP2, SYN, 1000, 0)));
    assert!(!say(2, tcp(APP2, SYN, 90_000, 0)), "it opens");
    assert!(say(1, tcp(USER, SYN.with(ACK), 1000, 1001)) && say(1, tcp(APP2, ACK, 1001, 1001)));
    assert!(!say(2, tcp(APP2, SYN, 90_000, 0)), "it is open");
    assert!(say(1, tcp(USER, FIN, 1001, 1001)) && say(1, tcp(APP2, FIN, 1001, 1002)));
    assert!(!say(2, tcp(APP2, SYN, 90_000, 0)), "the last acknowledgement is missing");
    assert!(say(1, tcp(USER, ACK, 1002, 1002)));
    assert!(!say(2, tcp(APP2, SYN, 900, 0)), "a late one of the first connection");
    assert!(say(2, tcp(APP2, SYN, 90_000, 0)), "a new connection");
    assert!(!say(3, tcp(APP2, SYN, 190_000, 0)), "it opens");
    assert!(say(2, tcp(USER, RST.with(ACK), 0, 90_001)));
    assert!(say(3, tcp(APP2, SYN, 190_000, 0)), "it was refused");
    assert!(say(3, tcp(USER, SYN.with(ACK), 1000, 190_001)) && say(3, tcp(APP2, ACK, 190_001, 1001)));
    assert!(!say(4, tcp(APP2, SYN, 290_000, 0)), "it is open");
    assert!(say(3, tcp(APP2, RST, 190_001, 0)));
    assert!(say(4, tcp(APP2, SYN, 290_000, 0)), "it was reset");
}

#[test]
fn a_port_is_used_anew_when_linux_does() {
    in_a_namespace("compare_ports");
}
