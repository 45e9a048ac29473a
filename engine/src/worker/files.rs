//! Links that are files of the system's: TAPs, and sockets of tunnels. When they have something, what is read from them and
//! written to them.
//!
//! Called by the loop and by `ports`. Invariants: nothing is asked of the system while there are no such links, but to sleep; a
//! link that may have more is looked at in the next batch again; what is sent by one in a batch is written at its end. Read
//! first: `link/watch.rs`, `link/tap.rs`.

use std::sync::Arc;
use std::time::Duration;

use super::{Attached, BATCH_LIMIT, Frame, Instant, Link, NodeCounters, PortId, Term, Worker};
use crate::frame::{Arena, LARGE_CAPACITY, Pool};
use crate::ledger::DropReason;
use crate::link::tap::{Read, Tap};
use crate::trace::{Action, Point};

/// Frames that wait to be written to a port before they are.
const UNWRITTEN_LIMIT: usize = 4 * BATCH_LIMIT;
/// Bytes that a batch has at most, but for its last frame: half of what a core has in its second cache.
const BATCH_BYTES: usize = 512 << 10;

impl Worker {
    /// Returns a port's link, to switch what it leaves to the system.
    pub fn link(&mut self, port: PortId) -> Option<&mut Link> {
        self.links.get_mut(port.0 as usize)?.as_mut().map(|attached| &mut attached.link)
    }

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

    /// Has a frame written at the end of the batch; a pod's is told of as delivered: what is behind the file nobody sees.
    pub(super) fn send_to_tap(&mut self, mut frame: Frame, port: PortId, now: Instant) {
        if self.is_watched(&frame)
            && let point @ Point::Port(_) = self.egress_point(port)
        {
            self.watch(&mut frame, point, Action::Deliver, now);
        }
        let attached = self.links.get_mut(port.0 as usize).and_then(Option::as_mut);
        let Some(Attached { link: Link::Tap(tap), .. }) = attached else {
            return self.refuse_to_send(frame, port, DropReason::LinkDown, now);
        };
        let waiting = tap.queue(frame);
        if waiting == 1 {
            self.unwritten.push(port);
        } else if waiting >= UNWRITTEN_LIMIT {
            self.write_files(now);
        }
    }

    /// Writes what was sent by such links in this batch.
    pub(super) fn write_files(&mut self, now: Instant) {
        while let Some(port) = self.unwritten.pop() {
            let attached = self.links.get(port.0 as usize).and_then(Option::as_ref);
            match attached.map(|attached| &attached.link) {
                Some(Link::Tap(_)) => self.write_frames(port, now),
                Some(Link::TunnelSocket(_)) => self.send_datagrams(port, now),
                Some(Link::Wire { .. } | Link::Rings(_) | Link::Pod(_)) | None => {}
            }
        }
    }

    fn write_frames(&mut self, port: PortId, now: Instant) {
        let attached = self.links.get_mut(port.0 as usize).and_then(Option::as_mut);
        let Some(Attached { link: Link::Tap(tap), counters, .. }) = attached else { return };
        let (mut sent, mut refused, pool) = (0, Vec::new(), &mut self.pool);
        tap.write(&self.arena, |frame, written| match written {
            Ok(()) => {
                sent += 1;
                pool.free(frame);
            }
            Err(reason) => refused.push((frame, reason)),
        });
        counters.count(Term::Sent, sent);
        for (frame, reason) in refused {
            self.refuse_to_send(frame, port, reason, now);
        }
    }

    fn hear(&mut self, limit: Duration) {
        for index in 0..self.mailbox.watch.wait(limit) {
            let port = self.mailbox.watch.heard(index);
            if !self.hear_relays(port) {
                self.make_ready(port);
            }
        }
    }
}

/// Reads up to `limit` frames, or as many bytes as a processor keeps at hand; returns whether there may be more. What is lost is
/// counted.
pub(super) fn read_batch(
    tap: &mut Tap,
    limit: usize,
    (arena, pool): (&Arena, &mut Pool),
    frames: &mut Vec<Frame>,
    counters: &NodeCounters,
) -> bool {
    let (mut large, mut bytes, mut is_more) = (pool.allocate(LARGE_CAPACITY), 0, true);
    while frames.len() < limit && bytes < BATCH_BYTES {
        match tap.read(arena, pool, &mut large) {
            Read::Frame(frame) => {
                bytes += arena.bytes(&frame).len();
                frames.push(frame);
            }
            Read::Lost(reason) => {
                counters.count(Term::Received, 1);
                counters.drop_frame(reason);
            }
            Read::NoBuffer => break,
            Read::Empty => {
                is_more = false;
                break;
            }
        }
        large = large.or_else(|| pool.allocate(LARGE_CAPACITY));
    }
    if let Some(large) = large {
        pool.free(large);
    }
    is_more
}
