//! The TCP header.
//!
//! The parser, bindings (which follow a connection's state), rewriting and pods read and write it.
//! Invariants: a checked segment has `20 <= header length <= buffer`.
//! Depends on [`super::checksum`]. Read first: RFC 9293 section 3.1.

use super::{IpProtocol, checksum, read_u16, read_u32, write_u16, write_u32};
use std::fmt;
use std::net::Ipv4Addr;

/// Octets of a header without options.
pub const HEADER_LENGTH: usize = field::URGENT.end;

mod field {
    use std::ops::Range;
    pub(super) const SOURCE: Range<usize> = 0..2;
    pub(super) const DESTINATION: Range<usize> = 2..4;
    pub(super) const SEQUENCE: Range<usize> = 4..8;
    pub(super) const ACKNOWLEDGEMENT: Range<usize> = 8..12;
    pub(super) const OFFSET: usize = 12;
    pub(super) const FLAGS: usize = 13;
    pub(super) const WINDOW: Range<usize> = 14..16;
    pub(super) const CHECKSUM: Range<usize> = 16..18;
    pub(super) const URGENT: Range<usize> = 18..20;
}

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
const OPTION_WINDOW_SCALE: u8 = 3;

/// The control bits of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: Flags = Flags(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Flags = Flags(0x02);
    /// Reset the connection.
    pub const RST: Flags = Flags(0x04);
    /// Push to the application.
    pub const PSH: Flags = Flags(0x08);
    /// The acknowledgement field counts.
    pub const ACK: Flags = Flags(0x10);

    /// Makes flags of the octet in the header.
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        Flags(bits)
    }

    /// Returns the octet in the header.
    #[inline(always)]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Says whether all of `other` are set.
    #[inline(always)]
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Says whether any of `other` is set.
    #[inline(always)]
    pub const fn intersects(self, other: Flags) -> bool {
        self.0 & other.0 != 0
    }

    /// Returns the flags of both.
    #[must_use]
    #[inline(always)]
    pub const fn with(self, other: Flags) -> Self {
        Flags(self.0 | other.0)
    }

    /// FIN is set.
    #[inline(always)]
    pub const fn fin(self) -> bool {
        self.contains(Flags::FIN)
    }

    /// SYN is set.
    #[inline(always)]
    pub const fn syn(self) -> bool {
        self.contains(Flags::SYN)
    }

    /// RST is set.
    #[inline(always)]
    pub const fn rst(self) -> bool {
        self.contains(Flags::RST)
    }

    /// PSH is set.
    #[inline(always)]
    pub const fn psh(self) -> bool {
        self.contains(Flags::PSH)
    }

    /// ACK is set.
    #[inline(always)]
    pub const fn ack(self) -> bool {
        self.contains(Flags::ACK)
    }
}

impl fmt::Display for Flags {
    /// Writes the flags as tcpdump does: `S`, `F.`, `P.`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters =
            [(Flags::FIN, "F"), (Flags::SYN, "S"), (Flags::RST, "R"), (Flags::PSH, "P"), (Flags::ACK, ".")];
        for (flag, letter) in letters {
            if self.contains(flag) {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flags({self})")
    }
}

/// Why bytes are no TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedTcp {
    /// Fewer than 20 bytes.
    #[error("the segment is shorter than a TCP header")]
    TooShort,
    /// A header length below 20 or beyond the segment.
    #[error("the TCP header length does not fit the segment")]
    HeaderLength,
}

/// A view of a TCP segment.
#[derive(Debug, Clone, Copy)]
pub struct Segment<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> Segment<T> {
    /// Takes a buffer that the caller has sized.
    #[inline(always)]
    pub const fn new_unchecked(buffer: T) -> Self {
        Segment { buffer }
    }

    /// Takes the payload of an IPv4 packet.
    ///
    /// # Errors
    /// Each variant of [`MalformedTcp`].
    #[inline(always)]
    pub fn new_checked(buffer: T) -> Result<Self, MalformedTcp> {
        if buffer.as_ref().len() < HEADER_LENGTH {
            return Err(MalformedTcp::TooShort);
        }
        let segment = Segment { buffer };
        let header = segment.header_length();
        if header < HEADER_LENGTH || header > segment.buffer.as_ref().len() {
            return Err(MalformedTcp::HeaderLength);
        }
        Ok(segment)
    }

    /// Returns the sender's port.
    #[inline(always)]
    pub fn source_port(&self) -> u16 {
        read_u16(self.buffer.as_ref(), &field::SOURCE)
    }

    /// Returns the receiver's port.
    #[inline(always)]
    pub fn destination_port(&self) -> u16 {
        read_u16(self.buffer.as_ref(), &field::DESTINATION)
    }

    /// Returns the sequence number of the first octet.
    #[inline(always)]
    pub fn sequence(&self) -> u32 {
        read_u32(self.buffer.as_ref(), &field::SEQUENCE)
    }

    /// Returns the next sequence number expected from the other side.
    #[inline(always)]
    pub fn acknowledgement(&self) -> u32 {
        read_u32(self.buffer.as_ref(), &field::ACKNOWLEDGEMENT)
    }

    /// Returns the header's length in octets.
    #[inline(always)]
    pub fn header_length(&self) -> usize {
        usize::from(self.buffer.as_ref()[field::OFFSET] >> 4) * 4
    }

    /// Returns the control bits.
    #[inline(always)]
    pub fn flags(&self) -> Flags {
        Flags(self.buffer.as_ref()[field::FLAGS])
    }

    /// Returns the window as it stands, not scaled.
    #[inline(always)]
    pub fn window(&self) -> u16 {
        read_u16(self.buffer.as_ref(), &field::WINDOW)
    }

    /// Returns the checksum as it stands.
    #[inline(always)]
    pub fn checksum(&self) -> u16 {
        read_u16(self.buffer.as_ref(), &field::CHECKSUM)
    }

    /// Returns the option bytes.
    #[inline(always)]
    pub fn options(&self) -> &[u8] {
        self.buffer.as_ref().get(HEADER_LENGTH..self.header_length()).unwrap_or_default()
    }

    /// Returns where in the segment the value of the maximum segment size option stands, and the value.
    #[inline(always)]
    pub fn maximum_segment_size(&self) -> Option<(usize, u16)> {
        let (at, value) = self.option(OPTION_MSS, 2)?;
        Some((HEADER_LENGTH + at, read_u16(value, &(0..2))))
    }

    /// Returns the window scale (RFC 7323, 2.2), if the segment has one; never above 14.
    pub fn window_scale(&self) -> Option<u8> {
        let (_, value) = self.option(OPTION_WINDOW_SCALE, 1)?;
        value.first().map(|&scale| scale.min(14))
    }

    /// Finds an option's value of a given length, and where among the options it stands.
    #[inline(always)]
    fn option(&self, kind: u8, value_length: usize) -> Option<(usize, &[u8])> {
        let options = self.options();
        let mut at = 0;
        while at < options.len() {
            let length = match options[at] {
                OPTION_END => return None,
                OPTION_NOP => 1,
                _ => usize::from(*options.get(at + 1)?),
            };
            if options[at] == kind && length == value_length + 2 && at + length <= options.len() {
                return Some((at + 2, &options[at + 2..at + length]));
            }
            if length == 0 || (options[at] != OPTION_NOP && length < 2) {
                return None;
            }
            at += length;
        }
        None
    }

    /// Returns the data.
    #[inline(always)]
    pub fn payload(&self) -> &[u8] {
        self.buffer.as_ref().get(self.header_length()..).unwrap_or_default()
    }

    /// Says whether the checksum is right.
    pub fn verify_checksum(&self, source: Ipv4Addr, destination: Ipv4Addr) -> bool {
        checksum::transport_checksum(source, destination, IpProtocol::Tcp, self.buffer.as_ref()) == 0
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Segment<T> {
    /// Sets the sender's port.
    #[inline(always)]
    pub fn set_source_port(&mut self, value: u16) {
        write_u16(self.buffer.as_mut(), &field::SOURCE, value);
    }

    /// Sets the receiver's port.
    #[inline(always)]
    pub fn set_destination_port(&mut self, value: u16) {
        write_u16(self.buffer.as_mut(), &field::DESTINATION, value);
    }

    /// Sets the sequence number.
    #[inline(always)]
    pub fn set_sequence(&mut self, value: u32) {
        write_u32(self.buffer.as_mut(), &field::SEQUENCE, value);
    }

    /// Sets the acknowledgement number.
    #[inline(always)]
    pub fn set_acknowledgement(&mut self, value: u32) {
        write_u32(self.buffer.as_mut(), &field::ACKNOWLEDGEMENT, value);
    }

    /// Sets the header's length in octets, a multiple of 4; this voids the check.
    #[inline(always)]
    pub fn set_header_length(&mut self, octets: usize) {
        self.buffer.as_mut()[field::OFFSET] = ((octets / 4) as u8) << 4;
    }

    /// Sets the control bits.
    #[inline(always)]
    pub fn set_flags(&mut self, value: Flags) {
        self.buffer.as_mut()[field::FLAGS] = value.bits();
    }

    /// Sets the window.
    #[inline(always)]
    pub fn set_window(&mut self, value: u16) {
        write_u16(self.buffer.as_mut(), &field::WINDOW, value);
    }

    /// Sets the checksum.
    #[inline(always)]
    pub fn set_checksum(&mut self, value: u16) {
        write_u16(self.buffer.as_mut(), &field::CHECKSUM, value);
    }

    /// Sets the urgent pointer.
    #[inline(always)]
    pub fn set_urgent(&mut self, value: u16) {
        write_u16(self.buffer.as_mut(), &field::URGENT, value);
    }

    /// Computes the checksum and writes it.
    pub fn fill_checksum(&mut self, source: Ipv4Addr, destination: Ipv4Addr) {
        self.set_checksum(0);
        let sum = checksum::transport_checksum(source, destination, IpProtocol::Tcp, self.buffer.as_ref());
        self.set_checksum(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::tcp::{TcpPacket, ipv4_checksum};
    use proptest::prelude::*;

    const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 2);
    const DESTINATION: Ipv4Addr = Ipv4Addr::new(10, 1, 20, 3);

    /// RFC 9293, 3.1.
    #[test]
    fn wrong_header_lengths_are_named() {
        assert_eq!(Segment::new_checked([0; 19]).err(), Some(MalformedTcp::TooShort));
        let mut bytes = [0; 20];
        assert_eq!(Segment::new_checked(bytes).err(), Some(MalformedTcp::HeaderLength));
        bytes[12] = 0x60;
        assert_eq!(Segment::new_checked(bytes).err(), Some(MalformedTcp::HeaderLength));
    }

    /// RFC 9293, 3.1 and 3.7.1.
    #[test]
    fn segment_size_is_found_behind_other_options() {
        let mut bytes = [0; 28];
        let mut segment = Segment::new_unchecked(&mut bytes[..]);
        segment.set_header_length(28);
        segment.set_flags(Flags::SYN);
        bytes[20..].copy_from_slice(&[1, 3, 3, 7, 2, 4, 0x05, 0xb4]);
        assert_eq!(Segment::new_checked(bytes).unwrap().maximum_segment_size(), Some((26, 1460)));
        bytes[20..].copy_from_slice(&[1, 3, 0, 7, 2, 4, 0x05, 0xb4]);
        assert_eq!(Segment::new_checked(bytes).unwrap().maximum_segment_size(), None);
    }

    #[test]
    fn flags_are_written_as_tcpdump_does() {
        assert_eq!(Flags::SYN.with(Flags::ACK).to_string(), "S.");
    }

    proptest! {
        #[test]
        fn agrees_with_pnet(mut bytes in proptest::collection::vec(any::<u8>(), 0..100), plausible: bool) {
            if plausible && bytes.len() >= 20 {
                bytes[12] = 0x50 + (bytes[12] & 0x20);
            }
            if let Ok(ours) = Segment::new_checked(&bytes[..]) {
                let theirs = TcpPacket::new(&bytes).unwrap();
                prop_assert_eq!(ours.source_port(), theirs.get_source());
                prop_assert_eq!(ours.destination_port(), theirs.get_destination());
                prop_assert_eq!(ours.sequence(), theirs.get_sequence());
                prop_assert_eq!(ours.acknowledgement(), theirs.get_acknowledgement());
                prop_assert_eq!(ours.header_length(), usize::from(theirs.get_data_offset()) * 4);
                prop_assert_eq!(ours.flags().bits(), theirs.get_flags());
                prop_assert_eq!(ours.window(), theirs.get_window());
                prop_assert_eq!(ours.payload(), &bytes[ours.header_length()..]);
                let expected = ipv4_checksum(&theirs, &SOURCE, &DESTINATION);
                let mut copy = bytes.clone();
                let mut filled = Segment::new_unchecked(&mut copy[..]);
                filled.fill_checksum(SOURCE, DESTINATION);
                prop_assert_eq!(filled.checksum(), expected);
                prop_assert!(filled.verify_checksum(SOURCE, DESTINATION));
                let _ = ours.maximum_segment_size();
            }
        }
    }
}
