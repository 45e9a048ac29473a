//! A machine whose kernel is a peer of a cluster's nodes, and what it says to their pods.

use std::io::Read as _;
use std::process::{Command, Stdio};

use rustix::process::{Signal, kill_process};

use super::cluster::Cluster;
use super::{Namespace, Program, await_that, content};

/// Sends one echo request of so many bytes that must not be cut, and waits for the answer with the same.
pub const PING: &str = "
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

pub fn python(program: &str, arguments: &[&str]) -> Command {
    let mut python = Command::new("python3");
    python.args(["-c", program]).args(arguments);
    python
}

pub fn pings(machine: &Namespace, to: &str, length: usize) -> bool {
    let ping = python(PING, &[to, &length.to_string()]);
    machine.command(&ping).output().unwrap().status.success()
}

/// Pings from a real pod of the first node's.
pub fn is_pinged(cluster: &Cluster, to: &str, length: usize) -> bool {
    let mut asks = cluster.home.command("exec --name node-11 real-11 -- python3 -c");
    asks.args([PING, to, &length.to_string()]).output().unwrap().status.success()
}

/// A third machine, with the subnet 10.1.13.0/24 at a bridge of its kernel's, whose `.1` is for the programs there.
pub fn kernel_peer(cluster: &Cluster) -> Namespace {
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

/// Tells a node where its peers are, as flannel's leases would.
pub fn tell_routes(cluster: &Cluster, third: &str) {
    for number in [11, 12] {
        let other = 23 - number;
        cluster.routes(number, &format!("10.1.{other}.0/24: 192.168.66.{other}\n10.1.13.0/24: {third}\n"));
        kill_process(cluster.process(number), Signal::HUP).unwrap();
    }
    await_that("the peer answers", || cluster.pings(11, "10.1.13.1") && cluster.pings(12, "10.1.13.1"));
}

pub fn serve(cluster: &Cluster, machine: &Namespace) -> Program {
    let mut server = Command::new("python3");
    server.args(["-m", "http.server", "80", "--directory"]).arg(cluster.home.file("site"));
    Program(machine.command(&server).stderr(Stdio::null()).spawn().unwrap())
}

/// What is fetched by HTTP, as a hash: `path` of a server, in a shell.
pub fn hash_of(server: &str, path: &str) -> String {
    format!(
        "python3 -c \"import sys,urllib.request as r; sys.stdout.buffer.write(r.urlopen('http://{server}/{path}',timeout=20).read())\" | sha256sum"
    )
}

/// TCP both ways between the nodes' pods and a machine at an address: the same bytes arrive, many of them.
pub fn exchange(cluster: &Cluster, (machine, address): (&Namespace, &str)) {
    let _server = serve(cluster, machine);
    await_that("its server answers", || cluster.simulated_fetches(11, address));
    assert!(cluster.real_fetches(11, address) && cluster.real_fetches(12, address));
    let bulk = content(24 << 20);
    std::fs::write(cluster.home.file("site/bulk"), &bulk).unwrap();
    for (name, length) in [("content", cluster.content.len()), ("bulk", bulk.len())] {
        let expected =
            machine.says(&format!("sha256sum < {}", cluster.home.file(&format!("site/{name}")).display()));
        for server in ["10.1.11.20", "10.1.12.20"] {
            assert_eq!(machine.says(&hash_of(server, name)), expected, "{server}, {length} bytes");
        }
        let mut asks = cluster.home.command("exec --name node-11 real-11 -- sh -c");
        let sum = asks.arg(hash_of(address, name)).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&sum.stdout), expected, "{name}");
    }
    let sum = machine.says(&hash_of("10.1.11.10", "content"));
    assert_eq!(sum, machine.says(&format!("sha256sum < {}", cluster.home.file("site/content").display())));
}

/// UDP both ways, datagrams of these lengths: what a real pod sends to a machine at an address comes back.
pub fn echo(cluster: &Cluster, (machine, address): (&Namespace, &str), lengths: &str) {
    let echo = format!(
        "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.bind(('{address}',7))\nprint('ready',flush=True)\nwhile True:\n  \
         data,who=s.recvfrom(65535); s.sendto(data,who)"
    );
    let mut echo = Program(machine.command(&python(&echo, &[])).stdout(Stdio::piped()).spawn().unwrap());
    echo.0.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let ask = format!(
        "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.settimeout(5)\ns.connect(('{address}',7))\nfor n in [{lengths}]:\n  \
         s.send(bytes([n%256])*n)\n  assert s.recv(65535)==bytes([n%256])*n\nprint('same')"
    );
    let mut asks = cluster.home.command("exec --name node-12 real-12 -- python3 -c");
    let said = asks.arg(ask).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "same\n", "{said:?}");
}
