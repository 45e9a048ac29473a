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
        let is_accepted = self.listeners.contains_key(&tuple.local.port());
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
        let Some(&owner) = self.listeners.get(&tuple.local.port()) else { return };
        self.time_wait.remove(&tuple);
        let setup =
            Setup { tuple, owner, traced: false, mtu: entry.mtu, seed: entry.seed, buffer: self.buffer };
        let (connection, _) = Connection::accept(&setup, &entry.syn, entry.since);
        let id = self.insert(connection);
        self.receive_on(id, packet, io);
    }

    pub(super) fn receive_unknown(
        &mut self,
        tuple: Tuple,
        packet: &[u8],
        segment: &TcpSegment<&[u8]>,
        io: &mut Io<'_, '_>,
    ) {
        let flags = segment.flags();
        let opens = flags.syn() && !flags.ack() && !flags.rst() && !flags.fin();
        match self.listeners.get(&tuple.local.port()) {
            Some(&owner) if opens => self.open_half(tuple, owner, packet, io),
            Some(_) | None => {
                if !flags.rst() {
                    refuse(io, tuple, segment);
                }
            }
        }
    }

    fn open_half(&mut self, tuple: Tuple, owner: Owner, packet: &[u8], io: &mut Io<'_, '_>) {
        if !self.half_open.has_room(tuple.local.port()) {
            io.device.drops.count(PodDrop::HalfOpenFull);
            return;
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
            return;
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
    }
}
