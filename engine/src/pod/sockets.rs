//! What an application of a pod may ask of its stack: the socket interface.
//!
//! Made by [`super::Pod`] for each event that it hands to a container or program. Invariant: every call belongs to one owner, at one
//! time; what is written leaves before the pod comes to rest. Depends on the stack's tables. Read first: `socket.rs`.

use super::config::PodConfig;
use super::drops::PodDrop;
use super::files::Files;
use super::icmp::{self, Echo, Message};
use super::ip;
use super::socket::{Owner, PortTaken, Received, SocketError, TcpId};
use super::stack::Stack;
use super::tcp::{Io, Tuple};
use super::udp::{self, Options, UdpError};
use crate::clock::Instant;
use crate::link::pod_ring::Outbox;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

/// One application's view of its pod.
#[derive(Debug)]
pub(super) struct Sockets<'a, 'o> {
    pub(super) stack: &'a mut Stack,
    pub(super) out: &'a mut Outbox<'o>,
    /// The pod the application runs in.
    pub(super) pod: &'a PodConfig,
    /// What it sees of the pod's files.
    pub(super) files: Files<'a>,
    /// The present time.
    pub(super) now: Instant,
    pub(super) owner: Owner,
    /// When the application wants a timer event, if it does.
    pub(super) wake: Option<Instant>,
}

impl Sockets<'_, '_> {
    /// Asks for a timer event; the earliest of several counts, and each event clears them.
    pub(super) fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    /// Asks for a timer event after a while.
    pub(super) fn wake_after(&mut self, delay: Duration) {
        self.wake_at(self.now + delay);
    }

    /// Accepts TCP connections on a port from now on.
    ///
    /// # Errors
    /// [`PortTaken`].
    pub(super) fn tcp_listen(&mut self, port: u16) -> Result<(), PortTaken> {
        self.stack.tcp.listen(port, self.owner)
    }

    /// Begins a TCP connection.
    ///
    /// # Errors
    /// [`SocketError::NoPortLeft`]; all other failures come as an event.
    pub(super) fn tcp_connect(&mut self, remote: SocketAddrV4, traced: bool) -> Result<TcpId, SocketError> {
        self.stack.tcp.connect(&self.stack.device, remote, self.owner, traced, self.now)
    }

    /// Hands what a connection received to `take`, which returns how much of it is done with: not all there is where the
    /// buffer begins again, so that one calls until nothing is left.
    pub(super) fn tcp_read(&mut self, id: TcpId, take: impl FnOnce(&[u8]) -> usize) -> Received {
        self.stack.tcp.get_mut(id).map_or(Received::End, |connection| connection.read(take))
    }

    /// Queues data for a connection; returns how much found room.
    pub(super) fn tcp_write(&mut self, id: TcpId, bytes: &[u8]) -> usize {
        self.stack.tcp.get_mut(id).map_or(0, |connection| connection.write(bytes))
    }

    /// Has `fill` put data for a connection where it waits to be sent, up to the end of the room or to where the buffer begins again,
    /// and say how much; it is not asked when there is no room.
    pub(super) fn tcp_fill(&mut self, id: TcpId, fill: impl FnOnce(&mut [u8]) -> usize) {
        if let Some(connection) = self.stack.tcp.get_mut(id) {
            connection.fill(fill);
        }
    }

    /// Returns how much data a connection takes now.
    pub(super) fn tcp_room(&self, id: TcpId) -> usize {
        self.stack.tcp.get(id).map_or(0, |connection| connection.room())
    }

    /// Returns how much data the other side has not acknowledged yet.
    pub(super) fn tcp_unacknowledged(&self, id: TcpId) -> usize {
        self.stack.tcp.get(id).map_or(0, |connection| connection.unacknowledged())
    }

    /// Says whether a connection is made and open for writing.
    pub(super) fn tcp_is_open(&self, id: TcpId) -> bool {
        self.stack.tcp.get(id).is_some_and(|connection| connection.is_open())
    }

    /// Returns why a connection failed, if it did.
    pub(super) fn tcp_error(&self, id: TcpId) -> Option<SocketError> {
        self.stack.tcp.get(id).and_then(|connection| connection.error())
    }

    /// Returns the other end of a connection.
    pub(super) fn tcp_peer(&self, id: TcpId) -> Option<SocketAddrV4> {
        self.stack.tcp.get(id).map(|connection| connection.remote())
    }

    /// Returns both ends of a connection.
    pub(super) fn tcp_tuple(&self, id: TcpId) -> Option<Tuple> {
        self.stack.tcp.get(id).map(|connection| connection.tuple())
    }

    /// Answers a SYN to somebody elsewhere; false when it cannot be, which is counted.
    pub(super) fn tcp_admit(&mut self, syn: &[u8]) -> bool {
        let Stack { device, tcp, events, .. } = &mut *self.stack;
        tcp.admit(syn, &mut Io { device, out: self.out, now: self.now, events })
    }

    /// Refuses a SYN to somebody elsewhere with a reset.
    pub(super) fn tcp_refuse(&mut self, syn: &[u8]) {
        let Stack { device, tcp, events, .. } = &mut *self.stack;
        tcp.refuse(syn, &mut Io { device, out: self.out, now: self.now, events });
    }

    /// Tells the sender of a packet that it cannot be delivered; the code is ICMP's.
    pub(super) fn send_unreachable(&mut self, code: u8, about: &[u8]) {
        let Stack { device, events, .. } = &mut *self.stack;
        icmp::send_unreachable(code, about, &mut Io { device, out: self.out, now: self.now, events });
    }

    /// Answers an echo request.
    pub(super) fn echo_reply(&mut self, echo: &Echo<'_>) {
        icmp::send_reply(&mut self.stack.device, echo, self.now, self.out);
    }

    /// Takes the next request to somebody elsewhere, a whole packet.
    pub(super) fn take_foreign(&mut self) -> Option<Vec<u8>> {
        self.stack.foreign.as_mut()?.pop_front()
    }

    /// Counts what is dropped.
    pub(super) fn count_drop(&mut self, reason: PodDrop) {
        self.stack.device.drops.count(reason);
    }

    /// Ends the own direction of a connection.
    pub(super) fn tcp_shutdown(&mut self, id: TcpId) {
        if let Some(connection) = self.stack.tcp.get_mut(id) {
            connection.shutdown();
        }
    }

    /// Ends a connection; no event comes for it any more.
    pub(super) fn tcp_close(&mut self, id: TcpId) {
        let now = self.now;
        if let Some(connection) = self.stack.tcp.get_mut(id) {
            connection.release(now);
        }
    }

    /// Resets a connection; no event comes for it any more.
    pub(super) fn tcp_abort(&mut self, id: TcpId) {
        let now = self.now;
        if let Some(connection) = self.stack.tcp.get_mut(id) {
            connection.abort();
            connection.release(now);
        }
    }

    /// Takes a UDP port.
    ///
    /// # Errors
    /// [`PortTaken`].
    pub(super) fn udp_bind(&mut self, port: u16) -> Result<(), PortTaken> {
        self.stack.udp.bind(port, self.owner)
    }

    /// Takes any free UDP port.
    pub(super) fn udp_bind_any(&mut self) -> Option<u16> {
        self.stack.udp.bind_any(self.owner)
    }

    /// Gives a UDP port back.
    pub(super) fn udp_close(&mut self, port: u16) {
        self.stack.udp.close(port);
    }

    /// Returns 16 random bits.
    pub(super) fn random_u16(&mut self) -> u16 {
        self.stack.device.random.next_u16()
    }

    /// Sends a datagram from a port; false when it is too long.
    pub(super) fn udp_send(&mut self, port: u16, to: SocketAddrV4, options: Options, payload: &[u8]) -> bool {
        let from = self.stack.device.source_for(*to.ip());
        self.udp_send_from(SocketAddrV4::new(from, port), to, options, payload)
    }

    /// Sends a datagram from one of the pod's addresses.
    pub(super) fn udp_send_from(
        &mut self,
        from: SocketAddrV4,
        to: SocketAddrV4,
        options: Options,
        payload: &[u8],
    ) -> bool {
        udp::send(&mut self.stack.device, from, to, options, payload, self.now, self.out)
    }

    /// Takes the next datagram of a port.
    pub(super) fn udp_receive(&mut self, port: u16) -> Option<udp::Received> {
        self.stack.udp.receive_from(port)
    }

    /// Takes the next error of a port.
    pub(super) fn udp_error(&mut self, port: u16) -> Option<UdpError> {
        self.stack.udp.take_error(port)
    }

    /// Opens an echo socket and returns its identifier.
    pub(super) fn echo_open(&mut self) -> Option<u16> {
        self.stack.echo.open(self.owner)
    }

    /// Sends an echo request.
    pub(super) fn echo_send(
        &mut self,
        identifier: u16,
        sequence: u16,
        to: Ipv4Addr,
        traced: bool,
        payload: &[u8],
    ) {
        let echo = Echo {
            source: self.stack.device.source_for(to),
            destination: to,
            identifier,
            sequence,
            payload,
            ttl: ip::DEFAULT_TTL,
            traced,
        };
        icmp::send_request(&mut self.stack.device, &echo, self.now, self.out);
    }

    /// Takes the next message of an echo socket.
    pub(super) fn echo_receive(&mut self, identifier: u16) -> Option<Message> {
        self.stack.echo.receive(identifier)
    }

    /// Ends all sockets of the owner.
    pub(super) fn close_all(&mut self) {
        self.stack.close_owner(self.owner, false, self.now);
    }
}
