//! A prefix kept in memory and in step with the store.
//!
//! Lists, then watches from the next revision; after a compaction it lists again and reports the difference. Every
//! agent that reacts to changes stands on it: the node agent, the controllers, `cluster`.
//!
//! Invariants: applying what it reports, in order, gives the store's content; a key that still exists is never
//! reported as gone, an unchanged one not again; the revision it reports never falls.
//!
//! May depend on [`crate::store`].
//!
//! Read first: section "watch" of the etcd API guarantees.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use futures::{FutureExt, StreamExt};

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

/// Follows a prefix of a store.
pub struct Follower<S: Store> {
    store: S,
    prefix: Arc<str>,
    known: BTreeMap<Arc<str>, KeyValue>,
    ready: VecDeque<Followed>,
    watch: S::Watch,
    /// Everything up to here has been put into `ready`.
    seen: Revision,
}

impl<S: Store> Follower<S> {
    /// Lists the prefix and begins to watch it; what is there already comes first, in the order of the keys.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn start(store: S, prefix: &str) -> Result<Self, StoreError> {
        let (listing, watch) = list_and_watch(&store, prefix).await?;
        let mut follower = Self {
            store,
            prefix: prefix.into(),
            known: BTreeMap::new(),
            ready: VecDeque::new(),
            watch,
            seen: Revision::ZERO,
        };
        follower.adopt(listing);
        Ok(follower)
    }

    /// Gives the prefix that is followed.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Gives the revision up to which all changes have been reported or wait to be.
    pub fn seen(&self) -> Revision {
        self.seen
    }

    /// Reads a key as last reported or about to be.
    pub fn get(&self, key: &str) -> Option<&KeyValue> {
        self.known.get(key)
    }

    /// Waits for the next change.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; start another follower then.
    pub async fn next(&mut self) -> Result<Followed, StoreError> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(change);
            }
            match self.watch.next().await {
                Some(Ok(event)) => self.take(event),
                Some(Err(StoreError::Compacted { .. })) | None => self.relist().await?,
                Some(Err(error)) => return Err(error),
            }
        }
    }

    /// Takes the next change if one is there already.
    ///
    /// # Errors
    /// As [`Follower::next`].
    pub fn try_next(&mut self) -> Result<Option<Followed>, StoreError> {
        // Dropping the future loses nothing: all progress is in `self`, and a listing is taken over only as a whole.
        self.next().now_or_never().transpose()
    }

    async fn relist(&mut self) -> Result<(), StoreError> {
        let (listing, watch) = list_and_watch(&self.store, &self.prefix).await?;
        self.watch = watch;
        self.adopt(listing);
        Ok(())
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

/// Lists and watches without a gap; a compaction between the two starts over.
async fn list_and_watch<S: Store>(store: &S, prefix: &str) -> Result<(Listing, S::Watch), StoreError> {
    loop {
        let listing = store.list(prefix).await?;
        match store.watch(prefix, listing.revision.next()).await {
            Ok(watch) => return Ok((listing, watch)),
            Err(StoreError::Compacted { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use proptest::prelude::*;

    use super::*;
    use crate::store::{Embedded, embedded::Options};

    fn drain(follower: &mut Follower<Embedded>) -> Vec<Followed> {
        std::iter::from_fn(|| follower.try_next().unwrap()).collect()
    }

    proptest! {
        #[test]
        fn replica_equals_the_store_whatever_is_compacted(
            rounds in prop::collection::vec(prop::collection::vec((0u8..5, prop::option::of(any::<u8>())), 0..12), 0..8),
        ) {
            block_on(async {
                // A history of four events: most rounds overflow it and force a new listing.
                let store = Embedded::with_options(Options { history: 4 });
                let mut follower = Follower::start(store.clone(), "/in/").await.unwrap();
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
            let mut follower = Follower::start(store.clone(), "/").await.unwrap();
            store.delete("/a").await.unwrap();
            let changes = drain(&mut follower);
            let Followed::Put(entry) = changes[0].clone() else { panic!("{changes:?}") };
            assert_eq!(changes[1], Followed::Delete(entry));
            assert_eq!(follower.seen(), Revision(2));
        });
    }
}
