//! The pod's one network stack: what comes in is sorted here, before any socket is looked at.
//!
//! [`super::Pod`] hands it frames and time; it fills the list of events that the pod's containers and programs are then woken by.
//! A packet's way: Ethernet → ARP or IPv4 → reassembly → TCP, UDP or ICMP.
//!
//! Invariants: anything may arrive, and what is not understood is a counted drop; headers and checksums are verified before a
//! socket sees them. Allowed dependencies: the pod's tables, `wire`.
//! Read first: RFC 1122 section 3.2.

use super::config::PodConfig;
use super::device::{Device, Undeliverable, Undelivered};
use super::drops::PodDrop;
use super::icmp::{self, Echo, EchoTable, Message};
use super::ip;
use super::reassembly::{Outcome, Reassembly};
use super::socket::{Event, Failure, Owner, Report};
use super::tcp::{Io, TcpTable, Tuple};
use super::udp::{self, UdpError, UdpTable};
use crate::clock::Instant;
use crate::link::pod_ring::Outbox;
use crate::tunnel::IP_IN_IP;
use crate::wire::icmpv4::code;
use crate::wire::{EtherType, EthernetFrame, IcmpPacket, IcmpType, IpProtocol, Ipv4Packet};
use std::collections::VecDeque;
use std::net::SocketAddrV4;

/// Requests to somebody elsewhere that wait to be taken.
const FOREIGN_LIMIT: usize = 1024;

/// A pod's stack.
#[derive(Debug)]
pub(super) struct Stack {
    pub(super) device: Device,
    pub(super) tcp: TcpTable,
    pub(super) udp: UdpTable,
    pub(super) echo: EchoTable,
    pub(super) events: VecDeque<(Owner, Event)>,
    /// What came for somebody elsewhere, for relays to take, where there are any: whole packets, requests all of them.
    pub(super) foreign: Option<VecDeque<Vec<u8>>>,
    reassembly: Reassembly,
}

impl Stack {
    /// Makes the stack of a pod.
    pub(super) fn new(config: &PodConfig) -> Self {
        Stack {
            device: Device::new(config),
            tcp: TcpTable::new(config.seed ^ 0x7463_7000, config.tcp_buffer),
            udp: UdpTable::new(config.seed ^ 0x7564_7000),
            echo: EchoTable::new(config.seed ^ 0x6963_6d70),
            events: VecDeque::new(),
            foreign: None,
            reassembly: Reassembly::default(),
        }
    }

    /// Handles a frame from the link.
    pub(super) fn receive_frame(&mut self, bytes: &[u8], now: Instant, out: &mut Outbox<'_>) {
        let Ok(frame) = EthernetFrame::new_checked(bytes) else {
            self.device.drops.count(PodDrop::Malformed);
            return;
        };
        if frame.destination() != self.device.mac && !frame.destination().is_multicast() {
            self.device.drops.count(PodDrop::NotForUs);
            return;
        }
        match frame.ethertype() {
            EtherType::Arp => self.device.receive_arp(frame.payload(), now, out),
            EtherType::Ipv4 => self.receive_packet(frame.payload(), false, now, out),
            EtherType::Ipv6 | EtherType::Vlan | EtherType::Unknown(_) => {
                self.device.drops.count(PodDrop::UnknownProtocol);
            }
        }
    }

    /// Handles a packet from the link or from `lo`.
    fn receive_packet(&mut self, bytes: &[u8], looped: bool, now: Instant, out: &mut Outbox<'_>) {
        let Ok(packet) = Ipv4Packet::new_checked(bytes) else {
            self.device.drops.count(PodDrop::Malformed);
            return;
        };
        if !packet.verify_header_checksum() {
            self.device.drops.count(PodDrop::BadChecksum);
            return;
        }
        let (source, destination) = (packet.source(), packet.destination());
        let strange = source.is_loopback() || destination.is_loopback() || source == self.device.address;
        if (strange && !looped) || source.is_multicast() || source.is_broadcast() {
            self.device.drops.count(PodDrop::Martian);
            return;
        }
        let for_everybody = destination.is_multicast() || self.device.is_broadcast(destination);
        if !self.device.is_local(destination) && !for_everybody && self.foreign.is_none() {
            self.device.drops.count(PodDrop::NotForUs);
            return;
        }
        let bytes = &bytes[..usize::from(packet.total_length())];
        if packet.is_fragment() {
            let (outcome, gave_way) = self.reassembly.insert(&Ipv4Packet::new_unchecked(bytes), now);
            (0..gave_way).for_each(|_| self.device.drops.count(PodDrop::ReassemblyFull));
            match outcome {
                Outcome::Whole(whole) => self.receive_whole(&whole, for_everybody, now, out),
                Outcome::Waiting => {}
                Outcome::Malformed => self.device.drops.count(PodDrop::Malformed),
            }
        } else {
            self.receive_whole(bytes, for_everybody, now, out);
        }
    }

    fn receive_whole(&mut self, packet: &[u8], for_everybody: bool, now: Instant, out: &mut Outbox<'_>) {
        let Stack { device, tcp, udp, events, .. } = self;
        let is_foreign = !for_everybody && !device.is_local(Ipv4Packet::new_unchecked(packet).destination());
        let mut io = Io { device, out, now, events };
        match Ipv4Packet::new_unchecked(packet).protocol() {
            IpProtocol::Tcp if !for_everybody => {
                if !tcp.receive(packet, &mut io) {
                    self.receive_foreign(packet);
                }
            }
            IpProtocol::Tcp => io.device.drops.count(PodDrop::Martian),
            IpProtocol::Udp if is_foreign => match udp::check(packet) {
                Ok(()) => self.receive_foreign(packet),
                Err(reason) => io.device.drops.count(reason),
            },
            IpProtocol::Udp => {
                if !udp.receive(packet, &mut io) {
                    icmp::send_unreachable(code::PORT_UNREACHABLE, packet, &mut io);
                }
            }
            IpProtocol::Icmp => self.receive_icmp(packet, for_everybody, now, out),
            IpProtocol::Unknown(IP_IN_IP) if unwraps(io.device, packet) => {
                self.receive_packet(
                    &packet[Ipv4Packet::new_unchecked(packet).header_length()..],
                    false,
                    now,
                    out,
                );
            }
            IpProtocol::Unknown(_) => {
                io.device.drops.count(PodDrop::UnknownProtocol);
                icmp::send_unreachable(code::PROTOCOL_UNREACHABLE, packet, &mut io);
            }
        }
    }

    /// Leaves a request to somebody elsewhere to the relays.
    fn receive_foreign(&mut self, packet: &[u8]) {
        match &mut self.foreign {
            Some(foreign) if foreign.len() < FOREIGN_LIMIT => {
                if foreign.is_empty() {
                    self.events.push_back((Owner::Relays, Event::Input));
                }
                foreign.push_back(packet.to_vec());
            }
            Some(_) => self.device.drops.count(PodDrop::SocketQueueFull),
            None => self.device.drops.count(PodDrop::NotForUs),
        }
    }

    fn receive_icmp(&mut self, packet: &[u8], for_everybody: bool, now: Instant, out: &mut Outbox<'_>) {
        let ip = Ipv4Packet::new_unchecked(packet);
        let Ok(icmp) = IcmpPacket::new_checked(ip.payload()) else {
            self.device.drops.count(PodDrop::Malformed);
            return;
        };
        if !icmp.verify_checksum() {
            self.device.drops.count(PodDrop::BadChecksum);
            return;
        }
        match icmp.icmp_type() {
            // Linux ignores echo requests to everybody.
            IcmpType::EchoRequest if for_everybody => self.device.drops.count(PodDrop::UnknownProtocol),
            IcmpType::EchoRequest if !self.device.is_local(ip.destination()) => self.receive_foreign(packet),
            IcmpType::EchoRequest => {
                let echo = Echo {
                    source: ip.destination(),
                    destination: ip.source(),
                    identifier: icmp.identifier(),
                    sequence: icmp.sequence(),
                    payload: icmp.payload(),
                    ttl: ip::DEFAULT_TTL,
                    traced: false,
                };
                icmp::send_reply(&mut self.device, &echo, now, out);
            }
            IcmpType::EchoReply => {
                let (from, ttl, sequence) = (ip.source(), ip.time_to_live(), icmp.sequence());
                let message = Message::Reply { from, ttl, sequence, payload: icmp.payload().to_vec() };
                if !self.echo.deliver(icmp.identifier(), message, &mut self.events) {
                    self.device.drops.count(PodDrop::ErrorUnmatched);
                }
            }
            IcmpType::DestinationUnreachable | IcmpType::TimeExceeded | IcmpType::ParameterProblem => {
                let report = Report { failure: icmp::failure(&icmp), from: ip.source() };
                self.fail(icmp.payload(), report, now);
            }
            IcmpType::SourceQuench
            | IcmpType::Redirect
            | IcmpType::TimestampRequest
            | IcmpType::TimestampReply
            | IcmpType::Unknown(_) => self.device.drops.count(PodDrop::UnknownProtocol),
        }
    }

    /// Hands an error to the socket that sent the quoted packet.
    fn fail(&mut self, quoted: &[u8], report: Report, now: Instant) {
        let Ok(packet) = Ipv4Packet::new_quoted(quoted) else {
            self.device.drops.count(PodDrop::Malformed);
            return;
        };
        let (source, destination) = (packet.source(), packet.destination());
        // RFC 792 promises eight octets behind the header: the ports, or an echo's identifier and sequence.
        let Some(&[a, b, c, d, e, f, g, h]) = packet.payload().first_chunk::<8>() else {
            self.device.drops.count(PodDrop::Malformed);
            return;
        };
        let is_own = self.device.is_local(source) || self.foreign.is_some();
        if !is_own || packet.fragment_offset() != 0 {
            self.device.drops.count(PodDrop::ErrorUnmatched);
            return;
        }
        let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let remote = SocketAddrV4::new(destination, ports.1);
        let tuple = Tuple { local: SocketAddrV4::new(source, ports.0), remote };
        let known = match packet.protocol() {
            IpProtocol::Tcp => self.tcp.knows(&tuple),
            IpProtocol::Udp => self.udp.holder(ports.0).is_some(),
            IpProtocol::Icmp | IpProtocol::Unknown(_) => true,
        };
        if let Failure::FragmentationNeeded(mtu) = report.failure
            && known
        {
            self.device.path_mtu.lower(destination, mtu, now);
        }
        let delivered = match packet.protocol() {
            IpProtocol::Tcp => self.tcp.fail(tuple, report.failure, &mut self.events),
            IpProtocol::Udp => self.udp.fail(ports.0, UdpError { to: remote, report }, &mut self.events),
            IpProtocol::Icmp => {
                let (identifier, sequence) = (u16::from_be_bytes([e, f]), u16::from_be_bytes([g, h]));
                self.echo.deliver(identifier, Message::Failed { report, sequence }, &mut self.events)
            }
            IpProtocol::Unknown(_) => false,
        };
        if !delivered {
            self.device.drops.count(PodDrop::ErrorUnmatched);
        }
    }

    /// Does one piece of the work that waits inside the stack; false when there is none. Applications run first, so that
    /// what they write leaves together with the acknowledgement.
    pub(super) fn step(&mut self, now: Instant, out: &mut Outbox<'_>) -> bool {
        if let Some(looped) = self.device.take_loopback() {
            // Until the pod comes to rest, as with a frame from its link.
            out.answers_traced |= looped.traced && out.tracing;
            self.receive_packet(&looped.packet, true, now, out);
            return true;
        }
        if let Some(Undelivered { packet, why }) = self.device.take_undelivered() {
            let failure = match why {
                Undeliverable::Network => Failure::NetworkUnreachable,
                Undeliverable::Host => Failure::HostUnreachable,
            };
            self.fail(&packet, Report { failure, from: self.device.address }, now);
            return true;
        }
        false
    }

    /// Lets one connection send; false when none has something to send.
    pub(super) fn flush_next(&mut self, now: Instant, out: &mut Outbox<'_>) -> bool {
        let Stack { device, tcp, events, .. } = self;
        tcp.flush_next(&mut Io { device, out, now, events })
    }

    /// Handles the timers that are due.
    pub(super) fn poll(&mut self, now: Instant, out: &mut Outbox<'_>) {
        self.device.poll(now, out);
        for _ in 0..self.reassembly.expire(now) {
            self.device.drops.count(PodDrop::ReassemblyTimeout);
        }
        let Stack { device, tcp, events, .. } = self;
        tcp.poll(&mut Io { device, out, now, events });
    }

    /// Returns when [`Stack::poll`] has something to do.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        [self.device.neighbors.next_timer(), self.reassembly.next_timer(), self.tcp.next_timer()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Says whether work waits that needs no timer.
    pub(super) fn has_work(&self) -> bool {
        !self.events.is_empty() || self.device.has_work() || self.tcp.has_work()
    }

    /// Ends everything an owner holds.
    pub(super) fn close_owner(&mut self, owner: Owner, abort: bool, now: Instant) {
        self.tcp.close_owner(owner, abort, now);
        self.udp.close_owner(owner);
        self.echo.close_owner(owner);
        self.events.retain(|(holder, _)| *holder != owner);
    }
}

/// Says whether a packet holds one for the VIP (RFC 2003), as LVS's tunnels bring it. One for the VIP itself holds none:
/// so there is one packet in a packet at most.
fn unwraps(device: &Device, packet: &[u8]) -> bool {
    let outer = Ipv4Packet::new_unchecked(packet);
    let inner = Ipv4Packet::new_checked(outer.payload()).map(|inner| inner.destination());
    outer.destination() == device.address && inner.is_ok_and(|to| device.vip == Some(to))
}
