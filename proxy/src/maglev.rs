//! Maglev's lookup table: consistent hashing by which a change of the backends moves few other clients.
//!
//! [`crate::pool`] makes a table when a Service is published; a look-up is one hash and one read.
//!
//! Invariants: every place of a table is somebody's, if anybody has a weight; who has it depends on addresses, ports and
//! weights only, not on the worker or the run. Between backends of one weight places differ by at most one turn.
//!
//! May depend on `std` only.
//!
//! Read first: Eisenbud et al., "Maglev" (NSDI 2016), 3.4; LVS's `net/netfilter/ipvs/ip_vs_mh.c`, whose table size and
//! treatment of weights these are. LVS hashes the sum of address and port; here they are hashed side by side, so that
//! 10.1.0.1:81 and 10.1.0.2:80 do not get the same preferences.

use std::net::Ipv4Addr;

/// Places of a table: a prime, LVS's default (`IP_VS_MH_TAB_INDEX` 12). More backends than this find no place.
pub const PLACES: usize = 4093;
/// Bits that the largest weight has at most, once divided by what all have in common (`IP_VS_MH_TAB_BITS`).
const WEIGHT_BITS: u32 = 6;
/// What tells the three hashes apart.
const OFFSET_KEY: u64 = 0x9e37_79b9_7f4a_7c15;
const SKIP_KEY: u64 = 0xd1b5_4a32_d192_ed03;
const CLIENT_KEY: u64 = 0x8cb9_2ba7_2f3d_8dd7;

/// A backend as its preferences depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Its number, which the table then holds.
    pub index: u16,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its port.
    pub port: u16,
    /// Its weight; 0 gets no place.
    pub weight: u16,
}

/// Where a backend stands in its list of preferences.
struct Preferences {
    index: u16,
    next: usize,
    skip: usize,
    turns: u16,
}

/// Makes a table; empty when nobody has a weight.
pub fn populate(candidates: &[Candidate]) -> Box<[u16]> {
    let mut preferences = preferences(candidates);
    if preferences.is_empty() {
        return Box::default();
    }
    let mut table = vec![None; PLACES];
    let mut taken = 0;
    'full: loop {
        for of in &mut preferences {
            for _ in 0..of.turns {
                while table[of.next].is_some() {
                    of.next = (of.next + of.skip) % PLACES;
                }
                table[of.next] = Some(of.index);
                taken += 1;
                if taken == PLACES {
                    break 'full;
                }
            }
        }
    }
    table.into_iter().flatten().collect()
}

fn preferences(candidates: &[Candidate]) -> Vec<Preferences> {
    let weights = candidates.iter().map(|candidate| candidate.weight).filter(|&weight| weight > 0);
    let most = weights.clone().max().unwrap_or_default();
    let Some(common) = weights.reduce(greatest_common_divisor) else { return Vec::new() };
    let bits = u16::BITS - (most / common).leading_zeros();
    let shift = bits.saturating_sub(WEIGHT_BITS);
    let weighted = candidates.iter().filter(|candidate| candidate.weight > 0);
    weighted
        .map(|candidate| {
            let name = u64::from(candidate.address.to_bits()) << 16 | u64::from(candidate.port);
            Preferences {
                index: candidate.index,
                next: remainder(mix(name ^ OFFSET_KEY), PLACES),
                skip: remainder(mix(name ^ SKIP_KEY), PLACES - 1) + 1,
                turns: ((candidate.weight / common) >> shift).max(1),
            }
        })
        .collect()
}

/// Finds a client's place in a table.
pub fn place(client: Ipv4Addr) -> usize {
    remainder(mix(u64::from(client.to_bits()) ^ CLIENT_KEY), PLACES)
}

/// Gives the greatest number by which both can be divided; both are above zero.
pub(crate) const fn greatest_common_divisor(mut left: u16, mut right: u16) -> u16 {
    while right != 0 {
        (left, right) = (right, left % right);
    }
    left
}

fn remainder(hash: u64, count: usize) -> usize {
    (hash % count as u64) as usize
}

/// Spreads 64 bits (the finalizer of splitmix64).
const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(weights: &[u16]) -> Vec<Candidate> {
        let numbered = weights.iter().enumerate();
        numbered
            .map(|(index, &weight)| Candidate {
                index: index as u16,
                address: Ipv4Addr::from_bits(0x0a01_0002 + index as u32),
                port: 80,
                weight,
            })
            .collect()
    }

    fn counts(table: &[u16], backends: usize) -> Vec<usize> {
        let mut counts = vec![0; backends];
        table.iter().for_each(|&index| counts[usize::from(index)] += 1);
        counts
    }

    /// `ip_vs_mh_permutate` and `ip_vs_mh_populate`: every destination's whole permutation, and turns as its weight says. Only
    /// what hashes is the code's.
    struct Model {
        permutation: Vec<usize>,
        turns: usize,
        index: u16,
    }

    impl Model {
        fn all(candidates: &[Candidate]) -> Vec<Self> {
            let weights = || candidates.iter().map(|candidate| usize::from(candidate.weight));
            let most = weights().max().unwrap_or_default();
            let common = (1..=most).rev().find(|by| weights().all(|weight| weight % by == 0));
            // `ip_vs_mh_shift_weight`: what is left of the largest takes six bits at most.
            let shift = (0..).find(|shift| (most / common.unwrap_or(1)) >> shift < 64).unwrap();
            let permuted = candidates.iter().filter(|candidate| candidate.weight > 0).map(|candidate| {
                let hash = |key: u64| {
                    let address = u64::from(candidate.address.to_bits());
                    u128::from(mix((address * 65_536 + u64::from(candidate.port)) ^ key))
                };
                let (offset, skip) = (hash(OFFSET_KEY) % 4093, 1 + hash(SKIP_KEY) % 4092);
                let turns = (usize::from(candidate.weight) / common.unwrap()) >> shift;
                Self {
                    permutation: (0..4093).map(|step| ((offset + step * skip) % 4093) as usize).collect(),
                    turns: if turns == 0 { 1 } else { turns },
                    index: candidate.index,
                }
            });
            permuted.collect()
        }

        fn table(candidates: &[Candidate]) -> Vec<u16> {
            let of = Self::all(candidates);
            let mut places = vec![None; 4093];
            let turns = of.iter().cycle().flat_map(|who| std::iter::repeat_n(who, who.turns));
            for who in turns.take(4093) {
                let free = who.permutation.iter().find(|&&place| places[place].is_none());
                places[*free.unwrap()] = Some(who.index);
            }
            places.into_iter().flatten().collect()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// `ip_vs_mh.c`, whatever the weights and addresses.
        #[test]
        fn table_is_that_of_lvs(
            servers in prop::collection::vec((0u32..300, 79u16..82, 0u16..100), 0..60),
            // In common to all, or too much for six bits.
            times in prop_oneof![Just(1u16), 1u16..600],
        ) {
            let numbered = servers.iter().zip(0..);
            let candidates: Vec<Candidate> = numbered
                .map(|(&(address, port, weight), index)| Candidate {
                    index,
                    address: Ipv4Addr::from_bits(0x0a01_0000 + address),
                    port,
                    weight: weight * times,
                })
                .collect();
            prop_assert_eq!(populate(&candidates).to_vec(), Model::table(&candidates));
        }
    }

    /// `ip_vs_mh_gcd_weight` and `ip_vs_mh_shift_weight`, by hand: each row is weights and turns.
    #[test]
    fn places_are_shared_out_by_weight() {
        let rows: [(&[u16], &[usize]); 9] = [
            (&[1, 1, 1], &[1, 1, 1]),
            (&[3, 0, 1], &[3, 0, 1]),
            (&[100, 300], &[1, 3]),
            (&[63, 1], &[63, 1]),
            // 7 bits: halved. 10 bits: by 16, and nobody gets less than a turn.
            (&[64, 63], &[32, 31]),
            (&[600, 200, 7], &[37, 12, 1]),
            // What is in common is taken out before anything is halved.
            (&[640, 10], &[32, 1]),
            (&[6300, 100], &[63, 1]),
            (&[u16::MAX, 1], &[63, 1]),
        ];
        for (weights, turns) in rows {
            let counts = counts(&populate(&candidates(weights)), weights.len());
            let round: usize = turns.iter().sum();
            // Whole rounds, and of the last one what is left in the order of the backends.
            let mut left = 4093 % round;
            for (turns, got) in turns.iter().zip(counts) {
                let last = left.min(*turns);
                left -= last;
                assert_eq!(got, 4093 / round * turns + last, "{weights:?}");
            }
        }
        assert!(populate(&candidates(&[0, 0])).is_empty() && populate(&[]).is_empty());
    }

    /// Maglev, 3.4: each begins where its own hash says; neighbours by address or port do not meet.
    #[test]
    fn backends_prefer_different_places() {
        let begins = (0..100).map(|number: u16| {
            let address = Ipv4Addr::new(10, 1, 0, number as u8 / 10);
            let only = Candidate { index: 0, address, port: 80 + number % 10, weight: 1 };
            let preferred = &preferences(&[only])[0];
            (preferred.next, preferred.skip)
        });
        let begins: Vec<_> = begins.collect();
        let different =
            |values: Vec<usize>| values.into_iter().collect::<std::collections::BTreeSet<_>>().len();
        // Of 100 in 4,093 places some two meet by chance.
        assert!(different(begins.iter().map(|begin| begin.0).collect()) > 90);
        assert!(different(begins.iter().map(|begin| begin.1).collect()) > 90);
        assert!(begins.iter().filter(|(offset, skip)| offset + 1 == *skip).count() < 5, "two hashes");
    }

    /// Maglev, 3.4 and 5.3: balance is exact, disruption small. Measured: of the places that the leaving one did not have.
    #[test]
    fn one_that_leaves_disrupts_few_others() {
        for backends in [5_usize, 10, 40] {
            let weights = vec![1; backends];
            let before = populate(&candidates(&weights));
            let (mut moved, mut stayed) = (0, 0);
            for gone in 0..backends {
                let mut left = candidates(&weights);
                left.remove(gone);
                let after = populate(&left);
                for (&old, &new) in before.iter().zip(&after).filter(|&(&old, _)| usize::from(old) != gone) {
                    if old == new { stayed += 1 } else { moved += 1 }
                }
            }
            let share = f64::from(moved) / f64::from(moved + stayed);
            println!("{backends} backends: {:.2} % of the others' places move", share * 100.0);
            // With a remainder in place of the table, all but one in `backends` would move.
            assert!(share < 0.03, "{backends} backends: {share}");
        }
    }
}
