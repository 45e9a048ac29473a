//! The UDP header.
//!
//! The parser, rewriting, the tunnel and pods read and write it.
//! Invariants: a checked datagram has `8 <= length <= buffer`; a checksum of zero means none.
//! Depends on [`super::checksum`]. Read first: RFC 768.

use super::{IpProtocol, checksum, read_u16, write_u16};
use std::net::Ipv4Addr;

/// Octets of the header.
pub const HEADER_LENGTH: usize = field::CHECKSUM.end;

mod field {
    use std::ops::Range;
    pub(super) const SOURCE: Range<usize> = 0..2;
    pub(super) const DESTINATION: Range<usize> = 2..4;
    pub(super) const LENGTH: Range<usize> = 4..6;
    pub(super) const CHECKSUM: Range<usize> = 6..8;
}

/// Why bytes are no UDP datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedUdp {
    /// Fewer than 8 bytes.
    #[error("the datagram is shorter than a UDP header")]
    TooShort,
    /// A length below 8 or beyond the packet.
    #[error("the UDP length does not fit the packet")]
    Length,
}

/// A view of a UDP datagram.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> Datagram<T> {
    /// Takes a buffer that the caller has sized.
    #[inline(always)]
    pub const fn new_unchecked(buffer: T) -> Self {
        Datagram { buffer }
    }

    /// Takes the payload of an IPv4 packet.
    ///
    /// # Errors
    /// Each variant of [`MalformedUdp`].
    #[inline(always)]
    pub fn new_checked(buffer: T) -> Result<Self, MalformedUdp> {
        if buffer.as_ref().len() < HEADER_LENGTH {
            return Err(MalformedUdp::TooShort);
        }
        let datagram = Datagram { buffer };
        let length = usize::from(datagram.length());
        if length < HEADER_LENGTH || length > datagram.buffer.as_ref().len() {
            return Err(MalformedUdp::Length);
        }
        Ok(datagram)
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

    /// Returns the length in octets, header included.
    #[inline(always)]
    pub fn length(&self) -> u16 {
        read_u16(self.buffer.as_ref(), &field::LENGTH)
    }

    /// Returns the checksum as it stands; zero means none.
    #[inline(always)]
    pub fn checksum(&self) -> u16 {
        read_u16(self.buffer.as_ref(), &field::CHECKSUM)
    }

    /// Returns what follows the header.
    #[inline(always)]
    pub fn payload(&self) -> &[u8] {
        let bytes = self.buffer.as_ref();
        bytes.get(HEADER_LENGTH..usize::from(self.length()).min(bytes.len())).unwrap_or_default()
    }

    /// Says whether the checksum is right or absent.
    pub fn verify_checksum(&self, source: Ipv4Addr, destination: Ipv4Addr) -> bool {
        let bytes = self.buffer.as_ref();
        let covered = &bytes[..usize::from(self.length()).min(bytes.len())];
        self.checksum() == 0
            || checksum::transport_checksum(source, destination, IpProtocol::Udp, covered) == 0
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Datagram<T> {
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

    /// Sets the length, header included; this voids the check.
    #[inline(always)]
    pub fn set_length(&mut self, value: u16) {
        write_u16(self.buffer.as_mut(), &field::LENGTH, value);
    }

    /// Sets the checksum.
    #[inline(always)]
    pub fn set_checksum(&mut self, value: u16) {
        write_u16(self.buffer.as_mut(), &field::CHECKSUM, value);
    }

    /// Returns what follows the header, to write.
    #[inline(always)]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let length = usize::from(self.length());
        let bytes = self.buffer.as_mut();
        let end = length.min(bytes.len());
        bytes.get_mut(HEADER_LENGTH..end).unwrap_or_default()
    }

    /// Computes the checksum and writes it; a zero sum is sent as 0xffff (RFC 768).
    pub fn fill_checksum(&mut self, source: Ipv4Addr, destination: Ipv4Addr) {
        self.set_checksum(0);
        let bytes = self.buffer.as_ref();
        let covered = &bytes[..usize::from(self.length()).min(bytes.len())];
        let sum = checksum::transport_checksum(source, destination, IpProtocol::Udp, covered);
        self.set_checksum(if sum == 0 { 0xffff } else { sum });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::udp::{UdpPacket, ipv4_checksum};
    use proptest::prelude::*;

    const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 2);
    const DESTINATION: Ipv4Addr = Ipv4Addr::new(10, 1, 20, 3);

    /// RFC 768.
    #[test]
    fn wrong_lengths_are_named() {
        assert_eq!(Datagram::new_checked([0; 7]).err(), Some(MalformedUdp::TooShort));
        assert_eq!(Datagram::new_checked([0; 8]).err(), Some(MalformedUdp::Length));
        assert_eq!(Datagram::new_checked([0, 1, 0, 2, 0, 9, 0, 0]).err(), Some(MalformedUdp::Length));
    }

    proptest! {
        #[test]
        fn agrees_with_pnet(mut bytes in proptest::collection::vec(any::<u8>(), 0..64), plausible: bool) {
            if plausible && bytes.len() >= 8 {
                bytes[4] = 0;
                bytes[5] = bytes.len() as u8;
            }
            if let Ok(ours) = Datagram::new_checked(&bytes[..]) {
                let theirs = UdpPacket::new(&bytes).unwrap();
                prop_assert_eq!(ours.source_port(), theirs.get_source());
                prop_assert_eq!(ours.destination_port(), theirs.get_destination());
                prop_assert_eq!(ours.length(), theirs.get_length());
                prop_assert_eq!(ours.checksum(), theirs.get_checksum());
                prop_assert_eq!(ours.payload(), &bytes[8..usize::from(ours.length())]);
            }
        }

        /// RFC 768.
        #[test]
        fn filled_checksum_is_the_one_of_pnet(payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = vec![0; HEADER_LENGTH + payload.len()];
            let mut datagram = Datagram::new_unchecked(&mut bytes[..]);
            datagram.set_source_port(4000);
            datagram.set_destination_port(53);
            datagram.set_length((HEADER_LENGTH + payload.len()) as u16);
            datagram.payload_mut().copy_from_slice(&payload);
            datagram.fill_checksum(SOURCE, DESTINATION);
            prop_assert!(datagram.verify_checksum(SOURCE, DESTINATION));
            let expected = match ipv4_checksum(&UdpPacket::new(&bytes).unwrap(), &SOURCE, &DESTINATION) {
                0 => 0xffff,
                sum => sum,
            };
            prop_assert_eq!(Datagram::new_checked(&bytes[..]).unwrap().checksum(), expected);
        }
    }
}
