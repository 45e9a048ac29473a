//! The two-node network of the tour, with rings in place of pods, in virtual time.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "a test stops at the first surprise; a network takes its lines"
)]

pub mod fragments;
mod packets;
pub mod sockets;
pub mod superframes;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use flatnet_engine::binding::Profile;
use flatnet_engine::clock::Instant;
use flatnet_engine::control::{Control, EngineConfig, InterfaceSpec, NodeSpec};
use flatnet_engine::frame::Record;
use flatnet_engine::ledger::{Buffers, DropReason, Ledger};
use flatnet_engine::link::{Link, RingsPeer, rings};
use flatnet_engine::tables::{Guard, Lease, NodeId, PortId};
use flatnet_engine::trace::{Action, Event, Point};
use flatnet_engine::tunnel::Encapsulation;
use flatnet_engine::wire::{ArpOperation, IcmpType, MacAddress, TcpFlags};
use flatnet_engine::worker::Worker;
use flatnet_proxy::{Backend, Frontend, Ipv4Prefix, NodePort, Protocol, Service};

pub use packets::*;

pub const APP1: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 3);
pub const APP2: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 2);
pub const APP3: Ipv4Addr = Ipv4Addr::new(10, 1, 20, 2);
pub const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 1, 20, 3);
pub const USER: Ipv4Addr = Ipv4Addr::new(192, 168, 66, 50);
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const NODE1: Ipv4Addr = Ipv4Addr::new(192, 168, 66, 11);
pub const NODE2: Ipv4Addr = Ipv4Addr::new(192, 168, 66, 12);
pub const VXLAN: Encapsulation = Encapsulation::Vxlan { vni: 1 };
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// A machine at the end of a pair of rings.
pub struct Machine {
    pub peer: RingsPeer,
    pub port: PortId,
    pub address: Ipv4Addr,
    pub gateway: MacAddress,
}

pub struct Lab {
    pub control: Control,
    pub workers: Vec<Worker>,
    pub machines: BTreeMap<Ipv4Addr, Machine>,
    pub now: Instant,
    pub switch: NodeId,
    pub node1: NodeId,
    pub node2: NodeId,
    pub isp: NodeId,
    pub wires: Vec<(PortId, PortId)>,
}

/// A backend at port 80 on a node.
pub fn on(node: &str, address: Ipv4Addr, identity: u64) -> Backend {
    Backend { node: Some(node.into()), ..Backend::new(address, 80, identity) }
}

pub fn prefix(text: &str) -> Ipv4Prefix {
    text.parse().unwrap()
}

pub fn mac(address: Ipv4Addr) -> MacAddress {
    MacAddress::for_ipv4(address)
}

impl Lab {
    pub fn new(workers: u8) -> Self {
        Self::build(&EngineConfig {
            workers,
            small_buffers: 2048,
            large_buffers: 2,
            ..EngineConfig::default()
        })
    }

    pub fn build(config: &EngineConfig) -> Self {
        Self::build_with(config, Profile::Linux)
    }

    pub fn build_with(config: &EngineConfig, profile: Profile) -> Self {
        Self::build_over(config, profile, Encapsulation::Udp)
    }

    /// The same network over a VXLAN.
    pub fn vxlan(workers: u8) -> Self {
        let config =
            EngineConfig { workers, small_buffers: 2048, large_buffers: 2, ..EngineConfig::default() };
        Self::build_over(&config, Profile::Linux, VXLAN)
    }

    /// The same network without a tunnel.
    pub fn host_gw(workers: u8) -> Self {
        let config =
            EngineConfig { workers, small_buffers: 2048, large_buffers: 2, ..EngineConfig::default() };
        Self::build_over(&config, Profile::Linux, None)
    }

    pub fn build_over(
        config: &EngineConfig,
        profile: Profile,
        encapsulation: impl Into<Option<Encapsulation>>,
    ) -> Self {
        let encapsulation = encapsulation.into();
        let (mut control, workers) = Control::build(config).unwrap();
        let last = workers.len() as u8 - 1;
        let switch = control.add_switch("192.168.66.0/24").unwrap();
        let outside = control.add_switch("203.0.113.0/24").unwrap();
        let mut node = |name: &str, address, subnet: &str| {
            let spec = NodeSpec {
                name: Arc::from(name),
                address,
                network: prefix("192.168.66.0/24"),
                gateway: Some(Ipv4Addr::new(192, 168, 66, 1)),
                subnet: prefix(subnet),
                pod_network: prefix("10.1.0.0/16"),
                profile,
                tunnel_port: if encapsulation == Some(VXLAN) { 8472 } else { 8285 },
                encapsulation,
                mtu: 1500,
            };
            control.add_node(&spec).unwrap()
        };
        let (node1, node2) = (node("node-1", NODE1, "10.1.15.0/24"), node("node-2", NODE2, "10.1.20.0/24"));
        let near = InterfaceSpec {
            address: Ipv4Addr::new(192, 168, 66, 1),
            network: prefix("192.168.66.0/24"),
            mtu: 1500,
        };
        let far = InterfaceSpec {
            address: Ipv4Addr::new(203, 0, 113, 1),
            network: prefix("203.0.113.0/24"),
            mtu: 1500,
        };
        let isp = control.add_router("isp", &[near, far]).unwrap();
        let wires = vec![
            control.connect(node1, 0, switch, 0).unwrap(),
            control.connect(node2, 0, switch, last).unwrap(),
            control.connect(isp, 0, switch, 0).unwrap(),
            control.connect(isp, 1, outside, 0).unwrap(),
        ];
        control.tables.publish(|tables| {
            tables.set_lease(prefix("10.1.15.0/24"), Some(Lease { public_ip: NODE1, vtep: None }));
            tables.set_lease(prefix("10.1.20.0/24"), Some(Lease { public_ip: NODE2, vtep: None }));
        });
        let mut lab = Self {
            control,
            workers,
            machines: BTreeMap::new(),
            now: Instant::ZERO,
            switch,
            node1,
            node2,
            isp,
            wires,
        };
        lab.pod(node1, "web-app-1", APP1, Ipv4Addr::new(10, 1, 15, 1), 0);
        lab.pod(node1, "web-app-2", APP2, Ipv4Addr::new(10, 1, 15, 1), last);
        lab.pod(node2, "web-app-3", APP3, Ipv4Addr::new(10, 1, 20, 1), 0);
        lab.pod(node2, "backend", BACKEND, Ipv4Addr::new(10, 1, 20, 1), last);
        lab.host(switch, "user", USER, Ipv4Addr::new(192, 168, 66, 1));
        lab.host(outside, "internet", INTERNET, Ipv4Addr::new(203, 0, 113, 1));
        lab.service();
        lab.run();
        lab
    }

    pub fn pod(&mut self, node: NodeId, name: &str, address: Ipv4Addr, gateway: Ipv4Addr, worker: u8) {
        let (link, peer) = rings(1024);
        let guard = Guard { mac: mac(address), address, vip: None };
        let port = self.control.attach(node, name, Some(guard), worker, Link::Rings(link)).unwrap();
        self.machines.insert(address, Machine { peer, port, address, gateway: mac(gateway) });
    }

    /// Attaches a pod that has the VIP on its `lo`.
    pub fn server(&mut self, node: NodeId, address: Ipv4Addr, gateway: Ipv4Addr, worker: u8) {
        let (link, peer) = rings(1024);
        let guard = Guard { mac: mac(address), address, vip: Some(VIP) };
        let port = self.control.attach(node, "server", Some(guard), worker, Link::Rings(link)).unwrap();
        self.machines.insert(address, Machine { peer, port, address, gateway: mac(gateway) });
        self.run();
    }

    /// Attaches a machine that no guard binds to an address.
    pub fn stranger(&mut self, node: NodeId, address: Ipv4Addr, gateway: Ipv4Addr, worker: u8) {
        let (link, peer) = rings(1024);
        let port = self.control.attach(node, "stranger", None, worker, Link::Rings(link)).unwrap();
        self.machines.insert(address, Machine { peer, port, address, gateway: mac(gateway) });
        self.run();
    }

    fn host(&mut self, switch: NodeId, name: &str, address: Ipv4Addr, gateway: Ipv4Addr) {
        let (link, peer) = rings(1024);
        let port = self.control.attach(switch, name, None, 0, Link::Rings(link)).unwrap();
        self.machines.insert(address, Machine { peer, port, address, gateway: mac(gateway) });
    }

    fn service(&mut self) {
        let backends = [APP1, APP2, APP3].iter().enumerate();
        let backends = backends.map(|(id, &address)| Backend::new(address, 80, id as u64)).collect();
        self.set_backends(backends);
    }

    pub fn set_backends(&mut self, backends: Vec<Backend>) {
        self.control.tables.publish(|tables| {
            for (id, protocol) in [(0, Protocol::Tcp), (1, Protocol::Udp)] {
                let service = Service {
                    id,
                    name: Arc::from("default/web:http"),
                    backends: backends.clone().into(),
                    ..Service::default()
                };
                let frontend = Frontend { address: VIP, port: 80, protocol };
                let node_port = NodePort { port: 30_080, protocol };
                tables.services.insert(service, vec![frontend], vec![node_port]).unwrap();
            }
        });
    }

    /// Publishes the Service anew, as the control side does, with what `edit` says in place of the usual.
    pub fn serve(&mut self, edit: impl Fn(&mut Service)) {
        for (id, protocol) in [(0, Protocol::Tcp), (1, Protocol::Udp)] {
            let name = Arc::from("default/web:http");
            let mut service = Service { id, name, ..Service::default() };
            edit(&mut service);
            let frontend = Frontend { address: VIP, port: 80, protocol };
            let node_port = NodePort { port: 30_080, protocol };
            self.control.set_service(service, vec![frontend], vec![node_port]).unwrap();
        }
        self.run();
    }

    /// Sends every frame to the slow path, applied step by step: somebody listens everywhere.
    pub fn decide_always(&mut self) {
        for worker in &mut self.workers {
            for node in 0..self.control.tables.current().nodes.len() as u16 {
                for point in [Point::Bridge, Point::Interface(0), Point::Interface(1)] {
                    worker.listen(u32::MAX, NodeId(node), point);
                }
            }
        }
    }

    /// Takes everything that is at a machine, ARP too, without an answer.
    pub fn take(&mut self, at: Ipv4Addr) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        self.machines.get_mut(&at).unwrap().peer.from_node.pop(usize::MAX, |frame| frames.push(frame));
        let bytes = frames.iter().map(|frame| self.control.arena().bytes(frame).to_vec()).collect();
        for frame in frames {
            self.control.pool.free(frame);
        }
        self.bring_home();
        bytes
    }

    /// What the control side's pool does not own goes home through the workers, as real links do.
    pub fn bring_home(&mut self) {
        for worker in 0..self.workers.len() {
            let foreign: Vec<_> = self.control.pool.homebound(worker).drain(..).collect();
            for frame in foreign {
                self.workers[worker].adopt(frame);
            }
        }
    }

    /// Runs all workers until nothing moves at the present time; machines answer ARP meanwhile.
    pub fn run(&mut self) {
        for batch in 0.. {
            assert!(batch < 10_000, "frames go round and round");
            let moved: usize = self.workers.iter_mut().map(|worker| worker.run_batch(self.now)).sum();
            let busy = self.workers.iter().any(|worker| worker.next_event(self.now) == Some(self.now));
            if moved == 0 && !busy {
                break;
            }
        }
        self.control.collect_buffers();
    }

    /// Lets virtual time pass up to `duration`, event by event.
    pub fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(next) = self.workers.iter().filter_map(|worker| worker.next_event(self.now)).min() {
            if next > end {
                break;
            }
            self.now = next.max(self.now);
            self.run();
        }
        self.now = end;
        self.run();
    }

    /// Sends a frame from a machine, as it is.
    pub fn send(&mut self, from: Ipv4Addr, bytes: &[u8]) {
        self.send_marked(from, bytes, 0);
    }

    pub fn send_marked(&mut self, from: Ipv4Addr, bytes: &[u8], mark: u32) {
        self.send_with(from, bytes, |record| record.mark = mark);
    }

    /// Sends a frame with what a link may say of it.
    pub fn send_with(&mut self, from: Ipv4Addr, bytes: &[u8], say: impl FnOnce(&mut Record)) {
        let mut frame = self.control.pool.allocate(bytes.len()).unwrap();
        let mut open = self.control.arena().open(&mut frame);
        open.bytes_mut().copy_from_slice(bytes);
        say(open.record);
        self.machines.get_mut(&from).unwrap().peer.to_node.push(frame).unwrap();
        self.run();
    }

    /// Sends many frames from a machine in one go.
    pub fn send_all(&mut self, from: Ipv4Addr, frames: &[Vec<u8>]) {
        frames.iter().for_each(|bytes| self.push(from, bytes));
        self.run();
    }

    /// Puts a frame on a machine's way to its node, where it waits until a worker runs.
    pub fn push(&mut self, from: Ipv4Addr, bytes: &[u8]) {
        let mut frame = self.control.pool.allocate(bytes.len()).unwrap();
        self.control.arena().open(&mut frame).bytes_mut().copy_from_slice(bytes);
        self.machines.get_mut(&from).unwrap().peer.to_node.push(frame).unwrap();
    }

    /// Takes what arrived at a machine, and answers ARP requests for it.
    pub fn receive(&mut self, at: Ipv4Addr) -> Vec<Vec<u8>> {
        let mut arrived = self.take(at);
        // As a network card does: a switch floods what is for a station it does not know.
        arrived.retain(|bytes| bytes[0] & 1 == 1 || bytes[..6] == mac(at).octets());
        let mut rest = Vec::new();
        for bytes in arrived {
            match arp_request(&bytes) {
                Some((sender_mac, sender, target)) if target == at => {
                    let reply = arp(ArpOperation::Reply, (mac(at), at), (sender_mac, sender));
                    self.send(at, &reply);
                }
                Some(_) => {}
                None if bytes.get(12..14) == Some(&[8, 6]) => {}
                None => rest.push(bytes),
            }
        }
        rest
    }

    /// Lets hosts answer ARP and everything settle, then returns what is at a machine.
    pub fn settle(&mut self, at: Ipv4Addr) -> Vec<Vec<u8>> {
        let mut arrived = Vec::new();
        for _ in 0..4 {
            for host in [USER, INTERNET] {
                if host != at {
                    assert_eq!(self.receive(host), Vec::<Vec<u8>>::new(), "unexpected at {host}");
                }
            }
            arrived.extend(self.receive(at));
        }
        arrived
    }

    pub fn ledger(&self, node: NodeId) -> Ledger {
        self.control.ledger(node)
    }

    pub fn drops(&self, reason: DropReason) -> u64 {
        (0..5).map(|node| self.ledger(NodeId(node)).drops(reason)).sum()
    }

    /// All ledgers balance, and all buffers are back.
    pub fn check(&mut self) {
        // An answer to ARP sets frames free, which other machines must take in their turn.
        for _ in 0..4 {
            self.run();
            for address in self.machines.keys().copied().collect::<Vec<_>>() {
                self.receive(address);
            }
        }
        self.run();
        for node in 0..5 {
            let ledger = self.ledger(NodeId(node));
            assert!(ledger.balances(), "node {node}: {ledger:?}");
        }
        let held: u64 = (0..5).map(|node| self.ledger(NodeId(node)).held).sum();
        let out: usize = self.workers.iter().map(Worker::outstanding_buffers).sum();
        assert_eq!((out + self.control.pool.outstanding()) as u64, held, "buffers");
        self.finish();
    }

    /// Ends all workers; every buffer must be found.
    pub fn finish(&mut self) -> Buffers {
        self.control.collect_buffers();
        let (allocated, freed) = self.control.pool.turnover();
        let own = Buffers { allocated, freed, held: 0 };
        let buffers = self.workers.iter_mut().map(Worker::finish).fold(own, Buffers::plus);
        assert!(buffers.balances(), "{buffers:?}");
        buffers
    }

    pub fn hops(&mut self, mark: u32) -> Vec<(String, String, String)> {
        let mut events: Vec<Event> = Vec::new();
        for worker in &mut self.workers {
            events.append(&mut worker.observer.events);
        }
        let tables = self.control.tables.current();
        events.retain(|event| event.mark == mark);
        events.sort_by_key(|event| event.hop);
        events
            .into_iter()
            .map(|event| {
                let (node, point) = event.point.names(event.node, &tables);
                let action = event.action.name().to_owned();
                let action = if let Action::Drop(reason) = event.action {
                    format!("{action}:{}", reason.name())
                } else {
                    action
                };
                (node, point, action)
            })
            .collect()
    }

    pub fn udp(&self, from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let machine = &self.machines[&from];
        let destination = if self.same_segment(from, to) { mac(to) } else { machine.gateway };
        ethernet(destination, mac(from), &udp_packet(from, to, ports, payload, 64))
    }

    pub fn tcp(&self, from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16), flags: TcpFlags) -> Vec<u8> {
        let machine = &self.machines[&from];
        let destination = if self.same_segment(from, to) { mac(to) } else { machine.gateway };
        ethernet(destination, mac(from), &tcp_packet(from, to, ports, flags))
    }

    pub fn echo(&self, from: Ipv4Addr, to: Ipv4Addr, ttl: u8) -> Vec<u8> {
        let machine = &self.machines[&from];
        let destination = if self.same_segment(from, to) { mac(to) } else { machine.gateway };
        ethernet(destination, mac(from), &echo_packet(from, to, IcmpType::EchoRequest, 77, ttl))
    }

    pub fn same_segment(&self, from: Ipv4Addr, to: Ipv4Addr) -> bool {
        from.octets()[..3] == to.octets()[..3]
    }
}
