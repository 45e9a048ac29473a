//! What an instance is: its nodes, pods, hosts and rates.
//!
//! `http` answers `/v1/status` with it, `flatnet up` prints it once. Invariant: everything is as published.
//!
//! May depend on agents and engine. Read first: [`crate::views::Status`].

use std::net::Ipv4Addr;

use flatnet_engine::tables::Node;

use super::Instance;
use crate::views::{MachineStatus, NodeKind, NodeStatus, Status};

impl Instance {
    /// Describes the instance.
    pub fn status(&self) -> Status {
        let machines = |pods: bool| {
            let places = self.drive.network.publisher.places();
            let wanted = places.filter(move |(_, place)| place.node.is_some() == pods);
            wanted.map(|(name, place)| MachineStatus {
                name: name.to_owned(),
                address: place.address,
                node: place.node.as_ref().map(ToString::to_string),
                simulated: place.is_simulated,
                ended: self.drive.network.has_ended(name),
            })
        };
        Status {
            name: self.name.clone(),
            pid: std::process::id(),
            time: if self.drive.is_virtual() { "virtual" } else { "real" }.to_owned(),
            uptime: self.started.elapsed().as_secs_f64(),
            nodes: self.node_statuses(),
            pods: machines(true).collect(),
            hosts: machines(false).collect(),
            entrances: self.entrances.clone(),
        }
    }

    fn node_statuses(&self) -> Vec<NodeStatus> {
        let publisher = &self.drive.network.publisher;
        let tables = publisher.control.tables.current();
        let nodes = publisher.nodes().into_iter();
        nodes
            .filter_map(|(name, id)| {
                let node = tables.node(id)?;
                let rates = self.rates.nodes.get(&id).cloned().unwrap_or_default();
                Some(NodeStatus {
                    name,
                    kind: kind(node),
                    addresses: addresses(node),
                    subnet: node
                        .bridge
                        .as_ref()
                        .and_then(|bridge| bridge.router)
                        .map(|router| router.subnet.to_string()),
                    frames_per_second: rates.frames,
                    bits_per_second: rates.bits,
                    drops_per_second: rates.drops,
                })
            })
            .collect()
    }
}

/// The addresses of a node's interfaces towards others, each once.
fn addresses(node: &Node) -> Vec<Ipv4Addr> {
    let outward = node.interfaces.iter().enumerate();
    let outward = outward.filter(|(index, _)| node.host.map(usize::from) != Some(*index));
    let mut addresses: Vec<_> = outward.map(|(_, interface)| interface.address).collect();
    addresses.dedup();
    addresses
}

fn kind(node: &Node) -> NodeKind {
    match (&node.bridge, node.interfaces.is_empty()) {
        (Some(_), true) => NodeKind::Network,
        (Some(_), false) => NodeKind::Node,
        (None, _) => NodeKind::Router,
    }
}
