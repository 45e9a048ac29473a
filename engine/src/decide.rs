//! The slow path: what is to be done with a packet, decided from the tables.
//!
//! The worker asks for every packet the cache does not answer; the answer is a transform, or a refusal with
//! its reason. Questions, in this order: may it be sent (anti-spoofing, martians, the tunnel's source); whose
//! is it (another worker's?); is there a binding; is it for a Service; where does it go; must its source be
//! masqueraded. Invariants: this is the specification, the cache only replays it; nothing is decided from
//! anything but the tables, the bindings and the packet. Allowed dependencies: all that answers these
//! questions. Read first: `docs/architecture.md`, "Decide once, replay".
//!
//! Above 400 lines because the questions are to be read in their order, in one file.

use std::net::Ipv4Addr;

use flatnet_proxy::{Affinity, Cursors, Ipv4Prefix, Protocol};

use crate::binding::{
    Answers, BindingRef, Bindings, Half, HalfKey, Opening, Profile, Refused, Segment, Served, inside_key,
};
use crate::bridge::Fdb;
use crate::clock::Instant;
use crate::flow::Tuple;
use crate::frame::Course;
use crate::icmp;
use crate::ledger::DropReason;
use crate::masquerade::{self, Masquerade};
use crate::neighbor::{Attachment, Neighbor, Neighbors};
use crate::parse::{self, Class, Parsed};
use crate::path_mtu::PathMtu;
use crate::random::Random;
use crate::rewrite::{Step, Transform};
use crate::tables::{
    Lease, Node, NodeId, Port, PortId, Role, RouterPort, Tables, address_bucket, mac_bucket, prefix_bucket,
};
use crate::trace::{Action, Point};
use crate::tunnel::{Encapsulation, Outer};
use crate::wire::{EthernetFrame, IpProtocol, Ipv4Packet, MacAddress, TcpSegment, ipv4};

mod error;
mod host;
mod route;
mod service;
mod translate;

pub use error::{Relayed, sender};
pub use route::{Hop, Reach, is_local, reach, route};
pub use service::inner_mtu;
pub use translate::likely_reply;

/// What a decision reads and changes: the tables and the worker's own state.
#[derive(Debug)]
pub struct World<'a> {
    /// The snapshot in force.
    pub tables: &'a Tables,
    /// This worker's bindings.
    pub bindings: &'a mut Bindings,
    /// This worker's neighbours.
    pub neighbors: &'a mut Neighbors,
    /// What routers said about the paths to the tunnel's peers.
    pub path_mtu: &'a PathMtu<(NodeId, Ipv4Addr)>,
    /// What this worker learned of MACs.
    pub fdb: &'a mut Fdb,
    /// The ports this worker may use.
    pub masquerade: &'a mut Masquerade,
    /// This worker's round-robin cursors.
    pub cursors: &'a mut Cursors,
    /// Which backends its clients had.
    pub affinity: &'a mut Affinity,
    /// This worker's generator.
    pub random: &'a mut Random,
    /// This worker.
    pub worker: u8,
    /// How many there are.
    pub workers: u8,
    /// The batch's time.
    pub now: Instant,
}

/// A packet as the slow path sees it.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// The frame's bytes.
    pub bytes: &'a [u8],
    /// What the parser found.
    pub parsed: &'a Parsed,
    /// Bytes of the packet on a wire: of the longest that it makes there.
    pub length: u16,
    /// The port it came in by.
    pub port: PortId,
    /// That port's entry.
    pub ingress: &'a Port,
    /// Its node.
    pub node: &'a Node,
    /// How it came to be decided here.
    pub course: Course,
}

impl<'a> Arrival<'a> {
    /// Returns the packet from its IPv4 header on.
    #[must_use]
    pub fn packet(&self) -> &'a [u8] {
        &self.bytes[usize::from(self.parsed.network_offset)..]
    }

    /// Returns what a binding's state depends on; a fragment has it when it is the first.
    fn segment(&self) -> Segment {
        let packet = Ipv4Packet::new_unchecked(self.packet());
        let is_tcp = packet.protocol() == IpProtocol::Tcp && packet.fragment_offset() == 0;
        let segment = is_tcp.then(|| TcpSegment::new_checked(packet.payload()).ok()).flatten();
        segment.map_or_else(Segment::default, |segment| Segment::of(&segment))
    }

    /// Tells whether it came from outside the cluster: by an interface, and neither through the tunnel nor from a pod.
    fn is_from_outside(&self) -> bool {
        matches!(self.ingress.role, Role::Interface(_)) && !self.parsed.tunneled && !self.is_from_peer()
    }

    /// Tells whether it came from another node's pod, or seems to, as it is: by host-gw.
    fn is_from_peer(&self) -> bool {
        self.node.tunnel.is_none() && self.is_as_from_pod()
    }

    /// Tells whether it came by an interface, as it is, with an address of the pod network.
    fn is_as_from_pod(&self) -> bool {
        matches!(self.ingress.role, Role::Interface(_))
            && !self.parsed.tunneled
            && !self.is_from_host()
            && translate::is_pods(self.node, self.parsed.tuple().source)
    }

    fn destination_mac(&self) -> MacAddress {
        EthernetFrame::new_unchecked(self.bytes).destination()
    }

    fn source_mac(&self) -> MacAddress {
        EthernetFrame::new_unchecked(self.bytes).source()
    }
}

/// What is to be done with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It leaves by one port, after what the transform says.
    Forward(Decision),
    /// It goes to every other port of the bridge, and to the node itself if it has a port there.
    Flood,
    /// It is for the node itself.
    Consume,
    /// It waits until a neighbour's MAC is known.
    Resolve(Neighbor),
    /// Another worker decides; when it is known to hold the binding, by which redirect.
    HandOver(u8, Option<BindingRef>),
    /// It waits until another worker has granted a port: this one has none left.
    AskForPort(masquerade::Pool),
    /// A router says that the path to a peer of the tunnel takes this much, bytes; that is for the node itself.
    LowerPathMtu(Ipv4Addr, u16),
    /// Somebody says something of a packet that this node put into one to a backend; its client is to hear it.
    Relay(Relayed),
    /// It leaves the pod network and comes back, translated like this: a hairpin (RFC 4787, 6).
    Reflect(Step),
}

/// What a transform depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// The epoch buckets it depends on.
    pub buckets: [u8; 2],
    /// The binding it follows.
    pub binding: Option<(BindingRef, Half)>,
}

/// A packet that is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: DropReason,
    /// The MTU it did not fit, for its sender.
    pub mtu: u16,
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Self {
        Self { reason, mtu: 0 }
    }
}

/// Decides about a packet; what is done to one that is forwarded is laid out in `transform`, which is empty before.
///
/// # Errors
/// [`Refusal`]: why it is dropped.
pub fn decide(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    transform: &mut Transform,
) -> Result<Verdict, Refusal> {
    may_send(world, arrival)?;
    if arrival.parsed.class == Class::LayerTwo {
        return bridge(world, arrival, transform, None);
    }
    martian(world, arrival)?;
    if arrival.parsed.tunneled {
        tunnel_peer(world, arrival)?;
    }
    if let Some((worker, redirect)) = home(world, arrival) {
        return Ok(Verdict::HandOver(worker, redirect));
    }
    if arrival.parsed.icmp_error {
        return error::forward(world, arrival, transform);
    }
    match translate::plan(world, arrival)? {
        Translation::Plan(plan) => forward(world, arrival, plan, transform),
        Translation::AskForPort(pool) => Ok(Verdict::AskForPort(pool)),
    }
}

/// 1. A pod sends from its own MAC and address only, and no other machine from a pod's.
fn may_send(world: &World<'_>, arrival: &Arrival<'_>) -> Result<(), DropReason> {
    // What the node has translated and takes in again was looked at before.
    if arrival.course == Course::Reflected {
        return Ok(());
    }
    let source = Ipv4Addr::from_bits(arrival.parsed.tuple().source);
    let is_ipv4 = arrival.parsed.class != Class::LayerTwo;
    let (owns_mac, owns_address) = match arrival.ingress.role {
        Role::Interface(_) if arrival.is_from_host() => return host::may_send(arrival),
        Role::Interface(index) if is_ipv4 && arrival.is_as_from_pod() => {
            return route::leads_back(world.tables, arrival.node, source, index);
        }
        Role::Interface(_) => return Ok(()),
        Role::Bridge(Some(guard)) => {
            let own = source == guard.address || guard.vip == Some(source) && is_direct(world, arrival);
            (arrival.source_mac() == guard.mac, own)
        }
        Role::Bridge(None) => {
            let station = world.tables.stations.get(&(arrival.ingress.node, arrival.source_mac()));
            let pod = world.tables.endpoints.get(&source).filter(|pod| pod.node == arrival.ingress.node);
            (station.is_none_or(|&port| port == arrival.port), pod.is_none_or(|pod| pod.port == arrival.port))
        }
    };
    if !owns_mac {
        return Err(DropReason::SpoofedMac);
    }
    if is_ipv4 && !owns_address { Err(DropReason::SpoofedAddress) } else { Ok(()) }
}

/// Tells whether a packet comes from a VIP whose backends answer by themselves.
fn is_direct(world: &World<'_>, arrival: &Arrival<'_>) -> bool {
    let tuple = arrival.parsed.tuple();
    let (source, port) = (Ipv4Addr::from_bits(tuple.source), tuple.source_port);
    let protocol = Protocol::from_number(tuple.protocol);
    protocol.is_some_and(|it| world.tables.services.is_answered_directly(source, port, it))
}

/// RFC 1812, 5.3.7: addresses that are never on a wire as a packet's source or destination, or are the node's own.
fn martian(world: &World<'_>, arrival: &Arrival<'_>) -> Result<(), DropReason> {
    let tuple = arrival.parsed.tuple();
    let (source, destination) = (Ipv4Addr::from_bits(tuple.source), Ipv4Addr::from_bits(tuple.destination));
    let reflected = arrival.course == Course::Reflected;
    let is_own = is_local(arrival.node, source) && !arrival.is_from_host();
    let is_peers = arrival.parsed.tunneled || arrival.is_from_peer();
    let lease = is_peers.then(|| world.tables.leases.lookup(source)).flatten();
    let bad_source = source.is_loopback()
        || source.is_unspecified()
        || route::is_broadcast(arrival.node, source)
        || lease.is_some_and(|(subnet, _)| route::is_broadcast_of(subnet, source))
        || (is_own || source == destination) && !reflected;
    let bad_destination = destination.is_loopback() || destination.is_unspecified();
    // RFC 1812, 5.3.4: what the link layer broadcast is not forwarded to one host; every router would.
    if matches!(arrival.ingress.role, Role::Interface(_)) && arrival.destination_mac().is_multicast() {
        route::is_broadcast(arrival.node, destination).then_some(()).ok_or(DropReason::NotForUs)?;
    }
    if bad_source || bad_destination { Err(DropReason::Martian) } else { Ok(()) }
}

/// The outer source is another node's tunnel, which must hold the lease of the inner source, and the inner destination must be
/// ours.
fn tunnel_peer(world: &World<'_>, arrival: &Arrival<'_>) -> Result<(), DropReason> {
    let tuple = arrival.parsed.tuple();
    let [.., a, b, c, d, port_high, port_low] = arrival.parsed.guard;
    let outer = Ipv4Addr::new(a, b, c, d);
    // It holds its own pods' lease; who sends from its address, to itself as it seems, is somebody else.
    if is_local(arrival.node, outer) {
        return Err(DropReason::Martian);
    }
    // Whom that node masquerades has its address, but never its tunnel's port. A VXLAN's datagrams come from any.
    let from = u16::from_be_bytes([port_high, port_low]);
    if arrival.node.tunnel.is_some_and(|it| it.encapsulation == Encapsulation::Udp && it.port != from) {
        return Err(DropReason::TunnelForeignSource);
    }
    let lease = world.tables.leases.lookup(Ipv4Addr::from_bits(tuple.source));
    let is_from = |lease: &Lease| lease.public_ip == outer;
    // A backend may answer from its VIP, wherever it is.
    let is_backend =
        || is_direct(world, arrival) && world.tables.leases.list().iter().any(|(_, it)| is_from(it));
    if !lease.is_some_and(|(_, lease)| is_from(lease)) && !is_backend() {
        return Err(DropReason::TunnelForeignSource);
    }
    let destination = Ipv4Addr::from_bits(tuple.destination);
    let subnet = arrival.node.bridge.as_ref().and_then(|bridge| bridge.router).map(|router| router.subnet);
    if subnet.is_some_and(|subnet| subnet.contains(destination)) {
        Ok(())
    } else {
        Err(DropReason::TunnelForeignDestination)
    }
}

/// 2. Whoever holds the binding decides: the worker that said so, or that of the destination's endpoint or port.
fn home(world: &mut World<'_>, arrival: &Arrival<'_>) -> Option<(u8, Option<BindingRef>)> {
    if world.workers == 1 || translate::may_hairpin(arrival) {
        return None;
    }
    let tuple = if arrival.parsed.icmp_error {
        // An error goes to who holds the binding of what it quotes: as an answer to that packet would.
        let tuple = parse::quoted_tuple(icmp::quote(arrival.packet())?)?.0.reversed();
        if world.bindings.find(&HalfKey { node: arrival.ingress.node, tuple }, world.now).is_some() {
            return None;
        }
        tuple
    } else {
        arrival.parsed.tuple()
    };
    let elsewhere = |tuple| world.bindings.elsewhere(&HalfKey { node: arrival.ingress.node, tuple });
    // A backend's own answer does not pass here, an error about it may: the others know of that half only.
    let about_answer = || elsewhere(tuple.reversed()).filter(|_| arrival.parsed.icmp_error);
    if let Some((redirect, worker)) = elsewhere(tuple).or_else(about_answer) {
        return Some((worker, Some(redirect)));
    }
    if arrival.course == Course::Steered {
        return None;
    }
    let destination = Ipv4Addr::from_bits(arrival.parsed.tuple().destination);
    let worker = if let Some(endpoint) = world.tables.endpoints.get(&destination) {
        (endpoint.node == arrival.ingress.node).then_some(endpoint.worker)?
    } else if is_local(arrival.node, destination) && is_answer(arrival.node, &tuple) {
        masquerade::owner(tuple.destination_port, world.workers)
    } else {
        return None;
    };
    (worker != world.worker).then_some((worker, None))
}

/// Tells whether a packet to the node's own address may answer a masqueraded one.
fn is_answer(node: &Node, tuple: &Tuple) -> bool {
    let port = tuple.destination_port;
    match IpProtocol::from(tuple.protocol) {
        IpProtocol::Tcp | IpProtocol::Udp => {
            masquerade::is_usable(port, 0) && node.masquerade_ports().contains(port)
        }
        // A request has its type there, an answer its identifier; see `parse::icmp_ports`.
        IpProtocol::Icmp => tuple.source_port == 8 || tuple.source_port == 13,
        IpProtocol::Unknown(_) => false,
    }
}

/// Forwards by MAC.
fn bridge(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    transform: &mut Transform,
    binding: Option<(BindingRef, Half)>,
) -> Result<Verdict, Refusal> {
    let mac = arrival.destination_mac();
    if router(arrival.node).is_some_and(|router| router.mac == mac) {
        return Err(DropReason::UnhandledProtocol.into());
    }
    if mac.is_multicast() {
        return Ok(Verdict::Flood);
    }
    let Some(egress) = world.fdb.lookup(world.tables, arrival.ingress.node, mac, world.now) else {
        return Ok(Verdict::Flood);
    };
    if egress == arrival.port {
        return Err(DropReason::BridgeSamePort.into());
    }
    transform.push(Step::Pass(Point::Bridge, Action::Bridge));
    transform.egress = egress;
    let destination = Ipv4Addr::from_bits(arrival.parsed.tuple().destination);
    Ok(Verdict::Forward(Decision { buckets: [mac_bucket(mac), address_bucket(destination)], binding }))
}

fn router(node: &Node) -> Option<RouterPort> {
    node.bridge.as_ref().and_then(|bridge| bridge.router)
}

/// What translation a packet gets: the tuple on its way through the node, and afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// After the destination was translated, on the way in.
    through: Tuple,
    /// After the source was translated too, on the way out.
    out: Tuple,
    binding: Option<(BindingRef, Half)>,
    /// The backend, when it gets the packet as it is: by direct routing or through a tunnel.
    direct: Option<Served>,
    /// The way to `through`'s destination, where it had to be known for the plan.
    hop: Option<Hop>,
}

/// How a packet is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Translation {
    /// Like this.
    Plan(Plan),
    /// That cannot be said before another worker has granted a port.
    AskForPort(masquerade::Pool),
}

/// 5. Bridge or route, then lay the steps out in the order in which they happen.
fn forward(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    plan: Plan,
    transform: &mut Transform,
) -> Result<Verdict, Refusal> {
    let parsed = arrival.parsed;
    let on_bridge = matches!(arrival.ingress.role, Role::Bridge(_));
    let to_router = router(arrival.node).is_none_or(|router| router.mac == arrival.destination_mac());
    if on_bridge && !to_router && plan.through.destination == parsed.tuple().destination {
        // Layer 2 only; an answer between pods of one bridge may still be translated back.
        if plan.out != parsed.tuple() {
            transform.push(Step::Translate(plan.out));
            transform.push(Step::Pass(Point::Bridge, Action::TranslateSource));
        }
        return bridge(world, arrival, transform, plan.binding);
    }
    enter(arrival, transform);
    if plan.through != parsed.tuple() {
        transform.push(Step::Translate(plan.through));
        transform.push(Step::Pass(entry(arrival), Action::TranslateDestination));
    }
    let destination = plan.direct.map_or(Ipv4Addr::from_bits(plan.through.destination), |it| it.address);
    let hop = plan.hop.map_or_else(|| route(world.tables, arrival.node, destination), Ok)?;
    service::may_go(plan.direct, hop)?;
    if matches!(hop, Hop::Local) {
        let is_hairpin =
            plan.binding.is_some() && is_local(arrival.node, Ipv4Addr::from_bits(plan.out.source));
        return match is_hairpin {
            true => Ok(Verdict::Reflect(Step::Translate(plan.out))),
            false if host::takes(arrival, destination, plan.binding.map(|(_, half)| half)) => {
                host::hand_up(world, arrival, plan, transform)
            }
            false => Ok(Verdict::Consume),
        };
    }
    leave(world, arrival, hop, transform, Leaving { plan, destination })
}

/// What `leave` must know beside the hop.
#[derive(Debug, Clone, Copy)]
struct Leaving {
    plan: Plan,
    destination: Ipv4Addr,
}

fn leave(
    world: &mut World<'_>,
    arrival: &Arrival<'_>,
    hop: Hop,
    transform: &mut Transform,
    leaving: Leaving,
) -> Result<Verdict, Refusal> {
    let packet = Ipv4Packet::new_unchecked(arrival.packet());
    // The host is this hop itself.
    let is_hop = !arrival.is_from_host();
    if is_hop && packet.time_to_live() <= 1 {
        return Err(DropReason::TtlExpired.into());
    }
    if matches!(hop, Hop::Interface { .. })
        && route::imitates_tunnel(world.tables, arrival.node, &leaving.plan.out)
    {
        return Err(DropReason::TunnelImitated.into());
    }
    let at = (arrival.ingress.node, arrival.node);
    let wrap = service::wrap(world, at, leaving.plan.direct, hop);
    let mtu = mtu(world, at, (hop, leaving.destination), wrap);
    let too_long = arrival.length > mtu;
    if too_long && packet.dont_fragment() {
        return Err(Refusal { reason: DropReason::FragmentationNeeded, mtu });
    }
    let reach = match reach(world, arrival.ingress.node, arrival.node, hop, leaving.destination)? {
        Ok(reach) => reach,
        Err(neighbor) => return Ok(Verdict::Resolve(neighbor)),
    };
    if is_hop {
        transform.push(Step::DecrementTtl);
    }
    if leaving.plan.out != leaving.plan.through {
        transform.push(Step::Translate(leaving.plan.out));
        transform.push(Step::Pass(hop.point(), Action::TranslateSource));
    }
    if too_long {
        transform.push(Step::Fragment(mtu));
    }
    if let Some(step) = wrap {
        transform.push(step);
        transform.push(Step::Pass(hop.point(), Action::Wrap));
    }
    exit(transform, &reach, mtu);
    let buckets = dependencies(world.tables, arrival, &reach, leaving.destination);
    Ok(Verdict::Forward(Decision { buckets, binding: leaving.plan.binding }))
}

/// The buckets a routed packet depends on. From another node's pod its source's lease is one of them; then the route
/// need not be, unless it is a lease too: a node's own routes change only with everything else of the node.
fn dependencies(tables: &Tables, arrival: &Arrival<'_>, reach: &Reach, destination: Ipv4Addr) -> [u8; 2] {
    if !arrival.parsed.tunneled && !arrival.is_from_peer() {
        return [reach.bucket, address_bucket(destination)];
    }
    let source = tables.leases.lookup(Ipv4Addr::from_bits(arrival.parsed.tuple().source));
    let source = source.map_or(reach.bucket, |(lease, _)| prefix_bucket(lease));
    let is_out = matches!(reach.attachment, Attachment::Interface(_));
    let by_lease = is_out && translate::is_pods(arrival.node, destination.to_bits());
    [source, if reach.outer.is_some() || by_lease { reach.bucket } else { address_bucket(destination) }]
}

/// The points where a packet enters.
fn enter(arrival: &Arrival<'_>, transform: &mut Transform) {
    match arrival.ingress.role {
        Role::Bridge(_) => transform.push(Step::Pass(Point::Bridge, Action::Receive)),
        Role::Interface(index) => {
            transform.push(Step::Pass(Point::Interface(index), Action::Receive));
            if arrival.parsed.tunneled {
                transform.push(Step::Decapsulate);
                transform.push(Step::Pass(Point::Tunnel, Action::Decapsulate));
            }
        }
    }
}

/// The point at which a packet counts as having entered: behind the tunnel, if it came through it.
fn entry(arrival: &Arrival<'_>) -> Point {
    match arrival.ingress.role {
        Role::Bridge(_) => Point::Bridge,
        Role::Interface(_) if arrival.parsed.tunneled => Point::Tunnel,
        Role::Interface(index) => Point::Interface(index),
    }
}

/// Returns the largest packet that goes this way to a destination, bytes: into another packet, when it is wrapped.
fn mtu(
    world: &World<'_>,
    at: (NodeId, &Node),
    (hop, destination): (Hop, Ipv4Addr),
    wrap: Option<Step>,
) -> u16 {
    let link = hop.mtu(world, at, destination);
    wrap.map_or(link, |_| service::inner_mtu(world, at.0, destination, link))
}

/// Returns the steps by which a packet that the node itself made leaves, in fragments if it is too long: by its destination,
/// or to a backend (see [`sender`]). The inner error is the neighbour whose MAC must be asked for.
///
/// # Errors
/// [`DropReason`] when there is no way.
pub fn originate(
    world: &World<'_>,
    id: NodeId,
    packet: &Ipv4Packet<&[u8]>,
    direct: Option<Served>,
) -> Result<Result<Transform, Neighbor>, DropReason> {
    let node = world.tables.node(id).ok_or(DropReason::LinkDown)?;
    let destination = direct.map_or(packet.destination(), |served| served.address);
    let hop = route(world.tables, node, destination)?;
    service::may_go(direct, hop)?;
    let wrap = service::wrap(world, (id, node), direct, hop);
    let mtu = mtu(world, (id, node), (hop, destination), wrap);
    let reach = match reach(world, id, node, hop, destination)? {
        Ok(reach) => reach,
        Err(neighbor) => return Ok(Err(neighbor)),
    };
    let mut transform = Transform::new();
    transform.push(Step::Pass(hop.point(), Action::Originate));
    if packet.total_length() > mtu {
        transform.push(Step::Fragment(mtu));
    }
    if let Some(step) = wrap {
        transform.push(step);
        transform.push(Step::Pass(hop.point(), Action::Wrap));
    }
    exit(&mut transform, &reach, mtu);
    Ok(Ok(transform))
}

/// The points where a packet leaves, and its new headers.
fn exit(transform: &mut Transform, reach: &Reach, mtu: u16) {
    transform.egress = reach.egress;
    transform.mtu = mtu;
    if let Some(outer) = reach.outer {
        transform.push(Step::Pass(Point::Tunnel, Action::Encapsulate));
        transform.push(Step::Encapsulate(outer));
    }
    transform.push(Step::Ethernet { destination: reach.destination, source: reach.source });
    let (point, action) = match reach.attachment {
        Attachment::Bridge => (Point::Bridge, Action::Bridge),
        Attachment::Interface(index) => (Point::Interface(index), Action::Transmit),
    };
    transform.push(Step::Pass(point, action));
}
