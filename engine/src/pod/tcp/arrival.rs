//! Segments that RFC 9293 or Linux has a connection heed, put into words that smoltcp (0.14) heeds.
//!
//! A connection shows it each segment before smoltcp sees it. Where segments overtake each other or are lost both ways, smoltcp throws
//! away what both sides then wait for: acknowledgements at the very end of the window, data that came with an older
//! acknowledgement than the last; and it believes the window of whichever segment came last, however old. Invariant: what is said of data
//! stays as it is. Allowed dependencies: `wire`. Read first: RFC 9293, 3.10.7.4; Linux' `tcp_sequence`, `tcp_ack`.

use super::wire::read;
use crate::wire::{Ipv4Packet, TcpSegment};

/// Where a connection stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    /// RCV.NXT: the sequence number that comes next.
    pub(super) next: u32,
    /// What the own side acknowledged last.
    pub(super) acknowledged: u32,
    /// The end of what it has room for.
    pub(super) window_end: u32,
    /// SND.UNA: the first own sequence number that is not acknowledged.
    pub(super) unacknowledged: u32,
    /// Octets of the own side that wait to be sent or acknowledged.
    pub(super) waiting: u32,
    /// Octets that can ever have been in flight.
    pub(super) in_flight_limit: u32,
}

/// The window that the other side gave, and with which segment (SND.WND, SND.WL1).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Window {
    given: Option<(u32, u16)>,
}

fn is_behind(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

impl Window {
    /// Returns a segment as smoltcp should see it, when that is another than the one that came.
    ///
    /// One that does no more than acknowledge is taken at any sequence number that Linux takes (`tcp_sequence`): from what was
    /// acknowledged last to the end of the window. At its very end are all acknowledgements of one who has filled the window
    /// and of whose segments the first is missing; RFC 9293 has them thrown away, and two who wait for each other like that have
    /// only their timers left. An acknowledgement from before SND.UNA is ignored, not what comes with it, unless it is older than any
    /// that can be on the way (RFC 5961, 5.2). The window is the newest segment's (`tcp_may_update_window`).
    pub(super) fn amend(&mut self, packet: &[u8], standing: &Standing) -> Option<Vec<u8>> {
        let (segment, is_bare) = read(packet);
        let flags = segment.flags();
        if !flags.ack() || flags.syn() || flags.rst() {
            return None;
        }
        let Standing { next, acknowledged, window_end, unacknowledged, .. } = *standing;
        let (sequence, acknowledgement) = (segment.sequence(), segment.acknowledgement());
        let is_taken = sequence.wrapping_sub(acknowledged) <= window_end.wrapping_sub(acknowledged);
        let behind = unacknowledged.wrapping_sub(acknowledgement);
        let amended = (
            if is_bare && is_taken { next } else { sequence },
            if !is_bare && behind <= standing.in_flight_limit { unacknowledged } else { acknowledgement },
            self.hear(&segment, is_taken, standing),
        );
        if amended == (sequence, acknowledgement, segment.window()) {
            return None;
        }
        let mut made = packet.to_vec();
        let header = Ipv4Packet::new_unchecked(packet).header_length();
        let mut segment = TcpSegment::new_unchecked(&mut made[header..]);
        segment.set_sequence(amended.0);
        segment.set_acknowledgement(amended.1);
        segment.set_window(amended.2);
        Some(made)
    }

    /// Takes note of the window of a segment if it is newer than the last one's; returns the one that holds.
    fn hear(&mut self, segment: &TcpSegment<&[u8]>, is_taken: bool, standing: &Standing) -> u16 {
        let (sequence, window) = (segment.sequence(), segment.window());
        let ahead = segment.acknowledgement().wrapping_sub(standing.unacknowledged);
        let Some((newest, given)) = self.given else {
            self.given = is_taken.then_some((sequence, window));
            return window;
        };
        let is_newer = ahead != 0
            || is_behind(newest, sequence)
            || (newest == sequence && (window > given || window == 0));
        if is_taken && ahead <= standing.waiting + 1 && is_newer {
            self.given = Some((sequence, window));
            return window;
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{TcpFlags, ipv4, tcp};

    /// Expects 1000, acknowledged 900, has room up to 5000; 7000 octets of its own to 27,000 are not acknowledged.
    const STANDING: Standing = Standing {
        next: 1000,
        acknowledged: 900,
        window_end: 5000,
        unacknowledged: 20_000,
        waiting: 7000,
        in_flight_limit: 8000,
    };

    fn segment(sequence: u32, acknowledgement: u32, window: u16, payload: usize, flags: TcpFlags) -> Vec<u8> {
        let mut bytes = vec![0; ipv4::HEADER_LENGTH + tcp::HEADER_LENGTH + payload];
        let length = bytes.len() as u16;
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        packet.set_header_length(ipv4::HEADER_LENGTH);
        packet.set_total_length(length);
        let mut segment = TcpSegment::new_unchecked(&mut bytes[ipv4::HEADER_LENGTH..]);
        segment.set_header_length(tcp::HEADER_LENGTH);
        segment.set_sequence(sequence);
        segment.set_acknowledgement(acknowledgement);
        segment.set_window(window);
        segment.set_flags(flags);
        bytes
    }

    /// Sequence number, acknowledgement and window as smoltcp sees them.
    fn seen(window: &mut Window, packet: &[u8]) -> (u32, u32, u16) {
        let amended = window.amend(packet, &STANDING);
        let (segment, _) = read(amended.as_deref().unwrap_or(packet));
        (segment.sequence(), segment.acknowledgement(), segment.window())
    }

    /// RFC 9293, 3.10.7.4, first, and Linux' `tcp_sequence`: whoever filled the window acknowledges from its very end.
    #[test]
    fn a_bare_acknowledgement_counts_from_what_was_acknowledged_to_the_end_of_the_window() {
        for (sequence, taken) in
            [(899, 899), (900, 1000), (1000, 1000), (4999, 1000), (5000, 1000), (5001, 5001)]
        {
            let packet = segment(sequence, 20_000, 9, 0, TcpFlags::ACK);
            assert_eq!(seen(&mut Window::default(), &packet), (taken, 20_000, 9));
        }
        // What occupies sequence numbers keeps its own, and a reset must be exact (RFC 5961, 3.2).
        let fin = TcpFlags::ACK.with(TcpFlags::FIN);
        for (payload, flags) in [(1, TcpFlags::ACK), (0, fin), (0, TcpFlags::RST)] {
            let packet = segment(5000, 20_000, 9, payload, flags);
            assert_eq!(Window::default().amend(&packet, &STANDING), None);
        }
    }

    /// RFC 9293, 3.10.7.4, fifth: "If the ACK is a duplicate (SEG.ACK =< SND.UNA), it can be ignored"; the text is not. RFC 5961, 5.2.
    #[test]
    fn data_count_whatever_they_acknowledge() {
        for (acknowledgement, seen_as) in
            [(19_999, 20_000), (12_000, 20_000), (11_999, 11_999), (20_001, 20_001)]
        {
            let packet = segment(1000, acknowledgement, 9, 1, TcpFlags::ACK);
            assert_eq!(seen(&mut Window::default(), &packet), (1000, seen_as, 9));
        }
        // Bare, it would be another duplicate of the last.
        let old = segment(1000, 19_999, 9, 0, TcpFlags::ACK);
        assert_eq!(Window::default().amend(&old, &STANDING), None);
    }

    /// RFC 9293, 3.10.7.4, fifth (SND.WL1, SND.WL2); Linux' `tcp_may_update_window`.
    #[test]
    fn the_window_is_the_newest_segments() {
        let mut window = Window::default();
        for (sequence, acknowledgement, given, holds) in [
            (1000, 20_000, 9, 9),
            (1001, 20_000, 7, 7),
            // Older, or as old and no wider: a wider one is an update, none at all says that there is no room.
            (1000, 20_000, 3, 7),
            (1001, 20_000, 3, 7),
            (1001, 20_000, 8, 8),
            (1001, 20_000, 0, 0),
            // It acknowledges more, but not what was never sent.
            (1000, 20_001, 5, 5),
            (1001, 27_002, 6, 5),
            (1001, 19_999, 0, 5),
            // Outside of the window nothing counts.
            (5001, 20_000, 6, 5),
        ] {
            let packet = segment(sequence, acknowledgement, given, 1, TcpFlags::ACK);
            assert_eq!(seen(&mut window, &packet).2, holds, "{sequence} {acknowledgement}");
        }
    }
}
