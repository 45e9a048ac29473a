//! Putting fragments together again.
//!
//! The stack hands it received fragments and gets whole packets back.
//!
//! Invariants: at most [`LIMIT`] packets wait, each for [`TIMEOUT`], each at most 65,535 octets; overlapping fragments end the whole
//! packet, because nobody sends them in good faith (RFC 5722 for IPv6, good sense for IPv4).
//! Depends on `clock`, `wire`. Read first: RFC 791 section 3.2, RFC 1122 section 3.3.2.

use crate::clock::Instant;
use crate::wire::{IpProtocol, Ipv4Packet, ipv4};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Packets that wait for fragments at once.
pub(super) const LIMIT: usize = 64;
/// How long one waits (Linux: 30 s).
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

type Key = (Ipv4Addr, Ipv4Addr, IpProtocol, u16);

#[derive(Debug)]
struct Partial {
    /// Header of the first fragment, once it came.
    header: Option<Vec<u8>>,
    /// Payload by offset.
    parts: BTreeMap<usize, Vec<u8>>,
    /// Octets in `parts`.
    received: usize,
    /// Octets of the whole payload, once the last fragment came.
    total: Option<usize>,
    until: Instant,
}

/// What became of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Others are missing.
    Waiting,
    /// The packet is whole.
    Whole(Vec<u8>),
    /// Too many packets wait.
    Full,
    /// The fragment contradicts others or is longer than a packet can be.
    Malformed,
}

/// The packets that wait.
#[derive(Debug, Default)]
pub(super) struct Reassembly(BTreeMap<Key, Partial>);

impl Reassembly {
    /// Takes a fragment.
    pub(super) fn insert(&mut self, packet: &Ipv4Packet<&[u8]>, now: Instant) -> Outcome {
        let key = (packet.source(), packet.destination(), packet.protocol(), packet.identification());
        if self.0.len() >= LIMIT && !self.0.contains_key(&key) {
            return Outcome::Full;
        }
        let partial = self.0.entry(key).or_insert_with(|| Partial {
            header: None,
            parts: BTreeMap::new(),
            received: 0,
            total: None,
            until: now + TIMEOUT,
        });
        if !partial.add(packet) {
            self.0.remove(&key);
            return Outcome::Malformed;
        }
        if partial.total != Some(partial.received) || partial.header.is_none() {
            return Outcome::Waiting;
        }
        self.0.remove(&key).and_then(Partial::assemble).map_or(Outcome::Malformed, Outcome::Whole)
    }

    /// Forgets what waited too long and returns how many packets that were.
    pub(super) fn expire(&mut self, now: Instant) -> usize {
        let before = self.0.len();
        self.0.retain(|_, partial| now < partial.until);
        before - self.0.len()
    }

    /// Returns when something expires.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.0.values().map(|partial| partial.until).min()
    }
}

impl Partial {
    /// Adds a fragment; false when it cannot belong to the packet.
    fn add(&mut self, packet: &Ipv4Packet<&[u8]>) -> bool {
        let (offset, payload) = (packet.fragment_offset(), packet.payload());
        let end = offset + payload.len();
        let too_long = end + ipv4::HEADER_LENGTH > usize::from(u16::MAX);
        let uneven = packet.more_fragments() && (payload.is_empty() || payload.len() % 8 != 0);
        if too_long || uneven || self.total.is_some_and(|total| end > total) {
            return false;
        }
        if self.parts.get(&offset).is_some_and(|part| part == payload) {
            return true;
        }
        let before = self.parts.range(..offset).next_back().map_or(0, |(&at, part)| at + part.len());
        let after = self.parts.range(offset..).next().map_or(usize::MAX, |(&at, _)| at);
        if before > offset || after < end {
            return false;
        }
        if !packet.more_fragments() {
            let last = self.parts.iter().next_back().map_or(0, |(&at, part)| at + part.len());
            if last > end || self.total.is_some() {
                return false;
            }
            self.total = Some(end);
        }
        if offset == 0 {
            let mut header = vec![0; packet.header_length()];
            let bytes = packet.into_inner();
            header.copy_from_slice(&bytes[..bytes.len().min(packet.header_length())]);
            self.header = Some(header);
        }
        self.received += payload.len();
        self.parts.insert(offset, payload.to_vec());
        true
    }

    fn assemble(self) -> Option<Vec<u8>> {
        let mut bytes = self.header?;
        for part in self.parts.values() {
            bytes.extend_from_slice(part);
        }
        let length = u16::try_from(bytes.len()).ok()?;
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        packet.set_total_length(length);
        packet.set_fragmentation(false, false, 0);
        packet.fill_header_checksum();
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fragment(identification: u16, offset: usize, more: bool, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 20 + payload.len()];
        let length = bytes.len() as u16;
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        packet.set_header_length(20);
        packet.set_total_length(length);
        packet.set_identification(identification);
        packet.set_fragmentation(false, more, offset);
        packet.set_protocol(IpProtocol::Udp);
        packet.payload_mut().copy_from_slice(payload);
        packet.fill_header_checksum();
        bytes
    }

    fn insert(table: &mut Reassembly, bytes: &[u8]) -> Outcome {
        table.insert(&Ipv4Packet::new_checked(bytes).unwrap(), Instant::ZERO)
    }

    proptest! {
        /// RFC 791, 3.2; RFC 815.
        #[test]
        fn any_order_gives_the_payload_back(
            payload in proptest::collection::vec(any::<u8>(), 9..4000),
            room in 1usize..40,
            seed: u64,
        ) {
            let room = room * 8;
            let count = payload.len().div_ceil(room);
            let mut order: Vec<usize> = (0..count).collect();
            let mut random = crate::random::Random::new(seed);
            for index in (1..count).rev() {
                order.swap(index, (random.next_u64() % (index as u64 + 1)) as usize);
            }
            let mut table = Reassembly::default();
            for (position, index) in order.iter().enumerate() {
                let start = index * room;
                let end = (start + room).min(payload.len());
                let bytes = fragment(7, start, end < payload.len(), &payload[start..end]);
                match insert(&mut table, &bytes) {
                    Outcome::Whole(whole) => {
                        prop_assert_eq!(position + 1, count);
                        let packet = Ipv4Packet::new_checked(&whole[..]).unwrap();
                        prop_assert_eq!(packet.payload(), &payload[..]);
                    }
                    outcome @ (Outcome::Waiting | Outcome::Full | Outcome::Malformed) => {
                        prop_assert_eq!(outcome, Outcome::Waiting);
                        prop_assert!(position + 1 < count);
                    }
                }
            }
            prop_assert!(table.0.is_empty());
        }
    }

    /// RFC 1858, 4.
    #[test]
    fn overlaps_and_floods_are_refused() {
        let mut table = Reassembly::default();
        assert_eq!(insert(&mut table, &fragment(1, 0, true, &[1; 16])), Outcome::Waiting);
        assert_eq!(insert(&mut table, &fragment(1, 8, true, &[2; 16])), Outcome::Malformed);
        for identification in 0..LIMIT as u16 {
            assert_eq!(insert(&mut table, &fragment(identification, 0, true, &[1; 8])), Outcome::Waiting);
        }
        assert_eq!(insert(&mut table, &fragment(999, 0, true, &[1; 8])), Outcome::Full);
        assert_eq!(table.expire(Instant::ZERO + TIMEOUT), LIMIT);
    }

    /// RFC 791, 3.1: 65,535 octets with the header.
    #[test]
    fn a_packet_longer_than_64_kilobytes_is_refused() {
        let mut table = Reassembly::default();
        assert_eq!(insert(&mut table, &fragment(1, 65_528, false, &[0; 8])), Outcome::Malformed);
    }
}
