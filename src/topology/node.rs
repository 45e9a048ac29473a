//! The configuration file of `flatnet node`: its keys are the long flags' names.
//!
//! Invariant: a key that is no flag and a value that no flag takes are findings at their places.
//!
//! May depend on the reader of topologies. Read first: [`crate::args::Node`].

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flatnet_engine::masquerade::PortRange;
use flatnet_proxy::Ipv4Prefix;

use crate::topology::{
    BackendKind, Findings, Interface, Topology, Warning, check,
    fields::{Fields, boolean, interface, number, prefix, text},
    findings::{Finding, Source},
    open,
    spec::{poll, port, vni, workers},
    split, values,
    yaml::{Node, Value, documents},
};

/// What a node is told; `None` and nothing where it is not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeConfig {
    /// Its name.
    pub name: Option<String>,
    /// Its address and network.
    pub address: Option<Interface>,
    /// The interface that has them.
    pub iface: Option<String>,
    /// Where nodes' subnets come from.
    pub pod_network: Option<Ipv4Prefix>,
    /// Its pods' subnet.
    pub pod_cidr: Option<Ipv4Prefix>,
    /// Where VIPs come from.
    pub service_network: Option<Ipv4Prefix>,
    /// How it reaches other nodes' pods.
    pub backend: Option<BackendKind>,
    /// The tunnel's UDP port.
    pub port: Option<u16>,
    /// The number of vxlan's network.
    pub vni: Option<u32>,
    /// How many workers move packets.
    pub workers: Option<u16>,
    /// For how long they look for work before they sleep.
    pub poll: Option<Duration>,
    /// The interface through which the host reaches pods and Services.
    pub host_port: Option<String>,
    /// Whether it sends and receives by the interface of its address.
    pub uplink: bool,
    /// The ports that translations use.
    pub masquerade_ports: Option<PortRange>,
    /// Endpoints of the etcd that has the leases.
    pub etcd: Vec<String>,
    /// Where flannel's keys lie in it.
    pub etcd_prefix: Option<String>,
    /// Whose certificates of etcd to believe.
    pub etcd_cafile: Option<PathBuf>,
    /// What to show to it.
    pub etcd_certfile: Option<PathBuf>,
    /// The key of that.
    pub etcd_keyfile: Option<PathBuf>,
    /// Who to be.
    pub etcd_username: Option<String>,
    /// Where other nodes reach it.
    pub public_ip: Option<Ipv4Addr>,
    /// How long before its end the lease is renewed.
    pub subnet_lease_renew_margin: Option<Duration>,
    /// Where the node's subnet is written.
    pub subnet_file: Option<PathBuf>,
    /// Where it tells how it is.
    pub health: Option<String>,
    /// The file of routes to other nodes.
    pub routes: Option<PathBuf>,
    /// Manifests.
    pub files: Vec<PathBuf>,
    /// Whether it runs in the background.
    pub detach: bool,
}

/// Reads a configuration file; one that says nothing is one.
///
/// # Errors
/// [`Findings`].
pub fn read_config(path: &Path) -> Result<NodeConfig, Findings> {
    let mut findings = Vec::new();
    let source = open(path, &mut findings);
    let nodes = documents(&source).unwrap_or_else(|finding| {
        findings.push(*finding);
        Vec::new()
    });
    if let Some(second) = nodes.get(1) {
        findings.push(Finding::error(second.place.clone(), "there is a second document"));
    }
    let config = nodes.first().map(|node| read(node, &mut findings)).unwrap_or_default();
    split(findings, &[source])?;
    Ok(config)
}

fn read(node: &Node, findings: &mut Vec<Finding>) -> NodeConfig {
    let mut fields = Fields::open(node, "the configuration of a node", findings);
    let config = NodeConfig {
        name: fields.optional("name", |node| values::name(&text(node)?)).map(|it| it.value),
        address: fields.optional("address", interface).map(|it| it.value),
        iface: fields.optional("iface", |node| values::interface_name(&text(node)?)).map(|it| it.value),
        pod_network: fields.optional("pod-network", prefix).map(|it| it.value),
        pod_cidr: fields.optional("pod-cidr", |node| values::subnet(&text(node)?)).map(|it| it.value),
        service_network: fields.optional("service-network", prefix).map(|it| it.value),
        backend: fields.optional("backend", |node| values::backend(&text(node)?)).map(|it| it.value),
        port: fields.optional("port", port).map(|it| it.value),
        vni: fields.optional("vni", vni).map(|it| it.value),
        workers: fields.optional("workers", workers).map(|it| it.value),
        poll: fields.optional("poll", poll).map(|it| it.value),
        host_port: fields
            .optional("host-port", |node| values::interface_name(&text(node)?))
            .map(|it| it.value),
        uplink: fields.optional("uplink", boolean).is_some_and(|it| it.value),
        masquerade_ports: fields
            .optional("masquerade-ports", |node| values::port_range(&text(node)?))
            .map(|it| it.value),
        etcd: fields.optional("etcd", texts).map(|it| it.value).unwrap_or_default(),
        etcd_prefix: fields.optional("etcd-prefix", text).map(|it| it.value),
        etcd_cafile: fields.optional("etcd-cafile", path).map(|it| it.value),
        etcd_certfile: fields.optional("etcd-certfile", path).map(|it| it.value),
        etcd_keyfile: fields.optional("etcd-keyfile", path).map(|it| it.value),
        etcd_username: fields.optional("etcd-username", text).map(|it| it.value),
        public_ip: fields.optional("public-ip", |node| values::machine(&text(node)?)).map(|it| it.value),
        subnet_lease_renew_margin: fields
            .optional("subnet-lease-renew-margin", |node| {
                values::renew_margin(&number(node, 1, 1439)?.to_string())
            })
            .map(|it| it.value),
        subnet_file: fields.optional("subnet-file", path).map(|it| it.value),
        health: fields.optional("health", health).map(|it| it.value),
        routes: fields.optional("routes", path).map(|it| it.value),
        files: fields.optional("file", paths).map(|it| it.value).unwrap_or_default(),
        detach: fields.optional("detach", boolean).is_some_and(|it| it.value),
    };
    fields.close();
    config
}

/// Reads `[ADDRESS:]PORT`; a port alone is a number.
fn health(node: &Node) -> Result<String, String> {
    number(node, 0, 65_535).map_or_else(|_| text(node), |port| Ok(port.to_string()))
}

fn path(node: &Node) -> Result<PathBuf, String> {
    text(node).map(PathBuf::from)
}

/// Reads a path, or a list of them.
fn paths(node: &Node) -> Result<Vec<PathBuf>, String> {
    Ok(texts(node)?.into_iter().map(PathBuf::from).collect())
}

/// Reads a text, or a list of them.
fn texts(node: &Node) -> Result<Vec<String>, String> {
    if matches!(node.value, Value::List(_)) {
        node.items().iter().map(text).collect()
    } else {
        Ok(vec![text(node)?])
    }
}

/// Reads the manifests of a node whose topology is made of its flags: pods that are bound to other nodes are not its own.
///
/// # Errors
/// [`Findings`] with everything that is wrong; else the warnings come with the topology.
pub fn read_node(
    topology: String,
    manifests: &[PathBuf],
    name: &str,
) -> Result<(Topology, Vec<Warning>), Findings> {
    let mut findings = Vec::new();
    let mut sources = vec![Source::new(PathBuf::from("(flags)"), topology)];
    sources.extend(manifests.iter().map(|path| open(path, &mut findings)));
    check(&sources, Some(name), findings)
}
