//! What the `flatnet` command line is made of.
//!
//! - [`args`]: what may be typed.
//! - [`topology`]: the topology file and the Kubernetes manifests beside it, with every finding at its line.
//! - [`network`]: a network's control plane in one process.
//! - [`drive`]: what makes it go: virtual time, or workers on threads.
//! - [`check`]: every way through a network, tried.
//! - [`up`]: the command that does all that.

pub mod args;

pub mod topology;

pub mod network;

pub mod drive;

pub mod check;

pub mod up;
