//! Whose turn it is: what the system tells of the files of pods and containers, one after the other.
//!
//! [`super::Runtime`] asks when it looks in. Invariant: who has more to say than is heard at once is heard again when all others were.
//!
//! May depend on `mio`.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::ops::Bound;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

/// Files that are heard of at once.
const EVENTS: usize = 256;

/// Whose file it is: a pod's, that says when all has ended, or one of the container at this place in its manifest.
pub(super) type Owner = (String, Option<usize>);

/// Where the system tells of files.
#[derive(Debug)]
pub(super) struct Ear {
    poll: Poll,
    events: Events,
    owners: HashMap<Token, Owner>,
    next: usize,
    /// Who is to be looked at.
    waiting: BTreeSet<Owner>,
    /// Whose turn was last.
    last: Option<Owner>,
}

impl Ear {
    pub(super) fn new() -> io::Result<Self> {
        let (poll, events) = (Poll::new()?, Events::with_capacity(EVENTS));
        Ok(Self { poll, events, owners: HashMap::new(), next: 0, waiting: BTreeSet::new(), last: None })
    }

    /// Watches files of one owner.
    pub(super) fn watch<'a>(
        &mut self,
        files: impl IntoIterator<Item = BorrowedFd<'a>>,
        owner: Owner,
    ) -> io::Result<Token> {
        let token = Token(self.next);
        self.next += 1;
        for file in files {
            self.poll.registry().register(&mut SourceFd(&file.as_raw_fd()), token, Interest::READABLE)?;
        }
        self.owners.insert(token, owner);
        Ok(token)
    }

    /// Forgets an owner's files.
    pub(super) fn forget(&mut self, token: Token) {
        self.owners.remove(&token);
    }

    /// Notes those of whose files there is something.
    pub(super) fn hear(&mut self) {
        // A signal ends the look, which is no fault.
        if self.poll.poll(&mut self.events, Some(Duration::ZERO)).is_ok() {
            let heard = self.events.iter().filter_map(|event| self.owners.get(&event.token()).cloned());
            self.waiting.extend(heard);
        }
    }

    /// Notes one that has more, of which the system does not tell again.
    pub(super) fn look_again(&mut self, owner: Owner) {
        self.waiting.insert(owner);
    }

    /// Takes the one whose turn it is.
    pub(super) fn take_next(&mut self) -> Option<Owner> {
        let after = self.last.take().map_or(Bound::Unbounded, Bound::Excluded);
        let next =
            self.waiting.range((after, Bound::Unbounded)).next().or_else(|| self.waiting.first())?.clone();
        self.waiting.remove(&next);
        self.last = Some(next.clone());
        Some(next)
    }
}
