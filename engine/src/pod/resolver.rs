//! Names to addresses: `localhost`, the pod itself, then the cluster's DNS with its search list.
//!
//! Programs, nginx and squid keep one while they wait. Invariants: a name ends in an address or in "no such name" within
//! [`ATTEMPTS`] × [`WAIT`] per candidate. Depends on `dns`, `sockets`. Read first: resolv.conf(5), "search" and "ndots".

use super::config::PodConfig;
use super::dns::{self, Answer};
use super::sockets::Sockets;
use super::udp::Options;
use crate::clock::Instant;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

const DNS_PORT: u16 = 53;
/// Times each candidate is asked for.
const ATTEMPTS: u8 = 2;
/// How long an answer is waited for, as glibc does.
const WAIT: Duration = Duration::from_secs(5);
/// Names with fewer dots are tried with the search list first, as Kubernetes sets it.
const NDOTS: usize = 5;

/// What became of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Resolution {
    /// Its addresses, and the full name that has them.
    Found(String, Vec<Ipv4Addr>),
    /// Nobody knows it.
    NoSuchName,
    /// No server answered, or there is none.
    NoServer,
}

/// A name that is being looked up.
#[derive(Debug)]
pub(super) struct Resolver {
    candidates: VecDeque<String>,
    port: Option<u16>,
    query: Vec<u8>,
    attempts: u8,
    until: Instant,
    answered: bool,
}

/// Returns the address of a name that needs no DNS.
pub(super) fn well_known(name: &str, pod: &PodConfig) -> Option<Ipv4Addr> {
    if name == "localhost" {
        return Some(Ipv4Addr::LOCALHOST);
    }
    if name == pod.name {
        return Some(pod.address);
    }
    let host = pod.hosts.iter().find(|(host, _)| host == name).map(|&(_, address)| address);
    host.or_else(|| name.parse().ok())
}

impl Resolver {
    /// Begins to look a name up; [`Resolver::poll`] goes on.
    pub(super) fn new(name: &str, pod: &PodConfig) -> Self {
        let mut candidates = VecDeque::new();
        let searched = pod.search.iter().map(|suffix| format!("{name}.{suffix}"));
        if name.ends_with('.') {
            candidates.push_back(name.to_owned());
        } else if name.matches('.').count() >= NDOTS {
            candidates.push_back(name.to_owned());
            candidates.extend(searched);
        } else {
            candidates.extend(searched);
            candidates.push_back(name.to_owned());
        }
        let until = Instant::ZERO;
        Resolver { candidates, port: None, query: Vec::new(), attempts: 0, until, answered: false }
    }

    /// Goes on; asks for a timer while the name is open.
    pub(super) fn poll(&mut self, sockets: &mut Sockets<'_, '_>) -> Option<Resolution> {
        let Some(server) = sockets.pod.nameserver else { return Some(Resolution::NoServer) };
        let server = SocketAddrV4::new(server, DNS_PORT);
        let Some(port) = self.port.or_else(|| sockets.udp_bind_any()) else {
            return Some(Resolution::NoServer);
        };
        self.port = Some(port);
        let result = self.step(port, server, sockets);
        if result.is_some() {
            sockets.udp_close(port);
        }
        result
    }

    /// Gives up.
    pub(super) fn abandon(self, sockets: &mut Sockets<'_, '_>) {
        if let Some(port) = self.port {
            sockets.udp_close(port);
        }
    }

    fn step(&mut self, port: u16, server: SocketAddrV4, sockets: &mut Sockets<'_, '_>) -> Option<Resolution> {
        loop {
            if self.query.is_empty() {
                let Some(name) = self.candidates.front() else {
                    return Some(if self.answered { Resolution::NoSuchName } else { Resolution::NoServer });
                };
                match dns::query(sockets.random_u16(), name) {
                    Some(query) => self.query = query,
                    None => return Some(Resolution::NoSuchName),
                }
                self.attempts = 0;
                self.send(port, server, sockets);
            }
            if sockets.udp_error(port).is_some() {
                return Some(Resolution::NoServer);
            }
            match self.receive(port, server, sockets) {
                Some(Answer::Addresses(addresses)) if !addresses.is_empty() => {
                    let name = self.candidates.pop_front().unwrap_or_default();
                    return Some(Resolution::Found(name, addresses));
                }
                Some(answer) => {
                    self.answered |= answer != Answer::ServerFailure;
                    self.candidates.pop_front();
                    self.query.clear();
                }
                None if sockets.now < self.until => {
                    sockets.wake_at(self.until);
                    return None;
                }
                None if self.attempts < ATTEMPTS => self.send(port, server, sockets),
                None => return Some(Resolution::NoServer),
            }
        }
    }

    fn send(&mut self, port: u16, server: SocketAddrV4, sockets: &mut Sockets<'_, '_>) {
        self.attempts += 1;
        self.until = sockets.now + WAIT;
        sockets.udp_send(port, server, Options::default(), &self.query);
    }

    fn receive(&self, port: u16, server: SocketAddrV4, sockets: &mut Sockets<'_, '_>) -> Option<Answer> {
        while let Some(datagram) = sockets.udp_receive(port) {
            if datagram.from == server
                && let Some(answer) = dns::answer(&self.query, &datagram.payload)
            {
                return Some(answer);
            }
        }
        None
    }
}
