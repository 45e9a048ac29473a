//! Frames and packets as machines send them, and what they are when they arrive.

use std::net::Ipv4Addr;

use flatnet_engine::wire::{
    ArpOperation, ArpPacket, EtherType, EthernetFrame, IcmpPacket, IcmpType, IpProtocol, Ipv4Packet,
    MacAddress, TcpFlags, TcpSegment, UdpDatagram, VxlanPacket,
};

pub fn ethernet(destination: MacAddress, source: MacAddress, packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 14];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_destination(destination);
    frame.set_source(source);
    frame.set_ethertype(EtherType::Ipv4);
    bytes.extend(packet);
    bytes
}

/// What a datagram of vxlan's carries: an Ethernet frame between two MACs, of a network.
pub fn vxlan_frame(
    vni: u32,
    macs: (MacAddress, MacAddress),
    ethertype: EtherType,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    VxlanPacket::new_unchecked(&mut bytes[..]).fill(vni);
    let mut frame = ethernet(macs.0, macs.1, payload);
    EthernetFrame::new_unchecked(&mut frame[..]).set_ethertype(ethertype);
    bytes.extend(frame);
    bytes
}

/// The MACs of the nodes' ends of the VXLAN.
pub const VTEP1: MacAddress = MacAddress::for_ipv4(Ipv4Addr::new(10, 1, 15, 0));
pub const VTEP2: MacAddress = MacAddress::for_ipv4(Ipv4Addr::new(10, 1, 20, 0));

pub fn ipv4_packet(from: Ipv4Addr, to: Ipv4Addr, protocol: IpProtocol, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 20];
    bytes[0] = 0x45;
    bytes.extend(payload);
    let length = bytes.len() as u16;
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    packet.set_total_length(length);
    packet.set_fragmentation(true, false, 0);
    packet.set_time_to_live(ttl);
    packet.set_protocol(protocol);
    packet.set_source(from);
    packet.set_destination(to);
    packet.fill_header_checksum();
    bytes
}

/// Makes a fragment of a packet: a range of its payload, at an offset.
pub fn fragment_of(packet: &[u8], range: std::ops::Range<usize>, more: bool, offset: usize) -> Vec<u8> {
    let mut fragment = packet[..20].to_vec();
    fragment.extend(&packet[20 + range.start..20 + range.end]);
    let length = fragment.len() as u16;
    let mut header = Ipv4Packet::new_unchecked(&mut fragment[..]);
    header.set_total_length(length);
    header.set_fragmentation(false, more, offset);
    header.fill_header_checksum();
    fragment
}

pub fn udp_packet(from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16), payload: &[u8], ttl: u8) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    bytes.extend(payload);
    let length = bytes.len() as u16;
    let mut datagram = UdpDatagram::new_unchecked(&mut bytes[..]);
    datagram.set_source_port(ports.0);
    datagram.set_destination_port(ports.1);
    datagram.set_length(length);
    datagram.fill_checksum(from, to);
    ipv4_packet(from, to, IpProtocol::Udp, ttl, &bytes)
}

/// Makes a segment without data, of ends that both begin with sequence number 1000.
pub fn tcp_packet(from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16), flags: TcpFlags) -> Vec<u8> {
    let mut bytes = vec![0; 20];
    let mut segment = TcpSegment::new_unchecked(&mut bytes[..]);
    segment.set_source_port(ports.0);
    segment.set_destination_port(ports.1);
    segment.set_header_length(20);
    segment.set_flags(flags);
    segment.set_sequence(if flags.syn() { 1000 } else { 1001 });
    segment.set_acknowledgement(if flags.ack() { 1001 } else { 0 });
    segment.set_window(4096);
    segment.fill_checksum(from, to);
    ipv4_packet(from, to, IpProtocol::Tcp, 64, &bytes)
}

pub fn echo_packet(from: Ipv4Addr, to: Ipv4Addr, kind: IcmpType, identifier: u16, ttl: u8) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    let mut icmp = IcmpPacket::new_unchecked(&mut bytes[..]);
    icmp.set_type(kind, 0);
    icmp.set_identifier(identifier);
    icmp.set_sequence(1);
    icmp.fill_checksum();
    ipv4_packet(from, to, IpProtocol::Icmp, ttl, &bytes)
}

pub fn arp(
    operation: ArpOperation,
    sender: (MacAddress, Ipv4Addr),
    target: (MacAddress, Ipv4Addr),
) -> Vec<u8> {
    let mut bytes = vec![0; 42];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_destination(if operation == ArpOperation::Request { MacAddress::BROADCAST } else { target.0 });
    frame.set_source(sender.0);
    frame.set_ethertype(EtherType::Arp);
    let mut packet = ArpPacket::new_unchecked(frame.payload_mut());
    packet.fill_types();
    packet.set_operation(operation);
    packet.set_sender(sender.0, sender.1);
    packet.set_target(target.0, target.1);
    bytes
}

pub fn arp_request(bytes: &[u8]) -> Option<(MacAddress, Ipv4Addr, Ipv4Addr)> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    if frame.ethertype() != EtherType::Arp {
        return None;
    }
    let packet = ArpPacket::new_checked(frame.payload()).ok()?;
    if packet.operation() != ArpOperation::Request {
        return None;
    }
    Some((packet.sender_mac(), packet.sender_address(), packet.target_address()))
}

/// Reads a frame as an IPv4 packet whose checksums must be right.
pub fn packet(frame: &[u8]) -> (Ipv4Addr, Ipv4Addr, u8, Vec<u8>) {
    let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
    assert!(packet.verify_header_checksum());
    let (source, destination) = (packet.source(), packet.destination());
    let payload = packet.payload();
    match packet.protocol() {
        IpProtocol::Udp => {
            assert!(UdpDatagram::new_checked(payload).unwrap().verify_checksum(source, destination))
        }
        IpProtocol::Tcp => {
            assert!(TcpSegment::new_checked(payload).unwrap().verify_checksum(source, destination))
        }
        IpProtocol::Icmp => assert!(IcmpPacket::new_checked(payload).unwrap().verify_checksum()),
        IpProtocol::Unknown(_) => {}
    }
    (source, destination, packet.time_to_live(), payload.to_vec())
}

/// Returns the ports of a TCP or UDP payload.
pub fn ports(payload: &[u8]) -> (u16, u16) {
    let datagram = UdpDatagram::new_unchecked(payload);
    (datagram.source_port(), datagram.destination_port())
}
