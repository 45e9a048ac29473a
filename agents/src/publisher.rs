//! The single owner of the engine's control side: turns the cluster's changes into nodes, ports, pods and tables.
//!
//! Whoever brings a network up makes its underlay here (switches, nodes, routers, hosts) and then hands over every
//! [`Change`] of [`crate::cluster::watch_cluster`]. Nothing else writes the engine's tables.
//!
//! Invariants: a change is published before the next is looked at; a pod is known by its uid, so that its successor at
//! the same address is another one; what cannot be done is said and changes nothing.
//!
//! May depend on the engine and [`crate::cluster`].
//!
//! Read first: `engine/src/control.rs`.
//!
//! Above 400 lines because each part of the network is made in one place.

mod attached;

mod links;

mod real;

use attached::Attached;
pub use links::LinkPlace;
pub use real::MadePod;

use std::hash::{BuildHasher as _, RandomState};
use std::{collections::BTreeMap, error::Error, net::Ipv4Addr, path::PathBuf, sync::Arc};

use flatnet_engine::{
    control::{Control, ControlError, InterfaceSpec, NodeSpec, ServiceError},
    pod::{ContainerConfig, Image, Pod, PodConfig, PodError, Transport},
    tables::{Guard, NodeId, PortId},
    wire::MacAddress,
};
use flatnet_proxy::Ipv4Prefix;
use k8s_openapi::api::core::v1::Container;
use thiserror::Error;

use crate::{
    cluster::Change,
    kubelet::{Exit, Start},
    objects::{self, DEFAULT_NAMESPACE},
    pods::{PodKind, PodView, VIP_ANNOTATION},
    runtime::{
        Runtime, RuntimeError,
        link::{LinkConfig, LinkError},
        privileges::missing_capabilities,
    },
    seed,
    volumes::{self, HostError},
};

/// Why a part of the network cannot be made.
#[derive(Debug, Error)]
pub enum PublishError {
    /// The engine refused.
    #[error("{what} cannot be made")]
    Control {
        /// What was to be made.
        what: String,
        /// Why.
        #[source]
        source: ControlError,
    },
    /// A host's container does not start.
    #[error("{host}: a container does not start")]
    Container {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: PodError,
    },
    /// A pod is bound to a node that is not here.
    #[error("{pod}: node {node} is not known here")]
    Node {
        /// The pod, as `[NAMESPACE/]POD`.
        pod: String,
        /// The node's name.
        node: String,
    },
    /// A pod that is not simulated takes what this process has not.
    #[error(
        "{pod} is not simulated, for which this process lacks {missing}; simulated pods need no capabilities"
    )]
    Capabilities {
        /// The pod, as `[NAMESPACE/]POD`.
        pod: String,
        /// Those that it lacks.
        missing: String,
    },
    /// A real pod cannot be made.
    #[error("real pod {pod} cannot be made")]
    Runtime {
        /// The pod, as `[NAMESPACE/]POD`.
        pod: String,
        /// Why.
        #[source]
        source: RuntimeError,
    },
    /// What a pod is to be cannot be attached.
    #[error("pod {pod} cannot be attached")]
    Attach {
        /// The pod, as `[NAMESPACE/]POD`.
        pod: String,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// A link of something that is not simulated is as it is.
    #[error("the link of {0} is not simulated and cannot be changed")]
    RealLink(String),
    /// A Service is refused.
    #[error("{service} cannot be published")]
    Service {
        /// `namespace/name:port`.
        service: String,
        /// Why.
        #[source]
        source: ServiceError,
    },
    /// A link's end is not known.
    #[error("there is no node, router, host or pod {0}")]
    UnknownMachine(String),
    /// Two machines have no link.
    #[error("there is no link between {from} and {to}")]
    NoLink {
        /// One of them.
        from: String,
        /// The other.
        to: String,
    },
}

/// Where something that can run programs is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its port.
    pub port: PortId,
    /// The worker that polls it.
    pub worker: u8,
    /// Its address.
    pub address: Ipv4Addr,
    /// The node it is on; none for a host.
    pub node: Option<Arc<str>>,
    /// Whether its stack and programs are ours.
    pub is_simulated: bool,
}

/// A host outside the cluster, to be made.
#[derive(Clone, Debug)]
pub struct HostSpec {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// The network it is on.
    pub network: Ipv4Prefix,
    /// Its gateway.
    pub gateway: Option<Ipv4Addr>,
    /// What it runs.
    pub image: Image,
}

/// Where the chance of pods and hosts comes from.
#[derive(Debug)]
enum Seeds {
    /// The topology's seed: the same run gives the same bytes.
    Known(u64),
    /// A keyed one-way function: who finds out a pod's seed learns nothing of another's.
    Secret(RandomState),
}

impl Seeds {
    fn of(&self, what: &str, name: &str) -> u64 {
        match self {
            Self::Known(seed) => seed::hash(*seed, &[what, name]),
            Self::Secret(state) => state.hash_one((what, name)),
        }
    }
}

/// The owner of the engine's control side.
#[derive(Debug)]
pub struct Publisher {
    /// The engine's control side, to visit workers and read ledgers.
    pub control: Control,
    seeds: Seeds,
    workers: u8,
    next_worker: u8,
    /// Volumes that could not be made, by pod.
    missing: BTreeMap<String, Vec<(String, HostError)>>,
    switches: BTreeMap<Ipv4Prefix, NodeId>,
    nodes: BTreeMap<Arc<str>, NodeId>,
    routers: BTreeMap<Arc<str>, NodeId>,
    /// The routers that serve VIPs.
    directors: Vec<NodeId>,
    /// Ports at switches by who is behind them; none of a node that is on the host's own network.
    stations: BTreeMap<Arc<str>, Vec<(NodeId, PortId, u8)>>,
    places: BTreeMap<String, Place>,
    pods: BTreeMap<u64, (PortId, String)>,
    /// The pods that are real.
    pub runtime: Runtime,
    /// Ports of those that were told to stop, by uid.
    stopping: BTreeMap<String, PortId>,
    /// By uid.
    attached: BTreeMap<String, Attached>,
    /// What differs from perfect links, by the ends of each direction.
    links: BTreeMap<(String, String), links::Settings>,
}

impl Publisher {
    /// Takes the control side of an engine without nodes; real pods' files go below the directory. Pods' sequence numbers and hashed
    /// tables come from the seed, or from the system where there is none: then nobody can know them.
    pub fn new(control: Control, seed: Option<u64>, directory: PathBuf) -> Self {
        Self {
            workers: control.posts.len() as u8,
            control,
            seeds: seed.map_or_else(|| Seeds::Secret(RandomState::new()), Seeds::Known),
            next_worker: 0,
            missing: BTreeMap::new(),
            switches: BTreeMap::new(),
            nodes: BTreeMap::new(),
            routers: BTreeMap::new(),
            directors: Vec::new(),
            stations: BTreeMap::new(),
            places: BTreeMap::new(),
            pods: BTreeMap::new(),
            runtime: Runtime::new(directory),
            stopping: BTreeMap::new(),
            attached: BTreeMap::new(),
            links: BTreeMap::new(),
        }
    }

    /// Returns the engine's number of a node, router or switch by name; a switch has its network's.
    pub fn node(&self, name: &str) -> Option<NodeId> {
        self.nodes.get(name).or_else(|| self.routers.get(name)).copied().or_else(|| {
            let network: Ipv4Prefix = name.parse().ok()?;
            self.switches.get(&network).copied()
        })
    }

    /// Lists all nodes, routers and switches by name.
    pub fn nodes(&self) -> Vec<(String, NodeId)> {
        let named = self.nodes.iter().chain(&self.routers).map(|(name, &id)| (name.to_string(), id));
        named.chain(self.switches.iter().map(|(network, &id)| (network.to_string(), id))).collect()
    }

    /// Finds a pod by `[NAMESPACE/]POD` or a host by name.
    pub fn place(&self, name: &str) -> Option<&Place> {
        let (namespace, name) = name.split_once('/').unwrap_or((DEFAULT_NAMESPACE, name));
        self.places.get(&objects::pod_name(namespace, name))
    }

    /// Lists all pods, as `[NAMESPACE/]POD`, and hosts.
    pub fn places(&self) -> impl Iterator<Item = (&str, &Place)> {
        self.places.iter().map(|(name, place)| (name.as_str(), place))
    }

    /// Makes a cluster's node and connects it to its network.
    ///
    /// # Errors
    /// [`PublishError::Control`].
    pub fn add_node(&mut self, spec: &NodeSpec) -> Result<(), PublishError> {
        let failed = |source| PublishError::Control { what: format!("node {}", spec.name), source };
        let switch = self.switch(spec.network)?;
        let node = self.control.add_node(spec).map_err(failed)?;
        self.nodes.insert(Arc::clone(&spec.name), node);
        self.connect(&spec.name, node, 0, switch)
    }

    /// Makes a router and connects it to all its networks.
    ///
    /// # Errors
    /// [`PublishError::Control`].
    pub fn add_router(&mut self, name: &str, interfaces: &[InterfaceSpec]) -> Result<(), PublishError> {
        let failed = |source| PublishError::Control { what: format!("router {name}"), source };
        let router = self.control.add_router(name, interfaces).map_err(failed)?;
        let name: Arc<str> = Arc::from(name);
        self.routers.insert(Arc::clone(&name), router);
        for (index, interface) in interfaces.iter().enumerate() {
            let switch = self.switch(interface.network)?;
            self.connect(&name, router, index as u8, switch)?;
        }
        Ok(())
    }

    /// Makes a router an LVS director: it serves VIPs, and reaches pods through their nodes as leases tell.
    ///
    /// # Errors
    /// [`PublishError::Control`].
    pub fn make_director(&mut self, name: &str) -> Result<(), PublishError> {
        let failed = |source| PublishError::Control { what: format!("director {name}"), source };
        let router = self.routers.get(name).copied().ok_or_else(|| failed(ControlError::Missing))?;
        self.control.serve_on(router).map_err(failed)?;
        self.directors.push(router);
        Ok(())
    }

    fn tell_directors(&mut self, subnet: Ipv4Prefix, node: Option<Ipv4Addr>) -> Result<(), PublishError> {
        let failed =
            |source| PublishError::Control { what: format!("a director's route to {subnet}"), source };
        let mut directors = self.directors.iter();
        directors.try_for_each(|&router| self.control.set_route(router, subnet, node)).map_err(failed)
    }

    /// Makes a host and connects it to its network.
    ///
    /// # Errors
    /// [`PublishError::Control`].
    pub fn add_host(&mut self, spec: &HostSpec) -> Result<(), PublishError> {
        let switch = self.switch(spec.network)?;
        let mut host = Pod::new(PodConfig {
            name: spec.name.clone(),
            namespace: String::new(),
            mac: MacAddress::for_ipv4(spec.address),
            address: spec.address,
            prefix_length: spec.network.length(),
            gateway: spec.gateway,
            mtu: 1500,
            seed: self.seeds.of("host", &spec.name),
            ..PodConfig::default()
        });
        let container = ContainerConfig {
            name: "main".into(),
            image: spec.image,
            ports: Vec::new(),
            args: Vec::new(),
            mounts: Vec::new(),
        };
        host.start_container(container)
            .map_err(|source| PublishError::Container { host: spec.name.clone(), source })?;
        let worker = self.worker();
        let failed = |source| PublishError::Control { what: format!("host {}", spec.name), source };
        let port = self.control.attach_pod(switch, &spec.name, None, worker, host).map_err(failed)?;
        self.stations.entry(Arc::from(&*spec.name)).or_default().push((switch, port, worker));
        let place = Place { port, worker, address: spec.address, node: None, is_simulated: true };
        self.places.insert(spec.name.clone(), place);
        Ok(())
    }

    fn visit(
        &self,
        worker: u8,
        visit: impl FnOnce(&mut flatnet_engine::worker::Worker) + Send + 'static,
    ) -> Result<(), PublishError> {
        let failed =
            |source: ControlError| PublishError::Control { what: format!("worker {worker}"), source };
        let post = self.control.posts.get(usize::from(worker)).ok_or(failed(ControlError::Missing))?;
        post.visit(visit).map(drop).map_err(|full| failed(full.into()))
    }

    fn switch(&mut self, network: Ipv4Prefix) -> Result<NodeId, PublishError> {
        if let Some(&switch) = self.switches.get(&network) {
            return Ok(switch);
        }
        let failed = |source| PublishError::Control { what: format!("network {network}"), source };
        let switch = self.control.add_switch(&network.to_string()).map_err(failed)?;
        self.switches.insert(network, switch);
        Ok(switch)
    }

    fn connect(
        &mut self,
        name: &Arc<str>,
        node: NodeId,
        index: u8,
        switch: NodeId,
    ) -> Result<(), PublishError> {
        let worker = self.worker();
        let failed = |source| PublishError::Control { what: format!("the cable of {name}"), source };
        let (_, port) = self.control.connect(node, index, switch, worker).map_err(failed)?;
        self.stations.entry(Arc::clone(name)).or_default().push((switch, port, worker));
        Ok(())
    }

    /// Deals out workers in turn.
    fn worker(&mut self) -> u8 {
        let worker = self.next_worker;
        self.next_worker = (worker + 1) % self.workers.max(1);
        worker
    }

    /// Publishes one change; returns how the containers of a pod that was placed started, in order. A real pod is placed later.
    ///
    /// # Errors
    /// [`PublishError`]: what could not be done; the rest of the network goes on.
    pub fn apply(&mut self, change: &Change) -> Result<Option<Vec<Start>>, PublishError> {
        match change {
            Change::Lease { subnet, holder } => {
                self.control.tables.publish(|tables| tables.set_lease(*subnet, Some(*holder)));
                self.tell_directors(*subnet, Some(holder.public_ip))?;
            }
            Change::LeaseRemoved { subnet } => {
                self.control.tables.publish(|tables| tables.set_lease(*subnet, None));
                self.tell_directors(*subnet, None)?;
            }
            Change::Pod(pod) => {
                let is_known = self.pods.contains_key(&pod.identity) || self.runtime.has(&pod.uid);
                return if is_known || pod.host_network { Ok(None) } else { self.add_pod(pod) };
            }
            Change::PodRemoved(pod) => self.remove_pod(pod)?,
            Change::Service { service, frontends, node_ports } => {
                self.control
                    .set_service(service.clone(), frontends.clone(), node_ports.clone())
                    .map_err(|source| PublishError::Service { service: service.name.to_string(), source })?;
            }
            Change::ServiceRemoved { id, name } => {
                let failed =
                    |source| PublishError::Control { what: format!("the removal of {name}"), source };
                self.control.remove_service(*id).map_err(failed)?;
            }
            // The network's own nodes are made with their leases; warnings are for people.
            Change::Node { .. } | Change::NodeRemoved { .. } | Change::Warning(_) => {}
        }
        Ok(None)
    }

    fn node_of(&self, view: &PodView, name: &str) -> Result<NodeId, PublishError> {
        let missing = || PublishError::Node { pod: name.to_owned(), node: view.node.clone() };
        self.nodes.get(view.node.as_str()).copied().ok_or_else(missing)
    }

    fn add_pod(&mut self, view: &Arc<PodView>) -> Result<Option<Vec<Start>>, PublishError> {
        let name = objects::pod_name(&view.namespace, &view.name);
        let node = self.node_of(view, &name)?;
        let missing = missing_capabilities(view);
        if !missing.is_empty() {
            return Err(PublishError::Capabilities { pod: name, missing: missing.join(" and ") });
        }
        match &view.kind {
            PodKind::Simulated => {}
            PodKind::Real => return self.order_real_pod(view, node, name).map(|()| None),
            PodKind::Attached(attachment) => {
                return self.add_attached_pod(view, node, name, attachment).map(Some);
            }
        }
        let LinkConfig { mac, address, prefix_length, gateway, mtu } = self.link_config(view, node);
        let vip = view.annotations.get(VIP_ANNOTATION).and_then(|text| text.parse().ok());
        let (volumes, missing) = volumes::make(&view.volumes);
        let mut pod = Pod::new(PodConfig {
            name: view.name.clone(),
            namespace: view.namespace.clone(),
            mac,
            address,
            vip,
            prefix_length,
            gateway,
            mtu,
            seed: self.seeds.of("pod", &view.uid),
            volumes,
            ..PodConfig::default()
        });
        self.missing.insert(name.clone(), missing);
        // What cannot start leaves the others alone: the pod is there, but not ready.
        let start = |container: &Container| {
            self.without_volume(&name, container).unwrap_or_else(|| start_container(&mut pod, container))
        };
        let starts = view.containers.iter().map(start).collect();
        let worker = self.worker();
        let guard = Some(Guard { mac, address, vip });
        let failed = |source| PublishError::Control { what: format!("pod {name}"), source };
        let port = self.control.attach_pod(node, &name, guard, worker, pod).map_err(failed)?;
        self.enter(view, &name, (port, worker), true);
        self.impair_pod(&name, &view.node)?;
        Ok(Some(starts))
    }

    /// Notes where a pod is.
    fn enter(&mut self, view: &PodView, name: &str, (port, worker): (PortId, u8), is_simulated: bool) {
        self.pods.insert(view.identity, (port, name.to_owned()));
        let node = Some(Arc::from(&*view.node));
        self.places
            .insert(name.to_owned(), Place { port, worker, address: view.address, node, is_simulated });
    }

    fn remove_pod(&mut self, view: &PodView) -> Result<(), PublishError> {
        self.attached.remove(&view.uid);
        let Some((port, name)) = self.pods.remove(&view.identity) else {
            // One that is being made.
            self.runtime.stop(&view.uid);
            return Ok(());
        };
        let has_processes = self.runtime.has(&view.uid) && self.runtime.lost(&view.uid).is_none();
        self.runtime.stop(&view.uid);
        if has_processes {
            self.stopping.insert(view.uid.clone(), port);
        } else {
            let failed =
                |source| PublishError::Control { what: format!("the removal of pod {name}"), source };
            self.control.detach(port).map_err(failed)?;
        }
        if let (Some(place), Some(&node)) = (self.places.remove(&name), self.nodes.get(&*view.node)) {
            self.set_link_mtu(node, place.address, None);
        }
        self.missing.remove(&name);
        Ok(())
    }

    /// Says why a container cannot start, if it mounts a volume that could not be made with its pod (`[NAMESPACE/]POD`).
    pub fn without_volume(&self, pod: &str, container: &Container) -> Option<Start> {
        let missing = self.missing.get(pod)?;
        let mut mounts = container.volume_mounts.iter().flatten();
        let (name, error) = mounts.find_map(|mount| missing.iter().find(|(name, _)| *name == mount.name))?;
        let why = error.source().map(|source| format!(": {source}")).unwrap_or_default();
        Some(Start::Failed(Exit { code: 128, message: format!("volume {name}: {error}{why}") }))
    }
}

/// Starts a container in a pod.
pub fn start_container(pod: &mut Pod, container: &Container) -> Start {
    let name = container.image.as_deref().unwrap_or_default();
    let Some(image) = Image::find(name) else {
        let known: Vec<&str> = Image::names().collect();
        return Start::NoImage {
            message: format!("image {name} is not known; there are {}", known.join(", ")),
        };
    };
    match pod.start_container(container_config(container, image)) {
        Ok(()) => Start::Runs,
        Err(error) => Start::Failed(Exit { code: exit_code(&error), message: error.to_string() }),
    }
}

/// What a program that cannot start would have exited with, or what Kubernetes reports where none was started.
fn exit_code(error: &PodError) -> i32 {
    match error {
        PodError::AddressInUse { .. } => 1,
        PodError::Dead { .. }
        | PodError::ContainerExists { .. }
        | PodError::NoSuchContainer { .. }
        | PodError::NoSuchVolume { .. }
        | PodError::BadSubPath { .. }
        | PodError::BadArgument { .. } => 128,
    }
}

fn container_config(container: &Container, image: Image) -> ContainerConfig {
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    let ports = container.ports.iter().flatten().filter_map(|port| {
        let number = u16::try_from(port.container_port).ok()?;
        let transport = match port.protocol.as_deref() {
            Some("UDP") => Transport::Udp,
            Some("TCP") | None => Transport::Tcp,
            Some(_) => return None,
        };
        Some((transport, number))
    });
    ContainerConfig {
        name: container.name.clone(),
        image,
        ports: ports.collect(),
        args: words.cloned().collect(),
        mounts: volumes::mounts(container),
    }
}
