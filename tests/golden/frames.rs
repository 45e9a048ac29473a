//! The frames that machines of a row send, made by pnet: another hand than the parser's that they are to try.
//!
//! Invariant: every length and checksum is right unless a row breaks it on purpose.

use pnet_base::MacAddr;
use pnet_packet::arp::{ArpHardwareTypes, ArpOperation, MutableArpPacket};
use pnet_packet::ethernet::{EtherType, EtherTypes, MutableEthernetPacket};
use pnet_packet::icmp::echo_request::MutableEchoRequestPacket;
use pnet_packet::icmp::{IcmpCode, IcmpPacket, IcmpType, MutableIcmpPacket};
use pnet_packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols};
use pnet_packet::ipv4::MutableIpv4Packet;
use pnet_packet::tcp::MutableTcpPacket;
use pnet_packet::udp::MutableUdpPacket;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::Duration;

pub use pnet_packet::tcp::TcpFlags;

/// A machine of the rows' topologies.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    pub name: &'static str,
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
}

const fn machine(name: &'static str, address: [u8; 4], gateway: [u8; 4]) -> Machine {
    let ([a, b, c, d], [e, f, g, h]) = (address, gateway);
    Machine { name, address: Ipv4Addr::new(a, b, c, d), gateway: Ipv4Addr::new(e, f, g, h) }
}

pub const APP1: Machine = machine("web-app-1", [10, 1, 15, 3], [10, 1, 15, 1]);
pub const APP2: Machine = machine("web-app-2", [10, 1, 15, 2], [10, 1, 15, 1]);
pub const APP3: Machine = machine("web-app-3", [10, 1, 20, 2], [10, 1, 20, 1]);
pub const BACKEND: Machine = machine("backend", [10, 1, 20, 3], [10, 1, 20, 1]);
/// In the node network.
pub const USER: Machine = machine("user", [192, 168, 66, 50], [192, 168, 66, 1]);
/// Behind the router.
pub const INTERNET: Machine = machine("internet", [203, 0, 113, 10], [203, 0, 113, 1]);
/// What stands where node-2 is in other topologies: a node of another make.
pub const PEER: Machine = machine("peer", [192, 168, 66, 12], [192, 168, 66, 1]);
/// On node-1's docker0, and declared by nobody.
pub const STRANGER: Machine = machine("stranger", [10, 1, 15, 200], [10, 1, 15, 1]);
pub const STRANGER2: Machine = machine("stranger-2", [10, 1, 15, 201], [10, 1, 15, 1]);

pub const NODE1: Ipv4Addr = Ipv4Addr::new(192, 168, 66, 11);
pub const NODE2: Ipv4Addr = Ipv4Addr::new(192, 168, 66, 12);

/// The MAC that goes with an address: 02:42 and its bytes.
pub fn mac(address: Ipv4Addr) -> MacAddr {
    let [a, b, c, d] = address.octets();
    MacAddr::new(2, 0x42, a, b, c, d)
}

/// An Ethernet frame of any type.
pub fn ethernet(source: MacAddr, destination: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 14 + payload.len()];
    let mut frame = MutableEthernetPacket::new(&mut bytes).unwrap();
    frame.set_source(source);
    frame.set_destination(destination);
    frame.set_ethertype(EtherType::new(ethertype));
    frame.set_payload(payload);
    bytes
}

/// A frame with an ARP packet: a request (1) is for everybody.
pub fn arp(operation: u16, sender: (MacAddr, Ipv4Addr), target: (MacAddr, Ipv4Addr)) -> Vec<u8> {
    let mut bytes = vec![0; 28];
    let mut packet = MutableArpPacket::new(&mut bytes).unwrap();
    packet.set_hardware_type(ArpHardwareTypes::Ethernet);
    packet.set_protocol_type(EtherTypes::Ipv4);
    packet.set_hw_addr_len(6);
    packet.set_proto_addr_len(4);
    packet.set_operation(ArpOperation::new(operation));
    packet.set_sender_hw_addr(sender.0);
    packet.set_sender_proto_addr(sender.1);
    packet.set_target_hw_addr(target.0);
    packet.set_target_proto_addr(target.1);
    let destination = if operation == 1 { MacAddr::broadcast() } else { target.0 };
    ethernet(sender.0, destination, EtherTypes::Arp.0, &bytes)
}

/// An IPv4 packet, to be changed before it becomes bytes.
#[derive(Debug, Clone)]
pub struct Packet {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    protocol: IpNextHeaderProtocol,
    ttl: u8,
    identification: u16,
    dont_fragment: bool,
    more: bool,
    /// Where a fragment's payload begins, bytes.
    pub offset: usize,
    pub payload: Vec<u8>,
}

impl Packet {
    fn new(from: Ipv4Addr, to: Ipv4Addr, protocol: IpNextHeaderProtocol, payload: Vec<u8>) -> Self {
        Self {
            source: from,
            destination: to,
            protocol,
            ttl: 64,
            identification: 0,
            dont_fragment: true,
            more: false,
            offset: 0,
            payload,
        }
    }

    /// A UDP datagram.
    pub fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), data: &[u8]) -> Self {
        let mut bytes = vec![0; 8 + data.len()];
        let mut datagram = MutableUdpPacket::new(&mut bytes).unwrap();
        datagram.set_source(from.1);
        datagram.set_destination(to.1);
        datagram.set_length(8 + data.len() as u16);
        datagram.set_payload(data);
        let checksum = pnet_packet::udp::ipv4_checksum(&datagram.to_immutable(), &from.0, &to.0);
        datagram.set_checksum(checksum);
        Self::new(from.0, to.0, IpNextHeaderProtocols::Udp, bytes)
    }

    /// A TCP segment.
    pub fn tcp(
        from: (Ipv4Addr, u16),
        to: (Ipv4Addr, u16),
        flags: u8,
        numbers: (u32, u32),
        data: &[u8],
    ) -> Self {
        let mut bytes = vec![0; 20 + data.len()];
        let mut segment = MutableTcpPacket::new(&mut bytes).unwrap();
        segment.set_source(from.1);
        segment.set_destination(to.1);
        segment.set_sequence(numbers.0);
        segment.set_acknowledgement(numbers.1);
        segment.set_data_offset(5);
        segment.set_flags(flags);
        segment.set_window(8192);
        segment.set_payload(data);
        let checksum = pnet_packet::tcp::ipv4_checksum(&segment.to_immutable(), &from.0, &to.0);
        segment.set_checksum(checksum);
        Self::new(from.0, to.0, IpNextHeaderProtocols::Tcp, bytes)
    }

    /// An echo request (8) or reply (0).
    pub fn echo(from: Ipv4Addr, to: Ipv4Addr, kind: u8, identifier: u16, sequence: u16) -> Self {
        let mut bytes = vec![0; 8 + 16];
        let mut echo = MutableEchoRequestPacket::new(&mut bytes).unwrap();
        echo.set_icmp_type(IcmpType::new(kind));
        echo.set_identifier(identifier);
        echo.set_sequence_number(sequence);
        Self::icmp(from, to, bytes)
    }

    /// An ICMP error that quotes a packet; `rest` is the second word of its header.
    pub fn error(from: Ipv4Addr, to: Ipv4Addr, kind: (u8, u8), rest: u32, quoted: &Packet) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(rest.to_be_bytes());
        bytes.extend(quoted.bytes());
        let mut icmp = MutableIcmpPacket::new(&mut bytes).unwrap();
        icmp.set_icmp_type(IcmpType::new(kind.0));
        icmp.set_icmp_code(IcmpCode::new(kind.1));
        Self::icmp(from, to, bytes)
    }

    fn icmp(from: Ipv4Addr, to: Ipv4Addr, bytes: Vec<u8>) -> Self {
        Self::new(from, to, IpNextHeaderProtocols::Icmp, bytes).with_icmp_checksum()
    }

    /// Makes an ICMP message's checksum right.
    pub fn with_icmp_checksum(mut self) -> Self {
        let checksum = pnet_packet::icmp::checksum(&IcmpPacket::new(&self.payload).unwrap());
        MutableIcmpPacket::new(&mut self.payload).unwrap().set_checksum(checksum);
        self
    }

    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// Lets routers cut it.
    pub fn may_cut(self, identification: u16) -> Self {
        Self { identification, dont_fragment: false, ..self }
    }

    /// Takes a UDP datagram's checksum away.
    pub fn without_checksum(mut self) -> Self {
        self.payload[6..8].fill(0);
        self
    }

    /// A fragment: a range of the payload.
    pub fn part(&self, range: Range<usize>) -> Self {
        let more = range.end < self.payload.len();
        let (offset, payload) = (range.start, self.payload[range].to_vec());
        Self { dont_fragment: false, more, offset, payload, ..self.clone() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 20 + self.payload.len()];
        let mut packet = MutableIpv4Packet::new(&mut bytes).unwrap();
        packet.set_version(4);
        packet.set_header_length(5);
        packet.set_total_length(20 + self.payload.len() as u16);
        packet.set_identification(self.identification);
        packet.set_flags(u8::from(self.dont_fragment) << 1 | u8::from(self.more));
        packet.set_fragment_offset((self.offset / 8) as u16);
        packet.set_ttl(self.ttl);
        packet.set_next_level_protocol(self.protocol);
        packet.set_source(self.source);
        packet.set_destination(self.destination);
        packet.set_payload(&self.payload);
        let checksum = pnet_packet::ipv4::checksum(&packet.to_immutable());
        packet.set_checksum(checksum);
        bytes
    }
}

/// A frame of a recording: when after its beginning, at whose port, its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    pub time: Duration,
    pub machine: String,
    pub bytes: Vec<u8>,
}

/// What the machines of a row send, a millisecond apart.
#[derive(Debug, Default)]
pub struct Script {
    pub frames: Vec<Recorded>,
    now: Duration,
}

impl Script {
    /// Sends a frame as it is.
    pub fn frame(&mut self, from: Machine, bytes: Vec<u8>) {
        self.frames.push(Recorded { time: self.now, machine: from.name.to_owned(), bytes });
        self.now += Duration::from_millis(1);
    }

    /// Sends a packet to whoever has an address on the sender's segment.
    pub fn to(&mut self, from: Machine, next: Ipv4Addr, packet: &Packet) {
        let bytes = ethernet(mac(from.address), mac(next), EtherTypes::Ipv4.0, &packet.bytes());
        self.frame(from, bytes);
    }

    /// Sends a packet by the sender's gateway, or on its own segment (a /24 everywhere).
    pub fn send(&mut self, from: Machine, packet: &Packet) {
        let near = packet.destination.octets()[..3] == from.address.octets()[..3];
        self.to(from, if near { packet.destination } else { from.gateway }, packet);
    }

    /// Lets time pass.
    pub fn wait(&mut self, duration: Duration) {
        self.now += duration;
    }

    /// A UDP question and its answer, so many times: the first is decided, the others are remembered. The answer goes
    /// to where the question is seen to come from.
    pub fn ask(
        &mut self,
        (client, port): (Machine, u16),
        (server, service): (Machine, u16),
        seen: (Ipv4Addr, u16),
        times: usize,
    ) {
        for _ in 0..times {
            self.send(client, &Packet::udp((client.address, port), (server.address, service), b"question"));
            self.send(server, &Packet::udp((server.address, service), seen, b"answer"));
        }
    }
}
