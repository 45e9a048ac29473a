//! What a topology has before any pod: routers, hosts, and nodes with their leases.
//!
//! [`Network::bring_up`] calls it once. Invariant: a node is on the network only with the subnet it claimed.
//!
//! May depend on agents and engine. Read first: `agents/src/publisher.rs`.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use flatnet_agents::controllers::lifecycle;
use flatnet_agents::host;
use flatnet_agents::lease::DEFAULT_PREFIX;
use flatnet_agents::lease::allocate::Wish;
use flatnet_agents::node::{NodeOptions, claim};
use flatnet_agents::publisher::HostSpec;
use flatnet_agents::seed;
use flatnet_engine::control::{InterfaceSpec, NodeSpec};
use flatnet_engine::decide::route;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::link::tunnel_socket::{BUFFER, TunnelSocket, TunnelSocketError};
use flatnet_engine::pod::Image;
use flatnet_engine::tables::NodeId;
use flatnet_engine::tunnel::Encapsulation;
use flatnet_proxy::Ipv4Prefix;
use k8s_openapi::api::core::v1::{Node as NodeObject, NodeAddress, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Network, NetworkError, kept};
use crate::topology::{Node, Topology, Underlay};

/// Largest IP packet of an Ethernet, bytes.
const ETHERNET_MTU: u16 = 1500;

impl Network {
    /// Makes what is not the cluster's: routers and hosts.
    pub(super) fn add_underlay(&mut self, topology: &Topology) -> Result<(), NetworkError> {
        let (outside, routers): (Vec<_>, Vec<_>) = topology.routers.iter().partition(|router| router.outside);
        for router in routers {
            let interface = |it: &crate::topology::Interface| InterfaceSpec {
                address: it.address,
                network: it.network,
                mtu: ETHERNET_MTU,
            };
            let interfaces: Vec<_> = router.interfaces.iter().map(interface).collect();
            self.publisher.add_router(&router.name, &interfaces)?;
            if router.services {
                self.publisher.make_director(&router.name)?;
            }
        }
        for host in &topology.hosts {
            self.publisher.add_host(&HostSpec {
                name: host.name.clone(),
                address: host.interface.address,
                network: host.interface.network,
                gateway: host.gateway,
                image: host.image,
            })?;
        }
        // To its network it is a machine like any other; who makes the network go lets it use this host's sockets.
        for router in outside {
            for interface in &router.interfaces {
                self.publisher.add_host(&HostSpec {
                    name: router.name.clone(),
                    address: interface.address,
                    network: interface.network,
                    gateway: None,
                    image: Image::Client,
                })?;
            }
        }
        Ok(())
    }

    /// Lets a node claim its subnet and join the network.
    pub(super) fn join(&mut self, topology: &Topology, node: &Node) -> Result<(), NetworkError> {
        let (mtu, socket) = match (node.underlay, topology.backend) {
            (Underlay::Switch, _) => (ETHERNET_MTU, None),
            (Underlay::Socket, None) => (mtu_of(&own_interface(node)?), None),
            (Underlay::Socket, Some(encapsulation)) => {
                let (mtu, socket) = self.open_socket(node, (encapsulation, topology.port))?;
                (mtu, Some(socket))
            }
        };
        let options = NodeOptions {
            prefix: DEFAULT_PREFIX.into(),
            public_ip: node.interface.address,
            wish: node.pod_cidr.map_or(Wish::Any { previous: None }, Wish::Exactly),
            encapsulation: topology.backend,
            seed: seed::hash(topology.seed, &["node", &node.name]),
        };
        let lease = self
            .pool
            .run_until(claim(&self.store, &options))
            .map_err(|source| NetworkError::Claim { node: node.name.clone(), source })?;
        let spec = NodeSpec {
            name: Arc::from(&*node.name),
            address: node.interface.address,
            network: node.interface.network,
            gateway: node.gateway,
            subnet: lease.subnet,
            pod_network: topology.pod_network,
            profile: topology.nat,
            tunnel_port: topology.port,
            encapsulation: topology.backend,
            mtu,
        };
        match node.underlay {
            Underlay::Switch => self.publisher.add_node(&spec)?,
            Underlay::Socket => self.publisher.add_node_on_host(&spec, socket)?,
        }
        if let Some(name) = &node.host.port {
            self.add_host_port(topology, node, (name, lease.subnet, mtu))?;
        }
        if node.host.uplink || node.underlay == Underlay::Socket && topology.backend.is_none() {
            self.add_uplink(topology, node, lease.subnet)?;
        }
        let mut object = node_object(&node.name, node.interface.address);
        if self.membership.is_none()
            && let Some(status) = &mut object.status
        {
            status.conditions = Some(vec![lifecycle::ready()]);
        }
        self.pool.run_until(kept::ensure(&self.store, &object, topology.seed))?;
        Ok(())
    }
}

impl Network {
    /// Opens the socket of a node's tunnel on the host's own network; returns what the interface there takes, too.
    fn open_socket(
        &mut self,
        node: &Node,
        (encapsulation, port): (Encapsulation, u16),
    ) -> Result<(u16, TunnelSocket), NetworkError> {
        let interface = own_interface(node)?;
        let address = SocketAddrV4::new(node.interface.address, port);
        let socket = TunnelSocket::open(address, encapsulation)
            .map_err(|source| socket_error(node, source, std::slice::from_ref(&interface)))?;
        if let Some(bytes) = socket.receive_buffer().ok().filter(|&bytes| bytes < BUFFER) {
            self.warnings.push(format!(
                "node {}: this host lets {} KiB of tunnel datagrams wait, not {} KiB, and loses bursts beyond that; the capability \
                 CAP_NET_ADMIN or the setting net.core.rmem_max={BUFFER} give more",
                node.name,
                bytes >> 10,
                BUFFER >> 10
            ));
        }
        Ok((mtu_of(&interface), socket))
    }
}

impl Network {
    /// Says which nodes have no way to a subnet, as flannel does: with host-gw its holder must be on a network of theirs.
    pub(super) fn warn_of_distance(&mut self, subnet: Ipv4Prefix, holder: Ipv4Addr) {
        let tables = self.publisher.control.tables.current();
        let is_far = |id: NodeId| {
            let node = tables.node(id);
            node.is_some_and(|node| route(&tables, node, subnet.address()) == Err(DropReason::LeaseOffLink))
        };
        let nodes = self.publisher.nodes().into_iter().filter(|(_, id)| is_far(*id));
        let names: Vec<String> = nodes.map(|(name, _)| name.to_string()).collect();
        if !names.is_empty() {
            self.warnings.push(format!(
                "host-gw: no way to {subnet} from {}: {holder}, which holds it, is on another network",
                names.join(", ")
            ));
        }
    }
}

/// Finds the host's interface that has a node's address.
///
/// # Errors
/// [`NetworkError::Socket`], [`NetworkError::Interfaces`].
pub fn own_interface(node: &Node) -> Result<host::Interface, NetworkError> {
    let address = node.interface.address;
    let interfaces = host::interfaces().map_err(NetworkError::Interfaces)?;
    let found = interfaces.iter().find(|interface| interface.has(address));
    let elsewhere = || socket_error(node, TunnelSocketError::AddressElsewhere(address), &interfaces);
    found.cloned().ok_or_else(elsewhere)
}

/// Returns what an interface takes, bytes of an IP packet.
fn mtu_of(interface: &host::Interface) -> u16 {
    u16::try_from(interface.mtu).unwrap_or(u16::MAX)
}

fn socket_error(node: &Node, source: TunnelSocketError, interfaces: &[host::Interface]) -> NetworkError {
    let help = advice(&source, interfaces);
    NetworkError::Socket { node: node.name.clone(), source, help }
}

/// Says what to do about a socket that cannot be had.
fn advice(error: &TunnelSocketError, interfaces: &[host::Interface]) -> String {
    match error {
        TunnelSocketError::AddressElsewhere(_) => {
            let known = interfaces.iter().flat_map(|interface| {
                interface.addresses.iter().map(|(address, _)| format!("{address} of {}", interface.name))
            });
            format!("there are {}", known.collect::<Vec<_>>().join(", "))
        }
        TunnelSocketError::PortTaken(address) => format!(
            "another node, or flanneld, has the tunnel of this address: end it (`ss -ulnp 'sport = :{}'` shows it), or take another \
             port for all nodes",
            address.port()
        ),
        TunnelSocketError::NotAllowed(_) => {
            "a port from 1024 on needs no capability, such as flannel's own: 8285 of udp, 8472 of vxlan"
                .to_owned()
        }
        TunnelSocketError::System { .. } => {
            "a node on a simulated switch needs nothing of the host".to_owned()
        }
    }
}

fn node_object(name: &str, address: Ipv4Addr) -> NodeObject {
    let address = NodeAddress { type_: "InternalIP".into(), address: address.to_string() };
    NodeObject {
        metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
        status: Some(NodeStatus { addresses: Some(vec![address]), ..NodeStatus::default() }),
        ..NodeObject::default()
    }
}
