//! The keyed hash of tables whose keys strangers can choose.
//!
//! Bindings, clients, adjacencies. Invariant: the hash depends on the worker's secret. Allowed dependencies: none.

use std::hash::{BuildHasher, Hasher};

/// Builds hashers with the worker's secret.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyedState(pub(crate) [u64; 2]);

impl BuildHasher for KeyedState {
    type Hasher = KeyedHasher;

    fn build_hasher(&self) -> KeyedHasher {
        KeyedHasher { state: self.0[0], secret: self.0[1] }
    }
}

/// Folds each word into the state with a 64 × 64 → 128 bit multiplication by a secret-dependent factor.
#[derive(Debug)]
pub(crate) struct KeyedHasher {
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
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.fold(u64::from_le_bytes(word));
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
    use crate::random::Random;

    /// Addresses whose hashes collide under a secret that somebody has found out are spread under any other.
    #[test]
    fn what_collides_under_one_secret_does_not_under_another() {
        const BUCKETS: u64 = 512;
        let mut random = Random::new(1);
        let mut secret = || KeyedState([random.next_u64(), random.next_u64()]);
        let known = secret();
        let colliding: Vec<u32> =
            (0..1 << 20).filter(|address: &u32| known.hash_one(address) % BUCKETS == 3).collect();
        assert!(colliding.len() > 1500, "2,048 are expected: {}", colliding.len());
        for other in (0..100).map(|_| secret()) {
            let mut buckets = [0u32; BUCKETS as usize];
            colliding.iter().for_each(|address| buckets[(other.hash_one(address) % BUCKETS) as usize] += 1);
            assert!(buckets.iter().max() <= Some(&20), "{other:x?}: {:?}", buckets.iter().max());
        }
    }
}
