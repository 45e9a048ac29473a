//! `flatnet node`: one node of a cluster, on this host's own network.
//!
//! A node is a topology of its own, whose only node has `underlay: socket`: flags and configuration are written as one, checked
//! with the manifests, and run as `flatnet up` runs any. Invariant: nothing of the host is changed unless it is asked for.
//!
//! May depend on [`crate::up`] and [`crate::topology`]. Read first: `docs/topology.md`, "Real nodes".

mod words;

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use flatnet_agents::host;
use flatnet_agents::lease::NetworkConfig;
use flatnet_agents::seed;
use flatnet_engine::masquerade::PortRange;
use flatnet_proxy::Ipv4Prefix;
use miette::{Diagnostic, IntoDiagnostic as _};

use crate::args::Node;
use crate::entrance;
use crate::etcd::reach::{options, prefix};
use crate::network::{Joining, Shared};
use crate::topology::node::{NodeConfig, read_config, read_node};
use crate::topology::routes::{Own, read_file};
use crate::topology::{Interface, values};
use crate::up::background;
use crate::up::serve::{self, Serving};

/// Workers of a node: one moves a packet from its pod to the tunnel by itself.
const DEFAULT_WORKERS: u16 = 1;

/// Something that a node must be told is not.
#[derive(Debug, thiserror::Error, Diagnostic)]
enum NodeError {
    /// It has no address.
    #[error("the node has no address")]
    #[diagnostic(help(
        "give --address, or `address` in the --config file: this host's own on the nodes' network, such as 192.168.66.11/24; or --iface"
    ))]
    Address,
    /// There is no such interface, or it has no address.
    #[error("this host has no interface {name} with an IPv4 address")]
    #[diagnostic(help("there are {}", if known.is_empty() { "none" } else { known }))]
    Interface {
        /// What was asked for.
        name: String,
        /// Those that have one.
        known: String,
    },
    /// The host does not say what it has.
    #[error("the interfaces of this host cannot be listed")]
    Interfaces(#[source] std::io::Error),
    /// It is told twice where other nodes' pods are.
    #[error("routes are in a file or in an etcd, not in both")]
    #[diagnostic(help("leave out `routes` or `etcd`"))]
    Both,
    /// No interface has the address at which others reach it.
    #[error("no interface of this host has {0}, at which other nodes are to reach it")]
    #[diagnostic(help(
        "where that is translated on its way, say also --iface or --address, this host's own"
    ))]
    PublicIp(Ipv4Addr),
    /// There is no lease that it could be about.
    #[error("--{0} is for a node whose subnet is a lease in an etcd")]
    #[diagnostic(help("add --etcd, or leave out --{0}"))]
    WithoutEtcd(&'static str),
    /// The host's name is none for a node.
    #[error("the name of this host is none for a node: {0}")]
    #[diagnostic(help("give --name"))]
    Name(String),
}

/// Runs the command.
///
/// # Errors
/// Whatever keeps the node from coming up.
pub fn run(mut arguments: Node) -> miette::Result<ExitCode> {
    if let Some(path) = arguments.config.take() {
        fill(&mut arguments, read_config(&path)?);
    }
    check_etcd(&arguments)?;
    let interface = match (arguments.address, &arguments.iface, arguments.public_ip) {
        (Some(interface), _, _) => interface,
        (None, Some(name), _) => address_of(name)?,
        (None, None, Some(address)) => having(address)?,
        (None, None, None) => return Err(NodeError::Address.into()),
    };
    let name = match arguments.name.take() {
        Some(name) => name,
        None => host_name()?,
    };
    let health = match &arguments.health {
        Some(text) if !arguments.detach => Some(entrance::open_health(text)?),
        Some(_) | None => None,
    };
    // The process in the background is the one that claims a subnet.
    let shared = if arguments.etcd.etcd.is_empty() || arguments.detach {
        Vec::new()
    } else {
        vec![join(&mut arguments, &name, interface)?]
    };
    let (mut topology, warnings) =
        read_node(document(&arguments, &name, interface), &arguments.files, &name)?;
    if let Some(path) = &arguments.routes {
        let (pod_network, address, backend) = (topology.pod_network, interface.address, topology.backend);
        topology.routes =
            read_file(path, &Own { pod_network, address, backend, subnet: arguments.pod_cidr })?;
    }
    // Who started this process in the background has said them.
    for warning in warnings.into_iter().filter(|_| !arguments.detached) {
        eprintln!("{:?}", miette::Report::new(warning));
    }
    if arguments.detach {
        let files: Vec<_> = arguments.files.iter().chain(&arguments.routes).cloned().collect();
        return background::run(&words::words(&arguments, &name, interface, &topology), &files, &name);
    }
    let Node { detached, routes, .. } = arguments;
    let entrances = Vec::new();
    serve::run(
        topology,
        &name,
        Serving { detached, keep: false, faults: &[], entrances, routes, health, shared, cluster: None },
    )
}

/// Checks that what is said fits to where the leases are.
fn check_etcd(arguments: &Node) -> Result<(), NodeError> {
    if !arguments.etcd.etcd.is_empty() {
        return if arguments.routes.is_some() { Err(NodeError::Both) } else { Ok(()) };
    }
    let of_leases = [
        ("public-ip", arguments.public_ip.is_some()),
        ("subnet-lease-renew-margin", arguments.subnet_lease_renew_margin.is_some()),
        ("subnet-file", arguments.subnet_file.is_some()),
    ];
    match of_leases.into_iter().find(|(_, is_said)| *is_said) {
        Some((flag, _)) => Err(NodeError::WithoutEtcd(flag)),
        None => Ok(()),
    }
}

/// Finds the interface that has an address, as flanneld does where it is told no interface.
fn having(address: Ipv4Addr) -> Result<Interface, NodeError> {
    let all = host::interfaces().map_err(NodeError::Interfaces)?;
    let mut addresses = all.iter().flat_map(|interface| &interface.addresses);
    let found = addresses.find(|(own, _)| *own == address).ok_or(NodeError::PublicIp(address))?;
    Ok(Interface { address, network: Ipv4Prefix::masked(address, found.1) })
}

/// Finds the first address of an interface of this host's, and its network.
fn address_of(name: &str) -> Result<Interface, NodeError> {
    let all = host::interfaces().map_err(NodeError::Interfaces)?;
    let found = all.iter().find(|interface| interface.name == name);
    let Some(&(address, length)) = found.and_then(|interface| interface.addresses.first()) else {
        let known = all.iter().filter(|interface| !interface.addresses.is_empty());
        let known: Vec<_> = known.map(|interface| interface.name.as_str()).collect();
        return Err(NodeError::Interface { name: name.to_owned(), known: known.join(", ") });
    };
    Ok(Interface { address, network: Ipv4Prefix::masked(address, length) })
}

/// Claims a subnet in the etcd, and takes from there what all nodes have in common.
fn join(arguments: &mut Node, name: &str, interface: Interface) -> miette::Result<Shared> {
    // Nodes of one cluster have different addresses, and so different places to begin at.
    let seed = seed::hash(u64::from(u32::from(interface.address)), &["etcd", name]);
    let etcd = options(&arguments.etcd, seed)?;
    let wanted = match arguments.pod_network {
        None => None,
        // As the topology of the flags alone would have it.
        Some(network) => {
            let (topology, _) = read_node(document(arguments, name, interface), &[], name)?;
            let config = NetworkConfig::new(network).into_diagnostic()?;
            Some(config.with_backend(topology.backend, topology.port))
        }
    };
    let part = Joining {
        prefix: prefix(&arguments.etcd),
        address: interface.address,
        public_ip: arguments.public_ip.unwrap_or(interface.address),
        wish: arguments.pod_cidr,
        wanted: wanted.as_ref(),
        margin: arguments.subnet_lease_renew_margin,
    };
    let mut shared = Shared::join(&etcd, &part)?;
    shared.subnet_file = arguments.subnet_file.clone().map(|path| (path, arguments.uplink));
    let NetworkConfig { network, backend, port, vni, .. } = &shared.config;
    arguments.pod_network = Some(*network);
    arguments.pod_cidr = Some(shared.lease.subnet);
    arguments.backend = values::backend(backend).ok();
    arguments.port = Some(*port).filter(|port| *port > 0);
    arguments.vni = *vni;
    Ok(shared)
}

/// Takes from the file what no flag says.
fn fill(flags: &mut Node, file: NodeConfig) {
    flags.name = flags.name.take().or(file.name);
    if flags.address.is_none() && flags.iface.is_none() {
        (flags.address, flags.iface) = (file.address, file.iface);
    }
    flags.pod_network = flags.pod_network.or(file.pod_network);
    flags.pod_cidr = flags.pod_cidr.or(file.pod_cidr);
    flags.service_network = flags.service_network.or(file.service_network);
    flags.backend = flags.backend.or(file.backend);
    flags.port = flags.port.or(file.port);
    flags.vni = flags.vni.or(file.vni);
    flags.workers = flags.workers.or(file.workers);
    flags.poll = flags.poll.or(file.poll);
    flags.host_port = flags.host_port.take().or(file.host_port);
    flags.uplink |= file.uplink;
    flags.masquerade_ports = flags.masquerade_ports.or(file.masquerade_ports);
    let etcd = &mut flags.etcd;
    if etcd.etcd.is_empty() {
        etcd.etcd = file.etcd;
    }
    etcd.etcd_prefix = etcd.etcd_prefix.take().or(file.etcd_prefix);
    etcd.etcd_cafile = etcd.etcd_cafile.take().or(file.etcd_cafile);
    etcd.etcd_certfile = etcd.etcd_certfile.take().or(file.etcd_certfile);
    etcd.etcd_keyfile = etcd.etcd_keyfile.take().or(file.etcd_keyfile);
    etcd.etcd_username = etcd.etcd_username.take().or(file.etcd_username);
    flags.public_ip = flags.public_ip.or(file.public_ip);
    flags.subnet_lease_renew_margin = flags.subnet_lease_renew_margin.or(file.subnet_lease_renew_margin);
    flags.health = flags.health.take().or(file.health);
    flags.subnet_file = flags.subnet_file.take().or(file.subnet_file);
    flags.routes = flags.routes.take().or(file.routes);
    if flags.files.is_empty() {
        flags.files = file.files;
    }
    // The process in the background is given flags only, and that one is not among them.
    flags.detach |= file.detach;
}

fn host_name() -> Result<String, NodeError> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    values::name(&name).map_err(NodeError::Name)
}

/// Writes the node as a topology.
fn document(arguments: &Node, name: &str, interface: Interface) -> String {
    let mut text = format!("apiVersion: flatnet.dev/v1\nkind: Topology\nmetadata: {{name: {name}}}\nspec:\n");
    let mut networks = |field: &str, network: Option<Ipv4Prefix>| {
        if let Some(network) = network {
            let _ = writeln!(text, "  {field}: {network}");
        }
    };
    networks("podNetwork", arguments.pod_network);
    networks("serviceNetwork", arguments.service_network);
    let backend = arguments.backend.unwrap_or_default();
    let port = arguments.port.map_or_else(String::new, |port| format!(", port: {port}"));
    let vni = arguments.vni.map_or_else(String::new, |vni| format!(", vni: {vni}"));
    let backend = backend.name();
    let workers = arguments.workers.unwrap_or(DEFAULT_WORKERS);
    let poll = arguments.poll.unwrap_or_default().as_nanos();
    let _ = writeln!(
        text,
        "  backend: {{type: {backend}{port}{vni}}}\n  workers: {workers}\n  poll: {poll}ns\n  nodes:"
    );
    let _ = writeln!(text, "    - name: {name}");
    let _ = writeln!(text, "      address: {}/{}", interface.address, interface.network.length());
    if let Some(subnet) = arguments.pod_cidr {
        let _ = writeln!(text, "      podCIDR: {subnet}");
    }
    if let Some(name) = &arguments.host_port {
        let _ = writeln!(text, "      hostPort: {name:?}");
    }
    if arguments.uplink {
        text += "      uplink: true\n";
    }
    if let Some(PortRange { first, last }) = arguments.masquerade_ports {
        let _ = writeln!(text, "      masqueradePorts: {first}-{last}");
    }
    text + "      underlay: socket\n"
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Arguments, Command};

    fn node(words: &str) -> Node {
        let Command::Node(node) = Arguments::parse_from(words.split(' ')).command else {
            unreachable!("that is what was written")
        };
        *node
    }

    #[test]
    fn flags_go_before_the_file() {
        let mut flags = node("flatnet node --port 9000 -f a");
        let file = NodeConfig {
            port: Some(1),
            name: Some("n".to_owned()),
            files: vec!["b".into()],
            ..NodeConfig::default()
        };
        fill(&mut flags, file);
        assert_eq!((flags.port, flags.name.as_deref()), (Some(9000), Some("n")));
        assert_eq!(flags.files, [std::path::PathBuf::from("a")]);
    }
}
