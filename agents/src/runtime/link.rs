//! A pod's eth0: a TAP made inside its network namespace, with address, routes and MTU; or one that somebody else made.
//!
//! [`super::sandbox`] asks once a pod's namespace is there. Nothing of it is ever in the namespace of the caller, so that nothing can
//! be left behind there: the interface goes when its file is closed.
//!
//! May depend on [`super::loopback`], `crate::netlink` and the engine's TAP and uplink. Read first: rtnetlink(7), network_namespaces(7).

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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

/// A network namespace with a pod's eth0, or where one is to be.
#[derive(Debug)]
pub struct PodNamespace {
    path: PathBuf,
    /// It is there as long as this is open.
    file: File,
    /// Hears of each change of an interface there.
    changes: OwnedFd,
}

impl PodNamespace {
    /// Opens the one of a file.
    ///
    /// # Errors
    /// [`LinkError::Namespace`].
    pub fn open(path: PathBuf) -> Result<Self, LinkError> {
        let file = File::open(&path).map_err(unreachable(&path))?;
        let changes = within(&file, || {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            // Without another word it is about interfaces and routes (`NETLINK_ROUTE`).
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
            bind(&socket, &SocketAddrNetlink::new(0, CHANGES))?;
            Ok(socket)
        });
        let changes = changes.and_then(|socket| socket).map_err(unreachable(&path))?;
        Ok(Self { path, file, changes })
    }

    /// Has its `lo` up; that is as it was when what is returned is dropped, of which there is a note in the network's directory.
    ///
    /// # Errors
    /// [`LinkError::Set`].
    pub fn borrow_loopback(&self, directory: &Path) -> Result<Option<Loopback>, LinkError> {
        let noted = Loopback::note(&self.path, &self.file, directory);
        noted.map_err(|source| LinkError::Set { what: "lo", source })
    }

    /// Makes an eth0, and has `lo` up.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn make_interface(&self, config: &LinkConfig) -> Result<Tap, LinkError> {
        let made = within(&self.file, || {
            let tap = Tap::open(INTERFACE)?;
            configure(&self.path, config)?;
            Ok(tap)
        });
        made.map_err(unreachable(&self.path))?
    }

    /// Tells whether an interface changed there since this was asked last.
    pub(crate) fn has_changed(&self) -> bool {
        let hear = || recv(&self.changes, &mut [0; 1], RecvFlags::TRUNC);
        let mut has_changed = false;
        // What was more than fits was something, too.
        while matches!(hear(), Ok(_) | Err(Errno::NOBUFS | Errno::INTR)) {
            has_changed = true;
        }
        has_changed
    }

    /// Tells whether there is an interface of its eth0's name.
    pub(crate) fn has_interface(&self) -> bool {
        // Who cannot look takes nothing for gone.
        within(&self.file, || index(INTERFACE)).map_or(true, |found| found.is_ok())
    }

    /// Takes its eth0 down.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn take_down(&self) -> io::Result<()> {
        within(&self.file, || {
            Kernel::open()?.set_link(index(INTERFACE)?, (LinkFlags::empty(), LinkFlags::Up), Vec::new())
        })?
    }
}

impl AsFd for PodNamespace {
    /// Gives a file that can be read from when an interface has changed there.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }
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
