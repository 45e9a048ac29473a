//! `iperf`: how much goes through, by TCP or UDP.
//!
//! `-s` is the sink, `-c` sends for `-t` seconds or `-n` octets. The client works against `echo`, too: what comes back is thrown away.
//! Invariant: rates are octets that arrived (TCP: were acknowledged) over the time they took. Depends on `sockets`.
//! Read first: iperf(1), version 2.

use super::super::socket::{Event, Received, TcpId};
use super::super::sockets::Sockets;
use super::super::udp::Options;
use super::Find;
use super::arguments::Arguments;
use super::console::Console;
use crate::clock::Instant;
use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::Duration;

const PORT: u16 = 5001;
/// Octets of one write.
const CHUNK: usize = 32 * 1024;
/// What is written.
static PAYLOAD: [u8; CHUNK] = [0x55; CHUNK];
/// Datagrams sent in one turn.
const DATAGRAMS_AT_ONCE: usize = 64;
/// The highest rate that can be asked for, bits a second.
const MOST_RATE: f64 = 1e12;
/// Octets of one datagram, as iperf has it.
const DATAGRAM: usize = 1470;
/// Octets per second that a client never exceeds by TCP (40 Gbit/s): on links without delay, virtual time would stand
/// still while data flows.
const CEILING: f64 = 5e9;
/// Octets that may go at once below the ceiling.
const BURST: u64 = 256 * 1024;
/// Bits per second of UDP, unless given.
const UDP_RATE: f64 = 1_048_576.0;

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    since: Instant,
    octets: u64,
}

#[derive(Debug)]
enum Role {
    Server { streams: BTreeMap<TcpId, Count>, datagrams: BTreeMap<SocketAddrV4, Count> },
    Client { to: SocketAddrV4, limit: Limit, connection: Option<TcpId>, sent: u64, rate: f64, ended: bool },
}

#[derive(Debug, Clone, Copy)]
enum Limit {
    Time(Duration),
    Octets(u64),
}

/// A running iperf.
#[derive(Debug)]
pub(super) struct Iperf {
    role: Role,
    udp: bool,
    port: u16,
    local_port: u16,
    started: Instant,
}

impl Iperf {
    /// Makes an iperf of its words.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn new(words: &[String], find: &mut Find<'_>) -> Result<Self, String> {
        let arguments = Arguments::parse(words, "su", "cptnb")?;
        let port = arguments.value('p')?.unwrap_or(PORT);
        let to: Option<String> = arguments.value('c')?;
        let role = match (arguments.has('s'), to) {
            (true, None) => Role::Server { streams: BTreeMap::new(), datagrams: BTreeMap::new() },
            (false, Some(to)) => {
                let limit = match arguments.value::<String>('n')? {
                    Some(text) => Limit::Octets(scaled(&text)? as u64),
                    None => Limit::Time(arguments.seconds('t')?.unwrap_or(Duration::from_secs(10))),
                };
                let rate = arguments.value::<String>('b')?.map_or(Ok(UDP_RATE), |text| scaled(&text))?;
                if !(1.0..=MOST_RATE).contains(&rate) {
                    return Err(format!("-b {rate}: from 1 bit to 1 terabit a second"));
                }
                let to = SocketAddrV4::new(find(&to)?, port);
                Role::Client { to, limit, connection: None, sent: 0, rate, ended: false }
            }
            (true | false, _) => {
                return Err(String::from(
                    "usage: iperf -s [-u] [-p PORT] | iperf -c ADDRESS [-u] [-p PORT] [-t SECONDS] [-n OCTETS] [-b RATE]",
                ));
            }
        };
        Ok(Iperf { role, udp: arguments.has('u'), port, local_port: 0, started: Instant::ZERO })
    }

    /// Handles an event.
    pub(super) fn handle(&mut self, event: Event, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        if event == Event::Start {
            self.begin(console, sockets);
        }
        if console.exit_code().is_some() {
            return;
        }
        let Iperf { role, udp, started, local_port, port } = self;
        match role {
            Role::Server { streams, datagrams } => match event {
                Event::Tcp(id) => serve(id, streams, console, sockets),
                Event::Udp(_) => serve_datagrams(*port, datagrams, console, sockets),
                Event::Start | Event::Timer | Event::Input | Event::Echo => {}
            },
            Role::Client { to, limit, sent, rate, ended, .. } if *udp => {
                if !*ended {
                    *ended = send_datagrams(*local_port, *to, *limit, *rate, *started, sent, sockets);
                }
                while sockets.udp_receive(*local_port).is_some() {}
                if *ended {
                    report(*sent, *started, sockets.now, console);
                    console.exit(0);
                }
            }
            Role::Client { limit, connection, sent, ended, .. } => {
                let Some(id) = *connection else { return };
                if let Some(error) = sockets.tcp_error(id) {
                    console.line(format!("iperf: {}", error.text()));
                    console.exit(1);
                    return;
                }
                if send(id, *limit, *started, sent, ended, sockets) {
                    report(*sent, *started, sockets.now, console);
                    sockets.tcp_close(id);
                    console.exit(0);
                }
            }
        }
    }

    fn begin(&mut self, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        self.started = sockets.now;
        let ready = match &mut self.role {
            Role::Server { .. } if self.udp => sockets.udp_bind(self.port).is_ok(),
            Role::Server { .. } => sockets.tcp_listen(self.port).is_ok(),
            Role::Client { .. } if self.udp => {
                self.local_port = sockets.udp_bind_any().unwrap_or(0);
                self.local_port != 0
            }
            Role::Client { to, connection, .. } => {
                *connection = sockets.tcp_connect(*to, false).ok();
                connection.is_some()
            }
        };
        if !ready {
            console.line("iperf: Address already in use");
            console.exit(1);
        }
    }
}

/// Sends what finds room; true when all was sent and acknowledged.
fn send(
    id: TcpId,
    limit: Limit,
    started: Instant,
    sent: &mut u64,
    ended: &mut bool,
    sockets: &mut Sockets<'_, '_>,
) -> bool {
    while let Received::Data(_) = sockets.tcp_read(id, <[u8]>::len) {}
    if !sockets.tcp_is_open(id) {
        return *ended;
    }
    if let Limit::Time(time) = limit {
        *ended |= sockets.now.saturating_duration_since(started) >= time;
        if !*ended {
            sockets.wake_at(started + time);
        }
    }
    let elapsed = sockets.now.saturating_duration_since(started);
    let allowed = (elapsed.as_secs_f64() * CEILING) as u64 + BURST;
    while !*ended {
        if *sent >= allowed {
            sockets.wake_after(Duration::from_micros(20));
            break;
        }
        let left = match limit {
            Limit::Time(_) => CHUNK,
            Limit::Octets(octets) => usize::try_from(octets - *sent).unwrap_or(CHUNK).min(CHUNK),
        };
        let count = sockets.tcp_write(id, &PAYLOAD[..left]);
        *sent += count as u64;
        *ended = matches!(limit, Limit::Octets(octets) if *sent >= octets);
        if count == 0 {
            break;
        }
    }
    *ended && sockets.tcp_unacknowledged(id) == 0
}

/// Sends datagrams that are due, not too many at once; true when all are sent.
fn send_datagrams(
    port: u16,
    to: SocketAddrV4,
    limit: Limit,
    rate: f64,
    started: Instant,
    sent: &mut u64,
    sockets: &mut Sockets<'_, '_>,
) -> bool {
    let elapsed = sockets.now.saturating_duration_since(started);
    let target = match limit {
        Limit::Time(time) => elapsed.min(time).as_secs_f64() * rate / 8.0,
        Limit::Octets(octets) => (elapsed.as_secs_f64() * rate / 8.0).min(octets as f64),
    };
    // However much is asked for: others want their turn, and what is left is due at once.
    for _ in 0..DATAGRAMS_AT_ONCE {
        if *sent as f64 >= target {
            break;
        }
        sockets.udp_send(port, to, Options::default(), &[0x55; DATAGRAM]);
        *sent += DATAGRAM as u64;
    }
    let done = match limit {
        Limit::Time(time) => elapsed >= time,
        Limit::Octets(octets) => *sent >= octets,
    };
    if !done {
        let gap = Duration::from_secs_f64(DATAGRAM as f64 * 8.0 / rate);
        sockets.wake_after(gap.max(Duration::from_micros(1)));
    }
    done
}

fn serve(
    id: TcpId,
    streams: &mut BTreeMap<TcpId, Count>,
    console: &mut Console,
    sockets: &mut Sockets<'_, '_>,
) {
    let count = streams.entry(id).or_insert(Count { since: sockets.now, octets: 0 });
    loop {
        match sockets.tcp_read(id, <[u8]>::len) {
            Received::Data(octets) => count.octets += octets as u64,
            Received::Pending => return,
            Received::End | Received::Failed(_) => break,
        }
    }
    report(count.octets, count.since, sockets.now, console);
    streams.remove(&id);
    sockets.tcp_close(id);
}

fn serve_datagrams(
    port: u16,
    datagrams: &mut BTreeMap<SocketAddrV4, Count>,
    console: &mut Console,
    sockets: &mut Sockets<'_, '_>,
) {
    /// Senders whose rates are kept.
    const SENDERS: usize = 1024;
    while let Some(datagram) = sockets.udp_receive(port) {
        if datagrams.len() >= SENDERS && !datagrams.contains_key(&datagram.from) {
            continue;
        }
        let count = datagrams.entry(datagram.from).or_insert(Count { since: sockets.now, octets: 0 });
        count.octets += datagram.payload.len() as u64;
        if sockets.now.saturating_duration_since(count.since) >= Duration::from_secs(1) {
            report(count.octets, count.since, sockets.now, console);
            *count = Count { since: sockets.now, octets: 0 };
        }
    }
}

fn report(octets: u64, since: Instant, now: Instant, console: &mut Console) {
    let seconds = now.saturating_duration_since(since).as_secs_f64();
    let rate = octets as f64 * 8.0 / seconds.max(1e-9);
    console.line(format!(
        "[  1] 0.0-{seconds:.1} sec  {}Bytes  {}bits/sec",
        with_unit(octets as f64, 1024.0),
        with_unit(rate, 1000.0)
    ));
}

fn with_unit(value: f64, base: f64) -> String {
    let mut value = value;
    for unit in ["", "K", "M", "G"] {
        if value < base || unit == "G" {
            return format!("{value:.2} {unit}");
        }
        value /= base;
    }
    String::new()
}

/// Reads a number with K, M or G behind it.
fn scaled(text: &str) -> Result<f64, String> {
    let (number, factor) = match text.chars().last() {
        Some('k' | 'K') => (&text[..text.len() - 1], 1024.0),
        Some('m' | 'M') => (&text[..text.len() - 1], 1024.0 * 1024.0),
        Some('g' | 'G') => (&text[..text.len() - 1], 1024.0 * 1024.0 * 1024.0),
        Some(_) | None => (text, 1.0),
    };
    let number: f64 = number.parse().map_err(|_| format!("invalid number {text:?}"))?;
    if number.is_finite() && number >= 0.0 {
        Ok(number * factor)
    } else {
        Err(format!("invalid number {text:?}"))
    }
}
