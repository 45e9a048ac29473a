//! docker0's and the switches' memory: which MAC is behind which port.
//!
//! `decide` learns and asks. Known pods are static entries of the published tables; what is learned here is for
//! the rest. Invariants: a static entry always wins; the table is bounded, and a full one floods instead of
//! learning. Each worker learns for itself and is told what the others learn. Allowed dependencies:
//! `tables`, `wire`, `clock`. Read first: IEEE 802.1D, 7.8 and 7.9.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Instant;
use crate::tables::{NodeId, PortId, Tables};
use crate::wire::MacAddress;

/// How long a learned entry lives without a frame that renews it (IEEE 802.1D's default).
pub const AGEING_TIME: Duration = Duration::from_secs(300);
/// Learned entries a worker keeps over all its bridges.
pub const LEARNED_LIMIT: usize = 1 << 16;

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
    renewed: Instant,
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
        let full = self.learned.len() >= LEARNED_LIMIT;
        match self.learned.get_mut(&(node, mac)) {
            Some(entry) => {
                let moved = entry.port != port;
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
    fn a_known_pod_cannot_be_learned_elsewhere() {
        let (mut tables, mut fdb) = (tables(), Fdb::default());
        let endpoint = Endpoint { node: NODE, port: PortId(1), mac: mac(9), worker: 0 };
        tables.add_endpoint(Ipv4Addr::new(10, 1, 15, 2), endpoint);
        assert_eq!(fdb.learn(&tables, NODE, mac(9), PortId(2), Instant::ZERO), News::None);
        assert_eq!(fdb.lookup(&tables, NODE, mac(9), Instant::ZERO), Some(PortId(1)));
    }
}
