//! Real nodes whose tunnel is a VXLAN, and Linux' own vxlan devices as their peers.
//!
//! Needs root, `ip`, `bridge`, `nsenter`, `unshare` and Python, and a kernel with vxlan.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use common::cluster::{CHECKSUMS, Cluster, SEGMENTS, SWITCH, TCP_SEGMENTS};
use common::{Namespace, Program, await_that};
use rustix::process::{Signal, kill_process};

/// The MAC that the peer's kernel gave its device, as flannel tells it in its lease.
const KERNELS: &str = "4e:41:e0:49:09:a4";

/// Sends one echo request of so many bytes that must not be cut, and waits for the answer with the same.
const PING: &str = "
import os, socket, struct, sys
payload = os.urandom(int(sys.argv[2]))
def message(check): return struct.pack('!BBHHH', 8, 0, check, 7, 1) + payload
data = message(0) + bytes(len(payload) % 2)
total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
while total >> 16: total = (total & 0xffff) + (total >> 16)
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
s.setsockopt(socket.IPPROTO_IP, 10, 2)
s.settimeout(2)
s.sendto(message(~total & 0xffff), (sys.argv[1], 0))
while True:
    packet = s.recv(65535)
    if packet[20] == 0 and packet[28:] == payload: break
";
/// Payload bytes of an echo request that has just room: the MTU less IPv4 and ICMP.
const MOST: usize = 1450 - 20 - 8;

fn python(program: &str, arguments: &[&str]) -> Command {
    let mut python = Command::new("python3");
    python.args(["-c", program]).args(arguments);
    python
}

fn pings(machine: &Namespace, to: &str, length: usize) -> bool {
    let ping = python(PING, &[to, &length.to_string()]);
    machine.command(&ping).output().unwrap().status.success()
}

/// A third machine, with the subnet 10.1.13.0/24 at a bridge of its kernel's, whose `.1` is for the programs there.
fn kernel_peer(cluster: &Cluster) -> Namespace {
    let machine = cluster.wire.machine(13);
    for words in [
        "ip link add cni0 type bridge",
        "ip address add 10.1.13.1/24 dev cni0",
        "ip link set cni0 up",
        "ip link set lo up",
    ] {
        machine.says(words);
    }
    machine
}

/// Has the peer's programs reach the nodes: by routes through its device, which is up by then.
fn route_to_nodes(machine: &Namespace) {
    machine.says("ip link set flannel.1 mtu 1450 up");
    machine.says("ip address add 10.1.13.0/32 dev flannel.1");
    for node in [11, 12] {
        machine.says(&format!("ip route add 10.1.{node}.0/24 via 10.1.{node}.0 dev flannel.1 onlink"));
    }
    // Between namespaces nobody would make the checksums, and cut the segments, of what is in a datagram: a network card does.
    for what in [CHECKSUMS, TCP_SEGMENTS, SEGMENTS] {
        let switch = python(&SWITCH.replace("eth0", "flannel.1"), &[&what.to_string(), "0"]);
        let output = machine.command(&switch).output().unwrap();
        assert!(output.status.success(), "{what:#x}: {output:?}");
    }
}

/// Tells a node where its peers are, as flannel's leases would.
fn tell_routes(cluster: &Cluster, third: &str) {
    for number in [11, 12] {
        let other = 23 - number;
        cluster.routes(number, &format!("10.1.{other}.0/24: 192.168.66.{other}\n10.1.13.0/24: {third}\n"));
        kill_process(cluster.process(number), Signal::HUP).unwrap();
    }
    await_that("the peer answers", || cluster.pings(11, "10.1.13.1") && cluster.pings(12, "10.1.13.1"));
}

fn serve(cluster: &Cluster, machine: &Namespace) -> Program {
    let mut server = Command::new("python3");
    server.args(["-m", "http.server", "80", "--directory"]).arg(cluster.home.file("site"));
    Program(machine.command(&server).stderr(Stdio::null()).spawn().unwrap())
}

/// What is fetched by HTTP, as a hash: `path` of a server, in a shell.
fn hash_of(server: &str, path: &str) -> String {
    format!(
        "python3 -c \"import sys,urllib.request as r; sys.stdout.buffer.write(r.urlopen('http://{server}/{path}',timeout=20).read())\" | sha256sum"
    )
}

/// Linux' vxlan device as flannel's vxlan backend sets it up: permanent entries for every node's end.
#[test]
fn a_kernels_device_set_up_as_flannel_does_is_a_peer() {
    let cluster = Cluster::over("vxlan");
    let machine = kernel_peer(&cluster);
    machine.says(&format!(
        "ip link add flannel.1 address {KERNELS} type vxlan id 1 dstport 8472 local 192.168.66.13 dev eth0 nolearning"
    ));
    route_to_nodes(&machine);
    for node in [11, 12] {
        let mac = format!("02:42:0a:01:{node:02x}:00");
        machine.says(&format!("ip neighbor add 10.1.{node}.0 lladdr {mac} dev flannel.1 nud permanent"));
        machine.says(&format!("bridge fdb add {mac} dev flannel.1 dst 192.168.66.{node} self permanent"));
    }
    tell_routes(&cluster, &format!("{{address: 192.168.66.13, mac: '{KERNELS}'}}"));
    let neighbors = cluster.home.text("show --name node-11 neighbors node-11");
    assert!(neighbors.contains(KERNELS) && neighbors.contains("02:42:0a:01:0c:00"), "{neighbors}");

    // Both ways, small and as long as there is room, and not a byte more.
    for node in [11, 12] {
        for pod in [10, 20] {
            let to = format!("10.1.{node}.{pod}");
            assert!(pings(&machine, &to, 56) && pings(&machine, &to, MOST), "{to}");
            assert!(!pings(&machine, &to, MOST + 1), "{to}");
        }
    }
    let real = |words: &str| cluster.home.text(&format!("exec --name node-11 real-11 -- {words}"));
    assert!(real("ip link show eth0").contains("mtu 1450"));
    for (length, fits) in [(MOST, true), (MOST + 1, false)] {
        let mut asks = cluster.home.command("exec --name node-11 real-11 -- python3 -c");
        let said = asks.args([PING, "10.1.13.1", &length.to_string()]).output().unwrap();
        assert_eq!(said.status.success(), fits, "{said:?}");
    }

    // TCP both ways: the same bytes arrive, many of them.
    let _server = serve(&cluster, &machine);
    await_that("its server answers", || cluster.simulated_fetches(11, "10.1.13.1"));
    assert!(cluster.real_fetches(11, "10.1.13.1") && cluster.real_fetches(12, "10.1.13.1"));
    let bulk = common::content(24 << 20);
    std::fs::write(cluster.home.file("site/bulk"), &bulk).unwrap();
    for (name, length) in [("content", cluster.content.len()), ("bulk", bulk.len())] {
        let expected =
            machine.says(&format!("sha256sum < {}", cluster.home.file(&format!("site/{name}")).display()));
        for server in ["10.1.11.20", "10.1.12.20"] {
            assert_eq!(machine.says(&hash_of(server, name)), expected, "{server}, {length} bytes");
        }
        let mut asks = cluster.home.command("exec --name node-11 real-11 -- sh -c");
        let sum = asks.arg(hash_of("10.1.13.1", name)).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&sum.stdout), expected, "{name}");
    }
    let sum = machine.says(&hash_of("10.1.11.10", "content"));
    assert_eq!(sum, machine.says(&format!("sha256sum < {}", cluster.home.file("site/content").display())));

    // UDP both ways.
    let echo = "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.bind(('10.1.13.1',7))\nprint('ready',flush=True)\nwhile True:\n  data,who=s.recvfrom(9000); s.sendto(data,who)";
    let mut echo = Program(machine.command(&python(echo, &[])).stdout(Stdio::piped()).spawn().unwrap());
    std::io::Read::read_exact(echo.0.stdout.as_mut().unwrap(), &mut [0; 6]).unwrap();
    let ask = "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.settimeout(5)\ns.connect(('10.1.13.1',7))\nfor n in [1,1422,1423,5000]:\n  s.send(bytes([n%256])*n)\n  assert s.recv(9000)==bytes([n%256])*n\nprint('same')";
    let mut asks = cluster.home.command("exec --name node-12 real-12 -- python3 -c");
    let said = asks.arg(ask).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "same\n", "{said:?}");
    // From pods of both nodes to each other, meanwhile.
    assert!(cluster.real_fetches(11, "10.1.12.20") && cluster.simulated_fetches(12, "10.1.11.10"));
    for number in [11, 12] {
        assert_eq!(cluster.drops(number), BTreeMap::new());
    }
    cluster.end();
}

/// A device that knows one address and nothing else: it asks for MACs, and learns where they are.
#[test]
fn a_kernels_device_that_asks_for_macs_is_a_peer() {
    let cluster = Cluster::over("vxlan");
    let machine = kernel_peer(&cluster);
    // The MAC that a node expects of whom it knows none.
    machine.says(
        "ip link add flannel.1 address 02:42:0a:01:0d:00 type vxlan id 1 dstport 8472 remote 192.168.66.11 dev eth0",
    );
    machine.says("bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.168.66.12");
    route_to_nodes(&machine);
    tell_routes(&cluster, "192.168.66.13");
    for node in [11, 12] {
        assert!(pings(&machine, &format!("10.1.{node}.20"), 56));
        let known = machine.says(&format!("ip neighbor show 10.1.{node}.0 dev flannel.1"));
        assert!(known.contains(&format!("02:42:0a:01:{node:02x}:00")), "{known}");
    }
    let _server = serve(&cluster, &machine);
    await_that("its server answers", || cluster.real_fetches(11, "10.1.13.1"));
    // Its questions are for all; who is not asked for takes no notice. Its kernel looks for IPv6 routers, too.
    for number in [11, 12] {
        let drops = cluster.drops(number);
        assert!(drops.keys().all(|reason| reason == "tunnel-broadcast"), "{drops:?}");
    }
    cluster.end();
}

/// Who has another network's number hears nothing, and is told apart.
#[test]
fn another_networks_frames_are_dropped_by_name() {
    let cluster = Cluster::over("vxlan");
    let machine = kernel_peer(&cluster);
    machine.says(
        "ip link add flannel.1 address 02:42:0a:01:0d:00 type vxlan id 2 dstport 8472 remote 192.168.66.11 dev eth0",
    );
    route_to_nodes(&machine);
    machine.says("ip neighbor add 10.1.11.0 lladdr 02:42:0a:01:0b:00 dev flannel.1 nud permanent");
    assert!(!pings(&machine, "10.1.11.10", 56));
    let drops = cluster.drops(11);
    assert!(drops.keys().eq(["tunnel-foreign-network"]), "{drops:?}");
    cluster.end();
}
