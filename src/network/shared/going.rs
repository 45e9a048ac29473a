//! Leases of others that have gone and are routes yet: what flows goes on while a node that lost its lease claims it again.
//!
//! [`super`] puts in what is no lease any more, and removes from the network's own store what comes out. Invariant: nothing stays beside
//! a lease that has its subnet or a part of it.
//!
//! May depend on agents. Read first: `docs/adr/0035-what-stands-beside-a-lease.md`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flatnet_agents::lease::{DEFAULT_PREFIX, parse_subnet_key};
use flatnet_engine::clock::Instant;

/// How long a lease that has gone stays a route; a node claims its own again within a second, if the etcd answers.
pub(super) const STAY: Duration = Duration::from_secs(10);

/// Such leases by their keys in the network's own store, and until when each stays: that the next look at the clock says.
#[derive(Debug, Default)]
pub(super) struct Going(BTreeMap<Arc<str>, Option<Instant>>);

impl Going {
    /// Has leases stay for a while.
    pub(super) fn extend(&mut self, keys: impl IntoIterator<Item = Arc<str>>) {
        self.0.extend(keys.into_iter().map(|key| (key, None)));
    }

    /// Takes those that go at once, because this lease has their subnet or a part of it; it stays itself.
    pub(super) fn take_covered(&mut self, key: &Arc<str>) -> Vec<Arc<str>> {
        let subnet = |key: &str| parse_subnet_key(DEFAULT_PREFIX, key).ok();
        let own = subnet(key);
        let covers = |gone: &str| own.zip(subnet(gone)).is_some_and(|(own, gone)| own.overlaps(gone));
        let covered = self.0.extract_if(.., |gone, _| covers(gone)).map(|(gone, _)| gone);
        covered.filter(|gone| gone != key).collect()
    }

    /// Takes those whose time is over.
    pub(super) fn take_over(&mut self, now: Instant) -> Vec<Arc<str>> {
        let is_over = |end: &mut Option<Instant>| *end.get_or_insert(now + STAY) <= now;
        self.0.extract_if(.., |_, end| is_over(end)).map(|(gone, _)| gone).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Arc<str> {
        format!("{DEFAULT_PREFIX}/subnets/{name}").into()
    }

    #[test]
    fn what_has_gone_stays_ten_seconds_unless_it_is_back_or_somebody_has_it() {
        let names = ["10.7.2.0-24", "10.7.3.0-24", "10.7.4.0-24"];
        let mut going = Going::default();
        going.extend(names.map(key));
        assert_eq!(going.take_over(Instant::ZERO), []);
        assert_eq!(going.take_covered(&key("10.7.2.0-24")), [], "it is back");
        assert_eq!(going.take_covered(&key("10.7.3.128-25")), [key("10.7.3.0-24")]);
        assert_eq!(going.take_over(Instant::ZERO + STAY / 2), []);
        assert_eq!(going.take_over(Instant::ZERO + STAY), [key("10.7.4.0-24")]);
        assert_eq!(going.take_over(Instant::ZERO + STAY * 9), []);
    }
}
