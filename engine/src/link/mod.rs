//! Where frames come from and go.
//!
//! The worker that owns a link takes frames from it in batches and gives it frames to send. Invariants: a link
//! gives a frame back with a reason when it cannot send it; nothing here decides anything. Allowed
//! dependencies: `frame`, `ring`, `pod`. Read first: `docs/architecture.md`, "Links".

pub mod impairment;

pub mod wire;

pub mod pod_ring;

pub mod replay;

pub mod tap;

pub mod feature;

pub mod offload;

pub mod coalesce;

pub mod filter;

pub mod uplink;

pub mod tunnel_socket;

pub mod outer;

pub mod train;

pub mod watch;

use std::collections::VecDeque;
use std::os::fd::AsFd;

use rustix::net::sockopt::{
    set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, set_socket_send_buffer_size,
    set_socket_send_buffer_size_force,
};

use crate::clock::Instant;
use crate::frame::Frame;
use crate::pod::Pod;
use crate::ring::{Consumer, Producer};
use crate::tables::PortId;
use tap::Tap;
use tunnel_socket::TunnelSocket;
use wire::Wire;

/// A link, by kind.
#[derive(Debug)]
pub enum Link {
    /// An end of an in-memory cable.
    Wire {
        /// The way to the other end.
        wire: Wire,
        /// The port there; the same worker owns it.
        peer: PortId,
    },
    /// A pair of rings to somebody in this process: a generator, a sink, a test.
    Rings(Rings),
    /// A simulated pod, or a host: the worker polls it.
    Pod(Box<PodLink>),
    /// An interface of the system's, whose other end is here, or one of the host's own that the node sends and receives by, too.
    Tap(Box<Tap>),
    /// A socket of the system's, through which a node's tunnel leads.
    TunnelSocket(Box<TunnelSocket>),
}

/// A simulated pod at its port.
#[derive(Debug)]
pub struct PodLink {
    /// The pod.
    pub pod: Pod,
    /// The way to it.
    pub wire: Wire,
    /// The way from it; none while nobody ever asked for other than a perfect one.
    pub uplink: Option<Box<Uplink>>,
    /// When the worker is set to poll it next.
    pub scheduled: Option<Instant>,
    /// Frames that the pod has taken since it last ran.
    pub taken: usize,
}

impl PodLink {
    /// Makes the link of a pod by perfect cables.
    #[must_use]
    pub fn new(pod: Pod, wire: Wire) -> Self {
        Self { pod, wire, uplink: None, scheduled: None, taken: 0 }
    }

    /// Returns when the link wants to be looked at next, unless that is known already.
    pub fn schedule(&mut self, now: Instant) -> Option<Instant> {
        let up = self.uplink.as_ref().and_then(|uplink| uplink.wire.next_arrival());
        let next = [self.pod.next_poll(), self.wire.next_arrival(), up].into_iter().flatten().min();
        // The past means at once: in the next batch.
        let next = next.map(|next| next.max(now));
        let is_news = next.is_some_and(|next| self.scheduled.is_none_or(|set| next < set || set <= now));
        if !is_news {
            return None;
        }
        self.scheduled = next;
        next
    }
}

/// The way from a pod to its node.
#[derive(Debug)]
pub struct Uplink {
    /// Frames that the pod has sent and that are not on the cable yet.
    pub outbox: VecDeque<Frame>,
    /// The cable.
    pub wire: Wire,
}

/// A direction of a link, seen from the port at which it can be impaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Out of the port.
    Out,
    /// Out of the port, for frames that came to its node by this one.
    OutFrom(PortId),
    /// In by the port; a pod's only.
    In,
}

/// The worker's end of a pair of rings.
#[derive(Debug)]
pub struct Rings {
    /// Frames to the node.
    pub incoming: Consumer<Frame>,
    /// Frames from the node.
    pub outgoing: Producer<Frame>,
}

/// The other end of a [`Rings`] link.
#[derive(Debug)]
pub struct RingsPeer {
    /// Frames to the node.
    pub to_node: Producer<Frame>,
    /// Frames from the node.
    pub from_node: Consumer<Frame>,
}

/// Makes a pair of rings of `capacity` frames each way.
#[must_use]
pub fn rings(capacity: usize) -> (Rings, RingsPeer) {
    let (to_node, incoming) = crate::ring::ring(capacity);
    let (outgoing, from_node) = crate::ring::ring(capacity);
    (Rings { incoming, outgoing }, RingsPeer { to_node, from_node })
}

/// Lets so many bytes wait in the system at a socket, each way: beyond its limit only the privileged get, and less works, too.
fn widen(socket: &impl AsFd, bytes: usize) {
    let _ = set_socket_recv_buffer_size_force(socket, bytes)
        .or_else(|_| set_socket_recv_buffer_size(socket, bytes));
    let _ = set_socket_send_buffer_size_force(socket, bytes)
        .or_else(|_| set_socket_send_buffer_size(socket, bytes));
}
