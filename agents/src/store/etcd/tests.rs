//! Tests of the store in a real etcd: against the model, as a linearizable object, and while members die.

mod members;

mod network;

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, executor::block_on};
use proptest::prelude::*;

use self::members::{Authority, Cluster};
use super::*;
use crate::store::{
    Event, EventKind, Followed, Follower, VALUE_LIMIT, Watching,
    conformance::{follows_the_model, steps_by_the_clock},
    history::judge,
};

fn put(key: &str, lease: Option<LeaseId>) -> Op {
    Op::Put { key: key.into(), value: (*b"x").into(), lease }
}

proptest! {
    // Each has an etcd of its own, because the model knows all that was ever compacted.
    #![proptest_config(ProptestConfig::with_cases(6))]

    /// etcd API, Txn, Watch, Lease and Compact: whatever is done in whatever order, but for time that passes.
    #[test]
    fn etcd_follows_the_model(steps in steps_by_the_clock()) {
        let cluster = Cluster::start(1);
        let store = cluster.store();
        for _ in 0..30 {
            // So that there is a revision as far back as a script goes.
            block_on(store.put("/before", *b"x")).unwrap();
        }
        let second = Duration::from_secs(1);
        block_on(follows_the_model(&store, "/model/", &steps, second, |_| unreachable!("no step lets time pass")));
    }
}

/// etcd API guarantees, linearizability: reads and writes of all clients have one order, and it is that of time.
#[test]
fn histories_of_concurrent_clients_of_etcd_are_linearizable() {
    let cluster = Cluster::start(3);
    let stores = (0..12).map(|seed| {
        let store = Etcd::open(&Options { seed, ..cluster.options() }).unwrap();
        for key in block_on(store.list("")).unwrap().entries {
            block_on(store.delete(&key.key)).unwrap();
        }
        store
    });
    assert!(judge(stores, None) > 100, "the clients never met");
}

/// etcd API, Lease: its keys are deleted when it expires, which is a revision.
#[test]
fn leases_of_etcd_end_by_its_clock_and_watches_see_it() {
    let cluster = Cluster::start(1);
    let store = cluster.store();
    block_on(async {
        let lease = store.grant(Duration::from_millis(1500)).await.unwrap();
        let ops = vec![put("/a", Some(lease)), put("/b", Some(lease))];
        let Outcome::Done(at) = store.transact(vec![], ops).await.unwrap() else {
            panic!("it is unconditional")
        };
        assert_eq!(store.lease(lease).await.unwrap().keys, ["/a".into(), "/b".into()]);
        let mut watch = store.watch("/", at.next()).await.unwrap();
        for key in ["/a", "/b"] {
            let Event { kind, key: gone, mod_revision, .. } = watch.next().await.unwrap().unwrap();
            assert_eq!((kind, &*gone, mod_revision), (EventKind::Delete, key, at.next()));
        }
        assert_eq!(store.keep_alive(lease).await, Err(StoreError::NoLease { lease }));
        assert_eq!(store.lease(lease).await, Err(StoreError::NoLease { lease }));
    });
}

/// etcd API, Txn: a key may be written once, and what is refused changes nothing.
#[test]
fn etcd_refuses_oversized_values_duplicate_keys_and_dead_leases() {
    let cluster = Cluster::start(1);
    let store = cluster.store();
    block_on(async {
        let before = store.list("").await.unwrap().revision;
        for size in [VALUE_LIMIT, VALUE_LIMIT + 1] {
            let error = store.put("/a", vec![0; size]).await.unwrap_err();
            assert_eq!(error, StoreError::TooLarge { key: "/a".into(), size });
        }
        let error = store.transact(vec![], vec![put("/a", None), put("/a", None)]).await.unwrap_err();
        assert_eq!(error, StoreError::DuplicateKey { key: "/a".into() });
        let alive = store.grant(Duration::from_secs(100)).await.unwrap();
        let ops = vec![put("/a", Some(alive)), put("/b", Some(LeaseId(7)))];
        let error = store.transact(vec![], ops).await.unwrap_err();
        assert_eq!(error, StoreError::NoLease { lease: LeaseId(7) });
        assert_eq!(store.list("").await.unwrap().revision, before);
        assert!(store.put("/a", vec![7; VALUE_LIMIT - 1000]).await.is_ok());
        assert_eq!(store.get("/a").await.unwrap().unwrap().value.len(), VALUE_LIMIT - 1000);
    });
}

#[test]
fn keys_of_etcd_that_are_not_utf8_are_passed_over_with_a_warning() {
    let cluster = Cluster::start(1);
    let store = cluster.store();
    block_on(async {
        let foreign = async |key: &'static [u8]| {
            let put = async move |connection: Arc<Connection>| {
                Ok(connection
                    .call(Repeat::No, async |mut member| member.kv.put(key, "x", None).await)
                    .await?)
            };
            store.run(put).await.unwrap();
        };
        foreign(b"/a/\xff\n").await;
        store.put("/a/b", *b"1").await.unwrap();
        let listing = store.list("/a/").await.unwrap();
        assert_eq!(listing.entries.iter().map(|entry| &*entry.key).collect::<Vec<_>>(), ["/a/b"]);
        let mut watch = store.watch("/a/", listing.revision.next()).await.unwrap();
        foreign(b"/a/\xfe").await;
        store.put("/a/c", *b"1").await.unwrap();
        assert_eq!(&*watch.next().await.unwrap().unwrap().key, "/a/c");
        let warnings: Vec<_> = store.take_warnings().iter().map(ToString::to_string).collect();
        let expected =
            ["/a/\\xff\\n", "/a/\\xfe"].map(|key| format!("key {key} is not UTF-8; it is passed over"));
        assert_eq!(warnings, expected);
        assert_eq!(store.take_warnings(), []);
    });
}

/// A member that dies is left; what it had told is not told again, what it had not is.
#[test]
fn a_watch_of_etcd_loses_and_doubles_nothing_when_the_leader_is_killed() {
    const EVENTS: u64 = 400;
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    // The watch is the leader's; who writes begins with another.
    let mut endpoints = cluster.options().endpoints;
    endpoints.swap(0, leader);
    let first = (0..).find(|&seed| flatnet_engine::random::Random::new(seed).below(3) == 0).unwrap();
    let store = Etcd::open(&Options { endpoints, seed: first, ..Options::default() }).unwrap();
    let from = block_on(store.list("/")).unwrap().revision.next();
    let mut watch = block_on(store.watch("/", from)).unwrap();
    let writer = cluster.store();
    let mut written = Vec::new();
    for number in 0..EVENTS {
        if number == EVENTS / 2 {
            assert!(watch.progress() < Revision(from.0 + EVENTS));
            cluster.kill(leader);
        }
        // Whether a write whose answer was lost happened, is found out by reading.
        let key = format!("/{number:03}");
        while !matches!(
            block_on(writer.put_if(&key, *b"x", Revision::ZERO)),
            Ok(Outcome::Done(_) | Outcome::Conflict)
        ) {}
        written.push(block_on(writer.get(&key)).unwrap().unwrap());
    }
    for entry in written {
        let event = block_on(watch.next()).unwrap().unwrap();
        assert_eq!((event.key, event.mod_revision), (entry.key, entry.mod_revision));
    }
    let left = store.take_warnings();
    let killed = cluster.endpoint(leader);
    assert!(left.iter().any(|warning| warning.to_string().contains(&killed)), "{left:?}");
}

#[test]
fn a_member_of_etcd_that_is_not_there_is_passed_over() {
    let mut cluster = Cluster::start(3);
    // The one after the leader: who leads is there.
    cluster.kill((cluster.leader() + 1) % 3);
    for seed in 0..6 {
        let store = Etcd::open(&Options { seed, ..cluster.options() }).unwrap();
        assert!(block_on(store.put("/a", *b"x")).is_ok());
    }
}

/// etcd API, Watch: what was compacted while nobody listened is listed, not lost.
#[test]
fn what_etcd_compacted_while_a_follower_was_cut_off_is_reported_as_a_difference() {
    let mut cluster = Cluster::start(3);
    let only = Options { endpoints: vec![cluster.endpoint(0)], ..cluster.options() };
    let others = Options { endpoints: vec![cluster.endpoint(1), cluster.endpoint(2)], ..cluster.options() };
    let (cut_off, writer) = (Etcd::open(&only).unwrap(), Etcd::open(&others).unwrap());
    block_on(async {
        for key in ["/gone", "/kept", "/changed"] {
            writer.put(key, *b"1").await.unwrap();
        }
        let mut follower = Follower::new(cut_off, "/");
        for key in ["/changed", "/gone", "/kept"] {
            assert_eq!(&**follower.next().await.unwrap().unwrap().key(), key);
        }
        cluster.kill(0);
        while writer.delete("/gone").await.is_err() {}
        writer.put("/changed", *b"2").await.unwrap();
        let Ok(Outcome::Done(at)) = writer.put("/new", *b"1").await else { panic!("it is unconditional") };
        writer.compact(at).await.unwrap();
        cluster.run(0);
        let said = async |follower: &mut Follower<Etcd>| match follower.next().await.unwrap().unwrap() {
            Followed::Put(entry) => format!("+{}", entry.key),
            Followed::Delete(entry) => format!("-{}", entry.key),
        };
        for expected in ["-/gone", "+/changed", "+/new"] {
            assert_eq!(said(&mut follower).await, expected);
        }
    });
}

/// A backup that is played back has forgotten what was after it, and its revisions mean something else from then on.
#[test]
fn an_etcd_restored_from_a_snapshot_is_listed_again_and_compared() {
    let mut cluster = Cluster::start(1);
    let (store, writer) = (cluster.store(), cluster.store());
    block_on(async {
        writer.put("/kept", *b"1").await.unwrap();
        writer.put("/gone", *b"1").await.unwrap();
        let mut follower = Follower::new(store.clone(), "/");
        follower.next().await.unwrap().unwrap();
        follower.next().await.unwrap().unwrap();
        let snapshot = cluster.path("snapshot").display().to_string();
        writer.delete("/gone").await.unwrap();
        writer.put("/older", *b"1").await.unwrap();
        cluster.etcdctl(0, &["snapshot", "save", &snapshot]);
        writer.put("/gone", *b"2").await.unwrap();
        for _ in 0..10 {
            writer.delete("/older").await.unwrap();
            writer.put("/older", *b"2").await.unwrap();
        }
        let before = writer.list("/").await.unwrap().revision;
        while follower.seen() < before {
            follower.next().await.unwrap().unwrap();
        }
        cluster.kill(0);
        let (data, initial) = (cluster.path("restored"), cluster.initial());
        let peers = initial.split_once('=').unwrap().1.to_owned();
        cluster.etcdctl(
            0,
            &[
                "snapshot",
                "restore",
                &snapshot,
                "--data-dir",
                &data.display().to_string(),
                "--name",
                "member-1",
                "--initial-cluster",
                &initial,
                "--initial-advertise-peer-urls",
                &peers,
            ],
        );
        cluster.members[0].data = data;
        cluster.run(0);

        let error = follower.next().await.unwrap().unwrap_err();
        assert!(matches!(error, StoreError::Restored { .. }), "{error}");
        let Followed::Delete(gone) = follower.next().await.unwrap().unwrap() else {
            panic!("/gone was not there")
        };
        let Followed::Put(older) = follower.next().await.unwrap().unwrap() else {
            panic!("/older was older")
        };
        assert_eq!((&*gone.key, &*older.key, &*older.value), ("/gone", "/older", b"1".as_slice()));
        assert!(follower.seen() < before);
        let warnings = store.take_warnings();
        assert!(warnings.iter().any(|warning| matches!(warning, Warning::Restored { .. })), "{warnings:?}");
        // It goes on from there.
        writer.put("/new", *b"1").await.unwrap();
        assert_eq!(&**follower.next().await.unwrap().unwrap().key(), "/new");
    });
}

#[test]
fn etcd_is_spoken_to_over_mutual_tls_and_strangers_are_told_why_not() {
    let cluster = Cluster::start_with(1, Some(Authority::new()));
    let endpoint = cluster.endpoint(0);
    assert!(block_on(cluster.store().put("/a", *b"x")).is_ok());
    let short = Duration::from_millis(300);
    let said = |tls: Tls| {
        let store = Etcd::open(&Options { tls, deadline: short, ..cluster.options() }).unwrap();
        block_on(store.get("/a")).unwrap_err().to_string()
    };
    let own = cluster.tls.as_ref().unwrap().tls();
    let stranger = said(Tls { ca: Some(Authority::new().ca()), ..own.clone() });
    assert_eq!(
        stranger,
        format!("store cannot be reached: {endpoint}: invalid peer certificate: UnknownIssuer")
    );
    let nobody = said(Tls { certificate: None, key: None, ..own });
    assert!(nobody.contains(&endpoint) && nobody.to_lowercase().contains("certificate"), "{nobody}");
}

/// A CA alone is enough where etcd asks for no certificate; flannel ignores it then.
#[test]
fn a_ca_alone_makes_a_connection_to_etcd_one_with_tls() {
    let mut authority = Authority::new();
    authority.wants_certificates = false;
    let cluster = Cluster::start_with(1, Some(authority));
    let ca = cluster.tls.as_ref().unwrap().ca();
    let tls = Tls { ca: Some(ca), ..Tls::default() };
    let store = Etcd::open(&Options { tls, ..cluster.options() }).unwrap();
    assert!(block_on(store.put("/a", *b"x")).is_ok());
}

#[test]
fn users_of_etcd_log_in_and_a_wrong_password_is_said_but_not_shown() {
    let cluster = Cluster::start(1);
    let endpoint = cluster.endpoint(0);
    for arguments in
        [&["user", "add", "root:right"][..], &["user", "grant-role", "root", "root"], &["auth", "enable"]]
    {
        cluster.etcdctl(0, arguments);
    }
    let with = |password: &str| {
        let user = Some(User { name: "root".into(), password: Password(password.into()) });
        let options = Options { user, ..cluster.options() };
        assert!(!format!("{options:?}").contains(password));
        Etcd::open(&options).unwrap()
    };
    let store = with("right");
    block_on(store.put("/a", *b"x")).unwrap();
    let mut watch = block_on(store.watch("/", Revision(1))).unwrap();
    assert_eq!(&*block_on(watch.next()).unwrap().unwrap().key, "/a");
    let refused = "authentication failed, invalid user ID or password";
    let error = block_on(with("sesame").get("/a")).unwrap_err();
    assert_eq!(error.to_string(), format!("store cannot be reached: {endpoint}: etcdserver: {refused}"));
    assert!(block_on(cluster.store().get("/a")).unwrap_err().to_string().contains(&endpoint));
}

#[test]
fn an_etcd_that_is_not_there_is_named_with_the_cause_when_the_time_is_over() {
    let endpoints = vec!["http://127.0.0.1:1".into()];
    let deadline = Duration::from_millis(300);
    let store = Etcd::open(&Options { endpoints, deadline, ..Options::default() }).unwrap();
    let error = block_on(store.put("/a", *b"x")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "store cannot be reached: http://127.0.0.1:1: Connection refused (os error 111)"
    );
    assert!(block_on(store.watch("/", Revision(1))).is_err());
}

#[test]
fn the_thread_of_an_etcd_ends_with_the_last_handle_and_watch() {
    let cluster = Cluster::start(1);
    let store = cluster.store();
    let connection = Arc::downgrade(store.connection());
    let mut watch = block_on(store.watch("/", Revision(1))).unwrap();
    let other = store.clone();
    drop(store);
    block_on(other.put("/a", *b"x")).unwrap();
    drop(other);
    assert_eq!(&*block_on(watch.next()).unwrap().unwrap().key, "/a");
    drop(watch);
    assert_eq!(connection.strong_count(), 0, "nothing of it runs any more");
}

#[test]
fn endpoints_and_files_of_etcd_that_cannot_be_are_refused_before_anybody_is_asked() {
    let refused = |endpoints: &[&str], tls: Tls| {
        let endpoints = endpoints.iter().map(|&endpoint| endpoint.into()).collect();
        Etcd::open(&Options { endpoints, tls, ..Options::default() }).unwrap_err().to_string()
    };
    let file = |path: &str| Some(path.into());
    let none = Tls::default();
    assert_eq!(refused(&[], none.clone()), "no endpoint of etcd is named");
    let form = "is no endpoint: http://HOST:PORT or https://HOST:PORT is";
    assert_eq!(refused(&["127.0.0.1:2379"], none.clone()), format!("127.0.0.1:2379 {form}"));
    assert_eq!(refused(&["https://"], none.clone()), format!("https:// {form}"));
    let tls = Tls { ca: file("/nowhere"), ..none.clone() };
    assert_eq!(
        refused(&["https://a:1", "http://b:1"], tls.clone()),
        "http://b:1 has no TLS, and TLS files are named"
    );
    assert_eq!(refused(&["https://a:1"], tls), "/nowhere cannot be read");
    let half = Tls { certificate: file("/nowhere"), ..none };
    assert_eq!(refused(&["https://a:1"], half), "a certificate needs its key, and a key its certificate");
}
