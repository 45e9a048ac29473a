//! A home: one of the engine's own nodes, the worker that has it alone, and the rings at its pods and at eth0.
//!
//! The lab fills the rings, has the worker run, and empties them. Invariant: a home's packets never meet another home's.
//! May depend on the engine. Read first: `engine/src/worker.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant as StdInstant};

use flatnet_engine::binding::Profile;
use flatnet_engine::clock::{Clock, Instant, timestamp_counter};
use flatnet_engine::control::{Control, NodeSpec};
use flatnet_engine::frame::{Frame, Pool};
use flatnet_engine::link::{Link, RingsPeer, rings};
use flatnet_engine::tables::{Guard, NodeId};
use flatnet_engine::wire::{ArpOperation, ArpPacket, EtherType, EthernetFrame, MacAddress};
use flatnet_engine::worker::Worker;

use super::BenchError;
use super::addresses::{GATEWAY, node_address, pod_address, prefix, subnet};
use super::datagram::Entrance;
use super::lab::{BUFFERS, PODS, TUNNEL_PORT};

/// Frames that a ring of a pod takes: four times what a round sends it.
const POD_RING: usize = 512;
/// Batches that may move nothing before a round counts as failed.
const IDLE_LIMIT: u32 = 10_000;

/// The time that workers are told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time {
    /// Without one it stands still.
    pub(super) clock: Option<Clock>,
    /// What it is ahead of the clock.
    pub(super) skew: Duration,
}

impl Time {
    pub(super) fn now(&self) -> Instant {
        self.clock.as_ref().map_or(Instant::ZERO, Clock::now) + self.skew
    }
}

/// What a worker took for its part of a round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spent {
    pub(super) time: Duration,
    /// The same in TSC clocks.
    pub(super) clocks: u64,
}

impl Spent {
    /// What workers took that ran at once: the longest time, the clocks of all.
    pub(super) fn together(all: impl IntoIterator<Item = Self>) -> Self {
        all.into_iter().fold(Self { time: Duration::ZERO, clocks: 0 }, |all, one| Self {
            time: all.time.max(one.time),
            clocks: all.clocks + one.clocks,
        })
    }
}

/// A node, its worker, and what is around it.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) worker: Worker,
    pub(super) node: NodeId,
    pub(super) ports: Ports,
}

/// The other ends of a node's links.
#[derive(Debug)]
pub(super) struct Ports {
    pods: Vec<RingsPeer>,
    uplink: RingsPeer,
}

impl Home {
    /// Makes a node with pods, all of one worker, which has the same number.
    ///
    /// # Errors
    /// [`BenchError`].
    pub(super) fn new(control: &mut Control, worker: Worker, number: u8) -> Result<Self, BenchError> {
        let home = u32::from(number);
        let node = control.add_node(&NodeSpec {
            name: Arc::from(format!("node-{}", home + 1)),
            address: node_address(home),
            network: prefix(node_address(home), 16)?,
            gateway: Some(GATEWAY),
            subnet: subnet(home)?,
            pod_network: prefix(pod_address(0, 0), 9)?,
            profile: Profile::Linux,
            tunnel_port: TUNNEL_PORT,
            mtu: 1500,
        })?;
        let mut pods = Vec::new();
        for pod in 0..PODS {
            let (link, peer) = rings(POD_RING);
            let address = pod_address(home, pod);
            let guard = Guard { mac: MacAddress::for_ipv4(address), address, vip: None };
            control.attach(node, &format!("pod-{pod}"), Some(guard), number, Link::Rings(link))?;
            pods.push(peer);
        }
        let (link, uplink) = rings(2 * BUFFERS);
        control.attach_interface(node, 0, number, Link::Rings(link))?;
        Ok(Self { worker, node, ports: Ports { pods, uplink } })
    }

    /// Runs the worker until it has moved so many frames, or gives up.
    pub(super) fn run(&mut self, frames: usize, time: &Time) -> Spent {
        let (start, running) = (StdInstant::now(), timestamp_counter());
        self.forward(frames, time);
        Spent { clocks: timestamp_counter() - running, time: start.elapsed() }
    }

    /// What is measured. A call of its own, by whose name callgrind knows it.
    #[inline(never)]
    fn forward(&mut self, frames: usize, time: &Time) {
        let (mut moved, mut idle) = (0, 0);
        while moved < frames && idle < IDLE_LIMIT {
            let count = self.worker.run_batch(time.now());
            moved += count;
            idle = if count > 0 { 0 } else { idle + 1 };
        }
    }
}

impl Ports {
    /// Puts a frame into a ring, or its buffer back.
    ///
    /// # Errors
    /// [`BenchError::NoBuffer`].
    pub(super) fn send(
        &mut self,
        entrance: Entrance,
        frame: Frame,
        pool: &mut Pool,
    ) -> Result<(), BenchError> {
        let ring = match entrance {
            Entrance::Pod(pod) => &mut self.pods[pod as usize % PODS as usize],
            Entrance::Interface | Entrance::Tunnel(_) => &mut self.uplink,
        };
        ring.to_node.push(frame).map_err(|frame| {
            pool.free(frame);
            BenchError::NoBuffer
        })
    }

    /// Takes all frames that came out: shows those of eth0, counts those of pods.
    pub(super) fn drain(&mut self, pool: &mut Pool, mut show: impl FnMut(&[u8])) -> usize {
        let mut delivered = 0;
        for pod in &mut self.pods {
            delivered += pod.from_node.pop(usize::MAX, |frame| pool.free(frame));
        }
        self.uplink.from_node.pop(usize::MAX, |frame| {
            show(pool.arena().bytes(&frame));
            pool.free(frame);
        });
        delivered
    }

    /// Waits until a frame comes out at a pod; false when none does for long.
    pub(super) fn await_frame(&mut self, pod: u32, pool: &mut Pool) -> bool {
        let (ring, mut tries) = (&mut self.pods[pod as usize].from_node, 0u32);
        while ring.pop(1, |frame| pool.free(frame)) == 0 {
            tries += 1;
            if tries > 1000 * IDLE_LIMIT {
                return false;
            }
            std::hint::spin_loop();
        }
        true
    }
}

/// Runs a worker that never sleeps until it is told to stop.
pub(super) fn spin(worker: &mut Worker, time: &Time, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        worker.run_batch(time.now());
    }
}

/// Answers an ARP request for whoever is asked for.
pub(super) fn answer(bytes: &[u8]) -> Option<Vec<u8>> {
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
