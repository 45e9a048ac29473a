//! Whether Pods and Services fit each other, and the machines.
//!
//! The last check; it runs also when earlier ones found errors, so that all findings come at once.
//!
//! Invariants: names, pod addresses, VIPs and NodePorts are unique; a pod's address lies in its node's subnet, or in some
//! node's if it is bound to none, as far as subnets are known before leases are; ports are ports. An unknown image, two
//! containers on one port and a Service that selects nothing are warnings: the network comes up, and shows it.
//!
//! May depend on [`crate::topology::manifests`], [`crate::topology::policies`] and [`crate::topology::volumes`].
//!
//! Read first: `docs/topology.md`.
//!
//! Above 400 lines because Pods and Services are checked against each other.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
};

use flatnet_agents::{
    controllers::{endpoints::selects, service_ip::NODE_PORTS},
    ipam::is_pod_address,
    lease::NetworkConfig,
    objects::{self, Object},
    pods::{self, ADDRESS_ANNOTATION, ATTACH_ANNOTATION, MAC_ANNOTATION, PodKind, VIP_ANNOTATION},
    services::{FORWARDING_ANNOTATION, SCHEDULER_ANNOTATION, WEIGHT_ANNOTATION},
};
use flatnet_engine::pod::{Image, Transport};
use flatnet_proxy::Ipv4Prefix;
use k8s_openapi::api::core::v1::{Container, Pod, Service, ServicePort};

use crate::topology::{
    self, Topology,
    findings::{Finding, Place, listed},
    manifests::{Documents, Manifest},
    network::unique,
    policies, real, slices, volumes,
    yaml::Node,
};

/// The annotations of a Pod that have an effect.
const POD_ANNOTATIONS: &[&str] =
    &[ADDRESS_ANNOTATION, ATTACH_ANNOTATION, MAC_ANNOTATION, VIP_ANNOTATION, WEIGHT_ANNOTATION];
/// The annotations of flatnet begin so.
const ANNOTATIONS: &str = "flatnet.dev/";

/// Why an address in a subnet may still be none for pods.
const RESERVED: &str = "the first two addresses and the last of a subnet are flannel0, docker0 and broadcast";

/// Checks all objects; without a topology, only against each other.
pub(crate) fn check(documents: &Documents, topology: Option<&Topology>, findings: &mut Vec<Finding>) {
    let mut names = HashMap::new();
    let mut addresses = HashMap::new();
    let mut attached = HashMap::new();
    for pod in &documents.pods {
        check_name(pod, &mut names, findings);
        check_machine_name(pod, topology, findings);
        check_annotations(pod, POD_ANNOTATIONS, findings);
        policies::check_pod(pod, findings);
        real::check(pod, &mut attached, findings);
        check_containers(pod, findings);
        volumes::check(pod, findings);
        check_pod_address(pod, topology, &mut addresses, findings);
    }
    let mut vips = HashMap::new();
    let mut node_ports = HashMap::new();
    for service in &documents.services {
        check_name(service, &mut names, findings);
        check_annotations(service, &[FORWARDING_ANNOTATION, SCHEDULER_ANNOTATION], findings);
        policies::check_service(service, findings);
        check_vip(service, topology, &mut vips, findings);
        check_service_ports(service, &mut node_ports, findings);
        check_selector(service, &documents.pods, findings);
    }
    for slice in &documents.slices {
        check_name(slice, &mut names, findings);
        slices::check(slice, findings);
    }
}

fn check_name<T: Object>(
    manifest: &Manifest<T>,
    names: &mut HashMap<String, Place>,
    findings: &mut Vec<Finding>,
) {
    match objects::key_of(&manifest.object) {
        Ok(_) => {
            let name =
                format!("{}/{}", objects::namespace(&manifest.object), objects::name(&manifest.object));
            let place = manifest.node.place_of(&["metadata", "name"]);
            unique(names, &format!("{} {name}", T::KIND), place, "the name of", findings);
        }
        Err(error) => findings
            .push(Finding::error(manifest.node.place_of(&["metadata", "name"]).clone(), error.to_string())),
    }
}

/// Commands and hops name a pod of the default namespace by its name alone: no machine may have it.
fn check_machine_name(pod: &Manifest<Pod>, topology: Option<&Topology>, findings: &mut Vec<Finding>) {
    let name = objects::name(&pod.object);
    let Some(topology) = topology.filter(|_| objects::namespace(&pod.object) == "default") else { return };
    let machines = topology.nodes.iter().map(|node| ("node", &node.name));
    let machines = machines.chain(topology.hosts.iter().map(|host| ("host", &host.name)));
    let machines = machines.chain(topology.routers.iter().map(|router| ("router", &router.name)));
    for (kind, _) in machines.filter(|(_, other)| *other == name) {
        let place = pod.node.place_of(&["metadata", "name"]).clone();
        findings.push(Finding::error(place, format!("a {kind} is named {name} already")));
    }
}

fn check_annotations<T: Object>(manifest: &Manifest<T>, known: &[&str], findings: &mut Vec<Finding>) {
    let annotations = manifest.node.get("metadata").and_then(|metadata| metadata.get("annotations"));
    for (key, _) in annotations.iter().flat_map(|annotations| annotations.entries()) {
        if key.name.starts_with(ANNOTATIONS) && !known.contains(&key.name.as_str()) {
            let message = format!("annotation {} of a {} is not supported yet", key.name, T::KIND);
            findings.push(
                Finding::error(key.place.clone(), message)
                    .help(format!("supported are {}", known.join(", "))),
            );
        }
    }
}

fn check_containers(pod: &Manifest<Pod>, findings: &mut Vec<Finding>) {
    let containers: &[Container] = pod.object.spec.as_ref().map_or(&[], |spec| &spec.containers);
    if containers.is_empty() {
        findings.push(Finding::error(
            pod.node.place_of(&["spec", "containers"]).clone(),
            "a pod needs a container",
        ));
    }
    let mut names = HashMap::new();
    let mut ports: BTreeMap<(i32, &str), (&str, Place)> = BTreeMap::new();
    let items = pod.node.get("spec").and_then(|spec| spec.get("containers")).map_or(&[][..], Node::items);
    for (container, node) in containers.iter().zip(items) {
        if objects::is_dns_name(&container.name) {
            unique(&mut names, &container.name, node.place_of(&["name"]), "container name", findings);
        } else {
            let message = format!("container name {:?} is not a name", container.name);
            findings.push(Finding::error(node.place_of(&["name"]).clone(), message));
        }
        if pods::kind(&pod.object) != PodKind::Real {
            check_image(container, node, findings);
        }
        for (key, place) in wanted_ports(container, node, findings) {
            match ports.get(&key) {
                Some((other, first)) if *other != container.name => {
                    let message = format!(
                        "containers {other} and {} of one pod both ask for port {}/{}",
                        container.name, key.0, key.1
                    );
                    let finding = Finding::warning(place.clone(), message).with("first here", first.clone());
                    findings.push(finding.help("the second one to start will find the address in use"));
                }
                Some(_) => {}
                None => {
                    ports.insert(key, (&container.name, place));
                }
            }
        }
    }
}

/// Returns what a container listens on and where that is said: its ports, or its image's own.
fn wanted_ports<'a>(
    container: &'a Container,
    node: &Node,
    findings: &mut Vec<Finding>,
) -> Vec<((i32, &'a str), Place)> {
    let mut wanted = Vec::new();
    let nodes = node.get("ports").map_or(&[][..], Node::items);
    for (port, node) in container.ports.iter().flatten().zip(nodes) {
        let place = node.place_of(&["containerPort"]);
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        check_protocol(protocol, node.place_of(&["protocol"]), findings);
        if check_port(port.container_port, place, "containerPort", findings) {
            wanted.push(((port.container_port, protocol), place.clone()));
        }
    }
    // Arguments may say otherwise, and a command is another program.
    let image = container.image.as_deref().and_then(Image::find);
    if nodes.is_empty() && container.command.is_none() && container.args.is_none() {
        let own = image.map_or(&[][..], Image::ports).iter().map(|&(transport, port)| {
            let protocol = if transport == Transport::Tcp { "TCP" } else { "UDP" };
            ((port.into(), protocol), node.place_of(&["image"]).clone())
        });
        wanted.extend(own);
    }
    wanted
}

fn check_image(container: &Container, node: &Node, findings: &mut Vec<Finding>) {
    let image = container.image.as_deref().unwrap_or_default();
    if image.is_empty() {
        let message = format!("container {:?} has no image", container.name);
        findings.push(Finding::error(node.place.clone(), message));
    } else if Image::find(image).is_none() {
        let message = format!("image {image} is not known: container {} will not start", container.name);
        findings.push(
            Finding::warning(node.place_of(&["image"]).clone(), message)
                .help(format!("there are {}", listed(Image::names()))),
        );
    }
}

fn check_pod_address(
    pod: &Manifest<Pod>,
    topology: Option<&Topology>,
    addresses: &mut HashMap<Ipv4Addr, Place>,
    findings: &mut Vec<Finding>,
) {
    let node_place = pod.node.place_of(&["spec", "nodeName"]);
    let bound = pods::node_name(&pod.object);
    let node = topology
        .zip(bound)
        .map(|(topology, name)| (topology, topology.nodes.iter().find(|node| node.name == name)));
    if let Some((topology, None)) = node {
        let known = listed(topology.nodes.iter().map(|node| node.name.as_str()));
        let message = format!("nodeName {} is no node of the topology", bound.unwrap_or_default());
        findings.push(Finding::error(node_place.clone(), message).help(format!("known are {known}")));
    }
    let place = pod.node.place_of(&["metadata", "annotations", ADDRESS_ANNOTATION]);
    let address = match pods::wished_address(&pod.object) {
        Ok(None) => return,
        Ok(Some(address)) => address,
        Err(text) => {
            findings.push(Finding::error(place.clone(), format!("{text:?} is not an IPv4 address")));
            return;
        }
    };
    unique(addresses, &address, place, "pod address", findings);
    let Some(topology) = topology else { return };
    let finding = |message: String| Finding::error(place.clone(), message);
    if !topology.pod_network.contains(address) {
        findings.push(finding(format!("address {address} is not in podNetwork {}", topology.pod_network)));
    } else if let Some((_, node)) = node {
        // A node that does not exist is a finding already.
        if let Some(node) = node.filter(|node| !may_have(topology, node, address)) {
            let message = format!("address {address} is not one for pods of {}", subnet_of(node));
            findings.push(finding(message).with("bound here", node_place.clone()).help(RESERVED));
        }
    } else if !topology.nodes.iter().any(|node| may_have(topology, node, address)) {
        let subnets: Vec<String> = topology.nodes.iter().map(subnet_of).collect();
        let message = format!("address {address} is not one for pods of any node");
        findings.push(finding(message).help(format!("there are {}; {RESERVED}", subnets.join(", "))));
    }
}

/// Says whether an address is one for pods of a node: of its podCIDR, or of a subnet that it could lease if it names none.
fn may_have(topology: &Topology, node: &topology::Node, address: Ipv4Addr) -> bool {
    if let Some(subnet) = node.pod_cidr {
        return is_pod_address(subnet, address);
    }
    // A network without a configuration is a finding already.
    let Ok(config) = NetworkConfig::new(topology.pod_network) else { return true };
    let subnet = Ipv4Prefix::masked(address, config.subnet_len);
    let taken = topology.nodes.iter().filter_map(|other| other.pod_cidr).any(|other| other.overlaps(subnet));
    config.fits(subnet) && !taken && is_pod_address(subnet, address)
}

/// Names a node and its subnet.
fn subnet_of(node: &topology::Node) -> String {
    node.pod_cidr.map_or_else(
        || format!("{} (any subnet that no other node names)", node.name),
        |subnet| format!("{} ({subnet})", node.name),
    )
}

fn check_vip(
    service: &Manifest<Service>,
    topology: Option<&Topology>,
    vips: &mut HashMap<Ipv4Addr, Place>,
    findings: &mut Vec<Finding>,
) {
    let Some(spec) = &service.object.spec else {
        findings.push(Finding::error(service.node.place.clone(), "the Service has no spec"));
        return;
    };
    let kind_place = service.node.place_of(&["spec", "type"]);
    match spec.type_.as_deref() {
        None | Some("ClusterIP" | "NodePort") => {}
        Some(other @ ("LoadBalancer" | "ExternalName")) => {
            findings.push(Finding::error(kind_place.clone(), format!("type {other} is not supported yet")));
        }
        Some(other) => {
            findings.push(Finding::error(kind_place.clone(), format!("{other:?} is not a type of Service")))
        }
    }
    let place = service.node.place_of(&["spec", "clusterIP"]);
    let Some(text) = spec.cluster_ip.as_deref().filter(|text| !matches!(*text, "" | "None")) else { return };
    let Ok(vip) = text.parse::<Ipv4Addr>() else {
        findings.push(Finding::error(place.clone(), format!("clusterIP {text:?} is not an IPv4 address")));
        return;
    };
    unique(vips, &vip, place, "clusterIP", findings);
    let network = topology.map(|topology| topology.service_network);
    if let Some(network) =
        network.filter(|network| !network.contains(vip) || vip == network.address() || vip == network.last())
    {
        let message = format!("clusterIP {vip} is not one for Services of {network}");
        findings.push(Finding::error(place.clone(), message));
    }
}

fn check_service_ports(
    service: &Manifest<Service>,
    node_ports: &mut HashMap<i32, Vec<NodePortClaim>>,
    findings: &mut Vec<Finding>,
) {
    let ports: &[ServicePort] =
        service.object.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let nodes = service.node.get("spec").and_then(|spec| spec.get("ports")).map_or(&[][..], Node::items);
    let headless = service.object.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None");
    if ports.is_empty() && !headless {
        findings.push(Finding::error(
            service.node.place_of(&["spec", "ports"]).clone(),
            "a Service needs a port",
        ));
    }
    let (mut names, mut keys) = (HashMap::new(), HashMap::new());
    for (port, node) in ports.iter().zip(nodes) {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        check_protocol(protocol, node.place_of(&["protocol"]), findings);
        let place = node.place_of(&["port"]);
        if check_port(port.port, place, "port", findings) {
            unique(&mut keys, &format!("{}/{protocol}", port.port), place, "port", findings);
        }
        match &port.name {
            Some(name) => unique(&mut names, name, node.place_of(&["name"]), "port name", findings),
            None if ports.len() > 1 => {
                findings
                    .push(Finding::error(node.place.clone(), "ports need names when a Service has several"));
            }
            None => {}
        }
        if let Some(number) = port.node_port.filter(|&number| number != 0) {
            let claim = NodePortClaim {
                service: format!(
                    "{}/{}",
                    objects::namespace(&service.object),
                    objects::name(&service.object)
                ),
                protocol: protocol.to_owned(),
                place: node.place_of(&["nodePort"]).clone(),
            };
            check_node_port(number, claim, node_ports, findings);
        }
    }
}

/// Who names a NodePort, and where.
struct NodePortClaim {
    service: String,
    protocol: String,
    place: Place,
}

/// A Service may have a number for both protocols; of two Services only one can have it, as in Kubernetes.
fn check_node_port(
    number: i32,
    claim: NodePortClaim,
    claims: &mut HashMap<i32, Vec<NodePortClaim>>,
    findings: &mut Vec<Finding>,
) {
    if !u16::try_from(number).is_ok_and(|number| NODE_PORTS.contains(&number)) {
        let message =
            format!("nodePort {number} is not between {} and {}", NODE_PORTS.start(), NODE_PORTS.end());
        findings.push(Finding::error(claim.place, message));
        return;
    }
    let others = claims.entry(number).or_default();
    let holder = others.iter().find(|it| it.service != claim.service || it.protocol == claim.protocol);
    if let Some(holder) = holder {
        let message = format!("nodePort {number} is Service {}'s already", holder.service);
        findings.push(Finding::error(claim.place.clone(), message).with("first here", holder.place.clone()));
    }
    others.push(claim);
}

fn check_selector(service: &Manifest<Service>, pods: &[Manifest<Pod>], findings: &mut Vec<Finding>) {
    let selector = service.node.get("spec").and_then(|spec| spec.get("selector"));
    let Some(selector) = selector.filter(|selector| !selector.entries().is_empty()) else { return };
    let namespace = objects::namespace(&service.object);
    let selected = pods
        .iter()
        .any(|pod| objects::namespace(&pod.object) == namespace && selects(&service.object, &pod.object));
    if !selected {
        let message = format!("Service {} selects no pod", objects::name(&service.object));
        findings.push(Finding::warning(selector.place.clone(), message));
    }
}

/// Says whether a number is a port. One that could not be read stands as 0, and as a finding at its place already.
pub(crate) fn check_port(number: i32, place: &Place, what: &str, findings: &mut Vec<Finding>) -> bool {
    let is_port = (1..=65_535).contains(&number);
    if !is_port && !findings.iter().any(|finding| finding.place().is(place)) {
        findings.push(Finding::error(place.clone(), format!("{what} {number} is not between 1 and 65535")));
    }
    is_port
}

pub(crate) fn check_protocol(protocol: &str, place: &Place, findings: &mut Vec<Finding>) {
    match protocol {
        "TCP" | "UDP" => {}
        "SCTP" => findings.push(Finding::error(place.clone(), "protocol SCTP is not supported yet")),
        other => findings
            .push(Finding::error(place.clone(), format!("{other:?} is not a protocol; TCP and UDP are"))),
    }
}
