//! A real pod's container, seen from outside: its program, what it writes, how it ends.
//!
//! [`super::Runtime`] starts one and hears of it by its files. Invariants: nothing here waits for a program; what it wrote before it
//! ended is in its log before its end is told.
//!
//! May depend on `expand`, [`super::init`] and [`super::output`]. Read first: `init.rs`.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};

use k8s_openapi::api::core::v1::{self as core, PodSecurityContext};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::expand::expand;
use super::init::{Bind, ContainerSpec, FAILURE_FILE, INIT_FILE, PROCESS_FILE, Process, Role, left, look_up};
use super::output::{Log, Stream, remove_files};
use crate::kubelet::{Exit, KILLED};

/// Where programs are looked for when a container does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Octets that are read of a stream before others have their turn.
const READ_LIMIT: usize = 8 << 10;
/// Octets that are read after the end: more than pipes hold, unless a program of another pod writes on.
const REST_LIMIT: usize = 1 << 20;

/// A container of a real pod.
#[derive(Debug)]
pub struct Container {
    /// Its name.
    pub name: String,
    child: Child,
    state: PathBuf,
    log: Log,
    has_more: bool,
    /// How its program ended, and how many octets may still be read of what it wrote.
    ended: Option<(ExitStatus, usize)>,
    /// Whether its processes were ended.
    killed: bool,
    /// Readable when the program has ended.
    end: OwnedFd,
}

impl Container {
    /// Starts a container's program in a pod's namespaces; `state` is the container's own directory.
    ///
    /// # Errors
    /// The system's.
    pub fn start(spec: &ContainerSpec, name: &str, log: Log) -> io::Result<Self> {
        remove_files([PROCESS_FILE, INIT_FILE, FAILURE_FILE].map(|file| spec.state.join(file)))?;
        let (child, _) = Role::Container.start(spec)?;
        streams(&child).try_for_each(|stream| ioctl_fionbio(stream, true))?;
        let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        let end = pidfd_open(id, PidfdFlags::empty())?;
        let (name, state) = (name.to_owned(), spec.state.clone());
        Ok(Self { name, child, state, log, has_more: false, ended: None, killed: false, end })
    }

    /// Lists the files that can be read from when it says something or has ended.
    pub fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        streams(&self.child).chain([self.end.as_fd()])
    }

    /// Takes some of what it says, and how it ended, if it did and has nothing more to say.
    pub fn look(&mut self) -> Option<Exit> {
        // Before it listens: what was said before the end is heard.
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten().map(|status| (status, REST_LIMIT));
        }
        let heard = self.listen();
        self.has_more = heard > 0;
        let (status, rest) = self.ended.as_mut()?;
        *rest = rest.saturating_sub(heard);
        if self.has_more && *rest > 0 {
            return None;
        }
        // A full disk costs the last line.
        let _ = self.log.end();
        let code = status.code().unwrap_or(KILLED);
        Some(Exit { code, message: left(&self.state, FAILURE_FILE).unwrap_or_default() })
    }

    /// Tells whether it may have said more than was taken.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    /// Takes what it says, of each stream some; returns how many octets that were.
    fn listen(&mut self) -> usize {
        let Self { child, log, .. } = self;
        let output = child.stdout.as_mut().map_or(0, |output| take(output, Stream::Stdout, log));
        output + child.stderr.as_mut().map_or(0, |errors| take(errors, Stream::Stderr, log))
    }

    /// Sends its program a signal; one that has not begun yet is ended.
    pub fn signal(&mut self, kind: Signal) {
        signal(&mut self.child, (&self.state, PROCESS_FILE), kind);
    }

    /// Ends all of its processes; [`Container::look`] says when they have.
    pub fn kill(&mut self) {
        if !std::mem::replace(&mut self.killed, true) {
            signal(&mut self.child, (&self.state, INIT_FILE), Signal::KILL);
        }
    }

    /// Returns the directory that says which of its processes is the first.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }
}

/// Lists what a process of ours hands on of its program: standard output and error.
pub(super) fn streams(child: &Child) -> impl Iterator<Item = BorrowedFd<'_>> {
    [child.stdout.as_ref().map(AsFd::as_fd), child.stderr.as_ref().map(AsFd::as_fd)].into_iter().flatten()
}

/// Sends a signal to a process that one of ours has the number of in a file; one that has not begun yet is ended.
pub(super) fn signal(child: &mut Child, (state, file): (&Path, &str), kind: Signal) {
    let process = look_up(state, file);
    // Its file is right as long as the one that writes it is there.
    if child.try_wait().is_ok_and(|status| status.is_some()) {
        return;
    }
    match process {
        Process::Runs(process) => {
            // It may have ended meanwhile.
            let _ = pidfd_send_signal(process, kind);
        }
        Process::Ended => {}
        Process::NotYet => {
            let _ = child.kill();
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // With the process beside the program its others end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes some of what a stream says; returns how many octets, none when it has nothing to say just now or any more.
fn take(stream: &mut impl Read, kind: Stream, log: &mut Log) -> usize {
    let mut buffer = [0; READ_LIMIT];
    loop {
        match stream.read(&mut buffer) {
            Ok(length) => {
                // A full disk costs what was said, not the program.
                let _ = log.take(kind, &buffer[..length]);
                return length;
            }
            Err(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {}
            Err(_) => return 0,
        }
    }
}

/// Describes a container of a manifest; `volumes` says where each of the pod's is.
///
/// # Errors
/// What its manifest asks for and cannot be had.
pub fn spec(
    container: &core::Container,
    security: Option<&PodSecurityContext>,
    volumes: &BTreeMap<String, PathBuf>,
    (holder, state): (i32, &Path),
) -> Result<ContainerSpec, String> {
    let mut environment = Vec::new();
    for variable in container.env.iter().flatten() {
        if variable.value_from.is_some() {
            return Err(format!("env {}: valueFrom is not supported", variable.name));
        }
        let value = expand(variable.value.as_deref().unwrap_or_default(), &environment);
        environment.push((variable.name.clone(), value));
    }
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    let command: Vec<String> = words.map(|word| expand(word, &environment)).collect();
    if command.is_empty() {
        return Err("a real pod's container needs a command: there is no image to take one from".to_owned());
    }
    // What the manifest says comes after it, and instead of it.
    environment.insert(0, ("PATH".to_owned(), DEFAULT_PATH.to_owned()));
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes.get(&mount.name).ok_or_else(|| format!("volume {} is not there", mount.name))?;
        mounts.push(Bind {
            volume: volume.clone(),
            sub_path: mount.sub_path.as_ref().map(PathBuf::from).unwrap_or_default(),
            target: PathBuf::from(&mount.mount_path),
            read_only: mount.read_only.unwrap_or(false),
        });
    }
    let own = container.security_context.as_ref();
    let number = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok());
    Ok(ContainerSpec {
        sandbox: holder,
        joins: None,
        command,
        environment,
        reads: false,
        working_directory: container.working_dir.as_deref().unwrap_or("/").into(),
        user: number(own.and_then(|own| own.run_as_user).or(security.and_then(|all| all.run_as_user))),
        group: number(own.and_then(|own| own.run_as_group).or(security.and_then(|all| all.run_as_group))),
        mounts,
        state: state.to_owned(),
    })
}
