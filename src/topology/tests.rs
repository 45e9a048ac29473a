//! Topologies and manifests, read whole; each test names every finding of its text.

mod links;
mod nodes;
mod pods;

use super::*;
use flatnet_agents::{
    Embedded,
    cluster::{Change, watch_cluster},
    controllers::{
        self, address::Addresses, bind::Binder, endpoints::Endpoints, service_ip::ServiceAddresses,
    },
    kubelet::{self, Kubelet, Start},
    lease::{DEFAULT_PREFIX, NetworkConfig, allocate::Wish},
    node::{self, NodeOptions},
    objects,
    pods::PodView,
};
use flatnet_engine::clock::Instant;
use futures::{
    executor::{LocalPool, block_on},
    task::LocalSpawnExt,
};
use k8s_openapi::api::core::v1::{Node as NodeObject, NodeAddress, NodeStatus, Pod, PodStatus};
use proptest::prelude::*;
use std::time::Duration;
use std::{cell::RefCell, path::PathBuf, rc::Rc, sync::Arc};

const TWO_NODES: &str = include_str!("../../scripts/topologies/two-nodes.yaml");

/// The shortest legal topology, lines 1 to 4.
const SHORT: &str =
    "apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  nodes: [{name: n, address: 192.168.1.2/24}]\n";

fn file(text: &str) -> Vec<(PathBuf, String)> {
    vec![("t.yaml".into(), text.into())]
}

/// Gives all findings of a text as `line:column message`, warnings marked.
fn findings(text: &str) -> Vec<String> {
    let show = |finding: &Finding| {
        let mark = if finding.is_error() { "" } else { "warning: " };
        format!("{}:{} {mark}{finding}", finding.place().line(), finding.place().column())
    };
    match parse(&file(text)) {
        Ok((_, warnings)) => warnings.iter().map(show).collect(),
        Err(findings) => findings.errors.iter().chain(&findings.warnings).map(show).collect(),
    }
}

#[test]
fn the_networks_own_example_is_read_without_a_word() {
    let (topology, warnings) = parse(&file(TWO_NODES)).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(topology.name, "two-nodes");
    assert_eq!(topology.pod_network.to_string(), "10.1.0.0/16");
    assert_eq!((topology.backend, topology.port, topology.seed), (Some(Encapsulation::Udp), 8285, 7));
    assert_eq!(topology.nodes[1].pod_cidr.unwrap().to_string(), "10.1.20.0/24");
    assert_eq!(topology.nodes[0].gateway, Some([192, 168, 66, 1].into()));
    assert_eq!(topology.hosts[1].gateway, Some([203, 0, 113, 1].into()));
    assert_eq!(topology.routers[0].interfaces.len(), 2);
    assert_eq!((topology.pods.len(), topology.services.len()), (4, 1));
    assert_eq!((topology.time, topology.workers), (None, None));
}

/// Writes what the topology says into a store, as `up` does.
async fn write_objects(store: &Embedded, topology: &Topology) {
    let config = NetworkConfig::new(topology.pod_network).unwrap();
    node::ensure_config(store, DEFAULT_PREFIX, &config).await.unwrap();
    for node in &topology.nodes {
        let options = NodeOptions {
            prefix: DEFAULT_PREFIX.into(),
            public_ip: node.interface.address,
            wish: Wish::Exactly(node.pod_cidr.unwrap()),
            encapsulation: Some(Encapsulation::Udp),
            seed: topology.seed,
        };
        node::claim(store, &options).await.unwrap();
        let mut object = NodeObject::default();
        object.metadata.name = Some(node.name.clone());
        let address = NodeAddress { type_: "InternalIP".into(), address: node.interface.address.to_string() };
        object.status = Some(NodeStatus { addresses: Some(vec![address]), ..NodeStatus::default() });
        objects::create(store, &object, topology.seed).await.unwrap();
    }
    for pod in &topology.pods {
        objects::create(store, pod, topology.seed).await.unwrap();
    }
    for service in &topology.services {
        objects::create(store, service, topology.seed).await.unwrap();
    }
}

/// The status of a pod whose containers all run.
fn running(pod: &Pod) -> Option<PodStatus> {
    let view = PodView::read(pod)?;
    let starts = view.containers.iter().map(|_| Start::Runs).collect();
    let mut kubelet = Kubelet::default();
    kubelet.adopt(&Arc::new(view), starts, Instant::ZERO);
    kubelet.status(pod)
}

/// Starts all controllers, and a watcher that keeps what it is told.
fn start(pool: &LocalPool, store: &Embedded, topology: &Topology) -> Rc<RefCell<Vec<Change>>> {
    let log = Rc::new(RefCell::new(Vec::new()));
    let spawner = pool.spawner();
    let (watched, seen) = (store.clone(), Rc::clone(&log));
    let watch = async move {
        let _ = watch_cluster(&watched, DEFAULT_PREFIX, Some(Encapsulation::Udp), |change| {
            seen.borrow_mut().push(change)
        })
        .await;
    };
    spawner.spawn_local(watch).unwrap();
    let control = |task: std::pin::Pin<Box<dyn Future<Output = ()>>>| spawner.spawn_local(task).unwrap();
    let service_network = topology.service_network;
    let (a, b, c, d) = (store.clone(), store.clone(), store.clone(), store.clone());
    let warn = |warning: controllers::Warning| panic!("{warning:?}");
    control(Box::pin(async move {
        drop(controllers::run(a, Binder::new(DEFAULT_PREFIX, Some(Encapsulation::Udp)), warn).await)
    }));
    control(Box::pin(async move {
        drop(controllers::run(b, Addresses::new(DEFAULT_PREFIX, Some(Encapsulation::Udp)), warn).await)
    }));
    control(Box::pin(async move { drop(controllers::run(c, Endpoints::default(), warn).await) }));
    control(Box::pin(async move {
        drop(controllers::run(d, ServiceAddresses::new(service_network), warn).await)
    }));
    log
}

#[test]
fn the_example_reaches_the_proxy_with_three_backends_per_port() {
    let (topology, _) = parse(&file(TWO_NODES)).unwrap();
    let (store, mut pool) = (Embedded::new(), LocalPool::new());
    let log = start(&pool, &store, &topology);

    block_on(write_objects(&store, &topology));
    pool.run_until_stalled();
    for pod in &topology.pods {
        block_on(kubelet::report(&store, "default", objects::name(pod), running)).unwrap();
    }
    pool.run_until_stalled();

    let mut services = std::collections::BTreeMap::new();
    let mut addresses = Vec::new();
    for change in log.take() {
        match change {
            Change::Service { service, frontends, node_ports } => {
                let backends: Vec<_> = service
                    .backends
                    .iter()
                    .map(|backend| format!("{}:{}", backend.address, backend.port))
                    .collect();
                let line = format!("{} {} -> {}", frontends[0], node_ports[0], backends.join(" "));
                services.insert(service.id, line);
            }
            Change::Pod(pod) => addresses.push(format!("{} {} {}", pod.name, pod.address, pod.node)),
            Change::Warning(warning) => panic!("{warning:?}"),
            Change::Lease { .. }
            | Change::LeaseRemoved { .. }
            | Change::Node { .. }
            | Change::NodeRemoved { .. }
            | Change::PodRemoved(_)
            | Change::ServiceRemoved { .. } => {}
        }
    }
    let expected = [
        "backend 10.1.20.3 node-2",
        "web-app-1 10.1.15.3 node-1",
        "web-app-2 10.1.15.2 node-1",
        "web-app-3 10.1.20.2 node-2",
    ];
    addresses.sort();
    assert_eq!(addresses, expected);
    assert_eq!(
        services.into_values().collect::<Vec<_>>(),
        [
            "TCP 10.96.0.10:80 TCP *:30080 -> 10.1.15.3:80 10.1.15.2:80 10.1.20.2:80",
            "TCP 10.96.0.10:7 TCP *:30007 -> 10.1.15.3:7 10.1.15.2:7 10.1.20.2:7",
            "UDP 10.96.0.10:7 UDP *:30007 -> 10.1.15.3:7 10.1.15.2:7 10.1.20.2:7",
        ]
    );
}

#[test]
fn all_errors_of_a_topology_come_at_once() {
    let text = "apiVersion: flatnet.dev/v1
kind: Topology
metadata: {name: Bad_Name}
spec:
  podNetwork: 10.1.0.0/16
  serviceNetwork: 10.1.128.0/20
  backend: {type: ipip}
  colour: blue
  nodes:
    - {name: a, address: 192.168.1.2/24, podCIDR: 10.1.15.0/24}
    - {name: b, address: 192.168.1.2/24, podCIDR: 10.1.15.128/25}
    - {name: a, address: 10.1.200.1/24, podCIDR: 10.2.0.0/24}
    - {name: c, podCIDR: 10.1.15.1/24}
  hosts:
    - {name: h, address: 192.168.1.9/25, gateway: 192.168.1.200}
  links:
    - {between: [a, z], loss: 200%}
    - {between: [a]}
  seed: -1
";
    assert_eq!(
        findings(text),
        [
            "3:18 name: \"Bad_Name\" is not a name: lower-case letters, digits, '-' and '.' only",
            "6:19 serviceNetwork 10.1.128.0/20 overlaps podNetwork 10.1.0.0/16",
            "7:19 type: \"ipip\" is not a backend; udp, vxlan and host-gw are",
            "8:3 unknown field \"colour\" in spec",
            "11:26 address 192.168.1.2 is used twice",
            "11:51 podCIDR 10.1.15.128/25 overlaps 10.1.15.0/24",
            "12:14 name a is used twice",
            "12:26 network 10.1.200.0/24 of 10.1.200.1 overlaps podNetwork 10.1.0.0/16",
            "12:50 podCIDR 10.2.0.0/24 is not in podNetwork 10.1.0.0/16",
            "13:7 a node has no address",
            "13:26 podCIDR: \"10.1.15.1/24\" is not a network: has host bits; the network is 10.1.15.0/24",
            "15:26 network 192.168.1.0/25 overlaps 192.168.1.0/24",
            "15:51 gateway 192.168.1.200 is not in the network 192.168.1.0/25 of h",
            "17:21 link names \"z\", which is no machine",
            "17:31 loss: must be a share such as 0.1% (0% to 100%)",
            "18:17 between must name two machines",
            "19:9 seed: must be between 0 and 18446744073709551615",
        ]
    );
}

#[test]
fn a_node_port_is_one_services() {
    let text = format!(
        "{SHORT}---
apiVersion: v1
kind: Service
metadata: {{name: a}}
spec: {{type: NodePort, ports: [{{name: t, port: 7, nodePort: 30007}}, {{name: u, port: 7, protocol: UDP, nodePort: 30007}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: b}}
spec:
  type: NodePort
  ports: [{{name: u, port: 7, protocol: UDP, nodePort: 30007}}, {{name: v, port: 8, nodePort: 30008}}, {{name: w, port: 9, nodePort: 30008}}]
"
    );
    assert_eq!(
        findings(&text),
        [
            "16:55 nodePort 30007 is Service default/a's already",
            "16:129 nodePort 30008 is Service default/b's already",
        ]
    );
}

#[test]
fn policies_and_annotations_must_be_known() {
    let text = format!(
        "{SHORT}---
apiVersion: v1
kind: Pod
metadata: {{name: p, labels: {{app: web}}, annotations: {{flatnet.dev/weight: \"70000\", flatnet.dev/vip: 10.96.0}}}}
spec: {{containers: [{{name: c, image: nginx}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: a, annotations: {{flatnet.dev/forwarding: fullnat, flatnet.dev/scheduler: wlc}}}}
spec:
  externalTrafficPolicy: Local
  internalTrafficPolicy: local
  sessionAffinityConfig: {{clientIP: {{timeoutSeconds: 90000}}}}
  selector: {{app: web}}
  ports: [{{port: 80}}]
---
apiVersion: v1
kind: Service
metadata: {{name: b, annotations: {{flatnet.dev/forwarding: dr}}}}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  sessionAffinity: client
  trafficDistribution: PreferClose
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080}}]
"
    );
    assert_eq!(
        findings(&text),
        [
            "8:75 weight \"70000\" is not a number from 0 to 65535",
            "8:101 \"10.96.0\" is not an IPv4 address",
            "13:59 forwarding \"fullnat\" is not known",
            "15:26 externalTrafficPolicy is for Services of type NodePort or LoadBalancer",
            "16:26 internalTrafficPolicy \"local\" is not known",
            "17:54 sessionAffinityConfig needs sessionAffinity ClientIP",
            "17:54 timeoutSeconds 90000 is not between 1 and 86400",
            "27:20 sessionAffinity \"client\" is not known",
            "30:34 with forwarding dr the targetPort must be the port 80",
            "28:3 warning: spec.trafficDistribution of a Service has no effect yet",
        ]
    );
}

#[test]
fn services_are_checked_and_unmodelled_fields_said_once() {
    let text = format!(
        "{SHORT}---
apiVersion: v1
kind: Service
metadata: {{name: a, annotations: {{flatnet.dev/scheduler: best}}}}
spec:
  clusterIP: 10.0.0.1
  sessionAffinity: ClientIP
  selector: {{app: web}}
  ports: [{{port: 80, nodePort: 80}}, {{name: x, port: 80, protocol: ICMP}}]
---
apiVersion: v1
kind: Service
metadata: {{name: b}}
spec: {{type: LoadBalancer, clusterIP: 10.96.0.9, sessionAffinity: None, ports: [{{port: 70000}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: c}}
spec: {{type: Odd, clusterIP: 10.96.0.9}}
"
    );
    assert_eq!(
        findings(&text),
        [
            "8:58 scheduler \"best\" is not known",
            "10:14 clusterIP 10.0.0.1 is not one for Services of 10.96.0.0/12",
            "13:11 ports need names when a Service has several",
            "13:32 nodePort 80 is not between 30000 and 32767",
            "13:67 \"ICMP\" is not a protocol; TCP and UDP are",
            "18:14 type LoadBalancer is not supported yet",
            "18:88 port 70000 is not between 1 and 65535",
            "23:7 a Service needs a port",
            "23:14 \"Odd\" is not a type of Service",
            "23:30 clusterIP 10.96.0.9 is used twice",
            "12:13 warning: Service a selects no pod",
        ]
    );
}

#[test]
fn a_port_of_the_wrong_type_is_one_finding() {
    let text = format!(
        "{SHORT}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a, labels: {{app: a}}}}\nspec:\n  containers:\n    - {{name: c, \
         image: busybox, ports: [{{containerPort: \"80\"}}]}}\n    - {{name: d, image: busybox, ports: [{{containerPort: \"80\"}}]}}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec:\n  selector: {{app: a}}\n  ports: [{{name: x, port: \"80\"}}, \
         {{name: y, port: \"81\"}}]\n"
    );
    assert_eq!(
        findings(&text),
        [
            "11:57 invalid type: string \"80\", expected i32",
            "12:57 invalid type: string \"80\", expected i32",
            "19:27 invalid type: string \"80\", expected i32",
            "19:50 invalid type: string \"81\", expected i32",
        ]
    );
}

#[test]
fn what_is_known_is_listed_once() {
    let text = "apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  colour: blue\n  nodes: [{name: a, address: 192.168.1.2/24}, \
                {name: b, address: 192.168.1.3/24}, {name: a, address: 192.168.1.4/24}]\n  links: [{between: [a, z]}]\n\
                ---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodeName: y, containers: [{name: c, image: \
                busybox}]}\n";
    let errors = parse(&file(text)).unwrap_err().errors;
    let advice: Vec<&str> = errors.iter().filter_map(Finding::advice).collect();
    let spec = "known are backend, hosts, links, nat, natQuota, nodes, podNetwork, poll, routers, routes, seed, serviceNetwork, time, workers";
    assert_eq!(advice, [spec, "known are a, b, p", "known are a, b"]);
}

#[test]
fn other_kinds_and_versions_are_named() {
    let text = format!(
        "{SHORT}---\napiVersion: apps/v1\nkind: Deployment\n---\napiVersion: v2\nkind: Pod\n---\nx: 1\n---\n[]\n"
    );
    assert_eq!(
        findings(&text),
        [
            "7:7 kind Deployment is not supported yet",
            "9:13 apiVersion of Pod must be v1",
            "12:1 the document has no kind",
            "14:1 a document must be a mapping, not a list",
        ]
    );
}

#[test]
fn one_topology_is_needed_and_only_one() {
    assert_eq!(
        findings(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: nginx}]}\n"
        ),
        ["1:1 no document of kind Topology"]
    );
    assert_eq!(findings(&format!("{SHORT}---\n{SHORT}")), ["6:1 there is a second topology"]);
    assert_eq!(parse(&[]).unwrap_err().errors.len(), 1);
    let (manifests, _) = parse_manifests(&file(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: nginx}]}\n",
    ))
    .unwrap();
    assert_eq!(manifests.pods.len(), 1);
    assert_eq!(parse_manifests(&file(SHORT)).unwrap_err().errors.len(), 1);
}

#[test]
fn a_key_that_stands_twice_is_said_in_the_files_words() {
    let text = format!("{SHORT}  nodes: []\n");
    assert_eq!(findings(&text)[0], "5:3 duplicate mapping key: nodes");
}

#[test]
fn a_broken_file_does_not_hide_the_others() {
    let files =
        vec![("a.yaml".into(), "x: [1\n".into()), ("b.yaml".into(), format!("{SHORT}  colour: blue\n"))];
    let errors = parse(&files).unwrap_err().errors;
    let files: Vec<_> = errors.iter().map(|error| error.place().file().display().to_string()).collect();
    assert_eq!(files, ["a.yaml", "b.yaml"]);
}

#[test]
fn findings_print_with_their_line_and_what_to_do() {
    let error = parse(&file(&format!("{SHORT}  colour: blue\n"))).unwrap_err();
    assert_eq!(error.to_string(), "1 error");
    let report = format!("{:?}", miette::Report::new(error));
    assert!(report.contains("t.yaml:5:3") && report.contains("known are backend"), "{report}");
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,200}") {
        let _ = parse(&file(&text));
    }

    #[test]
    fn no_damage_makes_the_parser_panic(at in 0..TWO_NODES.len(), remove in 0usize..40, insert in "[ -~\n]{0,6}") {
        let end = (at + remove).min(TWO_NODES.len());
        let _ = parse(&file(&format!("{}{insert}{}", &TWO_NODES[..at], &TWO_NODES[end..])));
    }
}
