//! The others' leases as routes.
//!
//! The second half of the node agent's life: after its claim it follows every lease and says what changes for it;
//! [`crate::cluster`] uses the same picture without an own lease.
//!
//! Invariants: a lease that cannot be read removes no route, nor its own last good one; the own subnet is never a route;
//! a route is said again only if its holder changed.
//!
//! May depend on [`crate::lease`] and [`crate::store`].
//!
//! Read first: flannel's `pkg/lease`.

use std::{collections::BTreeMap, convert::Infallible, net::Ipv4Addr, sync::Arc};

use flatnet_engine::tunnel::Encapsulation;
use flatnet_proxy::Ipv4Prefix;
use futures::StreamExt;
use thiserror::Error;

use crate::{
    lease::{self, Attributes, Lease, LeaseError},
    store::{Followed, Follower, Store, StoreError},
};

/// What the others' leases mean for this node's routes.
#[derive(Debug)]
pub enum RouteChange {
    /// Packets to the subnet go to this node; replaces an earlier route of the subnet.
    Add {
        /// The subnet.
        subnet: Ipv4Prefix,
        /// Its holder.
        holder: Holder,
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

/// Who holds a subnet, as the engine knows it.
pub use flatnet_engine::tables::Lease as Holder;

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

/// Reports route changes until the store fails: first the leases that exist, then every change.
///
/// # Errors
/// [`StoreError::Unavailable`]; call it again then. Routes stay as they are meanwhile.
pub async fn follow_routes<S: Store>(
    store: &S,
    prefix: &str,
    own: Lease,
    encapsulation: Option<Encapsulation>,
    mut sink: impl FnMut(RouteChange),
) -> Result<Infallible, StoreError> {
    let mut follower = Follower::new(store.clone(), &lease::subnets_prefix(prefix));
    let mut routes = Routes::new(prefix, Some(own), encapsulation);
    while let Some(change) = follower.next().await {
        let change = match change {
            Ok(change) => routes.apply(&change),
            // What is different comes next.
            Err(StoreError::Restored { .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some(change) = change {
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
    encapsulation: Option<Encapsulation>,
    known: BTreeMap<Ipv4Prefix, Holder>,
}

impl Routes {
    /// Starts without routes, to holders that take packets carried like this, or by host-gw as they are. With `own`, that lease is watched instead of routed.
    pub fn new(prefix: &str, own: Option<Lease>, encapsulation: Option<Encapsulation>) -> Self {
        Self { prefix: prefix.into(), own, encapsulation, known: BTreeMap::new() }
    }

    /// Lists subnets and their holders' addresses.
    pub fn iter(&self) -> impl Iterator<Item = (Ipv4Prefix, Ipv4Addr)> {
        self.known.iter().map(|(&subnet, holder)| (subnet, holder.public_ip))
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
            Some(attributes) if attributes.speaks(self.encapsulation) => {
                let vtep = match self.encapsulation {
                    None | Some(Encapsulation::Udp) => None,
                    Some(Encapsulation::Vxlan { .. }) => match attributes.vtep() {
                        Ok(mac) => Some(mac),
                        Err(error) => return skip(error.into()),
                    },
                };
                let holder = Holder { public_ip: attributes.public_ip, vtep };
                let before = self.known.insert(subnet, holder);
                (before != Some(holder)).then_some(RouteChange::Add { subnet, holder })
            }
            Some(attributes) => match self.known.remove(&subnet) {
                Some(_) => Some(RouteChange::Remove { subnet }),
                None if attributes.backend_type.is_empty() => skip(SkipReason::Backend("udp".into())),
                None => skip(SkipReason::Backend(attributes.backend_type)),
            },
            None => self.known.remove(&subnet).map(|_| RouteChange::Remove { subnet }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use futures::{
        executor::{LocalPool, block_on},
        task::LocalSpawnExt,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::store::{Embedded, embedded::Options};

    const PREFIX: &str = lease::DEFAULT_PREFIX;

    /// Follows routes in the background and keeps what they say.
    fn spawn_routes(
        pool: &LocalPool,
        store: &Embedded,
        encapsulation: Option<Encapsulation>,
    ) -> Rc<RefCell<Vec<String>>> {
        let text = |Holder { public_ip, vtep }| {
            vtep.map_or_else(|| public_ip.to_string(), |mac| format!("{public_ip} at {mac}"))
        };
        let log = Rc::new(RefCell::new(Vec::new()));
        let (store, seen) = (store.clone(), Rc::clone(&log));
        pool.spawner()
            .spawn_local(async move {
                let sink = |change| {
                    seen.borrow_mut().push(match change {
                        RouteChange::Add { subnet, holder } => format!("+{subnet} {}", text(holder)),
                        RouteChange::Remove { subnet } => format!("-{subnet}"),
                        RouteChange::OwnLost { holder } => format!("lost {holder:?}"),
                        RouteChange::Skipped { reason, .. } => format!("skip {reason}"),
                    });
                };
                let _ = follow_routes(&store, PREFIX, own(), encapsulation, sink).await;
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
        let log = spawn_routes(&pool, &store, Some(Encapsulation::Udp));
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

    #[test]
    fn vxlan_routes_say_the_macs_of_peers() {
        let (store, mut pool) = (Embedded::new(), LocalPool::new());
        let vxlan = |last: u8, mac: &str| {
            format!(
                r#"{{"PublicIP":"2.2.2.{last}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
            )
        };
        let log = spawn_routes(&pool, &store, Some(Encapsulation::Vxlan { vni: 1 }));
        block_on(put(&store, "10.3.2.0-24", &vxlan(2, "02:42:0a:03:02:00")));
        pool.run_until_stalled();
        block_on(async {
            put(&store, "10.3.3.0-24", r#"{"PublicIP":"3.3.3.3"}"#).await;
            put(&store, "10.3.2.0-24", &vxlan(2, "c6:d2:32:6f:8f:44")).await;
            put(&store, "10.3.2.0-24", &vxlan(2, "x")).await;
        });
        pool.run_until_stalled();
        assert_eq!(
            *log.borrow(),
            [
                "+10.3.2.0/24 2.2.2.2 at 02:42:0a:03:02:00",
                "skip holder uses backend udp",
                "+10.3.2.0/24 2.2.2.2 at c6:d2:32:6f:8f:44",
                "skip field BackendData.VtepMAC is missing or not of its type",
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
            let mut routes = Routes::new(PREFIX, Some(own()), Some(Encapsulation::Udp));
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
                    let lease = lease::parse_lease(PREFIX, &entry.key, &entry.value).unwrap();
                    (lease.subnet, lease.attributes.public_ip)
                }).collect();
                prop_assert_eq!(routes.iter().collect::<Vec<_>>(), expected);
            }
        }
    }
}
