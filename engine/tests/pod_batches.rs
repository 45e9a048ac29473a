//! Pods hear all frames of a batch before their applications are woken: once for many, and nothing is lost for that.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::link::{Link, rings};
use flatnet_engine::pod::{ContainerConfig, Image, Pod, PodConfig};
use flatnet_engine::tables::Guard;
use flatnet_engine::wire::{IpProtocol, TcpFlags, TcpSegment};
use std::net::Ipv4Addr;

/// The pod, which echoes; docker0.
const POD: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 100);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 1);
const ECHO: u16 = 7;

fn lab_with_echo() -> Lab {
    let mut lab = Lab::new(1);
    let config = PodConfig { mac: mac(POD), address: POD, gateway: Some(GATEWAY), ..PodConfig::default() };
    let mut pod = Pod::new(config);
    let echo = ContainerConfig {
        name: "echo".into(),
        image: Image::Echo,
        ports: Vec::new(),
        args: Vec::new(),
        mounts: Vec::new(),
    };
    pod.start_container(echo).unwrap();
    let guard = Guard { mac: mac(POD), address: POD, vip: None };
    lab.control.attach_pod(lab.node1, "echo", Some(guard), 0, pod).unwrap();
    lab.run();
    lab
}

/// Makes a segment of APP1's with these numbers.
fn segment(sequence: u32, acknowledgement: u32, flags: TcpFlags, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 20];
    bytes.extend_from_slice(payload);
    let mut segment = TcpSegment::new_unchecked(&mut bytes[..]);
    segment.set_source_port(999);
    segment.set_destination_port(ECHO);
    segment.set_header_length(20);
    segment.set_sequence(sequence);
    segment.set_acknowledgement(acknowledgement);
    segment.set_flags(flags);
    segment.set_window(65_535);
    segment.fill_checksum(APP1, POD);
    ethernet(mac(POD), mac(APP1), &ipv4_packet(APP1, POD, IpProtocol::Tcp, 64, &bytes))
}

#[test]
fn segments_of_a_batch_are_answered_together() {
    let mut lab = lab_with_echo();
    lab.send(APP1, &segment(0, 0, TcpFlags::SYN, &[]));
    let arrived = lab.receive(APP1);
    let (.., payload) = packet(&arrived[0]);
    let initial = TcpSegment::new_unchecked(&payload[..]).sequence();
    let next = initial.wrapping_add(1);
    lab.send(APP1, &segment(1, next, TcpFlags::ACK, &[]));
    lab.receive(APP1);
    let burst: Vec<_> = (0..10).map(|part| segment(1 + 50 * part, next, TcpFlags::ACK, &[7; 50])).collect();
    lab.send_all(APP1, &burst);
    let answers = lab.receive(APP1);
    assert_eq!(answers.len(), 1, "500 octets fit one segment");
    let (.., payload) = packet(&answers[0]);
    let answer = TcpSegment::new_unchecked(&payload[..]);
    assert_eq!((answer.payload().len(), answer.acknowledgement()), (500, 501));
}

/// A socket takes 512 datagrams that wait.
#[test]
fn no_datagram_of_many_senders_in_one_batch_is_lost() {
    let mut lab = lab_with_echo();
    let senders: Vec<_> = (0..12).map(|number| Ipv4Addr::new(10, 1, 15, 120 + number)).collect();
    for &sender in &senders {
        let (link, peer) = rings(1024);
        let guard = Guard { mac: mac(sender), address: sender, vip: None };
        let port = lab.control.attach(lab.node1, "sender", Some(guard), 0, Link::Rings(link)).unwrap();
        lab.machines.insert(sender, Machine { peer, port, address: sender, gateway: mac(GATEWAY) });
    }
    lab.run();
    let send = |lab: &mut Lab, count: usize| {
        for &sender in &senders {
            let datagram =
                ethernet(mac(POD), mac(sender), &udp_packet(sender, POD, (999, ECHO), &[7; 8], 64));
            for _ in 0..count {
                let mut frame = lab.control.pool.allocate(datagram.len()).unwrap();
                lab.control.arena().open(&mut frame).bytes_mut().copy_from_slice(&datagram);
                lab.machines.get_mut(&sender).unwrap().peer.to_node.push(frame).unwrap();
            }
        }
        lab.run();
        senders.iter().map(|&sender| lab.receive(sender).len()).sum::<usize>()
    };
    // The pod asks for the senders' MACs first: of what waits for them meanwhile it keeps few.
    send(&mut lab, 1);
    assert_eq!(send(&mut lab, 64), 12 * 64);
}
