//! The pod's interfaces: eth0 with Ethernet, ARP and routes, and `lo`, which never leaves the pod.
//!
//! The stack hands it IPv4 packets to write; it finds the way: `lo` for 127/8 and the own address, a neighbour, or
//! the gateway. Frames leave through the worker's [`Outbox`]; what loops waits in [`Device::take_loopback`].
//!
//! Invariants: every packet leaves by exactly one way or is a counted drop; a packet that cannot be delivered comes back as
//! an [`Undelivered`] for the socket that sent it. Time is a parameter.
//! Depends on `clock`, `link::pod_ring`, `wire`. Read first: RFC 1122 section 3.3.1, RFC 1191, RFC 826.

use super::config::PodConfig;
use super::drops::{PodDrop, PodDrops};
use super::neighbor::{Expiry, Lookup, Neighbors, Waiting};
use crate::clock::Instant;
use crate::link::pod_ring::{Outbox, Trace};
use crate::path_mtu::PathMtu;
use crate::random::Random;
use crate::wire::{ArpOperation, ArpPacket, EtherType, EthernetFrame, MacAddress, arp, ethernet};
use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;

/// Packets that may wait on `lo`.
const LO_LIMIT: usize = 4096;
/// The MTU of `lo`: the longest IPv4 packet.
const LO_MTU: usize = 65_535;

/// A packet on its way through `lo`.
#[derive(Debug)]
pub(super) struct Looped {
    /// The whole IPv4 packet.
    pub(super) packet: Vec<u8>,
    /// Whether somebody follows it.
    pub(super) traced: bool,
}

/// Why the device could not deliver a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undeliverable {
    /// No route.
    Network,
    /// No answer to ARP.
    Host,
}

/// A packet that came back.
#[derive(Debug)]
pub(super) struct Undelivered {
    /// The whole IPv4 packet.
    pub(super) packet: Vec<u8>,
    /// Why.
    pub(super) why: Undeliverable,
}

/// The way to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Loopback,
    Group(MacAddress),
    Via(Ipv4Addr),
    None,
}

/// The pod's two interfaces.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) mac: MacAddress,
    pub(super) address: Ipv4Addr,
    pub(super) vip: Option<Ipv4Addr>,
    pub(super) prefix_length: u8,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) mtu: usize,
    /// Neighbours whose links take less.
    link_mtus: BTreeMap<Ipv4Addr, u16>,
    pub(super) neighbors: Neighbors,
    pub(super) path_mtu: PathMtu<Ipv4Addr>,
    pub(super) drops: PodDrops,
    pub(super) random: Random,
    /// Looped packets as frames for a capture; filled only while somebody listens.
    pub(super) lo_capture: Option<Vec<Vec<u8>>>,
    /// Traced packets that looped.
    pub(super) lo_hops: Vec<Vec<u8>>,
    loopback: VecDeque<Looped>,
    undelivered: VecDeque<Undelivered>,
}

impl Device {
    /// Makes the interfaces of a pod.
    pub(super) fn new(config: &PodConfig) -> Self {
        Device {
            mac: config.mac,
            address: config.address,
            vip: config.vip,
            prefix_length: config.prefix_length.min(32),
            gateway: config.gateway,
            mtu: usize::from(config.mtu),
            link_mtus: BTreeMap::new(),
            neighbors: Neighbors::default(),
            path_mtu: PathMtu::default(),
            drops: PodDrops::default(),
            random: Random::new(config.seed),
            lo_capture: None,
            lo_hops: Vec::new(),
            loopback: VecDeque::new(),
            undelivered: VecDeque::new(),
        }
    }

    /// Says whether packets for an address are for this pod.
    pub(super) fn is_local(&self, address: Ipv4Addr) -> bool {
        address == self.address || address.is_loopback() || self.vip == Some(address)
    }

    /// Says whether an address names everybody on the link.
    pub(super) fn is_broadcast(&self, address: Ipv4Addr) -> bool {
        let host_bits = !self.mask();
        address.is_broadcast()
            || (self.prefix_length < 31 && address.to_bits() == self.address.to_bits() | host_bits)
    }

    /// Returns the address that a packet to `destination` comes from.
    pub(super) fn source_for(&self, destination: Ipv4Addr) -> Ipv4Addr {
        if destination.is_loopback() { Ipv4Addr::LOCALHOST } else { self.address }
    }

    /// Returns the longest IPv4 packet that goes whole to a destination.
    pub(super) fn mtu_to(&self, destination: Ipv4Addr, now: Instant) -> usize {
        if self.is_local(destination) {
            return LO_MTU;
        }
        let link = match self.route(destination) {
            Route::Via(hop) => {
                self.link_mtus.get(&hop).map_or(self.mtu, |&mtu| self.mtu.min(usize::from(mtu)))
            }
            Route::Loopback | Route::Group(_) | Route::None => self.mtu,
        };
        self.path_mtu.get(destination, now).map_or(link, |mtu| mtu.min(link))
    }

    /// Sets what the link to one neighbour takes, if less than the interface.
    pub(super) fn set_link_mtu(&mut self, neighbor: Ipv4Addr, mtu: Option<u16>) {
        match mtu {
            Some(mtu) => self.link_mtus.insert(neighbor, mtu),
            None => self.link_mtus.remove(&neighbor),
        };
    }

    /// Says whether what goes to a destination may have to be cut on its way, though its sender would rather not (Linux,
    /// `ip_dont_fragment`).
    pub(super) fn must_allow_cutting(&self, destination: Ipv4Addr, now: Instant) -> bool {
        self.path_mtu.is_locked(destination, now)
    }

    /// Takes the next packet that looped.
    pub(super) fn take_loopback(&mut self) -> Option<Looped> {
        self.loopback.pop_front()
    }

    /// Takes the next packet that could not be delivered.
    pub(super) fn take_undelivered(&mut self) -> Option<Undelivered> {
        self.undelivered.pop_front()
    }

    /// Says whether looped or undelivered packets wait to be handled.
    pub(super) fn has_work(&self) -> bool {
        !self.loopback.is_empty() || !self.undelivered.is_empty()
    }

    /// Sends an IPv4 packet of `length` bytes that `write` fills in completely.
    pub(super) fn transmit<R>(
        &mut self,
        destination: Ipv4Addr,
        length: usize,
        traced: bool,
        now: Instant,
        out: &mut Outbox<'_>,
        write: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let mac = match self.route(destination) {
            Route::Group(mac) => mac,
            Route::Via(hop) => match self.neighbors.lookup(hop, now) {
                Lookup::Known { mac, ask } => {
                    if ask {
                        self.send_arp(ArpOperation::Request, mac, hop, 0, out);
                    }
                    mac
                }
                Lookup::Full => {
                    self.drops.count(PodDrop::NeighborQueueFull);
                    return write_vec(length, write).1;
                }
                Lookup::Unknown { ask } => {
                    let (packet, result) = write_vec(length, write);
                    let mark = out.mark(traced);
                    if self.neighbors.wait(hop, Waiting { packet, mark }).is_some() {
                        self.drops.count(PodDrop::NeighborQueueFull);
                    }
                    if ask {
                        self.send_arp(ArpOperation::Request, MacAddress::BROADCAST, hop, mark, out);
                    }
                    return result;
                }
            },
            Route::Loopback => {
                let (packet, result) = write_vec(length, write);
                self.push_loopback(packet, traced || out.answers_traced);
                return result;
            }
            Route::None => {
                let (packet, result) = write_vec(length, write);
                self.drops.count(PodDrop::NoRoute);
                self.undelivered.push_back(Undelivered { packet, why: Undeliverable::Network });
                return result;
            }
        };
        let mark = out.mark(traced);
        self.emit(mac, EtherType::Ipv4, length, mark, out, write)
    }

    /// Handles a received ARP packet.
    pub(super) fn receive_arp(&mut self, bytes: &[u8], now: Instant, out: &mut Outbox<'_>) {
        let Ok(packet) = ArpPacket::new_checked(bytes) else {
            self.drops.count(PodDrop::Malformed);
            return;
        };
        let (sender, mac) = (packet.sender_address(), packet.sender_mac());
        let for_us = packet.target_address() == self.address;
        if sender == self.address {
            self.drops.count(PodDrop::Martian);
            return;
        }
        if !sender.is_unspecified() && mac.is_unicast() {
            for waiting in self.neighbors.learn(sender, mac, for_us, now) {
                let Waiting { packet, mark } = waiting;
                self.emit(mac, EtherType::Ipv4, packet.len(), mark, out, |bytes| {
                    bytes.copy_from_slice(&packet)
                });
            }
        }
        if for_us && packet.operation() == ArpOperation::Request {
            self.send_arp(ArpOperation::Reply, mac, sender, 0, out);
        }
    }

    /// Handles the neighbours' timers that are due.
    pub(super) fn poll(&mut self, now: Instant, out: &mut Outbox<'_>) {
        while let Some(expiry) = self.neighbors.expire(now) {
            match expiry {
                Expiry::Ask(address, mark) => {
                    self.send_arp(ArpOperation::Request, MacAddress::BROADCAST, address, mark, out)
                }
                Expiry::Failed(packets) => {
                    for Waiting { packet, .. } in packets {
                        self.drops.count(PodDrop::NeighborUnresolved);
                        self.undelivered.push_back(Undelivered { packet, why: Undeliverable::Host });
                    }
                }
            }
        }
    }

    fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix_length)).unwrap_or(0)
    }

    fn route(&self, destination: Ipv4Addr) -> Route {
        if self.is_local(destination) {
            return Route::Loopback;
        }
        if self.is_broadcast(destination) {
            return Route::Group(MacAddress::BROADCAST);
        }
        if destination.is_multicast() {
            let [_, b, c, d] = destination.octets();
            return Route::Group(MacAddress::new([0x01, 0x00, 0x5e, b & 0x7f, c, d]));
        }
        if (destination.to_bits() ^ self.address.to_bits()) & self.mask() == 0 {
            return Route::Via(destination);
        }
        self.gateway.map_or(Route::None, Route::Via)
    }

    fn push_loopback(&mut self, packet: Vec<u8>, traced: bool) {
        if self.loopback.len() >= LO_LIMIT {
            self.drops.count(PodDrop::LoFull);
            return;
        }
        if traced {
            self.lo_hops.push(packet.clone());
        }
        if let Some(capture) = &mut self.lo_capture {
            let mut frame = vec![0; ethernet::HEADER_LENGTH];
            EthernetFrame::new_unchecked(&mut frame[..]).set_ethertype(EtherType::Ipv4);
            frame.extend_from_slice(&packet);
            capture.push(frame);
        }
        self.loopback.push_back(Looped { packet, traced });
    }

    /// Sends an ARP packet; `mark` is that of the waiting packet for which it asks.
    fn send_arp(
        &mut self,
        operation: ArpOperation,
        mac: MacAddress,
        target: Ipv4Addr,
        mark: u32,
        out: &mut Outbox<'_>,
    ) {
        let (own_mac, own_address) = (self.mac, self.address);
        let target_mac = if operation == ArpOperation::Request { MacAddress::default() } else { mac };
        self.emit(mac, EtherType::Arp, arp::LENGTH, mark, out, |bytes| {
            let mut packet = ArpPacket::new_unchecked(bytes);
            packet.fill_types();
            packet.set_operation(operation);
            packet.set_sender(own_mac, own_address);
            packet.set_target(target_mac, target);
        });
    }

    /// Puts one frame on the link; when it takes none, the packet is written into the void, so that the writer goes on.
    fn emit<R>(
        &mut self,
        destination: MacAddress,
        ethertype: EtherType,
        length: usize,
        mark: u32,
        out: &mut Outbox<'_>,
        write: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let source = self.mac;
        let mut write = Some(write);
        let mut result = None;
        let trace = Trace { mark, asks: ethertype == EtherType::Arp };
        let sent = out.emit(ethernet::HEADER_LENGTH + length, trace, |bytes| {
            let mut frame = EthernetFrame::new_unchecked(bytes);
            frame.set_destination(destination);
            frame.set_source(source);
            frame.set_ethertype(ethertype);
            if let Some(write) = write.take() {
                result = Some(write(frame.payload_mut()));
            }
        });
        if !sent {
            self.drops.count(PodDrop::LinkFull);
        }
        match (result, write) {
            (Some(result), _) => result,
            (None, Some(write)) => write_vec(length, write).1,
            (None, None) => unreachable!("the writer ran and left its result"),
        }
    }
}

fn write_vec<R>(length: usize, write: impl FnOnce(&mut [u8]) -> R) -> (Vec<u8>, R) {
    let mut packet = vec![0; length];
    let result = write(&mut packet);
    (packet, result)
}
