//! The rows: which datagrams go round, at how many flows, through how full a node.
//!
//! Invariants: flows of a round are picked at random; where a row has two directions, each has half of the frames; what
//! answers a translated flow is what really came out of eth0, turned round.
//!
//! May depend on `lab`. Read first: `lab.rs`.

use std::net::Ipv4Addr;
use std::time::Duration;

use clap::ValueEnum;
use flatnet_engine::random::Random;

use super::BenchError;
use super::datagram::{Datagram, Entrance};
use super::lab::{BUFFERS, Lab, PODS, Round, Scale, pod_address, service_address};

/// Flows that live at once in the row of new ones, where nobody asks for another number.
const LIVE: u32 = 1 << 20;
/// How long an unanswered UDP flow lives, as conntrack has it.
const UNANSWERED: Duration = Duration::from_secs(30);
/// Source ports of a pod.
const PORTS: u32 = 60_000;
/// The first of them.
const FIRST_PORT: u16 = 1024;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// Pod to pod on docker0
    Bridge,
    /// Pod to a pod of another node, into the tunnel
    Encapsulate,
    /// Out of the tunnel to a pod, checked against the leases
    Decapsulate,
    /// Pod to the outside by MASQUERADE, and the answer
    Masquerade,
    /// Pod to a Service with its pods on other nodes, and the answer
    Service,
    /// Pod to the outside, every frame a new flow, a million alive
    NewFlows,
    /// As service, with 10 and with 100,000 Services
    ScaleServices,
    /// As encapsulate, with 10 and with 10,000 leases
    ScaleRoutes,
}

/// A row at one size.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The row.
    pub row: Row,
    /// How it is called where a row has several: behind a slash.
    pub name: &'static str,
    /// Flows.
    pub flows: u32,
    /// Bytes of a frame at a pod, from its Ethernet header on.
    pub frame_bytes: usize,
    /// Nodes with a lease.
    pub nodes: u32,
    /// Services.
    pub services: u32,
}

/// A case of a node with as much as a real one has.
const fn case(row: Row, name: &'static str, flows: u32) -> Case {
    Case { row, name, flows, frame_bytes: 64, nodes: 100, services: 1000 }
}

/// The frame of a packet of 1,472 bytes: all that fits the tunnel of a node network of 1,500.
const LONG: usize = 1486;

/// All cases, in the order in which they run.
pub const CASES: &[Case] = &[
    case(Row::Bridge, "bridge", 1_000),
    case(Row::Encapsulate, "encapsulate", 1_000),
    Case { frame_bytes: LONG, ..case(Row::Encapsulate, "encapsulate", 1_000) },
    case(Row::Decapsulate, "decapsulate", 1_000),
    Case { frame_bytes: LONG, ..case(Row::Decapsulate, "decapsulate", 1_000) },
    case(Row::Masquerade, "masquerade", 1_000),
    case(Row::Masquerade, "masquerade", 100_000),
    case(Row::Service, "service", 1_000),
    case(Row::Service, "service", 100_000),
    case(Row::Service, "service", 1_000_000),
    case(Row::NewFlows, "new-flows", LIVE),
    Case { services: 10, ..case(Row::ScaleServices, "scale-services/10", 1_000) },
    Case { services: 100_000, ..case(Row::ScaleServices, "scale-services/100000", 1_000) },
    Case { nodes: 10, ..case(Row::ScaleRoutes, "scale-routes/10", 1_000) },
    Case { nodes: 10_000, ..case(Row::ScaleRoutes, "scale-routes/10000", 1_000) },
];

/// A case at work.
#[derive(Debug)]
pub struct Traffic {
    lab: Lab,
    /// What goes round; empty where every frame is a new flow.
    datagrams: Vec<Datagram>,
    /// Flows that live at once, where every frame is a new one.
    live: u32,
    /// Flows begun.
    begun: u32,
    random: Random,
}

impl Traffic {
    /// Makes a node and its flows, each known to the node already.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn new(case: &Case) -> Result<Self, BenchError> {
        let Case { row, flows, frame_bytes, nodes, services, .. } = *case;
        let mut lab = Lab::new(Scale { nodes, services, endpoints: 250, flows }, frame_bytes)?;
        let all = 0..flows;
        let datagrams = match row {
            Row::Bridge => all.map(bridged).collect(),
            Row::Encapsulate | Row::ScaleRoutes => all.map(|flow| to_node(flow, nodes)).collect(),
            Row::Decapsulate => all.map(|flow| from_node(flow, nodes)).collect(),
            Row::Masquerade => both_ways(&mut lab, all.map(outward).collect())?,
            Row::Service | Row::ScaleServices => {
                both_ways(&mut lab, all.map(|flow| to_service(flow, services)).collect())?
            }
            Row::NewFlows => Vec::new(),
        };
        lab.exchange(&datagrams)?;
        // Of every client, so that what is kept of each is there.
        let begun = if datagrams.is_empty() { PODS } else { 0 };
        lab.exchange(&(0..begun).map(outward).collect::<Vec<_>>())?;
        Ok(Self { lab, datagrams, live: flows, begun, random: Random::new(7) })
    }

    /// Has time stand still but for what a round lets pass: each run does the same.
    pub fn stop_clock(&mut self) {
        self.lab.stop_clock();
    }

    /// Sends a round through the worker.
    ///
    /// # Errors
    /// [`BenchError::Lost`].
    pub fn round(&mut self) -> Result<Round, BenchError> {
        let Self { lab, datagrams, live, begun, random } = self;
        if datagrams.is_empty() {
            let first = *begun;
            *begun = begun.wrapping_add(BUFFERS as u32);
            // As many begin as end.
            lab.pass(UNANSWERED * BUFFERS as u32 / *live);
            return lab.round((first..).take(BUFFERS).map(outward));
        }
        lab.round((0..BUFFERS).map(|_| datagrams[random.below(datagrams.len())]))
    }
}

/// Sends the first datagram of each flow and returns all of them and their answers.
fn both_ways(lab: &mut Lab, mut datagrams: Vec<Datagram>) -> Result<Vec<Datagram>, BenchError> {
    let seen = lab.exchange(&datagrams)?;
    datagrams.extend(seen.into_iter().map(Datagram::answer));
    Ok(datagrams)
}

/// A pod and a port of its own for a flow.
fn client(flow: u32) -> (u32, u16) {
    (flow % PODS, FIRST_PORT + (flow / PODS % PORTS) as u16)
}

fn bridged(flow: u32) -> Datagram {
    let (pod, port) = client(flow);
    let other = (pod + 1 + flow / PODS % (PODS - 1)) % PODS;
    Datagram::new(Entrance::Pod(pod), pod_address(0, pod), port, pod_address(0, other), 7)
}

fn to_node(flow: u32, nodes: u32) -> Datagram {
    let ((pod, port), node) = (client(flow), 1 + flow % (nodes - 1));
    Datagram::new(Entrance::Pod(pod), pod_address(0, pod), port, pod_address(node, flow % 50), 7)
}

fn from_node(flow: u32, nodes: u32) -> Datagram {
    let ((pod, port), node) = (client(flow), 1 + flow % (nodes - 1));
    Datagram::new(Entrance::Tunnel(node), pod_address(node, flow % 50), 7, pod_address(0, pod), port)
}

/// To one of many machines outside: a pod's ports begin again with the next machine.
fn outward(flow: u32) -> Datagram {
    let (pod, port) = client(flow);
    let machine = Ipv4Addr::new(198, 18, 0, 1).to_bits() + flow / PODS / PORTS % 64 * 256 + flow % 251;
    Datagram::new(Entrance::Pod(pod), pod_address(0, pod), port, Ipv4Addr::from_bits(machine), 53)
}

fn to_service(flow: u32, services: u32) -> Datagram {
    let (pod, port) = client(flow);
    // Coprime to the pods: every pod asks every Service.
    let service = flow.wrapping_mul(7919) % services;
    Datagram::new(Entrance::Pod(pod), pod_address(0, pod), port, service_address(service), 80)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A round fails when a frame is lost, so that this is the rows' test of themselves.
    #[test]
    fn every_row_forwards_all_that_it_sends() {
        for case in CASES {
            let small = Case { flows: 500, nodes: 10, services: 20, ..*case };
            let mut traffic = Traffic::new(&small).unwrap();
            for _ in 0..3 {
                traffic.round().unwrap();
            }
            let directions = match case.row {
                Row::Masquerade | Row::Service | Row::ScaleServices => 2,
                Row::Bridge | Row::Encapsulate | Row::Decapsulate | Row::ScaleRoutes => 1,
                Row::NewFlows => 0,
            };
            assert_eq!(traffic.datagrams.len(), 500 * directions, "{}", case.name);
        }
    }

    #[test]
    fn no_two_flows_of_a_row_are_one() {
        let nodes = 100;
        let rows: [&dyn Fn(u32) -> Datagram; 5] =
            [&bridged, &|flow| to_node(flow, nodes), &|flow| from_node(flow, nodes), &outward, &|flow| {
                to_service(flow, 1000)
            }];
        for row in rows {
            let mut tuples: Vec<_> = (0..100_000).map(|flow| row(flow).tuple).collect();
            tuples.sort_unstable();
            tuples.dedup();
            assert_eq!(tuples.len(), 100_000);
        }
    }
}
