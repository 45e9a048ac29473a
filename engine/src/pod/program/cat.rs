//! `cat`: files, or what it reads, to its output.
//!
//! Invariant: no more than [`FULL`] octets a turn, and none while its output is full. Depends on `files`. Read first: POSIX, cat.

use super::super::files::FileError;
use super::super::sockets::Sockets;
use super::REST;
use super::arguments::Arguments;
use super::console::{Console, FULL};
use std::collections::VecDeque;
use std::sync::Arc;

/// A running cat.
#[derive(Debug)]
pub(super) struct Cat {
    ahead: VecDeque<String>,
    /// The file that is being copied, and how far.
    open: Option<(Arc<Vec<u8>>, usize)>,
    code: i32,
}

impl Cat {
    /// Makes a cat of its words.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn new(words: &[String]) -> Result<Self, String> {
        let mut ahead: VecDeque<String> = Arguments::parse(words, "u", "")?.operands.into();
        if ahead.is_empty() {
            ahead.push_back(String::from("-"));
        }
        Ok(Cat { ahead, open: None, code: 0 })
    }

    /// Handles an event.
    pub(super) fn handle(&mut self, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        let mut left = FULL;
        while !console.is_full() {
            if left == 0 {
                sockets.wake_after(REST);
                return;
            }
            if let Some((bytes, at)) = &mut self.open {
                let piece = &bytes[*at..bytes.len().min(*at + left)];
                console.write(piece);
                (*at, left) = (*at + piece.len(), left - piece.len());
                if *at < bytes.len() {
                    continue;
                }
                self.open = None;
            }
            let Some(path) = self.ahead.front() else {
                console.exit(self.code);
                return;
            };
            if path == "-" {
                left -= console.copy_input(left);
                if left > 0 && !console.input_ended() {
                    return;
                }
                if !console.input_ended() {
                    continue;
                }
            } else {
                match content(path, sockets) {
                    Ok(bytes) => self.open = Some((bytes, 0)),
                    Err(error) => {
                        console.line(format!("cat: {path}: {}", error.text()));
                        self.code = 1;
                    }
                }
            }
            self.ahead.pop_front();
        }
    }
}

/// Reads a file; the few of `/etc` are the pod's own, unless a volume is mounted there.
fn content(path: &str, sockets: &Sockets<'_, '_>) -> Result<Arc<Vec<u8>>, FileError> {
    let pod = sockets.pod;
    let mut text = String::new();
    match path {
        _ if sockets.files.is_mounted(path) => return sockets.files.read(path),
        "/etc/hostname" => text = format!("{}\n", pod.name),
        "/etc/hosts" => {
            text += &format!("127.0.0.1\tlocalhost\n{}\t{}\n", pod.address, pod.name);
            for (name, address) in &pod.hosts {
                text += &format!("{address}\t{name}\n");
            }
        }
        "/etc/resolv.conf" => {
            if !pod.search.is_empty() {
                text += &format!("search {}\n", pod.search.join(" "));
            }
            if let Some(server) = pod.nameserver {
                text += &format!("nameserver {server}\noptions ndots:5\n");
            }
        }
        other => return sockets.files.read(other),
    }
    Ok(Arc::new(text.into_bytes()))
}
