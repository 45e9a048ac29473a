//! What a controller sees: objects as last seen, and the changes of several prefixes as one stream.
//!
//! [`super::run`] feeds controllers from [`Followers`]; they keep [`Mirror`]s.
//!
//! Invariants: a mirror holds exactly the readable objects of its kind; changes of one prefix keep their order.
//!
//! May depend on [`crate::objects`] and [`crate::store`].
//!
//! Read first: [`crate::store::follow`].

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::stream::Stream;

use crate::{
    objects::{self, Object, ObjectError},
    store::{Followed, Follower, Revision, Store, StoreError},
};

/// All objects of one kind, as last seen.
#[derive(Clone, Debug)]
pub struct Mirror<T> {
    objects: BTreeMap<Arc<str>, T>,
}

impl<T> Default for Mirror<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new() }
    }
}

impl<T: Object> Mirror<T> {
    /// Takes a change of this kind's directory; another's is left alone. Returns what the object was before. One that
    /// cannot be read counts as absent.
    ///
    /// # Errors
    /// [`ObjectError::Json`].
    pub fn apply(&mut self, change: &Followed) -> Result<Option<T>, ObjectError> {
        if objects::parse_key::<T>(change.key()).is_none() {
            return Ok(None);
        }
        let before = self.objects.remove(change.key());
        if let Followed::Put(entry) = change {
            self.objects.insert(Arc::clone(&entry.key), objects::decode(entry)?);
        }
        Ok(before)
    }

    /// Finds an object by key.
    pub fn get(&self, key: &str) -> Option<&T> {
        self.objects.get(key)
    }

    /// Walks all objects in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &T)> {
        self.objects.iter()
    }

    /// Walks the objects of a namespace in the order of their names.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = (&Arc<str>, &T)> {
        let prefix: Arc<str> = objects::key::<T>(namespace, "");
        self.objects.range(Arc::clone(&prefix)..).take_while(move |(key, _)| key.starts_with(&*prefix))
    }
}

/// Several followed prefixes as one stream; the first that has a change is served first.
pub(crate) struct Followers<S: Store>(Vec<Follower<S>>);

impl<S: Store> Followers<S> {
    /// Follows these prefixes.
    pub(crate) fn new(store: &S, prefixes: &[String]) -> Self {
        Self(prefixes.iter().map(|prefix| Follower::new(store.clone(), prefix)).collect())
    }

    /// Takes the next change if one is there already.
    pub(crate) fn take_ready(&mut self) -> Result<Option<Followed>, StoreError> {
        for follower in &mut self.0 {
            if let Some(change) = follower.take_ready()? {
                return Ok(Some(change));
            }
        }
        Ok(None)
    }

    /// Says whether every prefix has been listed and all of that reported.
    pub(crate) fn are_current(&self) -> bool {
        self.0.iter().all(Follower::is_current)
    }

    /// Says whether a write to a key at a revision has been seen.
    pub(crate) fn has_seen(&self, key: &str, at: Revision) -> bool {
        self.0
            .iter()
            .filter(|follower| key.starts_with(follower.prefix()))
            .all(|follower| follower.seen() >= at)
    }
}

impl<S: Store> Stream for Followers<S> {
    type Item = Result<Followed, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        for follower in &mut self.0 {
            match Pin::new(follower).poll_next(context) {
                Poll::Ready(Some(item)) => return Poll::Ready(Some(item)),
                Poll::Ready(None) => {
                    let cause = "the watch ended".into();
                    return Poll::Ready(Some(Err(StoreError::Unavailable { cause })));
                }
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }
}
