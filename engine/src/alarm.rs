//! How a sleeping worker is woken: by whoever sent it something, a worker or the control side.
//!
//! Invariant: no wake-up is lost. The sender writes what it sends, then looks whether the worker sleeps; the worker says that it
//! sleeps, then looks for what was sent; a fence on both sides, so that one of them sees the other. Model-checked by loom.
//! Allowed dependencies: none. Read first: nothing.

#[cfg(loom)]
use loom::{
    sync::atomic::{AtomicBool, Ordering, fence},
    thread::{Thread, current},
};
#[cfg(not(loom))]
use std::{
    sync::atomic::{AtomicBool, Ordering, fence},
    thread::{Thread, current, park_timeout as park},
};

use std::sync::OnceLock;
use std::time::Duration;

/// Wakes a worker that sleeps; costs its sender a fence and a load when it does not, once per batch.
#[derive(Debug, Default)]
pub struct Alarm {
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Alarm {
    /// Wakes the worker if it sleeps; whatever was sent before is seen by it.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        // Acquires the thread, too, that the worker noted before.
        if self.asleep.load(Ordering::Acquire)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// Sleeps the calling worker for at most `limit` unless `busy` says that there is work.
    pub fn sleep(&self, limit: Duration, busy: impl FnOnce() -> bool) {
        self.thread.get_or_init(current);
        self.asleep.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        if !busy() {
            park(limit);
        }
        self.asleep.store(false, Ordering::Relaxed);
    }
}

/// In the model nobody wakes by himself: a lost wake-up is a thread that never ends.
#[cfg(loom)]
fn park(_: Duration) {
    loom::thread::park();
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;

    #[test]
    fn no_order_of_steps_loses_a_wake_up() {
        loom::model(|| {
            let (alarm, sent) = (Arc::new(Alarm::default()), Arc::new(AtomicUsize::new(0)));
            let worker = {
                let (alarm, sent) = (Arc::clone(&alarm), Arc::clone(&sent));
                loom::thread::spawn(move || {
                    for taken in 0..2 {
                        while sent.load(Ordering::Relaxed) <= taken {
                            alarm.sleep(Duration::MAX, || sent.load(Ordering::Relaxed) > taken);
                        }
                    }
                })
            };
            for _ in 0..2 {
                sent.fetch_add(1, Ordering::Relaxed);
                alarm.ring();
            }
            worker.join().unwrap();
        });
    }
}
