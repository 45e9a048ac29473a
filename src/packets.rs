//! Frames out of the bytes of a pcap or pcapng file, as they come in.
//!
//! `flatnet replay` sends a file as it is; the instance reads it here piece by piece. Invariants: memory is bounded by
//! [`BLOCK_LIMIT`] whatever the file says of itself; what is not a whole Ethernet frame is an error or counted, never
//! guessed; times come out as distances from the first frame's.
//!
//! May depend on pcap-file. Read first: draft-ietf-opsawg-pcapng, draft-ietf-opsawg-pcap.

use std::time::Duration;

use pcap_file::pcap::PcapParser;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgParser};
use pcap_file::{DataLink, PcapError, TsResolution};

/// The largest block of a file, bytes: several of the largest frames.
pub const BLOCK_LIMIT: usize = 1 << 20;
/// Interfaces of a section at most.
const INTERFACE_LIMIT: usize = 1024;
/// The first bytes of a pcapng file, in either byte order.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
/// Exponent of ten of a pcapng timestamp's unit when the interface says nothing.
const MICROSECONDS: u8 = 6;

/// A frame and its distance from the first one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// After the first frame.
    pub offset: Duration,
    /// The whole Ethernet frame.
    pub bytes: Vec<u8>,
}

/// Why a file cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// It is neither.
    #[error("this is neither pcap nor pcapng: {0}")]
    Format(PcapError),
    /// A part of it is damaged.
    #[error("the file is damaged after {at} bytes: {source}")]
    Damaged {
        /// Where the damaged block begins.
        at: u64,
        /// What is wrong.
        source: PcapError,
    },
    /// It ends within a block.
    #[error("the file ends within a block that begins after {0} bytes")]
    Truncated(u64),
    /// A block is absurdly long.
    #[error("the block after {0} bytes is longer than 1 MiB")]
    Huge(u64),
    /// It describes more interfaces than anybody has.
    #[error("the file describes more than {INTERFACE_LIMIT} interfaces")]
    Interfaces,
    /// It holds something else than Ethernet frames.
    #[error("the file holds packets of link type {0:?}, not Ethernet frames")]
    LinkType(DataLink),
    /// A packet belongs to no interface that was described.
    #[error("the packet after {0} bytes belongs to no interface of the file")]
    NoInterface(u64),
    /// A kind of packet that has no usable time.
    #[error(
        "the packet after {0} bytes is in a block without a time; only Enhanced Packet Blocks can be replayed"
    )]
    NoTime(u64),
}

enum Parser {
    Pcap(PcapParser),
    PcapNg(PcapNgParser),
}

/// Reads frames out of bytes that come piece by piece.
#[derive(Default)]
pub struct Packets {
    parser: Option<Parser>,
    buffer: Vec<u8>,
    /// Bytes of the buffer that were read.
    read: usize,
    /// Bytes of the file before the buffer.
    before: u64,
    first: Option<Duration>,
    /// Frames that the file does not hold whole, and that were left out.
    pub cut: u64,
}

impl Packets {
    /// Adds the next bytes of the file.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.before += self.read as u64;
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next frame; `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`PacketError`].
    pub fn take(&mut self) -> Result<Option<Packet>, PacketError> {
        loop {
            let at = self.position();
            match self.step() {
                Ok(Some((time, bytes))) => {
                    let first = *self.first.get_or_insert(time);
                    return Ok(Some(Packet { offset: time.saturating_sub(first), bytes }));
                }
                Ok(None) => {}
                Err(PacketError::Damaged { source: PcapError::IncompleteBuffer, .. }) => {
                    let is_huge = self.buffer.len() - self.read > BLOCK_LIMIT;
                    return if is_huge { Err(PacketError::Huge(at)) } else { Ok(None) };
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Says that no more bytes come.
    ///
    /// # Errors
    /// [`PacketError::Truncated`].
    pub fn end(&self) -> Result<(), PacketError> {
        let whole = self.read == self.buffer.len() && self.parser.is_some();
        if whole { Ok(()) } else { Err(PacketError::Truncated(self.position())) }
    }

    fn position(&self) -> u64 {
        self.before + self.read as u64
    }

    /// Reads one block; a frame comes with its time since 1970.
    fn step(&mut self) -> Result<Option<(Duration, Vec<u8>)>, PacketError> {
        let at = self.position();
        let damaged = |source| PacketError::Damaged { at, source };
        let source = &self.buffer[self.read..];
        let Some(parser) = &mut self.parser else {
            let (rest, parser) = begin(source)?;
            self.read += source.len() - rest;
            self.parser = Some(parser);
            return Ok(None);
        };
        let (rest, found) = match parser {
            Parser::Pcap(parser) => {
                let (rest, packet) = parser.next_raw_packet(source).map_err(damaged)?;
                let nanoseconds = match parser.header().ts_resolution {
                    TsResolution::MicroSecond => u64::from(packet.ts_frac) * 1_000,
                    TsResolution::NanoSecond => u64::from(packet.ts_frac),
                };
                let time = Duration::from_secs(packet.ts_sec.into()) + Duration::from_nanos(nanoseconds);
                (rest.len(), Some((time, packet.orig_len, packet.data.into_owned())))
            }
            Parser::PcapNg(parser) => {
                let (rest, block) = parser.next_block(source).map_err(damaged)?;
                (rest.len(), packet(parser, block, at)?)
            }
        };
        self.read += source.len() - rest;
        let whole = found.filter(|(_, length, bytes)| {
            let is_whole = bytes.len() == *length as usize;
            self.cut += u64::from(!is_whole);
            is_whole
        });
        Ok(whole.map(|(time, _, bytes)| (time, bytes)))
    }
}

/// Reads the beginning of a file; returns how many bytes are left, and how to go on.
fn begin(source: &[u8]) -> Result<(usize, Parser), PacketError> {
    let failed = |error| match error {
        PcapError::IncompleteBuffer => PacketError::Damaged { at: 0, source: error },
        PcapError::IoError(_)
        | PcapError::InvalidField(_)
        | PcapError::Utf8Error(_)
        | PcapError::FromUtf8Error(_)
        | PcapError::InvalidInterfaceId(_) => PacketError::Format(error),
    };
    if source.len() < PCAPNG.len() {
        return Err(failed(PcapError::IncompleteBuffer));
    }
    if source.starts_with(&PCAPNG) {
        let (rest, parser) = PcapNgParser::new(source).map_err(failed)?;
        return Ok((rest.len(), Parser::PcapNg(parser)));
    }
    let (rest, parser) = PcapParser::new(source).map_err(failed)?;
    let datalink = parser.header().datalink;
    if datalink != DataLink::ETHERNET {
        return Err(PacketError::LinkType(datalink));
    }
    Ok((rest.len(), Parser::Pcap(parser)))
}

/// Returns what a block of pcapng holds: time, length on the wire and bytes of a packet, or nothing.
fn packet(
    parser: &PcapNgParser,
    block: Block<'_>,
    at: u64,
) -> Result<Option<(Duration, u32, Vec<u8>)>, PacketError> {
    if parser.interfaces().len() > INTERFACE_LIMIT {
        return Err(PacketError::Interfaces);
    }
    match block {
        Block::EnhancedPacket(packet) => {
            let interface = parser.packet_interface(&packet).ok_or(PacketError::NoInterface(at))?;
            if interface.linktype != DataLink::ETHERNET {
                return Err(PacketError::LinkType(interface.linktype));
            }
            // The library gives the ticks of the interface's own clock as if they were nanoseconds.
            let time = time(interface, packet.timestamp.as_nanos());
            Ok(Some((time, packet.original_len, packet.data.into_owned())))
        }
        Block::SimplePacket(_) | Block::Packet(_) => Err(PacketError::NoTime(at)),
        Block::SectionHeader(_)
        | Block::InterfaceDescription(_)
        | Block::NameResolution(_)
        | Block::InterfaceStatistics(_)
        | Block::SystemdJournalExport(_)
        | Block::Unknown(_) => Ok(None),
    }
}

/// Makes a time of an interface's ticks (`if_tsresol`).
fn time(interface: &InterfaceDescriptionBlock<'_>, ticks: u128) -> Duration {
    let mut resolution = MICROSECONDS;
    for option in &interface.options {
        if let InterfaceDescriptionOption::IfTsResol(given) = option {
            resolution = *given;
        }
    }
    let exponent = u32::from(resolution & 0x7f);
    let base = if resolution & 0x80 == 0 { 10_u128 } else { 2 };
    // Ticks are 64 bits: times 10^9 they fit; a second of more ticks than that is as good as none.
    let per_second = base.checked_pow(exponent).unwrap_or(u128::MAX);
    Duration::from_nanos(u64::try_from(ticks * 1_000_000_000 / per_second).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
    use pcap_file::pcapng::PcapNgWriter;
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
    use pcap_file::{Endianness, TsResolution};
    use proptest::prelude::*;

    const FRAMES: [(u64, &[u8]); 3] =
        [(5_000_000_001_000, &[1; 60]), (5_000_000_251_000, &[2; 61]), (5_001_000_001_000, &[3; 1514])];

    fn pcap(endianness: Endianness, ts_resolution: TsResolution) -> Vec<u8> {
        let header = PcapHeader { endianness, ts_resolution, ..PcapHeader::default() };
        let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
        for (time, bytes) in FRAMES {
            let packet = PcapPacket::new(Duration::from_nanos(time), bytes.len() as u32, bytes);
            writer.write_packet(&packet).unwrap();
        }
        writer.into_writer()
    }

    /// The frames' times are multiples of a microsecond; `per` nanoseconds are a tick.
    fn pcapng(resolution: Option<u8>, per: f64, linktype: DataLink) -> Vec<u8> {
        let mut writer = PcapNgWriter::new(Vec::new()).unwrap();
        let options = resolution.map(InterfaceDescriptionOption::IfTsResol).into_iter().collect();
        writer.write_pcapng_block(InterfaceDescriptionBlock { linktype, snaplen: 0, options }).unwrap();
        for (time, bytes) in FRAMES {
            let block = EnhancedPacketBlock {
                interface_id: 0,
                timestamp: Duration::from_nanos((time as f64 / per) as u64),
                original_len: bytes.len() as u32,
                data: bytes.into(),
                options: Vec::new(),
            };
            writer.write_pcapng_block(block).unwrap();
        }
        writer.into_inner()
    }

    fn read(bytes: &[u8], piece: usize) -> Result<Vec<Packet>, PacketError> {
        let (mut packets, mut found) = (Packets::default(), Vec::new());
        for piece in bytes.chunks(piece) {
            packets.push(piece);
            assert!(packets.buffer.len() <= BLOCK_LIMIT + 2 * piece.len());
            while let Some(packet) = packets.take()? {
                found.push(packet);
            }
        }
        packets.end()?;
        Ok(found)
    }

    #[test]
    fn all_kinds_of_files_give_the_same_frames_at_the_same_distances() {
        let expected: Vec<Packet> = FRAMES
            .iter()
            .map(|(time, bytes)| Packet {
                offset: Duration::from_nanos(time - FRAMES[0].0),
                bytes: bytes.to_vec(),
            })
            .collect();
        let mut files = vec![pcapng(None, 1_000.0, DataLink::ETHERNET)];
        files.push(pcapng(Some(9), 1.0, DataLink::ETHERNET));
        files.push(pcapng(Some(6), 1_000.0, DataLink::ETHERNET));
        for endianness in [Endianness::Big, Endianness::Little] {
            files.push(pcap(endianness, TsResolution::MicroSecond));
            files.push(pcap(endianness, TsResolution::NanoSecond));
        }
        for (number, file) in files.iter().enumerate() {
            for piece in [1, 7, 64, 1 << 16] {
                assert_eq!(read(file, piece).unwrap(), expected, "file {number} by {piece}");
            }
        }
        // Ticks of 2^-20 s round the times down to within one.
        let binary = read(&pcapng(Some(0x80 | 20), 1e9 / 1_048_576.0, DataLink::ETHERNET), 64).unwrap();
        for (found, expected) in binary.iter().zip(&expected) {
            assert!(found.offset.abs_diff(expected.offset) < Duration::from_nanos(1_000), "{found:?}");
        }
    }

    #[test]
    fn hostile_files_are_named_errors() {
        let good = pcapng(Some(9), 1.0, DataLink::ETHERNET);
        let error = |bytes: &[u8]| read(bytes, 64).unwrap_err().to_string();
        assert_eq!(
            error(&good[..good.len() - 5]),
            "the file ends within a block that begins after 248 bytes"
        );
        assert_eq!(error(b""), "the file ends within a block that begins after 0 bytes");
        assert_eq!(error(b"\x0a\x0d"), "the file ends within a block that begins after 0 bytes");
        assert!(
            error(b"#!/bin/sh\necho these are no packets, they are a shell script\n")
                .starts_with("this is neither")
        );
        assert!(error(&pcapng(Some(9), 1.0, DataLink::IPV4)).contains("link type IPV4, not Ethernet"));
        let mut huge = good.clone();
        // The length of the interface's block: four gigabytes.
        huge[32..36].copy_from_slice(&0xffff_fff0_u32.to_le_bytes());
        assert_eq!(
            error(&[huge, vec![0; 2 * BLOCK_LIMIT]].concat()),
            "the block after 28 bytes is longer than 1 MiB"
        );
    }

    #[test]
    fn a_frame_that_is_not_whole_is_left_out_and_counted() {
        let mut file = pcap(Endianness::Little, TsResolution::NanoSecond);
        file[24 + 12..24 + 16].copy_from_slice(&1514_u32.to_le_bytes());
        let mut packets = Packets::default();
        packets.push(&file);
        let found: Vec<_> = std::iter::from_fn(|| packets.take().unwrap()).collect();
        assert_eq!((found.len(), packets.cut), (2, 1));
    }

    proptest! {
        /// Whatever a file says, reading ends without a panic and without more memory than the bound.
        #[test]
        fn damage_is_never_a_panic(
            ng: bool,
            hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
            keep in any::<prop::sample::Index>(),
        ) {
            let mut file = if ng { pcapng(Some(9), 1.0, DataLink::ETHERNET) } else { pcap(Endianness::Little, TsResolution::NanoSecond) };
            for (at, byte) in hits {
                let at = at.index(file.len());
                file[at] = byte;
            }
            file.truncate(keep.index(file.len() + 1));
            let _ = read(&file, 64);
        }

        #[test]
        fn noise_is_never_a_panic(ng: bool, noise in prop::collection::vec(any::<u8>(), 0..600)) {
            let start: &[u8] = if ng { &PCAPNG } else { &[0x4d, 0x3c, 0xb2, 0xa1] };
            let _ = read(&[start, &noise].concat(), 64);
        }
    }
}
