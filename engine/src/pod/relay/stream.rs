//! A TCP connection of the pod's and one of the host's: what one receives the other sends.
//!
//! The set hands it what happens to either. Invariants: nothing is kept in between, so that who reads slowly makes the other side
//! wait; each direction ends by itself; what breaks on one side is reset on the other. Depends on `sockets`.
//! Read first: RFC 9293 section 3.6.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use rustix::io::Errno;

use super::super::socket::{Received, SocketError, TcpId};
use super::super::sockets::Sockets;
use super::super::tcp::Tuple;
use super::host::{self, Heard};

/// What is said to the host's side about the connection that it asked for, once that is there or refused; who is refused without a word
/// is reset.
pub type Answer = fn(Result<(), SocketError>) -> Vec<u8>;

/// How far a relay is.
#[derive(Debug)]
pub(super) enum Phase {
    /// The pod's side is being asked.
    Asking(TcpId, Answer),
    /// The host's side is being asked: the pod's side, whose SYN this is, waits.
    Asked(Vec<u8>),
    /// The pod's side was answered.
    Admitted,
    /// Both are there.
    Open(TcpId),
}

/// A relay of a TCP connection.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) socket: TcpStream,
    pub(super) phase: Phase,
    /// Both ends of the connection, of one that came from the pod's side.
    pub(super) tuple: Option<Tuple>,
    /// The host's side may have data or its end.
    readable: bool,
    /// The host's side may take data.
    writable: bool,
    /// The host's side says no more.
    host_ended: bool,
    /// The pod's side says no more.
    pod_ended: bool,
}

impl Stream {
    /// Makes the relay of a socket that is connected, or that connects.
    pub(super) fn new(socket: TcpStream, phase: Phase, tuple: Option<Tuple>) -> Self {
        // Whoever writes has decided what leaves together.
        let _ = socket.set_nodelay(true);
        let connected = tuple.is_none();
        Self {
            socket,
            phase,
            tuple,
            readable: connected,
            writable: connected,
            host_ended: false,
            pod_ended: false,
        }
    }

    /// Notes what the host's side has.
    pub(super) fn hear(&mut self, heard: Heard) {
        self.readable |= heard.readable;
        self.writable |= heard.writable;
    }

    /// Tells whether the host's side is connected; nothing while it is not known.
    pub(super) fn connected(&self) -> Option<io::Result<()>> {
        if !self.writable {
            return None;
        }
        Some(self.socket.take_error().and_then(|error| error.map_or(Ok(()), Err)))
    }

    /// Goes on from what was asked of the pod's side, if that has answered; false when the relay is over.
    pub(super) fn open(&mut self, id: TcpId, answer: Answer, sockets: &mut Sockets<'_, '_>) -> bool {
        if let Some(error) = sockets.tcp_error(id) {
            refuse(&self.socket, &answer(Err(error)));
            sockets.tcp_close(id);
            return false;
        }
        if !sockets.tcp_is_open(id) {
            return true;
        }
        self.phase = Phase::Open(id);
        say(&self.socket, &answer(Ok(())));
        self.pump(id, sockets)
    }

    /// Moves what can be moved; false when the relay is over, and the pod's side has been left.
    pub(super) fn pump(&mut self, id: TcpId, sockets: &mut Sockets<'_, '_>) -> bool {
        if sockets.tcp_error(id).is_some() {
            host::reset_on_close(&self.socket);
            sockets.tcp_close(id);
            return false;
        }
        if self.move_in(id, sockets).and_then(|()| self.move_out(id, sockets)).is_err() {
            sockets.tcp_abort(id);
            return false;
        }
        if self.host_ended && self.pod_ended {
            sockets.tcp_close(id);
            return false;
        }
        true
    }

    /// From the host's side to the pod's.
    fn move_in(&mut self, id: TcpId, sockets: &mut Sockets<'_, '_>) -> io::Result<()> {
        while self.readable && !self.host_ended && sockets.tcp_room(id) > 0 {
            let mut read = Err(Errno::WOULDBLOCK.into());
            sockets.tcp_fill(id, |room| {
                read = self.socket.read(room);
                *read.as_ref().unwrap_or(&0)
            });
            match read {
                Ok(0) => {
                    self.host_ended = true;
                    sockets.tcp_shutdown(id);
                }
                Ok(_) => {}
                Err(error) => self.readable = !must_wait(error)?,
            }
        }
        Ok(())
    }

    /// From the pod's side to the host's.
    fn move_out(&mut self, id: TcpId, sockets: &mut Sockets<'_, '_>) -> io::Result<()> {
        while self.writable && !self.pod_ended {
            let mut written = Ok(0);
            let received = sockets.tcp_read(id, |bytes| {
                written = self.socket.write(bytes);
                *written.as_ref().unwrap_or(&0)
            });
            if let Err(error) = written {
                self.writable = !must_wait(error)?;
                continue;
            }
            match received {
                Received::Data(_) => {}
                Received::Pending => break,
                Received::End => {
                    self.pod_ended = true;
                    self.socket.shutdown(Shutdown::Write)?;
                }
                Received::Failed(_) => return Err(Errno::CONNRESET.into()),
            }
        }
        Ok(())
    }
}

/// Tells the host's side that there is no connection, before it is closed.
pub(super) fn refuse(socket: &TcpStream, text: &[u8]) {
    if text.is_empty() {
        host::reset_on_close(socket);
    } else {
        say(socket, text);
    }
}

/// Says something of our own; a socket that has sent nothing yet takes it whole.
fn say(mut socket: &TcpStream, text: &[u8]) {
    // That its peer has left the next read tells.
    let _ = socket.write_all(text);
}

/// Tells whether a socket has no more for now; false when it is to be asked again at once.
///
/// # Errors
/// It has broken.
fn must_wait(error: io::Error) -> io::Result<bool> {
    match Errno::from_io_error(&error) {
        Some(Errno::WOULDBLOCK) => Ok(true),
        Some(Errno::INTR) => Ok(false),
        Some(_) | None => Err(error),
    }
}
