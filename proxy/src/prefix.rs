//! An IPv4 prefix.
//!
//! The leaf type that topology, agents and engine share: subnets of nodes, routes, the pod and the service network.
//!
//! Invariants: the length is 0 to 32 and the address has no host bits.
//!
//! May depend on `std` only.
//!
//! Read first: RFC 4632 section 3.1 (prefix notation).

use std::{error::Error, fmt, net::Ipv4Addr, str::FromStr};

/// A block of IPv4 addresses: a network address and how many of its leading bits count.
///
/// Orders by address, then by length: a block before the blocks inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Prefix {
    address: Ipv4Addr,
    length: u8,
}

/// Why a text or a pair of numbers is not a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrefixError {
    /// The text is not `a.b.c.d/length`.
    Syntax,
    /// The length is above 32.
    Length(u8),
    /// The address has bits beyond the length; the prefix that it lies in is given.
    HostBits(Ipv4Prefix),
}

impl fmt::Display for PrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax => f.write_str("not of the form a.b.c.d/length"),
            Self::Length(length) => write!(f, "length {length} is above 32"),
            Self::HostBits(network) => write!(f, "has host bits; the network is {network}"),
        }
    }
}

impl Error for PrefixError {}

impl Ipv4Prefix {
    /// Makes a prefix from a network address.
    ///
    /// # Errors
    /// [`PrefixError::Length`] above 32, [`PrefixError::HostBits`] if the address has bits beyond the length.
    pub fn new(address: Ipv4Addr, length: u8) -> Result<Self, PrefixError> {
        let prefix = Self::containing(address, length)?;
        if prefix.address == address { Ok(prefix) } else { Err(PrefixError::HostBits(prefix)) }
    }

    /// Makes the prefix of a length in which an address lies; host bits are cleared.
    ///
    /// # Errors
    /// [`PrefixError::Length`] above 32.
    pub fn containing(address: Ipv4Addr, length: u8) -> Result<Self, PrefixError> {
        if length > 32 {
            return Err(PrefixError::Length(length));
        }
        Ok(Self::masked(address, length))
    }

    /// Makes the prefix in which an address lies; a length above 32 counts as 32. For constants; see
    /// [`Ipv4Prefix::containing`].
    pub const fn masked(address: Ipv4Addr, length: u8) -> Self {
        let length = if length > 32 { 32 } else { length };
        Self { address: Ipv4Addr::from_bits(address.to_bits() & mask(length)), length }
    }

    /// Reads `a.b.c.d/length` of an interface: its address and the prefix it lies in.
    ///
    /// # Errors
    /// [`PrefixError::Syntax`] or [`PrefixError::Length`].
    pub fn parse_interface(text: &str) -> Result<(Ipv4Addr, Self), PrefixError> {
        let (address, length) = text.split_once('/').ok_or(PrefixError::Syntax)?;
        let address: Ipv4Addr = address.parse().map_err(|_| PrefixError::Syntax)?;
        // The standard parser also takes a plus sign and leading zeros.
        if length.is_empty() || length.len() > 3 || !length.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(PrefixError::Syntax);
        }
        if length.len() > 1 && length.starts_with('0') {
            return Err(PrefixError::Syntax);
        }
        let length = length.parse().map_err(|_| PrefixError::Syntax)?;
        Ok((address, Self::containing(address, length)?))
    }

    /// Gives the first address of the block: the network address.
    pub const fn address(self) -> Ipv4Addr {
        self.address
    }

    /// Gives the length in bits, 0 to 32.
    pub const fn length(self) -> u8 {
        self.length
    }

    /// Gives the mask, e.g. 255.255.255.0 for a length of 24.
    pub const fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.length))
    }

    /// Gives the last address of the block: its broadcast address, where it has one (length at most 30).
    pub const fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !mask(self.length))
    }

    /// Counts the addresses of the block, network and broadcast address included.
    pub const fn size(self) -> u64 {
        1 << (32 - self.length)
    }

    /// Says whether an address lies in the block.
    pub const fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.length) == self.address.to_bits()
    }

    /// Says whether all of another block lies in this one; a block covers itself.
    pub const fn covers(self, other: Self) -> bool {
        self.length <= other.length && self.contains(other.address)
    }

    /// Says whether the blocks share an address.
    pub const fn overlaps(self, other: Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// Gives the address at an offset from the first; `None` outside the block.
    pub fn nth(self, offset: u64) -> Option<Ipv4Addr> {
        let offset = u32::try_from(offset).ok().filter(|_| offset < self.size())?;
        Some(Ipv4Addr::from_bits(self.address.to_bits() | offset))
    }
}

impl fmt::Display for Ipv4Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.address, self.length))
    }
}

impl FromStr for Ipv4Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, prefix) = Self::parse_interface(text)?;
        if prefix.address == address { Ok(prefix) } else { Err(PrefixError::HostBits(prefix)) }
    }
}

const fn mask(length: u8) -> u32 {
    match length {
        0 => 0,
        1..=32 => u32::MAX << (32 - length),
        33.. => u32::MAX,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Ipv4Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn bad_texts_are_refused() {
        for text in [
            "",
            "10.1.0.0",
            "10.1.0.0/",
            "10.1.0.0/+8",
            "10.1.0.0/024",
            "10.1.0/16",
            "10.1.0.0/-1",
            "10.1.0.0/999",
        ] {
            assert_eq!(text.parse::<Ipv4Prefix>(), Err(PrefixError::Syntax), "{text}");
        }
        assert_eq!("10.1.0.0/33".parse::<Ipv4Prefix>(), Err(PrefixError::Length(33)));
        assert_eq!("10.1.15.3/24".parse::<Ipv4Prefix>(), Err(PrefixError::HostBits(prefix("10.1.15.0/24"))));
    }

    #[test]
    fn interface_keeps_its_address() {
        let (address, network) = Ipv4Prefix::parse_interface("192.168.66.11/24").unwrap();
        assert_eq!(address, Ipv4Addr::new(192, 168, 66, 11));
        assert_eq!(network, prefix("192.168.66.0/24"));
    }

    #[test]
    fn edges_of_the_block_are_named() {
        let net = prefix("10.1.15.0/24");
        assert_eq!((net.last(), net.size()), (Ipv4Addr::new(10, 1, 15, 255), 256));
        assert_eq!(net.mask(), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(net.nth(1), Some(Ipv4Addr::new(10, 1, 15, 1)));
        assert_eq!(net.nth(256), None);
        let all = prefix("0.0.0.0/0");
        assert_eq!((all.size(), all.last()), (1 << 32, Ipv4Addr::BROADCAST));
        assert_eq!(all.nth(u64::from(u32::MAX)), Some(Ipv4Addr::BROADCAST));
    }

    proptest! {
        #[test]
        fn contains_and_overlaps_agree_with_ranges(
            a in any::<u32>(), b in any::<u32>(), la in 0u8..=32, lb in 0u8..=32, near in any::<bool>(),
        ) {
            let b = if near { a ^ (b >> la.min(31)) } else { b };
            let (left, right) =
                (Ipv4Prefix::containing(a.into(), la).unwrap(), Ipv4Prefix::containing(b.into(), lb).unwrap());
            let apart = left.last() < right.address() || right.last() < left.address();
            prop_assert_eq!(left.overlaps(right), !apart);
            prop_assert_eq!(left.contains(b.into()), (left.address()..=left.last()).contains(&Ipv4Addr::from(b)));
            prop_assert_eq!(left.covers(right), left.address() <= right.address() && right.last() <= left.last());
            prop_assert_eq!(left.to_string().parse::<Ipv4Prefix>(), Ok(left));
        }
    }
}
