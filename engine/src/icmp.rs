//! ICMP errors: which one tells a sender about a drop, how it is made, and how a forwarded one is translated.
//!
//! The worker asks for a notice when `decide` refuses a packet; `decide` asks what an error quotes. Invariants:
//! no error answers an error, a later fragment, a broadcast or a packet without a sender (RFC 1122, 3.2.2);
//! an error quotes as much as fits 576 bytes (RFC 1812, 4.3.2.3). Allowed dependencies: `wire`, `ledger`,
//! `rewrite`. Read first: RFC 792, RFC 1122, RFC 5508 section 4.

use std::net::Ipv4Addr;

use crate::flow::Tuple;
use crate::ledger::DropReason;
use crate::rewrite::translate_packet;
use crate::wire::checksum::{Difference, ones_complement_sum};
use crate::wire::icmpv4::{self, code};
use crate::wire::{
    EthernetFrame, IcmpPacket, IcmpType, IpProtocol, Ipv4Packet, TcpFlags, TcpSegment, ethernet, ipv4, tcp,
};

/// The longest error, bytes of the whole packet.
const ERROR_LIMIT: usize = 576;
/// Internetwork control, the type of service Linux gives its errors (RFC 1812, 4.3.2.5).
const SERVICE: u8 = 0xc0;
/// TTL of what a node makes itself.
pub const ORIGINATED_TTL: u8 = 64;

/// How a sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// By an ICMP error.
    Error {
        /// Its type.
        kind: IcmpType,
        /// Its code.
        code: u8,
        /// The next hop's MTU, for fragmentation needed.
        mtu: u16,
    },
    /// By a TCP reset, from the address that was asked.
    Reset,
}

/// Chooses the notice for a drop; `None` where the sender is not told.
#[must_use]
#[expect(clippy::too_many_lines, reason = "each reason is named, so that a new one must be thought about")]
pub fn notice(reason: DropReason, protocol: u8, mtu: u16) -> Option<Notice> {
    let unreachable = |code| Some(Notice::Error { kind: IcmpType::DestinationUnreachable, code, mtu: 0 });
    match reason {
        DropReason::TtlExpired => {
            Some(Notice::Error { kind: IcmpType::TimeExceeded, code: code::TTL_EXCEEDED, mtu: 0 })
        }
        DropReason::FragmentTimeout => {
            Some(Notice::Error { kind: IcmpType::TimeExceeded, code: code::REASSEMBLY_EXCEEDED, mtu: 0 })
        }
        DropReason::FragmentationNeeded => {
            let (kind, code) = (IcmpType::DestinationUnreachable, code::FRAGMENTATION_NEEDED);
            Some(Notice::Error { kind, code, mtu })
        }
        DropReason::NoRoute | DropReason::NoLease | DropReason::LeaseOffLink => {
            unreachable(code::NETWORK_UNREACHABLE)
        }
        DropReason::NeighborUnresolved => unreachable(code::HOST_UNREACHABLE),
        DropReason::HostUnsupported => unreachable(code::PROTOCOL_UNREACHABLE),
        DropReason::NoBackend
        | DropReason::ServicePortClosed
        | DropReason::ServiceNoConnection
        | DropReason::HostClosed => match IpProtocol::from(protocol) {
            IpProtocol::Tcp => Some(Notice::Reset),
            IpProtocol::Udp | IpProtocol::Icmp | IpProtocol::Unknown(_) => {
                unreachable(code::PORT_UNREACHABLE)
            }
        },
        DropReason::RuntFrame
        | DropReason::MalformedOffload
        | DropReason::MulticastSource
        | DropReason::MalformedArp
        | DropReason::MalformedIpv4
        | DropReason::Ipv4Checksum
        | DropReason::MalformedTransport
        | DropReason::NotForUs
        | DropReason::UnhandledProtocol
        | DropReason::SpoofedMac
        | DropReason::SpoofedAddress
        | DropReason::SpoofedArp
        | DropReason::Martian
        | DropReason::RouterAdvertisement
        | DropReason::FloodLimit
        | DropReason::BridgeSamePort
        | DropReason::BridgeNoPort
        | DropReason::MtuExceeded
        | DropReason::FragmentMalformed
        | DropReason::FragmentTiny
        | DropReason::FragmentOverlap
        | DropReason::FragmentLimit
        | DropReason::NeighborQueueFull
        | DropReason::TunnelMalformed
        | DropReason::TunnelForeignNetwork
        | DropReason::TunnelForeignMac
        | DropReason::TunnelBroadcast
        | DropReason::TunnelImitated
        | DropReason::TunnelChecksum
        | DropReason::TransportChecksum
        | DropReason::TunnelForeignSource
        | DropReason::TunnelForeignDestination
        | DropReason::NoLocalBackend
        | DropReason::DirectRoutingOffSegment
        | DropReason::ServiceUnsupported
        | DropReason::BindingQuota
        | DropReason::BindingTableFull
        | DropReason::TuplesExhausted
        | DropReason::Untranslatable
        | DropReason::NatFiltered
        | DropReason::TcpResetOutOfWindow
        | DropReason::IcmpErrorUnmatched
        | DropReason::LinkDown
        | DropReason::LinkLoss
        | DropReason::LinkMtu
        | DropReason::LinkQueueFull
        | DropReason::PodStopped
        | DropReason::WorkerRingFull
        | DropReason::NoUplink
        | DropReason::PoolEmpty => None,
    }
}

/// Tells whether an error may answer a frame whose IPv4 header is at `network`.
#[must_use]
pub fn may_answer(frame: &[u8], network: usize) -> bool {
    let Ok(packet) = Ipv4Packet::new_quoted(&frame[network..]) else { return false };
    let source = packet.source();
    let sender_is_one =
        !source.is_unspecified() && !source.is_loopback() && !source.is_multicast() && !source.is_broadcast();
    let sent_to_one = !EthernetFrame::new_unchecked(frame).destination().is_multicast()
        && !packet.destination().is_multicast()
        && !packet.destination().is_broadcast();
    sender_is_one && sent_to_one && !is_error(&frame[network..]) && packet.fragment_offset() == 0
}

/// Tells whether a packet, whole or quoted, is an ICMP error.
#[must_use]
pub fn is_error(packet: &[u8]) -> bool {
    Ipv4Packet::new_quoted(packet).is_ok_and(|packet| {
        packet.protocol() == IpProtocol::Icmp
            && IcmpPacket::new_checked(packet.payload()).is_ok_and(|icmp| !icmp.is_query())
    })
}

/// Returns how long the error about a packet is.
#[must_use]
pub fn error_length(quoted: &[u8]) -> usize {
    let header = ipv4::HEADER_LENGTH + icmpv4::HEADER_LENGTH;
    let whole = usize::from(Ipv4Packet::new_unchecked(quoted).total_length()).min(quoted.len());
    header + whole.min(ERROR_LIMIT - header)
}

/// Writes the error about `quoted` into `packet`, which is [`error_length`] bytes long.
pub fn write_error(
    packet: &mut [u8],
    source: Ipv4Addr,
    quoted: &[u8],
    (kind, code, mtu): (IcmpType, u8, u16),
    identification: u16,
) {
    let to = Ipv4Packet::new_unchecked(quoted).source();
    write_header(packet, source, to, IpProtocol::Icmp, identification);
    let mut header = Ipv4Packet::new_unchecked(&mut *packet);
    header.set_service(SERVICE);
    header.fill_header_checksum();
    let mut icmp = IcmpPacket::new_unchecked(&mut packet[ipv4::HEADER_LENGTH..]);
    icmp.clear_unused();
    icmp.set_type(kind, code);
    if mtu > 0 {
        icmp.set_next_hop_mtu(mtu);
    }
    let room = icmp.payload_mut();
    let length = room.len();
    room.copy_from_slice(&quoted[..length]);
    icmp.fill_checksum();
}

/// Bytes of a TCP reset's packet.
pub const RESET_LENGTH: usize = ipv4::HEADER_LENGTH + tcp::HEADER_LENGTH;

/// Writes the reset that answers a TCP packet (RFC 9293, 3.5.2); `None` when that is a reset itself.
#[must_use]
pub fn write_reset(packet: &mut [u8], refused: &[u8], identification: u16) -> Option<()> {
    let asked = Ipv4Packet::new_checked(refused).ok()?;
    let segment = TcpSegment::new_checked(asked.payload()).ok()?;
    let flags = segment.flags();
    if flags.rst() {
        return None;
    }
    let length = segment.payload().len() as u32 + u32::from(flags.syn()) + u32::from(flags.fin());
    let (source, destination) = (asked.destination(), asked.source());
    write_header(packet, source, destination, IpProtocol::Tcp, identification);
    let mut reset = TcpSegment::new_unchecked(&mut packet[ipv4::HEADER_LENGTH..]);
    reset.set_source_port(segment.destination_port());
    reset.set_destination_port(segment.source_port());
    reset.set_header_length(tcp::HEADER_LENGTH);
    reset.set_window(0);
    reset.set_urgent(0);
    if flags.ack() {
        reset.set_sequence(segment.acknowledgement());
        reset.set_acknowledgement(0);
        reset.set_flags(TcpFlags::RST);
    } else {
        reset.set_sequence(0);
        reset.set_acknowledgement(segment.sequence().wrapping_add(length));
        reset.set_flags(TcpFlags::RST.with(TcpFlags::ACK));
    }
    reset.fill_checksum(source, destination);
    Some(())
}

/// Returns how long the answer to an echo request is: the request without its options.
#[must_use]
pub fn echo_reply_length(request: &[u8]) -> usize {
    ipv4::HEADER_LENGTH + Ipv4Packet::new_unchecked(request).payload().len()
}

/// Writes the answer to an echo request (RFC 792), which is [`echo_reply_length`] bytes long.
pub fn write_echo_reply(packet: &mut [u8], request: &[u8], identification: u16) {
    let asked = Ipv4Packet::new_unchecked(request);
    write_header(packet, asked.destination(), asked.source(), IpProtocol::Icmp, identification);
    let payload = asked.payload();
    let reply = &mut packet[ipv4::HEADER_LENGTH..];
    reply.copy_from_slice(payload);
    let mut icmp = IcmpPacket::new_unchecked(reply);
    icmp.set_type(IcmpType::EchoReply, 0);
    icmp.fill_checksum();
}

fn write_header(
    packet: &mut [u8],
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: IpProtocol,
    identification: u16,
) {
    let length = packet.len() as u16;
    packet[..ipv4::HEADER_LENGTH].fill(0);
    packet[0] = 0x45;
    let mut header = Ipv4Packet::new_unchecked(packet);
    header.set_total_length(length);
    header.set_identification(identification);
    header.set_time_to_live(ORIGINATED_TTL);
    header.set_protocol(protocol);
    header.set_source(source);
    header.set_destination(destination);
    header.fill_header_checksum();
}

/// How a forwarded error is translated: the quoted packet back to what its sender sent, the outer addresses to
/// match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorTranslation {
    /// The quoted packet's tuple on arrival.
    pub quoted: Tuple,
    /// Its tuple afterwards.
    pub original: Tuple,
    /// The outer source afterwards.
    pub source: u32,
    /// The outer destination afterwards.
    pub destination: u32,
}

/// Translates an ICMP error in place (RFC 5508, 4.2): the quoted headers, their checksums, then the error's own by
/// difference, so that a wrong one stays wrong.
pub fn translate_error(packet: &mut [u8], translation: &ErrorTranslation) {
    let header = Ipv4Packet::new_unchecked(&mut *packet);
    let (length, total) = (header.header_length(), usize::from(header.total_length()));
    let total = total.min(packet.len());
    let (header, message) = packet[..total].split_at_mut(length);
    if let Some(quote) = message.get_mut(icmpv4::HEADER_LENGTH..) {
        let before = ones_complement_sum(quote);
        translate_packet(quote, &translation.quoted, &translation.original);
        let difference = Difference::default().replace_u16(before, ones_complement_sum(quote));
        let mut icmp = IcmpPacket::new_unchecked(message);
        icmp.set_checksum(difference.apply(icmp.checksum()));
    }
    let mut outer = Ipv4Packet::new_unchecked(header);
    outer.set_source(Ipv4Addr::from_bits(translation.source));
    outer.set_destination(Ipv4Addr::from_bits(translation.destination));
    outer.fill_header_checksum();
}

/// Returns the quoted packet of the error in a frame, without the error's own headers.
#[must_use]
pub fn quote(packet: &[u8]) -> Option<&[u8]> {
    let error = Ipv4Packet::new_checked(packet).ok()?;
    let range = error.header_length() + icmpv4::HEADER_LENGTH..usize::from(error.total_length());
    packet.get(range)
}

/// Bytes in front of a packet that a node makes: room for an Ethernet header.
pub const LINK_LENGTH: usize = ethernet::HEADER_LENGTH;
