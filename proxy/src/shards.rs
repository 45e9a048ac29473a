//! A map as an immutable snapshot of copy-on-write shards.
//!
//! Sits under every published table: the writer clones its map, changes some keys and publishes the result; readers
//! keep the snapshot they hold. Who calls: [`crate::table`], and the engine for endpoints and routes.
//!
//! Invariants: a key lies in the shard that its hash names; `len` is the sum over the shards; a clone taken before a
//! change never sees it. A clone costs one reference count; a change copies one shard (and the array of references),
//! or nothing when no snapshot shares them.
//!
//! May depend on `std` only.
//!
//! Read first: nothing; `Arc::make_mut` is the whole trick.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    sync::Arc,
};

/// How many shards a map has, and so how finely a change is copied.
pub const SHARD_COUNT: usize = 256;

type Shard<K, V> = HashMap<K, V, FixedState>;

/// A map whose clones are cheap and immutable snapshots.
pub struct Shards<K, V> {
    shards: Arc<[Arc<Shard<K, V>>; SHARD_COUNT]>,
    len: usize,
}

impl<K, V> Shards<K, V> {
    /// Makes an empty map; its shards share one empty allocation until they are written.
    pub fn new() -> Self {
        let empty = Arc::new(HashMap::with_hasher(FixedState));
        Self { shards: Arc::new(std::array::from_fn(|_| Arc::clone(&empty))), len: 0 }
    }

    /// Counts the keys.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Says whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Walks all entries in no particular order; see [`Shards::sorted`] for printing.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// Says whether two handles are the same snapshot, without comparing entries.
    pub fn same_snapshot(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shards, &other.shards)
    }
}

impl<K: Hash + Eq, V> Shards<K, V> {
    /// Names the shard of a key, 0 to [`SHARD_COUNT`] - 1; the same in every process.
    pub fn shard_of(key: &K) -> usize {
        // The map inside takes the lowest and the highest bits of the same hash, so the shard takes middle ones.
        usize::from((FixedState.hash_one(key) >> 40) as u8)
    }

    /// Finds a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.shard(key).get(key)
    }

    /// Says whether a key is there.
    pub fn contains_key(&self, key: &K) -> bool {
        self.shard(key).contains_key(key)
    }

    fn shard(&self, key: &K) -> &Shard<K, V> {
        // A u8 index into 256 shards is always in bounds; the check is one compare.
        &self.shards[Self::shard_of(key)]
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    /// Sets a key and returns the value it had. Copies one shard if a snapshot shares it.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let old = self.shard_mut(&key).insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Removes a key and returns its value. An absent key copies nothing.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        if !self.contains_key(key) {
            return None;
        }
        let old = self.shard_mut(key).remove(key);
        self.len -= usize::from(old.is_some());
        old
    }

    fn shard_mut(&mut self, key: &K) -> &mut Shard<K, V> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[Self::shard_of(key)])
    }
}

impl<K: Ord, V> Shards<K, V> {
    /// Collects all entries by ascending key, for whatever people read.
    pub fn sorted(&self) -> Vec<(&K, &V)> {
        let mut entries: Vec<_> = self.iter().collect();
        entries.sort_unstable_by(|left, right| left.0.cmp(right.0));
        entries
    }
}

impl<K, V> Clone for Shards<K, V> {
    fn clone(&self) -> Self {
        Self { shards: Arc::clone(&self.shards), len: self.len }
    }
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord + fmt::Debug, V: fmt::Debug> fmt::Debug for Shards<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.sorted()).finish()
    }
}

impl<K: Hash + Eq, V: PartialEq> PartialEq for Shards<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().all(|(key, value)| other.get(key) == Some(value))
    }
}

impl<K: Hash + Eq, V: Eq> Eq for Shards<K, V> {}

impl<K: Hash + Eq + Clone, V: Clone> FromIterator<(K, V)> for Shards<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::new();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

/// Builds [`FoldHasher`]s with one fixed key, so that every run on any machine lays tables out alike.
///
/// The keys of published tables come from the cluster's own configuration, never from a frame, so the hash need not
/// be secret.
#[derive(Clone, Copy, Default)]
struct FixedState;

impl BuildHasher for FixedState {
    type Hasher = FoldHasher;

    fn build_hasher(&self) -> FoldHasher {
        FoldHasher(0x243f_6a88_85a3_08d3)
    }
}

/// Folds each word into the state with one 64 × 64 → 128 bit multiplication.
struct FoldHasher(u64);

impl FoldHasher {
    fn fold(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

impl Hasher for FoldHasher {
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

    fn write_u64(&mut self, value: u64) {
        self.fold(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.fold(value as u64);
    }

    fn finish(&self) -> u64 {
        let mut last = FoldHasher(self.0);
        last.fold(0x1319_8a2e_0370_7344);
        last.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u16, u32),
        Remove(u16),
        Snapshot,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u16..600, any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
            2 => (0u16..600).prop_map(Step::Remove),
            1 => Just(Step::Snapshot),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_an_ordered_map_and_snapshots_never_change(steps in prop::collection::vec(step(), 0..400)) {
            let mut map = Shards::new();
            let mut model = BTreeMap::new();
            let mut snapshots = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(key, value) => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                    Step::Remove(key) => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                    Step::Snapshot => snapshots.push((map.clone(), model.clone())),
                }
                prop_assert_eq!(map.len(), model.len());
            }
            snapshots.push((map, model));
            for (map, model) in snapshots {
                prop_assert_eq!(map.sorted(), model.iter().collect::<Vec<_>>());
                prop_assert!((0..600).all(|key| map.get(&key) == model.get(&key)));
                prop_assert_eq!(map.len(), model.len());
            }
        }
    }

    #[test]
    fn change_copies_one_shard_only() {
        let before: Shards<u32, u32> = (0..10_000).map(|key| (key, key)).collect();
        let mut after = before.clone();
        assert!(after.same_snapshot(&before));

        after.insert(7, 0);

        let copied =
            (0..SHARD_COUNT).filter(|&at| !Arc::ptr_eq(&before.shards[at], &after.shards[at])).count();
        assert_eq!(copied, 1);
        assert_eq!((before.get(&7), after.get(&7)), (Some(&7), Some(&0)));
    }

    #[test]
    fn removal_of_an_absent_key_copies_nothing() {
        let before: Shards<u32, u32> = (0..10).map(|key| (key, key)).collect();
        let mut after = before.clone();

        assert_eq!(after.remove(&99), None);

        assert!(after.same_snapshot(&before));
    }

    #[test]
    fn addresses_of_a_subnet_spread_over_the_shards() {
        let mut fill = [0u32; SHARD_COUNT];
        for host in 0..65_536u32 {
            fill[Shards::<std::net::Ipv4Addr, ()>::shard_of(&(0x0a01_0000 + host).into())] += 1;
        }
        // Mean 256, standard deviation 16: six of them are far outside of chance for a fair hash.
        assert!(fill.iter().all(|&count| (160..=352).contains(&count)), "{fill:?}");
    }
}
