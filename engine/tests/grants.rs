//! What workers do for each other's bindings: ports granted, answers passed on to who holds the binding.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::binding::Profile;
use flatnet_engine::control::EngineConfig;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::masquerade::{is_usable, owner};
use flatnet_engine::random::Random;
use flatnet_engine::wire::TcpFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

const WORKERS: u8 = 3;
const PORTS_OF_A_NODE: usize = 65_536 - 1024 - 2768 - 1;

fn lab_with(profile: Profile) -> Lab {
    let config = EngineConfig {
        workers: WORKERS,
        small_buffers: 4096,
        large_buffers: 2,
        client_bindings: u32::MAX,
        ..EngineConfig::default()
    };
    Lab::build_with(&config, profile)
}

fn lab() -> Lab {
    lab_with(Profile::Linux)
}

/// Has a pod ask the internet from each of its ports in a range; returns which port the node chose for each.
fn ask(lab: &mut Lab, own: std::ops::Range<u32>) -> BTreeMap<u16, u16> {
    let mut chosen = BTreeMap::new();
    let all: Vec<u32> = own.collect();
    for some in all.chunks(512) {
        let frames: Vec<_> = some
            .iter()
            .map(|&port| lab.udp(APP2, INTERNET, (port as u16, 53), &port.to_be_bytes()))
            .collect();
        lab.send_all(APP2, &frames);
        for frame in lab.take(INTERNET) {
            if arp_request(&frame).is_some() {
                continue;
            }
            let (source, _, _, payload) = packet(&frame);
            assert_eq!((source, ports(&payload).1), (NODE1, 53));
            let own = u32::from_be_bytes([payload[8], payload[9], payload[10], payload[11]]);
            assert!(chosen.insert(own as u16, ports(&payload).0).is_none(), "{own} went out twice");
        }
    }
    chosen
}

/// Sends one answer to a port of the node's, and tells at which of its own ports the pod sees it.
fn answer(lab: &mut Lab, port: u16) -> Option<u16> {
    let frame = lab.udp(INTERNET, NODE1, (53, port), b"answer");
    lab.send(INTERNET, &frame);
    let seen = lab.take(APP2);
    seen.first().map(|frame| ports(&packet(frame).3).1)
}

fn known(lab: &mut Lab) {
    let frame = lab.udp(APP2, INTERNET, (9, 9), b"the neighbours get to know each other");
    lab.send(APP2, &frame);
    assert_eq!(lab.settle(INTERNET).len(), 1);
    lab.pass(Duration::from_secs(31));
}

/// RFC 4787, REQ-3 leaves the choice to the NAT; that none is refused while one is free is `DESIGN.md`'s.
#[test]
fn a_worker_uses_every_port_of_its_node_and_gives_back_what_was_granted() {
    let mut lab = lab();
    known(&mut lab);
    let chosen = ask(&mut lab, 0..PORTS_OF_A_NODE as u32);
    let distinct: BTreeSet<u16> = chosen.values().copied().collect();
    assert_eq!(
        (chosen.len(), distinct.len(), lab.drops(DropReason::TuplesExhausted)),
        (PORTS_OF_A_NODE, PORTS_OF_A_NODE, 0)
    );
    assert!(distinct.iter().all(|&port| is_usable(port, 8285)));
    // Whoever's port it is, the answer comes to the flow that uses it, also by the caches.
    for (&own, &port) in chosen.iter().step_by(997) {
        for _ in 0..3 {
            assert_eq!(answer(&mut lab, port), Some(own), "by {port}");
        }
    }
    assert!(ask(&mut lab, 65_000..65_010).is_empty());
    assert_eq!(lab.drops(DropReason::TuplesExhausted), 10);
    // Unanswered UDP ends after 30 s, answered after 120: then nothing is left, at any worker.
    lab.pass(Duration::from_secs(121));
    assert_eq!(ask(&mut lab, 65_000..65_010).len(), 10);
    lab.pass(Duration::from_secs(31));
    for _ in 0..PORTS_OF_A_NODE / 16 {
        lab.run();
    }
    let left: Vec<usize> = lab.workers.iter().map(|worker| worker.bindings().len()).collect();
    assert_eq!(left, [0; WORKERS as usize]);
    lab.check();
}

/// Two frames of one flow wait for a port each, but the second then goes by the first one's binding.
#[test]
fn a_granted_port_that_is_not_needed_is_there_for_others() {
    let mut lab = lab();
    known(&mut lab);
    // Not to the last: while the second waits it has a port that nobody else can be given.
    let (twice, all) = (PORTS_OF_A_NODE as u32 - 1000, PORTS_OF_A_NODE as u32);
    let mut chosen = BTreeSet::new();
    for first in (0..twice).step_by(256) {
        let own = first..(first + 256).min(twice);
        let frames: Vec<_> = own
            .flat_map(|port| [port; 2])
            .map(|port| lab.udp(APP2, INTERNET, (port as u16, 53), b"twice"))
            .collect();
        lab.send_all(APP2, &frames);
        let out = lab.take(INTERNET).into_iter().filter(|frame| arp_request(frame).is_none());
        chosen.extend(out.map(|frame| ports(&packet(&frame).3).0));
    }
    chosen.extend(ask(&mut lab, twice..all).into_values());
    assert_eq!((chosen.len(), lab.drops(DropReason::TuplesExhausted)), (PORTS_OF_A_NODE, 0));
    lab.check();
}

/// The table is full when the port comes: nobody may hold it for a binding that there is not.
#[test]
fn a_granted_port_that_no_binding_can_use_goes_back() {
    let own_ports = |worker: u8| {
        (0..=u16::MAX).filter(|&port| is_usable(port, 8285) && owner(port, WORKERS) == worker).count()
    };
    let most = (0..WORKERS).map(own_ports).max().unwrap();
    let config = EngineConfig {
        workers: WORKERS,
        small_buffers: 4096,
        large_buffers: 2,
        client_bindings: u32::MAX,
        bindings: most + 10,
        ..EngineConfig::default()
    };
    let mut lab = Lab::build_with(&config, Profile::Linux);
    known(&mut lab);
    let chosen = ask(&mut lab, 0..most as u32 + 600);
    let holder = lab.workers.iter().position(|worker| worker.bindings().len() == most + 10).unwrap();
    let granted = chosen.values().filter(|&&port| usize::from(owner(port, WORKERS)) != holder).count();
    assert!(lab.drops(DropReason::BindingTableFull) > 100 && granted > 0);
    let others = lab.workers.iter().enumerate().filter(|(worker, _)| *worker != holder);
    let redirects: usize = others.map(|(_, worker)| worker.bindings().len()).sum();
    assert_eq!(redirects, granted);
    lab.check();
}

/// While ports are short, each frame of a new flow waits for a grant of its own; frames that come once the flow has its binding
/// do not.
#[test]
fn frames_of_a_flow_that_waits_for_a_port_stay_in_order() {
    let mut lab = lab();
    known(&mut lab);
    ask(&mut lab, 0..45_000);
    let (now, seed) = (lab.now, 5);
    let mut random = Random::new(seed);
    for flow in 0..400u16 {
        let mut sent = 0u8;
        for _ in 0..24 {
            match random.below(usize::from(WORKERS) + 1) {
                worker if worker < usize::from(WORKERS) => drop(lab.workers[worker].run_batch(now)),
                _ => {
                    sent += 1;
                    let bytes = lab.udp(APP2, INTERNET, (50_000 + flow, 53), &[sent; 4]);
                    lab.push(APP2, &bytes);
                }
            }
        }
        lab.run();
        let frames = lab.take(INTERNET);
        let seen: Vec<u8> = frames.iter().map(|frame| packet(frame).3[8]).collect();
        assert_eq!(seen, (1..=sent).collect::<Vec<_>>(), "flow {flow}, seed {seed}");
    }
    lab.check();
}

/// A machine on docker0 that is no pod of ours and not the worker's that its backend is at.
/// LVS's NAT forwarding: the answer has the VIP for its source.
#[test]
fn the_answer_to_a_client_nobody_knows_comes_from_the_vip() {
    let stranger = Ipv4Addr::new(10, 1, 15, 200);
    for worker in 0..WORKERS {
        let mut lab = lab();
        let node = lab.node1;
        lab.stranger(node, stranger, Ipv4Addr::new(10, 1, 15, 1), worker);
        let hello = lab.udp(stranger, APP1, (1, 2), b"here I am");
        lab.send(stranger, &hello);
        lab.take(APP1);
        let mut backends = BTreeSet::new();
        for port in 5000..5006 {
            let syn = lab.tcp(stranger, VIP, (port, 80), TcpFlags::SYN);
            lab.send(stranger, &syn);
            for backend in [APP1, APP2, APP3] {
                for frame in lab.receive(backend) {
                    let (from, to, _, payload) = packet(&frame);
                    assert_eq!((from, to, ports(&payload)), (stranger, backend, (port, 80)));
                    backends.insert(backend);
                    for flags in [TcpFlags::SYN.with(TcpFlags::ACK), TcpFlags::ACK, TcpFlags::ACK] {
                        let reply = lab.tcp(backend, stranger, (80, port), flags);
                        lab.send(backend, &reply);
                        // The first frame from the other node waits for ARP.
                        let mut seen = lab.receive(stranger);
                        seen.extend(lab.receive(stranger));
                        assert_eq!(seen.len(), 1, "{backend} answers the stranger of worker {worker}");
                        let (from, to, _, payload) = packet(&seen[0]);
                        assert_eq!((from, to, ports(&payload)), (VIP, stranger, (80, port)));
                    }
                }
            }
        }
        assert_eq!(backends.len(), 3, "all backends were asked");
        lab.check();
    }
}
