//! What a node says itself: ICMP errors, resets, echo replies.
//!
//! Called when a packet is refused or is for the node. Invariants: what a node makes takes the address of the
//! interface it leaves by, unless it answers for the address that was asked; errors are limited in rate (RFC
//! 1812, 4.3.2.8). Read first: `icmp.rs`.

use std::net::Ipv4Addr;

use super::budget::Rate;
use super::{ChecksumState, DropReason, Frame, Instant, NodeId, ORIGINATED, Parsed, PortId, Term, Worker};
use crate::binding::Served;
use crate::decide::{Refusal, Relayed, inner_mtu, is_local, originate, route, sender};
use crate::flow::Tuple;
use crate::icmp::{self, LINK_LENGTH, RESET_LENGTH, is_error};
use crate::link::pod_ring::take_mark;
use crate::neighbor::Neighbor;
use crate::trace::{Action, Point};
use crate::wire::{IcmpPacket, IcmpType, IpProtocol, Ipv4Packet, TcpSegment, UdpDatagram};

/// Verifies the checksum of a whole packet's payload, where its protocol has one.
fn is_intact(packet: &Ipv4Packet<&[u8]>) -> bool {
    let (source, destination, payload) = (packet.source(), packet.destination(), packet.payload());
    match packet.protocol() {
        IpProtocol::Tcp => {
            TcpSegment::new_checked(payload).is_ok_and(|it| it.verify_checksum(source, destination))
        }
        IpProtocol::Udp => {
            UdpDatagram::new_checked(payload).is_ok_and(|it| it.verify_checksum(source, destination))
        }
        IpProtocol::Icmp => IcmpPacket::new_checked(payload).is_ok_and(|it| it.verify_checksum()),
        IpProtocol::Unknown(_) => true,
    }
}

/// Errors a worker may send, as Linux has it (`icmp_msgs_per_sec`, `icmp_msgs_burst`).
pub(super) const ERRORS: Rate = Rate { per_second: 1000, burst: 50 };

impl Worker {
    /// Takes a packet for the node itself: answers an echo request, refuses the rest.
    pub(super) fn consume(&mut self, mut frame: Frame, parsed: &Parsed, now: Instant) {
        let network = usize::from(parsed.network_offset);
        let node = NodeId(self.arena.record(&frame).node);
        let tables = std::sync::Arc::clone(&self.tables);
        let destination = Ipv4Addr::from_bits(parsed.tuple().destination);
        let addressed = tables.node(node).is_some_and(|node| is_local(node, destination));
        let protocol = IpProtocol::from(parsed.tuple().protocol);
        if !addressed {
            // A broadcast: nobody is told that it was not taken (RFC 1122, 3.2.2).
            return self.drop_frame(frame, DropReason::HostUnsupported, now);
        }
        if parsed.fragment {
            return self.collect(frame, parsed, now);
        }
        let record = self.arena.record(&frame);
        let packet = Ipv4Packet::new_unchecked(&self.arena.bytes(&frame)[network..]);
        if record.checksum == ChecksumState::Unknown && !is_intact(&packet) {
            // Before anybody is told anything: even the ports may be damaged.
            return self.drop_frame(frame, DropReason::TransportChecksum, now);
        }
        let refused = match protocol {
            IpProtocol::Tcp | IpProtocol::Udp => Some(DropReason::HostClosed),
            IpProtocol::Icmp => None,
            IpProtocol::Unknown(_) => Some(DropReason::HostUnsupported),
        };
        if let Some(reason) = refused {
            return self.refuse(frame, parsed, Refusal::from(reason), now);
        }
        let point = self.ingress_point(crate::tables::PortId(self.arena.record(&frame).ingress));
        self.watch(&mut frame, point, Action::Receive, now);
        self.watch(&mut frame, point, Action::Consume, now);
        let arena = std::sync::Arc::clone(&self.arena);
        let packet = Ipv4Packet::new_unchecked(&arena.bytes(&frame)[network..]);
        let echo = IcmpPacket::new_checked(packet.payload())
            .is_ok_and(|icmp| icmp.icmp_type() == IcmpType::EchoRequest);
        if echo {
            let request = &arena.bytes(&frame)[network..network + usize::from(packet.total_length())];
            let (to, asked) = (packet.source(), arena.record(&frame).mark);
            let mark = if self.observer.is_tracing() { self.answer_mark(asked) } else { asked };
            let length = icmp::echo_reply_length(request);
            self.originate(node, (to, None), length, mark, now, |reply, _, identification| {
                icmp::write_echo_reply(reply, request, identification);
            });
        }
        self.count(node, Term::Consumed, 1);
        self.pool.free(frame);
    }

    /// Tells a packet's sender that it was refused, where that is done.
    pub(super) fn tell_sender(&mut self, frame: &Frame, network: usize, refusal: Refusal, now: Instant) {
        let arena = std::sync::Arc::clone(&self.arena);
        let bytes = arena.bytes(frame);
        if !icmp::may_answer(bytes, network) {
            return;
        }
        let quoted = &bytes[network..];
        let header = Ipv4Packet::new_unchecked(quoted);
        let (to, asked) = (header.source(), header.destination());
        match icmp::notice(refusal.reason, header.protocol().into(), refusal.mtu) {
            Some(icmp::Notice::Error { kind, code, mtu }) => {
                // A Service's own refusal comes from the address that was asked, as from a host.
                let from_asked = matches!(
                    refusal.reason,
                    DropReason::NoBackend
                        | DropReason::ServicePortClosed
                        | DropReason::ServiceNoConnection
                        | DropReason::HostClosed
                );
                self.send_error(frame, network, from_asked.then_some(asked), (kind, code, mtu), now);
            }
            Some(icmp::Notice::Reset) => {
                let mut made = [0; RESET_LENGTH];
                let identification = self.next_identification();
                if icmp::write_reset(&mut made, quoted, identification).is_some() {
                    let node = NodeId(arena.record(frame).node);
                    let mark = self.answer_mark(arena.record(frame).mark);
                    let direct = self.sender(frame, network, now);
                    self.originate(node, (to, direct), RESET_LENGTH, mark, now, |packet, _, _| {
                        packet.copy_from_slice(&made)
                    });
                }
            }
            None => {}
        }
    }

    /// Sends an ICMP error about the packet at `network` of a frame, from an address or else that of the interface it leaves
    /// by.
    fn send_error(
        &mut self,
        frame: &Frame,
        network: usize,
        from: Option<Ipv4Addr>,
        (kind, code, mtu): (IcmpType, u8, u16),
        now: Instant,
    ) {
        if !self.errors.take(now) {
            return;
        }
        let arena = std::sync::Arc::clone(&self.arena);
        let record = arena.record(frame);
        let quoted = &arena.bytes(frame)[network..];
        let (node, to) = (NodeId(record.node), Ipv4Packet::new_unchecked(quoted).source());
        let mark = self.answer_mark(record.mark);
        let (direct, length) = (self.sender(frame, network, now), icmp::error_length(quoted));
        // From an address of its own the host would believe nothing: then for the node speaks whom it asked.
        let is_own = self.tables.node(node).is_some_and(|node| is_local(node, to));
        let from = from.or(is_own.then(|| Ipv4Packet::new_unchecked(quoted).destination()));
        self.originate(node, (to, direct), length, mark, now, |packet, source, identification| {
            icmp::write_error(packet, from.unwrap_or(source), quoted, (kind, code, mtu), identification);
        });
    }

    /// Finds who sent the packet at `network` of a frame, where its source is not the way there.
    fn sender(&mut self, frame: &Frame, network: usize, now: Instant) -> Option<Served> {
        let record = self.arena.record(frame);
        let (node, ingress) = (NodeId(record.node), PortId(record.ingress));
        sender(&mut world!(self, now), node, Some(ingress), &self.arena.bytes(frame)[network..])
    }

    /// Tells a client what somebody said of its packet to a backend, on whose way it was inside another one (LVS,
    /// `ip_vs_in_icmp`): what is too long only where it may not be cut.
    pub(super) fn relay(&mut self, frame: &Frame, relayed: &Relayed, now: Instant) {
        let node = NodeId(self.arena.record(frame).node);
        let Relayed { backend, inner, kind, code, mtu } = *relayed;
        let mut told = 0;
        if relayed.is_too_long() {
            self.learn_path_mtu(node, backend, mtu, now);
            told = inner_mtu(&world!(self, now), node, backend, u16::MAX);
        }
        let bytes = self.arena.bytes(frame);
        let may_be_cut = !Ipv4Packet::new_unchecked(&bytes[inner..]).dont_fragment();
        let is_needless = relayed.is_too_long() && may_be_cut;
        if !is_needless && icmp::may_answer(bytes, inner) {
            self.send_error(frame, inner, None, (kind, code, told), now);
        }
    }

    /// Takes the mark of what answers a frame of this mark: none, unless answers are traced.
    fn answer_mark(&mut self, asked: u32) -> u32 {
        let traced = asked != 0 && self.observer.is_tracing();
        if traced { take_mark(&mut self.next_mark) } else { 0 }
    }

    /// Makes a packet at a node and sends it on its way, by the route to an address or to a backend: `write` gets room for
    /// `length` bytes, the address of the interface it leaves by, and an identification.
    fn originate(
        &mut self,
        node: NodeId,
        (to, direct): (Ipv4Addr, Option<Served>),
        length: usize,
        mark: u32,
        now: Instant,
        write: impl FnOnce(&mut [u8], Ipv4Addr, u16),
    ) {
        let tables = std::sync::Arc::clone(&self.tables);
        let Some(at) = tables.node(node) else { return };
        let next = direct.map_or(to, |served| served.address);
        let Ok(hop) = route(&tables, at, next) else { return };
        let Some(source) = hop.address(at) else { return };
        self.count(node, Term::Originated, 1);
        let Some(mut frame) = self.pool.allocate(LINK_LENGTH + length) else {
            return self.lack_buffer(node);
        };
        let identification = self.next_identification();
        let mut open = self.arena.open(&mut frame);
        open.record.node = node.0;
        open.record.ingress = ORIGINATED;
        open.record.network_offset = LINK_LENGTH as u16;
        open.record.checksum = ChecksumState::Verified;
        open.record.mark = mark;
        write(&mut open.bytes_mut()[LINK_LENGTH..], source, identification);
        self.send_originated(frame, direct, now);
    }

    /// What a node makes may be cut on its way: no other worker may give the same identification from the same address
    /// (RFC 6864, 4.3). Outer headers forbid cutting; theirs may be any (4.1), and on a locked
    /// path, which is slow, differ as long as a counter of 16 bits can. Never 0.
    pub(super) fn next_identification(&mut self) -> u16 {
        let next = self.originated_identification.checked_add(u16::from(self.workers));
        self.originated_identification = next.unwrap_or(u16::from(self.id) + u16::from(self.workers));
        self.originated_identification
    }

    /// Sends a packet that the node made by its route, or to a backend.
    fn send_originated(&mut self, frame: Frame, direct: Option<Served>, now: Instant) {
        let record = self.arena.record(&frame);
        let (node, network) = (NodeId(record.node), usize::from(record.network_offset));
        let packet = Ipv4Packet::new_unchecked(&self.arena.bytes(&frame)[network..]);
        match originate(&world!(self, now), node, &packet, direct) {
            Ok(Ok(transform)) => self.forward(frame, Tuple::default(), &transform, now),
            Ok(Err(neighbor)) => self.wait(frame, neighbor, now),
            Err(reason) => self.drop_frame(frame, reason, now),
        }
    }

    /// Sends a packet that the node made and that waited for a neighbour. An error tells by what it quotes whom it is for.
    pub(super) fn send_originated_again(&mut self, frame: Frame, now: Instant) {
        let record = self.arena.record(&frame);
        let (node, network) = (NodeId(record.node), usize::from(record.network_offset));
        let packet = &self.arena.bytes(&frame)[network..];
        let quoted = icmp::quote(packet).filter(|_| is_error(packet));
        let direct = quoted.and_then(|quoted| sender(&mut world!(self, now), node, None, quoted));
        self.send_originated(frame, direct, now);
    }

    /// A frame's next hop stayed silent: its sender is told, if it is not the node itself.
    pub(super) fn give_up(&mut self, frame: Frame, neighbor: Neighbor, now: Instant) {
        let point = Point::from(neighbor.attachment);
        let record = *self.arena.record(&frame);
        if record.ingress != ORIGINATED {
            let network = usize::from(record.network_offset);
            self.tell_sender(&frame, network, Refusal::from(DropReason::NeighborUnresolved), now);
        }
        self.show_arrival(&frame, now);
        self.drop_at(frame, point, DropReason::NeighborUnresolved, now);
    }
}
