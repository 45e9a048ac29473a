//! The topology file: a network's machines, and the Kubernetes manifests beside them.
//!
//! `flatnet up` calls [`read`] with all files, [`parse`] takes their texts, `flatnet apply` calls [`parse_manifests`]; what comes
//! out is plain and validated. The files, in the order in which a text travels:
//!
//! - `yaml`: a tree whose every node knows its place;
//! - `fields`, `values`, `spec`: the document `kind: Topology` as written;
//! - `network`, `links`, `routes`: whether its machines and what is between them fit together;
//! - `node`: the configuration of `flatnet node`, which becomes such a document;
//! - `decode`, `manifests`: Pods, Services and EndpointSlices as Kubernetes types, and what flatnet does not model of them;
//! - `workloads`: whether they fit each other and the machines;
//! - `policies`: whether annotations and policies say something known;
//! - `slices`: whether EndpointSlices that are written by hand can be used;
//! - `volumes`: whether volumes can be had and mounts name one;
//! - `findings`: what is wrong, at its file, line and column, all at once.
//!
//! Invariants: a topology without errors can be brought up; no text makes it panic.
//!
//! May depend on `flatnet-agents` (types and pure checks), `flatnet-engine` (a link's settings), `flatnet-proxy`, `k8s-openapi`, `miette`, `serde-saphyr`.
//!
//! Read first: the example `scripts/topologies/two-nodes.yaml`.

mod yaml;

mod fields;

mod spec;

mod links;

mod network;

pub mod routes;

pub mod node;

pub mod values;

mod decode;

mod manifests;

mod workloads;

mod policies;

mod volumes;

mod real;

mod slices;

mod findings;

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use flatnet_agents::lease::config::{DEFAULT_UDP_PORT, DEFAULT_VXLAN_PORT, HOST_GW};
use flatnet_agents::pods;
use flatnet_engine::binding::Profile;
use flatnet_engine::link::impairment::Impairment;
use flatnet_engine::masquerade::PortRange;
use flatnet_engine::pod::Image;
use flatnet_engine::tunnel::Encapsulation;
use flatnet_engine::wire::MacAddress;
use flatnet_proxy::Ipv4Prefix;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

pub use crate::topology::findings::{Finding, Findings, Place, Warning};
pub use crate::topology::real::is_simulated;
use crate::topology::{findings::Source, manifests::Documents};

/// The `apiVersion` of flatnet's own kinds.
pub const API_VERSION: &str = "flatnet.dev/v1";

/// A network to bring up.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// Its name; the running instance's, too.
    pub name: String,
    /// Where nodes' subnets come from.
    pub pod_network: Ipv4Prefix,
    /// Where VIPs come from.
    pub service_network: Ipv4Prefix,
    /// How packets are carried to other nodes' pods; none of host-gw, where they go as they are.
    pub backend: Option<Encapsulation>,
    /// The backend's UDP port, host byte order; 0 of host-gw.
    pub port: u16,
    /// How nodes translate what leaves the pod network.
    pub nat: Profile,
    /// How many translated flows a client may have at each worker; `None` leaves it to the engine.
    pub nat_quota: Option<u32>,
    /// The cluster's nodes; at least one.
    pub nodes: Vec<Node>,
    /// Nodes that are elsewhere, by the pod subnets that they hold.
    pub routes: Routes,
    /// Machines outside the cluster.
    pub hosts: Vec<Host>,
    /// What connects networks.
    pub routers: Vec<Router>,
    /// What differs from perfect links, by direction.
    pub links: Vec<Link>,
    /// Determines everything random.
    pub seed: u64,
    /// Which clock runs; `None` leaves it to the command.
    pub time: Option<TimeMode>,
    /// How many workers move packets; `None` leaves it to the command.
    pub workers: Option<u16>,
    /// For how long workers look for work before they sleep.
    pub poll: Duration,
    /// The pods, in the order of the files.
    pub pods: Vec<Pod>,
    /// The Services, in the order of the files.
    pub services: Vec<Service>,
    /// What backends Services have beside the pods that they select, in the order of the files.
    pub slices: Vec<EndpointSlice>,
}

/// At which node a pod subnet is.
pub type Routes = BTreeMap<Ipv4Prefix, Peer>;

/// A node that is elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub address: Ipv4Addr,
    /// The MAC of its end of a VXLAN, where that is not what a node of ours would have.
    pub mac: Option<MacAddress>,
}

/// How nodes reach each other's pods, by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendKind {
    /// flannel's udp: IPv4 in UDP.
    #[default]
    Udp,
    /// The kernel's and flannel's vxlan: IPv4 in Ethernet in UDP.
    Vxlan,
    /// flannel's host-gw: IPv4 as it is, to the node's address.
    HostGw,
}

impl BackendKind {
    /// Returns its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Vxlan => "vxlan",
            Self::HostGw => HOST_GW,
        }
    }

    /// Returns the UDP port that it has by default, flannel's; 0 where it has none.
    #[must_use]
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Udp => DEFAULT_UDP_PORT,
            Self::Vxlan => DEFAULT_VXLAN_PORT,
            Self::HostGw => 0,
        }
    }
}

/// Which clock runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeMode {
    /// The clock jumps to the next timer when nothing moves.
    Virtual,
    /// The machine's clock.
    Real,
}

/// An address and the network it lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The machine's address.
    pub address: Ipv4Addr,
    /// The network.
    pub network: Ipv4Prefix,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its place in the node network.
    pub interface: Interface,
    /// Its default gateway: the one written, else the first router of its network.
    pub gateway: Option<Ipv4Addr>,
    /// The subnet it must have; `None` lets it choose.
    pub pod_cidr: Option<Ipv4Prefix>,
    /// What its eth0 is on.
    pub underlay: Underlay,
    /// What else it has of the host, where its eth0 is on the host's network.
    pub host: HostAccess,
}

/// What a node on the host's own network has beside its tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostAccess {
    /// The interface through which the host itself reaches pods and Services.
    pub port: Option<String>,
    /// Whether it sends and receives by the host's interface that has its address; with host-gw it does.
    pub uplink: bool,
    /// The ports that translations use where the host has the node's addresses, too; `None` leaves them to the command.
    pub masquerade_ports: Option<PortRange>,
}

/// What a node's eth0 is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Underlay {
    /// A simulated switch.
    #[default]
    Switch,
    /// The host's own network, by a UDP socket for the tunnel; with host-gw by the interface that has its address.
    Socket,
}

/// A machine outside the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its place in its network.
    pub interface: Interface,
    /// Its default gateway: the one written, else the first router of its network.
    pub gateway: Option<Ipv4Addr>,
    /// What runs on it.
    pub image: Image,
}

/// A machine that forwards between its networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Router {
    /// Its name.
    pub name: String,
    /// Its places; at least one.
    pub interfaces: Vec<Interface>,
    /// Whether it is an LVS director: it serves VIPs to whoever sends them its way.
    pub services: bool,
    /// Whether what is behind it are this host's networks, reached by ordinary sockets; it has one place then.
    pub outside: bool,
}

/// What differs from a perfect link, in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The machine or pod that sends.
    pub from: String,
    /// The one that receives.
    pub to: String,
    /// How frames fare.
    pub impairment: Impairment,
}

/// Kubernetes objects to apply to a running network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifests {
    /// The pods, in the order of the files.
    pub pods: Vec<Pod>,
    /// The Services, in the order of the files.
    pub services: Vec<Service>,
    /// The EndpointSlices, in the order of the files.
    pub slices: Vec<EndpointSlice>,
}

/// Reads a topology and its manifests from files, which together hold one `kind: Topology`.
///
/// # Errors
/// [`Findings`] with everything that is wrong, files that cannot be read among it; else the warnings come with the topology.
pub fn read(paths: &[PathBuf]) -> Result<(Topology, Vec<Warning>), Findings> {
    let mut findings = Vec::new();
    let sources: Vec<_> = paths.iter().map(|path| open(path, &mut findings)).collect();
    check(&sources, None, findings)
}

/// Reads a file; one that cannot be read is empty, and reported.
fn open(path: &Path, findings: &mut Vec<Finding>) -> Arc<Source> {
    let text = std::fs::read_to_string(path);
    let source = Source::new(path.to_owned(), text.as_deref().unwrap_or_default().to_owned());
    if let Err(error) = text {
        let message = format!("{} cannot be read: {error}", path.display());
        findings.push(Finding::error(source.place(0..0), message));
    }
    source
}

/// Reads a topology and its manifests from files (path and text), which together hold one `kind: Topology`.
///
/// # Errors
/// [`Findings`] with everything that is wrong, if anything is; else the warnings come with the topology.
pub fn parse(files: &[(PathBuf, String)]) -> Result<(Topology, Vec<Warning>), Findings> {
    check(&sources(files), None, Vec::new())
}

/// Checks all files; what is missing may be in one that has a finding already. Of pods that are bound to a node only those of
/// `node` count, if it is given.
fn check(
    sources: &[Arc<Source>],
    node: Option<&str>,
    mut findings: Vec<Finding>,
) -> Result<(Topology, Vec<Warning>), Findings> {
    let unreadable = !findings.is_empty();
    let mut documents = Documents::read(sources, &mut findings);
    if let Some(node) = node {
        documents.pods.retain(|pod| pods::node_name(&pod.object).is_none_or(|bound| bound == node));
    }
    let mut specs =
        documents.topologies.iter().map(|document| spec::read(document, &mut findings)).collect::<Vec<_>>();
    for second in specs.iter().skip(1) {
        let first = specs[0].place.clone();
        findings.push(
            Finding::error(second.place.clone(), "there is a second topology").with("first here", first),
        );
    }
    specs.truncate(1);
    let topology = match specs.first() {
        Some(spec) => {
            links::check(spec, &documents.pods, &mut findings);
            Some(network::check(spec, &mut findings))
        }
        None => {
            if let Some(source) = sources.first().filter(|_| !documents.broken && !unreadable) {
                let finding = Finding::error(source.place(0..0), "no document of kind Topology");
                findings
                    .push(finding.help(format!("add one with apiVersion: {API_VERSION}, kind: Topology")));
            }
            None
        }
    };
    workloads::check(&documents, topology.as_ref(), &mut findings);
    let warnings = split(findings, sources)?;
    match topology {
        Some(mut topology) => {
            let manifests = documents.into_manifests();
            (topology.pods, topology.services) = (manifests.pods, manifests.services);
            topology.slices = manifests.slices;
            Ok((topology, warnings))
        }
        None => Err(Findings { errors: Vec::new(), warnings }),
    }
}

/// Reads manifests alone from files (path and text).
///
/// # Errors
/// [`Findings`] with everything that is wrong, if anything is; else the warnings come with the manifests.
pub fn parse_manifests(files: &[(PathBuf, String)]) -> Result<(Manifests, Vec<Warning>), Findings> {
    let sources = sources(files);
    let mut findings = Vec::new();
    let documents = Documents::read(&sources, &mut findings);
    for topology in &documents.topologies {
        findings.push(Finding::error(
            topology.place.clone(),
            "a topology cannot be applied to a running network",
        ));
    }
    workloads::check(&documents, None, &mut findings);
    let warnings = split(findings, &sources)?;
    Ok((documents.into_manifests(), warnings))
}

fn sources(files: &[(PathBuf, String)]) -> Vec<Arc<Source>> {
    let empty = (PathBuf::from("(no file)"), String::new());
    let files = if files.is_empty() { std::slice::from_ref(&empty) } else { files };
    files.iter().map(|(path, text)| Source::new(path.clone(), text.clone())).collect()
}

/// Sorts findings; errors, if there are any, take the warnings along.
fn split(mut findings: Vec<Finding>, sources: &[Arc<Source>]) -> Result<Vec<Warning>, Findings> {
    findings::sort(&mut findings, sources);
    let (errors, warnings): (Vec<_>, Vec<_>) = findings.into_iter().partition(Finding::is_error);
    if errors.is_empty() { Ok(warnings) } else { Err(Findings { errors, warnings }) }
}

#[cfg(test)]
mod tests;
