//! Captures that somebody outside reads.
//!
//! `http` opens one per request, takes its frames, and closes it when the reader has gone. Invariant: a point is open
//! only while somebody reads.
//!
//! May depend on [`crate::point`], [`crate::recorder`]. Read first: `engine/src/trace.rs`.

use flatnet_engine::trace::Taken;

use super::{Instance, RequestError};
use crate::point::{self, Resolved};
use crate::recorder::{self, Recorder};

/// An open capture.
#[derive(Debug)]
pub(super) struct Open {
    at: Resolved,
    /// Whether its reader wants no more than what has passed already.
    is_ending: bool,
}

impl Instance {
    /// Opens a point; returns the capture's number and its recorder.
    ///
    /// # Errors
    /// [`RequestError::Point`], [`RequestError::Drive`], [`RequestError::Capture`].
    pub fn open_capture(&mut self, point: &str) -> Result<(u32, Recorder), RequestError> {
        let resolved = point::resolve(&self.drive.network.publisher, point)?;
        let recorder = Recorder::new(&resolved, self.epoch)?;
        let number = self.next_capture;
        self.next_capture += 1;
        recorder::listen(&mut self.drive, number, &resolved)?;
        self.captures.insert(number, Open { at: resolved, is_ending: false });
        Ok((number, recorder))
    }

    /// Takes what passed since the last call; also tells whether the reader wants no more.
    ///
    /// # Errors
    /// [`RequestError::Drive`].
    pub fn take_captured(&mut self, number: u32) -> Result<(Taken, bool), RequestError> {
        let is_last = self.captures.get(&number).is_none_or(|open| open.is_ending);
        Ok((recorder::take(&mut self.drive, number)?, is_last))
    }

    /// Has a capture end after what has passed; one that has ended already is no error.
    pub fn end_capture(&mut self, number: u32) {
        if let Some(open) = self.captures.get_mut(&number) {
            open.is_ending = true;
        }
    }

    /// Closes a point.
    pub fn close_capture(&mut self, number: u32) {
        if let Some(open) = self.captures.remove(&number) {
            // A worker that does not answer captures nothing either.
            let _ = recorder::ignore(&mut self.drive, number, &open.at);
        }
    }
}
