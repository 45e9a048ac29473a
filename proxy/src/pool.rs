//! A published Service: which of its backends may get new flows, from where, and what its scheduler needs to know of them.
//!
//! [`crate::table`] makes it when a Service is published, so that no worker does for a packet what can be done before.
//!
//! Invariants: a pool lists the ready backends or, where there is none, the terminating ones; the pool of a node has only
//! those on it and decides that for itself; its tables are bounded, whatever the number of backends.
//!
//! May depend on [`crate::service`] and [`crate::maglev`].
//!
//! Read first: `CategorizeEndpoints` in kube-proxy's `pkg/proxy/topology.go`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    ops::Deref,
    sync::Arc,
};

use crate::{
    maglev::{self, Candidate},
    service::{Backend, Scheduler, Service, TrafficPolicy},
};

/// Places of the tables of source and destination hashing (`IP_VS_SH_TAB_BITS` and `IP_VS_DH_TAB_BITS` are 8).
pub const HASH_PLACES: usize = 256;

/// A Service with its pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balancer {
    service: Service,
    cluster: Pool,
    /// By node, where a traffic policy asks for it; only nodes that have backends.
    local: BTreeMap<Arc<str>, Pool>,
}

/// The backends that new flows of one origin are spread over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Tells a Service's pools apart, so that each has cursors of its own.
    pub(crate) number: usize,
    /// Indices of the backends, those of weight 0 included.
    pub(crate) members: Box<[usize]>,
    /// Indices of those with a weight.
    pub(crate) open: Box<[usize]>,
    pub(crate) plan: Plan,
}

/// What a scheduler must know beside the backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing.
    None,
    /// Weighted round-robin: the largest weight and what all can be divided by.
    Steps { most: u16, step: u16 },
    /// Hashing: a place's index in `members`.
    Places(Box<[u16]>),
}

impl Deref for Balancer {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.service
    }
}

impl Balancer {
    /// Prepares a Service.
    pub fn new(service: Service) -> Self {
        let all: Vec<usize> = (0..service.backends.len()).collect();
        let cluster = Pool::new(&service, 0, &all);
        let mut on_node: BTreeMap<Arc<str>, Vec<usize>> = BTreeMap::new();
        if [service.external, service.internal].contains(&TrafficPolicy::Local) {
            for (index, backend) in service.backends.iter().enumerate() {
                if let Some(node) = &backend.node {
                    on_node.entry(Arc::clone(node)).or_default().push(index);
                }
            }
        }
        let numbered = on_node.into_iter().zip(1..);
        let local = numbered.map(|((node, of), number)| (node, Pool::new(&service, number, &of))).collect();
        Self { service, cluster, local }
    }

    /// Gives the pool of all backends.
    pub const fn cluster(&self) -> &Pool {
        &self.cluster
    }

    /// Gives the pool of a node's own backends; none without any.
    pub fn local(&self, node: &str) -> Option<&Pool> {
        self.local.get(node)
    }

    /// Lists the pods' ports that new flows may go to, from anywhere: identity, address, port.
    pub fn used(&self) -> BTreeSet<(u64, Ipv4Addr, u16)> {
        let pools = std::iter::once(&self.cluster).chain(self.local.values());
        let backends = pools.flat_map(|pool| pool.members.iter()).map(|&index| &self.backends[index]);
        backends.map(Backend::key).collect()
    }
}

impl Pool {
    fn new(service: &Service, number: usize, of: &[usize]) -> Self {
        let select = |terminating: bool| -> Box<[usize]> {
            of.iter().copied().filter(|&index| service.backends[index].terminating == terminating).collect()
        };
        let ready = select(false);
        let members = if ready.is_empty() { select(true) } else { ready };
        let weight = |index: usize| service.backends[index].weight;
        let open: Box<[usize]> = members.iter().copied().filter(|&index| weight(index) > 0).collect();
        let plan = match service.scheduler {
            Scheduler::Random
            | Scheduler::RoundRobin
            | Scheduler::LeastConnection
            | Scheduler::WeightedLeastConnection => Plan::None,
            Scheduler::WeightedRoundRobin => {
                let weights = open.iter().map(|&index| weight(index));
                let step = weights.clone().reduce(maglev::greatest_common_divisor).unwrap_or(1);
                Plan::Steps { most: weights.max().unwrap_or_default(), step }
            }
            // A backend of weight 0 has one place, as one of weight 1.
            Scheduler::SourceHash => Plan::Places(deal(&members, |index| weight(index).max(1))),
            Scheduler::DestinationHash => Plan::Places(deal(&members, |_| 1)),
            Scheduler::Maglev => Plan::Places(maglev::populate(&candidates(service, &members))),
        };
        Self { number, members, open, plan }
    }

    /// Finds a pod's port among its backends, those of weight 0 included: they keep their clients, as in LVS.
    pub fn find(&self, service: &Service, backend: &Backend) -> Option<usize> {
        self.members.iter().copied().find(|&index| service.backends[index].key() == backend.key())
    }

    /// Says whether it has no backend that may get a flow.
    pub const fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// Deals the places of a hash table out in turn, to each as many at once as its share says.
fn deal(members: &[usize], share: impl Fn(usize) -> u16) -> Box<[u16]> {
    let numbered = members.iter().zip(0..=u16::MAX).cycle();
    let places = numbered.flat_map(|(&index, number)| std::iter::repeat_n(number, usize::from(share(index))));
    places.take(HASH_PLACES).collect()
}

fn candidates(service: &Service, members: &[usize]) -> Vec<Candidate> {
    let numbered = members.iter().zip(0..=u16::MAX);
    let candidate = |(&index, number)| {
        let Backend { address, port, weight, .. } = service.backends[index];
        Candidate { index: number, address, port, weight }
    };
    numbered.map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balancer(external: TrafficPolicy, backends: &[(&str, bool, u16)]) -> Balancer {
        let backends = backends.iter().zip(1..).map(|(&(node, terminating, weight), identity)| Backend {
            node: Some(node.into()),
            terminating,
            weight,
            ..Backend::new([10, 1, 0, identity as u8].into(), 80, identity)
        });
        Balancer::new(Service { external, backends: backends.collect(), ..Service::default() })
    }

    #[test]
    fn terminating_backends_are_used_only_where_none_is_ready() {
        let some = [("a", true, 1), ("b", false, 1), ("b", true, 1)];
        let balancer = balancer(TrafficPolicy::Local, &some);
        assert_eq!(*balancer.cluster().members, [1]);
        // Decided for each node by itself, as kube-proxy does.
        assert_eq!(*balancer.local("a").unwrap().members, [0]);
        assert_eq!(*balancer.local("b").unwrap().members, [1]);
        assert!(balancer.local("c").is_none());
        let used: Vec<u64> = balancer.used().iter().map(|&(identity, ..)| identity).collect();
        assert_eq!(used, [1, 2]);
    }

    #[test]
    fn without_a_ready_one_all_terminating_ones_are_used() {
        let balancer = balancer(TrafficPolicy::Cluster, &[("a", true, 1), ("b", true, 0)]);
        assert_eq!((&*balancer.cluster().members, &*balancer.cluster().open), (&[0, 1][..], &[0][..]));
        assert!(balancer.local("a").is_none(), "no policy asks for it");
    }

    #[test]
    fn a_pool_whose_backends_are_all_quiesced_is_empty() {
        assert!(balancer(TrafficPolicy::Cluster, &[("a", false, 0)]).cluster().is_empty());
        assert!(balancer(TrafficPolicy::Cluster, &[]).cluster().is_empty());
    }
}
