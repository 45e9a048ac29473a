//! A home: one of the engine's own nodes, the worker that has it alone, and the rings at its pods and at eth0.
//!
//! Its generator fills the rings, its worker runs, its sink empties them: all on one thread, as the queue of a network card
//! belongs to a core. Invariants: a home's packets never meet another home's; its buffers go round.
//! May depend on the engine. Read first: `engine/src/worker.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant as StdInstant};

use flatnet_engine::clock::{Clock, Instant, timestamp_counter};
use flatnet_engine::control::Control;
use flatnet_engine::frame::{Arena, ChecksumState, Frame, Pool, Record};
use flatnet_engine::link::{Link, RingsPeer, rings};
use flatnet_engine::tables::{Guard, NodeId};
use flatnet_engine::tunnel::Encapsulation;
use flatnet_engine::wire::{ArpOperation, ArpPacket, EtherType, EthernetFrame, MacAddress};
use flatnet_engine::worker::Worker;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::BenchError;
use super::addresses::{GATEWAY, node_spec, pod_address};
use super::lab::{BUFFERS, PODS};
use super::packet::{Entrance, Packet};

/// Frames that a ring of a pod takes, where a round is spread over all pods: four times what it sends each.
const POD_RING: usize = 512;
/// Flows at which it is not.
const FEW_FLOWS: u32 = 4 * PODS;
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

/// What a home sends in a round.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Frames, each in a buffer of its own: the same ones in each round.
    pub frames: usize,
    /// Bytes of each at a pod.
    pub frame_bytes: usize,
}

/// What a home took for its part of a round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spent {
    /// When its worker began.
    pub(super) begun: StdInstant,
    /// When it had done its part.
    pub(super) ended: StdInstant,
    /// The time between in TSC clocks.
    pub(super) clocks: u64,
    /// TSC clocks of generator and sink.
    pub(super) outside: u64,
    /// Frames that did not come out again.
    pub(super) missing: usize,
}

/// Stands for a home that ended before its last round, among the homes' counts.
const GIVEN_UP: usize = 1 << (usize::BITS - 1);

/// Gives up for a home that ends before it says that all is done, by an error or a panic.
struct Present<'a>(&'a Together);

impl Present<'_> {
    fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.filled.fetch_or(GIVEN_UP, Ordering::AcqRel);
    }
}

/// How the homes of a round begin and end together.
#[derive(Debug)]
pub(super) struct Together {
    homes: usize,
    /// How often a home had filled its rings.
    filled: AtomicUsize,
    /// Workers go on until somebody says so.
    pub(super) done: AtomicBool,
}

impl Together {
    pub(super) fn new(homes: usize, done: bool) -> Self {
        Self { homes, filled: AtomicUsize::new(0), done: AtomicBool::new(done) }
    }

    /// Has filled its rings for this round, the first being 1, and waits for the others.
    fn begin(&self, round: usize) {
        self.filled.fetch_add(1, Ordering::AcqRel);
        self.await_filled(round);
    }

    /// Tells whether a home ended before its last round: then nobody waits for any.
    pub(super) fn is_given_up(&self) -> bool {
        self.filled.load(Ordering::Acquire) >= GIVEN_UP
    }

    /// Waits until the rings of all are filled for so many rounds.
    pub(super) fn await_filled(&self, rounds: usize) {
        spin_while(|| self.filled.load(Ordering::Acquire) < rounds * self.homes);
    }
}

/// Waits for other threads at full speed; now and then it gives its core away, which they need where there are few.
pub(super) fn spin_while(waits: impl Fn() -> bool) {
    let mut tries = 0u32;
    while waits() {
        tries += 1;
        if tries.is_multiple_of(1 << 14) { thread::yield_now() } else { std::hint::spin_loop() }
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
    arena: Arc<Arena>,
    /// Buffers that are in no ring.
    spare: Vec<Frame>,
    pods: Vec<RingsPeer>,
    uplink: RingsPeer,
}

impl Home {
    /// Makes a node with pods, all of one worker, which has the same number, for so many flows.
    ///
    /// # Errors
    /// [`BenchError`].
    pub(super) fn new(
        control: &mut Control,
        worker: Worker,
        number: u8,
        flows: u32,
        encapsulation: Encapsulation,
    ) -> Result<Self, BenchError> {
        let pod_ring = if flows < FEW_FLOWS { BUFFERS } else { POD_RING };
        let home = u32::from(number);
        let node = control.add_node(&node_spec(home, Some(GATEWAY), encapsulation)?)?;
        let mut pods = Vec::new();
        for pod in 0..PODS {
            let (link, peer) = rings(pod_ring);
            let address = pod_address(home, pod);
            let guard = Guard { mac: MacAddress::for_ipv4(address), address, vip: None };
            control.attach(node, &format!("pod-{pod}"), Some(guard), number, Link::Rings(link))?;
            pods.push(peer);
        }
        let (link, uplink) = rings(2 * BUFFERS);
        control.attach_interface(node, 0, number, Link::Rings(link))?;
        let arena = Arc::clone(control.arena());
        let mut ports = Ports { arena, spare: Vec::new(), pods, uplink };
        ports.fill(&mut control.pool)?;
        Ok(Self { worker, node, ports })
    }

    /// Sends rounds of packets through the worker, at once with the other homes.
    ///
    /// # Errors
    /// [`BenchError::NoBuffer`].
    pub(super) fn rounds(
        &mut self,
        count: u32,
        gap: Duration,
        mut source: impl FnMut() -> Packet,
        load: Load,
        mut time: Time,
        together: &Together,
    ) -> Result<Vec<Spent>, BenchError> {
        let present = Present(together);
        let rounds = (1..=count as usize).map(|number| {
            time.skew += gap;
            self.round(number, &mut source, load, &time, together)
        });
        let rounds = rounds.collect::<Result<_, _>>()?;
        present.leave();
        Ok(rounds)
    }

    fn round(
        &mut self,
        number: usize,
        source: &mut impl FnMut() -> Packet,
        Load { frames, frame_bytes }: Load,
        time: &Time,
        together: &Together,
    ) -> Result<Spent, BenchError> {
        let generating = timestamp_counter();
        let sent = (0..frames).try_fold(0, |sent, _| {
            let packet = source();
            let frame = self.ports.frame(&packet, frame_bytes)?;
            self.ports.send(packet.entrance, frame).map(|()| sent + 1)
        });
        let generated = timestamp_counter();
        let sent = sent?;
        together.begin(number);
        let (start, running) = (StdInstant::now(), timestamp_counter());
        self.forward(sent, time);
        let (end, stopped) = (StdInstant::now(), timestamp_counter());
        spin(&mut self.worker, time, &together.done);
        // A visit counts as moved, too: a frame may be left.
        while self.worker.run_batch(time.now()) > 0 {}
        let taking = timestamp_counter();
        let mut out = 0;
        // Whatever else the node says does not stand for one that is lost.
        let delivered = self.ports.drain(|bytes| out += usize::from(Packet::read(bytes).is_some()));
        let outside = generated - generating + (timestamp_counter() - taking);
        Ok(Spent {
            begun: start,
            ended: end,
            clocks: stopped - running,
            outside,
            missing: sent.saturating_sub(out + delivered),
        })
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
    /// Takes buffers for a round in the place of those that the worker kept.
    ///
    /// # Errors
    /// [`BenchError::NoBuffer`].
    pub(super) fn fill(&mut self, pool: &mut Pool) -> Result<(), BenchError> {
        while self.spare.len() < BUFFERS {
            self.spare.push(pool.allocate(0).ok_or(BenchError::NoBuffer)?);
        }
        Ok(())
    }

    /// Writes a packet into a buffer; a pod's frame has `frame_bytes`.
    ///
    /// # Errors
    /// [`BenchError::NoBuffer`].
    pub(super) fn frame(&mut self, packet: &Packet, frame_bytes: usize) -> Result<Frame, BenchError> {
        self.frame_with(packet.frame_length(frame_bytes), |bytes| packet.write(bytes))
    }

    /// Has a frame of `length` bytes written into a buffer.
    ///
    /// # Errors
    /// [`BenchError::NoBuffer`].
    pub(super) fn frame_with(
        &mut self,
        length: usize,
        write: impl FnOnce(&mut [u8]),
    ) -> Result<Frame, BenchError> {
        let mut frame = self.spare.pop().ok_or(BenchError::NoBuffer)?;
        let mut open = self.arena.open(&mut frame);
        *open.record = Record::default();
        open.record.checksum = ChecksumState::Verified;
        if open.reset(length) {
            write(open.bytes_mut());
            Ok(frame)
        } else {
            self.spare.push(frame);
            Err(BenchError::NoBuffer)
        }
    }

    /// Puts a frame into a ring.
    ///
    /// # Errors
    /// [`BenchError::NoBuffer`].
    pub(super) fn send(&mut self, entrance: Entrance, frame: Frame) -> Result<(), BenchError> {
        let ring = match entrance {
            Entrance::Pod(pod) => &mut self.pods[pod as usize % PODS as usize],
            Entrance::Interface | Entrance::Tunnel(_) | Entrance::Vxlan(_) => &mut self.uplink,
        };
        ring.to_node.push(frame).map_err(|frame| {
            self.spare.push(frame);
            BenchError::NoBuffer
        })
    }

    /// Takes all frames that came out: shows those of eth0, counts the packets of pods.
    pub(super) fn drain(&mut self, mut show: impl FnMut(&[u8])) -> usize {
        let Self { arena, spare, pods, uplink } = self;
        let mut delivered = 0;
        for pod in pods {
            pod.from_node.pop(usize::MAX, |frame| {
                delivered += usize::from(Packet::read(arena.bytes(&frame)).is_some());
                spare.push(frame);
            });
        }
        uplink.from_node.pop(usize::MAX, |frame| {
            show(arena.bytes(&frame));
            spare.push(frame);
        });
        delivered
    }

    /// Waits until a frame comes out at a pod; false when none does for long.
    pub(super) fn await_frame(&mut self, pod: u32) -> bool {
        let (ring, mut tries) = (&mut self.pods[pod as usize].from_node, 0u32);
        while ring.pop(1, |frame| self.spare.push(frame)) == 0 {
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

/// Keeps the calling thread on one of the cores it may use: the one of this number, counted round.
///
/// # Errors
/// The system's.
pub(super) fn pin(number: usize) -> std::io::Result<()> {
    let allowed = sched_getaffinity(None)?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect();
    let mut own = CpuSet::new();
    own.set(cores[number % cores.len()]);
    Ok(sched_setaffinity(None, &own)?)
}
