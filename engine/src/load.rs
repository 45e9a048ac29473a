//! How many connections each backend has: what least-connection schedulers ask.
//!
//! A backend of such a Service has a number from the control side; each worker counts its bindings under it, and who
//! chooses sums the workers. Invariants: one worker writes a counter, so counting is a plain load and store; what a
//! binding added it takes away at its end; a number is given away anew when nobody counts under it. Allowed
//! dependencies: proxy. Read first: `docs/adr/0016-services-as-lvs-has-them.md`; ipvsadm(8), ActiveConn and InActConn.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flatnet_proxy::{Backend, Load};

/// Backends of least-connection Services that an engine counts: half a megabyte a worker.
pub const COUNTED_LIMIT: u32 = 1 << 16;
/// The number of backends that nobody counts.
pub const UNCOUNTED: u32 = u32::MAX;

/// One worker's counters: established connections in the upper half, other flows in the lower one.
type Row = Arc<[AtomicU64]>;

/// The counters of all workers, seen from one of them.
#[derive(Debug, Clone, Default)]
pub struct Loads {
    rows: Arc<[Row]>,
    own: usize,
}

impl Loads {
    /// Makes the counters of some workers.
    #[must_use]
    pub fn new(workers: u8) -> Self {
        let row = || (0..COUNTED_LIMIT).map(|_| AtomicU64::new(0)).collect();
        Self { rows: (0..workers).map(|_| row()).collect(), own: 0 }
    }

    /// Returns them as a worker sees them.
    #[must_use]
    pub fn of(&self, worker: u8) -> Self {
        Self { rows: Arc::clone(&self.rows), own: worker.into() }
    }

    /// Sums a number's counters over the workers.
    #[must_use]
    pub fn sum(&self, number: u32) -> Load {
        let counters = self.rows.iter().filter_map(|row| row.get(number as usize));
        counters.fold(Load::default(), |sum, counter| {
            let [active, inactive] = halves(counter.load(Ordering::Relaxed));
            // One worker's count is never negative, and bindings are fewer than 2³².
            Load { active: sum.active.wrapping_add(active), inactive: sum.inactive.wrapping_add(inactive) }
        })
    }

    /// Counts a connection that begins.
    pub(crate) fn begin(&self, number: u32, active: bool) {
        self.change(number, |counter| counter.wrapping_add(one(active)));
    }

    /// Counts a connection that ends.
    pub(crate) fn end(&self, number: u32, active: bool) {
        self.change(number, |counter| counter.wrapping_sub(one(active)));
    }

    fn change(&self, number: u32, change: impl FnOnce(u64) -> u64) {
        if let Some(counter) = self.rows.get(self.own).and_then(|row| row.get(number as usize)) {
            counter.store(change(counter.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
    }
}

const fn one(active: bool) -> u64 {
    if active { 1 << 32 } else { 1 }
}

const fn halves(counter: u64) -> [u32; 2] {
    [(counter >> 32) as u32, counter as u32]
}

/// A pod's port.
type Target = (u64, Ipv4Addr, u16);

/// Which backend has which number: the control side's.
#[derive(Debug, Default)]
pub struct Numbers {
    of: BTreeMap<u32, BTreeMap<Target, u32>>,
    free: Vec<u32>,
    next: u32,
}

impl Numbers {
    /// Gives the backends of a Service their numbers, in their order; `None` when there are no more.
    ///
    /// One that has left keeps its number while connections to it last, and finds it again when it comes back.
    pub fn assign(&mut self, service: u32, backends: &[Backend], loads: &Loads) -> Option<Arc<[u32]>> {
        let present: BTreeSet<Target> = backends.iter().map(Backend::key).collect();
        let known = self.of.entry(service).or_default();
        known.retain(|target, &mut number| {
            let stays = present.contains(target) || loads.sum(number) != Load::default();
            if !stays {
                self.free.push(number);
            }
            stays
        });
        let mut numbers = Vec::with_capacity(backends.len());
        for backend in backends {
            let number = match known.get(&backend.key()) {
                Some(&number) => number,
                None => match self.free.pop() {
                    Some(number) => number,
                    None if self.next < COUNTED_LIMIT => {
                        self.next += 1;
                        self.next - 1
                    }
                    None => return None,
                },
            };
            known.insert(backend.key(), number);
            numbers.push(number);
        }
        if known.is_empty() {
            self.of.remove(&service);
        }
        Some(numbers.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(identity: u64) -> Backend {
        Backend::new([10, 1, 0, 1].into(), 80, identity)
    }

    #[test]
    fn counts_are_summed_over_the_workers() {
        let loads = Loads::new(3);
        loads.of(0).begin(7, false);
        loads.of(2).begin(7, true);
        loads.of(2).begin(7, true);
        loads.of(2).end(7, true);
        assert_eq!(loads.sum(7), Load { active: 1, inactive: 1 });
        loads.begin(UNCOUNTED, true);
        assert_eq!((loads.sum(8), loads.sum(UNCOUNTED)), (Load::default(), Load::default()));
    }

    #[test]
    fn a_number_is_given_away_anew_when_nobody_counts_under_it() {
        let (loads, mut numbers) = (Loads::new(1), Numbers::default());
        let given = numbers.assign(0, &[backend(1), backend(2)], &loads).unwrap();
        assert_eq!(*given, [0, 1]);
        loads.begin(0, true);
        assert_eq!(*numbers.assign(0, &[], &loads).unwrap(), []);
        // 1 is free, 0 is not: its pod comes back and finds it.
        assert_eq!(*numbers.assign(1, &[backend(3), backend(4)], &loads).unwrap(), [1, 2]);
        assert_eq!(*numbers.assign(0, &[backend(1)], &loads).unwrap(), [0]);
        loads.end(0, true);
        numbers.assign(0, &[], &loads).unwrap();
        assert_eq!(*numbers.assign(2, &[backend(5)], &loads).unwrap(), [0]);
    }

    #[test]
    fn there_are_no_more_numbers_than_counters() {
        let (loads, mut numbers) = (Loads::new(1), Numbers::default());
        let many: Vec<_> = (0..u64::from(COUNTED_LIMIT)).map(backend).collect();
        assert!(numbers.assign(0, &many, &loads).is_some());
        assert!(numbers.assign(1, &[backend(0)], &loads).is_none());
        numbers.assign(0, &[], &loads).unwrap();
        assert!(numbers.assign(1, &[backend(0)], &loads).is_some());
    }
}
