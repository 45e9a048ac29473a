//! Recordings that somebody outside plays into a running network.
//!
//! `http` opens one per request, feeds it as the body comes, and closes it. Invariants: at most [`Control`]'s own buffers
//! of frames wait in the engine, whoever sends more waits; in virtual time the clock goes on to the last frame that was fed,
//! so that none comes late.
//!
//! [`Control`]: flatnet_engine::control::Control
//!
//! May depend on [`crate::point`], [`crate::packets`]. Read first: `engine/src/link/replay.rs`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use flatnet_engine::ledger::{DropReason, Ledger};
use flatnet_engine::tables::PortId;
use flatnet_engine::trace::Point;
use flatnet_engine::worker::ReplayState;

use super::{Instance, RequestError};
use crate::packets::Packet;
use crate::point;
use crate::views::{DropCount, ReplayReport};

/// Frames given to a worker at once at most.
const FEED_LIMIT: usize = 1024;

/// How fast a recording is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speed {
    /// A frame as soon as the port has taken the one before it.
    Max,
    /// So many thousandths of its own speed.
    Times(u32),
}

impl Speed {
    /// Reads `original`, `max` or a factor such as `2x` or `0.5x`.
    ///
    /// # Errors
    /// What it must be.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!("{text:?} is no speed; write original, max, or a factor such as 2x or 0.5x (up to 1000x)")
        };
        match text {
            "original" => return Ok(Self::Times(1_000)),
            "max" => return Ok(Self::Max),
            _ => {}
        }
        let factor: f64 = text.strip_suffix('x').and_then(|factor| factor.parse().ok()).ok_or_else(refuse)?;
        let thousandths = (factor * 1_000.0).round();
        if (1.0..=1_000_000.0).contains(&thousandths) {
            Ok(Self::Times(thousandths as u32))
        } else {
            Err(refuse())
        }
    }

    fn apply(self, offset: Duration) -> Duration {
        match self {
            Self::Max => Duration::ZERO,
            Self::Times(thousandths) => {
                let nanoseconds = offset.as_nanos() * 1_000 / u128::from(thousandths.max(1));
                Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
            }
        }
    }
}

/// A recording that is being played.
#[derive(Debug)]
pub(super) struct Playing {
    worker: u8,
    speed: Speed,
    started: Instant,
    before: Vec<u64>,
    frames: u64,
    bytes: u64,
    sent: u64,
    too_long: u64,
}

impl Instance {
    /// Opens a recording at a point and returns its number.
    ///
    /// # Errors
    /// [`RequestError::Point`], [`RequestError::NoMachine`], [`RequestError::Drive`].
    pub fn open_replay(&mut self, point: &str, speed: Speed) -> Result<u32, RequestError> {
        let resolved = point::resolve(&self.drive.network.publisher, point)?;
        let refused = || RequestError::NoMachine(resolved.name.clone());
        let port = self.port_of(resolved.node, resolved.point).ok_or_else(refused)?;
        let tables = self.drive.network.publisher.control.tables.current();
        let worker = tables.ports.get(&port).ok_or_else(refused)?.worker;
        let number = self.next_replay;
        self.next_replay += 1;
        if !self.drive.ask(worker, move |worker| worker.start_replay(number, port))? {
            return Err(refused());
        }
        let (started, before) = (Instant::now(), self.dropped());
        let playing = Playing { worker, speed, started, before, frames: 0, bytes: 0, sent: 0, too_long: 0 };
        self.replays.insert(number, playing);
        Ok(number)
    }

    /// The port at which what the machine at a point sends comes in.
    fn port_of(&self, node: flatnet_engine::tables::NodeId, point: Point) -> Option<PortId> {
        match point {
            Point::Port(port) => Some(port),
            Point::Interface(index) => {
                let tables = self.drive.network.publisher.control.tables.current();
                Some(tables.node(node)?.interfaces.get(usize::from(index))?.port)
            }
            Point::Bridge | Point::Tunnel | Point::Loopback(_) => None,
        }
    }

    /// Feeds a recording with as many frames as there is room for; the rest stays. Returns whether all that was fed
    /// has set out.
    ///
    /// # Errors
    /// [`RequestError::Replay`] when it is closed, [`RequestError::Drive`].
    pub fn feed_replay(&mut self, number: u32, packets: &mut VecDeque<Packet>) -> Result<bool, RequestError> {
        let gone = || RequestError::Replay("the replay has ended".to_owned());
        let playing = self.replays.get_mut(&number).ok_or_else(gone)?;
        let control = &mut self.drive.network.publisher.control;
        control.collect_buffers();
        let mut frames = Vec::new();
        while frames.len() < FEED_LIMIT
            && let Some(packet) = packets.front()
        {
            let is_too_long = packet.bytes.len() > flatnet_engine::frame::LARGE_CAPACITY;
            let frame = if is_too_long { None } else { control.pool.allocate(packet.bytes.len()) };
            match frame {
                Some(mut frame) => {
                    control.arena().open(&mut frame).bytes_mut().copy_from_slice(&packet.bytes);
                    frames.push((playing.speed.apply(packet.offset), frame));
                    playing.bytes += packet.bytes.len() as u64;
                }
                None if is_too_long => playing.too_long += 1,
                None => break,
            }
            playing.frames += 1;
            packets.pop_front();
        }
        let worker = playing.worker;
        let state = self.drive.ask(worker, move |worker| worker.feed_replay(number, frames))?;
        let Some(ReplayState { sent, last }) = state else { return Err(gone()) };
        if let Some(playing) = self.replays.get_mut(&number) {
            playing.sent = sent;
        }
        if let Some(last) = last.filter(|_| self.drive.is_virtual()) {
            let left = last.saturating_duration_since(self.drive.now());
            self.drive.wait_for(left, |_| None::<()>);
        }
        Ok(last.is_none())
    }

    /// Closes a recording and tells what became of it.
    pub fn close_replay(&mut self, number: u32, cut: u64) -> Option<ReplayReport> {
        let playing = self.replays.remove(&number)?;
        // A worker that does not answer plays nothing either.
        let _ = self.drive.ask(playing.worker, move |worker| worker.end_replay(number));
        self.drive.settle();
        let dropped = DropReason::ALL.iter().zip(playing.before.iter().zip(self.dropped()));
        let drops = dropped.filter(|(_, (before, after))| after > before).map(|(reason, (before, after))| {
            DropCount { reason: reason.name().to_owned(), count: after - before }
        });
        Some(ReplayReport {
            frames: playing.frames + cut,
            bytes: playing.bytes,
            sent: playing.sent,
            cut,
            too_long: playing.too_long,
            seconds: playing.started.elapsed().as_secs_f64(),
            drops: drops.collect(),
        })
    }

    /// What the whole network has dropped, by reason.
    fn dropped(&self) -> Vec<u64> {
        let publisher = &self.drive.network.publisher;
        let ledgers: Vec<Ledger> =
            publisher.nodes().into_iter().map(|(_, node)| publisher.control.ledger(node)).collect();
        let sum = |&reason: &DropReason| ledgers.iter().map(|ledger| ledger.drops(reason)).sum();
        DropReason::ALL.iter().map(sum).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_scale_distances() {
        let at = |text: &str| Speed::parse(text).unwrap().apply(Duration::from_secs(3)).as_millis();
        assert_eq!(["original", "max", "2x", "0.5x", "1.5x"].map(at), [3_000, 0, 1_500, 6_000, 2_000]);
        for text in ["", "2", "x", "-1x", "0x", "1001x", "nanx", "infx", "fast"] {
            assert!(Speed::parse(text).is_err(), "{text}");
        }
    }
}
