//! Where a packet goes next: by which of the node's routes, to which MAC, out of which port.
//!
//! `decide` asks for forwarded packets, the worker for those a node makes itself. Invariants: the longest
//! prefix decides; the tunnel asks the leases; a MAC is taken from the known pods or the neighbours, never
//! guessed. Allowed dependencies: as `decide`. Read first: RFC 1812, 5.2.4.

use super::{
    Attachment, DropReason, Ipv4Addr, Ipv4Prefix, MacAddress, Neighbor, Node, NodeId, Outer, Point, PortId,
    Tables, World, prefix_bucket,
};
use crate::flow::Tuple;
use crate::tables::{NextHop, Tunnel};
use crate::tunnel::{Encapsulation, Vxlan, vtep_mac};
use crate::wire::IpProtocol;

/// A route's outcome, before any MAC is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// The node itself.
    Local,
    /// A pod on the bridge.
    Bridge {
        /// The route that says so.
        route: Ipv4Prefix,
    },
    /// A pod of another node.
    Tunnel {
        /// The lease's subnet.
        lease: Ipv4Prefix,
        /// The node that holds it.
        peer: Ipv4Addr,
    },
    /// Out of an interface.
    Interface {
        /// Its index.
        index: u8,
        /// Whose MAC the frame gets.
        next_hop: Ipv4Addr,
        /// The route that says so.
        route: Ipv4Prefix,
    },
}

impl Hop {
    /// Returns the largest packet for a destination this way takes, bytes: into the tunnel, one that fits the peer's path with
    /// its outer headers.
    #[must_use]
    pub fn mtu(self, world: &World<'_>, (id, node): (NodeId, &Node), destination: Ipv4Addr) -> u16 {
        let link = |neighbor| node.link_mtus.get(&neighbor).copied().unwrap_or(u16::MAX);
        match self {
            Self::Local => u16::MAX,
            Self::Bridge { .. } => {
                node.bridge.as_ref().map_or(u16::MAX, |bridge| bridge.mtu).min(link(destination))
            }
            Self::Tunnel { peer, .. } => {
                let (tunnel, overhead) =
                    node.tunnel.map_or((u16::MAX, 0), |tunnel| (tunnel.mtu, tunnel.encapsulation.overhead()));
                let link = match peer_way(world.tables, node, peer) {
                    Ok(hop @ Self::Interface { .. }) => hop.mtu(world, (id, node), peer),
                    Ok(Self::Local | Self::Bridge { .. } | Self::Tunnel { .. }) | Err(_) => u16::MAX,
                };
                let path = world.path_mtu.get((id, peer), world.now).and_then(|mtu| u16::try_from(mtu).ok());
                tunnel.min(link.min(path.unwrap_or(u16::MAX)).saturating_sub(overhead))
            }
            Self::Interface { index, next_hop, .. } => {
                let interface = node.interfaces.get(usize::from(index));
                interface.map_or(u16::MAX, |interface| interface.mtu).min(link(next_hop))
            }
        }
    }

    /// Returns the address that what the node sends this way comes from.
    #[must_use]
    pub fn address(self, node: &Node) -> Option<Ipv4Addr> {
        match self {
            Self::Local | Self::Bridge { .. } => super::router(node).map(|router| router.address),
            Self::Tunnel { .. } => node.tunnel.map(|tunnel| tunnel.address),
            Self::Interface { index, .. } => node.interfaces.get(usize::from(index)).map(|it| it.address),
        }
    }

    /// Returns the point where packets leave this way.
    #[must_use]
    pub fn point(self) -> Point {
        match self {
            Self::Local | Self::Bridge { .. } => Point::Bridge,
            Self::Tunnel { .. } => Point::Tunnel,
            Self::Interface { index, .. } => Point::Interface(index),
        }
    }
}

/// How the next hop is reached: the link layer of a hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Where it is.
    pub attachment: Attachment,
    /// Its MAC.
    pub destination: MacAddress,
    /// Our MAC there.
    pub source: MacAddress,
    /// The port to it.
    pub egress: PortId,
    /// The outer headers, into the tunnel.
    pub outer: Option<Outer>,
    /// The epoch bucket of the route.
    pub bucket: u8,
}

/// Tells whether an address is one of the node's own.
#[must_use]
pub fn is_local(node: &Node, address: Ipv4Addr) -> bool {
    super::router(node).is_some_and(|router| router.address == address)
        || node.tunnel.is_some_and(|tunnel| tunnel.address == address)
        || node.interfaces.iter().any(|interface| interface.address == address)
}

/// Looks a destination up in the node's routes and, behind the tunnel, in the leases.
///
/// # Errors
/// [`DropReason::NoRoute`], [`DropReason::NoLease`], [`DropReason::LeaseOffLink`].
pub fn route(tables: &Tables, node: &Node, destination: Ipv4Addr) -> Result<Hop, DropReason> {
    if is_local(node, destination) || is_broadcast(node, destination) {
        return Ok(Hop::Local);
    }
    let (route, next_hop) = node.routes.lookup(destination).ok_or(DropReason::NoRoute)?;
    Ok(match *next_hop {
        NextHop::Bridge => Hop::Bridge { route },
        NextHop::Tunnel => {
            let (lease, holder) = tables.leases.lookup(destination).ok_or(DropReason::NoLease)?;
            Hop::Tunnel { lease, peer: holder.public_ip }
        }
        NextHop::Holder => return to_holder(tables, node, destination),
        NextHop::Interface { index, gateway } => {
            Hop::Interface { index, next_hop: gateway.unwrap_or(destination), route }
        }
    })
}

/// Returns the way to the node that holds a pod's lease, which must be a neighbour as a gateway of Linux' must. Not part of
/// [`route`], which is shorter without it for whoever has a tunnel.
#[inline(never)]
fn to_holder(tables: &Tables, node: &Node, destination: Ipv4Addr) -> Result<Hop, DropReason> {
    let (lease, holder) = tables.leases.lookup(destination).ok_or(DropReason::NoLease)?;
    let next_hop = holder.public_ip;
    if is_local(node, next_hop) {
        return Err(DropReason::NoLease);
    }
    match node.routes.lookup(next_hop) {
        Some((_, &NextHop::Interface { index, gateway: None })) => {
            Ok(Hop::Interface { index, next_hop, route: lease })
        }
        Some((_, NextHop::Bridge | NextHop::Tunnel | NextHop::Holder | NextHop::Interface { .. })) | None => {
            Err(DropReason::LeaseOffLink)
        }
    }
}

/// What comes as it is from an address of the pod network must come by the interface of the way back there (RFC 3704, 2.2; Linux,
/// `rp_filter` 1): with host-gw from another node's pod; where there is a tunnel pods are behind it, or on docker0.
#[inline(never)]
pub(super) fn leads_back(
    tables: &Tables,
    node: &Node,
    source: Ipv4Addr,
    ingress: u8,
) -> Result<(), DropReason> {
    let back = route(tables, node, source);
    let is_same = matches!(back, Ok(Hop::Interface { index, .. }) if index == ingress);
    if is_same { Ok(()) } else { Err(DropReason::SpoofedAddress) }
}

/// Returns the way to a peer of the tunnel.
fn peer_way(tables: &Tables, node: &Node, peer: Ipv4Addr) -> Result<Hop, DropReason> {
    match self::route(tables, node, peer) {
        Ok(Hop::Interface { .. }) | Err(_) if node.tunnel.is_some_and(|tunnel| tunnel.finds_peers) => {
            Ok(Hop::Interface { index: 0, next_hop: peer, route: Ipv4Prefix::masked(peer, 32) })
        }
        way => way,
    }
}

/// Tells whether a packet seems to be one of the tunnel's to another node, and is not: from a VXLAN's datagrams, which come from any
/// port, the peer could not tell it. Udp's peers can, by the port it comes from.
pub(super) fn imitates_tunnel(tables: &Tables, node: &Node, packet: &Tuple) -> bool {
    let is_tunnels = |tunnel: Tunnel| {
        tunnel.encapsulation != Encapsulation::Udp
            && (packet.protocol, packet.destination_port) == (IpProtocol::Udp.into(), tunnel.port)
    };
    let peer = Ipv4Addr::from_bits(packet.destination);
    node.tunnel.is_some_and(is_tunnels)
        && tables.leases.list().iter().any(|(_, lease)| lease.public_ip == peer)
}

/// Tells whether an address is not one host's: broadcast or multicast.
pub(super) fn is_broadcast(node: &Node, address: Ipv4Addr) -> bool {
    address.is_broadcast()
        || address.is_multicast()
        || super::router(node).is_some_and(|router| is_broadcast_of(router.subnet, address))
        || node.interfaces.iter().any(|interface| is_broadcast_of(interface.network, address))
}

/// Tells whether an address is a network's broadcast address, which one of two hosts has not (RFC 3021, 2.1).
pub(super) fn is_broadcast_of(network: Ipv4Prefix, address: Ipv4Addr) -> bool {
    network.length() < 31 && network.last() == address
}

/// Finds port and MAC of a hop; the inner error is the neighbour whose MAC must be asked for.
///
/// # Errors
/// [`DropReason`] when there is no way to it.
pub fn reach(
    world: &World<'_>,
    id: NodeId,
    node: &Node,
    hop: Hop,
    destination: Ipv4Addr,
) -> Result<Result<Reach, Neighbor>, DropReason> {
    match hop {
        Hop::Local => super::host::reach(node).map(Ok).ok_or(DropReason::NoRoute),
        Hop::Bridge { route } => bridge(world, id, node, route, destination),
        Hop::Tunnel { lease, peer } => {
            let tunnel = node.tunnel.ok_or(DropReason::NoRoute)?;
            let dont_fragment = !world.path_mtu.is_locked((id, peer), world.now);
            let vxlan = match tunnel.encapsulation {
                Encapsulation::Udp => None,
                Encapsulation::Vxlan { vni } => Some(Vxlan {
                    vni,
                    destination: world.tables.leases.get(lease).ok_or(DropReason::NoLease)?.vtep_mac(lease),
                    source: vtep_mac(tunnel.address),
                    spreads: !tunnel.finds_peers,
                }),
            };
            let (source, port) = (tunnel.local, tunnel.port);
            let outer = Outer { source, destination: peer, port, dont_fragment, vxlan };
            match peer_way(world.tables, node, peer)? {
                Hop::Interface { index, next_hop, .. } => {
                    let reach = interface(world, id, node, (index, next_hop), lease)?;
                    Ok(reach.map(|reach| Reach { outer: Some(outer), ..reach }))
                }
                // A lease that names ourselves, or an outer address inside the overlay: no way out.
                Hop::Local | Hop::Bridge { .. } | Hop::Tunnel { .. } => Err(DropReason::NoLease),
            }
        }
        Hop::Interface { index, next_hop, route } => interface(world, id, node, (index, next_hop), route),
    }
}

fn bridge(
    world: &World<'_>,
    id: NodeId,
    node: &Node,
    route: Ipv4Prefix,
    destination: Ipv4Addr,
) -> Result<Result<Reach, Neighbor>, DropReason> {
    let router = super::router(node).ok_or(DropReason::NoRoute)?;
    let reach = |mac, egress| Reach {
        attachment: Attachment::Bridge,
        destination: mac,
        source: router.mac,
        egress,
        outer: None,
        bucket: prefix_bucket(route),
    };
    if let Some(endpoint) = world.tables.endpoints.get(&destination).filter(|endpoint| endpoint.node == id) {
        return Ok(Ok(reach(endpoint.mac, endpoint.port)));
    }
    let neighbor = Neighbor { node: id, attachment: Attachment::Bridge, address: destination };
    let found = world.neighbors.lookup(&neighbor);
    let found = found.and_then(|mac| Some((mac, world.fdb.lookup(world.tables, id, mac, world.now)?)));
    Ok(found.map(|(mac, port)| reach(mac, port)).ok_or(neighbor))
}

fn interface(
    world: &World<'_>,
    id: NodeId,
    node: &Node,
    (index, next_hop): (u8, Ipv4Addr),
    route: Ipv4Prefix,
) -> Result<Result<Reach, Neighbor>, DropReason> {
    let interface = node.interfaces.get(usize::from(index)).ok_or(DropReason::NoRoute)?;
    let attachment = Attachment::Interface(index);
    let neighbor = Neighbor { node: id, attachment, address: next_hop };
    let reach = world.neighbors.lookup(&neighbor).map(|mac| Reach {
        attachment,
        destination: mac,
        source: interface.mac,
        egress: interface.port,
        outer: None,
        bucket: prefix_bucket(route),
    });
    Ok(reach.ok_or(neighbor))
}
