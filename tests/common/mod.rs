//! The real binary with a home of its own, for tests that start networks.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops at the first surprise")]

pub mod cluster;
pub mod etcd;
pub mod peer;
pub mod real;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Seconds any one command may take.
const LIMIT: &str = "60";

/// A runtime directory, and the networks in it, which end with it.
pub struct Home {
    directory: TempDir,
}

impl Home {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// A home with the tour's network running in the background.
    pub fn with_network() -> Self {
        let home = Self::new();
        assert!(home.text("up -d").starts_with("network two-nodes is up: 2 nodes, 4 pods, 2 hosts\n"));
        home
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The command, bounded in time; words are split at spaces, what follows ` -- ` too.
    pub fn command(&self, words: &str) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", LIMIT, env!("CARGO_BIN_EXE_flatnet")]).args(words.split(' '));
        command
            .env("XDG_RUNTIME_DIR", self.directory.path())
            .env("XDG_STATE_HOME", self.directory.path())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, words: &str) -> Output {
        self.command(words).output().unwrap()
    }

    /// What a command that must succeed prints.
    pub fn text(&self, words: &str) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "flatnet {words}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command that must succeed prints for programs.
    pub fn json(&self, words: &str) -> Value {
        serde_json::from_str(&self.text(&format!("{words} -o json"))).unwrap()
    }

    /// What a command that must fail says.
    pub fn error(&self, words: &str) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(1), "flatnet {words}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// A command with an input of its own.
    pub fn with_input(&self, words: &str, input: &str) -> Output {
        let mut child = self.piped(words);
        let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_owned());
        // Beside reading: a program that cannot get rid of its output takes no more input.
        let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output().unwrap();
        match writer.join().unwrap() {
            // A program may end before it has read all.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written.unwrap(),
        }
        output
    }

    pub fn piped(&self, words: &str) -> Child {
        let mut command = self.command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let output = self.run("status -o json");
        let running: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        for network in running.as_array().into_iter().flatten() {
            self.run(&format!("down --name {}", network["name"].as_str().unwrap_or_default()));
        }
    }
}

/// For whatever must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A network namespace of nobody but a process that sleeps in it.
pub struct Namespace(Child);

impl Namespace {
    pub fn new() -> Self {
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "sh", "-c", "echo; exec sleep 600"]).stdout(Stdio::piped());
        let mut child = unshare.spawn().unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        Self(child)
    }

    /// The process in it.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// A command, to be run there.
    pub fn command(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.args(["--target", &self.id().to_string(), "--net"]);
        inside.arg(command.get_program()).args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside
    }

    pub fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// What a command that fails there says of that.
    pub fn refuses(&self, command: &Command) -> String {
        let output = self.command(command).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// What a command says there.
    pub fn says(&self, command: &str) -> String {
        let (id, words) = (self.0.id().to_string(), ["--net", "sh", "-ec", command]);
        let output = Command::new("nsenter").args(["--target", &id]).args(words).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A switch with machines at it, each with an eth0 of 192.168.66.0/24.
pub struct Wire(pub Namespace);

impl Wire {
    pub fn new() -> Self {
        let switch = Namespace::new();
        switch.says("ip link add br0 type bridge && ip link set br0 up");
        Self(switch)
    }

    pub fn machine(&self, number: u8) -> Namespace {
        let machine = Namespace::new();
        let id = machine.id();
        self.0.says(&format!(
            "ip link add port{number} type veth peer name eth0 netns {id} && ip link set port{number} master br0 up"
        ));
        machine.says(&format!(
            "ip link set lo up && ip address add 192.168.66.{number}/24 dev eth0 && ip link set eth0 up"
        ));
        machine
    }

    /// Lets the wire to these machines take no longer packets than this.
    pub fn set_mtu(&self, machines: &BTreeMap<u8, Namespace>, mtu: u16) {
        for (number, machine) in machines {
            machine.says(&format!("ip link set eth0 mtu {mtu}"));
            self.0.says(&format!("ip link set port{number} mtu {mtu}"));
        }
    }
}

/// A program that runs until it is dropped.
pub struct Program(pub Child);

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Bytes that do not repeat soon.
pub fn content(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// What both of two nodes are given, `pods.yaml`, each to run its own pods: on nodes 11 and 12 a simulated and a real one, which serve
/// `site/content`, and a Service that both nodes' pods are behind. Node N has the subnet 10.1.N.0/24.
pub fn two_sites(home: &Home, content: &[u8]) {
    std::fs::create_dir(home.file("site")).unwrap();
    std::fs::write(home.file("site/content"), content).unwrap();
    let serve = serde_json::json!(["sh", "-c", "cd /mnt && exec python3 -m http.server 80"]);
    let volume = format!("volumes: [{{name: site, hostPath: {{path: {}}}}}]", home.file("site").display());
    let pods = |number: u8| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: sim-{number}, annotations: {{flatnet.dev/ip: 10.1.{number}.10}}}}\n\
             spec:\n  nodeName: node-{number}\n  {volume}\n  containers:\n    - {{name: nginx, image: nginx, args: [--root, /site], \
             volumeMounts: [{{name: site, mountPath: /site}}]}}\n\
             ---\napiVersion: v1\nkind: Pod\nmetadata: {{name: real-{number}, annotations: {{flatnet.dev/ip: 10.1.{number}.20}}}}\n\
             spec:\n  nodeName: node-{number}\n  runtimeClassName: netns\n  {volume}\n  containers:\n    - {{name: main, command: \
             {serve}, volumeMounts: [{{name: site, mountPath: /mnt}}]}}\n"
        )
    };
    std::fs::write(home.file("pods.yaml"), pods(11) + &pods(12) + SERVICE).unwrap();
}

/// A Service whose backends are written by hand, since no node knows of the other's pods: one simulated, one real, one each.
const SERVICE: &str = "\
---
apiVersion: v1
kind: Service
metadata: {name: both}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 8080, targetPort: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: both-by-hand, labels: {kubernetes.io/service-name: both}}
addressType: IPv4
endpoints: [{addresses: [10.1.11.10]}, {addresses: [10.1.12.20]}]
ports: [{port: 80}]
";

/// Reads a capture with tshark; a line per frame of the given fields, separated by tabs.
pub fn tshark(capture: &std::path::Path, fields: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command
        .args(["-T", "fields", "-d", "udp.port==8472,vxlan", "-o", "tcp.check_checksum:TRUE"])
        .arg("-r")
        .arg(capture);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark is installed by scripts/test");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}
