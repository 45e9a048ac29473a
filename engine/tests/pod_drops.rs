//! Every reason for which a pod drops something, provoked once in a real pod, by frames or by its own programs. Needs root, `ip` and
//! `unshare`, for those of sockets of the host's.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "a test stops at the first surprise; one case per reason"
)]

mod common;
#[path = "common/lone_pod.rs"]
mod lone_pod;

use common::*;
use flatnet_engine::link::pod_ring::QUEUE_LIMIT;
use flatnet_engine::pod::{ContainerConfig, Image, PodDrop};
use flatnet_engine::wire::{ArpOperation, EtherType, EthernetFrame, IcmpType, Ipv4Packet, TcpFlags};
use lone_pod::{LonePod, ip};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::net::Ipv4Addr;
use std::time::Duration;

/// The pod, which echoes; a neighbour that it knows, one that it does not, somebody behind no gateway.
const POD: Ipv4Addr = APP1;
const KNOWN: Ipv4Addr = APP2;
const SILENT: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 77);
const AWAY: Ipv4Addr = INTERNET;
/// A server on the host's network.
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const ECHO: u16 = 7;

struct Bench {
    lone: LonePod,
}

impl Bench {
    fn new() -> Self {
        let mut lone = LonePod::new(POD, KNOWN);
        let echo = ContainerConfig {
            name: "echo".into(),
            image: Image::Echo,
            ports: Vec::new(),
            args: Vec::new(),
            mounts: Vec::new(),
        };
        lone.pod.start_container(echo).unwrap();
        Self { lone }
    }

    /// A packet comes in whose answer, if there is one, goes to the neighbour that is known.
    fn packet(&mut self, packet: &[u8]) {
        self.lone.receive(&ethernet(mac(POD), mac(KNOWN), packet));
    }

    fn udp(&mut self, from: Ipv4Addr) {
        self.packet(&udp_packet(from, POD, (999, ECHO), b"x", 64));
    }

    /// Lets time pass from timer to timer.
    fn pass(&mut self, duration: Duration) {
        let until = self.lone.now + duration;
        while let Some(next) = self.lone.pod.next_poll().filter(|&next| next <= until) {
            self.lone.now = self.lone.now.max(next);
            self.lone.with(|pod, now, out| pod.poll(now, out));
            self.lone.take();
        }
        self.lone.now = until;
    }

    /// Has a program of the pod send datagrams at once to its own address.
    fn flood_lo(&mut self, port: u16, datagrams: usize) {
        let words = ["nc", "-u", "127.0.0.1", &port.to_string()].map(String::from);
        let program = self.lone.pod.exec(&words, self.lone.now);
        self.lone.pod.input(program, &vec![0; datagrams * DATAGRAM]);
        self.pass(Duration::from_secs(1));
    }
}

/// Bytes that `nc` puts into one datagram.
const DATAGRAM: usize = 8192;

fn fragment(identification: u16) -> Vec<u8> {
    let mut packet = udp_packet(KNOWN, POD, (999, ECHO), &[0; 8], 64);
    let mut header = Ipv4Packet::new_unchecked(&mut packet[..]);
    header.set_identification(identification);
    header.set_fragmentation(false, true, 0);
    header.fill_header_checksum();
    packet
}

fn syn(port: u16) -> Vec<u8> {
    tcp_packet(KNOWN, POD, (port, ECHO), TcpFlags::SYN)
}

fn provoke(reason: PodDrop, bench: &mut Bench) {
    match reason {
        PodDrop::Dead => {
            bench.lone.pod.kill();
            bench.udp(KNOWN);
        }
        PodDrop::NotForUs => {
            bench.lone.receive(&ethernet(
                mac(SILENT),
                mac(KNOWN),
                &udp_packet(KNOWN, POD, (1, ECHO), b"x", 64),
            ));
        }
        PodDrop::Malformed => bench.lone.receive(&[0; 13]),
        PodDrop::BadChecksum => {
            let mut packet = udp_packet(KNOWN, POD, (999, ECHO), b"x", 64);
            packet[28] ^= 1;
            bench.packet(&packet);
        }
        PodDrop::Martian => bench.udp(Ipv4Addr::LOCALHOST),
        PodDrop::UnknownProtocol => {
            let mut frame = ethernet(mac(POD), mac(KNOWN), &[0; 40]);
            EthernetFrame::new_unchecked(&mut frame[..]).set_ethertype(EtherType::Ipv6);
            bench.lone.receive(&frame);
        }
        PodDrop::ReassemblyFull => {
            for identification in 0..1025 {
                bench.packet(&fragment(identification));
            }
        }
        PodDrop::ReassemblyTimeout => {
            bench.packet(&fragment(1));
            bench.pass(Duration::from_secs(30));
        }
        PodDrop::HalfOpenFull => {
            for port in 0..129 {
                bench.packet(&syn(1024 + port));
            }
        }
        PodDrop::HalfOpenTimeout => {
            // The neighbour's entry lives as long as the handshake, so that only the latter ends.
            bench.packet(&syn(1024));
            for _ in 0..7 {
                bench.pass(Duration::from_secs(9));
                bench.lone.receive(&arp(ArpOperation::Request, (mac(KNOWN), KNOWN), (mac(POD), POD)));
            }
        }
        PodDrop::SocketQueueFull => bench.flood_lo(ECHO, 513),
        PodDrop::NeighborQueueFull => {
            // As in Linux, 101 wait.
            for _ in 0..102 {
                bench.udp(SILENT);
            }
        }
        PodDrop::NeighborUnresolved => {
            bench.udp(SILENT);
            bench.pass(Duration::from_secs(3));
        }
        PodDrop::NoRoute => bench.udp(AWAY),
        PodDrop::LoFull => bench.flood_lo(9, 4097),
        PodDrop::LinkFull => {
            for _ in 0..=QUEUE_LIMIT {
                bench.udp(KNOWN);
            }
        }
        PodDrop::NotForwarded => {
            bench.lone.lead_outside(SERVER);
            bench.packet(&udp_packet(KNOWN, Ipv4Addr::new(169, 254, 169, 254), (999, 80), b"x", 64));
        }
        PodDrop::HostSocketsFull => {
            bench.lone.lead_outside(SERVER);
            let usual = getrlimit(Resource::Nofile);
            setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..usual }).unwrap();
            bench.packet(&udp_packet(KNOWN, SERVER, (999, 80), b"x", 64));
            setrlimit(Resource::Nofile, usual).unwrap();
        }
        PodDrop::HostQueueFull => {
            bench.lone.lead_outside(SERVER);
            bench.packet(&udp_packet(KNOWN, SERVER, (999, 80), b"x", 64));
            ip("address flush dev lo");
            bench.packet(&udp_packet(KNOWN, SERVER, (999, 80), b"x", 64));
        }
        PodDrop::HostPingRefused => {
            bench.lone.lead_outside(SERVER);
            bench.packet(&echo_packet(KNOWN, SERVER, IcmpType::EchoRequest, 1, 64));
        }
        PodDrop::ErrorUnmatched => bench.packet(&echo_packet(KNOWN, POD, IcmpType::EchoReply, 1, 64)),
    }
}

#[test]
fn every_reason_is_given_once_and_no_other() {
    for &reason in PodDrop::ALL {
        let mut bench = Bench::new();
        assert_eq!(bench.lone.pod.drops().iter().count(), 0, "{reason:?}: nothing before");
        provoke(reason, &mut bench);
        let drops: Vec<_> = bench.lone.pod.drops().iter().collect();
        assert_eq!(drops, [(reason, 1)]);
    }
}
