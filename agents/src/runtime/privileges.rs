//! What pods that are not simulated take of the system's capabilities.
//!
//! The publisher asks before it has one made. Invariant: a simulated pod takes none.
//!
//! May depend on `rustix` and [`crate::pods`]. Read first: capabilities(7), setns(2).

use rustix::thread::{CapabilitySet, capabilities};

use crate::pods::{Attachment, PodKind, PodView};

/// Lists the capabilities that a pod takes and this process lacks: to make and enter namespaces, mounts, and interfaces there; and
/// where programs run as somebody else, to become that, and to end what is somebody else's.
#[must_use]
pub fn missing_capabilities(pod: &PodView) -> Vec<&'static str> {
    let all = [
        (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
        (CapabilitySet::SYS_CHROOT, "CAP_SYS_CHROOT"),
        (CapabilitySet::SETUID, "CAP_SETUID"),
        (CapabilitySet::SETGID, "CAP_SETGID"),
        (CapabilitySet::KILL, "CAP_KILL"),
    ];
    let of_containers = || pod.containers.iter().filter_map(|container| container.security_context.as_ref());
    let is_other = pod.security.as_ref().is_some_and(|it| it.run_as_user.or(it.run_as_group).is_some())
        || of_containers().any(|it| it.run_as_user.or(it.run_as_group).is_some());
    let taken = match &pod.kind {
        PodKind::Simulated | PodKind::Attached(Attachment::Tap(_)) => &[],
        PodKind::Attached(Attachment::Namespace(_)) => &all[..2],
        PodKind::Real if is_other => &all[..],
        PodKind::Real => &all[..3],
    };
    // Where the system does not say, it says at the first pod.
    let own = capabilities(None).map_or(CapabilitySet::all(), |own| own.effective);
    taken.iter().filter(|(flag, _)| !own.contains(*flag)).map(|&(_, name)| name).collect()
}
