//! What is done with an ICMP error: translated like an answer to what it quotes, believed about this node's own tunnels, or
//! just routed.
//!
//! `decide` asks for every error. Invariants: nobody is believed about a packet that is not this node's own, to a peer that it
//! has; what is relayed or believed has a right checksum; what is about an answer from a VIP goes to who gave it, and not
//! where the VIP's route leads. Allowed dependencies: as `decide`. Read first: RFC 5508, 4 and 7; RFC 2003, 4; LVS,
//! `ip_vs_in_icmp`, `ip_vs_icmp_xmit`.

use flatnet_proxy::{Forwarding, Protocol};

use super::{
    Arrival, Course, DropReason, Half, HalfKey, Hop, IpProtocol, Ipv4Addr, Leaving, NodeId, Plan, PortId,
    Profile, Refusal, Role, Served, Step, Transform, Tuple, Verdict, World, enter, entry, host, icmp,
    is_local, leave, parse, route, translate,
};
use crate::icmp::ErrorTranslation;
use crate::load::UNCOUNTED;
use crate::tables::Guard;
use crate::trace::Action;
use crate::tunnel::{Encapsulation, IP_IN_IP};
use crate::wire::icmpv4::{self, code};
use crate::wire::{IcmpPacket, IcmpType, Ipv4Packet};

/// Tells whether a router says that a datagram of this node's tunnel was too long, and what fits. Nobody else is
/// believed: the datagram it quotes must be ours, to a node that holds a lease.
fn told_mtu(world: &World<'_>, arrival: &Arrival<'_>, quoted: &Tuple) -> Option<u16> {
    let tunnel = arrival.node.tunnel?;
    let packet = Ipv4Packet::new_unchecked(arrival.packet());
    let error = IcmpPacket::new_checked(packet.payload()).ok()?;
    let too_long = is_too_long(error.icmp_type(), error.code()) && error.verify_checksum();
    // A VXLAN's come from a port by the flow.
    let from = match tunnel.encapsulation {
        Encapsulation::Udp => tunnel.port,
        Encapsulation::Vxlan { .. } => quoted.source_port,
    };
    let ours = Tuple {
        source: tunnel.local.to_bits(),
        destination: quoted.destination,
        source_port: from,
        destination_port: tunnel.port,
        protocol: IpProtocol::Udp.into(),
    };
    let peer = Ipv4Addr::from_bits(quoted.destination);
    let is_peer = || world.tables.leases.list().iter().any(|(_, lease)| lease.public_ip == peer);
    (too_long && *quoted == ours && is_peer()).then(|| error.next_hop_mtu())
}

/// What somebody says of a packet that this node put into one to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relayed {
    /// The backend.
    pub backend: Ipv4Addr,
    /// Where in the frame the packet inside begins.
    pub inner: usize,
    /// The error's type.
    pub kind: IcmpType,
    /// The error's code.
    pub code: u8,
    /// What the way takes, bytes, where the outer packet was too long; 0 when that was not said.
    pub mtu: u16,
}

/// Tells whether an error is about a packet that this node put into one to a backend. Nobody else is believed: the outer
/// packet must be from the node's own address, and the one inside for a Service that the backend serves through a tunnel.
fn about_wrapped(world: &World<'_>, arrival: &Arrival<'_>) -> Option<Relayed> {
    let packet = Ipv4Packet::new_unchecked(arrival.packet());
    let error = IcmpPacket::new_checked(packet.payload()).ok()?;
    let (kind, code) = (error.icmp_type(), error.code());
    let outer = Ipv4Packet::new_quoted(error.payload()).ok()?;
    let is_told = matches!(kind, IcmpType::DestinationUnreachable | IcmpType::TimeExceeded);
    let is_ours = outer.protocol() == IpProtocol::Unknown(IP_IN_IP)
        && outer.fragment_offset() == 0
        && is_local(arrival.node, outer.source());
    if !is_told || !is_ours || !error.verify_checksum() {
        return None;
    }
    let (inner, _) = parse::quoted_tuple(error.payload().get(outer.header_length()..)?)?;
    let (vip, protocol) = (Ipv4Addr::from_bits(inner.destination), Protocol::from_number(inner.protocol)?);
    let service = world.tables.services.lookup(vip, inner.destination_port, protocol)?;
    let backend = outer.destination();
    let is_backend = service.backends.iter().any(|it| it.address == backend);
    let headers = packet.header_length() + icmpv4::HEADER_LENGTH + outer.header_length();
    (service.forwarding == Forwarding::Tunnel && is_backend).then(|| Relayed {
        backend,
        inner: usize::from(arrival.parsed.network_offset) + headers,
        kind,
        code,
        mtu: error.next_hop_mtu(),
    })
}

impl Relayed {
    /// Tells whether the outer packet was too long for the way.
    #[must_use]
    pub fn is_too_long(&self) -> bool {
        is_too_long(self.kind, self.code)
    }
}

/// Tells whether an error says that a packet was too long for the way.
fn is_too_long(kind: IcmpType, code: u8) -> bool {
    kind == IcmpType::DestinationUnreachable && code == code::FRAGMENTATION_NEEDED
}

/// Finds the backend that gave an answer by itself, from its VIP: by the binding of what was asked.
fn answering(world: &mut World<'_>, node: NodeId, answer: &Tuple) -> Option<Served> {
    let (binding, half, _) = world.bindings.find(&HalfKey { node, tuple: answer.reversed() }, world.now)?;
    let served = world.bindings.served(binding)?;
    (half == Half::Original && served.forwarding != Forwarding::Nat).then_some(served)
}

/// Finds who is to hear of a packet from a VIP, which no route says: the pod whose port it came in by, when that has the VIP;
/// else the backend that gave it as an answer. None of a packet whose source is the way to its sender.
#[must_use]
pub fn sender(world: &mut World<'_>, node: NodeId, ingress: Option<PortId>, packet: &[u8]) -> Option<Served> {
    let (tuple, _) = parse::quoted_tuple(packet)?;
    let port = ingress.and_then(|ingress| world.tables.ports.get(&ingress));
    if let Some(Role::Bridge(Some(Guard { address, vip, .. }))) = port.map(|port| port.role)
        && vip.is_some_and(|vip| vip.to_bits() == tuple.source)
    {
        let (forwarding, port) = (Forwarding::DirectRouting, tuple.source_port);
        return Some(Served { forwarding, address, port, counter: UNCOUNTED });
    }
    answering(world, node, &tuple)
}

/// An ICMP error about a translated packet is translated like an answer to it, one about a backend's own answer goes to the
/// backend as its clients' packets do; others are just routed.
pub(super) fn forward(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    transform: &mut Transform,
) -> Result<Verdict, Refusal> {
    let tuple = arrival.parsed.tuple();
    let untranslated = Plan { through: tuple, out: tuple, binding: None, direct: None, hop: None };
    let quoted = icmp::quote(arrival.packet()).and_then(parse::quoted_tuple);
    if let Some(relayed) = about_wrapped(world, arrival) {
        return Ok(Verdict::Relay(relayed));
    }
    let Some((quoted, _)) = quoted else { return super::forward(world, arrival, untranslated, transform) };
    if let Some(served) = answering(world, arrival.ingress.node, &quoted) {
        return super::forward(world, arrival, Plan { direct: Some(served), ..untranslated }, transform);
    }
    let key = HalfKey { node: arrival.ingress.node, tuple: quoted.reversed() };
    let Some((_, half, binding)) = world.bindings.find(&key, world.now) else {
        if let Some(mtu) = told_mtu(world, arrival, &quoted) {
            return Ok(Verdict::LowerPathMtu(Ipv4Addr::from_bits(quoted.destination), mtu));
        }
        let own = Ipv4Addr::from_bits(tuple.destination);
        let masqueraded = is_local(arrival.node, own) && !host::takes(arrival, own, None);
        return if masqueraded {
            Err(DropReason::IcmpErrorUnmatched.into())
        } else {
            super::forward(world, arrival, untranslated, transform)
        };
    };
    let answer = binding.translated(half);
    let translation = ErrorTranslation {
        quoted,
        original: answer.reversed(),
        source: if tuple.source == quoted.destination { answer.source } else { tuple.source },
        destination: answer.destination,
    };
    let destination = Ipv4Addr::from_bits(translation.destination);
    let hop = route(world.tables, arrival.node, destination)?;
    let is_hosts =
        translate::profile(arrival) == Profile::Linux && host::takes(arrival, destination, Some(half));
    if matches!(hop, Hop::Local) && !is_hosts {
        // RFC 5508, REQ-7: what it is about went the hairpin way.
        let is_hairpin = arrival.course != Course::Reflected;
        return Ok(if is_hairpin {
            Verdict::Reflect(Step::TranslateError(translation))
        } else {
            Verdict::Consume
        });
    }
    enter(arrival, transform);
    transform.push(Step::TranslateError(translation));
    transform.push(Step::Pass(entry(arrival), Action::TranslateDestination));
    if is_hosts {
        return host::hand_up(world, arrival, untranslated, transform);
    }
    leave(world, arrival, hop, transform, Leaving { plan: untranslated, destination })
}
