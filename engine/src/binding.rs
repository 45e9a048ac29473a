//! What NAT and Services chose for a connection: both halves, TCP state, timeouts.
//!
//! `decide` makes and asks bindings; the worker renews them as cached flows hit and sweeps a bounded slice per
//! batch. Invariants: the two halves' tuples belong to one binding only; a binding never changes its
//! translation and is never evicted, it ends by timeout, state or removal; its generation changes when it
//! ends, so that no cached flow outlives it. One table per worker; of what another worker holds, a table knows
//! only whose the answers are: a *redirect*. Allowed dependencies: `flow`, `tables`, `clock`, `wire`, `load`. Read
//! first: RFC 3022; RFC 5382, 4787 and 5508 for the timeouts; conntrack's are used.
//!
//! Above 400 lines because what a binding is and the table's two kinds of entries belong together.

use std::collections::{HashMap, hash_map};
use std::net::Ipv4Addr;

use flatnet_proxy::Forwarding;

use crate::clock::{Instant, prefetch};
use crate::flow::{FlowKey, Tuple};
use crate::hash::KeyedState;
use crate::load::Loads;
use crate::tables::NodeId;
use halves::Halves;
use mapping::Mappings;
use places::{Entry, Place, Places};

mod halves;
mod mapping;
mod places;
mod tcp;
mod timeout;
mod translation;

pub use mapping::{inside_key, outside_key};
pub use tcp::{Segment, TcpState};
use timeout::STREAM_AGE;
pub use timeout::Traffic;
pub use translation::{Binding, Opening, Served};

/// Places looked at for each binding made: of a table that new flows fill as fast as old ones expire, no more than a
/// quarter is taken by expired ones.
const SWEPT_PER_BINDING: usize = 4;
/// Places looked at together.
const SWEPT_AT_ONCE: usize = 64;

/// The key of a half: node and tuple as the packet carries it on arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HalfKey {
    /// The node that translates.
    pub node: NodeId,
    /// The packet's tuple before translation.
    pub tuple: Tuple,
}

impl HalfKey {
    fn hash(&self, secret: [u64; 2]) -> u64 {
        FlowKey::ipv4(&self.tuple, u32::from(self.node.0), false).hash(secret)
    }
}

/// Which direction a packet of a binding goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// As the first packet.
    Original,
    /// Against it.
    Reply,
}

/// How the answers of a binding find the worker that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// By their destination: an endpoint or a port of that worker.
    Steered,
    /// All other workers have been told: the client is nobody they know.
    Announced,
    /// The worker whose port was granted sends them on.
    Granted(u8),
}

/// What the other workers must hear of this one's bindings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Answers with this tuple are for this worker.
    Begun(HalfKey),
    /// A binding ended.
    Ended(HalfKey, Answers),
}

/// How translation behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// As Linux does: a port serves many remotes, timeouts are conntrack's (`nf_conntrack_*_timeout`).
    #[default]
    Linux,
    /// As RFC 4787, 5382, 5508 and 7857 ask: endpoint-independent mapping, address-dependent filtering.
    Rfc,
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
    /// The client has as many as it may.
    Quota,
}

/// A TCP reset that its receiver would not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfWindow;

/// What a packet's binding says: which it is, which half the packet is of, and its tuple after translation.
pub type Followed = (BindingRef, Half, Tuple);

/// A worker's bindings.
#[derive(Debug)]
pub struct Bindings {
    secret: [u64; 2],
    halves: Halves,
    places: Places,
    swept: usize,
    /// Places occupied since the last sweep.
    begun: usize,
    /// How many places are redirects.
    redirects: usize,
    /// How many bindings each client has, and how many it may have.
    clients: HashMap<(NodeId, u32), u32, KeyedState>,
    quota: u32,
    mappings: Mappings,
    /// How busy the backends are.
    pub loads: Loads,
    /// Whether a packet that was followed was the first answer of its binding, since somebody took this down.
    pub answered: bool,
    /// What the other workers have not been told yet.
    pub news: Vec<News>,
    /// Whether every end is news, and not only those that other workers wait for: ports are short.
    pub tell_ends: bool,
}

impl Bindings {
    /// Makes a table of at most `limit` bindings (2³⁰ in any case), and `quota` of one client, hashed with a secret.
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub fn new(limit: usize, quota: u32, secret: [u64; 2]) -> std::io::Result<Self> {
        let limit = limit.min(1 << 30);
        Ok(Self {
            secret,
            halves: Halves::new(limit)?,
            places: Places::new(limit)?,
            swept: 0,
            begun: 0,
            redirects: 0,
            clients: HashMap::with_hasher(KeyedState(secret)),
            quota,
            mappings: Mappings::new(secret),
            loads: Loads::default(),
            answered: false,
            news: Vec::new(),
            tell_ends: false,
        })
    }

    /// Hashes a half as the table does.
    #[inline(always)]
    pub(crate) fn hash(&self, key: &HalfKey) -> u64 {
        key.hash(self.secret)
    }

    /// Finds the place that has a half, and which of it.
    #[inline]
    fn place_of(&self, key: &HalfKey) -> Option<(u32, Half)> {
        let is_it = |index: u32, half| self.places[index as usize].key(half) == Some(key);
        self.halves.find(self.hash(key), is_it)
    }

    fn give_half(&mut self, key: &HalfKey, index: u32, half: Half) {
        let hash = self.hash(key);
        self.halves.insert(hash, index, half);
    }

    fn take_half(&mut self, key: &HalfKey, index: u32, half: Half) {
        let hash = self.hash(key);
        self.halves.remove(hash, index, half);
    }

    /// Finds the binding of a packet and notes the packet: state, time.
    ///
    /// # Errors
    /// [`OutOfWindow`]; nothing is noted then.
    pub fn follow(
        &mut self,
        key: &HalfKey,
        segment: &Segment,
        now: Instant,
    ) -> Result<Option<Followed>, OutOfWindow> {
        let Some((found, half, binding)) = self.find(key, now) else { return Ok(None) };
        let is_first = half == Half::Reply && binding.traffic == Traffic::Unreplied;
        let followed = self.note(found, half, segment, now)?;
        self.answered |= is_first;
        Ok(followed)
    }

    /// Notes a packet of a binding: state, time.
    ///
    /// # Errors
    /// [`OutOfWindow`]; nothing is noted then.
    pub fn note(
        &mut self,
        found: BindingRef,
        half: Half,
        segment: &Segment,
        now: Instant,
    ) -> Result<Option<Followed>, OutOfWindow> {
        let Entry::Here(binding) = &mut self.places[found.index as usize].entry else { return Ok(None) };
        if segment.flags.rst() && !binding.connection.takes_reset(half, segment) {
            return Err(OutOfWindow);
        }
        let was_active = binding.is_active();
        if binding.served.is_some_and(|served| served.forwarding != Forwarding::Nat) {
            binding.presume(half, segment);
        }
        binding.note(half, segment, now);
        if let Some(served) = binding.served.filter(|_| binding.is_active() != was_active) {
            self.loads.end(served.counter, was_active);
            self.loads.begin(served.counter, !was_active);
        }
        let translated = binding.translated(half);
        Ok(Some((found, half, translated)))
    }

    /// Finds the binding of a half without noting a packet.
    pub fn find(&mut self, key: &HalfKey, now: Instant) -> Option<(BindingRef, Half, &Binding)> {
        let (index, half) = self.place_of(key)?;
        if self.places[index as usize].has_expired(now) {
            self.end(index);
            return None;
        }
        let place = &self.places[index as usize];
        Some((BindingRef { index, generation: place.generation }, half, place.binding()?))
    }

    /// Returns the backend of a binding, when it is a Service's.
    #[must_use]
    pub fn served(&self, of: BindingRef) -> Option<Served> {
        self.places.get(of.index as usize)?.binding()?.served
    }

    /// Finds the worker that answers with this tuple are for, when it is another.
    #[must_use]
    pub fn elsewhere(&self, key: &HalfKey) -> Option<(BindingRef, u8)> {
        if self.redirects == 0 {
            return None;
        }
        // A granted port may be of one reply tuple or, in profile `rfc`, of all.
        let keys = [*key, outside_key(key)];
        let (index, _) = keys.iter().find_map(|key| self.place_of(key))?;
        let place = &self.places[index as usize];
        match place.entry {
            Entry::Elsewhere(_, worker) => Some((BindingRef { index, generation: place.generation }, worker)),
            Entry::Free(_) | Entry::Here(_) | Entry::Mapping(_) => None,
        }
    }

    /// Tells whether no binding or mapping has this half, here or, as far as is known, elsewhere.
    pub fn is_free(&mut self, key: &HalfKey, now: Instant) -> bool {
        let Some((index, _)) = self.place_of(key) else { return true };
        let has_expired = self.places[index as usize].has_expired(now);
        if has_expired {
            self.end(index);
        }
        has_expired
    }

    /// Ends the binding that has this reply half, if its connection is over and a SYN with this sequence number lies behind all
    /// that was sent: who waits at the other end takes that for a new connection (RFC 1122, 4.2.2.13; RFC 9293, 3.10.7.4). Tells
    /// whether it did. As conntrack does (`nf_nat_may_kill`).
    pub fn give_up(&mut self, reply: &HalfKey, sequence: u32) -> bool {
        let Some((index, Half::Reply)) = self.place_of(reply) else { return false };
        let is_over =
            self.places[index as usize].binding().is_some_and(|it| it.connection.may_follow(sequence));
        if is_over {
            self.end(index);
        }
        is_over
    }

    /// Tells whether a client may not have one more.
    #[must_use]
    pub fn is_at_quota(&self, client: &HalfKey) -> bool {
        let client = (client.node, client.tuple.source);
        self.clients.get(&client).is_some_and(|&bindings| bindings >= self.quota)
    }

    /// Makes a binding for the first packet of a connection, which is still to be followed.
    ///
    /// # Errors
    /// [`Refused`]; nothing is changed then.
    pub fn insert(
        &mut self,
        opening: &Opening,
        first: &Segment,
        now: Instant,
    ) -> Result<BindingRef, Refused> {
        let Opening { original, reply, answers, mapping, .. } = *opening;
        if original == reply || !self.is_free(&original, now) || !self.is_free(&reply, now) {
            return Err(Refused::TupleTaken);
        }
        if self.is_at_quota(&original) {
            return Err(Refused::Quota);
        }
        let binding = Binding::new(opening, first, now);
        let made = self.occupy(Entry::Here(binding)).ok_or(Refused::Full)?;
        if let Some(served) = binding.served {
            self.loads.begin(served.counter, binding.is_active());
            self.places.note_backend(made.index, (served.address, served.port));
        }
        self.give_half(&original, made.index, Half::Original);
        self.give_half(&reply, made.index, Half::Reply);
        *self.clients.entry((original.node, original.tuple.source)).or_default() += 1;
        if let Some(mapping) = mapping {
            self.join(mapping, reply.tuple.source);
        }
        if answers == Answers::Announced {
            self.news.push(News::Begun(reply));
        }
        Ok(made)
    }

    /// Notes that answers with a tuple are for another worker; false when a binding has it, or at the limit.
    pub fn redirect(&mut self, reply: HalfKey, worker: u8, now: Instant) -> bool {
        if !self.is_free(&reply, now) {
            return false;
        }
        let Some(made) = self.occupy(Entry::Elsewhere(reply, worker)) else { return false };
        self.give_half(&reply, made.index, Half::Reply);
        self.redirects += 1;
        true
    }

    /// Ends a redirect: the other worker's binding has ended.
    pub fn end_redirect(&mut self, reply: &HalfKey, worker: u8) {
        if let Some((found, holder)) = self.elsewhere(reply)
            && holder == worker
        {
            self.end(found.index);
        }
    }

    /// Renews a binding for a packet that the cache answered; false when the binding has ended, or when the packet
    /// must be followed because it may change the state: a slot from before the ports were used anew.
    #[inline(always)]
    pub fn renew(&mut self, index: u32, generation: u32, half: Half, is_tcp: bool, now: Instant) -> bool {
        let Some(place) = self.places.get_mut(index as usize) else { return false };
        let Entry::Here(binding) = &mut place.entry else { return false };
        // Other protocols stay in the state of a connection that was open before: steady.
        let steady = binding.connection.state.is_steady();
        if place.generation != generation || !steady {
            return false;
        }
        let changes_nothing = match binding.traffic {
            Traffic::Assured => true,
            Traffic::Unreplied => half == Half::Original,
            // Of what is no TCP, a stream comes later.
            Traffic::Replied => !is_tcp && now <= binding.begun + STREAM_AGE,
        };
        if changes_nothing && binding.expires() > now {
            binding.last_seen = now;
            return true;
        }
        // Nothing after it: so the way above saves no registers.
        binding.renew_by(half, now)
    }

    /// Starts to fetch a binding that is about to be renewed; any index may be given.
    #[inline(always)]
    pub fn prefetch(&self, index: u32) {
        if let Some(place) = self.places.get(index as usize) {
            prefetch(place);
        }
    }

    /// Starts to fetch where a half is looked for, for whoever asks for it soon.
    #[inline(always)]
    pub fn prefetch_half(&self, key: &HalfKey) {
        self.halves.prefetch(self.hash(key));
    }

    /// Notes what a TCP segment that the cache answered says its sender expects, and the sequence number behind its data; its
    /// binding has been renewed.
    #[inline(always)]
    pub fn hear(&mut self, index: u32, half: Half, end: u32, acknowledgement: u32, window: u16) {
        if let Some(Place { entry: Entry::Here(binding), .. }) = self.places.get_mut(index as usize) {
            binding.connection.hear(half, acknowledgement, window);
            binding.connection.send(half, end);
        }
    }

    /// Tells whether a binding or redirect has not ended.
    #[must_use]
    pub fn is_live(&self, index: u32, generation: u32) -> bool {
        self.places.get(index as usize).is_some_and(|place| place.generation == generation)
    }

    /// Looks at `places` places, and at four for each binding made since, and ends what has expired.
    pub fn sweep(&mut self, places: usize, now: Instant) {
        let places = places + SWEPT_PER_BINDING * std::mem::take(&mut self.begun);
        let mut left = places.min(self.places.len());
        while left > 0 {
            let first = self.swept;
            let last = (first + left.min(SWEPT_AT_ONCE)).min(self.places.len());
            // What the ends of all these touch is on its way before the first of them.
            for place in self.places[first..last].iter().filter(|place| place.has_expired(now)) {
                for half in [Half::Original, Half::Reply] {
                    place.key(half).inspect(|key| self.prefetch_half(key));
                }
            }
            for index in first..last {
                if self.places[index].has_expired(now) {
                    self.end(index as u32);
                }
            }
            self.swept = if last == self.places.len() { 0 } else { last };
            // As many of the next ones, whether it is their turn now or with the next bindings.
            (self.swept..self.swept + last - first).for_each(|index| self.places.prefetch(index));
            left -= last - first;
        }
    }

    /// Ends all bindings that `ends` says so of.
    pub fn end_where(&mut self, ends: impl Fn(&Binding) -> bool) {
        for index in 0..self.places.len() {
            if self.places[index].binding().is_some_and(&ends) {
                self.end(index as u32);
            }
        }
    }

    /// Ends the UDP bindings that a Service led to backends, by address and port; `is_theirs` tells by which it did.
    pub fn end_served(&mut self, backends: &[(Ipv4Addr, u16)], is_theirs: impl Fn(&Binding) -> bool) {
        for &(address, port) in backends {
            let mut from = 0;
            while let Some(index) = self.places.next_to((address, port), from) {
                let is_one = |binding: &Binding| binding.is_udp_to(address, port) && is_theirs(binding);
                if self.places[index].binding().is_some_and(is_one) {
                    self.end(index as u32);
                }
                from = index + 1;
            }
        }
    }

    /// Counts the live bindings, and the redirects to other workers' bindings.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.used()
    }

    /// Tells whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Walks the bindings of a node, in order of their places.
    pub fn iter(&self, node: NodeId) -> impl Iterator<Item = &Binding> {
        self.places.iter().filter_map(Place::binding).filter(move |it| it.original.node == node)
    }

    fn occupy(&mut self, entry: Entry) -> Option<BindingRef> {
        self.begun += 1;
        self.places.occupy(entry)
    }

    fn end(&mut self, index: u32) {
        match self.places.vacate(index) {
            Entry::Free(_) => {}
            Entry::Here(binding) => {
                self.take_half(&binding.original, index, Half::Original);
                self.take_half(&binding.reply, index, Half::Reply);
                self.forget_client(&binding.original);
                if let Some(served) = binding.served {
                    self.loads.end(served.counter, binding.is_active());
                }
                if let Some(mapping) = binding.mapping {
                    self.part(mapping, binding.reply.tuple.source);
                }
                if self.tell_ends || binding.answers != Answers::Steered {
                    self.news.push(News::Ended(binding.reply, binding.answers));
                }
            }
            Entry::Mapping(mapping) => {
                self.take_half(&mapping.inside, index, Half::Original);
                self.take_half(&mapping.outside, index, Half::Reply);
                self.mappings.count -= 1;
                if self.tell_ends || mapping.answers != Answers::Steered {
                    self.news.push(News::Ended(mapping.outside, mapping.answers));
                }
            }
            Entry::Elsewhere(reply, _) => {
                self.take_half(&reply, index, Half::Reply);
                self.redirects -= 1;
            }
        }
    }

    fn forget_client(&mut self, original: &HalfKey) {
        if let hash_map::Entry::Occupied(mut client) =
            self.clients.entry((original.node, original.tuple.source))
        {
            *client.get_mut() -= 1;
            if *client.get() == 0 {
                client.remove();
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
