//! The packets of a bench: written into buffers, and read where they leave the node.
//!
//! Invariant: every packet is whole, with right checksums, as a pod or a node would send it.
//!
//! May depend on the engine's header views and the tunnel's outer headers. Read first: `lab.rs`.

use std::net::Ipv4Addr;

use flatnet_engine::flow::Tuple;
use flatnet_engine::tunnel::{self, Encapsulation, OUTER_LENGTH, OUTER_LIMIT, Outer, Vxlan, vtep_mac};
use flatnet_engine::wire::{
    EtherType, EthernetFrame, IpProtocol, Ipv4Packet, MacAddress, TcpFlags, TcpSegment, UdpDatagram,
    ethernet, ipv4, tcp,
};
use flatnet_proxy::Protocol;

use super::addresses::{GATEWAY, bridge_address, flannel_address, node_address, node_of, node_of_pod};
use super::lab::TUNNEL_PORT;

/// The number of the network, where it is a VXLAN.
pub const VNI: u32 = 1;
/// The sequence number that both ends of a connection begin with.
const INITIAL_SEQUENCE: u32 = 1000;

/// Where a packet enters its home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entrance {
    /// From a pod, by its number.
    Pod(u32),
    /// At eth0, from the gateway.
    Interface,
    /// At eth0, out of the tunnel from a node, by its number.
    Tunnel(u32),
    /// The same, where the tunnel is a VXLAN.
    Vxlan(u32),
}

impl Entrance {
    /// Returns the bytes that are in front of a packet there.
    const fn outer_length(self) -> usize {
        match self {
            Self::Pod(_) | Self::Interface => 0,
            Self::Tunnel(_) => OUTER_LENGTH,
            Self::Vxlan(_) => OUTER_LIMIT,
        }
    }
}

/// A UDP datagram or TCP segment, and where it enters, or left, a home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Where it enters; of one that left by eth0, where its answer does.
    pub entrance: Entrance,
    /// Its addresses and ports.
    pub tuple: Tuple,
    /// A segment's flags; a datagram has none.
    flags: TcpFlags,
}

impl Packet {
    /// Makes the first one of a connection.
    #[must_use]
    pub fn new(
        entrance: Entrance,
        protocol: Protocol,
        (source, source_port): (Ipv4Addr, u16),
        (destination, destination_port): (Ipv4Addr, u16),
    ) -> Self {
        let (flags, protocol) = match protocol {
            Protocol::Tcp => (TcpFlags::SYN, IpProtocol::Tcp),
            Protocol::Udp => (TcpFlags::default(), IpProtocol::Udp),
        };
        let (source, destination, protocol) = (source.to_bits(), destination.to_bits(), u8::from(protocol));
        let tuple = Tuple { source, destination, source_port, destination_port, protocol };
        Self { entrance, tuple, flags }
    }

    /// Returns the answer to one that left by eth0.
    #[must_use]
    pub fn answer(self) -> Self {
        let flags = if self.flags.syn() { self.flags.with(TcpFlags::ACK) } else { self.flags };
        Self { tuple: self.tuple.reversed(), flags, ..self }
    }

    /// Returns one of the same connection once it is established.
    #[must_use]
    pub fn established(self) -> Self {
        Self { flags: if self.flags.syn() { TcpFlags::ACK } else { self.flags }, ..self }
    }

    /// Returns the answer to one that a pod sends a pod of another node: it comes by the tunnel.
    #[must_use]
    pub fn from_there(self, encapsulation: Encapsulation) -> Self {
        let node = node_of_pod(Ipv4Addr::from_bits(self.tuple.destination));
        let entrance = match encapsulation {
            Encapsulation::Udp => Entrance::Tunnel(node),
            Encapsulation::Vxlan { .. } => Entrance::Vxlan(node),
        };
        Self { entrance, ..self.answer() }
    }

    /// Returns the home that it enters.
    #[must_use]
    pub fn home(&self) -> u32 {
        let Tuple { source, destination, .. } = self.tuple;
        match self.entrance {
            Entrance::Pod(_) => node_of_pod(Ipv4Addr::from_bits(source)),
            Entrance::Interface => node_of(Ipv4Addr::from_bits(destination)),
            Entrance::Tunnel(_) | Entrance::Vxlan(_) => node_of_pod(Ipv4Addr::from_bits(destination)),
        }
    }

    /// Returns the bytes of its frame where that of a pod has `frame_bytes`.
    #[must_use]
    pub fn frame_length(&self, frame_bytes: usize) -> usize {
        frame_bytes + self.entrance.outer_length()
    }

    /// Writes its whole frame.
    pub fn write(&self, bytes: &mut [u8]) {
        let Tuple { source, destination, source_port, destination_port, protocol } = self.tuple;
        let (source, destination) = (Ipv4Addr::from_bits(source), Ipv4Addr::from_bits(destination));
        let home = self.home();
        let (to, from) = match self.entrance {
            Entrance::Pod(_) if node_of_pod(destination) == home => (destination, source),
            Entrance::Pod(_) => (bridge_address(home), source),
            Entrance::Interface => (node_address(home), GATEWAY),
            Entrance::Tunnel(node) | Entrance::Vxlan(node) => (node_address(home), node_address(node)),
        };
        let mut frame = EthernetFrame::new_unchecked(bytes);
        frame.set_destination(MacAddress::for_ipv4(to));
        frame.set_source(MacAddress::for_ipv4(from));
        frame.set_ethertype(EtherType::Ipv4);
        let room = frame.payload_mut();
        room.fill(0);
        let inner = &mut room[self.entrance.outer_length()..];
        inner[0] = 0x45;
        let length = inner.len() as u16;
        let mut packet = Ipv4Packet::new_unchecked(inner);
        packet.set_total_length(length);
        packet.set_time_to_live(64);
        packet.set_protocol(IpProtocol::from(protocol));
        packet.set_source(source);
        packet.set_destination(destination);
        packet.fill_header_checksum();
        if packet.protocol() == IpProtocol::Tcp {
            let (is_first, answers) = (self.flags.syn(), self.flags.ack());
            let mut segment = TcpSegment::new_unchecked(packet.payload_mut());
            segment.set_source_port(source_port);
            segment.set_destination_port(destination_port);
            segment.set_header_length(tcp::HEADER_LENGTH);
            segment.set_flags(self.flags);
            segment.set_sequence(INITIAL_SEQUENCE + u32::from(!is_first));
            segment.set_acknowledgement(if answers { INITIAL_SEQUENCE + 1 } else { 0 });
            segment.set_window(u16::MAX);
            segment.fill_checksum(source, destination);
        } else {
            let mut datagram = UdpDatagram::new_unchecked(packet.payload_mut());
            datagram.set_source_port(source_port);
            datagram.set_destination_port(destination_port);
            datagram.set_length(length - ipv4::HEADER_LENGTH as u16);
            datagram.fill_checksum(source, destination);
        }
        self.wrap(room, (from, to));
    }

    /// Writes what is in front of it.
    fn wrap(&self, room: &mut [u8], (source, destination): (Ipv4Addr, Ipv4Addr)) {
        let vxlan = match self.entrance {
            Entrance::Pod(_) | Entrance::Interface => return,
            Entrance::Tunnel(_) => None,
            Entrance::Vxlan(node) => {
                let [source, destination] = [node, self.home()].map(|it| vtep_mac(flannel_address(it)));
                Some(Vxlan { vni: VNI, destination, source, spreads: true })
            }
        };
        let outer = Outer { source, destination, port: TUNNEL_PORT, dont_fragment: true, vxlan };
        room[..outer.length()].copy_from_slice(&outer.template()[..outer.length()]);
        if vxlan.is_some() { tunnel::complete_vxlan(room, 1) } else { tunnel::complete(room, 1, true) }
    }

    /// Reads a frame that left by eth0: of a tunnelled packet, the inner one. None when it is neither a datagram nor a segment.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let frame = EthernetFrame::new_unchecked(bytes);
        if frame.ethertype() != EtherType::Ipv4 {
            return None;
        }
        let packet = bytes.get(ethernet::HEADER_LENGTH..)?;
        let (outer, (tuple, flags)) = (Ipv4Packet::new_unchecked(packet), inside(packet)?);
        let peer = || node_of(outer.destination());
        let entrance = match (tuple.source_port, tuple.destination_port) {
            (TUNNEL_PORT, TUNNEL_PORT) => Entrance::Tunnel(peer()),
            // A pod's own port may be that number, but no server that it asks has a high one.
            (1024.., TUNNEL_PORT) => Entrance::Vxlan(peer()),
            _ => return Some(Self { entrance: Entrance::Interface, tuple, flags }),
        };
        let (tuple, flags) = inside(packet.get(entrance.outer_length()..)?)?;
        Some(Self { entrance, tuple, flags })
    }
}

fn inside(packet: &[u8]) -> Option<(Tuple, TcpFlags)> {
    let packet = Ipv4Packet::new_checked(packet).ok()?;
    let (source_port, destination_port, flags) = match packet.protocol() {
        IpProtocol::Udp => {
            let datagram = UdpDatagram::new_checked(packet.payload()).ok()?;
            (datagram.source_port(), datagram.destination_port(), TcpFlags::default())
        }
        IpProtocol::Tcp => {
            let segment = TcpSegment::new_checked(packet.payload()).ok()?;
            (segment.source_port(), segment.destination_port(), segment.flags())
        }
        IpProtocol::Icmp | IpProtocol::Unknown(_) => return None,
    };
    let (source, destination) = (packet.source().to_bits(), packet.destination().to_bits());
    let protocol = u8::from(packet.protocol());
    Some((Tuple { source, destination, source_port, destination_port, protocol }, flags))
}
