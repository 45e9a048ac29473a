//! Where the body of a message ends, and what of it has come.
//!
//! Invariants: a message whose end is not clear has no framing, so that nothing can hide behind it; a body's decoder never takes what
//! belongs to the next message. Depends on `message`, `httparse`. Read first: RFC 9112 sections 6 and 7.

use super::message::{Fields, Request, Response};

/// Octets of a chunk's size line and of a trailer.
const LINE_LIMIT: usize = 4096;

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// After so many octets.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection.
    Close,
}

/// Returns how a request's body ends; `None` when its sender and another server could disagree (RFC 9112, 6.1 and 6.3).
pub(super) fn request_framing(request: &Request) -> Option<Framing> {
    match (request.fields.combined("Transfer-Encoding"), content_length(&request.fields)?) {
        (None, length) => Some(Framing::Length(length.unwrap_or(0))),
        (Some(coding), None) if request.is_1_1 && coding.eq_ignore_ascii_case("chunked") => {
            Some(Framing::Chunked)
        }
        (Some(_), _) => None,
    }
}

/// Returns how the body of a response to a method ends; `None` when that is not clear.
pub(super) fn response_framing(method: &str, response: &Response) -> Option<Framing> {
    if method == "HEAD" || response.status < 200 || matches!(response.status, 204 | 304) {
        return Some(Framing::Length(0));
    }
    match response.fields.combined("Transfer-Encoding") {
        Some(coding) if coding.eq_ignore_ascii_case("chunked") => Some(Framing::Chunked),
        Some(_) => None,
        None => Some(content_length(&response.fields)?.map_or(Framing::Close, Framing::Length)),
    }
}

/// Returns the length that a head declares, if it does; `None` when it contradicts itself (RFC 9112, 6.3, 5).
fn content_length(fields: &Fields) -> Option<Option<u64>> {
    let mut length = None;
    for value in fields.named("Content-Length") {
        let digits = !value.is_empty() && value.bytes().all(|octet| octet.is_ascii_digit());
        let value: u64 = value.parse().ok().filter(|_| digits)?;
        if *length.get_or_insert(value) != value {
            return None;
        }
    }
    Some(length)
}

/// A body that is being received.
#[derive(Debug)]
pub(super) struct Body {
    framing: Framing,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many octets of data are to come.
    Data(u64),
    /// The line break behind a chunk.
    ChunkEnd,
    /// A chunk's size.
    Size,
    /// The fields behind the last chunk, up to an empty line.
    Trailers,
    Done,
}

/// A body's chunks make no sense.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadChunk;

impl Body {
    pub(super) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Data(length),
            Framing::Chunked => State::Size,
            Framing::Close => State::Data(u64::MAX),
        };
        Body { framing, state }
    }

    /// Says whether all of it has come.
    pub(super) fn is_complete(&self) -> bool {
        self.state == State::Done
    }

    /// Says whether it comes in chunks.
    pub(super) fn is_chunked(&self) -> bool {
        self.framing == Framing::Chunked
    }

    /// The connection has ended.
    pub(super) fn end(&mut self) {
        if self.framing == Framing::Close {
            self.state = State::Done;
        }
    }

    /// Moves data from the input to `data`.
    ///
    /// # Errors
    /// [`BadChunk`].
    pub(super) fn take(&mut self, input: &mut Vec<u8>, data: &mut Vec<u8>) -> Result<(), BadChunk> {
        let mut at = 0;
        while at < input.len() && self.state != State::Done {
            let rest = &input[at..];
            at += match self.state {
                State::Done => 0,
                State::Data(left) => {
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    data.extend_from_slice(&rest[..count]);
                    self.state = match (left - count as u64, self.framing) {
                        (_, Framing::Close) => State::Data(u64::MAX),
                        (0, Framing::Chunked) => State::ChunkEnd,
                        (0, Framing::Length(_)) => State::Done,
                        (left, Framing::Chunked | Framing::Length(_)) => State::Data(left),
                    };
                    count
                }
                State::ChunkEnd if rest.len() < 2 => break,
                State::ChunkEnd if !rest.starts_with(b"\r\n") => return Err(BadChunk),
                State::ChunkEnd => {
                    self.state = State::Size;
                    2
                }
                State::Size => match httparse::parse_chunk_size(rest) {
                    Ok(httparse::Status::Complete((length, size))) => {
                        self.state = if size == 0 { State::Trailers } else { State::Data(size) };
                        length
                    }
                    Ok(httparse::Status::Partial) if rest.len() <= LINE_LIMIT => break,
                    Ok(httparse::Status::Partial) | Err(httparse::InvalidChunkSize) => return Err(BadChunk),
                },
                // They end here: a trailer may be dropped (RFC 9110, 6.5.1).
                State::Trailers => match rest.windows(2).position(|window| window == b"\r\n") {
                    Some(end) => {
                        self.state = if end == 0 { State::Done } else { State::Trailers };
                        end + 2
                    }
                    None if rest.len() > LINE_LIMIT => return Err(BadChunk),
                    None => break,
                },
            };
        }
        input.drain(..at);
        Ok(())
    }
}

/// Writes data as one chunk; none of it as nothing.
pub(super) fn write_chunk(data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    if !data.is_empty() {
        bytes.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
        bytes.extend_from_slice(data);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The chunk behind the last one.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::super::message::{Parsed, parse_request};
    use super::*;
    use proptest::prelude::*;

    /// RFC 9112, 6.1 and 6.3: what two servers could read in two ways is refused.
    #[test]
    fn ambiguous_requests_have_no_framing() {
        for (fields, framing) in [
            ("", Some(Framing::Length(0))),
            ("Content-Length: 3\r\n", Some(Framing::Length(3))),
            ("Content-Length: 3\r\nContent-Length: 3\r\n", Some(Framing::Length(3))),
            ("Transfer-Encoding: Chunked\r\n", Some(Framing::Chunked)),
            ("Content-Length: 3\r\nContent-Length: 4\r\n", None),
            ("Content-Length: +3\r\n", None),
            ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", None),
            ("Transfer-Encoding: gzip, chunked\r\n", None),
        ] {
            let text = format!("POST http://a/ HTTP/1.1\r\n{fields}\r\n");
            let Parsed::Whole(request, _) = parse_request(text.as_bytes()) else { panic!("{fields}") };
            assert_eq!(request_framing(&request), framing, "{fields}");
        }
    }

    proptest! {
        /// RFC 9112, 7.1: chunks come out as they went in, however they are cut, and nothing behind them is touched.
        #[test]
        fn chunks_go_both_ways(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6), cut in 1usize..20) {
            let mut bytes: Vec<u8> = parts.iter().flat_map(|part| write_chunk(part)).collect();
            bytes.extend_from_slice(b"0\r\nTrailer: x\r\n\r\nnext");
            let (mut body, mut input, mut data) = (Body::new(Framing::Chunked), Vec::new(), Vec::new());
            for piece in bytes.chunks(cut) {
                input.extend_from_slice(piece);
                prop_assert_eq!(body.take(&mut input, &mut data), Ok(()));
            }
            prop_assert!(body.is_complete());
            prop_assert_eq!((data, input), (parts.concat(), b"next".to_vec()));
        }

        #[test]
        fn anything_may_arrive(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (mut body, mut input, mut data) = (Body::new(Framing::Chunked), bytes, Vec::new());
            let _ = body.take(&mut input, &mut data);
        }
    }
}
