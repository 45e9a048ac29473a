//! Binds pods to nodes: sets `spec.nodeName` of pods that have none.
//!
//! The first controller on a pod's way; the address controller follows.
//!
//! Invariants: a bound pod is never moved; the node with the fewest pods wins, then the first by name; a node that is
//! unschedulable or not ready, or that the pod's `nodeSelector` excludes, gets none.
//!
//! May depend on [`crate::controllers`].
//!
//! Read first: [`crate::controllers`].

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::{
    controllers::{Changes, Controller, Mirror},
    objects::Object,
    pods::{is_finished, node_name},
    store::Followed,
};

/// The binding controller.
#[derive(Clone, Debug, Default)]
pub struct Binder {
    pods: Mirror<Pod>,
    nodes: Mirror<Node>,
    /// How many unfinished pods each node has.
    load: BTreeMap<String, usize>,
}

impl Controller for Binder {
    const NAME: &'static str = "bind";

    fn prefixes(&self) -> Vec<String> {
        vec![Node::DIRECTORY.into(), Pod::DIRECTORY.into()]
    }

    fn observe(&mut self, change: &Followed) -> Vec<Arc<str>> {
        if change.key().starts_with(Node::DIRECTORY) {
            // An unreadable node is no node.
            let _ = self.nodes.apply(change);
            return self.unbound();
        }
        let before = self.pods.apply(change).unwrap_or_default();
        let after = self.pods.get(change.key());
        for (pod, step) in [(before.as_ref(), -1), (after, 1)] {
            if let Some(node) = pod.filter(|pod| !is_finished(pod)).and_then(node_name) {
                let load = self.load.entry(node.into()).or_default();
                *load = load.saturating_add_signed(step);
            }
        }
        vec![Arc::clone(change.key())]
    }

    fn reconcile(&mut self, key: &Arc<str>) -> Changes {
        let Some(pod) = self.pods.get(key).filter(|pod| wants_node(pod)) else {
            return Changes::none();
        };
        let fitting = self.nodes.iter().filter(|(_, node)| fits(pod, node));
        let names = fitting.filter_map(|(_, node)| node.metadata.name.as_ref());
        let best = names.min_by_key(|name| (self.load.get(*name).copied().unwrap_or_default(), *name));
        let Some(best) = best else {
            return Changes::warn("no node is ready, schedulable and selected by the pod's nodeSelector");
        };
        let mut bound = pod.clone();
        bound.spec.get_or_insert_default().node_name = Some(best.clone());
        Changes::none().write(&bound)
    }
}

impl Binder {
    fn unbound(&self) -> Vec<Arc<str>> {
        self.pods.iter().filter(|(_, pod)| wants_node(pod)).map(|(key, _)| Arc::clone(key)).collect()
    }
}

fn wants_node(pod: &Pod) -> bool {
    node_name(pod).is_none() && !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

fn fits(pod: &Pod, node: &Node) -> bool {
    let unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.and_then(|all| all.iter().find(|condition| condition.type_ == "Ready"));
    let selector = pod.spec.as_ref().and_then(|spec| spec.node_selector.as_ref());
    let labels = node.metadata.labels.as_ref();
    let selected = selector.is_none_or(|selector| {
        selector.iter().all(|(name, value)| labels.and_then(|labels| labels.get(name)) == Some(value))
    });
    !unschedulable && ready.is_none_or(|ready| ready.status == "True") && selected
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::controllers::tests::Cluster;

    fn node(name: &str, extra: Value) -> Value {
        let mut node = json!({"metadata": {"name": name, "labels": {"zone": name}}});
        node.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        node
    }

    fn cluster() -> Cluster {
        let cluster = Cluster::new();
        cluster.start(Binder::default());
        cluster
    }

    fn bindings(cluster: &Cluster) -> Vec<Option<String>> {
        cluster.list::<Pod>().iter().map(|pod| node_name(pod).map(str::to_owned)).collect()
    }

    #[test]
    fn pods_spread_over_nodes_and_stay_where_they_are() {
        let mut cluster = cluster();
        cluster.create::<Node>(node("node-1", json!({})));
        cluster.create::<Node>(node("node-2", json!({})));
        cluster.create::<Pod>(
            json!({"metadata": {"name": "a"}, "spec": {"nodeName": "node-1", "containers": []}}),
        );
        for name in ["b", "c", "d"] {
            cluster.create::<Pod>(json!({"metadata": {"name": name}}));
        }
        cluster.settle();
        let expected = ["node-1", "node-2", "node-1", "node-2"].map(|name| Some(name.to_owned()));
        assert_eq!(bindings(&cluster), expected);
    }

    #[test]
    fn pods_wait_for_a_node_and_say_so_once() {
        let mut cluster = cluster();
        cluster.create::<Node>(node("closed", json!({"spec": {"unschedulable": true}})));
        let broken = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        cluster.create::<Node>(node("broken", broken));
        cluster.create::<Pod>(json!({"metadata": {"name": "a"}}));
        assert_eq!(cluster.settle().len(), 1);
        cluster.create::<Node>(node("closed-too", json!({"spec": {"unschedulable": true}})));
        assert!(cluster.settle().is_empty());
        cluster.create::<Node>(node("open", json!({})));
        cluster.settle();
        assert_eq!(bindings(&cluster), [Some("open".to_owned())]);
    }

    #[test]
    fn node_selector_is_honoured() {
        let mut cluster = cluster();
        cluster.create::<Node>(node("a", json!({})));
        cluster.create::<Node>(node("b", json!({})));
        cluster.create::<Pod>(
            json!({"metadata": {"name": "p"}, "spec": {"containers": [], "nodeSelector": {"zone": "b"}}}),
        );
        cluster.settle();
        assert_eq!(bindings(&cluster), [Some("b".to_owned())]);
    }

    #[test]
    fn finished_pods_do_not_count() {
        let mut cluster = cluster();
        cluster.create::<Node>(node("a", json!({})));
        cluster.create::<Node>(node("b", json!({})));
        let done = json!({"metadata": {"name": "done"}, "spec": {"nodeName": "a", "containers": []}, "status": {"phase": "Succeeded"}});
        cluster.create::<Pod>(done);
        cluster.create::<Pod>(json!({"metadata": {"name": "p"}}));
        cluster.settle();
        assert_eq!(bindings(&cluster)[1], Some("a".to_owned()));
    }
}
