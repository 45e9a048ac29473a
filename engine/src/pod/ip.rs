//! IPv4 packets that a pod makes: headers, and fragments of what is longer than the path takes.
//!
//! UDP and ICMP send through it; TCP segments come from smoltcp with a header that [`finish_tcp`] completes.
//!
//! Invariants: every packet has TTL, identification and right checksums; what is fragmented does not forbid it.
//! Depends on `device`, `wire`. Read first: RFC 791, RFC 1191, RFC 6864.

use super::device::Device;
use crate::clock::Instant;
use crate::link::pod_ring::Outbox;
use crate::wire::{IpProtocol, Ipv4Packet, TcpSegment, ipv4};
use std::net::Ipv4Addr;

/// The TTL of what a pod sends, as Linux has it.
pub(super) const DEFAULT_TTL: u8 = 64;

/// The header of a packet to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    pub(super) protocol: IpProtocol,
    pub(super) ttl: u8,
    pub(super) dont_fragment: bool,
    pub(super) traced: bool,
}

/// Sends a transport payload, in fragments when the path does not take it whole.
pub(super) fn send(device: &mut Device, header: &Header, payload: &[u8], now: Instant, out: &mut Outbox<'_>) {
    let mtu = device.mtu_to(header.destination, now);
    let identification = device.random.next_u16();
    if ipv4::HEADER_LENGTH + payload.len() <= mtu {
        let dont_fragment = header.dont_fragment && !device.must_allow_cutting(header.destination, now);
        send_part(device, header, payload, identification, (dont_fragment, false, 0), now, out);
        return;
    }
    let room = (mtu.saturating_sub(ipv4::HEADER_LENGTH) / 8 * 8).max(8);
    let count = payload.len().div_ceil(room);
    for (index, part) in payload.chunks(room).enumerate() {
        let more = index + 1 < count;
        send_part(device, header, part, identification, (false, more, index * room), now, out);
    }
}

fn send_part(
    device: &mut Device,
    header: &Header,
    payload: &[u8],
    identification: u16,
    (dont_fragment, more_fragments, offset): (bool, bool, usize),
    now: Instant,
    out: &mut Outbox<'_>,
) {
    let length = ipv4::HEADER_LENGTH + payload.len();
    device.transmit(header.destination, length, header.traced, now, out, |bytes| {
        let mut packet = Ipv4Packet::new_unchecked(bytes);
        packet.set_header_length(ipv4::HEADER_LENGTH);
        packet.set_service(0);
        packet.set_total_length(u16::try_from(length).unwrap_or(u16::MAX));
        packet.set_identification(identification);
        packet.set_fragmentation(dont_fragment, more_fragments, offset);
        packet.set_time_to_live(header.ttl);
        packet.set_protocol(header.protocol);
        packet.set_source(header.source);
        packet.set_destination(header.destination);
        packet.payload_mut().copy_from_slice(payload);
        packet.fill_header_checksum();
    });
}

/// Completes a packet from smoltcp, which leaves identification and checksums to its device.
pub(super) fn finish_tcp(bytes: &mut [u8], identification: u16, dont_fragment: bool) {
    let mut packet = Ipv4Packet::new_unchecked(bytes);
    packet.set_identification(identification);
    packet.set_fragmentation(dont_fragment, false, 0);
    packet.fill_header_checksum();
    let (source, destination) = (packet.source(), packet.destination());
    TcpSegment::new_unchecked(packet.payload_mut()).fill_checksum(source, destination);
}
