//! Nodes as real ones look: pods on docker0, leases of other nodes, Services, and rings at pods and at eth0.
//!
//! The rows send packets through it, a round at a time: each home's generator fills its rings, the workers run all at once,
//! each home's sink empties its rings; each is timed apart. Invariant: every frame that is sent is seen again, or the round
//! fails.
//!
//! May depend on the engine and the proxy. Read first: `home.rs`.
//!
//! Above 400 lines because rounds, changes and lone frames are three ways through one network.

use std::net::Ipv4Addr;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant as StdInstant};

use flatnet_engine::clock::{Clock, Instant};
use flatnet_engine::control::{Control, EngineConfig};
use flatnet_engine::ledger::DropReason;
use flatnet_engine::tables::Lease;
use flatnet_engine::tunnel::Encapsulation;
use flatnet_engine::worker::Stages;
use flatnet_proxy::{Backend, Protocol, Service};

use super::BenchError;
use super::addresses::{endpoint, node_address, pod_address, service_frontend, subnet};
use super::home::{Home, Load, Spent, Time, Together, answer, pin, spin, spin_while};
use super::packet::{Entrance, Packet};

/// Pods on the bridge of a home.
pub const PODS: u32 = 32;
/// Buffers of a home: in rotation, unless fewer are asked for.
pub const BUFFERS: usize = 4096;
/// Pods behind each Service.
const BACKENDS: u32 = 3;
/// Batches that may move nothing before an exchange counts as failed.
const IDLE_LIMIT: u32 = 10_000;
/// After this time without a frame a worker is asleep.
const ASLEEP_AFTER: Duration = Duration::from_millis(1);
/// The tunnel's port, whichever it is.
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
    /// What they are for.
    pub protocol: Protocol,
    /// Pods that are behind Services, none of them on a home.
    pub endpoints: u32,
    /// Flows of a home, both directions of each, that the cache has room for.
    pub flows: u32,
    /// Bindings of a home.
    pub bindings: usize,
    /// How packets are carried between nodes.
    pub encapsulation: Encapsulation,
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
    load: Load,
}

impl Lab {
    /// Makes the network; `load` is what each home sends in a round.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn new(scale: Scale, load: Load) -> Result<Self, BenchError> {
        let config = EngineConfig {
            workers: scale.workers,
            // The homes' generators have those of the control side.
            small_buffers: 2 * BUFFERS as u32 * u32::from(scale.workers),
            large_buffers: 1,
            // Seven places for the four directions of two flows.
            cache_slots: (scale.flows as usize * 7 / 2).max(1 << 16),
            bindings: scale.bindings.max(1 << 18),
            client_bindings: scale.flows.max(1 << 15),
            ..EngineConfig::default()
        };
        let (mut control, workers) = Control::build(&config)?;
        let Scale { flows, encapsulation, .. } = scale;
        let homes = workers.into_iter().zip(0..);
        let homes = homes.map(|(worker, id)| Home::new(&mut control, worker, id, flows, encapsulation));
        let homes = homes.collect::<Result<_, _>>()?;
        let time = Time { clock: Some(Clock::start()), skew: Duration::ZERO };
        let mut lab = Self { control, homes, time, scale, load };
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
                tables.set_lease(subnet, Some(Lease { public_ip: node_address(node), vtep: None }));
            }
            for id in 0..scale.services {
                if result.is_ok() {
                    let frontend = service_frontend(id, scale.protocol);
                    result = tables.set_service(service(&scale, id, 0), vec![frontend], Vec::new());
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
            let from = (pod_address(home, 0), 1024);
            let to = |address| Packet::new(Entrance::Pod(0), Protocol::Udp, from, (address, 7));
            let mut outward = vec![to(Ipv4Addr::new(198, 18, 0, 1))];
            outward.extend((homes..self.scale.nodes).map(|node| to(pod_address(node, 0))));
            for some in outward.chunks(256) {
                self.exchange(some)?;
            }
        }
        // The flows that these were are of no row: the cache has room where they are.
        self.control.tables.publish(|tables| tables.touch_all());
        Ok(())
    }

    fn run_all(&mut self) {
        let now = self.time.now();
        for home in &mut self.homes {
            home.worker.run_batch(now);
        }
    }

    /// Sends packets, answers what the homes ask, and returns what comes out of their eth0.
    ///
    /// # Errors
    /// [`BenchError::Lost`] when fewer come out of pods and eth0 together than went in.
    pub fn exchange(&mut self, packets: &[Packet]) -> Result<Vec<Packet>, BenchError> {
        let mut seen = Vec::with_capacity(packets.len());
        let mut delivered = 0;
        for some in packets.chunks(BUFFERS) {
            let before = delivered + seen.len();
            for packet in some {
                let home = packet.home() as usize % self.homes.len();
                let ports = &mut self.homes[home].ports;
                let frame = ports.frame(packet, self.load.frame_bytes)?;
                ports.send(packet.entrance, frame)?;
            }
            let mut idle = 0;
            while delivered + seen.len() < before + some.len() {
                self.run_all();
                let mut asked = Vec::new();
                let arrived = delivered + seen.len();
                delivered += self.drain(|home, bytes| match Packet::read(bytes) {
                    Some(packet) => seen.push(packet),
                    None => asked.extend(answer(bytes).map(|reply| (home, reply))),
                })?;
                for (home, reply) in asked {
                    let ports = &mut self.homes[home].ports;
                    let frame = ports.frame_with(reply.len(), |bytes| bytes.copy_from_slice(&reply))?;
                    ports.send(Entrance::Interface, frame)?;
                }
                idle = if delivered + seen.len() > arrived { 0 } else { idle + 1 };
                if idle > IDLE_LIMIT {
                    return Err(self.lost(before + some.len() - delivered - seen.len()));
                }
            }
        }
        Ok(seen)
    }

    /// Sends rounds through the workers, `gap` apart for everything that expires: each home's packets from a source of its own,
    /// in the homes' order.
    ///
    /// # Errors
    /// [`BenchError::Lost`] when not all come out.
    pub fn rounds(
        &mut self,
        count: u32,
        gap: Duration,
        sources: Vec<impl FnMut() -> Packet + Send>,
    ) -> Result<Vec<Round>, BenchError> {
        let together = Together::new(self.homes.len(), true);
        let Self { homes, time, load, .. } = self;
        let spent = match &mut homes[..] {
            [home] => {
                let of_home = |source| home.rounds(count, gap, source, *load, *time, &together);
                sources.into_iter().map(of_home).collect()
            }
            _ => self.rounds_on_threads(count, gap, sources, &together, |_| ()).0,
        };
        self.pass(gap * count);
        self.sum(spent)
    }

    /// Sends a round through the workers while a Service's first backend becomes another one; returns also how long it took
    /// from the change until all workers had acknowledged it.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn round_with_change(
        &mut self,
        sources: Vec<impl FnMut() -> Packet + Send>,
        id: u32,
        version: u32,
    ) -> Result<(Round, Duration), BenchError> {
        let (protocol, service) = (self.scale.protocol, service(&self.scale, id, version));
        let together = Together::new(self.homes.len(), false);
        let (spent, changed) = self.rounds_on_threads(1, Duration::ZERO, sources, &together, |control| {
            // A worker that is still filling its rings acknowledges nothing.
            together.await_filled(1);
            change(control, protocol, service, &together)
        });
        let round = self.sum(spent)?.pop().unwrap_or_default();
        Ok((round, changed?))
    }

    /// Runs each home's part of rounds on a thread and core of its own, and something else at the same time.
    fn rounds_on_threads<T>(
        &mut self,
        count: u32,
        gap: Duration,
        sources: Vec<impl FnMut() -> Packet + Send>,
        together: &Together,
        meanwhile: impl FnOnce(&mut Control) -> T,
    ) -> (Vec<Result<Vec<Spent>, BenchError>>, T) {
        let Self { control, homes, time, load, .. } = self;
        let are_several = homes.len() > 1;
        let run = |number, home: &mut Home, source| {
            if are_several {
                // Where the system does not let it, its caches are cold.
                let _ = pin(number);
            }
            home.rounds(count, gap, source, *load, *time, together)
        };
        thread::scope(|scope| {
            let parts = homes.iter_mut().zip(sources).enumerate();
            let threads: Vec<_> = parts
                .map(|(number, (home, source))| scope.spawn(move || run(number, home, source)))
                .collect();
            let other = meanwhile(control);
            together.done.store(true, Ordering::Release);
            let parts =
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(|it| resume_unwind(it)));
            (parts.collect(), other)
        })
    }

    /// Puts the homes' parts of each round together.
    fn sum(&self, spent: Vec<Result<Vec<Spent>, BenchError>>) -> Result<Vec<Round>, BenchError> {
        let homes = spent.into_iter().collect::<Result<Vec<_>, _>>()?;
        let count = homes.iter().map(Vec::len).min().unwrap_or(0);
        let (mut rounds, mut missing) = (vec![Round::default(); count], 0);
        for (number, round) in rounds.iter_mut().enumerate() {
            let parts = || homes.iter().map(|home| home[number]);
            // From the first that begins to the last that ends: workers that take turns on a core are no faster for it.
            let begun = parts().map(|it| it.begun).min();
            let ended = parts().map(|it| it.ended).max();
            round.time = begun.zip(ended).map_or(Duration::ZERO, |(begun, ended)| ended - begun);
            round.clocks = parts().map(|it| it.clocks).sum();
            round.outside = parts().map(|it| it.outside).sum();
            missing += parts().map(|it| it.missing).sum::<usize>();
        }
        if missing > 0 { Err(self.lost(missing)) } else { Ok(rounds) }
    }

    /// Sends packets between pods of the first home one by one, while its worker runs on a thread of its own; returns what
    /// each took from ring to ring.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn one_by_one(
        &mut self,
        mut packets: impl Iterator<Item = Packet>,
        waiting: Waiting,
    ) -> Result<Vec<Duration>, BenchError> {
        let (time, stop) = (self.time, AtomicBool::new(false));
        let Self { control, homes, load, .. } = self;
        let [home, ..] = &mut homes[..] else { return Ok(Vec::new()) };
        let Home { worker, ports, .. } = home;
        let alarm = Arc::clone(&control.posts[0].alarm);
        thread::scope(|scope| {
            scope.spawn(|| match (waiting, &time.clock) {
                (Waiting::Sleeping, Some(clock)) => worker.run(clock, &stop),
                (Waiting::Spinning, _) | (Waiting::Sleeping, None) => spin(worker, &time, &stop),
            });
            let mut taken = Vec::new();
            let result = packets.try_for_each(|packet| {
                let pod = packet.tuple.destination - pod_address(0, 0).to_bits();
                let frame = ports.frame(&packet, load.frame_bytes)?;
                if waiting == Waiting::Sleeping {
                    thread::sleep(ASLEEP_AFTER);
                }
                let start = StdInstant::now();
                ports.send(packet.entrance, frame)?;
                if waiting == Waiting::Sleeping {
                    alarm.ring();
                }
                if !ports.await_frame(pod) {
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

    /// Takes all frames that came out: shows those of eth0 and whose it is, counts those of pods.
    ///
    /// # Errors
    /// [`BenchError::NoBuffer`].
    fn drain(&mut self, mut show: impl FnMut(usize, &[u8])) -> Result<usize, BenchError> {
        let Self { control, homes, .. } = self;
        control.collect_buffers();
        let mut delivered = 0;
        for (number, home) in homes.iter_mut().enumerate() {
            delivered += home.ports.drain(|bytes| show(number, bytes));
            home.ports.fill(&mut control.pool)?;
        }
        Ok(delivered)
    }

    fn lost(&self, frames: usize) -> BenchError {
        let ledgers: Vec<_> = self.homes.iter().map(|home| self.control.ledger(home.node)).collect();
        let is_there = |&&reason: &&DropReason| ledgers.iter().any(|ledger| ledger.drops(reason) > 0);
        let reasons: Vec<&str> =
            DropReason::ALL.iter().filter(is_there).map(|reason| reason.name()).collect();
        BenchError::Lost { frames, reasons: reasons.join(", ") }
    }
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
fn change(
    control: &mut Control,
    protocol: Protocol,
    service: Service,
    together: &Together,
) -> Result<Duration, BenchError> {
    let (start, frontend) = (StdInstant::now(), service_frontend(service.id, protocol));
    control.set_service(service, vec![frontend], Vec::new())?;
    let generation = control.tables.current().generation;
    let waits = || control.posts.iter().any(|post| post.acknowledged() < generation);
    spin_while(|| waits() && !together.is_given_up());
    Ok(start.elapsed())
}
