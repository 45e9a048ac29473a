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

use std::{fmt, net::Ipv4Addr, sync::Arc, time::Duration};

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

/// One pod behind a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The pod's port, host byte order.
    pub port: u16,
    /// The pod itself: a flow belongs to this pod and ends with it, also when its address comes back with another.
    pub identity: u64,
    /// The node it runs on, by name, for traffic policies; none when nobody said so.
    pub node: Option<Arc<str>>,
    /// Its share of new flows against the others'; 0 is quiesced: it keeps its flows and its clients with session affinity,
    /// and gets no others.
    pub weight: u16,
    /// Whether it is about to end: it gets new flows only where no other backend is left.
    pub terminating: bool,
}

impl Backend {
    /// Makes a backend of weight 1 on no known node.
    pub const fn new(address: Ipv4Addr, port: u16, identity: u64) -> Self {
        Self { address, port, identity, node: None, weight: 1, terminating: false }
    }

    /// Gives what stays while it is the same pod's port, whatever else changes about it.
    pub const fn key(&self) -> (u64, Ipv4Addr, u16) {
        (self.identity, self.address, self.port)
    }
}

/// Makes an enum whose values people write by name: in annotations, and as `ipvsadm -Ln` prints them.
macro_rules! named {
    ($(#[$about:meta])* $kind:ident; $($(#[$doc:meta])* $value:ident $name:literal,)*) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub enum $kind {
            $($(#[$doc])* $value,)*
        }

        impl $kind {
            /// Every value, in the order in which they are listed for people.
            pub const ALL: &'static [Self] = &[$(Self::$value,)*];

            /// Gives the name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$value => $name,)* }
            }

            /// Finds the value with a name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.name() == name)
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

named! {
    /// How a Service chooses the backend of a new flow; [`crate::schedule`] says what each does.
    Scheduler;
    /// Each with the same probability.
    Random "random",
    /// One after the other, per worker.
    #[default]
    RoundRobin "rr",
    /// One after the other, each as often as its weight says.
    WeightedRoundRobin "wrr",
    /// The one with the fewest connections.
    LeastConnection "lc",
    /// The one with the fewest connections for its weight.
    WeightedLeastConnection "wlc",
    /// By the client's address.
    SourceHash "sh",
    /// By the address that the client asked for.
    DestinationHash "dh",
    /// By the client's address, so that a change moves few others (Maglev).
    Maglev "mh",
}

named! {
    /// How a packet gets to the chosen backend: LVS's three ways.
    Forwarding;
    /// Its destination is translated, and the answer's source back.
    #[default]
    Nat "nat",
    /// It keeps its addresses and goes to the backend's MAC; the backend has the VIP and answers by itself.
    DirectRouting "dr",
    /// It is put into a packet to the backend (RFC 2003), which has the VIP and answers by itself.
    Tunnel "tun",
}

named! {
    /// Which backends a node may send flows to: Kubernetes' traffic policies.
    TrafficPolicy;
    /// Those of all nodes.
    #[default]
    Cluster "Cluster",
    /// Those on the node itself.
    Local "Local",
}

/// One port of a Kubernetes Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// A small number, unique in a table and reused after removal, that indexes per-worker arrays.
    pub id: u32,
    /// `namespace/name:port`, where port is the port's name, or its number if it has none.
    pub name: Arc<str>,
    /// How backends are chosen.
    pub scheduler: Scheduler,
    /// How packets get to them.
    pub forwarding: Forwarding,
    /// How long after a client's last new flow its next one goes to the same backend; none without session affinity.
    pub affinity: Option<Duration>,
    /// Which backends flows from outside to a NodePort may get.
    pub external: TrafficPolicy,
    /// Which backends flows to the VIP may get.
    pub internal: TrafficPolicy,
    /// The pods, in the order in which round-robin visits them.
    pub backends: Arc<[Backend]>,
    /// Where each backend's connections are counted; empty unless the scheduler asks. Given by whoever publishes.
    pub counters: Arc<[u32]>,
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

    #[test]
    fn what_has_a_name_is_found_by_it() {
        for &scheduler in Scheduler::ALL {
            assert_eq!(Scheduler::from_name(scheduler.name()), Some(scheduler));
        }
        assert_eq!(Scheduler::from_name("RR"), None);
        assert_eq!(Forwarding::from_name("tun"), Some(Forwarding::Tunnel));
        assert_eq!(TrafficPolicy::from_name("Local"), Some(TrafficPolicy::Local));
    }
}
