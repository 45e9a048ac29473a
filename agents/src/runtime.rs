//! Pods that are real: their programs are the host's own, in namespaces of the pod's, behind a TAP.
//!
//! The publisher asks for one when a pod is [`PodKind::Real`](crate::pods::PodKind), and looks in now and then for what
//! became of it: nobody waits. Files, in the order of a pod's life:
//!
//! - `ear`: whose turn it is of those that say something;
//! - `expand`: variables in what a container's manifest says;
//! - `makers`: threads that make what takes the system a while;
//! - [`privileges`]: what that takes;
//! - [`sandbox`]: its namespaces, held by a process;
//! - [`link`]: its eth0 in them;
//! - [`container`]: its programs;
//! - [`output`]: what they write, as files;
//! - `news`: what became of it;
//! - `again`: what it is given again when it lost it;
//! - [`loopback`]: what others' namespaces were before;
//! - [`exec`]: programs that somebody runs there besides;
//! - [`init`]: what those processes of ours do.
//!
//! Invariants: a pod that is told to stop keeps its network until its programs have ended, or its time is over; whatever ends
//! this process ends all pods' programs, and leaves files in the pods' directories only.
//!
//! May depend on the engine's TAP, `mio`, `rustix`, and [`crate::pods`]. Read first: the pod lifecycle of Kubernetes, "Pod
//! termination"; namespaces(7).

mod ear;

mod expand;

mod makers;

pub mod privileges;

pub mod sandbox;

pub mod link;

pub mod loopback;

pub mod container;

pub mod output;

mod news;

mod again;

pub mod exec;

pub mod init;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use flatnet_engine::link::tap::Tap;
use mio::Token;
use rustix::process::Signal;
use thiserror::Error;

use crate::kubelet::{Exit, Start};
use crate::pods::PodView;
use again::Lost;
use container::Container;
use ear::Ear;
use exec::Exec;
use init::{ContainerSpec, NOT_STARTED};
use link::LinkConfig;
use makers::{Made, Makers, Order};
pub use news::News;
use output::Log;
use sandbox::{Sandbox, SandboxError};

/// Pods that ended whose logs are kept.
const LOGS_KEPT: usize = 100;
/// The directories in a pod's that go with it; logs stay.
pub const OF_A_POD: [&str; 2] = [makers::VOLUMES, sandbox::FILES];

/// Why a real pod cannot be had.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// Its namespaces or its interface.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Its files.
    #[error("{} cannot be used", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A volume of it.
    #[error("volume {name}: {why}")]
    Volume {
        /// Its name.
        name: String,
        /// Why.
        why: String,
    },
}

/// A pod that was made, or could not be.
#[derive(Debug)]
pub struct Prepared {
    /// The pod.
    pub view: Arc<PodView>,
    /// Its eth0.
    pub tap: Result<Tap, RuntimeError>,
    /// Of one that was lost, which of its containers start.
    pub again: Option<Vec<usize>>,
}

/// The real pods of this process.
#[derive(Debug)]
pub struct Runtime {
    directory: PathBuf,
    /// The directory, locked: its files are of a network that runs.
    claim: Option<File>,
    ear: Option<Ear>,
    makers: Makers,
    /// Pods that are being made, by uid.
    making: BTreeSet<String>,
    /// By uid.
    pods: BTreeMap<String, RealPod>,
    /// Pods that were told to stop.
    stopping: BTreeSet<String>,
    /// Pods whose namespaces are gone.
    lost: BTreeMap<String, Lost>,
    /// Pods of whose interfaces one changed, each once, in that order.
    stirred: VecDeque<String>,
    /// Files of pods that ended, the first to end first.
    ended: VecDeque<PathBuf>,
}

#[derive(Debug)]
struct RealPod {
    view: Arc<PodView>,
    directory: PathBuf,
    sandbox: Sandbox,
    token: Token,
    volumes: BTreeMap<String, PathBuf>,
    containers: BTreeMap<usize, (Token, Container)>,
    /// How often each of its containers started.
    starts: BTreeMap<usize, u32>,
    /// How many programs were run in it besides.
    execs: u32,
    /// When programs that were told to stop are ended.
    deadline: Option<Instant>,
}

/// Returns the name of the directory of a pod's files.
#[must_use]
pub fn pod_directory(namespace: &str, name: &str, uid: &str) -> String {
    format!("{namespace}_{name}_{uid}")
}

impl Runtime {
    /// Makes one that keeps its pods' files below a directory, which need not be there.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            claim: None,
            ear: None,
            makers: Makers::default(),
            making: BTreeSet::new(),
            pods: BTreeMap::new(),
            stopping: BTreeSet::new(),
            lost: BTreeMap::new(),
            stirred: VecDeque::new(),
            ended: VecDeque::new(),
        }
    }

    /// Has the directory of all pods' files be this process's, and returns it. What is there is of a process that has ended: what
    /// that changed elsewhere is put back.
    ///
    /// # Errors
    /// The system's.
    pub fn claim(&mut self) -> io::Result<&Path> {
        if self.claim.is_none() {
            loopback::put_back_all(&self.directory)?;
            fs::create_dir_all(&self.directory)?;
            for entry in fs::read_dir(&self.directory)? {
                let path = entry?.path();
                // Notes of what somebody uses yet.
                if path.is_dir() && !path.ends_with(loopback::NOTES) {
                    fs::remove_dir_all(path)?;
                }
            }
            let claim = File::open(&self.directory)?;
            claim.lock()?;
            self.claim = Some(claim);
        }
        Ok(&self.directory)
    }

    /// Begins to make a pod's namespaces with an eth0 in them; [`Runtime::take_made`] says when they are there.
    ///
    /// # Errors
    /// [`RuntimeError::File`].
    pub fn add(&mut self, view: &Arc<PodView>, config: LinkConfig) -> Result<(), RuntimeError> {
        let directory = self.directory_of(view);
        let failed = |source| RuntimeError::File { path: directory.clone(), source };
        self.ear().map_err(failed)?;
        let order = Order { view: Arc::clone(view), config, directory: directory.clone() };
        self.makers.give(order).map_err(failed)?;
        self.making.insert(view.uid.clone());
        Ok(())
    }

    /// Tells whether any pod is being made.
    #[must_use]
    pub fn is_making(&self) -> bool {
        self.makers.is_busy()
    }

    /// Takes the pods that have been made since the last call, and those that could not be; their containers are started one by
    /// one.
    pub fn take_made(&mut self) -> Vec<Prepared> {
        let mut prepared = Vec::new();
        for (view, made) in self.makers.take_done() {
            if self.making.remove(&view.uid) {
                let again = self.take_due(&view.uid);
                let tap = made.and_then(|made| self.adopt(&view, made));
                prepared.push(Prepared { view, tap, again });
            } else {
                // One that was told to stop meanwhile ends with what was made.
                drop(made);
                self.forget_files(self.directory_of(&view));
            }
        }
        prepared
    }

    fn adopt(&mut self, view: &Arc<PodView>, made: Made) -> Result<Tap, RuntimeError> {
        let Made { directory, volumes, sandbox, tap } = made;
        let owner = (view.uid.clone(), None);
        let token = self.ear().and_then(|ear| ear.watch([sandbox.as_fd(), sandbox.network.as_fd()], owner));
        let token = token.map_err(|source| RuntimeError::File { path: directory.clone(), source })?;
        let lost = self.lost.remove(&view.uid);
        let (starts, execs) = lost.map(|lost| (lost.starts, lost.execs)).unwrap_or_default();
        let pod = RealPod {
            view: Arc::clone(view),
            directory,
            sandbox,
            token,
            volumes,
            containers: BTreeMap::new(),
            starts,
            execs,
            deadline: None,
        };
        self.pods.insert(view.uid.clone(), pod);
        Ok(tap)
    }

    /// Tells whether a pod is one of these, or will be.
    #[must_use]
    pub fn has(&self, uid: &str) -> bool {
        self.pods.contains_key(uid) || self.making.contains(uid) || self.lost.contains_key(uid)
    }

    fn directory_of(&self, view: &PodView) -> PathBuf {
        self.directory.join(pod_directory(&view.namespace, &view.name, &view.uid))
    }

    /// Starts the container at a place in a pod's manifest.
    pub fn start(&mut self, uid: &str, index: usize) -> Start {
        match self.try_start(uid, index) {
            Ok(()) => Start::Runs,
            Err(message) => Start::Failed(Exit { code: NOT_STARTED.into(), message }),
        }
    }

    fn try_start(&mut self, uid: &str, index: usize) -> Result<(), String> {
        let pod = self.pods.get_mut(uid).ok_or("the pod is gone")?;
        let container = pod.view.containers.get(index).ok_or("there is no such container")?;
        let state = pod.directory.join(&container.name);
        fs::create_dir_all(&state).map_err(|error| format!("{}: {error}", state.display()))?;
        let holder = (pod.sandbox.holder, &*state);
        let spec = container::spec(container, pod.view.security.as_ref(), &pod.volumes, holder)?;
        let starts = pod.starts.entry(index).or_default();
        let log = Log::of_start(&state, *starts).map_err(|error| format!("{}: {error}", state.display()))?;
        *starts += 1;
        let started = Container::start(&spec, &container.name, log).map_err(|error| error.to_string())?;
        let ear = self.ear.as_mut().ok_or("the pod is gone")?;
        let token =
            ear.watch(started.files(), (uid.to_owned(), Some(index))).map_err(|error| error.to_string())?;
        pod.containers.insert(index, (token, started));
        Ok(())
    }

    /// Starts a program in a pod, as its first container would, and among that one's processes while it runs.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn exec(&mut self, uid: &str, command: Vec<String>) -> Result<Exec, String> {
        let pod = self.pods.get_mut(uid).ok_or("the pod is gone")?;
        let first = pod.view.containers.first().ok_or("the pod has no container")?;
        let state = pod.directory.join(format!(".exec-{}", pod.execs));
        pod.execs += 1;
        fs::create_dir_all(&state).map_err(|error| format!("{}: {error}", state.display()))?;
        let holder = (pod.sandbox.holder, &*state);
        let spec = container::spec(first, pod.view.security.as_ref(), &pod.volumes, holder)?;
        let joins = pod.containers.get(&0).map(|(_, running)| running.state().to_owned());
        Exec::start(&ContainerSpec { command, reads: true, joins, ..spec }).map_err(|error| error.to_string())
    }

    /// Tells a pod's programs to stop; those that have not when its time is over are ended.
    pub fn stop(&mut self, uid: &str) {
        let is_made = self.making.remove(uid);
        if let Some(lost) = self.lost.remove(uid).filter(|_| !is_made) {
            self.forget_files(lost.directory);
        }
        let Some(pod) = self.pods.get_mut(uid) else { return };
        pod.containers.values_mut().for_each(|(_, container)| container.signal(Signal::TERM));
        pod.deadline = Some(Instant::now() + pod.view.grace);
        self.stopping.insert(uid.to_owned());
    }

    /// Tells all pods' programs to stop.
    pub fn stop_all(&mut self) {
        let all: Vec<String> =
            self.pods.keys().chain(&self.making).chain(self.lost.keys()).cloned().collect();
        all.iter().for_each(|uid| self.stop(uid));
    }

    /// Ends the programs that were told to stop, whatever time they have yet.
    pub fn hurry(&mut self) {
        self.pods.values_mut().for_each(|pod| pod.deadline = pod.deadline.map(|_| Instant::now()));
    }

    /// Tells whether there is no pod, nor any in the making.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && !self.is_making()
    }

    /// Removes the files of a pod that ended but for its logs, and those of the one that ended first of many.
    fn forget_files(&mut self, directory: PathBuf) {
        // What cannot be removed is in nobody's way.
        for name in OF_A_POD {
            let _ = fs::remove_dir_all(directory.join(name));
        }
        self.ended.push_back(directory);
        if self.ended.len() > LOGS_KEPT
            && let Some(oldest) = self.ended.pop_front()
        {
            let _ = fs::remove_dir_all(oldest);
        }
    }

    fn ear(&mut self) -> io::Result<&mut Ear> {
        self.claim()?;
        if self.ear.is_none() {
            self.ear = Some(Ear::new()?);
        }
        self.ear.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
