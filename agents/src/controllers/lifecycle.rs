//! Says which nodes are ready: those whose process is heard of.
//!
//! Runs where several processes are one cluster; Services stop sending to pods of a node that is not.
//!
//! Invariants: a node without a lease is `Unknown`, as in Kubernetes, and none of its pods ready; that is written only if there still is no
//! lease, so that nothing is taken back which a node that has just come says; nothing is deleted.
//!
//! May depend on [`crate::controllers`] and [`crate::membership`].
//!
//! Read first: Kubernetes' node lifecycle controller.

use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod};

use crate::{
    controllers::{Changes, Controller, Mirror},
    membership::NODES,
    objects::{self, Object},
    pods,
    store::Followed,
};

/// The node lifecycle controller.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    leases: Mirror<Lease>,
    nodes: Mirror<Node>,
    pods: Mirror<Pod>,
}

impl Controller for Lifecycle {
    const NAME: &'static str = "lifecycle";

    fn prefixes(&self) -> Vec<String> {
        let leases = objects::key::<Lease>(NODES, "").to_string();
        vec![leases, Node::DIRECTORY.into(), Pod::DIRECTORY.into()]
    }

    fn observe(&mut self, change: &Followed) -> Vec<Arc<str>> {
        let key = change.key();
        if key.starts_with(Pod::DIRECTORY) {
            let _ = self.pods.apply(change);
            return vec![Arc::clone(key)];
        }
        if key.starts_with(Node::DIRECTORY) {
            let _ = self.nodes.apply(change);
            return vec![Arc::clone(key)];
        }
        let _ = self.leases.apply(change);
        let Some((_, name)) = objects::parse_key::<Lease>(key) else { return Vec::new() };
        let pods = self.pods.iter().filter(|(_, pod)| pods::node_name(pod) == Some(name));
        let pods = pods.map(|(key, _)| Arc::clone(key));
        [objects::key::<Node>("", name)].into_iter().chain(pods).collect()
    }

    fn reconcile(&mut self, key: &Arc<str>) -> Changes {
        if let Some(node) = self.nodes.get(key) {
            return self.judge(node);
        }
        let ready = self.pods.get(key).filter(|pod| pods::is_ready(pod));
        let node = ready.and_then(pods::node_name).filter(|node| !self.is_heard_of(node));
        let Some((pod, node)) = ready.zip(node) else { return Changes::none() };
        let mut pod = pod.clone();
        let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
        for condition in conditions.iter_mut().filter(|condition| condition.type_ == "Ready") {
            condition.status = "False".into();
        }
        Changes::none().write(&pod).without::<Lease>(NODES, node)
    }
}

impl Lifecycle {
    fn is_heard_of(&self, node: &str) -> bool {
        self.leases.get(&objects::key::<Lease>(NODES, node)).is_some()
    }

    fn judge(&self, node: &Node) -> Changes {
        let name = objects::name(node);
        let is_heard_of = self.is_heard_of(name);
        let wanted = if is_heard_of {
            ready()
        } else {
            NodeCondition {
                type_: "Ready".into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusUnknown".into()),
                message: Some("The process that runs the node is not heard of.".into()),
                ..NodeCondition::default()
            }
        };
        let mut node = node.clone();
        let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
        match conditions.iter_mut().find(|condition| condition.type_ == "Ready") {
            Some(condition) if condition.status == wanted.status => return Changes::none(),
            Some(condition) => *condition = wanted,
            None => conditions.push(wanted),
        }
        let changes = Changes::none().write(&node);
        if is_heard_of { changes } else { changes.without::<Lease>(NODES, objects::name(&node)) }
    }
}

/// What a node says of itself that runs.
pub fn ready() -> NodeCondition {
    NodeCondition {
        type_: "Ready".into(),
        status: "True".into(),
        reason: Some("KubeletReady".into()),
        ..NodeCondition::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controllers::tests::Cluster;

    #[test]
    fn a_node_that_is_not_heard_of_is_unknown_and_its_pods_are_not_ready() {
        let mut cluster = Cluster::new();
        cluster.start(Lifecycle::default());
        let lease = || json!({"metadata": {"name": "a", "namespace": NODES}});
        cluster.create::<Lease>(lease());
        for name in ["a", "b"] {
            cluster.create::<Node>(json!({"metadata": {"name": name}}));
            let ready = json!([{"type": "Ready", "status": "True"}]);
            cluster.create::<Pod>(json!({"metadata": {"name": format!("pod-{name}")}, "spec": {"nodeName": name, "containers": []},
                "status": {"conditions": ready}}));
        }
        let seen = |cluster: &mut Cluster| {
            assert_eq!(cluster.settle(), Vec::<String>::new());
            let mut nodes = cluster.list::<Node>();
            nodes.sort_by_key(|node| objects::name(node).to_owned());
            let status = |node: Node| node.status.unwrap().conditions.unwrap()[0].status.clone();
            let ready = ["pod-a", "pod-b"].map(|name| pods::is_ready(&cluster.get::<Pod>(name)));
            (nodes.into_iter().map(status).collect::<Vec<_>>(), ready)
        };
        assert_eq!(seen(&mut cluster), (vec!["True".to_owned(), "Unknown".to_owned()], [true, false]));
        let key = objects::key::<Lease>(NODES, "a");
        futures::executor::block_on(crate::Store::delete(&cluster.store, &key)).unwrap();
        assert_eq!(seen(&mut cluster), (vec!["Unknown".to_owned(), "Unknown".to_owned()], [false, false]));
        cluster.create::<Lease>(lease());
        assert_eq!(
            seen(&mut cluster),
            (vec!["True".to_owned(), "Unknown".to_owned()], [false, false]),
            "how its pods are the node says itself"
        );
    }
}
