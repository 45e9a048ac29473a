//! Why a bench fails, of the packet path, of pods or of routes.
//!
//! May depend on errors of the engine, the proxy, agents and [`crate::network`]. Read first: `bench.rs`.

use flatnet_agents::StoreError;
use flatnet_agents::lease::ConfigError;
use flatnet_agents::node::NodeError;
use flatnet_agents::store::etcd::OpenError;
use flatnet_engine::control::{ControlError, ServiceError};
use flatnet_engine::frame::ArenaError;
use flatnet_engine::pod::PodError;
use flatnet_proxy::{PrefixError, TableError};

use crate::etcd::EtcdError;
use crate::network::SharedError;

/// Why a row cannot be measured.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum BenchError {
    /// No memory.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// A part of the network cannot be made.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A Service cannot be published.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A Service cannot be changed.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// A container does not start.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// The row needs more nodes than the pods' network has subnets.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// The generator is out of buffers, or a ring is full.
    #[error("the generator has no buffer left, or a ring has no room")]
    NoBuffer,
    /// The node did not forward all that was sent.
    #[error("{frames} frames were lost; the node's drops: {reasons}")]
    Lost {
        /// How many.
        frames: usize,
        /// Names of the reasons that the node's ledger has.
        reasons: String,
    },
    /// The network came to rest, or time was over, before all was done.
    #[error("{what} did not end; drops: {drops}")]
    Unfinished {
        /// What.
        what: &'static str,
        /// Names and counts of the reasons that the nodes have.
        drops: String,
    },
    /// The system does not tell how much memory the process has.
    #[error("/proc/self/status does not tell how much memory is resident")]
    NoMemoryFigure,
    /// There is no etcd to measure with.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Etcd(#[from] Box<EtcdError>),
    /// It cannot be asked.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It failed.
    #[error("the etcd of the bench failed")]
    Store(#[from] StoreError),
    /// The pod network cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It is another already.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A node has no part in the cluster.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Shared(#[from] Box<SharedError>),
    /// Time was over before all was done.
    #[error("{what} did not come about; etcd said last: {trouble}")]
    Late {
        /// What.
        what: &'static str,
        /// Why something was asked for again.
        trouble: String,
    },
    /// The process of a run failed.
    #[error("a run of {row} failed ({status})")]
    #[diagnostic(help("its message stands above"))]
    Run {
        /// The row.
        row: &'static str,
        /// How it ended.
        status: String,
    },
}
