//! What the workers know of the cluster: one immutable snapshot, published whole.
//!
//! The publisher edits a copy through [`Writer::publish`]; each worker looks once per batch whether there is a
//! newer one. Invariants: a published snapshot never changes; every change touches the epoch buckets of what
//! it concerns, so that a flow decided on the old state is decided again; a retired snapshot is freed by the
//! publisher, when no worker reads it any more. Allowed dependencies: arc-swap, proxy, `route`, `tunnel`, `wire`.
//! Read first: `docs/architecture.md`, "Nobody shares on the packet path".
//!
//! Above 400 lines because the snapshot's types and the only edits of them belong together.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use flatnet_proxy::{Forwarding, Frontend, Ipv4Prefix, NodePort, Service, Shards, Table, TableError};

use crate::binding::Profile;
use crate::masquerade::PortRange;
use crate::route::Routes;
use crate::tunnel::{Encapsulation, vtep_mac};
use crate::wire::MacAddress;

/// What a node masquerades, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masquerading {
    /// The pod network: what leaves it by an interface takes the interface's address.
    pub pods: Ipv4Prefix,
    /// How its translations behave.
    pub profile: Profile,
    /// The ports that it hands out.
    pub ports: PortRange,
}

/// A node: a cluster's node, a switch, or a router between networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u16);

/// A port: where one link is attached to one node. Below 2²³.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u32);

/// One attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The node it belongs to.
    pub node: NodeId,
    /// The worker that owns the link.
    pub worker: u8,
    /// What is at the other end, as captures and traces name it: `web-app-1`, `node-1`.
    pub name: Arc<str>,
    /// Where on the node it is.
    pub role: Role,
}

/// Where on its node a port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// On the bridge; with a guard, only its MAC and address may send.
    Bridge(Option<Guard>),
    /// The link of the interface with this index.
    Interface(u8),
}

/// What a pod may send from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// Its MAC.
    pub mac: MacAddress,
    /// Its address.
    pub address: Ipv4Addr,
    /// The VIP on its `lo`, from which it answers what comes by direct routing or through a tunnel.
    pub vip: Option<Ipv4Addr>,
}

/// What a node is made of. A switch has a bridge only; a router has interfaces only.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// The node's name.
    pub name: Arc<str>,
    /// docker0, or a switch's fabric.
    pub bridge: Option<Bridge>,
    /// eth0 and further ones.
    pub interfaces: Vec<Interface>,
    /// The interface behind which the host's own system is, which has the node's addresses, too: an index.
    pub host: Option<u8>,
    /// The interface at the host's own network, whose machines are not ours: an index.
    pub uplink: Option<u8>,
    /// Neighbours, pods among them, whose links take less than the interface towards them, bytes of an IP packet.
    pub link_mtus: BTreeMap<Ipv4Addr, u16>,
    /// flannel0; none where packets go to other nodes' pods as they are (host-gw).
    pub tunnel: Option<Tunnel>,
    /// The node's own routes.
    pub routes: Routes<NextHop>,
    /// MASQUERADE, where there is any.
    pub masquerade: Option<Masquerading>,
    /// Whether VIPs and NodePorts work here.
    pub services: bool,
}

/// A learning bridge.
#[derive(Debug, Clone)]
pub struct Bridge {
    /// `docker0`, or a switch's name.
    pub name: Arc<str>,
    /// Its ports, in order of attachment.
    pub ports: Vec<PortId>,
    /// The node's own port on it; a switch has none.
    pub router: Option<RouterPort>,
    /// Largest IP packet its pods take, bytes.
    pub mtu: u16,
}

/// The node's own port on its bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterPort {
    /// Its MAC.
    pub mac: MacAddress,
    /// Its address: the pods' gateway.
    pub address: Ipv4Addr,
    /// The pods' subnet.
    pub subnet: Ipv4Prefix,
}

/// An interface towards a network.
#[derive(Debug, Clone)]
pub struct Interface {
    /// `eth0`.
    pub name: Arc<str>,
    /// Its link.
    pub port: PortId,
    /// Its MAC.
    pub mac: MacAddress,
    /// Its address.
    pub address: Ipv4Addr,
    /// The network it is on.
    pub network: Ipv4Prefix,
    /// Largest IP packet it takes, bytes.
    pub mtu: u16,
}

/// flannel0: IPv4 packets in UDP datagrams between nodes, in frames or as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// flannel0's address: the subnet's first.
    pub address: Ipv4Addr,
    /// The outer address of this node.
    pub local: Ipv4Addr,
    /// The UDP port at both ends; of vxlan, where datagrams go to.
    pub port: u16,
    /// What is in front of a packet.
    pub encapsulation: Encapsulation,
    /// Largest inner packet, bytes.
    pub mtu: u16,
    /// Whether every peer is a neighbour at eth0, whose link finds the way.
    pub finds_peers: bool,
}

impl Node {
    /// Returns the port that no translation may use: the tunnel's; 0 where there is none.
    #[must_use]
    pub fn reserved_port(&self) -> u16 {
        self.tunnel.map_or(0, |tunnel| tunnel.port)
    }

    /// Returns the ports that translations may use.
    #[must_use]
    pub fn masquerade_ports(&self) -> PortRange {
        self.masquerade.map_or(PortRange::ALL, |masquerade| masquerade.ports)
    }
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// To the pods on the bridge.
    Bridge,
    /// To flannel0, which asks the leases.
    Tunnel,
    /// To the node that holds the lease, which must be on a network of this node's own: host-gw.
    Holder,
    /// Out of an interface: straight to the destination, or to a gateway.
    Interface {
        /// Index of the interface.
        index: u8,
        /// The gateway, when the destination is not on the interface's network.
        gateway: Option<Ipv4Addr>,
    },
}

/// A pod that is known to be here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Its node.
    pub node: NodeId,
    /// Its port on the node's bridge.
    pub port: PortId,
    /// Its MAC.
    pub mac: MacAddress,
    /// The worker that owns its port.
    pub worker: u8,
}

/// A subnet lease: which node has a pod subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The node's outer address.
    pub public_ip: Ipv4Addr,
    /// The MAC of its end of a VXLAN, where that is not [`vtep_mac`].
    pub vtep: Option<MacAddress>,
}

impl Lease {
    /// Returns the MAC of the node's end of a VXLAN, if it holds this subnet.
    #[must_use]
    pub fn vtep_mac(&self, subnet: Ipv4Prefix) -> MacAddress {
        self.vtep.unwrap_or_else(|| vtep_mac(subnet.address()))
    }
}

/// How many epoch buckets there are.
pub const EPOCH_BUCKETS: usize = 256;

/// One snapshot of everything the workers read.
#[derive(Debug, Clone)]
pub struct Tables {
    /// Counts publications.
    pub generation: u64,
    /// How often something in a bucket changed.
    pub epochs: [u32; EPOCH_BUCKETS],
    /// Nodes, by id.
    pub nodes: Vec<Option<Arc<Node>>>,
    /// Ports, by id.
    pub ports: Shards<PortId, Arc<Port>>,
    /// Pods, by address.
    pub endpoints: Shards<Ipv4Addr, Endpoint>,
    /// Pods' ports, by node and MAC: the bridge's static entries.
    pub stations: Shards<(NodeId, MacAddress), PortId>,
    /// Pod subnets to nodes.
    pub leases: Routes<Lease>,
    /// Services.
    pub services: Table,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            generation: 0,
            epochs: [0; EPOCH_BUCKETS],
            nodes: Vec::new(),
            ports: Shards::new(),
            endpoints: Shards::new(),
            stations: Shards::new(),
            leases: Routes::default(),
            services: Table::new(),
        }
    }
}

/// Returns the epoch bucket of an address: whatever flows to it depends on.
#[must_use]
pub fn address_bucket(address: Ipv4Addr) -> u8 {
    spread(u64::from(address.to_bits()))
}

/// Returns the epoch bucket of a prefix: whatever a route through it depends on.
#[must_use]
pub fn prefix_bucket(prefix: Ipv4Prefix) -> u8 {
    spread((u64::from(prefix.length()) << 32) | u64::from(prefix.address().to_bits()))
}

/// Returns the epoch bucket of a MAC: whatever the bridge forwards to it depends on.
#[must_use]
pub fn mac_bucket(mac: MacAddress) -> u8 {
    let octets = mac.octets();
    spread(octets.iter().fold(1, |bits, &octet| (bits << 8) | u64::from(octet)))
}

fn spread(bits: u64) -> u8 {
    (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

impl Tables {
    /// Returns a node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(usize::from(id.0))?.as_ref()
    }

    /// Marks everything in a bucket as changed.
    pub fn touch(&mut self, bucket: u8) {
        let epoch = &mut self.epochs[usize::from(bucket)];
        *epoch = epoch.wrapping_add(1);
    }

    /// Marks everything as changed: a node's own parts changed.
    pub fn touch_all(&mut self) {
        for bucket in 0..=u8::MAX {
            self.touch(bucket);
        }
    }

    /// Sets a node.
    pub fn set_node(&mut self, id: NodeId, node: Option<Node>) {
        let index = usize::from(id.0);
        if self.nodes.len() <= index {
            self.nodes.resize(index + 1, None);
        }
        self.nodes[index] = node.map(Arc::new);
        self.touch_all();
    }

    /// Adds a port, on its node's bridge where that is its role.
    pub fn add_port(&mut self, id: PortId, port: Port) {
        if matches!(port.role, Role::Bridge(_)) {
            self.edit_bridge(port.node, |bridge| bridge.ports.push(id));
        }
        self.ports.insert(id, Arc::new(port));
    }

    /// Removes a port.
    pub fn remove_port(&mut self, id: PortId) {
        let Some(port) = self.ports.remove(&id) else { return };
        self.edit_bridge(port.node, |bridge| bridge.ports.retain(|&other| other != id));
        match port.role {
            Role::Bridge(Some(guard)) => {
                self.touch(address_bucket(guard.address));
                self.touch(mac_bucket(guard.mac));
            }
            // Whose MACs the workers have learned behind it is not known here.
            Role::Bridge(None) | Role::Interface(_) => self.touch_all(),
        }
    }

    fn edit_bridge(&mut self, node: NodeId, edit: impl FnOnce(&mut Bridge)) {
        let Some(node) = self.nodes.get_mut(usize::from(node.0)).and_then(Option::as_mut) else { return };
        if let Some(bridge) = &mut Arc::make_mut(node).bridge {
            edit(bridge);
        }
    }

    /// Makes a pod known: its address, and its MAC as a static entry of the bridge.
    pub fn add_endpoint(&mut self, address: Ipv4Addr, endpoint: Endpoint) {
        self.endpoints.insert(address, endpoint);
        self.stations.insert((endpoint.node, endpoint.mac), endpoint.port);
        self.touch(address_bucket(address));
        self.touch(mac_bucket(endpoint.mac));
    }

    /// Forgets a pod.
    pub fn remove_endpoint(&mut self, address: Ipv4Addr) {
        if let Some(endpoint) = self.endpoints.remove(&address) {
            self.stations.remove(&(endpoint.node, endpoint.mac));
            self.touch(address_bucket(address));
            self.touch(mac_bucket(endpoint.mac));
        }
    }

    /// Sets a Service with exactly these keys. Bindings stay; new flows see it at once.
    ///
    /// # Errors
    /// [`TableError`] when another Service has one of the keys; nothing is changed then.
    pub fn set_service(
        &mut self,
        service: Service,
        frontends: Vec<Frontend>,
        node_ports: Vec<NodePort>,
    ) -> Result<(), TableError> {
        // A flow to an address that was none of a Service's may have been decided otherwise.
        let row = self.services.get(service.id);
        let old = row.map(|row| row.frontends.clone()).unwrap_or_default();
        // What was sent to such a port of a node may have been the host's.
        let known = |port: &NodePort| row.is_some_and(|row| row.node_ports.contains(port));
        let new_at_nodes = !node_ports.iter().all(known);
        let (before, after) = (row.map(|row| row.service.forwarding).unwrap_or_default(), service.forwarding);
        let changed: Vec<_> = frontends.iter().filter(|frontend| !old.contains(frontend)).copied().collect();
        self.services.insert(service, frontends, node_ports)?;
        for frontend in changed {
            self.touch(address_bucket(frontend.address));
        }
        if before != after || new_at_nodes {
            // Who answers from a VIP may not any more; such flows depend on their destination only.
            self.touch_all();
        }
        Ok(())
    }

    /// Removes a Service.
    pub fn remove_service(&mut self, id: u32) {
        let row = self.services.remove(id);
        if row.is_some_and(|row| row.service.forwarding != Forwarding::Nat) {
            self.touch_all();
        }
    }

    /// Sets or removes the lease of a pod subnet.
    pub fn set_lease(&mut self, subnet: Ipv4Prefix, lease: Option<Lease>) {
        let before = match lease {
            Some(lease) => self.leases.insert(subnet, lease),
            None => self.leases.remove(subnet),
        };
        self.touch(prefix_bucket(subnet));
        // Who sends to a holder's tunnel, and is none, is refused.
        [before, lease].into_iter().flatten().for_each(|it| self.touch(address_bucket(it.public_ip)));
        // A wider lease that had the addresses until now, or has them again, is another route for them.
        let wider =
            subnet.length().checked_sub(1).and_then(|length| self.leases.covering(subnet.address(), length));
        if let Some((wider, _)) = wider {
            self.touch(prefix_bucket(wider));
        }
    }
}

/// The publishing end; there is one.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<ArcSwap<Tables>>,
    /// Snapshots that a worker may still read, oldest first.
    retired: Vec<Arc<Tables>>,
}

/// The reading end, one per worker.
pub type Reader = arc_swap::Cache<Arc<ArcSwap<Tables>>, Arc<Tables>>;

impl Default for Writer {
    fn default() -> Self {
        Self { shared: Arc::new(ArcSwap::from_pointee(Tables::default())), retired: Vec::new() }
    }
}

impl Writer {
    /// Returns the snapshot in force.
    #[must_use]
    pub fn current(&self) -> Arc<Tables> {
        self.shared.load_full()
    }

    /// Returns a reader for a worker.
    #[must_use]
    pub fn reader(&self) -> Reader {
        arc_swap::Cache::new(Arc::clone(&self.shared))
    }

    /// Edits a copy of the snapshot in force and publishes it; returns its generation.
    pub fn publish(&mut self, edit: impl FnOnce(&mut Tables)) -> u64 {
        let old = self.shared.load_full();
        let mut tables = Tables::clone(&old);
        edit(&mut tables);
        tables.generation += 1;
        let generation = tables.generation;
        self.shared.store(Arc::new(tables));
        // Kept here until no worker holds it, so that the last reference is never dropped by a worker.
        self.retired.push(old);
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Ipv4Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn a_reader_keeps_its_snapshot_until_it_looks_again() {
        let mut writer = Writer::default();
        let mut reader = writer.reader();
        let before = Arc::clone(reader.load());
        writer.publish(|tables| {
            tables
                .set_lease(prefix("10.1.15.0/24"), Some(Lease { public_ip: Ipv4Addr::LOCALHOST, vtep: None }))
        });
        assert_eq!(before.leases.list().len(), 0);
        assert_eq!((reader.load().generation, reader.load().leases.list().len()), (1, 1));
    }

    #[test]
    fn a_retired_snapshot_is_kept_while_a_worker_reads_it() {
        let mut writer = Writer::default();
        let mut reader = writer.reader();
        let held = Arc::downgrade(reader.load());
        writer.publish(|_| ());
        assert_eq!(writer.retired.len(), 1);
        reader.load();
        writer.publish(|_| ());
        assert!(held.upgrade().is_none(), "freed by the publisher once the reader moved on");
    }

    #[test]
    fn what_led_to_a_forgotten_pod_is_decided_anew() {
        let (mut tables, address) = (Tables::default(), Ipv4Addr::new(10, 1, 15, 2));
        let mac = MacAddress::for_ipv4(address);
        tables.add_endpoint(address, Endpoint { node: NodeId(0), port: PortId(0), mac, worker: 0 });
        let buckets = [address_bucket(address), mac_bucket(mac)].map(usize::from);
        let before = buckets.map(|bucket| tables.epochs[bucket]);
        tables.remove_endpoint(address);
        let after = buckets.map(|bucket| tables.epochs[bucket]);
        assert!(before.iter().zip(&after).all(|(before, after)| before != after), "{before:?} {after:?}");
    }

    #[test]
    fn a_narrower_lease_touches_the_one_it_takes_addresses_from() {
        let mut tables = Tables::default();
        let lease = Some(Lease { public_ip: Ipv4Addr::LOCALHOST, vtep: None });
        tables.set_lease(prefix("10.1.0.0/16"), lease);
        let before = tables.epochs[usize::from(prefix_bucket(prefix("10.1.0.0/16")))];
        tables.set_lease(prefix("10.1.15.0/24"), lease);
        assert_ne!(tables.epochs[usize::from(prefix_bucket(prefix("10.1.0.0/16")))], before);
    }
}
