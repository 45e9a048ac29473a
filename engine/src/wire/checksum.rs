//! All arithmetic of the internet checksum: full sums, pseudo-headers and changes by difference.
//!
//! Called by the header views, by rewriting and by links that finish a partial checksum; nothing else adds words.
//!
//! Invariants: a sum is kept folded to 16 bits; [`Difference`] gives the same checksum as a full sum over the changed
//! bytes; a UDP checksum of zero ("none", RFC 768) stays zero and no other checksum becomes zero.
//! Depends on nothing. Read first: RFC 1071, RFC 1624 (equation 3), RFC 768.

use super::IpProtocol;
use std::net::Ipv4Addr;

/// Tells whether an IPv4 header without options has a right checksum: whether its words sum to all ones, which is whether
/// the plain sum is a multiple of 2¹⁶ - 1 (and not zero), in any byte order (RFC 1071, 2). So is that of eight bytes, modulo 2⁶⁴ - 1.
#[inline(always)]
#[must_use]
pub fn is_header_right(header: &[u8; 20]) -> bool {
    const MODULUS: u64 = 0xffff;
    // Multiples of an odd number, and no others, are small times its inverse modulo 2⁶⁴.
    const INVERSE: u64 = 0xfffe_fffe_fffe_ffff;
    const { assert!(MODULUS.wrapping_mul(INVERSE) == 1) };
    let (words, last) = header.as_chunks::<8>();
    let last = last.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
    let sum = words.iter().fold(u64::from(last), |sum, word| {
        let (sum, carry) = sum.overflowing_add(u64::from_ne_bytes(*word));
        sum + u64::from(carry)
    });
    (1..=u64::MAX / MODULUS).contains(&sum.wrapping_mul(INVERSE))
}

/// Adds the 16-bit words of `bytes` in ones' complement; an odd last byte counts as the high half of a word.
///
/// Words of four bytes are added into eight wide accumulators side by side, which RFC 1071 section 2 (A and C) allows: no
/// carry is lost, and no addition waits for the one before.
pub fn ones_complement_sum(bytes: &[u8]) -> u16 {
    let mut lanes = [0; 8];
    let (chunks, rest) = bytes.as_chunks::<32>();
    for chunk in chunks {
        add_words(&mut lanes, chunk);
    }
    last_sum(lanes, rest)
}

/// Copies `from` into a place as long, and returns the same sum of it: what is copied is read once for both.
pub fn copy_and_sum(to: &mut [u8], from: &[u8]) -> u16 {
    let mut lanes = [0; 8];
    let (chunks, rest) = from.as_chunks::<32>();
    let (places, place) = to.as_chunks_mut::<32>();
    for (place, chunk) in places.iter_mut().zip(chunks) {
        *place = *chunk;
        add_words(&mut lanes, chunk);
    }
    place.copy_from_slice(rest);
    last_sum(lanes, rest)
}

#[inline(always)]
fn add_words(lanes: &mut [u64; 8], chunk: &[u8; 32]) {
    for (lane, word) in lanes.iter_mut().zip(chunk.as_chunks::<4>().0) {
        *lane += u64::from(u32::from_ne_bytes(*word));
    }
}

/// Adds less than 32 bytes more, and folds.
#[inline(always)]
fn last_sum(lanes: [u64; 8], rest: &[u8]) -> u16 {
    let (words, rest) = rest.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let words = words.iter().chain([&last]).map(|word| u64::from(u32::from_ne_bytes(*word)));
    u16::from_be(fold(lanes.into_iter().chain(words).sum()))
}

/// Adds two sums in ones' complement.
#[inline(always)]
pub const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u16
}

/// Returns the checksum of `bytes`: zero when they contain a right one.
#[inline(always)]
pub fn checksum(bytes: &[u8]) -> u16 {
    !ones_complement_sum(bytes)
}

/// Returns the sum of the pseudo-header of TCP and UDP (RFC 793, RFC 768); `length` counts header and payload.
#[inline(always)]
pub fn pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, protocol: IpProtocol, length: u16) -> u16 {
    fold(wide_pseudo_header(source, destination, protocol, length))
}

/// Returns the same sum before it is folded: at most 34 bits.
#[inline(always)]
pub fn wide_pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, protocol: IpProtocol, length: u16) -> u64 {
    let addresses = u64::from(source.to_bits()) + u64::from(destination.to_bits());
    addresses + u64::from(u8::from(protocol)) + u64::from(length)
}

/// Returns what cancels a sum of at most 34 bits: a multiple of 2¹⁶ - 1 less that sum.
#[inline(always)]
pub const fn negative(wide: u64) -> u64 {
    (0xffff << 20) - wide
}

/// Returns the checksum of a TCP segment or UDP datagram below its pseudo-header: zero when it contains a right one.
pub fn transport_checksum(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: IpProtocol,
    bytes: &[u8],
) -> u16 {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    !add(pseudo_header(source, destination, protocol, length), ones_complement_sum(bytes))
}

/// Folds a wide sum to 16 bits, with the carries added back.
#[inline(always)]
pub const fn fold(wide: u64) -> u16 {
    // A number added to its own rotation by half has the sum of its halves in the upper one, and the carry with it.
    let sum = (wide.wrapping_add(wide.rotate_left(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// What replacing some 16-bit words adds to the sum of a packet (RFC 1624); it can be kept and applied to many packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Difference(u16);

impl Difference {
    /// Takes a difference back from [`Difference::to_bits`].
    #[must_use]
    #[inline(always)]
    pub const fn from_bits(bits: u16) -> Self {
        Difference(bits)
    }

    /// Returns the difference as a word, to keep it.
    #[must_use]
    #[inline(always)]
    pub const fn to_bits(self) -> u16 {
        self.0
    }

    /// Adds the replacement of one word.
    #[must_use]
    #[inline(always)]
    pub const fn replace_u16(self, old: u16, new: u16) -> Self {
        if old == new {
            return self;
        }
        Difference(add(add(self.0, !old), new))
    }

    /// Adds the replacement of one address (or any two aligned words).
    #[must_use]
    #[inline(always)]
    pub const fn replace_address(self, old: Ipv4Addr, new: Ipv4Addr) -> Self {
        let (old, new) = (old.to_bits(), new.to_bits());
        self.replace_u16((old >> 16) as u16, (new >> 16) as u16).replace_u16(old as u16, new as u16)
    }

    /// Joins two differences into one that does both.
    #[must_use]
    #[inline(always)]
    pub const fn combine(self, other: Difference) -> Self {
        Difference(add(self.0, other.0))
    }

    /// Returns the checksum after the change: `!(!checksum + difference)`, RFC 1624 equation 3.
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        if self.0 == 0 { checksum } else { !add(!checksum, self.0) }
    }

    /// Returns a UDP checksum after the change: "none" stays none, and no other becomes none (RFC 768, RFC 3022).
    #[inline(always)]
    pub const fn apply_udp(self, checksum: u16) -> u16 {
        if checksum == 0 {
            return 0;
        }
        match self.apply(checksum) {
            0 => 0xffff,
            changed => changed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive_sum(bytes: &[u8]) -> u16 {
        let mut sum: u32 = 0;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn example_of_rfc_1071() {
        assert_eq!(ones_complement_sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn example_of_rfc_1624() {
        assert_eq!(Difference::default().replace_u16(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    /// RFC 768: zero says that there is none.
    #[test]
    fn udp_checksum_none_stays_none_and_no_other_becomes_none() {
        let change = Difference::default().replace_u16(0x5555, 0x3285);
        assert_eq!(change.apply_udp(0), 0);
        assert_eq!(change.apply_udp(0xdd2f), 0xffff);
    }

    proptest! {
        #[test]
        fn a_header_is_right_when_its_sum_is(mut header: [u8; 20], filled: bool) {
            if filled {
                header[10..12].fill(0);
                let checksum = checksum(&header);
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            prop_assert_eq!(is_header_right(&header), ones_complement_sum(&header) == 0xffff);
        }

        /// RFC 1071, 1 and 2.
        #[test]
        fn fast_sum_equals_naive_sum(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(ones_complement_sum(&bytes), naive_sum(&bytes));
            let mut copy = vec![0; bytes.len()];
            prop_assert_eq!(copy_and_sum(&mut copy, &bytes), naive_sum(&bytes));
            prop_assert_eq!(copy, bytes);
        }

        /// RFC 1624, 3.
        #[test]
        fn difference_equals_full_sum(
            mut bytes in proptest::collection::vec(any::<u8>(), 12..200),
            address: [u8; 4],
            port: u16,
        ) {
            let old_address = Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]);
            let old_port = u16::from_be_bytes([bytes[8], bytes[9]]);
            bytes[0] |= 1;
            let before = checksum(&bytes);
            bytes[4..8].copy_from_slice(&address);
            bytes[8..10].copy_from_slice(&port.to_be_bytes());
            let change = Difference::default().replace_address(old_address, address.into());
            let change = change.combine(Difference::default().replace_u16(old_port, port));
            prop_assert_eq!(change.apply(before), checksum(&bytes));
        }

        /// RFC 768; RFC 9293, 3.1.
        #[test]
        fn pseudo_header_equals_its_bytes(source: [u8; 4], destination: [u8; 4], protocol: u8, length: u16) {
            let mut bytes = Vec::new();
            bytes.extend_from_slice(&source);
            bytes.extend_from_slice(&destination);
            bytes.extend_from_slice(&[0, protocol]);
            bytes.extend_from_slice(&length.to_be_bytes());
            let sum = pseudo_header(source.into(), destination.into(), protocol.into(), length);
            prop_assert_eq!(sum, naive_sum(&bytes));
        }
    }
}
