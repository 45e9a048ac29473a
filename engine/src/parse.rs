//! One pass over a frame: offsets, flow key and class, or a drop reason.
//!
//! The worker calls it for each frame of a batch, before the cache is asked; nothing behind it reads lengths
//! again. Invariants: what is returned lies inside the frame; a key is only made of checked headers. Allowed
//! dependencies: `wire`, `flow`, `ledger`, `tunnel`. Read first: RFC 894, 791, 9293, 768, 792, 7348.

pub use end::Vtep;
pub(crate) use glance::{at_bridge, at_interface, at_vxlan};

use std::net::Ipv4Addr;

use crate::flow::{FlowKey, LinkGuard, Tuple};
use crate::ledger::DropReason;
use crate::tunnel;
use crate::wire::{
    EtherType, EthernetFrame, IcmpPacket, IpProtocol, Ipv4Packet, MacAddress, TcpFlags, TcpSegment,
    UdpDatagram, ethernet, icmpv4::Type, ipv6, udp,
};

mod end;
mod glance;

/// What a TCP segment that opens or ends a connection has: each is decided by itself.
const NEVER_CACHED: TcpFlags = TcpFlags::SYN.with(TcpFlags::FIN).with(TcpFlags::RST);

/// What a parser must know of the port a frame came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IngressPort {
    /// The port's number, below 2²³.
    pub port: u32,
    /// How frames are taken there.
    pub side: Side,
}

/// How frames are taken at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A port of docker0.
    Bridge,
    /// An interface of a router or node: takes what is sent to its MAC.
    Interface {
        /// Its MAC.
        mac: MacAddress,
        /// Where udp's datagrams arrive: address and UDP port.
        tunnel: Option<(Ipv4Addr, u16)>,
    },
    /// A switch's port: frames are forwarded by MAC, whatever they carry.
    Switch,
    /// An interface of a node whose tunnel is a VXLAN.
    Vxlan {
        /// Its MAC.
        mac: MacAddress,
        /// Where the VXLAN's datagrams arrive: address and UDP port.
        tunnel: (Ipv4Addr, u16),
        /// Which of them are this node's.
        end: Vtep,
    },
}

/// Which way a frame takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// A packet that the cache may answer.
    Flow,
    /// Anything else than IPv4 and ARP, forwarded by MAC; the cache may answer it, too.
    LayerTwo,
    /// A packet that must be decided each time: TTL at its end, fragment, options, TCP's SYN, FIN and RST, ICMP
    /// errors.
    Exception,
    /// ARP.
    Arp,
    /// A frame of a bridge's with a tag that says nothing but a priority: what is behind the tag counts.
    PriorityTagged,
    /// To the floor, by the name that the parser gave.
    Refused,
}

/// What a frame turned out to be: one cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Parsed {
    /// The flow's key.
    pub key: FlowKey,
    /// The key's hash, once somebody has made it.
    pub hash: u64,
    /// What else must match.
    pub guard: LinkGuard,
    /// Offset of the IPv4 header that is forwarded: the inner one, out of the tunnel.
    pub network_offset: u16,
    /// Offset of the header behind it.
    pub transport_offset: u16,
    /// Bytes of that packet, its header included; 0 of anything else.
    pub length: u16,
    /// TCP flags, none for other protocols.
    pub tcp_flags: TcpFlags,
    /// Why it is refused, if it is.
    pub refused: DropReason,
    /// Which way the frame takes.
    pub class: Class,
    /// Whether the packet came out of the tunnel.
    pub tunneled: bool,
    /// Whether it is a fragment, of which only the first has ports.
    pub fragment: bool,
    /// Whether it is an ICMP error.
    pub icmp_error: bool,
}

const _: () = assert!(size_of::<Parsed>() == 64);

impl Default for Parsed {
    fn default() -> Self {
        Self {
            key: FlowKey::default(),
            hash: 0,
            guard: [0; 12],
            network_offset: ethernet::HEADER_LENGTH as u16,
            transport_offset: 0,
            length: 0,
            class: Class::LayerTwo,
            refused: DropReason::RuntFrame,
            tunneled: false,
            fragment: false,
            tcp_flags: TcpFlags::default(),
            icmp_error: false,
        }
    }
}

impl Parsed {
    /// Returns the packet's addresses and ports; clear when it is not IPv4.
    #[must_use]
    pub fn tuple(&self) -> Tuple {
        self.key.tuple()
    }

    /// Returns what would have been found, had a fragment its datagram's ports.
    #[must_use]
    pub fn with_ports(&self, ports: (u16, u16)) -> Self {
        Self { key: self.key.with_ports(ports), ..*self }
    }
}

/// Parses a frame; `verified` says that its transport checksums need no look.
///
/// # Errors
/// The reason to drop it.
pub fn parse(bytes: &[u8], ingress: &IngressPort, verified: bool) -> Result<Parsed, DropReason> {
    let mut parsed = Parsed::default();
    let short =
        |parsed: &mut Parsed, bytes: &[u8], verified| glance::glance(parsed, bytes, ingress, verified);
    parse_into(&mut parsed, bytes, ingress, verified, short)?;
    Ok(parsed)
}

/// Parses a frame as [`parse`] does, into its place in a batch: it is not copied on the way. `short` is the short way of the
/// port's side: whoever has many frames of one port asks for the side once.
///
/// # Errors
/// The reason to drop it; `parsed` then says nothing.
#[inline(always)]
pub(crate) fn parse_into(
    parsed: &mut Parsed,
    bytes: &[u8],
    ingress: &IngressPort,
    verified: bool,
    short: impl Fn(&mut Parsed, &[u8], bool) -> bool,
) -> Result<(), DropReason> {
    if short(parsed, bytes, verified) { Ok(()) } else { look(parsed, bytes, ingress, verified) }
}

/// Parses any frame. A call of its own: few come here.
#[inline(never)]
fn look(parsed: &mut Parsed, bytes: &[u8], ingress: &IngressPort, verified: bool) -> Result<(), DropReason> {
    let frame = EthernetFrame::new_checked(bytes).map_err(|_| DropReason::RuntFrame)?;
    if frame.source().is_multicast() {
        return Err(DropReason::MulticastSource);
    }
    let destination = frame.destination();
    if let Side::Interface { mac, .. } | Side::Vxlan { mac, .. } = ingress.side
        && destination != mac
        && !destination.is_multicast()
    {
        return Err(DropReason::NotForUs);
    }
    parsed.guard.copy_from_slice(&bytes[..12]);
    parsed.network_offset = ethernet::HEADER_LENGTH as u16;
    parsed.tunneled = false;
    parsed.fragment = false;
    parsed.tcp_flags = TcpFlags::default();
    parsed.icmp_error = false;
    match (frame.ethertype(), ingress.side) {
        (EtherType::Ipv4, Side::Bridge | Side::Interface { .. } | Side::Vxlan { .. }) => {
            ipv4(parsed, bytes, ingress, verified)
        }
        (EtherType::Arp, Side::Bridge | Side::Interface { .. } | Side::Vxlan { .. }) => {
            parsed.class = Class::Arp;
            Ok(())
        }
        (_, Side::Interface { .. } | Side::Vxlan { .. }) => Err(DropReason::UnhandledProtocol),
        (_, Side::Bridge) if ethernet::is_priority_tagged(bytes) => {
            parsed.class = Class::PriorityTagged;
            Ok(())
        }
        (EtherType::Ipv6, Side::Bridge) if ipv6::is_router_advertisement(frame.payload()) => {
            Err(DropReason::RouterAdvertisement)
        }
        (ethertype, Side::Switch | Side::Bridge) => {
            parsed.class = Class::LayerTwo;
            parsed.length = 0;
            parsed.key = FlowKey::layer_two(destination.octets(), ethertype.into(), ingress.port);
            Ok(())
        }
    }
}

fn ipv4(parsed: &mut Parsed, bytes: &[u8], ingress: &IngressPort, verified: bool) -> Result<(), DropReason> {
    let packet =
        Ipv4Packet::new_checked(&bytes[ethernet::HEADER_LENGTH..]).map_err(|_| DropReason::MalformedIpv4)?;
    if !packet.verify_header_checksum() {
        return Err(DropReason::Ipv4Checksum);
    }
    if let Some((datagram, vtep)) = end::datagram(&ingress.side, &packet) {
        return tunneled(parsed, &packet, (&datagram, vtep), ingress, verified);
    }
    packet_fields(parsed, &packet, ingress)
}

/// Parses what a tunnel datagram carries; the guard then holds the outer source and its port in place of the source MAC. A VXLAN's
/// may come from any port: 0 stands for it.
fn tunneled(
    parsed: &mut Parsed,
    outer: &Ipv4Packet<&[u8]>,
    (datagram, vtep): (&UdpDatagram<&[u8]>, Option<Vtep>),
    ingress: &IngressPort,
    verified: bool,
) -> Result<(), DropReason> {
    if !verified && !datagram.verify_checksum(outer.source(), outer.destination()) {
        return Err(DropReason::TunnelChecksum);
    }
    parsed.network_offset += (outer.header_length() + udp::HEADER_LENGTH) as u16;
    parsed.guard[6..10].copy_from_slice(&outer.source().octets());
    parsed.guard[10..].copy_from_slice(&datagram.source_port().to_be_bytes());
    parsed.tunneled = true;
    let mut payload = datagram.payload();
    if let Some(vtep) = vtep {
        parsed.guard[10..].fill(0);
        parsed.network_offset += tunnel::VXLAN_LENGTH as u16;
        if end::frame_in(payload, vtep)? == EtherType::Arp {
            parsed.class = Class::Arp;
            return Ok(());
        }
        payload = &payload[tunnel::VXLAN_LENGTH..];
    }
    let inner = Ipv4Packet::new_checked(payload).map_err(|_| DropReason::TunnelMalformed)?;
    if !inner.verify_header_checksum() {
        return Err(DropReason::TunnelMalformed);
    }
    packet_fields(parsed, &inner, ingress)
}

fn packet_fields(
    parsed: &mut Parsed,
    packet: &Ipv4Packet<&[u8]>,
    ingress: &IngressPort,
) -> Result<(), DropReason> {
    parsed.transport_offset = parsed.network_offset + packet.header_length() as u16;
    parsed.length = packet.total_length();
    let fragment = packet.is_fragment();
    parsed.fragment = fragment;
    parsed.class = if packet.time_to_live() <= 1 || packet.has_options() || fragment {
        Class::Exception
    } else {
        Class::Flow
    };
    let ports = if fragment { first_fragment_ports(packet) } else { ports(parsed, packet)? };
    let tuple = Tuple {
        source: packet.source().to_bits(),
        destination: packet.destination().to_bits(),
        source_port: ports.0,
        destination_port: ports.1,
        protocol: packet.protocol().into(),
    };
    parsed.key = FlowKey::ipv4(&tuple, ingress.port, parsed.tunneled);
    Ok(())
}

fn ports(parsed: &mut Parsed, packet: &Ipv4Packet<&[u8]>) -> Result<(u16, u16), DropReason> {
    let malformed = DropReason::MalformedTransport;
    Ok(match packet.protocol() {
        IpProtocol::Tcp => {
            let segment = TcpSegment::new_checked(packet.payload()).map_err(|_| malformed)?;
            parsed.tcp_flags = segment.flags();
            if parsed.tcp_flags.intersects(NEVER_CACHED) {
                parsed.class = Class::Exception;
            }
            (segment.source_port(), segment.destination_port())
        }
        IpProtocol::Udp => {
            let datagram = UdpDatagram::new_checked(packet.payload()).map_err(|_| malformed)?;
            (datagram.source_port(), datagram.destination_port())
        }
        IpProtocol::Icmp => {
            let icmp = IcmpPacket::new_checked(packet.payload()).map_err(|_| malformed)?;
            if icmp.is_error() {
                parsed.icmp_error = true;
                parsed.class = Class::Exception;
            }
            icmp_ports(icmp.icmp_type(), icmp.identifier())
        }
        IpProtocol::Unknown(_) => (0, 0),
    })
}

/// Returns what stands for the ports of an ICMP query: a request is (identifier, type), an answer (the
/// request's type, identifier); (0, 0) for the rest.
#[must_use]
pub fn icmp_ports(icmp_type: Type, identifier: u16) -> (u16, u16) {
    match icmp_type {
        Type::EchoRequest | Type::TimestampRequest => (identifier, u16::from(u8::from(icmp_type))),
        Type::EchoReply => (u16::from(u8::from(Type::EchoRequest)), identifier),
        Type::TimestampReply => (u16::from(u8::from(Type::TimestampRequest)), identifier),
        Type::DestinationUnreachable
        | Type::SourceQuench
        | Type::Redirect
        | Type::TimeExceeded
        | Type::ParameterProblem
        | Type::Unknown(_) => (0, 0),
    }
}

/// Reads the ports of a first fragment, whose transport lengths cannot be checked yet; later ones have none.
#[cold]
fn first_fragment_ports(packet: &Ipv4Packet<&[u8]>) -> (u16, u16) {
    let transport = packet.payload();
    if packet.fragment_offset() != 0 || transport.len() < udp::HEADER_LENGTH {
        return (0, 0);
    }
    match packet.protocol() {
        // Both begin with the ports.
        IpProtocol::Tcp | IpProtocol::Udp => {
            let datagram = UdpDatagram::new_unchecked(transport);
            (datagram.source_port(), datagram.destination_port())
        }
        IpProtocol::Icmp => {
            let icmp = IcmpPacket::new_unchecked(transport);
            icmp_ports(icmp.icmp_type(), icmp.identifier())
        }
        IpProtocol::Unknown(_) => (0, 0),
    }
}

/// Returns the tuple of a packet that an ICMP error quotes, by what of it is there; `None` when not enough is.
#[must_use]
pub fn quoted_tuple(quote: &[u8]) -> Option<(Tuple, usize)> {
    let packet = Ipv4Packet::new_quoted(quote).ok()?;
    if packet.fragment_offset() != 0 {
        return None;
    }
    let mut tuple = Tuple {
        source: packet.source().to_bits(),
        destination: packet.destination().to_bits(),
        protocol: packet.protocol().into(),
        ..Tuple::default()
    };
    let header = packet.header_length();
    let transport = quote.get(header..)?;
    if transport.len() < udp::HEADER_LENGTH {
        return None;
    }
    match packet.protocol() {
        IpProtocol::Tcp | IpProtocol::Udp => {
            let datagram = UdpDatagram::new_unchecked(transport);
            (tuple.source_port, tuple.destination_port) =
                (datagram.source_port(), datagram.destination_port());
        }
        IpProtocol::Icmp => {
            let icmp = IcmpPacket::new_unchecked(transport);
            (tuple.source_port, tuple.destination_port) = icmp_ports(icmp.icmp_type(), icmp.identifier());
        }
        IpProtocol::Unknown(_) => return None,
    }
    Some((tuple, header))
}
