//! Gives Services their VIPs and NodePorts: writes `spec.clusterIP`, `clusterIPs` and `ports[].nodePort`.
//!
//! First on a Service's way; the endpoints controller works beside it.
//!
//! Invariants: no VIP and no NodePort is given out twice, and none that an object names itself; what a Service has it
//! keeps; a headless Service (`None`) and an ExternalName get nothing. Of two Services that name the same, the older
//! has it and the younger is warned about.
//!
//! May depend on [`crate::controllers`], [`crate::ipam`] and the engine's range of ports.
//!
//! Read first: Kubernetes' "ServiceIP static sub-range" (KEP 3070), from which the dynamic bands are.

use std::{net::Ipv4Addr, sync::Arc};

use flatnet_proxy::Ipv4Prefix;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use crate::{
    controllers::{Changes, Controller, Mirror, created},
    ipam::{Firmness, Pool},
    objects::{self, Object},
    store::Followed,
};

/// The ports from which NodePorts are given out: those that MASQUERADE leaves alone.
pub use flatnet_engine::masquerade::NODE_PORTS;

/// How many NodePorts at the start of the range are left for people to name.
const STATIC_NODE_PORTS: u32 = 86;

/// How many VIPs at the start of a large service network are left for people to name.
const STATIC_VIPS: u32 = 256;

/// `clusterIP` of a headless Service.
pub const HEADLESS: &str = "None";

/// The service-address controller.
#[derive(Clone, Debug)]
pub struct ServiceAddresses {
    network: Ipv4Prefix,
    services: Mirror<Service>,
    vips: Pool,
    ports: Pool,
}

impl ServiceAddresses {
    /// Makes the controller of a service network.
    pub fn new(network: Ipv4Prefix) -> Self {
        Self { network, services: Mirror::default(), vips: Pool::new(), ports: Pool::new() }
    }

    /// Finds a VIP, in the dynamic band first.
    fn pick_vip(&mut self) -> Option<Ipv4Addr> {
        let (first, last) = (self.network.address().to_bits(), self.network.last().to_bits());
        // The first address is the network's, the last its broadcast address.
        let (low, high) = (first.checked_add(1)?, last.checked_sub(1)?);
        // Kubernetes leaves a sixteenth, at least 16 and at most 256 addresses.
        let reserved = ((last - first) / 16).clamp(16, STATIC_VIPS);
        let dynamic = first.saturating_add(reserved);
        let picked = if dynamic <= high { self.vips.pick(dynamic..=high) } else { None };
        picked.or_else(|| if low <= high { self.vips.pick(low..=high) } else { None }).map(Ipv4Addr::from)
    }

    /// Fills in the NodePorts that are missing; says whether there were any, or why there are none.
    fn give_node_ports(&mut self, spec: &mut ServiceSpec) -> Result<bool, String> {
        if !matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer")) {
            return Ok(false);
        }
        let mut missing: Vec<_> = spec
            .ports
            .iter_mut()
            .flatten()
            .map(|port| &mut port.node_port)
            .filter(|port| port.unwrap_or_default() == 0)
            .collect();
        let (first, last) = (u32::from(*NODE_PORTS.start()), u32::from(*NODE_PORTS.end()));
        let picked = self
            .ports
            .pick_many(first + STATIC_NODE_PORTS..=last, missing.len())
            .or_else(|| self.ports.pick_many(first..=last, missing.len()))
            .ok_or_else(|| format!("no free NodePort in {first} to {last}"))?;
        for (port, number) in missing.iter_mut().zip(&picked) {
            **port = i32::try_from(*number).ok();
        }
        Ok(!missing.is_empty())
    }

    /// Names what the Service asks for and another has.
    fn conflict(&self, key: &Arc<str>, spec: &ServiceSpec) -> Option<String> {
        let vip = vip(spec).filter(|vip| self.vips.holder(vip.to_bits()).is_some_and(|holder| holder != key));
        if let Some(vip) = vip {
            return Some(format!("clusterIP {vip} belongs to {}", short(self.vips.holder(vip.to_bits())?)));
        }
        node_ports(spec).find_map(|port| {
            let holder = self.ports.holder(port).filter(|&holder| holder != key)?;
            Some(format!("nodePort {port} belongs to {}", short(holder)))
        })
    }
}

impl Controller for ServiceAddresses {
    const NAME: &'static str = "service-ip";

    fn prefixes(&self) -> Vec<String> {
        vec![Service::DIRECTORY.into()]
    }

    fn observe(&mut self, change: &Followed) -> Vec<Arc<str>> {
        let _ = self.services.apply(change);
        let key = change.key();
        let spec = self.services.get(key).and_then(|service| service.spec.as_ref());
        let vip = spec.and_then(vip).map(|vip| (vip.to_bits(), Firmness::Firm));
        let ports: Vec<_> =
            spec.into_iter().flat_map(node_ports).map(|port| (port, Firmness::Firm)).collect();
        let gave_up = self.vips.claim(key, created(change), vip.as_slice())
            | self.ports.claim(key, created(change), &ports);
        if gave_up {
            // Who was refused may have it now.
            self.services.iter().map(|(key, _)| Arc::clone(key)).chain([Arc::clone(key)]).collect()
        } else {
            vec![Arc::clone(key)]
        }
    }

    fn reconcile(&mut self, key: &Arc<str>) -> Changes {
        let Some(service) = self.services.get(key) else { return Changes::none() };
        let mut service = service.clone();
        let Some(spec) = service.spec.as_mut().filter(|spec| spec.type_.as_deref() != Some("ExternalName"))
        else {
            return Changes::none();
        };
        if let Some(conflict) = self.conflict(key, spec) {
            return Changes::warn(conflict);
        }
        let mut changed = false;
        if spec.cluster_ip.as_deref().unwrap_or_default().is_empty() {
            let Some(vip) = self.pick_vip() else {
                return Changes::warn(format!("no free address in the service network {}", self.network));
            };
            spec.cluster_ip = Some(vip.to_string());
            changed = true;
        }
        if spec.cluster_ips.is_none() {
            spec.cluster_ips = spec.cluster_ip.clone().map(|address| vec![address]);
            changed = true;
        }
        match self.give_node_ports(spec) {
            Ok(given) if given || changed => Changes::none().write(&service),
            Ok(_) => Changes::none(),
            Err(warning) => Changes::warn(warning),
        }
    }
}

/// Gives a Service's VIP; none if it is headless or has none yet.
pub fn vip(spec: &ServiceSpec) -> Option<Ipv4Addr> {
    spec.cluster_ip.as_ref()?.parse().ok()
}

/// Gives the NodePorts that a Service names.
fn node_ports(spec: &ServiceSpec) -> impl Iterator<Item = u32> {
    let ports = spec.ports.iter().flatten().filter_map(|port| port.node_port);
    ports.filter_map(|port| u32::try_from(port).ok()).filter(|&port| port != 0)
}

/// Shortens a Service's key to namespace and name.
fn short(key: &str) -> String {
    objects::parse_key::<Service>(key)
        .map_or_else(|| key.into(), |(namespace, name)| format!("Service {namespace}/{name}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use flatnet_engine::masquerade::is_usable;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::controllers::tests::Cluster;

    fn cluster(network: &str) -> Cluster {
        let cluster = Cluster::new();
        cluster.start(ServiceAddresses::new(network.parse().unwrap()));
        cluster
    }

    fn service(cluster: &Cluster, name: &str, spec: Value) {
        cluster.create::<Service>(json!({"metadata": {"name": name}, "spec": spec}));
    }

    fn cluster_ip(cluster: &Cluster, name: &str) -> Option<String> {
        cluster.get::<Service>(name).spec.unwrap().cluster_ip
    }

    fn ports(cluster: &Cluster, name: &str) -> Vec<Option<i32>> {
        cluster.get::<Service>(name).spec.unwrap().ports.unwrap().iter().map(|port| port.node_port).collect()
    }

    #[test]
    fn services_get_different_addresses_and_keep_them() {
        let mut cluster = cluster("10.96.0.0/12");
        service(&cluster, "a", json!({}));
        service(&cluster, "b", json!({"clusterIP": "10.96.1.1"}));
        service(&cluster, "c", json!({"clusterIP": ""}));
        assert!(cluster.settle().is_empty());
        assert_eq!(cluster_ip(&cluster, "a").unwrap(), "10.96.1.0");
        assert_eq!(cluster_ip(&cluster, "b").unwrap(), "10.96.1.1");
        assert_eq!(cluster_ip(&cluster, "c").unwrap(), "10.96.1.2");
        assert_eq!(cluster.get::<Service>("c").spec.unwrap().cluster_ips.unwrap(), ["10.96.1.2"]);
    }

    #[test]
    fn headless_and_external_services_are_left_alone() {
        let mut cluster = cluster("10.96.0.0/12");
        service(&cluster, "headless", json!({"clusterIP": "None"}));
        service(&cluster, "external", json!({"type": "ExternalName", "externalName": "example.org"}));
        cluster.settle();
        assert_eq!(cluster_ip(&cluster, "headless").unwrap(), "None");
        assert_eq!(cluster_ip(&cluster, "external"), None);
    }

    #[test]
    fn missing_node_ports_are_filled_in() {
        let mut cluster = cluster("10.96.0.0/12");
        let port = |name: &str, node_port: Value| json!({"name": name, "port": 80, "nodePort": node_port});
        service(
            &cluster,
            "a",
            json!({"type": "NodePort", "ports": [port("x", json!(30_086)), port("y", json!(null)), port("z", json!(null))]}),
        );
        service(&cluster, "b", json!({"type": "NodePort", "ports": [port("x", json!(null))]}));
        service(&cluster, "c", json!({"ports": [port("x", json!(null))]}));
        assert!(cluster.settle().is_empty());
        assert_eq!(ports(&cluster, "a"), [Some(30_086), Some(30_087), Some(30_088)]);
        assert_eq!(ports(&cluster, "b"), [Some(30_089)]);
        assert_eq!(ports(&cluster, "c"), [None]);
    }

    #[test]
    fn one_service_may_have_a_port_for_both_protocols() {
        let mut cluster = cluster("10.96.0.0/12");
        let ports = json!([
            {"name": "t", "port": 7, "protocol": "TCP", "nodePort": 30_007},
            {"name": "u", "port": 7, "protocol": "UDP", "nodePort": 30_007},
        ]);
        service(&cluster, "a", json!({"type": "NodePort", "ports": ports}));
        assert!(cluster.settle().is_empty());
    }

    #[test]
    fn younger_service_with_a_taken_address_or_port_is_warned_about_until_it_is_free() {
        let mut cluster = cluster("10.96.0.0/12");
        let taken = json!({"type": "NodePort", "clusterIP": "10.96.0.10", "ports": [{"port": 80, "nodePort": 30_080}]});
        service(&cluster, "z-older", taken.clone());
        service(&cluster, "a-younger", taken);
        let other = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_080}]});
        service(&cluster, "b-younger", other);
        assert_eq!(
            cluster.settle(),
            [
                "/registry/services/specs/default/a-younger: clusterIP 10.96.0.10 belongs to Service default/z-older",
                "/registry/services/specs/default/b-younger: nodePort 30080 belongs to Service default/z-older",
            ]
        );
        cluster.delete::<Service>("z-older");
        let warnings = cluster.settle();
        assert_eq!(
            warnings,
            [
                "/registry/services/specs/default/b-younger: nodePort 30080 belongs to Service default/a-younger"
            ]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4))]

        /// Some name their address or ports, in any order between those that do not.
        #[test]
        fn a_thousand_services_never_share_an_address_or_a_port(
            named in prop::collection::vec((any::<bool>(), any::<bool>(), 1usize..3), 1000),
            first: u16,
        ) {
            let mut cluster = cluster("10.96.0.0/12");
            let mut wishes = BTreeSet::new();
            for (index, &(vip, node_port, ports)) in named.iter().enumerate() {
                // 7 and 2,768 have no common divisor: no two wish for the same.
                let wish = NODE_PORTS.start() + ((usize::from(first) + index * 7) % 2768) as u16;
                let wish = node_port.then_some(wish);
                let address = vip.then(|| Ipv4Addr::from_bits(0x0a60_0001 + index as u32 * 3));
                let port = |at: usize| {
                    json!({"name": format!("p{at}"), "port": 80 + at, "nodePort": wish.filter(|_| at == 0)})
                };
                let ports: Vec<Value> = (0..ports).map(port).collect();
                let spec = json!({"type": "NodePort", "clusterIP": address, "ports": ports});
                service(&cluster, &format!("s{index}"), spec);
                wishes.insert((format!("s{index}"), address, wish));
            }
            prop_assert_eq!(cluster.settle(), Vec::<String>::new());
            let (mut vips, mut node_ports) = (BTreeSet::new(), BTreeSet::new());
            for (name, address, wish) in wishes {
                let vip: Ipv4Addr = cluster_ip(&cluster, &name).unwrap().parse().unwrap();
                prop_assert!(vips.insert(vip) && address.is_none_or(|address| address == vip));
                let given: Vec<u16> = ports(&cluster, &name).iter().map(|port| port.unwrap() as u16).collect();
                prop_assert!(wish.is_none_or(|wish| wish == given[0]));
                for port in given {
                    prop_assert!(NODE_PORTS.contains(&port) && !is_usable(port, 0), "{}", port);
                    prop_assert!(node_ports.insert(port), "{} was given out twice", port);
                }
            }
        }
    }

    #[test]
    fn small_networks_are_used_to_the_last_address() {
        let mut cluster = cluster("10.96.0.0/29");
        for at in 0..7 {
            service(&cluster, &format!("s{at}"), json!({}));
        }
        assert_eq!(
            cluster.settle(),
            ["/registry/services/specs/default/s6: no free address in the service network 10.96.0.0/29"]
        );
    }
}
