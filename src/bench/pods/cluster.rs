//! A cluster as `flatnet up` has it in the engine: nodes on a switch, each with docker0, a lease and a cable, and pods.
//!
//! The rows make one and run its only worker. Invariants: one worker, whose loop is the real one; time is real; what does not
//! end within five minutes is an error.
//!
//! May depend on the engine and the proxy. Read first: `engine/src/control.rs`.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use flatnet_engine::clock::{Clock, Instant};
use flatnet_engine::control::{Control, EngineConfig};
use flatnet_engine::ledger::DropReason;
use flatnet_engine::link::{Link, RingsPeer, rings};
use flatnet_engine::pod::{ContainerConfig, Image, Pod, PodConfig};
use flatnet_engine::tables::{Guard, Lease, NodeId, PortId};
use flatnet_engine::tunnel::Encapsulation;
use flatnet_engine::wire::MacAddress;
use flatnet_engine::worker::Worker;
use flatnet_proxy::{Backend, Frontend, Protocol, Service};

use crate::bench::BenchError;
use crate::bench::addresses::{
    bridge_address, node_address, node_spec, pod_address, service_address, subnet,
};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(300);
/// Frames that a ring takes.
const RING: usize = 2048;
/// Visits after which the worker is given its turn: its mailbox takes 4,096.
const VISITS: u32 = 16;
/// Batches between two looks at whether all is done.
const BATCHES: u32 = 32;
/// Batches that may move nothing before a row counts as failed.
pub(super) const IDLE_LIMIT: u32 = 100_000_000;

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    /// The control side.
    pub control: Control,
    /// The worker.
    pub worker: Worker,
    clock: Clock,
    nodes: Vec<NodeId>,
    visits: u32,
}

impl Cluster {
    /// Makes a cluster without pods.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn new(nodes: u32) -> Result<Self, BenchError> {
        let config = EngineConfig { workers: 1, ..EngineConfig::default() };
        let (mut control, mut workers) = Control::build(&config)?;
        let worker = workers.remove(0);
        let switch = control.add_switch("172.16.0.0/16")?;
        let mut cluster = Self { control, worker, clock: Clock::start(), nodes: Vec::new(), visits: 0 };
        for node in 0..nodes {
            let id = cluster.control.add_node(&node_spec(node, None, Encapsulation::Udp)?)?;
            cluster.control.connect(id, 0, switch, 0)?;
            cluster.nodes.push(id);
            let lease = Some(Lease { public_ip: node_address(node), vtep: None });
            let subnet = subnet(node)?;
            cluster.control.tables.publish(|tables| tables.set_lease(subnet, lease));
            cluster.visit();
        }
        Ok(cluster)
    }

    /// Adds a pod with one container.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn add_pod(
        &mut self,
        node: u32,
        number: u32,
        image: Image,
        args: &[&str],
    ) -> Result<PortId, BenchError> {
        let (address, mtu) = (pod_address(node, number), self.mtu(node));
        let mac = MacAddress::for_ipv4(address);
        let name = format!("pod-{node}-{number}");
        let mut pod = Pod::new(PodConfig {
            name: name.clone(),
            mac,
            address,
            gateway: Some(bridge_address(node)),
            mtu,
            seed: u64::from(address.to_bits()),
            ..PodConfig::default()
        });
        pod.start_container(ContainerConfig {
            name: String::from("main"),
            image,
            ports: Vec::new(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            mounts: Vec::new(),
        })?;
        let guard = Some(Guard { mac, address, vip: None });
        let id = self.nodes[node as usize];
        let port = self.control.attach_pod(id, &format!("default/{name}"), guard, 0, pod)?;
        self.visit();
        Ok(port)
    }

    /// Adds a pod that is a pair of rings.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn add_rings(&mut self, node: u32, number: u32) -> Result<RingsPeer, BenchError> {
        let (link, peer) = rings(RING);
        let address = pod_address(node, number);
        let guard = Some(Guard { mac: MacAddress::for_ipv4(address), address, vip: None });
        let id = self.nodes[node as usize];
        self.control.attach(id, &format!("default/rings-{node}"), guard, 0, Link::Rings(link))?;
        self.visit();
        Ok(peer)
    }

    /// Puts one pod behind a Service and returns its VIP.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn add_service(&mut self, pod: Ipv4Addr, port: u16) -> Result<Ipv4Addr, BenchError> {
        let service = Service {
            id: 0,
            name: Arc::from("default/server"),
            backends: Arc::from([Backend::new(pod, port, 0)]),
            ..Service::default()
        };
        let frontend = Frontend { address: service_address(0), port, protocol: Protocol::Tcp };
        self.control.set_service(service, vec![frontend], Vec::new())?;
        Ok(frontend.address)
    }

    /// Runs the worker once.
    pub fn run_batch(&mut self) -> usize {
        let now = self.now();
        let moved = self.worker.run_batch(now);
        self.control.collect_buffers();
        moved
    }

    /// Runs the worker until `done`, which is asked now and then.
    ///
    /// # Errors
    /// [`BenchError::Unfinished`] after five minutes.
    pub fn run_until(
        &mut self,
        what: &'static str,
        mut done: impl FnMut(&mut Self) -> Result<bool, BenchError>,
    ) -> Result<(), BenchError> {
        let until = self.now() + LIMIT;
        while !done(self)? {
            for _ in 0..BATCHES {
                self.run_batch();
            }
            if self.now() > until {
                return Err(BenchError::Unfinished { what, drops: self.drops() });
            }
        }
        Ok(())
    }

    /// Returns the time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Lists what the nodes dropped.
    #[must_use]
    pub fn drops(&self) -> String {
        let mut text = String::new();
        for &node in &self.nodes {
            let ledger = self.control.ledger(node);
            for &reason in DropReason::ALL.iter().filter(|&&reason| ledger.drops(reason) > 0) {
                let _ = write!(text, "{} {} ", reason.name(), ledger.drops(reason));
            }
        }
        if text.is_empty() { String::from("none") } else { text }
    }

    fn mtu(&self, node: u32) -> u16 {
        let tables = self.control.tables.current();
        let node = self.nodes.get(node as usize).and_then(|&id| tables.node(id));
        node.and_then(|node| node.bridge.as_ref()).map_or(1500, |bridge| bridge.mtu)
    }

    fn visit(&mut self) {
        self.visits += 1;
        if self.visits.is_multiple_of(VISITS) {
            self.run_batch();
        }
    }
}
