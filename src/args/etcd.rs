//! What may be typed after `flatnet etcd`, and what says which etcd is meant elsewhere.
//!
//! [`crate::etcd`] gives it meaning. Invariant: nothing here touches the system.
//!
//! May depend on clap. Read first: [`super`].

use std::path::PathBuf;

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

/// `flatnet doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Look at this etcd, and at the way to the nodes that have leases there
    #[command(flatten)]
    pub etcd: EtcdFlags,
    /// How to print it: `table` for people, `json` for programs
    #[arg(short, long, value_enum, default_value = "table", hide_possible_values = true)]
    pub output: Output,
}

/// Which etcd has flannel's keys, and how it is reached.
#[derive(Clone, Debug, Default, Args)]
pub struct EtcdFlags {
    /// The etcd that has the leases of subnets, flannel's as ours: URLs of its members
    #[arg(long, alias = "etcd-endpoints", value_name = "URL[,URL]", value_delimiter = ',')]
    pub etcd: Vec<String>,
    /// Where flannel's keys lie in it [default: /coreos.com/network]
    #[arg(long, value_name = "PREFIX")]
    pub etcd_prefix: Option<String>,
    /// PEM file of the authority that etcd's certificates are of; without it the system's
    #[arg(long, value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// PEM file of the certificate to show to etcd
    #[arg(long, value_name = "FILE")]
    pub etcd_certfile: Option<PathBuf>,
    /// PEM file of its key
    #[arg(long, value_name = "FILE")]
    pub etcd_keyfile: Option<PathBuf>,
    /// Who to be for etcd; the password is in the environment, as FLANNELD_ETCD_PASSWORD
    #[arg(long, value_name = "NAME")]
    pub etcd_username: Option<String>,
}
