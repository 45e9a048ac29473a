//! Fragments: translated after their first in any order, refused where they lie, made where a link takes less.

use std::time::Duration;

use crate::frames::{APP1, APP2, BACKEND, INTERNET, NODE1, Packet, TcpFlags};
use crate::{PLAIN, Row};

/// What tells fragments apart; the ports stand where tshark has put a datagram together, with its checksum.
const PARTS: &[&str] = &[
    "ip.src",
    "ip.dst",
    "ip.id",
    "ip.flags",
    "ip.frag_offset",
    "ip.len",
    "udp.srcport",
    "udp.dstport",
    "icmp.type",
    "icmp.code",
    "icmp.mtu",
];

fn data(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 % 251) as u8).collect()
}

/// A pod's datagram of 1,000 bytes to the internet.
fn question(identification: u16) -> Packet {
    Packet::udp((APP2.address, 4700), (INTERNET.address, 53), &data(1000)).may_cut(identification)
}

fn answer(identification: u16) -> Packet {
    Packet::udp((INTERNET.address, 53), (NODE1, 4700), &data(1000)).may_cut(identification)
}

/// A pod's datagram of 200 bytes to its neighbour.
fn near(identification: u16) -> Packet {
    Packet::udp((APP2.address, 5000), (APP1.address, 7), &data(200)).may_cut(identification)
}

pub const ROWS: &[Row] = &[
    Row {
        name: "fragments-follow-their-first",
        about: "RFC 4787, REQ-14: fragments have their first's translation, answers too, whatever the order",
        fields: PARTS,
        frames: |script| {
            for id in 1..3 {
                for part in [0..512, 512..520, 520..1008] {
                    script.send(APP2, &question(id).part(part));
                }
                for part in [512..1008, 0..512] {
                    script.send(INTERNET, &answer(id).part(part));
                }
            }
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "internet 192.168.66.11 203.0.113.10 0x0005 0x01 0 532",
            "internet 192.168.66.11 203.0.113.10 0x0005 0x01 64 28",
            "internet 192.168.66.11 203.0.113.10 0x0005 0x00 65 508 4700 53",
            "web-app-2 203.0.113.10 10.1.15.2 0x0001 0x01 0 532",
            "web-app-2 203.0.113.10 10.1.15.2 0x0001 0x00 64 516 53 4700",
            "internet 192.168.66.11 203.0.113.10 0x0007 0x01 0 532",
            "internet 192.168.66.11 203.0.113.10 0x0007 0x01 64 28",
            "internet 192.168.66.11 203.0.113.10 0x0007 0x00 65 508 4700 53",
            "web-app-2 203.0.113.10 10.1.15.2 0x0002 0x01 0 532",
            "web-app-2 203.0.113.10 10.1.15.2 0x0002 0x00 64 516 53 4700",
        ],
        ..PLAIN
    },
    Row {
        name: "fragments-first-comes-late",
        about: "RFC 4787, REQ-14: what comes before its first waits for it, 30 seconds at most",
        fields: PARTS,
        frames: |script| {
            for part in [520..1008, 512..520] {
                script.send(APP2, &question(1).part(part));
            }
            script.wait(Duration::from_secs(2));
            script.send(APP2, &question(1).part(0..512));
            script.send(APP2, &question(2).part(512..1008));
            script.wait(Duration::from_secs(31));
            script.send(APP2, &question(2).part(0..512));
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "internet 192.168.66.11 203.0.113.10 0x0005 0x01 0 532",
            "internet 192.168.66.11 203.0.113.10 0x0005 0x00 65 508",
            "internet 192.168.66.11 203.0.113.10 0x0005 0x01 64 28 4700 53",
            "internet 192.168.66.11 203.0.113.10 0x0007 0x01 0 532",
        ],
        drops: &[("node-1", "fragment-timeout", 1)],
        ..PLAIN
    },
    Row {
        name: "fragments-overlap",
        about: "RFC 1858, 4: an overlap ends its datagram and no other; a copy ends nothing",
        fields: PARTS,
        frames: |script| {
            for part in [0..64, 0..64, 56..72, 64..208] {
                script.send(APP2, &near(1).part(part));
            }
            for part in [0..64, 64..208] {
                script.send(APP2, &near(2).part(part));
            }
        },
        seen: &[
            "web-app-1 10.1.15.2 10.1.15.3 0x0001 0x01 0 84",
            "web-app-1 10.1.15.2 10.1.15.3 0x0002 0x01 0 84",
            "web-app-1 10.1.15.2 10.1.15.3 0x0002 0x00 8 164 5000 7",
        ],
        drops: &[("node-1", "fragment-overlap", 3)],
        ..PLAIN
    },
    Row {
        name: "fragments-tiny-and-malformed",
        about: "RFC 1858, 3 and RFC 3128: no fragment hides a part of the TCP header; RFC 791, 3.2: whole eights, 65,535 at most",
        fields: PARTS,
        frames: |script| {
            let syn =
                Packet::tcp((APP2.address, 5000), (INTERNET.address, 80), TcpFlags::SYN, (1, 0), &data(100));
            script.send(APP2, &syn.clone().may_cut(1).part(0..8));
            script.send(APP2, &syn.may_cut(2).part(8..120));
            script.send(APP2, &question(3).part(0..509));
            let mut beyond = question(4).part(0..512);
            beyond.offset = 65_528;
            script.send(APP2, &beyond);
        },
        drops: &[("node-1", "fragment-malformed", 2), ("node-1", "fragment-tiny", 2)],
        ..PLAIN
    },
    Row {
        name: "fragmentation-needed",
        about: "RFC 1191, 4 and RFC 791, 3.2: into the tunnel go 1,472 bytes; the sender is told, or the packet is cut",
        fields: PARTS,
        frames: |script| {
            for length in [1444, 1445] {
                let packet = Packet::udp((APP2.address, 5000), (BACKEND.address, 7), &data(length));
                script.send(APP2, &packet);
                script.send(APP2, &packet.may_cut(length as u16));
            }
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "backend 10.1.15.2 10.1.20.3 0x0000 0x02 0 1472 5000 7",
            "backend 10.1.15.2 10.1.20.3 0x05a4 0x00 0 1472 5000 7",
            "web-app-2 10.1.15.1,10.1.15.2 10.1.15.2,10.1.20.3 0x0005,0x0000 0x00,0x02 0,0 576,1473 5000 7 3 4 1472",
            "backend 10.1.15.2 10.1.20.3 0x05a5 0x01 0 1468",
            "backend 10.1.15.2 10.1.20.3 0x05a5 0x00 181 25 5000 7",
        ],
        drops: &[("node-1", "fragmentation-needed", 1)],
        ..PLAIN
    },
    Row {
        name: "fragments-through-the-tunnel",
        about: "RFC 2003, 3.1 in spirit: fragments travel as they are, and are cut once more where they do not fit",
        fields: PARTS,
        frames: |script| {
            let packet = Packet::udp((APP2.address, 5000), (BACKEND.address, 7), &data(2000)).may_cut(9);
            for part in [0..1480, 1480..2008] {
                script.send(APP2, &packet.part(part));
            }
        },
        seen: &[
            "backend 10.1.15.2 10.1.20.3 0x0009 0x01 0 1468",
            "backend 10.1.15.2 10.1.20.3 0x0009 0x01 181 52",
            "backend 10.1.15.2 10.1.20.3 0x0009 0x00 185 548 5000 7",
        ],
        ..PLAIN
    },
];
