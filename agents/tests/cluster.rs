//! The whole control side on one thread: objects in, changes for the engine out, in virtual time.
#![allow(clippy::unwrap_used, reason = "the exemption for tests does not reach their helpers")]

use std::{cell::RefCell, rc::Rc, sync::Arc};

use flatnet_agents::{
    Embedded, Store,
    cluster::{Change, watch_cluster},
    controllers::{
        self, address::Addresses, bind::Binder, endpoints::Endpoints, service_ip::ServiceAddresses,
    },
    kubelet::{self, Kubelet, Start},
    lease::{DEFAULT_PREFIX, NetworkConfig, allocate::Wish},
    node::{self, NodeOptions},
    objects::{self, Object},
    pods::PodView,
};
use flatnet_engine::{clock::Instant, tunnel::Encapsulation};
use futures::{
    executor::{LocalPool, block_on},
    task::LocalSpawnExt,
};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use serde_json::{Value, json};

struct Cluster {
    store: Embedded,
    pool: LocalPool,
    log: Rc<RefCell<Vec<String>>>,
}

impl Cluster {
    /// Starts the controllers and the watcher of a network with two nodes.
    fn start() -> Self {
        let cluster = Self { store: Embedded::new(), pool: LocalPool::new(), log: Rc::default() };
        let log = Rc::clone(&cluster.log);
        let store = cluster.store.clone();
        cluster.spawn(async move {
            let sink = |change| log.borrow_mut().push(describe(&change));
            let _ = watch_cluster(&store, DEFAULT_PREFIX, Some(Encapsulation::Udp), sink).await;
        });
        cluster.control(Binder::new(DEFAULT_PREFIX, Some(Encapsulation::Udp)));
        cluster.control(Addresses::new(DEFAULT_PREFIX, Some(Encapsulation::Udp)));
        cluster.control(Endpoints::default());
        cluster.control(ServiceAddresses::new("10.96.0.0/12".parse().unwrap()));
        block_on(async {
            let config = NetworkConfig::new("10.1.0.0/16".parse().unwrap()).unwrap();
            node::ensure_config(&cluster.store, DEFAULT_PREFIX, &config).await.unwrap();
        });
        cluster.join("node-1", 11, "10.1.15.0/24");
        cluster.join("node-2", 12, "10.1.20.0/24");
        cluster
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.pool.spawner().spawn_local(task).unwrap();
    }

    fn control<C: controllers::Controller + 'static>(&self, controller: C) {
        let (store, log) = (self.store.clone(), Rc::clone(&self.log));
        self.spawn(async move {
            let warn =
                |warning: controllers::Warning| log.borrow_mut().push(format!("warning {}", warning.text));
            let _ = controllers::run(store, controller, warn).await;
        });
    }

    fn join(&self, name: &str, last: u8, subnet: &str) {
        let options = NodeOptions {
            prefix: DEFAULT_PREFIX.into(),
            public_ip: [192, 168, 66, last].into(),
            wish: Wish::Exactly(subnet.parse().unwrap()),
            encapsulation: Some(Encapsulation::Udp),
            seed: 7,
        };
        block_on(node::claim(&self.store, &options)).unwrap();
        self.create::<Node>(json!({
            "metadata": {"name": name},
            "status": {"addresses": [{"type": "InternalIP", "address": options.public_ip}]},
        }));
    }

    fn create<T: Object>(&self, object: Value) {
        let object: T = serde_json::from_value(object).unwrap();
        block_on(objects::create(&self.store, &object, 7)).unwrap();
    }

    fn pod(&self, name: &str) {
        self.create::<Pod>(json!({
            "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "echo", "image": "flatnet/echo"}]},
        }));
    }

    fn ready(&self, name: &str) {
        let pod: Pod = block_on(objects::get(&self.store, "default", name)).unwrap().unwrap();
        let mut kubelet = Kubelet::default();
        kubelet.adopt(&Arc::new(PodView::read(&pod).unwrap()), vec![Start::Runs], Instant::ZERO);
        block_on(kubelet::report(&self.store, "default", name, |pod| kubelet.status(pod))).unwrap();
    }

    /// Runs to quiescence and gives what was reported since the last time.
    fn settle(&mut self) -> Vec<String> {
        self.pool.run_until_stalled();
        self.log.take()
    }
}

fn describe(change: &Change) -> String {
    match change {
        Change::Lease { subnet, holder } => format!("lease {subnet} {}", holder.public_ip),
        Change::LeaseRemoved { subnet } => format!("lease {subnet} gone"),
        Change::Node { name, address } => format!("node {name} {address}"),
        Change::NodeRemoved { name } => format!("node {name} gone"),
        Change::Pod(pod) => format!("pod {} {} on {}", pod.name, pod.address, pod.node),
        Change::PodRemoved(pod) => format!("pod {} gone", pod.name),
        Change::Service { service, frontends, node_ports } => {
            let backends: Vec<_> = service
                .backends
                .iter()
                .map(|backend| (backend.address.to_string(), backend.weight))
                .collect();
            let weighted =
                |(address, weight)| if weight == 1 { address } else { format!("{address}*{weight}") };
            let backends: Vec<String> = backends.into_iter().map(weighted).collect();
            let keys =
                frontends.iter().map(ToString::to_string).chain(node_ports.iter().map(ToString::to_string));
            format!(
                "service {} {} [{}] -> {}",
                service.id,
                service.name,
                keys.collect::<Vec<_>>().join(", "),
                backends.join(" ")
            )
        }
        Change::ServiceRemoved { id, name } => format!("service {id} {name} gone"),
        Change::Warning(warning) => format!("warning {}", warning.text),
    }
}

#[test]
fn objects_become_what_the_engine_needs() {
    let mut cluster = Cluster::start();
    assert_eq!(
        cluster.settle(),
        [
            "lease 10.1.15.0/24 192.168.66.11",
            "lease 10.1.20.0/24 192.168.66.12",
            "node node-1 192.168.66.11",
            "node node-2 192.168.66.12",
        ]
    );

    cluster.pod("web-1");
    cluster.pod("web-2");
    cluster.create::<Service>(json!({
        "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"name": "echo", "port": 7}]},
    }));
    let log = cluster.settle();
    assert!(log.contains(&"pod web-1 10.1.15.2 on node-1".to_owned()), "{log:#?}");
    assert!(log.contains(&"pod web-2 10.1.20.2 on node-2".to_owned()), "{log:#?}");
    assert_eq!(log.last().unwrap(), "service 0 default/web:echo [TCP 10.96.1.0:7, TCP *:30086] -> ");

    cluster.ready("web-1");
    cluster.ready("web-2");
    let log = cluster.settle();
    assert_eq!(
        log.last().unwrap(),
        "service 0 default/web:echo [TCP 10.96.1.0:7, TCP *:30086] -> 10.1.15.2 10.1.20.2"
    );

    block_on(cluster.store.delete("/registry/pods/default/web-1")).unwrap();
    let log = cluster.settle();
    assert_eq!(
        log,
        ["pod web-1 gone", "service 0 default/web:echo [TCP 10.96.1.0:7, TCP *:30086] -> 10.1.20.2",]
    );

    block_on(cluster.store.delete("/registry/services/specs/default/web")).unwrap();
    assert_eq!(cluster.settle(), ["service 0 default/web:echo gone"]);
}

#[test]
fn replaced_pod_is_gone_before_its_successor_comes() {
    let mut cluster = Cluster::start();
    cluster.pod("web-1");
    cluster.settle();
    block_on(cluster.store.delete("/registry/pods/default/web-1")).unwrap();
    cluster.pod("web-1");
    assert_eq!(cluster.settle(), ["pod web-1 gone", "pod web-1 10.1.15.3 on node-1"]);
}

#[test]
fn nothing_is_said_twice_and_garbage_touches_nothing() {
    let mut cluster = Cluster::start();
    cluster.pod("web-1");
    cluster.settle();
    let key: Arc<str> = objects::key::<Pod>("default", "web-1");
    let entry = block_on(cluster.store.get(&key)).unwrap().unwrap();
    block_on(cluster.store.put(&key, entry.value)).unwrap();
    assert!(cluster.settle().is_empty());

    block_on(cluster.store.put("/registry/pods/default/bad", *b"{")).unwrap();
    block_on(cluster.store.put("/coreos.com/network/subnets/bad", *b"{")).unwrap();
    assert_eq!(
        cluster.settle(),
        [
            "warning key /coreos.com/network/subnets/bad does not name a subnet",
            "warning /registry/pods/default/bad does not hold a Pod",
        ]
    );
}

#[test]
fn the_same_run_says_the_same() {
    let run = || {
        let mut cluster = Cluster::start();
        for at in 0..20 {
            cluster.pod(&format!("web-{at}"));
        }
        let log = cluster.settle();
        (log, cluster.store.revision())
    };
    assert_eq!(run(), run());
}

#[test]
fn a_taken_address_is_the_older_services_until_it_lets_go() {
    let mut cluster = Cluster::start();
    cluster.settle();
    let spec = json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]});
    cluster.create::<Service>(json!({"metadata": {"name": "z-older"}, "spec": spec.clone()}));
    cluster.create::<Service>(json!({"metadata": {"name": "a-younger"}, "spec": spec}));
    let log = cluster.settle();
    let published: Vec<_> =
        log.iter().filter(|line| line.starts_with("service")).map(String::as_str).collect();
    assert_eq!(
        published,
        ["service 0 default/z-older:80 [TCP 10.96.0.10:80] -> ", "service 1 default/a-younger:80 [] -> "]
    );
    assert!(log.iter().any(|line| line.contains("TCP 10.96.0.10:80 belongs to")), "{log:#?}");

    block_on(cluster.store.delete("/registry/services/specs/default/z-older")).unwrap();
    let log = cluster.settle();
    let published: Vec<_> =
        log.iter().filter(|line| line.starts_with("service")).map(String::as_str).collect();
    assert_eq!(
        published,
        ["service 0 default/z-older:80 gone", "service 1 default/a-younger:80 [TCP 10.96.0.10:80] -> "]
    );
}

#[test]
fn a_pods_new_weight_is_said_with_its_service() {
    let mut cluster = Cluster::start();
    cluster.pod("web-1");
    cluster.create::<Service>(json!({
        "metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
    }));
    cluster.settle();
    cluster.ready("web-1");
    assert_eq!(cluster.settle().last().unwrap(), "service 0 default/web:80 [TCP 10.96.1.0:80] -> 10.1.15.2");
    let mut pod = block_on(objects::get::<Pod>(&cluster.store, "default", "web-1")).unwrap().unwrap();
    pod.metadata.annotations.get_or_insert_default().insert("flatnet.dev/weight".into(), "3".into());
    block_on(objects::update(&cluster.store, &pod)).unwrap();
    assert_eq!(
        cluster.settle(),
        ["pod web-1 10.1.15.2 on node-1", "service 0 default/web:80 [TCP 10.96.1.0:80] -> 10.1.15.2*3"]
    );
}
