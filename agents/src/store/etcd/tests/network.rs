//! Tests of a network's store, whose objects lie in an etcd.

use futures::{StreamExt, executor::block_on};

use super::super::*;
use super::members::Cluster;
use crate::store::{Embedded, NetworkStore};

/// Agents know neither of the two stores nor the root; who decides no more, writes no more.
#[test]
fn a_networks_objects_lie_in_etcd_below_a_root_and_all_else_in_the_process() {
    let cluster = Cluster::start(1);
    let (etcd, own) = (cluster.store(), Embedded::new());
    let store = NetworkStore::shared(own.clone(), etcd.clone(), "/root");
    let (object, lease) = ("/registry/pods/default/a", "/coreos.com/network/subnets/10.1.5.0-24");
    block_on(async {
        let mut watch = store.watch("/registry/pods/", Revision(1)).await.unwrap();
        store.put(object, *b"x").await.unwrap();
        store.put(lease, *b"y").await.unwrap();
        assert_eq!(&*etcd.list("").await.unwrap().entries[0].key, "/root/registry/pods/default/a");
        assert_eq!(etcd.list("").await.unwrap().entries.len(), 1);
        assert_eq!(&*own.list("").await.unwrap().entries[0].key, lease);
        let read = store.get(object).await.unwrap().unwrap();
        let listed = store.list("/registry/").await.unwrap().entries;
        assert_eq!((&*read.key, &listed[..]), (object, std::slice::from_ref(&read)));
        assert_eq!(&*watch.next().await.unwrap().unwrap().key, object);
        assert_eq!(&*store.get(lease).await.unwrap().unwrap().value, b"y");

        let leader = "/registry/leases/kube-system/leader";
        let Outcome::Done(mod_revision) = store.put(leader, *b"one").await.unwrap() else { unreachable!() };
        let fenced = store.fenced(Compare { key: leader.into(), mod_revision });
        assert!(matches!(fenced.put(object, *b"1").await.unwrap(), Outcome::Done(_)));
        assert!(matches!(fenced.put(lease, *b"1").await.unwrap(), Outcome::Done(_)), "which is its own");
        store.put(leader, *b"other").await.unwrap();
        assert_eq!(fenced.put(object, *b"2").await.unwrap(), Outcome::Conflict);
        assert_eq!(fenced.delete(object).await.unwrap(), Outcome::Conflict);
        assert_eq!(&*store.get(object).await.unwrap().unwrap().value, b"1");
    });
}
