//! What a node on the host's own network has beside its tunnel: the way to the host itself, and ports of its own.
//!
//! Invariants: as `control`. Allowed dependencies: as `control`. Read first: `docs/adr/0028-a-nodes-way-out-and-in.md`.

use std::net::Ipv4Addr;
use std::sync::Arc;

use flatnet_proxy::Ipv4Prefix;

use super::{Control, ControlError};
use crate::link::Link;
use crate::masquerade::PortRange;
use crate::tables::{Interface, NextHop, Node, NodeId, PortId};
use crate::wire::MacAddress;

/// The name of a raw uplink's interface, as captures and traces say it: eth0 is the tunnel's.
const UPLINK: &str = "uplink";

/// An interface of the host's, as a node uses it.
#[derive(Debug, Clone)]
pub struct UplinkSpec {
    /// Its MAC.
    pub mac: MacAddress,
    /// The host's routes out of it: where to, and by which gateway.
    pub routes: Vec<(Ipv4Prefix, Option<Ipv4Addr>)>,
}

impl Control {
    /// Puts the host's own system behind an interface of a node, by a link whose other end has the same MAC; returns its port.
    /// From then on the host gets what is for the node's addresses.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn add_host_port(
        &mut self,
        id: NodeId,
        name: &str,
        worker: u8,
        link: Link,
    ) -> Result<PortId, ControlError> {
        let mut index = 0;
        self.edit(id, |node| {
            let bridge = node.bridge.as_ref()?;
            let (router, mtu) = (bridge.router?, bridge.mtu);
            index = u8::try_from(node.interfaces.len()).ok()?;
            node.interfaces.push(Interface {
                name: Arc::from(name),
                port: PortId(u32::MAX),
                mac: host_port_mac(router.address),
                address: router.address,
                network: Ipv4Prefix::masked(router.address, 32),
                mtu,
            });
            Some(())
        })?;
        let port = self.attach_interface(id, index, worker, link)?;
        // Nothing goes that way before its link is there.
        self.edit(id, |node| {
            node.host = Some(index);
            Some(())
        })?;
        Ok(port)
    }

    /// Lets the link at a node's eth0 find the tunnel's peers: whatever the routes say, they are neighbours there.
    ///
    /// # Errors
    /// [`ControlError::Missing`].
    pub fn let_link_find_peers(&mut self, id: NodeId) -> Result<(), ControlError> {
        self.edit(id, |node| {
            node.tunnel.as_mut()?.finds_peers = true;
            // What is neither a peer's nor a pod's is the link's to refuse.
            let eth0 = NextHop::Interface { index: 0, gateway: None };
            node.routes.insert(Ipv4Prefix::masked(Ipv4Addr::UNSPECIFIED, 0), eth0);
            Some(())
        })
    }

    /// Gives a node an interface of the host's to send by and receive from, with the host's own address and MAC there: all that the
    /// tunnel does not carry takes the routes that lead out of it. Of a node without a tunnel it is eth0. Returns its port.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn add_uplink(
        &mut self,
        id: NodeId,
        spec: &UplinkSpec,
        worker: u8,
        link: Link,
    ) -> Result<PortId, ControlError> {
        let mut index = 0;
        self.edit(id, |node| {
            let eth0 = node.interfaces.first_mut()?;
            if node.tunnel.is_some() {
                let (name, port) = (Arc::from(UPLINK), PortId(u32::MAX));
                let uplink = Interface { name, port, mac: spec.mac, ..eth0.clone() };
                index = u8::try_from(node.interfaces.len()).ok()?;
                node.interfaces.push(uplink);
            } else {
                eth0.mac = spec.mac;
            }
            node.uplink = Some(index);
            Some(())
        })?;
        let port = self.attach_interface(id, index, worker, link)?;
        self.edit(id, |node| {
            let network = node.interfaces.first()?.network;
            node.routes.insert(network, NextHop::Interface { index, gateway: None });
            node.routes.remove(Ipv4Prefix::masked(Ipv4Addr::UNSPECIFIED, 0));
            for &(prefix, gateway) in &spec.routes {
                // Pods are where the node says.
                let is_pods = node.masquerade.is_some_and(|it| it.pods.covers(prefix));
                if !is_pods && node.routes.get(prefix).is_none() {
                    node.routes.insert(prefix, NextHop::Interface { index, gateway });
                }
            }
            Some(())
        })?;
        Ok(port)
    }

    /// Says which ports a node's translations use: where the host's own system has the node's addresses, too, its programs
    /// must not be given the same.
    ///
    /// # Errors
    /// [`ControlError::Missing`].
    pub fn set_masquerade_ports(&mut self, id: NodeId, ports: PortRange) -> Result<(), ControlError> {
        self.edit(id, |node| {
            node.masquerade.as_mut()?.ports = ports;
            Some(())
        })
    }

    /// Publishes a node as it is after `change`, which says whether there was something to change.
    fn edit(&mut self, id: NodeId, change: impl FnOnce(&mut Node) -> Option<()>) -> Result<(), ControlError> {
        let mut node = Node::clone(self.tables.current().node(id).ok_or(ControlError::Missing)?);
        change(&mut node).ok_or(ControlError::Missing)?;
        self.tables.publish(|tables| tables.set_node(id, Some(node)));
        Ok(())
    }
}

/// Returns the MAC of both ends of the way to the host, by docker0's address: 02:43 and it, where docker0's own has 02:42.
#[must_use]
pub fn host_port_mac(docker0: Ipv4Addr) -> MacAddress {
    let [a, b, c, d] = docker0.octets();
    MacAddress::new([0x02, 0x43, a, b, c, d])
}
