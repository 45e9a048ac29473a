//! Which of the keys below `subnets/` stand, where somebody wrote what no node would have written. Pure.
//!
//! Who turns leases into routes asks before, and who lists them. Invariants: of two leases that overlap the older stands,
//! and the own subnet before all; a lease that stands does so until it goes, whatever is written beside it or over it that
//! cannot be read; what does not stand has a reason.
//!
//! May depend on [`crate::lease`] and [`crate::store`]. Read first: flannel's `pkg/subnet/subnet.go`; ADR 35.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flatnet_proxy::Ipv4Prefix;
use thiserror::Error;

use crate::lease::allocate::is_free;
use crate::lease::{self, Attributes, LeaseError};
use crate::store::{Followed, KeyValue};

/// Why a key is left alone.
#[derive(Debug, Error)]
pub enum Refusal {
    /// It is no lease.
    #[error(transparent)]
    Unreadable(#[from] LeaseError),
    /// Its subnet is none of the network's.
    #[error("subnet {subnet} is not in the pod network {network}")]
    Outside {
        /// The subnet.
        subnet: Ipv4Prefix,
        /// The network.
        network: Ipv4Prefix,
    },
    /// The node's own subnet is in it, or it in that.
    #[error("subnet {subnet} overlaps this node's own {own}")]
    Own {
        /// The subnet.
        subnet: Ipv4Prefix,
        /// The node's.
        own: Ipv4Prefix,
    },
    /// An older lease overlaps it.
    #[error("subnet {subnet} overlaps an older lease")]
    Overlaps {
        /// The subnet.
        subnet: Ipv4Prefix,
    },
}

/// What a change of a key means for those that stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stands, with this value.
    Stands(KeyValue),
    /// It stood and does not any more.
    Falls(Arc<str>),
    /// It does not stand: [`Admission::refusal`] says why.
    Refused(Arc<str>),
}

/// All keys of a network's leases.
#[derive(Debug)]
pub struct Admission {
    prefix: String,
    network: Option<Ipv4Prefix>,
    own: Option<Ipv4Prefix>,
    /// What can be read and lies in the network.
    entries: BTreeMap<(Ipv4Prefix, Arc<str>), KeyValue>,
    standing: BTreeSet<Arc<str>>,
    refused: BTreeMap<Arc<str>, Refusal>,
}

impl Admission {
    /// Begins without any. Without a network all subnets are in it; `own` is that of the node which asks.
    pub fn new(prefix: &str, network: Option<Ipv4Prefix>, own: Option<Ipv4Prefix>) -> Self {
        Self {
            prefix: prefix.into(),
            network,
            own,
            entries: BTreeMap::new(),
            standing: BTreeSet::new(),
            refused: BTreeMap::new(),
        }
    }

    /// Says why a key does not stand, or that what is written there now cannot be read; nothing if all is well with it.
    pub fn refusal(&self, key: &str) -> Option<&Refusal> {
        self.refused.get(key)
    }

    /// Says whether a key stands.
    pub fn stands(&self, key: &str) -> bool {
        self.standing.contains(key)
    }

    /// Takes a change and says what it means, what falls first.
    pub fn apply(&mut self, change: &Followed) -> Vec<Verdict> {
        let key = change.key();
        let before = self.refused.remove(key);
        let subnet = match lease::parse_subnet_key(&self.prefix, key) {
            Ok(subnet) => subnet,
            Err(error) => return self.refuse(change, error.into()),
        };
        match change {
            Followed::Put(entry) => {
                // What stood stands as it was read last.
                if let Err(error) = Attributes::from_json(&entry.value) {
                    return self.refuse(change, error.into());
                }
                if let Some(network) = self.network.filter(|network| !network.covers(subnet)) {
                    return self.refuse(change, Refusal::Outside { subnet, network });
                }
                if let Some(own) = self.own.filter(|own| own.overlaps(subnet)) {
                    return self.refuse(change, Refusal::Own { subnet, own });
                }
                self.entries.insert((subnet, Arc::clone(key)), entry.clone());
            }
            Followed::Delete(_) => {
                self.entries.remove(&(subnet, Arc::clone(key)));
            }
        }
        if let Some(before @ Refusal::Overlaps { .. }) = before {
            self.refused.insert(Arc::clone(key), before);
        }
        self.weigh(subnet, key)
    }

    fn refuse(&mut self, change: &Followed, why: Refusal) -> Vec<Verdict> {
        let key = Arc::clone(change.key());
        if matches!(change, Followed::Delete(_)) {
            return Vec::new();
        }
        self.refused.insert(Arc::clone(&key), why);
        vec![Verdict::Refused(key)]
    }

    /// Decides anew about all that overlap a subnet, the oldest first.
    fn weigh(&mut self, subnet: Ipv4Prefix, changed: &Arc<str>) -> Vec<Verdict> {
        let first = |prefix: Ipv4Prefix| (prefix, Arc::from(""));
        let has = |prefix: &Ipv4Prefix| {
            self.entries.range(first(*prefix)..).next().is_some_and(|((found, _), _)| found == prefix)
        };
        let wider =
            (0..subnet.length()).filter_map(|length| Ipv4Prefix::containing(subnet.address(), length).ok());
        let widest = wider.into_iter().find(has).unwrap_or(subnet);
        let inside = self.entries.range(first(widest)..).take_while(|((found, _), _)| widest.covers(*found));
        let mut all: Vec<(Ipv4Prefix, KeyValue)> =
            inside.map(|((prefix, _), entry)| (*prefix, entry.clone())).collect();
        all.sort_by(|(_, one), (_, other)| {
            (one.create_revision, &one.key).cmp(&(other.create_revision, &other.key))
        });
        let (mut taken, mut verdicts, mut stand) = (BTreeSet::new(), Vec::new(), Vec::new());
        if !all.iter().any(|(_, entry)| entry.key == *changed) {
            self.refused.remove(changed);
            if self.standing.remove(changed) {
                verdicts.push(Verdict::Falls(Arc::clone(changed)));
            }
        }
        for (prefix, entry) in all {
            let key = Arc::clone(&entry.key);
            if is_free(&taken, prefix) {
                taken.insert(prefix);
                if self.standing.insert(Arc::clone(&key)) || key == *changed {
                    stand.push(Verdict::Stands(entry));
                }
                self.refused.remove(&key);
                continue;
            }
            if self.standing.remove(&key) {
                verdicts.push(Verdict::Falls(Arc::clone(&key)));
            }
            if self.refused.insert(Arc::clone(&key), Refusal::Overlaps { subnet: prefix }).is_none() {
                verdicts.push(Verdict::Refused(key));
            }
        }
        verdicts.extend(stand);
        verdicts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::Revision;

    const GOOD: &str = r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#;

    fn entry(name: &str, value: &str, created: u64) -> KeyValue {
        let (create_revision, mod_revision) = (Revision(created), Revision(created));
        KeyValue {
            key: format!("/n/subnets/{name}").into(),
            value: value.as_bytes().into(),
            create_revision,
            mod_revision,
            lease: None,
        }
    }

    fn admission() -> Admission {
        Admission::new("/n", "10.3.0.0/16".parse().ok(), "10.3.1.0/24".parse().ok())
    }

    fn said(admission: &mut Admission, change: &Followed) -> Vec<String> {
        let verdicts = admission.apply(change);
        let name = |key: &str| key.trim_start_matches("/n/subnets/").to_owned();
        let text = |verdict| match verdict {
            Verdict::Stands(entry) => format!("+{}", name(&entry.key)),
            Verdict::Falls(key) => format!("-{}", name(&key)),
            Verdict::Refused(key) => format!("{}: {}", name(&key), admission.refusal(&key).unwrap()),
        };
        verdicts.into_iter().map(text).collect()
    }

    #[test]
    fn what_no_node_would_have_written_does_not_stand_and_says_why() {
        let mut all = admission();
        let mut put =
            |name: &str, value: &str| said(&mut all, &Followed::Put(entry(name, value, 9))).join(" ");
        assert_eq!(put("10.3.2.0-24", GOOD), "+10.3.2.0-24");
        assert_eq!(
            put("0.0.0.0-0", GOOD),
            "0.0.0.0-0: subnet 0.0.0.0/0 is not in the pod network 10.3.0.0/16"
        );
        assert_eq!(
            put("10.3.1.0-25", GOOD),
            "10.3.1.0-25: subnet 10.3.1.0/25 overlaps this node's own 10.3.1.0/24"
        );
        assert_eq!(
            put("10.3.0.0-16", GOOD),
            "10.3.0.0-16: subnet 10.3.0.0/16 overlaps this node's own 10.3.1.0/24"
        );
        assert_eq!(put("10.3.2.128-25", GOOD), "10.3.2.128-25: subnet 10.3.2.128/25 overlaps an older lease");
        assert!(put("x", GOOD).ends_with("does not name a subnet"));
        assert_eq!(put("10.3.2.0-24", "{"), "10.3.2.0-24: value is not JSON");
        assert!(all.stands("/n/subnets/10.3.2.0-24"), "as it was read last");
    }

    #[test]
    fn of_two_that_overlap_the_older_stands_and_the_other_when_that_goes() {
        let mut all = admission();
        let (wide, narrow) = (entry("10.3.4.0-22", GOOD, 5), entry("10.3.5.0-24", GOOD, 7));
        assert_eq!(said(&mut all, &Followed::Put(narrow.clone())), ["+10.3.5.0-24"]);
        assert_eq!(
            said(&mut all, &Followed::Put(wide.clone())),
            ["-10.3.5.0-24", "10.3.5.0-24: subnet 10.3.5.0/24 overlaps an older lease", "+10.3.4.0-22"]
        );
        assert_eq!(said(&mut all, &Followed::Put(narrow)), Vec::<String>::new(), "it is said once");
        assert_eq!(said(&mut all, &Followed::Delete(wide)), ["-10.3.4.0-22", "+10.3.5.0-24"]);
        assert!(all.refusal("/n/subnets/10.3.5.0-24").is_none());
    }

    proptest! {
        /// Whatever comes in whatever order: nobody shares an address, and what is asked at the end depends on what is there alone.
        #[test]
        fn no_address_has_two_holders(changes in prop::collection::vec((0u8..16, 24u8..29, any::<bool>(), 1u64..9), 1..40)) {
            let mut all = admission();
            let mut there = BTreeMap::new();
            for (part, length, is_put, created) in changes {
                let subnet = Ipv4Prefix::containing([10, 3, 9, part * 16].into(), length).unwrap();
                let entry = entry(&format!("{}-{length}", subnet.address()), GOOD, created);
                let change = if is_put {
                    there.insert(Arc::clone(&entry.key), entry.clone());
                    Followed::Put(entry)
                } else {
                    there.remove(&entry.key);
                    Followed::Delete(entry)
                };
                all.apply(&change);
                let standing: Vec<Ipv4Prefix> =
                    all.standing.iter().map(|key| lease::parse_subnet_key("/n", key).unwrap()).collect();
                for (index, one) in standing.iter().enumerate() {
                    prop_assert!(standing[index + 1..].iter().all(|other| !one.overlaps(*other)));
                }
            }
            let mut again = admission();
            there.values().for_each(|entry| { again.apply(&Followed::Put(entry.clone())); });
            prop_assert_eq!(&again.standing, &all.standing);
            prop_assert!(there.keys().all(|key| all.stands(key) != all.refusal(key).is_some()));
        }
    }
}
