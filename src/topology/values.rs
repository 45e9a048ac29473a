//! What a single value may be, wherever it is written: in a topology, in a node's configuration, as a flag.
//!
//! Invariant: what comes out is legal by itself.
//!
//! May depend on `flatnet-agents` for its limits. Read first: nothing.

use std::net::Ipv4Addr;
use std::time::Duration;

use flatnet_agents::{controllers::service_ip::NODE_PORTS, lease::config::HOST_GW, objects::is_dns_name};
use flatnet_engine::masquerade::{FIRST_PORT, PortRange};
use flatnet_engine::wire::MacAddress;
use flatnet_proxy::Ipv4Prefix;

use crate::topology::{BackendKind, Interface};

/// Reads a machine's name.
///
/// # Errors
/// What is wrong with it.
pub fn name(text: &str) -> Result<String, String> {
    if is_dns_name(text) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a name: lower-case letters, digits, '-' and '.' only"))
    }
}

/// Reads an address such as `192.168.66.1`.
///
/// # Errors
/// What is wrong with it.
pub fn address(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IPv4 address"))
}

/// Reads a network such as `10.1.0.0/16`.
///
/// # Errors
/// What is wrong with it.
pub fn prefix(text: &str) -> Result<Ipv4Prefix, String> {
    text.parse().map_err(|error| format!("{text:?} is not a network: {error}"))
}

/// Reads a node's pod subnet such as `10.1.15.0/24`.
///
/// # Errors
/// What is wrong with it.
pub fn subnet(text: &str) -> Result<Ipv4Prefix, String> {
    let subnet = prefix(text)?;
    if (8..=30).contains(&subnet.length()) {
        Ok(subnet)
    } else {
        Err(format!("{subnet} must have a length of 8 to 30"))
    }
}

/// Reads an address with its network's length, such as `192.168.66.11/24`; it must be one that a machine can have.
///
/// # Errors
/// What is wrong with it.
pub fn interface(text: &str) -> Result<Interface, String> {
    let (address, network) = Ipv4Prefix::parse_interface(text)
        .map_err(|error| format!("{text:?} is not an address with its network's length: {error}"))?;
    if network.length() > 30 || network.length() < 8 {
        return Err(format!("the network of {text} must have a length of 8 to 30"));
    }
    if address == network.address() || address == network.last() {
        return Err(format!("{address} is the network or broadcast address of {network}"));
    }
    Ok(Interface { address: of_machine(address)?, network })
}

/// Reads an address that a machine can have.
///
/// # Errors
/// What is wrong with it.
pub fn machine(text: &str) -> Result<Ipv4Addr, String> {
    of_machine(address(text)?)
}

fn of_machine(address: Ipv4Addr) -> Result<Ipv4Addr, String> {
    let first = address.octets()[0];
    if address.is_loopback() || address.is_multicast() || first == 0 || first >= 240 {
        return Err(format!("{address} is not an address that a machine can have"));
    }
    Ok(address)
}

/// Reads how many minutes before its end a lease of 24 hours is renewed, in flannel's bounds.
///
/// # Errors
/// What is wrong with it.
pub fn renew_margin(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(minutes @ 1..=1439) => Ok(Duration::from_secs(minutes * 60)),
        _ => Err(format!("{text:?} is not a number of minutes from 1 to 1439: a lease lasts 24 hours")),
    }
}

/// Reads the name of a network interface.
///
/// # Errors
/// What is wrong with it.
pub fn interface_name(text: &str) -> Result<String, String> {
    let is_fit = (1..16).contains(&text.len())
        && text != "."
        && text != ".."
        && text.chars().all(|it| it.is_ascii_graphic() && !"/:%".contains(it));
    if is_fit { Ok(text.to_owned()) } else { Err(format!("{text:?} cannot be an interface's name")) }
}

/// Reads ports such as `61000-65535`: ports that translations may use.
///
/// # Errors
/// What is wrong with it.
pub fn port_range(text: &str) -> Result<PortRange, String> {
    let ends = text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    let Some((first, last)) = ends.filter(|(first, last)| first <= last) else {
        return Err(format!("{text:?} is not a range of ports such as 61000-65535"));
    };
    let range = PortRange { first, last };
    if first < FIRST_PORT {
        return Err(format!("{text} begins below {FIRST_PORT}, where ports of services are"));
    }
    if [*NODE_PORTS.start(), *NODE_PORTS.end()].into_iter().any(|port| range.contains(port))
        || NODE_PORTS.contains(&first)
    {
        return Err(format!("{text} has ports that Services may have on every node"));
    }
    Ok(range)
}

/// Reads how nodes reach each other's pods.
///
/// # Errors
/// What is wrong with it.
pub fn backend(text: &str) -> Result<BackendKind, String> {
    match text {
        "udp" => Ok(BackendKind::Udp),
        "vxlan" => Ok(BackendKind::Vxlan),
        HOST_GW => Ok(BackendKind::HostGw),
        _ => Err(format!("{text:?} is not a backend; udp, vxlan and host-gw are")),
    }
}

/// Reads a MAC that one machine can have, such as `02:42:0a:01:14:00`.
///
/// # Errors
/// What is wrong with it.
pub fn mac(text: &str) -> Result<MacAddress, String> {
    let mac: MacAddress = text.parse().map_err(|error| format!("{text:?}: {error}"))?;
    if mac.is_unicast() { Ok(mac) } else { Err(format!("{mac} is not one machine's MAC")) }
}

/// Reads the UDP port of a tunnel.
///
/// # Errors
/// What is wrong with it.
pub fn port(text: &str) -> Result<u16, String> {
    let port: u16 = text.parse().map_err(|_| format!("{text:?} is not a port"))?;
    let (first, last) = (*NODE_PORTS.start(), *NODE_PORTS.end());
    if port == 0 {
        Err("0 is not a port".to_owned())
    } else if (first..=last).contains(&port) {
        Err(format!("port {port} is one of those that Services may have on every node, {first} to {last}"))
    } else {
        Ok(port)
    }
}
