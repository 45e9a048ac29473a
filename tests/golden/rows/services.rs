//! Services: schedulers, affinity, policies, LVS's three ways to forward, hairpins, ends of backends.

use std::net::Ipv4Addr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::frames::{APP1, APP2, APP3, BACKEND, Machine, NODE1, NODE2, Packet, Script, TcpFlags, USER};
use crate::{PLAIN, Row};

const WEB: u16 = 80;

/// Service N of `topologies/services.yaml`.
fn vip(number: u8) -> (Ipv4Addr, u16) {
    (Ipv4Addr::new(10, 96, 0, number), WEB)
}

fn ask(script: &mut Script, client: Machine, port: u16, to: (Ipv4Addr, u16)) {
    script.send(client, &Packet::udp((client.address, port), to, b"question"));
}

fn answer(script: &mut Script, server: Machine, to: (Ipv4Addr, u16)) {
    script.send(server, &Packet::udp((server.address, WEB), to, b"answer"));
}

/// A client's segment of a connection, told by its flags.
fn segment(script: &mut Script, client: (Machine, u16), to: (Ipv4Addr, u16), flags: u8) {
    let number = if flags & TcpFlags::SYN == 0 { 1001 } else { 1000 };
    script.send(client.0, &Packet::tcp((client.0.address, client.1), to, flags, (number, 1), b""));
}

/// Asks by so many flows, each of three packets.
fn flows(script: &mut Script, client: Machine, to: (Ipv4Addr, u16), count: u16) {
    for port in 5000..5000 + count {
        (0..3).for_each(|_| ask(script, client, port, to));
    }
}

const PLAIN_SERVICE: Row = Row { topology: "services", ..PLAIN };

pub const ROWS: &[Row] = &[
    Row {
        name: "service-round-robin",
        about: "ip_vs_rr: flows go to the backends in turn, all packets of a flow to one, and answers come from the VIP",
        frames: |script| {
            flows(script, BACKEND, vip(10), 4);
            answer(script, APP1, (BACKEND.address, 5000));
            answer(script, APP3, (BACKEND.address, 5002));
        },
        seen: &[
            "3 x web-app-1 10.1.20.3 5000 10.1.15.3 80 62",
            "3 x web-app-2 10.1.20.3 5001 10.1.15.2 80 62",
            "3 x web-app-3 10.1.20.3 5002 10.1.20.2 80 63",
            "3 x web-app-1 10.1.20.3 5003 10.1.15.3 80 62",
            "backend 10.96.0.10 80 10.1.20.3 5000 62",
            "backend 10.96.0.10 80 10.1.20.3 5002 64",
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-weighted-round-robin",
        about: "ip_vs_wrr: web-app-1, of weight 2, gets two flows of four",
        frames: |script| flows(script, BACKEND, vip(11), 8),
        seen: &[
            "3 x web-app-1 10.1.20.3 5000 10.1.15.3 80 62",
            "3 x web-app-1 10.1.20.3 5001 10.1.15.3 80 62",
            "3 x web-app-2 10.1.20.3 5002 10.1.15.2 80 62",
            "3 x web-app-3 10.1.20.3 5003 10.1.20.2 80 63",
            "3 x web-app-1 10.1.20.3 5004 10.1.15.3 80 62",
            "3 x web-app-1 10.1.20.3 5005 10.1.15.3 80 62",
            "3 x web-app-2 10.1.20.3 5006 10.1.15.2 80 62",
            "3 x web-app-3 10.1.20.3 5007 10.1.20.2 80 63",
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-least-connection",
        about: "ip_vs_lc: each connection goes where the fewest are; weights do not count",
        frames: |script| {
            for port in 5000..5006 {
                segment(script, (BACKEND, port), vip(12), TcpFlags::SYN);
            }
        },
        seen: &[
            "web-app-1 10.1.20.3 5000 10.1.15.3 80 62",
            "web-app-2 10.1.20.3 5001 10.1.15.2 80 62",
            "web-app-3 10.1.20.3 5002 10.1.20.2 80 63",
            "web-app-1 10.1.20.3 5003 10.1.15.3 80 62",
            "web-app-2 10.1.20.3 5004 10.1.15.2 80 62",
            "web-app-3 10.1.20.3 5005 10.1.20.2 80 63",
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-weighted-least-connection",
        about: "ip_vs_wlc: fewest by weight, so that web-app-1 has two of four",
        frames: |script| {
            for port in 5000..5008 {
                segment(script, (BACKEND, port), vip(13), TcpFlags::SYN);
            }
        },
        seen: &[
            "web-app-1 10.1.20.3 5000 10.1.15.3 80 62",
            "web-app-2 10.1.20.3 5001 10.1.15.2 80 62",
            "web-app-3 10.1.20.3 5002 10.1.20.2 80 63",
            "web-app-1 10.1.20.3 5003 10.1.15.3 80 62",
            "web-app-1 10.1.20.3 5004 10.1.15.3 80 62",
            "web-app-2 10.1.20.3 5005 10.1.15.2 80 62",
            "web-app-3 10.1.20.3 5006 10.1.20.2 80 63",
            "web-app-1 10.1.20.3 5007 10.1.15.3 80 62",
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-source-hash",
        about: "ip_vs_sh: a client has one backend for all its flows; another client may have another",
        frames: |script| {
            for client in [BACKEND, APP2, USER] {
                let to = vip(14);
                for port in 5000..5002 {
                    let packet = Packet::udp((client.address, port), to, b"question");
                    script.to(client, if client.name == "user" { NODE1 } else { client.gateway }, &packet);
                }
            }
        },
        differs: Some("each worker has ports of its own"),
        seen: &[
            "web-app-1 10.1.20.3 5000 10.1.15.3 80 62",
            "web-app-1 10.1.20.3 5001 10.1.15.3 80 62",
            "web-app-3 10.1.15.2 5000 10.1.20.2 80 62",
            "web-app-3 10.1.15.2 5001 10.1.20.2 80 62",
            "web-app-2 10.1.15.1 5000 10.1.15.2 80 63",
            "web-app-2 10.1.15.1 5001 10.1.15.2 80 63",
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-destination-hash",
        about: "ip_vs_dh: a VIP has one backend for all clients and flows",
        frames: |script| {
            for client in [BACKEND, APP2] {
                flows(script, client, vip(15), 2);
            }
        },
        seen: &[
            "3 x web-app-1 10.1.20.3 5000 10.1.15.3 80 62",
            "3 x web-app-1 10.1.20.3 5001 10.1.15.3 80 62",
            "3 x web-app-1 10.1.15.2 5000 10.1.15.3 80 63",
            "3 x web-app-1 10.1.15.2 5001 10.1.15.3 80 63",
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-maglev",
        about: "ip_vs_mh: a client's backend is its address's, the same for all its flows in every run",
        frames: |script| {
            for client in [BACKEND, APP2] {
                flows(script, client, vip(16), 3);
            }
        },
        seen: &[
            "3 x web-app-3 10.1.20.3 5000 10.1.20.2 80 63",
            "3 x web-app-3 10.1.20.3 5001 10.1.20.2 80 63",
            "3 x web-app-3 10.1.20.3 5002 10.1.20.2 80 63",
            "3 x web-app-1 10.1.15.2 5000 10.1.15.3 80 63",
            "3 x web-app-1 10.1.15.2 5001 10.1.15.3 80 63",
            "3 x web-app-1 10.1.15.2 5002 10.1.15.3 80 63",
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-affinity",
        about: "Kubernetes, sessionAffinity ClientIP: a client keeps its backend for 60 s after its last new flow",
        frames: |script| {
            for (port, wait) in [(5000, 59), (5001, 59), (5002, 61), (5003, 0)] {
                ask(script, BACKEND, port, vip(17));
                ask(script, BACKEND, port, vip(17));
                script.wait(Duration::from_secs(wait));
            }
        },
        seen: &[
            "2 x web-app-1 10.1.20.3 5000 10.1.15.3 80 62",
            "2 x web-app-1 10.1.20.3 5001 10.1.15.3 80 62",
            "2 x web-app-1 10.1.20.3 5002 10.1.15.3 80 62",
            "2 x web-app-2 10.1.20.3 5003 10.1.15.2 80 62",
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-policy-local",
        about: "Kubernetes, traffic policies Local: the client's address is kept; where no backend is, silence",
        frames: |script| {
            for node in [NODE1, NODE2] {
                ask(script, USER, 5000, (node, 30_081));
            }
            answer(script, BACKEND, (USER.address, 5000));
            for client in [APP2, APP3] {
                ask(script, client, 5000, vip(18));
            }
        },
        seen: &[
            "backend 192.168.66.50 5000 10.1.20.3 80 63",
            "user 192.168.66.12 30081 192.168.66.50 5000 63",
            "backend 10.1.20.2 5000 10.1.20.3 80 63",
        ],
        drops: &[("node-1", "no-local-backend", 2)],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-node-port",
        about: "Kubernetes, NodePort: from outside by any node, masqueraded so that the answer comes back through it",
        frames: |script| {
            for _ in 0..3 {
                ask(script, USER, 4700, (NODE1, 30_080));
            }
            answer(script, APP1, (APP1.gateway, 4700));
        },
        seen: &[
            "3 x web-app-1 10.1.15.1 4700 10.1.15.3 80 63",
            "user 192.168.66.11 30080 192.168.66.50 4700 63",
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-without-backend",
        about: "RFC 9293, 3.5.2 and RFC 1122, 4.1.3.1: refused at once, by reset or port unreachable; a closed port is, too; no echo",
        fields: &["ip.src", "ip.dst", "tcp.srcport", "tcp.flags", "udp.dstport", "icmp.type", "icmp.code"],
        frames: |script| {
            segment(script, (APP2, 5000), vip(23), TcpFlags::SYN);
            ask(script, APP2, 5000, vip(23));
            ask(script, APP2, 5000, (vip(10).0, 81));
            script.send(APP2, &Packet::echo(APP2.address, vip(10).0, 8, 1, 1));
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "web-app-2 10.96.0.23 10.1.15.2 80 0x0014",
            "web-app-2 10.96.0.23,10.1.15.2 10.1.15.2,10.96.0.23 80 3 3",
            "web-app-2 10.96.0.10,10.1.15.2 10.1.15.2,10.96.0.10 81 3 3",
        ],
        drops: &[
            ("node-1", "no-backend", 2),
            ("node-1", "service-port-closed", 1),
            ("node-1", "service-unsupported", 1),
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-hairpin",
        about: "Kubernetes, hairpin: a pod reaches itself through its VIP and NodePort, and sees docker0 as its client",
        frames: |script| {
            for (port, to) in [(5000, vip(21)), (5001, (NODE1, 30_082))] {
                for _ in 0..2 {
                    ask(script, APP1, port, to);
                    answer(script, APP1, (APP1.gateway, port));
                }
            }
        },
        seen: &[
            "web-app-1 10.1.15.1 5000 10.1.15.3 80 63",
            "web-app-1 10.96.0.21 80 10.1.15.3 5000 63",
            "web-app-1 10.1.15.1 5000 10.1.15.3 80 63",
            "web-app-1 10.96.0.21 80 10.1.15.3 5000 63",
            "web-app-1 10.1.15.1 5001 10.1.15.3 80 63",
            "web-app-1 192.168.66.11 30082 10.1.15.3 5001 63",
            "web-app-1 10.1.15.1 5001 10.1.15.3 80 63",
            "web-app-1 192.168.66.11 30082 10.1.15.3 5001 63",
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-on-one-bridge",
        about: "a backend's answer to a client on the same docker0 is translated back before it is bridged",
        frames: |script| {
            for _ in 0..3 {
                ask(script, APP2, 5000, vip(21));
                answer(script, APP1, (APP2.address, 5000));
            }
        },
        seen: &[
            "web-app-1 10.1.15.2 5000 10.1.15.3 80 63",
            "web-app-2 10.96.0.21 80 10.1.15.2 5000 64",
            "web-app-1 10.1.15.2 5000 10.1.15.3 80 63",
            "web-app-2 10.96.0.21 80 10.1.15.2 5000 64",
            "web-app-1 10.1.15.2 5000 10.1.15.3 80 63",
            "web-app-2 10.96.0.21 80 10.1.15.2 5000 64",
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-same-answer-tuple",
        about: "RFC 3022, 2.2: two VIPs' flows from one port to one backend are told apart by another source port",
        frames: |script| {
            for _ in 0..2 {
                ask(script, APP2, 5000, vip(21));
                ask(script, APP2, 5000, vip(22));
            }
        },
        differs: Some("each worker has ports of its own"),
        seen: &[
            "web-app-1 10.1.15.2 5000 10.1.15.3 80 63",
            "web-app-1 10.1.15.2 64861 10.1.15.3 80 63",
            "web-app-1 10.1.15.2 5000 10.1.15.3 80 63",
            "web-app-1 10.1.15.2 64861 10.1.15.3 80 63",
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-direct-routing",
        about: "ip_vs_dr_xmit: only the MAC changes; the backend answers from the VIP, and is not masqueraded",
        fields: &["eth.dst", "ip.src", "ip.dst", "udp.srcport", "udp.dstport", "ip.ttl"],
        frames: |script| {
            for _ in 0..3 {
                ask(script, APP2, 5000, vip(19));
                script.to(APP1, APP1.gateway, &Packet::udp(vip(19), (APP2.address, 5000), b"answer"));
            }
        },
        seen: &[
            "web-app-1 02:42:0a:01:0f:03 10.1.15.2 10.96.0.19 5000 80 63",
            "web-app-2 02:42:0a:01:0f:02 10.96.0.19 10.1.15.2 80 5000 63",
            "web-app-1 02:42:0a:01:0f:03 10.1.15.2 10.96.0.19 5000 80 63",
            "web-app-2 02:42:0a:01:0f:02 10.96.0.19 10.1.15.2 80 5000 63",
            "web-app-1 02:42:0a:01:0f:03 10.1.15.2 10.96.0.19 5000 80 63",
            "web-app-2 02:42:0a:01:0f:02 10.96.0.19 10.1.15.2 80 5000 63",
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-tunnel",
        about: "ip_vs_tunnel_xmit: the backend gets the packet in another one, as it is; it answers from the VIP",
        frames: |script| {
            for _ in 0..3 {
                ask(script, APP2, 5000, vip(20));
                script.to(APP3, APP3.gateway, &Packet::udp(vip(20), (APP2.address, 5000), b"answer"));
            }
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "web-app-3 10.1.15.0,10.1.15.2 5000 10.1.20.2,10.96.0.20 80 63,63",
            "web-app-2 10.96.0.20 80 10.1.15.2 5000 62",
            "web-app-3 10.1.15.0,10.1.15.2 5000 10.1.20.2,10.96.0.20 80 63,63",
            "web-app-2 10.96.0.20 80 10.1.15.2 5000 62",
            "web-app-3 10.1.15.0,10.1.15.2 5000 10.1.20.2,10.96.0.20 80 63,63",
            "web-app-2 10.96.0.20 80 10.1.15.2 5000 62",
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "director-tunnel",
        about: "ip_vs_tunnel_xmit and ip_vs_in_icmp from outside the cluster: the client asks, is told what fits, and is answered \
                by the backend",
        topology: "director",
        frames: |script| {
            let long = |length| Packet::udp((USER.address, 5001), vip(20), &vec![7; length]);
            for _ in 0..2 {
                ask(script, USER, 5000, vip(20));
                script.to(APP3, APP3.gateway, &Packet::udp(vip(20), (USER.address, 5000), b"answer"));
            }
            for length in [1453 - 28, 1452 - 28] {
                script.send(USER, &long(length));
            }
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "web-app-3 192.168.66.1,192.168.66.50 5000 10.1.20.2,10.96.0.20 80 63,63",
            "user 10.96.0.20 80 192.168.66.50 5000 63",
            "web-app-3 192.168.66.1,192.168.66.50 5000 10.1.20.2,10.96.0.20 80 63,63",
            "user 10.96.0.20 80 192.168.66.50 5000 63",
            "user 192.168.66.1,192.168.66.50 5001 192.168.66.50,10.96.0.20 80 64,63 3 4",
            "web-app-3 192.168.66.1,192.168.66.50 5001 10.1.20.2,10.96.0.20 80 63,63",
        ],
        drops: &[("node-2", "fragmentation-needed", 1)],
        ..PLAIN_SERVICE
    },
    Row {
        name: "director-errors",
        about: "ip_vs_in_icmp and ip_vs_icmp_xmit: errors about a backend's own answer reach the backend, from a client, from a pod \
                and from its own node",
        topology: "director",
        frames: |script| {
            for (client, number, backend) in [(USER, 20, APP3), (APP2, 20, APP3), (APP2, 19, APP1)] {
                ask(script, client, 5000, vip(number));
                let answer = Packet::udp(vip(number), (client.address, 5000), b"answer");
                for kind in [(3, 3), (3, 4), (11, 1)] {
                    let error = Packet::error(client.address, vip(number).0, kind, 700, &answer);
                    script.to(client, client.gateway, &error);
                }
                script.to(backend, backend.gateway, &answer.ttl(1));
            }
        },
        differs: Some("each worker counts identifications by itself"),
        seen: &[
            "web-app-3 192.168.66.1,192.168.66.50 5000 10.1.20.2,10.96.0.20 80 63,63",
            "web-app-3 192.168.66.1,192.168.66.50,10.96.0.20 80 10.1.20.2,10.96.0.20,192.168.66.50 5000 63,63,64 3 3",
            "web-app-3 192.168.66.1,192.168.66.50,10.96.0.20 80 10.1.20.2,10.96.0.20,192.168.66.50 5000 63,63,64 3 4",
            "web-app-3 192.168.66.1,192.168.66.50,10.96.0.20 80 10.1.20.2,10.96.0.20,192.168.66.50 5000 63,63,64 11 1",
            "web-app-3 10.1.20.1,10.96.0.20 80 10.96.0.20,192.168.66.50 5000 64,1 11 0",
            "web-app-3 10.1.15.0,10.1.15.2 5000 10.1.20.2,10.96.0.20 80 63,63",
            "web-app-3 10.1.15.0,10.1.15.2,10.96.0.20 80 10.1.20.2,10.96.0.20,10.1.15.2 5000 63,63,64 3 3",
            "web-app-3 10.1.15.0,10.1.15.2,10.96.0.20 80 10.1.20.2,10.96.0.20,10.1.15.2 5000 63,63,64 3 4",
            "web-app-3 10.1.15.0,10.1.15.2,10.96.0.20 80 10.1.20.2,10.96.0.20,10.1.15.2 5000 63,63,64 11 1",
            "web-app-3 10.1.20.1,10.96.0.20 80 10.96.0.20,10.1.15.2 5000 64,1 11 0",
            "web-app-1 10.1.15.2 5000 10.96.0.19 80 63",
            "web-app-1 10.1.15.2,10.96.0.19 80 10.96.0.19,10.1.15.2 5000 63,64 3 3",
            "web-app-1 10.1.15.2,10.96.0.19 80 10.96.0.19,10.1.15.2 5000 63,64 3 4",
            "web-app-1 10.1.15.2,10.96.0.19 80 10.96.0.19,10.1.15.2 5000 63,64 11 1",
            "web-app-1 10.1.15.1,10.96.0.19 80 10.96.0.19,10.1.15.2 5000 64,1 11 0",
        ],
        drops: &[("node-1", "ttl-expired", 1), ("node-2", "ttl-expired", 2)],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-backend-goes",
        about: "a gone backend's flows choose again, TCP's too: whoever gets its address is another machine",
        deeds: &[(4, |network| {
            assert!(network.drive.network.delete::<Pod>("default", "web-app-1").unwrap());
            network.drive.settle();
        })],
        frames: |script| {
            for _ in 0..2 {
                segment(script, (BACKEND, 5000), vip(10), TcpFlags::SYN);
                ask(script, BACKEND, 5000, vip(10));
                segment(script, (BACKEND, 5000), vip(10), TcpFlags::ACK);
                ask(script, BACKEND, 5000, vip(10));
            }
        },
        seen: &[
            "4 x web-app-1 10.1.20.3 5000 10.1.15.3 80 62",
            "4 x web-app-3 10.1.20.3 5000 10.1.20.2 80 63",
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-backend-terminates",
        about: "kube-proxy, CategorizeEndpoints: an ending backend keeps connections, and gets flows only when all are; UDP flows choose again",
        deeds: &[
            (3, |network| network.terminate("web-app-1")),
            (9, |network| ["web-app-2", "web-app-3"].iter().for_each(|pod| network.terminate(pod))),
        ],
        frames: |script| {
            segment(script, (BACKEND, 5000), vip(10), TcpFlags::SYN);
            segment(script, (BACKEND, 5000), vip(10), TcpFlags::ACK);
            ask(script, BACKEND, 5000, vip(10));
            // web-app-1 ends.
            segment(script, (BACKEND, 5000), vip(10), TcpFlags::ACK);
            (5000..5005).for_each(|port| ask(script, BACKEND, port, vip(10)));
            // They all do.
            (5000..5008).for_each(|port| ask(script, BACKEND, port, vip(10)));
        },
        seen: &[
            "4 x web-app-1 10.1.20.3 5000 10.1.15.3 80 62",
            "web-app-3 10.1.20.3 5000 10.1.20.2 80 63",
            "web-app-2 10.1.20.3 5001 10.1.15.2 80 62",
            "web-app-3 10.1.20.3 5002 10.1.20.2 80 63",
            "web-app-2 10.1.20.3 5003 10.1.15.2 80 62",
            "web-app-3 10.1.20.3 5004 10.1.20.2 80 63",
            "web-app-3 10.1.20.3 5000 10.1.20.2 80 63",
            "web-app-3 10.1.20.3 5001 10.1.20.2 80 63",
            "web-app-3 10.1.20.3 5002 10.1.20.2 80 63",
            "web-app-1 10.1.20.3 5003 10.1.15.3 80 62",
            "web-app-3 10.1.20.3 5004 10.1.20.2 80 63",
            "web-app-2 10.1.20.3 5005 10.1.15.2 80 62",
            "web-app-3 10.1.20.3 5006 10.1.20.2 80 63",
            "web-app-1 10.1.20.3 5007 10.1.15.3 80 62",
        ],
        ..PLAIN_SERVICE
    },
    Row {
        name: "service-random",
        about: "LVS has no such scheduler; iptables' statistic mode random: any backend, the same for all of a flow's packets",
        frames: |script| {
            flows(script, BACKEND, vip(24), 12);
            answer(script, APP2, (BACKEND.address, 5000));
        },
        seen: &[
            "3 x web-app-2 10.1.20.3 5000 10.1.15.2 80 62",
            "3 x web-app-1 10.1.20.3 5001 10.1.15.3 80 62",
            "3 x web-app-1 10.1.20.3 5002 10.1.15.3 80 62",
            "3 x web-app-1 10.1.20.3 5003 10.1.15.3 80 62",
            "3 x web-app-3 10.1.20.3 5004 10.1.20.2 80 63",
            "3 x web-app-3 10.1.20.3 5005 10.1.20.2 80 63",
            "3 x web-app-2 10.1.20.3 5006 10.1.15.2 80 62",
            "3 x web-app-2 10.1.20.3 5007 10.1.15.2 80 62",
            "3 x web-app-1 10.1.20.3 5008 10.1.15.3 80 62",
            "3 x web-app-2 10.1.20.3 5009 10.1.15.2 80 62",
            "3 x web-app-2 10.1.20.3 5010 10.1.15.2 80 62",
            "3 x web-app-2 10.1.20.3 5011 10.1.15.2 80 62",
            "backend 10.96.0.24 80 10.1.20.3 5000 62",
        ],
        ..PLAIN_SERVICE
    },
];
