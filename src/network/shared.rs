//! A node's part in a cluster whose leases lie in an etcd, flanneld's among them.
//!
//! [`Shared::join`] claims the node's subnet before the network comes up; [`Network::share`] then has the others' leases
//! copied into the network's own store, from which they become routes as any do, and the own one renewed.
//!
//! Invariants: nothing but the own lease is written to the etcd, and that only as it was read; while the etcd is away, all leases stay
//! as they were; a lease that is lost is claimed again, never overwritten.
//!
//! May depend on agents. Read first: flannel's `pkg/subnet/etcd`; `docs/adr/0034-leases-in-etcd-objects-here.md`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use flatnet_agents::lease::admit::{Admission, Refusal, Verdict};
use flatnet_agents::lease::allocate::Wish;
use flatnet_agents::lease::{self, Attributes, DEFAULT_PREFIX, Lease, NetworkConfig};
use flatnet_agents::node::{NodeError, NodeOptions, claim_for, ensure_config, read_config};
use flatnet_agents::store::etcd::{OpenError, Options};
use flatnet_agents::store::{Followed, Follower, LeaseId};
use flatnet_agents::{Embedded, Etcd, Store, StoreError};
use flatnet_engine::clock::Instant;
use flatnet_engine::tunnel::Encapsulation;
use flatnet_proxy::Ipv4Prefix;
use futures::StreamExt as _;
use futures::executor::block_on;
use futures::task::LocalSpawnExt as _;

use super::{Agent, Network, subnet_file, with_sources};

/// How long a lease lasts, as flannel's.
const TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// How long before its end it is renewed, as flannel does.
const MARGIN: Duration = Duration::from_secs(60 * 60);
/// How long it takes until a renewal or a claim that failed is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// Why a node has no part in the cluster.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum SharedError {
    /// The etcd cannot be asked.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Nobody has said what the cluster is.
    #[error("the etcd has no configuration of a cluster at {0}")]
    #[diagnostic(help(
        "etcdctl put {0} '{{\"Network\":\"10.1.0.0/16\"}}' writes one, and so does a node with --pod-network"
    ))]
    NoConfig(String),
    /// No subnet can be had.
    #[error("the cluster in etcd gives this node no pod subnet")]
    Claim(#[source] NodeError),
    /// Nodes reach each other in a way that is not known here.
    #[error("the cluster in etcd uses backend {0}; udp, vxlan and host-gw are known here")]
    Backend(String),
    /// Packets that go as they are cannot be translated on their way.
    #[error("with host-gw other nodes must reach this one at its own address {address}, not at {public_ip}")]
    #[diagnostic(help("leave out --public-ip, or have the cluster use udp or vxlan"))]
    Translated {
        /// Where they are to reach it.
        public_ip: Ipv4Addr,
        /// Its own address.
        address: Ipv4Addr,
    },
}

/// A node's subnet in a cluster.
#[derive(Debug)]
pub struct Shared {
    /// What the cluster is.
    pub config: NetworkConfig,
    /// What the node has of it.
    pub lease: Lease,
    /// Where other programs read that, as flannel's subnet.env, and whether pods have MASQUERADE.
    pub subnet_file: Option<(PathBuf, bool)>,
    store: Etcd,
    options: NodeOptions,
    margin: Duration,
    held: Option<LeaseId>,
}

/// How a node takes part.
#[derive(Clone, Copy, Debug)]
pub struct Joining<'a> {
    /// Where the cluster's keys lie.
    pub prefix: &'a str,
    /// The node's own address.
    pub address: Ipv4Addr,
    /// The one at which other nodes reach it.
    pub public_ip: Ipv4Addr,
    /// The subnet that it is to have; any without it.
    pub wish: Option<Ipv4Prefix>,
    /// What is written if there is no configuration, and else must be the one that is there.
    pub wanted: Option<&'a NetworkConfig>,
    /// How long before its end the lease is renewed; an hour, as flannel does, without it.
    pub margin: Option<Duration>,
}

impl Shared {
    /// Claims a subnet for a node.
    ///
    /// # Errors
    /// [`SharedError`].
    pub fn join(etcd: &Options, joining: &Joining<'_>) -> Result<Self, SharedError> {
        let Joining { prefix, address, public_ip, wish, wanted, margin } = *joining;
        let store = Etcd::open(etcd)?;
        let claimed = block_on(async {
            if let Some(wanted) = wanted {
                ensure_config(&store, prefix, wanted).await?;
            }
            let (config, _) = read_config(&store, prefix).await?;
            let Some(encapsulation) = encapsulation(&config) else {
                return Ok(Err(SharedError::Backend(config.backend)));
            };
            if encapsulation.is_none() && public_ip != address {
                return Ok(Err(SharedError::Translated { public_ip, address }));
            }
            let options = NodeOptions {
                prefix: prefix.into(),
                public_ip,
                wish: wish.map_or(Wish::Any { previous: None }, Wish::Exactly),
                encapsulation,
                seed: etcd.seed,
            };
            let (lease, held) = claim_for(&store, &options, Some(TTL)).await?;
            Ok(Ok((config, options, lease, held)))
        });
        let failed = |error| match error {
            NodeError::NoConfig { key } => SharedError::NoConfig(key),
            error @ (NodeError::Config { .. }
            | NodeError::OtherConfig { .. }
            | NodeError::Allocate(_)
            | NodeError::Raced
            | NodeError::Store(_)) => SharedError::Claim(error),
        };
        let (config, mut options, lease, held) = claimed.map_err(failed)??;
        // Pods have addresses of it: it is this one or none from now on.
        options.wish = Wish::Exactly(lease.subnet);
        let margin = margin.unwrap_or(MARGIN);
        Ok(Self { config, lease, subnet_file: None, store, options, margin, held })
    }
}

/// How packets are carried, if that is known.
fn encapsulation(config: &NetworkConfig) -> Option<Option<Encapsulation>> {
    match config.backend.as_str() {
        "udp" => Some(Some(Encapsulation::Udp)),
        "vxlan" => Some(Some(Encapsulation::Vxlan { vni: config.vni.unwrap_or(lease::config::DEFAULT_VNI) })),
        "host-gw" => Some(None),
        _ => None,
    }
}

/// What is known of the own lease.
#[derive(Debug)]
struct Own {
    held: Option<LeaseId>,
    lost: bool,
    /// What became of the last attempt to renew or claim it, or nothing yet.
    tried: Option<Result<Option<LeaseId>, String>>,
    busy: bool,
    /// When it is renewed, or claimed if it is lost.
    next: Instant,
    /// When it runs out, as far as is known here, if it does.
    until: Option<Instant>,
    /// Whether all leases have been heard of once.
    heard: bool,
    warnings: Vec<String>,
}

impl Own {
    /// Says why a key is left alone.
    fn warn(&mut self, key: &str, admission: &Admission) {
        let why = admission.refusal(key).map(|why| with_sources(why));
        self.warnings.push(format!("etcd: {key}: {}", why.unwrap_or_default()));
    }
}

/// A cluster as the network keeps it.
pub(super) struct Part {
    store: Etcd,
    options: NodeOptions,
    network: Ipv4Prefix,
    subnet: Ipv4Prefix,
    /// How long before its end the lease is renewed.
    margin: Duration,
    own: Rc<RefCell<Own>>,
}

impl Network {
    /// Follows a cluster's leases, and renews the own one.
    pub fn share(&mut self, shared: Shared, now: Instant) {
        let Shared { config, lease, subnet_file, store, options, margin, held } = shared;
        if let Some((path, masquerades)) = subnet_file {
            let tables = self.publisher.control.tables.current();
            let bridges =
                self.publisher.nodes().into_iter().filter_map(|(_, id)| tables.node(id)?.bridge.as_ref());
            let mtu = bridges.map(|bridge| bridge.mtu).next().unwrap_or_default();
            if let Err(error) = subnet_file::write(&path, config.network, lease.subnet, mtu, masquerades) {
                self.warnings.push(format!("{} cannot be written: {error}", path.display()));
            }
        }
        let (next, until) = (now + (TTL - margin), held.map(|_| now + TTL));
        let (heard, warnings) = (false, Vec::new());
        let own = Own { held, lost: false, tried: None, busy: false, next, until, heard, warnings };
        let own = Rc::new(RefCell::new(own));
        self.shared =
            Some(Part { store, options, network: config.network, subnet: lease.subnet, margin, own });
        self.start(Agent::Leases);
    }

    /// Follows the others' leases until the etcd fails it.
    pub(super) fn start_leases(&self) {
        if let Some(Part { store, options, network, subnet, own, .. }) = &self.shared {
            let follow = follow(
                store.clone(),
                options.clone(),
                (*network, *subnet),
                Rc::clone(own),
                self.store.clone(),
            );
            self.spawn(Agent::Leases, follow);
        }
    }

    /// Renews the own lease when it is time, and claims it when it is lost.
    pub(super) fn renew(&mut self, now: Instant) {
        let Some(Part { store, options, margin, own, .. }) = &self.shared else { return };
        let mut state = own.borrow_mut();
        self.warnings.append(&mut state.warnings);
        self.warnings.extend(store.take_warnings().iter().map(|warning| format!("etcd: {warning}")));
        match state.tried.take() {
            Some(Ok(held)) => {
                if state.lost {
                    self.warnings.push("the node's lease was lost, and is claimed again".to_owned());
                }
                (state.held, state.lost, state.next) = (held, false, now + (TTL - *margin));
                state.until = held.map(|_| now + TTL);
            }
            Some(Err(text)) => {
                self.warnings.push(format!("the node's lease cannot be kept: {text}"));
                state.next = now + AGAIN;
            }
            None => {}
        }
        let is_due = now >= state.next && (state.lost || state.held.is_some());
        if state.busy || !is_due {
            return;
        }
        state.busy = true;
        let (held, is_lost) = (state.held, state.lost);
        let (store, options, own) = (store.clone(), options.clone(), Rc::clone(own));
        // It fails only when the pool is gone, and then there is nothing to renew.
        let _ = self.pool.spawner().spawn_local(async move {
            let tried = keep(&store, &options, held.filter(|_| !is_lost)).await;
            let mut own = own.borrow_mut();
            own.busy = false;
            own.tried = Some(tried.map_err(|error| with_sources(&error)));
        });
    }
}

impl Network {
    /// Says what of the cluster keeps the node from being of use, by what is looked at; nothing without a cluster in an etcd.
    pub fn readiness(&self, now: Instant) -> Vec<(&'static str, Result<(), String>)> {
        let Some(Part { subnet, own, .. }) = &self.shared else { return Vec::new() };
        let own = own.borrow();
        let lease = if own.lost {
            Err(format!("the lease of {subnet} is lost"))
        } else if own.until.is_some_and(|until| until <= now) {
            Err(format!("the lease of {subnet} has run out, and could not be renewed"))
        } else {
            Ok(())
        };
        let heard = || "the other nodes' leases have not been heard of yet".to_owned();
        vec![("lease", lease), ("routes", own.heard.then_some(()).ok_or_else(heard))]
    }

    /// Gives the etcd that has the leases, where they lie in it, and the address that this node has there.
    pub fn cluster(&self) -> Option<(Etcd, String, Ipv4Addr)> {
        let part = self.shared.as_ref()?;
        Some((part.store.clone(), part.options.prefix.clone(), part.options.public_ip))
    }
}

/// Renews a lease, or claims it again if there is none any more.
async fn keep<S: Store>(
    store: &S,
    options: &NodeOptions,
    held: Option<LeaseId>,
) -> Result<Option<LeaseId>, NodeError> {
    if let Some(lease) = held {
        match store.keep_alive(lease).await {
            Ok(_) => return Ok(held),
            Err(StoreError::NoLease { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(claim_for(store, options, Some(TTL)).await?.1)
}

/// Copies the others' leases into a store.
async fn follow<S: Store>(
    etcd: S,
    options: NodeOptions,
    (network, subnet): (Ipv4Prefix, Ipv4Prefix),
    own: Rc<RefCell<Own>>,
    into: Embedded,
) -> Result<(), StoreError> {
    let from = lease::subnets_prefix(&options.prefix);
    let to = lease::subnets_prefix(DEFAULT_PREFIX);
    let key = |key: &str| -> Arc<str> { format!("{to}{}", key.strip_prefix(&*from).unwrap_or(key)).into() };
    let own_key: Arc<str> = lease::subnet_key(DEFAULT_PREFIX, subnet).into();
    let mut follower = Follower::new(etcd, &from);
    let mut admission = Admission::new(&options.prefix, Some(network), Some(subnet));
    let (mut is_held, mut is_whole) = (false, false);
    let lose = |holder: Option<Ipv4Addr>| {
        let mut own = own.borrow_mut();
        if !own.lost {
            let holder = holder.map_or("nobody".to_owned(), |holder| holder.to_string());
            own.warnings.push(format!("the node's lease of {subnet} is lost: {holder} has it"));
            (own.lost, own.next) = (true, Instant::ZERO);
        }
    };
    while let Some(change) = follower.next().await {
        match change {
            Ok(change) if key(change.key()) == own_key => match &change {
                Followed::Put(entry) => {
                    is_held = true;
                    if let Ok(other) = Attributes::from_json(&entry.value)
                        && other.public_ip != options.public_ip
                    {
                        lose(Some(other.public_ip));
                    }
                }
                Followed::Delete(_) => {
                    is_held = false;
                    lose(None);
                }
            },
            Ok(change) => {
                for verdict in admission.apply(&change) {
                    match verdict {
                        Verdict::Stands(entry) => drop(into.put(&key(&entry.key), entry.value).await?),
                        Verdict::Falls(fallen) => drop(into.delete(&key(&fallen)).await?),
                        Verdict::Refused(refused) => own.borrow_mut().warn(&refused, &admission),
                    }
                }
            }
            // What is different comes next.
            Err(StoreError::Restored { .. }) => {}
            Err(error) => return Err(error),
        }
        // What went while nobody followed.
        if !is_whole && follower.is_current() {
            is_whole = true;
            let there: BTreeMap<_, _> =
                follower.keys().map(|there| (key(there), Arc::clone(there))).collect();
            sweep(&into, &admission, |key| *key == own_key, &there).await?;
            if !is_held {
                lose(None);
            }
            own.borrow_mut().heard = true;
        }
    }
    Ok(())
}

/// Removes from a store the leases that are not `there` any more, or do not stand; what cannot be read is as it was read last.
async fn sweep(
    into: &Embedded,
    admission: &Admission,
    is_own: impl Fn(&Arc<str>) -> bool,
    there: &BTreeMap<Arc<str>, Arc<str>>,
) -> Result<(), StoreError> {
    let stays = |there: &Arc<str>| {
        admission.stands(there) || matches!(admission.refusal(there), Some(Refusal::Unreadable(_)))
    };
    for entry in into.list(&lease::subnets_prefix(DEFAULT_PREFIX)).await?.entries {
        if !is_own(&entry.key) && !there.get(&entry.key).is_some_and(stays) {
            into.delete(&entry.key).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
