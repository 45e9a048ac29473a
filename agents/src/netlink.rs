//! Questions and orders to the system about the network namespace of the calling thread.
//!
//! [`crate::host`] lists interfaces by it and makes the host's own, [`crate::runtime::link`] makes a pod's. Invariant: an order is carried out when it is
//! answered for.
//!
//! May depend on `netlink-packet-route` and `netlink-sys`. Read first: rtnetlink(7), netlink(7), "NLM_F_DUMP".

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use flatnet_proxy::Ipv4Prefix;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily as SocketFamily, SocketType, socket};

/// A conversation with the system.
pub(crate) struct Kernel {
    socket: Socket,
    sequence: u32,
}

impl Kernel {
    /// Begins one.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Has something done.
    pub(crate) fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_ACK | flags)?;
        let (answer, _) = self.socket.recv_from_full()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
        let NetlinkPayload::Error(error) = answer.payload else {
            return Err(io::Error::other("the system answered something else"));
        };
        if error.code.is_some() { Err(error.to_io()) } else { Ok(()) }
    }

    /// Changes a link: these flags on, those off, and what else it is to have.
    pub(crate) fn set_link(
        &mut self,
        index: u32,
        (on, off): (LinkFlags, LinkFlags),
        attributes: Vec<LinkAttribute>,
    ) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = on;
        link.header.change_mask = on | off;
        link.attributes = attributes;
        self.ask(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Asks for what the system says of the link of a number; none if there is no such.
    pub(crate) fn link(&mut self, index: u32) -> io::Result<Option<LinkMessage>> {
        let mut found = None;
        self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
            if let RouteNetlinkMessage::NewLink(link) = message
                && link.header.index == index
            {
                found = Some(link);
            }
        })?;
        Ok(found)
    }

    /// Gives an interface an address; so many bits of it are the network's.
    pub(crate) fn add_address(&mut self, index: u32, address: Ipv4Addr, length: u8) -> io::Result<()> {
        let message = address_message(index, address, length);
        self.ask(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Takes an address away from an interface.
    pub(crate) fn remove_address(&mut self, index: u32, address: Ipv4Addr, length: u8) -> io::Result<()> {
        self.ask(RouteNetlinkMessage::DelAddress(address_message(index, address, length)), 0)
    }

    /// Adds a route: everything, by a gateway.
    pub(crate) fn add_default_route(&mut self, gateway: Ipv4Addr) -> io::Result<()> {
        let mut message = route(RouteScope::Universe, 0);
        message.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway))];
        self.ask(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds a route: a network is at the other end of an interface, and what is sent there comes from `source` unless its sender
    /// says otherwise.
    pub(crate) fn add_route(&mut self, network: Ipv4Prefix, index: u32, source: Ipv4Addr) -> io::Result<()> {
        let mut message = route(RouteScope::Link, network.length());
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet(network.address())),
            RouteAttribute::Oif(index),
            RouteAttribute::PrefSource(RouteAddress::Inet(source)),
        ];
        self.ask(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Asks for everything of a kind, and gives it away piece by piece.
    pub(crate) fn dump(
        &mut self,
        question: RouteNetlinkMessage,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        self.send(question, NLM_F_DUMP)?;
        loop {
            let (answer, _) = self.socket.recv_from_full()?;
            let mut rest = &answer[..];
            while !rest.is_empty() {
                let message =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                // Messages begin at multiples of four bytes.
                let length = (message.header.length as usize).next_multiple_of(4).max(4);
                rest = rest.get(length..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => take(message),
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | _ => {}
                }
            }
        }
    }
}

fn route(scope: RouteScope, length: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: length,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message
}

/// Describes an address of an interface; so many bits of it are the network's.
fn address_message(index: u32, address: Ipv4Addr, length: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = length;
    message.header.index = index;
    let own = IpAddr::V4(address);
    message.attributes = vec![AddressAttribute::Local(own), AddressAttribute::Address(own)];
    message
}

/// Returns the number of an interface.
pub(crate) fn index(name: &str) -> io::Result<u32> {
    let any = socket(SocketFamily::INET, SocketType::DGRAM, None)?;
    Ok(name_to_index(any, name)?)
}

/// Keeps IPv6 off an interface: pods have none, and what an interface asks and says on its own about it is noise to them.
pub(crate) fn without_ipv6(name: &str) -> io::Result<()> {
    match fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        // This kernel has none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
