//! A pod's volumes: what its manifest says, and what that is on this host.
//!
//! The topology's checks ask what a volume is made of, the publisher makes the engine's volumes of it. `emptyDir` is memory, `hostPath` what
//! lies on the host when the pod is made; what flatnet does not model yet is empty and cannot be written.
//!
//! Invariants: nothing on the host is changed; a `hostPath` never holds more than its directory (`host`).
//!
//! May depend on the engine and `k8s-openapi`.
//!
//! Read first: `docs/adr/0019-volumes-are-memory.md`.

mod host;

use flatnet_engine::pod::{DEFAULT_VOLUME_LIMIT, Entry, Mount, Volume};
use k8s_openapi::api::core::v1::{self as core, Container};

pub use host::{HostError, HostKind};

/// What a volume is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Memory, for at most so many octets.
    Memory {
        /// The octets.
        limit: usize,
    },
    /// What lies on the host.
    Host {
        /// Where, from the root on.
        path: String,
        /// What must be there.
        kind: HostKind,
    },
    /// Something that is not modelled.
    Unmodelled,
}

/// What a volume's source says wrong: the field below the volume, and why.
pub type SourceError = (&'static [&'static str], String);

/// Reads what a volume is made of.
///
/// # Errors
/// [`SourceError`].
pub fn source(volume: &core::Volume) -> Result<Source, SourceError> {
    match (&volume.empty_dir, &volume.host_path) {
        (Some(_), Some(_)) => Err((&["hostPath"], format!("volume {:?} has two sources", volume.name))),
        (Some(memory), None) => memory_source(memory),
        (None, Some(host)) => host_source(host),
        (None, None) => Ok(Source::Unmodelled),
    }
}

fn memory_source(memory: &core::EmptyDirVolumeSource) -> Result<Source, SourceError> {
    match memory.medium.as_deref().unwrap_or_default() {
        "" | "Memory" => {}
        other => {
            let message =
                format!("medium {other:?} is not supported; Memory and none are, both are memory here");
            return Err((&["emptyDir", "medium"], message));
        }
    }
    let Some(limit) = &memory.size_limit else { return Ok(Source::Memory { limit: DEFAULT_VOLUME_LIMIT }) };
    match octets(&limit.0) {
        Some(limit) => Ok(Source::Memory { limit }),
        None => Err((&["emptyDir", "sizeLimit"], format!("sizeLimit {:?} is not a size", limit.0))),
    }
}

/// Says whether an `emptyDir` is to be memory, and for how many octets if it says: in a real pod it is a directory otherwise.
#[must_use]
pub fn memory(volume: &core::Volume) -> Option<Option<usize>> {
    let memory = volume.empty_dir.as_ref().filter(|memory| memory.medium.as_deref() == Some("Memory"))?;
    Some(memory.size_limit.as_ref().and_then(|limit| octets(&limit.0)))
}

fn host_source(host: &core::HostPathVolumeSource) -> Result<Source, SourceError> {
    let path = host.path.clone();
    if !path.starts_with('/') {
        return Err((&["hostPath", "path"], format!("hostPath {path:?} is relative; it must begin with /")));
    }
    if path.split('/').any(|name| name == "..") {
        return Err((&["hostPath", "path"], format!("hostPath {path:?} must not contain ..")));
    }
    let kind = match host.type_.as_deref().unwrap_or_default() {
        "" => HostKind::Any,
        "DirectoryOrCreate" => HostKind::DirectoryOrEmpty,
        "Directory" => HostKind::Directory,
        "File" => HostKind::File,
        "FileOrCreate" => HostKind::FileOrEmpty,
        other => {
            let known = "Directory, DirectoryOrCreate, File and FileOrCreate are";
            return Err((
                &["hostPath", "type"],
                format!("hostPath type {other:?} is not supported; {known}"),
            ));
        }
    };
    Ok(Source::Host { path, kind })
}

/// Makes the engine's volumes; those that cannot be made are told by name and are missing.
pub(crate) fn make(volumes: &[core::Volume]) -> (Vec<Volume>, Vec<(String, HostError)>) {
    let (mut made, mut failed) = (Vec::new(), Vec::new());
    for volume in volumes {
        let name = &volume.name;
        match source(volume) {
            Ok(Source::Memory { limit }) => made.push(Volume::empty(name, limit)),
            Ok(Source::Host { path, kind }) => match host::read(&path, kind) {
                Ok(root) => made.push(Volume::read_only(name, root)),
                Err(error) => failed.push((name.clone(), error)),
            },
            Ok(Source::Unmodelled) => made.push(Volume::read_only(name, Entry::directory())),
            Err((_, message)) => failed.push((name.clone(), HostError::Source(message))),
        }
    }
    (made, failed)
}

/// Reads where a container has volumes.
pub(crate) fn mounts(container: &Container) -> Vec<Mount> {
    let mounts = container.volume_mounts.iter().flatten();
    mounts
        .map(|mount| Mount {
            volume: mount.name.clone(),
            path: mount.mount_path.clone(),
            sub_path: mount.sub_path.clone().unwrap_or_default(),
            read_only: mount.read_only.unwrap_or(false),
        })
        .collect()
}

/// Reads a size as Kubernetes writes quantities: `64Mi`, `1.5G`, `1e6`.
fn octets(text: &str) -> Option<usize> {
    const UNITS: [(&str, f64); 13] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
        ("m", 1e-3),
    ];
    let unit = UNITS.iter().find_map(|&(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)));
    let (digits, factor) = unit.unwrap_or((text, 1.0));
    let number: f64 =
        digits.starts_with(|first: char| first.is_ascii_digit()).then(|| digits.parse().ok())??;
    // What is more than this machine can address is as good as no limit.
    Some((number * factor).ceil() as usize)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn volume(json: serde_json::Value) -> core::Volume {
        serde_json::from_value(json).unwrap()
    }

    /// Kubernetes, "Quantity".
    #[test]
    fn sizes_are_quantities() {
        for (text, size) in [
            ("0", Some(0)),
            ("1000", Some(1000)),
            ("1e3", Some(1000)),
            ("64Mi", Some(64 << 20)),
            ("1.5k", Some(1500)),
            ("500m", Some(1)),
            ("", None),
            ("Mi", None),
            ("-1", None),
            ("inf", None),
            ("1 Mi", None),
            ("1MB", None),
        ] {
            assert_eq!(octets(text), size, "{text}");
        }
    }

    #[test]
    fn a_source_is_memory_the_host_or_nothing_that_is_known() {
        let memory = |limit| Ok(Source::Memory { limit });
        let host = |kind| Ok(Source::Host { path: "/srv".into(), kind });
        for (json, expected) in [
            (json!({"name": "a", "emptyDir": {}}), memory(DEFAULT_VOLUME_LIMIT)),
            (json!({"name": "a", "emptyDir": {"medium": "Memory", "sizeLimit": "1Ki"}}), memory(1024)),
            (json!({"name": "a", "hostPath": {"path": "/srv"}}), host(HostKind::Any)),
            (json!({"name": "a", "hostPath": {"path": "/srv", "type": "File"}}), host(HostKind::File)),
            (json!({"name": "a", "configMap": {"name": "x"}}), Ok(Source::Unmodelled)),
        ] {
            assert_eq!(source(&volume(json)), expected);
        }
        for (json, field) in [
            (json!({"name": "a", "emptyDir": {"medium": "HugePages"}}), "medium"),
            (json!({"name": "a", "emptyDir": {"sizeLimit": "much"}}), "sizeLimit"),
            (json!({"name": "a", "hostPath": {"path": "srv"}}), "path"),
            (json!({"name": "a", "hostPath": {"path": "/srv/../etc"}}), "path"),
            (json!({"name": "a", "hostPath": {"path": "/srv", "type": "Socket"}}), "type"),
            (json!({"name": "a", "hostPath": {"path": "/srv"}, "emptyDir": {}}), "hostPath"),
        ] {
            assert_eq!(source(&volume(json)).unwrap_err().0.last(), Some(&field));
        }
    }
}
