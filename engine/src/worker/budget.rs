//! How much of something a worker does: a bucket of tokens.
//!
//! Asked where a node could be made to do more than it should: errors, floods. Invariant: over any time no more is done
//! than the rate times that time, and a burst. Read first: RFC 1812, 4.3.2.8.

use crate::clock::Instant;

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
}
