//! Cutting packets, putting them together, and networks and packets that are large enough for it.

use flatnet_engine::wire::{IcmpPacket, IpProtocol, Ipv4Packet, UdpDatagram};

use super::*;

/// Puts fragments together as they arrived; none may be missing, twice, or of another datagram.
pub fn whole(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut parts: Vec<(usize, bool, Vec<u8>)> = Vec::new();
    let first = Ipv4Packet::new_checked(&frames[0][14..]).unwrap();
    for frame in frames {
        let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
        assert!(packet.verify_header_checksum());
        assert_eq!(
            (packet.source(), packet.destination(), packet.identification()),
            (first.source(), first.destination(), first.identification())
        );
        parts.push((packet.fragment_offset(), packet.more_fragments(), packet.payload().to_vec()));
    }
    parts.sort();
    let mut payload = Vec::new();
    for (index, (offset, more, part)) in parts.iter().enumerate() {
        assert_eq!((*offset, *more), (payload.len(), index + 1 < parts.len()));
        payload.extend(part);
    }
    payload
}

/// Checks a datagram that was put together: its checksum, ports and data.
pub fn check(frames: &[Vec<u8>], from: Ipv4Addr, to: Ipv4Addr, data: &[u8]) -> (u16, u16) {
    let payload = whole(frames);
    let datagram = UdpDatagram::new_checked(&payload[..]).unwrap();
    assert!(datagram.verify_checksum(from, to), "the transport checksum covers all fragments");
    assert_eq!(datagram.payload(), data);
    (datagram.source_port(), datagram.destination_port())
}

/// Cuts a packet's payload at multiples of eight.
pub fn cut(packet: &[u8], at: &[usize]) -> Vec<Vec<u8>> {
    let length = packet.len() - 20;
    let ends: Vec<usize> = at.iter().copied().chain([length]).collect();
    let starts = std::iter::once(0).chain(at.iter().copied());
    starts.zip(&ends).map(|(start, &end)| fragment_of(packet, start..end, end < length, start)).collect()
}

pub fn data(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 % 251) as u8).collect()
}

pub fn with_identification(mut packet: Vec<u8>, value: u16) -> Vec<u8> {
    let mut header = Ipv4Packet::new_unchecked(&mut packet[..]);
    header.set_identification(value);
    header.fill_header_checksum();
    packet
}

/// A network with large buffers, for datagrams of more than 2 KB.
pub fn with_large_buffers(workers: u8) -> Lab {
    Lab::build(&EngineConfig { workers, small_buffers: 4096, large_buffers: 32, ..EngineConfig::default() })
}

/// An echo request of 3,000 bytes.
pub fn long_ping(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0, 0, 77, 0, 1];
    message.extend(data(3000));
    IcmpPacket::new_unchecked(&mut message[..]).fill_checksum();
    ipv4_packet(from, to, IpProtocol::Icmp, 64, &message)
}
