//! Whether a Pod's volumes make sense, and its containers mount what there is.
//!
//! A check of [`crate::topology::workloads`], for each pod. Invariants: every volume has one source that can be had; every mount
//! names a volume, and no two of a container have one place. The host's files are looked at when the pod starts, not here.
//!
//! May depend on `flatnet_agents::{pods, volumes}`.
//!
//! Read first: `docs/topology.md`, "Volumes".

use std::collections::HashMap;

use flatnet_agents::{
    objects::is_dns_name,
    pods::{self, PodKind},
    volumes,
};
use k8s_openapi::api::core::v1::{Container, Pod, Volume, VolumeMount};

use crate::topology::{
    findings::{Finding, Place, listed},
    manifests::Manifest,
    network::unique,
    yaml::Node,
};

/// Checks a pod's volumes and their mounts.
pub(crate) fn check(pod: &Manifest<Pod>, findings: &mut Vec<Finding>) {
    let Some(spec) = &pod.object.spec else { return };
    let node = pod.node.get("spec");
    let items = |name: &str| node.and_then(|spec| spec.get(name)).map_or(&[][..], Node::items);
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let mut names = HashMap::new();
    for (volume, node) in volumes.iter().zip(items("volumes")) {
        check_volume(volume, node, &mut names, findings);
        if pods::kind(&pod.object) == PodKind::Real {
            check_limit(volume, node, findings);
        }
    }
    for (container, node) in spec.containers.iter().zip(items("containers")) {
        let mut places = HashMap::new();
        let nodes = node.get("volumeMounts").map_or(&[][..], Node::items);
        for (mount, node) in container.volume_mounts.iter().flatten().zip(nodes) {
            check_named(mount, container, volumes, node, findings);
            check_mount(mount, node, &mut places, findings);
        }
    }
}

fn check_volume(
    volume: &Volume,
    node: &Node,
    names: &mut HashMap<String, Place>,
    findings: &mut Vec<Finding>,
) {
    let place = node.place_of(&["name"]);
    if is_dns_name(&volume.name) && !volume.name.contains('.') {
        unique(names, &volume.name, place, "volume name", findings);
    } else {
        let message = format!("volume name {:?} is not a name", volume.name);
        findings.push(Finding::error(place.clone(), message));
    }
    if let Err((field, message)) = volumes::source(volume) {
        findings.push(Finding::error(node.place_of(field).clone(), message));
    }
}

/// A real pod's directory holds what the disk does.
fn check_limit(volume: &Volume, node: &Node, findings: &mut Vec<Finding>) {
    let limited = volume.empty_dir.as_ref().is_some_and(|empty| empty.size_limit.is_some());
    if limited && volumes::memory(volume).is_none() {
        let place = node.place_of(&["emptyDir", "sizeLimit"]).clone();
        let message =
            format!("the sizeLimit of volume {:?} is not kept: it is a directory on disk", volume.name);
        findings.push(Finding::warning(place, message).help("`medium: Memory` keeps it"));
    }
}

fn check_named(
    mount: &VolumeMount,
    container: &Container,
    volumes: &[Volume],
    node: &Node,
    findings: &mut Vec<Finding>,
) {
    if volumes.iter().any(|volume| volume.name == mount.name) {
        return;
    }
    let message =
        format!("container {} mounts {:?}, which is no volume of the pod", container.name, mount.name);
    let known = listed(volumes.iter().map(|volume| volume.name.as_str()));
    let help =
        if volumes.is_empty() { "the pod has no volumes".into() } else { format!("known are {known}") };
    findings.push(Finding::error(node.place_of(&["name"]).clone(), message).help(help));
}

fn check_mount(
    mount: &VolumeMount,
    node: &Node,
    places: &mut HashMap<String, Place>,
    findings: &mut Vec<Finding>,
) {
    let place = node.place_of(&["mountPath"]);
    let path = &mount.mount_path;
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    let problem = match () {
        () if !path.starts_with('/') => Some("must begin with /"),
        () if path.contains(':') => Some("must not contain :"),
        () if names.contains(&"..") => Some("must not contain .."),
        () if names.is_empty() => Some("must not be the container's root"),
        () => None,
    };
    match problem {
        Some(problem) => {
            findings.push(Finding::error(place.clone(), format!("mountPath {path:?} {problem}")));
        }
        None => unique(places, &format!("/{}", names.join("/")), place, "mountPath", findings),
    }
    let sub_path = mount.sub_path.as_deref().unwrap_or_default();
    let problem = match () {
        () if sub_path.starts_with('/') => Some("must not begin with /"),
        () if sub_path.split('/').any(|name| name == "..") => Some("must not contain .."),
        () => None,
    };
    if let Some(problem) = problem {
        let message = format!("subPath {sub_path:?} {problem}");
        findings.push(Finding::error(node.place_of(&["subPath"]).clone(), message));
    }
}
