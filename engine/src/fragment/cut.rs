//! Packets cut into fragments, and put together from them.
//!
//! The worker asks where a link takes less than a packet has, and when all fragments of what is for a node are there.
//! Invariant: a fragment's header and the whole's differ in lengths, offset, checksum and options alone. Allowed
//! dependencies: `wire`. Read first: RFC 791, 3.1 and 3.2.

use std::ops::Range;

use crate::wire::{Ipv4Packet, ipv4};

/// Returns the payload ranges of the fragments that a packet makes where links take `mtu` bytes; `None` where not
/// even eight bytes of it fit.
pub fn pieces(packet: &Ipv4Packet<&[u8]>, mtu: usize) -> Option<impl Iterator<Item = Range<usize>> + use<>> {
    let (header, length) = (packet.header_length(), packet.payload().len());
    let room = mtu.checked_sub(header)? / 8 * 8;
    let starts = (0..length).step_by(room.max(1));
    (room > 0).then(|| starts.map(move |start| start..(start + room).min(length)))
}

/// Writes a whole packet: the first fragment's header, made to fit, and everybody's payload, in its order. `whole` is as
/// long as the header and all payloads.
pub fn write_whole<'a>(whole: &mut [u8], first: &[u8], payloads: impl Iterator<Item = &'a [u8]>) {
    let header = Ipv4Packet::new_unchecked(first).header_length();
    whole[..header].copy_from_slice(&first[..header]);
    let mut at = header;
    for payload in payloads {
        whole[at..at + payload.len()].copy_from_slice(payload);
        at += payload.len();
    }
    let length = whole.len() as u16;
    let mut made = Ipv4Packet::new_unchecked(whole);
    made.set_total_length(length);
    made.set_fragmentation(false, false, 0);
    made.fill_header_checksum();
}

/// Writes a fragment: the whole packet's header, made to fit, and a range of its payload. `piece` is as long as the
/// header and the range. Options that are not for all fragments become no-operations behind the first (RFC 791, 3.1).
pub fn write_piece(piece: &mut [u8], whole: &[u8], range: &Range<usize>) {
    let packet = Ipv4Packet::new_unchecked(whole);
    let header = packet.header_length();
    piece[..header].copy_from_slice(&whole[..header]);
    piece[header..].copy_from_slice(&packet.payload()[range.clone()]);
    if range.start > 0 {
        blank_options(&mut piece[ipv4::HEADER_LENGTH..header]);
    }
    let length = piece.len() as u16;
    let more = range.end < packet.payload().len() || packet.more_fragments();
    let offset = packet.fragment_offset() + range.start;
    let mut made = Ipv4Packet::new_unchecked(piece);
    made.set_total_length(length);
    made.set_fragmentation(false, more, offset);
    made.fill_header_checksum();
}

fn blank_options(options: &mut [u8]) {
    const COPIED: u8 = 0x80;
    const NO_OPERATION: u8 = 1;
    let mut at = 0;
    while let Some(&kind) = options.get(at) {
        if kind == 0 {
            return;
        }
        let length = match (kind, options.get(at + 1)) {
            (NO_OPERATION, _) => 1,
            (_, Some(&length)) => usize::from(length).max(2),
            (_, None) => 1,
        };
        let end = (at + length).min(options.len());
        if kind & COPIED == 0 {
            options[at..end].fill(NO_OPERATION);
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 791, 3.1: "must be copied" is the first bit of an option's type.
    #[test]
    fn options_that_are_not_for_all_fragments_are_in_the_first_only() {
        // No operation, loose source route (copied), record route (not), router alert (copied), end and padding.
        let options =
            [&[1][..], &[0x83, 7, 4, 9, 9, 9, 9], &[7, 7, 4, 0, 0, 0, 0], &[0x94, 4, 0, 0], &[0; 5]].concat();
        let mut whole = vec![0; 20];
        whole[0] = 0x40 | ((20 + options.len()) / 4) as u8;
        whole.extend(&options);
        whole.extend([5; 48]);
        let length = whole.len() as u16;
        Ipv4Packet::new_unchecked(&mut whole[..]).set_total_length(length);
        let later = [&options[..8], &[1; 7], &options[15..]].concat();
        for (range, expected) in [(0..24, &options), (24..48, &later)] {
            let header = 20 + options.len();
            let mut piece = vec![0; header + range.len()];
            write_piece(&mut piece, &whole, &range);
            let packet = Ipv4Packet::new_checked(&piece[..]).unwrap();
            assert!(packet.verify_header_checksum());
            assert_eq!(&piece[20..header], &expected[..], "{range:?}");
            assert_eq!((packet.fragment_offset(), packet.more_fragments()), (range.start, range.start == 0));
        }
    }
}
