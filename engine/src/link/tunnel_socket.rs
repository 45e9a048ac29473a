//! A node's eth0 on the host's own network, for its tunnel: a UDP socket of the host's.
//!
//! The node makes and takes whole frames as on any link; here their outer headers are what the system makes or has taken off.
//! A worker gathers what leaves and sends it at the end of its batch, and receives when its `watch` hears of something.
//! Invariants: what goes to a peer is the payload of the frame's datagram, byte for byte; what comes has outer headers that say
//! who sent it, and nothing of it is cut off; all else that leaves is given back. Allowed dependencies: `sys`, `frame`, `wire`.
//! Read first: udp(7), ip(7); `docs/adr/0027-the-tunnels-socket.md`.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, ip_mtu, set_ip_mtu_discover, set_socket_recv_buffer_size,
    set_socket_recv_buffer_size_force, set_socket_send_buffer_size, set_socket_send_buffer_size_force,
    socket_recv_buffer_size,
};

use crate::frame::{Arena, Frame, LARGE_CAPACITY, Pool, SMALL_CAPACITY};
use crate::ledger::{DropReason, NodeCounters, Term};
use crate::link::outer::{HEADERS, datagram, write_headers};
use crate::sys::{DATAGRAMS, Message, Received, receive_datagrams, receive_together, send_messages};
use crate::wire::{ArpOperation, ArpPacket, EtherType, EthernetFrame, IpProtocol, Ipv4Packet, UdpDatagram};

/// Bytes of one message at most: of UDP in an IPv4 packet.
const MESSAGE_LIMIT: usize = 65_507;
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
    received: Vec<Received>,
    /// Datagrams asked for at once: fewer while each brings many.
    places: usize,
    /// Whether datagrams of one length to one peer are sent as one message.
    segments: bool,
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
        // An older system gives them one by one.
        let _ = receive_together(&socket);
        Ok(Self {
            socket,
            local,
            outbox,
            spare,
            rest,
            received: Vec::with_capacity(DATAGRAMS),
            places: DATAGRAMS,
            segments: true,
        })
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
    pub fn send(&mut self, arena: &Arena, frames: &[Frame]) -> Result<usize, Unsent> {
        let frames = &frames[..frames.len().min(DATAGRAMS)];
        let mut parts = [IoSlice::new(&[]); DATAGRAMS];
        for (part, frame) in parts.iter_mut().zip(frames) {
            *part = IoSlice::new(datagram(arena.bytes(frame)).1);
        }
        // Where each message ends, in frames.
        let (mut ends, mut count, mut end) = ([0; DATAGRAMS], 0, 0);
        while end < frames.len() {
            end += if self.segments { together(arena, &frames[end..]) } else { 1 };
            ends[count] = end;
            count += 1;
        }
        let port = self.local.port();
        let message = |(index, &end): (usize, &usize)| {
            let start = index.checked_sub(1).map_or(0, |before| ends[before]);
            let (peer, payload) = datagram(arena.bytes(&frames[start]));
            let segment = if end - start > 1 { payload.len() as u16 } else { 0 };
            Message { to: SocketAddrV4::new(peer, port), parts: &parts[start..end], segment }
        };
        match send_messages(&self.socket, ends[..count].iter().enumerate().map(message)) {
            Ok(sent) => Ok(sent.checked_sub(1).map_or(0, |last| ends[last])),
            Err(_) if ends[0] > 1 => self.send_one(arena, frames),
            Err(error) => Err(self.unsent(arena, frames, &error)),
        }
    }

    /// Sends the first frame by itself, after the system refused it with others.
    #[cold]
    fn send_one(&mut self, arena: &Arena, frames: &[Frame]) -> Result<usize, Unsent> {
        let (peer, payload) = datagram(arena.bytes(&frames[0]));
        let (to, parts) = (SocketAddrV4::new(peer, self.local.port()), [IoSlice::new(payload)]);
        match send_messages(&self.socket, std::iter::once(Message { to, parts: &parts, segment: 0 })) {
            Ok(sent) => {
                // It was not the path that would not take it: this system, or this interface, makes no segments.
                self.segments = false;
                Ok(sent)
            }
            Err(error) => Err(self.unsent(arena, frames, &error)),
        }
    }

    #[cold]
    fn unsent(&self, arena: &Arena, frames: &[Frame], error: &io::Error) -> Unsent {
        let peer = frames.first().map_or(Ipv4Addr::UNSPECIFIED, |first| datagram(arena.bytes(first)).0);
        match Errno::from_io_error(error) {
            Some(Errno::MSGSIZE) => Unsent::TooLong(peer, self.path_mtu(peer)),
            Some(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::INTR) => Unsent::Full,
            Some(_) | None => Unsent::Unreachable(peer),
        }
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

    /// Receives datagrams as frames, about `limit` of them; returns whether there may be more. What is lost for want of a buffer is
    /// counted.
    pub fn receive(
        &mut self,
        limit: usize,
        pool: &mut Pool,
        frames: &mut Vec<Frame>,
        counters: &NodeCounters,
    ) -> bool {
        let places = limit.min(self.places);
        while self.spare.len() < places
            && let Some(frame) = pool.allocate(SMALL_CAPACITY)
        {
            self.spare.push(frame);
        }
        if self.spare.is_empty() {
            return true;
        }
        let arena = Arc::clone(pool.arena());
        let places = places.min(self.spare.len());
        let rests = self.rest.chunks_exact_mut(REST);
        let each = self.spare[..places].iter_mut().zip(rests).map(|(frame, rest)| {
            let bytes = arena.open(frame).into_bytes();
            [&mut bytes[HEADERS..], rest]
        });
        if receive_datagrams(&self.socket, each, &mut self.received).is_err() {
            // What waits comes when the next is heard of; errors of the network's are not told to such a socket.
            return false;
        }
        let (before, count) = (frames.len(), self.received.len());
        let rests = self.rest.chunks_exact(REST);
        let mut lost = 0;
        for ((place, rest), came) in self.spare.drain(..count).zip(rests).zip(&self.received) {
            lost += take_apart((place, rest), came, self.local, (&arena, pool), frames);
        }
        counters.count(Term::Received, lost);
        (0..lost).for_each(|_| counters.drop_frame(DropReason::PoolEmpty));
        let brought = frames.len() - before;
        self.places = if brought > 2 * DATAGRAMS { (self.places / 2).max(1) } else { DATAGRAMS };
        count == places
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

/// Makes frames of the datagrams that came in one place, each with outer headers; returns how many were lost for want of a buffer.
fn take_apart(
    (place, rest): (Frame, &[u8]),
    &Received { from, length, segment }: &Received,
    local: SocketAddrV4,
    (arena, pool): (&Arena, &mut Pool),
    frames: &mut Vec<Frame>,
) -> u64 {
    let at = frames.len();
    let first = HEADERS + segment.min(length);
    // The first stays where it is, if it has room there; the others are taken out of what comes behind it.
    let stays = first <= SMALL_CAPACITY;
    let (step, mut lost) = (segment.max(1), 0);
    for start in (0..length).step_by(step).skip(usize::from(stays)) {
        let end = (start + step).min(length);
        match pool.allocate(HEADERS + end - start) {
            Some(mut frame) => {
                let bytes = arena.open(&mut frame).into_bytes();
                copy(&mut bytes[HEADERS..], &arena.bytes(&place)[HEADERS..], rest, start);
                write_headers(bytes, from, local);
                frames.push(frame);
            }
            None => lost += 1,
        }
    }
    if !stays {
        pool.free(place);
        return lost;
    }
    let mut frame = place;
    let mut open = arena.open(&mut frame);
    open.truncate(first);
    write_headers(open.into_bytes(), from, local);
    frames.insert(at, frame);
    lost
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
fn together(arena: &Arena, frames: &[Frame]) -> usize {
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
