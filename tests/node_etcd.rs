//! Real nodes whose leases lie in a real etcd.
//!
//! Needs root, `ip`, `nsenter`, `unshare` and Debian's `etcd-server` and `etcd-client`.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::process::{Command, Stdio};

use common::etcd::{Cluster, ETCD};
use common::{Home, Namespace, await_that};
use serde_json::Value;

/// As flannel has it: any subnet for a node, for a day, each known to all; a node that comes later is known to those before;
/// and what flows goes on while etcd is away.
#[test]
fn nodes_that_share_an_etcd_reach_each_others_pods_and_go_on_without_it() {
    for backend in ["udp", "vxlan"] {
        let mut cluster =
            Cluster::new(&format!(r#"{{"Network":"10.7.0.0/16","Backend":{{"Type":"{backend}"}}}}"#));
        [11, 12].into_iter().for_each(|number| cluster.start(number));
        let other = cluster.machines[&13].refuses(&cluster.home.command("node --name n --iface eth7"));
        assert!(other.contains("this host has no interface eth7 with an IPv4 address"), "{other}");
        assert!(other.contains("there are lo, eth0"), "{other}");
        let addresses = [11, 12].map(|number| cluster.address(number));
        assert!(addresses.iter().all(|address| address.starts_with("10.7.")), "{addresses:?}");
        await_that("both know each other", || {
            cluster.pings(11, &addresses[1]) && cluster.pings(12, &addresses[0])
        });
        let leases = cluster.leases();
        assert_eq!(leases.len(), 2);
        assert!(
            leases.iter().all(|lease| lease["lease"].as_i64().is_some_and(|lease| lease != 0)),
            "{leases:?}"
        );

        let file = std::fs::read_to_string(cluster.home.file("run/subnet-11.env")).unwrap();
        let (subnet, mtu) =
            (addresses[0].rsplit_once('.').unwrap().0, if backend == "udp" { 1472 } else { 1450 });
        let expected = format!(
            "FLANNEL_NETWORK=10.7.0.0/16\nFLANNEL_SUBNET={subnet}.1/24\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=false\n"
        );
        assert_eq!(file, expected);

        cluster.kill_etcd();
        for _ in 0..20 {
            assert!(cluster.pings(11, &addresses[1]) && cluster.pings(12, &addresses[0]));
        }
        cluster.start_etcd();
        await_that("etcd is back", || cluster.etcdctl(&["get", "/x"]).is_some());
        cluster.start(13);
        let late = cluster.address(13);
        await_that("the late one is known", || {
            cluster.pings(11, &late) && cluster.pings(12, &late) && cluster.pings(13, &addresses[0])
        });
        for number in [11, 12, 13] {
            assert_eq!(cluster.home.json(&format!("down --name node-{number}"))["balances"], true);
        }
        assert_eq!(cluster.leases().len(), 3, "a node that is started again has the same subnet");
        cluster.start(12);
        assert_eq!(cluster.address(12), addresses[1]);
        cluster.home.text("down --name node-12");
    }
}

/// What is no lease of a node's is passed over with its name; a lease that goes takes its route along.
#[test]
fn keys_of_etcd_that_are_no_leases_are_named_and_a_lease_that_goes_is_no_route() {
    let cluster = Cluster::new(r#"{"Network":"10.7.0.0/16"}"#);
    let put = |key: &str, value: &str| {
        cluster.etcdctl(&["put", &format!("/coreos.com/network/subnets/{key}"), value]).unwrap()
    };
    put("10.7.200.0-24", r#"{"PublicIP":"192.168.66.200","PublicIPv6":null}"#);
    put("10.7.201.0-24", "{");
    put("garbage", "{}");
    cluster.start(11);
    let routes = || cluster.home.text("show --name node-11 routes node-11");
    await_that("the other's lease is a route", || routes().contains("10.7.200.0/24"));
    let log = || std::fs::read_to_string(cluster.home.file("flatnet/node-11.log")).unwrap();
    await_that("both are named", || log().contains("10.7.201.0-24") && log().contains("subnets/garbage"));
    cluster.etcdctl(&["del", "/coreos.com/network/subnets/10.7.200.0-24"]).unwrap();
    await_that("it is none any more", || !routes().contains("10.7.200.0/24"));

    // The own one is claimed again.
    let own = cluster.leases().iter().filter(|lease| lease["lease"].is_i64()).count();
    assert_eq!(own, 1);
    let subnet = cluster.address(11).rsplit_once('.').unwrap().0.to_owned();
    let key = format!("/coreos.com/network/subnets/{subnet}.0-24");
    cluster.etcdctl(&["del", &key]).unwrap();
    await_that("it is there again", || cluster.etcdctl(&["get", &key]).unwrap().contains("192.168.66.11"));
    await_that("that is said", || log().contains("claimed again"));
    cluster.home.text("down --name node-11");
}

/// Asks a node's port of health in its namespace.
fn probe(machine: &Namespace, path: &str) -> (String, String) {
    let said = machine.says(&format!("curl -s -m 5 -w '\\n%{{http_code}}' http://127.0.0.1:10256{path}"));
    let (body, code) = said.rsplit_once('\n').unwrap();
    (code.to_owned(), body.to_owned())
}

/// Of a network that runs, and of an etcd from any machine: who holds what and for how long yet; a node that lost its lease
/// lives and is not ready.
#[test]
fn subnets_are_listed_from_node_and_etcd_and_health_follows_the_lease() {
    let cluster = Cluster::new(r#"{"Network":"10.7.0.0/16"}"#);
    let put = |key: &str, value: &str| {
        cluster.etcdctl(&["put", &format!("/coreos.com/network/subnets/{key}"), value]).unwrap()
    };
    put("10.7.200.0-24", r#"{"PublicIP":"192.168.66.200","PublicIPv6":null,"BackendType":"vxlan"}"#);
    put("garbage", "{}");
    put("10.7.200.128-25", r#"{"PublicIP":"192.168.66.201"}"#);
    let words = format!("node --name node-11 --iface eth0 --etcd {ETCD} --health 10256 -d");
    let output = cluster.machines[&11].command(&cluster.home.command(&words)).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    await_that("it is ready", || probe(&cluster.machines[&11], "/readyz") == ("200".into(), "ok".into()));
    assert_eq!(probe(&cluster.machines[&11], "/healthz"), ("200".into(), "ok".into()));
    let (_, said) = probe(&cluster.machines[&11], "/readyz?verbose");
    assert_eq!(said, "[+]lease ok\n[+]routes ok\n[+]engine ok\nreadyz check passed\n");
    let outside =
        cluster.machines[&12].says("curl -s -m 2 http://192.168.66.11:10256/readyz || echo refused");
    assert_eq!(outside, "refused\n", "this host's own programs only");

    let of_node = cluster.home.json("get --name node-11 subnets");
    let asks = cluster.home.command(&format!("get subnets --etcd {ETCD} -o json"));
    let of_etcd = cluster.machines[&13].command(&asks).output().unwrap();
    let of_etcd: Value = serde_json::from_slice(&of_etcd.stdout).unwrap();
    for (report, name) in [(of_node, Value::from("node-11")), (of_etcd, Value::Null)] {
        let items = report["items"].as_array().unwrap();
        let by = |address: &str| items.iter().find(|item| item["public_ip"] == address).unwrap();
        let (own, reserved) = (by("192.168.66.11"), by("192.168.66.200"));
        assert_eq!((items.len(), &own["node"], &own["backend"]), (2, &name, &Value::from("udp")), "{report}");
        assert!(own["left"].as_u64().is_some_and(|left| (86_300..=86_400).contains(&left)), "{own}");
        assert!(own["age"].as_u64().is_some_and(|age| age < 100) && own["revision"].is_u64(), "{own}");
        assert_eq!((&reserved["left"], &reserved["backend"]), (&Value::Null, &Value::from("vxlan")));
        let wrong: Vec<_> =
            report["warnings"].as_array().unwrap().iter().map(|it| it["key"].as_str().unwrap()).collect();
        let named = |name: &str| wrong.iter().any(|key| key.ends_with(name));
        assert!(wrong.len() == 2 && named("/garbage") && named("/10.7.200.128-25"), "{wrong:?}");
    }
    let table = cluster.home.run("get --name node-11 subnets");
    let (rows, said) = (String::from_utf8(table.stdout).unwrap(), String::from_utf8(table.stderr).unwrap());
    assert!(rows.starts_with("SUBNET") && rows.contains("reserved") && rows.contains("23h59m"), "{rows}");
    assert!(said.contains("warning: /coreos.com/network/subnets/garbage: "), "{said}");
    assert!(cluster.home.error(&format!("get pods --etcd {ETCD}")).contains("subnets are"));

    // Its subnet is another's: it lives, and is not ready.
    let subnet = cluster.leases().iter().filter(|lease| lease["lease"].is_i64()).count();
    assert_eq!(subnet, 1);
    let own = cluster.home.json("get --name node-11 subnets");
    let own = own["items"].as_array().unwrap().iter().find(|item| item["node"] == "node-11").unwrap().clone();
    let key = own["subnet"].as_str().unwrap().replace('/', "-");
    put(&key, r#"{"PublicIP":"192.168.66.99","PublicIPv6":null}"#);
    await_that("it is not ready", || probe(&cluster.machines[&11], "/readyz").0 == "500");
    let (_, said) = probe(&cluster.machines[&11], "/readyz");
    assert!(
        said.starts_with("[-]lease failed: the lease of 10.7.") && said.contains("[+]engine ok"),
        "{said}"
    );
    assert_eq!(probe(&cluster.machines[&11], "/livez").0, "200");
    cluster.etcdctl(&["del", &format!("/coreos.com/network/subnets/{key}")]).unwrap();
    cluster.home.text("down --name node-11");
}

/// All is well between two nodes; then a port is taken, a member is missing, a key is foreign and the path takes less.
#[test]
fn a_doctor_finds_what_is_wrong_with_etcd_and_between_nodes() {
    let cluster = Cluster::new(r#"{"Network":"10.7.0.0/16"}"#);
    [11, 12].into_iter().for_each(|number| cluster.start(number));
    let look = |number: u8, etcd: &str| {
        let asks = cluster.home.command(&format!("doctor --etcd {etcd} -o json"));
        let output = cluster.machines[&number].command(&asks).output().unwrap();
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), found)
    };
    let of = |found: &Value, check: &str, about: &str| {
        let all = found.as_array().unwrap();
        let one = all.iter().find(|it| it["check"] == check && it["about"] == about);
        one.unwrap_or(&Value::Null).clone()
    };
    let (code, found) = look(11, ETCD);
    assert_eq!(code, Some(0), "{found}");
    for (check, about) in [
        ("etcd", ETCD),
        ("clock", ETCD),
        ("mtu", "192.168.66.12"),
        ("port", "8285/udp"),
        ("port", "8472/udp"),
    ] {
        assert_eq!(of(&found, check, about)["verdict"], "ok", "{check} {about}: {found}");
    }
    assert!(
        of(&found, "port", "8285/udp")["text"].as_str().unwrap().starts_with("taken by flatnet"),
        "{found}"
    );

    // Between them packets are cut that both think are short enough.
    cluster.wire.0.says("ip link set port12 mtu 1400");
    cluster.etcdctl(&["put", "/coreos.com/network/subnets/garbage", "x"]).unwrap();
    let python = "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('0.0.0.0', 8285)); print('', flush=True); time.sleep(60)";
    let mut other = Command::new("python3");
    let mut taker =
        cluster.machines[&13].command(other.args(["-c", python])).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(taker.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let gone = "http://192.168.66.10:1";
    let (code, found) = look(13, &format!("{ETCD},{gone}"));
    taker.kill().unwrap();
    taker.wait().unwrap();
    assert_eq!(code, Some(1), "{found}");
    let garbage = "/coreos.com/network/subnets/garbage";
    for (check, about) in
        [("etcd", gone), ("subnets", garbage), ("mtu", "192.168.66.12"), ("port", "8285/udp")]
    {
        let one = of(&found, check, about);
        assert!(one["verdict"] == "wrong" && one["help"].is_string(), "{check} {about}: {found}");
    }
    assert_eq!(of(&found, "mtu", "192.168.66.11")["verdict"], "ok", "{found}");
    assert!(
        of(&found, "port", "8285/udp")["text"].as_str().unwrap().starts_with("taken by python3"),
        "{found}"
    );
    let text = cluster.machines[&13].refuses(&cluster.home.command("doctor --etcd nonsense"));
    assert!(text.is_empty(), "what is wrong is in the table: {text}");
    for number in [11, 12] {
        cluster.home.text(&format!("down --name node-{number}"));
    }
}

/// As flanneld's flag: others are told the address at which they reach the node, which the host itself need not have.
#[test]
fn a_node_behind_a_translation_says_to_etcd_where_it_is_reached() {
    let cluster = Cluster::new(r#"{"Network":"10.7.0.0/16"}"#);
    let config = cluster.home.file("node.yaml");
    std::fs::write(&config, "iface: eth0\npublic-ip: 203.0.113.11\nsubnet-lease-renew-margin: 90\n").unwrap();
    let start = |number: u8, flags: &str| {
        let words = format!("node --name node-{number} --etcd {ETCD} {flags} -d");
        cluster.machines[&number].command(&cluster.home.command(&words)).output().unwrap()
    };
    let outcome = start(11, &format!("--config {}", config.display()));
    assert!(outcome.status.success(), "{outcome:?}");
    let all = cluster.etcdctl(&["get", "--prefix", "/coreos.com/network/subnets/", "--print-value-only"]);
    assert_eq!(all.unwrap().trim(), r#"{"PublicIP":"203.0.113.11","PublicIPv6":null}"#);

    // Without an interface it is the one that has the address.
    let outcome = start(12, "--public-ip 192.168.66.12");
    assert!(outcome.status.success(), "{outcome:?}");
    let outcome = start(13, "--public-ip 203.0.113.13");
    let said = String::from_utf8(outcome.stderr).unwrap();
    assert!(said.contains("no interface of this host has 203.0.113.13"), "{said}");
    cluster.home.text("down --name node-11");
    cluster.home.text("down --name node-12");

    cluster
        .etcdctl(&["put", "/gw/config", r#"{"Network":"10.8.0.0/16","Backend":{"Type":"host-gw"}}"#])
        .unwrap();
    let words =
        format!("node --name n --iface eth0 --etcd {ETCD} --etcd-prefix /gw --public-ip 203.0.113.13");
    let said = cluster.machines[&13].refuses(&cluster.home.command(&words));
    assert!(said.contains("with host-gw other nodes must reach this one at its own address"), "{said}");
}

#[test]
fn what_is_said_of_leases_without_etcd_or_out_of_bounds_is_refused() {
    let home = Home::new();
    let node = "node --name n --address 192.168.66.11/24";
    for flag in ["public-ip 203.0.113.7", "subnet-lease-renew-margin 90", "subnet-file s"] {
        let said = home.error(&format!("{node} --{flag}"));
        assert!(said.contains("is for a node whose subnet is a lease"), "{said}");
    }
    for flag in ["--subnet-lease-renew-margin 1440", "--subnet-lease-renew-margin 0", "--public-ip 224.0.0.1"]
    {
        let output = home.run(&format!("{node} --etcd http://127.0.0.1:1 {flag}"));
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    let config = home.file("node.yaml");
    std::fs::write(&config, "public-ip: 127.0.0.1\nsubnet-lease-renew-margin: 2000\n").unwrap();
    let said = home.error(&format!("node --config {}", config.display()));
    assert!(said.contains("node.yaml") && said.contains("2000") && said.contains("127.0.0.1"), "{said}");
}

#[test]
fn a_node_whose_etcd_cannot_be_had_says_which_and_why() {
    let home = Home::new();
    let words = |output: std::process::Output| {
        assert!(!output.status.success(), "{output:?}");
        // However the lines are broken.
        let text = String::from_utf8(output.stderr).unwrap();
        text.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ")
    };
    let said = |flags: &str| words(home.run(&format!("node --name n --address 192.168.66.11/24 {flags}")));
    let refused = said("--etcd http://127.0.0.1:1");
    assert!(refused.contains("http://127.0.0.1:1: Connection refused"), "{refused}");
    let half = said("--etcd https://127.0.0.1:1 --etcd-certfile /nowhere");
    assert!(half.contains("a certificate needs its key"), "{half}");
    let nobody = said("--etcd http://127.0.0.1:1 --etcd-username me");
    assert!(nobody.contains("FLANNELD_ETCD_PASSWORD"), "{nobody}");

    let cluster = Cluster::new(r#"{"Network":"10.7.0.0/16"}"#);
    let asks = format!("node --name n --address 192.168.66.11/24 --etcd {ETCD} --etcd-prefix /other");
    let text = words(cluster.machines[&11].command(&cluster.home.command(&asks)).output().unwrap());
    assert!(text.contains("no configuration of a cluster at /other/config"), "{text}");
    assert!(text.contains("etcdctl put"), "{text}");
}
