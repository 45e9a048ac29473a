//! Putting fragments together again.
//!
//! The stack hands it received fragments and gets whole packets back.
//!
//! Invariants: at most [`LIMIT`] packets and [`OCTETS`] wait, the oldest gives way; each for [`TIMEOUT`]; overlapping fragments end the whole
//! packet, because nobody sends them in good faith (RFC 5722 for IPv6, good sense for IPv4).
//! Depends on `clock`, `wire`. Read first: RFC 791 section 3.2, RFC 1122 section 3.3.2.

use crate::clock::Instant;
use crate::wire::{IpProtocol, Ipv4Packet, ipv4};
use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Packets that wait for fragments at once.
pub(super) const LIMIT: usize = 1024;
/// Octets of their payloads (Linux: `ipfrag_high_thresh`).
const OCTETS: usize = 4 << 20;
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
    /// The fragment contradicts others or is longer than a packet can be.
    Malformed,
}

/// The packets that wait.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    partials: BTreeMap<Key, Partial>,
    /// Oldest first; the front one waits, others may have ended.
    order: VecDeque<(Instant, Key)>,
    octets: usize,
}

impl Reassembly {
    /// Takes a fragment; also tells how many packets gave way to it. They are the oldest: of what is only under way, little is
    /// missing for long.
    pub(super) fn insert(&mut self, packet: &Ipv4Packet<&[u8]>, now: Instant) -> (Outcome, usize) {
        let key = (packet.source(), packet.destination(), packet.protocol(), packet.identification());
        let mut gave_way = 0;
        if !self.partials.contains_key(&key) {
            while self.partials.len() >= LIMIT || self.octets > OCTETS {
                self.remove_oldest();
                gave_way += 1;
            }
            self.order.push_back((now + TIMEOUT, key));
        }
        let partial = self.partials.entry(key).or_insert_with(|| Partial {
            header: None,
            parts: BTreeMap::new(),
            received: 0,
            total: None,
            until: now + TIMEOUT,
        });
        let before = partial.received;
        let is_right = partial.add(packet);
        self.octets += partial.received - before;
        let is_whole = partial.total == Some(partial.received) && partial.header.is_some();
        let outcome = match (is_right, is_whole) {
            (false, _) => {
                self.remove(&key);
                Outcome::Malformed
            }
            (true, false) => Outcome::Waiting,
            (true, true) => {
                self.remove(&key).and_then(Partial::assemble).map_or(Outcome::Malformed, Outcome::Whole)
            }
        };
        (outcome, gave_way)
    }

    /// Forgets what waited too long and returns how many packets that were.
    pub(super) fn expire(&mut self, now: Instant) -> usize {
        let mut count = 0;
        while self.next_timer().is_some_and(|until| until <= now) {
            self.remove_oldest();
            count += 1;
        }
        count
    }

    /// Returns when something expires.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.order.front().map(|&(until, _)| until)
    }

    fn remove_oldest(&mut self) {
        if let Some((_, key)) = self.order.front().copied() {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Partial> {
        let partial = self.partials.remove(key)?;
        self.octets -= partial.received;
        // What ended before its time is passed over, and never more than twice what may wait is in the list.
        let waits = |&(until, key): &(Instant, Key)| {
            self.partials.get(&key).is_some_and(|partial| partial.until == until)
        };
        while self.order.front().is_some_and(|entry| !waits(entry)) {
            self.order.pop_front();
        }
        if self.order.len() > 2 * LIMIT {
            self.order.retain(waits);
        }
        Some(partial)
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
        insert_at(table, bytes, 0).0
    }

    fn insert_at(table: &mut Reassembly, bytes: &[u8], milliseconds: u64) -> (Outcome, usize) {
        let now = Instant::ZERO + Duration::from_millis(milliseconds);
        table.insert(&Ipv4Packet::new_checked(bytes).unwrap(), now)
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
                    outcome @ (Outcome::Waiting | Outcome::Malformed) => {
                        prop_assert_eq!(outcome, Outcome::Waiting);
                        prop_assert!(position + 1 < count);
                    }
                }
            }
            prop_assert!(table.partials.is_empty() && table.order.is_empty() && table.octets == 0);
        }
    }

    /// RFC 1858, 4.
    #[test]
    fn an_overlap_ends_a_packet() {
        let mut table = Reassembly::default();
        assert_eq!(insert(&mut table, &fragment(1, 0, true, &[1; 16])), Outcome::Waiting);
        assert_eq!(insert(&mut table, &fragment(1, 8, true, &[2; 16])), Outcome::Malformed);
        assert!(table.partials.is_empty() && table.order.is_empty() && table.octets == 0);
    }

    /// RFC 4963, 2: what lost a fragment keeps nobody else from being put together, however much of it there is.
    #[test]
    fn the_oldest_packets_give_way_by_number_and_by_size() {
        for (payload, room) in [(8, LIMIT), (64_000, OCTETS / 64_000 + 1)] {
            let mut table = Reassembly::default();
            let incomplete = |identification| fragment(identification, 0, true, &vec![1; payload]);
            for identification in 0..3000 {
                let gave_way = usize::from(usize::from(identification) >= room);
                let got = insert_at(&mut table, &incomplete(identification), identification.into());
                assert_eq!(got, (Outcome::Waiting, gave_way), "{payload} {identification}");
            }
            assert_eq!((table.partials.len(), table.octets), (room, room * payload));
            assert!(insert_at(&mut table, &fragment(9999, 0, true, &[1; 8]), 3000).1 <= 1);
            let (outcome, _) = insert_at(&mut table, &fragment(9999, 8, false, &[1; 8]), 3000);
            assert!(matches!(outcome, Outcome::Whole(_)), "{outcome:?}");
            let newest = Instant::ZERO + Duration::from_millis(2999) + TIMEOUT;
            let last = table.partials.len();
            assert_eq!(table.expire(newest), last);
            assert!(table.partials.is_empty() && table.order.is_empty() && table.octets == 0);
        }
    }

    /// RFC 791, 3.1: 65,535 octets with the header.
    #[test]
    fn a_packet_longer_than_64_kilobytes_is_refused() {
        let mut table = Reassembly::default();
        assert_eq!(insert(&mut table, &fragment(1, 65_528, false, &[0; 8])), Outcome::Malformed);
    }
}
