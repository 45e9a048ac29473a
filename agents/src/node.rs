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

use std::{net::Ipv4Addr, sync::Arc};

use flatnet_engine::{
    random::Random,
    tunnel::{Encapsulation, vtep_mac},
};
use flatnet_proxy::Ipv4Prefix;
use thiserror::Error;

use crate::{
    lease::{
        self, AllocateError, Attributes, Claim, ConfigError, Lease, LeaseError, NetworkConfig, allocate::Wish,
    },
    store::{Compare, KeyValue, Op, Outcome, Revision, Store, StoreError},
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
    let mut random = Random::new(options.seed);
    for _ in 0..CLAIM_ATTEMPTS {
        let (config, config_revision) = read_config(store, &options.prefix).await?;
        let entries = store.list(&lease::subnets_prefix(&options.prefix)).await?.entries;
        let leases: Vec<Lease> =
            entries.iter().filter_map(|entry| read(&options.prefix, entry).ok()).collect();
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
        let expected = match plan.claim {
            Claim::Renew(_) => revision_of(&entries, &key),
            Claim::Create(_) => Revision::ZERO,
        };
        compares.push(Compare { key: Arc::clone(&key), mod_revision: expected });
        ops.push(Op::Put { key, value: attributes.to_json().into_bytes().into(), lease: None });

        if let Outcome::Done(at) = store.transact(compares, ops).await?
            && (matches!(plan.claim, Claim::Renew(_)) || stands(store, &options.prefix, subnet, at).await?)
        {
            return Ok(Lease { subnet, attributes });
        }
    }
    Err(NodeError::Raced)
}

/// Checks a new lease against leases of other lengths, which the create-only condition cannot see. The older stands;
/// a younger one is removed.
async fn stands<S: Store>(
    store: &S,
    prefix: &str,
    subnet: Ipv4Prefix,
    created: Revision,
) -> Result<bool, StoreError> {
    let entries = store.list(&lease::subnets_prefix(prefix)).await?.entries;
    let older = entries.iter().filter(|entry| entry.create_revision < created).any(|entry| {
        lease::parse_subnet_key(prefix, &entry.key)
            .is_ok_and(|other| other != subnet && other.overlaps(subnet))
    });
    if older {
        let key: Arc<str> = lease::subnet_key(prefix, subnet).into();
        let compare = Compare { key: Arc::clone(&key), mod_revision: created };
        store.transact(vec![compare], vec![Op::Delete { key }]).await?;
    }
    Ok(!older)
}

fn read(prefix: &str, entry: &KeyValue) -> Result<Lease, LeaseError> {
    lease::parse_lease(prefix, &entry.key, &entry.value)
}

fn revision_of(entries: &[KeyValue], key: &str) -> Revision {
    entries.iter().find(|entry| &*entry.key == key).map_or(Revision::ZERO, |entry| entry.mod_revision)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeSet, rc::Rc, time::Duration};

    use futures::{
        executor::{LocalPool, block_on},
        task::LocalSpawnExt,
    };

    use super::*;
    use crate::store::{Embedded, LeaseId, LeaseState};

    const PREFIX: &str = lease::DEFAULT_PREFIX;

    fn options(last: u8, wish: Wish) -> NodeOptions {
        NodeOptions {
            prefix: PREFIX.into(),
            public_ip: [192, 168, 66, last].into(),
            wish,
            encapsulation: Some(Encapsulation::Udp),
            seed: u64::from(last),
        }
    }

    fn anything(last: u8) -> NodeOptions {
        options(last, Wish::Any { previous: None })
    }

    async fn network(text: &str) -> Embedded {
        let store = Embedded::new();
        let config = NetworkConfig::new(text.parse().unwrap()).unwrap();
        ensure_config(&store, PREFIX, &config).await.unwrap();
        store
    }

    #[test]
    fn node_gets_the_same_subnet_again() {
        block_on(async {
            let store = network("10.3.0.0/16").await;
            let first = claim(&store, &anything(11)).await.unwrap();
            let key = lease::subnet_key(PREFIX, first.subnet);
            let value = store.get(&key).await.unwrap().unwrap().value;
            assert_eq!(&*value, br#"{"PublicIP":"192.168.66.11","PublicIPv6":null}"#);
            assert_eq!(claim(&store, &anything(11)).await.unwrap(), first);
        });
    }

    #[test]
    fn a_vxlan_nodes_lease_says_the_mac_of_its_end() {
        block_on(async {
            let store = network("10.3.0.0/16").await;
            let wish = Wish::Exactly("10.3.7.0/24".parse().unwrap());
            let vxlan =
                NodeOptions { encapsulation: Some(Encapsulation::Vxlan { vni: 9 }), ..options(11, wish) };
            let lease = claim(&store, &vxlan).await.unwrap();
            let value = store.get(&lease::subnet_key(PREFIX, lease.subnet)).await.unwrap().unwrap().value;
            assert_eq!(
                std::str::from_utf8(&value).unwrap(),
                r#"{"PublicIP":"192.168.66.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":9,"VtepMAC":"02:42:0a:03:07:00"}}"#
            );
        });
    }

    #[test]
    fn missing_and_differing_configurations_are_named() {
        block_on(async {
            let error = claim(&Embedded::new(), &anything(11)).await.unwrap_err();
            assert_eq!(error.to_string(), "no network configuration at /coreos.com/network/config");
            let store = network("10.3.0.0/16").await;
            let other = NetworkConfig::new("10.4.0.0/16".parse().unwrap()).unwrap();
            let error = ensure_config(&store, PREFIX, &other).await.unwrap_err();
            assert!(matches!(error, NodeError::OtherConfig { .. }), "{error}");
        });
    }

    #[test]
    fn new_lease_lies_in_the_new_network_after_a_change() {
        block_on(async {
            let store = network("10.3.0.0/16").await;
            let old = claim(&store, &anything(11)).await.unwrap();
            store.put(&lease::config_key(PREFIX), *br#"{"Network":"10.4.0.0/16"}"#).await.unwrap();
            let new = claim(&store, &anything(11)).await.unwrap();
            assert!(Ipv4Addr::new(10, 4, 0, 0) < new.subnet.address());
            assert_eq!(store.get(&lease::subnet_key(PREFIX, old.subnet)).await.unwrap(), None);
        });
    }

    #[test]
    fn nodes_that_want_one_subnet_leave_it_to_one() {
        block_on(async {
            let store = network("10.3.0.0/16").await;
            let wish = Wish::Exactly("10.3.7.0/24".parse().unwrap());
            claim(&store, &options(11, wish)).await.unwrap();
            let error = claim(&store, &options(12, wish)).await.unwrap_err();
            assert_eq!(
                error.to_string(),
                "subnet 10.3.7.0/24 overlaps 10.3.7.0/24, which 192.168.66.11 holds"
            );
        });
    }

    #[test]
    fn younger_lease_of_another_length_steps_aside() {
        block_on(async {
            let store = network("10.3.0.0/16").await;
            let wide: Ipv4Prefix = "10.3.4.0/22".parse().unwrap();
            let narrow: Ipv4Prefix = "10.3.5.0/24".parse().unwrap();
            let value = Attributes::udp([1, 1, 1, 1].into()).to_json().into_bytes();
            store.put(&lease::subnet_key(PREFIX, wide), value.clone()).await.unwrap();
            let Outcome::Done(at) = store.put(&lease::subnet_key(PREFIX, narrow), value).await.unwrap()
            else {
                panic!("unconditional put conflicts")
            };
            assert!(!stands(&store, PREFIX, narrow, at).await.unwrap());
            assert_eq!(store.get(&lease::subnet_key(PREFIX, narrow)).await.unwrap(), None);
        });
    }

    #[test]
    fn all_nodes_that_start_together_get_different_subnets() {
        let store = block_on(network("10.3.0.0/24"));
        let (mut pool, subnets) = (LocalPool::new(), Rc::new(RefCell::new(BTreeSet::new())));
        // The network has three subnets to give; every node must get one although all have the same seed.
        for last in 1..=3 {
            let (store, subnets) = (store.clone(), Rc::clone(&subnets));
            let options = NodeOptions { seed: 1, ..anything(last) };
            pool.spawner()
                .spawn_local(async move {
                    let lease = claim(&store, &options).await.unwrap();
                    subnets.borrow_mut().insert(lease.subnet);
                })
                .unwrap();
        }
        pool.run_until_stalled();
        assert_eq!(subnets.borrow().len(), 3);
    }

    /// A store in which somebody else writes once, just before the next transaction.
    #[derive(Clone)]
    struct Raced {
        inner: Embedded,
        rivals: Arc<std::sync::Mutex<Vec<Op>>>,
    }

    impl Store for Raced {
        type Watch = crate::store::embedded::Watch;

        async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
            self.inner.get(key).await
        }

        async fn list(&self, prefix: &str) -> Result<crate::store::Listing, StoreError> {
            self.inner.list(prefix).await
        }

        async fn transact(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Outcome, StoreError> {
            let rival = self.rivals.lock().unwrap().pop();
            if let Some(rival) = rival {
                self.inner.transact(vec![], vec![rival]).await?;
            }
            self.inner.transact(compares, ops).await
        }

        async fn watch(&self, prefix: &str, from: Revision) -> Result<Self::Watch, StoreError> {
            self.inner.watch(prefix, from).await
        }

        async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
            self.inner.compact(revision).await
        }

        async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
            self.inner.grant(ttl).await
        }

        async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
            self.inner.keep_alive(lease).await
        }

        async fn revoke(&self, lease: LeaseId) -> Result<Revision, StoreError> {
            self.inner.revoke(lease).await
        }

        async fn lease(&self, lease: LeaseId) -> Result<LeaseState, StoreError> {
            self.inner.lease(lease).await
        }
    }

    #[test]
    fn lost_race_starts_over_with_a_fresh_list() {
        block_on(async {
            let wish = Wish::Any { previous: Some("10.3.7.0/24".parse().unwrap()) };
            let key = format!("{PREFIX}/subnets/10.3.7.0-24").into();
            let rival = Op::Put { key, value: (*br#"{"PublicIP":"2.2.2.2"}"#).into(), lease: None };
            let inner = network("10.3.0.0/16").await;
            let store = Raced { inner, rivals: Arc::new(std::sync::Mutex::new(vec![rival])) };
            let lease = claim(&store, &options(11, wish)).await.unwrap();
            assert_ne!(lease.subnet.to_string(), "10.3.7.0/24");
            let held = store.get(&lease::subnet_key(PREFIX, "10.3.7.0/24".parse().unwrap())).await.unwrap();
            assert_eq!(&*held.unwrap().value, br#"{"PublicIP":"2.2.2.2"}"#);
        });
    }
}
