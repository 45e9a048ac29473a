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

    /// Takes note of an acknowledgement, which `is_bare` when its segment says nothing else. Tells whether it is a partial one: the
    /// segment behind it was lost as well.
    pub(super) fn hear(&mut self, acknowledgement: u32, is_bare: bool) -> bool {
        if self.acknowledged == acknowledgement {
            let in_flight = is_behind(acknowledgement, self.sent);
            self.duplicates = self.duplicates.saturating_add(u8::from(is_bare && in_flight));
            if self.duplicates == DUPLICATES && self.recover.is_none() {
                self.recover = Some(self.sent);
            }
            return false;
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

    /// RFC 6582, 3.2.
    #[test]
    fn a_partial_acknowledgement_tells_of_another_loss() {
        let mut recovery = Recovery::default();
        recovery.send(u32::MAX - 100);
        assert!(!recovery.hear(u32::MAX - 100, true));
        recovery.send(900);
        // Two duplicates are reordering, three are a loss; data with the same acknowledgement are none.
        assert!([true, true, false, false].iter().all(|&bare| !recovery.hear(u32::MAX - 100, bare)));
        assert!(!recovery.hear(100, true), "nothing was lost");
        assert!([true; 3].iter().all(|&bare| !recovery.hear(100, bare)));
        recovery.send(1000);
        recovery.send(200);
        assert!(recovery.hear(500, true) && recovery.hear(899, false));
        assert!(!recovery.hear(899, true) && !recovery.hear(500, true));
        assert!(!recovery.hear(900, true), "all that was sent before the loss");
        assert!(!recovery.hear(1000, true));
    }
}
