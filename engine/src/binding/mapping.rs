//! Profile `rfc`'s mappings: an inside endpoint has one outside endpoint, whatever remote it speaks to.
//!
//! A mapping is an entry of the table like a binding, under two keys that no packet has: its halves towards all
//! remotes. Invariants: it lives as long as one of its bindings does; an outside endpoint belongs to one mapping, so that a
//! port is never overloaded; who may answer is who was asked, by address. Allowed dependencies: those of `binding`.
//! Read first: RFC 4787, 4.1 and 5; RFC 5382, 4; RFC 5508, 3.

use std::collections::{HashMap, hash_map};

use crate::hash::KeyedState;

use super::{Answers, Bindings, Entry, Half, HalfKey, Instant, Tuple};

/// One inside endpoint's outside endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mapping {
    pub(super) inside: HalfKey,
    pub(super) outside: HalfKey,
    pub(super) answers: Answers,
    bindings: u32,
}

/// Whom the bindings of each mapping are with.
#[derive(Debug)]
pub(super) struct Mappings {
    pub(super) remotes: HashMap<(u32, u32), u32, KeyedState>,
    pub(super) count: usize,
}

impl Mappings {
    pub(super) fn new(secret: [u64; 2]) -> Self {
        Self { remotes: HashMap::with_hasher(KeyedState(secret)), count: 0 }
    }
}

/// Returns the key of a packet's source towards all remotes, for one outside address.
#[must_use]
pub fn inside_key(original: &HalfKey, outside: u32) -> HalfKey {
    let tuple = Tuple { destination: outside, destination_port: 0, ..original.tuple };
    HalfKey { tuple, ..*original }
}

/// Returns the key of a packet's destination from all remotes.
#[must_use]
pub fn outside_key(reply: &HalfKey) -> HalfKey {
    HalfKey { tuple: Tuple { source: 0, source_port: 0, ..reply.tuple }, ..*reply }
}

impl Bindings {
    /// Finds the mapping of an inside endpoint, and its outside port.
    #[must_use]
    pub fn mapping_from(&self, inside: &HalfKey) -> Option<(u32, u16)> {
        let (index, mapping) = self.mapping(inside)?;
        Some((index, mapping.outside.tuple.destination_port))
    }

    /// Finds the mapping that a packet from outside is for, and the tuple that packets of its flow have inside.
    #[must_use]
    pub fn mapping_to(&self, reply: &HalfKey) -> Option<(u32, HalfKey)> {
        let (index, mapping) = self.mapping(&outside_key(reply))?;
        let tuple = Tuple {
            destination: reply.tuple.source,
            destination_port: reply.tuple.source_port,
            ..mapping.inside.tuple
        };
        Some((index, HalfKey { tuple, ..mapping.inside }))
    }

    /// Tells whether a mapping's inside endpoint has a binding with a remote address (RFC 4787, REQ-8:
    /// address-dependent filtering).
    #[must_use]
    pub fn permits(&self, mapping: u32, remote: u32) -> bool {
        self.mappings.remotes.contains_key(&(mapping, remote))
    }

    /// Makes a mapping without bindings; `None` when an endpoint has one already, or at the table's limit.
    pub fn map(&mut self, inside: HalfKey, outside: HalfKey, answers: Answers, now: Instant) -> Option<u32> {
        if !self.is_free(&inside, now) || !self.is_free(&outside, now) {
            return None;
        }
        let made = self.occupy(Entry::Mapping(Mapping { inside, outside, answers, bindings: 0 }))?;
        self.give_half(&inside, made.index, Half::Original);
        self.give_half(&outside, made.index, Half::Reply);
        self.mappings.count += 1;
        Some(made.index)
    }

    /// Ends a mapping that got no binding after all.
    pub fn end_unused(&mut self, mapping: u32) {
        if let Entry::Mapping(Mapping { bindings: 0, .. }) = self.places[mapping as usize].entry {
            self.end(mapping);
        }
    }

    /// One more binding belongs to a mapping.
    pub(super) fn join(&mut self, mapping: u32, remote: u32) {
        if let Entry::Mapping(mapping) = &mut self.places[mapping as usize].entry {
            mapping.bindings += 1;
        }
        *self.mappings.remotes.entry((mapping, remote)).or_default() += 1;
    }

    /// One binding less; the last one's end is the mapping's.
    pub(super) fn part(&mut self, mapping: u32, remote: u32) {
        if let hash_map::Entry::Occupied(mut count) = self.mappings.remotes.entry((mapping, remote)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        if let Entry::Mapping(held) = &mut self.places[mapping as usize].entry {
            held.bindings -= 1;
            self.end_unused(mapping);
        }
    }

    fn mapping(&self, key: &HalfKey) -> Option<(u32, &Mapping)> {
        if self.mappings.count == 0 {
            return None;
        }
        let (index, _) = self.place_of(key)?;
        match &self.places[index as usize].entry {
            Entry::Mapping(mapping) => Some((index, mapping)),
            Entry::Free(_) | Entry::Here(_) | Entry::Elsewhere(..) => None,
        }
    }
}
