//! FastCGI records, as web servers and PHP exchange them.
//!
//! nginx writes requests and reads answers with it, php-fpm the other way round. Invariant: a record's content is at most 65,535 octets,
//! longer streams take several. Depends on nothing. Read first: the FastCGI 1.0 specification, sections 3 and 5.

/// The kinds of records that a responder and its server exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    BeginRequest,
    AbortRequest,
    EndRequest,
    Params,
    Stdin,
    Stdout,
    Stderr,
    Unknown(u8),
}

impl From<u8> for Kind {
    fn from(value: u8) -> Self {
        match value {
            1 => Kind::BeginRequest,
            2 => Kind::AbortRequest,
            3 => Kind::EndRequest,
            4 => Kind::Params,
            5 => Kind::Stdin,
            6 => Kind::Stdout,
            7 => Kind::Stderr,
            other => Kind::Unknown(other),
        }
    }
}

impl From<Kind> for u8 {
    fn from(value: Kind) -> u8 {
        match value {
            Kind::BeginRequest => 1,
            Kind::AbortRequest => 2,
            Kind::EndRequest => 3,
            Kind::Params => 4,
            Kind::Stdin => 5,
            Kind::Stdout => 6,
            Kind::Stderr => 7,
            Kind::Unknown(other) => other,
        }
    }
}

const VERSION: u8 = 1;
const HEADER: usize = 8;
const MAXIMUM_CONTENT: usize = 65_528;

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) request: u16,
    pub(super) content: Vec<u8>,
}

/// What the start of a connection's input is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Parsed {
    /// A whole record, and how many octets it took.
    Record(Record, usize),
    /// Not all of one yet.
    Incomplete,
    /// Another version.
    Malformed,
}

/// Parses a record.
pub(super) fn parse(input: &[u8]) -> Parsed {
    let Some(&[version, kind, request_high, request_low, length_high, length_low, padding, _]) =
        input.first_chunk::<HEADER>()
    else {
        return Parsed::Incomplete;
    };
    if version != VERSION {
        return Parsed::Malformed;
    }
    let end = HEADER + usize::from(u16::from_be_bytes([length_high, length_low]));
    let total = end + usize::from(padding);
    if input.len() < total {
        return Parsed::Incomplete;
    }
    let request = u16::from_be_bytes([request_high, request_low]);
    Parsed::Record(Record { kind: kind.into(), request, content: input[HEADER..end].to_vec() }, total)
}

/// Writes one record.
pub(super) fn write_record(bytes: &mut Vec<u8>, kind: Kind, request: u16, content: &[u8]) {
    let [request_high, request_low] = request.to_be_bytes();
    let [length_high, length_low] = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    bytes.extend_from_slice(&[
        VERSION,
        kind.into(),
        request_high,
        request_low,
        length_high,
        length_low,
        0,
        0,
    ]);
    bytes.extend_from_slice(&content[..content.len().min(usize::from(u16::MAX))]);
}

/// Writes a whole stream: its content, then the empty record that ends it.
pub(super) fn write_stream(bytes: &mut Vec<u8>, kind: Kind, request: u16, content: &[u8]) {
    for part in content.chunks(MAXIMUM_CONTENT) {
        write_record(bytes, kind, request, part);
    }
    write_record(bytes, kind, request, &[]);
}

/// Writes name and value of one parameter; each shorter than 128 octets has a short length.
pub(super) fn write_parameter(bytes: &mut Vec<u8>, name: &str, value: &str) {
    for text in [name, value] {
        match u8::try_from(text.len()) {
            Ok(length) if length < 128 => bytes.push(length),
            Ok(_) | Err(_) => bytes.extend_from_slice(&(text.len() as u32 | 0x8000_0000).to_be_bytes()),
        }
    }
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(value.as_bytes());
}

/// Reads all parameters; `None` when a length is wrong.
pub(super) fn parse_parameters(mut bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let mut parameters = Vec::new();
    while !bytes.is_empty() {
        let name = take_length(&mut bytes)?;
        let value = take_length(&mut bytes)?;
        let pair = bytes.get(..name.checked_add(value)?)?;
        let (name_bytes, value_bytes) = pair.split_at(name);
        parameters.push((
            String::from_utf8_lossy(name_bytes).into_owned(),
            String::from_utf8_lossy(value_bytes).into_owned(),
        ));
        bytes = &bytes[name + value..];
    }
    Some(parameters)
}

fn take_length(bytes: &mut &[u8]) -> Option<usize> {
    let (&first, rest) = bytes.split_first()?;
    if first < 128 {
        *bytes = rest;
        return Some(usize::from(first));
    }
    let word = u32::from_be_bytes(*bytes.first_chunk::<4>()?);
    *bytes = &bytes[4..];
    usize::try_from(word & 0x7fff_ffff).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_and_parameters_go_both_ways(name in "[A-Z_]{0,300}", value in ".{0,300}", cut in 0usize..8) {
            let mut parameters = Vec::new();
            write_parameter(&mut parameters, &name, &value);
            let mut bytes = Vec::new();
            write_stream(&mut bytes, Kind::Params, 1, &parameters);
            prop_assert_eq!(parse(&bytes[..cut]), Parsed::Incomplete);
            let Parsed::Record(record, length) = parse(&bytes) else { panic!("no record") };
            prop_assert_eq!(record.kind, Kind::Params);
            prop_assert_eq!(parse_parameters(&record.content), Some(vec![(name, value)]));
            prop_assert!(matches!(parse(&bytes[length..]), Parsed::Record(end, 8) if end.content.is_empty()));
        }

        #[test]
        fn anything_may_arrive(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
            let _ = parse_parameters(&bytes);
        }
    }
}
