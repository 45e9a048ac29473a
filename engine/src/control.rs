//! The control side of an engine: makes workers, nodes, ports and cables, and reads ledgers.
//!
//! The publisher and the benches hold a [`Control`]. Invariants: a port is published before its link is
//! attached and its link detached before it is unpublished; ids are never reused; both ends of a cable are
//! one worker's. Allowed dependencies: `tables`, `mailbox`, `worker`, `link`. Read first: `tables.rs`.
//!
//! Above 400 lines because each part of a network is made and unmade in one place.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use flatnet_proxy::{Backend, Frontend, Ipv4Prefix, Load, NodePort, Row, Scheduler, Service, TableError};

use crate::binding::{Binding, Profile};
use crate::frame::{Arena, ArenaError, Pool};
use crate::ledger::{Ledger, NodeCounters};
use crate::link::wire::Wire;
use crate::link::{Link, PodLink};
use crate::load::{COUNTED_LIMIT, Loads, Numbers};
use crate::mailbox::{Incoming, MailboxFull, Outgoing, Parcel, Post};
use crate::masquerade::PortRange;
use crate::pod::Pod;
use crate::random::Random;
use crate::ring;
use crate::tables::{
    Bridge, Endpoint, Guard, Interface, Masquerading, NextHop, Node, NodeId, Port, PortId, Role, RouterPort,
    Tables, Tunnel, Writer,
};
use crate::tunnel::Encapsulation;
use crate::wire::MacAddress;
use crate::worker::{Parts, Worker};

pub mod host;

/// Frames on the way from one worker to another at most.
pub(crate) const RING_LIMIT: usize = 4096;
/// The name of a switch's only point.
pub const SWITCH: &str = "switch";
/// Nodes an engine has at most.
pub const NODE_LIMIT: usize = 1024;

/// How large an engine is.
#[derive(Debug, Clone, Copy)]
pub struct EngineConfig {
    /// Workers.
    pub workers: u8,
    /// Small buffers of each.
    pub small_buffers: u32,
    /// Large buffers of each.
    pub large_buffers: u32,
    /// Slots of each flow cache.
    pub cache_slots: usize,
    /// Bindings of each.
    pub bindings: usize,
    /// Bindings of each that one client may have.
    pub client_bindings: u32,
    /// For how long a worker without work looks for more before it sleeps; a few times in any case.
    pub poll: Duration,
    /// Where all chance comes from.
    pub seed: u64,
    /// What tables that strangers' packets fill are keyed by, if not the seed: who knows it can choose flows that collide.
    pub secret: Option<u64>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            workers: 2,
            small_buffers: 16_384,
            large_buffers: 64,
            cache_slots: 1 << 16,
            bindings: 1 << 18,
            client_bindings: 1 << 15,
            poll: Duration::ZERO,
            seed: 7,
            secret: None,
        }
    }
}

/// Everything outside the workers holds of them.
#[derive(Debug)]
pub struct Control {
    /// The tables' publishing end.
    pub tables: Writer,
    /// The workers.
    pub posts: Vec<Post>,
    /// Buffers of the control side: for generators and tests.
    pub pool: Pool,
    counters: Vec<Arc<[Arc<NodeCounters>]>>,
    loads: Loads,
    numbers: Numbers,
    homecoming: Vec<Incoming>,
    arena: Arc<Arena>,
    random: Random,
    next_node: u16,
    next_port: u32,
}

impl Control {
    /// Makes an engine: its workers, to be run by whoever likes, and the control side.
    ///
    /// # Errors
    /// [`ArenaError`].
    pub fn build(config: &EngineConfig) -> Result<(Self, Vec<Worker>), ArenaError> {
        let workers = config.workers.max(1);
        let (arena, mut pools) = Arena::new(workers + 1, config.small_buffers, config.large_buffers)?;
        let tables = Writer::default();
        let random = Random::new(config.seed);
        let pairs = (0..workers).map(|_| Post::pair()).collect::<Result<Vec<_>, _>>()?;
        let (posts, mailboxes): (Vec<Post>, Vec<_>) = pairs.into_iter().unzip();
        let counters: Vec<Arc<[Arc<NodeCounters>]>> =
            (0..workers).map(|_| (0..NODE_LIMIT).map(|_| Arc::default()).collect()).collect();
        let (mut outgoing, mut incoming, homecoming) = mesh(&posts);
        let pool = pools.pop().ok_or(ArenaError::TooManyBuffers)?;
        let loads = Loads::new(workers);
        let parts = pools.into_iter().zip(mailboxes).zip(&counters).enumerate();
        let made = parts.map(|(id, ((pool, mailbox), counters))| {
            Worker::new(
                id as u8,
                config,
                Parts {
                    pool,
                    reader: tables.reader(),
                    mailbox,
                    counters: Arc::clone(counters),
                    loads: loads.of(id as u8),
                    outgoing: std::mem::take(&mut outgoing[id]),
                    incoming: std::mem::take(&mut incoming[id]),
                    random: random.fork(id as u64),
                },
            )
        });
        let made = made.collect::<Result<_, _>>()?;
        let control = Self {
            tables,
            posts,
            pool,
            counters,
            loads,
            numbers: Numbers::default(),
            homecoming,
            arena,
            random,
            next_node: 0,
            next_port: 0,
        };
        Ok((control, made))
    }

    /// Returns the memory of all buffers.
    #[must_use]
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Sums a node's ledger over all workers.
    #[must_use]
    pub fn ledger(&self, node: NodeId) -> Ledger {
        Ledger::sum(self.counters.iter().filter_map(|worker| worker.get(usize::from(node.0))))
    }

    /// Sums the connections under a number of a Service's `counters` over all workers.
    #[must_use]
    pub fn load(&self, number: u32) -> Load {
        self.loads.sum(number)
    }

    /// Takes the control side's own buffers back that workers have freed.
    pub fn collect_buffers(&mut self) {
        for incoming in &mut self.homecoming {
            incoming.parcels.pop(usize::MAX, |parcel| match parcel {
                Parcel::Home(frame) => self.pool.welcome(frame),
                Parcel::Ingress(frame) | Parcel::Egress(frame) => self.pool.free(frame),
            });
        }
    }
}

/// Why a part of the network cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// [`NODE_LIMIT`] or 2²³ ports.
    #[error("an engine takes no more than {NODE_LIMIT} nodes and 8,388,608 ports")]
    TooMany,
    /// There is no such node, or it has no such part.
    #[error("there is no such node, bridge or interface")]
    Missing,
    /// A worker does not run.
    #[error(transparent)]
    MailboxFull(#[from] MailboxFull),
}

/// Why a Service cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// Another Service has one of its keys.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A worker does not run.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// All of [`COUNTED_LIMIT`].
    #[error("an engine counts the connections of no more than {COUNTED_LIMIT} backends")]
    TooMany,
}

/// A cluster's node to be made.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Its name.
    pub name: Arc<str>,
    /// eth0's address.
    pub address: Ipv4Addr,
    /// The node network.
    pub network: Ipv4Prefix,
    /// Where what is neither pod nor node goes.
    pub gateway: Option<Ipv4Addr>,
    /// Its pods' subnet: .0 is flannel0, .1 is docker0.
    pub subnet: Ipv4Prefix,
    /// All pods' network.
    pub pod_network: Ipv4Prefix,
    /// How its translations behave.
    pub profile: Profile,
    /// flannel's UDP port.
    pub tunnel_port: u16,
    /// How packets are carried between nodes; none of host-gw, where they go as they are.
    pub encapsulation: Option<Encapsulation>,
    /// Largest IP packet eth0 takes, bytes.
    pub mtu: u16,
}

/// A router's interface to be made.
#[derive(Debug, Clone, Copy)]
pub struct InterfaceSpec {
    /// Its address.
    pub address: Ipv4Addr,
    /// The network it is on.
    pub network: Ipv4Prefix,
    /// Largest IP packet it takes, bytes.
    pub mtu: u16,
}

impl Control {
    /// Makes a switch: a bridge and nothing else.
    ///
    /// # Errors
    /// [`ControlError::TooMany`].
    pub fn add_switch(&mut self, name: &str) -> Result<NodeId, ControlError> {
        let bridge = Bridge { name: Arc::from(SWITCH), ports: Vec::new(), router: None, mtu: u16::MAX };
        self.add(Node { name: Arc::from(name), bridge: Some(bridge), ..Node::default() })
    }

    /// Makes a router between networks.
    ///
    /// # Errors
    /// [`ControlError::TooMany`].
    pub fn add_router(&mut self, name: &str, interfaces: &[InterfaceSpec]) -> Result<NodeId, ControlError> {
        let mut node = Node { name: Arc::from(name), ..Node::default() };
        for (index, spec) in interfaces.iter().enumerate() {
            add_interface(&mut node, index as u8, spec);
        }
        self.add(node)
    }

    /// Makes a router or node answer for VIPs and NodePorts: an LVS director.
    ///
    /// # Errors
    /// [`ControlError::Missing`].
    pub fn serve_on(&mut self, id: NodeId) -> Result<(), ControlError> {
        let mut node = Node::clone(self.tables.current().node(id).ok_or(ControlError::Missing)?);
        node.services = true;
        self.tables.publish(|tables| tables.set_node(id, Some(node)));
        Ok(())
    }

    /// Adds a route through a gateway to a node, or takes it away. A gateway on none of its networks is no route.
    ///
    /// # Errors
    /// [`ControlError::Missing`].
    pub fn set_route(
        &mut self,
        id: NodeId,
        prefix: Ipv4Prefix,
        gateway: Option<Ipv4Addr>,
    ) -> Result<(), ControlError> {
        let mut node = Node::clone(self.tables.current().node(id).ok_or(ControlError::Missing)?);
        node.routes.remove(prefix);
        let towards = |gateway| node.interfaces.iter().position(|it| it.network.contains(gateway));
        if let Some((gateway, index)) = gateway.and_then(|gateway| Some((gateway, towards(gateway)?))) {
            node.routes.insert(prefix, NextHop::Interface { index: index as u8, gateway: Some(gateway) });
        }
        self.tables.publish(|tables| tables.set_node(id, Some(node)));
        Ok(())
    }

    /// Makes a cluster's node: docker0, flannel0, eth0 and its routes.
    ///
    /// # Errors
    /// [`ControlError::TooMany`]; [`ControlError::Missing`] when the subnet has no addresses for docker0.
    pub fn add_node(&mut self, spec: &NodeSpec) -> Result<NodeId, ControlError> {
        let docker0 = spec.subnet.nth(1).ok_or(ControlError::Missing)?;
        let overlay_mtu = spec.mtu.saturating_sub(spec.encapsulation.map_or(0, Encapsulation::overhead));
        let router = RouterPort { mac: MacAddress::for_ipv4(docker0), address: docker0, subnet: spec.subnet };
        let mut node = Node {
            name: Arc::clone(&spec.name),
            bridge: Some(Bridge {
                name: Arc::from("docker0"),
                ports: Vec::new(),
                router: Some(router),
                mtu: overlay_mtu,
            }),
            tunnel: spec.encapsulation.map(|encapsulation| Tunnel {
                address: spec.subnet.address(),
                local: spec.address,
                port: spec.tunnel_port,
                encapsulation,
                mtu: overlay_mtu,
                finds_peers: false,
            }),
            masquerade: Some(Masquerading {
                pods: spec.pod_network,
                profile: spec.profile,
                ports: PortRange::ALL,
            }),
            services: true,
            ..Node::default()
        };
        node.routes.insert(spec.pod_network, spec.encapsulation.map_or(NextHop::Holder, |_| NextHop::Tunnel));
        node.routes.insert(spec.subnet, NextHop::Bridge);
        let eth0 = InterfaceSpec { address: spec.address, network: spec.network, mtu: spec.mtu };
        add_interface(&mut node, 0, &eth0);
        if let (Some(gateway), Ok(everything)) = (spec.gateway, Ipv4Prefix::new(Ipv4Addr::UNSPECIFIED, 0)) {
            node.routes.insert(everything, NextHop::Interface { index: 0, gateway: Some(gateway) });
        }
        self.add(node)
    }

    fn add(&mut self, node: Node) -> Result<NodeId, ControlError> {
        if usize::from(self.next_node) >= NODE_LIMIT {
            return Err(ControlError::TooMany);
        }
        let id = NodeId(self.next_node);
        self.next_node += 1;
        self.tables.publish(|tables| tables.set_node(id, Some(node)));
        Ok(id)
    }

    fn port_id(&mut self) -> Result<PortId, ControlError> {
        let id = PortId(self.next_port);
        self.next_port =
            self.next_port.checked_add(1).filter(|&next| next < 1 << 23).ok_or(ControlError::TooMany)?;
        Ok(id)
    }

    /// Lays a cable between a node's interface and a switch; `worker` owns both ends. Returns the port at the
    /// interface and the port at the switch.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn connect(
        &mut self,
        node: NodeId,
        index: u8,
        switch: NodeId,
        worker: u8,
    ) -> Result<(PortId, PortId), ControlError> {
        let near = self.port_of_interface(node, index, worker)?;
        let far = self.port_id()?;
        self.tables.publish(|tables| {
            let name = tables.node(node).map(|node| Arc::clone(&node.name)).unwrap_or_default();
            tables.add_port(far, Port { node: switch, worker, name, role: Role::Bridge(None) });
        });
        let ends = [(near, far), (far, near)];
        for (port, peer) in ends {
            let wire = self.wire(port);
            self.post(worker)?.visit(move |worker| worker.attach(port, Link::Wire { wire, peer }))?;
        }
        Ok((near, far))
    }

    /// Attaches a link that leads out of the engine to a node's interface.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn attach_interface(
        &mut self,
        node: NodeId,
        index: u8,
        worker: u8,
        link: Link,
    ) -> Result<PortId, ControlError> {
        let port = self.port_of_interface(node, index, worker)?;
        self.post(worker)?.visit(move |worker| worker.attach(port, link))?;
        Ok(port)
    }

    /// Publishes the port of a node's interface; nothing is attached to it yet.
    fn port_of_interface(&mut self, node: NodeId, index: u8, worker: u8) -> Result<PortId, ControlError> {
        let mut changed = Node::clone(self.tables.current().node(node).ok_or(ControlError::Missing)?);
        let port = self.port_id()?;
        changed.interfaces.get_mut(usize::from(index)).ok_or(ControlError::Missing)?.port = port;
        let name = Arc::clone(&changed.name);
        self.tables.publish(|tables| {
            tables.set_node(node, Some(changed));
            tables.add_port(port, Port { node, worker, name, role: Role::Interface(index) });
        });
        Ok(port)
    }

    fn wire(&self, port: PortId) -> Wire {
        Wire::new(self.random.fork(u64::from(port.0)))
    }

    /// Attaches a simulated pod or host to a node's bridge.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn attach_pod(
        &mut self,
        node: NodeId,
        name: &str,
        guard: Option<Guard>,
        worker: u8,
        pod: Pod,
    ) -> Result<PortId, ControlError> {
        let wire = self.wire(PortId(self.next_port));
        self.attach(node, name, guard, worker, Link::Pod(Box::new(PodLink::new(pod, wire))))
    }

    /// Attaches something to a node's bridge: a pod with its guard, or, without one, a machine of any addresses.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn attach(
        &mut self,
        node: NodeId,
        name: &str,
        guard: Option<Guard>,
        worker: u8,
        link: Link,
    ) -> Result<PortId, ControlError> {
        let port = self.port_id()?;
        self.tables.publish(|tables| {
            tables.add_port(port, Port { node, worker, name: Arc::from(name), role: Role::Bridge(guard) });
            if let Some(guard) = guard {
                tables.add_endpoint(guard.address, Endpoint { node, port, mac: guard.mac, worker });
            }
        });
        self.post(worker)?.visit(move |worker| worker.attach(port, link))?;
        Ok(port)
    }

    /// Takes a port and its endpoint away.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn detach(&mut self, port: PortId) -> Result<(), ControlError> {
        let tables = self.tables.current();
        let entry = tables.ports.get(&port).ok_or(ControlError::Missing)?;
        self.post(entry.worker)?.visit(move |worker| worker.detach(port))?;
        let address = if let Role::Bridge(Some(guard)) = entry.role { Some(guard.address) } else { None };
        self.tables.publish(|tables| {
            if let Some(address) = address {
                tables.remove_endpoint(address);
            }
            tables.remove_port(port);
        });
        // Whoever gets the address next is another machine: no flow of the old one may reach it.
        match address {
            Some(address) => self.end_bindings(move |binding| binding.is_with(address)),
            None => Ok(()),
        }
    }

    /// Publishes a Service with exactly these keys. New flows see it at once; TCP flows stay with their backends, UDP
    /// flows of a backend that is no more choose again.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub fn set_service(
        &mut self,
        mut service: Service,
        frontends: Vec<Frontend>,
        node_ports: Vec<NodePort>,
    ) -> Result<(), ServiceError> {
        let id = service.id;
        let counted: &[Backend] = match service.scheduler {
            Scheduler::LeastConnection | Scheduler::WeightedLeastConnection => &service.backends,
            Scheduler::Random
            | Scheduler::RoundRobin
            | Scheduler::WeightedRoundRobin
            | Scheduler::SourceHash
            | Scheduler::DestinationHash
            | Scheduler::Maglev => &[],
        };
        service.counters = self.numbers.assign(id, counted, &self.loads).ok_or(ServiceError::TooMany)?;
        let row = |tables: &Tables| tables.services.get(id).cloned();
        let old = row(&self.tables.current());
        let mut result = Ok(());
        self.tables.publish(|tables| result = tables.set_service(service, frontends, node_ports));
        result?;
        let new = row(&self.tables.current());
        if let Some(old) = old {
            self.choose_again(old, new.as_ref())?;
        }
        Ok(())
    }

    /// Removes a Service; its TCP flows stay as [`Control::set_service`] says.
    ///
    /// # Errors
    /// [`ControlError::MailboxFull`].
    pub fn remove_service(&mut self, id: u32) -> Result<(), ControlError> {
        let old = self.tables.current().services.get(id).cloned();
        self.tables.publish(|tables| tables.remove_service(id));
        self.numbers.assign(id, &[], &self.loads);
        for post in &self.posts {
            post.visit(move |worker| worker.forget_service(id))?;
        }
        old.map_or(Ok(()), |old| self.choose_again(old, None))
    }

    /// Ends a Service's UDP flows to backends that it uses no more: their clients have no other way to find that out. Those
    /// of another Service with the same backend stay.
    fn choose_again(&self, old: Row, new: Option<&Row>) -> Result<(), ControlError> {
        let used = new.map(|row| row.service.used()).unwrap_or_default();
        let gone: Arc<[(Ipv4Addr, u16)]> =
            old.service.used().difference(&used).map(|&(_, address, port)| (address, port)).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let old = Arc::new(old);
        for post in &self.posts {
            let (gone, old) = (Arc::clone(&gone), Arc::clone(&old));
            post.visit(move |worker| worker.end_served(&gone, |binding| binding.is_of(&old)))?;
        }
        Ok(())
    }

    fn end_bindings(
        &self,
        ends: impl Fn(&Binding) -> bool + Clone + Send + 'static,
    ) -> Result<(), ControlError> {
        for post in &self.posts {
            let ends = ends.clone();
            post.visit(move |worker| worker.end_bindings(ends))?;
        }
        Ok(())
    }

    fn post(&self, worker: u8) -> Result<&Post, ControlError> {
        self.posts.get(usize::from(worker)).ok_or(ControlError::Missing)
    }
}

fn add_interface(node: &mut Node, index: u8, spec: &InterfaceSpec) {
    node.interfaces.push(Interface {
        name: Arc::from(format!("eth{index}")),
        port: PortId(u32::MAX),
        mac: MacAddress::for_ipv4(spec.address),
        address: spec.address,
        network: spec.network,
        mtu: spec.mtu,
    });
    node.routes.insert(spec.network, NextHop::Interface { index, gateway: None });
}

type Mesh = (Vec<Vec<Option<Outgoing>>>, Vec<Vec<Incoming>>, Vec<Incoming>);

/// Connects every worker with every other and with the control side, whose number is the last.
fn mesh(posts: &[Post]) -> Mesh {
    let workers = posts.len();
    let mut outgoing: Vec<Vec<Option<Outgoing>>> = Vec::new();
    let mut incoming: Vec<Vec<Incoming>> = (0..=workers).map(|_| Vec::new()).collect();
    for from in 0..workers {
        let mut ways = Vec::new();
        for (to, arrivals) in incoming.iter_mut().enumerate() {
            if to == from {
                ways.push(None);
                continue;
            }
            let (producer, consumer) = ring::ring(RING_LIMIT);
            let notices = Arc::new(ArrayQueue::new(RING_LIMIT));
            let alarm = posts.get(to).map(|post| Arc::clone(&post.alarm));
            ways.push(Some(Outgoing {
                parcels: producer,
                notices: Arc::clone(&notices),
                alarm,
                unannounced: false,
            }));
            arrivals.push(Incoming { parcels: consumer, notices });
        }
        outgoing.push(ways);
    }
    let homecoming = incoming.pop().unwrap_or_default();
    (outgoing, incoming, homecoming)
}
