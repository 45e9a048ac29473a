//! Nodes as real ones look: pods on docker0, leases of other nodes, Services, and rings at pods and at eth0.
//!
//! The rows send datagrams through it, a round at a time: the generator fills buffers and rings, the workers run all at once,
//! the sink empties the rings; each is timed apart. Invariant: every frame that is sent is seen again, or the round fails.
//!
//! May depend on the engine and the proxy. Read first: `home.rs`.
//!
//! Above 400 lines because rounds, changes and lone frames are three ways through one network.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant as StdInstant};

use flatnet_engine::clock::{Clock, Instant, timestamp_counter};
use flatnet_engine::control::{Control, EngineConfig};
use flatnet_engine::frame::{ChecksumState, Frame};
use flatnet_engine::ledger::DropReason;
use flatnet_engine::tables::Lease;
use flatnet_engine::worker::Stages;
use flatnet_proxy::{Backend, Service};

use super::BenchError;
use super::addresses::{endpoint, node_address, pod_address, service_frontend, subnet};
use super::datagram::{Datagram, Entrance};
use super::home::{Home, Spent, Time, answer, spin};

/// Pods on the bridge of a home.
pub const PODS: u32 = 32;
/// Buffers in rotation: frames of a home in a round.
pub const BUFFERS: usize = 4096;
/// Pods behind each Service.
const BACKENDS: u32 = 3;
/// Batches that may move nothing before an exchange counts as failed.
const IDLE_LIMIT: u32 = 10_000;
/// After this time without a frame a worker is asleep.
const ASLEEP_AFTER: Duration = Duration::from_millis(1);
/// The tunnel's port.
pub const TUNNEL_PORT: u16 = 8285;

/// How full the nodes' tables are.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Workers, each with a node of its own: the first nodes, the homes.
    pub workers: u8,
    /// Nodes, each with a lease.
    pub nodes: u32,
    /// Services.
    pub services: u32,
    /// Pods that are behind Services, none of them on a home.
    pub endpoints: u32,
    /// Flows of a home, both directions of each, that the cache has room for.
    pub flows: u32,
    /// Bindings of a home.
    pub bindings: usize,
}

/// What a round took.
#[derive(Debug, Clone, Default)]
pub struct Round {
    /// The time of the worker that took longest.
    pub time: Duration,
    /// TSC clocks of all workers together.
    pub clocks: u64,
    /// TSC clocks of the generator and the sink.
    pub outside: u64,
}

/// How a worker waits for frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// It looks again and again.
    Spinning,
    /// It has gone to sleep, and who sends a frame wakes it.
    Sleeping,
}

/// Homes with their workers, and all that they know.
#[derive(Debug)]
pub struct Lab {
    control: Control,
    homes: Vec<Home>,
    time: Time,
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
            workers: scale.workers,
            // The generator has those of one pool for all homes.
            small_buffers: 4 * BUFFERS as u32 * u32::from(scale.workers),
            large_buffers: 1,
            // Seven places for the four directions of two flows.
            cache_slots: (scale.flows as usize * 7 / 2).max(1 << 16),
            bindings: scale.bindings.max(1 << 18),
            client_bindings: scale.flows.max(1 << 15),
            ..EngineConfig::default()
        };
        let (mut control, workers) = Control::build(&config)?;
        let homes = workers.into_iter().zip(0..).map(|(worker, id)| Home::new(&mut control, worker, id));
        let homes = homes.collect::<Result<_, _>>()?;
        let time = Time { clock: Some(Clock::start()), skew: Duration::ZERO };
        let mut lab = Self { control, homes, time, scale, frame_bytes };
        lab.publish()?;
        lab.resolve()?;
        Ok(lab)
    }

    fn publish(&mut self) -> Result<(), BenchError> {
        let scale = self.scale;
        let subnets = (0..scale.nodes).map(subnet).collect::<Result<Vec<_>, _>>()?;
        let mut result = Ok(());
        self.control.tables.publish(|tables| {
            for (subnet, node) in subnets.into_iter().zip(0..) {
                tables.set_lease(subnet, Some(Lease { public_ip: node_address(node) }));
            }
            for id in 0..scale.services {
                if result.is_ok() {
                    result =
                        tables.set_service(service(&scale, id, 0), vec![service_frontend(id)], Vec::new());
                }
            }
        });
        result?;
        self.run_all();
        Ok(())
    }

    /// Lets the homes learn the MACs of all others and of the gateway.
    fn resolve(&mut self) -> Result<(), BenchError> {
        let homes = u32::from(self.scale.workers);
        for home in 0..homes {
            let to =
                |destination| Datagram::new(Entrance::Pod(0), pod_address(home, 0), 1024, destination, 7);
            let mut outward = vec![to(Ipv4Addr::new(198, 18, 0, 1))];
            outward.extend((homes..self.scale.nodes).map(|node| to(pod_address(node, 0))));
            for some in outward.chunks(256) {
                self.exchange(some)?;
            }
        }
        Ok(())
    }

    fn run_all(&mut self) {
        let now = self.time.now();
        for home in &mut self.homes {
            home.worker.run_batch(now);
        }
    }

    /// Sends datagrams, answers what the homes ask, and returns what comes out of their eth0.
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
                self.run_all();
                let mut asked = Vec::new();
                let arrived = delivered + seen.len();
                delivered += self.drain(|home, bytes| match Datagram::read(bytes) {
                    Some(datagram) => seen.push(datagram),
                    None => asked.extend(answer(bytes).map(|reply| (home, reply))),
                });
                asked.iter().try_for_each(|(home, reply)| self.send_raw(*home, reply))?;
                idle = if delivered + seen.len() > arrived { 0 } else { idle + 1 };
                if idle > IDLE_LIMIT {
                    return Err(self.lost(before + some.len() - delivered - seen.len()));
                }
            }
        }
        Ok(seen)
    }

    /// Sends a round of datagrams through the workers, as many for each.
    ///
    /// # Errors
    /// [`BenchError::Lost`] when not all come out.
    pub fn round(&mut self, datagrams: impl Iterator<Item = Datagram>) -> Result<Round, BenchError> {
        let generating = timestamp_counter();
        let sent = self.send_all(datagrams)?;
        let running = timestamp_counter();
        let Spent { time, clocks } = self.work(sent / self.homes.len());
        let stopped = timestamp_counter();
        self.take_all(sent)?;
        let outside = running - generating + (timestamp_counter() - stopped);
        Ok(Round { time, clocks, outside })
    }

    fn send_all(&mut self, datagrams: impl Iterator<Item = Datagram>) -> Result<usize, BenchError> {
        let mut sent = 0;
        for datagram in datagrams {
            self.send(&datagram)?;
            sent += 1;
        }
        Ok(sent)
    }

    fn take_all(&mut self, sent: usize) -> Result<(), BenchError> {
        let mut out = 0;
        let delivered = self.drain(|_, _| out += 1);
        if out + delivered < sent { Err(self.lost(sent - out - delivered)) } else { Ok(()) }
    }

    /// Runs the workers at once until each has moved so many frames, or gives up.
    fn work(&mut self, frames: usize) -> Spent {
        let (time, waiting) = (self.time, AtomicUsize::new(self.homes.len()));
        let begin = |home: &mut Home| {
            // None begins before all are there.
            waiting.fetch_sub(1, Ordering::AcqRel);
            while waiting.load(Ordering::Acquire) > 0 {
                std::hint::spin_loop();
            }
            home.run(frames, &time)
        };
        match &mut self.homes[..] {
            [home] => begin(home),
            homes => thread::scope(|scope| {
                let threads: Vec<_> = homes.iter_mut().map(|home| scope.spawn(|| begin(home))).collect();
                Spent::together(threads.into_iter().filter_map(|thread| thread.join().ok()))
            }),
        }
    }

    /// Sends a round of datagrams through the workers while a Service's first backend becomes another one; returns also how
    /// long it took from the change until all workers had acknowledged it.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn round_with_change(
        &mut self,
        datagrams: impl Iterator<Item = Datagram>,
        id: u32,
        version: u32,
    ) -> Result<(Round, Duration), BenchError> {
        let sent = self.send_all(datagrams)?;
        let (time, done) = (self.time, AtomicBool::new(false));
        let service = service(&self.scale, id, version);
        let Self { control, homes, .. } = self;
        let frames = sent / homes.len();
        let run = |home: &mut Home| {
            let spent = home.run(frames, &time);
            spin(&mut home.worker, &time, &done);
            // A visit counts as moved, too: a frame may be left.
            while home.worker.run_batch(time.now()) > 0 {}
            spent
        };
        let (spent, changed) = thread::scope(|scope| {
            let threads: Vec<_> = homes.iter_mut().map(|home| scope.spawn(|| run(home))).collect();
            let changed = change(control, service);
            done.store(true, Ordering::Release);
            (Spent::together(threads.into_iter().filter_map(|thread| thread.join().ok())), changed)
        });
        self.take_all(sent)?;
        let Spent { time, clocks } = spent;
        Ok((Round { time, clocks, outside: 0 }, changed?))
    }

    /// Sends datagrams between pods of the first home one by one, while its worker runs on a thread of its own; returns what
    /// each took from ring to ring.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn one_by_one(
        &mut self,
        mut datagrams: impl Iterator<Item = Datagram>,
        waiting: Waiting,
    ) -> Result<Vec<Duration>, BenchError> {
        let (time, stop) = (self.time, AtomicBool::new(false));
        let Self { control, homes, frame_bytes, .. } = self;
        let [home, ..] = &mut homes[..] else { return Ok(Vec::new()) };
        let Home { worker, ports, .. } = home;
        let alarm = Arc::clone(&control.posts[0].alarm);
        thread::scope(|scope| {
            scope.spawn(|| match (waiting, &time.clock) {
                (Waiting::Sleeping, Some(clock)) => worker.run(clock, &stop),
                (Waiting::Spinning, _) | (Waiting::Sleeping, None) => spin(worker, &time, &stop),
            });
            let mut taken = Vec::new();
            let result = datagrams.try_for_each(|datagram| {
                let pod = datagram.tuple.destination - pod_address(0, 0).to_bits();
                let frame = frame(control, &datagram, *frame_bytes)?;
                if waiting == Waiting::Sleeping {
                    thread::sleep(ASLEEP_AFTER);
                }
                let start = StdInstant::now();
                ports.send(datagram.entrance, frame, &mut control.pool)?;
                if waiting == Waiting::Sleeping {
                    alarm.ring();
                }
                if !ports.await_frame(pod, &mut control.pool) {
                    return Err(BenchError::Lost { frames: 1, reasons: String::new() });
                }
                taken.push(start.elapsed());
                Ok(())
            });
            stop.store(true, Ordering::Release);
            alarm.ring();
            result.map(|()| taken)
        })
    }

    /// Has the workers time the stages of their batches.
    pub fn time_stages(&mut self) {
        self.homes.iter_mut().for_each(|home| home.worker.time_stages());
    }

    /// Returns what the stages of all workers took since they were to be timed, and has them timed no more.
    pub fn take_stages(&mut self) -> Stages {
        let mut all = Stages::default();
        for stages in self.homes.iter_mut().filter_map(|home| home.worker.take_stages()) {
            all.clocks.iter_mut().zip(stages.clocks).for_each(|(sum, clocks)| *sum += clocks);
            all.ends.iter_mut().zip(stages.ends).for_each(|(sum, ends)| *sum += ends);
        }
        all
    }

    /// Lets time pass for everything that expires.
    pub fn pass(&mut self, time: Duration) {
        self.time.skew += time;
    }

    /// Has time stand still but for [`Lab::pass`]: each run does the same.
    pub fn stop_clock(&mut self) {
        let now = self.time.now();
        self.time = Time { clock: None, skew: now.saturating_duration_since(Instant::ZERO) };
    }

    fn send(&mut self, datagram: &Datagram) -> Result<(), BenchError> {
        let frame = frame(&mut self.control, datagram, self.frame_bytes)?;
        let home = datagram.home() as usize % self.homes.len();
        self.homes[home].ports.send(datagram.entrance, frame, &mut self.control.pool)
    }

    /// Sends a frame into a home's eth0.
    fn send_raw(&mut self, home: usize, bytes: &[u8]) -> Result<(), BenchError> {
        let mut frame = self.control.pool.allocate(bytes.len()).ok_or(BenchError::NoBuffer)?;
        self.control.arena().open(&mut frame).bytes_mut().copy_from_slice(bytes);
        self.homes[home].ports.send(Entrance::Interface, frame, &mut self.control.pool)
    }

    /// Takes all frames that came out: shows those of eth0 and whose it is, counts those of pods.
    fn drain(&mut self, mut show: impl FnMut(usize, &[u8])) -> usize {
        let Self { control, homes, .. } = self;
        let drained = homes
            .iter_mut()
            .enumerate()
            .map(|(number, home)| home.ports.drain(&mut control.pool, |bytes| show(number, bytes)));
        let delivered = drained.sum();
        control.collect_buffers();
        delivered
    }

    fn lost(&self, frames: usize) -> BenchError {
        let ledgers: Vec<_> = self.homes.iter().map(|home| self.control.ledger(home.node)).collect();
        let is_there = |&&reason: &&DropReason| ledgers.iter().any(|ledger| ledger.drops(reason) > 0);
        let reasons: Vec<&str> =
            DropReason::ALL.iter().filter(is_there).map(|reason| reason.name()).collect();
        BenchError::Lost { frames, reasons: reasons.join(", ") }
    }
}

/// Writes a datagram into a buffer.
fn frame(control: &mut Control, datagram: &Datagram, frame_bytes: usize) -> Result<Frame, BenchError> {
    let length = datagram.frame_length(frame_bytes);
    let mut frame = control.pool.allocate(length).ok_or(BenchError::NoBuffer)?;
    let mut open = control.arena().open(&mut frame);
    datagram.write(open.bytes_mut());
    open.record.checksum = ChecksumState::Verified;
    Ok(frame)
}

/// Makes a Service; its first backend is another one in every version.
fn service(scale: &Scale, id: u32, version: u32) -> Service {
    let backend = |number: u32| {
        let step = if number == 0 { BACKENDS * version } else { 0 };
        let endpoint = (id * BACKENDS + number + step) % scale.endpoints;
        let address = self::endpoint(endpoint, u32::from(scale.workers), scale.nodes);
        Backend::new(address, 80, u64::from(endpoint))
    };
    Service {
        id,
        name: Arc::from(format!("default/service-{id}:http")),
        backends: (0..BACKENDS).map(backend).collect::<Vec<_>>().into(),
        ..Service::default()
    }
}

/// Changes a Service and waits until all workers work by it.
fn change(control: &mut Control, service: Service) -> Result<Duration, BenchError> {
    let (start, id) = (StdInstant::now(), service.id);
    control.set_service(service, vec![service_frontend(id)], Vec::new())?;
    let generation = control.tables.current().generation;
    while control.posts.iter().any(|post| post.acknowledged() < generation) {
        std::hint::spin_loop();
    }
    Ok(start.elapsed())
}
