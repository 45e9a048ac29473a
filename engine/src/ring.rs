//! A bounded single-producer single-consumer ring of words: how workers hand frames to each other.
//!
//! Filled by one worker, emptied by another (or by the same). A slot says itself whether it is full, so that a word crosses
//! from core to core with one cache line and no counters beside it. Invariants: what is popped was pushed exactly once, in
//! order; only the producer fills a slot, only the consumer empties it. Safe code over atomics, model-checked by loom.
//! Allowed dependencies: none. Read first: Giacomoni et al., "FastForward for efficient pipeline parallelism", 2008.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

use std::marker::PhantomData;
use std::sync::Arc;

/// Proof that a word came out of a ring that its owner put it into; only this file makes one.
#[derive(Debug)]
pub struct Popped(());

/// What fits a ring: a value that is 63 bits while it travels.
pub trait Word: Sized {
    /// Gives the value up for its word.
    fn into_word(self) -> u64;

    /// Takes the value back from a word that [`Word::into_word`] made.
    fn from_word(word: u64, popped: Popped) -> Self;
}

/// Set in a slot that is full; an empty one is 0.
const FULL: u64 = 1 << 63;

/// The end that pushes.
#[derive(Debug)]
pub struct Producer<T> {
    slots: Arc<[AtomicU64]>,
    /// The slot that is filled next.
    tail: usize,
    word: PhantomData<T>,
}

/// The end that pops.
#[derive(Debug)]
pub struct Consumer<T> {
    slots: Arc<[AtomicU64]>,
    /// The slot that is emptied next.
    head: usize,
    word: PhantomData<T>,
}

/// Makes a ring of at least `capacity` words (rounded up to a power of two).
#[must_use]
pub fn ring<T: Word>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let slots: Arc<[_]> = (0..capacity.next_power_of_two()).map(|_| AtomicU64::new(0)).collect();
    let producer = Producer { slots: Arc::clone(&slots), tail: 0, word: PhantomData };
    (producer, Consumer { slots, head: 0, word: PhantomData })
}

impl<T: Word> Producer<T> {
    /// Pushes a value, or gives it back when the ring is full. The consumer sees it at once.
    ///
    /// # Errors
    /// The value itself.
    #[inline(always)]
    pub fn push(&mut self, value: T) -> Result<(), T> {
        let slot = &self.slots[self.tail];
        // Whoever emptied it says nothing else by that, and a slot's own values come in one order for all.
        if slot.load(Ordering::Relaxed) != 0 {
            return Err(value);
        }
        slot.store(value.into_word() | FULL, Ordering::Release);
        self.tail = (self.tail + 1) & (self.slots.len() - 1);
        Ok(())
    }
}

impl<T: Word> Consumer<T> {
    /// Pops up to `limit` values into `into`, oldest first; returns how many.
    #[inline]
    pub fn pop(&mut self, limit: usize, mut into: impl FnMut(T)) -> usize {
        let (slots, mut head, mut count) = (&self.slots[..], self.head, 0);
        while count < limit {
            let word = slots[head].load(Ordering::Acquire);
            if word == 0 {
                break;
            }
            slots[head].store(0, Ordering::Relaxed);
            head = (head + 1) & (slots.len() - 1);
            count += 1;
            into(T::from_word(word & !FULL, Popped(())));
        }
        self.head = head;
        count
    }

    /// Tells whether nothing waits.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots[self.head].load(Ordering::Acquire) == 0
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

    /// What was written before a word was pushed is read after it was popped: as a frame's bytes are.
    #[test]
    fn no_order_of_steps_loses_or_repeats_a_word_or_what_it_stands_for() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring::<u64>(2);
            let written = Arc::new([0; 4].map(AtomicU64::new));
            let theirs = Arc::clone(&written);
            let thread = loom::thread::spawn(move || {
                let mut push = |value: u64| {
                    theirs[value as usize].store(value, Ordering::Relaxed);
                    producer.push(value).is_ok()
                };
                (1..=3).filter(|&value| push(value)).count()
            });
            let mut seen = Vec::new();
            let mut see = |value: u64| {
                assert_eq!(written[value as usize].load(Ordering::Relaxed), value);
                seen.push(value);
            };
            for _ in 0..2 {
                consumer.pop(2, &mut see);
                loom::thread::yield_now();
            }
            let pushed = thread.join().unwrap();
            consumer.pop(4, &mut see);
            assert_eq!(seen.len(), pushed);
            assert!(seen.windows(2).all(|pair| pair[0] < pair[1]));
        });
    }
}
