//! Frames that were left unfinished: their checksum, and their cutting into segments, are for whoever takes them off.
//!
//! A link that offloads brings them; they pass bridge, routes and translation as they are, and are finished where they leave by one
//! that does not. Invariants: the segments of a superframe are those that its sender would have made, and together carry its
//! payload; what is in the checksum's place of an unfinished frame means nothing. Allowed dependencies: `wire`. Read first: the
//! kernel's `segmentation-offloads.rst`; `docs/adr/0022-superframes-are-finished-at-the-end.md`; RFC 9293, 3.1; RFC 768.

use std::ops::Range;

use crate::wire::ethernet::{self, TAG_LENGTH, TAGS};
use crate::wire::{Ipv4Packet, TcpFlags, TcpSegment, checksum, udp};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// Tags that a frame has at most.
const TAG_LIMIT: usize = 2;
const IPV6_HEADER_LENGTH: usize = 40;
/// Congestion window reduced (RFC 3168): the first segment's alone.
const CWR: TcpFlags = TcpFlags::from_bits(0x80);
/// What the last segment says alone.
const LAST: TcpFlags = TcpFlags::FIN.with(TcpFlags::PSH);

/// What a frame carries whose checksum can be left to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Returns where the checksum is, from the header's start, bytes.
    #[must_use]
    pub const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// Where the parts of such a frame are, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Where the IP header begins.
    pub network: usize,
    /// Whether it is over IPv6.
    pub is_ipv6: bool,
    /// Where the TCP or UDP header begins.
    pub transport: usize,
    /// Which of them it is.
    pub kind: Transport,
    /// Where the payload begins.
    pub payload: usize,
    /// Where it ends.
    pub end: usize,
}

impl Layout {
    /// Reads an Ethernet frame, tagged or not; `None` unless it is a whole TCP or UDP packet over IPv4 or, without extension
    /// headers, IPv6.
    #[must_use]
    pub fn of(frame: &[u8]) -> Option<Self> {
        let mut network = ethernet::HEADER_LENGTH;
        let tags = (0..TAG_LIMIT).take_while(|tag| {
            half(frame, network - 2 + tag * TAG_LENGTH).is_some_and(|kind| TAGS.contains(&kind))
        });
        network += tags.count() * TAG_LENGTH;
        Self::behind(frame, network, half(frame, network - 2)?)
    }

    /// Reads an IPv4 packet with nothing in front of it; `None` unless it is a whole TCP or UDP packet.
    #[must_use]
    pub fn of_packet(packet: &[u8]) -> Option<Self> {
        Self::behind(packet, 0, IPV4)
    }

    fn behind(frame: &[u8], network: usize, ethertype: u16) -> Option<Self> {
        let packet = frame.get(network..)?;
        let (transport, protocol, end) = match ethertype {
            IPV4 => {
                let header = Ipv4Packet::new_checked(packet).ok().filter(|packet| !packet.is_fragment())?;
                let end = network + usize::from(header.total_length());
                (network + header.header_length(), u8::from(header.protocol()), end)
            }
            IPV6 if packet.len() >= IPV6_HEADER_LENGTH && packet[0] >> 4 == 6 => {
                let transport = network + IPV6_HEADER_LENGTH;
                (transport, packet[6], transport + usize::from(half(packet, 4)?))
            }
            _ => return None,
        };
        let segment = frame.get(transport..end)?;
        let (kind, header) = match protocol {
            6 => (Transport::Tcp, TcpSegment::new_checked(segment).ok()?.header_length()),
            // All of it is the datagram's.
            17 if half(segment, 4).map(usize::from) == Some(segment.len()) => {
                (Transport::Udp, udp::HEADER_LENGTH)
            }
            _ => return None,
        };
        let payload = transport + header;
        (payload <= end).then_some(Self {
            network,
            is_ipv6: ethertype == IPV6,
            transport,
            kind,
            payload,
            end,
        })
    }

    /// Returns a frame's packet, from its IP header on.
    #[must_use]
    pub fn packet<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        &frame[self.network..]
    }

    /// Returns the bytes of an IP packet with so many of payload.
    #[must_use]
    pub fn packet_length(&self, payload: usize) -> usize {
        self.payload - self.network + payload
    }

    /// Returns the sum of the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1).
    #[must_use]
    pub fn pseudo_sum(&self, frame: &[u8]) -> u16 {
        let addresses = if self.is_ipv6 {
            self.network + 8..self.network + 40
        } else {
            self.network + 12..self.network + 20
        };
        let length = (self.end - self.transport) as u64;
        let addresses = u64::from(checksum::ones_complement_sum(&frame[addresses]));
        checksum::fold(addresses + u64::from(self.kind.protocol()) + length)
    }

    /// Returns where the checksum is.
    #[must_use]
    pub fn checksum(&self) -> Range<usize> {
        let start = self.transport + self.kind.checksum_offset();
        start..start + 2
    }

    /// Tells whether the transport checksum of a frame is right.
    #[must_use]
    pub fn is_right(&self, frame: &[u8]) -> bool {
        let sum = checksum::ones_complement_sum(&frame[self.transport..self.end]);
        checksum::add(self.pseudo_sum(frame), sum) == u16::MAX
    }

    /// Makes the transport checksum of a frame.
    pub fn finish(&self, frame: &mut [u8]) {
        let (headers, payload) = frame[..self.end].split_at_mut(self.payload);
        self.write_checksum(headers, checksum::ones_complement_sum(payload));
    }

    /// Makes the transport checksum in headers, for a payload of this sum.
    fn write_checksum(&self, headers: &mut [u8], payload: u16) {
        headers[self.checksum()].fill(0);
        // A transport header has a whole number of words: the sums of both parts add up.
        let header = checksum::ones_complement_sum(&headers[self.transport..]);
        let sum = checksum::add(self.pseudo_sum(headers), checksum::add(header, payload));
        let checksum = match self.kind {
            // Zero would mean that there is none (RFC 768).
            Transport::Udp if sum == 0xffff => sum,
            Transport::Udp | Transport::Tcp => !sum,
        };
        headers[self.checksum()].copy_from_slice(&checksum.to_be_bytes());
    }

    /// Writes a segment: the whole frame's headers, made to fit, and a range of it, which lies in its payload; `number` counts
    /// the segments before. `segment` is as long as the headers and the range.
    pub fn write_segment(&self, segment: &mut [u8], whole: &[u8], range: &Range<usize>, number: u16) {
        let (headers, payload) = segment.split_at_mut(self.payload);
        headers.copy_from_slice(&whole[..self.payload]);
        let made = Self { end: self.payload + range.len(), ..*self };
        made.write_lengths(headers, number);
        if self.kind == Transport::Tcp {
            let mut header = TcpSegment::new_unchecked(&mut headers[self.transport..]);
            let sequence = header.sequence().wrapping_add((range.start - self.payload) as u32);
            header.set_sequence(sequence);
            let mut flags = header.flags().bits();
            if range.start > self.payload {
                flags &= !CWR.bits();
            }
            if range.end < self.end {
                flags &= !LAST.bits();
            }
            header.set_flags(TcpFlags::from_bits(flags));
        }
        made.write_checksum(headers, checksum::copy_and_sum(payload, &whole[range.clone()]));
    }

    /// Makes headers those of a packet with so many bytes of payload, whose checksum is yet to be made.
    pub fn write_length(&self, headers: &mut [u8], payload: usize) {
        let made = Self { end: self.payload + payload, ..*self };
        made.write_lengths(headers, 0);
        let sum = made.pseudo_sum(headers);
        headers[self.checksum()].copy_from_slice(&sum.to_be_bytes());
    }

    fn write_lengths(&self, frame: &mut [u8], number: u16) {
        let transport = (self.end - self.transport) as u16;
        if self.is_ipv6 {
            frame[self.network + 4..self.network + 6].copy_from_slice(&transport.to_be_bytes());
        } else {
            let mut header = Ipv4Packet::new_unchecked(&mut frame[self.network..]);
            let identification = header.identification().wrapping_add(number);
            header.set_total_length((self.end - self.network) as u16);
            header.set_identification(identification);
            header.fill_header_checksum();
        }
        if self.kind == Transport::Udp {
            let length = self.transport + 4..self.transport + 6;
            frame[length].copy_from_slice(&transport.to_be_bytes());
        }
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|half| u16::from_be_bytes(*half))
}

#[cfg(test)]
mod tests;
