//! The model that every store must follow, as one function over the trait.
//!
//! Called by the property tests of each implementation, with a prefix that nobody else writes, while nobody else writes
//! anything.
//!
//! Invariants checked: compare-and-put, atomic transactions, growing revisions, listings in order, leases that end when
//! their time is over and take their keys with them; watches from any revision deliver exactly the model's events, over
//! being broken off and taken up again, and over compaction with a new listing.
//!
//! May depend on [`crate::store`] only.
//!
//! Read first: [`crate::store`].

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::StreamExt;
use proptest::prelude::*;

use crate::store::{
    Compare, Event, EventKind, KeyValue, LeaseId, Op, Outcome, Revision, Store, StoreError, Watching,
};

/// One transaction; keys and leases are small numbers so that they meet.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    /// Writes key and value.
    Put(u8, u8),
    /// Removes a key.
    Delete(u8),
    /// Writes a key if it does not exist.
    Create(u8, u8),
    /// Writes a key if it was not written since the model's state so many steps ago.
    PutIf(u8, u8, bool),
    /// Writes one key and removes another at once.
    Move(u8, u8),
    /// Writes a key with one of the leases granted so far.
    PutLeased(u8, u8, u8),
}

/// One thing to do with a store.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A transaction.
    Write(Write),
    /// Grants a lease of so many seconds.
    Grant(u8),
    /// Keeps a lease alive.
    KeepAlive(u8),
    /// Revokes a lease.
    Revoke(u8),
    /// Lets so many seconds pass.
    Pass(u8),
    /// Reads at most so many of the live watch's events.
    Read(u8),
    /// Breaks the live watch off and takes it up where it was.
    Resume,
    /// Forgets the history before a revision so far back.
    Compact(u8),
}

/// Makes scripts of steps.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0u8..6;
    let lease = 0u8..4;
    let write = prop_oneof![
        2 => (key.clone(), any::<u8>()).prop_map(|(key, value)| Write::Put(key, value)),
        1 => key.clone().prop_map(Write::Delete),
        1 => (key.clone(), any::<u8>()).prop_map(|(key, value)| Write::Create(key, value)),
        1 => (key.clone(), any::<u8>(), any::<bool>())
            .prop_map(|(key, value, stale)| Write::PutIf(key, value, stale)),
        1 => (key.clone(), key.clone()).prop_map(|(from, to)| Write::Move(from, to)),
        2 => (key, any::<u8>(), lease.clone())
            .prop_map(|(key, value, lease)| Write::PutLeased(key, value, lease)),
    ];
    let step = prop_oneof![
        16 => write.prop_map(Step::Write),
        2 => (1u8..9).prop_map(Step::Grant),
        1 => lease.clone().prop_map(Step::KeepAlive),
        1 => lease.prop_map(Step::Revoke),
        2 => (0u8..6).prop_map(Step::Pass),
        2 => any::<u8>().prop_map(Step::Read),
        2 => Just(Step::Resume),
        1 => (0u8..20).prop_map(Step::Compact),
    ];
    prop::collection::vec(step, 0..80)
}

/// Makes scripts for a store whose leases end by a clock that nobody tells: they last longer than a script, and no time
/// passes at once.
pub(crate) fn steps_by_the_clock() -> impl Strategy<Value = Vec<Step>> {
    steps().prop_map(|mut steps| {
        steps.retain(|step| !matches!(step, Step::Pass(_)));
        for step in &mut steps {
            if let Step::Grant(seconds) = step {
                *seconds += 200;
            }
        }
        steps
    })
}

/// What the store should hold.
#[derive(Default)]
struct Model {
    keys: BTreeMap<Arc<str>, KeyValue>,
    history: Vec<Event>,
    revision: Revision,
    /// Compacted up to here.
    oldest: Revision,
    now: u64,
    /// Seconds to live and second of the end, by lease.
    leases: BTreeMap<LeaseId, (u64, u64)>,
    granted: Vec<LeaseId>,
}

impl Model {
    fn mod_revision(&self, key: &str) -> Revision {
        self.keys.get(key).map_or(Revision::ZERO, |entry| entry.mod_revision)
    }

    /// Names one of the leases granted so far; one that never was if there is none.
    fn lease(&self, number: u8) -> LeaseId {
        let newest = self.granted.iter().rev();
        newest.clone().nth(usize::from(number)).copied().unwrap_or(LeaseId(i64::MAX))
    }

    fn put(&mut self, key: &Arc<str>, value: u8, lease: Option<LeaseId>, at: Revision) {
        let create_revision = self.keys.get(key).map_or(at, |entry| entry.create_revision);
        let (key, value): (_, Arc<[u8]>) = (Arc::clone(key), [value].into());
        let entry = KeyValue {
            key: Arc::clone(&key),
            value: Arc::clone(&value),
            create_revision,
            mod_revision: at,
            lease,
        };
        self.keys.insert(Arc::clone(&key), entry);
        let kind = EventKind::Put;
        self.history.push(Event { kind, key, value, mod_revision: at, create_revision, lease });
        self.revision = at;
    }

    fn delete(&mut self, key: &Arc<str>, at: Revision) {
        if self.keys.remove(key).is_some() {
            self.history.push(Event {
                kind: EventKind::Delete,
                key: Arc::clone(key),
                value: Arc::default(),
                mod_revision: at,
                create_revision: Revision::ZERO,
                lease: None,
            });
            self.revision = at;
        }
    }

    /// Ends a lease: its keys go in byte order at one revision.
    fn end(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
        let attached = self.keys.values().filter(|entry| entry.lease == Some(lease));
        let keys: Vec<_> = attached.map(|entry| Arc::clone(&entry.key)).collect();
        let at = self.revision.next();
        keys.iter().for_each(|key| self.delete(key, at));
    }

    /// Lets time pass: leases end in the order of their deadlines.
    fn pass(&mut self, seconds: u64) {
        self.now += seconds;
        let mut over: Vec<(u64, LeaseId)> =
            self.leases.iter().map(|(&lease, &(_, end))| (end, lease)).collect();
        over.retain(|&(end, _)| end <= self.now);
        over.sort_unstable();
        over.into_iter().for_each(|(_, lease)| self.end(lease));
    }
}

/// A watch, and how far into the model's history it has read.
struct Reader<'a, S: Store> {
    store: &'a S,
    prefix: &'a str,
    watch: S::Watch,
    read: usize,
}

impl<'a, S: Store> Reader<'a, S> {
    async fn new(store: &'a S, prefix: &'a str, from: Revision) -> Self {
        Self { store, prefix, watch: store.watch(prefix, from).await.unwrap(), read: 0 }
    }

    /// Reads at most so many of the events that there are, each the model's next; lists again after a compaction.
    async fn read(&mut self, model: &Model, count: usize) {
        let end = model.history.len().min(self.read.saturating_add(count));
        while self.read < end {
            let progress = self.watch.progress();
            match self.watch.next().await.unwrap() {
                Ok(event) => {
                    assert_eq!(&event, &model.history[self.read], "event {} of the watch", self.read);
                    assert!(event.mod_revision > progress, "progress ran ahead of the events");
                    self.read += 1;
                }
                Err(error) => {
                    assert!(progress.next() < model.oldest, "compacted at {progress} by {}", model.oldest);
                    assert_eq!(error, StoreError::Compacted { oldest: model.oldest });
                    self.list_again(model).await;
                    return;
                }
            }
        }
    }

    /// Drops the watch and begins another where it was.
    async fn resume(&mut self, model: &Model) {
        let from = self.watch.progress().next();
        // What was read of a revision that was not read whole comes again.
        while let Some(last) = self.read.checked_sub(1).map(|at| &model.history[at])
            && last.mod_revision >= from
        {
            self.read -= 1;
        }
        match self.store.watch(self.prefix, from).await {
            Ok(watch) => {
                assert!(from >= model.oldest);
                self.watch = watch;
            }
            Err(error) => {
                assert!(from < model.oldest, "compacted at {from} by {}", model.oldest);
                assert_eq!(error, StoreError::Compacted { oldest: model.oldest });
                self.list_again(model).await;
            }
        }
    }

    async fn list_again(&mut self, model: &Model) {
        let listing = self.store.list(self.prefix).await.unwrap();
        assert!(listing.entries.iter().eq(model.keys.values()), "the listing is the model's");
        self.watch = self.store.watch(self.prefix, listing.revision.next()).await.unwrap();
        self.read = model.history.len();
    }
}

/// Runs a script against a store and a model; panics where they differ. `pass` lets time pass for the store; leases may
/// have `slack` less time left than they should.
pub(crate) async fn follows_the_model<S: Store>(
    store: &S,
    prefix: &str,
    steps: &[Step],
    slack: Duration,
    mut pass: impl FnMut(Duration),
) {
    let start = store.list(prefix).await.unwrap();
    assert!(start.entries.is_empty(), "the prefix must be unused");
    let mut model = Model { revision: start.revision, ..Model::default() };
    let mut live = Reader::new(store, prefix, start.revision.next()).await;

    for step in steps {
        match *step {
            Step::Grant(seconds) => grant(store, &mut model, seconds.into()).await,
            Step::KeepAlive(number) => keep_alive(store, &mut model, number, slack).await,
            Step::Revoke(number) => revoke(store, &mut model, number).await,
            Step::Pass(seconds) => {
                pass(Duration::from_secs(seconds.into()));
                model.pass(seconds.into());
            }
            Step::Read(count) => live.read(&model, count.into()).await,
            Step::Resume => live.resume(&model).await,
            Step::Compact(back) => compact(store, &mut model, back).await,
            Step::Write(ref wanted) => write(store, prefix, &mut model, wanted).await,
        }
        let listing = store.list(prefix).await.unwrap();
        assert_eq!(listing.entries, model.keys.values().cloned().collect::<Vec<_>>(), "{step:?}");
        assert_eq!(listing.revision, model.revision, "{step:?}");
    }

    live.read(&model, usize::MAX).await;
    for at in 0..model.history.len() {
        let from = model.history[at].mod_revision;
        let first = model.history.partition_point(|event| event.mod_revision < from);
        if from >= model.oldest {
            let mut late = Reader { read: first, ..Reader::new(store, prefix, from).await };
            late.read(&model, usize::MAX).await;
        } else {
            let refused = store.watch(prefix, from).await.err();
            assert_eq!(refused, Some(StoreError::Compacted { oldest: model.oldest }));
        }
    }
}

async fn grant<S: Store>(store: &S, model: &mut Model, seconds: u64) {
    let id = store.grant(Duration::from_secs(seconds)).await.unwrap();
    assert!(!model.granted.contains(&id), "no name is given twice");
    model.granted.push(id);
    model.leases.insert(id, (seconds, model.now + seconds));
}

async fn keep_alive<S: Store>(store: &S, model: &mut Model, number: u8, slack: Duration) {
    let (id, now) = (model.lease(number), model.now);
    let expected = model.leases.get_mut(&id).map(|(ttl, end)| {
        *end = now + *ttl;
        Duration::from_secs(*ttl)
    });
    let expected = expected.ok_or(StoreError::NoLease { lease: id });
    assert_eq!(store.keep_alive(id).await, expected);
    match (store.lease(id).await, expected) {
        (Ok(lease), Ok(whole)) => {
            assert!(lease.remaining <= whole && whole <= lease.remaining + slack, "{lease:?}");
        }
        (found, expected) => assert_eq!(found.map(|lease| lease.remaining), expected),
    }
}

async fn revoke<S: Store>(store: &S, model: &mut Model, number: u8) {
    let id = model.lease(number);
    if !model.leases.contains_key(&id) {
        assert_eq!(store.revoke(id).await, Err(StoreError::NoLease { lease: id }));
        return;
    }
    let keys = store.lease(id).await.unwrap().keys;
    let attached = model.keys.values().filter(|entry| entry.lease == Some(id));
    assert!(keys.iter().eq(attached.map(|entry| &entry.key)), "{keys:?}");
    model.end(id);
    assert_eq!(store.revoke(id).await, Ok(model.revision));
}

async fn compact<S: Store>(store: &S, model: &mut Model, back: u8) {
    let at = Revision(model.revision.0.saturating_sub(back.into()));
    match store.compact(at).await {
        Ok(()) => {
            assert!(at >= model.oldest);
            model.oldest = at;
        }
        Err(error) => assert_eq!(error, StoreError::Compacted { oldest: model.oldest }),
    }
    let (asked, last) = (model.revision.next(), model.revision);
    assert_eq!(store.compact(asked).await, Err(StoreError::Future { asked, last }));
}

async fn write<S: Store>(store: &S, prefix: &str, model: &mut Model, wanted: &Write) {
    let (compares, ops) = transaction(prefix, model, wanted);
    let holds = compares.iter().all(|compare| model.mod_revision(&compare.key) == compare.mod_revision);
    let dead = ops.iter().find_map(|op| match op {
        Op::Put { lease: Some(lease), .. } if !model.leases.contains_key(lease) => Some(*lease),
        Op::Put { .. } | Op::Delete { .. } => None,
    });
    let changes = ops.iter().any(|op| matches!(op, Op::Put { .. }) || model.keys.contains_key(op.key()));
    let outcome = store.transact(compares, ops.clone()).await;
    if let Some(lease) = dead {
        assert_eq!(outcome, Err(StoreError::NoLease { lease }));
        return;
    }
    let at = if changes { model.revision.next() } else { model.revision };
    assert_eq!(outcome, Ok(if holds { Outcome::Done(at) } else { Outcome::Conflict }), "{wanted:?}");
    if !holds {
        return;
    }
    for op in ops {
        match op {
            Op::Put { key, value, lease } => model.put(&key, value[0], lease, at),
            Op::Delete { key } => model.delete(&key, at),
        }
    }
}

fn transaction(prefix: &str, model: &Model, wanted: &Write) -> (Vec<Compare>, Vec<Op>) {
    let name = |key: u8| -> Arc<str> { format!("{prefix}{key}").into() };
    let put = |key, value: u8, lease| Op::Put { key: name(key), value: [value].into(), lease };
    let compare = |key, mod_revision| vec![Compare { key: name(key), mod_revision }];
    match *wanted {
        Write::Put(key, value) => (vec![], vec![put(key, value, None)]),
        Write::PutLeased(key, value, lease) => (vec![], vec![put(key, value, Some(model.lease(lease)))]),
        Write::Delete(key) => (vec![], vec![Op::Delete { key: name(key) }]),
        Write::Create(key, value) => (compare(key, Revision::ZERO), vec![put(key, value, None)]),
        Write::PutIf(key, value, stale) => {
            let last = model.mod_revision(&name(key));
            (compare(key, if stale { model.revision.next() } else { last }), vec![put(key, value, None)])
        }
        Write::Move(from, to) => {
            let mut ops = vec![put(to, from, None)];
            if from != to {
                ops.push(Op::Delete { key: name(from) });
            }
            (compare(from, model.mod_revision(&name(from))), ops)
        }
    }
}
