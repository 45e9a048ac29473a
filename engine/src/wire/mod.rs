//! One checked view per header, and the one place where checksums are computed.
//!
//! Sits under everything that reads or writes frames: links, the parser, rewriting, tunnels and pods call it; it calls
//! nobody. Each file is one protocol in the same recipe: a view over bytes, a private `field` module of ranges, a checked
//! constructor that names the cause of a failure, getters, and setters on mutable bytes.
//!
//! Invariants: a view made by `new_checked` never panics in a getter or a setter, whatever the bytes say.
//! `new_unchecked` is only for a buffer that the caller has sized itself; on a short one the getters panic. A setter that
//! changes a length field voids the check: check again before reading what follows.
//!
//! Depends on: `thiserror`. Read first: RFC 791 (IPv4), RFC 1624 (checksums by difference).

pub mod arp;

pub mod checksum;

pub mod ethernet;

pub mod icmpv4;

pub mod ipv4;
pub mod ipv6;

pub mod mac;

pub mod tcp;

pub mod udp;

pub mod vxlan;

pub use arp::{Operation as ArpOperation, Packet as ArpPacket};
pub use ethernet::{EtherType, Frame as EthernetFrame};
pub use icmpv4::{Packet as IcmpPacket, Type as IcmpType};
pub use ipv4::{Packet as Ipv4Packet, Protocol as IpProtocol};
pub use mac::MacAddress;
pub use tcp::{Flags as TcpFlags, Segment as TcpSegment};
pub use udp::Datagram as UdpDatagram;
pub use vxlan::Packet as VxlanPacket;

use std::net::Ipv4Addr;
use std::ops::Range;

/// Reads a big-endian 16-bit word; the callers' checks guarantee the range. One check for all its bytes: then it is one load.
#[inline(always)]
fn read_u16(bytes: &[u8], at: &Range<usize>) -> u16 {
    let word = &bytes[at.start..at.start + 2];
    u16::from_be_bytes([word[0], word[1]])
}

/// Reads a big-endian 32-bit word.
#[inline(always)]
fn read_u32(bytes: &[u8], at: &Range<usize>) -> u32 {
    let word = &bytes[at.start..at.start + 4];
    u32::from_be_bytes([word[0], word[1], word[2], word[3]])
}

/// Reads an IPv4 address.
#[inline(always)]
fn read_address(bytes: &[u8], at: &Range<usize>) -> Ipv4Addr {
    Ipv4Addr::from_bits(read_u32(bytes, at))
}

/// Reads a MAC address.
#[inline(always)]
fn read_mac(bytes: &[u8], at: &Range<usize>) -> MacAddress {
    let mut octets = [0; 6];
    octets.copy_from_slice(&bytes[at.clone()]);
    MacAddress::new(octets)
}

/// Writes a big-endian 16-bit word.
#[inline(always)]
fn write_u16(bytes: &mut [u8], at: &Range<usize>, value: u16) {
    bytes[at.clone()].copy_from_slice(&value.to_be_bytes());
}

/// Writes a big-endian 32-bit word.
#[inline(always)]
fn write_u32(bytes: &mut [u8], at: &Range<usize>, value: u32) {
    bytes[at.clone()].copy_from_slice(&value.to_be_bytes());
}
