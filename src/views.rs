//! What a running network tells: the bodies of its answers, as JSON and as the commands print them.
//!
//! [`crate::instance`] fills them in, the commands read them. Invariants: plain data; a field's name is part of the
//! version `/v1` and never changes its meaning there.
//!
//! May depend on serde only. Read first: `docs/architecture.md`, "A running instance".
//!
//! Above 400 lines because each field says what it is.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

/// What went wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What.
    pub error: String,
    /// What to do.
    pub help: Option<String>,
}

/// A running network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// `virtual` or `real`.
    pub time: String,
    /// Seconds since it came up.
    pub uptime: f64,
    /// Its nodes, routers and networks.
    pub nodes: Vec<NodeStatus>,
    /// Its pods.
    pub pods: Vec<MachineStatus>,
    /// The hosts outside.
    pub hosts: Vec<MachineStatus>,
    /// The ports of this host that lead into it.
    pub entrances: Vec<EntranceStatus>,
}

/// A port of this host that leads into the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntranceStatus {
    /// Where it listens.
    pub address: SocketAddrV4,
    /// The name and port that it leads to; each client says its own, by SOCKS, if there is none.
    pub leads_to: Option<String>,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// A node of the cluster.
    Node,
    /// A router between networks.
    Router,
    /// A network: a switch.
    Network,
}

/// A node, router or network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name; a network's prefix.
    pub name: String,
    /// What it is.
    pub kind: NodeKind,
    /// Its addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Its pods' subnet.
    pub subnet: Option<String>,
    /// Frames that came in, in the last second.
    pub frames_per_second: f64,
    /// Bits that came in, in the last second.
    pub bits_per_second: f64,
    /// Drops in the last second, by reason.
    pub drops_per_second: Vec<Rate>,
}

/// The leases of pods' subnets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetReport {
    /// Those that stand, by subnet.
    pub items: Vec<SubnetEntry>,
    /// The keys beside them that are none, and why.
    pub warnings: Vec<KeyWarning>,
}

/// A lease of a subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetEntry {
    /// The subnet.
    pub subnet: String,
    /// The address at which its holder is reached.
    pub public_ip: Ipv4Addr,
    /// The holder's name, where who is asked knows it: flannel's keys do not have it.
    pub node: Option<String>,
    /// flannel's backend that it uses.
    pub backend: String,
    /// Seconds since the lease was granted or renewed; none of a reservation.
    pub age: Option<u64>,
    /// Seconds until it ends if nobody renews it; none of a reservation.
    pub left: Option<u64>,
    /// The store's revision at which it was written.
    pub revision: u64,
}

/// A key of the store's that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyWarning {
    /// The key.
    pub key: String,
    /// What is wrong with it.
    pub why: String,
}

/// How often something happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// What.
    pub reason: String,
    /// How often a second.
    pub per_second: f64,
}

/// A pod or host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// A pod's node.
    pub node: Option<String>,
    /// Whether its programs are ours.
    pub simulated: bool,
    /// Whether they have all ended for good.
    #[serde(default)]
    pub ended: bool,
}

/// The packet ledger of a whole network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerReport {
    /// A row per node, router and network.
    pub nodes: Vec<LedgerRow>,
    /// What pods and hosts dropped; only those that did.
    pub pods: Vec<PodDropCounts>,
    /// What became of the buffers.
    pub buffers: BufferReport,
    /// Whether every frame and every buffer is accounted for.
    pub balances: bool,
}

/// A node's ledger: received + originated + copied + split = sent + consumed + merged + dropped + held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRow {
    /// The node.
    pub node: String,
    /// Came in from a link.
    pub received: u64,
    /// Made by the node itself.
    pub originated: u64,
    /// Copies made by flooding, or by a link that duplicates.
    pub copied: u64,
    /// Made by cutting superframes.
    pub split: u64,
    /// Given to a link.
    pub sent: u64,
    /// Taken by the node itself.
    pub consumed: u64,
    /// Went into superframes.
    pub merged: u64,
    /// Dropped.
    pub dropped: u64,
    /// Wait inside the node.
    pub held: u64,
    /// Drops by reason.
    pub drops: Vec<DropCount>,
    /// Whether both sides are equal.
    pub balances: bool,
}

/// What a pod or host dropped. Its node's ledger ends at its link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodDropCounts {
    /// The pod, as `[NAMESPACE/]POD`, or the host.
    pub pod: String,
    /// Drops by reason.
    pub drops: Vec<DropCount>,
}

/// Drops for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCount {
    /// The reason.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// What became of the buffers: allocated = freed + held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BufferReport {
    /// Taken.
    pub allocated: u64,
    /// Given back.
    pub freed: u64,
    /// Found where frames wait.
    pub held: u64,
    /// Whether none was lost.
    pub balances: bool,
}

/// A program to be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The pod or host.
    pub pod: String,
    /// The program and its arguments.
    pub command: Vec<String>,
}

/// A MAC behind a port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FdbEntry {
    /// The MAC.
    pub mac: String,
    /// Who is at the port.
    pub device: String,
    /// The bridge.
    pub bridge: String,
    /// Whether it belongs to a known pod.
    pub is_static: bool,
    /// Seconds since it was learned anew.
    pub age: Option<f64>,
}

/// A next hop's MAC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighborEntry {
    /// The address.
    pub address: Ipv4Addr,
    /// The interface it is behind.
    pub device: String,
    /// The MAC, once known.
    pub mac: Option<String>,
    /// `PERMANENT`, `REACHABLE` or `INCOMPLETE`.
    pub state: String,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// The prefix, or `default`.
    pub destination: String,
    /// The next hop's address.
    pub via: Option<Ipv4Addr>,
    /// The interface.
    pub device: String,
    /// `kernel`, `static`, or `flannel` for a lease.
    pub protocol: String,
    /// The address that the node itself sends from.
    pub source: Option<Ipv4Addr>,
}

/// An address and port that a Service answers at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The VIP, or the node's address for a NodePort.
    pub address: Ipv4Addr,
    /// The port.
    pub port: u16,
    /// How backends are chosen.
    pub scheduler: String,
    /// How packets get to them: `nat`, `dr`, `tun`.
    pub forwarding: String,
    /// How long a client keeps its backend, seconds; none without session affinity.
    pub persistent: Option<u64>,
    /// The traffic policy that holds here: `Cluster` or `Local`.
    pub policy: String,
    /// `namespace/name:port`.
    pub service: String,
    /// Its backends.
    pub backends: Vec<BackendEntry>,
}

/// A backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendEntry {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The pod's port.
    pub port: u16,
    /// Its share of new flows; 0 while it gets none, as when it ends.
    pub weight: u16,
    /// Established TCP connections through this node.
    pub active: u64,
    /// Other flows through this node.
    pub inactive: u64,
}

/// A half of a flow, as its packets arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Half {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Source port; an ICMP request's identifier.
    pub source_port: u16,
    /// Destination port; an ICMP answer's identifier. The other of the two is the request's type then.
    pub destination_port: u16,
}

/// What NAT or a Service chose for a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowEntry {
    /// `tcp`, `udp`, `icmp`.
    pub protocol: String,
    /// The protocol's number.
    pub number: u8,
    /// Seconds until it ends.
    pub timeout: u64,
    /// TCP's state.
    pub state: Option<String>,
    /// The first packet.
    pub original: Half,
    /// The answer.
    pub reply: Half,
    /// Whether an answer was seen.
    pub answered: bool,
    /// Whether it is more than a question and its answer: TCP that is open, or UDP both ways for two seconds.
    pub assured: bool,
}

/// A change of a link's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRequest {
    /// The one end.
    pub from: String,
    /// The other.
    pub to: String,
    /// Whether only frames from the one to the other are meant.
    pub one_way: bool,
    /// `NAME=VALUE`, `down`, `up` or `reset`, in the order in which they are to be done.
    pub settings: Vec<String>,
}

/// A change of what a link leaves to the host's system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffloadRequest {
    /// Where the link is.
    pub point: String,
    /// `FEATURE=on`, `FEATURE=off`, in the order in which they are to be done.
    pub settings: Vec<String>,
}

/// What a link leaves to the host's system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffloadEntry {
    /// Where the link is.
    pub point: String,
    /// Which features it has, and whether they are on.
    pub features: BTreeMap<String, bool>,
}

/// One direction of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkEntry {
    /// Who sends.
    pub from: String,
    /// Who receives.
    pub to: String,
    /// What differs from a perfect link, as it can be typed; `perfect`.
    pub settings: String,
    /// Delay, nanoseconds.
    pub delay_ns: u64,
    /// What it varies by, nanoseconds.
    pub jitter_ns: u64,
    /// Frames lost, parts per million.
    pub loss_ppm: u32,
    /// Frames that arrive twice, parts per million.
    pub duplicate_ppm: u32,
    /// Frames that overtake, parts per million.
    pub reorder_ppm: u32,
    /// Frames with one bit turned over, parts per million.
    pub corrupt_ppm: u32,
    /// Bits a second.
    pub rate_bps: Option<u64>,
    /// The queue's limit, when it counts frames.
    pub queue_frames: Option<u32>,
    /// The queue's limit, when it counts bytes.
    pub queue_bytes: Option<u64>,
    /// Largest IP packet, bytes.
    pub mtu: Option<u16>,
    /// Whether it is down.
    pub down: bool,
    /// What happened while it was not perfect.
    pub counters: LinkCounters,
}

/// What happened to the frames of one direction of a link while it was not perfect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCounters {
    /// Frames that were to be sent.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Copies made.
    pub duplicated: u64,
    /// Frames that took no delay.
    pub reordered: u64,
    /// Frames with a bit turned over.
    pub corrupted: u64,
    /// Frames that found the queue full.
    pub queue_full: u64,
    /// Frames beyond the MTU.
    pub too_long: u64,
    /// Frames that found it down.
    pub refused: u64,
}

/// What became of a recording that was played.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ReplayReport {
    /// Frames in the file.
    pub frames: u64,
    /// Bytes of the frames that were to be sent.
    pub bytes: u64,
    /// Frames that set out.
    pub sent: u64,
    /// Frames that the file does not hold whole.
    pub cut: u64,
    /// Frames longer than any can be.
    pub too_long: u64,
    /// How long it took, by the machine's clock.
    pub seconds: f64,
    /// What the whole network dropped meanwhile, whoever sent it.
    pub drops: Vec<DropCount>,
}

impl ReplayReport {
    /// Adds what became of it the next time.
    pub fn add(&mut self, next: Self) {
        self.frames += next.frames;
        self.bytes += next.bytes;
        self.sent += next.sent;
        self.cut += next.cut;
        self.too_long += next.too_long;
        self.seconds += next.seconds;
        for drop in next.drops {
            match self.drops.iter_mut().find(|known| known.reason == drop.reason) {
                Some(known) => known.count += drop.count,
                None => self.drops.push(drop),
            }
        }
    }
}

/// Drops for one reason, explained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropEntry {
    /// The reason.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// What it means.
    pub meaning: String,
    /// What to do.
    pub hint: String,
}
