//! `nc`: standard input to a connection, the connection to standard output.
//!
//! `-l` waits for one client, `-u` speaks UDP, `-z` only looks whether a port is open, `-w` ends after silence.
//! Invariant: ends when both directions of its connection have. Depends on `sockets`. Read first: nc(1).

use super::super::socket::{Event, Received, TcpId};
use super::super::sockets::Sockets;
use super::super::udp::Options;
use super::Find;
use super::arguments::Arguments;
use super::console::Console;
use crate::clock::Instant;
use std::net::SocketAddrV4;
use std::time::Duration;

/// Octets of one datagram made of input.
const DATAGRAM: usize = 8192;

/// A running nc.
#[derive(Debug)]
pub(super) struct Nc {
    to: Option<SocketAddrV4>,
    listen: Option<u16>,
    udp: bool,
    scan: bool,
    verbose: bool,
    timeout: Option<Duration>,
    silent_since: Instant,
    connection: Option<TcpId>,
    local_port: u16,
    input_done: bool,
}

impl Nc {
    /// Makes an nc of its words.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn new(words: &[String], find: &mut Find<'_>) -> Result<Self, String> {
        let usage = || String::from("usage: nc [-uvz] [-w SECONDS] ADDRESS PORT | nc -l [-u] [-p] PORT");
        let arguments = Arguments::parse(words, "ulzvnNk", "pw")?;
        let source: Option<u16> = arguments.value('p')?;
        let port = |text: &String| text.parse::<u16>().map_err(|_| format!("invalid port {text:?}"));
        let (to, listen) = match (arguments.has('l'), arguments.operands.as_slice(), source) {
            (true, [], Some(local)) => (None, Some(local)),
            (true, [local] | [_, local], None) => (None, Some(port(local)?)),
            (false, [host, remote], None) => (Some(SocketAddrV4::new(find(host)?, port(remote)?)), None),
            (true | false, ..) => return Err(usage()),
        };
        Ok(Nc {
            to,
            listen,
            udp: arguments.has('u'),
            scan: arguments.has('z'),
            verbose: arguments.has('v'),
            timeout: arguments.seconds('w')?,
            silent_since: Instant::ZERO,
            connection: None,
            local_port: 0,
            input_done: false,
        })
    }

    /// Handles an event.
    pub(super) fn handle(&mut self, event: Event, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        match event {
            Event::Start => self.begin(console, sockets),
            Event::Tcp(id) if self.connection.is_none() && self.listen.is_some() => {
                self.connection = Some(id)
            }
            Event::Tcp(id) if self.connection != Some(id) => sockets.tcp_abort(id),
            Event::Tcp(_) | Event::Timer | Event::Input | Event::Udp(_) | Event::Echo => {}
        }
        if console.exit_code().is_some() {
            return;
        }
        if event != Event::Timer {
            self.silent_since = sockets.now;
        }
        if self.udp {
            self.run_udp(console, sockets);
        } else if let Some(id) = self.connection {
            self.run_tcp(id, console, sockets);
        }
        if let Some(timeout) = self.timeout {
            let until = self.silent_since + timeout;
            if until <= sockets.now {
                let open = self.udp || self.connection.is_some_and(|id| sockets.tcp_is_open(id));
                console.exit(i32::from(!open));
            } else {
                sockets.wake_at(until);
            }
        }
    }

    fn begin(&mut self, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        let ready = match (self.udp, self.listen, self.to) {
            (true, Some(port), _) => {
                self.local_port = port;
                sockets.udp_bind(port).is_ok()
            }
            (true, None, _) => {
                self.local_port = sockets.udp_bind_any().unwrap_or(0);
                self.local_port != 0
            }
            (false, Some(port), _) => sockets.tcp_listen(port).is_ok(),
            (false, None, Some(to)) => {
                self.connection = sockets.tcp_connect(to, false).ok();
                self.connection.is_some()
            }
            (false, None, None) => false,
        };
        if !ready {
            console.line("nc: Address already in use");
            console.exit(1);
        }
    }

    fn run_tcp(&mut self, id: TcpId, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        if let Some(error) = sockets.tcp_error(id) {
            if let Some(to) = self.to.filter(|_| self.verbose || !self.scan) {
                console.line(format!(
                    "nc: connect to {} port {} (tcp) failed: {}",
                    to.ip(),
                    to.port(),
                    error.text()
                ));
            }
            sockets.tcp_close(id);
            console.exit(1);
            return;
        }
        if self.scan && sockets.tcp_is_open(id) {
            self.succeed("tcp", console);
            sockets.tcp_close(id);
            return;
        }
        if sockets.tcp_is_open(id) {
            let count = sockets.tcp_write(id, console.peek_input());
            console.consume_input(count);
            if console.input_ended() && !self.input_done {
                self.input_done = true;
                sockets.tcp_shutdown(id);
            }
        }
        while !console.is_full() {
            let received = sockets.tcp_read(id, |bytes| {
                console.write(bytes);
                bytes.len()
            });
            match received {
                Received::Data(_) => {}
                Received::Pending => return,
                // The peer says no more, and may still listen: who connected sends what is left of its input.
                Received::End if self.listen.is_none() && !self.input_done => return,
                Received::End => {
                    sockets.tcp_close(id);
                    console.exit(0);
                    return;
                }
                Received::Failed(_) => {
                    sockets.tcp_close(id);
                    console.exit(1);
                    return;
                }
            }
        }
    }

    fn run_udp(&mut self, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        // An error about a datagram to somebody else is none of this connection.
        while let Some(error) = sockets.udp_error(self.local_port) {
            if self.to == Some(error.to) {
                if self.verbose || !self.scan {
                    let (address, port) = (error.to.ip(), error.to.port());
                    console.line(format!("nc: {address} port {port} (udp): {}", error.report.failure.text()));
                }
                console.exit(1);
                return;
            }
        }
        while let Some(datagram) = sockets.udp_receive(self.local_port) {
            self.to.get_or_insert(datagram.from);
            if self.to == Some(datagram.from) {
                console.write(&datagram.payload);
            }
        }
        let Some(to) = self.to else { return };
        if self.scan {
            // An open UDP port cannot be told from a silent one: only an error within a second says no.
            if self.input_done && self.silent_since + Duration::from_secs(1) <= sockets.now {
                self.succeed("udp", console);
                return;
            }
            if !self.input_done {
                self.input_done = true;
                sockets.udp_send(self.local_port, to, Options::default(), b"X");
            }
            sockets.wake_at(self.silent_since + Duration::from_secs(1));
            return;
        }
        while !console.peek_input().is_empty() {
            let count = console.peek_input().len().min(DATAGRAM);
            let payload = console.peek_input()[..count].to_vec();
            console.consume_input(count);
            sockets.udp_send(self.local_port, to, Options::default(), &payload);
        }
    }

    fn succeed(&self, protocol: &str, console: &mut Console) {
        if let Some(to) = self.to.filter(|_| self.verbose) {
            console.line(format!("Connection to {} {} port [{protocol}/*] succeeded!", to.ip(), to.port()));
        }
        console.exit(0);
    }
}
