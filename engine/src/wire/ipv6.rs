//! What a bridge must know of IPv6: whether a frame is a router advertisement.
//!
//! The parser asks for IPv6 frames that a pod's bridge would forward. Invariant: what hides its upper-layer header behind
//! fragments is taken for the worst. Allowed dependencies: none. Read first: RFC 8200, 4; RFC 7113, 3 and 4.

mod field {
    use std::ops::Range;
    pub(super) const NEXT_HEADER: usize = 6;
    pub(super) const EXTENSIONS: usize = 40;
    pub(super) const FRAGMENT_OFFSET: Range<usize> = 2..4;
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;
const ROUTER_ADVERTISEMENT: u8 = 134;
/// Extension headers looked through; a sender in good faith has fewer.
const EXTENSION_LIMIT: usize = 16;

/// Tells whether an IPv6 packet is, or may hide, a router advertisement (RFC 4861, 4.2).
#[cold]
#[must_use]
pub fn is_router_advertisement(packet: &[u8]) -> bool {
    let Some(&first) = packet.get(field::NEXT_HEADER) else { return false };
    let (mut next, mut at, mut fragment) = (first, field::EXTENSIONS, false);
    for _ in 0..EXTENSION_LIMIT {
        // A first fragment without the whole chain of headers may hide anything (RFC 7113, 4.2).
        let Some(header) = packet.get(at..).filter(|header| !header.is_empty()) else { return fragment };
        let length = header.get(1).map(|&length| usize::from(length));
        let skipped = match next {
            ICMPV6 => return header[0] == ROUTER_ADVERTISEMENT,
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => length.map(|eights| (eights + 1) * 8),
            AUTHENTICATION => length.map(|fours| (fours + 2) * 4),
            FRAGMENT => match header.get(field::FRAGMENT_OFFSET) {
                // Later fragments show no header; without their first they come to nothing.
                Some(offset) if u16::from_be_bytes([offset[0], offset[1]]) >> 3 != 0 => return false,
                Some(_) => {
                    fragment = true;
                    Some(8)
                }
                None => None,
            },
            _ => return false,
        };
        let Some(skipped) = skipped else { return fragment };
        (next, at) = (header[0], at + skipped);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet whose header names `first` and whose bytes behind it are given.
    fn packet(first: u8, rest: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; 40];
        (bytes[0], bytes[6]) = (0x60, first);
        bytes.extend(rest.concat());
        bytes
    }

    #[test]
    fn a_router_advertisement_is_found_behind_any_headers() {
        let advertisement = [ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0, 0, 0];
        let neighbor = [135, 0, 0, 0, 0, 0, 0, 0];
        let options = |next| [next, 0, 1, 4, 0, 0, 0, 0];
        let long_options = |next: u8| [vec![next, 1], vec![0; 14]].concat();
        let fragment = |next, offset: u16| {
            let [high, low] = (offset << 3).to_be_bytes();
            [next, 0, high, low, 0, 0, 0, 1]
        };
        let authentication = |next: u8| [vec![next, 1], vec![0; 10]].concat();
        for (name, packet, found) in [
            ("plain (RFC 4861, 4.2)", packet(ICMPV6, &[&advertisement]), true),
            ("another message", packet(ICMPV6, &[&neighbor]), false),
            ("TCP", packet(6, &[&advertisement]), false),
            ("behind options", packet(HOP_BY_HOP, &[&options(ICMPV6), &advertisement]), true),
            (
                "behind long options",
                packet(DESTINATION_OPTIONS, &[&long_options(ICMPV6), &advertisement]),
                true,
            ),
            (
                "behind authentication (RFC 4302)",
                packet(AUTHENTICATION, &[&authentication(ICMPV6), &advertisement]),
                true,
            ),
            ("in a first fragment", packet(FRAGMENT, &[&fragment(ICMPV6, 0), &advertisement]), true),
            (
                "a first fragment that hides it (RFC 7113, 2.1)",
                packet(FRAGMENT, &[&fragment(DESTINATION_OPTIONS, 0)]),
                true,
            ),
            ("a later fragment", packet(FRAGMENT, &[&fragment(ICMPV6, 9), &advertisement]), false),
            ("another's first fragment", packet(FRAGMENT, &[&fragment(17, 0), &neighbor]), false),
            ("cut off", packet(ICMPV6, &[]), false),
            ("cut off in its header", vec![0x60; 6], false),
            ("more headers than anybody needs", packet(HOP_BY_HOP, &[&options(HOP_BY_HOP).repeat(20)]), true),
        ] {
            assert_eq!(is_router_advertisement(&packet), found, "{name}");
        }
    }
}
