//! A small seeded generator, so that a run can be repeated.
//!
//! Workers, links, pods and agents each own one. Not for secrets that must withstand an attacker with time; hash
//! keys come from it in virtual time only. Allowed dependencies: none. Read first: Steele, Lea and Flood,
//! "Fast splittable pseudorandom number generators" (SplitMix64).

/// A SplitMix64 generator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Starts a generator of its own for a part, by number.
    #[must_use]
    pub fn fork(&self, part: u64) -> Self {
        let mut fork = Self(self.0 ^ part.wrapping_add(1).wrapping_mul(0xd134_2543_de82_ef95));
        fork.next_u64();
        fork
    }

    /// Returns 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Returns 16 random bits.
    pub fn next_u16(&mut self) -> u16 {
        (self.next_u64() >> 48) as u16
    }

    /// Returns a number below `bound`, each with the same probability; 0 if `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }

    /// Returns true with the given probability, in parts per million.
    pub fn chance(&mut self, parts_per_million: u32) -> bool {
        parts_per_million > 0 && self.next_u64() % 1_000_000 < u64::from(parts_per_million)
    }
}

/// Spreads each bit over all 64: the generator's finalizer, a bijection.
#[must_use]
pub const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_that_of_the_published_generator() {
        // Sebastiano Vigna, splitmix64.c: the first numbers of seed 1234567.
        let mut random = Random::new(1_234_567);
        assert_eq!(
            [random.next_u64(), random.next_u64(), random.next_u64()],
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn numbers_below_a_bound_reach_all_of_them() {
        let mut random = Random::new(1);
        let seen: std::collections::BTreeSet<usize> = (0..200).map(|_| random.below(5)).collect();
        assert_eq!(seen, (0..5).collect());
        assert_eq!(random.below(0), 0);
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_and_forks_differ() {
        let (mut one, mut same) = (Random::new(7), Random::new(7));
        assert_eq!(one.next_u64(), same.next_u64());
        let (mut first, mut second) = (one.fork(0), one.fork(1));
        assert_ne!(first.next_u64(), second.next_u64());
    }

    #[test]
    fn chance_is_near_its_probability() {
        let mut random = Random::new(1);
        let hits = (0..100_000).filter(|_| random.chance(50_000)).count();
        assert!((4_700..5_300).contains(&hits), "{hits}");
        assert!(!random.chance(0) && random.chance(1_000_000));
    }
}
