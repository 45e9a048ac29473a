//! A watch of an etcd: a task that keeps it up over members that go, and the stream that it feeds.
//!
//! [`super::Etcd`] begins it; whoever follows the store polls it.
//!
//! Invariants: events come in order, once, whole revisions at a time; a connection that breaks is taken up at the revision
//! after the last one that was handed over, from any member, as often as it takes; if that revision is compacted, or the
//! store is not the one it was, the watch ends and says so. The task ends with its stream.
//!
//! May depend on `etcd-client`, `tokio` and `futures`.
//!
//! Read first: etcd API, Watch; [`super::connection`].

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use etcd_client::{EventType, GetOptions, WatchOptions, WatchResponse, WatchStream};
use futures::{
    SinkExt, StreamExt,
    channel::mpsc::{Receiver, Sender, channel},
    stream::Stream,
};
use tokio::{
    runtime::Handle,
    task::AbortHandle,
    time::{Instant, error::Elapsed, timeout},
};

use super::{
    Etcd,
    connection::{Connection, Fault, Member, fault},
    notes::{Mark, Warning},
};
use crate::store::{self, Event, EventKind, Revision, StoreError, Watching};

/// Batches that wait to be read; then the member waits.
const BATCHES: usize = 16;
/// How long a member may take to begin a watch, or to say what it has compacted.
const BEGIN: Duration = Duration::from_secs(2);

/// A watch of an [`Etcd`].
pub struct Watch {
    batches: Receiver<Result<Batch, StoreError>>,
    ready: VecDeque<Event>,
    /// Everything up to here is in `ready` or was handed out.
    looked: Revision,
    ended: bool,
    task: AbortHandle,
    /// The thread lives as long as a watch.
    _store: Etcd,
}

/// Events up to the end of a revision.
struct Batch {
    events: VecDeque<Event>,
    progress: Revision,
}

impl Watch {
    pub(super) fn spawn(store: Etcd, runtime: &Handle, prefix: &str, from: Revision, begun: Begun) -> Self {
        let (sender, batches) = channel(BATCHES);
        let looked = Revision(from.0.saturating_sub(1));
        let connection = Arc::clone(store.connection());
        let keeper = Keeper { connection, prefix: prefix.into(), progress: looked, mark: begun.mark, sender };
        let task = runtime.spawn(keeper.run(begun)).abort_handle();
        Self { batches, ready: VecDeque::new(), looked, ended: false, task, _store: store }
    }
}

impl Watching for Watch {
    fn progress(&self) -> Revision {
        store::progress(&self.ready, self.looked)
    }
}

impl Stream for Watch {
    type Item = Result<Event, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(self.batches.poll_next_unpin(context)) {
                Some(Ok(batch)) => {
                    self.looked = self.looked.max(batch.progress);
                    self.ready = batch.events;
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.ended = true;
                    let cause = "its thread has ended".into();
                    return Poll::Ready(Some(Err(StoreError::Unavailable { cause })));
                }
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A watch that a member has begun.
pub(super) struct Begun {
    stream: WatchStream,
    member: Member,
    mark: Mark,
}

/// Why a watch does not begin.
pub(super) enum Refusal {
    /// No member answered as it should; another may.
    Fault(Fault),
    /// It cannot, with any member.
    Never(StoreError),
}

impl From<Refusal> for StoreError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Fault(fault) => fault.into(),
            Refusal::Never(error) => error,
        }
    }
}

/// Begins a watch within the time that a request has.
pub(super) async fn begin_in_time(
    connection: &Connection,
    prefix: &str,
    from: Revision,
) -> Result<Begun, Refusal> {
    let end = Instant::now() + connection.deadline();
    let mut attempt = 0;
    loop {
        let before = connection.notes.mark();
        match begin(connection, prefix, from, before).await {
            // Whose token is too old is refused once, and has another then.
            Err(Refusal::Fault(Fault::Refused { .. })) if attempt == 0 => {}
            Err(Refusal::Fault(Fault::Lost(_))) if Instant::now() < end => {}
            result => return result,
        }
        connection.pause(attempt).await;
        attempt += 1;
    }
}

/// Begins a watch at a revision and makes sure that the store still has it. `before` is how far the store was.
pub(super) async fn begin(
    connection: &Connection,
    prefix: &str,
    from: Revision,
    before: Mark,
) -> Result<Begun, Refusal> {
    let member = connection.member().await.map_err(Refusal::Fault)?;
    match begin_at(connection, &member, prefix, from, before).await {
        Ok((stream, mark)) => Ok(Begun { stream, member, mark }),
        Err(refusal) => {
            if let Refusal::Fault(fault) = &refusal {
                connection.leave(&member, fault).await;
            }
            Err(refusal)
        }
    }
}

async fn begin_at(
    connection: &Connection,
    member: &Member,
    prefix: &str,
    from: Revision,
    before: Mark,
) -> Result<(WatchStream, Mark), Refusal> {
    let silent =
        |_: Elapsed| Refusal::Fault(Fault::Lost(format!("{}: no answer in {BEGIN:?}", member.endpoint)));
    let failed = |error| Refusal::Fault(fault(&member.endpoint, &error));
    // One revision early: of the oldest that etcd lets a watch begin at, it may have forgotten removals (its issue 18089), so
    // it has to refuse where that is the first one asked for. And it has no revision 0, which would be "from now on".
    let start = from.0.saturating_sub(1).clamp(1, i64::MAX as u64) as i64;
    let options = WatchOptions::new().with_prefix().with_progress_notify().with_start_revision(start);

    // 1. The watch, before it is known whether the revision is there: what is compacted later, it says itself.
    let begun = async {
        let mut stream = member.watch.clone().watch(prefix, Some(options)).await?;
        let first = stream.message().await?;
        Ok((stream, first))
    };
    let (mut stream, first) = timeout(BEGIN, begun).await.map_err(silent)?.map_err(failed)?;
    if let Some(response) = first.filter(WatchResponse::canceled) {
        return Err(cancelled(member, &response));
    }

    // 2. Whether the store is the one it was. A read that all members agree on cannot lie behind an earlier one.
    let options = GetOptions::new().with_limit(1).with_keys_only();
    let mut kv = member.kv.clone();
    let now = timeout(BEGIN, kv.get(prefix_key(prefix), Some(options.clone())));
    let now = now.await.map_err(silent)?.map_err(failed)?;
    let mark = Mark::of(now.header());
    let noted = connection.notes.note(&connection.notes.mark(), now.header());
    if let Some(cause) = before.contradicts(&mark) {
        if noted.is_none() {
            connection.notes.warn(Warning::Restored { cause: cause.clone() });
        }
        return Err(Refusal::Never(StoreError::Restored { cause }));
    }

    // 3. Whether the revision is there: a read at it, since a watch takes its time to say so.
    if now.header().is_some_and(|header| start <= header.revision()) {
        let then = timeout(BEGIN, kv.get(prefix_key(prefix), Some(options.with_revision(start))));
        match then.await.map_err(silent)?.map_err(|error| fault(&member.endpoint, &error)) {
            Ok(_) => {}
            Err(Fault::Refused { message, .. }) if message.contains("has been compacted") => {
                let gone = async {
                    while let Some(response) = stream.message().await? {
                        if response.canceled() {
                            return Ok(cancelled(member, &response));
                        }
                    }
                    Ok(Refusal::Fault(Fault::Lost(format!("{}: the watch ended", member.endpoint))))
                };
                return Err(timeout(BEGIN, gone).await.map_err(silent)?.map_err(failed)?);
            }
            Err(fault) => return Err(Refusal::Fault(fault)),
        }
    }
    Ok((stream, mark))
}

/// A key to read: etcd has no empty one.
fn prefix_key(prefix: &str) -> &str {
    if prefix.is_empty() { "\0" } else { prefix }
}

/// Says why a member ended a watch.
fn cancelled(member: &Member, response: &WatchResponse) -> Refusal {
    match response.compact_revision() {
        last @ 1.. => Refusal::Never(StoreError::Compacted { oldest: super::revision(last).next() }),
        _ => Refusal::Fault(Fault::Refused {
            endpoint: Arc::clone(&member.endpoint),
            message: format!("watch cancelled: {}", response.cancel_reason()),
        }),
    }
}

/// Asks the members for the oldest revision that can be watched.
pub(super) async fn oldest(connection: &Connection) -> Result<Revision, Fault> {
    match begin(connection, "", Revision(1), Mark::default()).await {
        Ok(_) => Ok(Revision(1)),
        Err(Refusal::Never(StoreError::Compacted { oldest })) => Ok(oldest),
        Err(Refusal::Never(error)) => Err(Fault::Lost(error.to_string())),
        Err(Refusal::Fault(fault)) => Err(fault),
    }
}

/// Keeps a watch up.
struct Keeper {
    connection: Arc<Connection>,
    prefix: Box<str>,
    /// Everything up to here was handed over.
    progress: Revision,
    /// How far the store was when it was last asked.
    mark: Mark,
    sender: Sender<Result<Batch, StoreError>>,
}

impl Keeper {
    async fn run(mut self, mut begun: Begun) {
        loop {
            match self.hand_over(&mut begun).await {
                Ok(()) => return,
                Err(Refusal::Never(error)) => return self.end(error).await,
                Err(Refusal::Fault(fault)) => self.connection.leave(&begun.member, &fault).await,
            }
            let mut attempt = 0;
            begun = loop {
                let before = self.mark.at_least(self.progress);
                match begin(&self.connection, &self.prefix, self.progress.next(), before).await {
                    Ok(begun) => break begun,
                    Err(Refusal::Never(error)) => return self.end(error).await,
                    Err(Refusal::Fault(_)) => self.connection.pause(attempt).await,
                }
                attempt += 1;
            };
            self.mark = begun.mark;
        }
    }

    /// Hands over what a member says until that ends, or nobody reads any more.
    async fn hand_over(&mut self, begun: &mut Begun) -> Result<(), Refusal> {
        loop {
            let response = begun.stream.message().await;
            let response = response.map_err(|error| Refusal::Fault(fault(&begun.member.endpoint, &error)))?;
            let Some(response) = response else {
                return Err(Refusal::Fault(Fault::Lost(format!(
                    "{}: the watch ended",
                    begun.member.endpoint
                ))));
            };
            if response.canceled() {
                return Err(cancelled(&begun.member, &response));
            }
            let Some(batch) = self.batch(&response) else { continue };
            self.progress = batch.progress;
            if self.sender.send(Ok(batch)).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Reads the events of an answer, or that there are none up to its revision.
    fn batch(&self, response: &WatchResponse) -> Option<Batch> {
        if response.events().is_empty() {
            let revision = Mark::of(response.header()).revision();
            let is_news = !response.created() && revision > self.progress;
            return is_news.then(|| Batch { events: VecDeque::new(), progress: revision });
        }
        let mut progress = self.progress;
        let mut events = VecDeque::new();
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let mod_revision = super::revision(kv.mod_revision());
            // Nothing is said twice, whatever a member says.
            if mod_revision <= self.progress {
                continue;
            }
            progress = progress.max(mod_revision);
            let Some(key) = self.connection.notes.key(kv.key()) else { continue };
            events.push_back(match event.event_type() {
                EventType::Put => Event {
                    kind: EventKind::Put,
                    key,
                    value: kv.value().into(),
                    mod_revision,
                    create_revision: super::revision(kv.create_revision()),
                    lease: super::lease_of(kv.lease()),
                },
                EventType::Delete => Event {
                    kind: EventKind::Delete,
                    key,
                    value: Arc::default(),
                    mod_revision,
                    create_revision: Revision::ZERO,
                    lease: None,
                },
            });
        }
        Some(Batch { events, progress })
    }

    async fn end(&mut self, error: StoreError) {
        // Nobody may read any more.
        let _ = self.sender.send(Err(error)).await;
    }
}
