//! Whether what clients of a store saw at once could have happened one after the other.
//!
//! Threads call a store and note when each call began and ended; [`is_linearizable`] then looks for an order of all calls
//! that keeps to those times and in which a sequential model gives the same answers (Wing and Gong's search, with Lowe's
//! memory of the places it was at already).
//!
//! Invariants: the model shares no code with any store. Time passing is one of the calls: leases end in it.
//!
//! May depend on [`crate::store`] only.
//!
//! Read first: Herlihy and Wing, "Linearizability"; Lowe, "Testing for linearizability".

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use flatnet_engine::{clock::Instant, random::Random};
use futures::executor::block_on;

use crate::store::{Compare, Embedded, LeaseId, Op, Outcome, Revision, Store, StoreError, embedded::Options};

const CLIENTS: u64 = 4;
const CALLS: usize = 24;

/// What a client asks. Keys, seconds and leases are small numbers so that clients meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Get(u8),
    Put(u8, u8, Option<LeaseId>),
    PutIf(u8, u8, Revision),
    /// Writes both keys at once if the first was last written then.
    PutBoth(u8, u8, u8, Revision),
    Delete(u8),
    Grant(u64),
    KeepAlive(LeaseId),
    Revoke(LeaseId),
    /// It is so many seconds late.
    Advance(u64),
}

/// What it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Entry(Option<(u8, Revision)>),
    Done(Revision),
    Conflict,
    Lease(LeaseId),
    Alive(u64),
    NoLease,
    Late,
}

/// A call with its answer, and when it began and ended on the clock that all clients share.
#[derive(Clone, Copy, Debug)]
struct Record {
    call: Call,
    answer: Answer,
    began: u64,
    ended: u64,
}

/// The store as one would describe it on a blackboard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Model {
    revision: u64,
    keys: BTreeMap<u8, (u8, u64, Option<i64>)>,
    /// Seconds to live and second of the end.
    leases: BTreeMap<i64, (u64, u64)>,
    /// Whatever leases were called.
    granted: BTreeSet<i64>,
    now: u64,
}

impl Model {
    /// Answers a call; what a lease is called is the store's to say.
    fn answer(&mut self, call: Call, told: Answer) -> Answer {
        match call {
            Call::Get(key) => Answer::Entry(self.keys.get(&key).map(|&(value, at, _)| (value, Revision(at)))),
            Call::Put(_, _, Some(lease)) if !self.leases.contains_key(&lease.0) => Answer::NoLease,
            Call::Put(key, value, lease) => self.write(&[(key, value)], lease.map(|lease| lease.0)),
            Call::PutIf(key, _, at) | Call::PutBoth(key, _, _, at) if self.written(key) != at.0 => {
                Answer::Conflict
            }
            Call::PutIf(key, value, _) => self.write(&[(key, value)], None),
            Call::PutBoth(key, other, value, _) => self.write(&[(key, value), (other, value)], None),
            Call::Delete(key) => {
                self.revision += u64::from(self.keys.remove(&key).is_some());
                Answer::Done(Revision(self.revision))
            }
            Call::Grant(seconds) => {
                let Answer::Lease(lease) = told else { return Answer::NoLease };
                if !self.granted.insert(lease.0) {
                    return Answer::NoLease;
                }
                self.leases.insert(lease.0, (seconds, self.now + seconds));
                told
            }
            Call::KeepAlive(lease) => match self.leases.get_mut(&lease.0) {
                Some((seconds, end)) => {
                    *end = self.now + *seconds;
                    Answer::Alive(*seconds)
                }
                None => Answer::NoLease,
            },
            Call::Revoke(lease) if self.leases.contains_key(&lease.0) => {
                self.end(lease.0);
                Answer::Done(Revision(self.revision))
            }
            Call::Revoke(_) => Answer::NoLease,
            Call::Advance(now) => {
                self.now = self.now.max(now);
                let mut over: Vec<_> = self.leases.iter().map(|(&lease, &(_, end))| (end, lease)).collect();
                over.retain(|&(end, _)| end <= self.now);
                over.sort_unstable();
                over.into_iter().for_each(|(_, lease)| self.end(lease));
                Answer::Late
            }
        }
    }

    fn written(&self, key: u8) -> u64 {
        self.keys.get(&key).map_or(0, |&(_, at, _)| at)
    }

    fn write(&mut self, pairs: &[(u8, u8)], lease: Option<i64>) -> Answer {
        self.revision += 1;
        for &(key, value) in pairs {
            self.keys.insert(key, (value, self.revision, lease));
        }
        Answer::Done(Revision(self.revision))
    }

    fn end(&mut self, lease: i64) {
        self.leases.remove(&lease);
        let before = self.keys.len();
        self.keys.retain(|_, &mut (_, _, attached)| attached != Some(lease));
        self.revision += u64::from(self.keys.len() < before);
    }
}

/// Looks for an order of the calls in which the model answers as the store did, which had come to `start`; at most 128
/// calls.
fn is_linearizable(history: &[Record], start: Revision) -> bool {
    assert!(history.len() <= 128, "the set of calls done is a u128");
    let mut seen = HashSet::new();
    let mut open = vec![(0u128, Model { revision: start.0, ..Model::default() })];
    while let Some((done, model)) = open.pop() {
        if done.count_ones() as usize == history.len() {
            return true;
        }
        let left = history.iter().enumerate().filter(|&(at, _)| done >> at & 1 == 0);
        // What began after another had ended comes after it.
        let first_end = left.clone().map(|(_, record)| record.ended).min().unwrap_or(u64::MAX);
        for (at, record) in left.filter(|(_, record)| record.began < first_end) {
            let (mut next, done) = (model.clone(), done | 1 << at);
            if next.answer(record.call, record.answer) == record.answer && seen.insert((done, next.clone())) {
                open.push((done, next));
            }
        }
    }
    false
}

/// One of several clients of a store.
struct Client<'a, S> {
    store: &'a S,
    /// Tells the store the time, if it has no clock of its own.
    advance: Option<&'a (dyn Fn(Instant) + Sync)>,
    clock: &'a AtomicU64,
    /// Leases that somebody was granted.
    granted: &'a Mutex<Vec<LeaseId>>,
    random: Random,
    /// The key it read last, and what it found.
    read: (u8, Revision),
}

impl<S: Store> Client<'_, S> {
    fn below(&mut self, bound: u64) -> u64 {
        self.random.next_u64() % bound
    }

    fn choose(&mut self) -> Call {
        let (key, value) = (self.below(3) as u8, self.below(256) as u8);
        let lease = self.lease();
        match self.below(14) {
            0..3 => Call::Get(key),
            3 => Call::Put(key, value, None),
            4..6 => Call::Put(key, value, Some(lease)),
            6 => Call::PutIf(key, value, Revision::ZERO),
            7..9 => Call::PutIf(self.read.0, value, self.read.1),
            9 => Call::PutBoth(self.read.0, (self.read.0 + 1) % 3, value, self.read.1),
            10 => Call::Delete(key),
            // By a clock of the store's own they outlast the history.
            11 => Call::Grant(1 + self.below(4) + if self.advance.is_none() { 200 } else { 0 }),
            12 if self.below(2) == 0 => Call::KeepAlive(lease),
            12 => Call::Revoke(lease),
            _ if self.advance.is_none() => Call::Get(key),
            _ => Call::Advance(self.clock.load(Ordering::SeqCst) / 16),
        }
    }

    /// Names one of the last leases that were granted, or one that never was.
    fn lease(&mut self) -> LeaseId {
        let back = self.below(5) as usize;
        self.granted.lock().unwrap().iter().rev().nth(back).copied().unwrap_or(LeaseId(i64::MAX))
    }

    fn call(&mut self, call: Call) -> Answer {
        let key = |key: u8| format!("/{key}").into();
        let put = |at: u8, value: u8, lease| Op::Put { key: key(at), value: [value].into(), lease };
        let transact = |compare: Option<(u8, Revision)>, ops| {
            let compare = compare.map(|(at, mod_revision)| Compare { key: key(at), mod_revision });
            match block_on(self.store.transact(compare.into_iter().collect(), ops)) {
                Ok(Outcome::Done(at)) => Answer::Done(at),
                Ok(Outcome::Conflict) => Answer::Conflict,
                Err(error) => refused(&error),
            }
        };
        match call {
            Call::Get(at) => {
                let found = block_on(self.store.get(&key(at))).unwrap();
                let found = found.map(|entry| (entry.value[0], entry.mod_revision));
                self.read = (at, found.map_or(Revision::ZERO, |(_, revision)| revision));
                Answer::Entry(found)
            }
            Call::Put(at, value, lease) => transact(None, vec![put(at, value, lease)]),
            Call::PutIf(at, value, read) => transact(Some((at, read)), vec![put(at, value, None)]),
            Call::PutBoth(at, other, value, read) => {
                transact(Some((at, read)), vec![put(at, value, None), put(other, value, None)])
            }
            Call::Delete(at) => transact(None, vec![Op::Delete { key: key(at) }]),
            Call::Grant(seconds) => {
                let lease = block_on(self.store.grant(Duration::from_secs(seconds))).unwrap();
                self.granted.lock().unwrap().push(lease);
                Answer::Lease(lease)
            }
            Call::KeepAlive(lease) => {
                let alive = block_on(self.store.keep_alive(lease));
                alive.map_or_else(|error| refused(&error), |ttl| Answer::Alive(ttl.as_secs()))
            }
            Call::Revoke(lease) => {
                block_on(self.store.revoke(lease)).map_or_else(|error| refused(&error), Answer::Done)
            }
            Call::Advance(seconds) => {
                self.advance.unwrap()(Instant::ZERO + Duration::from_secs(seconds));
                Answer::Late
            }
        }
    }

    fn run(&mut self, records: &Mutex<Vec<Record>>) {
        let mut own = Vec::new();
        for _ in 0..CALLS {
            let call = self.choose();
            let began = self.clock.fetch_add(1, Ordering::SeqCst);
            let answer = self.call(call);
            own.push(Record { call, answer, began, ended: self.clock.fetch_add(1, Ordering::SeqCst) });
            if self.below(4) == 0 {
                std::thread::yield_now();
            }
        }
        records.lock().unwrap().append(&mut own);
    }
}

fn refused(error: &StoreError) -> Answer {
    assert!(matches!(error, StoreError::NoLease { .. }), "{error}");
    Answer::NoLease
}

/// Lets clients loose on a store and returns what they saw.
fn record<S: Store>(store: &S, advance: Option<&(dyn Fn(Instant) + Sync)>, seed: u64) -> Vec<Record> {
    let (clock, records, granted) = (AtomicU64::new(0), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let start = std::sync::Barrier::new(CLIENTS as usize);
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let random = Random::new(seed * CLIENTS + number);
            let (clock, granted, read) = (&clock, &granted, (0, Revision::ZERO));
            let mut client = Client { store, advance, clock, granted, random, read };
            let (records, start) = (&records, &start);
            scope.spawn(move || {
                start.wait();
                client.run(records);
            });
        }
    });
    records.into_inner().unwrap()
}

/// Records and judges histories of stores without keys; returns how many calls met another. `advance` tells a store the
/// time, if it has no clock of its own.
pub(crate) fn judge<S: Store>(stores: impl Iterator<Item = S>, advance: Option<fn(&S, Instant)>) -> usize {
    let mut met = 0;
    for (seed, store) in stores.enumerate() {
        let start = block_on(store.list("")).unwrap().revision;
        let tell = advance.map(|advance| {
            let store = store.clone();
            move |now| advance(&store, now)
        });
        let tell = tell.as_ref().map(|tell| tell as &(dyn Fn(Instant) + Sync));
        let history = record(&store, tell, seed as u64);
        let meets = |one: &Record| history.iter().any(|it| it.began < one.began && one.began < it.ended);
        met += history.iter().filter(|one| meets(one)).count();
        assert!(is_linearizable(&history, start), "seed {seed}: {history:#?}");
    }
    met
}

fn told_the_time(store: &Embedded, now: Instant) {
    store.advance(now).unwrap();
}

/// etcd API guarantees, linearizability: reads and writes of all clients have one order, and it is that of time.
#[test]
fn histories_of_concurrent_clients_are_linearizable() {
    assert!(judge((0..300).map(|_| Embedded::new()), Some(told_the_time)) > 100, "the clients never met");
}

/// etcd API guarantees, linearizability: on disk, too.
#[test]
fn histories_are_linearizable_on_disk() {
    let directories: Vec<_> = (0..8).map(|_| tempfile::tempdir().unwrap()).collect();
    let open = |it: &tempfile::TempDir| Embedded::open(it.path(), Options::default()).unwrap();
    assert!(judge(directories.iter().map(open), Some(told_the_time)) > 100, "the clients never met");
}

/// A history of calls that each began and ended then.
fn told(records: &[(Call, Answer, u64, u64)]) -> bool {
    let record = |&(call, answer, began, ended)| Record { call, answer, began, ended };
    is_linearizable(&records.iter().map(record).collect::<Vec<_>>(), Revision::ZERO)
}

#[test]
fn what_no_order_explains_is_not_linearizable() {
    let done = |at| Answer::Done(Revision(at));
    let found = |value, at| Answer::Entry(Some((value, Revision(at))));
    let nothing = Answer::Entry(None);
    let put = Call::Put(0, 7, None);
    // A read may miss a write that it meets, not one that had ended.
    assert!(told(&[(put, done(1), 0, 3), (Call::Get(0), nothing, 1, 2)]));
    assert!(!told(&[(put, done(1), 0, 1), (Call::Get(0), nothing, 2, 3)]));
    // Once one read found the write, no later one misses it.
    let seen = [(put, done(1), 0, 9), (Call::Get(0), found(7, 1), 1, 2), (Call::Get(0), nothing, 3, 4)];
    assert!(!told(&seen));
    // Of two that write what they both read, one loses.
    let put_if = |value| Call::PutIf(0, value, Revision::ZERO);
    assert!(told(&[(put_if(1), done(1), 0, 3), (put_if(2), Answer::Conflict, 1, 2)]));
    assert!(!told(&[(put_if(1), done(1), 0, 3), (put_if(2), done(2), 1, 2)]));
    // A key does not outlive its lease.
    let leased = |later| {
        told(&[
            (Call::Grant(5), Answer::Lease(LeaseId(1)), 0, 1),
            (Call::Put(0, 7, Some(LeaseId(1))), done(1), 2, 3),
            (Call::Advance(5), Answer::Late, 4, 5),
            (Call::Get(0), later, 6, 7),
        ])
    };
    assert!(leased(nothing));
    assert!(!leased(found(7, 1)));
    // Two keys of one transaction are not seen apart.
    let both = (Call::PutBoth(0, 1, 7, Revision::ZERO), done(1), 0, 9);
    assert!(!told(&[both, (Call::Get(0), found(7, 1), 1, 2), (Call::Get(1), nothing, 3, 4)]));
}
