//! HTTP requests over connections that are kept: a generator on one node, nginx in a pod of another, behind a Service.
//!
//! The generator speaks as much TCP as it needs: it loses nothing, so that it never sends twice. Each connection has one
//! request under way. Invariant: an answer counts when all its octets have come, as many as the first had.
//!
//! May depend on `cluster`, `segment`. Read first: `cluster.rs`.

use std::net::SocketAddrV4;
use std::time::Duration;

use flatnet_engine::frame::Frame;
use flatnet_engine::link::RingsPeer;
use flatnet_engine::pod::Image;
use flatnet_engine::wire::{MacAddress, TcpFlags};

use super::cluster::{Cluster, IDLE_LIMIT};
use super::core_time;
use super::segment::Segment;
use crate::bench::BenchError;
use crate::bench::addresses::{bridge_address, pod_address};

/// Where nginx listens.
const PORT: u16 = 80;
/// The generator's first port.
const FIRST_PORT: u16 = 10_000;
/// Connections that are begun at once: a listener takes 128 that are half open.
const AT_ONCE: u16 = 64;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: server\r\nUser-Agent: flatnet-bench\r\nAccept: */*\r\n\r\n";

/// The generator's end of a connection.
#[derive(Debug, Clone, Copy, Default)]
struct Connection {
    /// The next octet to send.
    next: u32,
    /// The next octet that comes.
    expected: u32,
    /// Octets of the present answer that have come.
    received: usize,
}

/// The network and its connections.
#[derive(Debug)]
pub struct Requests {
    cluster: Cluster,
    ring: RingsPeer,
    to: SocketAddrV4,
    connections: Vec<Connection>,
    /// Octets of an answer, once the first has come.
    length: usize,
    answered: u64,
    /// Connections to send the next request on, and the buffers that the last answers came in.
    ready: Vec<(u16, Frame)>,
}

impl Requests {
    /// Makes the network and the connections.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn new(connections: u16) -> Result<Self, BenchError> {
        let mut cluster = Cluster::new(2)?;
        let ring = cluster.add_rings(0, 0)?;
        cluster.add_pod(1, 0, Image::Nginx, &[])?;
        let to = SocketAddrV4::new(cluster.add_service(pod_address(1, 0), PORT)?, PORT);
        while cluster.run_batch() > 0 {}
        let mut requests = Self {
            cluster,
            ring,
            to,
            connections: vec![Connection::default(); usize::from(connections)],
            length: 0,
            answered: 0,
            ready: Vec::new(),
        };
        // The first one alone: while the next hop is asked for, few packets wait.
        requests.open(0..connections.min(1))?;
        for first in (1..connections).step_by(usize::from(AT_ONCE)) {
            requests.open(first..connections.min(first + AT_ONCE))?;
        }
        Ok(requests)
    }

    /// Has so many requests answered; returns how long it took.
    ///
    /// # Errors
    /// [`BenchError::Unfinished`].
    pub fn answer(&mut self, count: u64) -> Result<Duration, BenchError> {
        let (goal, start) = (self.answered + count, core_time());
        self.run_until("the requests", |requests| requests.answered >= goal)?;
        if self.length == 0 {
            return Err(BenchError::Unfinished { what: "an answer of HTTP", drops: self.cluster.drops() });
        }
        Ok(core_time() - start)
    }

    /// Opens some connections, each with its first request.
    fn open(&mut self, some: std::ops::Range<u16>) -> Result<(), BenchError> {
        for connection in some.clone() {
            let syn = self.segment(connection, TcpFlags::SYN, &[]);
            syn.send(gateway(), &mut self.cluster.control, &mut self.ring)?;
            self.connections[usize::from(connection)].next = 1;
        }
        let done =
            |requests: &Self| some.clone().all(|it| requests.connections[usize::from(it)].expected != 0);
        self.run_until("the connections", done)
    }

    fn run_until(&mut self, what: &'static str, done: impl Fn(&Self) -> bool) -> Result<(), BenchError> {
        let mut idle = 0;
        while !done(self) {
            let moved = self.cluster.run_batch();
            self.hear();
            let mut ready = std::mem::take(&mut self.ready);
            idle = if moved + ready.len() > 0 { 0 } else { idle + 1 };
            for (number, frame) in ready.drain(..) {
                let flags = TcpFlags::ACK.with(TcpFlags::PSH);
                let segment = self.segment(number, flags, REQUEST);
                let Self { cluster, ring, connections, .. } = self;
                segment.send_in(frame, gateway(), &mut cluster.control, ring)?;
                let connection = &mut connections[usize::from(number)];
                connection.next = connection.next.wrapping_add(REQUEST.len() as u32);
            }
            self.ready = ready;
            if idle > IDLE_LIMIT {
                return Err(BenchError::Unfinished { what, drops: self.cluster.drops() });
            }
        }
        Ok(())
    }

    /// Takes what has come.
    fn hear(&mut self) {
        let Self { cluster, ring, connections, length, answered, ready, .. } = self;
        let control = &mut cluster.control;
        ring.from_node.pop(usize::MAX, |frame| {
            let segment = Segment::read(control.pool.arena().bytes(&frame));
            let to = segment.map(|segment| segment.to.port().wrapping_sub(FIRST_PORT));
            let connection = to.and_then(|number| connections.get_mut(usize::from(number)));
            let is_next = match (connection, segment) {
                (Some(connection), Some(segment)) => {
                    let is_whole = connection.hear(&segment, length);
                    *answered += u64::from(is_whole && !segment.flags.syn());
                    is_whole
                }
                _ => false,
            };
            match to {
                Some(number) if is_next => ready.push((number, frame)),
                Some(_) | None => control.pool.free(frame),
            }
        });
    }

    fn segment(&self, number: u16, flags: TcpFlags, payload: &'static [u8]) -> Segment<'static> {
        let from = SocketAddrV4::new(pod_address(0, 0), FIRST_PORT + number);
        let Connection { next, expected, .. } = self.connections[usize::from(number)];
        Segment { from, to: self.to, sequence: next, acknowledgement: expected, flags, payload }
    }
}

/// docker0's MAC on the generator's node.
fn gateway() -> MacAddress {
    MacAddress::for_ipv4(bridge_address(0))
}

impl Connection {
    /// Hears a segment; true when the next request is to be sent.
    fn hear(&mut self, segment: &Segment<'_>, length: &mut usize) -> bool {
        if segment.flags.syn() {
            self.expected = segment.sequence.wrapping_add(1);
            return true;
        }
        if segment.sequence != self.expected || segment.payload.is_empty() {
            return false;
        }
        if self.received == 0 && *length == 0 {
            *length = length_of(segment.payload);
        }
        self.expected = self.expected.wrapping_add(segment.payload.len() as u32);
        self.received += segment.payload.len();
        let is_whole = self.received >= *length;
        if is_whole {
            self.received = 0;
        }
        is_whole
    }
}

/// Octets of a page and its head; 0 where there is none.
fn length_of(answer: &[u8]) -> usize {
    let text = String::from_utf8_lossy(answer);
    let Some((head, _)) = text.split_once("\r\n\r\n").filter(|_| text.starts_with("HTTP/1.1 200 ")) else {
        return 0;
    };
    let body = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse::<usize>().ok());
    body.map_or(0, |body| head.len() + 4 + body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_is_answered_again_and_again() {
        let mut requests = Requests::new(100).unwrap();
        requests.answer(1000).unwrap();
        assert!(requests.length > 300, "the welcome page: {}", requests.length);
        assert!(requests.connections.iter().all(|connection| connection.next > 3 * REQUEST.len() as u32));
    }
}
