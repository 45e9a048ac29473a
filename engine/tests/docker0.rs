//! docker0 where it is hard: what is not IPv4, who pretends to be another, and what is never on a wire.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::control::InterfaceSpec;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::wire::{ArpOperation, IcmpType, IpProtocol, MacAddress};
use std::net::Ipv4Addr;
use std::time::Duration;

const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 200);
const DOCKER0: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 1);

fn lab(workers: u8) -> Lab {
    let mut lab = Lab::new(workers);
    let node = lab.node1;
    lab.stranger(node, STRANGER, DOCKER0, workers - 1);
    let hello = arp(ArpOperation::Request, (mac(STRANGER), STRANGER), (MacAddress::default(), STRANGER));
    lab.send(STRANGER, &hello);
    for at in [APP1, APP2] {
        lab.take(at);
    }
    lab
}

fn with_type(ethertype: u16, to: MacAddress, from: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(to, mac(from), payload);
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    frame
}

/// IEEE 802.1Q, 6.9: a bridge that knows no VLANs forwards tagged frames as they are; IEEE 802.1D, 7.1 for the rest.
#[test]
fn what_is_not_ipv4_is_bridged_byte_for_byte() {
    for workers in [1, 2] {
        let mut lab = lab(workers);
        for (name, ethertype) in
            [("IPv6", 0x86dd), ("802.1Q", 0x8100), ("802.1ad", 0x88a8), ("LLDP", 0x88cc), ("802.3", 46)]
        {
            let payload: Vec<u8> = (0..46).collect();
            for _ in 0..3 {
                let frame = with_type(ethertype, mac(APP1), APP2, &payload);
                lab.send(APP2, &frame);
                assert_eq!(lab.take(APP1), [frame], "{name}");
                assert_eq!(lab.take(STRANGER), Vec::<Vec<u8>>::new(), "{name}: for one station only");
            }
            let group = with_type(ethertype, MacAddress::new([0x33, 0x33, 0, 0, 0, 1]), APP2, &payload);
            lab.send(APP2, &group);
            assert_eq!([APP1, STRANGER].map(|at| lab.take(at)), [vec![group.clone()], vec![group]], "{name}");
        }
        lab.check();
    }
}

/// IEEE 802.1Q, 9.6, table 9-2: to a station, a frame with a tag of VLAN 0 is untagged, however many there are (Linux takes them
/// off one by one). So they hide nothing from the guards, and what they had in front arrives without.
#[test]
fn a_tag_that_says_a_priority_alone_hides_nothing() {
    let mut advertisement = vec![0x60, 0, 0, 0, 0, 16, 58, 255];
    advertisement.extend([[0xfe; 16], [0xff; 16]].concat());
    advertisement.extend([134; 16]);
    let spoofed = udp_packet(APP1, STRANGER, (1, 2), b"", 64);
    let stolen = arp(ArpOperation::Reply, (mac(APP2), APP1), (mac(STRANGER), STRANGER));
    let honest = udp_packet(APP2, STRANGER, (1, 2), b"hello", 64);
    let tags: [&[u8]; 4] =
        [&[], &[0x81, 0, 0xe0, 0], &[0x88, 0xa8, 0, 0], &[0x81, 0, 0x10, 0, 0x88, 0xa8, 0, 0, 0x81, 0, 0, 0]];
    for tags in tags {
        let mut lab = lab(2);
        let tagged = |ethertype: u16, payload: &[u8]| {
            let mut frame = with_type(ethertype, mac(STRANGER), APP2, payload);
            frame.splice(12..12, tags.iter().copied());
            frame
        };
        for (frame, reason) in [
            (tagged(0x0800, &spoofed), DropReason::SpoofedAddress),
            (tagged(0x0806, &stolen[14..]), DropReason::SpoofedArp),
            (tagged(0x86dd, &advertisement), DropReason::RouterAdvertisement),
        ] {
            lab.send(APP2, &frame);
            assert_eq!((lab.drops(reason), lab.take(STRANGER).len()), (1, 0), "{tags:x?} {reason:?}");
        }
        for _ in 0..2 {
            lab.send(APP2, &tagged(0x0800, &honest));
            let untagged = ethernet(mac(STRANGER), mac(APP2), &honest);
            assert_eq!(lab.take(STRANGER), [untagged], "{tags:x?}");
        }
        // Nothing behind the tags.
        lab.send(APP2, &[&tagged(0, b"")[..12], tags].concat());
        assert!(lab.take(STRANGER).is_empty());
        lab.check();
    }
}

/// RFC 1112, 6.4 and RFC 919, 7: who is meant by a group gets it, the sender does not.
#[test]
fn broadcast_and_multicast_reach_every_port_but_the_senders() {
    let mut lab = lab(2);
    for to in [Ipv4Addr::BROADCAST, Ipv4Addr::new(10, 1, 15, 255), Ipv4Addr::new(224, 0, 0, 251)] {
        let packet = udp_packet(APP2, to, (5353, 5353), b"who is there", 1);
        let group =
            if to.is_multicast() { MacAddress::new([1, 0, 0x5e, 0, 0, 251]) } else { MacAddress::BROADCAST };
        let frame = ethernet(group, mac(APP2), &packet);
        lab.send(APP2, &frame);
        for at in [APP1, STRANGER] {
            assert_eq!(lab.take(at), std::slice::from_ref(&frame), "{to} at {at}");
        }
        assert_eq!((lab.take(APP2), lab.take(APP3)), (vec![], vec![]), "{to}");
    }
    lab.check();
}

/// RFC 1812, 5.3.7; RFC 1122, 3.2.1.3; CERT CA-1997-28 for the land attack.
#[test]
fn what_is_never_on_a_wire_is_a_martian() {
    let mut lab = lab(1);
    let everybody = Ipv4Addr::BROADCAST;
    for (name, source, destination) in [
        ("from loopback, RFC 1122, 3.2.1.3 (g)", Ipv4Addr::LOCALHOST, APP1),
        ("from loopback's far end", Ipv4Addr::new(127, 255, 255, 254), APP1),
        ("from a group, RFC 1122, 3.2.1.3 (c)", Ipv4Addr::new(224, 0, 0, 1), APP1),
        ("from a broadcast, RFC 1122, 3.2.1.3 (c)", everybody, APP1),
        ("from nowhere, RFC 1122, 3.2.1.3 (a)", Ipv4Addr::UNSPECIFIED, APP1),
        ("to loopback, RFC 1122, 3.2.1.3 (g)", STRANGER, Ipv4Addr::LOCALHOST),
        ("to nowhere, RFC 1122, 3.2.1.3 (a)", STRANGER, Ipv4Addr::UNSPECIFIED),
        ("land, CERT CA-1997-28", STRANGER, STRANGER),
        ("from the node itself", DOCKER0, APP1),
    ] {
        let before = lab.drops(DropReason::Martian);
        for to in [DOCKER0, APP1] {
            let packet = udp_packet(source, destination, (1, 2), b"", 64);
            lab.send(STRANGER, &ethernet(mac(to), mac(STRANGER), &packet));
        }
        assert_eq!(lab.drops(DropReason::Martian) - before, 2, "{name}");
    }
    assert_eq!([APP1, APP2].map(|at| lab.take(at)), [Vec::<Vec<u8>>::new(), vec![]]);
    lab.check();
}

/// RFC 1122, 3.2.1.3; RFC 1812, 4.2.2.11 and 5.3.7: no host has the broadcast address of a network. Which those are, a node
/// knows of its own networks and of the leases.
#[test]
fn a_networks_broadcast_address_sends_nothing() {
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        // Somebody on docker0 whom no guard keeps to an address.
        let stranger = Ipv4Addr::new(10, 1, 15, 99);
        lab.stranger(lab.node1, stranger, Ipv4Addr::new(10, 1, 15, 1), 0);
        for (number, source) in
            [[192, 168, 66, 255], [10, 1, 15, 255], [10, 1, 20, 255]].into_iter().enumerate()
        {
            let packet = udp_packet(source.into(), APP2, (1, 2), b"from all", 64);
            let datagram = udp_packet(NODE2, NODE1, (8285, 8285), &packet, 64);
            let (from, to, packet) = match source[2] {
                15 => (stranger, APP2, packet),
                20 => (USER, NODE1, datagram),
                _ => (USER, NODE1, packet),
            };
            lab.send(from, &ethernet(mac(to), mac(from), &packet));
            assert_eq!(lab.drops(DropReason::Martian), number as u64 + 1, "{source:?}");
        }
        assert_eq!(lab.receive(APP2), Vec::<Vec<u8>>::new());
        lab.check();
    }
}

/// RFC 3021, 2.1: a network of two has no broadcast address, nor has one of one.
#[test]
fn the_last_of_two_is_a_host() {
    let mut lab = Lab::new(1);
    let far = Ipv4Addr::new(10, 9, 0, 1);
    let spec = |address, network: &str| InterfaceSpec { address, network: prefix(network), mtu: 1500 };
    let router = lab
        .control
        .add_router(
            "two",
            &[
                spec(Ipv4Addr::new(192, 168, 66, 77), "192.168.66.0/24"),
                spec(Ipv4Addr::new(10, 9, 0, 0), "10.9.0.0/31"),
            ],
        )
        .unwrap();
    let other = lab.control.add_router("other", &[spec(far, "10.9.0.0/31")]).unwrap();
    lab.control.set_route(other, prefix("192.168.66.0/24"), Some(Ipv4Addr::new(10, 9, 0, 0))).unwrap();
    let link = lab.control.add_switch("10.9.0.0/31").unwrap();
    for (node, interface, switch) in [(router, 0, lab.switch), (router, 1, link), (other, 0, link)] {
        lab.control.connect(node, interface, switch, 0).unwrap();
    }
    lab.run();
    let ping = echo_packet(USER, far, IcmpType::EchoRequest, 7, 64);
    lab.send(USER, &ethernet(mac(Ipv4Addr::new(192, 168, 66, 77)), mac(USER), &ping));
    let answers = lab.settle(USER);
    assert_eq!(answers.len(), 1);
    assert_eq!(packet(&answers[0]).0, far);
}

/// Nobody speaks for a known pod or for the node: not by MAC, not by address, not in ARP (RFC 5227, 2.4 leaves defence to
/// the victim, who cannot see it all).
#[test]
fn an_undeclared_machine_cannot_pretend_to_be_a_pod_or_the_node() {
    for workers in [1, 2] {
        let mut lab = lab(workers);
        let (other, own) = (MacAddress::default(), mac(STRANGER));
        for (name, frame, reason) in [
            (
                "a pod's MAC",
                ethernet(mac(APP1), mac(APP2), &udp_packet(STRANGER, APP1, (1, 2), b"", 64)),
                DropReason::SpoofedMac,
            ),
            (
                "a pod's address",
                ethernet(mac(APP1), own, &udp_packet(APP2, APP1, (1, 2), b"", 64)),
                DropReason::SpoofedAddress,
            ),
            (
                "a pod's announcement, RFC 5227, 2.3",
                arp(ArpOperation::Request, (own, APP2), (other, APP2)),
                DropReason::SpoofedArp,
            ),
            (
                "a pod's answer",
                arp(ArpOperation::Reply, (own, APP2), (mac(APP1), APP1)),
                DropReason::SpoofedArp,
            ),
            (
                "the router's announcement, RFC 5227, 2.3",
                arp(ArpOperation::Request, (own, DOCKER0), (other, DOCKER0)),
                DropReason::SpoofedArp,
            ),
            (
                "the router's answer",
                arp(ArpOperation::Reply, (own, DOCKER0), (mac(APP1), APP1)),
                DropReason::SpoofedArp,
            ),
        ] {
            let before = lab.drops(reason);
            lab.send(STRANGER, &frame);
            assert_eq!((lab.drops(reason) - before, lab.take(APP1)), (1, vec![]), "{name}");
            // And nobody is led astray: what is for the pod still goes to the pod.
            let hello = lab.udp(APP1, APP2, (1, 2), b"");
            lab.send(APP1, &hello);
            assert_eq!((lab.take(APP2).len(), lab.take(STRANGER).len()), (1, 0), "{name}");
        }
        lab.check();
    }
}

/// A flood of made-up stations: others are learned all the same, and a flood is bounded by its port.
#[test]
fn a_storm_is_bounded_by_its_port_and_others_still_talk() {
    let mut lab = lab(1);
    let made_up = |number: u32| {
        let [_, a, b, c] = number.to_be_bytes();
        MacAddress::new([2, 9, 0, a, b, c])
    };
    for some in (0..8192u32).collect::<Vec<_>>().chunks(512) {
        let frames: Vec<_> = some
            .iter()
            .map(|&number| {
                let mut frame = ethernet(
                    made_up(number + 100_000),
                    made_up(number),
                    &udp_packet(STRANGER, APP1, (1, 2), b"", 64),
                );
                frame[12] = 0x88;
                frame
            })
            .collect();
        lab.send_all(STRANGER, &frames);
        lab.take(APP1);
        lab.take(APP2);
    }
    let limited = lab.drops(DropReason::FloodLimit);
    assert!((4096..4200).contains(&limited), "{limited}");
    let broadcast =
        ethernet(MacAddress::BROADCAST, mac(APP2), &udp_packet(APP2, Ipv4Addr::BROADCAST, (1, 2), b"", 64));
    lab.send(APP2, &broadcast);
    assert_eq!(lab.take(APP1).len(), 1, "another port's broadcast passes");
    lab.pass(Duration::from_secs(1));
    lab.send(
        STRANGER,
        &ethernet(
            MacAddress::BROADCAST,
            mac(STRANGER),
            &ipv4_packet(STRANGER, Ipv4Addr::BROADCAST, IpProtocol::Udp, 64, &[0, 1, 0, 2, 0, 8, 0, 0]),
        ),
    );
    assert_eq!(lab.take(APP1).len(), 1, "and the stormy port's own, a second later");
    lab.check();
}
