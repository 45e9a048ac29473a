//! flannel's tunnels: an IPv4 packet as the payload of a datagram between nodes (udp), or in an Ethernet frame that is (vxlan).
//!
//! `rewrite` calls it to put the outer headers in front of a packet. Invariants: outer headers are those an
//! ordinary Linux UDP socket makes (TTL 64, DF unless the path is locked, of udp a checksum), and Linux' vxlan device (no checksum, a
//! source port by the flow); udp's checksum follows from the inner one
//! when that is known to be right, so that no payload is read. Allowed dependencies: `wire`. Read first:
//! RFC 768, RFC 6864 (an atomic datagram's identification means nothing), RFC 1071, RFC 7348, ADR 29.

use std::net::Ipv4Addr;

use crate::wire::{
    EtherType, EthernetFrame, IpProtocol, Ipv4Packet, MacAddress, UdpDatagram, VxlanPacket, checksum,
    ethernet, ipv4, udp, vxlan,
};

/// Bytes of the outer IPv4 and UDP headers.
pub const OUTER_LENGTH: usize = ipv4::HEADER_LENGTH + udp::HEADER_LENGTH;
/// Bytes between them and the packet inside, of VXLAN: its header and that of the frame with the packet.
pub const VXLAN_LENGTH: usize = vxlan::HEADER_LENGTH + ethernet::HEADER_LENGTH;
/// Bytes in front of the packet inside at most.
pub const OUTER_LIMIT: usize = OUTER_LENGTH + VXLAN_LENGTH;
/// Protocol number of IP in IP (RFC 2003).
pub const IP_IN_IP: u8 = 4;
/// TTL of the outer packet, as Linux sets it.
pub const OUTER_TTL: u8 = 64;

/// The ports that vxlan's datagrams are sent from: those that Linux takes for it.
const VXLAN_SOURCES: std::ops::Range<u16> = 32_768..61_000;

/// How packets are carried between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// As the payload of a datagram: flannel's udp.
    Udp,
    /// In an Ethernet frame, behind a VXLAN header: flannel's vxlan, RFC 7348.
    Vxlan {
        /// The network's number, below [`vxlan::VNI_LIMIT`].
        vni: u32,
    },
}

impl Encapsulation {
    /// Returns how many bytes are between the outer headers, [`OUTER_LENGTH`], and the packet inside.
    #[must_use]
    pub const fn between(self) -> usize {
        match self {
            Self::Udp => 0,
            Self::Vxlan { .. } => VXLAN_LENGTH,
        }
    }

    /// Returns by how many bytes the outer packet is longer than the one inside.
    #[must_use]
    pub const fn overhead(self) -> u16 {
        (OUTER_LENGTH + self.between()) as u16
    }
}

/// Returns the MAC that a node has at its end of a VXLAN, unless its lease says another: that of its subnet's first address,
/// which is flannel0's.
#[must_use]
pub const fn vtep_mac(flannel0: Ipv4Addr) -> MacAddress {
    MacAddress::for_ipv4(flannel0)
}

/// The headers of a VXLAN in front of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Vxlan {
    /// The network's number.
    pub vni: u32,
    /// The MAC of the peer's end.
    pub destination: MacAddress,
    /// The MAC of this node's end.
    pub source: MacAddress,
    /// Whether each flow's datagrams come from a port of its own. Else all come from the port that they go to, as what a socket
    /// sends.
    pub spreads: bool,
}

/// Between whom a packet is tunnelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outer {
    /// This node.
    pub source: Ipv4Addr,
    /// The node that holds the lease.
    pub destination: Ipv4Addr,
    /// The UDP port of both ends; of vxlan, where it goes to.
    pub port: u16,
    /// Whether routers must not cut it: as long as a path takes what Linux believes a path can be made to take.
    pub dont_fragment: bool,
    /// What else is in front of the packet, where it is a VXLAN's.
    pub vxlan: Option<Vxlan>,
}

impl Outer {
    /// Returns how many bytes are in front of the packet.
    #[must_use]
    pub const fn length(&self) -> usize {
        if self.vxlan.is_some() { OUTER_LIMIT } else { OUTER_LENGTH }
    }

    /// Returns [`Outer::length`] bytes of headers with lengths, identification and checksums left out: where the checksums will
    /// be stand the sums of what is there (for UDP, the pseudo-header included). A VXLAN's has no UDP checksum,
    /// and no source port where that is by the flow.
    #[must_use]
    pub fn template(&self) -> [u8; OUTER_LIMIT] {
        let mut bytes = [0; OUTER_LIMIT];
        bytes[0] = 0x45;
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        packet.set_fragmentation(self.dont_fragment, false, 0);
        packet.set_time_to_live(OUTER_TTL);
        packet.set_protocol(IpProtocol::Udp);
        packet.set_source(self.source);
        packet.set_destination(self.destination);
        let sum = checksum::ones_complement_sum(&bytes[..ipv4::HEADER_LENGTH]);
        Ipv4Packet::new_unchecked(&mut bytes[..]).set_header_checksum(sum);
        let mut datagram = UdpDatagram::new_unchecked(&mut bytes[ipv4::HEADER_LENGTH..]);
        datagram.set_destination_port(self.port);
        if let Some(Vxlan { vni, destination, source, spreads }) = self.vxlan {
            datagram.set_source_port(if spreads { 0 } else { self.port });
            let between = &mut bytes[OUTER_LENGTH..];
            VxlanPacket::new_unchecked(&mut between[..]).fill(vni);
            let mut frame = EthernetFrame::new_unchecked(&mut between[vxlan::HEADER_LENGTH..]);
            frame.set_destination(destination);
            frame.set_source(source);
            frame.set_ethertype(EtherType::Ipv4);
            return bytes;
        }
        datagram.set_source_port(self.port);
        let pseudo = checksum::pseudo_header(self.source, self.destination, IpProtocol::Udp, 0);
        datagram.set_checksum(checksum::add(pseudo, checksum::add(self.port, self.port)));
        bytes
    }
}

/// Fills in the outer header of IP in IP (RFC 2003, 3.1) at the start of `bytes`, behind which the whole inner packet is:
/// its type of service is the inner packet's, and so is whether it may be fragmented, unless it always may.
pub fn wrap(
    bytes: &mut [u8],
    (source, destination): (Ipv4Addr, Ipv4Addr),
    may_cut: bool,
    identification: u16,
) {
    let length = bytes.len() as u16;
    let inner = Ipv4Packet::new_unchecked(&bytes[ipv4::HEADER_LENGTH..]);
    let (service, dont_fragment) = (inner.service(), inner.dont_fragment() && !may_cut);
    let header = &mut bytes[..ipv4::HEADER_LENGTH];
    header.fill(0);
    let mut packet = Ipv4Packet::new_unchecked(header);
    packet.set_header_length(ipv4::HEADER_LENGTH);
    packet.set_service(service);
    packet.set_total_length(length);
    packet.set_identification(identification);
    packet.set_fragmentation(dont_fragment, false, 0);
    packet.set_time_to_live(OUTER_TTL);
    packet.set_protocol(IpProtocol::Unknown(IP_IN_IP));
    packet.set_source(source);
    packet.set_destination(destination);
    packet.fill_header_checksum();
}

/// Completes the outer headers at the start of `bytes`, which begin as [`Outer::template`] left them and hold
/// the inner packet behind it; `verified` says that the inner transport checksum is right.
///
/// Sums are made of words in the machine's byte order, which changes nothing but the sum's own (RFC 1071, 2 (B)).
#[inline(always)]
pub fn complete(bytes: &mut [u8], identification: u16, verified: bool) {
    let (outer, inner) = bytes.split_at_mut(OUTER_LENGTH);
    let inner_sum = inner_sum(inner, verified);
    let udp_length = (udp::HEADER_LENGTH + inner.len()) as u16;
    let total_length = (OUTER_LENGTH + inner.len()) as u16;

    complete_header(outer, total_length, identification);
    let mut datagram = UdpDatagram::new_unchecked(&mut outer[ipv4::HEADER_LENGTH..]);
    // The length stands in the header and in the pseudo-header.
    let sum = u64::from(datagram.checksum().to_be()) + 2 * u64::from(udp_length.to_be()) + inner_sum;
    let sum = !checksum::fold(sum);
    datagram.set_length(udp_length);
    // A sum of zero is sent as all ones: zero means that there is no checksum (RFC 768).
    datagram.set_checksum(u16::from_be(if sum == 0 { 0xffff } else { sum }));
}

/// Completes the outer IPv4 header.
#[inline(always)]
fn complete_header(outer: &mut [u8], total_length: u16, identification: u16) {
    let mut packet = Ipv4Packet::new_unchecked(outer);
    let sum = [packet.header_checksum(), total_length, identification]
        .map(|word| u64::from(word.to_be()))
        .iter()
        .sum();
    packet.set_total_length(total_length);
    packet.set_identification(identification);
    packet.set_header_checksum(u16::from_be(!checksum::fold(sum)));
}

/// Completes a VXLAN's outer headers as [`complete`] does those of udp. There is no UDP checksum, as from flannel's device
/// (RFC 7348, 5); the frame's own are those of what it carries.
#[inline(always)]
pub fn complete_vxlan(bytes: &mut [u8], identification: u16) {
    let (outer, inner) = bytes.split_at_mut(OUTER_LIMIT);
    let total_length = (OUTER_LIMIT + inner.len()) as u16;
    complete_header(outer, total_length, identification);
    let mut datagram = UdpDatagram::new_unchecked(&mut outer[ipv4::HEADER_LENGTH..]);
    if datagram.source_port() == 0 {
        datagram.set_source_port(source_port(inner));
    }
    datagram.set_length(total_length - ipv4::HEADER_LENGTH as u16);
}

/// Returns the port that a VXLAN's datagram with this packet is sent from: one for each flow, the same for all of a datagram's
/// fragments, so that whoever spreads by ports keeps a flow together (RFC 7348, 4.2).
#[inline(always)]
fn source_port(inner: &[u8]) -> u16 {
    let Some(header) = inner.first_chunk::<{ ipv4::HEADER_LENGTH }>() else { return VXLAN_SOURCES.start };
    let packet = Ipv4Packet::new_unchecked(header);
    let has_ports = matches!(packet.protocol(), IpProtocol::Tcp | IpProtocol::Udp) && !packet.is_fragment();
    let ports = inner.get(packet.header_length()..).and_then(|it| it.first_chunk()).filter(|_| has_ports);
    let ports = ports.map_or(0, |ports| u32::from_be_bytes(*ports));
    let addresses = u64::from(packet.source().to_bits()) << 32 | u64::from(packet.destination().to_bits());
    let mixed = (addresses ^ u64::from(ports).rotate_left(16)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let hash = (mixed >> 32) * u64::from(VXLAN_SOURCES.end - VXLAN_SOURCES.start);
    VXLAN_SOURCES.start + (hash >> 32) as u16
}

/// Sums a whole inner packet, unfolded, in the machine's byte order; a right IPv4 header sums to all ones, and so does a right
/// transport segment with its pseudo-header.
#[inline(always)]
fn inner_sum(inner: &[u8], verified: bool) -> u64 {
    // By its number: two matches of the enum become a table of jumps.
    const ICMP: u8 = 1;
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let whole = || u64::from(checksum::ones_complement_sum(inner).to_be());
    let (Some(header), true) = (inner.first_chunk::<{ ipv4::HEADER_LENGTH }>(), verified) else {
        return whole();
    };
    let packet = Ipv4Packet::new_unchecked(header);
    let (length, protocol) = (packet.header_length(), u8::from(packet.protocol()));
    if packet.is_fragment() {
        return whole();
    }
    match protocol {
        UDP if has_no_checksum(inner, length) => whole(),
        TCP | UDP => {
            let addresses = u64::from(packet.source().to_bits().to_be())
                + u64::from(packet.destination().to_bits().to_be());
            let rest = u64::from(u16::from(protocol).to_be())
                + u64::from((inner.len().wrapping_sub(length) as u16).to_be());
            checksum::negative(addresses + rest)
        }
        ICMP => 0xffff,
        _ => whole(),
    }
}

/// Tells whether a UDP datagram behind a header of this length is without a checksum (RFC 768).
#[inline(always)]
fn has_no_checksum(packet: &[u8], header: usize) -> bool {
    packet.get(header + 6..header + 8).is_none_or(|checksum| checksum == [0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn inner(payload: &[u8], protocol: IpProtocol) -> Vec<u8> {
        let mut bytes = vec![0; ipv4::HEADER_LENGTH + udp::HEADER_LENGTH + payload.len()];
        bytes[0] = 0x45;
        let length = bytes.len() as u16;
        let (source, destination) = (Ipv4Addr::new(10, 1, 15, 2), Ipv4Addr::new(10, 1, 20, 3));
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        packet.set_total_length(length);
        packet.set_time_to_live(63);
        packet.set_protocol(protocol);
        packet.set_source(source);
        packet.set_destination(destination);
        packet.fill_header_checksum();
        let mut datagram = UdpDatagram::new_unchecked(packet.payload_mut());
        datagram.set_source_port(40_000);
        datagram.set_destination_port(7);
        datagram.set_length(length - ipv4::HEADER_LENGTH as u16);
        datagram.payload_mut().copy_from_slice(payload);
        datagram.fill_checksum(source, destination);
        bytes
    }

    proptest! {
        /// RFC 768; RFC 1071, 2 (A): sums in parts.
        #[test]
        fn the_outer_checksum_derived_from_the_inner_one_is_the_full_sum(
            payload in prop::collection::vec(any::<u8>(), 0..64), identification: u16,
        ) {
            let outer = Outer {
                source: Ipv4Addr::new(192, 168, 66, 11),
                destination: Ipv4Addr::new(192, 168, 66, 12),
                port: 8285,
                dont_fragment: true,
                vxlan: None,
            };
            let mut derived = outer.template()[..outer.length()].to_vec();
            derived.extend(inner(&payload, IpProtocol::Udp));
            let mut full = derived.clone();
            complete(&mut derived, identification, true);
            complete(&mut full, identification, false);
            prop_assert_eq!(&derived, &full);
            let packet = Ipv4Packet::new_checked(&full[..]).unwrap();
            prop_assert!(packet.verify_header_checksum());
            let datagram = UdpDatagram::new_checked(packet.payload()).unwrap();
            prop_assert!(datagram.checksum() != 0 && datagram.verify_checksum(outer.source, outer.destination));
        }
    }
    /// RFC 7348, 4.2 and 5.
    #[test]
    fn a_vxlans_headers_are_those_of_linux_and_a_flow_keeps_its_port() {
        let mac = |last| MacAddress::new([2, 0x42, 10, 1, last, 0]);
        let outer = Outer {
            source: Ipv4Addr::new(192, 168, 66, 11),
            destination: Ipv4Addr::new(192, 168, 66, 12),
            port: 8472,
            dont_fragment: true,
            vxlan: Some(Vxlan { vni: 0x00ab_cdef, destination: mac(20), source: mac(15), spreads: true }),
        };
        let wrapped = |inner: &[u8], identification| {
            let mut bytes = [&outer.template()[..outer.length()], inner].concat();
            complete_vxlan(&mut bytes, identification);
            let packet = Ipv4Packet::new_checked(&bytes[..]).unwrap();
            assert!(packet.verify_header_checksum());
            assert_eq!((packet.time_to_live(), packet.identification()), (64, identification));
            let datagram = UdpDatagram::new_checked(packet.payload()).unwrap();
            assert_eq!((datagram.destination_port(), datagram.checksum()), (8472, 0));
            let vxlan = VxlanPacket::new_checked(datagram.payload()).unwrap();
            assert_eq!(vxlan.vni(), 0x00ab_cdef);
            let frame = EthernetFrame::new_checked(vxlan.payload()).unwrap();
            assert_eq!(
                (frame.destination(), frame.source(), frame.ethertype()),
                (mac(20), mac(15), EtherType::Ipv4)
            );
            assert_eq!(frame.payload(), inner);
            datagram.source_port()
        };
        let mut ports = std::collections::BTreeSet::new();
        for number in 0..=255 {
            let mut one = inner(b"hello", IpProtocol::Udp);
            one[21] = number;
            let port = wrapped(&one, 7);
            assert!(VXLAN_SOURCES.contains(&port));
            one[27] ^= 1;
            assert_eq!(wrapped(&one, 8), port, "the flow alone decides");
            ports.insert(port);
        }
        assert!(ports.len() > 200, "flows are spread: {}", ports.len());
        // Of a datagram's fragments only the first has ports.
        let mut first = inner(b"hello", IpProtocol::Udp);
        first[6] = 0x20;
        let mut later = inner(b"other", IpProtocol::Udp);
        (later[7], later[20]) = (3, 9);
        for packet in [&mut first, &mut later] {
            Ipv4Packet::new_unchecked(&mut packet[..]).fill_header_checksum();
        }
        assert_eq!(wrapped(&first, 1), wrapped(&later, 2));
        let one_port = Outer { vxlan: outer.vxlan.map(|it| Vxlan { spreads: false, ..it }), ..outer };
        let mut bytes = [&one_port.template()[..one_port.length()], &first[..]].concat();
        complete_vxlan(&mut bytes, 1);
        assert_eq!(bytes[20..24], [8472_u16.to_be_bytes(); 2].concat());
        for length in 0..24 {
            let port = source_port(&inner(b"", IpProtocol::Udp)[..length]);
            assert!(VXLAN_SOURCES.contains(&port));
        }
    }
}
