//! One packet followed in a network that runs.
//!
//! `http` starts it, looks for its outcome now and then, and ends it. Invariants: one at a time, since workers keep what
//! they note in one place; one whose asker has gone is ended by the next, after its time.
//!
//! May depend on [`crate::trace`]. Read first: [`crate::trace::ask`].

use std::time::{Duration, Instant};

use super::{Instance, RequestError};
use crate::trace::ask::{self, TIMEOUT, Trace};
use crate::trace::report::{Question, Report};

/// How far virtual time goes at once while the packet is on its way.
const VIRTUAL_STEP: Duration = Duration::from_millis(100);

/// A packet that is on its way, and when at the latest something has come of it.
#[derive(Debug)]
pub(super) struct Following {
    trace: Trace,
    until: Instant,
}

impl Instance {
    /// Sends a packet that is followed.
    ///
    /// # Errors
    /// [`RequestError::Ask`], [`RequestError::Busy`], [`RequestError::Drive`].
    pub fn start_trace(&mut self, question: Question) -> Result<(), RequestError> {
        if self.following.as_ref().is_some_and(|other| Instant::now() < other.until) {
            return Err(RequestError::Busy);
        }
        let target = ask::resolve(&self.drive.network.publisher, &question)?;
        let trace = ask::begin(&mut self.drive, question, target)?;
        self.following = Some(Following { trace, until: Instant::now() + TIMEOUT * 2 });
        Ok(())
    }

    /// Returns what came of the packet, once something has.
    ///
    /// # Errors
    /// [`RequestError::Drive`].
    pub fn end_trace(&mut self) -> Result<Option<Report>, RequestError> {
        let Some(Following { trace, until }) = self.following.take() else { return Ok(None) };
        let mut outcome = trace.outcome(&mut self.drive)?;
        if outcome.is_none() && self.drive.is_virtual() {
            self.drive.wait_for(VIRTUAL_STEP, |_| None::<()>);
            outcome = trace.outcome(&mut self.drive)?;
        }
        if outcome.is_none() && Instant::now() < until {
            self.following = Some(Following { trace, until });
            return Ok(None);
        }
        Ok(Some(trace.end(&mut self.drive, outcome)?))
    }
}
