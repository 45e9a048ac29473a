//! Links that are files of the system's: TAPs. When they have something, and what is read from them.
//!
//! Called by the loop and by `ports`. Invariants: nothing is asked of the system while there are no such links, but to sleep; a
//! link that may have more is looked at in the next batch again. Read first: `link/watch.rs`, `link/tap.rs`.

use std::sync::Arc;
use std::time::Duration;

use super::{DropReason, Frame, Instant, NodeId, Term, Worker};
use crate::frame::Pool;
use crate::link::tap::{Read, Tap};

impl Worker {
    /// Hears which links have something.
    pub(super) fn look_at_files(&mut self) {
        if !self.mailbox.watch.is_empty() {
            self.hear(Duration::ZERO);
        }
    }

    /// Sleeps until something is there or was sent, for at most `limit`.
    pub(super) fn sleep(&mut self, now: Instant, limit: Duration) {
        let alarm = Arc::clone(&self.mailbox.alarm);
        alarm.fall_asleep();
        if self.next_event(now) != Some(now) {
            self.hear(limit);
        }
        alarm.get_up();
    }

    fn hear(&mut self, limit: Duration) {
        for index in 0..self.mailbox.watch.wait(limit) {
            let port = self.mailbox.watch.heard(index);
            self.make_ready(port);
        }
    }

    /// Counts frames of a port's that no buffer was free for.
    pub(super) fn count_lost(&self, node: NodeId, lost: u64) {
        if let Some(counters) = self.counters.get(usize::from(node.0)) {
            counters.count(Term::Received, lost);
            (0..lost).for_each(|_| counters.drop_frame(DropReason::PoolEmpty));
        }
    }
}

/// Reads up to `limit` frames; returns whether there may be more, and how many were lost for want of a buffer.
pub(super) fn read_batch(
    tap: &mut Tap,
    limit: usize,
    pool: &mut Pool,
    frames: &mut Vec<Frame>,
) -> (bool, u64) {
    let mut lost = 0;
    for _ in 0..limit {
        match tap.read(pool) {
            Read::Frame(frame) => frames.push(frame),
            Read::Lost => lost += 1,
            Read::NoBuffer => break,
            Read::Empty => return (false, lost),
        }
    }
    (true, lost)
}
