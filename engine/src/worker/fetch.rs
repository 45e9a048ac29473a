//! What a worker has on its way from memory before it is needed: the slots of the frames ahead, then what their replay touches.
//!
//! Called between a frame and the next of a batch. Invariant: nothing is decided here, so that a wrong guess costs time only.
//! Read first: `docs/performance.md`.

use super::{Frame, NodeId, Worker};
use crate::binding::HalfKey;
use crate::decide::likely_reply;
use crate::flow::flags;
use crate::parse::Parsed;

impl Worker {
    /// Starts to fetch the slots that a flow may be in when it is not in its first.
    #[inline(always)]
    pub(super) fn fetch_others(&self, parsed: &Parsed) {
        if !self.cache.likely(parsed.hash).key.resembles(parsed.key) {
            self.cache.prefetch_others(parsed.hash);
        }
    }

    /// Starts to fetch what the replay of a frame's decision is about to touch beside the frame and the slot.
    #[inline(always)]
    pub(super) fn fetch_for(&self, frame: &Frame, parsed: &Parsed, node: NodeId) {
        let slot = self.cache.likely(parsed.hash);
        if !slot.key.resembles(parsed.key) {
            return self.fetch_elsewhere(parsed, node);
        }
        self.bindings.prefetch(slot.binding);
        if slot.flags & flags::ENCAPSULATE != 0 {
            self.arena.prefetch_headroom(frame);
        }
    }

    /// The same of a flow that is not in its first slot; of one that is in none, what the slow path is about to ask for.
    #[inline(never)]
    fn fetch_elsewhere(&self, parsed: &Parsed, node: NodeId) {
        let slot = self.cache.elsewhere(parsed.hash, parsed.key);
        if slot.key == parsed.key {
            return self.bindings.prefetch(slot.binding);
        }
        let tuple = parsed.tuple();
        self.bindings.prefetch_half(&HalfKey { node, tuple });
        if let Some(reply) = self.tables.node(node).and_then(|node| likely_reply(node, &tuple)) {
            self.bindings.prefetch_half(&HalfKey { node, tuple: reply });
        }
    }
}
