//! A TCP connection's state as a middlebox sees it, from the segments that pass.
//!
//! The table of bindings keeps one per connection. Invariants: nothing but the segments decides; a reset or FIN counts only
//! where its receiver would take it, an acknowledgement only of what may have been sent. Allowed dependencies: `wire`. Read
//! first: Linux's `nf_conntrack_proto_tcp.c`, whose states these are; RFC 9293, 3.10.7; RFC 5961, 3 to 5; RFC 5382, 2 and 5.

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
    /// Its window, as it stands there.
    pub window: u16,
    /// Bytes of its payload.
    pub length: u32,
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
            length: segment.payload().len() as u32,
            scale: segment.window_scale(),
        }
    }

    /// Returns the sequence number behind it. What a SYN may carry is not counted: it need not be taken.
    fn end(&self) -> u32 {
        let length = if self.flags.syn() { 1 } else { self.length + u32::from(self.flags.fin()) };
        self.sequence.wrapping_add(length)
    }
}

/// The largest scale (RFC 7323, 2.3), of a connection whose beginning nobody saw.
const UNKNOWN_SCALE: u8 = 14;

/// What one side expects next, as it last said itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Receiver {
    next: u32,
    /// In units of `1 << scale` bytes.
    window: u16,
    scale: u8,
    is_known: bool,
}

impl Receiver {
    /// Tells whether it would take a segment or FIN at this place. What never spoke cannot be asked.
    fn takes(&self, sequence: u32, window: u32) -> bool {
        !self.is_known || sequence.wrapping_sub(self.next) < window
    }

    fn window(&self) -> u32 {
        u32::from(self.window) << self.scale
    }

    /// Tells whether it may have said that it expects this: not before the largest window that its scale has (RFC 5961, 5).
    fn has_expected(&self, acknowledgement: u32) -> bool {
        self.next.wrapping_sub(acknowledgement) <= u32::from(u16::MAX) << self.scale
    }

    /// Notes what it says, and tells whether that is believed: an acknowledgement of what the other side may have sent, which
    /// is one byte, a FIN or a probe, beyond what was offered. An offer does not lapse when less is offered: what was sent
    /// by it may be on its way (RFC 9293, 3.8.6).
    #[inline(always)]
    fn hear(&mut self, next: u32, window: u16) -> bool {
        let (offered, advance) = (self.window(), next.wrapping_sub(self.next));
        if self.is_known && advance > offered + 1 {
            return false;
        }
        let left = offered.saturating_sub(advance);
        let is_less = self.is_known && u32::from(window) << self.scale < left;
        self.window = if is_less { left.div_ceil(1 << self.scale) as u16 } else { window };
        (self.next, self.is_known) = (next, true);
        true
    }
}

/// State of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) state: TcpState,
    /// Original, reply.
    receivers: [Receiver; 2],
    /// The sequence numbers behind what they sent last, whether that was believed or not.
    sent: [u32; 2],
    /// Whether every SYN so far had a window scale.
    is_scaled: bool,
}

impl Connection {
    /// Makes the state before its first segment: one that was open before is taken as open (conntrack's `tcp_loose`), and
    /// much is believed of it (its `IP_CT_TCP_FLAG_BE_LIBERAL`).
    pub(super) fn before(first: &Segment) -> Self {
        let (state, scale) = match first.flags.syn() {
            true => (TcpState::SynSent, 0),
            false => (TcpState::Established, UNKNOWN_SCALE),
        };
        let receivers = [Receiver { scale, ..Receiver::default() }; 2];
        Self { state, receivers, sent: [first.end(), 0], is_scaled: true }
    }

    /// Notes the window scale of a SYN: both sides scale, or neither does (RFC 7323, 1.3).
    fn offer(&mut self, half: Half, scale: Option<u8>) {
        self.receivers[half as usize].scale = scale.unwrap_or(0);
        self.is_scaled &= scale.is_some();
        if !self.is_scaled {
            self.receivers.iter_mut().for_each(|receiver| receiver.scale = 0);
        }
    }

    /// Tells whether the receiver of a reset would take it: RFC 9293, 3.10.7.3 for one that answers a SYN, else
    /// RFC 5961, 3.2 as far as a middlebox can tell, which is the window.
    pub(super) fn takes_reset(&self, half: Half, reset: &Segment) -> bool {
        if self.state == TcpState::SynSent && half == Half::Reply {
            return reset.flags.ack() && reset.acknowledgement == self.opening();
        }
        let receiver = &self.receivers[1 - half as usize];
        receiver.takes(reset.sequence, receiver.window().max(1))
    }

    /// Tells whether a reset is where its receiver expects one, or right behind what its sender sent last; anywhere else in the window
    /// it may be answered by a challenge, and end nothing (RFC 5961, 3.2; conntrack's `tcp_packet`).
    fn is_due(&self, half: Half, sequence: u32) -> bool {
        let receiver = &self.receivers[1 - half as usize];
        !receiver.is_known || sequence == receiver.next || sequence == self.sent[half as usize]
    }

    /// Tells whether the receiver of a FIN, which was heard, would take it (RFC 9293, 3.10.7.4): a FIN has a place of its own,
    /// behind the data and at most behind the window, and what it acknowledges may be no news any more.
    fn takes_fin(&self, half: Half, fin: &Segment) -> bool {
        let [sender, receiver] = [half as usize, 1 - half as usize].map(|side| &self.receivers[side]);
        let place = fin.sequence.wrapping_add(fin.length);
        fin.flags.ack()
            && sender.has_expected(fin.acknowledgement)
            && receiver.takes(place, receiver.window() + 1)
    }

    /// Notes what a segment says its sender expects; false when that is not believed.
    #[inline(always)]
    pub(super) fn hear(&mut self, half: Half, acknowledgement: u32, window: u16) -> bool {
        self.receivers[half as usize].hear(acknowledgement, window)
    }

    /// Notes the sequence number behind a segment.
    #[inline(always)]
    pub(super) fn send(&mut self, half: Half, end: u32) {
        self.sent[half as usize] = end;
    }

    /// Returns what acknowledges the original side's SYN, before that is answered.
    fn opening(&self) -> u32 {
        self.sent[Half::Original as usize]
    }

    /// Tells whether nobody waits for the other side: all that was sent is acknowledged, and more would be taken. Only what
    /// lies in the receiver's window, or is a FIN or a probe right behind it, can have been sent.
    pub(super) fn is_at_rest(&self) -> bool {
        [Half::Original, Half::Reply].into_iter().all(|half| {
            let [sender, receiver] = [half as usize, 1 - half as usize].map(|side| &self.receivers[side]);
            let in_flight = self.sent[half as usize].wrapping_sub(receiver.next);
            let is_sent = sender.is_known && (1..=receiver.window() + 1).contains(&in_flight);
            !receiver.is_known || receiver.window > 0 && !is_sent
        })
    }

    /// Tells whether the connection is over, and a SYN with this sequence number opens another one from the same port.
    pub(super) fn may_follow(&self, sequence: u32) -> bool {
        let is_over = matches!(self.state, TcpState::TimeWait | TcpState::Closed);
        // In TIME-WAIT after any acknowledgement: what it does not cover is still to come.
        let is_over = is_over && (self.state == TcpState::Closed || self.is_at_rest());
        is_over && (1..1 << 31).contains(&sequence.wrapping_sub(self.sent[Half::Original as usize]))
    }

    /// Presumes that a SYN was answered.
    pub(super) fn presume(&mut self) {
        if self.state == TcpState::SynSent {
            self.state = TcpState::SynReceived;
        }
    }

    /// Notes a segment. One that its receiver would not take changes nothing (conntrack's `tcp_in_window`).
    pub(super) fn note(&mut self, half: Half, segment: &Segment, profile: Profile) {
        let flags = segment.flags;
        let answers_other = self.state == TcpState::SynSent
            && half == Half::Reply
            && flags.syn()
            && flags.ack()
            && segment.acknowledgement != self.opening();
        if answers_other {
            return;
        }
        // Once a window is known, by its scale, the scales are settled.
        if flags.syn() && self.receivers.iter().all(|receiver| !receiver.is_known) {
            self.offer(half, segment.scale);
        }
        // RFC 7323, 2.2: a SYN's window is in bytes.
        let unit = if flags.syn() { 1 << self.receivers[half as usize].scale } else { 1 };
        let has_word = flags.ack() && !flags.rst();
        let is_believed =
            !has_word || self.hear(half, segment.acknowledgement, segment.window.div_ceil(unit));
        let counts = if flags.fin() && !flags.rst() { self.takes_fin(half, segment) } else { is_believed };
        if !counts {
            return;
        }
        if flags.rst() && self.state == TcpState::Established && !self.is_due(half, segment.sequence) {
            self.send(half, segment.end());
            return;
        }
        let data = flags.ack() && !flags.syn() && !flags.rst();
        // RFC 7857, 2.2: a reset that ended nothing is forgotten.
        if profile == Profile::Rfc && self.state == TcpState::Closed && data {
            self.state = TcpState::Established;
        }
        let next = self.state.next(half, flags);
        if flags.syn() && !flags.ack() && next == TcpState::SynSent {
            *self = Self { sent: self.sent, ..Self::before(segment) };
            self.offer(half, segment.scale);
        }
        // A SYN has a place only where a connection opens; until it is answered, nothing else moves the original side's.
        let opens = matches!(next, TcpState::SynSent | TcpState::SynSentBoth | TcpState::SynReceived);
        let has_place = if flags.syn() { opens } else { half == Half::Reply || next != TcpState::SynSent };
        if has_place {
            self.send(half, segment.end());
        }
        self.state = next;
    }
}

impl TcpState {
    /// Returns its name, as conntrack prints it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "SYN_SENT",
            Self::SynSentBoth => "SYN_SENT2",
            Self::SynReceived => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Closed => "CLOSE",
        }
    }

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

#[cfg(test)]
mod tests;
