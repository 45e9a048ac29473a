//! Real nodes: processes of their own in network namespaces of their own, with a real network between them.
//!
//! Needs root, `ip`, `nsenter`, `unshare` and Python.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use common::cluster::{CHECKSUMS, Cluster, RECEIVED_TOGETHER, SEGMENTS, TCP_SEGMENTS};
use common::{Home, Program, Wire, await_that};
use rustix::process::{Signal, kill_process};

/// Says how long it took until a node was reached again: `scripts/test --long` compares that with its bound, since whoever shares the
/// machine has a part in it.
fn tell_recovery(since: Instant) {
    eprintln!("recovery: {} ms", since.elapsed().as_millis());
}

#[test]
fn simulated_and_real_pods_of_two_hosts_reach_each_other() {
    for (backend, hop) in [("udp", "10.1.12.0"), ("vxlan", "10.1.12.0"), ("host-gw", "192.168.66.12")] {
        let cluster = Cluster::over(backend);
        for (here, there) in [(11, 12), (12, 11)] {
            let (simulated, real) = (format!("10.1.{there}.10"), format!("10.1.{there}.20"));
            assert!(cluster.pings(here, &simulated) && cluster.pings(here, &real));
            for server in [&simulated, &real] {
                assert!(cluster.simulated_fetches(here, server), "sim-{here} from {server}");
                assert!(cluster.real_fetches(here, server), "real-{here} from {server}");
            }
            // A node answers for its own addresses, through the tunnel as on its bridge.
            assert!(cluster.pings(here, &format!("10.1.{there}.1")));
            // In turn, so that one of each two is on the other host.
            for _ in 0..4 {
                assert!(cluster.simulated_fetches(here, "10.96.0.10:8080"), "sim-{here} from the Service");
                assert!(cluster.real_fetches(here, "10.96.0.10:8080"), "real-{here} from the Service");
            }
            let flows = cluster.home.text(&format!("show --name node-{here} flows node-{here}"));
            assert!(flows.contains("src=10.1.11.10 ") && flows.contains("src=10.1.12.20 "), "{flows}");
            assert_eq!(cluster.drops(here), BTreeMap::new());
        }
        let says = |words: &str| cluster.home.text(&format!("exec --name node-11 sim-11 -- {words}"));
        assert!(says("traceroute -n 10.1.12.10").contains(hop), "the other node is a hop");
        cluster.end();
    }
}

#[test]
fn a_wire_that_takes_less_than_pods_believe_is_found_out() {
    for (backend, overhead) in [("udp", 28), ("vxlan", 50)] {
        let cluster = Cluster::over(backend);
        cluster.wire.set_mtu(&cluster.machines, 1400);
        // Who sends what must not be cut is told: it does not find out by silence.
        let mtu = 1500 - overhead;
        let program = format!(
            "
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, 10, 2)
s.connect(('10.1.12.20', 9))
s.send(bytes(1400))
while s.getsockopt(socket.IPPROTO_IP, 14) == {mtu}: time.sleep(0.01)
print(s.getsockopt(socket.IPPROTO_IP, 14))
"
        );
        let mut asks = cluster.home.command("exec --name node-11 real-11 -- python3 -c");
        let told = asks.arg(program).output().unwrap();
        let fits = format!("{}\n", 1400 - overhead);
        assert_eq!(String::from_utf8_lossy(&told.stdout), fits, "1400 less the outer headers: {told:?}");
        assert_eq!(cluster.drops(11), [("fragmentation-needed".to_owned(), 1)].into());
        for (here, there) in [(11, 12), (12, 11)] {
            for server in [format!("10.1.{there}.10"), format!("10.1.{there}.20")] {
                assert!(cluster.simulated_fetches(here, &server), "sim-{here} from {server}");
                assert!(cluster.real_fetches(here, &server), "real-{here} from {server}");
            }
        }
        for number in [11, 12] {
            let drops = cluster.drops(number);
            assert!(
                drops.keys().all(|reason| reason == "fragmentation-needed") && !drops.is_empty(),
                "{drops:?}"
            );
        }
        cluster.end();
    }
}

#[test]
fn what_is_fetched_is_the_same_with_every_offload_on_or_off() {
    for backend in ["udp", "vxlan", "host-gw"] {
        let cluster = Cluster::over(backend);
        let switches = [
            (true, 12, TCP_SEGMENTS),
            (true, 12, SEGMENTS),
            (true, 12, CHECKSUMS),
            (true, 11, RECEIVED_TOGETHER),
            (false, 12, SEGMENTS),
            (false, 12, CHECKSUMS),
            (false, 11, RECEIVED_TOGETHER),
        ];
        assert!(cluster.real_fetches(11, "10.1.12.20"), "all on");
        for (is_pod, number, what) in switches {
            cluster.switch(is_pod, number, what, false);
            assert!(cluster.real_fetches(11, "10.1.12.20"), "pod {is_pod}, {number}: {what:#x} off");
            cluster.switch(is_pod, number, what, true);
        }
        switches.iter().for_each(|&(is_pod, number, what)| cluster.switch(is_pod, number, what, false));
        for (here, there) in [(11, 12), (12, 11)] {
            let server = format!("10.1.{there}.20");
            assert!(
                cluster.real_fetches(here, &server) && cluster.simulated_fetches(here, &server),
                "all off"
            );
        }
        for number in [11, 12] {
            assert_eq!(cluster.drops(number), BTreeMap::new());
        }
        cluster.end();
    }
}

/// Asks whether an eth0 is given TCP superframes to send.
const TCP_SEGMENTS_NOW: &str = "
import ctypes, fcntl, socket, struct
value = ctypes.create_string_buffer(struct.pack('II', 0x1e, 0))
fcntl.ioctl(socket.socket(), 0x8946, struct.pack('16sP16x', b'eth0', ctypes.addressof(value)))
print(struct.unpack('II', value.raw[:8])[1])
";

#[test]
fn what_is_left_to_the_host_is_switched_while_frames_pass() {
    let cluster = Cluster::new();
    let features = |words: &str| {
        let rows = cluster.home.json(&format!("offload --name node-12 {words}"));
        let features = rows[0]["features"].as_object().unwrap().clone();
        features.into_iter().map(|(name, on)| (name, on.as_bool().unwrap())).collect::<Vec<_>>()
    };
    let expect = |words: &str, expected: &[(&str, bool)]| {
        let expected: Vec<_> = expected.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect();
        assert_eq!(features(words), expected, "{words}");
        assert!(cluster.real_fetches(11, "10.1.12.20") && cluster.real_fetches(12, "10.1.11.20"), "{words}");
    };
    let tcp_segments = || {
        let mut asks = cluster.home.command("exec --name node-12 real-12 -- python3 -c");
        String::from_utf8(asks.arg(TCP_SEGMENTS_NOW).output().unwrap().stdout).unwrap()
    };
    expect("real-12", &[("checksum", true), ("gso", true), ("tso", true), ("uso", true)]);
    assert_eq!(tcp_segments(), "1\n");
    expect("real-12 tso=off", &[("checksum", true), ("gso", true), ("tso", false), ("uso", true)]);
    assert_eq!(tcp_segments(), "0\n", "its own system sees it");
    expect("real-12 checksum=off", &[("checksum", false), ("gso", true), ("tso", false), ("uso", false)]);
    expect("real-12 gso=off", &[("checksum", false), ("gso", false), ("tso", false), ("uso", false)]);
    for feature in ["gso", "gro"] {
        let gso = feature != "gso";
        expect(&format!("node-12:eth0 {feature}=off"), &[("gro", !gso), ("gso", gso)]);
        expect(&format!("node-12:eth0 {feature}=on"), &[("gro", true), ("gso", true)]);
    }
    expect("node-12:eth0 gso=off gro=off", &[("gro", false), ("gso", false)]);
    let all = cluster.home.text("offload --name node-12");
    let lines = ["real-12:eth0  checksum=off gso=off tso=off uso=off", "node-12:eth0  gro=off gso=off"];
    assert!(lines.iter().all(|line| all.lines().any(|said| said == *line)), "{all}");
    for (words, problem) in [
        ("real-12 tso=on", "tso needs checksum on"),
        ("real-12 lro=on", "there is no feature \"lro\""),
        ("real-12 gso", "\"gso\" says neither on nor off"),
        ("real-12 gro=off", "the link has no gro"),
        ("sim-12", "sim-12:eth0 leaves nothing to this host"),
        ("real-13", "there is no point real-13"),
    ] {
        let said = cluster.home.error(&format!("offload --name node-12 {words}"));
        assert!(said.contains(problem), "{said}");
    }
    expect(
        "real-12 checksum=on tso=on",
        &[("checksum", true), ("gso", false), ("tso", true), ("uso", false)],
    );
    for number in [11, 12] {
        assert_eq!(cluster.drops(number), BTreeMap::new());
    }
    cluster.end();
}

#[test]
fn hostile_datagrams_of_the_network_are_dropped_by_name() {
    let cluster = Cluster::new();
    let stranger = cluster.wire.machine(13);
    // Ten of each: a whole packet of a pod's from a stranger; from the peer's address, which the stranger takes, another's
    // packet, one for somebody else, the first half of one, IPv6, and nothing.
    let program = "
import socket, struct, sys
def packet(source, destination):
    def sum16(data):
        total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
        while total >> 16: total = (total & 0xffff) + (total >> 16)
        return ~total & 0xffff
    head = lambda check: struct.pack('!BBHHHBBH4s4s', 0x45, 0, 36, 0, 0x4000, 64, 17, check, socket.inet_aton(source), socket.inet_aton(destination))
    return head(sum16(head(0))) + struct.pack('!HHHH', 4000, 7, 16, 0) + b'hostile!'
good = packet('10.1.12.10', '10.1.11.10')
cases = {'stranger': [good], 'peer': [packet('10.1.99.9', '10.1.11.10'), packet('10.1.12.10', '10.1.99.9'), good[:18], good[:30], b'\\x60' + bytes(59), b'']}
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 8285))
for payload in cases[sys.argv[2]]:
    for _ in range(10): s.sendto(payload, ('192.168.66.11', 8285))
";
    let file = cluster.home.file("hostile.py");
    std::fs::write(&file, program).unwrap();
    let before = cluster.drops(11);
    assert_eq!(before, BTreeMap::new());
    stranger.says(&format!("python3 {} 192.168.66.13 stranger", file.display()));
    // With the peer gone, its address is free.
    assert!(cluster.pings(12, "10.1.11.10"));
    let report = cluster.home.json("down --name node-12");
    assert_eq!(report["balances"], true);
    cluster.machines[&12].says("ip address flush dev eth0");
    stranger.says("ip address add 192.168.66.12/24 dev eth0");
    stranger.says(&format!("python3 {} 192.168.66.12 peer", file.display()));
    let expected =
        [("tunnel-foreign-destination", 10), ("tunnel-foreign-source", 20), ("tunnel-malformed", 40)];
    let expected: BTreeMap<String, u64> = expected.map(|(name, count)| (name.to_owned(), count)).into();
    await_that("all are dropped", || cluster.drops(11) == expected);
    let pod = cluster.home.json("show --name node-11 drops sim-11");
    // The pod's own: of the kernels' questions for IPv6 routers.
    let own = |row: &serde_json::Value| row["reason"] == "pod-unknown-protocol";
    assert!(pod.as_array().unwrap().iter().all(own), "nothing came as far as a pod: {pod}");
    assert_eq!(cluster.home.json("down --name node-11")["balances"], true);
}

#[test]
fn a_program_that_speaks_flannels_format_by_itself_is_a_peer() {
    let cluster = Cluster::new();
    let flannel = cluster.wire.machine(13);
    cluster.routes(11, "10.1.12.0/24: 192.168.66.12\n10.1.13.0/24: 192.168.66.13\n");
    kill_process(cluster.process(11), Signal::HUP).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/flannel_udp.py");
    let mut python = Command::new("python3");
    python.args([script, "192.168.66.13", "10.1.13.1/24", "10.1.0.0/16", "192.168.66.11"]);
    let mut peer = Program(flannel.command(&python).stdout(Stdio::piped()).spawn().unwrap());
    peer.0.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let mut server = Command::new("python3");
    server.args(["-m", "http.server", "80", "--directory"]).arg(cluster.home.file("site"));
    let _server = Program(flannel.command(&server).stderr(Stdio::null()).spawn().unwrap());
    await_that("the peer answers", || cluster.pings(11, "10.1.13.1"));
    await_that("its server answers", || cluster.simulated_fetches(11, "10.1.13.1"));
    assert!(cluster.real_fetches(11, "10.1.13.1"));
    for server in ["10.1.11.10", "10.1.11.20"] {
        let sum = flannel.says(&format!(
            "python3 -c \"import sys,urllib.request as r; sys.stdout.buffer.write(r.urlopen('http://{server}/content',timeout=20).read())\" | sha256sum"
        ));
        let expected = flannel.says(&format!("sha256sum < {}", cluster.home.file("site/content").display()));
        assert_eq!(sum, expected, "{server}");
    }
    // A route that the file does not have any more is withdrawn, and the others stay.
    cluster.routes(11, "10.1.12.0/24: 192.168.66.12\n");
    kill_process(cluster.process(11), Signal::HUP).unwrap();
    await_that("it is withdrawn", || {
        !cluster.home.text("show --name node-11 routes node-11").contains("10.1.13.0/24")
    });
    assert!(!cluster.pings(11, "10.1.13.1") && cluster.pings(11, "10.1.12.10"));
    assert!(cluster.drops(11).contains_key("no-lease"));
    // A file that says nonsense changes nothing.
    cluster.routes(11, "10.1.12.0/24: nowhere\n");
    kill_process(cluster.process(11), Signal::HUP).unwrap();
    let log = cluster.home.file("flatnet/node-11.log");
    await_that("it is said", || {
        std::fs::read_to_string(&log).unwrap().contains("routes: \"nowhere\" is not an IPv4 address")
    });
    assert!(cluster.pings(11, "10.1.12.10"));
    cluster.end();
}

#[test]
fn a_node_that_is_killed_and_started_again_is_reached_again() {
    let cluster = Cluster::new();
    assert!(cluster.pings(11, "10.1.12.10"));
    kill_process(cluster.process(12), Signal::KILL).unwrap();
    await_that("it is gone", || !cluster.pings(11, "10.1.12.10"));
    // Who stays goes on.
    assert!(cluster.simulated_fetches(11, "10.1.11.20"));
    cluster.start(12);
    let started = Instant::now();
    await_that("it is back", || cluster.pings(11, "10.1.12.10"));
    tell_recovery(started);
    await_that("its real pod serves", || cluster.simulated_fetches(11, "10.1.12.20"));
    assert!(cluster.simulated_fetches(12, "10.1.11.20"));
    assert_eq!(cluster.drops(11), BTreeMap::new(), "nobody was told of anything but silence");
    cluster.end();
}

#[test]
fn an_interface_that_goes_down_and_comes_back_is_used_again() {
    let cluster = Cluster::new();
    let machine = &cluster.machines[&11];
    assert!(cluster.pings(11, "10.1.12.10"));
    machine.says("ip link set eth0 down");
    assert!(!cluster.pings(11, "10.1.12.10"));
    assert!(cluster.simulated_fetches(11, "10.1.11.20"), "the node itself goes on");
    let drops = cluster.drops(11);
    assert!(drops.keys().eq(["link-down"]), "{drops:?}");
    machine.says("ip link set eth0 up");
    let up = Instant::now();
    await_that("it is back", || cluster.pings(11, "10.1.12.10"));
    tell_recovery(up);
    // The address itself goes and comes.
    machine.says("ip address flush dev eth0");
    assert!(!cluster.pings(11, "10.1.12.10"));
    machine.says("ip address add 192.168.66.11/24 dev eth0");
    let up = Instant::now();
    await_that("it is back", || cluster.pings(11, "10.1.12.10"));
    tell_recovery(up);
    assert!(cluster.drops(11).keys().eq(["link-down"]));
    cluster.end();
}

#[test]
fn what_a_running_node_is_asked_it_answers_as_any_network_does() {
    let cluster = Cluster::new();
    let capture = cluster.home.file("eth0.pcapng");
    let mut asks = cluster
        .home
        .command(&format!("capture --name node-11 node-11:eth0 --count 6 --write {}", capture.display()));
    let mut asks = asks.stderr(Stdio::null()).spawn().unwrap();
    await_that("they pass", || {
        cluster.pings(11, "10.1.12.10");
        asks.try_wait().unwrap().is_some()
    });
    let bytes = std::fs::read(&capture).unwrap();
    let outer = |from: u8, to: u8| [192, 168, 66, from, 192, 168, 66, to];
    for addresses in [outer(11, 12), outer(12, 11)] {
        assert!(bytes.windows(8).any(|bytes| bytes == addresses), "both directions have outer headers");
    }
    let trace = cluster.home.text("trace --name node-11 sim-11 10.1.12.10");
    assert!(trace.contains("192.168.66.11* → 192.168.66.12*") && trace.contains("answered after"), "{trace}");
    let outside = cluster.home.run("exec --name node-11 sim-11 -- ping -c 1 -W 1 203.0.113.10");
    assert!(!outside.status.success());
    assert!(cluster.drops(11).keys().eq(["no-uplink"]));
    let said = cluster.home.error("link --name node-11 node-11 node-11 delay=1ms");
    assert!(said.contains("the link of node-11 is not simulated and cannot be changed"), "{said}");
    cluster.home.text("link --name node-11 sim-11 node-11 delay=1ms");
    assert!(cluster.pings(11, "10.1.12.10"));
    cluster.end();
}

#[test]
fn nodes_on_the_hosts_network_and_simulated_ones_are_of_one_process() {
    let home = Home::new();
    let wire = Wire::new();
    let machine = wire.machine(11);
    machine.says("ip address add 192.168.66.12/24 dev eth0");
    let mut text =
        "apiVersion: flatnet.dev/v1\nkind: Topology\nmetadata: {name: mixed}\nspec:\n  nodes:\n".to_owned();
    let nodes = [(11, 66, "socket"), (12, 66, "socket"), (13, 77, "switch"), (14, 77, "switch")];
    for (number, network, underlay) in nodes {
        let _ = writeln!(
            text,
            "    - {{name: node-{number}, address: 192.168.{network}.{number}/24, podCIDR: 10.1.{number}.0/24, underlay: {underlay}}}"
        );
    }
    for (number, ..) in nodes {
        let _ = writeln!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{number}, annotations: {{flatnet.dev/ip: 10.1.{number}.10}}}}\nspec: {{nodeName: \
             node-{number}, containers: [{{name: c, image: nginx}}]}}"
        );
    }
    let file = home.file("mixed.yaml");
    std::fs::write(&file, text).unwrap();
    let up = home.command(&format!("up -d -f {}", file.display()));
    let output = machine.command(&up).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    for (from, to) in [(11, 12), (12, 11), (13, 14)] {
        let said = home.text(&format!("exec pod-{from} -- curl -s http://10.1.{to}.10/"));
        assert!(said.contains("Welcome to nginx!"), "{said}");
    }
    assert!(
        !home.run("exec pod-13 -- ping -c 1 -W 1 10.1.11.10").status.success(),
        "there is no way between"
    );
    let said = home.error("link node-11 node-13 delay=1ms");
    assert!(said.contains("the link of node-11 is not simulated and cannot be changed"), "{said}");
    home.text("link node-13 node-14 delay=1ms");
    assert_eq!(home.json("down")["balances"], true);
}

/// Writes a file and returns its path.
fn write(home: &Home, name: &str, text: &str) -> String {
    std::fs::write(home.file(name), text).unwrap();
    home.file(name).display().to_string()
}

fn says_all(said: &str, expected: &[&str]) {
    for part in expected {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn mistakes_of_a_configuration_file_are_told_at_their_places() {
    let home = Home::new();
    let config = |text: &str| home.error(&format!("node --config {}", write(&home, "config.yaml", text)));
    let said = config("name: n\nadress: 192.168.66.11/24\n");
    assert!(said.contains("unknown field \"adress\" in the configuration of a node"), "{said}");
    assert!(said.contains("config.yaml:2:1") && said.contains("known are address, backend"), "{said}");
    let said = config("name: n\naddress: 192.168.66.11\nport: 30000\nbackend: ipip\nvni: -1\nfile: 7\n");
    says_all(
        &said,
        &[
            "config.yaml:2:10",
            "address: \"192.168.66.11\" is not an address with its network's length",
            "config.yaml:3:7",
            "port: port 30000 is one of those that Services may have on every node",
            "config.yaml:4:10",
            "backend: \"ipip\" is not a backend; udp, vxlan and host-gw are",
            "config.yaml:5:6",
            "vni: must be between 0 and 16777215",
            "config.yaml:6:7",
            "file: must be a text, not a number",
        ],
    );
    let said = config("name: n\n");
    assert!(said.contains("the node has no address") && said.contains("give --address"), "{said}");
}

#[test]
fn mistakes_of_flags_routes_and_manifests_are_told_with_what_to_do() {
    let home = Home::new();
    let said = home.error("node --name n --address 198.51.100.7/24");
    assert!(said.contains("198.51.100.7 is no address of this host"), "{said}");
    assert!(
        said.contains("node n cannot be on this host's network") && said.contains("127.0.0.1 of lo"),
        "{said}"
    );
    let said = home.error("node --name n --address 198.51.100.7/24 --pod-cidr 10.2.0.0/24");
    assert!(said.contains("podCIDR 10.2.0.0/24 is not in podNetwork 10.1.0.0/16"), "{said}");
    let routes = write(
        &home,
        "routes.yaml",
        "10.1.0.0/23: 198.51.100.8\n10.2.0.0/24: 198.51.100.9\n10.1.9.0/24: 198.51.100.7\n",
    );
    let said = home
        .error(&format!("node --name n --address 198.51.100.7/24 --pod-cidr 10.1.1.0/24 --routes {routes}"));
    says_all(
        &said,
        &[
            "routes.yaml:1:1",
            "route to 10.1.0.0/23 overlaps 10.1.1.0/24",
            "routes.yaml:2:1",
            "route to 10.2.0.0/24 is not in podNetwork 10.1.0.0/16",
            "routes.yaml:3:1",
            "198.51.100.7 is this node: it claims its subnet itself",
        ],
    );
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: IPv6\nendpoints: [{addresses: [here]}]\n\
                 ports: [{port: 0}]\n";
    let slice = write(&home, "slice.yaml", slice);
    let said = home.error(&format!("node --name n --address 198.51.100.7/24 -f {slice}"));
    says_all(
        &said,
        &[
            "slice.yaml:3:11",
            "the EndpointSlice belongs to no Service",
            "addressType IPv6 is not supported yet; IPv4 is",
            "\"here\" is not an IPv4 address",
            "port 0 is not between 1 and 65535",
        ],
    );
    let usage = home.run("node --backend ipip");
    assert!(
        String::from_utf8_lossy(&usage.stderr).contains("is not a backend; udp, vxlan and host-gw are"),
        "{usage:?}"
    );
    let file = write(
        &home,
        "virtual.yaml",
        "apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  time: virtual\n  nodes: [{name: n, address: 198.51.100.7/24, underlay: socket}]\n",
    );
    let said = home.error(&format!("up --check -f {file}"));
    assert!(
        said.contains("node n is on this host's network, which does not wait for virtual time"),
        "{said}"
    );
}

#[test]
fn what_the_host_does_not_give_is_told_with_what_to_do() {
    let home = Home::new();
    let wire = Wire::new();
    let machine = wire.machine(11);
    let node = |words: &str| {
        let words = format!("node --name n --address 192.168.66.11/24{words}");
        let output = machine.command(&home.command(&words)).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    machine.says("sysctl -q -w net.ipv4.ip_unprivileged_port_start=1024");
    let mut other = Command::new("python3");
    let program = "import socket,time; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(('192.168.66.11',8285)); print('ready',flush=True); \
                   time.sleep(60)";
    other.args(["-c", program]).stdout(Stdio::piped());
    let mut other = Program(machine.command(&other).stdout(Stdio::piped()).spawn().unwrap());
    other.0.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let said = node("");
    assert!(said.contains("UDP port 8285 of 192.168.66.11 is in use"), "{said}");
    let mut unprivileged = Command::new("setpriv");
    let command = home.command("node --name n --address 192.168.66.11/24 --port 99");
    unprivileged
        .args(["--bounding-set=-all", "--inh-caps=-all", "--"])
        .arg(command.get_program())
        .args(command.get_args());
    unprivileged.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = machine.command(&unprivileged).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("UDP port 99 needs the capability CAP_NET_BIND_SERVICE"), "{said}");
    assert!(said.contains("a port from 1024 on needs no capability"), "{said}");
}
