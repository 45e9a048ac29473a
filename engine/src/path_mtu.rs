//! What routers said about the longest packet on the way to a destination.
//!
//! ICMP sets it; a pod's stack asks for its destinations, a node for the peers of its tunnel. Invariants: at most 1,024
//! destinations; an entry lives ten minutes; none is below 552 bytes, as on Linux. Allowed dependencies: `clock`.
//! Read first: RFC 1191, 3 and 6.3.

use crate::clock::Instant;
use std::collections::BTreeMap;
use std::time::Duration;

/// Destinations remembered at once.
const LIMIT: usize = 1024;
/// The smallest path MTU that is believed, as on Linux.
const MINIMUM: usize = 552;
/// What a router that names no MTU is taken to mean.
const UNNAMED: usize = 576;
/// How long an entry counts (RFC 1191, 6.3).
const LIFETIME: Duration = Duration::from_secs(600);

/// The path MTU per destination.
#[derive(Debug)]
pub struct PathMtu<K>(BTreeMap<K, (usize, Instant)>);

impl<K> Default for PathMtu<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Copy> PathMtu<K> {
    /// Returns the path MTU of a destination, bytes, while a router's word counts.
    #[must_use]
    pub fn get(&self, destination: K, now: Instant) -> Option<usize> {
        self.0.get(&destination).filter(|&&(_, until)| now < until).map(|&(mtu, _)| mtu)
    }

    /// Believes a router: 0 when it named no MTU. Never raises what is known; tells whether it was news.
    pub fn lower(&mut self, destination: K, mtu: u16, now: Instant) -> bool {
        let told = if mtu == 0 { UNNAMED } else { usize::from(mtu).max(MINIMUM) };
        let known = self.get(destination, now);
        let mtu = known.map_or(told, |known| known.min(told));
        if self.0.len() >= LIMIT && !self.0.contains_key(&destination) {
            let oldest =
                self.0.iter().min_by_key(|(_, (_, until))| *until).map(|(&destination, _)| destination);
            if let Some(oldest) = oldest {
                self.0.remove(&oldest);
            }
        }
        self.0.insert(destination, (mtu, now + LIFETIME));
        known != Some(mtu)
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
        table.lower(to, 68, Instant::ZERO);
        assert_eq!(table.get(to, Instant::ZERO), Some(MINIMUM));
        assert_eq!(table.get(to, Instant::ZERO + LIFETIME), None);
        for bits in 0..2000 {
            table.lower(Ipv4Addr::from_bits(bits), 0, Instant::ZERO);
        }
        assert_eq!(table.0.len(), LIMIT);
    }
}
