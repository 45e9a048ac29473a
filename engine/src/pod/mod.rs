//! A simulated pod: one network stack, shared by the containers and programs that run in it.
//!
//! The worker hands [`Pod::receive`] the frames of the pod's link and calls [`Pod::poll`] when [`Pod::next_poll`] says so; frames
//! leave through its [`Outbox`]. The control side starts containers, runs programs and probes. A packet's way: `stack` (sorted) →
//! `tcp`, `udp`, `icmp` → events → `app`, `program` → `sockets` → `ip` → `device`.
//!
//! Invariants: no I/O but that of `relay`, which few pods have; no clock and no randomness but the seed's: the same calls give the same
//! frames. What a call begins, it
//! finishes, up to [`WORK_LIMIT`] steps; the rest is due at once. A dead pod takes and sends nothing.
//! Depends on `clock`, `link::pod_ring`, `wire`, smoltcp (in `tcp` only). Read first: `docs/architecture.md`, "Pods".

mod app;
mod config;
mod container;
mod device;
mod dns;
mod drops;
mod files;
mod icmp;
mod image;
mod ip;
mod neighbor;
mod processes;
mod program;
mod reassembly;
mod relay;
mod resolver;
mod socket;
mod sockets;
mod stack;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;
mod volume;

pub use config::{ContainerConfig, DEFAULT_TCP_BUFFER, Mount, PodConfig, PodError, Transport};
pub use container::{ContainerState, ContainerStatus};
pub use drops::{PodDrop, PodDrops};
pub use image::Image;
pub use processes::ProgramOutput;
pub use program::{Probe, ProbeError, ProbeOutcome, ProbeProtocol};
pub use relay::{Answer as RelayAnswer, STREAM_LIMIT as RELAY_LIMIT};
pub use socket::{ProgramId, SocketError};
pub use tcp::half_open::{
    LIFETIME as HALF_OPEN_LIFETIME, PER_LISTENER as HALF_OPEN_PER_LISTENER, PER_POD as HALF_OPEN_PER_POD,
};
pub use volume::{DEFAULT_VOLUME_LIMIT, ENTRY_LIMIT, Entry, Volume};

use crate::clock::Instant;
use crate::link::pod_ring::Outbox;
use app::App;
use container::Container;
use files::Files;
use program::Program;
use relay::Relays;
use socket::{Event, Owner};
use sockets::Sockets;
use stack::Stack;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

/// Steps one call does before it leaves the rest to the next.
pub const WORK_LIMIT: usize = 16_384;
/// Exit code of what ends with its pod, as SIGKILL gives.
const KILLED: i32 = 137;

/// Whether a pod lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    /// It takes frames.
    Running,
    /// It died and stays so; a controller may start another one.
    Dead,
}

/// A simulated pod.
#[derive(Debug)]
pub struct Pod {
    config: PodConfig,
    state: PodState,
    stack: Stack,
    containers: Vec<Container>,
    /// The pod's own volumes, then a writable layer for each container after pause.
    volumes: Vec<Volume>,
    programs: BTreeMap<ProgramId, Program>,
    /// What goes on at sockets of the host's.
    relays: Option<Box<Relays>>,
    ended: VecDeque<ProgramId>,
    next_program: u64,
    wakes: BTreeSet<(Instant, Owner)>,
    wake_of: BTreeMap<Owner, Instant>,
    now: Instant,
    /// Whether a container ended since somebody asked.
    has_news: bool,
}

impl Pod {
    /// Makes a pod with its pause container.
    #[must_use]
    pub fn new(config: PodConfig) -> Self {
        let pause = ContainerConfig {
            name: String::from("pause"),
            image: Image::Pause,
            ports: Vec::new(),
            args: Vec::new(),
            mounts: Vec::new(),
        };
        let pause = Container {
            config: pause,
            ports: Vec::new(),
            app: App::Pause,
            state: ContainerState::Running,
            mounts: Vec::new(),
        };
        Pod {
            stack: Stack::new(&config),
            volumes: config.volumes.clone(),
            config,
            state: PodState::Running,
            containers: vec![pause],
            programs: BTreeMap::new(),
            relays: None,
            ended: VecDeque::new(),
            next_program: 1,
            wakes: BTreeSet::new(),
            wake_of: BTreeMap::new(),
            now: Instant::ZERO,
            has_news: false,
        }
    }

    /// Takes one Ethernet frame from the pod's link and does all that follows from it.
    pub fn receive(&mut self, frame: &[u8], now: Instant, out: &mut Outbox<'_>) {
        self.take(frame, now, out);
        self.run(out);
    }

    /// Takes one Ethernet frame from the pod's link; what the applications do about it is left to the next [`Pod::poll`], so
    /// that they are woken once for many.
    pub fn take(&mut self, frame: &[u8], now: Instant, out: &mut Outbox<'_>) {
        if self.state == PodState::Dead {
            self.stack.device.drops.count(PodDrop::Dead);
            return;
        }
        self.now = now;
        self.stack.receive_frame(frame, now, out);
    }

    /// Handles the timers that are due and the work that waits.
    pub fn poll(&mut self, now: Instant, out: &mut Outbox<'_>) {
        if self.state == PodState::Dead {
            return;
        }
        self.now = now;
        self.stack.poll(now, out);
        while let Some(&(due, owner)) = self.wakes.first().filter(|&&(due, _)| due <= now) {
            self.wakes.remove(&(due, owner));
            self.wake_of.remove(&owner);
            self.stack.events.push_back((owner, Event::Timer));
        }
        self.run(out);
    }

    /// Returns when [`Pod::poll`] has something to do; the past means at once.
    #[must_use]
    pub fn next_poll(&self) -> Option<Instant> {
        if self.state == PodState::Dead {
            return None;
        }
        if self.stack.has_work() {
            return Some(self.now);
        }
        let wake = self.wakes.first().map(|&(due, _)| due);
        [self.stack.next_timer(), wake].into_iter().flatten().min()
    }

    /// Starts a container; it begins with the next [`Pod::poll`].
    ///
    /// # Errors
    /// [`PodError::Dead`], [`PodError::ContainerExists`] while one of the name runs, [`PodError::BadArgument`],
    /// [`PodError::NoSuchVolume`], [`PodError::BadSubPath`], and [`PodError::AddressInUse`] when another container has one of
    /// its ports: they share one stack.
    pub fn start_container(&mut self, config: ContainerConfig) -> Result<(), PodError> {
        self.check_alive()?;
        let existing = self.containers.iter().position(|container| container.config.name == config.name);
        if existing.is_some_and(|index| self.containers[index].state == ContainerState::Running) {
            return Err(PodError::ContainerExists { container: config.name });
        }
        let bad = |problem| PodError::BadArgument { container: config.name.clone(), problem };
        let ports = app::ports(&config).map_err(bad)?;
        let app = App::new(&config).map_err(bad)?;
        let index = existing.unwrap_or(self.containers.len());
        let mounts = self.mount(index, &config)?;
        self.take_ports(index, &config.name, &ports)?;
        let container = Container { config, ports, app, state: ContainerState::Running, mounts };
        match self.containers.get_mut(index) {
            Some(slot) => *slot = container,
            None => {
                // Most pods have one more than pause.
                self.containers.reserve_exact(1);
                self.containers.push(container);
            }
        }
        self.stack.events.push_back((Owner::Container(index), Event::Start));
        Ok(())
    }

    /// Ends the pod at once, without a word to anybody.
    pub fn kill(&mut self) {
        self.state = PodState::Dead;
        self.has_news = true;
        for container in &mut self.containers {
            if container.state == ContainerState::Running {
                container.state = ContainerState::Exited(KILLED);
            }
        }
        let running: Vec<ProgramId> = self.programs.keys().copied().collect();
        for id in running {
            if let Some(program) = self.programs.get_mut(&id)
                && program.exit_code().is_none()
            {
                *program = Program::failed("the pod is dead", KILLED);
                self.ended.push_back(id);
            }
        }
        let drops = std::mem::take(&mut self.stack.device.drops);
        self.stack = Stack::new(&self.config);
        self.stack.device.drops = drops;
        self.volumes.clear();
        // What watches its sockets watches on until the pod is taken away.
        if let Some(relays) = &mut self.relays {
            relays.close();
        }
        self.wakes.clear();
        self.wake_of.clear();
    }

    /// Returns what the pod was made of.
    #[must_use]
    pub fn config(&self) -> &PodConfig {
        &self.config
    }

    /// Sets the longest IPv4 packet, bytes, that the way to one neighbour takes, or the way to all; `None`: what the pod was made
    /// with. Connections heed it from their next segment on, but grow no longer ones (as with a path MTU).
    pub fn set_mtu(&mut self, neighbor: Option<Ipv4Addr>, mtu: Option<u16>) {
        let device = &mut self.stack.device;
        match neighbor {
            Some(neighbor) => device.set_link_mtu(neighbor, mtu),
            None => device.mtu = usize::from(mtu.unwrap_or(u16::MAX).min(self.config.mtu)),
        }
    }

    /// Says whether the pod lives.
    #[must_use]
    pub fn state(&self) -> PodState {
        self.state
    }

    /// Returns the containers, pause first.
    pub fn containers(&self) -> impl Iterator<Item = ContainerStatus<'_>> {
        self.containers.iter().map(Container::status)
    }

    /// Tells whether a container ended since the last call.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// Returns what the pod dropped, by reason.
    #[must_use]
    pub fn drops(&self) -> &PodDrops {
        &self.stack.device.drops
    }

    /// Returns how many TCP connections there are, and how many are half open.
    #[must_use]
    pub fn tcp_counts(&self) -> (usize, usize) {
        self.stack.tcp.counts()
    }

    /// Returns how often the stack of any connection ran.
    #[must_use]
    pub fn tcp_polls(&self) -> u64 {
        self.stack.tcp.polls
    }

    /// Begins or ends keeping what passes `lo`.
    pub fn set_lo_capture(&mut self, on: bool) {
        self.stack.device.lo_capture = on.then(Vec::new);
    }

    /// Takes the frames that passed `lo` since the last call: Ethernet headers of zeros, as Linux shows them.
    pub fn take_lo_capture(&mut self) -> Vec<Vec<u8>> {
        self.stack.device.lo_capture.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes the traced packets, from their IPv4 header on, that passed `lo` since the last call.
    pub fn take_lo_hops(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.stack.device.lo_hops)
    }

    fn check_alive(&self) -> Result<(), PodError> {
        match self.state {
            PodState::Running => Ok(()),
            PodState::Dead => Err(PodError::Dead { pod: self.config.name.clone() }),
        }
    }

    /// Works until the pod is at rest or the limit is reached.
    fn run(&mut self, out: &mut Outbox<'_>) {
        for _ in 0..WORK_LIMIT {
            if self.stack.step(self.now, out) {
                continue;
            }
            if let Some((owner, event)) = self.stack.events.pop_front() {
                self.dispatch(owner, event, out);
            } else if !self.stack.flush_next(self.now, out) {
                return;
            }
        }
    }

    fn dispatch(&mut self, owner: Owner, event: Event, out: &mut Outbox<'_>) {
        if let Event::Tcp(id) = event
            && !self.stack.tcp.take_event(id)
        {
            return;
        }
        let Pod { stack, volumes, containers, programs, relays, config: pod, .. } = self;
        let (now, volumes) = (self.now, &mut volumes[..]);
        let (ended, wake) = match owner {
            Owner::Container(index) => match containers.get_mut(index) {
                Some(Container { app, mounts, state: ContainerState::Running, .. }) => {
                    let files = Files { volumes, mounts };
                    let mut sockets = Sockets { stack, out, pod, files, now, owner, wake: None };
                    app.handle(event, &mut sockets);
                    (app.exit_code(), sockets.wake)
                }
                Some(_) | None => return,
            },
            Owner::Program(id) => match programs.get_mut(&id) {
                Some(program) if program.exit_code().is_none() => {
                    // As `kubectl exec` does: in the first container after pause.
                    let mounts = containers.get(1).map_or(&[][..], |container| &container.mounts);
                    let files = Files { volumes, mounts };
                    let mut sockets = Sockets { stack, out, pod, files, now, owner, wake: None };
                    program.handle(event, &mut sockets);
                    (program.exit_code(), sockets.wake)
                }
                Some(_) | None => return,
            },
            Owner::Relays => {
                let files = Files { volumes, mounts: &[] };
                let mut sockets = Sockets { stack, out, pod, files, now, owner, wake: None };
                if let Some(relays) = relays {
                    relays.handle(event, &mut sockets);
                }
                (None, sockets.wake)
            }
        };
        self.set_wake(owner, wake);
        match (ended, owner) {
            (Some(code), Owner::Container(index)) => self.end_container(index, code),
            (Some(_), Owner::Program(id)) => self.end_program(id),
            (None, Owner::Container(_) | Owner::Program(_)) | (_, Owner::Relays) => {}
        }
    }

    fn set_wake(&mut self, owner: Owner, wake: Option<Instant>) {
        let old = match wake {
            Some(wake) => self.wake_of.insert(owner, wake),
            None => self.wake_of.remove(&owner),
        };
        if old != wake {
            if let Some(old) = old {
                self.wakes.remove(&(old, owner));
            }
            if let Some(wake) = wake {
                self.wakes.insert((wake, owner));
            }
        }
    }
}
