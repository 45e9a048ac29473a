//! Links that are files of the system's: TAPs. When they have something, and what is read from them.
//!
//! Called by the loop and by `ports`. Invariants: nothing is asked of the system while there are no such links, but to sleep; a
//! link that may have more is looked at in the next batch again. Read first: `link/watch.rs`, `link/tap.rs`.

use std::sync::Arc;
use std::time::Duration;

use super::{DropReason, Frame, Instant, Link, NodeId, PortId, Term, Worker};
use crate::frame::Pool;
use crate::link::tap::{Read, Tap};

/// What a batch left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing.
    Nothing,
    /// There may be more.
    More,
    /// The interface is gone.
    Gone,
}

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

    /// Does with a port what its batch left to do; counts the frames that no buffer was free for.
    pub(super) fn after_batch(&mut self, port: PortId, node: NodeId, left: Left, lost: u64) {
        match left {
            Left::Nothing => {}
            Left::More => self.make_ready(port),
            Left::Gone => {
                if let Some(Some(attached)) = self.links.get(port.0 as usize)
                    && let Link::Tap(tap) = &attached.link
                {
                    self.mailbox.watch.remove(tap.as_ref());
                }
            }
        }
        if lost > 0
            && let Some(counters) = self.counters.get(usize::from(node.0))
        {
            counters.count(Term::Received, lost);
            (0..lost).for_each(|_| counters.drop_frame(DropReason::PoolEmpty));
        }
    }
}

/// Reads up to `limit` frames; returns what is left, and how many frames were lost for want of a buffer.
pub(super) fn read_batch(
    tap: &mut Tap,
    limit: usize,
    pool: &mut Pool,
    frames: &mut Vec<Frame>,
) -> (Left, u64) {
    let mut lost = 0;
    for _ in 0..limit {
        match tap.read(pool) {
            Read::Frame(frame) => frames.push(frame),
            Read::Lost => lost += 1,
            Read::NoBuffer => return (Left::More, lost),
            Read::Empty => return (Left::Nothing, lost),
            Read::Gone => return (Left::Gone, lost),
        }
    }
    (Left::More, lost)
}
