//! Real nodes without a tunnel, and kernels with ordinary routes as their peers.
//!
//! Needs root, `ip`, `nft`, `nsenter`, `unshare`, `setpriv`, curl and Python.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::process::{Command, Stdio};

use common::cluster::Cluster;
use common::peer::{echo, exchange, is_pinged, kernel_peer, pings, python, tell_routes};
use common::{Home, Namespace, Program, Wire, await_that};
use rustix::process::{Signal, kill_process};

/// Payload bytes of an echo request that has just room: the MTU less IPv4 and ICMP.
const MOST: usize = 1500 - 20 - 8;

/// Gives a kernel's machine routes to the nodes, as flannel's host-gw does, and a pod behind its bridge.
fn join(machine: &Namespace) -> Namespace {
    for node in [11, 12] {
        machine.says(&format!("ip route add 10.1.{node}.0/24 via 192.168.66.{node} dev eth0"));
    }
    machine.says("sysctl -q -w net.ipv4.ip_forward=1");
    let pod = Namespace::new();
    machine.says(&format!(
        "ip link add pod type veth peer name eth0 netns {} && ip link set pod master cni0 up",
        pod.id()
    ));
    pod.says(
        "ip link set lo up && ip address add 10.1.13.2/24 dev eth0 && ip link set eth0 up && ip route add default via 10.1.13.1",
    );
    pod
}

/// Has a host forward, as one with containers does, and count what it says and forwards of pods' packets itself.
fn watch(machine: &Namespace) {
    machine.says("sysctl -q -w net.ipv4.ip_forward=1 && ip route add default via 192.168.66.1");
    machine.says(
        "nft 'table ip probe { \
           chain forward { type filter hook forward priority 0; counter; }; \
           chain output { type filter hook output priority 0; ip protocol icmp counter; tcp flags & rst == rst counter; }; }'",
    );
}

/// What it has counted.
fn counted(machine: &Namespace) -> Vec<u64> {
    let rules = machine.says("nft list table ip probe");
    let counts = rules.split("packets ").skip(1);
    counts.map(|rest| rest.split(' ').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn a_kernel_with_routes_is_a_peer() {
    let cluster = Cluster::over("host-gw");
    cluster.machines.values().for_each(watch);
    let machine = kernel_peer(&cluster);
    let pod = join(&machine);
    tell_routes(&cluster, "192.168.66.13");
    let routes = cluster.home.text("show --name node-11 routes node-11");
    assert!(routes.contains("10.1.13.0/24 via 192.168.66.13 dev eth0"), "{routes}");
    assert!(!routes.contains("flannel0"), "{routes}");

    // Both ways, small and as long as there is room, and not a byte more.
    for client in [&machine, &pod] {
        for node in [11, 12] {
            for server in [10, 20] {
                let to = format!("10.1.{node}.{server}");
                assert!(pings(client, &to, 56) && pings(client, &to, MOST), "{to}");
                assert!(!pings(client, &to, MOST + 1), "{to}");
            }
            assert!(pings(client, &format!("10.1.{node}.1"), 56), "docker0");
        }
    }
    let real = |words: &str| cluster.home.text(&format!("exec --name node-11 real-11 -- {words}"));
    assert!(real("ip link show eth0").contains("mtu 1500"));
    for to in ["10.1.13.1", "10.1.13.2"] {
        assert!(is_pinged(&cluster, to, MOST) && !is_pinged(&cluster, to, MOST + 1), "{to}");
    }
    for (end, address) in [(&machine, "10.1.13.1"), (&pod, "10.1.13.2")] {
        exchange(&cluster, (end, address));
        // Longer ones in fragments.
        echo(&cluster, (end, address), "1,1472,1473,5000,20000");
    }
    // From pods of both nodes to each other, meanwhile.
    assert!(cluster.real_fetches(11, "10.1.12.20") && cluster.simulated_fetches(12, "10.1.11.10"));
    for number in [11, 12] {
        assert_eq!(cluster.drops(number), BTreeMap::new());
        assert_eq!(counted(&cluster.machines[&number]), [0, 0, 0], "the host itself takes no part");
    }
    cluster.end();
}

#[test]
fn pods_are_masqueraded_outwards_and_not_to_each_other() {
    let cluster = Cluster::over("host-gw");
    let machine = kernel_peer(&cluster);
    join(&machine);
    tell_routes(&cluster, "192.168.66.13");
    let who = "
import socket, sys
s = socket.create_server(('', 9000))
print('ready', flush=True)
while True:
    connection, peer = s.accept()
    connection.sendall(peer[0].encode())
    connection.close()
";
    let mut server = Program(machine.command(&python(who, &[])).stdout(Stdio::piped()).spawn().unwrap());
    server.0.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let asks = |address: &str| {
        let ask = format!(
            "import socket\nprint(socket.create_connection(('{address}', 9000), 5).recv(99).decode())"
        );
        let mut asks = cluster.home.command("exec --name node-11 real-11 -- python3 -c");
        String::from_utf8(asks.arg(ask).output().unwrap().stdout).unwrap()
    };
    assert_eq!(asks("10.1.13.1"), "10.1.11.20\n", "a pod, as itself");
    assert_eq!(asks("192.168.66.13"), "192.168.66.11\n", "outside, as its node");
    assert_eq!(cluster.drops(11), BTreeMap::new());
    cluster.end();
}

#[test]
fn rules_and_what_is_told_of_the_host() {
    let cluster = Cluster::over("host-gw");
    let machine = &cluster.machines[&11];
    let rules = machine.says("nft list table ip flatnet-node-11");
    assert!(rules.contains("iifname \"eth0\" ip daddr 10.1.11.0/24 drop"), "{rules}");
    assert_eq!(machine.says("ss -Hlun"), "", "no tunnel's socket");
    // A lease of a node behind a router is left alone, and said.
    cluster.routes(11, "10.1.12.0/24: 192.168.66.12\n10.1.14.0/24: 203.0.113.7\n");
    kill_process(cluster.process(11), Signal::HUP).unwrap();
    let log = cluster.home.file("flatnet/node-11.log");
    let said =
        "host-gw: no way to 10.1.14.0/24 from node-11: 203.0.113.7, which holds it, is on another network";
    await_that("it is said", || std::fs::read_to_string(&log).unwrap().contains(said));
    assert!(!cluster.pings(11, "10.1.14.2") && cluster.pings(11, "10.1.12.10"));
    assert!(cluster.drops(11).keys().eq(["lease-off-link"]), "{:?}", cluster.drops(11));
    assert!(!cluster.home.text("show --name node-11 routes node-11").contains("10.1.14.0/24"));
    let namespaces: Vec<_> = cluster.machines.values().map(Namespace::path).collect();
    let tables = || {
        let list = |path: &String| {
            let output =
                Command::new("nsenter").arg(format!("--net={path}")).args(["nft", "list", "tables"]).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        namespaces.iter().map(list).collect::<Vec<_>>()
    };
    assert_eq!(tables(), ["table ip flatnet-node-11\n", "table ip flatnet-node-12\n"]);
    for number in [11, 12] {
        assert_eq!(cluster.home.json(&format!("down --name node-{number}"))["balances"], true);
    }
    assert_eq!(tables(), ["", ""]);
}

/// What the rules are for: without them the host forwards what is for pods, or says that there are none.
#[test]
fn the_host_is_kept_from_forwarding_what_is_for_pods() {
    let cluster = Cluster::over("host-gw");
    let machine = &cluster.machines[&12];
    watch(machine);
    assert!(cluster.pings(11, "10.1.12.10"));
    assert_eq!(counted(machine), [0, 0, 0]);
    machine.says("nft delete table ip flatnet-node-12");
    assert!(cluster.pings(11, "10.1.12.10"), "the node has got it by then");
    assert!(counted(machine)[0] > 0);
    cluster.end();
}

/// A switch floods what is for a station it does not know, and a card may listen to all: Linux calls that `PACKET_OTHERHOST`.
#[test]
fn a_frame_for_another_mac_is_not_the_nodes() {
    const STRANGE: &str = "02:00:00:00:00:99";
    let cluster = Cluster::over("host-gw");
    let (machine, peer) = (&cluster.machines[&11], kernel_peer(&cluster));
    join(&peer);
    tell_routes(&cluster, "192.168.66.13");
    assert!(pings(&peer, "10.1.11.10", 56));
    machine.says(&format!(
        "ip link set eth0 promisc on && nft 'table netdev probe {{ \
           chain seen {{ type filter hook ingress device eth0 priority 0; ether daddr {STRANGE} counter; }}; }}'"
    ));
    let arrived = || {
        let rules = machine.says("nft list table netdev probe");
        rules.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    peer.says(&format!("ip neighbor replace 192.168.66.11 lladdr {STRANGE} dev eth0 nud permanent"));
    for to in ["10.1.11.10", "10.1.11.20", "10.1.11.1"] {
        let before = arrived();
        assert!(!pings(&peer, to, 56), "{to}");
        assert!(arrived() > before, "it came to eth0: {to}");
    }
    assert_eq!(cluster.drops(11), BTreeMap::new(), "the node does not even see it");
    peer.says("ip neighbor del 192.168.66.11 dev eth0");
    assert!(pings(&peer, "10.1.11.10", 56));
    cluster.end();
}

/// A topology of one node on the host's own network and three simulated ones, a pod at each. Of these, the last has an address of the
/// host's network, which does not put it there.
fn mixed() -> String {
    let mut text = "apiVersion: flatnet.dev/v1\nkind: Topology\nmetadata: {name: mixed}\nspec:\n  backend: {type: host-gw}\n  \
                    routes: {10.1.13.0/24: 192.168.66.13}\n  nodes:\n"
        .to_owned();
    for (number, network, underlay) in
        [(11, 66, "socket"), (21, 77, "switch"), (22, 77, "switch"), (23, 66, "switch")]
    {
        text += &format!(
            "    - {{name: node-{number}, address: 192.168.{network}.{number}/24, podCIDR: 10.1.{number}.0/24, underlay: {underlay}}}\n"
        );
    }
    for number in [11, 21, 22, 23] {
        text += &format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{number}, annotations: {{flatnet.dev/ip: 10.1.{number}.10}}}}\nspec: \
             {{nodeName: node-{number}, containers: [{{name: c, image: nginx}}]}}\n"
        );
    }
    text
}

/// One process, two node networks without a way between: the host's own, with a kernel for a peer, and a simulated one.
#[test]
fn a_node_on_the_hosts_network_and_simulated_ones_are_of_one_process() {
    let (home, wire) = (Home::new(), Wire::new());
    let (machine, peer) = (wire.machine(11), wire.machine(13));
    for words in [
        "ip link add cni0 type bridge && ip address add 10.1.13.1/24 dev cni0 && ip link set cni0 up",
        "ip route add 10.1.11.0/24 via 192.168.66.11 && sysctl -q -w net.ipv4.ip_forward=1",
    ] {
        peer.says(words);
    }
    std::fs::write(home.file("mixed.yaml"), mixed()).unwrap();
    let up = home.command(&format!("up -d -f {}", home.file("mixed.yaml").display()));
    let output = machine.command(&up).output().unwrap();
    assert!(output.status.success(), "{output:?}");

    // Each has its own network's nodes.
    assert!(home.run("exec pod-11 -- ping -c 1 -W 5 10.1.13.1").status.success());
    assert!(pings(&peer, "10.1.11.10", MOST));
    for (from, to) in [(21, 22), (22, 21)] {
        let said = home.text(&format!("exec pod-{from} -- curl -s http://10.1.{to}.10/"));
        assert!(said.contains("Welcome to nginx!"), "{said}");
    }
    // Between them there is no way, which says so, whether the addresses look like one network's or not.
    let log = std::fs::read_to_string(home.file("flatnet/mixed.log")).unwrap_or_default();
    let log = log + &String::from_utf8_lossy(&output.stderr);
    assert!(
        log.contains("host-gw: no way to 10.1.21.0/24 from node-11, node-23: 192.168.77.21, which holds it, is on another network"),
        "{log}"
    );
    for (from, to, reason) in [
        (11, 21, "lease-off-link"),
        (21, 11, "lease-off-link"),
        (11, 23, "neighbor-unresolved"),
        (23, 11, "neighbor-unresolved"),
        (23, 13, "neighbor-unresolved"),
    ] {
        let said = home
            .run(&format!("exec pod-{from} -- ping -c 1 -W 8 10.1.{to}.{}", if to == 13 { 1 } else { 10 }));
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let told = if reason == "lease-off-link" {
            "Destination Net Unreachable"
        } else {
            "Destination Host Unreachable"
        };
        assert!(said.contains(told), "pod-{from} to pod-{to}: {said}");
        let drops = home.json(&format!("show drops node-{from}"));
        assert!(
            drops.as_array().unwrap().iter().any(|row| row["reason"] == reason),
            "{from} to {to}: {drops}"
        );
    }
    assert_eq!(home.json("down")["balances"], true);
    assert_eq!(machine.says("nft list tables"), "");
}

#[test]
fn superframes_cross_the_uplink_whole() {
    let cluster = Cluster::over("host-gw");
    let machine = kernel_peer(&cluster);
    let pod = join(&machine);
    tell_routes(&cluster, "192.168.66.13");
    exchange(&cluster, (&pod, "10.1.13.2"));
    let report = cluster.home.json("down --name node-11");
    let frames = report["nodes"][0]["received"].as_u64().unwrap();
    // 24 MiB each way, and a few times 1 MiB.
    assert!(frames < (48 << 20) / 1448 / 2, "{frames} frames: {report}");
    assert_eq!(cluster.home.json("down --name node-12")["balances"], true);
}

#[test]
fn what_the_host_cannot_give_is_told_with_what_to_do() {
    let (home, wire) = (Home::new(), Wire::new());
    let machine = wire.machine(11);
    let node = home.command("node --name n --backend host-gw --address 192.168.66.11/24");
    let mut unprivileged = Command::new("setpriv");
    unprivileged.args(["--bounding-set=-net_raw", "--inh-caps=-all", "--"]);
    unprivileged.arg(node.get_program()).args(node.get_args());
    unprivileged.envs(node.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let said = machine.refuses(&unprivileged);
    assert!(
        said.contains("eth0: frames of this host's interfaces need the capability CAP_NET_RAW"),
        "{said}"
    );
    assert!(said.contains("--backend udp and vxlan"), "{said}");
    let said = machine.refuses(&home.command("node --name n --backend host-gw --address 192.168.66.99/24"));
    assert!(said.contains("192.168.66.99") && said.contains("192.168.66.11 of eth0"), "{said}");
    let said = machine
        .refuses(&home.command("node --name n --backend host-gw --address 192.168.66.11/24 --port 9000"));
    assert!(said.contains("host-gw has no tunnel"), "{said}");
    assert_eq!(machine.says("nft list tables"), "");
}

#[test]
fn a_node_that_is_killed_and_a_link_that_goes_down_are_reached_again() {
    let cluster = Cluster::over("host-gw");
    assert!(cluster.pings(11, "10.1.12.10"));
    kill_process(cluster.process(12), Signal::KILL).unwrap();
    await_that("it is gone", || !cluster.pings(11, "10.1.12.10"));
    cluster.start(12);
    await_that("it is back", || cluster.pings(11, "10.1.12.10"));
    await_that("its real pod serves", || cluster.simulated_fetches(11, "10.1.12.20"));
    assert_eq!(cluster.drops(11), BTreeMap::new(), "nobody was told of anything but silence");
    let machine = &cluster.machines[&11];
    machine.says("ip link set eth0 down");
    assert!(!cluster.pings(11, "10.1.12.10") && cluster.simulated_fetches(11, "10.1.11.20"));
    assert!(cluster.drops(11).keys().eq(["link-down"]), "{:?}", cluster.drops(11));
    machine.says("ip link set eth0 up");
    await_that("it is back", || cluster.pings(11, "10.1.12.10"));
    assert!(cluster.real_fetches(11, "10.1.12.20") && cluster.real_fetches(12, "10.1.11.20"));
    cluster.end();
}
