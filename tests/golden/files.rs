//! Recordings of a row as pcapng: an interface per machine, by whose name a frame is found again.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "pcapng has many blocks and options, a recording two of each"
)]

use std::borrow::Cow;
use std::path::Path;

use pcap_file::DataLink;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgReader, PcapNgWriter};

use crate::frames::Recorded;

/// Writes frames into memory, the interfaces in the order of their first frames.
pub fn written(frames: &[Recorded]) -> Vec<u8> {
    let mut writer = PcapNgWriter::new(Vec::new()).unwrap();
    let mut machines: Vec<&str> = Vec::new();
    for frame in frames {
        if !machines.contains(&&*frame.machine) {
            machines.push(&frame.machine);
            let options = vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(&frame.machine)),
                InterfaceDescriptionOption::IfTsResol(9),
            ];
            let linktype = DataLink::ETHERNET;
            writer.write_pcapng_block(InterfaceDescriptionBlock { linktype, snaplen: 0, options }).unwrap();
        }
        let interface = machines.iter().position(|machine| *machine == frame.machine).unwrap();
        let block = EnhancedPacketBlock {
            interface_id: interface as u32,
            timestamp: frame.time,
            original_len: frame.bytes.len() as u32,
            data: Cow::Borrowed(&frame.bytes),
            options: Vec::new(),
        };
        writer.write_pcapng_block(block).unwrap();
    }
    writer.into_inner()
}

/// Reads what [`written`] wrote.
pub fn read(path: &Path) -> Vec<Recorded> {
    let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut reader = PcapNgReader::new(file).unwrap();
    let (mut machines, mut frames) = (Vec::new(), Vec::new());
    while let Some(block) = reader.next_block() {
        match block.unwrap() {
            Block::InterfaceDescription(interface) => {
                let name = interface.options.iter().find_map(|option| match option {
                    InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                    _ => None,
                });
                machines.push(name.unwrap());
            }
            Block::EnhancedPacket(packet) => frames.push(Recorded {
                time: packet.timestamp,
                machine: machines[packet.interface_id as usize].clone(),
                bytes: packet.data.into_owned(),
            }),
            _ => {}
        }
    }
    frames
}
