//! What the cache keeps: responses by URI and by what chose them, bounded in octets.
//!
//! The proxy looks up, puts, refreshes and drops. Invariants: the octets of all entries never exceed the limit; who was not used for the
//! longest time goes first; one entry for each URI and choice. Depends on `message`, `policy`. Read first: RFC 9111 section 4.

use super::message::{Fields, Response};
use super::policy::{self, Times};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What an entry takes beside its texts and its body, octets.
const OVERHEAD: usize = 256;

/// A stored response.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    /// What it is the answer for, as [`super::target::Target::uri`] writes it.
    pub(super) uri: String,
    /// Fields of the request that chose it.
    pub(super) selecting: Vec<(String, Option<String>)>,
    pub(super) response: Response,
    pub(super) times: Times,
    pub(super) body: Arc<[u8]>,
}

impl Stored {
    fn octets(&self) -> usize {
        let selecting =
            |(name, value): &(String, Option<String>)| name.len() + value.as_ref().map_or(0, String::len);
        let texts = self.uri.len() * 2 + self.selecting.iter().map(selecting).sum::<usize>();
        OVERHEAD + texts + self.response.fields.octets() + self.body.len()
    }
}

/// The cache.
#[derive(Debug)]
pub(super) struct Store {
    limit: usize,
    octets: usize,
    /// By the number of its last use.
    entries: BTreeMap<u64, Arc<Stored>>,
    by_uri: BTreeMap<String, Vec<u64>>,
    next_use: u64,
}

impl Store {
    /// Makes an empty cache of a size in octets.
    pub(super) fn new(limit: usize) -> Self {
        Store { limit, octets: 0, entries: BTreeMap::new(), by_uri: BTreeMap::new(), next_use: 0 }
    }

    /// Finds what is stored for a request, and notes its use.
    pub(super) fn find(&mut self, uri: &str, request: &Fields) -> Option<Arc<Stored>> {
        let fits = |number: &&u64| {
            self.entries.get(number).is_some_and(|stored| policy::selects(request, &stored.selecting))
        };
        // Of several that fit the latest counts (RFC 9111, 4); they stand in the order in which they were used.
        let number = self
            .by_uri
            .get(uri)?
            .iter()
            .filter(fits)
            .max_by_key(|number| self.entries.get(number).map(|stored| stored.times.received))?;
        let stored = self.take(*number)?;
        self.insert(Arc::clone(&stored));
        Some(stored)
    }

    /// Keeps a response, in place of the one that the same request would get; not when it is larger than the cache.
    pub(super) fn put(&mut self, stored: Stored) {
        self.remove(&stored.uri, |old| old.selecting == stored.selecting);
        if stored.octets() > self.limit {
            return;
        }
        while self.octets + stored.octets() > self.limit
            && let Some((&oldest, _)) = self.entries.first_key_value()
        {
            self.take(oldest);
        }
        self.insert(Arc::new(stored));
    }

    /// Drops what is stored for a URI, whatever chose it.
    pub(super) fn invalidate(&mut self, uri: &str) {
        self.remove(uri, |_| true);
    }

    fn remove(&mut self, uri: &str, is_meant: impl Fn(&Stored) -> bool) {
        for number in self.by_uri.get(uri).cloned().unwrap_or_default() {
            if self.entries.get(&number).is_some_and(|stored| is_meant(stored)) {
                self.take(number);
            }
        }
    }

    fn insert(&mut self, stored: Arc<Stored>) {
        self.octets += stored.octets();
        self.by_uri.entry(stored.uri.clone()).or_default().push(self.next_use);
        self.entries.insert(self.next_use, stored);
        self.next_use += 1;
    }

    fn take(&mut self, number: u64) -> Option<Arc<Stored>> {
        let stored = self.entries.remove(&number)?;
        self.octets -= stored.octets();
        if let Some(numbers) = self.by_uri.get_mut(&stored.uri) {
            numbers.retain(|&other| other != number);
            if numbers.is_empty() {
                self.by_uri.remove(&stored.uri);
            }
        }
        Some(stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn stored(uri: &str, accept: &str, length: usize) -> Stored {
        let times = Times { requested: Duration::ZERO, received: Duration::ZERO };
        let response =
            Response { status: 200, reason: String::new(), is_1_1: true, fields: Fields::default() };
        let selecting = vec![(String::from("Accept"), Some(accept.to_owned()))];
        Stored { uri: uri.to_owned(), selecting, response, times, body: vec![0; length].into() }
    }

    fn accepting(accept: &str) -> Fields {
        let mut fields = Fields::default();
        fields.push("Accept", accept);
        fields
    }

    proptest! {
        /// Against a plain list, the last used at its end.
        #[test]
        fn the_store_is_a_list_by_use_of_bounded_octets(
            steps in proptest::collection::vec((0u8..4, 0usize..3, 0usize..2, 0usize..700), 1..80),
        ) {
            const LIMIT: usize = 2000;
            let mut store = Store::new(LIMIT);
            let mut model: Vec<Stored> = Vec::new();
            for (step, uri, accept, length) in steps {
                let (uri, accept) = (["a", "b", "c"][uri], ["x", "y"][accept]);
                let new = stored(uri, accept, length);
                let same = |old: &Stored| old.uri == uri && old.selecting == new.selecting;
                match step {
                    0 | 1 => {
                        model.retain(|old| !same(old));
                        model.push(new.clone());
                        while model.iter().map(Stored::octets).sum::<usize>() > LIMIT {
                            model.remove(0);
                        }
                        store.put(new);
                    }
                    2 => {
                        let found = store.find(uri, &accepting(accept)).map(|found| found.body.len());
                        let place = model.iter().position(same);
                        prop_assert_eq!(found, place.map(|place| model[place].body.len()));
                        if let Some(place) = place {
                            let used = model.remove(place);
                            model.push(used);
                        }
                    }
                    _ => {
                        store.invalidate(uri);
                        model.retain(|old| old.uri != uri);
                    }
                }
                let octets: usize = model.iter().map(Stored::octets).sum();
                prop_assert_eq!((store.entries.len(), store.octets), (model.len(), octets));
                prop_assert!(store.octets <= LIMIT);
                prop_assert_eq!(store.by_uri.values().map(Vec::len).sum::<usize>(), model.len());
            }
        }
    }

    #[test]
    fn what_is_larger_than_the_cache_is_not_kept_and_drives_nobody_out() {
        let mut store = Store::new(1000);
        store.put(stored("a", "x", 10));
        store.put(stored("b", "x", 1000));
        assert!(store.find("b", &accepting("x")).is_none());
        assert!(store.find("a", &accepting("x")).is_some());
    }
}
