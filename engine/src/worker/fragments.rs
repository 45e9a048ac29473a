//! What a worker does with fragments: those that come, those that are for the node itself, and those that it makes.
//!
//! Called by the slow path, which all fragments take. Invariants: a node that translates decides about a fragment only when
//! the ports of its datagram are known; what a node takes itself it takes whole; a packet is cut after it was translated and before it gets outer headers, as
//! Linux does at the device it leaves by. Read first: `fragment.rs`.

use std::ops::Range;

use super::{ChecksumState, Course, DropReason, Frame, Instant, NodeId, Parsed, PortId, Term, Worker};
use crate::decide::Refusal;
use crate::flow::Tuple;
use crate::fragment::{Datagram, Outcome, pieces, write_piece, write_whole};
use crate::rewrite::{Step, Transform};
use crate::trace::Action;
use crate::wire::{IpProtocol, Ipv4Packet};

impl Worker {
    /// Decides about a fragment when it is known whose it is; one whose first is still to come waits.
    pub(super) fn decide_fragment(&mut self, frame: Frame, parsed: &Parsed, now: Instant) {
        let record = self.arena.record(&frame);
        let (node, port) = (NodeId(record.node), PortId(record.ingress));
        let translates =
            self.tables.node(node).is_some_and(|node| node.services || node.masquerade.is_some());
        if !translates {
            return self.decide_known(frame, parsed, now);
        }
        let arena = std::sync::Arc::clone(&self.arena);
        let packet = Ipv4Packet::new_unchecked(&arena.bytes(&frame)[usize::from(parsed.network_offset)..]);
        let (datagram, is_first) = (Datagram::of(node, port, &packet), packet.fragment_offset() == 0);
        let found = parsed.tuple();
        let ports = (found.source_port, found.destination_port);
        // Where its source is translated, others may have its identification at the new one (RFC 6864, 5.3.1).
        let fresh = if self.fragments.follows(&datagram) { 0 } else { self.next_identification() };
        match self.fragments.take(datagram, &packet, ports, fresh, now) {
            Outcome::Pass(ports, identification) => {
                let frame = self.with_ports(frame, ports, identification);
                self.decide_known(frame, &parsed.with_ports(ports), now);
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

    /// Keeps beside a fragment what is known of its datagram: it may have to wait once more, for a neighbour.
    fn with_ports(&self, mut frame: Frame, ports: (u16, u16), identification: u16) -> Frame {
        let open = self.arena.open(&mut frame);
        (open.record.fragment_ports, open.record.identification) = (ports.into(), identification);
        frame
    }

    /// Gives a packet that is in fragments, or will be, an identification of the node's own, because its source was
    /// translated: the pods behind one address do not know of each other's (RFC 6864, 5.3.1).
    pub(super) fn identify(&mut self, frame: &mut Frame, rest: &[Step]) {
        let is_cut = rest.iter().any(|step| matches!(step, Step::Fragment(_)));
        let known = self.arena.record(frame).identification;
        let identification = match known {
            0 if is_cut => self.next_identification(),
            0 => return,
            known => known,
        };
        let mut open = self.arena.open(frame);
        let network = usize::from(open.record.network_offset);
        let mut header = Ipv4Packet::new_unchecked(&mut open.bytes_mut()[network..]);
        header.set_identification(identification);
        header.fill_header_checksum();
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
            if reason == DropReason::FragmentTimeout {
                // RFC 1122, 3.3.2: of a datagram whose first fragment is there.
                let network = usize::from(self.arena.record(&frame).network_offset);
                self.tell_sender(&frame, network, Refusal::from(reason), now);
            }
            self.drop_frame(frame, reason, now);
        }
    }

    /// Collects the fragments of what is for the node itself, and takes it when it is whole (RFC 1122, 3.3.2).
    pub(super) fn collect(&mut self, mut frame: Frame, parsed: &Parsed, now: Instant) {
        let arena = std::sync::Arc::clone(&self.arena);
        let network = usize::from(parsed.network_offset);
        let record = arena.record(&frame);
        let (node, port) = (NodeId(record.node), PortId(record.ingress));
        let point = self.ingress_point(port);
        self.watch(&mut frame, point, Action::Receive, now);
        let packet = Ipv4Packet::new_unchecked(&arena.bytes(&frame)[network..]);
        let datagram = Datagram::of(node, port, &packet).collected();
        match self.fragments.collect(&datagram, &packet, now) {
            Ok(is_whole) => {
                self.hold(node);
                self.fragments.wait(&datagram, frame);
                if is_whole {
                    let pieces = self.fragments.whole(&datagram);
                    pieces.iter().for_each(|_| self.release(node));
                    self.take_whole(pieces, parsed, now);
                }
            }
            Err(reason) => self.drop_frame(frame, reason, now),
        }
        self.drop_fragments(now);
    }

    /// Puts a datagram together, and takes it: flannel's as if it came whole, others as the node's own.
    fn take_whole(&mut self, pieces: Vec<(Range<usize>, Frame)>, parsed: &Parsed, now: Instant) {
        let Some(whole) = self.put_together(&pieces, usize::from(parsed.network_offset)) else {
            return pieces
                .into_iter()
                .for_each(|(_, frame)| self.drop_frame(frame, DropReason::PoolEmpty, now));
        };
        let node = NodeId(self.arena.record(&whole).node);
        // The whole stands for the first in the ledger.
        self.count(node, Term::Merged, pieces.len() as u64 - 1);
        pieces.into_iter().for_each(|(_, frame)| self.pool.free(frame));
        let tuple = parsed.tuple();
        let tunnel = self.tables.node(node).and_then(|node| node.tunnel).filter(|_| !parsed.tunneled);
        let is_tunnel = tunnel.is_some_and(|tunnel| {
            let to = (tunnel.local.to_bits(), tunnel.port, u8::from(IpProtocol::Udp));
            to == (tuple.destination, tuple.destination_port, tuple.protocol)
        });
        if is_tunnel {
            let Some(ingress) = self.ingress_of(PortId(self.arena.record(&whole).ingress)) else {
                return self.drop_frame(whole, DropReason::LinkDown, now);
            };
            return self.run_frames::<false>(&mut vec![whole], node, &ingress, Course::Merged, now);
        }
        self.consume(whole, &Parsed { fragment: false, ..*parsed }, now);
    }

    /// Makes one frame of all fragments, in front of which is what is in front of the first; `None` without a buffer.
    fn put_together(&mut self, pieces: &[(Range<usize>, Frame)], front: usize) -> Option<Frame> {
        let (_, first) = pieces.first()?;
        let end = pieces.last()?.0.end;
        let arena = std::sync::Arc::clone(&self.arena);
        let bytes = arena.bytes(first);
        let header = Ipv4Packet::new_unchecked(&bytes[front..]).header_length();
        let mut whole = self.pool.allocate_like(first, front + header + end)?;
        let mut open = arena.open(&mut whole);
        (open.record.merged, open.record.checksum) = (true, ChecksumState::Unknown);
        let (link, packet) = open.bytes_mut().split_at_mut(front);
        link.copy_from_slice(&bytes[..front]);
        let payloads = pieces.iter().map(|(range, frame)| {
            let packet = &arena.bytes(frame)[front..];
            let header = Ipv4Packet::new_unchecked(packet).header_length();
            &packet[header..header + range.len()]
        });
        write_whole(packet, &bytes[front..], payloads);
        Some(whole)
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
