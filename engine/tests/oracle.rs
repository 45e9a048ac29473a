//! Linux as oracle: the same frames through a kernel's bridge, routes, MASQUERADE and Services as kube-proxy writes them in
//! nftables, and through a node of ours.
//!
//! What comes out at each end must be the same frames, but for what `docs/linux.md` names. Needs root,
//! `ip`, `nft` and `unshare`. Above 600 lines because the cases are one table.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test stops at the first surprise; one case per rule"
)]

mod common;
// Not part of `common`, which the fuzz targets build, too.
#[path = "common/kernel.rs"]
mod kernel;

use common::*;
use flatnet_engine::wire::{
    ArpOperation, IcmpPacket, IcmpType, IpProtocol, Ipv4Packet, MacAddress, TcpFlags, UdpDatagram,
};
use kernel::{DOCKER0, EMPTY_VIP, Kernel, Node, OUTSIDE_VIP, Ours, in_a_namespace};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Pads as a wire does, and forgets what a node may choose: the identification of what it makes itself, and of fragments
/// whose source it has translated.
fn plain(mut frames: BTreeMap<Ipv4Addr, Vec<Vec<u8>>>) -> BTreeMap<Ipv4Addr, Vec<Vec<u8>>> {
    for frame in frames.values_mut().flatten() {
        let made_by_node = frame[12..14] == [8, 0]
            && (frame[26..30] == NODE1.octets() || frame[26..30] == DOCKER0.octets())
            && (frame[23] == 1 || frame[23] == 6);
        let in_fragments = frame[12..14] == [8, 0]
            && frame[26..30] == NODE1.octets()
            && Ipv4Packet::new_unchecked(&frame[14..]).is_fragment();
        if made_by_node || in_fragments {
            let mut header = Ipv4Packet::new_unchecked(&mut frame[14..]);
            header.set_identification(0);
            let is_error = header.protocol() == IpProtocol::Icmp;
            let (dont, more, offset) = (false, header.more_fragments(), header.fragment_offset());
            if is_error || header.dont_fragment() {
                header.set_fragmentation(dont, more, offset);
            }
            header.fill_header_checksum();
        }
    }
    frames
}

struct Case {
    name: &'static str,
    at: Ipv4Addr,
    frames: Vec<Vec<u8>>,
    /// At how many ends of ours something comes out: that a case shows something is part of it.
    ends: usize,
    /// Why we do otherwise than Linux, where we do.
    differs: Option<&'static str>,
}

fn case(name: &'static str, at: Ipv4Addr, frames: Vec<Vec<u8>>, ends: usize) -> Case {
    Case { name, at, frames, ends, differs: None }
}

fn differs(because: &'static str, case: Case) -> Case {
    Case { differs: Some(because), ..case }
}

fn through(at: Ipv4Addr, packet: &[u8]) -> Vec<u8> {
    ethernet(mac(if at == USER { NODE1 } else { DOCKER0 }), mac(at), packet)
}

/// An IPv4 packet changed by hand, its header's checksum made anew.
fn with(mut packet: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut packet);
    Ipv4Packet::new_unchecked(&mut packet[..]).fill_header_checksum();
    packet
}

/// Four bytes of options behind the header.
fn with_options(packet: &[u8], options: [u8; 4]) -> Vec<u8> {
    let longer = [&packet[..20], &options, &packet[20..]].concat();
    with(longer, |bytes| {
        bytes[0] = 0x46;
        let length = bytes.len() as u16;
        Ipv4Packet::new_unchecked(bytes).set_total_length(length);
    })
}

/// A tag of no VLAN in front of what a frame carries.
fn priority_tagged(mut frame: Vec<u8>) -> Vec<u8> {
    frame.splice(12..12, [0x81, 0, 0xa0, 0]);
    frame
}

fn may_cut(packet: Vec<u8>, identification: u16) -> Vec<u8> {
    with(packet, |bytes| {
        let mut header = Ipv4Packet::new_unchecked(bytes);
        header.set_fragmentation(false, false, 0);
        header.set_identification(identification);
    })
}

fn unreachable(about: &[u8]) -> Vec<u8> {
    let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
    message.extend(about);
    IcmpPacket::new_unchecked(&mut message[..]).fill_checksum();
    ipv4_packet(USER, NODE1, IpProtocol::Icmp, 64, &message)
}

fn cases() -> Vec<Case> {
    let udp = |from, to, ports, data: &[u8]| udp_packet(from, to, ports, data, 64);
    let echo = |from, to, ttl| echo_packet(from, to, IcmpType::EchoRequest, 4000, ttl);
    let long = vec![7; 1390];
    let mut no_checksum = udp(APP2, USER, (4001, 53), b"no checksum");
    UdpDatagram::new_unchecked(&mut no_checksum[20..]).set_checksum(0);
    let fragments: Vec<_> = {
        let whole = may_cut(udp(APP2, USER, (4002, 53), &[5; 1200]), 77);
        [(0..800, true), (800..1208, false)]
            .into_iter()
            .map(|(range, more)| through(APP2, &fragment_of(&whole, range.clone(), more, range.start)))
            .collect()
    };
    let in_pieces = |from, packet: &[u8], ranges: &[std::ops::Range<usize>]| -> Vec<Vec<u8>> {
        let length = packet.len() - 20;
        let piece = |range: &std::ops::Range<usize>| {
            through(from, &fragment_of(packet, range.clone(), range.end < length, range.start))
        };
        ranges.iter().map(piece).collect()
    };
    // A message of its own for each: they would be fragments of one otherwise.
    let long_echo = |identification, length: usize| {
        let mut message = [vec![8, 0, 0, 0, 0, 7, 0, 1], vec![6; length]].concat();
        IcmpPacket::new_unchecked(&mut message[..]).fill_checksum();
        may_cut(ipv4_packet(APP1, DOCKER0, IpProtocol::Icmp, 64, &message), identification)
    };
    let syn_ack = TcpFlags::SYN.with(TcpFlags::ACK);
    let refused = |about: &[u8]| {
        let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
        message.extend(about);
        IcmpPacket::new_unchecked(&mut message[..]).fill_checksum();
        ipv4_packet(APP2, DOCKER0, IpProtocol::Icmp, 64, &message)
    };
    let bad_length = with(udp(APP2, USER, (4006, 53), b"long"), |bytes| bytes[25] = 99);
    let request =
        |from, target| arp(ArpOperation::Request, (mac(from), from), (MacAddress::default(), target));
    let timestamp = {
        let mut message = [vec![13, 0, 0, 0, 0, 1, 0, 1], vec![0; 12]].concat();
        IcmpPacket::new_unchecked(&mut message[..]).fill_checksum();
        ipv4_packet(APP1, DOCKER0, IpProtocol::Icmp, 64, &message)
    };
    let other = |protocol| ipv4_packet(APP2, USER, IpProtocol::Unknown(protocol), 64, &[0; 16]);
    let query = |kind| {
        let mut message = [kind, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0];
        IcmpPacket::new_unchecked(&mut message[..]).fill_checksum();
        ipv4_packet(APP2, USER, IpProtocol::Icmp, 64, &message)
    };
    let group =
        ethernet(MacAddress::BROADCAST, mac(APP2), &udp(APP2, Ipv4Addr::BROADCAST, (1, 5353), b"all"));
    vec![
        case(
            "pod to pod is bridged as it is (IEEE 802.1D, 7.7)",
            APP2,
            vec![ethernet(mac(APP1), mac(APP2), &udp(APP2, APP1, (1, 2), b"x"))],
            1,
        ),
        case("and back", APP1, vec![ethernet(mac(APP2), mac(APP1), &udp(APP1, APP2, (2, 1), b"y"))], 1),
        case(
            "an unknown station is flooded for (IEEE 802.1D, 7.7.1)",
            APP2,
            vec![ethernet(MacAddress::new([2, 1, 1, 1, 1, 1]), mac(APP2), &udp(APP2, APP1, (1, 2), b"z"))],
            1,
        ),
        case("a broadcast reaches all others (RFC 919, 7)", APP2, vec![group], 1),
        case(
            "other protocols are bridged",
            APP2,
            vec![{
                let mut frame = ethernet(mac(APP1), mac(APP2), &[3; 46]);
                frame[12..14].copy_from_slice(&[0x88, 0xb5]);
                frame
            }],
            1,
        ),
        case(
            "UDP is masqueraded, its port kept (RFC 4787, 4.2.1)",
            APP2,
            vec![through(APP2, &udp(APP2, USER, (4000, 53), b"ask"))],
            1,
        ),
        case(
            "its answer comes home (RFC 3022, 2.2)",
            USER,
            vec![through(USER, &udp(USER, NODE1, (53, 4000), b"answer"))],
            1,
        ),
        case("a zero checksum stays zero (RFC 768)", APP2, vec![through(APP2, &no_checksum)], 1),
        case(
            "TCP is masqueraded (RFC 5382, REQ-2)",
            APP2,
            vec![through(APP2, &tcp_packet(APP2, USER, (4000, 80), TcpFlags::SYN))],
            1,
        ),
        case(
            "SYN and ACK come home",
            USER,
            vec![through(USER, &tcp_packet(USER, NODE1, (80, 4000), TcpFlags::SYN.with(TcpFlags::ACK)))],
            1,
        ),
        case(
            "an acknowledgement of a connection that nobody knows is masqueraded (conntrack's tcp_loose)",
            APP2,
            vec![through(APP2, &tcp_packet(APP2, USER, (4030, 80), TcpFlags::ACK))],
            1,
        ),
        case(
            "a FIN of a connection that nobody knows begins none (conntrack's sIV)",
            APP2,
            vec![through(APP2, &tcp_packet(APP2, USER, (4031, 80), TcpFlags::FIN.with(TcpFlags::ACK)))],
            1,
        ),
        case(
            "a reset of a connection that nobody knows begins none",
            APP2,
            vec![through(APP2, &tcp_packet(APP2, USER, (4032, 80), TcpFlags::RST))],
            1,
        ),
        case(
            "an answer to a SYN that nobody saw begins none",
            APP2,
            vec![through(APP2, &tcp_packet(APP2, USER, (4033, 80), TcpFlags::SYN.with(TcpFlags::ACK)))],
            1,
        ),
        differs(
            "conntrack calls it invalid, so that Linux sends it on with the pod's address; here it is taken for a connection that was \
             open before, as an acknowledgement is in both",
            case(
                "a TCP segment without flags leaves for outside",
                APP2,
                vec![through(APP2, &tcp_packet(APP2, USER, (4034, 80), TcpFlags::default()))],
                1,
            ),
        ),
        case("an echo is masqueraded (RFC 5508, REQ-1)", APP2, vec![through(APP2, &echo(APP2, USER, 64))], 1),
        case(
            "its reply comes home",
            USER,
            vec![through(USER, &echo_packet(USER, NODE1, IcmpType::EchoReply, 4000, 64))],
            1,
        ),
        case(
            "options pass (RFC 791, 3.1: no operations)",
            APP2,
            vec![through(APP2, &with_options(&udp(APP2, USER, (4003, 53), b"o"), [1; 4]))],
            1,
        ),
        case(
            "an error about a masqueraded packet comes home translated (RFC 5508, 4)",
            USER,
            vec![through(USER, &unreachable(&udp(NODE1, USER, (4000, 53), b"ask")))],
            1,
        ),
        case(
            "a TTL that ends is told (RFC 792)",
            APP2,
            vec![through(APP2, &with(udp(APP2, USER, (4000, 53), b"ttl"), |bytes| bytes[8] = 1))],
            1,
        ),
        case(
            "TTL 2 leaves with 1 (RFC 1812, 5.3.1)",
            APP2,
            vec![through(APP2, &with(udp(APP2, USER, (4000, 53), b"ttl"), |bytes| bytes[8] = 2))],
            1,
        ),
        case(
            "too long and not to be cut is told with the MTU (RFC 1191)",
            APP2,
            vec![through(APP2, &udp(APP2, USER, (4004, 53), &long))],
            1,
        ),
        case(
            "too long is cut (RFC 791, 3.2)",
            APP2,
            vec![through(APP2, &may_cut(udp(APP2, USER, (4005, 53), &long), 99))],
            1,
        ),
        differs(
            "Linux puts fragments together to translate them, and keeps the pod's identification, which another pod may give \
             as well; here each follows its first, none waits for the last, and the identification is the node's own \
             (RFC 6864, 5.3.1)",
            case("fragments are masqueraded with their first", APP2, fragments, 1),
        ),
        differs(
            "Linux forwards it; here no host has the broadcast address of a network that the node knows, and it is dropped: martian",
            case(
                "from a network's broadcast address (RFC 1812, 4.2.2.11)",
                USER,
                vec![through(USER, &udp(Ipv4Addr::new(192, 168, 66, 255), APP2, (1, 2), b"all"))],
                0,
            ),
        ),
        differs(
            "Linux gives GRE, ESP and other protocols without ports the node's address; here they \
             are dropped: untranslatable (RFC 4787 to 5508 are about TCP, UDP and ICMP). Pods reach each other by them",
            case("GRE leaves for outside (RFC 2784)", APP2, vec![through(APP2, &other(47))], 0),
        ),
        differs(
            "Linux sends it on with the pod's address, to which no answer comes back; here it is dropped: untranslatable",
            case("SCTP leaves for outside (RFC 9260)", APP2, vec![through(APP2, &other(132))], 0),
        ),
        differs(
            "Linux masquerades these queries as well; they are deprecated (RFC 6918), and here untranslatable",
            case(
                "an address mask request leaves for outside (RFC 950)",
                APP2,
                vec![through(APP2, &query(17))],
                0,
            ),
        ),
        case(
            "a priority tag to the node says nothing else (IEEE 802.1Q, 9.6, table 9-2)",
            APP2,
            vec![priority_tagged(through(APP2, &udp(APP2, USER, (4020, 53), b"tagged")))],
            1,
        ),
        case(
            "a priority tag between pods is gone where one looks (IEEE 802.1Q, 9.6, table 9-2)",
            APP2,
            vec![priority_tagged(ethernet(mac(APP1), mac(APP2), &udp(APP2, APP1, (1, 2), b"x")))],
            1,
        ),
        differs(
            "Linux forwards a packet whose UDP length is wrong, with the pod's address as it is; here it is dropped: \
             malformed-transport",
            case("a wrong UDP length", APP2, vec![through(APP2, &bad_length)], 0),
        ),
        differs(
            "Linux asks every port; here the node answers for pods that it knows (ADR 7)",
            case("ARP for another pod", APP1, vec![request(APP1, APP2)], 1),
        ),
        differs(
            "Linux has a host of its own behind docker0; here the node answers echo and errors only",
            case("a timestamp request (RFC 792)", APP1, vec![through(APP1, &timestamp)], 0),
        ),
        case(
            "the node answers echo at docker0 (RFC 1122, 3.2.2.6)",
            APP1,
            vec![through(APP1, &echo(APP1, DOCKER0, 64))],
            1,
        ),
        case("and at eth0, from a pod", APP1, vec![through(APP1, &echo(APP1, NODE1, 64))], 1),
        case("and from outside", USER, vec![through(USER, &echo(USER, NODE1, 64))], 1),
        case("even with TTL 1 (RFC 1122, 3.2.1.7)", APP1, vec![through(APP1, &echo(APP1, DOCKER0, 1))], 1),
        case(
            "a closed UDP port is told (RFC 1122, 4.1.3.1)",
            APP1,
            vec![through(APP1, &udp(APP1, DOCKER0, (4000, 9), b"x"))],
            1,
        ),
        case(
            "a closed TCP port is reset (RFC 9293, 3.10.7.1)",
            APP1,
            vec![through(APP1, &tcp_packet(APP1, DOCKER0, (4000, 9), TcpFlags::SYN))],
            1,
        ),
        case(
            "a segment of no connection is reset (RFC 9293, 3.10.7.1)",
            APP1,
            vec![through(APP1, &tcp_packet(APP1, DOCKER0, (4000, 9), TcpFlags::ACK))],
            1,
        ),
        case(
            "a reset is not answered (RFC 9293, 3.5.2)",
            APP1,
            vec![through(APP1, &tcp_packet(APP1, DOCKER0, (4000, 9), TcpFlags::RST))],
            0,
        ),
        case(
            "nor is a wrong header checksum (RFC 1812, 5.2.2)",
            APP2,
            vec![{
                let mut frame = through(APP2, &udp(APP2, USER, (4000, 53), b"bad"));
                frame[24] ^= 1;
                frame
            }],
            0,
        ),
        case(
            "nor a truncated header (RFC 1812, 5.2.2)",
            APP2,
            vec![through(APP2, &udp(APP2, USER, (4000, 53), b"")[..19])],
            0,
        ),
        case(
            "nor a length that is too long (RFC 1812, 5.2.2)",
            APP2,
            vec![through(APP2, &with(udp(APP2, USER, (4000, 53), b""), |bytes| bytes[3] = 99))],
            0,
        ),
        case(
            "nor loopback as source (RFC 1122, 3.2.1.3)",
            APP2,
            vec![through(APP2, &udp(Ipv4Addr::LOCALHOST, USER, (1, 2), b""))],
            0,
        ),
        case(
            "nor a group as source (RFC 1122, 3.2.1.3)",
            APP2,
            vec![through(APP2, &udp(Ipv4Addr::new(224, 0, 0, 9), USER, (1, 2), b""))],
            0,
        ),
        case(
            "nor loopback as destination (RFC 1122, 3.2.1.3)",
            USER,
            vec![through(USER, &udp(USER, Ipv4Addr::LOCALHOST, (1, 2), b""))],
            0,
        ),
        case(
            "an error about an error is not sent (RFC 1122, 3.2.2)",
            APP1,
            vec![through(
                APP1,
                &with(unreachable(&udp(DOCKER0, APP1, (1, 2), b"")), |bytes| {
                    bytes[12..16].copy_from_slice(&APP1.octets());
                    bytes[16..20].copy_from_slice(&USER.octets());
                    bytes[8] = 1;
                }),
            )],
            0,
        ),
        case(
            "a frame for another station is not routed (RFC 1812, 5.3.4)",
            USER,
            vec![ethernet(MacAddress::new([2, 5, 5, 5, 5, 5]), mac(USER), &udp(USER, APP1, (1, 2), b""))],
            0,
        ),
        differs(
            "Linux floods the question as well; here it goes no further than to who answers it (ADR 7)",
            case("ARP for docker0 is answered (RFC 826)", APP1, vec![request(APP1, DOCKER0)], 1),
        ),
        case(
            "ARP for eth0 is answered (RFC 826)",
            USER,
            vec![arp(ArpOperation::Request, (mac(USER), USER), (MacAddress::default(), NODE1))],
            1,
        ),
        case(
            "from outside to a pod, routed",
            USER,
            vec![through(USER, &udp(USER, APP1, (4000, 7), b"in"))],
            1,
        ),
        case(
            "from outside to nobody's address on docker0's far side",
            USER,
            vec![through(USER, &with(udp(USER, APP1, (4000, 7), b"in"), |bytes| bytes[8] = 1))],
            1,
        ),
        case(
            "an echo to the node in fragments is answered (RFC 1122, 3.3.2)",
            APP1,
            in_pieces(APP1, &long_echo(1, 1200), &[0..800, 800..1208]),
            1,
        ),
        case(
            "in any order, one of them twice (RFC 791, 3.2)",
            APP1,
            in_pieces(APP1, &long_echo(2, 1200), &[800..1208, 400..800, 400..800, 0..400]),
            1,
        ),
        case(
            "too long to go back whole it goes back in fragments (RFC 791, 3.2)",
            APP1,
            in_pieces(APP1, &long_echo(3, 1800), &[0..1000, 1000..1808]),
            1,
        ),
        case(
            "an overlap ends it (RFC 1858, 4)",
            APP1,
            in_pieces(APP1, &long_echo(4, 1200), &[0..800, 792..808, 800..1208]),
            0,
        ),
        case(
            "a closed port is told of a datagram in fragments (RFC 1122, 3.3.2)",
            APP1,
            in_pieces(APP1, &may_cut(udp(APP1, DOCKER0, (4000, 9), &[8; 1200]), 5), &[0..800, 800..1208]),
            1,
        ),
        differs(
            "br_netfilter bridges what turns back to the sender's own bridge, with its MAC and TTL; here the node routes it, \
             as the sender asked",
            case(
                "a VIP is a backend's on the same bridge (Kubernetes, Service)",
                APP2,
                vec![through(APP2, &tcp_packet(APP2, VIP, (4300, 80), TcpFlags::SYN))],
                1,
            ),
        ),
        case(
            "its answer comes from the VIP (Kubernetes, Service)",
            APP1,
            vec![ethernet(mac(APP2), mac(APP1), &tcp_packet(APP1, APP2, (8080, 4300), syn_ack))],
            1,
        ),
        differs(
            "Linux asks for hairpin mode on the bridge's port, which kubelet sets; here it is not asked for",
            case(
                "a pod that is its own backend sees docker0 as its client (Kubernetes, hairpin)",
                APP2,
                vec![through(APP2, &tcp_packet(APP2, VIP, (4301, 80), TcpFlags::SYN))],
                1,
            ),
        ),
        case(
            "a VIP's backend beyond eth0 gets a masqueraded packet (Kubernetes, Service)",
            APP2,
            vec![through(APP2, &tcp_packet(APP2, OUTSIDE_VIP, (4302, 80), TcpFlags::SYN))],
            1,
        ),
        case(
            "its answer is translated twice (Kubernetes, Service)",
            USER,
            vec![through(USER, &tcp_packet(USER, NODE1, (8080, 4302), syn_ack))],
            1,
        ),
        case(
            "a NodePort is a backend's, masqueraded from outside (Kubernetes, NodePort)",
            USER,
            vec![through(USER, &udp(USER, NODE1, (4303, 30_080), b"in"))],
            1,
        ),
        case(
            "its answer comes from the NodePort (Kubernetes, NodePort)",
            APP1,
            vec![through(APP1, &udp(APP1, DOCKER0, (8080, 4303), b"out"))],
            1,
        ),
        case(
            "so is a VIP from outside (Kubernetes, Service)",
            USER,
            vec![
                through(USER, &udp(USER, VIP, (4304, 80), b"one")),
                through(USER, &udp(USER, VIP, (4305, 80), b"two")),
            ],
            2,
        ),
        case(
            "an error about a VIP's datagram is translated (RFC 5508, 4.2)",
            APP2,
            vec![through(APP2, &refused(&udp(DOCKER0, APP2, (4305, 8080), b"two")))],
            1,
        ),
        differs(
            "kube-proxy's REJECT answers from docker0's address; here the address that was asked does, as a host would",
            case(
                "a Service without backends tells a datagram's sender (RFC 1122, 4.1.3.1)",
                APP2,
                vec![through(APP2, &udp(APP2, EMPTY_VIP, (4306, 80), b"x"))],
                1,
            ),
        ),
        differs(
            "kube-proxy's REJECT answers a SYN with port unreachable; here with a reset, as a host would",
            case(
                "a Service without backends refuses a connection (RFC 9293, 3.10.7.1)",
                APP2,
                vec![through(APP2, &tcp_packet(APP2, EMPTY_VIP, (4307, 80), TcpFlags::SYN))],
                1,
            ),
        ),
    ]
}

/// The inner part: runs in a namespace of its own.
#[test]
#[ignore = "run by linux_and_we_do_the_same, in a namespace"]
fn compare() {
    let (mut kernel, mut ours) = (Kernel::new(), Ours::new());
    let mut differing = Vec::new();
    for case in cases() {
        let linux = plain(kernel.exchange(case.at, &case.frames));
        let got = plain(ours.exchange(case.at, &case.frames));
        if (linux != got) != case.differs.is_some() || got.len() != case.ends {
            differing.push(format!("{}:\n  Linux {}\n  ours  {}", case.name, show(&linux), show(&got)));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

fn show(frames: &BTreeMap<Ipv4Addr, Vec<Vec<u8>>>) -> String {
    let hex = |frame: &Vec<u8>| frame.iter().take(64).map(|byte| format!("{byte:02x}")).collect::<String>();
    let at = |(end, frames): (&Ipv4Addr, &Vec<Vec<u8>>)| {
        format!("{end}: {}", frames.iter().map(hex).collect::<Vec<_>>().join(" "))
    };
    if frames.is_empty() {
        "nothing".to_owned()
    } else {
        frames.iter().map(at).collect::<Vec<_>>().join("; ")
    }
}

#[test]
fn linux_and_we_do_the_same() {
    in_a_namespace("compare");
}

/// `docs/linux.md` names what differs; `UPDATE_DOCS=1` writes it anew.
#[test]
fn what_differs_is_written_down() {
    let cases = cases();
    let same = cases.iter().filter(|case| case.differs.is_none()).count();
    let mut page = format!(
        "# What differs from Linux\n\n\
         Written by `engine/tests/oracle.rs`, which sends the same frames through a kernel's bridge, routes, MASQUERADE and \
         Services\n(kube-proxy's rules in nftables) and through a node of ours. {same} cases come out the same, byte for byte but \
         for what a node\nmay choose (the identification of its own packets and of fragments that it translates; whether its own packets may be \
         cut).\nSo do, packet by packet, the state and the timeout of fourteen\nconnections, and when a port is used anew, by conntrack's table (`engine/tests/conntrack.rs`).\n\nThese do not, on purpose; what NAT does otherwise, and for how long, is in [ADR 15](adr/0015-two-ways-to-translate.md).\n\n| case | why |\n| --- | --- |\n"
    );
    for (case, why) in cases.iter().filter_map(|case| Some((case, case.differs?))) {
        page += &format!("| {} | {why} |\n", case.name);
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/linux.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), page, "run with UPDATE_DOCS=1");
}
