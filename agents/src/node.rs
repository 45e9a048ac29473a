//! The node agent: claims this node's subnet, then turns the others' leases into routes ([`routes`]).
//!
//! One per node, simulated or real. It reads and writes flannel's keys in the store; route changes go to the sink that
//! the caller gives, in the order of the store's history.
//!
//! Invariants: a subnet is claimed by a create-only transaction, and given up at once if an older lease overlaps it; an
//! own lease is renewed only as it was read.
//!
//! May depend on [`crate::store`] and [`crate::lease`].
//!
//! Read first: flannel's `pkg/subnet/etcd` and `pkg/lease`.

pub mod routes;

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use flatnet_engine::{
    random::Random,
    tunnel::{Encapsulation, vtep_mac},
};
use flatnet_proxy::Ipv4Prefix;
use thiserror::Error;

use crate::{
    lease::{
        self, AllocateError, Attributes, Claim, ConfigError, Lease, LeaseError, NetworkConfig,
        admit::Admission, allocate::Wish,
    },
    store::{Compare, Followed, KeyValue, LeaseId, Op, Outcome, Revision, Store, StoreError},
};

pub use routes::{Holder, RouteChange, Routes, SkipReason, follow_routes};

/// How often a claim is tried against others that want the same subnets.
const CLAIM_ATTEMPTS: usize = 100;

/// What a node agent must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeOptions {
    /// Where the network's keys lie, e.g. [`lease::DEFAULT_PREFIX`].
    pub prefix: String,
    /// The node's address in the node network.
    pub public_ip: Ipv4Addr,
    /// Which subnet the node wants.
    pub wish: Wish,
    /// How its packets are carried; none of host-gw.
    pub encapsulation: Option<Encapsulation>,
    /// Determines the choice among free subnets; nodes of one cluster need different ones.
    pub seed: u64,
}

/// Why a node has no subnet.
#[derive(Debug, Error)]
pub enum NodeError {
    /// Nobody has written the network's configuration.
    #[error("no network configuration at {key}")]
    NoConfig {
        /// Where it should be.
        key: String,
    },
    /// The configuration cannot be used.
    #[error("network configuration at {key} cannot be used")]
    Config {
        /// Where it is.
        key: String,
        /// What is wrong.
        #[source]
        source: ConfigError,
    },
    /// There is another configuration already.
    #[error("{key} holds another network configuration: {found}")]
    OtherConfig {
        /// Where it is.
        key: String,
        /// What is there.
        found: String,
    },
    /// No subnet can be had.
    #[error(transparent)]
    Allocate(#[from] AllocateError),
    /// Other nodes were faster every time.
    #[error("lost the race for a subnet {CLAIM_ATTEMPTS} times")]
    Raced,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Writes the configuration of a network if there is none.
///
/// # Errors
/// [`NodeError::OtherConfig`] if another one is there, [`NodeError::Config`] if what is there cannot be used,
/// [`NodeError::Store`].
pub async fn ensure_config<S: Store>(
    store: &S,
    prefix: &str,
    config: &NetworkConfig,
) -> Result<(), NodeError> {
    let key = lease::config_key(prefix);
    if let Outcome::Done(_) = store.put_if(&key, config.to_json().into_bytes(), Revision::ZERO).await? {
        return Ok(());
    }
    match read_config(store, prefix).await {
        Ok((found, _)) if &found == config => Ok(()),
        Ok((found, _)) => Err(NodeError::OtherConfig { key, found: found.to_json() }),
        Err(error) => Err(error),
    }
}

/// Reads the configuration of a network and when it was written.
///
/// # Errors
/// [`NodeError::NoConfig`], [`NodeError::Config`], [`NodeError::Store`].
pub async fn read_config<S: Store>(store: &S, prefix: &str) -> Result<(NetworkConfig, Revision), NodeError> {
    let key = lease::config_key(prefix);
    let Some(entry) = store.get(&key).await? else {
        return Err(NodeError::NoConfig { key });
    };
    match NetworkConfig::from_json(&entry.value) {
        Ok(config) => Ok((config, entry.mod_revision)),
        Err(source) => Err(NodeError::Config { key, source }),
    }
}

/// Claims a subnet: renews the node's lease if it has one, else creates one. A lost race starts over with a fresh list.
///
/// # Errors
/// Each variant of [`NodeError`] but [`NodeError::OtherConfig`].
pub async fn claim<S: Store>(store: &S, options: &NodeOptions) -> Result<Lease, NodeError> {
    Ok(claim_for(store, options, None).await?.0)
}

/// Claims a subnet as [`claim`] does, for a time: the lease of the store's that it is attached to is to be kept alive. A
/// reservation, which is there with the node's address and without one, stays without.
///
/// # Errors
/// As [`claim`].
pub async fn claim_for<S: Store>(
    store: &S,
    options: &NodeOptions,
    ttl: Option<Duration>,
) -> Result<(Lease, Option<LeaseId>), NodeError> {
    let mut random = Random::new(options.seed);
    for _ in 0..CLAIM_ATTEMPTS {
        let (config, config_revision) = read_config(store, &options.prefix).await?;
        let entries = store.list(&lease::subnets_prefix(&options.prefix)).await?.entries;
        let admitted = admit(&options.prefix, config.network, &entries);
        // What does not stand takes no subnet; an own lease that does not fit any more goes.
        let counts = |entry: &KeyValue, lease: &Lease| {
            admitted.stands(&entry.key) || lease.attributes.public_ip == options.public_ip
        };
        let leases: Vec<Lease> = entries
            .iter()
            .filter_map(|entry| Some((entry, read(&options.prefix, entry).ok()?)))
            .filter(|(entry, lease)| counts(entry, lease))
            .map(|(_, lease)| lease)
            .collect();
        let plan = lease::plan(&config, &leases, options.public_ip, options.wish, &mut random)?;

        let mut compares =
            vec![Compare { key: lease::config_key(&options.prefix).into(), mod_revision: config_revision }];
        let mut ops = Vec::new();
        for subnet in plan.stale {
            let key: Arc<str> = lease::subnet_key(&options.prefix, subnet).into();
            compares.push(Compare { mod_revision: revision_of(&entries, &key), key: Arc::clone(&key) });
            ops.push(Op::Delete { key });
        }
        let subnet = plan.claim.subnet();
        let vtep = vtep_mac(subnet.address());
        let attributes = Attributes::new(options.public_ip, options.encapsulation, vtep);
        let key: Arc<str> = lease::subnet_key(&options.prefix, subnet).into();
        let before = match plan.claim {
            Claim::Renew(_) => entries.iter().find(|entry| entry.key == key),
            Claim::Create(_) => None,
        };
        let expected = before.map_or(Revision::ZERO, |entry| entry.mod_revision);
        let is_reserved = before.is_some_and(|entry| entry.lease.is_none());
        let held = match ttl.filter(|_| !is_reserved) {
            Some(ttl) => Some(store.grant(ttl).await?),
            None => None,
        };
        compares.push(Compare { key: Arc::clone(&key), mod_revision: expected });
        ops.push(Op::Put { key, value: attributes.to_json().into_bytes().into(), lease: held });

        if let Outcome::Done(at) = store.transact(compares, ops).await?
            && (matches!(plan.claim, Claim::Renew(_))
                || stands(store, &options.prefix, config.network, subnet, at).await?)
        {
            return Ok((Lease { subnet, attributes }, held));
        }
        if let Some(held) = held {
            // If it stays, it ends by itself.
            let _ = store.revoke(held).await;
        }
    }
    Err(NodeError::Raced)
}

/// Checks a new lease against leases of other lengths, which the create-only condition cannot see. The older stands;
/// a younger one is removed.
async fn stands<S: Store>(
    store: &S,
    prefix: &str,
    network: Ipv4Prefix,
    subnet: Ipv4Prefix,
    created: Revision,
) -> Result<bool, StoreError> {
    let entries = store.list(&lease::subnets_prefix(prefix)).await?.entries;
    let key: Arc<str> = lease::subnet_key(prefix, subnet).into();
    let stands = admit(prefix, network, &entries).stands(&key);
    if !stands {
        let compare = Compare { key: Arc::clone(&key), mod_revision: created };
        store.transact(vec![compare], vec![Op::Delete { key }]).await?;
    }
    Ok(stands)
}

/// Says which leases of a list stand.
fn admit(prefix: &str, network: Ipv4Prefix, entries: &[KeyValue]) -> Admission {
    let mut admission = Admission::new(prefix, Some(network), None);
    for entry in entries {
        admission.apply(&Followed::Put(entry.clone()));
    }
    admission
}

fn read(prefix: &str, entry: &KeyValue) -> Result<Lease, LeaseError> {
    lease::parse_lease(prefix, &entry.key, &entry.value)
}

fn revision_of(entries: &[KeyValue], key: &str) -> Revision {
    entries.iter().find(|entry| &*entry.key == key).map_or(Revision::ZERO, |entry| entry.mod_revision)
}

#[cfg(test)]
mod tests;
