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
            "3 x internet 192.168.66.11 17004 203.0.113.10 53 62",
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
            "internet 192.168.66.11 203.0.113.10 62 8 17004 2",
            "web-app-1 203.0.113.10 10.1.15.3 62 0 2000 2",
            "internet 192.168.66.11 203.0.113.10 62 8 17004 3",
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
        seen: &["user 192.168.66.11 8348 192.168.66.50 53 63"],
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
        seen: &["user 192.168.66.11 64012 192.168.66.50 53 63"],
        drops: &[("node-1", "binding-quota", 1)],
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
            "internet 192.168.66.11 17004 203.0.113.10 53 62",
            "internet 192.168.66.11 4001 203.0.113.10 53 62",
            "internet 192.168.66.11 11097 203.0.113.10 53 62",
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
            "internet 192.168.66.11 17005 203.0.113.10 53 62",
            "web-app-2 203.0.113.10 53 10.1.15.2 4700 62",
            "internet 192.168.66.11 4702 203.0.113.10 53 62",
            "internet 192.168.66.11 17005 203.0.113.10 53 62",
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
