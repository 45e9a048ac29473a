//! ARP in a VXLAN: a peer that was not told this node's MAC there asks for it.
//!
//! Called for the ARP that comes through the tunnel. flannel's peers, and ours, know each other's MACs by their leases and never
//! ask; an ordinary vxlan device does. Invariants: only who holds a lease is answered, and for flannel0's address alone; the answer
//! goes back the way its question came, and nothing is learned. Read first: RFC 826, RFC 7348, 4.2.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::super::{DropReason, Frame, Instant, NodeId, ORIGINATED, Parsed, PortId, Term, Worker};
use crate::tables::{Node, Role};
use crate::trace::{Action, Point};
use crate::tunnel::{self, Encapsulation, OUTER_LIMIT, Outer, Vxlan, vtep_mac};
use crate::wire::{ArpOperation, ArpPacket, EtherType, EthernetFrame, MacAddress, arp, ethernet};

/// A question for a node's MAC, and who asks.
#[derive(Debug, Clone, Copy)]
struct Question {
    /// Its MAC in the VXLAN, and its address there.
    asker: (MacAddress, Ipv4Addr),
    /// Its node's address, and the MAC through which that is reached.
    peer: (Ipv4Addr, MacAddress),
    /// The address it asks for.
    target: Ipv4Addr,
}

impl Worker {
    /// Takes in what says something by ARP in the VXLAN, and answers a question for flannel0's MAC.
    pub(super) fn take_tunneled_arp(
        &mut self,
        frame: Frame,
        parsed: &Parsed,
        (id, port): (NodeId, PortId),
        now: Instant,
    ) {
        let tables = Arc::clone(&self.tables);
        let (Some(node), Some(ingress)) = (tables.node(id), tables.ports.get(&port)) else {
            return self.drop_frame(frame, DropReason::LinkDown, now);
        };
        let [.., a, b, c, d, _, _] = parsed.guard;
        let from = Ipv4Addr::new(a, b, c, d);
        if !tables.leases.list().iter().any(|(_, lease)| lease.public_ip == from) {
            return self.drop_frame(frame, DropReason::TunnelForeignSource, now);
        }
        let bytes = self.arena.bytes(&frame);
        let carried = bytes.get(usize::from(parsed.network_offset)..).unwrap_or_default();
        let Ok(packet) = ArpPacket::new_checked(carried) else {
            return self.drop_frame(frame, DropReason::MalformedArp, now);
        };
        let question = Question {
            asker: (packet.sender_mac(), packet.sender_address()),
            peer: (from, EthernetFrame::new_unchecked(bytes).source()),
            target: packet.target_address(),
        };
        let is_question = packet.operation() == ArpOperation::Request && !packet.is_probe();
        let point = match ingress.role {
            Role::Interface(index) => Point::Interface(index),
            Role::Bridge(_) => Point::Bridge,
        };
        self.take_in(frame, id, point, now);
        if is_question && question.asker.0.is_unicast() {
            self.answer_in_overlay(question, (id, node), (port, point), now);
        }
    }

    fn answer_in_overlay(
        &mut self,
        Question { asker, peer, target }: Question,
        (id, node): (NodeId, &Node),
        (port, point): (PortId, Point),
        now: Instant,
    ) {
        let Some(end) = node.tunnel.filter(|end| end.address == target) else { return };
        let (Encapsulation::Vxlan { vni }, Some(eth0)) = (end.encapsulation, node.interfaces.first()) else {
            return;
        };
        self.count(id, Term::Originated, 1);
        let Some(mut frame) = self.pool.allocate(ethernet::HEADER_LENGTH + OUTER_LIMIT + arp::LENGTH) else {
            return self.lack_buffer(id);
        };
        let own = vtep_mac(end.address);
        let outer = Outer {
            source: end.local,
            destination: peer.0,
            port: end.port,
            dont_fragment: true,
            vxlan: Some(Vxlan { vni, destination: asker.0, source: own, spreads: !end.finds_peers }),
        };
        self.identification = self.identification.wrapping_add(1);
        let mut open = self.arena.open(&mut frame);
        (open.record.node, open.record.ingress) = (id.0, ORIGINATED);
        let mut header = EthernetFrame::new_unchecked(open.bytes_mut());
        header.set_destination(peer.1);
        header.set_source(eth0.mac);
        header.set_ethertype(EtherType::Ipv4);
        let packet = header.payload_mut();
        packet[..OUTER_LIMIT].copy_from_slice(&outer.template());
        let inside = &mut packet[OUTER_LIMIT - ethernet::HEADER_LENGTH..];
        let mut inside = EthernetFrame::new_unchecked(inside);
        inside.set_ethertype(EtherType::Arp);
        let mut reply = ArpPacket::new_unchecked(inside.payload_mut());
        reply.fill_types();
        reply.set_operation(ArpOperation::Reply);
        reply.set_sender(own, target);
        reply.set_target(asker.0, asker.1);
        tunnel::complete_vxlan(packet, self.identification);
        self.watch(&mut frame, point, Action::Transmit, now);
        self.send(frame, port, now);
    }
}
