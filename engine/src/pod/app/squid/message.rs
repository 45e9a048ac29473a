//! Heads of HTTP messages as a proxy needs them: every field kept, in its order, octet for octet.
//!
//! The proxy reads requests and responses with it and writes both. It is stricter than [`super::super::http`]: what a proxy forwards,
//! another server understands once more, and both must see the same message. Invariants: field values are ISO-8859-1; a head is at most
//! [`HEAD_LIMIT`] octets. Depends on `httparse`. Read first: RFC 9110 sections 5 and 7.6.1, RFC 9112 sections 2 to 5.

use super::super::http::{HEAD_LIMIT, head_length};
use std::fmt::Write as _;

/// Fields of one head.
const FIELD_LIMIT: usize = 128;

/// Fields that are for the next machine only (RFC 9110, 7.6.1), beside those that `Connection` names.
const HOP_BY_HOP: [&str; 9] = [
    "Connection",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
];

/// The fields of a message, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Returns the first value of a field.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.named(name).next()
    }

    /// Returns all values of a field as one list (RFC 9110, 5.3).
    pub(super) fn combined(&self, name: &str) -> Option<String> {
        let values: Vec<&str> = self.named(name).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    /// Returns the members of a list, none of them empty.
    pub(super) fn members(&self, name: &str) -> impl Iterator<Item = &str> {
        self.named(name).flat_map(split_list)
    }

    /// Returns the values of a field.
    pub(super) fn named<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        let named = self.0.iter().filter(move |(key, _)| key.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str())
    }

    /// Adds a field behind the others.
    pub(super) fn push(&mut self, name: &str, value: impl Into<String>) {
        self.0.push((name.to_owned(), value.into()));
    }

    /// Adds a member to a list, as proxies do with their own names.
    pub(super) fn append(&mut self, name: &str, member: &str) {
        let list = self.combined(name).map_or_else(|| member.to_owned(), |list| format!("{list}, {member}"));
        self.remove(name);
        self.push(name, list);
    }

    /// Takes all fields of a name away.
    pub(super) fn remove(&mut self, name: &str) {
        self.0.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
    }

    /// Takes all fields away that end at this machine.
    pub(super) fn remove_hop_by_hop(&mut self) {
        let named: Vec<String> = self.members("Connection").map(String::from).collect();
        for name in HOP_BY_HOP.iter().copied().chain(named.iter().map(String::as_str)) {
            self.remove(name);
        }
    }

    /// Puts the fields of another message in place of those of the same names.
    pub(super) fn replace_with(&mut self, other: &Fields, keep: &[&str]) {
        let new = |name: &str| !keep.iter().any(|kept| kept.eq_ignore_ascii_case(name));
        for (name, _) in other.0.iter().filter(|(name, _)| new(name)) {
            self.remove(name);
        }
        self.0.extend(other.0.iter().filter(|(name, _)| new(name)).cloned());
    }

    /// Says whether a list has a member, in any case.
    pub(super) fn has_member(&self, name: &str, member: &str) -> bool {
        self.members(name).any(|found| found.eq_ignore_ascii_case(member))
    }

    /// Returns about how many octets they take.
    pub(super) fn octets(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len() + 4).sum()
    }

    fn from_parsed(headers: &[httparse::Header<'_>]) -> Self {
        let value = |bytes: &[u8]| bytes.iter().map(|&octet| char::from(octet)).collect();
        Fields(headers.iter().map(|header| (header.name.to_owned(), value(header.value))).collect())
    }
}

/// Splits a list at its commas, those in quoted strings aside.
fn split_list(list: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = list.split(move |letter: char| {
        match letter {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => return true,
            _ => {}
        }
        false
    });
    parts.map(str::trim).filter(|part| !part.is_empty())
}

/// Writes a head: its first line, its fields, the empty line.
pub(super) fn write_head(line: &str, fields: &Fields) -> Vec<u8> {
    let mut text = format!("{line}\r\n");
    for (name, value) in &fields.0 {
        // Writing to a string does not fail.
        let _ = write!(text, "{name}: {value}\r\n");
    }
    text += "\r\n";
    // Back to the octets that they were; a request's target is ASCII.
    text.chars().map(|letter| u8::try_from(u32::from(letter)).unwrap_or(b'?')).collect()
}

/// A request's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    /// Whether its sender speaks HTTP/1.1, not 1.0.
    pub(super) is_1_1: bool,
    pub(super) fields: Fields,
}

impl Request {
    /// Says whether its sender wants to ask more on the connection (RFC 9112, 9.3).
    pub(super) fn keeps_alive(&self) -> bool {
        let says = |option| {
            ["Connection", "Proxy-Connection"].iter().any(|name| self.fields.has_member(name, option))
        };
        !says("close") && (self.is_1_1 || says("keep-alive"))
    }

    /// Returns how many more machines may forward it, where that is limited (RFC 9110, 7.6.2).
    pub(super) fn max_forwards(&self) -> Option<u32> {
        let is_limited = matches!(self.method.as_str(), "OPTIONS" | "TRACE");
        self.fields.get("Max-Forwards").filter(|_| is_limited)?.parse().ok()
    }
}

/// A response's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) reason: String,
    /// Whether its sender speaks HTTP/1.1, not 1.0.
    pub(super) is_1_1: bool,
    pub(super) fields: Fields,
}

/// What the start of a connection's input is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Parsed<T> {
    /// A whole head, and how many octets it took.
    Whole(T, usize),
    /// Not all of one yet.
    Incomplete,
    /// Nothing that can become one.
    Malformed,
}

/// Parses a request's head.
pub(super) fn parse_request(input: &[u8]) -> Parsed<Request> {
    let mut headers = [httparse::EMPTY_HEADER; FIELD_LIMIT];
    let mut request = httparse::Request::new(&mut headers);
    let length = match whole(input, request.parse(head_of(input))) {
        Parsed::Whole((), length) => length,
        Parsed::Incomplete => return Parsed::Incomplete,
        Parsed::Malformed => return Parsed::Malformed,
    };
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let (method, target) = (method.to_owned(), target.to_owned());
    let is_1_1 = request.version == Some(1);
    Parsed::Whole(Request { method, target, is_1_1, fields: Fields::from_parsed(request.headers) }, length)
}

/// Parses a response's head.
pub(super) fn parse_response(input: &[u8]) -> Parsed<Response> {
    let mut headers = [httparse::EMPTY_HEADER; FIELD_LIMIT];
    let mut response = httparse::Response::new(&mut headers);
    let length = match whole(input, response.parse(head_of(input))) {
        Parsed::Whole((), length) => length,
        Parsed::Incomplete => return Parsed::Incomplete,
        Parsed::Malformed => return Parsed::Malformed,
    };
    let reason = response.reason.unwrap_or_default().to_owned();
    let (status, is_1_1) = (response.code.unwrap_or_default(), response.version == Some(1));
    Parsed::Whole(Response { status, reason, is_1_1, fields: Fields::from_parsed(response.headers) }, length)
}

/// What a head's parser gets to see: only the head, so that it looks at no body twice.
fn head_of(input: &[u8]) -> &[u8] {
    &input[..head_length(input).unwrap_or(input.len())]
}

fn whole(input: &[u8], result: httparse::Result<usize>) -> Parsed<()> {
    match result {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_LIMIT => Parsed::Whole((), length),
        Ok(httparse::Status::Partial) if input.len() <= HEAD_LIMIT => Parsed::Incomplete,
        Ok(_) | Err(_) => Parsed::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(text: &str) -> Parsed<Request> {
        parse_request(text.as_bytes())
    }

    /// RFC 9112, 2.2, 5.1 and 5.2.
    #[test]
    fn what_is_no_head_is_malformed() {
        for text in
            ["GET / HTTP/1.1\r\nHost : a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", "GET\r\n\r\n"]
        {
            assert_eq!(request(text), Parsed::Malformed, "{text}");
        }
        assert_eq!(request("GET http://a/ HTTP/1.1\r\nHost: a\r\n"), Parsed::Incomplete);
        assert_eq!(parse_request(&vec![b'a'; HEAD_LIMIT + 1]), Parsed::Malformed);
    }

    /// RFC 9110, 7.6.1 and 5.6.1.
    #[test]
    fn fields_for_this_hop_and_those_that_connection_names_end_here() {
        let text = "GET / HTTP/1.1\r\nConnection: close, X-Own\r\nx-own: 1\r\nKeep-Alive: 5\r\nTE: a\r\nB: \"x, y\" , z\r\n\r\n";
        let Parsed::Whole(mut request, _) = request(text) else { panic!("no request") };
        request.fields.remove_hop_by_hop();
        assert_eq!(write_head("", &request.fields), b"\r\nB: \"x, y\" , z\r\n\r\n");
        assert_eq!(request.fields.members("b").collect::<Vec<_>>(), ["\"x, y\"", "z"]);
    }

    proptest! {
        #[test]
        fn anything_may_arrive(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (parse_request(&bytes), parse_response(&bytes));
        }
    }
}
