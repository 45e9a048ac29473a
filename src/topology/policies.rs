//! Whether what annotations and policies say of Services and backends is something that is known.
//!
//! Part of the check of [`crate::topology::workloads`]. Invariants: whatever passes here is read by
//! [`flatnet_agents::services`] without a warning.
//!
//! May depend on [`crate::topology::manifests`].
//!
//! Read first: `docs/topology.md`.

use std::net::Ipv4Addr;

use flatnet_agents::pods::VIP_ANNOTATION;
use flatnet_agents::services::{FORWARDING_ANNOTATION, SCHEDULER_ANNOTATION, WEIGHT_ANNOTATION};
use flatnet_proxy::{Forwarding, Scheduler, TrafficPolicy};
use k8s_openapi::{
    api::core::v1::{Pod, Service, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::topology::{
    findings::Finding,
    manifests::Manifest,
    yaml::{Node, Value},
};

/// The longest session affinity, seconds: a day, as in Kubernetes.
const LONGEST_AFFINITY: i32 = 86_400;

/// Checks the annotations and policies of a Service.
pub(super) fn check_service(service: &Manifest<Service>, findings: &mut Vec<Finding>) {
    let annotation = |name: &'static str| ["metadata", "annotations", name];
    let schedulers: Vec<_> = Scheduler::ALL.iter().map(|scheduler| scheduler.name()).collect();
    let forwardings: Vec<_> = Forwarding::ALL.iter().map(|forwarding| forwarding.name()).collect();
    let policies: Vec<_> = TrafficPolicy::ALL.iter().map(|policy| policy.name()).collect();
    one_of(service, &annotation(SCHEDULER_ANNOTATION), "scheduler", &schedulers, findings);
    one_of(service, &annotation(FORWARDING_ANNOTATION), "forwarding", &forwardings, findings);
    for policy in ["externalTrafficPolicy", "internalTrafficPolicy"] {
        one_of(service, &["spec", policy], policy, &policies, findings);
    }
    one_of(service, &["spec", "sessionAffinity"], "sessionAffinity", &["None", "ClientIP"], findings);
    let Some(spec) = &service.object.spec else { return };
    check_external(service, spec, findings);
    check_timeout(service, spec, findings);
    check_target_ports(service, spec, findings);
}

/// Checks a pod's restart policy, weight, and the VIP that it has.
pub(super) fn check_pod(pod: &Manifest<Pod>, findings: &mut Vec<Finding>) {
    check_vip(pod, findings);
    one_of(pod, &["spec", "restartPolicy"], "restartPolicy", &["Always", "OnFailure", "Never"], findings);
    let Some(node) = find(pod, &["metadata", "annotations", WEIGHT_ANNOTATION]) else { return };
    if let Some(text) = node.text().filter(|text| text.parse::<u16>().is_err()) {
        let message = format!("weight {text:?} is not a number from 0 to 65535");
        findings.push(Finding::error(node.place.clone(), message));
    }
}

fn check_vip(pod: &Manifest<Pod>, findings: &mut Vec<Finding>) {
    let Some(node) = find(pod, &["metadata", "annotations", VIP_ANNOTATION]) else { return };
    if let Some(text) = node.text().filter(|text| text.parse::<Ipv4Addr>().is_err()) {
        findings.push(Finding::error(node.place.clone(), format!("{text:?} is not an IPv4 address")));
    }
}

fn find<'a, T>(manifest: &'a Manifest<T>, path: &[&str]) -> Option<&'a Node> {
    let found = path.iter().try_fold(&manifest.node, |node, step| node.get(step));
    found.filter(|node| !matches!(node.value, Value::Null))
}

fn one_of<T>(manifest: &Manifest<T>, path: &[&str], what: &str, known: &[&str], findings: &mut Vec<Finding>) {
    let Some(node) = find(manifest, path) else { return };
    if let Some(text) = node.text().filter(|text| !known.contains(text)) {
        let finding = Finding::error(node.place.clone(), format!("{what} {text:?} is not known"));
        findings.push(finding.help(format!("known are {}", known.join(", "))));
    }
}

/// Kubernetes refuses an external policy where nothing leads in from outside.
fn check_external(service: &Manifest<Service>, spec: &ServiceSpec, findings: &mut Vec<Finding>) {
    let has_outside = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
    if spec.external_traffic_policy.is_some() && !has_outside {
        let place = service.node.place_of(&["spec", "externalTrafficPolicy"]);
        let message = "externalTrafficPolicy is for Services of type NodePort or LoadBalancer";
        findings.push(Finding::error(place.clone(), message));
    }
}

fn check_timeout(service: &Manifest<Service>, spec: &ServiceSpec, findings: &mut Vec<Finding>) {
    let Some(config) = &spec.session_affinity_config else { return };
    let path = ["spec", "sessionAffinityConfig", "clientIP", "timeoutSeconds"];
    let place = service.node.place_of(&path);
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        let message = "sessionAffinityConfig needs sessionAffinity ClientIP";
        findings.push(Finding::error(place.clone(), message));
    }
    let seconds = config.client_ip.as_ref().and_then(|client| client.timeout_seconds);
    if let Some(seconds) = seconds.filter(|seconds| !(1..=LONGEST_AFFINITY).contains(seconds)) {
        let message = format!("timeoutSeconds {seconds} is not between 1 and {LONGEST_AFFINITY}");
        findings.push(Finding::error(place.clone(), message));
    }
}

/// Direct routing and tunnels change no ports.
fn check_target_ports(service: &Manifest<Service>, spec: &ServiceSpec, findings: &mut Vec<Finding>) {
    let annotations = service.object.metadata.annotations.as_ref();
    let forwarding = annotations.and_then(|all| all.get(FORWARDING_ANNOTATION));
    let forwarding = forwarding.and_then(|name| Forwarding::from_name(name)).unwrap_or_default();
    if forwarding == Forwarding::Nat {
        return;
    }
    let nodes = service.node.get("spec").and_then(|spec| spec.get("ports")).map_or(&[][..], Node::items);
    for (port, node) in spec.ports.iter().flatten().zip(nodes) {
        if matches!(port.target_port, Some(IntOrString::Int(target)) if target != port.port) {
            let message =
                format!("with forwarding {forwarding} the targetPort must be the port {}", port.port);
            findings.push(Finding::error(node.place_of(&["targetPort"]).clone(), message));
        }
    }
}
