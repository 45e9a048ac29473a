//! Captured frames as pcapng.
//!
//! [`listen`] opens a point on all workers, [`take`] collects what passed, a [`Recorder`] turns it into bytes, [`ignore`]
//! closes the point. Invariants: frames are in the order of time, then of workers, so that a run in virtual time gives
//! the same bytes again; whoever listens also ends listening.
//!
//! May depend on [`crate::drive`], pcap-file. Read first: draft-ietf-opsawg-pcapng.

use std::borrow::Cow;
use std::time::Duration;

use flatnet_engine::trace::Captured;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness, PcapError};

use crate::drive::{Drive, DriveError};
use crate::point::Resolved;

/// The exponent of nanoseconds, as `if_tsresol` has it.
const NANOSECONDS: u8 = 9;

/// Writes frames of one point as pcapng into memory.
pub struct Recorder {
    writer: PcapNgWriter<Vec<u8>>,
    epoch: Duration,
}

impl Recorder {
    /// Begins a recording; the clock's zero is `epoch` after 1970.
    ///
    /// # Errors
    /// [`PcapError`]; memory takes everything, so there is none in practice.
    pub fn new(at: &Resolved, epoch: Duration) -> Result<Self, PcapError> {
        let application = format!("flatnet {}", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::Little,
            options: vec![SectionHeaderOption::UserApplication(Cow::Owned(application))],
            ..SectionHeaderBlock::default()
        };
        let mut writer = PcapNgWriter::with_section_header(Vec::new(), section)?;
        writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: if at.point.is_raw() { DataLink::IPV4 } else { DataLink::ETHERNET },
            snaplen: 0,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(at.name.clone())),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        })?;
        Ok(Self { writer, epoch })
    }

    /// Adds a frame.
    ///
    /// # Errors
    /// As [`Recorder::new`].
    pub fn add(&mut self, frame: &Captured) -> Result<(), PcapError> {
        self.writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id: 0,
            timestamp: self.epoch + Duration::from_nanos(frame.time.as_nanos()),
            original_len: u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX),
            data: Cow::Borrowed(&frame.bytes),
            options: Vec::new(),
        })?;
        Ok(())
    }

    /// Takes the bytes written since the last call.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.writer.get_mut())
    }
}

/// Opens a point on all workers.
///
/// # Errors
/// [`DriveError::Silent`].
pub fn listen(drive: &mut Drive, capture: u32, at: &Resolved) -> Result<(), DriveError> {
    let (node, point) = (at.node, at.point);
    drive.ask_all(move |worker| worker.listen(capture, node, point)).map(drop)
}

/// Takes the frames that passed since the last call.
///
/// # Errors
/// [`DriveError::Silent`].
pub fn take(drive: &mut Drive, capture: u32) -> Result<Vec<Captured>, DriveError> {
    Ok(in_order(drive.ask_all(move |worker| worker.observer.take(capture))?))
}

/// Closes a point; returns the frames that nobody took.
///
/// # Errors
/// [`DriveError::Silent`].
pub fn ignore(drive: &mut Drive, capture: u32, at: &Resolved) -> Result<Vec<Captured>, DriveError> {
    let point = at.point;
    Ok(in_order(drive.ask_all(move |worker| worker.ignore(capture, point))?))
}

fn in_order(by_worker: Vec<Vec<Captured>>) -> Vec<Captured> {
    let mut frames = by_worker.concat();
    frames.sort_by_key(|frame| frame.time);
    frames
}
