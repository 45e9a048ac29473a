//! The processes of ours in a real pod: one that holds its namespaces, and one beside each of its programs.
//!
//! The command line comes here when the program was started as one of them, by [`super::sandbox`] or [`super::container`], with a
//! description at standard input. They are processes because a namespace of processes begins with one, and because the mounts
//! of a program can only be made by what becomes its parent.
//!
//! Invariants: each dies with its parent (prctl(2), `PR_SET_PDEATHSIG`); when the holder dies, the system ends every process of the
//! pod, so that nothing is left behind by whatever end. They have one thread each.
//!
//! May depend on `rustix`. Read first: pid_namespaces(7), mount_namespaces(7).

use std::error::Error;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_remount,
};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, pidfd_open, set_parent_process_death_signal,
    wait, waitid,
};
use rustix::system::sethostname;
use rustix::thread::{
    ThreadNameSpaceType, UnshareFlags, disable_transparent_huge_pages, move_into_thread_name_spaces,
};
use serde::{Deserialize, Serialize};

/// The word after the program's name that leads here; then comes a [`Role`].
pub const COMMAND: &str = "pod-init";
/// What the holder says when the namespaces are as they should be.
const READY: &str = "ready";
/// The file in a container's directory that has its program's number.
pub const PROCESS_FILE: &str = "pid";
/// The file in a container's directory that says why its program did not start.
pub const FAILURE_FILE: &str = "failure";
/// Exit code of a container whose program cannot be started, as Kubernetes has it.
pub(super) const NOT_STARTED: u8 = 128;
/// How often the holder looks for processes that ended without a parent.
const REAP_INTERVAL: Duration = Duration::from_secs(5);
/// Files of a pod that are mounted over the host's.
pub const FILES: [&str; 3] = ["hosts", "resolv.conf", "hostname"];

/// What a process of ours is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// To make the namespaces and wait for the holder.
    Sandbox,
    /// To hold them.
    Pause,
    /// To start a program in them and wait for it.
    Container,
}

impl Role {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Pause => "pause",
            Self::Container => "container",
        }
    }

    /// Returns what starts a process for it.
    pub(super) fn command(self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        // There are some for each pod, and they have next to nothing to remember: no large pages for them.
        command.arg0("flatnet").args([COMMAND, self.name()]).env("MIMALLOC_ALLOW_THP", "0");
        command
    }

    /// Finds it by its word.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Sandbox, Self::Pause, Self::Container].into_iter().find(|role| role.name() == name)
    }
}

/// A pod's namespaces.
#[derive(Debug, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The name of the machine.
    pub hostname: String,
    /// Where [`FILES`] are.
    pub files: PathBuf,
}

/// A program in them.
#[derive(Debug, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The holder's number.
    pub sandbox: i32,
    /// The program and its arguments; never empty.
    pub command: Vec<String>,
    /// All of its environment.
    pub environment: Vec<(String, String)>,
    /// Whether it gets what follows the description at standard input.
    pub reads: bool,
    /// Where it begins.
    pub working_directory: PathBuf,
    /// Who it runs as, if not the one who asks.
    pub user: Option<u32>,
    /// That one's group.
    pub group: Option<u32>,
    /// What is mounted in it, in order.
    pub mounts: Vec<Bind>,
    /// Where [`PROCESS_FILE`] and [`FAILURE_FILE`] are written.
    pub state: PathBuf,
}

/// A directory or file that is also somewhere else.
#[derive(Debug, Serialize, Deserialize)]
pub struct Bind {
    /// Where it is.
    pub source: PathBuf,
    /// Where it is seen.
    pub target: PathBuf,
    /// Whether it can only be read there.
    pub read_only: bool,
}

type Failure = Box<dyn Error>;

/// Does what the role says; returns when that is over.
#[must_use]
pub fn run(role: Role) -> ExitCode {
    let done = match role {
        Role::Sandbox => sandbox(),
        Role::Pause => pause(),
        Role::Container => container(),
    };
    done.unwrap_or_else(|failure| {
        // Whoever asked reads it.
        let _ = writeln!(io::stderr(), "{failure}");
        ExitCode::from(NOT_STARTED)
    })
}

fn sandbox() -> Result<ExitCode, Failure> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let all = UnshareFlags::NEWNET
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWNS;
    unshare(all).map_err(|error| format!("namespaces cannot be made: {error}"))?;
    // It reads the description that this one has left alone, and is the first in the namespace of processes.
    let mut holder = Role::Pause.command().stdin(Stdio::inherit()).stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    if let Some(output) = &mut holder.stdout {
        BufReader::new(output).read_line(&mut said)?;
    }
    if said.trim_end() == READY {
        writeln!(io::stdout(), "{}", holder.id())?;
    }
    let status = holder.wait()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(NOT_STARTED)))
}

fn pause() -> Result<ExitCode, Failure> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let SandboxSpec { hostname, files } = serde_json::from_slice(&description()?)?;
    private_mounts()?;
    let fresh = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", fresh, None).map_err(|error| format!("/proc: {error}"))?;
    mount("sysfs", "/sys", "sysfs", fresh, None).map_err(|error| format!("/sys: {error}"))?;
    for name in FILES {
        let target = Path::new("/etc").join(name);
        // A host without the file has nobody who reads it.
        if target.exists() {
            mount_bind(files.join(name), &target)
                .map_err(|error| format!("{}: {error}", target.display()))?;
        }
    }
    sethostname(hostname.as_bytes()).map_err(|error| format!("hostname {hostname:?}: {error}"))?;
    writeln!(io::stdout(), "{READY}")?;
    loop {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        thread::sleep(REAP_INTERVAL);
    }
}

fn container() -> Result<ExitCode, Failure> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let spec: ContainerSpec = serde_json::from_slice(&description()?)?;
    let state = File::open(&spec.state)?;
    let started = start(&spec);
    let (name, text) = match &started {
        Ok(program) => (PROCESS_FILE, program.id().to_string()),
        Err(failure) => (FAILURE_FILE, failure.to_string()),
    };
    write_into(&state, name, &text)?;
    let Ok(program) = started else { return Ok(ExitCode::from(NOT_STARTED)) };
    let id = i32::try_from(program.id()).ok().and_then(Pid::from_raw).ok_or("the program has no number")?;
    // It is not buried here: as long as this process is there, its number is nobody else's.
    let status = loop {
        match waitid(WaitId::Pid(id), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Err(Errno::INTR) => {}
            ended => break ended?,
        }
    };
    let status = status.ok_or("the program did not end")?;
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(NOT_STARTED)))
}

fn start(spec: &ContainerSpec) -> Result<std::process::Child, Failure> {
    let Some((program, arguments)) = spec.command.split_first() else { return Err("no command".into()) };
    let pid = Pid::from_raw(spec.sandbox).ok_or("the pod has no process")?;
    let holder = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| format!("the pod is gone: {error}"))?;
    let all = ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::MOUNT;
    move_into_thread_name_spaces(holder.as_fd(), all)
        .map_err(|error| format!("the pod's namespaces cannot be entered: {error}"))?;
    unshare(UnshareFlags::NEWNS)?;
    private_mounts()?;
    for bind in &spec.mounts {
        let Bind { source, target, read_only } = bind;
        let failed = |error: rustix::io::Errno| format!("volume at {}: {error}", target.display());
        mount_bind_recursive(source, target).map_err(failed)?;
        if *read_only {
            let flags = MountFlags::BIND | MountFlags::RDONLY;
            mount_remount(target, flags, CString::default().as_c_str()).map_err(failed)?;
        }
    }
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(spec.environment.iter().cloned());
    command.current_dir(&spec.working_directory);
    command.stdin(if spec.reads { Stdio::inherit() } else { Stdio::null() });
    if let Some(group) = spec.group.or(spec.user) {
        command.gid(group);
    }
    if let Some(user) = spec.user {
        command.uid(user);
    }
    // This process has done without them, its programs need not.
    disable_transparent_huge_pages(false)?;
    command.spawn().map_err(|error| {
        let place = &spec.working_directory;
        let what =
            if place.is_dir() { program.clone() } else { format!("working directory {}", place.display()) };
        format!("{what}: {error}").into()
    })
}

/// Reads the line at standard input, and nothing of what follows.
fn description() -> io::Result<Vec<u8>> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while rustix::io::read(rustix::stdio::stdin(), &mut byte)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    Ok(line)
}

/// Has mounts made here seen nowhere else; the host's are seen here still.
fn private_mounts() -> Result<(), Failure> {
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", flags).map_err(|error| format!("mounts: {error}").into())
}

/// The system asks for care only where open files are parted, which these flags do not.
#[expect(deprecated, reason = "what replaces it is unsafe for the sake of a flag that is not used here")]
fn unshare(flags: UnshareFlags) -> io::Result<()> {
    Ok(rustix::thread::unshare(flags)?)
}

/// Writes a file below an open directory, whatever its path leads to by now.
fn write_into(directory: &File, name: &str, text: &str) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, openat, renameat};
    let (fresh, mode) = (format!("{name}.new"), Mode::RUSR | Mode::WUSR);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let mut file = File::from(openat(directory, &fresh, flags, mode)?);
    file.write_all(text.as_bytes())?;
    Ok(renameat(directory, &fresh, directory, name)?)
}

/// Reads what a container's process left in its directory.
pub(super) fn left(state: &Path, name: &str) -> Option<String> {
    fs::read_to_string(state.join(name)).ok()
}
