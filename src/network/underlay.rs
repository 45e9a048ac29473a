//! What a topology has before any pod: routers, hosts, and nodes with their leases.
//!
//! [`Network::bring_up`] calls it once. Invariant: a node is on the network only with the subnet it claimed.
//!
//! May depend on agents and engine. Read first: `agents/src/publisher.rs`.

use std::net::Ipv4Addr;
use std::sync::Arc;

use flatnet_agents::lease::DEFAULT_PREFIX;
use flatnet_agents::lease::allocate::Wish;
use flatnet_agents::node::{NodeOptions, claim};
use flatnet_agents::publisher::HostSpec;
use flatnet_agents::seed;
use flatnet_engine::control::{InterfaceSpec, NodeSpec};
use k8s_openapi::api::core::v1::{Node as NodeObject, NodeAddress, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Network, NetworkError, kept};
use crate::topology::{Node, Topology};

/// Largest IP packet of an Ethernet, bytes.
const ETHERNET_MTU: u16 = 1500;

impl Network {
    /// Makes what is not the cluster's: routers and hosts.
    pub(super) fn add_underlay(&mut self, topology: &Topology) -> Result<(), NetworkError> {
        for router in &topology.routers {
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
        Ok(())
    }

    /// Lets a node claim its subnet and join the network.
    pub(super) fn join(&mut self, topology: &Topology, node: &Node) -> Result<(), NetworkError> {
        let options = NodeOptions {
            prefix: DEFAULT_PREFIX.into(),
            public_ip: node.interface.address,
            wish: node.pod_cidr.map_or(Wish::Any { previous: None }, Wish::Exactly),
            seed: seed::hash(topology.seed, &["node", &node.name]),
        };
        let lease = self
            .pool
            .run_until(claim(&self.store, &options))
            .map_err(|source| NetworkError::Claim { node: node.name.clone(), source })?;
        self.publisher.add_node(&NodeSpec {
            name: Arc::from(&*node.name),
            address: node.interface.address,
            network: node.interface.network,
            gateway: node.gateway,
            subnet: lease.subnet,
            pod_network: topology.pod_network,
            profile: topology.nat,
            tunnel_port: topology.port,
            mtu: ETHERNET_MTU,
        })?;
        let object = node_object(&node.name, node.interface.address);
        self.pool.run_until(kept::ensure(&self.store, &object, topology.seed))?;
        Ok(())
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
