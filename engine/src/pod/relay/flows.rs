//! Datagrams and echo requests to somebody elsewhere, each flow by a socket of its own.
//!
//! Invariants: at most [`LIMIT`] flows, of which the one that would end first gives way; a flow ends [`UNANSWERED`] after the last datagram,
//! [`ANSWERED`] when somebody has answered. Depends on `sockets`, `host`. Read first: RFC 4787; Linux's
//! `nf_conntrack_udp_timeout`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::{SocketAddrV4, UdpSocket};
use std::time::Duration;

use super::super::drops::PodDrop;
use super::super::icmp::Echo;
use super::super::ip;
use super::super::sockets::Sockets;
use super::super::udp::Options;
use super::{host, refuse};
use crate::clock::Instant;
use crate::wire::icmpv4::HEADER_LENGTH;
use crate::wire::udp::HEADER_LENGTH as UDP_HEADER_LENGTH;
use crate::wire::{IcmpPacket, IcmpType, IpProtocol, Ipv4Packet, UdpDatagram};

/// Flows at once.
pub(super) const LIMIT: usize = 1024;
/// How long an unanswered flow lasts, as conntrack has it.
const UNANSWERED: Duration = Duration::from_secs(30);
/// How long one of UDP lasts that was answered.
const ANSWERED: Duration = Duration::from_secs(180);
/// Datagrams that one flow reads before others have their turn.
const TURN: usize = 64;
/// Octets of the longest datagram.
const LONGEST: usize = 65_535;
/// Octets that an error quotes: the longest header and eight more.
const QUOTE: usize = 60 + 8;

/// Both ends of a flow; of pings the client's port is the identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    is_ping: bool,
    client: SocketAddrV4,
    server: SocketAddrV4,
}

#[derive(Debug)]
struct Flow {
    key: Key,
    socket: UdpSocket,
    /// The last packet's beginning, for errors about it (RFC 792).
    quote: Vec<u8>,
    due: Instant,
    answered: bool,
}

/// The flows of a network's way outside.
#[derive(Debug)]
pub(super) struct Flows {
    limit: usize,
    flows: BTreeMap<usize, Flow>,
    by_key: BTreeMap<Key, usize>,
    /// When they end.
    expiries: BTreeSet<(Instant, usize)>,
    /// Those that may have something to read.
    readable: BTreeSet<usize>,
    buffer: Vec<u8>,
}

impl Default for Flows {
    fn default() -> Self {
        Self {
            limit: LIMIT,
            flows: BTreeMap::new(),
            by_key: BTreeMap::new(),
            expiries: BTreeSet::new(),
            readable: BTreeSet::new(),
            buffer: Vec::new(),
        }
    }
}

impl Flows {
    /// Sends what a packet carries by its flow's socket, which is made with this number if there is none.
    pub(super) fn send(
        &mut self,
        number: usize,
        packet: &[u8],
        ear: &host::Ear,
        sockets: &mut Sockets<'_, '_>,
    ) {
        let (key, payload) = read(packet);
        let number = match self.by_key.get(&key) {
            Some(&number) => number,
            None => match self.open(number, key, ear, sockets.now) {
                Ok(()) => number,
                Err(error) if key.is_ping && error.kind() == ErrorKind::PermissionDenied => {
                    return sockets.count_drop(PodDrop::HostPingRefused);
                }
                Err(error) => return refuse(packet, &error, sockets),
            },
        };
        let Some(flow) = self.flows.get_mut(&number) else { return };
        flow.quote.clear();
        flow.quote.extend_from_slice(&packet[..packet.len().min(QUOTE)]);
        let mut sent = flow.socket.send(payload);
        if let Err(error) = &sent
            && is_about_earlier(error)
        {
            refuse(packet, error, sockets);
            sent = flow.socket.send(payload);
        }
        if sent.is_err() {
            sockets.count_drop(PodDrop::HostQueueFull);
        }
        self.renew(number, sockets.now);
    }

    fn open(&mut self, number: usize, key: Key, ear: &host::Ear, now: Instant) -> io::Result<()> {
        if self.flows.len() >= self.limit
            && let Some(&(_, first)) = self.expiries.first()
        {
            self.forget(first);
        }
        let socket = if key.is_ping { host::ping(key.server) } else { host::udp(key.server) }?;
        ear.add(number, &socket)?;
        let flow = Flow { key, socket, quote: Vec::with_capacity(QUOTE), due: now, answered: false };
        self.flows.insert(number, flow);
        self.by_key.insert(key, number);
        Ok(())
    }

    /// Notes that a flow's socket has something.
    pub(super) fn hear(&mut self, number: usize) {
        if self.flows.contains_key(&number) {
            self.readable.insert(number);
        }
    }

    /// Hands on what sockets have received; what one has beyond its turn is read in the next.
    pub(super) fn read(&mut self, sockets: &mut Sockets<'_, '_>) {
        if self.readable.is_empty() {
            return;
        }
        self.buffer.resize(LONGEST, 0);
        for number in std::mem::take(&mut self.readable) {
            let Some(flow) = self.flows.get_mut(&number) else { continue };
            let (mut heard, mut is_more) = (false, true);
            for _ in 0..TURN {
                match flow.socket.recv(&mut self.buffer) {
                    Ok(length) => {
                        heard = true;
                        answer(flow.key, &self.buffer[..length], sockets);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        is_more = false;
                        break;
                    }
                    Err(error) if is_about_earlier(&error) => refuse(&flow.quote, &error, sockets),
                    Err(_) => {}
                }
            }
            flow.answered |= heard;
            if heard {
                self.renew(number, sockets.now);
            }
            if is_more {
                self.readable.insert(number);
            }
        }
        if !self.readable.is_empty() {
            sockets.wake_at(sockets.now);
        }
    }

    fn renew(&mut self, number: usize, now: Instant) {
        let Some(flow) = self.flows.get_mut(&number) else { return };
        self.expiries.remove(&(flow.due, number));
        flow.due = now + if flow.answered && !flow.key.is_ping { ANSWERED } else { UNANSWERED };
        self.expiries.insert((flow.due, number));
    }

    /// Returns when [`Flows::expire`] has something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.expiries.first().map(|&(due, _)| due)
    }

    /// Ends flows that have been silent for so long.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(due, number)) = self.expiries.first()
            && due <= now
        {
            self.expiries.pop_first();
            self.forget(number);
        }
    }

    fn forget(&mut self, number: usize) {
        if let Some(flow) = self.flows.remove(&number) {
            self.expiries.remove(&(flow.due, number));
            self.by_key.remove(&flow.key);
            self.readable.remove(&number);
        }
    }
}

/// Returns a packet's flow, and what its socket is to send.
fn read(packet: &[u8]) -> (Key, &[u8]) {
    let ip = Ipv4Packet::new_unchecked(packet);
    let (client, server) = (ip.source(), ip.destination());
    let inside = &packet[ip.header_length()..];
    if ip.protocol() == IpProtocol::Icmp {
        let identifier = IcmpPacket::new_unchecked(inside).identifier();
        let (client, server) = (SocketAddrV4::new(client, identifier), SocketAddrV4::new(server, 0));
        return (Key { is_ping: true, client, server }, inside);
    }
    let datagram = UdpDatagram::new_unchecked(inside);
    let client = SocketAddrV4::new(client, datagram.source_port());
    let server = SocketAddrV4::new(server, datagram.destination_port());
    let length = usize::from(datagram.length()).min(inside.len());
    (Key { is_ping: false, client, server }, &inside[UDP_HEADER_LENGTH.min(length)..length])
}

/// Hands what a flow's socket received to who is to have it.
fn answer(key: Key, bytes: &[u8], sockets: &mut Sockets<'_, '_>) {
    if !key.is_ping {
        // Routers may cut it: whether its sender would let them is not known.
        let options = Options { dont_fragment: false, ..Options::default() };
        sockets.udp_send_from(key.server, key.client, options, bytes);
        return;
    }
    let Ok(icmp) = IcmpPacket::new_checked(bytes) else { return };
    if icmp.icmp_type() == IcmpType::EchoReply && bytes.len() >= HEADER_LENGTH {
        sockets.echo_reply(&Echo {
            source: *key.server.ip(),
            destination: *key.client.ip(),
            identifier: key.client.port(),
            sequence: icmp.sequence(),
            payload: icmp.payload(),
            ttl: ip::DEFAULT_TTL,
            traced: false,
        });
    }
}

/// Says whether an error is what an ICMP message said about a datagram that was sent before.
fn is_about_earlier(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_nanos(1_000_000_000);

    /// A way outside with flows of clients on ports from 1 on, to one server that nobody is asked by.
    fn flows(count: u16, is_ping: bool) -> (Flows, host::Ear) {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(server) = server.local_addr().unwrap() else { unreachable!() };
        let (mut flows, ear) = (Flows { limit: 3, ..Flows::default() }, host::Ear::new().unwrap());
        for port in 1..=count {
            let key = Key { is_ping, client: SocketAddrV4::new([10, 1, 15, 2].into(), port), server };
            let now = NOW + Duration::from_secs(port.into());
            flows.open(port.into(), key, &ear, now).unwrap();
            flows.renew(port.into(), now);
        }
        (flows, ear)
    }

    fn alive(flows: &Flows) -> Vec<usize> {
        assert_eq!((flows.by_key.len(), flows.expiries.len()), (flows.flows.len(), flows.flows.len()));
        flows.flows.keys().copied().collect()
    }

    /// Linux's `nf_conntrack_udp_timeout` and `nf_conntrack_udp_timeout_stream`.
    #[test]
    fn a_flow_ends_30_seconds_after_a_question_and_180_after_an_answer() {
        let (mut flows, _ear) = flows(2, false);
        flows.flows.get_mut(&2).unwrap().answered = true;
        flows.renew(2, NOW + Duration::from_secs(2));
        flows.expire(NOW + Duration::from_secs(30));
        assert_eq!(alive(&flows), [1, 2]);
        flows.expire(NOW + Duration::from_secs(31));
        assert_eq!(alive(&flows), [2]);
        flows.expire(NOW + Duration::from_secs(181));
        assert_eq!(alive(&flows), [2]);
        flows.expire(NOW + Duration::from_secs(182));
        assert_eq!((alive(&flows), flows.next_expiry()), (vec![], None));
    }

    #[test]
    fn the_flow_that_would_end_first_makes_room_for_a_new_one() {
        let (mut flows, ear) = flows(3, false);
        flows.renew(1, NOW + Duration::from_secs(9));
        let key = Key { client: SocketAddrV4::new([10, 1, 15, 2].into(), 4), ..flows.flows[&3].key };
        flows.open(4, key, &ear, NOW).unwrap();
        flows.renew(4, NOW);
        assert_eq!(alive(&flows), [1, 3, 4]);
    }
}
