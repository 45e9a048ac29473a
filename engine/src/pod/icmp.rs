//! The pod's ICMP: echo sockets, echo replies, and errors in both directions.
//!
//! `stack.rs` hands it what comes; it answers requests, queues replies for `ping`, and turns an error into the failure of the
//! socket whose packet it quotes.
//!
//! Invariants: no error is sent about an error, a fragment's rest, or a packet that was for everybody; what a foreign error
//! quotes must be a packet of a socket that exists. Depends on `device`, `ip`, `wire`.
//! Read first: RFC 792, RFC 1122 section 3.2.2, RFC 1191.

use super::device::Device;
use super::ip;
use super::socket::{Event, Failure, Owner, Report};
use super::tcp::Io;
use crate::clock::Instant;
use crate::link::pod_ring::Outbox;
use crate::random::Random;
use crate::wire::icmpv4::{HEADER_LENGTH, code};
use crate::wire::{IcmpPacket, IcmpType, IpProtocol, Ipv4Packet};
use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;

/// Messages that wait at one echo socket.
const QUEUE_LIMIT: usize = 256;
/// Octets of an error, IPv4 header included (RFC 1812, 4.3.2.3).
const ERROR_LENGTH: usize = 576;

/// What an echo socket received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// An answer.
    Reply {
        /// Who answered.
        from: Ipv4Addr,
        /// The TTL that was left.
        ttl: u8,
        /// Which request it answers.
        sequence: u16,
        /// What came back.
        payload: Vec<u8>,
    },
    /// A request failed.
    Failed {
        /// What happened, and who said so.
        report: Report,
        /// Which request.
        sequence: u16,
    },
}

#[derive(Debug)]
struct Socket {
    owner: Owner,
    queue: VecDeque<Message>,
}

/// The echo sockets by identifier.
#[derive(Debug)]
pub(super) struct EchoTable {
    sockets: BTreeMap<u16, Socket>,
    random: Random,
}

/// An echo request or reply.
#[derive(Debug, Clone, Copy)]
pub(super) struct Echo<'a> {
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    pub(super) identifier: u16,
    pub(super) sequence: u16,
    pub(super) payload: &'a [u8],
    pub(super) ttl: u8,
    pub(super) traced: bool,
}

impl EchoTable {
    /// Makes an empty table.
    pub(super) fn new(seed: u64) -> Self {
        EchoTable { sockets: BTreeMap::new(), random: Random::new(seed) }
    }

    /// Gives an owner an identifier; `None` when too many are taken.
    pub(super) fn open(&mut self, owner: Owner) -> Option<u16> {
        for _ in 0..256 {
            let identifier = self.random.next_u16();
            if let std::collections::btree_map::Entry::Vacant(slot) = self.sockets.entry(identifier) {
                slot.insert(Socket { owner, queue: VecDeque::new() });
                return Some(identifier);
            }
        }
        None
    }

    /// Gives all identifiers of an owner back.
    pub(super) fn close_owner(&mut self, owner: Owner) {
        self.sockets.retain(|_, socket| socket.owner != owner);
    }

    /// Takes the next message of a socket.
    pub(super) fn receive(&mut self, identifier: u16) -> Option<Message> {
        self.sockets.get_mut(&identifier)?.queue.pop_front()
    }

    /// Hands a message to a socket; false when there is none.
    pub(super) fn deliver(
        &mut self,
        identifier: u16,
        message: Message,
        events: &mut VecDeque<(Owner, Event)>,
    ) -> bool {
        let Some(socket) = self.sockets.get_mut(&identifier) else { return false };
        if socket.queue.len() < QUEUE_LIMIT {
            socket.queue.push_back(message);
            events.push_back((socket.owner, Event::Echo));
        }
        true
    }
}

/// Sends an echo request.
pub(super) fn send_request(device: &mut Device, echo: &Echo<'_>, now: Instant, out: &mut Outbox<'_>) {
    send_echo(device, IcmpType::EchoRequest, echo, now, out);
}

/// Answers an echo request.
pub(super) fn send_reply(device: &mut Device, echo: &Echo<'_>, now: Instant, out: &mut Outbox<'_>) {
    send_echo(device, IcmpType::EchoReply, echo, now, out);
}

fn send_echo(device: &mut Device, kind: IcmpType, echo: &Echo<'_>, now: Instant, out: &mut Outbox<'_>) {
    let mut bytes = vec![0; HEADER_LENGTH + echo.payload.len()];
    let mut packet = IcmpPacket::new_unchecked(&mut bytes[..]);
    packet.set_type(kind, 0);
    packet.set_identifier(echo.identifier);
    packet.set_sequence(echo.sequence);
    packet.payload_mut().copy_from_slice(echo.payload);
    packet.fill_checksum();
    let header = ip::Header {
        source: echo.source,
        destination: echo.destination,
        protocol: IpProtocol::Icmp,
        ttl: echo.ttl,
        dont_fragment: kind == IcmpType::EchoRequest,
        traced: echo.traced,
    };
    ip::send(device, &header, &bytes, now, out);
}

/// Tells a packet's sender that it cannot be delivered, where that is allowed (RFC 1122, 3.2.2).
pub(super) fn send_unreachable(reason: u8, about: &[u8], io: &mut Io<'_, '_>) {
    let packet = Ipv4Packet::new_unchecked(about);
    let (source, destination) = (packet.source(), packet.destination());
    let is_error = packet.protocol() == IpProtocol::Icmp
        && IcmpPacket::new_checked(packet.payload()).is_ok_and(|icmp| icmp.is_error());
    let sender_is_one = !source.is_unspecified() && !source.is_multicast() && !io.device.is_broadcast(source);
    let was_for_one = !destination.is_multicast() && !io.device.is_broadcast(destination);
    if is_error || packet.fragment_offset() != 0 || !was_for_one || !sender_is_one {
        return;
    }
    // That nobody listens says the other end itself; what is on the way there, the router.
    let is_others = reason != code::PORT_UNREACHABLE && !io.device.is_local(destination);
    let quoted = &about[..about.len().min(ERROR_LENGTH - crate::wire::ipv4::HEADER_LENGTH - HEADER_LENGTH)];
    let mut bytes = vec![0; HEADER_LENGTH + quoted.len()];
    let mut icmp = IcmpPacket::new_unchecked(&mut bytes[..]);
    icmp.set_type(IcmpType::DestinationUnreachable, reason);
    icmp.clear_unused();
    icmp.payload_mut().copy_from_slice(quoted);
    icmp.fill_checksum();
    let header = ip::Header {
        source: if is_others { io.device.address } else { destination },
        destination: source,
        protocol: IpProtocol::Icmp,
        ttl: ip::DEFAULT_TTL,
        dont_fragment: false,
        traced: false,
    };
    ip::send(io.device, &header, &bytes, io.now, io.out);
}

/// Reads what an error says.
pub(super) fn failure(icmp: &IcmpPacket<&[u8]>) -> Failure {
    let other = Failure::Other(icmp.icmp_type().into(), icmp.code());
    match icmp.icmp_type() {
        IcmpType::DestinationUnreachable => match icmp.code() {
            code::NETWORK_UNREACHABLE => Failure::NetworkUnreachable,
            code::HOST_UNREACHABLE => Failure::HostUnreachable,
            code::PROTOCOL_UNREACHABLE => Failure::ProtocolUnreachable,
            code::PORT_UNREACHABLE => Failure::PortUnreachable,
            code::FRAGMENTATION_NEEDED => Failure::FragmentationNeeded(icmp.next_hop_mtu()),
            9 | 10 | code::ADMINISTRATIVELY_PROHIBITED => Failure::Prohibited,
            _ => other,
        },
        IcmpType::TimeExceeded if icmp.code() == code::TTL_EXCEEDED => Failure::TtlExceeded,
        IcmpType::TimeExceeded
        | IcmpType::EchoReply
        | IcmpType::SourceQuench
        | IcmpType::Redirect
        | IcmpType::EchoRequest
        | IcmpType::ParameterProblem
        | IcmpType::TimestampRequest
        | IcmpType::TimestampReply
        | IcmpType::Unknown(_) => other,
    }
}
