//! How much of something a worker does: a bucket of tokens.
//!
//! Asked where a node could be made to do more than it should: errors, floods, decisions. Invariants: over any time no more
//! is done than the rate times that time, and a burst; while others' frames wait, no port's decisions take more than their
//! share. Read first: RFC 1812, 4.3.2.8.

use super::BATCH_LIMIT;
use crate::clock::Instant;
use crate::control::RING_LIMIT;

/// What a decision takes, in frames that the cache answers.
pub(super) const DECISION: u64 = 40;
/// One of so many parts of a worker's work is what one port's decisions may be while other ports' frames wait. Well below the
/// twentieth that a flood may cost: a decision now and then finds nothing of the slow path in the processor's caches.
const SHARE: u64 = 64;
/// What a port owes for a decision: so much is to be done by the worker until the port has had no more than its share.
const PRICE: u64 = DECISION * SHARE;
/// Decisions that a new flow is charged for: one about it, and one about its answer, which costs who answers nothing.
pub(super) const NEW_FLOW: u64 = 2;
/// What a port may owe before it waits for others: a full batch of new flows.
const CREDIT: u64 = BATCH_LIMIT as u64 * NEW_FLOW * PRICE;
/// Frames taken at once from a port that owes much: others' frames, which come meanwhile, fit their rings.
pub(super) const SMALL_BATCH: usize = 16;
/// What a port owes at most: a flood is soon forgotten when it ends.
pub(super) const DEBT_LIMIT: u64 = CREDIT + SMALL_BATCH as u64 * NEW_FLOW * PRICE;
/// The same of a port at another worker than its own, of which so much more may be on its way between the two.
pub(super) const BURST_LIMIT: u64 = DEBT_LIMIT + RING_LIMIT as u64 * NEW_FLOW * PRICE;

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) per_second: u64,
    pub(super) burst: u64,
}

/// A bucket of tokens.
#[derive(Debug)]
pub(super) struct TokenBucket {
    rate: Rate,
    tokens: u64,
    filled: Instant,
}

impl TokenBucket {
    pub(super) fn full(rate: Rate) -> Self {
        Self { rate, tokens: rate.burst, filled: Instant::ZERO }
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let interval = 1_000_000_000 / self.rate.per_second;
        let earned = now.as_nanos().saturating_sub(self.filled.as_nanos()) / interval;
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(self.rate.burst);
            self.filled = Instant::from_nanos(self.filled.as_nanos() + earned * interval);
        }
        let may = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        may
    }
}

/// What the slow path did for the frames of one port and was not paid for yet by work for all. Work is counted in frames that
/// the cache answers, never in time: so each run does the same.
#[derive(Debug, Default)]
pub(super) struct Debt {
    owed: u64,
    /// The worker's work when it was last paid for.
    paid: u64,
}

impl Debt {
    /// Returns how many frames may be taken from the port now that the worker has done so much work; 0 while it must wait for
    /// others.
    #[inline(always)]
    pub(super) fn batch_limit(&mut self, work: u64) -> usize {
        if self.owed == 0 { BATCH_LIMIT } else { self.settle(work) }
    }

    fn settle(&mut self, work: u64) -> usize {
        self.owed = self.owed.saturating_sub(work - self.paid);
        self.paid = work;
        match self.owed {
            owed if owed <= CREDIT / 2 => BATCH_LIMIT,
            owed if owed <= CREDIT => SMALL_BATCH,
            _ => 0,
        }
    }

    /// Forgives what is owed: nobody wanted the time that it took.
    pub(super) fn forgive(&mut self) {
        self.owed = 0;
    }

    /// Adds decisions about the port's frames, which are part of the worker's work by now; to no more than a limit.
    #[cold]
    pub(super) fn charge(&mut self, decisions: u64, work: u64, limit: u64) {
        self.settle(work);
        self.owed = self.owed.max(limit.min(self.owed + decisions * PRICE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// RFC 1812, 4.3.2.8.
        #[test]
        fn no_more_is_given_than_rate_and_burst(steps in prop::collection::vec(0u64..3_000_000, 1..300)) {
            let mut bucket = TokenBucket::full(Rate { per_second: 1000, burst: 50 });
            let (mut now, mut given) = (0, 0u64);
            for step in steps {
                now += step;
                given += u64::from(bucket.take(Instant::from_nanos(now)));
                prop_assert!(given <= 50 + now / 1_000_000);
            }
        }
    }

    /// RFC 1812, 4.3.2.8.
    #[test]
    fn a_steady_asker_gets_the_rate() {
        let mut bucket = TokenBucket::full(Rate { per_second: 1000, burst: 1 });
        // One more than a token each interval, from a start that is no multiple of it.
        let given =
            (0..20_000u64).filter(|step| bucket.take(Instant::from_nanos(777 + step * 500_000))).count();
        assert!((9_998..=10_001).contains(&given), "{given}");
    }

    #[test]
    fn a_port_whose_frames_all_need_decisions_gets_its_share_of_others_work() {
        let (mut debt, mut work, mut decisions) = (Debt::default(), 0, 0);
        for _ in 0..100_000 {
            work += BATCH_LIMIT as u64;
            let taken = debt.batch_limit(work) as u64;
            if taken > 0 {
                work += taken * DECISION;
                debt.charge(taken, work, DEBT_LIMIT);
                decisions += taken;
            }
        }
        let burst = DEBT_LIMIT / PRICE;
        assert!(decisions * DECISION <= work / SHARE + burst * DECISION, "{decisions} of {work}");
        assert!(decisions * DECISION >= work / SHARE * 9 / 10, "{decisions} of {work}");
    }

    #[test]
    fn a_flood_is_soon_forgotten_when_it_ends() {
        let (mut debt, mut work) = (Debt::default(), 0);
        // Nobody else sends: it has small batches although it owes.
        for _ in 0..10_000 {
            work += SMALL_BATCH as u64 * DECISION;
            debt.charge(SMALL_BATCH as u64, work, DEBT_LIMIT);
        }
        for (others, limit) in
            [(0, 0), (DEBT_LIMIT - CREDIT - 1, 0), (1, SMALL_BATCH), (CREDIT / 2, BATCH_LIMIT)]
        {
            work += others;
            assert_eq!(debt.batch_limit(work), limit);
        }
    }

    #[test]
    fn a_port_that_seldom_needs_decisions_never_waits() {
        let (mut debt, mut work) = (Debt::default(), 0);
        for batch in 0..100_000u64 {
            assert_eq!(debt.batch_limit(work), BATCH_LIMIT);
            work += BATCH_LIMIT as u64;
            // Nobody else sends.
            if batch % (PRICE / BATCH_LIMIT as u64) == 0 {
                work += DECISION;
                debt.charge(1, work, DEBT_LIMIT);
            }
        }
    }
}
