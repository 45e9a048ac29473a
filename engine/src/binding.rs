//! What NAT and Services chose for a connection: both halves, TCP state, timeouts.
//!
//! `decide` makes and asks bindings; the worker renews them as cached flows hit and sweeps a bounded slice per
//! batch. Invariants: the two halves' tuples belong to one binding only; a binding never changes its
//! translation and is never evicted, it ends by timeout, state or removal; its generation changes when it
//! ends, so that no cached flow outlives it. One table per worker. Allowed dependencies: `flow`, `tables`,
//! `clock`, `wire`. Read first: RFC 3022; RFC 5382, 4787 and 5508 for the timeouts; conntrack's are used.
//!
//! Above 400 lines because halves, TCP's states and timeouts are one machine, tested beside it.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::clock::Instant;
use crate::flow::Tuple;
use crate::tables::NodeId;
use crate::wire::TcpFlags;

/// The key of a half: node and tuple as the packet carries it on arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HalfKey {
    /// The node that translates.
    pub node: NodeId,
    /// The packet's tuple before translation.
    pub tuple: Tuple,
}

/// Which direction a packet of a binding goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// As the first packet.
    Original,
    /// Against it.
    Reply,
}

/// TCP's state as a middlebox sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// SYN seen.
    SynSent,
    /// SYN answered.
    SynReceived,
    /// Data may flow.
    Established,
    /// One side closed.
    FinWait,
    /// Both sides closed.
    TimeWait,
    /// Reset.
    Closed,
}

/// One connection's translation.
#[derive(Debug, Clone, Copy)]
pub struct Binding {
    /// The first packet's tuple on arrival.
    pub original: HalfKey,
    /// The answer's tuple on arrival.
    pub reply: HalfKey,
    /// State, for TCP.
    pub tcp: TcpState,
    /// Who closed so far: original, reply.
    fins: [bool; 2],
    /// Whether an answer was seen.
    pub answered: bool,
    /// When it ends unless a packet comes.
    pub expires: Instant,
    /// Time of the last packet.
    pub last_seen: Instant,
}

impl Binding {
    /// Returns the tuple that a packet of this half has after translation.
    #[must_use]
    pub fn translated(&self, half: Half) -> Tuple {
        match half {
            Half::Original => self.reply.tuple.reversed(),
            Half::Reply => self.original.tuple.reversed(),
        }
    }

    /// Returns how long it lives without packets, as conntrack does (`nf_conntrack_*_timeout`).
    #[must_use]
    pub fn timeout(&self) -> Duration {
        let seconds = match self.original.tuple.protocol {
            6 => match self.tcp {
                TcpState::SynSent | TcpState::FinWait | TcpState::TimeWait => 120,
                TcpState::SynReceived => 60,
                TcpState::Established => 432_000,
                TcpState::Closed => 10,
            },
            17 if self.answered => 120,
            _ => 30,
        };
        Duration::from_secs(seconds)
    }

    /// Tells whether a machine is one of its ends: as the client, or as the backend that was chosen.
    #[must_use]
    pub fn is_with(&self, address: Ipv4Addr) -> bool {
        [self.original.tuple.source, self.reply.tuple.source].contains(&address.to_bits())
    }

    /// Tells whether it leads UDP to this backend.
    #[must_use]
    pub fn is_udp_to(&self, address: Ipv4Addr, port: u16) -> bool {
        let backend = &self.reply.tuple;
        backend.protocol == 17 && (backend.source, backend.source_port) == (address.to_bits(), port)
    }

    fn note(&mut self, half: Half, flags: TcpFlags, now: Instant) {
        self.answered |= half == Half::Reply;
        if self.original.tuple.protocol == 6 {
            self.tcp = self.next_state(half, flags);
        }
        self.last_seen = now;
        self.expires = now + self.timeout();
    }

    fn next_state(&mut self, half: Half, flags: TcpFlags) -> TcpState {
        if flags.rst() {
            return TcpState::Closed;
        }
        if flags.syn() {
            return match (half, flags.ack(), self.tcp) {
                // The connection is opened anew from the same ports.
                (_, false, TcpState::TimeWait | TcpState::Closed) => {
                    self.fins = [false; 2];
                    TcpState::SynSent
                }
                (Half::Reply, _, TcpState::SynSent) => TcpState::SynReceived,
                (_, _, state) => state,
            };
        }
        if flags.fin() {
            self.fins[half as usize] = true;
            return if self.fins == [true; 2] { TcpState::TimeWait } else { TcpState::FinWait };
        }
        match (self.tcp, half) {
            (TcpState::SynReceived, Half::Original) => TcpState::Established,
            (state, _) => state,
        }
    }
}

/// Refers to a binding until it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindingRef {
    /// Its place in the table.
    pub index: u32,
    /// The place's generation.
    pub generation: u32,
}

/// Why a binding cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// One of the tuples belongs to another binding.
    TupleTaken,
    /// [`Bindings`] is at its limit.
    Full,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    binding: Option<Binding>,
    generation: u32,
}

/// A worker's bindings.
#[derive(Debug)]
pub struct Bindings {
    halves: HashMap<HalfKey, (u32, Half), KeyedState>,
    places: Vec<Place>,
    free: VecDeque<u32>,
    limit: usize,
    swept: usize,
}

impl Bindings {
    /// Makes a table of at most `limit` bindings, hashed with a secret.
    #[must_use]
    pub fn new(limit: usize, secret: [u64; 2]) -> Self {
        Self {
            halves: HashMap::with_hasher(KeyedState(secret)),
            places: Vec::new(),
            free: VecDeque::new(),
            limit: limit.min(u32::MAX as usize - 1),
            swept: 0,
        }
    }

    /// Finds the binding of a packet and notes the packet: state, time.
    pub fn follow(
        &mut self,
        key: &HalfKey,
        flags: TcpFlags,
        now: Instant,
    ) -> Option<(BindingRef, Half, Tuple)> {
        let (found, half, _) = self.find(key, now)?;
        let binding = self.places[found.index as usize].binding.as_mut()?;
        binding.note(half, flags, now);
        let translated = binding.translated(half);
        Some((found, half, translated))
    }

    /// Finds the binding of a half without noting a packet.
    pub fn find(&mut self, key: &HalfKey, now: Instant) -> Option<(BindingRef, Half, &Binding)> {
        let &(index, half) = self.halves.get(key)?;
        let generation = self.places[index as usize].generation;
        if self.places[index as usize].binding.is_none_or(|binding| binding.expires <= now) {
            self.end(index);
            return None;
        }
        let binding = self.places[index as usize].binding.as_ref()?;
        Some((BindingRef { index, generation }, half, binding))
    }

    /// Tells whether no binding has this half.
    pub fn is_free(&mut self, key: &HalfKey, now: Instant) -> bool {
        self.find(key, now).is_none()
    }

    /// Makes a binding for the first packet of a connection.
    ///
    /// # Errors
    /// [`Refused`]; nothing is changed then.
    pub fn insert(
        &mut self,
        original: HalfKey,
        reply: HalfKey,
        flags: TcpFlags,
        now: Instant,
    ) -> Result<BindingRef, Refused> {
        if original == reply || !self.is_free(&original, now) || !self.is_free(&reply, now) {
            return Err(Refused::TupleTaken);
        }
        let index = match self.free.pop_front() {
            Some(index) => index,
            None if self.places.len() < self.limit => {
                self.places.push(Place { binding: None, generation: 0 });
                (self.places.len() - 1) as u32
            }
            None => return Err(Refused::Full),
        };
        // A connection that was open before is taken as open (conntrack's `tcp_loose`).
        let tcp = if flags.syn() { TcpState::SynSent } else { TcpState::Established };
        let mut binding =
            Binding { original, reply, tcp, fins: [false; 2], answered: false, expires: now, last_seen: now };
        binding.note(Half::Original, flags, now);
        let place = &mut self.places[index as usize];
        place.binding = Some(binding);
        self.halves.insert(original, (index, Half::Original));
        self.halves.insert(reply, (index, Half::Reply));
        Ok(BindingRef { index, generation: self.places[index as usize].generation })
    }

    /// Renews a binding for a packet that the cache answered; false when the binding has ended, or when the packet
    /// must be followed because it may change the state: a slot from before the ports were used anew.
    #[inline(always)]
    pub fn renew(&mut self, index: u32, generation: u32, half: Half, now: Instant) -> bool {
        let Some(place) = self.places.get_mut(index as usize) else { return false };
        let Some(binding) = &mut place.binding else { return false };
        let handshake = binding.tcp == TcpState::SynReceived;
        if place.generation != generation || binding.expires <= now || handshake {
            return false;
        }
        binding.answered |= half == Half::Reply;
        if binding.last_seen != now {
            binding.last_seen = now;
            binding.expires = now + binding.timeout();
        }
        true
    }

    /// Looks at up to `places` places and ends what has expired.
    pub fn sweep(&mut self, places: usize, now: Instant) {
        for _ in 0..places.min(self.places.len()) {
            self.swept = (self.swept + 1) % self.places.len();
            if self.places[self.swept].binding.is_some_and(|binding| binding.expires <= now) {
                self.end(self.swept as u32);
            }
        }
    }

    /// Ends all bindings that `ends` says so of.
    pub fn end_where(&mut self, ends: impl Fn(&Binding) -> bool) {
        for index in 0..self.places.len() {
            if self.places[index].binding.as_ref().is_some_and(&ends) {
                self.end(index as u32);
            }
        }
    }

    /// Counts the live bindings.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Tells whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Walks the bindings of a node, in order of their places.
    pub fn iter(&self, node: NodeId) -> impl Iterator<Item = &Binding> {
        self.places
            .iter()
            .filter_map(|place| place.binding.as_ref())
            .filter(move |it| it.original.node == node)
    }

    fn end(&mut self, index: u32) {
        let place = &mut self.places[index as usize];
        if let Some(binding) = place.binding.take() {
            place.generation = place.generation.wrapping_add(1);
            self.halves.remove(&binding.original);
            self.halves.remove(&binding.reply);
            self.free.push_back(index);
        }
    }
}

/// Builds hashers with the worker's secret: tuples come from strangers.
#[derive(Debug, Clone, Copy)]
struct KeyedState([u64; 2]);

impl BuildHasher for KeyedState {
    type Hasher = KeyedHasher;

    fn build_hasher(&self) -> KeyedHasher {
        KeyedHasher { state: self.0[0], secret: self.0[1] }
    }
}

/// Folds each word into the state with a 64 × 64 → 128 bit multiplication by a secret-dependent factor.
#[derive(Debug)]
struct KeyedHasher {
    state: u64,
    secret: u64,
}

impl KeyedHasher {
    fn fold(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(self.secret | 1);
        self.state = ((product >> 64) as u64 ^ product as u64).wrapping_add(self.secret);
    }
}

impl Hasher for KeyedHasher {
    fn finish(&self) -> u64 {
        self.state
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.fold(u64::from(byte));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.fold(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.fold(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.fold(u64::from(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a binding of UDP is in a plain list.
    #[derive(Debug, Clone, Copy)]
    struct Plain {
        halves: [HalfKey; 2],
        answered: bool,
        expires: Instant,
    }

    #[derive(Debug, Clone)]
    enum Deed {
        Insert(u32, u32),
        Follow(u32),
        Pass(u64),
        Sweep(usize),
        EndAll(u32),
    }

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            3 => (0u32..6, 0u32..6).prop_map(|(original, reply)| Deed::Insert(original, reply)),
            5 => (0u32..6).prop_map(Deed::Follow),
            2 => prop::sample::select(vec![1u64, 29, 30, 31, 119, 120, 500]).prop_map(Deed::Pass),
            1 => (0usize..5).prop_map(Deed::Sweep),
            1 => (0u32..6).prop_map(Deed::EndAll),
        ]
    }

    proptest! {
        #[test]
        fn bindings_are_a_plain_list_with_timeouts(deeds in prop::collection::vec(deed(), 1..80)) {
            let (mut bindings, mut plain, mut now) = (Bindings::new(3, [1, 2]), Vec::<Plain>::new(), Instant::ZERO);
            let none = TcpFlags::default();
            for deed in deeds {
                plain.retain(|it| it.expires > now);
                match deed {
                    Deed::Insert(original, reply) => {
                        let halves = [key(original, 9, 17), key(reply, 9, 17)];
                        let taken = original == reply
                            || plain.iter().any(|it| it.halves.iter().any(|half| halves.contains(half)));
                        match bindings.insert(halves[0], halves[1], none, now) {
                            Ok(_) => {
                                prop_assert!(!taken);
                                plain.push(Plain { halves, answered: false, expires: now + Duration::from_secs(30) });
                            }
                            Err(Refused::TupleTaken) => prop_assert!(taken),
                            // What has expired fills the table until it is swept.
                            Err(Refused::Full) => prop_assert!(!taken && bindings.len() == 3),
                        }
                    }
                    Deed::Follow(number) => {
                        let asked = key(number, 9, 17);
                        let found = bindings.follow(&asked, none, now).map(|(_, half, tuple)| (half, tuple));
                        let model = plain.iter_mut().find(|it| it.halves.contains(&asked)).map(|it| {
                            let half = if it.halves[0] == asked { Half::Original } else { Half::Reply };
                            it.answered |= half == Half::Reply;
                            it.expires = now + Duration::from_secs(if it.answered { 120 } else { 30 });
                            (half, it.halves[1 - half as usize].tuple.reversed())
                        });
                        prop_assert_eq!(found, model);
                    }
                    Deed::Pass(seconds) => now = now + Duration::from_secs(seconds),
                    Deed::Sweep(places) => bindings.sweep(places, now),
                    Deed::EndAll(number) => {
                        bindings.end_where(|binding| binding.original.tuple.source == number);
                        plain.retain(|it| it.halves[0].tuple.source != number);
                    }
                }
                let live = plain.iter().filter(|it| it.expires > now).count();
                prop_assert!(bindings.len() >= live && bindings.len() <= 3);
            }
            bindings.sweep(3, now);
            prop_assert_eq!(bindings.len(), plain.iter().filter(|it| it.expires > now).count());
        }
    }

    fn key(source: u32, destination: u32, protocol: u8) -> HalfKey {
        let tuple = Tuple { source, destination, source_port: 1000, destination_port: 80, protocol };
        HalfKey { node: NodeId(0), tuple }
    }

    fn masqueraded(protocol: u8) -> (HalfKey, HalfKey) {
        let original = key(1, 2, protocol);
        let mut reply = HalfKey { tuple: original.tuple.reversed(), ..original };
        reply.tuple.destination = 9;
        (original, reply)
    }

    #[test]
    fn out_and_back_through_a_binding_is_the_identity() {
        let (original, reply) = masqueraded(17);
        let mut bindings = Bindings::new(4, [1, 2]);
        bindings.insert(original, reply, TcpFlags::default(), Instant::ZERO).unwrap();
        let (_, half, out) = bindings.follow(&original, TcpFlags::default(), Instant::ZERO).unwrap();
        assert_eq!((half, out), (Half::Original, reply.tuple.reversed()));
        let back = HalfKey { tuple: out.reversed(), ..original };
        let (_, half, home) = bindings.follow(&back, TcpFlags::default(), Instant::ZERO).unwrap();
        assert_eq!((half, home), (Half::Reply, original.tuple.reversed()));
    }

    #[test]
    fn a_taken_reply_tuple_is_refused_and_changes_nothing() {
        let (original, reply) = masqueraded(17);
        let mut bindings = Bindings::new(4, [1, 2]);
        bindings.insert(original, reply, TcpFlags::default(), Instant::ZERO).unwrap();
        let other = key(7, 2, 17);
        let refused = bindings.insert(other, reply, TcpFlags::default(), Instant::ZERO);
        assert_eq!((refused, bindings.len()), (Err(Refused::TupleTaken), 1));
        assert!(bindings.is_free(&other, Instant::ZERO));
    }

    #[test]
    fn an_ended_binding_renews_no_cached_flow() {
        let (original, reply) = masqueraded(17);
        let mut bindings = Bindings::new(1, [1, 2]);
        let first = bindings.insert(original, reply, TcpFlags::default(), Instant::ZERO).unwrap();
        assert!(bindings.renew(first.index, first.generation, Half::Original, Instant::ZERO));
        let refused = bindings.insert(key(5, 6, 17), key(6, 5, 17), TcpFlags::default(), Instant::ZERO);
        assert_eq!(refused, Err(Refused::Full));
        let later = Instant::ZERO + Duration::from_secs(31);
        bindings.sweep(10, later);
        assert!(bindings.is_empty());
        let second = bindings.insert(original, reply, TcpFlags::default(), later).unwrap();
        assert_eq!(second.index, first.index);
        assert!(!bindings.renew(first.index, first.generation, Half::Original, later));
    }

    #[test]
    fn a_connection_opened_anew_is_established_although_the_cache_knows_it() {
        let (original, reply) = masqueraded(6);
        let mut bindings = Bindings::new(1, [1, 2]);
        let (syn, ack) = (TcpFlags::SYN, TcpFlags::ACK);
        let first = bindings.insert(original, reply, ack, Instant::ZERO).unwrap();
        for (key, flags) in [(reply, TcpFlags::RST), (original, syn), (reply, syn.with(ack))] {
            bindings.follow(&key, flags, Instant::ZERO).unwrap();
        }
        assert!(!bindings.renew(first.index, first.generation, Half::Original, Instant::ZERO));
        bindings.follow(&original, ack, Instant::ZERO).unwrap();
        assert!(bindings.renew(first.index, first.generation, Half::Original, Instant::ZERO));
        assert_eq!(bindings.iter(NodeId(0)).next().unwrap().tcp, TcpState::Established);
    }

    #[test]
    fn tcp_goes_through_its_states_with_conntracks_timeouts() {
        let (original, reply) = masqueraded(6);
        let mut bindings = Bindings::new(4, [1, 2]);
        let (syn, ack, fin) = (TcpFlags::SYN, TcpFlags::ACK, TcpFlags::FIN.with(TcpFlags::ACK));
        bindings.insert(original, reply, syn, Instant::ZERO).unwrap();
        let steps = [
            (original, syn, TcpState::SynSent, 120),
            (reply, syn.with(ack), TcpState::SynReceived, 60),
            (original, ack, TcpState::Established, 432_000),
            (reply, ack, TcpState::Established, 432_000),
            (original, fin, TcpState::FinWait, 120),
            (reply, ack, TcpState::FinWait, 120),
            (reply, fin, TcpState::TimeWait, 120),
            (original, ack, TcpState::TimeWait, 120),
            (original, syn, TcpState::SynSent, 120),
            (reply, TcpFlags::RST, TcpState::Closed, 10),
        ];
        for (number, (key, flags, state, seconds)) in steps.into_iter().enumerate() {
            bindings.follow(&key, flags, Instant::ZERO).unwrap();
            let binding = bindings.iter(NodeId(0)).next().unwrap();
            assert_eq!((binding.tcp, binding.timeout().as_secs()), (state, seconds), "step {number}");
        }
    }
}
