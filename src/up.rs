//! `flatnet up`: brings a network up, and checks it or keeps it running.
//!
//! Reads the topology files; with `--check` starts a [`Drive`] and tries the ways, else hands over to `serve` or
//! `background`. Invariant: exit status 0 means that everything asked for works.
//!
//! May depend on all of the command line. Read first: [`crate::check`].

pub(crate) mod background;
mod cluster;
pub(crate) mod serve;
mod table;

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use flatnet_agents::publisher::Publisher;
use flatnet_engine::link::impairment::Impairment;
use flatnet_engine::tables::NodeId;
use miette::{Diagnostic, IntoDiagnostic};

use crate::args::{Output, Up};
use crate::check::{self, Verdict};
use crate::drive::Drive;
use crate::entrance;
use crate::etcd::reach;
use crate::ledger;
use crate::network::{Network, NetworkError};
use crate::output::{print, print_json};
use crate::point;
use crate::recorder::{self, Recorder};
use crate::topology::{self, TimeMode, Topology, Underlay, Warning, is_simulated};

use serve::Serving;

/// The tour's network, when no file is given.
const TWO_NODES: &str = include_str!("../scripts/topologies/two-nodes.yaml");

/// Something asked for on the command line cannot be done.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum UpError {
    /// A fault that does not exist.
    #[error("--fault {fault} breaks nothing: {why}")]
    #[diagnostic(help("write lease:NODE, link:A:B or link:POD:NODE; {known}"))]
    Fault {
        /// What was asked for.
        fault: String,
        /// What is wrong with it.
        why: String,
        /// What there is to name.
        known: String,
    },
    /// A capture that is not one.
    #[error("--capture {0} names no file")]
    #[diagnostic(help("write POINT=FILE"))]
    Capture(String),
    /// Two captures would write over each other.
    #[error("two captures would be written to {0}")]
    #[diagnostic(help("give each --capture a file of its own"))]
    SameFile(String),
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
    // Who started this process in the background has said what the files warn of.
    let mut topology = if arguments.detached { parse(&arguments.files)?.0 } else { read(&arguments.files)? };
    let is_shared = !arguments.etcd.etcd.is_empty();
    if is_shared {
        cluster::take_part(arguments, &mut topology)?;
    }
    let captures = captures(&arguments.capture)?;
    if arguments.check {
        let on_host = topology.nodes.iter().any(|node| node.underlay == Underlay::Socket);
        let leads_out = topology.routers.iter().any(|router| router.outside);
        let is_real = on_host || leads_out || topology.pods.iter().any(|pod| !is_simulated(pod));
        let usual = if is_real { TimeMode::Real } else { TimeMode::Virtual };
        let drive = Drive::start(&topology, topology.time.unwrap_or(usual))?;
        return Ok(if check(arguments, &captures, &topology, drive)? {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    // On one host there may be several of a topology.
    let usual = arguments.nodes.first().unwrap_or(&topology.name);
    let name = &arguments.name.clone().unwrap_or_else(|| usual.clone());
    if arguments.detach {
        return background::run(&words(arguments, name), &arguments.files, name);
    }
    let Up { detached, keep, ref fault, .. } = *arguments;
    let entrances = entrance::open(&arguments.publish, arguments.socks.as_deref())?;
    let (cluster, shared) = match is_shared {
        true => cluster::join(arguments, &mut topology).map(|(cluster, shared)| (Some(cluster), shared))?,
        false => (None, Vec::new()),
    };
    let (routes, health) = (None, None);
    serve::run(
        topology,
        name,
        Serving { detached, keep, faults: fault, entrances, routes, health, shared, cluster },
    )
}

/// The words of the process in the background.
fn words(arguments: &Up, name: &str) -> Vec<OsString> {
    let mut words: Vec<OsString> = ["up", "--detached", "--name", name].map(Into::into).into();
    for path in &arguments.files {
        words.extend(["--file".into(), path.into()]);
    }
    words.extend(arguments.keep.then(|| "--keep".into()));
    for publish in &arguments.publish {
        words.extend(["--publish".into(), publish.into()]);
    }
    if let Some(socks) = &arguments.socks {
        words.extend(["--socks".into(), socks.into()]);
    }
    for fault in &arguments.fault {
        words.extend(["--fault".into(), fault.into()]);
    }
    words.extend(reach::words(&arguments.etcd));
    if !arguments.nodes.is_empty() {
        words.extend(["--nodes".into(), arguments.nodes.join(",").into()]);
    }
    words
}

/// Tries the ways, ends the network, and tells whether all work and every frame and buffer is accounted for.
fn check(
    arguments: &Up,
    captures: &[(&str, &str)],
    topology: &Topology,
    mut drive: Drive,
) -> miette::Result<bool> {
    let mut captures = CheckCaptures::open(&mut drive, captures)?;
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

/// Reads what to capture, point and file; each has a file of its own.
fn captures(asked: &[String]) -> Result<Vec<(&str, &str)>, UpError> {
    let (mut captures, mut files) = (Vec::new(), HashSet::new());
    for text in asked {
        let (point, file) = text.split_once('=').ok_or_else(|| UpError::Capture(text.clone()))?;
        if !files.insert(whole_path(Path::new(file))) {
            return Err(UpError::SameFile(file.to_owned()));
        }
        captures.push((point, file));
    }
    Ok(captures)
}

/// Spells a file's path in one way, also when the file does not exist yet.
fn whole_path(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let by_parent = || Some(parent.canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(by_parent).unwrap_or_else(|| path.to_owned())
}

/// The captures of a check, by number.
struct CheckCaptures(Vec<(u32, Recorder, Vec<u8>, String)>);

impl CheckCaptures {
    fn open(drive: &mut Drive, asked: &[(&str, &str)]) -> miette::Result<Self> {
        let mut captures = Vec::new();
        for (number, &(point, file)) in (1..).zip(asked) {
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

/// Reads the topology of the files, or the tour's, and says what it warns of.
///
/// # Errors
/// All findings at once.
pub fn read(files: &[PathBuf]) -> miette::Result<Topology> {
    let (topology, warnings) = parse(files)?;
    for warning in warnings {
        eprintln!("{:?}", miette::Report::new(warning));
    }
    Ok(topology)
}

fn parse(files: &[PathBuf]) -> miette::Result<(Topology, Vec<Warning>)> {
    Ok(if files.is_empty() {
        topology::parse(&[(PathBuf::from("two-nodes.yaml"), TWO_NODES.to_owned())])?
    } else {
        topology::read(files)?
    })
}

/// Breaks what a fault names.
///
/// # Errors
/// There is no such fault, or nothing of the name.
pub fn break_something(drive: &mut Drive, fault: &str) -> miette::Result<()> {
    let refused = |network: &Network, why: String| {
        let known = breakable(&network.publisher);
        UpError::Fault { fault: fault.to_owned(), why, known }
    };
    let network = &mut drive.network;
    match fault.split(':').collect::<Vec<_>>()[..] {
        ["lease", node] => match network.delete_lease(node) {
            Err(error @ NetworkError::NoLease(_)) => {
                return Err(refused(network, error.to_string()).into());
            }
            deleted => deleted?,
        },
        ["link", a, b] => {
            let lost = Impairment { loss: 1_000_000, ..Impairment::default() };
            for (from, to) in [(a, b), (b, a)] {
                network.publisher.link(from, to).map_err(|error| refused(network, error.to_string()))?;
                network.publisher.impair(from, to, lost).into_diagnostic()?;
            }
        }
        _ => return Err(refused(network, "it is neither a lease nor a link".to_owned()).into()),
    }
    Ok(())
}

/// Lists what a fault may name.
fn breakable(publisher: &Publisher) -> String {
    let tables = publisher.control.tables.current();
    let has_lease = |id: NodeId| Some(tables.node(id)?.bridge.as_ref()?.router.is_some());
    let nodes = publisher.nodes().into_iter().filter(|(_, id)| has_lease(*id) == Some(true));
    let nodes: Vec<String> = nodes.map(|(name, _)| name).collect();
    let machines: Vec<&str> = publisher.machines().collect();
    let pods = publisher.places().filter(|(_, place)| place.node.is_some());
    let pods: Vec<&str> = pods.map(|(name, _)| name).collect();
    let [nodes, machines, pods] = [nodes.join(", "), machines.join(", "), pods.join(", ")];
    format!("nodes with a lease are {nodes}; machines with links {machines}; pods {pods}")
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
        assert!(check(&arguments, &[], &topology, start()).unwrap());
        let mut leaking = start();
        // A buffer goes back only where somebody gives it back.
        let _lost = leaking.network.publisher.control.pool.allocate(64).unwrap();
        assert!(!check(&arguments, &[], &topology, leaking).unwrap());
    }
}
