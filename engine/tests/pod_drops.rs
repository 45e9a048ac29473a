//! Every reason for which a pod drops something, provoked once in a real pod, by frames or by its own programs. Needs root, `ip` and
//! `unshare`, for those of sockets of the host's.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "a test stops at the first surprise; one case per reason"
)]

mod common;

use common::*;
use flatnet_engine::clock::Instant;
use flatnet_engine::frame::{Arena, Frame, Pool};
use flatnet_engine::link::pod_ring::{Outbox, QUEUE_LIMIT};
use flatnet_engine::pod::{ContainerConfig, Image, Pod, PodConfig, PodDrop};
use flatnet_engine::wire::{ArpOperation, EtherType, EthernetFrame, IcmpType, Ipv4Packet, TcpFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
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
    pod: Pod,
    pool: Pool,
    sent: VecDeque<Frame>,
    mark: u32,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let (_, mut pools) = Arena::new(1, 2048, 16).unwrap();
        let mut pod = Pod::new(PodConfig { mac: mac(POD), address: POD, ..PodConfig::default() });
        let echo = ContainerConfig {
            name: "echo".into(),
            image: Image::Echo,
            ports: Vec::new(),
            args: Vec::new(),
            mounts: Vec::new(),
        };
        pod.start_container(echo).unwrap();
        let (pool, now) = (pools.pop().unwrap(), Instant::ZERO);
        let mut bench = Self { pod, pool, sent: VecDeque::new(), mark: 0, now };
        bench.receive(&arp(ArpOperation::Request, (mac(KNOWN), KNOWN), (mac(POD), POD)));
        bench.take();
        bench
    }

    fn with(&mut self, act: impl FnOnce(&mut Pod, Instant, &mut Outbox<'_>)) {
        let Self { pod, pool, sent, mark, now } = self;
        let mut out = Outbox { pool, queue: sent, next_mark: mark, tracing: false, answers_traced: false };
        act(pod, *now, &mut out);
    }

    fn receive(&mut self, frame: &[u8]) {
        self.with(|pod, now, out| pod.receive(frame, now, out));
    }

    /// A packet comes in whose answer, if there is one, goes to the neighbour that is known.
    fn packet(&mut self, packet: &[u8]) {
        self.receive(&ethernet(mac(POD), mac(KNOWN), packet));
    }

    fn udp(&mut self, from: Ipv4Addr) {
        self.packet(&udp_packet(from, POD, (999, ECHO), b"x", 64));
    }

    /// Makes the pod its network's way outside, to a host with an address that lets nobody send pings.
    fn lead_outside(&mut self) {
        enter_namespace();
        ip(&format!("address add {SERVER}/24 dev lo"));
        ip("link set lo up");
        self.pod.open_relays().unwrap();
        self.pod.forward_outside();
    }

    /// What the pod sent has left.
    fn take(&mut self) {
        for frame in self.sent.drain(..) {
            self.pool.free(frame);
        }
    }

    /// Lets time pass from timer to timer.
    fn pass(&mut self, duration: Duration) {
        let until = self.now + duration;
        while let Some(next) = self.pod.next_poll().filter(|&next| next <= until) {
            self.now = self.now.max(next);
            self.with(|pod, now, out| pod.poll(now, out));
            self.take();
        }
        self.now = until;
    }

    /// Has a program of the pod send datagrams at once to its own address.
    fn flood_lo(&mut self, port: u16, datagrams: usize) {
        let words = ["nc", "-u", "127.0.0.1", &port.to_string()].map(String::from);
        let program = self.pod.exec(&words, self.now);
        self.pod.input(program, &vec![0; datagrams * DATAGRAM]);
        self.pass(Duration::from_secs(1));
    }
}

/// Moves this thread into a network namespace that is nobody else's.
fn enter_namespace() {
    // Says when it is there.
    let mut holder = Command::new("unshare");
    let mut holder =
        holder.args(["--net", "sh", "-c", "echo && exec sleep 600"]).stdout(Stdio::piped()).spawn().unwrap();
    holder.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let file = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
}

/// Says something to `ip`, in the network namespace of this thread.
fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(status.success(), "ip {words}");
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
            bench.pod.kill();
            bench.udp(KNOWN);
        }
        PodDrop::NotForUs => {
            bench.receive(&ethernet(mac(SILENT), mac(KNOWN), &udp_packet(KNOWN, POD, (1, ECHO), b"x", 64)));
        }
        PodDrop::Malformed => bench.receive(&[0; 13]),
        PodDrop::BadChecksum => {
            let mut packet = udp_packet(KNOWN, POD, (999, ECHO), b"x", 64);
            packet[28] ^= 1;
            bench.packet(&packet);
        }
        PodDrop::Martian => bench.udp(Ipv4Addr::LOCALHOST),
        PodDrop::UnknownProtocol => {
            let mut frame = ethernet(mac(POD), mac(KNOWN), &[0; 40]);
            EthernetFrame::new_unchecked(&mut frame[..]).set_ethertype(EtherType::Ipv6);
            bench.receive(&frame);
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
                bench.receive(&arp(ArpOperation::Request, (mac(KNOWN), KNOWN), (mac(POD), POD)));
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
            bench.lead_outside();
            bench.packet(&udp_packet(KNOWN, Ipv4Addr::new(169, 254, 169, 254), (999, 80), b"x", 64));
        }
        PodDrop::HostSocketsFull => {
            bench.lead_outside();
            let usual = getrlimit(Resource::Nofile);
            setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..usual }).unwrap();
            bench.packet(&udp_packet(KNOWN, SERVER, (999, 80), b"x", 64));
            setrlimit(Resource::Nofile, usual).unwrap();
        }
        PodDrop::HostQueueFull => {
            bench.lead_outside();
            bench.packet(&udp_packet(KNOWN, SERVER, (999, 80), b"x", 64));
            ip("address flush dev lo");
            bench.packet(&udp_packet(KNOWN, SERVER, (999, 80), b"x", 64));
        }
        PodDrop::HostPingRefused => {
            bench.lead_outside();
            bench.packet(&echo_packet(KNOWN, SERVER, IcmpType::EchoRequest, 1, 64));
        }
        PodDrop::ErrorUnmatched => bench.packet(&echo_packet(KNOWN, POD, IcmpType::EchoReply, 1, 64)),
    }
}

#[test]
fn every_reason_is_given_once_and_no_other() {
    for &reason in PodDrop::ALL {
        let mut bench = Bench::new();
        assert_eq!(bench.pod.drops().iter().count(), 0, "{reason:?}: nothing before");
        provoke(reason, &mut bench);
        let drops: Vec<_> = bench.pod.drops().iter().collect();
        assert_eq!(drops, [(reason, 1)]);
    }
}
