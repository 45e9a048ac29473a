//! Whether the machines of a topology fit together.
//!
//! Runs over what [`crate::topology::spec`] has read and makes the plain structs that the rest of flatnet uses.
//!
//! Invariants: names and addresses are unique; node, pod and service networks are apart; each podCIDR lies in the pod
//! network and overlaps no other; a gateway is reachable.
//!
//! May depend on [`crate::topology::spec`].
//!
//! Read first: the picture in `README.md`.

use std::{collections::HashMap, fmt::Display, hash::Hash, net::Ipv4Addr};

use flatnet_agents::lease::NetworkConfig;
use flatnet_engine::pod::Image;
use flatnet_proxy::Ipv4Prefix;

use crate::topology::{
    Host, Interface, Node, Router, Topology,
    fields::Located,
    findings::{Finding, Place},
    links::LinkSpec,
    routes,
    spec::{Machine, Spec},
};

/// The pod network of a topology that names none.
const DEFAULT_POD_NETWORK: Ipv4Prefix = Ipv4Prefix::masked(Ipv4Addr::new(10, 1, 0, 0), 16);

/// The service network of a topology that names none.
const DEFAULT_SERVICE_NETWORK: Ipv4Prefix = Ipv4Prefix::masked(Ipv4Addr::new(10, 96, 0, 0), 12);

/// Checks a topology and makes its plain form; pods and Services are not in it yet.
pub(crate) fn check(spec: &Spec, findings: &mut Vec<Finding>) -> Topology {
    let pods = located(spec, spec.pod_network.as_ref(), DEFAULT_POD_NETWORK);
    let services = located(spec, spec.service_network.as_ref(), DEFAULT_SERVICE_NETWORK);
    check_networks(spec, &pods, &services, findings);
    check_subnets(spec, &pods, findings);
    check_machines(spec, findings);
    Topology {
        name: spec.name.clone(),
        pod_network: pods.value,
        service_network: services.value,
        backend: spec.backend,
        port: spec.port,
        nat: spec.nat,
        nat_quota: spec.nat_quota,
        routes: routes::check(spec, &pods, findings),
        nodes: spec.nodes.iter().filter_map(|machine| node(spec, machine)).collect(),
        hosts: spec.hosts.iter().filter_map(|machine| host(spec, machine)).collect(),
        routers: spec.routers.iter().map(router).collect(),
        links: spec.links.iter().flat_map(LinkSpec::directions).collect(),
        seed: spec.seed,
        time: spec.time,
        workers: spec.workers,
        poll: spec.poll,
        pods: Vec::new(),
        services: Vec::new(),
        slices: Vec::new(),
    }
}

/// Reports the second use of a value that must be unique, with the place of the first.
pub(crate) fn unique<T: Eq + Hash + Clone + Display>(
    seen: &mut HashMap<T, Place>,
    value: &T,
    place: &Place,
    what: &str,
    findings: &mut Vec<Finding>,
) {
    match seen.get(value) {
        Some(first) => findings.push(
            Finding::error(place.clone(), format!("{what} {value} is used twice"))
                .with("first here", first.clone()),
        ),
        None => {
            seen.insert(value.clone(), place.clone());
        }
    }
}

fn located(spec: &Spec, given: Option<&Located<Ipv4Prefix>>, default: Ipv4Prefix) -> Located<Ipv4Prefix> {
    given.cloned().unwrap_or_else(|| Located { value: default, place: spec.place.clone() })
}

fn check_networks(
    spec: &Spec,
    pods: &Located<Ipv4Prefix>,
    services: &Located<Ipv4Prefix>,
    findings: &mut Vec<Finding>,
) {
    if pods.value.overlaps(services.value) {
        let message = format!("serviceNetwork {} overlaps podNetwork {}", services.value, pods.value);
        findings.push(Finding::error(services.place.clone(), message).with("podNetwork", pods.place.clone()));
    }
    if let Err(error) = NetworkConfig::new(pods.value) {
        findings.push(Finding::error(pods.place.clone(), error.to_string()));
    }
    let mut seen: Vec<&Located<Interface>> = Vec::new();
    for address in machines(spec).flat_map(|machine| &machine.addresses) {
        let network = address.value.network;
        if seen.iter().any(|other| other.value.network == network) {
            continue;
        }
        for (name, other) in [("podNetwork", pods), ("serviceNetwork", services)] {
            if network.overlaps(other.value) {
                let message =
                    format!("network {network} of {} overlaps {name} {}", address.value.address, other.value);
                findings.push(Finding::error(address.place.clone(), message).with(name, other.place.clone()));
            }
        }
        if let Some(other) = seen.iter().find(|other| other.value.network.overlaps(network)) {
            let message = format!("network {network} overlaps {}", other.value.network);
            let finding =
                Finding::error(address.place.clone(), message).with("the other", other.place.clone());
            findings.push(finding.help("machines of one network must have the same length"));
        }
        seen.push(address);
    }
}

fn check_subnets(spec: &Spec, pods: &Located<Ipv4Prefix>, findings: &mut Vec<Finding>) {
    let mut seen: Vec<&Located<Ipv4Prefix>> = Vec::new();
    for subnet in spec.nodes.iter().filter_map(|node| node.pod_cidr.as_ref()) {
        if !pods.value.covers(subnet.value) {
            let message = format!("podCIDR {} is not in podNetwork {}", subnet.value, pods.value);
            findings
                .push(Finding::error(subnet.place.clone(), message).with("podNetwork", pods.place.clone()));
        }
        if let Some(other) = seen.iter().find(|other| other.value.overlaps(subnet.value)) {
            let message = format!("podCIDR {} overlaps {}", subnet.value, other.value);
            findings
                .push(Finding::error(subnet.place.clone(), message).with("the other", other.place.clone()));
        }
        seen.push(subnet);
    }
    // A network without a configuration is a finding already.
    let Ok(config) = NetworkConfig::new(pods.value) else { return };
    let step = 1u64 << (32 - config.subnet_len);
    let (first, last) = (u64::from(config.subnet_min.to_bits()), u64::from(config.subnet_max.to_bits()));
    let all = (first..=last).step_by(step as usize).filter_map(|bits| u32::try_from(bits).ok());
    let free = all.filter(|&bits| {
        let subnet = Ipv4Prefix::masked(Ipv4Addr::from_bits(bits), config.subnet_len);
        !seen.iter().any(|other| other.value.overlaps(subnet))
    });
    let without = spec.nodes.iter().filter(|node| node.pod_cidr.is_none());
    let free = free.take(without.clone().count()).count();
    for node in without.skip(free) {
        let message = format!("no subnet of podNetwork {} is left for node {}", pods.value, node.name.value);
        findings
            .push(Finding::error(node.name.place.clone(), message).with("podNetwork", pods.place.clone()));
    }
}

fn check_machines(spec: &Spec, findings: &mut Vec<Finding>) {
    let (mut names, mut addresses) = (HashMap::new(), HashMap::new());
    for machine in machines(spec) {
        unique(&mut names, &machine.name.value, &machine.name.place, "name", findings);
        for address in &machine.addresses {
            unique(&mut addresses, &address.value.address, &address.place, "address", findings);
        }
    }
    for machine in machines(spec) {
        let (Some(gateway), Some(own)) = (&machine.gateway, machine.addresses.first()) else { continue };
        let problem = if !own.value.network.contains(gateway.value) {
            format!(
                "gateway {} is not in the network {} of {}",
                gateway.value, own.value.network, machine.name.value
            )
        } else if !routers_in(spec, own.value.network).any(|address| address == gateway.value) {
            format!("gateway {} is no router's address", gateway.value)
        } else {
            continue;
        };
        findings.push(Finding::error(gateway.place.clone(), problem));
    }
}

fn machines(spec: &Spec) -> impl Iterator<Item = &Machine> {
    spec.nodes.iter().chain(&spec.hosts).chain(&spec.routers)
}

fn routers_in(spec: &Spec, network: Ipv4Prefix) -> impl Iterator<Item = Ipv4Addr> {
    let addresses = spec.routers.iter().flat_map(|router| &router.addresses);
    addresses.map(|address| address.value.address).filter(move |&address| network.contains(address))
}

/// The gateway that is written, else the first router of the machine's network.
fn gateway(spec: &Spec, machine: &Machine, own: Interface) -> Option<Ipv4Addr> {
    let given = machine.gateway.as_ref().map(|gateway| gateway.value);
    given.or_else(|| routers_in(spec, own.network).next())
}

fn node(spec: &Spec, machine: &Machine) -> Option<Node> {
    let interface = machine.addresses.first()?.value;
    Some(Node {
        name: machine.name.value.clone(),
        interface,
        gateway: gateway(spec, machine, interface),
        pod_cidr: machine.pod_cidr.as_ref().map(|subnet| subnet.value),
        underlay: machine.underlay,
        host: machine.host.clone(),
    })
}

fn host(spec: &Spec, machine: &Machine) -> Option<Host> {
    let interface = machine.addresses.first()?.value;
    Some(Host {
        name: machine.name.value.clone(),
        interface,
        gateway: gateway(spec, machine, interface),
        image: machine.image.unwrap_or(Image::Client),
    })
}

fn router(machine: &Machine) -> Router {
    Router {
        name: machine.name.value.clone(),
        interfaces: machine.addresses.iter().map(|address| address.value).collect(),
        services: machine.services,
        outside: machine.outside,
    }
}
