//! `flatnet down`: ends a running network and prints what became of every packet.
//!
//! Invariant: exit code 0 means that the ledger balances.
//!
//! May depend on [`crate::client`]. Read first: [`crate::ledger`].

use std::process::ExitCode;
use std::time::{Duration, Instant};

use hyper::Method;

use crate::args::Down;
use crate::client::{self, Client};
use crate::instance::socket;
use crate::ledger;
use crate::output::print_as;
use crate::views::LedgerReport;

/// How long a network may take to be gone after its ledger.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Runs the command.
///
/// # Errors
/// [`client::ClientError`].
pub fn run(arguments: &Down) -> miette::Result<ExitCode> {
    let client = Client::find(arguments.selection.name.as_deref())?;
    let report: LedgerReport = client::run(client.ask(Method::POST, "/v1/down"))?;
    // The ledger is the network's last answer; its name is free once nobody answers at its socket.
    let end = Instant::now() + LAST_WORDS;
    while Instant::now() < end && socket::running().iter().any(|(name, _)| *name == client.name) {
        std::thread::sleep(PAUSE);
    }
    print_as(arguments.output, &report, ledger::table)?;
    Ok(if report.balances { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
