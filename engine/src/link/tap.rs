//! A TAP: a network interface of the system's whose other end is a port here.
//!
//! A worker reads from it when its `watch` hears of it, and writes frames to it as they are sent. Each read and each write is
//! one frame behind a virtio-net header. Invariants: a frame longer than a small buffer comes into a large one, none is cut;
//! what the interface does not take is dropped by name. Allowed dependencies: `sys`, `frame`. Read first: the kernel's
//! `Documentation/networking/tuntap.rst`; virtio 1.2, 5.1.6 for the header.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::{Errno, readv, writev};

use crate::frame::{Arena, Frame, LARGE_CAPACITY, Pool, SMALL_CAPACITY};
use crate::ledger::DropReason;
use crate::sys::{VNET_HEADER, open_tap};

/// Why a TAP cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name is not one that an interface may have.
    #[error("{0:?} cannot be an interface's name: 1 to 15 bytes")]
    Name(String),
    /// The caller may not make network interfaces.
    #[error("{name}: TAPs need the capability CAP_NET_ADMIN")]
    NotAllowed {
        /// The TAP's name.
        name: String,
    },
    /// Another process has the TAP, or the interface of this name is none.
    #[error("{name}: another process has this TAP, or it is another kind of interface")]
    Taken {
        /// The TAP's name.
        name: String,
    },
    /// The system does not give it.
    #[error("{name}: the TAP cannot be opened")]
    System {
        /// The TAP's name.
        name: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What a read came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// A frame.
    Frame(Frame),
    /// No buffer is free; whatever is there waits.
    NoBuffer,
    /// A frame is lost, because no large buffer was free.
    Lost,
    /// Nothing is there, or the interface is gone.
    Empty,
}

/// A TAP, open.
#[derive(Debug)]
pub struct Tap {
    name: Arc<str>,
    file: OwnedFd,
    /// Where the rest of a frame goes that is longer than a small buffer.
    rest: Box<[u8]>,
}

impl Tap {
    /// Opens the TAP of this name, and makes it where there is none: then it goes with this value.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(name: &str) -> Result<Self, TapError> {
        let file = open_tap(name).map_err(|source| {
            let name = name.to_owned();
            match Errno::from_io_error(&source) {
                None => TapError::Name(name),
                Some(Errno::PERM | Errno::ACCESS) => TapError::NotAllowed { name },
                Some(Errno::BUSY | Errno::INVAL) => TapError::Taken { name },
                Some(_) => TapError::System { name, source },
            }
        })?;
        let rest = vec![0; LARGE_CAPACITY - SMALL_CAPACITY].into();
        Ok(Self { name: Arc::from(name), file, rest })
    }

    /// Returns the interface's name, as it was when the TAP was opened.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Reads a frame into a buffer.
    pub fn read(&mut self, pool: &mut Pool) -> Read {
        let arena = Arc::clone(pool.arena());
        let Some(mut frame) = pool.allocate(SMALL_CAPACITY) else { return Read::NoBuffer };
        let mut header = [0; VNET_HEADER];
        let mut open = arena.open(&mut frame);
        let parts = &mut [
            IoSliceMut::new(&mut header),
            IoSliceMut::new(open.bytes_mut()),
            IoSliceMut::new(&mut self.rest),
        ];
        let length = match readv(&self.file, parts) {
            Ok(length) => length.saturating_sub(VNET_HEADER),
            Err(_) => {
                pool.free(frame);
                return Read::Empty;
            }
        };
        if length <= SMALL_CAPACITY {
            open.truncate(length);
            return Read::Frame(frame);
        }
        let large = pool.allocate(length);
        let read = large.map_or(Read::Lost, |mut large| {
            let mut whole = arena.open(&mut large);
            let (first, rest) = whole.bytes_mut().split_at_mut(SMALL_CAPACITY);
            first.copy_from_slice(arena.bytes(&frame));
            rest.copy_from_slice(&self.rest[..length - SMALL_CAPACITY]);
            Read::Frame(large)
        });
        pool.free(frame);
        read
    }

    /// Writes a frame.
    ///
    /// # Errors
    /// Why it must be dropped: the interface is down or gone, or the system is out of memory.
    pub fn write(&self, arena: &Arena, frame: &Frame) -> Result<(), DropReason> {
        let header = [0; VNET_HEADER];
        let parts = &[IoSlice::new(&header), IoSlice::new(arena.bytes(frame))];
        match writev(&self.file, parts) {
            Ok(_) => Ok(()),
            Err(Errno::AGAIN | Errno::NOMEM | Errno::NOBUFS) => Err(DropReason::LinkQueueFull),
            Err(_) => Err(DropReason::LinkDown),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
