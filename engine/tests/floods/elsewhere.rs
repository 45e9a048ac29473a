//! What a pod's flood takes of another worker or node, or has a server answer, and what that leaves to known flows there.

use crate::common::*;
use crate::{DECISION, ESTABLISHED, SMALL_BATCH};
use flatnet_engine::control::EngineConfig;
use flatnet_engine::wire::TcpFlags;
use std::net::Ipv4Addr;

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
