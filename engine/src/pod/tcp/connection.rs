//! One TCP connection: a smoltcp stack that knows a single socket.
//!
//! The table finds it by 4-tuple and hands it segments; applications read and write through the table. A stack of its own
//! costs a few hundred bytes and saves every segment the scan over all other sockets.
//!
//! Invariants: it sends only inside [`Connection::receive`] and [`Connection::flush`]; its interface has exactly the local address;
//! a lower path MTU takes effect at the next call. Above 400 lines because every call works on the one socket inside.
//! Allowed dependencies: smoltcp, `device`, `tcp::wire`.
//! Read first: RFC 9293 sections 3.3.2 and 3.6, RFC 1122 section 4.2.3.5.

use super::super::device::Device;
use super::super::socket::{Owner, Received, SocketError};
use super::Tuple;
use super::arrival::{Standing, Window};
use super::recovery::{DUPLICATES, Recovery};
use super::wire::{LastSent, Wire, bare, read};
use crate::clock::Instant;
use crate::link::pod_ring::Outbox;
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpListenEndpoint};
use std::time::Duration;

/// How long unanswered data keeps a connection alive, as long as Linux tries a SYN.
const USER_TIMEOUT: Duration = Duration::from_secs(127);
/// How long a connection that its application left waits for the other side's end.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);
/// Windows that may pass while a segment is on its way: what overtakes it needs no more than a moment.
const IN_FLIGHT_WINDOWS: u32 = 16;
/// Segments one flush may send; a 64 KB window is 48 of 1,400 octets.
const FLUSH_LIMIT: usize = 4096;

/// A connection.
pub(in super::super) struct Connection {
    pub(super) tuple: Tuple,
    pub(super) owner: Owner,
    /// In the table's list of connections to flush.
    pub(super) dirty: bool,
    /// In the pod's list of events.
    pub(super) notified: bool,
    /// The table's timer for it.
    pub(super) timer: Option<Instant>,
    pub(super) last: LastSent,
    traced: bool,
    mtu: usize,
    seed: u64,
    /// Closed before the other side ever answered: nothing more is sent, not even a RST.
    silent: bool,
    /// Since when its application does not want it any more.
    released: Option<Instant>,
    /// Since when something waits for an answer and nothing has come: smoltcp's own timeout counts from the last segment
    /// received, so that it ends who speaks again after a long silence.
    unanswered: Option<Instant>,
    /// The sequence number behind the own FIN, once it was sent.
    fin_end: Option<u32>,
    error: Option<SocketError>,
    recovery: Recovery,
    /// The sequence number of the first octet that its application has not read.
    unread: u32,
    /// The sequence number behind all that it wrote.
    written: u32,
    /// The window that the other side gave.
    window: Window,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("tuple", &self.tuple)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// What a new connection is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup {
    pub(super) tuple: Tuple,
    pub(super) owner: Owner,
    pub(super) traced: bool,
    pub(super) mtu: usize,
    pub(super) seed: u64,
    pub(super) buffer: usize,
}

impl Connection {
    /// Makes a connection that has still to connect or to listen.
    fn new(setup: &Setup, now: Instant) -> Self {
        let buffer = || SocketBuffer::new(vec![0; setup.buffer.max(1)]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = sockets.add(socket);
        Connection {
            tuple: setup.tuple,
            owner: setup.owner,
            dirty: false,
            notified: false,
            timer: None,
            last: LastSent::default(),
            traced: setup.traced,
            mtu: setup.mtu,
            seed: setup.seed,
            silent: false,
            released: None,
            unanswered: None,
            fin_end: None,
            error: None,
            recovery: Recovery::default(),
            unread: 0,
            written: 0,
            window: Window::default(),
            interface: interface(setup.tuple, setup.mtu, setup.seed, now),
            sockets,
            handle,
        }
    }

    /// Makes a connection that asks the remote endpoint; the SYN leaves with the next flush.
    pub(super) fn connect(setup: &Setup, now: Instant) -> Self {
        let mut connection = Connection::new(setup, now);
        let (local, remote) = (endpoint(setup.tuple.local), endpoint(setup.tuple.remote));
        let Connection { interface, sockets, handle, .. } = &mut connection;
        if sockets.get_mut::<Socket<'_>>(*handle).connect(interface.context(), remote, local).is_err() {
            connection.error = Some(SocketError::NetworkUnreachable);
        }
        connection
    }

    /// Makes the connection that answers a SYN, and returns it with its SYN-ACK, which has not been sent. The same
    /// setup, SYN and time give the same answer.
    pub(super) fn accept(setup: &Setup, syn: &[u8], at: Instant) -> (Self, Vec<u8>) {
        let mut connection = Connection::new(setup, at);
        let mut answer = Vec::new();
        let Connection { interface, sockets, handle, .. } = &mut connection;
        let local = setup.tuple.local;
        let listen = IpListenEndpoint { addr: Some(IpAddress::Ipv4(*local.ip())), port: local.port() };
        if sockets.get_mut::<Socket<'_>>(*handle).listen(listen).is_ok() {
            let mut wire = Wire::to_memory(&mut answer, setup.mtu).with_incoming(syn);
            interface.poll_ingress_single(time(at), &mut wire, sockets);
            interface.poll_egress(time(at), &mut wire, sockets);
            connection.last = wire.last_sent().unwrap_or_default();
            (connection.unread, connection.written) = (connection.last.acknowledged, connection.last.next);
        }
        (connection, answer)
    }

    /// Hands a segment to the stack.
    pub(in super::super) fn receive(
        &mut self,
        packet: &[u8],
        device: &mut Device,
        out: &mut Outbox<'_>,
        now: Instant,
    ) {
        let before = self.state();
        self.unanswered = None;
        if self.lacks_only_the_fin(packet) {
            return;
        }
        let duplicate;
        let amended = self.standing().and_then(|standing| self.window.amend(packet, &standing));
        let packet = amended.as_deref().unwrap_or(packet);
        let mut wire = Wire::to_link(device, out, now, *self.tuple.remote.ip(), self.mtu, self.traced)
            .with_incoming(packet);
        self.interface.poll_ingress_single(time(now), &mut wire, &mut self.sockets);
        let (segment, is_bare) = read(packet);
        let flags = segment.flags();
        if before == State::SynSent && flags.syn() {
            (self.unread, self.written) = (segment.sequence().wrapping_add(1), self.last.next);
        }
        let is_plain = flags.ack() && !flags.syn() && !flags.fin() && !flags.rst();
        let is_lost = is_plain && self.recovery.hear(segment.acknowledgement(), segment.window(), is_bare);
        // What only the FIN lacks is left to the timer: see `lacks_only_the_fin`.
        if is_lost && self.socket().send_queue() > 0 {
            duplicate = bare(packet);
            for _ in 0..DUPLICATES {
                wire = wire.with_incoming(&duplicate);
                self.interface.poll_ingress_single(time(now), &mut wire, &mut self.sockets);
            }
        }
        self.last = wire.last_sent().unwrap_or(self.last);
        self.fin_end = wire.fin_end().or(self.fin_end);
        if self.state() == State::Closed && self.error.is_none() {
            self.error = match before {
                State::SynSent | State::SynReceived => Some(SocketError::ConnectionRefused),
                State::Established | State::FinWait1 | State::FinWait2 | State::CloseWait => {
                    Some(SocketError::ConnectionReset)
                }
                State::Closed | State::Listen | State::Closing | State::LastAck | State::TimeWait => None,
            };
        }
        if self.released.is_some() {
            self.discard();
        }
    }

    /// Where it stands, once both sides know each other's sequence numbers.
    fn standing(&self) -> Option<Standing> {
        let (other_ended, own_ended) = match self.state() {
            State::Closed | State::Listen | State::SynSent | State::SynReceived => return None,
            State::Established | State::FinWait1 => (false, false),
            State::FinWait2 => (false, true),
            State::CloseWait | State::Closing | State::LastAck => (true, false),
            State::TimeWait => (true, true),
        };
        let socket = self.socket();
        let (waiting, room) = (socket.send_queue() as u32, socket.recv_capacity() as u32);
        Some(Standing {
            next: self.unread.wrapping_add(socket.recv_queue() as u32 + u32::from(other_ended)),
            acknowledged: self.last.acknowledged,
            window_end: self.unread.wrapping_add(room + u32::from(other_ended)),
            unacknowledged: self.written.wrapping_sub(waiting).wrapping_add(u32::from(own_ended)),
            waiting,
            in_flight_limit: IN_FLIGHT_WINDOWS * socket.send_capacity() as u32,
        })
    }

    /// Says whether a segment does no more than acknowledge once again all but the FIN, when only that is in flight. The third of
    /// them would have smoltcp (0.14) send the FIN early, which it does for data only, and stop the timer that sends it again.
    fn lacks_only_the_fin(&self, packet: &[u8]) -> bool {
        let (segment, is_bare) = read(packet);
        let is_before = |end: u32| (segment.acknowledgement().wrapping_sub(end) as i32) < 0;
        let waits = matches!(self.state(), State::FinWait1 | State::Closing | State::LastAck);
        waits && is_bare && self.socket().send_queue() == 0 && self.fin_end.is_some_and(is_before)
    }

    /// Sends what may be sent and returns when to come again.
    pub(in super::super) fn flush(
        &mut self,
        device: &mut Device,
        out: &mut Outbox<'_>,
        now: Instant,
    ) -> Option<Instant> {
        if self.silent {
            return None;
        }
        self.adopt_mtu(device.mtu_to(*self.tuple.remote.ip(), now), now);
        let before = self.state();
        self.time_out(now);
        let mut wire = Wire::to_link(device, out, now, *self.tuple.remote.ip(), self.mtu, self.traced);
        for _ in 0..FLUSH_LIMIT {
            if !wire.has_room()
                || self.interface.poll_egress(time(now), &mut wire, &mut self.sockets) == PollResult::None
            {
                break;
            }
        }
        if let Some(last) = wire.last_sent() {
            self.last = last;
            self.recovery.send(last.next);
        }
        self.fin_end = wire.fin_end().or(self.fin_end);
        if self.state() == State::Closed && before != State::Closed && self.error.is_none() {
            self.error = (before != State::TimeWait).then_some(SocketError::TimedOut);
        }
        self.next_timer(now)
    }

    fn next_timer(&mut self, now: Instant) -> Option<Instant> {
        let orphan =
            self.released.filter(|_| self.state() == State::FinWait2).map(|since| since + ORPHAN_TIMEOUT);
        if orphan.is_some_and(|until| until <= now) {
            self.socket_mut().abort();
        }
        let stack = self.interface.poll_at(time(now), &self.sockets).map(|at| {
            let at = Instant::from_nanos(u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000));
            // What is due now was sent above or waits for room: a moment later is early enough.
            if at <= now { now + Duration::from_millis(1) } else { at }
        });
        let end = self.unanswered.map(|since| since + USER_TIMEOUT).filter(|&end| end > now);
        [stack, orphan, end].into_iter().flatten().min()
    }

    /// Ends what has waited too long for an answer (RFC 9293, 3.8.3).
    fn time_out(&mut self, now: Instant) {
        let waiting = match self.state() {
            State::SynSent | State::SynReceived | State::FinWait1 | State::Closing | State::LastAck => true,
            State::Established | State::CloseWait => self.socket().send_queue() > 0,
            State::Closed | State::Listen | State::FinWait2 | State::TimeWait => false,
        };
        if !waiting {
            self.unanswered = None;
        } else if now.saturating_duration_since(*self.unanswered.get_or_insert(now)) >= USER_TIMEOUT {
            self.socket_mut().abort();
        }
    }

    /// Follows the path MTU downwards by a new interface, which is where smoltcp looks for it.
    fn adopt_mtu(&mut self, mtu: usize, now: Instant) {
        if mtu < self.mtu {
            self.mtu = mtu;
            self.interface = interface(self.tuple, mtu, self.seed, now);
        }
    }

    /// Hands received data to `take` as it lies in the buffer, up to its end or to where the buffer begins again; `take` returns
    /// how much of it is done with.
    pub(in super::super) fn read(&mut self, take: impl FnOnce(&[u8]) -> usize) -> Received {
        let result = self.socket_mut().recv(|bytes| {
            let count = take(bytes);
            (count, count)
        });
        self.unread = self.unread.wrapping_add(*result.as_ref().unwrap_or(&0) as u32);
        match result {
            Ok(0) => Received::Pending,
            Ok(count) => Received::Data(count),
            Err(RecvError::Finished) => Received::End,
            Err(RecvError::InvalidState) => match (self.error, self.state()) {
                (Some(error), _) => Received::Failed(error),
                (None, State::SynSent | State::SynReceived | State::Listen) => Received::Pending,
                (
                    None,
                    State::Closed
                    | State::Established
                    | State::FinWait1
                    | State::FinWait2
                    | State::CloseWait
                    | State::Closing
                    | State::LastAck
                    | State::TimeWait,
                ) => Received::End,
            },
        }
    }

    /// Queues data and returns how much of it found room.
    pub(in super::super) fn write(&mut self, bytes: &[u8]) -> usize {
        if !self.socket().can_send() {
            return 0;
        }
        let count = self.socket_mut().send_slice(bytes).unwrap_or(0);
        self.written = self.written.wrapping_add(count as u32);
        count
    }

    /// Has `fill` put data into the room that there is, up to its end or to where the buffer begins again, and say how much.
    pub(in super::super) fn fill(&mut self, fill: impl FnOnce(&mut [u8]) -> usize) {
        if self.socket().can_send() {
            let count = self.socket_mut().send(|room| {
                let count = fill(room);
                (count, count)
            });
            self.written = self.written.wrapping_add(count.unwrap_or(0) as u32);
        }
    }

    /// Returns how much data finds room now.
    pub(in super::super) fn room(&self) -> usize {
        let socket = self.socket();
        if socket.may_send() { socket.send_capacity() - socket.send_queue() } else { 0 }
    }

    /// Returns how much data the other side has not acknowledged.
    pub(in super::super) fn unacknowledged(&self) -> usize {
        self.socket().send_queue()
    }

    /// Ends the own direction; what is queued still goes.
    pub(in super::super) fn shutdown(&mut self) {
        self.silent |= self.state() == State::SynSent;
        // The other side's FIN is acknowledged at once, before the connection becomes a memory.
        self.socket_mut().set_ack_delay(None);
        self.socket_mut().close();
    }

    /// Ends the connection for its application: what is queued still goes, what comes is thrown away.
    pub(in super::super) fn release(&mut self, now: Instant) {
        self.shutdown();
        self.released = Some(now);
        self.discard();
    }

    /// Resets the connection; the RST leaves with the next flush.
    pub(in super::super) fn abort(&mut self) {
        self.silent |= self.state() == State::SynSent;
        self.socket_mut().abort();
    }

    /// Ends a connection attempt because of an error from the network.
    pub(in super::super) fn fail(&mut self, error: SocketError) {
        if matches!(self.state(), State::SynSent) {
            self.error = Some(error);
            self.shutdown();
        }
    }

    /// Says whether nobody needs the connection any more.
    pub(in super::super) fn is_over(&self) -> bool {
        self.released.is_some() && matches!(self.state(), State::Closed | State::TimeWait)
    }

    /// Says whether the application has left it.
    pub(in super::super) fn is_released(&self) -> bool {
        self.released.is_some()
    }

    /// Returns the state of the protocol.
    pub(in super::super) fn state(&self) -> State {
        self.socket().state()
    }

    /// Says whether it is made and its own direction is open.
    pub(in super::super) fn is_open(&self) -> bool {
        matches!(self.state(), State::Established | State::CloseWait)
    }

    /// Returns both ends.
    pub(in super::super) fn tuple(&self) -> Tuple {
        self.tuple
    }

    /// Returns the other end.
    pub(in super::super) fn remote(&self) -> std::net::SocketAddrV4 {
        self.tuple.remote
    }

    /// Returns why it failed, if it did.
    pub(in super::super) fn error(&self) -> Option<SocketError> {
        self.error
    }

    fn discard(&mut self) {
        while let Received::Data(_) = self.read(<[u8]>::len) {}
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

/// Makes the interface of one connection: its only address is the connection's own.
fn interface(tuple: Tuple, mtu: usize, seed: u64, now: Instant) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut nowhere = Vec::new();
    let mut interface = Interface::new(config, &mut Wire::to_memory(&mut nowhere, mtu), time(now));
    interface.update_ip_addrs(|addresses| {
        // The list has room for two; an interface without its address would only stay silent.
        let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(*tuple.local.ip()), 32));
    });
    interface
}

fn endpoint(address: std::net::SocketAddrV4) -> IpEndpoint {
    IpEndpoint::new(IpAddress::Ipv4(*address.ip()), address.port())
}

fn time(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(i64::try_from(now.as_nanos() / 1000).unwrap_or(i64::MAX))
}
