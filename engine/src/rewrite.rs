//! What is done to a packet: the steps of a decision, and their composition that the cache replays.
//!
//! `decide` returns a [`Transform`]; the worker applies it step by step while somebody watches, else its
//! composition. Invariants: both give the same bytes; checksums are adjusted by difference (RFC 1624), never
//! made anew. Allowed dependencies: `flow`, `frame`, `trace`, `tunnel`, `wire`. Read first: RFC 1624,
//! RFC 3022 section 4.
//!
//! Above 400 lines because the two ways to do a step stand beside each other.

use std::hash::{Hash, Hasher};
use std::net::Ipv4Addr;

use crate::flow::{NO_BINDING, Slot, Tuple, flags};
use crate::frame::{ChecksumState, FrameMut};
use crate::icmp::{self, ErrorTranslation};
use crate::parse::Parsed;
use crate::tables::PortId;
use crate::trace::{Action, Point};
use crate::tunnel::{self, OUTER_LENGTH, OUTER_LIMIT, Outer};
use crate::wire::checksum::Difference;
use crate::wire::{
    EtherType, EthernetFrame, IcmpPacket, IpProtocol, Ipv4Packet, MacAddress, TcpSegment, UdpDatagram,
    ethernet, ipv4, tcp, udp,
};

/// One thing that happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It passes a point.
    Pass(Point, Action),
    /// The outer headers go.
    Decapsulate,
    /// Addresses and ports become these.
    Translate(Tuple),
    /// An ICMP error and what it quotes become these.
    TranslateError(ErrorTranslation),
    /// TTL goes down by one.
    DecrementTtl,
    /// It is cut where it is longer than this, bytes; the steps behind are each fragment's.
    Fragment(u16),
    /// It is put into a packet between these (RFC 2003): IP in IP, to a backend that takes it out again.
    Wrap {
        /// This node.
        source: Ipv4Addr,
        /// The backend.
        destination: Ipv4Addr,
        /// Whether routers may cut it even where the packet inside must not be.
        may_cut: bool,
    },
    /// Outer headers come.
    Encapsulate(Outer),
    /// The Ethernet header becomes this.
    Ethernet {
        /// Destination MAC.
        destination: MacAddress,
        /// Source MAC.
        source: MacAddress,
    },
}

/// Steps a decision has at most.
const STEP_LIMIT: usize = 16;

/// A decision: what is done, in order, and where the frame leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transform {
    steps: [Step; STEP_LIMIT],
    count: usize,
    /// The port the frame leaves by.
    pub egress: PortId,
    /// Largest IP packet (the inner one, into the tunnel) that may take this way, bytes.
    pub mtu: u16,
}

impl Transform {
    /// Makes an empty decision.
    #[must_use]
    pub fn new() -> Self {
        Self { steps: [Step::Decapsulate; STEP_LIMIT], count: 0, egress: PortId(u32::MAX), mtu: u16::MAX }
    }

    /// Appends a step; there is room for the longest way.
    pub fn push(&mut self, step: Step) {
        debug_assert!(self.count < STEP_LIMIT, "a way longer than any there is");
        if let Some(place) = self.steps.get_mut(self.count) {
            *place = step;
            self.count += 1;
        }
    }

    /// Tells whether the packet is cut.
    #[must_use]
    pub fn cuts(&self) -> bool {
        self.steps().iter().any(|step| matches!(step, Step::Fragment(_)))
    }

    /// Returns the steps.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps[..self.count]
    }
}

impl Default for Transform {
    fn default() -> Self {
        Self::new()
    }
}

/// How a frame leaves: what stands in front of its IPv4 header, and by which port. Shared by many flows; in one cache line, but for
/// the end of a VXLAN's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Adjacency {
    /// The port the frame leaves by.
    pub egress: PortId,
    /// Largest IP packet (the inner one, into the tunnel) that may take this way, bytes.
    pub mtu: u16,
    /// Bytes of the prefix; 0 leaves the frame's start as it is.
    pub prefix_length: u8,
    prefix: [u8; ethernet::HEADER_LENGTH + OUTER_LIMIT],
}

/// Of the prefix no more than there is.
impl Hash for Adjacency {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.egress, self.mtu).hash(state);
        let Some((udp, rest)) = self.prefix.split_first_chunk::<UDP_PREFIX>() else { return };
        udp.hash(state);
        if usize::from(self.prefix_length) > UDP_PREFIX {
            rest.hash(state);
        }
    }
}

/// Bytes of the prefix of what goes into udp's tunnel; more are a VXLAN's, fewer no tunnel's.
const UDP_PREFIX: usize = ethernet::HEADER_LENGTH + OUTER_LENGTH;

/// Composes a decision into what the cache keeps; binding, epochs and adjacency number are the caller's.
#[must_use]
pub fn compose(transform: &Transform, parsed: &Parsed) -> (Slot, Adjacency) {
    let mut adjacency = Adjacency {
        prefix: [0; ethernet::HEADER_LENGTH + OUTER_LIMIT],
        prefix_length: 0,
        egress: transform.egress,
        mtu: transform.mtu,
    };
    let (mut tuple, mut slot_flags, mut network) = (parsed.tuple(), 0, Difference::default());
    for step in transform.steps() {
        match *step {
            // Errors are never cached.
            // What is longer than the way's MTU is never replayed.
            Step::Pass(..) | Step::Decapsulate | Step::TranslateError(_) | Step::Fragment(_) => {}
            // Nor is what is put into another packet.
            Step::Wrap { .. } => {}
            Step::Translate(to) => tuple = to,
            Step::DecrementTtl => {
                slot_flags |= flags::DECREMENT_TTL;
                network = network.combine(ttl_difference());
            }
            Step::Encapsulate(outer) => {
                adjacency.prefix[ethernet::HEADER_LENGTH..].copy_from_slice(&outer.template());
                adjacency.prefix_length = outer.length() as u8;
                slot_flags |= flags::ENCAPSULATE;
            }
            Step::Ethernet { destination, source } => {
                fill_ethernet(&mut adjacency.prefix, destination, source);
                adjacency.prefix_length += ethernet::HEADER_LENGTH as u8;
            }
        }
    }
    let difference = TupleDifference::between(&parsed.tuple(), &tuple);
    if tuple != parsed.tuple() {
        slot_flags |= flags::TRANSLATE;
    }
    let slot = Slot {
        key: parsed.key,
        guard: parsed.guard,
        epoch: 0,
        binding: NO_BINDING,
        generation: 0,
        source: tuple.source,
        destination: tuple.destination,
        source_port: tuple.source_port,
        destination_port: tuple.destination_port,
        network_difference: network.combine(difference.network).to_bits(),
        transport_difference: difference.transport.to_bits(),
        adjacency: 0,
        buckets: [0; 2],
        flags: slot_flags,
        decided: 0,
    };
    (slot, adjacency)
}

/// A TTL one lower takes 0x0100 from the word it shares with the protocol.
fn ttl_difference() -> Difference {
    Difference::default().replace_u16(0x0100, 0)
}

/// What a translation adds to the sums of the IPv4 header and of the transport header.
struct TupleDifference {
    network: Difference,
    transport: Difference,
}

impl TupleDifference {
    fn between(from: &Tuple, to: &Tuple) -> Self {
        let address = |old, new| {
            Difference::default().replace_address(Ipv4Addr::from_bits(old), Ipv4Addr::from_bits(new))
        };
        let network = address(from.source, to.source).combine(address(from.destination, to.destination));
        let ports = Difference::default()
            .replace_u16(from.source_port, to.source_port)
            .replace_u16(from.destination_port, to.destination_port);
        // ICMP has no pseudo-header.
        let transport = match IpProtocol::from(from.protocol) {
            IpProtocol::Tcp | IpProtocol::Udp => network.combine(ports),
            IpProtocol::Icmp => ports,
            IpProtocol::Unknown(_) => Difference::default(),
        };
        Self { network, transport }
    }
}

fn fill_ethernet(bytes: &mut [u8], destination: MacAddress, source: MacAddress) {
    let mut frame = EthernetFrame::new_unchecked(bytes);
    frame.set_destination(destination);
    frame.set_source(source);
    frame.set_ethertype(EtherType::Ipv4);
}

/// Replays a cached decision on a frame that the parser found to be what `parsed` says; `identification` is that of the last
/// outer header, and of this one behind it. False when the headroom is used up.
#[inline(always)]
#[must_use]
pub fn replay(
    frame: &mut FrameMut<'_>,
    parsed: &Parsed,
    slot: &Slot,
    adjacency: &Adjacency,
    identification: &mut u16,
) -> bool {
    let network = usize::from(parsed.network_offset);
    if slot.flags & (flags::TRANSLATE | flags::DECREMENT_TTL) != 0 {
        let packet = &mut frame.bytes_mut()[network..];
        if slot.flags & flags::TRANSLATE != 0 {
            translate(packet, slot);
        }
        let mut header = Ipv4Packet::new_unchecked(&mut packet[..ipv4::HEADER_LENGTH]);
        if slot.flags & flags::DECREMENT_TTL != 0 {
            header.set_time_to_live(header.time_to_live().wrapping_sub(1));
        }
        let checksum = Difference::from_bits(slot.network_difference).apply(header.header_checksum());
        header.set_header_checksum(checksum);
    }
    let prefix = usize::from(adjacency.prefix_length);
    if prefix == 0 {
        return true;
    }
    if !frame.reframe(network, usize::from(parsed.length), prefix) {
        return false;
    }
    frame.record.network_offset = ethernet::HEADER_LENGTH as u16;
    let verified = frame.record.checksum == ChecksumState::Verified;
    let bytes = frame.bytes_mut();
    // Lengths that the compiler knows: no call for a copy of a few words.
    if prefix < UDP_PREFIX {
        bytes[..ethernet::HEADER_LENGTH].copy_from_slice(&adjacency.prefix[..ethernet::HEADER_LENGTH]);
        return true;
    }
    let number = identification.wrapping_add(1);
    *identification = number;
    if prefix == UDP_PREFIX {
        bytes[..UDP_PREFIX].copy_from_slice(&adjacency.prefix[..UDP_PREFIX]);
        tunnel::complete(&mut bytes[ethernet::HEADER_LENGTH..], number, verified);
    } else {
        bytes[..adjacency.prefix.len()].copy_from_slice(&adjacency.prefix);
        tunnel::complete_vxlan(&mut bytes[ethernet::HEADER_LENGTH..], number);
    }
    true
}

/// Writes a slot's addresses and ports into a packet without options and adjusts the transport checksum.
#[inline(always)]
fn translate(packet: &mut [u8], slot: &Slot) {
    let mut header = Ipv4Packet::new_unchecked(&mut packet[..ipv4::HEADER_LENGTH]);
    header.set_source(Ipv4Addr::from_bits(slot.source));
    header.set_destination(Ipv4Addr::from_bits(slot.destination));
    let protocol = header.protocol();
    let difference = Difference::from_bits(slot.transport_difference);
    let ports = (slot.source_port, slot.destination_port);
    write_ports(&mut packet[ipv4::HEADER_LENGTH..], protocol, ports, difference);
}

/// Writes ports (an ICMP query's identifier) and adjusts the checksum; what is too short for a field is left.
#[inline(always)]
fn write_ports(transport: &mut [u8], protocol: IpProtocol, ports: (u16, u16), difference: Difference) {
    match protocol {
        IpProtocol::Tcp if transport.len() >= tcp::HEADER_LENGTH => {
            let mut segment = TcpSegment::new_unchecked(transport);
            segment.set_source_port(ports.0);
            segment.set_destination_port(ports.1);
            segment.set_checksum(difference.apply(segment.checksum()));
        }
        IpProtocol::Udp if transport.len() >= udp::HEADER_LENGTH => {
            let mut datagram = UdpDatagram::new_unchecked(transport);
            datagram.set_source_port(ports.0);
            datagram.set_destination_port(ports.1);
            datagram.set_checksum(difference.apply_udp(datagram.checksum()));
        }
        // A quoted TCP header may end after its first eight bytes (RFC 792): ports, but no checksum.
        IpProtocol::Tcp if transport.len() >= udp::HEADER_LENGTH => {
            let mut segment = TcpSegment::new_unchecked(transport);
            segment.set_source_port(ports.0);
            segment.set_destination_port(ports.1);
        }
        IpProtocol::Icmp if transport.len() >= udp::HEADER_LENGTH => {
            let mut icmp = IcmpPacket::new_unchecked(transport);
            let request = crate::parse::icmp_ports(icmp.icmp_type(), 1).0 == 1;
            icmp.set_identifier(if request { ports.0 } else { ports.1 });
            icmp.set_checksum(difference.apply(icmp.checksum()));
        }
        IpProtocol::Tcp | IpProtocol::Udp | IpProtocol::Icmp | IpProtocol::Unknown(_) => {}
    }
}

/// Translates an IPv4 packet, whole or quoted, from one tuple to another.
pub fn translate_packet(packet: &mut [u8], from: &Tuple, to: &Tuple) {
    let difference = TupleDifference::between(from, to);
    let mut header = Ipv4Packet::new_unchecked(&mut *packet);
    header.set_source(Ipv4Addr::from_bits(to.source));
    header.set_destination(Ipv4Addr::from_bits(to.destination));
    header.set_header_checksum(difference.network.apply(header.header_checksum()));
    let (protocol, length) = (header.protocol(), header.header_length());
    if header.fragment_offset() > 0 {
        return;
    }
    write_ports(&mut packet[length..], protocol, (to.source_port, to.destination_port), difference.transport);
}

/// Applies one step to a frame whose record says where the packet begins. Passing a point changes nothing; its
/// caller tells the observer, and who cuts it its caller as well. `identification` is that of the last outer header. False when
/// the headroom is used up.
#[must_use]
pub fn apply(frame: &mut FrameMut<'_>, step: &Step, from: &mut Tuple, identification: &mut u16) -> bool {
    let network = usize::from(frame.record.network_offset);
    match *step {
        Step::Pass(..) | Step::Fragment(_) => true,
        Step::Decapsulate => {
            // The inner packet keeps its bytes; the outer Ethernet header stays in front of it until the next.
            let length = usize::from(Ipv4Packet::new_unchecked(&frame.bytes()[network..]).total_length());
            frame.truncate(network + length);
            true
        }
        Step::Translate(to) => {
            translate_packet(&mut frame.bytes_mut()[network..], from, &to);
            *from = to;
            true
        }
        Step::TranslateError(translation) => {
            icmp::translate_error(&mut frame.bytes_mut()[network..], &translation);
            true
        }
        Step::DecrementTtl => {
            let mut packet = Ipv4Packet::new_unchecked(&mut frame.bytes_mut()[network..]);
            packet.set_time_to_live(packet.time_to_live().saturating_sub(1));
            packet.set_header_checksum(ttl_difference().apply(packet.header_checksum()));
            true
        }
        Step::Wrap { source, destination, may_cut } => {
            let length = usize::from(Ipv4Packet::new_unchecked(&frame.bytes()[network..]).total_length());
            if !frame.reframe(network, length, ipv4::HEADER_LENGTH) {
                return false;
            }
            *identification = identification.wrapping_add(1);
            tunnel::wrap(frame.bytes_mut(), (source, destination), may_cut, *identification);
            frame.record.network_offset = 0;
            true
        }
        Step::Encapsulate(outer) => {
            let length = usize::from(Ipv4Packet::new_unchecked(&frame.bytes()[network..]).total_length());
            let headers = outer.length();
            if !frame.reframe(network, length, headers) {
                return false;
            }
            let verified = frame.record.checksum == ChecksumState::Verified;
            *identification = identification.wrapping_add(1);
            let bytes = frame.bytes_mut();
            bytes[..headers].copy_from_slice(&outer.template()[..headers]);
            match outer.vxlan {
                None => tunnel::complete(bytes, *identification, verified),
                Some(_) => tunnel::complete_vxlan(bytes, *identification),
            }
            frame.record.network_offset = 0;
            true
        }
        Step::Ethernet { destination, source } => {
            let length = usize::from(Ipv4Packet::new_unchecked(&frame.bytes()[network..]).total_length());
            if !frame.reframe(network, length, ethernet::HEADER_LENGTH) {
                return false;
            }
            fill_ethernet(frame.bytes_mut(), destination, source);
            frame.record.network_offset = ethernet::HEADER_LENGTH as u16;
            true
        }
    }
}
