//! Captures that somebody outside reads.
//!
//! `http` opens one per request, takes its frames, and closes it when the reader has gone. Invariant: a point is open
//! only while somebody reads.
//!
//! May depend on [`crate::point`], [`crate::recorder`]. Read first: `engine/src/trace.rs`.

use flatnet_engine::trace::Taken;

use super::{Instance, RequestError};
use crate::point;
use crate::recorder::{self, Recorder};

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
        self.captures.insert(number, resolved);
        Ok((number, recorder))
    }

    /// Takes what passed since the last call.
    ///
    /// # Errors
    /// [`RequestError::Drive`].
    pub fn take_captured(&mut self, number: u32) -> Result<Taken, RequestError> {
        Ok(recorder::take(&mut self.drive, number)?)
    }

    /// Closes a point.
    pub fn close_capture(&mut self, number: u32) {
        if let Some(resolved) = self.captures.remove(&number) {
            // A worker that does not answer captures nothing either.
            let _ = recorder::ignore(&mut self.drive, number, &resolved);
        }
    }
}
