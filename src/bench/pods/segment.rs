//! TCP segments that a generator writes into buffers and reads from them.
//!
//! Invariant: a segment is whole, with right checksums, as a pod would send it. May depend on the engine's header views.
//! Read first: RFC 9293 section 3.1.

use std::net::SocketAddrV4;

use flatnet_engine::control::Control;
use flatnet_engine::frame::{ChecksumState, Frame};
use flatnet_engine::link::RingsPeer;
use flatnet_engine::wire::{
    EtherType, EthernetFrame, IpProtocol, Ipv4Packet, MacAddress, TcpFlags, TcpSegment, ethernet, ipv4, tcp,
};

use crate::bench::BenchError;

/// A segment to be sent, or one that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Who sends it.
    pub from: SocketAddrV4,
    /// Who gets it.
    pub to: SocketAddrV4,
    /// Its sequence number.
    pub sequence: u32,
    /// What it acknowledges.
    pub acknowledgement: u32,
    /// Its flags.
    pub flags: TcpFlags,
    /// Its data.
    pub payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads a frame; none where it holds no segment.
    #[must_use]
    pub fn read(frame: &'a [u8]) -> Option<Self> {
        if EthernetFrame::new_unchecked(frame).ethertype() != EtherType::Ipv4 {
            return None;
        }
        let bytes = frame.get(ethernet::HEADER_LENGTH..)?;
        let packet = Ipv4Packet::new_checked(bytes).ok()?;
        if packet.protocol() != IpProtocol::Tcp {
            return None;
        }
        let segment = bytes.get(packet.header_length()..usize::from(packet.total_length()))?;
        let header = TcpSegment::new_checked(segment).ok()?;
        Some(Self {
            from: SocketAddrV4::new(packet.source(), header.source_port()),
            to: SocketAddrV4::new(packet.destination(), header.destination_port()),
            sequence: header.sequence(),
            acknowledgement: header.acknowledgement(),
            flags: header.flags(),
            payload: segment.get(header.header_length()..)?,
        })
    }

    /// Sends it into a ring in a buffer of the generator's, to the machine on docker0 that has this MAC.
    ///
    /// # Errors
    /// [`BenchError::NoBuffer`].
    pub fn send(
        &self,
        mac: MacAddress,
        control: &mut Control,
        ring: &mut RingsPeer,
    ) -> Result<(), BenchError> {
        let frame = control.pool.allocate(0).ok_or(BenchError::NoBuffer)?;
        self.send_in(frame, mac, control, ring)
    }

    /// Sends it in a buffer that came with another one: the pods' buffers go back to where they are from.
    ///
    /// # Errors
    /// [`BenchError::NoBuffer`].
    pub fn send_in(
        &self,
        mut frame: Frame,
        mac: MacAddress,
        control: &mut Control,
        ring: &mut RingsPeer,
    ) -> Result<(), BenchError> {
        let mut open = control.arena().open(&mut frame);
        open.reset(ethernet::HEADER_LENGTH + ipv4::HEADER_LENGTH + tcp::HEADER_LENGTH + self.payload.len());
        self.write(mac, open.bytes_mut());
        open.record.checksum = ChecksumState::Verified;
        ring.to_node.push(frame).map_err(|frame| {
            control.pool.free(frame);
            BenchError::NoBuffer
        })
    }

    fn write(&self, mac: MacAddress, bytes: &mut [u8]) {
        let mut frame = EthernetFrame::new_unchecked(bytes);
        frame.set_destination(mac);
        frame.set_source(MacAddress::for_ipv4(*self.from.ip()));
        frame.set_ethertype(EtherType::Ipv4);
        let room = frame.payload_mut();
        let length = u16::try_from(room.len()).unwrap_or(u16::MAX);
        let mut packet = Ipv4Packet::new_unchecked(room);
        packet.set_header_length(ipv4::HEADER_LENGTH);
        packet.set_service(0);
        packet.set_total_length(length);
        packet.set_identification(0);
        packet.set_fragmentation(true, false, 0);
        packet.set_time_to_live(64);
        packet.set_protocol(IpProtocol::Tcp);
        packet.set_source(*self.from.ip());
        packet.set_destination(*self.to.ip());
        packet.fill_header_checksum();
        let room = packet.payload_mut();
        room[tcp::HEADER_LENGTH..].copy_from_slice(self.payload);
        let mut segment = TcpSegment::new_unchecked(room);
        segment.set_source_port(self.from.port());
        segment.set_destination_port(self.to.port());
        segment.set_sequence(self.sequence);
        segment.set_acknowledgement(self.acknowledgement);
        segment.set_header_length(tcp::HEADER_LENGTH);
        segment.set_flags(self.flags);
        segment.set_window(u16::MAX);
        segment.set_urgent(0);
        segment.fill_checksum(*self.from.ip(), *self.to.ip());
    }
}
