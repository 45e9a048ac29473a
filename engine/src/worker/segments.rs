//! What a worker does with frames whose checksum, or cutting into segments, is left to others.
//!
//! A link that offloads brings them and takes them as they are. Invariants: they are finished before they get outer headers,
//! leave by a link that does not offload, wait for a neighbour, or anybody looks at them; a superframe is as long as the longest
//! of its segments to whoever compares it with an MTU. Read first: `segment.rs`, `link/offload.rs`.

use super::{
    ChecksumState, DropReason, Frame, Instant, NO_BINDING, NodeId, Parsed, PortId, Slot, Term, Worker,
};
use super::{hear, renew};
use crate::frame::Segmentation;
use crate::segment::Layout;
use crate::wire::IpProtocol;

impl Worker {
    /// What the second and third pass do, of a frame that is not finished; gives it back when it must be decided.
    #[cold]
    #[inline(never)]
    pub(super) fn cached_unfinished(
        &mut self,
        frame: Frame,
        parsed: &Parsed,
        slot: Slot,
        now: Instant,
    ) -> Option<Frame> {
        // What came out of the tunnel has its own checksum, and only the slow path says so.
        let mtu = self.adjacencies.list[slot.adjacency as usize].mtu;
        if parsed.tunneled || self.wire_length(&frame, parsed) > mtu {
            return Some(frame);
        }
        if slot.binding != NO_BINDING {
            if !renew(&mut self.bindings, &slot, now) {
                return Some(frame);
            }
            if slot.key.protocol() == u8::from(IpProtocol::Tcp) {
                hear(&mut self.bindings, &slot, parsed, self.arena.bytes(&frame));
            }
        }
        self.forward_as(frame, parsed, &slot, now);
        None
    }

    /// Tells whether a frame's checksum or segments are yet to be made.
    pub(super) fn is_unfinished(&self, frame: &Frame) -> bool {
        self.arena.record(frame).checksum == ChecksumState::Partial
    }

    /// Returns how long a frame's packet is on a wire, bytes: the longest of its segments, if it is to be cut.
    pub(super) fn wire_length(&self, frame: &Frame, parsed: &Parsed) -> u16 {
        let record = self.arena.record(frame);
        if record.segmentation == Segmentation::None {
            return parsed.length;
        }
        let layout = Layout::of(self.arena.bytes(frame));
        let length = layout.map(|layout| layout.packet_length(usize::from(record.segment_size)));
        length.and_then(|length| u16::try_from(length).ok()).unwrap_or(parsed.length)
    }

    /// Finishes a frame; each of those that it makes goes `on`.
    pub(super) fn finish_frame(
        &mut self,
        mut frame: Frame,
        mut on: impl FnMut(&mut Self, Frame),
        now: Instant,
    ) {
        let mut open = self.arena.open(&mut frame);
        let Some(layout) = Layout::of(open.bytes()) else {
            return self.drop_frame(frame, DropReason::MalformedOffload, now);
        };
        if open.record.segmentation == Segmentation::None {
            open.record.checksum = ChecksumState::Verified;
            layout.finish(open.bytes_mut());
            return on(self, frame);
        }
        let (node, size) = (NodeId(open.record.node), usize::from(open.record.segment_size));
        for (number, start) in (layout.payload..layout.end).step_by(size).enumerate() {
            if number > 0 {
                self.count(node, Term::Split, 1);
            }
            let range = start..(start + size).min(layout.end);
            let Some(mut segment) = self.pool.allocate_like(&frame, layout.payload + range.len()) else {
                self.lack_buffer(node);
                continue;
            };
            let open = self.arena.open(&mut segment);
            open.record.checksum = ChecksumState::Verified;
            (open.record.segmentation, open.record.segment_size) = (Segmentation::None, 0);
            layout.write_segment(open.into_bytes(), self.arena.bytes(&frame), &range, number as u16);
            on(self, segment);
        }
        // The first stands for the whole in the ledger.
        self.pool.free(frame);
    }

    /// Finishes all frames of a batch, because somebody looks at what passes.
    pub(super) fn finish_batch(&mut self, frames: &mut Vec<Frame>, node: NodeId, port: PortId, now: Instant) {
        if !frames.iter().any(|frame| self.is_unfinished(frame)) {
            return;
        }
        for mut frame in std::mem::take(frames) {
            let open = self.arena.open(&mut frame);
            (open.record.node, open.record.ingress) = (node.0, port.0);
            if self.is_unfinished(&frame) {
                self.finish_frame(frame, |_, segment| frames.push(segment), now);
            } else {
                frames.push(frame);
            }
        }
    }
}
