//! Whether pods whose programs are the host's own say enough to be run.
//!
//! A check of [`crate::topology::workloads`], for each pod. Invariant: such a pod has a command for each container, and no image
//! is asked for one.
//!
//! May depend on `flatnet_agents::runtime`.
//!
//! Read first: `docs/topology.md`, "Real pods".

use flatnet_agents::runtime::RUNTIME_CLASS;
use k8s_openapi::api::core::v1::Pod;

use crate::topology::{findings::Finding, manifests::Manifest, yaml::Node};

/// Says whether a pod's programs are the host's own.
pub fn is_real(pod: &Pod) -> bool {
    class(pod) == Some(RUNTIME_CLASS)
}

fn class(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.runtime_class_name.as_deref()
}

/// Checks a pod's runtime class, and its containers if it is real.
pub(crate) fn check(pod: &Manifest<Pod>, findings: &mut Vec<Finding>) {
    let place = pod.node.place_of(&["spec", "runtimeClassName"]);
    match class(&pod.object) {
        None => {}
        Some(RUNTIME_CLASS) => check_containers(pod, findings),
        Some(other) => {
            let message = format!("runtimeClassName {other:?} is not known");
            let help =
                format!("{RUNTIME_CLASS} runs a pod's commands on this host; without one a pod is simulated");
            findings.push(Finding::error(place.clone(), message).help(help));
        }
    }
}

fn check_containers(pod: &Manifest<Pod>, findings: &mut Vec<Finding>) {
    let containers = pod.object.spec.iter().flat_map(|spec| &spec.containers);
    let nodes = pod.node.get("spec").and_then(|spec| spec.get("containers")).map_or(&[][..], Node::items);
    for (container, node) in containers.zip(nodes) {
        if container.command.iter().chain(&container.args).all(Vec::is_empty) {
            let message = format!("container {:?} of a real pod has no command", container.name);
            findings.push(
                Finding::error(node.place.clone(), message)
                    .help("it runs a program of this host: say which; an image is not looked at"),
            );
        }
    }
}
