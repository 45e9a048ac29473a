//! The pod's neighbours: who has which MAC, who is being asked, and what waits for the answer.
//!
//! The device asks it for the MAC of a next hop and tells it what ARP brought. It does no I/O: it says what to send.
//!
//! Invariants: at most [`QUEUE_LIMIT`] packets wait per neighbour, [`QUEUE_LEAST`] while [`WAITING_LIMIT`] wait in all, and
//! [`TABLE_LIMIT`] neighbours are known; a neighbour is asked [`ATTEMPTS`] times, a second apart, then its packets fail as host unreachable.
//! Depends on `clock` and `wire`. Read first: RFC 826, RFC 1122 section 2.3.2.

use crate::clock::Instant;
use crate::wire::MacAddress;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Packets that wait for one neighbour, Linux' `unres_qlen`: a datagram's fragments wait whole.
pub(super) const QUEUE_LIMIT: usize = 101;
/// Packets that wait for one whatever waits for others.
const QUEUE_LEAST: usize = 3;
/// Packets that wait in all before that is all.
const WAITING_LIMIT: usize = 1024;
/// Neighbours known at once.
pub(super) const TABLE_LIMIT: usize = 1024;
/// Requests before a neighbour counts as absent.
const ATTEMPTS: u8 = 3;
/// Time between two requests (RFC 1122, 2.3.2.1).
const RETRY: Duration = Duration::from_secs(1);
/// Age from which an entry is asked for again while it is used.
const FRESH: Duration = Duration::from_secs(60);

/// A packet that waits for its next hop's MAC.
#[derive(Debug)]
pub(super) struct Waiting {
    /// The whole IPv4 packet.
    pub(super) packet: Vec<u8>,
    /// Its trace mark; 0 when nobody follows it.
    pub(super) mark: u32,
}

/// What to do with a packet for a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    /// Send it there; ask again, too, when the entry is old.
    Known {
        /// The neighbour's address on the link.
        mac: MacAddress,
        /// Whether a request is due.
        ask: bool,
    },
    /// Drop it: the table is full of neighbours that are being asked.
    Full,
    /// Hand it to [`Neighbors::wait`]; ask when that is due.
    Unknown {
        /// Whether a request is due.
        ask: bool,
    },
}

/// What a timer found.
#[derive(Debug)]
pub(super) enum Expiry {
    /// Ask for this neighbour once more, for the waiting packet of this trace mark.
    Ask(Ipv4Addr, u32),
    /// Nobody answered: these packets are undeliverable.
    Failed(Vec<Waiting>),
}

#[derive(Debug, Default)]
struct Neighbor {
    mac: Option<MacAddress>,
    confirmed: Instant,
    /// Requests sent since the last answer, and when the next is due.
    asking: Option<(u8, Instant)>,
    queue: Vec<Waiting>,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Neighbors {
    table: BTreeMap<Ipv4Addr, Neighbor>,
    timers: BTreeSet<(Instant, Ipv4Addr)>,
    /// Packets that wait.
    waiting: usize,
}

impl Neighbors {
    /// Finds the MAC of a next hop, and says whether to ask for it.
    pub(super) fn lookup(&mut self, address: Ipv4Addr, now: Instant) -> Lookup {
        if !self.table.contains_key(&address) && !self.make_room() {
            return Lookup::Full;
        }
        let neighbor = self.table.entry(address).or_default();
        let fresh = neighbor.mac.is_some() && now.saturating_duration_since(neighbor.confirmed) < FRESH;
        let ask = !fresh && neighbor.asking.is_none();
        if ask {
            neighbor.asking = Some((1, now + RETRY));
            self.timers.insert((now + RETRY, address));
        }
        match neighbor.mac {
            Some(mac) => Lookup::Known { mac, ask },
            None => Lookup::Unknown { ask },
        }
    }

    /// Keeps a packet until the neighbour answers; returns the oldest when there are too many.
    pub(super) fn wait(&mut self, address: Ipv4Addr, packet: Waiting) -> Option<Waiting> {
        let limit = if self.waiting < WAITING_LIMIT { QUEUE_LIMIT } else { QUEUE_LEAST };
        let queue = &mut self.table.entry(address).or_default().queue;
        queue.push(packet);
        let displaced = (queue.len() > limit).then(|| queue.remove(0));
        self.waiting += usize::from(displaced.is_none());
        displaced
    }

    /// Learns an address; a new one only when `create` says that the sender means us (RFC 826). Returns what waited.
    pub(super) fn learn(
        &mut self,
        address: Ipv4Addr,
        mac: MacAddress,
        create: bool,
        now: Instant,
    ) -> Vec<Waiting> {
        if !self.table.contains_key(&address) && (!create || !self.make_room()) {
            return Vec::new();
        }
        let neighbor = self.table.entry(address).or_default();
        neighbor.mac = Some(mac);
        neighbor.confirmed = now;
        if let Some((_, due)) = neighbor.asking.take() {
            self.timers.remove(&(due, address));
        }
        self.waiting -= neighbor.queue.len();
        std::mem::take(&mut neighbor.queue)
    }

    /// Returns when [`Neighbors::expire`] has something to say.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|&(due, _)| due)
    }

    /// Takes one timer that is due.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Expiry> {
        let &(due, address) = self.timers.first().filter(|&&(due, _)| due <= now)?;
        self.timers.remove(&(due, address));
        let neighbor = self.table.get_mut(&address)?;
        let attempts = neighbor.asking.map_or(0, |(attempts, _)| attempts);
        if attempts < ATTEMPTS {
            neighbor.asking = Some((attempts + 1, now + RETRY));
            self.timers.insert((now + RETRY, address));
            return Some(Expiry::Ask(address, latest_mark(&neighbor.queue)));
        }
        let failed = self.table.remove(&address).map(|neighbor| neighbor.queue).unwrap_or_default();
        self.waiting -= failed.len();
        Some(Expiry::Failed(failed))
    }

    /// Returns the known neighbours for display: address, MAC (none while asking), whether fresh.
    pub(super) fn iter(&self, now: Instant) -> impl Iterator<Item = (Ipv4Addr, Option<MacAddress>, bool)> {
        self.table.iter().map(move |(&address, neighbor)| {
            (address, neighbor.mac, now.saturating_duration_since(neighbor.confirmed) < FRESH)
        })
    }

    /// Forgets the neighbour confirmed longest ago when the table is full; false when packets wait for all of them.
    fn make_room(&mut self) -> bool {
        if self.table.len() < TABLE_LIMIT {
            return true;
        }
        let idle = self.table.iter().filter(|(_, neighbor)| neighbor.queue.is_empty());
        let Some(oldest) = idle.min_by_key(|(_, neighbor)| neighbor.confirmed).map(|(&address, _)| address)
        else {
            return false;
        };
        if let Some((_, due)) = self.table.remove(&oldest).and_then(|neighbor| neighbor.asking) {
            self.timers.remove(&(due, oldest));
        }
        true
    }
}

/// Returns the mark of the latest packet that somebody follows; 0 when there is none.
fn latest_mark(queue: &[Waiting]) -> u32 {
    queue.iter().rev().map(|waiting| waiting.mark).find(|&mark| mark != 0).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 3);
    const MAC: MacAddress = MacAddress::for_ipv4(ADDRESS);

    fn packet(number: u8) -> Waiting {
        Waiting { packet: vec![number], mark: u32::from(number) }
    }

    /// RFC 1122, 2.3.2.2.
    #[test]
    fn packets_wait_for_the_answer_and_the_oldest_gives_way() {
        let mut neighbors = Neighbors::default();
        assert_eq!(neighbors.lookup(ADDRESS, Instant::ZERO), Lookup::Unknown { ask: true });
        assert_eq!(neighbors.lookup(ADDRESS, Instant::ZERO), Lookup::Unknown { ask: false });
        for number in 0..QUEUE_LIMIT {
            assert!(neighbors.wait(ADDRESS, packet(number as u8)).is_none());
        }
        assert_eq!(neighbors.wait(ADDRESS, packet(200)).unwrap().packet, [0]);
        assert_eq!(neighbors.learn(ADDRESS, MAC, false, Instant::ZERO).len(), QUEUE_LIMIT);
        assert_eq!(neighbors.lookup(ADDRESS, Instant::ZERO), Lookup::Known { mac: MAC, ask: false });
        assert_eq!(neighbors.next_timer(), None);
    }

    /// RFC 1122, 2.3.2.2.
    #[test]
    fn who_has_many_packets_waiting_leaves_others_some() {
        let mut neighbors = Neighbors::default();
        for number in 0..TABLE_LIMIT as u32 {
            let address = Ipv4Addr::from_bits(number);
            neighbors.lookup(address, Instant::ZERO);
            (0..QUEUE_LIMIT).for_each(|_| drop(neighbors.wait(address, packet(1))));
            assert!(neighbors.table[&address].queue.len() >= QUEUE_LEAST);
        }
        let held: usize = neighbors.table.values().map(|neighbor| neighbor.queue.len()).sum();
        assert!(held <= WAITING_LIMIT + QUEUE_LEAST * TABLE_LIMIT && held == neighbors.waiting, "{held}");
    }

    /// RFC 1122, 2.3.2.1 and 3.3.1.4.
    #[test]
    fn three_requests_without_answer_fail_the_packets() {
        let mut neighbors = Neighbors::default();
        neighbors.lookup(ADDRESS, Instant::ZERO);
        neighbors.wait(ADDRESS, packet(7));
        neighbors.wait(ADDRESS, packet(0));
        let mut now = Instant::ZERO;
        for _ in 0..2 {
            now = now + RETRY;
            assert!(matches!(neighbors.expire(now), Some(Expiry::Ask(ADDRESS, 7))));
            assert!(neighbors.expire(now).is_none());
        }
        now = now + RETRY;
        assert!(matches!(neighbors.expire(now), Some(Expiry::Failed(packets)) if packets.len() == 2));
    }

    /// RFC 826, packet reception: the merge flag.
    #[test]
    fn strangers_are_learned_only_when_they_mean_us_and_never_without_bound() {
        let mut neighbors = Neighbors::default();
        neighbors.learn(ADDRESS, MAC, false, Instant::ZERO);
        assert_eq!(neighbors.iter(Instant::ZERO).count(), 0);
        for number in 0..2000 {
            neighbors.learn(Ipv4Addr::from_bits(number), MAC, true, Instant::ZERO);
        }
        assert_eq!(neighbors.iter(Instant::ZERO).count(), TABLE_LIMIT);
    }

    #[test]
    fn neighbours_that_are_being_asked_do_not_give_way() {
        let mut neighbors = Neighbors::default();
        for number in 0..TABLE_LIMIT as u32 {
            neighbors.lookup(Ipv4Addr::from_bits(number), Instant::ZERO);
            neighbors.wait(Ipv4Addr::from_bits(number), packet(0));
        }
        assert_eq!(neighbors.lookup(ADDRESS, Instant::ZERO), Lookup::Full);
    }

    /// RFC 1122, 2.3.2.1: entries are validated.
    #[test]
    fn an_old_entry_is_used_and_asked_for_again() {
        let mut neighbors = Neighbors::default();
        neighbors.learn(ADDRESS, MAC, true, Instant::ZERO);
        let later = Instant::ZERO + FRESH;
        assert_eq!(neighbors.lookup(ADDRESS, later), Lookup::Known { mac: MAC, ask: true });
        assert_eq!(neighbors.lookup(ADDRESS, later), Lookup::Known { mac: MAC, ask: false });
    }
}
