//! A program that somebody runs in a real pod beside its containers'.
//!
//! `flatnet exec` has [`super::Runtime`] start one. Invariants: nothing here waits: what its input does not take stays here until
//! it does; it is ended with its value.
//!
//! May depend on [`super::init`]. Read first: `container.rs`.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin};

use rustix::io::ioctl_fionbio;
use rustix::process::Signal;

use super::container::{signal, streams};
use super::init::{ContainerSpec, FAILURE_FILE, PROCESS_FILE, Role, left};
use crate::kubelet::KILLED;

/// Octets that are read at once.
const READ_LIMIT: usize = 1 << 20;

/// A running program.
#[derive(Debug)]
pub struct Exec {
    child: Child,
    state: PathBuf,
    input: Option<ChildStdin>,
    /// What its input has not taken yet.
    waiting: VecDeque<u8>,
    /// Whether its input ends there.
    ends: bool,
}

impl Exec {
    /// Starts it; the directory of the description is its own and goes with it.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn start(spec: &ContainerSpec) -> io::Result<Self> {
        let (mut child, input) = Role::Container.start(spec)?;
        let mut files = streams(&child).chain([input.as_fd()]);
        let prepared = files.try_for_each(|file| ioctl_fionbio(file, true));
        drop(files);
        if let Err(error) = prepared {
            child.kill()?;
            child.wait()?;
            return Err(error.into());
        }
        let state = spec.state.clone();
        Ok(Self { child, state, input: Some(input), waiting: VecDeque::new(), ends: false })
    }

    /// Takes what it wrote since the last call, to both streams, and its exit code once it ended.
    pub fn output(&mut self) -> (Vec<u8>, Option<i32>) {
        self.feed();
        // Before it listens: what was written before the end is heard.
        let status = self.child.try_wait().ok().flatten();
        let mut bytes = Vec::new();
        if let Some(output) = &mut self.child.stdout {
            // It has nothing more to say just now, or will not have.
            let _ = output.take(READ_LIMIT as u64).read_to_end(&mut bytes);
        }
        if let Some(errors) = &mut self.child.stderr {
            let _ = errors.take(READ_LIMIT as u64).read_to_end(&mut bytes);
        }
        let Some(status) = status.filter(|_| bytes.len() < READ_LIMIT) else { return (bytes, None) };
        if let Some(failure) = left(&self.state, FAILURE_FILE) {
            bytes.extend_from_slice(failure.as_bytes());
            bytes.push(b'\n');
        }
        (bytes, Some(status.code().unwrap_or(KILLED)))
    }

    /// Says whether it should be given more standard input now.
    pub fn wants_input(&mut self) -> bool {
        self.feed();
        self.waiting.len() < READ_LIMIT
    }

    /// Gives it standard input.
    pub fn input(&mut self, bytes: &[u8]) {
        self.waiting.extend(bytes);
        self.feed();
    }

    /// Ends its standard input.
    pub fn close_input(&mut self) {
        self.ends = true;
        self.feed();
    }

    /// Ends it as Ctrl-C does.
    pub fn interrupt(&mut self) {
        signal(&mut self.child, (&self.state, PROCESS_FILE), Signal::INT);
    }

    fn feed(&mut self) {
        while let Some(input) = &mut self.input
            && !self.waiting.is_empty()
        {
            match input.write(self.waiting.as_slices().0) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It reads no more.
                Err(_) => (self.input, self.ends) = (None, true),
            }
        }
        if self.ends {
            self.input = None;
            self.waiting.clear();
        }
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        signal(&mut self.child, (&self.state, PROCESS_FILE), Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.state);
    }
}
