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
        self.write_checksum(headers, payload);
    }

    /// Makes the transport checksum in headers, for the payload that belongs behind them.
    fn write_checksum(&self, headers: &mut [u8], payload: &[u8]) {
        headers[self.checksum()].fill(0);
        // A transport header has a whole number of words: the sums of both parts add up.
        let header = checksum::ones_complement_sum(&headers[self.transport..]);
        let sum = checksum::add(header, checksum::ones_complement_sum(payload));
        let sum = checksum::add(self.pseudo_sum(headers), sum);
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
        self.write_segment_headers(headers, whole, range, number);
        payload.copy_from_slice(&whole[range.clone()]);
    }

    /// Writes the headers of such a segment alone, as [`Layout::write_segment`] does.
    pub fn write_segment_headers(&self, headers: &mut [u8], whole: &[u8], range: &Range<usize>, number: u16) {
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
        made.write_checksum(headers, &whole[range.clone()]);
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
mod tests {
    use pnet_packet::Packet;
    use pnet_packet::ipv4::{self, Ipv4Packet as Ipv4};
    use pnet_packet::ipv6::Ipv6Packet as Ipv6;
    use pnet_packet::tcp::{self, TcpPacket};
    use pnet_packet::udp::{self, UdpPacket};
    use proptest::prelude::*;

    use super::*;

    /// A frame with nonsense for a checksum.
    fn frame(kind: Transport, is_ipv6: bool, tags: usize, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![2; 12];
        (0..tags).for_each(|tag| bytes.extend([0x81, 0, 0, tag as u8]));
        let header = match kind {
            Transport::Tcp => 32,
            Transport::Udp => 8,
        };
        let length = ((header + payload.len()) as u16).to_be_bytes();
        if is_ipv6 {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, length[0], length[1], kind.protocol(), 64]);
            bytes.extend([[0xfd; 16], [0xfc; 16]].concat());
        } else {
            let total = ((20 + header + payload.len()) as u16).to_be_bytes();
            bytes.extend([8, 0, 0x45, 0, total[0], total[1], 0xff, 0xfe, 0x40, 0, 64, kind.protocol(), 0, 0]);
            bytes.extend([10, 1, 15, 2, 10, 1, 20, 3]);
            let at = bytes.len() - 20;
            Ipv4Packet::new_unchecked(&mut bytes[at..]).fill_header_checksum();
        }
        match kind {
            Transport::Tcp => {
                // Sequence numbers wrap; CWR, ACK, PSH and FIN.
                bytes.extend([
                    0x9c, 0x40, 0, 80, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1, 0x80, 0x99, 1, 0, 0xab, 0xcd, 0, 0,
                ]);
                bytes.extend([1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
            }
            Transport::Udp => bytes.extend([0x9c, 0x40, 0, 7, length[0], length[1], 0xab, 0xcd]),
        }
        bytes.extend(payload);
        bytes
    }

    /// Reads a frame by another's parsers and checks all its checksums; returns identification, sequence number, flags and
    /// payload.
    fn judged(bytes: &[u8], kind: Transport, is_ipv6: bool, tags: usize) -> (u16, u32, u8, Vec<u8>) {
        let packet = &bytes[14 + 4 * tags..];
        let read = |payload: &[u8],
                    tcp_sum: &dyn Fn(&TcpPacket<'_>) -> u16,
                    udp_sum: &dyn Fn(&UdpPacket<'_>) -> u16| match kind {
            Transport::Tcp => {
                let segment = TcpPacket::new(payload).unwrap();
                assert_eq!(segment.get_checksum(), tcp_sum(&segment));
                (segment.get_sequence(), segment.get_flags(), segment.payload().to_vec())
            }
            Transport::Udp => {
                let datagram = UdpPacket::new(payload).unwrap();
                // RFC 768: zero is sent as all ones, which that parser leaves to its caller.
                let sum = Some(udp_sum(&datagram)).filter(|&sum| sum != 0).unwrap_or(u16::MAX);
                assert_eq!(datagram.get_checksum(), sum);
                assert_eq!(usize::from(datagram.get_length()), payload.len());
                (0, 0, datagram.payload().to_vec())
            }
        };
        if is_ipv6 {
            let outer = Ipv6::new(packet).unwrap();
            assert_eq!(usize::from(outer.get_payload_length()), packet.len() - 40);
            let (from, to) = (outer.get_source(), outer.get_destination());
            let (sequence, flags, payload) =
                read(outer.payload(), &|segment| tcp::ipv6_checksum(segment, &from, &to), &|datagram| {
                    udp::ipv6_checksum(datagram, &from, &to)
                });
            return (0, sequence, flags, payload);
        }
        let outer = Ipv4::new(packet).unwrap();
        assert_eq!(usize::from(outer.get_total_length()), packet.len());
        assert_eq!(outer.get_checksum(), ipv4::checksum(&outer));
        let (from, to) = (outer.get_source(), outer.get_destination());
        let (sequence, flags, payload) =
            read(outer.payload(), &|segment| tcp::ipv4_checksum(segment, &from, &to), &|datagram| {
                udp::ipv4_checksum(datagram, &from, &to)
            });
        (outer.get_identification(), sequence, flags, payload)
    }

    proptest! {
        /// RFC 9293, 3.1 (sequence numbers, flags), RFC 3168, 6.1.2 (CWR), RFC 768, RFC 8200, 8.1.
        #[test]
        fn segments_are_whole_packets_that_together_carry_the_payload(
            payload in prop::collection::vec(any::<u8>(), 1..4000), size in 1..1500_usize,
            is_tcp: bool, is_ipv6: bool, tags in 0..3_usize,
        ) {
            let kind = if is_tcp { Transport::Tcp } else { Transport::Udp };
            let whole = frame(kind, is_ipv6, tags, &payload);
            let layout = Layout::of(&whole).unwrap();
            prop_assert_eq!((layout.end, layout.kind), (whole.len(), kind));
            let count = payload.len().div_ceil(size);
            let mut carried = Vec::new();
            for number in 0..count {
                let start = layout.payload + number * size;
                let range = start..(start + size).min(layout.end);
                let mut segment = vec![0; layout.payload + range.len()];
                layout.write_segment(&mut segment, &whole, &range, number as u16);
                prop_assert_eq!(layout.packet_length(range.len()), segment.len() - 14 - 4 * tags);
                let (identification, sequence, flags, payload) = judged(&segment, kind, is_ipv6, tags);
                if !is_ipv6 {
                    prop_assert_eq!(identification, 0xfffe_u16.wrapping_add(number as u16));
                }
                if is_tcp {
                    prop_assert_eq!(sequence, 0xffff_fff0_u32.wrapping_add((number * size) as u32));
                    let (first, last) = (number == 0, number + 1 == count);
                    prop_assert_eq!(flags, 0x10 | if first { 0x80 } else { 0 } | if last { 0x09 } else { 0 });
                }
                carried.extend(payload);
            }
            prop_assert_eq!(carried, payload);
            let mut finished = whole.clone();
            layout.finish(&mut finished);
            judged(&finished, kind, is_ipv6, tags);
            prop_assert!(layout.is_right(&finished));
            let last = finished.len() - 1;
            finished[last] ^= 1;
            prop_assert!(!layout.is_right(&finished));
        }

        #[test]
        fn any_bytes_have_a_layout_inside_them_or_none(
            bytes in prop::collection::vec(any::<u8>(), 0..100), is_tcp: bool, is_ipv6: bool, tags in 0..3_usize,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), cut in 0..120_usize,
        ) {
            let kind = if is_tcp { Transport::Tcp } else { Transport::Udp };
            let mut near = frame(kind, is_ipv6, tags, b"payload");
            damage.into_iter().for_each(|(at, byte)| *at.get_mut(&mut near) = byte);
            near.truncate(cut);
            for bytes in [bytes, near] {
                if let Some(layout) = Layout::of(&bytes) {
                    prop_assert!(layout.payload <= layout.end && layout.end <= bytes.len());
                    let mut finished = bytes.clone();
                    layout.finish(&mut finished);
                }
            }
        }
    }

    #[test]
    fn what_is_no_whole_tcp_or_udp_packet_has_no_layout() {
        let good = frame(Transport::Tcp, false, 0, b"payload");
        assert!(Layout::of(&good).is_some());
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Layout::of(&bytes)
        };
        // Another EtherType, ICMP, a fragment, longer than the frame, a TCP header longer than the packet.
        for (at, byte) in [(12, 9), (23, 1), (20, 0x20), (16, 1), (46, 0xf0)] {
            assert_eq!(with(at, byte), None, "{at}");
        }
        assert_eq!(Layout::of(&frame(Transport::Udp, false, 3, b"three tags")), None);
        let mut shorter = frame(Transport::Udp, false, 0, b"payload");
        shorter[39] -= 1;
        assert_eq!(Layout::of(&shorter), None);
    }
}
