//! The host's own way to pods and Services: a TAP in the host's network namespace, with a node's addresses and routes.
//!
//! Whoever puts a node on the host's network makes it once the node has its subnet. What flannel0 and docker0 are to a host of
//! flannel's, this is to one of ours: pods of this node are asked from `.1`, those of others from `.0`, or with host-gw from eth0's
//! address. Invariant: all of it goes with the TAP's file, however the process ends.
//!
//! May depend on `crate::netlink`, `crate::runtime::link` for a bound, and the engine's TAP. Read first: `docs/adr/0028-a-nodes-way-out-and-in.md`.

use std::io;
use std::net::Ipv4Addr;

use flatnet_engine::control::host::host_port_mac;
use flatnet_engine::link::tap::{Tap, TapError};
use flatnet_proxy::Ipv4Prefix;
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::netlink::{Kernel, index, without_ipv6};
use crate::runtime::link::SUPERFRAME;

/// What the host's way in is to be.
#[derive(Debug, Clone)]
pub struct HostPortConfig {
    /// The interface's name.
    pub name: String,
    /// The node's pods' subnet: .1 of it becomes an address of the host's, and .0 where there is a tunnel.
    pub subnet: Ipv4Prefix,
    /// What other nodes' pods are asked from, where there is no tunnel: an address that the host has already.
    pub eth0: Option<Ipv4Addr>,
    /// All pods' network.
    pub pod_network: Ipv4Prefix,
    /// Where VIPs come from.
    pub service_network: Ipv4Prefix,
    /// Bytes of the longest packet.
    pub mtu: u16,
}

/// Why the host has no way in.
#[derive(Debug, Error)]
pub enum HostPortError {
    /// The TAP cannot be had.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The host has another way there.
    #[error("this host has a route to {0} already")]
    RouteTaken(Ipv4Prefix),
    /// The system refused to set it up.
    #[error("{what} of {name} cannot be set")]
    Set {
        /// The interface.
        name: String,
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes it in the network namespace of the caller.
///
/// # Errors
/// [`HostPortError`]; nothing is left then.
pub fn make(config: &HostPortConfig) -> Result<Tap, HostPortError> {
    let HostPortConfig { name, subnet, eth0, pod_network, service_network, mtu } = config;
    let set = |what| move |source| HostPortError::Set { name: name.clone(), what, source };
    let tap = Tap::open(name)?;
    let flannel0 = subnet.address();
    let docker0 = subnet.nth(1).unwrap_or(flannel0);
    let mut kernel = Kernel::open().map_err(set("the link"))?;
    let index = index(name).map_err(set("the link"))?;
    without_ipv6(name).map_err(set("IPv6"))?;
    let mac = LinkAttribute::Address(host_port_mac(docker0).octets().to_vec());
    // Nobody else is at the other end: no ARP, frames go to the MAC that both ends have.
    let flags = (LinkFlags::Up | LinkFlags::Noarp, LinkFlags::Multicast);
    let link = vec![mac, LinkAttribute::Mtu(u32::from(*mtu)), LinkAttribute::GsoMaxSize(SUPERFRAME)];
    kernel.set_link(index, flags, link).map_err(set("the link"))?;
    for address in std::iter::once(docker0).chain(eth0.is_none().then_some(flannel0)) {
        kernel.add_address(index, address, 32).map_err(set("an address"))?;
    }
    let others = eth0.unwrap_or(flannel0);
    for (network, source) in [(*subnet, docker0), (*pod_network, others), (*service_network, docker0)] {
        let added = kernel.add_route(network, index, source);
        added.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::EXIST) => HostPortError::RouteTaken(network),
            Some(_) | None => set("a route")(error),
        })?;
    }
    Ok(tap)
}
