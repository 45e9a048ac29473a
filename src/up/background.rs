//! `flatnet up -d`: the same command again, in the background, until its socket answers.
//!
//! Starts this program detached from the terminal, with a log file for what it prints. Invariants: when the command
//! returns with 0 the network answers; when it fails, what the background process said stands before the error.
//!
//! May depend on [`crate::client`]. Read first: [`crate::up`].

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use hyper::Method;
use miette::{Diagnostic, IntoDiagnostic as _, WrapErr as _};

use crate::client::{self, Client};
use crate::instance::socket;
use crate::output::print;
use crate::views::{EntranceStatus, NodeKind, Status};

/// How long the network may take to answer.
const LIMIT: Duration = Duration::from_secs(60);
/// Warnings that are said again.
const WARNINGS: usize = 20;
/// Where this process's own files are, which the one in the background has not.
const OPEN: [&str; 3] = ["/dev/fd", "/dev/stdin", "/proc/self"];
/// Time between two looks.
const POLL: Duration = Duration::from_millis(20);

/// The background process did not come up.
#[derive(Debug, thiserror::Error, Diagnostic)]
enum BackgroundError {
    /// It ended.
    #[error("the network {name} did not come up")]
    #[diagnostic(help("what it said is above, and in {}", log.display()))]
    Ended { name: String, log: PathBuf },
    /// A file that can be read once only: this program checks it, and the background one cannot read it any more.
    #[error("{} is no file that the network in the background could read", path.display())]
    #[diagnostic(help("-d takes files; write it to one, or run it without -d"))]
    NoFile { path: PathBuf },
    /// It does not answer.
    #[error("the network {name} does not answer after {LIMIT:?}")]
    #[diagnostic(help("its log is in {}", log.display()))]
    Silent { name: String, log: PathBuf },
}

/// Starts a network in the background: this program with other words. It reads the files again.
///
/// # Errors
/// It does not come up.
pub(crate) fn run(words: &[OsString], files: &[PathBuf], name: &str) -> miette::Result<ExitCode> {
    socket::path(name)?;
    if socket::running().iter().any(|(running, _)| running == name) {
        return Err(socket::SocketError::Running { name: name.to_owned() }.into());
    }
    let is_file = |path: &&PathBuf| {
        !OPEN.iter().any(|it| path.starts_with(it)) && std::fs::metadata(path).is_ok_and(|it| it.is_file())
    };
    if let Some(path) = files.iter().find(|path| !is_file(path)) {
        return Err(BackgroundError::NoFile { path: path.clone() }.into());
    }
    socket::make_private(&socket::state_directory())?;
    let log = socket::log(name);
    let mut child = spawn(words, &log)?;
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        if child.try_wait().into_diagnostic()?.is_some() {
            // As it is: it has its lines already.
            eprint!("{}", std::fs::read_to_string(&log).unwrap_or_default());
            return Err(BackgroundError::Ended { name: name.to_owned(), log }.into());
        }
        if let Some(status) = answers(name, child.id()) {
            print(&welcome(&status, socket::running().len() > 1))?;
            repeat_warnings(&log);
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(POLL);
    }
    // It would come up later and surprise.
    child.kill().into_diagnostic()?;
    Err(BackgroundError::Silent { name: name.to_owned(), log }.into())
}

fn spawn(words: &[OsString], log: &Path) -> miette::Result<Child> {
    let file = File::create(log)
        .into_diagnostic()
        .wrap_err_with(|| format!("{} cannot be written", log.display()))?;
    let errors = file.try_clone().into_diagnostic()?;
    let program = std::env::current_exe().into_diagnostic().wrap_err("this program cannot be found")?;
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(file).stderr(errors);
    command.spawn().into_diagnostic().wrap_err("the background process cannot be started")
}

/// Says again what the network has warned of so far, as it would have without `-d`.
fn repeat_warnings(log: &Path) {
    let said = std::fs::read_to_string(log).unwrap_or_default();
    let warnings = || said.lines().filter(|line| line.starts_with("warning: "));
    warnings().take(WARNINGS).for_each(|warning| eprintln!("{warning}"));
    if let more @ 1.. = warnings().count().saturating_sub(WARNINGS) {
        eprintln!("{} more in {}", counted(more, "warning"), log.display());
    }
}

/// Says what runs and what to do next; with several networks the commands say which.
fn welcome(status: &Status, several: bool) -> String {
    let Status { name, nodes, pods, hosts, entrances, .. } = status;
    let nodes = nodes.iter().filter(|node| node.kind == NodeKind::Node).count();
    let which = if several { format!(" --name {name}") } else { String::new() };
    let from = pods.iter().find(|pod| pod.simulated && !pod.ended);
    let to = from.and_then(|from| pods.iter().rfind(|pod| pod.name != from.name && !pod.ended));
    let try_it = match from.zip(to) {
        Some((from, to)) => format!("exec{which} {} -- ping -c 2 {}", from.name, to.address),
        None => "status".to_owned(),
    };
    let entrances = entrances.iter().map(|EntranceStatus { address, leads_to }| match leads_to {
        Some(to) => format!("  {address} → {to}\n"),
        None => format!("  {address} is a SOCKS5 proxy\n"),
    });
    let entrances: String = entrances.collect();
    format!(
        "network {name} is up: {}, {}, {}\n{entrances}  flatnet {try_it}\n  flatnet down{which}\n",
        counted(nodes, "node"),
        counted(pods.len(), "pod"),
        counted(hosts.len(), "host")
    )
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn answers(name: &str, pid: u32) -> Option<Status> {
    let client = Client::find(Some(name)).ok()?.within(POLL * 10);
    let status = client::run(client.ask::<Status>(Method::GET, "/v1/status"));
    status.ok().filter(|status| status.pid == pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::MachineStatus;

    #[test]
    fn who_starts_a_network_reads_what_runs_and_what_to_do_next() {
        let pod = |name: &str, address: [u8; 4]| MachineStatus {
            name: name.to_owned(),
            address: address.into(),
            node: Some("node-1".to_owned()),
            simulated: true,
            ended: false,
        };
        let mut status = Status {
            name: "lab".to_owned(),
            pid: 1,
            time: "real".to_owned(),
            uptime: 0.0,
            nodes: Vec::new(),
            pods: vec![pod("a", [10, 1, 5, 2]), pod("shop/b", [10, 1, 5, 3])],
            hosts: Vec::new(),
            entrances: Vec::new(),
        };
        let up = "network lab is up: 0 nodes";
        assert_eq!(
            welcome(&status, true),
            format!(
                "{up}, 2 pods, 0 hosts\n  flatnet exec --name lab a -- ping -c 2 10.1.5.3\n  flatnet down --name lab\n"
            )
        );
        status.entrances = ["8080", "1080"]
            .map(|port| EntranceStatus {
                address: format!("127.0.0.1:{port}").parse().unwrap(),
                leads_to: (port == "8080").then(|| "web:80".to_owned()),
            })
            .into();
        let said = welcome(&status, false);
        assert!(said.contains("\n  127.0.0.1:8080 → web:80\n  127.0.0.1:1080 is a SOCKS5 proxy\n"), "{said}");
        status.entrances.clear();
        status.pods[1].ended = true;
        let said = welcome(&status, false);
        assert!(said.contains("\n  flatnet status\n"), "who has ended answers nobody: {said}");
        status.pods.truncate(1);
        assert_eq!(
            welcome(&status, false),
            format!("{up}, 1 pod, 0 hosts\n  flatnet status\n  flatnet down\n")
        );
    }
}
