//! Which place a half belongs to: a table of words, open to whoever knows the hash.
//!
//! The table of bindings asks it with a key's hash and compares the key itself where the hash agrees: keys are kept in the
//! places only. Invariants: every word lies between its home and the next empty slot, so that nothing is marked as deleted;
//! at most half of the slots are used. Allowed dependencies: `sys`, `clock`. Read first: Knuth, "Sorting and Searching",
//! 6.4, algorithms L and R.

use super::Half;
use crate::clock::prefetch;
use crate::sys::LargeVec;

/// A table of halves.
#[derive(Debug)]
pub(super) struct Halves {
    /// Upper half: of the hash, whose lower bits are the home. Lower half: place and half, one added; 0 is empty.
    words: LargeVec<u64>,
}

impl Halves {
    /// Makes a table for both halves of `places` places.
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub(super) fn new(places: usize) -> std::io::Result<Self> {
        let halves = places.saturating_mul(2).max(1);
        let slots = halves.saturating_mul(2).checked_next_power_of_two().unwrap_or(usize::MAX);
        Ok(Self { words: LargeVec::zeroed(slots)? })
    }

    /// Finds the place and half of this hash of which `is_it` says so.
    #[inline]
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(u32, Half) -> bool) -> Option<(u32, Half)> {
        let mut slot = self.home(hash);
        loop {
            let word = self.words[slot];
            if word == 0 {
                return None;
            }
            let (index, half) = contents(word);
            if word >> 32 == hash >> 32 && is_it(index, half) {
                return Some((index, half));
            }
            slot = self.next(slot);
        }
    }

    /// Adds a half of a place, which is not there.
    #[inline]
    pub(super) fn insert(&mut self, hash: u64, index: u32, half: Half) {
        let mut slot = self.home(hash);
        while self.words[slot] != 0 {
            slot = self.next(slot);
        }
        self.words[slot] = word(hash, index, half);
    }

    /// Removes a half of a place; what lies behind it moves up.
    pub(super) fn remove(&mut self, hash: u64, index: u32, half: Half) {
        let wanted = word(hash, index, half);
        let mut hole = self.home(hash);
        while self.words[hole] != wanted {
            if self.words[hole] == 0 {
                return;
            }
            hole = self.next(hole);
        }
        let mut slot = hole;
        loop {
            slot = self.next(slot);
            let word = self.words[slot];
            if word == 0 {
                break;
            }
            // It may move to the hole unless its home lies behind that.
            let from_home = slot.wrapping_sub(self.home(word)) & self.mask();
            if from_home >= slot.wrapping_sub(hole) & self.mask() {
                self.words[hole] = word;
                hole = slot;
            }
        }
        self.words[hole] = 0;
    }

    /// Starts to fetch the slots of a hash.
    #[inline(always)]
    pub(super) fn prefetch(&self, hash: u64) {
        prefetch(&self.words[self.home(hash)]);
    }

    /// A word has the same upper half as the hash that it was stored under.
    #[inline(always)]
    fn home(&self, hash_or_word: u64) -> usize {
        (hash_or_word >> 32) as usize & self.mask()
    }

    #[inline(always)]
    fn next(&self, slot: usize) -> usize {
        (slot + 1) & self.mask()
    }

    #[inline(always)]
    fn mask(&self) -> usize {
        self.words.len() - 1
    }
}

fn word(hash: u64, index: u32, half: Half) -> u64 {
    hash & !u64::from(u32::MAX) | (u64::from(index) * 2 + u64::from(half == Half::Reply) + 1)
}

fn contents(word: u64) -> (u32, Half) {
    let number = (word as u32).wrapping_sub(1);
    (number / 2, if number.is_multiple_of(2) { Half::Original } else { Half::Reply })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    use super::*;

    proptest! {
        /// Few homes, so that the ways from them overlap and go round the end.
        #[test]
        fn it_holds_what_a_map_does(
            changes in prop::collection::vec((any::<bool>(), 0u32..40, 0u64..6), 1..200),
        ) {
            let (mut halves, mut model) = (Halves::new(10).unwrap(), BTreeMap::new());
            let hash = |home: u64| (home.wrapping_sub(3) << 32) | 7;
            for (add, number, home) in changes {
                let (index, half) = contents(u64::from(number) + 1);
                if add && model.len() < 20 && !model.contains_key(&number) {
                    model.insert(number, home);
                    halves.insert(hash(home), index, half);
                } else if !add && let Some(home) = model.remove(&number) {
                    halves.remove(hash(home), index, half);
                } else {
                    halves.remove(hash(home), index + 100, half);
                }
                for number in 0..40 {
                    let (index, half) = contents(u64::from(number) + 1);
                    let is_it = |a, b| (a, b) == (index, half);
                    for home in 0..6 {
                        let expected = model.get(&number) == Some(&home);
                        prop_assert_eq!(halves.find(hash(home), is_it).is_some(), expected);
                    }
                }
            }
        }
    }
}
