//! ARP for IPv4 over Ethernet.
//!
//! Pods and the node's bridge ask and answer with it; nothing else reads it.
//! Invariants: a checked packet has all 28 bytes and names Ethernet and IPv4 in its first half.
//! Depends on [`super::mac`]. Read first: RFC 826, RFC 5227 (probes).

use super::{MacAddress, read_address, read_mac, read_u16, write_u16};
use std::net::Ipv4Addr;

/// Octets of the packet.
pub const LENGTH: usize = field::TARGET_ADDRESS.end;

mod field {
    use std::ops::Range;
    pub(super) const HARDWARE: Range<usize> = 0..2;
    pub(super) const PROTOCOL: Range<usize> = 2..4;
    pub(super) const HARDWARE_LENGTH: usize = 4;
    pub(super) const PROTOCOL_LENGTH: usize = 5;
    pub(super) const OPERATION: Range<usize> = 6..8;
    pub(super) const SENDER_MAC: Range<usize> = 8..14;
    pub(super) const SENDER_ADDRESS: Range<usize> = 14..18;
    pub(super) const TARGET_MAC: Range<usize> = 18..24;
    pub(super) const TARGET_ADDRESS: Range<usize> = 24..28;
}

const HARDWARE_ETHERNET: u16 = 1;
const PROTOCOL_IPV4: u16 = 0x0800;

/// What an ARP packet wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has it.
    Reply,
    /// Any other number.
    Unknown(u16),
}

impl From<u16> for Operation {
    fn from(value: u16) -> Self {
        match value {
            1 => Operation::Request,
            2 => Operation::Reply,
            other => Operation::Unknown(other),
        }
    }
}

impl From<Operation> for u16 {
    fn from(value: Operation) -> u16 {
        match value {
            Operation::Request => 1,
            Operation::Reply => 2,
            Operation::Unknown(other) => other,
        }
    }
}

/// Why bytes are no ARP packet of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedArp {
    /// Fewer than 28 bytes.
    #[error("the packet is shorter than ARP for IPv4 over Ethernet")]
    TooShort,
    /// Other hardware than Ethernet.
    #[error("the packet is not about Ethernet addresses")]
    NotEthernet,
    /// Another protocol than IPv4.
    #[error("the packet is not about IPv4 addresses")]
    NotIpv4,
}

/// A view of an ARP packet.
#[derive(Debug, Clone, Copy)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// Takes a buffer that the caller has sized.
    pub const fn new_unchecked(buffer: T) -> Self {
        Packet { buffer }
    }

    /// Takes received bytes; padding may follow.
    ///
    /// # Errors
    /// Each variant of [`MalformedArp`].
    pub fn new_checked(buffer: T) -> Result<Self, MalformedArp> {
        let bytes = buffer.as_ref();
        if bytes.len() < LENGTH {
            return Err(MalformedArp::TooShort);
        }
        if read_u16(bytes, &field::HARDWARE) != HARDWARE_ETHERNET || bytes[field::HARDWARE_LENGTH] != 6 {
            return Err(MalformedArp::NotEthernet);
        }
        if read_u16(bytes, &field::PROTOCOL) != PROTOCOL_IPV4 || bytes[field::PROTOCOL_LENGTH] != 4 {
            return Err(MalformedArp::NotIpv4);
        }
        Ok(Packet { buffer })
    }

    /// Returns what the packet wants.
    pub fn operation(&self) -> Operation {
        read_u16(self.buffer.as_ref(), &field::OPERATION).into()
    }

    /// Returns the sender's MAC address.
    pub fn sender_mac(&self) -> MacAddress {
        read_mac(self.buffer.as_ref(), &field::SENDER_MAC)
    }

    /// Returns the sender's IPv4 address; 0.0.0.0 in a probe.
    pub fn sender_address(&self) -> Ipv4Addr {
        read_address(self.buffer.as_ref(), &field::SENDER_ADDRESS)
    }

    /// Returns the target's MAC address; meaningless in a request.
    pub fn target_mac(&self) -> MacAddress {
        read_mac(self.buffer.as_ref(), &field::TARGET_MAC)
    }

    /// Returns the IPv4 address asked for.
    pub fn target_address(&self) -> Ipv4Addr {
        read_address(self.buffer.as_ref(), &field::TARGET_ADDRESS)
    }

    /// Says whether a sender asks if its future address is taken (RFC 5227 section 2.1).
    pub fn is_probe(&self) -> bool {
        self.operation() == Operation::Request && self.sender_address().is_unspecified()
    }

    /// Says whether a sender announces its own address.
    pub fn is_gratuitous(&self) -> bool {
        self.sender_address() == self.target_address()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Writes the fixed first half: Ethernet, IPv4 and their lengths.
    pub fn fill_types(&mut self) {
        let bytes = self.buffer.as_mut();
        write_u16(bytes, &field::HARDWARE, HARDWARE_ETHERNET);
        write_u16(bytes, &field::PROTOCOL, PROTOCOL_IPV4);
        bytes[field::HARDWARE_LENGTH] = 6;
        bytes[field::PROTOCOL_LENGTH] = 4;
    }

    /// Sets what the packet wants.
    pub fn set_operation(&mut self, value: Operation) {
        write_u16(self.buffer.as_mut(), &field::OPERATION, value.into());
    }

    /// Sets who speaks.
    pub fn set_sender(&mut self, mac: MacAddress, address: Ipv4Addr) {
        self.buffer.as_mut()[field::SENDER_MAC].copy_from_slice(&mac.octets());
        self.buffer.as_mut()[field::SENDER_ADDRESS].copy_from_slice(&address.octets());
    }

    /// Sets who is asked for or answered.
    pub fn set_target(&mut self, mac: MacAddress, address: Ipv4Addr) {
        self.buffer.as_mut()[field::TARGET_MAC].copy_from_slice(&mac.octets());
        self.buffer.as_mut()[field::TARGET_ADDRESS].copy_from_slice(&address.octets());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::arp::ArpPacket;
    use proptest::prelude::*;

    fn request() -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        let mut packet = Packet::new_unchecked(&mut bytes[..]);
        packet.fill_types();
        packet.set_operation(Operation::Request);
        packet.set_sender(MacAddress::new([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 1, 15, 2));
        packet.set_target(MacAddress::default(), Ipv4Addr::new(10, 1, 15, 3));
        bytes
    }

    #[test]
    fn what_is_written_is_read_by_pnet() {
        let bytes = request();
        let theirs = ArpPacket::new(&bytes).unwrap();
        assert_eq!(theirs.get_operation().0, 1);
        assert_eq!(theirs.get_sender_proto_addr(), Ipv4Addr::new(10, 1, 15, 2));
        assert_eq!(theirs.get_target_proto_addr(), Ipv4Addr::new(10, 1, 15, 3));
        assert_eq!(theirs.get_sender_hw_addr().to_string(), "02:00:00:00:00:01");
    }

    /// RFC 826, packet reception.
    #[test]
    fn other_hardware_and_protocols_are_named() {
        let mut bytes = request();
        bytes[1] = 6;
        assert_eq!(Packet::new_checked(&bytes).err(), Some(MalformedArp::NotEthernet));
        let mut bytes = request();
        bytes[2] = 0x86;
        assert_eq!(Packet::new_checked(&bytes).err(), Some(MalformedArp::NotIpv4));
        assert_eq!(Packet::new_checked(&bytes[..27]).err(), Some(MalformedArp::TooShort));
    }

    proptest! {
        #[test]
        fn random_second_half_agrees_with_pnet(tail: [u8; 20], operation: u16) {
            let mut bytes = request();
            bytes[6..8].copy_from_slice(&operation.to_be_bytes());
            bytes[8..].copy_from_slice(&tail);
            let ours = Packet::new_checked(&bytes).unwrap();
            let theirs = ArpPacket::new(&bytes).unwrap();
            prop_assert_eq!(u16::from(ours.operation()), theirs.get_operation().0);
            prop_assert_eq!(ours.sender_address(), theirs.get_sender_proto_addr());
            prop_assert_eq!(ours.target_address(), theirs.get_target_proto_addr());
            prop_assert_eq!(ours.target_mac().to_string(), theirs.get_target_hw_addr().to_string());
        }
    }
}
