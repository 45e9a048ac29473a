//! A probe: one question to one endpoint, whose packets are followed on their whole way.
//!
//! Checks, `trace` and reachability tests start it through [`super::super::Pod::probe`]. Invariant: it ends by its timeout at the latest, with
//! a named result. Depends on `sockets`. Read first: [`ProbeOutcome`].

use super::super::icmp::Message;
use super::super::socket::{Event, Failure, Received, SocketError, TcpId};
use super::super::sockets::Sockets;
use super::super::udp::Options;
use super::console::Console;
use crate::clock::Instant;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

/// How a probe asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeProtocol {
    /// Connect, send the payload, read it back, close.
    Tcp,
    /// Send the payload, expect it back.
    Udp,
    /// An echo request with the payload.
    IcmpEcho,
}

/// A question to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// How to ask.
    pub protocol: ProbeProtocol,
    /// Whom.
    pub destination: Ipv4Addr,
    /// The port; not for ICMP.
    pub port: u16,
    /// How long to wait.
    pub timeout: Duration,
    /// What to send, and to get back.
    pub payload: Vec<u8>,
}

/// Why a probe got no right answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum ProbeError {
    /// Nothing came in time.
    #[error("timed out")]
    TimedOut,
    /// The host refused the connection.
    #[error("connection refused")]
    ConnectionRefused,
    /// The connection was reset.
    #[error("connection reset")]
    ConnectionReset,
    /// The connection ended before all came back.
    #[error("connection closed early")]
    ClosedEarly,
    /// Nobody has the UDP port.
    #[error("port unreachable")]
    PortUnreachable,
    /// The host does not answer.
    #[error("host unreachable")]
    HostUnreachable,
    /// There is no route.
    #[error("network unreachable")]
    NetworkUnreachable,
    /// The TTL ran out: a routing loop.
    #[error("time to live exceeded")]
    TtlExceeded,
    /// A filter forbids it.
    #[error("prohibited")]
    Prohibited,
    /// Something else came back than was sent.
    #[error("wrong content")]
    WrongContent,
    /// The pod has no free port, or the payload is too long.
    #[error("cannot be sent")]
    Unsendable,
    /// The pod died.
    #[error("the pod is dead")]
    PodDead,
}

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeOutcome {
    /// The time from the first packet to the last octet of the answer, or what went wrong.
    pub result: Result<Duration, ProbeError>,
    /// When the probe began.
    pub started: Instant,
    /// When it ended.
    pub ended: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Socket {
    None,
    Tcp(TcpId),
    Udp(u16),
    Echo(u16),
}

/// A running probe.
#[derive(Debug)]
pub(super) struct Run {
    probe: Probe,
    socket: Socket,
    started: Instant,
    sent: usize,
    received: Vec<u8>,
    outcome: Option<ProbeOutcome>,
}

impl Run {
    /// Makes a probe that begins with its first event.
    pub(super) fn new(probe: Probe) -> Self {
        let started = Instant::ZERO;
        Run { probe, socket: Socket::None, started, sent: 0, received: Vec::new(), outcome: None }
    }

    /// Returns what was found, once it was.
    pub(super) fn outcome(&self) -> Option<ProbeOutcome> {
        self.outcome
    }

    /// Handles an event.
    pub(super) fn handle(&mut self, event: Event, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        if self.outcome.is_some() {
            return;
        }
        let until = if event == Event::Start {
            self.begin(sockets);
            sockets.now + self.probe.timeout
        } else {
            self.started + self.probe.timeout
        };
        let result = match self.socket {
            Socket::None => Some(Err(ProbeError::Unsendable)),
            Socket::Tcp(id) => self.run_tcp(id, sockets),
            Socket::Udp(port) => self.run_udp(port, sockets),
            Socket::Echo(identifier) => self.run_echo(identifier, sockets),
        };
        let result = result.or_else(|| (until <= sockets.now).then_some(Err(ProbeError::TimedOut)));
        match result {
            None => sockets.wake_at(until),
            Some(result) => self.end(result, console, sockets),
        }
    }

    fn begin(&mut self, sockets: &mut Sockets<'_, '_>) {
        self.started = sockets.now;
        let Probe { protocol, destination, port, payload, .. } = &self.probe;
        let to = SocketAddrV4::new(*destination, *port);
        self.socket = match protocol {
            ProbeProtocol::Tcp => sockets.tcp_connect(to, true).map_or(Socket::None, Socket::Tcp),
            ProbeProtocol::Udp => {
                let options = Options { traced: true, ..Options::default() };
                sockets
                    .udp_bind_any()
                    .filter(|&local| sockets.udp_send(local, to, options, payload))
                    .map_or(Socket::None, Socket::Udp)
            }
            ProbeProtocol::IcmpEcho => sockets
                .echo_open()
                .inspect(|&identifier| sockets.echo_send(identifier, 1, *destination, true, payload))
                .map_or(Socket::None, Socket::Echo),
        };
    }

    fn run_tcp(&mut self, id: TcpId, sockets: &mut Sockets<'_, '_>) -> Option<Result<(), ProbeError>> {
        if let Some(error) = sockets.tcp_error(id) {
            return Some(Err(error.into()));
        }
        if !sockets.tcp_is_open(id) {
            return None;
        }
        self.sent += sockets.tcp_write(id, &self.probe.payload[self.sent..]);
        loop {
            if self.received.len() >= self.probe.payload.len() {
                return Some(self.compare());
            }
            let payload = &mut self.received;
            let received = sockets.tcp_read(id, |bytes| {
                payload.extend_from_slice(bytes);
                bytes.len()
            });
            match received {
                Received::Data(_) => {}
                Received::Pending => return None,
                Received::End => return Some(Err(ProbeError::ClosedEarly)),
                Received::Failed(error) => return Some(Err(error.into())),
            }
        }
    }

    fn run_udp(&mut self, port: u16, sockets: &mut Sockets<'_, '_>) -> Option<Result<(), ProbeError>> {
        let expected = SocketAddrV4::new(self.probe.destination, self.probe.port);
        while let Some(datagram) = sockets.udp_receive(port) {
            if datagram.from == expected {
                self.received = datagram.payload;
                return Some(self.compare());
            }
        }
        std::iter::from_fn(|| sockets.udp_error(port))
            .find_map(|error| reported(error.report.failure))
            .map(Err)
    }

    fn run_echo(&mut self, identifier: u16, sockets: &mut Sockets<'_, '_>) -> Option<Result<(), ProbeError>> {
        while let Some(message) = sockets.echo_receive(identifier) {
            match message {
                Message::Reply { payload, .. } => {
                    self.received = payload;
                    return Some(self.compare());
                }
                Message::Failed { report, .. } => {
                    if let Some(error) = reported(report.failure) {
                        return Some(Err(error));
                    }
                }
            }
        }
        None
    }

    fn compare(&self) -> Result<(), ProbeError> {
        if self.received == self.probe.payload { Ok(()) } else { Err(ProbeError::WrongContent) }
    }

    fn end(&mut self, result: Result<(), ProbeError>, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        let (started, ended) = (self.started, sockets.now);
        let result = result.map(|()| ended.saturating_duration_since(started));
        match result {
            Ok(time) => console.line(format!("ok {time:?}")),
            Err(error) => console.line(error.to_string()),
        }
        console.exit(i32::from(result.is_err()));
        self.outcome = Some(ProbeOutcome { result, started, ended });
    }
}

impl From<SocketError> for ProbeError {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::ConnectionRefused => ProbeError::ConnectionRefused,
            SocketError::ConnectionReset => ProbeError::ConnectionReset,
            SocketError::TimedOut => ProbeError::TimedOut,
            SocketError::HostUnreachable => ProbeError::HostUnreachable,
            SocketError::NetworkUnreachable => ProbeError::NetworkUnreachable,
            SocketError::NoPortLeft => ProbeError::Unsendable,
        }
    }
}

/// Says what a failure means for the probe; a lowered path MTU does not end it.
fn reported(failure: Failure) -> Option<ProbeError> {
    match failure {
        Failure::NetworkUnreachable => Some(ProbeError::NetworkUnreachable),
        Failure::HostUnreachable => Some(ProbeError::HostUnreachable),
        Failure::PortUnreachable | Failure::ProtocolUnreachable => Some(ProbeError::PortUnreachable),
        Failure::TtlExceeded => Some(ProbeError::TtlExceeded),
        Failure::Prohibited => Some(ProbeError::Prohibited),
        Failure::FragmentationNeeded(_) | Failure::Other(..) => None,
    }
}
