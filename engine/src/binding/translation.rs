//! One binding: what was chosen for a connection, and what its packets change.
//!
//! The table of bindings makes and asks it. Invariants: its translation never changes; what a packet of a known flow
//! touches is in its first cache line. Allowed dependencies: `flow`, `clock`, `wire`. Read first: `binding.rs`.

use std::net::Ipv4Addr;
use std::time::Duration;

use flatnet_proxy::{Forwarding, Frontend, NodePort, Protocol, Row};

use super::tcp::{Connection, Segment, TcpState};
use super::timeout::timeout;
use super::{Answers, Half, HalfKey, Profile};
use crate::clock::Instant;
use crate::flow::Tuple;
use crate::wire::IpProtocol;

/// A binding to be made.
#[derive(Debug, Clone, Copy)]
pub struct Opening {
    /// The tuple on arrival of packets from the client.
    pub original: HalfKey,
    /// The answers' tuple on arrival.
    pub reply: HalfKey,
    /// How answers come here.
    pub answers: Answers,
    /// How it behaves.
    pub profile: Profile,
    /// The mapping it belongs to, in profile `rfc`.
    pub mapping: Option<u32>,
    /// The backend, when it is a Service's.
    pub served: Option<Served>,
}

/// The backend that a Service chose for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// How packets get there.
    pub forwarding: Forwarding,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its port.
    pub port: u16,
    /// Under which number its connections are counted; [`crate::load::UNCOUNTED`] if they are not.
    pub counter: u32,
}

/// One connection's translation. What a packet of a known flow reads and writes stands first: it is one cache line, with
/// the place's generation.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Binding {
    /// When it ends unless a packet comes.
    pub expires: Instant,
    /// Time of the last packet.
    pub last_seen: Instant,
    pub(super) connection: Connection,
    /// Whether an answer was seen.
    pub answered: bool,
    /// How it behaves.
    pub profile: Profile,
    /// How answers come here.
    pub answers: Answers,
    /// What [`Binding::timeout`] said last, seconds.
    pub(super) lifetime: u32,
    /// The mapping it belongs to, in profile `rfc`. Of all fields it has the most values to spare: by them the compiler tells a
    /// place that is a binding from one that is not, so that this is read for every packet.
    pub(super) mapping: Option<u32>,
    /// The first packet's tuple on arrival.
    pub original: HalfKey,
    /// The answer's tuple on arrival.
    pub reply: HalfKey,
    /// The backend, when it is a Service's.
    pub served: Option<Served>,
}

const _: () = assert!(std::mem::offset_of!(Binding, mapping) + size_of::<Option<u32>>() <= 56);

impl Binding {
    pub(super) fn new(opening: &Opening, first: &Segment, now: Instant) -> Self {
        let Opening { original, reply, answers, profile, mapping, served } = *opening;
        let connection = Connection::before(first);
        let (expires, last_seen, lifetime) = (now, now, 0);
        let mut made = Self {
            original,
            reply,
            answers,
            profile,
            served,
            connection,
            mapping,
            answered: false,
            expires,
            last_seen,
            lifetime,
        };
        made.live_on(now);
        made
    }

    /// Returns the tuple that a packet of this half has after translation.
    #[must_use]
    pub fn translated(&self, half: Half) -> Tuple {
        match half {
            Half::Original => self.reply.tuple.reversed(),
            Half::Reply => self.original.tuple.reversed(),
        }
    }

    /// Returns the state of a TCP connection.
    #[must_use]
    pub fn tcp_state(&self) -> TcpState {
        self.connection.state
    }

    /// Returns how long it lives without packets.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        let protocol = IpProtocol::from(self.original.tuple.protocol);
        timeout(self.profile, protocol, self.connection.state, self.answered)
    }

    /// Tells whether a machine is one of its ends: as the client, or as the backend that was chosen.
    #[must_use]
    pub fn is_with(&self, address: Ipv4Addr) -> bool {
        [self.original.tuple.source, self.reply.tuple.source].contains(&address.to_bits())
            || self.served.is_some_and(|served| served.address == address)
    }

    /// Tells whether it leads a Service's UDP to this backend.
    #[must_use]
    pub fn is_udp_to(&self, address: Ipv4Addr, port: u16) -> bool {
        self.original.tuple.protocol == u8::from(IpProtocol::Udp)
            && self.served.is_some_and(|served| (served.address, served.port) == (address, port))
    }

    /// Tells whether the client asked for one of a Service's addresses, or for one of its ports on a node.
    #[must_use]
    pub fn is_of(&self, service: &Row) -> bool {
        let Tuple { destination, destination_port: port, protocol, .. } = self.original.tuple;
        let Some(protocol) = Protocol::from_number(protocol) else { return false };
        let frontend = Frontend { address: Ipv4Addr::from_bits(destination), port, protocol };
        service.frontends.contains(&frontend) || service.node_ports.contains(&NodePort { port, protocol })
    }

    /// Tells whether it counts as an active connection, as ipvsadm(8) has it: established.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.original.tuple.protocol == u8::from(IpProtocol::Tcp)
            && self.connection.state == TcpState::Established
    }

    pub(super) fn note(&mut self, half: Half, segment: &Segment, now: Instant) {
        self.answered |= half == Half::Reply;
        if self.original.tuple.protocol == u8::from(IpProtocol::Tcp) {
            self.connection.note(half, segment, self.profile);
        }
        self.live_on(now);
    }

    pub(super) fn live_on(&mut self, now: Instant) {
        let timeout = self.timeout();
        self.last_seen = now;
        self.expires = now + timeout;
        self.lifetime = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
    }
}
