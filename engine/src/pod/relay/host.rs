//! The host's sockets as relays use them: made without waiting, watched all at once.
//!
//! Invariants: no call waits; a socket that is closed is watched no more. Depends on mio, rustix. Read first: epoll(7).

use std::io;
use std::net::{SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, ipproto, sockopt};

/// Sockets told of at once.
pub(super) const EVENTS: usize = 256;

/// What a socket of the host's has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    /// The number that it is watched by.
    pub(super) number: usize,
    /// It has data, or its end, or an error.
    pub(super) readable: bool,
    /// It takes data, or has an error.
    pub(super) writable: bool,
}

/// Watches sockets of the host's; it can itself be watched, as a file that has something to read when one of them has.
#[derive(Debug)]
pub(super) struct Ear {
    poll: Poll,
    events: Events,
}

impl Ear {
    /// Makes one that watches nothing.
    ///
    /// # Errors
    /// The system's, when it gives no more files.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { poll: Poll::new()?, events: Events::with_capacity(EVENTS) })
    }

    /// Begins to watch a socket, until it is closed.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn add(&self, number: usize, socket: &impl AsFd) -> io::Result<()> {
        let socket = socket.as_fd().as_raw_fd();
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut SourceFd(&socket), Token(number), both)
    }

    /// Tells what sockets have that was not told before; at most [`EVENTS`], and then there may be more.
    pub(super) fn hear(&mut self) -> Vec<Heard> {
        if self.poll.poll(&mut self.events, Some(Duration::ZERO)).is_err() {
            self.events.clear();
        }
        let heard = self.events.iter().map(|event| {
            let ended = event.is_error() || (event.is_read_closed() && event.is_write_closed());
            Heard {
                number: event.token().0,
                readable: ended || event.is_readable() || event.is_read_closed(),
                writable: ended || event.is_writable(),
            }
        });
        heard.collect()
    }
}

impl AsFd for Ear {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.registry().as_fd()
    }
}

/// Begins to connect; that it is done is told by the socket's being writable.
///
/// # Errors
/// What the system knows at once.
pub(super) fn connect(to: SocketAddrV4) -> io::Result<TcpStream> {
    let socket = socket(SocketType::STREAM, None)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}

/// Makes a UDP socket that speaks with one endpoint only.
///
/// # Errors
/// The system's.
pub(super) fn udp(to: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = socket(SocketType::DGRAM, None)?;
    rustix::net::connect(&socket, &to)?;
    Ok(UdpSocket::from(socket))
}

/// Makes a socket that pings one address (icmp(7), `ping_group_range`): it carries ICMP messages, whose identifier is the system's.
///
/// # Errors
/// The system's; `PermissionDenied` when it lets this process send no pings.
pub(super) fn ping(to: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = socket(SocketType::DGRAM, Some(ipproto::ICMP))?;
    rustix::net::connect(&socket, &to)?;
    Ok(UdpSocket::from(socket))
}

/// Has a connection's closing reset it.
pub(super) fn reset_on_close(socket: &TcpStream) {
    // A connection that is no more cannot be reset.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

fn socket(kind: SocketType, protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::INET, kind, flags, protocol)?)
}
