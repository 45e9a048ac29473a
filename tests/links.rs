//! Links of a running network, changed from outside by the real binary.

#![expect(clippy::unwrap_used, reason = "the exemption for tests does not reach their helpers")]

mod common;

use common::Home;
use flatnet::drive::Drive;
use flatnet::topology::{self, TimeMode};
use flatnet_engine::link::impairment::Impairment;
use k8s_openapi::api::core::v1::Pod;
use std::net::Ipv4Addr;
use std::time::Duration;

/// A home with the tour's network in virtual time, where every figure is exact.
fn virtual_home(extra: &str) -> Home {
    let home = Home::new();
    let topology = home.file("virtual.yaml");
    let text = include_str!("../scripts/topologies/two-nodes.yaml");
    std::fs::write(&topology, text.replace("seed: 7", &format!("seed: 7\n  time: virtual{extra}"))).unwrap();
    home.text(&format!("up -d -f {}", topology.display()));
    home
}

/// The round-trip times that ping prints.
fn times(ping: &str) -> Vec<&str> {
    ping.lines().filter_map(|line| Some(line.split_once("time=")?.1)).collect()
}

#[test]
fn a_delay_both_ways_is_twice_in_every_round_trip() {
    let home = virtual_home("");
    let ping = "exec web-app-2 -- ping -c 3 10.1.20.3";
    home.text(ping);
    home.text("link node-1 node-2 delay=50ms");
    assert_eq!(times(&home.text(ping)), ["100 ms"; 3]);
    home.text("link node-1 node-2 delay=20ms --one-way");
    assert_eq!(times(&home.text(ping)), ["70.0 ms"; 3]);
    home.text("link web-app-2 node-1 delay=5ms");
    assert_eq!(times(&home.text(ping)), ["80.0 ms"; 3]);
    home.text("link node-2 node-1 reset");
    home.text("link web-app-2 node-1 reset");
    assert_eq!(times(&home.text(ping)), ["0.000 ms"; 3]);
    assert!(home.text("link").starts_with("all links are perfect"));
    assert_eq!(home.json("down")["balances"], true);
}

#[test]
fn what_is_not_named_stays_and_reset_is_what_the_topology_says() {
    let home = virtual_home("\n  links: [{from: node-1, to: node-2, delay: 1ms}]");
    for (words, expected) in [
        ("link node-1 node-2", ["delay=1ms", "perfect"]),
        ("link node-1 node-2 loss=1% jitter=500us --one-way", ["delay=1ms jitter=500µs loss=1%", "perfect"]),
        ("link node-1 node-2 down", ["delay=1ms jitter=500µs loss=1% down", "down"]),
        (
            "link node-1 node-2 up rate=10Mbit queue=64kB",
            ["delay=1ms jitter=500µs loss=1% rate=10Mbit queue=64000B", "rate=10Mbit queue=64000B"],
        ),
        ("link node-1 node-2 reset mtu=1400", ["delay=1ms mtu=1400", "mtu=1400"]),
        ("link node-1 node-2 mtu=none", ["delay=1ms", "perfect"]),
        ("link default/backend node-2 corrupt=0.1%", ["corrupt=0.1%", "corrupt=0.1%"]),
    ] {
        let rows = home.json(words);
        assert_eq!([0, 1].map(|row| rows[row]["settings"].clone()), expected, "{words}");
    }
    let all = home.text("link");
    assert!(
        all.contains("node-1 → node-2  delay=1ms\n") && all.contains("node-2 → backend  corrupt=0.1%\n"),
        "{all}"
    );
    assert!(!all.contains("node-2 → node-1"), "{all}");
}

#[test]
fn counters_tell_what_happened_on_each_direction() {
    let home = virtual_home("");
    home.text("link user node-1 loss=100%");
    let lost = home.run("exec user -- ping -c 3 -W 1 192.168.66.11");
    assert_eq!(lost.status.code(), Some(1), "{lost:?}");
    let rows = home.json("link user node-1");
    assert_eq!((&rows[0]["from"], &rows[0]["loss_ppm"]), (&"user".into(), &1_000_000.into()));
    // What was lost are its questions for the MAC of node-1.
    let counters = &rows[0]["counters"];
    assert!(counters["lost"].as_u64().unwrap() >= 1, "{rows}");
    assert_eq!(counters["lost"], counters["frames"]);
    let text = home.text("link user node-1");
    assert!(text.starts_with("user → node-1  loss=100%\n    frames "), "{text}");
    home.text("link user node-1 loss=none down");
    home.run("exec user -- ping -c 1 -W 1 192.168.66.11");
    assert!(home.json("link user node-1")[0]["counters"]["refused"].as_u64().unwrap() >= 1);
    home.text("link user node-1 up");
    assert_eq!(times(&home.text("exec user -- ping -c 1 192.168.66.11")).len(), 1);
}

#[test]
fn tcp_gets_everything_through_a_link_that_does_its_worst() {
    let home = virtual_home("");
    let worst = "delay=10ms jitter=3ms loss=5% duplicate=1% reorder=1% corrupt=1% rate=20Mbit queue=100";
    home.text(&format!("link node-1 node-2 {worst}"));
    let input: String = (0..40_000).map(|line| format!("line {line}\n")).collect();
    let echoed = home.with_input("exec web-app-2 -- nc 10.1.20.3 7", &input);
    assert!(echoed.stdout == input.as_bytes(), "{} of {} bytes", echoed.stdout.len(), input.len());
    assert_eq!(echoed.status.code(), Some(0), "{:?}", echoed.stderr);
    let measured = home.text("exec web-app-2 -- iperf -c 10.1.20.3 -p 7 -n 1M");
    assert!(measured.contains("bits/sec"), "{measured}");
    let rows = home.json("link node-1 node-2");
    for counter in ["lost", "duplicated", "reordered", "corrupted"] {
        assert!(rows[0]["counters"][counter].as_u64().unwrap() > 0, "{counter}: {rows}");
    }
    assert_eq!(home.json("down")["balances"], true);
}

#[test]
fn an_mtu_changes_while_frames_pass() {
    let home = virtual_home("");
    let ping = "exec web-app-2 -- ping -c 1 -W 1 -s 1000 10.1.20.3";
    home.text(ping);
    home.text("link node-1 node-2 mtu=1000");
    // RFC 1191: the node tells the pod what fits, and the pod keeps to it.
    assert_eq!(home.run(ping).status.code(), Some(1));
    assert!(home.text("show drops node-1").contains("fragmentation-needed"));
    home.text(ping);
    let input = "0123456789\n".repeat(2_000);
    let echoed = home.with_input("exec web-app-2 -- nc 10.1.20.3 7", &input);
    assert!(echoed.stdout == input.as_bytes(), "{} of {} bytes", echoed.stdout.len(), input.len());
    // A host knows what its link takes, as if it were its interface's MTU, and so does a pod.
    home.text("link user node-1 mtu=1000");
    home.text("exec user -- ping -c 1 -W 1 -s 1000 192.168.66.11");
    assert_eq!(home.json("link user node-1")[0]["counters"]["too_long"], 0);
    home.text("link node-1 node-2 mtu=none");
    home.text(ping);
    home.text("link backend node-2 mtu=1000 --one-way");
    home.text(ping);
    home.text("link backend node-2 mtu=none");
    for mtu in [1000, 300, 96] {
        home.text(&format!("link web-app-2 node-1 mtu={mtu}"));
        assert!(home.text("exec web-app-2 -- ip addr").contains(&format!("mtu {mtu} ")));
        for words in ["exec web-app-2 -- nc -w 5 10.1.20.3 7", "exec web-app-1 -- nc -w 5 10.1.15.2 7"] {
            let echoed = home.with_input(words, &input);
            assert!(echoed.stdout == input.as_bytes(), "{mtu}: {} of {}", echoed.stdout.len(), input.len());
        }
    }
    home.text("link web-app-2 node-1 mtu=none");
    assert_eq!(home.json("link web-app-2 node-1")[0]["counters"]["too_long"], 0);
    // Below 552 bytes nobody's word is believed: what is longer then may be cut, and is (Linux, `ip_dont_fragment`).
    for mtu in [570, 300, 96] {
        home.text(&format!("link node-1 node-2 mtu={mtu}"));
        let echoed = home.with_input("exec web-app-2 -- nc -w 5 10.1.20.3 7", &input);
        assert!(echoed.stdout == input.as_bytes(), "{mtu}: {} of {}", echoed.stdout.len(), input.len());
    }
}

#[test]
fn a_link_to_a_host_differs_in_each_direction_by_itself() {
    let home = virtual_home("");
    for (near, far, ping) in [
        ("isp", "internet", "exec web-app-2 -- ping -c 1 -W 1 203.0.113.10"),
        ("node-1", "user", "exec web-app-2 -- ping -c 1 -W 1 192.168.66.50"),
    ] {
        home.text(ping);
        for (from, to) in [(near, far), (far, near)] {
            home.text(&format!("link {from} {to} down --one-way"));
            assert_eq!(home.run(ping).status.code(), Some(1), "{from} to {to} is down");
            home.text(&format!("link {from} {to} reset"));
            home.text(ping);
            home.text(&format!("link {from} {to} delay=50ms --one-way"));
            assert!(home.text(ping).contains("time=50.0 ms"), "{from} to {to} is slow");
            home.text(&format!("link {from} {to} reset"));
        }
    }
}

#[test]
fn mistakes_are_named_with_what_there_is() {
    let home = Home::with_network();
    for (words, expected) in [
        ("link node-1 node-9", "there is no node, router, host or pod node-9"),
        ("link node-1 node-9", "isp, node-1, node-2, user"),
        ("link node-1 internet", "there is no link between node-1 and internet"),
        ("link web-app-1 node-2 down", "web-app-1 on node-1"),
        ("link web-app-1 backend down", "there is no link between web-app-1 and backend"),
        ("link node-1 node-2 speed=1", "\"speed\" is no setting; there are delay, jitter"),
        ("link node-1 node-2 delay=5", "delay: \"5\" is not a duration"),
        ("link node-1 node-2 loss=200%", "loss: must be a share such as 0.1%"),
        ("link node-1 node-2 loss=1% jitter=1ms", "jitter is longer than the delay"),
        ("link node-1 node-2 loss=0.00001%", "loss: must be a multiple of 0.0001%, not 0.00001%"),
        ("link node-1 node-2 up down", "\"up\" and \"down\" both say something of down"),
        ("link node-1 node-2 loss=1% reset", "\"reset\" takes back the words before it"),
        ("link node-1 node-1 down", "there is no link between node-1 and node-1"),
        ("link node-1 node-2 sideways", "\"sideways\" says nothing of a link"),
    ] {
        let error = home.error(words);
        let flat = error.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
        assert!(flat.contains(expected), "{words}: {error}");
    }
    assert!(home.text("link").starts_with("all links are perfect"), "nothing was done by halves");
}

#[test]
fn a_fault_breaks_a_pods_link() {
    let home = Home::new();
    let output = home.run("up --check --fault link:web-app-2:node-1 -o json");
    assert_eq!(output.status.code(), Some(1));
    let reports: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let failed = reports.as_array().unwrap().iter().filter(|report| report["verdict"] == "failed");
    let reasons: Vec<_> = failed.map(|report| report["drop_reason"].clone()).collect();
    assert!(!reasons.is_empty() && reasons.iter().any(|reason| reason == "link-loss"), "{reports:#}");
    let said = home.error("up --check --fault link:web-app-2:node-2");
    assert!(said.contains("breaks nothing: there is no link between"), "{said}");
}

/// What a node's link to a pod takes ends with the pod: the next one with its address has a link of its own.
#[test]
fn an_mtu_is_forgotten_with_its_pod() {
    let text = include_str!("../scripts/topologies/two-nodes.yaml").to_owned();
    let topology = topology::parse(&[("two-nodes.yaml".into(), text)]).unwrap().0;
    let mut drive = Drive::start(&topology, TimeMode::Virtual).unwrap();
    let address = Ipv4Addr::new(10, 1, 15, 3);
    let mtu = |drive: &Drive| {
        let publisher = &drive.network.publisher;
        let tables = publisher.control.tables.current();
        tables.node(publisher.node("node-1").unwrap()).unwrap().link_mtus.get(&address).copied()
    };
    let short = Impairment { mtu: Some(1000), ..Impairment::default() };
    drive.network.publisher.impair("node-1", "web-app-1", short).unwrap();
    assert_eq!(mtu(&drive), Some(1000));
    assert!(drive.network.delete::<Pod>("default", "web-app-1").unwrap());
    let gone = |drive: &mut Drive| drive.network.publisher.place("web-app-1").is_none().then_some(());
    drive.wait_for(Duration::from_secs(60), gone).unwrap();
    assert_eq!(mtu(&drive), None);
    let report = flatnet::ledger::close(drive);
    assert!(report.balances, "{report:?}");
}
