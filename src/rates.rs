//! Live rates: frames and bits a second of every node, drops a second by reason.
//!
//! The instance takes a sample once a second; `flatnet up` shows them on a terminal, `flatnet status` asks for them.
//! Invariant: a rate is the difference of two counts over the time between them.
//!
//! May depend on engine and agents. Read first: `engine/src/ledger.rs`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use flatnet_agents::publisher::Publisher;
use flatnet_engine::ledger::{DropReason, Ledger, Term};
use flatnet_engine::tables::NodeId;

use crate::output::plain_table;
use crate::views::Rate;

/// Time between samples.
const INTERVAL: Duration = Duration::from_secs(1);

/// A node's rates.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeRates {
    /// Frames that came in.
    pub frames: f64,
    /// Bits that came in.
    pub bits: f64,
    /// Drops by reason.
    pub drops: Vec<Rate>,
}

/// The last sample and what it gave.
#[derive(Debug)]
pub struct Rates {
    sampled: Instant,
    counts: BTreeMap<NodeId, Ledger>,
    /// By node.
    pub nodes: BTreeMap<NodeId, NodeRates>,
}

impl Default for Rates {
    fn default() -> Self {
        Self { sampled: Instant::now(), counts: BTreeMap::new(), nodes: BTreeMap::new() }
    }
}

impl Rates {
    /// Takes a sample if it is time; tells whether it did.
    pub fn sample(&mut self, publisher: &Publisher) -> bool {
        let elapsed = self.sampled.elapsed();
        if elapsed < INTERVAL {
            return false;
        }
        self.sampled = Instant::now();
        for (_, node) in publisher.nodes() {
            let ledger = publisher.control.ledger(node);
            let before = self.counts.remove(&node).unwrap_or_default();
            self.nodes.insert(node, between(&before, &ledger, elapsed.as_secs_f64()));
            self.counts.insert(node, ledger);
        }
        true
    }

    /// Prints the rates for people, a line per node.
    pub fn table(&self, publisher: &Publisher) -> String {
        let mut table = plain_table(["NODE", "FRAMES/S", "BITS/S", "DROPS/S"]);
        for (name, node) in publisher.nodes() {
            let Some(rates) = self.nodes.get(&node) else { continue };
            let mut drops = String::new();
            for rate in &rates.drops {
                let _ = write!(drops, "{} {} ", rate.reason, short(rate.per_second));
            }
            table.add_row([name, short(rates.frames), short(rates.bits), drops]);
        }
        table.trim_fmt()
    }
}

fn between(before: &Ledger, after: &Ledger, seconds: f64) -> NodeRates {
    let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
    let drops = DropReason::ALL.iter().filter_map(|&reason| {
        let per_second = rate(before.drops(reason), after.drops(reason));
        (per_second > 0.0).then(|| Rate { reason: reason.name().to_owned(), per_second })
    });
    NodeRates {
        frames: rate(before.term(Term::Received), after.term(Term::Received)),
        bits: rate(before.bytes * 8, after.bytes * 8),
        drops: drops.collect(),
    }
}

/// Writes a number with three or four digits and its unit: `17`, `1.25k`, `13.1M`.
pub fn short(number: f64) -> String {
    for (unit, factor) in [("G", 1e9), ("M", 1e6), ("k", 1e3)] {
        if number >= factor {
            let value = number / factor;
            let digits = if value >= 100.0 {
                0
            } else if value >= 10.0 {
                1
            } else {
                2
            };
            return format!("{value:.digits$}{unit}");
        }
    }
    format!("{number:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let written = [0.0, 999.4, 1250.0, 13_100_000.0, 2.5e11].map(short);
        assert_eq!(written, ["0", "999", "1.25k", "13.1M", "250G"]);
    }

    #[test]
    fn a_rate_is_a_difference_over_time() {
        let mut after = Ledger::default();
        after.bytes = 1500;
        assert_eq!(between(&Ledger::default(), &after, 2.0).bits, 6000.0);
    }
}
