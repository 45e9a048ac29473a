//! `flatnet up --etcd`: one topology over several processes.
//!
//! The topology's nodes are on their hosts' own networks, each run by one of the processes, which are all given the same files. Invariant:
//! nothing is written to the etcd before the nodes' addresses are found on this host.
//!
//! May depend on [`crate::network`]. Read first: `docs/topology.md`, "Several processes"; ADR 38.

use flatnet_agents::lease::NetworkConfig;
use flatnet_agents::membership::Member;
use flatnet_agents::seed;
use miette::{Diagnostic, IntoDiagnostic as _, WrapErr as _};

use super::TWO_NODES;
use crate::args::Up;
use crate::etcd::reach::{options, prefix};
use crate::network::{Cluster, Joining, Shared, own_interface};
use crate::topology::{Node, Topology, Underlay};

/// Something that several processes cannot be.
#[derive(Debug, thiserror::Error, Diagnostic)]
enum ClusterError {
    /// Something is asked for that one process has for itself.
    #[error("--{0} is for a network of one process")]
    #[diagnostic(help("leave out --{0}, or --etcd"))]
    Alone(&'static str),
    /// There is no such node.
    #[error("the topology has no node {name}")]
    #[diagnostic(help("there are {known}"))]
    Node {
        /// What was asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
}

/// Puts a topology's nodes on their hosts' networks, and leaves out what is simulated between them.
///
/// # Errors
/// There is no such node; something is asked for that several processes have not.
pub(super) fn take_part(arguments: &Up, topology: &mut Topology) -> miette::Result<()> {
    let alone = [
        ("check", arguments.check),
        ("keep", arguments.keep),
        ("publish", !arguments.publish.is_empty()),
        ("socks", arguments.socks.is_some()),
        ("fault", !arguments.fault.is_empty()),
    ];
    if let Some((flag, _)) = alone.into_iter().find(|(_, is_asked)| *is_asked) {
        return Err(ClusterError::Alone(flag).into());
    }
    let names: Vec<&str> = topology.nodes.iter().map(|node| &*node.name).collect();
    if let Some(name) = arguments.nodes.iter().find(|name| !names.contains(&&***name)) {
        let known = names.join(", ");
        return Err(ClusterError::Node { name: name.clone(), known }.into());
    }
    topology.nodes.iter_mut().for_each(|node| node.underlay = Underlay::Socket);
    let simulated = [
        ("hosts", topology.hosts.is_empty()),
        ("routers", topology.routers.is_empty()),
        ("links", topology.links.is_empty()),
    ];
    // Who started this process in the background has said it.
    for (what, _) in simulated.iter().filter(|(_, is_empty)| !is_empty && !arguments.detached) {
        eprintln!("warning: {what} of the topology are left out: its nodes are on their hosts' own networks");
    }
    topology.hosts.clear();
    topology.routers.clear();
    topology.links.clear();
    Ok(())
}

/// Makes this process a part of the cluster in the etcd: its nodes are the only ones of the topology then, with their subnets.
///
/// # Errors
/// An address is not this host's; what keeps the process from being a part.
pub(super) fn join(arguments: &Up, topology: &mut Topology) -> miette::Result<(Cluster, Vec<Shared>)> {
    let every: Vec<String> = topology.nodes.iter().map(|node| node.name.clone()).collect();
    let is_own = |node: &Node| arguments.nodes.is_empty() || arguments.nodes.contains(&node.name);
    topology.nodes.retain(is_own);
    for node in &topology.nodes {
        own_interface(node)?;
    }
    let nodes = topology.nodes.iter().map(|node| node.name.clone()).collect();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let identity = format!("process {} of {host}", std::process::id());
    let member = Member { identity, topology: digest(arguments)?, nodes };
    let config = NetworkConfig::new(topology.pod_network).into_diagnostic()?;
    let config = config.with_backend(topology.backend, topology.port);
    // Each node begins at another place.
    let reach = |name: &str| options(&arguments.etcd, seed::hash(topology.seed, &["etcd", name]));
    let prefix = prefix(&arguments.etcd);
    let first = member.nodes.first().cloned().unwrap_or_default();
    let cluster = Cluster::join(&reach(&first)?, prefix, member, every)?;
    let mut shared = Vec::new();
    for node in &topology.nodes {
        let address = node.interface.address;
        let joining = Joining {
            prefix,
            address,
            public_ip: address,
            wish: node.pod_cidr,
            wanted: Some(&config),
            margin: None,
        };
        shared.push(Shared::join(&reach(&node.name)?, &joining)?);
    }
    for (node, shared) in topology.nodes.iter_mut().zip(&shared) {
        node.pod_cidr = Some(shared.lease.subnet);
    }
    Ok((cluster, shared))
}

/// Says by a few letters which files these are.
fn digest(arguments: &Up) -> miette::Result<String> {
    let read = |path: &std::path::PathBuf| {
        std::fs::read_to_string(path)
            .into_diagnostic()
            .wrap_err_with(|| format!("{} cannot be read", path.display()))
    };
    let texts: Vec<String> = arguments.files.iter().map(read).collect::<miette::Result<_>>()?;
    let mut texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    if texts.is_empty() {
        texts.push(TWO_NODES);
    }
    Ok(format!("{:016x}", seed::hash(0, &texts)))
}
