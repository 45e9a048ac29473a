//! A real pod's namespaces, seen from outside: made, given an interface, ended.
//!
//! [`super::Runtime`] has one for each real pod. Invariants: it is there whole or not at all; it ends with its value.
//!
//! May depend on [`super::init`] and [`super::link`]. Read first: `init.rs`.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;

use flatnet_engine::link::tap::Tap;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use thiserror::Error;

use super::init::{Role, SandboxSpec};
use super::link::{LinkConfig, LinkError, PodNamespace};
use super::makers::VOLUMES;
use crate::pods::PodView;
use crate::volumes;

/// The directory in a pod's that has what it sees in its /etc; no container can have such a name.
pub const FILES: &str = ".etc";
/// Whoever a container runs as may read those.
const FILE_MODE: u32 = 0o644;

/// Why a real pod is not there.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// A process of ours cannot be started, or its files cannot be written.
    #[error("{} cannot be written, or no process started", path.display())]
    System {
        /// The pod's directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespaces are not there.
    #[error("the pod's namespaces cannot be made: {0}")]
    Namespaces(String),
    /// Its interface is not there.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// A pod's namespaces.
#[derive(Debug)]
pub struct Sandbox {
    /// Holds them.
    process: Child,
    /// Readable when it has ended.
    end: OwnedFd,
    /// Its number.
    pub holder: i32,
    /// Its network namespace, which outlives it as long as its TAP is open.
    pub(super) network: PodNamespace,
}

impl Sandbox {
    /// Makes a pod's namespaces and its eth0 in them; `directory` is the pod's own.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn make(directory: &Path, view: &PodView, config: &LinkConfig) -> Result<(Self, Tap), SandboxError> {
        let failed = |source| SandboxError::System { path: directory.to_owned(), source };
        let files = directory.join(FILES);
        write_files(&files, view, config).map_err(failed)?;
        let memory = memory_volumes(view, directory);
        let spec = SandboxSpec { hostname: view.name.clone(), files, memory };
        let process = Role::Sandbox.start_ready(&spec).map_err(failed)?.map_err(SandboxError::Namespaces)?;
        let holder = i32::try_from(process.id()).map_err(|_| failed(io::ErrorKind::NotFound.into()))?;
        let end = Pid::from_raw(holder).ok_or(Errno::SRCH).and_then(|id| pidfd_open(id, PidfdFlags::empty()));
        let network = PodNamespace::open(PathBuf::from(format!("/proc/{holder}/ns/net")))?;
        let end = end.map_err(|error| failed(error.into()))?;
        let sandbox = Self { process, end, holder, network };
        let tap = sandbox.network.make_interface(config)?;
        Ok((sandbox, tap))
    }

    /// Takes its eth0 down, so that what is sent to it is refused: its namespace is there until its TAP is closed.
    pub(super) fn unplug(self) {
        // That takes the system some milliseconds. Where it fails, frames go where nobody is.
        let unplug = move || self.network.take_down();
        let _ = thread::Builder::new().name("unplug".to_owned()).spawn(unplug);
    }

    /// Ends what holds the namespaces; whoever is in them still has them.
    pub fn end(&mut self) {
        // One that has ended already is no fault.
        let _ = self.process.kill();
    }

    /// Tells whether what holds them has ended.
    pub fn has_ended(&mut self) -> bool {
        // What cannot be waited for is not there.
        self.process.try_wait().map_or(true, |status| status.is_some())
    }
}

impl AsFd for Sandbox {
    /// Gives a file that can be read from when what holds the namespaces has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.end();
        let _ = self.process.wait();
    }
}

/// What pods see as /etc/hosts, /etc/resolv.conf and /etc/hostname.
fn write_files(directory: &Path, view: &PodView, config: &LinkConfig) -> io::Result<()> {
    let PodView { name, namespace, .. } = view;
    fs::create_dir_all(directory)?;
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{}\t{name}\n",
        config.address
    );
    // Where names are looked for; there is no name server yet.
    let names =
        format!("search {namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n");
    for (file, text) in [("hosts", hosts), ("resolv.conf", names), ("hostname", format!("{name}\n"))] {
        let path = directory.join(file);
        fs::write(&path, text)?;
        fs::set_permissions(path, Permissions::from_mode(FILE_MODE))?;
    }
    Ok(())
}

/// Lists the volumes that are memory: where, and for how many octets if the manifest says.
fn memory_volumes(view: &PodView, directory: &Path) -> Vec<(PathBuf, Option<usize>)> {
    let path = |name: &str| directory.join(VOLUMES).join(name);
    let volumes = view.volumes.iter();
    volumes.filter_map(|volume| Some((path(&volume.name), volumes::memory(volume)?))).collect()
}
