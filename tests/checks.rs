//! The checks of `flatnet up --check` on networks that are not perfect.

use std::path::PathBuf;

use flatnet::check::{Check, Path};
use flatnet::topology::TimeMode;
use flatnet::{check, drive::Drive, topology};

#[test]
fn on_a_slow_link_each_check_shows_the_whole_way_of_its_own_packet() {
    let text = include_str!("../scripts/topologies/slow-link.yaml").to_owned();
    let (topology, _) = topology::parse(&[(PathBuf::from("slow-link.yaml"), text)]).unwrap();
    let mut drive = Drive::start(&topology, TimeMode::Virtual).unwrap();
    let plan = check::plan(&topology, &drive);
    assert_eq!(plan.len(), 6, "inside a pod and to the other node, by TCP, UDP and ICMP");
    for check in plan {
        let report = check::run(&mut drive, &check).unwrap();
        let (first, last) = (report.hops.first().unwrap(), report.hops.last().unwrap());
        assert_eq!((&*first.node, first.action), (&*check.from, "send"), "{report:?}");
        assert_eq!(last.action, "deliver", "{report:?}");
    }
}

#[test]
fn a_neighbour_that_is_not_there_stays_silent_and_no_link_is_blamed() {
    let text = include_str!("../scripts/topologies/two-nodes.yaml").to_owned();
    let (topology, _) = topology::parse(&[(PathBuf::from("two-nodes.yaml"), text)]).unwrap();
    let mut drive = Drive::start(&topology, TimeMode::Virtual).unwrap();
    let internet = check::plan(&topology, &drive).into_iter().find(|it| it.path == Path::Internet).unwrap();
    let check = Check { destination: [192, 168, 66, 77].into(), ..internet };
    let report = check::run(&mut drive, &check).unwrap();
    assert_eq!(report.drop_reason.as_deref(), Some("neighbor-unresolved"));
    let actions: Vec<&str> = report.hops.iter().map(|hop| hop.action).collect();
    assert_eq!(actions, ["send", "resolve", "drop"], "{report:?}");
}

/// Who answers at port 7 is known by the image, whatever its name and tag, and by the ports that replace the image's.
#[test]
fn only_who_answers_is_asked() {
    let ways = |internet: &str, image: &str, ports: &str, target: &str| {
        let text = format!(
            "apiVersion: flatnet.dev/v1\nkind: Topology\nmetadata: {{name: t}}\nspec:\n  nodes:\n\
             \x20   - {{name: n, address: 192.168.66.11/24}}\n  hosts:\n\
             \x20   - {{name: internet, address: 203.0.113.10/24{internet}}}\n  routers:\n\
             \x20   - {{name: isp, addresses: [192.168.66.1/24, 203.0.113.1/24]}}\n\
             ---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p, labels: {{app: a}}}}\nspec: {{nodeName: n, \
             containers: [{{name: c, image: \"{image}\", ports: [{ports}]}}]}}\n\
             ---\napiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {{selector: {{app: a}}, \
             ports: [{{port: 80, targetPort: {target}}}]}}\n"
        );
        let (topology, _) = topology::parse(&[("t.yaml".into(), text)]).unwrap();
        let mut drive = Drive::start(&topology, TimeMode::Virtual).unwrap();
        let plan = check::plan(&topology, &drive);
        for check in &plan {
            let report = check::run(&mut drive, check).unwrap();
            assert_eq!(report.verdict, check::Verdict::Ok, "{report:?}");
        }
        [Path::InsidePod, Path::Service, Path::Internet]
            .map(|path| plan.iter().filter(|check| check.path == path).count())
    };
    let named = "{name: seven, containerPort: 7}";
    assert_eq!(ways(", image: flatnet/echo", "flatnet/echo", "", "7"), [3, 1, 3]);
    assert_eq!(ways("", "docker.io/flatnet/echo:1", named, "seven"), [2, 1, 1], "its port is TCP's");
    assert_eq!(ways(", image: nginx", "flatnet/echo", "{containerPort: 9999}", "9999"), [0, 0, 1]);
}

/// Ways lead to what was allocated, not to what the file says, and are asked by who can ask.
#[test]
fn ways_are_those_of_the_running_network() {
    let pod = |metadata: &str, spec: &str| {
        format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{{metadata}}}\nspec: {{{spec}}}\n")
    };
    let service = |metadata: &str, kind: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{{metadata}}}\nspec: {{{kind}selector: {{app: a}}, \
             ports: [{{port: 7}}]}}\n"
        )
    };
    let text = [
        "apiVersion: flatnet.dev/v1\nkind: Topology\nmetadata: {name: t}\nspec:\n  nodes:\n    - {name: n, address: \
         192.168.66.11/24}\n  hosts:\n    - {name: user, address: 192.168.66.50/24}\n    - {name: internet, address: \
         203.0.113.10/24, gateway: 203.0.113.1}\n  routers:\n    - {name: isp, addresses: [192.168.66.1/24, \
         203.0.113.1/24]}\n",
        &pod("name: ended", "restartPolicy: Never, containers: [{name: c, image: busybox, command: [\"true\"]}]"),
        &pod("name: p, namespace: zeta, labels: {app: a}", "containers: [{name: c, image: flatnet/echo}]"),
        &service("name: s, namespace: alpha", ""),
        &service("name: s, namespace: zeta", "type: NodePort, "),
    ]
    .concat();
    let (topology, _) = topology::parse(&[("t.yaml".into(), text)]).unwrap();
    let mut drive = Drive::start(&topology, TimeMode::Virtual).unwrap();
    let plan = check::plan(&topology, &drive);
    for path in [Path::Service, Path::Internet, Path::NodePort] {
        let way = plan.iter().find(|check| check.path == path).unwrap();
        let report = check::run(&mut drive, way).unwrap();
        assert_eq!(report.verdict, check::Verdict::Ok, "{report:?}");
    }
}

#[test]
fn a_service_that_got_no_address_fails() {
    let text = "apiVersion: flatnet.dev/v1\nkind: Topology\nmetadata: {name: t}\nspec:\n  serviceNetwork: 10.96.0.0/31\n  \
                nodes:\n    - {name: n, address: 192.168.66.11/24}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, \
                labels: {app: a}}\nspec: {containers: [{name: c, image: flatnet/echo}]}\n---\napiVersion: v1\nkind: \
                Service\nmetadata: {name: s}\nspec: {selector: {app: a}, ports: [{port: 7}]}\n";
    let (topology, _) = topology::parse(&[("t.yaml".into(), text.to_owned())]).unwrap();
    let mut drive = Drive::start(&topology, TimeMode::Virtual).unwrap();
    let plan = check::plan(&topology, &drive);
    let way = plan.iter().find(|check| check.path == Path::Service).unwrap();
    let report = check::run(&mut drive, way).unwrap();
    assert_eq!(report.drop_reason.as_deref(), Some("has no address"));
}

#[test]
fn hops_name_a_pod_with_its_namespace() {
    let pod = |namespace: &str, node: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: {namespace}}}\n\
             spec: {{nodeName: {node}, containers: [{{name: echo, image: flatnet/echo}}]}}\n"
        )
    };
    let nodes = "apiVersion: flatnet.dev/v1\nkind: Topology\nmetadata: {name: twins}\nspec:\n  nodes:\n\
        \x20   - {name: node-1, address: 192.168.66.11/24}\n    - {name: node-2, address: 192.168.66.12/24}\n";
    let text = format!("{nodes}{}{}", pod("default", "node-1"), pod("shop", "node-2"));
    let (topology, _) = topology::parse(&[(PathBuf::from("twins.yaml"), text)]).unwrap();
    let mut drive = Drive::start(&topology, TimeMode::Virtual).unwrap();
    let check = check::plan(&topology, &drive).into_iter().find(|it| it.path == Path::OtherNode).unwrap();
    let report = check::run(&mut drive, &check).unwrap();
    let ends = [report.hops.first(), report.hops.last()].map(|hop| &*hop.unwrap().node);
    let mut both = ends;
    both.sort_unstable();
    assert_eq!(both, ["shop/web", "web"], "{report:?}");
    assert_eq!(ends, [&*check.from, &*check.to]);
}

/// LVS's NAT, direct routing and tunnels: with real pods, from a node and from a director outside the cluster. By the latter
/// two the pods have the VIP and answer by themselves.
#[test]
fn services_are_reached_by_all_three_ways_from_pods_and_through_a_director_outside() {
    for (forwarding, policy, clients, expected) in [
        ("nat", "Cluster", &["client", "user"][..], &["far", "near"][..]),
        ("tun", "Cluster", &["client", "user"], &["far", "near"]),
        // One segment: the client's node, which the director is not.
        ("dr", "Local", &["client"], &["near"]),
    ] {
        let (topology, _) = topology::parse(&[("lvs.yaml".into(), lvs(forwarding, policy))]).unwrap();
        let mut drive = Drive::start(&topology, TimeMode::Virtual).unwrap();
        let plan = check::plan(&topology, &drive);
        let checks: Vec<&Check> = plan.iter().filter(|check| check.path == Path::Service).collect();
        assert_eq!(checks.len(), 2, "TCP and UDP");
        let mut servers = std::collections::BTreeSet::new();
        for (check, from) in checks.iter().flat_map(|check| clients.iter().map(move |from| (*check, from))) {
            for _ in 0..2 {
                let check = Check { from: (*from).into(), ..check.clone() };
                let report = check::run(&mut drive, &check).unwrap();
                let last = report.hops.last().unwrap();
                assert_eq!(
                    (last.action, report.drop_reason.as_deref()),
                    ("deliver", None),
                    "{forwarding} {from}: {report:?}"
                );
                servers.insert(last.node.clone());
            }
        }
        assert_eq!(servers.into_iter().collect::<Vec<_>>(), expected, "{forwarding}");
    }
}

fn lvs(forwarding: &str, policy: &str) -> String {
    let pod = |name: &str, node: &str, more: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}{more}}}\n\
             spec: {{nodeName: {node}, containers: [{{name: echo, image: flatnet/echo}}]}}\n"
        )
    };
    let server = ", labels: {app: echo}, annotations: {flatnet.dev/vip: 10.96.0.10}";
    format!(
        "apiVersion: flatnet.dev/v1\nkind: Topology\nmetadata: {{name: lvs}}\nspec:\n  nodes:\n\
         \x20   - {{name: node-1, address: 192.168.66.11/24}}\n    - {{name: node-2, address: 192.168.66.12/24}}\n\
         \x20 hosts: [{{name: user, address: 192.168.66.50/24, gateway: 192.168.66.60}}]\n\
         \x20 routers: [{{name: director, addresses: [192.168.66.60/24], services: true}}]\n\
         {}{}{}---\napiVersion: v1\nkind: Service\n\
         metadata: {{name: echo, annotations: {{flatnet.dev/forwarding: {forwarding}, flatnet.dev/scheduler: wlc}}}}\n\
         spec:\n  clusterIP: 10.96.0.10\n  internalTrafficPolicy: {policy}\n  selector: {{app: echo}}\n\
         \x20 ports: [{{name: t, port: 7}}, {{name: u, port: 7, protocol: UDP}}]\n",
        pod("near", "node-1", server),
        pod("far", "node-2", server),
        pod("client", "node-1", ""),
    )
}
