//! Which backend a packet for a Service gets.
//!
//! `translate` asks for a packet without a binding. Invariants: a packet of a VIP or NodePort is served, refused by name or
//! dropped by name, never routed; a policy of Local never leads to another node; what is chosen is tried in the proxy's
//! order, and a client with session affinity gets the backend it had. Allowed dependencies: as `decide`. Read first:
//! Kubernetes, "Virtual IPs and Service Proxies"; kube-proxy's `pkg/proxy/iptables/proxier.go` for who is masqueraded.

use std::sync::Arc;
use std::time::Duration;

use flatnet_proxy::{Backend, Balancer, Forwarding, Pool, Request, Session, TrafficPolicy, choose};

use super::translate::{bound, insert, leaves_pod_network, masqueraded, reason, with_free_port};
use super::{
    Arrival, DropReason, Half, Hop, Ipv4Addr, Node, NodeId, Plan, Protocol, Refusal, Refused, Step,
    Translation, Tuple, World, ipv4, is_local, route,
};
use crate::binding::Served;
use crate::load::UNCOUNTED;

/// A Service that a packet is for.
pub(super) struct Asked {
    balancer: Arc<Balancer>,
    /// Whether by a NodePort, and not by a VIP.
    node_port: bool,
}

/// Finds the Service a packet is for.
pub(super) fn asked(world: &World<'_>, arrival: &Arrival<'_>) -> Result<Option<Asked>, DropReason> {
    let tuple = arrival.parsed.tuple();
    let services = &world.tables.services;
    let destination = Ipv4Addr::from_bits(tuple.destination);
    let Some(protocol) = Protocol::from_number(tuple.protocol) else {
        return if services.is_vip(destination) { Err(DropReason::ServiceUnsupported) } else { Ok(None) };
    };
    let asked = |balancer: &Arc<Balancer>, node_port| Asked { balancer: Arc::clone(balancer), node_port };
    if let Some(balancer) = services.lookup(destination, tuple.destination_port, protocol) {
        return Ok(Some(asked(balancer, false)));
    }
    if is_local(arrival.node, destination) {
        let balancer = services.lookup_node_port(tuple.destination_port, protocol);
        return Ok(balancer.map(|balancer| asked(balancer, true)));
    }
    if services.is_vip(destination) { Err(DropReason::ServicePortClosed) } else { Ok(None) }
}

impl Asked {
    /// Finds the backends of the policy that the packet is under, the quiesced included. What pods of this node send to a
    /// NodePort is under neither, as if it went out and came back through a load balancer (kube-proxy).
    fn pool(&self, arrival: &Arrival<'_>) -> Option<&Pool> {
        let policy = match self.node_port {
            true if arrival.is_from_outside() => self.balancer.external,
            true => TrafficPolicy::Cluster,
            false => self.balancer.internal,
        };
        match policy {
            TrafficPolicy::Cluster => Some(self.balancer.cluster()),
            TrafficPolicy::Local => self.balancer.local(&arrival.node.name),
        }
    }

    /// Says why a packet gets no backend.
    fn refusal(&self) -> DropReason {
        if self.balancer.cluster().is_empty() { DropReason::NoBackend } else { DropReason::NoLocalBackend }
    }

    /// Tells whether the client's address is translated too, so that the answer comes back through this node.
    fn is_masqueraded(&self, arrival: &Arrival<'_>, backend: &Backend) -> bool {
        // A pod that reaches itself would take the answer for a stranger's.
        let hairpin = backend.address.to_bits() == arrival.parsed.tuple().source;
        let outsider = match (self.node_port, self.balancer.external) {
            (true, TrafficPolicy::Cluster) => true,
            (true, TrafficPolicy::Local) => false,
            (false, _) => arrival.is_from_outside(),
        };
        hairpin || outsider
    }
}

/// Chooses a backend whose reply tuple is free; when all are taken, translates the source port as well.
pub(super) fn balance(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    asked: &Asked,
) -> Result<Translation, Refusal> {
    let balancer = &*asked.balancer;
    let pool = asked.pool(arrival).ok_or_else(|| asked.refusal())?;
    let session = balancer.affinity.map(|timeout| (session(arrival, balancer.id), timeout));
    let now = Duration::from_nanos(world.now.as_nanos());
    let before = session.and_then(|(session, _)| pool.find(balancer, world.affinity.lookup(&session, now)?));
    // As `ip_vs_sched_persist`: a quiesced backend keeps its clients, also when nobody else is served.
    if before.is_none() && pool.is_empty() {
        return Err(asked.refusal().into());
    }
    let tuple = arrival.parsed.tuple();
    // As LVS has it: another backend would not know the connection (net.ipv4.vs.sloppy_tcp is 0).
    let is_tcp = Protocol::from_number(tuple.protocol) == Some(Protocol::Tcp);
    if is_tcp && !arrival.parsed.fragment && !arrival.segment().flags.syn() {
        return Err(DropReason::ServiceNoConnection.into());
    }
    let scheduled = before.is_none().then(|| {
        let (client, destination) = (tuple.source.into(), tuple.destination.into());
        let request = Request { client, destination, random: world.random.next_u64() };
        let loads = &world.bindings.loads;
        let load = |index: usize| balancer.counters.get(index).map(|&it| loads.sum(it)).unwrap_or_default();
        choose(balancer, pool, world.cursors, &request, &load)
    });
    let mut last_resort = None;
    for index in before.into_iter().chain(scheduled.into_iter().flatten()) {
        match serve(world, arrival, asked, index)? {
            Some(translation) => {
                if let Some((session, timeout)) = session {
                    world.affinity.remember(session, &balancer.backends[index], timeout, now);
                }
                return Ok(translation);
            }
            None => last_resort = last_resort.or(Some(index)),
        }
    }
    let index = last_resort.ok_or(DropReason::NoBackend)?;
    let (through, served) = (towards(tuple, &balancer.backends[index]), served(balancer, index));
    with_free_port(world, arrival, through, through.source, Some(served))
}

/// Tells whether what a backend gets as it is can be sent there: by direct routing only to a machine on a network of this
/// node's own, and never to the node itself.
pub(super) fn may_go(direct: Option<Served>, hop: Hop) -> Result<(), DropReason> {
    let Some(served) = direct else { return Ok(()) };
    let on_link = match hop {
        Hop::Bridge { .. } => true,
        Hop::Interface { next_hop, .. } => next_hop == served.address,
        Hop::Tunnel { .. } | Hop::Local => false,
    };
    match (served.forwarding, hop) {
        (Forwarding::Nat, _) => Ok(()),
        (Forwarding::Tunnel, Hop::Bridge { .. } | Hop::Interface { .. } | Hop::Tunnel { .. }) => Ok(()),
        (Forwarding::DirectRouting, _) if on_link => Ok(()),
        (Forwarding::Tunnel | Forwarding::DirectRouting, _) => Err(DropReason::DirectRoutingOffSegment),
    }
}

/// Returns the step that puts a packet into one to its backend, where that is how it gets there. On a path that takes less than
/// is believed it may be cut (Linux, `ip_dont_fragment`).
pub(super) fn wrap(
    world: &World<'_>,
    (id, node): (NodeId, &Node),
    direct: Option<Served>,
    hop: Hop,
) -> Option<Step> {
    let served = direct.filter(|served| served.forwarding == Forwarding::Tunnel)?;
    let may_cut = world.path_mtu.is_locked((id, served.address), world.now);
    Some(Step::Wrap { source: hop.address(node)?, destination: served.address, may_cut })
}

/// Returns the largest packet that fits into one to a backend, bytes, where the way there begins with a link of `link` bytes
/// (RFC 2003, 5.1).
#[must_use]
pub fn inner_mtu(world: &World<'_>, node: NodeId, backend: Ipv4Addr, link: u16) -> u16 {
    let path = world.path_mtu.get((node, backend), world.now).and_then(|mtu| u16::try_from(mtu).ok());
    path.unwrap_or(u16::MAX).min(link).saturating_sub(ipv4::HEADER_LENGTH as u16)
}

/// Binds a packet that a backend gets as it is.
fn serve_directly(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    served: Served,
) -> Result<Option<Translation>, Refusal> {
    let tuple = arrival.parsed.tuple();
    may_go(Some(served), route(world.tables, arrival.node, served.address)?)?;
    let binding = insert(world, arrival, tuple, None, Some(served)).map_err(reason)?;
    let binding = Some((binding, Half::Original));
    Ok(Some(Translation::Plan(Plan { through: tuple, out: tuple, binding, direct: Some(served), hop: None })))
}

/// Binds a packet to a backend; none when the reply tuple is another binding's.
fn serve(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    asked: &Asked,
    index: usize,
) -> Result<Option<Translation>, Refusal> {
    let backend = &asked.balancer.backends[index];
    let (through, served) = (towards(arrival.parsed.tuple(), backend), served(&asked.balancer, index));
    // A NodePort is an address of the node: no other machine can have it.
    if asked.balancer.forwarding != Forwarding::Nat && !asked.node_port {
        return serve_directly(world, arrival, Served { forwarding: asked.balancer.forwarding, ..served });
    }
    let hop = route(world.tables, arrival.node, backend.address)?;
    // As all that a pod sends there: a machine outside need not know the way to pods.
    let leaves = matches!(hop, Hop::Interface { .. }) && leaves_pod_network(arrival.node, &through);
    if leaves || asked.is_masqueraded(arrival, backend) {
        return masqueraded(world, arrival, hop, through, Some(served)).map(Some);
    }
    match insert(world, arrival, through, None, Some(served)) {
        Ok(binding) => Ok(Some(bound(through, through, binding))),
        Err(Refused::TupleTaken) => Ok(None),
        Err(refused @ (Refused::Full | Refused::Quota)) => Err(reason(refused).into()),
    }
}

fn towards(tuple: Tuple, backend: &Backend) -> Tuple {
    Tuple { destination: backend.address.to_bits(), destination_port: backend.port, ..tuple }
}

fn served(balancer: &Balancer, index: usize) -> Served {
    let Backend { address, port, .. } = balancer.backends[index];
    let counter = balancer.counters.get(index).copied().unwrap_or(UNCOUNTED);
    Served { forwarding: Forwarding::Nat, address, port, counter }
}

fn session(arrival: &Arrival<'_>, service: u32) -> Session {
    let client = Ipv4Addr::from_bits(arrival.parsed.tuple().source);
    Session { node: arrival.ingress.node.0, service, client }
}
