//! Whether EndpointSlices that somebody writes by hand say which backends a Service has elsewhere.
//!
//! A check of [`crate::topology::workloads`], for each of them. Invariants: a slice names its Service; its addresses are IPv4 and
//! its ports are ports.
//!
//! May depend on [`crate::topology::workloads`]. Read first: the Kubernetes reference of EndpointSlice.

use flatnet_agents::controllers::endpoints::SERVICE_LABEL;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::topology::{
    findings::Finding,
    manifests::Manifest,
    values,
    workloads::{check_port, check_protocol},
    yaml::Node,
};

/// Checks a slice.
pub(crate) fn check(slice: &Manifest<EndpointSlice>, findings: &mut Vec<Finding>) {
    let place = |path: &[&str]| slice.node.place_of(path).clone();
    let labels = slice.object.metadata.labels.as_ref();
    if labels.is_none_or(|labels| !labels.contains_key(SERVICE_LABEL)) {
        let finding =
            Finding::error(place(&["metadata", "labels"]), "the EndpointSlice belongs to no Service");
        findings.push(finding.help(format!("name it in the label {SERVICE_LABEL}")));
    }
    if slice.object.address_type != "IPv4" {
        let message = format!("addressType {} is not supported yet; IPv4 is", slice.object.address_type);
        findings.push(Finding::error(place(&["addressType"]), message));
    }
    let items = |name: &str| slice.node.get(name).map_or(&[][..], Node::items);
    for address in items("endpoints").iter().filter_map(|it| it.get("addresses")).flat_map(Node::items) {
        if let Some(Err(message)) = address.text().map(values::address) {
            findings.push(Finding::error(address.place.clone(), message));
        }
    }
    for (port, node) in slice.object.ports.iter().flatten().zip(items("ports")) {
        check_protocol(port.protocol.as_deref().unwrap_or("TCP"), node.place_of(&["protocol"]), findings);
        check_port(port.port.unwrap_or_default(), node.place_of(&["port"]), "port", findings);
    }
}
