//! What bridges and nodes learn of MACs, and how ARP behaves at its corners.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::ledger::{DropReason, Term};
use flatnet_engine::neighbor::WAITING_LIMIT;
use flatnet_engine::wire::{ArpOperation, ArpPacket, IcmpPacket, IcmpType, MacAddress, UdpDatagram};
use std::net::Ipv4Addr;
use std::time::Duration;

const DOCKER0: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 1);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 200);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 77);

fn announcement(of: Ipv4Addr) -> Vec<u8> {
    arp(ArpOperation::Request, (mac(of), of), (MacAddress::default(), of))
}

fn requests(frames: &[Vec<u8>]) -> Vec<Ipv4Addr> {
    frames.iter().filter_map(|frame| arp_request(frame)).map(|(_, _, target)| target).collect()
}

fn is_arp(frame: &[u8]) -> bool {
    frame[12..14] == [8, 6]
}

/// IEEE 802.1D, 7.9.2.
#[test]
fn a_station_whose_flows_are_cached_is_not_forgotten() {
    let mut lab = Lab::new(1);
    let (switch, other) = (lab.switch, Ipv4Addr::new(192, 168, 66, 51));
    lab.stranger(switch, other, USER, 0);
    for at in [USER, other] {
        lab.send(at, &announcement(at));
    }
    let frame = ethernet(mac(other), mac(USER), &udp_packet(USER, other, (1, 2), b"", 64));
    for _ in 0..12 {
        lab.pass(Duration::from_secs(60));
        lab.send(USER, &frame);
    }
    let copied = lab.ledger(switch).term(Term::Copied);
    lab.take(USER);
    // A flow of its own: another EtherType.
    let mut back = ethernet(mac(USER), mac(other), &[0; 46]);
    back[12..14].copy_from_slice(&[0x88, 0xb5]);
    lab.send(other, &back);
    assert_eq!((lab.ledger(switch).term(Term::Copied), lab.take(USER).len()), (copied, 1));
    lab.check();
}

#[test]
fn a_stranger_on_the_bridge_is_found_for_ever_from_both_workers() {
    let mut lab = Lab::new(2);
    let node = lab.node1;
    lab.stranger(node, STRANGER, DOCKER0, 1);
    lab.send(STRANGER, &announcement(STRANGER));
    for round in 0..8 {
        // From the other node it comes in at the first worker, the stranger's port is the second's.
        let frame = lab.udp(BACKEND, STRANGER, (1000 + round, 7), b"x");
        lab.send(BACKEND, &frame);
        for _ in 0..4 {
            let got = lab.receive(STRANGER);
            assert!(got.len() <= 1, "round {round}: {got:?}");
        }
        let frame = lab.udp(STRANGER, BACKEND, (7, 1000 + round), b"x");
        lab.send(STRANGER, &frame);
        assert_eq!(lab.take(BACKEND).len(), 1);
        lab.pass(Duration::from_secs(100));
        lab.receive(STRANGER);
    }
    assert_eq!(lab.drops(DropReason::NeighborUnresolved), 0);
    lab.check();
}

#[test]
fn a_pod_without_its_endpoint_is_asked_for_once_and_found() {
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        lab.control.tables.publish(|tables| tables.remove_endpoint(APP2));
        let frame = lab.udp(BACKEND, APP2, (1000, 7), b"x");
        lab.send(BACKEND, &frame);
        let asked = lab.take(APP2);
        assert_eq!(requests(&asked), [APP2]);
        lab.send(APP2, &arp(ArpOperation::Reply, (mac(APP2), APP2), (mac(DOCKER0), DOCKER0)));
        assert_eq!(packet(&lab.take(APP2)[0]).1, APP2);
        lab.check();
    }
}

/// RFC 5227, 2.1.1.
#[test]
fn a_probe_for_ones_own_address_is_not_answered() {
    let mut lab = Lab::new(2);
    let probe = arp(ArpOperation::Request, (mac(APP2), Ipv4Addr::UNSPECIFIED), (MacAddress::default(), APP2));
    lab.send(APP2, &probe);
    assert_eq!(lab.take(APP2), Vec::<Vec<u8>>::new(), "the address is free");
    assert_eq!(lab.take(APP1), [probe], "the others hear it");
    lab.check();
}

/// RFC 826; RFC 1027, 2.
#[test]
fn a_question_for_a_known_pod_or_the_node_is_answered_by_the_node() {
    let mut lab = Lab::new(2);
    for (target, owner) in [(APP2, mac(APP2)), (DOCKER0, mac(DOCKER0)), (NODE1, mac(DOCKER0))] {
        lab.send(APP1, &arp(ArpOperation::Request, (mac(APP1), APP1), (MacAddress::default(), target)));
        let answers = lab.take(APP1);
        let answer = ArpPacket::new_checked(&answers[0][14..]).unwrap();
        assert_eq!((answer.sender_mac(), answer.sender_address()), (owner, target));
        assert_eq!(answers[0][..6], mac(APP1).octets());
        assert_eq!(lab.take(APP2), Vec::<Vec<u8>>::new(), "nobody else is asked");
    }
    lab.check();
}

/// RFC 5227, 2.4.
#[test]
fn a_guarded_pod_cannot_announce_anothers_address() {
    let mut lab = Lab::new(1);
    for operation in [ArpOperation::Request, ArpOperation::Reply] {
        lab.send(APP1, &arp(operation, (mac(APP1), APP2), (mac(APP2), APP2)));
    }
    assert_eq!(lab.take(APP2), Vec::<Vec<u8>>::new());
    assert_eq!(lab.drops(DropReason::SpoofedArp), 2);
    lab.send(APP1, &announcement(APP1));
    assert_eq!(lab.take(APP2).len(), 1, "its own is heard");
    lab.check();
}

/// RFC 1122, 2.3.2.1; RFC 1812, 5.2.7.1.
#[test]
fn a_silent_neighbour_is_asked_for_three_times_and_then_the_sender_is_told() {
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        let frame = lab.udp(BACKEND, NOBODY, (1000, 7), b"x");
        lab.send(BACKEND, &frame);
        let mut asked = 0;
        for second in 0..3 {
            asked += lab.take(APP1).iter().filter(|frame| is_arp(frame)).count();
            assert_eq!(asked, second + 1);
            assert_eq!(lab.take(BACKEND), Vec::<Vec<u8>>::new());
            lab.pass(Duration::from_secs(1));
        }
        assert_eq!(lab.take(APP1), Vec::<Vec<u8>>::new(), "no fourth request");
        let (source, destination, _, payload) = packet(&lab.take(BACKEND)[0]);
        let icmp = IcmpPacket::new_unchecked(&payload[..]);
        assert_eq!((source, destination), (Ipv4Addr::new(10, 1, 15, 0), BACKEND));
        assert_eq!((icmp.icmp_type(), icmp.code()), (IcmpType::DestinationUnreachable, 1));
        assert_eq!(lab.drops(DropReason::NeighborUnresolved), 1);
        lab.check();
    }
}

/// RFC 1122, 2.3.2.2.
#[test]
fn frames_that_wait_for_a_neighbour_go_on_in_order() {
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        for number in 0..WAITING_LIMIT as u8 + 2 {
            let frame = lab.udp(APP1, INTERNET, (1000, 53), &[number]);
            lab.send(APP1, &frame);
        }
        // The router asks for the host; the node asked for the router, which answered at once.
        let got = lab.settle(INTERNET);
        let numbers: Vec<u8> = got
            .iter()
            .map(|frame| {
                let (_, _, _, payload) = packet(frame);
                UdpDatagram::new_checked(&payload[..]).unwrap().payload()[0]
            })
            .collect();
        assert!(numbers.into_iter().eq(2..WAITING_LIMIT as u8 + 2), "the oldest made room");
        assert_eq!(lab.drops(DropReason::NeighborQueueFull), 2);
        lab.check();
    }
}
