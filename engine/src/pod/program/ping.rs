//! `ping`: echo requests, one after the other, and what came back.
//!
//! Output and exit codes follow iputils: 0 with an answer, 1 without any, 2 when called wrongly.
//! Invariant: one request an interval; after the last it waits as long as iputils does. Depends on `sockets`.
//! Read first: RFC 792, ping(8).

use super::super::icmp::Message;
use super::super::socket::{Event, Failure, Report};
use super::super::sockets::Sockets;
use super::Find;
use super::arguments::Arguments;
use super::console::Console;
use super::statistics::{RoundTrips, short};
use crate::clock::Instant;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

/// The longest payload: 65,535 less both headers.
const MAXIMUM_SIZE: usize = 65_507;
/// How long the last request is waited for when nothing ever came back.
const LINGER: Duration = Duration::from_secs(10);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(2);
/// Requests whose answers are remembered.
const OUTSTANDING_LIMIT: usize = 65_536;

/// A running ping.
#[derive(Debug)]
pub(super) struct Ping {
    to: Ipv4Addr,
    name: String,
    count: Option<u32>,
    interval: Duration,
    linger: Duration,
    size: usize,
    quiet: bool,
    identifier: u16,
    started: Instant,
    last_sent: Instant,
    next: Option<Instant>,
    until: Option<Instant>,
    sent: u32,
    received: u32,
    errors: u32,
    duplicates: u32,
    outstanding: BTreeMap<u16, (Instant, bool)>,
    trips: RoundTrips,
}

impl Ping {
    /// Makes a ping of its words.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn new(words: &[String], find: &mut Find<'_>) -> Result<Self, String> {
        let arguments = Arguments::parse(words, "nqv4", "cisWw")?;
        let [name] = arguments.operands.as_slice() else {
            return Err(String::from(
                "usage: ping [-c COUNT] [-i SECONDS] [-s OCTETS] [-W SECONDS] [-q] ADDRESS",
            ));
        };
        let size = arguments.value('s')?.unwrap_or(56);
        if size > MAXIMUM_SIZE {
            return Err(format!("invalid argument: '{size}': out of range: 0 <= value <= {MAXIMUM_SIZE}"));
        }
        let count = arguments.value('c')?;
        if count == Some(0) {
            return Err(format!("invalid argument: '0': out of range: 1 <= value <= {}", u32::MAX));
        }
        Ok(Ping {
            to: find(name)?,
            name: name.clone(),
            count,
            interval: arguments.seconds('i')?.unwrap_or(Duration::from_secs(1)).max(SHORTEST_INTERVAL),
            linger: arguments.seconds('W')?.unwrap_or(LINGER),
            size,
            quiet: arguments.has('q'),
            identifier: 0,
            started: Instant::ZERO,
            last_sent: Instant::ZERO,
            next: None,
            until: None,
            sent: 0,
            received: 0,
            errors: 0,
            duplicates: 0,
            outstanding: BTreeMap::new(),
            trips: RoundTrips::default(),
        })
    }

    /// Handles an event.
    pub(super) fn handle(&mut self, event: Event, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        if event == Event::Start {
            self.begin(console, sockets);
        }
        while let Some(message) = sockets.echo_receive(self.identifier) {
            self.take(&message, console, sockets.now);
        }
        let answered = self.received + self.errors;
        if self.count.is_some_and(|count| answered >= count)
            || self.until.is_some_and(|until| until <= sockets.now)
        {
            self.finish(console, sockets.now);
            return;
        }
        if self.next.is_some_and(|next| next <= sockets.now) {
            self.send(sockets);
        }
        if let Some(wake) = self.next.or(self.until) {
            sockets.wake_at(wake);
        }
    }

    fn begin(&mut self, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        let Some(identifier) = sockets.echo_open() else {
            console.line("ping: no identifier left");
            console.exit(2);
            return;
        };
        self.identifier = identifier;
        self.started = sockets.now;
        self.next = Some(sockets.now);
        let Ping { name, to, size, .. } = self;
        console.line(format!("PING {name} ({to}) {size}({}) bytes of data.", *size + 28));
    }

    fn send(&mut self, sockets: &mut Sockets<'_, '_>) {
        self.sent += 1;
        let sequence = self.sent as u16;
        let payload: Vec<u8> = (0..self.size).map(|index| index as u8).collect();
        sockets.echo_send(self.identifier, sequence, self.to, false, &payload);
        self.outstanding.insert(sequence, (sockets.now, false));
        if self.outstanding.len() >= OUTSTANDING_LIMIT {
            self.outstanding.pop_first();
        }
        self.last_sent = sockets.now;
        if self.count.is_some_and(|count| self.sent >= count) {
            self.next = None;
            // As iputils: twice the longest round trip, but a second at least, when anything answers at all.
            let linger = self.trips.most().map_or(self.linger, |most| (most * 2).max(Duration::from_secs(1)));
            self.until = Some(sockets.now + linger);
        } else {
            self.next = Some(sockets.now + self.interval);
        }
    }

    fn take(&mut self, message: &Message, console: &mut Console, now: Instant) {
        match message {
            Message::Reply { from, ttl, sequence, payload } => {
                let Some((sent, answered)) = self.outstanding.get_mut(sequence) else { return };
                let duplicate = std::mem::replace(answered, true);
                let time = now.saturating_duration_since(*sent);
                let note = if duplicate {
                    self.duplicates += 1;
                    " (DUP!)"
                } else {
                    self.received += 1;
                    self.trips.add(time);
                    ""
                };
                if !self.quiet {
                    let octets = payload.len() + 8;
                    let time = short(time);
                    console.line(format!(
                        "{octets} bytes from {from}: icmp_seq={sequence} ttl={ttl} time={time} ms{note}"
                    ));
                }
            }
            Message::Failed { report, sequence } => {
                let counted = match report.failure {
                    Failure::FragmentationNeeded(_) => false,
                    Failure::NetworkUnreachable
                    | Failure::HostUnreachable
                    | Failure::ProtocolUnreachable
                    | Failure::PortUnreachable
                    | Failure::Prohibited
                    | Failure::TtlExceeded
                    | Failure::Other(..) => true,
                };
                self.errors += u32::from(counted);
                if !self.quiet {
                    console.line(format!("From {} icmp_seq={sequence} {}", report.from, describe(report)));
                }
            }
        }
    }

    /// Says what was found and ends.
    pub(super) fn finish(&mut self, console: &mut Console, now: Instant) {
        let Ping { name, sent, received, errors, duplicates, .. } = self;
        console.line(format!("\n--- {name} ping statistics ---"));
        let mut line = format!("{sent} packets transmitted, {received} received");
        if *duplicates > 0 {
            line += &format!(", +{duplicates} duplicates");
        }
        if *errors > 0 {
            line += &format!(", +{errors} errors");
        }
        let lost = u64::from(sent.saturating_sub(*received)) * 100 / u64::from((*sent).max(1));
        let end = if self.count.is_some() { self.last_sent } else { now };
        let time = end.saturating_duration_since(self.started).as_millis();
        console.line(format!("{line}, {lost}% packet loss, time {time}ms"));
        if let Some(summary) = self.trips.summary() {
            console.line(format!("rtt min/avg/max/mdev = {summary} ms"));
        }
        console.exit(i32::from(*received == 0));
    }
}

fn describe(report: &Report) -> String {
    match report.failure {
        Failure::NetworkUnreachable => String::from("Destination Net Unreachable"),
        Failure::HostUnreachable => String::from("Destination Host Unreachable"),
        Failure::ProtocolUnreachable => String::from("Destination Protocol Unreachable"),
        Failure::PortUnreachable => String::from("Destination Port Unreachable"),
        Failure::FragmentationNeeded(mtu) => format!("Frag needed and DF set (mtu = {mtu})"),
        Failure::Prohibited => String::from("Packet filtered"),
        Failure::TtlExceeded => String::from("Time to live exceeded"),
        Failure::Other(kind, code) => format!("ICMP type {kind} code {code}"),
    }
}
