//! What the `flatnet` command line is made of.
//!
//! - [`args`]: what may be typed.
//! - [`topology`]: the topology file and the Kubernetes manifests beside it, with every finding at its line.
//! - [`impairment`]: a link's settings as they are written.
//! - [`network`]: a network's control plane in one process.
//! - [`entrance`]: ports of this host that lead into a network.
//! - [`drive`]: what makes it go: virtual time, or workers on threads.
//! - [`hops`]: the ways of followed frames.
//! - [`check`]: every way through a network, tried.
//! - [`up`]: the command that does all that, and keeps it running.
//! - [`node`]: the same for one node of a cluster on the host's own network.
//! - [`point`], [`recorder`], [`packets`], [`rates`], [`ledger`]: what can be watched and counted in a network that runs.
//! - [`instance`]: a running network that answers.
//! - [`views`]: what it answers.
//! - [`output`]: how commands print.
//! - [`client`]: the way to it.
//! - [`trace`]: one packet's way there and back, hop by hop, with its headers.
//! - [`mod@bench`]: what the engine takes for a packet.
//! - [`etcd`]: a local etcd.
//! - [`doctor`]: what keeps nodes from reaching each other.
//! - `subnets`: the leases of a cluster's subnets, in whatever store.
//! - [`get`], [`exec`], [`show`], [`capture`], [`replay`], [`link`], [`status`], [`down`]: the commands that ask it.

/// Has all memory in large pages where the system has them to give: the tables of 100,000 Services are then as near as a
/// few, not a walk of page tables for each entry away (`docs/performance.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub mod args;

pub mod topology;

pub mod impairment;

pub mod network;

pub mod drive;

pub mod entrance;

pub mod hops;

pub mod check;

pub mod up;

pub mod node;

pub mod point;

pub mod recorder;

pub mod packets;

pub mod rates;

pub mod ledger;

pub mod instance;

pub mod views;

pub mod output;

pub mod client;

pub mod trace;

mod subnets;

pub mod get;

pub mod exec;

pub mod logs;

pub mod show;

pub mod capture;

pub mod replay;

pub mod link;

pub mod offload;

pub mod status;

pub mod down;

pub mod clean;

pub mod etcd;

pub mod doctor;

pub mod bench;
