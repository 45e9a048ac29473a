//! The store inside this process.
//!
//! What `flatnet up` runs on, and the double of etcd in tests. In memory, or with a directory in which every change lies
//! before it is acknowledged. Its files: `state`, what it knows; `watch`; `disk`.
//!
//! Invariants: as [`crate::store`]; at most [`Options::history`] events are kept, so that a watch that falls behind ends
//! with an error and never loses an event silently; no clock is read: [`Embedded::advance`] says what time it is, and
//! leases end in it. Whoever sees a change sees one that is on disk.
//!
//! May depend on [`crate::store`], `futures`, and the engine's `Instant`. The lock is held for bounded work, writing to
//! disk included, and never across an await.
//!
//! Read first: [`crate::store`].

mod disk;

mod state;

mod watch;

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use flatnet_engine::clock::Instant;

use self::{
    disk::Disk,
    state::{Commit, State},
};
use crate::store::{
    Compare, KeyValue, LeaseId, LeaseState, Listing, Op, Outcome, Revision, Store, StoreError,
};

pub use self::{disk::OpenError, watch::Watch};

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

/// A store of this process; clones share it.
#[derive(Clone, Debug)]
pub struct Embedded {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    disk: Option<Disk>,
    /// Whom to wake once the lock is free.
    woken: Vec<Waker>,
}

impl Default for Embedded {
    fn default() -> Self {
        Self::with_options(Options::default())
    }
}

impl Embedded {
    /// Makes an empty store in memory with default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes an empty store in memory.
    pub fn with_options(options: Options) -> Self {
        Self::from_parts(State::new(options.history), None)
    }

    /// Opens the store of a directory, which must exist, or makes one there. History does not outlive a process;
    /// leases do, with all their time before them again.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(directory: &Path, options: Options) -> Result<Self, OpenError> {
        let mut state = State::new(options.history);
        let disk = Disk::open(directory, &mut state)?;
        Ok(Self::from_parts(state, Some(disk)))
    }

    fn from_parts(state: State, disk: Option<Disk>) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { state, disk, woken: Vec::new() })) }
    }

    /// Says what time it is; leases whose time is over end in one step, the earliest first, each at a revision of its own.
    /// Time never goes back.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`]: leases that should have ended have not, and are tried again next time.
    pub fn advance(&self, now: Instant) -> Result<(), StoreError> {
        self.with(|inner| {
            inner.state.now = inner.state.now.max(now);
            while inner.state.is_expiry_due() {
                inner.change(|state| Ok((state.plan_expiry()?, ())))?;
            }
            Ok(())
        })
    }

    /// Returns when [`Embedded::advance`] will have a lease to end.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.lock().state.next_deadline().map(|(deadline, _)| deadline)
    }

    /// Gives the revision of the last change.
    pub fn revision(&self) -> Revision {
        self.lock().state.revision
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code panics while it holds the lock; a poisoned one would still hold a whole state.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something in one step and wakes whom it concerns.
    fn with<R>(&self, act: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = self.lock();
        let result = act(&mut inner);
        let woken = std::mem::take(&mut inner.woken);
        drop(inner);
        woken.into_iter().for_each(Waker::wake);
        result
    }
}

impl Inner {
    /// Decides about a change, makes it if there is one, and returns what the plan says comes of it.
    fn change<R>(
        &mut self,
        plan: impl FnOnce(&State) -> Result<(Option<Commit>, R), StoreError>,
    ) -> Result<R, StoreError> {
        self.recover()?;
        let (commit, result) = plan(&self.state)?;
        if let Some(commit) = commit {
            self.commit(commit)?;
        }
        Ok(result)
    }

    /// Finds out what became of a write that failed; if it is on disk, it happens now.
    fn recover(&mut self) -> Result<(), StoreError> {
        if let Some(commit) = self.disk.as_mut().map(Disk::recover).transpose()?.flatten() {
            self.apply(commit);
        }
        Ok(())
    }

    /// Makes a change, on disk first.
    fn commit(&mut self, commit: Commit) -> Result<(), StoreError> {
        if let Some(disk) = &mut self.disk
            && !commit.is_empty()
        {
            disk.write(&commit)?;
        }
        self.apply(commit);
        Ok(())
    }

    fn apply(&mut self, commit: Commit) {
        self.state.apply(commit);
        self.wake_watches();
    }

    fn wake_watches(&mut self) {
        self.woken.extend(std::mem::take(&mut self.state.wakers).into_values());
    }
}

impl Store for Embedded {
    type Watch = Watch;

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        Ok(self.lock().state.keys.get(key).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        Ok(self.lock().state.list(prefix))
    }

    async fn transact(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Outcome, StoreError> {
        self.with(|inner| inner.change(|state| state.plan(&compares, ops)))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        Watch::new(self.clone(), prefix, from)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.with(|inner| {
            let (oldest, last) = (inner.state.oldest, inner.state.revision);
            if revision > last {
                return Err(StoreError::Future { asked: revision, last });
            }
            if revision <= oldest {
                return Err(StoreError::Compacted { oldest });
            }
            inner.state.forget(revision);
            // Who has not read what is gone must hear of it.
            inner.wake_watches();
            Ok(())
        })
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.with(|inner| inner.change(|state| Ok(state.plan_grant(ttl))))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.lock().state.keep_alive(lease)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<Revision, StoreError> {
        self.with(|inner| inner.change(|state| state.plan_end(lease)))
    }

    async fn lease(&self, lease: LeaseId) -> Result<LeaseState, StoreError> {
        self.lock().state.lease(lease)
    }
}

#[cfg(test)]
mod tests;
