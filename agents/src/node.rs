//! The node agent: claims this node's subnet and turns the others' leases into routes.
//!
//! One per node, simulated or real. It reads and writes flannel's keys in the store; route changes go to the sink that
//! the caller gives, in the order of the store's history.
//!
//! Invariants: a subnet is claimed by a create-only transaction, and given up at once if an older lease overlaps it;
//! a lease that cannot be read never removes another's route, nor its own last good one; the own subnet is never a
//! route.
//!
//! May depend on [`crate::store`] and [`crate::lease`].
//!
//! Read first: flannel's `pkg/subnet/etcd` and `pkg/lease`.

use std::{collections::BTreeMap, convert::Infallible, net::Ipv4Addr, sync::Arc};

use flatnet_proxy::Ipv4Prefix;
use futures::TryStreamExt;
use thiserror::Error;

use crate::{
    lease::{
        self, AllocateError, Attributes, Claim, ConfigError, Lease, LeaseError, NetworkConfig, allocate::Wish,
    },
    seed::Random,
    store::{Compare, Followed, Follower, KeyValue, Op, Outcome, Revision, Store, StoreError},
};

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

/// What the others' leases mean for this node's routes.
#[derive(Debug)]
pub enum RouteChange {
    /// Packets to the subnet go to this node; replaces an earlier route of the subnet.
    Add {
        /// The subnet.
        subnet: Ipv4Prefix,
        /// Its holder's address in the node network.
        public_ip: Ipv4Addr,
    },
    /// The subnet has no holder any more.
    Remove {
        /// The subnet.
        subnet: Ipv4Prefix,
    },
    /// This node's own lease is gone, or another's: claim again, and keep what flows.
    OwnLost {
        /// The new holder, if there is one.
        holder: Option<Ipv4Addr>,
    },
    /// A key below `subnets/` was left alone.
    Skipped {
        /// The key.
        key: Arc<str>,
        /// Why.
        reason: SkipReason,
    },
}

/// Why a key is not a route.
#[derive(Debug, Error)]
pub enum SkipReason {
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] LeaseError),
    /// Its holder uses a backend that this node does not speak.
    #[error("holder uses backend {0}")]
    Backend(String),
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
    let attributes = Attributes::udp(options.public_ip);
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
        let key: Arc<str> = lease::subnet_key(&options.prefix, subnet).into();
        let expected = match plan.claim {
            Claim::Renew(_) => revision_of(&entries, &key),
            Claim::Create(_) => Revision::ZERO,
        };
        compares.push(Compare { key: Arc::clone(&key), mod_revision: expected });
        ops.push(Op::Put { key, value: attributes.to_json().into_bytes().into() });

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

/// Reports route changes until the store fails: first the leases that exist, then every change.
///
/// # Errors
/// [`StoreError::Unavailable`]; call it again then. Routes stay as they are meanwhile.
pub async fn follow_routes<S: Store>(
    store: &S,
    prefix: &str,
    own: Lease,
    mut sink: impl FnMut(RouteChange),
) -> Result<Infallible, StoreError> {
    let mut follower = Follower::new(store.clone(), &lease::subnets_prefix(prefix));
    let mut routes = Routes::new(prefix, Some(own));
    while let Some(change) = follower.try_next().await? {
        if let Some(change) = routes.apply(&change) {
            sink(change);
        }
    }
    Err(StoreError::Unavailable { cause: "the watch ended".into() })
}

/// Which subnets are whose, and what a change of a lease changes about it. Pure.
#[derive(Clone, Debug)]
pub struct Routes {
    prefix: String,
    own: Option<Lease>,
    known: BTreeMap<Ipv4Prefix, Ipv4Addr>,
}

impl Routes {
    /// Starts without routes. With `own`, that lease is watched instead of routed.
    pub fn new(prefix: &str, own: Option<Lease>) -> Self {
        Self { prefix: prefix.into(), own, known: BTreeMap::new() }
    }

    /// Lists subnets and their holders' addresses.
    pub fn iter(&self) -> impl Iterator<Item = (Ipv4Prefix, Ipv4Addr)> {
        self.known.iter().map(|(&subnet, &public_ip)| (subnet, public_ip))
    }

    /// Takes one change of a key below `subnets/` and says what it means, if anything.
    pub fn apply(&mut self, change: &Followed) -> Option<RouteChange> {
        let skip = |reason| Some(RouteChange::Skipped { key: Arc::clone(change.key()), reason });
        let subnet = match lease::parse_subnet_key(&self.prefix, change.key()) {
            Ok(subnet) => subnet,
            Err(error) => return skip(error.into()),
        };
        let attributes = match change {
            Followed::Delete(_) => None,
            Followed::Put(entry) => match Attributes::from_json(&entry.value) {
                Ok(attributes) => Some(attributes),
                Err(error) => return skip(error.into()),
            },
        };
        if let Some(own) = self.own.as_ref().filter(|own| own.subnet == subnet) {
            let holder = attributes.map(|attributes| attributes.public_ip);
            return (holder != Some(own.attributes.public_ip)).then_some(RouteChange::OwnLost { holder });
        }
        match attributes {
            Some(attributes) if attributes.speaks_udp() => {
                let public_ip = attributes.public_ip;
                let before = self.known.insert(subnet, public_ip);
                (before != Some(public_ip)).then_some(RouteChange::Add { subnet, public_ip })
            }
            Some(attributes) => match self.known.remove(&subnet) {
                Some(_) => Some(RouteChange::Remove { subnet }),
                None => skip(SkipReason::Backend(attributes.backend_type)),
            },
            None => self.known.remove(&subnet).map(|_| RouteChange::Remove { subnet }),
        }
    }
}

fn read(prefix: &str, entry: &KeyValue) -> Result<Lease, LeaseError> {
    lease::parse_lease(prefix, &entry.key, &entry.value)
}

fn revision_of(entries: &[KeyValue], key: &str) -> Revision {
    entries.iter().find(|entry| &*entry.key == key).map_or(Revision::ZERO, |entry| entry.mod_revision)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

    use futures::{
        executor::{LocalPool, block_on},
        task::LocalSpawnExt,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::store::{Embedded, embedded::Options};

    const PREFIX: &str = lease::DEFAULT_PREFIX;

    fn options(last: u8, wish: Wish) -> NodeOptions {
        NodeOptions {
            prefix: PREFIX.into(),
            public_ip: [192, 168, 66, last].into(),
            wish,
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
    }

    #[test]
    fn lost_race_starts_over_with_a_fresh_list() {
        block_on(async {
            let wish = Wish::Any { previous: Some("10.3.7.0/24".parse().unwrap()) };
            let key = format!("{PREFIX}/subnets/10.3.7.0-24").into();
            let rival = Op::Put { key, value: (*br#"{"PublicIP":"2.2.2.2"}"#).into() };
            let inner = network("10.3.0.0/16").await;
            let store = Raced { inner, rivals: Arc::new(std::sync::Mutex::new(vec![rival])) };
            let lease = claim(&store, &options(11, wish)).await.unwrap();
            assert_ne!(lease.subnet.to_string(), "10.3.7.0/24");
            let held = store.get(&lease::subnet_key(PREFIX, "10.3.7.0/24".parse().unwrap())).await.unwrap();
            assert_eq!(&*held.unwrap().value, br#"{"PublicIP":"2.2.2.2"}"#);
        });
    }

    /// Follows routes in the background and keeps what they say.
    fn spawn_routes(pool: &LocalPool, store: &Embedded, own: Lease) -> Rc<RefCell<Vec<String>>> {
        let log = Rc::new(RefCell::new(Vec::new()));
        let (store, seen) = (store.clone(), Rc::clone(&log));
        pool.spawner()
            .spawn_local(async move {
                let sink = |change| {
                    seen.borrow_mut().push(match change {
                        RouteChange::Add { subnet, public_ip } => format!("+{subnet} {public_ip}"),
                        RouteChange::Remove { subnet } => format!("-{subnet}"),
                        RouteChange::OwnLost { holder } => format!("lost {holder:?}"),
                        RouteChange::Skipped { reason, .. } => format!("skip {reason}"),
                    });
                };
                let _ = follow_routes(&store, PREFIX, own, sink).await;
            })
            .unwrap();
        log
    }

    async fn put(store: &Embedded, name: &str, value: &str) {
        store.put(&format!("{PREFIX}/subnets/{name}"), value.as_bytes()).await.unwrap();
    }

    fn own() -> Lease {
        Lease { subnet: "10.3.1.0/24".parse().unwrap(), attributes: Attributes::udp([1, 1, 1, 1].into()) }
    }

    #[test]
    fn leases_become_routes_and_bad_ones_touch_nothing() {
        let store = Embedded::new();
        block_on(async {
            put(&store, "10.3.1.0-24", r#"{"PublicIP":"1.1.1.1"}"#).await;
            put(&store, "10.3.2.0-24", r#"{"PublicIP":"2.2.2.2"}"#).await;
        });
        let mut pool = LocalPool::new();
        let log = spawn_routes(&pool, &store, own());
        pool.run_until_stalled();
        block_on(async {
            put(&store, "10.3.3.0-24", r#"{"PublicIP":"3.3.3.3"}"#).await;
            put(&store, "nonsense", "x").await;
            put(&store, "10.3.2.0-24", "not json").await;
            put(&store, "10.3.4.0-24", r#"{"PublicIP":"4.4.4.4","BackendType":"vxlan"}"#).await;
            put(&store, "10.3.2.0-24", r#"{"PublicIP":"2.2.2.2","PublicIPv6":null}"#).await;
            put(&store, "10.3.2.0-24", r#"{"PublicIP":"2.2.2.9"}"#).await;
            store.delete(&format!("{PREFIX}/subnets/10.3.3.0-24")).await.unwrap();
            put(&store, "10.3.1.0-24", r#"{"PublicIP":"9.9.9.9"}"#).await;
        });
        pool.run_until_stalled();
        assert_eq!(
            *log.borrow(),
            [
                "+10.3.2.0/24 2.2.2.2",
                "+10.3.3.0/24 3.3.3.3",
                "skip key /coreos.com/network/subnets/nonsense does not name a subnet",
                "skip value is not JSON",
                "skip holder uses backend vxlan",
                "+10.3.2.0/24 2.2.2.9",
                "-10.3.3.0/24",
                "lost Some(9.9.9.9)",
            ]
        );
    }

    proptest! {
        #[test]
        fn routes_converge_to_the_leases_across_compactions(
            rounds in prop::collection::vec(prop::collection::vec((2u8..7, 0u8..4), 0..9), 1..6),
        ) {
            let store = Embedded::with_options(Options { history: 3 });
            let mut follower = Follower::new(store.clone(), &lease::subnets_prefix(PREFIX));
            let mut routes = Routes::new(PREFIX, Some(own()));
            for round in rounds {
                for (third, holder) in round {
                    let name = format!("10.3.{third}.0-24");
                    block_on(async {
                        match holder {
                            0 => { store.delete(&format!("{PREFIX}/subnets/{name}")).await.unwrap(); }
                            _ => put(&store, &name, &format!(r#"{{"PublicIP":"1.1.1.{holder}"}}"#)).await,
                        }
                    });
                }
                while let Some(change) = follower.take_ready().unwrap() {
                    routes.apply(&change);
                }
                let leases = block_on(store.list(&lease::subnets_prefix(PREFIX))).unwrap().entries;
                let expected: Vec<_> = leases.iter().map(|entry| {
                    let lease = read(PREFIX, entry).unwrap();
                    (lease.subnet, lease.attributes.public_ip)
                }).collect();
                prop_assert_eq!(routes.iter().collect::<Vec<_>>(), expected);
            }
        }
    }
}
