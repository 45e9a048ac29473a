//! What the `flatnet` command line is made of.
//!
//! - [`topology`]: the topology file and the Kubernetes manifests beside it, with every finding at its line.

pub mod topology;
