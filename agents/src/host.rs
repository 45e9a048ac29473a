//! What interfaces this host has in the network namespace of the caller, and beside it its own way to pods
//! (`port`) and the ports that its programs are never given (`ports`).
//!
//! Whoever puts a node on the host's own network asks. Invariant: nothing is changed here.
//!
//! May depend on `crate::netlink`. Read first: rtnetlink(7).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use flatnet_engine::wire::MacAddress;
use flatnet_proxy::Ipv4Prefix;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::Kernel;

pub mod firewall;

pub mod port;

pub mod ports;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// Its MAC, if it is an Ethernet's.
    pub mac: Option<MacAddress>,
    /// The longest packet that it takes, bytes.
    pub mtu: u32,
    /// Its IPv4 addresses, and how many bits of each are the network's.
    pub addresses: Vec<(Ipv4Addr, u8)>,
}

impl Interface {
    /// Tells whether it has an address.
    #[must_use]
    pub fn has(&self, address: Ipv4Addr) -> bool {
        self.addresses.iter().any(|&(own, _)| own == address)
    }
}

/// Lists the interfaces in the order of their numbers.
///
/// # Errors
/// The system's.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let mut interfaces: BTreeMap<u32, Interface> = BTreeMap::new();
    let mut kernel = Kernel::open()?;
    kernel.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
        let RouteNetlinkMessage::NewLink(link) = message else { return };
        let interface = interfaces.entry(link.header.index).or_default();
        interface.index = link.header.index;
        let speaks_arp = !link.header.flags.intersects(LinkFlags::Noarp | LinkFlags::Loopback);
        let is_ethernet = link.header.link_layer_type == LinkLayerType::Ether && speaks_arp;
        for attribute in link.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                interface.name = name;
            } else if let LinkAttribute::Mtu(mtu) = attribute {
                interface.mtu = mtu;
            } else if let LinkAttribute::Address(mac) = attribute {
                let mac = <[u8; 6]>::try_from(mac).ok().filter(|_| is_ethernet);
                interface.mac = mac.map(MacAddress::new);
            }
        }
    })?;
    let mut question = AddressMessage::default();
    question.header.family = AddressFamily::Inet;
    kernel.dump(RouteNetlinkMessage::GetAddress(question), |message| {
        let RouteNetlinkMessage::NewAddress(address) = message else { return };
        let Some(interface) = interfaces.get_mut(&address.header.index) else { return };
        for attribute in address.attributes {
            // Of a pair of ends, the local one.
            if let AddressAttribute::Local(IpAddr::V4(own)) = attribute {
                interface.addresses.push((own, address.header.prefix_len));
            }
        }
    })?;
    Ok(interfaces.into_values().collect())
}

/// Lists the IPv4 routes out of an interface, where to and by which gateway; of several to one network that which the host
/// prefers.
///
/// # Errors
/// The system's.
pub fn routes(interface: u32) -> io::Result<Vec<(Ipv4Prefix, Option<Ipv4Addr>)>> {
    let mut question = RouteMessage::default();
    question.header.address_family = AddressFamily::Inet;
    let mut routes: BTreeMap<(Ipv4Prefix, u32), Option<Ipv4Addr>> = BTreeMap::new();
    Kernel::open()?.dump(RouteNetlinkMessage::GetRoute(question), |message| {
        let RouteNetlinkMessage::NewRoute(route) = message else { return };
        let header = &route.header;
        if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
            return;
        }
        let (mut to, mut gateway, mut out, mut metric) = (Ipv4Addr::UNSPECIFIED, None, 0, 0);
        for attribute in &route.attributes {
            if let RouteAttribute::Destination(RouteAddress::Inet(address)) = attribute {
                to = *address;
            } else if let RouteAttribute::Gateway(RouteAddress::Inet(address)) = attribute {
                gateway = Some(*address);
            } else if let RouteAttribute::Oif(index) = attribute {
                out = *index;
            } else if let RouteAttribute::Priority(priority) = attribute {
                metric = *priority;
            }
        }
        if out == interface {
            routes.insert((Ipv4Prefix::masked(to, header.destination_prefix_length), metric), gateway);
        }
    })?;
    let mut best: BTreeMap<Ipv4Prefix, Option<Ipv4Addr>> = BTreeMap::new();
    // The least metric comes first.
    for ((prefix, _), gateway) in routes {
        best.entry(prefix).or_insert(gateway);
    }
    Ok(best.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_one() {
        let interfaces = interfaces().unwrap();
        let lo = interfaces.iter().find(|interface| interface.name == "lo").unwrap();
        assert!(lo.addresses.contains(&(Ipv4Addr::LOCALHOST, 8)) && lo.mtu >= 1500, "{interfaces:?}");
    }
}
