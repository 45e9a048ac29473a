//! The three passes over a batch of frames: headers to keys, keys to decisions, decisions to other headers.
//!
//! The worker's loop calls them for the frames of one port. Invariants: as the worker's; a frame whose flow is known, and which
//! needs nothing that a slot does not say, never leaves this file. Read first: `docs/performance.md`,
//! `docs/adr/0014-look-up-and-rewrite-in-one-pass.md`.

use super::{
    BATCH_LIMIT, Bindings, ChecksumState, Class, Course, DropReason, Frame, Half, IngressPort, Instant,
    NodeId, Parsed, Stage, Stages, Worker, flags,
};
use crate::flow::{NO_BINDING, Slot};
use crate::parse::{Side, at_bridge, at_interface, at_vxlan, parse_into};
use crate::rewrite::replay;
use crate::wire::{IpProtocol, TcpSegment};

/// Frames whose first bytes are on their way while one is parsed: more would wait for each other.
const FRAMES_AHEAD: usize = 4;

impl Worker {
    /// The three passes over a batch of frames that came in by one port.
    pub(super) fn run_frames<const TIMED: bool>(
        &mut self,
        frames: &mut Vec<Frame>,
        node: NodeId,
        ingress: &IngressPort,
        course: Course,
        now: Instant,
    ) {
        let mut batch = std::mem::take(&mut self.batch.parsed);
        self.frames += frames.len() as u64;
        self.parse_pass(frames, &mut batch, (node, ingress, course));
        Stages::end::<TIMED>(&mut self.stages, Stage::Parse);
        let all = &batch[..frames.len()];
        let mut rest = frames.drain(..);
        for group in all.chunks(BATCH_LIMIT) {
            let misplaced = self.fetch_for(rest.as_slice(), group);
            self.fetch_elsewhere(misplaced, group, node);
            for (parsed, frame) in group.iter().zip(rest.by_ref()) {
                if let Some(frame) = self.cached::<TIMED>(frame, parsed, now) {
                    Stages::end::<TIMED>(&mut self.stages, Stage::LookUp);
                    self.decide_about(frame, parsed, now);
                    Stages::end::<TIMED>(&mut self.stages, Stage::Decide);
                }
            }
        }
        drop(rest);
        self.batch.parsed = batch;
    }

    /// The slow path's share of the second pass.
    #[inline(never)]
    fn decide_about(&mut self, frame: Frame, parsed: &Parsed, now: Instant) {
        match parsed.class {
            Class::Refused => self.drop_frame(frame, parsed.refused, now),
            Class::Flow | Class::Exception | Class::Arp | Class::PriorityTagged | Class::LayerTwo => {
                self.decide(frame, parsed, now)
            }
        }
    }

    /// Pass 1: headers to keys and hashes; the cache's slots are on their way when pass 2 asks. A loop for each side: what all
    /// frames of a port have in common is asked once.
    fn parse_pass(
        &mut self,
        frames: &mut [Frame],
        batch: &mut Vec<Parsed>,
        (node, ingress, course): (NodeId, &IngressPort, Course),
    ) {
        if batch.len() < frames.len() {
            batch.resize(BATCH_LIMIT.max(frames.len()), Parsed::default());
        }
        let (batch, port, at) = (&mut batch[..frames.len()], ingress.port, (node, ingress, course));
        let bytes = match ingress.side {
            Side::Bridge => {
                self.parse_each::<1>(frames, batch, at, |parsed, bytes, _| at_bridge(parsed, bytes, port))
            }
            // Out of the tunnel, the inner ports are beyond the first cache line.
            Side::Interface { mac, tunnel } => {
                self.parse_each::<2>(frames, batch, at, |parsed, bytes, verified| {
                    at_interface(parsed, bytes, port, (mac, tunnel), verified)
                })
            }
            Side::Vxlan { mac, tunnel, end } => {
                self.parse_each::<2>(frames, batch, at, |parsed, bytes, verified| {
                    at_vxlan(parsed, bytes, port, (mac, tunnel, end), verified)
                })
            }
            Side::Switch => self.parse_each::<1>(frames, batch, at, |_, _, _| false),
        };
        // What another worker took in was counted there.
        if course == Course::Direct
            && let Some(counters) = self.counters.get(usize::from(node.0))
        {
            counters.count_bytes(bytes);
        }
    }

    /// Parses frames of one port, first by the short way of its side; returns how many bytes they have. `LINES` are those that
    /// are read of each.
    #[inline(always)]
    fn parse_each<const LINES: usize>(
        &self,
        frames: &mut [Frame],
        batch: &mut [Parsed],
        (node, ingress, course): (NodeId, &IngressPort, Course),
        short: impl Fn(&mut Parsed, &[u8], bool) -> bool,
    ) -> u64 {
        let mut all_bytes = 0;
        frames.iter().take(FRAMES_AHEAD).for_each(|frame| self.arena.prefetch(frame, LINES));
        for (index, parsed) in batch.iter_mut().enumerate() {
            if let Some(frame) = frames.get(index + FRAMES_AHEAD) {
                self.arena.prefetch(frame, LINES);
            }
            let Some(frame) = frames.get_mut(index) else { break };
            let open = self.arena.open(frame);
            all_bytes += open.bytes().len() as u64;
            let verified = open.record.checksum != ChecksumState::Unknown;
            match parse_into(parsed, open.bytes(), ingress, verified, &short) {
                Ok(()) => {
                    parsed.hash = self.cache.hash(parsed.key);
                    open.record.network_offset = parsed.network_offset;
                }
                Err(reason) => (parsed.class, parsed.refused) = (Class::Refused, reason),
            }
            open.record.node = node.0;
            open.record.ingress = ingress.port;
            open.record.course = course;
        }
        all_bytes
    }

    /// Passes 2 and 3: look the flow up and replay its decision; gives the frame back when it must be decided.
    #[inline(always)]
    pub(super) fn cached<const TIMED: bool>(
        &mut self,
        mut frame: Frame,
        parsed: &Parsed,
        now: Instant,
    ) -> Option<Frame> {
        let mut open = self.arena.open(&mut frame);
        let is_flow = matches!(parsed.class, Class::Flow | Class::LayerTwo);
        if open.record.mark != 0 || !is_flow {
            return Some(frame);
        }
        let Some(slot) = self.cache.lookup(parsed.hash, parsed.key, &parsed.guard, &self.tables.epochs)
        else {
            return Some(frame);
        };
        if slot.flags & flags::HAND_OVER != 0 {
            // A frame is handed on again only to who is known to hold its binding.
            let known = slot.binding != NO_BINDING;
            if known && !self.bindings.is_live(slot.binding, slot.generation)
                || !known && open.record.course == Course::Steered
            {
                return Some(frame);
            }
            let worker = slot.adjacency as u8;
            self.hand_over(frame, worker, now);
            return None;
        }
        if open.record.checksum.is_unfinished() {
            let slot = *slot;
            return self.cached_unfinished(frame, parsed, slot, now);
        }
        let adjacency = &self.adjacencies.list[slot.adjacency as usize];
        if parsed.length > adjacency.mtu {
            return Some(frame);
        }
        if slot.binding != NO_BINDING {
            if !renew(&mut self.bindings, slot, now) {
                return Some(frame);
            }
            if slot.key.protocol() == u8::from(IpProtocol::Tcp) {
                hear(&mut self.bindings, slot, parsed, open.bytes());
            }
        }
        Stages::end::<TIMED>(&mut self.stages, Stage::LookUp);
        let egress = adjacency.egress;
        if replay(&mut open, parsed, slot, adjacency, &mut self.identification) {
            Stages::end::<TIMED>(&mut self.stages, Stage::Rewrite);
            self.send(frame, egress, now);
            Stages::end::<TIMED>(&mut self.stages, Stage::Send);
        } else {
            self.drop_frame(frame, DropReason::MtuExceeded, now);
        }
        None
    }
}

/// Renews the binding of a packet that the cache answers; false when it must be decided anew. A call of its own, so that
/// flows without a binding pay for nothing.
#[inline(never)]
pub(super) fn renew(bindings: &mut Bindings, slot: &Slot, now: Instant) -> bool {
    let is_tcp = slot.key.protocol() == u8::from(IpProtocol::Tcp);
    bindings.renew(slot.binding, slot.generation, half_of(slot), is_tcp, now)
}

/// Has the binding, which was renewed, hear what the segment says.
#[inline(never)]
pub(super) fn hear(bindings: &mut Bindings, slot: &Slot, parsed: &Parsed, frame: &[u8]) {
    let segment = TcpSegment::new_unchecked(&frame[usize::from(parsed.transport_offset)..]);
    // By the packet's own length: the frame's may be padded.
    let headers = parsed.transport_offset - parsed.network_offset + segment.header_length() as u16;
    let end = segment.sequence().wrapping_add(u32::from(parsed.length.wrapping_sub(headers)));
    bindings.hear(slot.binding, half_of(slot), end, segment.acknowledgement(), segment.window());
}

#[inline(always)]
fn half_of(slot: &Slot) -> Half {
    if slot.flags & flags::REPLY != 0 { Half::Reply } else { Half::Original }
}
