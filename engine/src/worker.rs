//! The packet's way in code: a worker takes batches from its links and runs each through three passes.
//!
//! [`Worker::run_batch`] is called in a loop by a thread of its own, or by whoever keeps virtual time. It owns
//! everything the packet path writes. Invariants: a frame that came in is sent, consumed, held or dropped by
//! name; frames of a flow stay in order; per packet nothing is locked, allocated or asked of the system.
//! Allowed dependencies: all of the engine. Read first: `docs/architecture.md`, "Run to completion".
//!
//! Above 400 lines because the loop is the tour through everything else.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use flatnet_proxy::{Affinity, Cursors};

use crate::binding::{Bindings, Half};
use crate::bridge::Fdb;
use crate::clock::{Clock, Instant};
use crate::control::EngineConfig;
use crate::flow::{FlowCache, flags};
use crate::fragment::Fragments;
use crate::frame::{Arena, ChecksumState, Course, Frame, Pool};
use crate::hash::KeyedState;
use crate::ledger::{DropReason, NodeCounters, Term};
use crate::link::Link;
use crate::link::replay::Replay;
use crate::load::Loads;
use crate::mailbox::{Incoming, Mailbox, Notice, Outgoing, Parcel};
use crate::masquerade::{Masquerade, Pool as PortPool};
use crate::neighbor::Neighbors;
use crate::parse::{Class, IngressPort, Parsed};
use crate::path_mtu::PathMtu;
use crate::random::Random;
use crate::rewrite::Adjacency;
use crate::tables::{NodeId, PortId, Reader, Tables};
use crate::trace::{Action, Event, Observer, Point};

/// Borrows of a worker what a decision reads and changes, and no more: its buffers can be read meanwhile. A method would borrow all of
/// it, and whoever needs a buffer would have to count one more user of all buffers, which all workers share.
macro_rules! world {
    ($worker:expr, $now:expr) => {
        crate::decide::World {
            tables: &$worker.tables,
            bindings: &mut $worker.bindings,
            neighbors: &mut $worker.neighbors,
            path_mtu: &$worker.path_mtu,
            fdb: &mut $worker.fdb,
            cursors: &mut $worker.cursors,
            affinity: &mut $worker.affinity,
            random: &mut $worker.random,
            masquerade: &mut $worker.masquerade,
            worker: $worker.id,
            workers: $worker.workers,
            now: $now,
        }
    };
}

mod arp;
mod budget;
mod cables;
mod debts;
mod exchange;
mod fetch;
mod files;
mod finish;
mod forget;
mod forward;
mod fragments;
mod grant;
mod inspect;
mod originate;
mod passes;
mod pods;
mod ports;
mod replays;
mod segments;
mod slow;
mod sockets;
mod stages;

use budget::{Debt, SMALL_BATCH, TokenBucket};

pub use debts::Permission;
pub use pods::EndedContainers;
pub use replays::ReplayState;
pub use stages::{Stage, Stages};

/// Frames a batch has at most.
pub const BATCH_LIMIT: usize = 64;
/// Bindings, learned MACs, and clients with session affinity, looked at per batch for expiry.
const SWEEP: usize = 32;
/// Adjacencies a worker keeps; one more clears the cache.
const ADJACENCY_LIMIT: usize = 1 << 16;
/// Batches without a frame before a worker sleeps.
const SPINS: u32 = 256;
/// The same of a worker with links that are files: it asks the system in each, and lets the programs run whose frames it takes.
const FILE_SPINS: u32 = 64;
/// The longest sleep: rings of strangers do not wake a worker.
const SLEEP_LIMIT: Duration = Duration::from_millis(10);
/// The ingress of frames that the node made itself.
const ORIGINATED: u32 = u32::MAX;

/// A link and what the packet path must know of its port.
#[derive(Debug)]
struct Attached {
    link: Link,
    node: NodeId,
    /// This worker's counters of that node.
    counters: Arc<NodeCounters>,
    ingress: IngressPort,
    /// Frames that came in and are not processed yet.
    waiting: VecDeque<Frame>,
    /// Whether the port is in the list of ports with waiting frames.
    is_ready: bool,
    debt: Debt,
    /// Other workers that it owes so much that they are asked before a batch is taken.
    creditors: Vec<debts::Creditor>,
}

/// What [`crate::control::Control::build`] gives a worker.
#[derive(Debug)]
pub struct Parts {
    /// Its buffers.
    pub pool: Pool,
    /// Its view of the tables.
    pub reader: Reader,
    /// Its mailbox.
    pub mailbox: Mailbox,
    /// Its counters, by node.
    pub counters: Arc<[Arc<NodeCounters>]>,
    /// Its counters of backends' connections.
    pub loads: Loads,
    /// Its ways to the others, by number; none to itself.
    pub outgoing: Vec<Option<Outgoing>>,
    /// Its ways from the others.
    pub incoming: Vec<Incoming>,
    /// Its generator.
    pub random: Random,
}

/// One worker: some links and everything the packet path writes for them.
#[derive(Debug)]
pub struct Worker {
    id: u8,
    workers: u8,
    /// For how long it looks for work before it sleeps.
    poll: Duration,
    arena: Arc<Arena>,
    pool: Pool,
    reader: Reader,
    tables: Arc<Tables>,
    mailbox: Mailbox,
    counters: Arc<[Arc<NodeCounters>]>,
    outgoing: Vec<Option<Outgoing>>,
    incoming: Vec<Incoming>,
    cache: FlowCache,
    adjacencies: Adjacencies,
    bindings: Bindings,
    masquerade: Masquerade,
    /// Frames whose source cannot be translated before another worker has granted a port.
    waiting_for_ports: VecDeque<grant::Waiting>,
    /// Notices that must not be lost and found no room yet.
    unsent: VecDeque<(u8, Notice)>,
    fragments: Fragments,
    path_mtu: PathMtu<(NodeId, Ipv4Addr)>,
    neighbors: Neighbors,
    fdb: Fdb,
    cursors: Cursors,
    affinity: Affinity,
    random: Random,
    /// Who listens, and what there is for them.
    pub observer: Observer,
    links: Vec<Option<Attached>>,
    ready: VecDeque<PortId>,
    /// Pods that have taken frames in this batch and not run since.
    woken: Vec<PortId>,
    /// Ports of pods whose containers ended since the control side asked.
    ended: BTreeSet<PortId>,
    /// Recordings on their way into ports.
    replays: Vec<Replay>,
    timers: ports::Timers,
    /// Ports by which frames were sent that are yet to be written.
    unwritten: Vec<PortId>,
    /// Ports whose links are rings: looked at in every batch.
    ring_ports: Vec<PortId>,
    /// What its stages take, while somebody asks.
    stages: Option<Box<Stages>>,
    /// The time of the present batch.
    now: Instant,
    next_mark: u32,
    /// Frames that went through the passes.
    frames: u64,
    /// Frames that the slow path decided about.
    decisions: u64,
    parcels: Vec<Parcel>,
    /// Errors it may still send.
    errors: TokenBucket,
    /// Frames that ports of bridges may still have flooded.
    floods: HashMap<PortId, TokenBucket>,
    /// What other workers' ports of bridges owe for decisions here.
    strangers: debts::Strangers,
    identification: u16,
    originated_identification: u16,
    batch: Batch,
}

/// The ways frames leave, numbered.
#[derive(Debug)]
struct Adjacencies {
    list: Vec<Adjacency>,
    numbers: HashMap<Adjacency, u32, KeyedState>,
}

/// The arrays that the passes run over; kept to be reused.
#[derive(Debug, Default)]
struct Batch {
    frames: Vec<Frame>,
    parsed: Vec<Parsed>,
}

impl Worker {
    /// Makes a worker without links.
    ///
    /// # Errors
    /// The system's, when there is no memory for the cache.
    pub fn new(id: u8, config: &EngineConfig, parts: Parts) -> std::io::Result<Self> {
        let Parts { pool, mut reader, mailbox, counters, loads, outgoing, incoming, mut random } = parts;
        let own = [random.next_u64(), random.next_u64()];
        let mut secrets = config.secret.map(|secret| Random::new(secret).fork(u64::from(id)));
        let secret = secrets.as_mut().map_or(own, |random| [random.next_u64(), random.next_u64()]);
        let mut bindings = Bindings::new(config.bindings, config.client_bindings, secret)?;
        bindings.loads = loads;
        Ok(Self {
            id,
            workers: config.workers.max(1),
            poll: config.poll,
            arena: Arc::clone(pool.arena()),
            pool,
            tables: Arc::clone(reader.load()),
            reader,
            mailbox,
            counters,
            outgoing,
            incoming,
            cache: FlowCache::new(config.cache_slots, secret)?,
            adjacencies: Adjacencies { list: Vec::new(), numbers: HashMap::with_hasher(KeyedState(secret)) },
            bindings,
            masquerade: Masquerade::new(id, config.workers),
            waiting_for_ports: VecDeque::new(),
            unsent: VecDeque::new(),
            fragments: Fragments::default(),
            path_mtu: PathMtu::default(),
            neighbors: Neighbors::default(),
            fdb: Fdb::default(),
            cursors: Cursors::new(id),
            affinity: Affinity::default(),
            identification: random.next_u16(),
            originated_identification: u16::from(id),
            random,
            observer: Observer::default(),
            links: Vec::new(),
            ready: VecDeque::new(),
            woken: Vec::new(),
            ended: BTreeSet::new(),
            replays: Vec::new(),
            timers: ports::Timers::default(),
            unwritten: Vec::new(),
            ring_ports: Vec::new(),
            stages: None,
            now: Instant::ZERO,
            next_mark: u32::from(id) << 24,
            frames: 0,
            decisions: 0,
            parcels: Vec::new(),
            errors: TokenBucket::full(originate::ERRORS),
            floods: HashMap::new(),
            strangers: debts::Strangers::default(),
            batch: Batch::default(),
        })
    }

    /// Does everything that can be done at `now`, one batch per port; returns how many frames it moved.
    pub fn run_batch(&mut self, now: Instant) -> usize {
        if self.stages.is_some() { self.run_timed::<true>(now) } else { self.run_timed::<false>(now) }
    }

    fn run_timed<const TIMED: bool>(&mut self, now: Instant) -> usize {
        Stages::begin::<TIMED>(&mut self.stages);
        // 1. What the control side wants.
        self.now = now;
        self.refresh_tables();
        let mut moved = self.open_mailbox();
        // Ahead of the frames: what is cached may lead to stations that have aged since the last batch.
        if self.fdb.renewal_is_due(now) {
            self.cache.clear();
        }
        // 2. What the other workers sent, what is due, what the links have.
        moved += self.send_unsent() + self.receive_parcels(now);
        self.ask_neighbors_again(now);
        self.expire_fragments(now);
        self.run_timers(now);
        moved += self.run_replays(now);
        self.look_at_files();
        Stages::end::<TIMED>(&mut self.stages, Stage::Upkeep);
        // 3. A batch per port; when nobody else has anything, of those that would have to wait for others, too.
        let own = self.run_ports::<TIMED>(0, now);
        moved += own + self.answer_strangers(false);
        if moved == 0 {
            moved += self.run_ports::<TIMED>(SMALL_BATCH, now) + self.answer_strangers(true);
        }
        self.run_woken(now);
        self.write_files(now);
        // 4. What can wait.
        self.bindings.sweep(SWEEP, now);
        self.affinity.sweep(SWEEP, Duration::from_nanos(now.as_nanos()));
        self.spread_news();
        self.fdb.sweep(SWEEP, now);
        self.send_buffers_home();
        self.announce();
        Stages::end::<TIMED>(&mut self.stages, Stage::Upkeep);
        moved
    }

    /// Runs batches on this thread until `stop` is set; sleeps while there is nothing to do.
    pub fn run(&mut self, clock: &Clock, stop: &AtomicBool) {
        let (mut idle, mut awake_until) = (0, clock.now() + self.poll);
        while !stop.load(Ordering::Acquire) {
            let now = clock.now();
            if self.run_batch(now) > 0 {
                (idle, awake_until) = (0, now + self.poll);
                continue;
            }
            idle += 1;
            let spins = if self.mailbox.watch.is_empty() {
                SPINS
            } else {
                // Whoever is to send or to receive the next frame may want this core. Two switches for each frame cost both sides
                // more than that: without this a stream had two thirds.
                thread::yield_now();
                FILE_SPINS
            };
            if idle > spins && now >= awake_until {
                let next =
                    self.next_event(now).map_or(SLEEP_LIMIT, |next| next.saturating_duration_since(now));
                self.sleep(now, next.min(SLEEP_LIMIT));
            }
        }
    }

    fn refresh_tables(&mut self) {
        let current = self.reader.load();
        if !Arc::ptr_eq(current, &self.tables) {
            self.tables = Arc::clone(current);
            self.mailbox.acknowledge(self.tables.generation);
        }
    }

    fn open_mailbox(&mut self) -> usize {
        let mut visits = 0;
        while let Some(visit) = self.mailbox.next() {
            // What was published before the visit was sent is there now, and the visit must see it.
            self.refresh_tables();
            visit(self);
            visits += 1;
        }
        visits
    }

    fn run_ports<const TIMED: bool>(&mut self, least: usize, now: Instant) -> usize {
        let mut moved = 0;
        for _ in 0..self.ready.len() {
            if let Some(port) = self.ready.pop_front() {
                // Whoever waits until all work by a change waits for a batch of one port at most.
                self.refresh_tables();
                moved += self.run_port::<TIMED>(port, least, now);
            }
        }
        moved
    }

    fn run_port<const TIMED: bool>(&mut self, port: PortId, least: usize, now: Instant) -> usize {
        let mut frames = std::mem::take(&mut self.batch.frames);
        let Some((node, ingress)) = self.take_batch(port, least, &mut frames) else {
            self.batch.frames = frames;
            return 0;
        };
        let count = frames.len();
        self.count(node, Term::Received, count as u64);
        self.watch_arrivals(&mut frames, node, port, now);
        Stages::end::<TIMED>(&mut self.stages, Stage::Take);
        self.run_frames::<TIMED>(&mut frames, node, &ingress, Course::Direct, now);
        self.batch.frames = frames;
        count
    }

    #[inline(always)]
    fn count(&self, node: NodeId, term: Term, frames: u64) {
        if let Some(counters) = self.counters.get(usize::from(node.0)) {
            counters.count(term, frames);
        }
    }

    /// Drops a frame by name: counted, told to whoever traces it, shown where it came in, its buffer freed.
    fn drop_frame(&mut self, frame: Frame, reason: DropReason, now: Instant) {
        self.show_arrival(&frame, now);
        let record = self.arena.record(&frame);
        let point = if record.ingress == ORIGINATED {
            Point::Bridge
        } else {
            self.ingress_point(PortId(record.ingress))
        };
        self.drop_at(frame, point, reason, now);
    }

    fn drop_at(&mut self, mut frame: Frame, point: Point, reason: DropReason, now: Instant) {
        let open = self.arena.open(&mut frame);
        let node = NodeId(open.record.node);
        if open.record.mark != 0 {
            let event = ports::event(open.record, point, Action::Drop(reason), now);
            self.observer.pass(event, ports::seen(&open, event));
        }
        if let Some(counters) = self.counters.get(usize::from(node.0)) {
            counters.drop_frame(reason);
        }
        self.pool.free(frame);
    }
}
