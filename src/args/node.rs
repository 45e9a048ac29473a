//! What may be typed after `flatnet node`.
//!
//! [`crate::node`] gives it meaning. Invariant: nothing here touches the system.
//!
//! May depend on clap, and on what its values stand for. Read first: [`super`].

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use flatnet_engine::masquerade::PortRange;
use flatnet_engine::wire::vxlan::VNI_LIMIT;
use flatnet_proxy::Ipv4Prefix;

use super::EtcdFlags;
use crate::impairment::duration;
use crate::topology::{BackendKind, Interface, values};

/// `flatnet node`.
#[derive(Debug, Args)]
#[command(after_help = NODE_HELP)]
pub struct Node {
    /// A YAML file whose keys are the long names of these flags; a flag goes before the file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The node's name, and the running network's; without it the host's
    #[arg(long, value_name = "NAME", value_parser = values::name)]
    pub name: Option<String>,
    /// This host's address on the nodes' network, with the network's length: 192.168.66.11/24
    #[arg(long, value_name = "CIDR", value_parser = values::interface)]
    pub address: Option<Interface>,
    /// The interface whose first IPv4 address and network that are, as flanneld's flag
    #[arg(long, value_name = "NAME", value_parser = values::interface_name, conflicts_with = "address")]
    pub iface: Option<String>,
    /// Where all nodes' pod subnets come from [default: 10.1.0.0/16]
    #[arg(long, value_name = "CIDR", value_parser = values::prefix)]
    pub pod_network: Option<Ipv4Prefix>,
    /// The subnet of this node's pods; without it one that is free
    #[arg(long, value_name = "CIDR", value_parser = values::subnet)]
    pub pod_cidr: Option<Ipv4Prefix>,
    /// Where Services' addresses come from [default: 10.96.0.0/12]
    #[arg(long, value_name = "CIDR", value_parser = values::prefix)]
    pub service_network: Option<Ipv4Prefix>,
    /// How nodes reach each other's pods: `udp`, `vxlan` or `host-gw`, as flannel's [default: udp]
    #[arg(long, value_name = "BACKEND", value_parser = values::backend)]
    pub backend: Option<BackendKind>,
    /// The UDP port of the tunnel, the same at every node [default: 8285 of udp, 8472 of vxlan]
    #[arg(long, value_name = "PORT", value_parser = values::port)]
    pub port: Option<u16>,
    /// The network's number, of vxlan, the same at every node [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..i64::from(VNI_LIMIT)))]
    pub vni: Option<u32>,
    /// How many threads move packets [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: Option<u16>,
    /// For how long they look for packets before they sleep, such as 50us [default: 0]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub poll: Option<Duration>,
    /// The interface, such as flatnet0, by which this host itself reaches pods and Services; needs CAP_NET_ADMIN
    #[arg(long, value_name = "NAME", value_parser = values::interface_name)]
    pub host_port: Option<String>,
    /// MASQUERADE and NodePorts, by the interface that has the address; needs CAP_NET_RAW and CAP_NET_ADMIN
    #[arg(long)]
    pub uplink: bool,
    /// Ports of this host that the node translates to, and that no program here is given [default: 61000-65535]
    #[arg(long, value_name = "FIRST-LAST", value_parser = values::port_range)]
    pub masquerade_ports: Option<PortRange>,
    /// The etcd that has the leases.
    #[command(flatten)]
    pub etcd: EtcdFlags,
    /// The address at which other nodes reach this one, where it is not the interface's (1:1 NAT); needs --etcd
    #[arg(long, value_name = "ADDRESS", value_parser = values::machine)]
    pub public_ip: Option<Ipv4Addr>,
    /// How many minutes before its end the lease of the subnet is renewed, 1 to 1439; needs --etcd [default: 60]
    #[arg(long, value_name = "MINUTES", value_parser = values::renew_margin)]
    pub subnet_lease_renew_margin: Option<Duration>,
    /// Write there what flannel writes to subnet.env: the network, the node's subnet and the MTU of pods
    #[arg(long, value_name = "FILE")]
    pub subnet_file: Option<PathBuf>,
    /// Answer /healthz and /readyz there by HTTP, as kubelets ask; without an address to this host's programs only
    #[arg(long, value_name = "[ADDRESS:]PORT")]
    pub health: Option<String>,
    /// A YAML mapping of other nodes' pod subnets to their addresses; SIGHUP has it read again
    #[arg(long, value_name = "FILE", conflicts_with = "etcd")]
    pub routes: Option<PathBuf>,
    /// Kubernetes manifests (may be repeated); pods that are bound to other nodes do not run here
    #[arg(short, long = "file", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Run in the background; see `flatnet status` and `flatnet down`
    #[arg(short, long)]
    pub detach: bool,
    /// The process is the background one.
    #[arg(long, hide = true)]
    pub detached: bool,
}

/// What else there is to know before a node is started.
const NODE_HELP: &str = "\
A node needs no privileges but what its pods need: real ones (runtimeClassName: netns) take uid 0 with
CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_SYS_CHROOT, simulated ones nothing, --host-port takes CAP_NET_ADMIN,
--uplink CAP_NET_RAW and CAP_NET_ADMIN. Pods' MTU is that of the address's interface less 28 (udp)
or 50 (vxlan). A kernel's vxlan device is a peer; docs/topology.md shows how it is set. With host-gw there is
no tunnel: pods have the interface's MTU, --uplink goes without saying, and a kernel with routes is a peer.

  flatnet node --address 192.168.66.11/24 --etcd http://192.168.66.10:2379 -f pods.yaml -d
  flatnet node --address 192.168.66.11/24 --pod-cidr 10.1.15.0/24 --routes routes.yaml -f pods.yaml -d
  with routes.yaml:  10.1.20.0/24: 192.168.66.12
  or, of vxlan:      10.1.20.0/24: {address: 192.168.66.12, mac: '02:42:0a:01:14:00'}";
