//! System calls of the engine: memory for buffers and tables.
//!
//! `frame` maps its arena here, `flow` asks for large pages. Invariants: nothing here is called per packet; advice
//! that the system does not take changes speed only. Allowed dependencies: rustix. Read first: madvise(2).
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Index, IndexMut};
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

/// Values in memory of their own, in large pages where the system has them; their number has a limit from the start, and
/// they never move.
#[derive(Debug)]
pub struct LargeVec<T: Copy> {
    memory: Memory,
    length: usize,
    limit: usize,
    value: PhantomData<T>,
}

impl<T: Copy> LargeVec<T> {
    /// Makes room for `limit` values; pages cost nothing until they are touched.
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub fn with_limit(limit: usize) -> std::io::Result<Self> {
        let bytes = limit.checked_mul(size_of::<T>()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory: Memory::map(bytes)?, length: 0, limit, value: PhantomData })
    }

    /// Makes `limit` values, all the same.
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub fn filled(limit: usize, value: T) -> std::io::Result<Self> {
        let mut values = Self::with_limit(limit)?;
        while values.push(value) {}
        Ok(values)
    }

    /// Appends a value; false when there is no room for it.
    #[must_use]
    pub fn push(&mut self, value: T) -> bool {
        if self.length == self.limit {
            return false;
        }
        // SAFETY: the mapping holds `limit` values and starts at a large page, which aligns any of them.
        unsafe { self.memory.start().cast::<T>().add(self.length).write(value) };
        self.length += 1;
        true
    }
}

impl LargeVec<u64> {
    /// Makes `limit` zeros.
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub fn zeroed(limit: usize) -> std::io::Result<Self> {
        // New memory is zero, and so is a number whose bytes are.
        Ok(Self { length: limit, ..Self::with_limit(limit)? })
    }
}

impl<T: Copy> Deref for LargeVec<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `length` values are there, pushed or zero; they live as long as the mapping, borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.memory.start().cast().as_ptr(), self.length) }
    }
}

impl<T: Copy> DerefMut for LargeVec<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start().cast().as_ptr(), self.length) }
    }
}

/// As many values as a power of two, in memory as a [`LargeVec`]'s. Any number stands for one of them: those beyond the last
/// begin again with the first, so that a hash needs no check.
#[derive(Debug)]
pub struct Circle<T: Copy> {
    values: LargeVec<T>,
    /// One less than their number.
    mask: usize,
}

impl<T: Copy> Circle<T> {
    /// Makes `number` values, rounded up to a power of two, all the same.
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub fn filled(number: usize, value: T) -> std::io::Result<Self> {
        let number = number.max(1).checked_next_power_of_two().unwrap_or(usize::MAX);
        LargeVec::filled(number, value).map(|values| Self { values, mask: number - 1 })
    }

    /// Returns one less than their number.
    #[inline(always)]
    #[must_use]
    pub fn mask(&self) -> usize {
        self.mask
    }
}

impl Circle<u64> {
    /// Makes `number` zeros, rounded up to a power of two; pages cost nothing until they are touched.
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub fn zeroed(number: usize) -> std::io::Result<Self> {
        let number = number.max(1).checked_next_power_of_two().unwrap_or(usize::MAX);
        LargeVec::zeroed(number).map(|values| Self { values, mask: number - 1 })
    }
}

impl<T: Copy> Index<usize> for Circle<T> {
    type Output = T;

    #[inline(always)]
    fn index(&self, index: usize) -> &T {
        // SAFETY: the mask is one less than the number of values, a power of two; both are as they were made.
        unsafe { self.values.memory.start().cast::<T>().add(index & self.mask).as_ref() }
    }
}

impl<T: Copy> IndexMut<usize> for Circle<T> {
    #[inline(always)]
    fn index_mut(&mut self, index: usize) -> &mut T {
        // SAFETY: as in `index`; the borrow is unique.
        unsafe { self.values.memory.start().cast::<T>().add(index & self.mask).as_mut() }
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
    fn a_circle_begins_again_behind_its_last_value() {
        let mut circle = Circle::filled(5, 9u64).unwrap();
        circle[8 + 3] = 1;
        circle[usize::MAX] = 2;
        let values: Vec<u64> = (0..8).map(|index| circle[index]).collect();
        assert_eq!((circle.mask(), values), (7, vec![9, 9, 9, 1, 9, 9, 9, 2]));
        assert_eq!(Circle::zeroed(0).unwrap()[1], 0);
        assert!(Circle::zeroed(usize::MAX).is_err());
    }

    #[test]
    fn large_vectors_hold_their_values_up_to_their_limit() {
        let mut filled = LargeVec::filled(1 << 20, 9u64).unwrap();
        filled[7] = 1;
        assert_eq!((filled.len(), filled[7], filled[(1 << 20) - 1]), (1 << 20, 1, 9));
        assert!(LargeVec::filled(usize::MAX, 9u64).is_err());
        let mut pushed = LargeVec::with_limit(2).unwrap();
        assert_eq!([5u64, 6, 7].map(|value| pushed.push(value)), [true, true, false]);
        assert_eq!(pushed[..], [5, 6]);
        let zeros = LargeVec::zeroed(1 << 20).unwrap();
        assert_eq!((zeros.len(), zeros[0], zeros[(1 << 20) - 1]), (1 << 20, 0, 0));
    }
}
