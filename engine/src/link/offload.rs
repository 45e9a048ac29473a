//! The virtio-net header in front of a TAP's frames: what the kernel leaves to us, and what we leave to it.
//!
//! `link::tap` reads and writes one with each frame. Invariants: what is believed of a header was found in the frame; a frame
//! that we say is unfinished has in its checksum's place the sum of the pseudo-header. Allowed dependencies: `frame`,
//! `segment`. Read first: virtio 1.2, 5.1.6.

use crate::frame::{ChecksumState, FrameMut, Segmentation};
use crate::ledger::DropReason;
use crate::segment::{Layout, Transport};
use crate::sys::VNET_HEADER;
use crate::wire::checksum;

/// The checksum is from `csum_start` on, at `csum_offset`.
const NEEDS_CHECKSUM: u8 = 1;
/// The checksum was verified.
const CHECKSUM_IS_RIGHT: u8 = 2;

const NONE: u8 = 0;
const TCP_OVER_IPV4: u8 = 1;
const TCP_OVER_IPV6: u8 = 4;
const UDP: u8 = 5;

/// The header, in the machine's byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Header {
    flags: u8,
    kind: u8,
    /// Bytes of the headers: a hint.
    length: u16,
    segment_size: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl Header {
    fn read(bytes: &[u8; VNET_HEADER]) -> Self {
        let [flags, kind, a, b, c, d, e, f, g, h, ..] = *bytes;
        let [length, segment_size, checksum_start, checksum_offset] =
            [[a, b], [c, d], [e, f], [g, h]].map(u16::from_ne_bytes);
        Self { flags, kind, length, segment_size, checksum_start, checksum_offset }
    }

    fn write(self) -> [u8; VNET_HEADER] {
        let halves = [self.length, self.segment_size, self.checksum_start, self.checksum_offset];
        let [[a, b], [c, d], [e, f], [g, h]] = halves.map(u16::to_ne_bytes);
        [self.flags, self.kind, a, b, c, d, e, f, g, h, 0, 0]
    }
}

/// Notes beside a received frame what its header says.
///
/// # Errors
/// [`DropReason::MalformedOffload`] when that is not true of the frame.
pub fn receive(frame: &mut FrameMut<'_>, header: &[u8; VNET_HEADER]) -> Result<(), DropReason> {
    let header = Header::read(header);
    if header.flags & NEEDS_CHECKSUM == 0 {
        // Segments are made of what has a checksum to be made.
        let is_right = header.flags & CHECKSUM_IS_RIGHT != 0;
        frame.record.checksum = if is_right { ChecksumState::Verified } else { ChecksumState::Unknown };
        return if header.kind == NONE { Ok(()) } else { Err(DropReason::MalformedOffload) };
    }
    let start = usize::from(header.checksum_start);
    let place = start + usize::from(header.checksum_offset);
    let layout = Layout::of(frame.bytes())
        .filter(|layout| layout.transport == start && layout.checksum().start == place);
    let Some(layout) = layout else {
        // Something that only its sender knows, such as a packet with extension headers: it is finished here.
        return if header.kind == NONE {
            finish(frame, start, place)
        } else {
            Err(DropReason::MalformedOffload)
        };
    };
    frame.record.checksum = ChecksumState::Partial;
    let segmentation = match (header.kind, layout.kind) {
        (NONE, _) => return Ok(()),
        (TCP_OVER_IPV4 | TCP_OVER_IPV6, Transport::Tcp) => Segmentation::Tcp,
        (UDP, Transport::Udp) => Segmentation::Udp,
        _ => return Err(DropReason::MalformedOffload),
    };
    if header.segment_size == 0 {
        return Err(DropReason::MalformedOffload);
    }
    if layout.end - layout.payload > usize::from(header.segment_size) {
        (frame.record.segmentation, frame.record.segment_size) = (segmentation, header.segment_size);
    }
    Ok(())
}

/// Makes the checksum of everything from `start` on, at `place`.
fn finish(frame: &mut FrameMut<'_>, start: usize, place: usize) -> Result<(), DropReason> {
    let bytes = frame.bytes_mut();
    if start > place || place + 2 > bytes.len() {
        return Err(DropReason::MalformedOffload);
    }
    // The sum of the pseudo-header is there.
    let checksum = checksum::checksum(&bytes[start..]);
    bytes[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
    frame.record.checksum = ChecksumState::Unknown;
    Ok(())
}

/// Makes a frame ready to be written, and returns the header for it.
pub fn send(frame: &mut FrameMut<'_>) -> [u8; VNET_HEADER] {
    match frame.record.checksum {
        ChecksumState::Unknown => return [0; VNET_HEADER],
        ChecksumState::Verified => return Header { flags: CHECKSUM_IS_RIGHT, ..Header::default() }.write(),
        ChecksumState::Partial => {}
        // Outer headers lead into a tunnel: such a frame is never a TAP's.
        ChecksumState::PartialInside => return [0; VNET_HEADER],
    }
    let Some(layout) = Layout::of(frame.bytes()) else { return [0; VNET_HEADER] };
    let sum = layout.pseudo_sum(frame.bytes());
    frame.bytes_mut()[layout.checksum()].copy_from_slice(&sum.to_be_bytes());
    header_of(&layout, frame.record.segmentation, frame.record.segment_size)
}

/// Returns the header of a frame whose checksum is to be made, and which is to be cut into segments of so many bytes.
#[must_use]
pub fn header_of(layout: &Layout, segmentation: Segmentation, size: u16) -> [u8; VNET_HEADER] {
    let kind = match segmentation {
        Segmentation::None => NONE,
        Segmentation::Udp => UDP,
        Segmentation::Tcp if layout.is_ipv6 => TCP_OVER_IPV6,
        Segmentation::Tcp => TCP_OVER_IPV4,
    };
    let is_whole = kind == NONE;
    let header = Header {
        flags: NEEDS_CHECKSUM,
        kind,
        length: if is_whole { 0 } else { layout.payload as u16 },
        segment_size: if is_whole { 0 } else { size },
        checksum_start: layout.transport as u16,
        checksum_offset: layout.kind.checksum_offset() as u16,
    };
    header.write()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Arena, Record};

    /// Ethernet, IPv4, TCP with 100 bytes.
    fn tcp() -> Vec<u8> {
        let mut bytes = vec![2; 12];
        bytes.extend([8, 0, 0x45, 0, 0, 140, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 1, 15, 2, 10, 1, 15, 3]);
        bytes.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0xba, 0xad, 0, 0]);
        bytes.extend([7; 100]);
        bytes
    }

    fn received(bytes: &[u8], header: Header) -> Result<Record, DropReason> {
        let (arena, mut pools) = Arena::new(1, 1, 0).unwrap();
        let mut frame = pools[0].allocate(bytes.len()).unwrap();
        let mut open = arena.open(&mut frame);
        open.bytes_mut().copy_from_slice(bytes);
        receive(&mut open, &header.write()).map(|()| *open.record)
    }

    const WHOLE: Header = Header {
        flags: NEEDS_CHECKSUM,
        kind: NONE,
        length: 0,
        segment_size: 0,
        checksum_start: 34,
        checksum_offset: 16,
    };
    const SEGMENTS: Header = Header { kind: TCP_OVER_IPV4, segment_size: 40, length: 9_999, ..WHOLE };

    /// Virtio 1.2, 5.1.6.2 and 5.1.6.4.
    #[test]
    fn headers_are_believed_as_far_as_the_frame_bears_them_out() {
        let refused = Err(DropReason::MalformedOffload);
        let nothing = Header::default();
        for (header, expected) in [
            (nothing, Ok((ChecksumState::Unknown, Segmentation::None, 0))),
            (
                Header { flags: CHECKSUM_IS_RIGHT, ..nothing },
                Ok((ChecksumState::Verified, Segmentation::None, 0)),
            ),
            (WHOLE, Ok((ChecksumState::Partial, Segmentation::None, 0))),
            // The length is a hint, and wrong.
            (SEGMENTS, Ok((ChecksumState::Partial, Segmentation::Tcp, 40))),
            // One segment: none to cut.
            (Header { segment_size: 100, ..SEGMENTS }, Ok((ChecksumState::Partial, Segmentation::None, 0))),
            (Header { segment_size: 0, ..SEGMENTS }, refused),
            (Header { kind: UDP, ..SEGMENTS }, refused),
            (Header { kind: 3, ..SEGMENTS }, refused),
            (Header { kind: TCP_OVER_IPV4 | 0x80, ..SEGMENTS }, refused),
            // Segments of what has a checksum.
            (Header { flags: 0, ..SEGMENTS }, refused),
            // Elsewhere than in the TCP header.
            (Header { checksum_start: 35, ..SEGMENTS }, refused),
            (Header { checksum_offset: 6, ..SEGMENTS }, refused),
            (Header { checksum_start: 1_000, ..WHOLE }, refused),
            (Header { checksum_offset: 119, ..WHOLE }, refused),
            (Header { checksum_offset: u16::MAX, checksum_start: u16::MAX, ..WHOLE }, refused),
        ] {
            let found = received(&tcp(), header)
                .map(|record| (record.checksum, record.segmentation, record.segment_size));
            assert_eq!(found, expected, "{header:?}");
        }
    }

    /// A checksum that is no TCP's nor UDP's, of a frame that only its sender can read.
    #[test]
    fn an_unknown_packets_checksum_is_made_at_once() {
        let (arena, mut pools) = Arena::new(1, 1, 0).unwrap();
        let mut frame = pools[0].allocate(64).unwrap();
        let mut open = arena.open(&mut frame);
        open.bytes_mut().fill(3);
        let header = Header { checksum_start: 20, checksum_offset: 4, ..WHOLE };
        assert_eq!(receive(&mut open, &header.write()), Ok(()));
        assert_eq!(open.record.checksum, ChecksumState::Unknown);
        // What was there is the pseudo-header's sum: of all with it, and with the checksum in its place.
        let mut bytes = open.bytes().to_vec();
        assert_ne!(bytes[24..26], [3, 3]);
        let made = u16::from_be_bytes([bytes[24], bytes[25]]);
        bytes[24..26].fill(3);
        assert_eq!(made, checksum::checksum(&bytes[20..]));
    }

    #[test]
    fn what_is_sent_says_what_was_received() {
        let (arena, mut pools) = Arena::new(1, 1, 0).unwrap();
        let mut frame = pools[0].allocate(tcp().len()).unwrap();
        let mut open = arena.open(&mut frame);
        open.bytes_mut().copy_from_slice(&tcp());
        for (header, length) in [(WHOLE, 0), (SEGMENTS, 54)] {
            receive(&mut open, &header.write()).unwrap();
            assert_eq!(Header::read(&send(&mut open)), Header { length, ..header });
            // RFC 9293, 3.1: addresses, protocol, length.
            let sum = checksum::ones_complement_sum(&[10, 1, 15, 2, 10, 1, 15, 3, 0, 6, 0, 120]);
            assert_eq!(open.bytes()[50..52], sum.to_be_bytes());
        }
        for (state, flags) in [(ChecksumState::Unknown, 0), (ChecksumState::Verified, CHECKSUM_IS_RIGHT)] {
            open.record.checksum = state;
            assert_eq!(Header::read(&send(&mut open)), Header { flags, ..Header::default() });
        }
    }
}
