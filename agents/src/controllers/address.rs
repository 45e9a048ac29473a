//! Gives bound pods their addresses: writes `status.podIP`, `podIPs` and `hostIP`.
//!
//! Second on a pod's way, after the binding controller; whoever runs the pod waits for the address.
//!
//! Invariants: an address lies in the subnet that the pod's node has leased and is no other pod's; `flatnet.dev/ip` is
//! honoured if it does, else the pod waits with a warning; an address once given stays.
//!
//! May depend on [`crate::controllers`], [`crate::ipam`], [`crate::node`].
//!
//! Read first: [`crate::ipam`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use flatnet_engine::tunnel::Encapsulation;
use flatnet_proxy::Ipv4Prefix;
use k8s_openapi::api::core::v1::{HostIP, Node, Pod, PodIP};

use crate::{
    controllers::{Changes, Controller, Mirror, created},
    ipam::{Firmness, Pool, is_pod_address, pod_addresses},
    lease,
    node::Routes,
    objects::{self, Object},
    pods,
    store::Followed,
};

/// The address controller.
#[derive(Clone, Debug)]
pub struct Addresses {
    prefix: String,
    pods: Mirror<Pod>,
    nodes: Mirror<Node>,
    leases: Routes,
    pool: Pool,
    /// Pods that have no address yet.
    waiting: BTreeSet<Arc<str>>,
}

impl Addresses {
    /// Makes the controller of the network whose leases lie below `prefix`.
    pub fn new(prefix: &str, encapsulation: Option<Encapsulation>) -> Self {
        Self {
            prefix: prefix.into(),
            pods: Mirror::default(),
            nodes: Mirror::default(),
            leases: Routes::new(prefix, None, encapsulation),
            pool: Pool::new(),
            waiting: BTreeSet::new(),
        }
    }
}

impl Controller for Addresses {
    const NAME: &'static str = "address";

    fn prefixes(&self) -> Vec<String> {
        vec![lease::subnets_prefix(&self.prefix), Node::DIRECTORY.into(), Pod::DIRECTORY.into()]
    }

    fn observe(&mut self, change: &Followed) -> Vec<Arc<str>> {
        let key = change.key();
        if !key.starts_with(Pod::DIRECTORY) {
            if key.starts_with(Node::DIRECTORY) {
                let _ = self.nodes.apply(change);
            } else {
                self.leases.apply(change);
            }
            return self.waiting.iter().cloned().collect();
        }
        let _ = self.pods.apply(change);
        // A pod that gives an address up may be what another waits for.
        let mut keys = vec![Arc::clone(key)];
        if self.claim(change) {
            keys.extend(self.waiting.iter().filter(|&waiting| waiting != key).cloned());
        }
        keys
    }

    fn reconcile(&mut self, key: &Arc<str>) -> Changes {
        let pod =
            self.pods.get(key).filter(|pod| !pods::is_finished(pod) && pods::address(pod).is_none()).cloned();
        let Some((pod, node)) =
            pod.and_then(|pod| pods::node_name(&pod).map(str::to_owned).map(|node| (pod, node)))
        else {
            self.waiting.remove(key);
            return Changes::none();
        };
        self.waiting.insert(Arc::clone(key));
        match self.choose(key, &pod, &node) {
            Ok((address, host)) => Changes::none().write(&with_address(pod, address, host)),
            Err(warning) => Changes::warn(warning),
        }
    }
}

impl Addresses {
    /// Enters what a pod has and wants into the pool; says whether it gave up anything.
    fn claim(&mut self, change: &Followed) -> bool {
        let key = change.key();
        let claims: Vec<(u32, Firmness)> = match self.pods.get(key) {
            Some(pod) if !pods::is_finished(pod) && !pods::is_host_network(pod) => {
                match (pods::address(pod), pods::wished_address(pod)) {
                    (Some(address), _) => vec![(address.to_bits(), Firmness::Firm)],
                    (None, Ok(Some(wish))) => vec![(wish.to_bits(), Firmness::Wish)],
                    (None, Ok(None) | Err(_)) => vec![],
                }
            }
            Some(_) | None => vec![],
        };
        self.pool.claim(key, created(change), &claims)
    }

    /// Chooses the address of a pod and names its node's; the error says why it must wait.
    fn choose(&mut self, key: &Arc<str>, pod: &Pod, node: &str) -> Result<(Ipv4Addr, Ipv4Addr), String> {
        let host = self
            .nodes
            .get(&objects::key::<Node>("", node))
            .and_then(internal_address)
            .ok_or_else(|| format!("node {node} does not exist or has no InternalIP"))?;
        if pods::is_host_network(pod) {
            return Ok((host, host));
        }
        let subnet =
            self.subnet(host).ok_or_else(|| format!("node {node} ({host}) has no subnet lease yet"))?;
        let wish = pods::wished_address(pod)
            .map_err(|text| format!("{} {text:?} is not an IPv4 address", pods::ADDRESS_ANNOTATION))?;
        let Some(address) = wish else {
            let range = pod_addresses(subnet);
            let picked = range.and_then(|range| self.pool.pick(range));
            return picked
                .map(|bits| (bits.into(), host))
                .ok_or_else(|| format!("no free address in {subnet} of node {node}"));
        };
        if !is_pod_address(subnet, address) {
            return Err(format!("address {address} is not one of the pods of node {node} ({subnet})"));
        }
        match self.pool.holder(address.to_bits()) {
            Some(holder) if holder != key => Err(format!("address {address} belongs to {}", short(holder))),
            Some(_) | None => Ok((address, host)),
        }
    }

    fn subnet(&self, host: Ipv4Addr) -> Option<Ipv4Prefix> {
        self.leases.iter().find(|&(_, public_ip)| public_ip == host).map(|(subnet, _)| subnet)
    }
}

/// Gives a node's address in the node network.
pub fn internal_address(node: &Node) -> Option<Ipv4Addr> {
    let addresses: BTreeMap<&str, &str> = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten())
        .map(|address| (address.type_.as_str(), address.address.as_str()))
        .collect();
    addresses.get("InternalIP")?.parse().ok()
}

fn with_address(mut pod: Pod, address: Ipv4Addr, host: Ipv4Addr) -> Pod {
    let status = pod.status.get_or_insert_default();
    status.pod_ip = Some(address.to_string());
    status.pod_ips = Some(vec![PodIP { ip: address.to_string() }]);
    status.host_ip = Some(host.to_string());
    status.host_ips = Some(vec![HostIP { ip: host.to_string() }]);
    status.phase.get_or_insert_with(|| "Pending".into());
    pod
}

/// Shortens a pod's key to namespace and name.
fn short(key: &str) -> String {
    objects::parse_key::<Pod>(key)
        .map_or_else(|| key.into(), |(namespace, name)| format!("pod {namespace}/{name}"))
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use serde_json::json;

    use super::*;
    use crate::{controllers::tests::Cluster, lease::DEFAULT_PREFIX, store::Store};

    fn cluster() -> Cluster {
        let cluster = Cluster::new();
        cluster.start(Addresses::new(DEFAULT_PREFIX, Some(Encapsulation::Udp)));
        cluster.create::<Node>(json!({
            "metadata": {"name": "node-1"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.66.11"}]},
        }));
        cluster
    }

    fn lease(cluster: &Cluster, name: &str) {
        let key = format!("{DEFAULT_PREFIX}/subnets/{name}");
        block_on(cluster.store.put(&key, *br#"{"PublicIP":"192.168.66.11","PublicIPv6":null}"#)).unwrap();
    }

    fn pod(cluster: &Cluster, name: &str, wish: Option<&str>) {
        let annotations = wish.map(|wish| json!({"flatnet.dev/ip": wish}));
        cluster.create::<Pod>(json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"nodeName": "node-1", "containers": []},
        }));
    }

    fn address(cluster: &Cluster, name: &str) -> Option<String> {
        pods::address(&cluster.get(name)).map(|address| address.to_string())
    }

    #[test]
    fn wishes_are_kept_free_for_who_wishes() {
        let mut cluster = cluster();
        lease(&cluster, "10.1.15.0-24");
        pod(&cluster, "a", None);
        pod(&cluster, "b", Some("10.1.15.2"));
        pod(&cluster, "c", None);
        assert!(cluster.settle().is_empty());
        assert_eq!(address(&cluster, "a").unwrap(), "10.1.15.3");
        assert_eq!(address(&cluster, "b").unwrap(), "10.1.15.2");
        assert_eq!(address(&cluster, "c").unwrap(), "10.1.15.4");
        let status = cluster.get::<Pod>("b").status.unwrap();
        assert_eq!(status.host_ip.unwrap(), "192.168.66.11");
        assert_eq!(status.pod_ips.unwrap()[0].ip, "10.1.15.2");
        assert_eq!(status.phase.unwrap(), "Pending");
    }

    #[test]
    fn pod_waits_for_its_nodes_lease() {
        let mut cluster = cluster();
        pod(&cluster, "a", None);
        assert_eq!(
            cluster.settle(),
            ["/registry/pods/default/a: node node-1 (192.168.66.11) has no subnet lease yet"]
        );
        lease(&cluster, "10.1.15.0-24");
        assert!(cluster.settle().is_empty());
        assert_eq!(address(&cluster, "a").unwrap(), "10.1.15.2");
    }

    #[test]
    fn taken_and_foreign_addresses_are_refused_by_name() {
        let mut cluster = cluster();
        lease(&cluster, "10.1.15.0-24");
        pod(&cluster, "a", Some("10.1.15.9"));
        pod(&cluster, "b", Some("10.1.15.9"));
        pod(&cluster, "c", Some("10.1.20.9"));
        pod(&cluster, "d", Some("10.1.15.1"));
        pod(&cluster, "e", Some("nine"));
        assert_eq!(
            cluster.settle(),
            [
                "/registry/pods/default/b: address 10.1.15.9 belongs to pod default/a",
                "/registry/pods/default/c: address 10.1.20.9 is not one of the pods of node node-1 (10.1.15.0/24)",
                "/registry/pods/default/d: address 10.1.15.1 is not one of the pods of node node-1 (10.1.15.0/24)",
                "/registry/pods/default/e: flatnet.dev/ip \"nine\" is not an IPv4 address",
            ]
        );
        cluster.delete::<Pod>("a");
        cluster.settle();
        assert_eq!(address(&cluster, "b").unwrap(), "10.1.15.9");
    }

    #[test]
    fn addresses_of_gone_pods_are_reused_last() {
        let mut cluster = cluster();
        lease(&cluster, "10.1.15.0-29");
        for name in ["a", "b", "c"] {
            pod(&cluster, name, None);
        }
        cluster.settle();
        cluster.delete::<Pod>("b");
        cluster.settle();
        pod(&cluster, "d", None);
        pod(&cluster, "e", None);
        cluster.settle();
        pod(&cluster, "f", None);
        cluster.settle();
        // .2 .3 .4, then the fresh .5 and .6, and .3 only when nothing else is left.
        let got = ["a", "c", "d", "e", "f"].map(|name| address(&cluster, name).unwrap());
        assert_eq!(got, ["10.1.15.2", "10.1.15.4", "10.1.15.5", "10.1.15.6", "10.1.15.3"]);
        pod(&cluster, "g", None);
        assert_eq!(
            cluster.settle(),
            ["/registry/pods/default/g: no free address in 10.1.15.0/29 of node node-1"]
        );
    }

    #[test]
    fn pods_on_the_host_network_have_the_nodes_address() {
        let mut cluster = cluster();
        cluster.create::<Pod>(json!({
            "metadata": {"name": "proxy"},
            "spec": {"nodeName": "node-1", "hostNetwork": true, "containers": []},
        }));
        cluster.settle();
        assert_eq!(address(&cluster, "proxy").unwrap(), "192.168.66.11");
    }
}
