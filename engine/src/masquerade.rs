//! MASQUERADE's ports: which worker may hand out which, and which are free towards a remote endpoint.
//!
//! `decide` asks for a port when a source must be translated, and for a port's owner when an answer comes; the
//! worker asks when another worker is out of ports. Invariants: a port belongs to one worker, by block, and is
//! used by another only when granted, for one reply tuple; NodePorts and the tunnel's port are never used; a port
//! is preserved where it may be; none is refused while one is free. Allowed dependencies: `binding`. Read first:
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
/// How often a list without a free port is made anew, or the other workers are asked again.
const PATIENCE: Duration = Duration::from_millis(100);

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
    /// The tunnel's port.
    pub reserved: u16,
    /// Which ports are tried.
    pub random: u64,
    /// Whether an even port is exchanged for an even one and an odd one for an odd (RFC 4787, REQ-4), while there are.
    pub parity: bool,
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
    /// When the other workers said that they have none either.
    refused: Option<Instant>,
}

impl FreePorts {
    fn new(now: Instant) -> Self {
        Self { words: Box::new([0; 1024]), count: [0; 2], all: 0, made: now, refused: None }
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
    /// A port that another worker has granted for the frame about to be decided.
    pub granted: Option<(Pool, u16)>,
}

impl Masquerade {
    /// Makes the view of one worker of several.
    #[must_use]
    pub fn new(worker: u8, workers: u8) -> Self {
        Self { worker, workers: workers.max(1), short: BTreeMap::new(), granted: None }
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
        let Choice { wish, reserved, random, parity } = *choice;
        let mut free = |port: u16| bindings.is_free(&pool.reply(port), now);
        if owner(wish, self.workers) == self.worker && is_usable(wish, reserved) && free(wish) {
            return Found::Own(wish);
        }
        if !self.short.contains_key(&pool) {
            let mut random = Random::new(random);
            for _ in 0..PROBES {
                let tried = self.own_from(reserved, random.next_u16()).next();
                // The other port of its pair is in the same block.
                let tried = tried.map(|port| if parity && port % 2 != wish % 2 { port ^ 1 } else { port });
                if let Some(port) = tried.filter(|&port| is_usable(port, reserved) && free(port)) {
                    return Found::Own(port);
                }
            }
        }
        if let Some(port) = self.pick(bindings, pool, choice, now) {
            return Found::Own(port);
        }
        let refused = self.short.get(&pool).and_then(|list| list.refused);
        let may_ask = self.workers > 1 && refused.is_none_or(|at| at + PATIENCE <= now);
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
        let Choice { wish, reserved, random, parity } = *choice;
        let random = Random::new(random).next_u16();
        let outdated =
            self.short.get(&pool).is_none_or(|list| list.count == [0; 2] && list.made + PATIENCE <= now);
        if outdated {
            let refused = self.short.get(&pool).and_then(|list| list.refused);
            let mut list = FreePorts { refused, ..FreePorts::new(now) };
            for port in self.own_from(reserved, random) {
                list.all += 1;
                if bindings.is_free(&pool.reply(port), now) {
                    list.insert(port);
                }
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
        if list.count.iter().all(|&free| free > list.all / 4) {
            self.short.remove(&pool);
            bindings.tell_ends = !self.short.is_empty();
        }
    }

    /// Notes that no worker has a port.
    pub fn note_refusal(&mut self, pool: &Pool, now: Instant) {
        if let Some(list) = self.short.get_mut(pool) {
            list.refused = Some(now);
        }
    }

    /// Yields this worker's ports, from a random one in one of its blocks.
    fn own_from(&self, reserved: u16, random: u16) -> impl Iterator<Item = u16> + use<> {
        let (worker, workers) = (self.worker, self.workers);
        // Numbers that are no port's stand for ports spread over those above: else all of them would begin at the same one.
        let random = match random {
            ..FIRST_PORT => FIRST_PORT + random * 28,
            _ if NODE_PORTS.contains(&random) => NODE_PORTS.end() + 1 + (random - NODE_PORTS.start()) * 11,
            _ => random,
        };
        // The start lies in a block of this worker's, so that the first port tried is as random as any.
        let block = random / BLOCK;
        let own_block = block - block % u16::from(workers) + u16::from(worker);
        let start = own_block.wrapping_mul(BLOCK).wrapping_add(random % BLOCK);
        (0..=u16::MAX)
            .map(move |number| start.wrapping_add(number))
            .filter(move |&port| owner(port, workers) == worker && is_usable(port, reserved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binding::Segment;
    use crate::binding::tests::opening;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn pool(remote: u32) -> Pool {
        let reply =
            Tuple { source: remote, destination: 9, source_port: 80, destination_port: 0, protocol: 17 };
        Pool::of(&HalfKey { node: NodeId(0), tuple: reply }).0
    }

    fn choice(wish: u16, random: u64) -> Choice {
        Choice { wish, reserved: 8285, random, parity: false }
    }

    /// Binds a flow of client number `client` to a port.
    fn bind(bindings: &mut Bindings, pool: Pool, client: u32, port: u16) {
        let tuple =
            Tuple { source: client, destination: 7, source_port: 1, destination_port: 80, protocol: 17 };
        let halves = (HalfKey { node: NodeId(0), tuple }, pool.reply(port));
        let opening = opening(halves.0, halves.1);
        bindings.insert(&opening, &Segment::default(), Instant::ZERO).unwrap();
    }

    #[test]
    fn workers_share_all_usable_ports_without_overlap() {
        let mut seen = BTreeSet::new();
        for worker in 0..3 {
            for port in Masquerade::new(worker, 3).own_from(8285, 77) {
                assert!(seen.insert(port), "{port} twice");
            }
        }
        let usable = (0..=u16::MAX).filter(|&port| is_usable(port, 8285)).count();
        assert_eq!(seen.len(), usable);
        assert_eq!(usable, 65_536 - 1024 - 2768 - 1);
    }

    /// Flows whose own port is a NodePort get a random one; if many began at the same, that would soon have none free near it.
    #[test]
    fn no_port_is_where_many_begin_to_look() {
        let mut starts = BTreeMap::new();
        for random in 0..=u16::MAX {
            *starts.entry(Masquerade::new(0, 1).own_from(8285, random).next()).or_insert(0) += 1;
        }
        assert!(starts.values().all(|&count| count <= 3), "{starts:?}");
    }

    /// RFC 4787, 4.2.1: port preservation.
    #[test]
    fn a_flows_own_port_comes_first_when_it_may_be_used() {
        let mut bindings = Bindings::new(9, 9, [1, 2]).unwrap();
        for (worker, workers, wish, is_kept, why) in [
            (0, 1, 40_000, true, "its own"),
            (0, 1, 80, false, "too low"),
            (0, 1, 8285, false, "the tunnel's"),
            (1, 2, 1024, false, "another worker's block"),
        ] {
            let mut ports = Masquerade::new(worker, workers);
            let found = ports.find(&mut bindings, pool(1), &choice(wish, 5000), Instant::ZERO);
            let Found::Own(port) = found else { panic!("{found:?}: {why}") };
            assert_eq!(port == wish, is_kept, "{why}");
            assert!(is_usable(port, 8285) && owner(port, workers) == worker, "{port}: {why}");
        }
    }

    /// RFC 4787, 4.2.
    #[test]
    fn every_port_is_used_before_one_is_refused_and_a_freed_one_is_found_at_once() {
        let (mut bindings, mut ports) = (Bindings::new(70_000, 1, [1, 2]).unwrap(), Masquerade::new(0, 1));
        let mut seen = BTreeSet::new();
        let usable = (0..=u16::MAX).filter(|&port| is_usable(port, 8285)).count();
        for client in 0..usable as u32 {
            let found = ports.find(&mut bindings, pool(1), &choice(0, client.into()), Instant::ZERO);
            let Found::Own(port) = found else { panic!("{found:?} for client {client}") };
            assert!(seen.insert(port), "{port} twice");
            bind(&mut bindings, pool(1), client, port);
        }
        assert_eq!(ports.find(&mut bindings, pool(1), &choice(0, 1), Instant::ZERO), Found::Exhausted);
        assert!(
            matches!(ports.find(&mut bindings, pool(2), &choice(0, 1), Instant::ZERO), Found::Own(_)),
            "another remote"
        );
        bindings.end_where(|binding| binding.original.tuple.source == 77);
        for ended in std::mem::take(&mut bindings.news) {
            let crate::binding::News::Ended(reply, _) = ended else { panic!("{ended:?}") };
            ports.free(&mut bindings, &reply);
        }
        assert!(matches!(ports.find(&mut bindings, pool(1), &choice(0, 1), Instant::ZERO), Found::Own(_)));
    }

    /// Clients keep their ports where they may, so whoever chooses theirs chooses which are taken. However that is done, few of
    /// the flows that find theirs taken have a list of all ports made, which takes as long as thousands of them.
    #[test]
    fn no_choice_of_taken_ports_makes_the_next_one_dear() {
        const FLOWS: u64 = 1500;
        let usable = |port: &u16| is_usable(*port, 8285);
        let by = |stride: u16, count: u16| {
            (0..count).map(move |number| FIRST_PORT.wrapping_add(number.wrapping_mul(stride))).filter(usable)
        };
        let sets: [(&str, Vec<u16>); 5] = [
            ("side by side", (FIRST_PORT..28_000).filter(usable).collect()),
            ("all even ones", by(2, 32_768).collect()),
            ("every third", by(3, 30_000).collect()),
            ("in steps of 40,503", by(40_503, 30_000).collect()),
            ("in steps of 4,097", by(4097, 30_000).collect()),
        ];
        for ((what, taken), parity) in sets.iter().flat_map(|set| [(set, false), (set, true)]) {
            let (mut bindings, mut ports) =
                (Bindings::new(70_000, 1, [1, 2]).unwrap(), Masquerade::new(0, 1));
            taken.iter().for_each(|&port| bind(&mut bindings, pool(1), port.into(), port));
            let mut lists = 0;
            for flow in 0..FLOWS {
                // A taken port, of which somebody's binding ends from time to time.
                let had_list = !ports.short.is_empty();
                let wish = taken[flow as usize];
                let choice = Choice { parity, ..choice(wish, flow) };
                let found = ports.find(&mut bindings, pool(1), &choice, Instant::ZERO);
                assert!(matches!(found, Found::Own(_)), "{found:?}: {what}");
                lists += u32::from(!had_list && !ports.short.is_empty());
                ports.free(&mut bindings, &pool(1).reply(wish));
            }
            assert!(lists <= 1, "{what}, parity {parity}: {lists} lists for {FLOWS} flows");
        }
    }

    proptest! {
        #[test]
        fn the_list_of_free_ports_is_a_plain_set(
            deeds in prop::collection::vec((any::<bool>(), prop_oneof![any::<u16>(), 0u16..130, 65_400u16..]), 1..200),
            start in prop_oneof![any::<u16>(), 0u16..130, 65_400u16..],
        ) {
            let (mut list, mut plain) = (FreePorts::new(Instant::ZERO), BTreeSet::new());
            for (add, port) in deeds {
                if add {
                    list.insert(port);
                    plain.insert(port);
                } else {
                    list.remove(port);
                    plain.remove(&port);
                }
                let first = plain.range(start..).next().or_else(|| plain.first()).copied();
                prop_assert_eq!(list.first_from(start, u64::MAX), first);
                prop_assert_eq!(list.count.iter().sum::<usize>(), plain.len());
                let mut odd = plain.range(start..).chain(&plain).copied().filter(|port| port % 2 == 1);
                prop_assert_eq!(list.first_from(start, 0xaaaa_aaaa_aaaa_aaaa), odd.next());
            }
        }
    }
}
