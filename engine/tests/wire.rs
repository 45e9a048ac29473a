//! What a node puts on its wires, judged by strangers: Linux's own capture, another parser, and tshark.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::parse::{IngressPort, Side, Vtep, parse};
use flatnet_engine::tables::NodeId;
use flatnet_engine::trace::Point;
use flatnet_engine::wire::{ArpOperation, TcpFlags};
use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pnet_packet::Packet;
use pnet_packet::ethernet::{EtherTypes, EthernetPacket};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4::{self, Ipv4Flags, Ipv4Packet};
use pnet_packet::udp::{self, UdpPacket};
use std::collections::BTreeSet;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn fixture(name: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    let mut reader = PcapReader::new(File::open(path).unwrap()).unwrap();
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        frames.push(packet.unwrap().data.into_owned());
    }
    frames
}

fn listen(lab: &mut Lab, node: NodeId, point: Point) {
    for worker in &mut lab.workers {
        worker.listen(u32::from(node.0), node, point);
    }
}

/// Takes what was seen since at all points, in the order of time.
fn captured(lab: &mut Lab) -> Vec<Vec<u8>> {
    let nodes = [lab.node1, lab.node2].map(|node| u32::from(node.0));
    let workers = lab.workers.iter_mut();
    let mut seen: Vec<_> =
        workers.flat_map(|worker| nodes.map(|node| worker.observer.take(node).frames)).flatten().collect();
    seen.sort_by_key(|captured| captured.time);
    seen.into_iter().map(|captured| captured.bytes).collect()
}

/// The inner packet of a tunnelled frame as its pod sent it, before docker0's node took one off its TTL.
fn as_sent(frame: &[u8], inside: usize) -> Vec<u8> {
    let mut inner = frame[inside..].to_vec();
    inner[8] += 1;
    let checksum = ipv4::checksum(&Ipv4Packet::new(&inner).unwrap());
    inner[10..12].copy_from_slice(&checksum.to_be_bytes());
    inner
}

fn is_tunneled(frame: &[u8]) -> bool {
    frame[12..14] == [8, 0] && frame[23] == 17
}

#[test]
fn the_tunnels_frames_are_those_of_linux() {
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        let frame = lab.udp(APP2, BACKEND, (1, 2), b"the nodes meet");
        lab.send(APP2, &frame);
        let nodes = [lab.node1, lab.node2];
        for node in nodes {
            listen(&mut lab, node, Point::Interface(0));
        }
        let mut identifications = BTreeSet::new();
        let frames = fixture("linux-udp-8285.pcap");
        assert_eq!(frames.len(), 18);
        for theirs in &frames {
            let inner = as_sent(theirs, 42);
            let from = Ipv4Packet::new(&inner).unwrap().get_source();
            lab.send(from, &ethernet(lab.machines[&from].gateway, mac(from), &inner));
            // Seen twice: as it leaves one node and as it comes in at the other.
            let seen = captured(&mut lab);
            assert_eq!((seen.len(), &seen[0]), (2, &seen[1]));
            compare(&seen[0], theirs);
            identifications.insert(Ipv4Packet::new(&seen[0][14..]).unwrap().get_identification());
        }
        assert_eq!(identifications.len(), frames.len(), "no constant identification");
    }
}

/// All fields of our frame and theirs; then all bytes but the MACs, identification and the checksum over it.
fn compare(ours: &[u8], theirs: &[u8]) {
    let (our_frame, their_frame) = (EthernetPacket::new(ours).unwrap(), EthernetPacket::new(theirs).unwrap());
    assert_eq!(our_frame.get_ethertype(), EtherTypes::Ipv4);
    let (our_outer, their_outer) =
        (Ipv4Packet::new(our_frame.payload()).unwrap(), Ipv4Packet::new(their_frame.payload()).unwrap());
    assert_eq!(our_outer.get_checksum(), ipv4::checksum(&our_outer));
    let outer = |packet: &Ipv4Packet<'_>| {
        (
            (packet.get_version(), packet.get_header_length(), packet.get_dscp(), packet.get_ecn()),
            (packet.get_total_length(), packet.get_flags(), packet.get_fragment_offset()),
            (
                packet.get_ttl(),
                packet.get_next_level_protocol(),
                packet.get_source(),
                packet.get_destination(),
            ),
        )
    };
    assert_eq!(outer(&our_outer), outer(&their_outer));
    assert_eq!((our_outer.get_flags(), our_outer.get_ttl()), (Ipv4Flags::DontFragment, 64));
    assert_eq!(our_outer.get_next_level_protocol(), IpNextHeaderProtocols::Udp);
    let (our_datagram, their_datagram) =
        (UdpPacket::new(our_outer.payload()).unwrap(), UdpPacket::new(their_outer.payload()).unwrap());
    assert_eq!((our_datagram.get_source(), our_datagram.get_destination()), (8285, 8285));
    let sum = udp::ipv4_checksum(&our_datagram, &our_outer.get_source(), &our_outer.get_destination());
    assert_eq!(our_datagram.get_checksum(), sum);
    assert_ne!(sum, 0);
    assert_eq!(our_datagram, their_datagram, "ports, length, checksum and the inner packet");
    let inner = Ipv4Packet::new(our_datagram.payload()).unwrap();
    assert_eq!((inner.get_ttl(), inner.get_checksum()), (63, ipv4::checksum(&inner)));
    let masked = |frame: &[u8]| {
        let mut bytes = frame[14..].to_vec();
        bytes[4..6].fill(0);
        bytes[10..12].fill(0);
        bytes
    };
    assert_eq!(masked(ours), masked(theirs));
}

/// Linux' own frames of a vxlan device are taken, and those of ours are the same, but for what is said in ADR 29: they must not be
/// cut, have no UDP checksum, come from other ports, and are between other MACs.
#[test]
fn a_vxlans_frames_are_those_of_linux() {
    let mut lab = Lab::vxlan(2);
    let frame = lab.udp(APP2, BACKEND, (1, 2), b"the nodes meet");
    lab.send(APP2, &frame);
    for node in [lab.node1, lab.node2] {
        listen(&mut lab, node, Point::Interface(0));
    }
    let frames = fixture("linux-vxlan-8472.pcap");
    assert_eq!(frames.len(), 20);
    for theirs in &frames {
        let outer = Ipv4Packet::new(&theirs[14..]).unwrap();
        let end = Vtep { vni: 1, mac: theirs[50..56].first_chunk().copied().unwrap().into() };
        let tunnel = (outer.get_destination(), 8472);
        let mac_there = theirs[..6].first_chunk().copied().unwrap().into();
        let parsed =
            parse(theirs, &IngressPort { port: 1, side: Side::Vxlan { mac: mac_there, tunnel, end } }, false);
        let parsed = parsed.unwrap();
        assert_eq!((parsed.tunneled, parsed.network_offset), (true, 64));

        let inner = as_sent(theirs, 64);
        let from = Ipv4Packet::new(&inner).unwrap().get_source();
        lab.send(from, &ethernet(lab.machines[&from].gateway, mac(from), &inner));
        let seen = captured(&mut lab);
        assert_eq!((seen.len(), &seen[0]), (2, &seen[1]));
        let ours = &seen[0];
        let packet = Ipv4Packet::new(&ours[14..]).unwrap();
        assert_eq!((packet.get_flags(), packet.get_ttl()), (Ipv4Flags::DontFragment, 64));
        assert_eq!(packet.get_checksum(), ipv4::checksum(&packet));
        let datagram = UdpPacket::new(packet.payload()).unwrap();
        assert_eq!((datagram.get_destination(), datagram.get_checksum()), (8472, 0));
        assert!((32_768..61_000).contains(&datagram.get_source()));
        let inside = EthernetPacket::new(&ours[50..]).unwrap();
        let ends = if from == APP1 { (VTEP2, VTEP1) } else { (VTEP1, VTEP2) };
        assert_eq!(
            (inside.get_destination().octets(), inside.get_source().octets()),
            (ends.0.octets(), ends.1.octets())
        );
        let masked = |frame: &[u8]| {
            let mut bytes = frame[14..].to_vec();
            // Identification, DF, checksums, source port, MACs.
            for range in [4..8, 10..12, 20..22, 26..28, 36..48] {
                bytes[range].fill(0);
            }
            bytes
        };
        assert_eq!(masked(ours), masked(theirs));
    }
}

fn write_pcap(name: &str, datalink: DataLink, frames: &[Vec<u8>]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.pcap"));
    let header = PcapHeader { datalink, ..PcapHeader::default() };
    let mut writer = PcapWriter::with_header(File::create(&path).unwrap(), header).unwrap();
    for (number, frame) in frames.iter().enumerate() {
        let time = Duration::from_millis(number as u64);
        writer.write_packet(&PcapPacket::new(time, frame.len() as u32, frame)).unwrap();
    }
    path
}

/// One line per frame: protocols, bad checksums (0 is bad), malformed parts, addresses and ports, outer first.
fn tshark(path: &Path) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(path).args(["-d", "udp.port==8285,ip", "-d", "udp.port==8472,vxlan"]);
    command.args(["-T", "fields", "-E", "separator=|"]);
    for layer in ["ip", "udp", "tcp"] {
        command.args(["-o", &format!("{layer}.check_checksum:TRUE")]);
    }
    for field in [
        "frame.protocols",
        "ip.checksum.status",
        "udp.checksum.status",
        "tcp.checksum.status",
        "icmp.checksum.status",
        "_ws.malformed",
        "ip.src",
        "ip.dst",
        "ip.ttl",
        "udp.dstport",
    ] {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark is needed for this test: scripts/test installs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect()
}

/// Traffic of every kind between two pods of two nodes, to the internet and to the VIP, answers included.
fn traffic(lab: &mut Lab) {
    for round in 0..3u8 {
        for (from, to) in [(APP2, BACKEND), (BACKEND, APP2)] {
            let datagram = lab.udp(from, to, (40_000, 40_001), &vec![round; 3 + usize::from(round)]);
            let segment = lab.tcp(from, to, (40_002, 40_003), TcpFlags::ACK);
            let ping = lab.echo(from, to, 64);
            for frame in [datagram, segment, ping] {
                lab.send(from, &frame);
            }
            lab.receive(to);
        }
        let question = lab.udp(APP2, INTERNET, (40_000, 40_004), b"question");
        lab.send(APP2, &question);
        lab.settle(INTERNET);
        let segment = lab.tcp(BACKEND, VIP, (40_005, 80), TcpFlags::ACK);
        lab.send(BACKEND, &segment);
        let expiring = echo_packet(APP2, BACKEND, flatnet_engine::wire::IcmpType::EchoRequest, 5, 2);
        lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), &expiring));
    }
}

#[test]
fn tshark_finds_nothing_wrong_at_any_point() {
    let points = [
        ("eth0", Point::Interface(0), DataLink::ETHERNET),
        ("docker0", Point::Bridge, DataLink::ETHERNET),
        ("flannel0", Point::Tunnel, DataLink::RAW),
    ];
    for ((name, point, datalink), is_vxlan) in
        points.into_iter().flat_map(|point| [false, true].map(|is_vxlan| (point, is_vxlan)))
    {
        let mut lab = if is_vxlan { Lab::vxlan(2) } else { Lab::new(2) };
        let name = if is_vxlan { format!("{name}-vxlan") } else { name.to_owned() };
        let node = lab.node1;
        listen(&mut lab, node, point);
        traffic(&mut lab);
        let frames = captured(&mut lab);
        assert!(frames.len() > 20, "{name}: {}", frames.len());
        let lines = tshark(&write_pcap(&name, datalink, &frames));
        assert_eq!(lines.len(), frames.len());
        for line in &lines {
            for status in &line[1..5] {
                assert!(status.split(',').all(|status| status != "0"), "{name}: a bad checksum in {line:?}");
            }
            assert_eq!(line[5], "", "{name}: malformed {line:?}");
        }
        let protocols: BTreeSet<_> = lines.iter().map(|line| line[0].as_str()).collect();
        let expected = match &*name {
            "eth0" => "eth:ethertype:ip:udp:ip:icmp",
            "eth0-vxlan" => "eth:ethertype:ip:udp:vxlan:eth:ethertype:ip:icmp",
            "docker0" | "docker0-vxlan" => "eth:ethertype:ip:icmp",
            _ => "raw:ip:icmp",
        };
        assert!(protocols.contains(expected), "{name}: {protocols:?}");
    }
}

/// What a node does not take has arrived all the same.
#[test]
fn a_capture_shows_what_the_node_turns_away() {
    let foreign = udp_packet(USER, NODE1, (8285, 8285), &udp_packet(USER, APP1, (1, 7), b"", 64), 64);
    let closed = udp_packet(USER, NODE1, (1, 9), b"", 64);
    let mut damaged = closed.clone();
    damaged[27] ^= 1;
    let lab = Lab::new(1);
    let from_user = |packet: &[u8]| ethernet(mac(NODE1), mac(USER), packet);
    let from_pod = |packet: &[u8]| ethernet(lab.machines[&APP2].gateway, mac(APP2), packet);
    let stolen = arp(ArpOperation::Reply, (mac(APP2), APP1), (mac(APP1), APP1));
    let told = arp(ArpOperation::Reply, (mac(APP2), APP2), (mac(APP1), APP1));
    let segment = tcp_packet(APP2, VIP, (1000, 80), TcpFlags::SYN);
    for (name, from, frame, point) in [
        ("foreign tunnel source", USER, from_user(&foreign), Point::Interface(0)),
        ("port closed", USER, from_user(&closed), Point::Interface(0)),
        ("damaged", USER, from_user(&damaged), Point::Interface(0)),
        ("malformed", USER, from_user(&closed[..12]), Point::Interface(0)),
        ("no route", APP2, lab.udp(APP2, Ipv4Addr::new(10, 1, 99, 9), (1, 9), b""), Point::Bridge),
        ("TTL at its end", APP2, lab.echo(APP2, BACKEND, 1), Point::Bridge),
        ("echo to a VIP", APP2, lab.echo(APP2, VIP, 64), Point::Bridge),
        ("spoofed ARP", APP2, stolen, Point::Bridge),
        ("ARP reply, bridged", APP2, told, Point::Bridge),
        ("tiny fragment", APP2, from_pod(&fragment_of(&segment, 0..16, true, 0)), Point::Bridge),
        ("lone fragment", APP2, from_pod(&fragment_of(&segment, 16..20, false, 16)), Point::Bridge),
        (
            "silent neighbour",
            APP2,
            lab.udp(APP2, Ipv4Addr::new(192, 168, 66, 99), (1, 9), b""),
            Point::Bridge,
        ),
    ] {
        let mut lab = Lab::new(1);
        let node = lab.node1;
        listen(&mut lab, node, point);
        lab.send(from, &frame);
        // Fragments wait for their first, packets for a neighbour.
        lab.pass(Duration::from_secs(31));
        let seen = captured(&mut lab);
        let times = seen.iter().filter(|seen| seen.starts_with(&frame)).count();
        assert_eq!(times, 1, "{name}: {seen:?}");
        lab.settle(from);
        lab.check();
    }
}

#[test]
fn a_capture_slows_only_the_flows_that_pass_it() {
    let mut lab = Lab::new(1);
    for _ in 0..2 {
        for (from, to) in [(APP1, APP2), (APP2, BACKEND)] {
            let frame = lab.udp(from, to, (1, 2), b"known by now");
            lab.send(from, &frame);
        }
    }
    let node = lab.node1;
    let decisions = |lab: &mut Lab| {
        let before = lab.workers[0].decisions();
        for (from, to) in [(APP1, APP2), (APP2, BACKEND)].repeat(4) {
            let frame = lab.udp(from, to, (1, 2), b"again");
            lab.send(from, &frame);
        }
        lab.workers[0].decisions() - before
    };
    assert_eq!(decisions(&mut lab), 0);
    listen(&mut lab, node, Point::Interface(0));
    // All are decided about once more. Then the flow through docker0 only is cached again, and that at node-2 and the switch.
    decisions(&mut lab);
    assert_eq!(decisions(&mut lab), 4, "node-1 has a way to node-2, and it is watched");
    for worker in &mut lab.workers {
        worker.ignore(u32::from(node.0), node, Point::Interface(0));
    }
    decisions(&mut lab);
    assert_eq!(decisions(&mut lab), 0);
}

#[test]
fn a_pods_packet_is_wrapped_as_the_tour_has_it() {
    let mut lab = Lab::new(1);
    let node = lab.node1;
    listen(&mut lab, node, Point::Interface(0));
    let frame = lab.udp(APP2, BACKEND, (40_000, 40_001), b"payload");
    lab.send(APP2, &frame);
    let frames: Vec<_> = captured(&mut lab).into_iter().filter(|frame| is_tunneled(frame)).collect();
    let lines = tshark(&write_pcap("tour", DataLink::ETHERNET, &frames));
    let expected = [
        "eth:ethertype:ip:udp:ip:udp:data",
        "192.168.66.11,10.1.15.2",
        "192.168.66.12,10.1.20.3",
        "64,63",
        "8285,40001",
    ];
    assert_eq!(lines.len(), 1);
    assert_eq!([&lines[0][0], &lines[0][6], &lines[0][7], &lines[0][8], &lines[0][9]], expected);
    // The packet arrives untouched but for its TTL, one less for each node.
    let got = lab.take(BACKEND);
    let (from, to, ttl, payload) = packet(&got[0]);
    assert_eq!((from, to, ttl), (Ipv4Addr::new(10, 1, 15, 2), Ipv4Addr::new(10, 1, 20, 3), 62));
    assert_eq!(payload, frame[34..], "ports, checksum, payload");
}
