//! The IPv4 header.
//!
//! The parser, routing, rewriting, the tunnel and pods read and write it.
//! Invariants: a checked packet has version 4 and `20 <= header length <= total length <= buffer`; what follows the total
//! length in the buffer is padding and never seen through the view.
//! Depends on [`super::checksum`]. Read first: RFC 791, RFC 1122 section 3.2.
//!
//! Above 400 lines because a header and the tests of all its fields are one file.

use super::{checksum, read_address, read_u16, write_u16};
use std::net::Ipv4Addr;

/// Octets of a header without options.
pub const HEADER_LENGTH: usize = field::DESTINATION.end;

mod field {
    use std::ops::Range;
    pub(super) const VERSION_IHL: usize = 0;
    pub(super) const SERVICE: usize = 1;
    pub(super) const TOTAL_LENGTH: Range<usize> = 2..4;
    pub(super) const IDENTIFICATION: Range<usize> = 4..6;
    pub(super) const FLAGS_OFFSET: Range<usize> = 6..8;
    pub(super) const TTL: usize = 8;
    pub(super) const PROTOCOL: usize = 9;
    pub(super) const CHECKSUM: Range<usize> = 10..12;
    pub(super) const SOURCE: Range<usize> = 12..16;
    pub(super) const DESTINATION: Range<usize> = 16..20;
}

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

/// What an IPv4 packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// ICMP, 1.
    Icmp,
    /// TCP, 6.
    Tcp,
    /// UDP, 17.
    Udp,
    /// Any other number.
    Unknown(u8),
}

impl From<u8> for Protocol {
    #[inline(always)]
    fn from(value: u8) -> Self {
        match value {
            1 => Protocol::Icmp,
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            other => Protocol::Unknown(other),
        }
    }
}

impl From<Protocol> for u8 {
    #[inline(always)]
    fn from(value: Protocol) -> u8 {
        match value {
            Protocol::Icmp => 1,
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Unknown(other) => other,
        }
    }
}

/// Why bytes are no IPv4 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedIpv4 {
    /// Fewer than 20 bytes, or fewer than the header says.
    #[error("the packet is shorter than its IPv4 header")]
    TooShort,
    /// Another version than 4.
    #[error("the packet's version is not 4")]
    WrongVersion,
    /// A header length below five words.
    #[error("the header length is below 20 octets")]
    HeaderLength,
    /// A total length below the header's or beyond the buffer.
    #[error("the total length does not fit the header or the frame")]
    TotalLength,
}

/// A view of an IPv4 packet.
#[derive(Debug, Clone, Copy)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// Takes a buffer that the caller has sized.
    #[inline(always)]
    pub const fn new_unchecked(buffer: T) -> Self {
        Packet { buffer }
    }

    /// Takes received bytes; padding may follow the packet.
    ///
    /// # Errors
    /// Each variant of [`MalformedIpv4`].
    #[inline(always)]
    pub fn new_checked(buffer: T) -> Result<Self, MalformedIpv4> {
        let packet = Self::new_quoted(buffer)?;
        if usize::from(packet.total_length()) > packet.buffer.as_ref().len() {
            return Err(MalformedIpv4::TotalLength);
        }
        Ok(packet)
    }

    /// Takes the start of a packet whose end is missing, as ICMP errors quote it: the whole header must be there.
    ///
    /// The payload is then what there is of it.
    ///
    /// # Errors
    /// All of [`MalformedIpv4`] but a total length beyond the buffer.
    #[inline(always)]
    pub fn new_quoted(buffer: T) -> Result<Self, MalformedIpv4> {
        let bytes = buffer.as_ref();
        if bytes.len() < HEADER_LENGTH {
            return Err(MalformedIpv4::TooShort);
        }
        let packet = Packet { buffer };
        if packet.version() != 4 {
            return Err(MalformedIpv4::WrongVersion);
        }
        let header = packet.header_length();
        if header < HEADER_LENGTH {
            return Err(MalformedIpv4::HeaderLength);
        }
        if header > packet.buffer.as_ref().len() {
            return Err(MalformedIpv4::TooShort);
        }
        if usize::from(packet.total_length()) < header {
            return Err(MalformedIpv4::TotalLength);
        }
        Ok(packet)
    }

    /// Gives the buffer back.
    #[inline(always)]
    pub fn into_inner(self) -> T {
        self.buffer
    }

    /// Returns the version: 4.
    #[inline(always)]
    pub fn version(&self) -> u8 {
        self.buffer.as_ref()[field::VERSION_IHL] >> 4
    }

    /// Returns the header's length in octets.
    #[inline(always)]
    pub fn header_length(&self) -> usize {
        usize::from(self.buffer.as_ref()[field::VERSION_IHL] & 0x0f) * 4
    }

    /// Says whether options follow the fixed header.
    #[inline(always)]
    pub fn has_options(&self) -> bool {
        self.header_length() > HEADER_LENGTH
    }

    /// Returns the service octet: DSCP and ECN.
    #[inline(always)]
    pub fn service(&self) -> u8 {
        self.buffer.as_ref()[field::SERVICE]
    }

    /// Returns the packet's length in octets, header included.
    #[inline(always)]
    pub fn total_length(&self) -> u16 {
        read_u16(self.buffer.as_ref(), &field::TOTAL_LENGTH)
    }

    /// Returns the identification, which the fragments of one packet share.
    #[inline(always)]
    pub fn identification(&self) -> u16 {
        read_u16(self.buffer.as_ref(), &field::IDENTIFICATION)
    }

    /// Says whether routers may not fragment the packet.
    #[inline(always)]
    pub fn dont_fragment(&self) -> bool {
        read_u16(self.buffer.as_ref(), &field::FLAGS_OFFSET) & DONT_FRAGMENT != 0
    }

    /// Says whether later fragments follow.
    #[inline(always)]
    pub fn more_fragments(&self) -> bool {
        read_u16(self.buffer.as_ref(), &field::FLAGS_OFFSET) & MORE_FRAGMENTS != 0
    }

    /// Returns where in the original payload this fragment starts, in octets.
    #[inline(always)]
    pub fn fragment_offset(&self) -> usize {
        usize::from(read_u16(self.buffer.as_ref(), &field::FLAGS_OFFSET) & OFFSET_MASK) * 8
    }

    /// Says whether the packet is a part of a larger one.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        read_u16(self.buffer.as_ref(), &field::FLAGS_OFFSET) & (MORE_FRAGMENTS | OFFSET_MASK) != 0
    }

    /// Returns how many routers the packet may still pass.
    #[inline(always)]
    pub fn time_to_live(&self) -> u8 {
        self.buffer.as_ref()[field::TTL]
    }

    /// Returns what the packet carries.
    #[inline(always)]
    pub fn protocol(&self) -> Protocol {
        self.buffer.as_ref()[field::PROTOCOL].into()
    }

    /// Returns the header's checksum as it stands.
    #[inline(always)]
    pub fn header_checksum(&self) -> u16 {
        read_u16(self.buffer.as_ref(), &field::CHECKSUM)
    }

    /// Returns the sender's address.
    #[inline(always)]
    pub fn source(&self) -> Ipv4Addr {
        read_address(self.buffer.as_ref(), &field::SOURCE)
    }

    /// Returns the receiver's address.
    #[inline(always)]
    pub fn destination(&self) -> Ipv4Addr {
        read_address(self.buffer.as_ref(), &field::DESTINATION)
    }

    /// Returns what follows the header, without padding.
    #[inline(always)]
    pub fn payload(&self) -> &[u8] {
        let bytes = self.buffer.as_ref();
        let end = usize::from(self.total_length()).min(bytes.len());
        bytes.get(self.header_length()..end).unwrap_or_default()
    }

    /// Says whether the header's checksum is right.
    #[inline(always)]
    pub fn verify_header_checksum(&self) -> bool {
        let bytes = self.buffer.as_ref();
        match bytes.first_chunk::<HEADER_LENGTH>() {
            Some(header) if !self.has_options() => checksum::is_header_right(header),
            Some(_) | None => checksum::checksum(&bytes[..self.header_length().min(bytes.len())]) == 0,
        }
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets version 4 and the header's length in octets, a multiple of 4; this voids the check.
    #[inline(always)]
    pub fn set_header_length(&mut self, octets: usize) {
        self.buffer.as_mut()[field::VERSION_IHL] = 0x40 | ((octets / 4) as u8 & 0x0f);
    }

    /// Sets the service octet.
    #[inline(always)]
    pub fn set_service(&mut self, value: u8) {
        self.buffer.as_mut()[field::SERVICE] = value;
    }

    /// Sets the packet's length, header included; this voids the check.
    #[inline(always)]
    pub fn set_total_length(&mut self, value: u16) {
        write_u16(self.buffer.as_mut(), &field::TOTAL_LENGTH, value);
    }

    /// Sets the identification.
    #[inline(always)]
    pub fn set_identification(&mut self, value: u16) {
        write_u16(self.buffer.as_mut(), &field::IDENTIFICATION, value);
    }

    /// Sets the three fragmentation fields; the offset, in octets, is a multiple of 8.
    #[inline(always)]
    pub fn set_fragmentation(&mut self, dont_fragment: bool, more_fragments: bool, offset: usize) {
        let mut value = (offset / 8) as u16 & OFFSET_MASK;
        if dont_fragment {
            value |= DONT_FRAGMENT;
        }
        if more_fragments {
            value |= MORE_FRAGMENTS;
        }
        write_u16(self.buffer.as_mut(), &field::FLAGS_OFFSET, value);
    }

    /// Sets how many routers the packet may pass.
    #[inline(always)]
    pub fn set_time_to_live(&mut self, value: u8) {
        self.buffer.as_mut()[field::TTL] = value;
    }

    /// Sets what the packet carries.
    #[inline(always)]
    pub fn set_protocol(&mut self, value: Protocol) {
        self.buffer.as_mut()[field::PROTOCOL] = value.into();
    }

    /// Sets the header's checksum.
    #[inline(always)]
    pub fn set_header_checksum(&mut self, value: u16) {
        write_u16(self.buffer.as_mut(), &field::CHECKSUM, value);
    }

    /// Sets the sender's address.
    #[inline(always)]
    pub fn set_source(&mut self, value: Ipv4Addr) {
        self.buffer.as_mut()[field::SOURCE].copy_from_slice(&value.octets());
    }

    /// Sets the receiver's address.
    #[inline(always)]
    pub fn set_destination(&mut self, value: Ipv4Addr) {
        self.buffer.as_mut()[field::DESTINATION].copy_from_slice(&value.octets());
    }

    /// Returns what follows the header, without padding, to write.
    #[inline(always)]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let (start, total) = (self.header_length(), usize::from(self.total_length()));
        let bytes = self.buffer.as_mut();
        let end = total.min(bytes.len());
        bytes.get_mut(start..end).unwrap_or_default()
    }

    /// Computes the header's checksum and writes it.
    #[inline(always)]
    pub fn fill_header_checksum(&mut self) {
        self.set_header_checksum(0);
        let bytes = self.buffer.as_ref();
        let sum = checksum::checksum(&bytes[..self.header_length().min(bytes.len())]);
        self.set_header_checksum(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::ipv4::Ipv4Packet;
    use proptest::prelude::*;

    fn header() -> Vec<u8> {
        let mut bytes = vec![0; 28];
        let mut packet = Packet::new_unchecked(&mut bytes[..]);
        packet.set_header_length(HEADER_LENGTH);
        packet.set_total_length(24);
        packet.set_identification(0x1234);
        packet.set_fragmentation(true, false, 0);
        packet.set_time_to_live(64);
        packet.set_protocol(Protocol::Udp);
        packet.set_source(Ipv4Addr::new(10, 1, 15, 2));
        packet.set_destination(Ipv4Addr::new(10, 1, 20, 3));
        packet.payload_mut().fill(9);
        packet.fill_header_checksum();
        bytes
    }

    /// RFC 894: padding is no part of the packet.
    #[test]
    fn padding_is_not_payload() {
        let bytes = header();
        let packet = Packet::new_checked(&bytes[..]).unwrap();
        assert_eq!(packet.payload(), [9, 9, 9, 9]);
        assert!(packet.verify_header_checksum() && packet.dont_fragment() && !packet.is_fragment());
    }

    /// RFC 1812, 5.2.2.
    #[test]
    fn each_malformation_has_its_name() {
        let cases: [(usize, u8, MalformedIpv4); 5] = [
            (0, 0x65, MalformedIpv4::WrongVersion),
            (0, 0x44, MalformedIpv4::HeaderLength),
            (0, 0x4f, MalformedIpv4::TooShort),
            (3, 19, MalformedIpv4::TotalLength),
            (3, 29, MalformedIpv4::TotalLength),
        ];
        for (at, value, expected) in cases {
            let mut bytes = header();
            bytes[at] = value;
            assert_eq!(Packet::new_checked(&bytes[..]).err(), Some(expected));
        }
        assert_eq!(Packet::new_checked(&header()[..19]).err(), Some(MalformedIpv4::TooShort));
    }

    proptest! {
        #[test]
        fn agrees_with_pnet(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), plausible: bool) {
            if plausible && bytes.len() >= 4 {
                bytes[0] = 0x45 + (bytes[0] & 1);
                bytes[2] = 0;
            }
            if let Ok(ours) = Packet::new_checked(&bytes[..]) {
                let theirs = Ipv4Packet::new(&bytes).unwrap();
                prop_assert_eq!(ours.header_length(), usize::from(theirs.get_header_length()) * 4);
                prop_assert_eq!(ours.service(), theirs.get_dscp() << 2 | theirs.get_ecn());
                prop_assert_eq!(ours.total_length(), theirs.get_total_length());
                prop_assert_eq!(ours.identification(), theirs.get_identification());
                prop_assert_eq!(ours.fragment_offset(), usize::from(theirs.get_fragment_offset()) * 8);
                prop_assert_eq!(ours.dont_fragment(), theirs.get_flags() & 2 != 0);
                prop_assert_eq!(ours.more_fragments(), theirs.get_flags() & 1 != 0);
                prop_assert_eq!(ours.time_to_live(), theirs.get_ttl());
                prop_assert_eq!(u8::from(ours.protocol()), theirs.get_next_level_protocol().0);
                prop_assert_eq!(ours.source(), theirs.get_source());
                prop_assert_eq!(ours.destination(), theirs.get_destination());
                let expected = pnet_packet::ipv4::checksum(&theirs);
                prop_assert_eq!(ours.verify_header_checksum(), expected == theirs.get_checksum());
                bytes[10..12].copy_from_slice(&expected.to_be_bytes());
                let ours = Packet::new_checked(&bytes[..]).unwrap();
                prop_assert!(ours.verify_header_checksum());
                prop_assert_eq!(ours.payload().len(), usize::from(ours.total_length()) - ours.header_length());
            }
        }
    }
}
