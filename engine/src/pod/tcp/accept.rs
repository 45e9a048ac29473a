//! Segments that belong to no connection: ended ones, half-open ones, listeners, nobody.
//!
//! The table comes here when its 4-tuples do not know a segment. Invariant: a listener's connection exists from the ACK on, not
//! from the SYN. Allowed dependencies: the other files of `tcp`. Read first: RFC 9293 section 3.10.7.2, RFC 4987.

use super::bare::{refuse, send_bare, send_packet};
use super::connection::{Connection, Setup};
use super::half_open::HalfOpen;
use super::{Io, Owner, TcpTable, Tuple};
use crate::pod::drops::PodDrop;
use crate::wire::{Ipv4Packet, TcpFlags, TcpSegment};

/// Initial sequence numbers that are tried until one fits.
const INITIAL_TRIES: u32 = 64;

impl TcpTable {
    /// Answers for a connection in TIME-WAIT; false when there is none or a SYN may replace it, as Linux'
    /// `tcp_timewait_state_process` has it: one beyond the last sequence number, while somebody accepts (RFC 1122, 4.2.2.13). A
    /// reset at the very next sequence number ends it (`rfc1337=0`).
    pub(super) fn receive_ended(
        &mut self,
        tuple: Tuple,
        segment: &TcpSegment<&[u8]>,
        io: &mut Io<'_, '_>,
    ) -> bool {
        let Some(last) = self.time_wait.get(&tuple, io.now) else { return false };
        let flags = segment.flags();
        let is_newer = segment.sequence().wrapping_sub(last.acknowledged) as i32 > 0;
        let is_accepted = self.acceptor(&tuple, io).is_some();
        if flags.syn() && !flags.ack() && !flags.rst() && is_newer && is_accepted {
            return false;
        }
        if flags.rst() && segment.sequence() == last.acknowledged {
            self.time_wait.remove(&tuple);
        }
        let has_content = flags.fin() || flags.syn() || !segment.payload().is_empty();
        if !flags.rst() && has_content {
            send_bare(io, tuple, last.next, Some(last.acknowledged), TcpFlags::ACK);
        }
        true
    }

    pub(super) fn receive_half_open(
        &mut self,
        tuple: Tuple,
        packet: &[u8],
        segment: &TcpSegment<&[u8]>,
        io: &mut Io<'_, '_>,
    ) -> bool {
        let Some(entry) = self.half_open.get(&tuple) else { return false };
        let flags = segment.flags();
        let expected = entry.remote_initial.wrapping_add(1);
        if flags.rst() {
            if segment.sequence() == expected {
                self.half_open.remove(&tuple);
            }
        } else if flags.syn() {
            if segment.sequence() != entry.remote_initial {
                // An old or a rebooted peer's SYN: the newest counts.
                self.half_open.remove(&tuple);
                return false;
            }
            let answer = entry.answer.clone();
            send_packet(io, tuple, &answer);
        } else if flags.ack() && segment.acknowledgement() == entry.local_initial.wrapping_add(1) {
            self.complete(tuple, packet, io);
        } else if flags.ack() {
            send_bare(io, tuple, segment.acknowledgement(), None, TcpFlags::RST);
        }
        true
    }

    /// The ACK came: makes the socket and tells the listener's owner.
    fn complete(&mut self, tuple: Tuple, packet: &[u8], io: &mut Io<'_, '_>) {
        let Some(entry) = self.half_open.remove(&tuple) else { return };
        let Some(owner) = self.acceptor(&tuple, io) else { return };
        self.time_wait.remove(&tuple);
        let setup =
            Setup { tuple, owner, traced: false, mtu: entry.mtu, seed: entry.seed, buffer: self.buffer };
        let (connection, _) = Connection::accept(&setup, &entry.syn, entry.since);
        let id = self.insert(connection);
        self.receive_on(id, packet, io);
    }

    /// Handles a segment that belongs to nothing; false when it asks somebody elsewhere for a connection.
    pub(super) fn receive_unknown(
        &mut self,
        tuple: Tuple,
        packet: &[u8],
        segment: &TcpSegment<&[u8]>,
        io: &mut Io<'_, '_>,
    ) -> bool {
        let flags = segment.flags();
        let opens = flags.syn() && !flags.ack() && !flags.rst() && !flags.fin();
        match self.acceptor(&tuple, io) {
            Some(Owner::Relays) if opens => return false,
            Some(owner) if opens => {
                self.open_half(tuple, owner, packet, io);
            }
            Some(_) | None => {
                if !flags.rst() {
                    refuse(io, tuple, segment);
                }
            }
        }
        true
    }

    /// Answers a SYN to somebody elsewhere; false when it cannot be.
    pub(in super::super) fn admit(&mut self, packet: &[u8], io: &mut Io<'_, '_>) -> bool {
        let ip = Ipv4Packet::new_unchecked(packet);
        let tuple = super::tuple(&ip, &TcpSegment::new_unchecked(ip.payload()));
        self.open_half(tuple, Owner::Relays, packet, io)
    }

    /// Refuses a SYN to somebody elsewhere, as that one has.
    pub(in super::super) fn refuse(&mut self, packet: &[u8], io: &mut Io<'_, '_>) {
        let ip = Ipv4Packet::new_unchecked(packet);
        let segment = TcpSegment::new_unchecked(ip.payload());
        refuse(io, super::tuple(&ip, &segment), &segment);
    }

    /// Returns who accepts connections at the own end of a tuple: whoever listens there; elsewhere relays do.
    fn acceptor(&self, tuple: &Tuple, io: &Io<'_, '_>) -> Option<Owner> {
        if io.device.is_local(*tuple.local.ip()) {
            self.listeners.get(&tuple.local.port()).copied()
        } else {
            Some(Owner::Relays)
        }
    }

    /// Answers a SYN; false when there is no room for one more that has not been confirmed, or it is not understood.
    fn open_half(&mut self, tuple: Tuple, owner: Owner, packet: &[u8], io: &mut Io<'_, '_>) -> bool {
        if !self.half_open.has_room(tuple.local.port()) {
            io.device.drops.count(PodDrop::HalfOpenFull);
            return false;
        }
        let mtu = io.device.mtu_to(*tuple.remote.ip(), io.now);
        let initial = |bytes: &[u8]| {
            let packet = Ipv4Packet::new_unchecked(bytes);
            TcpSegment::new_unchecked(packet.payload()).sequence()
        };
        let last = self.time_wait.get(&tuple, io.now);
        let is_beyond =
            |answer: &[u8]| last.is_none_or(|last| initial(answer).wrapping_sub(last.next) as i32 > 0);
        // Half of all initial sequence numbers are beyond what the connection in TIME-WAIT used (RFC 1122, 4.2.2.13).
        let made = (0..INITIAL_TRIES).find_map(|_| {
            let seed = self.random.next_u64();
            let setup = Setup { tuple, owner, traced: false, mtu, seed, buffer: self.buffer };
            let (_, answer) = Connection::accept(&setup, packet, io.now);
            (answer.is_empty() || is_beyond(&answer)).then_some((seed, answer))
        });
        let Some((seed, answer)) = made.filter(|(_, answer)| !answer.is_empty()) else {
            io.device.drops.count(PodDrop::Malformed);
            return false;
        };
        let entry = HalfOpen {
            syn: packet.to_vec(),
            remote_initial: initial(packet),
            local_initial: initial(&answer),
            answer,
            seed,
            mtu,
            since: io.now,
        };
        send_packet(io, tuple, &entry.answer);
        self.half_open.insert(tuple, entry);
        true
    }
}
