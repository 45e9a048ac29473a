//! System calls of the engine that no library makes safe: memory for buffers and tables, TAPs, batches of datagrams.
//!
//! `frame` maps its arena here, `flow` asks for large pages, `link::tap` opens its device, `link::tunnel_socket`
//! sends and receives, `link::uplink` opens its socket (`sys/packet.rs`). Invariants: nothing here is called per packet; advice that the system does not take changes speed only.
//! Allowed dependencies: rustix, libc. Read first: madvise(2), recvmmsg(2), the kernel's
//! `Documentation/networking/tuntap.rst`.
//!
//! Above 400 lines because system calls that need unsafe code are in one file, to be judged at once.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::{NonNull, null_mut};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Setter, ioctl, opcode};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

mod packet;

pub use packet::{Instruction, attach_filter, join_fragments, open_packet_socket};

/// Bytes of a large page.
const LARGE_PAGE: usize = 2 << 20;

/// Zeroed memory of its own, in large pages where the system has them; pages cost nothing until they are touched.
#[derive(Debug)]
pub struct Memory {
    map: NonNull<c_void>,
    mapped: usize,
    start: NonNull<u8>,
}

// SAFETY: the memory belongs to this value alone; who may touch which part of it is its user's to say.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps at least `length` bytes, starting at a large page.
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub fn map(length: usize) -> std::io::Result<Self> {
        let mapped =
            length.checked_add(2 * LARGE_PAGE).ok_or(std::io::ErrorKind::OutOfMemory)? & !(LARGE_PAGE - 1);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at an address of the system's choice aliases nothing.
        let map = unsafe {
            mmap_anonymous(null_mut(), mapped, protection, MapFlags::PRIVATE | MapFlags::NORESERVE)?
        };
        let padding = map.align_offset(LARGE_PAGE);
        // SAFETY: the padding is below one large page, of which two more than `length` are mapped.
        let start = unsafe { map.cast::<u8>().add(padding) };
        // SAFETY: the range lies inside the new mapping. Without large pages the advice is refused, which is no fault.
        let _ = unsafe { madvise(start.cast(), mapped - LARGE_PAGE, Advice::LinuxHugepage) };
        let none = || std::io::Error::from(std::io::ErrorKind::OutOfMemory);
        let (map, start) = (NonNull::new(map).ok_or_else(none)?, NonNull::new(start).ok_or_else(none)?);
        Ok(Self { map, mapped, start })
    }

    /// Returns the first byte; valid for as long as the value lives.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this very mapping was made in `map` and is unmapped once. It can only fail for wrong arguments.
        let _ = unsafe { munmap(self.map.as_ptr(), self.mapped) };
    }
}

/// Values in memory of their own, in large pages where the system has them; their number has a limit from the start, and
/// they never move.
#[derive(Debug)]
pub struct LargeVec<T: Copy> {
    memory: Memory,
    length: usize,
    limit: usize,
    value: PhantomData<T>,
}

impl<T: Copy> LargeVec<T> {
    /// Makes room for `limit` values; pages cost nothing until they are touched.
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub fn with_limit(limit: usize) -> std::io::Result<Self> {
        let bytes = limit.checked_mul(size_of::<T>()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory: Memory::map(bytes)?, length: 0, limit, value: PhantomData })
    }

    /// Makes `limit` values, all the same.
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub fn filled(limit: usize, value: T) -> std::io::Result<Self> {
        let mut values = Self::with_limit(limit)?;
        while values.push(value) {}
        Ok(values)
    }

    /// Appends a value; false when there is no room for it.
    #[must_use]
    pub fn push(&mut self, value: T) -> bool {
        if self.length == self.limit {
            return false;
        }
        // SAFETY: the mapping holds `limit` values and starts at a large page, which aligns any of them.
        unsafe { self.memory.start().cast::<T>().add(self.length).write(value) };
        self.length += 1;
        true
    }
}

impl LargeVec<u64> {
    /// Makes `limit` zeros.
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub fn zeroed(limit: usize) -> std::io::Result<Self> {
        // New memory is zero, and so is a number whose bytes are.
        Ok(Self { length: limit, ..Self::with_limit(limit)? })
    }
}

impl<T: Copy> Deref for LargeVec<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `length` values are there, pushed or zero; they live as long as the mapping, borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.memory.start().cast().as_ptr(), self.length) }
    }
}

impl<T: Copy> DerefMut for LargeVec<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start().cast().as_ptr(), self.length) }
    }
}

/// Values in memory as a [`LargeVec`]'s, any of which a hash may stand for: all alike, and without a bound to check.
#[derive(Debug)]
pub struct Spread<T: Copy>(LargeVec<T>);

impl<T: Copy> Spread<T> {
    /// Makes `number` values, at least one and at most 2³², all the same.
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub fn filled(number: usize, value: T) -> std::io::Result<Self> {
        Ok(Self(LargeVec::filled(number.clamp(1, 1 << 32), value)?))
    }

    /// Returns which value a hash stands for.
    #[inline(always)]
    #[must_use]
    pub fn place(&self, hash: u32) -> usize {
        // A hash is a fraction of 2³², and this the same fraction of their number.
        ((u64::from(hash) * self.0.length as u64) >> 32) as usize
    }

    /// Returns that value.
    #[inline(always)]
    #[must_use]
    pub fn at(&self, hash: u32) -> &T {
        // SAFETY: a fraction below one of the number of values is below it; all of them are there.
        unsafe { self.0.memory.start().cast::<T>().add(self.place(hash)).as_ref() }
    }
}

impl<T: Copy> Deref for Spread<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Copy> DerefMut for Spread<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

/// Bytes of the virtio-net header in front of a TAP's frames: the version with `num_buffers`.
pub const VNET_HEADER: usize = 12;
/// Bytes of an interface's name, the 0 at its end among them.
const NAME: usize = 16;

/// What TUNSETIFF takes: `struct ifreq`, of which only the flags of its union are used.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME],
    flags: i16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);

/// Opens the TAP of this name, and makes it where there is none: it goes with the file then. Reads and writes do not wait; each
/// is one frame behind [`VNET_HEADER`] bytes. What is read may want its checksum made, and cutting into segments, as far as
/// the system can leave that to us.
///
/// # Errors
/// The system's; `InvalidInput` for what cannot be an interface's name.
pub fn open_tap(name: &str) -> io::Result<(OwnedFd, TapOffloads)> {
    const IFF_TAP: i16 = 0x0002;
    const IFF_NO_PI: i16 = 0x1000;
    const IFF_VNET_HDR: i16 = 0x4000;
    const TUNSETIFF: u32 = opcode::write::<i32>(b'T', 202);
    const TUNSETVNETHDRSZ: u32 = opcode::write::<i32>(b'T', 216);
    if name.is_empty() || name.len() >= NAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut request =
        InterfaceRequest { name: [0; NAME], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    let file = open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: the two take a `struct ifreq` and an int, which outlive their calls.
    unsafe {
        ioctl(&file, Setter::<TUNSETIFF, InterfaceRequest>::new(request))?;
        ioctl(&file, Setter::<TUNSETVNETHDRSZ, i32>::new(VNET_HEADER as i32))?;
    }
    // The most that this kernel knows: UDP's segments came later.
    let all = TapOffloads { checksum: true, tso: true, uso: true };
    let offloads = [all, TapOffloads { uso: false, ..all }, TapOffloads::default()];
    let offloads = offloads.into_iter().find(|&offloads| set_tap_offloads(&file, offloads).is_ok());
    Ok((file, offloads.ok_or(Errno::INVAL)?))
}

/// What the system may give by a TAP that is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TapOffloads {
    /// Frames without their checksum.
    pub checksum: bool,
    /// TCP superframes, over IPv4 and IPv6; never without `checksum`.
    pub tso: bool,
    /// UDP superframes; never without `checksum`.
    pub uso: bool,
}

/// Says what the system may give by a TAP from now on.
///
/// # Errors
/// The system's, where it knows no such thing.
pub fn set_tap_offloads(tap: &impl AsFd, offloads: TapOffloads) -> io::Result<()> {
    const TUNSETOFFLOAD: u32 = opcode::write::<u32>(b'T', 208);
    let TapOffloads { checksum, tso, uso } = offloads;
    let bits = [(checksum, 0x01), (tso, 0x02 | 0x04), (uso, 0x20 | 0x40)];
    let bits: usize = bits.iter().filter(|(on, _)| *on).map(|(_, bits)| bits).sum();
    // SAFETY: it takes no more than its number.
    unsafe { ioctl(tap, IntegerSetter::<TUNSETOFFLOAD>::new_usize(bits)) }?;
    Ok(())
}

/// Datagrams that one call moves at most.
pub const DATAGRAMS: usize = 64;

/// The headers of a call's datagrams, without anything in them yet.
fn no_headers() -> [libc::mmsghdr; DATAGRAMS] {
    // SAFETY: all of it are numbers and pointers, of which null is one.
    unsafe { std::mem::zeroed() }
}

/// The header of a datagram that is in some parts of memory, whose peer has an address in another, and with which come or go
/// `control` bytes for the system.
fn message(
    peer: *mut libc::sockaddr_in,
    (parts, count): (*mut libc::iovec, usize),
    (control, length): (*mut Control, usize),
) -> libc::msghdr {
    // SAFETY: all of it are numbers and pointers, of which null is one.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = peer.cast();
    header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    (header.msg_iov, header.msg_iovlen) = (parts, count as _);
    (header.msg_control, header.msg_controllen) = (control.cast(), length as _);
    header
}

/// One control message with a number: how long the segments of a datagram are.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control {
    header: libc::cmsghdr,
    /// A `u16` on its way to the system, an `int` from it, in the machine's byte order.
    number: [u8; 4],
}

impl Control {
    /// Bytes of the message, its padding left out, with a number of `bytes`.
    const fn length(bytes: usize) -> usize {
        size_of::<libc::cmsghdr>() + bytes
    }

    const fn none() -> Self {
        Self { header: libc::cmsghdr { cmsg_len: 0, cmsg_level: 0, cmsg_type: 0 }, number: [0; 4] }
    }
}

/// Datagrams to one peer, one behind the other in `parts`: each has `segment` bytes but the last, which may have fewer. Zero for a
/// single one.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The peer.
    pub to: SocketAddrV4,
    /// What they carry, [`DATAGRAMS`] parts at most.
    pub parts: &'a [IoSlice<'a>],
    /// Bytes of each.
    pub segment: u16,
}

/// What came in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Who sent it.
    pub from: SocketAddrV4,
    /// Bytes of it, though there be no room for them.
    pub length: usize,
    /// Bytes of each of the datagrams that it is, but the last; all of it when it is one.
    pub segment: usize,
}

/// Lets the system give datagrams of one peer together, as one of up to 64 KB.
///
/// # Errors
/// The system's, when it does not know that.
pub fn receive_together(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option is an int, which outlives the call.
    let result = unsafe {
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_GRO,
            (&raw const on).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Receives the datagrams that are there, up to one for each place and [`DATAGRAMS`], without waiting. The second part of a place
/// takes what the first has no room for. What came in each goes to `received`, in the order of the places.
///
/// # Errors
/// The system's; `WouldBlock` when nothing is there.
pub fn receive_datagrams<'a>(
    socket: impl AsFd,
    places: impl Iterator<Item = [&'a mut [u8]; 2]>,
    received: &mut Vec<Received>,
) -> io::Result<()> {
    received.clear();
    let none = libc::iovec { iov_base: null_mut(), iov_len: 0 };
    let mut parts = [[none; 2]; DATAGRAMS];
    let family = libc::AF_INET as libc::sa_family_t;
    let nobody = libc::sockaddr_in {
        sin_family: family,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: 0 },
        sin_zero: [0; 8],
    };
    let mut senders = [nobody; DATAGRAMS];
    let mut controls = [Control::none(); DATAGRAMS];
    let mut headers = no_headers();
    let mut count: libc::c_uint = 0;
    let each = parts.iter_mut().zip(&mut senders).zip(&mut controls).zip(&mut headers);
    for (place, (((parts, sender), control), header)) in places.zip(each) {
        *parts = place.map(|bytes| libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() });
        let control = (&raw mut *control, size_of::<Control>());
        header.msg_hdr = message(sender, (parts.as_mut_ptr(), parts.len()), control);
        count += 1;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: `count` headers are filled in; each names an address, a control message and two parts that outlive the call, the
    // parts' memory is borrowed from the caller alone for as long as that.
    let got = unsafe {
        libc::recvmmsg(socket.as_fd().as_raw_fd(), headers.as_mut_ptr(), count, flags as _, null_mut())
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let each = senders.iter().zip(&controls).zip(&headers).take(got);
    received.extend(each.map(|((sender, control), header)| {
        let address = Ipv4Addr::from_bits(u32::from_be(sender.sin_addr.s_addr));
        let from = SocketAddrV4::new(address, u16::from_be(sender.sin_port));
        let length = header.msg_len as usize;
        let is_told = header.msg_hdr.msg_controllen >= Control::length(size_of::<libc::c_int>())
            && (control.header.cmsg_level, control.header.cmsg_type) == (libc::SOL_UDP, libc::UDP_GRO);
        let told = libc::c_int::from_ne_bytes(control.number);
        let told = if is_told { usize::try_from(told).unwrap_or(0) } else { 0 };
        Received { from, length, segment: if told > 0 { told } else { length } }
    }));
    Ok(())
}

/// Sends messages, [`DATAGRAMS`] at most, without waiting; returns how many the system took, from the first on.
///
/// # Errors
/// Why it did not take the first.
pub fn send_messages<'a>(
    socket: impl AsFd,
    messages: impl Iterator<Item = Message<'a>>,
) -> io::Result<usize> {
    // SAFETY: all of it are numbers.
    let mut peers: [libc::sockaddr_in; DATAGRAMS] = unsafe { std::mem::zeroed() };
    let mut controls = [Control::none(); DATAGRAMS];
    let mut headers = no_headers();
    let mut count: libc::c_uint = 0;
    let each = peers.iter_mut().zip(&mut controls).zip(&mut headers);
    for (Message { to, parts, segment }, ((peer, control), header)) in messages.zip(each) {
        peer.sin_family = libc::AF_INET as libc::sa_family_t;
        peer.sin_port = to.port().to_be();
        peer.sin_addr.s_addr = to.ip().to_bits().to_be();
        let told = if segment == 0 { 0 } else { size_of::<Control>() };
        control.header.cmsg_len = Control::length(size_of::<u16>()) as _;
        (control.header.cmsg_level, control.header.cmsg_type) = (libc::SOL_UDP, libc::UDP_SEGMENT);
        control.number[..2].copy_from_slice(&segment.to_ne_bytes());
        // The system only reads from there. An `IoSlice` is an iovec, as its documentation says.
        let parts = (parts.as_ptr().cast_mut().cast::<libc::iovec>(), parts.len());
        header.msg_hdr = message(peer, parts, (control, told));
        count += 1;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `count` headers are filled in; each names an address, perhaps a control message, and parts that outlive the call,
    // and so does the parts' memory, which is only read.
    let sent = unsafe { libc::sendmmsg(socket.as_fd().as_raw_fd(), headers.as_mut_ptr(), count, flags as _) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Has no program that this process starts get the files that whoever started it had open, but for standard input, output and
/// error. To be called before anything is opened.
///
/// # Errors
/// The system's, where it does not say which those are (proc_pid_fd(5)).
pub fn keep_inherited_files() -> io::Result<()> {
    let numbers: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&number| number > 2)
        .collect();
    for number in numbers {
        // SAFETY: it takes two numbers, and says of one that is no file's any more, as the list's own, that it is none.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1
            && io::Error::last_os_error().raw_os_error() != Some(libc::EBADF)
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn mapped_memory_is_zero_aligned_and_writable_to_its_end() {
        let length = LARGE_PAGE + 5;
        let memory = Memory::map(length).unwrap();
        let start = memory.start().as_ptr();
        assert_eq!(start.align_offset(LARGE_PAGE), 0);
        // SAFETY: inside the mapping, which lives to the end of the test.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start, length) };
        assert!(bytes.iter().all(|&byte| byte == 0));
        bytes[length - 1] = 1;
    }

    #[test]
    fn hashes_are_spread_over_any_number_of_values() {
        let mut spread = Spread::filled(3, 9u64).unwrap();
        spread[2] = 1;
        let hashes = [0, u32::MAX / 3, u32::MAX / 3 + 1, u32::MAX / 3 * 2 + 1, u32::MAX];
        assert_eq!(hashes.map(|hash| spread.place(hash)), [0, 0, 1, 2, 2]);
        assert_eq!(hashes.map(|hash| *spread.at(hash)), [9, 9, 9, 1, 1]);
        assert_eq!(*Spread::filled(0, 7u64).unwrap().at(u32::MAX), 7);
    }

    #[test]
    fn large_vectors_hold_their_values_up_to_their_limit() {
        let mut filled = LargeVec::filled(1 << 20, 9u64).unwrap();
        filled[7] = 1;
        assert_eq!((filled.len(), filled[7], filled[(1 << 20) - 1]), (1 << 20, 1, 9));
        assert!(LargeVec::filled(usize::MAX, 9u64).is_err());
        let mut pushed = LargeVec::with_limit(2).unwrap();
        assert_eq!([5u64, 6, 7].map(|value| pushed.push(value)), [true, true, false]);
        assert_eq!(pushed[..], [5, 6]);
        let zeros = LargeVec::zeroed(1 << 20).unwrap();
        assert_eq!((zeros.len(), zeros[0], zeros[(1 << 20) - 1]), (1 << 20, 0, 0));
    }

    #[test]
    fn datagrams_are_moved_many_at_once_to_and_from_whom_they_say() {
        let [here, there, elsewhere] = [(); 3].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let address = |socket: &UdpSocket| match socket.local_addr().unwrap() {
            std::net::SocketAddr::V4(address) => address,
            std::net::SocketAddr::V6(_) => unreachable!("it is bound to an IPv4 address"),
        };
        let payloads: [&[u8]; 4] = [b"a", b"longer than a part", b"", b"to another"];
        let peers = [&there, &there, &there, &elsewhere].map(address);
        let slices = payloads.map(IoSlice::new);
        let messages = peers.into_iter().zip(slices.chunks(1));
        let messages = messages.map(|(to, parts)| Message { to, parts, segment: 0 });
        assert_eq!(send_messages(&here, messages).unwrap(), 4);

        let (mut memory, mut received) = ([[0; 12]; 5], Vec::new());
        let places = memory.iter_mut().map(|place| place.split_at_mut(8).into());
        receive_datagrams(&there, places.take(2), &mut received).unwrap();
        let one = |length| Received { from: address(&here), length, segment: length };
        assert_eq!(received, [one(1), one(18)]);
        let mut more = [[0; 12]; 5];
        let places = more.iter_mut().map(|place| place.split_at_mut(8).into());
        receive_datagrams(&there, places, &mut received).unwrap();
        assert_eq!(received, [one(0)]);
        assert_eq!((memory[0][0], &memory[1]), (b'a', b"longer than "));
        let places = memory.iter_mut().map(|place| place.split_at_mut(8).into());
        let error = receive_datagrams(&there, places, &mut received).unwrap_err();
        assert_eq!((error.kind(), received.len()), (io::ErrorKind::WouldBlock, 0));
    }

    #[test]
    fn what_the_system_does_not_send_is_said_of_the_first_only() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (good, long) = ([0; 1], vec![0; 65_508]);
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9);
        let parts = [IoSlice::new(&good), IoSlice::new(&long)];
        let [good, long] = [&parts[..1], &parts[1..]].map(|parts| Message { to, parts, segment: 0 });
        assert_eq!(send_messages(&socket, [good, long, good].into_iter()).unwrap(), 1);
        let error = send_messages(&socket, [long, good].into_iter()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        assert_eq!(send_messages(&socket, std::iter::repeat(good)).unwrap(), DATAGRAMS);
    }

    #[test]
    fn datagrams_of_one_message_are_received_one_by_one_or_together() {
        let [here, alone, together] = [(); 3].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        receive_together(&together).unwrap();
        let (long, short) = ([1; 100], [2; 50]);
        let parts = [&long[..], &long, &short].map(IoSlice::new);
        for (socket, expected) in
            [(&alone, &[(100, 100), (100, 100), (50, 50)][..]), (&together, &[(250, 100)])]
        {
            let std::net::SocketAddr::V4(to) = socket.local_addr().unwrap() else { unreachable!() };
            let message = Message { to, parts: &parts, segment: 100 };
            assert_eq!(send_messages(&here, std::iter::once(message)).unwrap(), 1);
            let (mut memory, mut received) = ([[0; 300]; 5], Vec::new());
            let places = memory.iter_mut().map(|place| place.split_at_mut(120).into());
            receive_datagrams(socket, places, &mut received).unwrap();
            let found: Vec<_> = received.iter().map(|it| (it.length, it.segment)).collect();
            assert_eq!(found, expected);
            assert_eq!(memory[0][..100], long);
        }
    }
}
