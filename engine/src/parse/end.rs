//! A node's end of the tunnel: which datagrams are its, and what a VXLAN's carry.
//!
//! The parser asks for each datagram at eth0. Invariant: what is for another network, another end, or for all, is told apart by name.
//! Allowed dependencies: `wire`, `ledger`. Read first: RFC 7348, `docs/adr/0029-the-tunnel-as-a-vxlan.md`.

use super::Side;
use crate::ledger::DropReason;
use crate::wire::{EtherType, EthernetFrame, IpProtocol, Ipv4Packet, MacAddress, UdpDatagram, VxlanPacket};

/// A node's end of a VXLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vtep {
    /// The network's number.
    pub vni: u32,
    /// Its MAC there.
    pub mac: MacAddress,
}

/// Returns the datagram of the tunnel that a packet carries, and which end of a VXLAN it came to, if that is what the tunnel is.
pub(super) fn datagram<'a>(
    side: &Side,
    packet: &'a Ipv4Packet<&[u8]>,
) -> Option<(UdpDatagram<&'a [u8]>, Option<Vtep>)> {
    let ((local, port), end) = match *side {
        Side::Switch | Side::Bridge | Side::Interface { tunnel: None, .. } => return None,
        Side::Interface { tunnel: Some(tunnel), .. } => (tunnel, None),
        Side::Vxlan { tunnel, end, .. } => (tunnel, Some(end)),
    };
    if packet.destination() != local || packet.protocol() != IpProtocol::Udp || packet.is_fragment() {
        return None;
    }
    let datagram = UdpDatagram::new_checked(packet.payload()).ok()?;
    (datagram.destination_port() == port).then_some((datagram, end))
}

/// Looks at the frame that a VXLAN's datagram carries; says whether it is ARP or IPv4, the only ones that are taken.
pub(super) fn frame_in(payload: &[u8], vtep: Vtep) -> Result<EtherType, DropReason> {
    let packet = VxlanPacket::new_checked(payload).map_err(|_| DropReason::TunnelMalformed)?;
    let frame = EthernetFrame::new_checked(packet.payload()).map_err(|_| DropReason::TunnelMalformed)?;
    let (destination, ethertype) = (frame.destination(), frame.ethertype());
    if packet.vni() != vtep.vni {
        return Err(DropReason::TunnelForeignNetwork);
    }
    if frame.source().is_multicast() {
        return Err(DropReason::MulticastSource);
    }
    if destination != vtep.mac && !destination.is_multicast() {
        return Err(DropReason::TunnelForeignMac);
    }
    match ethertype {
        EtherType::Arp => Ok(ethertype),
        _ if destination.is_multicast() => Err(DropReason::TunnelBroadcast),
        EtherType::Ipv4 => Ok(ethertype),
        EtherType::Ipv6 | EtherType::Vlan | EtherType::Unknown(_) => Err(DropReason::UnhandledProtocol),
    }
}
