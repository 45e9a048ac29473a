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
    /// The next trace mark; taken by traced frames.
    pub next_mark: &'a mut u32,
}

impl Outbox<'_> {
    /// Sends an Ethernet frame of `length` bytes that `write` fills in; every byte of it must be written. A
    /// `traced` frame is followed hop by hop. False when no buffer is free or the queue is full.
    pub fn emit(&mut self, length: usize, traced: bool, write: impl FnOnce(&mut [u8])) -> bool {
        if self.queue.len() >= QUEUE_LIMIT {
            return false;
        }
        let Some(mut frame) = self.pool.allocate(length) else { return false };
        let mut open = self.pool.arena().open(&mut frame);
        write(open.bytes_mut());
        open.record.checksum = ChecksumState::Verified;
        if traced {
            *self.next_mark = self.next_mark.wrapping_add(1).max(1);
            open.record.mark = *self.next_mark;
        }
        self.queue.push_back(frame);
        true
    }
}
