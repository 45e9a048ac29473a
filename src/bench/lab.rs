//! A node as a real one looks: pods on docker0, leases of other nodes, Services, and rings at its pods and at eth0.
//!
//! The rows send datagrams through it, a round at a time: the generator fills buffers and rings, the worker runs, the sink
//! empties the rings; each is timed apart. Invariant: every frame that is sent is seen again, or the round fails.
//!
//! May depend on the engine and the proxy. Read first: `engine/src/control.rs`.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant as Time};

use flatnet_engine::binding::Profile;
use flatnet_engine::clock::{Clock, Instant, timestamp_counter};
use flatnet_engine::control::{Control, EngineConfig, NodeSpec};
use flatnet_engine::frame::{ChecksumState, Frame, Pool};
use flatnet_engine::ledger::DropReason;
use flatnet_engine::link::{Link, RingsPeer, rings};
use flatnet_engine::tables::{Guard, Lease, NodeId};
use flatnet_engine::wire::{ArpOperation, ArpPacket, EtherType, EthernetFrame, MacAddress};
use flatnet_engine::worker::Worker;
use flatnet_proxy::{Backend, Frontend, Ipv4Prefix, Protocol, Service};

use super::BenchError;
use super::datagram::{Datagram, Entrance};

/// Pods on the bridge.
pub const PODS: u32 = 32;
/// Buffers in rotation: frames of a round.
pub const BUFFERS: usize = 4096;
/// Frames that a ring of a pod takes: four times what a round sends it.
const POD_RING: usize = 512;
/// Pods behind each Service.
const BACKENDS: u32 = 3;
/// Batches that may move nothing before a round counts as failed.
const IDLE_LIMIT: u32 = 10_000;
/// The tunnel's port.
pub const TUNNEL_PORT: u16 = 8285;

/// How full the node's tables are.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Nodes, each with a lease; this one is the first.
    pub nodes: u32,
    /// Services.
    pub services: u32,
    /// Pods that are behind Services, all on other nodes.
    pub endpoints: u32,
    /// Flows, both directions of each, that cache and bindings have room for.
    pub flows: u32,
}

/// What a round took.
#[derive(Debug, Clone, Default)]
pub struct Round {
    /// The worker's time.
    pub time: Duration,
    /// The same in TSC clocks.
    pub clocks: u64,
    /// TSC clocks of the generator and the sink.
    pub outside: u64,
}

/// One worker with a node, and what is around it.
#[derive(Debug)]
pub struct Lab {
    control: Control,
    worker: Worker,
    node: NodeId,
    pods: Vec<RingsPeer>,
    uplink: RingsPeer,
    /// The time; without one it stands still.
    clock: Option<Clock>,
    /// What the node's time is ahead of it.
    skew: Duration,
    scale: Scale,
    frame_bytes: usize,
}

impl Lab {
    /// Makes the network; `frame_bytes` are those of a frame at a pod.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn new(scale: Scale, frame_bytes: usize) -> Result<Self, BenchError> {
        let config = EngineConfig {
            workers: 1,
            small_buffers: 4 * BUFFERS as u32,
            large_buffers: 1,
            // Four places a flow: two for its directions, and as many free.
            cache_slots: (scale.flows as usize * 4).max(1 << 16),
            bindings: (scale.flows as usize * 2).max(1 << 18),
            client_bindings: scale.flows.max(1 << 15),
            ..EngineConfig::default()
        };
        let (mut control, mut workers) = Control::build(&config)?;
        let node = control.add_node(&NodeSpec {
            name: Arc::from("node-1"),
            address: node_address(0),
            network: prefix(node_address(0), 16)?,
            gateway: Some(GATEWAY),
            subnet: subnet(0)?,
            pod_network: prefix(Ipv4Addr::new(10, 0, 0, 0), 9)?,
            profile: Profile::Linux,
            tunnel_port: TUNNEL_PORT,
            mtu: 1500,
        })?;
        let mut pods = Vec::new();
        for pod in 0..PODS {
            let (link, peer) = rings(POD_RING);
            let address = pod_address(0, pod);
            let guard = Guard { mac: MacAddress::for_ipv4(address), address, vip: None };
            control.attach(node, &format!("pod-{pod}"), Some(guard), 0, Link::Rings(link))?;
            pods.push(peer);
        }
        let (link, uplink) = rings(2 * BUFFERS);
        control.attach_interface(node, 0, 0, Link::Rings(link))?;
        let worker = workers.remove(0);
        let (clock, skew) = (Some(Clock::start()), Duration::ZERO);
        let mut lab = Self { control, worker, node, pods, uplink, clock, skew, scale, frame_bytes };
        lab.publish()?;
        lab.resolve()?;
        Ok(lab)
    }

    fn publish(&mut self) -> Result<(), BenchError> {
        let Scale { nodes, services, endpoints, .. } = self.scale;
        let subnets = (0..nodes).map(subnet).collect::<Result<Vec<_>, _>>()?;
        let mut result = Ok(());
        self.control.tables.publish(|tables| {
            for (subnet, node) in subnets.into_iter().zip(0..) {
                tables.set_lease(subnet, Some(Lease { public_ip: node_address(node) }));
            }
            for id in 0..services {
                let backend = |number: u32| {
                    let endpoint = (id * BACKENDS + number) % endpoints;
                    Backend::new(self::endpoint(endpoint, nodes), 80, u64::from(endpoint))
                };
                let service = Service {
                    id,
                    name: Arc::from(format!("default/service-{id}:http")),
                    backends: (0..BACKENDS).map(backend).collect::<Vec<_>>().into(),
                    ..Service::default()
                };
                let frontend = Frontend { address: service_address(id), port: 80, protocol: Protocol::Udp };
                if result.is_ok() {
                    result = tables.set_service(service, vec![frontend], Vec::new());
                }
            }
        });
        result?;
        self.worker.run_batch(self.now());
        Ok(())
    }

    /// Lets the node learn the MACs of all others and of the gateway.
    fn resolve(&mut self) -> Result<(), BenchError> {
        let to = |destination| Datagram::new(Entrance::Pod(0), pod_address(0, 0), 1024, destination, 7);
        let mut outward = vec![to(Ipv4Addr::new(198, 18, 0, 1))];
        outward.extend((1..self.scale.nodes).map(|node| to(pod_address(node, 0))));
        for some in outward.chunks(256) {
            self.exchange(some)?;
        }
        Ok(())
    }

    /// Sends datagrams, answers what the node asks, and returns what comes out of eth0.
    ///
    /// # Errors
    /// [`BenchError::Lost`] when fewer come out of pods and eth0 together than went in.
    pub fn exchange(&mut self, datagrams: &[Datagram]) -> Result<Vec<Datagram>, BenchError> {
        let mut seen = Vec::with_capacity(datagrams.len());
        let mut delivered = 0;
        for some in datagrams.chunks(BUFFERS) {
            let before = delivered + seen.len();
            some.iter().try_for_each(|datagram| self.send(datagram))?;
            let mut idle = 0;
            while delivered + seen.len() < before + some.len() {
                let now = self.now();
                self.worker.run_batch(now);
                let mut asked = Vec::new();
                let arrived = delivered + seen.len();
                delivered += self.drain(|bytes| match Datagram::read(bytes) {
                    Some(datagram) => seen.push(datagram),
                    None => asked.extend(answer(bytes)),
                });
                asked.iter().try_for_each(|reply| self.send_raw(reply))?;
                idle = if delivered + seen.len() > arrived { 0 } else { idle + 1 };
                if idle > IDLE_LIMIT {
                    return Err(self.lost(before + some.len() - delivered - seen.len()));
                }
            }
        }
        Ok(seen)
    }

    /// Sends a round of datagrams through the worker.
    ///
    /// # Errors
    /// [`BenchError::Lost`] when not all come out.
    pub fn round(&mut self, datagrams: impl Iterator<Item = Datagram>) -> Result<Round, BenchError> {
        let generating = timestamp_counter();
        let mut sent = 0;
        for datagram in datagrams {
            self.send(&datagram)?;
            sent += 1;
        }
        let (start, running) = (Time::now(), timestamp_counter());
        self.work(sent);
        let (stopped, time) = (timestamp_counter(), start.elapsed());
        let mut out = 0;
        let delivered = self.drain(|_| out += 1);
        if out + delivered < sent {
            return Err(self.lost(sent - out - delivered));
        }
        let outside = running - generating + (timestamp_counter() - stopped);
        Ok(Round { time, clocks: stopped - running, outside })
    }

    /// Runs the worker until it has moved so many frames, or gives up. A call of its own, by whose name callgrind knows
    /// what is measured.
    #[inline(never)]
    fn work(&mut self, frames: usize) {
        let (mut moved, mut idle) = (0, 0);
        while moved < frames && idle < IDLE_LIMIT {
            let now = self.now();
            let count = self.worker.run_batch(now);
            moved += count;
            idle = if count > 0 { 0 } else { idle + 1 };
        }
    }

    /// Lets time pass for everything that expires.
    pub fn pass(&mut self, time: Duration) {
        self.skew += time;
    }

    /// Has time stand still but for [`Lab::pass`]: each run does the same.
    pub fn stop_clock(&mut self) {
        self.skew = self.now().saturating_duration_since(Instant::ZERO);
        self.clock = None;
    }

    fn now(&self) -> Instant {
        self.clock.as_ref().map_or(Instant::ZERO, Clock::now) + self.skew
    }

    fn send(&mut self, datagram: &Datagram) -> Result<(), BenchError> {
        let length = datagram.frame_length(self.frame_bytes);
        let mut frame = self.control.pool.allocate(length).ok_or(BenchError::NoBuffer)?;
        let mut open = self.control.arena().open(&mut frame);
        datagram.write(open.bytes_mut());
        open.record.checksum = ChecksumState::Verified;
        let ring = match datagram.entrance {
            Entrance::Pod(pod) => &mut self.pods[pod as usize % PODS as usize],
            Entrance::Interface | Entrance::Tunnel(_) => &mut self.uplink,
        };
        push(ring, frame, &mut self.control.pool)
    }

    /// Sends a frame into eth0.
    fn send_raw(&mut self, bytes: &[u8]) -> Result<(), BenchError> {
        let mut frame = self.control.pool.allocate(bytes.len()).ok_or(BenchError::NoBuffer)?;
        self.control.arena().open(&mut frame).bytes_mut().copy_from_slice(bytes);
        push(&mut self.uplink, frame, &mut self.control.pool)
    }

    /// Takes all frames that came out: shows those of eth0, counts those of pods.
    fn drain(&mut self, mut show: impl FnMut(&[u8])) -> usize {
        let Control { pool, .. } = &mut self.control;
        let mut delivered = 0;
        for pod in &mut self.pods {
            delivered += pod.from_node.pop(usize::MAX, |frame| pool.free(frame));
        }
        self.uplink.from_node.pop(usize::MAX, |frame| {
            show(pool.arena().bytes(&frame));
            pool.free(frame);
        });
        self.control.collect_buffers();
        delivered
    }

    fn lost(&self, frames: usize) -> BenchError {
        let ledger = self.control.ledger(self.node);
        let reasons = DropReason::ALL.iter().filter(|&&reason| ledger.drops(reason) > 0);
        let reasons: Vec<&str> = reasons.map(|reason| reason.name()).collect();
        BenchError::Lost { frames, reasons: reasons.join(", ") }
    }
}

/// The gateway on the node network.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);

/// Returns a node's address on the node network, counted from 0.
#[must_use]
pub fn node_address(node: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(172, 16, 0, 10).to_bits() + node)
}

/// Returns the node whose address this is.
#[must_use]
pub fn node_of(address: Ipv4Addr) -> u32 {
    address.to_bits() - node_address(0).to_bits()
}

/// Returns the address of a node's pod, both counted from 0.
#[must_use]
pub fn pod_address(node: u32, pod: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 2).to_bits() + (node << 8) + pod)
}

/// Returns docker0's address on a node.
#[must_use]
pub fn bridge_address(node: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 1).to_bits() + (node << 8))
}

/// Returns a Service's address, counted from 0.
#[must_use]
pub fn service_address(service: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 1).to_bits() + service)
}

/// Returns the address of a pod behind Services: they are spread over all nodes but this one.
fn endpoint(number: u32, nodes: u32) -> Ipv4Addr {
    let others = nodes.saturating_sub(1).max(1);
    pod_address(1 + number % others, number / others)
}

fn subnet(node: u32) -> Result<Ipv4Prefix, BenchError> {
    prefix(bridge_address(node), 24)
}

fn prefix(address: Ipv4Addr, length: u8) -> Result<Ipv4Prefix, BenchError> {
    Ok(Ipv4Prefix::containing(address, length)?)
}

/// Puts a frame into a ring, or its buffer back.
fn push(ring: &mut RingsPeer, frame: Frame, pool: &mut Pool) -> Result<(), BenchError> {
    ring.to_node.push(frame).map_err(|frame| {
        pool.free(frame);
        BenchError::NoBuffer
    })
}

/// Answers an ARP request for whoever is asked for.
fn answer(bytes: &[u8]) -> Option<Vec<u8>> {
    let frame = EthernetFrame::new_unchecked(bytes);
    if frame.ethertype() != EtherType::Arp {
        return None;
    }
    let request = ArpPacket::new_checked(frame.payload()).ok()?;
    let mut reply = bytes.to_vec();
    let mac = MacAddress::for_ipv4(request.target_address());
    let mut frame = EthernetFrame::new_unchecked(&mut reply[..]);
    frame.set_destination(request.sender_mac());
    frame.set_source(mac);
    let mut packet = ArpPacket::new_unchecked(frame.payload_mut());
    packet.set_operation(ArpOperation::Reply);
    packet.set_sender(mac, request.target_address());
    packet.set_target(request.sender_mac(), request.sender_address());
    Some(reply)
}
