//! The slow path is the specification: what the cache replays must be what would be decided now.
//!
//! Random frames and table changes go through two engines of one seed. In the second somebody listens, so that
//! every frame is decided and applied step by step. What arrives anywhere must be the same, byte for byte; the
//! outer identification too, because both count one for every frame that is forwarded.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::binding::Profile;
use flatnet_engine::control::EngineConfig;
use flatnet_engine::tables::{Endpoint, Lease, Tables};
use flatnet_engine::tunnel::Encapsulation;
use flatnet_engine::wire::{
    ArpOperation, EtherType, EthernetFrame, IcmpPacket, IcmpType, IpProtocol, Ipv4Packet, MacAddress,
    TcpFlags,
};
use flatnet_proxy::{Backend, Forwarding, Frontend, NodePort, Protocol, Service};
use proptest::prelude::*;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

const MACHINES: [Ipv4Addr; 6] = [APP1, APP2, APP3, BACKEND, USER, INTERNET];
const DESTINATIONS: [Ipv4Addr; 17] = [
    APP1,
    APP2,
    APP3,
    BACKEND,
    USER,
    INTERNET,
    NODE1,
    NODE2,
    VIP,
    VIP,
    VIP,
    Ipv4Addr::new(10, 1, 15, 1),
    Ipv4Addr::new(10, 1, 20, 0),
    Ipv4Addr::new(10, 1, 99, 5),
    Ipv4Addr::new(10, 1, 15, 77),
    Ipv4Addr::new(10, 1, 20, 255),
    Ipv4Addr::BROADCAST,
];

/// Of a worker's cache: more than there are flows.
const SLOTS: usize = 1 << 12;

#[derive(Debug, Clone)]
enum Change {
    Lease { subnet: &'static str, holder: Option<Ipv4Addr> },
    Forget(usize),
    Know(usize),
    Detach(usize),
    Backends(Vec<usize>, Forwarding),
    NoService,
}

#[derive(Debug, Clone)]
struct Sent {
    from: usize,
    to: usize,
    kind: u8,
    ports: (u16, u16),
    flags: u8,
    ttl: u8,
    length: usize,
    /// What is unusual about the frame, if anything.
    twist: u8,
    times: u8,
}

#[derive(Debug, Clone)]
enum Act {
    Send(Sent),
    /// What was sent some time ago is sent again: it may be in a cache, and something may have changed.
    Again(usize),
    /// Something that arrived at a machine is answered.
    Answer {
        at: usize,
        times: u8,
        error: bool,
    },
    Change(Change),
    Pass(u64),
}

fn sent() -> impl Strategy<Value = Sent> {
    let port = prop::sample::select(vec![80u16, 80, 53, 1000, 2000, 2001, 8285, 8472, 30_080, 40_000]);
    let flags = prop::sample::select(vec![0x02u8, 0x12, 0x10, 0x10, 0x10, 0x18, 0x11, 0x04, 0x14, 0]);
    let ttl = prop::sample::select(vec![64u8, 64, 64, 64, 255, 3, 2, 1, 0]);
    let length = prop::sample::select(vec![0usize, 1, 13, 100, 1444, 1445, 1472]);
    let twist = prop_oneof![3 => Just(0u8), 1 => 1u8..12];
    (
        0..MACHINES.len(),
        0..DESTINATIONS.len(),
        0u8..7,
        (port.clone(), port),
        flags,
        ttl,
        length,
        twist,
        1u8..4,
    )
        .prop_map(|(from, to, kind, ports, flags, ttl, length, twist, times)| Sent {
            from,
            to,
            kind,
            ports,
            flags,
            ttl,
            length,
            twist,
            times,
        })
}

fn change() -> impl Strategy<Value = Change> {
    let subnet = prop::sample::select(vec!["10.1.15.0/24", "10.1.20.0/24", "10.1.20.0/25", "10.1.0.0/17"]);
    let holder = prop::sample::select(vec![Some(NODE1), Some(NODE2), Some(NODE2), Some(USER), None]);
    prop_oneof![
        2 => (subnet, holder).prop_map(|(subnet, holder)| Change::Lease { subnet, holder }),
        1 => (0usize..4).prop_map(Change::Forget),
        2 => (0usize..4).prop_map(Change::Know),
        1 => (0usize..5).prop_map(Change::Detach),
        2 => (prop::collection::vec(0usize..4, 0..4), prop::sample::select(Forwarding::ALL))
            .prop_map(|(which, forwarding)| Change::Backends(which, forwarding)),
        1 => Just(Change::NoService),
    ]
}

fn profile() -> impl Strategy<Value = Profile> {
    prop_oneof![Just(Profile::Linux), Just(Profile::Rfc)]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        10 => sent().prop_map(Act::Send),
        10 => (0usize..4).prop_map(Act::Again),
        8 => (0..MACHINES.len(), 1u8..4, prop::bool::weighted(0.15))
            .prop_map(|(at, times, error)| Act::Answer { at, times, error }),
        3 => change().prop_map(Act::Change),
        1 => prop::sample::select(vec![1u64, 11, 31]).prop_map(Act::Pass),
    ]
}

/// One of the two engines, and what its machines have got.
struct Side {
    lab: Lab,
    inboxes: Vec<Vec<Vec<u8>>>,
    /// What the machines have sent.
    sent: Vec<Sent>,
}

impl Side {
    fn new(
        (workers, cache_slots): (u8, usize),
        profile: Profile,
        encapsulation: Option<Encapsulation>,
    ) -> Self {
        let config = EngineConfig {
            workers,
            cache_slots,
            small_buffers: 2048,
            large_buffers: 2,
            ..EngineConfig::default()
        };
        let mut lab = Lab::build_over(&config, profile, encapsulation);
        // Both switches hear of the hosts, as from any machine that starts.
        for host in [USER, INTERNET] {
            let announcement = arp(ArpOperation::Request, (mac(host), host), (MacAddress::default(), host));
            lab.send(host, &announcement);
        }
        let mut side = Self { lab, inboxes: vec![Vec::new(); MACHINES.len()], sent: Vec::new() };
        side.collect();
        side
    }

    /// Takes what arrived; machines answer ARP until nothing comes any more.
    fn collect(&mut self) -> Vec<Vec<Vec<u8>>> {
        let mut all = vec![Vec::new(); MACHINES.len()];
        for round in 0.. {
            assert!(round < 100, "machines never fall silent");
            let mut quiet = true;
            for (index, &at) in MACHINES.iter().enumerate() {
                for bytes in self.lab.take(at) {
                    quiet = false;
                    if let Some((sender_mac, sender, target)) = arp_request(&bytes)
                        && target == at
                        && sender != at
                        && self.attached(at)
                    {
                        let reply = arp(ArpOperation::Reply, (mac(at), at), (sender_mac, sender));
                        self.lab.send(at, &reply);
                    }
                    all[index].push(bytes);
                }
            }
            if quiet {
                break;
            }
        }
        for (inbox, got) in self.inboxes.iter_mut().zip(&all) {
            inbox.extend(got.iter().cloned());
        }
        all
    }

    fn attached(&self, at: Ipv4Addr) -> bool {
        let tables = self.lab.control.tables.current();
        self.lab.machines.get(&at).is_some_and(|machine| tables.ports.contains_key(&machine.port))
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Send(sent) => {
                self.send(sent);
                self.sent.push(sent.clone());
            }
            Act::Again(ago) => {
                if let Some(sent) = self.sent.iter().rev().nth(*ago).cloned() {
                    self.send(&sent);
                }
            }
            Act::Answer { at, times, error } => {
                let Some(frame) = self.inboxes[*at].pop() else { return };
                let answer = if *error { error_about(&frame) } else { answer_to(&frame) };
                if let Some(answer) = answer
                    && self.attached(MACHINES[*at])
                {
                    for _ in 0..*times {
                        self.lab.send(MACHINES[*at], &answer);
                    }
                }
            }
            Act::Change(change) => {
                self.change(change);
                self.lab.run();
            }
            Act::Pass(seconds) => self.lab.pass(Duration::from_secs(*seconds)),
        }
    }

    fn send(&mut self, sent: &Sent) {
        let from = MACHINES[sent.from];
        for time in 0..sent.times {
            if self.attached(from) {
                let frame = frame(&self.lab, sent, time);
                self.lab.send(from, &frame);
            }
        }
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::Lease { subnet, holder } => {
                let lease = holder.map(|public_ip| Lease { public_ip, vtep: None });
                self.lab.control.tables.publish(|tables| tables.set_lease(prefix(subnet), lease));
            }
            Change::Forget(index) => {
                let address = MACHINES[*index];
                self.lab.control.tables.publish(|tables| tables.remove_endpoint(address));
            }
            Change::Know(index) => self.know(MACHINES[*index]),
            Change::Detach(index) => {
                let at = MACHINES[*index];
                if self.attached(at) {
                    let port = self.lab.machines[&at].port;
                    self.lab.control.detach(port).unwrap();
                }
            }
            Change::Backends(indices, forwarding) => {
                let mut backends: Vec<Backend> = Vec::new();
                for &index in indices {
                    let backend = Backend::new(MACHINES[index], 80, index as u64);
                    if !backends.contains(&backend) {
                        backends.push(backend);
                    }
                }
                self.lab.control.tables.publish(|tables| set_services(tables, &backends, *forwarding));
            }
            Change::NoService => {
                self.lab.control.tables.publish(|tables| {
                    tables.remove_service(0);
                    tables.remove_service(1);
                });
            }
        }
    }

    /// A machine that went comes back at another port; one that was forgotten is known again.
    fn know(&mut self, address: Ipv4Addr) {
        let node = if address.octets()[2] == 15 { self.lab.node1 } else { self.lab.node2 };
        let gateway = Ipv4Addr::from_bits(address.to_bits() & !0xff | 1);
        let worker = if address.octets()[3] == 2 { self.lab.workers.len() as u8 - 1 } else { 0 };
        if self.attached(address) {
            let port = self.lab.machines[&address].port;
            let endpoint = Endpoint { node, port, mac: mac(address), worker };
            let owner = self.lab.control.tables.current().ports.get(&port).unwrap().worker;
            let endpoint = Endpoint { worker: owner, ..endpoint };
            self.lab.control.tables.publish(|tables| tables.add_endpoint(address, endpoint));
        } else {
            self.lab.pod(node, "again", address, gateway, worker);
        }
    }
}

fn set_services(tables: &mut Tables, backends: &[Backend], forwarding: Forwarding) {
    for (id, protocol) in [(0, Protocol::Tcp), (1, Protocol::Udp)] {
        let service = Service {
            id,
            name: Arc::from("default/web:http"),
            forwarding,
            backends: backends.into(),
            ..Service::default()
        };
        let frontend = Frontend { address: VIP, port: 80, protocol };
        let node_port = NodePort { port: 30_080, protocol };
        tables.set_service(service, vec![frontend], vec![node_port]).unwrap();
    }
}

fn frame(lab: &Lab, sent: &Sent, time: u8) -> Vec<u8> {
    let (from, to) = (MACHINES[sent.from], DESTINATIONS[sent.to]);
    let source = if sent.twist == 1 { Ipv4Addr::new(10, 1, 15, 9) } else { from };
    let payload = vec![time.wrapping_add(sent.ttl); sent.length];
    let mut packet = match sent.kind {
        0 | 1 => udp_packet(source, to, sent.ports, &payload, sent.ttl),
        2 | 3 => {
            let mut packet = tcp_packet(source, to, sent.ports, TcpFlags::from_bits(sent.flags));
            packet[8] = sent.ttl;
            packet
        }
        4 => echo_packet(source, to, IcmpType::EchoRequest, sent.ports.0, sent.ttl),
        5 => echo_packet(source, to, IcmpType::EchoReply, sent.ports.0, sent.ttl),
        _ => ipv4_packet(source, to, IpProtocol::Unknown(47), sent.ttl, &payload),
    };
    twist(&mut packet, sent.twist);
    Ipv4Packet::new_unchecked(&mut packet[..]).fill_header_checksum();
    let machine = &lab.machines[&from];
    let destination = match sent.twist {
        10 => MacAddress::BROADCAST,
        11 => mac(APP2),
        _ if lab.same_segment(from, to) => mac(to),
        _ => machine.gateway,
    };
    let source = if sent.twist == 9 { MacAddress::new([2, 9, 9, 9, 9, 9]) } else { mac(from) };
    let mut frame = ethernet(destination, source, &packet);
    if sent.twist == 8 {
        frame.extend([0xa5; 7]);
    }
    frame
}

fn twist(packet: &mut Vec<u8>, twist: u8) {
    match twist {
        2 => Ipv4Packet::new_unchecked(&mut packet[..]).set_fragmentation(false, true, 0),
        3 => Ipv4Packet::new_unchecked(&mut packet[..]).set_fragmentation(false, false, 64),
        4 => Ipv4Packet::new_unchecked(&mut packet[..]).set_fragmentation(false, false, 0),
        5 if packet.len() < 1400 => {
            // Four bytes of options: no operation, three times, and the end.
            packet.splice(20..20, [1, 1, 1, 0]);
            packet[0] = 0x46;
            let length = packet.len() as u16;
            Ipv4Packet::new_unchecked(&mut packet[..]).set_total_length(length);
        }
        6 if packet[9] == 17 => packet[26..28].fill(0),
        7 => packet[1] = 0xb8,
        _ => {}
    }
}

/// What a machine says to a packet: the same, turned around.
fn answer_to(frame: &[u8]) -> Option<Vec<u8>> {
    let (ethernet, packet) = ipv4_in(frame)?;
    let (from, to) = (packet.destination(), packet.source());
    let payload = packet.payload();
    let answer = match packet.protocol() {
        IpProtocol::Udp if payload.len() >= 8 => {
            let (source, destination) = ports(payload);
            udp_packet(from, to, (destination, source), &payload[8..], 64)
        }
        IpProtocol::Tcp if payload.len() >= 20 => {
            let (source, destination) = ports(payload);
            let flags = TcpFlags::from_bits(payload[13] | 0x10);
            tcp_packet(from, to, (destination, source), flags)
        }
        IpProtocol::Icmp if payload.len() >= 8 => {
            let identifier = IcmpPacket::new_unchecked(payload).identifier();
            echo_packet(from, to, IcmpType::EchoReply, identifier, 64)
        }
        IpProtocol::Udp | IpProtocol::Tcp | IpProtocol::Icmp | IpProtocol::Unknown(_) => return None,
    };
    Some(common::ethernet(ethernet.source(), ethernet.destination(), &answer))
}

/// What a machine that has no such port says.
fn error_about(frame: &[u8]) -> Option<Vec<u8>> {
    let (ethernet, packet) = ipv4_in(frame)?;
    let quoted = &frame[14..frame.len().min(14 + 60)];
    let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
    message.extend(quoted);
    IcmpPacket::new_unchecked(&mut message[..]).fill_checksum();
    let error = ipv4_packet(packet.destination(), packet.source(), IpProtocol::Icmp, 64, &message);
    Some(common::ethernet(ethernet.source(), ethernet.destination(), &error))
}

type Views<'a> = (EthernetFrame<&'a [u8]>, Ipv4Packet<&'a [u8]>);

fn ipv4_in(frame: &[u8]) -> Option<Views<'_>> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let is_ipv4 = ethernet.ethertype() == EtherType::Ipv4;
    let packet = Ipv4Packet::new_checked(frame.get(14..)?).ok()?;
    (is_ipv4 && ethernet.destination().is_unicast()).then_some((ethernet, packet))
}

/// Compares two engines of so many workers, with so many slots in the cache of each.
fn compare(
    engine: (u8, usize),
    profile: Profile,
    encapsulation: impl Into<Option<Encapsulation>>,
    acts: &[Act],
) -> Result<(), TestCaseError> {
    let encapsulation = encapsulation.into();
    let [mut cached, mut decided] = [(); 2].map(|()| Side::new(engine, profile, encapsulation));
    decided.lab.decide_always();
    for (step, act) in acts.iter().enumerate() {
        cached.act(act);
        decided.act(act);
        let (got, expected) = (cached.collect(), decided.collect());
        for (index, at) in MACHINES.iter().enumerate() {
            prop_assert_eq!(&got[index], &expected[index], "step {}: {:?} at {}", step, act, at);
        }
    }
    for node in 0..5 {
        let node = flatnet_engine::tables::NodeId(node);
        prop_assert_eq!(cached.lab.ledger(node), decided.lab.ledger(node));
    }
    cached.lab.check();
    decided.lab.check();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn the_cache_of_one_worker_answers_as_the_tables_would(
        profile in profile(), acts in prop::collection::vec(act(), 1..50),
    ) {
        compare((1, SLOTS), profile, Encapsulation::Udp, &acts)?;
    }

    #[test]
    fn the_cache_answers_as_the_tables_would_over_a_vxlan(
        profile in profile(), acts in prop::collection::vec(act(), 1..50),
    ) {
        compare((1, SLOTS), profile, VXLAN, &acts)?;
    }

    #[test]
    fn the_cache_answers_as_the_tables_would_without_a_tunnel(
        profile in profile(), acts in prop::collection::vec(act(), 1..50),
    ) {
        compare((1, SLOTS), profile, None, &acts)?;
    }

    /// Nearly every flow takes another's place: an evicted one costs a decision and nothing else.
    #[test]
    fn a_cache_of_four_slots_answers_as_the_tables_would(
        profile in profile(), acts in prop::collection::vec(act(), 1..50),
    ) {
        compare((1, 4), profile, Encapsulation::Udp, &acts)?;
    }

    #[test]
    fn the_caches_of_two_workers_answer_as_the_tables_would(
        profile in profile(), acts in prop::collection::vec(act(), 1..50),
    ) {
        compare((2, SLOTS), profile, Encapsulation::Udp, &acts)?;
    }
}
