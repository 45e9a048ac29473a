//! Who has which address in a bench: nodes, their pods, Services and the pods behind them, all counted from 0.
//!
//! The first nodes are the *homes*: one for each worker, whose packets are measured. Invariant: whose an address is can be
//! read back from it. May depend on the engine's control side and the proxy's prefixes. Read first: nothing.

use std::net::Ipv4Addr;
use std::sync::Arc;

use flatnet_engine::binding::Profile;
use flatnet_engine::control::NodeSpec;
use flatnet_engine::tunnel::Encapsulation;
use flatnet_proxy::{Frontend, Ipv4Prefix, Protocol};

use super::BenchError;
use super::lab::TUNNEL_PORT;

/// The bits of an address that tell a node's pods apart.
const POD_BITS: u32 = 8;

/// The gateway on the node network.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);

/// Returns a node's address on the node network.
#[must_use]
pub fn node_address(node: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(172, 16, 0, 10).to_bits() + node)
}

/// Returns the node whose address on the node network this is.
#[must_use]
pub fn node_of(address: Ipv4Addr) -> u32 {
    address.to_bits() - node_address(0).to_bits()
}

/// Returns the address of a node's pod.
#[must_use]
pub fn pod_address(node: u32, pod: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 2).to_bits() + (node << POD_BITS) + pod)
}

/// Returns the node whose pod has this address.
#[must_use]
pub fn node_of_pod(address: Ipv4Addr) -> u32 {
    (address.to_bits() - Ipv4Addr::new(10, 0, 0, 0).to_bits()) >> POD_BITS
}

/// Returns docker0's address on a node.
#[must_use]
pub fn bridge_address(node: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 1).to_bits() + (node << POD_BITS))
}

/// Returns flannel0's address on a node.
#[must_use]
pub fn flannel_address(node: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + (node << POD_BITS))
}

/// Returns a Service's address.
#[must_use]
pub fn service_address(service: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 1).to_bits() + service)
}

/// Returns where a Service is asked.
pub(super) fn service_frontend(service: u32, protocol: Protocol) -> Frontend {
    Frontend { address: service_address(service), port: 80, protocol }
}

/// Returns the address of a pod behind Services: they are spread over all nodes but the homes.
pub(super) fn endpoint(number: u32, homes: u32, nodes: u32) -> Ipv4Addr {
    let others = nodes.saturating_sub(homes).max(1);
    pod_address(homes + number % others, number / others)
}

/// Returns the subnet of a node's pods.
pub(super) fn subnet(node: u32) -> Result<Ipv4Prefix, BenchError> {
    prefix(bridge_address(node), 32 - POD_BITS as u8)
}

/// Returns what a node is made by, as a real one is; `gateway` is where what is neither pod nor node goes.
pub(super) fn node_spec(
    node: u32,
    gateway: Option<Ipv4Addr>,
    encapsulation: Encapsulation,
) -> Result<NodeSpec, BenchError> {
    Ok(NodeSpec {
        name: Arc::from(format!("node-{}", node + 1)),
        address: node_address(node),
        network: prefix(node_address(node), 16)?,
        gateway,
        subnet: subnet(node)?,
        pod_network: prefix(pod_address(0, 0), 9)?,
        profile: Profile::Linux,
        tunnel_port: TUNNEL_PORT,
        encapsulation: Some(encapsulation),
        mtu: 1500,
    })
}

fn prefix(address: Ipv4Addr, length: u8) -> Result<Ipv4Prefix, BenchError> {
    Ok(Ipv4Prefix::containing(address, length)?)
}
