//! The rows: which datagrams go round, at how many flows, through how full a node.
//!
//! Invariants: flows of a round are picked at random; where a row has two directions, each has half of the frames; what
//! answers a translated flow is what really came out of eth0, turned round; no home has a flow with another one.
//!
//! May depend on `lab`. Read first: `lab.rs`.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::Duration;

use clap::ValueEnum;
use flatnet_engine::random::Random;
use flatnet_engine::worker::Stages;

use super::BenchError;
use super::addresses::{pod_address, service_address};
use super::datagram::{Datagram, Entrance};
use super::lab::{BUFFERS, Lab, PODS, Round, Scale, Waiting};

/// Flows that live at once in the row of new ones, where nobody asks for another number.
const LIVE: u32 = 1 << 20;
/// How long an unanswered UDP flow lives, as conntrack has it.
const UNANSWERED: Duration = Duration::from_secs(30);
/// After which time UDP flows are long known, as conntrack has it: their packets renew them and change nothing else.
const STREAM_AGE: Duration = Duration::from_secs(3);
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
    /// As service, while Services change: 100 a second of 100,000
    ServiceChange,
    /// As service, with 10 and with 100,000 Services
    ScaleServices,
    /// As encapsulate, with 10 and with 10,000 leases
    ScaleRoutes,
    /// One frame at a time between two pods, its worker on a thread of its own
    IdleLatency,
}

/// A row at one size.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The row.
    pub row: Row,
    /// How it is called where a row has several: behind a slash.
    pub name: &'static str,
    /// Workers, each with a node of its own.
    pub workers: u8,
    /// Flows of each.
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
    Case { row, name, workers: 1, flows, frame_bytes: 64, nodes: 100, services: 1000 }
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
    Case { services: 100_000, ..case(Row::ServiceChange, "service-change", 100_000) },
    Case { services: 10, ..case(Row::ScaleServices, "scale-services/10", 1_000) },
    Case { services: 100_000, ..case(Row::ScaleServices, "scale-services/100000", 1_000) },
    Case { nodes: 10, ..case(Row::ScaleRoutes, "scale-routes/10", 1_000) },
    Case { nodes: 10_000, ..case(Row::ScaleRoutes, "scale-routes/10000", 1_000) },
    case(Row::IdleLatency, "idle-latency", 1_000),
];

/// A case at work.
#[derive(Debug)]
pub struct Traffic {
    lab: Lab,
    /// What goes round, home by home; empty where every frame is a new flow.
    datagrams: Vec<Vec<Datagram>>,
    /// Flows of a home that live at once, where every frame is a new one.
    live: u32,
    /// Flows of a home that have begun.
    begun: u32,
    services: u32,
    /// Services changed.
    changes: u32,
    /// Which Service changes, and which frame goes alone.
    random: Random,
    /// Which flow's turn it is, of each home.
    picks: Vec<Random>,
}

impl Traffic {
    /// Makes nodes and their flows, each known to its node already.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn new(case: &Case) -> Result<Self, BenchError> {
        let Case { row, workers, flows, frame_bytes, nodes, services, .. } = *case;
        // Of flows that come and go, some that have ended are still there; else there are a few for the node's own.
        let bindings = if row == Row::NewFlows { flows as usize * 2 } else { flows as usize + 1024 };
        let scale = Scale { workers, nodes, services, endpoints: 250, flows, bindings };
        let mut lab = Lab::new(scale, frame_bytes)?;
        let homes = u32::from(workers);
        let mut datagrams = Vec::new();
        for home in 0..homes {
            let all = 0..flows;
            let to_node = |flow| to_node(home, flow, homes..nodes);
            let of_home = match row {
                Row::Bridge | Row::IdleLatency => all.map(|flow| bridged(home, flow)).collect(),
                Row::Encapsulate | Row::ScaleRoutes => all.map(to_node).collect(),
                Row::Decapsulate => all.map(|flow| to_node(flow).from_there()).collect(),
                Row::Masquerade => both_ways(&mut lab, all.map(|flow| outward(home, flow)).collect())?,
                Row::Service | Row::ServiceChange | Row::ScaleServices => {
                    both_ways(&mut lab, all.map(|flow| to_service(home, flow, services)).collect())?
                }
                Row::NewFlows => Vec::new(),
            };
            lab.exchange(&of_home)?;
            datagrams.push(of_home);
        }
        let begun = if row == Row::NewFlows { PODS } else { 0 };
        for home in 0..homes {
            // Of every client, so that what is kept of each is there.
            lab.exchange(&(0..begun).map(|flow| outward(home, flow)).collect::<Vec<_>>())?;
        }
        let random = Random::new(7);
        let picks = (0..homes).map(|home| random.fork(u64::from(home))).collect();
        Ok(Self { lab, datagrams, live: flows, begun, services, changes: 0, random, picks })
    }

    /// Has time stand still but for what a round lets pass: each run does the same.
    pub fn stop_clock(&mut self) {
        self.lab.stop_clock();
        self.lab.pass(STREAM_AGE);
    }

    /// Sends a round through the workers.
    ///
    /// # Errors
    /// [`BenchError::Lost`].
    pub fn round(&mut self) -> Result<Round, BenchError> {
        let Self { lab, datagrams, live, begun, picks, .. } = self;
        if datagrams.iter().all(Vec::is_empty) {
            let first = *begun;
            *begun = begun.wrapping_add(BUFFERS as u32);
            // As many begin as end.
            lab.pass(UNANSWERED * BUFFERS as u32 / *live);
            let of_home = |home| (first..).take(BUFFERS).map(move |flow| outward(home, flow));
            return lab.round((0..datagrams.len() as u32).map(of_home).collect());
        }
        lab.round(picked(datagrams, picks))
    }

    /// Sends so many rounds through the workers and returns what the stages of their batches took.
    ///
    /// # Errors
    /// [`BenchError::Lost`].
    pub fn stages(&mut self, rounds: usize) -> Result<Stages, BenchError> {
        self.lab.time_stages();
        (0..rounds).try_for_each(|_| self.round().map(drop))?;
        Ok(self.lab.take_stages())
    }

    /// Sends a round through the workers while a Service changes; returns also how long it took until all of them worked by
    /// the change.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn round_with_change(&mut self) -> Result<(Round, Duration), BenchError> {
        let Self { lab, datagrams, random, picks, services, changes, .. } = self;
        let service = random.below(*services as usize) as u32;
        *changes += 1;
        let version = *changes;
        lab.round_with_change(picked(datagrams, picks), service, version)
    }

    /// Sends so many frames one by one; returns what each took.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn one_by_one(&mut self, frames: usize, waiting: Waiting) -> Result<Vec<Duration>, BenchError> {
        let Self { lab, datagrams, random, .. } = self;
        let flows = datagrams.first().map_or(0, Vec::len);
        let some = (0..frames).map(|_| datagrams[0][random.below(flows)]);
        lab.one_by_one(some, waiting)
    }
}

/// Picks a round's datagrams at random, as many of each home.
fn picked<'a>(
    datagrams: &'a [Vec<Datagram>],
    picks: &'a mut [Random],
) -> Vec<impl Iterator<Item = Datagram> + Send> {
    let homes = datagrams.iter().zip(picks);
    homes.map(|(all, random)| (0..BUFFERS).map(|_| all[random.below(all.len())])).collect()
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

fn bridged(home: u32, flow: u32) -> Datagram {
    let (pod, port) = client(flow);
    let other = (pod + 1 + flow / PODS % (PODS - 1)) % PODS;
    Datagram::new(Entrance::Pod(pod), pod_address(home, pod), port, pod_address(home, other), 7)
}

fn to_node(home: u32, flow: u32, others: Range<u32>) -> Datagram {
    let ((pod, port), node) = (client(flow), others.start + flow % others.len() as u32);
    Datagram::new(Entrance::Pod(pod), pod_address(home, pod), port, pod_address(node, flow % 50), 7)
}

/// To one of many machines outside: a pod's ports begin again with the next machine.
fn outward(home: u32, flow: u32) -> Datagram {
    let (pod, port) = client(flow);
    let machine = Ipv4Addr::new(198, 18, 0, 1).to_bits() + flow / PODS / PORTS % 64 * 256 + flow % 251;
    Datagram::new(Entrance::Pod(pod), pod_address(home, pod), port, Ipv4Addr::from_bits(machine), 53)
}

fn to_service(home: u32, flow: u32, services: u32) -> Datagram {
    let (pod, port) = client(flow);
    // Coprime to the pods: every pod asks every Service.
    let service = flow.wrapping_mul(7919) % services;
    Datagram::new(Entrance::Pod(pod), pod_address(home, pod), port, service_address(service), 80)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A round fails when a frame is lost, so that this is the rows' test of themselves.
    #[test]
    fn every_row_forwards_all_that_it_sends() {
        for (case, workers) in CASES.iter().flat_map(|case| [(case, 1), (case, 2)]) {
            let small = Case { workers, flows: 500, nodes: 10, services: 20, ..*case };
            let mut traffic = Traffic::new(&small).unwrap();
            for _ in 0..3 {
                traffic.round().unwrap();
            }
            let directions = match case.row {
                Row::Masquerade | Row::Service | Row::ServiceChange | Row::ScaleServices => 2,
                Row::Bridge | Row::Encapsulate | Row::Decapsulate | Row::ScaleRoutes | Row::IdleLatency => 1,
                Row::NewFlows => 0,
            };
            let flows: Vec<_> = traffic.datagrams.iter().map(Vec::len).collect();
            assert_eq!(flows, vec![500 * directions; usize::from(workers)], "{}", case.name);
        }
    }

    #[test]
    fn one_flow_is_enough_for_a_row() {
        for case in CASES.iter().filter(|case| case.row != Row::NewFlows) {
            let mut traffic = Traffic::new(&Case { flows: 1, nodes: 10, services: 20, ..*case }).unwrap();
            traffic.round().unwrap();
        }
    }

    #[test]
    fn services_change_under_traffic_and_no_frame_is_lost() {
        let case =
            Case { flows: 500, nodes: 10, services: 5, ..case(Row::ServiceChange, "service-change", 0) };
        let mut traffic = Traffic::new(&case).unwrap();
        for _ in 0..20 {
            traffic.round_with_change().unwrap();
            traffic.round().unwrap();
        }
    }

    #[test]
    fn frames_pass_one_by_one_whether_the_worker_is_awake_or_not() {
        let mut traffic = Traffic::new(&case(Row::IdleLatency, "idle-latency", 100)).unwrap();
        for waiting in [Waiting::Spinning, Waiting::Sleeping] {
            assert_eq!(traffic.one_by_one(10, waiting).unwrap().len(), 10);
        }
    }

    #[test]
    fn no_two_flows_of_a_row_are_one() {
        let rows: [&dyn Fn(u32) -> Datagram; 5] = [
            &|flow| bridged(0, flow),
            &|flow| to_node(1, flow, 2..100),
            &|flow| to_node(0, flow, 1..100).from_there(),
            &|flow| outward(0, flow),
            &|flow| to_service(0, flow, 1000),
        ];
        for row in rows {
            let mut tuples: Vec<_> = (0..100_000).map(|flow| row(flow).tuple).collect();
            tuples.sort_unstable();
            tuples.dedup();
            assert_eq!(tuples.len(), 100_000);
        }
    }
}
