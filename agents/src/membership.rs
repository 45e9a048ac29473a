//! A process' membership in a cluster that several processes are: which nodes it runs, and which process decides for all.
//!
//! Both are Kubernetes' Lease objects, attached to a lease of the store's that the process keeps alive: a session. Who has not been heard
//! of for so long runs no node and decides nothing. Invariants: a node is run by one process; all processes run one topology; of two
//! that lead, what the earlier one writes is refused, since all that it writes depends on its lead ([`Compare`]).
//!
//! May depend on [`crate::store`] and [`crate::objects`]. Read first: coordination.k8s.io/v1 Lease;
//! `docs/adr/0038-one-topology-over-several-processes.md`.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use thiserror::Error;

use crate::objects::{self, ObjectError};
use crate::store::{Compare, Followed, Follower, LeaseId, Op, Outcome, Revision, Store, StoreError};

/// How long a process that is not heard of still runs its nodes, and leads. etcd gives none much shorter.
pub const TTL: Duration = Duration::from_secs(6);
/// How often it is heard of.
pub const RENEWAL: Duration = Duration::from_secs(2);

/// Where nodes' leases lie, as in Kubernetes.
pub const NODES: &str = "kube-node-lease";
/// Where the leader's is.
const SYSTEM: &str = "kube-system";
/// Its name.
const LEADER: &str = "flatnet-controllers";
/// On a node's lease: what its process runs.
const TOPOLOGY_ANNOTATION: &str = "flatnet.dev/topology";

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who it is, to people: host and process.
    pub identity: String,
    /// Says whether two run the same topology.
    pub topology: String,
    /// The nodes that it runs.
    pub nodes: Vec<String>,
}

/// Why a process is no member.
#[derive(Debug, Error)]
pub enum MemberError {
    /// Another one runs the node.
    #[error("node {node} is run by {holder}")]
    Taken {
        /// The node.
        node: String,
        /// Who runs it.
        holder: String,
    },
    /// Another one runs another topology.
    #[error("{holder}, which runs node {node}, was given another topology")]
    Topology {
        /// A node of the other's.
        node: String,
        /// Who runs it.
        holder: String,
    },
    /// A node has no name that it could be known by.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Begins a session: the process runs its nodes as long as the lease that is returned is kept alive.
///
/// # Errors
/// [`MemberError`].
pub async fn enter<S: Store>(store: &S, member: &Member) -> Result<LeaseId, MemberError> {
    loop {
        let session = store.grant(TTL).await?;
        let entered = claim(store, member, session).await;
        match entered {
            Ok(true) => return Ok(session),
            // Whoever had it has gone meanwhile.
            Ok(false) => drop(store.revoke(session).await),
            Err(error) => {
                // If it stays, it ends by itself.
                let _ = store.revoke(session).await;
                return Err(error);
            }
        }
    }
}

async fn claim<S: Store>(store: &S, member: &Member, session: LeaseId) -> Result<bool, MemberError> {
    let (mut compares, mut ops) = (Vec::new(), Vec::new());
    for node in &member.nodes {
        let lease = node_lease(member, node);
        let key = objects::key_of(&lease)?;
        compares.push(Compare { key: Arc::clone(&key), mod_revision: Revision::ZERO });
        ops.push(Op::Put { key, value: objects::encode(&lease)?, lease: Some(session) });
    }
    let outcome = store.transact(compares, ops).await?;
    let present = store.list(&objects::key::<Lease>(NODES, "")).await?.entries;
    for entry in present {
        let lease: Lease = objects::decode(&entry)?;
        let (node, holder) = (objects::name(&lease).to_owned(), holder(&lease));
        match outcome {
            Outcome::Conflict if member.nodes.contains(&node) => {
                return Err(MemberError::Taken { node, holder });
            }
            // Of two that came at the same time the earlier one stays.
            Outcome::Done(at) if entry.create_revision < at && topology(&lease) != Some(&member.topology) => {
                return Err(MemberError::Topology { node, holder });
            }
            Outcome::Conflict | Outcome::Done(_) => {}
        }
    }
    Ok(matches!(outcome, Outcome::Done(_)))
}

fn node_lease(member: &Member, node: &str) -> Lease {
    let mut lease = lease(NODES, node, &member.identity);
    let topology = (TOPOLOGY_ANNOTATION.to_owned(), member.topology.clone());
    lease.metadata.annotations = Some([topology].into());
    lease
}

fn lease(namespace: &str, name: &str, identity: &str) -> Lease {
    let spec = LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(TTL.as_secs()).ok(),
        ..LeaseSpec::default()
    };
    let (name, namespace) = (Some(name.to_owned()), Some(namespace.to_owned()));
    Lease { metadata: ObjectMeta { name, namespace, ..ObjectMeta::default() }, spec: Some(spec) }
}

fn holder(lease: &Lease) -> String {
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
    holder.unwrap_or_else(|| "somebody".to_owned())
}

fn topology(lease: &Lease) -> Option<&String> {
    lease.metadata.annotations.as_ref()?.get(TOPOLOGY_ANNOTATION)
}

/// Stands for the lead until the store fails or the session ends; says each time that it begins, with what all that is written then
/// depends on, and that it ends.
///
/// # Errors
/// [`StoreError`]: call it again then. Whoever led leads no more.
pub async fn stand<S: Store>(
    store: &S,
    identity: &str,
    session: LeaseId,
    mut lead: impl FnMut(Option<Compare>),
) -> Result<(), ObjectError> {
    let own = lease(SYSTEM, LEADER, identity);
    let (key, value) = (objects::key_of(&own)?, objects::encode(&own)?);
    let mut follower = Follower::new(store.clone(), &key);
    let mut led: Option<Revision> = None;
    loop {
        if led.is_none() && follower.is_current() && follower.keys().next().is_none() {
            let compare = Compare { key: Arc::clone(&key), mod_revision: Revision::ZERO };
            let put = Op::Put { key: Arc::clone(&key), value: Arc::clone(&value), lease: Some(session) };
            if let Outcome::Done(at) = store.transact(vec![compare], vec![put]).await? {
                led = Some(at);
                lead(Some(Compare { key: Arc::clone(&key), mod_revision: at }));
            }
        }
        let was_current = follower.is_current();
        // That nothing is there is no change.
        let next = poll_fn(|context| match follower.poll_next_unpin(context) {
            Poll::Pending if !was_current && follower.is_current() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
            Poll::Ready(next) => Poll::Ready(Some(next)),
        });
        let is_over = match next.await {
            None => false,
            Some(Some(Ok(Followed::Put(entry)))) => Some(entry.mod_revision) != led,
            Some(Some(Ok(Followed::Delete(_)) | Err(StoreError::Restored { .. }))) => true,
            Some(Some(Err(error))) => {
                lead(None);
                return Err(error.into());
            }
            Some(None) => {
                lead(None);
                return Err(StoreError::Unavailable { cause: "the watch ended".into() }.into());
            }
        };
        if is_over && led.take().is_some() {
            lead(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use flatnet_engine::clock::Instant;
    use futures::executor::{LocalPool, block_on};
    use futures::task::LocalSpawnExt as _;

    use super::*;
    use crate::store::Embedded;

    fn member(identity: &str, topology: &str, nodes: &[&str]) -> Member {
        let nodes = nodes.iter().map(|&node| node.to_owned()).collect();
        Member { identity: identity.to_owned(), topology: topology.to_owned(), nodes }
    }

    fn refusal(store: &Embedded, member: &Member) -> String {
        block_on(enter(store, member)).unwrap_err().to_string()
    }

    #[test]
    fn a_node_has_one_process_until_that_is_not_heard_of() {
        let store = Embedded::new();
        block_on(enter(&store, &member("one", "t", &["a", "b"]))).unwrap();
        let other = member("other", "t", &["b", "c"]);
        assert_eq!(refusal(&store, &other), "node b is run by one");
        block_on(enter(&store, &member("third", "t", &["c"]))).unwrap();
        assert_eq!(block_on(store.list("/registry/leases/")).unwrap().entries.len(), 3, "nothing by halves");
        store.advance(Instant::ZERO + TTL).unwrap();
        block_on(enter(&store, &other)).unwrap();
    }

    #[test]
    fn all_processes_run_one_topology() {
        let store = Embedded::new();
        let session = block_on(enter(&store, &member("one", "t", &["a"]))).unwrap();
        let other = member("other", "u", &["b"]);
        assert_eq!(refusal(&store, &other), "one, which runs node a, was given another topology");
        assert_eq!(block_on(store.list("/registry/leases/")).unwrap().entries.len(), 1, "it took nothing");
        block_on(store.revoke(session)).unwrap();
        block_on(enter(&store, &other)).unwrap();
    }

    /// What each of two processes has been told of its lead, and what is to be written depends on.
    type Leads = Rc<RefCell<Vec<Option<Compare>>>>;

    #[test]
    fn one_leads_at_a_time_and_what_the_one_before_writes_is_refused() {
        let (store, mut pool) = (Embedded::new(), LocalPool::new());
        let sessions = ["one", "other"].map(|name| {
            let session = block_on(enter(&store, &member(name, "t", &[name]))).unwrap();
            let (told, store) = (Leads::default(), store.clone());
            let tell = Rc::clone(&told);
            let stands = async move {
                let ended = stand(&store, name, session, |lead| tell.borrow_mut().push(lead)).await;
                assert!(matches!(ended, Err(ObjectError::Store(StoreError::NoLease { .. }))), "{ended:?}");
            };
            pool.spawner().spawn_local(stands).unwrap();
            (session, told)
        });
        pool.run_until_stalled();
        let [(first, one), (_, other)] = sessions;
        let before = one.borrow().last().cloned().flatten().unwrap();
        assert_eq!((one.borrow().len(), other.borrow().len()), (1, 0));
        let write = |fence: &Compare| {
            let put = Op::Put { key: "/registry/x".into(), value: b"x".as_slice().into(), lease: None };
            block_on(store.transact(vec![fence.clone()], vec![put])).unwrap()
        };
        assert!(matches!(write(&before), Outcome::Done(_)));
        block_on(store.revoke(first)).unwrap();
        assert_eq!(write(&before), Outcome::Conflict, "at once, whatever it knows");
        pool.run_until_stalled();
        assert_eq!(one.borrow().last(), Some(&None));
        let after = other.borrow().last().cloned().flatten().unwrap();
        assert!(matches!(write(&after), Outcome::Done(_)));
        assert_eq!(write(&before), Outcome::Conflict);
    }
}
