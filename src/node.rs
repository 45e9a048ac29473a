//! `flatnet node`: one node of a cluster, on this host's own network.
//!
//! A node is a topology of its own, whose only node has `underlay: socket`: flags and configuration are written as one, checked
//! with the manifests, and run as `flatnet up` runs any. Invariant: nothing of the host is changed unless it is asked for.
//!
//! May depend on [`crate::up`] and [`crate::topology`]. Read first: `docs/topology.md`, "Real nodes".

use std::ffi::OsString;
use std::fmt::Write as _;
use std::process::ExitCode;

use flatnet_agents::host;
use flatnet_agents::lease::{DEFAULT_PREFIX, NetworkConfig};
use flatnet_agents::seed;
use flatnet_agents::store::etcd::{Options, Password, Tls, User};
use flatnet_engine::masquerade::PortRange;
use flatnet_proxy::Ipv4Prefix;
use miette::{Diagnostic, IntoDiagnostic as _};

use crate::args::Node;
use crate::network::Shared;
use crate::topology::node::{NodeConfig, read_config, read_node};
use crate::topology::routes::{Own, read_file};
use crate::topology::{Interface, Topology, values};
use crate::up::background;
use crate::up::serve::{self, Serving};

/// Workers of a node: one moves a packet from its pod to the tunnel by itself.
const DEFAULT_WORKERS: u16 = 1;

/// Where the password of etcd's user is, as flanneld has it.
const PASSWORD: &str = "FLANNELD_ETCD_PASSWORD";

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
    /// There is nothing to write.
    #[error("the subnet is written to a file where it comes from an etcd")]
    #[diagnostic(help("add --etcd, or leave out --subnet-file"))]
    SubnetFile,
    /// There is a user of etcd without a password.
    #[error("there is no password of etcd's user")]
    #[diagnostic(help(
        "put it into the environment as {PASSWORD}, where other users of this host do not see it"
    ))]
    Password,
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
    let interface = match (arguments.address, &arguments.iface) {
        (Some(interface), _) => interface,
        (None, Some(name)) => address_of(name)?,
        (None, None) => return Err(NodeError::Address.into()),
    };
    let name = match arguments.name.take() {
        Some(name) => name,
        None => host_name()?,
    };
    if !arguments.etcd.is_empty() && arguments.routes.is_some() {
        return Err(NodeError::Both.into());
    }
    if arguments.etcd.is_empty() && arguments.subnet_file.is_some() {
        return Err(NodeError::SubnetFile.into());
    }
    // The process in the background is the one that claims a subnet.
    let shared = if arguments.etcd.is_empty() || arguments.detach {
        None
    } else {
        Some(join(&mut arguments, &name, interface)?)
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
        return background::run(&words(&arguments, &name, interface, &topology), &files, &name);
    }
    let Node { detached, routes, .. } = arguments;
    let entrances = Vec::new();
    serve::run(topology, &name, Serving { detached, keep: false, faults: &[], entrances, routes, shared })
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
    let tls = Tls {
        ca: arguments.etcd_cafile.clone(),
        certificate: arguments.etcd_certfile.clone(),
        key: arguments.etcd_keyfile.clone(),
    };
    let user = match arguments.etcd_username.clone() {
        None => None,
        Some(name) => {
            let password = std::env::var(PASSWORD).map_err(|_| NodeError::Password)?;
            Some(User { name, password: Password(password) })
        }
    };
    // Nodes of one cluster have different addresses, and so different places to begin at.
    let seed = seed::hash(u64::from(u32::from(interface.address)), &["etcd", name]);
    let etcd = Options { endpoints: arguments.etcd.clone(), tls, user, seed, ..Options::default() };
    let wanted = match arguments.pod_network {
        None => None,
        // As the topology of the flags alone would have it.
        Some(network) => {
            let (topology, _) = read_node(document(arguments, name, interface), &[], name)?;
            let config = NetworkConfig::new(network).into_diagnostic()?;
            Some(config.with_backend(topology.backend, topology.port))
        }
    };
    let prefix = arguments.etcd_prefix.as_deref().unwrap_or(DEFAULT_PREFIX);
    let wish = arguments.pod_cidr;
    let mut shared = Shared::join(&etcd, prefix, interface.address, wish, wanted.as_ref())?;
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
    if flags.etcd.is_empty() {
        flags.etcd = file.etcd;
    }
    flags.etcd_prefix = flags.etcd_prefix.take().or(file.etcd_prefix);
    flags.etcd_cafile = flags.etcd_cafile.take().or(file.etcd_cafile);
    flags.etcd_certfile = flags.etcd_certfile.take().or(file.etcd_certfile);
    flags.etcd_keyfile = flags.etcd_keyfile.take().or(file.etcd_keyfile);
    flags.etcd_username = flags.etcd_username.take().or(file.etcd_username);
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

/// The words of the process in the background.
fn words(arguments: &Node, name: &str, interface: Interface, topology: &Topology) -> Vec<OsString> {
    let mut words: Vec<OsString> = ["node", "--detached", "--name", name].map(Into::into).into();
    let mut flag = |name: &str, value: String| words.extend([name.into(), value.into()]);
    flag("--address", format!("{}/{}", interface.address, interface.network.length()));
    flag("--service-network", topology.service_network.to_string());
    if arguments.etcd.is_empty() {
        flag("--pod-network", topology.pod_network.to_string());
        if topology.backend.is_some() {
            flag("--port", topology.port.to_string());
        }
    } else {
        // What is not said comes from there.
        flag("--etcd", arguments.etcd.join(","));
        let said = [
            ("--pod-network", arguments.pod_network.map(|network| network.to_string())),
            ("--port", arguments.port.map(|port| port.to_string())),
            ("--etcd-prefix", arguments.etcd_prefix.clone()),
            ("--etcd-username", arguments.etcd_username.clone()),
        ];
        said.into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .for_each(|(name, value)| flag(name, value));
    }
    if let Some(backend) = arguments.backend {
        flag("--backend", backend.name().to_owned());
    }
    if let Some(vni) = arguments.vni {
        flag("--vni", vni.to_string());
    }
    if let Some(subnet) = arguments.pod_cidr {
        flag("--pod-cidr", subnet.to_string());
    }
    if let Some(workers) = arguments.workers {
        flag("--workers", workers.to_string());
    }
    if let Some(poll) = arguments.poll {
        flag("--poll", format!("{}ns", poll.as_nanos()));
    }
    if let Some(name) = &arguments.host_port {
        flag("--host-port", name.clone());
    }
    if let Some(PortRange { first, last }) = arguments.masquerade_ports {
        flag("--masquerade-ports", format!("{first}-{last}"));
    }
    if arguments.uplink {
        words.push("--uplink".into());
    }
    words.extend(path_words(arguments));
    words
}

/// Those of them that name files.
fn path_words(arguments: &Node) -> Vec<OsString> {
    let flags = [
        ("--routes", &arguments.routes),
        ("--etcd-cafile", &arguments.etcd_cafile),
        ("--etcd-certfile", &arguments.etcd_certfile),
        ("--etcd-keyfile", &arguments.etcd_keyfile),
        ("--subnet-file", &arguments.subnet_file),
    ];
    let flags = flags.into_iter().filter_map(|(flag, path)| Some((flag, path.as_ref()?)));
    let files = arguments.files.iter().map(|path| ("--file", path));
    flags.chain(files).flat_map(|(flag, path)| [flag.into(), path.into()]).collect()
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
    fn the_background_process_is_told_all_that_this_one_was() {
        let all = "flatnet node --name n --address 192.168.66.11/24 --pod-network 10.2.0.0/16 --pod-cidr 10.2.3.0/24 \
                   --service-network 10.97.0.0/16 --backend vxlan --vni 7 --port 9000 --workers 3 --poll 50us --host-port flatnet0 --uplink --masquerade-ports 61000-62000 --file a --file b --routes r";
        let told = node(all);
        let interface = told.address.unwrap();
        let (topology, _) = read_node(document(&told, "n", interface), &[], "n").unwrap();
        let words = words(&told, "n", interface, &topology);
        let words: Vec<&str> = words.iter().map(|word| word.to_str().unwrap()).collect();
        let again = node(&format!("flatnet {}", words.join(" ")));
        assert!(again.detached);
        assert_eq!(format!("{:?}", Node { detached: false, ..again }), format!("{told:?}"));
    }

    #[test]
    fn a_background_process_with_etcd_is_told_of_the_network_only_what_was_said() {
        let told = node(
            "flatnet node --name n --address 192.168.66.11/24 --service-network 10.97.0.0/16 --etcd https://a:1,https://b:2 \
             --etcd-prefix /p --etcd-cafile c --etcd-certfile d --etcd-keyfile e --etcd-username u --subnet-file s",
        );
        let interface = told.address.unwrap();
        let (topology, _) = read_node(document(&told, "n", interface), &[], "n").unwrap();
        let words = words(&told, "n", interface, &topology);
        let words: Vec<&str> = words.iter().map(|word| word.to_str().unwrap()).collect();
        let again = node(&format!("flatnet {}", words.join(" ")));
        assert_eq!(format!("{:?}", Node { detached: false, ..again }), format!("{told:?}"));
    }

    #[test]
    fn a_background_process_without_a_tunnel_is_told_no_port() {
        let told = node("flatnet node --name n --address 192.168.66.11/24 --backend host-gw");
        let interface = told.address.unwrap();
        let (topology, _) = read_node(document(&told, "n", interface), &[], "n").unwrap();
        assert_eq!((topology.backend, topology.port), (None, 0));
        let words = words(&told, "n", interface, &topology);
        assert!(words.iter().all(|word| word != "--port") && words.contains(&"host-gw".into()));
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
