//! An embedded store's directory: every change is on disk before it happens.
//!
//! [`super::Embedded`] hands it each commit and lets it happen when [`Disk::write`] returns. What lies on disk is keys and
//! leases, not history: a watch from before ends with [`StoreError::Compacted`] and its follower lists again.
//!
//! Invariants: a commit is one transaction of redb and fsynced when it is acknowledged; a file is checked whole, by its
//! checksums, before it is believed; one process has the directory at a time; after a failed write it is not known
//! whether the commit is on disk, so nothing is written until the file was opened again and says so.
//!
//! May depend on redb and [`super::state`].
//!
//! Read first: `docs/adr/0017-the-store-on-disk.md`; redb's page on its design.

use std::{
    error::Error,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition, backends::FileBackend};
use thiserror::Error;

use super::state::{Commit, LeaseChange, State};
use crate::store::{EventKind, KeyValue, LeaseId, Revision, StoreError};

/// The file in the store's directory.
const FILE: &str = "store.redb";
/// The file while it is made: one of this name was never used.
const UNFINISHED: &str = "store.redb.new";
/// The layout of the tables below.
const FORMAT: u64 = 1;
/// Bytes of pages that redb may keep; everything is in memory once already.
const CACHE: usize = 8 << 20;

/// Key → created, written, lease (0: none), value.
const KEYS: TableDefinition<'_, &str, (u64, u64, i64, &[u8])> = TableDefinition::new("keys");
/// Lease → seconds it lives.
const LEASES: TableDefinition<'_, i64, u64> = TableDefinition::new("leases");
/// What there is once.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

mod meta {
    pub(super) const FORMAT: &str = "format";
    pub(super) const REVISION: &str = "revision";
    /// How many commits there were: tells whether one whose writing failed is there.
    pub(super) const COMMITS: &str = "commits";
    pub(super) const LAST_LEASE: &str = "last-lease";
}

/// Why a store's directory cannot be used.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The file is not whole, or none of ours.
    #[error("{} is damaged: {cause}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A newer flatnet wrote it.
    #[error("{} has format {found}; this version knows {FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The system refused.
    #[error("{} cannot be used", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The file of a store.
#[derive(Debug)]
pub(super) struct Disk {
    file: PathBuf,
    /// Holds the lock on the directory.
    _directory: File,
    /// None after a write failed.
    database: Option<Database>,
    commits: u64,
    /// The commit whose writing failed.
    in_doubt: Option<Commit>,
}

impl Disk {
    /// Opens or makes the file of a directory, which must exist, and reads it into a new state.
    pub(super) fn open(directory: &Path, state: &mut State) -> Result<Self, OpenError> {
        let lock = lock(directory)?;
        let file = directory.join(FILE);
        if !file.try_exists().map_err(failed(&file))? {
            make(directory, &lock)?;
        }
        let database = open(&file)?;
        let commits = read(&database, &file, state)?;
        Ok(Self { file, _directory: lock, database: Some(database), commits, in_doubt: None })
    }

    /// Opens the file again after a write failed, and returns the commit in doubt if it is there.
    pub(super) fn recover(&mut self) -> Result<Option<Commit>, StoreError> {
        if self.database.is_some() {
            return Ok(None);
        }
        let database = open(&self.file).map_err(|error| read_only(&error))?;
        let found = count(&database).map_err(|error| read_only(&error))?;
        self.database = Some(database);
        let landed = found > self.commits;
        self.commits = found;
        Ok(self.in_doubt.take().filter(|_| landed))
    }

    /// Puts a commit on disk; it is there when this returns.
    pub(super) fn write(&mut self, commit: &Commit) -> Result<(), StoreError> {
        let Some(database) = &self.database else {
            return Err(StoreError::ReadOnly { cause: "the file is not open".into() });
        };
        match write(database, commit, self.commits + 1) {
            Ok(()) => {
                self.commits += 1;
                Ok(())
            }
            Err(error) => {
                self.database = None;
                self.in_doubt = Some(commit.clone());
                Err(read_only(&error))
            }
        }
    }
}

/// Takes the directory for this process; the lock ends with it, however it ends.
fn lock(directory: &Path) -> Result<File, OpenError> {
    let handle = File::open(directory).map_err(failed(directory))?;
    match handle.try_lock() {
        Ok(()) => Ok(handle),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: directory.into() }),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path: directory.into(), source }),
    }
}

/// Makes an empty file under another name first: one that lacks its beginning was damaged, not interrupted.
fn make(directory: &Path, handle: &File) -> Result<(), OpenError> {
    let unfinished = directory.join(UNFINISHED);
    match fs::remove_file(&unfinished) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed(&unfinished)(source)),
        Ok(()) | Err(_) => {}
    }
    let file = File::options().read(true).write(true).create_new(true).open(&unfinished);
    let file = file.map_err(failed(&unfinished))?;
    let refused = |error: redb::Error| failed(&unfinished)(io::Error::other(error));
    let backend = FileBackend::new(file).map_err(|error| refused(error.into()))?;
    let database = builder().create_with_backend(backend).map_err(|error| refused(error.into()))?;
    initialise(&database).map_err(refused)?;
    drop(database);
    File::open(&unfinished).and_then(|file| file.sync_all()).map_err(failed(&unfinished))?;
    let file = directory.join(FILE);
    fs::rename(&unfinished, &file).map_err(failed(&file))?;
    handle.sync_all().map_err(failed(directory))
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    builder
}

fn initialise(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(KEYS)?;
    transaction.open_table(LEASES)?;
    transaction.open_table(META)?.insert(meta::FORMAT, FORMAT)?;
    transaction.commit()?;
    Ok(())
}

fn open(file: &Path) -> Result<Database, OpenError> {
    builder().open(file).map_err(|error| unusable(file, error.into()))
}

/// Sorts what redb says about a file into what the system refused and what is wrong with the file.
fn unusable(file: &Path, error: redb::Error) -> OpenError {
    use io::ErrorKind::{NotFound, PermissionDenied, StorageFull};
    if let redb::Error::DatabaseAlreadyOpen = error {
        return OpenError::InUse { path: file.into() };
    }
    if let redb::Error::Io(source) = error {
        // Any other is of a file that ends too early.
        if matches!(source.kind(), PermissionDenied | NotFound | StorageFull) {
            return OpenError::Io { path: file.into(), source };
        }
        return OpenError::Damaged { path: file.into(), cause: source.to_string() };
    }
    OpenError::Damaged { path: file.into(), cause: error.to_string() }
}

fn read(database: &Database, file: &Path, state: &mut State) -> Result<u64, OpenError> {
    let found = read_tables(database, state).map_err(|error| unusable(file, error))?;
    match found.format {
        FORMAT => Ok(found.commits),
        0 => Err(OpenError::Damaged { path: file.into(), cause: "it names no format".into() }),
        format => Err(OpenError::Format { path: file.into(), found: format }),
    }
}

struct Found {
    format: u64,
    commits: u64,
}

fn read_tables(database: &Database, state: &mut State) -> Result<Found, redb::Error> {
    let transaction = database.begin_read()?;
    let table = transaction.open_table(META)?;
    let number = |name| Ok::<_, redb::Error>(table.get(name)?.map_or(0, |found| found.value()));
    let found = Found { format: number(meta::FORMAT)?, commits: number(meta::COMMITS)? };
    if found.format != FORMAT {
        return Ok(found);
    }
    state.revision = Revision(number(meta::REVISION)?);
    if state.revision > Revision::ZERO {
        state.oldest = state.revision.next();
    }
    for entry in transaction.open_table(LEASES)?.iter()? {
        let (id, seconds) = entry?;
        // As in etcd after a change of leader: nobody could keep it alive meanwhile.
        state.admit(LeaseId(id.value()), Duration::from_secs(seconds.value()));
    }
    state.last_lease = LeaseId(number(meta::LAST_LEASE)? as i64);
    for entry in transaction.open_table(KEYS)?.iter()? {
        let (key, entry) = entry?;
        let (created, written, lease, value) = entry.value();
        state.restore(KeyValue {
            key: key.value().into(),
            value: value.into(),
            create_revision: Revision(created),
            mod_revision: Revision(written),
            lease: (lease != 0).then_some(LeaseId(lease)),
        });
    }
    Ok(found)
}

fn count(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_read()?;
    let table = transaction.open_table(META)?;
    Ok(table.get(meta::COMMITS)?.map_or(0, |found| found.value()))
}

fn write(database: &Database, commit: &Commit, number: u64) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut keys = transaction.open_table(KEYS)?;
        for event in &commit.events {
            let key = &*event.key;
            match event.kind {
                EventKind::Put => {
                    let lease = event.lease.map_or(0, |lease| lease.0);
                    keys.insert(key, (event.create_revision.0, event.mod_revision.0, lease, &*event.value))?;
                }
                EventKind::Delete => {
                    keys.remove(key)?;
                }
            }
        }
        let mut once = transaction.open_table(META)?;
        once.insert(meta::REVISION, commit.revision.0)?;
        once.insert(meta::COMMITS, number)?;
        match commit.lease {
            Some(LeaseChange::Granted(id, ttl)) => {
                transaction.open_table(LEASES)?.insert(id.0, ttl.as_secs())?;
                once.insert(meta::LAST_LEASE, id.0 as u64)?;
            }
            Some(LeaseChange::Ended(id)) => {
                transaction.open_table(LEASES)?.remove(id.0)?;
            }
            None => {}
        }
    }
    // `Durability::Immediate`, redb's default: fsynced when it returns.
    transaction.commit()?;
    Ok(())
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { path, source }
}

fn read_only(error: &dyn Error) -> StoreError {
    let mut cause = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        cause = format!("{cause}: {error}");
        source = error.source();
    }
    StoreError::ReadOnly { cause }
}

#[cfg(test)]
mod tests;
