//! What pods that are not simulated take of the system's capabilities.
//!
//! The publisher asks before it has one made. Invariant: a simulated pod takes none.
//!
//! May depend on `rustix` and [`crate::pods`]. Read first: capabilities(7), setns(2).

use rustix::thread::{CapabilitySet, capabilities};

use crate::pods::{Attachment, PodKind};

/// Lists the capabilities that a pod takes and this process lacks: to make and enter namespaces, mounts, and interfaces there.
#[must_use]
pub fn missing_capabilities(kind: &PodKind) -> Vec<&'static str> {
    let all = [
        (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
        (CapabilitySet::SYS_CHROOT, "CAP_SYS_CHROOT"),
    ];
    let taken = match kind {
        PodKind::Simulated | PodKind::Attached(Attachment::Tap(_)) => &[],
        PodKind::Attached(Attachment::Namespace(_)) => &all[..2],
        PodKind::Real => &all[..],
    };
    // Where the system does not say, it says at the first pod.
    let own = capabilities(None).map_or(CapabilitySet::all(), |own| own.effective);
    taken.iter().filter(|(flag, _)| !own.contains(*flag)).map(|&(_, name)| name).collect()
}
