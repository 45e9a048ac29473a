//! docker0: who may say what, what is bridged as it is, what is bounded, and how long a station is remembered.

use std::net::Ipv4Addr;
use std::time::Duration;

use pnet_base::MacAddr;
use pnet_packet::icmpv6::{Icmpv6Packet, Icmpv6Type, MutableIcmpv6Packet};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv6::MutableIpv6Packet;

use crate::frames::{APP1, APP2, Machine, Packet, STRANGER, STRANGER2, arp, ethernet, mac};
use crate::network::Network;
use crate::{PLAIN, Row};

const FRAMES: &[&str] = &["eth.src", "eth.dst", "eth.type", "frame.len"];
const VLAN: u16 = 0x8100;
const IPV6: u16 = 0x86dd;
/// IEEE Std 802 local experimental EtherType 1.
const EXPERIMENT: u16 = 0x88b5;
const IPV6_ROUTERS: MacAddr = MacAddr(0x33, 0x33, 0, 0, 0, 1);
/// A station behind one of the strangers.
const WANDERER: MacAddr = MacAddr(2, 9, 9, 9, 9, 9);

fn hello(from: Machine, to: Machine) -> Packet {
    Packet::udp((from.address, 1000), (to.address, 2000), b"hello")
}

/// An 802.1Q tag and a packet behind it.
fn tagged() -> Vec<u8> {
    [&[0, 42, 8, 0][..], &hello(APP2, APP1).bytes()].concat()
}

/// An ICMPv6 message from a pod's link-local address to all nodes.
fn icmpv6(kind: u8) -> Vec<u8> {
    let (source, all) = ("fe80::2".parse().unwrap(), "ff02::1".parse().unwrap());
    let mut message = vec![0; 24];
    let mut icmp = MutableIcmpv6Packet::new(&mut message).unwrap();
    icmp.set_icmpv6_type(Icmpv6Type::new(kind));
    let checksum = pnet_packet::icmpv6::checksum(&Icmpv6Packet::new(&message).unwrap(), &source, &all);
    MutableIcmpv6Packet::new(&mut message).unwrap().set_checksum(checksum);
    let mut bytes = vec![0; 40 + message.len()];
    let mut packet = MutableIpv6Packet::new(&mut bytes).unwrap();
    packet.set_version(6);
    packet.set_payload_length(message.len() as u16);
    packet.set_next_header(IpNextHeaderProtocols::Icmpv6);
    packet.set_hop_limit(255);
    packet.set_source(source);
    packet.set_destination(all);
    packet.set_payload(&message);
    bytes
}

fn with_strangers(network: &mut Network) {
    network.attach_stranger(STRANGER);
    network.attach_stranger(STRANGER2);
    for stranger in [STRANGER, STRANGER2] {
        network.send(
            stranger.name,
            &ethernet(mac(stranger.address), MacAddr::broadcast(), EXPERIMENT, &[0; 46]),
        );
    }
}

pub const ROWS: &[Row] = &[
    Row {
        name: "bridge-passes-what-is-not-ipv4",
        about: "IEEE 802.1Q, 6.9: tagged frames and IPv6 are bridged by MAC, to one port and byte for byte",
        fields: FRAMES,
        frames: |script| {
            for _ in 0..3 {
                script.frame(APP2, ethernet(mac(APP2.address), mac(APP1.address), VLAN, &tagged()));
                script.frame(APP1, ethernet(mac(APP1.address), mac(APP2.address), IPV6, &icmpv6(135)));
            }
            script.frame(APP2, ethernet(mac(APP2.address), MacAddr::broadcast(), VLAN, &tagged()));
        },
        seen: &[
            "web-app-1 02:42:0a:01:0f:02 02:42:0a:01:0f:03 0x8100 51",
            "web-app-2 02:42:0a:01:0f:03 02:42:0a:01:0f:02 0x86dd 78",
            "web-app-1 02:42:0a:01:0f:02 02:42:0a:01:0f:03 0x8100 51",
            "web-app-2 02:42:0a:01:0f:03 02:42:0a:01:0f:02 0x86dd 78",
            "web-app-1 02:42:0a:01:0f:02 02:42:0a:01:0f:03 0x8100 51",
            "web-app-2 02:42:0a:01:0f:03 02:42:0a:01:0f:02 0x86dd 78",
            "web-app-1 02:42:0a:01:0f:02 ff:ff:ff:ff:ff:ff 0x8100 51",
        ],
        ..PLAIN
    },
    Row {
        name: "bridge-router-advertisement",
        about: "RFC 6105: a pod is no IPv6 router; its neighbour solicitation passes, its advertisement does not",
        fields: &["eth.src", "eth.dst", "ipv6.src", "ipv6.dst", "icmpv6.type"],
        before: with_strangers,
        frames: |script| {
            for kind in [135, 134, 136] {
                script.frame(APP2, ethernet(mac(APP2.address), IPV6_ROUTERS, IPV6, &icmpv6(kind)));
            }
        },
        seen: &[
            "stranger 02:42:0a:01:0f:02 33:33:00:00:00:01 fe80::2 ff02::1 135",
            "stranger-2 02:42:0a:01:0f:02 33:33:00:00:00:01 fe80::2 ff02::1 135",
            "web-app-1 02:42:0a:01:0f:02 33:33:00:00:00:01 fe80::2 ff02::1 135",
            "stranger 02:42:0a:01:0f:02 33:33:00:00:00:01 fe80::2 ff02::1 136",
            "stranger-2 02:42:0a:01:0f:02 33:33:00:00:00:01 fe80::2 ff02::1 136",
            "web-app-1 02:42:0a:01:0f:02 33:33:00:00:00:01 fe80::2 ff02::1 136",
        ],
        drops: &[("node-1", "router-advertisement", 1)],
        ..PLAIN
    },
    Row {
        name: "bridge-spoofing",
        about: "RFC 2827, 3 and RFC 5227, 2.3: a pod has one MAC and one address, in ARP too; its own frames still pass",
        frames: |script| {
            let (own, other) = (mac(APP2.address), mac(APP1.address));
            script.frame(APP2, ethernet(other, mac(APP2.gateway), 0x0800, &hello(APP2, APP1).bytes()));
            script.frame(APP2, ethernet(own, other, 0x0800, &hello(STRANGER, APP1).bytes()));
            script.frame(APP2, arp(1, (own, APP1.address), (MacAddr::zero(), APP1.address)));
            script.frame(APP2, arp(2, (own, APP2.gateway), (other, APP1.address)));
            for _ in 0..3 {
                script.send(APP2, &hello(APP2, APP1));
                script.send(APP1, &hello(APP1, APP2));
            }
        },
        seen: &[
            "web-app-1 10.1.15.2 1000 10.1.15.3 2000 64",
            "web-app-2 10.1.15.3 1000 10.1.15.2 2000 64",
            "web-app-1 10.1.15.2 1000 10.1.15.3 2000 64",
            "web-app-2 10.1.15.3 1000 10.1.15.2 2000 64",
            "web-app-1 10.1.15.2 1000 10.1.15.3 2000 64",
            "web-app-2 10.1.15.3 1000 10.1.15.2 2000 64",
        ],
        drops: &[
            ("node-1", "spoofed-address", 1),
            ("node-1", "spoofed-arp", 2),
            ("node-1", "spoofed-mac", 1),
        ],
        ..PLAIN
    },
    Row {
        name: "bridge-martians",
        about: "RFC 1812, 5.3.7; RFC 1122, 3.2.1.3; CERT CA-1997-28: what is never on a wire comes to nothing",
        before: with_strangers,
        frames: |script| {
            let docker0 = STRANGER.gateway;
            for (source, destination) in [
                (Ipv4Addr::LOCALHOST, APP1.address),
                (Ipv4Addr::new(224, 0, 0, 1), APP1.address),
                (Ipv4Addr::BROADCAST, APP1.address),
                (Ipv4Addr::UNSPECIFIED, APP1.address),
                (STRANGER.address, Ipv4Addr::LOCALHOST),
                (STRANGER.address, Ipv4Addr::UNSPECIFIED),
                (STRANGER.address, STRANGER.address),
                (docker0, APP1.address),
            ] {
                let packet = Packet::udp((source, 1000), (destination, 2000), b"").bytes();
                for to in [APP1.address, docker0] {
                    script.frame(STRANGER, ethernet(mac(STRANGER.address), mac(to), 0x0800, &packet));
                }
            }
        },
        drops: &[("node-1", "martian", 16)],
        ..PLAIN
    },
    Row {
        name: "bridge-groups",
        about: "RFC 1112, 6.4 and RFC 919, 7: broadcast and multicast reach every port but the sender's, and no other node",
        fields: &["eth.dst", "ip.src", "ip.dst", "udp.dstport", "ip.ttl"],
        before: with_strangers,
        frames: |script| {
            for (to, group) in [
                (MacAddr::broadcast(), Ipv4Addr::BROADCAST),
                (MacAddr::broadcast(), Ipv4Addr::new(10, 1, 15, 255)),
                (MacAddr(1, 0, 0x5e, 0, 0, 251), Ipv4Addr::new(224, 0, 0, 251)),
            ] {
                let packet = Packet::udp((APP2.address, 5353), (group, 5353), b"who is there").ttl(1);
                script.frame(APP2, ethernet(mac(APP2.address), to, 0x0800, &packet.bytes()));
            }
        },
        seen: &[
            "stranger ff:ff:ff:ff:ff:ff 10.1.15.2 255.255.255.255 5353 1",
            "stranger-2 ff:ff:ff:ff:ff:ff 10.1.15.2 255.255.255.255 5353 1",
            "web-app-1 ff:ff:ff:ff:ff:ff 10.1.15.2 255.255.255.255 5353 1",
            "stranger ff:ff:ff:ff:ff:ff 10.1.15.2 10.1.15.255 5353 1",
            "stranger-2 ff:ff:ff:ff:ff:ff 10.1.15.2 10.1.15.255 5353 1",
            "web-app-1 ff:ff:ff:ff:ff:ff 10.1.15.2 10.1.15.255 5353 1",
            "stranger 01:00:5e:00:00:fb 10.1.15.2 224.0.0.251 5353 1",
            "stranger-2 01:00:5e:00:00:fb 10.1.15.2 224.0.0.251 5353 1",
            "web-app-1 01:00:5e:00:00:fb 10.1.15.2 224.0.0.251 5353 1",
        ],
        ..PLAIN
    },
    Row {
        name: "bridge-arp",
        about: "RFC 826 and RFC 5227, 2.1.1: the node answers for pods and itself, not a pod's probe for its own address",
        fields: &["eth.dst", "arp.opcode", "arp.src.hw_mac", "arp.src.proto_ipv4", "arp.dst.proto_ipv4"],
        frames: |script| {
            let own = mac(APP2.address);
            for target in [APP1.address, APP2.gateway] {
                script.frame(APP2, arp(1, (own, APP2.address), (MacAddr::zero(), target)));
            }
            script.frame(APP2, arp(1, (own, Ipv4Addr::UNSPECIFIED), (MacAddr::zero(), APP2.address)));
        },
        seen: &[
            "web-app-2 02:42:0a:01:0f:02 2 02:42:0a:01:0f:03 10.1.15.3 10.1.15.2",
            "web-app-2 02:42:0a:01:0f:02 2 02:42:0a:01:0f:01 10.1.15.1 10.1.15.2",
            "web-app-1 ff:ff:ff:ff:ff:ff 1 02:42:0a:01:0f:02 0.0.0.0 10.1.15.2",
        ],
        ..PLAIN
    },
    Row {
        name: "bridge-flood-limit",
        about: "a port may have 4,096 frames flooded and as many a second; another port's flood is its own",
        fields: FRAMES,
        before: |network| {
            with_strangers(network);
            let unknown = ethernet(mac(STRANGER.address), MacAddr(2, 8, 8, 8, 8, 8), EXPERIMENT, &[0; 46]);
            (0..4095).for_each(|_| network.send(STRANGER.name, &unknown));
        },
        frames: |script| {
            for (from, wait) in [(STRANGER, 0), (APP2, 1000), (STRANGER, 0)] {
                let unknown = ethernet(mac(from.address), MacAddr(2, 8, 8, 8, 8, 8), EXPERIMENT, &[0; 46]);
                script.frame(from, unknown);
                script.wait(Duration::from_millis(wait));
            }
        },
        seen: &[
            "stranger 02:42:0a:01:0f:02 02:08:08:08:08:08 0x88b5 60",
            "stranger-2 02:42:0a:01:0f:02 02:08:08:08:08:08 0x88b5 60",
            "web-app-1 02:42:0a:01:0f:02 02:08:08:08:08:08 0x88b5 60",
            "stranger-2 02:42:0a:01:0f:c8 02:08:08:08:08:08 0x88b5 60",
            "web-app-1 02:42:0a:01:0f:c8 02:08:08:08:08:08 0x88b5 60",
            "web-app-2 02:42:0a:01:0f:c8 02:08:08:08:08:08 0x88b5 60",
        ],
        drops: &[("node-1", "flood-limit", 1)],
        ..PLAIN
    },
    Row {
        name: "bridge-station-moves-and-ages",
        about: "IEEE 802.1D, 7.8 and 7.9.2: frames follow a station to its latest port, and are flooded 300 s after it fell silent",
        fields: FRAMES,
        before: with_strangers,
        frames: |script| {
            for at in [STRANGER, STRANGER2] {
                script.frame(at, ethernet(WANDERER, mac(APP1.address), EXPERIMENT, &[0; 46]));
                for _ in 0..3 {
                    script.frame(APP1, ethernet(mac(APP1.address), WANDERER, EXPERIMENT, &[1; 46]));
                }
            }
            script.wait(Duration::from_secs(301));
            script.frame(APP1, ethernet(mac(APP1.address), WANDERER, EXPERIMENT, &[2; 46]));
        },
        seen: &[
            "web-app-1 02:09:09:09:09:09 02:42:0a:01:0f:03 0x88b5 60",
            "3 x stranger 02:42:0a:01:0f:03 02:09:09:09:09:09 0x88b5 60",
            "web-app-1 02:09:09:09:09:09 02:42:0a:01:0f:03 0x88b5 60",
            "3 x stranger-2 02:42:0a:01:0f:03 02:09:09:09:09:09 0x88b5 60",
            "stranger 02:42:0a:01:0f:03 02:09:09:09:09:09 0x88b5 60",
            "stranger-2 02:42:0a:01:0f:03 02:09:09:09:09:09 0x88b5 60",
            "web-app-2 02:42:0a:01:0f:03 02:09:09:09:09:09 0x88b5 60",
        ],
        ..PLAIN
    },
];
