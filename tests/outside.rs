//! Out of a network to real servers by ordinary sockets: a router with `outside: true`, in a namespace whose servers have addresses of a
//! real network's.
//!
//! Needs root (for namespaces; flatnet itself has no privilege there), `ip`, `nsenter`, `unshare`, `setpriv`, curl and Python.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::io::Read as _;
use std::process::{Command, Output, Stdio};

use common::{Home, Namespace, Program, await_that, content};

/// The server's address; the namespace has no way to any other network but 198.51.100.0/24.
const SERVER: &str = "198.51.100.7";

/// Two nodes, a pod each, and the way outside.
const TOPOLOGY: &str = "\
apiVersion: flatnet.dev/v1
kind: Topology
metadata: {name: out}
spec:
  nodes:
    - {name: node-1, address: 192.168.66.11/24, podCIDR: 10.1.15.0/24}
    - {name: node-2, address: 192.168.66.12/24, podCIDR: 10.1.20.0/24}
  routers:
    - {name: internet, addresses: [192.168.66.1/24], outside: true}
---
apiVersion: v1
kind: Pod
metadata: {name: a, annotations: {flatnet.dev/ip: 10.1.15.2}}
spec: {nodeName: node-1, containers: [{name: main, image: busybox}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, annotations: {flatnet.dev/ip: 10.1.20.2}}
spec: {nodeName: node-2, containers: [{name: main, image: busybox}]}
";

/// A host with servers, and a network on it whose process may do nothing that not everybody may.
struct Outside {
    home: Home,
    host: Namespace,
    _servers: Vec<Program>,
}

impl Outside {
    fn with(flags: &str) -> Self {
        let (home, host) = (Home::new(), Namespace::new());
        host.says(&format!("ip link set lo up && ip address add {SERVER}/24 dev lo"));
        std::fs::write(home.file("out.yaml"), TOPOLOGY).unwrap();
        std::fs::write(home.file("content"), content(30_000_000)).unwrap();
        let mut http = Command::new("python3");
        http.args(["-m", "http.server", "--bind", SERVER, "80", "--directory"]);
        http.arg(home.file("")).stderr(Stdio::null()).stdout(Stdio::null());
        let mut echo = Command::new("python3");
        echo.args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/echo.py"), "serve", SERVER, "7"]);
        let mut echo = host.command(&echo).stdout(Stdio::piped()).spawn().unwrap();
        echo.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
        let http = host.command(&http).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let outside = Self { home, host, _servers: vec![Program(echo), Program(http)] };
        await_that("the server listens", || outside.host.says("ss -Hltn 'sport = :80'").contains(":80"));
        let words =
            format!("up -d -f {} {flags}", outside.home.file("out.yaml").display()).trim_end().to_owned();
        let mut up = Command::new("setpriv");
        let command = outside.home.command(&words);
        up.args(["--bounding-set", "-all", "--inh-caps", "-all"])
            .arg(command.get_program())
            .args(command.get_args());
        up.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = outside.host.command(&up).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        outside
    }

    fn drops(&self) -> String {
        self.home.text("show drops internet")
    }

    fn ask(&self, count: usize, length: usize, port: u64) -> String {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/echo.py");
        self.host.says(&format!("python3 {script} ask 127.0.0.1 {port} {count} {length}"))
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn pods_of_all_nodes_fetch_from_a_real_server() {
    let outside = Outside::with("");
    let expected = content(30_000_000);
    for pod in ["a", "b"] {
        let output = outside.home.run(&format!("exec {pod} -- curl -s http://{SERVER}/content"));
        assert!(output.status.success() && output.stdout == expected, "{pod}: {} bytes", output.stdout.len());
    }
    let process = &outside.home.json("status")[0]["pid"];
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    assert!(status.contains("CapEff:\t0000000000000000\n"), "it needs no privilege: {status}");
    // The pod's node has masqueraded it, and the server has seen the host itself.
    let flows = outside.home.text("show flows node-2");
    assert!(
        flows.contains(&format!("src=10.1.20.2 dst={SERVER}")) && flows.contains("dst=192.168.66.12"),
        "{flows}"
    );
}

#[test]
fn what_a_pod_sends_a_real_server_returns_after_the_pod_has_ended() {
    let outside = Outside::with("");
    let sent = String::from_utf8(content(10_000_000).iter().map(|byte| 32 + byte % 95).collect()).unwrap();
    let output = outside.home.with_input(&format!("exec a -- nc {SERVER} 7"), &sent);
    assert!(output.status.success() && output.stdout == sent.as_bytes(), "{} bytes", output.stdout.len());
}

#[test]
fn datagrams_of_any_length_and_pings_are_answered() {
    let outside = Outside::with("");
    outside.host.says("sysctl -qw net.ipv4.ping_group_range='0 0'");
    for length in [5, 1400, 1473, 8000] {
        let sent = "x".repeat(length);
        let output = outside.home.with_input(&format!("exec a -- nc -u -w 1 {SERVER} 7"), &sent);
        assert_eq!(said(&output).len(), length, "{output:?}");
    }
    for length in [56, 1473, 4000] {
        let text = outside.home.text(&format!("exec b -- ping -c 2 -i 0.2 -s {length} {SERVER}"));
        assert!(text.contains("2 received"), "{text}");
    }
    assert_eq!(outside.drops(), "nothing was dropped\n");
}

#[test]
fn what_the_host_refuses_the_pod_is_told() {
    let outside = Outside::with("");
    for (words, expected) in [
        (format!("nc -v {SERVER} 81"), "Connection refused"),
        (format!("nc -vu -w 5 {SERVER} 81"), "Connection refused"),
        // The host has no route there, or a neighbour that does not answer.
        ("nc -v 203.0.113.9 80".to_owned(), "Network is unreachable"),
        ("nc -vu -w 5 203.0.113.9 80".to_owned(), "Network is unreachable"),
    ] {
        let output = outside.home.with_input(&format!("exec a -- {words}"), "x");
        assert!(output.status.code() == Some(1) && said(&output).contains(expected), "{words}: {output:?}");
    }
    assert_eq!(outside.drops(), "nothing was dropped\n");
    // To whom the host lets nobody send pings, and what no router forwards, is dropped by name.
    outside.host.says("sysctl -qw net.ipv4.ping_group_range='1 0'");
    assert_eq!(outside.home.run(&format!("exec a -- ping -c 1 -W 1 {SERVER}")).status.code(), Some(1));
    outside.home.run("exec a -- nc -w 1 169.254.169.254 80");
    let drops = outside.drops();
    assert!(drops.contains("pod-host-ping-refused") && drops.contains("pod-not-forwarded"), "{drops}");
}

#[test]
fn the_hosts_loopback_is_not_outside() {
    let outside = Outside::with("");
    let mut server = Command::new("python3");
    server
        .args(["-m", "http.server", "--bind", "127.0.0.1", "8000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _server =
        Program(outside.host.command(&server).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    await_that("the server listens", || outside.host.says("ss -Hltn 'sport = :8000'").contains(":8000"));
    // 127/8 is the pod's own; 0.0.0.0 is the loopback to Linux; the router's address is its own.
    for address in ["127.0.0.1", "0.0.0.0", "192.168.66.1"] {
        let output = outside.home.run(&format!("exec a -- curl -s -m 2 http://{address}:8000/"));
        assert!(!output.status.success(), "{address}: {output:?}");
    }
}

/// In by a published port, out by the router: a real client and a real server, with a whole network in between.
#[test]
fn two_hundred_connections_at_once_go_in_and_out_again() {
    let outside = Outside::with(&format!("--publish 0:{SERVER}:7"));
    let status = &outside.home.json("status")[0];
    let (process, at) =
        (status["pid"].clone(), status["entrances"][0]["address"].as_str().unwrap().to_owned());
    let port = at.rsplit_once(':').unwrap().1.parse().unwrap();
    let files = || std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    let before = files();
    assert_eq!(outside.ask(200, 100_000, port), "200\n");
    await_that("all sockets are closed", || files() == before);
    assert_eq!(outside.ask(1, 30_000_000, port), "1\n");
}

#[test]
fn virtual_time_and_routers_between_networks_have_no_way_outside() {
    let home = Home::new();
    let write = |text: &str| std::fs::write(home.file("out.yaml"), text).unwrap();
    let up = format!("up -f {}", home.file("out.yaml").display());
    write(&TOPOLOGY.replace("  routers:", "  time: virtual\n  routers:"));
    let error = home.error(&up);
    assert!(error.contains("router internet leads to this host's networks"), "{error}");
    write(&TOPOLOGY.replace("192.168.66.1/24]", "192.168.66.1/24, 203.0.113.1/24]"));
    let error = home.error(&up);
    assert!(error.contains("the way outside is in one network") && error.contains("out.yaml:9"), "{error}");
    write(&TOPOLOGY.replace("outside: true", "outside: true, services: true"));
    assert!(home.error(&up).contains("serves no VIPs"));
}
