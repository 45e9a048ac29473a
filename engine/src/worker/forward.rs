//! How a worker sends frames on as was decided: by replay, step by step, to all ports of a bridge.
//!
//! The slow path calls it for what it has just decided, `segments` for what the cache answers and is not finished. Invariant:
//! every point that a frame passes is told of it, as a wire would show it. Read first: `rewrite.rs`.

use super::budget::{Rate, TokenBucket};
use super::{
    ADJACENCY_LIMIT, Adjacency, DropReason, Frame, Instant, NodeId, Parsed, PortId, Term, Worker, flags,
};
use crate::flow::{Slot, Tuple};
use crate::frame::FrameMut;
use crate::rewrite::{Step, Transform, apply, replay};
use crate::trace::{Action, Point};

/// Frames that one port may have flooded.
const FLOODS: Rate = Rate { per_second: 4096, burst: 4096 };

impl Worker {
    /// Does with a frame what the cache does with those of its flow.
    pub(super) fn forward_as(&mut self, mut frame: Frame, parsed: &Parsed, slot: &Slot, now: Instant) {
        if slot.flags & flags::ENCAPSULATE != 0 && self.is_unfinished(&frame) {
            return self.encapsulate_unfinished(frame, parsed, slot, now);
        }
        let adjacency = &self.adjacencies.list[slot.adjacency as usize];
        let egress = adjacency.egress;
        if replay(&mut self.arena.open(&mut frame), parsed, slot, adjacency, &mut self.identification) {
            self.send(frame, egress, now);
        } else {
            self.drop_frame(frame, DropReason::MtuExceeded, now);
        }
    }

    /// Returns the number of a way that frames leave.
    pub(super) fn adjacency(&mut self, adjacency: Adjacency) -> u32 {
        if let Some(&number) = self.adjacencies.numbers.get(&adjacency) {
            return number;
        }
        if self.adjacencies.list.len() >= ADJACENCY_LIMIT {
            self.adjacencies.list.clear();
            self.adjacencies.numbers.clear();
            self.cache.clear();
        }
        let number = self.adjacencies.list.len() as u32;
        self.adjacencies.list.push(adjacency);
        self.adjacencies.numbers.insert(adjacency, number);
        number
    }

    /// Applies a decision step by step and sends the frame.
    pub(super) fn forward(&mut self, frame: Frame, tuple: Tuple, transform: &Transform, now: Instant) {
        self.forward_by(frame, tuple, transform, transform.steps(), now);
    }

    /// Applies the rest of a decision; `tuple` is the packet's by now.
    pub(super) fn forward_by(
        &mut self,
        mut frame: Frame,
        mut tuple: Tuple,
        transform: &Transform,
        steps: &[Step],
        now: Instant,
    ) {
        for (number, step) in steps.iter().enumerate() {
            match *step {
                Step::Fragment(_) | Step::Wrap { .. } | Step::Encapsulate(_)
                    if self.is_unfinished(&frame) =>
                {
                    let on = |worker: &mut Self, frame: Frame| {
                        worker.forward_by(frame, tuple, transform, &steps[number..], now);
                    };
                    return self.finish_frame(frame, on, now);
                }
                Step::Pass(point, action) => self.watch(&mut frame, point, action, now),
                Step::Fragment(mtu) => {
                    let rest = steps.get(number + 1..).unwrap_or_default();
                    return self.send_in_fragments(frame, mtu, (tuple, transform, rest), now);
                }
                Step::Decapsulate
                | Step::Translate(_)
                | Step::TranslateError(_)
                | Step::DecrementTtl
                | Step::Wrap { .. }
                | Step::Encapsulate(_)
                | Step::Ethernet { .. } => {
                    if let Step::Translate(out) = *step
                        && out.source != tuple.source
                    {
                        self.identify(&mut frame, steps.get(number + 1..).unwrap_or_default());
                    }
                    let mut open: FrameMut<'_> = self.arena.open(&mut frame);
                    if !apply(&mut open, step, &mut tuple, &mut self.identification) {
                        return self.drop_frame(frame, DropReason::MtuExceeded, now);
                    }
                }
            }
        }
        self.send(frame, transform.egress, now);
    }

    /// Sends a frame to every port of a bridge but the one it came in by.
    pub(super) fn flood(&mut self, mut frame: Frame, node: NodeId, ingress: PortId, now: Instant) {
        let tables = std::sync::Arc::clone(&self.tables);
        let bridge = tables.node(node).and_then(|node| node.bridge.as_ref());
        let Some(bridge) = bridge else { return self.drop_frame(frame, DropReason::BridgeNoPort, now) };
        // A switch of the node network stands for the outside: what it floods is not ours to bound.
        let storm = bridge.router.is_some()
            && !self.floods.entry(ingress).or_insert_with(|| TokenBucket::full(FLOODS)).take(now);
        if storm {
            return self.drop_frame(frame, DropReason::FloodLimit, now);
        }
        self.watch(&mut frame, Point::Bridge, Action::Flood, now);
        let mut others = bridge.ports.iter().copied().filter(|&port| port != ingress).peekable();
        if others.peek().is_none() {
            return self.drop_frame(frame, DropReason::BridgeNoPort, now);
        }
        let mut original = Some(frame);
        while let Some(port) = others.next() {
            let copy = match &original {
                Some(frame) if others.peek().is_some() => {
                    self.count(node, Term::Copied, 1);
                    self.pool.copy(frame)
                }
                Some(_) | None => original.take(),
            };
            match copy {
                Some(copy) => self.send(copy, port, now),
                None => self.lack_buffer(node),
            }
        }
    }

    /// A frame that was to be made, and is counted as such, found no buffer.
    pub(super) fn lack_buffer(&self, node: NodeId) {
        if let Some(counters) = self.counters.get(usize::from(node.0)) {
            counters.drop_frame(DropReason::PoolEmpty);
        }
    }
}
