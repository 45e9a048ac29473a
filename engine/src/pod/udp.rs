//! The pod's UDP sockets: a table by port.
//!
//! `stack.rs` hands it datagrams and errors; applications use it through `sockets.rs`.
//!
//! Invariants: one owner per port; at most [`QUEUE_LIMIT`] datagrams wait at a socket, more are a counted drop.
//! Depends on `device`, `ip`, `wire`. Read first: RFC 768, RFC 1122 section 4.1.

use super::device::Device;
use super::drops::PodDrop;
use super::ip;
use super::socket::{Event, Owner, PortTaken, Report};
use super::tcp::{EPHEMERAL_COUNT, FIRST_EPHEMERAL, Io};
use crate::random::Random;
use crate::wire::{IpProtocol, Ipv4Packet, UdpDatagram, udp};
use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Datagrams that wait at one socket.
const QUEUE_LIMIT: usize = 512;
/// Errors that wait at one socket.
const ERROR_LIMIT: usize = 64;

/// A received datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Received {
    /// Who sent it.
    pub(super) from: SocketAddrV4,
    /// Which of the pod's addresses it came to; a reply goes out from it.
    pub(super) to: Ipv4Addr,
    /// What it says.
    pub(super) payload: Vec<u8>,
}

/// An error about a datagram that the socket sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UdpError {
    /// Where the datagram went.
    pub(super) to: SocketAddrV4,
    /// What happened, and who said so.
    pub(super) report: Report,
}

/// How a socket's datagrams are sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    /// The TTL.
    pub(super) ttl: u8,
    /// Whether their way is to be recorded.
    pub(super) traced: bool,
    /// Whether routers may not cut them.
    pub(super) dont_fragment: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { ttl: ip::DEFAULT_TTL, traced: false, dont_fragment: true }
    }
}

#[derive(Debug)]
struct Socket {
    owner: Owner,
    queue: VecDeque<Received>,
    errors: VecDeque<UdpError>,
}

/// The table.
#[derive(Debug)]
pub(super) struct UdpTable {
    /// Boxed, because a tree has room for eleven where most pods have one or none.
    sockets: BTreeMap<u16, Box<Socket>>,
    next_port: u16,
}

impl UdpTable {
    /// Makes an empty table.
    pub(super) fn new(seed: u64) -> Self {
        UdpTable { sockets: BTreeMap::new(), next_port: Random::new(seed).next_u16() % EPHEMERAL_COUNT }
    }

    /// Gives a port to an owner.
    ///
    /// # Errors
    /// [`PortTaken`] names who has it already.
    pub(super) fn bind(&mut self, port: u16, owner: Owner) -> Result<(), PortTaken> {
        if let Some(socket) = self.sockets.get(&port) {
            return Err(PortTaken { holder: socket.owner });
        }
        let socket = Socket { owner, queue: VecDeque::new(), errors: VecDeque::new() };
        self.sockets.insert(port, Box::new(socket));
        Ok(())
    }

    /// Gives a port of the ephemeral range to an owner; `None` when all are taken.
    pub(super) fn bind_any(&mut self, owner: Owner) -> Option<u16> {
        for _ in 0..EPHEMERAL_COUNT {
            let port = FIRST_EPHEMERAL + self.next_port;
            self.next_port = (self.next_port + 1) % EPHEMERAL_COUNT;
            if self.bind(port, owner).is_ok() {
                return Some(port);
            }
        }
        None
    }

    /// Returns who has a port.
    pub(super) fn holder(&self, port: u16) -> Option<Owner> {
        self.sockets.get(&port).map(|socket| socket.owner)
    }

    /// Gives a port back.
    pub(super) fn close(&mut self, port: u16) {
        self.sockets.remove(&port);
    }

    /// Gives all ports of an owner back.
    pub(super) fn close_owner(&mut self, owner: Owner) {
        self.sockets.retain(|_, socket| socket.owner != owner);
    }

    /// Takes the next datagram of a socket.
    pub(super) fn receive_from(&mut self, port: u16) -> Option<Received> {
        self.sockets.get_mut(&port)?.queue.pop_front()
    }

    /// Takes the next error of a socket.
    pub(super) fn take_error(&mut self, port: u16) -> Option<UdpError> {
        self.sockets.get_mut(&port)?.errors.pop_front()
    }

    /// Handles a datagram for this pod; false when nobody has its port.
    pub(super) fn receive(&mut self, packet: &[u8], io: &mut Io<'_, '_>) -> bool {
        if let Err(reason) = check(packet) {
            io.device.drops.count(reason);
            return true;
        }
        let ip = Ipv4Packet::new_unchecked(packet);
        let datagram = UdpDatagram::new_unchecked(ip.payload());
        let Some(socket) = self.sockets.get_mut(&datagram.destination_port()) else { return false };
        if socket.queue.len() >= QUEUE_LIMIT {
            io.device.drops.count(PodDrop::SocketQueueFull);
            return true;
        }
        let to = if io.device.is_local(ip.destination()) { ip.destination() } else { io.device.address };
        socket.queue.push_back(Received {
            from: SocketAddrV4::new(ip.source(), datagram.source_port()),
            to,
            payload: datagram.payload().to_vec(),
        });
        io.events.push_back((socket.owner, Event::Udp(datagram.destination_port())));
        true
    }

    /// Handles an error about a datagram; false when no socket sent it.
    pub(super) fn fail(&mut self, port: u16, error: UdpError, events: &mut VecDeque<(Owner, Event)>) -> bool {
        let Some(socket) = self.sockets.get_mut(&port) else { return false };
        if socket.errors.len() < ERROR_LIMIT {
            socket.errors.push_back(error);
            events.push_back((socket.owner, Event::Udp(port)));
        }
        true
    }
}

/// Checks the datagram in a packet.
///
/// # Errors
/// Why it is dropped.
pub(super) fn check(packet: &[u8]) -> Result<(), PodDrop> {
    let ip = Ipv4Packet::new_unchecked(packet);
    let datagram = UdpDatagram::new_checked(ip.payload()).map_err(|_| PodDrop::Malformed)?;
    datagram.verify_checksum(ip.source(), ip.destination()).then_some(()).ok_or(PodDrop::BadChecksum)
}

/// The longest payload of one datagram.
pub(super) const MAXIMUM_PAYLOAD: usize = 65_507;

/// Sends a datagram; one longer than [`MAXIMUM_PAYLOAD`] is not sent, and the answer is false.
pub(super) fn send(
    device: &mut Device,
    from: SocketAddrV4,
    to: SocketAddrV4,
    options: Options,
    payload: &[u8],
    now: crate::clock::Instant,
    out: &mut crate::link::pod_ring::Outbox<'_>,
) -> bool {
    if payload.len() > MAXIMUM_PAYLOAD {
        return false;
    }
    let length = udp::HEADER_LENGTH + payload.len();
    let mut bytes = vec![0; length];
    let mut datagram = UdpDatagram::new_unchecked(&mut bytes[..]);
    datagram.set_source_port(from.port());
    datagram.set_destination_port(to.port());
    datagram.set_length(u16::try_from(length).unwrap_or(u16::MAX));
    datagram.payload_mut().copy_from_slice(payload);
    datagram.fill_checksum(*from.ip(), *to.ip());
    let header = ip::Header {
        source: *from.ip(),
        destination: *to.ip(),
        protocol: IpProtocol::Udp,
        ttl: options.ttl,
        dont_fragment: options.dont_fragment,
        traced: options.traced,
    };
    ip::send(device, &header, &bytes, now, out);
    true
}
