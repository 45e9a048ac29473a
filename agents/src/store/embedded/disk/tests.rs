//! Tests of the store's file: power that fails at any write, files that are cut or damaged, a disk that is full.

use std::{
    collections::BTreeMap,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use flatnet_engine::{clock::Instant, random::Random};
use futures::{FutureExt, StreamExt, executor::block_on};
use redb::StorageBackend;

use super::*;
use crate::store::{Embedded, Op, Outcome, Store, embedded::Options};

/// Bytes that a disk writes whole or not at all.
const SECTOR: usize = 512;

/// A disk whose power can fail: what was not synced may or may not be there afterwards, sector by sector.
#[derive(Clone, Debug)]
struct Platter(Arc<Mutex<Sectors>>);

#[derive(Debug)]
struct Sectors {
    synced: Vec<u8>,
    now: Vec<u8>,
    /// The bytes that were written since the last sync: sector and what is in it.
    unsynced: BTreeMap<usize, Vec<u8>>,
    /// Writes and syncs until the power fails.
    left: u32,
    random: Random,
}

impl Sectors {
    fn spend(&mut self) -> io::Result<()> {
        self.left = self.left.checked_sub(1).ok_or_else(|| io::Error::other("the power failed"))?;
        Ok(())
    }

    /// What the disk holds after the power failed: a length that was set may or may not be, too.
    fn after_the_failure(&mut self) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        if self.random.next_u64().is_multiple_of(2) {
            bytes.resize(self.now.len(), 0);
        }
        for (sector, content) in &self.unsynced {
            let at = sector * SECTOR;
            if self.random.next_u64().is_multiple_of(2) && at + content.len() <= bytes.len() {
                bytes[at..at + content.len()].copy_from_slice(content);
            }
        }
        bytes
    }
}

impl StorageBackend for Platter {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let sectors = self.0.lock().unwrap();
        let from = offset as usize;
        let bytes = sectors.now.get(from..from + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut sectors = self.0.lock().unwrap();
        sectors.spend()?;
        sectors.now.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut sectors = self.0.lock().unwrap();
        sectors.spend()?;
        sectors.synced = sectors.now.clone();
        sectors.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut sectors = self.0.lock().unwrap();
        sectors.spend()?;
        let (from, to) = (offset as usize, offset as usize + data.len());
        sectors.now[from..to].copy_from_slice(data);
        for sector in from / SECTOR..to.div_ceil(SECTOR) {
            let end = sectors.now.len().min((sector + 1) * SECTOR);
            let content = sectors.now[sector * SECTOR..end].to_vec();
            sectors.unsynced.insert(sector, content);
        }
        Ok(())
    }
}

fn platter(bytes: Vec<u8>, left: u32, seed: u64) -> Platter {
    let random = Random::new(seed);
    let sectors = Sectors { synced: bytes.clone(), now: bytes, unsynced: BTreeMap::new(), left, random };
    Platter(Arc::new(Mutex::new(sectors)))
}

/// A file whose system refuses writes and syncs after so many; what was written is there nevertheless.
#[derive(Debug)]
struct Refusing {
    file: File,
    left: Arc<AtomicU32>,
}

impl Refusing {
    fn spend(&self) -> io::Result<()> {
        let spent = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        spent.map(|_| ()).map_err(|_| io::ErrorKind::StorageFull.into())
    }
}

impl StorageBackend for Refusing {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.spend()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.spend()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.spend()?;
        self.file.write_all_at(data, offset)
    }
}

/// Has the system refuse what a store does to its file after so many writes and syncs, until it opens the file again.
fn refuse_after(store: &Embedded, writes: u32) {
    let mut inner = store.lock();
    let disk = inner.disk.as_mut().unwrap();
    disk.database = None;
    let left = Arc::new(AtomicU32::new(u32::MAX));
    let file = File::options().read(true).write(true).open(&disk.file).unwrap();
    let refusing = Refusing { file, left: Arc::clone(&left) };
    disk.database = Some(builder().create_with_backend(refusing).unwrap());
    left.store(writes, Ordering::SeqCst);
}

/// The change number so many: two keys at once, and now and then one goes.
fn change(state: &State, number: u64) -> Commit {
    let key = |at: u64| -> Arc<str> { format!("/{}", at % 7).into() };
    let value = vec![number as u8; 1 + (number as usize * 397) % 3000];
    let mut ops = vec![Op::Put { key: key(number), value: value.into(), lease: None }];
    ops.push(match number % 3 {
        0 => Op::Delete { key: key(number + 1) },
        _ => Op::Put { key: key(number + 1), value: (*b"x").into(), lease: None },
    });
    state.plan(&[], ops).unwrap().0.unwrap()
}

/// What there is after so many changes.
fn after(changes: u64) -> State {
    let mut state = State::new(100);
    for number in 0..changes {
        let commit = change(&state, number);
        state.apply(commit);
    }
    state
}

#[test]
fn no_acknowledged_change_is_lost_when_the_power_fails_at_any_write() {
    let made = platter(Vec::new(), u32::MAX, 0);
    initialise(&builder().create_with_backend(made.clone()).unwrap()).unwrap();
    let mut failures = 0;
    for seed in 0..60u64 {
        let (mut bytes, mut done) = (made.0.lock().unwrap().now.clone(), 0);
        // The power fails again and again on one disk.
        for round in 0..4 {
            let left = (Random::new(seed * 4 + round).next_u64() % 90) as u32;
            let disk = platter(bytes, left, seed * 4 + round);
            if let Ok(database) = builder().create_with_backend(disk.clone()) {
                let mut state = after(done);
                for number in (done..).take(10) {
                    let commit = change(&state, number);
                    if write(&database, &commit, number + 1).is_err() {
                        failures += 1;
                        break;
                    }
                    state.apply(commit);
                    done = number + 1;
                }
            }
            bytes = disk.0.lock().unwrap().after_the_failure();

            let disk = platter(bytes, u32::MAX, 0);
            let database = builder().create_with_backend(disk.clone()).unwrap();
            let mut state = State::new(100);
            let commits = read_tables(&database, &mut state).unwrap().commits;
            assert!(commits == done || commits == done + 1, "seed {seed}: {commits} of {done}");
            let expected = after(commits);
            assert_eq!((state.revision, &state.keys), (expected.revision, &expected.keys));
            done = commits;
            drop(database);
            bytes = disk.0.lock().unwrap().now.clone();
        }
    }
    assert!(failures > 100, "the power failed {failures} times only");
}

/// A directory with a store of so many changes.
fn store(changes: u64) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut state = State::new(100);
    let mut disk = Disk::open(directory.path(), &mut state).unwrap();
    for number in 0..changes {
        let commit = change(&state, number);
        disk.write(&commit).unwrap();
        state.apply(commit);
    }
    directory
}

/// Opens a store whose file has this content: all of it is there, or an error says that it is damaged.
fn is_whole_or_refused(directory: &Path, bytes: &[u8], what: &str) -> bool {
    fs::write(directory.join(FILE), bytes).unwrap();
    let mut state = State::new(100);
    let opened = catch_unwind(AssertUnwindSafe(|| Disk::open(directory, &mut state)));
    match opened.unwrap_or_else(|_| panic!("{what}: it panics")) {
        Ok(_) => {
            assert_eq!(state.keys, after(20).keys, "{what}");
            true
        }
        Err(error) => {
            assert!(error.to_string().contains("store.redb is damaged: "), "{what}: {error}");
            false
        }
    }
}

/// ADR 17: a change whose writing failed happens late if it is on disk, and never if it is not.
#[test]
fn what_is_in_memory_is_on_disk_whichever_write_fails() {
    let (mut late, mut never) = (0, 0);
    for writes in 0.. {
        let directory = store(3);
        let opened = || Embedded::open(directory.path(), Options::default()).unwrap();
        let store = opened();
        let list = |store: &Embedded| block_on(store.list("")).unwrap();
        let before = list(&store);
        let mut watch = block_on(store.watch("", before.revision.next())).unwrap();
        refuse_after(&store, writes);
        match block_on(store.put("/doubtful", *b"1")) {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}"),
        }
        assert_eq!(list(&store), before, "nobody sees it yet");
        assert!(watch.next().now_or_never().is_none());

        let Outcome::Done(at) = block_on(store.put("/next", *b"2")).unwrap() else { panic!("it conflicts") };
        let mut seen = Vec::new();
        while let Some(event) = watch.next().now_or_never() {
            let event = event.unwrap().unwrap();
            seen.push((event.key.to_string(), event.mod_revision));
        }
        let next = ("/next".to_owned(), at);
        if block_on(store.get("/doubtful")).unwrap().is_some() {
            late += 1;
            assert_eq!(seen, [("/doubtful".to_owned(), before.revision.next()), next]);
        } else {
            never += 1;
            assert_eq!((at, seen), (before.revision.next(), vec![next]));
        }
        let found = list(&store);
        drop((watch, store));
        assert_eq!(list(&opened()), found, "{writes} writes");
    }
    assert!(late > 0 && never > 0, "{late} happened late, {never} never");
}

/// etcd API, Lease: one that has expired cannot be kept alive, also while the disk is too full to end it.
#[test]
fn an_expired_lease_is_none_while_the_disk_is_full() {
    block_on(async {
        let directory = store(3);
        let store = Embedded::open(directory.path(), Options::default()).unwrap();
        let lease = store.grant(Duration::from_secs(5)).await.unwrap();
        let put = |key: &str| vec![Op::Put { key: key.into(), value: (*b"1").into(), lease: Some(lease) }];
        store.transact(vec![], put("/leased")).await.unwrap();
        refuse_after(&store, 0);
        let over = Instant::ZERO + Duration::from_secs(5);
        assert!(matches!(store.advance(over), Err(StoreError::ReadOnly { .. })));
        assert!(store.get("/leased").await.unwrap().is_some(), "its end is not on disk");
        let none = StoreError::NoLease { lease };
        assert_eq!(store.keep_alive(lease).await, Err(none.clone()));
        assert_eq!(store.lease(lease).await, Err(none.clone()));
        // The disk has room again, and the lease has not ended yet.
        assert_eq!(store.transact(vec![], put("/other")).await, Err(none));
        store.advance(over).unwrap();
        assert_eq!(store.get("/leased").await, Ok(None));
        assert_eq!(store.next_expiry(), None);
    });
}

#[test]
fn a_file_that_was_cut_is_refused_and_never_read_as_an_older_one() {
    let directory = store(20);
    let whole = fs::read(directory.path().join(FILE)).unwrap();
    for cut in (0..whole.len()).step_by(whole.len() / 50).chain([1, 64, 511, 4095, whole.len() - 1]) {
        is_whole_or_refused(directory.path(), &whole[..cut], &format!("cut at {cut} of {}", whole.len()));
    }
    assert!(!is_whole_or_refused(directory.path(), &whole[..0], "emptied"));
    assert!(is_whole_or_refused(directory.path(), &whole, "whole"));
}

#[test]
fn a_file_with_a_changed_byte_is_refused_or_whole() {
    let directory = store(20);
    let whole = fs::read(directory.path().join(FILE)).unwrap();
    let (mut random, mut refused) = (Random::new(7), 0);
    for _ in 0..150 {
        let (at, bit) = (random.next_u64() as usize % whole.len(), random.next_u64() % 8);
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << bit;
        refused += u32::from(!is_whole_or_refused(directory.path(), &bytes, &format!("byte {at} bit {bit}")));
    }
    assert!(refused > 0, "no changed byte was in use");
}

#[test]
fn an_unfinished_file_is_made_anew_and_a_later_format_refused() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(UNFINISHED), b"half").unwrap();
    let disk = Disk::open(directory.path(), &mut State::new(1)).unwrap();
    let transaction = disk.database.as_ref().unwrap().begin_write().unwrap();
    transaction.open_table(META).unwrap().insert(meta::FORMAT, FORMAT + 1).unwrap();
    transaction.commit().unwrap();
    drop(disk);
    let error = Disk::open(directory.path(), &mut State::new(1)).unwrap_err();
    assert!(error.to_string().ends_with("store.redb has format 2; this version knows 1"), "{error}");
}
