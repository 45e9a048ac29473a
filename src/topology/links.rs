//! The entries of `links:`: which machines, and what differs from a perfect link between them.
//!
//! Read by [`crate::topology::spec`]; checked once machines and pods are known.
//!
//! Invariants: both ends exist and have a link; no direction is described twice; no setting contradicts another.
//!
//! May depend on [`crate::topology::spec`] and [`crate::topology::manifests`].
//!
//! Read first: [`crate::impairment`], `docs/topology.md`.

use std::collections::HashMap;

use flatnet_agents::objects;
use flatnet_engine::link::impairment::Impairment;
use k8s_openapi::api::core::v1::Pod;

use crate::impairment::{self, NAMES};
use crate::topology::{
    Link,
    fields::{Fields, Located, text},
    findings::{Finding, Place},
    manifests::Manifest,
    spec::{Machine, Spec},
    yaml::{Node, Value},
};

/// A link that differs from a perfect one.
#[derive(Debug)]
pub(crate) struct LinkSpec {
    place: Place,
    from: Located<String>,
    to: Located<String>,
    both_ways: bool,
    impairment: Impairment,
}

impl LinkSpec {
    /// The directions that it describes.
    pub(crate) fn directions(&self) -> Vec<Link> {
        let link = |from: &Located<String>, to: &Located<String>| Link {
            from: from.value.clone(),
            to: to.value.clone(),
            impairment: self.impairment,
        };
        let mut links = vec![link(&self.from, &self.to)];
        links.extend(self.both_ways.then(|| link(&self.to, &self.from)));
        links
    }
}

/// Reads an entry.
pub(crate) fn link(item: &Node, findings: &mut Vec<Finding>) -> Option<LinkSpec> {
    let mut fields = Fields::open(item, "a link", findings);
    let list = fields.list("between");
    let between = item.get("between").map(|_| list);
    let (from, to) = (fields.optional("from", text), fields.optional("to", text));
    let ends = match (between, from, to) {
        (Some(list), None, None) => {
            let named = list.iter().filter_map(|node| {
                Some(Located { value: node.text()?.to_owned(), place: node.place.clone() })
            });
            <[Located<String>; 2]>::try_from(named.collect::<Vec<_>>()).ok()
        }
        (None, Some(from), Some(to)) => Some([from, to]),
        (Some(_), _, _) | (None, _, _) => None,
    };
    if ends.is_none() {
        let (place, message) = match between {
            Some(_) => (item.place_of(&["between"]), "between must name two machines"),
            None => {
                (&item.place, "a link names its machines by between, or by from and to for one direction")
            }
        };
        let help = "write between: [node-1, node-2], or from: node-1, to: node-2";
        fields.findings.push(Finding::error(place.clone(), message).help(help));
    }
    let both_ways = between.is_some();
    let mut impairment = Impairment::default();
    for name in NAMES {
        fields.optional(name, |node| impairment::set(&mut impairment, name, &scalar(node)?));
    }
    if let Some((name, problem)) = impairment::contradiction(&impairment) {
        let place = item.place_of(&[name]).clone();
        fields.findings.push(Finding::error(place, format!("{name}: {problem}")));
    }
    fields.close();
    let [from, to] = ends?;
    Some(LinkSpec { place: item.place.clone(), from, to, both_ways, impairment })
}

/// A value as it would be typed.
fn scalar(node: &Node) -> Result<String, String> {
    match &node.value {
        Value::Unsigned(number) => Ok(number.to_string()),
        Value::Signed(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        Value::Text(text) => Ok(text.clone()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Null | Value::List(_) | Value::Map(_) => {
            Err(format!("must be one value, not {}", node.kind()))
        }
    }
}

/// Checks all entries against the machines and each other.
pub(crate) fn check(spec: &Spec, pods: &[Manifest<Pod>], findings: &mut Vec<Finding>) {
    let mut seen: HashMap<(String, String), &Place> = HashMap::new();
    for entry in &spec.links {
        let mut known = true;
        for end in [&entry.from, &entry.to] {
            if machine(spec, &end.value).is_none() && pod(pods, &end.value).is_none() {
                let names = machines(spec).map(|machine| machine.name.value.clone());
                let names: Vec<String> = names.chain(pods.iter().map(pod_name)).collect();
                let message = format!("link names {:?}, which is no machine", end.value);
                let finding = Finding::error(end.place.clone(), message);
                findings.push(finding.help(format!("known are {}", names.join(", "))));
                known = false;
            }
        }
        let (from, to) = (&entry.from.value, &entry.to.value);
        if from == to {
            let message = format!("link between {from} and itself");
            findings.push(Finding::error(entry.to.place.clone(), message));
            continue;
        }
        if let Some(problem) = known.then(|| apart(spec, pods, from, to)).flatten() {
            let finding =
                Finding::error(entry.place.clone(), format!("there is no link between {from} and {to}"));
            findings.push(finding.help(problem));
        }
        let twice = entry
            .directions()
            .iter()
            .find_map(|link| seen.insert((link.from.clone(), link.to.clone()), &entry.place));
        if let Some(first) = twice {
            let message = format!("link between {from} and {to} is described twice");
            findings.push(Finding::error(entry.place.clone(), message).with("first here", first.clone()));
        }
    }
}

/// Says why two machines have no link; nothing when they have one.
fn apart(spec: &Spec, pods: &[Manifest<Pod>], from: &str, to: &str) -> Option<String> {
    let ends = [(machine(spec, from), pod(pods, from)), (machine(spec, to), pod(pods, to))];
    match ends {
        [(Some(near), _), (Some(far), _)] => {
            let networks =
                |machine: &Machine| machine.addresses.iter().map(|it| it.value.network).collect::<Vec<_>>();
            let far = networks(far);
            let shared = networks(near).iter().any(|network| far.contains(network));
            (!shared).then(|| "machines of one network have links, and a pod and its node".to_owned())
        }
        [(Some(other), _), (None, Some(pod))] | [(None, Some(pod)), (Some(other), _)] => {
            let other = &other.name.value;
            let is_node = spec.nodes.iter().any(|node| node.name.value == *other);
            let wanted = pod.object.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
            match wanted {
                Some(node) if node != other => Some(format!("{} is on {node}", pod_name(pod))),
                Some(_) | None if !is_node => Some("a pod has a link to its node only".to_owned()),
                Some(_) | None => None,
            }
        }
        [(None, _), _] | [_, (None, _)] => Some("a pod has a link to its node only".to_owned()),
    }
}

fn machines(spec: &Spec) -> impl Iterator<Item = &Machine> {
    spec.nodes.iter().chain(&spec.hosts).chain(&spec.routers)
}

fn machine<'a>(spec: &'a Spec, name: &str) -> Option<&'a Machine> {
    machines(spec).find(|machine| machine.name.value == name)
}

fn pod<'a>(pods: &'a [Manifest<Pod>], name: &str) -> Option<&'a Manifest<Pod>> {
    let short = name.strip_prefix("default/").unwrap_or(name);
    pods.iter().find(|pod| pod_name(pod) == short)
}

/// A pod's name as commands have it: with its namespace, unless that is the default one.
fn pod_name(pod: &Manifest<Pod>) -> String {
    let (namespace, name) = (objects::namespace(&pod.object), objects::name(&pod.object));
    if namespace == "default" { name.to_owned() } else { format!("{namespace}/{name}") }
}
