//! The ways to a worker: visits from the control side, parcels and notices from the other workers.
//!
//! A worker opens its mailbox once per batch. Invariants: a visit runs on the worker between two batches, so it
//! sees whole state and needs no lock; every way is bounded; a sleeping worker is woken, a running one costs
//! its sender one load. Allowed dependencies: `ring`, `alarm`, `frame`, `worker`, and what notices are about. Read first: `docs/architecture.md`.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use crossbeam::queue::ArrayQueue;

use crate::alarm::Alarm;
use crate::binding::HalfKey;
use crate::frame::Frame;
use crate::link::watch::Watch;
use crate::masquerade::Pool;
use crate::neighbor::Neighbor;
use crate::ring::{Consumer, Popped, Producer, Word};
use crate::tables::{NodeId, PortId};
use crate::wire::MacAddress;
use crate::worker::{Permission, Worker};

/// Visits that wait for a worker at most.
const MAILBOX_LIMIT: usize = 4096;

/// What runs on a worker between two batches.
pub type Visit = Box<dyn FnOnce(&mut Worker) + Send>;

/// What one worker sends another.
#[derive(Debug)]
pub enum Parcel {
    /// A frame to decide about.
    Ingress(Frame),
    /// A decided frame, to send by the egress in its record.
    Egress(Frame),
    /// An empty buffer, back to its owner.
    Home(Frame),
}

impl Word for Parcel {
    fn into_word(self) -> u64 {
        match self {
            Self::Ingress(frame) => frame.into_word(),
            Self::Egress(frame) => (1 << 32) | frame.into_word(),
            Self::Home(frame) => (2 << 32) | frame.into_word(),
        }
    }

    fn from_word(word: u64, popped: Popped) -> Self {
        match word >> 32 {
            0 => Self::Ingress(Frame::from_word(word, popped)),
            1 => Self::Egress(Frame::from_word(word, popped)),
            _ => Self::Home(Frame::from_word(word, popped)),
        }
    }
}

/// What one worker tells the others, ahead of the frames it sends afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A bridge learned a MAC.
    Station(NodeId, MacAddress, PortId),
    /// A neighbour's MAC became known.
    Neighbor(Neighbor, MacAddress),
    /// The path from a node to a peer of its tunnel takes no more than this, bytes.
    PathMtu(NodeId, Ipv4Addr, u16),
    /// Answers with this tuple are for this worker.
    AnswersBegin(HalfKey, u8),
    /// They no longer are.
    AnswersEnd(HalfKey, u8),
    /// This worker is out of ports; who has none either passes it on.
    PortWanted(Pool, u8),
    /// A port for a flow of the receiver's; answers to it will be sent on.
    PortGranted(Pool, u16),
    /// No worker has a port.
    PortRefused(Pool),
    /// Ask this worker before each batch of the port.
    AskFirst(PortId, u8),
    /// May a batch be taken from the port?
    MayTake(PortId),
    /// What the port may take, as this worker sees it.
    Take(PortId, u8, Permission),
}

/// One worker's way to another.
#[derive(Debug)]
pub struct Outgoing {
    /// The frames.
    pub parcels: Producer<Parcel>,
    /// The notices: whoever takes a frame has heeded what was told before it.
    pub notices: Arc<ArrayQueue<Notice>>,
    /// To wake the other; the control side never sleeps.
    pub alarm: Option<Arc<Alarm>>,
    /// Whether something was sent since it was last woken.
    pub unannounced: bool,
}

/// One worker's way from another.
#[derive(Debug)]
pub struct Incoming {
    /// The frames.
    pub parcels: Consumer<Parcel>,
    /// The notices, to be read once frames have been taken and before they are looked at.
    pub notices: Arc<ArrayQueue<Notice>>,
}

/// A worker as the control side sees it.
#[derive(Debug, Clone)]
pub struct Post {
    visits: Arc<ArrayQueue<Visit>>,
    /// Wakes it.
    pub alarm: Arc<Alarm>,
    /// The generation of the tables it last took.
    acknowledged: Arc<AtomicU64>,
    /// Whether containers of its pods ended since somebody asked.
    has_news: Arc<AtomicBool>,
}

/// A visit's answer, once the worker has opened its mailbox.
pub type Answer<R> = mpsc::Receiver<R>;

/// The worker's mailbox is full: it does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker's mailbox is full")]
pub struct MailboxFull;

impl Post {
    /// Has `visit` run on the worker between two batches; the answer comes when it has.
    ///
    /// # Errors
    /// [`MailboxFull`].
    pub fn visit<R: Send + 'static>(
        &self,
        visit: impl FnOnce(&mut Worker) -> R + Send + 'static,
    ) -> Result<Answer<R>, MailboxFull> {
        let (sender, answer) = mpsc::channel();
        let boxed: Visit = Box::new(move |worker| {
            // Who asked may have gone.
            let _ = sender.send(visit(worker));
        });
        self.visits.push(boxed).map_err(|_| MailboxFull)?;
        self.alarm.ring();
        Ok(answer)
    }

    /// Returns the generation of the tables that the worker works by.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Tells whether containers ended there since the last call: [`Worker::take_ended`] then knows which.
    #[must_use]
    pub fn take_news(&self) -> bool {
        // A load for the many times that nothing happened.
        self.has_news.load(Ordering::Relaxed) && self.has_news.swap(false, Ordering::Acquire)
    }
}

/// The worker's side of a [`Post`].
#[derive(Debug)]
pub struct Mailbox {
    visits: Arc<ArrayQueue<Visit>>,
    /// Tells that it sleeps.
    pub alarm: Arc<Alarm>,
    /// What it sleeps on: the alarm's bell and its links' files.
    pub watch: Watch,
    acknowledged: Arc<AtomicU64>,
    has_news: Arc<AtomicBool>,
}

impl Mailbox {
    /// Takes the next visit.
    pub fn next(&self) -> Option<Visit> {
        self.visits.pop()
    }

    /// Tells whether a visit waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.visits.is_empty()
    }

    /// Tells the control side which tables are in use.
    pub fn acknowledge(&self, generation: u64) {
        self.acknowledged.store(generation, Ordering::Release);
    }

    /// Tells the control side that a container ended.
    pub fn announce_news(&self) {
        self.has_news.store(true, Ordering::Release);
    }
}

impl Post {
    /// Makes a worker's post and mailbox.
    ///
    /// # Errors
    /// The system's, when it gives no more files.
    pub fn pair() -> std::io::Result<(Self, Mailbox)> {
        let watch = Watch::new()?;
        let post = Self {
            visits: Arc::new(ArrayQueue::new(MAILBOX_LIMIT)),
            alarm: Arc::new(Alarm::new(watch.bell()?)),
            acknowledged: Arc::default(),
            has_news: Arc::default(),
        };
        let mailbox = Mailbox {
            visits: Arc::clone(&post.visits),
            alarm: Arc::clone(&post.alarm),
            watch,
            acknowledged: Arc::clone(&post.acknowledged),
            has_news: Arc::clone(&post.has_news),
        };
        Ok((post, mailbox))
    }
}
