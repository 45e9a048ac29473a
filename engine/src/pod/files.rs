//! A container's view of its files: its writable layer, and volumes mounted over it.
//!
//! Applications and programs read and write through it, by path. Links are resolved here, step by step, in the container's own view, as
//! the kernel does for a process in its mount namespace: `..` and absolute targets end at the container's root.
//!
//! Invariants: no path leads out of the container's mounts, and none to the host; at most [`LINK_LIMIT`] links a path.
//! Depends on `volume`. Read first: path_resolution(7), mount_namespaces(7).

#[cfg(test)]
mod tests;

use super::config::{Mount, PodError};
use super::volume::{Entry, Volume};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// Links that one path may follow, as on Linux.
const LINK_LIMIT: usize = 40;

/// Why a path cannot be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileError {
    NotFound,
    NotADirectory,
    IsADirectory,
    TooManyLinks,
    ReadOnly,
    NoSpace,
    Exists,
    Busy,
}

impl FileError {
    /// Returns what libc says about it.
    pub(super) const fn text(self) -> &'static str {
        match self {
            FileError::NotFound => "No such file or directory",
            FileError::NotADirectory => "Not a directory",
            FileError::IsADirectory => "Is a directory",
            FileError::TooManyLinks => "Too many levels of symbolic links",
            FileError::ReadOnly => "Read-only file system",
            FileError::NoSpace => "No space left on device",
            FileError::Exists => "File exists",
            FileError::Busy => "Device or resource busy",
        }
    }
}

/// A volume at a place in a container.
#[derive(Debug, Clone)]
pub(super) struct Mounted {
    path: Vec<String>,
    volume: usize,
    sub_path: Vec<String>,
    read_only: bool,
}

/// Mounts a container's layer and volumes; a `subPath` that is missing from a volume that can be written is made.
///
/// # Errors
/// [`PodError::NoSuchVolume`], [`PodError::BadSubPath`].
pub(super) fn mount(
    container: &str,
    layer: usize,
    mounts: &[Mount],
    volumes: &mut [Volume],
) -> Result<Vec<Mounted>, PodError> {
    let mut mounted =
        vec![Mounted { path: Vec::new(), volume: layer, sub_path: Vec::new(), read_only: false }];
    for mount in mounts {
        let missing =
            || PodError::NoSuchVolume { container: container.to_owned(), volume: mount.volume.clone() };
        let named = |volume: &Volume| volume.name() == mount.volume && !mount.volume.is_empty();
        let volume = volumes.iter().position(named).ok_or_else(missing)?;
        let sub_path = names(&mount.sub_path);
        if sub_path.iter().any(|name| name == "..") || !make_sub_path(&mut volumes[volume], &sub_path) {
            let (container, sub_path) = (container.to_owned(), mount.sub_path.clone());
            return Err(PodError::BadSubPath { container, volume: mount.volume.clone(), sub_path });
        }
        mounted.push(Mounted { path: names(&mount.path), volume, sub_path, read_only: mount.read_only });
    }
    // The longest path is the innermost mount: the last that fits counts.
    mounted.sort_by_key(|mount| mount.path.len());
    Ok(mounted)
}

/// Says whether a `subPath` is there, after making the directories that are missing. A link on the way is not followed: its volume may
/// have been filled by others.
fn make_sub_path(volume: &mut Volume, path: &[String]) -> bool {
    (1..=path.len()).all(|length| match volume.entry(&path[..length]) {
        Some(Entry::Directory(_)) => true,
        Some(Entry::File(_)) => length == path.len(),
        Some(Entry::Link(_)) => false,
        None => !volume.is_read_only() && volume.put(&path[..length], Entry::directory()),
    })
}

/// The names of a path; `..` stays for whoever resolves it.
fn names(path: &str) -> Vec<String> {
    path.split('/').filter(|name| !name.is_empty() && *name != ".").map(String::from).collect()
}

/// A container's files.
#[derive(Debug)]
pub(super) struct Files<'a> {
    pub(super) volumes: &'a mut [Volume],
    pub(super) mounts: &'a [Mounted],
}

/// Where a path ends.
struct Place<'a> {
    mount: &'a Mounted,
    /// The path in the container, without links.
    path: Vec<String>,
}

impl Place<'_> {
    /// The path in the volume.
    fn inside(&self) -> Vec<String> {
        let below = &self.path[self.mount.path.len()..];
        self.mount.sub_path.iter().chain(below).cloned().collect()
    }
}

impl Files<'_> {
    /// Says whether a path lies in a mounted volume.
    pub(super) fn is_mounted(&self, path: &str) -> bool {
        self.mount_of(&names(path)).is_some_and(|mount| !mount.path.is_empty())
    }

    /// Reads a file.
    pub(super) fn read(&self, path: &str) -> Result<Arc<Vec<u8>>, FileError> {
        let place = self.resolve(path)?;
        match self.entry(&place.path) {
            Some(Entry::File(_)) if path.ends_with('/') => Err(FileError::NotADirectory),
            Some(Entry::File(bytes)) => Ok(Arc::clone(bytes)),
            Some(Entry::Directory(_)) => Err(FileError::IsADirectory),
            Some(Entry::Link(_)) => Err(FileError::TooManyLinks),
            None if self.leads_to_mount(&place.path) => Err(FileError::IsADirectory),
            None => Err(FileError::NotFound),
        }
    }

    /// Lists the names in a directory, mount points among them; a file is its own only name.
    pub(super) fn list(&self, path: &str) -> Result<Vec<String>, FileError> {
        let place = self.resolve(path)?;
        let mut found = BTreeSet::new();
        match self.entry(&place.path) {
            Some(Entry::Directory(entries)) => found.extend(entries.keys().cloned()),
            Some(Entry::File(_) | Entry::Link(_)) => return Ok(vec![path.to_owned()]),
            None if self.leads_to_mount(&place.path) => {}
            None => return Err(FileError::NotFound),
        }
        let depth = place.path.len();
        let below = self.mounts.iter().filter(|mount| mount.path.len() > depth);
        found.extend(
            below.filter(|mount| mount.path.starts_with(&place.path)).map(|mount| mount.path[depth].clone()),
        );
        Ok(found.into_iter().collect())
    }

    /// Writes a file, anew or at its end.
    pub(super) fn write(&mut self, path: &str, bytes: &[u8], append: bool) -> Result<(), FileError> {
        let place = self.resolve(path)?;
        let found = self.entry(&place.path);
        let is_directory = matches!(found, Some(Entry::Directory(_)));
        if is_directory || path.ends_with('/') || (found.is_none() && self.leads_to_mount(&place.path)) {
            return Err(FileError::IsADirectory);
        }
        if append && matches!(found, Some(Entry::File(_))) {
            let (volume, inside) = (self.writable(place.mount)?, place.inside());
            let fits = self.volumes[volume].append(&inside, bytes);
            return if fits { Ok(()) } else { Err(FileError::NoSpace) };
        }
        self.put(path, Entry::File(Arc::new(bytes.to_vec())))
    }

    /// Makes a directory; with `parents` those on the way, too, and none need be new.
    pub(super) fn make_directory(&mut self, path: &str, parents: bool) -> Result<(), FileError> {
        let all = names(path);
        let first = if parents { 1 } else { all.len().max(1) };
        for length in first..=all.len() {
            let part = format!("/{}", all[..length].join("/"));
            let place = self.resolve(&part)?;
            match self.entry(&place.path) {
                Some(Entry::Directory(_)) if parents => {}
                None if parents && self.leads_to_mount(&place.path) => {}
                None => self.put(&part, Entry::directory())?,
                Some(Entry::Directory(_) | Entry::File(_) | Entry::Link(_)) => return Err(FileError::Exists),
            }
        }
        Ok(())
    }

    /// Removes a file, a link or, with what is in it when `recursive`, a directory.
    pub(super) fn remove(&mut self, path: &str, recursive: bool) -> Result<(), FileError> {
        let all = names(path);
        let Some((name, parent)) = all.split_last() else { return Err(FileError::Busy) };
        let mut place = self.resolve(&format!("/{}", parent.join("/")))?;
        place.path.push(name.clone());
        if self.leads_to_mount(&place.path) {
            return Err(FileError::Busy);
        }
        match self.entry(&place.path) {
            None => return Err(FileError::NotFound),
            Some(Entry::Directory(_)) if !recursive => return Err(FileError::IsADirectory),
            Some(Entry::Directory(_) | Entry::File(_) | Entry::Link(_)) => {}
        }
        let (volume, inside) = (self.writable(place.mount)?, place.inside());
        self.volumes[volume].remove(&inside).map(drop).ok_or(FileError::NotFound)
    }

    fn put(&mut self, path: &str, entry: Entry) -> Result<(), FileError> {
        let place = self.resolve(path)?;
        let (volume, inside) = (self.writable(place.mount)?, place.inside());
        // The way to a mount point need not be in the layer yet.
        for length in 1..inside.len() {
            if self.volumes[volume].entry(&inside[..length]).is_none()
                && !self.volumes[volume].put(&inside[..length], Entry::directory())
            {
                return Err(FileError::NoSpace);
            }
        }
        if self.volumes[volume].put(&inside, entry) { Ok(()) } else { Err(FileError::NoSpace) }
    }

    fn writable(&self, mount: &Mounted) -> Result<usize, FileError> {
        if mount.read_only || self.volumes[mount.volume].is_read_only() {
            return Err(FileError::ReadOnly);
        }
        Ok(mount.volume)
    }

    /// Follows a path to its end, links and all. The last name need not exist.
    fn resolve(&self, path: &str) -> Result<Place<'_>, FileError> {
        let mut ahead: VecDeque<String> = names(path).into();
        let mut path: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == ".." {
                path.pop();
                continue;
            }
            path.push(name);
            match self.entry(&path) {
                Some(Entry::Link(target)) => {
                    links += 1;
                    if links > LINK_LIMIT {
                        return Err(FileError::TooManyLinks);
                    }
                    path.pop();
                    if target.starts_with('/') {
                        path.clear();
                    }
                    for name in names(target).into_iter().rev() {
                        ahead.push_front(name);
                    }
                }
                Some(Entry::File(_)) if !ahead.is_empty() => return Err(FileError::NotADirectory),
                Some(Entry::File(_) | Entry::Directory(_)) => {}
                None if ahead.is_empty() || self.leads_to_mount(&path) => {}
                None => return Err(FileError::NotFound),
            }
        }
        let mount = self.mount_of(&path).ok_or(FileError::NotFound)?;
        Ok(Place { mount, path })
    }

    fn entry(&self, path: &[String]) -> Option<&Entry> {
        let mount = self.mount_of(path)?;
        let below = &path[mount.path.len()..];
        let inside: Vec<String> = mount.sub_path.iter().chain(below).cloned().collect();
        self.volumes[mount.volume].entry(&inside)
    }

    fn mount_of(&self, path: &[String]) -> Option<&Mounted> {
        self.mounts.iter().rev().find(|mount| path.starts_with(&mount.path))
    }

    /// Says whether a path is a mount point or on the way to one.
    fn leads_to_mount(&self, path: &[String]) -> bool {
        self.mounts.iter().any(|mount| !mount.path.is_empty() && mount.path.starts_with(path))
    }
}
