//! Relays: what a pod's stack carries goes on at sockets of the host's, without a privilege.
//!
//! Two ways. In: a connection that a program of the host's made to us becomes one of the pod's (`flatnet up --publish`, `--socks`). Out, at
//! the machine that is a network's way outside: a connection, datagram or echo request of a simulated machine to somebody elsewhere becomes
//! one of this process's. The pod hands over events, as to any application; the worker tells when sockets have something.
//!
//! Invariants: no call waits; what waits between both sides waits in their sockets' own buffers, of which there are at most
//! [`STREAM_LIMIT`] and [`flows::LIMIT`]; a peer in the pods' network hears of success only when there is one.
//! Depends on `sockets`, mio, rustix. Read first: `docs/adr/0030-the-host-by-ordinary-sockets.md`.

mod flows;
mod host;
mod stream;

pub use stream::Answer;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::io::Errno;

use super::drops::PodDrop;
use super::socket::{Event, Owner, SocketError, TcpId};
use super::sockets::Sockets;
use super::tcp::{self, Tuple, half_open};
use super::{Pod, PodState};
use crate::clock::Instant;
use crate::wire::icmpv4::code;
use crate::wire::{IpProtocol, Ipv4Packet, TcpSegment};
use flows::Flows;
use host::{Ear, Heard};
use stream::{Phase, Stream};

/// Connections that are relayed at once.
pub const STREAM_LIMIT: usize = 1024;
/// How long the pod's side may take to confirm that its connection is made: as long as it is told again.
const CONFIRMATION: Duration = half_open::LIFETIME;

/// A connection of the host's that is to go on in the pod.
#[derive(Debug)]
struct Order {
    socket: TcpStream,
    to: SocketAddrV4,
    answer: Answer,
}

/// A pod's relays.
#[derive(Debug)]
pub(super) struct Relays {
    ear: Ear,
    orders: VecDeque<Order>,
    streams: BTreeMap<usize, Stream>,
    by_tcp: BTreeMap<TcpId, usize>,
    by_tuple: BTreeMap<Tuple, usize>,
    /// When those that were answered must have confirmed.
    admitted: VecDeque<(Instant, usize)>,
    flows: Flows,
    next_number: usize,
}

impl Relays {
    fn new() -> io::Result<Self> {
        Ok(Self {
            ear: Ear::new()?,
            orders: VecDeque::new(),
            streams: BTreeMap::new(),
            by_tcp: BTreeMap::new(),
            by_tuple: BTreeMap::new(),
            admitted: VecDeque::new(),
            flows: Flows::default(),
            next_number: 0,
        })
    }

    /// Handles an event.
    pub(super) fn handle(&mut self, event: Event, sockets: &mut Sockets<'_, '_>) {
        match event {
            Event::Tcp(id) => self.go_on(id, sockets),
            Event::Input => {
                while let Some(order) = self.orders.pop_front() {
                    self.begin(order, sockets);
                }
                while let Some(packet) = sockets.take_foreign() {
                    self.take_foreign(packet, sockets);
                }
                self.hear(sockets);
            }
            Event::Timer => {
                self.expire(sockets);
                self.hear(sockets);
            }
            Event::Start | Event::Udp(_) | Event::Echo => {}
        }
        let admitted = self.admitted.front().map(|&(until, _)| until);
        for next in [admitted, self.flows.next_expiry()].into_iter().flatten() {
            sockets.wake_at(next);
        }
    }

    /// Ends all of them: what is open is reset.
    pub(super) fn close(&mut self) {
        self.streams.values().for_each(|stream| host::reset_on_close(&stream.socket));
        self.orders.iter().for_each(|order| host::reset_on_close(&order.socket));
        self.orders.clear();
        self.streams.clear();
        self.by_tcp.clear();
        self.by_tuple.clear();
        self.admitted.clear();
        self.flows = Flows::default();
    }

    fn number(&mut self) -> usize {
        self.next_number += 1;
        self.next_number
    }

    /// Asks the pod's network for the connection that somebody on the host wants.
    fn begin(&mut self, order: Order, sockets: &mut Sockets<'_, '_>) {
        let Order { socket, to, answer } = order;
        let number = self.number();
        let is_room = self.streams.len() < STREAM_LIMIT && self.ear.add(number, &socket).is_ok();
        let asked = is_room.then(|| sockets.tcp_connect(to, false));
        match asked {
            Some(Ok(id)) => {
                self.by_tcp.insert(id, number);
                self.streams.insert(number, Stream::new(socket, Phase::Asking(id, answer), None));
            }
            Some(Err(error)) => stream::refuse(&socket, &answer(Err(error))),
            None => {
                sockets.count_drop(PodDrop::HostSocketsFull);
                stream::refuse(&socket, &answer(Err(SocketError::NoPortLeft)));
            }
        }
    }

    /// Looks after a connection of the pod's that something happened to.
    fn go_on(&mut self, id: TcpId, sockets: &mut Sockets<'_, '_>) {
        let number = self.by_tcp.get(&id).copied().or_else(|| {
            let number = *self.by_tuple.get(&sockets.tcp_tuple(id)?)?;
            let stream = self.streams.get_mut(&number)?;
            if !matches!(stream.phase, Phase::Admitted) {
                return None;
            }
            stream.phase = Phase::Open(id);
            self.by_tcp.insert(id, number);
            Some(number)
        });
        match number {
            Some(number) => self.work(number, sockets),
            None => sockets.tcp_abort(id),
        }
    }

    /// Looks after what sockets of the host's have; what is not told at once waits for the next turn.
    fn hear(&mut self, sockets: &mut Sockets<'_, '_>) {
        let all = self.ear.hear();
        if all.len() == host::EVENTS {
            sockets.wake_at(sockets.now);
        }
        for heard in all {
            let Heard { number, .. } = heard;
            match self.streams.get_mut(&number) {
                Some(stream) => {
                    stream.hear(heard);
                    self.work(number, sockets);
                }
                None => self.flows.hear(number),
            }
        }
        self.flows.read(sockets);
    }

    /// Does for a connection what can be done.
    fn work(&mut self, number: usize, sockets: &mut Sockets<'_, '_>) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let goes_on = match &stream.phase {
            &Phase::Asking(id, answer) => stream.open(id, answer, sockets),
            &Phase::Open(id) => stream.pump(id, sockets),
            Phase::Admitted => true,
            Phase::Asked(syn) => match stream.connected() {
                None => true,
                Some(Ok(())) => {
                    let answered = sockets.tcp_admit(syn);
                    stream.phase = Phase::Admitted;
                    self.admitted.push_back((sockets.now + CONFIRMATION, number));
                    answered
                }
                Some(Err(error)) => {
                    refuse(syn, &error, sockets);
                    false
                }
            },
        };
        if !goes_on {
            self.forget(number);
        }
    }

    /// Takes a request of the pods' network to somebody elsewhere.
    fn take_foreign(&mut self, packet: Vec<u8>, sockets: &mut Sockets<'_, '_>) {
        let ip = Ipv4Packet::new_unchecked(&packet[..]);
        if !is_forwarded(ip.destination()) {
            return sockets.count_drop(PodDrop::NotForwarded);
        }
        if ip.protocol() == IpProtocol::Tcp {
            return self.connect(packet, sockets);
        }
        let number = self.number();
        self.flows.send(number, &packet, &self.ear, sockets);
    }

    /// Asks the host for the connection that somebody in the pods' network wants.
    fn connect(&mut self, syn: Vec<u8>, sockets: &mut Sockets<'_, '_>) {
        let ip = Ipv4Packet::new_unchecked(&syn[..]);
        let tuple = tcp::tuple(&ip, &TcpSegment::new_unchecked(ip.payload()));
        if let Some(&number) = self.by_tuple.get(&tuple) {
            match self.streams.get(&number).map(|stream| &stream.phase) {
                Some(Phase::Asked(_)) => return,
                // Its peer has begun anew.
                Some(&(Phase::Open(id) | Phase::Asking(id, _))) => sockets.tcp_abort(id),
                Some(Phase::Admitted) | None => {}
            }
            self.forget(number);
        }
        let number = self.number();
        let socket = if self.streams.len() < STREAM_LIMIT {
            host::connect(tuple.local).and_then(|socket| self.ear.add(number, &socket).map(|()| socket))
        } else {
            Err(Errno::MFILE.into())
        };
        match socket {
            Ok(socket) => {
                self.by_tuple.insert(tuple, number);
                self.streams.insert(number, Stream::new(socket, Phase::Asked(syn), Some(tuple)));
            }
            Err(error) => refuse(&syn, &error, sockets),
        }
    }

    /// Ends what has had its time.
    fn expire(&mut self, sockets: &mut Sockets<'_, '_>) {
        while let Some(&(until, number)) = self.admitted.front()
            && until <= sockets.now
        {
            self.admitted.pop_front();
            if matches!(self.streams.get(&number).map(|stream| &stream.phase), Some(Phase::Admitted)) {
                self.forget(number);
            }
        }
        self.flows.expire(sockets.now);
    }

    fn forget(&mut self, number: usize) {
        let Some(stream) = self.streams.remove(&number) else { return };
        if let Phase::Asking(id, _) | Phase::Open(id) = stream.phase {
            self.by_tcp.remove(&id);
        }
        // A successor may have its place.
        if let Some(tuple) = stream.tuple.filter(|tuple| self.by_tuple.get(tuple) == Some(&number)) {
            self.by_tuple.remove(&tuple);
        }
    }
}

impl AsFd for Relays {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ear.as_fd()
    }
}

impl Pod {
    /// Lets the pod use sockets of the host's; returns the file that has something to read when one of them has something.
    ///
    /// # Errors
    /// The system's, when it gives no more files.
    pub fn open_relays(&mut self) -> io::Result<BorrowedFd<'_>> {
        let relays = match self.relays.take() {
            Some(relays) => relays,
            None => Box::new(Relays::new()?),
        };
        let relays: &Relays = self.relays.insert(relays);
        Ok(relays.as_fd())
    }

    /// Makes the pod the way outside of its network: what comes for others it takes, and relays.
    pub fn forward_outside(&mut self) {
        self.stack.foreign.get_or_insert_default();
    }

    /// Returns that file, if there is one.
    #[must_use]
    pub fn relays(&self) -> Option<BorrowedFd<'_>> {
        self.relays.as_ref().map(|relays| relays.as_fd())
    }

    /// Looks after the host's sockets with the next [`Pod::poll`]: one of them has something.
    pub fn hear_host(&mut self) {
        if self.relays.is_some() {
            self.stack.events.push_back((Owner::Relays, Event::Input));
        }
    }

    /// Connects somebody on the host, who was accepted by a socket that does not wait, to an endpoint of the pod's network. Without
    /// relays, or when the pod is dead, the connection is reset.
    pub fn relay(&mut self, socket: TcpStream, to: SocketAddrV4, answer: Answer) {
        match &mut self.relays {
            Some(relays) if self.state == PodState::Running => {
                relays.orders.push_back(Order { socket, to, answer });
                self.stack.events.push_back((Owner::Relays, Event::Input));
            }
            Some(_) | None => host::reset_on_close(&socket),
        }
    }
}

/// Says whether a router forwards to an address: not to this network's own machines, link-local ones, groups, and addresses without hosts
/// (RFC 1812, 5.3.7; RFC 3927, 7). The host's loopback is among what a stack takes from nobody.
fn is_forwarded(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    first != 0 && first < 224 && !address.is_loopback() && !address.is_link_local()
}

/// Tells who sent a SYN, or another request, why there is no way.
fn refuse(request: &[u8], error: &io::Error, sockets: &mut Sockets<'_, '_>) {
    let is_tcp = Ipv4Packet::new_unchecked(request).protocol() == IpProtocol::Tcp;
    let code = match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED | Errno::CONNRESET) if is_tcp => return sockets.tcp_refuse(request),
        Some(Errno::CONNREFUSED) => code::PORT_UNREACHABLE,
        Some(Errno::NETUNREACH) => code::NETWORK_UNREACHABLE,
        Some(Errno::HOSTUNREACH | Errno::TIMEDOUT) => code::HOST_UNREACHABLE,
        Some(Errno::ACCESS | Errno::PERM) => code::ADMINISTRATIVELY_PROHIBITED,
        // What the system has no room for is asked again.
        Some(_) | None => return sockets.count_drop(PodDrop::HostSocketsFull),
    };
    sockets.send_unreachable(code, request);
}

#[cfg(test)]
mod tests;
