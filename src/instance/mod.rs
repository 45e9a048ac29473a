//! A running network that answers: the control thread, and the desk through which the HTTP server reaches it.
//!
//! `flatnet up` makes an [`Instance`] and calls [`Instance::run`] on its own thread, since the agents' executor may not
//! leave it; the server's thread holds a [`Desk`] and leaves jobs there, as the control side leaves visits at a worker.
//! The files, in the order of a request's way:
//!
//! - [`socket`]: where instances listen, and which run;
//! - [`http`]: the server, its paths and errors;
//! - `entrances`, `socks`, `names`: who comes in from this host, and what for;
//! - `programs`, `captures`, `replays`, `links`, `offloads`, `traces`, `tables`, `objects`, `subnets`, `health`, `status`, `routes`: what it asks of the instance.
//!
//! Invariants: a job runs to its end between two rounds of the agents; when the instance ends every job that waits
//! fails, and who asked for the end gets the ledger.
//!
//! May depend on all of the command line. Read first: `docs/architecture.md`, "A running instance".

pub mod socket;

pub mod http;

mod entrances;

mod names;

mod socks;

mod programs;

mod captures;

pub(crate) mod replays;

mod links;
mod offloads;

mod traces;

mod tables;

mod objects;

mod subnets;

mod status;

mod routes;

mod health;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flatnet_agents::publisher::PublishError;
use miette::Diagnostic as _;
use tokio::sync::oneshot;

use crate::args::Kind;
use crate::drive::{Drive, DriveError};
use crate::impairment;
use crate::ledger;
use crate::point::NoPoint;
use crate::rates::Rates;
use crate::trace::ask::AskError;
use crate::views::{EntranceStatus, LedgerReport};

/// How long the control thread waits for a job before it looks after the agents.
const REST: Duration = Duration::from_millis(10);

/// What runs on the control thread.
pub type Job = Box<dyn FnOnce(&mut Instance) + Send>;

/// A running network.
pub struct Instance {
    /// Its name.
    pub name: String,
    /// What makes it go.
    pub drive: Drive,
    /// Its live rates.
    pub rates: Rates,
    started: std::time::Instant,
    /// The engine clock's zero, since 1970.
    epoch: Duration,
    ending: bool,
    /// Who asked for the end.
    awaiting: Vec<oneshot::Sender<LedgerReport>>,
    programs: BTreeMap<u64, programs::Running>,
    next_program: u64,
    captures: BTreeMap<u32, captures::Open>,
    next_capture: u32,
    replays: BTreeMap<u32, replays::Playing>,
    next_replay: u32,
    following: Option<traces::Following>,
    entrances: Vec<EntranceStatus>,
    /// The file of routes to nodes elsewhere, which is read again on SIGHUP.
    pub routes: Option<PathBuf>,
}

/// Why a request fails.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There is no such pod or host.
    #[error("no pod or host {name} is on the network")]
    Machine {
        /// What was asked for.
        name: String,
        /// All that there are.
        known: Vec<String>,
    },
    /// There is no such node.
    #[error("there is no node, router or network {name}")]
    Node {
        /// What was asked for.
        name: String,
        /// All that there are.
        known: Vec<String>,
    },
    /// Another process runs the node.
    #[error("node {name} is run by another process")]
    Elsewhere {
        /// The node.
        name: String,
    },
    /// A pod or host has none of a node's tables.
    #[error("{name} is no node and has no table of {table}")]
    NoNode {
        /// What was asked for.
        name: String,
        /// The table.
        table: String,
        /// The node it is on; none for a host.
        node: Option<String>,
    },
    /// There is no such point.
    #[error(transparent)]
    Point(#[from] NoPoint),
    /// There is no such link, or it cannot be changed.
    #[error("{error}")]
    Link {
        /// Why.
        error: PublishError,
        /// What has links.
        known: Vec<String>,
    },
    /// A program cannot be started in a real pod.
    #[error("no program can be started in {pod}: {why}")]
    Exec {
        /// The pod.
        pod: String,
        /// Why.
        why: String,
    },
    /// A link's setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// What a link leaves to the system cannot be changed so.
    #[error("{0}")]
    Offload(String),
    /// Nobody sends at the point.
    #[error("nothing can be replayed at {0}: no machine sends there")]
    NoMachine(String),
    /// A recording cannot be played.
    #[error("{0}")]
    Replay(String),
    /// The packet to follow goes nowhere.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// Another packet is followed.
    #[error("another packet is being followed")]
    Busy,
    /// There is no such table.
    #[error("there is no table {0}")]
    Table(String),
    /// There is no such object.
    #[error("there is no {kind} {name}")]
    Object {
        /// The kind.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// All that there are.
        known: Vec<String>,
    },
    /// Objects of the kind are not to be deleted.
    #[error("a {} cannot be deleted", .0.singular())]
    Kept(Kind),
    /// The store cannot do it.
    #[error("{0}")]
    Store(String),
    /// There is no such program, or it has ended.
    #[error("there is no program {0}")]
    Program(u64),
    /// A worker is stuck.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// A capture cannot be written.
    #[error("the capture cannot be written")]
    Capture(#[from] pcap_file::PcapError),
    /// The instance ends.
    #[error("the network is going down")]
    Ending,
}

impl RequestError {
    /// Returns what to do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Object { kind, known, .. } if known.is_empty() => Some(format!("there is no {kind} at all")),
            Self::Kept(_) => Some(
                "nodes are the topology's, and a Service's endpointslices follow its pods; pods and services can be"
                    .to_owned(),
            ),
            Self::Machine { known, .. } | Self::Node { known, .. } | Self::Object { known, .. } => {
                Some(format!("there are {}", known.join(", ")))
            }
            Self::Elsewhere { name } => Some(format!(
                "ask where it runs; `get pods`, `services`, `nodes` and `subnets` tell of {name} anywhere"
            )),
            Self::NoNode { table, node: Some(node), .. } => {
                Some(format!("flatnet show {table} {node} shows that of its node"))
            }
            Self::Point(NoPoint { known, .. }) => Some(format!("there are {}", known.join(", "))),
            Self::Table(_) => Some("there are fdb, neighbors, routes, services, flows, drops".to_owned()),
            Self::Link { known, .. } if !known.is_empty() => Some(format!(
                "nodes, hosts and routers of one network have links, and a pod and its node; there are {}",
                known.join(", ")
            )),
            Self::Setting(_) => Some(format!(
                "write NAME=VALUE, down, up or reset; names are {}; none takes one back",
                impairment::NAMES.join(", ")
            )),
            Self::Offload(_) => Some(
                "write FEATURE=on or FEATURE=off; `flatnet offload` without anything lists what there is".to_owned(),
            ),
            Self::NoMachine(_) => Some("name a pod, a host, or an interface such as node-1:eth0".to_owned()),
            Self::Replay(_) => Some(
                "a replay takes Ethernet frames in pcap or pcapng, as `flatnet capture` writes them"
                    .to_owned(),
            ),
            Self::Ask(error) => error.help().map(|help| help.to_string()),
            Self::Busy => Some("try again when it has arrived".to_owned()),
            Self::NoNode { node: None, .. }
            | Self::Link { .. }
            | Self::Program(_)
            | Self::Exec { .. }
            | Self::Drive(_)
            | Self::Store(_)
            | Self::Capture(_)
            | Self::Ending => None,
        }
    }
}

/// The way to an instance's control thread.
#[derive(Debug, Clone)]
pub struct Desk {
    jobs: mpsc::Sender<Job>,
}

impl Desk {
    /// Makes a desk and the end from which [`Instance::run`] takes the jobs.
    pub fn new() -> (Self, mpsc::Receiver<Job>) {
        let (jobs, taken) = mpsc::channel();
        (Self { jobs }, taken)
    }

    /// Has a job done on the control thread and returns its answer.
    ///
    /// # Errors
    /// [`RequestError::Ending`].
    pub async fn ask<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Instance) -> R + Send + 'static,
    ) -> Result<R, RequestError> {
        let (sender, answer) = oneshot::channel();
        let job: Job = Box::new(move |instance| {
            // Who asked may have gone.
            let _ = sender.send(job(instance));
        });
        self.jobs.send(job).map_err(|_| RequestError::Ending)?;
        answer.await.map_err(|_| RequestError::Ending)
    }
}

impl Desk {
    /// Leaves a job whose answer nobody waits for.
    pub fn leave(&self, job: impl FnOnce(&mut Instance) + Send + 'static) {
        // When it ends there is nothing to do.
        let _ = self.jobs.send(Box::new(job));
    }
}

impl Instance {
    /// Makes an instance of a network that is up.
    pub fn new(name: String, drive: Drive) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch = if drive.is_virtual() {
            Duration::ZERO
        } else {
            since.saturating_sub(Duration::from_nanos(drive.now().as_nanos()))
        };
        Self {
            name,
            drive,
            rates: Rates::default(),
            started: std::time::Instant::now(),
            epoch,
            ending: false,
            awaiting: Vec::new(),
            programs: BTreeMap::new(),
            next_program: 1,
            captures: BTreeMap::new(),
            next_capture: 1,
            replays: BTreeMap::new(),
            next_replay: 1,
            following: None,
            entrances: Vec::new(),
            routes: None,
        }
    }

    /// Does jobs and looks after the agents until somebody ends it; `tick` is called after every new sample of the
    /// rates. Returns the ledger.
    pub fn run(mut self, jobs: &mpsc::Receiver<Job>, mut tick: impl FnMut(&Self)) -> LedgerReport {
        while !self.ending {
            match jobs.recv_timeout(REST) {
                Ok(job) => job(&mut self),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            self.drive.settle();
            for warning in self.drive.network.warnings.drain(..) {
                eprintln!("warning: {warning}");
            }
            if self.rates.sample(&self.drive.network.publisher) {
                tick(&self);
            }
        }
        for job in jobs.try_iter() {
            job(&mut self);
        }
        let report = ledger::close(self.drive);
        for asked in self.awaiting {
            // Who asked may have gone.
            let _ = asked.send(report.clone());
        }
        report
    }

    /// Ends the instance; the ledger goes to who asked.
    pub fn end(&mut self, asked: Option<oneshot::Sender<LedgerReport>>) {
        self.ending = true;
        self.awaiting.extend(asked);
    }
}
