//! `flatnet down`: ends a running network and prints what became of every packet.
//!
//! Invariant: exit code 0 means that the ledger balances.
//!
//! May depend on [`crate::client`]. Read first: [`crate::ledger`].

use std::process::ExitCode;

use hyper::Method;

use crate::args::{Down, Output};
use crate::client::{self, Client};
use crate::ledger;
use crate::output::{print, print_json};
use crate::views::LedgerReport;

/// Runs the command.
///
/// # Errors
/// [`client::ClientError`].
pub fn run(arguments: &Down) -> miette::Result<ExitCode> {
    let client = Client::find(arguments.selection.name.as_deref())?;
    let report: LedgerReport = client::run(client.ask(Method::POST, "/v1/down"))?;
    match arguments.output {
        Output::Json => print_json(&report)?,
        Output::Table => print(&ledger::table(&report))?,
    }
    Ok(if report.balances { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
