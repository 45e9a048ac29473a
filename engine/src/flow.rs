//! Flow keys and the evictable cache that replays decisions.
//!
//! `parse` makes keys, the worker looks them up, `decide` fills the cache. Invariants: a slot is one cache
//! line and holds everything a hit needs but the adjacency; a slot answers only while both its epoch buckets
//! and its binding are as they were; losing a slot costs one slow decision and nothing else. Allowed
//! dependencies: `wire`. Read first: `docs/architecture.md`, "Decide once, replay".
//!
//! Above 400 lines because key, slot and cache are one layout.

use crate::clock::{Instant, prefetch};
use crate::sys::Spread;
use crate::tables::EPOCH_BUCKETS;

/// What a flow is found by, 16 bytes: addresses, ports, protocol, ingress port, and whether it came out of the
/// tunnel. Frames that are not IPv4 are keyed by destination MAC and EtherType.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FlowKey {
    high: u64,
    low: u64,
}

/// Set in a key whose packet came out of the tunnel.
const TUNNELED: u64 = 1 << 31;
/// Set in the ports of a key that is not IPv4; such a key's protocol is [`LAYER_TWO_PROTOCOL`].
const LAYER_TWO: u64 = 1 << 32;
/// IANA's "for experimentation" number, which IPv4 keys hold with both ports zero.
const LAYER_TWO_PROTOCOL: u64 = 253;
/// The bits of a key by which one that is not IPv4 is told: an IPv4 key of that protocol has no ports.
const LAYER_TWO_MARK: u64 = (0xffff_ffff << 32) | 0xff;

impl FlowKey {
    /// No frame's key: an IPv4 packet of protocol 255 has no ports.
    const NONE: Self = Self { high: u64::MAX, low: u64::MAX };

    /// Makes the key of an IPv4 packet; addresses and ports in host order.
    #[inline(always)]
    #[must_use]
    pub fn ipv4(tuple: &Tuple, ingress: u32, tunneled: bool) -> Self {
        let addresses = (u64::from(tuple.source) << 32) | u64::from(tuple.destination);
        let ports = (u32::from(tuple.source_port) << 16) | u32::from(tuple.destination_port);
        Self::words(addresses, ports, tuple.protocol, ingress, tunneled)
    }

    /// Makes the same key of a header's words in host order: both addresses and both ports, the source in the upper half.
    #[inline(always)]
    #[must_use]
    pub fn words(addresses: u64, ports: u32, protocol: u8, ingress: u32, tunneled: bool) -> Self {
        let low = if tunneled { TUNNELED } else { 0 } | (u64::from(ingress) << 8) | u64::from(protocol);
        Self { high: addresses, low: (u64::from(ports) << 32) | low }
    }

    /// Returns the key with other ports: a fragment's, once they are known.
    #[must_use]
    pub const fn with_ports(self, (source, destination): (u16, u16)) -> Self {
        let ports = ((source as u64) << 48) | ((destination as u64) << 32);
        Self { low: self.low & 0xffff_ffff | ports, ..self }
    }

    /// Makes the key of another frame.
    #[inline(always)]
    #[must_use]
    pub fn layer_two(destination: [u8; 6], ethertype: u16, ingress: u32) -> Self {
        let [a, b, c, d, e, f] = destination;
        Self {
            high: u64::from_be_bytes([0, 0, a, b, c, d, e, f]) | (u64::from(ethertype) << 48),
            low: LAYER_TWO | (u64::from(ingress) << 8) | LAYER_TWO_PROTOCOL,
        }
    }

    /// Returns the tuple of an IPv4 key; a clear one of another.
    #[must_use]
    pub fn tuple(self) -> Tuple {
        if self.low & LAYER_TWO_MARK == LAYER_TWO | LAYER_TWO_PROTOCOL {
            return Tuple::default();
        }
        Tuple {
            source: (self.high >> 32) as u32,
            destination: self.high as u32,
            source_port: (self.low >> 48) as u16,
            destination_port: (self.low >> 32) as u16,
            protocol: self.low as u8,
        }
    }

    /// Returns an IPv4 flow's protocol number.
    #[inline(always)]
    #[must_use]
    pub const fn protocol(self) -> u8 {
        self.low as u8
    }

    /// Returns the port that the flow comes in by.
    #[must_use]
    pub const fn ingress(self) -> u32 {
        (self.low as u32 & !(TUNNELED as u32)) >> 8
    }

    /// Tells, by half of the key, whether it may be the same as another: for a guess that costs little.
    #[inline(always)]
    #[must_use]
    pub const fn resembles(self, other: Self) -> bool {
        self.low == other.low
    }

    /// Hashes the key with a secret, so that nobody can choose colliding flows.
    #[inline(always)]
    #[must_use]
    pub fn hash(self, secret: [u64; 2]) -> u64 {
        let product = u128::from(self.high ^ secret[0]) * u128::from(self.low ^ secret[1]);
        let folded = (product >> 64) as u64 ^ product as u64;
        let product = u128::from(folded ^ secret[1]) * 0x9e37_79b9_7f4a_7c15;
        (product >> 64) as u64 ^ product as u64
    }
}

/// A flow's addresses, ports and protocol, in host order. ICMP queries have the identifier and the request's
/// type for ports: a request is (identifier, type), its answer (type, identifier).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tuple {
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
}

impl Tuple {
    /// Returns the tuple of the other direction.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

/// What of a frame's link layer must be as it was when the flow was decided: destination and source MAC, or,
/// out of the tunnel, destination MAC and outer source.
pub type LinkGuard = [u8; 12];

/// No binding: the flow is not translated.
pub const NO_BINDING: u32 = u32::MAX;

/// A slot's flag bits.
pub mod flags {
    /// TTL goes down by one.
    pub const DECREMENT_TTL: u8 = 2;
    /// Addresses and ports are rewritten.
    pub const TRANSLATE: u8 = 4;
    /// The packet is of the binding's reply half.
    pub const REPLY: u8 = 8;
    /// Another worker decides; its number stands for the adjacency.
    pub const HAND_OVER: u8 = 16;
    /// Outer headers come in front of the frame.
    pub const ENCAPSULATE: u8 = 32;
    /// The flow was answered: a decision about its other direction was paid for with this one.
    pub const ANSWERED: u8 = 64;
}

/// One decision, replayed: exactly one cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Slot {
    /// The flow.
    pub key: FlowKey,
    /// What else must match.
    pub guard: LinkGuard,
    /// Sum of the epochs of both buckets when decided, and of the cache's own; the cache sets it.
    pub epoch: u32,
    /// The binding it belongs to.
    pub binding: u32,
    /// That binding's generation.
    pub generation: u32,
    /// Source address afterwards.
    pub source: u32,
    /// Destination address afterwards.
    pub destination: u32,
    /// Source port afterwards.
    pub source_port: u16,
    /// Destination port afterwards.
    pub destination_port: u16,
    /// RFC 1624 difference of the IPv4 header's checksum, TTL included.
    pub network_difference: u16,
    /// RFC 1624 difference of the transport checksum.
    pub transport_difference: u16,
    /// How the frame leaves.
    pub adjacency: u32,
    /// The epoch buckets it depends on.
    pub buckets: [u8; 2],
    /// See [`flags`].
    pub flags: u8,
    /// When it was decided, in steps of the cache's, which sets it.
    pub decided: u8,
}

const _: () = assert!(size_of::<Slot>() == 64);

impl Slot {
    /// Makes the slot of a flow that another worker decides about, while a bucket stays as it is.
    #[must_use]
    pub fn hand_over(key: FlowKey, guard: LinkGuard, worker: u8, bucket: u8) -> Self {
        let (adjacency, buckets) = (u32::from(worker), [bucket; 2]);
        Self { key, guard, adjacency, buckets, flags: flags::HAND_OVER, ..Self::EMPTY }
    }

    const EMPTY: Self = Self {
        key: FlowKey::NONE,
        guard: [0; 12],
        epoch: 0,
        binding: NO_BINDING,
        generation: 0,
        source: 0,
        destination: 0,
        source_port: 0,
        destination_port: 0,
        network_difference: 0,
        transport_difference: 0,
        adjacency: 0,
        buckets: [0; 2],
        flags: 0,
        decided: 0,
    };
}

/// Of the time in nanoseconds, the bits below those that [`Slot::decided`] keeps: steps of 17 seconds.
const STEP: u32 = 34;
/// Steps after which a decision may be given up for another: its flow has probably ended.
const OLD: u8 = 2;

/// A worker's cache. A flow has two sets that it may be in, of two neighbouring slots each: with one set only, a cache
/// that is a third full would have no room for one flow in ten.
#[derive(Debug)]
pub struct FlowCache {
    slots: Spread<Slot>,
    secret: [u64; 2],
    /// How often it was cleared: part of every slot's epoch, so that nothing is written to forget all.
    cleared: u32,
    /// Which of several decisions that are not old is given up, by its upper bits: another one each time.
    lot: u64,
}

impl FlowCache {
    /// Makes a cache of `slots` slots (an even number, at least two).
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub fn new(slots: usize, secret: [u64; 2]) -> std::io::Result<Self> {
        Ok(Self {
            slots: Spread::filled(slots.max(2).next_multiple_of(2), Slot::EMPTY)?,
            secret,
            cleared: 0,
            lot: secret[0],
        })
    }

    /// Hashes a key and starts to fetch the slot that it is most likely in.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, key: FlowKey) -> u64 {
        let hash = key.hash(self.secret);
        prefetch(self.likely(hash));
        hash
    }

    /// Finds the slot of a flow that still holds.
    #[inline(always)]
    #[must_use]
    pub fn lookup(
        &self,
        hash: u64,
        key: FlowKey,
        guard: &LinkGuard,
        epochs: &[u32; EPOCH_BUCKETS],
    ) -> Option<&Slot> {
        let slot = self.likely(hash);
        let slot = if slot.key == key { slot } else { self.elsewhere(hash, key)? };
        (slot.guard == *guard && slot.epoch == self.epoch(epochs, slot.buckets)).then_some(slot)
    }

    /// Forgets the decision about a flow that tables have changed since; tells whether there was one.
    pub fn forget_outdated(
        &mut self,
        hash: u64,
        key: FlowKey,
        guard: &LinkGuard,
        epochs: &[u32; EPOCH_BUCKETS],
    ) -> bool {
        let is_it = |slot: &Slot| slot.key == key && slot.guard == *guard;
        let Some(place) = self.places(hash).into_iter().find(|&place| is_it(&self.slots[place])) else {
            return false;
        };
        let is_outdated = self.slots[place].epoch != self.epoch(epochs, self.slots[place].buckets);
        if is_outdated {
            self.slots[place] = Slot::EMPTY;
        }
        is_outdated
    }

    /// Notes that a flow was answered; tells whether it is known and was not yet.
    pub fn note_answer(&mut self, key: FlowKey) -> bool {
        let places = self.places(self.hash(key));
        let slot = places.into_iter().find(|&place| self.slots[place].key == key);
        let Some(slot) = slot.map(|place| &mut self.slots[place]) else { return false };
        let is_first = slot.flags & flags::ANSWERED == 0;
        slot.flags |= flags::ANSWERED;
        is_first
    }

    /// Returns the slot that the flow of this hash is most likely in, whosever it is.
    #[inline(always)]
    #[must_use]
    pub fn likely(&self, hash: u64) -> &Slot {
        self.slots.at(hash as u32)
    }

    /// Starts to fetch the other slots that the flow of this hash may be in.
    #[inline(never)]
    pub fn prefetch_others(&self, hash: u64) {
        let [_, others @ ..] = self.places(hash);
        others.into_iter().for_each(|place| prefetch(&self.slots[place]));
    }

    /// Returns the slot of a flow that is not in its first place.
    #[inline(never)]
    #[must_use]
    pub fn elsewhere(&self, hash: u64, key: FlowKey) -> Option<&Slot> {
        let [_, others @ ..] = self.places(hash);
        others.into_iter().map(|place| &self.slots[place]).find(|slot| slot.key == key)
    }

    /// Stores a decision, over the flow's own slot, an unused or outdated one, the oldest if it is old, one whose flow can be
    /// moved, one of the same ingress port, or any that the flow may have: a flood gives up its own decisions.
    pub fn insert(&mut self, hash: u64, slot: Slot, epochs: &[u32; EPOCH_BUCKETS], now: Instant) {
        let decided = (now.as_nanos() >> STEP) as u8;
        let slot = Slot { epoch: self.epoch(epochs, slot.buckets), decided, ..slot };
        let places = self.places(hash);
        let own = places.into_iter().find(|&place| self.slots[place].key == slot.key);
        let place = own
            .or_else(|| self.free(places, epochs))
            .or_else(|| self.old(places, decided))
            .or_else(|| self.make_room(places, epochs))
            .unwrap_or_else(|| self.give_up(places, slot.key.ingress()));
        self.slots[place] = slot;
    }

    /// Chooses by lot, so that no two flows take one place from each other again and again.
    fn give_up(&mut self, mut places: [usize; 4], ingress: u32) -> usize {
        // Knuth's MMIX generator.
        self.lot = self.lot.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        places.rotate_left((self.lot >> 62) as usize);
        let own = places.into_iter().find(|&place| self.slots[place].key.ingress() == ingress);
        own.unwrap_or(places[0])
    }

    fn free(&self, places: [usize; 4], epochs: &[u32; EPOCH_BUCKETS]) -> Option<usize> {
        places.into_iter().find(|&place| {
            let slot = &self.slots[place];
            slot.key == FlowKey::NONE || slot.epoch != self.epoch(epochs, slot.buckets)
        })
    }

    fn old(&self, places: [usize; 4], now: u8) -> Option<usize> {
        let age = |place: usize| now.wrapping_sub(self.slots[place].decided);
        places.into_iter().max_by_key(|&place| age(place)).filter(|&place| age(place) >= OLD)
    }

    /// Moves one of four flows to where else it may be, if there is room, and returns its place.
    fn make_room(&mut self, places: [usize; 4], epochs: &[u32; EPOCH_BUCKETS]) -> Option<usize> {
        let (from, to) = places.into_iter().find_map(|from| {
            let others = self.places(self.slots[from].key.hash(self.secret));
            Some((from, self.free(others, epochs)?))
        })?;
        self.slots[to] = self.slots[from];
        Some(from)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.cleared = self.cleared.wrapping_add(1);
    }

    /// What a slot's epoch must be: it changes whenever one of its buckets does, or all is forgotten.
    #[inline(always)]
    fn epoch(&self, epochs: &[u32; EPOCH_BUCKETS], buckets: [u8; 2]) -> u32 {
        let [first, second] = buckets.map(|bucket| epochs[usize::from(bucket)]);
        first.wrapping_add(second).wrapping_add(self.cleared)
    }

    /// Where a flow may be, the likeliest first. The second set comes from the hash's upper half.
    fn places(&self, hash: u64) -> [usize; 4] {
        let (first, second) = (self.slots.place(hash as u32), self.slots.place((hash >> 32) as u32));
        [first, first ^ 1, second, second ^ 1]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn slot(tuple: &Tuple) -> (FlowKey, Slot) {
        let key = FlowKey::ipv4(tuple, 3, false);
        (key, Slot { key, buckets: [1, 2], ..Slot::EMPTY })
    }

    #[test]
    fn a_slot_answers_until_one_of_its_buckets_changes() {
        let (key, slot) = slot(&Tuple { source: 1, destination: 2, ..Tuple::default() });
        let mut cache = FlowCache::new(8, [5, 7]).unwrap();
        let mut epochs = [0; EPOCH_BUCKETS];
        let hash = cache.hash(key);
        cache.insert(hash, slot, &epochs, Instant::ZERO);
        assert!(cache.lookup(hash, key, &[0; 12], &epochs).is_some());
        assert!(cache.lookup(hash, key, &[1; 12], &epochs).is_none(), "another link layer");
        epochs[2] = 1;
        assert!(cache.lookup(hash, key, &[0; 12], &epochs).is_none());
        cache.insert(hash, slot, &epochs, Instant::ZERO);
        assert!(cache.lookup(hash, key, &[0; 12], &epochs).is_some());
        cache.clear();
        assert!(cache.lookup(hash, key, &[0; 12], &epochs).is_none(), "all is forgotten");
    }

    /// Flows that lie in one set under a secret that somebody has found out are spread evenly under any other.
    #[test]
    fn flows_that_collide_under_one_secret_do_not_under_another() {
        const SLOTS: usize = 1 << 10;
        let first_set = |cache: &FlowCache, key: FlowKey| cache.places(cache.hash(key))[0] / 2;
        let mut random = crate::random::Random::new(1);
        let mut secret = || [random.next_u64(), random.next_u64()];
        let known = FlowCache::new(SLOTS, secret()).unwrap();
        let all =
            (0..1 << 20).map(|flow| slot(&Tuple { source: flow, destination: 9, ..Tuple::default() }).0);
        let colliding: Vec<FlowKey> = all.filter(|&key| first_set(&known, key) == 3).collect();
        assert!(colliding.len() > 1500, "2,048 are expected: {}", colliding.len());
        for secret in (0..100).map(|_| secret()) {
            let other = FlowCache::new(SLOTS, secret).unwrap();
            let mut sets = vec![0u32; SLOTS / 2];
            colliding.iter().for_each(|&key| sets[first_set(&other, key)] += 1);
            // Four are expected in each; chance has more than twenty once in a million times.
            assert!(sets.iter().max() <= Some(&20), "{secret:x?}: {:?}", sets.iter().max());
        }
    }

    /// Puts ten thousand flows into a cache; returns them with it.
    fn filled(slots: usize) -> (FlowCache, Vec<FlowKey>) {
        let epochs = [0; EPOCH_BUCKETS];
        let mut cache = FlowCache::new(slots, [5, 7]).unwrap();
        let keys: Vec<FlowKey> = (0..10_000)
            .map(|flow| slot(&Tuple { source: flow, destination: !flow, ..Tuple::default() }).0)
            .collect();
        for &key in &keys {
            let hash = cache.hash(key);
            cache.insert(hash, Slot { key, ..Slot::EMPTY }, &epochs, Instant::ZERO);
        }
        (cache, keys)
    }

    /// Returns how many of 10,000 flows such a cache does not keep.
    fn lost(slots: usize) -> usize {
        let (cache, keys) = filled(slots);
        let epochs = [0; EPOCH_BUCKETS];
        keys.iter().filter(|&&key| cache.lookup(cache.hash(key), key, &[0; 12], &epochs).is_none()).count()
    }

    /// What the rows of many flows pay for: `docs/performance.md` reckons with it.
    #[test]
    fn seven_of_ten_flows_are_in_their_first_slot_where_seven_slots_are_for_four() {
        let (cache, keys) = filled(17_500);
        let is_first = |key: &&FlowKey| cache.slots[cache.places(cache.hash(**key))[0]].key == **key;
        let others = keys.len() - keys.iter().filter(is_first).count();
        assert!((2_700..=3_100).contains(&others), "{others} of {}", keys.len());
    }

    #[test]
    fn a_cache_with_room_to_spare_keeps_nearly_all_flows() {
        let by_slots = [20_000, 16_000, 15_000, 13_333].map(lost);
        assert!(by_slots[0] <= 5 && by_slots[2] <= 100, "{by_slots:?}");
        assert!(by_slots.is_sorted(), "{by_slots:?}");
    }

    /// Four slots are all that any flow may have here.
    #[test]
    fn a_full_cache_gives_up_the_oldest_decision_but_no_young_one_while_there_is_another() {
        let epochs = [0; EPOCH_BUCKETS];
        let mut cache = FlowCache::new(4, [5, 7]).unwrap();
        let minute = |minutes: u64| Instant::ZERO + Duration::from_secs(60 * minutes);
        let of = |flow| slot(&Tuple { source: flow, ..Tuple::default() });
        // Some flows have one pair of slots only: as many flows as fill both.
        let mut kept = Vec::new();
        for flow in 0.. {
            let (key, slot) = of(flow);
            let hash = cache.hash(key);
            if cache.free(cache.places(hash), &epochs).is_some() {
                cache.insert(hash, slot, &epochs, minute(kept.len() as u64));
                kept.push(key);
            }
            if kept.len() == 4 {
                break;
            }
        }
        let knows = |cache: &FlowCache, key| cache.lookup(cache.hash(key), key, &[0; 12], &epochs).is_some();
        assert!(kept.iter().all(|&key| knows(&cache, key)));
        let anywhere = |cache: &FlowCache, key| {
            let [first, _, second, _] = cache.places(cache.hash(key));
            first / 2 != second / 2
        };
        let news: Vec<_> = (100..).map(of).filter(|(key, _)| anywhere(&cache, *key)).take(3).collect();
        for (number, (key, slot)) in news.into_iter().enumerate() {
            cache.insert(cache.hash(key), slot, &epochs, minute(4));
            let known: Vec<bool> = kept.iter().map(|&key| knows(&cache, key)).collect();
            assert!(knows(&cache, key));
            assert_eq!(known, (0..4).map(|old| old > number).collect::<Vec<_>>(), "the oldest goes first");
        }
    }

    /// What a flow of a port is found by.
    fn key_of(ingress: u32, flow: u32) -> FlowKey {
        FlowKey::ipv4(
            &Tuple { source: flow, destination: !flow, ..Tuple::default() },
            ingress,
            flow.is_multiple_of(2),
        )
    }

    #[test]
    fn a_flood_gives_up_its_own_decisions() {
        let epochs = [0; EPOCH_BUCKETS];
        let mut cache = FlowCache::new(4096, [5, 7]).unwrap();
        let store = |cache: &mut FlowCache, key: FlowKey| {
            let slot = Slot { key, ..Slot::EMPTY };
            cache.insert(cache.hash(key), slot, &epochs, Instant::ZERO);
        };
        let known: Vec<_> = (0..100).map(|flow| key_of(1, flow)).collect();
        known.iter().for_each(|&key| store(&mut cache, key));
        (0..200_000).for_each(|flow| store(&mut cache, key_of((1 << 23) - 1, flow)));
        let is_kept = |key: &&FlowKey| cache.lookup(cache.hash(**key), **key, &[0; 12], &epochs).is_some();
        let kept = known.iter().filter(is_kept).count();
        assert_eq!(kept, 100);
    }

    /// Five flows that have four places between them: at most times three of them, and each of them at some time, are found.
    #[test]
    fn flows_that_compete_for_a_place_all_have_their_turn() {
        let epochs = [0; EPOCH_BUCKETS];
        let mut cache = FlowCache::new(4, [5, 7]).unwrap();
        let mut found = [0; 5];
        for round in 0..1000 {
            let flow = round % 5;
            let key = key_of(1, flow);
            let hash = cache.hash(key);
            if cache.lookup(hash, key, &[0; 12], &epochs).is_some() {
                found[flow as usize] += 1;
            } else {
                cache.insert(hash, Slot { key, ..Slot::EMPTY }, &epochs, Instant::ZERO);
            }
        }
        assert!(found.iter().all(|&hits| hits > 50), "{found:?} of 200 each");
    }

    #[test]
    fn keys_differ_in_every_field() {
        let tuple = Tuple { source: 1, destination: 2, source_port: 3, destination_port: 4, protocol: 6 };
        let keys = [
            FlowKey::ipv4(&tuple, 5, false),
            FlowKey::ipv4(&tuple, 5, true),
            FlowKey::ipv4(&tuple, 6, false),
            FlowKey::ipv4(&tuple.reversed(), 5, false),
            FlowKey::ipv4(&Tuple { protocol: 17, ..tuple }, 5, false),
            FlowKey::layer_two([0, 0, 0, 0, 0, 2], 1, 5),
            FlowKey::ipv4(
                &Tuple { source: 1 << 16, protocol: 253, source_port: 0, destination_port: 0, ..tuple },
                5,
                false,
            ),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(keys[index + 1..].iter().all(|other| other != key), "{index}");
        }
    }
}
