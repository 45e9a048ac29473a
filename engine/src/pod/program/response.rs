//! An HTTP response as a client reads it.
//!
//! `curl` feeds it what came and takes the body as it comes. Invariants: bodies end by length, by chunks or with the connection; of
//! what came no more is kept than a head or a chunk's; nothing here panics on any input.
//! Depends on nothing. Read first: RFC 9112 sections 6 and 7.

use super::super::app::http::{HEAD_LIMIT, field, head_length};

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Length(usize),
    Chunked,
    Connection,
}

/// A response that is being received.
#[derive(Debug, Default)]
pub(super) struct Response {
    input: Vec<u8>,
    /// Status line and fields, once they came.
    pub(super) head: Option<String>,
    /// The status code, once it came.
    pub(super) status: u16,
    /// The body so far, but for what was taken.
    pub(super) body: Vec<u8>,
    /// Octets of the body that came, or of the present chunk that will come.
    count: usize,
    /// Whether the line end behind a chunk is still to come.
    chunk_ends: bool,
    /// Whether that chunk is the empty one at the end.
    is_last: bool,
    ending: Option<Ending>,
    complete: bool,
    malformed: bool,
}

impl Response {
    /// Takes received octets.
    pub(super) fn push(&mut self, bytes: &[u8], head_only: bool) {
        self.input.extend_from_slice(bytes);
        if self.head.is_none() && !self.take_head(head_only) {
            return;
        }
        self.take_body();
    }

    /// The connection has ended.
    pub(super) fn end(&mut self) {
        if self.ending == Some(Ending::Connection) {
            self.complete = true;
        }
    }

    /// Says whether all has come.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Says whether what came is no response.
    pub(super) fn is_malformed(&self) -> bool {
        self.malformed
    }

    /// Says whether nothing came at all.
    pub(super) fn is_empty(&self) -> bool {
        self.head.is_none() && self.input.is_empty()
    }

    fn take_head(&mut self, head_only: bool) -> bool {
        let Some(length) = head_length(&self.input) else {
            self.malformed = self.input.len() > HEAD_LIMIT;
            return false;
        };
        let head = String::from_utf8_lossy(&self.input[..length]).into_owned();
        self.input.drain(..length);
        let status =
            head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|code| code.parse().ok());
        let Some(status) = status else {
            self.malformed = true;
            return false;
        };
        self.status = status;
        let length = field(&head, "content-length").and_then(|length| length.parse().ok());
        let chunked =
            field(&head, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
        let empty = head_only || status == 204 || status == 304;
        self.ending = Some(match length {
            _ if empty => Ending::Length(0),
            _ if chunked => Ending::Chunked,
            Some(length) => Ending::Length(length),
            None => Ending::Connection,
        });
        self.head = Some(head);
        true
    }

    fn take_body(&mut self) {
        match self.ending {
            Some(Ending::Length(length)) => {
                let count = (length - self.count).min(self.input.len());
                self.body.extend(self.input.drain(..count));
                self.count += count;
                self.complete = self.count == length;
            }
            Some(Ending::Connection) => self.body.append(&mut self.input),
            Some(Ending::Chunked) => while self.take_chunk() {},
            None => {}
        }
    }

    /// Takes what there is of a chunk; false when nothing more can be taken.
    fn take_chunk(&mut self) -> bool {
        let count = self.count.min(self.input.len());
        self.body.extend(self.input.drain(..count));
        self.count -= count;
        if self.count > 0 {
            return false;
        }
        if self.chunk_ends {
            if self.input.len() < 2 {
                return false;
            }
            self.input.drain(..2);
            self.chunk_ends = false;
            if self.is_last {
                self.complete = true;
                return false;
            }
        }
        let Some(line) = self.input.windows(2).position(|window| window == b"\r\n") else {
            self.malformed = self.input.len() > HEAD_LIMIT;
            return false;
        };
        let text = String::from_utf8_lossy(&self.input[..line]).into_owned();
        let digits = text.split(';').next().unwrap_or_default().trim();
        let Ok(size) = usize::from_str_radix(digits, 16) else {
            self.malformed = true;
            return false;
        };
        self.input.drain(..line + 2);
        (self.count, self.chunk_ends, self.is_last) = (size, true, size == 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 9112, 6.3.
    #[test]
    fn bodies_end_by_length_chunks_or_connection() {
        let cases: [(&str, bool); 3] = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x\r\nlo\r\n0\r\n\r\n", true),
            ("HTTP/1.0 200 OK\r\n\r\nhello", false),
        ];
        for (text, complete) in cases {
            let mut response = Response::default();
            for byte in text.as_bytes() {
                response.push(&[*byte], false);
            }
            assert_eq!(response.is_complete(), complete, "{text}");
            response.end();
            assert!(response.is_complete());
            assert_eq!((response.status, response.body.as_slice()), (200, &b"hello"[..]));
        }
    }

    proptest! {
        #[test]
        fn anything_may_arrive(bytes in proptest::collection::vec(any::<u8>(), 0..200), chunked: bool) {
            let mut response = Response::default();
            if chunked {
                response.push(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false);
            }
            response.push(&bytes, false);
            response.end();
        }
    }
}
