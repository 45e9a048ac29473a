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
