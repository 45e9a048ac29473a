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
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

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
    held: Option<LeaseId>,
}

impl Shared {
    /// Claims a subnet for the node with an address, one of its choice or any. `wanted` is written if there is no
    /// configuration, and else must be the one that is there.
    ///
    /// # Errors
    /// [`SharedError`].
    pub fn join(
        etcd: &Options,
        prefix: &str,
        public_ip: Ipv4Addr,
        wish: Option<Ipv4Prefix>,
        wanted: Option<&NetworkConfig>,
    ) -> Result<Self, SharedError> {
        let store = Etcd::open(etcd)?;
        let claimed = block_on(async {
            if let Some(wanted) = wanted {
                ensure_config(&store, prefix, wanted).await?;
            }
            let (config, _) = read_config(&store, prefix).await?;
            let Some(encapsulation) = encapsulation(&config) else { return Ok(Err(config.backend)) };
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
        let (config, mut options, lease, held) = claimed.map_err(failed)?.map_err(SharedError::Backend)?;
        // Pods have addresses of it: it is this one or none from now on.
        options.wish = Wish::Exactly(lease.subnet);
        Ok(Self { config, lease, subnet_file: None, store, options, held })
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
    warnings: Vec<String>,
}

/// A cluster as the network keeps it.
pub(super) struct Part {
    store: Etcd,
    options: NodeOptions,
    subnet: Ipv4Prefix,
    own: Rc<RefCell<Own>>,
}

impl Network {
    /// Follows a cluster's leases, and renews the own one.
    pub fn share(&mut self, shared: Shared, now: Instant) {
        let Shared { config, lease, subnet_file, store, options, held } = shared;
        if let Some((path, masquerades)) = subnet_file {
            let tables = self.publisher.control.tables.current();
            let bridges =
                self.publisher.nodes().into_iter().filter_map(|(_, id)| tables.node(id)?.bridge.as_ref());
            let mtu = bridges.map(|bridge| bridge.mtu).next().unwrap_or_default();
            if let Err(error) = subnet_file::write(&path, config.network, lease.subnet, mtu, masquerades) {
                self.warnings.push(format!("{} cannot be written: {error}", path.display()));
            }
        }
        let (next, warnings) = (now + (TTL - MARGIN), Vec::new());
        let own = Own { held, lost: false, tried: None, busy: false, next, warnings };
        let own = Rc::new(RefCell::new(own));
        self.shared = Some(Part { store, options, subnet: lease.subnet, own });
        self.start(Agent::Leases);
    }

    /// Follows the others' leases until the etcd fails it.
    pub(super) fn start_leases(&self) {
        if let Some(Part { store, options, subnet, own }) = &self.shared {
            let follow = follow(store.clone(), options.clone(), *subnet, Rc::clone(own), self.store.clone());
            self.spawn(Agent::Leases, follow);
        }
    }

    /// Renews the own lease when it is time, and claims it when it is lost.
    pub(super) fn renew(&mut self, now: Instant) {
        let Some(Part { store, options, own, .. }) = &self.shared else { return };
        let mut state = own.borrow_mut();
        self.warnings.append(&mut state.warnings);
        self.warnings.extend(store.take_warnings().iter().map(|warning| format!("etcd: {warning}")));
        match state.tried.take() {
            Some(Ok(held)) => {
                if state.lost {
                    self.warnings.push("the node's lease was lost, and is claimed again".to_owned());
                }
                (state.held, state.lost, state.next) = (held, false, now + (TTL - MARGIN));
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
    subnet: Ipv4Prefix,
    own: Rc<RefCell<Own>>,
    into: Embedded,
) -> Result<(), StoreError> {
    let from = lease::subnets_prefix(&options.prefix);
    let to = lease::subnets_prefix(DEFAULT_PREFIX);
    let key = |key: &str| -> Arc<str> { format!("{to}{}", key.strip_prefix(&*from).unwrap_or(key)).into() };
    let own_key: Arc<str> = lease::subnet_key(DEFAULT_PREFIX, subnet).into();
    let mut follower = Follower::new(etcd, &from);
    let (mut found, mut is_whole) = (BTreeSet::new(), false);
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
            Ok(Followed::Put(entry)) => {
                let key = key(&entry.key);
                found.insert(Arc::clone(&key));
                if key != own_key {
                    into.put(&key, entry.value).await?;
                } else if let Ok(other) = Attributes::from_json(&entry.value)
                    && other.public_ip != options.public_ip
                {
                    lose(Some(other.public_ip));
                }
            }
            Ok(Followed::Delete(entry)) => {
                let key = key(&entry.key);
                found.remove(&key);
                if key == own_key {
                    lose(None);
                } else {
                    into.delete(&key).await?;
                }
            }
            // What is different comes next.
            Err(StoreError::Restored { .. }) => {}
            Err(error) => return Err(error),
        }
        // What went while nobody followed.
        if !is_whole && follower.is_current() {
            is_whole = true;
            for entry in into.list(&to).await?.entries {
                if entry.key != own_key && !found.contains(&entry.key) {
                    into.delete(&entry.key).await?;
                }
            }
            if !found.contains(&own_key) {
                lose(None);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures::executor::LocalPool;

    use super::*;

    const PREFIX: &str = "/cluster";

    fn options(last: u8, wish: Wish) -> NodeOptions {
        let encapsulation = Some(Encapsulation::Udp);
        NodeOptions {
            prefix: PREFIX.into(),
            public_ip: [192, 168, 66, last].into(),
            wish,
            encapsulation,
            seed: 1,
        }
    }

    /// A cluster with a node's lease in it, and who it was claimed by and for.
    async fn cluster() -> (Embedded, NodeOptions, Lease, Option<LeaseId>) {
        let store = Embedded::new();
        let config = NetworkConfig::new("10.7.0.0/16".parse().unwrap()).unwrap();
        ensure_config(&store, PREFIX, &config).await.unwrap();
        let wish = Wish::Exactly("10.7.1.0/24".parse().unwrap());
        let (lease, held) = claim_for(&store, &options(11, wish), Some(TTL)).await.unwrap();
        (store, options(11, wish), lease, held)
    }

    fn hour(number: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(3600) * u32::try_from(number).unwrap()
    }

    #[test]
    fn a_lease_is_kept_for_another_day_and_claimed_again_when_it_has_run_out() {
        block_on(async {
            let (store, options, lease, held) = cluster().await;
            let key = lease::subnet_key(PREFIX, lease.subnet);
            let before = store.get(&key).await.unwrap().unwrap();
            store.advance(hour(23)).unwrap();
            assert_eq!(keep(&store, &options, held).await.unwrap(), held);
            store.advance(hour(46)).unwrap();
            assert_eq!(store.get(&key).await.unwrap(), Some(before), "nobody hears of a renewal");

            store.advance(hour(47)).unwrap();
            assert_eq!(store.get(&key).await.unwrap(), None);
            let again = keep(&store, &options, held).await.unwrap();
            let entry = store.get(&key).await.unwrap().unwrap();
            assert!(again != held && entry.lease == again);
        });
    }

    #[test]
    fn a_lease_that_somebody_else_has_by_now_is_left_to_them() {
        block_on(async {
            let (store, options, lease, held) = cluster().await;
            store.revoke(held.unwrap()).await.unwrap();
            let wish = Wish::Exactly(lease.subnet);
            claim_for(&store, &self::options(12, wish), Some(TTL)).await.unwrap();
            let error = keep(&store, &options, held).await.unwrap_err();
            assert!(error.to_string().contains("which 192.168.66.12 holds"), "{error}");
        });
    }

    /// What went while nobody followed goes when somebody does again; the own lease is the node's own affair.
    #[test]
    fn leases_are_copied_but_for_the_own_one_and_those_that_went_unseen_go() {
        let (cluster, options, lease, _) = block_on(cluster());
        let into = Embedded::new();
        let here = |name: &str| format!("{}{name}", lease::subnets_prefix(DEFAULT_PREFIX));
        let there = |name: &str| format!("{}{name}", lease::subnets_prefix(PREFIX));
        block_on(into.put(&here("10.7.1.0-24"), *b"own")).unwrap();
        block_on(into.put(&here("10.7.8.0-24"), *b"gone")).unwrap();
        block_on(cluster.put(&there("10.7.2.0-24"), *b"other")).unwrap();
        let own =
            Own { held: None, lost: false, tried: None, busy: false, next: hour(1), warnings: Vec::new() };
        let own = Rc::new(RefCell::new(own));
        let mut pool = LocalPool::new();
        let task = follow(cluster.clone(), options, lease.subnet, Rc::clone(&own), into.clone());
        pool.spawner().spawn_local(async { task.await.unwrap() }).unwrap();
        pool.run_until_stalled();
        let held = || {
            let listing = block_on(into.list(&here(""))).unwrap().entries;
            listing.iter().map(|entry| String::from_utf8_lossy(&entry.value).into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(held(), ["own", "other"]);

        block_on(cluster.delete(&there("10.7.2.0-24"))).unwrap();
        pool.run_until_stalled();
        assert_eq!(held(), ["own"]);
        assert!(!own.borrow().lost);
        block_on(cluster.delete(&there("10.7.1.0-24"))).unwrap();
        pool.run_until_stalled();
        assert!(own.borrow().lost && own.borrow().next == Instant::ZERO);
        assert_eq!(held(), ["own"], "what flows goes on");
    }
}
