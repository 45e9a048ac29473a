//! Tests of claims: alone, together, and against others that write at the same time.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use futures::{
    executor::{LocalPool, block_on},
    task::LocalSpawnExt,
};

use super::*;
use crate::store::{Embedded, LeaseState};

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
        let vxlan = NodeOptions { encapsulation: Some(Encapsulation::Vxlan { vni: 9 }), ..options(11, wish) };
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
        assert_eq!(error.to_string(), "subnet 10.3.7.0/24 overlaps 10.3.7.0/24, which 192.168.66.11 holds");
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
        let Outcome::Done(at) = store.put(&lease::subnet_key(PREFIX, narrow), value).await.unwrap() else {
            panic!("unconditional put conflicts")
        };
        assert!(!stands(&store, PREFIX, "10.3.0.0/16".parse().unwrap(), narrow, at).await.unwrap());
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

/// flannel's leases last a day; a key without one is a reservation, which no node may turn into a lease.
#[test]
fn a_claim_for_a_time_ends_with_it_and_a_reservation_stays_one() {
    block_on(async {
        let store = network("10.3.0.0/16").await;
        let day = Some(Duration::from_secs(86_400));
        let (lease, held) = claim_for(&store, &anything(11), day).await.unwrap();
        let key = lease::subnet_key(PREFIX, lease.subnet);
        assert_eq!(store.get(&key).await.unwrap().unwrap().lease, held);
        let (again, renewed) = claim_for(&store, &anything(11), day).await.unwrap();
        assert!(again == lease && renewed.is_some() && renewed != held);
        assert_eq!(store.get(&key).await.unwrap().unwrap().lease, renewed);
        store.revoke(renewed.unwrap()).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap(), None);

        store.put(&key, lease.attributes.to_json().into_bytes()).await.unwrap();
        assert_eq!(claim_for(&store, &anything(11), day).await.unwrap(), (lease, None));
        assert_eq!(store.get(&key).await.unwrap().unwrap().lease, None);
    });
}

/// A lease that is none of the network's, or younger than one that it overlaps, is nobody's route, and takes no subnet either.
#[test]
fn what_does_not_stand_keeps_no_node_from_its_subnet() {
    block_on(async {
        let store = network("10.3.0.0/16").await;
        let foreign = *br#"{"PublicIP":"192.168.66.99","PublicIPv6":null}"#;
        let put = async |name: &str| {
            store.put(&format!("{}{name}", lease::subnets_prefix(PREFIX)), foreign).await.unwrap();
        };
        put("0.0.0.0-0").await;
        let first = claim(&store, &anything(11)).await.unwrap();
        put("10.3.0.0-16").await;
        let second = claim(&store, &anything(12)).await.unwrap();
        assert!(!first.subnet.overlaps(second.subnet), "{first:?} {second:?}");
        store.delete(&lease::subnet_key(PREFIX, first.subnet)).await.unwrap();
        let error = claim(&store, &anything(13)).await.unwrap_err();
        assert!(error.to_string().contains("no free subnet"), "it is the oldest now: {error}");
    });
}
