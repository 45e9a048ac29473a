//! Both directions of one TCP connection of an application, with what waits in them.
//!
//! The web and FastCGI servers and squid keep one per connection. Invariant: input is bounded by [`INPUT_LIMIT`]; output waits until the
//! connection has room. Depends on `sockets`. Read first: `sockets.rs`.

use super::super::socket::{Received, SocketError, TcpId};
use super::super::sockets::Sockets;

/// Octets of input that wait for an application.
pub(super) const INPUT_LIMIT: usize = 256 * 1024;

/// What waits in a connection.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// Received and not yet understood.
    pub(super) input: Vec<u8>,
    /// The other side has finished.
    pub(super) ended: bool,
    /// The connection broke.
    pub(super) failed: Option<SocketError>,
    /// End the connection when the output is gone.
    pub(super) close_after: bool,
    output: Vec<u8>,
    sent: usize,
}

impl Session {
    /// Reads what there is.
    pub(super) fn fill(&mut self, id: TcpId, sockets: &mut Sockets<'_, '_>) {
        while self.input.len() < INPUT_LIMIT {
            let input = &mut self.input;
            let received = sockets.tcp_read(id, |bytes| {
                let bytes = &bytes[..bytes.len().min(INPUT_LIMIT - input.len())];
                input.extend_from_slice(bytes);
                bytes.len()
            });
            match received {
                Received::Data(_) => {}
                Received::Pending => return,
                Received::End => {
                    self.ended = true;
                    return;
                }
                Received::Failed(error) => {
                    self.failed = Some(error);
                    return;
                }
            }
        }
    }

    /// Adds to what is to be sent.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// Says whether something waits to be sent.
    pub(super) fn has_output(&self) -> bool {
        self.backlog() > 0
    }

    /// Returns how many octets wait to be sent.
    pub(super) fn backlog(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Sends what finds room.
    pub(super) fn send(&mut self, id: TcpId, sockets: &mut Sockets<'_, '_>) {
        while self.has_output() {
            let count = sockets.tcp_write(id, &self.output[self.sent..]);
            if count == 0 {
                break;
            }
            self.sent += count;
        }
        // What never runs empty must not grow by what has gone, and what is left is moved no more often than it halves.
        if !self.has_output() || self.sent >= INPUT_LIMIT.max(self.backlog()) {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Sends what finds room; true when the session is over and the connection closed.
    pub(super) fn drain(&mut self, id: TcpId, sockets: &mut Sockets<'_, '_>) -> bool {
        self.send(id, sockets);
        let over = self.failed.is_some() || (!self.has_output() && (self.close_after || self.ended));
        if over {
            sockets.tcp_close(id);
        }
        over
    }
}
