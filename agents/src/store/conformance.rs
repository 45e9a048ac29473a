//! The model that every store must follow, as one function over the trait.
//!
//! Called by the property tests of each implementation, with a prefix that nobody else writes.
//!
//! Invariants checked: compare-and-put, atomic transactions, growing revisions, listings in order, and watches from any
//! revision that deliver exactly the model's events.
//!
//! May depend on [`crate::store`] only.
//!
//! Read first: [`crate::store`].

use std::{collections::BTreeMap, sync::Arc};

use futures::StreamExt;
use proptest::prelude::*;

use crate::store::{Compare, Event, EventKind, KeyValue, Op, Outcome, Revision, Store};

/// One thing to do with a store; keys are small numbers so that they meet.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Writes key and value.
    Put(u8, u8),
    /// Removes a key.
    Delete(u8),
    /// Writes a key if it does not exist.
    Create(u8, u8),
    /// Writes a key if it was not written since the model's state so many steps ago.
    PutIf(u8, u8, bool),
    /// Writes one key and removes another at once.
    Move(u8, u8),
}

/// Makes scripts of steps.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0u8..6;
    let step = prop_oneof![
        (key.clone(), any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        key.clone().prop_map(Step::Delete),
        (key.clone(), any::<u8>()).prop_map(|(key, value)| Step::Create(key, value)),
        (key.clone(), any::<u8>(), any::<bool>())
            .prop_map(|(key, value, stale)| Step::PutIf(key, value, stale)),
        (key.clone(), key).prop_map(|(from, to)| Step::Move(from, to)),
    ];
    prop::collection::vec(step, 0..60)
}

#[derive(Default)]
struct Model {
    keys: BTreeMap<Arc<str>, KeyValue>,
    history: Vec<Event>,
}

impl Model {
    fn mod_revision(&self, key: &str) -> Revision {
        self.keys.get(key).map_or(Revision::ZERO, |entry| entry.mod_revision)
    }

    fn put(&mut self, key: &Arc<str>, value: u8, at: Revision) {
        let create_revision = self.keys.get(key).map_or(at, |entry| entry.create_revision);
        let entry =
            KeyValue { key: Arc::clone(key), value: [value].into(), create_revision, mod_revision: at };
        self.history.push(Event {
            kind: EventKind::Put,
            key: Arc::clone(key),
            value: [value].into(),
            mod_revision: at,
            create_revision,
        });
        self.keys.insert(Arc::clone(key), entry);
    }

    fn delete(&mut self, key: &Arc<str>, at: Revision) {
        if self.keys.remove(key).is_some() {
            self.history.push(Event {
                kind: EventKind::Delete,
                key: Arc::clone(key),
                value: Arc::default(),
                mod_revision: at,
                create_revision: Revision::ZERO,
            });
        }
    }
}

/// Runs a script against a store and a model; panics where they differ.
pub(crate) async fn follows_the_model<S: Store>(store: &S, prefix: &str, steps: &[Step]) {
    let start = store.list(prefix).await.unwrap();
    assert!(start.entries.is_empty(), "the prefix must be unused");
    let mut live = store.watch(prefix, start.revision.next()).await.unwrap();
    let (mut model, mut last) = (Model::default(), start.revision);

    for step in steps {
        last = take(store, prefix, &mut model, step, last).await;
        let listing = store.list(prefix).await.unwrap();
        assert_eq!(listing.entries, model.keys.values().cloned().collect::<Vec<_>>());
        assert!(listing.revision >= last);
    }

    // The end marker tells how far to read, also where other prefixes' events come between.
    let marker: Arc<str> = format!("{prefix}~end").into();
    let Outcome::Done(end) = store.put(&marker, *b"e").await.unwrap() else {
        panic!("unconditional put conflicts")
    };
    model.put(&marker, b'e', end);
    for (at, expected) in model.history.iter().enumerate() {
        let event = live.next().await.unwrap().unwrap();
        assert_eq!(&event, expected, "event {at} of the live watch");
    }
    let froms: Vec<Revision> = model.history.iter().map(|event| event.mod_revision).collect();
    for from in froms {
        let mut late = store.watch(prefix, from).await.unwrap();
        for expected in model.history.iter().filter(|event| event.mod_revision >= from) {
            assert_eq!(&late.next().await.unwrap().unwrap(), expected, "watch from {from}");
        }
    }
}

async fn take<S: Store>(store: &S, prefix: &str, model: &mut Model, step: &Step, last: Revision) -> Revision {
    let name = |key: u8| -> Arc<str> { format!("{prefix}{key}").into() };
    let put = |key: &Arc<str>, value: u8| Op::Put { key: Arc::clone(key), value: [value].into() };
    let (compares, ops) = match *step {
        Step::Put(key, value) => (vec![], vec![put(&name(key), value)]),
        Step::Delete(key) => (vec![], vec![Op::Delete { key: name(key) }]),
        Step::Create(key, value) => {
            (vec![Compare { key: name(key), mod_revision: Revision::ZERO }], vec![put(&name(key), value)])
        }
        Step::PutIf(key, value, stale) => {
            let mod_revision = if stale { last.next() } else { model.mod_revision(&name(key)) };
            (vec![Compare { key: name(key), mod_revision }], vec![put(&name(key), value)])
        }
        Step::Move(from, to) => {
            let compare = Compare { key: name(from), mod_revision: model.mod_revision(&name(from)) };
            let mut ops = vec![put(&name(to), from)];
            if from != to {
                ops.push(Op::Delete { key: name(from) });
            }
            (vec![compare], ops)
        }
    };
    let holds = compares.iter().all(|compare| model.mod_revision(&compare.key) == compare.mod_revision);
    let changes = ops.iter().any(|op| matches!(op, Op::Put { .. }) || model.keys.contains_key(op.key()));
    let outcome = store.transact(compares, ops.clone()).await.unwrap();
    let Outcome::Done(at) = outcome else {
        assert!(!holds, "{step:?} conflicts");
        return last;
    };
    assert!(holds, "{step:?} should conflict");
    assert!(if changes { at > last } else { at >= last }, "{step:?}: {at} after {last}");
    for op in ops {
        match op {
            Op::Put { key, value } => model.put(&key, value[0], at),
            Op::Delete { key } => model.delete(&key, at),
        }
    }
    at
}
