//! The VXLAN header: which overlay the Ethernet frame behind it belongs to.
//!
//! The parser and the tunnel read and write it.
//! Invariant: a checked header is whole, and says that it has a network's number and nothing else.
//! Depends on nothing. Read first: RFC 7348, 5.

use super::{read_u32, write_u32};

/// Octets of the header.
pub const HEADER_LENGTH: usize = field::VNI.end;

/// The first number that no network has: there are 24 bits for it.
pub const VNI_LIMIT: u32 = 1 << 24;

/// The flags of a header with a network's number (I).
const HAS_NETWORK: u32 = 0x0800_0000;

mod field {
    use std::ops::Range;
    pub(super) const FLAGS: Range<usize> = 0..4;
    pub(super) const VNI: Range<usize> = 4..8;
}

/// Why bytes are no VXLAN header that can be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedVxlan {
    /// Fewer than 8 bytes.
    #[error("the datagram is shorter than a VXLAN header")]
    TooShort,
    /// Without the flag I, or with something that RFC 7348 reserves. It has that ignored; but who sets it means an extension by
    /// which what follows may be no Ethernet frame, and Linux drops it, too.
    #[error("the header has other flags than I")]
    Flags,
}

/// A view of a VXLAN header and what follows it.
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

    /// Takes the payload of a datagram.
    ///
    /// # Errors
    /// Each variant of [`MalformedVxlan`].
    #[inline(always)]
    pub fn new_checked(buffer: T) -> Result<Self, MalformedVxlan> {
        if buffer.as_ref().len() < HEADER_LENGTH {
            return Err(MalformedVxlan::TooShort);
        }
        let bytes = buffer.as_ref();
        let reserved = read_u32(bytes, &field::VNI) & 0xff;
        if read_u32(bytes, &field::FLAGS) != HAS_NETWORK || reserved != 0 {
            return Err(MalformedVxlan::Flags);
        }
        Ok(Packet { buffer })
    }

    /// Returns the network's number, below [`VNI_LIMIT`].
    #[inline(always)]
    pub fn vni(&self) -> u32 {
        read_u32(self.buffer.as_ref(), &field::VNI) >> 8
    }

    /// Returns the Ethernet frame behind the header.
    #[inline(always)]
    pub fn payload(&self) -> &[u8] {
        self.buffer.as_ref().get(HEADER_LENGTH..).unwrap_or_default()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Writes the whole header, with the network's number, of which the lower 24 bits count.
    #[inline(always)]
    pub fn fill(&mut self, vni: u32) {
        write_u32(self.buffer.as_mut(), &field::FLAGS, HAS_NETWORK);
        write_u32(self.buffer.as_mut(), &field::VNI, vni << 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// RFC 7348, 5.
        #[test]
        fn any_header_but_that_of_a_network_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            match Packet::new_checked(&bytes[..]) {
                Ok(packet) => {
                    prop_assert_eq!((&bytes[..4], bytes[7]), (&[8, 0, 0, 0][..], 0));
                    prop_assert_eq!(packet.payload(), &bytes[8..]);
                }
                Err(MalformedVxlan::TooShort) => prop_assert!(bytes.len() < 8),
                Err(MalformedVxlan::Flags) => prop_assert!(bytes[..4] != [8, 0, 0, 0] || bytes[7] != 0),
            }
        }

        #[test]
        fn what_is_written_is_read(vni in 0..VNI_LIMIT) {
            let mut bytes = [0xff; 10];
            Packet::new_unchecked(&mut bytes[..]).fill(vni);
            let packet = Packet::new_checked(&bytes[..]).unwrap();
            prop_assert_eq!((packet.vni(), packet.payload()), (vni, &[0xff, 0xff][..]));
        }
    }
}
