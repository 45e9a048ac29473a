//! The host's own system, where it is behind an interface of the node: what it may send, and what it gets.
//!
//! `decide` asks about packets that come from there, and about those for the node itself. Invariants: host and node are one
//! machine, so that TTL does not go down between them; the host sends from the node's addresses and from no other; what comes
//! from outside by eth0 is not the host's, whose system has it already. Allowed dependencies: as `decide`. Read first:
//! `docs/adr/0028-a-nodes-way-out-and-in.md`.

use super::{
    Arrival, Attachment, Decision, DropReason, Half, Hop, Ipv4Addr, Ipv4Prefix, Node, Plan, Reach, Refusal,
    Role, Step, Transform, Translation, Tuple, Verdict, World, dependencies, entry, exit, is_local,
    prefix_bucket, route, translate,
};
use crate::trace::Action;

impl Arrival<'_> {
    /// Tells whether the host's own system sent it.
    pub(super) fn is_from_host(&self) -> bool {
        matches!(self.ingress.role, Role::Interface(index) if self.node.host == Some(index))
    }
}

/// The host is the node: it has the node's addresses, and those that it forwards for others are none of ours.
pub(super) fn may_send(arrival: &Arrival<'_>) -> Result<(), DropReason> {
    let source = Ipv4Addr::from_bits(arrival.parsed.tuple().source);
    if is_local(arrival.node, source) { Ok(()) } else { Err(DropReason::SpoofedAddress) }
}

/// Tells whether a packet for an address is the host's to take: of what comes from outside what answers the host, by the half of a
/// binding, and what host-gw brings to the pods' network, of which the node keeps the host's system.
pub(super) fn takes(arrival: &Arrival<'_>, destination: Ipv4Addr, half: Option<Half>) -> bool {
    let by_uplink =
        matches!(arrival.ingress.role, Role::Interface(index) if arrival.node.uplink == Some(index));
    let is_kept_from = by_uplink && translate::is_pods(arrival.node, destination.to_bits());
    let may_have = !arrival.is_from_outside() || half == Some(Half::Reply) || is_kept_from;
    arrival.node.host.is_some() && may_have && is_local(arrival.node, destination)
}

/// Gives the host a packet for one of the node's addresses; the transform has all but its way out.
pub(super) fn hand_up(
    world: &World<'_>,
    arrival: &Arrival<'_>,
    plan: Plan,
    transform: &mut Transform,
) -> Result<Verdict, Refusal> {
    let reach = reach(arrival.node).ok_or(DropReason::NoRoute)?;
    if plan.out != plan.through {
        transform.push(Step::Translate(plan.out));
        transform.push(Step::Pass(entry(arrival), Action::TranslateSource));
    }
    exit(transform, &reach, u16::MAX);
    let destination = Ipv4Addr::from_bits(plan.out.destination);
    let buckets = dependencies(world.tables, arrival, &reach, destination);
    Ok(Verdict::Forward(Decision { buckets, binding: plan.binding }))
}

/// Returns the way to the host: both ends of its interface have one MAC, since nobody else is there.
pub(super) fn reach(node: &Node) -> Option<Reach> {
    let index = node.host?;
    let interface = node.interfaces.get(usize::from(index))?;
    Some(Reach {
        attachment: Attachment::Interface(index),
        destination: interface.mac,
        source: interface.mac,
        egress: interface.port,
        outer: None,
        bucket: prefix_bucket(Ipv4Prefix::masked(interface.address, 32)),
    })
}

/// Translates what the host sends from eth0's address to another node's pods (flannel,
/// `! -s POD-NETWORK -d POD-NETWORK -j MASQUERADE`): in the tunnel only pods' subnets are believed, and what answers a port of the
/// host's own at eth0 never comes here. None of anything else.
pub(super) fn masqueraded(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    tuple: Tuple,
) -> Option<Result<Translation, Refusal>> {
    if translate::is_pods(arrival.node, tuple.source) {
        return None;
    }
    match route(world.tables, arrival.node, Ipv4Addr::from_bits(tuple.destination)) {
        Ok(hop @ (Hop::Tunnel { .. } | Hop::Interface { .. }))
            if translate::is_pods(arrival.node, tuple.destination) =>
        {
            Some(translate::masqueraded(world, arrival, hop, tuple, None))
        }
        Ok(Hop::Local | Hop::Bridge { .. } | Hop::Tunnel { .. } | Hop::Interface { .. }) | Err(_) => None,
    }
}
