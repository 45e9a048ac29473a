//! How a node comes to its part in a cluster: its subnet is claimed before the network comes up.
//!
//! `flatnet node` asks; [`super`] keeps what is claimed. Invariant: nothing is written but the own lease, and a configuration where there is
//! none and somebody wants one.
//!
//! May depend on agents. Read first: [`super`].

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use flatnet_agents::lease::allocate::Wish;
use flatnet_agents::lease::{self, Lease, NetworkConfig};
use flatnet_agents::node::{NodeError, NodeOptions, claim_for, ensure_config, read_config};
use flatnet_agents::store::LeaseId;
use flatnet_agents::store::etcd::{OpenError, Options};
use flatnet_agents::{Etcd, Store};
use flatnet_engine::tunnel::Encapsulation;
use flatnet_proxy::Ipv4Prefix;
use futures::executor::block_on;

use super::TTL;

/// How long before its end it is renewed, as flannel does.
pub(crate) const MARGIN: Duration = Duration::from_secs(60 * 60);
/// Why a node has no part in the cluster.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum SharedError {
    /// The etcd cannot be asked.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Nobody has said what the cluster is.
    #[error("the etcd has no configuration of a cluster at {0}")]
    #[diagnostic(help(
        "etcdctl put {0} '{{\"Network\":\"10.1.0.0/16\"}}' writes one, and so does a node with --pod-network"
    ))]
    NoConfig(String),
    /// No subnet can be had.
    #[error("the cluster in etcd gives this node no pod subnet")]
    Claim(#[source] NodeError),
    /// Nodes reach each other in a way that is not known here.
    #[error("the cluster in etcd uses backend {0}; udp, vxlan and host-gw are known here")]
    Backend(String),
    /// Packets that go as they are cannot be translated on their way.
    #[error("with host-gw other nodes must reach this one at its own address {address}, not at {public_ip}")]
    #[diagnostic(help("leave out --public-ip, or have the cluster use udp or vxlan"))]
    Translated {
        /// Where they are to reach it.
        public_ip: Ipv4Addr,
        /// Its own address.
        address: Ipv4Addr,
    },
}

/// A node's subnet in a cluster.
#[derive(Debug)]
pub struct Shared {
    /// What the cluster is.
    pub config: NetworkConfig,
    /// What the node has of it.
    pub lease: Lease,
    /// Where other programs read that, as flannel's subnet.env, and whether pods have MASQUERADE.
    pub subnet_file: Option<(PathBuf, bool)>,
    pub(super) store: Etcd,
    pub(super) options: NodeOptions,
    pub(super) margin: Duration,
    pub(super) held: Option<LeaseId>,
}

/// How a node takes part.
#[derive(Clone, Copy, Debug)]
pub struct Joining<'a> {
    /// Where the cluster's keys lie.
    pub prefix: &'a str,
    /// The node's own address.
    pub address: Ipv4Addr,
    /// The one at which other nodes reach it.
    pub public_ip: Ipv4Addr,
    /// The subnet that it is to have; any without it.
    pub wish: Option<Ipv4Prefix>,
    /// What is written if there is no configuration, and else must be the one that is there.
    pub wanted: Option<&'a NetworkConfig>,
    /// How long before its end the lease is renewed; an hour, as flannel does, without it.
    pub margin: Option<Duration>,
}

/// What a node has of a cluster before it takes part.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) config: NetworkConfig,
    pub(crate) lease: Lease,
    pub(crate) options: NodeOptions,
    pub(crate) held: Option<LeaseId>,
}

impl Shared {
    /// Claims a subnet for a node.
    ///
    /// # Errors
    /// [`SharedError`].
    pub fn join(etcd: &Options, joining: &Joining<'_>) -> Result<Self, SharedError> {
        let store = Etcd::open(etcd)?;
        let Claimed { config, lease, options, held } = block_on(claim(&store, joining, etcd.seed))?;
        let margin = joining.margin.unwrap_or(MARGIN);
        Ok(Self { config, lease, subnet_file: None, store, options, margin, held })
    }
}

/// Claims a subnet for a node; which of the free ones, the seed says.
pub(crate) async fn claim<S: Store>(
    store: &S,
    joining: &Joining<'_>,
    seed: u64,
) -> Result<Claimed, SharedError> {
    let Joining { prefix, address, public_ip, wish, wanted, .. } = *joining;
    if let Some(wanted) = wanted {
        ensure_config(store, prefix, wanted).await.map_err(failed)?;
    }
    let (config, _) = read_config(store, prefix).await.map_err(failed)?;
    let Some(encapsulation) = encapsulation(&config) else {
        return Err(SharedError::Backend(config.backend));
    };
    if encapsulation.is_none() && public_ip != address {
        return Err(SharedError::Translated { public_ip, address });
    }
    let wish = wish.map_or(Wish::Any { previous: None }, Wish::Exactly);
    let mut options = NodeOptions { prefix: prefix.into(), public_ip, wish, encapsulation, seed };
    let (lease, held) = claim_for(store, &options, Some(TTL)).await.map_err(failed)?;
    // Pods have addresses of it: it is this one or none from now on.
    options.wish = Wish::Exactly(lease.subnet);
    Ok(Claimed { config, lease, options, held })
}

fn failed(error: NodeError) -> SharedError {
    match error {
        NodeError::NoConfig { key } => SharedError::NoConfig(key),
        error @ (NodeError::Config { .. }
        | NodeError::OtherConfig { .. }
        | NodeError::Allocate(_)
        | NodeError::Raced
        | NodeError::Store(_)) => SharedError::Claim(error),
    }
}

/// How packets are carried, if that is known.
fn encapsulation(config: &NetworkConfig) -> Option<Option<Encapsulation>> {
    match config.backend.as_str() {
        "udp" => Some(Some(Encapsulation::Udp)),
        "vxlan" => Some(Some(Encapsulation::Vxlan { vni: config.vni.unwrap_or(lease::config::DEFAULT_VNI) })),
        "host-gw" => Some(None),
        _ => None,
    }
}
