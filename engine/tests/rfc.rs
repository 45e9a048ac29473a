//! Profile `rfc`: how RFC 4787, 5382 and 5508 ask a NAT to behave, with one worker and with several.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::binding::Profile;
use flatnet_engine::control::EngineConfig;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::wire::{IcmpPacket, IcmpType, IpProtocol, Ipv4Packet, TcpFlags};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

fn lab(workers: u8) -> Lab {
    let config = EngineConfig {
        workers,
        small_buffers: 4096,
        large_buffers: 2,
        client_bindings: u32::MAX,
        ..EngineConfig::default()
    };
    let mut lab = Lab::build_with(&config, Profile::Rfc);
    // Everybody gets to know everybody, so that no frame of a test waits for ARP.
    for pod in [APP1, APP2] {
        for host in [INTERNET, USER] {
            let frame = lab.udp(pod, host, (9, 9), b"");
            lab.send(pod, &frame);
            lab.settle(host);
        }
    }
    lab.pass(Duration::from_secs(301));
    lab
}

/// Takes what is for a machine itself: a switch floods what is for a station it does not know.
fn arrived(lab: &mut Lab, at: Ipv4Addr) -> Vec<Vec<u8>> {
    let mut frames = lab.take(at);
    frames.retain(|frame| frame[..6] == mac(at).octets());
    frames
}

/// Sends a datagram from a pod's port and returns the outside port it was seen with.
fn ask(lab: &mut Lab, pod: Ipv4Addr, host: Ipv4Addr, ports_used: (u16, u16)) -> u16 {
    let frame = lab.udp(pod, host, ports_used, b"ask");
    lab.send(pod, &frame);
    let seen = arrived(lab, host);
    assert_eq!(seen.len(), 1, "{pod} asks {host}");
    let (source, _, _, payload) = packet(&seen[0]);
    assert_eq!((source, ports(&payload).1), (NODE1, ports_used.1));
    ports(&payload).0
}

/// Sends a datagram to a port of the node and returns the pod's port at which it arrives.
fn call(lab: &mut Lab, host: Ipv4Addr, from: u16, port: u16, pod: Ipv4Addr) -> Option<u16> {
    let frame = lab.udp(host, NODE1, (from, port), b"call");
    lab.send(host, &frame);
    lab.take(host);
    let seen = arrived(lab, pod);
    seen.first().map(|frame| {
        let (source, _, _, payload) = packet(frame);
        assert_eq!((source, ports(&payload).0), (host, from));
        ports(&payload).1
    })
}

/// RFC 4787, REQ-1; RFC 5382, REQ-1; RFC 5508, REQ-1.
#[test]
fn an_inside_endpoint_has_one_outside_endpoint_towards_all() {
    for workers in [1, 2, 3] {
        let mut lab = lab(workers);
        let first = ask(&mut lab, APP2, INTERNET, (5000, 53));
        assert_eq!(ask(&mut lab, APP2, INTERNET, (5000, 54)), first);
        assert_eq!(ask(&mut lab, APP2, USER, (5000, 53)), first);
        for host in [INTERNET, USER] {
            for (to, kind) in [(80, TcpFlags::SYN), (81, TcpFlags::SYN)] {
                let syn = lab.tcp(APP2, host, (6000, to), kind);
                lab.send(APP2, &syn);
            }
        }
        let seen: Vec<_> = [INTERNET, USER].iter().flat_map(|&host| arrived(&mut lab, host)).collect();
        let outside: BTreeSet<u16> = seen.iter().map(|frame| ports(&packet(frame).3).0).collect();
        assert_eq!((seen.len(), outside.len()), (4, 1), "TCP");
        let mut identifiers = BTreeSet::new();
        for host in [INTERNET, USER] {
            let echo = lab.echo(APP2, host, 64);
            lab.send(APP2, &echo);
            let seen = arrived(&mut lab, host);
            identifiers.insert(IcmpPacket::new_unchecked(&packet(&seen[0]).3[..]).identifier());
        }
        assert_eq!(identifiers.len(), 1, "ICMP queries");
        lab.check();
    }
}

/// RFC 4787, REQ-3: a port is never overloaded.
#[test]
fn two_inside_endpoints_never_share_a_port_though_their_remotes_differ() {
    let mut lab = lab(1);
    let first = ask(&mut lab, APP1, INTERNET, (5000, 53));
    let second = ask(&mut lab, APP2, USER, (5000, 53));
    assert_eq!(first, 5000, "preserved where it is free");
    assert_ne!(first, second);
    lab.check();
}

/// RFC 4787, REQ-4.
#[test]
fn a_port_keeps_its_parity() {
    let mut lab = lab(2);
    for port in 4000..4100 {
        for pod in [APP1, APP2] {
            assert_eq!(ask(&mut lab, pod, INTERNET, (port, 53)) % 2, port % 2);
        }
    }
    lab.check();
}

/// RFC 4787, REQ-8; RFC 5508, REQ-3.
#[test]
fn who_was_asked_may_answer_from_any_port_and_nobody_else() {
    for workers in [1, 2, 3] {
        let mut lab = lab(workers);
        let port = ask(&mut lab, APP2, INTERNET, (5000, 53));
        assert_eq!(call(&mut lab, INTERNET, 53, port, APP2), Some(5000));
        assert_eq!(
            call(&mut lab, INTERNET, 4444, port, APP2),
            Some(5000),
            "another port of the same machine"
        );
        let filtered = lab.drops(DropReason::NatFiltered);
        assert_eq!(call(&mut lab, USER, 53, port, APP2), None, "another machine");
        assert_eq!(lab.drops(DropReason::NatFiltered) - filtered, 1);
        assert_eq!(ask(&mut lab, APP2, USER, (5000, 7)), port);
        assert_eq!(call(&mut lab, USER, 53, port, APP2), Some(5000), "now it has been asked");
        // The pod's answer to what came from another port leaves by the same outside port.
        assert_eq!(ask(&mut lab, APP2, INTERNET, (5000, 4444)), port);
        lab.check();
    }
}

/// RFC 4787, REQ-5 and REQ-6: five minutes, refreshed from inside.
#[test]
fn a_mapping_lives_five_minutes_after_the_last_packet() {
    let mut lab = lab(2);
    let port = ask(&mut lab, APP2, INTERNET, (5000, 53));
    for _ in 0..3 {
        lab.pass(Duration::from_secs(299));
        assert_eq!(ask(&mut lab, APP2, INTERNET, (5000, 53)), port);
    }
    lab.pass(Duration::from_secs(299));
    assert_eq!(call(&mut lab, INTERNET, 53, port, APP2), Some(5000));
    lab.pass(Duration::from_secs(301));
    assert_eq!(call(&mut lab, INTERNET, 53, port, APP2), None);
    lab.check();
}

/// RFC 5382, REQ-2 and REQ-4: both ends send SYN; and what comes before the pod has asked is dropped in silence.
#[test]
fn a_simultaneous_open_passes_and_an_unsolicited_syn_gets_no_answer() {
    for workers in [1, 2] {
        let mut lab = lab(workers);
        let syn = lab.tcp(APP2, USER, (6000, 80), TcpFlags::SYN);
        lab.send(APP2, &syn);
        let seen = arrived(&mut lab, USER);
        let port = ports(&packet(&seen[0]).3).0;
        let unsolicited = lab.tcp(INTERNET, NODE1, (80, port), TcpFlags::SYN);
        lab.send(INTERNET, &unsolicited);
        assert_eq!((arrived(&mut lab, INTERNET), arrived(&mut lab, APP2)), (vec![], vec![]), "silence");
        for (flags, from_user) in [
            (TcpFlags::SYN, true),
            (TcpFlags::SYN.with(TcpFlags::ACK), false),
            (TcpFlags::SYN.with(TcpFlags::ACK), true),
            (TcpFlags::ACK, false),
        ] {
            let (from, to) = if from_user { (USER, APP2) } else { (APP2, USER) };
            let frame = if from_user {
                ethernet(mac(NODE1), mac(USER), &tcp_packet(USER, NODE1, (80, port), flags))
            } else {
                lab.tcp(APP2, USER, (6000, 80), flags)
            };
            lab.send(from, &frame);
            assert_eq!(arrived(&mut lab, to).len(), 1, "{flags} from {from}");
        }
        lab.check();
    }
}

/// RFC 7857, 2.2; RFC 5961, 3: whom a pod asked may call it from another port, but a reset there is of no connection.
#[test]
fn a_reset_from_a_port_that_was_not_asked_is_filtered() {
    for workers in [1, 2, 3] {
        let mut lab = lab(workers);
        let syn = lab.tcp(APP2, USER, (6000, 80), TcpFlags::SYN);
        lab.send(APP2, &syn);
        let port = ports(&packet(&arrived(&mut lab, USER)[0]).3).0;
        for (flags, from, passes) in [
            (TcpFlags::RST, 81, false),
            (TcpFlags::RST.with(TcpFlags::ACK), 82, false),
            (TcpFlags::SYN, 83, true),
        ] {
            let frame = ethernet(mac(NODE1), mac(USER), &tcp_packet(USER, NODE1, (from, port), flags));
            lab.send(USER, &frame);
            assert_eq!(arrived(&mut lab, APP2).len(), usize::from(passes), "{flags} from {from}");
        }
        assert_eq!(lab.drops(DropReason::NatFiltered), 2);
        let held: usize = lab.workers.iter().map(|worker| worker.bindings().iter(lab.node1).count()).sum();
        assert_eq!(held, 2, "the asked and the called");
        lab.check();
    }
}

/// RFC 4787, REQ-9; RFC 5382, REQ-8: source and destination are outside endpoints, whoever's workers they are.
#[test]
fn two_pods_behind_one_node_meet_by_their_outside_endpoints() {
    for workers in [1, 2, 3] {
        let mut lab = lab(workers);
        let first = ask(&mut lab, APP1, INTERNET, (5000, 53));
        let second = ask(&mut lab, APP2, INTERNET, (5000, 53));
        let mut hairpin = |from: Ipv4Addr, port: u16, to: Ipv4Addr| {
            let frame = lab.udp(from, NODE1, (5000, port), b"hairpin");
            lab.send(from, &frame);
            assert_eq!(arrived(&mut lab, from), Vec::<Vec<u8>>::new());
            let seen = arrived(&mut lab, to);
            seen.first().map(|frame| {
                let (source, at, ttl, payload) = packet(frame);
                assert_eq!((source, at, ttl), (NODE1, to, 63), "one router on the way");
                ports(&payload)
            })
        };
        assert_eq!(hairpin(APP2, first, APP1), None, "the first has not asked anybody there");
        assert_eq!(hairpin(APP1, second, APP2), Some((first, 5000)), "the second has");
        for _ in 0..3 {
            assert_eq!(hairpin(APP2, first, APP1), Some((second, 5000)));
            assert_eq!(hairpin(APP1, second, APP2), Some((first, 5000)));
        }
        lab.check();
    }
}

/// RFC 5508, REQ-7; RFC 792: an error about a packet that went the hairpin way goes it back, with what it quotes.
#[test]
fn an_error_about_a_hairpinned_packet_comes_back_the_same_way() {
    for workers in [1, 2, 3] {
        let mut lab = lab(workers);
        let endpoints = [APP1, APP2].map(|pod| (pod, ask(&mut lab, pod, INTERNET, (5000, 53))));
        let [(_, first), (_, second)] = endpoints;
        // The second has asked the first, which may answer.
        let frame = lab.udp(APP2, NODE1, (5000, first), b"open");
        lab.send(APP2, &frame);
        arrived(&mut lab, APP1);
        for length in [7, 600] {
            let question = lab.udp(APP1, NODE1, (5000, second), &vec![7; length]);
            lab.send(APP1, &question);
            let seen = arrived(&mut lab, APP2);
            assert_eq!(seen.len(), 1);
            let about = &seen[0][14..];
            let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
            message.extend(&about[..about.len().min(548)]);
            IcmpPacket::new_unchecked(&mut message[..]).fill_checksum();
            let error = ipv4_packet(APP2, NODE1, IpProtocol::Icmp, 64, &message);
            lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), &error));
            let told = arrived(&mut lab, APP1);
            assert_eq!(told.len(), 1, "{length} bytes with {workers} workers");
            let (from, to, ttl, error) = packet(&told[0]);
            assert_eq!((from, to, ttl), (NODE1, APP1, 63));
            assert_eq!(error[..2], [3, 3]);
            let quoted = Ipv4Packet::new_quoted(&error[8..]).unwrap();
            assert!(quoted.verify_header_checksum());
            assert_eq!((quoted.source(), quoted.destination()), (APP1, NODE1));
            assert_eq!(error[28..], question[34..][..error.len() - 28], "as it was sent, checksum and all");
        }
        assert_eq!(lab.drops(DropReason::IcmpErrorUnmatched), 0);
        lab.check();
    }
}

/// All ports of a node go to one pod's endpoints, whatever worker they belong to, and its answers find it.
#[test]
fn a_worker_is_granted_ports_towards_all_remotes() {
    let mut lab = lab(3);
    let all = 65_536 - 1024 - 2768 - 1;
    let mut seen = BTreeSet::new();
    for some in (0..all as u16).collect::<Vec<_>>().chunks(512) {
        let frames: Vec<_> = some.iter().map(|&port| lab.udp(APP2, INTERNET, (port, 53), b"")).collect();
        lab.send_all(APP2, &frames);
        seen.extend(arrived(&mut lab, INTERNET).iter().map(|frame| ports(&packet(frame).3).0));
    }
    assert_eq!((seen.len(), lab.drops(DropReason::TuplesExhausted)), (all, 0));
    for &port in seen.iter().step_by(4999) {
        assert!(call(&mut lab, INTERNET, 53, port, APP2).is_some(), "answer to {port}");
        assert!(call(&mut lab, INTERNET, 54, port, APP2).is_some(), "call to {port}");
    }
    let frame = lab.udp(APP2, USER, (65_000, 53), b"");
    lab.send(APP2, &frame);
    assert_eq!((arrived(&mut lab, USER).len(), lab.drops(DropReason::TuplesExhausted)), (0, 1));
    lab.pass(Duration::from_secs(301));
    for _ in 0..all / 16 {
        lab.run();
    }
    assert_eq!(lab.workers.iter().map(|worker| worker.bindings().len()).sum::<usize>(), 0);
    let echo = lab.echo(APP2, INTERNET, 64);
    lab.send(APP2, &echo);
    assert_eq!(arrived(&mut lab, INTERNET).len(), 1, "{:?}", IcmpType::EchoRequest);
    lab.check();
}
