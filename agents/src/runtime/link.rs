//! A pod's eth0: a TAP made inside its network namespace, with address, routes and MTU; or one that somebody else made.
//!
//! [`super::sandbox`] asks once a pod's namespace is there. Nothing of it is ever in the namespace of the caller, so that nothing can
//! be left behind there: the interface goes when its file is closed.
//!
//! May depend on [`super::loopback`], `crate::netlink` and the engine's TAP and uplink. Read first: rtnetlink(7), network_namespaces(7).

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use flatnet_engine::link::filter;
use flatnet_engine::link::tap::{Tap, TapError};
use flatnet_engine::link::uplink::{self, UplinkError};
use flatnet_engine::wire::MacAddress;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use thiserror::Error;

use super::loopback::Loopback;
use crate::netlink::{Kernel, index, without_ipv6};

/// The interface's name inside.
pub const INTERFACE: &str = "eth0";
/// Bytes of the longest superframe that the system is to make: with inner headers for each of its segments it is one message of
/// the tunnel's, which takes 65,507.
pub(crate) const SUPERFRAME: u32 = 62_000;

/// What a network namespace says of each change of an interface (rtnetlink(7), `RTMGRP_LINK`).
const CHANGES: u32 = 1;

/// What a pod's interface is to be.
#[derive(Debug, Clone, Copy)]
pub struct LinkConfig {
    /// Its MAC.
    pub mac: MacAddress,
    /// Its address.
    pub address: Ipv4Addr,
    /// How many bits of it are the network's.
    pub prefix_length: u8,
    /// Where all else goes.
    pub gateway: Option<Ipv4Addr>,
    /// Bytes of its longest packet.
    pub mtu: u16,
}

/// Why a pod has no interface.
#[derive(Debug, Error)]
pub enum LinkError {
    /// There is no such namespace, or it may not be entered.
    #[error("the network namespace {} cannot be entered", path.display())]
    Namespace {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// All else goes another way already.
    #[error(
        "the network namespace {} has a default route already, but Services and pods of other nodes are reached by {gateway}: remove it \
         there (`ip route del default`)",
        path.display()
    )]
    Routed {
        /// Its file.
        path: PathBuf,
        /// The node.
        gateway: Ipv4Addr,
    },
    /// The TAP cannot be had.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// There is none.
    #[error("there is no TAP {0} here: `ip tuntap add {0} mode tap` makes one")]
    NoTap(String),
    /// The interface of a TAP whose file another process has cannot be had.
    #[error(transparent)]
    Interface(#[from] UplinkError),
    /// The system refused to set it up.
    #[error("{what} cannot be set")]
    Set {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Takes the end of a TAP that is free: its file, so that the interface is a pod; or the interface, where another process has the
/// file, a virtual machine that is one.
///
/// # Errors
/// [`LinkError`].
pub fn of_tap(name: &str) -> Result<Tap, LinkError> {
    let found = index(name).and_then(|index| Kernel::open()?.link(index));
    let Some(link) = found.ok().flatten().filter(is_tap) else {
        return Err(LinkError::NoTap(name.to_owned()));
    };
    match Tap::open(name) {
        Err(TapError::Taken { .. }) => Ok(uplink::open((name, link.header.index), &filter::all())?),
        opened => Ok(opened?),
    }
}

fn is_tap(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| {
        matches!(attribute, LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Tun)))
    })
}

/// Makes a pod's eth0 in the network namespace of a file, and has its `lo` up.
///
/// # Errors
/// [`LinkError`].
pub fn make((path, namespace): (&Path, &File), config: &LinkConfig) -> Result<Tap, LinkError> {
    let made = within(namespace, || {
        let tap = Tap::open(INTERFACE)?;
        configure(path, config)?;
        Ok(tap)
    });
    made.map_err(unreachable(path))?
}

/// Takes a pod's eth0 down.
///
/// # Errors
/// The system's.
pub(super) fn take_down(namespace: &File) -> io::Result<()> {
    within(namespace, || {
        Kernel::open()?.set_link(index(INTERFACE)?, (LinkFlags::empty(), LinkFlags::Up), Vec::new())
    })?
}

/// Makes a pod's eth0 in a network namespace that is somebody else's; its `lo` is as it was when the second value is dropped, of
/// which there is a note in the network's directory.
///
/// # Errors
/// [`LinkError`].
pub fn attach(
    namespace: &Path,
    config: &LinkConfig,
    directory: &Path,
) -> Result<(Tap, Option<Loopback>), LinkError> {
    let file = open(namespace)?;
    // Dropped, too, when the interface cannot be made.
    let loopback = Loopback::note(namespace, &file, directory)
        .map_err(|source| LinkError::Set { what: "lo", source })?;
    Ok((make((namespace, &file), config)?, loopback))
}

/// Opens what hears of each change of an interface in a network namespace.
///
/// # Errors
/// [`LinkError::Namespace`].
pub(super) fn watch((path, namespace): (&Path, &File)) -> Result<OwnedFd, LinkError> {
    let hears = within(namespace, || {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        // Without another word it is about interfaces and routes (`NETLINK_ROUTE`).
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, CHANGES))?;
        Ok(socket)
    });
    hears.and_then(|hears| hears).map_err(unreachable(path))
}

/// Takes what was heard, of which it is enough that there was something.
pub(super) fn take_heard(watch: &OwnedFd) {
    // What was more than fits was something, too.
    while matches!(recv(watch, &mut [0; 1], RecvFlags::TRUNC), Ok(_) | Err(Errno::NOBUFS | Errno::INTR)) {}
}

/// Opens the file of a network namespace.
///
/// # Errors
/// [`LinkError::Namespace`].
pub(super) fn open(path: &Path) -> Result<File, LinkError> {
    File::open(path).map_err(unreachable(path))
}

fn unreachable(path: &Path) -> impl Fn(io::Error) -> LinkError {
    move |source| LinkError::Namespace { path: path.to_owned(), source }
}

/// Does something in a network namespace: in a thread of its own, since nobody else's next socket may be made there.
pub(super) fn within<R: Send>(namespace: &File, work: impl FnOnce() -> R + Send) -> io::Result<R> {
    thread::scope(|scope| {
        let done = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        });
        done.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn configure(namespace: &Path, config: &LinkConfig) -> Result<(), LinkError> {
    let set = |what| move |source| LinkError::Set { what, source };
    let mut kernel = Kernel::open().map_err(set("an interface"))?;
    let (up, off) = (LinkFlags::Up, LinkFlags::empty());
    index("lo").and_then(|lo| kernel.set_link(lo, (up, off), Vec::new())).map_err(set("lo up"))?;
    let eth0 = index(INTERFACE).map_err(set("eth0"))?;
    // On `lo` it is on.
    without_ipv6(INTERFACE).map_err(set("eth0 without IPv6"))?;
    let attributes = vec![
        LinkAttribute::Address(config.mac.octets().to_vec()),
        LinkAttribute::Mtu(config.mtu.into()),
        LinkAttribute::GsoMaxSize(SUPERFRAME),
    ];
    kernel.set_link(eth0, (up, off), attributes).map_err(set("eth0 up"))?;
    let LinkConfig { address, prefix_length, .. } = *config;
    kernel.add_address(eth0, address, prefix_length).map_err(set("the address of eth0"))?;
    if let Some(gateway) = config.gateway {
        kernel.add_default_route(gateway).map_err(|source| {
            if source.kind() == io::ErrorKind::AlreadyExists {
                return LinkError::Routed { path: namespace.to_owned(), gateway };
            }
            LinkError::Set { what: "the default route", source }
        })?;
    }
    Ok(())
}
