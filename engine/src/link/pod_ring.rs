//! The two bounded queues between a pod and its node's bridge: the pod's eth0.
//!
//! The worker that owns the pod empties one and fills the other; both hold buffer handles, so no frame is
//! copied. Invariant: neither queue grows beyond [`QUEUE_LIMIT`]. Allowed dependencies: `frame`.
//! Read first: `frame.rs`.

use std::collections::VecDeque;

use crate::frame::{ChecksumState, Frame, Pool};

/// Frames either queue of a pod's link takes.
pub const QUEUE_LIMIT: usize = 1024;

/// Where a pod puts the frames it sends.
#[derive(Debug)]
pub struct Outbox<'a> {
    /// The worker's buffers.
    pub pool: &'a mut Pool,
    /// Frames on their way to the bridge.
    pub queue: &'a mut VecDeque<Frame>,
    /// The trace mark taken last; see [`take_mark`].
    pub next_mark: &'a mut u32,
    /// Whether what answers a followed frame is followed, too.
    pub tracing: bool,
    /// Whether whatever is sent now is followed: it answers a frame that is.
    pub answers_traced: bool,
}

/// Takes the mark of a frame that is followed hop by hop.
pub fn take_mark(last: &mut u32) -> u32 {
    *last = last.wrapping_add(1).max(1);
    *last
}

/// What a frame is to whoever follows one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trace {
    /// Its mark; 0 when nobody follows it.
    pub mark: u32,
    /// Whether it asks for the MAC that the frame of this mark waits for.
    pub asks: bool,
}

impl Outbox<'_> {
    /// Returns the mark for a packet: one of its own when it is `traced` or answers what is, else 0.
    pub fn mark(&mut self, traced: bool) -> u32 {
        if traced || self.answers_traced { take_mark(self.next_mark) } else { 0 }
    }

    /// Sends an Ethernet frame of `length` bytes that `write` fills in; every byte of it must be written. False when
    /// no buffer is free or the queue is full.
    pub fn emit(&mut self, length: usize, trace: Trace, write: impl FnOnce(&mut [u8])) -> bool {
        if self.queue.len() >= QUEUE_LIMIT {
            return false;
        }
        let Some(mut frame) = self.pool.allocate(length) else { return false };
        let mut open = self.pool.arena().open(&mut frame);
        write(open.bytes_mut());
        open.record.checksum = ChecksumState::Verified;
        (open.record.mark, open.record.asks) = (trace.mark, trace.asks);
        self.queue.push_back(frame);
        true
    }
}
