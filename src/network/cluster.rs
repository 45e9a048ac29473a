//! A process' part in one network of several processes: its nodes are run here, others elsewhere, and one process decides for all.
//!
//! [`Cluster::join`] begins a session before the network comes up; [`Network::settle`] keeps it. Invariants: what decides for all runs while
//! this process leads, and writes only as long as it does; a session that ended is begun again.
//!
//! May depend on agents. Read first: `agents/src/membership.rs`; `docs/adr/0038-one-topology-over-several-processes.md`.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use flatnet_agents::membership::{self, Member, MemberError, RENEWAL, TTL};
use flatnet_agents::pods::PodView;
use flatnet_agents::store::etcd::{OpenError, Options};
use flatnet_agents::store::{Compare, LeaseId};
use flatnet_agents::{Embedded, Etcd, NetworkStore, Store, StoreError};
use flatnet_engine::clock::Instant;
use futures::FutureExt as _;
use futures::executor::block_on;
use futures::future::{AbortHandle, Abortable};
use futures::task::LocalSpawnExt;

use super::{Agent, Network, with_sources};

/// Below it lie the objects of clusters, each at the place that its leases have in flannel's.
const ROOT: &str = "/flatnet.dev";
/// Between two looks whether a node is free by now.
const PAUSE: Duration = Duration::from_millis(200);
/// Why a process is no part of a network.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum ClusterError {
    /// The etcd cannot be asked.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Somebody else runs a node.
    #[error("{0}")]
    #[diagnostic(help("each node is run by one process; end that one, or name other nodes with --nodes"))]
    Taken(MemberError),
    /// Somebody else runs another topology.
    #[error("{0}")]
    #[diagnostic(help(
        "processes of one network are given the same files; end that one, or take another --etcd-prefix"
    ))]
    Topology(MemberError),
    /// It cannot be said who runs what.
    #[error("the etcd does not take this process in")]
    Member(#[source] MemberError),
}

/// A process' part, before the network comes up.
#[derive(Debug)]
pub struct Cluster {
    store: NetworkStore,
    etcd: Etcd,
    member: Member,
    session: LeaseId,
    /// The names of all nodes, those of other processes too.
    every: Vec<String>,
}

impl Cluster {
    /// Begins a session in the etcd of the cluster whose leases lie below `prefix`. A node of a process that has just died is waited for.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub fn join(
        etcd: &Options,
        prefix: &str,
        member: Member,
        every: Vec<String>,
    ) -> Result<Self, ClusterError> {
        let etcd = Etcd::open(etcd)?;
        let store = NetworkStore::shared(Embedded::new(), etcd.clone(), &format!("{ROOT}{prefix}"));
        let end = std::time::Instant::now() + TTL + RENEWAL;
        let session = loop {
            match block_on(membership::enter(&store, &member)) {
                Ok(session) => break session,
                Err(MemberError::Taken { .. }) if std::time::Instant::now() < end => {
                    std::thread::sleep(PAUSE)
                }
                Err(error @ MemberError::Taken { .. }) => return Err(ClusterError::Taken(error)),
                Err(error @ MemberError::Topology { .. }) => return Err(ClusterError::Topology(error)),
                Err(error @ (MemberError::Object(_) | MemberError::Store(_))) => {
                    return Err(ClusterError::Member(error));
                }
            }
        };
        Ok(Self { store, etcd, member, session, every })
    }

    /// Gives the store whose objects are the cluster's.
    pub fn store(&self) -> NetworkStore {
        self.store.clone()
    }
}

/// The part as the network keeps it.
pub(super) struct Membership {
    store: NetworkStore,
    etcd: Etcd,
    member: Member,
    pub(super) every: Vec<String>,
    session: Rc<RefCell<Session>>,
    /// Ends what stands for the lead.
    standing: Option<AbortHandle>,
    /// What is written for all depends on, as long as this process leads.
    fence: Option<Compare>,
}

/// What tasks say.
struct Session {
    lease: LeaseId,
    /// What came of keeping it, once that is over.
    tried: Option<Result<LeaseId, String>>,
    busy: bool,
    next: Instant,
    /// That it cannot be kept has been said.
    is_told: bool,
    /// What the lead is, if this process has it.
    lead: Option<Compare>,
    /// Nobody stands for it any more.
    is_down: bool,
}

impl From<Cluster> for Membership {
    fn from(Cluster { store, etcd, member, session: lease, every }: Cluster) -> Self {
        let (tried, lead, next) = (None, None, Instant::ZERO);
        let session = Session { lease, tried, busy: false, next, is_told: false, lead, is_down: true };
        let session = Rc::new(RefCell::new(session));
        Self { store, etcd, member, every, session, standing: None, fence: None }
    }
}

impl Network {
    /// Tells whether a pod is for another process to run.
    pub(super) fn is_elsewhere(&self, pod: &PodView) -> bool {
        self.membership.as_ref().is_some_and(|it| !it.member.nodes.contains(&pod.node))
    }

    /// Tells whether a node of the topology's is for another process to run.
    pub fn has_node_elsewhere(&self, name: &str) -> bool {
        self.membership.as_ref().is_some_and(|Membership { every, member, .. }| {
            every.iter().any(|known| known == name) && !member.nodes.iter().any(|own| own == name)
        })
    }

    /// Gives the store that an agent which decides for all works on, if it may.
    pub(super) fn deciding_store(&self) -> Option<NetworkStore> {
        match &self.membership {
            None => Some(self.store.clone()),
            Some(Membership { fence, .. }) => fence.clone().map(|fence| self.store.fenced(fence)),
        }
    }

    /// Keeps the session, and has what decides for all run as long as this process leads.
    pub(super) fn keep_membership(&mut self, now: Instant) {
        let Some(Membership { store, member, session, fence, .. }) = &mut self.membership else { return };
        let mut state = session.borrow_mut();
        let (mut is_new, is_due) = (false, now >= state.next && !state.busy);
        match state.tried.take() {
            Some(Ok(lease)) => {
                is_new = std::mem::replace(&mut state.lease, lease) != lease;
                state.is_told = false;
            }
            Some(Err(text)) if !std::mem::replace(&mut state.is_told, true) => {
                self.warnings.push(format!("the cluster does not hear of this process: {text}"));
            }
            Some(Err(_)) | None => {}
        }
        if is_due {
            (state.busy, state.next) = (true, now + RENEWAL);
            let (store, member, session, lease) =
                (store.clone(), member.clone(), Rc::clone(session), state.lease);
            // It fails only when the pool is gone, and then there is nothing to keep.
            let _ = self.pool.spawner().spawn_local(async move {
                let tried = keep(&store, &member, lease).await;
                let mut session = session.borrow_mut();
                (session.busy, session.tried) = (false, Some(tried));
            });
        }
        // Who could not stand for it tries again as often as the session is kept.
        let stands = is_new || is_due && state.is_down;
        let changed = (state.lead != *fence).then(|| state.lead.clone());
        drop(state);
        if is_new {
            self.warnings.push("the cluster had not heard of this process, and does again".to_owned());
            self.kubelet.borrow_mut().report_all();
        }
        if stands {
            self.stand();
        }
        if let Some(lead) = changed {
            self.lead(lead);
        }
    }

    /// Stands for the lead in the present session.
    fn stand(&mut self) {
        let Some(Membership { store, member, session, standing, .. }) = &mut self.membership else { return };
        if let Some(before) = standing.take() {
            before.abort();
        }
        let (handle, registration) = AbortHandle::new_pair();
        *standing = Some(handle);
        let (store, identity, session) = (store.clone(), member.identity.clone(), Rc::clone(session));
        let lease = session.borrow().lease;
        {
            let mut session = session.borrow_mut();
            (session.lead, session.is_down) = (None, false);
        }
        let task = async move {
            let lead = |fence| session.borrow_mut().lead = fence;
            // Why it ended is said by what keeps the session.
            let _ = membership::stand(&store, &identity, lease, lead).await;
            session.borrow_mut().is_down = true;
        };
        let task = Abortable::new(task, registration).map(|_| ());
        // As above.
        let _ = self.pool.spawner().spawn_local(task);
    }

    /// Begins or ends what decides for all.
    fn lead(&mut self, fence: Option<Compare>) {
        self.stop_deciding();
        let leads = fence.is_some();
        if let Some(membership) = &mut self.membership {
            membership.fence = fence;
        }
        if leads {
            Agent::DECIDING.into_iter().for_each(|agent| self.start(agent));
        }
    }

    fn stop_deciding(&self) {
        self.deciding.borrow_mut().drain().for_each(|(_, agent)| agent.abort());
    }

    /// Ends the session: others run this process' nodes, and lead, from now on.
    pub fn leave(&mut self) {
        let Some(membership) = self.membership.take() else { return };
        self.stop_deciding();
        if let Some(standing) = membership.standing {
            standing.abort();
        }
        let lease = membership.session.borrow().lease;
        // Where that fails it ends by itself.
        let _ = block_on(membership.etcd.revoke(lease));
    }
}

/// Has the session go on, or begins another where it has ended.
async fn keep(store: &NetworkStore, member: &Member, lease: LeaseId) -> Result<LeaseId, String> {
    match store.keep_alive(lease).await {
        Ok(_) => Ok(lease),
        Err(StoreError::NoLease { .. }) => {
            membership::enter(store, member).await.map_err(|error| with_sources(&error))
        }
        Err(error) => Err(with_sources(&error)),
    }
}
