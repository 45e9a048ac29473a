//! A real node's way outside: MASQUERADE and NodePorts by the host's own interface, with real programs in namespaces.
//!
//! Needs root, `ip`, `nft`, `nsenter`, `unshare`, `setpriv`, curl and Python.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use common::{Home, Namespace, Program, Wire, await_that, content};
use rustix::process::{Pid, Signal, kill_process};

/// Serves files, says who asks, and takes what is sent: the sum of it is the answer.
const SERVER: &str = "
import hashlib, http.server, os, sys
os.chdir(sys.argv[1])
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def answer(self, text):
        self.send_response(200)
        self.send_header('Content-Length', str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def do_GET(self):
        if self.path == '/who':
            self.answer('%s %d\\n' % self.client_address)
        else:
            super().do_GET()
    def do_PUT(self):
        left, sum = int(self.headers['Content-Length']), hashlib.sha256()
        while left:
            part = self.rfile.read(min(left, 1 << 16))
            left -= len(part)
            sum.update(part)
        self.answer(sum.hexdigest() + '\\n')
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer(('', int(sys.argv[2])), Handler).serve_forever()
";

/// A Service whose backend is another node's.
const FAR: &str = "\
---
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {type: NodePort, clusterIP: 10.96.0.12, ports: [{port: 80, nodePort: 30082}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: far-by-hand, labels: {kubernetes.io/service-name: far}}
addressType: IPv4
endpoints: [{addresses: [10.1.12.10]}]
ports: [{port: 80}]
";

/// Pods of the node and a Service with a NodePort: all that is asked there is served by one or the other.
fn manifests(home: &Home) -> String {
    let path = |name: &str| home.file(name).display().to_string();
    let (site, server) = (path("site"), path("server.py"));
    let serve = serde_json::json!(["python3", server, site, "80"]);
    let volume = format!("volumes: [{{name: site, hostPath: {{path: {site}}}}}]");
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: sim, labels: {{app: sim}}, annotations: {{flatnet.dev/ip: 10.1.11.10}}}}\n\
         spec:\n  {volume}\n  containers:\n    - {{name: nginx, image: nginx, args: [--root, /site], volumeMounts: [{{name: site, mountPath: \
         /site}}]}}\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata: {{name: real, labels: {{app: real}}, annotations: {{flatnet.dev/ip: 10.1.11.20}}}}\n\
         spec:\n  runtimeClassName: netns\n  containers:\n    - {{name: main, command: {serve}}}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: sim}}\nspec: {{type: NodePort, clusterIP: 10.96.0.10, selector: {{app: sim}}, ports: \
         [{{port: 80, nodePort: 30080}}]}}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: real}}\nspec: {{type: NodePort, clusterIP: 10.96.0.11, selector: {{app: real}}, ports: \
         [{{port: 80, nodePort: 30081}}]}}\n{FAR}"
    )
}

/// A host with a node, a user beside it, and a server behind a router.
struct Outside {
    home: Home,
    wire: Wire,
    host: Namespace,
    user: Namespace,
    router: Namespace,
    internet: Namespace,
    content: Vec<u8>,
    sum: String,
    _servers: Vec<Program>,
    resets_before: u64,
}

const INTERNET: &str = "203.0.113.10";

impl Outside {
    fn new(flags: &str) -> Self {
        let (home, wire, content) = (Home::new(), Wire::new(), content(16 << 20));
        std::fs::create_dir(home.file("site")).unwrap();
        std::fs::write(home.file("site/content"), &content).unwrap();
        std::fs::write(home.file("server.py"), SERVER).unwrap();
        std::fs::write(home.file("pods.yaml"), manifests(&home)).unwrap();
        std::fs::write(home.file("routes.yaml"), "10.1.12.0/24: 192.168.66.12\n").unwrap();
        let [host, user, router] = [11, 50, 1].map(|number| wire.machine(number));
        let internet = Namespace::new();
        let id = router.id();
        internet.says(&format!(
            "ip link set lo up && ip link add eth0 type veth peer name eth1 netns {id} && \
             ip address add {INTERNET}/24 dev eth0 && ip link set eth0 up"
        ));
        router.says(
            "ip address add 203.0.113.1/24 dev eth1 && ip link set eth1 up && sysctl -q -w net.ipv4.ip_forward=1",
        );
        internet.says("ip route add default via 203.0.113.1");
        for machine in [&host, &user] {
            machine.says("ip route add default via 192.168.66.1");
        }
        // Counts what the host's own system resets; what the node sends does not pass there.
        host.says(
            "nft 'table ip probe { chain output { type filter hook output priority 0; tcp flags & rst == rst counter; }; }'",
        );
        let sum = internet.says(&format!("sha256sum < {}", home.file("site/content").display()));
        let sum = sum.split(' ').next().unwrap().to_owned();
        let mut server = Command::new("python3");
        server.args([home.file("server.py"), home.file("site")]).arg("8000");
        let servers = [&internet, &host]
            .map(|machine| Program(machine.command(&server).stderr(Stdio::null()).spawn().unwrap()));
        let servers = servers.into();
        let mut outside = Self {
            home,
            wire,
            host,
            user,
            router,
            internet,
            content,
            sum,
            _servers: servers,
            resets_before: 0,
        };
        await_that("the server serves", || outside.gets(&outside.user, &format!("{INTERNET}:8000")));
        await_that("the host serves", || outside.gets(&outside.user, "192.168.66.11:8000"));
        outside.resets_before = Self::count_resets(&outside.host);
        outside.start(flags);
        await_that("the real pod serves", || {
            outside.exec("sim", "curl -s http://10.1.11.20/content") == outside.content
        });
        outside
    }

    fn start(&self, flags: &str) {
        let (pods, routes) = (self.home.file("pods.yaml"), self.home.file("routes.yaml"));
        let words = format!(
            "node --name node-11 --address 192.168.66.11/24 --pod-cidr 10.1.11.0/24 -f {} --routes {} --uplink -d{flags}",
            pods.display(),
            routes.display()
        );
        let output = self.host.command(&self.home.command(&words)).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn exec(&self, pod: &str, words: &str) -> Vec<u8> {
        self.home.run(&format!("exec {pod} -- {words}")).stdout
    }

    fn says(&self, pod: &str, words: &str) -> String {
        String::from_utf8(self.exec(pod, words)).unwrap()
    }

    /// What a machine's curl says.
    fn curl(machine: &Namespace, words: &str) -> Vec<u8> {
        let mut curl = Command::new("curl");
        curl.args(["-s", "--max-time", "30"]).args(words.split(' '));
        machine.command(&curl).output().unwrap().stdout
    }

    /// Whether a machine gets the content from a server, whole.
    fn gets(&self, machine: &Namespace, server: &str) -> bool {
        Self::curl(machine, &format!("http://{server}/content")) == self.content
    }

    /// How many connections the host's own system has reset since the node was started.
    fn resets(&self) -> u64 {
        Self::count_resets(&self.host) - self.resets_before
    }

    fn count_resets(host: &Namespace) -> u64 {
        let rules = host.says("nft list table ip probe");
        rules.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
    }

    fn rules(&self) -> String {
        self.host.says("nft list tables | sort")
    }

    fn process(&self) -> Pid {
        let status = self.home.json("status");
        Pid::from_raw(status[0]["pid"].as_i64().unwrap().try_into().unwrap()).unwrap()
    }

    /// Kills the node, and waits until there is no more of it than its number.
    fn kill(&self) {
        let process = self.process();
        kill_process(process, Signal::KILL).unwrap();
        let stat = format!("/proc/{}/stat", process.as_raw_pid());
        await_that("it is gone", || {
            std::fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z "))
        });
        // Its other threads may end later, and hold its files until then.
        await_that("nobody answers", || self.home.json("status") == serde_json::json!([]));
        // Files are closed one after the other. Its tunnel's port is 0x205d.
        await_that("its port is free", || !self.host.says("cat /proc/net/udp").contains(":205D "));
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        let table = self.home.json("show drops node-11");
        // Kernels in real pods look for IPv6 routers, of which there are none.
        let rows = table.as_array().unwrap().iter().filter(|row| row["reason"] != "bridge-no-port");
        rows.map(|row| (row["reason"].as_str().unwrap().to_owned(), row["count"].as_u64().unwrap())).collect()
    }

    fn end(&self) {
        let report = self.home.json("down");
        assert_eq!(report["balances"], true, "{report}");
        assert_eq!(self.rules(), "table ip probe\n", "nothing of the node's is left");
    }
}

#[test]
fn pods_reach_servers_behind_a_router_from_the_hosts_address() {
    for flags in ["", " --workers 2"] {
        let outside = Outside::new(flags);
        for pod in ["sim", "real"] {
            let who = outside.says(pod, &format!("curl -s http://{INTERNET}:8000/who"));
            let (address, port) = who.trim().split_once(' ').unwrap();
            assert_eq!(address, "192.168.66.11", "{pod}");
            assert!((61_000..=65_535).contains(&port.parse::<u16>().unwrap()), "{pod}: {port}");
            let got = outside.exec(pod, &format!("curl -s http://{INTERNET}:8000/content"));
            assert!(got == outside.content, "{pod}: {} bytes", got.len());
            // A machine beside the host, without a router.
            let refused = outside.home.run(&format!("exec {pod} -- curl -s http://192.168.66.50:9/"));
            assert_eq!(refused.status.code(), Some(7), "{pod}: refused by who is asked: {refused:?}");
        }
        let path = outside.home.file("site/content");
        let sum = outside.says("real", &format!("curl -s -T {} http://{INTERNET}:8000/", path.display()));
        assert_eq!(sum.trim(), outside.sum, "upwards");
        let pings = outside.says("sim", &format!("ping -c 2 {INTERNET}"));
        assert!(pings.contains("2 received"), "{pings}");
        let hops = outside.says("sim", &format!("traceroute -n {INTERNET}"));
        assert!(hops.contains("192.168.66.1 ") && hops.contains(INTERNET), "{hops}");
        // Next to it the host goes on as before.
        assert!(outside.gets(&outside.host, &format!("{INTERNET}:8000")));
        assert!(outside.gets(&outside.user, "192.168.66.11:8000"));
        assert_eq!(outside.resets(), 0);
        outside.end();
    }
}

#[test]
fn a_node_port_is_reached_from_outside_at_the_hosts_address() {
    for flags in ["", " --workers 2"] {
        let outside = Outside::new(flags);
        for client in [&outside.user, &outside.internet] {
            for port in [30_080, 30_081] {
                assert!(outside.gets(client, &format!("192.168.66.11:{port}")), "{port}");
            }
            let path = outside.home.file("site/content");
            let sum = Outside::curl(client, &format!("-T {} http://192.168.66.11:30081/", path.display()));
            assert_eq!(String::from_utf8(sum).unwrap().trim(), outside.sum, "upwards");
        }
        // A port of the range that no Service has is closed, and the client hears of it at once.
        let mut closed = Command::new("curl");
        closed.args(["-s", "--max-time", "30", "http://192.168.66.11:30099/"]);
        assert_eq!(outside.user.command(&closed).output().unwrap().status.code(), Some(7));
        assert!(outside.drops().keys().eq(["host-closed"]), "{:?}", outside.drops());
        assert_eq!(outside.resets(), 0, "by the node, not by the host");
        outside.end();
    }
}

#[test]
fn a_way_that_takes_less_is_found_out_in_both_directions() {
    let outside = Outside::new("");
    outside.router.says("ip link set eth1 mtu 1300");
    outside.internet.says("ip link set eth0 mtu 1300");
    for pod in ["sim", "real"] {
        assert!(outside.exec(pod, &format!("curl -s http://{INTERNET}:8000/content")) == outside.content);
    }
    let path = outside.home.file("site/content");
    let sum = outside.says("real", &format!("curl -s -T {} http://{INTERNET}:8000/", path.display()));
    assert_eq!(sum.trim(), outside.sum);
    for port in [30_080, 30_081] {
        assert!(outside.gets(&outside.internet, &format!("192.168.66.11:{port}")), "{port}");
    }
    outside.end();
}

/// Answers datagrams with themselves.
const ECHO: &str = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('', 7))
while True:
    data, peer = s.recvfrom(65535)
    s.sendto(data, peer)
";

/// Says the lengths of which such a server's answer came back.
const ASK: &str = "
import os, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1)
for length in map(int, sys.argv[2:]):
    data = os.urandom(length)
    for attempt in range(10):
        s.sendto(data, (sys.argv[1], 7))
        try:
            got = s.recv(65535)
        except (TimeoutError, ConnectionRefusedError):
            continue
        if got == data:
            print(length)
            break
";

/// Datagrams longer than any link takes, both ways, and short ones.
#[test]
fn datagrams_of_any_length_go_out_and_their_answers_come_back() {
    let outside = Outside::new("");
    let mut server = Command::new("python3");
    server.args(["-c", ECHO]);
    let _server = Program(outside.internet.command(&server).spawn().unwrap());
    let mut command = outside.home.command("exec real -- python3 -c");
    let output =
        command.args([ASK, INTERNET, "0", "1", "100", "1444", "1473", "4000", "20000"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n1\n100\n1444\n1473\n4000\n20000\n", "{output:?}");
    assert_eq!(outside.resets(), 0);
    outside.end();
}

/// More of them than may wait for their first at a node.
#[test]
fn fragments_of_the_hosts_own_datagrams_never_come_to_its_node() {
    let outside = Outside::new("");
    let mut server = Command::new("python3");
    server.args(["-c", ECHO]);
    let _server = Program(outside.host.command(&server).spawn().unwrap());
    let mut ask = Command::new("python3");
    ask.args(["-c", ASK, "192.168.66.11"]).args(["20000"; 40]);
    let output = outside.user.command(&ask).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "20000\n".repeat(40), "{output:?}");
    assert_eq!(outside.drops(), BTreeMap::new());
    outside.end();
}

#[test]
fn an_interface_that_goes_down_and_comes_back_is_used_again() {
    let outside = Outside::new(" --host-port flatnet0");
    let who = || outside.says("sim", &format!("curl -s --max-time 1 http://{INTERNET}:8000/who"));
    assert!(who().starts_with("192.168.66.11 "));
    outside.host.says("ip link set eth0 down");
    assert_eq!(who(), "");
    let got = Outside::curl(&outside.host, "http://10.1.11.20/content");
    assert!(got == outside.content, "the host and its pods go on");
    assert!(outside.drops().contains_key("link-down"), "{:?}", outside.drops());
    outside.host.says("ip link set eth0 up && ip route add default via 192.168.66.1");
    await_that("it is back", || who().starts_with("192.168.66.11 "));
    await_that("in both directions", || outside.gets(&outside.user, "192.168.66.11:30081"));
    outside.end();
}

/// A router that is replaced has another MAC, and may say so or not.
#[test]
fn a_gateway_with_another_mac_is_found_again() {
    let outside = Outside::new("");
    let who = || outside.says("sim", &format!("curl -s --max-time 1 http://{INTERNET}:8000/who"));
    assert!(who().starts_with("192.168.66.11 "));
    outside
        .router
        .says("ip link set eth0 down && ip link set eth0 address 02:99:00:00:00:01 && ip link set eth0 up");
    await_that("it is found", || who().starts_with("192.168.66.11 "));
    let neighbors = outside.home.text("show neighbors node-11");
    assert!(neighbors.contains("02:99:00:00:00:01"), "{neighbors}");
    outside.end();
}

/// The tunnel goes its own way beside the uplink, whose routes lead to neither its peers nor their pods.
#[test]
fn a_node_port_leads_to_a_pod_of_another_node() {
    let outside = Outside::new("");
    let far = outside.wire.machine(12);
    let (pods, routes) = (outside.home.file("far.yaml"), outside.home.file("back.yaml"));
    let site = outside.home.file("site").display().to_string();
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: far, annotations: {{flatnet.dev/ip: 10.1.12.10}}}}\nspec:\n  volumes: [{{name: site, hostPath: \
         {{path: {site}}}}}]\n  containers: [{{name: nginx, image: nginx, args: [--root, /site], volumeMounts: [{{name: site, mountPath: /site}}]}}]\n"
    );
    std::fs::write(&pods, pod).unwrap();
    std::fs::write(&routes, "10.1.11.0/24: 192.168.66.11\n").unwrap();
    let words = format!(
        "node --name node-12 --address 192.168.66.12/24 --pod-cidr 10.1.12.0/24 -f {} --routes {} --uplink -d",
        pods.display(),
        routes.display()
    );
    let output = far.command(&outside.home.command(&words)).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    for client in [&outside.user, &outside.internet] {
        assert!(outside.gets(client, "192.168.66.11:30082"));
    }
    for server in ["10.1.12.10", "10.96.0.12"] {
        let words = format!("exec --name node-11 real -- curl -s http://{server}/content");
        assert!(outside.home.run(&words).stdout == outside.content, "{server}");
    }
    // Without a gateway's MAC, too: peers are the host's to find.
    let neighbors = outside.home.text("show --name node-12 neighbors node-12");
    assert!(neighbors.contains("192.168.66.11") && !neighbors.contains("192.168.66.1 "), "{neighbors}");
    for node in ["node-11", "node-12"] {
        assert_eq!(outside.home.json(&format!("down --name {node}"))["balances"], true);
    }
    assert_eq!(outside.rules(), "table ip probe\n");
}

/// What the rules are for: without them the host resets what it does not know.
#[test]
fn the_host_is_kept_from_resetting_the_nodes_connections() {
    let outside = Outside::new("");
    assert!(outside.rules().contains("table ip flatnet-node-11\n"));
    assert!(outside.exec("real", &format!("curl -s http://{INTERNET}:8000/content")) == outside.content);
    assert_eq!(outside.resets(), 0);
    outside.host.says("nft delete table ip flatnet-node-11");
    outside.exec("real", &format!("curl -s --max-time 5 http://{INTERNET}:8000/content"));
    assert!(outside.resets() > 0);
    assert_eq!(outside.home.json("down")["balances"], true);
}

#[test]
fn what_a_killed_node_leaves_is_cleaned_and_nothing_else() {
    let outside = Outside::new(" --host-port flatnet0");
    let clean = || {
        let output = outside.host.command(&outside.home.command("clean -o json")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    // Named like ours, but somebody else's.
    outside.host.says("nft add table ip flatnet-of-somebody");
    let before = "table ip flatnet-of-somebody\ntable ip probe\n";
    let with_ours = "table ip flatnet-node-11\ntable ip flatnet-of-somebody\ntable ip probe\n";
    assert_eq!(clean()["removed"], serde_json::json!([]), "what a running node has stays");
    assert_eq!(outside.rules(), with_ours);
    outside.kill();
    await_that("its interface is gone", || !outside.host.says("ip -o link").contains("flatnet0"));
    assert_eq!(outside.rules(), with_ours);
    let removed = clean()["removed"].to_string();
    assert!(removed.contains("flatnet-node-11") && removed.contains("node-11.sock"), "{removed}");
    assert_eq!(outside.rules(), before);
    assert_eq!(clean()["removed"], serde_json::json!([]));
    // Without it, the next start replaces what is left.
    for _ in 0..2 {
        outside.start("");
        await_that("it is back", || outside.gets(&outside.user, "192.168.66.11:30081"));
        assert_eq!(outside.rules(), with_ours);
        outside.kill();
    }
    outside.start("");
    assert_eq!(outside.home.json("down")["balances"], true);
    assert_eq!(outside.rules(), before);
}

#[test]
fn programs_that_listen_at_the_nodes_ports_are_named() {
    let (home, wire) = (Home::new(), Wire::new());
    let machine = wire.machine(11);
    let mut server = Command::new("python3");
    server.args(["-m", "http.server", "30080"]);
    let _server =
        Program(machine.command(&server).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    await_that("it listens", || machine.says("cat /proc/net/tcp").contains(":7580 "));
    let up = home.command("node -d --name n --uplink --address 192.168.66.11/24");
    let output = machine.command(&up).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("programs of this host listen at 30080/tcp of 192.168.66.11"), "{said}");
    assert_eq!(home.json("down")["balances"], true);
}

#[test]
fn what_the_host_cannot_give_is_told_with_what_to_do() {
    let (home, wire) = (Home::new(), Wire::new());
    let machine = wire.machine(11);
    let node = |flags: &str| home.command(&format!("node --name n --uplink {flags}"));
    let unprivileged = |command: Command, dropped: &str| {
        let mut unprivileged = Command::new("setpriv");
        unprivileged.args([&format!("--bounding-set={dropped}"), "--inh-caps=-all", "--"]);
        unprivileged.arg(command.get_program()).args(command.get_args());
        unprivileged.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        unprivileged
    };
    let own = "--address 192.168.66.11/24";
    let said = machine.refuses(&unprivileged(node(own), "-net_raw"));
    assert!(
        said.contains("eth0: frames of this host's interfaces need the capability CAP_NET_RAW"),
        "{said}"
    );
    assert!(said.contains("leave --uplink"), "{said}");
    let said = machine.refuses(&unprivileged(node(own), "-net_admin"));
    assert!(said.contains("the rules of this host need the capability CAP_NET_ADMIN"), "{said}");
    let said = machine.refuses(&node(&format!("{own} --port 61500")));
    assert!(said.contains("port 61500 of 61000-65535 is the tunnel's"), "{said}");
    machine.says("ip address add 192.0.2.1/24 dev lo");
    let said = machine.refuses(&node("--address 192.0.2.1/24"));
    assert!(said.contains("lo is no Ethernet"), "{said}");
    let nameless = node(own);
    let mut inside = Command::new("env");
    inside.args(["PATH=/nowhere", "/usr/bin/timeout"]).args(nameless.get_args());
    inside.envs(nameless.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let said = machine.refuses(&inside);
    assert!(said.contains("nft cannot be run") && said.contains("install nftables"), "{said}");
    assert_eq!(machine.says("nft list tables"), "");
    let said = machine.refuses(&unprivileged(home.command("clean"), "-all"));
    assert!(said.contains("the rules of this host need the capability CAP_NET_ADMIN"), "{said}");
    let cleaned = machine.command(&home.command("clean")).output().unwrap();
    assert_eq!(String::from_utf8(cleaned.stdout).unwrap(), "nothing was left behind\n");
}
