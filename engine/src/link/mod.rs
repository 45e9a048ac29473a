//! Where frames come from and go.
//!
//! The worker that owns a link takes frames from it in batches and gives it frames to send. Invariants: a link
//! gives a frame back with a reason when it cannot send it; nothing here decides anything. Allowed
//! dependencies: `frame`, `ring`, `pod`. Read first: `docs/architecture.md`, "Links".

pub mod pod_ring;
pub mod wire;

use crate::clock::Instant;
use crate::frame::Frame;
use crate::pod::Pod;
use crate::ring::{Consumer, Producer};
use crate::tables::PortId;
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
}

/// A simulated pod at its port.
#[derive(Debug)]
pub struct PodLink {
    /// The pod.
    pub pod: Pod,
    /// The way to it.
    pub wire: Wire,
    /// When the worker is set to poll it next.
    pub scheduled: Option<Instant>,
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
