//! The reconcile framework that all controllers stand on, and the controllers.
//!
//! A controller keeps a picture of the objects it reads; [`run`] feeds it from the store's watches, queues the keys that
//! it names, and carries out what its reconcile function asks for. Level-triggered: reconcile looks at the picture,
//! never at the event that queued the key.
//!
//! Invariants: reconcile is pure; what it asks for happens as one transaction, and only if every object it changes is
//! still as in the picture, else the key is tried again after the next change; the picture contains the controller's own
//! last write before the next reconcile, so that no number is given out twice.
//!
//! May depend on [`crate::store`] and [`crate::objects`].
//!
//! Read first: the controller pattern of Kubernetes (level-triggered reconciliation).

pub mod address;

pub mod bind;

pub mod endpoints;

pub mod lifecycle;

pub mod service_ip;

mod picture;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    convert::Infallible,
    sync::Arc,
};

use futures::TryStreamExt;

use crate::{
    objects::{self, Object},
    store::{Compare, Followed, KeyValue, Op, Outcome, Revision, Store, StoreError},
};

pub(crate) use picture::Followers;
pub use picture::Mirror;

/// How many changes are taken before the next reconcile, so that a busy store cannot keep a controller from acting.
const DRAIN_LIMIT: usize = 1024;

/// Something that brings one aspect of the cluster to where it should be.
pub trait Controller {
    /// What warnings are labelled with.
    const NAME: &'static str;

    /// Names the prefixes that it reads; whatever it writes lies in one of them.
    fn prefixes(&self) -> Vec<String>;

    /// Takes a change into the picture and names the keys whose reconciliation it may alter.
    fn observe(&mut self, change: &Followed) -> Vec<Arc<str>>;

    /// Says what to change for a key, from the picture alone.
    fn reconcile(&mut self, key: &Arc<str>) -> Changes;
}

/// What a reconcile asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    compares: Vec<Compare>,
    ops: Vec<Op>,
    warning: Option<String>,
}

impl Changes {
    /// Asks for nothing: all is as it should be.
    pub fn none() -> Self {
        Self::default()
    }

    /// Asks for nothing and says why the key is not as it should be.
    pub fn warn(text: impl Into<String>) -> Self {
        Self { warning: Some(text.into()), ..Self::default() }
    }

    /// Adds the writing of an object, on condition that it is as it was read, or absent if it was not read. An object
    /// that cannot be written becomes a warning.
    pub fn write<T: Object>(mut self, object: &T) -> Self {
        match objects::write_op(object) {
            Ok((compare, op)) => {
                self.compares.push(compare);
                self.ops.push(op);
            }
            Err(error) => self.warning = Some(error.to_string()),
        }
        self
    }

    /// Adds the removal of an object, on condition that it is as it was read.
    pub fn delete<T: Object>(mut self, object: &T) -> Self {
        match objects::key_of(object) {
            Ok(key) => {
                self.compares
                    .push(Compare { key: Arc::clone(&key), mod_revision: objects::revision(object) });
                self.ops.push(Op::Delete { key });
            }
            Err(error) => self.warning = Some(error.to_string()),
        }
        self
    }

    /// Makes all of it depend on that there is no such object: what a picture lacks may only be late.
    pub fn without<T: Object>(mut self, namespace: &str, name: &str) -> Self {
        self.compares.push(Compare { key: objects::key::<T>(namespace, name), mod_revision: Revision::ZERO });
        self
    }

    /// Says whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Gives the warning, if there is one.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }
}

/// Something a person should know about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The controller that says so.
    pub controller: &'static str,
    /// The object's key.
    pub key: Arc<str>,
    /// What is wrong.
    pub text: String,
}

/// Reads the revision at which the object of a change came to exist.
pub(crate) fn created(change: &Followed) -> Revision {
    let (Followed::Put(KeyValue { create_revision, .. })
    | Followed::Delete(KeyValue { create_revision, .. })) = change;
    *create_revision
}

/// Keys that wait for a reconcile, each once, first come first served.
#[derive(Default)]
struct Queue {
    order: VecDeque<Arc<str>>,
    queued: BTreeSet<Arc<str>>,
}

impl Queue {
    fn push(&mut self, key: Arc<str>) {
        if self.queued.insert(Arc::clone(&key)) {
            self.order.push_back(key);
        }
    }

    fn pop(&mut self) -> Option<Arc<str>> {
        let key = self.order.pop_front()?;
        self.queued.remove(&key);
        Some(key)
    }
}

/// Runs a controller until the store fails; its picture is complete before the first reconcile. A warning is given once
/// per key until it changes.
///
/// # Errors
/// [`StoreError`] other than a compaction; run it again with a new controller then.
pub async fn run<S: Store, C: Controller>(
    store: S,
    mut controller: C,
    mut warn: impl FnMut(Warning),
) -> Result<Infallible, StoreError> {
    let mut followers = Followers::new(&store, &controller.prefixes());
    let mut queue = Queue::default();
    let mut warned: BTreeMap<Arc<str>, String> = BTreeMap::new();
    loop {
        // 1. Bring the picture up to date.
        for _ in 0..DRAIN_LIMIT {
            let Some(change) = followers.take_ready()? else { break };
            controller.observe(&change).into_iter().for_each(|key| queue.push(key));
        }
        // 2. Reconcile one key, or wait for a change.
        let next = if followers.are_current() { queue.pop() } else { None };
        let Some(key) = next else {
            observe_next(&mut followers, &mut controller, &mut queue).await?;
            continue;
        };
        let changes = controller.reconcile(&key);
        report::<C>(&key, &changes, &mut warned, &mut warn);
        if changes.is_empty() {
            continue;
        }
        // 3. Carry it out, then see it before anything else is decided.
        let written: Vec<Arc<str>> = changes.ops.iter().map(|op| Arc::clone(op.key())).collect();
        match store.transact(changes.compares, changes.ops).await? {
            Outcome::Done(at) => {
                while !written.iter().all(|key| followers.has_seen(key, at)) {
                    observe_next(&mut followers, &mut controller, &mut queue).await?;
                }
            }
            Outcome::Conflict => {
                queue.push(key);
                observe_next(&mut followers, &mut controller, &mut queue).await?;
            }
        }
    }
}

async fn observe_next<S: Store, C: Controller>(
    followers: &mut Followers<S>,
    controller: &mut C,
    queue: &mut Queue,
) -> Result<(), StoreError> {
    if let Some(change) = followers.try_next().await? {
        controller.observe(&change).into_iter().for_each(|key| queue.push(key));
    }
    Ok(())
}

fn report<C: Controller>(
    key: &Arc<str>,
    changes: &Changes,
    warned: &mut BTreeMap<Arc<str>, String>,
    warn: &mut impl FnMut(Warning),
) {
    match changes.warning() {
        None => {
            warned.remove(key);
        }
        Some(text) => {
            if warned.insert(Arc::clone(key), text.into()).as_deref() != Some(text) {
                warn(Warning { controller: C::NAME, key: Arc::clone(key), text: text.into() });
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{cell::RefCell, rc::Rc};

    use futures::{
        executor::{LocalPool, block_on},
        task::LocalSpawnExt,
    };
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;
    use crate::store::{Embedded, embedded::Options};

    /// A cluster on one thread: a store and controllers that run to quiescence.
    pub(crate) struct Cluster {
        pub(crate) store: Embedded,
        pool: LocalPool,
        warnings: Rc<RefCell<Vec<String>>>,
    }

    impl Cluster {
        pub(crate) fn new() -> Self {
            Self::on(Embedded::new())
        }

        pub(crate) fn on(store: Embedded) -> Self {
            Self { store, pool: LocalPool::new(), warnings: Rc::default() }
        }

        pub(crate) fn start<C: Controller + 'static>(&self, controller: C) {
            let (store, warnings) = (self.store.clone(), Rc::clone(&self.warnings));
            let task = async move {
                let warn = |warning: Warning| {
                    warnings.borrow_mut().push(format!("{}: {}", warning.key, warning.text))
                };
                let _ = run(store, controller, warn).await;
            };
            self.pool.spawner().spawn_local(task).unwrap();
        }

        /// Runs until nothing moves and gives the warnings since the last time.
        pub(crate) fn settle(&mut self) -> Vec<String> {
            self.pool.run_until_stalled();
            self.warnings.take()
        }

        pub(crate) fn create<T: Object>(&self, object: Value) -> T {
            let object: T = serde_json::from_value(object).unwrap();
            block_on(objects::create(&self.store, &object, 7)).unwrap()
        }

        pub(crate) fn get<T: Object>(&self, name: &str) -> T {
            block_on(objects::get(&self.store, "default", name)).unwrap().unwrap()
        }

        pub(crate) fn list<T: Object>(&self) -> Vec<T> {
            block_on(objects::list(&self.store)).unwrap()
        }

        pub(crate) fn delete<T: Object>(&self, name: &str) {
            block_on(self.store.delete(&objects::key::<T>("default", name))).unwrap();
        }

        pub(crate) fn change<T: Object>(&self, name: &str, change: impl FnOnce(&mut T)) {
            let mut object = self.get(name);
            change(&mut object);
            block_on(objects::update(&self.store, &object)).unwrap();
        }
    }

    /// Gives every pod a label with how many pods it sees, a controller that depends on its own writes.
    #[derive(Default)]
    struct Numberer {
        pods: Mirror<Pod>,
    }

    impl Controller for Numberer {
        const NAME: &'static str = "numberer";

        fn prefixes(&self) -> Vec<String> {
            vec![Pod::DIRECTORY.into()]
        }

        fn observe(&mut self, change: &Followed) -> Vec<Arc<str>> {
            let _ = self.pods.apply(change);
            vec![Arc::clone(change.key())]
        }

        fn reconcile(&mut self, key: &Arc<str>) -> Changes {
            let Some(pod) = self.pods.get(key) else { return Changes::none() };
            if pod.metadata.labels.is_some() {
                return Changes::none();
            }
            let taken = self.pods.iter().filter(|(_, pod)| pod.metadata.labels.is_some()).count();
            let mut pod = pod.clone();
            pod.metadata.labels = Some([("number".to_owned(), taken.to_string())].into());
            Changes::none().write(&pod)
        }
    }

    fn numbers(cluster: &Cluster) -> Vec<String> {
        let label = |pod: Pod| pod.metadata.labels.unwrap_or_default().remove("number").unwrap();
        let mut numbers: Vec<String> = cluster.list().into_iter().map(label).collect();
        numbers.sort();
        numbers
    }

    #[test]
    fn controller_sees_its_own_writes_before_it_decides_again() {
        let mut cluster = Cluster::new();
        cluster.start(Numberer::default());
        for name in ["a", "b", "c"] {
            cluster.create::<Pod>(json!({"metadata": {"name": name}}));
        }
        cluster.settle();
        assert_eq!(numbers(&cluster), ["0", "1", "2"]);
    }

    #[test]
    fn controller_converges_although_history_is_compacted_all_the_time() {
        let mut cluster = Cluster::on(Embedded::with_options(Options { history: 1 }));
        cluster.start(Numberer::default());
        for name in ["a", "b", "c", "d"] {
            cluster.create::<Pod>(json!({"metadata": {"name": name}}));
        }
        cluster.settle();
        assert_eq!(numbers(&cluster), ["0", "1", "2", "3"]);
    }

    #[test]
    fn two_instances_settle_by_conflict() {
        let mut cluster = Cluster::new();
        cluster.start(Numberer::default());
        cluster.start(Numberer::default());
        for name in ["a", "b"] {
            cluster.create::<Pod>(json!({"metadata": {"name": name}}));
        }
        cluster.settle();
        assert_eq!(numbers(&cluster).len(), 2);
    }
}
