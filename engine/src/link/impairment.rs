//! What happens to frames on a cable that is not perfect: the settings, the counts, and chance.
//!
//! A [`Wire`](super::wire::Wire) asks a [`Lane`] about each frame of one direction. Invariants: a setting holds for
//! frames that set out after it; frames arrive in the order in which they set out but for those that `reorder` chose;
//! the transmitter's times are exact to the nanosecond however many frames it sent. Allowed dependencies: `clock`,
//! `random`, `ledger`. Read first: `docs/adr/0013-what-a-link-does.md`, tc-netem(8) for the terms.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::time::Duration;

use crate::clock::Instant;
use crate::ledger::DropReason;
use crate::random::Random;

/// Frames that wait for a transmitter when the link says nothing of its queue: netem's `limit`.
pub const QUEUE_DEFAULT: QueueLimit = QueueLimit::Frames(1000);
/// The fastest link, bits a second.
pub const RATE_LIMIT: u64 = 1_000_000_000_000;
/// Bit-nanoseconds of one byte in one second.
const BYTE: u64 = 8 * 1_000_000_000;

/// How a cable differs from a perfect one, in one direction. Shares are parts per million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Impairment {
    /// Time from one end to the other.
    pub delay: Duration,
    /// A frame's delay is drawn evenly from `delay` ± `jitter`; not below 0.
    pub jitter: Duration,
    /// Frames lost.
    pub loss: u32,
    /// Frames that arrive twice.
    pub duplicate: u32,
    /// Frames that take no delay and so overtake those on their way.
    pub reorder: u32,
    /// Frames of which one bit is turned over, anywhere from the first byte of the Ethernet header to the last.
    pub corrupt: u32,
    /// Bits a second, Ethernet header and payload; no limit by default.
    pub rate: Option<NonZeroU64>,
    /// What waits for the transmitter at most, the frame in it included; [`QUEUE_DEFAULT`] by default.
    pub queue: Option<QueueLimit>,
    /// Largest IP packet it takes, bytes; no limit by default.
    pub mtu: Option<u16>,
    /// Whether it takes no frames at all.
    pub down: bool,
}

impl Impairment {
    /// Tells whether it is none.
    #[must_use]
    pub fn is_perfect(&self) -> bool {
        *self == Self::default()
    }
}

/// The room before a transmitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueLimit {
    /// So many frames.
    Frames(u32),
    /// So many bytes.
    Bytes(u64),
}

/// What happened to the frames of one direction while it was impaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkCounts {
    /// Frames that were to be sent.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames lost.
    pub lost: u64,
    /// Copies made.
    pub duplicated: u64,
    /// Frames that took no delay.
    pub reordered: u64,
    /// Frames of which a bit was turned over.
    pub corrupted: u64,
    /// Frames that found the queue full.
    pub queue_full: u64,
    /// Frames longer than the link takes.
    pub too_long: u64,
    /// Frames that found the link down.
    pub refused: u64,
}

/// One direction of a cable: its settings, its transmitter, its counts.
#[derive(Debug, Default)]
pub struct Lane {
    /// How it differs from a perfect one.
    pub impairment: Impairment,
    /// What happened so far.
    pub counts: LinkCounts,
    transmitter: Transmitter,
    /// When the last frame arrives that keeps its place.
    latest: Instant,
}

impl Lane {
    /// Tells what becomes of a frame of `length` bytes, `packet` of them its IP packet: refused, or sent on.
    ///
    /// # Errors
    /// The reason to drop it.
    pub fn admit(&mut self, length: usize, packet: usize, random: &mut Random) -> Result<(), DropReason> {
        self.counts.frames += 1;
        self.counts.bytes += length as u64;
        if self.impairment.down {
            self.counts.refused += 1;
            return Err(DropReason::LinkDown);
        }
        if self.impairment.mtu.is_some_and(|mtu| packet > usize::from(mtu)) {
            self.counts.too_long += 1;
            return Err(DropReason::LinkMtu);
        }
        if random.chance(self.impairment.loss) {
            self.counts.lost += 1;
            return Err(DropReason::LinkLoss);
        }
        Ok(())
    }

    /// Sends a frame of `length` bytes; returns when it arrives.
    ///
    /// # Errors
    /// The queue is full.
    pub fn send(&mut self, length: usize, now: Instant, random: &mut Random) -> Result<Instant, DropReason> {
        let Impairment { delay, jitter, reorder, rate, queue, .. } = self.impairment;
        let sent = match rate {
            Some(rate) => {
                let limit = queue.unwrap_or(QUEUE_DEFAULT);
                self.transmitter.send(length as u64, rate, limit, now).ok_or_else(|| {
                    self.counts.queue_full += 1;
                    DropReason::LinkQueueFull
                })?
            }
            None => now,
        };
        if random.chance(reorder) {
            self.counts.reordered += 1;
            return Ok(sent);
        }
        let delay = if jitter.is_zero() { delay } else { draw(delay, jitter, random) };
        self.latest = self.latest.max(sent + delay);
        Ok(self.latest)
    }

    /// Tells whether a bit of the frame is turned over: its number.
    pub fn corrupted_bit(&mut self, length: usize, random: &mut Random) -> Option<usize> {
        if length == 0 || !random.chance(self.impairment.corrupt) {
            return None;
        }
        self.counts.corrupted += 1;
        Some(random.below(length * 8))
    }
}

/// Draws evenly from `delay` ± `jitter`, both ends included, but nothing below 0.
fn draw(delay: Duration, jitter: Duration, random: &mut Random) -> Duration {
    let least = delay.saturating_sub(jitter).as_nanos() as u64;
    let most = (delay + jitter).as_nanos() as u64;
    Duration::from_nanos(least + random.below((most - least + 1) as usize) as u64)
}

/// Puts frames on the cable one after another, at a rate.
#[derive(Debug, Default)]
struct Transmitter {
    /// When the last frame has left: whole nanoseconds, and parts of the rate's denominator.
    free: Instant,
    part: u64,
    rate: u64,
    /// When each frame that has not left yet will have, and its bytes.
    waiting: VecDeque<(Instant, u64)>,
    waiting_bytes: u64,
}

impl Transmitter {
    /// Takes a frame; returns when its last bit has left, rounded up to a nanosecond. `None` when the queue is full.
    fn send(&mut self, length: u64, rate: NonZeroU64, limit: QueueLimit, now: Instant) -> Option<Instant> {
        while self.waiting.front().is_some_and(|&(leaves, _)| leaves <= now) {
            self.waiting_bytes -= self.waiting.pop_front().map_or(0, |(_, length)| length);
        }
        let is_full = match limit {
            QueueLimit::Frames(frames) => self.waiting.len() >= frames as usize,
            QueueLimit::Bytes(bytes) => self.waiting_bytes + length > bytes,
        };
        if is_full {
            return None;
        }
        let rate = rate.get();
        // Parts of another rate say nothing; less than a nanosecond is lost where the rate changes.
        if self.free < now || self.rate != rate {
            (self.free, self.part, self.rate) = (self.free.max(now), 0, rate);
        }
        let time = length * BYTE + self.part;
        self.free = self.free + Duration::from_nanos(time / rate);
        self.part = time % rate;
        let leaves = self.free + Duration::from_nanos(u64::from(self.part > 0));
        self.waiting.push_back((leaves, length));
        self.waiting_bytes += length;
        Some(leaves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However many frames, the last one has left when all bits before it are through, to the nanosecond.
        #[test]
        fn a_transmitter_never_drifts(
            rate in 1_u64..=RATE_LIMIT,
            frames in prop::collection::vec((14_u64..65_550, 0_u64..2_000), 1..200),
        ) {
            let mut transmitter = Transmitter::default();
            let (mut now, mut busy, mut bits) = (0_u64, 0_u64, 0_u128);
            for (length, gap) in frames {
                now += gap;
                // The model: a busy period began at `busy`; nothing is rounded but its sum.
                if u128::from(now - busy) * u128::from(rate) > bits * 1_000_000_000 {
                    (busy, bits) = (now, 0);
                }
                bits += u128::from(length) * 8;
                let expected = u128::from(busy) + (bits * 1_000_000_000).div_ceil(u128::from(rate));
                let limit = QueueLimit::Frames(u32::MAX);
                let left = transmitter.send(length, NonZeroU64::new(rate).unwrap(), limit, Instant::from_nanos(now));
                prop_assert_eq!(u128::from(left.unwrap().as_nanos()), expected);
            }
        }

        /// The queue holds what its limit says, in frames or bytes, and no more.
        #[test]
        fn a_queue_takes_exactly_its_limit(
            by_bytes: bool,
            limit in 1_u32..5_000,
            frames in prop::collection::vec((14_u64..1_600, 0_u64..200_000), 1..100),
        ) {
            let mut transmitter = Transmitter::default();
            let (limit, rate) = if by_bytes {
                (QueueLimit::Bytes(u64::from(limit)), 100_000_000)
            } else {
                (QueueLimit::Frames(limit % 8 + 1), 100_000_000)
            };
            let (mut now, mut queue) = (0, Vec::<(Instant, u64)>::new());
            for (length, gap) in frames {
                now += gap;
                queue.retain(|&(leaves, _)| leaves > Instant::from_nanos(now));
                let fits = match limit {
                    QueueLimit::Frames(frames) => queue.len() < frames as usize,
                    QueueLimit::Bytes(bytes) => queue.iter().map(|entry| entry.1).sum::<u64>() + length <= bytes,
                };
                let left = transmitter.send(length, NonZeroU64::new(rate).unwrap(), limit, Instant::from_nanos(now));
                prop_assert_eq!(left.is_some(), fits);
                queue.extend(left.map(|left| (left, length)));
            }
        }
    }

    #[test]
    fn a_change_of_the_rate_lets_what_waits_leave_first() {
        let mut transmitter = Transmitter::default();
        let mut send = |rate| {
            let limit = QueueLimit::Frames(9);
            transmitter.send(125, NonZeroU64::new(rate).unwrap(), limit, Instant::ZERO).unwrap().as_nanos()
        };
        assert_eq!([send(1_000), send(1_000_000)], [1_000_000_000, 1_001_000_000]);
    }
}
