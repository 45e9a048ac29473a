//! Instructions for a packet on the path from ring to ring against a committed baseline, and that none of them allocates or
//! asks the system for anything.
//!
//! Callgrind counts them; unlike clocks, they do not vary with what else the machine does. `benches/instructions.txt` has a
//! line for each row. More instructions than there by more than [`TOLERANCE`] or [`MOST`] fail, and so do fewer: the baseline is to be
//! what is true. An instruction in the allocator or a system call fails whatever stands there. With `UPDATE_BASELINE=1` the
//! file is written anew. Needs valgrind.
#![allow(missing_docs, reason = "a program has no items for others")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench stops at the first surprise"
)]

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use flatnet::bench::lab::BUFFERS;
use flatnet::bench::rows::{CASES, Case, Row, Traffic};

/// Rounds that are counted.
const ROUNDS: u32 = 4;
/// What a row may differ from its baseline by, in hundredths: compilers of one version agree, their patches nearly.
const TOLERANCE: f64 = 2.0;
/// And by how many instructions at most: two hundredths of a new flow's would be more than a packet's way through a bridge may lose.
const MOST: f64 = 15.0;
/// The functions whose work is counted.
const COUNTED: &str = "*Home::forward*";
/// Stands for the number of a case: what must be seen, or zeros say nothing.
const GUILTY: &str = "guilty";
/// Functions of the C library that give or take memory.
const ALLOCATORS: [&str; 5] = ["malloc", "calloc", "realloc", "free", "posix_memalign"];

/// How mimalloc's begin.
const MIMALLOC: &str = "mi_";

/// What a row takes, for all its packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counts {
    instructions: u64,
    /// Of these, the allocator's own.
    allocating: u64,
    system_calls: u64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, _, index] = &arguments[..] {
        match index.as_str() {
            GUILTY => Home::forward(),
            index => run(&cases()[index.parse::<usize>().expect("the number of a case")]),
        }
        return ExitCode::SUCCESS;
    }
    let guilty = count(GUILTY);
    assert!(guilty.allocating > 0 && guilty.system_calls == 1, "what is guilty is not seen: {guilty:?}");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt");
    let counted: Vec<(String, Counts)> =
        cases().iter().enumerate().map(|(index, case)| (name(case), count(&index.to_string()))).collect();
    if std::env::var_os("UPDATE_BASELINE").is_some() {
        std::fs::write(&file, baseline(&counted)).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    let mut failed = false;
    println!(
        "{:<28} {:>12} {:>9} {:>12} {:>13}",
        "row", "instructions", "baseline", "allocating", "system calls"
    );
    for (name, counts) in &counted {
        let found = per_packet(counts);
        let line =
            expected.lines().find_map(|line| line.rsplit_once(' ').filter(|(row, _)| row.trim() == name));
        let known = line.and_then(|(_, figure)| figure.parse::<f64>().ok()).unwrap_or(0.0);
        let Counts { allocating, system_calls, .. } = counts;
        let is_near = (found - known).abs() <= (known * TOLERANCE / 100.0).min(MOST);
        let is_good = is_near && allocating + system_calls == 0;
        failed |= !is_good;
        println!(
            "{name:<28} {found:>12.1} {known:>9.1} {allocating:>12} {system_calls:>13}{}",
            if is_good { "" } else { "  <--" }
        );
    }
    if failed {
        eprintln!(
            "instructions: a row is not at its baseline; if it is meant to be, run this with UPDATE_BASELINE=1"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The cases at few flows, in rounds: at more, memory decides and not instructions.
fn cases() -> Vec<Case> {
    let few = |case: &Case| Case { flows: if case.new { 1 << 13 } else { case.flows }, ..*case };
    let counts = |case: &Case| case.flows < 100_000 && case.row != Row::IdleLatency;
    CASES.iter().map(few).filter(counts).collect()
}

fn name(case: &Case) -> String {
    format!("{}/{}", case.name, case.frame_bytes)
}

/// What runs under callgrind.
fn run(case: &Case) {
    let mut traffic = Traffic::new(case).unwrap();
    traffic.stop_clock();
    traffic.rounds(ROUNDS).unwrap();
}

/// Allocates once and asks the system once, under the name that is counted.
struct Home;

impl Home {
    #[inline(never)]
    fn forward() {
        drop(std::hint::black_box(vec![1_u8; 100]));
        std::thread::yield_now();
    }
}

fn count(index: &str) -> Counts {
    let out = std::env::temp_dir().join(format!("flatnet-instructions-{}", std::process::id()));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-systime=yes", "--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().unwrap())
        .args(["count", index])
        .output()
        .expect("valgrind, which is to be installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let profile = std::fs::read_to_string(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    read(&profile)
}

/// Reads a profile of callgrind's: what was counted in all, and in the allocator.
fn read(profile: &str) -> Counts {
    let totals = profile.lines().find_map(|line| line.strip_prefix("totals: ")).expect("totals");
    let totals: Vec<u64> = totals.split(' ').map(|total| total.parse().unwrap()).collect();
    let mut counts = Counts {
        instructions: totals[0],
        system_calls: totals.get(1).copied().unwrap_or(0),
        ..Counts::default()
    };
    assert!(counts.instructions > 0, "{COUNTED} was never called");
    // The lines below a function's name are its own cost, but for the one behind each `calls=`.
    let (mut is_allocator, mut is_call) = (false, false);
    for line in profile.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            is_allocator = ALLOCATORS.contains(&name) || name.trim_start_matches('_').starts_with(MIMALLOC);
        } else if line.starts_with("calls=") {
            is_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            if is_allocator && !is_call {
                counts.allocating +=
                    line.split(' ').nth(1).and_then(|cost| cost.parse::<u64>().ok()).unwrap_or(0);
            }
            is_call = false;
        }
    }
    counts
}

fn per_packet(counts: &Counts) -> f64 {
    counts.instructions as f64 / (ROUNDS as usize * BUFFERS) as f64
}

fn baseline(counted: &[(String, Counts)]) -> String {
    counted.iter().fold(String::new(), |mut text, (name, counts)| {
        writeln!(text, "{name:<28} {:.1}", per_packet(counts)).unwrap();
        text
    })
}
