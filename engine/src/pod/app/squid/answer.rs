//! Answers: what an origin's head means for the cache, and what the client gets.
//!
//! `exchange` calls it with what a server has sent, or with what is stored. Invariant: a head that passes is signed by the proxy, and
//! carries nothing that was for the proxy only. Depends on `exchange`, `policy`, `store`. Read first: RFC 9111 sections 3, 4.3.3 and
//! 4.4, RFC 9110 sections 7.6 and 15.2.

use super::super::super::sockets::Sockets;
use super::body::{self, Body, Framing};
use super::exchange::{Answer, Exchange, Server, Step};
use super::message::{self, Fields, Parsed, Response};
use super::passage::{MAXIMUM_OBJECT, take_body};
use super::policy::{self, Times};
use super::report::Problem;
use super::store::Stored;
use super::{BACKLOG, Client, Squid, sign, since_start};
use crate::clock::Instant;
use std::sync::Arc;

/// Fields of a stored response that its 304 repeats (RFC 9110, 15.4.5).
const OF_NOT_MODIFIED: [&str; 8] =
    ["Date", "ETag", "Last-Modified", "Cache-Control", "Content-Location", "Expires", "Vary", "Via"];

impl Exchange {
    /// Writes an answer's head to the client; says whether the body goes in chunks.
    fn begin_answer(
        &mut self,
        mut response: Response,
        framing: Framing,
        client: &mut Client,
        name: &str,
    ) -> bool {
        let Exchange { entry, request, .. } = self;
        let has_length = matches!(framing, Framing::Length(_));
        let chunked = !has_length && request.is_1_1;
        self.keep_alive = request.keeps_alive() && (has_length || chunked);
        if !has_length {
            response.fields.remove("Content-Length");
        }
        if chunked {
            response.fields.push("Transfer-Encoding", "chunked");
        }
        let received = if response.is_1_1 { "1.1" } else { "1.0" };
        sign(&mut response.fields, received, entry.code, self.keep_alive, name);
        let head = message::write_head(&status_line(&response), &response.fields);
        entry.status = response.status;
        let kind = response.fields.get("Content-Type").and_then(|kind| kind.split(';').next());
        entry.kind = kind.map(|kind| kind.trim().to_owned());
        entry.octets += head.len();
        client.session.push(&head);
        chunked
    }
}

impl Squid {
    /// Takes what a server has sent.
    pub(super) fn look(
        &mut self,
        exchange: &mut Exchange,
        server: &mut Server,
        client: &mut Client,
        sockets: &Sockets<'_, '_>,
    ) -> Step {
        if server.answer.is_some() {
            return take_body(exchange, server, client);
        }
        if client.session.backlog() >= BACKLOG {
            return Step::Wait;
        }
        match message::parse_response(&server.session.input) {
            Parsed::Malformed => Step::Failed(Problem::InvalidResponse),
            Parsed::Incomplete => match (server.session.failed, server.session.ended) {
                (Some(error), _) if !server.is_made => {
                    Step::Failed(Problem::ConnectFail { error, validating: exchange.stale.is_some() })
                }
                (Some(error), _) => Step::Failed(Problem::ReadError(error)),
                (None, true) if server.session.input.is_empty() => Step::Failed(Problem::ZeroSizeObject),
                (None, true) => Step::Failed(Problem::InvalidResponse),
                (None, false) => Step::Wait,
            },
            Parsed::Whole(response, length) => {
                server.session.input.drain(..length);
                self.take_head(response, exchange, server, client, sockets)
            }
        }
    }

    /// Decides what an answer's head means, and passes it on.
    fn take_head(
        &mut self,
        mut response: Response,
        exchange: &mut Exchange,
        server: &mut Server,
        client: &mut Client,
        sockets: &Sockets<'_, '_>,
    ) -> Step {
        let Exchange { entry, request, target, stale, .. } = exchange;
        let Some(framing) = body::response_framing(&request.method, &response) else {
            return Step::Failed(Problem::InvalidResponse);
        };
        response.fields.remove_hop_by_hop();
        if response.status < 200 {
            // `100 Continue` and its kin are the client's (RFC 9110, 15.2); one of HTTP/1.0 knows none.
            if request.is_1_1 {
                let head = message::write_head(&status_line(&response), &response.fields);
                entry.octets += head.len();
                client.session.push(&head);
            }
            return Step::Moved;
        }
        if response.fields.get("Date").is_none() {
            response.fields.push("Date", policy::write_date(since_start(sockets.now)));
        }
        if let Some(stored) = stale {
            match response.status {
                304 if policy::confirms(&response.fields, &stored.response.fields) => {
                    return Step::Confirmed(response);
                }
                304 => return Step::Again,
                500.. if policy::serves_on_error(&request.fields, &stored.response) => return Step::Stale,
                _ => {}
            }
            let is_reload = policy::is_reload(&request.fields);
            entry.code = if is_reload { "TCP_CLIENT_REFRESH_MISS" } else { "TCP_REFRESH_MODIFIED" };
            // What HEAD says is newer than what is stored (RFC 9111, 4.3.5).
            if request.method == "HEAD" {
                self.cache.invalidate(&entry.uri);
            }
        }
        if policy::invalidates(&request.method, response.status) {
            self.cache.invalidate(&entry.uri);
            for name in ["Location", "Content-Location"] {
                if let Some(other) = response.fields.get(name).and_then(|uri| target.sibling(uri)) {
                    self.cache.invalidate(&other.uri());
                }
            }
        }
        let fits = !matches!(framing, Framing::Length(length) if length > MAXIMUM_OBJECT as u64);
        let copy = (fits && policy::may_store(request, &response)).then(|| {
            let stored = Stored {
                uri: entry.uri.clone(),
                selecting: policy::selecting(&request.fields, &response.fields),
                response: response.clone(),
                times: times(server, sockets.now),
                body: Arc::new([]),
            };
            (stored, Vec::new())
        });
        let chunked = exchange.begin_answer(response, framing, client, &sockets.pod.name);
        server.answer = Some(Answer { body: Body::new(framing), chunked, copy });
        Step::Moved
    }

    /// Answers a request that may not be forwarded any more, as its last recipient (RFC 9110, 7.6.2, 9.3.7 and 9.3.8).
    pub(super) fn answer_itself(
        &mut self,
        mut exchange: Exchange,
        client: &mut Client,
        sockets: &Sockets<'_, '_>,
    ) {
        let (mut fields, mut content) = (Fields::default(), Vec::new());
        fields.push("Date", policy::write_date(since_start(sockets.now)));
        if exchange.request.method == "TRACE" {
            let mut received = exchange.request.fields.clone();
            for secret in ["Authorization", "Cookie", "Proxy-Authorization"] {
                received.remove(secret);
            }
            content = message::write_head(&format!("TRACE {} HTTP/1.1", exchange.request.target), &received);
            fields.push("Content-Type", "message/http");
        }
        fields.push("Content-Length", content.len().to_string());
        let response = Response { status: 200, reason: String::from("OK"), is_1_1: true, fields };
        exchange.begin_answer(response, Framing::Length(content.len() as u64), client, &sockets.pod.name);
        client.session.push(&content);
        exchange.entry.octets += content.len();
        client.session.close_after |= !exchange.body.is_complete() || !exchange.keep_alive;
        self.finish(exchange.entry, client, sockets.now);
    }

    /// Answers with a stored response.
    pub(super) fn give(
        &mut self,
        mut exchange: Exchange,
        stored: &Stored,
        client: &mut Client,
        sockets: &Sockets<'_, '_>,
    ) {
        let Exchange { entry, request, .. } = &mut exchange;
        let mut response = stored.response.clone();
        let age = policy::age(&response.fields, stored.times, since_start(sockets.now));
        let is_known = policy::is_known(&request.fields, &response);
        if is_known {
            let mut fields = Fields::default();
            for name in OF_NOT_MODIFIED {
                if let Some(value) = response.fields.combined(name) {
                    fields.push(name, value);
                }
            }
            response = Response { status: 304, reason: String::from("Not Modified"), fields, ..response };
            if entry.code == "TCP_MEM_HIT" {
                let by_tag = request.fields.get("If-None-Match").is_some();
                entry.code = if by_tag { "TCP_INM_HIT" } else { "TCP_IMS_HIT" };
            }
        } else {
            response.fields.remove("Content-Length");
            // RFC 9110, 8.6.
            if response.status != 204 {
                response.fields.push("Content-Length", stored.body.len().to_string());
            }
        }
        response.fields.remove("Age");
        response.fields.push("Age", age.to_string());
        let framing = Framing::Length(stored.body.len() as u64);
        exchange.begin_answer(response, framing, client, &sockets.pod.name);
        if !is_known && exchange.request.method != "HEAD" {
            client.session.push(&stored.body);
            exchange.entry.octets += stored.body.len();
        }
        client.session.close_after |= !exchange.body.is_complete() || !exchange.keep_alive;
        self.finish(exchange.entry, client, sockets.now);
    }
}

/// When an answer was asked for, and that it came now.
pub(super) fn times(server: &Server, now: Instant) -> Times {
    Times { requested: since_start(server.requested), received: since_start(now) }
}

fn status_line(response: &Response) -> String {
    format!("HTTP/1.1 {} {}", response.status, response.reason)
}
