//! A container's view of its files: its writable layer, and volumes mounted over it.
//!
//! Applications and programs read and write through it, by path. Links are resolved here, step by step, in the container's own view, as
//! the kernel does for a process in its mount namespace: `..` and absolute targets end at the container's root.
//!
//! Invariants: no path leads out of the container's mounts, and none to the host; at most [`LINK_LIMIT`] links a path.
//! Depends on `volume`. Read first: path_resolution(7), mount_namespaces(7).

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
    pub(super) fn read(&self, path: &str) -> Result<Arc<[u8]>, FileError> {
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
        let content: Arc<[u8]> = match self.entry(&place.path) {
            Some(Entry::Directory(_)) => return Err(FileError::IsADirectory),
            Some(Entry::File(old)) if append => [&old[..], bytes].concat().into(),
            Some(Entry::File(_) | Entry::Link(_)) | None => bytes.into(),
        };
        if self.leads_to_mount(&place.path) || path.ends_with('/') {
            return Err(FileError::IsADirectory);
        }
        self.put(path, Entry::File(content))
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(text: &str) -> Entry {
        Entry::File(text.as_bytes().into())
    }

    fn directory<const N: usize>(entries: [(&str, Entry); N]) -> Entry {
        Entry::Directory(entries.into_iter().map(|(name, entry)| (name.to_owned(), entry)).collect())
    }

    fn at(volume: &str, path: &str, sub_path: &str) -> Mount {
        Mount { volume: volume.into(), path: path.into(), sub_path: sub_path.into(), read_only: false }
    }

    fn text(files: &Files<'_>, path: &str) -> Result<String, FileError> {
        files.read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A layer, a volume of the host with links in it, and one for writing.
    fn volumes() -> Vec<Volume> {
        let host = directory([
            ("index.html", file("index")),
            ("sub", directory([("page", file("page")), ("up", Entry::Link("../index.html".into()))])),
            ("out", Entry::Link("../../../../etc/passwd".into())),
            ("absolute", Entry::Link("/data/kept".into())),
            ("round", Entry::Link("round".into())),
        ]);
        vec![Volume::layer(), Volume::read_only("html", host), Volume::empty("data", 100)]
    }

    #[test]
    fn links_and_dots_end_in_the_containers_own_view() {
        let mut volumes = volumes();
        let mounts = [at("html", "/usr/share/html", ""), at("data", "/data", "")];
        let mounts = mount("c", 0, &mounts, &mut volumes).unwrap();
        let mut files = Files { volumes: &mut volumes, mounts: &mounts };
        files.write("/data/kept", b"kept", false).unwrap();
        for (path, found) in [
            ("/usr/share/html/index.html", Ok("index")),
            ("/usr/share/html/sub/up", Ok("index")),
            ("/usr/share/html/sub/../../html/./sub//page", Ok("page")),
            ("/usr/share/html/../../../../../data/kept", Ok("kept")),
            ("/usr/share/html/absolute", Ok("kept")),
            ("/usr/share/html/out", Err(FileError::NotFound)),
            ("/usr/share/html/round", Err(FileError::TooManyLinks)),
            ("/usr/share/html/index.html/x", Err(FileError::NotADirectory)),
            ("/usr/share/html", Err(FileError::IsADirectory)),
            ("/usr/share", Err(FileError::IsADirectory)),
            ("/usr/other", Err(FileError::NotFound)),
            ("/etc/passwd", Err(FileError::NotFound)),
        ] {
            assert_eq!(text(&files, path), found.map(String::from), "{path}");
        }
        assert_eq!(files.list("/").unwrap(), ["data", "usr"]);
        assert_eq!(files.list("/usr/share/").unwrap(), ["html"]);
    }

    #[test]
    fn what_is_read_only_full_or_a_mount_point_stays_as_it_is() {
        let mut volumes = volumes();
        let mounts = [
            at("html", "/html", ""),
            at("data", "/data", ""),
            Mount { read_only: true, ..at("data", "/same", "") },
        ];
        let mounts = mount("c", 0, &mounts, &mut volumes).unwrap();
        let mut files = Files { volumes: &mut volumes, mounts: &mounts };
        assert_eq!(files.write("/html/index.html", b"x", false), Err(FileError::ReadOnly));
        assert_eq!(files.remove("/html/index.html", false), Err(FileError::ReadOnly));
        assert_eq!(files.write("/same/a", b"x", false), Err(FileError::ReadOnly));
        assert_eq!(files.remove("/data", true), Err(FileError::Busy));
        assert_eq!(files.write("/data", b"x", false), Err(FileError::IsADirectory));

        files.write("/data/a", &[b'a'; 60], false).unwrap();
        files.write("/data/a", &[b'a'; 40], true).unwrap();
        assert_eq!(files.write("/data/b", b"b", false), Err(FileError::NoSpace));
        assert_eq!(files.write("/data/a", b"a", true), Err(FileError::NoSpace));
        assert_eq!(text(&files, "/same/a").unwrap().len(), 100, "one volume, two places");
        files.remove("/data/a", false).unwrap();
        files.write("/data/b", &[b'b'; 100], false).unwrap();

        files.make_directory("/tmp/a/b", true).unwrap();
        assert_eq!(files.make_directory("/tmp/a", false), Err(FileError::Exists));
        assert_eq!(files.make_directory("/no/a", false), Err(FileError::NotFound));
        files.write("/tmp/a/b/c", b"c", false).unwrap();
        assert_eq!(files.remove("/tmp/a", false), Err(FileError::IsADirectory));
        files.remove("/tmp/a", true).unwrap();
        assert_eq!(text(&files, "/tmp/a/b/c"), Err(FileError::NotFound));
    }

    /// Kubernetes, volumes, "Using subPath".
    #[test]
    fn a_sub_path_is_made_where_it_can_be_and_follows_no_link() {
        let mut volumes = volumes();
        let mounts = [at("data", "/a", "one/two"), at("html", "/page", "sub/page"), at("data", "/all", "")];
        let mounts = mount("c", 0, &mounts, &mut volumes).unwrap();
        let mut files = Files { volumes: &mut volumes, mounts: &mounts };
        files.write("/a/x", b"x", false).unwrap();
        assert_eq!(text(&files, "/all/one/two/x").unwrap(), "x");
        assert_eq!(text(&files, "/page").unwrap(), "page");
        assert_eq!(
            text(&files, "/a/../one"),
            Err(FileError::NotFound),
            "`..` is the container's, not the volume's"
        );
        for (volume, sub_path) in [("html", "none"), ("html", "out"), ("data", "../x"), ("none", "")] {
            assert!(
                mount("c", 0, &[at(volume, "/x", sub_path)], &mut volumes).is_err(),
                "{volume} {sub_path}"
            );
        }
    }

    proptest! {
        /// Whatever a path says, it finds what its volumes hold or nothing.
        #[test]
        fn no_path_panics_or_leads_out(path in "(/|\\.\\.|\\.|html|sub|up|out|round|absolute|index.html|page){0,24}") {
            let mut volumes = volumes();
            let mounts = mount("c", 0, &[at("html", "/html", ""), at("data", "/html/data", "")], &mut volumes).unwrap();
            let mut files = Files { volumes: &mut volumes, mounts: &mounts };
            if let Ok(found) = text(&files, &path) {
                prop_assert!(["index", "page"].contains(&found.as_str()));
            }
            let _ = files.list(&path);
            let _ = files.make_directory(&path, true);
            let _ = files.write(&path, b"page", true);
            let _ = files.remove(&path, true);
            let octets: usize = files.volumes.iter().map(|volume| volume.entry(&[]).map_or(0, |entry| {
                fn sum(entry: &Entry) -> usize {
                    match entry {
                        Entry::File(bytes) => bytes.len(),
                        Entry::Link(_) => 0,
                        Entry::Directory(names) => names.values().map(sum).sum(),
                    }
                }
                sum(entry)
            })).sum();
            prop_assert!(octets <= 14);
        }
    }
}
