//! One pod's flood of new flows, and what it leaves to the others.
//!
//! Work is counted, not timed: a decision is as much as [`DECISION`] frames that the cache answers, as callgrind counts
//! instructions. One test has real clocks and is run by `scripts/test --long`.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

// Beside this file it would be a test binary of its own.
#[path = "floods/elsewhere.rs"]
mod elsewhere;

use common::*;
use flatnet_engine::clock::timestamp_counter;
use flatnet_engine::control::EngineConfig;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::random::Random;
use std::net::Ipv4Addr;

/// What a decision takes, in frames that the cache answers.
const DECISION: u64 = 40;
/// What a pod that owes much may send at once.
const SMALL_BATCH: usize = 16;
/// Flows that are known before the flood.
const ESTABLISHED: u16 = 64;
/// Where a flood goes to, if not to the neighbour itself.
const ELSEWHERE: [(&str, Ipv4Addr, u16); 2] = [("bridge", APP2, 9), ("service", VIP, 80)];

/// A pod that floods its neighbour, or a Service with only that one behind it, and the neighbour, which answers nothing and
/// sends frames of flows that are long known.
struct Flooded {
    lab: Lab,
    known: Vec<Vec<u8>>,
    /// First frames of flows that are not known yet, and how many of them were sent.
    new: Vec<Vec<u8>>,
    next: usize,
    random: Random,
    /// Frames of the flood that found no room in the pod's ring.
    refused: u64,
}

impl Flooded {
    fn new(to: Ipv4Addr, port: u16) -> Self {
        Self::with(to, port, EngineConfig::default())
    }

    fn with(to: Ipv4Addr, port: u16, config: EngineConfig) -> Self {
        let config = EngineConfig { workers: 1, small_buffers: 8192, large_buffers: 2, ..config };
        let mut lab = Lab::build(&config);
        lab.set_backends(vec![on("node-1", APP2, 1)]);
        let known: Vec<_> =
            (0..ESTABLISHED).map(|flow| lab.udp(APP2, APP1, (flow + 1, 7), b"known")).collect();
        for _ in 0..2 {
            lab.send_all(APP2, &known);
        }
        lab.take(APP1);
        let new = (1..=u16::MAX).map(|flow| lab.udp(APP1, to, (flow, port), b"new")).collect();
        Self { lab, known, new, next: 0, random: Random::new(7), refused: 0 }
    }

    /// Fills a pod's ring as far as it goes; returns how many frames found no room. Nobody's has none.
    fn offer(&mut self, from: Option<Ipv4Addr>, frames: &[Vec<u8>]) -> u64 {
        let Lab { control, machines, .. } = &mut self.lab;
        let mut refused = 0;
        for bytes in frames {
            let mut frame = control.pool.allocate(bytes.len()).unwrap();
            control.arena().open(&mut frame).bytes_mut().copy_from_slice(bytes);
            let ring = from.map(|from| &mut machines.get_mut(&from).unwrap().peer.to_node);
            let pushed = match ring {
                Some(ring) => ring.push(frame),
                None => Err(frame),
            };
            if let Err(frame) = pushed {
                control.pool.free(frame);
                refused += 1;
            }
        }
        refused
    }

    fn offer_known(&mut self) {
        let mut known = std::mem::take(&mut self.known);
        // In another order each time: no processor learns what comes next.
        for last in (1..known.len()).rev() {
            known.swap(last, self.random.below(last + 1));
        }
        assert_eq!(self.offer(Some(APP2), &known), 0, "the worker keeps up with the known flows");
        self.known = known;
    }

    fn offer_new(&mut self, from: Option<Ipv4Addr>) {
        let new = std::mem::take(&mut self.new);
        self.refused += self.offer(from, &new[self.next..self.next + 64]);
        self.next = (self.next + 64) % (new.len() / 64 * 64);
        self.new = new;
    }

    fn batch(&mut self) {
        self.lab.workers[0].run_batch(self.lab.now);
    }

    /// Has a frame of each known flow forwarded, while the flood goes on; returns how many frames of it were forwarded, too.
    fn exchange(&mut self) -> u64 {
        self.offer_known();
        self.offer_new(Some(APP1));
        let (mut known, mut new) = (0, 0);
        while known < u64::from(ESTABLISHED) {
            self.batch();
            let (some, others) = self.take();
            assert!(some > 0, "no batch without known frames, as long as there are any");
            (known, new) = (known + some, new + others);
        }
        assert_eq!(known, u64::from(ESTABLISHED), "not one is lost");
        new
    }

    /// Takes what arrived: frames of the known flows, and of the flood.
    fn take(&mut self) -> (u64, u64) {
        let Lab { control, machines, .. } = &mut self.lab;
        let [known, new] = [APP1, APP2].map(|at| {
            let from_node = &mut machines.get_mut(&at).unwrap().peer.from_node;
            from_node.pop(usize::MAX, |frame| control.pool.free(frame)) as u64
        });
        control.collect_buffers();
        (known, new)
    }

    fn decisions(&self) -> u64 {
        self.lab.workers[0].decisions()
    }
}

/// The worker has time to spare, which the flood gets: fifteen times as many new flows as the cache has slots.
#[test]
fn a_flood_that_fills_the_cache_takes_no_known_flow_out_of_it() {
    const SLOTS: usize = 4096;
    for (name, to, port) in ELSEWHERE {
        let config =
            EngineConfig { cache_slots: SLOTS, client_bindings: u32::MAX, ..EngineConfig::default() };
        let mut flooded = Flooded::with(to, port, config);
        let mut new = 0;
        while new < 15 * SLOTS as u64 {
            new += flooded.exchange();
            for _ in 0..4 {
                flooded.offer_new(Some(APP1));
                flooded.batch();
                new += flooded.take().1;
            }
        }
        // What is left of the flood first.
        while new > 0 {
            flooded.batch();
            new = flooded.take().1;
        }
        let before = flooded.decisions();
        flooded.offer_known();
        flooded.batch();
        assert_eq!(flooded.take().0, u64::from(ESTABLISHED));
        let decided = flooded.decisions() - before;
        assert!(decided <= 1, "{name}: {decided} of {ESTABLISHED} known flows are no longer known");
        flooded.lab.check();
    }
}

#[test]
fn known_flows_keep_their_rate_while_another_pod_floods() {
    for (name, to, port) in ELSEWHERE {
        let mut flooded = Flooded::new(to, port);
        let before = flooded.decisions();
        let new = (0..5_000).map(|_| flooded.exchange()).sum::<u64>();
        let known = 5_000 * u64::from(ESTABLISHED);
        let work = known + (flooded.decisions() - before) * DECISION;
        let kept = known * 1000 / work;
        assert!(kept >= 950, "{name}: {kept} per thousand of the work is for the known flows");
        assert!(new > 64, "{name}: the flood is slow, not shut out: {new} frames");
        assert!(flooded.refused > 0, "{name}: what is too much is refused at the pod that sends it");
        flooded.lab.check();
    }
}

#[test]
fn a_flood_has_what_the_others_leave() {
    let mut flooded = Flooded::new(APP2, 9);
    // Nobody else sends: nothing waits for long.
    for _ in 0..100 {
        flooded.offer_new(Some(APP1));
        flooded.lab.run();
        assert_eq!(flooded.take(), (0, 64));
    }
    // Others send less than the worker can do.
    for _ in 0..100 {
        flooded.offer_known();
        flooded.offer_new(Some(APP1));
        flooded.lab.run();
        assert_eq!(flooded.take(), (u64::from(ESTABLISHED), 64));
    }
    flooded.lab.check();
}

#[test]
fn known_flows_have_their_rate_again_after_all_had_to_be_decided_anew() {
    let mut flooded = Flooded::new(APP2, 9);
    for _ in 0..500 {
        flooded.exchange();
    }
    flooded.lab.control.tables.publish(|tables| tables.touch_all());
    for _ in 0..100 {
        flooded.exchange();
    }
    let before = flooded.decisions();
    for _ in 0..2_000 {
        flooded.exchange();
    }
    let known = 2_000 * u64::from(ESTABLISHED);
    let work = known + (flooded.decisions() - before) * DECISION;
    assert!(known * 1000 / work >= 950, "{known} of {work}");
    flooded.lab.check();
}

/// A decision that a change of the tables has outdated costs its visit to the slow path, and is nobody's flood.
#[test]
fn flows_that_are_decided_anew_after_a_change_are_no_debt() {
    let mut flooded = Flooded::new(APP2, 9);
    let established: Vec<_> = flooded.new[..1024].to_vec();
    for part in established.chunks(64).chain(established.chunks(64)) {
        assert_eq!(flooded.offer(Some(APP1), part), 0);
        flooded.lab.run();
        flooded.take();
    }
    // That they were new once is paid for.
    for _ in 0..4_000 {
        flooded.offer_known();
        flooded.lab.run();
        flooded.take();
    }
    flooded.lab.control.tables.publish(|tables| tables.touch_all());
    let mut forwarded = 0;
    for part in established.chunks(64) {
        flooded.offer_known();
        assert_eq!(flooded.offer(Some(APP1), part), 0, "its ring is empty again each time");
        for _ in 0..4 {
            flooded.batch();
            forwarded += flooded.take().1;
        }
    }
    assert_eq!(forwarded, 1024);
    flooded.lab.check();
}

/// A flow that was known before a change, and is refused since, is forgiven one decision: the next of its frames are a flood's.
#[test]
fn flows_that_are_refused_after_a_change_are_a_flood() {
    let mut flooded = Flooded::new(APP3, 9);
    let established: Vec<_> = flooded.new[..1024].to_vec();
    // The way there first.
    flooded.lab.send(APP1, &established[0]);
    for part in established.chunks(64).chain(established.chunks(64)) {
        assert_eq!(flooded.offer(Some(APP1), part), 0);
        flooded.lab.run();
        flooded.lab.take(APP3);
    }
    // That they were new once is paid for.
    for _ in 0..4_000 {
        flooded.offer_known();
        flooded.lab.run();
        flooded.take();
    }
    flooded.lab.control.tables.publish(|tables| tables.set_lease(prefix("10.1.20.0/24"), None));
    let mut rounds = |rounds: usize| {
        let before = flooded.decisions();
        for part in established.chunks(64).cycle().take(rounds) {
            flooded.offer_known();
            flooded.offer(Some(APP1), part);
            let mut known = 0;
            while known < u64::from(ESTABLISHED) {
                flooded.batch();
                known += flooded.take().0;
            }
        }
        flooded.decisions() - before
    };
    let forgiven = rounds(32);
    assert!(forgiven >= 1024, "{forgiven}");
    let (known, work) = (3_000 * u64::from(ESTABLISHED), rounds(3_000) * DECISION);
    assert!(known * 1000 / (known + work) >= 950, "{known} of {work}");
    assert!(flooded.lab.drops(DropReason::NoLease) > 64);
    flooded.lab.check();
}

/// What comes in by an interface or a switch is from many, and waits for nobody (ADR 25).
#[test]
fn new_flows_from_outside_are_no_ports_debt() {
    let mut flooded = Flooded::new(APP2, 9);
    let known = u64::from(ESTABLISHED);
    // The switch knows the way to the node, and the node to the pod.
    let from_user = |flow| {
        let packet = udp_packet(USER, APP1, (flow, 9), b"new", 64);
        ethernet(mac(NODE1), mac(USER), &packet)
    };
    flooded.lab.send(USER, &from_user(1));
    flooded.lab.take(APP1);
    // That the known flows were new once is paid for.
    for _ in 0..6_000 {
        flooded.offer_known();
        flooded.lab.run();
        flooded.take();
    }
    let before = flooded.decisions();
    for round in 0..50u16 {
        let new: Vec<_> = (0..64).map(|flow| from_user(2 + 64 * round + flow)).collect();
        assert_eq!(flooded.offer(Some(USER), &new), 0);
        // Four batches bring it through the switch and the node, while known flows never stop.
        let mut arrived = 0;
        for _ in 0..4 {
            flooded.offer_known();
            flooded.batch();
            arrived += flooded.take().0;
        }
        assert_eq!(arrived, 64 + 4 * known, "round {round}");
    }
    assert!(flooded.decisions() - before >= 50 * 64, "each was decided");
    flooded.lab.check();
}

/// RFC 6888, REQ-4.
#[test]
fn a_pod_at_its_quota_leaves_other_pods_new_flows_alone() {
    let config = EngineConfig { client_bindings: 100, small_buffers: 2048, ..EngineConfig::default() };
    let mut lab = Lab::build(&config);
    lab.set_backends(vec![on("node-1", APP2, 1)]);
    let flows =
        |lab: &Lab, from| (1..=300).map(|flow| lab.udp(from, VIP, (flow, 80), b"new")).collect::<Vec<_>>();
    let (flood, others) = (flows(&lab, APP1), flows(&lab, BACKEND));
    lab.send_all(APP1, &flood);
    assert_eq!((lab.take(APP2).len(), lab.drops(DropReason::BindingQuota)), (100, 200));
    // The nodes hear of each other with the first.
    lab.send_all(BACKEND, &others[..1]);
    lab.settle(USER);
    lab.send_all(BACKEND, &others[1..100]);
    assert_eq!((lab.take(APP2).len(), lab.drops(DropReason::BindingQuota)), (100, 200));
    lab.check();
}

#[test]
#[ignore = "scripts/test --long runs it optimised, with real clocks"]
fn known_flows_keep_their_rate_by_the_clock() {
    for (name, to, port) in ELSEWHERE {
        let mut flooded = Flooded::new(to, port);
        // What it took to know the flows is forgotten.
        for _ in 0..2_000 {
            flooded.exchange();
        }
        let mut clocks = |flooding: bool| -> u64 {
            let mut spent = 0;
            for _ in 0..400 {
                // Made in any case: what that leaves in the processor's caches is alike.
                flooded.offer_new(flooding.then_some(APP1));
                (0..4).for_each(|_| flooded.offer_known());
                let start = timestamp_counter();
                (0..4).for_each(|_| flooded.batch());
                spent += timestamp_counter() - start;
                assert_eq!(flooded.take().0, 4 * u64::from(ESTABLISHED));
            }
            flooded.lab.run();
            flooded.take();
            spent
        };
        // One beside the other, because what else the machine does changes; and each first in its turn.
        let mut kept: Vec<_> = (0..100)
            .map(|pair| {
                let times = [pair % 2 == 0, pair % 2 == 1].map(|flooding| clocks(flooding) as f64);
                times[1 - pair % 2] / times[pair % 2]
            })
            .collect();
        kept.sort_unstable_by(f64::total_cmp);
        let kept = kept[kept.len() / 2];
        println!("{name}: {:.1} per cent of their rate during a flood", kept * 100.0);
        assert!(kept >= 0.95, "{name}: {kept}");
    }
}
