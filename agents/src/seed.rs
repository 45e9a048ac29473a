//! Numbers and identifiers that a seed and some texts determine.
//!
//! Used wherever a choice must be free but repeatable: uids, seeds of pods and nodes, ports.
//!
//! Invariants: the same inputs give the same outputs on every machine. Not for secrets.
//!
//! May depend on the engine's generator only.
//!
//! Read first: `engine/src/random.rs`; RFC 9562 section 5.4.

use flatnet_engine::random::{Random, mix};

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
    let mut random = Random::new(hash(seed, parts));
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn what_was_derived_once_stays() {
        assert_eq!(hash(7, &["pod", "x"]), 4_435_593_584_653_367_086);
        assert_eq!(uid(7, &["Pod", "default", "web"]), "70066394-915a-443f-84f9-0ebabbdffbd6");
    }

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
}
