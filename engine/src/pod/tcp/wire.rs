//! smoltcp's view of the pod's device: one segment in, any number out.
//!
//! Made for each call into a connection's stack. Invariant: a segment goes in at most once; segments out are
//! finished (identification, checksums) here and nowhere else. Allowed dependencies: smoltcp, `device`, `ip`.
//! Read first: smoltcp's `phy` module.

use super::super::device::Device;
use super::super::ip;
use crate::clock::Instant;
use crate::link::pod_ring::{Outbox, QUEUE_LIMIT};
use crate::wire::{Ipv4Packet, TcpSegment};
use smoltcp::phy::{self, Checksum, ChecksumCapabilities, DeviceCapabilities, Medium};
use std::net::Ipv4Addr;

/// Frames on the link beyond which streams wait; the rest is for answers, which cannot.
const LINK_ROOM: usize = QUEUE_LIMIT / 8 * 7;

/// The sequence numbers of the last segment sent, to go on from when the connection is only a memory.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct LastSent {
    /// The sequence number behind it.
    pub(in super::super) next: u32,
    /// What it acknowledged.
    pub(in super::super) acknowledged: u32,
}

/// Where segments go.
#[derive(Debug)]
enum Sink<'a, 'o> {
    Link { device: &'a mut Device, out: &'a mut Outbox<'o>, now: Instant },
    Memory(&'a mut Vec<u8>),
}

/// The device of one call.
#[derive(Debug)]
pub(super) struct Wire<'a, 'o> {
    incoming: Option<&'a [u8]>,
    sink: Sink<'a, 'o>,
    destination: Ipv4Addr,
    mtu: usize,
    traced: bool,
    last: LastSent,
    fin_end: Option<u32>,
    sent: usize,
}

impl<'a, 'o> Wire<'a, 'o> {
    /// Makes a device whose segments leave by the pod's own.
    pub(super) fn to_link(
        device: &'a mut Device,
        out: &'a mut Outbox<'o>,
        now: Instant,
        destination: Ipv4Addr,
        mtu: usize,
        traced: bool,
    ) -> Self {
        let sink = Sink::Link { device, out, now };
        Wire {
            incoming: None,
            sink,
            destination,
            mtu,
            traced,
            last: LastSent::default(),
            fin_end: None,
            sent: 0,
        }
    }

    /// Makes a device whose last segment stays in `memory`.
    pub(super) fn to_memory(memory: &'a mut Vec<u8>, mtu: usize) -> Self {
        Wire {
            incoming: None,
            sink: Sink::Memory(memory),
            destination: Ipv4Addr::UNSPECIFIED,
            mtu,
            traced: false,
            last: LastSent::default(),
            fin_end: None,
            sent: 0,
        }
    }

    /// Lets the stack receive one packet.
    pub(super) fn with_incoming(mut self, packet: &'a [u8]) -> Self {
        self.incoming = Some(packet);
        self
    }

    /// Says whether its link takes another segment. smoltcp forgets one that it was about to send again where the device has no
    /// room, so that it must not be asked then.
    pub(super) fn has_room(&self) -> bool {
        match &self.sink {
            Sink::Link { device, out, .. } => {
                device.is_local(self.destination) || out.queue.len() < LINK_ROOM
            }
            Sink::Memory(_) => true,
        }
    }

    /// Returns the last segment's numbers, if any was sent.
    pub(super) fn last_sent(&self) -> Option<LastSent> {
        (self.sent > 0).then_some(self.last)
    }

    /// Returns the sequence number behind a FIN, if one was sent.
    pub(super) fn fin_end(&self) -> Option<u32> {
        self.fin_end
    }
}

/// Returns what smoltcp must know of a device with this MTU.
fn capabilities(mtu: usize) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = mtu;
    let mut checksum = ChecksumCapabilities::default();
    checksum.ipv4 = Checksum::None;
    checksum.tcp = Checksum::None;
    capabilities.checksum = checksum;
    capabilities
}

impl<'a, 'o> phy::Device for Wire<'a, 'o> {
    type RxToken<'t>
        = Receive<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Transmit<'t, 'a, 'o>
    where
        Self: 't;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Receive<'_>, Transmit<'_, 'a, 'o>)> {
        let packet = self.incoming.take()?;
        Some((Receive(packet), Transmit(self)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Transmit<'_, 'a, 'o>> {
        Some(Transmit(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

/// The right to read the one packet.
#[derive(Debug)]
pub(super) struct Receive<'t>(&'t [u8]);

impl phy::RxToken for Receive<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

/// The right to send one packet.
#[derive(Debug)]
pub(super) struct Transmit<'t, 'a, 'o>(&'t mut Wire<'a, 'o>);

impl phy::TxToken for Transmit<'_, '_, '_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let Wire { sink, destination, traced, last, fin_end, sent, .. } = self.0;
        *sent += 1;
        match sink {
            Sink::Link { device, out, now } => {
                let identification = device.random.next_u16();
                let dont_fragment = !device.must_allow_cutting(*destination, *now);
                device.transmit(*destination, length, *traced, *now, out, |bytes| {
                    let result = write(bytes);
                    ip::finish_tcp(bytes, identification, dont_fragment);
                    note(bytes, last, fin_end);
                    result
                })
            }
            Sink::Memory(memory) => {
                memory.clear();
                memory.resize(length, 0);
                let result = write(memory);
                ip::finish_tcp(memory, 0, true);
                note(memory, last, fin_end);
                result
            }
        }
    }
}

fn note(bytes: &[u8], last: &mut LastSent, fin_end: &mut Option<u32>) {
    let packet = Ipv4Packet::new_unchecked(bytes);
    let segment = TcpSegment::new_unchecked(packet.payload());
    let flags = segment.flags();
    let control = u32::from(flags.syn()) + u32::from(flags.fin());
    last.next = segment.sequence().wrapping_add(control).wrapping_add(segment.payload().len() as u32);
    last.acknowledged = segment.acknowledgement();
    if flags.fin() {
        *fin_end = Some(last.next);
    }
}

/// Reads a segment, and says whether it does no more than acknowledge.
pub(super) fn read(packet: &[u8]) -> (TcpSegment<&[u8]>, bool) {
    let header = Ipv4Packet::new_unchecked(packet).header_length();
    let length = usize::from(Ipv4Packet::new_unchecked(packet).total_length());
    let segment = TcpSegment::new_unchecked(&packet[header..length]);
    let flags = segment.flags();
    let is_bare = segment.payload().is_empty() && !flags.syn() && !flags.fin() && !flags.rst();
    (segment, is_bare)
}

/// Makes the bare acknowledgement that a segment's sender would send right behind it.
pub(super) fn bare(packet: &[u8]) -> Vec<u8> {
    let header = Ipv4Packet::new_unchecked(packet).header_length();
    let (segment, _) = read(packet);
    let (next, length) =
        (segment.sequence().wrapping_add(segment.payload().len() as u32), header + segment.header_length());
    let mut made = packet[..length].to_vec();
    Ipv4Packet::new_unchecked(&mut made[..]).set_total_length(length as u16);
    TcpSegment::new_unchecked(&mut made[header..]).set_sequence(next);
    made
}
