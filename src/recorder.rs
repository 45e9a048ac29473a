//! Captured frames as pcapng.
//!
//! [`listen`] opens a point on all workers, [`take`] collects what passed, a [`Recorder`] turns it into bytes, [`ignore`]
//! closes the point. Invariants: frames are in the order of time, then of workers, so that a run in virtual time gives
//! the same bytes again; whoever listens also ends listening.
//!
//! May depend on [`crate::drive`], pcap-file. Read first: draft-ietf-opsawg-pcapng.

use std::borrow::Cow;
use std::time::Duration;

use flatnet_engine::trace::{Captured, Taken};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
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
    /// Frames lost since the last one written.
    lost: u64,
    /// Frames lost since the beginning.
    pub all_lost: u64,
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
        Ok(Self { writer, epoch, lost: 0, all_lost: 0 })
    }

    /// Notes that frames were lost; the next one says so (`epb_dropcount`).
    pub fn lose(&mut self, frames: u64) {
        self.lost += frames;
        self.all_lost += frames;
    }

    /// Adds a frame.
    ///
    /// # Errors
    /// As [`Recorder::new`].
    pub fn add(&mut self, frame: &Captured) -> Result<(), PcapError> {
        let lost = std::mem::take(&mut self.lost);
        let options = if lost > 0 { vec![EnhancedPacketOption::DropCount(lost)] } else { Vec::new() };
        self.writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id: 0,
            timestamp: self.epoch + Duration::from_nanos(frame.time.as_nanos()),
            original_len: u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX),
            data: Cow::Borrowed(&frame.bytes),
            options,
        })?;
        Ok(())
    }

    /// Takes the bytes written since the last call.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.writer.get_mut())
    }
}

/// Says how many frames a capture lost and what to do; nothing when it has them all.
pub fn warn_of_loss(point: &str, lost: u64) {
    if lost > 0 {
        eprintln!(
            "warning: {lost} frames at {point} are not in the capture: they came faster than it was written; \
             capture where fewer pass, end it after some by -c, or write to a faster place"
        );
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

/// Takes what passed since the last call.
///
/// # Errors
/// [`DriveError::Silent`].
pub fn take(drive: &mut Drive, capture: u32) -> Result<Taken, DriveError> {
    let by_worker = drive.ask_all(move |worker| worker.observer.take(capture))?;
    let lost = by_worker.iter().map(|taken| taken.lost).sum();
    let mut frames: Vec<Captured> = by_worker.into_iter().flat_map(|taken| taken.frames).collect();
    frames.sort_by_key(|frame| frame.time);
    Ok(Taken { frames, lost })
}

/// Closes a point.
///
/// # Errors
/// [`DriveError::Silent`].
pub fn ignore(drive: &mut Drive, capture: u32, at: &Resolved) -> Result<(), DriveError> {
    let (node, point) = (at.node, at.point);
    drive.ask_all(move |worker| worker.ignore(capture, node, point)).map(drop)
}
