//! A watch of an embedded store: a place in its history.
//!
//! [`Embedded`] makes it; whoever follows the store polls it.
//!
//! Invariants: what it delivers is the history from its start revision on, of its prefix, in order; if the history was
//! forgotten before it was read, the watch ends with an error.
//!
//! May depend on [`super::state`] and `futures`.
//!
//! Read first: [`super::state`].

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::stream::Stream;

use super::Embedded;
use crate::store::{self, Event, Revision, StoreError, Watching};

/// How many events a watch takes from the history at once.
const WATCH_BATCH: usize = 64;

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
    /// Everything up to here has been looked at.
    looked: Revision,
    ended: bool,
}

impl Watch {
    pub(super) fn new(store: Embedded, prefix: &str, from: Revision) -> Result<Self, StoreError> {
        let mut inner = store.lock();
        let state = &mut inner.state;
        if from < state.oldest {
            return Err(StoreError::Compacted { oldest: state.oldest });
        }
        let skipped = state.history.partition_point(|event| event.mod_revision < from);
        let (id, next) = (state.next_watch, state.first + skipped as u64);
        state.next_watch += 1;
        drop(inner);
        let looked = Revision(from.0.saturating_sub(1));
        Ok(Self {
            store,
            id,
            prefix: prefix.into(),
            from,
            next,
            ready: VecDeque::new(),
            looked,
            ended: false,
        })
    }
}

impl Watching for Watch {
    fn progress(&self) -> Revision {
        store::progress(&self.ready, self.looked)
    }
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

        let mut inner = this.store.lock();
        let state = &mut inner.state;
        let Some(skip) = this.next.checked_sub(state.first) else {
            this.ended = true;
            return Poll::Ready(Some(Err(StoreError::Compacted { oldest: state.oldest })));
        };
        let mut looked = this.looked.max(state.revision);
        for event in state.history.range((skip as usize).min(state.history.len())..) {
            if this.ready.len() == WATCH_BATCH {
                // Its siblings of the same revision may be among those that were taken.
                looked = Revision(event.mod_revision.0 - 1);
                break;
            }
            this.next += 1;
            if event.mod_revision >= this.from && event.key.starts_with(&*this.prefix) {
                this.ready.push_back(event.clone());
            }
        }
        this.looked = looked;
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
        self.store.lock().state.wakers.remove(&self.id);
    }
}
