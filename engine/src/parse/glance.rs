//! The parser's short way for what nearly all frames are.
//!
//! A whole IPv4 packet without options, TTL to spare, UDP or TCP amid a connection, as it is or out of the tunnel: read by
//! offsets that are constants, one length check for a header, and what may be odd about it gathered in one word. Invariant:
//! what it accepts it reads as the parser does; all else it leaves to the parser. Allowed dependencies: as `parse`. Read
//! first: `parse.rs`.

use std::net::Ipv4Addr;

use super::{Class, FlowKey, IngressPort, NEVER_CACHED, Parsed, Side, Vtep};
use crate::tunnel::VXLAN_LENGTH;
use crate::wire::{MacAddress, TcpFlags, checksum, ethernet, ipv4, tcp, udp};

/// Where the packet begins, and where the one inside does.
const NETWORK: usize = ethernet::HEADER_LENGTH;
const INNER: usize = NETWORK + ipv4::HEADER_LENGTH + udp::HEADER_LENGTH;
const IN_FRAME: usize = INNER + VXLAN_LENGTH;
/// Bytes of an IPv4 header and of what UDP and TCP begin with alike.
const HEAD: usize = ipv4::HEADER_LENGTH + udp::HEADER_LENGTH;
const UDP: u8 = 17;
const TCP: u8 = 6;
/// EtherType of IPv4.
const IPV4: u16 = 0x0800;
/// IPv4, five words of header.
const VERSION_AND_LENGTH: u8 = 0x45;
/// More fragments, and the offset.
const FRAGMENT: u16 = 0x3fff;

/// What the key is made of, and the lengths behind it.
struct Plain {
    /// Source and destination address.
    addresses: u64,
    /// Source and destination port.
    ports: u32,
    protocol: u8,
    flags: TcpFlags,
    /// Bytes of the packet.
    length: u16,
}

/// Parses a frame that is like nearly all; false, with `parsed` as it may be, when it is for the parser.
pub(super) fn glance(parsed: &mut Parsed, bytes: &[u8], ingress: &IngressPort, verified: bool) -> bool {
    match ingress.side {
        Side::Bridge => at_bridge(parsed, bytes, ingress.port),
        Side::Interface { mac, tunnel } => at_interface(parsed, bytes, ingress.port, (mac, tunnel), verified),
        Side::Vxlan { mac, tunnel, end } => {
            at_vxlan(parsed, bytes, ingress.port, (mac, tunnel, end), verified)
        }
        Side::Switch => false,
    }
}

/// The same of a port of a bridge.
#[inline(always)]
pub(crate) fn at_bridge(parsed: &mut Parsed, bytes: &[u8], port: u32) -> bool {
    let Some((_, packet)) = taken(parsed, bytes, None) else { return false };
    tell(parsed, &packet, NETWORK, false, port);
    true
}

/// The same of an interface with this MAC, where udp's tunnel may end.
#[inline(always)]
pub(crate) fn at_interface(
    parsed: &mut Parsed,
    bytes: &[u8],
    port: u32,
    (mac, tunnel): (MacAddress, Option<(Ipv4Addr, u16)>),
    verified: bool,
) -> bool {
    let Some((head, packet)) = taken(parsed, bytes, Some(mac)) else { return false };
    let is_tunnel = tunnel
        .is_some_and(|(local, to)| packet.addresses as u32 == local.to_bits() && packet.ports as u16 == to);
    if !is_tunnel || packet.protocol != UDP {
        tell(parsed, &packet, NETWORK, false, port);
        return true;
    }
    let end = NETWORK + ipv4::HEADER_LENGTH + usize::from(half(head, NETWORK + 24));
    // A datagram without a checksum needs no look either (RFC 768).
    let verified = verified || half(head, NETWORK + 26) == 0;
    let Some(inner) = bytes.get(INNER..end).and_then(plain).filter(|_| verified) else { return false };
    let source = (packet.addresses >> 32) as u32;
    parsed.guard[6..10].copy_from_slice(&source.to_be_bytes());
    parsed.guard[10..].copy_from_slice(&((packet.ports >> 16) as u16).to_be_bytes());
    tell(parsed, &inner, INNER, true, port);
    true
}

/// The same of an interface with this MAC of a node whose tunnel is a VXLAN.
#[inline(always)]
pub(crate) fn at_vxlan(
    parsed: &mut Parsed,
    bytes: &[u8],
    port: u32,
    (mac, (local, to), end): (MacAddress, (Ipv4Addr, u16), Vtep),
    verified: bool,
) -> bool {
    let Some((head, outer)) = taken(parsed, bytes, Some(mac)) else { return false };
    if outer.addresses as u32 != local.to_bits() || outer.ports as u16 != to || outer.protocol != UDP {
        tell(parsed, &outer, NETWORK, false, port);
        return true;
    }
    let last = NETWORK + ipv4::HEADER_LENGTH + usize::from(half(head, NETWORK + 24));
    let verified = verified || half(head, NETWORK + 26) == 0;
    let inner = bytes.get(IN_FRAME..last).and_then(plain).filter(|_| verified && is_at(bytes, end));
    let Some(inner) = inner else { return false };
    // It may come from any port.
    parsed.guard[6..10].copy_from_slice(&((outer.addresses >> 32) as u32).to_be_bytes());
    parsed.guard[10..].fill(0);
    tell(parsed, &inner, IN_FRAME, true, port);
    true
}

/// Reads the frame's header and the packet behind it, and notes the guard; none when either is anything else than plain, or the frame
/// for another MAC than this one.
#[inline(always)]
fn taken<'a>(
    parsed: &mut Parsed,
    bytes: &'a [u8],
    mac: Option<MacAddress>,
) -> Option<(&'a [u8; NETWORK + HEAD], Plain)> {
    let head = bytes.first_chunk::<{ NETWORK + HEAD }>()?;
    let is_for_us = mac.is_none_or(|mac| head[..6] == mac.octets());
    if !is_for_us || head[6] & 1 != 0 || half(head, 12) != IPV4 {
        return None;
    }
    let packet = plain(&bytes[NETWORK..])?;
    parsed.guard.copy_from_slice(&head[..12]);
    Some((head, packet))
}

/// Says what a packet is that begins at this byte of its frame.
#[inline(always)]
fn tell(parsed: &mut Parsed, packet: &Plain, network: usize, tunneled: bool, port: u32) {
    parsed.key = FlowKey::words(packet.addresses, packet.ports, packet.protocol, port, tunneled);
    parsed.network_offset = network as u16;
    parsed.transport_offset = (network + ipv4::HEADER_LENGTH) as u16;
    parsed.length = packet.length;
    parsed.tcp_flags = packet.flags;
    parsed.class = Class::Flow;
    parsed.tunneled = tunneled;
    parsed.fragment = false;
    parsed.icmp_error = false;
}

/// Tells whether a VXLAN's headers are as they should be, with a packet for this end of it.
#[inline(always)]
fn is_at(bytes: &[u8], vtep: Vtep) -> bool {
    let Some(head) = bytes[INNER..].first_chunk::<VXLAN_LENGTH>() else { return false };
    word(head, 0) == 0x0800_0000_0000_0000 | u64::from(vtep.vni) << 8
        && head[8..14] == vtep.mac.octets()
        && head[14] & 1 == 0
        && half(head, 20) == IPV4
}

/// Reads a packet; none when it is anything else than plain.
#[inline(always)]
fn plain(packet: &[u8]) -> Option<Plain> {
    let head = packet.first_chunk::<HEAD>()?;
    let (length, protocol) = (half(head, 2), head[9]);
    let whole = usize::from(length) <= packet.len();
    if head[0] != VERSION_AND_LENGTH || half(head, 6) & FRAGMENT != 0 || head[8] <= 1 || !whole {
        return None;
    }
    if !head.first_chunk().is_some_and(checksum::is_header_right) {
        return None;
    }
    let payload = u32::from(length).checked_sub(ipv4::HEADER_LENGTH as u32)?;
    let mut flags = TcpFlags::default();
    let claimed = match protocol {
        UDP => u32::from(half(head, 24)),
        TCP => {
            let segment = packet[ipv4::HEADER_LENGTH..].first_chunk::<{ tcp::HEADER_LENGTH }>()?;
            flags = TcpFlags::from_bits(segment[13]);
            let header = u32::from(segment[12] >> 4) * 4;
            if flags.intersects(NEVER_CACHED) || header < tcp::HEADER_LENGTH as u32 {
                return None;
            }
            header
        }
        _ => return None,
    };
    if claimed < udp::HEADER_LENGTH as u32 || claimed > payload {
        return None;
    }
    Some(Plain { addresses: word(head, 12), ports: quarter(head, 20), protocol, flags, length })
}

/// Reads eight big-endian bytes: one load where the offset is a constant within the array.
#[inline(always)]
fn word<const N: usize>(head: &[u8; N], at: usize) -> u64 {
    head[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Reads four.
#[inline(always)]
fn quarter<const N: usize>(head: &[u8; N], at: usize) -> u32 {
    head[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// Reads two.
#[inline(always)]
fn half<const N: usize>(head: &[u8; N], at: usize) -> u16 {
    head[at..].first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    use super::*;
    use crate::wire::{
        EtherType, EthernetFrame, IpProtocol, Ipv4Packet, MacAddress, TcpSegment, UdpDatagram, VxlanPacket,
    };

    const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 168, 66, 11);
    const MAC: MacAddress = MacAddress::new([2, 0, 0, 0, 0, 1]);
    const PORT: u16 = 8285;
    const VTEP: Vtep = Vtep { vni: 0x00ab_cdef, mac: MacAddress::new([2, 0x42, 10, 1, 15, 0]) };

    /// A packet between any two machines, with this payload behind its transport header.
    fn packet(protocol: IpProtocol, destination: Ipv4Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let header = if protocol == IpProtocol::Tcp { tcp::HEADER_LENGTH } else { udp::HEADER_LENGTH };
        let mut bytes = vec![0; ipv4::HEADER_LENGTH + header];
        bytes.extend_from_slice(payload);
        let length = bytes.len() as u16;
        bytes[0] = VERSION_AND_LENGTH;
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        packet.set_total_length(length);
        packet.set_time_to_live(64);
        packet.set_protocol(protocol);
        packet.set_source(Ipv4Addr::new(10, 1, 15, 2));
        packet.set_destination(destination);
        packet.fill_header_checksum();
        let transport = &mut bytes[ipv4::HEADER_LENGTH..];
        if protocol == IpProtocol::Tcp {
            transport[12] = 0x50;
            let mut segment = TcpSegment::new_unchecked(transport);
            segment.set_source_port(ports.0);
            segment.set_destination_port(ports.1);
            segment.set_flags(TcpFlags::ACK);
        } else {
            let mut datagram = UdpDatagram::new_unchecked(transport);
            datagram.set_source_port(ports.0);
            datagram.set_destination_port(ports.1);
            datagram.set_length(length - ipv4::HEADER_LENGTH as u16);
        }
        bytes
    }

    fn frame(packet: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; NETWORK];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
        frame.set_destination(MAC);
        frame.set_source(MacAddress::new([2, 0, 0, 0, 0, 2]));
        frame.set_ethertype(EtherType::Ipv4);
        bytes.extend_from_slice(packet);
        bytes
    }

    /// What is around a packet.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Around {
        Nothing,
        Datagram,
        Frame,
    }

    /// Frames that the short way takes: by what they are, whether out of the tunnel, and how long.
    fn frames() -> impl Strategy<Value = (Around, Vec<u8>)> {
        let around = prop::sample::select(vec![Around::Nothing, Around::Datagram, Around::Frame]);
        (any::<bool>(), around, any::<(u16, u16)>(), 0usize..70).prop_map(|(tcp, around, ports, length)| {
            let protocol = if tcp { IpProtocol::Tcp } else { IpProtocol::Udp };
            let inner = packet(protocol, Ipv4Addr::new(10, 1, 20, 3), ports, &vec![7; length]);
            let datagram = |payload: &[u8]| packet(IpProtocol::Udp, LOCAL, (PORT, PORT), payload);
            let packet = match around {
                Around::Nothing => inner,
                Around::Datagram => datagram(&inner),
                Around::Frame => datagram(&in_frame(&inner)),
            };
            (around, frame(&packet))
        })
    }

    /// What a VXLAN's datagram carries.
    fn in_frame(packet: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; crate::wire::vxlan::HEADER_LENGTH];
        VxlanPacket::new_unchecked(&mut bytes[..]).fill(VTEP.vni);
        let mut inside = frame(packet);
        EthernetFrame::new_unchecked(&mut inside[..]).set_destination(VTEP.mac);
        bytes.extend(inside);
        bytes
    }

    fn sides() -> [Side; 4] {
        let interface = |tunnel| Side::Interface { mac: MAC, tunnel };
        let vxlan = Side::Vxlan { mac: MAC, tunnel: (LOCAL, PORT), end: VTEP };
        [Side::Bridge, interface(None), interface(Some((LOCAL, PORT))), vxlan]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Any octet may be another one, and the end may be missing.
        #[test]
        fn the_short_way_reads_what_the_parser_does(
            (_, bytes) in frames(),
            changes in prop::collection::vec((0usize..84, any::<u8>()), 0..3),
            mended: bool,
            cut in prop::option::weighted(0.2, 0usize..100),
        ) {
            let mut bytes = bytes;
            for (at, octet) in changes {
                if let Some(place) = bytes.get_mut(at) {
                    *place = octet;
                }
            }
            if mended && let Some(packet) = bytes.get_mut(NETWORK..NETWORK + ipv4::HEADER_LENGTH) {
                Ipv4Packet::new_unchecked(packet).fill_header_checksum();
            }
            bytes.truncate(cut.unwrap_or(usize::MAX));
            for side in sides() {
                let ingress = IngressPort { port: 5, side };
                let (mut short, mut long) = (Parsed::default(), Parsed::default());
                if glance(&mut short, &bytes, &ingress, true) {
                    prop_assert_eq!(super::super::look(&mut long, &bytes, &ingress, true), Ok(()));
                    prop_assert_eq!(short, long);
                }
            }
        }

        #[test]
        fn the_short_way_takes_what_nearly_all_frames_are((around, bytes) in frames()) {
            for side in sides() {
                let ingress = IngressPort { port: 5, side };
                // What is in a datagram of another tunnel's is none of this one's.
                let is_strange = match side {
                    Side::Interface { tunnel: Some(_), .. } => around == Around::Frame,
                    Side::Vxlan { .. } => around == Around::Datagram,
                    Side::Switch | Side::Bridge | Side::Interface { .. } => false,
                };
                let taken = glance(&mut Parsed::default(), &bytes, &ingress, true);
                prop_assert_eq!(taken, !is_strange, "{:?}", side);
            }
        }
    }
}
