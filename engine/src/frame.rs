//! Buffers with headroom, the arena they live in, and the pool each worker draws from.
//!
//! Links fill buffers, the worker rewrites them in place and another link empties them; no frame is copied on
//! the way. Invariants: a [`Frame`] is the only handle to its buffer (it is neither `Copy` nor `Clone`), and
//! indices of all arenas of a process differ, so that a handle opens in its own arena only. Buffers return to
//! the worker that owns them. Allowed dependencies: `clock`, `ring`. Read first: `docs/architecture.md`, "Buffers".
//!
//! Above 400 lines because all unsafe memory is in one file, to be judged at once.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::clock::{CACHE_LINE, prefetch};
use crate::ring::{Popped, Word};
use crate::sys::Memory;

/// Bytes kept free in front of a frame for an encapsulation.
pub const HEADROOM: usize = 128;
/// Bytes from one small buffer to the next: an odd multiple of 64, so that headers spread over all cache sets.
pub const SMALL_STRIDE: usize = 33 * 64;
/// Bytes from one large buffer to the next: room for a 66 KB superframe, again an odd multiple of 64.
pub const LARGE_STRIDE: usize = 1057 * 64;
/// The longest frame a small buffer takes, in bytes.
pub const SMALL_CAPACITY: usize = SMALL_STRIDE - HEADROOM;
/// The longest frame a large buffer takes, in bytes.
pub const LARGE_CAPACITY: usize = LARGE_STRIDE - HEADROOM;

/// What is known of a frame's transport checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum ChecksumState {
    /// Nothing is known: whoever relies on it verifies it.
    #[default]
    Unknown,
    /// Made or verified in this process, and kept right by every rewrite since.
    Verified,
    /// It is yet to be made, and what is in its place means nothing: TCP or UDP in an Ethernet frame, whole.
    Partial,
    /// The same of a superframe's packet behind the outer headers of a tunnel, whose lengths and checksums mean nothing either
    /// on its way out.
    PartialInside,
}

impl ChecksumState {
    /// Tells whether a checksum is yet to be made.
    #[inline(always)]
    #[must_use]
    pub const fn is_unfinished(self) -> bool {
        matches!(self, Self::Partial | Self::PartialInside)
    }
}

/// How a superframe is cut where an egress cannot take it whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Segmentation {
    /// An ordinary frame.
    #[default]
    None,
    /// TCP over IPv4, cut into segments.
    Tcp,
    /// UDP, cut into datagrams.
    Udp,
}

/// What travels beside a frame: one cache line.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
pub struct Record {
    start: u32,
    length: u32,
    /// Trace mark; 0 when the frame is not traced.
    pub mark: u32,
    /// Payload bytes of each segment of a superframe but the last, which may have fewer.
    pub segment_size: u16,
    /// Hops told of since it was marked.
    pub hops: u16,
    /// Whether it asks for the MAC that the frame of its mark waits for.
    pub asks: bool,
    /// The port it came in by.
    pub ingress: u32,
    /// One above the port of a bridge that it came in by first, once it has left that node by a cable; 0 of what came from outside all
    /// bridges.
    pub origin: u32,
    /// The port it leaves by, once decided.
    pub egress: u32,
    /// The node it is at.
    pub node: u16,
    /// Offset of the IPv4 header that is forwarded (the inner one in a tunnel), from the frame's start.
    pub network_offset: u16,
    /// State of the transport checksum.
    pub checksum: ChecksumState,
    /// Where the packet begins whose checksum is [`ChecksumState::PartialInside`], bytes from the frame's start.
    pub inside: u8,
    /// Kind of superframe.
    pub segmentation: Segmentation,
    /// How it came to be decided where it is.
    pub course: Course,
    /// Whether it was put together at this node, by whatever worker: its fragments were seen where they came in.
    pub merged: bool,
    /// A fragment's ports, once the slow path knows them.
    pub fragment_ports: [u16; 2],
    /// One above the last node at which a capture could have shown it; 0 when there was none.
    pub shown_at: u16,
    /// A fragment's identification where its source is translated; 0 when it is none.
    pub identification: u16,
}

/// How a frame came to be decided where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Course {
    /// From its link.
    #[default]
    Direct,
    /// From a worker, to the one that its destination names.
    Steered,
    /// From the node itself, which has translated it: a hairpin.
    Reflected,
    /// From the node itself, which has put it together.
    Merged,
}

const _: () = assert!(size_of::<Record>() == 64);

/// The handle of one buffer in an [`Arena`]; give it back to a [`Pool`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a buffer that is not given back is lost to its pool"]
pub struct Frame(u32);

impl Word for Frame {
    fn into_word(self) -> u64 {
        u64::from(self.0)
    }

    fn from_word(word: u64, _: Popped) -> Self {
        Self(u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0))
    }
}

/// Why an arena cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// All 2³² buffer indices of the process are used up.
    #[error("no more than 2^32 buffers fit one process")]
    TooManyBuffers,
    /// The system gives no memory.
    #[error("the buffers' memory cannot be had")]
    Memory(#[from] std::io::Error),
}

/// The memory of all buffers of an engine; handles decide who may touch which.
#[derive(Debug)]
pub struct Arena {
    base: u32,
    workers: u32,
    small: u32,
    large: u32,
    /// All of them: small and large.
    count: u32,
    records: NonNull<Record>,
    bytes: NonNull<u8>,
    /// What the two point into.
    _memory: [Memory; 2],
}

// SAFETY: a buffer is reachable only through its one `Frame`, borrowed as `&mut` to write, so two threads never
// hold the same buffer; the fields themselves do not change after construction.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

/// Indices already given to arenas of this process, so that no two arenas share one.
static NEXT_BASE: AtomicU32 = AtomicU32::new(0);

impl Arena {
    /// Makes an arena with a pool for each of `workers`, each of `small` and `large` buffers. The memory is
    /// zero and costs pages only as it is used.
    ///
    /// # Errors
    /// [`ArenaError`].
    pub fn new(workers: u8, small: u32, large: u32) -> Result<(Arc<Self>, Vec<Pool>), ArenaError> {
        let workers = u32::from(workers.max(1));
        let per_worker = small.checked_add(large).ok_or(ArenaError::TooManyBuffers)?;
        let count = per_worker.checked_mul(workers).filter(|&n| n > 0).ok_or(ArenaError::TooManyBuffers)?;
        let base = NEXT_BASE
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| next.checked_add(count))
            .map_err(|_| ArenaError::TooManyBuffers)?;
        let (small, large) = (small * workers, large * workers);
        let records = Memory::map(count as usize * size_of::<Record>())?;
        let bytes = Memory::map(small as usize * SMALL_STRIDE + large as usize * LARGE_STRIDE)?;
        let arena = Self {
            base,
            workers,
            small,
            large,
            count,
            records: records.start().cast(),
            bytes: bytes.start(),
            _memory: [records, bytes],
        };
        let arena = Arc::new(arena);
        let pools = (0..workers).map(|worker| Pool::new(&arena, worker)).collect();
        Ok((arena, pools))
    }

    /// Returns how many buffers there are, small and large, of all workers.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.count
    }

    /// Opens a frame to read and write it.
    #[inline(always)]
    pub fn open<'a>(&'a self, frame: &'a mut Frame) -> FrameMut<'a> {
        let (record, bytes, stride) = self.locate(frame);
        // SAFETY: `locate` checked that the buffer lies in this arena; `frame` is its only handle and is
        // borrowed mutably for 'a; the memory is initialised (zero or written) and lives as long as the arena.
        unsafe { FrameMut { record: &mut *record, buffer: std::slice::from_raw_parts_mut(bytes, stride) } }
    }

    /// Starts to fetch a frame's record and its first one or two cache lines, for whoever opens it soon.
    #[inline(always)]
    pub fn prefetch(&self, frame: &Frame, lines: usize) {
        let (record, bytes, _) = self.locate(frame);
        // SAFETY: all point into this arena, whose buffers are longer than that; a prefetch only looks at the address.
        unsafe {
            prefetch(&*record);
            prefetch(&*bytes.add(HEADROOM));
            if lines > 1 {
                prefetch(&*bytes.add(HEADROOM + CACHE_LINE));
            }
        }
    }

    /// Starts to fetch the cache line in front of a frame that begins where it was received.
    #[inline(always)]
    pub fn prefetch_headroom(&self, frame: &Frame) {
        let (_, bytes, _) = self.locate(frame);
        // SAFETY: as above.
        unsafe { prefetch(&*bytes.add(HEADROOM - CACHE_LINE)) };
    }

    /// Returns a frame's bytes, from its Ethernet header on.
    #[inline(always)]
    pub fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        let (record, bytes, stride) = self.locate(frame);
        // SAFETY: as in `open`, with a shared borrow of the only handle.
        let (record, buffer) = unsafe { (&*record, std::slice::from_raw_parts(bytes, stride)) };
        &buffer[record.start as usize..(record.start + record.length) as usize]
    }

    /// Returns a frame's record.
    #[inline(always)]
    pub fn record<'a>(&'a self, frame: &'a Frame) -> &'a Record {
        let (record, ..) = self.locate(frame);
        // SAFETY: as in `open`, with a shared borrow of the only handle.
        unsafe { &*record }
    }

    #[inline(always)]
    fn locate(&self, frame: &Frame) -> (*mut Record, *mut u8, usize) {
        let index = frame.0.wrapping_sub(self.base);
        let (offset, stride) = if index < self.small {
            (index as usize * SMALL_STRIDE, SMALL_STRIDE)
        } else {
            assert!(index < self.count, "the frame belongs to another arena");
            let large = (index - self.small) as usize;
            (self.small as usize * SMALL_STRIDE + large * LARGE_STRIDE, LARGE_STRIDE)
        };
        // SAFETY: the index is below the count, of which `small` are a part, that both allocations were sized for.
        unsafe { (self.records.as_ptr().add(index as usize), self.bytes.as_ptr().add(offset), stride) }
    }

    /// Returns the worker whose pool a buffer belongs to.
    fn owner(&self, index: u32) -> u32 {
        let local = index.wrapping_sub(self.base);
        if local < self.small {
            local / (self.small / self.workers)
        } else {
            (local - self.small) / (self.large / self.workers)
        }
    }
}

/// A frame opened for writing.
#[derive(Debug)]
pub struct FrameMut<'a> {
    /// What travels beside the frame.
    pub record: &'a mut Record,
    buffer: &'a mut [u8],
}

impl<'a> FrameMut<'a> {
    /// Returns the frame's bytes.
    #[inline(always)]
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.record.start as usize..(self.record.start + self.record.length) as usize]
    }

    /// Returns the frame's bytes to change them.
    #[inline(always)]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.record.start as usize..(self.record.start + self.record.length) as usize]
    }

    /// Returns the frame's bytes to change them, for as long as the frame is open.
    #[must_use]
    pub fn into_bytes(self) -> &'a mut [u8] {
        let Self { record, buffer } = self;
        &mut buffer[record.start as usize..(record.start + record.length) as usize]
    }

    /// Makes the frame `length` bytes long, starting behind the headroom; false when it does not fit.
    #[inline(always)]
    pub fn reset(&mut self, length: usize) -> bool {
        if length > self.buffer.len() - HEADROOM {
            return false;
        }
        self.record.start = HEADROOM as u32;
        self.record.length = length as u32;
        true
    }

    /// Keeps the `body` bytes behind the first `old`, with room for `new` bytes in front, growing into the headroom; false
    /// when the frame is shorter than both together or the headroom is used up. The new bytes are whatever was there.
    #[inline(always)]
    #[must_use]
    pub fn reframe(&mut self, old: usize, body: usize, new: usize) -> bool {
        let start = self.record.start as usize + old;
        if old + body > self.record.length as usize || start < new {
            return false;
        }
        self.record.start = (start - new) as u32;
        self.record.length = (new + body) as u32;
        true
    }

    /// Cuts the frame's end off, to `length` bytes; longer than it is changes nothing.
    pub fn truncate(&mut self, length: usize) {
        self.record.length = self.record.length.min(u32::try_from(length).unwrap_or(u32::MAX));
    }
}

/// A worker's own free buffers.
#[derive(Debug)]
pub struct Pool {
    arena: Arc<Arena>,
    worker: u32,
    small: Vec<u32>,
    large: Vec<u32>,
    /// Other workers' buffers on their way home, by owner.
    homebound: Vec<Vec<Frame>>,
    capacity: usize,
    allocated: u64,
    freed: u64,
}

impl Pool {
    fn new(arena: &Arc<Arena>, worker: u32) -> Self {
        let list = |start: u32, count: u32| -> Vec<u32> {
            let share = count / arena.workers;
            let first = arena.base + start + worker * share;
            (first..first + share).rev().collect()
        };
        let (small, large) = (list(0, arena.small), list(arena.small, arena.large));
        let capacity = small.len() + large.len();
        let homebound = (0..arena.workers).map(|_| Vec::new()).collect();
        Self { arena: Arc::clone(arena), worker, small, large, homebound, capacity, allocated: 0, freed: 0 }
    }

    /// Returns the arena behind the pool.
    #[must_use]
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Takes a buffer for a frame of `length` bytes with a clear record; `None` when the pool is empty or the
    /// length is beyond [`LARGE_CAPACITY`].
    #[inline]
    pub fn allocate(&mut self, length: usize) -> Option<Frame> {
        let index = if length <= SMALL_CAPACITY { self.small.pop()? } else { self.large.pop()? };
        let mut frame = Frame(index);
        let mut open = self.arena.open(&mut frame);
        *open.record = Record::default();
        self.allocated += 1;
        if open.reset(length) {
            Some(frame)
        } else {
            self.free(frame);
            None
        }
    }

    /// Takes a buffer and copies another frame's bytes and record into it.
    pub fn copy(&mut self, original: &Frame) -> Option<Frame> {
        let mut frame = self.allocate_like(original, self.arena.bytes(original).len())?;
        self.arena.open(&mut frame).bytes_mut().copy_from_slice(self.arena.bytes(original));
        Some(frame)
    }

    /// Takes a buffer of `length` bytes for a frame that is where another is, and came by its way.
    pub fn allocate_like(&mut self, original: &Frame, length: usize) -> Option<Frame> {
        let mut frame = self.allocate(length)?;
        let open = self.arena.open(&mut frame);
        let (start, length) = (open.record.start, open.record.length);
        *open.record = Record { start, length, ..*self.arena.record(original) };
        Some(frame)
    }

    /// Gives a buffer back; another worker's waits for [`Pool::homebound`].
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        self.freed += 1;
        self.keep(frame);
    }

    /// Takes one of its own buffers back that another pool has freed.
    #[inline]
    pub fn welcome(&mut self, frame: Frame) {
        self.keep(frame);
    }

    #[inline]
    fn keep(&mut self, frame: Frame) {
        let owner = self.arena.owner(frame.0);
        if owner != self.worker {
            self.homebound[owner as usize].push(frame);
        } else if frame.0.wrapping_sub(self.arena.base) < self.arena.small {
            self.small.push(frame.0);
        } else {
            self.large.push(frame.0);
        }
    }

    /// Returns the buffers that are to be sent home to `worker`.
    pub fn homebound(&mut self, worker: usize) -> &mut Vec<Frame> {
        &mut self.homebound[worker]
    }

    /// Returns how many buffers were taken from this pool, and how many, anyone's, were given back to it.
    #[must_use]
    pub fn turnover(&self) -> (u64, u64) {
        (self.allocated, self.freed)
    }

    /// Returns how many of this pool's buffers are not in its free lists.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.capacity - self.small.len() - self.large.len()
    }

    /// Returns how many buffers of other workers wait here to be sent home.
    #[must_use]
    pub fn foreign(&self) -> usize {
        self.homebound.iter().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_grow_into_their_headroom_and_no_further() {
        let (arena, mut pools) = Arena::new(1, 4, 0).unwrap();
        let mut frame = pools[0].allocate(60).unwrap();
        let mut open = arena.open(&mut frame);
        open.bytes_mut().fill(7);
        assert!(open.reframe(14, 46, 42));
        assert_eq!(open.bytes().len(), 88);
        assert!(open.bytes()[42..].iter().all(|&byte| byte == 7));
        assert!(!open.reframe(0, 88, HEADROOM), "the headroom is partly used");
        assert!(!open.reframe(80, 9, 0), "longer than the frame");
        assert!(open.reframe(42, 20, 14));
        assert_eq!(open.bytes().len(), 34, "what was behind is cut off");
        pools[0].free(frame);
        assert_eq!(pools[0].outstanding(), 0);
    }

    #[test]
    fn buffers_return_to_the_worker_that_owns_them() {
        let (_arena, mut pools) = Arena::new(2, 2, 1).unwrap();
        let (mut second, mut first) = (pools.pop().unwrap(), pools.pop().unwrap());
        let small = first.allocate(100).unwrap();
        let large = first.allocate(SMALL_CAPACITY + 1).unwrap();
        assert!(first.allocate(SMALL_CAPACITY + 1).is_none(), "only one large buffer each");
        assert!(first.allocate(LARGE_CAPACITY + 1).is_none());
        second.free(small);
        second.free(large);
        assert_eq!((second.foreign(), first.outstanding()), (2, 2));
        for frame in second.homebound(0).drain(..) {
            first.free(frame);
        }
        assert_eq!((second.foreign(), first.outstanding(), second.outstanding()), (0, 0, 0));
    }

    #[test]
    fn a_copy_has_its_own_bytes() {
        let (arena, mut pools) = Arena::new(1, 4, 0).unwrap();
        let mut original = pools[0].allocate(3).unwrap();
        arena.open(&mut original).bytes_mut().copy_from_slice(b"abc");
        arena.open(&mut original).record.mark = 9;
        let copy = pools[0].copy(&original).unwrap();
        arena.open(&mut original).bytes_mut()[0] = b'x';
        assert_eq!((arena.bytes(&copy), arena.record(&copy).mark), (&b"abc"[..], 9));
        pools[0].free(copy);
        pools[0].free(original);
    }

    #[test]
    #[should_panic(expected = "another arena")]
    fn a_frame_opens_in_its_own_arena_only() {
        let (_first, mut pools) = Arena::new(1, 1, 0).unwrap();
        let (second, _pools) = Arena::new(1, 1, 0).unwrap();
        let mut frame = pools[0].allocate(1).unwrap();
        second.open(&mut frame);
    }
}
