//! System calls of the engine: memory for buffers and tables.
//!
//! `frame` maps its arena here, `flow` asks for large pages. Invariants: nothing here is called per packet; advice
//! that the system does not take changes speed only. Allowed dependencies: rustix. Read first: madvise(2).
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::{NonNull, null_mut};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Bytes of a large page.
const LARGE_PAGE: usize = 2 << 20;

/// Zeroed memory of its own, in large pages where the system has them; pages cost nothing until they are touched.
#[derive(Debug)]
pub struct Memory {
    map: NonNull<c_void>,
    mapped: usize,
    start: NonNull<u8>,
}

// SAFETY: the memory belongs to this value alone; who may touch which part of it is its user's to say.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps at least `length` bytes, starting at a large page.
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub fn map(length: usize) -> std::io::Result<Self> {
        let mapped =
            length.checked_add(2 * LARGE_PAGE).ok_or(std::io::ErrorKind::OutOfMemory)? & !(LARGE_PAGE - 1);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at an address of the system's choice aliases nothing.
        let map = unsafe {
            mmap_anonymous(null_mut(), mapped, protection, MapFlags::PRIVATE | MapFlags::NORESERVE)?
        };
        let padding = map.align_offset(LARGE_PAGE);
        // SAFETY: the padding is below one large page, of which two more than `length` are mapped.
        let start = unsafe { map.cast::<u8>().add(padding) };
        // SAFETY: the range lies inside the new mapping. Without large pages the advice is refused, which is no fault.
        let _ = unsafe { madvise(start.cast(), mapped - LARGE_PAGE, Advice::LinuxHugepage) };
        let none = || std::io::Error::from(std::io::ErrorKind::OutOfMemory);
        let (map, start) = (NonNull::new(map).ok_or_else(none)?, NonNull::new(start).ok_or_else(none)?);
        Ok(Self { map, mapped, start })
    }

    /// Returns the first byte; valid for as long as the value lives.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this very mapping was made in `map` and is unmapped once. It can only fail for wrong arguments.
        let _ = unsafe { munmap(self.map.as_ptr(), self.mapped) };
    }
}

/// Makes a vector whose memory is in large pages where the system has them; `length` times `value`.
#[must_use]
pub fn filled<T: Clone>(length: usize, value: T) -> Vec<T> {
    let mut vector = Vec::with_capacity(length);
    let room: &mut [MaybeUninit<T>] = vector.spare_capacity_mut();
    let start = room.as_mut_ptr().cast::<u8>();
    let padding = start.align_offset(LARGE_PAGE);
    if let Some(whole) = size_of_val(room).checked_sub(padding).map(|bytes| bytes & !(LARGE_PAGE - 1))
        && whole > 0
    {
        // SAFETY: whole pages inside the vector's own, still untouched memory; see `Memory::map` for a refusal.
        let _ = unsafe { madvise(start.add(padding).cast(), whole, Advice::LinuxHugepage) };
    }
    vector.resize(length, value);
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_memory_is_zero_aligned_and_writable_to_its_end() {
        let length = LARGE_PAGE + 5;
        let memory = Memory::map(length).unwrap();
        let start = memory.start().as_ptr();
        assert_eq!(start.align_offset(LARGE_PAGE), 0);
        // SAFETY: inside the mapping, which lives to the end of the test.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start, length) };
        assert!(bytes.iter().all(|&byte| byte == 0));
        bytes[length - 1] = 1;
    }

    #[test]
    fn a_filled_vector_is_as_any_other() {
        assert_eq!(filled(3, 7u8), [7, 7, 7]);
        assert!(filled(1 << 20, 9u64).iter().all(|&value| value == 9));
    }
}
