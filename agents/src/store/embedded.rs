//! The store inside this process.
//!
//! What `flatnet up` runs on, and the double of etcd in tests.
//!
//! Invariants: as [`crate::store`]; history holds the events after the last compaction in order, without a gap, and at
//! most [`Options::history`] of them, so that a watch that falls behind ends with an error and never loses an event
//! silently. Watchers are woken in the order in which they were made, so that a run repeats exactly.
//!
//! May depend on [`crate::store`] and `futures`. The lock is held for bounded work and never across an await.
//!
//! Read first: [`crate::store`].

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    ops::Bound,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures::stream::Stream;

use crate::store::{
    Compare, Event, EventKind, KeyValue, Listing, Op, Outcome, Revision, Store, StoreError, VALUE_LIMIT,
};

/// How many events a watch takes from the history at once.
const WATCH_BATCH: usize = 64;

/// What may be chosen about an embedded store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many events are kept for watches; older ones are compacted.
    pub history: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { history: 100_000 }
    }
}

/// A store in memory; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Embedded {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    options: Options,
    revision: u64,
    keys: BTreeMap<Arc<str>, KeyValue>,
    history: VecDeque<Event>,
    /// The sequence number of the oldest event in `history`: how many were dropped before it.
    first: u64,
    /// All events up to this revision may be gone.
    compacted: u64,
    next_watch: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl Embedded {
    /// Makes an empty store with default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes an empty store.
    pub fn with_options(options: Options) -> Self {
        Self { state: Arc::new(Mutex::new(State { options, ..State::default() })) }
    }

    /// Forgets the history up to and including a revision; keys keep their values.
    pub fn compact(&self, revision: Revision) {
        let wakers = {
            let mut state = self.lock();
            let upto = revision.0.min(state.revision);
            while state.history.front().is_some_and(|event| event.mod_revision.0 <= upto) {
                state.drop_oldest();
            }
            state.compacted = state.compacted.max(upto);
            std::mem::take(&mut state.wakers)
        };
        wakers.into_values().for_each(Waker::wake);
    }

    /// Gives the revision of the last change.
    pub fn revision(&self) -> Revision {
        Revision(self.lock().revision)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock; a poisoned one would still hold a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Embedded {
    type Watch = Watch;

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        Ok(self.lock().keys.get(key).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let state = self.lock();
        let entries = state
            .keys
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, entry)| entry.clone())
            .collect();
        Ok(Listing { entries, revision: Revision(state.revision) })
    }

    async fn transact(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Outcome, StoreError> {
        check(&ops)?;
        let (outcome, wakers) = {
            let mut state = self.lock();
            if !compares.iter().all(|compare| state.holds(compare)) {
                return Ok(Outcome::Conflict);
            }
            (Outcome::Done(state.apply(ops)), std::mem::take(&mut state.wakers))
        };
        wakers.into_values().for_each(Waker::wake);
        Ok(outcome)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        let mut state = self.lock();
        if from.0 <= state.compacted {
            return Err(StoreError::Compacted { oldest: Revision(state.compacted + 1) });
        }
        let skipped = state.history.partition_point(|event| event.mod_revision < from);
        let id = state.next_watch;
        state.next_watch += 1;
        Ok(Watch {
            store: self.clone(),
            id,
            prefix: prefix.into(),
            from,
            next: state.first + skipped as u64,
            ready: VecDeque::new(),
            ended: false,
        })
    }
}

/// Refuses what etcd refuses, before anything changes.
fn check(ops: &[Op]) -> Result<(), StoreError> {
    let mut keys = HashSet::new();
    for op in ops {
        if !keys.insert(op.key()) {
            return Err(StoreError::DuplicateKey { key: Arc::clone(op.key()) });
        }
        if let Op::Put { key, value } = op
            && value.len() > VALUE_LIMIT
        {
            return Err(StoreError::TooLarge { key: Arc::clone(key), size: value.len() });
        }
    }
    Ok(())
}

impl State {
    fn holds(&self, compare: &Compare) -> bool {
        let current = self.keys.get(&compare.key).map_or(Revision::ZERO, |entry| entry.mod_revision);
        current == compare.mod_revision
    }

    /// Makes the changes; the revision moves only if something changed, as in etcd.
    fn apply(&mut self, ops: Vec<Op>) -> Revision {
        let at = Revision(self.revision + 1);
        for op in ops {
            let event = match op {
                Op::Put { key, value } => self.put(key, value, at),
                Op::Delete { key } => match self.keys.remove(&key) {
                    Some(_) => Event {
                        kind: EventKind::Delete,
                        key,
                        value: Arc::default(),
                        mod_revision: at,
                        create_revision: Revision::ZERO,
                    },
                    None => continue,
                },
            };
            self.history.push_back(event);
            self.revision = at.0;
        }
        while self.history.len() > self.options.history {
            self.drop_oldest();
        }
        Revision(self.revision)
    }

    fn put(&mut self, key: Arc<str>, value: Arc<[u8]>, at: Revision) -> Event {
        let create_revision = self.keys.get(&key).map_or(at, |entry| entry.create_revision);
        let entry =
            KeyValue { key: Arc::clone(&key), value: Arc::clone(&value), create_revision, mod_revision: at };
        self.keys.insert(Arc::clone(&key), entry);
        Event { kind: EventKind::Put, key, value, mod_revision: at, create_revision }
    }

    fn drop_oldest(&mut self) {
        if let Some(event) = self.history.pop_front() {
            self.first += 1;
            self.compacted = self.compacted.max(event.mod_revision.0);
        }
    }
}

/// A watch of an [`Embedded`] store.
#[derive(Debug)]
pub struct Watch {
    store: Embedded,
    id: u64,
    prefix: Arc<str>,
    from: Revision,
    /// The sequence number of the next event to look at.
    next: u64,
    ready: VecDeque<Event>,
    ended: bool,
}

impl Stream for Watch {
    type Item = Result<Event, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(event) = this.ready.pop_front() {
            return Poll::Ready(Some(Ok(event)));
        }
        if this.ended {
            return Poll::Ready(None);
        }

        let mut state = this.store.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(skip) = this.next.checked_sub(state.first) else {
            this.ended = true;
            return Poll::Ready(Some(Err(StoreError::Compacted { oldest: Revision(state.compacted + 1) })));
        };
        for event in state.history.range((skip as usize).min(state.history.len())..) {
            this.next += 1;
            if event.mod_revision >= this.from && event.key.starts_with(&*this.prefix) {
                this.ready.push_back(event.clone());
                if this.ready.len() == WATCH_BATCH {
                    break;
                }
            }
        }
        match this.ready.pop_front() {
            Some(event) => Poll::Ready(Some(Ok(event))),
            None => {
                state.wakers.insert(this.id, context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.store.lock().wakers.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt, executor::block_on};
    use proptest::prelude::*;

    use super::*;
    use crate::store::conformance::{Step, follows_the_model, steps};

    proptest! {
        #[test]
        fn embedded_store_follows_the_model(steps in steps()) {
            block_on(follows_the_model(&Embedded::new(), "/model/", &steps));
        }

        #[test]
        fn a_shared_store_follows_the_model_beside_foreign_keys(before in 1u64..20, steps in steps()) {
            let store = Embedded::new();
            block_on(async {
                for at in 0..before {
                    store.put(&format!("/foreign/{at}"), *b"x").await.unwrap();
                }
                follows_the_model(&store, "/model/", &steps).await;
            });
        }
    }

    #[test]
    fn watch_that_falls_behind_ends_with_compacted() {
        block_on(async {
            let store = Embedded::with_options(Options { history: 3 });
            let mut watch = store.watch("/", Revision(1)).await.unwrap();
            for value in 0..5u8 {
                store.put("/a", [value]).await.unwrap();
            }
            assert_eq!(watch.next().await, Some(Err(StoreError::Compacted { oldest: Revision(3) })));
            assert_eq!(watch.next().await, None);
            let refused = store.watch("/", Revision(2)).await.unwrap_err();
            assert_eq!(refused, StoreError::Compacted { oldest: Revision(3) });
            let mut watch = store.watch("/", Revision(3)).await.unwrap();
            assert_eq!(watch.next().await.unwrap().unwrap().mod_revision, Revision(3));
        });
    }

    #[test]
    fn compaction_of_read_history_does_not_end_a_watch() {
        block_on(async {
            let store = Embedded::new();
            let mut watch = store.watch("/", Revision(1)).await.unwrap();
            store.put("/a", *b"1").await.unwrap();
            watch.next().await.unwrap().unwrap();
            store.compact(Revision(1));
            store.put("/a", *b"2").await.unwrap();
            assert_eq!(watch.next().await.unwrap().unwrap().mod_revision, Revision(2));
            assert!(watch.next().now_or_never().is_none());
        });
    }

    #[test]
    fn oversized_values_and_duplicate_keys_are_refused() {
        block_on(async {
            let store = Embedded::new();
            let error = store.put("/a", vec![0; VALUE_LIMIT + 1]).await.unwrap_err();
            assert_eq!(error, StoreError::TooLarge { key: "/a".into(), size: VALUE_LIMIT + 1 });
            let twice = vec![Op::Delete { key: "/a".into() }, Op::Delete { key: "/a".into() }];
            let error = store.transact(vec![], twice).await.unwrap_err();
            assert_eq!(error, StoreError::DuplicateKey { key: "/a".into() });
            assert_eq!(store.revision(), Revision::ZERO);
        });
    }

    #[test]
    fn regression_empty_script_is_fine() {
        block_on(follows_the_model(&Embedded::new(), "/model/", &[Step::Delete(0)]));
    }
}
