//! `ip addr`, `ip route` and `ip neigh`, as iproute2 writes them.
//!
//! Reads the pod's device. Invariant: changes nothing. Depends on `sockets`. Read first: ip(8).

use super::super::sockets::Sockets;
use super::console::Console;
use std::net::Ipv4Addr;

/// Runs the program and returns its exit code.
pub(super) fn run(words: &[String], console: &mut Console, sockets: &Sockets<'_, '_>) -> i32 {
    let object = words.iter().find(|word| !word.starts_with('-')).map_or("", String::as_str);
    if object.is_empty() {
        console.line("usage: ip addr | route | neigh");
        return 255;
    }
    if "address".starts_with(object) {
        addresses(console, sockets);
    } else if "route".starts_with(object) {
        routes(console, sockets);
    } else if "neighbour".starts_with(object) || "neighbor".starts_with(object) {
        neighbors(console, sockets);
    } else {
        console
            .line(format!("Object \"{object}\" is unknown, try \"ip addr\", \"ip route\" or \"ip neigh\"."));
        return 1;
    }
    0
}

fn addresses(console: &mut Console, sockets: &Sockets<'_, '_>) {
    let device = &sockets.stack.device;
    let network = Network::of(sockets);
    console.line("1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 state UNKNOWN");
    console.line("    link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00");
    console.line("    inet 127.0.0.1/8 scope host lo");
    console.line(format!("2: eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu {} state UP", device.mtu));
    console.line(format!("    link/ether {} brd ff:ff:ff:ff:ff:ff", device.mac));
    console.line(format!(
        "    inet {}/{} brd {} scope global eth0",
        device.address, device.prefix_length, network.broadcast
    ));
}

fn routes(console: &mut Console, sockets: &Sockets<'_, '_>) {
    let device = &sockets.stack.device;
    if let Some(gateway) = device.gateway {
        console.line(format!("default via {gateway} dev eth0"));
    }
    console.line(format!(
        "{}/{} dev eth0 proto kernel scope link src {}",
        Network::of(sockets).first,
        device.prefix_length,
        device.address
    ));
}

fn neighbors(console: &mut Console, sockets: &Sockets<'_, '_>) {
    for (address, mac, fresh) in sockets.stack.device.neighbors.iter(sockets.now) {
        console.line(match mac {
            Some(mac) if fresh => format!("{address} dev eth0 lladdr {mac} REACHABLE"),
            Some(mac) => format!("{address} dev eth0 lladdr {mac} STALE"),
            None => format!("{address} dev eth0 INCOMPLETE"),
        });
    }
}

struct Network {
    first: Ipv4Addr,
    broadcast: Ipv4Addr,
}

impl Network {
    fn of(sockets: &Sockets<'_, '_>) -> Self {
        let device = &sockets.stack.device;
        let host = u32::MAX.checked_shr(u32::from(device.prefix_length)).unwrap_or(0);
        let bits = device.address.to_bits();
        Network { first: Ipv4Addr::from_bits(bits & !host), broadcast: Ipv4Addr::from_bits(bits | host) }
    }
}
