//! A worker's links: attaching and detaching, taking frames from them, sending frames by them, their timers.
//!
//! Called by the passes and by visits. Invariants: only the owner of a link touches it; a frame for another
//! worker's link goes there whole; what a link refuses is dropped by the link's reason. Read first: `link`.
//!
//! Above 400 lines because how a link is taken from and how it is sent to are read together.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use super::budget::{Debt, SMALL_BATCH};
use super::debts::spend;
use super::files::read_batch;
use super::{
    Attached, ChecksumState, DropReason, Event, Frame, IngressPort, Instant, Link, NodeId, ORIGINATED,
    PortId, Term, VecDeque, Worker,
};
use crate::frame::{FrameMut, Record};
use crate::link::wire::CABLE_LIMIT;
use crate::mailbox::Parcel;
use crate::parse::Side;
use crate::parse::Vtep;
use crate::tables::{Node, Port, Role, Tunnel};
use crate::trace::{Action, Point};
use crate::tunnel::{Encapsulation, vtep_mac};

/// When links want attention; an entry may be outdated, which costs one look.
#[derive(Debug, Default)]
pub(super) struct Timers(BinaryHeap<Reverse<(Instant, PortId)>>);

impl Timers {
    pub(super) fn set(&mut self, when: Instant, port: PortId) {
        self.0.push(Reverse((when, port)));
    }

    fn due(&mut self, now: Instant) -> Option<PortId> {
        let Reverse((when, port)) = *self.0.peek()?;
        if when > now {
            return None;
        }
        self.0.pop();
        Some(port)
    }

    fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((when, _))| *when)
    }
}

impl Worker {
    /// Attaches a link to a port that the published tables have; false when they do not.
    pub fn attach(&mut self, port: PortId, link: Link) -> bool {
        let Some(ingress) = self.ingress_of(port) else { return false };
        let Some(node) = self.tables.ports.get(&port).map(|port| port.node) else { return false };
        let index = port.0 as usize;
        if self.links.len() <= index {
            self.links.resize_with(index + 1, || None);
        }
        if matches!(link, Link::Rings(_)) {
            self.ring_ports.push(port);
        }
        if matches!(link, Link::Pod(_)) {
            self.timers.set(self.now, port);
        }
        let Some(counters) = self.counters.get(usize::from(node.0)).map(Arc::clone) else { return false };
        let watched = match &link {
            Link::Tap(tap) => self.mailbox.watch.add(port, tap.as_ref()),
            Link::TunnelSocket(socket) => self.mailbox.watch.add(port, socket.as_ref()),
            Link::Wire { .. } | Link::Rings(_) | Link::Pod(_) => Ok(()),
        };
        if watched.is_err() {
            return false;
        }
        self.keep_asking_at(port, node);
        let (waiting, is_ready, debt, creditors) = (VecDeque::new(), false, Debt::default(), Vec::new());
        self.links[index] =
            Some(Attached { link, node, counters, ingress, waiting, is_ready, debt, creditors });
        true
    }

    /// Detaches a port's link; frames that waited on it are dropped by name.
    pub fn detach(&mut self, port: PortId) {
        self.send_datagrams(port, self.now);
        let Some(attached) = self.links.get_mut(port.0 as usize).and_then(Option::take) else { return };
        let Attached { link, node, waiting, .. } = attached;
        let mut left: Vec<Frame> = waiting.into();
        match link {
            Link::Wire { mut wire, .. } => left.extend(std::iter::from_fn(|| wire.drain())),
            Link::Pod(mut pod) => {
                self.close_relays(&pod);
                left.extend(std::iter::from_fn(|| pod.wire.drain()));
                left.extend(pod.uplink.into_iter().flat_map(|mut uplink| {
                    let in_flight = std::iter::from_fn(|| uplink.wire.drain()).collect::<Vec<_>>();
                    in_flight.into_iter().chain(uplink.outbox)
                }));
            }
            Link::Rings(mut rings) => {
                rings.incoming.pop(usize::MAX, |frame| left.push(frame));
            }
            // What waits in it the interface drops.
            Link::Tap(mut tap) => {
                self.mailbox.watch.remove(tap.as_ref());
                for frame in tap.unwritten() {
                    self.refuse_to_send(frame, port, DropReason::LinkDown, self.now);
                }
                tap.close();
            }
            Link::TunnelSocket(mut socket) => {
                self.mailbox.watch.remove(socket.as_ref());
                socket.take_idle().for_each(|frame| self.pool.free(frame));
            }
        }
        for mut frame in left {
            self.count(node, Term::Received, 1);
            self.arena.open(&mut frame).record.node = node.0;
            self.drop_at(frame, Point::Port(port), DropReason::LinkDown, self.now);
        }
        self.ring_ports.retain(|&other| other != port);
    }

    /// Returns how frames are taken at a port, whoever owns its link.
    pub(super) fn ingress_of(&self, port: PortId) -> Option<IngressPort> {
        let entry = self.tables.ports.get(&port)?;
        Some(ingress_port(port, entry, self.tables.node(entry.node)?))
    }

    /// Takes up to a batch of frames that came in by a port; fewer or none if much was decided for the port, but `least` in any
    /// case.
    pub(super) fn take_batch(
        &mut self,
        port: PortId,
        least: usize,
        frames: &mut Vec<Frame>,
    ) -> Option<(NodeId, IngressPort)> {
        let work = self.work();
        let attached = self.links.get_mut(port.0 as usize)?.as_mut()?;
        let mut limit = attached.debt.batch_limit(work).max(least);
        if limit == 0 {
            self.ready.push_back(port);
            return None;
        }
        attached.is_ready = false;
        if !attached.creditors.is_empty() {
            if !spend(&mut attached.creditors) {
                self.ask_creditors(port);
                return None;
            }
            limit = limit.min(SMALL_BATCH);
        }
        match &mut attached.link {
            Link::Rings(rings) => {
                rings.incoming.pop(limit, |frame| frames.push(frame));
            }
            Link::Tap(tap) => {
                let (node, ingress, counters) = (attached.node, attached.ingress, &attached.counters);
                if read_batch(tap, limit, (&self.arena, &mut self.pool), frames, counters) {
                    self.make_ready(port);
                }
                return (!frames.is_empty()).then_some((node, ingress));
            }
            Link::TunnelSocket(socket) if attached.waiting.is_empty() => {
                let (node, ingress, counters) = (attached.node, attached.ingress, &attached.counters);
                let merges = !self.observer.is_listening();
                if socket.receive(limit, merges, &mut self.pool, frames, counters) {
                    self.make_ready(port);
                }
                return (!frames.is_empty()).then_some((node, ingress));
            }
            Link::Wire { .. } | Link::Pod(_) | Link::TunnelSocket(_) => {
                let count = attached.waiting.len().min(limit);
                frames.extend(attached.waiting.drain(..count));
            }
        }
        let (node, ingress) = (attached.node, attached.ingress);
        if !attached.waiting.is_empty() || matches!(attached.link, Link::TunnelSocket(_)) {
            self.make_ready(port);
        }
        (!frames.is_empty()).then_some((node, ingress))
    }

    pub(super) fn make_ready(&mut self, port: PortId) {
        if let Some(attached) = self.links.get_mut(port.0 as usize).and_then(Option::as_mut)
            && !attached.is_ready
        {
            attached.is_ready = true;
            self.ready.push_back(port);
        }
    }

    /// Sends a frame by a port: by our own link, or through the worker that owns it.
    #[inline(always)]
    pub(super) fn send(&mut self, frame: Frame, egress: PortId, now: Instant) {
        match self.links.get_mut(egress.0 as usize) {
            Some(Some(Attached { link: Link::Rings(rings), counters, .. })) => {
                match rings.outgoing.push(frame) {
                    Ok(()) => counters.count(Term::Sent, 1),
                    Err(frame) => self.refuse_to_send(frame, egress, DropReason::LinkQueueFull, now),
                }
            }
            Some(_) | None => self.send_by_link(frame, egress, now),
        }
    }

    fn send_by_link(&mut self, frame: Frame, egress: PortId, now: Instant) {
        let Some(attached) = self.links.get_mut(egress.0 as usize).and_then(Option::as_mut) else {
            return self.send_elsewhere(frame, egress, now);
        };
        let node = attached.node;
        let offloads = match &attached.link {
            Link::Rings(_) => true,
            // Who listens there sees frames as a wire would have them.
            Link::Tap(_) => !self.observer.is_listening(),
            Link::Wire { wire, .. } => wire.is_clear(),
            Link::Pod(_) | Link::TunnelSocket(_) => false,
        };
        if !offloads && self.arena.record(&frame).checksum == ChecksumState::Partial {
            return self.finish_frame(frame, |worker, frame| worker.send_by_link(frame, egress, now), now);
        }
        let refused = match &mut attached.link {
            Link::Pod(_) => return self.send_to_pod(frame, egress, now),
            Link::TunnelSocket(_) => return self.send_by_socket(frame, egress, now),
            Link::Rings(rings) => {
                rings.outgoing.push(frame).map_err(|frame| (frame, DropReason::LinkQueueFull))
            }
            Link::Tap(_) => return self.send_to_tap(frame, egress, now),
            Link::Wire { wire, peer } if wire.is_clear() => {
                let peer = *peer;
                self.arrive(peer, frame)
            }
            Link::Wire { .. } => return self.send_by_cable(frame, egress, now),
        };
        match refused {
            Ok(()) => self.count(node, Term::Sent, 1),
            Err((frame, reason)) => self.refuse_to_send(frame, egress, reason, now),
        }
    }

    #[cold]
    pub(super) fn refuse_to_send(&mut self, frame: Frame, egress: PortId, reason: DropReason, now: Instant) {
        let point = self.egress_point(egress);
        self.drop_at(frame, point, reason, now);
    }

    /// A frame comes in by a port.
    pub(super) fn arrive(&mut self, port: PortId, mut frame: Frame) -> Result<(), (Frame, DropReason)> {
        self.note_origin(&mut frame);
        let Some(attached) = self.links.get_mut(port.0 as usize).and_then(Option::as_mut) else {
            return Err((frame, DropReason::LinkDown));
        };
        if attached.waiting.len() >= CABLE_LIMIT {
            return Err((frame, DropReason::LinkQueueFull));
        }
        attached.waiting.push_back(frame);
        self.make_ready(port);
        Ok(())
    }

    fn send_elsewhere(&mut self, mut frame: Frame, egress: PortId, now: Instant) {
        let owner =
            self.tables.ports.get(&egress).map(|port| port.worker).filter(|&worker| worker != self.id);
        match owner {
            Some(worker) => {
                self.arena.open(&mut frame).record.egress = egress.0;
                self.send_parcel(worker, Parcel::Egress(frame), now);
            }
            None => {
                let point = self.egress_point(egress);
                self.drop_at(frame, point, DropReason::LinkDown, now);
            }
        }
    }

    /// Gives attention to the links that want it: frames that have arrived.
    pub(super) fn run_timers(&mut self, now: Instant) {
        while let Some(port) = self.timers.due(now) {
            let Some(attached) = self.links.get_mut(port.0 as usize).and_then(Option::as_mut) else {
                continue;
            };
            match &mut attached.link {
                Link::Wire { .. } => self.run_cable(port, now),
                Link::Rings(_) | Link::Tap(_) | Link::TunnelSocket(_) => {}
                Link::Pod(_) => self.poll_pod(port, now),
            }
        }
        self.poll_rings();
    }

    fn poll_rings(&mut self) {
        for index in 0..self.ring_ports.len() {
            let port = self.ring_ports[index];
            let waits = self.links.get(port.0 as usize).and_then(Option::as_ref).is_some_and(
                |attached| matches!(&attached.link, Link::Rings(rings) if !rings.incoming.is_empty()),
            );
            if waits {
                self.make_ready(port);
            }
        }
    }

    /// Returns when something is to be done next: now, if frames wait.
    #[must_use]
    pub fn next_event(&self, now: Instant) -> Option<Instant> {
        let busy = !self.ready.is_empty()
            || !self.mailbox.is_empty()
            || !self.unsent.is_empty()
            || self.strangers.are_asking()
            || self.has_parcels();
        if busy {
            return Some(now);
        }
        let timers = [
            self.timers.next(),
            self.neighbors.next_poll(),
            self.fragments.next_expiry(),
            self.next_replay(),
        ];
        timers.into_iter().flatten().min()
    }

    /// The point that a port's ingress is at.
    pub(super) fn ingress_point(&self, port: PortId) -> Point {
        match self.tables.ports.get(&port).map(|port| port.role) {
            Some(Role::Interface(index)) => Point::Interface(index),
            Some(Role::Bridge(_)) | None => Point::Bridge,
        }
    }

    /// The point that frames pass on their way out by a port.
    pub(super) fn egress_point(&self, port: PortId) -> Point {
        match self.tables.ports.get(&port).map(|port| port.role) {
            Some(Role::Interface(index)) => Point::Interface(index),
            Some(Role::Bridge(_)) | None => Point::Port(port),
        }
    }

    /// Tells whether anybody is to be told of a frame.
    pub(super) fn is_watched(&self, frame: &Frame) -> bool {
        self.arena.record(frame).mark != 0 || self.observer.is_listening()
    }

    /// Tells whoever watches that a frame passes a point.
    pub(super) fn watch(&mut self, frame: &mut Frame, point: Point, action: Action, now: Instant) {
        if !self.is_watched(frame) {
            return;
        }
        let open = self.arena.open(frame);
        if open.record.merged && action == Action::Receive {
            return;
        }
        let event = event(open.record, point, action, now);
        if self.observer.pass(event, seen(&open, event)) && !matches!(point, Point::Port(_)) {
            open.record.shown_at = event.node.0.wrapping_add(1);
        }
    }

    /// Shows a frame that comes no further than where it came in to who listens there, as one of the wire would.
    pub(super) fn show_arrival(&mut self, frame: &Frame, now: Instant) {
        let record = self.arena.record(frame);
        let is_new = record.shown_at != record.node.wrapping_add(1) && record.ingress != ORIGINATED;
        if is_new && self.observer.is_listening() {
            let (node, point) = (NodeId(record.node), self.ingress_point(PortId(record.ingress)));
            self.observer.show(node, point, now, self.arena.bytes(frame));
        }
    }
}

/// A frame as it looks at a hop.
pub(super) fn seen<'a>(open: &'a FrameMut<'_>, event: Event) -> &'a [u8] {
    let network = usize::from(open.record.network_offset).min(open.bytes().len());
    &open.bytes()[if event.is_packet() { network } else { 0 }..]
}

/// Makes the next event of a frame.
pub(super) fn event(record: &mut Record, point: Point, action: Action, now: Instant) -> Event {
    record.hops = record.hops.saturating_add(1);
    let Record { mark, asks, hops: hop, node, .. } = *record;
    Event { mark, asks, hop, time: now, node: NodeId(node), point, action }
}

/// Says how frames are taken at a port.
fn ingress_port(id: PortId, port: &Port, node: &Node) -> IngressPort {
    let side = match port.role {
        Role::Bridge(_) if node.bridge.as_ref().is_some_and(|bridge| bridge.router.is_some()) => Side::Bridge,
        Role::Bridge(_) => Side::Switch,
        Role::Interface(index) => {
            let mac =
                node.interfaces.get(usize::from(index)).map(|interface| interface.mac).unwrap_or_default();
            // The tunnel's datagrams come by eth0.
            match node.tunnel.filter(|_| index == 0) {
                None => Side::Interface { mac, tunnel: None },
                Some(Tunnel { local, port, encapsulation: Encapsulation::Udp, .. }) => {
                    Side::Interface { mac, tunnel: Some((local, port)) }
                }
                Some(Tunnel {
                    local, port, address, encapsulation: Encapsulation::Vxlan { vni }, ..
                }) => Side::Vxlan { mac, tunnel: (local, port), end: Vtep { vni, mac: vtep_mac(address) } },
            }
        }
    };
    IngressPort { port: id.0, side }
}
