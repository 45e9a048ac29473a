//! A raw uplink: an interface of the host's, of whose frames the node takes its own, and by which it sends. One whose other end is
//! a pod (a virtual machine's TAP) is the same with another filter.
//!
//! For the worker it is a TAP ([`Tap`]): each read and each write is one frame behind a virtio-net header, so that superframes stay
//! whole and unfinished checksums are the interface's to make. Invariants: what the filter does not take is never copied; what
//! the node sends passes none of the host's rules. Allowed dependencies: as `link::tap`. Read first: packet(7);
//! `docs/adr/0028-a-nodes-way-out-and-in.md`.

use std::io;

use rustix::io::Errno;

use crate::link::filter::Filter;
use crate::link::tap::Tap;
use crate::link::tunnel_socket::BUFFER;
use crate::link::widen;
use crate::sys::{join_fragments, open_packet_socket};

/// Why there is no uplink.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// The caller may not take frames of an interface's.
    #[error("{interface}: frames of this host's interfaces need the capability CAP_NET_RAW")]
    NotAllowed {
        /// The interface's name.
        interface: String,
    },
    /// The system does not give it.
    #[error("{interface}: its frames cannot be taken")]
    System {
        /// The interface's name.
        interface: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Opens the uplink at the interface of a name and number, for what a filter takes.
///
/// # Errors
/// [`UplinkError`].
pub fn open((interface, index): (&str, u32), filter: &Filter) -> Result<Tap, UplinkError> {
    let opened = open_packet_socket(index, &filter.instructions).and_then(|(socket, header)| {
        if filter.joins_fragments {
            join_fragments(&socket)?;
        }
        Ok((socket, header))
    });
    let (socket, header) = opened.map_err(|source| {
        let interface = interface.to_owned();
        match Errno::from_io_error(&source) {
            Some(Errno::PERM | Errno::ACCESS) => UplinkError::NotAllowed { interface },
            Some(_) | None => UplinkError::System { interface, source },
        }
    })?;
    widen(&socket, BUFFER);
    Ok(Tap::of_packet_socket(interface, socket, header))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::frame::{Arena, ChecksumState, Frame, Pool};
    use crate::link::filter::filter;
    use crate::link::tap::Read;
    use crate::masquerade::PortRange;
    use crate::wire::{EthernetFrame, Ipv4Packet, UdpDatagram};

    /// Reads what comes next. An interface that always is there needs no peer.
    fn next(uplink: &mut Tap, arena: &Arena, pool: &mut Pool) -> Frame {
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            match uplink.read(arena, pool, &mut None) {
                Read::Frame(frame) => return frame,
                Read::Empty => std::thread::yield_now(),
                Read::NoBuffer | Read::Lost(_) => break,
            }
        }
        unreachable!("it was sent, there are buffers, and it is short")
    }

    /// Needs root.
    #[test]
    fn what_is_the_nodes_is_read_and_what_it_writes_is_on_the_wire() {
        let (arena, mut pools) = Arena::new(1, 8, 2).unwrap();
        let ports = [PortRange { first: 61_000, last: 61_999 }];
        let mut uplink = open(("lo", 1), &filter(Ipv4Addr::LOCALHOST, &ports, None)).unwrap();
        let [sender, other] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        sender.send_to(b"the host's", other.local_addr().unwrap()).unwrap();
        sender.send_to(b"the node's", "127.0.0.1:61001").unwrap();
        let mut frame = next(&mut uplink, &arena, &mut pools[0]);
        let mut open = arena.open(&mut frame);
        assert!(open.bytes().ends_with(b"the node's"));
        assert_ne!(open.record.checksum, ChecksumState::Unknown, "the system says what it knows of it");
        // To another port: what is on this wire comes back.
        open.record.checksum = ChecksumState::Unknown;
        let mut header = EthernetFrame::new_unchecked(open.bytes_mut());
        let mut packet = Ipv4Packet::new_unchecked(header.payload_mut());
        let mut datagram = UdpDatagram::new_unchecked(packet.payload_mut());
        datagram.set_destination_port(61_002);
        datagram.set_checksum(0);
        let expected = open.bytes().to_vec();
        uplink.queue(frame);
        uplink.write(&arena, |frame, written| {
            assert_eq!(written, Ok(()));
            pools[0].free(frame);
        });
        let back = next(&mut uplink, &arena, &mut pools[0]);
        assert_eq!(arena.bytes(&back), expected);
        pools[0].free(back);
    }
}
