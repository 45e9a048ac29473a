//! Each scheduler against a plain model of its definition in LVS.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{maglev::PLACES, pool::Balancer, service::Backend};

fn balancer(scheduler: Scheduler, weights: &[u16]) -> Balancer {
    let backends = weights.iter().enumerate().map(|(index, &weight)| Backend {
        weight,
        ..Backend::new(Ipv4Addr::from_bits(0x0a01_0000 + index as u32), 80, index as u64)
    });
    Balancer::new(Service { id: 3, scheduler, backends: backends.collect(), ..Service::default() })
}

fn request(client: u32, random: u64) -> Request {
    Request { client: client.into(), destination: [10, 96, 0, 10].into(), random }
}

/// The indices of a choice, in order.
fn order(balancer: &Balancer, cursors: &mut Cursors, request: &Request, loads: &[Load]) -> Vec<usize> {
    let load = |index: usize| loads.get(index).copied().unwrap_or_default();
    choose(balancer, balancer.cluster(), cursors, request, &load).collect()
}

fn first(balancer: &Balancer, cursors: &mut Cursors, request: &Request, loads: &[Load]) -> Option<usize> {
    order(balancer, cursors, request, loads).first().copied()
}

fn weights() -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(prop_oneof![Just(0), 1u16..12, Just(600)], 0..12)
}

fn loads() -> impl Strategy<Value = Vec<Load>> {
    prop::collection::vec((0u32..9, 0u32..600).prop_map(|(active, inactive)| Load { active, inactive }), 12)
}

/// `ip_vs_wrr_schedule`, line by line: the position is the one served last, or none at the list's head.
struct WrrModel<'a> {
    weights: &'a [u16],
    last: Option<usize>,
    asked: i32,
    most: i32,
    step: i32,
}

impl<'a> WrrModel<'a> {
    fn new(weights: &'a [u16]) -> Self {
        let divides = |step: &u16| weights.iter().all(|weight| weight % step == 0);
        let top = weights.iter().copied().max().unwrap_or_default();
        let step = (1..=top.max(1)).rev().find(divides).unwrap_or(1).into();
        let most = i32::from(top) - (step - 1);
        Self { weights, last: None, asked: most, most, step }
    }

    fn next(&mut self) -> usize {
        loop {
            let from = self.last.map_or(0, |last| last + 1);
            let found = (from..self.weights.len()).find(|&at| i32::from(self.weights[at]) >= self.asked);
            self.last = found;
            if let Some(found) = found {
                return found;
            }
            self.asked -= self.step;
            if self.asked <= 0 {
                self.asked = self.most;
            }
        }
    }
}

proptest! {
    #[test]
    fn no_choice_holds_a_backend_twice_or_one_that_is_quiesced(
        weights in weights(), loads in loads(), random: u64, client: u32, worker in 0u8..30,
    ) {
        for &scheduler in Scheduler::ALL {
            let balancer = balancer(scheduler, &weights);
            let mut seen = order(&balancer, &mut Cursors::new(worker), &request(client, random), &loads);
            seen.sort_unstable();
            let open: Vec<usize> = (0..weights.len()).filter(|&index| weights[index] > 0).collect();
            if scheduler.is_hash() {
                prop_assert_eq!(seen.len(), usize::from(!open.is_empty()), "{}", scheduler);
                prop_assert!(seen.iter().all(|index| open.contains(index)));
            } else {
                prop_assert_eq!(seen, open, "{}", scheduler);
            }
        }
    }

    /// `ip_vs_rr.c`, also when the number of backends changes.
    #[test]
    fn round_robin_is_even_in_every_period_without_a_change(
        worker in 0u8..64,
        periods in prop::collection::vec((1usize..40, 1usize..5), 1..10),
    ) {
        let mut cursors = Cursors::new(worker);
        for (count, rounds) in periods {
            let balancer = balancer(Scheduler::RoundRobin, &vec![1; count]);
            let mut chosen = BTreeMap::new();
            for _ in 0..rounds * count {
                *chosen.entry(first(&balancer, &mut cursors, &request(1, 0), &[]).unwrap()).or_insert(0) += 1;
            }
            prop_assert_eq!(chosen, (0..count).map(|index| (index, rounds)).collect());
        }
    }

    /// `ip_vs_wrr.c`; and in a period each comes as often as its weight says.
    #[test]
    fn weighted_round_robin_is_the_interleaved_one_of_lvs(weights in weights()) {
        let balancer = balancer(Scheduler::WeightedRoundRobin, &weights);
        let mut cursors = Cursors::new(0);
        let mut next = || first(&balancer, &mut cursors, &request(1, 0), &[]);
        if weights.iter().all(|&weight| weight == 0) {
            prop_assert_eq!(next(), None);
            return Ok(());
        }
        let mut model = WrrModel::new(&weights);
        let period = weights.iter().map(|&weight| usize::from(weight)).sum::<usize>() / model.step as usize;
        let mut counts = vec![0; weights.len()];
        for _ in 0..period {
            let chosen = next().unwrap();
            prop_assert_eq!(chosen, model.next());
            counts[chosen] += model.step as u16;
        }
        prop_assert_eq!(counts, weights);
    }

    /// Weights change under a cursor: still only backends with a weight, and from then on each to its share.
    #[test]
    fn weighted_round_robin_keeps_its_shares_after_a_change(before in weights(), after in weights(), calls in 0usize..50) {
        let mut cursors = Cursors::new(1);
        let changed = balancer(Scheduler::WeightedRoundRobin, &before);
        for _ in 0..calls {
            first(&changed, &mut cursors, &request(1, 0), &[]);
        }
        let balancer = balancer(Scheduler::WeightedRoundRobin, &after);
        let period = WrrModel::new(&after);
        let step = period.step as usize;
        let total = after.iter().map(|&weight| usize::from(weight)).sum::<usize>() / step;
        let mut counts = vec![0; after.len()];
        for _ in 0..total {
            counts[first(&balancer, &mut cursors, &request(1, 0), &[]).unwrap()] += step;
        }
        prop_assert_eq!(counts, after.iter().map(|&weight| usize::from(weight)).collect::<Vec<_>>());
    }

    /// `ip_vs_lc.c`, `ip_vs_wlc.c`: the first with the least (256 × active + inactive) for its weight.
    #[test]
    fn least_connection_takes_the_least_overhead(weights in weights(), loads in loads()) {
        let open: Vec<usize> = (0..weights.len()).filter(|&index| weights[index] > 0).collect();
        let overhead = |index: usize| f64::from(loads[index].active * 256 + loads[index].inactive);
        let best = |share: &dyn Fn(usize) -> f64| {
            let least = open.iter().map(|&index| share(index)).fold(f64::INFINITY, f64::min);
            open.iter().copied().find(|&index| share(index) <= least)
        };
        let mut cursors = Cursors::new(0);
        let mut choice = |scheduler| first(&balancer(scheduler, &weights), &mut cursors, &request(1, 0), &loads);
        prop_assert_eq!(choice(Scheduler::LeastConnection), best(&overhead));
        let chosen = choice(Scheduler::WeightedLeastConnection);
        prop_assert_eq!(chosen, best(&|index| overhead(index) / f64::from(weights[index])));
    }

    /// `ip_vs_sh.c`, `ip_vs_dh.c`: 256 places dealt out in turn, with `sh` as many at once as the weight says.
    #[test]
    fn hashing_looks_into_the_dealt_table(weights in weights(), client: u32) {
        for (scheduler, weighted) in [(Scheduler::SourceHash, true), (Scheduler::DestinationHash, false)] {
            let mut table = Vec::new();
            while !weights.is_empty() && table.len() < 256 {
                for (index, &weight) in weights.iter().enumerate() {
                    let share = if weighted { weight.max(1) } else { 1 };
                    (0..share).for_each(|_| table.push(index));
                }
            }
            let balancer = balancer(scheduler, &weights);
            let request = request(client, 0);
            let address = if weighted { request.client } else { request.destination };
            let product = u64::from(address.to_bits()) * 0x61c8_8647 % (1 << 32);
            let start = (product >> 24) as usize;
            let mut walk = vec![start];
            walk.extend((0..256).map(|offset| (start + (start + offset) % 256) % 256));
            let mut places = walk.iter().filter_map(|&place| table.get(place).copied());
            let chosen = first(&balancer, &mut Cursors::new(0), &request, &[]);
            prop_assert_eq!(chosen, places.find(|&index| weights[index] > 0));
        }
    }

    /// A client keeps its backend whatever worker is asked, and when others leave mostly so (see [`crate::maglev`]).
    #[test]
    fn maglev_depends_on_the_client_only(client: u32, worker in 0u8..9, random: u64) {
        let balancer = balancer(Scheduler::Maglev, &[1, 2, 3]);
        let one = first(&balancer, &mut Cursors::new(0), &request(client, 0), &[]);
        prop_assert_eq!(one, first(&balancer, &mut Cursors::new(worker), &request(client, random), &[]));
        prop_assert!(maglev::place(client.into()) < PLACES);
    }
}

/// `ip_vs_mh.c`: of many clients each backend gets what its weight says.
#[test]
fn maglev_shares_clients_out_by_weight() {
    let balancer = balancer(Scheduler::Maglev, &[100, 0, 300]);
    let mut counts = [0; 3];
    for client in 0..20_000 {
        counts[first(&balancer, &mut Cursors::new(0), &request(client, 0), &[]).unwrap()] += 1;
    }
    assert_eq!(counts[1], 0);
    assert!((4_750..5_250).contains(&counts[0]), "{counts:?}");
}

#[test]
fn random_covers_all_evenly() {
    let balancer = balancer(Scheduler::Random, &[1, 0, 1, 1]);
    let mut counts = [0; 4];
    for draw in 0..3000u64 {
        let request = request(1, draw * (u64::MAX / 3000));
        counts[first(&balancer, &mut Cursors::new(0), &request, &[]).unwrap()] += 1;
    }
    assert_eq!(counts[1], 0);
    assert!([0, 2, 3].iter().all(|&index| (998..=1002).contains(&counts[index])), "{counts:?}");
}

#[test]
fn trying_others_moves_the_cursor_by_one_only() {
    let balancer = balancer(Scheduler::RoundRobin, &[1, 1, 1]);
    let mut cursors = Cursors::new(0);
    let mut next = || order(&balancer, &mut cursors, &request(1, 0), &[]);
    assert_eq!([next(), next(), next(), next()], [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
}

#[test]
fn a_reset_cursor_and_one_beyond_the_limit_start_at_the_workers_index() {
    let balancer = balancer(Scheduler::RoundRobin, &[1, 1, 1]);
    let mut cursors = Cursors::new(1);
    let next = |cursors: &mut Cursors| first(&balancer, cursors, &request(1, 0), &[]);
    assert_eq!((next(&mut cursors), next(&mut cursors)), (Some(1), Some(2)));
    cursors.reset(3);
    assert_eq!(next(&mut cursors), Some(1));
    let step = |cursor: &mut Cursor| cursor.next;
    assert_eq!(cursors.advance(u32::MAX, 0, step), 1);
    assert!(cursors.of.len() < 10, "no memory for it");
}
