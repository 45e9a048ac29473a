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
