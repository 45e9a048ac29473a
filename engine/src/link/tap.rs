//! A TAP: a network interface of the system's whose other end is a port here.
//!
//! A worker reads from it when its `watch` hears of it, and writes at the end of a batch what was sent. Each read and each write
//! is one frame behind a virtio-net header; a superframe is one, and so are frames of a flow that are written together. Invariants: a frame longer than a small buffer comes into a
//! large one, none is cut; what the interface does not take is dropped by name. Allowed dependencies: `sys`, `frame`,
//! `offload`, `coalesce`. Read first: the kernel's `Documentation/networking/tuntap.rst`.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use rustix::io::{Errno, readv, writev};

use crate::frame::{Arena, Frame, LARGE_CAPACITY, Pool, SMALL_CAPACITY};
use crate::ledger::DropReason;
use crate::link::coalesce::{GROUP_LIMIT, HEADERS_LIMIT, Leader};
use crate::link::feature::{Feature, FeatureError};
use crate::link::offload;
use crate::sys::{TapOffloads, VNET_HEADER, open_tap, set_tap_offloads};

/// Threads that close TAPs, when there are many.
const CLOSERS: usize = 32;

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
    /// The caller may not open the file that makes TAPs.
    #[error("{name}: /dev/net/tun may not be opened by this user")]
    Device {
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
    /// A frame is lost: no large buffer was free, or it was not what came with it.
    Lost(DropReason),
    /// Nothing is there, or the interface is gone.
    Empty,
}

/// A TAP, open.
#[derive(Debug)]
pub struct Tap {
    name: Arc<str>,
    file: OwnedFd,
    /// Bytes of the header in front of each frame.
    header: usize,
    /// Where the rest of a frame goes that is longer than a small buffer, while no large one is free.
    rest: Box<[u8]>,
    /// Frames to be written.
    waiting: VecDeque<Frame>,
    /// Whether frames of a flow are written together.
    coalesces: bool,
    /// What it gives unfinished; none of a socket, whose interface decides about that.
    offloads: Option<TapOffloads>,
}

impl Tap {
    /// Opens the TAP of this name, and makes it where there is none: then it goes with this value.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(name: &str) -> Result<Self, TapError> {
        let (file, offloads) = open_tap(name).map_err(|source| {
            let name = name.to_owned();
            match Errno::from_io_error(&source) {
                None => TapError::Name(name),
                Some(Errno::PERM) => TapError::NotAllowed { name },
                Some(Errno::ACCESS) => TapError::Device { name },
                Some(Errno::BUSY | Errno::INVAL) => TapError::Taken { name },
                Some(_) => TapError::System { name, source },
            }
        })?;
        Ok(Self { offloads: Some(offloads), ..Self::of_file(name, file, VNET_HEADER) })
    }

    /// Takes a socket for the frames of an interface of the host's, which reads and writes them as a TAP does, behind a header of so
    /// many bytes.
    pub(super) fn of_packet_socket(interface: &str, socket: OwnedFd, header: usize) -> Self {
        Self::of_file(interface, socket, header.min(VNET_HEADER))
    }

    fn of_file(name: &str, file: OwnedFd, header: usize) -> Self {
        let rest = vec![0; LARGE_CAPACITY - SMALL_CAPACITY].into();
        let (name, waiting) = (Arc::from(name), VecDeque::new());
        Self { name, file, header, rest, waiting, coalesces: true, offloads: None }
    }

    /// Lists what it leaves to the system.
    pub(super) fn features(&self) -> Vec<(Feature, bool)> {
        let offloads = self.offloads.iter().flat_map(|it| {
            [(Feature::Checksum, it.checksum), (Feature::Tso, it.tso), (Feature::Uso, it.uso)]
        });
        offloads.chain([(Feature::Gso, self.coalesces)]).collect()
    }

    /// Switches one; without checksums to be made there are no superframes either.
    pub(super) fn set_feature(&mut self, feature: Feature, on: bool) -> Result<(), FeatureError> {
        if feature == Feature::Gso {
            self.coalesces = on;
            return Ok(());
        }
        let mut offloads = self.offloads.ok_or(FeatureError::None(feature))?;
        match feature {
            Feature::Checksum if on => offloads.checksum = true,
            Feature::Checksum => offloads = TapOffloads::default(),
            Feature::Tso | Feature::Uso if on && !offloads.checksum => {
                return Err(FeatureError::Needs(feature));
            }
            Feature::Tso => offloads.tso = on,
            Feature::Uso => offloads.uso = on,
            Feature::Gso | Feature::Gro => return Err(FeatureError::None(feature)),
        }
        set_tap_offloads(&self.file, offloads).map_err(|source| FeatureError::System(feature, source))?;
        self.offloads = Some(offloads);
        Ok(())
    }

    /// Returns the interface's name, as it was when the TAP was opened.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Reads a frame into a buffer of the pool; into `large`, which is then gone, when it is longer than a small one.
    pub fn read(&mut self, arena: &Arena, pool: &mut Pool, large: &mut Option<Frame>) -> Read {
        let Some(mut small) = pool.allocate(SMALL_CAPACITY) else { return Read::NoBuffer };
        let mut header = [0; VNET_HEADER];
        let rest = match large {
            Some(large) => &mut arena.open(large).into_bytes()[SMALL_CAPACITY..],
            None => &mut self.rest,
        };
        let mut open = arena.open(&mut small);
        let parts = &mut [
            IoSliceMut::new(&mut header[..self.header]),
            IoSliceMut::new(open.bytes_mut()),
            IoSliceMut::new(rest),
        ];
        let length = match readv(&self.file, parts) {
            Ok(length) => length.saturating_sub(self.header),
            Err(errno) => {
                pool.free(small);
                // A socket's frame that no such header describes is gone, and others may be behind it.
                return if errno == Errno::INVAL {
                    Read::Lost(DropReason::MalformedOffload)
                } else {
                    Read::Empty
                };
            }
        };
        let mut frame = if length <= SMALL_CAPACITY {
            open.truncate(length);
            small
        } else {
            let Some(mut whole) = large.take() else {
                pool.free(small);
                return Read::Lost(DropReason::PoolEmpty);
            };
            let mut open = arena.open(&mut whole);
            open.bytes_mut()[..SMALL_CAPACITY].copy_from_slice(arena.bytes(&small));
            open.truncate(length);
            pool.free(small);
            whole
        };
        match offload::receive(&mut arena.open(&mut frame), &header) {
            Ok(()) => Read::Frame(frame),
            Err(reason) => {
                pool.free(frame);
                Read::Lost(reason)
            }
        }
    }

    /// Closes the file on a thread of its own: it takes the system tens of milliseconds to take an interface away, and a worker has
    /// better things to do.
    pub fn close(self: Box<Self>) {
        // Without a thread it is closed here.
        drop(thread::Builder::new().name("tap-close".to_owned()).spawn(move || drop(self)));
    }

    /// Closes many, side by side: they wait for the system together.
    pub fn close_all(taps: Vec<Box<Self>>) {
        thread::scope(|scope| {
            let mut parts: Vec<Vec<Box<Self>>> = (0..CLOSERS.min(taps.len())).map(|_| Vec::new()).collect();
            let count = parts.len().max(1);
            taps.into_iter().enumerate().for_each(|(index, tap)| parts[index % count].push(tap));
            for part in parts {
                drop(thread::Builder::new().spawn_scoped(scope, move || drop(part)));
            }
        });
    }

    /// Takes a frame to be written with the others that wait; returns how many those are.
    pub fn queue(&mut self, frame: Frame) -> usize {
        self.waiting.push_back(frame);
        self.waiting.len()
    }

    /// Takes the frames that wait, unwritten.
    pub fn unwritten(&mut self) -> impl Iterator<Item = Frame> {
        self.waiting.drain(..)
    }

    /// Writes all frames that wait, in their order; gives each to `done`, with the reason to drop it if it must be: the
    /// interface is down or gone, or the system is out of memory.
    pub fn write(&mut self, arena: &Arena, mut done: impl FnMut(Frame, Result<(), DropReason>)) {
        while !self.waiting.is_empty() {
            let (count, written) = self.write_next(arena);
            let result = match written {
                Ok(()) => Ok(()),
                Err(Errno::AGAIN | Errno::NOMEM | Errno::NOBUFS) => Err(DropReason::LinkQueueFull),
                Err(Errno::MSGSIZE) => Err(DropReason::LinkMtu),
                Err(_) => Err(DropReason::LinkDown),
            };
            self.waiting.drain(..count).for_each(|frame| done(frame, result));
        }
    }

    /// Writes the first frame and those that go with it; returns how many they are.
    fn write_next(&mut self, arena: &Arena) -> (usize, Result<(), Errno>) {
        if self.coalesces && self.waiting.len() > 1 {
            match self.write_group(arena) {
                // This kernel takes no such segments.
                Some((_, Err(Errno::INVAL))) => self.coalesces = false,
                Some(written) => return written,
                None => {}
            }
        }
        let Some(frame) = self.waiting.front_mut() else { return (0, Ok(())) };
        let mut open = arena.open(frame);
        let header = offload::send(&mut open);
        (1, writev(&self.file, &[IoSlice::new(&header[..self.header]), IoSlice::new(open.bytes())]).map(drop))
    }

    /// Writes the first frames as one, if they are a flow's; `None` when the first is alone.
    fn write_group(&self, arena: &Arena) -> Option<(usize, Result<(), Errno>)> {
        let leader = Leader::of(arena, self.waiting.front()?)?;
        let mut parts = [IoSlice::new(&[]); GROUP_LIMIT + 2];
        parts[2] = IoSlice::new(leader.payload());
        let (mut count, mut carried, mut last) = (1, leader.size(), self.waiting.front()?);
        for next in self.waiting.iter().take(GROUP_LIMIT).skip(1) {
            let Some((payload, is_last)) = leader.followed_by(arena, next, carried) else { break };
            parts[2 + count] = IoSlice::new(payload);
            (count, carried, last) = (count + 1, carried + payload.len(), next);
            if is_last {
                break;
            }
        }
        if count == 1 {
            return None;
        }
        let mut headers = [0; HEADERS_LIMIT];
        let length = leader.write_headers(&mut headers, carried, arena.bytes(last));
        let header = offload::header_of(&leader.layout, leader.segmentation, leader.size() as u16);
        (parts[0], parts[1]) = (IoSlice::new(&header[..self.header]), IoSlice::new(&headers[..length]));
        Some((count, writev(&self.file, &parts[..2 + count]).map(drop)))
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
