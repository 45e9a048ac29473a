//! Round-trip times and how programs write them.
//!
//! `ping` and `traceroute` use it. Invariant: integer nanoseconds inside, so that the same run gives the same text.
//! Depends on nothing. Read first: iputils' `ping_common.c`.

use std::time::Duration;

/// Sum of round-trip times.
#[derive(Debug, Clone, Default)]
pub(super) struct RoundTrips {
    count: u32,
    least: Duration,
    most: Duration,
    sum: u128,
    squares: u128,
}

impl RoundTrips {
    /// Adds one.
    pub(super) fn add(&mut self, time: Duration) {
        self.least = if self.count == 0 { time } else { self.least.min(time) };
        self.most = self.most.max(time);
        self.count += 1;
        self.sum += time.as_nanos();
        self.squares += time.as_nanos() * time.as_nanos();
    }

    /// Returns the longest.
    pub(super) fn most(&self) -> Option<Duration> {
        (self.count > 0).then_some(self.most)
    }

    /// Returns `min/avg/max/mdev` in milliseconds, if there is any.
    pub(super) fn summary(&self) -> Option<String> {
        let count = u128::from(self.count);
        let mean = self.sum.checked_div(count)?;
        let variance = (self.squares / count).saturating_sub(mean * mean);
        let deviation = variance.isqrt();
        let text = [self.least.as_nanos(), mean, self.most.as_nanos(), deviation].map(thousandths);
        Some(text.join("/"))
    }
}

/// Writes nanoseconds as milliseconds with three digits.
pub(super) fn thousandths(nanos: u128) -> String {
    let micros = (nanos + 500) / 1000;
    format!("{}.{:03}", micros / 1000, micros % 1000)
}

/// Writes a time as ping does: three significant digits.
pub(super) fn short(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1e3;
    if milliseconds >= 99.95 {
        format!("{milliseconds:.0}")
    } else if milliseconds >= 9.995 {
        format!("{milliseconds:.1}")
    } else if milliseconds >= 0.9995 {
        format!("{milliseconds:.2}")
    } else {
        format!("{milliseconds:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_ping_does() {
        let mut trips = RoundTrips::default();
        assert_eq!(trips.summary(), None);
        trips.add(Duration::from_micros(100));
        trips.add(Duration::from_micros(300));
        assert_eq!(trips.summary().unwrap(), "0.100/0.200/0.300/0.100");
        for (nanos, text) in
            [(45_000, "0.045"), (1_234_000, "1.23"), (12_340_000, "12.3"), (123_400_000, "123")]
        {
            assert_eq!(short(Duration::from_nanos(nanos)), text);
        }
    }
}
