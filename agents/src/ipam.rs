//! Who has which number: pod addresses, VIPs, NodePorts. Pure.
//!
//! The address and the service-IP controllers rebuild it from what objects say, and ask it for free numbers.
//!
//! Invariants: a number that anybody claims, firmly or as a wish, is never picked; a firm claim goes before a wish and
//! an older object's before a younger's; numbers that were in use are picked last, the longest unused first.
//!
//! May depend on [`crate::store`] for revisions.
//!
//! Read first: nothing; IPv4 addresses are numbers here, see `Ipv4Addr::to_bits`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    ops::RangeInclusive,
    sync::Arc,
};

use flatnet_proxy::Ipv4Prefix;

use crate::store::Revision;

/// How a number is claimed; firm goes before wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Firmness {
    /// The object has the number.
    Firm,
    /// The object asks for the number.
    Wish,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant {
    firmness: Firmness,
    created: Revision,
    owner: Arc<str>,
}

/// The claims on a space of numbers.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    claims: BTreeMap<u32, BTreeSet<Claimant>>,
    owned: BTreeMap<Arc<str>, BTreeMap<u32, Claimant>>,
    /// Numbers that nobody claims any more, with the time on `clock` of their release.
    released: BTreeMap<u32, u64>,
    clock: u64,
    /// Per first number of a range, below which none is fresh.
    fresh: BTreeMap<u32, u32>,
}

impl Pool {
    /// Makes a pool without claims.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what an object claims, in place of all it claimed before, and says whether it gave up anything. `created` is
    /// when the object came to exist.
    pub fn claim(&mut self, owner: &Arc<str>, created: Revision, numbers: &[(u32, Firmness)]) -> bool {
        let mut after: BTreeMap<u32, Claimant> = BTreeMap::new();
        for &(number, firmness) in numbers {
            let claimant = Claimant { firmness, created, owner: Arc::clone(owner) };
            let entry = after.entry(number).or_insert_with(|| claimant.clone());
            *entry = claimant.min(entry.clone());
        }
        let before = if after.is_empty() {
            self.owned.remove(owner).unwrap_or_default()
        } else {
            self.owned.insert(Arc::clone(owner), after.clone()).unwrap_or_default()
        };
        for (number, claimant) in after {
            self.released.remove(&number);
            self.claims.entry(number).or_default().insert(claimant);
        }
        let mut gave_up = false;
        for (number, claimant) in before {
            // The same claimant again is still there; a wish that became firm lets nobody else in.
            let now = self.owned.get(owner).and_then(|numbers| numbers.get(&number));
            gave_up |= now.is_none();
            if now != Some(&claimant) {
                self.drop_claim(number, &claimant);
            }
        }
        gave_up
    }

    /// Gives up all that an object claims.
    pub fn release(&mut self, owner: &Arc<str>) {
        self.claim(owner, Revision::ZERO, &[]);
    }

    /// Says whose number it is: the first in line of those that claim it.
    pub fn holder(&self, number: u32) -> Option<&Arc<str>> {
        self.claims.get(&number).and_then(BTreeSet::first).map(|claimant| &claimant.owner)
    }

    /// Picks a number that nobody claims; the next claim must come before the next pick.
    pub fn pick(&mut self, range: RangeInclusive<u32>) -> Option<u32> {
        self.pick_many(range, 1)?.pop()
    }

    /// Picks several numbers that nobody claims, or none at all.
    pub fn pick_many(&mut self, range: RangeInclusive<u32>, count: usize) -> Option<Vec<u32>> {
        let start = self.fresh.get(range.start()).copied().unwrap_or(*range.start());
        let is_fresh =
            |number: &u32| !self.claims.contains_key(number) && !self.released.contains_key(number);
        let mut picked: Vec<u32> = (start..=*range.end()).filter(is_fresh).take(count.max(1)).collect();
        // What was claimed once is never fresh again, so the search goes on from here.
        let next = picked.first().copied().unwrap_or(range.end().saturating_add(1));
        self.fresh.insert(*range.start(), next);
        let mut unused: Vec<(u64, u32)> = match count.saturating_sub(picked.len()) {
            0 => Vec::new(),
            _ => self.released.range(range).map(|(&number, &released)| (released, number)).collect(),
        };
        unused.sort_unstable();
        picked.extend(unused.into_iter().map(|(_, number)| number));
        picked.truncate(count);
        (picked.len() == count).then_some(picked)
    }

    fn drop_claim(&mut self, number: u32, claimant: &Claimant) {
        if let Some(claimants) = self.claims.get_mut(&number) {
            claimants.remove(claimant);
            if claimants.is_empty() {
                self.claims.remove(&number);
                self.clock += 1;
                self.released.insert(number, self.clock);
            }
        }
    }
}

/// Gives the addresses of a node's subnet that pods can have: not the first (flannel0), not the second (docker0), not
/// the last (broadcast). `None` if the subnet is smaller than a /30.
pub fn pod_addresses(subnet: Ipv4Prefix) -> Option<RangeInclusive<u32>> {
    let first = subnet.address().to_bits();
    (subnet.length() <= 30).then(|| first + 2..=subnet.last().to_bits() - 1)
}

/// Says whether a pod of this subnet can have an address.
pub fn is_pod_address(subnet: Ipv4Prefix, address: Ipv4Addr) -> bool {
    pod_addresses(subnet).is_some_and(|range| range.contains(&address.to_bits()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owner(text: &str) -> Arc<str> {
        text.into()
    }

    #[test]
    fn reserved_addresses_are_not_for_pods() {
        let subnet: Ipv4Prefix = "10.1.15.0/24".parse().unwrap();
        for (last, expected) in [(0, false), (1, false), (2, true), (254, true), (255, false)] {
            assert_eq!(is_pod_address(subnet, [10, 1, 15, last].into()), expected, "{last}");
        }
        assert!(!is_pod_address(subnet, [10, 1, 16, 2].into()));
        assert_eq!(pod_addresses("10.1.15.0/31".parse().unwrap()), None);
        assert_eq!(pod_addresses("10.1.15.0/30".parse().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn numbers_of_gone_objects_come_last_and_the_longest_unused_first() {
        let mut pool = Pool::new();
        for (at, name) in ["a", "b", "c"].into_iter().enumerate() {
            let number = pool.pick(10..=13).unwrap();
            assert_eq!(number, 10 + at as u32);
            pool.claim(&owner(name), Revision(1), &[(number, Firmness::Firm)]);
        }
        pool.release(&owner("b"));
        pool.release(&owner("a"));
        assert_eq!(pool.pick(10..=13), Some(13));
        pool.claim(&owner("d"), Revision(1), &[(13, Firmness::Firm)]);
        assert_eq!(pool.pick(10..=13), Some(11));
        pool.claim(&owner("e"), Revision(1), &[(11, Firmness::Firm)]);
        assert_eq!(pool.pick(10..=13), Some(10));
        pool.claim(&owner("f"), Revision(1), &[(10, Firmness::Firm)]);
        assert_eq!(pool.pick(10..=13), None);
    }

    #[test]
    fn only_who_lets_a_number_go_gives_up_something() {
        let mut pool = Pool::new();
        assert!(!pool.claim(&owner("a"), Revision(1), &[(7, Firmness::Wish)]));
        assert!(!pool.claim(&owner("a"), Revision(1), &[(7, Firmness::Firm)]));
        assert!(pool.claim(&owner("a"), Revision(1), &[(8, Firmness::Firm)]));
        assert_eq!((pool.holder(7), pool.holder(8)), (None, Some(&owner("a"))));
    }

    #[test]
    fn holder_is_firm_before_wish_and_old_before_young() {
        let mut pool = Pool::new();
        pool.claim(&owner("old"), Revision(1), &[(7, Firmness::Wish)]);
        assert_eq!(pool.holder(7), Some(&owner("old")));
        pool.claim(&owner("firm"), Revision(9), &[(7, Firmness::Firm)]);
        assert_eq!(pool.holder(7), Some(&owner("firm")));
        pool.claim(&owner("young"), Revision(8), &[(7, Firmness::Firm)]);
        assert_eq!(pool.holder(7), Some(&owner("young")));
        pool.release(&owner("young"));
        pool.release(&owner("firm"));
        assert_eq!(pool.holder(7), Some(&owner("old")));
        assert_ne!(pool.pick(7..=8), Some(7));
    }

    proptest! {
        #[test]
        fn picked_number_is_claimed_by_nobody(
            steps in prop::collection::vec((0u8..6, prop::collection::btree_set(0u32..12, 0..4), any::<bool>()), 0..60),
        ) {
            let mut pool = Pool::new();
            let mut model: BTreeMap<u8, BTreeSet<u32>> = BTreeMap::new();
            for (name, numbers, firm) in steps {
                let firmness = if firm { Firmness::Firm } else { Firmness::Wish };
                let claims: Vec<_> = numbers.iter().map(|&number| (number, firmness)).collect();
                pool.claim(&owner(&name.to_string()), Revision(u64::from(name)), &claims);
                model.insert(name, numbers);
                for number in 0..12 {
                    let claimed = model.values().any(|numbers| numbers.contains(&number));
                    prop_assert_eq!(pool.holder(number).is_some(), claimed);
                }
                let free = (0..12).any(|number| pool.holder(number).is_none());
                match pool.pick(0..=11) {
                    Some(number) => prop_assert!(pool.holder(number).is_none()),
                    None => prop_assert!(!free),
                }
                let count = (0..12).filter(|&number| pool.holder(number).is_none()).count();
                let all: BTreeSet<u32> = pool.pick_many(0..=11, count).unwrap().into_iter().collect();
                prop_assert_eq!(all.len(), count);
                prop_assert!(pool.pick_many(0..=11, count + 1).is_none());
            }
        }
    }
}
