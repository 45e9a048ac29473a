//! `flatnet etcd`: a local etcd of one or more members, for trying things out.
//!
//! Starts the system's `etcd` on loopback with its data below the user's state directory, and ends it again. Invariants: only what
//! this command started is ended; data outlives `down`, and a member that is gone is started on it again.
//!
//! May depend on agents' store and [`crate::instance::socket`]. Read first: etcd's clustering guide.

pub mod reach;

mod scratch;

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use flatnet_agents::store::etcd::{self, Options};
use flatnet_agents::{Etcd, Store as _, StoreError};
use futures::executor::block_on;
use miette::{Diagnostic, IntoDiagnostic as _, WrapErr as _};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::args::{EtcdCommand, EtcdDown, EtcdUp};
use crate::instance::socket;
use crate::output::{print, print_as};
pub use scratch::Scratch;

/// etcd's own port for clients; where it is taken, any.
const CLIENT_PORT: u16 = 2379;
/// How long the members may take to answer.
const LIMIT: Duration = Duration::from_secs(30);
/// How long one may take to end before it is killed.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// There is no local etcd.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum EtcdError {
    /// The program is missing.
    #[error("there is no program etcd on this host")]
    #[diagnostic(help(
        "apt-get install etcd-server; flatnet starts members of its own, so that the package's service need not run"
    ))]
    Missing,
    /// It is there already, and not as wanted.
    #[error("the local etcd has {has} members, not {wanted}")]
    #[diagnostic(help("flatnet etcd down --delete ends it and deletes its data"))]
    Members {
        /// How many it has.
        has: usize,
        /// How many are wanted.
        wanted: u8,
    },
    /// It does not answer.
    #[error("the local etcd does not answer")]
    #[diagnostic(help("its members' logs are in {}", directory.display()))]
    Silent {
        /// Where its logs are.
        directory: PathBuf,
        /// What the last member said.
        #[source]
        source: StoreError,
    },
    /// It cannot be asked.
    #[error(transparent)]
    Open(#[from] etcd::OpenError),
    /// A file of it cannot be read or written.
    #[error("{} cannot be read or written", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A member as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
    process: Option<i32>,
}

/// What a command tells.
#[derive(Debug, Serialize)]
struct Report {
    /// What `--etcd` takes.
    endpoints: Vec<String>,
    data: PathBuf,
    members: Vec<Member>,
}

/// Runs the command.
///
/// # Errors
/// The etcd cannot be started, or ended.
pub fn run(command: &EtcdCommand) -> miette::Result<ExitCode> {
    let directory = socket::state_directory().join("etcd.members");
    socket::make_private(&directory)?;
    let lock = File::open(&directory).into_diagnostic()?;
    lock.lock().into_diagnostic().wrap_err("another command holds the local etcd")?;
    match command {
        EtcdCommand::Up(arguments) => up(arguments, &directory)?,
        EtcdCommand::Down(arguments) => down(arguments, &directory)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(arguments: &EtcdUp, directory: &Path) -> miette::Result<()> {
    // Before anything is kept of one that cannot be.
    etcd().arg("--version").output().map_err(missing)?;
    let kept = read(directory)?;
    let has = kept.len();
    if let Some(wanted) = arguments.members.filter(|&wanted| has > 0 && usize::from(wanted) != has) {
        return Err(EtcdError::Members { has, wanted }.into());
    }
    let mut members = if has > 0 { kept } else { plan(arguments.members.unwrap_or(1)).into_diagnostic()? };
    write(directory, &members)?;
    let initial = initial(&members);
    for member in &mut members {
        if !is_running(directory, member) {
            let command = command(directory, member, &initial)?.process_group(0).spawn();
            member.process = Some(command.map_err(missing)?.id().cast_signed());
        }
    }
    write(directory, &members)?;
    let endpoints = endpoints(&members);
    await_answer(directory, &endpoints)?;
    let report = Report { endpoints, data: directory.into(), members };
    print_as(arguments.output, &report, |report| format!("etcd is up: {}\n", report.endpoints.join(",")))
}

/// Chooses ports: etcd's own where they are free.
fn plan(count: u8) -> io::Result<Vec<Member>> {
    let mut held = Vec::new();
    let mut port = |wanted: u16| -> io::Result<u16> {
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let listener = bind(wanted).or_else(|_| bind(0))?;
        let port = listener.local_addr()?.port();
        held.push(listener);
        Ok(port)
    };
    let member = |number: u8| {
        let first = CLIENT_PORT + 2 * u16::from(number - 1);
        let (client_port, peer_port) = (port(first)?, port(first + 1)?);
        Ok(Member { name: format!("member-{number}"), client_port, peer_port, process: None })
    };
    (1..=count).map(member).collect()
}

fn url(port: u16) -> String {
    format!("http://{}:{port}", Ipv4Addr::LOCALHOST)
}

/// Says to each member which there are.
fn initial(members: &[Member]) -> String {
    let all = members.iter().map(|member| format!("{}={}", member.name, url(member.peer_port)));
    all.collect::<Vec<_>>().join(",")
}

fn endpoints(members: &[Member]) -> Vec<String> {
    members.iter().map(|member| url(member.client_port)).collect()
}

/// Waits until the members answer.
fn await_answer(directory: &Path, endpoints: &[String]) -> Result<(), EtcdError> {
    let store =
        Etcd::open(&Options { endpoints: endpoints.to_vec(), deadline: LIMIT, ..Options::default() })?;
    let asked = block_on(store.get("/"));
    asked.map(drop).map_err(|source| EtcdError::Silent { directory: directory.into(), source })
}

/// What starts a member.
fn command(directory: &Path, member: &Member, initial: &str) -> Result<Command, EtcdError> {
    let path = directory.join(format!("{}.log", member.name));
    let failed = |source| EtcdError::File { path: path.clone(), source };
    let log = File::create(&path).map_err(failed)?;
    let (client, peer) = (url(member.client_port), url(member.peer_port));
    let mut command = etcd();
    command.arg(data_flag(directory, member)).args(["--name", &member.name]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", initial, "--initial-cluster-token", "flatnet"]);
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
    Ok(command)
}

/// The program, without what the environment says to another etcd.
fn etcd() -> Command {
    let mut command = Command::new("etcd");
    command.env_clear().envs(std::env::vars_os().filter(|(name, _)| name == "PATH"));
    command
}

fn missing(error: io::Error) -> EtcdError {
    if error.kind() == io::ErrorKind::NotFound {
        return EtcdError::Missing;
    }
    EtcdError::File { path: "etcd".into(), source: error }
}

/// The word by which a member's process is known.
fn data_flag(directory: &Path, member: &Member) -> String {
    format!("--data-dir={}", directory.join(&member.name).display())
}

/// Whether the process is there and that member; another may have its number by now.
fn is_running(directory: &Path, member: &Member) -> bool {
    let Some(process) = member.process else { return false };
    let words = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    words.split(|&octet| octet == 0).any(|word| word == data_flag(directory, member).as_bytes())
}

fn down(arguments: &EtcdDown, directory: &Path) -> miette::Result<()> {
    let mut members = read(directory)?;
    let running = end(directory, &members);
    members.iter_mut().for_each(|member| member.process = None);
    write(directory, &members)?;
    if arguments.delete {
        let failed = |source| EtcdError::File { path: directory.into(), source };
        fs::remove_dir_all(directory).map_err(failed)?;
    }
    match (running, arguments.delete) {
        (0, false) => print("etcd was not up\n"),
        (0, true) => print("etcd was not up; its data is deleted\n"),
        (_, false) => print(&format!("etcd is down; its data stays in {}\n", directory.display())),
        (_, true) => print("etcd is down; its data is deleted\n"),
    }
}

/// Ends the members that run, and says how many did.
fn end(directory: &Path, members: &[Member]) -> usize {
    let running = members.iter().filter(|member| is_running(directory, member)).count();
    for signal in [Signal::TERM, Signal::KILL] {
        let end = Instant::now() + LAST_WORDS;
        for member in members.iter().filter(|member| is_running(directory, member)) {
            if let Some(process) = member.process.and_then(Pid::from_raw) {
                // It may have ended by itself.
                let _ = kill_process(process, signal);
            }
        }
        while Instant::now() < end && members.iter().any(|member| is_running(directory, member)) {
            std::thread::sleep(PAUSE);
        }
    }
    running
}

fn path(directory: &Path) -> PathBuf {
    directory.join("members.json")
}

fn read(directory: &Path) -> miette::Result<Vec<Member>> {
    let path = path(directory);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .into_diagnostic()
            .wrap_err_with(|| format!("{} is damaged", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(EtcdError::File { path, source }.into()),
    }
}

/// Keeps the members; whole or not at all.
fn write(directory: &Path, members: &[Member]) -> miette::Result<()> {
    let text = serde_json::to_vec_pretty(members).into_diagnostic()?;
    let (path, new) = (path(directory), directory.join("members.json.new"));
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
    Ok(written.map_err(|source| EtcdError::File { path, source })?)
}
