//! A raw uplink: an interface of the host's, of whose frames the node takes its own, and by which it sends.
//!
//! For the worker it is a TAP ([`Tap`]): each read and each write is one frame behind a virtio-net header, so that superframes stay
//! whole and unfinished checksums are the interface's to make. Invariants: what the filter does not take is never copied; what
//! the node sends passes none of the host's rules. Allowed dependencies: as `link::tap`. Read first: packet(7);
//! `docs/adr/0028-a-nodes-way-out-and-in.md`.

use std::io;
use std::net::Ipv4Addr;

use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, set_socket_send_buffer_size,
    set_socket_send_buffer_size_force,
};

use crate::link::filter::filter;
use crate::link::tap::Tap;
use crate::masquerade::PortRange;
use crate::sys::open_packet_socket;

/// Bytes that wait in the system each way, where it gives so many.
const BUFFER: usize = 4 << 20;

/// Why there is no uplink.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// The caller may not take frames of an interface's.
    #[error("{interface}: a raw uplink needs the capability CAP_NET_RAW")]
    NotAllowed {
        /// The interface's name.
        interface: String,
    },
    /// The system does not give it.
    #[error("{interface}: the raw uplink cannot be opened")]
    System {
        /// The interface's name.
        interface: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Opens the uplink at the interface of a name and number, for what concerns these ports of an address.
///
/// # Errors
/// [`UplinkError`].
pub fn open((interface, index): (&str, u32), own: Ipv4Addr, ports: &[PortRange]) -> Result<Tap, UplinkError> {
    let opened = open_packet_socket(index, &filter(own, ports));
    let (socket, header) = opened.map_err(|source| {
        let interface = interface.to_owned();
        match Errno::from_io_error(&source) {
            Some(Errno::PERM | Errno::ACCESS) => UplinkError::NotAllowed { interface },
            Some(_) | None => UplinkError::System { interface, source },
        }
    })?;
    // Beyond the system's limit only the privileged get; less works, too.
    let _ = set_socket_recv_buffer_size_force(&socket, BUFFER)
        .or_else(|_| set_socket_recv_buffer_size(&socket, BUFFER));
    let _ = set_socket_send_buffer_size_force(&socket, BUFFER)
        .or_else(|_| set_socket_send_buffer_size(&socket, BUFFER));
    Ok(Tap::of_packet_socket(interface, socket, header))
}
