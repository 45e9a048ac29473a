//! `traceroute`: UDP datagrams with a growing TTL, and which routers say that it ran out.
//!
//! Output follows the Linux program; names are never looked up. Invariant: one hop at a time, all its queries at once.
//! Depends on `sockets`. Read first: RFC 1393 section 2 (the method), traceroute(8).

use super::super::socket::{Event, Failure};
use super::super::sockets::Sockets;
use super::super::udp::{Options, UdpError};
use super::Find;
use super::arguments::Arguments;
use super::console::Console;
use super::statistics::thousandths;
use crate::clock::Instant;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

/// The port of the first query; each query takes the next.
const FIRST_PORT: u16 = 33_434;
/// Octets of a query behind its headers: packets of 60 octets.
const PAYLOAD: [u8; 32] = [0x40; 32];

/// A query of the present hop.
#[derive(Debug)]
struct Query {
    port: u16,
    sent: Instant,
    answer: Option<(Ipv4Addr, Duration, Failure)>,
}

/// A running traceroute.
#[derive(Debug)]
pub(super) struct Traceroute {
    to: Ipv4Addr,
    name: String,
    most_hops: u8,
    queries_per_hop: u8,
    wait: Duration,
    hop: u8,
    local_port: u16,
    next_port: u16,
    queries: Vec<Query>,
    until: Instant,
}

impl Traceroute {
    /// Makes a traceroute of its words.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn new(words: &[String], find: &mut Find<'_>) -> Result<Self, String> {
        let arguments = Arguments::parse(words, "n4", "qmwp")?;
        let [name] = arguments.operands.as_slice() else {
            return Err(String::from("usage: traceroute [-n] [-q QUERIES] [-m HOPS] [-w SECONDS] ADDRESS"));
        };
        let (queries, hops) = (arguments.value('q')?.unwrap_or(3), arguments.value('m')?.unwrap_or(30));
        if !(1..=10).contains(&queries) || hops == 0 {
            return Err(String::from("-q takes 1 to 10, -m at least 1"));
        }
        Ok(Traceroute {
            to: find(name)?,
            name: name.clone(),
            most_hops: hops,
            queries_per_hop: queries,
            wait: arguments.seconds('w')?.unwrap_or(Duration::from_secs(5)),
            hop: 0,
            local_port: 0,
            next_port: arguments.value('p')?.unwrap_or(FIRST_PORT),
            queries: Vec::new(),
            until: Instant::ZERO,
        })
    }

    /// Handles an event.
    pub(super) fn handle(&mut self, event: Event, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        if event == Event::Start {
            let Traceroute { name, to, most_hops, .. } = self;
            console.line(format!("traceroute to {name} ({to}), {most_hops} hops max, 60 byte packets"));
            let Some(port) = sockets.udp_bind_any() else {
                console.line("traceroute: no port left");
                console.exit(1);
                return;
            };
            self.local_port = port;
            self.next_hop(sockets);
        }
        while let Some(error) = sockets.udp_error(self.local_port) {
            self.take(&error, sockets.now);
        }
        while sockets.udp_receive(self.local_port).is_some() {}
        let complete = self.queries.iter().all(|query| query.answer.is_some());
        if complete || self.until <= sockets.now {
            console.line(self.describe_hop());
            if self.is_last() {
                console.exit(0);
                return;
            }
            self.next_hop(sockets);
        }
        sockets.wake_at(self.until);
    }

    fn next_hop(&mut self, sockets: &mut Sockets<'_, '_>) {
        self.hop += 1;
        self.queries.clear();
        self.until = sockets.now + self.wait;
        for _ in 0..self.queries_per_hop {
            let port = self.next_port;
            self.next_port = self.next_port.wrapping_add(1).max(1);
            self.queries.push(Query { port, sent: sockets.now, answer: None });
            let options = Options { ttl: self.hop, ..Options::default() };
            sockets.udp_send(self.local_port, SocketAddrV4::new(self.to, port), options, &PAYLOAD);
        }
    }

    fn take(&mut self, error: &UdpError, now: Instant) {
        let query =
            self.queries.iter_mut().find(|query| query.port == error.to.port() && query.answer.is_none());
        if let Some(query) = query {
            let time = now.saturating_duration_since(query.sent);
            query.answer = Some((error.report.from, time, error.report.failure));
        }
    }

    fn is_last(&self) -> bool {
        let reached =
            self.queries.iter().filter_map(|query| query.answer).any(|(_, _, failure)| match failure {
                Failure::TtlExceeded => false,
                Failure::NetworkUnreachable
                | Failure::HostUnreachable
                | Failure::ProtocolUnreachable
                | Failure::PortUnreachable
                | Failure::FragmentationNeeded(_)
                | Failure::Prohibited
                | Failure::Other(..) => true,
            });
        reached || self.hop >= self.most_hops
    }

    fn describe_hop(&self) -> String {
        let mut line = format!("{:2} ", self.hop);
        let mut shown = None;
        for query in &self.queries {
            let Some((from, time, failure)) = query.answer else {
                line += " *";
                continue;
            };
            if shown != Some(from) {
                line += &format!(" {from}");
                shown = Some(from);
            }
            line += &format!("  {} ms", thousandths(time.as_nanos()));
            line += match failure {
                Failure::TtlExceeded | Failure::PortUnreachable => "",
                Failure::NetworkUnreachable => " !N",
                Failure::HostUnreachable => " !H",
                Failure::ProtocolUnreachable => " !P",
                Failure::FragmentationNeeded(_) => " !F",
                Failure::Prohibited => " !X",
                Failure::Other(..) => " !",
            };
        }
        line
    }
}
