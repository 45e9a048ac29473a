//! The outer headers of a tunnel whose datagrams the system sends and receives: read, written, answered for.
//!
//! `link::tunnel_socket` takes a frame's payload by them, and writes those that the system took off. Invariant: what is written is
//! what a wire would have brought, but for what the system does not tell. Allowed dependencies: `frame`, `wire`. Read first:
//! `docs/adr/0027-the-tunnels-socket.md`.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::frame::{Arena, Frame, Record};
use crate::tunnel::{OUTER_LENGTH, OUTER_TTL};
use crate::wire::{
    ArpOperation, ArpPacket, EtherType, EthernetFrame, IpProtocol, Ipv4Packet, MacAddress, UdpDatagram,
    ethernet, ipv4,
};

/// Bytes in front of what the tunnel carries.
pub const HEADERS: usize = ethernet::HEADER_LENGTH + OUTER_LENGTH;

/// Returns to whom a frame of the tunnel goes, and what it carries.
#[must_use]
pub fn datagram(frame: &[u8]) -> (Ipv4Addr, &[u8]) {
    let packet = Ipv4Packet::new_unchecked(&frame[ethernet::HEADER_LENGTH..]);
    let end = ethernet::HEADER_LENGTH + usize::from(packet.total_length());
    (packet.destination(), frame.get(HEADERS..end).unwrap_or_default())
}

/// Writes the outer headers of what came from somebody: as on the wire, but for what the system does not tell. It has
/// verified the checksum; none stands for that (RFC 768).
pub fn write_headers(frame: &mut [u8], from: SocketAddrV4, local: SocketAddrV4) {
    frame[..HEADERS].fill(0);
    let mut header = EthernetFrame::new_unchecked(&mut frame[..]);
    header.set_destination(MacAddress::for_ipv4(*local.ip()));
    header.set_source(MacAddress::for_ipv4(*from.ip()));
    header.set_ethertype(EtherType::Ipv4);
    let mut packet = Ipv4Packet::new_unchecked(&mut frame[ethernet::HEADER_LENGTH..]);
    packet.set_header_length(ipv4::HEADER_LENGTH);
    packet.set_fragmentation(true, false, 0);
    packet.set_time_to_live(OUTER_TTL);
    packet.set_protocol(IpProtocol::Udp);
    packet.set_source(*from.ip());
    packet.set_destination(*local.ip());
    let mut datagram =
        UdpDatagram::new_unchecked(&mut frame[ethernet::HEADER_LENGTH + ipv4::HEADER_LENGTH..]);
    datagram.set_source_port(from.port());
    datagram.set_destination_port(local.port());
    write_lengths(frame);
}

/// Makes the outer headers those of a datagram as long as the frame is, without a checksum (RFC 768).
pub fn write_lengths(frame: &mut [u8]) {
    let length = frame.len() - ethernet::HEADER_LENGTH;
    let mut packet = Ipv4Packet::new_unchecked(&mut frame[ethernet::HEADER_LENGTH..]);
    packet.set_total_length(length as u16);
    packet.fill_header_checksum();
    let mut datagram = UdpDatagram::new_unchecked(packet.payload_mut());
    datagram.set_length((length - ipv4::HEADER_LENGTH) as u16);
    datagram.set_checksum(0);
}

/// Turns a question for a neighbour's MAC into its answer: every neighbour's follows from its address.
pub fn answer(arena: &Arena, frame: &mut Frame) {
    let mut open = arena.open(frame);
    let length = open.bytes().len();
    *open.record = Record::default();
    if !open.reset(length) {
        return;
    }
    let mut header = EthernetFrame::new_unchecked(open.bytes_mut());
    let asker = header.source();
    let mut packet = ArpPacket::new_unchecked(header.payload_mut());
    let (own, target) = (packet.sender_address(), packet.target_address());
    let mac = MacAddress::for_ipv4(target);
    packet.set_operation(ArpOperation::Reply);
    packet.set_sender(mac, target);
    packet.set_target(asker, own);
    header.set_destination(asker);
    header.set_source(mac);
}
