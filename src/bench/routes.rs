//! `flatnet bench routes`: how soon the agents of many nodes have each other's routes, and what they hold of memory.
//!
//! Each number of nodes is measured in a process of its own, beside an etcd of three members that it starts. Invariants: a figure comes with the
//! conditions it was taken under; every agent has a connection, a thread and a watch of its own, as if it were on a machine of its own.
//!
//! May depend on agents and [`crate::network`]. Read first: `bench/routes/agent.rs`.

mod agent;

mod board;

use std::cell::RefCell;
use std::process::{Command, ExitCode};
use std::rc::Rc;
use std::time::{Duration, Instant};

use flatnet_agents::lease::{self, Attributes, DEFAULT_PREFIX, NetworkConfig};
use flatnet_agents::node::ensure_config;
use flatnet_agents::store::etcd::Options;
use flatnet_agents::{Etcd, Store as _};
use flatnet_proxy::Ipv4Prefix;
use futures::executor::LocalPool;
use futures::task::LocalSpawnExt as _;
use serde::{Deserialize, Serialize};

use super::BenchError;
use super::pods::idle::resident;
use crate::args::{BenchRoutes, Output};
use crate::drive::raise_file_limit;
use crate::etcd::Scratch;
use crate::output::{plain_table, print_as};
use agent::{address, live};
use board::Board;

/// The pod network: room for 4,095 nodes.
const NETWORK: &str = "10.0.0.0/12";
/// Members of the etcd.
const MEMBERS: u8 = 3;
/// Changes that are measured, one after the other.
const CHANGES: u32 = 300;

/// What a number of nodes came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteFigure {
    /// What was measured.
    pub row: String,
    /// Of how many nodes.
    pub nodes: u32,
    /// The figure.
    pub value: f64,
    /// What it counts.
    pub unit: String,
}

/// Runs `flatnet bench routes`.
///
/// # Errors
/// [`BenchError`].
pub fn run(arguments: &BenchRoutes) -> miette::Result<ExitCode> {
    let mut figures = Vec::new();
    for &nodes in &arguments.nodes {
        // A single number is what the processes below are for.
        if arguments.nodes.len() == 1 {
            figures.extend(measure(nodes)?);
            continue;
        }
        eprintln!("bench: routes of {nodes} nodes");
        figures.extend(measure_apart(nodes)?);
    }
    // What reads the figures reads a list of them.
    if arguments.output == Output::Json {
        eprint!("{}", conditions());
    }
    print_as(arguments.output, &figures, |figures| table(figures))?;
    Ok(ExitCode::SUCCESS)
}

/// Measures a number of nodes in this process.
///
/// # Errors
/// [`BenchError`].
pub fn measure(nodes: u32) -> Result<Vec<RouteFigure>, BenchError> {
    raise_file_limit();
    let etcd = Scratch::start(MEMBERS).map_err(Box::new)?;
    let options = |seed| Options { endpoints: etcd.endpoints(), seed, ..Options::default() };
    let store = Etcd::open(&options(0))?;
    let mut pool = LocalPool::new();
    let config = NetworkConfig::new(NETWORK.parse()?)?;
    pool.run_until(ensure_config(&store, DEFAULT_PREFIX, &config))?;

    let (before, start) = (resident()?, Instant::now());
    let board = Rc::new(RefCell::new(Board::new(nodes)));
    for number in 0..nodes {
        let (options, board) = (options(u64::from(number) + 1), Rc::clone(&board));
        // It fails only when the pool is gone.
        let _ = pool.spawner().spawn_local(async move {
            if let Err(error) = live(&options, number, &board).await {
                board.borrow_mut().fail(error);
            }
        });
    }
    pool.run_until(Board::until(&board, "every node's claim", |board| board.unclaimed == 0))?;
    let claimed = start.elapsed();
    pool.run_until(Board::until(&board, "every route everywhere", |board| board.unknown == 0))?;
    let cold = start.elapsed();
    let bytes = resident()?.saturating_sub(before) as f64 / f64::from(nodes);

    let mut times = pool.run_until(changes(&store, &board, nodes))?;
    times.sort_unstable();
    let rank = |percent: usize| times[times.len() * percent / 100].as_secs_f64();
    let row =
        |row: &str, value: f64, unit: &str| RouteFigure { row: row.into(), nodes, value, unit: unit.into() };
    Ok(vec![
        row("claimed", claimed.as_secs_f64(), "seconds until every node has its subnet"),
        row("cold-start", cold.as_secs_f64(), "seconds until every node has every route"),
        row("change/p50", rank(50), "seconds until every node has it"),
        row("change/p99", rank(99), "seconds until every node has it"),
        row("memory", bytes, "resident bytes a node"),
    ])
}

/// Has another node come and then move from address to address; returns how long each time took until all had heard of it.
async fn changes(store: &Etcd, board: &Rc<RefCell<Board>>, nodes: u32) -> Result<Vec<Duration>, BenchError> {
    // Claims begin at the network's start, and take this last one only when all others are taken.
    let subnet: Ipv4Prefix = "10.15.255.0/24".parse()?;
    let key = lease::subnet_key(DEFAULT_PREFIX, subnet);
    let mut times = Vec::new();
    for change in 0..CHANGES {
        let public_ip = address(nodes + change % 2);
        board.borrow_mut().expect(subnet, public_ip);
        let start = Instant::now();
        store.put(&key, Attributes::udp(public_ip).to_json().into_bytes()).await?;
        Board::until(board, "a change everywhere", |board| board.unheard == 0).await?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// Measures a number of nodes in a process of its own.
fn measure_apart(nodes: u32) -> miette::Result<Vec<RouteFigure>> {
    use miette::IntoDiagnostic as _;
    let program = std::env::current_exe().into_diagnostic()?;
    let run = Command::new(program)
        .args(["bench", "routes", "--nodes", &nodes.to_string(), "--output", "json"])
        .output()
        .into_diagnostic()?;
    if !run.status.success() {
        eprint!("{}", String::from_utf8_lossy(&run.stderr));
        return Err(BenchError::Run { row: "routes", status: run.status.to_string() }.into());
    }
    serde_json::from_slice(&run.stdout).into_diagnostic()
}

fn table(figures: &[RouteFigure]) -> String {
    let mut table = plain_table(["ROW", "NODES", "VALUE", "UNIT"]);
    for RouteFigure { row, nodes, value, unit } in figures {
        let value = if *value < 1000.0 { format!("{value:.3}") } else { format!("{value:.0}") };
        table.add_row([row, &nodes.to_string(), &value, unit]);
    }
    format!("{}\n\n{}", table.trim_fmt(), conditions())
}

/// Says what the figures were taken under.
#[must_use]
pub fn conditions() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "One run. All nodes are agents of one process, their control side on one thread; each has a connection, a thread for it\n\
         and a watch of its own, its own store of leases, and an engine's table of routes. Beside it an etcd of {MEMBERS} members on loopback with\n\
         its data below the temporary directory; all share {cores} cores. The pod network is {NETWORK}. claimed and cold-start: from an etcd with\n\
         nothing but the network's configuration, all at once. change: another node comes, then moves from address to address, {CHANGES}\n\
         times, one after the other; the time is that of the last of the nodes to have it in its table. memory: what the process holds\n\
         beyond what it began with, for each node; each has a route to each other one. What routes cost a packet: flatnet bench engine\n\
         --row scale-routes.\n"
    )
}

#[cfg(test)]
mod tests;
