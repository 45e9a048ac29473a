//! What a node takes of what comes to the host's interface: a filter that the system runs on each frame before it is copied. Of an
//! interface that is a pod it takes everything.
//!
//! `link::uplink` gives it to its socket. All else there is the host's own, which gets what is ours as well and has to be kept
//! from answering by other means. Invariant: what a binding or a NodePort may be for passes, with what routers say about it.
//! Of a fragment behind the first nothing tells: the system puts them together before it asks. Allowed dependencies:
//! `masquerade`, `sys`. Read first: the kernel's `Documentation/networking/filter.rst`; RFC 792.

use std::net::Ipv4Addr;

use flatnet_proxy::Ipv4Prefix;

use crate::masquerade::PortRange;
use crate::sys::Instruction;

/// Where in a frame the IPv4 header begins.
const NETWORK: u32 = 14;
/// Behind an IPv4 header, an ICMP error's own is before what it quotes.
const QUOTED: u32 = NETWORK + 8;
/// Bytes of the frame that are copied: all.
const ALL: u32 = u32::MAX;
/// The type of the frame, as an offset that the system knows (`SKF_AD_OFF + SKF_AD_PKTTYPE`).
const FRAME_TYPE: u32 = 0xffff_f004;
/// A frame of this host's own, on its way out (`PACKET_OUTGOING`).
const OUTGOING: u32 = 4;
/// A frame for this host's MAC (`PACKET_HOST`).
const TO_HOST: u32 = 0;

// Codes of instructions: what is loaded from where, what is compared with what.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_WORD_AT_X: u16 = 0x40;
const LOAD_HALF_AT_X: u16 = 0x48;
const LOAD_BYTE_AT_X: u16 = 0x50;
/// Four times the lower half of a byte: an IPv4 header's length.
const LOAD_HEADER_LENGTH_TO_X: u16 = 0xb1;
const AND: u16 = 0x54;
const SHIFT_LEFT: u16 = 0x64;
const ADD_X: u16 = 0x0c;
const TO_X: u16 = 0x07;
const IS: u16 = 0x15;
const IS_X: u16 = 0x1d;
const IS_ABOVE: u16 = 0x25;
const IS_AT_LEAST: u16 = 0x35;
const HAS_BITS: u16 = 0x45;
const RETURN: u16 = 0x06;

// Protocols, ICMP's types and ARP's operation.
const ICMP: u32 = 1;
const TCP: u32 = 6;
const UDP: u32 = 17;
const ECHO_REPLY: u32 = 0;
const UNREACHABLE: u32 = 3;
const TIME_EXCEEDED: u32 = 11;
const PARAMETER_PROBLEM: u32 = 12;
const TIMESTAMP_REPLY: u32 = 14;
const ARP_REPLY: u32 = 2;

/// Where a jump leads: downwards, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Next,
    /// Over one instruction.
    Over,
    Pods,
    Own,
    Arp,
    Gratuitous,
    Icmp,
    Identifier,
    Error,
    ErrorAboutQuery,
    Take,
    Leave,
}

/// What a socket takes of an interface's frames.
#[derive(Debug, Clone)]
pub struct Filter {
    /// What the system runs on each.
    pub instructions: Vec<Instruction>,
    /// Whether it puts fragments together before.
    pub joins_fragments: bool,
}

/// Writes the filter that takes all that comes, as it comes, and nothing that this host sends.
#[must_use]
pub fn all() -> Filter {
    let mut it = Writer::default();
    it.run(LOAD_WORD, FRAME_TYPE);
    it.jump(IS, OUTGOING, (Place::Leave, Place::Take));
    Filter { instructions: it.finish(), joins_fragments: false }
}

/// Writes the filter for a node's address, and the ports that are its own there: it takes what is sent to them, whatever answers
/// queries with such identifiers, ICMP errors about what came from them, and answers to questions for MACs. With a subnet of
/// pods it takes what is sent to those and comes to this host's MAC, too.
#[must_use]
pub fn filter(own: Ipv4Addr, ports: &[PortRange], pods: Option<Ipv4Prefix>) -> Filter {
    use Place::{Arp, Error, ErrorAboutQuery, Gratuitous, Icmp, Identifier, Leave, Next, Own, Pods, Take};
    let (own, mut it) = (own.to_bits(), Writer::default());
    it.run(LOAD_WORD, FRAME_TYPE);
    it.jump(IS, OUTGOING, (Leave, Next));
    it.run(LOAD_HALF, 12);
    it.jump(IS, 0x0806, (Arp, Next));
    it.jump(IS, 0x0800, (Next, Leave));
    it.run(LOAD_WORD, NETWORK + 16);
    it.jump(IS, own, (Own, Pods));
    it.place(Pods);
    it.pods(pods);
    it.place(Own);
    // A fragment behind the first has no ports; none comes.
    it.run(LOAD_HALF, NETWORK + 6);
    it.jump(HAS_BITS, 0x1fff, (Leave, Next));
    it.run(LOAD_HEADER_LENGTH_TO_X, NETWORK);
    it.run(LOAD_BYTE, NETWORK + 9);
    it.jump(IS, ICMP, (Icmp, Next));
    it.jump(IS, TCP, (Place::Over, Next));
    it.jump(IS, UDP, (Next, Leave));
    it.run(LOAD_HALF_AT_X, NETWORK + 2);
    it.ports(ports);

    it.place(Icmp);
    it.run(LOAD_BYTE_AT_X, NETWORK);
    it.jump(IS, ECHO_REPLY, (Identifier, Next));
    it.jump(IS, TIMESTAMP_REPLY, (Identifier, Next));
    for error in [UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM] {
        it.jump(IS, error, (Error, Next));
    }
    it.run(RETURN, 0);

    it.place(Identifier);
    it.run(LOAD_HALF_AT_X, NETWORK + 4);
    it.ports(ports);

    it.place(Error);
    it.run(LOAD_WORD_AT_X, QUOTED + 12);
    it.jump(IS, own, (Next, Leave));
    it.run(LOAD_BYTE_AT_X, QUOTED + 9);
    it.jump(IS, ICMP, (ErrorAboutQuery, Next));
    it.add_quoted_header();
    it.run(LOAD_HALF_AT_X, QUOTED);
    it.ports(ports);

    it.place(ErrorAboutQuery);
    it.add_quoted_header();
    it.run(LOAD_HALF_AT_X, QUOTED + 4);
    it.ports(ports);

    it.place(Arp);
    it.run(LOAD_HALF, NETWORK + 6);
    it.jump(IS, ARP_REPLY, (Take, Gratuitous));
    // Who says that its address is elsewhere now asks for itself. Others ask the host, which answers.
    it.place(Gratuitous);
    it.run(LOAD_WORD, NETWORK + 14);
    it.run(TO_X, 0);
    it.run(LOAD_WORD, NETWORK + 24);
    it.jump(IS_X, 0, (Take, Leave));

    Filter { instructions: it.finish(), joins_fragments: true }
}

/// A filter that is being written.
#[derive(Default)]
struct Writer {
    lines: Vec<(u16, u32, Place, Place)>,
    places: Vec<(Place, usize)>,
}

impl Writer {
    fn place(&mut self, place: Place) {
        self.places.push((place, self.lines.len()));
    }

    fn run(&mut self, code: u16, operand: u32) {
        self.jump(code, operand, (Place::Next, Place::Next));
    }

    fn jump(&mut self, code: u16, operand: u32, (yes, no): (Place, Place)) {
        self.lines.push((code, operand, yes, no));
    }

    /// Takes a frame for this host's MAC if the address that was loaded is a pod's, else leaves it.
    fn pods(&mut self, pods: Option<Ipv4Prefix>) {
        if let Some(pods) = pods {
            self.run(AND, u32::MAX.checked_shl(32 - u32::from(pods.length())).unwrap_or(0));
            self.jump(IS, pods.address().to_bits(), (Place::Next, Place::Leave));
            self.run(LOAD_WORD, FRAME_TYPE);
            self.jump(IS, TO_HOST, (Place::Take, Place::Next));
        }
        self.run(RETURN, 0);
    }

    /// Takes the frame if what was loaded is one of these ports, else leaves it.
    fn ports(&mut self, ranges: &[PortRange]) {
        for PortRange { first, last } in ranges {
            self.jump(IS_AT_LEAST, u32::from(*first), (Place::Next, Place::Over));
            self.jump(IS_ABOVE, u32::from(*last), (Place::Next, Place::Take));
        }
        self.run(RETURN, 0);
    }

    /// Adds the length of the quoted header to that of the error's own.
    fn add_quoted_header(&mut self) {
        self.run(LOAD_BYTE_AT_X, QUOTED);
        self.run(AND, 0x0f);
        self.run(SHIFT_LEFT, 2);
        self.run(ADD_X, 0);
        self.run(TO_X, 0);
    }

    fn finish(mut self) -> Vec<Instruction> {
        self.place(Place::Take);
        self.run(RETURN, ALL);
        self.place(Place::Leave);
        self.run(RETURN, 0);
        let distance = |place, here: usize| {
            let found = self.places.iter().find(|(it, _)| *it == place);
            found.map_or(usize::from(place == Place::Over), |(_, at)| at - here - 1)
        };
        let lines = self.lines.iter().enumerate();
        lines
            .map(|(here, &(code, operand, yes, no))| Instruction {
                code,
                jt: distance(yes, here) as u8,
                jf: distance(no, here) as u8,
                k: operand,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::sys::attach_filter;

    const OWN: [u8; 4] = [192, 168, 66, 11];
    const OTHER: [u8; 4] = [203, 0, 113, 10];
    const RANGES: [PortRange; 2] =
        [PortRange { first: 61_000, last: 65_535 }, PortRange { first: 30_000, last: 32_767 }];

    /// Which of these frames the system lets through.
    fn taken(frames: &[Vec<u8>], pods: Option<Ipv4Prefix>) -> Vec<bool> {
        let (near, far) = UnixDatagram::pair().unwrap();
        attach_filter(&far, &filter(OWN.into(), &RANGES, pods).instructions).unwrap();
        far.set_nonblocking(true).unwrap();
        frames
            .iter()
            .map(|frame| {
                near.send(frame).unwrap();
                let mut whole = vec![0; frame.len() + 1];
                far.recv(&mut whole).is_ok_and(|length| length == frame.len())
            })
            .collect()
    }

    fn frame(packet: &[u8]) -> Vec<u8> {
        [&[2; 12][..], &[8, 0], packet].concat()
    }

    /// A packet with so many bytes of options.
    fn packet(ends: ([u8; 4], [u8; 4]), protocol: u8, options: usize, payload: &[u8]) -> Vec<u8> {
        let mut head = vec![0x45 + (options / 4) as u8, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        head.extend([ends.0, ends.1].concat());
        head.extend(vec![1; options]);
        head.extend(payload);
        head
    }

    fn ports(source: u16, destination: u16) -> Vec<u8> {
        [&source.to_be_bytes()[..], &destination.to_be_bytes(), &[0; 4]].concat()
    }

    /// An ICMP message with an identifier, or with what it quotes behind eight bytes.
    fn icmp(kind: u8, identifier: u16, quoted: &[u8]) -> Vec<u8> {
        [&[kind, 0, 0, 0][..], &identifier.to_be_bytes(), &[0, 1], quoted].concat()
    }

    #[test]
    fn what_is_for_the_nodes_ports_is_taken_and_nothing_else() {
        let to = |port| ports(80, port);
        let own = (OTHER, OWN);
        let mut expected = Vec::new();
        let mut frames = Vec::new();
        let mut case = |frame: Vec<u8>, is_taken: bool| {
            frames.push(frame);
            expected.push(is_taken);
        };
        for (port, is_own) in [
            (29_999, false),
            (30_000, true),
            (32_767, true),
            (32_768, false),
            (60_999, false),
            (61_000, true),
            (65_535, true),
            (22, false),
        ] {
            for (protocol, options) in [(6, 0), (17, 0), (6, 8), (17, 40)] {
                case(frame(&packet(own, protocol, options, &to(port))), is_own);
                case(frame(&packet((OTHER, OTHER), protocol, options, &to(port))), false);
            }
            // By what else has such a number: none of a protocol without ports.
            case(frame(&packet(own, 47, 0, &to(port))), false);
            for kind in [0, 14] {
                case(frame(&packet(own, 1, 4, &icmp(kind, port, &[]))), is_own);
            }
            // The host answers.
            case(frame(&packet(own, 1, 0, &icmp(8, port, &[]))), false);
            for kind in [3, 11, 12] {
                for (protocol, options) in [(6, 0), (17, 12)] {
                    let quoted = |from| packet((from, OTHER), protocol, options, &ports(port, 61_000));
                    case(frame(&packet(own, 1, 8, &icmp(kind, 0, &quoted(OWN)))), is_own);
                    case(frame(&packet(own, 1, 0, &icmp(kind, 0, &quoted(OTHER)))), false);
                }
                let quoted = packet((OWN, OTHER), 1, 4, &icmp(8, port, &[]));
                case(frame(&packet(own, 1, 0, &icmp(kind, 0, &quoted))), is_own);
            }
        }
        let mut later = packet(own, 17, 0, &to(22));
        later[7] = 1;
        case(frame(&later), false);
        let mut first = packet(own, 17, 0, &to(22));
        first[6] = 0x20;
        case(frame(&first), false);
        // What ends too early.
        case(frame(&packet(own, 17, 0, &[0])), false);
        case(vec![0; 13], false);
        for pods in [None, Some("10.1.15.0/24".parse().unwrap())] {
            assert_eq!(taken(&frames, pods), expected);
        }
    }

    #[test]
    fn whatever_is_for_the_nodes_pods_is_taken_with_their_subnet() {
        let to = |to, protocol| frame(&packet((OTHER, to), protocol, 0, &ports(7, 22)));
        let mut later = to([10, 1, 15, 9], 17);
        later[14 + 7] = 3;
        let frames = [
            to([10, 1, 15, 0], 6),
            to([10, 1, 15, 255], 17),
            to([10, 1, 15, 2], 47),
            later,
            to([10, 1, 14, 255], 6),
            to([10, 1, 16, 0], 6),
            to(OTHER, 6),
        ];
        let pods = |text: &str| taken(&frames, Some(text.parse().unwrap()));
        assert_eq!(pods("10.1.15.0/24"), [true, true, true, true, false, false, false]);
        assert_eq!(pods("10.1.15.8/30"), [false, false, false, true, false, false, false]);
        assert_eq!(taken(&frames, None), [false; 7]);
    }

    #[test]
    fn of_arp_only_what_says_where_somebody_is_is_taken() {
        let arp = |operation: u8, sender: [u8; 4], target: [u8; 4]| {
            let head = [&[2; 12][..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
            [&head[..], &[2; 6], &sender, &[0; 6], &target].concat()
        };
        let frames = [arp(2, OTHER, OWN), arp(1, OTHER, OWN), arp(1, OTHER, OTHER)];
        assert_eq!(taken(&frames, None), [true, false, true]);
    }
}
