//! A tunnel's datagrams one behind the other: those that go in one message, and those that came in one.
//!
//! `link::tunnel_socket` sends a superframe as many and has what came together made frames of here: a superframe again, or as many
//! as there are. Invariants: what is put together are whole packets of one flow that differ in nothing that says
//! whose they are, each with right checksums; cut again, it gives the same datagrams, but for identifications that mean nothing.
//! Allowed dependencies: `coalesce`, `frame`, `outer`, `segment`, `sys`, `wire`. Read first:
//! `docs/adr/0022-superframes-are-finished-at-the-end.md`.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::frame::{Arena, ChecksumState, Frame, Pool, SMALL_CAPACITY, Segmentation};
use crate::link::coalesce::{GROUP_LIMIT, Leader};
use crate::link::outer::{HEADERS, datagram, write_headers};
use crate::segment::{Layout, Transport};
use crate::sys::Received;
use crate::tunnel::OUTER_LENGTH;
use crate::wire::{Ipv4Packet, TcpSegment, ethernet};

/// Bytes of one message at most: of UDP in an IPv4 packet.
pub const MESSAGE_LIMIT: usize = 65_507;

/// A superframe behind outer headers.
#[derive(Debug, Clone, Copy)]
pub struct Superframe<'a> {
    /// To whom it goes.
    pub peer: Ipv4Addr,
    /// What each of its datagrams has in front of its packet.
    pub between: &'a [u8],
    /// Its packet.
    pub packet: &'a [u8],
    /// Where the packet's parts are.
    pub layout: Layout,
    /// Payload bytes of each segment but the last.
    pub size: usize,
}

impl<'a> Superframe<'a> {
    /// Reads a frame; `None` unless it is such a one.
    #[must_use]
    pub fn of(arena: &'a Arena, frame: &'a Frame) -> Option<Self> {
        let (record, bytes) = (arena.record(frame), arena.bytes(frame));
        let is_one = record.segmentation != Segmentation::None && record.segment_size > 0;
        let inside = usize::from(record.inside);
        let packet = bytes.get(inside..).filter(|_| is_one)?;
        let between = bytes.get(HEADERS..inside)?;
        let peer = Ipv4Packet::new_unchecked(&bytes[ethernet::HEADER_LENGTH..]).destination();
        let layout = Layout::of_packet(packet).filter(|layout| layout.payload < layout.end)?;
        Some(Self { peer, between, packet, layout, size: usize::from(record.segment_size) })
    }

    /// Bytes that each of its datagrams but the last carries.
    #[must_use]
    pub fn datagram_length(&self) -> usize {
        self.between.len() + self.layout.packet_length(self.size)
    }

    /// Returns how many datagrams it makes beside the first `made`; `None` when there are no more.
    #[must_use]
    pub fn left(&self, made: usize) -> Option<usize> {
        let all = (self.layout.end - self.layout.payload).div_ceil(self.size);
        all.checked_sub(made).filter(|left| *left > 0)
    }

    /// Writes datagrams one behind the other, the first of them that before which there are `made`; returns them. There is room for
    /// `count` of [`Superframe::datagram_length`], and so many are left.
    pub fn write_datagrams<'b>(&self, train: &'b mut [u8], made: usize, count: usize) -> &'b [u8] {
        let (front, mut length) = (self.between.len(), 0);
        for (number, datagram) in (made..).zip(train.chunks_mut(self.datagram_length()).take(count)) {
            let start = self.layout.payload + number * self.size;
            let range = start..(start + self.size).min(self.layout.end);
            let end = front + self.layout.packet_length(range.len());
            datagram[..front].copy_from_slice(self.between);
            self.layout.write_segment(&mut datagram[front..end], self.packet, &range, number as u16);
            length += end;
        }
        &train[..length]
    }
}

/// Returns to whom a frame of the tunnel goes, and the bytes of the longest outer packet that it makes.
#[must_use]
pub fn longest_packet(arena: &Arena, frame: &Frame) -> (Ipv4Addr, usize) {
    let (peer, length) = match Superframe::of(arena, frame) {
        Some(superframe) => (superframe.peer, superframe.datagram_length()),
        None => {
            let (peer, payload) = datagram(arena.bytes(frame));
            (peer, payload.len())
        }
    };
    (peer, length + OUTER_LENGTH)
}

/// What datagrams became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// How many they were.
    pub datagrams: usize,
    /// Bytes of them.
    pub taken: usize,
    /// Bytes of the datagram that they are now.
    pub length: usize,
    /// How it is cut again.
    pub segmentation: Segmentation,
    /// Payload bytes of each segment but the last.
    pub size: usize,
}

/// Makes a superframe's packet of what datagrams carry, `segment` bytes each but the last: of those, from the first on, that
/// are its segments, behind the same `between` bytes. `None`, with nothing changed, when not even two are.
pub fn merge(bytes: &mut [u8], segment: usize, between: usize) -> Option<Merged> {
    let (first, others) = bytes.split_at_mut_checked(segment).filter(|(first, _)| !first.is_empty())?;
    let (front, first) = first.split_at_mut_checked(between)?;
    let leader = Leader::of_packet(first)?;
    let (size, headers) = (leader.size(), leader.layout.payload);
    let (mut datagrams, mut carried, mut last) = (1, size, None);
    while datagrams < GROUP_LIMIT {
        let start = (datagrams - 1) * segment;
        let end = (start + segment).min(others.len());
        let next = others.get(start..end).and_then(|it| it.split_at_checked(between));
        let packet = next.filter(|(their_front, _)| *their_front == front).map(|(_, packet)| packet);
        let Some((payload, is_last)) = packet.and_then(|packet| leader.followed_by_packet(packet, carried))
        else {
            break;
        };
        let length = payload.len();
        let start = start + between;
        if leader.layout.kind == Transport::Tcp {
            last = Some(TcpSegment::new_unchecked(&others[start + leader.layout.transport..]).flags());
        }
        // It was just read, and there is room for it in front of what is not read yet.
        others.copy_within(start + headers..start + headers + length, carried - size);
        (datagrams, carried) = (datagrams + 1, carried + length);
        if is_last {
            break;
        }
    }
    if datagrams == 1 {
        return None;
    }
    let (layout, segmentation) = (leader.layout, leader.segmentation);
    if let Some(flags) = last {
        TcpSegment::new_unchecked(&mut first[layout.transport..]).set_flags(flags);
    }
    layout.write_length(&mut first[..headers], carried);
    let taken = (datagrams * segment).min(bytes.len());
    Some(Merged { datagrams, taken, length: between + headers + carried, segmentation, size })
}

/// What came in one place, the first of it in a small buffer.
#[derive(Debug)]
pub struct Came {
    /// The small buffer.
    pub place: Frame,
    /// How much it is, and from whom.
    pub came: Received,
    /// To whom it came.
    pub local: SocketAddrV4,
    /// Bytes that datagrams have in front of their packets.
    pub between: usize,
}

impl Came {
    /// Makes frames of what came, of which the rest is in a large buffer: that becomes a superframe of what goes together from the
    /// first on, or the one long datagram that it is. Returns how many were lost for want of a buffer, and how many went into
    /// another.
    pub fn keep(
        self,
        mut large: Frame,
        merges: bool,
        (arena, pool): (&Arena, &mut Pool),
        frames: &mut Vec<Frame>,
    ) -> (u64, u64) {
        let (Received { from, length, segment }, local, between) = (self.came, self.local, self.between);
        let bytes = arena.open(&mut large).into_bytes();
        bytes[HEADERS..SMALL_CAPACITY].copy_from_slice(&arena.bytes(&self.place)[HEADERS..]);
        let kept = if segment < length {
            let train = &mut bytes[HEADERS..HEADERS + length];
            if merges { merge(train, segment, between) } else { None }
        } else {
            Some(Merged { datagrams: 1, taken: length, length, segmentation: Segmentation::None, size: 0 })
        };
        let (at, taken) = (frames.len(), kept.map_or(0, |kept| kept.taken));
        let lost = self.take_apart(taken, &arena.bytes(&large)[SMALL_CAPACITY..], (arena, pool), frames);
        let Some(kept) = kept else {
            pool.free(large);
            return (lost, 0);
        };
        let mut open = arena.open(&mut large);
        open.truncate(HEADERS + kept.length);
        if kept.segmentation != Segmentation::None {
            open.record.checksum = ChecksumState::PartialInside;
            open.record.inside = (HEADERS + between) as u8;
            (open.record.segmentation, open.record.segment_size) = (kept.segmentation, kept.size as u16);
        }
        write_headers(open.into_bytes(), from, local);
        frames.insert(at, large);
        (lost, kept.datagrams as u64 - 1)
    }

    /// Makes frames of the datagrams from the byte `taken` on, each with outer headers; returns how many were lost for want of a
    /// buffer.
    pub fn take_apart(
        self,
        taken: usize,
        rest: &[u8],
        (arena, pool): (&Arena, &mut Pool),
        frames: &mut Vec<Frame>,
    ) -> u64 {
        let (Self { place, local, .. }, Received { from, length, segment }) = (&self, self.came);
        let at = frames.len();
        let first = HEADERS + segment.min(length);
        // The first stays where it is, if it has room there; the others are taken out of what comes behind it.
        let stays = taken == 0 && first <= SMALL_CAPACITY;
        let (step, mut lost) = (segment.max(1), 0);
        for start in (taken..length).step_by(step).skip(usize::from(stays)) {
            let end = (start + step).min(length);
            match pool.allocate(HEADERS + end - start) {
                Some(mut frame) => {
                    let bytes = arena.open(&mut frame).into_bytes();
                    copy(&mut bytes[HEADERS..], &arena.bytes(place)[HEADERS..], rest, start);
                    write_headers(bytes, from, *local);
                    frames.push(frame);
                }
                None => lost += 1,
            }
        }
        let Self { place: mut frame, local, .. } = self;
        if !stays {
            pool.free(frame);
            return lost;
        }
        let mut open = arena.open(&mut frame);
        open.truncate(first);
        write_headers(open.into_bytes(), from, local);
        frames.insert(at, frame);
        lost
    }
}

/// Copies what came from `start` on out of the two parts that it lies in.
fn copy(to: &mut [u8], first: &[u8], rest: &[u8], start: usize) {
    let in_first = to.len().min(first.len().saturating_sub(start));
    let (head, tail) = to.split_at_mut(in_first);
    head.copy_from_slice(&first[first.len().min(start)..][..in_first]);
    let start = (start + in_first).saturating_sub(first.len());
    tail.copy_from_slice(&rest[start..][..tail.len()]);
}

/// Returns how many frames, from the first on, go to one peer in one message: all have the length of the first, but the last,
/// which may have less.
#[must_use]
pub fn together(arena: &Arena, frames: &[Frame]) -> usize {
    let Some((first, others)) = frames.split_first() else { return 0 };
    let (peer, payload) = datagram(arena.bytes(first));
    let (size, mut sum, mut count) = (payload.len(), payload.len(), 1);
    for other in others {
        let (to, payload) = datagram(arena.bytes(other));
        sum += payload.len();
        if to != peer || payload.len() > size || payload.is_empty() || sum > MESSAGE_LIMIT {
            break;
        }
        count += 1;
        if payload.len() < size {
            break;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{IpProtocol, UdpDatagram, ipv4, tcp, udp};

    /// A packet that must not be cut, with nonsense for a transport checksum.
    fn packet(is_tcp: bool, payload: &[u8]) -> Vec<u8> {
        let header = if is_tcp { tcp::HEADER_LENGTH } else { udp::HEADER_LENGTH };
        let mut bytes = vec![0; ipv4::HEADER_LENGTH + header];
        bytes.extend(payload);
        let length = bytes.len() as u16;
        bytes[0] = 0x45;
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        packet.set_total_length(length);
        packet.set_identification(0xfffe);
        packet.set_fragmentation(true, false, 0);
        packet.set_time_to_live(64);
        packet.set_protocol(if is_tcp { IpProtocol::Tcp } else { IpProtocol::Udp });
        packet.set_source(Ipv4Addr::new(10, 1, 15, 2));
        packet.set_destination(Ipv4Addr::new(10, 1, 20, 3));
        packet.fill_header_checksum();
        let transport = &mut bytes[ipv4::HEADER_LENGTH..];
        if is_tcp {
            transport[..tcp::HEADER_LENGTH].copy_from_slice(&[
                0x9c, 0x40, 0, 80, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1, 0x50, 0x18, 1, 0, 0xab, 0xcd, 0, 0,
            ]);
        } else {
            let mut datagram = UdpDatagram::new_unchecked(transport);
            datagram.set_source_port(40_000);
            datagram.set_destination_port(7);
            datagram.set_length(length - ipv4::HEADER_LENGTH as u16);
        }
        bytes
    }

    /// The packets that one is cut into.
    fn cut(whole: &[u8], size: usize) -> Vec<Vec<u8>> {
        let layout = Layout::of_packet(whole).unwrap();
        let starts = (layout.payload..layout.end).step_by(size).enumerate();
        let segment = |(number, start): (usize, usize)| {
            let range = start..(start + size).min(layout.end);
            let mut segment = vec![0; layout.payload + range.len()];
            layout.write_segment(&mut segment, whole, &range, number as u16);
            segment
        };
        starts.map(segment).collect()
    }

    proptest! {
        /// RFC 6864, 4.1: what must not be cut has an identification that means nothing, and which may change.
        #[test]
        fn what_is_put_together_and_cut_again_is_what_came(
            payload in prop::collection::vec(any::<u8>(), 1..3000), size in 1..400_usize, is_tcp: bool,
            damage in prop::option::of((any::<prop::sample::Index>(), 1..=u8::MAX)), between in 0..30_usize,
        ) {
            let whole = packet(is_tcp, &payload);
            let front: Vec<u8> = (0..between).map(|number| number as u8).collect();
            let mut came: Vec<Vec<u8>> = cut(&whole, size).iter().map(|it| [&front[..], it].concat()).collect();
            came.truncate(GROUP_LIMIT);
            let segment = came[0].len();
            let mut bytes = came.concat();
            let damaged = damage.map(|(at, change)| {
                let at = at.index(bytes.len());
                bytes[at] ^= change;
                at / segment
            });
            let before = bytes.clone();
            let merged = merge(&mut bytes, segment, between);
            // All up to the damage, whatever it is.
            let good = damaged.unwrap_or(came.len());
            prop_assert_eq!(merged.map_or(1, |it| it.datagrams), good.max(1));
            let Some(merged) = merged else {
                prop_assert!(bytes == before, "nothing changes");
                return Ok(());
            };
            prop_assert_eq!(merged.taken, (good * segment).min(before.len()));
            prop_assert!(bytes[merged.taken..] == before[merged.taken..], "nor does what is behind");
            let made = cut(&bytes[between..merged.length], size);
            prop_assert!(bytes[..between] == front && merged.size == size);
            prop_assert!(made.iter().zip(&came[..good]).all(|(made, came)| came[between..] == made[..]));
            prop_assert_eq!(made.len(), good);
        }

        #[test]
        fn any_bytes_are_put_together_or_not(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200), segment in 0..210_usize, between in 0..30_usize,
        ) {
            let before = bytes.clone();
            prop_assert!(merge(&mut bytes, segment, between).is_none() && bytes == before);
        }
    }
}
