//! Sends everything back, by TCP (RFC 862) and UDP.
//!
//! The other end of probes, `nc` and `iperf`. Invariant: reads only what it can send, so that a slow reader slows its writer.
//! Depends on `sockets`. Read first: RFC 862.

use super::super::socket::{Event, Received, TcpId};
use super::super::sockets::Sockets;
use super::super::udp::Options;
use std::net::SocketAddrV4;

const CHUNK: usize = 16 * 1024;

/// The application; its connections keep no state.
#[derive(Debug, Default)]
pub(in super::super) struct Echo {}

impl Echo {
    /// Handles an event.
    pub(super) fn handle(&mut self, event: Event, sockets: &mut Sockets<'_, '_>) {
        match event {
            Event::Tcp(id) => echo_stream(id, sockets),
            Event::Udp(port) => echo_datagrams(port, sockets),
            Event::Start | Event::Timer | Event::Input | Event::Echo => {}
        }
    }
}

fn echo_stream(id: TcpId, sockets: &mut Sockets<'_, '_>) {
    let mut chunk = Vec::new();
    loop {
        let room = sockets.tcp_room(id).min(CHUNK);
        if room == 0 && sockets.tcp_is_open(id) {
            return;
        }
        chunk.clear();
        let received = sockets.tcp_read(id, |bytes| {
            chunk.extend_from_slice(&bytes[..bytes.len().min(room.max(1))]);
            chunk.len()
        });
        match received {
            Received::Data(_) => {
                sockets.tcp_write(id, &chunk);
            }
            Received::Pending => return,
            Received::End | Received::Failed(_) => {
                sockets.tcp_close(id);
                return;
            }
        }
    }
}

fn echo_datagrams(port: u16, sockets: &mut Sockets<'_, '_>) {
    while let Some(datagram) = sockets.udp_receive(port) {
        let from = SocketAddrV4::new(datagram.to, port);
        sockets.udp_send_from(from, datagram.from, Options::default(), &datagram.payload);
    }
    while sockets.udp_error(port).is_some() {}
}
