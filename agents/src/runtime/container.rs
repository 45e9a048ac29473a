//! A real pod's container, seen from outside: its program, what it writes, how it ends.
//!
//! [`super::Runtime`] starts one and hears of it by its files. Invariants: nothing here waits for a program; what it wrote before it
//! ended is in its log before its end is told.
//!
//! May depend on [`super::init`] and [`super::output`]. Read first: `init.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;

use k8s_openapi::api::core::v1::{self as core, PodSecurityContext};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::init::{Bind, ContainerSpec, FAILURE_FILE, PROCESS_FILE, Role, left};
use super::output::{Log, Stream};
use super::sandbox;
use crate::kubelet::{Exit, KILLED};

/// Where programs are looked for when a container does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Octets that are read of a stream before others have their turn.
const READ_LIMIT: usize = 1 << 20;

/// A container of a real pod.
#[derive(Debug)]
pub struct Container {
    /// Its name.
    pub name: String,
    child: Child,
    state: PathBuf,
    log: Log,
    has_more: bool,
    /// Readable when the program has ended.
    end: OwnedFd,
}

impl Container {
    /// Starts a container's program in a pod's namespaces; `state` is the container's own directory.
    ///
    /// # Errors
    /// The system's.
    pub fn start(spec: &ContainerSpec, name: &str, log: PathBuf) -> io::Result<Self> {
        for file in [PROCESS_FILE, FAILURE_FILE] {
            match fs::remove_file(spec.state.join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        let log = Log::open(log)?;
        let (child, _) = sandbox::start(Role::Container, spec)?;
        streams(&child).try_for_each(|stream| ioctl_fionbio(stream, true))?;
        let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        let end = pidfd_open(id, PidfdFlags::empty())?;
        Ok(Self { name: name.to_owned(), child, state: spec.state.clone(), log, has_more: false, end })
    }

    /// Lists the files that can be read from when it says something or has ended.
    pub fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        streams(&self.child).chain([self.end.as_fd()])
    }

    /// Takes what it says, and how it ended, if it did.
    pub fn look(&mut self) -> Option<Exit> {
        // Before it listens: what was said before the end is heard.
        let status = self.child.try_wait().ok().flatten();
        self.listen();
        let status = status?;
        while self.has_more {
            self.listen();
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

    fn listen(&mut self) {
        let Self { child, log, .. } = self;
        let output = child.stdout.as_mut().is_some_and(|output| take(output, Stream::Stdout, log));
        let errors = child.stderr.as_mut().is_some_and(|errors| take(errors, Stream::Stderr, log));
        self.has_more = output || errors;
    }

    /// Sends its program a signal; one that has not begun yet is ended.
    pub fn signal(&mut self, kind: Signal) {
        signal(&mut self.child, &self.state, kind);
    }
}

/// Lists what a process of ours hands on of its program: standard output and error.
pub(super) fn streams(child: &Child) -> impl Iterator<Item = BorrowedFd<'_>> {
    [child.stdout.as_ref().map(AsFd::as_fd), child.stderr.as_ref().map(AsFd::as_fd)].into_iter().flatten()
}

/// Sends a signal to the program beside a process of ours; one that has not begun yet is ended.
pub(super) fn signal(child: &mut Child, state: &Path, kind: Signal) {
    let program = left(state, PROCESS_FILE).and_then(|text| text.parse().ok()).and_then(Pid::from_raw);
    let program = program.map(|id| pidfd_open(id, PidfdFlags::empty()));
    // As long as that process is there the number was the program's when it was opened.
    if child.try_wait().is_ok_and(|status| status.is_some()) {
        return;
    }
    match program {
        Some(Ok(program)) => {
            // It may have ended meanwhile.
            let _ = pidfd_send_signal(program, kind);
        }
        Some(Err(_)) => {}
        None => {
            let _ = child.kill();
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Its program is ended with the pod; this is the process beside it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a stream until it has nothing more to say just now; true when it may.
fn take(stream: &mut impl Read, kind: Stream, log: &mut Log) -> bool {
    let mut buffer = vec![0; 64 << 10];
    for _ in 0..READ_LIMIT / buffer.len() {
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(length) => {
                // A full disk costs what was said, not the program.
                let _ = log.take(kind, &buffer[..length]);
            }
            Err(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {}
            Err(_) => return false,
        }
    }
    true
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
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    let command: Vec<String> = words.cloned().collect();
    if command.is_empty() {
        return Err("a real pod's container needs a command: there is no image to take one from".to_owned());
    }
    let mut environment = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned())];
    for variable in container.env.iter().flatten() {
        let value = variable.value.clone();
        if variable.value_from.is_some() {
            return Err(format!("env {}: valueFrom is not supported", variable.name));
        }
        environment.push((variable.name.clone(), value.unwrap_or_default()));
    }
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let source = volumes.get(&mount.name).ok_or_else(|| format!("volume {} is not there", mount.name))?;
        let source = mount.sub_path.as_ref().map_or_else(|| source.clone(), |path| source.join(path));
        mounts.push(Bind {
            source,
            target: PathBuf::from(&mount.mount_path),
            read_only: mount.read_only.unwrap_or(false),
        });
    }
    let own = container.security_context.as_ref();
    let number = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok());
    Ok(ContainerSpec {
        sandbox: holder,
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
