//! What a worker sleeps on: its alarm's bell, and the files of links that the system tells about.
//!
//! A worker without such links asks the system only when it sleeps. Invariant: a file that has something is told of once; who
//! hears it takes everything, or remembers that there is more. Allowed dependencies: mio. Read first: epoll(7), "edge-triggered".

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::alarm::Bell;
use crate::tables::PortId;

/// Files told of at once.
const EVENTS: usize = 256;
/// The bell's token; a port's is its number.
const BELL: Token = Token(usize::MAX);

/// A worker's ear.
#[derive(Debug)]
pub struct Watch {
    poll: Poll,
    events: Events,
    /// Files that are watched.
    files: usize,
    heard: Vec<PortId>,
}

impl Watch {
    /// Makes one that watches nothing.
    ///
    /// # Errors
    /// The system's, when it gives no more files.
    pub fn new() -> io::Result<Self> {
        Ok(Self { poll: Poll::new()?, events: Events::with_capacity(EVENTS), files: 0, heard: Vec::new() })
    }

    /// Makes the bell that is heard here; there is one at most.
    ///
    /// # Errors
    /// The system's, when it gives no more files.
    pub fn bell(&self) -> io::Result<Bell> {
        #[cfg(not(loom))]
        return Bell::new(self.poll.registry(), BELL);
        #[cfg(loom)]
        return Ok(Bell::default());
    }

    /// Begins to watch a port's file.
    ///
    /// # Errors
    /// The system's.
    pub fn add(&mut self, port: PortId, file: impl AsFd) -> io::Result<()> {
        let file = file.as_fd().as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&file), Token(port.0 as usize), Interest::READABLE)?;
        self.files += 1;
        Ok(())
    }

    /// Watches a port's file no more; one that it does not watch changes nothing.
    pub fn remove(&mut self, file: impl AsFd) {
        if self.poll.registry().deregister(&mut SourceFd(&file.as_fd().as_raw_fd())).is_ok() {
            self.files -= 1;
        }
    }

    /// Tells whether it watches any file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files == 0
    }

    /// Waits until there is something, for at most `limit`; returns how many ports' files have something.
    pub fn wait(&mut self, limit: Duration) -> usize {
        // A signal ends the wait, which is no fault.
        if self.poll.poll(&mut self.events, Some(limit)).is_err() {
            self.events.clear();
        }
        let tokens = self.events.iter().map(|event| event.token()).filter(|&token| token != BELL);
        self.heard.clear();
        self.heard.extend(tokens.map(|token| PortId(token.0 as u32)));
        self.heard.len()
    }

    /// Returns one of those ports.
    #[must_use]
    pub fn heard(&self, index: usize) -> PortId {
        self.heard[index]
    }
}
