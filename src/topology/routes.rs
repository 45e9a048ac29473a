//! Routes to nodes that are elsewhere: which pod subnet is at which node's address.
//!
//! `spec.routes` of a topology and the file of `flatnet node --routes` are the same mapping. Invariants: a subnet is in the pod
//! network and overlaps no other and no node's of the topology; its node is not one of the topology's.
//!
//! May depend on the reader of topologies. Read first: `docs/topology.md`, "Real nodes".

use std::{net::Ipv4Addr, path::Path};

use flatnet_engine::tunnel::Encapsulation;
use flatnet_proxy::Ipv4Prefix;

use crate::topology::{
    Findings, Peer, Routes,
    fields::{Fields, Located, address, text},
    findings::{Finding, Place},
    open,
    spec::Spec,
    split, values,
    yaml::{Node, Value, documents},
};

/// A route as written.
#[derive(Debug)]
pub(crate) struct Route {
    subnet: Located<Ipv4Prefix>,
    peer: Peer,
}

/// Reads a mapping of subnets to addresses, or to addresses and MACs.
pub(crate) fn read(node: &Node, findings: &mut Vec<Finding>) -> Vec<Route> {
    if !matches!(node.value, Value::Map(_) | Value::Null) {
        let message = format!("routes must be a mapping of subnets to addresses, not {}", node.kind());
        findings.push(Finding::error(node.place.clone(), message));
    }
    let mut routes = Vec::new();
    for (key, node) in node.entries() {
        let subnet = values::subnet(&key.name).map_err(|message| (key.place.clone(), message));
        let peer = if matches!(node.value, Value::Map(_)) {
            Ok(peer(node, findings))
        } else {
            let address = address(node).map_err(|message| (node.place.clone(), message));
            address.map(|address| Some(Peer { address, mac: None }))
        };
        for (place, message) in [subnet.as_ref().err(), peer.as_ref().err()].into_iter().flatten() {
            findings.push(Finding::error(place.clone(), format!("routes: {message}")));
        }
        if let (Ok(value), Ok(Some(peer))) = (subnet, peer) {
            routes.push(Route { subnet: Located { value, place: key.place.clone() }, peer });
        }
    }
    routes
}

/// Reads a node whose end of a VXLAN has a MAC of its own.
fn peer(node: &Node, findings: &mut Vec<Finding>) -> Option<Peer> {
    let mut fields = Fields::open(node, "a route", findings);
    let address = fields.required("address", address);
    let mac = fields.optional("mac", |node| values::mac(&text(node)?));
    fields.close();
    Some(Peer { address: address?.value, mac: mac.map(|mac| mac.value) })
}

/// Checks a topology's routes.
pub(crate) fn check(spec: &Spec, pods: &Located<Ipv4Prefix>, findings: &mut Vec<Finding>) -> Routes {
    let own = |route: &Route| {
        let addresses = spec.nodes.iter().flat_map(|node| &node.addresses);
        addresses.map(|it| (it.value.address, it.place.clone())).find(|(own, _)| *own == route.peer.address)
    };
    no_macs(spec.backend, &spec.routes, findings);
    for route in &spec.routes {
        if let Some((address, place)) = own(route) {
            let message = format!("{address} is a node of this topology: it claims its subnet itself");
            findings.push(Finding::error(route.subnet.place.clone(), message).with("here", place));
        }
    }
    let held = spec.nodes.iter().filter_map(|node| node.pod_cidr.as_ref());
    fit(&spec.routes, pods, held.map(|it| (it.value, it.place.clone())).collect(), findings)
}

/// Checks routes against the pod network, and the subnets that are held.
fn fit(
    routes: &[Route],
    pods: &Located<Ipv4Prefix>,
    held: Vec<(Ipv4Prefix, Place)>,
    findings: &mut Vec<Finding>,
) -> Routes {
    let mut seen = held;
    for Route { subnet, .. } in routes {
        if !pods.value.covers(subnet.value) {
            let message = format!("route to {} is not in podNetwork {}", subnet.value, pods.value);
            let finding = Finding::error(subnet.place.clone(), message);
            findings.push(finding.with("podNetwork", pods.place.clone()));
        }
        if let Some((other, place)) = seen.iter().find(|(other, _)| other.overlaps(subnet.value)) {
            let message = format!("route to {} overlaps {other}", subnet.value);
            findings.push(Finding::error(subnet.place.clone(), message).with("the other", place.clone()));
        }
        seen.push((subnet.value, subnet.place.clone()));
    }
    routes.iter().map(|route| (route.subnet.value, route.peer)).collect()
}

/// Reports MACs of a backend's that has none.
fn no_macs(backend: Option<Encapsulation>, routes: &[Route], findings: &mut Vec<Finding>) {
    let has_macs = matches!(backend, Some(Encapsulation::Vxlan { .. }));
    for route in routes.iter().filter(|route| route.peer.mac.is_some() && !has_macs) {
        let message = "routes: only of vxlan a peer has a MAC";
        findings.push(Finding::error(route.subnet.place.clone(), message));
    }
}

/// What a node has itself, which its routes must leave alone.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    /// All pods' network.
    pub pod_network: Ipv4Prefix,
    /// The node's address.
    pub address: Ipv4Addr,
    /// How its packets are carried; none of host-gw.
    pub backend: Option<Encapsulation>,
    /// Its pods' subnet, once it has one.
    pub subnet: Option<Ipv4Prefix>,
}

/// Reads the routes' file of a node that runs: what it may not say is what the node has itself.
///
/// # Errors
/// [`Findings`].
pub fn read_file(path: &Path, own: &Own) -> Result<Routes, Findings> {
    let mut findings = Vec::new();
    let source = open(path, &mut findings);
    let nodes = documents(&source).unwrap_or_else(|finding| {
        findings.push(*finding);
        Vec::new()
    });
    let whole = source.place(0..0);
    let routes: Vec<Route> = nodes.iter().flat_map(|node| read(node, &mut findings)).collect();
    for route in routes.iter().filter(|route| route.peer.address == own.address) {
        let message = format!("{} is this node: it claims its subnet itself", own.address);
        findings.push(Finding::error(route.subnet.place.clone(), message));
    }
    no_macs(own.backend, &routes, &mut findings);
    let pods = Located { value: own.pod_network, place: whole.clone() };
    let held = own.subnet.map(|subnet| (subnet, whole)).into_iter().collect();
    let routes = fit(&routes, &pods, held, &mut findings);
    split(findings, &[source])?;
    Ok(routes)
}
