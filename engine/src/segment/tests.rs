//! What segments are, by the parsers of another library.

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
