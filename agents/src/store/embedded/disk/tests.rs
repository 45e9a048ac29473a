//! Tests of the store's file: power that fails at any write, files that are cut or damaged, a disk that is full.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
};

use flatnet_engine::random::Random;
use redb::StorageBackend;

use super::*;
use crate::store::Op;

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
