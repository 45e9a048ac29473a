//! Where a worker's clocks go, stage by stage, for whoever asks.
//!
//! The loop and its passes mark where a stage ends; without somebody who asks, the marks are compiled out of the loop that
//! runs. Invariant: every clock between two marks belongs to one stage. Allowed dependencies: `clock`. Read first:
//! `worker.rs`.

use super::Worker;
use crate::clock::timestamp_counter;

/// A part of a packet's way through a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Frames are taken from a link.
    Take,
    /// Headers become keys and hashes.
    Parse,
    /// The flow is found in the cache, and its binding renewed.
    LookUp,
    /// The decision is replayed.
    Rewrite,
    /// The frame is given to a link.
    Send,
    /// The slow path decides, forwards what it decided about, or drops it.
    Decide,
    /// All that a batch does beside its frames: mailbox, timers, sweeps.
    Upkeep,
}

impl Stage {
    /// All of them, in the order of the packet's way.
    pub const ALL: [Self; 7] =
        [Self::Take, Self::Parse, Self::LookUp, Self::Rewrite, Self::Send, Self::Decide, Self::Upkeep];

    /// Returns its name, as reports have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Take => "take",
            Self::Parse => "parse",
            Self::LookUp => "look-up",
            Self::Rewrite => "rewrite",
            Self::Send => "send",
            Self::Decide => "decide",
            Self::Upkeep => "upkeep",
        }
    }
}

/// Clocks by stage.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stages {
    /// TSC clocks of each, in the order of [`Stage::ALL`].
    pub clocks: [u64; Stage::ALL.len()],
    /// How often each ended: each time a read of the counter is among its clocks.
    pub ends: [u64; Stage::ALL.len()],
    /// The counter at the last mark.
    last: u64,
}

impl Worker {
    /// Begins to time the stages of each batch, which costs clocks itself; what was timed before is forgotten.
    pub fn time_stages(&mut self) {
        self.stages = Some(Box::default());
    }

    /// Returns what the stages took since it was asked for, and times them no more.
    pub fn take_stages(&mut self) -> Option<Box<Stages>> {
        self.stages.take()
    }
}

impl Stages {
    /// Begins the first stage of a batch.
    #[inline(always)]
    pub(super) fn begin<const TIMED: bool>(of: &mut Option<Box<Self>>) {
        if TIMED && let Some(stages) = of {
            stages.last = timestamp_counter();
        }
    }

    /// Ends a stage; the next begins.
    #[inline(always)]
    pub(super) fn end<const TIMED: bool>(of: &mut Option<Box<Self>>, stage: Stage) {
        if TIMED && let Some(stages) = of {
            let now = timestamp_counter();
            stages.clocks[stage as usize] += now.wrapping_sub(stages.last);
            stages.ends[stage as usize] += 1;
            stages.last = now;
        }
    }
}
