//! What an idle pod holds: a server that listens and nothing else, counted by the allocator.
//!
//! A count does not vary with the machine, so that the bound can be near what is held. The reach of 15,000 bytes resident
//! for each of 10,000 pods is the bench's (`flatnet bench pods`); that has the engine's own parts in it.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::alloc::System;
use std::net::Ipv4Addr;
use std::sync::Arc;

use cap::Cap;
use flatnet_engine::binding::Profile;
use flatnet_engine::clock::Instant;
use flatnet_engine::control::{Control, EngineConfig, NodeSpec};
use flatnet_engine::pod::{ContainerConfig, Image, Pod, PodConfig};
use flatnet_engine::tables::Guard;
use flatnet_engine::tunnel::Encapsulation;
use flatnet_engine::wire::MacAddress;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Pods on each of [`NODES`] nodes, as many as a kubelet takes.
const PER_NODE: u8 = 250;
const NODES: u8 = 4;
/// Bytes of the heap that a pod may hold, its entries in the tables included.
const BOUND: usize = 6000;

#[test]
fn an_idle_pod_holds_no_buffers() {
    let config = EngineConfig { workers: 1, ..EngineConfig::default() };
    let (mut control, mut workers) = Control::build(&config).unwrap();
    let mut worker = workers.remove(0);
    let nodes: Vec<_> = (0..NODES).map(|node| control.add_node(&node_spec(node)).unwrap()).collect();
    worker.run_batch(Instant::ZERO);
    let before = ALLOCATOR.allocated();
    for (node, id) in (0..NODES).zip(nodes) {
        for number in 0..PER_NODE {
            let address = Ipv4Addr::new(10, 1, node, 2 + number);
            let mac = MacAddress::for_ipv4(address);
            let guard = Some(Guard { mac, address, vip: None });
            let name = format!("default/pod-{node}-{number}");
            control.attach_pod(id, &name, guard, 0, pod(mac, address)).unwrap();
            worker.run_batch(Instant::ZERO);
        }
    }
    // No worker holds an old snapshot now, so that the publisher gives them up.
    control.tables.publish(|_| ());
    let held = ALLOCATOR.allocated() - before;
    let pods = usize::from(PER_NODE) * usize::from(NODES);
    assert!(held / pods <= BOUND, "{} bytes a pod", held / pods);
    assert!(
        held / pods >= size_of::<Pod>(),
        "{} bytes a pod are less than its own: nothing was counted",
        held / pods
    );
}

fn node_spec(node: u8) -> NodeSpec {
    NodeSpec {
        name: Arc::from(format!("node-{node}")),
        address: Ipv4Addr::new(192, 168, 0, 10 + node),
        network: "192.168.0.0/24".parse().unwrap(),
        gateway: None,
        subnet: format!("10.1.{node}.0/24").parse().unwrap(),
        pod_network: "10.1.0.0/16".parse().unwrap(),
        profile: Profile::Linux,
        tunnel_port: 8285,
        encapsulation: Some(Encapsulation::Udp),
        mtu: 1500,
    }
}

fn pod(mac: MacAddress, address: Ipv4Addr) -> Pod {
    let mut pod = Pod::new(PodConfig { name: String::from("echo"), mac, address, ..PodConfig::default() });
    let container = ContainerConfig {
        name: String::from("main"),
        image: Image::Echo,
        ports: Vec::new(),
        args: Vec::new(),
        mounts: Vec::new(),
    };
    pod.start_container(container).unwrap();
    pod
}
