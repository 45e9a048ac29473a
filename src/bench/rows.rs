//! The rows: which packets go round, at how many flows, through how full a node.
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
use flatnet_engine::tunnel::Encapsulation;
use flatnet_engine::worker::Stages;
use flatnet_proxy::Protocol;

use super::BenchError;
use super::addresses::{pod_address, service_address};
use super::home::Load;
use super::lab::{BUFFERS, Lab, PODS, Round, Scale, Waiting};
use super::packet::{Entrance, Packet, VNI};

/// Flows that live at once in the row of new ones, where nobody asks for another number.
const LIVE: u32 = 1 << 20;
/// The same in rows that are not about their number.
const FEW_LIVE: u32 = 1 << 16;
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
    /// As service, with 10 and with 100,000 Services, and their first packets
    ScaleServices,
    /// As encapsulate, with 10 and with 10,000 leases, and their first packets
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
    /// Whose packets they are.
    pub protocol: Protocol,
    /// Whether every frame is a new flow; `flows` live at once then.
    pub new: bool,
    /// How packets are carried between nodes.
    pub encapsulation: Encapsulation,
    /// Buffers in rotation: frames of a home in a round. With fewer than [`BUFFERS`] caches hold what they would not.
    pub buffers: u32,
}

impl Case {
    /// Returns the longest frame at a pod that fits the tunnel, bytes.
    #[must_use]
    pub const fn longest(&self) -> usize {
        LONG - self.encapsulation.between()
    }
}

/// A case of a node with as much as a real one has.
const fn case(row: Row, name: &'static str, flows: u32) -> Case {
    Case {
        row,
        name,
        workers: 1,
        flows,
        frame_bytes: 64,
        nodes: 100,
        services: 1000,
        protocol: Protocol::Udp,
        new: false,
        encapsulation: Encapsulation::Udp,
        buffers: BUFFERS as u32,
    }
}

/// The frame of a packet of 1,472 bytes: all that fits udp's tunnel on a node network of 1,500.
const LONG: usize = 1486;
const VXLAN: Encapsulation = Encapsulation::Vxlan { vni: VNI };

/// All cases, in the order in which they run.
pub const CASES: &[Case] = &[
    case(Row::Bridge, "bridge", 1_000),
    case(Row::Encapsulate, "encapsulate", 1_000),
    Case { frame_bytes: LONG, ..case(Row::Encapsulate, "encapsulate", 1_000) },
    case(Row::Decapsulate, "decapsulate", 1_000),
    Case { frame_bytes: LONG, ..case(Row::Decapsulate, "decapsulate", 1_000) },
    Case { encapsulation: VXLAN, ..case(Row::Encapsulate, "encapsulate/vxlan", 1_000) },
    Case { encapsulation: VXLAN, ..case(Row::Decapsulate, "decapsulate/vxlan", 1_000) },
    case(Row::Masquerade, "masquerade", 1_000),
    case(Row::Masquerade, "masquerade", 100_000),
    Case { protocol: Protocol::Tcp, ..case(Row::Masquerade, "masquerade/tcp", 1_000) },
    case(Row::Service, "service", 1_000),
    case(Row::Service, "service", 100_000),
    case(Row::Service, "service", 1_000_000),
    Case { protocol: Protocol::Tcp, ..case(Row::Service, "service/tcp", 1_000) },
    Case { new: true, ..case(Row::NewFlows, "new-flows", LIVE) },
    Case { services: 100_000, ..case(Row::ServiceChange, "service-change", 100_000) },
    Case { services: 10, ..case(Row::ScaleServices, "scale-services/10", 1_000) },
    Case { services: 100_000, ..case(Row::ScaleServices, "scale-services/100000", 1_000) },
    Case { services: 10, new: true, ..case(Row::ScaleServices, "scale-services/new/10", FEW_LIVE) },
    Case { services: 100_000, new: true, ..case(Row::ScaleServices, "scale-services/new/100000", FEW_LIVE) },
    Case { nodes: 10, ..case(Row::ScaleRoutes, "scale-routes/10", 1_000) },
    Case { nodes: 10_000, ..case(Row::ScaleRoutes, "scale-routes/10000", 1_000) },
    Case { nodes: 10, new: true, ..case(Row::ScaleRoutes, "scale-routes/new/10", FEW_LIVE) },
    Case { nodes: 10_000, new: true, ..case(Row::ScaleRoutes, "scale-routes/new/10000", FEW_LIVE) },
    case(Row::IdleLatency, "idle-latency", 1_000),
];

/// A case at work.
#[derive(Debug)]
pub struct Traffic {
    lab: Lab,
    /// What goes round, home by home; empty where every frame is a new flow.
    packets: Vec<Vec<Packet>>,
    case: Case,
    /// Flows of a home that have begun, where every frame is a new one.
    begun: u32,
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
        let Case { row, workers, flows, frame_bytes, nodes, services, protocol, new, encapsulation, .. } =
            *case;
        // Of flows that come and go, some that have ended are still there; else there are a few for the node's own.
        let bindings = if new { flows as usize * 2 } else { flows as usize + 1024 };
        let scale =
            Scale { workers, nodes, services, protocol, endpoints: 250, flows, bindings, encapsulation };
        let mut lab = Lab::new(scale, Load { frames: case.buffers as usize, frame_bytes })?;
        let homes = u32::from(workers);
        let mut packets = Vec::new();
        for home in 0..homes {
            let all = 0..flows;
            let to_node = |flow| to_node(home, flow, homes..nodes);
            let of_home = match row {
                _ if new => Vec::new(),
                Row::Bridge | Row::IdleLatency => all.map(|flow| bridged(home, flow)).collect(),
                Row::Encapsulate | Row::ScaleRoutes => all.map(to_node).collect(),
                Row::Decapsulate => all.map(|flow| to_node(flow).from_there(encapsulation)).collect(),
                Row::Masquerade | Row::Service | Row::NewFlows | Row::ServiceChange | Row::ScaleServices => {
                    both_ways(&mut lab, all.map(|flow| first(case, home, flow)).collect())?
                }
            };
            // As many as a round has, so that every queue is as long as it will be.
            let all = of_home.iter().cycle().take(of_home.len().max(BUFFERS));
            lab.exchange(&all.copied().collect::<Vec<_>>())?;
            packets.push(of_home);
        }
        // Of every client and Service, so that what is kept of each is there, and a round's, for the queues.
        let kept = if row == Row::ScaleServices { services.max(BUFFERS as u32) } else { BUFFERS as u32 };
        let (kept, mut begun) = (if new { kept } else { 0 }, 0);
        while begun < kept {
            let some = begun..kept.min(begun + BUFFERS as u32);
            lab.pass(UNANSWERED * some.len() as u32 / flows);
            for home in 0..homes {
                lab.exchange(&some.clone().map(|flow| first(case, home, flow)).collect::<Vec<_>>())?;
            }
            begun = some.end;
        }
        let random = Random::new(7);
        let picks = (0..homes).map(|home| random.fork(u64::from(home))).collect();
        Ok(Self { lab, packets, case: *case, begun, changes: 0, random, picks })
    }

    /// Comes to the steady state where every frame is a new flow: bindings end as fast as they begin, and the cache is full of
    /// flows that have ended.
    ///
    /// # Errors
    /// [`BenchError::Lost`].
    pub fn settle(&mut self) -> Result<(), BenchError> {
        let rounds = if self.case.new { 6 * self.case.flows / self.case.buffers } else { 0 };
        self.rounds(rounds).map(drop)
    }

    /// Has time stand still but for what a round lets pass: each run does the same.
    pub fn stop_clock(&mut self) {
        self.lab.stop_clock();
        self.lab.pass(STREAM_AGE);
    }

    /// Sends rounds through the workers.
    ///
    /// # Errors
    /// [`BenchError::Lost`].
    pub fn rounds(&mut self, count: u32) -> Result<Vec<Round>, BenchError> {
        let Self { lab, packets, case, begun, picks, .. } = self;
        if !case.new {
            return lab.rounds(count, Duration::ZERO, picked(packets, picks));
        }
        let (case, start, frames) = (&*case, *begun, case.buffers);
        *begun = start.wrapping_add(count * frames);
        let of_home = |home| {
            let mut flows = start..;
            move || first(case, home, flows.next().unwrap_or_default())
        };
        // As many begin as end.
        let gap = UNANSWERED * frames / case.flows;
        lab.rounds(count, gap, (0..packets.len() as u32).map(of_home).collect())
    }

    /// Sends so many rounds through the workers and returns what the stages of their batches took.
    ///
    /// # Errors
    /// [`BenchError::Lost`].
    pub fn stages(&mut self, rounds: u32) -> Result<Stages, BenchError> {
        self.lab.time_stages();
        self.rounds(rounds)?;
        Ok(self.lab.take_stages())
    }

    /// Sends a round through the workers while a Service changes; returns also how long it took until all of them worked by
    /// the change.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn round_with_change(&mut self) -> Result<(Round, Duration), BenchError> {
        let Self { lab, packets, random, picks, case, changes, .. } = self;
        let service = random.below(case.services as usize) as u32;
        *changes += 1;
        let version = *changes;
        lab.round_with_change(picked(packets, picks), service, version)
    }

    /// Sends so many frames one by one; returns what each took.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn one_by_one(&mut self, frames: usize, waiting: Waiting) -> Result<Vec<Duration>, BenchError> {
        let Self { lab, packets, random, .. } = self;
        let flows = packets.first().map_or(0, Vec::len);
        let some = (0..frames).map(|_| packets[0][random.below(flows)]);
        lab.one_by_one(some, waiting)
    }
}

/// Picks packets at random, each home's from its own.
fn picked<'a>(
    packets: &'a [Vec<Packet>],
    picks: &'a mut [Random],
) -> Vec<impl FnMut() -> Packet + Send + 'a> {
    let homes = packets.iter().zip(picks);
    homes.map(|(all, random)| move || all[random.below(all.len())]).collect()
}

/// Sends the first packet of each flow and returns all of them and their answers, as they are once all are established.
fn both_ways(lab: &mut Lab, mut packets: Vec<Packet>) -> Result<Vec<Packet>, BenchError> {
    let seen = lab.exchange(&packets)?;
    let answers: Vec<_> = seen.into_iter().map(Packet::answer).collect();
    lab.exchange(&answers)?;
    packets.extend(answers);
    Ok(packets.into_iter().map(Packet::established).collect())
}

/// A pod and a port of its own for a flow.
fn client(flow: u32) -> (u32, u16) {
    (flow % PODS, FIRST_PORT + (flow / PODS % PORTS) as u16)
}

/// The first packet of a flow from a pod of a home.
fn from_pod(
    (home, flow): (u32, u32),
    protocol: Protocol,
    destination: impl FnOnce(u32) -> (Ipv4Addr, u16),
) -> Packet {
    let (pod, port) = client(flow);
    Packet::new(Entrance::Pod(pod), protocol, (pod_address(home, pod), port), destination(pod))
}

fn bridged(home: u32, flow: u32) -> Packet {
    let other = |pod| (pod + 1 + flow / PODS % (PODS - 1)) % PODS;
    from_pod((home, flow), Protocol::Udp, |pod| (pod_address(home, other(pod)), 7))
}

fn to_node(home: u32, flow: u32, others: Range<u32>) -> Packet {
    let node = others.start + flow % others.len() as u32;
    from_pod((home, flow), Protocol::Udp, |_| (pod_address(node, flow % 50), 7))
}

/// To one of many machines outside: a pod's ports begin again with the next machine.
fn outward(case: &Case, home: u32, flow: u32) -> Packet {
    let machine = Ipv4Addr::new(198, 18, 0, 1).to_bits() + flow / PODS / PORTS % 64 * 256 + flow % 251;
    from_pod((home, flow), case.protocol, |_| (Ipv4Addr::from_bits(machine), 53))
}

fn to_service(case: &Case, home: u32, flow: u32) -> Packet {
    // A prime: all Services are asked, whatever their number.
    let service = flow.wrapping_mul(7919) % case.services;
    from_pod((home, flow), case.protocol, |_| (service_address(service), 80))
}

/// The first packet of a flow that a case has decided anew, or translated.
fn first(case: &Case, home: u32, flow: u32) -> Packet {
    if case.row == Row::ScaleRoutes {
        to_node(home, flow, u32::from(case.workers)..case.nodes)
    } else if matches!(case.row, Row::Masquerade | Row::NewFlows) {
        outward(case, home, flow)
    } else {
        to_service(case, home, flow)
    }
}

#[cfg(test)]
mod tests;
