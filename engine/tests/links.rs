//! What a link does to frames, measured: every chance within its interval, every time to the nanosecond, in virtual
//! time; and what becomes of damaged frames in a network.
//!
//! A measured share must lie within 3.29 standard deviations of the setting: 99.9 % of all seeds do.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::clock::Instant;
use flatnet_engine::frame::{Arena, Pool};
use flatnet_engine::ledger::{DropReason, Term};
use flatnet_engine::link::Direction;
use flatnet_engine::link::impairment::{Impairment, LinkCounts, QueueLimit};
use flatnet_engine::link::wire::{CABLE_LIMIT, Wire};
use flatnet_engine::pod::{ContainerConfig, Image, Pod, PodConfig, PodDrop};
use flatnet_engine::random::Random;
use flatnet_engine::tables::{Guard, PortId};
use flatnet_engine::wire::MacAddress;
use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

const FRAMES: u64 = 100_000;
const SEEDS: [u64; 2] = [1, 20];
/// The quantile of the normal distribution that leaves 0.1 % outside.
const QUANTILE: f64 = 3.29;
/// Both Ethernet header and packet of the frames here.
const LENGTH: usize = 114;

/// A cable by itself, and a clock.
struct Bench {
    arena: Arc<Arena>,
    pool: Pool,
    wire: Wire,
    now: Instant,
    refused: Vec<DropReason>,
}

impl Bench {
    fn new(seed: u64, impairment: Impairment) -> Self {
        let (arena, mut pools) = Arena::new(1, 1 << 15, 0).unwrap();
        let mut wire = Wire::new(Random::new(seed));
        wire.impair(None, impairment);
        Self { arena, pool: pools.remove(0), wire, now: Instant::ZERO, refused: Vec::new() }
    }

    /// Sends a frame of zeros that begins with its number; returns what is there at once.
    fn send(&mut self, number: u64, length: usize) -> Option<(Instant, Vec<u8>)> {
        let mut frame = self.pool.allocate(length).unwrap();
        let mut open = self.arena.open(&mut frame);
        open.bytes_mut().fill(0);
        open.bytes_mut()[..8].copy_from_slice(&number.to_be_bytes());
        match self.wire.send(frame, PortId(0), self.now, &mut self.pool) {
            Ok(sent) => sent.arrived.map(|frame| self.open(frame)),
            Err((frame, reason)) => {
                self.refused.push(reason);
                self.pool.free(frame);
                None
            }
        }
    }

    fn open(&mut self, frame: flatnet_engine::frame::Frame) -> (Instant, Vec<u8>) {
        let bytes = self.arena.bytes(&frame).to_vec();
        self.pool.free(frame);
        (self.now, bytes)
    }

    /// Lets time pass; returns what arrives, each with its time.
    fn pass(&mut self, duration: Duration) -> Vec<(Instant, Vec<u8>)> {
        let end = self.now + duration;
        let mut arrived = Vec::new();
        while let Some(next) = self.wire.next_arrival().filter(|&next| next <= end) {
            self.now = next.max(self.now);
            while let Some(frame) = self.wire.arrival(self.now) {
                arrived.push(self.open(frame));
            }
        }
        self.now = end;
        arrived
    }

    /// Sends all frames, `gap` apart, and returns all that arrive.
    fn run(&mut self, frames: u64, gap: Duration) -> Vec<(Instant, Vec<u8>)> {
        let mut arrived = Vec::new();
        for number in 0..frames {
            arrived.extend(self.send(number, LENGTH));
            arrived.extend(self.pass(gap));
        }
        arrived.extend(self.pass(Duration::from_secs(3600)));
        assert_eq!(self.pool.outstanding(), 0);
        arrived
    }
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}

fn milliseconds(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A measured share of frames is what was set.
fn check_share(what: &str, seed: u64, set: u32, hits: u64, of: u64) {
    let share = f64::from(set) / 1e6;
    let deviation = (of as f64 * share * (1.0 - share)).sqrt();
    let distance = (hits as f64 - of as f64 * share).abs();
    assert!(distance <= QUANTILE * deviation, "{what} {share}, seed {seed}: {hits} of {of}");
}

#[test]
fn shares_are_what_was_set() {
    for seed in SEEDS {
        for share in [100, 1_000, 50_000, 500_000, 1_000_000] {
            let usual = Impairment { delay: milliseconds(1), ..Impairment::default() };
            let run = |impairment| {
                let mut bench = Bench::new(seed, impairment);
                let arrived = bench.run(FRAMES, Duration::from_micros(10));
                (arrived, bench.wire.counts(None), bench.refused.len() as u64)
            };
            let (arrived, counts, refused) = run(Impairment { loss: share, ..usual });
            check_share("loss", seed, share, counts.lost, FRAMES);
            assert_eq!((refused, arrived.len() as u64), (counts.lost, FRAMES - counts.lost));
            let (arrived, counts, _) = run(Impairment { duplicate: share, ..usual });
            check_share("duplicate", seed, share, counts.duplicated, FRAMES);
            assert_eq!(arrived.len() as u64, FRAMES + counts.duplicated);
            let (arrived, counts, _) = run(Impairment { reorder: share, ..usual });
            check_share("reorder", seed, share, counts.reordered, FRAMES);
            assert_eq!(arrived.len() as u64, FRAMES);
            let (arrived, counts, _) = run(Impairment { corrupt: share, ..usual });
            check_share("corrupt", seed, share, counts.corrupted, FRAMES);
            let damaged = (0..).zip(&arrived).filter(|(sent, (_, bytes))| {
                number(bytes) != *sent || bytes[8..].iter().any(|&byte| byte != 0)
            });
            assert_eq!(damaged.count() as u64, counts.corrupted);
        }
    }
}

#[test]
fn losses_are_independent_of_each_other() {
    let share = 200_000;
    for seed in SEEDS {
        let mut bench = Bench::new(seed, Impairment { loss: share, ..Impairment::default() });
        let arrived: BTreeSet<u64> =
            bench.run(FRAMES, Duration::ZERO).iter().map(|(_, bytes)| number(bytes)).collect();
        let lost = (0..FRAMES - 1).filter(|number| !arrived.contains(number));
        let (mut all, mut followed) = (0, 0);
        for number in lost {
            all += 1;
            followed += u64::from(!arrived.contains(&(number + 1)));
        }
        check_share("loss after loss", seed, share, followed, all);
    }
}

/// One bit is turned over, anywhere in the frame with the same chance: Pearson's chi-squared over its bytes.
#[test]
fn corruption_hits_one_bit_anywhere_in_the_frame() {
    for seed in SEEDS {
        let mut bench = Bench::new(seed, Impairment { corrupt: 1_000_000, ..Impairment::default() });
        let mut hits = [0_u64; LENGTH];
        for (sent, (_, bytes)) in (0_u64..).zip(bench.run(FRAMES, Duration::ZERO)) {
            let mut expected = vec![0; LENGTH];
            expected[..8].copy_from_slice(&sent.to_be_bytes());
            let different: Vec<(usize, u8)> =
                (0..).zip(bytes.iter().zip(&expected).map(|(a, b)| a ^ b)).filter(|hit| hit.1 != 0).collect();
            assert!(
                matches!(different[..], [(_, bits)] if bits.count_ones() == 1),
                "seed {seed}: {different:?}"
            );
            hits[different[0].0] += 1;
        }
        let expected = FRAMES as f64 / LENGTH as f64;
        let chi: f64 = hits.iter().map(|&hit| (hit as f64 - expected).powi(2) / expected).sum();
        // 113 degrees of freedom: 99.9 % lie below 165.
        assert!(chi < 165.0, "seed {seed}: {chi}: {hits:?}");
    }
}

/// The delays of frames so far apart that none waits for the one before: evenly spread over delay ± jitter.
#[test]
fn jitter_spreads_delays_evenly_around_their_mean() {
    let (delay, jitter, gap) = (milliseconds(10), milliseconds(3), milliseconds(7));
    for seed in SEEDS {
        let mut bench = Bench::new(seed, Impairment { delay, jitter, ..Impairment::default() });
        let arrived = bench.run(FRAMES, gap);
        let delays = arrived.iter().map(|(time, bytes)| {
            (*time).saturating_duration_since(Instant::ZERO + gap * number(bytes) as u32).as_nanos() as f64
        });
        let delays: Vec<f64> = delays.collect();
        let least = delays.iter().copied().fold(f64::MAX, f64::min);
        let most = delays.iter().copied().fold(0.0, f64::max);
        let mean = delays.iter().sum::<f64>() / FRAMES as f64;
        let deviation = 2.0 * 3e6 / 12_f64.sqrt();
        assert!((mean - 10e6).abs() <= QUANTILE * deviation / (FRAMES as f64).sqrt(), "seed {seed}: {mean}");
        // The 100,000 draws come within a thousandth of either end in all but e^-100 of all seeds.
        assert!(
            (7e6..7.006e6).contains(&least) && (12.994e6..=13e6).contains(&most),
            "seed {seed}: {least} {most}"
        );
        let below = delays.iter().filter(|&&delay| delay < 8.5e6).count() as u64;
        check_share("delays in the lowest quarter", seed, 250_000, below, FRAMES);
    }
}

#[test]
fn jitter_alone_lets_nobody_overtake() {
    let impairment =
        Impairment { delay: milliseconds(10), jitter: milliseconds(10), ..Impairment::default() };
    for seed in SEEDS {
        let mut bench = Bench::new(seed, impairment);
        let arrived = bench.run(FRAMES, Duration::from_micros(100));
        assert!(arrived.iter().map(|(_, bytes)| number(bytes)).eq(0..FRAMES), "seed {seed}");
    }
}

#[test]
fn a_reordered_frame_overtakes_all_that_are_on_their_way() {
    let impairment = Impairment { delay: milliseconds(10), reorder: 10_000, ..Impairment::default() };
    let mut bench = Bench::new(7, impairment);
    let arrived = bench.run(FRAMES, milliseconds(1));
    let mut early = 0;
    for (time, bytes) in &arrived {
        let sent = Instant::ZERO + milliseconds(number(bytes));
        match time.saturating_duration_since(sent).as_millis() {
            0 => early += 1,
            other => assert_eq!(other, 10),
        }
    }
    assert_eq!(early, bench.wire.counts(None).reordered);
    let overtaken = arrived.windows(2).filter(|pair| number(&pair[0].1) > number(&pair[1].1)).count();
    assert!(overtaken as u64 > early * 9 / 10, "{overtaken} of {early}");
}

/// Twice what the link takes is offered: at any time as many bits have come through as the rate allows, but for a frame.
#[test]
fn a_rate_is_kept_to_within_a_frame() {
    let (rate, queue) = (10_000_000_u64, Some(QueueLimit::Frames(50)));
    let impairment = Impairment { rate: NonZeroU64::new(rate), queue, ..Impairment::default() };
    let mut bench = Bench::new(1, impairment);
    let gap = Duration::from_nanos(LENGTH as u64 * 8 * 1_000_000_000 / rate / 2);
    let arrived = bench.run(FRAMES, gap);
    let frame = LENGTH as u64 * 8;
    for (count, (time, _)) in (1_u64..).zip(&arrived) {
        let allowed = u128::from(time.as_nanos()) * u128::from(rate) / 1_000_000_000;
        let bits = u128::from(count * frame);
        assert!(bits <= allowed + 1 && bits + u128::from(frame) > allowed, "{bits} at {time:?}");
    }
    let LinkCounts { frames, queue_full, .. } = bench.wire.counts(None);
    assert_eq!((frames, queue_full + arrived.len() as u64), (FRAMES, FRAMES));
    assert!(bench.refused.iter().all(|&reason| reason == DropReason::LinkQueueFull));
    // What had left before the last frame was offered, and a full queue.
    assert_eq!(arrived.len() as u64, FRAMES / 2 - 1 + 50);
}

/// A cable of which nothing comes off holds so many frames and no more, whatever its delay.
#[test]
fn a_cable_holds_a_bounded_number_of_frames() {
    let mut bench = Bench::new(1, Impairment { delay: Duration::from_secs(60), ..Impairment::default() });
    for number in 0..CABLE_LIMIT as u64 + 2 {
        bench.send(number, LENGTH);
    }
    assert_eq!(bench.refused, [DropReason::LinkQueueFull; 2]);
    assert_eq!(bench.wire.counts(None).queue_full, 2);
    assert_eq!(bench.pass(Duration::from_secs(60)).len(), CABLE_LIMIT);
    bench.send(0, LENGTH);
    assert_eq!((bench.refused.len(), bench.pass(Duration::from_secs(60)).len()), (2, 1));
}

#[test]
fn the_same_seed_does_the_same_again() {
    let all = Impairment {
        delay: milliseconds(5),
        jitter: milliseconds(2),
        loss: 50_000,
        duplicate: 50_000,
        reorder: 50_000,
        corrupt: 50_000,
        rate: NonZeroU64::new(1_000_000),
        ..Impairment::default()
    };
    let run = |seed| Bench::new(seed, all).run(5_000, Duration::from_micros(800));
    assert!(run(3) == run(3) && run(3) != run(4));
}

/// Everything of a damaged tunnel datagram is under some checksum or address; what is not, is not the pod's.
#[test]
fn a_damaged_frame_between_nodes_is_dropped_by_name_or_does_no_harm() {
    let mut lab = Lab::new(1);
    let warm = lab.udp(APP2, BACKEND, (1000, 7), b"warm");
    lab.send(APP2, &warm);
    lab.settle(BACKEND);
    let (_, node2) = lab.wires[1];
    lab.workers[0].impair(
        node2,
        Direction::OutFrom(lab.wires[0].1),
        Impairment { corrupt: 1_000_000, ..Impairment::default() },
    );
    let sent = lab.udp(APP2, BACKEND, (1000, 7), &[0x55; 64]);
    let mut unharmed = 0;
    for _ in 0..5_000 {
        lab.send(APP2, &sent);
        for bytes in lab.take(BACKEND) {
            assert_eq!(bytes[34..], sent[34..], "what the pod gets is what was sent");
            unharmed += 1;
        }
        for other in [APP1, APP3, USER, INTERNET] {
            lab.take(other);
        }
    }
    let drops = DropReason::ALL.iter().map(|&reason| (reason.name(), lab.drops(reason)));
    let drops: Vec<_> = drops.filter(|&(_, count)| count > 0).collect();
    let count = |name| drops.iter().find(|drop| drop.0 == name).map_or(0, |drop| drop.1);
    for reason in ["tunnel-checksum", "ipv4-checksum", "not-for-us", "multicast-source", "unhandled-protocol"]
    {
        assert!(count(reason) > 0, "{reason}: {drops:?}");
    }
    // Only the outer source MAC (47 of its bits) is nobody's to check: 4.3 % of a frame of 134 bytes.
    let lost: u64 = drops.iter().map(|drop| drop.1).sum();
    assert!((150..300).contains(&unharmed) && lost + unharmed >= 5_000, "{unharmed}, {drops:?}");
    lab.check();
}

#[test]
fn a_node_answers_no_damaged_packet() {
    let mut lab = Lab::new(1);
    let request = |lab: &mut Lab| {
        let packet = echo_packet(USER, NODE1, flatnet_engine::wire::IcmpType::EchoRequest, 1, 64);
        lab.send(USER, &ethernet(mac(NODE1), mac(USER), &packet));
        lab.settle(USER).len()
    };
    assert_eq!(request(&mut lab), 1);
    let (_, node1) = lab.wires[0];
    let damaging = Impairment { corrupt: 1_000_000, ..Impairment::default() };
    lab.workers[0].impair(node1, Direction::Out, damaging);
    for _ in 0..2_000 {
        request(&mut lab);
    }
    assert!(lab.drops(DropReason::TransportChecksum) > 0 && lab.drops(DropReason::Ipv4Checksum) > 0);
    lab.check();
}

#[test]
fn copies_are_on_the_ledger_of_the_node_that_sends_them() {
    let mut lab = Lab::new(1);
    let warm = lab.udp(APP2, BACKEND, (1000, 7), b"warm");
    lab.send(APP2, &warm);
    lab.settle(BACKEND);
    let (near, _) = lab.wires[0];
    lab.workers[0].impair(
        near,
        Direction::Out,
        Impairment { duplicate: 1_000_000, delay: milliseconds(1), ..Impairment::default() },
    );
    let before = lab.ledger(lab.node1);
    lab.send(APP2, &warm);
    lab.pass(milliseconds(1));
    let gained = |term| lab.ledger(lab.node1).term(term) - before.term(term);
    assert_eq!([gained(Term::Received), gained(Term::Copied), gained(Term::Sent)], [1, 1, 2]);
    assert_eq!(lab.settle(BACKEND).len(), 2);
    lab.check();
}

/// A pod that echoes, and a node's bridge with it.
fn lab_with_echo(address: std::net::Ipv4Addr) -> (Lab, PortId) {
    let mut lab = Lab::new(1);
    let config = PodConfig { address, mac: mac(address), ..PodConfig::default() };
    let mut pod = Pod::new(config);
    let image = Image::find("flatnet/echo").unwrap();
    pod.start_container(ContainerConfig {
        name: "echo".into(),
        image,
        ports: Vec::new(),
        args: Vec::new(),
        mounts: Vec::new(),
    })
    .unwrap();
    let guard = Guard { mac: mac(address), address, vip: None };
    let port = lab.control.attach_pod(lab.node1, "echo", Some(guard), 0, pod).unwrap();
    lab.run();
    (lab, port)
}

#[test]
fn a_pods_link_is_impaired_in_each_direction_by_itself() {
    let address = std::net::Ipv4Addr::new(10, 1, 15, 9);
    let ask = ethernet(mac(address), mac(APP2), &udp_packet(APP2, address, (1000, 7), b"ping", 64));
    for (direction, expected) in [(Direction::Out, 30), (Direction::In, 50)] {
        let (mut lab, port) = lab_with_echo(address);
        lab.send(APP2, &ask);
        // The pod asks for the MAC of who asked it.
        assert_eq!(lab.receive(APP2).len() + lab.receive(APP2).len(), 1, "a perfect link takes no time");
        let delay = milliseconds(expected);
        assert!(lab.workers[0].impair(port, direction, Impairment { delay, ..Impairment::default() }));
        lab.send(APP2, &ask);
        lab.pass(delay - Duration::from_nanos(1));
        assert_eq!(lab.receive(APP2).len(), 0);
        lab.pass(Duration::from_nanos(1));
        assert_eq!(lab.receive(APP2).len(), 1, "{direction:?}");
        assert!(lab.workers[0].impair(port, direction, Impairment { down: true, ..Impairment::default() }));
        lab.send(APP2, &ask);
        assert_eq!((lab.receive(APP2).len(), lab.drops(DropReason::LinkDown)), (0, 1));
        assert_eq!(lab.workers[0].link_counts(port, direction).refused, 1);
        assert!(lab.workers[0].impair(port, direction, Impairment::default()));
        lab.send(APP2, &ask);
        assert_eq!(lab.receive(APP2).len(), 1, "up again");
        lab.check();
    }
}

#[test]
fn a_pod_counts_what_reaches_it_damaged() {
    let address = std::net::Ipv4Addr::new(10, 1, 15, 9);
    let (mut lab, port) = lab_with_echo(address);
    let ask = ethernet(mac(address), mac(APP2), &udp_packet(APP2, address, (1000, 7), &[0x55; 64], 64));
    lab.workers[0].impair(port, Direction::Out, Impairment { corrupt: 1_000_000, ..Impairment::default() });
    for _ in 0..3_000 {
        lab.send(APP2, &ask);
        for answer in lab.receive(APP2) {
            assert_eq!(answer[42..], ask[42..], "the Ethernet header was hit where nobody looks");
        }
    }
    let drops = lab.workers[0].with_pod(port, |pod, _| pod.drops().clone()).unwrap();
    for reason in [PodDrop::BadChecksum, PodDrop::NotForUs, PodDrop::UnknownProtocol] {
        assert!(drops.get(reason) > 0, "{reason:?}: {drops:?}");
    }
    // 92 of 106 bytes lie behind the Ethernet header.
    assert!(drops.get(PodDrop::BadChecksum) + drops.get(PodDrop::Malformed) > 2_400, "{drops:?}");
    lab.check();
}

#[test]
fn what_is_on_a_pods_cable_at_the_end_is_found() {
    let address = std::net::Ipv4Addr::new(10, 1, 15, 9);
    let (mut lab, port) = lab_with_echo(address);
    for direction in [Direction::Out, Direction::In] {
        let slow = Impairment { delay: milliseconds(20), ..Impairment::default() };
        lab.workers[0].impair(port, direction, slow);
    }
    let ask = ethernet(mac(address), mac(APP2), &udp_packet(APP2, address, (1000, 7), b"ping", 64));
    lab.send(APP2, &ask);
    lab.pass(milliseconds(20));
    lab.send(APP2, &ask);
    let buffers = lab.finish();
    assert_eq!(buffers.held, 2, "one on its way in, the pod's own question on its way out");
}

/// Frames in buffers of the control side, `gap` apart.
fn recording(
    lab: &mut Lab,
    frames: &[Vec<u8>],
    gap: Duration,
) -> Vec<(Duration, flatnet_engine::frame::Frame)> {
    let fill = |(number, bytes): (u32, &Vec<u8>)| {
        let mut frame = lab.control.pool.allocate(bytes.len()).unwrap();
        lab.control.arena().open(&mut frame).bytes_mut().copy_from_slice(bytes);
        (gap * number, frame)
    };
    (0..).zip(frames).map(fill).collect()
}

#[test]
fn a_recording_goes_by_the_pods_own_cable_at_its_own_times() {
    let address = std::net::Ipv4Addr::new(10, 1, 15, 9);
    let (mut lab, port) = lab_with_echo(address);
    let frames: Vec<Vec<u8>> = (1..=3)
        .map(|id| ethernet(mac(APP2), mac(address), &udp_packet(address, APP2, (id, 9), &[7; 20], 64)))
        .collect();
    for (delay, first) in [(0, 0), (5, 5)] {
        let delay = milliseconds(delay);
        lab.workers[0].impair(port, Direction::In, Impairment { delay, ..Impairment::default() });
        let recorded = recording(&mut lab, &frames, milliseconds(10));
        lab.run();
        assert!(lab.workers[0].start_replay(1, port));
        lab.workers[0].feed_replay(1, recorded);
        let mut arrived = Vec::new();
        for millisecond in 0..=30_u64 {
            lab.run();
            arrived.extend(lab.take(APP2).into_iter().map(|bytes| (millisecond, bytes)));
            lab.pass(milliseconds(1));
        }
        let expected =
            (0..).zip(&frames).map(|(number, frame): (u64, _)| (first + 10 * number, frame.clone()));
        assert_eq!(arrived, expected.collect::<Vec<_>>());
        assert_eq!(lab.workers[0].replay_state(1).unwrap().sent, 3);
        lab.workers[0].end_replay(1);
    }
    assert!(!lab.workers[0].start_replay(2, PortId(9_999)), "there is no such port");
    lab.check();
}

#[test]
fn a_recording_that_ends_early_leaves_no_buffer_behind() {
    let mut lab = Lab::new(1);
    let frames = vec![ethernet(MacAddress::BROADCAST, mac(NODE1), &[0; 46]); 3];
    let (near, _) = lab.wires[0];
    for number in 1..=2 {
        let recorded = recording(&mut lab, &frames, Duration::from_secs(1));
        assert!(lab.workers[0].start_replay(number, near));
        assert!(lab.workers[0].feed_replay(number, recorded).is_some());
    }
    lab.run();
    assert_eq!(lab.ledger(lab.switch).term(Term::Received), 2, "an interface's frames come in at the switch");
    lab.workers[0].end_replay(1);
    let late = recording(&mut lab, &frames, Duration::ZERO);
    assert_eq!(lab.workers[0].feed_replay(1, late), None, "it has ended");
    lab.run();
    assert_eq!(lab.take(USER).len(), 2);
    assert_eq!(lab.finish().held, 2, "the other one still waits");
}
