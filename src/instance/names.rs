//! Names as a client of the cluster says them, and the addresses that they stand for.
//!
//! `relays` asks for each connection. Invariant: a name stands for what has it now; a Service comes before a pod of the same name.
//!
//! May depend on agents. Read first: the Kubernetes DNS specification (`kubernetes/dns`), 2.

use std::net::Ipv4Addr;

use flatnet_agents::Store as _;
use flatnet_agents::objects::{self, DEFAULT_NAMESPACE};
use futures::executor::block_on;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::Instance;

/// The cluster's domain, with what follows a namespace.
const SERVICE: [&str; 2] = [".svc.cluster.local", ".svc"];
/// What follows the namespace of a pod's address.
const POD: [&str; 2] = [".pod.cluster.local", ".pod"];
/// The label by which slices name their Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A name as it is written, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    /// An address.
    Address(Ipv4Addr),
    /// A Service and nothing else.
    Service { namespace: String, name: String },
    /// A Service or a pod, in the order to try; if none is there, a host or node of the whole name.
    Short { candidates: Vec<(String, String)>, whole: String },
}

impl Instance {
    /// Finds the address that a name stands for: an IPv4 address; a Service, by its VIP (or a ready backend, if it has none); a pod; a host or
    /// node. Services and pods are named `NAME`, `NAME.NAMESPACE`, `NAMESPACE/NAME`; Services as in the cluster's DNS, too.
    pub fn address_of(&self, name: &str) -> Option<Ipv4Addr> {
        match parse(name) {
            Name::Address(address) => Some(address),
            Name::Service { namespace, name } => self.service(&namespace, &name),
            Name::Short { candidates, whole } => {
                let publisher = &self.drive.network.publisher;
                let services = candidates.iter().map(|(namespace, name)| self.service(namespace, name));
                let pods = candidates.iter().map(|(namespace, name)| {
                    publisher.place(&objects::pod_name(namespace, name)).map(|place| place.address)
                });
                let host = || publisher.place(&whole).map(|place| place.address);
                services.chain(pods).flatten().next().or_else(host).or_else(|| self.node_address(&whole))
            }
        }
    }

    /// Lists the names of all that has one, the shortest of each.
    pub fn known_names(&self) -> Vec<String> {
        let services = block_on(objects::list::<Service>(&self.drive.network.store)).unwrap_or_default();
        let services = services
            .iter()
            .map(|service| objects::pod_name(objects::namespace(service), objects::name(service)));
        let publisher = &self.drive.network.publisher;
        let machines = publisher.places().map(|(name, _)| name.to_owned());
        let nodes = publisher.nodes().into_iter().map(|(name, _)| name);
        let mut known: Vec<String> =
            services.chain(machines).chain(nodes.filter(|name| !name.contains('/'))).collect();
        known.sort();
        known.dedup();
        known
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Ipv4Addr> {
        let store = &self.drive.network.store;
        let entry = block_on(store.get(&objects::key::<Service>(namespace, name))).ok()??;
        let service: Service = objects::decode(&entry).ok()?;
        let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.clone());
        match address.as_deref() {
            Some("None") => {
                let slices: Vec<EndpointSlice> = block_on(objects::list(store)).ok()?;
                first_backend(&slices, namespace, name)
            }
            Some(address) => address.parse().ok(),
            None => None,
        }
    }

    fn node_address(&self, name: &str) -> Option<Ipv4Addr> {
        let publisher = &self.drive.network.publisher;
        let tables = publisher.control.tables.current();
        Some(tables.node(publisher.node(name)?)?.interfaces.first()?.address)
    }
}

/// Returns the first backend of a Service that takes connections.
fn first_backend(slices: &[EndpointSlice], namespace: &str, name: &str) -> Option<Ipv4Addr> {
    let own = slices.iter().filter(|slice| {
        let label = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
        objects::namespace(*slice) == namespace && label.is_some_and(|service| service == name)
    });
    own.flat_map(|slice| &slice.endpoints)
        .filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        })
        .flat_map(|endpoint| &endpoint.addresses)
        .find_map(|address| address.parse().ok())
}

fn parse(name: &str) -> Name {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    if let Ok(address) = name.parse() {
        return Name::Address(address);
    }
    let before = |suffixes: &[&str]| suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
    if let Some((service, namespace)) = before(&SERVICE).and_then(|rest| rest.split_once('.')) {
        return Name::Service { namespace: namespace.to_owned(), name: service.to_owned() };
    }
    let address =
        before(&POD).and_then(|rest| rest.split_once('.')).map(|(dashed, _)| dashed.replace('-', "."));
    if let Some(address) = address.and_then(|address| address.parse().ok()) {
        return Name::Address(address);
    }
    let mut candidates = match name.split_once('/') {
        Some((namespace, name)) => vec![(namespace.to_owned(), name.to_owned())],
        None => vec![(DEFAULT_NAMESPACE.to_owned(), name.clone())],
    };
    if let Some((name, namespace)) = name.rsplit_once('.') {
        candidates.push((namespace.to_owned(), name.to_owned()));
    }
    Name::Short { candidates, whole: name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_taken_apart_as_clients_of_a_cluster_say_them() {
        let short = |all: &[(&str, &str)], whole: &str| Name::Short {
            candidates: all.iter().map(|&(a, b)| (a.to_owned(), b.to_owned())).collect(),
            whole: whole.to_owned(),
        };
        let service = |namespace: &str, name: &str| Name::Service {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        for (text, expected) in [
            ("10.1.15.3", Name::Address([10, 1, 15, 3].into())),
            ("10-1-15-3.shop.pod.cluster.local", Name::Address([10, 1, 15, 3].into())),
            ("web", short(&[("default", "web")], "web")),
            ("Web.", short(&[("default", "web")], "web")),
            ("web.shop", short(&[("default", "web.shop"), ("shop", "web")], "web.shop")),
            ("shop/web", short(&[("shop", "web")], "shop/web")),
            ("web.shop.svc", service("shop", "web")),
            ("web.shop.svc.cluster.local", service("shop", "web")),
            ("WEB.shop.svc.cluster.local.", service("shop", "web")),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn a_service_without_a_vip_is_its_first_ready_backend() {
        let slice = |service: &str, endpoints| {
            serde_json::from_value(json!({
                "metadata": {"name": "x", "labels": {"kubernetes.io/service-name": service}},
                "addressType": "IPv4", "endpoints": endpoints,
            }))
            .unwrap()
        };
        let slices = [
            slice("other", json!([{"addresses": ["10.1.15.9"]}])),
            slice(
                "web",
                json!([
                    {"addresses": ["10.1.15.2"], "conditions": {"ready": false}},
                    {"addresses": ["10.1.15.3"], "conditions": {"ready": true}},
                ]),
            ),
        ];
        assert_eq!(first_backend(&slices, "default", "web"), Some([10, 1, 15, 3].into()));
        assert_eq!(first_backend(&slices, "shop", "web"), None);
    }
}
