//! Connections that a SYN began and no ACK has completed.
//!
//! The table asks it before it makes a connection. An entry is the SYN, the SYN-ACK and the seed that reproduces it, about 150
//! octets; the socket with its buffers is made when the ACK comes.
//!
//! Invariants: at most [`PER_LISTENER`] entries a listener and [`PER_POD`] a pod; an entry lives [`LIFETIME`], in which its SYN-ACK is sent
//! again after 1, 3, 7, 15 and 31 s. A full table drops the SYN silently: a RST would tell a slow client that nobody listens.
//! Allowed dependencies: `clock`. Read first: RFC 9293 section 3.5, RFC 4987.

use super::Tuple;
use crate::clock::Instant;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Half-open connections of one listener.
pub const PER_LISTENER: usize = 128;
/// Half-open connections of one pod.
pub const PER_POD: usize = 1024;
/// How long one lasts: six waits, each twice the one before, as Linux has it.
pub const LIFETIME: Duration = Duration::from_secs(63);
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// A half-open connection.
#[derive(Debug, Clone)]
pub(super) struct HalfOpen {
    /// The received SYN, a whole packet.
    pub(super) syn: Vec<u8>,
    /// The answer, a whole packet.
    pub(super) answer: Vec<u8>,
    /// The sequence number of the SYN.
    pub(super) remote_initial: u32,
    /// The sequence number of the answer.
    pub(super) local_initial: u32,
    /// What makes the same answer again.
    pub(super) seed: u64,
    /// The MTU the answer was made for.
    pub(super) mtu: usize,
    /// When the SYN came.
    pub(super) since: Instant,
}

/// What a timer found.
#[derive(Debug)]
pub(super) enum Expiry {
    /// Send this SYN-ACK again.
    Again(Vec<u8>),
    /// The entry is gone.
    Ended,
}

#[derive(Debug)]
struct Slot {
    entry: HalfOpen,
    due: Instant,
    wait: Duration,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct HalfOpenTable {
    slots: BTreeMap<Tuple, Slot>,
    timers: BTreeSet<(Instant, Tuple)>,
    per_listener: BTreeMap<u16, usize>,
}

impl HalfOpenTable {
    /// Says whether another entry fits for a listener.
    pub(super) fn has_room(&self, port: u16) -> bool {
        self.slots.len() < PER_POD && self.per_listener.get(&port).copied().unwrap_or(0) < PER_LISTENER
    }

    /// Adds an entry; the caller has asked [`HalfOpenTable::has_room`].
    pub(super) fn insert(&mut self, tuple: Tuple, entry: HalfOpen) {
        self.remove(&tuple);
        let due = entry.since + FIRST_RETRY;
        self.timers.insert((due, tuple));
        *self.per_listener.entry(tuple.local.port()).or_default() += 1;
        self.slots.insert(tuple, Slot { entry, due, wait: FIRST_RETRY });
    }

    /// Finds an entry.
    pub(super) fn get(&self, tuple: &Tuple) -> Option<&HalfOpen> {
        self.slots.get(tuple).map(|slot| &slot.entry)
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, tuple: &Tuple) -> Option<HalfOpen> {
        let slot = self.slots.remove(tuple)?;
        self.timers.remove(&(slot.due, *tuple));
        if let Some(count) = self.per_listener.get_mut(&tuple.local.port()) {
            *count = count.saturating_sub(1);
        }
        if self.slots.is_empty() {
            // An empty tree keeps its last node: what an idle pod would hold for ever.
            *self = Self::default();
        }
        Some(slot.entry)
    }

    /// Takes all entries of a listener out.
    pub(super) fn remove_port(&mut self, port: u16) {
        let tuples: Vec<Tuple> =
            self.slots.keys().filter(|tuple| tuple.local.port() == port).copied().collect();
        for tuple in tuples {
            self.remove(&tuple);
        }
    }

    /// Returns when [`HalfOpenTable::expire`] has something to say.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|&(due, _)| due)
    }

    /// Takes one timer that is due.
    pub(super) fn expire(&mut self, now: Instant) -> Option<(Tuple, Expiry)> {
        let &(due, tuple) = self.timers.first().filter(|&&(due, _)| due <= now)?;
        let slot = self.slots.get_mut(&tuple)?;
        if due >= slot.entry.since + LIFETIME {
            self.remove(&tuple);
            return Some((tuple, Expiry::Ended));
        }
        self.timers.remove(&(due, tuple));
        slot.wait *= 2;
        slot.due = (due + slot.wait).min(slot.entry.since + LIFETIME);
        self.timers.insert((slot.due, tuple));
        Some((tuple, Expiry::Again(slot.entry.answer.clone())))
    }

    /// Returns how many entries there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddrV4};

    fn tuple(port: u16, remote_port: u16) -> Tuple {
        let address = Ipv4Addr::new(10, 1, 15, 2);
        Tuple { local: SocketAddrV4::new(address, port), remote: SocketAddrV4::new(address, remote_port) }
    }

    fn entry(since: Instant) -> HalfOpen {
        HalfOpen {
            syn: Vec::new(),
            answer: Vec::new(),
            remote_initial: 0,
            local_initial: 0,
            seed: 0,
            mtu: 1500,
            since,
        }
    }

    /// RFC 4987, 3.4: a SYN cache and its bounds.
    #[test]
    fn a_listener_has_its_share_and_the_pod_its_bound() {
        let mut table = HalfOpenTable::default();
        for remote_port in 0..PER_LISTENER as u16 {
            assert!(table.has_room(80));
            table.insert(tuple(80, remote_port), entry(Instant::ZERO));
        }
        assert!(!table.has_room(80) && table.has_room(81));
        for number in 0..(PER_POD - PER_LISTENER) as u16 {
            table.insert(tuple(1000 + number, 1), entry(Instant::ZERO));
        }
        assert!(!table.has_room(81));
        table.remove_port(80);
        assert!(table.has_room(80));
        assert_eq!(table.len(), PER_POD - PER_LISTENER);
    }

    /// RFC 6298, 5.5; Linux's `tcp_synack_retries`.
    #[test]
    fn the_answer_is_sent_again_five_times_in_63_seconds() {
        let mut table = HalfOpenTable::default();
        table.insert(tuple(80, 1), entry(Instant::ZERO));
        let mut times = Vec::new();
        while let Some(due) = table.next_timer() {
            match table.expire(due) {
                Some((_, Expiry::Again(_))) => times.push(due.as_nanos() / 1_000_000_000),
                Some((_, Expiry::Ended)) => assert_eq!(due, Instant::ZERO + LIFETIME),
                None => panic!("a timer that is due says nothing"),
            }
        }
        assert_eq!(times, [1, 3, 7, 15, 31]);
        assert_eq!(table.len(), 0);
    }
}
