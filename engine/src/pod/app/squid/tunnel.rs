//! CONNECT: octets pass both ways, whatever they are.
//!
//! `exchange` opens a tunnel when the server's connection is made. Invariants: neither end gets more than [`BACKLOG`] ahead of the other;
//! an end that has finished is told to the other, and the tunnel ends with both. Depends on `exchange`, `session`. Read first: RFC 9110
//! section 9.3.6.

use super::super::super::socket::TcpId;
use super::super::super::sockets::Sockets;
use super::super::session::Session;
use super::exchange::{Exchange, READ_TIMEOUT, Server, Stage};
use super::{BACKLOG, Client, Squid};

impl Squid {
    /// Tells the client that its tunnel is there.
    pub(super) fn open_tunnel(
        &mut self,
        mut exchange: Exchange,
        server: Server,
        client: &mut Client,
        id: TcpId,
        sockets: &mut Sockets<'_, '_>,
    ) -> Option<Exchange> {
        const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";
        client.session.push(ESTABLISHED);
        exchange.entry.code = "TCP_TUNNEL";
        exchange.entry.status = 200;
        exchange.entry.octets += ESTABLISHED.len();
        self.tunnel(exchange, server, client, id, sockets)
    }

    /// Passes octets both ways until both have ended, or one broke.
    pub(super) fn tunnel(
        &mut self,
        mut exchange: Exchange,
        mut server: Server,
        client: &mut Client,
        id: TcpId,
        sockets: &mut Sockets<'_, '_>,
    ) -> Option<Exchange> {
        let mut moved = true;
        while moved {
            client.session.fill(id, sockets);
            server.session.fill(server.id, sockets);
            let down = move_octets(&mut server.session, &mut client.session);
            let up = move_octets(&mut client.session, &mut server.session);
            exchange.entry.octets += down;
            moved = down + up > 0;
            if moved {
                client.until = sockets.now + READ_TIMEOUT;
            }
            client.session.send(id, sockets);
            server.session.send(server.id, sockets);
        }
        let (client_done, server_done) = (is_done(&client.session), is_done(&server.session));
        if client_done && !server.session.has_output() {
            sockets.tcp_shutdown(server.id);
        }
        if server_done && !client.session.has_output() {
            sockets.tcp_shutdown(id);
        }
        let is_over = client_done && server_done && !server.session.has_output();
        let is_silent = client.until <= sockets.now;
        if is_over || is_silent || client.session.failed.is_some() || server.session.failed.is_some() {
            self.leave(&server, sockets);
            client.session.close_after = true;
            self.finish(exchange.entry, client, sockets.now);
            return None;
        }
        exchange.stage = Stage::Tunnel(server);
        Some(exchange)
    }
}

/// Says whether nothing more comes from one end of a tunnel.
fn is_done(session: &Session) -> bool {
    session.ended && session.input.is_empty()
}

/// Moves input of one end to the other, unless that is behind already; returns how many octets.
fn move_octets(from: &mut Session, to: &mut Session) -> usize {
    if to.backlog() >= BACKLOG {
        return 0;
    }
    let octets = std::mem::take(&mut from.input);
    to.push(&octets);
    octets.len()
}
