//! The way outside of a network, frame by frame: what its peers hear, and what servers of a host see. Needs root, `ip` and `unshare`.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;
#[path = "common/lone_pod.rs"]
mod lone_pod;

use common::*;
use flatnet_engine::pod::HALF_OPEN_LIFETIME;
use flatnet_engine::wire::{EthernetFrame, Ipv4Packet, TcpFlags, TcpSegment};
use lone_pod::LonePod;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

/// The way outside, a machine of its network, and a server of the host's.
const ROUTER: Ipv4Addr = APP1;
const CLIENT: Ipv4Addr = APP2;
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// For whatever must come.
const PATIENCE: Duration = Duration::from_secs(10);

struct Outside {
    lone: LonePod,
}

impl Outside {
    fn new() -> Self {
        let mut lone = LonePod::new(ROUTER, CLIENT);
        lone.lead_outside(SERVER);
        Self { lone }
    }

    fn syn(&mut self, from: u16, to: u16) {
        let packet = tcp_packet(CLIENT, SERVER, (from, to), TcpFlags::SYN);
        self.lone.receive(&ethernet(mac(ROUTER), mac(CLIENT), &packet));
    }

    /// Hears what the host's sockets have, as when the worker is told that they have something.
    fn hear(&mut self) {
        self.lone.with(|pod, now, out| {
            pod.hear_host();
            pod.poll(now, out);
        });
    }

    /// The flags of the first segments that are sent, as soon as the host has made up its mind.
    fn answer(&mut self) -> Vec<TcpFlags> {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            self.hear();
            let flags = self.take();
            if !flags.is_empty() {
                return flags;
            }
            assert!(std::time::Instant::now() < deadline, "no answer");
            std::thread::yield_now();
        }
    }

    /// The flags of the segments that were sent.
    fn take(&mut self) -> Vec<TcpFlags> {
        let mut flags = Vec::new();
        for bytes in self.lone.take() {
            let packet = Ipv4Packet::new_checked(EthernetFrame::new_unchecked(&bytes[..]).payload().to_vec());
            if let Ok(packet) = packet.as_ref()
                && packet.source() == SERVER
            {
                flags.push(TcpSegment::new_checked(packet.payload()).unwrap().flags());
            }
        }
        flags
    }
}

const SYN_ACK: TcpFlags = TcpFlags::SYN.with(TcpFlags::ACK);
const RESET: TcpFlags = TcpFlags::RST.with(TcpFlags::ACK);

#[test]
fn a_peer_hears_of_success_when_there_is_one_and_asks_once() {
    let mut outside = Outside::new();
    let server = TcpListener::bind((SERVER, 80)).unwrap();
    // One may wait to be accepted, and the host's next SYN is not answered.
    rustix::net::listen(&server, 0).unwrap();
    outside.syn(998, 80);
    assert_eq!(outside.answer(), [SYN_ACK]);
    outside.syn(999, 80);
    // Sent again before anything is known.
    outside.syn(999, 80);
    outside.hear();
    assert_eq!(outside.take(), []);
    let _connections = [server.accept().unwrap(), server.accept().unwrap()];
    assert_eq!(outside.answer(), [SYN_ACK]);
    server.set_nonblocking(true).unwrap();
    assert!(server.accept().is_err(), "one connection for two SYNs");
}

#[test]
fn a_peer_is_refused_by_a_reset_when_the_server_has() {
    let mut outside = Outside::new();
    outside.syn(999, 81);
    assert_eq!(outside.answer(), [RESET]);
}

#[test]
fn a_server_is_left_when_the_peer_does_not_confirm() {
    let mut outside = Outside::new();
    let server = TcpListener::bind((SERVER, 80)).unwrap();
    outside.syn(999, 80);
    assert_eq!(outside.answer(), [SYN_ACK]);
    let (mut connection, _) = server.accept().unwrap();
    connection.set_nonblocking(true).unwrap();
    let end = outside.lone.now + HALF_OPEN_LIFETIME;
    while let Some(next) = outside.lone.pod.next_poll().filter(|&next| next < end) {
        outside.lone.now = outside.lone.now.max(next);
        outside.lone.with(|pod, now, out| pod.poll(now, out));
        outside.take();
    }
    assert_eq!(connection.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    outside.lone.now = end;
    outside.lone.with(|pod, now, out| pod.poll(now, out));
    assert_eq!(connection.read(&mut [0]).unwrap(), 0);
}
