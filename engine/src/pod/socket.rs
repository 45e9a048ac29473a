//! The words of the socket interface: identities, events and errors that stack and applications share.
//!
//! Invariant: plain values. Depends on nothing. Read first: `sockets.rs`, which uses them.

use std::net::Ipv4Addr;

/// A program that runs in a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProgramId(pub(super) u64);

/// A TCP connection of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TcpId(pub(super) u64);

/// Who holds a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    /// A container, by its place in the pod.
    Container(usize),
    /// A program of `exec`.
    Program(ProgramId),
    /// What goes on at sockets of the host's.
    Relays,
}

/// Why an application is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// It begins.
    Start,
    /// The time it asked for has come.
    Timer,
    /// Its standard input has more, or has ended; of relays: what they take from outside of the pod has come.
    Input,
    /// A connection was made, changed state or has data or room.
    Tcp(TcpId),
    /// A UDP socket has a datagram or an error; the local port.
    Udp(u16),
    /// An echo socket has a reply or an error.
    Echo,
}

/// What an ICMP error (or the own device) says about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// No route to the network.
    NetworkUnreachable,
    /// The host does not answer.
    HostUnreachable,
    /// The host does not know the protocol.
    ProtocolUnreachable,
    /// Nobody listens at the port.
    PortUnreachable,
    /// Too long for a link, whose MTU is named (0: not named).
    FragmentationNeeded(u16),
    /// A filter forbids it.
    Prohibited,
    /// The TTL ran out on the way.
    TtlExceeded,
    /// Another error, by type and code.
    Other(u8, u8),
}

impl Failure {
    /// Returns what libc says about it on a connected socket.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Failure::NetworkUnreachable => "Network is unreachable",
            Failure::HostUnreachable | Failure::Prohibited | Failure::TtlExceeded => "No route to host",
            Failure::ProtocolUnreachable => "Protocol not available",
            Failure::PortUnreachable => "Connection refused",
            Failure::FragmentationNeeded(_) => "Message too long",
            Failure::Other(..) => "Protocol error",
        }
    }
}

/// Who reported a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    /// What happened.
    pub(super) failure: Failure,
    /// The router or host that said so.
    pub(super) from: Ipv4Addr,
}

/// Why a connection failed or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketError {
    /// The other side answered with a reset, or said that nobody listens.
    ConnectionRefused,
    /// The other side reset the connection.
    ConnectionReset,
    /// The other side does not answer any more.
    TimedOut,
    /// The host does not answer.
    HostUnreachable,
    /// No route to the network.
    NetworkUnreachable,
    /// All ports to this destination are in use.
    NoPortLeft,
}

impl SocketError {
    /// Returns what libc says about it.
    pub(super) const fn text(self) -> &'static str {
        match self {
            SocketError::ConnectionRefused => "Connection refused",
            SocketError::ConnectionReset => "Connection reset by peer",
            SocketError::TimedOut => "Connection timed out",
            SocketError::HostUnreachable => "No route to host",
            SocketError::NetworkUnreachable => "Network is unreachable",
            SocketError::NoPortLeft => "Cannot assign requested address",
        }
    }
}

/// What reading a connection gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// So many octets.
    Data(usize),
    /// Nothing now.
    Pending,
    /// Nothing ever again: the other side has finished.
    End,
    /// Nothing ever again: the connection broke.
    Failed(SocketError),
}

/// A UDP port is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PortTaken {
    /// Who holds it.
    pub(super) holder: Owner,
}
