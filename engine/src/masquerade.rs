//! MASQUERADE's ports: which worker may hand out which, and which are free towards a remote endpoint.
//!
//! `decide` asks for a port when a source must be translated, and for a port's owner when an answer comes; the
//! worker asks when another worker is out of ports. Invariants: a port belongs to one worker, by block, and is
//! used by another only when granted, for one reply tuple; NodePorts and the tunnel's port are never used; a port
//! is preserved where it may be; none is refused while one is free, or in TIME-WAIT for the most part. Allowed dependencies: `binding`. Read first:
//! `docs/architecture.md`, "MASQUERADE ports"; RFC 4787, 4.2.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::binding::{Bindings, HalfKey};
use crate::clock::Instant;
use crate::flow::Tuple;
use crate::random::Random;
use crate::tables::NodeId;

/// Ports in a block; all of a block belong to one worker.
pub const BLOCK: u16 = 256;
/// Ports that Services may use on every node.
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// The lowest port that is handed out: those below are for well-known services.
pub const FIRST_PORT: u16 = 1024;
/// Ports tried before a list of the free ones is made, each at random: whichever half of all are taken, by chance or because
/// somebody chose them, one list is made for 65,536 flows.
const PROBES: usize = 16;
/// Ports tried for a connection in TIME-WAIT that may be followed by a new one. Where most are, half of them will do.
const TIME_WAIT_PROBES: usize = 64;
/// Pools of which a refusal is remembered.
const REFUSED_LIMIT: usize = 1024;
/// How often a list without a free port is made anew, or the other workers are asked again.
const PATIENCE: Duration = Duration::from_millis(100);

/// Ports, from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl PortRange {
    /// All that may be handed out, NodePorts and the tunnel's port among them.
    pub const ALL: Self = Self { first: FIRST_PORT, last: u16::MAX };

    /// Tells whether a port is one of them.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// Returns the worker that a port belongs to.
#[must_use]
pub fn owner(port: u16, workers: u8) -> u8 {
    ((port / BLOCK) % u16::from(workers.max(1))) as u8
}

/// Tells whether a port may be handed out.
#[must_use]
pub fn is_usable(port: u16, reserved: u16) -> bool {
    port >= FIRST_PORT && port != reserved && !NODE_PORTS.contains(&port)
}

/// What ports are shared out for: one source address towards one remote endpoint. Towards another, the same ports
/// are free again, because the reply's tuple differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pool {
    /// The node that translates.
    pub node: NodeId,
    /// A reply's tuple but for its destination port.
    reply: Tuple,
}

impl Pool {
    /// Returns the pool of a binding's reply half, and its port there.
    #[must_use]
    pub fn of(reply: &HalfKey) -> (Self, u16) {
        let tuple = Tuple { destination_port: 0, ..reply.tuple };
        (Self { node: reply.node, reply: tuple }, reply.tuple.destination_port)
    }

    /// Returns the tuple of a reply to a port.
    #[must_use]
    pub fn reply(&self, port: u16) -> HalfKey {
        HalfKey { node: self.node, tuple: Tuple { destination_port: port, ..self.reply } }
    }
}

/// How a port was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// One of this worker's.
    Own(u16),
    /// One of another's, granted for this.
    Granted(u16),
    /// This worker has none; another may.
    Ask,
    /// No worker has one.
    Exhausted,
}

/// What a port is chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The flow's own port: taken where it may be.
    pub wish: u16,
    /// The node's ports for this.
    pub range: PortRange,
    /// The tunnel's port.
    pub reserved: u16,
    /// Which ports are tried.
    pub random: u64,
    /// Whether an even port is exchanged for an even one and an odd one for an odd (RFC 4787, REQ-4), while there are.
    pub parity: bool,
    /// The sequence number of the SYN that opens a connection, if one does.
    pub opening: Option<u32>,
}

/// Which of a worker's ports are free in a pool that is short of them, a bit each.
#[derive(Debug)]
struct FreePorts {
    words: Box<[u64; 1024]>,
    /// How many are free, even and odd ones.
    count: [usize; 2],
    /// How many there can be.
    all: usize,
    /// When the list was made.
    made: Instant,
}

impl FreePorts {
    fn new(now: Instant) -> Self {
        Self { words: Box::new([0; 1024]), count: [0; 2], all: 0, made: now }
    }

    fn insert(&mut self, port: u16) {
        let (word, bit) = (usize::from(port / 64), 1 << (port % 64));
        self.count[usize::from(port % 2)] += usize::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
    }

    fn remove(&mut self, port: u16) {
        let (word, bit) = (usize::from(port / 64), 1 << (port % 64));
        self.count[usize::from(port % 2)] -= usize::from(self.words[word] & bit != 0);
        self.words[word] &= !bit;
    }

    /// Returns the first free port at or after `start`, or else the first of all; of those in `mask`, a word's bits.
    fn first_from(&self, start: u16, mask: u64) -> Option<u16> {
        let (first, bit) = (usize::from(start / 64), start % 64);
        let from_start = (first, mask & (u64::MAX << bit));
        let all = (first + 1..1024).chain(0..=first).map(|word| (word, mask));
        let (word, bits) = std::iter::once(from_start)
            .chain(all)
            .map(|(word, mask)| (word, self.words[word] & mask))
            .find(|(_, bits)| *bits != 0)?;
        u16::try_from(word * 64 + bits.trailing_zeros() as usize).ok()
    }
}

/// A worker's view of the ports.
#[derive(Debug)]
pub struct Masquerade {
    worker: u8,
    workers: u8,
    /// The pools that are short of ports; there is none in normal life.
    short: BTreeMap<Pool, FreePorts>,
    /// Pools for which the other workers said a moment ago that they have no port either.
    refused: BTreeMap<Pool, Instant>,
    /// A port that another worker has granted for the frame about to be decided.
    pub granted: Option<(Pool, u16)>,
}

impl Masquerade {
    /// Makes the view of one worker of several.
    #[must_use]
    pub fn new(worker: u8, workers: u8) -> Self {
        Self {
            worker,
            workers: workers.max(1),
            short: BTreeMap::new(),
            refused: BTreeMap::new(),
            granted: None,
        }
    }

    /// Returns the worker that a port belongs to, when it is another.
    #[must_use]
    pub fn other_owner(&self, port: u16) -> Option<u8> {
        Some(owner(port, self.workers)).filter(|&owner| owner != self.worker)
    }

    /// Tells whether there are other workers.
    #[must_use]
    pub fn has_others(&self) -> bool {
        self.workers > 1
    }

    /// Finds a port that makes the reply unambiguous: the flow's own where that may be, else any, from a random start.
    /// The last free port is found as fast as the first.
    pub fn find(&mut self, bindings: &mut Bindings, pool: Pool, choice: &Choice, now: Instant) -> Found {
        if let Some((_, port)) = self.granted.take_if(|(granted, _)| *granted == pool) {
            return Found::Granted(port);
        }
        let Choice { wish, range, reserved, random, parity, opening } = *choice;
        let may_be = |port: u16| range.contains(port) && is_usable(port, reserved);
        let mut free = |port: u16| bindings.is_free(&pool.reply(port), now);
        if owner(wish, self.workers) == self.worker && may_be(wish) && free(wish) {
            return Found::Own(wish);
        }
        if !self.short.contains_key(&pool) {
            let mut random = Random::new(random);
            for _ in 0..PROBES {
                let tried = self.own_at(range, random.next_u16());
                // The other port of its pair is in the same block.
                let tried = tried.map(|port| if parity && port % 2 != wish % 2 { port ^ 1 } else { port });
                if let Some(port) = tried.filter(|&port| may_be(port) && free(port)) {
                    return Found::Own(port);
                }
            }
        }
        if let Some(port) = self.pick(bindings, pool, choice, now) {
            return Found::Own(port);
        }
        if let Some(sequence) = opening {
            let mut some =
                self.own_from((range, reserved), Random::new(random).next_u16()).take(TIME_WAIT_PROBES);
            if let Some(port) = some.find(|&port| bindings.give_up(&pool.reply(port), sequence)) {
                return Found::Own(port);
            }
        }
        let may_ask = self.workers > 1 && self.refused.get(&pool).is_none_or(|&at| at + PATIENCE <= now);
        if may_ask { Found::Ask } else { Found::Exhausted }
    }

    /// Picks from the list of a pool's free ports, and makes that where there is none: also for another worker's flow.
    pub fn pick(
        &mut self,
        bindings: &mut Bindings,
        pool: Pool,
        choice: &Choice,
        now: Instant,
    ) -> Option<u16> {
        let Choice { wish, range, reserved, random, parity, opening: _ } = *choice;
        let random = Random::new(random).next_u16();
        let outdated =
            self.short.get(&pool).is_none_or(|list| list.count == [0; 2] && list.made + PATIENCE <= now);
        if outdated {
            let mut list = FreePorts::new(now);
            for port in self.own_from((range, reserved), random) {
                list.all += 1;
                if bindings.is_free(&pool.reply(port), now) {
                    list.insert(port);
                }
            }
            if list.all == 0 {
                // All blocks of the range are others': whoever has them is asked, and nothing is kept of every remote endpoint.
                return None;
            }
            self.short.insert(pool, list);
            bindings.tell_ends = true;
        }
        let list = self.short.get_mut(&pool)?;
        let even = 0x5555_5555_5555_5555 << (wish % 2);
        let wanted = if parity { [even, u64::MAX] } else { [u64::MAX; 2] };
        while let Some(port) = wanted.iter().find_map(|&mask| list.first_from(random, mask)) {
            // Whatever takes it ends as a binding or redirect, and frees it then.
            list.remove(port);
            if bindings.is_free(&pool.reply(port), now) {
                return Some(port);
            }
        }
        None
    }

    /// Notes that a port is free again.
    pub fn free(&mut self, bindings: &mut Bindings, reply: &HalfKey) {
        let (pool, port) = Pool::of(reply);
        let Some(list) = self.short.get_mut(&pool) else { return };
        if owner(port, self.workers) == self.worker {
            list.insert(port);
        }
        // Of both kinds, or flows that keep their parity would have it made again at once.
        let is_plenty = list.count.iter().all(|&free| free > list.all / 4);
        if is_plenty || list.count.iter().sum::<usize>() == list.all {
            self.short.remove(&pool);
            bindings.tell_ends = !self.short.is_empty();
        }
    }

    /// Notes that no worker has a port.
    pub fn note_refusal(&mut self, pool: &Pool, now: Instant) {
        if self.refused.len() >= REFUSED_LIMIT {
            self.refused.retain(|_, at| *at + PATIENCE > now);
        }
        if self.refused.len() >= REFUSED_LIMIT {
            self.refused.pop_first();
        }
        self.refused.insert(*pool, now);
    }

    /// Returns a port of this worker's blocks, each with nearly the same chance; whether it may be used is for the caller to see.
    fn own_at(&self, range: PortRange, random: u16) -> Option<u16> {
        self.own_blocks(range, random).next()
    }

    /// Yields this worker's ports, from a random one on.
    fn own_from(
        &self,
        (range, reserved): (PortRange, u16),
        random: u16,
    ) -> impl Iterator<Item = u16> + use<> {
        let may_be = move |port: &u16| range.contains(*port) && is_usable(*port, reserved);
        self.own_blocks(range, random).filter(may_be)
    }

    /// Yields the ports of this worker's blocks in a range, whole blocks, from a random one on.
    fn own_blocks(&self, range: PortRange, random: u16) -> impl Iterator<Item = u16> + use<> {
        let (worker, workers) = (u16::from(self.worker), u16::from(self.workers));
        let (first, last) = (range.first / BLOCK, range.last / BLOCK);
        let first = first + (worker + workers - first % workers) % workers;
        let blocks = if first > last { 0 } else { (last - first) / workers + 1 };
        let count = u32::from(blocks) * u32::from(BLOCK);
        let start = (u32::from(random) * count) >> 16;
        (0..count).map(move |number| {
            let place = (start + number) % count;
            let block = u32::from(first) + place / u32::from(BLOCK) * u32::from(workers);
            (block * u32::from(BLOCK) + place % u32::from(BLOCK)) as u16
        })
    }
}

#[cfg(test)]
mod tests;
