//! The Ethernet address as a value of its own.
//!
//! Used wherever a frame, a neighbour or a bridge entry names a card.
//! Invariants: six octets, copied freely, ordered as bytes; text form is lower case with colons.
//! Depends on nothing. Read first: IEEE 802, section on universal and local addresses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A 48-bit Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddress([u8; 6]);

/// A text is not a MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a MAC address is six hexadecimal octets with colons, like 02:42:0a:01:0f:02")]
pub struct ParseMacError;

impl MacAddress {
    /// The address that every card of a segment listens to.
    pub const BROADCAST: MacAddress = MacAddress([0xff; 6]);

    /// Makes an address of six octets.
    #[inline(always)]
    pub const fn new(octets: [u8; 6]) -> Self {
        MacAddress(octets)
    }

    /// Returns the address a pod with this IPv4 address has: 02:42, then the four octets.
    #[inline(always)]
    pub const fn for_ipv4(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        MacAddress([0x02, 0x42, a, b, c, d])
    }

    /// Returns the six octets.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Says whether the address is ff:ff:ff:ff:ff:ff.
    #[inline(always)]
    pub fn is_broadcast(self) -> bool {
        self == Self::BROADCAST
    }

    /// Says whether the group bit is set; true for broadcast too.
    #[inline(always)]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Says whether the address may be one card's own: not a group, not all zero.
    #[inline(always)]
    pub fn is_unicast(self) -> bool {
        !self.is_multicast() && self != MacAddress::default()
    }
}

impl From<[u8; 6]> for MacAddress {
    #[inline(always)]
    fn from(octets: [u8; 6]) -> Self {
        MacAddress(octets)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or(ParseMacError)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(ParseMacError);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| ParseMacError)?;
        }
        if parts.next().is_some() { Err(ParseMacError) } else { Ok(MacAddress(octets)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_goes_both_ways() {
        let mac = MacAddress::for_ipv4(Ipv4Addr::new(10, 1, 15, 2));
        assert_eq!(mac.to_string(), "02:42:0a:01:0f:02");
        assert_eq!("02:42:0A:01:0f:02".parse(), Ok(mac));
    }

    #[test]
    fn wrong_texts_are_refused() {
        for text in [
            "",
            "02:42",
            "02:42:0a:01:0f:02:03",
            "2:42:0a:01:0f:02",
            "+2:42:0a:01:0f:02",
            "g2:42:0a:01:0f:02",
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(ParseMacError), "{text}");
        }
    }

    /// IEEE 802.3, 3.2.3.
    #[test]
    fn group_addresses_are_no_unicast() {
        assert!(MacAddress::BROADCAST.is_multicast() && MacAddress::BROADCAST.is_broadcast());
        assert!(MacAddress::new([1, 0, 0x5e, 0, 0, 1]).is_multicast());
        assert!(!MacAddress::default().is_unicast());
        assert!(MacAddress::new([2, 0, 0, 0, 0, 1]).is_unicast());
    }
}
