//! Fragments of what is for a node itself, which are put together there.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::fragments::*;
use common::*;
use flatnet_engine::ledger::{DropReason, Term};
use flatnet_engine::trace::Point;
use flatnet_engine::wire::{IcmpPacket, IcmpType};
use std::net::Ipv4Addr;
use std::time::Duration;

/// RFC 1122, 3.3.2: what is for the node itself is put together, in any order, and what is too long to go back goes back
/// in fragments; at the point where it came in a capture shows the fragments.
#[test]
fn a_node_answers_a_ping_that_comes_in_fragments() {
    for workers in [1, 2, 3] {
        let flannel0 = Ipv4Addr::new(10, 1, 15, 0);
        let docker0 = Ipv4Addr::new(10, 1, 15, 1);
        let isp = Ipv4Addr::new(192, 168, 66, 1);
        for (from, to) in
            [(APP2, docker0), (APP2, flannel0), (APP2, NODE1), (USER, NODE1), (BACKEND, docker0), (USER, isp)]
        {
            let mut lab = with_large_buffers(workers);
            let mac_to = if from == USER { mac(to) } else { lab.machines[&from].gateway };
            let hello = echo_packet(from, to, IcmpType::EchoRequest, 77, 64);
            lab.send(from, &ethernet(mac_to, mac(from), &hello));
            // It may have to answer ARP first.
            let answered = lab.receive(from).len() + lab.receive(from).len();
            assert_eq!(answered, 1, "{from} {to}");
            let point = if from == APP2 { Point::Bridge } else { Point::Interface(0) };
            let node = if to == isp { lab.isp } else { lab.node1 };
            lab.workers.iter_mut().for_each(|worker| worker.listen(1, node, point));
            let ping = long_ping(from, to);
            for fragment in cut(&ping, &[1440, 2880]).iter().rev() {
                assert_eq!(lab.receive(from), Vec::<Vec<u8>>::new());
                lab.send(from, &ethernet(mac_to, mac(from), fragment));
            }
            let answer = lab.receive(from);
            let payload = whole(&answer);
            let icmp = IcmpPacket::new_checked(&payload[..]).unwrap();
            assert_eq!((icmp.icmp_type(), icmp.identifier()), (IcmpType::EchoReply, 77), "{from} {to}");
            assert!(icmp.verify_checksum() && payload[8..] == data(3000));
            let seen: usize = lab.workers.iter_mut().map(|it| it.observer.take(1).frames.len()).sum();
            assert_eq!(seen, 3 + answer.len(), "{from} {to}: each fragment once");
            let ledger = lab.ledger(node);
            assert_eq!(ledger.term(Term::Merged), 2);
            assert_eq!(ledger.term(Term::Split), answer.len() as u64 - 1);
            lab.check();
        }
    }
}

/// RFC 1122, 3.3.2: a port that nobody has, of a datagram in fragments, is a port unreachable that quotes the whole;
/// damage of any fragment is found.
#[test]
fn a_datagram_in_fragments_for_the_node_is_refused_as_a_whole_one_is() {
    let mut lab = with_large_buffers(1);
    let packet = udp_packet(APP2, NODE1, (5000, 7), &data(2000), 64);
    let gateway = lab.machines[&APP2].gateway;
    for fragment in cut(&packet, &[1440]) {
        lab.send(APP2, &ethernet(gateway, mac(APP2), &fragment));
    }
    let (source, _, _, payload) = common::packet(&lab.receive(APP2)[0]);
    assert_eq!((source, payload[0], payload[1]), (NODE1, 3, 3));
    assert_eq!((payload.len(), &payload[28..]), (556, &packet[20..548]), "as much of it as 576 bytes take");
    let mut damaged = cut(&with_identification(packet, 2), &[1440]);
    *damaged[1].last_mut().unwrap() ^= 1;
    for fragment in damaged {
        lab.send(APP2, &ethernet(gateway, mac(APP2), &fragment));
    }
    assert_eq!(lab.receive(APP2), Vec::<Vec<u8>>::new());
    assert_eq!((lab.drops(DropReason::HostClosed), lab.drops(DropReason::TransportChecksum)), (1, 1));
    lab.check();
}

/// RFC 1122, 3.3.2 and RFC 792: who sent a first fragment is told that the rest did not come; of others nobody is.
#[test]
fn a_sender_is_told_of_fragments_that_did_not_come() {
    for (missing, told) in [(0, 0), (1, 1), (2, 1)] {
        let mut lab = with_large_buffers(1);
        let ping = long_ping(APP2, NODE1);
        for (number, fragment) in cut(&ping, &[1440, 2880]).iter().enumerate() {
            if number != missing {
                lab.send(APP2, &ethernet(lab.machines[&APP2].gateway, mac(APP2), fragment));
            }
        }
        assert_eq!(lab.ledger(lab.node1).held, 2);
        // Linux, `ipfrag_time`: 30 seconds.
        lab.pass(Duration::from_secs(29));
        assert_eq!(lab.ledger(lab.node1).held, 2);
        lab.pass(Duration::from_secs(2));
        let answers = lab.receive(APP2);
        assert_eq!(answers.len(), told);
        for answer in answers {
            let (source, _, _, payload) = common::packet(&answer);
            let docker0 = Ipv4Addr::new(10, 1, 15, 1);
            assert_eq!((source, payload[0], payload[1]), (docker0, 11, 1), "reassembly time exceeded");
            assert_eq!(payload[8 + 6..][..2], [0x20, 0], "the first is quoted");
        }
        assert_eq!((lab.drops(DropReason::FragmentTimeout), lab.ledger(lab.node1).held), (2, 0));
        lab.check();
    }
}

/// RFC 1858, 4; RFC 5722 in spirit: an overlap ends the datagram, all that waited of it too, and a copy ends nothing.
#[test]
fn an_overlap_ends_what_a_node_was_putting_together() {
    let mut lab = with_large_buffers(1);
    let gateway = lab.machines[&APP2].gateway;
    let ping = long_ping(APP2, NODE1);
    let fragments = cut(&ping, &[1440, 2880]);
    let lie = fragment_of(&ping, 1432..1448, true, 1432);
    for fragment in [&fragments[0], &fragments[0], &lie, &fragments[1], &fragments[2]] {
        lab.send(APP2, &ethernet(gateway, mac(APP2), fragment));
    }
    assert_eq!(lab.receive(APP2), Vec::<Vec<u8>>::new());
    assert_eq!((lab.drops(DropReason::FragmentOverlap), lab.ledger(lab.node1).held), (5, 0));
    for fragment in cut(&with_identification(ping, 2), &[1440, 2880]) {
        lab.send(APP2, &ethernet(gateway, mac(APP2), &fragment));
        lab.send(APP2, &ethernet(gateway, mac(APP2), &fragment));
    }
    assert_eq!(whole(&lab.receive(APP2)).len(), 3008, "each of its fragments came twice");
    lab.check();
}

/// RFC 791, 3.2: flannel's own datagrams, cut on their way through the node network, are put together before they are
/// unwrapped; the inner packet is as it was.
#[test]
fn tunnel_datagrams_that_come_in_fragments_are_unwrapped() {
    for workers in [1, 2, 3] {
        for to in [BACKEND, APP3] {
            let mut lab = Lab::new(workers);
            let inner = udp_packet(APP2, to, (5000, 7), &data(1300), 63);
            let outer = udp_packet(NODE1, NODE2, (8285, 8285), &inner, 64);
            for fragment in cut(&outer, &[576, 1152]).iter().rev() {
                assert_eq!(lab.receive(to), Vec::<Vec<u8>>::new());
                lab.send(USER, &ethernet(mac(NODE2), mac(USER), fragment));
            }
            assert_eq!(check(&lab.receive(to), APP2, to, &data(1300)), (5000, 7));
            // A foreign source is one in fragments, too.
            let outer = udp_packet(USER, NODE2, (8285, 8285), &inner, 64);
            for fragment in cut(&outer, &[576, 1152]) {
                lab.send(USER, &ethernet(mac(NODE2), mac(USER), &fragment));
            }
            assert_eq!((lab.receive(to).len(), lab.drops(DropReason::TunnelForeignSource)), (0, 1));
            lab.check();
        }
    }
}
