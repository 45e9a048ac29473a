//! The tunnel and the routes: what node-1 sends to a peer and takes from it, who lies, whose lease ends, where TTLs end.

use std::net::Ipv4Addr;
use std::path::Path;

use pcap_file::pcap::PcapReader;

use crate::frames::{APP1, APP2, BACKEND, INTERNET, NODE1, NODE2, PEER, Packet, Script, USER, ethernet, mac};
use crate::{FLOW, PLAIN, Row};

const FLANNEL: u16 = 8285;
const SUBNET: &str = "10.1.20.0/24";

/// Outer and inner headers, by tshark's commas.
const BOTH: &[&str] = &["ip.src", "ip.dst", "ip.ttl", "ip.flags", "udp.srcport", "udp.dstport"];

/// A packet in a datagram that a machine of the node network sends to node-1's tunnel.
fn datagram(outer: Ipv4Addr, inner: &[u8]) -> Packet {
    Packet::udp((outer, FLANNEL), (NODE1, FLANNEL), inner)
}

fn from_backend(data: &[u8]) -> Packet {
    Packet::udp((BACKEND.address, 7), (APP2.address, 5000), data).ttl(63)
}

fn to_backend(data: &[u8]) -> Packet {
    Packet::udp((APP2.address, 5000), (BACKEND.address, 7), data)
}

/// Plays a capture of Linux: what its pod sent as our pod's, what its peer sent as our peer's.
fn play(script: &mut Script, file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/tests/data").join(file);
    let mut reader = PcapReader::new(std::fs::File::open(path).unwrap()).unwrap();
    while let Some(packet) = reader.next_packet() {
        let frame = packet.unwrap().data.into_owned();
        if frame[26..30] == PEER.address.octets() {
            script.frame(PEER, ethernet(mac(PEER.address), mac(NODE1), 0x0800, &frame[14..]));
        } else {
            // As the pod sent it, before docker0's router.
            let mut inner = frame[42..].to_vec();
            inner[8] += 1;
            let checksum = pnet_packet::ipv4::checksum(&pnet_packet::ipv4::Ipv4Packet::new(&inner).unwrap());
            inner[10..12].copy_from_slice(&checksum.to_be_bytes());
            script.frame(APP2, ethernet(mac(APP2.address), mac(APP2.gateway), 0x0800, &inner));
        }
    }
}

pub const ROWS: &[Row] = &[
    Row {
        name: "tunnel-both-ways",
        about: "flannel's udp backend: a packet and its TTL less one in UDP 8285, DF set, and back",
        topology: "peer",
        before: |network| network.lease(SUBNET, Some(PEER.address)),
        fields: BOTH,
        frames: |script| {
            for _ in 0..3 {
                script.send(APP2, &to_backend(b"question"));
                script.send(PEER, &datagram(PEER.address, &from_backend(b"answer").bytes()));
            }
            // A UDP checksum that is none is as good as one.
            script.send(PEER, &datagram(PEER.address, &from_backend(b"none").bytes()).without_checksum());
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "peer 192.168.66.11,10.1.15.2 192.168.66.12,10.1.20.3 64,63 0x02,0x02 8285,5000 8285,7",
            "web-app-2 10.1.20.3 10.1.15.2 62 0x02 7 5000",
            "peer 192.168.66.11,10.1.15.2 192.168.66.12,10.1.20.3 64,63 0x02,0x02 8285,5000 8285,7",
            "web-app-2 10.1.20.3 10.1.15.2 62 0x02 7 5000",
            "peer 192.168.66.11,10.1.15.2 192.168.66.12,10.1.20.3 64,63 0x02,0x02 8285,5000 8285,7",
            "2 x web-app-2 10.1.20.3 10.1.15.2 62 0x02 7 5000",
        ],
        ..PLAIN
    },
    Row {
        name: "tunnel-as-linux",
        about: "Linux's own capture of pings, an HTTP request and a datagram to a closed port, played from both ends",
        topology: "peer",
        before: |network| network.lease(SUBNET, Some(PEER.address)),
        fields: &[
            "ip.src",
            "ip.dst",
            "ip.ttl",
            "tcp.flags",
            "tcp.len",
            "icmp.type",
            "icmp.seq",
            "udp.dstport",
        ],
        frames: |script| play(script, "linux-udp-8285.pcap"),
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "peer 192.168.66.11,10.1.15.2 192.168.66.12,10.1.20.3 64,63 8 1 8285",
            "web-app-2 10.1.20.3 10.1.15.2 62 0 1",
            "peer 192.168.66.11,10.1.15.2 192.168.66.12,10.1.20.3 64,63 8 2 8285",
            "web-app-2 10.1.20.3 10.1.15.2 62 0 2",
            "peer 192.168.66.11,10.1.15.2 192.168.66.12,10.1.20.3 64,63 8 3 8285",
            "web-app-2 10.1.20.3 10.1.15.2 62 0 3",
            "peer 192.168.66.11,10.1.15.2 192.168.66.12,10.1.20.3 64,63 0x0002 0 8285",
            "web-app-2 10.1.20.3 10.1.15.2 62 0x0012 0",
            "peer 192.168.66.11,10.1.15.2 192.168.66.12,10.1.20.3 64,63 0x0010 0 8285",
            "peer 192.168.66.11,10.1.15.2 192.168.66.12,10.1.20.3 64,63 0x0018 79 8285",
            "web-app-2 10.1.20.3 10.1.15.2 62 0x0010 0",
            "web-app-2 10.1.20.3 10.1.15.2 62 0x0018 186",
            "peer 192.168.66.11,10.1.15.2 192.168.66.12,10.1.20.3 64,63 0x0010 0 8285",
            "web-app-2 10.1.20.3 10.1.15.2 62 0x0019 325",
            "peer 192.168.66.11,10.1.15.2 192.168.66.12,10.1.20.3 64,63 0x0011 0 8285",
            "web-app-2 10.1.20.3 10.1.15.2 62 0x0010 0",
            "peer 192.168.66.11,10.1.15.2 192.168.66.12,10.1.20.3 64,63 8285,5353",
            "web-app-2 10.1.20.3,10.1.15.2 10.1.15.2,10.1.20.3 62,62 3 5353",
        ],
        ..PLAIN
    },
    Row {
        name: "tunnel-hostile",
        about: "RFC 2827, 3 and RFC 1812, 5.2.2: nothing comes of datagrams that lie, nobody is told, and the honest one passes",
        topology: "peer",
        before: |network| network.lease(SUBNET, Some(PEER.address)),
        frames: |script| {
            let inner = from_backend(b"hello").bytes();
            let between = |from, to| Packet::udp((from, 7), (to, 5000), b"hello").bytes();
            let nobody = Ipv4Addr::new(10, 1, 99, 2);
            let (mut version_six, mut damaged) = (inner.clone(), inner.clone());
            version_six[0] = 0x65;
            damaged[10] ^= 1;
            let mut wrong_checksum = datagram(PEER.address, &inner);
            wrong_checksum.payload[6] ^= 1;
            for packet in [
                datagram(USER.address, &inner),
                datagram(NODE1, &between(APP1.address, APP2.address)),
                datagram(PEER.address, &between(APP1.address, APP2.address)),
                datagram(PEER.address, &between(nobody, APP2.address)),
                datagram(PEER.address, &between(USER.address, APP2.address)),
                datagram(PEER.address, &between(BACKEND.address, nobody)),
                datagram(PEER.address, &between(BACKEND.address, INTERNET.address)),
                datagram(PEER.address, &inner[..19]),
                datagram(PEER.address, &inner[..24]),
                datagram(PEER.address, b""),
                datagram(PEER.address, &version_six),
                datagram(PEER.address, &damaged),
                wrong_checksum,
                datagram(PEER.address, &[&inner[..], &[0; 9]].concat()),
            ] {
                script.to(USER, NODE1, &packet);
            }
        },
        seen: &["web-app-2 10.1.20.3 7 10.1.15.2 5000 62"],
        drops: &[
            ("node-1", "martian", 1),
            ("node-1", "tunnel-checksum", 1),
            ("node-1", "tunnel-foreign-destination", 2),
            ("node-1", "tunnel-foreign-source", 4),
            ("node-1", "tunnel-malformed", 5),
        ],
        ..PLAIN
    },
    Row {
        name: "tunnel-lease-ends",
        about: "RFC 792, RFC 1812, 5.2.7.1: without its lease a subnet is net unreachable, known flows' too; with it again it is reached",
        topology: "peer",
        before: |network| network.lease(SUBNET, Some(PEER.address)),
        deeds: &[
            (10, |network| network.lease(SUBNET, None)),
            (20, |network| network.lease(SUBNET, Some(PEER.address))),
        ],
        frames: |script| {
            for _ in 0..3 {
                for _ in 0..2 {
                    script.send(APP2, &to_backend(b"question"));
                }
                script.send(PEER, &datagram(PEER.address, &from_backend(b"answer").bytes()));
                script.wait(std::time::Duration::from_millis(7));
            }
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "2 x peer 192.168.66.11,10.1.15.2 8285,5000 192.168.66.12,10.1.20.3 8285,7 64,63",
            "web-app-2 10.1.20.3 7 10.1.15.2 5000 62",
            "2 x web-app-2 10.1.15.1,10.1.15.2 5000 10.1.15.2,10.1.20.3 7 64,64 3 0",
            "2 x peer 192.168.66.11,10.1.15.2 8285,5000 192.168.66.12,10.1.20.3 8285,7 64,63",
            "web-app-2 10.1.20.3 7 10.1.15.2 5000 62",
        ],
        drops: &[("node-1", "no-lease", 2), ("node-1", "tunnel-foreign-source", 1)],
        ..PLAIN
    },
    Row {
        name: "tunnel-holder-is-silent",
        about: "RFC 1122, 2.3.2.1 and RFC 1812, 5.2.7.1: three requests, then host unreachable to who waited",
        topology: "peer",
        before: |network| network.lease(SUBNET, Some(Ipv4Addr::new(192, 168, 66, 99))),
        fields: &[
            "frame.time_epoch",
            "arp.opcode",
            "arp.dst.proto_ipv4",
            "ip.src",
            "ip.dst",
            "icmp.type",
            "icmp.code",
        ],
        frames: |script| {
            for _ in 0..2 {
                script.send(APP2, &to_backend(b"anybody"));
            }
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "peer 0.000000000 1 192.168.66.99",
            "user 0.000000000 1 192.168.66.99",
            "peer 1.000000000 1 192.168.66.99",
            "user 1.000000000 1 192.168.66.99",
            "peer 2.000000000 1 192.168.66.99",
            "user 2.000000000 1 192.168.66.99",
            "2 x web-app-2 3.000000000 10.1.15.1,10.1.15.2 10.1.15.2,10.1.20.3 3 1",
        ],
        drops: &[("node-1", "neighbor-unresolved", 2)],
        ..PLAIN
    },
    Row {
        name: "tunnel-path-mtu",
        about: "RFC 1191, 3 and RFC 2003, 5.1: what a router says of the outer path is told inside, less the outer headers",
        topology: "peer",
        before: |network| network.lease(SUBNET, Some(PEER.address)),
        fields: &["ip.src", "ip.dst", "ip.len", "ip.flags", "icmp.type", "icmp.code", "icmp.mtu"],
        frames: |script| {
            let long = to_backend(&[7; 1300]);
            script.send(APP2, &long);
            let outer = Packet::udp((NODE1, FLANNEL), (PEER.address, FLANNEL), &long.clone().ttl(63).bytes());
            let forged = Packet::udp((NODE1, FLANNEL), (USER.address, FLANNEL), &long.bytes());
            for quoted in [forged, outer] {
                let mut error = Packet::error(USER.address, NODE1, (3, 4), 1300, &quoted);
                error.payload.truncate(8 + 28);
                script.send(USER, &error.with_icmp_checksum());
                script.send(APP2, &long);
            }
            script.send(APP2, &long.may_cut(5));
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "2 x peer 192.168.66.11,10.1.15.2 192.168.66.12,10.1.20.3 1356,1328 0x02,0x02",
            "web-app-2 10.1.15.1,10.1.15.2 10.1.15.2,10.1.20.3 576,1328 0x00,0x02 3 4 1272",
            "peer 192.168.66.11,10.1.15.2 192.168.66.12,10.1.20.3 1296,1268 0x02,0x01",
            "peer 192.168.66.11,10.1.15.2 192.168.66.12,10.1.20.3 108,80 0x02,0x00",
        ],
        drops: &[("node-1", "fragmentation-needed", 1), ("node-1", "icmp-error-unmatched", 1)],
        ..PLAIN
    },
    Row {
        name: "tunnel-oversized-inside",
        about: "RFC 791, 3.2 and RFC 1191, 4: docker0 takes 1,472 bytes, whatever the tunnel brought; the sender is told inside it",
        topology: "peer",
        before: |network| network.lease(SUBNET, Some(PEER.address)),
        fields: &[
            "ip.src",
            "ip.dst",
            "ip.len",
            "ip.flags",
            "ip.frag_offset",
            "icmp.type",
            "icmp.code",
            "icmp.mtu",
        ],
        frames: |script| {
            let long = from_backend(&[7; 1446]);
            script.send(PEER, &datagram(PEER.address, &long.bytes()).may_cut(3));
            script.send(PEER, &datagram(PEER.address, &long.may_cut(4).bytes()).may_cut(5));
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "peer 192.168.66.11,10.1.15.0,10.1.20.3 192.168.66.12,10.1.20.3,10.1.15.2 604,576,1474 0x02,0x00,0x02 0,0,0 3 4 1472",
            "web-app-2 10.1.20.3 10.1.15.2 1468 0x01 0",
            "web-app-2 10.1.20.3 10.1.15.2 26 0x00 181",
        ],
        drops: &[("node-1", "fragmentation-needed", 1)],
        ..PLAIN
    },
    Row {
        name: "ttl-shows-the-way",
        about: "RFC 792, RFC 1812, 5.3.1: each router takes one and answers at the end: docker0, the router, the machine",
        frames: |script| {
            for ttl in 1..4 {
                script
                    .send(APP2, &Packet::udp((APP2.address, 5000), (INTERNET.address, 33_434), b"").ttl(ttl));
                script.send(APP2, &to_backend(b"").ttl(ttl));
            }
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "web-app-2 10.1.15.1,10.1.15.2 5000 10.1.15.2,203.0.113.10 33434 64,1 11 0",
            "web-app-2 10.1.15.1,10.1.15.2 5000 10.1.15.2,10.1.20.3 7 64,1 11 0",
            "web-app-2 192.168.66.1,10.1.15.2 5000 10.1.15.2,203.0.113.10 33434 63,1 11 0",
            "web-app-2 10.1.20.0,10.1.15.2 5000 10.1.15.2,10.1.20.3 7 63,1 11 0",
            "internet 192.168.66.11 5000 203.0.113.10 33434 1",
            "backend 10.1.15.2 5000 10.1.20.3 7 1",
        ],
        drops: &[("isp", "ttl-expired", 1), ("node-1", "ttl-expired", 2), ("node-2", "ttl-expired", 1)],
        ..PLAIN
    },
    Row {
        name: "ttl-ends-a-loop",
        about: "RFC 1812, 5.3.1: two routers that send each other a packet do so until its TTL ends, and the pod is told",
        before: |network| {
            let publisher = &mut network.drive.network.publisher;
            let router = publisher.node("isp").unwrap();
            publisher.control.set_route(router, "0.0.0.0/0".parse().unwrap(), Some(NODE2)).unwrap();
            network.drive.settle();
        },
        fields: FLOW,
        frames: |script| {
            let nowhere = (Ipv4Addr::new(198, 51, 100, 9), 7);
            for port in [5000, 5001] {
                script.send(APP2, &Packet::udp((APP2.address, port), nowhere, b"round and round"));
            }
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "web-app-2 192.168.66.1,10.1.15.2 5000 10.1.15.2,198.51.100.9 7 63,1 11 0",
            "web-app-2 192.168.66.1,10.1.15.2 5001 10.1.15.2,198.51.100.9 7 63,1 11 0",
        ],
        drops: &[("isp", "ttl-expired", 2)],
        ..PLAIN
    },
];
