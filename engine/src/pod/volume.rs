//! A volume: a tree of directories, files and symbolic links in memory.
//!
//! The control side fills one from a directory of the host or leaves it empty; the containers of a pod share it through `files.rs`, and it
//! ends with the pod. Each container has one more, its writable layer.
//!
//! Invariants: a volume holds at most its limit of octets and [`ENTRY_LIMIT`] entries; a name is never empty, `.` or `..` and has no
//! `/`; nothing here reads the host. Depends on nothing. Read first: `docs/adr/0019-volumes-are-memory.md`.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Octets that an `emptyDir` without a limit holds.
pub const DEFAULT_VOLUME_LIMIT: usize = 64 * 1024 * 1024;
/// Octets of a container's writable layer.
const LAYER_LIMIT: usize = 1024 * 1024;
/// Files, directories and links of one volume.
pub const ENTRY_LIMIT: usize = 4096;

/// What a name in a directory stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory, by the names in it.
    Directory(BTreeMap<String, Entry>),
    /// A file's content.
    File(Arc<Vec<u8>>),
    /// A symbolic link: a path that a container's view resolves, never the host.
    Link(String),
}

impl Entry {
    /// Makes an empty directory.
    #[must_use]
    pub const fn directory() -> Self {
        Entry::Directory(BTreeMap::new())
    }

    /// Octets of all files below, and how many entries there are.
    fn size(&self) -> (usize, usize) {
        match self {
            Entry::File(bytes) => (bytes.len(), 1),
            Entry::Link(_) => (0, 1),
            Entry::Directory(names) => names.values().fold((0, 1), |(octets, entries), entry| {
                let below = entry.size();
                (octets + below.0, entries + below.1)
            }),
        }
    }
}

/// A volume of a pod.
#[derive(Debug, Clone)]
pub struct Volume {
    name: String,
    root: Entry,
    read_only: bool,
    limit: usize,
    octets: usize,
    entries: usize,
}

impl Volume {
    /// Makes an empty volume for at most so many octets.
    #[must_use]
    pub fn empty(name: &str, limit: usize) -> Self {
        Volume {
            name: name.to_owned(),
            root: Entry::directory(),
            read_only: false,
            limit,
            octets: 0,
            entries: 1,
        }
    }

    /// Makes a volume that nobody changes; its root may be a single file.
    #[must_use]
    pub fn read_only(name: &str, root: Entry) -> Self {
        let (octets, entries) = root.size();
        Volume { name: name.to_owned(), root, read_only: true, limit: octets, octets, entries }
    }

    /// Makes the writable layer of a container.
    pub(super) fn layer() -> Self {
        Volume::empty("", LAYER_LIMIT)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Finds an entry; links on the way are not followed.
    pub(super) fn entry(&self, path: &[String]) -> Option<&Entry> {
        path.iter().try_fold(&self.root, |entry, name| match entry {
            Entry::Directory(names) => names.get(name),
            Entry::File(_) | Entry::Link(_) => None,
        })
    }

    /// Puts an entry in place of what is there; false when it does not fit or its directory is missing.
    pub(super) fn put(&mut self, path: &[String], entry: Entry) -> bool {
        let old = self.entry(path).map_or((0, 0), Entry::size);
        let new = entry.size();
        let (octets, entries) = (self.octets - old.0 + new.0, self.entries - old.1 + new.1);
        // A file may be there already: writing it anew takes no further entry.
        if octets > self.limit || entries > ENTRY_LIMIT.max(self.entries) {
            return false;
        }
        let done = match path.split_last() {
            None => {
                self.root = entry;
                true
            }
            Some((name, parent)) => match self.directory_mut(parent) {
                Some(names) => {
                    names.insert(name.clone(), entry);
                    true
                }
                None => false,
            },
        };
        if done {
            (self.octets, self.entries) = (octets, entries);
        }
        done
    }

    /// Writes at the end of a file; false when it does not fit or there is none. What somebody reads meanwhile stays as it was.
    pub(super) fn append(&mut self, path: &[String], bytes: &[u8]) -> bool {
        if self.octets + bytes.len() > self.limit {
            return false;
        }
        let Some(Entry::File(content)) = self.entry_mut(path) else { return false };
        Arc::make_mut(content).extend_from_slice(bytes);
        self.octets += bytes.len();
        true
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, path: &[String]) -> Option<Entry> {
        let (name, parent) = path.split_last()?;
        let entry = self.directory_mut(parent)?.remove(name)?;
        let (octets, entries) = entry.size();
        self.octets -= octets;
        self.entries -= entries;
        Some(entry)
    }

    fn directory_mut(&mut self, path: &[String]) -> Option<&mut BTreeMap<String, Entry>> {
        match self.entry_mut(path)? {
            Entry::Directory(names) => Some(names),
            Entry::File(_) | Entry::Link(_) => None,
        }
    }

    fn entry_mut(&mut self, path: &[String]) -> Option<&mut Entry> {
        path.iter().try_fold(&mut self.root, |entry, name| match entry {
            Entry::Directory(names) => names.get_mut(name),
            Entry::File(_) | Entry::Link(_) => None,
        })
    }
}
