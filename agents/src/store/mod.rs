//! The store: one small trait over a revisioned key-value store.
//!
//! Everything that the cluster knows lies here: flannel's leases and Kubernetes' objects. The node agent, the
//! controllers and the publisher call it; [`embedded`] implements it in this process, [`etcd`] outside of it, and [`network`] is both
//! for a network that shares its objects.
//!
//! Invariants: every successful change has a revision larger than all before; a watch delivers every event of its
//! prefix from the revision it asked for, in order, once, or ends with [`StoreError::Compacted`] or
//! [`StoreError::Restored`]; never a gap. A key
//! that is attached to a lease is gone, with an event, once the lease is. Futures and streams are `Send` and belong to
//! no runtime.
//!
//! May depend on `futures`.
//!
//! Read first: the etcd v3 API guarantees (key-value, transactions, watch, lease).

pub mod embedded;

pub mod etcd;

pub mod network;

pub mod follow;

#[cfg(test)]
mod conformance;

#[cfg(test)]
mod history;

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    future::Future,
    sync::Arc,
    time::Duration,
};

use futures::stream::Stream;
use thiserror::Error;

pub use embedded::Embedded;
pub use etcd::Etcd;
pub use follow::{Followed, Follower};
pub use network::NetworkStore;

/// The largest value that a store takes, in bytes: etcd's default request limit.
pub const VALUE_LIMIT: usize = 1_572_864;

/// A point in the store's history; 0 is before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(pub u64);

impl Revision {
    /// Before the first change: as `mod_revision` of a compare it means "the key must not exist".
    pub const ZERO: Self = Self(0);

    /// Gives the revision after this one, where a watch that follows a listing begins.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a lease: a time after which the keys attached to it go, unless it is kept alive. Never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub i64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As etcdctl prints it.
        write!(f, "{:x}", self.0)
    }
}

/// A lease as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseState {
    /// How long it lives after it was granted or last kept alive.
    pub granted: Duration,
    /// How long it lives yet.
    pub remaining: Duration,
    /// The keys attached to it, in byte order.
    pub keys: Vec<Arc<str>>,
}

/// A key as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Arc<str>,
    /// The value.
    pub value: Arc<[u8]>,
    /// When the key came to exist.
    pub create_revision: Revision,
    /// When it was last written.
    pub mod_revision: Revision,
    /// The lease it was last written with.
    pub lease: Option<LeaseId>,
}

/// All keys of a prefix at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The keys in byte order.
    pub entries: Vec<KeyValue>,
    /// The store's revision at that moment; a watch from the next one misses nothing.
    pub revision: Revision,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was written.
    Put,
    /// It was removed.
    Delete,
}

/// One change as a watch sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The key.
    pub key: Arc<str>,
    /// The value written; empty for a removal.
    pub value: Arc<[u8]>,
    /// The revision of this change.
    pub mod_revision: Revision,
    /// When the key came to exist; zero for a removal.
    pub create_revision: Revision,
    /// The lease it was written with; none for a removal.
    pub lease: Option<LeaseId>,
}

/// A condition of a transaction: the key was last written at this revision, or does not exist if that is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Arc<str>,
    /// Its expected `mod_revision`.
    pub mod_revision: Revision,
}

/// A change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a key.
    Put {
        /// The key.
        key: Arc<str>,
        /// Its new value.
        value: Arc<[u8]>,
        /// The lease it is attached to from now on; none detaches it.
        lease: Option<LeaseId>,
    },
    /// Removes a key; nothing happens if it does not exist.
    Delete {
        /// The key.
        key: Arc<str>,
    },
}

impl Op {
    /// Gives the key that the change is about.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Whether a transaction's conditions held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// They did; all changes have this revision.
    Done(Revision),
    /// They did not; nothing changed.
    Conflict,
}

/// Why the store did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// The history that a watch needs is gone: list again, compare, and watch from there.
    #[error("revision is compacted; the oldest that can be watched is {oldest}")]
    Compacted {
        /// The oldest revision from which a watch can begin: etcd's compact revision.
        oldest: Revision,
    },
    /// A compaction up to a revision that does not exist yet.
    #[error("revision {asked} is in the future; the last is {last}")]
    Future {
        /// What was asked for.
        asked: Revision,
        /// The store's revision.
        last: Revision,
    },
    /// The lease has expired, was revoked or never existed.
    #[error("there is no lease {lease}")]
    NoLease {
        /// Its name.
        lease: LeaseId,
    },
    /// A transaction changes one key twice, which etcd refuses too.
    #[error("transaction changes {key} twice")]
    DuplicateKey {
        /// The key.
        key: Arc<str>,
    },
    /// The value is larger than [`VALUE_LIMIT`].
    #[error("value of {key} has {size} bytes; at most {VALUE_LIMIT} fit")]
    TooLarge {
        /// The key.
        key: Arc<str>,
        /// The value's length in bytes.
        size: usize,
    },
    /// The store is another than before, or was restored from an older state: list again and compare.
    #[error("store is not what it was: {cause}")]
    Restored {
        /// How that was seen.
        cause: String,
    },
    /// The store cannot write, as on a full disk; reads go on. The change may turn up once it can write again.
    #[error("store cannot write: {cause}")]
    ReadOnly {
        /// What the system said.
        cause: String,
    },
    /// The store cannot be reached; nothing is known about the request.
    #[error("store cannot be reached: {cause}")]
    Unavailable {
        /// What the connection said.
        cause: String,
    },
}

/// The events of a watch; it ends only after an error.
pub trait Watching: Stream<Item = Result<Event, StoreError>> + Send + Unpin + 'static {
    /// Gives the revision up to which every event has been delivered, also where none was the watch's: who begins
    /// another watch at the next one misses nothing, and is compacted as late as can be (etcd's progress notification).
    fn progress(&self) -> Revision;
}

/// Gives the progress of a watch whose events up to `looked` are in `ready` or were handed out: a revision is delivered whole.
fn progress(ready: &VecDeque<Event>, looked: Revision) -> Revision {
    ready.front().map_or(looked, |event| Revision(event.mod_revision.0.saturating_sub(1)))
}

/// A revisioned key-value store; a clone is another handle to the same.
pub trait Store: Clone + Send + Sync + 'static {
    /// The stream of a watch.
    type Watch: Watching;

    /// Reads a key.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<KeyValue>, StoreError>> + Send;

    /// Reads all keys that begin with `prefix`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    fn list(&self, prefix: &str) -> impl Future<Output = Result<Listing, StoreError>> + Send;

    /// Makes all changes at one revision if all conditions hold, else none.
    ///
    /// # Errors
    /// [`StoreError::DuplicateKey`], [`StoreError::TooLarge`], [`StoreError::NoLease`], [`StoreError::ReadOnly`],
    /// [`StoreError::Unavailable`].
    fn transact(
        &self,
        compares: Vec<Compare>,
        ops: Vec<Op>,
    ) -> impl Future<Output = Result<Outcome, StoreError>> + Send;

    /// Watches all keys that begin with `prefix` from a revision on, that one included; it may be in the future.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] and [`StoreError::Restored`] here or in the stream, [`StoreError::Unavailable`].
    fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> impl Future<Output = Result<Self::Watch, StoreError>> + Send;

    /// Forgets the history before a revision; keys keep their values, and watches can begin there or later.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if it is forgotten already, [`StoreError::Future`], [`StoreError::Unavailable`].
    fn compact(&self, revision: Revision) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Grants a lease that ends after `ttl`, in whole seconds and at least one, unless it is kept alive.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`], [`StoreError::Unavailable`].
    fn grant(&self, ttl: Duration) -> impl Future<Output = Result<LeaseId, StoreError>> + Send;

    /// Gives a lease its whole time again and returns that.
    ///
    /// # Errors
    /// [`StoreError::NoLease`], [`StoreError::Unavailable`].
    fn keep_alive(&self, lease: LeaseId) -> impl Future<Output = Result<Duration, StoreError>> + Send;

    /// Ends a lease and removes its keys at one revision, which is returned; the store's if it has none.
    ///
    /// # Errors
    /// [`StoreError::NoLease`], [`StoreError::ReadOnly`], [`StoreError::Unavailable`].
    fn revoke(&self, lease: LeaseId) -> impl Future<Output = Result<Revision, StoreError>> + Send;

    /// Reads a lease.
    ///
    /// # Errors
    /// [`StoreError::NoLease`], [`StoreError::Unavailable`].
    fn lease(&self, lease: LeaseId) -> impl Future<Output = Result<LeaseState, StoreError>> + Send;

    /// Writes a key whatever it was.
    ///
    /// # Errors
    /// As [`Store::transact`].
    fn put(
        &self,
        key: &str,
        value: impl Into<Arc<[u8]>> + Send,
    ) -> impl Future<Output = Result<Outcome, StoreError>> + Send {
        self.transact(Vec::new(), vec![Op::Put { key: key.into(), value: value.into(), lease: None }])
    }

    /// Writes a key if it was last written at `expected`, or does not exist if that is [`Revision::ZERO`].
    ///
    /// # Errors
    /// As [`Store::transact`].
    fn put_if(
        &self,
        key: &str,
        value: impl Into<Arc<[u8]>> + Send,
        expected: Revision,
    ) -> impl Future<Output = Result<Outcome, StoreError>> + Send {
        let key: Arc<str> = key.into();
        let compare = Compare { key: Arc::clone(&key), mod_revision: expected };
        self.transact(vec![compare], vec![Op::Put { key, value: value.into(), lease: None }])
    }

    /// Removes a key whatever it was; it may be absent.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    fn delete(&self, key: &str) -> impl Future<Output = Result<Outcome, StoreError>> + Send {
        self.transact(Vec::new(), vec![Op::Delete { key: key.into() }])
    }
}

/// Refuses what etcd refuses, before anything changes.
fn check(ops: &[Op]) -> Result<(), StoreError> {
    let mut keys = HashSet::new();
    for op in ops {
        if !keys.insert(op.key()) {
            return Err(StoreError::DuplicateKey { key: Arc::clone(op.key()) });
        }
        if let Op::Put { key, value, .. } = op
            && value.len() > VALUE_LIMIT
        {
            return Err(StoreError::TooLarge { key: Arc::clone(key), size: value.len() });
        }
    }
    Ok(())
}
