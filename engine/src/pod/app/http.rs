//! As much of HTTP/1.1 as small servers and `curl` need.
//!
//! Servers parse requests and write responses with it, the client the other way round. Invariants: a head is at most [`HEAD_LIMIT`]
//! octets; nothing here waits or panics. Depends on nothing. Read first: RFC 9112 sections 2–7.

/// Octets of a request's or response's head.
pub(in super::super) const HEAD_LIMIT: usize = 16 * 1024;

/// A request's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    /// Whether the connection stays open after the response.
    pub(super) keep_alive: bool,
    /// Octets of the body.
    pub(super) body: usize,
    /// Octets of the head.
    pub(super) head: usize,
    /// The entity tags that the client has already (RFC 9110, 13.1.2).
    pub(super) if_none_match: Option<String>,
}

/// What the start of a connection's input is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Parsed {
    /// A whole request head.
    Request(Request),
    /// Not all of one yet.
    Incomplete,
    /// Nothing that can become one.
    Malformed,
}

/// Finds the end of a head: the octets up to and with the empty line.
pub(in super::super) fn head_length(input: &[u8]) -> Option<usize> {
    input.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Returns the value of a header field, by its name in lower case.
pub(in super::super) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Parses a request's head.
pub(super) fn parse_request(input: &[u8]) -> Parsed {
    let Some(length) = head_length(input) else {
        return if input.len() > HEAD_LIMIT { Parsed::Malformed } else { Parsed::Incomplete };
    };
    let Ok(head) = std::str::from_utf8(&input[..length]) else { return Parsed::Malformed };
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Parsed::Malformed;
    };
    if !version.starts_with("HTTP/1.") || method.is_empty() || target.is_empty() {
        return Parsed::Malformed;
    }
    let body = match field(head, "content-length").map(str::parse::<usize>) {
        None => 0,
        Some(Ok(length)) => length,
        Some(Err(_)) => return Parsed::Malformed,
    };
    let connection = field(head, "connection").unwrap_or_default();
    let keep_alive = if version == "HTTP/1.0" {
        connection.eq_ignore_ascii_case("keep-alive")
    } else {
        !connection.eq_ignore_ascii_case("close")
    };
    let if_none_match = field(head, "if-none-match").map(str::to_owned);
    let (method, target) = (method.to_owned(), target.to_owned());
    Parsed::Request(Request { method, target, keep_alive, body, head: length, if_none_match })
}

/// Returns the words of a status code.
const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        301 => "Moved Permanently",
        304 => "Not Modified",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        502 => "Bad Gateway",
        504 => "Gateway Timeout",
        _ => "Unknown",
    }
}

/// Writes a response; to HEAD without its body.
pub(super) fn response(
    server: &str,
    status: u16,
    request: Option<&Request>,
    kind: &str,
    body: &[u8],
) -> Vec<u8> {
    response_with(server, status, request, kind, "", body)
}

/// Writes a response with more fields, each a line that ends in CRLF; to HEAD, and as 304, without its body.
pub(super) fn response_with(
    server: &str,
    status: u16,
    request: Option<&Request>,
    kind: &str,
    fields: &str,
    body: &[u8],
) -> Vec<u8> {
    let keep_alive = request.is_some_and(|request| request.keep_alive);
    let mut bytes = format!(
        "HTTP/1.1 {status} {}\r\nServer: {server}\r\nContent-Type: {kind}\r\n{fields}Content-Length: {}\r\nConnection: {}\r\n\r\n",
        reason(status),
        body.len(),
        if keep_alive { "keep-alive" } else { "close" },
    )
    .into_bytes();
    if status != 304 && request.is_none_or(|request| request.method != "HEAD") {
        bytes.extend_from_slice(body);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9112, 2.2 and 3.
    #[test]
    fn requests_are_parsed_as_they_come() {
        let text = b"POST /a?b HTTP/1.1\r\nHost: x\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(parse_request(&text[..20]), Parsed::Incomplete);
        let Parsed::Request(request) = parse_request(text) else { panic!("no request") };
        assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/a?b"));
        assert_eq!((request.body, request.head, request.keep_alive), (3, text.len() - 3, true));
    }

    /// RFC 9112, 2.2 and 5.
    #[test]
    fn nonsense_is_malformed() {
        for text in ["GET\r\n\r\n", "GET / HTTP/2\r\n\r\n", "GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"] {
            assert_eq!(parse_request(text.as_bytes()), Parsed::Malformed, "{text}");
        }
        assert_eq!(parse_request(&vec![b'a'; HEAD_LIMIT + 1]), Parsed::Malformed);
    }
}
