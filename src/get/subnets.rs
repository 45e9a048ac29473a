//! `flatnet get subnets`: who holds which pod subnet, and for how long yet.
//!
//! Asks a running network, or an etcd. Invariant: what else lies beside the leases is a warning on standard error, or in the JSON.
//!
//! May depend on [`crate::subnets`]. Read first: [`crate::views::SubnetReport`].

use std::collections::BTreeMap;
use std::process::ExitCode;

use flatnet_agents::store::etcd::OpenError;
use flatnet_agents::{Etcd, StoreError};
use futures::executor::block_on;
use hyper::Method;
use miette::{Diagnostic, IntoDiagnostic as _};

use crate::args::{Get, Output};
use crate::client::{self, Client};
use crate::etcd::reach::{options, prefix};
use crate::output::{print, print_json};
use crate::views::{SubnetEntry, SubnetReport};

/// The columns.
pub(super) const HEADER: [&str; 7] = ["SUBNET", "OWNER", "NODE", "BACKEND", "AGE", "LEFT", "REVISION"];

/// Why there is no list.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub(super) enum SubnetsError {
    /// An etcd has leases only.
    #[error("{0} are no part of what lies in an etcd; subnets are")]
    #[diagnostic(help("ask a running network for them, without --etcd"))]
    Objects(&'static str),
    /// The etcd cannot be asked.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It does not answer.
    #[error("the etcd gives no list of subnets")]
    Store(#[from] StoreError),
    /// Two are meant.
    #[error("subnets are asked for of a network, or of an etcd, not of both")]
    #[diagnostic(help("leave out --name or --etcd"))]
    Both,
    /// Nobody holds it.
    #[error("nobody holds a subnet {0}")]
    None(String),
}

/// Runs the command.
pub(super) fn run(arguments: &Get) -> miette::Result<ExitCode> {
    let mut report = if arguments.etcd.etcd.is_empty() {
        let client = Client::find(arguments.selection.name.as_deref())?;
        client::run(client.ask(Method::GET, "/v1/subnets"))?
    } else if arguments.selection.name.is_some() {
        return Err(SubnetsError::Both.into());
    } else {
        of_etcd(arguments)?
    };
    if let Some(wanted) = &arguments.object {
        report.items.retain(|item| item.subnet == *wanted);
        if report.items.is_empty() {
            return Err(SubnetsError::None(wanted.clone()).into());
        }
    }
    match arguments.output {
        Output::Json => print_json(&report)?,
        Output::Table => {
            let items = report.items.iter().map(|item| serde_json::to_value(item).into_diagnostic());
            print(&super::table(arguments.kind, items.collect::<Result<_, _>>()?)?)?;
            for warning in &report.warnings {
                eprintln!("warning: {}: {}", warning.key, warning.why);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn of_etcd(arguments: &Get) -> miette::Result<SubnetReport> {
    let etcd = Etcd::open(&options(&arguments.etcd, 0)?).map_err(SubnetsError::Open)?;
    let report = block_on(crate::subnets::list(&etcd, prefix(&arguments.etcd), &BTreeMap::new()));
    Ok(report.map_err(SubnetsError::Store)?)
}

/// A row of the table.
pub(super) fn row(entry: &SubnetEntry) -> [String; 7] {
    let time = |seconds: Option<u64>, without: &str| seconds.map_or_else(|| without.to_owned(), short);
    [
        entry.subnet.clone(),
        entry.public_ip.to_string(),
        entry.node.clone().unwrap_or_else(|| "<none>".to_owned()),
        entry.backend.clone(),
        time(entry.age, "<none>"),
        time(entry.left, "reserved"),
        entry.revision.to_string(),
    ]
}

/// Writes a time as kubectl does, in its two largest units.
fn short(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        let all = [0, 119, 120, 7199, 7200, 86_400].map(short);
        assert_eq!(all, ["0s", "119s", "2m0s", "119m59s", "2h0m", "24h0m"]);
    }
}
