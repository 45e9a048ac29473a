//! What a container's programs write, as files on disk.
//!
//! Lines are written as Kubernetes' container runtimes write them, so that whoever reads node logs reads these: time, stream, `F` for a
//! whole line or `P` for a part of one, text. Each start of a container has a log of its own. Invariants: one file has at most
//! `FILE_LIMIT` octets and a line more; of a log's older ones `FILES_KEPT` are kept, of a container's logs `LOGS_KEPT`.
//!
//! May depend on std and the clock of `k8s-openapi`. Read first: the CRI logging format of Kubernetes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;

/// Octets of a file before the next is begun, the kubelet's `containerLogMaxSize`.
const FILE_LIMIT: u64 = 10 << 20;
/// Older files that are kept beside it: the kubelet's `containerLogMaxFiles` less one.
const FILES_KEPT: u32 = 4;
/// Logs of a container that are kept: of the start that is, and of the one before, as Kubernetes does.
const LOGS_KEPT: u32 = 2;
/// Octets of one entry; a longer line has several.
const ENTRY_LIMIT: usize = 16 << 10;

/// A stream of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The log of a container.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
    /// What of a line has come, by stream.
    begun: [Vec<u8>; 2],
    /// Entries that are not in the file yet: many short lines are one write.
    pending: Vec<u8>,
}

impl Log {
    /// Opens the log of a container's start, of which the first is 0, below the container's directory, and removes the one that was
    /// kept so far.
    ///
    /// # Errors
    /// The system's.
    pub fn of_start(directory: &Path, start: u32) -> io::Result<Self> {
        if let Some(old) = start.checked_sub(LOGS_KEPT) {
            remove_files(files(&path_of(directory, old)))?;
        }
        Self::open(path_of(directory, start), FILE_LIMIT)
    }

    fn open(path: PathBuf, limit: u64) -> io::Result<Self> {
        let file = File::options().append(true).create(true).open(&path)?;
        let written = file.metadata()?.len();
        Ok(Self { path, file, written, limit, begun: Default::default(), pending: Vec::new() })
    }

    /// Takes what a stream said.
    ///
    /// # Errors
    /// The system's, when the disk takes no more; what was said is lost then.
    pub fn take(&mut self, stream: Stream, said: &[u8]) -> io::Result<()> {
        let head = head(stream);
        let mut line = std::mem::take(&mut self.begun[stream as usize]);
        for part in said.split_inclusive(|&byte| byte == b'\n') {
            line.extend_from_slice(part);
            let whole = line.last() == Some(&b'\n');
            if whole {
                line.pop();
            }
            while line.len() > ENTRY_LIMIT {
                self.entry(&head, b'P', &line[..ENTRY_LIMIT])?;
                line.drain(..ENTRY_LIMIT);
            }
            if whole {
                self.entry(&head, b'F', &line)?;
                line.clear();
            }
        }
        self.begun[stream as usize] = line;
        self.flush()
    }

    /// Writes what of a line has come when no more will.
    ///
    /// # Errors
    /// As [`Log::take`].
    pub fn end(&mut self) -> io::Result<()> {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let line = std::mem::take(&mut self.begun[stream as usize]);
            if !line.is_empty() {
                self.entry(&head(stream), b'P', &line)?;
            }
        }
        self.flush()
    }

    fn entry(&mut self, head: &[u8], tag: u8, text: &[u8]) -> io::Result<()> {
        if self.written >= self.limit {
            self.flush()?;
            self.rotate()?;
        }
        self.written += (head.len() + 1 + 1 + text.len() + 1) as u64;
        for piece in [head, &[tag, b' '], text, b"\n"] {
            self.pending.extend_from_slice(piece);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = self.file.write_all(&self.pending);
        self.pending.clear();
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (0..FILES_KEPT).rev() {
            let older = file(&self.path, number);
            if older.exists() {
                fs::rename(older, file(&self.path, number + 1))?;
            }
        }
        self.file = File::options().append(true).create(true).open(&self.path)?;
        self.written = 0;
        Ok(())
    }
}

/// Returns where the log of a container's start is.
#[must_use]
pub fn path_of(directory: &Path, start: u32) -> PathBuf {
    directory.join(format!("{start}.log"))
}

/// Returns the number of a container's last start, as its logs say.
#[must_use]
pub fn last_start(directory: &Path) -> Option<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.strip_suffix(".log")?.parse().ok()).max()
}

/// Lists the files that a log may have, from its oldest lines to its last.
pub fn files(log: &Path) -> impl Iterator<Item = PathBuf> {
    (0..=FILES_KEPT).rev().map(|number| file(log, number))
}

/// Removes files, those that are there.
pub(super) fn remove_files(paths: impl IntoIterator<Item = PathBuf>) -> io::Result<()> {
    paths.into_iter().try_for_each(|path| match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    })
}

/// Returns where a log's lines are that are so many files old.
fn file(log: &Path, number: u32) -> PathBuf {
    if number == 0 { log.to_owned() } else { log.with_extension(format!("log.{number}")) }
}

/// What all entries begin with that come at once: time and stream.
fn head(stream: Stream) -> Vec<u8> {
    let name = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    format!("{:.9} {name} ", now()).into_bytes()
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // No clock shows a year that it does not take.
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp::new(seconds, since.subsec_nanos() as i32).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entries of a log without their times.
    fn entries(path: &PathBuf) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        let rest = |line: &str| {
            let (time, rest) = line.split_once(' ').unwrap();
            assert!(time.parse::<Timestamp>().is_ok() && time.len() == 30, "{time}");
            rest.to_owned()
        };
        text.lines().map(rest).collect()
    }

    #[test]
    fn lines_are_whole_however_they_come_and_streams_do_not_mix() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = Log::of_start(directory.path(), 0).unwrap();
        log.take(Stream::Stdout, b"one\ntw").unwrap();
        log.take(Stream::Stderr, b"oops\n").unwrap();
        log.take(Stream::Stdout, b"o\n\nthree").unwrap();
        log.take(Stream::Stderr, &[b'x'; ENTRY_LIMIT + 1]).unwrap();
        log.end().unwrap();
        let long = "x".repeat(ENTRY_LIMIT);
        let expected = [
            "stdout F one",
            "stderr F oops",
            "stdout F two",
            "stdout F ",
            &format!("stderr P {long}"),
            "stdout P three",
            "stderr P x",
        ];
        assert_eq!(entries(&path), expected);
    }

    #[test]
    fn a_full_file_makes_room_and_four_older_ones_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = Log::open(path.clone(), 100).unwrap();
        for number in 0..30 {
            log.take(Stream::Stdout, format!("line {number:02}\n").as_bytes()).unwrap();
        }
        let mut names: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2", "0.log.3", "0.log.4"]);
        assert_eq!(entries(&path).last().unwrap(), "stdout F line 29");
        let kept: Vec<usize> = files(&path).take(4).map(|path| entries(&path).len()).collect();
        assert_eq!(kept, [3; 4], "an entry has 48 octets, and the third goes beyond 100");
    }

    #[test]
    fn however_often_a_container_starts_the_logs_of_two_starts_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        for start in 0..10 {
            let mut log = Log::of_start(directory.path(), start).unwrap();
            log.take(Stream::Stdout, b"a line\n").unwrap();
            log.rotate().unwrap();
        }
        let mut names: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["8.log", "8.log.1", "9.log", "9.log.1"]);
        assert_eq!(last_start(directory.path()), Some(9));
    }
}
