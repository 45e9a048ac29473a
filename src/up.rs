//! `flatnet up`: brings a network up, and checks it or keeps it running.
//!
//! Reads the topology files; with `--check` starts a [`Drive`] and tries the ways, else hands over to `serve` or
//! `background`. Invariant: exit status 0 means that everything asked for works.
//!
//! May depend on all of the command line. Read first: [`crate::check`].

mod background;
mod serve;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use flatnet_engine::link::impairment::Impairment;
use miette::{Diagnostic, IntoDiagnostic, WrapErr};

use crate::args::{Output, Up};
use crate::check::{self, Verdict};
use crate::drive::Drive;
use crate::ledger;
use crate::output::{print, print_json};
use crate::point;
use crate::recorder::{self, Recorder};
use crate::topology::{self, TimeMode, Topology};

/// The tour's network, when no file is given.
const TWO_NODES: &str = include_str!("../scripts/topologies/two-nodes.yaml");

/// Something asked for on the command line cannot be done.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum UpError {
    /// A fault that does not exist.
    #[error("--fault {0} is none that exists")]
    #[diagnostic(help("write lease:NODE or link:A:B"))]
    Fault(String),
    /// A capture that is not one.
    #[error("--capture {0} names no file")]
    #[diagnostic(help("write POINT=FILE"))]
    Capture(String),
    /// A capture's file cannot be written.
    #[error("{path} cannot be written")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Runs the command.
///
/// # Errors
/// Whatever keeps the network from coming up.
pub fn run(arguments: &Up) -> miette::Result<ExitCode> {
    let topology = read(&arguments.files)?;
    if arguments.check {
        let drive = Drive::start(&topology, topology.time.unwrap_or(TimeMode::Virtual))?;
        return Ok(if check(arguments, &topology, drive)? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let name = arguments.name.as_deref().unwrap_or(&topology.name);
    if arguments.detach { background::run(arguments, name) } else { serve::run(arguments, &topology, name) }
}

/// Tries the ways, ends the network, and tells whether all work and every frame and buffer is accounted for.
fn check(arguments: &Up, topology: &Topology, mut drive: Drive) -> miette::Result<bool> {
    let mut captures = CheckCaptures::open(&mut drive, &arguments.capture)?;
    for fault in &arguments.fault {
        break_something(&mut drive, fault)?;
    }
    drive.settle();
    for warning in drive.network.warnings.drain(..) {
        eprintln!("warning: {warning}");
    }
    let mut reports = Vec::new();
    for check in check::plan(topology, &drive) {
        reports.push(check::run(&mut drive, &check)?);
        captures.collect(&mut drive)?;
    }
    captures.write()?;
    let ledger = ledger::close(drive);
    match arguments.output {
        Output::Json => print_json(&reports)?,
        Output::Table => print(&table::table(&reports))?,
    }
    let works = !reports.is_empty() && reports.iter().all(|report| report.verdict == Verdict::Ok);
    if !ledger.balances {
        eprint!("error: the packet ledger does not balance\n{}", ledger::table(&ledger));
    }
    Ok(works && ledger.balances)
}

/// The captures of a check, by number.
struct CheckCaptures(Vec<(u32, Recorder, Vec<u8>, String)>);

impl CheckCaptures {
    fn open(drive: &mut Drive, asked: &[String]) -> miette::Result<Self> {
        let mut captures = Vec::new();
        for (number, text) in (1..).zip(asked) {
            let (point, file) = text.split_once('=').ok_or_else(|| UpError::Capture(text.clone()))?;
            let resolved = point::resolve(&drive.network.publisher, point)?;
            let recorder = Recorder::new(&resolved, Duration::ZERO).into_diagnostic()?;
            recorder::listen(drive, number, &resolved)?;
            captures.push((number, recorder, Vec::new(), file.to_owned()));
        }
        Ok(Self(captures))
    }

    fn collect(&mut self, drive: &mut Drive) -> miette::Result<()> {
        for (number, recorder, bytes, _) in &mut self.0 {
            let taken = recorder::take(drive, *number)?;
            for frame in taken.frames {
                recorder.add(&frame).into_diagnostic()?;
            }
            recorder.lose(taken.lost);
            bytes.append(&mut recorder.take());
        }
        Ok(())
    }

    fn write(self) -> Result<(), UpError> {
        for (_, recorder, bytes, path) in self.0 {
            recorder::warn_of_loss(&path, recorder.all_lost);
            std::fs::write(&path, bytes).map_err(|source| UpError::File { path, source })?;
        }
        Ok(())
    }
}

/// Reads the topology of the files, or the tour's.
///
/// # Errors
/// All findings at once.
pub fn read(files: &[PathBuf]) -> miette::Result<Topology> {
    let mut texts = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).into_diagnostic();
        texts.push((file.clone(), text.wrap_err_with(|| format!("{} cannot be read", file.display()))?));
    }
    if texts.is_empty() {
        texts.push((PathBuf::from("two-nodes.yaml"), TWO_NODES.to_owned()));
    }
    let (topology, warnings) = topology::parse(&texts)?;
    for warning in warnings {
        eprintln!("{:?}", miette::Report::new(warning));
    }
    Ok(topology)
}

/// Breaks what a fault names.
///
/// # Errors
/// There is no such fault, or nothing of the name.
pub fn break_something(drive: &mut Drive, fault: &str) -> miette::Result<()> {
    match fault.split(':').collect::<Vec<_>>()[..] {
        ["lease", node] => drive.network.delete_lease(node)?,
        ["link", a, b] => {
            let lost = Impairment { loss: 1_000_000, ..Impairment::default() };
            for (from, to) in [(a, b), (b, a)] {
                drive.network.publisher.impair(from, to, lost).into_diagnostic()?;
            }
        }
        _ => return Err(UpError::Fault(fault.to_owned()).into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Arguments, Command};

    #[test]
    fn a_check_fails_when_a_buffer_is_lost_though_every_way_works() {
        let Command::Up(arguments) = Arguments::parse_from(["flatnet", "up", "--check"]).command else {
            unreachable!("that is what was written")
        };
        let topology = read(&[]).unwrap();
        let start = || Drive::start(&topology, TimeMode::Virtual).unwrap();
        assert!(check(&arguments, &topology, start()).unwrap());
        let mut leaking = start();
        // A buffer goes back only where somebody gives it back.
        let _lost = leaking.network.publisher.control.pool.allocate(64).unwrap();
        assert!(!check(&arguments, &topology, leaking).unwrap());
    }
}
