//! Tests of the embedded store: in memory and on disk, against the model, and as a linearizable object.

use futures::{FutureExt, StreamExt, executor::block_on};
use proptest::prelude::*;

use super::*;
use crate::store::{
    Event, EventKind, VALUE_LIMIT, Watching,
    conformance::{Step, Write, follows_the_model, steps},
};

/// Runs a script against the model; time is the store's to be told.
fn conforms(store: &Embedded, steps: &[Step]) {
    let mut now = Instant::ZERO;
    let pass = |seconds| {
        now = now + seconds;
        store.advance(now).unwrap();
    };
    block_on(follows_the_model(store, "/model/", steps, Duration::ZERO, pass));
}

proptest! {
    /// etcd API, Txn, Watch, Lease and Compact: whatever is done in whatever order.
    #[test]
    fn embedded_store_follows_the_model(steps in steps()) {
        conforms(&Embedded::new(), &steps);
    }

    /// etcd API, Range and Watch by prefix: the keys of others are not seen.
    #[test]
    fn a_shared_store_follows_the_model_beside_foreign_keys(before in 1u64..20, steps in steps()) {
        let store = Embedded::new();
        for at in 0..before {
            block_on(store.put(&format!("/foreign/{at}"), *b"x")).unwrap();
        }
        conforms(&store, &steps);
    }
}

proptest! {
    // Each of its transactions is written and synced.
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_store_on_disk_follows_the_model_and_is_the_same_when_opened_again(steps in steps()) {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(directory.path(), Options::default()).unwrap();
        conforms(&store, &steps);
        let before = (block_on(store.list("")).unwrap(), store.lock().state.last_lease);
        drop(store);
        let store = Embedded::open(directory.path(), Options::default()).unwrap();
        prop_assert_eq!(before, (block_on(store.list("")).unwrap(), store.lock().state.last_lease));
    }
}

/// etcd API, Watch: the answer names the compacted revision.
#[test]
fn watch_that_falls_behind_ends_with_compacted() {
    block_on(async {
        let store = Embedded::with_options(Options { history: 3 });
        let mut watch = store.watch("/", Revision(1)).await.unwrap();
        for value in 0..5u8 {
            store.put("/a", [value]).await.unwrap();
        }
        assert_eq!(watch.next().await, Some(Err(StoreError::Compacted { oldest: Revision(3) })));
        assert_eq!(watch.next().await, None);
        let refused = store.watch("/", Revision(2)).await.unwrap_err();
        assert_eq!(refused, StoreError::Compacted { oldest: Revision(3) });
        let mut watch = store.watch("/", Revision(3)).await.unwrap();
        assert_eq!(watch.next().await.unwrap().unwrap().mod_revision, Revision(3));
    });
}

/// etcd API, Compact: only what is forgotten cannot be watched.
#[test]
fn compaction_of_read_history_does_not_end_a_watch() {
    block_on(async {
        let store = Embedded::new();
        let mut watch = store.watch("/", Revision(1)).await.unwrap();
        store.put("/a", *b"1").await.unwrap();
        watch.next().await.unwrap().unwrap();
        store.compact(Revision(1)).await.unwrap();
        store.put("/a", *b"2").await.unwrap();
        assert_eq!(watch.next().await.unwrap().unwrap().mod_revision, Revision(2));
        assert!(watch.next().now_or_never().is_none());
    });
}

#[test]
fn progress_of_a_quiet_watch_outlives_a_compaction() {
    block_on(async {
        let store = Embedded::new();
        let mut watch = store.watch("/quiet/", Revision(1)).await.unwrap();
        for _ in 0..9 {
            store.put("/busy", *b"x").await.unwrap();
        }
        assert!(watch.next().now_or_never().is_none());
        store.compact(Revision(9)).await.unwrap();
        assert_eq!(watch.progress(), Revision(9));
        assert!(store.watch("/quiet/", watch.progress().next()).await.is_ok());
    });
}

/// etcd API, Watch: events of one revision belong together. Progress names the last revision that was delivered whole, so that
/// a watch that is broken off anywhere within one gets all of it again.
#[test]
fn a_watch_broken_off_within_a_revision_gets_all_of_it_again() {
    block_on(async {
        let store = Embedded::new();
        let mut watch = store.watch("/", Revision(1)).await.unwrap();
        let mut events = Vec::new();
        // Batches of a watch end within revisions, at their ends, and one revision is more than two batches.
        for (count, at) in [3, 100, 25, 64, 1, 150, 1].into_iter().zip(1..) {
            let put =
                |number| Op::Put { key: format!("/{number:03}").into(), value: (*b"1").into(), lease: None };
            store.transact(vec![], (0..count).map(put).collect()).await.unwrap();
            events.extend((0..count).map(|number| (format!("/{number:03}"), Revision(at))));
        }
        let read = |event: Event| (event.key.to_string(), event.mod_revision);
        for (at, expected) in events.iter().enumerate() {
            assert_eq!(&read(watch.next().await.unwrap().unwrap()), expected);
            let whole = events.get(at + 1).map_or(store.revision(), |next| Revision(next.1.0 - 1));
            assert_eq!(watch.progress(), whole, "after event {at}");
            let mut again = store.watch("/", whole.next()).await.unwrap();
            let missing = events.iter().find(|event| event.1 > whole);
            let first = again.next().now_or_never().map(|event| read(event.unwrap().unwrap()));
            assert_eq!(first.as_ref(), missing);
        }
        assert!(watch.next().now_or_never().is_none());
    });
}

#[test]
fn time_never_goes_back() {
    block_on(async {
        let store = Embedded::new();
        let second = |number| Instant::ZERO + Duration::from_secs(number);
        store.advance(second(10)).unwrap();
        let lease = store.grant(Duration::from_secs(5)).await.unwrap();
        let remaining = async || store.lease(lease).await.map(|lease| lease.remaining);
        for (now, left) in [(3, 5), (12, 3), (11, 3), (0, 3)] {
            store.advance(second(now)).unwrap();
            assert_eq!(remaining().await, Ok(Duration::from_secs(left)), "told {now}");
        }
        store.keep_alive(lease).await.unwrap();
        assert_eq!(store.next_expiry(), Some(second(17)), "it counts from the latest");
    });
}

/// etcd API, Txn: a key may be written once, and what is refused changes nothing.
#[test]
fn oversized_values_duplicate_keys_and_dead_leases_are_refused() {
    block_on(async {
        let store = Embedded::new();
        let error = store.put("/a", vec![0; VALUE_LIMIT + 1]).await.unwrap_err();
        assert_eq!(error, StoreError::TooLarge { key: "/a".into(), size: VALUE_LIMIT + 1 });
        let twice = vec![Op::Delete { key: "/a".into() }, Op::Delete { key: "/a".into() }];
        let error = store.transact(vec![], twice).await.unwrap_err();
        assert_eq!(error, StoreError::DuplicateKey { key: "/a".into() });
        let leased = Op::Put { key: "/a".into(), value: (*b"1").into(), lease: Some(LeaseId(7)) };
        let error = store.transact(vec![], vec![leased]).await.unwrap_err();
        assert_eq!(error.to_string(), "there is no lease 7");
        assert_eq!(store.revision(), Revision::ZERO);
    });
}

/// etcd API, Lease: its keys are deleted when it expires, which is a revision.
#[test]
fn keys_of_a_lease_go_to_the_nanosecond_and_watches_see_it() {
    block_on(async {
        let store = Embedded::new();
        let lease = store.grant(Duration::from_millis(1500)).await.unwrap();
        let put = |key: &str| Op::Put { key: key.into(), value: (*b"1").into(), lease: Some(lease) };
        store.transact(vec![], vec![put("/a"), put("/b")]).await.unwrap();
        store.put("/b", *b"2").await.unwrap();
        let mut watch = store.watch("/", Revision(3)).await.unwrap();

        // A second and a half is two seconds, as etcd counts whole ones.
        store.advance(Instant::from_nanos(1_999_999_999)).unwrap();
        assert_eq!(store.lease(lease).await.unwrap().remaining, Duration::from_nanos(1));
        assert_eq!(store.lease(lease).await.unwrap().keys, ["/a".into()]);
        assert!(watch.next().now_or_never().is_none());
        assert_eq!(store.next_expiry(), Some(Instant::from_nanos(2_000_000_000)));
        store.advance(Instant::from_nanos(2_000_000_000)).unwrap();
        let Event { kind, key, mod_revision, .. } = watch.next().await.unwrap().unwrap();
        assert_eq!((kind, &*key, mod_revision), (EventKind::Delete, "/a", Revision(3)));
        assert_eq!(store.get("/b").await.unwrap().unwrap().lease, None);
        assert_eq!(store.keep_alive(lease).await, Err(StoreError::NoLease { lease }));
        assert_eq!(store.next_expiry(), None);
    });
}

/// etcd API, Lease: a new leader extends all leases.
#[test]
fn leases_have_all_their_time_again_when_a_store_is_opened() {
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(directory.path(), Options::default()).unwrap();
        let ended = store.grant(Duration::from_secs(5)).await.unwrap();
        let lease = store.grant(Duration::from_secs(9)).await.unwrap();
        let put = Op::Put { key: "/a".into(), value: (*b"1").into(), lease: Some(lease) };
        store.transact(vec![], vec![put]).await.unwrap();
        store.advance(Instant::ZERO + Duration::from_secs(8)).unwrap();
        drop(store);

        let store = Embedded::open(directory.path(), Options::default()).unwrap();
        let found = store.lease(lease).await.unwrap();
        assert_eq!((found.remaining, found.keys), (Duration::from_secs(9), vec!["/a".into()]));
        assert!(store.lease(ended).await.is_err());
        assert_eq!(store.grant(Duration::from_secs(1)).await, Ok(LeaseId(lease.0 + 1)));
        let refused = store.watch("/", Revision(1)).await.unwrap_err();
        assert_eq!(refused, StoreError::Compacted { oldest: Revision(2) });
        store.advance(Instant::ZERO + Duration::from_secs(9)).unwrap();
        assert_eq!(store.get("/a").await, Ok(None));
        assert_eq!(store.revision(), Revision(2));
    });
}

#[test]
fn a_directory_serves_one_store_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let open = || Embedded::open(directory.path(), Options::default());
    let store = open().unwrap();
    let error = open().unwrap_err();
    assert_eq!(error.to_string(), format!("{} is in use by another process", directory.path().display()));
    drop(store);
    open().unwrap();
}

#[test]
fn regression_empty_script_is_fine() {
    conforms(&Embedded::new(), &[Step::Write(Write::Delete(0))]);
}
