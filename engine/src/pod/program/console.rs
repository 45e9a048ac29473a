//! What a program reads and writes: standard input, output and its exit code.
//!
//! Invariants: what has a reader waits for it whole, and programs that read from elsewhere do not while [`FULL`] octets wait; without
//! one the last [`OUTPUT_LIMIT`] octets are kept, as a terminal scrolls. As much input waits before more is wanted. The first exit
//! code counts.
//! Depends on nothing. Read first: this file.

use std::collections::VecDeque;

/// Octets of output that are kept of a program that nobody reads.
const OUTPUT_LIMIT: usize = 8 * 1024 * 1024;
/// Octets that wait for a reader before their program reads on, and of input before more is wanted; also what a program that does
/// not have to wait writes before others have their turn.
pub(super) const FULL: usize = 1024 * 1024;

/// A program's console.
#[derive(Debug, Default)]
pub(in super::super) struct Console {
    output: VecDeque<u8>,
    /// Whether somebody takes the output.
    has_reader: bool,
    /// Whether the one that the output goes to is full.
    pub(super) is_held: bool,
    input: VecDeque<u8>,
    input_closed: bool,
    exit: Option<i32>,
}

impl Console {
    /// Writes octets.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.output.extend(bytes);
        if !self.has_reader {
            let excess = self.output.len().saturating_sub(OUTPUT_LIMIT);
            self.output.drain(..excess);
        }
    }

    /// Keeps all output for somebody who takes it.
    pub(super) fn await_reader(&mut self) {
        self.has_reader = true;
    }

    /// Says whether its program should wait before it reads what it would write.
    pub(super) fn is_full(&self) -> bool {
        self.is_held || (self.has_reader && self.output.len() >= FULL)
    }

    /// Writes a text.
    pub(super) fn print(&mut self, text: impl AsRef<str>) {
        self.write(text.as_ref().as_bytes());
    }

    /// Writes a line.
    pub(in super::super) fn line(&mut self, text: impl AsRef<str>) {
        self.print(text);
        self.write(b"\n");
    }

    /// Ends the program.
    pub(super) fn exit(&mut self, code: i32) {
        self.exit.get_or_insert(code);
    }

    /// Returns how the program ended.
    pub(super) fn exit_code(&self) -> Option<i32> {
        self.exit
    }

    /// Takes the output.
    pub(in super::super) fn take_output(&mut self) -> Vec<u8> {
        self.output.drain(..).collect()
    }

    /// Adds standard input.
    pub(super) fn push_input(&mut self, bytes: &[u8]) {
        if !self.input_closed {
            self.input.extend(bytes);
        }
    }

    /// Says whether more input should be added now.
    pub(super) fn wants_input(&self) -> bool {
        self.input.len() < FULL
    }

    /// Lends its standard input to another console, or takes it back from there.
    pub(super) fn swap_input(&mut self, other: &mut Console) {
        std::mem::swap(&mut self.input, &mut other.input);
        std::mem::swap(&mut self.input_closed, &mut other.input_closed);
    }

    /// Ends standard input.
    pub(super) fn close_input(&mut self) {
        self.input_closed = true;
    }

    /// Returns what may be read, in one piece.
    pub(super) fn peek_input(&mut self) -> &[u8] {
        self.input.make_contiguous()
    }

    /// Takes octets that were read.
    pub(super) fn consume_input(&mut self, count: usize) {
        self.input.drain(..count.min(self.input.len()));
    }

    /// Writes what may be read, up to a limit; returns how much that was.
    pub(super) fn copy_input(&mut self, limit: usize) -> usize {
        let count = self.input.len().min(limit);
        let bytes: Vec<u8> = self.input.drain(..count).collect();
        self.write(&bytes);
        count
    }

    /// Says whether nothing more can be read.
    pub(super) fn input_ended(&self) -> bool {
        self.input_closed && self.input.is_empty()
    }
}
