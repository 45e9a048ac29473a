//! What a worker does with fragments: those that come, and those that it makes.
//!
//! Called by the slow path, which all fragments take. Invariants: a node that translates decides about a fragment only when
//! the ports of its datagram are known; a packet is cut after it was translated and before it gets outer headers, as
//! Linux does at the device it leaves by. Read first: `fragment.rs`.

use super::{DropReason, Frame, Instant, NodeId, Parsed, Term, Worker};
use crate::flow::Tuple;
use crate::fragment::{Datagram, Outcome, pieces, write_piece};
use crate::rewrite::{Step, Transform};
use crate::wire::Ipv4Packet;

impl Worker {
    /// Decides about a fragment when it is known whose it is; one whose first is still to come waits.
    pub(super) fn decide_fragment(&mut self, frame: Frame, parsed: &Parsed, now: Instant) {
        let node = NodeId(self.arena.record(&frame).node);
        let translates =
            self.tables.node(node).is_some_and(|node| node.services || node.masquerade.is_some());
        if !translates {
            return self.decide_known(frame, parsed, now);
        }
        let arena = std::sync::Arc::clone(&self.arena);
        let packet = Ipv4Packet::new_unchecked(&arena.bytes(&frame)[usize::from(parsed.network_offset)..]);
        let (datagram, is_first) = (Datagram::of(node, &packet), packet.fragment_offset() == 0);
        let found = parsed.tuple();
        let ports = (found.source_port, found.destination_port);
        match self.fragments.take(datagram, &packet, ports, now) {
            Outcome::Pass(ports) => {
                self.decide_known(self.with_ports(frame, ports), &parsed.with_ports(ports), now);
                if is_first {
                    for frame in self.fragments.release(&datagram) {
                        self.release(node);
                        self.take_again(frame, now);
                    }
                }
            }
            Outcome::Wait => {
                self.hold(node);
                self.fragments.wait(&datagram, frame);
            }
            Outcome::Refuse(reason) => self.drop_frame(frame, reason, now),
        }
        self.drop_fragments(now);
    }

    /// Keeps beside a fragment what its datagram's ports are: it may have to wait once more, for a neighbour.
    fn with_ports(&self, mut frame: Frame, (source, destination): (u16, u16)) -> Frame {
        self.arena.open(&mut frame).record.fragment_ports = [source, destination];
        frame
    }

    /// Ends what fragments have waited for too long.
    pub(super) fn expire_fragments(&mut self, now: Instant) {
        if self.fragments.next_expiry().is_some_and(|next| next <= now) {
            self.fragments.expire(now);
            self.drop_fragments(now);
        }
    }

    fn drop_fragments(&mut self, now: Instant) {
        while let Some((frame, reason)) = self.fragments.dropped.pop() {
            self.release(NodeId(self.arena.record(&frame).node));
            self.drop_frame(frame, reason, now);
        }
    }

    /// Cuts a packet into fragments that fit `mtu`, and sends each on by the rest of its decision.
    pub(super) fn send_in_fragments(
        &mut self,
        frame: Frame,
        mtu: u16,
        (tuple, transform, rest): (Tuple, &Transform, &[Step]),
        now: Instant,
    ) {
        let arena = std::sync::Arc::clone(&self.arena);
        let record = *arena.record(&frame);
        let node = NodeId(record.node);
        let bytes = arena.bytes(&frame);
        let front = usize::from(record.network_offset);
        let packet = Ipv4Packet::new_unchecked(&bytes[front..]);
        let whole = &bytes[front..front + usize::from(packet.total_length())];
        let header = packet.header_length();
        let Some(ranges) = pieces(&packet, usize::from(mtu)) else {
            return self.drop_frame(frame, DropReason::MtuExceeded, now);
        };
        for range in ranges {
            if range.start > 0 {
                self.count(node, Term::Split, 1);
            }
            let Some(mut piece) = self.pool.allocate_like(&frame, front + header + range.len()) else {
                self.lack_buffer(node);
                continue;
            };
            let mut open = arena.open(&mut piece);
            open.bytes_mut()[..front].copy_from_slice(&bytes[..front]);
            write_piece(&mut open.bytes_mut()[front..], whole, &range);
            self.forward_by(piece, tuple, transform, rest, now);
        }
        // The first stands for the whole in the ledger.
        self.pool.free(frame);
    }
}
