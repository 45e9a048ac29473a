//! Turns selectors into EndpointSlices.
//!
//! For each Service with a selector it keeps slices that list the ready pods; the conversion of Services reads them.
//!
//! Invariants: a slice lists the selected pods that serve, those about to end among them, and that resolve the Service's
//! ports to the same numbers, by name; its name is the Service's and a suffix that follows from those ports; slices of
//! others (a Service without a selector, another manager) are never touched; slices of a gone Service go.
//!
//! May depend on [`crate::controllers`] and [`crate::pods`].
//!
//! Read first: EndpointSlice in Kubernetes' API reference.
//!
//! Above 400 lines because a third of it are tests that read best beside the rules they hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    Resource,
    api::{
        core::v1::{ObjectReference, Pod, Service, ServicePort},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{
        apis::meta::v1::{ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};

use crate::{
    controllers::{Changes, Controller, Mirror},
    objects::{self, Object},
    pods, seed,
    store::Followed,
};

/// The label that names a slice's Service.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The label that names who keeps a slice.
pub const MANAGER_LABEL: &str = "endpointslice.kubernetes.io/managed-by";

/// The value of [`MANAGER_LABEL`] for slices of this controller.
pub const MANAGER: &str = "endpoints.flatnet.dev";

/// How many endpoints a slice has at most, as in Kubernetes.
pub const SLICE_LIMIT: usize = 1000;

/// The letters of suffixes, those of Kubernetes' generated names.
const SUFFIX_LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The endpoints controller.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    services: Mirror<Service>,
    pods: Mirror<Pod>,
    slices: Mirror<EndpointSlice>,
    /// The keys of our slices by their Service's key.
    kept: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
}

impl Controller for Endpoints {
    const NAME: &'static str = "endpoints";

    fn prefixes(&self) -> Vec<String> {
        vec![EndpointSlice::DIRECTORY.into(), Service::DIRECTORY.into(), Pod::DIRECTORY.into()]
    }

    fn observe(&mut self, change: &Followed) -> Vec<Arc<str>> {
        let key = change.key();
        if key.starts_with(Service::DIRECTORY) {
            let _ = self.services.apply(change);
            return vec![Arc::clone(key)];
        }
        if key.starts_with(EndpointSlice::DIRECTORY) {
            return self.observe_slice(change);
        }
        let before = self.pods.apply(change).unwrap_or_default();
        let after = self.pods.get(key);
        let Some((namespace, _)) = objects::parse_key::<Pod>(key) else { return vec![] };
        let touched = |service: &Service| {
            [before.as_ref(), after].into_iter().flatten().any(|pod| selects(service, pod))
        };
        let services = self.services.in_namespace(namespace);
        services.filter(|(_, service)| touched(service)).map(|(key, _)| Arc::clone(key)).collect()
    }

    fn reconcile(&mut self, key: &Arc<str>) -> Changes {
        let wanted = self.services.get(key).map(|service| self.wanted(service)).unwrap_or_default();
        let mut changes = Changes::none();
        for gone in self.kept.get(key).into_iter().flatten().filter(|gone| !wanted.contains_key(*gone)) {
            if let Some(slice) = self.slices.get(gone) {
                changes = changes.delete(slice);
            }
        }
        for (key, mut slice) in wanted {
            match self.slices.get(&key) {
                Some(present) if same(present, &slice) => {}
                Some(present) => {
                    slice.metadata.uid = present.metadata.uid.clone();
                    slice.metadata.resource_version = present.metadata.resource_version.clone();
                    changes = changes.write(&slice);
                }
                None => changes = changes.write(&slice),
            }
        }
        changes
    }
}

impl Endpoints {
    fn observe_slice(&mut self, change: &Followed) -> Vec<Arc<str>> {
        let before = self.slices.apply(change).unwrap_or_default();
        let after = self.slices.get(change.key());
        let mut services = Vec::new();
        if let Some(service) = before.as_ref().and_then(kept_for) {
            if let Some(slices) = self.kept.get_mut(&service) {
                slices.remove(change.key());
            }
            services.push(service);
        }
        if let Some(service) = after.and_then(kept_for) {
            self.kept.entry(Arc::clone(&service)).or_default().insert(Arc::clone(change.key()));
            services.push(service);
        }
        services
    }

    /// Makes the slices that a Service should have, by key.
    fn wanted(&self, service: &Service) -> BTreeMap<Arc<str>, EndpointSlice> {
        let spec = service.spec.clone().unwrap_or_default();
        let unready_too = spec.publish_not_ready_addresses.unwrap_or(false);
        let mut groups: BTreeMap<Vec<Resolved>, Vec<Endpoint>> = BTreeMap::new();
        for (_, pod) in self.pods.in_namespace(objects::namespace(service)) {
            let alive = !pods::is_finished(pod);
            let listed = alive && (pods::is_ready(pod) || unready_too) && selects(service, pod);
            let Some(endpoint) = endpoint(pod, unready_too).filter(|_| listed) else { continue };
            let ports = spec.ports.iter().flatten().filter_map(|port| resolve(port, pod)).collect();
            groups.entry(ports).or_default().push(endpoint);
        }
        let mut slices = BTreeMap::new();
        for (ports, endpoints) in groups {
            for (part, endpoints) in endpoints.chunks(SLICE_LIMIT).enumerate() {
                let slice = slice(service, &ports, part, endpoints);
                slices.insert(
                    objects::key::<EndpointSlice>(objects::namespace(service), objects::name(&slice)),
                    slice,
                );
            }
        }
        slices
    }
}

/// A Service's port as one pod answers it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Resolved {
    name: Option<String>,
    protocol: String,
    number: i32,
}

/// Says whether a Service selects a pod; one without a selector selects none.
pub fn selects(service: &Service, pod: &Pod) -> bool {
    let selector =
        service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).filter(|all| !all.is_empty());
    let labels = pod.metadata.labels.as_ref();
    selector.is_some_and(|selector| {
        selector.iter().all(|(name, value)| labels.and_then(|labels| labels.get(name)) == Some(value))
    })
}

/// Finds the number that a Service's port has in a pod; `None` if the pod has no port of that name and protocol.
fn resolve(port: &ServicePort, pod: &Pod) -> Option<Resolved> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
    let number = match &port.target_port {
        None | Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            let found = ports.find(|port| {
                port.name.as_ref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            found?.container_port
        }
    };
    Some(Resolved { name: port.name.clone(), protocol, number })
}

fn endpoint(pod: &Pod, unready_too: bool) -> Option<Endpoint> {
    let (serving, terminating) = (pods::is_ready(pod), pod.metadata.deletion_timestamp.is_some());
    Some(Endpoint {
        addresses: vec![pods::address(pod)?.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(unready_too || serving && !terminating),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        node_name: pods::node_name(pod).map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some(Pod::KIND.into()),
            namespace: Some(objects::namespace(pod).into()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    })
}

fn slice(service: &Service, ports: &[Resolved], part: usize, endpoints: &[Endpoint]) -> EndpointSlice {
    let name = objects::name(service);
    EndpointSlice {
        address_type: "IPv4".into(),
        endpoints: endpoints.into(),
        ports: Some(
            ports
                .iter()
                .map(|port| EndpointPort {
                    name: Some(port.name.clone().unwrap_or_default()),
                    port: Some(port.number),
                    protocol: Some(port.protocol.clone()),
                    app_protocol: None,
                })
                .collect(),
        ),
        metadata: ObjectMeta {
            name: Some(format!("{name}-{}", suffix(ports, part))),
            namespace: Some(objects::namespace(service).into()),
            labels: Some(BTreeMap::from([
                (SERVICE_LABEL.into(), name.into()),
                (MANAGER_LABEL.into(), MANAGER.into()),
            ])),
            owner_references: Some(vec![OwnerReference {
                api_version: Service::API_VERSION.into(),
                kind: Service::KIND.into(),
                name: name.into(),
                uid: service.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            uid: Some(seed::uid(
                0,
                &[
                    EndpointSlice::KIND,
                    service.metadata.uid.as_deref().unwrap_or_default(),
                    &suffix(ports, part),
                ],
            )),
            ..ObjectMeta::default()
        },
    }
}

/// Makes five letters from what tells a Service's slices apart.
fn suffix(ports: &[Resolved], part: usize) -> String {
    let mut hash = seed::hash(part as u64, &[&format!("{ports:?}")]);
    let mut letters = String::new();
    for _ in 0..5 {
        letters.push(char::from(SUFFIX_LETTERS[(hash % 27) as usize]));
        hash /= 27;
    }
    letters
}

/// Names the Service whose slice this is, if the slice is ours.
fn kept_for(slice: &EndpointSlice) -> Option<Arc<str>> {
    let labels = slice.metadata.labels.as_ref()?;
    let ours = labels.get(MANAGER_LABEL).is_some_and(|manager| manager == MANAGER);
    let service = labels.get(SERVICE_LABEL).filter(|_| ours)?;
    Some(objects::key::<Service>(objects::namespace(slice), service))
}

fn same(present: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    present.endpoints == wanted.endpoints
        && present.ports == wanted.ports
        && present.address_type == wanted.address_type
        && present.metadata.labels == wanted.metadata.labels
        && present.metadata.owner_references == wanted.metadata.owner_references
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::controllers::tests::Cluster;

    fn cluster() -> Cluster {
        let cluster = Cluster::new();
        cluster.start(Endpoints::default());
        cluster
    }

    fn pod(cluster: &Cluster, name: &str, address: &str, ready: bool, ports: Value) {
        cluster.create::<Pod>(json!({
            "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "ports": ports}]},
            "status": {"podIP": address, "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        }));
    }

    fn service(cluster: &Cluster, ports: Value) {
        cluster.create::<Service>(
            json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": ports}}),
        );
    }

    /// Writes slices as `port/protocol name: addresses`.
    fn slices(cluster: &Cluster) -> Vec<String> {
        let mut lines: Vec<String> = cluster
            .list::<EndpointSlice>()
            .iter()
            .map(|slice| {
                let ports = slice.ports.iter().flatten();
                let ports: Vec<String> = ports
                    .map(|port| {
                        format!(
                            "{}/{} {}",
                            port.port.unwrap(),
                            port.protocol.as_ref().unwrap(),
                            port.name.as_ref().unwrap()
                        )
                    })
                    .collect();
                let addresses: Vec<&str> =
                    slice.endpoints.iter().map(|endpoint| endpoint.addresses[0].as_str()).collect();
                format!("{}: {}", ports.join(", "), addresses.join(" "))
            })
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn slice_lists_ready_selected_pods_by_name() {
        let mut cluster = cluster();
        service(&cluster, json!([{"name": "http", "port": 80}]));
        pod(&cluster, "b", "10.1.15.2", true, json!([]));
        pod(&cluster, "a", "10.1.20.2", true, json!([]));
        pod(&cluster, "c", "10.1.15.4", false, json!([]));
        cluster.create::<Pod>(json!({"metadata": {"name": "other"}}));
        assert!(cluster.settle().is_empty());
        assert_eq!(slices(&cluster), ["80/TCP http: 10.1.20.2 10.1.15.2"]);

        let slice = &cluster.list::<EndpointSlice>()[0];
        assert_eq!(slice.metadata.labels.as_ref().unwrap()[SERVICE_LABEL], "web");
        let target = slice.endpoints[0].target_ref.as_ref().unwrap();
        assert_eq!(target.uid, cluster.get::<Pod>("a").metadata.uid);
        let name = slice.metadata.name.as_ref().unwrap();
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    }

    #[test]
    fn slice_follows_readiness_and_goes_with_the_service() {
        let mut cluster = cluster();
        service(&cluster, json!([{"port": 80, "targetPort": 8080}]));
        pod(&cluster, "a", "10.1.15.2", true, json!([]));
        pod(&cluster, "b", "10.1.15.3", false, json!([]));
        cluster.settle();
        assert_eq!(slices(&cluster), ["8080/TCP : 10.1.15.2"]);

        cluster.change::<Pod>("b", |pod| {
            let ready = json!([{"type": "Ready", "status": "True"}]);
            pod.status.as_mut().unwrap().conditions = serde_json::from_value(ready).unwrap();
        });
        cluster.settle();
        assert_eq!(slices(&cluster), ["8080/TCP : 10.1.15.2 10.1.15.3"]);

        cluster.delete::<Pod>("a");
        cluster.settle();
        assert_eq!(slices(&cluster), ["8080/TCP : 10.1.15.3"]);

        cluster.change::<Pod>("b", |pod| pod.metadata.labels = None);
        cluster.settle();
        assert!(slices(&cluster).is_empty());

        cluster.change::<Pod>("b", |pod| pod.metadata.labels = Some([("app".into(), "web".into())].into()));
        cluster.settle();
        cluster.delete::<Service>("web");
        cluster.settle();
        assert!(slices(&cluster).is_empty());
    }

    /// Kubernetes, EndpointSlice conditions: a pod that ends is not ready, and serves while it says so.
    #[test]
    fn a_pod_that_ends_still_serves() {
        let mut cluster = cluster();
        service(&cluster, json!([{"port": 80}]));
        pod(&cluster, "a", "10.1.15.2", true, json!([]));
        let ends = json!("2026-01-01T00:00:00Z");
        cluster.change::<Pod>("a", |pod| {
            pod.metadata.deletion_timestamp = serde_json::from_value(ends).unwrap();
        });
        cluster.settle();
        let conditions = cluster.list::<EndpointSlice>()[0].endpoints[0].conditions.clone().unwrap();
        assert_eq!(
            (conditions.ready, conditions.serving, conditions.terminating),
            (Some(false), Some(true), Some(true))
        );
    }

    #[test]
    fn named_target_ports_are_resolved_per_pod() {
        let mut cluster = cluster();
        service(
            &cluster,
            json!([
                {"name": "http", "port": 80, "targetPort": "web"},
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"},
            ]),
        );
        let ports =
            |web: u16| json!([{"name": "web", "containerPort": web}, {"name": "dns", "containerPort": 53}]);
        pod(&cluster, "a", "10.1.15.2", true, ports(8080));
        pod(&cluster, "b", "10.1.15.3", true, ports(9090));
        pod(&cluster, "c", "10.1.15.4", true, ports(8080));
        cluster.settle();
        // The pods' port "dns" is TCP, so the Service's UDP port finds none.
        assert_eq!(slices(&cluster), ["8080/TCP http: 10.1.15.2 10.1.15.4", "9090/TCP http: 10.1.15.3"]);
    }

    #[test]
    fn slices_of_others_are_left_alone() {
        let mut cluster = cluster();
        cluster.create::<Service>(json!({"metadata": {"name": "manual"}, "spec": {"ports": [{"port": 80}]}}));
        cluster.create::<EndpointSlice>(json!({
            "metadata": {"name": "manual-1", "labels": {SERVICE_LABEL: "manual"}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"]}], "ports": [{"port": 80, "protocol": "TCP", "name": ""}],
        }));
        cluster.settle();
        cluster.delete::<Service>("manual");
        cluster.settle();
        assert_eq!(slices(&cluster), ["80/TCP : 192.0.2.1"]);
    }

    #[test]
    fn slice_that_somebody_removes_or_bends_comes_back() {
        let mut cluster = cluster();
        service(&cluster, json!([{"port": 80}]));
        pod(&cluster, "a", "10.1.15.2", true, json!([]));
        cluster.settle();
        let name = cluster.list::<EndpointSlice>()[0].metadata.name.clone().unwrap();
        cluster.change::<EndpointSlice>(&name, |slice| slice.endpoints.clear());
        cluster.settle();
        assert_eq!(slices(&cluster), ["80/TCP : 10.1.15.2"]);
        cluster.delete::<EndpointSlice>(&name);
        cluster.settle();
        assert_eq!(slices(&cluster), ["80/TCP : 10.1.15.2"]);
    }
}
