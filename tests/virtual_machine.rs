//! A machine whose network card is a TAP, which it has open as a virtual machine has, as a pod.
//!
//! The machine is a kernel: a network namespace whose eth0 is a TAP, too, and a program that is the wire between both files. Needs
//! root, `ip`, `curl`, `ping` and Python.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::process::{Child, Stdio};

use common::peer::python;
use common::{Home, Namespace, await_that};

const NETWORK: &str = "\
apiVersion: flatnet.dev/v1
kind: Topology
metadata: {name: machines}
spec:
  nodes: [{name: node-1, address: 192.168.66.11/24, podCIDR: 10.1.15.0/24}]
  seed: 7
---
apiVersion: v1
kind: Pod
metadata: {name: simulated, labels: {app: simulated}}
spec: {nodeName: node-1, containers: [{name: nginx, image: nginx}]}
---
apiVersion: v1
kind: Service
metadata: {name: simulated}
spec: {clusterIP: 10.96.0.20, selector: {app: simulated}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: vm, annotations: {flatnet.dev/attach: \"tap:vm0\", flatnet.dev/ip: 10.1.15.77}}
spec: {nodeName: node-1, containers: [{name: c, image: flatnet/pause}]}
";

/// Opens a TAP here and one in another network namespace, as QEMU does, and carries frames with their headers between them.
const MACHINE: &str = r#"
import ctypes, fcntl, os, select, struct, sys
def opened(name):
    file = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(file, 0x400454ca, struct.pack("16sH22x", name.encode(), 0x0002 | 0x1000 | 0x4000))  # TAP, no header of its own, virtio-net's
    fcntl.ioctl(file, 0x400454d0, 0x1f)  # checksums, superframes of TCP
    return file
own = opened("vm0")
ctypes.CDLL(None).setns(os.open(sys.argv[1], os.O_RDONLY), 0)
ends = {own: opened("eth0")}
ends[ends[own]] = own
print("up", flush=True)
while True:
    for end in select.select(list(ends), [], [])[0]:
        try:
            os.write(ends[end], os.read(end, 1 << 17))
        except OSError:  # The other interface is down.
            pass
"#;

/// A machine, until dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn machine(host: &Namespace, guest: &Namespace) -> Machine {
    let mut command = host.command(&python(MACHINE, &[&guest.path()]));
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut said)
        .unwrap();
    assert_eq!(said, "up\n");
    Machine(child)
}

fn has_come_up(host: &Namespace, guest: &Namespace) {
    host.says("ip link set vm0 up");
    guest.says(
        "ip link set eth0 address 02:42:0a:01:0f:4d mtu 1472 up && ip addr add 10.1.15.77/24 dev eth0 && ip route add default via 10.1.15.1",
    );
}

#[test]
fn a_machine_with_an_open_tap_is_a_pod() {
    let (host, guest, home) = (Namespace::new(), Namespace::new(), Home::new());
    // As a machine's own program makes it before it starts, so that it outlives a restart.
    host.says("ip tuntap add dev vm0 mode tap vnet_hdr && ip link set lo up");
    let running = machine(&host, &guest);
    has_come_up(&host, &guest);
    let file = home.file("machines.yaml");
    std::fs::write(&file, NETWORK).unwrap();
    let up = host.command(&home.command(&format!("up -d -f {}", file.display()))).output().unwrap();
    assert!(up.status.success(), "{up:?}");
    let fetched = || guest.says("curl -s --max-time 10 http://10.96.0.20/").contains("Welcome to nginx!");
    assert!(fetched());
    home.text("exec simulated -- ping -c 1 -W 5 10.1.15.77");
    // The machine is started anew while the network runs.
    drop(running);
    let _running = machine(&host, &guest);
    has_come_up(&host, &guest);
    await_that("the machine is reached again", || {
        home.run("exec simulated -- ping -c 1 -W 1 10.1.15.77").status.success()
    });
    assert!(fetched());
    assert_eq!(home.json("down")["balances"], true);
    host.says("ip link show vm0");
}

/// Who manages machines may make a TAP when its machine starts, and take it away with it.
#[test]
fn a_machine_comes_after_the_network_goes_and_comes_again() {
    let (host, guest, home) = (Namespace::new(), Namespace::new(), Home::new());
    let file = home.file("machines.yaml");
    std::fs::write(&file, NETWORK).unwrap();
    let up = host.command(&home.command(&format!("up -d -f {}", file.display()))).output().unwrap();
    assert!(up.status.success(), "{up:?}");
    let state = || {
        let pods = home.json("get pods");
        let pod =
            pods["items"].as_array().unwrap().iter().find(|pod| pod["metadata"]["name"] == "vm").cloned();
        pod.unwrap()["status"]["containerStatuses"][0]["state"].clone()
    };
    let is_reached = || home.run("exec simulated -- ping -c 1 -W 1 10.1.15.77").status.success();
    for _ in 0..2 {
        await_that("its absence is said", || state()["waiting"]["reason"] == "FailedCreatePodSandBox");
        assert!(state()["waiting"]["message"].as_str().unwrap().contains("there is no TAP vm0 here"));
        let running = machine(&host, &guest);
        has_come_up(&host, &guest);
        await_that("the machine is reached", is_reached);
        await_that("it is said", || state()["running"].is_object());
        assert!(guest.says("curl -s --max-time 10 http://10.96.0.20/").contains("Welcome to nginx!"));
        // The TAP goes with the machine's program.
        drop(running);
    }
    assert_eq!(home.json("down")["balances"], true);
}

#[test]
fn a_tap_that_is_not_there_is_said_and_not_made() {
    let (host, home) = (Namespace::new(), Home::new());
    host.says("ip link add vm1 type veth peer name other");
    for name in ["vm0", "vm1"] {
        let file = home.file("machines.yaml");
        std::fs::write(&file, NETWORK.replace("tap:vm0", &format!("tap:{name}"))).unwrap();
        let up = home.command(&format!("up -d -f {}", file.display()));
        let said = String::from_utf8(host.command(&up).output().unwrap().stderr).unwrap();
        assert!(
            said.contains(&format!("there is no TAP {name} here: `ip tuntap add {name} mode tap` makes one")),
            "{said}"
        );
        home.json("down");
    }
    assert_eq!(host.says("ip -o link").lines().count(), 3, "lo, vm1 and its other end");
}
