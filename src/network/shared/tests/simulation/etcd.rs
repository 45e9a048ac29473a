//! The etcd of a simulation: an embedded store that answers late, not at all, or is exchanged for what it was before.
//!
//! Each node has a [`Client`]; the simulation itself has the [`World`]. Invariants: what a client sees is what `agents/src/store/etcd.rs` lets its
//! callers see: a request that is not answered may have happened, a watch goes on where it was or says why not; everything random comes from
//! the seed, and time is told.
//!
//! Above 400 lines because the faults of an etcd are faults of one state.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use flatnet_agents::store::embedded::{self, Watch as Inner};
use flatnet_agents::store::{Compare, Event, KeyValue, LeaseState, Listing, Op, Outcome, Revision, Watching};
use flatnet_engine::random::Random;
use futures::FutureExt as _;
use futures::stream::{Stream, StreamExt as _};

use super::super::*;

/// How long a request is tried before it counts as unanswered, as etcd's deadline here.
const DEADLINE: Duration = Duration::from_secs(5);
/// Events that are kept for watches: few, so that who is away for long is compacted.
const HISTORY: usize = 40;

/// What an embedded store comes to at once.
pub(super) fn now<R>(answer: impl Future<Output = R>) -> R {
    answer.now_or_never().unwrap()
}

/// A store as it was.
#[derive(Clone)]
struct Snapshot {
    entries: Vec<KeyValue>,
    leases: BTreeMap<i64, Duration>,
}

/// How a node reaches the etcd.
#[derive(Clone, Copy, Default, PartialEq)]
pub(super) struct Way {
    pub(super) is_cut: bool,
    pub(super) is_slow: bool,
    /// Answers get lost that were given.
    pub(super) is_lossy: bool,
}

pub(super) struct State {
    pub(super) store: Embedded,
    /// Which history the store's revisions are of.
    generation: u64,
    pub(super) now: Instant,
    pub(super) random: Random,
    pub(super) ways: Vec<Way>,
    /// How often each node's watches were broken.
    breaks: Vec<u64>,
    snapshot: Option<Snapshot>,
    last_lease: i64,
    sleepers: Vec<(Instant, Waker)>,
    /// What stood at a generation and revision.
    stands: ((u64, Revision), BTreeSet<Ipv4Prefix>),
    /// When each subnet was last without a lease that stands.
    pub(super) absent: BTreeMap<Ipv4Prefix, Instant>,
    /// What must not be and was.
    pub(super) wrong: Vec<String>,
    pub(super) trail: Vec<String>,
}

/// The etcd, and what happens to it.
#[derive(Clone)]
pub(super) struct World(Arc<Mutex<State>>);

impl World {
    pub(super) fn new(seed: u64, nodes: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            store: Embedded::with_options(embedded::Options { history: HISTORY }),
            generation: 0,
            now: Instant::ZERO,
            random: Random::new(seed),
            ways: vec![Way::default(); nodes],
            breaks: vec![0; nodes],
            snapshot: None,
            last_lease: 0,
            sleepers: Vec::new(),
            stands: Default::default(),
            absent: BTreeMap::new(),
            wrong: Vec::new(),
            trail: Vec::new(),
        })))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn below(&self, limit: usize) -> usize {
        self.state().random.below(limit)
    }

    pub(super) fn say(&self, text: String) {
        let mut state = self.state();
        let at = state.now.saturating_duration_since(Instant::ZERO).as_millis();
        state.trail.push(format!("{:>10}.{:03} {text}", at / 1000, at % 1000));
    }

    /// Says what time it is.
    pub(super) fn advance(&self, now: Instant) {
        let (store, woken) = {
            let mut state = self.state();
            state.now = now;
            let (due, later) =
                std::mem::take(&mut state.sleepers).into_iter().partition(|(at, _)| *at <= now);
            state.sleepers = later;
            let due: Vec<(Instant, Waker)> = due;
            (state.store.clone(), due)
        };
        woken.into_iter().for_each(|(_, waker)| waker.wake());
        store.advance(now).unwrap();
        self.look();
    }

    /// Waits for so long.
    pub(super) async fn sleep(&self, time: Duration) {
        let end = self.state().now + time;
        poll_fn(|context| {
            let mut state = self.state();
            if state.now >= end {
                return Poll::Ready(());
            }
            state.sleepers.push((end, context.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// The leases that there are.
    pub(super) fn entries(&self) -> Vec<KeyValue> {
        let store = self.state().store.clone();
        now(store.list(&lease::subnets_prefix(PREFIX))).unwrap().entries
    }

    /// Notes which subnets are without a lease.
    pub(super) fn look(&self) {
        let version = {
            let state = self.state();
            (state.generation, state.store.revision())
        };
        if self.state().stands.0 != version {
            let standing = standing(&self.entries(), None);
            self.state().stands = (version, standing.into_keys().collect());
        }
        let mut state = self.state();
        let State { absent, stands: (_, stands), now, .. } = &mut *state;
        for (subnet, last) in &mut *absent {
            if !stands.contains(subnet) {
                *last = *now;
            }
        }
        for subnet in &*stands {
            absent.entry(*subnet).or_insert(*now);
        }
    }

    /// What a hand from outside does to it.
    pub(super) fn by_hand(&self, ops: Vec<Op>) {
        let store = self.state().store.clone();
        now(store.transact(Vec::new(), ops)).unwrap();
        self.look();
    }

    /// Breaks a node's watches; they go on where they were, if that is there yet.
    pub(super) fn break_watches(&self, node: usize) {
        let mut state = self.state();
        state.breaks[node] += 1;
        // Who waits for an event looks again.
        let all: Vec<Waker> = state.sleepers.drain(..).map(|(_, waker)| waker).collect();
        drop(state);
        all.into_iter().for_each(Waker::wake);
    }

    pub(super) fn keep_snapshot(&self) {
        let store = self.state().store.clone();
        let last = now(store.grant(Duration::from_secs(1))).unwrap().0;
        let alive = |id| Some((id, now(store.lease(LeaseId(id))).ok()?.granted));
        let leases = (1..last).filter_map(alive).collect();
        let entries = now(store.list("/")).unwrap().entries;
        let mut state = self.state();
        state.snapshot = Some(Snapshot { entries, leases });
        state.last_lease = state.last_lease.max(last);
    }

    /// Makes the etcd what it was at the snapshot, if there is one; no lease's name is ever given twice.
    pub(super) fn restore(&self) -> bool {
        let Some(Snapshot { mut entries, leases }) = self.state().snapshot.clone() else { return false };
        let before = self.state().store.clone();
        let burnt = now(before.grant(Duration::from_secs(1))).unwrap().0;
        let store = Embedded::with_options(embedded::Options { history: HISTORY });
        store.advance(self.state().now).unwrap();
        for id in 1..=burnt.max(self.state().last_lease) {
            let ttl = leases.get(&id).copied();
            let given = now(store.grant(ttl.unwrap_or(Duration::from_secs(1)))).unwrap();
            assert_eq!(given, LeaseId(id));
            if ttl.is_none() {
                now(store.revoke(given)).unwrap();
            }
        }
        entries.sort_by_key(|entry| entry.create_revision);
        for KeyValue { key, value, lease, .. } in entries {
            now(store.transact(Vec::new(), vec![Op::Put { key, value, lease }])).unwrap();
        }
        let mut state = self.state();
        (state.store, state.generation) = (store, state.generation + 1);
        let all: Vec<Waker> = state.sleepers.drain(..).map(|(_, waker)| waker).collect();
        drop(state);
        all.into_iter().for_each(Waker::wake);
        self.look();
        true
    }

    pub(super) fn client(&self, node: usize) -> Client {
        Client { world: self.clone(), node, generation: Arc::new(Mutex::new(None)) }
    }
}

/// Which of the keys stand for a node that has a subnet: the older before the younger, each by the address that holds it.
pub(super) fn standing(entries: &[KeyValue], own: Option<Ipv4Prefix>) -> BTreeMap<Ipv4Prefix, Ipv4Addr> {
    let network: Ipv4Prefix = super::NETWORK.parse().unwrap();
    let read = |entry: &KeyValue| {
        Some((lease::parse_lease(PREFIX, &entry.key, &entry.value).ok()?, entry.create_revision))
    };
    let mut all: Vec<_> = entries.iter().filter_map(read).collect();
    all.sort_by_key(|(_, created)| *created);
    let mut standing = BTreeMap::<Ipv4Prefix, Ipv4Addr>::new();
    for (lease, _) in all {
        let mut others = standing.keys().chain(&own);
        if network.covers(lease.subnet) && !others.any(|other| other.overlaps(lease.subnet)) {
            standing.insert(lease.subnet, lease.attributes.public_ip);
        }
    }
    standing
}

/// A node's way to the etcd.
#[derive(Clone)]
pub(super) struct Client {
    world: World,
    node: usize,
    /// Which history the last answer was of.
    generation: Arc<Mutex<Option<u64>>>,
}

impl Client {
    /// Asks; what is asked for happens between two waits, or not, and its answer comes or not.
    async fn ask<R>(&self, act: impl FnOnce(&Embedded) -> Result<R, StoreError>) -> Result<R, StoreError> {
        self.wait().await;
        self.reach().await?;
        let (store, generation) = {
            let state = self.world.state();
            (state.store.clone(), state.generation)
        };
        let answer = act(&store);
        *self.generation.lock().unwrap() = Some(generation);
        self.world.look();
        self.wait().await;
        let is_lossy = self.world.state().ways[self.node].is_lossy;
        if is_lossy && self.world.below(4) == 0 {
            return self.silent().await;
        }
        self.reach().await?;
        answer
    }

    async fn wait(&self) {
        let most = if self.world.state().ways[self.node].is_slow { 3000 } else { 20 };
        let time = self.world.below(most) as u64;
        self.world.sleep(Duration::from_millis(time)).await;
    }

    async fn reach(&self) -> Result<(), StoreError> {
        if self.world.state().ways[self.node].is_cut { self.silent().await } else { Ok(()) }
    }

    async fn silent<R>(&self) -> Result<R, StoreError> {
        self.world.sleep(DEADLINE).await;
        Err(StoreError::Unavailable { cause: "simulated".into() })
    }

    /// Whoever writes over another's lease is told on.
    fn check(&self, store: &Embedded, ops: &[Op]) -> Vec<String> {
        let mine = super::address(self.node);
        let of = |value: &[u8]| Attributes::from_json(value).ok().map(|attributes| attributes.public_ip);
        let other = |op: &Op| {
            let before = now(store.get(op.key())).unwrap()?;
            let holder = of(&before.value)?;
            let is_lease = op.key().starts_with(&lease::subnets_prefix(PREFIX));
            (is_lease && holder != mine)
                .then(|| format!("{mine} wrote over {}, which {holder} has", op.key()))
        };
        ops.iter().filter_map(other).collect()
    }
}

impl Store for Client {
    type Watch = Watch;

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.ask(|store| now(store.get(key))).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.ask(|store| now(store.list(prefix))).await
    }

    async fn transact(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Outcome, StoreError> {
        self.ask(|store| {
            let wrong = self.check(store, &ops);
            let outcome = now(store.transact(compares, ops))?;
            if let Outcome::Done(_) = outcome {
                self.world.state().wrong.extend(wrong);
            }
            Ok(outcome)
        })
        .await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        let known = *self.generation.lock().unwrap();
        let inner = self.ask(|store| now(store.watch(prefix, from))).await;
        let generation = self.generation.lock().unwrap().unwrap();
        if known.is_some_and(|known| known != generation) {
            return Err(StoreError::Restored { cause: "simulated".into() });
        }
        let breaks = self.world.state().breaks[self.node];
        let client = self.clone();
        let place = Place { revision: Revision(from.0.saturating_sub(1)), taken: 0 };
        Ok(Watch { client, prefix: prefix.into(), inner: Some(inner?), generation, breaks, place })
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.ask(|store| now(store.compact(revision))).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.ask(|store| now(store.grant(ttl))).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.ask(|store| now(store.keep_alive(lease))).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<Revision, StoreError> {
        self.ask(|store| now(store.revoke(lease))).await
    }

    async fn lease(&self, lease: LeaseId) -> Result<LeaseState, StoreError> {
        self.ask(|store| now(store.lease(lease))).await
    }
}

/// How far a watch has come: events of the revision that were handed out; all of those before.
struct Place {
    revision: Revision,
    taken: usize,
}

/// A watch that is taken up where it was when it was broken.
pub(super) struct Watch {
    client: Client,
    prefix: String,
    inner: Option<Inner>,
    generation: u64,
    breaks: u64,
    place: Place,
}

impl Watch {
    /// Takes it up after the last event that was handed out.
    fn resume(&mut self) -> Result<(), StoreError> {
        let store = self.client.world.state().store.clone();
        let Place { revision, taken } = self.place;
        let from = if taken == 0 { revision.next() } else { revision };
        let mut inner = now(store.watch(&self.prefix, from))?;
        for _ in 0..taken {
            let _ = inner.next().now_or_never();
        }
        self.inner = Some(inner);
        Ok(())
    }
}

impl Stream for Watch {
    type Item = Result<Event, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let (world, node) = (this.client.world.clone(), this.client.node);
        let (way, generation, breaks) = {
            let mut state = world.state();
            // Whatever becomes of it, it is looked at again when time has passed.
            let soon = state.now + Duration::from_millis(1);
            state.sleepers.push((soon, context.waker().clone()));
            (state.ways[node], state.generation, state.breaks[node])
        };
        if way.is_cut || breaks != this.breaks {
            (this.inner, this.breaks) = (None, breaks);
        }
        if way.is_cut {
            return Poll::Pending;
        }
        if generation != this.generation {
            return Poll::Ready(Some(Err(StoreError::Restored { cause: "simulated".into() })));
        }
        if this.inner.is_none()
            && let Err(error) = this.resume()
        {
            return Poll::Ready(Some(Err(error)));
        }
        let polled = this.inner.as_mut().unwrap().poll_next_unpin(context);
        if let Poll::Ready(Some(Ok(event))) = &polled {
            let taken = if event.mod_revision == this.place.revision { this.place.taken + 1 } else { 1 };
            this.place = Place { revision: event.mod_revision, taken };
        }
        polled
    }
}

impl Watching for Watch {
    fn progress(&self) -> Revision {
        self.inner.as_ref().map_or(self.place.revision, Watching::progress)
    }
}
