//! A server that an application calls by name or address.
//!
//! nginx names its FastCGI server, a proxy its origin. Invariant: a name is looked up when it is first needed and kept; one that was not
//! found is looked up again with the next event. Depends on `resolver`. Read first: `resolver.rs`.

use super::super::resolver::{Resolution, Resolver, well_known};
use super::super::sockets::Sockets;
use std::net::{Ipv4Addr, SocketAddrV4};

/// The server.
#[derive(Debug)]
pub(super) struct Server {
    host: String,
    port: u16,
    address: Option<Ipv4Addr>,
    resolver: Option<Resolver>,
}

impl Server {
    /// Reads `HOST:PORT`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        if host.is_empty() {
            return None;
        }
        Some(Server { host: host.to_owned(), port: port.parse().ok()?, address: None, resolver: None })
    }

    /// Returns where the server is, or goes on to find out.
    pub(super) fn find(&mut self, sockets: &mut Sockets<'_, '_>) -> Option<SocketAddrV4> {
        if self.address.is_none() {
            self.address = well_known(&self.host, sockets.pod);
        }
        if self.address.is_none() {
            let resolver = self.resolver.get_or_insert_with(|| Resolver::new(&self.host, sockets.pod));
            match resolver.poll(sockets) {
                None => {}
                Some(Resolution::Found(_, addresses)) => self.address = addresses.first().copied(),
                Some(Resolution::NoSuchName | Resolution::NoServer) => self.resolver = None,
            }
        }
        self.address.map(|address| SocketAddrV4::new(address, self.port))
    }
}
