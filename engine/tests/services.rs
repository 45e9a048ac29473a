//! Services against a plain model: who gets a flow, and that no packet ever goes anywhere else.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::clock::Clock;
use flatnet_engine::control::EngineConfig;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::random::Random;
use flatnet_engine::wire::TcpFlags;
use flatnet_proxy::Backend;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The pods that may be backends; their clients are all pods, so each is its own client too.
const PODS: [Ipv4Addr; 4] = [APP1, APP2, APP3, BACKEND];

fn backends(which: &[usize]) -> Vec<Backend> {
    which.iter().map(|&index| Backend::new(PODS[index], 80, index as u64)).collect()
}

/// A client's side of a TCP flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Flow {
    client: Ipv4Addr,
    port: u16,
}

/// Who arrived where: a segment to port 80, its flow recognised by the client's port. Hairpins come from docker0.
fn arrivals(lab: &mut Lab) -> Vec<(usize, u16, u8)> {
    let mut seen = Vec::new();
    for (index, &pod) in PODS.iter().enumerate() {
        for frame in lab.take(pod) {
            if frame[12..14] == [8, 0] {
                let (_, _, _, payload) = packet(&frame);
                let (source, destination) = ports(&payload);
                if destination == 80 {
                    seen.push((index, source, payload.get(13).copied().unwrap_or_default()));
                }
            }
        }
    }
    seen
}

/// A backend's machine is gone, and with it its connections: who goes on with one hears that it is over, and no other
/// backend is asked about what it does not know (ip_vs(4): `sloppy_tcp` is 0).
#[test]
fn a_connection_whose_backend_is_gone_is_reset_and_led_to_nobody_else() {
    let mut lab = Lab::new(1);
    let open = lab.tcp(APP2, VIP, (40_000, 80), TcpFlags::SYN);
    lab.set_backends(backends(&[0, 3]));
    lab.send(APP2, &open);
    let (first, ..) = arrivals(&mut lab)[0];
    let gone = PODS[first];
    lab.set_backends(backends(&[3 - first]));
    for worker in &mut lab.workers {
        worker.end_bindings(|binding| binding.is_with(gone));
    }
    let data = lab.tcp(APP2, VIP, (40_000, 80), TcpFlags::ACK);
    lab.send(APP2, &data);
    let told = lab.take(APP2);
    let (from, _, _, segment) = packet(&told[0]);
    assert_eq!((from, TcpFlags::from_bits(segment[13]).rst()), (VIP, true));
    assert_eq!(arrivals(&mut lab), []);
    assert_eq!(lab.drops(DropReason::ServiceNoConnection), 1);
    lab.send(APP2, &open);
    assert_eq!(arrivals(&mut lab).len(), 1, "a new one is led to who is left");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn each_of_n_backends_gets_k_of_k_n_new_flows(
        workers in 1u8..3, count in 1usize..4, rounds in 1usize..6, protocol_is_tcp: bool, before in 0u16..5,
    ) {
        let mut lab = Lab::new(workers);
        let open = |lab: &mut Lab, port| {
            // The client is no backend: no hairpin.
            let frame = if protocol_is_tcp {
                lab.tcp(BACKEND, VIP, (port, 80), TcpFlags::SYN)
            } else {
                lab.udp(BACKEND, VIP, (port, 80), b"")
            };
            lab.send(BACKEND, &frame);
            arrivals(lab)
        };
        for port in 0..before {
            open(&mut lab, 5000 + port);
        }
        lab.set_backends(backends(&[0, 1, 2][..count]));
        let mut counts = [0; 3];
        for port in 0..count * rounds {
            for (backend, ..) in open(&mut lab, 2000 + port as u16) {
                counts[backend] += 1;
            }
        }
        let expected: [usize; 3] = std::array::from_fn(|index| if index < count { rounds } else { 0 });
        prop_assert_eq!(counts, expected);
        lab.check();
    }

    #[test]
    fn a_flow_keeps_its_backend_whatever_becomes_of_the_service(
        workers in 1u8..3,
        steps in prop::collection::vec((0u16..12, prop::option::weighted(0.2, prop::collection::btree_set(0usize..3, 0..4))), 1..80),
    ) {
        let mut lab = Lab::new(workers);
        let mut present = vec![0, 1, 2];
        let mut owners: BTreeMap<u16, usize> = BTreeMap::new();
        for (flow, change) in steps {
            if let Some(change) = change {
                present = change.into_iter().collect();
                lab.set_backends(backends(&present));
            }
            let port = 2000 + flow;
            let known = owners.get(&port).copied();
            let flags = if known.is_none() { TcpFlags::SYN } else { TcpFlags::ACK };
            let frame = lab.tcp(BACKEND, VIP, (port, 80), flags);
            lab.send(BACKEND, &frame);
            let seen = arrivals(&mut lab);
            match known {
                Some(backend) => prop_assert_eq!(seen, [(backend, port, flags.bits())]),
                None if present.is_empty() => prop_assert_eq!(seen, []),
                None => {
                    prop_assert_eq!(seen.len(), 1);
                    prop_assert!(present.contains(&seen[0].0), "a backend that was removed got a new flow");
                    owners.insert(port, seen[0].0);
                }
            }
            lab.take(BACKEND);
        }
        lab.check();
    }
}

/// Hundreds of flows of three clients, data both ways, while the backends change every few packets.
#[test]
fn backends_change_under_load_without_one_misdirected_packet() {
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        let mut random = Random::new(u64::from(workers));
        let mut pick = move |count: usize| (random.next_u64() % count as u64) as usize;
        let mut owners: BTreeMap<Flow, (usize, Ipv4Addr, u16)> = BTreeMap::new();
        let (mut checked, mut answered) = (0, 0);
        for packet_number in 0..8_000 {
            if packet_number % 5 == 0 {
                let mut present: Vec<usize> = (0..4).filter(|_| pick(2) == 0).collect();
                present.push(pick(4));
                present.dedup();
                lab.set_backends(backends(&present));
            }
            let flow = Flow { client: PODS[pick(4)], port: 2000 + pick(150) as u16 };
            let known = owners.get(&flow).copied();
            if let Some((backend, source, port)) = known
                && pick(3) == 0
            {
                // The backend answers: the client must see the VIP, and nobody else anything.
                let reply = lab.tcp(PODS[backend], source, (80, port), TcpFlags::ACK);
                lab.send(PODS[backend], &reply);
                for &pod in &PODS {
                    let got = lab.take(pod);
                    assert_eq!(got.len(), usize::from(pod == flow.client), "{flow:?} at {pod}");
                    for frame in got {
                        let (from, to, _, payload) = packet(&frame);
                        assert_eq!((from, to, ports(&payload)), (VIP, flow.client, (80, flow.port)));
                        answered += 1;
                    }
                }
                continue;
            }
            let flags = if known.is_none() { TcpFlags::SYN } else { TcpFlags::ACK };
            let frame = lab.tcp(flow.client, VIP, (flow.port, 80), flags);
            lab.send(flow.client, &frame);
            let mut arrived = Vec::new();
            for (index, &pod) in PODS.iter().enumerate() {
                for frame in lab.take(pod) {
                    let (from, to, _, payload) = packet(&frame);
                    assert_eq!((to, ports(&payload).1), (pod, 80), "{flow:?} seen at {pod}");
                    arrived.push((index, from, ports(&payload).0));
                }
            }
            assert_eq!(arrived.len(), 1, "{flow:?} {flags}");
            let owner = *owners.entry(flow).or_insert(arrived[0]);
            assert_eq!(owner, arrived[0], "{flow:?} misdirected");
            checked += 1;
        }
        assert!(checked > 4_000 && answered > 1_000 && owners.len() > 500, "{checked} {answered}");
        lab.check();
    }
}

/// What the generator and the sink of the threaded test know of each flow: its backend, once seen.
struct Watch {
    owners: BTreeMap<u16, usize>,
    received: u64,
}

impl Watch {
    fn look(&mut self, lab: &mut Lab) {
        for (index, &pod) in PODS.iter().enumerate().take(3) {
            let mut frames = Vec::new();
            lab.machines.get_mut(&pod).unwrap().peer.from_node.pop(256, |frame| frames.push(frame));
            for frame in frames {
                let (_, to, _, payload) = packet(lab.control.arena().bytes(&frame));
                assert_eq!((to, ports(&payload).1), (pod, 80));
                let owner = *self.owners.entry(ports(&payload).0).or_insert(index);
                assert_eq!(owner, index, "flow {} misdirected", ports(&payload).0);
                self.received += 1;
                lab.control.pool.free(frame);
            }
        }
    }
}

/// Two workers on threads of their own; rings are filled and emptied, and tables published, from this one.
#[test]
fn backends_change_under_two_running_workers_without_one_misdirected_packet() {
    let config =
        EngineConfig { workers: 2, small_buffers: 16_384, large_buffers: 2, ..EngineConfig::default() };
    let mut lab = Lab::build(&config);
    // The nodes know each other, so that no frame has to wait.
    let frame = lab.udp(BACKEND, APP1, (1, 2), b"");
    lab.send(BACKEND, &frame);
    assert_eq!(lab.take(APP1).len(), 1);
    let (stop, clock) = (Arc::new(AtomicBool::new(false)), Clock::start());
    let threads: Vec<_> = std::mem::take(&mut lab.workers)
        .into_iter()
        .map(|mut worker| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                worker.run(&clock, &stop);
                worker
            })
        })
        .collect();
    let mut watch = Watch { owners: BTreeMap::new(), received: 0 };
    let mut random = Random::new(3);
    let (mut sent, started) = (0u64, Instant::now());
    while sent < 20_000 && started.elapsed() < Duration::from_secs(20) {
        if sent % 7 == 0 {
            let first = (random.next_u64() % 3) as usize;
            let which = [first, (first + 1) % 3];
            lab.set_backends(backends(&which[..1 + (random.next_u64() % 2) as usize]));
        }
        let port = 2000 + (random.next_u64() % 400) as u16;
        let flags = if watch.owners.contains_key(&port) { TcpFlags::ACK } else { TcpFlags::SYN };
        let bytes = lab.tcp(BACKEND, VIP, (port, 80), flags);
        // No more are on their way than any ring holds: a starved thread delays frames, it loses none.
        let has_room = sent - watch.received < 512;
        if has_room && let Some(mut frame) = lab.control.pool.allocate(bytes.len()) {
            lab.control.arena().open(&mut frame).bytes_mut().copy_from_slice(&bytes);
            match lab.machines.get_mut(&BACKEND).unwrap().peer.to_node.push(frame) {
                Ok(()) => sent += 1,
                Err(frame) => lab.control.pool.free(frame),
            }
        }
        watch.look(&mut lab);
        lab.control.collect_buffers();
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while watch.received < sent && Instant::now() < deadline {
        watch.look(&mut lab);
        std::thread::yield_now();
    }
    stop.store(true, Ordering::Release);
    lab.workers = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let dropped: Vec<_> = DropReason::ALL.iter().filter(|&&reason| lab.drops(reason) > 0).collect();
    assert_eq!(watch.received, sent, "nothing is lost: {dropped:?}");
    assert!(sent > 2_000 && watch.owners.len() > 300, "{sent} {}", watch.owners.len());
    lab.now = clock.now();
    lab.check();
}
