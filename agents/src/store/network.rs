//! A network's store: the process' own, but for the objects of a cluster whose processes share an etcd.
//!
//! Agents are given it and need not know which of the two it is. Invariants: keys below `/registry/` are the cluster's, if
//! there is one, and lie below its root there; all others are the own store's; a transaction is about one of them only.
//!
//! May depend on [`super::embedded`] and [`super::etcd`]. Read first: `docs/adr/0038-one-topology-over-several-processes.md`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};

use super::{
    Compare, Embedded, Etcd, Event, KeyValue, LeaseId, LeaseState, Listing, Op, Outcome, Revision, Store,
    StoreError, Watching, embedded, etcd,
};

/// Where objects lie, as in Kubernetes.
const OBJECTS: &str = "/registry/";

/// The store; a clone is another handle to the same.
#[derive(Clone, Debug)]
pub struct NetworkStore {
    own: Embedded,
    cluster: Option<Cluster>,
}

/// Where a cluster's objects lie.
#[derive(Clone, Debug)]
struct Cluster {
    etcd: Etcd,
    root: Arc<str>,
    /// What must be so for anything to be written.
    fence: Option<Compare>,
}

impl From<Embedded> for NetworkStore {
    fn from(own: Embedded) -> Self {
        Self { own, cluster: None }
    }
}

impl NetworkStore {
    /// Shares objects below a root, such as `/flatnet.dev/coreos.com/network`.
    pub fn shared(own: Embedded, etcd: Etcd, root: &str) -> Self {
        Self { own, cluster: Some(Cluster { etcd, root: root.into(), fence: None }) }
    }

    /// Gives the process' own part, in which leases lie.
    pub fn own(&self) -> &Embedded {
        &self.own
    }

    /// Gives a handle that writes objects only as long as a key of them is as it was: who decides for all, and does not any more,
    /// changes nothing.
    #[must_use]
    pub fn fenced(&self, fence: Compare) -> Self {
        let mut fenced = self.clone();
        if let Some(cluster) = &mut fenced.cluster {
            cluster.fence = Some(Compare { key: cluster.there(&fence.key), ..fence });
        }
        fenced
    }

    /// Gives the cluster if it has what is asked for.
    fn cluster(&self, key: &str) -> Option<&Cluster> {
        self.cluster.as_ref().filter(|_| key.starts_with(OBJECTS))
    }

    /// Gives the store whose leases objects are attached to.
    fn leases(&self) -> Result<&Etcd, &Embedded> {
        self.cluster.as_ref().map(|cluster| &cluster.etcd).ok_or(&self.own)
    }
}

impl Cluster {
    /// The key of an object in the etcd.
    fn there(&self, key: &str) -> Arc<str> {
        format!("{}{key}", self.root).into()
    }

    /// An entry of the etcd as agents know it.
    fn here(&self, entry: KeyValue) -> KeyValue {
        KeyValue { key: stripped(&entry.key, self.root.len()), ..entry }
    }
}

/// A key without so many bytes in front; none that was asked for is shorter.
fn stripped(key: &str, root: usize) -> Arc<str> {
    key.get(root..).unwrap_or_default().into()
}

impl Store for NetworkStore {
    type Watch = Watch;

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let Some(cluster) = self.cluster(key) else { return self.own.get(key).await };
        Ok(cluster.etcd.get(&cluster.there(key)).await?.map(|entry| cluster.here(entry)))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let Some(cluster) = self.cluster(prefix) else { return self.own.list(prefix).await };
        let Listing { entries, revision } = cluster.etcd.list(&cluster.there(prefix)).await?;
        Ok(Listing { entries: entries.into_iter().map(|entry| cluster.here(entry)).collect(), revision })
    }

    async fn transact(&self, mut compares: Vec<Compare>, mut ops: Vec<Op>) -> Result<Outcome, StoreError> {
        let Some(cluster) = ops.first().and_then(|op| self.cluster(op.key())) else {
            return self.own.transact(compares, ops).await;
        };
        for compare in &mut compares {
            compare.key = cluster.there(&compare.key);
        }
        for Op::Put { key, .. } | Op::Delete { key } in &mut ops {
            *key = cluster.there(key);
        }
        compares.extend(cluster.fence.clone());
        cluster.etcd.transact(compares, ops).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        Ok(match self.cluster(prefix) {
            None => Watch::Own(self.own.watch(prefix, from).await?),
            Some(cluster) => {
                let watch = cluster.etcd.watch(&cluster.there(prefix), from).await?;
                Watch::Cluster { watch: Box::new(watch), root: cluster.root.len() }
            }
        })
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.own.compact(revision).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        match self.leases() {
            Ok(etcd) => etcd.grant(ttl).await,
            Err(own) => own.grant(ttl).await,
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        match self.leases() {
            Ok(etcd) => etcd.keep_alive(lease).await,
            Err(own) => own.keep_alive(lease).await,
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<Revision, StoreError> {
        match self.leases() {
            Ok(etcd) => etcd.revoke(lease).await,
            Err(own) => own.revoke(lease).await,
        }
    }

    async fn lease(&self, lease: LeaseId) -> Result<LeaseState, StoreError> {
        match self.leases() {
            Ok(etcd) => etcd.lease(lease).await,
            Err(own) => own.lease(lease).await,
        }
    }
}

/// The events of a watch of either.
pub enum Watch {
    /// The own store's.
    Own(embedded::Watch),
    /// The cluster's, whose keys begin with so many bytes that agents do not know.
    Cluster {
        /// The etcd's.
        watch: Box<etcd::Watch>,
        /// The bytes.
        root: usize,
    },
}

impl Stream for Watch {
    type Item = Result<Event, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut *self {
            Self::Own(watch) => watch.poll_next_unpin(context),
            Self::Cluster { watch, root } => {
                let here = |event: Event| Event { key: stripped(&event.key, *root), ..event };
                watch.poll_next_unpin(context).map(|next| next.map(|event| event.map(here)))
            }
        }
    }
}

impl Watching for Watch {
    fn progress(&self) -> Revision {
        match self {
            Self::Own(watch) => watch.progress(),
            Self::Cluster { watch, .. } => watch.progress(),
        }
    }
}
