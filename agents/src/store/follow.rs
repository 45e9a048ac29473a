//! A prefix kept in memory and in step with the store.
//!
//! Lists, then watches from the next revision; after a compaction, or when the store is not the one it was, it lists again
//! and reports the difference. Every
//! agent that reacts to changes stands on it: the node agent, the controllers, `cluster`.
//!
//! Invariants: applying what it reports, in order, gives the store's content; a key that still exists is never
//! reported as gone, an unchanged one not again; the revision it reports never falls but after [`StoreError::Restored`].
//!
//! May depend on [`crate::store`].
//!
//! Read first: section "watch" of the etcd API guarantees.
//!
//! Above 400 lines because half of it are tests that read best beside what they hold.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{FusedStream, Stream},
};

use crate::store::{Event, EventKind, KeyValue, Listing, Revision, Store, StoreError};

/// One change of a followed prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// The key is new or has another value.
    Put(KeyValue),
    /// The key is gone; this is what it was.
    Delete(KeyValue),
}

impl Followed {
    /// Gives the key.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Put(entry) | Self::Delete(entry) => &entry.key,
        }
    }
}

/// Follows a prefix of a store: a stream of changes. What is there already comes first, in the order of the keys. It
/// says [`StoreError::Restored`] when the store is not the one it was, and goes on with how that differs from what was
/// known. While the store is away it waits, but for the first listing. It ends only after another error: start another one then.
pub struct Follower<S: Store> {
    store: S,
    prefix: Arc<str>,
    known: BTreeMap<Arc<str>, KeyValue>,
    ready: VecDeque<Followed>,
    source: Source<S>,
    /// Everything up to here has been put into `ready`.
    seen: Revision,
    /// Whether it has been listed once.
    listed: bool,
}

/// Where changes come from.
enum Source<S: Store> {
    Listing(BoxFuture<'static, Result<(Listing, S::Watch), StoreError>>),
    Watch(S::Watch),
    Ended,
}

impl<S: Store> Follower<S> {
    /// Begins with a listing, made when the stream is first polled.
    pub fn new(store: S, prefix: &str) -> Self {
        let prefix: Arc<str> = prefix.into();
        let source = Source::Listing(list_and_watch(store.clone(), Arc::clone(&prefix)).boxed());
        Self {
            store,
            prefix,
            known: BTreeMap::new(),
            ready: VecDeque::new(),
            source,
            seen: Revision::ZERO,
            listed: false,
        }
    }

    /// Gives the prefix that is followed.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Lists the keys that there are, as far as is known, those among them whose changes wait to be reported.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.known.keys()
    }

    /// Gives the revision up to which all changes have been reported or wait to be; zero before the first listing.
    pub fn seen(&self) -> Revision {
        self.seen
    }

    /// Says whether the first listing has been taken and all of it reported.
    pub fn is_current(&self) -> bool {
        self.ready.is_empty() && matches!(self.source, Source::Watch(_))
    }

    /// Takes the next change if one is there already; the waker of no task is registered for the one after.
    ///
    /// # Errors
    /// [`StoreError::Restored`], after which it goes on; [`StoreError::Unavailable`].
    pub fn take_ready(&mut self) -> Result<Option<Followed>, StoreError> {
        self.next().now_or_never().flatten().transpose()
    }

    /// Fills `ready` once, or says that nothing is there yet.
    fn poll_source(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StoreError>> {
        match &mut self.source {
            Source::Ended => return Poll::Ready(Ok(())),
            Source::Listing(listing) => match ready!(listing.poll_unpin(context)) {
                Ok((listing, watch)) => {
                    self.source = Source::Watch(watch);
                    self.adopt(listing);
                    self.listed = true;
                }
                // Who knows something already keeps it, and learns of what went meanwhile.
                Err(StoreError::Unavailable { .. }) if self.listed => self.list_again(),
                Err(error) => {
                    self.source = Source::Ended;
                    return Poll::Ready(Err(error));
                }
            },
            Source::Watch(watch) => match ready!(watch.poll_next_unpin(context)) {
                Some(Ok(event)) => self.take(event),
                Some(Err(StoreError::Compacted { .. })) | None => self.list_again(),
                Some(Err(error @ StoreError::Restored { .. })) => {
                    // Its revisions were another history's.
                    self.seen = Revision::ZERO;
                    self.list_again();
                    return Poll::Ready(Err(error));
                }
                Some(Err(error)) => {
                    self.source = Source::Ended;
                    return Poll::Ready(Err(error));
                }
            },
        }
        Poll::Ready(Ok(()))
    }

    fn list_again(&mut self) {
        let again = list_and_watch(self.store.clone(), Arc::clone(&self.prefix));
        self.source = Source::Listing(again.boxed());
    }

    /// Reports how a listing differs from what is known: what is gone first, then what is new or changed.
    fn adopt(&mut self, listing: Listing) {
        let before = std::mem::take(&mut self.known);
        self.known = listing.entries.into_iter().map(|entry| (Arc::clone(&entry.key), entry)).collect();
        for (key, entry) in &before {
            if !self.known.contains_key(key) {
                self.ready.push_back(Followed::Delete(entry.clone()));
            }
        }
        for (key, entry) in &self.known {
            if before.get(key) != Some(entry) {
                self.ready.push_back(Followed::Put(entry.clone()));
            }
        }
        self.seen = self.seen.max(listing.revision);
    }

    fn take(&mut self, event: Event) {
        self.seen = self.seen.max(event.mod_revision);
        match event.kind {
            EventKind::Put => {
                let entry = KeyValue {
                    key: event.key,
                    value: event.value,
                    create_revision: event.create_revision,
                    mod_revision: event.mod_revision,
                    lease: event.lease,
                };
                self.known.insert(Arc::clone(&entry.key), entry.clone());
                self.ready.push_back(Followed::Put(entry));
            }
            EventKind::Delete => {
                if let Some(entry) = self.known.remove(&event.key) {
                    self.ready.push_back(Followed::Delete(entry));
                }
            }
        }
    }
}

impl<S: Store> Stream for Follower<S> {
    type Item = Result<Followed, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(change)));
            }
            if self.is_terminated() {
                return Poll::Ready(None);
            }
            if let Err(error) = ready!(self.poll_source(context)) {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

impl<S: Store> FusedStream for Follower<S> {
    fn is_terminated(&self) -> bool {
        self.ready.is_empty() && matches!(self.source, Source::Ended)
    }
}

impl<S: Store> Unpin for Follower<S> {}

/// Lists and watches without a gap; a compaction or a restored store between the two starts over.
async fn list_and_watch<S: Store>(store: S, prefix: Arc<str>) -> Result<(Listing, S::Watch), StoreError> {
    loop {
        let listing = store.list(&prefix).await?;
        match store.watch(&prefix, listing.revision.next()).await {
            Ok(watch) => return Ok((listing, watch)),
            Err(StoreError::Compacted { .. } | StoreError::Restored { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Mutex, MutexGuard},
        time::Duration,
    };

    use futures::executor::block_on;
    use proptest::prelude::*;

    use super::*;
    use crate::store::{
        Compare, Embedded, LeaseId, LeaseState, Op, Outcome, Watching,
        embedded::{Options, Watch},
    };

    /// A store that can be exchanged for another, as an etcd by playing back a backup.
    #[derive(Clone, Default)]
    struct Exchanged(Arc<Mutex<(Embedded, u64)>>);

    impl Exchanged {
        fn with(&self) -> MutexGuard<'_, (Embedded, u64)> {
            self.0.lock().unwrap()
        }

        fn exchange(&self, store: Embedded) {
            let mut inner = self.with();
            *inner = (store, inner.1 + 1);
        }

        fn store(&self) -> Embedded {
            self.with().0.clone()
        }
    }

    struct UntilExchanged(Exchanged, u64, Watch);

    impl Stream for UntilExchanged {
        type Item = Result<Event, StoreError>;

        fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            if self.0.with().1 != self.1 {
                return Poll::Ready(Some(Err(StoreError::Restored { cause: "it was exchanged".into() })));
            }
            self.2.poll_next_unpin(context)
        }
    }

    impl Watching for UntilExchanged {
        fn progress(&self) -> Revision {
            self.2.progress()
        }
    }

    impl Store for Exchanged {
        type Watch = UntilExchanged;

        async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
            self.store().get(key).await
        }

        async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
            self.store().list(prefix).await
        }

        async fn transact(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Outcome, StoreError> {
            self.store().transact(compares, ops).await
        }

        async fn watch(&self, prefix: &str, from: Revision) -> Result<Self::Watch, StoreError> {
            let number = self.with().1;
            Ok(UntilExchanged(self.clone(), number, self.store().watch(prefix, from).await?))
        }

        async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
            self.store().compact(revision).await
        }

        async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
            self.store().grant(ttl).await
        }

        async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
            self.store().keep_alive(lease).await
        }

        async fn revoke(&self, lease: LeaseId) -> Result<Revision, StoreError> {
            self.store().revoke(lease).await
        }

        async fn lease(&self, lease: LeaseId) -> Result<LeaseState, StoreError> {
            self.store().lease(lease).await
        }
    }

    /// What is the same in both is not said again, what is not comes as a difference, and then all that happens.
    #[test]
    fn a_store_that_was_restored_is_said_to_be_and_listed_again() {
        block_on(async {
            let store = Exchanged::default();
            store.put("/same", *b"1").await.unwrap();
            for value in 0..9 {
                store.put("/changed", [value]).await.unwrap();
                store.put("/gone", [value]).await.unwrap();
            }
            let mut follower = Follower::new(store.clone(), "/");
            while follower.take_ready().unwrap().is_some() {}
            assert_eq!(follower.seen(), Revision(19));

            let restored = Embedded::new();
            restored.put("/same", *b"1").await.unwrap();
            restored.put("/changed", *b"0").await.unwrap();
            store.exchange(restored);
            assert!(matches!(follower.take_ready(), Err(StoreError::Restored { .. })));
            let said = |change: Option<Followed>| match change {
                Some(Followed::Put(entry)) => format!("+{}", entry.key),
                Some(Followed::Delete(entry)) => format!("-{}", entry.key),
                None => String::new(),
            };
            for expected in ["-/gone", "+/changed", ""] {
                assert_eq!(said(follower.take_ready().unwrap()), expected);
            }
            assert_eq!(follower.seen(), Revision(2), "its own revisions count from now on");
            store.put("/new", *b"1").await.unwrap();
            assert_eq!(said(follower.take_ready().unwrap()), "+/new");
        });
    }

    fn drain(follower: &mut Follower<Embedded>) -> Vec<Followed> {
        std::iter::from_fn(|| follower.take_ready().unwrap()).collect()
    }

    proptest! {
        #[test]
        fn replica_equals_the_store_whatever_is_compacted(
            rounds in prop::collection::vec(prop::collection::vec((0u8..5, prop::option::of(any::<u8>())), 0..12), 0..8),
        ) {
            block_on(async {
                // A history of four events: most rounds overflow it and force a new listing.
                let store = Embedded::with_options(Options { history: 4 });
                let mut follower = Follower::new(store.clone(), "/in/");
                let mut replica = BTreeMap::new();
                for round in rounds {
                    for (key, value) in round {
                        store.put("/out/x", *b"x").await.unwrap();
                        match value {
                            Some(value) => store.put(&format!("/in/{key}"), [value]).await.unwrap(),
                            None => store.delete(&format!("/in/{key}")).await.unwrap(),
                        };
                    }
                    for change in drain(&mut follower) {
                        match change {
                            Followed::Put(entry) => {
                                assert_ne!(replica.insert(Arc::clone(&entry.key), entry.clone()), Some(entry));
                            }
                            Followed::Delete(entry) => assert!(replica.remove(&entry.key).is_some()),
                        }
                    }
                    let listing = store.list("/in/").await.unwrap();
                    assert_eq!(replica.values().cloned().collect::<Vec<_>>(), listing.entries);
                }
            });
        }
    }

    #[test]
    fn existing_keys_come_first_and_a_removal_says_what_was() {
        block_on(async {
            let store = Embedded::new();
            store.put("/a", *b"1").await.unwrap();
            let mut follower = Follower::new(store.clone(), "/");
            let mut changes = drain(&mut follower);
            store.delete("/a").await.unwrap();
            changes.extend(drain(&mut follower));
            let Followed::Put(entry) = changes[0].clone() else { panic!("{changes:?}") };
            assert_eq!(changes[1], Followed::Delete(entry));
            assert_eq!(follower.seen(), Revision(2));
        });
    }
}
