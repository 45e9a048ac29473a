//! A node's eth0 on the host's own network, for its tunnel: a UDP socket of the host's.
//!
//! The node makes and takes whole frames as on any link; here their outer headers are what the system makes or has taken off.
//! A worker gathers what leaves and sends it at the end of its batch, and receives when its `watch` hears of something.
//! Invariants: what goes to a peer is the payload of the frame's datagram, byte for byte; what comes has outer headers that say
//! who sent it, and nothing of it is cut off; all else that leaves is given back. Allowed dependencies: `sys`, `frame`, `wire`.
//! Read first: udp(7), ip(7); `docs/adr/0027-the-tunnels-socket.md`.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, ip_mtu, set_ip_mtu_discover, set_socket_recv_buffer_size,
    set_socket_recv_buffer_size_force, set_socket_send_buffer_size, set_socket_send_buffer_size_force,
    socket_recv_buffer_size,
};

use crate::frame::{Arena, Frame, LARGE_CAPACITY, Pool, Record, SMALL_CAPACITY};
use crate::ledger::{DropReason, NodeCounters, Term};
use crate::sys::{DATAGRAMS, receive_datagrams, send_datagrams};
use crate::tunnel::{OUTER_LENGTH, OUTER_TTL};
use crate::wire::{
    ArpOperation, ArpPacket, EtherType, EthernetFrame, IpProtocol, Ipv4Packet, MacAddress, UdpDatagram,
    ethernet, ipv4,
};

/// Bytes in front of what the tunnel carries.
const HEADERS: usize = ethernet::HEADER_LENGTH + OUTER_LENGTH;
/// Bytes that wait in the system each way, where it gives so many.
pub const BUFFER: usize = 4 << 20;

/// Why a tunnel has no socket.
#[derive(Debug, thiserror::Error)]
pub enum TunnelSocketError {
    /// No interface has the address.
    #[error("{0} is no address of this host")]
    AddressElsewhere(Ipv4Addr),
    /// Another socket has the port.
    #[error("UDP port {} of {} is in use", .0.port(), .0.ip())]
    PortTaken(SocketAddrV4),
    /// The port is for the privileged.
    #[error("UDP port {0} needs the capability CAP_NET_BIND_SERVICE")]
    NotAllowed(u16),
    /// The system does not give it.
    #[error("UDP port {} of {} cannot be had", address.port(), address.ip())]
    System {
        /// Where it was to be.
        address: SocketAddrV4,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is to be done with a frame that leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// It is the tunnel's, and waits for the end of the batch.
    Datagram,
    /// It asks for a neighbour's MAC: the system finds peers by itself.
    Question,
    /// It is something else, which a tunnel does not carry.
    Stray,
}

/// Why datagrams are not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    /// The path to this peer takes no outer packet longer than this, bytes.
    TooLong(Ipv4Addr, u16),
    /// There is no way to this peer now.
    Unreachable(Ipv4Addr),
    /// The system takes no more for now.
    Full,
}

/// The socket of a node's tunnel.
#[derive(Debug)]
pub struct TunnelSocket {
    socket: UdpSocket,
    local: SocketAddrV4,
    /// Frames that are sent at the end of the batch.
    pub outbox: Vec<Frame>,
    /// Buffers for what comes next.
    spare: Vec<Frame>,
    /// Where what is longer than a small buffer comes first, for each of them.
    rest: Box<[u8]>,
    received: Vec<(SocketAddrV4, usize)>,
}

/// Bytes of [`TunnelSocket::rest`] for one datagram: with a small buffer's, room for the longest there is.
const REST: usize = LARGE_CAPACITY - SMALL_CAPACITY;

impl TunnelSocket {
    /// Opens the socket of a tunnel whose datagrams have this address and port, here and at every peer.
    ///
    /// # Errors
    /// [`TunnelSocketError`].
    pub fn open(local: SocketAddrV4) -> Result<Self, TunnelSocketError> {
        let failed = |source: io::Error| match Errno::from_io_error(&source) {
            Some(Errno::ADDRNOTAVAIL) => TunnelSocketError::AddressElsewhere(*local.ip()),
            Some(Errno::ADDRINUSE) => TunnelSocketError::PortTaken(local),
            Some(Errno::ACCESS | Errno::PERM) => TunnelSocketError::NotAllowed(local.port()),
            Some(_) | None => TunnelSocketError::System { address: local, source },
        };
        let socket = UdpSocket::bind(local).map_err(failed)?;
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO).map_err(|errno| failed(errno.into()))?;
        // Beyond the system's limit only the privileged get; less works, too.
        let _ = set_socket_recv_buffer_size_force(&socket, BUFFER)
            .or_else(|_| set_socket_recv_buffer_size(&socket, BUFFER));
        let _ = set_socket_send_buffer_size_force(&socket, BUFFER)
            .or_else(|_| set_socket_send_buffer_size(&socket, BUFFER));
        let rest = vec![0; DATAGRAMS * REST].into();
        let [outbox, spare] = [(); 2].map(|()| Vec::with_capacity(DATAGRAMS));
        Ok(Self { socket, local, outbox, spare, rest, received: Vec::with_capacity(DATAGRAMS) })
    }

    /// Returns how many bytes the system lets wait for this socket.
    ///
    /// # Errors
    /// The system's.
    pub fn receive_buffer(&self) -> io::Result<usize> {
        // The system counts what it keeps beside them, and takes it for as much again.
        Ok(socket_recv_buffer_size(&self.socket)? / 2)
    }

    /// Says what is to be done with a frame that leaves.
    #[must_use]
    pub fn leaving(&self, frame: &[u8]) -> Leaving {
        let Ok(header) = EthernetFrame::new_checked(frame) else { return Leaving::Stray };
        if header.ethertype() == EtherType::Arp {
            let arp = ArpPacket::new_checked(header.payload());
            let asks = arp.is_ok_and(|arp| arp.operation() == ArpOperation::Request);
            return if asks { Leaving::Question } else { Leaving::Stray };
        }
        let packet = Ipv4Packet::new_checked(header.payload()).ok();
        let packet = packet.filter(|packet| header.ethertype() == EtherType::Ipv4 && !packet.is_fragment());
        let own = packet.filter(|it| it.source() == *self.local.ip() && it.protocol() == IpProtocol::Udp);
        let port = self.local.port();
        let datagram = own.as_ref().and_then(|packet| UdpDatagram::new_checked(packet.payload()).ok());
        match datagram {
            Some(datagram) if (datagram.source_port(), datagram.destination_port()) == (port, port) => {
                Leaving::Datagram
            }
            Some(_) | None => Leaving::Stray,
        }
    }

    /// Sends frames that are [`Leaving::Datagram`], up to [`DATAGRAMS`]; returns how many, from the first on.
    ///
    /// # Errors
    /// Why the first is not sent.
    pub fn send(&self, arena: &Arena, frames: &[Frame]) -> Result<usize, Unsent> {
        let datagrams = frames.iter().map(|frame| {
            let (peer, payload) = datagram(arena.bytes(frame));
            (SocketAddrV4::new(peer, self.local.port()), payload)
        });
        send_datagrams(&self.socket, datagrams).map_err(|error| {
            let peer = frames.first().map_or(Ipv4Addr::UNSPECIFIED, |first| datagram(arena.bytes(first)).0);
            match Errno::from_io_error(&error) {
                Some(Errno::MSGSIZE) => Unsent::TooLong(peer, self.path_mtu(peer)),
                Some(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::INTR) => Unsent::Full,
                Some(_) | None => Unsent::Unreachable(peer),
            }
        })
    }

    /// Asks the system what it knows of the path to a peer; 0 when it does not say.
    #[cold]
    fn path_mtu(&self, peer: Ipv4Addr) -> u16 {
        let connected = UdpSocket::bind((*self.local.ip(), 0)).and_then(|socket| {
            socket.connect((peer, self.local.port()))?;
            Ok(ip_mtu(&socket)?)
        });
        connected.map_or(0, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX))
    }

    /// Receives up to `limit` datagrams as frames; returns whether there may be more. What is lost for want of a buffer is counted.
    pub fn receive(
        &mut self,
        limit: usize,
        pool: &mut Pool,
        frames: &mut Vec<Frame>,
        counters: &NodeCounters,
    ) -> bool {
        let limit = limit.min(DATAGRAMS);
        while self.spare.len() < limit
            && let Some(frame) = pool.allocate(SMALL_CAPACITY)
        {
            self.spare.push(frame);
        }
        if self.spare.is_empty() {
            return true;
        }
        let arena = Arc::clone(pool.arena());
        let limit = limit.min(self.spare.len());
        let rests = self.rest.chunks_exact_mut(REST);
        let places = self.spare[..limit].iter_mut().zip(rests).map(|(frame, rest)| {
            let bytes = arena.open(frame).into_bytes();
            [&mut bytes[HEADERS..], rest]
        });
        if receive_datagrams(&self.socket, places, &mut self.received).is_err() {
            // What waits comes when the next is heard of; errors of the network's are not told to such a socket.
            return false;
        }
        let (local, count) = (self.local, self.received.len());
        let rests = self.rest.chunks_exact(REST);
        for ((mut frame, rest), &(from, length)) in self.spare.drain(..count).zip(rests).zip(&self.received) {
            let length = HEADERS + length;
            if length > SMALL_CAPACITY {
                let Some(mut large) = pool.allocate(length) else {
                    pool.free(frame);
                    counters.count(Term::Received, 1);
                    counters.drop_frame(DropReason::PoolEmpty);
                    continue;
                };
                let mut open = arena.open(&mut large);
                let (first, beyond) = open.bytes_mut().split_at_mut(SMALL_CAPACITY);
                first.copy_from_slice(arena.bytes(&frame));
                beyond.copy_from_slice(&rest[..length - SMALL_CAPACITY]);
                pool.free(std::mem::replace(&mut frame, large));
            }
            let mut open = arena.open(&mut frame);
            open.truncate(length);
            write_headers(open.bytes_mut(), from, local);
            frames.push(frame);
        }
        count == limit
    }

    /// Returns how many buffers wait here for what comes.
    #[must_use]
    pub fn idle_buffers(&self) -> usize {
        self.spare.len()
    }

    /// Gives those buffers back.
    pub fn take_idle(&mut self) -> impl Iterator<Item = Frame> {
        self.spare.drain(..)
    }
}

impl AsFd for TunnelSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Returns to whom a frame of the tunnel goes, and what it carries.
#[must_use]
pub fn datagram(frame: &[u8]) -> (Ipv4Addr, &[u8]) {
    let packet = Ipv4Packet::new_unchecked(&frame[ethernet::HEADER_LENGTH..]);
    let end = ethernet::HEADER_LENGTH + usize::from(packet.total_length());
    (packet.destination(), frame.get(HEADERS..end).unwrap_or_default())
}

/// Writes the outer headers of what came from somebody: as on the wire, but for what the system does not tell. It has
/// verified the checksum; none stands for that (RFC 768).
fn write_headers(frame: &mut [u8], from: SocketAddrV4, local: SocketAddrV4) {
    let length = frame.len() - ethernet::HEADER_LENGTH;
    frame[..HEADERS].fill(0);
    let mut header = EthernetFrame::new_unchecked(&mut frame[..]);
    header.set_destination(MacAddress::for_ipv4(*local.ip()));
    header.set_source(MacAddress::for_ipv4(*from.ip()));
    header.set_ethertype(EtherType::Ipv4);
    let packet = &mut frame[ethernet::HEADER_LENGTH..];
    let mut packet = Ipv4Packet::new_unchecked(&mut packet[..]);
    packet.set_header_length(ipv4::HEADER_LENGTH);
    packet.set_total_length(length as u16);
    packet.set_fragmentation(true, false, 0);
    packet.set_time_to_live(OUTER_TTL);
    packet.set_protocol(IpProtocol::Udp);
    packet.set_source(*from.ip());
    packet.set_destination(*local.ip());
    packet.fill_header_checksum();
    let mut datagram = UdpDatagram::new_unchecked(packet.payload_mut());
    datagram.set_source_port(from.port());
    datagram.set_destination_port(local.port());
    datagram.set_length((length - ipv4::HEADER_LENGTH) as u16);
}

/// Turns a question for a neighbour's MAC into its answer: every neighbour's follows from its address.
pub fn answer(arena: &Arena, frame: &mut Frame) {
    let mut open = arena.open(frame);
    let length = open.bytes().len();
    *open.record = Record::default();
    if !open.reset(length) {
        return;
    }
    let mut header = EthernetFrame::new_unchecked(open.bytes_mut());
    let asker = header.source();
    let mut packet = ArpPacket::new_unchecked(header.payload_mut());
    let (own, target) = (packet.sender_address(), packet.target_address());
    let mac = MacAddress::for_ipv4(target);
    packet.set_operation(ArpOperation::Reply);
    packet.set_sender(mac, target);
    packet.set_target(asker, own);
    header.set_destination(asker);
    header.set_source(mac);
}
