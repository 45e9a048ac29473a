//! One connection to one member of an etcd at a time, and when to leave it for the next.
//!
//! [`super::Etcd`]'s requests and watches run over it, on the store's own thread.
//!
//! Invariants: a member is asked for nothing before it has said that it has a leader; what may have reached a member is
//! sent again only if doing it twice is doing it once; every failure names the member and the last cause.
//!
//! May depend on `etcd-client` and `tokio`.
//!
//! Read first: gRPC status codes; etcd's client design ("client architecture").

use std::{
    error::Error as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use etcd_client::{Client, ConnectOptions, Error, KvClient, LeaseClient, WatchClient};
use flatnet_engine::random::Random;
use tokio::time::{Instant, sleep, timeout};

use super::{
    notes::{Notes, Warning},
    options::Options,
};
use crate::store::StoreError;

/// The first wait before something is tried again; each is twice the one before, up to [`LONGEST_WAIT`], of which a random half goes.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest wait between two attempts: whoever comes back is found again within it.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long one attempt at a request that may be repeated may take before the next member is asked.
const ATTEMPT: Duration = Duration::from_secs(2);
/// The largest answer, in bytes: a listing of some hundred thousand leases.
const LARGEST_ANSWER: usize = 256 << 20;

/// Why a request was not answered as hoped.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// etcd said no.
    #[error("{endpoint}: {message}")]
    Refused {
        /// The member.
        endpoint: Arc<str>,
        /// What it said.
        message: String,
    },
    /// There was no answer: endpoint and cause.
    #[error("{0}")]
    Lost(String),
}

impl Fault {
    /// Whether another member, or another login, may do better. A token that is refused was refused before anything was
    /// done.
    fn is_of_the_member(&self) -> bool {
        match self {
            Self::Lost(_) => true,
            Self::Refused { message, .. } => {
                message.contains("revision of auth store is old") || message.contains("invalid auth token")
            }
        }
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        Self::Unavailable { cause: fault.to_string() }
    }
}

/// Whether a request may be sent again when it may have reached a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Doing it twice is doing it once.
    Yes,
    /// Nobody could tell what happened.
    No,
}

/// A member that answers.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) endpoint: Arc<str>,
    pub(super) kv: KvClient,
    pub(super) watch: WatchClient,
    pub(super) lease: LeaseClient,
    generation: u64,
}

/// The way to an etcd.
pub(super) struct Connection {
    endpoints: Vec<Arc<str>>,
    connect: ConnectOptions,
    /// Whether it is TLS without a certificate of its own.
    is_anonymous: bool,
    connect_timeout: Duration,
    deadline: Duration,
    current: tokio::sync::Mutex<Current>,
    random: Mutex<Random>,
    pub(super) notes: Notes,
}

/// The member in use, or the one to try next.
struct Current {
    member: Option<Member>,
    at: usize,
    generation: u64,
}

impl Connection {
    pub(super) fn new(options: &Options, connect: ConnectOptions) -> Self {
        let mut random = Random::new(options.seed);
        let at = random.below(options.endpoints.len());
        Self {
            endpoints: options.endpoints.iter().map(|endpoint| endpoint.as_str().into()).collect(),
            connect,
            is_anonymous: options.tls.certificate.is_none()
                && options.endpoints.iter().any(|endpoint| endpoint.starts_with("https://")),
            connect_timeout: options.connect_timeout,
            deadline: options.deadline,
            current: tokio::sync::Mutex::new(Current { member: None, at, generation: 0 }),
            random: Mutex::new(random),
            notes: Notes::default(),
        }
    }

    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(super) fn endpoints(&self) -> &[Arc<str>] {
        &self.endpoints
    }

    /// Sends a request until it is answered or its time is over.
    pub(super) async fn call<R, F>(&self, repeat: Repeat, request: impl Fn(Member) -> F) -> Result<R, Fault>
    where
        F: Future<Output = Result<R, Error>>,
    {
        let end = Instant::now() + self.deadline;
        let mut attempt = 0;
        loop {
            // 1. A member that is known to answer: up to here nothing was asked of anybody.
            let (fault, asked) = match self.member().await {
                Err(fault) => (fault, false),
                // 2. The request.
                Ok(member) => {
                    let left = end.saturating_duration_since(Instant::now());
                    let attempt = if repeat == Repeat::Yes { left.min(ATTEMPT) } else { left };
                    match timeout(attempt, request(member.clone())).await {
                        Ok(Ok(answer)) => return Ok(answer),
                        Ok(Err(error)) => {
                            let fault = fault(&member.endpoint, &error);
                            if fault.is_of_the_member() {
                                self.leave(&member, &fault).await;
                            }
                            (fault, true)
                        }
                        Err(_) => {
                            let fault = Fault::Lost(format!("{}: no answer in {attempt:?}", member.endpoint));
                            self.leave(&member, &fault).await;
                            (fault, true)
                        }
                    }
                }
            };
            // 3. Once more, unless that may do it twice.
            let refused = !fault.is_of_the_member();
            let unknown = asked && repeat == Repeat::No && matches!(fault, Fault::Lost(_));
            let pause = self.wait(attempt);
            if refused || unknown || Instant::now() + pause >= end {
                return Err(fault);
            }
            sleep(pause).await;
            attempt += 1;
        }
    }

    /// Gives the member in use; connects to the next one if there is none.
    pub(super) async fn member(&self) -> Result<Member, Fault> {
        let mut current = self.current.lock().await;
        if let Some(member) = &current.member {
            return Ok(member.clone());
        }
        let endpoint = Arc::clone(&self.endpoints[current.at]);
        let connected = match timeout(self.connect_timeout, self.connect(&endpoint)).await {
            Ok(connected) => connected,
            Err(_) => Err(Fault::Lost(format!("{endpoint}: no answer in {:?}", self.connect_timeout))),
        };
        match connected {
            Ok(client) => {
                current.generation += 1;
                let member = Member {
                    endpoint,
                    kv: client.kv_client().max_decoding_message_size(LARGEST_ANSWER),
                    watch: client.watch_client().max_decoding_message_size(LARGEST_ANSWER),
                    lease: client.lease_client(),
                    generation: current.generation,
                };
                current.member = Some(member.clone());
                Ok(member)
            }
            Err(fault) => {
                current.at = (current.at + 1) % self.endpoints.len();
                self.notes.warn(Warning::Left { cause: fault.to_string() });
                Err(fault)
            }
        }
    }

    /// Connects, and has the member say that it has a leader.
    async fn connect(&self, endpoint: &Arc<str>) -> Result<Client, Fault> {
        let fault = |error| match fault(endpoint, &error) {
            // A member that wants to see a certificate may close before it can say so.
            Fault::Lost(cause) if self.is_anonymous && !cause.contains("certificate") => {
                Fault::Lost(format!("{cause}; no certificate was shown"))
            }
            fault @ (Fault::Lost(_) | Fault::Refused { .. }) => fault,
        };
        let mut client = Client::connect([&**endpoint], Some(self.connect.clone())).await.map_err(fault)?;
        let status = client.status().await.map_err(fault)?;
        if status.leader() == 0 {
            return Err(Fault::Lost(format!("{endpoint}: it has no leader")));
        }
        Ok(client)
    }

    /// Leaves a member for the next one, unless somebody did before.
    pub(super) async fn leave(&self, member: &Member, fault: &Fault) {
        let mut current = self.current.lock().await;
        if current.member.as_ref().is_some_and(|used| used.generation == member.generation) {
            current.member = None;
            current.at = (current.at + 1) % self.endpoints.len();
            self.notes.warn(Warning::Left { cause: fault.to_string() });
        }
    }

    /// Waits before another attempt, longer each time.
    pub(super) async fn pause(&self, attempt: u32) {
        sleep(self.wait(attempt)).await;
    }

    fn wait(&self, attempt: u32) -> Duration {
        let half = FIRST_WAIT.saturating_mul(1 << attempt.min(8)).min(LONGEST_WAIT) / 2;
        // No code panics while it holds the lock.
        let part = self.random.lock().unwrap_or_else(PoisonError::into_inner).below(1000);
        half + half.mul_f64(part as f64 / 1000.0)
    }
}

/// Tells a no from silence. gRPC's codes: cancelled, unknown, deadline exceeded, internal and unavailable say nothing
/// about the request.
pub(super) fn fault(endpoint: &Arc<str>, error: &Error) -> Fault {
    const SILENT: [i32; 5] = [1, 2, 4, 13, 14];
    let refused = |message: &str| Fault::Refused { endpoint: Arc::clone(endpoint), message: message.into() };
    match error {
        Error::GRpcStatus(status) if !SILENT.contains(&i32::from(status.code())) => refused(status.message()),
        Error::GRpcStatus(status) => {
            Fault::Lost(format!("{endpoint}: {}", last_cause(status.source(), status.message())))
        }
        Error::TransportError(error) => {
            Fault::Lost(format!("{endpoint}: {}", last_cause(error.source(), &error.to_string())))
        }
        Error::LeaseKeepAliveError(message) => refused(message),
        Error::InvalidArgs(_)
        | Error::InvalidUri(_)
        | Error::IoError(_)
        | Error::WatchError(_)
        | Error::Utf8Error(_)
        | Error::ElectError(_)
        | Error::InvalidMetadataValue(_)
        | Error::EndpointError(_)
        | Error::EndpointsNotManaged
        | Error::Internal(_) => Fault::Lost(format!("{endpoint}: {error}")),
    }
}

/// The end of a chain of errors is what a person can do something about.
fn last_cause(mut source: Option<&(dyn std::error::Error + 'static)>, message: &str) -> String {
    let mut last = None;
    while let Some(error) = source {
        last = Some(error.to_string());
        source = error.source();
    }
    match last {
        Some(cause) if !message.contains(&cause) => cause,
        _ => message.into(),
    }
}
