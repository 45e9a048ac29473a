//! `flatnet up --check`: exit codes, verdicts, captures that are the same each time.

#![expect(clippy::unwrap_used, reason = "the exemption for tests does not reach their helpers")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use common::{Home, tshark};
use serde_json::Value;

#[test]
fn a_whole_network_passes_all_checks() {
    let home = Home::new();
    let reports = home.json("up --check");
    let reports = reports.as_array().unwrap();
    assert_eq!(reports.len(), 16);
    assert!(reports.iter().all(|report| report["verdict"] == "ok"), "{reports:?}");
}

/// Checks a topology's six ways, and captures what passes the first node's eth0 meanwhile.
fn all_six_ways_work(home: &Home, file: &str, capture: &Path) {
    let words = format!("up --check -f {file} --capture node-1:eth0={}", capture.display());
    let reports = home.json(&words);
    let reports = reports.as_array().unwrap();
    assert_eq!(reports.len(), 16);
    assert!(reports.iter().all(|report| report["verdict"] == "ok"), "{reports:?}");
    let paths: BTreeSet<&str> = reports.iter().map(|report| report["path"].as_str().unwrap()).collect();
    assert_eq!(paths.len(), 6, "{paths:?}");
}

#[test]
fn all_six_ways_work_over_a_vxlan() {
    let home = Home::new();
    let (file, capture) = ("scripts/topologies/vxlan.yaml", home.file("eth0.pcapng"));
    all_six_ways_work(&home, file, &capture);
    // Two headers of each, the tunnel's first.
    let frames = tshark(&capture, &["udp.dstport", "vxlan.vni", "ip.src", "ip.ttl"]);
    assert!(frames.contains(&"8472\t1\t192.168.66.11,10.1.15.2\t64,63".to_owned()), "{frames:?}");
    let trace = home.text(&format!("trace web-app-2 backend -f {file}"));
    for part in ["vxlan 1*", "→ 02:42:0a:01:14:00*", "outer headers removed*"] {
        assert!(trace.contains(part), "{part}: {trace}");
    }
}

#[test]
fn all_six_ways_work_without_a_tunnel() {
    let home = Home::new();
    let (file, capture) = ("scripts/topologies/host-gw.yaml", home.file("eth0.pcapng"));
    all_six_ways_work(&home, file, &capture);
    // As the pod sent it, but for TTL, to the other node's MAC.
    let frames = tshark(&capture, &["eth.dst", "ip.src", "ip.dst", "ip.ttl"]);
    assert!(frames.contains(&"02:42:c0:a8:42:0c\t10.1.15.2\t10.1.20.3\t63".to_owned()), "{frames:?}");
    let trace = home.text(&format!("trace web-app-2 backend -f {file}"));
    assert!(trace.contains("ttl 62*") && !trace.contains("flannel0"), "{trace}");
}

#[test]
fn nodes_of_different_networks_are_told_that_they_have_no_way() {
    let home = Home::new();
    let file = home.file("far.yaml");
    let node = |number: u8| {
        format!(
            "    - {{name: node-{number}, address: 192.168.{number}.11/24, podCIDR: 10.1.{number}.0/24}}\n"
        )
    };
    let pod = |number: u8| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{number}}}\nspec:\n  nodeName: node-{number}\n  containers: [{{name: \
             echo, image: flatnet/echo}}]\n"
        )
    };
    let text = format!(
        "apiVersion: flatnet.dev/v1\nkind: Topology\nmetadata: {{name: far}}\nspec:\n  backend: {{type: host-gw}}\n  nodes:\n{}{}  routers:\n    \
         - {{name: isp, addresses: [192.168.1.1/24, 192.168.2.1/24]}}\n{}{}",
        node(1),
        node(2),
        pod(1),
        pod(2)
    );
    std::fs::write(&file, text).unwrap();
    let output = home.run(&format!("up --check -o json -f {}", file.display()));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    for (from, to) in [(1, 2), (2, 1)] {
        let warning = format!(
            "host-gw: no way to 10.1.{to}.0/24 from node-{from}: 192.168.{to}.11, which holds it, is on another network"
        );
        assert!(said.contains(&warning), "{said}");
    }
    let reports: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let far = reports.iter().filter(|report| report["path"] == "other-node");
    let reasons: Vec<_> = far.map(|report| &report["drop_reason"]).collect();
    assert!(!reasons.is_empty() && reasons.iter().all(|reason| **reason == "lease-off-link"), "{reports:?}");
}

#[test]
fn every_line_of_the_checks_fits_a_hundred_columns() {
    let home = Home::new();
    for words in ["up --check", "up --check --fault lease:node-2", "up --check --fault link:node-1:node-2"] {
        let output = home.run(words);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("→ switch of 192.168.66.0/24: bridge"), "{text}");
        let longest = text.lines().max_by_key(|line| line.chars().count()).unwrap();
        assert!(longest.chars().count() <= 100, "{longest}");
    }
}

/// The failed reports of a check with a fault, and whether all others still work.
fn failed(fault: &str, path: &str) -> Vec<Value> {
    let home = Home::new();
    let output = home.run(&format!("up --check --fault {fault} -o json"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let reports: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let of_path: Vec<Value> = reports.into_iter().filter(|report| report["path"] == path).collect();
    assert!(!of_path.is_empty());
    for report in &of_path {
        assert_eq!(report["verdict"], "failed", "{report}");
    }
    of_path
}

#[test]
fn a_lost_lease_is_named_where_the_packet_is_dropped() {
    for report in failed("lease:node-2", "other-node") {
        assert_eq!(report["drop_reason"], "no-lease", "{report}");
        let last = report["hops"].as_array().unwrap().last().unwrap();
        assert_eq!((&last["node"], &last["action"]), (&"node-1".into(), &"drop".into()), "{report}");
    }
}

#[test]
fn a_broken_link_is_named_though_it_loses_the_request_for_the_neighbour_first() {
    // The node's own request, and that of a pod's stack: a host asks as a pod does.
    for (fault, path, hops) in [
        ("link:node-1:node-2", "other-node", &["send", "resolve", "transmit", "flood", "drop"][..]),
        ("link:user:node-1", "node-port", &["send", "flood", "drop"]),
    ] {
        for report in failed(fault, path) {
            assert_eq!(report["drop_reason"], "link-loss", "{report}");
            let way = report["hops"].as_array().unwrap();
            let actions: Vec<&str> = way.iter().map(|hop| hop["action"].as_str().unwrap()).collect();
            assert_eq!(actions, hops, "{report}");
            // Where the link leads to.
            let end = fault.rsplit(':').next().unwrap();
            assert_eq!(way.last().unwrap()["node"], end, "{report}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_cores() {
    let home = Home::new();
    let points = ["web-app-2", "web-app-1:lo", "node-1:flannel0", "192.168.66.0/24"];
    let capture = |run: &str, pinned: bool| -> Vec<Vec<u8>> {
        let files = points.map(|point| home.file(&format!("{run}-{}.pcapng", point.replace('/', "-"))));
        let captures =
            points.iter().zip(&files).map(|(point, file)| format!(" --capture {point}={}", file.display()));
        let command = home.command(&format!("up --check{}", captures.collect::<String>()));
        let mut whole = if pinned { Command::new("taskset") } else { Command::new("env") };
        whole
            .args(if pinned { &["-c", "0"][..] } else { &[] })
            .arg(command.get_program())
            .args(command.get_args());
        let output =
            whole.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?)))).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        files.map(|file| std::fs::read(file).unwrap()).to_vec()
    };
    let first = capture("first", false);
    assert!(first == capture("second", false) && first == capture("pinned", true));
    let frames = tshark(&home.file("first-node-1:flannel0.pcapng"), &["ip.src", "ip.dst", "ip.ttl"]);
    assert!(frames.contains(&"10.1.15.2\t10.1.20.3\t63".to_owned()), "{frames:?}");
}

#[test]
fn a_fault_or_capture_that_does_not_exist_is_said() {
    let home = Home::new();
    assert!(home.error("up --check --fault disk:node-1").contains("lease:NODE, link:A:B or link:POD:NODE"));
    assert!(home.error("up --check --capture node-1:eth0").contains("POINT=FILE"));
    assert!(home.error("up --check --capture nowhere=/dev/null").contains("no point nowhere"));
}
