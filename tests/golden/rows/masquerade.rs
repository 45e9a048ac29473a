//! MASQUERADE: both profiles, ports, hairpins, errors, exhaustion, quotas, checksums that are none.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::frames::{APP1, APP2, INTERNET, Machine, NODE1, Packet, Script, TcpFlags, USER};
use crate::network::Network;
use crate::{FLOW, PLAIN, Row};

const DNS: u16 = 53;
/// A router beyond the internet's.
const FAR_ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// What a packet looked like when it came to the internet: from the node, two routers on.
fn outside(port: u16) -> Packet {
    Packet::udp((NODE1, port), (INTERNET.address, DNS), b"question").ttl(62)
}

/// Opens, uses and closes a connection, each segment told by its flags; the server sees `seen` as the client's end.
fn connection(script: &mut Script, client: (Machine, u16), server: (Machine, u16), seen: (Ipv4Addr, u16)) {
    const DATA: u8 = TcpFlags::ACK | TcpFlags::PSH;
    const FIN: u8 = TcpFlags::FIN | TcpFlags::ACK;
    let (near, far) = ((client.0.address, client.1), (server.0.address, server.1));
    for (from_client, flags, numbers, data) in [
        (true, TcpFlags::SYN, (1000, 0), &b""[..]),
        (false, TcpFlags::SYN | TcpFlags::ACK, (5000, 1001), b""),
        (true, TcpFlags::ACK, (1001, 5001), b""),
        (true, DATA, (1001, 5001), b"one"),
        (false, DATA, (5001, 1004), b"two"),
        (true, DATA, (1004, 5004), b"three"),
        (false, DATA, (5004, 1009), b"four"),
        (true, FIN, (1009, 5008), b""),
        (false, FIN, (5008, 1010), b""),
        (true, TcpFlags::ACK, (1010, 5009), b""),
    ] {
        if from_client {
            script.send(client.0, &Packet::tcp(near, far, flags, numbers, data));
        } else {
            script.send(server.0, &Packet::tcp(far, seen, flags, numbers, data));
        }
    }
}

pub const ROWS: &[Row] = &[
    Row {
        name: "masquerade-keeps-a-free-port",
        about: "RFC 4787, 4.2.1: the first pod keeps its port, the second gets another; the first still gets its answers",
        frames: |script| {
            script.ask((APP2, 40_000), (INTERNET, DNS), (NODE1, 40_000), 3);
            for _ in 0..3 {
                script.send(APP1, &Packet::udp((APP1.address, 40_000), (INTERNET.address, DNS), b"question"));
            }
            script.ask((APP2, 40_000), (INTERNET, DNS), (NODE1, 40_000), 1);
        },
        differs: Some("each worker has ports of its own"),
        seen: &[
            "internet 192.168.66.11 40000 203.0.113.10 53 62",
            "web-app-2 203.0.113.10 53 10.1.15.2 40000 62",
            "internet 192.168.66.11 40000 203.0.113.10 53 62",
            "web-app-2 203.0.113.10 53 10.1.15.2 40000 62",
            "internet 192.168.66.11 40000 203.0.113.10 53 62",
            "web-app-2 203.0.113.10 53 10.1.15.2 40000 62",
            "3 x internet 192.168.66.11 11936 203.0.113.10 53 62",
            "internet 192.168.66.11 40000 203.0.113.10 53 62",
            "web-app-2 203.0.113.10 53 10.1.15.2 40000 62",
        ],
        ..PLAIN
    },
    Row {
        name: "masquerade-tcp",
        about: "RFC 5382, REQ-2: a connection opens, talks, closes, and opens anew from the same port",
        fields: &["ip.src", "tcp.srcport", "ip.dst", "tcp.dstport", "tcp.flags", "tcp.len"],
        frames: |script| {
            for _ in 0..2 {
                connection(script, (APP2, 40_002), (INTERNET, 80), (NODE1, 40_002));
            }
        },
        seen: &[
            "internet 192.168.66.11 40002 203.0.113.10 80 0x0002 0",
            "web-app-2 203.0.113.10 80 10.1.15.2 40002 0x0012 0",
            "internet 192.168.66.11 40002 203.0.113.10 80 0x0010 0",
            "internet 192.168.66.11 40002 203.0.113.10 80 0x0018 3",
            "web-app-2 203.0.113.10 80 10.1.15.2 40002 0x0018 3",
            "internet 192.168.66.11 40002 203.0.113.10 80 0x0018 5",
            "web-app-2 203.0.113.10 80 10.1.15.2 40002 0x0018 4",
            "internet 192.168.66.11 40002 203.0.113.10 80 0x0011 0",
            "web-app-2 203.0.113.10 80 10.1.15.2 40002 0x0011 0",
            "internet 192.168.66.11 40002 203.0.113.10 80 0x0010 0",
            "internet 192.168.66.11 40002 203.0.113.10 80 0x0002 0",
            "web-app-2 203.0.113.10 80 10.1.15.2 40002 0x0012 0",
            "internet 192.168.66.11 40002 203.0.113.10 80 0x0010 0",
            "internet 192.168.66.11 40002 203.0.113.10 80 0x0018 3",
            "web-app-2 203.0.113.10 80 10.1.15.2 40002 0x0018 3",
            "internet 192.168.66.11 40002 203.0.113.10 80 0x0018 5",
            "web-app-2 203.0.113.10 80 10.1.15.2 40002 0x0018 4",
            "internet 192.168.66.11 40002 203.0.113.10 80 0x0011 0",
            "web-app-2 203.0.113.10 80 10.1.15.2 40002 0x0011 0",
            "internet 192.168.66.11 40002 203.0.113.10 80 0x0010 0",
        ],
        ..PLAIN
    },
    Row {
        name: "masquerade-echo",
        about: "RFC 5508, REQ-1: an echo's identifier is its port; two pods with one identifier are told apart",
        fields: &["ip.src", "ip.dst", "ip.ttl", "icmp.type", "icmp.ident", "icmp.seq"],
        frames: |script| {
            for (sequence, pod) in (0..).zip([APP1, APP1, APP2, APP2, APP1]) {
                script.send(pod, &Packet::echo(pod.address, INTERNET.address, 8, 2000, sequence));
                script.send(INTERNET, &Packet::echo(INTERNET.address, NODE1, 0, 2000, sequence));
            }
        },
        differs: Some("each worker has ports of its own"),
        seen: &[
            "internet 192.168.66.11 203.0.113.10 62 8 2000 0",
            "web-app-1 203.0.113.10 10.1.15.3 62 0 2000 0",
            "internet 192.168.66.11 203.0.113.10 62 8 2000 1",
            "web-app-1 203.0.113.10 10.1.15.3 62 0 2000 1",
            "internet 192.168.66.11 203.0.113.10 62 8 11936 2",
            "web-app-1 203.0.113.10 10.1.15.3 62 0 2000 2",
            "internet 192.168.66.11 203.0.113.10 62 8 11936 3",
            "web-app-1 203.0.113.10 10.1.15.3 62 0 2000 3",
            "internet 192.168.66.11 203.0.113.10 62 8 2000 4",
            "web-app-1 203.0.113.10 10.1.15.3 62 0 2000 4",
        ],
        ..PLAIN
    },
    Row {
        name: "masquerade-without-checksum",
        about: "RFC 768: a UDP checksum that is none stays none, both ways",
        fields: &["ip.src", "udp.srcport", "ip.dst", "udp.dstport", "udp.checksum"],
        frames: |script| {
            for _ in 0..3 {
                script.send(
                    APP2,
                    &Packet::udp((APP2.address, 40_000), (INTERNET.address, DNS), b"?").without_checksum(),
                );
                script.send(
                    INTERNET,
                    &Packet::udp((INTERNET.address, DNS), (NODE1, 40_000), b"!").without_checksum(),
                );
            }
        },
        seen: &[
            "internet 192.168.66.11 40000 203.0.113.10 53 0x0000",
            "web-app-2 203.0.113.10 53 10.1.15.2 40000 0x0000",
            "internet 192.168.66.11 40000 203.0.113.10 53 0x0000",
            "web-app-2 203.0.113.10 53 10.1.15.2 40000 0x0000",
            "internet 192.168.66.11 40000 203.0.113.10 53 0x0000",
            "web-app-2 203.0.113.10 53 10.1.15.2 40000 0x0000",
        ],
        ..PLAIN
    },
    Row {
        name: "masquerade-errors",
        about: "RFC 5508, 4.2: errors come home with what they quote translated, and the pod's own go out so",
        fields: &["ip.src", "ip.dst", "icmp.type", "icmp.code", "udp.srcport", "udp.dstport"],
        frames: |script| {
            script.ask((APP2, 40_004), (INTERNET, DNS), (NODE1, 40_004), 1);
            let error = |from, kind, rest| Packet::error(from, NODE1, kind, rest, &outside(40_004));
            script.send(INTERNET, &error(INTERNET.address, (3, 3), 0));
            script.send(INTERNET, &error(FAR_ROUTER, (11, 0), 0));
            script.send(INTERNET, &error(INTERNET.address, (3, 4), 1400));
            script.send(INTERNET, &error(INTERNET.address, (12, 0), 0));
            let answer = Packet::udp((INTERNET.address, DNS), (APP2.address, 40_004), b"answer").ttl(62);
            script.send(APP2, &Packet::error(APP2.address, INTERNET.address, (3, 3), 0, &answer));
            // About a flow that never was.
            script.send(INTERNET, &Packet::error(INTERNET.address, NODE1, (3, 3), 0, &outside(40_009)));
        },
        seen: &[
            "internet 192.168.66.11 203.0.113.10 40004 53",
            "web-app-2 203.0.113.10 10.1.15.2 53 40004",
            "web-app-2 203.0.113.10,10.1.15.2 10.1.15.2,203.0.113.10 3 3 40004 53",
            "web-app-2 198.51.100.7,10.1.15.2 10.1.15.2,203.0.113.10 11 0 40004 53",
            "web-app-2 203.0.113.10,10.1.15.2 10.1.15.2,203.0.113.10 3 4 40004 53",
            "web-app-2 203.0.113.10,10.1.15.2 10.1.15.2,203.0.113.10 12 0 40004 53",
            "internet 192.168.66.11,203.0.113.10 203.0.113.10,192.168.66.11 3 3 53 40004",
        ],
        drops: &[("node-1", "icmp-error-unmatched", 1)],
        ..PLAIN
    },
    Row {
        name: "masquerade-errors-about-tcp-and-echo",
        about: "RFC 5508, 4.2: a segment and an echo that an error quotes are translated with their checksums, both ways",
        fields: &[
            "ip.src",
            "ip.dst",
            "icmp.type",
            "icmp.code",
            "tcp.srcport",
            "tcp.dstport",
            "tcp.checksum",
            "icmp.ident",
        ],
        frames: |script| {
            let far = INTERNET.address;
            let syn =
                |from, ttl| Packet::tcp((from, 40_014), (far, 80), TcpFlags::SYN, (1000, 0), b"").ttl(ttl);
            let syn_ack =
                |to| Packet::tcp((far, 80), (to, 40_014), TcpFlags::SYN | TcpFlags::ACK, (5000, 1001), b"");
            script.send(APP2, &syn(APP2.address, 64));
            script.send(INTERNET, &Packet::error(FAR_ROUTER, NODE1, (11, 0), 0, &syn(NODE1, 62)));
            script.send(INTERNET, &Packet::error(far, NODE1, (3, 4), 1400, &syn(NODE1, 62)));
            script.send(INTERNET, &syn_ack(NODE1));
            script.send(APP2, &Packet::error(APP2.address, far, (3, 3), 0, &syn_ack(APP2.address).ttl(62)));
            script.send(APP2, &Packet::echo(APP2.address, far, 8, 1700, 1));
            script.send(
                INTERNET,
                &Packet::error(FAR_ROUTER, NODE1, (11, 0), 0, &Packet::echo(NODE1, far, 8, 1700, 1).ttl(62)),
            );
            script.send(INTERNET, &Packet::echo(far, NODE1, 0, 1700, 1));
            let reply = Packet::echo(far, APP2.address, 0, 1700, 1).ttl(62);
            script.send(APP2, &Packet::error(APP2.address, far, (3, 2), 0, &reply));
        },
        seen: &[
            "internet 192.168.66.11 203.0.113.10 40014 80 0xb09d",
            "web-app-2 198.51.100.7,10.1.15.2 10.1.15.2,203.0.113.10 11 0 40014 80 0x9a4e",
            "web-app-2 203.0.113.10,10.1.15.2 10.1.15.2,203.0.113.10 3 4 40014 80 0x9a4e",
            "web-app-2 203.0.113.10 10.1.15.2 80 40014 0x86b5",
            "internet 192.168.66.11,203.0.113.10 203.0.113.10,192.168.66.11 3 3 80 40014 0x9d04",
            "internet 192.168.66.11 203.0.113.10 8 0 1700",
            "web-app-2 198.51.100.7,10.1.15.2 10.1.15.2,203.0.113.10 11,8 0,0 1700",
            "web-app-2 203.0.113.10 10.1.15.2 0 0 1700",
            "internet 192.168.66.11,203.0.113.10 203.0.113.10,192.168.66.11 3,0 2,0 1700",
        ],
        ..PLAIN
    },
    Row {
        name: "masquerade-simultaneous-open",
        about: "RFC 9293, figure 8; RFC 5382, REQ-2: two SYNs that cross open one connection, which outlives the time of a SYN",
        frames: |script| {
            let (near, far, out) = ((APP2.address, 40_016), (INTERNET.address, 4000), (NODE1, 40_016));
            const BOTH: u8 = TcpFlags::SYN | TcpFlags::ACK;
            for (flags, numbers, answer) in [
                (TcpFlags::SYN, (1000, 0), (5000, 0)),
                (BOTH, (1000, 5001), (5000, 1001)),
                (TcpFlags::ACK, (1001, 5001), (5001, 1001)),
            ] {
                script.send(APP2, &Packet::tcp(near, far, flags, numbers, b""));
                script.send(INTERNET, &Packet::tcp(far, out, flags, answer, b""));
            }
            script.wait(Duration::from_secs(200));
            script.send(APP2, &Packet::tcp(near, far, TcpFlags::ACK, (1001, 5001), b"still"));
            script.send(INTERNET, &Packet::tcp(far, out, TcpFlags::ACK, (5001, 1006), b"there"));
        },
        seen: &[
            "internet 192.168.66.11 40016 203.0.113.10 4000 62",
            "web-app-2 203.0.113.10 4000 10.1.15.2 40016 62",
            "internet 192.168.66.11 40016 203.0.113.10 4000 62",
            "web-app-2 203.0.113.10 4000 10.1.15.2 40016 62",
            "internet 192.168.66.11 40016 203.0.113.10 4000 62",
            "web-app-2 203.0.113.10 4000 10.1.15.2 40016 62",
            "internet 192.168.66.11 40016 203.0.113.10 4000 62",
            "web-app-2 203.0.113.10 4000 10.1.15.2 40016 62",
        ],
        ..PLAIN
    },
    Row {
        name: "masquerade-half-close",
        about: "RFC 9293, 3.6: when one side has closed the other goes on, and both are one connection until the second FIN",
        frames: |script| {
            let (near, far, out) = ((APP2.address, 40_018), (INTERNET.address, 80), (NODE1, 40_018));
            const FIN: u8 = TcpFlags::FIN | TcpFlags::ACK;
            let pod = |script: &mut Script, flags, numbers, data: &[u8]| {
                script.send(APP2, &Packet::tcp(near, far, flags, numbers, data));
            };
            let server = |script: &mut Script, flags, numbers, data: &[u8]| {
                script.send(INTERNET, &Packet::tcp(far, out, flags, numbers, data));
            };
            pod(script, TcpFlags::SYN, (1000, 0), b"");
            server(script, TcpFlags::SYN | TcpFlags::ACK, (5000, 1001), b"");
            pod(script, TcpFlags::ACK, (1001, 5001), b"");
            server(script, FIN, (5001, 1001), b"");
            for round in 0..3 {
                pod(script, TcpFlags::ACK, (1001 + 5 * round, 5002), b"still");
                server(script, TcpFlags::ACK, (5002, 1006 + 5 * round), b"");
                script.wait(Duration::from_secs(50));
            }
            pod(script, FIN, (1016, 5002), b"");
            server(script, TcpFlags::ACK, (5002, 1017), b"");
        },
        seen: &[
            "internet 192.168.66.11 40018 203.0.113.10 80 62",
            "web-app-2 203.0.113.10 80 10.1.15.2 40018 62",
            "internet 192.168.66.11 40018 203.0.113.10 80 62",
            "web-app-2 203.0.113.10 80 10.1.15.2 40018 62",
            "internet 192.168.66.11 40018 203.0.113.10 80 62",
            "web-app-2 203.0.113.10 80 10.1.15.2 40018 62",
            "internet 192.168.66.11 40018 203.0.113.10 80 62",
            "web-app-2 203.0.113.10 80 10.1.15.2 40018 62",
            "internet 192.168.66.11 40018 203.0.113.10 80 62",
            "web-app-2 203.0.113.10 80 10.1.15.2 40018 62",
            "internet 192.168.66.11 40018 203.0.113.10 80 62",
            "web-app-2 203.0.113.10 80 10.1.15.2 40018 62",
        ],
        ..PLAIN
    },
    Row {
        name: "masquerade-blind-segments",
        about: "RFC 5961, 5; tcp_in_window: spoofed FINs and acknowledgements end nothing: the connection outlives TIME-WAIT",
        fields: &["ip.src", "tcp.srcport", "ip.dst", "tcp.dstport", "tcp.flags", "tcp.seq_raw"],
        frames: |script| {
            let (near, far, out) = ((APP2.address, 40_020), (INTERNET.address, 80), (NODE1, 40_020));
            script.send(APP2, &Packet::tcp(near, far, TcpFlags::SYN, (1000, 0), b""));
            script.send(INTERNET, &Packet::tcp(far, out, TcpFlags::SYN | TcpFlags::ACK, (5000, 1001), b""));
            script.send(APP2, &Packet::tcp(near, far, TcpFlags::ACK, (1001, 5001), b""));
            for flags in [TcpFlags::FIN | TcpFlags::ACK, TcpFlags::FIN | TcpFlags::ACK, TcpFlags::ACK] {
                script.send(INTERNET, &Packet::tcp(far, out, flags, (0x7000_0000, 0x7000_0000), b""));
            }
            script.wait(Duration::from_secs(200));
            // Lets the switch and the routers remember who is where.
            script.send(APP2, &Packet::tcp(near, far, TcpFlags::ACK, (1001, 5001), b"alive"));
            script.send(INTERNET, &Packet::tcp(far, out, TcpFlags::ACK, (5001, 1006), b"too"));
            script.send(INTERNET, &Packet::tcp(far, out, TcpFlags::RST, (5004, 0), b""));
        },
        seen: &[
            "internet 192.168.66.11 40020 203.0.113.10 80 0x0002 1000",
            "web-app-2 203.0.113.10 80 10.1.15.2 40020 0x0012 5000",
            "internet 192.168.66.11 40020 203.0.113.10 80 0x0010 1001",
            "2 x web-app-2 203.0.113.10 80 10.1.15.2 40020 0x0011 1879048192",
            "web-app-2 203.0.113.10 80 10.1.15.2 40020 0x0010 1879048192",
            "internet 192.168.66.11 40020 203.0.113.10 80 0x0010 1001",
            "web-app-2 203.0.113.10 80 10.1.15.2 40020 0x0010 5001",
            "web-app-2 203.0.113.10 80 10.1.15.2 40020 0x0004 5004",
        ],
        ..PLAIN
    },
    Row {
        name: "masquerade-late-answer",
        about: "nf_conntrack_udp_timeout: an answer after 29 s comes in, one after 31 s finds a closed port",
        frames: |script| {
            for wait in [29, 31] {
                script.send(
                    APP2,
                    &Packet::udp((APP2.address, 40_000 + wait as u16), (INTERNET.address, DNS), b"?"),
                );
                script.wait(Duration::from_secs(wait));
                script.send(
                    INTERNET,
                    &Packet::udp((INTERNET.address, DNS), (NODE1, 40_000 + wait as u16), b"!"),
                );
            }
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "internet 192.168.66.11 40029 203.0.113.10 53 62",
            "web-app-2 203.0.113.10 53 10.1.15.2 40029 62",
            "internet 192.168.66.11 40031 203.0.113.10 53 62",
            "internet 192.168.66.11,203.0.113.10 53 203.0.113.10,192.168.66.11 40031 63,63 3 3",
        ],
        drops: &[("node-1", "host-closed", 1)],
        ..PLAIN
    },
    Row {
        name: "masquerade-blind-resets",
        about: "RFC 5961, 3: a reset outside the window ends nothing, one inside ends the connection",
        fields: &["ip.src", "tcp.srcport", "ip.dst", "tcp.dstport", "tcp.flags", "tcp.seq_raw"],
        frames: |script| {
            let (pod, host) = ((APP2.address, 40_006), (INTERNET.address, 80));
            let seen = (NODE1, 40_006);
            script.send(APP2, &Packet::tcp(pod, host, TcpFlags::SYN, (1000, 0), b""));
            script.send(INTERNET, &Packet::tcp(host, seen, TcpFlags::SYN | TcpFlags::ACK, (5000, 1001), b""));
            script.send(APP2, &Packet::tcp(pod, host, TcpFlags::ACK, (1001, 5001), b""));
            script.send(INTERNET, &Packet::tcp(host, seen, TcpFlags::RST, (900_000, 0), b""));
            script.send(INTERNET, &Packet::tcp(host, seen, TcpFlags::ACK, (5001, 1001), b"alive"));
            script.send(INTERNET, &Packet::tcp(host, seen, TcpFlags::RST, (5006, 0), b""));
        },
        seen: &[
            "internet 192.168.66.11 40006 203.0.113.10 80 0x0002 1000",
            "web-app-2 203.0.113.10 80 10.1.15.2 40006 0x0012 5000",
            "internet 192.168.66.11 40006 203.0.113.10 80 0x0010 1001",
            "web-app-2 203.0.113.10 80 10.1.15.2 40006 0x0010 5001",
            "web-app-2 203.0.113.10 80 10.1.15.2 40006 0x0004 5006",
        ],
        drops: &[("node-1", "tcp-reset-out-of-window", 1)],
        ..PLAIN
    },
    Row {
        name: "masquerade-exhausted",
        about: "RFC 4787, 4.2: with every port taken towards one remote the next flow is dropped by name; others go on",
        before: |network| fill(network, &[APP1, APP2]),
        frames: |script| {
            for to in [INTERNET, USER] {
                script.send(APP2, &Packet::udp((APP2.address, 999), (to.address, DNS), b"one too many"));
            }
        },
        differs: Some("each worker has ports of its own"),
        seen: &["user 192.168.66.11 48108 192.168.66.50 53 63"],
        drops: &[("node-1", "tuples-exhausted", 1)],
        ..PLAIN
    },
    Row {
        name: "masquerade-quota",
        about: "RFC 6888, REQ-4: a pod has 32,768 flows of a worker, and one that has them takes nothing from another",
        before: |network| fill(network, &[APP1]),
        frames: |script| {
            for pod in [APP1, APP2] {
                script.send(pod, &Packet::udp((pod.address, 999), (USER.address, DNS), b"one more"));
            }
        },
        differs: Some("each worker has the quota"),
        seen: &["user 192.168.66.11 42787 192.168.66.50 53 63"],
        drops: &[("node-1", "binding-quota", 1)],
        ..PLAIN
    },
    Row {
        name: "masquerade-quota-of-the-topology",
        about: "RFC 6888, REQ-4: with natQuota 2 a pod's third flow waits until one ends; its known flows and others' go on",
        topology: "tour-quota",
        frames: |script| {
            let ask = |script: &mut Script, pod: Machine, port| {
                script.send(pod, &Packet::udp((pod.address, port), (INTERNET.address, DNS), b"question"));
            };
            for port in [40_001, 40_002, 40_003, 40_001] {
                ask(script, APP1, port);
            }
            script
                .send(APP1, &Packet::tcp((APP1.address, 1), (USER.address, 80), TcpFlags::SYN, (1, 0), b""));
            for port in [50_001, 50_002] {
                ask(script, APP2, port);
            }
            // What has ended by itself leaves the table when the worker next has something to do.
            script.wait(Duration::from_secs(31));
            ask(script, APP2, 50_001);
            for port in [40_003, 40_004, 40_005] {
                ask(script, APP1, port);
            }
        },
        seen: &[
            "internet 192.168.66.11 40001 203.0.113.10 53 62",
            "internet 192.168.66.11 40002 203.0.113.10 53 62",
            "internet 192.168.66.11 40001 203.0.113.10 53 62",
            "internet 192.168.66.11 50001 203.0.113.10 53 62",
            "internet 192.168.66.11 50002 203.0.113.10 53 62",
            "internet 192.168.66.11 50001 203.0.113.10 53 62",
            "internet 192.168.66.11 40003 203.0.113.10 53 62",
            "internet 192.168.66.11 40004 203.0.113.10 53 62",
        ],
        differs: Some("each worker has ports of its own"),
        drops: &[("node-1", "binding-quota", 3)],
        ..PLAIN
    },
    Row {
        name: "rfc-endpoint-independent",
        about: "RFC 4787, REQ-1 and REQ-8: one outside port towards all; who was asked may answer, from any port",
        topology: "tour-rfc",
        frames: |script| {
            for _ in 0..2 {
                script.ask((APP2, 4700), (INTERNET, DNS), (NODE1, 4700), 1);
                script.send(USER, &Packet::udp((USER.address, DNS), (NODE1, 4700), b"not asked"));
                script.send(
                    INTERNET,
                    &Packet::udp((INTERNET.address, 99), (NODE1, 4700), b"from another port"),
                );
            }
            script.ask((APP2, 4700), (USER, 7), (NODE1, 4700), 2);
        },
        seen: &[
            "internet 192.168.66.11 4700 203.0.113.10 53 62",
            "web-app-2 203.0.113.10 53 10.1.15.2 4700 62",
            "web-app-2 203.0.113.10 99 10.1.15.2 4700 62",
            "internet 192.168.66.11 4700 203.0.113.10 53 62",
            "web-app-2 203.0.113.10 53 10.1.15.2 4700 62",
            "web-app-2 203.0.113.10 99 10.1.15.2 4700 62",
            "user 192.168.66.11 4700 192.168.66.50 7 63",
            "web-app-2 192.168.66.50 7 10.1.15.2 4700 63",
            "user 192.168.66.11 4700 192.168.66.50 7 63",
            "web-app-2 192.168.66.50 7 10.1.15.2 4700 63",
        ],
        drops: &[("node-1", "nat-filtered", 2)],
        ..PLAIN
    },
    Row {
        name: "rfc-port-parity",
        about: "RFC 4787, REQ-3 and REQ-4: no two endpoints share a port, and even stays even, odd stays odd",
        topology: "tour-rfc",
        frames: |script| {
            for port in [4000, 4001] {
                for pod in [APP1, APP2] {
                    script.send(pod, &Packet::udp((pod.address, port), (INTERNET.address, DNS), b"?"));
                }
            }
        },
        differs: Some("each worker has ports of its own"),
        seen: &[
            "internet 192.168.66.11 4000 203.0.113.10 53 62",
            "internet 192.168.66.11 11936 203.0.113.10 53 62",
            "internet 192.168.66.11 4001 203.0.113.10 53 62",
            "internet 192.168.66.11 17309 203.0.113.10 53 62",
        ],
        ..PLAIN
    },
    Row {
        name: "rfc-hairpin",
        about: "RFC 4787, REQ-9: two pods behind one node meet by their outside endpoints, and see those as sources",
        topology: "tour-rfc",
        frames: |script| {
            script.ask((APP1, 6000), (INTERNET, DNS), (NODE1, 6000), 1);
            script.ask((APP2, 6200), (INTERNET, DNS), (NODE1, 6200), 1);
            for _ in 0..3 {
                script.send(APP1, &Packet::udp((APP1.address, 6000), (NODE1, 6200), b"to two"));
                script.send(APP2, &Packet::udp((APP2.address, 6200), (NODE1, 6000), b"to one"));
            }
        },
        seen: &[
            "internet 192.168.66.11 6000 203.0.113.10 53 62",
            "web-app-1 203.0.113.10 53 10.1.15.3 6000 62",
            "internet 192.168.66.11 6200 203.0.113.10 53 62",
            "web-app-2 203.0.113.10 53 10.1.15.2 6200 62",
            "web-app-1 192.168.66.11 6200 10.1.15.3 6000 63",
            "web-app-2 192.168.66.11 6000 10.1.15.2 6200 63",
            "web-app-1 192.168.66.11 6200 10.1.15.3 6000 63",
            "web-app-2 192.168.66.11 6000 10.1.15.2 6200 63",
            "web-app-1 192.168.66.11 6200 10.1.15.3 6000 63",
        ],
        drops: &[("node-1", "nat-filtered", 1)],
        ..PLAIN
    },
    Row {
        name: "rfc-hairpin-errors",
        about: "RFC 5508, REQ-7: an error about a packet that went the hairpin way goes it back, translated twice",
        topology: "tour-rfc",
        fields: &["ip.src", "ip.dst", "icmp.type", "icmp.code", "udp.srcport", "udp.dstport"],
        frames: |script| {
            script.ask((APP1, 6000), (INTERNET, DNS), (NODE1, 6000), 1);
            script.ask((APP2, 6200), (INTERNET, DNS), (NODE1, 6200), 1);
            script.send(APP2, &Packet::udp((APP2.address, 6200), (NODE1, 6000), b"opens"));
            script.send(APP1, &Packet::udp((APP1.address, 6000), (NODE1, 6200), b"to two"));
            let about = Packet::udp((NODE1, 6000), (APP2.address, 6200), b"to two").ttl(63);
            script.to(APP2, APP2.gateway, &Packet::error(APP2.address, NODE1, (3, 3), 0, &about));
        },
        seen: &[
            "internet 192.168.66.11 203.0.113.10 6000 53",
            "web-app-1 203.0.113.10 10.1.15.3 53 6000",
            "internet 192.168.66.11 203.0.113.10 6200 53",
            "web-app-2 203.0.113.10 10.1.15.2 53 6200",
            "web-app-2 192.168.66.11 10.1.15.2 6000 6200",
            "web-app-1 192.168.66.11,10.1.15.3 10.1.15.3,192.168.66.11 3 3 6000 6200",
        ],
        drops: &[("node-1", "nat-filtered", 1)],
        ..PLAIN
    },
    Row {
        name: "rfc-mapping-lifetime",
        about: "RFC 4787, REQ-5: a mapping lives five minutes, not more",
        topology: "tour-rfc",
        fields: FLOW,
        frames: |script| {
            for (port, wait) in [(4700, 299), (4702, 301)] {
                script.send(APP2, &Packet::udp((APP2.address, port), (INTERNET.address, DNS), b"?"));
                script.wait(Duration::from_secs(200));
                // Lets the switch remember where the node is.
                script.send(APP1, &Packet::udp((APP1.address, 7), (INTERNET.address, DNS), b"?"));
                script.wait(Duration::from_secs(wait - 200));
                script.send(INTERNET, &Packet::udp((INTERNET.address, DNS), (NODE1, port), b"!"));
            }
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "internet 192.168.66.11 4700 203.0.113.10 53 62",
            "internet 192.168.66.11 11937 203.0.113.10 53 62",
            "web-app-2 203.0.113.10 53 10.1.15.2 4700 62",
            "internet 192.168.66.11 4702 203.0.113.10 53 62",
            "internet 192.168.66.11 11937 203.0.113.10 53 62",
            "internet 192.168.66.11,203.0.113.10 53 203.0.113.10,192.168.66.11 4702 63,63 3 3",
        ],
        drops: &[("node-1", "host-closed", 1)],
        ..PLAIN
    },
];

/// Takes every port of the node towards one remote: from 1,024 up, without those of Services and of the tunnel, and one flow
/// more for each of those.
fn fill(network: &mut Network, pods: &[Machine]) {
    let share = if pods.len() == 1 { 1 << 15 } else { (65_536 - 1024 - 2768 - 1) / 2 + 1 };
    for pod in pods {
        for port in 1024..1024 + share {
            let packet = Packet::udp((pod.address, port as u16), (INTERNET.address, DNS), b"");
            network.send(
                pod.name,
                &crate::frames::ethernet(
                    crate::frames::mac(pod.address),
                    crate::frames::mac(pod.gateway),
                    0x0800,
                    &packet.bytes(),
                ),
            );
        }
    }
}
