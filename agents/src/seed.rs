//! Randomness and identifiers that a seed determines.
//!
//! Used wherever a choice must be free but repeatable: subnets, uids. Nothing else in this package is random.
//!
//! Invariants: the same inputs give the same outputs on every machine. Not for secrets.
//!
//! May depend on `std` only.
//!
//! Read first: Steele, Lea, Flood: Fast splittable pseudorandom number generators (splitmix64); RFC 9562 section 5.4.

/// A generator of 64-bit numbers (splitmix64).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Gives 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Gives a number below `bound`, each with the same probability; 0 if `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }
}

/// Hashes texts to 64 bits; the boundaries between them count.
pub fn hash(seed: u64, parts: &[&str]) -> u64 {
    let mut state = mix(seed ^ 0x243f_6a88_85a3_08d3);
    for part in parts {
        for byte in part.bytes() {
            // FNV-1a per byte, with a full mix at each boundary.
            state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        state = mix(state ^ part.len() as u64);
    }
    state
}

/// Makes the uid of an object, a version 4 UUID whose random bits come from the seed and these texts.
pub fn uid(seed: u64, parts: &[&str]) -> String {
    let mut random = Random(hash(seed, parts));
    let high = random.next_u64() & !0xf000 | 0x4000;
    let low = random.next_u64() & !(0b11 << 62) | (0b10 << 62);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn same_seed_gives_the_same_uid_and_every_part_counts() {
        assert_eq!(uid(7, &["Pod", "default", "web"]), uid(7, &["Pod", "default", "web"]));
        let uids: HashSet<String> = [
            uid(7, &["Pod", "default", "web"]),
            uid(8, &["Pod", "default", "web"]),
            uid(7, &["Pod", "defaultw", "eb"]),
            uid(7, &["Pod", "default", "web", ""]),
        ]
        .into();
        assert_eq!(uids.len(), 4);
    }

    #[test]
    fn uid_is_a_version_4_uuid() {
        for seed in 0..100 {
            let uid = uid(seed, &["x"]);
            assert_eq!((uid.len(), &uid[14..15]), (36, "4"));
            assert!(matches!(&uid[19..20], "8" | "9" | "a" | "b"), "{uid}");
        }
    }

    #[test]
    fn numbers_below_a_bound_reach_all_of_them() {
        let mut random = Random::new(1);
        let seen: HashSet<usize> = (0..200).map(|_| random.below(5)).collect();
        assert_eq!(seen, (0..5).collect());
        assert_eq!(random.below(0), 0);
    }
}
