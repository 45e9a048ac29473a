//! The Ethernet II header.
//!
//! Every link delivers and takes such frames; the bridge decides by their addresses, the parser by their type.
//! Invariants: a checked frame has its whole 14-byte header; there is no frame check sequence; VLAN tags are a type.
//! Depends on [`super::mac`]. Read first: RFC 894.

use super::{MacAddress, read_mac, read_u16, write_u16};

/// Octets of the header.
pub const HEADER_LENGTH: usize = field::PAYLOAD.start;

mod field {
    use std::ops::{Range, RangeFrom};
    pub(super) const DESTINATION: Range<usize> = 0..6;
    pub(super) const SOURCE: Range<usize> = 6..12;
    pub(super) const TYPE: Range<usize> = 12..14;
    pub(super) const PAYLOAD: RangeFrom<usize> = 14..;
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EtherType {
    /// IPv4, 0x0800.
    Ipv4,
    /// ARP, 0x0806.
    Arp,
    /// IPv6, 0x86dd.
    Ipv6,
    /// An IEEE 802.1Q tag, 0x8100.
    Vlan,
    /// Any other type (or an IEEE 802.3 length).
    Unknown(u16),
}

impl From<u16> for EtherType {
    #[inline(always)]
    fn from(value: u16) -> Self {
        match value {
            0x0800 => EtherType::Ipv4,
            0x0806 => EtherType::Arp,
            0x86dd => EtherType::Ipv6,
            0x8100 => EtherType::Vlan,
            other => EtherType::Unknown(other),
        }
    }
}

impl From<EtherType> for u16 {
    #[inline(always)]
    fn from(value: EtherType) -> u16 {
        match value {
            EtherType::Ipv4 => 0x0800,
            EtherType::Arp => 0x0806,
            EtherType::Ipv6 => 0x86dd,
            EtherType::Vlan => 0x8100,
            EtherType::Unknown(other) => other,
        }
    }
}

/// Why bytes are no Ethernet frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedEthernet {
    /// Fewer than 14 bytes.
    #[error("the frame is shorter than an Ethernet header")]
    TooShort,
}

/// A view of an Ethernet frame.
#[derive(Debug, Clone, Copy)]
pub struct Frame<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> Frame<T> {
    /// Takes a buffer that the caller has sized.
    #[inline(always)]
    pub const fn new_unchecked(buffer: T) -> Self {
        Frame { buffer }
    }

    /// Takes received bytes.
    ///
    /// # Errors
    /// [`MalformedEthernet::TooShort`] when the header does not fit.
    #[inline(always)]
    pub fn new_checked(buffer: T) -> Result<Self, MalformedEthernet> {
        if buffer.as_ref().len() < HEADER_LENGTH {
            return Err(MalformedEthernet::TooShort);
        }
        Ok(Frame { buffer })
    }

    /// Gives the buffer back.
    #[inline(always)]
    pub fn into_inner(self) -> T {
        self.buffer
    }

    /// Returns the receiver's address.
    #[inline(always)]
    pub fn destination(&self) -> MacAddress {
        read_mac(self.buffer.as_ref(), &field::DESTINATION)
    }

    /// Returns the sender's address.
    #[inline(always)]
    pub fn source(&self) -> MacAddress {
        read_mac(self.buffer.as_ref(), &field::SOURCE)
    }

    /// Returns what the frame carries.
    #[inline(always)]
    pub fn ethertype(&self) -> EtherType {
        read_u16(self.buffer.as_ref(), &field::TYPE).into()
    }

    /// Returns what follows the header, padding included.
    #[inline(always)]
    pub fn payload(&self) -> &[u8] {
        &self.buffer.as_ref()[field::PAYLOAD]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Frame<T> {
    /// Sets the receiver's address.
    #[inline(always)]
    pub fn set_destination(&mut self, value: MacAddress) {
        self.buffer.as_mut()[field::DESTINATION].copy_from_slice(&value.octets());
    }

    /// Sets the sender's address.
    #[inline(always)]
    pub fn set_source(&mut self, value: MacAddress) {
        self.buffer.as_mut()[field::SOURCE].copy_from_slice(&value.octets());
    }

    /// Sets the type.
    #[inline(always)]
    pub fn set_ethertype(&mut self, value: EtherType) {
        write_u16(self.buffer.as_mut(), &field::TYPE, value.into());
    }

    /// Returns what follows the header, to write.
    #[inline(always)]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.as_mut()[field::PAYLOAD]
    }
}

/// Bytes of both addresses.
pub const ADDRESSES_LENGTH: usize = field::SOURCE.end;
/// Bytes of an 802.1Q or 802.1ad tag.
pub const TAG_LENGTH: usize = 4;
/// Tag protocol identifiers of IEEE 802.1Q and 802.1ad.
pub const TAGS: [u16; 2] = [0x8100, 0x88a8];
/// The VLAN of a tag's last two bytes; beside it are priority and drop eligibility.
const VLAN: u16 = 0x0fff;

/// Tells whether a frame has a tag of no VLAN, which says its priority alone: to a station it is untagged (IEEE 802.1Q, 9.6,
/// table 9-2).
#[must_use]
pub fn is_priority_tagged(frame: &[u8]) -> bool {
    let half = |at: usize| frame.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    half(12).is_some_and(|kind| TAGS.contains(&kind)) && half(14).is_some_and(|tag| tag & VLAN == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::Packet as _;
    use pnet_packet::ethernet::EthernetPacket;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_pnet(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let theirs = EthernetPacket::new(&bytes);
            let ours = Frame::new_checked(&bytes[..]);
            prop_assert_eq!(ours.is_ok(), theirs.is_some());
            if let (Ok(ours), Some(theirs)) = (ours, theirs) {
                prop_assert_eq!(ours.destination().to_string(), theirs.get_destination().to_string());
                prop_assert_eq!(ours.source().to_string(), theirs.get_source().to_string());
                prop_assert_eq!(u16::from(ours.ethertype()), theirs.get_ethertype().0);
                prop_assert_eq!(ours.payload(), theirs.payload());
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut bytes = [0; 16];
        let mut frame = Frame::new_unchecked(&mut bytes[..]);
        frame.set_destination(MacAddress::BROADCAST);
        frame.set_source(MacAddress::new([2, 0, 0, 0, 0, 1]));
        frame.set_ethertype(EtherType::Arp);
        frame.payload_mut().fill(7);
        assert_eq!(bytes, [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6, 7, 7]);
    }
}
