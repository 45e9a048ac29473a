//! `flatnet up` without `--check`: a network that stays up and answers until it is ended.
//!
//! Claims the socket, brings the network up, starts the server, runs the instance on this thread. Invariants: the socket
//! is claimed before anything else and gone at the end; the ledger is printed and exit code 0 means that it balances.
//!
//! May depend on [`crate::instance`]. Read first: [`crate::instance`].

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use flatnet_agents::Embedded;
use flatnet_agents::store::embedded::{OpenError, Options};
use miette::{Diagnostic, IntoDiagnostic as _, WrapErr as _};

use crate::drive::Drive;
use crate::entrance::{self, Entrance, EntranceError};
use crate::instance::http::Server;
use crate::instance::{Desk, Instance, socket};
use crate::ledger;
use crate::network::{Cluster, Objects, Shared};
use crate::output::print;
use crate::topology::{TimeMode, Topology};
use crate::up::break_something;
use crate::views::{EntranceStatus, MachineStatus, NodeStatus, Status};

/// How a network runs.
#[derive(Debug)]
pub(crate) struct Serving<'a> {
    /// In the background.
    pub(crate) detached: bool,
    /// On what the store holds from before.
    pub(crate) keep: bool,
    /// What is broken first.
    pub(crate) faults: &'a [String],
    /// The ports of this host that lead into it.
    pub(crate) entrances: Vec<Entrance>,
    /// The file of routes that is read again on SIGHUP.
    pub(crate) routes: Option<PathBuf>,
    /// The port at which it tells how it is.
    pub(crate) health: Option<Entrance>,
    /// Its nodes in a cluster whose leases lie in an etcd.
    pub(crate) shared: Vec<Shared>,
    /// Its part in a cluster whose objects lie there, too.
    pub(crate) cluster: Option<Cluster>,
}

/// Runs a network until it is ended.
///
/// # Errors
/// Whatever keeps the network from coming up.
pub(crate) fn run(mut topology: Topology, name: &str, serving: Serving<'_>) -> miette::Result<ExitCode> {
    if serving.detached {
        // Fails only for a leader of a group, which has no terminal to lose either.
        let _ = rustix::process::setsid();
    }
    let claim = socket::claim(name)?;
    let time = topology.time.unwrap_or(TimeMode::Real);
    if let (Some(entrance), Some(node)) = (serving.entrances.first(), topology.nodes.first()) {
        if time == TimeMode::Virtual {
            return Err(EntranceError::Virtual(entrance.flag.clone()).into());
        }
        topology.pods.push(entrance::client(&node.name));
    }
    let objects = match serving.cluster {
        Some(cluster) => Objects::Cluster(cluster),
        None => Objects::Own(if serving.keep { open_store(name)? } else { Embedded::new() }),
    };
    let mut drive = Drive::start_on(&topology, time, (objects, socket::pods(name)))?;
    for fault in serving.faults {
        break_something(&mut drive, fault)?;
    }
    for shared in serving.shared {
        let now = drive.now();
        drive.network.share(shared, now);
    }
    drive.settle();
    // Before anybody is answered: who started it in the background says them again.
    for warning in drive.network.warnings.drain(..) {
        eprintln!("warning: {warning}");
    }
    let hurry = Arc::clone(&drive.hurry);
    let mut instance = Instance::new(name.to_owned(), drive);
    instance.routes = serving.routes;
    instance.open_entrances(&serving.entrances)?;
    print(&describe(&instance.status()))?;
    let listener = claim.listener.try_clone().into_diagnostic()?;
    let (desk, jobs) = Desk::new();
    let server = Server::start(listener, desk, (serving.entrances, serving.health), hurry);
    let server = server.into_diagnostic().wrap_err("the server cannot be started")?;
    let mut screen = Screen::default();
    let report = instance.run(&jobs, |instance| screen.show(instance));
    drop(jobs);
    server.end().into_diagnostic().wrap_err("the server failed")?;
    drop(claim);
    print(&ledger::table(&report))?;
    Ok(if report.balances { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The store of a name cannot be had.
#[derive(Debug, thiserror::Error, Diagnostic)]
enum StoreError {
    /// Its file is damaged.
    #[error("what {name} kept cannot be read")]
    #[diagnostic(help(
        "move {} away to begin anew, or end the process that uses it; without --keep it is not read",
        path.display()
    ))]
    Open {
        name: String,
        path: PathBuf,
        #[source]
        source: OpenError,
    },
}

/// Opens the store that lies in the user's state directory under the network's name.
fn open_store(name: &str) -> miette::Result<Embedded> {
    let path = socket::state_directory().join(name);
    socket::make_private(&path)?;
    let opened = Embedded::open(&path, Options::default());
    Ok(opened.map_err(|source| StoreError::Open { name: name.to_owned(), path, source })?)
}

/// A line per node, pod and host.
fn describe(status: &Status) -> String {
    let mut text = format!("network {} is up\n", status.name);
    for NodeStatus { name, kind, addresses, subnet, .. } in &status.nodes {
        let kind = format!("{kind:?}").to_lowercase();
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let subnet = subnet.as_ref().map_or(String::new(), |subnet| format!(" pods {subnet}"));
        text.push_str(format!("{kind:8} {name:20} {}{subnet}", addresses.join(", ")).trim_end());
        text.push('\n');
    }
    let machines = [("pod", &status.pods), ("host", &status.hosts)];
    for (kind, MachineStatus { name, address, node, .. }) in
        machines.into_iter().flat_map(|(kind, machines)| machines.iter().map(move |machine| (kind, machine)))
    {
        let node = node.as_ref().map_or(String::new(), |node| format!(" on {node}"));
        text.push_str(&format!("{kind:8} {name:20} {address}{node}\n"));
    }
    for EntranceStatus { address, leads_to } in &status.entrances {
        let (kind, to) = leads_to.as_ref().map_or(("socks", ""), |to| ("publish", to));
        text.push_str(format!("{kind:8} {:20} {to}", address.to_string()).trim_end());
        text.push('\n');
    }
    text
}

/// The block of live rates on a terminal, written over itself.
#[derive(Debug, Default)]
struct Screen {
    lines: usize,
}

impl Screen {
    fn show(&mut self, instance: &Instance) {
        let mut output = std::io::stdout().lock();
        if !output.is_terminal() {
            return;
        }
        let text = instance.rates.table(&instance.drive.network.publisher);
        let back = if self.lines > 0 { format!("\x1b[{}A\x1b[J", self.lines) } else { String::new() };
        self.lines = text.lines().count();
        // A terminal that is gone shows nothing.
        let _ = writeln!(output, "{back}{text}").and_then(|()| output.flush());
    }
}
