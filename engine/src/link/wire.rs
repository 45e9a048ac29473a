//! An in-memory cable end: what is sent here arrives at the peer port, later, twice, damaged, or not at all.
//!
//! The worker that owns both ends sends frames in and takes out what is due. Invariants: a perfect cable costs a frame
//! one look; chance comes from the wire's own seeded generator; a cable holds at most [`CABLE_LIMIT`] frames. Allowed
//! dependencies: `frame`, `random`, `clock`, `ledger`. Read first: `impairment.rs`.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use super::impairment::{Impairment, Lane, LinkCounts};
use crate::clock::Instant;
use crate::frame::{ChecksumState, Frame, Pool};
use crate::ledger::DropReason;
use crate::random::Random;
use crate::tables::PortId;
use crate::wire::ethernet;

/// Frames in flight on one end of a cable.
pub const CABLE_LIMIT: usize = 1 << 14;

#[derive(Debug)]
struct InFlight {
    due: Instant,
    sequence: u64,
    frame: Frame,
}

impl PartialEq for InFlight {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for InFlight {}

impl PartialOrd for InFlight {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for InFlight {
    /// The earliest is the greatest: the heap gives it first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.sequence).cmp(&(self.due, self.sequence))
    }
}

/// Frames on their way, the next to arrive first.
#[derive(Debug, Default)]
struct Flight {
    frames: BinaryHeap<InFlight>,
    sequence: u64,
}

impl Flight {
    fn push(&mut self, due: Instant, frame: Frame) {
        self.sequence += 1;
        self.frames.push(InFlight { due, sequence: self.sequence, frame });
    }
}

/// What became of a frame that was sent.
#[derive(Debug)]
pub struct Sent {
    /// The frame, when it has arrived already.
    pub arrived: Option<Frame>,
    /// Whether a copy of it is on its way, too.
    pub copied: bool,
}

/// One end of a cable.
#[derive(Debug)]
pub struct Wire {
    /// Whether no setting differs from a perfect cable's.
    perfect: bool,
    usual: Box<Lane>,
    /// What differs for frames that came to this end's node by a certain port: a switch's path between a pair.
    by_origin: BTreeMap<PortId, Lane>,
    in_flight: Flight,
    random: Random,
}

impl Wire {
    /// Makes an end of a perfect cable.
    #[must_use]
    pub fn new(random: Random) -> Self {
        Self {
            perfect: true,
            usual: Box::default(),
            by_origin: BTreeMap::new(),
            in_flight: Flight::default(),
            random,
        }
    }

    /// Sets how frames fare that set out from now on and came to this node by `origin`, or all others.
    pub fn impair(&mut self, origin: Option<PortId>, impairment: Impairment) {
        let lane = match origin {
            // It stays when it is perfect again: what is in flight must not be overtaken.
            Some(origin) => self.by_origin.entry(origin).or_default(),
            None => &mut self.usual,
        };
        lane.impairment = impairment;
        let mut lanes = self.by_origin.values().chain([&*self.usual]);
        self.perfect = lanes.all(|lane| lane.impairment.is_perfect());
    }

    /// Returns what happened to frames that came to this node by `origin`, or all others, while they were impaired.
    #[must_use]
    pub fn counts(&self, origin: Option<PortId>) -> LinkCounts {
        let lane = origin.map_or(Some(&*self.usual), |origin| self.by_origin.get(&origin));
        lane.map(|lane| lane.counts).unwrap_or_default()
    }

    /// Tells whether a frame sent now would arrive at once and as it is.
    #[inline(always)]
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.perfect && self.in_flight.frames.is_empty()
    }

    /// Sends a frame that came to this node by `origin`; copies come from `pool`.
    ///
    /// # Errors
    /// The frame and why it does not go.
    pub fn send(
        &mut self,
        mut frame: Frame,
        origin: PortId,
        now: Instant,
        pool: &mut Pool,
    ) -> Result<Sent, (Frame, DropReason)> {
        if self.is_clear() {
            return Ok(Sent { arrived: Some(frame), copied: false });
        }
        let lane = self.by_origin.get_mut(&origin).unwrap_or(&mut self.usual);
        let random = &mut self.random;
        let length = pool.arena().bytes(&frame).len();
        if let Err(reason) = lane.admit(length, length.saturating_sub(ethernet::HEADER_LENGTH), random) {
            return Err((frame, reason));
        }
        if self.in_flight.frames.len() >= CABLE_LIMIT {
            lane.counts.queue_full += 1;
            return Err((frame, DropReason::LinkQueueFull));
        }
        let due = match lane.send(length, now, random) {
            Ok(due) => due,
            Err(reason) => return Err((frame, reason)),
        };
        // The copy is a frame of its own right behind: it queues, and chance decides anew how it fares.
        let copy = random.chance(lane.impairment.duplicate).then(|| pool.copy(&frame)).flatten();
        damage(&mut frame, lane, random, pool);
        let mut arrived = None;
        if due <= now && self.in_flight.frames.is_empty() {
            arrived = Some(frame);
        } else {
            self.in_flight.push(due, frame);
        }
        let Some(mut copy) = copy else { return Ok(Sent { arrived, copied: false }) };
        match lane.send(length, now, random) {
            Ok(due) => {
                lane.counts.duplicated += 1;
                damage(&mut copy, lane, random, pool);
                self.in_flight.push(due, copy);
                Ok(Sent { arrived, copied: true })
            }
            Err(_) => {
                pool.free(copy);
                Ok(Sent { arrived, copied: false })
            }
        }
    }

    /// Takes the next frame that has arrived by now.
    pub fn arrival(&mut self, now: Instant) -> Option<Frame> {
        if self.in_flight.frames.peek()?.due > now {
            return None;
        }
        self.in_flight.frames.pop().map(|arrived| arrived.frame)
    }

    /// Returns when the next frame arrives.
    #[must_use]
    pub fn next_arrival(&self) -> Option<Instant> {
        self.in_flight.frames.peek().map(|next| next.due)
    }

    /// Takes a frame off the cable, due or not, to end.
    pub fn drain(&mut self) -> Option<Frame> {
        self.in_flight.frames.pop().map(|frame| frame.frame)
    }
}

/// Turns a bit over if chance wants it; nobody may trust the frame's checksums any more.
fn damage(frame: &mut Frame, lane: &mut Lane, random: &mut Random, pool: &Pool) {
    let mut open = pool.arena().open(frame);
    if let Some(bit) = lane.corrupted_bit(open.bytes().len(), random) {
        open.bytes_mut()[bit / 8] ^= 1 << (bit % 8);
        open.record.checksum = ChecksumState::Unknown;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Arena;
    use std::time::Duration;

    const ORIGIN: PortId = PortId(9);

    fn delayed(milliseconds: u64) -> Impairment {
        Impairment { delay: Duration::from_millis(milliseconds), ..Impairment::default() }
    }

    #[test]
    fn frames_arrive_after_their_delay_in_order() {
        let (arena, mut pools) = Arena::new(1, 8, 0).unwrap();
        let mut wire = Wire::new(Random::new(1));
        wire.impair(None, delayed(2));
        for length in [60, 61] {
            let frame = pools[0].allocate(length).unwrap();
            assert!(wire.send(frame, ORIGIN, Instant::ZERO, &mut pools[0]).unwrap().arrived.is_none());
        }
        assert!(wire.arrival(Instant::from_nanos(1_999_999)).is_none());
        let due = wire.next_arrival().unwrap();
        let lengths = [wire.arrival(due), wire.arrival(due)].map(|frame| arena.bytes(&frame.unwrap()).len());
        assert_eq!((lengths, wire.next_arrival()), ([60, 61], None));
    }

    #[test]
    fn a_pair_of_its_own_may_lose_everything_or_be_down() {
        let (_arena, mut pools) = Arena::new(1, 8, 0).unwrap();
        let mut wire = Wire::new(Random::new(1));
        wire.impair(Some(PortId(3)), Impairment { loss: 1_000_000, ..Impairment::default() });
        wire.impair(Some(PortId(4)), Impairment { mtu: Some(100), ..Impairment::default() });
        wire.impair(Some(PortId(6)), Impairment { down: true, ..Impairment::default() });
        let mut send = |origin| {
            let frame = pools[0].allocate(200).unwrap();
            let sent = wire.send(frame, origin, Instant::ZERO, &mut pools[0]);
            sent.map(|sent| sent.arrived.is_some()).map_err(|(_, reason)| reason)
        };
        assert_eq!(send(PortId(3)), Err(DropReason::LinkLoss));
        assert_eq!(send(PortId(4)), Err(DropReason::LinkMtu));
        assert_eq!(send(PortId(5)), Ok(true), "a perfect cable");
        assert_eq!(send(PortId(6)), Err(DropReason::LinkDown));
        assert_eq!(wire.counts(Some(PortId(6))).refused, 1);
    }

    #[test]
    fn nobody_trusts_the_checksums_of_a_damaged_frame() {
        let (arena, mut pools) = Arena::new(1, 8, 0).unwrap();
        let mut wire = Wire::new(Random::new(1));
        for (corrupt, expected) in [(0, ChecksumState::Verified), (1_000_000, ChecksumState::Unknown)] {
            wire.impair(None, Impairment { corrupt, mtu: Some(1500), ..Impairment::default() });
            let mut frame = pools[0].allocate(60).unwrap();
            arena.open(&mut frame).record.checksum = ChecksumState::Verified;
            let sent = wire.send(frame, ORIGIN, Instant::ZERO, &mut pools[0]).unwrap();
            assert_eq!(arena.record(&sent.arrived.unwrap()).checksum, expected);
        }
    }

    #[test]
    fn a_setting_holds_for_what_sets_out_after_it_and_nothing_is_overtaken() {
        let (arena, mut pools) = Arena::new(1, 8, 0).unwrap();
        let mut wire = Wire::new(Random::new(1));
        for (length, impairment) in [(60, delayed(10)), (61, delayed(1)), (62, Impairment::default())] {
            wire.impair(None, impairment);
            let frame = pools[0].allocate(length).unwrap();
            wire.send(frame, ORIGIN, Instant::ZERO, &mut pools[0]).unwrap();
        }
        wire.impair(None, Impairment { down: true, ..Impairment::default() });
        let refused = wire.send(pools[0].allocate(63).unwrap(), ORIGIN, Instant::ZERO, &mut pools[0]);
        assert_eq!(refused.unwrap_err().1, DropReason::LinkDown);
        assert_eq!(wire.next_arrival(), Some(Instant::from_nanos(10_000_000)));
        let arrived = std::iter::from_fn(|| wire.arrival(Instant::from_nanos(10_000_000)));
        let lengths: Vec<usize> = arrived.map(|frame| arena.bytes(&frame).len()).collect();
        assert_eq!(lengths, [60, 61, 62], "what is in flight when a link goes down arrives");
    }
}
