//! The document `kind: Topology`: what machines there are and how they are connected.
//!
//! Read after YAML and before the checks across the whole ([`crate::topology::network`]).
//!
//! Invariants: whatever is returned has legal values by themselves; whether they fit together is not known yet.
//!
//! May depend on [`crate::topology::fields`].
//!
//! Read first: `docs/topology.md`.

use std::time::Duration;

use flatnet_agents::lease::config::DEFAULT_VNI;
use flatnet_engine::binding::Profile;
use flatnet_engine::pod::Image;
use flatnet_engine::tunnel::Encapsulation;
use flatnet_engine::wire::vxlan::VNI_LIMIT;
use flatnet_proxy::Ipv4Prefix;

use crate::impairment::duration;
use crate::topology::{
    BackendKind, HostAccess, Interface, TimeMode, Underlay,
    fields::{Fields, Located, address, boolean, interface, number, prefix, text},
    findings::{Finding, Place, listed},
    links::{LinkSpec, link},
    routes::{self, Route},
    values,
    yaml::Node,
};

/// The most workers that can be asked for.
const MOST_WORKERS: u64 = 64;
/// The most translated flows that one client can be given: all that a worker has.
const MOST_FLOWS: u64 = 1 << 18;

/// The document as written.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) place: Place,
    pub(crate) name: String,
    pub(crate) pod_network: Option<Located<Ipv4Prefix>>,
    pub(crate) service_network: Option<Located<Ipv4Prefix>>,
    pub(crate) backend: Option<Encapsulation>,
    pub(crate) port: u16,
    pub(crate) nat: Profile,
    pub(crate) nat_quota: Option<u32>,
    pub(crate) nodes: Vec<Machine>,
    pub(crate) routes: Vec<Route>,
    pub(crate) hosts: Vec<Machine>,
    pub(crate) routers: Vec<Machine>,
    pub(crate) links: Vec<LinkSpec>,
    pub(crate) seed: u64,
    pub(crate) time: Option<TimeMode>,
    pub(crate) workers: Option<u16>,
    pub(crate) poll: Duration,
}

/// A node, a host or a router.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) name: Located<String>,
    pub(crate) addresses: Vec<Located<Interface>>,
    pub(crate) gateway: Option<Located<std::net::Ipv4Addr>>,
    pub(crate) pod_cidr: Option<Located<Ipv4Prefix>>,
    pub(crate) image: Option<Image>,
    pub(crate) services: bool,
    pub(crate) outside: bool,
    pub(crate) underlay: Underlay,
    pub(crate) host: HostAccess,
}

/// Reads the document.
pub(crate) fn read(document: &Node, findings: &mut Vec<Finding>) -> Spec {
    let mut top = Fields::open(document, "the document", findings);
    top.node("apiVersion");
    top.node("kind");
    let name = top.node("metadata").and_then(|node| metadata(node, top.findings));
    let spec = top.required("spec", |node| Ok(node.clone())).map(|spec| spec.value);
    top.close();
    let empty = Node { value: crate::topology::yaml::Value::Null, place: document.place.clone() };
    let mut fields = Fields::open(spec.as_ref().unwrap_or(&empty), "spec", findings);
    let udp = (Some(Encapsulation::Udp), BackendKind::Udp.default_port());
    let (backend, port) = fields.node("backend").map_or(udp, |node| read_backend(node, fields.findings));
    if fields.node("nodes").is_none_or(|nodes| nodes.items().is_empty()) {
        fields.findings.push(Finding::error(document.place.clone(), "the topology has no nodes"));
    }
    let result = Spec {
        place: document.place.clone(),
        name: name.unwrap_or_else(|| "flatnet".into()),
        pod_network: fields.optional("podNetwork", prefix),
        service_network: fields.optional("serviceNetwork", prefix),
        backend,
        port,
        nat: fields.optional("nat", nat).map_or(Profile::Linux, |nat| nat.value),
        nat_quota: fields
            .optional("natQuota", |node| number(node, 1, MOST_FLOWS))
            .and_then(|quota| u32::try_from(quota.value).ok()),
        nodes: machines(&mut fields, "nodes", node),
        routes: fields.node("routes").map(|node| routes::read(node, fields.findings)).unwrap_or_default(),
        hosts: machines(&mut fields, "hosts", host),
        routers: machines(&mut fields, "routers", router),
        links: machines(&mut fields, "links", link),
        seed: fields.optional("seed", |node| number(node, 0, u64::MAX)).map_or(0, |seed| seed.value),
        time: fields.optional("time", time).map(|time| time.value),
        workers: fields.optional("workers", workers).map(|workers| workers.value),
        poll: fields.optional("poll", poll).map_or(Duration::ZERO, |poll| poll.value),
    };
    fields.close();
    result
}

fn metadata(node: &Node, findings: &mut Vec<Finding>) -> Option<String> {
    let mut fields = Fields::open(node, "metadata", findings);
    let name = fields.optional("name", name);
    fields.close();
    name.map(|name| name.value)
}

fn nat(node: &Node) -> Result<Profile, String> {
    match text(node)?.as_str() {
        "linux" => Ok(Profile::Linux),
        "rfc" => Ok(Profile::Rfc),
        other => Err(format!("{other:?} is not a way to translate; linux and rfc are")),
    }
}

fn read_backend(node: &Node, findings: &mut Vec<Finding>) -> (Option<Encapsulation>, u16) {
    let mut fields = Fields::open(node, "backend", findings);
    let kind = fields.optional("type", |node| values::backend(&text(node)?));
    let kind = kind.map(|kind| kind.value).unwrap_or_default();
    let (port, vni) = (fields.optional("port", port), fields.optional("vni", vni));
    let number = vni.as_ref().map_or(DEFAULT_VNI, |vni| vni.value);
    let encapsulation = match kind {
        BackendKind::Udp => Some(Encapsulation::Udp),
        BackendKind::Vxlan => Some(Encapsulation::Vxlan { vni: number }),
        BackendKind::HostGw => None,
    };
    if let Some(vni) = vni.filter(|_| kind != BackendKind::Vxlan) {
        fields.findings.push(Finding::error(vni.place, "vni: only vxlan has networks by number"));
    }
    let port = match port {
        Some(port) if kind == BackendKind::HostGw => {
            let message = "port: host-gw has no tunnel, and so no port";
            fields.findings.push(Finding::error(port.place, message));
            0
        }
        port => port.map_or(kind.default_port(), |port| port.value),
    };
    fields.close();
    (encapsulation, port)
}

/// Reads the number of a VXLAN.
pub(crate) fn vni(node: &Node) -> Result<u32, String> {
    number(node, 0, u64::from(VNI_LIMIT) - 1).map(|vni| vni as u32)
}

/// Reads each item of a list; those that miss something essential are reported and left out.
fn machines<T>(
    fields: &mut Fields<'_, '_>,
    list: &'static str,
    read: impl Fn(&Node, &mut Vec<Finding>) -> Option<T>,
) -> Vec<T> {
    let items = fields.list(list);
    items.iter().filter_map(|item| read(item, fields.findings)).collect()
}

fn node(item: &Node, findings: &mut Vec<Finding>) -> Option<Machine> {
    let mut fields = Fields::open(item, "a node", findings);
    let name = fields.required("name", name);
    let address_ = fields.required("address", interface);
    let pod_cidr = fields.optional("podCIDR", |node| values::subnet(&text(node)?));
    let gateway = fields.optional("gateway", address);
    let underlay = fields.optional("underlay", underlay).map(|underlay| underlay.value);
    let host = host_access(&mut fields, underlay.unwrap_or_default());
    fields.close();
    Some(Machine {
        gateway,
        pod_cidr,
        underlay: underlay.unwrap_or_default(),
        host,
        ..machine(name?, vec![address_?])
    })
}

/// Reads what a node has of the host.
fn host_access(fields: &mut Fields<'_, '_>, underlay: Underlay) -> HostAccess {
    let port = fields.optional("hostPort", |node| values::interface_name(&text(node)?));
    let uplink = fields.optional("uplink", boolean);
    let ports = fields.optional("masqueradePorts", |node| values::port_range(&text(node)?));
    let places = [
        port.as_ref().map(|it| &it.place),
        uplink.as_ref().map(|it| &it.place),
        ports.as_ref().map(|it| &it.place),
    ];
    if underlay != Underlay::Socket {
        for place in places.into_iter().flatten() {
            let finding = Finding::error(place.clone(), "only a node on the host's own network has that");
            fields.findings.push(finding.help("`underlay: socket` puts it there"));
        }
    }
    HostAccess {
        port: port.map(|it| it.value),
        uplink: uplink.is_some_and(|it| it.value),
        masquerade_ports: ports.map(|it| it.value),
    }
}

fn underlay(node: &Node) -> Result<Underlay, String> {
    match text(node)?.as_str() {
        "switch" => Ok(Underlay::Switch),
        "socket" => Ok(Underlay::Socket),
        other => Err(format!("{other:?} is not what a node can be on; switch and socket are")),
    }
}

fn machine(name: Located<String>, addresses: Vec<Located<Interface>>) -> Machine {
    Machine {
        name,
        addresses,
        gateway: None,
        pod_cidr: None,
        image: None,
        services: false,
        outside: false,
        underlay: Underlay::Switch,
        host: HostAccess::default(),
    }
}

fn host(item: &Node, findings: &mut Vec<Finding>) -> Option<Machine> {
    let mut fields = Fields::open(item, "a host", findings);
    let name = fields.required("name", name);
    let address_ = fields.required("address", interface);
    let gateway = fields.optional("gateway", address);
    let image = fields.optional("image", image).map(|image| image.value);
    fields.close();
    Some(Machine { gateway, image, ..machine(name?, vec![address_?]) })
}

fn image(node: &Node) -> Result<Image, String> {
    let name = text(node)?;
    Image::find(&name).ok_or_else(|| format!("{name:?} is not known; there are {}", listed(Image::names())))
}

fn router(item: &Node, findings: &mut Vec<Finding>) -> Option<Machine> {
    let mut fields = Fields::open(item, "a router", findings);
    let name = fields.required("name", name);
    let mut addresses = Vec::new();
    for node in fields.list("addresses") {
        match interface(node) {
            Ok(value) => addresses.push(Located { value, place: node.place.clone() }),
            Err(message) => {
                fields.findings.push(Finding::error(node.place.clone(), format!("addresses: {message}")));
            }
        }
    }
    if addresses.is_empty() {
        fields.findings.push(Finding::error(item.place.clone(), "a router has no addresses"));
    }
    let services = fields.optional("services", boolean).is_some_and(|services| services.value);
    let outside = fields.optional("outside", boolean).filter(|outside| outside.value);
    if let Some(Located { place, .. }) = outside.as_ref().filter(|_| services || addresses.len() > 1) {
        let finding = Finding::error(place.clone(), "the way outside is in one network, and serves no VIPs");
        fields.findings.push(finding.help("what is behind it are this host's own networks"));
    }
    fields.close();
    Some(Machine { services, outside: outside.is_some(), ..machine(name?, addresses) })
}

fn time(node: &Node) -> Result<TimeMode, String> {
    match text(node)?.as_str() {
        "virtual" => Ok(TimeMode::Virtual),
        "real" => Ok(TimeMode::Real),
        other => Err(format!("{other:?} is neither virtual nor real")),
    }
}

fn name(node: &Node) -> Result<String, String> {
    values::name(&text(node)?)
}

/// Reads a number of workers.
pub(crate) fn workers(node: &Node) -> Result<u16, String> {
    number(node, 1, MOST_WORKERS).map(|workers| workers as u16)
}

/// Reads for how long workers look for work before they sleep.
pub(crate) fn poll(node: &Node) -> Result<Duration, String> {
    duration(&text(node)?)
}

/// Reads the port of a tunnel.
pub(crate) fn port(node: &Node) -> Result<u16, String> {
    values::port(&number(node, 1, 65_535)?.to_string())
}
