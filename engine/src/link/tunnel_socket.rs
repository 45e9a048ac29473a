//! A node's eth0 on the host's own network, for its tunnel: a UDP socket of the host's.
//!
//! The node makes and takes whole frames as on any link; here their outer headers are what the system makes or has taken off.
//! A worker gathers what leaves and sends it at the end of its batch, and receives when its `watch` hears of something.
//! Invariants: what goes to a peer is the payload of the frame's datagram, byte for byte; what comes has outer headers that say
//! who sent it, and nothing of it is cut off; all else that leaves is given back. Allowed dependencies: `sys`, `frame`, `wire`.
//! Read first: udp(7), ip(7); `docs/adr/0027-the-tunnels-socket.md`.
//!
//! Above 400 lines because sending and receiving are one socket's, and share its buffers and switches.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, ip_mtu, set_ip_mtu_discover, socket_recv_buffer_size};

use crate::frame::{Arena, Frame, LARGE_CAPACITY, Pool, SMALL_CAPACITY};
use crate::ledger::{DropReason, NodeCounters, Term};
use crate::link::outer::{HEADERS, datagram};
use crate::link::train::{Came, MESSAGE_LIMIT, Superframe, together};
use crate::link::widen;
use crate::sys::{DATAGRAMS, Message, Received, receive_datagrams, receive_together, send_messages};
use crate::tunnel::Encapsulation;
use crate::wire::{ArpOperation, ArpPacket, EtherType, EthernetFrame, IpProtocol, Ipv4Packet, UdpDatagram};

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

/// What was sent: each frame made one datagram or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Frames, from the first on.
    pub frames: usize,
    /// The datagrams that they made.
    pub datagrams: usize,
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
    /// It is no superframe, though its record says so.
    Malformed,
}

/// The socket of a node's tunnel.
#[derive(Debug)]
pub struct TunnelSocket {
    socket: UdpSocket,
    local: SocketAddrV4,
    /// Bytes that datagrams have in front of their packets.
    between: usize,
    /// Frames that are sent at the end of the batch.
    pub outbox: Vec<Frame>,
    /// Whether datagrams of one length to one peer are sent as one message: until the system refuses it.
    pub segments: bool,
    /// Whether datagrams that came together are put together again, where they are a flow's.
    pub merges: bool,
    /// Where a superframe's datagrams are made.
    train: Box<[u8]>,
    /// Buffers for what comes next.
    spare: Vec<Frame>,
    /// Where what is longer than a small buffer comes first, for each of them that has no large buffer.
    rest: Box<[u8]>,
    /// Calls for which large buffers are at hand, since the last that brought something long.
    expects_long: u8,
    received: Vec<Received>,
    /// Datagrams asked for at once: fewer while each brings many.
    places: usize,
}

/// Large buffers at hand for what comes in one call: with twice as much, what a core has in its second cache would not last.
const LONG: usize = 8;
/// Calls without anything long after which no more is expected.
const SHORT_CALLS: u8 = 64;

/// Bytes of [`TunnelSocket::rest`] for one datagram: with a small buffer's, room for the longest there is.
const REST: usize = LARGE_CAPACITY - SMALL_CAPACITY;

impl TunnelSocket {
    /// Opens the socket of a tunnel whose datagrams go to this port, here and at every peer.
    ///
    /// # Errors
    /// [`TunnelSocketError`].
    pub fn open(local: SocketAddrV4, encapsulation: Encapsulation) -> Result<Self, TunnelSocketError> {
        let failed = |source: io::Error| match Errno::from_io_error(&source) {
            Some(Errno::ADDRNOTAVAIL) => TunnelSocketError::AddressElsewhere(*local.ip()),
            Some(Errno::ADDRINUSE) => TunnelSocketError::PortTaken(local),
            Some(Errno::ACCESS | Errno::PERM) => TunnelSocketError::NotAllowed(local.port()),
            Some(_) | None => TunnelSocketError::System { address: local, source },
        };
        let socket = UdpSocket::bind(local).map_err(failed)?;
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO).map_err(|errno| failed(errno.into()))?;
        widen(&socket, BUFFER);
        let [outbox, spare] = [(); 2].map(|()| Vec::with_capacity(DATAGRAMS));
        // An older system gives them one by one.
        let _ = receive_together(&socket);
        Ok(Self {
            socket,
            local,
            between: encapsulation.between(),
            outbox,
            segments: true,
            merges: true,
            train: vec![0; LARGE_CAPACITY].into(),
            spare,
            rest: vec![0; DATAGRAMS * REST].into(),
            expects_long: 0,
            received: Vec::with_capacity(DATAGRAMS),
            places: DATAGRAMS,
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
            Some(it) if (it.source_port(), it.destination_port()) == (port, port) => Leaving::Datagram,
            Some(_) | None => Leaving::Stray,
        }
    }

    /// Sends frames that are [`Leaving::Datagram`], up to [`DATAGRAMS`], or a superframe if that is the first.
    ///
    /// # Errors
    /// Why the first frame is not sent, and how many datagrams of it have gone before.
    pub fn send(&mut self, arena: &Arena, frames: &[Frame]) -> Result<Sent, (Unsent, usize)> {
        let is_finished = |frame: &&Frame| !arena.record(frame).checksum.is_unfinished();
        match frames.first().filter(|frame| !is_finished(frame)) {
            Some(superframe) => self.send_superframe(arena, superframe),
            None => {
                let count = frames.iter().take(DATAGRAMS).take_while(is_finished).count();
                let sent = self.send_finished(arena, &frames[..count]).map_err(|unsent| (unsent, 0))?;
                Ok(Sent { frames: sent, datagrams: sent })
            }
        }
    }

    /// Sends a superframe in as few messages as take it.
    fn send_superframe(&mut self, arena: &Arena, frame: &Frame) -> Result<Sent, (Unsent, usize)> {
        let superframe = Superframe::of(arena, frame).ok_or((Unsent::Malformed, 0))?;
        let mut sent = Sent { frames: 1, datagrams: 0 };
        let (to, length) =
            (SocketAddrV4::new(superframe.peer, self.local.port()), superframe.datagram_length());
        while let Some(left) = superframe.left(sent.datagrams) {
            let room = if self.segments { (MESSAGE_LIMIT / length).clamp(1, DATAGRAMS) } else { 1 };
            let count = room.min(left);
            let train = superframe.write_datagrams(&mut self.train, sent.datagrams, count);
            let once = |count: usize| {
                let parts = [IoSlice::new(&train[..(count * length).min(train.len())])];
                let segment = if count > 1 { length as u16 } else { 0 };
                send_messages(&self.socket, std::iter::once(Message { to, parts: &parts, segment }))
            };
            let (refused, gone) = match once(count) {
                Ok(_) => (None, count),
                Err(error) if count > 1 && !is_full(&error) => (once(1).err(), 1),
                Err(error) => (Some(error), 0),
            };
            if let Some(error) = refused {
                return Err((self.unsent(superframe.peer, &error), sent.datagrams));
            }
            // One alone went: it was not the path that would not take them.
            self.segments &= gone == count;
            sent.datagrams += gone;
        }
        Ok(sent)
    }

    fn send_finished(&mut self, arena: &Arena, frames: &[Frame]) -> Result<usize, Unsent> {
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
            Err(error) if ends[0] > 1 && !is_full(&error) => self.send_one(arena, frames),
            Err(error) => {
                let peer = frames.first().map_or(Ipv4Addr::UNSPECIFIED, |it| datagram(arena.bytes(it)).0);
                Err(self.unsent(peer, &error))
            }
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
            Err(error) => Err(self.unsent(peer, &error)),
        }
    }

    #[cold]
    fn unsent(&self, peer: Ipv4Addr, error: &io::Error) -> Unsent {
        match Errno::from_io_error(error) {
            Some(Errno::MSGSIZE) => Unsent::TooLong(peer, self.path_mtu(peer)),
            _ if is_full(error) => Unsent::Full,
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

    /// Receives datagrams as frames, about `limit` of them, and superframes, where `merges` allows it; returns whether there may be
    /// more. What is lost for want of a buffer is counted, and so is what went into a superframe.
    pub fn receive(
        &mut self,
        limit: usize,
        merges: bool,
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
        let mut large = [const { None }; DATAGRAMS];
        if self.expects_long > 0 {
            large[..places.min(LONG)].fill_with(|| pool.allocate(LARGE_CAPACITY));
        }
        let rests = self.rest.chunks_exact_mut(REST).zip(&mut large);
        let each = self.spare[..places].iter_mut().zip(rests).map(|(frame, (rest, large))| {
            let bytes = arena.open(frame).into_bytes();
            let rest = match large {
                Some(large) => &mut arena.open(large).into_bytes()[SMALL_CAPACITY..],
                None => rest,
            };
            [&mut bytes[HEADERS..], rest]
        });
        let received = receive_datagrams(&self.socket, each, &mut self.received);
        let (before, count) = (frames.len(), self.received.len());
        let (mut lost, mut merged, between) = (0, 0, self.between);
        let rests = self.rest.chunks_exact(REST).zip(&mut large);
        for ((place, (rest, large)), &came) in self.spare.drain(..count).zip(rests).zip(&self.received) {
            let came = Came { place, came, local: self.local, between };
            match large.take_if(|_| HEADERS + came.came.length > SMALL_CAPACITY) {
                Some(large) => {
                    let (missing, others) = came.keep(large, merges && self.merges, (&arena, pool), frames);
                    (lost, merged) = (lost + missing, merged + others);
                }
                None => lost += came.take_apart(0, rest, (&arena, pool), frames),
            }
        }
        large.into_iter().flatten().for_each(|frame| pool.free(frame));
        counters.count(Term::Received, lost + merged);
        counters.count(Term::Merged, merged);
        (0..lost).for_each(|_| counters.drop_frame(DropReason::PoolEmpty));
        if received.is_ok() {
            self.expect(frames.len() - before);
        }
        // What waits comes when the next is heard of; errors of the network's are not told to such a socket.
        received.is_ok() && count == places
    }

    /// Draws from a call that brought so many frames what the next will bring.
    fn expect(&mut self, brought: usize) {
        let is_long = self.received.iter().any(|came| HEADERS + came.length > SMALL_CAPACITY);
        self.expects_long = if is_long { SHORT_CALLS } else { self.expects_long.saturating_sub(1) };
        let most = if self.expects_long > 0 { LONG } else { DATAGRAMS };
        self.places = if brought > 2 * DATAGRAMS { (self.places / 2).max(1) } else { most };
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

/// Tells whether the system takes no more for now, however short it be.
fn is_full(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::INTR))
}
