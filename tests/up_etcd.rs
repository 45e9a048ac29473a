//! One topology over several processes: `flatnet up --etcd --nodes`, each in a network namespace of its own.
//!
//! Needs root, `ip`, `curl`, iputils' `ping`, Debian's `etcd-server` and `etcd-client`.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::await_that;
use common::etcd::Cluster;
use common::real::pod;
use rustix::process::{Pid, Signal, kill_process};

const TOPOLOGY: &str = "\
apiVersion: flatnet.dev/v1
kind: Topology
metadata: {name: three}
spec:
  nodes:
    - {name: node-11, address: 192.168.66.11/24}
    - {name: node-12, address: 192.168.66.12/24}
    - {name: node-13, address: 192.168.66.13/24}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, clusterIP: 10.96.0.80, selector: {app: web}, ports: [{port: 80, nodePort: 30080}]}
";

/// A pod that asks, one that serves and a real one on each node.
fn topology() -> String {
    let pods = [11, 12, 13].map(|number| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: asks-{number}}}\nspec: {{nodeName: node-{number}, containers: \
             [{{name: c, image: flatnet/client}}]}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: web-{number}, labels: {{app: \
             web}}}}\nspec: {{nodeName: node-{number}, containers: [{{name: c, image: flatnet/httpd}}]}}\n"
        ) + &pod(&format!("real-{number}"), &format!("node-{number}"), "exec python3 -m http.server 80", ("", ""))
    });
    TOPOLOGY.to_owned() + &pods.concat()
}

struct Processes(Cluster);

impl Processes {
    fn new(members: usize) -> Self {
        Self::of(members, &topology())
    }

    fn of(members: usize, topology: &str) -> Self {
        let cluster = Cluster::of(
            members,
            "{\"Network\":\"10.1.0.0/16\",\"Backend\":{\"Type\":\"udp\",\"Port\":8285}}",
        );
        std::fs::write(cluster.home.file("three.yaml"), topology).unwrap();
        Self(cluster)
    }

    fn up(&self, number: u8, rest: &str) -> String {
        let (file, etcd) = (self.0.home.file("three.yaml"), self.0.endpoints());
        let words = format!("up -d -f {} --etcd {etcd} {rest}", file.display());
        let output = self.0.machines[&number].command(&self.0.home.command(&words)).output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    }

    fn start(&self, number: u8) {
        let said = self.up(number, &format!("--nodes node-{number}"));
        assert!(said.contains(&format!("network node-{number} is up: 1 node,")), "{said}");
    }

    /// What one process says.
    fn get(&self, from: u8, what: &str) -> String {
        self.0.home.text(&format!("get --name node-{from} {what}"))
    }

    fn asks(&self, from: u8, command: &str) -> bool {
        self.0.home.run(&format!("exec --name node-{from} asks-{from} -- {command}")).status.success()
    }

    fn address(&self, from: u8, pod: &str) -> Option<String> {
        let pods = self.0.home.json(&format!("get --name node-{from} pods"));
        let pod = pods["items"].as_array()?.iter().find(|it| it["metadata"]["name"] == pod)?.clone();
        pod["status"]["podIP"].as_str().map(str::to_owned)
    }

    fn says(&self, from: u8, what: &str, expected: usize, word: &str) {
        await_that(&format!("{what} has {expected} of {word:?}"), || {
            self.get(from, what).matches(word).count() == expected
        });
    }

    /// All that a Service of three pods answers with.
    fn pings_all(&self, from: u8) {
        for to in [11, 12, 13] {
            await_that("it has an address", || self.address(from, &format!("web-{to}")).is_some());
            let address = self.address(from, &format!("web-{to}")).unwrap();
            await_that("it is reached", || self.asks(from, &format!("ping -c 1 -W 1 {address}")));
        }
    }

    fn process(&self, number: u8) -> Option<Pid> {
        let status = self.0.home.json("status");
        let name = format!("node-{number}");
        let row = status.as_array()?.iter().find(|row| row["name"] == *name)?;
        Pid::from_raw(row["pid"].as_i64()?.try_into().ok()?)
    }

    /// The node whose process decides for all.
    fn leader(&self) -> Option<u8> {
        let key = format!("{ROOT}/leases/kube-system/flatnet-controllers");
        let lease: serde_json::Value =
            serde_json::from_str(&self.0.etcdctl(&["get", "--print-value-only", &key])?).ok()?;
        let holder = lease["spec"]["holderIdentity"].as_str()?.to_owned();
        let is_it = |number: &u8| {
            let process = self.process(*number).map(|process| process.as_raw_nonzero());
            process.is_some_and(|process| holder.starts_with(&format!("process {process} of ")))
        };
        [11, 12, 13].into_iter().find(is_it)
    }

    fn end(self) {
        for number in [11, 12, 13] {
            assert_eq!(self.0.home.json(&format!("down --name node-{number}"))["balances"], true);
        }
        let left = self.0.etcdctl(&["get", "--prefix", &format!("{ROOT}/leases/"), "--keys-only"]).unwrap();
        assert_eq!(left.trim(), "", "who has left is heard of no more");
    }
}

/// Where its objects lie.
const ROOT: &str = "/flatnet.dev/coreos.com/network/registry";
const SERVICE: &str = "curl -s --max-time 5 http://10.96.0.80/";

#[test]
fn a_topology_over_three_processes_with_an_etcd_is_one_network() {
    let all = Processes::of(1, &topology().replace("/24}", "/24, underlay: socket, uplink: true}"));
    [11, 12, 13].into_iter().for_each(|number| all.start(number));
    for from in [11, 12, 13] {
        all.pings_all(from);
        all.says(from, "nodes", 3, " Ready ");
        all.says(from, "pods", 9, " Running ");
        all.says(from, "endpointslices", 2, ",");
        assert!(all.asks(from, SERVICE));
        all.says(from, "subnets", 3, "192.168.66.");
    }
    // Every object is decided on once, and nothing of ours stands where flannel's leases do.
    let keys = all.0.etcdctl(&["get", "--prefix", "/", "--keys-only"]).unwrap();
    let below = |prefix: &str| keys.lines().filter(|key| key.starts_with(prefix)).count();
    assert_eq!(below("/coreos.com/network/"), 4, "{keys}");
    assert_eq!(below(&format!("{ROOT}/endpointslices/")), 1, "{keys}");
    assert_eq!(below(&format!("{ROOT}/pods/")), 9, "{keys}");

    // Programs of this host behind TAPs as well.
    for (from, to) in [(11, 12), (12, 13), (13, 11), (11, 11)] {
        let real = all.address(from, &format!("real-{to}")).unwrap();
        let web = all.address(from, &format!("web-{to}")).unwrap();
        let really = |what: String| {
            all.0.home.run(&format!("exec --name node-{from} real-{from} -- {what}")).status.success()
        };
        await_that("a real pod reaches a real one", || really(format!("ping -c 1 -W 1 {real}")));
        assert!(really(format!("ping -c 1 -W 1 {web}")));
        await_that("its server answers", || all.asks(from, &format!("curl -s --max-time 5 http://{real}/")));
        assert!(really(format!("curl -s --max-time 5 http://{web}/")) && really(SERVICE.to_owned()));
    }
    // From outside by any node's port, and to outside by the node's address.
    for node in [11, 12, 13] {
        let asks =
            format!("curl -s --max-time 5 --retry 5 --retry-all-errors http://192.168.66.{node}:30080/");
        assert!(!all.0.machines[&10].says(&asks).is_empty(), "a node's port leads to a pod");
        assert!(all.asks(node, "ping -c 1 -W 5 192.168.66.10"), "what is outside is reached");
    }
    assert!(all.0.home.text("show --name node-11 routes node-11").contains("via 192.168.66.12"));
    let said = all.0.home.error("show --name node-11 routes node-12");
    assert!(said.contains("node node-12 is run by another process"), "{said}");

    // A node has one process, and all processes the same files.
    let refused = all.up(12, "--nodes node-11 --name other");
    assert!(refused.contains("node node-11 cannot be on this host's network"), "{refused}");
    assert!(refused.contains("192.168.66.12 of eth0"), "{refused}");
    let refused = all.up(12, "--nodes node-12 --name other");
    assert!(refused.contains("node node-12 is run by process "), "{refused}");
    let refused = all.up(12, "--nodes node-12 --keep");
    assert!(refused.contains("--keep is for a network of one process"), "{refused}");
    let refused = all.up(12, "--nodes node-99 --name other");
    assert!(
        refused.contains("the topology has no node node-99") && refused.contains("node-11, node-12, node-13"),
        "{refused}"
    );
    all.end();
}

#[test]
fn a_process_that_dies_is_missed_and_another_leads_while_members_of_etcd_die() {
    let mut all = Processes::new(3);
    [11, 12, 13].into_iter().for_each(|number| all.start(number));
    [11, 12, 13].into_iter().for_each(|from| all.pings_all(from));
    all.says(11, "endpointslices", 2, ",");
    let dies = all.leader().unwrap();
    let [stays, asks] = [11, 12, 13].into_iter().filter(|it| *it != dies).collect::<Vec<_>>()[..] else {
        unreachable!()
    };
    kill_process(all.process(dies).unwrap(), Signal::KILL).unwrap();
    let web = all.address(stays, &format!("web-{stays}")).unwrap();
    // What flows goes on.
    for _ in 0..20 {
        assert!(all.asks(asks, &format!("ping -c 1 -W 1 {web}")));
    }
    all.says(stays, "nodes", 1, " NotReady ");
    all.says(asks, "endpointslices", 1, ",");
    await_that("another leads", || all.leader().is_some_and(|leader| leader != dies));
    for _ in 0..10 {
        assert!(all.asks(asks, SERVICE));
    }
    all.0.kill_member(2);
    all.start(dies);
    all.says(stays, "nodes", 3, " Ready ");
    all.says(dies, "endpointslices", 2, ",");
    all.pings_all(dies);
    // Without a quorum nothing is decided, and everything goes on.
    all.0.kill_member(1);
    for _ in 0..20 {
        assert!(all.asks(asks, &format!("ping -c 1 -W 1 {web}")) && all.asks(dies, SERVICE));
    }
    all.0.start_etcd();
    all.says(stays, "nodes", 3, " Ready ");
    all.says(dies, "endpointslices", 2, ",");
    all.end();
}

#[test]
fn processes_with_an_etcd_that_are_given_different_files_are_not_one_network() {
    let all = Processes::new(1);
    all.start(11);
    let other = all.0.home.file("three.yaml");
    std::fs::write(&other, topology() + "# another\n").unwrap();
    let refused = all.up(12, "--nodes node-12");
    assert!(refused.contains("which runs node node-11, was given another topology"), "{refused}");
    all.0.home.text("down --name node-11");
    all.start(12);
    all.0.home.text("down --name node-12");
}

/// It does not know yet that another one leads when it is back: what it writes until then is refused.
#[test]
fn a_process_that_is_cut_off_from_etcd_decides_nothing_and_is_heard_of_again() {
    let all = Processes::new(1);
    [11, 12, 13].into_iter().for_each(|number| all.start(number));
    [11, 12, 13].into_iter().for_each(|from| all.pings_all(from));
    all.says(11, "endpointslices", 2, ",");
    let off = all.leader().unwrap();
    let stays = if off == 11 { 12 } else { 11 };
    let own = all.address(off, &format!("web-{off}")).unwrap();
    all.0.wire.0.says(&format!("ip link set port{off} down"));
    all.says(stays, "nodes", 1, " NotReady ");
    all.says(stays, "endpointslices", 1, ",");
    await_that("another leads", || all.leader().is_some_and(|leader| leader != off));
    assert!(all.asks(off, &format!("ping -c 1 -W 1 {own}")), "its own pods go on");
    all.0.wire.0.says(&format!("ip link set port{off} up"));
    all.says(stays, "nodes", 3, " Ready ");
    all.says(off, "endpointslices", 2, ",");
    all.pings_all(off);
    assert!(all.asks(off, SERVICE));
    all.end();
}

#[test]
fn a_process_runs_all_nodes_of_a_topology_with_an_etcd_that_it_is_not_told_otherwise() {
    let all = Processes::new(1);
    all.0.machines[&11]
        .says("ip address add 192.168.66.12/24 dev eth0 && ip address add 192.168.66.13/24 dev eth0");
    let said = all.up(11, "--name node-11");
    assert!(said.contains("network node-11 is up: 3 nodes,"), "{said}");
    all.pings_all(11);
    all.says(11, "endpointslices", 2, ",");
    all.says(11, "subnets", 3, "192.168.66.");
    let hops = all.0.home.text("trace --name node-11 asks-11 web-13");
    assert!(hops.contains("192.168.66.11* → 192.168.66.13*"), "by UDP between both addresses: {hops}");
    assert_eq!(all.0.home.json("down --name node-11")["balances"], true);
}
