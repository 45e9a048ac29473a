//! What may be typed after `flatnet etcd`.
//!
//! [`crate::etcd`] gives it meaning. Invariant: nothing here touches the system.
//!
//! May depend on clap. Read first: [`super`].

use clap::{Args, Subcommand};

use super::Output;

/// `flatnet etcd`.
#[derive(Debug, Subcommand)]
pub enum EtcdCommand {
    /// Start it on loopback, or what has ended of it, and print its endpoints
    Up(EtcdUp),
    /// End it
    Down(EtcdDown),
}

/// `flatnet etcd up`.
#[derive(Debug, Args)]
pub struct EtcdUp {
    /// How many members it has [default: 1, or as many as it had]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9))]
    pub members: Option<u8>,
    /// How to print them: `table` for people, `json` for programs
    #[arg(short, long, value_enum, default_value = "table", hide_possible_values = true)]
    pub output: Output,
}

/// `flatnet etcd down`.
#[derive(Debug, Args)]
pub struct EtcdDown {
    /// Delete its data, too
    #[arg(long)]
    pub delete: bool,
}
