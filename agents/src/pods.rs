//! What a Pod object says.
//!
//! Small readers shared by the controllers, the conversion of Services and whoever runs pods.
//!
//! Invariant: readers never fail: what is absent or malformed reads as absent.
//!
//! May depend on [`crate::objects`].
//!
//! Read first: the pod lifecycle of Kubernetes.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, Volume};

use crate::{objects, seed};

/// The annotation with the address that a pod asks for.
pub const ADDRESS_ANNOTATION: &str = "flatnet.dev/ip";

/// The annotation with the VIP that a pod has on its `lo`, to answer by itself from.
pub const VIP_ANNOTATION: &str = "flatnet.dev/vip";

/// The annotation of a pod that is something else on this host: `tap:NAME` or `netns:NAME`.
pub const ATTACH_ANNOTATION: &str = "flatnet.dev/attach";

/// The annotation with the MAC of a pod that is something else on this host.
pub const MAC_ANNOTATION: &str = "flatnet.dev/mac";

/// The `runtimeClassName` of pods whose programs are the host's own.
pub const RUNTIME_CLASS: &str = "netns";

/// Where `ip netns` keeps network namespaces by name.
const NAMESPACES: &str = "/run/netns";

/// What a pod is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodKind {
    /// A stack of ours, and programs of ours.
    Simulated,
    /// Programs of this host in namespaces that are made for them.
    Real,
    /// Something that somebody else made.
    Attached(Attachment),
}

/// What somebody else made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// A TAP, by its name: a virtual machine's, say.
    Tap(String),
    /// A network namespace, by its file.
    Namespace(PathBuf),
}

impl Attachment {
    /// Reads the annotation's text.
    pub fn read(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            (_, "") => None,
            ("tap", name) => Some(Self::Tap(name.to_owned())),
            ("netns", path) if path.starts_with('/') => Some(Self::Namespace(path.into())),
            ("netns", name) if !name.contains('/') => Some(Self::Namespace(Path::new(NAMESPACES).join(name))),
            _ => None,
        }
    }
}

/// Gives what a pod is made of.
pub fn kind(pod: &Pod) -> PodKind {
    let attach = pod.metadata.annotations.as_ref().and_then(|all| all.get(ATTACH_ANNOTATION));
    let class = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref());
    match attach.and_then(|text| Attachment::read(text)) {
        Some(attachment) => PodKind::Attached(attachment),
        None if class == Some(RUNTIME_CLASS) => PodKind::Real,
        None => PodKind::Simulated,
    }
}

/// Gives the node that a pod is bound to.
pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// Gives a pod's address.
pub fn address(pod: &Pod) -> Option<Ipv4Addr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

/// Gives the address that a pod asks for, or the text if it is none.
///
/// # Errors
/// The annotation's text if it is not an IPv4 address.
pub fn wished_address(pod: &Pod) -> Result<Option<Ipv4Addr>, &str> {
    let text = pod.metadata.annotations.as_ref().and_then(|all| all.get(ADDRESS_ANNOTATION));
    text.map(|text| text.parse().map_err(|_| text.as_str())).transpose()
}

/// Says whether a pod shares its node's network.
pub fn is_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

/// Says whether all containers of a pod have ended for good.
pub fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Says whether a pod reports itself ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| {
        all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    })
}

/// Gives the number that flatnet knows a pod by, from its uid: two pods differ also if one gets the other's address.
pub fn identity(uid: &str) -> u64 {
    seed::hash(0, &["pod", uid])
}

/// Which containers that ended start again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// All.
    Always,
    /// Those whose exit code is not zero.
    OnFailure,
    /// None.
    Never,
}

/// Gives a pod's restart policy: `Always` if it names none, or none that there is.
pub fn restart_policy(pod: &Pod) -> RestartPolicy {
    match pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        Some(_) | None => RestartPolicy::Always,
    }
}

/// Gives how long a pod's programs may take to stop: 30 seconds if it does not say.
pub fn grace(pod: &Pod) -> Duration {
    let said = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    Duration::from_secs(said.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(30))
}

/// A pod that can be put on the network.
#[derive(Clone, Debug, PartialEq)]
pub struct PodView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// What backends know it by.
    pub identity: u64,
    /// The node it is bound to.
    pub node: String,
    /// Its address; the node's if it is on the host network.
    pub address: Ipv4Addr,
    /// Whether it shares its node's network.
    pub host_network: bool,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// What it runs.
    pub containers: Vec<Container>,
    /// What its containers can mount.
    pub volumes: Vec<Volume>,
    /// What starts again once it ended.
    pub restart_policy: RestartPolicy,
    /// What it is made of.
    pub kind: PodKind,
    /// Who its programs run as.
    pub security: Option<PodSecurityContext>,
    /// How long its programs may take to stop.
    pub grace: Duration,
}

impl PodView {
    /// Reads a pod; `None` while it has no node or address, or when it has finished.
    pub fn read(pod: &Pod) -> Option<Self> {
        if is_finished(pod) {
            return None;
        }
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        Some(Self {
            namespace: objects::namespace(pod).into(),
            name: objects::name(pod).into(),
            identity: identity(&uid),
            uid,
            node: node_name(pod)?.into(),
            address: address(pod)?,
            host_network: is_host_network(pod),
            annotations: pod.metadata.annotations.clone().unwrap_or_default(),
            containers: pod.spec.iter().flat_map(|spec| spec.containers.iter().cloned()).collect(),
            volumes: pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten().cloned()).collect(),
            restart_policy: restart_policy(pod),
            kind: kind(pod),
            security: pod.spec.as_ref().and_then(|spec| spec.security_context.clone()),
            grace: grace(pod),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn wished_address_is_read_or_shown() {
        let wish = |text: &str| pod(json!({"metadata": {"annotations": {"flatnet.dev/ip": text}}}));
        assert_eq!(wished_address(&wish("10.1.15.3")), Ok(Some([10, 1, 15, 3].into())));
        assert_eq!(wished_address(&wish("10.1.15")), Err("10.1.15"));
        assert_eq!(wished_address(&Pod::default()), Ok(None));
    }
}
