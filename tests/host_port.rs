//! A host's own way to pods and Services through its node, with the programs that hosts have.
//!
//! Needs root, `ip`, `nsenter`, `unshare`, `setpriv`, curl and Python.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use common::{Home, Namespace, Program, Wire, await_that, content, two_sites};
use rustix::process::{Pid, Signal, kill_process};

/// Hosts 11 and 12, each with a node and a way to it.
struct Hosts {
    home: Home,
    /// What is between them; it is there as long as they are.
    _wire: Wire,
    machines: BTreeMap<u8, Namespace>,
    content: Vec<u8>,
}

impl Hosts {
    fn new(flags: &str) -> Self {
        let (home, wire, content) = (Home::new(), Wire::new(), content(4 << 20));
        two_sites(&home, &content);
        let machines: BTreeMap<_, _> = [11, 12].map(|number| (number, wire.machine(number))).into();
        let hosts = Self { home, _wire: wire, machines, content };
        for (number, other) in [(11, 12), (12, 11)] {
            let routes = hosts.home.file(&format!("routes-{number}.yaml"));
            std::fs::write(&routes, format!("10.1.{other}.0/24: 192.168.66.{other}\n")).unwrap();
            hosts.start(number, flags);
        }
        for number in [11, 12] {
            await_that("the real pod serves", || hosts.fetches(number, &format!("10.1.{number}.20")));
        }
        hosts
    }

    fn start(&self, number: u8, flags: &str) {
        let path = |name: &str| self.home.file(name).display().to_string();
        let (routes, pods) = (path(&format!("routes-{number}.yaml")), path("pods.yaml"));
        let words = format!(
            "node --name node-{number} --address 192.168.66.{number}/24 --pod-cidr 10.1.{number}.0/24 --routes {routes} -f {pods} \
             --host-port flatnet0 -d{flags}"
        );
        let output = self.machines[&number].command(&self.home.command(&words)).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Whether a host's curl gets the content from a server, whole.
    fn fetches(&self, host: u8, server: &str) -> bool {
        let mut curl = Command::new("curl");
        curl.args(["-s", "--max-time", "20", &format!("http://{server}/content")]);
        self.machines[&host].command(&curl).output().unwrap().stdout == self.content
    }

    fn process(&self, number: u8) -> Pid {
        let status = self.home.json("status");
        let name = format!("node-{number}");
        let row = status.as_array().unwrap().iter().find(|row| row["name"] == *name).unwrap();
        Pid::from_raw(row["pid"].as_i64().unwrap().try_into().unwrap()).unwrap()
    }

    /// What a host has of interfaces, addresses, routes and neighbours.
    fn state(&self, number: u8) -> String {
        self.machines[&number].says("ip -o link | cut -d: -f2; ip -o -4 address; ip route; ip rule")
    }

    fn drops(&self, number: u8) -> BTreeMap<String, u64> {
        let table = self.home.json(&format!("show --name node-{number} drops node-{number}"));
        // Kernels in real pods look for IPv6 routers, of which there are none.
        let rows = table.as_array().unwrap().iter().filter(|row| row["reason"] != "bridge-no-port");
        rows.map(|row| (row["reason"].as_str().unwrap().to_owned(), row["count"].as_u64().unwrap())).collect()
    }

    fn end(&self) {
        for number in [11, 12] {
            let report = self.home.json(&format!("down --name node-{number}"));
            assert_eq!(report["balances"], true, "{report}");
        }
    }
}

#[test]
fn a_hosts_programs_reach_pods_and_services_everywhere() {
    for flags in ["", " --workers 2", " --backend host-gw", " --backend host-gw --workers 2"] {
        let hosts = Hosts::new(flags);
        for (here, there) in [(11, 12), (12, 11)] {
            for server in [here, there].into_iter().flat_map(|node| [(node, 10), (node, 20)]) {
                assert!(
                    hosts.fetches(here, &format!("10.1.{}.{}", server.0, server.1)),
                    "{here}: {server:?}"
                );
            }
            // In turn, so that one of each two is on the other host.
            for _ in 0..4 {
                assert!(hosts.fetches(here, "10.96.0.10:8080"), "{here}: the Service");
            }
            assert_eq!(hosts.drops(here), BTreeMap::new());
        }
        hosts.end();
    }
}

#[test]
fn pods_reach_a_hosts_programs() {
    let tunnel: &[&str] = &["10.1.11.1", "10.1.11.0", "192.168.66.11"];
    for (flags, addresses) in [("", tunnel), (" --backend host-gw", &["10.1.11.1", "192.168.66.11"])] {
        reach_programs(&Hosts::new(flags), addresses);
    }
}

fn reach_programs(hosts: &Hosts, addresses: &[&str]) {
    let mut server = Command::new("python3");
    server.args(["-m", "http.server", "8000", "--directory"]).arg(hosts.home.file("site"));
    let machine = &hosts.machines[&11];
    let _server = Program(machine.command(&server).stderr(Stdio::null()).spawn().unwrap());
    await_that("it serves", || hosts.fetches(11, "127.0.0.1:8000"));
    let simulated = |pod: u8, address: &str| {
        let asks = format!("exec --name node-{pod} sim-{pod} -- curl -s http://{address}:8000/content");
        hosts.home.run(&asks).stdout == hosts.content
    };
    let real = |pod: u8, address: &str| {
        let asks = format!("exec --name node-{pod} real-{pod} -- curl -s http://{address}:8000/content");
        hosts.home.run(&asks).stdout == hosts.content
    };
    for address in addresses {
        assert!(simulated(11, address) && real(11, address), "{address}");
    }
    // Of another node's pods, by what belongs to this node's subnet.
    assert!(simulated(12, "10.1.11.1") && real(12, "10.1.11.1"));
    assert_eq!(hosts.drops(11), BTreeMap::new());
    hosts.end();
}

#[test]
fn the_way_in_goes_with_the_node_however_it_ends() {
    let hosts = Hosts::new("");
    hosts.home.json("down --name node-12");
    let before = hosts.state(12);
    assert!(!before.contains("flatnet0") && !before.contains("10.1."), "{before}");
    hosts.start(12, "");
    assert!(hosts.state(12).contains("10.96.0.0/12 dev flatnet0"));
    kill_process(hosts.process(12), Signal::KILL).unwrap();
    await_that("it is gone", || hosts.state(12) == before);
    hosts.start(12, "");
    await_that("it is back", || hosts.fetches(12, "10.1.11.10"));
    hosts.end();
}

#[test]
fn what_the_host_cannot_give_is_told_with_what_to_do() {
    let (home, wire) = (Home::new(), Wire::new());
    let machine = wire.machine(11);
    let command = |words: &str| home.command(&format!("node --name n --address 192.168.66.11/24 {words}"));
    machine.says("ip link add taken type veth peer name other && ip route add 10.96.0.0/12 dev lo");
    let said = machine.refuses(&command("--host-port taken"));
    assert!(
        said.contains("taken: another process has this TAP, or it is another kind of interface"),
        "{said}"
    );
    let said = machine.refuses(&command("--host-port flatnet0"));
    assert!(said.contains("this host has a route to 10.96.0.0/12 already"), "{said}");
    assert!(said.contains("ip route show 10.96.0.0/12"), "{said}");
    await_that("nothing is left", || !machine.says("ip -o link; ip route").contains("flatnet0"));
    machine.says("ip route del 10.96.0.0/12 && sysctl -q -w net.ipv4.ip_local_port_range='1024 65535'");
    let said = machine.refuses(&command("--host-port flatnet0"));
    assert!(said.contains("port 61000 of 61000-65535 may be given to any program of this host"), "{said}");
    assert!(said.contains("net.ipv4.ip_local_reserved_ports=61000-65535"), "{said}");
    let command = command("--host-port flatnet0");
    let mut unprivileged = Command::new("setpriv");
    unprivileged.args(["--bounding-set=-all", "--inh-caps=-all", "--"]);
    unprivileged.arg(command.get_program()).args(command.get_args());
    unprivileged.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    machine.says("sysctl -q -w net.ipv4.ip_local_reserved_ports=61000-65535");
    let said = machine.refuses(&unprivileged);
    assert!(said.contains("flatnet0: TAPs need the capability CAP_NET_ADMIN"), "{said}");
    assert!(said.contains("leave --host-port away"), "{said}");
}
