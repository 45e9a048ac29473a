//! ARP at a node: answering, learning, asking.
//!
//! Called for every ARP frame, and when a neighbour is needed. Invariants: a guarded pod claims its own address
//! only; known pods are answered for, but never a probe or announcement; a MAC is learned only for a
//! neighbour that somebody asked for or that asked us. Read first: RFC 826, RFC 5227.

mod overlay;

use super::slow::learn_station;
use super::{DropReason, Frame, Instant, NodeId, ORIGINATED, Parsed, PortId, Term, Worker};
use crate::decide::is_local;
use crate::mailbox::Notice;
use crate::neighbor::{Attachment, Neighbor};
use crate::tables::{Node, Role};
use crate::trace::{Action, Point};
use crate::wire::{ArpOperation, ArpPacket, EtherType, EthernetFrame, MacAddress, arp, ethernet};
use std::net::Ipv4Addr;

/// What an ARP packet says.
#[derive(Debug, Clone, Copy)]
struct Said {
    request: bool,
    sender_mac: MacAddress,
    sender: Ipv4Addr,
    target: Ipv4Addr,
    /// A probe or an announcement: nobody else may answer.
    about_itself: bool,
}

/// What an ARP packet of the node's says.
#[derive(Debug, Clone, Copy)]
enum Saying {
    /// Who has this address? Asked for the waiting frame of this mark; 0 when nobody follows one.
    Request(Ipv4Addr, u32),
    /// It is here: to whom that is told.
    Reply(MacAddress, Ipv4Addr),
}

impl Worker {
    /// Answers, learns from, forwards or drops an ARP frame.
    pub(super) fn take_arp(
        &mut self,
        frame: Frame,
        parsed: &Parsed,
        (node_id, port): (NodeId, PortId),
        now: Instant,
    ) {
        if parsed.tunneled {
            return self.take_tunneled_arp(frame, parsed, (node_id, port), now);
        }
        let tables = std::sync::Arc::clone(&self.tables);
        let (Some(node), Some(ingress)) = (tables.node(node_id), tables.ports.get(&port)) else {
            return self.drop_frame(frame, DropReason::LinkDown, now);
        };
        let said = match read(self.arena.bytes(&frame), ingress.role) {
            Ok(said) => said,
            Err(reason) => return self.drop_frame(frame, reason, now),
        };
        match ingress.role {
            Role::Bridge(_) => self.bridge_arp(frame, (node_id, node), port, said, now),
            Role::Interface(index) => self.interface_arp(frame, (node_id, node), (index, port), said, now),
        }
    }

    fn interface_arp(
        &mut self,
        frame: Frame,
        (id, node): (NodeId, &Node),
        (index, port): (u8, PortId),
        said: Said,
        now: Instant,
    ) {
        let Some(interface) = node.interfaces.get(usize::from(index)) else {
            return self.drop_frame(frame, DropReason::LinkDown, now);
        };
        let neighbor = Neighbor { node: id, attachment: Attachment::Interface(index), address: said.sender };
        let for_us = said.target == interface.address;
        if !said.sender.is_unspecified() && (for_us || self.neighbors.concerns(&neighbor)) {
            self.learn_neighbor(neighbor, said.sender_mac, now);
            self.tell(Notice::Neighbor(neighbor, said.sender_mac));
        }
        self.take_in(frame, id, Point::Interface(index), now);
        if said.request && for_us {
            let reply = Saying::Reply(said.sender_mac, said.sender);
            self.send_arp(id, port, reply, (interface.mac, interface.address), now);
        }
    }

    fn bridge_arp(
        &mut self,
        mut frame: Frame,
        (id, node): (NodeId, &Node),
        port: PortId,
        said: Said,
        now: Instant,
    ) {
        self.learn_from(&frame, id, port, now);
        let router = node.bridge.as_ref().and_then(|bridge| bridge.router);
        let pod = self.tables.endpoints.get(&said.sender).filter(|pod| pod.node == id);
        let stolen = pod.is_some_and(|pod| pod.port != port) || is_local(node, said.sender);
        if router.is_some() && stolen {
            return self.drop_frame(frame, DropReason::SpoofedArp, now);
        }
        if let Some(router) = router {
            let neighbor = Neighbor { node: id, attachment: Attachment::Bridge, address: said.sender };
            if said.target == router.address && !said.sender.is_unspecified() {
                self.learn_neighbor(neighbor, said.sender_mac, now);
                self.tell(Notice::Neighbor(neighbor, said.sender_mac));
            }
            let known = self.tables.endpoints.get(&said.target).filter(|endpoint| endpoint.node == id);
            let owner = if is_local(node, said.target) {
                Some(router.mac)
            } else {
                known.map(|endpoint| endpoint.mac)
            };
            if said.request
                && !said.about_itself
                && let Some(owner) = owner
            {
                self.take_in(frame, id, Point::Bridge, now);
                let reply = Saying::Reply(said.sender_mac, said.sender);
                return self.send_arp(id, port, reply, (owner, said.target), now);
            }
            if EthernetFrame::new_unchecked(self.arena.bytes(&frame)).destination() == router.mac {
                return self.take_in(frame, id, Point::Bridge, now);
            }
        }
        let destination = EthernetFrame::new_unchecked(self.arena.bytes(&frame)).destination();
        match self.fdb.lookup(&self.tables, id, destination, now) {
            Some(egress) if egress != port && destination.is_unicast() => {
                self.watch(&mut frame, Point::Bridge, Action::Bridge, now);
                self.send(frame, egress, now);
            }
            Some(_) | None => self.flood(frame, id, port, now),
        }
    }

    fn learn_from(&mut self, frame: &Frame, node: NodeId, port: PortId, now: Instant) {
        let Some(role) = self.tables.ports.get(&port).map(|port| port.role) else { return };
        let bytes = self.arena.bytes(frame);
        if let Some(station) =
            learn_station(&mut world!(self, now), &mut self.cache, bytes, (node, port, role))
        {
            self.tell(station);
        }
    }

    pub(super) fn take_in(&mut self, mut frame: Frame, node: NodeId, point: Point, now: Instant) {
        self.watch(&mut frame, point, Action::Receive, now);
        self.count(node, Term::Consumed, 1);
        self.pool.free(frame);
    }

    /// Learns a neighbour's MAC; the frames that waited for it go on.
    pub(super) fn learn_neighbor(&mut self, neighbor: Neighbor, mac: MacAddress, now: Instant) {
        let (waiting, changed) = self.neighbors.learn(neighbor, mac, now);
        if changed {
            self.cache.clear();
        }
        for frame in waiting {
            self.resume(frame, now);
        }
    }

    /// Asks for a neighbour's MAC; who follows the latest frame that waits for it follows the request, too.
    pub(super) fn ask(&mut self, neighbor: Neighbor, now: Instant) {
        let tables = std::sync::Arc::clone(&self.tables);
        let Some(node) = tables.node(neighbor.node) else { return };
        let marks = self.neighbors.waiting(&neighbor).map(|frame| self.arena.record(frame).mark);
        let mark = marks.filter(|&mark| mark != 0).last().unwrap_or(0);
        let request = Saying::Request(neighbor.address, mark);
        match neighbor.attachment {
            Attachment::Interface(index) => {
                if let Some(it) = node.interfaces.get(usize::from(index)) {
                    self.send_arp(neighbor.node, it.port, request, (it.mac, it.address), now);
                }
            }
            Attachment::Bridge => {
                let Some(bridge) = &node.bridge else { return };
                let Some(router) = bridge.router else { return };
                for &port in &bridge.ports {
                    self.send_arp(neighbor.node, port, request, (router.mac, router.address), now);
                }
            }
        }
    }

    /// Lets neighbours at a real network's port be asked again and again.
    pub(super) fn keep_asking_at(&mut self, port: PortId, id: NodeId) {
        let role = self.tables.ports.get(&port).map(|port| port.role);
        if let (Some(Role::Interface(index)), Some(node)) = (role, self.tables.node(id))
            && node.uplink == Some(index)
        {
            self.neighbors.keep_asking(id, Attachment::Interface(index), self.now);
        }
    }

    /// Asks again for neighbours that are late, and gives up on those that stay silent.
    pub(super) fn ask_neighbors_again(&mut self, now: Instant) {
        let (again, failed) = self.neighbors.poll(now);
        for neighbor in again {
            self.ask(neighbor, now);
        }
        if let Some((again, forgotten)) = self.neighbors.renew(now) {
            again.into_iter().for_each(|neighbor| self.ask(neighbor, now));
            if forgotten > 0 {
                self.cache.clear();
            }
        }
        for (neighbor, frame) in failed {
            self.release(neighbor.node);
            self.give_up(frame, neighbor, now);
        }
    }

    fn send_arp(
        &mut self,
        node: NodeId,
        port: PortId,
        saying: Saying,
        (own_mac, own): (MacAddress, Ipv4Addr),
        now: Instant,
    ) {
        self.count(node, Term::Originated, 1);
        let Some(mut frame) = self.pool.allocate(ethernet::HEADER_LENGTH + arp::LENGTH) else {
            return self.lack_buffer(node);
        };
        let mut open = self.arena.open(&mut frame);
        (open.record.node, open.record.ingress) = (node.0, ORIGINATED);
        let (operation, destination, target_mac, target) = match saying {
            Saying::Request(address, mark) => {
                (open.record.mark, open.record.asks) = (mark, true);
                (ArpOperation::Request, MacAddress::BROADCAST, MacAddress::default(), address)
            }
            Saying::Reply(mac, address) => (ArpOperation::Reply, mac, mac, address),
        };
        let mut header = EthernetFrame::new_unchecked(open.bytes_mut());
        header.set_destination(destination);
        header.set_source(own_mac);
        header.set_ethertype(EtherType::Arp);
        let mut packet = ArpPacket::new_unchecked(header.payload_mut());
        packet.fill_types();
        packet.set_operation(operation);
        packet.set_sender(own_mac, own);
        packet.set_target(target_mac, target);
        let point = self.ingress_point(port);
        let action = if point == Point::Bridge { Action::Bridge } else { Action::Transmit };
        self.watch(&mut frame, point, action, now);
        self.send(frame, port, now);
    }
}

fn read(bytes: &[u8], role: Role) -> Result<Said, DropReason> {
    let frame = EthernetFrame::new_unchecked(bytes);
    let packet = ArpPacket::new_checked(frame.payload()).map_err(|_| DropReason::MalformedArp)?;
    if let Role::Bridge(Some(guard)) = role {
        if frame.source() != guard.mac || packet.sender_mac() != guard.mac {
            return Err(DropReason::SpoofedMac);
        }
        if packet.sender_address() != guard.address && !packet.is_probe() {
            return Err(DropReason::SpoofedArp);
        }
    }
    Ok(Said {
        request: packet.operation() == ArpOperation::Request,
        sender_mac: packet.sender_mac(),
        sender: packet.sender_address(),
        target: packet.target_address(),
        about_itself: packet.is_probe() || packet.is_gratuitous(),
    })
}
