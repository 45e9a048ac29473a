//! Any frames at any ports of the tour's network, whatever its Service's policy and forwarding and its links' settings, with time
//! between them: nothing panics, every ledger balances, every buffer is found.
#![no_main]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

use common::{APP1, APP2, APP3, BACKEND, INTERNET, Lab, NODE1, NODE2, USER, on, prefix};
use flatnet_engine::binding::Profile;
use flatnet_engine::control::EngineConfig;
use flatnet_engine::link::Direction;
use flatnet_engine::link::impairment::{Impairment, QueueLimit};
use flatnet_proxy::{Backend, Forwarding, Scheduler, TrafficPolicy};
use libfuzzer_sys::fuzz_target;
use std::net::Ipv4Addr;
use std::num::NonZeroU64;
use std::time::Duration;

/// Pods that have the VIP on their `lo`, on node-1 and on node-2.
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 5);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 1, 20, 5);
const MACHINES: [Ipv4Addr; 8] = [APP1, APP2, APP3, BACKEND, USER, INTERNET, NEAR, FAR];

fuzz_target!(|data: &[u8]| {
    let Some((&kind, mut rest)) = data.split_first() else { return };
    let profile = if kind & 1 == 0 { Profile::Linux } else { Profile::Rfc };
    let config = EngineConfig {
        workers: 1 + kind / 2 % 3,
        small_buffers: 512,
        large_buffers: 1,
        cache_slots: 64,
        bindings: 64,
        client_bindings: 16,
        ..EngineConfig::default()
    };
    let mut lab = Lab::build_with(&config, profile);
    let machines = prepare(&mut lab, kind / 6);
    // Each frame: who sends it, how long it is, its bytes; what would be nobody's lets time pass or changes a link.
    for _ in 0..64 {
        let [from, high, low, tail @ ..] = rest else { break };
        if from % 16 == 15 {
            change(&mut lab, *high, *low);
            rest = tail;
            continue;
        }
        let length = usize::from(u16::from_be_bytes([*high, *low])) % 1900;
        let (frame, after) = tail.split_at(length.min(tail.len()));
        rest = after;
        match machines.get(usize::from(from % 8)).filter(|_| from % 16 != 7) {
            Some(&at) => lab.send(at, frame),
            None => lab.pass(Duration::from_millis(length as u64 * 100)),
        }
        for &at in machines {
            lab.receive(at);
        }
    }
    // What is on a slow link is a buffer that no node holds; what arrives may ask, and the answer sets out on such a link again.
    for _ in 0..4 {
        lab.pass(Duration::from_secs(60));
        for &at in machines {
            lab.receive(at);
        }
    }
    lab.pass(Duration::from_secs(60));
    lab.check();
});

/// Sets the Service up in one of eight ways, the first as everywhere else, and says who is there.
fn prepare(lab: &mut Lab, kind: u8) -> &'static [Ipv4Addr] {
    let backends = |weights: [u16; 3], terminating: bool| {
        let on_nodes = [on("node-1", APP1, 1), on("node-1", APP2, 2), on("node-2", APP3, 3)];
        let made = on_nodes.into_iter().zip(weights);
        made.map(|(backend, weight)| Backend { weight, terminating: terminating && weight > 1, ..backend })
            .collect::<Vec<_>>()
            .into()
    };
    let local = TrafficPolicy::Local;
    let schedulers = Scheduler::ALL;
    match kind % 8 {
        0 => {}
        1 => lab.serve(|service| {
            service.affinity = Some(Duration::from_secs(20));
            service.backends = backends([1, 2, 1], true);
        }),
        2 => lab.serve(|service| {
            (service.external, service.internal) = (local, local);
            service.backends = backends([1, 1, 1], false);
        }),
        3 => lab.serve(|service| {
            service.scheduler = schedulers[usize::from(kind / 8) % schedulers.len()];
            service.backends = backends([3, 0, 1], false);
        }),
        4 => lab.serve(|service| service.backends = backends([2, 2, 2], true)),
        forwarding => {
            let (near, far) = (Ipv4Addr::new(10, 1, 15, 1), Ipv4Addr::new(10, 1, 20, 1));
            lab.server(lab.node1, NEAR, near, 0);
            lab.server(lab.node2, FAR, far, 0);
            if forwarding == 7 {
                let isp = lab.isp;
                lab.control.serve_on(isp).unwrap();
                lab.control.set_route(isp, prefix("10.1.15.0/24"), Some(NODE1)).unwrap();
                lab.control.set_route(isp, prefix("10.1.20.0/24"), Some(NODE2)).unwrap();
            }
            let direct = if forwarding == 5 { Forwarding::DirectRouting } else { Forwarding::Tunnel };
            lab.serve(|service| {
                service.forwarding = direct;
                service.backends = [on("node-1", NEAR, 8), on("node-2", FAR, 9)].into();
            });
            return &MACHINES;
        }
    }
    &MACHINES[..6]
}

/// Has the end of a link fare otherwise from now on.
fn change(lab: &mut Lab, which: u8, how: u8) {
    let (one, other) = lab.wires[usize::from(which) / 2 % lab.wires.len()];
    let port = if which.is_multiple_of(2) { one } else { other };
    let share = u32::from(which) * 4_000;
    let delay = Duration::from_millis(u64::from(which));
    let perfect = Impairment::default();
    let impairment = match how % 9 {
        0 => perfect,
        1 => Impairment { delay, jitter: delay, reorder: share, ..perfect },
        2 => Impairment { loss: share, ..perfect },
        3 => Impairment { duplicate: share, ..perfect },
        4 => Impairment { corrupt: share, ..perfect },
        5 => Impairment { rate: NonZeroU64::new(8_000), queue: Some(QueueLimit::Frames(3)), ..perfect },
        6 => Impairment { rate: NonZeroU64::new(80_000), queue: Some(QueueLimit::Bytes(2_000)), ..perfect },
        7 => Impairment { mtu: Some(96 + 5 * u16::from(which)), ..perfect },
        _ => Impairment { down: true, ..perfect },
    };
    for worker in &mut lab.workers {
        worker.impair(port, Direction::Out, impairment);
    }
}
