//! What a worker has on its way from memory before it is needed: what the replay of a batch's decisions touches.
//!
//! Called between a batch's first pass, which has the slots fetched, and its first frame's look-up. Invariant: nothing is decided here, so that a wrong guess costs time only.
//! Read first: `docs/performance.md`.

use super::{Frame, NodeId, Worker};
use crate::binding::HalfKey;
use crate::decide::likely_reply;
use crate::flow::flags;
use crate::parse::Parsed;

impl Worker {
    /// Starts to fetch what the replay of frames' decisions is about to touch beside frame and slot. Returns which flows, by their
    /// bits, are not in their first slot: for them, the slots that they may be in.
    #[inline(always)]
    pub(super) fn fetch_for(&self, frames: &[Frame], group: &[Parsed]) -> u64 {
        let mut misplaced = 0;
        for (bit, (frame, parsed)) in frames.iter().zip(group).enumerate() {
            let slot = self.cache.likely(parsed.hash);
            if !slot.key.resembles(parsed.key) {
                self.cache.prefetch_others(parsed.hash);
                misplaced |= 1 << bit;
                continue;
            }
            self.bindings.prefetch(slot.binding);
            if slot.flags & flags::ENCAPSULATE != 0 {
                self.arena.prefetch_headroom(frame);
            }
        }
        misplaced
    }

    /// The same of flows that are not in their first slot; of those that are in none, what the slow path is about to ask for.
    #[inline(always)]
    pub(super) fn fetch_elsewhere(&self, mut misplaced: u64, group: &[Parsed], node: NodeId) {
        while misplaced != 0 {
            if let Some(parsed) = group.get(misplaced.trailing_zeros() as usize) {
                self.fetch_found(parsed, node);
            }
            misplaced &= misplaced - 1;
        }
    }

    #[inline(never)]
    fn fetch_found(&self, parsed: &Parsed, node: NodeId) {
        if let Some(slot) = self.cache.elsewhere(parsed.hash, parsed.key) {
            return self.bindings.prefetch(slot.binding);
        }
        let tuple = parsed.tuple();
        self.bindings.prefetch_half(&HalfKey { node, tuple });
        if let Some(reply) = self.tables.node(node).and_then(|node| likely_reply(node, &tuple)) {
            self.bindings.prefetch_half(&HalfKey { node, tuple: reply });
        }
    }
}
