//! Real nodes whose leases lie in a real etcd.
//!
//! Needs root, `ip`, `nsenter`, `unshare` and Debian's `etcd-server` and `etcd-client`.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use common::{Home, Namespace, Wire, await_that};
use serde_json::Value;

/// Machine 10 has an etcd, each other one a node with a simulated pod.
struct Cluster {
    home: Home,
    _wire: Wire,
    machines: BTreeMap<u8, Namespace>,
    etcd: Option<Child>,
}

const ETCD: &str = "http://192.168.66.10:2379";

impl Cluster {
    fn new(config: &str) -> Self {
        let (home, wire) = (Home::new(), Wire::new());
        let machines = [10, 11, 12, 13].map(|number| (number, wire.machine(number))).into();
        let mut cluster = Self { home, _wire: wire, machines, etcd: None };
        cluster.start_etcd();
        await_that("etcd answers", || {
            cluster.etcdctl(&["put", "/coreos.com/network/config", config]).is_some()
        });
        cluster
    }

    fn start_etcd(&mut self) {
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(self.home.file("etcd"));
        command.args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD]);
        let mut command = self.machines[&10].command(&command);
        self.etcd = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    fn kill_etcd(&mut self) {
        if let Some(mut etcd) = self.etcd.take() {
            etcd.kill().unwrap();
            etcd.wait().unwrap();
        }
    }

    fn etcdctl(&self, words: &[&str]) -> Option<String> {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", ETCD, "--command-timeout", "2s"]).args(words);
        let output = self.machines[&10].command(&command).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    fn start(&self, number: u8) {
        let pods = self.home.file(&format!("pods-{number}.yaml"));
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: sim-{number}}}\nspec: {{containers: [{{name: web, image: flatnet/httpd}}]}}\n"
        );
        std::fs::write(&pods, pod).unwrap();
        let (pods, file) = (pods.display(), self.home.file(&format!("run/subnet-{number}.env")));
        let words = format!(
            "node --name node-{number} --iface eth0 --etcd {ETCD} --subnet-file {} -f {pods} -d",
            file.display()
        );
        let output = self.machines[&number].command(&self.home.command(&words)).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn address(&self, number: u8) -> String {
        let pods = self.home.json(&format!("get --name node-{number} pods"));
        pods["items"][0]["status"]["podIP"].as_str().unwrap().to_owned()
    }

    fn pings(&self, from: u8, to: &str) -> bool {
        self.home.run(&format!("exec --name node-{from} sim-{from} -- ping -c 1 -W 1 {to}")).status.success()
    }

    fn leases(&self) -> Vec<Value> {
        let text = self
            .etcdctl(&["get", "--prefix", "/coreos.com/network/subnets/", "--write-out", "json"])
            .unwrap();
        let all: Value = serde_json::from_str(&text).unwrap();
        all["kvs"].as_array().unwrap().clone()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_etcd();
    }
}

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
