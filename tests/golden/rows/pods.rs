//! Pods' own TCP, as who asks them sees it.

use crate::frames::{APP2, BACKEND, Packet, TcpFlags};
use crate::{PLAIN, Row};

/// The server's initial sequence number, by the topology's seed.
const SERVER: u32 = 3_191_402_814;
/// The length of its page, with the head.
const PAGE: u32 = 182;

pub const ROWS: &[Row] = &[Row {
    name: "pod-time-wait",
    about: "RFC 1122, 4.2.2.13; RFC 9293, 3.10.7.4: a port in TIME-WAIT is had again by a newer SYN, or when a reset in the window ended it",
    topology: "server",
    alive: &["backend"],
    fields: &["ip.src", "tcp.flags", "tcp.seq_raw", "tcp.ack_raw", "tcp.len"],
    frames: |script| {
        const FIN: u8 = TcpFlags::FIN | TcpFlags::ACK;
        let end = SERVER + 1 + PAGE;
        for (flags, sequence, acknowledged, data) in [
            (TcpFlags::SYN, 1000, 0, ""),
            (TcpFlags::ACK, 1001, SERVER + 1, ""),
            (TcpFlags::ACK | TcpFlags::PSH, 1001, SERVER + 1, "GET / HTTP/1.0\r\n\r\n"),
            (FIN, 1019, end + 1, ""),
            // In TIME-WAIT: blind resets, an old SYN, a newer one, which is given up.
            (TcpFlags::RST, 1019, 0, ""),
            (TcpFlags::RST, 1021, 0, ""),
            (TcpFlags::SYN, 1019, 0, ""),
            (TcpFlags::SYN, 3000, 0, ""),
            (TcpFlags::RST, 3001, 0, ""),
            (TcpFlags::SYN, 1019, 0, ""),
            // A reset at the next sequence number: the old SYN opens a connection.
            (TcpFlags::RST, 1020, 0, ""),
            (TcpFlags::SYN, 1019, 0, ""),
            (TcpFlags::RST, 1020, 0, ""),
        ] {
            let (client, server) = ((APP2.address, 40_000), (BACKEND.address, 80));
            script.send(APP2, &Packet::tcp(client, server, flags, (sequence, acknowledged), data.as_bytes()));
        }
    },
    seen: &[
        "web-app-2 10.1.20.3 0x0012 3191402814 1001 0",
        "web-app-2 10.1.20.3 0x0011 3191402815 1019 182",
        "2 x web-app-2 10.1.20.3 0x0010 3191402998 1020 0",
        "web-app-2 10.1.20.3 0x0012 3773606529 3001 0",
        "web-app-2 10.1.20.3 0x0010 3191402998 1020 0",
        "web-app-2 10.1.20.3 0x0012 1237576973 1020 0",
    ],
    ..PLAIN
}];
