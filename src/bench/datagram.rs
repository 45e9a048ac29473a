//! The datagrams of a bench: written into buffers, and read where they leave the node.
//!
//! Invariant: every datagram is whole, with right checksums, as a pod or a node would send it.
//!
//! May depend on the engine's header views and the tunnel's outer headers. Read first: `lab.rs`.

use std::net::Ipv4Addr;

use flatnet_engine::flow::Tuple;
use flatnet_engine::tunnel::{self, OUTER_LENGTH, Outer};
use flatnet_engine::wire::{
    EtherType, EthernetFrame, IpProtocol, Ipv4Packet, MacAddress, UdpDatagram, ethernet, ipv4,
};

use super::addresses::{GATEWAY, bridge_address, node_address, node_of, node_of_pod};
use super::lab::TUNNEL_PORT;

/// Protocol number of UDP.
const UDP: u8 = 17;

/// Where a datagram enters its home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entrance {
    /// From a pod, by its number.
    Pod(u32),
    /// At eth0, from the gateway.
    Interface,
    /// At eth0, out of the tunnel from a node, by its number.
    Tunnel(u32),
}

/// A UDP datagram and where it enters, or left, a home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    /// Where it enters; of one that left by eth0, where its answer does.
    pub entrance: Entrance,
    /// Its addresses and ports.
    pub tuple: Tuple,
}

impl Datagram {
    /// Makes one.
    #[must_use]
    pub fn new(
        entrance: Entrance,
        source: Ipv4Addr,
        source_port: u16,
        destination: Ipv4Addr,
        destination_port: u16,
    ) -> Self {
        let (source, destination) = (source.to_bits(), destination.to_bits());
        let tuple = Tuple { source, destination, source_port, destination_port, protocol: UDP };
        Self { entrance, tuple }
    }

    /// Returns the answer to one that left by eth0.
    #[must_use]
    pub fn answer(self) -> Self {
        Self { tuple: self.tuple.reversed(), ..self }
    }

    /// Returns the answer to one that a pod sends a pod of another node: it comes by the tunnel.
    #[must_use]
    pub fn from_there(self) -> Self {
        let node = node_of_pod(Ipv4Addr::from_bits(self.tuple.destination));
        Self { entrance: Entrance::Tunnel(node), tuple: self.tuple.reversed() }
    }

    /// Returns the home that it enters.
    #[must_use]
    pub fn home(&self) -> u32 {
        let Tuple { source, destination, .. } = self.tuple;
        match self.entrance {
            Entrance::Pod(_) => node_of_pod(Ipv4Addr::from_bits(source)),
            Entrance::Interface => node_of(Ipv4Addr::from_bits(destination)),
            Entrance::Tunnel(_) => node_of_pod(Ipv4Addr::from_bits(destination)),
        }
    }

    /// Returns the bytes of its frame where that of a pod has `frame_bytes`.
    #[must_use]
    pub fn frame_length(&self, frame_bytes: usize) -> usize {
        match self.entrance {
            Entrance::Pod(_) | Entrance::Interface => frame_bytes,
            Entrance::Tunnel(_) => frame_bytes + OUTER_LENGTH,
        }
    }

    /// Writes its whole frame.
    pub fn write(&self, bytes: &mut [u8]) {
        let Tuple { source, destination, source_port, destination_port, .. } = self.tuple;
        let (source, destination) = (Ipv4Addr::from_bits(source), Ipv4Addr::from_bits(destination));
        let home = self.home();
        let (to, from) = match self.entrance {
            Entrance::Pod(_) if node_of_pod(destination) == home => (destination, source),
            Entrance::Pod(_) => (bridge_address(home), source),
            Entrance::Interface => (node_address(home), GATEWAY),
            Entrance::Tunnel(node) => (node_address(home), node_address(node)),
        };
        let mut frame = EthernetFrame::new_unchecked(bytes);
        frame.set_destination(MacAddress::for_ipv4(to));
        frame.set_source(MacAddress::for_ipv4(from));
        frame.set_ethertype(EtherType::Ipv4);
        let room = frame.payload_mut();
        room.fill(0);
        let outer = match self.entrance {
            Entrance::Tunnel(_) => OUTER_LENGTH,
            Entrance::Pod(_) | Entrance::Interface => 0,
        };
        let inner = &mut room[outer..];
        inner[0] = 0x45;
        let length = inner.len() as u16;
        let mut packet = Ipv4Packet::new_unchecked(inner);
        packet.set_total_length(length);
        packet.set_time_to_live(64);
        packet.set_protocol(IpProtocol::Udp);
        packet.set_source(source);
        packet.set_destination(destination);
        packet.fill_header_checksum();
        let mut datagram = UdpDatagram::new_unchecked(packet.payload_mut());
        datagram.set_source_port(source_port);
        datagram.set_destination_port(destination_port);
        datagram.set_length(length - ipv4::HEADER_LENGTH as u16);
        datagram.fill_checksum(source, destination);
        if outer > 0 {
            let outer = Outer { source: from, destination: to, port: TUNNEL_PORT, dont_fragment: true };
            room[..OUTER_LENGTH].copy_from_slice(&outer.template());
            tunnel::complete(room, 1, true);
        }
    }

    /// Reads a frame that left by eth0: of a tunnelled datagram, the inner one. None when it is no UDP datagram.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let frame = EthernetFrame::new_unchecked(bytes);
        if frame.ethertype() != EtherType::Ipv4 {
            return None;
        }
        let packet = bytes.get(ethernet::HEADER_LENGTH..)?;
        let (outer, tuple) = (Ipv4Packet::new_unchecked(packet), tuple(packet)?);
        if tuple.destination_port != TUNNEL_PORT {
            return Some(Self { entrance: Entrance::Interface, tuple });
        }
        let inner = self::tuple(packet.get(OUTER_LENGTH..)?)?;
        Some(Self { entrance: Entrance::Tunnel(node_of(outer.destination())), tuple: inner })
    }
}

fn tuple(packet: &[u8]) -> Option<Tuple> {
    let packet = Ipv4Packet::new_checked(packet).ok()?;
    if packet.protocol() != IpProtocol::Udp {
        return None;
    }
    let datagram = UdpDatagram::new_checked(packet.payload()).ok()?;
    Some(Tuple {
        source: packet.source().to_bits(),
        destination: packet.destination().to_bits(),
        source_port: datagram.source_port(),
        destination_port: datagram.destination_port(),
        protocol: UDP,
    })
}
