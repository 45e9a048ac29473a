//! flannel's UDP tunnel: a raw IPv4 packet as the payload of a datagram between nodes.
//!
//! `rewrite` calls it to put the outer headers in front of a packet. Invariants: outer headers are those an
//! ordinary Linux UDP socket makes (TTL 64, DF unless the path is locked, a checksum); the outer checksum follows from the inner one
//! when that is known to be right, so that no payload is read. Allowed dependencies: `wire`. Read first:
//! RFC 768, RFC 6864 (an atomic datagram's identification means nothing), RFC 1071.

use std::net::Ipv4Addr;

use crate::wire::{IpProtocol, Ipv4Packet, UdpDatagram, checksum, ipv4, udp};

/// Bytes of the outer IPv4 and UDP headers.
pub const OUTER_LENGTH: usize = ipv4::HEADER_LENGTH + udp::HEADER_LENGTH;
/// Protocol number of IP in IP (RFC 2003).
pub const IP_IN_IP: u8 = 4;
/// TTL of the outer packet, as Linux sets it.
pub const OUTER_TTL: u8 = 64;

/// Between whom a packet is tunnelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outer {
    /// This node.
    pub source: Ipv4Addr,
    /// The node that holds the lease.
    pub destination: Ipv4Addr,
    /// The UDP port of both ends.
    pub port: u16,
    /// Whether routers must not cut it: as long as a path takes what Linux believes a path can be made to take.
    pub dont_fragment: bool,
}

impl Outer {
    /// Returns the outer headers with lengths, identification and checksums left out: where the checksums will
    /// be stand the sums of what is there (for UDP, the pseudo-header included).
    #[must_use]
    pub fn template(&self) -> [u8; OUTER_LENGTH] {
        let mut bytes = [0; OUTER_LENGTH];
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
        datagram.set_source_port(self.port);
        datagram.set_destination_port(self.port);
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
#[inline(always)]
pub fn complete(bytes: &mut [u8], identification: u16, verified: bool) {
    let (outer, inner) = bytes.split_at_mut(OUTER_LENGTH);
    let inner_sum = inner_sum(inner, verified);
    let udp_length = (udp::HEADER_LENGTH + inner.len()) as u16;
    let total_length = (OUTER_LENGTH + inner.len()) as u16;

    let mut packet = Ipv4Packet::new_unchecked(&mut outer[..]);
    let [sum, length, number] = [packet.header_checksum(), total_length, identification].map(u64::from);
    packet.set_total_length(total_length);
    packet.set_identification(identification);
    packet.set_header_checksum(!checksum::fold(sum + length + number));

    let mut datagram = UdpDatagram::new_unchecked(&mut outer[ipv4::HEADER_LENGTH..]);
    // The length stands in the header and in the pseudo-header.
    let sum = u64::from(datagram.checksum()) + 2 * u64::from(udp_length) + inner_sum;
    let sum = !checksum::fold(sum);
    datagram.set_length(udp_length);
    // A sum of zero is sent as all ones: zero means that there is no checksum (RFC 768).
    datagram.set_checksum(if sum == 0 { 0xffff } else { sum });
}

/// Sums a whole inner packet, unfolded; a right IPv4 header sums to all ones, and so does a right transport segment with
/// its pseudo-header.
#[inline(always)]
fn inner_sum(inner: &[u8], verified: bool) -> u64 {
    let (Some(header), true) = (inner.first_chunk::<{ ipv4::HEADER_LENGTH }>(), verified) else {
        return checksum::ones_complement_sum(inner).into();
    };
    let packet = Ipv4Packet::new_unchecked(header);
    let length = packet.total_length() - packet.header_length() as u16;
    match packet.protocol() {
        _ if packet.is_fragment() => checksum::ones_complement_sum(inner).into(),
        IpProtocol::Icmp => 0xffff,
        IpProtocol::Udp if has_no_checksum(inner, packet.header_length()) => {
            checksum::ones_complement_sum(inner).into()
        }
        protocol @ (IpProtocol::Tcp | IpProtocol::Udp) => {
            let (source, destination) = (packet.source(), packet.destination());
            checksum::negative(checksum::wide_pseudo_header(source, destination, protocol, length))
        }
        IpProtocol::Unknown(_) => checksum::ones_complement_sum(inner).into(),
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
            };
            let mut derived = outer.template().to_vec();
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
}
