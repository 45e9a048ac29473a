//! Links that are not perfect, by the topology's seed: which frames are lost, late, doubled or damaged is part of the row.

use std::num::NonZeroU64;
use std::time::Duration;

use flatnet_engine::link::impairment::{Impairment, QueueLimit};

use crate::frames::{APP2, BACKEND, Packet, Script};
use crate::network::Network;
use crate::{PLAIN, Row};

/// When a frame comes, since 1970 as tshark has it: since the row began; and its number.
const TIMES: &[&str] = &["frame.time_epoch", "ip.src", "data.data"];

/// Sets how frames fare from node-1 to node-2, and back if both ways.
fn impair(network: &mut Network, both: bool, impairment: Impairment) {
    let publisher = &mut network.drive.network.publisher;
    publisher.impair("node-1", "node-2", impairment).unwrap();
    if both {
        publisher.impair("node-2", "node-1", impairment).unwrap();
    }
    network.drive.settle();
}

fn perfect() -> Impairment {
    Impairment::default()
}

/// A pod's frames to a pod of the other node, a millisecond apart, each with its number.
fn numbered(script: &mut Script, count: u8) {
    for number in 0..count {
        script.send(APP2, &Packet::udp((APP2.address, 5000), (BACKEND.address, 7), &[number]));
    }
}

pub const ROWS: &[Row] = &[
    Row {
        name: "link-delay-and-jitter",
        about: "netem's delay and jitter: each frame takes 5 ms ± 2 ms, and none overtakes another",
        before: |network| {
            let (delay, jitter) = (Duration::from_millis(5), Duration::from_millis(2));
            impair(network, false, Impairment { delay, jitter, ..perfect() });
        },
        fields: TIMES,
        frames: |script| numbered(script, 12),
        seen: &[
            "backend 0.005765228 10.1.15.2 00",
            "backend 0.005765228 10.1.15.2 01",
            "backend 0.008260634 10.1.15.2 02",
            "backend 0.009441377 10.1.15.2 03",
            "backend 0.009441377 10.1.15.2 04",
            "backend 0.009561252 10.1.15.2 05",
            "backend 0.009734288 10.1.15.2 06",
            "backend 0.012748727 10.1.15.2 07",
            "backend 0.014979433 10.1.15.2 08",
            "backend 0.014979433 10.1.15.2 09",
            "backend 0.014979433 10.1.15.2 0a",
            "backend 0.015901328 10.1.15.2 0b",
        ],
        ..PLAIN
    },
    Row {
        name: "link-loss-one-way",
        about: "a third is lost from node-1 to node-2, nothing on the way back",
        before: |network| impair(network, false, Impairment { loss: 333_333, ..perfect() }),
        fields: TIMES,
        frames: |script| {
            numbered(script, 12);
            for number in 0..6 {
                script.send(BACKEND, &Packet::udp((BACKEND.address, 7), (APP2.address, 5000), &[number]));
            }
        },
        seen: &[
            "backend 0.001000000 10.1.15.2 01",
            "backend 0.002000000 10.1.15.2 02",
            "backend 0.003000000 10.1.15.2 03",
            "backend 0.004000000 10.1.15.2 04",
            "backend 0.005000000 10.1.15.2 05",
            "backend 0.006000000 10.1.15.2 06",
            "backend 0.007000000 10.1.15.2 07",
            "backend 0.008000000 10.1.15.2 08",
            "backend 0.010000000 10.1.15.2 0a",
            "web-app-2 0.012000000 10.1.20.3 00",
            "web-app-2 0.013000000 10.1.20.3 01",
            "web-app-2 0.014000000 10.1.20.3 02",
            "web-app-2 0.015000000 10.1.20.3 03",
            "web-app-2 0.016000000 10.1.20.3 04",
            "web-app-2 0.017000000 10.1.20.3 05",
        ],
        drops: &[("192.168.66.0/24", "link-loss", 3)],
        ..PLAIN
    },
    Row {
        name: "link-duplicates",
        about: "a third arrives twice, and is counted as copied",
        before: |network| impair(network, false, Impairment { duplicate: 333_333, ..perfect() }),
        fields: TIMES,
        frames: |script| numbered(script, 12),
        seen: &[
            "2 x backend 0.000000000 10.1.15.2 00",
            "backend 0.001000000 10.1.15.2 01",
            "backend 0.002000000 10.1.15.2 02",
            "backend 0.003000000 10.1.15.2 03",
            "backend 0.004000000 10.1.15.2 04",
            "backend 0.005000000 10.1.15.2 05",
            "backend 0.006000000 10.1.15.2 06",
            "backend 0.007000000 10.1.15.2 07",
            "backend 0.008000000 10.1.15.2 08",
            "2 x backend 0.009000000 10.1.15.2 09",
            "backend 0.010000000 10.1.15.2 0a",
            "2 x backend 0.011000000 10.1.15.2 0b",
        ],
        ..PLAIN
    },
    Row {
        name: "link-reorders",
        about: "netem's reorder: a quarter takes no time and overtakes those that take 3 ms",
        before: |network| {
            let delay = Duration::from_millis(3);
            impair(network, false, Impairment { delay, reorder: 250_000, ..perfect() });
        },
        fields: TIMES,
        frames: |script| numbered(script, 12),
        seen: &[
            "backend 0.000000000 10.1.15.2 00",
            "backend 0.004000000 10.1.15.2 01",
            "backend 0.005000000 10.1.15.2 02",
            "backend 0.006000000 10.1.15.2 03",
            "backend 0.007000000 10.1.15.2 04",
            "backend 0.008000000 10.1.15.2 05",
            "backend 0.009000000 10.1.15.2 06",
            "backend 0.009000000 10.1.15.2 09",
            "backend 0.010000000 10.1.15.2 07",
            "backend 0.011000000 10.1.15.2 08",
            "backend 0.013000000 10.1.15.2 0a",
            "backend 0.014000000 10.1.15.2 0b",
        ],
        ..PLAIN
    },
    Row {
        name: "link-corrupts",
        about: "one bit of each second frame is turned over: the node or the pod finds out, by name",
        before: |network| impair(network, false, Impairment { corrupt: 500_000, ..perfect() }),
        fields: TIMES,
        frames: |script| numbered(script, 24),
        seen: &[
            "backend 0.000000000 10.1.15.2 00",
            "backend 0.001000000 10.1.15.2 01",
            "backend 0.002000000 10.1.15.2 02",
            "backend 0.003000000 10.1.15.2 03",
            "backend 0.004000000 10.1.15.2 04",
            "backend 0.006000000 10.1.15.2 06",
            "backend 0.009000000 10.1.15.2 09",
            "backend 0.012000000 10.1.15.2 0c",
            "backend 0.013000000 10.1.15.2 0d",
            "backend 0.015000000 10.1.15.2 0f",
            "backend 0.016000000 10.1.15.2 10",
            "backend 0.017000000 10.1.15.2 11",
            "backend 0.019000000 10.1.15.2 13",
            "backend 0.022000000 10.1.15.2 16",
            "backend 0.023000000 10.1.15.2 17",
        ],
        drops: &[
            ("node-2", "ipv4-checksum", 2),
            ("node-2", "not-for-us", 1),
            ("node-2", "tunnel-checksum", 6),
        ],
        ..PLAIN
    },
    Row {
        name: "link-rate-and-queue",
        about: "a frame of 71 bytes takes 568 µs at 1 Mbit/s; two wait, the others find the queue full",
        before: |network| {
            let (rate, queue) = (NonZeroU64::new(1_000_000), Some(QueueLimit::Frames(3)));
            impair(network, false, Impairment { rate, queue, delay: Duration::from_millis(10), ..perfect() });
        },
        fields: TIMES,
        frames: |script| {
            numbered(script, 2);
            let now = script.frames.len();
            numbered(script, 8);
            // All at once.
            let time = script.frames[now].time;
            script.frames[now..].iter_mut().for_each(|frame| frame.time = time);
        },
        seen: &[
            "backend 0.010568000 10.1.15.2 00",
            "backend 0.011568000 10.1.15.2 01",
            "backend 0.012568000 10.1.15.2 00",
            "backend 0.013136000 10.1.15.2 01",
            "backend 0.013704000 10.1.15.2 02",
        ],
        drops: &[("192.168.66.0/24", "link-queue-full", 5)],
        ..PLAIN
    },
    Row {
        name: "link-goes-down-and-up",
        about: "what sets out while the link is down is dropped by name; what was on its way arrives; then all is as before",
        before: |network| {
            impair(network, true, Impairment { delay: Duration::from_millis(4), ..perfect() });
        },
        deeds: &[
            (3, |network| impair(network, true, Impairment { down: true, ..perfect() })),
            (7, |network| impair(network, true, perfect())),
        ],
        fields: TIMES,
        frames: |script| numbered(script, 12),
        seen: &[
            "backend 0.004000000 10.1.15.2 00",
            "backend 0.005000000 10.1.15.2 01",
            "backend 0.006000000 10.1.15.2 02",
            "backend 0.007000000 10.1.15.2 07",
            "backend 0.008000000 10.1.15.2 08",
            "backend 0.009000000 10.1.15.2 09",
            "backend 0.010000000 10.1.15.2 0a",
            "backend 0.011000000 10.1.15.2 0b",
        ],
        drops: &[("192.168.66.0/24", "link-down", 4)],
        ..PLAIN
    },
    Row {
        name: "link-takes-less",
        about: "RFC 1191, 4: a smaller MTU of the pair's link is told inside, less the outer headers, as soon as it is set",
        deeds: &[(2, |network| impair(network, true, Impairment { mtu: Some(1028), ..perfect() }))],
        fields: &["ip.src", "ip.dst", "ip.len", "icmp.type", "icmp.code", "icmp.mtu"],
        frames: |script| {
            for length in [1100, 1100, 1100, 972, 973] {
                let packet = Packet::udp((APP2.address, 5000), (BACKEND.address, 7), &vec![7; length]);
                script.send(APP2, &packet);
            }
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "2 x backend 10.1.15.2 10.1.20.3 1128",
            "web-app-2 10.1.15.1,10.1.15.2 10.1.15.2,10.1.20.3 576,1128 3 4 1000",
            "backend 10.1.15.2 10.1.20.3 1000",
            "web-app-2 10.1.15.1,10.1.15.2 10.1.15.2,10.1.20.3 576,1001 3 4 1000",
        ],
        drops: &[("node-1", "fragmentation-needed", 2)],
        ..PLAIN
    },
];
