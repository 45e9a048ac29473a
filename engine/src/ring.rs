//! A bounded single-producer single-consumer ring of words: how workers hand frames to each other.
//!
//! Filled by one worker, emptied by another (or by the same). Invariants: what is popped was pushed exactly
//! once, in order; producer and consumer write different cache lines. Safe code over atomics, model-checked
//! by loom. Allowed dependencies: crossbeam's `CachePadded`. Read first: nothing.

use crossbeam::utils::CachePadded;
#[cfg(loom)]
use loom::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
#[cfg(not(loom))]
use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use std::marker::PhantomData;

/// Proof that a word came out of a ring that its owner put it into; only this file makes one.
#[derive(Debug)]
pub struct Popped(());

/// What fits a ring: a value that is one word while it travels.
pub trait Word: Sized {
    /// Gives the value up for its word.
    fn into_word(self) -> u64;

    /// Takes the value back from a word that [`Word::into_word`] made.
    fn from_word(word: u64, popped: Popped) -> Self;
}

#[derive(Debug)]
struct Shared {
    /// Words ever popped.
    head: CachePadded<AtomicUsize>,
    /// Words ever pushed.
    tail: CachePadded<AtomicUsize>,
}

/// The end that pushes.
#[derive(Debug)]
pub struct Producer<T> {
    shared: Arc<Shared>,
    /// Apart from the counters, so that it is one step to a slot.
    slots: std::sync::Arc<[AtomicU64]>,
    tail: usize,
    /// The consumer's head when last looked at; looked at again only when the ring seems full.
    head: usize,
    word: PhantomData<T>,
}

/// The end that pops.
#[derive(Debug)]
pub struct Consumer<T> {
    shared: Arc<Shared>,
    slots: std::sync::Arc<[AtomicU64]>,
    head: usize,
    word: PhantomData<T>,
}

/// Makes a ring of at least `capacity` words (rounded up to a power of two).
#[must_use]
pub fn ring<T: Word>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let slots: std::sync::Arc<[_]> = (0..capacity.next_power_of_two()).map(|_| AtomicU64::new(0)).collect();
    let shared = Arc::new(Shared {
        head: CachePadded::new(AtomicUsize::new(0)),
        tail: CachePadded::new(AtomicUsize::new(0)),
    });
    let (tail, head, word) = (0, 0, PhantomData);
    let producer =
        Producer { shared: Arc::clone(&shared), slots: std::sync::Arc::clone(&slots), tail, head, word };
    (producer, Consumer { shared, slots, head, word: PhantomData })
}

impl<T: Word> Producer<T> {
    /// Pushes a value, or gives it back when the ring is full. The consumer sees it at once.
    ///
    /// # Errors
    /// The value itself.
    #[inline(always)]
    pub fn push(&mut self, value: T) -> Result<(), T> {
        let mask = self.slots.len() - 1;
        if self.tail.wrapping_sub(self.head) > mask {
            self.head = self.shared.head.load(Ordering::Acquire);
            if self.tail.wrapping_sub(self.head) > mask {
                return Err(value);
            }
        }
        self.slots[self.tail & mask].store(value.into_word(), Ordering::Relaxed);
        self.tail = self.tail.wrapping_add(1);
        self.shared.tail.store(self.tail, Ordering::Release);
        Ok(())
    }
}

impl<T: Word> Consumer<T> {
    /// Pops up to `limit` values into `into`, oldest first; returns how many.
    #[inline]
    pub fn pop(&mut self, limit: usize, mut into: impl FnMut(T)) -> usize {
        let tail = self.shared.tail.load(Ordering::Acquire);
        let count = tail.wrapping_sub(self.head).min(limit);
        let mask = self.slots.len() - 1;
        for _ in 0..count {
            let word = self.slots[self.head & mask].load(Ordering::Relaxed);
            self.head = self.head.wrapping_add(1);
            into(T::from_word(word, Popped(())));
        }
        if count > 0 {
            self.shared.head.store(self.head, Ordering::Release);
        }
        count
    }

    /// Tells whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shared.tail.load(Ordering::Acquire) == self.head
    }
}

#[cfg(test)]
impl Word for u64 {
    fn into_word(self) -> u64 {
        self
    }

    fn from_word(word: u64, _: Popped) -> Self {
        word
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn values_come_out_once_in_order_across_threads() {
        let (mut producer, mut consumer) = ring::<u64>(8);
        let thread = std::thread::spawn(move || {
            for value in 0..100_000u64 {
                while producer.push(value).is_err() {
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < 100_000 {
            consumer.pop(5, |value| {
                assert_eq!(value, next);
                next += 1;
            });
        }
        thread.join().unwrap();
        assert!(consumer.is_empty());
    }

    #[test]
    fn a_full_ring_gives_the_value_back() {
        let (mut producer, mut consumer) = ring::<u64>(2);
        assert_eq!((producer.push(1), producer.push(2), producer.push(3)), (Ok(()), Ok(()), Err(3)));
        assert_eq!(consumer.pop(1, |value| assert_eq!(value, 1)), 1);
        assert_eq!(producer.push(3), Ok(()));
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;

    #[test]
    fn no_order_of_steps_loses_or_repeats_a_word() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring::<u64>(2);
            let thread =
                loom::thread::spawn(move || (1..=3).filter(|&value| producer.push(value).is_ok()).count());
            let mut seen = Vec::new();
            for _ in 0..2 {
                consumer.pop(2, |value| seen.push(value));
                loom::thread::yield_now();
            }
            let pushed = thread.join().unwrap();
            consumer.pop(4, |value| seen.push(value));
            assert_eq!(seen.len(), pushed);
            assert!(seen.windows(2).all(|pair| pair[0] < pair[1]));
        });
    }
}
