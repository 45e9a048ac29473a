//! More than one loss in a window: what smoltcp (0.14) leaves to its timer of at least a second.
//!
//! smoltcp sends a segment again at the third duplicate acknowledgement, and then waits for its timer, though the next
//! acknowledgement says what else is missing. A connection tells of all that it sends and hears; where the acknowledgement is
//! a partial one, it hands smoltcp the duplicates that the sender of it would send. Invariant: nothing is sent here. Allowed
//! dependencies: none. Read first: RFC 6582, 3.2; RFC 5681, 2.

/// Duplicate acknowledgements that say that a segment is lost.
pub(super) const DUPLICATES: u8 = 3;

/// Where a connection's own data stand.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Recovery {
    /// What the other side has acknowledged.
    acknowledged: u32,
    /// How often it said so without anything else.
    duplicates: u8,
    /// The window it gave with that.
    window: u16,
    /// The end of all that was sent.
    sent: u32,
    /// What had been sent when a loss was noticed, until it is acknowledged.
    recover: Option<u32>,
}

fn is_behind(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

impl Recovery {
    /// Takes note of what was sent, by its end.
    pub(super) fn send(&mut self, end: u32) {
        if is_behind(self.sent, end) || self.sent == 0 {
            self.sent = end;
        }
    }

    /// Takes note of an acknowledgement and of the window with it; it `is_bare` when its segment says nothing else. Tells whether the
    /// segment behind it was lost: it is the third duplicate, of which smoltcp wants three without any data between, as there are
    /// when both sides speak; or it is a partial one.
    pub(super) fn hear(&mut self, acknowledgement: u32, window: u16, is_bare: bool) -> bool {
        let is_same_window = std::mem::replace(&mut self.window, window) == window;
        if self.acknowledged == acknowledgement {
            let in_flight = is_behind(acknowledgement, self.sent);
            self.duplicates =
                self.duplicates.saturating_add(u8::from(is_bare && is_same_window && in_flight));
            if self.duplicates < DUPLICATES || self.recover.is_some() {
                return false;
            }
            self.recover = Some(self.sent);
            return true;
        }
        if is_behind(acknowledgement, self.acknowledged) && self.sent != 0 && self.acknowledged != 0 {
            return false;
        }
        (self.acknowledged, self.duplicates) = (acknowledgement, 0);
        self.recover = self.recover.filter(|&recover| is_behind(acknowledgement, recover));
        self.recover.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: u32 = u32::MAX - 100;

    /// RFC 6582, 3.2; RFC 5681, 2: what says more than a duplicate is none, and starts no new count.
    #[test]
    fn three_duplicates_and_partial_acknowledgements_tell_of_a_loss() {
        let mut recovery = Recovery::default();
        recovery.send(FIRST);
        assert!(!recovery.hear(FIRST, 9, true));
        recovery.send(900);
        for (window, is_bare) in [(9, true), (9, true), (9, false), (9, false), (8, true), (9, true)] {
            assert!(!recovery.hear(FIRST, window, is_bare), "two duplicates may be reordering");
        }
        assert!(recovery.hear(FIRST, 9, true) && !recovery.hear(FIRST, 9, true), "the third tells it once");
        recovery.send(1000);
        recovery.send(200);
        assert!(recovery.hear(500, 9, true) && recovery.hear(899, 9, false));
        assert!(!recovery.hear(899, 9, true) && !recovery.hear(500, 9, true));
        assert!(!recovery.hear(900, 9, true), "all that was sent before the loss");
        assert!(!recovery.hear(1000, 9, true));
    }
}
