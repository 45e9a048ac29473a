//! Machines with a node each, and one with an etcd.

use std::collections::BTreeMap;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use super::{Home, Namespace, Wire, await_that};

/// Machine 10 has an etcd of one or more members, each other one a node with a simulated pod.
pub struct Cluster {
    pub home: Home,
    pub wire: Wire,
    pub machines: BTreeMap<u8, Namespace>,
    members: Vec<Option<Child>>,
}

pub const ETCD: &str = "http://192.168.66.10:2379";

/// Where a member listens, for clients and for others.
fn urls(member: usize) -> [String; 2] {
    [0, 1].map(|kind| format!("http://192.168.66.10:{}", 2379 + 100 * member + kind))
}

impl Cluster {
    pub fn new(config: &str) -> Self {
        Self::of(1, config)
    }

    pub fn of(members: usize, config: &str) -> Self {
        let (home, wire) = (Home::new(), Wire::new());
        let machines = [10, 11, 12, 13].map(|number| (number, wire.machine(number))).into();
        let members = (0..members).map(|_| None).collect();
        let mut cluster = Self { home, wire, machines, members };
        cluster.start_etcd();
        await_that("etcd answers", || {
            cluster.etcdctl(&["put", "/coreos.com/network/config", config]).is_some()
        });
        cluster
    }

    /// URLs of all members.
    pub fn endpoints(&self) -> String {
        let all: Vec<String> = (0..self.members.len()).map(|member| urls(member)[0].clone()).collect();
        all.join(",")
    }

    /// Starts the members that do not run.
    pub fn start_etcd(&mut self) {
        let initial = |member| format!("m{member}={}", urls(member)[1]);
        let initial: Vec<String> = (0..self.members.len()).map(initial).collect();
        for member in 0..self.members.len() {
            if self.members[member].is_some() {
                continue;
            }
            let [client, peer] = urls(member);
            let mut command = Command::new("etcd");
            command.args(["--name", &format!("m{member}")]);
            command.arg("--data-dir").arg(self.home.file(&format!("etcd-{member}")));
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.args(["--initial-cluster", &initial.join(",")]);
            let mut command = self.machines[&10].command(&command);
            self.members[member] = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        }
    }

    pub fn kill_etcd(&mut self) {
        (0..self.members.len()).for_each(|member| self.kill_member(member));
    }

    pub fn kill_member(&mut self, member: usize) {
        if let Some(mut etcd) = self.members[member].take() {
            etcd.kill().unwrap();
            etcd.wait().unwrap();
        }
    }

    pub fn etcdctl(&self, words: &[&str]) -> Option<String> {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", ETCD, "--command-timeout", "2s"]).args(words);
        let output = self.machines[&10].command(&command).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    /// Writes a key below `subnets/`.
    pub fn put(&self, key: &str, value: &str) {
        self.etcdctl(&["put", &format!("/coreos.com/network/subnets/{key}"), value]).unwrap();
    }

    /// Starts a node in the background.
    pub fn start(&self, number: u8) {
        let output = self.try_start(number, &self.endpoints());
        assert!(output.status.success(), "{output:?}");
    }

    pub fn try_start(&self, number: u8, etcd: &str) -> Output {
        let words = self.words(number, etcd) + " -d";
        self.machines[&number].command(&self.home.command(&words)).output().unwrap()
    }

    /// What a node is told.
    pub fn words(&self, number: u8, etcd: &str) -> String {
        let pods = self.home.file(&format!("pods-{number}.yaml"));
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: sim-{number}}}\nspec: {{containers: [{{name: web, image: flatnet/httpd}}]}}\n"
        );
        std::fs::write(&pods, pod).unwrap();
        let (pods, file) = (pods.display(), self.home.file(&format!("run/subnet-{number}.env")));
        format!(
            "node --name node-{number} --iface eth0 --etcd {etcd} --subnet-file {} -f {pods}",
            file.display()
        )
    }

    pub fn address(&self, number: u8) -> String {
        let pods = self.home.json(&format!("get --name node-{number} pods"));
        pods["items"][0]["status"]["podIP"].as_str().unwrap().to_owned()
    }

    pub fn pings(&self, from: u8, to: &str) -> bool {
        self.home.run(&format!("exec --name node-{from} sim-{from} -- ping -c 1 -W 1 {to}")).status.success()
    }

    pub fn routes(&self, number: u8) -> String {
        self.home.text(&format!("show --name node-{number} routes node-{number}"))
    }

    pub fn log(&self, number: u8) -> String {
        std::fs::read_to_string(self.home.file(&format!("flatnet/node-{number}.log"))).unwrap()
    }

    pub fn leases(&self) -> Vec<Value> {
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
