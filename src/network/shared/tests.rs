//! Leases of a cluster, kept and followed, in virtual time.

mod simulation;

use flatnet_agents::lease::allocate::Wish;
use flatnet_agents::lease::{Lease, NetworkConfig};
use flatnet_agents::node::ensure_config;
use flatnet_engine::tunnel::Encapsulation;
use futures::executor::{LocalPool, block_on};

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
    block_on(cluster.put(&there("10.7.2.0-24"), *br#"{"PublicIP":"192.168.66.12"}"#)).unwrap();
    let own = Rc::new(RefCell::new(own()));
    let mut pool = LocalPool::new();
    let subnets = ("10.7.0.0/16".parse().unwrap(), lease.subnet);
    let task = follow(cluster.clone(), options, subnets, Rc::clone(&own), into.clone());
    pool.spawner().spawn_local(async { task.await.unwrap() }).unwrap();
    pool.run_until_stalled();
    let held = || {
        let listing = block_on(into.list(&here(""))).unwrap().entries;
        listing.iter().map(|entry| String::from_utf8_lossy(&entry.value).into_owned()).collect::<Vec<_>>()
    };
    let ends = |now: Instant| {
        for gone in own.borrow_mut().going.take_over(now) {
            block_on(into.delete(&gone)).unwrap();
        }
    };
    let other = r#"{"PublicIP":"192.168.66.12"}"#;
    assert_eq!(held(), ["own", other, "gone"], "what flows goes on for a while");
    (0..=1).for_each(|number| ends(hour(number)));
    assert_eq!(held(), ["own", other]);

    block_on(cluster.delete(&there("10.7.2.0-24"))).unwrap();
    pool.run_until_stalled();
    block_on(cluster.put(&there("10.7.2.0-24"), other.as_bytes())).unwrap();
    pool.run_until_stalled();
    (2..=3).for_each(|number| ends(hour(number)));
    assert_eq!(held(), ["own", other], "it was back in time");
    block_on(cluster.delete(&there("10.7.2.0-24"))).unwrap();
    block_on(cluster.put(&there("10.7.2.0-25"), other.as_bytes())).unwrap();
    pool.run_until_stalled();
    block_on(cluster.delete(&there("10.7.2.0-25"))).unwrap();
    pool.run_until_stalled();
    assert_eq!(held(), ["own", other], "of the first nothing is left beside the second");
    (4..=5).for_each(|number| ends(hour(number)));
    assert_eq!(held(), ["own"]);
    assert!(!own.borrow().lost);
    block_on(cluster.delete(&there("10.7.1.0-24"))).unwrap();
    pool.run_until_stalled();
    assert!(own.borrow().lost && own.borrow().next == Instant::ZERO);
    assert_eq!(held(), ["own"], "what flows goes on");
}

/// Its time is over at the moment in which it comes back: what was to end it must not end what is new.
#[test]
fn a_lease_that_is_back_at_its_last_moment_stays_a_route() {
    let (cluster, options, lease, held) = block_on(cluster());
    let config = NetworkConfig::new("10.7.0.0/16".parse().unwrap()).unwrap();
    let claimed = Claimed { config, lease, options, held };
    let part = Part::new(cluster.clone(), claimed, Duration::from_secs(3600), Instant::ZERO);
    let (into, mut pool) = (Embedded::new(), LocalPool::new());
    let follows = part.follow(&into);
    pool.spawner().spawn_local(async { follows.await.unwrap() }).unwrap();
    let other = format!("{}10.7.2.0-24", lease::subnets_prefix(PREFIX));
    let value = *br#"{"PublicIP":"192.168.66.12"}"#;
    block_on(cluster.put(&other, value)).unwrap();
    pool.run_until_stalled();
    block_on(cluster.delete(&other)).unwrap();
    pool.run_until_stalled();
    part.renew(&into, &pool.spawner(), hour(0));
    // Nobody has read yet that it is back.
    block_on(cluster.put(&other, value)).unwrap();
    part.renew(&into, &pool.spawner(), hour(1));
    pool.run_until_stalled();
    let here = format!("{}10.7.2.0-24", lease::subnets_prefix(DEFAULT_PREFIX));
    assert!(block_on(into.get(&here)).unwrap().is_some());
}

fn own() -> Own {
    let (next, until, heard, going, warnings) = (hour(1), None, false, Going::default(), Vec::new());
    Own { held: None, lost: false, tried: None, busy: false, next, until, heard, going, warnings }
}

/// A lease that stands goes on whatever is written over it or beside it; each key that does not stand is named.
#[test]
fn hostile_keys_take_no_route_and_are_each_named() {
    let (cluster, options, lease, _) = block_on(cluster());
    let into = Embedded::new();
    let there = |name: &str| format!("{}{name}", lease::subnets_prefix(PREFIX));
    let put =
        |name: &str, value: &str| block_on(cluster.put(&there(name), value.as_bytes())).map(drop).unwrap();
    let by = |last: u8| format!(r#"{{"PublicIP":"192.168.66.{last}","PublicIPv6":null}}"#);
    put("10.7.2.0-24", &by(12));
    let own = Rc::new(RefCell::new(own()));
    let mut pool = LocalPool::new();
    let subnets = ("10.7.0.0/16".parse().unwrap(), lease.subnet);
    let task = follow(cluster.clone(), options, subnets, Rc::clone(&own), into.clone());
    pool.spawner().spawn_local(async { task.await.unwrap() }).unwrap();
    pool.run_until_stalled();
    let hostile = [
        ("10.7.2.0-24", r#"{"PublicIP":[[[["#),
        ("10.7.3.0-24", r#"{"PublicIP":"300.1.1.1"}"#),
        ("10.7.4.0-24", "\u{0}"),
        ("garbage", &by(13)),
        ("../../config", &by(13)),
        ("10.7.2.128-25", &by(13)),
        ("10.7.0.0-17", &by(13)),
        ("10.7.1.0-25", &by(13)),
        ("0.0.0.0-0", &by(13)),
        ("192.168.66.0-24", &by(13)),
        ("127.0.0.0-8", &by(13)),
    ];
    for (name, value) in hostile {
        put(name, value);
    }
    pool.run_until_stalled();
    let warnings = std::mem::take(&mut own.borrow_mut().warnings);
    for (name, _) in hostile {
        assert!(warnings.iter().any(|warning| warning.contains(&there(name))), "{name}: {warnings:?}");
    }
    assert_eq!(warnings.len(), hostile.len(), "{warnings:?}");
    let entries = block_on(into.list(&lease::subnets_prefix(DEFAULT_PREFIX))).unwrap().entries;
    let kept: Vec<_> = entries.iter().map(|entry| String::from_utf8_lossy(&entry.value)).collect();
    assert_eq!(kept, [by(12)], "as it was read last");
    assert!(!own.borrow().lost && own.borrow().heard);
}
