//! What makes a network go: virtual time on this thread, or workers on threads of their own.
//!
//! Commands call [`Drive::settle`] and [`Drive::wait_for`]; they need not know which clock runs. Invariants: in virtual
//! time everything runs here, in one order, and time passes only when nothing is left to do, so that a seed gives the
//! same bytes on any machine; in real time workers never wait for this thread.
//!
//! May depend on engine and [`crate::network`]. Read first: `docs/architecture.md`, "Time".

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use flatnet_agents::Embedded;
use flatnet_agents::objects::{self, pod_name};
use flatnet_agents::publisher::{Publisher, start_container};
use flatnet_engine::clock::{Clock, Instant};
use flatnet_engine::control::{Control, EngineConfig};
use flatnet_engine::frame::ArenaError;
use flatnet_engine::mailbox::Post;
use flatnet_engine::pod::Pod;
use flatnet_engine::worker::Worker;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::network::{Network, NetworkError, Objects};
use crate::topology::{TimeMode, Topology, Underlay, is_simulated};

/// Workers when the topology does not say: the same on any machine, for the same bytes.
const DEFAULT_WORKERS: u8 = 2;
/// How long the control thread rests when nothing happens, in real time.
const REST: Duration = Duration::from_millis(1);

/// How long programs of real pods are waited for before people are told.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why nothing goes.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum DriveError {
    /// The buffers cannot be had.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The network does not come up.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Network(#[from] NetworkError),
    /// A pod whose programs are the host's own cannot wait for virtual time.
    #[error("pod {0} runs programs of this host, which do not wait for virtual time")]
    #[diagnostic(help("take `time: virtual` out of the topology, or `runtimeClassName` out of the pod"))]
    RealPod(String),
    /// A node on the host's own network cannot wait for virtual time.
    #[error("node {0} is on this host's network, which does not wait for virtual time")]
    #[diagnostic(help("take `time: virtual` out of the topology, or `underlay: socket` out of the node"))]
    RealNode(String),
    /// What is outside cannot wait for virtual time.
    #[error("router {0} leads to this host's networks, which do not wait for virtual time")]
    #[diagnostic(help("take `time: virtual` out of the topology, or `outside` out of the router"))]
    RealOutside(String),
    /// A worker's thread cannot be started, or the system gives no random number.
    #[error("a worker cannot be started")]
    Thread(#[from] std::io::Error),
    /// A machine cannot use sockets of this host.
    #[error("{machine} cannot use sockets of this host")]
    #[diagnostic(help("`ulimit -n` says how many files a process may have"))]
    Relays {
        /// The machine.
        machine: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A worker does not answer.
    #[error("worker {0} does not answer")]
    Silent(u8),
}

/// A running network and its clock.
pub struct Drive {
    /// The control plane.
    pub network: Network,
    /// Set from outside: [`Drive::stop`] waits for no program of a real pod any more.
    pub hurry: Arc<AtomicBool>,
    engine: Engine,
}

enum Engine {
    Virtual { workers: Vec<Worker>, now: Instant },
    Real { threads: Vec<JoinHandle<Worker>>, stop: Arc<AtomicBool>, clock: Clock },
}

impl Drive {
    /// Brings a topology up with an empty store and waits until its pods run.
    ///
    /// # Errors
    /// [`DriveError`].
    pub fn start(topology: &Topology, time: TimeMode) -> Result<Self, DriveError> {
        let directory = std::env::temp_dir().join(format!("flatnet-{}", std::process::id()));
        Self::start_on(topology, time, (Objects::Own(Embedded::new()), directory))
    }

    /// Brings a topology up on what is held from before; real pods' files go below the directory.
    ///
    /// # Errors
    /// [`DriveError`].
    pub fn start_on(
        topology: &Topology,
        time: TimeMode,
        (objects, directory): (Objects, PathBuf),
    ) -> Result<Self, DriveError> {
        let real = topology.pods.iter().find(|pod| time == TimeMode::Virtual && !is_simulated(pod));
        if let Some(pod) = real {
            return Err(DriveError::RealPod(pod_name(objects::namespace(pod), objects::name(pod))));
        }
        let on_host = topology.nodes.iter().find(|node| node.underlay == Underlay::Socket);
        if let Some(node) = on_host.filter(|_| time == TimeMode::Virtual) {
            return Err(DriveError::RealNode(node.name.clone()));
        }
        let outside = topology.routers.iter().filter(|router| router.outside);
        if let Some(router) = outside.clone().next().filter(|_| time == TimeMode::Virtual) {
            return Err(DriveError::RealOutside(router.name.clone()));
        }
        let workers =
            topology.workers.and_then(|workers| u8::try_from(workers).ok()).unwrap_or(DEFAULT_WORKERS);
        let usual = EngineConfig::default();
        let client_bindings = topology.nat_quota.unwrap_or(usual.client_bindings);
        let (seed, secret) = (topology.seed, secret(time)?);
        let config = EngineConfig { workers, client_bindings, poll: topology.poll, seed, secret, ..usual };
        let (control, workers) = Control::build(&config)?;
        let engine = match time {
            TimeMode::Virtual => Engine::Virtual { workers, now: Instant::ZERO },
            TimeMode::Real => start_threads(workers)?,
        };
        let network = Network::bring_up(
            topology,
            Publisher::new(control, secret.is_none().then_some(seed), directory),
            objects,
        )?;
        let mut drive = Self { network, hurry: Arc::default(), engine };
        drive.settle();
        while drive.network.publisher.runtime.is_making() {
            std::thread::sleep(REST);
            drive.settle();
        }
        for router in outside {
            drive.open_relays(&router.name, true)?;
        }
        Ok(drive)
    }

    /// Lets a pod or host use sockets of this host, and, as its network's way outside, take what is for others.
    ///
    /// # Errors
    /// [`DriveError::Relays`], [`DriveError::Silent`].
    pub fn open_relays(&mut self, machine: &str, outside: bool) -> Result<(), DriveError> {
        let failed = |source| DriveError::Relays { machine: machine.to_owned(), source };
        let missing = || failed(std::io::ErrorKind::NotFound.into());
        raise_file_limit();
        let place = self.network.publisher.place(machine).ok_or_else(missing)?;
        let (worker, port) = (place.worker, place.port);
        let opened = self.ask(worker, move |worker| {
            let opened = worker.open_relays(port);
            if outside {
                worker.with_pod(port, |pod, _| pod.forward_outside());
            }
            opened
        })?;
        opened.ok_or_else(missing)?.map_err(failed)
    }

    /// Returns the present time.
    pub fn now(&self) -> Instant {
        match &self.engine {
            Engine::Virtual { now, .. } => *now,
            Engine::Real { clock, .. } => clock.now(),
        }
    }

    /// Does what there is to do now: all of it in virtual time, the control plane's part in real time.
    pub fn settle(&mut self) {
        while self.network.settle(self.now()) | self.run_workers() | self.look_after_containers() {}
    }

    /// Hears of containers that ended and starts those whose time it is; tells whether there were any.
    fn look_after_containers(&mut self) -> bool {
        let now = self.now();
        let mut happened = self.network.take_runtime_news(now);
        for worker in 0..self.workers() {
            let post = self.network.publisher.control.posts.get(usize::from(worker));
            // A worker that does not answer is told of by whoever needs its answer.
            if post.is_some_and(Post::take_news)
                && let Ok(ended) = self.ask(worker, Worker::take_ended)
            {
                self.network.take_ended(ended, now);
                happened = true;
            }
        }
        while let Some(restart) = self.network.take_restart(now) {
            let (port, container) = (restart.place.port, restart.container.clone());
            let visit = move |pod: &mut Pod, _| start_container(pod, &container);
            let start = match restart.start.clone() {
                Some(start) => Ok(Some(start)),
                None => self.ask(restart.place.worker, move |worker| worker.with_pod(port, visit)),
            };
            if let Ok(Some(start)) = start {
                self.network.restarted(&restart, start, now);
            }
            happened = true;
        }
        happened
    }

    fn run_workers(&mut self) -> bool {
        let Engine::Virtual { workers, now } = &mut self.engine else { return false };
        let mut happened = false;
        loop {
            let moved: usize = workers.iter_mut().map(|worker| worker.run_batch(*now)).sum();
            let busy = workers.iter().any(|worker| worker.next_event(*now).is_some_and(|next| next <= *now));
            if moved == 0 && !busy {
                return happened;
            }
            happened = true;
        }
    }

    /// Lets time pass until `found` finds something, for at most `limit`.
    pub fn wait_for<R>(
        &mut self,
        limit: Duration,
        mut found: impl FnMut(&mut Self) -> Option<R>,
    ) -> Option<R> {
        let end = self.now() + limit;
        loop {
            self.settle();
            if let Some(result) = found(self) {
                return Some(result);
            }
            if !self.pass(end) {
                return None;
            }
        }
    }

    /// Lets time pass to the next event, not beyond `end`; false when `end` is reached.
    fn pass(&mut self, end: Instant) -> bool {
        let planned = [self.network.store.own().next_expiry(), self.network.next_restart()];
        match &mut self.engine {
            Engine::Virtual { workers, now } => {
                let events = workers.iter().filter_map(|worker| worker.next_event(*now));
                let next = events.chain(planned.into_iter().flatten().filter(|next| next > now)).min();
                let reached = next.is_none_or(|next| next > end);
                *now = next.unwrap_or(end).min(end).max(*now);
                !reached
            }
            Engine::Real { clock, .. } => {
                std::thread::sleep(REST);
                clock.now() < end
            }
        }
    }

    /// Runs `visit` on a worker between two batches and returns its answer.
    ///
    /// # Errors
    /// [`DriveError::Silent`].
    pub fn ask<R: Send + 'static>(
        &mut self,
        worker: u8,
        visit: impl FnOnce(&mut Worker) -> R + Send + 'static,
    ) -> Result<R, DriveError> {
        let silent = || DriveError::Silent(worker);
        let post = self.network.publisher.control.posts.get(usize::from(worker)).ok_or_else(silent)?;
        let answer = post.visit(visit).map_err(|_| silent())?;
        if let Engine::Virtual { workers, now } = &mut self.engine {
            if let Some(worker) = workers.get_mut(usize::from(worker)) {
                worker.run_batch(*now);
            }
            return answer.try_recv().map_err(|_| silent());
        }
        answer.recv_timeout(Duration::from_secs(5)).map_err(|_| silent())
    }

    /// Runs `visit` on every worker between two batches and returns their answers, by number.
    ///
    /// # Errors
    /// [`DriveError::Silent`].
    pub fn ask_all<R: Send + 'static>(
        &mut self,
        visit: impl FnOnce(&mut Worker) -> R + Clone + Send + 'static,
    ) -> Result<Vec<R>, DriveError> {
        (0..self.workers()).map(|worker| self.ask(worker, visit.clone())).collect()
    }

    /// Tells whether time is virtual: then it passes only in [`Drive::wait_for`].
    pub fn is_virtual(&self) -> bool {
        matches!(self.engine, Engine::Virtual { .. })
    }

    /// Returns how many workers there are.
    pub fn workers(&self) -> u8 {
        self.network.publisher.control.posts.len() as u8
    }

    /// Ends real pods, and the workers, and gives back what they hold; the ledger is final then.
    pub fn stop(mut self) -> (Network, Vec<Worker>) {
        self.network.leave();
        let runtime = &mut self.network.publisher.runtime;
        runtime.stop_all();
        let (begin, mut is_told) = (std::time::Instant::now(), false);
        while !runtime.is_empty() {
            std::thread::sleep(REST);
            runtime.take_made();
            runtime.take_news();
            if self.hurry.load(Ordering::Relaxed) {
                runtime.hurry();
            } else if begin.elapsed() >= PATIENCE && !std::mem::replace(&mut is_told, true) {
                eprintln!(
                    "waiting for programs of real pods to end; a second Ctrl-C or SIGTERM ends them at once"
                );
            }
        }
        match self.engine {
            Engine::Virtual { workers, .. } => (self.network, workers),
            Engine::Real { threads, stop, .. } => {
                stop.store(true, Ordering::Release);
                for post in &self.network.publisher.control.posts {
                    post.alarm.ring();
                }
                let workers = threads.into_iter().filter_map(|thread| thread.join().ok()).collect();
                (self.network, workers)
            }
        }
    }
}

/// Returns what nobody can know: a topology is a file, and its seed often 0. In virtual time runs are to be the same.
fn secret(time: TimeMode) -> std::io::Result<Option<u64>> {
    if time == TimeMode::Virtual {
        return Ok(None);
    }
    let mut secret = [0; 8];
    rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())?;
    Ok(Some(u64::from_ne_bytes(secret)))
}

/// Lets this process have as many files as it may: each connection is one.
pub(crate) fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Those that it has are enough for a few.
    let _ = setrlimit(Resource::Nofile, limit);
}

fn start_threads(workers: Vec<Worker>) -> Result<Engine, DriveError> {
    let (stop, clock) = (Arc::new(AtomicBool::new(false)), Clock::start());
    let mut threads = Vec::new();
    for (id, mut worker) in workers.into_iter().enumerate() {
        let stop = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name(format!("worker-{id}"));
        threads.push(thread.spawn(move || {
            worker.run(&clock, &stop);
            worker
        })?);
    }
    Ok(Engine::Real { threads, stop, clock })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_networks_of_one_topology_share_no_secret() {
        let [one, other] = [TimeMode::Real; 2].map(|time| secret(time).unwrap());
        assert!(one.is_some() && other.is_some() && one != other);
        assert_eq!(secret(TimeMode::Virtual).unwrap(), None);
    }
}
