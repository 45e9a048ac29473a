//! A node's part in a cluster whose leases lie in an etcd, flanneld's among them.
//!
//! [`Shared::join`] claims the node's subnet before the network comes up; [`Network::share`] then has the others' leases
//! copied into the network's own store, from which they become routes as any do, and the own one renewed.
//!
//! Invariants: nothing but the own lease is written to the etcd, and that only as it was read; while the etcd is away, all leases stay
//! as they were; a lease that is lost is claimed again, never overwritten.
//!
//! May depend on agents. Read first: flannel's `pkg/subnet/etcd`; `docs/adr/0034-leases-in-etcd-objects-here.md`.

mod going;

mod join;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use flatnet_agents::lease::admit::{Admission, Refusal, Verdict};
use flatnet_agents::lease::{self, Attributes, DEFAULT_PREFIX};
use flatnet_agents::node::{NodeError, NodeOptions, claim_for};
use flatnet_agents::store::{Followed, Follower, LeaseId};
use flatnet_agents::{Embedded, Etcd, Store, StoreError};
use flatnet_engine::clock::Instant;
use flatnet_proxy::Ipv4Prefix;
use futures::executor::LocalSpawner;
use futures::task::LocalSpawnExt as _;
use futures::{FutureExt as _, StreamExt as _};

use super::{Agent, Network, subnet_file, with_sources};
use going::Going;
pub(crate) use join::{Claimed, MARGIN, claim};
pub use join::{Joining, Shared, SharedError};

/// How long a lease lasts, as flannel's.
const TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// How long it takes until a renewal or a claim that failed is tried again.
const AGAIN: Duration = Duration::from_secs(60);

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
    /// Others' leases that are routes yet.
    going: Going,
    warnings: Vec<String>,
}

impl Own {
    /// Says why a key is left alone.
    fn warn(&mut self, key: &str, admission: &Admission) {
        let why = admission.refusal(key).map(|why| with_sources(why));
        self.warnings.push(format!("etcd: {key}: {}", why.unwrap_or_default()));
    }
}

/// A node's part in a cluster, for as long as it has one.
pub(crate) struct Part<S = Etcd> {
    store: S,
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
        let claimed = Claimed { config, lease, options, held };
        self.shared.push(Part::new(store, claimed, margin, now));
        self.start(Agent::Leases(self.shared.len() - 1));
    }

    /// Follows the others' leases until the etcd fails it.
    pub(super) fn start_leases(&self, number: usize) {
        if let Some(part) = self.shared.get(number) {
            self.spawn(Agent::Leases(number), part.follow(self.store.own()));
        }
    }

    /// Keeps the own leases, and ends others' that have gone.
    pub(super) fn renew(&mut self, now: Instant) {
        for part in &self.shared {
            self.warnings.extend(part.renew(self.store.own(), &self.pool.spawner(), now));
            self.warnings.extend(part.store.take_warnings().iter().map(|warning| format!("etcd: {warning}")));
        }
    }
}

impl<S: Store> Part<S> {
    /// Takes part with a subnet that was claimed now; its lease is renewed so long before its end.
    pub(crate) fn new(store: S, claimed: Claimed, margin: Duration, now: Instant) -> Self {
        let Claimed { config, lease, options, held } = claimed;
        let (next, until) = (now + (TTL - margin), held.map(|_| now + TTL));
        let (heard, going, warnings) = (false, Going::default(), Vec::new());
        let own = Own { held, lost: false, tried: None, busy: false, next, until, heard, going, warnings };
        let own = Rc::new(RefCell::new(own));
        Self { store, options, network: config.network, subnet: lease.subnet, margin, own }
    }

    /// Copies the others' leases into a store until the etcd fails it.
    pub(crate) fn follow(
        &self,
        into: &Embedded,
    ) -> impl Future<Output = Result<(), StoreError>> + use<S> + 'static {
        let (options, subnets) = (self.options.clone(), (self.network, self.subnet));
        follow(self.store.clone(), options, subnets, Rc::clone(&self.own), into.clone())
    }

    /// Renews the own lease when it is time, and claims it when it is lost; ends others' in the store that have gone. What a
    /// person should know is returned.
    pub(crate) fn renew(&self, into: &Embedded, spawner: &LocalSpawner, now: Instant) -> Vec<String> {
        let mut state = self.own.borrow_mut();
        let mut said = std::mem::take(&mut state.warnings);
        match state.tried.take() {
            Some(Ok(held)) => {
                if state.lost {
                    said.push("the node's lease was lost, and is claimed again".to_owned());
                }
                (state.held, state.lost, state.next) = (held, false, now + (TTL - self.margin));
                state.until = held.map(|_| now + TTL);
            }
            Some(Err(text)) => {
                said.push(format!("the node's lease cannot be kept: {text}"));
                state.next = now + AGAIN;
            }
            None => {}
        }
        for gone in state.going.take_over(now) {
            // At once, or it would go after it has come back. A store of this process never waits, and one that fails is found
            // by its agents.
            let _ = into.delete(&gone).now_or_never();
        }
        let is_due = now >= state.next && (state.lost || state.held.is_some());
        if state.busy || !is_due {
            return said;
        }
        state.busy = true;
        let (held, is_lost) = (state.held, state.lost);
        let (store, options, own) = (self.store.clone(), self.options.clone(), Rc::clone(&self.own));
        // It fails only when the pool is gone, and then there is nothing to renew.
        let _ = spawner.spawn_local(async move {
            let tried = keep(&store, &options, held.filter(|_| !is_lost)).await;
            let mut own = own.borrow_mut();
            own.busy = false;
            own.tried = Some(tried.map_err(|error| with_sources(&error)));
        });
        said
    }
}

impl Network {
    /// Says what of the cluster keeps the node from being of use, by what is looked at; nothing without a cluster in an etcd.
    pub fn readiness(&self, now: Instant) -> Vec<(&'static str, Result<(), String>)> {
        let of_node = |Part { subnet, own, .. }: &Part| {
            let own = own.borrow();
            let lease = if own.lost {
                Err(format!("the lease of {subnet} is lost"))
            } else if own.until.is_some_and(|until| until <= now) {
                Err(format!("the lease of {subnet} has run out, and could not be renewed"))
            } else {
                Ok(())
            };
            let heard = || "the other nodes' leases have not been heard of yet".to_owned();
            [("lease", lease), ("routes", own.heard.then_some(()).ok_or_else(heard))]
        };
        self.shared.iter().flat_map(of_node).collect()
    }

    /// Gives the etcd that has the leases, where they lie in it, and the address that this node has there.
    pub fn cluster(&self) -> Option<(Etcd, String, Ipv4Addr)> {
        let part = self.shared.first()?;
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
                        Verdict::Stands(entry) => copy(&into, &own, &key(&entry.key), entry.value).await?,
                        Verdict::Falls(fallen) => own.borrow_mut().going.extend([key(&fallen)]),
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
            sweep(&into, &own, &admission, |key| *key == own_key, &there).await?;
            if !is_held {
                lose(None);
            }
            own.borrow_mut().heard = true;
        }
    }
    Ok(())
}

/// Writes a lease into a store.
async fn copy(
    into: &Embedded,
    own: &RefCell<Own>,
    key: &Arc<str>,
    value: Arc<[u8]>,
) -> Result<(), StoreError> {
    end_covered(into, own, key).await?;
    into.put(key, value).await.map(drop)
}

/// Removes from a store the leases that have gone and of whose subnet this one has a part.
async fn end_covered(into: &Embedded, own: &RefCell<Own>, key: &Arc<str>) -> Result<(), StoreError> {
    let covered = own.borrow_mut().going.take_covered(key);
    for gone in covered {
        into.delete(&gone).await?;
    }
    Ok(())
}

/// Has leases in a store go that are not `there` any more, or do not stand; what cannot be read is as it was read last.
async fn sweep(
    into: &Embedded,
    own: &RefCell<Own>,
    admission: &Admission,
    is_own: impl Fn(&Arc<str>) -> bool,
    there: &BTreeMap<Arc<str>, Arc<str>>,
) -> Result<(), StoreError> {
    let stays = |there: &Arc<str>| {
        admission.stands(there) || matches!(admission.refusal(there), Some(Refusal::Unreadable(_)))
    };
    let entries = into.list(&lease::subnets_prefix(DEFAULT_PREFIX)).await?.entries;
    let keys = entries.into_iter().map(|entry| entry.key);
    let gone = keys.filter(|key| !is_own(key) && !there.get(key).is_some_and(stays));
    own.borrow_mut().going.extend(gone);
    for (key, _) in there.iter().filter(|(_, there)| admission.stands(there)) {
        end_covered(into, own, key).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
