//! `flatnet bench pods`: what simulated pods take, idle and at work.
//!
//! Rows are measured one after the other, each run in a process of its own, so that none finds another's memory or warm caches;
//! the median of the runs counts. Invariants: a figure comes with the conditions it was taken under; one thread does
//! everything, control side, worker and generator.
//!
//! May depend on the engine. Read first: `bench/pods/cluster.rs`.

pub mod cluster;

pub mod segment;

pub mod idle;

pub mod stream;

pub mod requests;

use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::ValueEnum;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::BenchError;
use crate::args::{BenchPods, Output};
use crate::output::{plain_table, print_as};

/// Octets that a stream carries before it is measured.
const WARM_UP: u64 = 1 << 28;
/// Octets of the measured stream.
const OCTETS: u64 = 1 << 32;
/// Connections kept open by the row of requests.
const CONNECTIONS: u16 = 1000;
/// Requests before the first that is measured.
const FIRST_REQUESTS: u64 = 100_000;
/// Requests that are measured.
const REQUESTS: u64 = 1_000_000;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum PodRow {
    /// 10,000 pods, each with a server that listens: memory, and time until the last has answered
    #[value(name = "idle-10k")]
    Idle10k,
    /// The same with 100,000
    #[value(name = "idle-100k")]
    Idle100k,
    /// Pod to a Service's pod on another node by TCP, through the tunnel
    Stream,
    /// Two TCP stacks of the pods' kind back to back, with nothing between: what stream could come to
    StreamBare,
    /// HTTP requests to a Service's pod on another node, over 1,000 connections that are kept
    Requests,
}

impl PodRow {
    /// Returns how the row is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle10k => "idle-10k",
            Self::Idle100k => "idle-100k",
            Self::Stream => "stream",
            Self::StreamBare => "stream-bare",
            Self::Requests => "requests",
        }
    }
}

/// What a row came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodFigure {
    /// The row.
    pub row: String,
    /// The figure.
    pub value: f64,
    /// What it counts.
    pub unit: String,
}

fn figure(row: PodRow, value: f64, unit: &str) -> PodFigure {
    PodFigure { row: row.name().to_owned(), value, unit: unit.to_owned() }
}

/// Runs `flatnet bench pods`.
///
/// # Errors
/// [`BenchError`].
pub fn run(arguments: &BenchPods) -> miette::Result<ExitCode> {
    let all = PodRow::value_variants();
    let chosen = |row: &&PodRow| arguments.row.is_empty() || arguments.row.contains(row);
    let rows: Vec<PodRow> = all.iter().filter(chosen).copied().collect();
    let mut figures = Vec::new();
    for &row in &rows {
        // A single run of a single row is what the processes below are for.
        if let ([_], 1) = (&rows[..], arguments.runs) {
            figures.extend(measure(row)?);
            continue;
        }
        eprintln!("bench: {}, {} runs", row.name(), arguments.runs);
        let runs: Result<Vec<_>, _> = (0..arguments.runs).map(|_| measure_apart(row)).collect();
        figures.extend(medians(&runs?));
    }
    // What reads the figures reads a list of them.
    if arguments.output == Output::Json {
        eprint!("{}", conditions(arguments.runs));
    }
    print_as(arguments.output, &figures, |figures| table(figures, arguments.runs))?;
    Ok(ExitCode::SUCCESS)
}

/// Measures a row once, in this process.
///
/// # Errors
/// [`BenchError`].
pub fn measure(row: PodRow) -> Result<Vec<PodFigure>, BenchError> {
    let idle = |pods| {
        let idle::Idle { bytes_a_pod, ready } = idle::measure(pods)?;
        let (bytes, ready) = (bytes_a_pod as f64, ready.as_secs_f64());
        Ok(vec![figure(row, bytes, "resident bytes a pod"), figure(row, ready, "seconds to ready")])
    };
    match row {
        PodRow::Idle10k => idle(10_000),
        PodRow::Idle100k => idle(100_000),
        PodRow::Stream => {
            let mut stream = stream::Stream::new()?;
            stream.carry(WARM_UP)?;
            Ok(vec![figure(row, gigabits(OCTETS, stream.carry(OCTETS)?), "Gbit/s")])
        }
        PodRow::StreamBare => {
            let mut bare = stream::Bare::new();
            bare.carry(WARM_UP)?;
            Ok(vec![figure(row, gigabits(OCTETS, bare.carry(OCTETS)?), "Gbit/s")])
        }
        PodRow::Requests => {
            let mut requests = requests::Requests::new(CONNECTIONS)?;
            requests.answer(FIRST_REQUESTS)?;
            let time = requests.answer(REQUESTS)?;
            Ok(vec![figure(row, REQUESTS as f64 / time.as_secs_f64(), "requests/s")])
        }
    }
}

/// Returns what this thread has had of a core: what others do on the machine is not in it.
#[must_use]
pub fn core_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn gigabits(octets: u64, time: Duration) -> f64 {
    octets as f64 * 8.0 / time.as_secs_f64() / 1e9
}

/// Measures a row once, in a process of its own.
fn measure_apart(row: PodRow) -> miette::Result<Vec<PodFigure>> {
    use miette::IntoDiagnostic as _;
    let program = std::env::current_exe().into_diagnostic()?;
    let run = Command::new(program)
        .args(["bench", "pods", "--runs", "1", "--row", row.name(), "--output", "json"])
        .output()
        .into_diagnostic()?;
    if !run.status.success() {
        eprint!("{}", String::from_utf8_lossy(&run.stderr));
        return Err(BenchError::Run { row: row.name(), status: run.status.to_string() }.into());
    }
    serde_json::from_slice(&run.stdout).into_diagnostic()
}

/// The median of each figure over all runs, which have the same figures in the same order.
fn medians(runs: &[Vec<PodFigure>]) -> Vec<PodFigure> {
    let Some(first) = runs.first() else { return Vec::new() };
    let median = |(index, figure): (usize, &PodFigure)| {
        let mut values: Vec<f64> = runs.iter().filter_map(|run| Some(run.get(index)?.value)).collect();
        values.sort_by(f64::total_cmp);
        PodFigure { value: values[values.len() / 2], ..figure.clone() }
    };
    first.iter().enumerate().map(median).collect()
}

fn table(figures: &[PodFigure], runs: u32) -> String {
    let mut table = plain_table(["ROW", "VALUE", "UNIT"]);
    for PodFigure { row, value, unit } in figures {
        let value = if *value < 1000.0 { format!("{value:.3}") } else { format!("{value:.0}") };
        table.add_row([row, &value, unit]);
    }
    format!("{}\n\n{}", table.trim_fmt(), conditions(runs))
}

/// Says what the figures of so many runs were taken under.
#[must_use]
pub fn conditions(runs: u32) -> String {
    let runs = match runs {
        1 => "One run".to_owned(),
        runs => format!("Medians of {runs} runs, each a process of its own"),
    };
    format!(
        "{runs}. One thread does everything: control side, worker's loop,\n\
         generator; times are what it had of a core.\n\
         idle: a pod with an echo server each, 250 on a node's docker0; the nodes on one switch with every lease. Memory\n\
         is what the process holds beyond what it began with, nodes and engine included; ready is when the last\n\
         server has answered a SYN, from nothing on. stream: 4 GiB from a pod's iperf to a Service's iperf on the other\n\
         node, through the tunnel at a path MTU of 1,472; both ends make and verify all checksums. stream-bare:\n\
         two smoltcp stacks with nothing between, MTU and checksums alike. requests: GET of nginx' welcome page by the\n\
         same way, 1,000 connections with a request each under way; the generator's time is in the figure.\n"
    )
}
