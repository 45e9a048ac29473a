//! `flatnet status`: which networks run, and what they do.
//!
//! Invariant: a network that does not answer is left out with a warning, not an end of the list.
//!
//! May depend on [`crate::client`]. Read first: [`crate::views::Status`].

use std::process::ExitCode;

use hyper::Method;

use crate::args::{self, Output};
use crate::client::{self, Client};
use crate::network::with_sources;
use crate::output::{plain_table, print, print_json};
use crate::rates::short;
use crate::views::{NodeKind, Status};

/// Runs the command.
///
/// # Errors
/// Output cannot be made.
pub fn run(arguments: &args::Status) -> miette::Result<ExitCode> {
    let mut found: Vec<Status> = Vec::new();
    for client in Client::all() {
        match client::run(client.ask(Method::GET, "/v1/status")) {
            Ok(status) => found.push(status),
            Err(error) => eprintln!("warning: {}", with_sources(&error)),
        }
    }
    match arguments.output {
        Output::Json => print_json(&found)?,
        Output::Table if found.is_empty() => print("no network runs; start one by `flatnet up -d`\n")?,
        Output::Table => print(&(table(&found) + "\n"))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn table(found: &[Status]) -> String {
    let mut table = plain_table([
        "NAME", "NODES", "PODS", "HOSTS", "TIME", "UPTIME", "FRAMES/S", "BITS/S", "DROPS/S", "PID",
    ]);
    for status in found {
        let nodes = status.nodes.iter().filter(|node| node.kind == NodeKind::Node).count();
        let frames: f64 = status.nodes.iter().map(|node| node.frames_per_second).sum();
        let bits: f64 = status.nodes.iter().map(|node| node.bits_per_second).sum();
        let drops = status.nodes.iter().flat_map(|node| &node.drops_per_second).map(|rate| rate.per_second);
        table.add_row([
            status.name.clone(),
            nodes.to_string(),
            status.pods.len().to_string(),
            status.hosts.len().to_string(),
            status.time.clone(),
            format!("{}s", status.uptime as u64),
            short(frames),
            short(bits),
            short(drops.fold(0.0, |sum, rate| sum + rate)),
            status.pid.to_string(),
        ]);
    }
    table.trim_fmt()
}
