//! A Kubernetes Service and its EndpointSlices as the proxy's plain data. Pure.
//!
//! Called by [`crate::cluster`] for each Service that changed; the publisher puts the result into the proxy's table.
//!
//! Invariants: one proxy Service per port; backends are the ready endpoints by pod name, each address and port once,
//! known by the pod's identity; what cannot be converted is left out with a warning, the rest still stands.
//!
//! May depend on `flatnet-proxy`, `k8s-openapi`, [`crate::pods`].
//!
//! Read first: Service and EndpointSlice in Kubernetes' API reference.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use flatnet_proxy::{Backend, Frontend, NodePort, Protocol, Scheduler};
use k8s_openapi::api::{
    core::v1::{Service, ServicePort},
    discovery::v1::{Endpoint, EndpointSlice},
};

use crate::{objects, pods};

/// The annotation that chooses a scheduler: `rr` or `random`.
pub const SCHEDULER_ANNOTATION: &str = "flatnet.dev/scheduler";

/// One port of a Service, ready for the proxy's table but for its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// `namespace/name:port`.
    pub name: Arc<str>,
    /// How backends are chosen.
    pub scheduler: Scheduler,
    /// The ready pods, in the order of their names.
    pub backends: Arc<[Backend]>,
    /// The VIPs' ports that lead here; none if the Service is headless.
    pub frontends: Vec<Frontend>,
    /// The node ports that lead here.
    pub node_ports: Vec<NodePort>,
}

impl Converted {
    /// Makes the proxy's Service with an id.
    pub fn with_id(&self, id: u32) -> flatnet_proxy::Service {
        flatnet_proxy::Service {
            id,
            name: Arc::clone(&self.name),
            scheduler: self.scheduler,
            backends: Arc::clone(&self.backends),
        }
    }
}

/// Converts a Service with its slices; the second part says what was left out.
pub fn convert(service: &Service, slices: &[&EndpointSlice]) -> (Vec<Converted>, Vec<String>) {
    let mut warnings = Vec::new();
    let scheduler = scheduler(service, &mut warnings);
    let spec = service.spec.clone().unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") {
        return (Vec::new(), warnings);
    }
    let addresses = vips(spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()));
    let mut converted = Vec::new();
    for port in spec.ports.iter().flatten() {
        match protocol_and_number(port) {
            Ok((protocol, number)) => {
                let node_port =
                    port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|&port| port != 0);
                converted.push(Converted {
                    name: port_name(service, port).into(),
                    scheduler,
                    backends: backends(slices, port, protocol),
                    frontends: addresses
                        .iter()
                        .map(|&address| Frontend { address, port: number, protocol })
                        .collect(),
                    node_ports: node_port.map(|port| NodePort { port, protocol }).into_iter().collect(),
                });
            }
            Err(warning) => warnings.push(warning),
        }
    }
    (converted, warnings)
}

/// Hands out the small dense numbers that the proxy and the workers know Services by.
#[derive(Clone, Debug, Default)]
pub struct ServiceIds {
    ids: BTreeMap<Arc<str>, u32>,
    free: BTreeSet<u32>,
}

impl ServiceIds {
    /// Gives the id of a Service's port by name; a new name gets the smallest free one.
    pub fn assign(&mut self, name: &Arc<str>) -> u32 {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        let id = self.free.pop_first().unwrap_or(self.ids.len() as u32);
        self.ids.insert(Arc::clone(name), id);
        id
    }

    /// Takes the id back.
    pub fn release(&mut self, name: &str) -> Option<u32> {
        let id = self.ids.remove(name)?;
        self.free.insert(id);
        Some(id)
    }
}

fn scheduler(service: &Service, warnings: &mut Vec<String>) -> Scheduler {
    let text = service.metadata.annotations.as_ref().and_then(|all| all.get(SCHEDULER_ANNOTATION));
    match text.map(String::as_str) {
        None | Some("rr") => Scheduler::RoundRobin,
        Some("random") => Scheduler::Random,
        Some(other) => {
            warnings.push(format!(
                "{SCHEDULER_ANNOTATION} {other:?} is not known; rr and random are, rr is used"
            ));
            Scheduler::RoundRobin
        }
    }
}

fn vips<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<Ipv4Addr> {
    let mut addresses: Vec<Ipv4Addr> = Vec::new();
    for address in texts.filter_map(|text| text.parse().ok()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

fn port_name(service: &Service, port: &ServicePort) -> String {
    let label = port.name.clone().unwrap_or_else(|| port.port.to_string());
    format!("{}/{}:{label}", objects::namespace(service), objects::name(service))
}

fn protocol_and_number(port: &ServicePort) -> Result<(Protocol, u16), String> {
    let protocol = protocol(port.protocol.as_deref()).ok_or_else(|| {
        format!("port {} has protocol {:?}; only TCP and UDP are balanced", port.port, port.protocol)
    })?;
    let number = u16::try_from(port.port).ok().filter(|&number| number != 0);
    number
        .map(|number| (protocol, number))
        .ok_or_else(|| format!("port {} is not between 1 and 65535", port.port))
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some(_) => None,
    }
}

fn backends(slices: &[&EndpointSlice], port: &ServicePort, wanted: Protocol) -> Arc<[Backend]> {
    let wanted_name = port.name.as_deref().unwrap_or_default();
    let mut found: BTreeMap<(String, Ipv4Addr, u16), Backend> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        let ports = slice.ports.iter().flatten().filter(|port| {
            port.name.as_deref().unwrap_or_default() == wanted_name
                && protocol(port.protocol.as_deref()) == Some(wanted)
        });
        let numbers: Vec<u16> = ports.filter_map(|port| u16::try_from(port.port?).ok()).collect();
        for endpoint in slice.endpoints.iter().filter(|endpoint| is_ready(endpoint)) {
            for address in endpoint.addresses.iter().filter_map(|text| text.parse::<Ipv4Addr>().ok()) {
                let (name, identity) = target(endpoint, address);
                for &port in &numbers {
                    found.insert((name.clone(), address, port), Backend { address, port, identity });
                }
            }
        }
    }
    let mut seen = BTreeSet::new();
    found.into_values().filter(|backend| seen.insert((backend.address, backend.port))).collect()
}

/// Kubernetes reads an absent condition as ready.
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

/// Names an endpoint's pod and its identity; one without a pod goes by its address.
fn target(endpoint: &Endpoint, address: Ipv4Addr) -> (String, u64) {
    let target = endpoint.target_ref.as_ref();
    let name = target.and_then(|target| target.name.clone()).unwrap_or_default();
    let identity = target.and_then(|target| target.uid.as_deref()).filter(|uid| !uid.is_empty());
    (name, identity.map_or_else(|| pods::identity(&address.to_string()), pods::identity))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(mut spec: Value, annotations: Value) -> Service {
        spec["clusterIP"] = json!("10.96.0.10");
        serde_json::from_value(json!({"metadata": {"name": "web", "annotations": annotations}, "spec": spec}))
            .unwrap()
    }

    fn slice(ports: Value, endpoints: Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": "web-1"}, "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn endpoint(name: &str, address: &str, ready: Value) -> Value {
        json!({"addresses": [address], "conditions": {"ready": ready}, "targetRef": {"name": name, "uid": format!("uid-{name}")}})
    }

    fn addresses(converted: &Converted) -> Vec<String> {
        converted.backends.iter().map(|backend| format!("{}:{}", backend.address, backend.port)).collect()
    }

    #[test]
    fn each_port_becomes_a_service_with_ready_backends_by_pod_name() {
        let service = service(
            json!({"type": "NodePort", "clusterIPs": ["10.96.0.10"], "ports": [
                {"name": "http", "port": 80, "nodePort": 30_080},
                {"name": "echo-udp", "port": 7, "protocol": "UDP", "nodePort": 30_007},
            ]}),
            json!({"flatnet.dev/scheduler": "random"}),
        );
        let ports = json!([
            {"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "echo-udp", "port": 7, "protocol": "UDP"},
        ]);
        let slice = slice(
            ports,
            json!([
                endpoint("b", "10.1.15.2", json!(true)),
                endpoint("a", "10.1.20.2", json!(null)),
                endpoint("c", "10.1.15.4", json!(false)),
            ]),
        );
        let (converted, warnings) = convert(&service, &[&slice]);

        assert!(warnings.is_empty());
        assert_eq!(&*converted[0].name, "default/web:http");
        assert_eq!(addresses(&converted[0]), ["10.1.20.2:8080", "10.1.15.2:8080"]);
        assert_eq!(converted[0].backends[0].identity, pods::identity("uid-a"));
        assert_eq!(converted[0].scheduler, Scheduler::Random);
        assert_eq!(
            converted[0].frontends.iter().map(Frontend::to_string).collect::<Vec<_>>(),
            ["TCP 10.96.0.10:80"]
        );
        assert_eq!(converted[1].node_ports, [NodePort { port: 30_007, protocol: Protocol::Udp }]);
        assert_eq!(addresses(&converted[1]), ["10.1.20.2:7", "10.1.15.2:7"]);
    }

    #[test]
    fn unnamed_port_goes_by_its_number() {
        let service = service(json!({"ports": [{"port": 80}]}), json!({}));
        let slice =
            slice(json!([{"name": "", "port": 80}]), json!([endpoint("a", "10.1.15.2", json!(true))]));
        let (converted, _) = convert(&service, &[&slice]);
        assert_eq!(&*converted[0].name, "default/web:80");
        assert_eq!(addresses(&converted[0]), ["10.1.15.2:80"]);
    }

    #[test]
    fn headless_services_have_no_frontend_and_external_ones_do_not_exist() {
        let mut service = service(json!({"ports": [{"port": 80}]}), json!({}));
        let spec = service.spec.as_mut().unwrap();
        spec.cluster_ip = Some("None".into());
        assert!(convert(&service, &[]).0[0].frontends.is_empty());
        service.spec.as_mut().unwrap().type_ = Some("ExternalName".into());
        assert!(convert(&service, &[]).0.is_empty());
    }

    #[test]
    fn what_cannot_be_converted_is_said_and_the_rest_stands() {
        let ports = json!([{"name": "a", "port": 80, "protocol": "SCTP"}, {"name": "b", "port": 0}, {"name": "c", "port": 1}]);
        let service = service(json!({ "ports": ports }), json!({"flatnet.dev/scheduler": "best"}));
        let (converted, warnings) = convert(&service, &[]);
        assert_eq!(converted.len(), 1);
        assert_eq!(
            warnings,
            [
                "flatnet.dev/scheduler \"best\" is not known; rr and random are, rr is used",
                "port 80 has protocol Some(\"SCTP\"); only TCP and UDP are balanced",
                "port 0 is not between 1 and 65535",
            ]
        );
    }

    #[test]
    fn endpoints_without_a_pod_and_doubled_ones_count_once() {
        let service = service(json!({"ports": [{"port": 80}]}), json!({}));
        let slice = slice(
            json!([{"name": "", "port": 80}]),
            json!([{"addresses": ["192.0.2.1"]}, {"addresses": ["192.0.2.1"]}, {"addresses": ["fd00::1", "x"]}]),
        );
        assert_eq!(addresses(&convert(&service, &[&slice, &slice]).0[0]), ["192.0.2.1:80"]);
    }

    #[test]
    fn ids_are_dense_and_reused() {
        let mut ids = ServiceIds::default();
        let name = |text: &str| -> Arc<str> { text.into() };
        assert_eq!([ids.assign(&name("a")), ids.assign(&name("b")), ids.assign(&name("a"))], [0, 1, 0]);
        assert_eq!(ids.release("a"), Some(0));
        assert_eq!(ids.release("a"), None);
        assert_eq!([ids.assign(&name("c")), ids.assign(&name("d"))], [0, 2]);
    }
}
