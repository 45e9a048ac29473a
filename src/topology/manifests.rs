//! The documents of all files by kind: topologies, Pods, Services, EndpointSlices.
//!
//! Called once per run; everything after it works on typed documents.
//!
//! Invariants: every document is in one list or reported; a field that Kubernetes knows and flatnet does not model is
//! one warning per kind, whatever the number of its uses.
//!
//! May depend on [`crate::topology::decode`].
//!
//! Read first: [`crate::topology::decode`].

use std::{collections::BTreeSet, sync::Arc};

use flatnet_agents::pods::RUNTIME_CLASS;
use k8s_openapi::{
    Resource,
    api::{
        core::v1::{Pod, Service},
        discovery::v1::EndpointSlice,
    },
};
use serde::de::DeserializeOwned;

use crate::topology::{
    API_VERSION, Manifests,
    decode::decode,
    findings::{Finding, Source},
    yaml::{Node, Value, documents},
};

/// The fields of a Pod that have an effect; `*` stands for any key or item.
const POD_FIELDS: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.namespace",
    "metadata.labels.*",
    "metadata.annotations.*",
    "spec.nodeName",
    "spec.runtimeClassName",
    "spec.hostNetwork",
    "spec.restartPolicy",
    "spec.nodeSelector.*",
    "spec.containers.*.name",
    "spec.containers.*.image",
    "spec.containers.*.command.*",
    "spec.containers.*.args.*",
    "spec.containers.*.ports.*.name",
    "spec.containers.*.ports.*.containerPort",
    "spec.containers.*.ports.*.protocol",
    "spec.containers.*.volumeMounts.*.name",
    "spec.containers.*.volumeMounts.*.mountPath",
    "spec.containers.*.volumeMounts.*.subPath",
    "spec.containers.*.volumeMounts.*.readOnly",
    "spec.volumes.*.name",
    "spec.volumes.*.emptyDir.medium",
    "spec.volumes.*.emptyDir.sizeLimit",
    "spec.volumes.*.hostPath.path",
    "spec.volumes.*.hostPath.type",
];

/// The fields that have one too where a pod's programs are the host's own.
const REAL_POD_FIELDS: &[&str] = &[
    "spec.terminationGracePeriodSeconds",
    "spec.securityContext.runAsUser",
    "spec.securityContext.runAsGroup",
    "spec.containers.*.env.*.name",
    "spec.containers.*.env.*.value",
    "spec.containers.*.env.*.valueFrom.*.*",
    "spec.containers.*.workingDir",
    "spec.containers.*.securityContext.runAsUser",
    "spec.containers.*.securityContext.runAsGroup",
];

/// The fields of a Service that have an effect.
const SERVICE_FIELDS: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.namespace",
    "metadata.labels.*",
    "metadata.annotations.*",
    "spec.type",
    "spec.selector.*",
    "spec.clusterIP",
    "spec.clusterIPs.*",
    "spec.publishNotReadyAddresses",
    "spec.externalTrafficPolicy",
    "spec.internalTrafficPolicy",
    "spec.sessionAffinity",
    "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
    "spec.ports.*.name",
    "spec.ports.*.port",
    "spec.ports.*.protocol",
    "spec.ports.*.targetPort",
    "spec.ports.*.nodePort",
];

/// The fields of an EndpointSlice that have an effect.
const SLICE_FIELDS: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.namespace",
    "metadata.labels.*",
    "addressType",
    "endpoints.*.addresses.*",
    "endpoints.*.nodeName",
    "endpoints.*.conditions.ready",
    "endpoints.*.conditions.serving",
    "endpoints.*.conditions.terminating",
    "ports.*.name",
    "ports.*.port",
    "ports.*.protocol",
];

/// A Kubernetes object and the document it is from.
#[derive(Debug)]
pub(crate) struct Manifest<T> {
    pub(crate) object: T,
    pub(crate) node: Node,
}

/// All documents of all files.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    pub(crate) topologies: Vec<Node>,
    pub(crate) pods: Vec<Manifest<Pod>>,
    pub(crate) services: Vec<Manifest<Service>>,
    pub(crate) slices: Vec<Manifest<EndpointSlice>>,
    /// Whether a file could not be parsed at all.
    pub(crate) broken: bool,
}

impl Documents {
    /// Reads all files.
    pub(crate) fn read(sources: &[Arc<Source>], findings: &mut Vec<Finding>) -> Self {
        let mut all = Self::default();
        let mut warned = BTreeSet::new();
        for source in sources {
            match documents(source) {
                Ok(nodes) => {
                    for node in nodes {
                        all.take(node, &mut warned, findings);
                    }
                }
                Err(finding) => {
                    all.broken = true;
                    findings.push(*finding);
                }
            }
        }
        all
    }

    /// Gives the objects alone.
    pub(crate) fn into_manifests(self) -> Manifests {
        Manifests {
            pods: self.pods.into_iter().map(|manifest| manifest.object).collect(),
            services: self.services.into_iter().map(|manifest| manifest.object).collect(),
            slices: self.slices.into_iter().map(|manifest| manifest.object).collect(),
        }
    }

    fn take(&mut self, node: Node, warned: &mut BTreeSet<String>, findings: &mut Vec<Finding>) {
        if !matches!(node.value, Value::Map(_)) {
            findings.push(Finding::error(
                node.place.clone(),
                format!("a document must be a mapping, not {}", node.kind()),
            ));
            return;
        }
        let Some(kind) = node.get("kind").and_then(Node::text).map(str::to_owned) else {
            findings.push(Finding::error(node.place.clone(), "the document has no kind"));
            return;
        };
        match kind.as_str() {
            "Topology" => {
                check_version(&node, "Topology", API_VERSION, findings);
                self.topologies.push(node);
            }
            "Pod" => {
                let class =
                    node.get("spec").and_then(|spec| spec.get("runtimeClassName")).and_then(Node::text);
                let more = if class == Some(RUNTIME_CLASS) { REAL_POD_FIELDS } else { &[] };
                self.pods.extend(manifest(node, &[POD_FIELDS, more].concat(), warned, findings));
            }
            "Service" => self.services.extend(manifest(node, SERVICE_FIELDS, warned, findings)),
            "EndpointSlice" => self.slices.extend(manifest(node, SLICE_FIELDS, warned, findings)),
            other => {
                let finding = Finding::error(
                    node.place_of(&["kind"]).clone(),
                    format!("kind {other} is not supported yet"),
                );
                findings.push(finding.help("supported are Topology, Pod, Service and EndpointSlice"));
            }
        }
    }
}

fn check_version(node: &Node, kind: &str, expected: &str, findings: &mut Vec<Finding>) -> bool {
    let found = node.get("apiVersion").and_then(Node::text);
    let fits = found == Some(expected);
    if !fits {
        let message = format!("apiVersion of {kind} must be {expected}");
        findings.push(Finding::error(node.place_of(&["apiVersion"]).clone(), message));
    }
    fits
}

fn manifest<T: Resource + DeserializeOwned>(
    node: Node,
    modelled: &[&str],
    warned: &mut BTreeSet<String>,
    findings: &mut Vec<Finding>,
) -> Option<Manifest<T>> {
    if !check_version(&node, T::KIND, T::API_VERSION, findings) {
        return None;
    }
    let before = findings.len();
    let object = decode(&node, findings)?;
    let unknown: BTreeSet<usize> =
        findings[before..].iter().map(|finding| finding.place().range().start).collect();
    let mut walk = Walk { kind: T::KIND, modelled, unknown: &unknown, warned, findings };
    walk.descend(&node, &mut Vec::new());
    Some(Manifest { object, node })
}

/// Looks for fields that have no effect.
struct Walk<'a> {
    kind: &'static str,
    modelled: &'a [&'a str],
    /// Where fields begin that are errors already.
    unknown: &'a BTreeSet<usize>,
    warned: &'a mut BTreeSet<String>,
    findings: &'a mut Vec<Finding>,
}

impl Walk<'_> {
    fn descend<'n>(&mut self, node: &'n Node, path: &mut Vec<&'n str>) {
        for item in node.items() {
            path.push("*");
            self.descend(item, path);
            path.pop();
        }
        for (key, child) in node.entries() {
            let is_error = self.unknown.contains(&key.place.range().start);
            if is_error || matches!(child.value, Value::Null) {
                continue;
            }
            path.push(&key.name);
            if self.is_modelled(path) {
                self.descend(child, path);
            } else {
                let shown = path.iter().filter(|&&step| step != "*").copied().collect::<Vec<_>>().join(".");
                if self.warned.insert(format!("{} {shown}", self.kind)) {
                    let message = format!("{shown} of a {} has no effect yet", self.kind);
                    self.findings.push(Finding::warning(key.place.clone(), message));
                }
            }
            path.pop();
        }
    }

    /// Says whether a path is a modelled field or leads to one.
    fn is_modelled(&self, path: &[&str]) -> bool {
        self.modelled.iter().any(|field| {
            let mut steps = field.split('.');
            path.iter().all(|step| steps.next().is_some_and(|wanted| wanted == "*" || wanted == *step))
        })
    }
}
