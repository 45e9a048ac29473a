//! `flatnet clean`: takes away what processes of flatnet's left behind that were killed.
//!
//! Interfaces, namespaces and mounts go with their processes by themselves; what stays is a node's table of rules in this network
//! namespace, a socket's file, what real pods had in their volumes, and the `lo` of a namespace that was attached. Invariant: nothing
//! of a network that runs is touched, and nothing that flatnet did not make or change.
//!
//! May depend on agents and [`crate::instance::socket`]. Read first: `agents/src/host/firewall.rs`.

use std::io;
use std::process::ExitCode;

use flatnet_agents::host::firewall::{self, FirewallError};
use flatnet_agents::runtime::loopback::put_back_all;
use miette::Diagnostic;
use serde::Serialize;

use crate::args::{self, Output};
use crate::instance::socket;
use crate::output::{print, print_json};

/// Something cannot be taken away.
#[derive(Debug, thiserror::Error, Diagnostic)]
enum CleanError {
    /// The host's rules cannot be looked at, or changed.
    #[error("the rules that nodes left in this host's tables cannot be removed")]
    #[diagnostic(help(
        "they take the capability CAP_NET_ADMIN; sockets and volumes need none, and are removed"
    ))]
    Rules(#[source] FirewallError),
    /// A namespace of somebody else's may not be entered, or its `lo` not changed.
    #[error("`lo` of a network namespace that was attached cannot be put back")]
    #[diagnostic(help(
        "it takes the capabilities CAP_SYS_ADMIN and CAP_NET_ADMIN; sockets and volumes need none, and are removed"
    ))]
    Loopback(#[source] io::Error),
}

/// What is gone now.
#[derive(Debug, Serialize)]
struct Cleaned {
    removed: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// Something is left.
pub fn run(arguments: &args::Clean) -> miette::Result<ExitCode> {
    let sockets = socket::remove_dead()?;
    let mut removed: Vec<_> = sockets.into_iter().map(|path| format!("socket {}", path.display())).collect();
    let networks = socket::dead_networks()?;
    let volumes = socket::remove_volumes(&networks)?;
    removed.extend(volumes.into_iter().map(|path| format!("files of a pod in {}", path.display())));
    let mut loopbacks = Ok(());
    for (network, _) in &networks {
        match put_back_all(network) {
            Ok(paths) => {
                let changed =
                    paths.iter().map(|path| format!("what was changed of lo in {}", path.display()));
                removed.extend(changed);
            }
            Err(error) => loopbacks = Err(error),
        }
    }
    let rules = firewall::clean();
    let tables = rules.as_deref().unwrap_or_default().iter();
    removed.extend(tables.map(|table| format!("nftables table ip {table}")));
    match arguments.output {
        Output::Json => print_json(&Cleaned { removed })?,
        // Where the rules cannot be looked at nobody knows.
        Output::Table if removed.is_empty() && (rules.is_err() || loopbacks.is_err()) => {}
        Output::Table if removed.is_empty() => print("nothing was left behind\n")?,
        Output::Table => print(&removed.iter().map(|what| format!("removed {what}\n")).collect::<String>())?,
    }
    loopbacks.map_err(CleanError::Loopback)?;
    rules.map_err(CleanError::Rules)?;
    Ok(ExitCode::SUCCESS)
}
