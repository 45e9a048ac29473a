//! What an embedded store knows, without locks and files.
//!
//! [`super::Embedded`] asks it to plan a change, has the plan written to disk if there is one, and lets it happen by
//! [`State::apply`]. Planning changes nothing, so that a change that cannot be written has not happened.
//!
//! Invariants: as [`crate::store`]; `history` holds the events from `oldest` on in order, without a gap; a key is named
//! by the lease it is attached to and by no other; `deadlines` has one entry per lease.
//!
//! May depend on [`crate::store`].
//!
//! Read first: [`crate::store`]; etcd's lessor (leases expire in the order of their deadlines, each at a revision of its
//! own).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    sync::Arc,
    task::Waker,
    time::Duration,
};

use flatnet_engine::clock::Instant;

use crate::store::{
    self, Compare, Event, EventKind, KeyValue, LeaseId, LeaseState, Listing, Op, Outcome, Revision,
    StoreError,
};

/// All that an embedded store knows.
#[derive(Debug)]
pub(super) struct State {
    pub(super) now: Instant,
    /// How many events are kept at most.
    limit: usize,
    pub(super) revision: Revision,
    pub(super) keys: BTreeMap<Arc<str>, KeyValue>,
    pub(super) history: VecDeque<Event>,
    /// The sequence number of the oldest event in `history`: how many were dropped before it.
    pub(super) first: u64,
    /// The oldest revision whose events are all there.
    pub(super) oldest: Revision,
    leases: BTreeMap<LeaseId, Lease>,
    deadlines: BTreeSet<(Instant, LeaseId)>,
    pub(super) last_lease: LeaseId,
    pub(super) next_watch: u64,
    /// Who waits for an event, in the order in which the watches were made, so that a run repeats exactly.
    pub(super) wakers: BTreeMap<u64, Waker>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
    keys: BTreeSet<Arc<str>>,
}

/// A change that is decided and has not happened.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Commit {
    /// The store's revision afterwards.
    pub(super) revision: Revision,
    /// What happens to keys, in order, all at that revision.
    pub(super) events: Vec<Event>,
    /// What happens to a lease.
    pub(super) lease: Option<LeaseChange>,
}

impl Commit {
    /// Tells whether nothing changes.
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.lease.is_none()
    }
}

/// A lease comes or goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum LeaseChange {
    Granted(LeaseId, Duration),
    Ended(LeaseId),
}

impl State {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            now: Instant::ZERO,
            limit,
            revision: Revision::ZERO,
            keys: BTreeMap::new(),
            history: VecDeque::new(),
            first: 0,
            oldest: Revision::ZERO,
            leases: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            last_lease: LeaseId(0),
            next_watch: 0,
            wakers: BTreeMap::new(),
        }
    }

    /// Takes a key as it was kept on disk; its lease is there already.
    pub(super) fn restore(&mut self, entry: KeyValue) {
        if let Some(lease) = entry.lease.and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.insert(Arc::clone(&entry.key));
        }
        self.keys.insert(Arc::clone(&entry.key), entry);
    }

    pub(super) fn list(&self, prefix: &str) -> Listing {
        let entries = self
            .keys
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, entry)| entry.clone())
            .collect();
        Listing { entries, revision: self.revision }
    }

    /// Decides about a transaction.
    pub(super) fn plan(
        &self,
        compares: &[Compare],
        ops: Vec<Op>,
    ) -> Result<(Option<Commit>, Outcome), StoreError> {
        store::check(&ops)?;
        if !compares.iter().all(|compare| self.holds(compare)) {
            return Ok((None, Outcome::Conflict));
        }
        let at = self.revision.next();
        let mut events = Vec::new();
        for op in ops {
            match op {
                Op::Put { key, value, lease } => {
                    if let Some(lease) = lease {
                        self.living(lease)?;
                    }
                    let create_revision = self.keys.get(&key).map_or(at, |entry| entry.create_revision);
                    let kind = EventKind::Put;
                    events.push(Event { kind, key, value, mod_revision: at, create_revision, lease });
                }
                Op::Delete { key } if self.keys.contains_key(&key) => events.push(removal(key, at)),
                Op::Delete { .. } => {}
            }
        }
        // The revision moves only if something changes, as in etcd.
        let revision = if events.is_empty() { self.revision } else { at };
        Ok((Some(Commit { revision, events, lease: None }), Outcome::Done(revision)))
    }

    pub(super) fn plan_grant(&self, ttl: Duration) -> (Option<Commit>, LeaseId) {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let id = LeaseId(self.last_lease.0 + 1);
        let lease = LeaseChange::Granted(id, Duration::from_secs(seconds.max(1)));
        (Some(Commit { revision: self.revision, events: Vec::new(), lease: Some(lease) }), id)
    }

    pub(super) fn plan_end(&self, id: LeaseId) -> Result<(Option<Commit>, Revision), StoreError> {
        let lease = self.leases.get(&id).ok_or(StoreError::NoLease { lease: id })?;
        let at = self.revision.next();
        let events: Vec<Event> = lease.keys.iter().map(|key| removal(Arc::clone(key), at)).collect();
        let revision = if events.is_empty() { self.revision } else { at };
        Ok((Some(Commit { revision, events, lease: Some(LeaseChange::Ended(id)) }), revision))
    }

    /// Tells whether a lease's time is over.
    pub(super) fn is_expiry_due(&self) -> bool {
        self.next_deadline().is_some_and(|(deadline, _)| deadline <= self.now)
    }

    /// Ends the lease whose time was over first.
    pub(super) fn plan_expiry(&self) -> Result<Option<Commit>, StoreError> {
        let due = self.next_deadline().filter(|_| self.is_expiry_due());
        Ok(due.map(|(_, id)| self.plan_end(id)).transpose()?.and_then(|(commit, _)| commit))
    }

    /// Lets a planned change happen.
    pub(super) fn apply(&mut self, commit: Commit) {
        self.revision = commit.revision;
        match commit.lease {
            Some(LeaseChange::Granted(id, ttl)) => self.admit(id, ttl),
            Some(LeaseChange::Ended(id)) => {
                if let Some(lease) = self.leases.remove(&id) {
                    self.deadlines.remove(&(lease.deadline, id));
                }
            }
            None => {}
        }
        for event in commit.events {
            self.change(&event);
            self.history.push_back(event);
        }
        if let Some(last) = self.history.len().checked_sub(self.limit + 1).map(|last| &self.history[last]) {
            self.forget(last.mod_revision.next());
        }
    }

    /// Takes a lease that has its whole time before it.
    pub(super) fn admit(&mut self, id: LeaseId, ttl: Duration) {
        let deadline = self.now + ttl;
        self.leases.insert(id, Lease { ttl, deadline, keys: BTreeSet::new() });
        self.deadlines.insert((deadline, id));
        self.last_lease = self.last_lease.max(id);
    }

    fn change(&mut self, event: &Event) {
        let key = &event.key;
        let before = match event.kind {
            EventKind::Put => self.keys.insert(
                Arc::clone(key),
                KeyValue {
                    key: Arc::clone(key),
                    value: Arc::clone(&event.value),
                    create_revision: event.create_revision,
                    mod_revision: event.mod_revision,
                    lease: event.lease,
                },
            ),
            EventKind::Delete => self.keys.remove(key),
        };
        let attached = |entry: KeyValue| entry.lease;
        if let Some(lease) = before.and_then(attached).and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.remove(key);
        }
        if let Some(lease) = event.lease.and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.insert(Arc::clone(key));
        }
    }

    /// Forgets the history before a revision.
    pub(super) fn forget(&mut self, before: Revision) {
        while self.history.front().is_some_and(|event| event.mod_revision < before) {
            self.history.pop_front();
            self.first += 1;
        }
        self.oldest = self.oldest.max(before);
    }

    pub(super) fn keep_alive(&mut self, id: LeaseId) -> Result<Duration, StoreError> {
        self.living(id)?;
        let now = self.now;
        let lease = self.leases.get_mut(&id).ok_or(StoreError::NoLease { lease: id })?;
        self.deadlines.remove(&(lease.deadline, id));
        lease.deadline = now + lease.ttl;
        self.deadlines.insert((lease.deadline, id));
        Ok(lease.ttl)
    }

    pub(super) fn lease(&self, id: LeaseId) -> Result<LeaseState, StoreError> {
        let lease = self.living(id)?;
        let remaining = lease.deadline.saturating_duration_since(self.now);
        Ok(LeaseState { granted: lease.ttl, remaining, keys: lease.keys.iter().cloned().collect() })
    }

    /// Finds a lease whose time is not over; one that could not be ended because the disk is full is none.
    fn living(&self, id: LeaseId) -> Result<&Lease, StoreError> {
        let lease = self.leases.get(&id).filter(|lease| lease.deadline > self.now);
        lease.ok_or(StoreError::NoLease { lease: id })
    }

    /// Names the next lease to end and when.
    pub(super) fn next_deadline(&self) -> Option<(Instant, LeaseId)> {
        self.deadlines.first().copied()
    }

    fn holds(&self, compare: &Compare) -> bool {
        let current = self.keys.get(&compare.key).map_or(Revision::ZERO, |entry| entry.mod_revision);
        current == compare.mod_revision
    }
}

fn removal(key: Arc<str>, at: Revision) -> Event {
    Event {
        kind: EventKind::Delete,
        key,
        value: Arc::default(),
        mod_revision: at,
        create_revision: Revision::ZERO,
        lease: None,
    }
}
