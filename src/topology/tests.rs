//! Topologies and manifests, read whole; each test names every finding of its text.

use std::{cell::RefCell, path::PathBuf, rc::Rc, sync::Arc};

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

use super::*;
use std::time::Duration;

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
fn a_pod_cannot_have_the_name_of_a_machine() {
    let topology = "apiVersion: flatnet.dev/v1\nkind: Topology\nmetadata: {name: t}\nspec:\n  nodes:\n    \
        - {name: alpha, address: 192.168.66.11/24}\n";
    let pod = |namespace: &str| {
        format!(
            "{topology}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: alpha, namespace: {namespace}}}\n\
             spec: {{containers: [{{name: echo, image: flatnet/echo}}]}}\n"
        )
    };
    let findings = parse(&[(PathBuf::from("t.yaml"), pod("default"))]).unwrap_err();
    assert_eq!(findings.errors.len(), 1);
    assert_eq!(findings.errors[0].to_string(), "a node is named alpha already");
    assert_eq!(findings.errors[0].place().line(), 10);
    assert!(parse(&[(PathBuf::from("t.yaml"), pod("other"))]).is_ok(), "it is named other/alpha");
}

#[test]
fn volumes_and_mounts_that_make_no_sense_are_found_at_their_places() {
    let text = format!(
        "{SHORT}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  volumes:\n    - {{name: html, emptyDir: {{}}}}\n    \
         - {{name: html, hostPath: {{path: srv}}}}\n    - {{name: A, hostPath: {{path: /srv, type: Socket}}}}\n    \
         - {{name: big, emptyDir: {{medium: Memory, sizeLimit: much}}}}\n    - {{name: conf, configMap: {{name: x}}}}\n  \
         containers:\n    - name: web\n      image: nginx\n      volumeMounts:\n        - {{name: html, mountPath: /html}}\n        \
         - {{name: none, mountPath: /html/}}\n        - {{name: html, mountPath: html}}\n        - {{name: html, mountPath: /a/../b}}\n        \
         - {{name: html, mountPath: /}}\n        - {{name: html, mountPath: /c, subPath: ../x, readOnly: true}}\n        \
         - {{name: conf, mountPath: /d, mountPropagation: None}}\n"
    );
    assert_eq!(
        findings(&text),
        [
            "12:14 volume name html is used twice",
            "12:37 hostPath \"srv\" is relative; it must begin with /",
            "13:14 volume name \"A\" is not a name",
            "13:46 hostPath type \"Socket\" is not supported; Directory, DirectoryOrCreate, File and FileOrCreate are",
            "14:57 sizeLimit \"much\" is not a size",
            "21:18 container web mounts \"none\", which is no volume of the pod",
            "21:35 mountPath /html is used twice",
            "22:35 mountPath \"html\" must begin with /",
            "23:35 mountPath \"/a/../b\" must not contain ..",
            "24:35 mountPath \"/\" must not be the container's root",
            "25:48 subPath \"../x\" must not contain ..",
            "15:20 warning: spec.volumes.configMap of a Pod has no effect yet",
            "26:39 warning: spec.containers.volumeMounts.mountPropagation of a Pod has no effect yet",
        ]
    );
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
fn links_and_defaults_are_read() {
    let text = "apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  time: virtual\n  workers: 2\n  poll: 50us\n  nodes:\n    \
                - {name: a, address: 192.168.1.2/24}\n    - {name: b, address: 192.168.1.3/24}\n  links:\n    \
                - {between: [a, b], delay: 1ms, loss: 0.1%, mtu: 1400}\n";
    let (topology, _) = parse(&file(text)).unwrap();
    let impairment =
        Impairment { delay: Duration::from_millis(1), loss: 1_000, mtu: Some(1400), ..Impairment::default() };
    let link = |from: &str, to: &str| Link { from: from.into(), to: to.into(), impairment };
    assert_eq!(topology.links, [link("a", "b"), link("b", "a")]);
    assert_eq!((topology.time, topology.workers), (Some(TimeMode::Virtual), Some(2)));
    assert_eq!(topology.poll, Duration::from_micros(50));
    assert_eq!(topology.service_network.to_string(), "10.96.0.0/12");
}

/// A topology of two networks and a pod, with one entry of `links:` per line from line 7.
fn with_links(entries: &[&str]) -> String {
    let machines = "apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  nodes: [{name: a, address: 192.168.1.2/24}, {name: b, \
                    address: 192.168.1.3/24}]\n  hosts: [{name: far, address: 203.0.113.1/24}]\n  links:\n";
    let entries: String = entries.iter().map(|entry| format!("    - {{{entry}}}\n")).collect();
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodeName: a, containers: [{name: c, image: nginx}]}\n";
    format!("{machines}{entries}{pod}")
}

#[test]
fn links_have_settings_for_both_ways_or_one_and_reach_pods() {
    let text = with_links(&[
        "from: a, to: b, delay: 10ms, jitter: 1ms, duplicate: 1%, reorder: 2%, corrupt: 0.5%, rate: 10Mbit, queue: 64kB",
        "from: b, to: a, down: true",
        "between: [p, a], rate: 1Gbit, queue: 50",
    ]);
    let (topology, _) = parse(&file(&text)).unwrap();
    let written: Vec<_> = topology
        .links
        .iter()
        .map(|link| format!("{} {} {}", link.from, link.to, crate::impairment::text(&link.impairment)))
        .collect();
    assert_eq!(
        written,
        [
            "a b delay=10ms jitter=1ms duplicate=1% reorder=2% corrupt=0.5% rate=10Mbit queue=64000B",
            "b a down",
            "p a rate=1Gbit queue=50",
            "a p rate=1Gbit queue=50",
        ]
    );
}

#[test]
fn all_errors_of_links_come_at_once() {
    let text = with_links(&[
        "from: a, delay: 1ms",
        "between: [a, b], delay: 5 ms, loss: -1%, corrupt: 101%, rate: 10MB, queue: 0, mtu: 95, down: maybe",
        "from: b, to: a, jitter: 2ms, delay: 1ms",
        "between: [p, b]",
        "between: [a, far], speed: 1",
        "from: p, to: far",
        "from: a, to: a, reorder: 1%",
        "from: a, to: p, queue: 10",
    ]);
    assert_eq!(
        findings(&text),
        [
            "7:7 a link names its machines by between, or by from and to for one direction",
            "8:32 delay: \"5 ms\" is not a duration; write for example 250us, 1.5ms or 2s",
            "8:44 loss: must be a share such as 0.1% (0% to 100%)",
            "8:58 corrupt: must be a share such as 0.1% (0% to 100%)",
            "8:70 rate: \"10MB\" is not a rate; write for example 64kbit, 10Mbit or 1.5Gbit (up to 1Tbit)",
            "8:83 queue: \"0\" is no queue; write frames such as 100 (up to 16384) or bytes such as 64kB or 1MiB",
            "8:91 mtu: must be between 96 and 65535 bytes, not 95",
            "8:101 down: must be true or false, not \"maybe\"",
            "9:7 link between b and a is described twice",
            "9:32 jitter: is longer than the delay: no frame arrives before it was sent",
            "10:7 there is no link between p and b",
            "11:7 there is no link between a and far",
            "11:27 unknown field \"speed\" in a link",
            "12:7 there is no link between p and far",
            "13:21 link between a and itself",
            "13:33 reorder: needs a delay: a frame overtakes those that are on their way",
            "14:31 queue: needs a rate: without one no frame waits",
        ]
    );
}

#[test]
fn numbers_that_a_link_cannot_have_are_refused_and_not_rounded() {
    let text = with_links(&[
        "between: [a, b], loss: 0.00001%, corrupt: NaN%, duplicate: -5, reorder: 5, delay: infs, jitter: 0.5ns",
        "between: [a, p], rate: 1e9, queue: -1, mtu: 70000, delay: 18446744073.709551616s",
    ]);
    let duration = |text| format!("{text:?} is not a duration; write for example 250us, 1.5ms or 2s");
    let share = "must be a share such as 0.1% (0% to 100%)";
    assert_eq!(
        findings(&text),
        [
            "7:31 loss: must be a multiple of 0.0001%, not 0.00001%".to_owned(),
            format!("7:50 corrupt: {share}"),
            format!("7:67 duplicate: {share}"),
            format!("7:80 reorder: {share}"),
            format!("7:90 delay: {}", duration("infs")),
            "7:104 jitter: must be a multiple of 1ns, not 0.5ns".to_owned(),
            "8:31 rate: \"1000000000\" is not a rate; write for example 64kbit, 10Mbit or 1.5Gbit (up to 1Tbit)".to_owned(),
            "8:43 queue: \"-1\" is no queue; write frames such as 100 (up to 16384) or bytes such as 64kB or 1MiB".to_owned(),
            "8:52 mtu: must be between 96 and 65535 bytes, not 70000".to_owned(),
            format!("8:66 delay: {}", duration("18446744073.709551616s")),
        ]
    );
}

/// RFC 6888, REQ-4: the limit of each subscriber is the administrator's.
#[test]
fn a_quota_of_translated_flows_is_read() {
    let quota = |text: &str| {
        let (topology, _) = parse(&file(&format!("{SHORT}  natQuota: {text}\n"))).unwrap();
        topology.nat_quota
    };
    assert_eq!([quota("1"), quota("262144"), quota("null")], [Some(1), Some(262_144), None]);
    for wrong in ["0", "-1", "262145"] {
        let expected = "5:13 natQuota: must be between 1 and 262144";
        assert_eq!(findings(&format!("{SHORT}  natQuota: {wrong}\n")), [expected], "{wrong}");
    }
    let expected = "5:13 natQuota: must be a whole number, not a number";
    assert_eq!(findings(&format!("{SHORT}  natQuota: 1.5\n")), [expected]);
}

#[test]
fn a_node_may_be_on_the_hosts_network_and_others_elsewhere() {
    let text = |underlay: &str, routes: &str| {
        format!(
            "apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  nodes: [{{name: n, address: 192.168.66.11/24, podCIDR: 10.1.5.0/24, \
             underlay: {underlay}}}]\n  routes:\n{routes}"
        )
    };
    let routes = "    10.1.20.0/24: 192.168.66.12\n    10.1.6.0/23: 203.0.113.7\n";
    let (topology, _) = parse(&file(&text("socket", routes))).unwrap();
    assert_eq!(topology.nodes[0].underlay, Underlay::Socket);
    let expected = [("10.1.6.0/23", [203, 0, 113, 7]), ("10.1.20.0/24", [192, 168, 66, 12])];
    let expected = expected
        .map(|(subnet, address)| (subnet.parse().unwrap(), Peer { address: address.into(), mac: None }));
    assert!(topology.routes.into_iter().eq(expected));

    let wrong = "    10.1.4.0/23: 192.168.66.12\n    10.2.0.0/24: 192.168.66.12\n    10.1.9.0/24: 192.168.66.11\n    10.1.9.0/33: here\n";
    assert_eq!(
        findings(&text("bridge", wrong)),
        [
            "4:80 underlay: \"bridge\" is not what a node can be on; switch and socket are",
            "6:5 route to 10.1.4.0/23 overlaps 10.1.5.0/24",
            "7:5 route to 10.2.0.0/24 is not in podNetwork 10.1.0.0/16",
            "8:5 192.168.66.11 is a node of this topology: it claims its subnet itself",
            "9:5 routes: \"10.1.9.0/33\" is not a network: length 33 is above 32",
            "9:18 routes: \"here\" is not an IPv4 address",
        ]
    );
    let findings = findings(&text("socket", "    - 10.1.20.0/24\n"));
    assert_eq!(findings, ["6:5 routes must be a mapping of subnets to addresses, not a list"]);
}

#[test]
fn a_backend_has_its_port_and_vxlan_a_network_and_peers_with_macs() {
    let with = |backend: &str, peer: &str| {
        format!("{SHORT}  backend: {backend}\n  routes:\n    10.1.20.0/24: {peer}\n")
    };
    let vxlan = |vni| Some(Encapsulation::Vxlan { vni });
    let cases = [
        ("{type: udp}", Some(Encapsulation::Udp), 8285),
        ("{type: host-gw}", None, 0),
        ("{type: vxlan}", vxlan(1), 8472),
        ("{type: vxlan, vni: 16777215, port: 4789}", vxlan(16_777_215), 4789),
        ("{type: vxlan, vni: 0}", vxlan(0), 8472),
    ];
    for (backend, encapsulation, port) in cases {
        let (topology, _) = parse(&file(&with(backend, "192.168.66.12"))).unwrap();
        assert_eq!((topology.backend, topology.port), (encapsulation, port), "{backend}");
    }
    let peer = "{address: 192.168.66.12, mac: '4e:41:e0:49:09:a4'}";
    let (topology, _) = parse(&file(&with("{type: vxlan}", peer))).unwrap();
    let mac = Some(MacAddress::new([0x4e, 0x41, 0xe0, 0x49, 0x09, 0xa4]));
    let expected = Peer { address: Ipv4Addr::new(192, 168, 66, 12), mac };
    assert_eq!(topology.routes.values().collect::<Vec<_>>(), [&expected]);

    assert_eq!(
        findings(&with("{type: udp, vni: 1}", peer)),
        ["5:29 vni: only vxlan has networks by number", "7:5 routes: only of vxlan a peer has a MAC",]
    );
    assert_eq!(
        findings(&with("{type: host-gw, vni: 1, port: 8285}", peer)),
        [
            "5:33 vni: only vxlan has networks by number",
            "5:42 port: host-gw has no tunnel, and so no port",
            "7:5 routes: only of vxlan a peer has a MAC",
        ]
    );
    assert_eq!(
        findings(&with("{type: vxlan, vni: 16777216, port: 0}", "{mac: '01:00:5e:00:00:01', colour: blue}")),
        [
            "5:31 vni: must be between 0 and 16777215",
            "5:47 port: must be between 1 and 65535",
            "7:19 a route has no address",
            "7:25 mac: 01:00:5e:00:00:01 is not one machine's MAC",
            "7:46 unknown field \"colour\" in a route",
        ]
    );
    let wrong = findings(&with("{type: vxlan}", "{address: 192.168.66.12, mac: blue}"));
    assert_eq!(
        wrong,
        ["7:49 mac: \"blue\": a MAC address is six hexadecimal octets with colons, like 02:42:0a:01:0f:02"]
    );
}

#[test]
fn what_a_node_has_of_the_host_needs_a_node_there() {
    let text = |fields: &str| {
        format!(
            "apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  nodes:\n  - name: n\n    address: 192.168.66.11/24\n{fields}"
        )
    };
    let all =
        "    underlay: socket\n    hostPort: flatnet0\n    uplink: true\n    masqueradePorts: 50000-50999\n";
    let (topology, _) = parse(&file(&text(all))).unwrap();
    let ports = PortRange { first: 50_000, last: 50_999 };
    let expected =
        HostAccess { port: Some("flatnet0".to_owned()), uplink: true, masquerade_ports: Some(ports) };
    assert_eq!(topology.nodes[0].host, expected);
    assert_eq!(
        findings(&text("    hostPort: flatnet0\n    masqueradePorts: 50000-50999\n")),
        [
            "7:15 only a node on the host's own network has that",
            "8:22 only a node on the host's own network has that"
        ]
    );
    for (ports, expected) in [
        ("50000", "\"50000\" is not a range of ports such as 61000-65535"),
        ("50999-50000", "\"50999-50000\" is not a range of ports such as 61000-65535"),
        ("1000-2000", "1000-2000 begins below 1024, where ports of services are"),
        ("29000-33000", "29000-33000 has ports that Services may have on every node"),
        ("31000-31001", "31000-31001 has ports that Services may have on every node"),
    ] {
        let written = text(&format!("    underlay: socket\n    masqueradePorts: {ports:?}\n"));
        assert_eq!(findings(&written), [format!("8:22 masqueradePorts: {expected}")]);
    }
    let written = text("    underlay: socket\n    hostPort: a-name-that-is-long\n");
    assert_eq!(findings(&written), ["8:15 hostPort: \"a-name-that-is-long\" cannot be an interface's name"]);
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
fn a_node_for_which_no_subnet_is_left_is_named() {
    let text = "apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  podNetwork: 10.1.0.0/16\n  nodes:\n\
        \x20   - {name: n, address: 192.168.1.2/24, podCIDR: 10.1.0.0/16}\n    - {name: m, address: 192.168.1.3/24}\n";
    assert_eq!(findings(text), ["7:14 no subnet of podNetwork 10.1.0.0/16 is left for node m"]);
    assert_eq!(findings(&text.replace("podCIDR: 10.1.0.0/16", "podCIDR: 10.1.0.0/17")), Vec::<String>::new());
}

/// Ports that are not written are the image's own; arguments may change them, and a command is another program.
#[test]
fn containers_of_a_pod_that_take_one_port_are_warned_of_without_their_ports_written() {
    let pod = |second: &str| {
        findings(&format!(
            "{SHORT}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  containers:\n\
             \x20   - {{name: c, image: nginx}}\n    - {{name: d, {second}}}\n"
        ))
    };
    let both = "12:24 warning: containers c and d of one pod both ask for port 80/TCP";
    assert_eq!(pod("image: httpd"), [both]);
    assert_eq!(pod("image: httpd, ports: [{containerPort: 81}]"), Vec::<String>::new());
    assert_eq!(pod("image: nginx, command: [sleep, 1d]"), Vec::<String>::new());
}

#[test]
fn pods_are_checked_against_their_node_and_each_other() {
    let text = "apiVersion: flatnet.dev/v1
kind: Topology
spec:
  nodes:
    - {name: n, address: 192.168.1.2/24, podCIDR: 10.1.15.0/24}
---
apiVersion: v1
kind: Pod
metadata: {name: a, annotations: {flatnet.dev/ip: 10.1.20.2}}
spec: {nodeName: n, containers: [{name: c, image: nginx}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, annotations: {flatnet.dev/ip: 10.1.15.1, flatnet.dev/colour: tap}}
spec: {nodeName: m, containers: [{name: c, image: nginx}, {name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: a, annotations: {flatnet.dev/ip: 10.1.15.1}}
spec:
  colour: null
  containers:
    - {name: c, image: nginx, ports: [{containerPort: 80}]}
    - {name: d, image: nginx, ports: [{containerPort: 80}, {containerPort: 80, protocol: UDP}, {containerPort: 0}]}
---
apiVersion: v1
kind: Pod
spec: {}
";
    assert_eq!(
        findings(text),
        [
            "9:51 address 10.1.20.2 is not one for pods of n (10.1.15.0/24)",
            "14:62 annotation flatnet.dev/colour of a Pod is not supported yet",
            "15:18 nodeName m is no node of the topology",
            "15:59 container \"c\" has no image",
            "15:66 container name c is used twice",
            "19:18 the name of Pod default/a is used twice",
            "19:51 address 10.1.15.1 is not one for pods of any node",
            "19:51 pod address 10.1.15.1 is used twice",
            "21:3 unknown field \"colour\"",
            "24:112 containerPort 0 is not between 1 and 65535",
            "26:1 Pod has no name",
            "28:7 a pod needs a container",
            "24:55 warning: containers c and d of one pod both ask for port 80/TCP",
        ]
    );
}

/// A topology with the nodes of one text, and a pod for each wish: node (or none) and address, from line 7 on, 4 lines each.
fn with_wishes(nodes: &str, wishes: &[(&str, &str)]) -> String {
    let mut text = format!("apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  nodes: [{nodes}]\n");
    for (index, (node, address)) in wishes.iter().enumerate() {
        let node = if node.is_empty() { String::new() } else { format!("nodeName: {node}, ") };
        text += &format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{index}, annotations: {{flatnet.dev/ip: {address}}}}}\n\
             spec: {{{node}containers: [{{name: c, image: nginx}}]}}\n"
        );
    }
    text
}

#[test]
fn a_wished_address_lies_in_a_subnet_of_its_node_or_of_any() {
    let fixed = "{name: a, address: 192.168.1.2/24, podCIDR: 10.1.15.0/24}, {name: b, address: 192.168.1.3/24, podCIDR: 10.1.20.0/24}";
    let wishes =
        [("", "10.1.20.9"), ("", "10.1.30.9"), ("a", "10.1.20.8"), ("", "10.1.20.1"), ("", "10.2.0.9")];
    assert_eq!(
        findings(&with_wishes(fixed, &wishes)),
        [
            "13:52 address 10.1.30.9 is not one for pods of any node",
            "18:52 address 10.1.20.8 is not one for pods of a (10.1.15.0/24)",
            "23:52 address 10.1.20.1 is not one for pods of any node",
            "28:52 address 10.2.0.9 is not in podNetwork 10.1.0.0/16",
        ]
    );
    // b may lease any subnet that is not a's; flannel leaves the network's first alone.
    let free =
        "{name: a, address: 192.168.1.2/24, podCIDR: 10.1.15.0/24}, {name: b, address: 192.168.1.3/24}";
    let wishes =
        [("", "10.1.30.9"), ("b", "10.1.30.8"), ("b", "10.1.15.9"), ("", "10.1.0.9"), ("", "10.1.15.8")];
    assert_eq!(
        findings(&with_wishes(free, &wishes)),
        [
            "18:52 address 10.1.15.9 is not one for pods of b (any subnet that no other node names)",
            "23:52 address 10.1.0.9 is not one for pods of any node",
        ]
    );
}

#[test]
fn unknown_images_are_found_at_their_places() {
    let text = "apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  nodes: [{name: n, address: 192.168.1.2/24}]\n  hosts:\n    \
                - {name: h, address: 192.168.1.3/24, image: apache}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\n\
                spec:\n  containers:\n    - {name: c, image: nginx}\n    - {name: d, image: \"mysql:8\"}\n";
    let found = findings(text);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].starts_with("6:49 image: \"apache\" is not known; there are flatnet/pause, "),
        "{found:?}"
    );
    assert_eq!(found[1], "14:24 warning: image mysql:8 is not known: container d will not start");
    let error = parse(&file(text)).unwrap_err();
    assert!(error.warnings[0].advice().unwrap().contains("flatnet/echo, "), "{error:?}");
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
fn what_a_container_runs_has_an_effect_and_its_environment_has_none_yet() {
    let text = format!(
        "{SHORT}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  containers:\n    - {{name: c, image: busybox, command: \
         [sleep], args: ['9']}}\n    - {{name: d, image: busybox, env: [{{name: A, value: b}}]}}\n"
    );
    assert_eq!(findings(&text), ["12:33 warning: spec.containers.env of a Pod has no effect yet"]);
}

#[test]
fn a_pod_on_the_hosts_network_is_said_to_be_none() {
    let text = format!(
        "{SHORT}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  hostNetwork: true\n  containers: [{{name: c, \
         image: busybox}}]\n"
    );
    assert_eq!(findings(&text), ["10:3 warning: spec.hostNetwork of a Pod has no effect yet"]);
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

#[test]
fn real_and_attached_pods_say_what_they_are() {
    let pod = |fields: &str, container: &str| {
        let text = format!(
            "{SHORT}---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n{fields}  containers:\n    - {{name: c, {container}}}\n"
        );
        findings(&text)
            .into_iter()
            .map(|found| found.split_once(' ').unwrap().1.to_owned())
            .collect::<Vec<_>>()
    };
    let real = "spec:\n  runtimeClassName: netns\n";
    let attached = |text: &str| format!("  annotations: {{flatnet.dev/attach: \"{text}\"}}\nspec:\n");
    assert_eq!(
        pod(real, "command: ['true'], env: [{name: A, value: b}], workingDir: /tmp"),
        Vec::<String>::new()
    );
    assert_eq!(pod(real, "image: x"), ["container \"c\" of a real pod has no command"]);
    assert_eq!(
        pod("spec:\n  runtimeClassName: runc\n", "image: nginx"),
        ["runtimeClassName \"runc\" is not known"]
    );
    assert_eq!(pod(&attached("tap:vm0"), "image: flatnet/pause"), Vec::<String>::new());
    assert_eq!(
        pod(&attached("tap:vm0"), "image: nginx"),
        ["container \"c\" will not run: what is attached runs by itself"]
    );
    for nothing in ["vm0", "tap:", "netns:a/b", "vlan:7"] {
        let expected = format!("{nothing:?} is nothing that can be attached");
        assert_eq!(pod(&attached(nothing), "image: flatnet/pause"), [expected]);
    }
    let both = format!("{}  runtimeClassName: netns\n", attached("netns:lab"));
    let said = pod(&both, "image: flatnet/pause");
    assert_eq!(said, ["a pod with flatnet.dev/attach runs nothing of ours"]);
    let mac = "  annotations: {flatnet.dev/mac: \"01:00:5e:00:00:01\"}\nspec:\n";
    assert_eq!(pod(mac, "image: nginx"), ["\"01:00:5e:00:00:01\" is not a machine's MAC"]);
    let mac = "  annotations: {flatnet.dev/mac: \"02:00:00:00:00:01\"}\nspec:\n";
    assert_eq!(pod(mac, "image: nginx"), ["flatnet.dev/mac is for pods with flatnet.dev/attach"]);
}
