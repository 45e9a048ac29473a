//! What a Pod object says, and the status that its node reports.
//!
//! Small readers shared by the controllers, the conversion of Services and whoever runs pods.
//!
//! Invariants: readers never fail: what is absent or malformed reads as absent; no status here carries a time.
//!
//! May depend on [`crate::objects`].
//!
//! Read first: the pod lifecycle of Kubernetes.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStatus, Pod, PodCondition, PodStatus,
};

use crate::{
    objects::{self, ObjectError},
    seed,
    store::{Revision, Store},
};

/// The annotation with the address that a pod asks for.
pub const ADDRESS_ANNOTATION: &str = "flatnet.dev/ip";

/// The annotation with the VIP that a pod has on its `lo`, to answer by itself from.
pub const VIP_ANNOTATION: &str = "flatnet.dev/vip";

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

/// Makes the status of a pod whose containers all run, ready or not; address and other fields stay.
pub fn running(pod: &Pod, ready: bool) -> PodStatus {
    let mut status = pod.status.clone().unwrap_or_default();
    status.phase = Some("Running".into());
    let mut conditions = status.conditions.take().unwrap_or_default();
    for (kind, value) in
        [("PodScheduled", true), ("Initialized", true), ("ContainersReady", ready), ("Ready", ready)]
    {
        let value = if value { "True" } else { "False" };
        match conditions.iter_mut().find(|condition| condition.type_ == kind) {
            Some(condition) => condition.status = value.into(),
            None => conditions.push(PodCondition {
                type_: kind.into(),
                status: value.into(),
                ..PodCondition::default()
            }),
        }
    }
    status.conditions = Some(conditions);
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    status.container_statuses = Some(
        containers
            .map(|container| ContainerStatus {
                name: container.name.clone(),
                image: container.image.clone().unwrap_or_default(),
                ready,
                started: Some(true),
                state: Some(ContainerState {
                    running: Some(ContainerStateRunning::default()),
                    ..ContainerState::default()
                }),
                ..ContainerStatus::default()
            })
            .collect(),
    );
    status
}

/// Reports that a pod's containers run, ready or not. `None` if there is no such pod or nothing changes.
///
/// # Errors
/// [`ObjectError::Conflict`] if somebody else wrote the pod meanwhile: call again; [`ObjectError::Store`].
pub async fn report_running(
    store: &impl Store,
    namespace: &str,
    name: &str,
    ready: bool,
) -> Result<Option<Revision>, ObjectError> {
    let Some(mut pod) = objects::get::<Pod>(store, namespace, name).await? else { return Ok(None) };
    let status = running(&pod, ready);
    if pod.status.as_ref() == Some(&status) {
        return Ok(None);
    }
    pod.status = Some(status);
    objects::update(store, &pod).await.map(Some)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn running_pod_keeps_its_address_and_settles() {
        let mut pod = pod(json!({
            "metadata": {"name": "web"}, "spec": {"containers": [{"name": "a", "image": "nginx"}]},
            "status": {"podIP": "10.1.15.2", "conditions": [{"type": "Ready", "status": "False"}]},
        }));
        assert!(!is_ready(&pod));
        pod.status = Some(running(&pod, true));
        assert!(is_ready(&pod));
        assert_eq!(address(&pod), Some([10, 1, 15, 2].into()));
        assert_eq!(pod.status.as_ref().unwrap(), &running(&pod, true));
    }

    #[test]
    fn wished_address_is_read_or_shown() {
        let wish = |text: &str| pod(json!({"metadata": {"annotations": {"flatnet.dev/ip": text}}}));
        assert_eq!(wished_address(&wish("10.1.15.3")), Ok(Some([10, 1, 15, 3].into())));
        assert_eq!(wished_address(&wish("10.1.15")), Err("10.1.15"));
        assert_eq!(wished_address(&Pod::default()), Ok(None));
    }
}
