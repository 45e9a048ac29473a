//! Frames that set out at a port at times of their own, as if the machine there had sent them.
//!
//! The worker that owns the port asks in each batch what is due. Invariants: frames keep their order and their distances;
//! late ones set out as soon as the port takes them; whoever fills the queue bounds it by the buffers it has. Allowed
//! dependencies: `frame`, `clock`. Read first: `docs/architecture.md`, "Links".

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Instant;
use crate::frame::Frame;
use crate::tables::PortId;

/// A recording on its way into a port.
#[derive(Debug)]
pub struct Replay {
    /// Its number.
    pub number: u32,
    /// The port that the frames come in by.
    pub port: PortId,
    /// Frames that have set out.
    pub sent: u64,
    start: Instant,
    waiting: VecDeque<(Instant, Frame)>,
}

impl Replay {
    /// Starts a recording whose first frame sets out at `start`.
    #[must_use]
    pub fn new(number: u32, port: PortId, start: Instant) -> Self {
        Self { number, port, sent: 0, start, waiting: VecDeque::new() }
    }

    /// Adds a frame that sets out `offset` after the first one, not before those already added.
    pub fn add(&mut self, offset: Duration, frame: Frame) {
        let last = self.waiting.back().map_or(self.start, |&(due, _)| due);
        self.waiting.push_back((last.max(self.start + offset), frame));
    }

    /// Takes the next frame that is due.
    pub fn due(&mut self, now: Instant) -> Option<Frame> {
        if self.waiting.front()?.0 > now {
            return None;
        }
        self.sent += 1;
        self.waiting.pop_front().map(|(_, frame)| frame)
    }

    /// Returns when the next frame is due.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.waiting.front().map(|&(due, _)| due)
    }

    /// Returns when the last frame is due that was added.
    #[must_use]
    pub fn last(&self) -> Option<Instant> {
        self.waiting.back().map(|&(due, _)| due)
    }

    /// Takes the frames that have not set out, to end.
    pub fn drain(&mut self) -> impl Iterator<Item = Frame> {
        self.waiting.drain(..).map(|(_, frame)| frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Arena;

    #[test]
    fn frames_keep_their_distances_and_their_order() {
        let (arena, mut pools) = Arena::new(1, 8, 0).unwrap();
        let mut replay = Replay::new(1, PortId(0), Instant::from_nanos(100));
        for (length, offset) in [(60, 0), (61, 30), (62, 20), (63, 50)] {
            replay.add(Duration::from_nanos(offset), pools[0].allocate(length).unwrap());
        }
        let mut take = |now| {
            let due = std::iter::from_fn(|| replay.due(Instant::from_nanos(now)));
            due.map(|frame| arena.bytes(&frame).len()).collect::<Vec<_>>()
        };
        assert_eq!(
            [take(99), take(100), take(129), take(130), take(150)],
            [vec![], vec![60], vec![], vec![61, 62], vec![63]]
        );
    }
}
