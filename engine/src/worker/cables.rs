//! Cables that are not perfect: frames onto them, frames off them, and the settings of a running one.
//!
//! `ports` and `pods` come here for a frame only when the cable is not clear. Invariants: a frame that a cable refuses is
//! dropped by the cable's reason at its sending end; a copy is counted as copied where a node sends it, as received where
//! a pod does; a timer is set for the next frame to arrive. Read first: `link/wire.rs`.

use super::{Attached, DropReason, Frame, Instant, Link, NodeId, PortId, Term, Worker};
use crate::link::impairment::{Impairment, LinkCounts};
use crate::link::wire::Wire;
use crate::link::{Direction, Uplink};
use crate::trace::{Action, Point};

impl Worker {
    /// Sets how frames fare that set out from now on in one direction of a port's link; false when it has none that
    /// can be impaired. `chance` is for a way from a pod that was perfect until now.
    pub fn impair(&mut self, port: PortId, direction: Direction, impairment: Impairment) -> bool {
        let chance = self.random.fork(u64::from(port.0));
        let Some(attached) = self.links.get_mut(port.0 as usize).and_then(Option::as_mut) else {
            return false;
        };
        match (&mut attached.link, direction) {
            (Link::Wire { wire, .. }, Direction::Out) => wire.impair(None, impairment),
            (Link::Wire { wire, .. }, Direction::OutFrom(origin)) => wire.impair(Some(origin), impairment),
            (Link::Pod(link), Direction::Out) => link.wire.impair(None, impairment),
            // A host is a pod at a switch: others reach it from the switch's other ports.
            (Link::Pod(link), Direction::OutFrom(origin)) => link.wire.impair(Some(origin), impairment),
            (Link::Pod(link), Direction::In) => {
                if link.uplink.is_none() && impairment.is_perfect() {
                    return true;
                }
                let is_new = link.uplink.is_none();
                let uplink = link.uplink.get_or_insert_with(|| {
                    Box::new(Uplink { outbox: Default::default(), wire: Wire::new(chance) })
                });
                uplink.wire.impair(None, impairment);
                if is_new {
                    self.tell_of_waiting(port);
                }
            }
            (Link::Rings(_) | Link::Tap(_) | Link::TunnelSocket(_), _)
            | (Link::Wire { .. }, Direction::In) => return false,
        }
        true
    }

    /// Returns what happened to the frames of one direction of a port's link while it was impaired.
    #[must_use]
    pub fn link_counts(&self, port: PortId, direction: Direction) -> LinkCounts {
        let attached = self.links.get(port.0 as usize).and_then(Option::as_ref);
        match (attached.map(|attached| &attached.link), direction) {
            (Some(Link::Wire { wire, .. }), Direction::OutFrom(origin)) => wire.counts(Some(origin)),
            (Some(Link::Wire { wire, .. }), Direction::Out) => wire.counts(None),
            (Some(Link::Pod(link)), Direction::Out) => link.wire.counts(None),
            (Some(Link::Pod(link)), Direction::OutFrom(origin)) => link.wire.counts(Some(origin)),
            (Some(Link::Pod(link)), Direction::In) => {
                link.uplink.as_ref().map(|uplink| uplink.wire.counts(None)).unwrap_or_default()
            }
            (Some(Link::Rings(_) | Link::Wire { .. } | Link::Tap(_) | Link::TunnelSocket(_)) | None, _) => {
                LinkCounts::default()
            }
        }
    }

    /// Sends a frame onto a cable that is not clear.
    #[cold]
    pub(super) fn send_by_cable(&mut self, frame: Frame, egress: PortId, now: Instant) {
        let Some(attached) = self.links.get_mut(egress.0 as usize).and_then(Option::as_mut) else {
            return self.refuse_to_send(frame, egress, DropReason::LinkDown, now);
        };
        let node = attached.node;
        let (wire, peer) = match &mut attached.link {
            Link::Wire { wire, peer } => (wire, Some(*peer)),
            Link::Pod(link) => (&mut link.wire, None),
            Link::Rings(_) | Link::Tap(_) | Link::TunnelSocket(_) => {
                return self.refuse_to_send(frame, egress, DropReason::LinkDown, now);
            }
        };
        let origin = PortId(self.arena.record(&frame).ingress);
        let before = wire.next_arrival();
        let sent = wire.send(frame, origin, now, &mut self.pool);
        let next = wire.next_arrival().filter(|&next| before != Some(next));
        if let Some(next) = next {
            self.timers.set(next, egress);
        }
        let sent = match sent {
            Ok(sent) => sent,
            Err((frame, reason)) => return self.refuse_to_send(frame, egress, reason, now),
        };
        self.count(node, Term::Copied, u64::from(sent.copied));
        self.count(node, Term::Sent, u64::from(sent.copied));
        match (sent.arrived, peer) {
            (Some(frame), Some(peer)) => {
                if let Err((frame, reason)) = self.arrive(peer, frame) {
                    return self.refuse_to_send(frame, egress, reason, now);
                }
            }
            (Some(frame), None) => {
                self.count(node, Term::Sent, 1);
                return self.deliver(frame, egress, now);
            }
            (None, _) => {}
        }
        self.count(node, Term::Sent, 1);
    }

    /// Takes the frames off a cable that have arrived, and sets its timer.
    pub(super) fn run_cable(&mut self, port: PortId, now: Instant) {
        loop {
            let attached = self.links.get_mut(port.0 as usize).and_then(Option::as_mut);
            let Some(Attached { link: Link::Wire { wire, peer }, .. }) = attached else { return };
            let peer = *peer;
            let Some(frame) = wire.arrival(now) else {
                if let Some(next) = wire.next_arrival() {
                    self.timers.set(next, port);
                }
                return;
            };
            if let Err((frame, reason)) = self.arrive(peer, frame) {
                // It comes back to the node that sent it.
                self.count(NodeId(self.arena.record(&frame).node), Term::Received, 1);
                self.refuse_to_send(frame, port, reason, now);
            }
        }
    }

    /// Puts what a pod has sent on its way to the node.
    pub(super) fn send_up(&mut self, port: PortId, now: Instant) {
        loop {
            let attached = self.links.get_mut(port.0 as usize).and_then(Option::as_mut);
            let Some(Attached { link: Link::Pod(link), node, .. }) = attached else { return };
            let (node, Some(uplink)) = (*node, &mut link.uplink) else { return };
            let Some(mut frame) = uplink.outbox.pop_front() else { return };
            let record = self.arena.open(&mut frame).record;
            (record.node, record.ingress) = (node.0, port.0);
            self.watch(&mut frame, Point::Port(port), Action::Send, now);
            let attached = self.links.get_mut(port.0 as usize).and_then(Option::as_mut);
            let Some(Attached { link: Link::Pod(link), .. }) = attached else { return };
            let Some(uplink) = &mut link.uplink else { return };
            match uplink.wire.send(frame, port, now, &mut self.pool) {
                Ok(sent) => {
                    if let Some(frame) = sent.arrived {
                        self.arrive_from_pod(frame, port, now);
                    }
                }
                Err((frame, reason)) => self.lose_from_pod(frame, node, port, reason, now),
            }
        }
    }

    /// Takes what has arrived from a pod by a cable that takes time.
    pub(super) fn run_uplink(&mut self, port: PortId, now: Instant) {
        loop {
            let attached = self.links.get_mut(port.0 as usize).and_then(Option::as_mut);
            let Some(Attached { link: Link::Pod(link), .. }) = attached else { return };
            let Some(frame) = link.uplink.as_mut().and_then(|uplink| uplink.wire.arrival(now)) else {
                return;
            };
            self.arrive_from_pod(frame, port, now);
        }
    }

    fn arrive_from_pod(&mut self, frame: Frame, port: PortId, now: Instant) {
        if let Err((frame, reason)) = self.arrive(port, frame) {
            let node = NodeId(self.arena.record(&frame).node);
            self.lose_from_pod(frame, node, port, reason, now);
        }
    }

    /// The node never saw it, but every frame is on somebody's ledger.
    fn lose_from_pod(&mut self, frame: Frame, node: NodeId, port: PortId, reason: DropReason, now: Instant) {
        self.count(node, Term::Received, 1);
        self.drop_at(frame, Point::Port(port), reason, now);
    }

    /// Tells of the frames that a pod sent just before its way to the node was no longer perfect.
    fn tell_of_waiting(&mut self, port: PortId) {
        let now = self.now;
        let attached = self.links.get_mut(port.0 as usize).and_then(Option::as_mut);
        let Some(Attached { node, waiting, .. }) = attached else { return };
        let (node, mut frames) = (node.0, std::mem::take(waiting));
        for frame in &mut frames {
            self.arena.open(frame).record.node = node;
            self.watch(frame, Point::Port(port), Action::Send, now);
        }
        if let Some(attached) = self.links.get_mut(port.0 as usize).and_then(Option::as_mut) {
            attached.waiting = frames;
        }
    }
}
