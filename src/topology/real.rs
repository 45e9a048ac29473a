//! Whether pods that are not simulated say enough: those whose programs are the host's own, and those that somebody else made.
//!
//! A check of [`crate::topology::workloads`], for each pod. Invariants: a real pod has a command for each container, and no image
//! is asked for one; what somebody else made is there once, and runs nothing of ours.
//!
//! May depend on `flatnet_agents::pods`.
//!
//! Read first: `docs/topology.md`, "Real pods".

use std::collections::HashMap;

use flatnet_agents::pods::{self, ATTACH_ANNOTATION, Attachment, MAC_ANNOTATION, PodKind, RUNTIME_CLASS};
use flatnet_engine::pod::Image;
use flatnet_engine::wire::MacAddress;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::topology::{
    findings::{Finding, Place},
    manifests::Manifest,
    network::unique,
    yaml::Node,
};

/// Says whether a pod's stack and programs are ours.
pub fn is_simulated(pod: &Pod) -> bool {
    pods::kind(pod) == PodKind::Simulated
}

/// Checks what a pod is made of; `attached` are the places of what has a pod already.
pub(crate) fn check(pod: &Manifest<Pod>, attached: &mut HashMap<String, Place>, findings: &mut Vec<Finding>) {
    let class_place = pod.node.place_of(&["spec", "runtimeClassName"]);
    let class = pod.object.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref());
    if let Some(other) = class.filter(|&class| class != RUNTIME_CLASS) {
        let message = format!("runtimeClassName {other:?} is not known");
        let help =
            format!("{RUNTIME_CLASS} runs a pod's commands on this host; without one a pod is simulated");
        findings.push(Finding::error(class_place.clone(), message).help(help));
    }
    check_annotations(pod, attached, findings);
    if pods::is_host_network(&pod.object) {
        let message = "a pod on its node's network (hostNetwork) is not run yet".to_owned();
        findings.push(Finding::warning(pod.node.place_of(&["spec", "hostNetwork"]).clone(), message));
    }
    let kind = pods::kind(&pod.object);
    if matches!(kind, PodKind::Attached(_)) && class == Some(RUNTIME_CLASS) {
        let message = format!("a pod with {ATTACH_ANNOTATION} runs nothing of ours");
        findings.push(Finding::error(class_place.clone(), message).help("take one of the two out"));
    }
    let containers = pod.object.spec.iter().flat_map(|spec| &spec.containers);
    let nodes = pod.node.get("spec").and_then(|spec| spec.get("containers")).map_or(&[][..], Node::items);
    for (container, node) in containers.zip(nodes) {
        check_container(&kind, container, node, findings);
    }
}

fn check_annotations(
    pod: &Manifest<Pod>,
    attached: &mut HashMap<String, Place>,
    findings: &mut Vec<Finding>,
) {
    let annotation = |name: &str| pod.object.metadata.annotations.as_ref().and_then(|all| all.get(name));
    let place = |name: &str| pod.node.place_of(&["metadata", "annotations", name]);
    if let Some(text) = annotation(ATTACH_ANNOTATION) {
        if Attachment::read(text).is_some() {
            unique(attached, text, place(ATTACH_ANNOTATION), "the attachment", findings);
        } else {
            let message = format!("{text:?} is nothing that can be attached");
            let help = "write tap:NAME, netns:NAME or netns:/PATH";
            findings.push(Finding::error(place(ATTACH_ANNOTATION).clone(), message).help(help));
        }
    }
    if let Some(text) = annotation(MAC_ANNOTATION) {
        let problem = match text.parse::<MacAddress>() {
            Ok(mac) if !mac.is_unicast() => Some(format!("{text:?} is not a machine's MAC")),
            Ok(_) if annotation(ATTACH_ANNOTATION).is_none() => {
                Some(format!("{MAC_ANNOTATION} is for pods with {ATTACH_ANNOTATION}"))
            }
            Ok(_) => None,
            Err(_) => Some(format!("{text:?} is not a MAC")),
        };
        let finding = |message| Finding::error(place(MAC_ANNOTATION).clone(), message);
        findings.extend(problem.map(finding));
    }
}

fn check_container(kind: &PodKind, container: &Container, node: &Node, findings: &mut Vec<Finding>) {
    let name = &container.name;
    match kind {
        PodKind::Simulated => {}
        PodKind::Real if container.command.iter().chain(&container.args).all(Vec::is_empty) => {
            let message = format!("container {name:?} of a real pod has no command");
            let help = "it runs a program of this host: say which; an image is not looked at";
            findings.push(Finding::error(node.place.clone(), message).help(help));
        }
        PodKind::Real => {
            let variables = node.get("env").map_or(&[][..], Node::items);
            let from = variables.iter().filter(|variable| variable.get("valueFrom").is_some());
            findings.extend(from.map(|variable| {
                let message = format!(
                    "container {name:?} takes a variable from elsewhere: there is nowhere to take it from yet"
                );
                Finding::error(variable.place_of(&["valueFrom"]).clone(), message).help("give it a value")
            }));
        }
        PodKind::Attached(_) => {
            let image = container.image.as_deref().and_then(Image::find);
            if image.is_some_and(|image| image != Image::Pause) {
                let message = format!("container {name:?} will not run: what is attached runs by itself");
                let finding = Finding::error(node.place_of(&["image"]).clone(), message);
                findings.push(finding.help("give it the image flatnet/pause"));
            }
        }
    }
}
