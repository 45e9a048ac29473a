//! Recordings on their way into this worker's ports.
//!
//! Visits start, fill and end them; a batch sends what is due. Invariants: a frame of a recording is received at its port
//! as any other, after the pod's own cable where there is one; a port takes at most what it can work off soon. Read
//! first: `link/replay.rs`.

use super::{Attached, BATCH_LIMIT, Frame, Instant, Link, PortId, Worker};
use crate::link::replay::Replay;

/// Frames that may wait at a port before a recording waits, too.
const BACKLOG: usize = 4 * BATCH_LIMIT;

/// How far a recording is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayState {
    /// Frames that have set out.
    pub sent: u64,
    /// When the last of those that wait is due; none when none waits.
    pub last: Option<Instant>,
}

impl Worker {
    /// Starts a recording at a pod's or host's port, or at a node's or router's interface: its frames come in at the
    /// other end of the cable then. False when there is no such link.
    pub fn start_replay(&mut self, number: u32, port: PortId) -> bool {
        let attached = self.links.get(port.0 as usize).and_then(Option::as_ref);
        let port = match attached.map(|attached| &attached.link) {
            Some(Link::Pod(_)) => port,
            Some(Link::Wire { peer, .. }) => *peer,
            Some(Link::Rings(_) | Link::Tap(_) | Link::TunnelSocket(_)) | None => return false,
        };
        self.replays.push(Replay::new(number, port, self.now));
        true
    }

    /// Adds frames to a recording, each with its distance from the first one's time.
    pub fn feed_replay(
        &mut self,
        number: u32,
        frames: Vec<(std::time::Duration, Frame)>,
    ) -> Option<ReplayState> {
        match self.replays.iter_mut().find(|replay| replay.number == number) {
            Some(replay) => frames.into_iter().for_each(|(offset, frame)| replay.add(offset, frame)),
            None => frames.into_iter().for_each(|(_, frame)| self.pool.free(frame)),
        }
        self.replay_state(number)
    }

    /// Tells how far a recording is.
    #[must_use]
    pub fn replay_state(&self, number: u32) -> Option<ReplayState> {
        let replay = self.replays.iter().find(|replay| replay.number == number)?;
        Some(ReplayState { sent: replay.sent, last: replay.last() })
    }

    /// Ends a recording; what has not set out is freed.
    pub fn end_replay(&mut self, number: u32) {
        for replay in self.replays.iter_mut().filter(|replay| replay.number == number) {
            replay.drain().for_each(|frame| self.pool.free(frame));
        }
        self.replays.retain(|replay| replay.number != number);
    }

    /// Sends what is due of all recordings; returns how many frames.
    pub(super) fn run_replays(&mut self, now: Instant) -> usize {
        let mut moved = 0;
        for index in 0..self.replays.len() {
            let port = self.replays[index].port;
            for _ in 0..BATCH_LIMIT {
                if self.is_backlogged(port) {
                    break;
                }
                let Some(frame) = self.replays[index].due(now) else { break };
                self.send_as_machine(frame, port, now);
                moved += 1;
            }
        }
        moved
    }

    fn is_backlogged(&self, port: PortId) -> bool {
        let attached = self.links.get(port.0 as usize).and_then(Option::as_ref);
        attached.is_some_and(|attached| attached.waiting.len() >= BACKLOG)
    }

    fn send_as_machine(&mut self, frame: Frame, port: PortId, now: Instant) {
        let attached = self.links.get_mut(port.0 as usize).and_then(Option::as_mut);
        if let Some(Attached { link: Link::Pod(link), .. }) = attached
            && let Some(uplink) = &mut link.uplink
        {
            uplink.outbox.push_back(frame);
            self.send_up(port, now);
            self.schedule_pod(port, now);
        } else if let Err((frame, _)) = self.arrive(port, frame) {
            // The machine has gone; no node has seen the frame.
            self.pool.free(frame);
        }
    }

    /// Returns when the next frame of a recording is due.
    pub(super) fn next_replay(&self) -> Option<Instant> {
        self.replays.iter().filter_map(Replay::next).min()
    }
}
