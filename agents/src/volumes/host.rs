//! A directory of the host as a tree in memory.
//!
//! `volumes.rs` reads one for each `hostPath` when its pod is made. Every name is opened below its open directory and never through a link,
//! so that nothing outside of the directory is read, whatever others do there meanwhile; links are kept as text, for the container's
//! view to resolve.
//!
//! Invariants: at most [`OCTETS_LIMIT`] octets, [`ENTRY_LIMIT`] entries and [`DEPTH_LIMIT`] directories deep; nothing waits for a FIFO
//! or a device: only directories, regular files and links are taken. Reads the host's files: for the control thread only.
//!
//! May depend on `rustix`.
//!
//! Read first: openat(2), "O_NOFOLLOW".

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
};

use flatnet_engine::pod::{ENTRY_LIMIT, Entry};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, readlinkat, statat};
use thiserror::Error;

/// Octets of all files of one volume.
const OCTETS_LIMIT: usize = 64 * 1024 * 1024;
/// Directories within directories.
const DEPTH_LIMIT: usize = 32;

/// What must lie at a path of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// A directory or a file; what is absent is an empty directory, for nothing is created on the host.
    Any,
    /// A directory.
    Directory,
    /// A directory; what is absent is an empty one.
    DirectoryOrEmpty,
    /// A file.
    File,
    /// A file; what is absent is an empty one.
    FileOrEmpty,
}

/// Why a path of the host is no volume.
#[derive(Debug, Error)]
pub enum HostError {
    /// The manifest's source makes no sense.
    #[error("{0}")]
    Source(String),
    /// It cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else lies there.
    #[error("{path} is not a {wanted}")]
    Kind {
        /// The path.
        path: String,
        /// What should be there.
        wanted: &'static str,
    },
    /// There is too much.
    #[error("{path} holds more than {limit}")]
    TooMuch {
        /// The path.
        path: String,
        /// The bound.
        limit: String,
    },
    /// A name is no text.
    #[error("{path} holds a name that is not UTF-8: {name:?}")]
    Name {
        /// The path.
        path: String,
        /// The name, as far as it is text.
        name: String,
    },
}

/// Reads what lies at a path.
///
/// # Errors
/// [`HostError`].
pub(super) fn read(path: &str, kind: HostKind) -> Result<Entry, HostError> {
    let failed = |source: rustix::io::Errno| HostError::Read { path: path.into(), source: source.into() };
    let mut walk = Walk { path, octets: 0, entries: 0 };
    // A file of another type than regular is not opened: that could wait, or act.
    let found = match statat(CWD, path, AtFlags::empty()) {
        Ok(found) => FileType::from_raw_mode(found.st_mode),
        Err(rustix::io::Errno::NOENT) if matches!(kind, HostKind::Any | HostKind::DirectoryOrEmpty) => {
            return Ok(Entry::directory());
        }
        Err(rustix::io::Errno::NOENT) if kind == HostKind::FileOrEmpty => {
            return Ok(Entry::File(Vec::new().into()));
        }
        Err(error) => return Err(failed(error)),
    };
    let wrong = |wanted| Err(HostError::Kind { path: path.into(), wanted });
    match (found, kind) {
        (FileType::Directory, HostKind::Any | HostKind::Directory | HostKind::DirectoryOrEmpty)
        | (FileType::RegularFile, HostKind::Any | HostKind::File | HostKind::FileOrEmpty) => {
            // The path itself is its author's: links in it are followed.
            let file = openat(CWD, path, open_flags(), Mode::empty()).map_err(failed)?;
            walk.opened(file, 0).map(|entry| entry.unwrap_or_else(Entry::directory))
        }
        (_, HostKind::Any) => wrong("directory or file"),
        (_, HostKind::Directory | HostKind::DirectoryOrEmpty) => wrong("directory"),
        (_, HostKind::File | HostKind::FileOrEmpty) => wrong("file"),
    }
}

fn open_flags() -> OFlags {
    OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY
}

struct Walk<'a> {
    path: &'a str,
    octets: usize,
    entries: usize,
}

impl Walk<'_> {
    /// Takes an open directory or regular file; `None` when it has become something else.
    fn opened(&mut self, file: OwnedFd, depth: usize) -> Result<Option<Entry>, HostError> {
        let found = fstat(&file).map_err(|error| self.failed(error))?;
        self.entries += 1;
        if self.entries > ENTRY_LIMIT {
            return Err(self.too_much(format!("{ENTRY_LIMIT} files and directories")));
        }
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory if depth == DEPTH_LIMIT => {
                Err(self.too_much(format!("{DEPTH_LIMIT} directories within directories")))
            }
            FileType::Directory => self.directory(&file, depth).map(Some),
            FileType::RegularFile => self.file(file).map(Some),
            FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => Ok(None),
        }
    }

    fn directory(&mut self, directory: &OwnedFd, depth: usize) -> Result<Entry, HostError> {
        let mut names = BTreeMap::new();
        let entries = Dir::read_from(directory).map_err(|error| self.failed(error))?;
        for entry in entries {
            let entry = entry.map_err(|error| self.failed(error))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let text = name.to_str().map_err(|_| HostError::Name {
                path: self.path.into(),
                name: name.to_string_lossy().into_owned(),
            })?;
            if let Some(entry) = self.below(directory, text, depth)? {
                names.insert(text.to_owned(), entry);
            }
        }
        Ok(Entry::Directory(names))
    }

    /// Takes what a name in an open directory stands for; `None` when that is gone or is not taken.
    fn below(&mut self, directory: &OwnedFd, name: &str, depth: usize) -> Result<Option<Entry>, HostError> {
        use rustix::io::Errno;
        let found = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => FileType::from_raw_mode(found.st_mode),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(self.failed(error)),
        };
        match found {
            FileType::Symlink => {
                let target = readlinkat(directory, name, Vec::new()).map_err(|error| self.failed(error))?;
                self.entries += 1;
                Ok(target.into_string().ok().map(Entry::Link))
            }
            FileType::Directory | FileType::RegularFile => {
                match openat(directory, name, open_flags() | OFlags::NOFOLLOW, Mode::empty()) {
                    Ok(file) => self.opened(file, depth + 1),
                    // Replaced by a link, or gone, since it was looked at.
                    Err(Errno::LOOP | Errno::NOENT) => Ok(None),
                    Err(error) => Err(self.failed(error)),
                }
            }
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => Ok(None),
        }
    }

    fn file(&mut self, file: OwnedFd) -> Result<Entry, HostError> {
        let room = OCTETS_LIMIT - self.octets;
        let mut content = Vec::new();
        // One octet more than there is room for tells a file that is too long.
        let read = File::from(file).take(room as u64 + 1).read_to_end(&mut content);
        read.map_err(|source| HostError::Read { path: self.path.into(), source })?;
        if content.len() > room {
            return Err(self.too_much(format!("{} MiB", OCTETS_LIMIT >> 20)));
        }
        self.octets += content.len();
        Ok(Entry::File(content.into()))
    }

    fn failed(&self, error: rustix::io::Errno) -> HostError {
        HostError::Read { path: self.path.into(), source: error.into() }
    }

    fn too_much(&self, limit: String) -> HostError {
        HostError::TooMuch { path: self.path.into(), limit }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn names(entry: &Entry) -> Vec<&str> {
        match entry {
            Entry::Directory(names) => names.keys().map(String::as_str).collect(),
            Entry::File(_) | Entry::Link(_) => Vec::new(),
        }
    }

    #[test]
    fn links_are_kept_as_text_and_what_could_wait_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("html");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(directory.path().join("secret"), "secret").unwrap();
        fs::write(root.join("index.html"), "index").unwrap();
        symlink("../../secret", root.join("sub/out")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        rustix::fs::mkfifoat(CWD, root.join("fifo"), Mode::RUSR).unwrap();
        let path = root.to_str().unwrap();

        let Entry::Directory(read) = read(path, HostKind::Directory).unwrap() else { panic!("no directory") };
        assert_eq!(read.keys().collect::<Vec<_>>(), ["index.html", "sub"]);
        assert_eq!(read["index.html"], Entry::File(b"index".to_vec().into()));
        let sub = Entry::Directory([("out".into(), Entry::Link("../../secret".into()))].into());
        assert_eq!(read["sub"], sub);
    }

    /// Kubernetes, "Volumes", the types of a `hostPath`.
    #[test]
    fn what_lies_there_must_be_what_is_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("file"), "x").unwrap();
        rustix::fs::mkfifoat(CWD, path("fifo"), Mode::RUSR).unwrap();
        use HostKind::{Any, Directory, DirectoryOrEmpty, File, FileOrEmpty};
        for (name, kind, works) in [
            ("file", File, true),
            ("file", FileOrEmpty, true),
            ("file", Any, true),
            ("file", DirectoryOrEmpty, false),
            ("file", Directory, false),
            ("", Directory, true),
            ("", File, false),
            ("none", Directory, false),
            ("none", File, false),
            ("none", Any, true),
            ("none", DirectoryOrEmpty, true),
            ("none", FileOrEmpty, true),
            ("fifo", File, false),
            ("fifo", Any, false),
        ] {
            assert_eq!(read(&path(name), kind).is_ok(), works, "{name} {kind:?}");
        }
        assert!(names(&read(&path("none"), DirectoryOrEmpty).unwrap()).is_empty());
    }

    #[test]
    fn what_is_too_much_is_refused_by_its_bound() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        let refused = || read(path, HostKind::Directory).unwrap_err().to_string();
        let large = directory.path().join("large");
        fs::File::create(&large).unwrap().set_len(OCTETS_LIMIT as u64 + 1).unwrap();
        assert_eq!(refused(), format!("{path} holds more than 64 MiB"));
        fs::remove_file(large).unwrap();
        let deep = directory.path().join(["d"; DEPTH_LIMIT].join("/"));
        fs::create_dir_all(deep).unwrap();
        assert_eq!(refused(), format!("{path} holds more than 32 directories within directories"));
        fs::remove_dir_all(directory.path().join("d")).unwrap();
        for number in 0..ENTRY_LIMIT {
            fs::write(directory.path().join(number.to_string()), "").unwrap();
        }
        assert_eq!(refused(), format!("{path} holds more than 4096 files and directories"));
    }
}
