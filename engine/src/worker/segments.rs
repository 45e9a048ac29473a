//! What a worker does with frames whose checksum, or cutting into segments, is left to others.
//!
//! A link that offloads brings them and takes them as they are; a tunnel's socket brings superframes behind outer headers and
//! takes them so. Invariants: they are finished before they get outer headers for any other link, leave by a link that does not
//! offload, wait for a neighbour, or anybody looks at them; what came out of the tunnel as one is decided about in segments; a superframe is as long as the longest
//! of its segments to whoever compares it with an MTU. Read first: `segment.rs`, `link/offload.rs`.

use super::passes::{hear, renew};
use super::{ChecksumState, DropReason, Frame, Instant, Link, NodeId, Parsed, PortId, Term, Worker, flags};
use crate::flow::{NO_BINDING, Slot};
use crate::frame::Segmentation;
use crate::link::outer::write_lengths;
use crate::rewrite::replay;
use crate::segment::Layout;
use crate::wire::{IpProtocol, Ipv4Packet};

impl Worker {
    /// What the second and third pass do, of a frame that is not finished; gives it back when it must be decided.
    #[cold]
    #[inline(never)]
    pub(super) fn cached_unfinished(
        &mut self,
        mut frame: Frame,
        parsed: &Parsed,
        slot: Slot,
        now: Instant,
    ) -> Option<Frame> {
        // What came out of the tunnel has its own checksum, unless it was put together here: only the slow path says so, and cuts
        // what is not for one of the node's own links.
        let is_merged = self.arena.record(&frame).checksum == ChecksumState::PartialInside;
        let mtu = self.adjacencies.list[slot.adjacency as usize].mtu;
        if parsed.tunneled != is_merged
            || is_merged && slot.flags & flags::ENCAPSULATE != 0
            || self.wire_length(&frame, parsed) > mtu
        {
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
        // The outer headers go.
        self.arena.open(&mut frame).record.checksum = ChecksumState::Partial;
        self.forward_as(frame, parsed, &slot, now);
        None
    }

    /// Tells whether a frame's checksum or segments are yet to be made.
    pub(super) fn is_unfinished(&self, frame: &Frame) -> bool {
        self.arena.record(frame).checksum.is_unfinished()
    }

    /// Decides about what came out of the tunnel and is not finished: in segments, if it was put together here.
    #[cold]
    pub(super) fn decide_unfinished(&mut self, frame: Frame, now: Instant) {
        if self.arena.record(&frame).checksum == ChecksumState::PartialInside {
            return self.finish_frame(frame, |worker, frame| worker.take_again(frame, now), now);
        }
        // Whoever made the inner packet could have made this checksum: it comes from a machine that has no tunnel.
        self.drop_frame(frame, DropReason::TunnelChecksum, now);
    }

    /// Forwards a frame that gets outer headers: as one, if it is a superframe and the link takes that.
    pub(super) fn encapsulate_unfinished(
        &mut self,
        mut frame: Frame,
        parsed: &Parsed,
        slot: &Slot,
        now: Instant,
    ) {
        let adjacency = &self.adjacencies.list[slot.adjacency as usize];
        let egress = adjacency.egress;
        let link = self.links.get(egress.0 as usize).and_then(Option::as_ref).map(|attached| &attached.link);
        let takes_superframes = matches!(link, Some(Link::TunnelSocket(socket)) if socket.segments);
        if !takes_superframes || self.arena.record(&frame).segmentation == Segmentation::None {
            let network = usize::from(parsed.network_offset);
            let on = |worker: &mut Self, frame: Frame| {
                let length = Ipv4Packet::new_unchecked(&worker.arena.bytes(&frame)[network..]).total_length();
                worker.forward_as(frame, &Parsed { length, ..*parsed }, slot, now);
            };
            return self.finish_frame(frame, on, now);
        }
        let mut open = self.arena.open(&mut frame);
        // So no payload is read for an outer checksum that means nothing: the segments have none.
        open.record.checksum = ChecksumState::Verified;
        let has_room = replay(&mut open, parsed, slot, adjacency, &mut self.identification);
        (open.record.checksum, open.record.inside) = (ChecksumState::PartialInside, adjacency.prefix_length);
        if has_room {
            self.send(frame, egress, now);
        } else {
            self.drop_frame(frame, DropReason::MtuExceeded, now);
        }
    }

    /// Returns how long a frame's packet is on a wire, bytes: the longest of its segments, if it is to be cut.
    pub(super) fn wire_length(&self, frame: &Frame, parsed: &Parsed) -> u16 {
        let record = self.arena.record(frame);
        if record.segmentation == Segmentation::None {
            return parsed.length;
        }
        let bytes = self.arena.bytes(frame);
        let layout = match record.checksum {
            ChecksumState::PartialInside => {
                bytes.get(usize::from(record.inside)..).and_then(Layout::of_packet)
            }
            ChecksumState::Unknown | ChecksumState::Verified | ChecksumState::Partial => Layout::of(bytes),
        };
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
        let is_inside = open.record.checksum == ChecksumState::PartialInside;
        let outer = if is_inside { usize::from(open.record.inside) } else { 0 };
        let inside = open.bytes().get(outer..);
        let layout = if outer > 0 { inside.and_then(Layout::of_packet) } else { inside.and_then(Layout::of) };
        let (is_whole, size) =
            (open.record.segmentation == Segmentation::None, usize::from(open.record.segment_size));
        // A superframe makes a segment at least.
        let layout = layout.filter(|layout| is_whole || size > 0 && layout.payload < layout.end);
        let Some(layout) = layout else {
            return self.drop_frame(frame, DropReason::MalformedOffload, now);
        };
        if is_whole {
            open.record.checksum = ChecksumState::Verified;
            layout.finish(&mut open.bytes_mut()[outer..]);
            return on(self, frame);
        }
        let node = NodeId(open.record.node);
        for (number, start) in (layout.payload..layout.end).step_by(size).enumerate() {
            if number > 0 {
                self.count(node, Term::Split, 1);
            }
            let range = start..(start + size).min(layout.end);
            let Some(mut segment) = self.pool.allocate_like(&frame, outer + layout.payload + range.len())
            else {
                self.lack_buffer(node);
                continue;
            };
            let open = self.arena.open(&mut segment);
            open.record.checksum = ChecksumState::Verified;
            (open.record.segmentation, open.record.segment_size) = (Segmentation::None, 0);
            let (whole, bytes) = (self.arena.bytes(&frame), open.into_bytes());
            layout.write_segment(&mut bytes[outer..], &whole[outer..], &range, number as u16);
            if outer > 0 {
                bytes[..outer].copy_from_slice(&whole[..outer]);
                write_lengths(bytes);
            }
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
