//! Fragments: later ones follow their first, whoever translates it; those for the node itself are collected; and packets
//! cut where a link takes less.
//!
//! The worker asks for every fragment that comes to a node which translates, and keeps those that came before their
//! first. What is only forwarded is not put together: the first fragment's ports say whose the others are. Invariants: a
//! datagram's fragments never overlap, come by one port, and none hides a transport header; datagrams and frames that wait are
//! bounded, by source and in time, and whose port has most of them gives way (ADR 24). Allowed dependencies: `frame`, `ledger`,
//! `wire`. Read first: RFC 791, 3.2; RFC 1122, 3.3.2; RFC 1858 and 3128; RFC 6864.

mod cut;

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::Duration;

use crate::clock::Instant;
use crate::frame::Frame;
use crate::ledger::DropReason;
use crate::tables::{NodeId, PortId};
use crate::wire::{IpProtocol, Ipv4Packet, icmpv4, ipv4, tcp, udp};
pub use cut::{pieces, write_piece, write_whole};

/// Datagrams of one source that are followed at once; one more ends the oldest.
const SOURCE_LIMIT: usize = 128;
/// Datagrams that are followed at once; one more ends the oldest of the port that has most.
const LIMIT: usize = 4096;
/// Fragments of one datagram: as many as the smallest MTU of RFC 791 would make of 8 KB, as NFS sends.
const PIECE_LIMIT: usize = 192;
/// Frames that wait at once, for their first or for the rest; one more ends the oldest datagram of the port that has most.
const WAITING_LIMIT: usize = 1024;
/// Of these, frames of one source: five datagrams of 64 KB in frames of 1,500 bytes.
const SOURCE_WAITING_LIMIT: usize = WAITING_LIMIT / 4;
/// How long a datagram is followed (`net.ipv4.ipfrag_time`).
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// What the fragments of a datagram have in common (RFC 791, 3.2), where they are, and by which port they come: who spoofs a
/// source elsewhere spoils nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Datagram {
    node: NodeId,
    port: PortId,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    identification: u16,
    protocol: u8,
    /// Whether its fragments are collected, not followed.
    collected: bool,
}

impl Datagram {
    /// Reads whose a fragment is that came by a port.
    #[must_use]
    pub fn of(node: NodeId, port: PortId, packet: &Ipv4Packet<&[u8]>) -> Self {
        Self {
            node,
            port,
            source: packet.source(),
            destination: packet.destination(),
            identification: packet.identification(),
            protocol: packet.protocol().into(),
            collected: false,
        }
    }

    /// The same, for the node itself: its fragments are collected.
    #[must_use]
    pub fn collected(self) -> Self {
        Self { collected: true, ..self }
    }

    fn origin(&self) -> Origin {
        (self.port, self.node, self.source)
    }
}

/// What is to be done with a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on, with these ports; where its source is translated, with this identification.
    Pass((u16, u16), u16),
    /// It waits for its first.
    Wait,
    /// It is dropped.
    Refuse(DropReason),
}

/// Where datagrams come from: a port, and whom its frames say they are from.
type Origin = (PortId, NodeId, Ipv4Addr);

/// What is kept for a port.
#[derive(Debug, Default)]
struct Share {
    /// Its datagrams by number, the oldest first.
    followed: BTreeMap<u64, Datagram>,
    /// Those of which frames wait.
    waiting: BTreeMap<u64, Datagram>,
    /// The frames that wait.
    frames: usize,
}

#[derive(Debug)]
struct Known {
    /// Counts up from datagram to datagram.
    number: u64,
    expires: Instant,
    /// What the datagram gets where its source is translated.
    identification: u16,
    /// Of the first fragment, once it came.
    ports: Option<(u16, u16)>,
    /// What passed, in bytes of the payload.
    ranges: Vec<Range<usize>>,
    /// Where the payload ends, once the last fragment passed.
    end: Option<usize>,
    /// Why no more of it passes.
    refused: Option<DropReason>,
    waiting: Vec<Frame>,
}

/// The datagrams whose fragments are on their way through a worker's nodes.
#[derive(Debug, Default)]
pub struct Fragments {
    known: BTreeMap<Datagram, Known>,
    /// Oldest first; may name what has ended.
    order: VecDeque<(Instant, Datagram)>,
    by_source: BTreeMap<Origin, VecDeque<Datagram>>,
    by_port: BTreeMap<PortId, Share>,
    next_number: u64,
    waiting: usize,
    /// Frames that are to be dropped, and why.
    pub dropped: Vec<(Frame, DropReason)>,
}

impl Fragments {
    /// Tells whether a datagram is followed.
    #[must_use]
    pub fn follows(&self, datagram: &Datagram) -> bool {
        self.known.contains_key(datagram)
    }

    /// Takes note of a fragment; `ports` are what the parser found in a first one, `identification` is for a datagram that is
    /// not followed yet.
    pub fn take(
        &mut self,
        datagram: Datagram,
        packet: &Ipv4Packet<&[u8]>,
        ports: (u16, u16),
        identification: u16,
        now: Instant,
    ) -> Outcome {
        let range = match range(packet) {
            Ok(range) => range,
            Err(reason) => return Outcome::Refuse(reason),
        };
        if !self.follows(&datagram) {
            self.follow(datagram, identification, now);
        }
        let Some(known) = self.known.get_mut(&datagram) else {
            return Outcome::Refuse(DropReason::FragmentLimit);
        };
        if let Some(reason) = known.refused {
            return Outcome::Refuse(reason);
        }
        let ports = if range.start == 0 { Some(ports) } else { known.ports };
        let Some(ports) = ports else {
            let may_wait = known.waiting.len() < PIECE_LIMIT && self.make_room_to_wait(&datagram);
            return if may_wait { Outcome::Wait } else { Outcome::Refuse(DropReason::FragmentLimit) };
        };
        if let Err(reason) = known.add(range, packet.more_fragments()) {
            if known.refused.is_some() {
                self.drop_waiting(&datagram.collected(), reason);
            }
            return Outcome::Refuse(reason);
        }
        known.ports = Some(ports);
        let identification = known.identification;
        let whole = known.end == Some(known.ranges.iter().map(Range::len).sum());
        if whole && known.waiting.is_empty() {
            self.end(datagram);
        }
        Outcome::Pass(ports, identification)
    }

    /// Keeps a frame that is to wait.
    pub fn wait(&mut self, datagram: &Datagram, frame: Frame) {
        match self.known.get_mut(datagram) {
            Some(known) => {
                known.waiting.push(frame);
                self.waiting += 1;
                let share = self.by_port.entry(datagram.port).or_default();
                share.waiting.insert(known.number, *datagram);
                share.frames += 1;
            }
            None => self.dropped.push((frame, DropReason::FragmentLimit)),
        }
    }

    /// Takes note of a fragment of what is for the node itself, which is to be kept by [`Fragments::wait`]; tells whether the
    /// datagram is whole then, to be had from [`Fragments::whole`].
    ///
    /// # Errors
    /// Why the fragment is dropped.
    pub fn collect(
        &mut self,
        datagram: &Datagram,
        packet: &Ipv4Packet<&[u8]>,
        now: Instant,
    ) -> Result<bool, DropReason> {
        let range = range(packet)?;
        if !self.follows(datagram) {
            self.follow(*datagram, 0, now);
        }
        let may_wait = self.make_room_to_wait(datagram);
        let known = self.known.get_mut(datagram).filter(|_| may_wait).ok_or(DropReason::FragmentLimit)?;
        if let Some(reason) = known.refused {
            return Err(reason);
        }
        let added = known.add(range, packet.more_fragments());
        let whole = known.end == Some(known.ranges.iter().map(Range::len).sum());
        if let Some(reason) = known.refused {
            self.drop_waiting(datagram, reason);
        }
        added.map(|()| whole)
    }

    /// Gives back all fragments of a datagram that is whole, each with where in the payload it belongs, in that order.
    pub fn whole(&mut self, datagram: &Datagram) -> Vec<(Range<usize>, Frame)> {
        let ranges = self.known.get_mut(datagram).map(|known| std::mem::take(&mut known.ranges));
        let mut pieces: Vec<_> = ranges.into_iter().flatten().zip(self.release(datagram)).collect();
        self.end(*datagram);
        pieces.sort_by_key(|(range, _)| range.start);
        pieces
    }

    /// Tells whether one more frame of a datagram may wait: not when its source has its part, nor when its own datagram had to
    /// give way to it.
    fn make_room_to_wait(&mut self, datagram: &Datagram) -> bool {
        let of_source = self.by_source.get(&datagram.origin());
        let known = of_source.into_iter().flatten().filter_map(|it| self.known.get(it));
        if known.map(|known| known.waiting.len()).sum::<usize>() >= SOURCE_WAITING_LIMIT {
            return false;
        }
        if self.waiting >= WAITING_LIMIT {
            self.give_way(datagram.port, |share| share.frames, |share| &share.waiting);
        }
        self.follows(datagram)
    }

    /// Ends the oldest datagram of the port that has most; where two have as much, of the one that asks.
    fn give_way(
        &mut self,
        asking: PortId,
        size: impl Fn(&Share) -> usize,
        list: impl Fn(&Share) -> &BTreeMap<u64, Datagram>,
    ) {
        let most = self.by_port.iter().max_by_key(|&(port, share)| (size(share), *port == asking));
        if let Some(&oldest) = most.and_then(|(_, share)| list(share).values().next()) {
            self.drop_waiting(&oldest, DropReason::FragmentLimit);
            self.end(oldest);
        }
    }

    /// Gives back the frames that waited for a first fragment, to be taken again.
    pub fn release(&mut self, datagram: &Datagram) -> Vec<Frame> {
        let Some(known) = self.known.get_mut(datagram) else { return Vec::new() };
        let released = std::mem::take(&mut known.waiting);
        self.waiting -= released.len();
        if let Some(share) = self.by_port.get_mut(&datagram.port) {
            share.waiting.remove(&known.number);
            share.frames -= released.len();
        }
        released
    }

    /// Ends what has been followed too long.
    pub fn expire(&mut self, now: Instant) {
        while self.next_expiry().is_some_and(|next| next <= now) {
            let Some((expires, datagram)) = self.order.pop_front() else { break };
            if self.known.get(&datagram).is_some_and(|known| known.expires == expires) {
                self.drop_waiting(&datagram, DropReason::FragmentTimeout);
                self.end(datagram);
            }
        }
    }

    /// Returns when something may have to be ended.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        self.order.front().map(|(expires, _)| *expires)
    }

    /// Takes all frames that wait, to end.
    pub fn drain(&mut self) -> Vec<Frame> {
        self.waiting = 0;
        self.by_port.clear();
        let waiting = self.known.values_mut().flat_map(|known| known.waiting.drain(..));
        waiting.chain(self.dropped.drain(..).map(|(frame, _)| frame)).collect()
    }

    fn follow(&mut self, datagram: Datagram, identification: u16, now: Instant) {
        let of_source = self.by_source.get(&datagram.origin());
        if let Some(&oldest) = of_source.filter(|list| list.len() >= SOURCE_LIMIT).and_then(VecDeque::front) {
            self.drop_waiting(&oldest, DropReason::FragmentLimit);
            self.end(oldest);
        }
        if self.known.len() >= LIMIT {
            self.give_way(datagram.port, |share| share.followed.len(), |share| &share.followed);
        }
        let (number, expires) = (self.next_number, now + TIMEOUT);
        self.next_number += 1;
        self.order.push_back((expires, datagram));
        self.by_source.entry(datagram.origin()).or_default().push_back(datagram);
        self.by_port.entry(datagram.port).or_default().followed.insert(number, datagram);
        self.known.insert(
            datagram,
            Known {
                number,
                expires,
                identification,
                ports: None,
                ranges: Vec::new(),
                end: None,
                refused: None,
                waiting: Vec::new(),
            },
        );
    }

    fn drop_waiting(&mut self, datagram: &Datagram, reason: DropReason) {
        let waiting = self.release(datagram);
        self.dropped.extend(waiting.into_iter().map(|frame| (frame, reason)));
    }

    fn end(&mut self, datagram: Datagram) {
        let Some(Known { number, .. }) = self.known.remove(&datagram) else { return };
        if let Some(list) = self.by_source.get_mut(&datagram.origin()) {
            list.retain(|other| *other != datagram);
            if list.is_empty() {
                self.by_source.remove(&datagram.origin());
            }
        }
        if let Some(share) = self.by_port.get_mut(&datagram.port) {
            share.followed.remove(&number);
            if share.followed.is_empty() {
                self.by_port.remove(&datagram.port);
            }
        }
        // What ended before its time is passed over when that comes; the list stays short.
        if self.order.len() > 2 * LIMIT {
            let known = &self.known;
            self.order.retain(|(expires, it)| known.get(it).is_some_and(|known| known.expires == *expires));
        }
    }
}

impl Known {
    /// Adds a range of the payload; what overlaps another ends the datagram (RFC 1858, 4; as RFC 5722 has it for IPv6),
    /// but an exact copy ends nothing.
    fn add(&mut self, range: Range<usize>, more: bool) -> Result<(), DropReason> {
        if self.ranges.contains(&range) {
            return Err(DropReason::FragmentOverlap);
        }
        let overlaps = self.ranges.iter().any(|other| range.start < other.end && other.start < range.end);
        let beyond = self.end.is_some_and(|end| range.end > end || !more);
        let short = !more && self.ranges.iter().any(|other| other.end > range.end);
        if overlaps || beyond || short {
            self.refused = Some(DropReason::FragmentOverlap);
            return Err(DropReason::FragmentOverlap);
        }
        if self.ranges.len() >= PIECE_LIMIT {
            self.refused = Some(DropReason::FragmentLimit);
            return Err(DropReason::FragmentLimit);
        }
        if !more {
            self.end = Some(range.end);
        }
        self.ranges.push(range);
        Ok(())
    }
}

/// Returns which bytes of the payload a fragment has, if it can be one.
fn range(packet: &Ipv4Packet<&[u8]>) -> Result<Range<usize>, DropReason> {
    let (offset, length) = (packet.fragment_offset(), packet.payload().len());
    let end = offset + length;
    let uneven = packet.more_fragments() && length % 8 != 0;
    if length == 0 || uneven || end + ipv4::HEADER_LENGTH > usize::from(u16::MAX) {
        return Err(DropReason::FragmentMalformed);
    }
    let header = match packet.protocol() {
        IpProtocol::Tcp => tcp::HEADER_LENGTH,
        IpProtocol::Udp => udp::HEADER_LENGTH,
        IpProtocol::Icmp => icmpv4::HEADER_LENGTH,
        IpProtocol::Unknown(_) => 0,
    };
    // RFC 1858, 3.1 and RFC 3128: nothing of the header may come in a second fragment.
    let tiny = if offset == 0 { length < header } else { offset < header };
    if tiny { Err(DropReason::FragmentTiny) } else { Ok(offset..end) }
}
