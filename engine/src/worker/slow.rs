//! What a worker does with the slow path's verdicts.
//!
//! Called for every frame that the cache does not answer. Invariants: what is decided here is applied step by
//! step, so that every point shows what a wire would; a decision that may be replayed goes into the cache.
//! Read first: `decide.rs`, `rewrite.rs`.

use std::net::Ipv4Addr;

use super::{Class, DropReason, Frame, Half, Instant, NodeId, ORIGINATED, Parsed, PortId, Worker, flags};
use crate::binding::BindingRef;
use crate::bridge::News;
use crate::decide::{Arrival, Decision, Refusal, Verdict, World, decide};
use crate::flow::{FlowCache, FlowKey, Slot};
use crate::frame::{ChecksumState, Course, Record};
use crate::mailbox::{Notice, Parcel};
use crate::neighbor::Neighbor;
use crate::rewrite::{Step, Transform, apply, compose};
use crate::tables::{Role, address_bucket};
use crate::trace::{Action, Point};
use crate::wire::ethernet::{ADDRESSES_LENGTH, TAG_LENGTH, is_priority_tagged};
use crate::wire::{EthernetFrame, ipv4};

impl Worker {
    /// Decides about a frame and does what was decided.
    pub(super) fn decide(&mut self, frame: Frame, parsed: &Parsed, now: Instant) {
        if parsed.class == Class::PriorityTagged {
            self.untag(frame, now);
        } else if parsed.fragment {
            self.decide_fragment(frame, parsed, now);
        } else {
            self.decide_known(frame, parsed, now);
        }
    }

    /// Takes tags off that say a priority alone, and decides about what is behind them, as the system of whoever gets the frame
    /// would.
    fn untag(&mut self, mut frame: Frame, now: Instant) {
        let mut open = self.arena.open(&mut frame);
        while is_priority_tagged(open.bytes()) {
            open.bytes_mut().copy_within(..ADDRESSES_LENGTH, TAG_LENGTH);
            let length = open.bytes().len() - TAG_LENGTH;
            if !open.reframe(TAG_LENGTH, length, 0) {
                return self.drop_frame(frame, DropReason::RuntFrame, now);
            }
        }
        self.take_again(frame, now);
    }

    /// Decides about a frame whose flow is known, though it be a fragment.
    pub(super) fn decide_known(&mut self, frame: Frame, parsed: &Parsed, now: Instant) {
        let record = *self.arena.record(&frame);
        let (node_id, port_id, course) = (NodeId(record.node), PortId(record.ingress), record.course);
        if parsed.class == Class::Arp {
            return self.take_arp(frame, parsed, (node_id, port_id), now);
        }
        if parsed.tunneled && self.is_unfinished(&frame) {
            return self.decide_unfinished(frame, now);
        }
        let (bytes, length) = (self.arena.bytes(&frame), self.wire_length(&frame, parsed));
        let (Some(node), Some(ingress)) = (self.tables.node(node_id), self.tables.ports.get(&port_id)) else {
            return self.drop_frame(frame, DropReason::LinkDown, now);
        };
        let mut world = world!(self, now);
        let station = learn_station(&mut world, &mut self.cache, bytes, (node_id, port_id, ingress.role));
        let arrival = Arrival { bytes, parsed, length, port: port_id, ingress, node, course };
        self.decisions += 1;
        let is_flow = matches!(parsed.class, Class::Flow | Class::LayerTwo);
        // Once: what is refused, or waits, after a change is in no cache, and each frame of it is as much work as a new flow's.
        let is_known = is_flow
            && self.cache.forget_outdated(parsed.hash, parsed.key, &parsed.guard, &self.tables.epochs);
        let mut transform = Transform::new();
        let verdict = decide(&mut world, &arrival, &mut transform);
        if let Some(station) = station {
            self.tell(station);
        }
        self.pay(&record, parsed, is_known, (&verdict, &transform));
        // Ahead of the frame, so that its answer finds the way.
        self.spread_news();
        self.carry_out(frame, parsed, (verdict, &transform), now);
    }

    /// Does with a frame what was decided.
    fn carry_out(
        &mut self,
        frame: Frame,
        parsed: &Parsed,
        (verdict, transform): (Result<Verdict, Refusal>, &Transform),
        now: Instant,
    ) {
        let &Record { node, ingress, course, .. } = self.arena.record(&frame);
        let (node_id, port_id) = (NodeId(node), PortId(ingress));
        match verdict {
            Ok(Verdict::Forward(decision)) => {
                let slot = if course == Course::Reflected {
                    None
                } else {
                    self.remember(parsed, &decision, transform, node_id)
                };
                match slot.filter(|_| !transform.cuts() && self.arena.record(&frame).mark == 0) {
                    Some(slot) => self.forward_as(frame, parsed, &slot, now),
                    None => self.forward(frame, parsed.tuple(), transform, now),
                }
            }
            Ok(Verdict::Flood) => self.flood(frame, node_id, port_id, now),
            Ok(Verdict::Consume) => self.consume(frame, parsed, now),
            Ok(Verdict::Resolve(neighbor)) => self.wait(frame, neighbor, now),
            Ok(Verdict::HandOver(worker, redirect)) => {
                if course == Course::Reflected {
                    return self.send_parcel(worker, Parcel::Ingress(frame), now);
                }
                self.remember_worker(parsed, worker, redirect);
                self.hand_over(frame, worker, now);
            }
            Ok(Verdict::AskForPort(pool)) => self.ask_for_port(frame, pool, now),
            Ok(Verdict::LowerPathMtu(peer, mtu)) => {
                self.learn_path_mtu(node_id, peer, mtu, now);
                self.take_in(frame, node_id, self.ingress_point(port_id), now);
            }
            Ok(Verdict::Relay(relayed)) => {
                self.relay(&frame, &relayed, now);
                self.take_in(frame, node_id, self.ingress_point(port_id), now);
            }
            Ok(Verdict::Reflect(step)) => self.reflect(frame, parsed, &step, now),
            Err(refusal) => self.refuse(frame, parsed, refusal, now),
        }
    }

    /// Keeps a decision in the cache, where it may be replayed: not while somebody listens where the flow passes. Returns
    /// what it kept.
    fn remember(
        &mut self,
        parsed: &Parsed,
        decision: &Decision,
        transform: &Transform,
        node: NodeId,
    ) -> Option<Slot> {
        let may_replay = transform.steps().iter().all(|step| match *step {
            Step::Wrap { .. } => false,
            Step::Pass(point, _) => !self.observer.listens_at(node, point),
            Step::Decapsulate
            | Step::Translate(_)
            | Step::TranslateError(_)
            | Step::DecrementTtl
            | Step::Fragment(_)
            | Step::Encapsulate(_)
            | Step::Ethernet { .. } => true,
        });
        if !may_replay || !opens(parsed) && !matches!(parsed.class, Class::Flow | Class::LayerTwo) {
            return None;
        }
        let (mut slot, adjacency) = compose(transform, parsed);
        slot.adjacency = self.adjacency(adjacency);
        slot.buckets = decision.buckets;
        if let Some((binding, half)) = decision.binding {
            (slot.binding, slot.generation) = (binding.index, binding.generation);
            if half == Half::Reply {
                slot.flags |= flags::REPLY;
            }
        }
        self.cache.insert(parsed.hash, slot, &self.tables.epochs, self.now);
        Some(slot)
    }

    /// Keeps in the cache whose a flow is.
    fn remember_worker(&mut self, parsed: &Parsed, worker: u8, redirect: Option<BindingRef>) {
        if parsed.class != Class::Flow && !opens(parsed) {
            return;
        }
        let bucket = address_bucket(Ipv4Addr::from_bits(parsed.tuple().destination));
        let mut slot = Slot::hand_over(parsed.key, parsed.guard, worker, bucket);
        if let Some(redirect) = redirect {
            (slot.binding, slot.generation) = (redirect.index, redirect.generation);
        }
        self.cache.insert(parsed.hash, slot, &self.tables.epochs, self.now);
    }

    /// Gives a frame to the worker that decides about it.
    pub(super) fn hand_over(&mut self, mut frame: Frame, worker: u8, now: Instant) {
        self.arena.open(&mut frame).record.course = Course::Steered;
        self.send_parcel(worker, Parcel::Ingress(frame), now);
    }

    /// Believes what a router said about the path to a peer of a tunnel, and tells the other workers.
    pub(super) fn learn_path_mtu(&mut self, node: NodeId, peer: Ipv4Addr, mtu: u16, now: Instant) {
        self.lower_path_mtu(node, peer, mtu, now);
        self.tell(Notice::PathMtu(node, peer, mtu));
    }

    /// Believes what a router said about the path to a peer of the tunnel; cached flows know of the old one.
    pub(super) fn lower_path_mtu(&mut self, node: NodeId, peer: Ipv4Addr, mtu: u16, now: Instant) {
        if self.path_mtu.lower((node, peer), mtu, now) {
            self.cache.clear();
        }
    }

    /// Translates a packet on its way out to the node's own address, and takes it in again: it is for another pod.
    fn reflect(&mut self, mut frame: Frame, parsed: &Parsed, step: &Step, now: Instant) {
        let mut tuple = parsed.tuple();
        self.identify(&mut frame, &[]);
        let mut open = self.arena.open(&mut frame);
        let (node, port) = (NodeId(open.record.node), PortId(open.record.ingress));
        if !apply(&mut open, step, &mut tuple, &mut 0) {
            return self.drop_frame(frame, DropReason::MtuExceeded, now);
        }
        self.watch(&mut frame, Point::Bridge, Action::TranslateSource, now);
        let Some(ingress) = self.ingress_of(port) else {
            return self.drop_frame(frame, DropReason::LinkDown, now);
        };
        self.run_frames::<false>(&mut vec![frame], node, &ingress, Course::Reflected, now);
    }

    /// Lets a frame wait for a neighbour's MAC.
    pub(super) fn wait(&mut self, mut frame: Frame, neighbor: Neighbor, now: Instant) {
        if self.is_unfinished(&frame) {
            // Superframes are few, and others need their buffers.
            return self.finish_frame(frame, |worker, frame| worker.wait(frame, neighbor, now), now);
        }
        let point = Point::from(neighbor.attachment);
        self.watch(&mut frame, point, Action::Resolve, now);
        self.hold(neighbor.node);
        let waiting = self.neighbors.wait(neighbor, frame, now);
        if let Some(displaced) = waiting.displaced {
            self.release(neighbor.node);
            self.show_arrival(&displaced, now);
            self.drop_at(displaced, point, DropReason::NeighborQueueFull, now);
        }
        if waiting.request {
            self.ask(neighbor, now);
        }
    }

    /// A frame begins to wait at a node.
    pub(super) fn hold(&self, node: NodeId) {
        if let Some(counters) = self.counters.get(usize::from(node.0)) {
            counters.hold();
        }
    }

    /// A frame waits no longer.
    pub(super) fn release(&mut self, node: NodeId) {
        if let Some(counters) = self.counters.get(usize::from(node.0)) {
            counters.release();
        }
    }

    /// A frame that waited goes on: as it came in, or as the node made it.
    pub(super) fn resume(&mut self, frame: Frame, now: Instant) {
        let record = *self.arena.record(&frame);
        self.release(NodeId(record.node));
        if record.ingress == ORIGINATED {
            return self.send_originated_again(frame, now);
        }
        match self.parsed_known(&frame) {
            Ok(parsed) => self.decide_known(frame, &parsed, now),
            Err(reason) => self.drop_frame(frame, reason, now),
        }
    }

    /// Returns the flow of a frame that waits; none of one that was made here.
    pub(super) fn flow_of(&self, frame: &Frame) -> Option<FlowKey> {
        self.parsed_known(frame).ok().map(|parsed| parsed.key)
    }

    /// Parses a frame that was decided about before: of a fragment, the ports are known.
    fn parsed_known(&self, frame: &Frame) -> Result<Parsed, DropReason> {
        let parsed = self.parsed_again(frame)?;
        let ports = self.arena.record(frame).fragment_ports;
        Ok(if parsed.fragment { parsed.with_ports(ports.into()) } else { parsed })
    }

    /// A frame is decided about as if it came in now.
    pub(super) fn take_again(&mut self, frame: Frame, now: Instant) {
        match self.parsed_again(&frame) {
            Ok(parsed) => {
                // What was decided about one of its flow meanwhile holds for it, too.
                if let Some(frame) = self.cached::<false>(frame, &parsed, now) {
                    self.decide(frame, &parsed, now);
                }
            }
            Err(reason) => self.drop_frame(frame, reason, now),
        }
    }

    fn parsed_again(&self, frame: &Frame) -> Result<Parsed, DropReason> {
        let record = *self.arena.record(frame);
        let ingress = self.ingress_of(PortId(record.ingress)).ok_or(DropReason::LinkDown)?;
        let verified = record.checksum != ChecksumState::Unknown;
        let parsed = crate::parse::parse(self.arena.bytes(frame), &ingress, verified)?;
        Ok(Parsed { hash: self.cache.hash(parsed.key), ..parsed })
    }

    /// Drops a refused frame and tells its sender, where that is done.
    pub(super) fn refuse(&mut self, frame: Frame, parsed: &Parsed, refusal: Refusal, now: Instant) {
        self.tell_sender(&frame, usize::from(parsed.network_offset), refusal, now);
        self.drop_frame(frame, refusal.reason, now);
    }
}

/// Learns where a frame's sender is, if a bridge may learn it from that; returns what the other workers must hear.
pub(super) fn learn_station(
    world: &mut World<'_>,
    cache: &mut FlowCache,
    frame: &[u8],
    (node, port, role): (NodeId, PortId, Role),
) -> Option<Notice> {
    let source = EthernetFrame::new_unchecked(frame).source();
    let may_teach = match role {
        // A guarded pod is a static entry; without its endpoint it is a station like any other.
        Role::Bridge(guard) => guard.is_none_or(|guard| guard.mac == source),
        Role::Interface(_) => false,
    };
    if !may_teach || !source.is_unicast() {
        return None;
    }
    let news = world.fdb.learn(world.tables, node, source, port, world.now);
    heed_station(cache, news);
    (news != News::None).then_some(Notice::Station(node, source, port))
}

/// Cached flows lead to where a station was.
pub(super) fn heed_station(cache: &mut FlowCache, news: News) {
    match news {
        News::Moved => cache.clear(),
        News::Fresh | News::None => {}
    }
}

/// Tells whether a packet opens a connection: it is decided each time, but leads where the rest of it goes. Its headers must be where the
/// cache has them.
fn opens(parsed: &Parsed) -> bool {
    let header = parsed.transport_offset.checked_sub(parsed.network_offset).map(usize::from);
    parsed.tcp_flags.syn() && !parsed.fragment && header == Some(ipv4::HEADER_LENGTH)
}
