//! One binding: what was chosen for a connection, and what its packets change.
//!
//! The table of bindings makes and asks it. Invariants: its translation never changes; what a packet of a known flow
//! touches is in its first cache line. Allowed dependencies: `flow`, `clock`, `wire`. Read first: `binding.rs`.

use std::net::Ipv4Addr;
use std::time::Duration;

use flatnet_proxy::{Forwarding, Frontend, NodePort, Protocol, Row};

use super::tcp::{Connection, Segment, TcpState};
use super::timeout::{AT_REST, STREAM_AGE, Traffic, timeout};
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
    /// Time of the first packet.
    pub(super) begun: Instant,
    /// Time of the last packet that renewed it.
    pub last_seen: Instant,
    pub(super) connection: Connection,
    /// What came back.
    pub traffic: Traffic,
    /// How it behaves.
    pub profile: Profile,
    /// How long it lives after the last packet in any case, seconds; see [`Binding::ends`].
    pub(super) lifetime: u16,
    /// The mapping it belongs to, in profile `rfc`. Of all fields it has the most values to spare: by them the compiler tells a
    /// place that is a binding from one that is not, so that this is read for every packet.
    pub(super) mapping: Option<u32>,
    /// The first packet's tuple on arrival.
    pub original: HalfKey,
    /// The answer's tuple on arrival.
    pub reply: HalfKey,
    /// The backend, when it is a Service's.
    pub served: Option<Served>,
    /// How answers come here.
    pub answers: Answers,
}

const _: () = assert!(std::mem::offset_of!(Binding, mapping) + size_of::<Option<u32>>() <= 56);

impl Binding {
    pub(super) fn new(opening: &Opening, first: &Segment, now: Instant) -> Self {
        let Opening { original, reply, answers, profile, mapping, served } = *opening;
        let connection = Connection::before(first);
        let mut made = Self {
            original,
            reply,
            answers,
            profile,
            served,
            connection,
            mapping,
            traffic: Traffic::Unreplied,
            begun: now,
            last_seen: now,
            lifetime: 0,
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

    /// Returns when it ends unless a packet comes.
    #[must_use]
    pub fn ends(&self) -> Instant {
        let is_at_rest = self.profile == Profile::Linux
            && self.traffic == Traffic::Assured
            && self.is_active()
            && self.connection.is_at_rest();
        if is_at_rest { self.last_seen + AT_REST } else { self.expires() }
    }

    /// Tells whether it has ended. Who comes late, and only then, looks whether it is at rest.
    #[inline(always)]
    pub(super) fn has_ended(&self, now: Instant) -> bool {
        self.expires() <= now && self.ends() <= now
    }

    /// Until when it lives in any case, without packets.
    #[inline(always)]
    pub(super) fn expires(&self) -> Instant {
        self.last_seen + Duration::from_secs(u64::from(self.lifetime))
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
        let before = self.connection.state;
        if self.original.tuple.protocol == u8::from(IpProtocol::Tcp) {
            self.connection.note(half, segment, self.profile);
        }
        let opens = [before, self.connection.state].map(|state| state == TcpState::SynSent);
        // What is opened anew from the same ports is another connection.
        if opens == [false, true] {
            (self.traffic, self.begun) = (Traffic::Unreplied, now);
        }
        // Who opens again and again and is not answered does not live by that.
        let is_again = segment.flags.syn() && self.traffic == Traffic::Unreplied && opens == [true, true];
        if self.profile == Profile::Rfc || !is_again {
            self.live_on(now);
        }
        if half == Half::Reply {
            self.reply();
        }
    }

    /// Presumes answers that are not seen here: LVS's table for `IP_VS_DIR_INPUT_ONLY`.
    pub(super) fn presume(&mut self, half: Half, segment: &Segment) {
        if half == Half::Original && segment.flags.ack() && !segment.flags.syn() {
            self.connection.presume();
            self.reply();
        }
    }

    /// Notes that something came back; that counts from the next packet on.
    pub(super) fn reply(&mut self) {
        if self.traffic == Traffic::Unreplied {
            self.traffic = Traffic::Replied;
        }
    }

    /// Renews it for a packet whose state was noted.
    pub(super) fn live_on(&mut self, now: Instant) {
        let protocol = IpProtocol::from(self.original.tuple.protocol);
        let is_stream = match protocol {
            IpProtocol::Tcp => self.connection.state == TcpState::Established,
            IpProtocol::Udp => now > self.begun + STREAM_AGE,
            IpProtocol::Icmp | IpProtocol::Unknown(_) => false,
        };
        if self.traffic == Traffic::Replied && is_stream {
            self.traffic = Traffic::Assured;
        }
        self.lifetime = timeout(self.profile, protocol, self.connection.state, self.traffic);
        self.renew(now);
    }

    /// Renews it for a packet that the cache answered: it may be an answer, or make a stream of what goes both ways. False when
    /// it has ended.
    #[inline(never)]
    pub(super) fn renew_by(&mut self, half: Half, now: Instant) -> bool {
        if self.has_ended(now) {
            return false;
        }
        match (self.traffic, half) {
            (Traffic::Assured, _) | (Traffic::Unreplied, Half::Original) => self.renew(now),
            (Traffic::Replied, _) | (Traffic::Unreplied, Half::Reply) => {
                self.live_on(now);
                if half == Half::Reply {
                    self.reply();
                }
            }
        }
        true
    }

    /// Renews it for a packet that changes nothing.
    #[inline(always)]
    pub(super) fn renew(&mut self, now: Instant) {
        self.last_seen = now;
    }
}
