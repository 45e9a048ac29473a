//! Where packets can be watched, and what is told of them there.
//!
//! The worker passes here only for frames with a trace mark, or while somebody listens; the control side reads
//! the events from the mailbox. Invariants: a point costs nothing while nobody listens; events of one frame
//! are in the order of its way. Allowed dependencies: `tables`, `neighbor`, `clock`, `ledger`. Read first:
//! `docs/architecture.md`, "Capture and trace points".

use crate::clock::Instant;
use crate::ledger::DropReason;
use crate::neighbor::Attachment;
use crate::tables::{NodeId, PortId, Tables};

/// A place where frames pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// The node's bridge: docker0.
    Bridge,
    /// The node's end of the tunnel: flannel0. Packets there have no Ethernet header.
    Tunnel,
    /// One of the node's interfaces: eth0.
    Interface(u8),
    /// The far end of a port: a pod's or host's eth0.
    Port(PortId),
    /// A pod's or host's loopback. Its Ethernet headers are of zeros, as Linux shows them.
    Loopback(PortId),
}

impl Point {
    /// Tells whether packets at the point have no Ethernet header.
    #[must_use]
    pub const fn is_raw(self) -> bool {
        match self {
            Self::Tunnel => true,
            Self::Bridge | Self::Interface(_) | Self::Port(_) | Self::Loopback(_) => false,
        }
    }

    /// Returns what the point belongs to and its own name there, as commands print them.
    #[must_use]
    pub fn names(self, node: NodeId, tables: &Tables) -> (String, String) {
        let at = tables.node(node);
        let node_name = || at.map_or_else(|| format!("node#{}", node.0), |node| node.name.to_string());
        let port_name = |port: PortId| {
            let port = tables.ports.get(&port).map(|port| port.name.to_string());
            port.unwrap_or_else(|| "removed".to_owned())
        };
        match self {
            Self::Bridge => {
                let bridge = at.and_then(|node| node.bridge.as_ref());
                (node_name(), bridge.map_or("bridge", |bridge| &bridge.name).to_owned())
            }
            Self::Tunnel => (node_name(), "flannel0".to_owned()),
            Self::Interface(index) => {
                let interface = at.and_then(|node| node.interfaces.get(usize::from(index)));
                (node_name(), interface.map_or("eth", |interface| &interface.name).to_owned())
            }
            Self::Port(port) => (port_name(port), "eth0".to_owned()),
            Self::Loopback(port) => (port_name(port), "lo".to_owned()),
        }
    }
}

impl From<Attachment> for Point {
    fn from(attachment: Attachment) -> Self {
        match attachment {
            Attachment::Bridge => Self::Bridge,
            Attachment::Interface(index) => Self::Interface(index),
        }
    }
}

/// What happened to a packet at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Left a pod or host.
    Send,
    /// Came in.
    Receive,
    /// Was forwarded by MAC.
    Bridge,
    /// Was flooded to all ports.
    Flood,
    /// Got another destination: a Service's backend, or a translation undone.
    TranslateDestination,
    /// Got another source: MASQUERADE, or a translation undone.
    TranslateSource,
    /// Was wrapped in a datagram to another node.
    Encapsulate,
    /// Was unwrapped.
    Decapsulate,
    /// Was put into another packet, to a backend: IP in IP.
    Wrap,
    /// Went out of an interface.
    Transmit,
    /// Was taken by the node itself.
    Consume,
    /// Was made by the node itself.
    Originate,
    /// Waits until the next hop's MAC is known.
    Resolve,
    /// Reached a pod or host.
    Deliver,
    /// Was dropped.
    Drop(DropReason),
}

impl Action {
    /// Returns the action's name, as tables and JSON have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Bridge => "bridge",
            Self::Flood => "flood",
            Self::TranslateDestination => "translate-destination",
            Self::TranslateSource => "translate-source",
            Self::Encapsulate => "encapsulate",
            Self::Decapsulate => "decapsulate",
            Self::Wrap => "wrap",
            Self::Transmit => "transmit",
            Self::Consume => "consume",
            Self::Originate => "originate",
            Self::Resolve => "resolve",
            Self::Deliver => "deliver",
            Self::Drop(_) => "drop",
        }
    }
}

/// One hop of a traced frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The frame's mark.
    pub mark: u32,
    /// Whether this is an ARP request for the MAC that the frame of the mark waits for, and not that frame.
    pub asks: bool,
    /// Which hop of the frame's it is: workers share no clock finer than a batch.
    pub hop: u16,
    /// When.
    pub time: Instant,
    /// At which node.
    pub node: NodeId,
    /// At which of its points.
    pub point: Point,
    /// What happened.
    pub action: Action,
}

/// A frame seen at a point somebody listens at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// When.
    pub time: Instant,
    /// Its bytes there: an Ethernet frame, or an IPv4 packet at a raw point.
    pub bytes: Vec<u8>,
}

/// What a capture saw since it was last asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Taken {
    /// The frames, oldest first.
    pub frames: Vec<Captured>,
    /// How many there was no room for after them.
    pub lost: u64,
}

impl Event {
    /// Tells whether what is shown of the frame begins with its IPv4 header: at points without Ethernet, and inside a
    /// node, between the old Ethernet header and the new.
    #[must_use]
    pub const fn is_packet(&self) -> bool {
        match self.action {
            Action::TranslateDestination | Action::TranslateSource | Action::Wrap | Action::Originate => true,
            Action::Send
            | Action::Receive
            | Action::Bridge
            | Action::Flood
            | Action::Encapsulate
            | Action::Decapsulate
            | Action::Transmit
            | Action::Consume
            | Action::Resolve
            | Action::Deliver
            | Action::Drop(_) => self.point.is_raw(),
        }
    }
}

/// A hop of a traced frame with the frame's first bytes there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The hop.
    pub event: Event,
    /// At most [`HEAD_LENGTH`] bytes, from IPv4 on where [`Event::is_packet`] and on `lo`, else from Ethernet on; none
    /// where the frame was not at hand.
    pub bytes: Vec<u8>,
}

/// Bytes of a [`Head`]: Ethernet, outer IPv4 and UDP, inner IPv4 and TCP with options fit.
pub const HEAD_LENGTH: usize = 144;
/// Events a worker keeps at most until the control side takes them.
const BACKLOG_LIMIT: usize = 1 << 16;
/// Bytes a worker keeps at most for one capture until the control side takes them.
pub const CAPTURE_LIMIT: usize = 16 << 20;

/// Somebody who listens at a point.
#[derive(Debug)]
struct Listener {
    capture: u32,
    node: NodeId,
    point: Point,
    taken: Taken,
    bytes: usize,
}

impl Listener {
    fn is_at(&self, node: NodeId, point: Point) -> bool {
        // The number of a port says which node it is at.
        let anywhere = matches!(point, Point::Port(_) | Point::Loopback(_));
        self.point == point && (anywhere || self.node == node)
    }

    fn keep(&mut self, time: Instant, bytes: &[u8]) {
        if self.bytes + bytes.len() > CAPTURE_LIMIT {
            self.taken.lost += 1;
            return;
        }
        self.bytes += bytes.len();
        self.taken.frames.push(Captured { time, bytes: bytes.to_vec() });
    }
}

/// What a worker's listeners asked for, and what there is for them.
#[derive(Debug, Default)]
pub struct Observer {
    listeners: Vec<Listener>,
    /// Hops of traced frames.
    pub events: Vec<Event>,
    /// Events lost because nobody took them.
    pub lost: u64,
    /// What traced frames looked like, while [`Observer::set_tracing`] asks for it.
    pub heads: Vec<Head>,
    tracing: bool,
}

impl Observer {
    /// Tells whether somebody listens anywhere.
    #[inline(always)]
    #[must_use]
    pub fn is_listening(&self) -> bool {
        !self.listeners.is_empty()
    }

    /// Has the heads of traced frames kept, and answers to traced frames traced, too; or ends that and forgets them.
    pub fn set_tracing(&mut self, on: bool) {
        self.tracing = on;
        self.heads.clear();
    }

    /// Tells whether answers to traced frames are traced.
    #[must_use]
    pub fn is_tracing(&self) -> bool {
        self.tracing
    }

    /// Starts a capture at a point.
    pub(crate) fn listen(&mut self, capture: u32, node: NodeId, point: Point) {
        let taken = Taken::default();
        self.listeners.push(Listener { capture, node, point, taken, bytes: 0 });
    }

    /// Ends a capture.
    pub(crate) fn ignore(&mut self, capture: u32) {
        self.listeners.retain(|listener| listener.capture != capture);
    }

    /// Tells whether somebody listens at a point of a node.
    #[must_use]
    pub fn listens_at(&self, node: NodeId, point: Point) -> bool {
        self.listeners.iter().any(|listener| listener.is_at(node, point))
    }

    /// Takes what one capture saw.
    pub fn take(&mut self, capture: u32) -> Taken {
        let Some(listener) = self.listeners.iter_mut().find(|listener| listener.capture == capture) else {
            return Taken::default();
        };
        listener.bytes = 0;
        std::mem::take(&mut listener.taken)
    }

    /// Notes a hop of a traced frame.
    pub fn note(&mut self, event: Event, bytes: &[u8]) {
        if self.events.len() >= BACKLOG_LIMIT {
            self.lost += 1;
            return;
        }
        self.events.push(event);
        if self.tracing {
            self.heads.push(Head { event, bytes: bytes[..bytes.len().min(HEAD_LENGTH)].to_vec() });
        }
    }

    /// Notes that a frame passed a point; `bytes` are the frame there, in the point's own form. Tells whether captures
    /// there show it for this action.
    pub fn pass(&mut self, event: Event, bytes: &[u8]) -> bool {
        if event.mark != 0 {
            self.note(event, bytes);
        }
        let shown = !bytes.is_empty() && Self::shows_frame(event.action);
        if shown {
            self.show(event.node, event.point, event.time, bytes);
        }
        shown
    }

    /// Shows a frame to whoever listens at a point.
    pub fn show(&mut self, node: NodeId, point: Point, time: Instant, bytes: &[u8]) {
        for listener in self.listeners.iter_mut().filter(|listener| listener.is_at(node, point)) {
            listener.keep(time, bytes);
        }
    }

    /// A capture shows each frame once at its point: on the way in or out, not for each thing done to it.
    const fn shows_frame(action: Action) -> bool {
        match action {
            Action::Send
            | Action::Receive
            | Action::Bridge
            | Action::Flood
            | Action::Encapsulate
            | Action::Decapsulate
            | Action::Transmit
            | Action::Deliver => true,
            Action::TranslateDestination
            | Action::TranslateSource
            | Action::Wrap
            | Action::Consume
            | Action::Originate
            | Action::Resolve
            | Action::Drop(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(point: Point) -> Event {
        Event {
            mark: 0,
            asks: false,
            hop: 0,
            time: Instant::ZERO,
            node: NodeId(1),
            point,
            action: Action::Bridge,
        }
    }

    #[test]
    fn a_capture_takes_its_own_frames_and_counts_what_it_has_no_room_for() {
        let mut observer = Observer::default();
        observer.listen(1, NodeId(1), Point::Bridge);
        observer.listen(2, NodeId(1), Point::Tunnel);
        observer.listen(3, NodeId(2), Point::Bridge);
        let frame = vec![0; CAPTURE_LIMIT / 2];
        for _ in 0..3 {
            observer.pass(event(Point::Bridge), &frame);
        }
        observer.pass(event(Point::Tunnel), &[1, 2]);
        let taken = [1, 2, 3, 1].map(|capture| {
            let Taken { frames, lost } = observer.take(capture);
            (frames.len(), lost)
        });
        assert_eq!(taken, [(2, 1), (1, 0), (0, 0), (0, 0)]);
    }

    #[test]
    fn heads_of_marked_frames_are_kept_while_somebody_asks_for_them() {
        let mut observer = Observer::default();
        let marked = Event { mark: 7, hop: 1, ..event(Point::Bridge) };
        observer.pass(marked, &[1; 200]);
        assert!(observer.heads.is_empty());
        observer.set_tracing(true);
        observer.pass(event(Point::Bridge), &[2; 200]);
        observer.pass(Event { hop: 2, ..marked }, &[3; 200]);
        let event = Event { hop: 2, ..marked };
        assert_eq!(observer.heads, [Head { event, bytes: vec![3; HEAD_LENGTH] }]);
        observer.set_tracing(false);
        assert!(observer.heads.is_empty());
        assert_eq!(observer.events.len(), 2);
    }
}
