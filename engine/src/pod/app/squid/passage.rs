//! Bodies on their way through, from the connection that has them to the one that wants them.
//!
//! `exchange` calls it for each step of a request's and an answer's body. Invariant: nothing is taken for a receiver that is [`BACKLOG`]
//! behind, so that a slow one slows its sender. Depends on `exchange`, `body`, `session`. Read first: RFC 9112 sections 6 and 7.

use super::super::session::Session;
use super::body::{self, BadChunk, Body};
use super::exchange::{Answer, Exchange, Server, Step};
use super::{BACKLOG, Client};

/// Octets of the largest body that is kept, squid's `maximum_object_size`.
pub(super) const MAXIMUM_OBJECT: usize = 4 << 20;

/// Passes what has come of a request's body; says whether that was something.
///
/// # Errors
/// [`BadChunk`] when it makes no sense.
pub(super) fn pass_request(
    exchange: &mut Exchange,
    server: &mut Server,
    client: &mut Client,
) -> Result<bool, BadChunk> {
    let body = &mut exchange.body;
    if body.is_complete() || server.session.backlog() >= BACKLOG {
        return Ok(false);
    }
    let mut data = Vec::new();
    body.take(&mut client.session.input, &mut data)?;
    push_body(&mut server.session, body, body.is_chunked(), &data);
    Ok(!data.is_empty())
}

/// Passes what has come of an answer's body, and keeps a copy.
pub(super) fn take_body(exchange: &mut Exchange, server: &mut Server, client: &mut Client) -> Step {
    let Some(Answer { body, chunked, copy }) = &mut server.answer else { return Step::Wait };
    if client.session.backlog() >= BACKLOG {
        return Step::Wait;
    }
    let mut data = Vec::new();
    if body.take(&mut server.session.input, &mut data).is_err() {
        return Step::Ended { whole: false };
    }
    if let Some((_, bytes)) = copy {
        bytes.extend_from_slice(&data);
        if bytes.len() > MAXIMUM_OBJECT {
            *copy = None;
        }
    }
    let is_moving = !data.is_empty() && !body.is_complete();
    let has_ended = server.session.ended || server.session.failed.is_some();
    if !is_moving && server.session.ended {
        body.end();
    }
    exchange.entry.octets += push_body(&mut client.session, body, *chunked, &data);
    match body.is_complete() {
        true => Step::Ended { whole: true },
        false if is_moving => Step::Moved,
        false if has_ended => Step::Ended { whole: false },
        false => Step::Wait,
    }
}

/// Writes a part of a body, with its end when that has come; returns how many octets it takes.
fn push_body(session: &mut Session, body: &Body, chunked: bool, data: &[u8]) -> usize {
    if !chunked {
        session.push(data);
        return data.len();
    }
    let mut bytes = body::write_chunk(data);
    if body.is_complete() {
        bytes.extend_from_slice(body::LAST_CHUNK);
    }
    session.push(&bytes);
    bytes.len()
}
