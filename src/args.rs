//! What may be typed: the commands and their options.
//!
//! `main` parses these; the command's own file gives them meaning. Invariant: nothing here touches the system.
//!
//! May depend on clap, and on what its values stand for. Read first: `README.md`.
//!
//! Above 400 lines because all that may be typed stands in one place, with its help.

mod etcd;
mod node;
#[cfg(test)]
mod tests;

pub use etcd::{Doctor, EtcdCommand, EtcdDown, EtcdFlags, EtcdUp};
pub use node::Node;

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use flatnet_engine::pod::ProbeProtocol;
use serde::Deserialize;

use crate::bench::pods::PodRow;
use crate::bench::rows::Row;

/// The flat pod network in userspace.
#[derive(Debug, Parser)]
#[command(name = "flatnet", version, about, long_about = None)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring a network up; without -f the two-node network that README.md shows
    Up(Up),
    /// Run one node of a cluster on this host's own network; its peers are other hosts' nodes, flanneld among them
    Node(Box<Node>),
    /// End a running network and print its packet ledger
    Down(Down),
    /// Take away what killed processes of flatnet left behind: sockets, pods' volumes, nodes' rules in this namespace
    Clean(Clean),
    /// List the running networks
    Status(Status),
    /// List pods, services, nodes or endpointslices, as kubectl does, or subnets and their leases
    Get(Get),
    /// Delete a pod or a service
    Delete(Delete),
    /// Run a program inside a pod or on a host
    Exec(Exec),
    /// Show what a container of a real pod wrote, as kubectl does
    Logs(Logs),
    /// Send one packet and show its way and the answer's, hop by hop, with headers
    Trace(Trace),
    /// Show a node's tables, as bridge, ip, ipvsadm and conntrack do
    Show(Show),
    /// Write the frames that pass a point as pcapng
    Capture(Capture),
    /// Play a pcap or pcapng file into the network, as if the machine at a point had sent it
    Replay(Replay),
    /// Show how links differ from perfect ones, or change that
    Link(Link),
    /// Show what links leave to this host's system, as ethtool does, or change that
    Offload(Offload),
    /// Start a local etcd for trying things out, or end it
    #[command(subcommand)]
    Etcd(EtcdCommand),
    /// Look for what keeps nodes from reaching an etcd and each other, and say what to do; exit code 1 if something is wrong
    Doctor(Doctor),
    /// Measure what the engine takes for a packet on this machine
    #[command(subcommand)]
    Bench(Bench),
}

/// `flatnet bench`.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// The packet path, row by row: from the ingress ring to the egress ring
    Engine(BenchEngine),
    /// Simulated pods: their memory, a TCP stream and HTTP requests between them
    Pods(BenchPods),
    /// The routes of many nodes that share an etcd: time until all have them, and memory
    Routes(BenchRoutes),
}

/// `flatnet bench engine`.
#[derive(Debug, Args)]
pub struct BenchEngine {
    /// Measure these rows only; again for more
    #[arg(long, value_name = "ROW")]
    pub row: Vec<Row>,
    /// Flows of each worker, in place of each row's own; not where every frame is a new one. Each pod has 60,000 ports
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_900_000))]
    pub flows: Option<u32>,
    /// Bytes of a frame at a pod, from its Ethernet header on, in place of each row's own; over vxlan at most 1464
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(64..=1486))]
    pub size: Option<u16>,
    /// Services, in place of 1,000; not for rows that are about their number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub services: Option<u32>,
    /// Leases of nodes, which a node has routes to, in place of 100; not for rows that are about their number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=30_000))]
    pub routes: Option<u32>,
    /// Workers that run at once, each with a node, pods and flows of its own
    #[arg(long, value_name = "W", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub workers: u8,
    /// Buffers in rotation, frames of a round. With fewer than 4,096 caches hold what they would not: no result, but it shows what
    /// memory costs
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(64..=4096))]
    pub buffers: u32,
    /// Also tell what each stage of a packet's way takes
    #[arg(long)]
    pub stages: bool,
    /// How the figures are printed
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `flatnet bench pods`.
#[derive(Debug, Args)]
pub struct BenchPods {
    /// Measure these rows only; again for more
    #[arg(long, value_name = "ROW")]
    pub row: Vec<PodRow>,
    /// Runs of each row, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub runs: u32,
    /// How the figures are printed
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `flatnet bench routes`.
#[derive(Debug, Args)]
pub struct BenchRoutes {
    /// With how many nodes, one after the other
    #[arg(long, value_name = "N[,N]", value_delimiter = ',', default_values_t = [10, 100, 1000], value_parser = clap::value_parser!(u32).range(2..=4000))]
    pub nodes: Vec<u32>,
    /// How the figures are printed
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Which running network is meant.
#[derive(Debug, Clone, Args)]
pub struct Selection {
    /// The running network's name; needed only when several run
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

/// `flatnet up`.
#[derive(Debug, Args)]
pub struct Up {
    /// Topology files and Kubernetes manifests
    #[arg(short, long = "file", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Try every way through the network and exit: 0 when all work
    #[arg(long)]
    pub check: bool,
    /// Run in the background; see `flatnet status` and `flatnet down`
    #[arg(short, long, conflicts_with = "check")]
    pub detach: bool,
    /// Keep objects, leases and revisions on disk for the next `up --keep` of this name
    #[arg(long, conflicts_with = "check")]
    pub keep: bool,
    /// Name of the running network, instead of the topology's
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Open a port of this host that leads to a Service, pod, host or address, such as 8080:web:80 (may be repeated)
    #[arg(long, value_name = "[ADDRESS:]PORT:NAME:PORT", conflicts_with = "check")]
    pub publish: Vec<String>,
    /// Open a port of this host at which a SOCKS5 proxy leads to any Service, pod, host or address, such as 1080
    #[arg(long, value_name = "[ADDRESS:]PORT", conflicts_with = "check")]
    pub socks: Option<String>,
    /// Break something first: lease:NODE, link:A:B or link:POD:NODE (may be repeated)
    #[arg(long, value_name = "FAULT")]
    pub fault: Vec<String>,
    /// Write the frames that pass a point during the checks to a pcapng file (may be repeated)
    #[arg(long, value_name = "POINT=FILE", requires = "check")]
    pub capture: Vec<String>,
    /// How to print the checks: `table` for people, `json` for programs
    #[arg(short, long, value_enum, default_value = "table", hide_possible_values = true)]
    pub output: Output,
    /// The etcd by which several processes are one network; each is given the same files.
    #[command(flatten)]
    pub etcd: EtcdFlags,
    /// Which of the topology's nodes this process runs, on this host's own network; without it all; needs --etcd
    #[arg(long, value_name = "NODE[,NODE]", value_delimiter = ',', requires = "etcd")]
    pub nodes: Vec<String>,
    /// The process is the background one.
    #[arg(long, hide = true)]
    pub detached: bool,
}

/// `flatnet down`.
#[derive(Debug, Args)]
pub struct Down {
    /// Which one.
    #[command(flatten)]
    pub selection: Selection,
    /// How to print the ledger: `table` for people, `json` for programs
    #[arg(short, long, value_enum, default_value = "table", hide_possible_values = true)]
    pub output: Output,
}

/// `flatnet clean`.
#[derive(Debug, Args)]
pub struct Clean {
    /// How to print what was removed: `table` for people, `json` for programs
    #[arg(short, long, value_enum, default_value = "table", hide_possible_values = true)]
    pub output: Output,
}

/// `flatnet status`.
#[derive(Debug, Args)]
pub struct Status {
    /// How to print it: `table` for people, `json` for programs
    #[arg(short, long, value_enum, default_value = "table", hide_possible_values = true)]
    pub output: Output,
}

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Pods
    #[value(alias = "pod", alias = "po")]
    Pods,
    /// Services
    #[value(alias = "service", alias = "svc")]
    Services,
    /// Nodes
    #[value(alias = "node", alias = "no")]
    Nodes,
    /// Which pods are behind a Service
    #[value(alias = "endpointslice")]
    Endpointslices,
    /// Leases of pods' subnets
    #[value(alias = "subnet")]
    Subnets,
}

impl Kind {
    /// Returns its name in requests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Services => "services",
            Self::Nodes => "nodes",
            Self::Endpointslices => "endpointslices",
            Self::Subnets => "subnets",
        }
    }

    /// Returns the name of one.
    #[must_use]
    pub const fn singular(self) -> &'static str {
        match self {
            Self::Pods => "pod",
            Self::Services => "service",
            Self::Nodes => "node",
            Self::Endpointslices => "endpointslice",
            Self::Subnets => "subnet",
        }
    }
}

/// `flatnet get`.
#[derive(Debug, Args)]
pub struct Get {
    /// Which network.
    #[command(flatten)]
    pub selection: Selection,
    /// pods, services, nodes, endpointslices, or subnets: who holds which, and for how long yet
    #[arg(value_enum, hide_possible_values = true)]
    pub kind: Kind,
    /// One of them, as [NAMESPACE/]NAME
    #[arg(value_name = "OBJECT")]
    pub object: Option<String>,
    /// Ask this etcd for subnets, in place of a running network
    #[command(flatten)]
    pub etcd: EtcdFlags,
    /// How to print it: `table` for people, `json` for programs
    #[arg(short, long, value_enum, default_value = "table", hide_possible_values = true)]
    pub output: Output,
}

/// `flatnet delete`.
#[derive(Debug, Args)]
pub struct Delete {
    /// Which network.
    #[command(flatten)]
    pub selection: Selection,
    /// pod or service
    #[arg(value_enum, hide_possible_values = true)]
    pub kind: Kind,
    /// Its name, as [NAMESPACE/]NAME
    #[arg(value_name = "OBJECT")]
    pub object: String,
}

/// `flatnet logs`.
#[derive(Debug, Args)]
pub struct Logs {
    /// Which network.
    #[command(flatten)]
    pub selection: Selection,
    /// The pod, as [NAMESPACE/]POD
    pub pod: String,
    /// Which container; without it the first
    #[arg(short, long)]
    pub container: Option<String>,
    /// What it wrote before it started last
    #[arg(short, long)]
    pub previous: bool,
}

/// `flatnet exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// Which network.
    #[command(flatten)]
    pub selection: Selection,
    /// The pod, as [NAMESPACE/]POD, or a host
    pub pod: String,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// What `flatnet show` can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Table {
    /// The bridge's MAC table, as `bridge fdb`
    Fdb,
    /// Next hops' MACs, as `ip neigh`
    Neighbors,
    /// Routes and leases, as `ip route`
    Routes,
    /// Services and their backends, as `ipvsadm -Ln`
    Services,
    /// What NAT and Services chose, as `conntrack -L`
    Flows,
    /// What was dropped by reason, and what to do about it
    Drops,
}

impl Table {
    /// Returns the table's name in requests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fdb => "fdb",
            Self::Neighbors => "neighbors",
            Self::Routes => "routes",
            Self::Services => "services",
            Self::Flows => "flows",
            Self::Drops => "drops",
        }
    }
}

/// Lists the tables and what they are, for `show --help`.
fn tables() -> String {
    let mut text = String::from("Tables:\n");
    for table in Table::value_variants().iter().filter_map(Table::to_possible_value) {
        let help = table.get_help().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(text, "  {:<9}  {help}", table.get_name());
    }
    text
}

/// `flatnet show`.
#[derive(Debug, Args)]
#[command(after_help = tables())]
pub struct Show {
    /// Which network.
    #[command(flatten)]
    pub selection: Selection,
    /// What to show, see below
    #[arg(value_enum, hide_possible_values = true)]
    pub table: Table,
    /// A node, router or network; for drops also a pod or host
    pub node: String,
    /// How to print it: `table` for people, `json` for programs
    #[arg(short, long, value_enum, default_value = "table", hide_possible_values = true)]
    pub output: Output,
}

/// `flatnet replay`.
#[derive(Debug, Args)]
pub struct Replay {
    /// Which network.
    #[command(flatten)]
    pub selection: Selection,
    /// [NAMESPACE/]POD, HOST or NODE:eth0: whose frames they are
    pub point: String,
    /// The file, of Ethernet frames
    pub file: PathBuf,
    /// original, max (as fast as the port takes them), or a factor: 2x, 0.5x
    #[arg(long, default_value = "original")]
    pub speed: String,
    /// Play it so many times
    #[arg(long = "loop", value_name = "N", default_value_t = 1)]
    pub repeat: u32,
    /// How to print what became of it: `table` for people, `json` for programs
    #[arg(short, long, value_enum, default_value = "table", hide_possible_values = true)]
    pub output: Output,
}

/// `flatnet link`.
#[derive(Debug, Args)]
pub struct Link {
    /// Which network.
    #[command(flatten)]
    pub selection: Selection,
    /// A node, host, router or pod; without it all links that are not perfect
    #[arg(value_name = "A", requires = "to")]
    pub from: Option<String>,
    /// Another on the same network, or the pod's node
    #[arg(value_name = "B")]
    pub to: Option<String>,
    /// delay=50ms, jitter, loss=1%, duplicate, reorder, corrupt, rate=10Mbit, queue, mtu; down, up, reset
    #[arg(value_name = "SETTING")]
    pub settings: Vec<String>,
    /// Change frames from A to B only
    #[arg(long, requires = "settings")]
    pub one_way: bool,
    /// How to print it: `table` for people, `json` for programs
    #[arg(short, long, value_enum, default_value = "table", hide_possible_values = true)]
    pub output: Output,
}

/// `flatnet offload`.
#[derive(Debug, Args)]
pub struct Offload {
    /// Which network.
    #[command(flatten)]
    pub selection: Selection,
    /// A real pod or a node's interface, such as node-1:eth0; without it all that leave something to the host
    #[arg(value_name = "POINT")]
    pub point: Option<String>,
    /// checksum, tso, uso (frames come unfinished), gso, gro (they go, and come, together)
    #[arg(value_name = "FEATURE=on|off")]
    pub settings: Vec<String>,
    /// How to print it: `table` for people, `json` for programs
    #[arg(short, long, value_enum, default_value = "table", hide_possible_values = true)]
    pub output: Output,
}

/// How `flatnet trace` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceProtocol {
    /// ICMP echo
    #[value(alias = "icmp")]
    Echo,
    /// A connection
    Tcp,
    /// A datagram
    Udp,
}

impl TraceProtocol {
    /// Returns its name in requests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Returns what a pod is to send.
    #[must_use]
    pub const fn probe(self) -> ProbeProtocol {
        match self {
            Self::Echo => ProbeProtocol::IcmpEcho,
            Self::Tcp => ProbeProtocol::Tcp,
            Self::Udp => ProbeProtocol::Udp,
        }
    }
}

/// `flatnet trace`.
#[derive(Debug, Args)]
pub struct Trace {
    /// Which network.
    #[command(flatten)]
    pub selection: Selection,
    /// Who sends: [NAMESPACE/]POD or a host
    pub from: String,
    /// To a pod, host, node, Service or address, with or without :PORT
    pub to: String,
    /// echo, tcp or udp; without it what a Service's first port or the named port takes, else echo
    #[arg(value_enum, hide_possible_values = true)]
    pub protocol: Option<TraceProtocol>,
    /// The port, for tcp and udp
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Try it on these files in virtual time, not on a running network (may be repeated)
    #[arg(short, long = "file", value_name = "FILE", conflicts_with = "name")]
    pub files: Vec<PathBuf>,
    /// In virtual time break something first: lease:NODE, link:A:B or link:POD:NODE (may be repeated)
    #[arg(long, value_name = "FAULT", conflicts_with = "name")]
    pub fault: Vec<String>,
    /// How to print it: `table` for people, `json` for programs
    #[arg(short, long, value_enum, default_value = "table", hide_possible_values = true)]
    pub output: Output,
}

/// `flatnet capture`.
#[derive(Debug, Args)]
pub struct Capture {
    /// Which network.
    #[command(flatten)]
    pub selection: Selection,
    /// [NAMESPACE/]POD[:eth0|lo], NODE:docker0|flannel0|eth0, HOST, or a network
    pub point: String,
    /// The file to write; standard output without it
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// End after this many frames
    #[arg(short, long)]
    pub count: Option<u64>,
}
