//! An in-memory cable end: what is sent here arrives at the peer port, later, or not at all.
//!
//! The worker that owns both ends sends frames in and takes out what is due. Invariants: frames of one delay
//! stay in order; chance comes from the wire's own seeded generator; a cable holds at most [`CABLE_LIMIT`]
//! frames. Allowed dependencies: `frame`, `random`, `clock`, `ledger`. Read first: `docs/architecture.md`, "Links".

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use crate::clock::Instant;
use crate::frame::Frame;
use crate::ledger::DropReason;
use crate::random::Random;
use crate::tables::PortId;

/// Frames in flight on one end of a cable.
pub const CABLE_LIMIT: usize = 1 << 14;

/// How a cable differs from a perfect one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Impairment {
    /// Time from one end to the other.
    pub delay: Duration,
    /// Frames lost, parts per million.
    pub loss: u32,
    /// Largest IP packet it takes, bytes; no limit by default.
    pub mtu: Option<u16>,
}

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

/// One end of a cable.
#[derive(Debug)]
pub struct Wire {
    usual: Impairment,
    /// What differs for frames that came to this end's node by a certain port: a switch's path between a pair.
    by_origin: BTreeMap<PortId, Impairment>,
    in_flight: BinaryHeap<InFlight>,
    sequence: u64,
    random: Random,
}

impl Wire {
    /// Makes an end of a perfect cable.
    #[must_use]
    pub fn new(random: Random) -> Self {
        Self {
            usual: Impairment::default(),
            by_origin: BTreeMap::new(),
            in_flight: BinaryHeap::new(),
            sequence: 0,
            random,
        }
    }

    /// Sets how frames fare that came to this node by `origin`, or all others.
    pub fn impair(&mut self, origin: Option<PortId>, impairment: Impairment) {
        match origin {
            Some(origin) => {
                self.by_origin.insert(origin, impairment);
            }
            None => self.usual = impairment,
        }
    }

    /// Sends a frame whose IP packet is `packet_length` bytes long; a perfect cable gives it back: it has arrived.
    ///
    /// # Errors
    /// The frame and why.
    pub fn send(
        &mut self,
        frame: Frame,
        origin: PortId,
        packet_length: usize,
        now: Instant,
    ) -> Result<Option<Frame>, (Frame, DropReason)> {
        let impairment = self.by_origin.get(&origin).unwrap_or(&self.usual);
        if impairment.mtu.is_some_and(|mtu| packet_length > usize::from(mtu)) {
            return Err((frame, DropReason::LinkMtu));
        }
        if self.random.chance(impairment.loss) {
            return Err((frame, DropReason::LinkLoss));
        }
        if impairment.delay.is_zero() && self.in_flight.is_empty() {
            return Ok(Some(frame));
        }
        if self.in_flight.len() >= CABLE_LIMIT {
            return Err((frame, DropReason::LinkQueueFull));
        }
        self.sequence += 1;
        self.in_flight.push(InFlight { due: now + impairment.delay, sequence: self.sequence, frame });
        Ok(None)
    }

    /// Takes the next frame that has arrived by now.
    pub fn arrival(&mut self, now: Instant) -> Option<Frame> {
        if self.in_flight.peek()?.due > now {
            return None;
        }
        self.in_flight.pop().map(|arrived| arrived.frame)
    }

    /// Returns when the next frame arrives.
    #[must_use]
    pub fn next_arrival(&self) -> Option<Instant> {
        self.in_flight.peek().map(|next| next.due)
    }

    /// Takes a frame off the cable, due or not, to end.
    pub fn drain(&mut self) -> Option<Frame> {
        self.in_flight.pop().map(|frame| frame.frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Arena;

    #[test]
    fn frames_arrive_after_their_delay_in_order() {
        let (arena, mut pools) = Arena::new(1, 8, 0).unwrap();
        let mut wire = Wire::new(Random::new(1));
        wire.impair(None, Impairment { delay: Duration::from_millis(2), ..Impairment::default() });
        for length in [60, 61] {
            wire.send(pools[0].allocate(length).unwrap(), PortId(9), 46, Instant::ZERO).unwrap();
        }
        assert!(wire.arrival(Instant::from_nanos(1_999_999)).is_none());
        let due = wire.next_arrival().unwrap();
        let lengths = [wire.arrival(due), wire.arrival(due)].map(|frame| arena.bytes(&frame.unwrap()).len());
        assert_eq!((lengths, wire.next_arrival()), ([60, 61], None));
    }

    #[test]
    fn a_pair_of_its_own_may_lose_everything() {
        let (_arena, mut pools) = Arena::new(1, 8, 0).unwrap();
        let mut wire = Wire::new(Random::new(1));
        wire.impair(Some(PortId(3)), Impairment { loss: 1_000_000, ..Impairment::default() });
        wire.impair(Some(PortId(4)), Impairment { mtu: Some(100), ..Impairment::default() });
        let mut send = |origin| {
            let sent = wire.send(pools[0].allocate(200).unwrap(), origin, 186, Instant::ZERO);
            sent.map(|arrived| arrived.is_some()).map_err(|(_, reason)| reason)
        };
        assert_eq!(send(PortId(3)), Err(DropReason::LinkLoss));
        assert_eq!(send(PortId(4)), Err(DropReason::LinkMtu));
        assert_eq!(send(PortId(5)), Ok(true), "a perfect cable");
    }
}
