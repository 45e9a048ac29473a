//! Two nodes whose tunnel leads through the host's own network: sockets at loopback addresses, which need no privileges.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;
#[path = "common/kernel.rs"]
mod kernel;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;

use common::sockets::{PORT, Sockets, address};
use common::superframes::{unfinished, unfinished_record};
use common::*;
use flatnet_engine::ledger::{DropReason, Term};
use flatnet_engine::link::Link;
use flatnet_engine::link::feature::Feature;
use flatnet_engine::link::tunnel_socket::{TunnelSocket, TunnelSocketError};
use flatnet_engine::tables::Lease;
use flatnet_engine::trace::Point;
use flatnet_engine::tunnel::Encapsulation;
use flatnet_engine::wire::{ArpOperation, IpProtocol, Ipv4Packet, UdpDatagram};
use kernel::in_a_namespace;
use rustix::net::sockopt::set_socket_send_buffer_size;

#[test]
fn frames_cross_the_hosts_network_as_they_cross_a_wire() {
    let mut sockets = Sockets::new(1, 4);
    let lab = &mut sockets.lab;
    lab.workers[0].listen(1, lab.node2, Point::Interface(0));
    let there = lab.udp(APP1, APP3, (4000, 53), b"there");
    lab.send(APP1, &there);
    let arrived = lab.receive(APP3);
    assert_eq!(arrived.len(), 1);
    let packet = Ipv4Packet::new_checked(&arrived[0][14..]).unwrap();
    assert_eq!((packet.time_to_live(), packet.source(), packet.destination()), (62, APP1, APP3));
    assert_eq!(UdpDatagram::new_checked(packet.payload()).unwrap().payload(), b"there");
    let back = lab.udp(APP3, APP1, (53, 4000), b"back");
    lab.send(APP3, &back);
    assert_eq!(lab.receive(APP1).len(), 1);

    // A capture shows them as on a wire: questions for a MAC, their answers, and datagrams with all their headers.
    let seen = lab.workers[0].observer.take(1);
    let frames: Vec<&[u8]> = seen.frames.iter().map(|frame| &*frame.bytes).collect();
    let datagrams: Vec<_> = frames.iter().filter(|bytes| bytes[12..14] == [8, 0]).collect();
    assert_eq!((datagrams.len(), frames.len()), (2, 4), "a question and its answer before the node's first");
    for (bytes, [from, to]) in datagrams.iter().zip([sockets.own, [sockets.own[1], sockets.own[0]]]) {
        let outer = Ipv4Packet::new_checked(&bytes[14..]).unwrap();
        assert!(outer.verify_header_checksum() && outer.dont_fragment());
        assert_eq!((outer.source(), outer.destination()), (from, to));
        let datagram = UdpDatagram::new_checked(outer.payload()).unwrap();
        assert!(datagram.verify_checksum(from, to));
        assert_eq!((datagram.source_port(), datagram.destination_port()), (PORT, PORT));
    }
    sockets.lab.check();
}

#[test]
fn a_burst_arrives_whole_and_in_order() {
    let mut sockets = Sockets::new(2, 4);
    let lab = &mut sockets.lab;
    let frames: Vec<Vec<u8>> =
        (0..200u16).map(|number| lab.udp(APP1, APP3, (4000, 53), &number.to_be_bytes())).collect();
    lab.send_all(APP1, &frames);
    let numbers: Vec<u16> = lab.receive(APP3).iter().map(|it| u16::from_be_bytes([it[42], it[43]])).collect();
    assert_eq!(numbers, (0..200).collect::<Vec<_>>());
    lab.check();
}

/// The system may take datagrams of one length together, and give them so; which changes nothing of them.
#[test]
fn datagrams_of_all_lengths_come_out_as_they_went_in() {
    let mut sockets = Sockets::new(9, 16);
    let lab = &mut sockets.lab;
    let lengths =
        [[100; 70].as_slice(), &[50, 100, 100, 101, 99, 0, 0, 1400], &[1400; 50], &[2000, 2000, 1999, 9000]];
    let payloads: Vec<Vec<u8>> =
        lengths.concat().iter().enumerate().map(|(number, &length)| vec![number as u8; length]).collect();
    let frames: Vec<Vec<u8>> =
        payloads.iter().map(|payload| lab.udp(APP1, APP3, (4000, 53), payload)).collect();
    for _ in 0..3 {
        lab.send_all(APP1, &frames);
        let mut arrived: Vec<Vec<u8>> = Vec::new();
        for _ in 0..10 {
            arrived.extend(superframes::arrived(lab, APP3).0.iter().map(|it| packet(it).3[8..].to_vec()));
        }
        assert!(arrived == payloads, "{} of {}", arrived.len(), payloads.len());
    }
    lab.check();
}

#[test]
fn long_datagrams_come_into_large_buffers_and_are_lost_by_name_without_one() {
    let mut sockets = Sockets::new(3, 4);
    let lab = &mut sockets.lab;
    let payload: Vec<u8> = (0..65_000u32).map(|byte| (byte % 251) as u8).collect();
    let long = lab.udp(APP1, APP3, (4000, 53), &payload);
    lab.send(APP1, &long);
    let arrived = lab.receive(APP3);
    assert_eq!(arrived[0][42..], payload);
    lab.check();

    let mut without = Sockets::new(4, 0);
    let from = (without.own[0], PORT);
    without.take_peer_away();
    let packet = udp_packet(APP1, APP3, (4000, 53), &payload, 64);
    assert_eq!(without.hostile(from, &packet), [(DropReason::PoolEmpty, 1)]);
    without.lab.check();
}

#[test]
fn hostile_datagrams_are_dropped_by_name() {
    let mut sockets = Sockets::new(5, 4);
    sockets.take_peer_away();
    let (peer, stranger) = ((sockets.own[0], PORT), (address(5, 9), PORT));
    let good = udp_packet(APP1, APP3, (4000, 53), b"hello", 64);
    let spoofed = udp_packet(Ipv4Addr::new(10, 1, 30, 2), APP3, (4000, 53), b"hello", 64);
    let local = udp_packet(APP3, APP3, (4000, 53), b"hello", 64);
    let foreign = udp_packet(APP1, Ipv4Addr::new(10, 1, 30, 2), (4000, 53), b"hello", 64);
    let outside = udp_packet(APP1, Ipv4Addr::new(203, 0, 113, 10), (4000, 53), b"hello", 64);
    let mut damaged = good.clone();
    damaged[8] ^= 1;
    let mut ipv6 = vec![0; 60];
    ipv6[0] = 0x60;
    let broken = ipv4_packet(APP1, APP3, IpProtocol::Udp, 64, &[0; 4]);
    let (own, masqueraded) = ((sockets.own[1], 0), (sockets.own[0], 0));
    let cases: [((Ipv4Addr, u16), &[u8], DropReason); 13] = [
        (masqueraded, &good, DropReason::TunnelForeignSource),
        (stranger, &good, DropReason::TunnelForeignSource),
        (peer, &spoofed, DropReason::TunnelForeignSource),
        (peer, &local, DropReason::Martian),
        (own, &good, DropReason::Martian),
        (peer, &foreign, DropReason::TunnelForeignDestination),
        (peer, &outside, DropReason::TunnelForeignDestination),
        (peer, &damaged, DropReason::TunnelMalformed),
        (peer, &good[..good.len() - 1], DropReason::TunnelMalformed),
        (peer, &good[..19], DropReason::TunnelMalformed),
        (peer, b"", DropReason::TunnelMalformed),
        (peer, &ipv6, DropReason::TunnelMalformed),
        (peer, &broken, DropReason::MalformedTransport),
    ];
    for (from, payload, reason) in cases {
        assert_eq!(sockets.hostile(from, payload), [(reason, 1)], "{from:?}: {payload:?}");
    }
    assert_eq!(sockets.lab.receive(APP3), Vec::<Vec<u8>>::new());
    assert_eq!(sockets.hostile(peer, &good), []);
    assert_eq!(sockets.lab.receive(APP3).len(), 1);
    sockets.lab.check();
}

#[test]
fn what_does_not_go_through_the_tunnel_has_no_way_out() {
    let mut sockets = Sockets::new(6, 4);
    let lab = &mut sockets.lab;
    let outside = lab.udp(APP1, INTERNET, (4000, 53), b"hello");
    lab.send(APP1, &outside);
    assert_eq!(lab.drops(DropReason::NoUplink), 1);
    // The port alone does not make it the tunnel's.
    let same_port = lab.udp(APP1, INTERNET, (4000, PORT), b"hello");
    lab.send(APP1, &same_port);
    assert_eq!(lab.drops(DropReason::NoUplink), 2);
    let to_peer = lab.echo(APP1, sockets.own[1], 64);
    sockets.lab.send(APP1, &to_peer);
    assert_eq!(sockets.lab.drops(DropReason::Martian) + sockets.lab.drops(DropReason::NoUplink), 3);
    sockets.lab.check();
}

#[test]
fn a_host_without_the_way_drops_by_name_and_goes_on_when_there_is_one() {
    let mut sockets = Sockets::new(7, 4);
    let lab = &mut sockets.lab;
    let subnet = prefix("10.1.20.0/24");
    // No host sends to an address of class E from loopback.
    let nowhere = Lease { public_ip: Ipv4Addr::new(198, 51, 100, 7), vtep: None };
    lab.control.tables.publish(|tables| tables.set_lease(subnet, Some(nowhere)));
    let frames: Vec<Vec<u8>> = (0..100).map(|port| lab.udp(APP1, APP3, (4000 + port, 53), b"x")).collect();
    lab.send_all(APP1, &frames);
    assert_eq!(lab.drops(DropReason::LinkDown), 100);
    lab.control
        .tables
        .publish(|tables| tables.set_lease(subnet, Some(Lease { public_ip: sockets.own[1], vtep: None })));
    lab.send_all(APP1, &frames);
    assert_eq!(lab.receive(APP3).len(), 100);
    lab.check();
}

fn shell(words: &str) {
    assert!(Command::new("sh").args(["-ec", words]).status().unwrap().success(), "{words}");
}

/// Datagrams that this namespace's kernel took from programs.
fn taken_by_kernel() -> u64 {
    let counts = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let rows: Vec<_> = counts.lines().filter(|line| line.starts_with("Udp:")).collect();
    let column = rows[0].split(' ').position(|name| name == "OutDatagrams").unwrap();
    rows[1].split(' ').nth(column).unwrap().parse().unwrap()
}

/// The inner part: runs in a namespace of its own, where the kernel asks for a peer's MAC that nobody answers, and lets wait what goes
/// there.
#[test]
#[ignore = "run by what_the_system_takes_no_more_of_is_dropped_by_name, in a namespace"]
fn fill() {
    const PEER: Ipv4Addr = Ipv4Addr::new(192, 168, 66, 12);
    shell(
        "ip link set lo up; ip link add eth0 type veth peer name far0; ip address add 192.168.66.11/24 dev eth0
         ip link set eth0 up; ip link set far0 up; sysctl -qw net.ipv4.neigh.eth0.mcast_solicit=1000",
    );
    let mut sockets = Sockets::at(Encapsulation::Udp, [NODE1, Ipv4Addr::LOCALHOST], 32);
    let (port, lab) = (sockets.ports[0], &mut sockets.lab);
    let Some(Link::TunnelSocket(socket)) = lab.workers[0].link(port) else { unreachable!("a socket") };
    // As little as the kernel allows: some datagrams.
    set_socket_send_buffer_size(&**socket, 1).unwrap();
    socket.segments = false;
    let lease = Some(Lease { public_ip: PEER, vtep: None });
    lab.control.tables.publish(|tables| tables.set_lease(prefix("10.1.20.0/24"), lease));

    // The node's own question for a MAC counts, too.
    let before = taken_by_kernel();
    let frame = lab.udp(APP1, APP3, (4000, 53), &[0; 500]);
    lab.send_all(APP1, &vec![frame.clone(); 200]);
    let (sent, dropped) = (lab.ledger(lab.node1).term(Term::Sent) - 1, lab.drops(DropReason::LinkQueueFull));
    assert!(sent > 0 && dropped > 100, "{sent} sent, {dropped} dropped");
    assert_eq!((sent, sent + dropped), (taken_by_kernel() - before, 200));

    // Whoever takes no more says nothing of how it takes it: neither of datagrams together nor of superframes.
    lab.workers[0].link(port).unwrap().set_feature(Feature::Gso, true).unwrap();
    lab.send_all(APP1, &vec![frame.clone(); 70]);
    let whole = unfinished(lab, (APP1, APP3), 9, true, 30_000);
    lab.send_with(APP1, &whole, |record| unfinished_record(record, true, 1000));
    lab.send_with(APP1, &whole, |record| unfinished_record(record, true, 1000));
    assert_eq!(lab.drops(DropReason::LinkQueueFull), dropped + 70 + 2);
    assert_eq!(lab.ledger(lab.node1).term(Term::Sent), sent + 1);
    assert_eq!(lab.workers[0].link(port).unwrap().features()[0], (Feature::Gso, true));
    assert_eq!(lab.receive(APP1), Vec::<Vec<u8>>::new(), "nobody is told");

    // What waits goes when there is an answer, and more goes then.
    shell("ip neighbor replace 192.168.66.12 lladdr 02:42:c0:a8:42:0c dev eth0 nud permanent");
    let dropped = lab.drops(DropReason::LinkQueueFull);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let mut before = 0;
    while lab.ledger(lab.node1).term(Term::Sent) < sent + 1 + 20 {
        assert!(std::time::Instant::now() < deadline, "it takes nothing more");
        before += 1;
        lab.send(APP1, &frame);
    }
    assert_eq!(lab.drops(DropReason::LinkQueueFull), dropped + before - 20);
    sockets.lab.check();
}

#[test]
fn what_the_system_takes_no_more_of_is_dropped_by_name() {
    in_a_namespace("fill");
}

#[test]
fn a_socket_that_is_taken_away_leaves_no_buffer_and_its_port_to_others() {
    let mut sockets = Sockets::new(8, 4);
    let local = SocketAddrV4::new(sockets.own[0], PORT);
    assert!(
        matches!(TunnelSocket::open(local, Encapsulation::Udp), Err(TunnelSocketError::PortTaken(it)) if it == local)
    );
    let frame = sockets.lab.udp(APP1, APP3, (4000, 53), b"there");
    sockets.lab.send(APP1, &frame);
    for port in sockets.ports {
        sockets.lab.control.detach(port).unwrap();
    }
    sockets.lab.run();
    assert!(TunnelSocket::open(local, Encapsulation::Udp).is_ok());
    sockets.lab.receive(APP3);
    sockets.lab.check();
}

#[test]
fn sockets_are_refused_with_what_is_wrong() {
    let elsewhere = Ipv4Addr::new(198, 51, 100, 7);
    let error = TunnelSocket::open(SocketAddrV4::new(elsewhere, PORT), Encapsulation::Udp).unwrap_err();
    assert_eq!(error.to_string(), "198.51.100.7 is no address of this host");
    let question = arp(ArpOperation::Request, (mac(APP1), APP1), (mac(APP3), APP3));
    assert!(arp_request(&question).is_some());
}
