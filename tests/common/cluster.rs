//! Two hosts with a node each, a simulated and a real pod on each node, and a real network between them.

use std::collections::BTreeMap;
use std::process::Command;

use rustix::process::Pid;

use super::{Home, Namespace, Wire, await_that, content, two_sites};

/// Nodes 11 and 12 with a simulated and a real pod each; node N has the subnet 10.1.N.0/24.
pub struct Cluster {
    pub home: Home,
    pub wire: Wire,
    pub machines: BTreeMap<u8, Namespace>,
    pub content: Vec<u8>,
    backend: &'static str,
}

impl Cluster {
    pub fn new() -> Self {
        Self::over("udp")
    }

    pub fn over(backend: &'static str) -> Self {
        let home = Home::new();
        let content = content(1 << 20);
        two_sites(&home, &content);
        let wire = Wire::new();
        let machines = [11, 12].map(|number| (number, wire.machine(number))).into();
        let cluster = Self { home, wire, machines, content, backend };
        [11, 12].into_iter().for_each(|number| cluster.start(number));
        for number in [11, 12] {
            await_that("the real pod serves", || {
                let asks =
                    format!("exec --name node-{number} sim-{number} -- curl -s http://10.1.{number}.20/");
                cluster.home.run(&asks).status.success()
            });
        }
        cluster
    }

    pub fn routes(&self, number: u8, routes: &str) {
        std::fs::write(self.home.file(&format!("routes-{number}.yaml")), routes).unwrap();
    }

    /// Starts a node in the background: one by flags, the other by a configuration file.
    pub fn start(&self, number: u8) {
        let path = |name: &str| self.home.file(name).display().to_string();
        let other = 23 - number;
        self.routes(number, &format!("10.1.{other}.0/24: 192.168.66.{other}\n"));
        let (routes, pods) = (path(&format!("routes-{number}.yaml")), path("pods.yaml"));
        let words = if number == 11 {
            format!(
                "node --name node-11 --address 192.168.66.11/24 --pod-cidr 10.1.11.0/24 --backend {} --routes {routes} -f {pods} -d",
                self.backend
            )
        } else {
            let config = self.home.file("node.yaml");
            let text = format!(
                "name: node-{number}\naddress: 192.168.66.{number}/24\npod-cidr: 10.1.{number}.0/24\nbackend: {}\nroutes: {routes}\nfile: {pods}\n\
                 detach: true\n",
                self.backend
            );
            std::fs::write(&config, text).unwrap();
            format!("node --config {}", config.display())
        };
        let output = self.machines[&number].command(&self.home.command(&words)).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Pings from one simulated pod to another address.
    pub fn pings(&self, from: u8, to: &str) -> bool {
        self.home.run(&format!("exec --name node-{from} sim-{from} -- ping -c 1 -W 1 {to}")).status.success()
    }

    /// What a simulated pod gets from a server.
    pub fn simulated_fetches(&self, from: u8, server: &str) -> bool {
        let asks = format!("exec --name node-{from} sim-{from} -- curl -s http://{server}/content");
        self.home.run(&asks).stdout == self.content
    }

    /// What a real pod gets from a server.
    pub fn real_fetches(&self, from: u8, server: &str) -> bool {
        let program = format!(
            "import sys,urllib.request as r; sys.stdout.buffer.write(r.urlopen('http://{server}/content',timeout=20).read())"
        );
        let mut asks = self.home.command(&format!("exec --name node-{from} real-{from} -- python3 -c"));
        asks.arg(program).output().unwrap().stdout == self.content
    }

    /// How many frames a node dropped for which reason.
    pub fn drops(&self, number: u8) -> BTreeMap<String, u64> {
        let table = self.home.json(&format!("show --name node-{number} drops node-{number}"));
        // Kernels in real pods look for IPv6 routers, of which there are none.
        let rows = table.as_array().unwrap().iter().filter(|row| row["reason"] != "bridge-no-port");
        rows.map(|row| (row["reason"].as_str().unwrap().to_owned(), row["count"].as_u64().unwrap())).collect()
    }

    pub fn process(&self, number: u8) -> Pid {
        let status = self.home.json("status");
        let name = format!("node-{number}");
        let row = status.as_array().unwrap().iter().find(|row| row["name"] == *name).unwrap();
        Pid::from_raw(row["pid"].as_i64().unwrap().try_into().unwrap()).unwrap()
    }

    /// Ends the nodes; no frame and no buffer may be missing.
    pub fn end(self) {
        for number in [11, 12] {
            let report = self.home.json(&format!("down --name node-{number}"));
            assert_eq!(report["balances"], true, "{report}");
        }
    }
}

/// Switches something that an eth0 leaves to others, by its number in the system's `linux/ethtool.h`.
pub const SWITCH: &str = "
import ctypes, fcntl, socket, struct, sys
value = ctypes.create_string_buffer(struct.pack('II', int(sys.argv[1]), int(sys.argv[2])))
request = struct.pack('16sP16x', b'eth0', ctypes.addressof(value))
fcntl.ioctl(socket.socket(), 0x8946, request)
";
pub const CHECKSUMS: u32 = 0x17;
pub const TCP_SEGMENTS: u32 = 0x1f;
pub const SEGMENTS: u32 = 0x24;
pub const RECEIVED_TOGETHER: u32 = 0x2c;

impl Cluster {
    pub fn switch(&self, is_pod: bool, number: u8, what: u32, on: bool) {
        let mut asks = if is_pod {
            self.home.command(&format!("exec --name node-{number} real-{number} -- python3 -c"))
        } else {
            let mut python = Command::new("python3");
            python.arg("-c");
            self.machines[&number].command(&python)
        };
        let output = asks.args([SWITCH, &what.to_string(), &u8::from(on).to_string()]).output().unwrap();
        assert!(output.status.success(), "{what:#x} {on}: {output:?}");
    }
}
