//! Whether a packet is translated: by its binding, for a Service, or as MASQUERADE.
//!
//! `decide` asks between hand-over and routing. Invariants: a packet of a binding is translated by it and by
//! nothing else; a new binding's reply tuple is nobody else's, for which another backend or port is taken;
//! what stays inside the pod network keeps its source. Allowed dependencies: as `decide`. Read first:
//! RFC 3022; Kubernetes, "Virtual IPs and Service Proxies".

use super::{
    Answers, Arrival, BindingRef, DropReason, Half, HalfKey, Hop, Ipv4Addr, Plan, Protocol, Refusal, Refused,
    Role, Service, Translation, Tuple, World, choose, is_local, route,
};
use crate::masquerade::{Found, Pool};
use crate::wire::{IcmpPacket, IcmpType, IpProtocol, Ipv4Packet};

/// 3. The binding's translation; 4. else a Service's; 6. else MASQUERADE, or none.
pub(super) fn plan(world: &mut World<'_>, arrival: &Arrival<'_>) -> Result<Translation, Refusal> {
    let tuple = arrival.parsed.tuple();
    let has_ports = !arrival.parsed.fragment || tuple.source_port != 0 || tuple.destination_port != 0;
    if has_ports {
        let key = HalfKey { node: arrival.ingress.node, tuple };
        if let Some((binding, half, to)) = world.bindings.follow(&key, arrival.parsed.tcp_flags, world.now) {
            let through =
                Tuple { destination: to.destination, destination_port: to.destination_port, ..tuple };
            return Ok(Translation::Plan(Plan { through, out: to, binding: Some((binding, half)) }));
        }
    }
    let to_vip = world.tables.services.is_vip(Ipv4Addr::from_bits(tuple.destination));
    if !has_ports && arrival.node.services && to_vip {
        return Err(DropReason::UntranslatableFragment.into());
    }
    if arrival.node.services
        && let Some((service, node_port)) = service(world, arrival)?
    {
        return balance(world, arrival, &service, node_port);
    }
    let untranslated = Translation::Plan(Plan { through: tuple, out: tuple, binding: None });
    if !leaves_pod_network(arrival, &tuple) {
        return Ok(untranslated);
    }
    match route(world.tables, arrival.node, Ipv4Addr::from_bits(tuple.destination))? {
        hop @ Hop::Interface { .. } if has_ports => masqueraded(world, arrival, hop, tuple),
        Hop::Interface { .. } => Err(DropReason::UntranslatableFragment.into()),
        Hop::Local | Hop::Bridge { .. } | Hop::Tunnel { .. } => Ok(untranslated),
    }
}

/// Finds the Service a packet is for; the second tells whether it came for a NodePort.
fn service(
    world: &World<'_>,
    arrival: &Arrival<'_>,
) -> Result<Option<(std::sync::Arc<Service>, bool)>, DropReason> {
    let tuple = arrival.parsed.tuple();
    let services = &world.tables.services;
    let destination = Ipv4Addr::from_bits(tuple.destination);
    let Some(protocol) = Protocol::from_number(tuple.protocol) else {
        return if services.is_vip(destination) { Err(DropReason::ServiceUnsupported) } else { Ok(None) };
    };
    if let Some(service) = services.lookup(destination, tuple.destination_port, protocol) {
        return Ok(Some((std::sync::Arc::clone(service), false)));
    }
    if is_local(arrival.node, destination) {
        let service = services.lookup_node_port(tuple.destination_port, protocol);
        return Ok(service.map(|service| (std::sync::Arc::clone(service), true)));
    }
    if services.is_vip(destination) { Err(DropReason::ServicePortClosed) } else { Ok(None) }
}

/// Chooses a backend whose reply tuple is free; when all are taken, translates the source port as well.
fn balance(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    service: &Service,
    node_port: bool,
) -> Result<Translation, Refusal> {
    let tuple = arrival.parsed.tuple();
    let random = world.random.next_u64();
    let outsider =
        node_port || matches!(arrival.ingress.role, Role::Interface(_)) && !arrival.parsed.tunneled;
    let mut last_resort = None;
    for backend in choose(service, world.cursors, random) {
        let through =
            Tuple { destination: backend.address.to_bits(), destination_port: backend.port, ..tuple };
        let hop = route(world.tables, arrival.node, backend.address)?;
        let hairpin = backend.address.to_bits() == tuple.source;
        // The answer must come back through this node.
        if outsider || hairpin {
            return masqueraded(world, arrival, hop, through);
        }
        match insert(world, arrival, through, None) {
            Ok(binding) => return Ok(bound(through, through, binding)),
            Err(Refused::Full) => return Err(DropReason::BindingTableFull.into()),
            Err(Refused::TupleTaken) => last_resort = last_resort.or(Some(through)),
        }
    }
    let through = last_resort.ok_or(DropReason::NoBackend)?;
    with_free_port(world, arrival, through, through.source)
}

fn bound(through: Tuple, out: Tuple, binding: BindingRef) -> Translation {
    Translation::Plan(Plan { through, out, binding: Some((binding, Half::Original)) })
}

/// Tells whether a packet goes from the pod network to somewhere else.
fn leaves_pod_network(arrival: &Arrival<'_>, tuple: &Tuple) -> bool {
    arrival.node.masquerade.is_some_and(|pods| {
        pods.contains(Ipv4Addr::from_bits(tuple.source))
            && !pods.contains(Ipv4Addr::from_bits(tuple.destination))
    })
}

/// Binds a packet whose source becomes the node's address on the way out.
fn masqueraded(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    hop: Hop,
    through: Tuple,
) -> Result<Translation, Refusal> {
    let address = hop.address(arrival.node).ok_or(DropReason::NoRoute)?;
    with_free_port(world, arrival, through, address.to_bits())
}

/// Binds a packet with a source address and a port that makes the reply unambiguous.
fn with_free_port(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    through: Tuple,
    source: u32,
) -> Result<Translation, Refusal> {
    if !is_translatable(arrival) {
        return Err(DropReason::Untranslatable.into());
    }
    let reserved = arrival.node.tunnel.map_or(0, |tunnel| tunnel.port);
    let choice = (through.source_port, reserved, world.random.next_u16());
    let out = Tuple { source, ..through };
    let (pool, _) = Pool::of(&HalfKey { node: arrival.ingress.node, tuple: out.reversed() });
    let (port, granted) = match world.masquerade.find(world.bindings, pool, choice, world.now) {
        Found::Own(port) => (port, false),
        Found::Granted(port) => (port, true),
        Found::Ask => return Ok(Translation::AskForPort(pool)),
        Found::Exhausted => return Err(DropReason::TuplesExhausted.into()),
    };
    let out = Tuple { source_port: port, ..out };
    let lender = world.masquerade.other_owner(port).filter(|_| granted);
    let reason = match insert(world, arrival, out, lender) {
        Ok(binding) => return Ok(bound(through, out, binding)),
        Err(Refused::Full) => DropReason::BindingTableFull,
        Err(Refused::TupleTaken) => DropReason::TuplesExhausted,
    };
    // The port goes back to who granted it.
    world.masquerade.granted = granted.then_some((pool, port));
    Err(reason.into())
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
fn insert(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    out: Tuple,
    lender: Option<u8>,
) -> Result<BindingRef, Refused> {
    let node = arrival.ingress.node;
    let halves = (HalfKey { node, tuple: arrival.parsed.tuple() }, HalfKey { node, tuple: out.reversed() });
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
    world.bindings.insert(halves, answers, arrival.parsed.tcp_flags, world.now)
}
