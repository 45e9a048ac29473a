//! Packets per second of the engine, whole path: from the ingress ring to the egress ring through the worker's loop.
//!
//! Conditions: one worker; 32 pods on docker0; 4,096 distinct buffers in rotation; flows in random order; captures off
//! but compiled in. Generator and sink run between the measured batches and are not measured. Beside criterion's
//! figures stands the number of core clocks per packet: TSC clocks times the rate of a dependent-add loop in this run.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]
#![allow(clippy::unwrap_used, reason = "a bench stops at the first surprise")]

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant as Time};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flatnet_engine::binding::Profile;
use flatnet_engine::clock::{Instant, timestamp_counter};
use flatnet_engine::control::{Control, EngineConfig, NodeSpec};
use flatnet_engine::frame::Frame;
use flatnet_engine::link::{Link, RingsPeer, rings};
use flatnet_engine::random::Random;
use flatnet_engine::tables::Guard;
use flatnet_engine::wire::{EtherType, EthernetFrame, IpProtocol, Ipv4Packet, MacAddress, UdpDatagram};
use flatnet_engine::worker::Worker;

/// Pods on the bridge.
const PODS: u32 = 32;
/// Buffers in rotation.
const BUFFERS: usize = 4096;
/// A worker with a bridge full of pods at rings, and the frames that go round.
struct Lab {
    control: Control,
    worker: Worker,
    pods: Vec<RingsPeer>,
    /// Frames ready to be sent, with the pod that sends them.
    frames: Vec<(usize, Frame)>,
    random: Random,
}

impl Lab {
    fn bridge(flows: u32, frame_bytes: usize) -> Self {
        let config = EngineConfig {
            workers: 1,
            small_buffers: BUFFERS as u32 * 2,
            large_buffers: 1,
            ..EngineConfig::default()
        };
        let (mut control, mut workers) = Control::build(&config).unwrap();
        let spec = NodeSpec {
            name: Arc::from("node-1"),
            address: Ipv4Addr::new(192, 168, 66, 11),
            network: "192.168.66.0/24".parse().unwrap(),
            gateway: None,
            subnet: "10.1.15.0/24".parse().unwrap(),
            pod_network: "10.1.0.0/16".parse().unwrap(),
            profile: Profile::Linux,
            tunnel_port: 8285,
            mtu: 1500,
        };
        let node = control.add_node(&spec).unwrap();
        let mut pods = Vec::new();
        for pod in 0..PODS {
            let (link, peer) = rings(512);
            let address = address(pod);
            let guard = Guard { mac: MacAddress::for_ipv4(address), address, vip: None };
            control.attach(node, &format!("pod-{pod}"), Some(guard), 0, Link::Rings(link)).unwrap();
            pods.push(peer);
        }
        let mut lab =
            Self { control, worker: workers.remove(0), pods, frames: Vec::new(), random: Random::new(7) };
        lab.worker.run_batch(Instant::ZERO);
        lab.make_frames(flows, frame_bytes);
        lab
    }

    /// Every pod sends equally much; each frame belongs to a random one of its pod's flows.
    fn make_frames(&mut self, flows: u32, frame_bytes: usize) {
        for number in 0..BUFFERS as u32 {
            let from = number % PODS;
            let flow = (self.random.next_u64() % u64::from(flows / PODS)) as u32;
            let to = (from + 1 + flow % (PODS - 1)) % PODS;
            let mut frame = self.control.pool.allocate(frame_bytes).unwrap();
            let mut open = self.control.arena().open(&mut frame);
            write(open.bytes_mut(), address(from), address(to), 1024 + flow as u16);
            self.frames.push((from as usize, frame));
        }
    }

    /// Sends all frames and takes them back; returns time and TSC clocks of the worker's part.
    fn round(&mut self) -> (Duration, u64) {
        for index in (1..self.frames.len()).rev() {
            let other = (self.random.next_u64() % (index as u64 + 1)) as usize;
            self.frames.swap(index, other);
        }
        let mut senders = Vec::with_capacity(BUFFERS);
        for (from, frame) in self.frames.drain(..) {
            senders.push(from);
            self.pods[from].to_node.push(frame).unwrap();
        }
        let (start, clocks) = (Time::now(), timestamp_counter());
        let mut moved = 0;
        while moved < BUFFERS {
            moved += self.worker.run_batch(Instant::ZERO);
        }
        let spent = (start.elapsed(), timestamp_counter() - clocks);
        let (pods, frames, arena) = (&mut self.pods, &mut self.frames, self.control.arena());
        for pod in pods.iter_mut() {
            pod.from_node.pop(usize::MAX, |frame| {
                let source = EthernetFrame::new_unchecked(arena.bytes(&frame)).source();
                frames.push((usize::from(source.octets()[5]) - 2, frame));
            });
        }
        assert_eq!(self.frames.len(), BUFFERS, "no frame is lost");
        spent
    }
}

fn address(pod: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 15, 2 + pod as u8)
}

fn write(bytes: &mut [u8], from: Ipv4Addr, to: Ipv4Addr, port: u16) {
    bytes.fill(0);
    let mut frame = EthernetFrame::new_unchecked(bytes);
    frame.set_destination(MacAddress::for_ipv4(to));
    frame.set_source(MacAddress::for_ipv4(from));
    frame.set_ethertype(EtherType::Ipv4);
    let room = frame.payload_mut();
    room[0] = 0x45;
    let length = room.len() as u16;
    let mut packet = Ipv4Packet::new_unchecked(room);
    packet.set_total_length(length);
    packet.set_time_to_live(64);
    packet.set_protocol(IpProtocol::Udp);
    packet.set_source(from);
    packet.set_destination(to);
    packet.fill_header_checksum();
    let mut datagram = UdpDatagram::new_unchecked(packet.payload_mut());
    datagram.set_source_port(port);
    datagram.set_destination_port(7);
    datagram.set_length(length - 20);
    datagram.fill_checksum(from, to);
}

/// Core clocks in a TSC clock: a chain of dependent operations takes one core clock each.
fn core_clocks_per_tsc() -> f64 {
    // Short runs, the fastest of many: none of them is interrupted.
    let run = || {
        let (steps, start) = (1_000_000u64, timestamp_counter());
        let mut sum = black_box(1u64);
        for step in 0..black_box(steps) {
            // Two that cannot be folded or reordered: each waits for the one before.
            sum = (sum ^ step).wrapping_add(0x9e37_79b9_7f4a_7c15);
        }
        black_box(sum);
        (2 * steps) as f64 / (timestamp_counter() - start) as f64
    };
    (0..200).map(|_| run()).fold(0.0, f64::max)
}

/// Frames from pod to pod on one docker0, all answered by the cache.
fn bridge(criterion: &mut Criterion) {
    const FLOWS: u32 = 1024;
    const FRAME_BYTES: usize = 64;
    let rate = core_clocks_per_tsc();
    let mut lab = Lab::bridge(FLOWS, FRAME_BYTES);
    let (mut best, mut rounds, mut total) = (f64::MAX, 0u64, 0u64);
    let mut group = criterion.benchmark_group("bridge");
    group.throughput(Throughput::Elements(BUFFERS as u64));
    group.bench_function("hit/64", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                let (time, clocks) = lab.round();
                spent += time;
                best = best.min(clocks as f64 / BUFFERS as f64);
                total += clocks;
                rounds += 1;
            }
            spent
        });
    });
    group.finish();
    let mean = total as f64 / (rounds * BUFFERS as u64) as f64;
    println!(
        "bridge/hit/64: {FLOWS} flows: {:.0} core clocks a packet in the mean, {:.0} at best",
        mean * rate,
        best * rate
    );
    println!("bridge/hit/64: {mean:.0} and {best:.0} TSC clocks, times {rate:.2}");
}

criterion_group!(benches, bridge);
criterion_main!(benches);
