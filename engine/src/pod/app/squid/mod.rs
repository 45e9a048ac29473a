//! squid: a caching forward proxy for HTTP, and tunnels for everything else.
//!
//! A client's connection (`Client`) has one request at a time (`Exchange`), which is refused, answered from the cache, or passed to its
//! origin on a connection of its own. `--ssl-ports PORT,…` says where tunnels may go (443), `--cache-mem MB` how much is kept (256);
//! what else squid takes changes nothing here. Invariants: an exchange's server connection, look-up and deadline end with it; what a
//! slow client has not taken is bounded by [`BACKLOG`] and one cached object. Files: `message` (heads), `body` (framing), `target` (URIs),
//! `policy` (RFC 9111's rules), `store` (what is kept), `report` (errors and log), `exchange` (one request's way), `answer`
//! (heads), `passage` (bodies), `tunnel`.
//! Depends on `session`, `resolver`, `program::Console`. Read first: RFC 9110 section 7.6, RFC 9111, ADR 20.

mod answer;
mod body;
mod exchange;
mod message;
mod passage;
mod policy;
mod report;
mod store;
mod target;
mod tunnel;

use super::super::program::Console;
use super::super::socket::{Event, TcpId};
use super::super::sockets::Sockets;
use super::connection;
use super::session::Session;
use crate::clock::Instant;
use body::{Body, Framing};
use exchange::Exchange;
use message::{Fields, Parsed, Request};
use report::{Entry, Problem};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;
use store::Store;
use target::Target;

/// Octets that wait for a slow receiver before its sender has to wait, too.
const BACKLOG: usize = 64 * 1024;
/// How long a client may be silent between requests, squid's `client_idle_pconn_timeout`.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Octets that are kept, squid's `cache_mem`.
const CACHE_MEM: usize = 256 << 20;
/// Ports where requests may go, squid's `Safe_ports`; all from 1025 on are, too.
const SAFE_PORTS: [u16; 9] = [21, 70, 80, 210, 280, 443, 488, 591, 777];

/// A client's connection.
#[derive(Debug)]
struct Client {
    session: Session,
    address: Ipv4Addr,
    exchange: Option<Exchange>,
    /// When it is given up: by itself, or because of its exchange's server.
    until: Instant,
}

/// The application.
#[derive(Debug)]
pub(in super::super) struct Squid {
    /// Ports where tunnels may go.
    ssl_ports: Vec<u16>,
    cache: Store,
    log: Console,
    clients: BTreeMap<TcpId, Client>,
    /// The client of each server's connection.
    servers: BTreeMap<TcpId, TcpId>,
    /// Clients whose server is being looked up; they go on with every event.
    lookups: BTreeSet<TcpId>,
    /// [`Client::until`] of all clients.
    deadlines: BTreeSet<(Instant, TcpId)>,
}

impl Squid {
    /// Makes the application of its arguments.
    ///
    /// # Errors
    /// A text that says which argument makes no sense.
    pub(super) fn new(args: &[String]) -> Result<Self, String> {
        let (mut ssl_ports, mut cache_mem) = (vec![443], CACHE_MEM);
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let (option, value) = match arg.split_once('=') {
                Some((option, value)) => (option, Some(value)),
                None => (arg.as_str(), None),
            };
            if !["--ssl-ports", "--cache-mem"].contains(&option) {
                continue;
            }
            let value = value.or_else(|| args.next().map(String::as_str)).unwrap_or_default();
            if option == "--ssl-ports" {
                let ports: Result<Vec<u16>, _> = value.split(',').map(str::parse).collect();
                ssl_ports = ports.map_err(|_| format!("--ssl-ports needs PORT,…, not {value:?}"))?;
            } else {
                let megabytes: Option<usize> = value.parse().ok();
                cache_mem = megabytes
                    .and_then(|megabytes| megabytes.checked_mul(1 << 20))
                    .ok_or_else(|| format!("--cache-mem needs megabytes, not {value:?}"))?;
            }
        }
        Ok(Squid {
            ssl_ports,
            cache: Store::new(cache_mem),
            log: Console::default(),
            clients: BTreeMap::new(),
            servers: BTreeMap::new(),
            lookups: BTreeSet::new(),
            deadlines: BTreeSet::new(),
        })
    }

    /// Takes what the access log says since the last call.
    pub(super) fn take_log(&mut self) -> Vec<u8> {
        self.log.take_output()
    }

    /// Handles an event.
    pub(super) fn handle(&mut self, event: Event, sockets: &mut Sockets<'_, '_>) {
        // Every event ends the wait that a look-up asked for, so all of them go on.
        let mut due = self.lookups.clone();
        due.extend(connection(event).map(|id| self.servers.get(&id).copied().unwrap_or(id)));
        due.extend(self.deadlines.iter().take_while(|(until, _)| *until <= sockets.now).map(|&(_, id)| id));
        for id in due {
            self.advance(id, sockets);
        }
        if let Some(&(until, _)) = self.deadlines.first() {
            sockets.wake_at(until);
        }
    }

    /// Does for a client what can be done.
    fn advance(&mut self, id: TcpId, sockets: &mut Sockets<'_, '_>) {
        let mut client = self.clients.remove(&id).unwrap_or_else(|| Client {
            session: Session::default(),
            address: sockets.tcp_peer(id).map_or(Ipv4Addr::UNSPECIFIED, |peer| *peer.ip()),
            exchange: None,
            until: sockets.now + IDLE_TIMEOUT,
        });
        self.deadlines.remove(&(client.until, id));
        loop {
            client.session.fill(id, sockets);
            client.session.send(id, sockets);
            if client.session.failed.is_some() || client.session.close_after {
                break;
            }
            match client.exchange.take() {
                Some(exchange) => {
                    client.exchange = self.proceed(exchange, &mut client, id, sockets);
                    if client.exchange.is_some() {
                        break;
                    }
                }
                // The next request waits until the last answer has gone, so that answers do not pile up.
                None if client.session.backlog() > 0 => break,
                None if !self.begin(&mut client, id, sockets) => break,
                None => {}
            }
        }
        if client.exchange.is_none() && client.until <= sockets.now {
            sockets.tcp_abort(id);
            return;
        }
        let has_left = client.exchange.as_ref().is_some_and(|exchange| exchange.is_left(&client.session));
        if has_left && let Some(exchange) = client.exchange.take() {
            self.abandon(exchange, id, sockets);
            client.session.close_after = true;
        }
        if client.exchange.is_none() && client.session.drain(id, sockets) {
            return;
        }
        // Who still reads its answer is not idle; and a deadline that has come must not come again at once.
        if client.session.has_output() || client.until <= sockets.now {
            client.until = client.until.max(sockets.now + IDLE_TIMEOUT);
        }
        self.deadlines.insert((client.until, id));
        self.clients.insert(id, client);
    }

    /// Takes a client's next request and begins with it; false when there is none yet.
    fn begin(&mut self, client: &mut Client, id: TcpId, sockets: &mut Sockets<'_, '_>) -> bool {
        let mut entry = Entry {
            started: sockets.now,
            client: client.address,
            code: "NONE_NONE",
            aborted: false,
            status: 0,
            octets: 0,
            method: String::from("NONE"),
            uri: String::from("error:invalid-request"),
            origin: None,
            kind: None,
        };
        let request = match message::parse_request(&client.session.input) {
            Parsed::Incomplete => return false,
            Parsed::Malformed => {
                self.refuse(entry, Problem::InvalidRequest, client, sockets);
                return true;
            }
            Parsed::Whole(request, length) => {
                client.session.input.drain(..length);
                request
            }
        };
        entry.method.clone_from(&request.method);
        entry.uri.clone_from(&request.target);
        match self.admit(&request) {
            Err(problem) => {
                if problem == Problem::AccessDenied {
                    entry.code = "TCP_DENIED";
                }
                self.refuse(entry, problem, client, sockets);
            }
            Ok((target, framing)) => {
                entry.code = "TCP_MISS";
                if request.method != "CONNECT" {
                    entry.uri = target.uri();
                }
                let exchange = Exchange::new(entry, request, target, Body::new(framing));
                client.exchange = self.answer(exchange, client, id, sockets);
            }
        }
        true
    }

    /// Says where a request goes and how its body ends, or why it goes nowhere.
    fn admit(&self, request: &Request) -> Result<(Target, Framing), Problem> {
        let framing = body::request_framing(request).ok_or(Problem::InvalidRequest)?;
        // RFC 9112, 3.2.
        let hosts = request.fields.named("Host").count();
        if hosts > 1 || (hosts == 0 && request.is_1_1) {
            return Err(Problem::InvalidRequest);
        }
        let target = Target::parse(&request.method, &request.target).ok_or(Problem::InvalidUrl)?;
        let is_allowed = if request.method == "CONNECT" {
            self.ssl_ports.contains(&target.port)
        } else {
            target.port > 1024 || SAFE_PORTS.contains(&target.port)
        };
        if is_allowed { Ok((target, framing)) } else { Err(Problem::AccessDenied) }
    }

    /// Answers with an error page and ends the connection.
    fn refuse(&mut self, mut entry: Entry, problem: Problem, client: &mut Client, sockets: &Sockets<'_, '_>) {
        let mut fields = Fields::default();
        fields.push("Date", policy::write_date(since_start(sockets.now)));
        sign(&mut fields, "1.1", entry.code, false, &sockets.pod.name);
        let page = problem.page(entry.method == "HEAD", &fields);
        entry.status = problem.status();
        entry.kind = Some(String::from("text/html"));
        entry.octets += page.len();
        client.session.push(&page);
        client.session.close_after = true;
        self.finish(entry, client, sockets.now);
    }

    /// Ends an exchange: writes its line, and waits for the client's next request.
    fn finish(&mut self, entry: Entry, client: &mut Client, now: Instant) {
        self.log.line(entry.line(now));
        client.until = now + IDLE_TIMEOUT;
    }
}

/// Adds what a proxy says about itself: to an answer with squid's result code.
fn sign(fields: &mut Fields, received: &str, code: &str, keep_alive: bool, name: &str) {
    let is_hit = code.ends_with("_HIT") || matches!(code, "TCP_REFRESH_UNMODIFIED" | "TCP_REFRESH_FAIL_OLD");
    fields.append("Via", &format!("{received} {name} (squid)"));
    fields.push("X-Cache", format!("{} from {name}", if is_hit { "HIT" } else { "MISS" }));
    fields.push("Connection", if keep_alive { "keep-alive" } else { "close" });
}

/// The network's time as the cache's, which counts from 1970.
fn since_start(now: Instant) -> Duration {
    now.saturating_duration_since(Instant::ZERO)
}
