//! What routers said about the longest packet on the way to a destination.
//!
//! ICMP sets it; a pod's stack asks for its destinations, a node for the peers of its tunnel. Invariants: at most 1,024
//! destinations; an entry lives ten minutes; none is below 552 bytes: a path that takes less is locked there, and what goes
//! that way may be cut. Allowed dependencies: `clock`. Read first: RFC 1191, 3 and 6.3; Linux, `__ip_rt_update_pmtu` and
//! `ip_dont_fragment`.

use crate::clock::Instant;
use std::collections::BTreeMap;
use std::time::Duration;

/// Destinations remembered at once.
const LIMIT: usize = 1024;
/// The smallest path MTU that is believed (`net.ipv4.route.min_pmtu`).
const MINIMUM: usize = 552;
/// What a router that names no MTU is taken to mean.
const UNNAMED: usize = 576;
/// How long an entry counts (RFC 1191, 6.3).
const LIFETIME: Duration = Duration::from_secs(600);

/// What is known of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    mtu: usize,
    /// A router named less than is believed.
    is_locked: bool,
    until: Instant,
}

/// The path MTU per destination.
#[derive(Debug)]
pub struct PathMtu<K>(BTreeMap<K, Known>);

impl<K> Default for PathMtu<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Copy> PathMtu<K> {
    /// Returns the path MTU of a destination, bytes, while a router's word counts.
    #[must_use]
    pub fn get(&self, destination: K, now: Instant) -> Option<usize> {
        self.known(destination, now).map(|known| known.mtu)
    }

    /// Tells whether the path takes less than is believed: what goes there must not forbid to be cut.
    #[must_use]
    pub fn is_locked(&self, destination: K, now: Instant) -> bool {
        self.known(destination, now).is_some_and(|known| known.is_locked)
    }

    fn known(&self, destination: K, now: Instant) -> Option<&Known> {
        self.0.get(&destination).filter(|known| now < known.until)
    }

    /// Believes a router: 0 when it named no MTU. Never raises what is known; tells whether it was news.
    pub fn lower(&mut self, destination: K, mtu: u16, now: Instant) -> bool {
        let told = if mtu == 0 { UNNAMED } else { usize::from(mtu) };
        let known = self.known(destination, now).map(|known| (known.mtu, known.is_locked));
        let (mtu, was_locked) = known.unwrap_or((told, false));
        let news = (mtu.min(told).max(MINIMUM), was_locked || told < MINIMUM);
        if self.0.len() >= LIMIT && !self.0.contains_key(&destination) {
            let oldest =
                self.0.iter().min_by_key(|(_, known)| known.until).map(|(&destination, _)| destination);
            if let Some(oldest) = oldest {
                self.0.remove(&oldest);
            }
        }
        let (mtu, is_locked) = news;
        self.0.insert(destination, Known { mtu, is_locked, until: now + LIFETIME });
        known != Some(news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    /// RFC 1191, 3 and 6.3.
    #[test]
    fn it_only_falls_until_it_expires_and_is_bounded() {
        let mut table = PathMtu::default();
        let to = Ipv4Addr::new(10, 1, 20, 3);
        table.lower(to, 1400, Instant::ZERO);
        table.lower(to, 1450, Instant::ZERO);
        assert_eq!(table.get(to, Instant::ZERO), Some(1400));
        assert!(!table.is_locked(to, Instant::ZERO));
        assert!(table.lower(to, 68, Instant::ZERO));
        assert_eq!((table.get(to, Instant::ZERO), table.is_locked(to, Instant::ZERO)), (Some(MINIMUM), true));
        assert!(!table.lower(to, 1400, Instant::ZERO), "it stays locked");
        // RFC 1191, 6.3: ten minutes are recommended.
        let [within, after] = [599, 600].map(|seconds| Instant::ZERO + Duration::from_secs(seconds));
        assert!(table.is_locked(to, within) && !table.is_locked(to, after));
        assert!(table.lower(Ipv4Addr::UNSPECIFIED, 552, Instant::ZERO));
        assert!(!table.is_locked(Ipv4Addr::UNSPECIFIED, Instant::ZERO));
        assert_eq!((table.get(to, within), table.get(to, after)), (Some(MINIMUM), None));
        for bits in 0..2000 {
            table.lower(Ipv4Addr::from_bits(bits), 0, Instant::ZERO);
        }
        assert_eq!(table.0.len(), LIMIT);
    }
}
