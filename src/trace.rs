//! `flatnet trace`: one real packet's way there and its answer's back, hop by hop, with its headers.
//!
//! On a running network, or without one on a topology in virtual time. Its files: [`ask`] sends and follows, `read` sorts
//! what was noted, [`headers`] reads bytes, [`report`] is what is sent, `table` what is printed.
//!
//! Invariant: exit status 0 means that the answer came back whole.
//!
//! May depend on [`crate::client`] and [`crate::drive`]. Read first: `engine/src/trace.rs`.

pub mod ask;

pub mod headers;

pub mod report;

mod read;

mod table;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use hyper::Method;

use self::report::{Question, Report};
use crate::args::{Output, Trace, TraceProtocol};
use crate::client::{self, Client, encode};
use crate::drive::Drive;
use crate::output::{print, print_json};
use crate::topology::TimeMode;
use crate::up;

/// Runs the command.
///
/// # Errors
/// The question means nothing, or the network cannot be asked.
pub fn run(arguments: &Trace) -> miette::Result<ExitCode> {
    let Trace { from, to, protocol, port, .. } = arguments;
    let protocol = protocol.map(TraceProtocol::probe);
    let question = Question { from: from.clone(), to: to.clone(), protocol, port: *port };
    let own = !arguments.files.is_empty() || !arguments.fault.is_empty();
    let nothing_runs = arguments.selection.name.is_none() && Client::all().is_empty();
    let report = if own || nothing_runs { try_out(arguments, question)? } else { ask(arguments)? };
    match arguments.output {
        Output::Json => print_json(&report)?,
        Output::Table => {
            let color = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            print(&table::table(&report, color))?;
        }
    }
    Ok(if report.rtt_ns.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Brings a network up in virtual time for this one packet.
fn try_out(arguments: &Trace, question: Question) -> miette::Result<Report> {
    let topology = up::read(&arguments.files)?;
    let mut drive = Drive::start(&topology, TimeMode::Virtual)?;
    for fault in &arguments.fault {
        up::break_something(&mut drive, fault)?;
    }
    drive.settle();
    for warning in drive.network.warnings.drain(..) {
        eprintln!("warning: {warning}");
    }
    Ok(follow(&mut drive, question)?)
}

/// Sends a packet in a network of this process and waits for what comes of it.
///
/// # Errors
/// [`FollowError`].
pub fn follow(drive: &mut Drive, question: Question) -> Result<Report, FollowError> {
    let target = ask::resolve(&drive.network.publisher, &question)?;
    let trace = ask::begin(drive, question, target)?;
    let outcome = drive.wait_for(ask::TIMEOUT * 2, |drive| trace.outcome(drive).ok().flatten());
    Ok(trace.end(drive, outcome)?)
}

/// A packet cannot be followed.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum FollowError {
    /// The question means nothing.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Ask(#[from] ask::AskError),
    /// A worker is stuck.
    #[error(transparent)]
    Drive(#[from] crate::drive::DriveError),
}

/// Asks a running network.
fn ask(arguments: &Trace) -> miette::Result<Report> {
    let client = Client::find(arguments.selection.name.as_deref())?;
    let Trace { from, to, protocol, port, .. } = arguments;
    let mut path = format!("/v1/trace?from={}&to={}", encode(from), encode(to));
    if let Some(protocol) = protocol {
        path.push_str(&format!("&protocol={}", protocol.name()));
    }
    if let Some(port) = port {
        path.push_str(&format!("&port={port}"));
    }
    Ok(client::run(client.ask(Method::POST, &path))?)
}
