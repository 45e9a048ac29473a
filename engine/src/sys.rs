//! System calls of the engine: memory for buffers and tables.
//!
//! `frame` maps its arena here, `flow` asks for large pages. Invariants: nothing here is called per packet; advice
//! that the system does not take changes speed only. Allowed dependencies: rustix. Read first: madvise(2).
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
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

/// A slice of its own memory, in large pages where the system has them.
#[derive(Debug)]
pub struct LargeSlice<T: Copy> {
    memory: Memory,
    length: usize,
    value: PhantomData<T>,
}

impl<T: Copy> LargeSlice<T> {
    /// Makes a slice of `length` times `value`.
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub fn filled(length: usize, value: T) -> std::io::Result<Self> {
        let bytes = length.checked_mul(size_of::<T>()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let memory = Memory::map(bytes)?;
        let start = memory.start().cast::<T>();
        for index in 0..length {
            // SAFETY: the mapping holds `length` values and starts at a large page, which aligns any of them.
            unsafe { start.add(index).write(value) };
        }
        Ok(Self { memory, length, value: PhantomData })
    }
}

impl<T: Copy> Deref for LargeSlice<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `filled` wrote `length` values there; they live as long as the mapping, borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.memory.start().cast().as_ptr(), self.length) }
    }
}

impl<T: Copy> DerefMut for LargeSlice<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start().cast().as_ptr(), self.length) }
    }
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
    fn a_large_slice_is_as_any_other() {
        let mut slice = LargeSlice::filled(1 << 20, 9u64).unwrap();
        slice[7] = 1;
        assert_eq!((slice.len(), slice[7], slice[(1 << 20) - 1]), (1 << 20, 1, 9));
        assert!(LargeSlice::filled(usize::MAX, 9u64).is_err());
    }
}
