//! Links that are sockets of tunnels: what leaves by them is gathered, and sent many at once.
//!
//! Called when a frame leaves and at the end of a batch. Invariants: nothing waits beyond its batch; what the system does not
//! take is dropped by name, and a path that takes less is learned as if a router had said so. Read first:
//! `link/tunnel_socket.rs`.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::{Attached, DropReason, Frame, Instant, Link, NodeId, PortId, Term, Worker};
use crate::decide::Refusal;
use crate::link::outer::{HEADERS, answer};
use crate::link::train::longest_packet;
use crate::link::tunnel_socket::{Leaving, TunnelSocket, Unsent};
use crate::sys::DATAGRAMS;
use crate::tunnel::OUTER_LENGTH;

impl Worker {
    fn socket(&mut self, port: PortId) -> Option<(&mut TunnelSocket, NodeId)> {
        let attached = self.links.get_mut(port.0 as usize)?.as_mut()?;
        let Link::TunnelSocket(socket) = &mut attached.link else { return None };
        Some((socket, attached.node))
    }

    /// Takes a frame that leaves by a tunnel's socket.
    pub(super) fn send_by_socket(&mut self, mut frame: Frame, egress: PortId, now: Instant) {
        let attached = self.links.get_mut(egress.0 as usize).and_then(Option::as_mut);
        let Some(Attached { link: Link::TunnelSocket(socket), node, .. }) = attached else {
            return self.refuse_to_send(frame, egress, DropReason::LinkDown, now);
        };
        let node = *node;
        // Only what this node has encapsulated is a superframe here.
        let is_superframe = self.arena.record(&frame).checksum.is_unfinished();
        let leaving =
            if is_superframe { Leaving::Datagram } else { socket.leaving(self.arena.bytes(&frame)) };
        match leaving {
            Leaving::Datagram => {
                socket.outbox.push(frame);
                let waiting = socket.outbox.len();
                // Large buffers are few, and a superframe makes a message by itself.
                if is_superframe || waiting >= DATAGRAMS {
                    self.send_datagrams(egress, now);
                } else if waiting == 1 {
                    self.unwritten.push(egress);
                }
            }
            Leaving::Question => {
                self.count(node, Term::Sent, 1);
                answer(&self.arena, &mut frame);
                if let Err((frame, reason)) = self.arrive(egress, frame) {
                    self.count(node, Term::Received, 1);
                    self.refuse_to_send(frame, egress, reason, now);
                }
            }
            Leaving::Stray => self.refuse_to_send(frame, egress, DropReason::NoUplink, now),
        }
    }

    /// Sends what a socket's outbox holds.
    pub(super) fn send_datagrams(&mut self, port: PortId, now: Instant) {
        let arena = Arc::clone(&self.arena);
        let Some((socket, node)) = self.socket(port) else { return };
        let mut frames = std::mem::take(&mut socket.outbox);
        while !frames.is_empty() {
            let Some((socket, _)) = self.socket(port) else { break };
            match socket.send(&arena, &frames) {
                Ok(sent) => {
                    self.count(node, Term::Sent, sent.datagrams as u64);
                    self.count(node, Term::Split, (sent.datagrams - sent.frames) as u64);
                    frames.drain(..sent.frames).for_each(|frame| self.pool.free(frame));
                }
                Err((unsent, gone)) => {
                    // What is left of the first frame stands for the rest of it.
                    self.count(node, Term::Sent, gone as u64);
                    self.count(node, Term::Split, gone as u64);
                    self.drop_unsent(&mut frames, (node, port), unsent, now);
                }
            }
        }
        // The list is kept, to be reused; meanwhile the node may have sent something itself.
        if let Some((socket, _)) = self.socket(port)
            && socket.outbox.is_empty()
        {
            socket.outbox = frames;
        }
    }

    /// Drops what the system does not send, the first frame in any case; it is not asked again for others of the same fate.
    #[cold]
    fn drop_unsent(
        &mut self,
        frames: &mut Vec<Frame>,
        (node, port): (NodeId, PortId),
        unsent: Unsent,
        now: Instant,
    ) {
        let arena = Arc::clone(&self.arena);
        let first = frames.first().map_or(0, |frame| longest_packet(&arena, frame).1);
        let tunnel = self.tables.node(node).and_then(|node| node.tunnel);
        let between = tunnel.map_or(0, |tunnel| tunnel.encapsulation.between());
        let reason = match unsent {
            Unsent::TooLong(peer, mtu) => {
                if (1..first).contains(&usize::from(mtu)) {
                    self.learn_path_mtu(node, peer, mtu, now);
                }
                DropReason::FragmentationNeeded
            }
            Unsent::Unreachable(_) => DropReason::LinkDown,
            Unsent::Full => DropReason::LinkQueueFull,
            Unsent::Malformed => DropReason::MalformedOffload,
        };
        let shares_fate = |peer: Ipv4Addr, length: usize| match unsent {
            Unsent::TooLong(to, mtu) => peer == to && length >= first.min(usize::from(mtu) + 1),
            Unsent::Unreachable(to) => peer == to,
            Unsent::Full => true,
            Unsent::Malformed => false,
        };
        for (index, frame) in std::mem::take(frames).into_iter().enumerate() {
            let (peer, length) = longest_packet(&arena, &frame);
            if index > 0 && !shares_fate(peer, length) {
                frames.push(frame);
                continue;
            }
            if let Unsent::TooLong(_, mtu) = unsent {
                let overhead = (OUTER_LENGTH + between) as u16;
                let refusal = Refusal { reason, mtu: mtu.saturating_sub(overhead) };
                self.tell_sender(&frame, HEADERS + between, refusal, now);
            }
            self.refuse_to_send(frame, port, reason, now);
        }
    }
}
