//! Real nodes whose tunnel is a VXLAN, and Linux' own vxlan devices as their peers.
//!
//! Needs root, `ip`, `bridge`, `nsenter`, `unshare` and Python, and a kernel with vxlan.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeMap;

use common::cluster::{CHECKSUMS, Cluster, SEGMENTS, SWITCH, TCP_SEGMENTS};
use common::peer::{echo, exchange, is_pinged, kernel_peer, pings, python, serve, tell_routes};
use common::{Namespace, await_that};

/// The MAC that the peer's kernel gave its device, as flannel tells it in its lease.
const KERNELS: &str = "4e:41:e0:49:09:a4";

/// Payload bytes of an echo request that has just room: the MTU less IPv4 and ICMP.
const MOST: usize = 1450 - 20 - 8;

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
    assert!(is_pinged(&cluster, "10.1.13.1", MOST) && !is_pinged(&cluster, "10.1.13.1", MOST + 1));

    exchange(&cluster, (&machine, "10.1.13.1"));
    echo(&cluster, (&machine, "10.1.13.1"), "1,1422,1423,5000");
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
