//! Superframes and frames without a checksum, on every way: what arrives is what their segments would have come to one by one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

mod common;

use std::net::Ipv4Addr;
use std::time::Duration;

use common::superframes::{segments, unfinished, unfinished_record};
use common::*;
use flatnet_engine::frame::ChecksumState;
use flatnet_engine::ledger::{DropReason, Term};
use flatnet_engine::link::Direction;
use flatnet_engine::link::impairment::Impairment;
use flatnet_engine::pod::{ContainerConfig, Image, Pod, PodConfig};
use flatnet_engine::segment::Layout;
use flatnet_engine::tables::Guard;
use flatnet_engine::wire::{EthernetFrame, IcmpPacket, Ipv4Packet, TcpFlags, TcpSegment};

/// Payload bytes of a segment: with TCP's header, what the tunnel takes.
const SIZE: u16 = 1432;
/// Payload bytes of a superframe.
const LENGTH: usize = 12 * SIZE as usize + 7;
const MACHINES: [Ipv4Addr; 6] = [APP1, APP2, APP3, BACKEND, USER, INTERNET];

/// What is at each machine, superframes cut as the last link would; and how many there were.
fn arrived(lab: &mut Lab) -> (Vec<(Ipv4Addr, Vec<u8>)>, usize) {
    let (mut all, mut whole) = (Vec::new(), 0);
    for at in MACHINES {
        let (found, count) = superframes::arrived(lab, at);
        all.extend(found.into_iter().map(|bytes| (at, bytes)));
        whole += count;
    }
    (all, whole)
}

/// Everything that arrives, with machines answering ARP.
fn settled(lab: &mut Lab) -> (Vec<(Ipv4Addr, Vec<u8>)>, usize) {
    let (mut all, mut superframes) = (Vec::new(), 0);
    for _ in 0..4 {
        let (some, count) = arrived(lab);
        all.extend(some);
        superframes += count;
    }
    let to_us =
        |(at, bytes): &(Ipv4Addr, Vec<u8>)| bytes[..6] == mac(*at).octets() && bytes[12..14] == [8, 0];
    all.retain(to_us);
    (all, superframes)
}

/// Opens a connection: a segment each way, and a datagram each way.
fn open(lab: &mut Lab, (from, to): (Ipv4Addr, Ipv4Addr), port: u16) {
    let syn = lab.tcp(from, to, (40_000, port), TcpFlags::SYN);
    lab.send(from, &syn);
    let (found, _) = settled(lab);
    let (server, bytes) = &found[0];
    let (peer, at, _, payload) = packet(bytes);
    let (client_port, server_port) = ports(&payload);
    let answer = tcp_packet(at, peer, (server_port, client_port), TcpFlags::SYN.with(TcpFlags::ACK));
    let gateway = EthernetFrame::new_unchecked(&bytes[..]).source();
    lab.send(*server, &ethernet(gateway, mac(*server), &answer));
    let ack = lab.tcp(from, to, (40_000, port), TcpFlags::ACK);
    lab.send(from, &ack);
    settled(lab);
}

#[test]
fn what_arrives_is_what_the_segments_would_have_come_to() {
    let ways = [
        ("bridge", APP2, APP1, 9, true),
        ("tunnel", APP2, BACKEND, 9, false),
        ("service", APP2, VIP, 80, false),
        ("masquerade", APP2, INTERNET, 9, true),
    ];
    for (workers, is_watched, is_tcp) in
        [(1, false, true), (1, false, false), (2, false, true), (1, true, true), (2, true, false)]
    {
        for (name, from, to, port, stays_whole) in ways {
            let case = format!("{name}, {workers} workers, watched {is_watched}, tcp {is_tcp}");
            let [mut offloaded, mut plain] = [Lab::new(workers), Lab::new(workers)];
            for lab in [&mut offloaded, &mut plain] {
                // One backend, at the other node.
                lab.set_backends(vec![flatnet_proxy::Backend::new(APP3, 80, 3)]);
                if is_watched {
                    lab.decide_always();
                }
                if is_tcp {
                    open(lab, (from, to), port);
                }
            }
            // Decided first, then answered by the cache, where nobody looks.
            for _ in 0..2 {
                let whole = unfinished(&offloaded, (from, to), port, is_tcp, LENGTH);
                offloaded.send_with(from, &whole, |record| unfinished_record(record, is_tcp, SIZE));
                plain.send_all(from, &segments(&whole, SIZE));
                let ((found, superframes), (expected, _)) = (settled(&mut offloaded), settled(&mut plain));
                assert_eq!(expected.len(), 13, "{case}");
                assert!(found == expected, "{case}: {} frames", found.len());
                for (_, bytes) in &found {
                    packet(bytes);
                }
                // Whole to the end where no outer headers are needed, and nobody waited or looked on the way.
                if stays_whole && !is_watched && is_tcp {
                    assert_eq!(superframes, 1, "{case}");
                }
                // A single frame without a checksum.
                let single = unfinished(&offloaded, (from, to), port, is_tcp, 10);
                offloaded.send_with(from, &single, |record| record.checksum = ChecksumState::Partial);
                plain.send_all(from, &segments(&single, SIZE));
                assert!(settled(&mut offloaded).0 == settled(&mut plain).0, "{case}: single");
            }
            [offloaded, plain].iter_mut().for_each(Lab::check);
        }
    }
}

/// RFC 1191, 4: by the length of the segments. What may be cut is, segment by segment (RFC 791, 3.2).
#[test]
fn segments_longer_than_the_way_takes_are_refused_or_cut() {
    for is_cut in [false, true] {
        let mut lab = Lab::new(1);
        let mut whole = unfinished(&lab, (APP2, BACKEND), 9, false, 5_000);
        let mut header = Ipv4Packet::new_unchecked(&mut whole[14..]);
        header.set_fragmentation(!is_cut, false, 0);
        header.fill_header_checksum();
        let size = 1_472;
        lab.send_with(APP2, &whole, |record| unfinished_record(record, false, size));
        if is_cut {
            // 1,480 octets behind the header, where 1,452 fit: two fragments for each of three segments, and the rest.
            assert_eq!(lab.receive(BACKEND).len(), 7);
            let split: u64 = [lab.node1].iter().map(|&node| lab.ledger(node).term(Term::Split)).sum();
            assert_eq!(split, 3 + 3);
        } else {
            let told = lab.receive(APP2);
            let (_, _, _, error) = packet(&told[0]);
            assert_eq!(IcmpPacket::new_unchecked(&error[..]).next_hop_mtu(), 1472);
            assert_eq!(lab.drops(DropReason::FragmentationNeeded), 1);
            assert!(lab.receive(BACKEND).is_empty());
        }
        lab.check();
    }
}

/// A superframe is no way around the tunnel's check: whoever sends one to a node's port makes the inner packet's bytes up.
#[test]
fn an_unfinished_datagram_to_a_tunnel_is_refused() {
    for checksum in [[0, 0], [0xba, 0xad]] {
        let mut lab = Lab::new(1);
        let inner = udp_packet(APP1, BACKEND, (9, 9), b"hello", 63);
        let mut frame = ethernet(mac(NODE2), mac(USER), &udp_packet(NODE1, NODE2, (8285, 8285), &inner, 64));
        frame[40..42].copy_from_slice(&checksum);
        lab.send_with(USER, &frame, |record| record.checksum = ChecksumState::Partial);
        assert_eq!((lab.drops(DropReason::TunnelChecksum), lab.receive(BACKEND).len()), (1, 0));
        lab.check();
    }
}

/// What a node takes itself it believes, and refuses as it does whole ones.
#[test]
fn a_superframe_for_the_node_is_answered_as_its_first_segment() {
    let mut lab = Lab::new(1);
    let whole = unfinished(&lab, (APP2, NODE1), 9, true, 5_000);
    lab.send_with(APP2, &whole, |record| unfinished_record(record, true, SIZE));
    let told = lab.receive(APP2);
    let (_, _, _, reset) = packet(&told[0]);
    assert!(TcpSegment::new_unchecked(&reset[..]).flags().rst());
    assert_eq!((told.len(), lab.drops(DropReason::HostClosed)), (1, 1));
    lab.check();
}

/// A cable that is not perfect carries what a wire would: so many frames are counted, delayed, or lost.
#[test]
fn a_cable_with_a_delay_carries_the_segments() {
    let mut lab = Lab::new(1);
    open(&mut lab, (APP2, INTERNET), 9);
    let (node1, _) = lab.wires[0];
    let delay = Duration::from_millis(5);
    lab.workers[0].impair(node1, Direction::Out, Impairment { delay, ..Impairment::default() });
    let whole = unfinished(&lab, (APP2, INTERNET), 9, true, LENGTH);
    lab.send_with(APP2, &whole, |record| unfinished_record(record, true, SIZE));
    assert!(settled(&mut lab).0.is_empty());
    assert_eq!(lab.ledger(lab.node1).term(Term::Split), 12);
    lab.pass(delay);
    let (found, superframes) = settled(&mut lab);
    assert_eq!((found.len(), superframes), (13, 0));
    lab.check();
}

/// A simulated pod has a device of its link's MTU: it gets segments, and answers what they carry.
#[test]
fn a_simulated_pod_gets_the_segments() {
    let mut lab = Lab::new(1);
    let address = Ipv4Addr::new(10, 1, 15, 9);
    let mut pod = Pod::new(PodConfig {
        name: "echo".into(),
        mac: mac(address),
        address,
        gateway: Some(Ipv4Addr::new(10, 1, 15, 1)),
        seed: 9,
        ..PodConfig::default()
    });
    let container = ContainerConfig {
        name: "main".into(),
        image: Image::Echo,
        ports: vec![],
        args: vec![],
        mounts: vec![],
    };
    pod.start_container(container).unwrap();
    let guard = Guard { mac: mac(address), address, vip: None };
    lab.control.attach_pod(lab.node1, "echo", Some(guard), 0, pod).unwrap();
    lab.run();
    let whole = unfinished(&lab, (APP2, address), 7, false, 5_000);
    lab.send_with(APP2, &whole, |record| unfinished_record(record, false, SIZE));
    let layout = Layout::of(&whole).unwrap();
    let sent: Vec<Vec<u8>> = whole[layout.payload..].chunks(usize::from(SIZE)).map(<[u8]>::to_vec).collect();
    let mut back = Vec::new();
    for _ in 0..3 {
        back.extend(lab.receive(APP2).iter().map(|bytes| packet(bytes).3[8..].to_vec()));
    }
    assert!(back == sent, "{} datagrams", back.len());
    lab.check();
}
