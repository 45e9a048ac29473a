//! The pod's TCP: connections found by 4-tuple, listeners, and who is told about what.
//!
//! `stack.rs` hands it segments and errors; applications use it through `sockets.rs`. A segment's way: connection → ended
//! connection → half-open connection → listener → RST.
//!
//! Invariants: a segment touches one connection, whatever their number; timers stand in a sorted set and none is scanned;
//! listeners and half-open connections hold no buffers. Allowed dependencies: smoltcp, `device`, `wire`.
//! Read first: RFC 9293 section 3.10.7.

mod accept;
mod arrival;
mod bare;
mod connection;
pub(super) mod half_open;
mod recovery;
mod time_wait;
mod wire;

use super::device::Device;
use super::drops::PodDrop;
use super::socket::{Event, Failure, Owner, PortTaken, SocketError, TcpId};
use crate::clock::Instant;
use crate::hash::KeyedState;
use crate::link::pod_ring::Outbox;
use crate::random::Random;
use crate::wire::{Ipv4Packet, TcpSegment};
use bare::send_packet;
pub(super) use connection::Connection;
use connection::Setup;
use half_open::{Expiry, HalfOpenTable};
use smoltcp::socket::tcp::State;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use time_wait::TimeWait;

/// The first port for connections of the pod's own, as on Linux.
pub(super) const FIRST_EPHEMERAL: u16 = 32_768;
/// How many ports there are for that.
pub(super) const EPHEMERAL_COUNT: u16 = 28_232;

/// Both ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Tuple {
    pub(super) local: SocketAddrV4,
    pub(super) remote: SocketAddrV4,
}

/// What every call works with: the pod's card, the way out, the time and the list of events.
#[derive(Debug)]
pub(super) struct Io<'a, 'o> {
    pub(super) device: &'a mut Device,
    pub(super) out: &'a mut Outbox<'o>,
    pub(super) now: Instant,
    pub(super) events: &'a mut VecDeque<(Owner, Event)>,
}

/// The table.
#[derive(Debug)]
pub(super) struct TcpTable {
    connections: HashMap<TcpId, Box<Connection>, KeyedState>,
    by_tuple: HashMap<Tuple, TcpId, KeyedState>,
    by_owner: BTreeSet<(Owner, TcpId)>,
    listeners: BTreeMap<u16, Owner>,
    half_open: HalfOpenTable,
    time_wait: TimeWait,
    timers: BTreeSet<(Instant, TcpId)>,
    dirty: VecDeque<TcpId>,
    random: Random,
    next_id: u64,
    next_port: u16,
    buffer: usize,
    /// How often a connection's stack ran; grows with traffic, not with the number of connections.
    pub(super) polls: u64,
}

impl TcpTable {
    /// Makes an empty table for connections with buffers of this size.
    pub(super) fn new(seed: u64, buffer: usize) -> Self {
        let mut random = Random::new(seed);
        let mut secret = Random::new(!seed);
        let keyed = KeyedState([secret.next_u64(), secret.next_u64()]);
        TcpTable {
            connections: HashMap::with_hasher(keyed),
            by_tuple: HashMap::with_hasher(keyed),
            by_owner: BTreeSet::new(),
            listeners: BTreeMap::new(),
            half_open: HalfOpenTable::default(),
            time_wait: TimeWait::default(),
            timers: BTreeSet::new(),
            dirty: VecDeque::new(),
            next_port: random.next_u16() % EPHEMERAL_COUNT,
            random,
            next_id: 1,
            buffer,
            polls: 0,
        }
    }

    /// Lets an owner accept connections on a port.
    ///
    /// # Errors
    /// [`PortTaken`] names who accepts there already.
    pub(super) fn listen(&mut self, port: u16, owner: Owner) -> Result<(), PortTaken> {
        match self.listeners.get(&port) {
            Some(&holder) => Err(PortTaken { holder }),
            None => {
                self.listeners.insert(port, owner);
                Ok(())
            }
        }
    }

    /// Begins a connection; its SYN leaves before the pod comes to rest.
    ///
    /// # Errors
    /// [`SocketError::NoPortLeft`].
    pub(super) fn connect(
        &mut self,
        device: &Device,
        remote: SocketAddrV4,
        owner: Owner,
        traced: bool,
        now: Instant,
    ) -> Result<TcpId, SocketError> {
        let local = device.source_for(*remote.ip());
        let tuple = self.free_tuple(local, remote, now).ok_or(SocketError::NoPortLeft)?;
        let mtu = device.mtu_to(*remote.ip(), now);
        let setup = Setup { tuple, owner, traced, mtu, seed: self.random.next_u64(), buffer: self.buffer };
        let id = self.insert(Connection::connect(&setup, now));
        self.mark_dirty(id);
        Ok(id)
    }

    /// Handles a segment for this pod, or for somebody elsewhere; false when it asks the latter for a connection.
    pub(super) fn receive(&mut self, packet: &[u8], io: &mut Io<'_, '_>) -> bool {
        let ip = Ipv4Packet::new_unchecked(packet);
        let Ok(segment) = TcpSegment::new_checked(ip.payload()) else {
            io.device.drops.count(PodDrop::Malformed);
            return true;
        };
        if !segment.verify_checksum(ip.source(), ip.destination()) {
            io.device.drops.count(PodDrop::BadChecksum);
            return true;
        }
        let tuple = tuple(&ip, &segment);
        if let Some(&id) = self.by_tuple.get(&tuple) {
            self.receive_on(id, packet, io);
        } else if !self.receive_half_open(tuple, packet, &segment, io)
            && !self.receive_ended(tuple, &segment, io)
        {
            return self.receive_unknown(tuple, packet, &segment, io);
        }
        true
    }

    fn receive_on(&mut self, id: TcpId, packet: &[u8], io: &mut Io<'_, '_>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        self.polls += 1;
        connection.receive(packet, io.device, io.out, io.now);
        notify(connection, id, io.events);
        mark(connection, id, &mut self.dirty);
    }

    /// Says whether a segment with these ends can have come from here.
    pub(super) fn knows(&self, tuple: &Tuple) -> bool {
        self.by_tuple.contains_key(tuple) || self.half_open.get(tuple).is_some()
    }

    /// Handles an error about a segment of this pod; false when no connection sent it.
    pub(super) fn fail(
        &mut self,
        tuple: Tuple,
        failure: Failure,
        events: &mut VecDeque<(Owner, Event)>,
    ) -> bool {
        let Some(&id) = self.by_tuple.get(&tuple) else { return self.half_open.get(&tuple).is_some() };
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        let error = match failure {
            Failure::NetworkUnreachable => SocketError::NetworkUnreachable,
            Failure::HostUnreachable | Failure::Prohibited | Failure::TtlExceeded => {
                SocketError::HostUnreachable
            }
            Failure::PortUnreachable | Failure::ProtocolUnreachable => SocketError::ConnectionRefused,
            Failure::FragmentationNeeded(_) => {
                self.mark_dirty(id);
                return true;
            }
            Failure::Other(..) => return true,
        };
        connection.fail(error);
        notify(connection, id, events);
        self.mark_dirty(id);
        true
    }

    /// Lets one connection send that has something to send; false when none has.
    pub(super) fn flush_next(&mut self, io: &mut Io<'_, '_>) -> bool {
        let Some(id) = self.dirty.pop_front() else { return false };
        let Some(connection) = self.connections.get_mut(&id) else { return true };
        connection.dirty = false;
        self.polls += 1;
        let state = connection.state();
        let next = connection.flush(io.device, io.out, io.now);
        if connection.state() != state && !connection.is_released() {
            notify(connection, id, io.events);
        }
        let old = std::mem::replace(&mut connection.timer, next);
        if old != next {
            if let Some(old) = old {
                self.timers.remove(&(old, id));
            }
            if let Some(next) = next {
                self.timers.insert((next, id));
            }
        }
        if connection.is_over() {
            self.remove(id, io.now);
        }
        true
    }

    /// Marks the connections whose timers are due, and serves the half-open ones'.
    pub(super) fn poll(&mut self, io: &mut Io<'_, '_>) {
        while let Some(&(due, id)) = self.timers.first().filter(|&&(due, _)| due <= io.now) {
            self.timers.remove(&(due, id));
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.timer = None;
            }
            self.mark_dirty(id);
        }
        while let Some((tuple, expiry)) = self.half_open.expire(io.now) {
            match expiry {
                Expiry::Again(answer) => send_packet(io, tuple, &answer),
                Expiry::Ended => io.device.drops.count(PodDrop::HalfOpenTimeout),
            }
        }
    }

    /// Returns when [`TcpTable::poll`] has something to do.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        let connections = self.timers.first().map(|&(due, _)| due);
        match (connections, self.half_open.next_timer()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// Says whether connections wait to be flushed.
    pub(super) fn has_work(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Returns a connection to read its state.
    pub(super) fn get(&self, id: TcpId) -> Option<&Connection> {
        self.connections.get(&id).map(Box::as_ref)
    }

    /// Returns a connection to work with; it is flushed before the pod comes to rest.
    pub(super) fn get_mut(&mut self, id: TcpId) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(&id)?;
        mark(connection, id, &mut self.dirty);
        Some(connection)
    }

    /// Takes a connection's event; says whether its owner still wants it, who may have left while it waited.
    pub(super) fn take_event(&mut self, id: TcpId) -> bool {
        self.connections.get_mut(&id).is_some_and(|connection| {
            connection.notified = false;
            !connection.is_released()
        })
    }

    /// Ends everything an owner holds; open connections are reset when `abort`, else ended in order.
    pub(super) fn close_owner(&mut self, owner: Owner, abort: bool, now: Instant) {
        let ports: Vec<u16> =
            self.listeners.iter().filter(|&(_, &holder)| holder == owner).map(|(&port, _)| port).collect();
        for port in ports {
            self.listeners.remove(&port);
            self.half_open.remove_port(port);
        }
        let first = (owner, TcpId(0));
        let owned: Vec<TcpId> = self
            .by_owner
            .range(first..)
            .take_while(|&&(holder, _)| holder == owner)
            .map(|&(_, id)| id)
            .collect();
        for id in owned {
            if let Some(connection) = self.get_mut(id) {
                if abort {
                    connection.abort();
                }
                connection.release(now);
            }
        }
    }

    /// Returns how many connections there are, and how many are half open.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.connections.len(), self.half_open.len())
    }

    fn insert(&mut self, connection: Connection) -> TcpId {
        let id = TcpId(self.next_id);
        self.next_id += 1;
        self.by_tuple.insert(connection.tuple, id);
        self.by_owner.insert((connection.owner, id));
        self.connections.insert(id, Box::new(connection));
        id
    }

    fn remove(&mut self, id: TcpId, now: Instant) {
        let Some(connection) = self.connections.remove(&id) else { return };
        self.by_tuple.remove(&connection.tuple);
        self.by_owner.remove(&(connection.owner, id));
        if let Some(due) = connection.timer {
            self.timers.remove(&(due, id));
        }
        if connection.state() == State::TimeWait {
            self.time_wait.insert(connection.tuple, connection.last, now);
        }
    }

    fn mark_dirty(&mut self, id: TcpId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            mark(connection, id, &mut self.dirty);
        }
    }

    fn free_tuple(&mut self, local: Ipv4Addr, remote: SocketAddrV4, now: Instant) -> Option<Tuple> {
        for _ in 0..EPHEMERAL_COUNT {
            let port = FIRST_EPHEMERAL + self.next_port;
            self.next_port = (self.next_port + 1) % EPHEMERAL_COUNT;
            let tuple = Tuple { local: SocketAddrV4::new(local, port), remote };
            let taken = self.by_tuple.contains_key(&tuple)
                || self.listeners.contains_key(&port)
                || self.time_wait.get(&tuple, now).is_some();
            if !taken {
                return Some(tuple);
            }
        }
        None
    }
}

/// Returns both ends of a connection, of a segment that came.
pub(super) fn tuple(packet: &Ipv4Packet<&[u8]>, segment: &TcpSegment<&[u8]>) -> Tuple {
    Tuple {
        local: SocketAddrV4::new(packet.destination(), segment.destination_port()),
        remote: SocketAddrV4::new(packet.source(), segment.source_port()),
    }
}

/// Puts a connection once into the list of those to flush.
fn mark(connection: &mut Connection, id: TcpId, dirty: &mut VecDeque<TcpId>) {
    if !connection.dirty {
        connection.dirty = true;
        dirty.push_back(id);
    }
}

/// Tells a connection's owner once that there is something to see.
fn notify(connection: &mut Connection, id: TcpId, events: &mut VecDeque<(Owner, Event)>) {
    if !connection.notified && !connection.is_released() {
        connection.notified = true;
        events.push_back((connection.owner, Event::Tcp(id)));
    }
}
