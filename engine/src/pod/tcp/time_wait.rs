//! Connections that ended here first and whose last segments may still be on the way.
//!
//! The table puts them in without buffers and asks about segments that belong to no connection.
//! A newer SYN may take one's place here, where it ended, and a reset ends it. A pod that connects takes no port of one towards
//! the same peer: Linux would (`tcp_tw_reuse`) by timestamps alone (RFC 6191), which our segments do not have.
//! Invariants: an entry lives [`LIFETIME`]; at most [`LIMIT`] entries, the oldest gives way.
//! Allowed dependencies: `clock`. Read first: RFC 9293 section 3.6.1, RFC 6191, RFC 1337.

use super::Tuple;
use super::wire::LastSent;
use crate::clock::Instant;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How long an ended connection is remembered: Linux's `TCP_TIMEWAIT_LEN`.
const LIFETIME: Duration = Duration::from_secs(60);
/// Ended connections remembered at once.
const LIMIT: usize = 4096;

/// The table.
#[derive(Debug, Default)]
pub(super) struct TimeWait {
    entries: BTreeMap<Tuple, (LastSent, Instant)>,
    /// In the order of their ends.
    order: VecDeque<(Instant, Tuple)>,
}

impl TimeWait {
    /// Remembers a connection.
    pub(super) fn insert(&mut self, tuple: Tuple, last: LastSent, now: Instant) {
        self.expire(now);
        if self.order.len() >= LIMIT {
            self.remove_oldest();
        }
        self.entries.insert(tuple, (last, now + LIFETIME));
        self.order.push_back((now + LIFETIME, tuple));
    }

    /// Finds a connection.
    pub(super) fn get(&self, tuple: &Tuple, now: Instant) -> Option<LastSent> {
        self.entries.get(tuple).filter(|&&(_, until)| now < until).map(|&(last, _)| last)
    }

    /// Forgets a connection: a new one takes its place, or its other side reset it.
    pub(super) fn remove(&mut self, tuple: &Tuple) {
        self.entries.remove(tuple);
    }

    fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|&(until, _)| until <= now) {
            self.remove_oldest();
        }
    }

    fn remove_oldest(&mut self) {
        if let Some((until, tuple)) = self.order.pop_front()
            && self.entries.get(&tuple).is_some_and(|&(_, entry)| entry == until)
        {
            self.entries.remove(&tuple);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddrV4};

    /// RFC 9293, 3.6.1; 60 s, as on Linux.
    #[test]
    fn entries_expire_and_are_bounded() {
        let address = |number: u32| SocketAddrV4::new(Ipv4Addr::from_bits(number), 80);
        let tuple = |number| Tuple { local: address(1), remote: address(number) };
        let mut table = TimeWait::default();
        for number in 0..5000 {
            table.insert(tuple(number), LastSent::default(), Instant::ZERO);
        }
        assert_eq!(table.entries.len(), LIMIT);
        assert!(table.get(&tuple(0), Instant::ZERO).is_none());
        assert!(table.get(&tuple(4999), Instant::ZERO).is_some());
        let later = Instant::ZERO + Duration::from_secs(60);
        assert!(table.get(&tuple(4999), Instant::from_nanos(later.as_nanos() - 1)).is_some());
        assert!(table.get(&tuple(4999), later).is_none());
        table.insert(tuple(1), LastSent::default(), later);
        assert_eq!(table.entries.len(), 1);
    }
}
