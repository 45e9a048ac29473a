//! Why a bench fails, of the packet path or of pods.
//!
//! May depend on the engine's and the proxy's errors. Read first: `bench.rs`.

use flatnet_engine::control::{ControlError, ServiceError};
use flatnet_engine::frame::ArenaError;
use flatnet_engine::pod::PodError;
use flatnet_proxy::{PrefixError, TableError};

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
