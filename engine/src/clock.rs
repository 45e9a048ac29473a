//! Time and the processor's own counters.
//!
//! Called by the worker's loop (once per batch) and by benches; everything else takes time as a parameter.
//! Invariants: an [`Instant`] is monotonic nanoseconds since its clock started, virtual or real.
//! Allowed dependencies: the standard library. Read first: `docs/architecture.md`, "Time".
#![allow(unsafe_code)]

use std::ops::Add;
use std::time::Duration;

/// A point in time: nanoseconds since the engine's clock started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// The clock's start.
    pub const ZERO: Self = Self(0);

    /// Makes an instant from nanoseconds since the clock's start.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns nanoseconds since the clock's start.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the time since `earlier`, zero when `earlier` is later.
    #[must_use]
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The real clock, started at zero; shared by all workers so that their times compare.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: std::time::Instant,
}

impl Clock {
    /// Starts a clock at [`Instant::ZERO`].
    #[must_use]
    pub fn start() -> Self {
        Self { start: std::time::Instant::now() }
    }

    /// Reads the clock.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::ZERO + self.start.elapsed()
    }
}

/// Reads the processor's time-stamp counter, in TSC clocks; nanoseconds where there is none.
#[must_use]
pub fn timestamp_counter() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: RDTSC is part of every x86-64 processor and has no memory effects.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        use std::sync::OnceLock;
        static START: OnceLock<std::time::Instant> = OnceLock::new();
        u64::try_from(START.get_or_init(std::time::Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Asks the processor to bring `target`'s cache line closer; never faults and changes nothing.
#[inline(always)]
pub fn prefetch<T>(target: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the pointer comes from a live reference; a prefetch reads nothing architecturally.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(target).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = target;
}

/// Bytes of a cache line.
pub(crate) const CACHE_LINE: usize = 64;

/// Asks the processor to bring all cache lines of `target` closer, as [`prefetch`].
#[inline(always)]
pub fn prefetch_whole<T>(target: &T) {
    let start = std::ptr::from_ref(target).cast::<u8>();
    for offset in (0..size_of::<T>()).step_by(CACHE_LINE) {
        // SAFETY: each line begins inside of what the reference is for.
        prefetch(unsafe { &*start.add(offset) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_saturates_instead_of_wrapping() {
        let late = Instant::from_nanos(u64::MAX - 1);
        assert_eq!((late + Duration::from_secs(1)).as_nanos(), u64::MAX);
        assert_eq!(Instant::ZERO.saturating_duration_since(late), Duration::ZERO);
    }

    #[test]
    fn time_stamp_counter_advances() {
        let first = timestamp_counter();
        let mut word = first;
        prefetch(&word);
        while timestamp_counter() == first {
            word = word.wrapping_add(1);
        }
        assert!(timestamp_counter() > first);
    }
}
