//! Whether a packet is translated: by its binding, for a Service (`service`), or as MASQUERADE.
//!
//! `decide` asks between hand-over and routing. Invariants: a packet of a binding is translated by it and by
//! nothing else; a new binding's reply tuple is nobody else's, for which another backend or port is taken;
//! what stays inside the pod network keeps its source. Allowed dependencies: as `decide`. Read first:
//! RFC 3022; Kubernetes, "Virtual IPs and Service Proxies".

use flatnet_proxy::Forwarding;

use super::service::{asked, balance};
use super::{
    Answers, Arrival, BindingRef, Course, DropReason, Half, HalfKey, Hop, Ipv4Addr, Opening, Plan, Profile,
    Refusal, Refused, Translation, Tuple, World, host, inside_key, is_local, masquerade, route,
};
use crate::binding::{Followed, OutOfWindow, Served, outside_key};
use crate::masquerade::{Choice, Found, Pool};
use crate::tables::{Interface, Masquerading, Node};
use crate::wire::{IcmpPacket, IcmpType, IpProtocol, Ipv4Packet, TcpFlags};

/// 3. The binding's translation; 4. else a Service's; 6. else MASQUERADE, or none.
pub(super) fn plan(world: &mut World<'_>, arrival: &Arrival<'_>) -> Result<Translation, Refusal> {
    let tuple = arrival.parsed.tuple();
    if let Some((binding, half, to)) = followed(world, arrival)? {
        let through = Tuple { destination: to.destination, destination_port: to.destination_port, ..tuple };
        let served = world.bindings.served(binding);
        let direct = served.filter(|it| half == Half::Original && it.forwarding != Forwarding::Nat);
        return Ok(Translation::Plan(Plan {
            through,
            out: to,
            binding: Some((binding, half)),
            direct,
            hop: None,
        }));
    }
    if arrival.node.services
        && let Some(asked) = asked(world, arrival)?
    {
        return balance(world, arrival, &asked);
    }
    let untranslated = Plan { through: tuple, out: tuple, binding: None, direct: None, hop: None };
    if begins_nothing(arrival) {
        return Ok(Translation::Plan(untranslated));
    }
    if arrival.is_from_host() {
        let masqueraded = host::masqueraded(world, arrival, tuple);
        return masqueraded.unwrap_or(Ok(Translation::Plan(untranslated)));
    }
    if comes_in(arrival, &tuple) {
        // Its answers are none of the pod's own flows: they are not masqueraded.
        return match insert(world, arrival, tuple, None, None) {
            Ok(binding) => Ok(bound(tuple, tuple, binding)),
            Err(Refused::TupleTaken) => Ok(Translation::Plan(untranslated)),
            Err(refused @ (Refused::Full | Refused::Quota)) => Err(reason(refused).into()),
        };
    }
    if !leaves_pod_network(arrival.node, &tuple) {
        return Ok(Translation::Plan(untranslated));
    }
    match route(world.tables, arrival.node, Ipv4Addr::from_bits(tuple.destination))? {
        hop @ Hop::Interface { .. } => masqueraded(world, arrival, hop, tuple, None),
        Hop::Local if may_hairpin(arrival) => mapped(world, arrival, tuple, tuple.destination),
        hop @ (Hop::Local | Hop::Bridge { .. } | Hop::Tunnel { .. }) => {
            Ok(Translation::Plan(Plan { hop: Some(hop), ..untranslated }))
        }
    }
}

/// Follows the packet's binding; in profile `rfc`, whom the pod asked may also come from another port.
fn followed(world: &mut World<'_>, arrival: &Arrival<'_>) -> Result<Option<Followed>, DropReason> {
    let key = HalfKey { node: arrival.ingress.node, tuple: arrival.parsed.tuple() };
    let segment = arrival.segment();
    let mut follow = || world.bindings.follow(&key, &segment, world.now);
    let followed = follow().map_err(|OutOfWindow| DropReason::TcpResetOutOfWindow)?;
    // What comes from a pod is translated on its way out before anybody asks whom it is for.
    if followed.is_some() || profile(arrival) == Profile::Linux || is_pods(arrival.node, key.tuple.source) {
        return Ok(followed);
    }
    let Some((mapping, original)) = world.bindings.mapping_to(&key) else { return Ok(None) };
    if !world.bindings.permits(mapping, key.tuple.source) || segment.flags.rst() {
        return Err(DropReason::NatFiltered);
    }
    let answers = Answers::Steered;
    let (profile, mapping) = (Profile::Rfc, Some(mapping));
    let opening = Opening { original, reply: key, answers, profile, mapping, served: None };
    let made = world.bindings.insert(&opening, &segment, world.now).map_err(reason)?;
    world
        .bindings
        .note(made, Half::Reply, &segment, world.now)
        .map_err(|OutOfWindow| DropReason::TcpResetOutOfWindow)
}

pub(super) fn profile(arrival: &Arrival<'_>) -> Profile {
    arrival.node.masquerade.map_or(Profile::Linux, |masquerade| masquerade.profile)
}

/// Says why a packet without a binding is dropped.
pub(super) fn reason(refused: Refused) -> DropReason {
    match refused {
        Refused::Full => DropReason::BindingTableFull,
        Refused::Quota => DropReason::BindingQuota,
        Refused::TupleTaken => DropReason::TuplesExhausted,
    }
}

/// Tells whether a pod's packet to its own node may be for another pod behind it (RFC 4787, REQ-9; RFC 5382, REQ-8): then
/// it is translated on its way out first, and the port it was sent to says nothing about whose it is.
pub(super) fn may_hairpin(arrival: &Arrival<'_>) -> bool {
    let tuple = arrival.parsed.tuple();
    let to_uplink = |interface: &Interface| interface.address.to_bits() == tuple.destination;
    profile(arrival) == Profile::Rfc
        && arrival.course != Course::Reflected
        && is_pods(arrival.node, tuple.source)
        && matches!(IpProtocol::from(tuple.protocol), IpProtocol::Tcp | IpProtocol::Udp)
        && arrival.node.masquerade_ports().contains(tuple.destination_port)
        && masquerade::is_usable(tuple.destination_port, arrival.node.reserved_port())
        && arrival.node.interfaces.iter().any(to_uplink)
}

pub(super) fn bound(through: Tuple, out: Tuple, binding: BindingRef) -> Translation {
    Translation::Plan(Plan {
        through,
        out,
        binding: Some((binding, Half::Original)),
        direct: None,
        hop: None,
    })
}

/// Tells whether a packet goes from the pod network to somewhere else.
pub(super) fn leaves_pod_network(node: &Node, tuple: &Tuple) -> bool {
    is_pods(node, tuple.source) && !is_pods(node, tuple.destination)
}

/// Tells whether a packet of no binding makes none, in profile `linux`: conntrack calls a reset, a FIN and the answer to a SYN
/// invalid where it knows no connection (`tcp_conntracks`, sIV in state NONE), and what it does not follow it does not translate. The
/// cache keeps none of these.
fn begins_nothing(arrival: &Arrival<'_>) -> bool {
    let flags = arrival.parsed.tcp_flags;
    let is_answer = flags.contains(TcpFlags::SYN.with(TcpFlags::ACK));
    profile(arrival) == Profile::Linux && (flags.rst() || flags.fin() || is_answer)
}

/// Tells whether a packet comes from somewhere else straight to a pod: conntrack follows it, too.
fn comes_in(arrival: &Arrival<'_>, tuple: &Tuple) -> bool {
    arrival.is_from_outside()
        && is_pods(arrival.node, tuple.destination)
        && !is_pods(arrival.node, tuple.source)
        && !is_local(arrival.node, Ipv4Addr::from_bits(tuple.destination))
        && is_translatable(arrival)
}

/// Tells whether an address is of the pod network, where that is masqueraded.
pub(super) fn is_pods(node: &Node, address: u32) -> bool {
    node.masquerade.is_some_and(|Masquerading { pods, .. }| pods.contains(Ipv4Addr::from_bits(address)))
}

/// Guesses the reply tuple of a flow that leaves the pod network: its port is preserved, and it goes out by the first
/// interface. None when it stays inside.
#[must_use]
pub fn likely_reply(node: &Node, tuple: &Tuple) -> Option<Tuple> {
    let source = node.interfaces.first().filter(|_| leaves_pod_network(node, tuple))?.address.to_bits();
    Some(Tuple { source, ..*tuple }.reversed())
}

/// Binds a packet whose source becomes the node's address on the way out.
pub(super) fn masqueraded(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    hop: Hop,
    through: Tuple,
    served: Option<Served>,
) -> Result<Translation, Refusal> {
    let address = hop.address(arrival.node).ok_or(DropReason::NoRoute)?.to_bits();
    // What a Service's backend sees of a client is chosen per connection in both profiles.
    let translation = match profile(arrival) {
        Profile::Rfc if served.is_none() => mapped(world, arrival, through, address),
        Profile::Rfc | Profile::Linux => with_free_port(world, arrival, through, address, served),
    }?;
    Ok(match translation {
        Translation::Plan(plan) => Translation::Plan(Plan { hop: Some(hop), ..plan }),
        Translation::AskForPort(pool) => Translation::AskForPort(pool),
    })
}

/// Binds a packet with a source address and a port that makes the reply unambiguous.
pub(super) fn with_free_port(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    through: Tuple,
    source: u32,
    served: Option<Served>,
) -> Result<Translation, Refusal> {
    let out = Tuple { source, ..through };
    let reply = HalfKey { node: arrival.ingress.node, tuple: out.reversed() };
    let (port, lender) = match free_port(world, arrival, &reply, false)? {
        Ok(found) => found,
        Err(pool) => return Ok(Translation::AskForPort(pool)),
    };
    let out = Tuple { source_port: port, ..out };
    match insert(world, arrival, out, lender, served) {
        Ok(binding) => Ok(bound(through, out, binding)),
        Err(refused) => {
            give_back(world, &reply, port, lender);
            Err(reason(refused).into())
        }
    }
}

/// Binds a packet with the outside port that its source has towards all (RFC 4787, REQ-1), or gets now.
fn mapped(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    through: Tuple,
    source: u32,
) -> Result<Translation, Refusal> {
    let node = arrival.ingress.node;
    let original = HalfKey { node, tuple: arrival.parsed.tuple() };
    let reply = HalfKey { node, tuple: Tuple { source, ..through }.reversed() };
    let inside = inside_key(&original, source);
    let (mapping, port) = match world.bindings.mapping_from(&inside) {
        Some(found) => found,
        None => {
            let all = outside_key(&reply);
            let (port, lender) = match free_port(world, arrival, &all, true)? {
                Ok(found) => found,
                Err(pool) => return Ok(Translation::AskForPort(pool)),
            };
            let outside = HalfKey { tuple: Tuple { destination_port: port, ..all.tuple }, ..all };
            let answers = lender.map_or(Answers::Steered, Answers::Granted);
            let Some(made) = world.bindings.map(inside, outside, answers, world.now) else {
                give_back(world, &all, port, lender);
                return Err(DropReason::BindingTableFull.into());
            };
            (made, port)
        }
    };
    let out = Tuple { source, source_port: port, ..through };
    let reply = HalfKey { node, tuple: out.reversed() };
    let answers = Answers::Steered;
    let profile = Profile::Rfc;
    let opening = Opening { original, reply, answers, profile, mapping: Some(mapping), served: None };
    match open(world, arrival, &opening) {
        Ok(binding) => Ok(bound(through, out, binding)),
        Err(refused) => {
            world.bindings.end_unused(mapping);
            Err(reason(refused).into())
        }
    }
}

/// Finds a port for a reply tuple's destination, and who lends it; or says what to ask the other workers for.
fn free_port(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    reply: &HalfKey,
    parity: bool,
) -> Result<Result<(u16, Option<u8>), Pool>, DropReason> {
    if !is_translatable(arrival) {
        return Err(DropReason::Untranslatable);
    }
    let client = HalfKey { node: reply.node, tuple: arrival.parsed.tuple() };
    if world.bindings.is_at_quota(&client) {
        return Err(DropReason::BindingQuota);
    }
    let segment = arrival.segment();
    let choice = Choice {
        wish: client.tuple.source_port,
        range: arrival.node.masquerade_ports(),
        reserved: arrival.node.reserved_port(),
        random: world.random.next_u64(),
        parity,
        opening: (segment.flags.syn() && !segment.flags.ack()).then_some(segment.sequence),
    };
    let (pool, _) = Pool::of(reply);
    match world.masquerade.find(world.bindings, pool, &choice, world.now) {
        Found::Own(port) => Ok(Ok((port, None))),
        Found::Granted(port) => Ok(Ok((port, world.masquerade.other_owner(port)))),
        Found::Ask => Ok(Err(pool)),
        Found::Exhausted => Err(DropReason::TuplesExhausted),
    }
}

/// A granted port that was not used goes back to who granted it.
fn give_back(world: &mut World<'_>, reply: &HalfKey, port: u16, lender: Option<u8>) {
    let (pool, _) = Pool::of(reply);
    world.masquerade.granted = lender.map(|_| (pool, port));
}

/// Tells whether a first packet has what a translation needs: ports, or the identifier of an ICMP query. An answer
/// nobody asked for has only the look of one.
fn is_translatable(arrival: &Arrival<'_>) -> bool {
    match IpProtocol::from(arrival.parsed.tuple().protocol) {
        IpProtocol::Tcp | IpProtocol::Udp => true,
        IpProtocol::Icmp => {
            let packet = Ipv4Packet::new_unchecked(arrival.packet());
            let kind = IcmpPacket::new_checked(packet.payload()).map(|icmp| icmp.icmp_type());
            matches!(kind, Ok(IcmpType::EchoRequest | IcmpType::TimestampRequest))
        }
        IpProtocol::Unknown(_) => false,
    }
}

/// Makes a binding; `lender` is the worker whose port it uses.
pub(super) fn insert(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    out: Tuple,
    lender: Option<u8>,
    served: Option<Served>,
) -> Result<BindingRef, Refused> {
    let node = arrival.ingress.node;
    let client = Ipv4Addr::from_bits(out.source);
    // By its destination an answer is steered to a pod's worker or a port's; nobody else's has a known one.
    let is_steered = world.workers == 1
        || is_local(arrival.node, client)
        || world.tables.endpoints.get(&client).is_some_and(|endpoint| endpoint.node == node);
    let answers = match lender {
        _ if !is_steered => Answers::Announced,
        Some(lender) => Answers::Granted(lender),
        None => Answers::Steered,
    };
    let opening = Opening {
        original: HalfKey { node, tuple: arrival.parsed.tuple() },
        reply: HalfKey { node, tuple: out.reversed() },
        answers,
        profile: profile(arrival),
        mapping: None,
        served,
    };
    open(world, arrival, &opening)
}

/// Makes a binding and has it follow its first packet.
fn open(world: &mut World<'_>, arrival: &Arrival<'_>, opening: &Opening) -> Result<BindingRef, Refused> {
    let segment = arrival.segment();
    let made = world.bindings.insert(opening, &segment, world.now)?;
    // A reset of a connection nobody knows is followed too: nothing says that its receiver would not take it.
    let _ = world.bindings.note(made, Half::Original, &segment, world.now);
    Ok(made)
}
