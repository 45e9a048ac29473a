//! Where bindings are kept: places of two cache lines, used again and again.
//!
//! The table of bindings occupies and vacates them. Invariants: a place that is vacated is used again after all others that
//! are free; its generation changes as it is vacated. Allowed dependencies: `sys`, `clock`. Read first: `translation.rs`.

use std::net::Ipv4Addr;
use std::ops::{Deref, DerefMut};

use super::mapping::Mapping;
use super::{Binding, BindingRef, Half, HalfKey};
use crate::clock::{Instant, prefetch_whole};
use crate::sys::LargeVec;

/// Tags compared at once: two cache lines of them.
const TAGS_AT_ONCE: usize = 64;

/// What a place holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entry {
    /// Nothing; the place that becomes free next has this number.
    Free(u32),
    Here(Binding),
    Mapping(Mapping),
    /// Answers with this tuple are for another worker, until it says that its binding ended.
    Elsewhere(HalfKey, u8),
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Place {
    pub(super) generation: u32,
    pub(super) entry: Entry,
}

const _: () = assert!(size_of::<Place>() == 128);

impl Place {
    pub(super) fn binding(&self) -> Option<&Binding> {
        match &self.entry {
            Entry::Here(binding) => Some(binding),
            Entry::Free(_) | Entry::Mapping(_) | Entry::Elsewhere(..) => None,
        }
    }

    pub(super) fn has_expired(&self, now: Instant) -> bool {
        self.binding().is_some_and(|binding| binding.has_ended(now))
    }

    /// The key of a half; a redirect has that of the answers only.
    pub(super) fn key(&self, half: Half) -> Option<&HalfKey> {
        match (&self.entry, half) {
            (Entry::Here(binding), Half::Original) => Some(&binding.original),
            (Entry::Here(binding), Half::Reply) => Some(&binding.reply),
            (Entry::Mapping(mapping), Half::Original) => Some(&mapping.inside),
            (Entry::Mapping(mapping), Half::Reply) => Some(&mapping.outside),
            (Entry::Elsewhere(reply, _), Half::Reply) => Some(reply),
            (Entry::Elsewhere(..), Half::Original) | (Entry::Free(_), _) => None,
        }
    }
}

/// All places that were ever used.
#[derive(Debug)]
pub(super) struct Places {
    places: LargeVec<Place>,
    /// Of each place, what its backend hashes to: a backend's bindings are found without a look at all others.
    tags: LargeVec<u16>,
    free: FreeList,
}

/// The places that nothing holds, by the numbers in them: the first has been free for longest.
#[derive(Debug, Default)]
struct FreeList {
    count: u32,
    first: u32,
    last: u32,
}

impl Places {
    /// Makes room for `limit` places.
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub(super) fn new(limit: usize) -> std::io::Result<Self> {
        let (places, tags) = (LargeVec::with_limit(limit)?, LargeVec::with_limit(limit)?);
        Ok(Self { places, tags, free: FreeList::default() })
    }

    /// Counts the places that are in use.
    pub(super) fn used(&self) -> usize {
        self.places.len() - self.free.count as usize
    }

    /// Puts an entry into a place; none when all are in use.
    pub(super) fn occupy(&mut self, entry: Entry) -> Option<BindingRef> {
        let new = self.places.len() as u32;
        // Fails where all places are in use, or were.
        let pushed =
            self.free.count == 0 && self.places.push(Place { generation: 0, entry }) && self.tags.push(0);
        let index = if pushed { new } else { self.reuse()? };
        let place = &mut self.places[index as usize];
        place.entry = entry;
        Some(BindingRef { index, generation: place.generation })
    }

    /// Takes the place that has been free for longest.
    fn reuse(&mut self) -> Option<u32> {
        let FreeList { count, first, .. } = &mut self.free;
        *count = count.checked_sub(1)?;
        let index = *first;
        if let Entry::Free(next) = self.places[index as usize].entry {
            *first = next;
            // It was free for longest, too.
            self.prefetch(next as usize);
        }
        Some(index)
    }

    /// Starts to fetch a place, if there is one of this number.
    #[inline(always)]
    pub(super) fn prefetch(&self, index: usize) {
        if let Some(place) = self.places.get(index) {
            prefetch_whole(place);
        }
    }

    /// Takes what a place holds and puts the place behind all that are free; one that is free stays where it is.
    pub(super) fn vacate(&mut self, index: u32) -> Entry {
        let place = &mut self.places[index as usize];
        if let Entry::Free(_) = place.entry {
            return place.entry;
        }
        place.generation = place.generation.wrapping_add(1);
        let entry = std::mem::replace(&mut place.entry, Entry::Free(index));
        let FreeList { count, first, last } = &mut self.free;
        match std::mem::replace(last, index) {
            _ if *count == 0 => *first = index,
            before => self.places[before as usize].entry = Entry::Free(index),
        }
        *count += 1;
        entry
    }

    /// Notes which backend, by address and port, a place's binding leads to.
    pub(super) fn note_backend(&mut self, index: u32, backend: (Ipv4Addr, u16)) {
        self.tags[index as usize] = tag(backend);
    }

    /// Finds the next place, beginning with `from`, whose binding may lead to a backend.
    pub(super) fn next_to(&self, backend: (Ipv4Addr, u16), from: usize) -> Option<usize> {
        let wanted = tag(backend);
        let rest = self.tags.get(from..)?;
        // Without an early end inside a chunk, so that it is a few comparisons of whole vectors.
        let has_it = |tags: &[u16]| tags.iter().fold(false, |any, &tag| any | (tag == wanted));
        let chunk = rest.chunks(TAGS_AT_ONCE).position(has_it)? * TAGS_AT_ONCE;
        Some(from + chunk + rest[chunk..].iter().position(|&tag| tag == wanted)?)
    }
}

impl Deref for Places {
    type Target = [Place];

    #[inline(always)]
    fn deref(&self) -> &[Place] {
        &self.places
    }
}

impl DerefMut for Places {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [Place] {
        &mut self.places
    }
}

/// Hashes a backend: another may have the same tag, which costs a look at its bindings.
fn tag((address, port): (Ipv4Addr, u16)) -> u16 {
    let bits = (u64::from(address.to_bits()) << 16) | u64::from(port);
    (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16
}
