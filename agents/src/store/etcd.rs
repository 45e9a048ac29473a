//! The store in a real etcd.
//!
//! What nodes of more than one process share. Its files: `options`, how it is reached; `connection`, the member in use
//! and when to leave it; `notes`, what is remembered; `watch`.
//!
//! Invariants: as [`crate::store`]. Its futures and streams belong to no runtime: `etcd-client` runs on a thread of the
//! store's own, which ends with the last handle and the last watch. A read is tried again, with any member, until its
//! time is over; a change only as long as no member can have heard of it.
//!
//! May depend on `etcd-client`, `tokio` and `futures`.
//!
//! Read first: [`crate::store`]; etcd API guarantees; ADR 33.

mod options;

mod connection;

mod notes;

mod watch;

use std::{
    fmt,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use etcd_client::{
    Compare as EtcdCompare, CompareOp, GetOptions, KeyValue as EtcdKeyValue, LeaseTimeToLiveOptions,
    PutOptions, Txn, TxnOp,
};
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

use self::{
    connection::{Connection, Fault, Repeat},
    notes::Mark,
};
use crate::store::{
    self, Compare, KeyValue, LeaseId, LeaseState, Listing, Op, Outcome, Revision, Store, StoreError,
};

pub use self::{
    notes::Warning,
    options::{OpenError, Options, Password, Tls, User},
    watch::Watch,
};

/// A store in an etcd; clones share its connection.
#[derive(Clone)]
pub struct Etcd {
    inner: Arc<Inner>,
}

/// The thread, and what it works on.
struct Inner {
    connection: Arc<Connection>,
    runtime: Handle,
    /// Dropped to end the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It waits for nobody: what was under way is dropped.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Etcd").field(&self.inner.connection.endpoints()).finish()
    }
}

impl Etcd {
    /// Makes ready to ask an etcd. Nobody is asked yet, so that it need not be there.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        let connect = options::connect_options(options)?;
        let connection = Arc::new(Connection::new(options, connect));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(OpenError::Thread)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            let _ = runtime.block_on(stopped);
            // A name that is being looked up is waited for by nobody.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("etcd".into()).spawn(run).map_err(OpenError::Thread)?;
        let inner = Inner { connection, runtime: handle, stop: Some(stop), thread: Some(thread) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Takes what a person should know and has not been told yet.
    pub fn take_warnings(&self) -> Vec<Warning> {
        self.inner.connection.notes.take_warnings()
    }

    fn connection(&self) -> &Arc<Connection> {
        &self.inner.connection
    }

    /// Does something on the store's thread.
    async fn run<R: Send + 'static, F>(&self, act: impl FnOnce(Arc<Connection>) -> F) -> Result<R, StoreError>
    where
        F: Future<Output = Result<R, StoreError>> + Send + 'static,
    {
        let task = self.inner.runtime.spawn(act(Arc::clone(&self.inner.connection)));
        let ended = |_| StoreError::Unavailable { cause: "its thread has ended".into() };
        task.await.map_err(ended)?
    }
}

impl Store for Etcd {
    type Watch = Watch;

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let key = key.to_owned();
        self.run(async move |connection| {
            let entries = read(&connection, &key, &GetOptions::new()).await?.entries;
            Ok(entries.into_iter().next())
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let prefix = prefix.to_owned();
        self.run(async move |connection| read(&connection, &prefix, &GetOptions::new().with_prefix()).await)
            .await
    }

    async fn transact(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Outcome, StoreError> {
        store::check(&ops)?;
        self.run(async move |connection| transact(&connection, &compares, &ops).await).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        let watched = prefix.to_owned();
        let begun = self
            .run(async move |connection| Ok(watch::begin_in_time(&connection, &watched, from).await?))
            .await?;
        Ok(Watch::spawn(self.clone(), &self.inner.runtime, prefix, from, begun))
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.run(async move |connection| compact(&connection, revision).await).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds.max(1)).unwrap_or(i64::MAX);
        self.run(async move |connection| {
            // Where the answer is lost, there is a lease that nobody knows; it ends by itself.
            let granted = connection
                .call(Repeat::Yes, async |mut member| member.lease.grant(seconds, None).await)
                .await
                .map_err(read_only)?;
            Ok(LeaseId(granted.id()))
        })
        .await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.run(async move |connection| {
            let alive = connection.call(Repeat::Yes, async |mut member| {
                // The first answer is etcd-client's own; its second has the time.
                let (mut keeper, mut answers) = member.lease.keep_alive(lease.0).await?;
                keeper.keep_alive().await?;
                Ok(answers.message().await?.map_or(0, |answer| answer.ttl()))
            });
            match alive.await.map_err(|fault| no_lease(fault, lease))? {
                ttl @ 1.. => Ok(seconds(ttl)),
                _ => Err(StoreError::NoLease { lease }),
            }
        })
        .await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<Revision, StoreError> {
        self.run(async move |connection| {
            let revoked = connection
                .call(Repeat::No, async |mut member| member.lease.revoke(lease.0).await)
                .await
                .map_err(|fault| no_lease(fault, lease))?;
            Ok(Mark::of(revoked.header()).revision())
        })
        .await
    }

    async fn lease(&self, lease: LeaseId) -> Result<LeaseState, StoreError> {
        self.run(async move |connection| state_of(&connection, lease).await).await
    }
}

async fn read(connection: &Connection, key: &str, options: &GetOptions) -> Result<Listing, StoreError> {
    let before = connection.notes.mark();
    let mut found = connection
        .call(Repeat::Yes, async |mut member| member.kv.get(key, Some(options.clone())).await)
        .await?;
    connection.notes.note(&before, found.header());
    let entry = |kv: EtcdKeyValue| {
        Some(KeyValue {
            key: connection.notes.key(kv.key())?,
            value: kv.value().into(),
            create_revision: revision(kv.create_revision()),
            mod_revision: revision(kv.mod_revision()),
            lease: lease_of(kv.lease()),
        })
    };
    let entries = found.take_kvs().into_iter().filter_map(entry).collect();
    Ok(Listing { entries, revision: Mark::of(found.header()).revision() })
}

async fn transact(connection: &Connection, compares: &[Compare], ops: &[Op]) -> Result<Outcome, StoreError> {
    let when = compares.iter().map(|compare| {
        let revision = i64::try_from(compare.mod_revision.0).unwrap_or(i64::MAX);
        EtcdCompare::mod_revision(&*compare.key, CompareOp::Equal, revision)
    });
    let then = ops.iter().map(|op| match op {
        Op::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(&**key, &**value, options)
        }
        Op::Delete { key } => TxnOp::delete(&**key, None),
    });
    let (when, then): (Vec<_>, Vec<_>) = (when.collect(), then.collect());
    let transaction = Txn::new().when(when).and_then(then);
    let before = connection.notes.mark();
    let answered =
        connection.call(Repeat::No, async |mut member| member.kv.txn(transaction.clone()).await).await;
    match answered {
        Ok(answer) => {
            connection.notes.note(&before, answer.header());
            let at = Mark::of(answer.header()).revision();
            Ok(if answer.succeeded() { Outcome::Done(at) } else { Outcome::Conflict })
        }
        Err(fault) => Err(refused(connection, ops, fault).await),
    }
}

/// Says in the trait's words why a transaction was refused.
async fn refused(connection: &Connection, ops: &[Op], fault: Fault) -> StoreError {
    let Fault::Refused { message, .. } = &fault else { return fault.into() };
    if message.contains("request is too large") {
        let size = |op: &&Op| match op {
            Op::Put { value, .. } => value.len(),
            Op::Delete { .. } => 0,
        };
        if let Some(largest) = ops.iter().max_by_key(size) {
            return StoreError::TooLarge { key: Arc::clone(largest.key()), size: size(&largest) };
        }
    }
    if message.contains("lease not found") {
        // etcd does not say which.
        for op in ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && let Err(error @ StoreError::NoLease { .. }) = state_of(connection, *lease).await
            {
                return error;
            }
        }
    }
    read_only(fault)
}

/// A full disk of etcd's is its own kind of no.
fn read_only(fault: Fault) -> StoreError {
    match &fault {
        Fault::Refused { message, endpoint } if message.contains("database space exceeded") => {
            StoreError::ReadOnly { cause: format!("{endpoint}: {message}") }
        }
        Fault::Refused { .. } | Fault::Lost(_) => fault.into(),
    }
}

/// What etcd calls compacted up to a revision is not all there from that one on: its removals may be gone. From the next
/// one on it is.
async fn compact(connection: &Connection, oldest: Revision) -> Result<(), StoreError> {
    let last = read(connection, "\0", &GetOptions::new().with_count_only()).await?.revision;
    if oldest > last {
        return Err(StoreError::Future { asked: oldest, last });
    }
    let gone = async || Err(StoreError::Compacted { oldest: watch::oldest(connection).await? });
    let Some(at @ 1..) = oldest.0.checked_sub(1).and_then(|at| i64::try_from(at).ok()) else {
        return gone().await;
    };
    match connection.call(Repeat::No, async |mut member| member.kv.compact(at, None).await).await {
        Ok(_) => Ok(()),
        Err(Fault::Refused { message, .. }) if message.contains("has been compacted") => gone().await,
        Err(fault) => Err(fault.into()),
    }
}

async fn state_of(connection: &Connection, lease: LeaseId) -> Result<LeaseState, StoreError> {
    let options = LeaseTimeToLiveOptions::new().with_keys();
    let found = connection
        .call(Repeat::Yes, async |mut member| member.lease.time_to_live(lease.0, Some(options.clone())).await)
        .await
        .map_err(|fault| no_lease(fault, lease))?;
    // Of the last second no whole one is left; a lease that is not has less.
    if found.ttl() < 0 {
        return Err(StoreError::NoLease { lease });
    }
    let mut keys: Vec<Arc<str>> = found.keys().iter().filter_map(|key| connection.notes.key(key)).collect();
    keys.sort_unstable();
    Ok(LeaseState { granted: seconds(found.granted_ttl()), remaining: seconds(found.ttl()), keys })
}

fn no_lease(fault: Fault, lease: LeaseId) -> StoreError {
    match &fault {
        Fault::Refused { message, .. } if message.contains("lease not found") => {
            StoreError::NoLease { lease }
        }
        Fault::Refused { .. } | Fault::Lost(_) => read_only(fault),
    }
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(count.max(0).unsigned_abs())
}

fn revision(number: i64) -> Revision {
    Revision(number.max(0).unsigned_abs())
}

fn lease_of(number: i64) -> Option<LeaseId> {
    (number != 0).then_some(LeaseId(number))
}

#[cfg(test)]
mod tests;
