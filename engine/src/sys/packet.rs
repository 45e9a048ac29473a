//! Sockets for whole frames of an interface of the host's, and what the system shows a socket.
//!
//! `link::uplink` opens one. Invariants: as `sys`, of which this is a part by its length. Allowed dependencies: as `sys`. Read
//! first: packet(7); the kernel's `Documentation/networking/filter.rst`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::VNET_HEADER;

/// One instruction of a socket's filter.
pub type Instruction = libc::sock_filter;

/// Sets an option of a socket's.
fn set_option<T>(socket: impl AsFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the system reads no more than the value's bytes, which outlive the call.
    let set = unsafe { libc::setsockopt(socket, level, name, std::ptr::from_ref(value).cast(), length) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the system show a socket only what a filter takes.
///
/// # Errors
/// The system's; `InvalidInput` for a filter that is too long.
pub fn attach_filter(socket: impl AsFd, filter: &[Instruction]) -> io::Result<()> {
    let len = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // The system only reads from there.
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Opens a socket for whole frames at the interface of this number, and shows it what a filter takes. Reads and writes do not
/// wait; each is one frame behind a header as a TAP's, of as many bytes as are returned. What this host sends is not shown.
///
/// # Errors
/// The system's.
pub fn open_packet_socket(interface: u32, filter: &[Instruction]) -> io::Result<(OwnedFd, usize)> {
    const PACKET_VNET_HDR: i32 = 15;
    const PACKET_IGNORE_OUTGOING: i32 = 23;
    const PACKET_VNET_HDR_SZ: i32 = 24;
    /// The header without `num_buffers`, from before its size could be chosen.
    const OLD_HEADER: usize = VNET_HEADER - 2;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    // Without a protocol nothing comes before it is bound: the filter is there first.
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
    attach_filter(&socket, filter)?;
    let header = match set_option(&socket, libc::SOL_PACKET, PACKET_VNET_HDR_SZ, &(VNET_HEADER as i32)) {
        Ok(()) => VNET_HEADER,
        Err(_) => {
            set_option(&socket, libc::SOL_PACKET, PACKET_VNET_HDR, &1i32)?;
            OLD_HEADER
        }
    };
    // The filter leaves it out, too.
    let _ = set_option(&socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1i32);
    // SAFETY: all of it are numbers, of which 0 is one.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = interface as i32;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the system reads one address of that length, which outlives the call.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) };
    if bound == 0 { Ok((socket, header)) } else { Err(io::Error::last_os_error()) }
}

/// Has the system put fragments together before it asks the filter of such a socket: whole packets come.
///
/// # Errors
/// The system's.
pub fn join_fragments(socket: impl AsFd + Copy) -> io::Result<()> {
    const PACKET_FANOUT: i32 = 18;
    const BY_PROCESSOR: i32 = 2;
    const FLAG_UNIQUE: i32 = 0x2000;
    const FLAG_IGNORE_OUTGOING: i32 = 0x4000;
    const FLAG_DEFRAG: i32 = 0x8000;
    // A group of one: only groups have it. An older system asks the filter of what this host sends, too.
    let join =
        |flags: i32| set_option(socket, libc::SOL_PACKET, PACKET_FANOUT, &((BY_PROCESSOR | flags) << 16));
    let flags = FLAG_UNIQUE | FLAG_DEFRAG;
    join(flags | FLAG_IGNORE_OUTGOING).or_else(|_| join(flags))
}
