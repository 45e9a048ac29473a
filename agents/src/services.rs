//! A Kubernetes Service and its EndpointSlices as the proxy's plain data. Pure.
//!
//! Called by [`crate::cluster`] for each Service that changed; the publisher puts the result into the proxy's table.
//!
//! Invariants: one proxy Service per port; backends are the ready endpoints, and those that end but still serve, by pod
//! name, each address and port once, known by the pod's identity; what cannot be converted is left out with a warning,
//! the rest still stands.
//!
//! May depend on `flatnet-proxy`, `k8s-openapi`, [`crate::pods`].
//!
//! Read first: Service and EndpointSlice in Kubernetes' API reference.
//!
//! Above 400 lines because half of it are tests that read best beside the rules they hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use flatnet_proxy::{Backend, Forwarding, Frontend, NodePort, Protocol, Scheduler, TrafficPolicy};
use k8s_openapi::api::{
    core::v1::{Service, ServicePort, ServiceSpec},
    discovery::v1::{Endpoint, EndpointSlice},
};

use crate::{objects, pods};

/// The annotation of a Service that chooses its [`Scheduler`], by LVS's name.
pub const SCHEDULER_ANNOTATION: &str = "flatnet.dev/scheduler";

/// The annotation of a Service that chooses its [`Forwarding`]: `nat`, `dr` or `tun`.
pub const FORWARDING_ANNOTATION: &str = "flatnet.dev/forwarding";

/// The annotation of a pod with its weight as a backend, 0 to 65,535.
pub const WEIGHT_ANNOTATION: &str = "flatnet.dev/weight";

/// How long session affinity lasts where nobody says so, seconds: Kubernetes' default.
pub const AFFINITY_SECONDS: i32 = 10_800;

/// One port of a Service, ready for the proxy's table but for its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// The Service; its id is for [`Converted::with_id`] to say.
    pub service: flatnet_proxy::Service,
    /// The VIPs' ports that lead here; none if the Service is headless.
    pub frontends: Vec<Frontend>,
    /// The node ports that lead here.
    pub node_ports: Vec<NodePort>,
}

impl Converted {
    /// Makes the proxy's Service with an id.
    pub fn with_id(&self, id: u32) -> flatnet_proxy::Service {
        flatnet_proxy::Service { id, ..self.service.clone() }
    }
}

/// Converts a Service with its slices; the second part says what was left out. `annotations` gives those of a pod of the
/// Service's namespace.
pub fn convert<'a>(
    service: &Service,
    slices: &[&EndpointSlice],
    annotations: &dyn Fn(&str) -> Option<&'a BTreeMap<String, String>>,
) -> (Vec<Converted>, Vec<String>) {
    let mut warnings = Vec::new();
    let Some(spec) = &service.spec else { return (Vec::new(), warnings) };
    let template = template(service, spec, &mut warnings);
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
                let mut backends = backends(slices, port, protocol);
                for (name, backend) in &mut backends {
                    backend.weight = weight(name, annotations(name), &mut warnings);
                }
                let name: Arc<str> = port_name(service, port).into();
                if template.forwarding != Forwarding::Nat {
                    keep_port(&mut backends, number, &name, template.forwarding, &mut warnings);
                }
                let backends = backends.into_iter().map(|(_, backend)| backend).collect();
                converted.push(Converted {
                    service: flatnet_proxy::Service { name, backends, ..template.clone() },
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
    warnings.dedup();
    (converted, warnings)
}

/// Reads what holds for all ports of a Service.
fn template(service: &Service, spec: &ServiceSpec, warnings: &mut Vec<String>) -> flatnet_proxy::Service {
    let annotations = service.metadata.annotations.as_ref();
    let annotation = |key: &str| annotations.and_then(|all| all.get(key)).map(String::as_str);
    let scheduler = annotation(SCHEDULER_ANNOTATION);
    let forwarding = annotation(FORWARDING_ANNOTATION);
    let (external, internal) =
        (spec.external_traffic_policy.as_deref(), spec.internal_traffic_policy.as_deref());
    flatnet_proxy::Service {
        scheduler: named(SCHEDULER_ANNOTATION, scheduler, Scheduler::from_name, warnings),
        forwarding: named(FORWARDING_ANNOTATION, forwarding, Forwarding::from_name, warnings),
        external: named("externalTrafficPolicy", external, TrafficPolicy::from_name, warnings),
        internal: named("internalTrafficPolicy", internal, TrafficPolicy::from_name, warnings),
        affinity: affinity(spec),
        ..flatnet_proxy::Service::default()
    }
}

/// Reads a value by name; an unknown one is said and the default used.
fn named<T: Default + Display>(
    what: &str,
    name: Option<&str>,
    find: impl Fn(&str) -> Option<T>,
    warnings: &mut Vec<String>,
) -> T {
    let Some(name) = name else { return T::default() };
    find(name).unwrap_or_else(|| {
        warnings.push(format!("{what} {name:?} is not known, {} is used", T::default()));
        T::default()
    })
}

fn affinity(spec: &ServiceSpec) -> Option<Duration> {
    spec.session_affinity.as_deref().filter(|&affinity| affinity == "ClientIP")?;
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|client| client.timeout_seconds).unwrap_or(AFFINITY_SECONDS);
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

fn weight(pod: &str, annotations: Option<&BTreeMap<String, String>>, warnings: &mut Vec<String>) -> u16 {
    let Some(text) = annotations.and_then(|all| all.get(WEIGHT_ANNOTATION)) else { return 1 };
    text.parse().unwrap_or_else(|_| {
        warnings.push(format!("pod {pod}: {WEIGHT_ANNOTATION} {text:?} is not 0 to 65535, 1 is used"));
        1
    })
}

/// Only NAT changes ports: other backends must have the Service's.
fn keep_port(
    backends: &mut Vec<(String, Backend)>,
    port: u16,
    name: &str,
    forwarding: Forwarding,
    warnings: &mut Vec<String>,
) {
    let before = backends.len();
    backends.retain(|(_, backend)| backend.port == port);
    if backends.len() < before {
        warnings.push(format!(
            "{name}: with {forwarding} the targetPort must be the port; other backends are left out"
        ));
    }
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

fn vips<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<Ipv4Addr> {
    let mut addresses: Vec<Ipv4Addr> = Vec::new();
    for address in texts.filter_map(|text| text.parse().ok()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// Names a port of a Service as the engine's tables have it.
#[must_use]
pub fn port_name(service: &Service, port: &ServicePort) -> String {
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

/// Lists the backends of a port with their pods' names, in the order of these.
fn backends(slices: &[&EndpointSlice], port: &ServicePort, wanted: Protocol) -> Vec<(String, Backend)> {
    let wanted_name = port.name.as_deref().unwrap_or_default();
    let mut found: BTreeMap<(String, Ipv4Addr, u16), Backend> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        let ports = slice.ports.iter().flatten().filter(|port| {
            port.name.as_deref().unwrap_or_default() == wanted_name
                && protocol(port.protocol.as_deref()) == Some(wanted)
        });
        let numbers: Vec<u16> = ports.filter_map(|port| u16::try_from(port.port?).ok()).collect();
        for endpoint in &slice.endpoints {
            let Some(terminating) = is_terminating(endpoint) else { continue };
            for address in endpoint.addresses.iter().filter_map(|text| text.parse::<Ipv4Addr>().ok()) {
                let (name, identity) = target(endpoint, address);
                let node = endpoint.node_name.as_deref().map(Arc::from);
                for &port in &numbers {
                    let backend = Backend::new(address, port, identity);
                    let backend = Backend { node: node.clone(), terminating, ..backend };
                    found.insert((name.clone(), address, port), backend);
                }
            }
        }
    }
    let mut seen = BTreeSet::new();
    let named = found.into_iter().map(|((name, ..), backend)| (name, backend));
    named.filter(|(_, backend)| seen.insert((backend.address, backend.port))).collect()
}

/// Says whether an endpoint is only to be used where none is ready: it ends, and still serves. None if it is not to be
/// used at all. Kubernetes reads absent conditions as ready, serving and not terminating.
fn is_terminating(endpoint: &Endpoint) -> Option<bool> {
    let Some(conditions) = &endpoint.conditions else { return Some(false) };
    let ready = conditions.ready.unwrap_or(true);
    let ends = conditions.serving.unwrap_or(ready) && conditions.terminating.unwrap_or(false);
    if ready { Some(false) } else { ends.then_some(true) }
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

    fn nobody<'a>(_: &str) -> Option<&'a BTreeMap<String, String>> {
        None
    }

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
        converted
            .service
            .backends
            .iter()
            .map(|backend| format!("{}:{}", backend.address, backend.port))
            .collect()
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
        let (converted, warnings) = convert(&service, &[&slice], &nobody);

        assert!(warnings.is_empty());
        assert_eq!(&*converted[0].service.name, "default/web:http");
        assert_eq!(addresses(&converted[0]), ["10.1.20.2:8080", "10.1.15.2:8080"]);
        assert_eq!(converted[0].service.backends[0].identity, pods::identity("uid-a"));
        assert_eq!(converted[0].service.scheduler, Scheduler::Random);
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
        let (converted, _) = convert(&service, &[&slice], &nobody);
        assert_eq!(&*converted[0].service.name, "default/web:80");
        assert_eq!(addresses(&converted[0]), ["10.1.15.2:80"]);
    }

    #[test]
    fn headless_services_have_no_frontend_and_external_ones_do_not_exist() {
        let mut service = service(json!({"ports": [{"port": 80}]}), json!({}));
        let spec = service.spec.as_mut().unwrap();
        spec.cluster_ip = Some("None".into());
        assert!(convert(&service, &[], &nobody).0[0].frontends.is_empty());
        service.spec.as_mut().unwrap().type_ = Some("ExternalName".into());
        assert!(convert(&service, &[], &nobody).0.is_empty());
    }

    #[test]
    fn what_cannot_be_converted_is_said_and_the_rest_stands() {
        let ports = json!([{"name": "a", "port": 80, "protocol": "SCTP"}, {"name": "b", "port": 0}, {"name": "c", "port": 1}]);
        let service = service(json!({ "ports": ports }), json!({"flatnet.dev/scheduler": "best"}));
        let (converted, warnings) = convert(&service, &[], &nobody);
        assert_eq!(converted.len(), 1);
        assert_eq!(
            warnings,
            [
                "flatnet.dev/scheduler \"best\" is not known, rr is used",
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
        assert_eq!(addresses(&convert(&service, &[&slice, &slice], &nobody).0[0]), ["192.0.2.1:80"]);
    }

    #[test]
    fn policies_affinity_and_forwarding_are_read() {
        let spec =
            json!({"ports": [{"port": 80}], "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"});
        let annotations = json!({"flatnet.dev/scheduler": "mh", "flatnet.dev/forwarding": "tun"});
        let mut service = service(spec, annotations);
        let converted = &convert(&service, &[], &nobody).0[0].service;
        assert_eq!((converted.external, converted.internal), (TrafficPolicy::Local, TrafficPolicy::Cluster));
        assert_eq!((converted.scheduler, converted.forwarding), (Scheduler::Maglev, Forwarding::Tunnel));
        assert_eq!(converted.affinity, Some(Duration::from_secs(10_800)));
        let config = json!({"clientIP": {"timeoutSeconds": 30}});
        service.spec.as_mut().unwrap().session_affinity_config = serde_json::from_value(config).unwrap();
        assert_eq!(convert(&service, &[], &nobody).0[0].service.affinity, Some(Duration::from_secs(30)));
        service.spec.as_mut().unwrap().session_affinity = Some("None".into());
        assert_eq!(convert(&service, &[], &nobody).0[0].service.affinity, None);
    }

    #[test]
    fn pods_have_weights_and_endpoints_nodes_and_ends() {
        let mut ending = endpoint("b", "10.1.15.3", json!(false));
        ending["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
        ending["nodeName"] = json!("node-1");
        let mut dead = endpoint("c", "10.1.15.4", json!(false));
        dead["conditions"] = json!({"ready": false, "serving": false, "terminating": true});
        let slice = slice(
            json!([{"name": "", "port": 80}]),
            json!([endpoint("a", "10.1.15.2", json!(true)), ending, dead]),
        );
        let weights: BTreeMap<&str, BTreeMap<String, String>> = [("a", "0"), ("b", "-1")]
            .map(|(pod, weight)| (pod, BTreeMap::from([(WEIGHT_ANNOTATION.into(), weight.into())])))
            .into();
        let service = service(json!({"ports": [{"port": 80}]}), json!({}));
        let (converted, warnings) = convert(&service, &[&slice], &|pod| weights.get(pod));
        let [a, b] = &*converted[0].service.backends else { panic!("{converted:?}") };
        assert_eq!((a.weight, a.node.as_deref(), a.terminating), (0, None, false));
        assert_eq!((b.weight, b.node.as_deref(), b.terminating), (1, Some("node-1"), true));
        assert_eq!(warnings, ["pod b: flatnet.dev/weight \"-1\" is not 0 to 65535, 1 is used"]);
    }

    /// LVS, `ip_vs_dr_xmit`: direct routing and tunnels change no ports.
    #[test]
    fn only_nat_changes_ports() {
        let annotations = json!({"flatnet.dev/forwarding": "dr"});
        let service = service(json!({"ports": [{"port": 80}]}), annotations);
        let at = |port: u16| {
            slice(json!([{"name": "", "port": port}]), json!([endpoint("a", "10.1.15.2", json!(true))]))
        };
        assert_eq!(convert(&service, &[&at(80)], &nobody).0[0].service.backends.len(), 1);
        let (converted, warnings) = convert(&service, &[&at(8080)], &nobody);
        assert_eq!((converted[0].service.backends.len(), warnings.len()), (0, 1));
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
