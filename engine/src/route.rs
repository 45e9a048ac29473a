//! Longest-prefix match over IPv4.
//!
//! Holds both a node's own routes (prefix to next hop) and the cluster's leases (pod prefix to node); `decide`
//! asks, `tables` publishes. Invariants: the longest matching prefix wins whatever the order of insertion; a
//! clone is a snapshot. Cost: one hash look-up per prefix length in use. Allowed dependencies: proxy's
//! `Shards` and `Ipv4Prefix`. Read first: RFC 1812, 5.2.4.3.

use std::net::Ipv4Addr;

use flatnet_proxy::{Ipv4Prefix, Shards};

/// A table of prefixes.
#[derive(Debug, Clone)]
pub struct Routes<V> {
    entries: Shards<Ipv4Prefix, V>,
    /// How many entries each prefix length has.
    lengths: [u32; 33],
    /// A bit for each length that has any.
    used: u64,
}

impl<V: Clone> Default for Routes<V> {
    fn default() -> Self {
        Self { entries: Shards::new(), lengths: [0; 33], used: 0 }
    }
}

impl<V: Clone> Routes<V> {
    /// Sets the value of a prefix; returns the one it had.
    pub fn insert(&mut self, prefix: Ipv4Prefix, value: V) -> Option<V> {
        let old = self.entries.insert(prefix, value);
        if old.is_none() {
            self.lengths[usize::from(prefix.length())] += 1;
            self.used |= 1 << prefix.length();
        }
        old
    }

    /// Removes a prefix; returns the value it had.
    pub fn remove(&mut self, prefix: Ipv4Prefix) -> Option<V> {
        let old = self.entries.remove(&prefix);
        if old.is_some() {
            let left = &mut self.lengths[usize::from(prefix.length())];
            *left -= 1;
            if *left == 0 {
                self.used &= !(1 << prefix.length());
            }
        }
        old
    }

    /// Returns the value of exactly this prefix.
    #[must_use]
    pub fn get(&self, prefix: Ipv4Prefix) -> Option<&V> {
        self.entries.get(&prefix)
    }

    /// Finds the longest prefix that contains an address.
    #[must_use]
    pub fn lookup(&self, address: Ipv4Addr) -> Option<(Ipv4Prefix, &V)> {
        self.covering(address, 32)
    }

    /// Finds the longest prefix of at most `length` bits that contains an address.
    #[must_use]
    pub fn covering(&self, address: Ipv4Addr, length: u8) -> Option<(Ipv4Prefix, &V)> {
        let mut used = self.used & (u64::MAX >> (63 - length.min(32)));
        while used != 0 {
            let length = used.ilog2() as u8;
            let prefix = Ipv4Prefix::containing(address, length).ok()?;
            if let Some(value) = self.entries.get(&prefix) {
                return Some((prefix, value));
            }
            used &= !(1 << length);
        }
        None
    }

    /// Lists all entries by prefix.
    #[must_use]
    pub fn list(&self) -> Vec<(&Ipv4Prefix, &V)> {
        self.entries.sorted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// RFC 1812, 5.2.4.3.
        #[test]
        fn the_longest_prefix_wins_as_in_a_linear_scan(
            changes in prop::collection::vec((any::<bool>(), 0u32..64, 0u8..=32), 1..80),
            asked in prop::collection::vec(0u32..64, 1..40),
        ) {
            let spread = |bits: u32| Ipv4Addr::from_bits(bits.reverse_bits() | bits);
            let (mut routes, mut model) = (Routes::default(), BTreeMap::new());
            for (number, (add, bits, length)) in changes.into_iter().enumerate() {
                let prefix = Ipv4Prefix::containing(spread(bits), length).unwrap();
                if add {
                    prop_assert_eq!(routes.insert(prefix, number), model.insert(prefix, number));
                } else {
                    prop_assert_eq!(routes.remove(prefix), model.remove(&prefix));
                }
            }
            for bits in asked {
                let address = spread(bits);
                let expected = model.iter().filter(|(prefix, _)| prefix.contains(address));
                let expected = expected.max_by_key(|(prefix, _)| prefix.length()).map(|(p, v)| (*p, v));
                prop_assert_eq!(routes.lookup(address), expected);
            }
        }
    }
}
