//! One request's way through the proxy: from the cache, or to its origin and back.
//!
//! `mod.rs` makes an [`Exchange`] and calls [`Squid::answer`], then [`Squid::proceed`] whenever something happened, until there is none any
//! more. Invariants: the answer passes on as it comes, nothing waits for its end; only whole answers are kept. A method that returns
//! no exchange has ended it. Depends on `mod.rs` and the files it names. Read first: RFC 9111 section 4.3, RFC 9110 sections 9.3.6 and
//! 15.2.

use super::super::super::resolver::{Resolution, Resolver, well_known};
use super::super::super::socket::{SocketError, TcpId};
use super::super::super::sockets::Sockets;
use super::super::session::Session;
use super::answer::times;
use super::body::{BadChunk, Body};
use super::message::{self, Fields, Request, Response};
use super::passage::pass_request;
use super::policy::{self, Reuse};
use super::report::{Entry, Problem};
use super::store::Stored;
use super::target::Target;
use super::{Client, Squid, since_start};
use crate::clock::Instant;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

/// How long a server may take to accept, squid's `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server or tunnel may be silent, squid's `read_timeout`.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// A request and what has become of it.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) entry: Entry,
    pub(super) request: Request,
    pub(super) target: Target,
    /// What of the request's body is to come.
    pub(super) body: Body,
    /// What is stored and must be validated.
    pub(super) stale: Option<Arc<Stored>>,
    /// Whether the connection stays open after the answer.
    pub(super) keep_alive: bool,
    pub(super) stage: Stage,
}

/// How far a request has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// Not on its way.
    New,
    /// The server's name is being looked up.
    Lookup(Resolver),
    /// Request and answer pass.
    Server(Server),
    /// Octets pass.
    Tunnel(Server),
}

/// A connection to a server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) id: TcpId,
    pub(super) session: Session,
    pub(super) requested: Instant,
    /// Whether it was ever made.
    pub(super) is_made: bool,
    pub(super) answer: Option<Answer>,
}

/// An answer whose head has passed.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) body: Body,
    /// Whether the client gets it in chunks.
    pub(super) chunked: bool,
    /// What is kept when it is whole, and its body so far.
    pub(super) copy: Option<(Stored, Vec<u8>)>,
}

/// What looking at a server's input came to.
pub(super) enum Step {
    /// Nothing more for now.
    Wait,
    /// Something passed.
    Moved,
    /// The answer has ended, as it should or too early.
    Ended { whole: bool },
    /// There will be no answer.
    Failed(Problem),
    /// The stored response is confirmed: it is the answer.
    Confirmed(Response),
    /// The server is in trouble; the stored response will do.
    Stale,
    /// The stored response was no help: the request goes again without it.
    Again,
}

impl Exchange {
    pub(super) fn new(entry: Entry, request: Request, target: Target, body: Body) -> Self {
        Exchange { entry, request, target, body, stale: None, keep_alive: true, stage: Stage::New }
    }

    /// Says whether its client has left. One that has ended its direction only has left, too, unless it has a tunnel: squid's
    /// `half_closed_clients off`.
    pub(super) fn is_left(&self, client: &Session) -> bool {
        client.failed.is_some() || (client.ended && !matches!(self.stage, Stage::Tunnel(_)))
    }
}

impl Squid {
    /// Answers a request from the cache, or sends it on its way.
    pub(super) fn answer(
        &mut self,
        mut exchange: Exchange,
        client: &mut Client,
        id: TcpId,
        sockets: &mut Sockets<'_, '_>,
    ) -> Option<Exchange> {
        if exchange.request.max_forwards() == Some(0) {
            self.answer_itself(exchange, client, sockets);
            return None;
        }
        let Exchange { entry, request, body, .. } = &mut exchange;
        if policy::is_cacheable(request) && body.is_complete() {
            let found = self.cache.find(&entry.uri, &request.fields);
            let age = |stored: &Stored| {
                policy::age(&stored.response.fields, stored.times, since_start(sockets.now))
            };
            match found {
                Some(stored)
                    if policy::reuse(&request.fields, &stored.response, age(&stored)) == Reuse::Serve =>
                {
                    entry.code = "TCP_MEM_HIT";
                    self.give(exchange, &stored, client, sockets);
                    return None;
                }
                _ if policy::only_if_cached(&request.fields) => {
                    self.refuse(exchange.entry, Problem::OnlyIfCachedMiss, client, sockets);
                    return None;
                }
                found => exchange.stale = found,
            }
        }
        self.set_out(exchange, client, id, sockets)
    }

    /// Goes on with an exchange.
    pub(super) fn proceed(
        &mut self,
        mut exchange: Exchange,
        client: &mut Client,
        id: TcpId,
        sockets: &mut Sockets<'_, '_>,
    ) -> Option<Exchange> {
        match std::mem::replace(&mut exchange.stage, Stage::New) {
            Stage::New => Some(exchange),
            Stage::Lookup(mut resolver) => {
                let Some(resolution) = resolver.poll(sockets) else {
                    exchange.stage = Stage::Lookup(resolver);
                    return Some(exchange);
                };
                self.lookups.remove(&id);
                let address = match resolution {
                    Resolution::Found(_, addresses) => addresses.first().copied(),
                    Resolution::NoSuchName | Resolution::NoServer => None,
                };
                match address {
                    Some(address) => self.connect(exchange, address, client, id, sockets),
                    None => self.fail(exchange, Problem::DnsFail, client, sockets),
                }
            }
            Stage::Server(server) => self.pass(exchange, server, client, id, sockets),
            Stage::Tunnel(server) => self.tunnel(exchange, server, client, id, sockets),
        }
    }

    /// Ends an exchange whose client has gone.
    pub(super) fn abandon(&mut self, mut exchange: Exchange, id: TcpId, sockets: &mut Sockets<'_, '_>) {
        exchange.entry.aborted = true;
        match exchange.stage {
            Stage::New => {}
            Stage::Lookup(resolver) => {
                resolver.abandon(sockets);
                self.lookups.remove(&id);
            }
            Stage::Tunnel(server) | Stage::Server(server) => self.leave(&server, sockets),
        }
        self.log.line(exchange.entry.line(sockets.now));
    }

    /// Finds the server's address and connects, or begins to look it up.
    fn set_out(
        &mut self,
        mut exchange: Exchange,
        client: &mut Client,
        id: TcpId,
        sockets: &mut Sockets<'_, '_>,
    ) -> Option<Exchange> {
        match well_known(&exchange.target.host, sockets.pod) {
            Some(address) => self.connect(exchange, address, client, id, sockets),
            None => {
                exchange.stage = Stage::Lookup(Resolver::new(&exchange.target.host, sockets.pod));
                self.lookups.insert(id);
                // The look-up has timers of its own.
                client.until = sockets.now + READ_TIMEOUT;
                self.proceed(exchange, client, id, sockets)
            }
        }
    }

    fn connect(
        &mut self,
        mut exchange: Exchange,
        address: Ipv4Addr,
        client: &mut Client,
        id: TcpId,
        sockets: &mut Sockets<'_, '_>,
    ) -> Option<Exchange> {
        exchange.entry.origin = Some(address);
        let server = match sockets.tcp_connect(SocketAddrV4::new(address, exchange.target.port), false) {
            Ok(server) => server,
            Err(error) => {
                let problem = Problem::ConnectFail { error, validating: exchange.stale.is_some() };
                return self.fail(exchange, problem, client, sockets);
            }
        };
        self.servers.insert(server, id);
        client.until = sockets.now + CONNECT_TIMEOUT;
        let mut session = Session::default();
        if exchange.request.method != "CONNECT" {
            session.push(&forwarded_head(&exchange, client.address, &sockets.pod.name));
        }
        let server = Server { id: server, session, requested: sockets.now, is_made: false, answer: None };
        exchange.stage = Stage::Server(server);
        Some(exchange)
    }

    /// Passes request and answer as far as they have come.
    fn pass(
        &mut self,
        mut exchange: Exchange,
        mut server: Server,
        client: &mut Client,
        id: TcpId,
        sockets: &mut Sockets<'_, '_>,
    ) -> Option<Exchange> {
        loop {
            server.session.fill(server.id, sockets);
            if !server.is_made && sockets.tcp_is_open(server.id) {
                server.is_made = true;
                client.until = sockets.now + READ_TIMEOUT;
            }
            if exchange.request.method == "CONNECT" && server.is_made {
                return self.open_tunnel(exchange, server, client, id, sockets);
            }
            let moved = pass_request(&mut exchange, &mut server, client);
            server.session.send(server.id, sockets);
            let mut step = match moved {
                Ok(_) => self.look(&mut exchange, &mut server, client, sockets),
                Err(BadChunk) if server.answer.is_some() => Step::Ended { whole: false },
                Err(BadChunk) => Step::Failed(Problem::InvalidRequest),
            };
            client.session.send(id, sockets);
            client.session.fill(id, sockets);
            match step {
                Step::Wait | Step::Moved if moved == Ok(true) || matches!(step, Step::Moved) => {
                    client.until = sockets.now + READ_TIMEOUT;
                    continue;
                }
                Step::Wait if client.until <= sockets.now => {
                    step = if server.answer.is_some() {
                        Step::Ended { whole: false }
                    } else if server.is_made {
                        Step::Failed(Problem::ReadTimeout)
                    } else {
                        let validating = exchange.stale.is_some();
                        Step::Failed(Problem::ConnectFail { error: SocketError::TimedOut, validating })
                    };
                }
                Step::Wait | Step::Moved => {
                    exchange.stage = Stage::Server(server);
                    return Some(exchange);
                }
                Step::Ended { .. } | Step::Failed(_) | Step::Confirmed(_) | Step::Stale | Step::Again => {}
            }
            self.leave(&server, sockets);
            return self.conclude(step, exchange, server, client, id, sockets);
        }
    }

    /// Ends an exchange whose server has been left.
    fn conclude(
        &mut self,
        step: Step,
        mut exchange: Exchange,
        server: Server,
        client: &mut Client,
        id: TcpId,
        sockets: &mut Sockets<'_, '_>,
    ) -> Option<Exchange> {
        match step {
            Step::Wait | Step::Moved => {}
            Step::Ended { whole } => {
                if let Some(Answer { copy: Some((stored, body)), .. }) = server.answer.filter(|_| whole) {
                    self.cache.put(Stored { body: body.into(), ..stored });
                }
                // What is left of the request would be taken for the next one.
                client.session.close_after |= !whole || !exchange.body.is_complete() || !exchange.keep_alive;
                self.finish(exchange.entry, client, sockets.now);
            }
            Step::Failed(problem) => return self.fail(exchange, problem, client, sockets),
            Step::Stale => return self.fail(exchange, Problem::InvalidResponse, client, sockets),
            Step::Confirmed(told) => {
                let stale = exchange.stale.take()?;
                let mut stored = Stored::clone(&stale);
                policy::freshen(&mut stored.response.fields, &told.fields);
                stored.times = times(&server, sockets.now);
                exchange.entry.code = "TCP_REFRESH_UNMODIFIED";
                // A confirmation may also say that nothing is to be kept any more.
                if exchange.request.method == "GET" && !policy::may_store(&exchange.request, &stored.response)
                {
                    self.cache.invalidate(&stored.uri);
                } else {
                    self.cache.put(stored.clone());
                }
                self.give(exchange, &stored, client, sockets);
            }
            Step::Again => {
                self.cache.invalidate(&exchange.entry.uri);
                exchange.stale = None;
                return self.set_out(exchange, client, id, sockets);
            }
        }
        None
    }

    /// Ends an exchange without its origin's answer: with what is stored, if it may be stale, else with an error.
    fn fail(
        &mut self,
        mut exchange: Exchange,
        problem: Problem,
        client: &mut Client,
        sockets: &Sockets<'_, '_>,
    ) -> Option<Exchange> {
        match exchange.stale.take() {
            Some(stored) if policy::serves_on_error(&exchange.request.fields, &stored.response) => {
                exchange.entry.code = "TCP_REFRESH_FAIL_OLD";
                self.give(exchange, &stored, client, sockets);
            }
            stale => {
                if stale.is_some() {
                    exchange.entry.code = "TCP_REFRESH_FAIL_ERR";
                }
                self.refuse(exchange.entry, problem, client, sockets);
            }
        }
        None
    }

    /// Ends a server's connection.
    pub(super) fn leave(&mut self, server: &Server, sockets: &mut Sockets<'_, '_>) {
        self.servers.remove(&server.id);
        sockets.tcp_close(server.id);
    }
}

/// Writes the head of a request as its origin gets it (RFC 9110, 7.6; RFC 9112, 3.2.1 and 3.2.2).
fn forwarded_head(exchange: &Exchange, client: Ipv4Addr, name: &str) -> Vec<u8> {
    let Exchange { request, target, body, stale, .. } = exchange;
    let mut fields = Fields::default();
    fields.push("Host", target.authority());
    let mut others = request.fields.clone();
    others.remove("Host");
    others.remove_hop_by_hop();
    if let Some(stale) = stale {
        policy::make_conditional(&mut others, &stale.response.fields);
    }
    let received = if request.is_1_1 { "1.1" } else { "1.0" };
    others.append("Via", &format!("{received} {name} (squid)"));
    others.append("X-Forwarded-For", &client.to_string());
    if let Some(left) = request.max_forwards() {
        others.remove("Max-Forwards");
        others.push("Max-Forwards", left.saturating_sub(1).to_string());
    }
    if body.is_chunked() {
        others.push("Transfer-Encoding", "chunked");
    }
    others.push("Connection", "close");
    fields.replace_with(&others, &[]);
    // RFC 9112, 3.2.4: without a path OPTIONS is about the server as a whole.
    let is_whole = request.method == "OPTIONS" && target.path == "/" && !request.target.ends_with('/');
    let path = if is_whole { "*" } else { &target.path };
    message::write_head(&format!("{} {path} HTTP/1.1", request.method), &fields)
}
