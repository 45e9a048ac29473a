//! `flatnet bench`: what the engine takes for a packet, measured as it is built here.
//!
//! `benches/engine.rs` runs the same rows under criterion. Invariants: a figure comes with the conditions it was taken
//! under; clocks are core clocks, by the rate of a chain of dependent operations in the same run, because TSC clocks of
//! two machines do not compare.
//!
//! May depend on the engine. Read first: `bench/rows.rs`.

pub mod lab;

pub mod datagram;

pub mod rows;

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Duration;

use flatnet_engine::clock::timestamp_counter;
use flatnet_engine::control::ControlError;
use flatnet_engine::frame::ArenaError;
use flatnet_proxy::{PrefixError, TableError};
use serde::Serialize;

use crate::args::{Bench, BenchEngine, Output};
use crate::output::{plain_table, print, print_json};
use lab::BUFFERS;
use rows::{CASES, Case, Row, Traffic};

/// How long the worker runs for a figure.
const MEASURED: Duration = Duration::from_secs(1);
/// Rounds before the first that is measured.
const WARM_UP: u32 = 20;
/// Rounds that are measured at least.
const ROUNDS: usize = 50;

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
    /// A row does not exist at this number of flows.
    #[error("{flows} flows are too many: a row takes up to 1,900,000")]
    TooManyFlows {
        /// What was asked for.
        flows: u32,
    },
}

/// Flows at most: every pod has 60,000 ports.
const FLOW_LIMIT: u32 = 1_900_000;

/// What a row came to.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// The row.
    pub row: &'static str,
    /// Flows.
    pub flows: u32,
    /// Bytes of a frame at a pod.
    pub frame_bytes: usize,
    /// Workers.
    pub workers: u32,
    /// Packets that the worker forwards in a second.
    pub packets_per_second: f64,
    /// Core clocks for a packet, mean.
    pub clocks_per_packet: f64,
    /// Nanoseconds for a packet in the median round of 4,096.
    pub p50_ns: f64,
    /// The same in the round that 99 % of all are not slower than.
    pub p99_ns: f64,
    /// Core clocks in a TSC clock, in this run.
    pub core_clocks_per_tsc: f64,
    /// TSC clocks that generator and sink took for a packet; in no other figure.
    #[serde(skip)]
    pub outside: f64,
}

/// Runs `flatnet bench`.
///
/// # Errors
/// [`BenchError`].
pub fn run(arguments: &Bench) -> miette::Result<ExitCode> {
    match arguments {
        Bench::Engine(arguments) => engine(arguments),
    }
}

fn engine(arguments: &BenchEngine) -> miette::Result<ExitCode> {
    let chosen = |case: &&Case| arguments.row.is_empty() || arguments.row.contains(&case.row);
    let mut cases: Vec<Case> = CASES.iter().filter(chosen).copied().collect();
    if let Some(flows) = arguments.flows {
        if flows > FLOW_LIMIT {
            return Err(BenchError::TooManyFlows { flows }.into());
        }
        cases.iter_mut().filter(|case| case.row != Row::NewFlows).for_each(|case| case.flows = flows.max(1));
        cases.dedup_by_key(|case| (case.name, case.flows, case.frame_bytes));
    }
    let rate = core_clocks_per_tsc();
    let mut figures = Vec::new();
    for case in &cases {
        eprintln!("bench: {}, {} flows, {} bytes", case.name, case.flows, case.frame_bytes);
        figures.push(measure(case, rate)?);
    }
    match arguments.output {
        Output::Json => print_json(&figures)?,
        Output::Table => print(&table(&figures, rate))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures a case; `rate` are core clocks in a TSC clock.
///
/// # Errors
/// [`BenchError`].
pub fn measure(case: &Case, rate: f64) -> Result<Figure, BenchError> {
    let mut traffic = Traffic::new(case)?;
    // A case of new flows is at its steady state when the first ones end.
    let warm_up = if case.row == Row::NewFlows { 2 * case.flows / BUFFERS as u32 } else { WARM_UP };
    for _ in 0..warm_up {
        traffic.round()?;
    }
    let (mut times, mut total, mut clocks, mut outside) = (Vec::new(), Duration::ZERO, 0, 0);
    while total < MEASURED || times.len() < ROUNDS {
        let round = traffic.round()?;
        times.push(round.time.as_nanos() as f64 / BUFFERS as f64);
        total += round.time;
        clocks += round.clocks;
        outside += round.outside;
    }
    let packets = (times.len() * BUFFERS) as f64;
    times.sort_by(f64::total_cmp);
    Ok(Figure {
        row: case.name,
        flows: case.flows,
        frame_bytes: case.frame_bytes,
        workers: 1,
        packets_per_second: packets / total.as_secs_f64(),
        clocks_per_packet: clocks as f64 * rate / packets,
        p50_ns: times[times.len() / 2],
        p99_ns: times[times.len() * 99 / 100],
        core_clocks_per_tsc: rate,
        outside: outside as f64 / packets,
    })
}

fn table(figures: &[Figure], rate: f64) -> String {
    let mut table = plain_table(["ROW", "FLOWS", "BYTES", "MPPS", "CLOCKS", "P50 NS", "P99 NS"]);
    for figure in figures {
        table.add_row([
            figure.row.to_owned(),
            figure.flows.to_string(),
            figure.frame_bytes.to_string(),
            format!("{:.2}", figure.packets_per_second / 1e6),
            format!("{:.0}", figure.clocks_per_packet),
            format!("{:.1}", figure.p50_ns),
            format!("{:.1}", figure.p99_ns),
        ]);
    }
    let outside = figures.iter().map(|figure| figure.outside).sum::<f64>() / figures.len().max(1) as f64;
    format!(
        "{}\n\nCLOCKS are core clocks a packet: TSC clocks times {rate:.2}, the rate of dependent additions in this run.\n\
         One worker, from the ingress ring to the egress ring through its whole loop; captures and traces off. 4,096\n\
         buffers in rotation, flows in random order, both directions where a row has two. 100 leases, 1,000 Services,\n\
         250 pods behind them. Checksums are known to be right, as between simulated pods. Generator and sink took\n\
         {outside:.0} TSC clocks a packet more, in no figure above.\n",
        table.trim_fmt()
    )
}

/// Core clocks in a TSC clock: a chain of dependent operations takes one core clock each.
#[must_use]
pub fn core_clocks_per_tsc() -> f64 {
    // Short runs, the fastest of many: none of them is interrupted.
    let run = || {
        let (steps, start) = (1_000_000u64, timestamp_counter());
        let mut sum = black_box(1u64);
        for step in 0..black_box(steps) {
            // Two that cannot be folded or reordered: each waits for the one before.
            sum = (sum ^ step).wrapping_add(0x9e37_79b9_7f4a_7c15);
        }
        black_box(sum);
        (2 * steps) as f64 / (timestamp_counter() - start) as f64
    };
    (0..200).map(|_| run()).fold(0.0, f64::max)
}
