//! A TCP connection's state as a middlebox sees it, from the flags that pass.
//!
//! The table of bindings keeps one per connection. Invariant: nothing but the packets decides. Allowed dependencies:
//! `wire`. Read first: RFC 9293, 3.3.2; RFC 5382, 5.

use super::Half;
use crate::wire::TcpFlags;

/// TCP's state as a middlebox sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// SYN seen.
    SynSent,
    /// SYN answered.
    SynReceived,
    /// Data may flow.
    Established,
    /// One side closed.
    FinWait,
    /// Both sides closed.
    TimeWait,
    /// Reset.
    Closed,
}

impl TcpState {
    /// Returns the state after a packet; `fins` says which side has closed so far.
    pub(super) fn next(self, half: Half, flags: TcpFlags, fins: &mut [bool; 2]) -> Self {
        if flags.rst() {
            return Self::Closed;
        }
        if flags.syn() {
            return match (half, flags.ack(), self) {
                // The connection is opened anew from the same ports.
                (_, false, Self::TimeWait | Self::Closed) => {
                    *fins = [false; 2];
                    Self::SynSent
                }
                (Half::Reply, _, Self::SynSent) => Self::SynReceived,
                (_, _, state) => state,
            };
        }
        if flags.fin() {
            fins[half as usize] = true;
            return if *fins == [true; 2] { Self::TimeWait } else { Self::FinWait };
        }
        match (self, half) {
            (Self::SynReceived, Half::Original) => Self::Established,
            (state, _) => state,
        }
    }
}
