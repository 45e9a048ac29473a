//! `flatnet status`: which networks run, and what they do.
//!
//! Invariant: a network that does not answer is told as such, after two seconds, and keeps no other from being listed.
//!
//! May depend on [`crate::client`]. Read first: [`crate::views::Status`].

use std::process::ExitCode;
use std::time::Duration;

use futures::future::join_all;
use hyper::Method;
use serde::Serialize;

use crate::args;
use crate::client::{self, Client};
use crate::output::{plain_table, print_as};
use crate::rates::short;
use crate::views::{NodeKind, Status};

/// How long a network may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs the command.
///
/// # Errors
/// Output cannot be made.
pub fn run(arguments: &args::Status) -> miette::Result<ExitCode> {
    let clients: Vec<Client> = Client::all().into_iter().map(|client| client.within(PATIENCE)).collect();
    let asked = clients.iter().map(|client| client.ask::<Status>(Method::GET, "/v1/status"));
    let answers = client::run(async { Ok(join_all(asked).await) })?;
    let mut networks = Vec::new();
    for (client, answer) in clients.iter().zip(answers) {
        networks.push(answer.map(Network::Running).unwrap_or_else(|error| {
            eprintln!("{:?}", miette::Report::new(error));
            Network::Silent { name: client.name.clone() }
        }));
    }
    print_as(arguments.output, &networks[..], text)?;
    Ok(ExitCode::SUCCESS)
}

/// A network that listens.
#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
enum Network {
    /// It answers.
    Running(Status),
    /// It does not.
    Silent { name: String },
}

/// A table of those that answer, then a line for each that does not.
fn text(networks: &[Network]) -> String {
    if networks.is_empty() {
        return "no network runs; start one by `flatnet up -d`\n".to_owned();
    }
    let (mut running, mut silent) = (Vec::new(), String::new());
    for network in networks {
        match network {
            Network::Running(status) => running.push(status),
            Network::Silent { name } => silent.push_str(&format!("{name} does not answer\n")),
        }
    }
    if running.is_empty() { silent } else { table(&running) + "\n" + &silent }
}

fn table(found: &[&Status]) -> String {
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
