//! The ICMP header of IPv4.
//!
//! Pods, routers and translation read and write it; translation also looks into the packet that an error quotes.
//! Invariants: a checked packet has its 8-byte header; the meaning of the last four octets depends on the type.
//! Depends on [`super::checksum`]. Read first: RFC 792, RFC 1191 section 4, RFC 1122 section 3.2.2.

use super::{checksum, read_u16, write_u16};

/// Octets of the header.
pub const HEADER_LENGTH: usize = field::SEQUENCE.end;

mod field {
    use std::ops::Range;
    pub(super) const TYPE: usize = 0;
    pub(super) const CODE: usize = 1;
    pub(super) const CHECKSUM: Range<usize> = 2..4;
    pub(super) const IDENTIFIER: Range<usize> = 4..6;
    pub(super) const SEQUENCE: Range<usize> = 6..8;
}

/// Codes of [`Type::DestinationUnreachable`] and [`Type::TimeExceeded`] that this code sends or understands.
pub mod code {
    /// No route to the network.
    pub const NETWORK_UNREACHABLE: u8 = 0;
    /// The last router gets no answer from the host.
    pub const HOST_UNREACHABLE: u8 = 1;
    /// The host does not know the protocol.
    pub const PROTOCOL_UNREACHABLE: u8 = 2;
    /// Nobody listens at the port.
    pub const PORT_UNREACHABLE: u8 = 3;
    /// Too long for the next hop, and fragmenting is forbidden.
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// A filter forbids the communication.
    pub const ADMINISTRATIVELY_PROHIBITED: u8 = 13;
    /// The time to live ran out in transit.
    pub const TTL_EXCEEDED: u8 = 0;
    /// Fragments of a packet did not come in time.
    pub const REASSEMBLY_EXCEEDED: u8 = 1;
}

/// What an ICMP packet says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Type {
    /// Answer to an echo request, 0.
    EchoReply,
    /// A packet could not be delivered, 3.
    DestinationUnreachable,
    /// Send slower, 4; obsolete.
    SourceQuench,
    /// Use another router, 5.
    Redirect,
    /// Answer me, 8.
    EchoRequest,
    /// A packet or its fragments ran out of time, 11.
    TimeExceeded,
    /// A header made no sense, 12.
    ParameterProblem,
    /// What time is it, 13.
    TimestampRequest,
    /// Answer to that, 14.
    TimestampReply,
    /// Any other number.
    Unknown(u8),
}

impl From<u8> for Type {
    #[inline(always)]
    fn from(value: u8) -> Self {
        match value {
            0 => Type::EchoReply,
            3 => Type::DestinationUnreachable,
            4 => Type::SourceQuench,
            5 => Type::Redirect,
            8 => Type::EchoRequest,
            11 => Type::TimeExceeded,
            12 => Type::ParameterProblem,
            13 => Type::TimestampRequest,
            14 => Type::TimestampReply,
            other => Type::Unknown(other),
        }
    }
}

impl From<Type> for u8 {
    #[inline(always)]
    fn from(value: Type) -> u8 {
        match value {
            Type::EchoReply => 0,
            Type::DestinationUnreachable => 3,
            Type::SourceQuench => 4,
            Type::Redirect => 5,
            Type::EchoRequest => 8,
            Type::TimeExceeded => 11,
            Type::ParameterProblem => 12,
            Type::TimestampRequest => 13,
            Type::TimestampReply => 14,
            Type::Unknown(other) => other,
        }
    }
}

impl Type {
    /// Says whether the type reports an error about a packet that it quotes; never answer these with an error.
    #[inline(always)]
    pub const fn is_error(self) -> bool {
        match self {
            Type::DestinationUnreachable
            | Type::SourceQuench
            | Type::Redirect
            | Type::TimeExceeded
            | Type::ParameterProblem => true,
            Type::EchoReply
            | Type::EchoRequest
            | Type::TimestampRequest
            | Type::TimestampReply
            | Type::Unknown(_) => false,
        }
    }

    /// Says whether the type is a question or its answer, with identifier and sequence.
    #[inline(always)]
    pub const fn is_query(self) -> bool {
        match self {
            Type::EchoReply | Type::EchoRequest | Type::TimestampRequest | Type::TimestampReply => true,
            Type::DestinationUnreachable
            | Type::SourceQuench
            | Type::Redirect
            | Type::TimeExceeded
            | Type::ParameterProblem
            | Type::Unknown(_) => false,
        }
    }
}

/// Why bytes are no ICMP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedIcmp {
    /// Fewer than 8 bytes.
    #[error("the packet is shorter than an ICMP header")]
    TooShort,
}

/// A view of an ICMP packet.
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

    /// Takes the payload of an IPv4 packet.
    ///
    /// # Errors
    /// [`MalformedIcmp::TooShort`] when the header does not fit.
    #[inline(always)]
    pub fn new_checked(buffer: T) -> Result<Self, MalformedIcmp> {
        if buffer.as_ref().len() < HEADER_LENGTH {
            return Err(MalformedIcmp::TooShort);
        }
        Ok(Packet { buffer })
    }

    /// Returns what the packet says.
    #[inline(always)]
    pub fn icmp_type(&self) -> Type {
        self.buffer.as_ref()[field::TYPE].into()
    }

    /// Returns the detail of the type.
    #[inline(always)]
    pub fn code(&self) -> u8 {
        self.buffer.as_ref()[field::CODE]
    }

    /// Returns the checksum as it stands.
    #[inline(always)]
    pub fn checksum(&self) -> u16 {
        read_u16(self.buffer.as_ref(), &field::CHECKSUM)
    }

    /// Returns who asked; only in queries.
    #[inline(always)]
    pub fn identifier(&self) -> u16 {
        read_u16(self.buffer.as_ref(), &field::IDENTIFIER)
    }

    /// Returns which question it is; only in queries.
    #[inline(always)]
    pub fn sequence(&self) -> u16 {
        read_u16(self.buffer.as_ref(), &field::SEQUENCE)
    }

    /// Returns the MTU of the next hop; only in fragmentation needed (RFC 1191), 0 from older routers.
    #[inline(always)]
    pub fn next_hop_mtu(&self) -> u16 {
        read_u16(self.buffer.as_ref(), &field::SEQUENCE)
    }

    /// Says whether the packet reports an error.
    #[inline(always)]
    pub fn is_error(&self) -> bool {
        self.icmp_type().is_error()
    }

    /// Says whether the packet is a question or an answer.
    #[inline(always)]
    pub fn is_query(&self) -> bool {
        self.icmp_type().is_query()
    }

    /// Returns what follows the header: echoed data, or the start of the packet an error is about.
    #[inline(always)]
    pub fn payload(&self) -> &[u8] {
        &self.buffer.as_ref()[HEADER_LENGTH..]
    }

    /// Says whether the checksum is right.
    pub fn verify_checksum(&self) -> bool {
        checksum::checksum(self.buffer.as_ref()) == 0
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets type and code.
    #[inline(always)]
    pub fn set_type(&mut self, value: Type, code: u8) {
        self.buffer.as_mut()[field::TYPE] = value.into();
        self.buffer.as_mut()[field::CODE] = code;
    }

    /// Sets the checksum.
    #[inline(always)]
    pub fn set_checksum(&mut self, value: u16) {
        write_u16(self.buffer.as_mut(), &field::CHECKSUM, value);
    }

    /// Sets who asks.
    #[inline(always)]
    pub fn set_identifier(&mut self, value: u16) {
        write_u16(self.buffer.as_mut(), &field::IDENTIFIER, value);
    }

    /// Sets which question it is.
    #[inline(always)]
    pub fn set_sequence(&mut self, value: u16) {
        write_u16(self.buffer.as_mut(), &field::SEQUENCE, value);
    }

    /// Sets the MTU of the next hop and clears the unused word before it.
    #[inline(always)]
    pub fn set_next_hop_mtu(&mut self, value: u16) {
        write_u16(self.buffer.as_mut(), &field::IDENTIFIER, 0);
        write_u16(self.buffer.as_mut(), &field::SEQUENCE, value);
    }

    /// Clears the four octets that most errors leave unused.
    #[inline(always)]
    pub fn clear_unused(&mut self) {
        self.set_next_hop_mtu(0);
    }

    /// Returns what follows the header, to write.
    #[inline(always)]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.as_mut()[HEADER_LENGTH..]
    }

    /// Computes the checksum over the whole buffer and writes it.
    pub fn fill_checksum(&mut self) {
        self.set_checksum(0);
        let sum = checksum::checksum(self.buffer.as_ref());
        self.set_checksum(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::icmp::IcmpPacket;
    use proptest::prelude::*;

    /// RFC 792; RFC 1122, 3.2.2.
    #[test]
    fn every_type_goes_both_ways_and_none_is_error_and_query() {
        for number in 0..=255u8 {
            let kind = Type::from(number);
            assert_eq!(u8::from(kind), number);
            assert!(!(kind.is_error() && kind.is_query()));
        }
    }

    /// RFC 1191, 4.
    #[test]
    fn fragmentation_needed_names_the_mtu() {
        let mut bytes = [0xff; 12];
        let mut packet = Packet::new_unchecked(&mut bytes[..]);
        packet.set_type(Type::DestinationUnreachable, code::FRAGMENTATION_NEEDED);
        packet.set_next_hop_mtu(1472);
        packet.fill_checksum();
        assert!(packet.verify_checksum() && packet.is_error());
        assert_eq!((packet.identifier(), packet.next_hop_mtu()), (0, 1472));
    }

    proptest! {
        #[test]
        fn agrees_with_pnet(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let Ok(ours) = Packet::new_checked(&bytes[..]) else {
                prop_assert!(bytes.len() < HEADER_LENGTH);
                return Ok(());
            };
            let theirs = IcmpPacket::new(&bytes).unwrap();
            prop_assert_eq!(u8::from(ours.icmp_type()), theirs.get_icmp_type().0);
            prop_assert_eq!(ours.code(), theirs.get_icmp_code().0);
            prop_assert_eq!(ours.checksum(), theirs.get_checksum());
            let mut copy = bytes.clone();
            let mut filled = Packet::new_unchecked(&mut copy[..]);
            filled.fill_checksum();
            prop_assert_eq!(filled.checksum(), pnet_packet::icmp::checksum(&theirs));
        }
    }
}
