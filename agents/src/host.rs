//! What interfaces this host has in the network namespace of the caller, and beside it its own way to pods
//! (`port`) and the ports that its programs are never given (`ports`).
//!
//! Whoever puts a node on the host's own network asks. Invariant: nothing is changed here.
//!
//! May depend on `crate::netlink`. Read first: rtnetlink(7).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::Kernel;

pub mod port;

pub mod ports;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The longest packet that it takes, bytes.
    pub mtu: u32,
    /// Its IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
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
        for attribute in link.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                interface.name = name;
            } else if let LinkAttribute::Mtu(mtu) = attribute {
                interface.mtu = mtu;
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
                interface.addresses.push(own);
            }
        }
    })?;
    Ok(interfaces.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_one() {
        let interfaces = interfaces().unwrap();
        let lo = interfaces.iter().find(|interface| interface.name == "lo").unwrap();
        assert!(lo.addresses.contains(&Ipv4Addr::LOCALHOST) && lo.mtu >= 1500, "{interfaces:?}");
    }
}
