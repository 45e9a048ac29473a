//! Which backend a new flow tries first, and which others after it.
//!
//! Called by the engine's slow path, once for the first packet of a flow to a Service. The caller takes the first
//! backend whose reply tuple is free.
//!
//! Invariants: every backend appears exactly once in a choice; round-robin moves its cursor by exactly one per choice,
//! however many backends the caller tried, so that over k·n choices among n unchanged backends each comes first k
//! times. Cursors are per worker and start at the worker's index, so that workers do not all begin with the same pod.
//!
//! May depend on [`crate::service`] only. Randomness is a parameter.
//!
//! Read first: the schedulers `rr` and `random` of LVS and kube-proxy.

use crate::service::{Backend, Scheduler, Service};

/// How many Services can have a cursor of their own: 4 MB a worker at most. A Service with a larger id is scheduled at
/// random, which balances as well.
pub const MAX_CURSORS: usize = 1 << 20;

/// One worker's round-robin positions, by Service id.
#[derive(Clone, Debug)]
pub struct Cursors {
    next: Vec<u32>,
    start: u32,
}

impl Cursors {
    /// Makes the cursors of a worker; each Service starts at the backend of the worker's index.
    pub fn new(worker: u32) -> Self {
        Self { next: Vec::new(), start: worker }
    }

    /// Forgets a Service's position, so that another that gets its id starts afresh.
    pub fn reset(&mut self, id: u32) {
        if let Some(next) = usize::try_from(id).ok().and_then(|id| self.next.get_mut(id)) {
            *next = self.start;
        }
    }

    /// Returns the position to use among `count` backends (at least one) and moves on; `None` above the bound.
    fn advance(&mut self, id: u32, count: usize) -> Option<usize> {
        let id = usize::try_from(id).ok().filter(|&id| id < MAX_CURSORS)?;
        if id >= self.next.len() {
            self.next.resize(id + 1, self.start);
        }
        let next = self.next.get_mut(id)?;
        // The backends may have become fewer since.
        let at = *next as usize % count;
        *next = ((at + 1) % count) as u32;
        Some(at)
    }
}

/// Chooses a backend for a new flow and yields it, then the others in their order; nothing if there is none.
///
/// `random` is uniform over all 64 bits; round-robin ignores it.
pub fn choose<'a>(
    service: &'a Service,
    cursors: &mut Cursors,
    random: u64,
) -> impl Iterator<Item = &'a Backend> + Clone + use<'a> {
    let count = service.backends.len();
    let first = match service.scheduler {
        _ if count == 0 => 0,
        Scheduler::RoundRobin => cursors.advance(service.id, count).unwrap_or_else(|| scale(random, count)),
        Scheduler::Random => scale(random, count),
    };
    let (before, from) = service.backends.split_at(first);
    from.iter().chain(before)
}

/// Maps 64 random bits to 0..count without the bias of a remainder.
fn scale(random: u64, count: usize) -> usize {
    ((u128::from(random) * count as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn service(id: u32, scheduler: Scheduler, identities: impl IntoIterator<Item = u64>) -> Service {
        let backends = identities
            .into_iter()
            .map(|identity| Backend { address: [10, 1, 0, identity as u8].into(), port: 80, identity })
            .collect();
        Service { id, name: "default/web:http".into(), scheduler, backends }
    }

    /// A plain generator (splitmix64) for seeded tests.
    fn generator(mut state: u64) -> impl FnMut() -> u64 {
        move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }
    }

    proptest! {
        #[test]
        fn round_robin_is_even_in_every_period_without_a_change(
            worker in 0u32..64,
            periods in prop::collection::vec((1u64..40, 1usize..5), 1..10),
        ) {
            let mut cursors = Cursors::new(worker);
            for (count, rounds) in periods {
                let service = service(3, Scheduler::RoundRobin, 0..count);
                let mut chosen = BTreeMap::new();
                for _ in 0..rounds * count as usize {
                    let first = choose(&service, &mut cursors, 0).next().unwrap();
                    *chosen.entry(first.identity).or_insert(0) += 1;
                }
                prop_assert_eq!(chosen, (0..count).map(|identity| (identity, rounds)).collect());
            }
        }

        #[test]
        fn a_choice_holds_every_backend_once(count in 0u64..20, random in any::<u64>(), worker in 0u32..30) {
            for scheduler in [Scheduler::RoundRobin, Scheduler::Random] {
                let service = service(0, scheduler, 0..count);
                let mut seen: Vec<u64> =
                    choose(&service, &mut Cursors::new(worker), random).map(|backend| backend.identity).collect();
                seen.sort_unstable();
                prop_assert_eq!(seen, (0..count).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn trying_others_moves_the_cursor_by_one_only() {
        let service = service(0, Scheduler::RoundRobin, 0..3);
        let mut cursors = Cursors::new(0);
        let order = |cursors: &mut Cursors| -> Vec<u64> {
            choose(&service, cursors, 0).map(|backend| backend.identity).collect()
        };
        assert_eq!(order(&mut cursors), [0, 1, 2]);
        assert_eq!(order(&mut cursors), [1, 2, 0]);
        assert_eq!(order(&mut cursors), [2, 0, 1]);
        assert_eq!(order(&mut cursors), [0, 1, 2]);
    }

    #[test]
    fn workers_start_with_different_backends() {
        let service = service(0, Scheduler::RoundRobin, 0..3);
        let firsts: Vec<u64> = (0..4)
            .map(|worker| choose(&service, &mut Cursors::new(worker), 0).next().unwrap().identity)
            .collect();
        assert_eq!(firsts, [0, 1, 2, 0]);
    }

    #[test]
    fn a_reset_service_starts_afresh() {
        let service = service(5, Scheduler::RoundRobin, 0..3);
        let mut cursors = Cursors::new(1);
        assert_eq!(choose(&service, &mut cursors, 0).next().unwrap().identity, 1);
        cursors.reset(5);
        assert_eq!(choose(&service, &mut cursors, 0).next().unwrap().identity, 1);
    }

    #[test]
    fn ids_above_the_bound_take_no_memory_and_still_balance() {
        let service = service(u32::MAX, Scheduler::RoundRobin, 0..4);
        let mut cursors = Cursors::new(0);
        assert_eq!(choose(&service, &mut cursors, u64::MAX).next().unwrap().identity, 3);
        assert!(cursors.next.is_empty());
    }

    #[test]
    fn random_is_uniform() {
        let service = service(0, Scheduler::Random, 0..7);
        let (mut random, mut cursors, mut counts) = (generator(7), Cursors::new(0), [0f64; 7]);
        for _ in 0..70_000 {
            let identity = choose(&service, &mut cursors, random()).next().unwrap().identity;
            counts[identity as usize] += 1.0;
        }
        let chi_squared: f64 = counts.iter().map(|count| (count - 10_000.0).powi(2) / 10_000.0).sum();
        // Six degrees of freedom: a fair choice exceeds 22.5 once in a thousand seeds; the seed is fixed.
        assert!(chi_squared < 22.5, "{chi_squared} {counts:?}");
    }
}
