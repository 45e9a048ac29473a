//! What may be typed: the commands and their options.
//!
//! `main` parses these; the command's own file gives them meaning. Invariant: nothing here touches the system.
//!
//! May depend on clap only. Read first: `README.md`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    /// Bring a network up; without -f the two-node network of the tour
    Up(Up),
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
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
    /// Break something first: lease:NODE or link:A:B (may be repeated)
    #[arg(long, value_name = "FAULT")]
    pub fault: Vec<String>,
    /// How to print the checks
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}
