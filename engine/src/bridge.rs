//! docker0's and the switches' memory: which MAC is behind which port.
//!
//! `decide` learns and asks. Known pods are static entries of the published tables; what is learned here is for
//! the rest. Invariants: a static entry always wins; the table is bounded, and a full one floods instead of
//! learning. Each worker learns for itself and is told what the others learn. Allowed dependencies:
//! `tables`, `wire`, `clock`. Read first: IEEE 802.1D, 7.8 and 7.9.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use crate::clock::Instant;
use crate::tables::{NodeId, PortId, Tables};
use crate::wire::MacAddress;

/// How long a learned entry lives without a frame that renews it (IEEE 802.1D's default).
pub const AGEING_TIME: Duration = Duration::from_secs(300);
/// Learned entries a worker keeps over all its bridges.
pub const LEARNED_LIMIT: usize = 1 << 16;
/// Of these, entries behind one port: who makes up addresses fills nobody else's table.
pub const PORT_LIMIT: usize = 1 << 10;

/// How old an entry gets before the other workers are told of it again, and cached flows are decided again so that
/// their senders are seen: well before it is forgotten.
pub const RENEWAL_TIME: Duration = Duration::from_secs(75);

/// A learned entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learned {
    /// The port the MAC was seen at.
    pub port: PortId,
    /// When it was last seen in the slow path.
    pub seen: Instant,
    /// When it was last news.
    told: Instant,
}

/// What learning a MAC means to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    None,
    /// The other workers should know it, or know it again.
    Fresh,
    /// It was behind another port: cached flows lead there.
    Moved,
}

/// A worker's learned entries.
#[derive(Debug, Default)]
pub struct Fdb {
    learned: BTreeMap<(NodeId, MacAddress), Learned>,
    /// How many of them are behind each port.
    by_port: BTreeMap<PortId, usize>,
    renewed: Instant,
    /// Up to which entry the aged have been removed.
    swept: Option<(NodeId, MacAddress)>,
}

impl Fdb {
    /// Notes that a MAC is behind a port; tells whether that is news.
    pub fn learn(
        &mut self,
        tables: &Tables,
        node: NodeId,
        mac: MacAddress,
        port: PortId,
        now: Instant,
    ) -> News {
        if tables.stations.contains_key(&(node, mac)) {
            return News::None;
        }
        let at_port = self.by_port.get(&port).copied().unwrap_or(0);
        let full = self.learned.len() >= LEARNED_LIMIT || at_port >= PORT_LIMIT;
        match self.learned.get_mut(&(node, mac)) {
            // A station that moves behind a full port is no more believed there than a new one.
            Some(entry) if entry.port != port && full => News::None,
            Some(entry) => {
                let moved = entry.port != port;
                if moved {
                    count(&mut self.by_port, entry.port, -1);
                    count(&mut self.by_port, port, 1);
                }
                let due = now.saturating_duration_since(entry.told) >= RENEWAL_TIME;
                let told = if moved || due { now } else { entry.told };
                *entry = Learned { port, seen: now, told };
                match (moved, due) {
                    (true, _) => News::Moved,
                    (false, true) => News::Fresh,
                    (false, false) => News::None,
                }
            }
            None if full => News::None,
            None => {
                self.learned.insert((node, mac), Learned { port, seen: now, told: now });
                count(&mut self.by_port, port, 1);
                News::Fresh
            }
        }
    }

    /// Tells, once per [`RENEWAL_TIME`], whether cached flows are to be decided again so that their senders are seen.
    #[inline]
    pub fn renewal_is_due(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.renewed) < RENEWAL_TIME {
            return false;
        }
        self.renewed = now;
        !self.learned.is_empty()
    }

    /// Looks at some entries and removes what has aged.
    pub fn sweep(&mut self, entries: usize, now: Instant) {
        let from = self.swept.take().map_or(Bound::Unbounded, Bound::Excluded);
        let mut aged = Vec::new();
        for (key, entry) in self.learned.range((from, Bound::Unbounded)).take(entries) {
            self.swept = Some(*key);
            if now.saturating_duration_since(entry.seen) >= AGEING_TIME {
                aged.push((*key, entry.port));
            }
        }
        for (key, port) in aged {
            self.learned.remove(&key);
            count(&mut self.by_port, port, -1);
        }
    }

    /// Finds the port of a MAC.
    #[must_use]
    pub fn lookup(&self, tables: &Tables, node: NodeId, mac: MacAddress, now: Instant) -> Option<PortId> {
        if let Some(&port) = tables.stations.get(&(node, mac)) {
            return Some(port);
        }
        let entry = self.learned.get(&(node, mac))?;
        let fresh = now.saturating_duration_since(entry.seen) < AGEING_TIME;
        (fresh && tables.ports.contains_key(&entry.port)).then_some(entry.port)
    }

    /// Lists what a node's bridge learned, by MAC.
    pub fn list(&self, node: NodeId) -> impl Iterator<Item = (MacAddress, Learned)> {
        self.learned.iter().filter(move |((of, _), _)| *of == node).map(|((_, mac), entry)| (*mac, *entry))
    }
}

fn count(by_port: &mut BTreeMap<PortId, usize>, port: PortId, change: isize) {
    let entries = by_port.entry(port).or_default();
    *entries = entries.saturating_add_signed(change);
    if *entries == 0 {
        by_port.remove(&port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{Endpoint, Port, Role};
    use proptest::prelude::*;
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    const NODE: NodeId = NodeId(0);

    fn tables() -> Tables {
        let mut tables = Tables::default();
        for id in 0..4 {
            let port = Port { node: NODE, worker: 0, name: Arc::from("x"), role: Role::Bridge(None) };
            tables.add_port(PortId(id), port);
        }
        tables
    }

    fn mac(last: u8) -> MacAddress {
        MacAddress::new([2, 0, 0, 0, 0, last])
    }

    proptest! {
        /// IEEE 802.1D, 7.8 and 7.9.2: learning and ageing.
        #[test]
        fn the_latest_port_wins_until_it_ages_as_in_a_plain_map(
            steps in prop::collection::vec((0u8..4, 0u32..4, 0u64..200), 1..60)
        ) {
            let (tables, mut fdb, mut model, mut now) = (tables(), Fdb::default(), BTreeMap::new(), Instant::ZERO);
            for (last, port, seconds) in steps {
                now = now + Duration::from_secs(seconds);
                for last in 0..4 {
                    let expected = model.get(&last).filter(|(_, seen)| now < *seen + AGEING_TIME);
                    prop_assert_eq!(fdb.lookup(&tables, NODE, mac(last), now), expected.map(|(port, _)| *port));
                }
                fdb.learn(&tables, NODE, mac(last), PortId(port), now);
                model.insert(last, (PortId(port), now));
            }
        }
    }

    #[test]
    fn the_others_are_told_again_before_they_forget() {
        let (tables, mut fdb) = (tables(), Fdb::default());
        let mut learn = |port, seconds| {
            fdb.learn(&tables, NODE, mac(1), PortId(port), Instant::ZERO + Duration::from_secs(seconds))
        };
        let news = [learn(1, 0), learn(1, 74), learn(1, 75), learn(1, 76), learn(2, 77), learn(2, 78)];
        assert_eq!(news, [News::Fresh, News::None, News::Fresh, News::None, News::Moved, News::None]);
    }

    #[test]
    fn who_makes_up_addresses_fills_only_its_own_part_until_they_age() {
        let (tables, mut fdb) = (tables(), Fdb::default());
        let made_up = |number: u32| {
            let [_, a, b, c] = number.to_be_bytes();
            MacAddress::new([2, 1, 0, a, b, c])
        };
        let news = (0..5000).filter(|&number| {
            fdb.learn(&tables, NODE, made_up(number), PortId(1), Instant::ZERO) == News::Fresh
        });
        assert_eq!(news.count(), PORT_LIMIT);
        assert_eq!(fdb.learn(&tables, NODE, mac(7), PortId(2), Instant::ZERO), News::Fresh);
        assert_eq!(fdb.learn(&tables, NODE, mac(7), PortId(1), Instant::ZERO), News::None, "nor moves there");
        assert_eq!(fdb.lookup(&tables, NODE, mac(7), Instant::ZERO), Some(PortId(2)));
        let later = Instant::ZERO + AGEING_TIME;
        for _ in 0..PORT_LIMIT {
            fdb.sweep(2, later);
        }
        assert_eq!(fdb.list(NODE).count(), 0);
        assert_eq!(fdb.learn(&tables, NODE, mac(8), PortId(1), later), News::Fresh);
    }

    /// IEEE 802.1D, 7.9.1: a static entry is not learned over.
    #[test]
    fn a_known_pod_cannot_be_learned_elsewhere() {
        let (mut tables, mut fdb) = (tables(), Fdb::default());
        let endpoint = Endpoint { node: NODE, port: PortId(1), mac: mac(9), worker: 0 };
        tables.add_endpoint(Ipv4Addr::new(10, 1, 15, 2), endpoint);
        assert_eq!(fdb.learn(&tables, NODE, mac(9), PortId(2), Instant::ZERO), News::None);
        assert_eq!(fdb.lookup(&tables, NODE, mac(9), Instant::ZERO), Some(PortId(1)));
    }
}
