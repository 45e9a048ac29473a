//! One pod's flood of new flows, and what it leaves to the others.
//!
//! Work is counted, not timed: a decision is as much as [`DECISION`] frames that the cache answers, as callgrind counts
//! instructions. One test has real clocks and is run by `scripts/test --long`.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::clock::timestamp_counter;
use flatnet_engine::control::EngineConfig;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::random::Random;
use flatnet_engine::wire::TcpFlags;
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

const OTHER: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 9);

/// Two workers: the first has a pod that floods, and time to spare; the second two pods with known flows, as many as it can do.
struct Apart {
    lab: Lab,
    known: Vec<Vec<u8>>,
    arrived: usize,
}

impl Apart {
    fn new() -> Self {
        let config =
            EngineConfig { workers: 2, small_buffers: 16_384, large_buffers: 2, ..EngineConfig::default() };
        let mut lab = Lab::build(&config);
        lab.pod(lab.node1, "other", OTHER, Ipv4Addr::new(10, 1, 15, 1), 1);
        let known: Vec<_> =
            (0..ESTABLISHED).map(|flow| lab.udp(APP2, OTHER, (flow + 1, 7), b"known")).collect();
        (0..2).for_each(|_| lab.send_all(APP2, &known));
        lab.take(OTHER);
        Self { lab, known, arrived: 0 }
    }

    /// Pushes what finds room in the flooding pod's ring, and has its worker run as often as `batches` says, then the other once;
    /// returns how many frames found room.
    fn flood(&mut self, frames: &mut dyn Iterator<Item = Vec<u8>>, batches: usize) -> usize {
        let (now, lab) = (self.lab.now, &mut self.lab);
        let mut offered = 0;
        for _ in 0..batches {
            lab.control.collect_buffers();
            offered += offer(lab, APP1, frames.take(64));
            lab.workers[0].run_batch(now);
            lab.take(APP1);
        }
        lab.workers[1].run_batch(now);
        self.arrived += lab.take(OTHER).iter().filter(|frame| frame.ends_with(b"known")).count();
        offered
    }

    /// So many rounds of the known flows beside a flood; returns how many per thousand of the second worker's work they were, and
    /// how many frames of the flood were taken.
    fn rounds(&mut self, rounds: usize, frames: &mut dyn Iterator<Item = Vec<u8>>) -> (u64, usize) {
        let before = self.lab.workers[1].decisions();
        let mut taken = 0;
        for _ in 0..rounds {
            self.lab.control.collect_buffers();
            self.known.iter().for_each(|bytes| self.lab.push(APP2, bytes));
            self.arrived = 0;
            while self.arrived < self.known.len() {
                taken += self.flood(frames, 4);
            }
            assert_eq!(self.arrived, self.known.len(), "not one is lost");
        }
        let decisions = self.lab.workers[1].decisions() - before;
        let known = (rounds * self.known.len()) as u64;
        (known * 1000 / (known + decisions * DECISION), taken)
    }
}

/// What another worker looks after costs that worker a decision each, whatever becomes of it: the pod waits for its known flows
/// there, too, and nothing is dropped.
#[test]
fn what_needs_another_workers_decisions_takes_no_more_than_its_share() {
    let packet = |payload: &[u8], flow: u16| {
        ethernet(mac(OTHER), mac(APP1), &udp_packet(APP1, OTHER, (flow, 9), payload, 64))
    };
    // Ports of the node's own address that are the second worker's, and nobody's.
    let refused = |flow: u16| {
        let packet = udp_packet(APP1, NODE1, (flow, 0x0500 + flow % 64), b"new", 64);
        ethernet(mac(Ipv4Addr::new(10, 1, 15, 1)), mac(APP1), &packet)
    };
    let opens = |flow: u16| {
        let packet = tcp_packet(APP1, OTHER, (flow, 9), TcpFlags::SYN);
        ethernet(mac(OTHER), mac(APP1), &packet)
    };
    let forwarded = |flow: u16| packet(b"new", flow);
    for (name, frame) in
        [("refused", &refused as &dyn Fn(u16) -> Vec<u8>), ("forwarded", &forwarded), ("opens", &opens)]
    {
        let mut apart = Apart::new();
        let mut flows = (1..=u16::MAX).cycle().map(frame);
        let (kept, taken) = apart.rounds(5_000, &mut flows);
        println!("{name}: {kept} per thousand, {taken} frames of the flood");
        assert!(kept >= 950, "{name}: {kept} per thousand of the work is for the known flows");
        assert!(taken > 500, "{name}: the flood is slow, not shut out: {taken} frames");
        // Nobody else sends: it has what the worker can do.
        let before = apart.lab.workers[1].decisions();
        let taken: usize = (0..500).map(|_| apart.flood(&mut flows, 4)).sum();
        assert!(taken >= 500 * SMALL_BATCH / 2, "{name}: {taken}");
        apart.lab.run();
        let decided = apart.lab.workers[1].decisions() - before;
        assert!(decided >= taken as u64, "{name}: {decided} of {taken} were decided");
        apart.lab.take(OTHER);
        apart.lab.take(APP1);
        apart.lab.check();
    }
}

/// The pod need not ask for ever.
#[test]
fn a_flood_at_another_worker_is_forgotten_when_it_ends() {
    let mut apart = Apart::new();
    let forwarded =
        |flow: u16| ethernet(mac(OTHER), mac(APP1), &udp_packet(APP1, OTHER, (flow, 9), b"new", 64));
    apart.rounds(200, &mut (1..=u16::MAX).map(forwarded));
    // What waits in its ring first.
    apart.lab.run();
    apart.lab.take(OTHER);
    apart.rounds(4_000, &mut std::iter::empty());
    // As many at once as a batch takes.
    let taken = apart.flood(&mut (1..=64).map(|flow| forwarded(40_000 + flow)), 1);
    apart.lab.run();
    assert_eq!((taken, apart.lab.take(OTHER).len()), (64, 64));
    apart.lab.check();
}

/// A pod that floods another node's pod has to pay for what its flows take there and on the way, whoever's worker that is.
#[test]
fn a_flood_of_another_nodes_pod_takes_no_more_than_its_share() {
    for workers in [1, 2] {
        let config =
            EngineConfig { workers, small_buffers: 16_384, large_buffers: 2, ..EngineConfig::default() };
        let mut lab = Lab::build(&config);
        let last = usize::from(workers - 1);
        lab.pod(lab.node1, "other", OTHER, Ipv4Addr::new(10, 1, 15, 1), workers - 1);
        let known: Vec<_> =
            (0..ESTABLISHED).map(|flow| lab.udp(APP2, OTHER, (flow + 1, 7), b"known")).collect();
        let mut new =
            (1..=u16::MAX).map(|flow| lab.udp(APP1, BACKEND, (flow, 9), b"new")).collect::<Vec<_>>();
        // The way there first.
        lab.send_all(APP2, &known);
        lab.send_all(APP1, &new.split_off(u16::MAX as usize - 2));
        let rounds = |lab: &mut Lab, rounds: usize, new: &mut dyn Iterator<Item = &Vec<u8>>| {
            let (now, before) = (lab.now, lab.workers[last].decisions());
            for _ in 0..rounds {
                lab.control.collect_buffers();
                known.iter().for_each(|bytes| lab.push(APP2, bytes));
                let mut arrived = 0;
                while arrived < known.len() {
                    offer(lab, APP1, new.take(16));
                    for worker in &mut lab.workers {
                        worker.run_batch(now);
                    }
                    arrived += lab.take(OTHER).len();
                    lab.take(BACKEND);
                }
            }
            lab.workers[last].decisions() - before
        };
        // That the known flows were new once is paid for.
        rounds(&mut lab, 6_000, &mut std::iter::empty());
        let work = rounds(&mut lab, 4_000, &mut new.iter().cycle()) * DECISION;
        let known = 4_000 * u64::from(ESTABLISHED);
        assert!(known * 1000 / (known + work) >= 950, "{workers} workers: {known} beside {work}");
        assert!(work > 64 * DECISION, "the flood is slow, not shut out");
        lab.run();
        lab.take(BACKEND);
        lab.check();
    }
}

/// Pushes as many frames into a pod's ring as find room; returns how many.
fn offer(lab: &mut Lab, from: Ipv4Addr, frames: impl IntoIterator<Item = impl AsRef<[u8]>>) -> usize {
    let mut offered = 0;
    for bytes in frames {
        let bytes = bytes.as_ref();
        let mut frame = lab.control.pool.allocate(bytes.len()).unwrap();
        lab.control.arena().open(&mut frame).bytes_mut().copy_from_slice(bytes);
        match lab.machines.get_mut(&from).unwrap().peer.to_node.push(frame) {
            Ok(()) => offered += 1,
            Err(frame) => {
                lab.control.pool.free(frame);
                break;
            }
        }
    }
    offered
}

/// Who asks pays for the answer: whoever is flooded, and answers, has its known flows as before.
#[test]
fn a_server_that_answers_a_flood_keeps_its_known_flows() {
    const FILLER: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 10);
    let docker0 = Ipv4Addr::new(10, 1, 15, 1);
    for (workers, count, is_tcp) in [(1, 1, false), (1, 8, true), (2, 1, true), (2, 8, false)] {
        let name = format!("{workers} workers, {count} flood, tcp {is_tcp}");
        let config =
            EngineConfig { workers, small_buffers: 32_768, large_buffers: 2, ..EngineConfig::default() };
        let mut lab = Lab::build(&config);
        // The server is APP2, at the last worker, which another pod fills.
        for (at, name) in [(FILLER, "filler"), (OTHER, "other")] {
            lab.pod(lab.node1, name, at, docker0, workers - 1);
        }
        let floods: Vec<_> = (0..count).map(|number| Ipv4Addr::new(10, 1, 15, 20 + number)).collect();
        floods.iter().for_each(|&at| lab.pod(lab.node1, &format!("pod-{at}"), at, docker0, 0));
        let flows = |lab: &Lab, from, count: u16| {
            (0..count).map(|flow| lab.udp(from, OTHER, (flow + 1, 7), b"known")).collect::<Vec<_>>()
        };
        let (known, filler) = (flows(&lab, APP2, 32), flows(&lab, FILLER, 64));
        for _ in 0..2 {
            lab.send_all(APP2, &known);
            lab.send_all(FILLER, &filler);
            lab.take(OTHER);
        }
        let (now, mut arrived, mut asked, mut answered) = (lab.now, 0, 0, 0);
        for round in 0..4_000u16 {
            lab.control.collect_buffers();
            offer(&mut lab, FILLER, &filler);
            assert_eq!(offer(&mut lab, APP2, &known), known.len(), "{name}, round {round}");
            for &from in &floods {
                let new: Vec<_> = (0..16u16)
                    .map(|number| {
                        let ports = (1 + number + 16 * (round % 4_000), 5000);
                        match is_tcp {
                            true => lab.tcp(from, APP2, ports, TcpFlags::SYN),
                            false => lab.udp(from, APP2, ports, b"new"),
                        }
                    })
                    .collect();
                offer(&mut lab, from, &new);
            }
            for worker in &mut lab.workers {
                worker.run_batch(now);
            }
            let answers: Vec<_> = lab.take(APP2).iter().map(|frame| answer(&lab, frame, is_tcp)).collect();
            asked += answers.len();
            assert_eq!(offer(&mut lab, APP2, &answers), answers.len(), "{name}, round {round}");
            let known_ones = lab.take(OTHER);
            arrived += known_ones.iter().filter(|frame| frame[26..30] == APP2.octets()).count();
            answered += floods.iter().map(|&at| lab.take(at).len()).sum::<usize>();
        }
        lab.run();
        let rest = lab.take(OTHER);
        arrived += rest.iter().filter(|frame| frame[26..30] == APP2.octets()).count();
        assert_eq!(arrived, 4_000 * known.len(), "{name}");
        assert!(
            asked > 64 * usize::from(count) && answered > asked * 9 / 10,
            "{name}: {answered} of {asked}"
        );
    }
}

/// A server's answer to a flow's first frame.
fn answer(lab: &Lab, frame: &[u8], is_tcp: bool) -> Vec<u8> {
    let to = Ipv4Addr::new(frame[26], frame[27], frame[28], frame[29]);
    let ports = [34, 36].map(|at| u16::from_be_bytes([frame[at], frame[at + 1]]));
    match is_tcp {
        true => lab.tcp(APP2, to, (ports[1], ports[0]), TcpFlags::SYN.with(TcpFlags::ACK)),
        false => lab.udp(APP2, to, (ports[1], ports[0]), b"answer"),
    }
}

/// Nobody waits for a worker that has nothing to do: what a port owes it is forgiven.
#[test]
fn what_an_idle_worker_is_owed_holds_nobody_up() {
    let mut apart = Apart::new();
    let lab = &mut apart.lab;
    // Flows of the second worker's pod to one of the first's, which does nothing else.
    for part in 0..10u16 {
        let new: Vec<_> =
            (0..64).map(|flow| lab.udp(APP2, APP1, (64 * part + flow + 1, 9), b"new")).collect();
        lab.send_all(APP2, &new);
        assert_eq!(lab.take(APP1).len(), 64);
    }
    // What they owe their own worker is paid for by another's frames.
    let others: Vec<_> = (0..64).map(|flow| lab.udp(OTHER, APP2, (flow + 1, 7), b"known")).collect();
    for _ in 0..8_000 {
        lab.send_all(OTHER, &others);
        lab.take(APP2);
    }
    // It asks once more.
    for asks in [true, false] {
        apart.known.iter().for_each(|bytes| apart.lab.push(APP2, bytes));
        apart.lab.workers[1].run_batch(apart.lab.now);
        assert_eq!(apart.lab.take(OTHER).len(), if asks { 0 } else { apart.known.len() });
        apart.lab.run();
        apart.lab.take(OTHER);
    }
    apart.lab.check();
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
