//! How a sleeping worker is woken: by whoever sent it something, a worker or the control side.
//!
//! Invariant: no wake-up is lost. The sender writes what it sends, then looks whether the worker sleeps; the worker says that it
//! sleeps, then looks for what was sent; a fence on both sides, so that one of them sees the other. Model-checked by loom.
//! Allowed dependencies: mio. Read first: nothing.

#[cfg(loom)]
pub use bell::Bell;
#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(loom))]
pub use mio::Waker as Bell;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Wakes a worker that sleeps; costs its sender a fence and a load when it does not, once per batch.
#[derive(Debug)]
pub struct Alarm {
    asleep: AtomicBool,
    bell: Bell,
}

impl Alarm {
    /// Makes the alarm of a worker that sleeps where this bell is heard.
    #[must_use]
    pub fn new(bell: Bell) -> Self {
        Self { asleep: AtomicBool::new(false), bell }
    }

    /// Wakes the worker if it sleeps; whatever was sent before is seen by it.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            // Fails only where the system has no memory left; the worker looks up by itself soon.
            let _ = self.bell.wake();
        }
    }

    /// Says that the calling worker sleeps. It looks for what was sent once more before it does.
    pub fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Says that it does not.
    pub fn get_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}

/// A bell of the model's: in it nobody wakes by himself, so that a lost wake-up is a thread that never ends.
#[cfg(loom)]
mod bell {
    /// What the model's worker waits for.
    #[derive(Debug)]
    pub struct Bell(pub loom::sync::Notify);

    impl Default for Bell {
        fn default() -> Self {
            Self(loom::sync::Notify::new())
        }
    }

    impl Bell {
        /// Rings; never fails.
        ///
        /// # Errors
        /// None.
        pub fn wake(&self) -> std::io::Result<()> {
            self.0.notify();
            Ok(())
        }
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;

    #[test]
    fn no_order_of_steps_loses_a_wake_up() {
        loom::model(|| {
            let (alarm, sent) = (Arc::new(Alarm::new(Bell::default())), Arc::new(AtomicUsize::new(0)));
            let worker = {
                let (alarm, sent) = (Arc::clone(&alarm), Arc::clone(&sent));
                loom::thread::spawn(move || {
                    for taken in 0..2 {
                        while sent.load(Ordering::Relaxed) <= taken {
                            alarm.fall_asleep();
                            if sent.load(Ordering::Relaxed) <= taken {
                                alarm.bell.0.wait();
                            }
                            alarm.get_up();
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
