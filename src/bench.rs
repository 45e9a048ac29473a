//! `flatnet bench`: what the engine takes for a packet, measured as it is built here.
//!
//! `benches/engine.rs` runs the same rows under criterion. Invariants: a figure comes with the conditions it was taken
//! under; clocks are core clocks, by the rate of a chain of dependent operations in the same run, because TSC clocks of
//! two machines do not compare.
//!
//! May depend on the engine. Read first: `bench/rows.rs`.

pub mod lab;

mod error;

mod home;

pub mod addresses;

pub mod packet;

pub mod rows;

pub mod pods;

pub mod routes;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use flatnet_engine::clock::timestamp_counter;
use flatnet_engine::worker::Stage;
use serde::Serialize;

use crate::args::{Bench, BenchEngine, Output};
use crate::output::{plain_table, print_as};
pub use error::BenchError;
use lab::{BUFFERS, Round, Waiting};
use rows::{CASES, Case, Row, Traffic};

/// How long the worker runs for a figure.
const MEASURED: Duration = Duration::from_secs(1);
/// Rounds before the first that is measured.
const WARM_UP: u32 = 20;
/// Rounds that are measured at least.
const ROUNDS: usize = 50;
/// Rounds between two looks at what they took.
const AT_ONCE: u32 = 20;
/// Rounds of which the stages are timed.
const STAGED: u32 = 100;
/// Services that change in a second, where any do.
const CHANGES: u32 = 100;
/// Frames whose waits are not measured, before those that are.
const COLD: usize = 30;
/// Changes, and frames for a worker that sleeps, whose times are measured.
const WAITS: usize = 300;

/// What a row came to.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// The row.
    pub row: String,
    /// Flows of each worker.
    pub flows: u32,
    /// Bytes of a frame at a pod.
    pub frame_bytes: usize,
    /// Workers.
    pub workers: u8,
    /// Packets that all workers together forward in a second; of a time that is waited for, its inverse.
    pub packets_per_second: f64,
    /// Core clocks of a worker for a packet, mean; of a time that is waited for, its length.
    pub clocks_per_packet: f64,
    /// Nanoseconds for a packet in the median round of 4,096, or the median wait.
    pub p50_ns: f64,
    /// The same in the round, or for the wait, that 99 % of all are not slower than.
    pub p99_ns: f64,
    /// Core clocks in a TSC clock, in this run.
    pub core_clocks_per_tsc: f64,
    /// Core clocks of each stage for a packet, by its name, in rounds of their own; only where they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stages: Option<BTreeMap<&'static str, f64>>,
    /// TSC clocks that generator and sink took for a packet, where they were timed; in no other figure.
    #[serde(rename = "outside_tsc_clocks", skip_serializing_if = "Option::is_none")]
    pub outside: Option<f64>,
}

/// Runs `flatnet bench`.
///
/// # Errors
/// [`BenchError`].
pub fn run(arguments: &Bench) -> miette::Result<ExitCode> {
    match arguments {
        Bench::Engine(arguments) => engine(arguments),
        Bench::Pods(arguments) => pods::run(arguments),
        Bench::Routes(arguments) => routes::run(arguments),
    }
}

fn engine(arguments: &BenchEngine) -> miette::Result<ExitCode> {
    let chosen = |case: &&Case| arguments.row.is_empty() || arguments.row.contains(&case.row);
    let mut cases: Vec<Case> = CASES.iter().filter(chosen).copied().collect();
    cases.iter_mut().for_each(|case| adapt(case, arguments));
    cases.dedup_by_key(|case| (case.name, case.flows, case.frame_bytes));
    let mut figures = Vec::new();
    for case in &cases {
        eprintln!("bench: {}, {} flows, {} bytes", case.name, case.flows, case.frame_bytes);
        // With each: what else the machine does changes how fast a core goes.
        figures.extend(measure(case, &Rates::measure(), arguments.stages)?);
    }
    let conditions = conditions(arguments.workers, arguments.buffers);
    if arguments.output == Output::Json {
        // What reads the figures reads a list of them.
        eprint!("{conditions}");
    }
    print_as(arguments.output, &figures, |figures| table(figures, &conditions))?;
    Ok(ExitCode::SUCCESS)
}

/// Gives a case what was asked for in place of its own.
fn adapt(case: &mut Case, arguments: &BenchEngine) {
    (case.workers, case.buffers) = (arguments.workers, arguments.buffers);
    if let Some(flows) = arguments.flows.filter(|_| !case.new) {
        case.flows = flows;
    }
    if let Some(size) = arguments.size {
        case.frame_bytes = usize::from(size).min(case.longest());
    }
    if let Some(services) = arguments.services.filter(|_| case.row != Row::ScaleServices) {
        case.services = services;
    }
    if let Some(routes) = arguments.routes.filter(|_| case.row != Row::ScaleRoutes) {
        case.nodes = routes;
    }
    // There is somebody to send to.
    case.nodes = case.nodes.max(u32::from(case.workers) + 1);
}

/// Measures a case; `stages` asks for those of its first figure.
///
/// # Errors
/// [`BenchError`].
pub fn measure(case: &Case, rates: &Rates, stages: bool) -> Result<Vec<Figure>, BenchError> {
    let mut traffic = Traffic::new(case)?;
    let mut figures = measure_row(case, &mut traffic, rates)?;
    if stages && case.row != Row::IdleLatency {
        figures[0].stages = Some(of_stages(case, &mut traffic, rates)?);
    }
    Ok(figures)
}

fn measure_row(case: &Case, traffic: &mut Traffic, rates: &Rates) -> Result<Vec<Figure>, BenchError> {
    if case.row == Row::ServiceChange {
        service_change(case, traffic, rates)
    } else if case.row == Row::IdleLatency {
        idle_latency(case, traffic, rates)
    } else {
        traffic.settle()?;
        Ok(vec![steady(case, traffic, rates)?])
    }
}

/// Measures rounds that are all alike.
fn steady(case: &Case, traffic: &mut Traffic, rates: &Rates) -> Result<Figure, BenchError> {
    traffic.rounds(WARM_UP)?;
    let (mut rounds, mut total) = (Vec::new(), Duration::ZERO);
    while total < MEASURED || rounds.len() < ROUNDS {
        let some = traffic.rounds(AT_ONCE)?;
        total += some.iter().map(|round| round.time).sum::<Duration>();
        rounds.extend(some);
    }
    Ok(of_rounds(case, case.name, &rounds, rates))
}

/// Measures rounds without changes and rounds with [`CHANGES`] of them a second, and how long a change takes.
fn service_change(case: &Case, traffic: &mut Traffic, rates: &Rates) -> Result<Vec<Figure>, BenchError> {
    let before = steady(case, traffic, rates)?;
    let (mut rounds, mut waits, mut unchanged) = (Vec::new(), Vec::new(), Duration::ZERO);
    while waits.len() < WAITS {
        let round = if unchanged < Duration::from_secs(1) / CHANGES {
            traffic.rounds(1)?.remove(0)
        } else {
            unchanged = Duration::ZERO;
            let (round, acknowledged) = traffic.round_with_change()?;
            waits.push(acknowledged);
            round
        };
        unchanged += round.time;
        rounds.push(round);
    }
    Ok(vec![
        Figure { row: format!("{}/0", case.name), ..before },
        of_rounds(case, &format!("{}/{CHANGES}", case.name), &rounds, rates),
        of_waits(case, &format!("{}/acknowledged", case.name), waits, rates),
    ])
}

/// Measures what a frame takes on its own, by a worker that waits for it awake or asleep.
fn idle_latency(case: &Case, traffic: &mut Traffic, rates: &Rates) -> Result<Vec<Figure>, BenchError> {
    let ways = [("spinning", 100_000, Waiting::Spinning), ("sleeping", WAITS, Waiting::Sleeping)];
    let figures = ways.into_iter().map(|(name, frames, waiting)| {
        // The first ones find cold caches, and a worker that has not slept before. All in one go: a worker is woken on the
        // thread on which it first slept.
        let waits = traffic.one_by_one(frames + COLD, waiting)?.split_off(COLD);
        Ok(of_waits(case, &format!("{}/{name}", case.name), waits, rates))
    });
    figures.collect()
}

fn of_rounds(case: &Case, row: &str, rounds: &[Round], rates: &Rates) -> Figure {
    let workers = f64::from(case.workers);
    let packets = rounds.len() as f64 * f64::from(case.buffers);
    let sum = |of: fn(&Round) -> u64| rounds.iter().map(of).sum::<u64>() as f64;
    let total: Duration = rounds.iter().map(|round| round.time).sum();
    let outside = sum(|round| round.outside) / packets / workers;
    let mut times: Vec<f64> =
        rounds.iter().map(|round| round.time.as_nanos() as f64 / f64::from(case.buffers)).collect();
    Figure {
        packets_per_second: packets * workers / total.as_secs_f64(),
        clocks_per_packet: sum(|round| round.clocks) * rates.core_clocks_per_tsc / packets / workers,
        outside: (outside > 0.0).then_some(outside),
        ..figure(case, row, &mut times, rates)
    }
}

/// Measures what each stage takes for a packet, less what its marks take.
fn of_stages(
    case: &Case,
    traffic: &mut Traffic,
    rates: &Rates,
) -> Result<BTreeMap<&'static str, f64>, BenchError> {
    let stages = traffic.stages(STAGED)?;
    let packets = f64::from(STAGED) * f64::from(case.buffers) * f64::from(case.workers);
    let mark = (0..1000).map(|_| timestamp_counter().abs_diff(timestamp_counter())).min().unwrap_or(0);
    let clocks =
        stages.clocks.iter().zip(stages.ends).map(|(&clocks, ends)| clocks.saturating_sub(ends * mark));
    let of = |clocks: u64| clocks as f64 * rates.core_clocks_per_tsc / packets;
    Ok(Stage::ALL.iter().map(|stage| stage.name()).zip(clocks.map(of)).collect())
}

fn of_waits(case: &Case, row: &str, waits: Vec<Duration>, rates: &Rates) -> Figure {
    let mut times: Vec<f64> = waits.iter().map(|wait| wait.as_nanos() as f64).collect();
    let mean = times.iter().sum::<f64>() / times.len().max(1) as f64;
    Figure {
        packets_per_second: 1e9 / mean,
        clocks_per_packet: mean * rates.tsc_clocks_per_nano * rates.core_clocks_per_tsc,
        ..figure(case, row, &mut times, rates)
    }
}

/// What all figures have; `times` are nanoseconds, at least one.
fn figure(case: &Case, row: &str, times: &mut [f64], rates: &Rates) -> Figure {
    times.sort_by(f64::total_cmp);
    Figure {
        row: row.to_owned(),
        flows: case.flows,
        frame_bytes: case.frame_bytes,
        workers: case.workers,
        packets_per_second: 0.0,
        clocks_per_packet: 0.0,
        p50_ns: times[times.len() / 2],
        p99_ns: times[times.len() * 99 / 100],
        core_clocks_per_tsc: rates.core_clocks_per_tsc,
        stages: None,
        outside: None,
    }
}

fn table(figures: &[Figure], conditions: &str) -> String {
    let mut table = plain_table(["ROW", "FLOWS", "BYTES", "MPPS", "CLOCKS", "P50 NS", "P99 NS"]);
    for figure in figures {
        table.add_row([
            figure.row.clone(),
            figure.flows.to_string(),
            figure.frame_bytes.to_string(),
            format!("{:.2}", figure.packets_per_second / 1e6),
            format!("{:.0}", figure.clocks_per_packet),
            format!("{:.1}", figure.p50_ns),
            format!("{:.1}", figure.p99_ns),
        ]);
    }
    let staged: Vec<&Figure> = figures.iter().filter(|figure| figure.stages.is_some()).collect();
    let stages = if staged.is_empty() { String::new() } else { stage_table(&staged) };
    let outside: Vec<f64> = figures.iter().filter_map(|figure| figure.outside).collect();
    let outside = outside.iter().sum::<f64>() / outside.len().max(1) as f64;
    let rates = figures.iter().map(|figure| figure.core_clocks_per_tsc);
    let rate = rates.sum::<f64>() / figures.len().max(1) as f64;
    format!(
        "{}\n{stages}\nCLOCKS are core clocks a packet: TSC clocks times {rate:.2} in the mean, the rate of dependent additions before each row.\n\
         {}Generator and sink took {outside:.0} TSC clocks a packet more, in no figure above.\n",
        table.trim_fmt(),
        conditions
    )
}

/// Says what the figures of so many workers were taken under, each with so many buffers in rotation.
#[must_use]
pub fn conditions(workers: u8, buffers: u32) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let who = match workers {
        1 => "One worker, ".to_owned(),
        _ if usize::from(workers) <= cores => format!(
            "{workers} workers at once, each with a node, flows, generator and sink\nof its own on a core, "
        ),
        _ => format!(
            "{workers} workers that share {cores} cores, each with a node, flows, generator and sink\nof its own, "
        ),
    };
    let few = if buffers < BUFFERS as u32 { ", which is what caches gain and no result" } else { "" };
    format!(
        "{who}from the ingress ring to the egress ring through the whole loop; captures and traces off.\n\
         {buffers} buffers in rotation for each{few}, flows in random order, both directions where a row has two.\n\
         100 leases, 1,000 Services, 250 pods behind them, or as many as the row or an option says. Checksums are known to be right, as between simulated\n\
         pods.\n"
    )
}

fn stage_table(figures: &[&Figure]) -> String {
    let mut table = plain_table([
        "ROW", "FLOWS", "BYTES", "TAKE", "PARSE", "LOOK-UP", "REWRITE", "SEND", "DECIDE", "UPKEEP",
    ]);
    for figure in figures {
        let of = |stage: Stage| figure.stages.as_ref().and_then(|stages| stages.get(stage.name()));
        let clocks = Stage::ALL.map(|stage| of(stage).map_or(String::new(), |clocks| format!("{clocks:.0}")));
        let case = [figure.row.clone(), figure.flows.to_string(), figure.frame_bytes.to_string()];
        table.add_row(case.into_iter().chain(clocks));
    }
    format!(
        "\n{}\n\nStages are core clocks a packet, in rounds of their own: to read the counter at each mark costs clocks, which\n\
         are taken off, and keeps stages from overlapping, which is not: they come to more than CLOCKS.\n",
        table.trim_fmt()
    )
}

/// How fast the clocks of this machine go.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Core clocks in a TSC clock: a chain of dependent operations takes one core clock each.
    pub core_clocks_per_tsc: f64,
    /// TSC clocks in a nanosecond.
    pub tsc_clocks_per_nano: f64,
}

impl Rates {
    /// Measures them, in about a thirtieth of a second.
    #[must_use]
    pub fn measure() -> Self {
        // Short runs, the median of many: few of them are interrupted, and no more go at the core's highest rate than rounds do.
        let run = || {
            let (steps, start) = (100_000u64, timestamp_counter());
            let mut sum = black_box(1u64);
            for step in 0..black_box(steps) {
                // Two that cannot be folded or reordered: each waits for the one before.
                sum = (sum ^ step).wrapping_add(0x9e37_79b9_7f4a_7c15);
            }
            black_box(sum);
            (2 * steps) as f64 / (timestamp_counter() - start) as f64
        };
        let (start, counter) = (Instant::now(), timestamp_counter());
        let mut rates: Vec<f64> = (0..501).map(|_| run()).collect();
        rates.sort_unstable_by(f64::total_cmp);
        let core_clocks_per_tsc = rates[rates.len() / 2];
        let clocks = (timestamp_counter() - counter) as f64;
        Self { core_clocks_per_tsc, tsc_clocks_per_nano: clocks / start.elapsed().as_nanos() as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_takes_the_place_of_all_but_what_a_row_is_about() {
        let asked = BenchEngine {
            row: Vec::new(),
            flows: Some(5),
            size: Some(512),
            services: Some(7),
            routes: Some(3),
            workers: 4,
            buffers: 64,
            stages: false,
            output: Output::Table,
        };
        let adapted = CASES.iter().map(|case| {
            let mut adapted = *case;
            adapt(&mut adapted, &asked);
            (case, adapted)
        });
        for (own, case) in adapted {
            let is = |row| own.row == row;
            assert_eq!(case.flows, if own.new { own.flows } else { 5 }, "{}", own.name);
            assert_eq!(case.services, if is(Row::ScaleServices) { own.services } else { 7 }, "{}", own.name);
            // Four homes, and a node to send to.
            assert_eq!(case.nodes, if is(Row::ScaleRoutes) { own.nodes } else { 5 }, "{}", own.name);
            assert_eq!((case.frame_bytes, case.workers, case.buffers), (512, 4, 64), "{}", own.name);
        }
    }
}
