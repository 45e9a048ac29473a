//! Superframes as links that offload bring them, and their segments.

use flatnet_engine::frame::{ChecksumState, Segmentation};
use flatnet_engine::segment::Layout;
use flatnet_engine::wire::Ipv4Packet;

use super::*;

/// A frame as a link that offloads brings it: with nonsense for a checksum.
pub fn unfinished(
    lab: &Lab,
    (from, to): (Ipv4Addr, Ipv4Addr),
    port: u16,
    is_tcp: bool,
    length: usize,
) -> Vec<u8> {
    let payload: Vec<u8> = (0..length).map(|at| (at * 7 + at / 251) as u8).collect();
    let mut bytes = if is_tcp {
        let mut bytes = lab.tcp(from, to, (40_000, port), TcpFlags::ACK.with(TcpFlags::PSH));
        bytes.extend(&payload);
        let total = bytes.len() - 14;
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[14..]);
        packet.set_total_length(total as u16);
        packet.fill_header_checksum();
        bytes
    } else {
        lab.udp(from, to, (40_000, port), &payload)
    };
    let place = Layout::of(&bytes).unwrap().checksum();
    bytes[place].copy_from_slice(&[0xba, 0xad]);
    bytes
}

pub fn unfinished_record(record: &mut Record, is_tcp: bool, size: u16) {
    record.checksum = ChecksumState::Partial;
    record.segmentation = if is_tcp { Segmentation::Tcp } else { Segmentation::Udp };
    record.segment_size = size;
}

/// The same as its sender would have cut it.
pub fn segments(whole: &[u8], size: u16) -> Vec<Vec<u8>> {
    let layout = Layout::of(whole).unwrap();
    let starts = (layout.payload..layout.end).step_by(usize::from(size));
    starts
        .enumerate()
        .map(|(number, start)| {
            let range = start..(start + usize::from(size)).min(layout.end);
            let mut segment = vec![0; layout.payload + range.len()];
            layout.write_segment(&mut segment, whole, &range, number as u16);
            segment
        })
        .collect()
}

/// What is at a pod, superframes cut as its system would; and how many there were.
pub fn arrived(lab: &mut Lab, at: Ipv4Addr) -> (Vec<Vec<u8>>, usize) {
    let (mut all, mut superframes) = (Vec::new(), 0);
    let mut frames = Vec::new();
    lab.machines.get_mut(&at).unwrap().peer.from_node.pop(usize::MAX, |frame| frames.push(frame));
    for frame in frames {
        let record = *lab.control.arena().record(&frame);
        let mut bytes = lab.control.arena().bytes(&frame).to_vec();
        lab.control.pool.free(frame);
        if record.segmentation != Segmentation::None {
            superframes += 1;
            all.extend(segments(&bytes, record.segment_size));
            continue;
        }
        if record.checksum == ChecksumState::Partial {
            Layout::of(&bytes).unwrap().finish(&mut bytes);
        }
        match arp_request(&bytes) {
            Some((mac_of, asks, target)) if target == at => {
                let reply = arp(ArpOperation::Reply, (mac(at), at), (mac_of, asks));
                lab.send(at, &reply);
                let (more, count) = arrived(lab, at);
                all.extend(more);
                superframes += count;
            }
            Some(_) => {}
            None => all.push(bytes),
        }
    }
    lab.bring_home();
    lab.run();
    (all, superframes)
}
