//! Which backend a new flow tries first, and which others after it: LVS's schedulers.
//!
//! Called by the engine's slow path, once for the first packet of a flow to a Service. The caller takes the first
//! backend whose reply tuple is free.
//!
//! Invariants: no backend appears twice in a choice, and none of weight 0; a choice by hash is one backend, the same for
//! all flows of an address. Round-robin moves its cursor by exactly one per choice, however many backends the caller
//! tried, so that over k·n choices among n unchanged backends each comes first k times. Cursors are per worker and
//! start at the worker's index, so that workers do not all begin with the same pod. A choice allocates nothing but a
//! cursor's place.
//!
//! May depend on [`crate::pool`]. Randomness and the numbers of connections are parameters.
//!
//! Read first: LVS's `net/netfilter/ipvs/ip_vs_{rr,wrr,lc,wlc,sh,dh,mh}.c`.

use std::net::Ipv4Addr;

use crate::{
    maglev,
    pool::{HASH_PLACES, Plan, Pool},
    service::{Scheduler, Service},
};

/// How many Services can have cursors of their own: 24 MB a worker at most, beside the cursors. A Service with a larger
/// id starts each of its choices afresh.
pub const MAX_CURSORS: usize = 1 << 20;

/// One worker's positions in the lists of backends, by Service id and pool.
#[derive(Clone, Debug)]
pub struct Cursors {
    of: Vec<Vec<Cursor>>,
    start: usize,
}

/// A position: the index to look at next, and the weight that weighted round-robin asks for there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cursor {
    next: usize,
    weight: u16,
}

impl Cursors {
    /// Makes the cursors of a worker; each Service starts at the backend of the worker's index.
    pub fn new(worker: u8) -> Self {
        Self { of: Vec::new(), start: worker.into() }
    }

    /// Forgets a Service's positions, so that another that gets its id starts afresh.
    pub fn reset(&mut self, id: u32) {
        if let Some(cursors) = usize::try_from(id).ok().and_then(|id| self.of.get_mut(id)) {
            cursors.clear();
        }
    }

    /// Moves a pool's cursor and gives what the move came to.
    fn advance<T>(&mut self, id: u32, pool: usize, step: impl FnOnce(&mut Cursor) -> T) -> T {
        let fresh = Cursor { next: self.start, weight: 0 };
        let Some(id) = usize::try_from(id).ok().filter(|&id| id < MAX_CURSORS) else {
            return step(&mut { fresh });
        };
        if id >= self.of.len() {
            self.of.resize(id + 1, Vec::new());
        }
        let cursors = &mut self.of[id];
        if pool >= cursors.len() {
            cursors.resize(pool + 1, fresh);
        }
        step(&mut cursors[pool])
    }
}

/// How busy a backend is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Established connections.
    pub active: u32,
    /// Other flows.
    pub inactive: u32,
}

impl Load {
    /// What it weighs: LVS's `ip_vs_dest_conn_overhead`.
    fn overhead(self) -> u64 {
        u64::from(self.active) * 256 + u64::from(self.inactive)
    }
}

/// What a choice depends on beside the Service.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The client's address.
    pub client: Ipv4Addr,
    /// The address it asked for.
    pub destination: Ipv4Addr,
    /// 64 uniform bits.
    pub random: u64,
}

/// Chooses a backend of a pool for a new flow and yields its index, then those of others that will do; nothing if there
/// is none.
///
/// `load` says how busy the backend of an index is; only least-connection schedulers ask.
pub fn choose<'a>(
    service: &Service,
    pool: &'a Pool,
    cursors: &mut Cursors,
    request: &Request,
    load: &dyn Fn(usize) -> Load,
) -> impl Iterator<Item = usize> + use<'a> {
    let count = pool.open.len();
    let weight = |index: usize| service.backends[index].weight;
    let first = match service.scheduler {
        _ if count == 0 => None,
        Scheduler::Random => Some(pool.open[scale(request.random, count)]),
        Scheduler::RoundRobin => Some(cursors.advance(service.id, pool.number, |cursor| {
            // The backends may have become fewer since.
            let at = cursor.next % count;
            cursor.next = at + 1;
            pool.open[at]
        })),
        Scheduler::WeightedRoundRobin => match pool.plan {
            Plan::Steps { most, step } => Some(cursors.advance(service.id, pool.number, |cursor| {
                weighted_round_robin(cursor, &pool.open, &weight, (most, step))
            })),
            Plan::None | Plan::Places(_) => None,
        },
        Scheduler::LeastConnection => least(&pool.open, load, |_| 1),
        Scheduler::WeightedLeastConnection => least(&pool.open, load, weight),
        Scheduler::SourceHash => hashed(pool, request.client, weight),
        Scheduler::DestinationHash => hashed(pool, request.destination, weight),
        Scheduler::Maglev => match &pool.plan {
            Plan::Places(places) => {
                places.get(maglev::place(request.client)).map(|&number| pool.members[usize::from(number)])
            }
            Plan::None | Plan::Steps { .. } => None,
        },
    };
    let others: &[usize] = if service.scheduler.is_hash() { &[] } else { &pool.open };
    let at = first.and_then(|first| others.iter().position(|&index| index == first)).unwrap_or_default();
    let (before, from) = others.split_at(at);
    let others = from.iter().chain(before).copied().filter(move |&index| Some(index) != first);
    first.into_iter().chain(others)
}

impl Scheduler {
    /// Says whether an address always gets the same backend.
    const fn is_hash(self) -> bool {
        match self {
            Self::SourceHash | Self::DestinationHash | Self::Maglev => true,
            Self::Random
            | Self::RoundRobin
            | Self::WeightedRoundRobin
            | Self::LeastConnection
            | Self::WeightedLeastConnection => false,
        }
    }
}

/// `ip_vs_wrr_schedule`: goes round, each time asking for a weight that is a step smaller, from the largest down to 1.
fn weighted_round_robin(
    cursor: &mut Cursor,
    open: &[usize],
    weight: &impl Fn(usize) -> u16,
    (most, step): (u16, u16),
) -> usize {
    let top = most - (step - 1);
    if cursor.weight == 0 || cursor.weight > top {
        cursor.weight = top;
    } else {
        // The weights may be others since: `ip_vs_wrr_dest_changed`.
        cursor.weight = (cursor.weight - 1) / step * step + 1;
    }
    // The heaviest satisfies whatever is asked for: it is met in the second round at the latest.
    for _ in 0..=2 * open.len() {
        if cursor.next >= open.len() {
            cursor.next = 0;
            cursor.weight = cursor.weight.checked_sub(step).filter(|&weight| weight > 0).unwrap_or(top);
        }
        let index = open[cursor.next];
        cursor.next += 1;
        if weight(index) >= cursor.weight {
            return index;
        }
    }
    open[0]
}

/// `ip_vs_lc_schedule`, `ip_vs_wlc_schedule`: the first of those with the least overhead for their weight, compared
/// without a division.
fn least(open: &[usize], load: impl Fn(usize) -> Load, weight: impl Fn(usize) -> u16) -> Option<usize> {
    let loaded = open.iter().map(|&index| (index, load(index).overhead(), u64::from(weight(index))));
    let least =
        loaded.reduce(|least, other| if least.1 * other.2 > other.1 * least.2 { other } else { least });
    least.map(|(index, ..)| index)
}

/// `ip_vs_sh_get_fallback`; destination hashing falls back in the same way here: at a quiesced backend the table is
/// walked on until there is another.
fn hashed(pool: &Pool, address: Ipv4Addr, weight: impl Fn(usize) -> u16) -> Option<usize> {
    let Plan::Places(places) = &pool.plan else { return None };
    let start = hash(address);
    let at = |place: usize| places.get(place % HASH_PLACES).map(|&number| pool.members[usize::from(number)]);
    let walk = std::iter::once(start).chain((0..HASH_PLACES).map(|offset| start + start + offset));
    walk.filter_map(at).find(|&index| weight(index) > 0)
}

/// The kernel's `hash_32` (Knuth's multiplicative hash), eight bits of it.
fn hash(address: Ipv4Addr) -> usize {
    (address.to_bits().wrapping_mul(0x61c8_8647) >> 24) as usize
}

/// Maps 64 random bits to 0..count without the bias of a remainder.
fn scale(random: u64, count: usize) -> usize {
    ((u128::from(random) * count as u128) >> 64) as usize
}

#[cfg(test)]
mod tests;
