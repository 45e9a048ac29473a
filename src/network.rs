//! A network's control plane in one process: the store, the agents, the publisher.
//!
//! [`Network::bring_up`] writes a topology's objects into the store; the agents do the rest: claim leases, bind pods,
//! give addresses, collect endpoints; the publisher carries every change to the engine. A driver calls
//! [`Network::settle`] until nothing changes any more.
//!
//! Invariants: only objects decide; what is not in the store is not on the network. One thread runs all agents.
//!
//! May depend on agents and engine. Read first: `docs/architecture.md`, "Objects first".

mod cluster;
mod containers;
mod error;
mod kept;
mod leases;
mod shared;
mod subnet_file;
mod underlay;
mod uplink;

pub use cluster::{Cluster, ClusterError};
pub use containers::Restart;
pub use error::NetworkError;
pub use shared::{Joining, Shared, SharedError};
pub(crate) use shared::{MARGIN, Part, claim};
pub use underlay::own_interface;
pub use uplink::UplinkFault;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::mem::{Discriminant, discriminant};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use flatnet_agents::cluster::{Change, watch_cluster};
use flatnet_agents::controllers::address::Addresses;
use flatnet_agents::controllers::bind::Binder;
use flatnet_agents::controllers::endpoints::Endpoints;
use flatnet_agents::controllers::lifecycle::Lifecycle;
use flatnet_agents::controllers::service_ip::ServiceAddresses;
use flatnet_agents::controllers::{self, Warning};
use flatnet_agents::host::firewall::Rules;
use flatnet_agents::kubelet::{self, Kubelet};
use flatnet_agents::lease::{self, DEFAULT_PREFIX, NetworkConfig};
use flatnet_agents::node::{NodeError, ensure_config};
use flatnet_agents::objects::{self, Object, ObjectError, pod_name};
use flatnet_agents::pods::PodView;
use flatnet_agents::publisher::Publisher;
use flatnet_agents::{Embedded, NetworkStore, Store, StoreError};
use flatnet_engine::clock::Instant;
use flatnet_engine::tunnel::Encapsulation;
use flatnet_proxy::Ipv4Prefix;
use futures::executor::LocalPool;
use futures::future::{AbortHandle, Abortable};
use futures::task::LocalSpawnExt;

use crate::topology::{Routes, Topology};

/// How long agents that the store failed rest.
const RETRY: Duration = Duration::from_secs(1);

/// A network's control plane.
pub struct Network {
    /// Everything that is known.
    pub store: NetworkStore,
    /// The way to the engine.
    pub publisher: Publisher,
    /// What people should know, oldest first.
    pub warnings: Vec<String>,
    /// Whether that was said.
    lacks_capabilities: bool,
    pool: LocalPool,
    changes: Rc<RefCell<VecDeque<Change>>>,
    kubelet: Rc<RefCell<Kubelet>>,
    /// Agents that the store failed, and how.
    stopped: Rc<RefCell<Vec<(Agent, StoreError)>>>,
    /// When they are started again, and the store is told the time.
    retry: Instant,
    /// When it is looked next whether what somebody else made is there.
    next_look: Instant,
    /// What the store said when it last failed.
    store_failed: Option<String>,
    service_network: Ipv4Prefix,
    backend: Option<Encapsulation>,
    seed: u64,
    /// The leases of nodes that are elsewhere, which nobody renews.
    routes: Routes,
    /// Its nodes in a cluster whose leases lie in an etcd.
    shared: Vec<shared::Part>,
    /// Its part in a cluster whose objects lie there, too.
    membership: Option<cluster::Membership>,
    /// Ends the agents that decide for all.
    deciding: RefCell<HashMap<Discriminant<Agent>, AbortHandle>>,
    /// What keeps the host from answering for nodes.
    rules: Vec<Rules>,
}

/// Something that runs on the store until the store fails it.
enum Agent {
    Bind,
    Addresses,
    Endpoints,
    ServiceAddresses,
    Lifecycle,
    Cluster,
    /// Copies leases from an etcd, for the node of this number.
    Leases(usize),
    /// Reports what became of a pod.
    Kubelet(Arc<PodView>),
}

impl Agent {
    /// Those that decide for all nodes, and so run once.
    const DECIDING: [Self; 5] =
        [Self::Bind, Self::Addresses, Self::Endpoints, Self::ServiceAddresses, Self::Lifecycle];

    /// Whether it is one of those.
    fn decides(&self) -> bool {
        Self::DECIDING.iter().any(|other| discriminant(self) == discriminant(other))
    }
}

/// Where the objects of a network lie.
pub enum Objects {
    /// In this process.
    Own(Embedded),
    /// In an etcd, for several processes.
    Cluster(Cluster),
}

impl Network {
    /// Brings a topology up on an engine without nodes; the pods follow as the agents settle. What the store holds from
    /// before stays, unless the topology says otherwise.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn bring_up(
        topology: &Topology,
        publisher: Publisher,
        objects: Objects,
    ) -> Result<Self, NetworkError> {
        let (store, cluster) = match objects {
            Objects::Own(store) => (store.into(), None),
            Objects::Cluster(cluster) => (cluster.store(), Some(cluster)),
        };
        let mut network = Self {
            store,
            publisher,
            warnings: Vec::new(),
            lacks_capabilities: false,
            pool: LocalPool::new(),
            changes: Rc::default(),
            kubelet: Rc::default(),
            stopped: Rc::default(),
            retry: Instant::ZERO,
            next_look: Instant::ZERO,
            store_failed: None,
            service_network: topology.service_network,
            backend: topology.backend,
            seed: topology.seed,
            routes: Routes::new(),
            shared: Vec::new(),
            membership: cluster.map(Into::into),
            deciding: RefCell::default(),
            rules: Vec::new(),
        };
        network.add_underlay(topology)?;
        let config = NetworkConfig::new(topology.pod_network)
            .map(|config| config.with_backend(topology.backend, topology.port))
            .map_err(|source| NodeError::Config { key: lease::config_key(DEFAULT_PREFIX), source });
        let (store, pool) = (network.store.clone(), &mut network.pool);
        let written =
            config.and_then(|config| pool.run_until(ensure_config(&store, DEFAULT_PREFIX, &config)));
        written.map_err(|source| NetworkError::Config { network: topology.pod_network, source })?;
        let every = network.membership.as_ref().map(|membership| membership.every.clone());
        network.pool.run_until(kept::forget_nodes(&store, DEFAULT_PREFIX, topology, every.as_deref()))?;
        network.set_routes(topology.routes.clone())?;
        for node in &topology.nodes {
            network.join(topology, node)?;
        }
        for link in &topology.links {
            network.publisher.configure_link(&link.from, &link.to, link.impairment)?;
        }
        network.start(Agent::Cluster);
        if network.membership.is_none() {
            Agent::DECIDING.into_iter().for_each(|agent| network.start(agent));
        }
        for service in &topology.services {
            network.pool.run_until(kept::ensure(&store, service, topology.seed))?;
        }
        for slice in &topology.slices {
            network.pool.run_until(kept::ensure(&store, slice, topology.seed))?;
        }
        for pod in &topology.pods {
            network.pool.run_until(kept::ensure(&store, pod, topology.seed))?;
        }
        Ok(network)
    }

    /// Starts an agent; it runs until the store fails it.
    fn start(&self, agent: Agent) {
        let warn_to = Rc::clone(&self.changes);
        let warn = move |warning: Warning| warn_to.borrow_mut().push_back(Change::Warning(warning));
        let store = if agent.decides() { self.deciding_store() } else { Some(self.store.clone()) };
        let (Some(store), changes) = (store, Rc::clone(&self.changes)) else { return };
        match &agent {
            Agent::Bind => {
                self.spawn(agent, controllers::run(store, Binder::new(DEFAULT_PREFIX, self.backend), warn))
            }
            Agent::Addresses => {
                self.spawn(agent, controllers::run(store, Addresses::new(DEFAULT_PREFIX, self.backend), warn))
            }
            Agent::Endpoints => self.spawn(agent, controllers::run(store, Endpoints::default(), warn)),
            Agent::ServiceAddresses => {
                let controller = ServiceAddresses::new(self.service_network);
                self.spawn(agent, controllers::run(store, controller, warn));
            }
            // Of a network in one process all nodes are heard of.
            Agent::Lifecycle if self.membership.is_none() => {}
            Agent::Lifecycle => self.spawn(agent, controllers::run(store, Lifecycle::default(), warn)),
            Agent::Cluster => {
                let backend = self.backend;
                self.spawn(agent, async move {
                    let sink = |change| changes.borrow_mut().push_back(change);
                    watch_cluster(&store, DEFAULT_PREFIX, backend, sink).await
                });
            }
            Agent::Leases(number) => self.start_leases(*number),
            Agent::Kubelet(pod) => {
                let (pod, kubelet) = (Arc::clone(pod), Rc::clone(&self.kubelet));
                self.spawn(agent, async move {
                    loop {
                        let status = |pod: &_| kubelet.borrow().status(pod);
                        match kubelet::report(&store, &pod.namespace, &pod.name, status).await {
                            Err(ObjectError::Conflict { .. }) => {}
                            Err(ObjectError::Store(error)) => return Err(error),
                            Ok(_) | Err(_) => return Ok(()),
                        }
                    }
                });
            }
        }
    }

    fn spawn<R>(&self, agent: Agent, task: impl Future<Output = Result<R, StoreError>> + 'static) {
        let stopped = Rc::clone(&self.stopped);
        let (handle, registration) = AbortHandle::new_pair();
        if agent.decides() {
            self.deciding.borrow_mut().insert(discriminant(&agent), handle);
        }
        // It fails only when the pool is gone, and then there is nothing to run.
        let _ = self.pool.spawner().spawn_local(async move {
            if let Ok(Err(error)) = Abortable::new(task, registration).await {
                stopped.borrow_mut().push((agent, error));
            }
        });
    }

    /// Runs the agents to quiescence and carries their changes to the engine; tells whether anything happened.
    pub fn settle(&mut self, now: Instant) -> bool {
        if now >= self.retry {
            self.restart(now);
        }
        self.keep_membership(now);
        self.renew(now);
        let mut happened = false;
        loop {
            self.pool.run_until_stalled();
            if self.report_pods() {
                happened = true;
                continue;
            }
            let changes: Vec<Change> = self.changes.borrow_mut().drain(..).collect();
            if changes.is_empty() {
                return happened;
            }
            happened = true;
            for change in &changes {
                self.carry(change, now);
            }
        }
    }

    /// Carries a change to the engine, and to whoever looks after pods.
    fn carry(&mut self, change: &Change, now: Instant) {
        if matches!(change, Change::Pod(pod) | Change::PodRemoved(pod) if self.is_elsewhere(pod)) {
            return;
        }
        match (self.publisher.apply(change), change) {
            (Ok(Some(starts)), Change::Pod(pod)) => {
                self.warn_of_starts(pod, &starts);
                self.kubelet.borrow_mut().adopt(pod, starts, now);
            }
            (Ok(_), _) => {}
            (Err(error), Change::Pod(pod)) => self.give_up(pod, &error, now),
            (Err(error), _) => self.warnings.push(with_sources(&error)),
        }
        match change {
            Change::PodRemoved(pod) => {
                self.kubelet.borrow_mut().forget(&pod_name(&pod.namespace, &pod.name));
            }
            Change::Warning(warning) => {
                self.warnings.push(format!("{}: {}: {}", warning.controller, warning.key, warning.text));
            }
            Change::Lease { subnet, holder } => self.warn_of_distance(*subnet, holder.public_ip),
            Change::LeaseRemoved { .. }
            | Change::Node { .. }
            | Change::NodeRemoved { .. }
            | Change::Pod(_)
            | Change::Service { .. }
            | Change::ServiceRemoved { .. } => {}
        }
    }

    /// Says to the store what time it is and starts agents again that it failed, which may have been because it could
    /// not write.
    fn restart(&mut self, now: Instant) {
        let late = self.store.own().advance(now);
        let stopped = self.stopped.take();
        let failed = late.err().or_else(|| stopped.first().map(|(_, error)| error.clone()));
        if let Some(error) = failed {
            self.retry = now + RETRY;
            let text = error.to_string();
            if self.store_failed.as_ref() != Some(&text) {
                self.warnings.push(text.clone());
            }
            self.store_failed = Some(text);
        } else {
            self.store_failed = None;
        }
        stopped.into_iter().for_each(|(agent, _)| self.start(agent));
    }

    /// Deletes an object; its pods and endpoints follow.
    ///
    /// # Errors
    /// [`NetworkError::Store`].
    pub fn delete<T: Object>(&mut self, namespace: &str, name: &str) -> Result<bool, NetworkError> {
        let (store, key) = (self.store.clone(), objects::key::<T>(namespace, name));
        Ok(self.pool.run_until(async move {
            let existed = store.get(&key).await?.is_some();
            if existed {
                store.delete(&key).await?;
            }
            Ok::<_, StoreError>(existed)
        })?)
    }

    /// Returns where all chance comes from.
    pub fn seed(&self) -> u64 {
        self.seed
    }
}

/// Joins an error and its sources into one line.
pub fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
