//! DNS queries for addresses, as a stub resolver sends and reads them.
//!
//! `resolver.rs` keeps the conversation; this is the format. Invariants: answers are believed only for the query's number and name; any
//! input is an answer or `None`, never a panic. Depends on nothing. Read first: RFC 1035 section 4.

use std::net::Ipv4Addr;

const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;
/// Compression pointers that are followed in one name.
const POINTER_LIMIT: usize = 16;
/// Records of one answer that are looked at.
const RECORD_LIMIT: u16 = 256;

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// The name's addresses; none when it has only others.
    Addresses(Vec<Ipv4Addr>),
    /// There is no such name.
    NoSuchName,
    /// The server cannot say.
    ServerFailure,
}

/// Writes a query for a name's addresses; `None` when it is no domain name.
pub(super) fn query(number: u16, name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(HEADER + name.len() + 6);
    bytes.extend_from_slice(&number.to_be_bytes());
    // Recursion desired; one question.
    bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        bytes.push(length);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    if bytes.len() > HEADER + 255 {
        return None;
    }
    bytes.extend_from_slice(&TYPE_A.to_be_bytes());
    bytes.extend_from_slice(&CLASS_IN.to_be_bytes());
    Some(bytes)
}

/// Reads the answer to a query; `None` when it is the answer to another or none at all.
pub(super) fn answer(query: &[u8], bytes: &[u8]) -> Option<Answer> {
    let question = query.get(HEADER..)?;
    let asked = bytes.get(HEADER..HEADER + question.len())?;
    let is_response = bytes[2] & 0x80 != 0;
    if bytes[..2] != query[..2] || !is_response || !asked.eq_ignore_ascii_case(question) {
        return None;
    }
    match bytes[3] & 0x0f {
        0 => {}
        3 => return Some(Answer::NoSuchName),
        _ => return Some(Answer::ServerFailure),
    }
    let mut addresses = Vec::new();
    let mut at = HEADER + question.len();
    let count = u16::from_be_bytes([bytes[6], bytes[7]]).min(RECORD_LIMIT);
    for _ in 0..count {
        at = skip_name(bytes, at)?;
        let &[kind_high, kind_low, class_high, class_low, _, _, _, _, length_high, length_low] =
            bytes.get(at..)?.first_chunk::<10>()?;
        let data =
            bytes.get(at + 10..at + 10 + usize::from(u16::from_be_bytes([length_high, length_low])))?;
        let kind = u16::from_be_bytes([kind_high, kind_low]);
        let class = u16::from_be_bytes([class_high, class_low]);
        if let (TYPE_A, CLASS_IN, &[a, b, c, d]) = (kind, class, data) {
            addresses.push(Ipv4Addr::new(a, b, c, d));
        }
        at += 10 + data.len();
    }
    Some(Answer::Addresses(addresses))
}

fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    for _ in 0..POINTER_LIMIT * 8 {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length if length >= 0xc0 => return Some(at + 2),
            length if length < 64 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1034, 3.6.2: aliases; RFC 1035, 4.1.4: compression.
    #[test]
    fn addresses_are_found_behind_other_records() {
        let query = query(7, "web.default").unwrap();
        let mut bytes = query.clone();
        bytes[2] |= 0x80;
        bytes[7] = 2;
        bytes.extend_from_slice(&[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12]);
        bytes.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 96, 0, 1]);
        assert_eq!(answer(&query, &bytes), Some(Answer::Addresses(vec![Ipv4Addr::new(10, 96, 0, 1)])));
        bytes[1] ^= 1;
        assert_eq!(answer(&query, &bytes), None, "the answer to another query");
    }

    /// RFC 1035, 2.3.4.
    #[test]
    fn names_that_are_none_are_refused() {
        for name in ["", "a..b", &"a".repeat(64), &"abc.".repeat(70)] {
            assert_eq!(query(1, name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn anything_may_arrive(mut tail in proptest::collection::vec(any::<u8>(), 0..100), records: u8) {
            let query = query(7, "web").unwrap();
            let mut bytes = query.clone();
            bytes[2] |= 0x80;
            bytes[7] = records;
            bytes.append(&mut tail);
            let _ = answer(&query, &bytes);
            let _ = answer(&query, &tail);
        }
    }
}
