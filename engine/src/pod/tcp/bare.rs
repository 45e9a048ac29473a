//! Segments that no connection sends: resets, acknowledgements of ended connections, answers to a SYN.
//!
//! The table sends them where it holds no socket. Invariant: no data. Allowed dependencies: `device`, `ip`, `wire`.
//! Read first: RFC 9293 section 3.10.7.1.

use super::super::ip;
use super::{Io, Tuple};
use crate::wire::{IpProtocol, Ipv4Packet, TcpFlags, TcpSegment, tcp};

/// Answers a segment that belongs to nothing (RFC 9293, 3.10.7.1).
pub(super) fn refuse(io: &mut Io<'_, '_>, tuple: Tuple, segment: &TcpSegment<&[u8]>) {
    let flags = segment.flags();
    if flags.ack() {
        send_bare(io, tuple, segment.acknowledgement(), None, TcpFlags::RST);
        return;
    }
    let length = u32::from(flags.syn()) + u32::from(flags.fin()) + segment.payload().len() as u32;
    let acknowledged = segment.sequence().wrapping_add(length);
    send_bare(io, tuple, 0, Some(acknowledged), TcpFlags::RST.with(TcpFlags::ACK));
}

/// Sends a segment without data or options.
pub(super) fn send_bare(
    io: &mut Io<'_, '_>,
    tuple: Tuple,
    sequence: u32,
    acknowledged: Option<u32>,
    flags: TcpFlags,
) {
    let (source, destination) = (*tuple.local.ip(), *tuple.remote.ip());
    let mut bytes = [0; tcp::HEADER_LENGTH];
    let mut segment = TcpSegment::new_unchecked(&mut bytes[..]);
    segment.set_source_port(tuple.local.port());
    segment.set_destination_port(tuple.remote.port());
    segment.set_sequence(sequence);
    segment.set_acknowledgement(acknowledged.unwrap_or(0));
    segment.set_header_length(tcp::HEADER_LENGTH);
    segment.set_flags(flags);
    segment.fill_checksum(source, destination);
    let header = ip::Header {
        source,
        destination,
        protocol: IpProtocol::Tcp,
        ttl: ip::DEFAULT_TTL,
        dont_fragment: true,
        traced: false,
    };
    ip::send(io.device, &header, &bytes, io.now, io.out);
}

/// Sends a finished packet once more, with an identification of its own.
pub(super) fn send_packet(io: &mut Io<'_, '_>, tuple: Tuple, packet: &[u8]) {
    let identification = io.device.random.next_u16();
    let dont_fragment = !io.device.must_allow_cutting(*tuple.remote.ip(), io.now);
    io.device.transmit(*tuple.remote.ip(), packet.len(), false, io.now, io.out, |bytes| {
        bytes.copy_from_slice(packet);
        let mut packet = Ipv4Packet::new_unchecked(bytes);
        packet.set_identification(identification);
        packet.set_fragmentation(dont_fragment, false, 0);
        packet.fill_header_checksum();
    });
}
