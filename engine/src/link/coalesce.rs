//! Frames on their way to a TAP: neighbours of one flow go in one write, as the segments of a superframe.
//!
//! `link::tap` asks how many of its waiting frames go together, and how their common header looks. Invariants: the interface
//! makes the same frames of it again, but for identifications of packets that must not be cut (RFC 6864: they mean nothing);
//! order is kept. Allowed dependencies: `frame`, `segment`, `wire`. Read first: the kernel's
//! `Documentation/networking/segmentation-offloads.rst`.

use crate::frame::{Arena, ChecksumState, Frame, Segmentation};
use crate::segment::{Layout, Transport};
use crate::wire::{Ipv4Packet, TcpFlags, TcpSegment, UdpDatagram};

/// Frames that go together at most: as many segments as UDP may have (`UDP_MAX_SEGMENTS`).
pub const GROUP_LIMIT: usize = 64;
/// Bytes of Ethernet, IPv4 and TCP headers at most, tags and options included.
pub const HEADERS_LIMIT: usize = 22 + 60 + 60;
/// Bytes that a packet has at most.
const PACKET_LIMIT: usize = 65_535;

/// A frame that others may follow in the same write.
#[derive(Debug, Clone, Copy)]
pub struct Leader<'a> {
    bytes: &'a [u8],
    /// Where its parts are.
    pub layout: Layout,
    /// How it is cut again.
    pub segmentation: Segmentation,
}

impl<'a> Leader<'a> {
    /// Reads a frame; `None` when none can follow it.
    #[must_use]
    pub fn of(arena: &'a Arena, frame: &'a Frame) -> Option<Self> {
        let (record, bytes) = (arena.record(frame), arena.bytes(frame));
        let layout = Layout::of(bytes).filter(|_| record.segmentation == Segmentation::None)?;
        Self::new(bytes, layout, record.checksum)
    }

    /// Reads an IPv4 packet of which nothing is known; `None` when none can follow it.
    #[must_use]
    pub fn of_packet(packet: &'a [u8]) -> Option<Self> {
        let layout = whole_packet(packet)?;
        Self::new(packet, layout, ChecksumState::Unknown)
    }

    fn new(bytes: &'a [u8], layout: Layout, state: ChecksumState) -> Option<Self> {
        if layout.is_ipv6 || layout.end == layout.payload {
            return None;
        }
        if !Ipv4Packet::new_unchecked(layout.packet(bytes)).dont_fragment() {
            return None;
        }
        let transport = &bytes[layout.transport..layout.end];
        let segmentation = match layout.kind {
            Transport::Udp if is_without_checksum(state, transport) => return None,
            Transport::Udp => Segmentation::Udp,
            // What is pushed, or says more than data, is the last.
            Transport::Tcp if TcpSegment::new_unchecked(transport).flags() == TcpFlags::ACK => {
                Segmentation::Tcp
            }
            Transport::Tcp => return None,
        };
        if !is_right(state, &layout, bytes) {
            return None;
        }
        Some(Self { bytes, layout, segmentation })
    }

    /// Returns its payload.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.layout.payload..self.layout.end]
    }

    /// Payload bytes of each frame but the last.
    #[must_use]
    pub fn size(&self) -> usize {
        self.layout.end - self.layout.payload
    }

    /// Returns the payload of a frame that goes behind this one and others of its size, `carried` bytes of payload together, and
    /// whether it is the last of them; `None` when it does not.
    #[must_use]
    pub fn followed_by<'b>(
        &self,
        arena: &'b Arena,
        next: &'b Frame,
        carried: usize,
    ) -> Option<(&'b [u8], bool)> {
        let (record, bytes) = (arena.record(next), arena.bytes(next));
        if record.segmentation != Segmentation::None {
            return None;
        }
        self.followed(bytes, Layout::of(bytes)?, record.checksum, carried)
    }

    /// Returns the same of an IPv4 packet of which nothing is known.
    #[must_use]
    pub fn followed_by_packet<'b>(&self, packet: &'b [u8], carried: usize) -> Option<(&'b [u8], bool)> {
        self.followed(packet, whole_packet(packet)?, ChecksumState::Unknown, carried)
    }

    fn followed<'b>(
        &self,
        bytes: &'b [u8],
        theirs: Layout,
        state: ChecksumState,
        carried: usize,
    ) -> Option<(&'b [u8], bool)> {
        let ours = self.layout;
        let payload = &bytes[theirs.payload..theirs.end];
        let fits = !payload.is_empty()
            && payload.len() <= self.size()
            && ours.packet_length(carried + payload.len()) <= PACKET_LIMIT
            && Layout { end: ours.end, ..theirs } == ours
            && self.has_headers_of(bytes, carried)
            && is_right(state, &theirs, bytes);
        let is_last = payload.len() < self.size()
            || ours.kind == Transport::Tcp
                && TcpSegment::new_unchecked(&bytes[ours.transport..]).flags() != TcpFlags::ACK;
        fits.then_some((payload, is_last))
    }

    /// Compares all that the segments of a superframe have in common, of headers with the same layout.
    fn has_headers_of(&self, other: &[u8], carried: usize) -> bool {
        let Layout { network, transport, payload, .. } = self.layout;
        let same = |range: std::ops::Range<usize>| self.bytes[range.clone()] == other[range];
        // But for length, identification and checksum.
        let ip = same(0..network + 2) && same(network + 6..network + 10) && same(network + 12..transport);
        let ports = same(transport..transport + 4);
        ip && ports
            && match self.layout.kind {
                Transport::Udp => other[transport + 6..transport + 8] != [0, 0],
                Transport::Tcp => {
                    let [first, next] =
                        [self.bytes, other].map(|bytes| TcpSegment::new_unchecked(&bytes[transport..]));
                    let ack = TcpFlags::ACK;
                    // But for flags and checksum: acknowledgement, window and options are the same.
                    next.sequence() == first.sequence().wrapping_add(carried as u32)
                        && (next.flags() == ack || next.flags() == ack.with(TcpFlags::PSH))
                        && same(transport + 8..transport + 13)
                        && same(transport + 14..transport + 16)
                        && same(transport + 18..payload)
                }
            }
    }

    /// Writes the headers of all together, the last of which has `flags`, with the pseudo-header's sum for a checksum;
    /// returns how many bytes they have.
    pub fn write_headers(&self, headers: &mut [u8], carried: usize, last: &[u8]) -> usize {
        let length = self.layout.payload;
        let headers = &mut headers[..length];
        headers.copy_from_slice(&self.bytes[..length]);
        if self.layout.kind == Transport::Tcp {
            let flags = TcpSegment::new_unchecked(&last[self.layout.transport..]).flags();
            TcpSegment::new_unchecked(&mut headers[self.layout.transport..]).set_flags(flags);
        }
        self.layout.write_length(headers, carried);
        length
    }
}

/// Reads a packet that ends where it says, behind a right header.
fn whole_packet(packet: &[u8]) -> Option<Layout> {
    let layout = Layout::of_packet(packet).filter(|layout| layout.end == packet.len())?;
    Ipv4Packet::new_unchecked(packet).verify_header_checksum().then_some(layout)
}

/// Tells whether a datagram goes without a checksum (RFC 768).
fn is_without_checksum(state: ChecksumState, datagram: &[u8]) -> bool {
    !state.is_unfinished() && UdpDatagram::new_unchecked(datagram).checksum() == 0
}

/// Tells whether a frame's checksum is right, or yet to be made: the system checks none of those that go together.
fn is_right(state: ChecksumState, layout: &Layout, frame: &[u8]) -> bool {
    state != ChecksumState::Unknown || layout.is_right(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Arena, Pool};

    const ACK: u8 = 0x10;
    const PSH: u8 = 0x18;

    /// Ethernet, IPv4 that must not be cut, TCP with a timestamp, or UDP.
    fn frame(pool: &mut Pool, kind: Transport, sequence: u32, flags: u8, payload: &[u8]) -> Frame {
        let header = if kind == Transport::Tcp { 32 } else { 8 };
        let total = ((20 + header + payload.len()) as u16).to_be_bytes();
        let protocol = if kind == Transport::Tcp { 6 } else { 17 };
        let mut bytes = vec![2; 12];
        bytes.extend([8, 0, 0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol, 0, 0]);
        bytes.extend([10, 1, 15, 2, 10, 1, 15, 3]);
        if kind == Transport::Tcp {
            bytes.extend([0x9c, 0x40, 0, 80]);
            bytes.extend(sequence.to_be_bytes());
            bytes.extend([0, 0, 0, 1, 0x80, flags, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
        } else {
            bytes.extend([0x9c, 0x40, 0, 7, 0, (header + payload.len()) as u8, 0, 0]);
        }
        bytes.extend(payload);
        Ipv4Packet::new_unchecked(&mut bytes[14..]).fill_header_checksum();
        Layout::of(&bytes).unwrap().finish(&mut bytes);
        let mut frame = pool.allocate(bytes.len()).unwrap();
        let mut open = pool.arena().open(&mut frame);
        open.bytes_mut().copy_from_slice(&bytes);
        open.record.checksum = ChecksumState::Verified;
        frame
    }

    /// How many of the frames go together, put together and cut again, which must give them back.
    fn together(arena: &Arena, frames: &[Frame]) -> usize {
        let Some(leader) = Leader::of(arena, &frames[0]) else { return 1 };
        let (mut payload, mut count) = (leader.payload().to_vec(), 1);
        for next in &frames[1..] {
            let Some((more, is_last)) = leader.followed_by(arena, next, payload.len()) else { break };
            payload.extend(more);
            count += 1;
            if is_last {
                break;
            }
        }
        let mut whole = vec![0; HEADERS_LIMIT];
        let length = leader.write_headers(&mut whole, payload.len(), arena.bytes(&frames[count - 1]));
        whole.truncate(length);
        whole.extend(payload);
        let layout = Layout::of(&whole).unwrap();
        assert_eq!(whole[layout.checksum()], layout.pseudo_sum(&whole).to_be_bytes());
        for (number, frame) in frames[..count].iter().enumerate() {
            let start = layout.payload + number * leader.size();
            let range = start..(start + leader.size()).min(layout.end);
            let mut segment = vec![0; layout.payload + range.len()];
            layout.write_segment(&mut segment, &whole, &range, number as u16);
            // They must not be cut: identifications mean nothing.
            let mut expected = arena.bytes(frame).to_vec();
            let mut packet = Ipv4Packet::new_unchecked(&mut expected[14..]);
            packet.set_identification(number as u16);
            packet.fill_header_checksum();
            assert!(segment == expected, "{number}");
        }
        count
    }

    #[test]
    fn segments_of_a_stream_go_together_and_come_out_as_they_were() {
        let (arena, mut pools) = Arena::new(1, 64, 0).unwrap();
        let pool = &mut pools[0];
        for (flags, lengths, expected) in [
            ([ACK, ACK, PSH, ACK], [9, 9, 9, 9], 3),
            ([ACK, ACK, ACK, ACK], [9, 9, 9, 9], 4),
            // A short one ends it; a longer one does not belong to it.
            ([ACK, ACK, ACK, ACK], [9, 5, 9, 9], 2),
            ([ACK, ACK, ACK, ACK], [9, 10, 9, 9], 1),
            // So does what says more than data, and what is pushed goes alone.
            ([ACK, ACK, 0x11, ACK], [9, 9, 9, 9], 2),
            ([PSH, ACK, ACK, ACK], [9, 9, 9, 9], 1),
            ([ACK, ACK, ACK, ACK], [9, 0, 9, 9], 1),
        ] {
            let mut sequence = u32::MAX - 3;
            let mut next = |pool: &mut Pool, (flags, length): (u8, usize)| {
                let made = frame(pool, Transport::Tcp, sequence, flags, &vec![sequence as u8; length]);
                sequence = sequence.wrapping_add(length as u32);
                made
            };
            let frames: Vec<Frame> =
                flags.into_iter().zip(lengths).map(|described| next(pool, described)).collect();
            assert_eq!(together(&arena, &frames), expected, "{flags:?} {lengths:?}");
            frames.into_iter().for_each(|frame| pool.free(frame));
        }
    }

    #[test]
    fn datagrams_of_a_flow_go_together_up_to_a_shorter_one() {
        let (arena, mut pools) = Arena::new(1, 64, 0).unwrap();
        let pool = &mut pools[0];
        for (lengths, expected) in [([9, 9, 9, 9], 4), ([9, 4, 9, 9], 2), ([9, 10, 9, 9], 1)] {
            let frames: Vec<Frame> =
                lengths.iter().map(|&length| frame(pool, Transport::Udp, 0, 0, &vec![7; length])).collect();
            assert_eq!(together(&arena, &frames), expected, "{lengths:?}");
            frames.into_iter().for_each(|frame| pool.free(frame));
        }
    }

    /// Every byte of the headers that differs keeps frames apart, but for lengths, checksums, identification.
    #[test]
    fn frames_that_differ_in_their_headers_stay_apart() {
        let (arena, mut pools) = Arena::new(1, 8, 0).unwrap();
        let pool = &mut pools[0];
        for kind in [Transport::Tcp, Transport::Udp] {
            let frames = [frame(pool, kind, 1, ACK, &[7; 9]), frame(pool, kind, 10, ACK, &[7; 9])];
            let layout = Layout::of(arena.bytes(&frames[0])).unwrap();
            let [first, mut next] = frames;
            for at in 0..layout.payload {
                arena.open(&mut next).bytes_mut()[at] ^= 0x40;
                let leader = Leader::of(&arena, &first).unwrap();
                let is_followed = leader.followed_by(&arena, &next, 9).is_some();
                let may_differ = [18, 19, 24, 25].contains(&at) || layout.checksum().contains(&at);
                assert_eq!(is_followed, may_differ, "{kind:?} {at}");
                arena.open(&mut next).bytes_mut()[at] ^= 0x40;
            }
            [first, next].into_iter().for_each(|frame| pool.free(frame));
        }
    }

    #[test]
    fn what_may_be_cut_or_has_no_checksum_or_a_wrong_one_goes_alone() {
        let (arena, mut pools) = Arena::new(1, 8, 0).unwrap();
        let pool = &mut pools[0];
        let mut first = frame(pool, Transport::Udp, 0, 0, &[7; 9]);
        assert!(Leader::of(&arena, &first).is_some());
        // Not known to be right: it is looked at.
        let mut next = frame(pool, Transport::Udp, 0, 0, &[7; 9]);
        for (damage, together) in [(0, true), (1, false)] {
            for (at, state) in [(50, &mut first), (50, &mut next)] {
                let mut open = arena.open(state);
                open.record.checksum = ChecksumState::Unknown;
                open.bytes_mut()[at] ^= damage;
            }
            assert_eq!(Leader::of(&arena, &first).is_some(), together);
            arena.open(&mut first).bytes_mut()[50] ^= damage;
            let leader = Leader::of(&arena, &first).unwrap();
            assert_eq!(leader.followed_by(&arena, &next, 9).is_some(), together);
        }
        pool.free(next);
        arena.open(&mut first).record.checksum = ChecksumState::Verified;
        let checksum = arena.bytes(&first)[40..42].to_vec();
        arena.open(&mut first).bytes_mut()[40..42].fill(0);
        assert!(Leader::of(&arena, &first).is_none());
        arena.open(&mut first).bytes_mut()[40..42].copy_from_slice(&checksum);
        arena.open(&mut first).bytes_mut()[20] = 0;
        assert!(Leader::of(&arena, &first).is_none());
        pool.free(first);
    }
}
