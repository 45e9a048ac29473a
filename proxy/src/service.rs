//! The plain data of a Service.
//!
//! Made by the agents from Kubernetes objects, kept in [`crate::table`], read by the engine for the first packet of a
//! flow. Nothing here acts.
//!
//! Invariants: `Service::id` is dense and unique in a table, so that workers index arrays by it; a backend is a pod by
//! its identity, because an address may come back with another pod.
//!
//! May depend on `std` only.
//!
//! Read first: the Service kinds ClusterIP and NodePort of Kubernetes.

use std::{fmt, net::Ipv4Addr, sync::Arc};

/// A transport that a Service can balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, protocol 6.
    Tcp,
    /// UDP, protocol 17.
    Udp,
}

impl Protocol {
    /// Both protocols, in the order in which they are printed.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// Gives the number in the protocol field of the IPv4 header (RFC 791).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Reads the protocol field of an IPv4 header; `None` for anything but TCP and UDP.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A Service's address in the service network: the key under which a VIP's port is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// The VIP.
    pub address: Ipv4Addr,
    /// The Service's port, host byte order.
    pub port: u16,
    /// The transport.
    pub protocol: Protocol,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}:{}", self.protocol, self.address, self.port)
    }
}

/// A port that leads to a Service on every address of every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodePort {
    /// The port, host byte order; 30000 to 32767 unless an operator chose otherwise.
    pub port: u16,
    /// The transport.
    pub protocol: Protocol,
}

impl fmt::Display for NodePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} *:{}", self.protocol, self.port)
    }
}

/// One ready pod behind a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The pod's port, host byte order.
    pub port: u16,
    /// The pod itself: a flow belongs to this pod and ends with it, also when its address comes back with another.
    pub identity: u64,
}

/// How a Service chooses the backend of a new flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scheduler {
    /// One after the other, per worker.
    #[default]
    RoundRobin,
    /// Each with the same probability.
    Random,
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::RoundRobin => "rr",
            Self::Random => "random",
        })
    }
}

/// One port of a Kubernetes Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// A small number, unique in a table and reused after removal, that indexes per-worker arrays.
    pub id: u32,
    /// `namespace/name:port`, where port is the port's name, or its number if it has none.
    pub name: Arc<str>,
    /// How backends are chosen.
    pub scheduler: Scheduler,
    /// The ready pods, in the order in which round-robin visits them.
    pub backends: Arc<[Backend]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_numbers_are_those_of_ipv4() {
        for number in 0..=255 {
            assert!(Protocol::from_number(number).is_none_or(|protocol| protocol.number() == number));
        }
        assert!(
            Protocol::ALL.iter().all(|&protocol| Protocol::from_number(protocol.number()) == Some(protocol))
        );
    }

    #[test]
    fn keys_print_as_people_write_them() {
        let frontend = Frontend { address: [10, 96, 0, 10].into(), port: 80, protocol: Protocol::Tcp };
        assert_eq!(frontend.to_string(), "TCP 10.96.0.10:80");
        assert_eq!(NodePort { port: 30007, protocol: Protocol::Udp }.to_string(), "UDP *:30007");
    }
}
