//! A TCP connection's state as a middlebox sees it, from the segments that pass.
//!
//! The table of bindings keeps one per connection. Invariants: nothing but the segments decides; a reset counts only
//! where its receiver would take it. Allowed dependencies: `wire`. Read first: Linux's `nf_conntrack_proto_tcp.c`, whose
//! states these are; RFC 9293, 3.10.7; RFC 5961, 3; RFC 5382, 2 and 5.

use super::{Half, Profile};
use crate::wire::{TcpFlags, TcpSegment};

/// TCP's state as a middlebox sees it, by conntrack's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// SYN seen.
    SynSent,
    /// SYN seen in both directions: a simultaneous open.
    SynSentBoth,
    /// SYN answered.
    SynReceived,
    /// Data may flow.
    Established,
    /// One side closed.
    FinWait,
    /// And the other has acknowledged it: half-closed, data may flow the other way.
    CloseWait,
    /// Both sides closed, the last acknowledgement is missing.
    LastAck,
    /// All over.
    TimeWait,
    /// Reset.
    Closed,
}

/// What of a TCP segment the state depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// Its flags; none for other protocols.
    pub flags: TcpFlags,
    /// Its sequence number.
    pub sequence: u32,
    /// Its acknowledgement number.
    pub acknowledgement: u32,
    /// Its window, unscaled.
    pub window: u16,
    /// Its window scale (RFC 7323, 2.2), which a SYN may have.
    pub scale: Option<u8>,
}

impl Segment {
    /// Reads a segment that the parser has checked.
    #[must_use]
    pub fn of(segment: &TcpSegment<&[u8]>) -> Self {
        Self {
            flags: segment.flags(),
            sequence: segment.sequence(),
            acknowledgement: segment.acknowledgement(),
            window: segment.window(),
            scale: segment.window_scale(),
        }
    }
}

/// What one side expects next, as it last said itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Receiver {
    next: u32,
    window: u16,
    scale: u8,
    is_known: bool,
}

/// State of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) state: TcpState,
    /// Original, reply.
    receivers: [Receiver; 2],
    /// What acknowledges the original side's SYN.
    opening: u32,
}

impl Connection {
    /// Makes the state before its first segment: one that was open before is taken as open (conntrack's `tcp_loose`).
    pub(super) fn before(first: &Segment) -> Self {
        let state = if first.flags.syn() { TcpState::SynSent } else { TcpState::Established };
        Self { state, receivers: [Receiver::default(); 2], opening: first.sequence.wrapping_add(1) }
    }

    /// Tells whether the receiver of a reset would take it: RFC 9293, 3.10.7.3 for one that answers a SYN, else
    /// RFC 5961, 3.2 as far as a middlebox can tell, which is the window. What never spoke cannot be asked.
    pub(super) fn takes_reset(&self, half: Half, reset: &Segment) -> bool {
        if self.state == TcpState::SynSent && half == Half::Reply {
            return reset.flags.ack() && reset.acknowledgement == self.opening;
        }
        let receiver = &self.receivers[1 - half as usize];
        let window = (u32::from(receiver.window) << receiver.scale).max(1);
        !receiver.is_known || reset.sequence.wrapping_sub(receiver.next) < window
    }

    /// Notes what a segment says its sender expects.
    #[inline(always)]
    pub(super) fn hear(&mut self, half: Half, acknowledgement: u32, window: u16) {
        let receiver = &mut self.receivers[half as usize];
        (receiver.next, receiver.window, receiver.is_known) = (acknowledgement, window, true);
    }

    /// Presumes the answer that is not seen here: a client that acknowledges was answered (LVS's table for
    /// `IP_VS_DIR_INPUT_ONLY`).
    pub(super) fn presume(&mut self, half: Half, segment: &Segment) {
        let acknowledges = half == Half::Original && segment.flags.ack() && !segment.flags.syn();
        if self.state == TcpState::SynSent && acknowledges {
            self.state = TcpState::SynReceived;
        }
    }

    /// Notes a segment.
    pub(super) fn note(&mut self, half: Half, segment: &Segment, profile: Profile) {
        let opens = segment.flags.syn() && !segment.flags.ack();
        // RFC 7857, 2.2: a reset that ended nothing is forgotten.
        let data = segment.flags.ack() && !segment.flags.syn() && !segment.flags.rst();
        if profile == Profile::Rfc && self.state == TcpState::Closed && data {
            self.state = TcpState::Established;
        }
        let next = self.state.next(half, segment.flags);
        if opens && half == Half::Original && next == TcpState::SynSent {
            *self = Self { state: next, ..Self::before(segment) };
        }
        self.state = next;
        if segment.flags.syn() {
            self.receivers[half as usize].scale = segment.scale.unwrap_or(0);
        }
        if segment.flags.ack() && !segment.flags.rst() {
            self.hear(half, segment.acknowledgement, segment.window);
        }
    }
}

impl TcpState {
    /// Tells whether plain segments change nothing: the cache may forward them.
    #[must_use]
    pub const fn is_steady(self) -> bool {
        match self {
            Self::Established | Self::CloseWait | Self::TimeWait => true,
            Self::SynSent
            | Self::SynSentBoth
            | Self::SynReceived
            | Self::FinWait
            | Self::LastAck
            | Self::Closed => false,
        }
    }

    /// Returns the state after a segment. What conntrack calls invalid or ignores changes nothing: ends judge better.
    fn next(self, half: Half, flags: TcpFlags) -> Self {
        if flags.rst() {
            return Self::Closed;
        }
        match (flags.syn(), flags.ack(), flags.fin()) {
            (true, false, _) => self.after_syn(half),
            (true, true, _) => match self {
                Self::SynSent if half == Half::Reply => Self::SynReceived,
                Self::SynSentBoth => Self::SynReceived,
                Self::SynSent
                | Self::SynReceived
                | Self::Established
                | Self::FinWait
                | Self::CloseWait
                | Self::LastAck
                | Self::TimeWait
                | Self::Closed => self,
            },
            (false, _, true) => match self {
                Self::SynReceived | Self::Established => Self::FinWait,
                Self::FinWait | Self::CloseWait | Self::LastAck => Self::LastAck,
                Self::SynSent | Self::SynSentBoth | Self::TimeWait | Self::Closed => self,
            },
            (false, true, false) => match self {
                Self::SynReceived if half == Half::Original => Self::Established,
                Self::FinWait => Self::CloseWait,
                Self::LastAck => Self::TimeWait,
                Self::SynSent
                | Self::SynSentBoth
                | Self::SynReceived
                | Self::Established
                | Self::CloseWait
                | Self::TimeWait
                | Self::Closed => self,
            },
            (false, false, false) => self,
        }
    }

    fn after_syn(self, half: Half) -> Self {
        match (self, half) {
            (Self::SynSent, Half::Reply) => Self::SynSentBoth,
            // The connection is opened anew from the same ports.
            (Self::TimeWait, _) | (Self::Closed, Half::Original) => Self::SynSent,
            (state, _) => state,
        }
    }
}
