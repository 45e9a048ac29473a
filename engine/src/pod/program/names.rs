//! The names in a program's words, and `nslookup`.
//!
//! A program that meets an unknown name is not made: the name is looked up first, then it is made again. Invariant: each name is looked
//! up once per program. Depends on `resolver`. Read first: `resolver.rs`.

use super::super::config::PodConfig;
use super::super::resolver::{Resolution, Resolver, well_known};
use super::super::sockets::Sockets;
use super::console::Console;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// What is known of names.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: BTreeMap<String, Option<Ipv4Addr>>,
    wanted: Option<(String, Resolver)>,
}

impl Names {
    /// Returns a name's address.
    ///
    /// # Errors
    /// What libc says; the name may only not have been looked up yet, see [`Names::poll`].
    pub(super) fn find(&mut self, name: &str, pod: &PodConfig) -> Result<Ipv4Addr, String> {
        if let Some(address) = well_known(name, pod).or_else(|| self.known.get(name).copied().flatten()) {
            return Ok(address);
        }
        if !self.known.contains_key(name) {
            self.wanted = Some((name.to_owned(), Resolver::new(name, pod)));
        }
        Err(format!("{name}: Name or service not known"))
    }

    /// Looks up the name that was not known; true while that takes time.
    pub(super) fn poll(&mut self, sockets: &mut Sockets<'_, '_>) -> bool {
        let Some((name, resolver)) = &mut self.wanted else { return false };
        let Some(resolution) = resolver.poll(sockets) else { return true };
        let address = match resolution {
            Resolution::Found(_, addresses) => addresses.first().copied(),
            Resolution::NoSuchName | Resolution::NoServer => None,
        };
        self.known.insert(std::mem::take(name), address);
        self.wanted = None;
        false
    }

    /// Says whether a name waits to be looked up.
    pub(super) fn is_waiting(&self) -> bool {
        self.wanted.is_some()
    }
}

/// A running `nslookup`.
#[derive(Debug)]
pub(super) struct Lookup {
    name: String,
    resolver: Resolver,
}

impl Lookup {
    /// Makes a lookup of its words.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn new(words: &[String], pod: &PodConfig) -> Result<Self, String> {
        let [name] = words else { return Err(String::from("usage: nslookup NAME")) };
        Ok(Lookup { name: name.clone(), resolver: Resolver::new(name, pod) })
    }

    /// Handles any event.
    pub(super) fn handle(&mut self, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        let Some(resolution) = self.resolver.poll(sockets) else { return };
        if let Some(server) = sockets.pod.nameserver {
            console.line(format!("Server:\t\t{server}\nAddress:\t{server}:53\n"));
        }
        let code = match resolution {
            Resolution::Found(name, addresses) => {
                for address in addresses {
                    console.line(format!("Name:\t{name}\nAddress: {address}"));
                }
                0
            }
            Resolution::NoSuchName => {
                console.line(format!("** server can't find {}: NXDOMAIN", self.name));
                1
            }
            Resolution::NoServer => {
                console.line(";; connection timed out; no servers could be reached");
                1
            }
        };
        console.exit(code);
    }
}
