//! Binds pods to nodes: sets `spec.nodeName` of pods that have none.
//!
//! The first controller on a pod's way; the address controller follows.
//!
//! Invariants: a bound pod is never moved; the node with the fewest pods wins, then the first by name; a node that is
//! unschedulable or not ready, or that the pod's `nodeSelector` excludes, gets none; a pod that wishes an address goes to the
//! node that has leased its subnet.
//!
//! May depend on [`crate::controllers`], [`crate::ipam`], [`crate::node`].
//!
//! Read first: [`crate::controllers`].

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use flatnet_engine::tunnel::Encapsulation;
use k8s_openapi::api::core::v1::{Node, Pod};

use crate::{
    controllers::{Changes, Controller, Mirror, address::internal_address},
    ipam::is_pod_address,
    lease,
    node::Routes,
    objects::Object,
    pods::{is_finished, is_host_network, node_name, wished_address},
    store::Followed,
};

/// The binding controller.
#[derive(Clone, Debug)]
pub struct Binder {
    prefix: String,
    pods: Mirror<Pod>,
    nodes: Mirror<Node>,
    leases: Routes,
    /// How many unfinished pods each node has.
    load: BTreeMap<String, usize>,
}

impl Binder {
    /// Makes the controller of the network whose leases lie below `prefix`.
    pub fn new(prefix: &str, encapsulation: Option<Encapsulation>) -> Self {
        Self {
            prefix: prefix.into(),
            pods: Mirror::default(),
            nodes: Mirror::default(),
            leases: Routes::new(prefix, None, encapsulation),
            load: BTreeMap::new(),
        }
    }
}

impl Controller for Binder {
    const NAME: &'static str = "bind";

    fn prefixes(&self) -> Vec<String> {
        vec![lease::subnets_prefix(&self.prefix), Node::DIRECTORY.into(), Pod::DIRECTORY.into()]
    }

    fn observe(&mut self, change: &Followed) -> Vec<Arc<str>> {
        if !change.key().starts_with(Pod::DIRECTORY) {
            if change.key().starts_with(Node::DIRECTORY) {
                // An unreadable node is no node.
                let _ = self.nodes.apply(change);
            } else {
                self.leases.apply(change);
            }
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
        // A malformed wish is the address controller's to tell, and a pod on the node's network has the node's address.
        let wish = wished_address(pod).ok().flatten().filter(|_| !is_host_network(pod));
        let fitting = self
            .nodes
            .iter()
            .filter(|(_, node)| fits(pod, node) && wish.is_none_or(|wish| self.has(node, wish)));
        let names = fitting.filter_map(|(_, node)| node.metadata.name.as_ref());
        let best = names.min_by_key(|name| (self.load.get(*name).copied().unwrap_or_default(), *name));
        let Some(best) = best else {
            return Changes::warn(match wish {
                None => "no node is ready, schedulable and selected by the pod's nodeSelector".into(),
                Some(wish) => format!(
                    "no node with address {wish} in its subnet is ready, schedulable and selected by the pod's nodeSelector"
                ),
            });
        };
        let mut bound = pod.clone();
        bound.spec.get_or_insert_default().node_name = Some(best.clone());
        Changes::none().write(&bound)
    }
}

impl Binder {
    /// Says whether a node has leased the subnet of a pod's address.
    fn has(&self, node: &Node, address: Ipv4Addr) -> bool {
        let host = internal_address(node);
        self.leases.iter().any(|(subnet, holder)| Some(holder) == host && is_pod_address(subnet, address))
    }

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
    use futures::executor::block_on;
    use serde_json::{Value, json};

    use super::*;
    use crate::{controllers::tests::Cluster, lease::DEFAULT_PREFIX, store::Store};

    fn node(name: &str, extra: Value) -> Value {
        let mut node = json!({"metadata": {"name": name, "labels": {"zone": name}}});
        node.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        node
    }

    fn cluster() -> Cluster {
        let cluster = Cluster::new();
        cluster.start(Binder::new(DEFAULT_PREFIX, Some(Encapsulation::Udp)));
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
    fn a_wished_address_decides_the_node_once_its_subnet_is_leased() {
        let mut cluster = cluster();
        for (name, address) in [("a", "192.168.66.11"), ("b", "192.168.66.12")] {
            let status = json!({"addresses": [{"type": "InternalIP", "address": address}]});
            cluster.create::<Node>(node(name, json!({"status": status})));
        }
        let wish = |name: &str, address: &str| json!({"metadata": {"name": name, "annotations": {"flatnet.dev/ip": address}}, "spec": {"containers": []}});
        cluster.create::<Pod>(wish("p", "10.1.20.9"));
        cluster.create::<Pod>(wish("router", "10.1.20.1"));
        let warnings = cluster.settle();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].ends_with("no node with address 10.1.20.9 in its subnet is ready, schedulable and selected by the pod's nodeSelector"), "{warnings:?}");
        let lease = |host: &str| json!({"PublicIP": host, "PublicIPv6": null}).to_string().into_bytes();
        for (subnet, host) in [("10.1.15.0-24", "192.168.66.11"), ("10.1.20.0-24", "192.168.66.12")] {
            let key = format!("{}{subnet}", crate::lease::subnets_prefix(DEFAULT_PREFIX));
            block_on(cluster.store.put(&key, lease(host))).unwrap();
        }
        cluster.settle();
        assert_eq!(bindings(&cluster), [Some("b".to_owned()), None]);
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
