//! What is remembered of an etcd: how far it had come, and what a person should know.
//!
//! [`super::connection`] and [`super::watch`] note it with every answer; whoever has the store takes the warnings.
//!
//! Invariants: what is known of the store goes forward only, or the store is not the one it was and that is said; the same
//! is not said twice in a row.
//!
//! May depend on `etcd-client`.
//!
//! Read first: etcd API, response header; "disaster recovery" of its operations guide.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use etcd_client::ResponseHeader;

use crate::store::Revision;

/// How many warnings wait to be taken.
const WARNING_LIMIT: usize = 64;

/// Something a person should know about an etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A key below a prefix that was listed or watched is not UTF-8 and was passed over.
    ForeignKey {
        /// The key, as far as it can be printed.
        key: String,
    },
    /// A member was left.
    Left {
        /// Its endpoint and what was wrong.
        cause: String,
    },
    /// The store is another than before, or was restored from an older state.
    Restored {
        /// How that was seen.
        cause: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForeignKey { key } => write!(f, "key {key} is not UTF-8; it is passed over"),
            Self::Left { cause } => write!(f, "member left: {cause}"),
            Self::Restored { cause } => write!(f, "store is not what it was: {cause}"),
        }
    }
}

/// How far the store had come when it was asked, by an answer that no later one can be behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    cluster: u64,
    term: u64,
    revision: u64,
}

impl Mark {
    /// Reads an answer's header.
    pub(super) fn of(header: Option<&ResponseHeader>) -> Self {
        header.map_or(Self::default(), |header| Self {
            cluster: header.cluster_id(),
            term: header.raft_term(),
            revision: header.revision().max(0).unsigned_abs(),
        })
    }

    /// Gives a mark that is no earlier than a revision.
    pub(super) fn at_least(self, revision: Revision) -> Self {
        Self { revision: self.revision.max(revision.0), ..self }
    }

    pub(super) fn revision(&self) -> Revision {
        Revision(self.revision)
    }

    /// Says how an answer shows that the store is not the one it was, if it does.
    pub(super) fn contradicts(&self, now: &Self) -> Option<String> {
        if self.cluster != 0 && now.cluster != self.cluster {
            return Some(format!("cluster was {:x} and is {:x}", self.cluster, now.cluster));
        }
        if now.revision < self.revision {
            return Some(format!("revision was {} and is {}", self.revision, now.revision));
        }
        (now.term < self.term).then(|| format!("term was {} and is {}", self.term, now.term))
    }
}

/// What is remembered of an etcd.
#[derive(Default)]
pub(super) struct Notes(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    mark: Mark,
    warnings: VecDeque<Warning>,
    /// What was given lately: the same is not said again and again.
    said: VecDeque<Warning>,
}

impl Notes {
    /// Gives how far the store is known to be; taken before a request, it is what the answer is compared with.
    pub(super) fn mark(&self) -> Mark {
        self.inner().mark
    }

    /// Compares the header of an answer that no earlier one may be ahead of with what was known before; says how they
    /// contradict each other.
    pub(super) fn note(&self, before: &Mark, header: Option<&ResponseHeader>) -> Option<String> {
        let now = Mark::of(header);
        if now == Mark::default() {
            return None;
        }
        let contradiction = before.contradicts(&now);
        let mut notes = self.inner();
        // Answers overtake each other: only who asked last may say that the store went back.
        let known = notes.mark;
        let counts =
            if contradiction.is_some() { known == *before } else { known.contradicts(&now).is_none() };
        if counts {
            notes.mark = now;
        }
        drop(notes);
        if let Some(cause) = contradiction.as_ref().filter(|_| counts) {
            self.warn(Warning::Restored { cause: cause.clone() });
        }
        contradiction
    }

    /// Keeps a warning until it is taken; what was said lately is not said again.
    pub(super) fn warn(&self, warning: Warning) {
        let mut notes = self.inner();
        if notes.said.contains(&warning) {
            return;
        }
        let Inner { warnings, said, .. } = &mut *notes;
        for queue in [warnings, said] {
            if queue.len() >= WARNING_LIMIT {
                queue.pop_front();
            }
            queue.push_back(warning.clone());
        }
    }

    /// Reads a key; one that is not UTF-8 is none of ours.
    pub(super) fn key(&self, key: &[u8]) -> Option<Arc<str>> {
        let read = std::str::from_utf8(key);
        if read.is_err() {
            self.warn(Warning::ForeignKey { key: key.escape_ascii().to_string() });
        }
        read.ok().map(Arc::from)
    }

    pub(super) fn take_warnings(&self) -> Vec<Warning> {
        std::mem::take(&mut self.inner().warnings).into()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
