//! The checks of `flatnet up --check`: every way a packet can take through the network, tried with real packets.
//!
//! [`plan`] finds the ways in a topology, [`run`] sends a probe along each and reads the hops that the engine recorded.
//! Invariant: a hop is what the engine did, never what it should do; a way passes only if its answer came back whole.
//!
//! May depend on [`crate::drive`]. Read first: the path table in `README.md`.
//!
//! Above 400 lines because what a way is and how it is tried are read together.

use std::net::Ipv4Addr;
use std::time::Duration;

use flatnet_agents::objects;
use flatnet_agents::publisher::Place;
use flatnet_agents::services;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::pod::{Image, Probe, ProbeOutcome, ProbeProtocol};
use flatnet_engine::trace::{Action, Event};
use flatnet_proxy::Row;
use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;

use crate::drive::{Drive, DriveError};
use crate::hops::{self, by_mark, reason, take_events, until_drop};
use crate::topology::{Topology, is_simulated};

/// How long a probe waits for its answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// What a probe sends and expects back.
const PAYLOAD: &[u8] = b"flatnet check";
/// The port of the image `flatnet/echo`.
const ECHO_PORT: u16 = 7;

/// One of the ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// Inside one pod, over `lo`.
    InsidePod,
    /// Pod to pod on one node.
    SameNode,
    /// Pod to pod on another node.
    OtherNode,
    /// Pod to Service.
    Service,
    /// Pod to a machine outside the node network.
    Internet,
    /// From outside to a pod, by NodePort.
    NodePort,
}

impl Path {
    /// Returns the way's name as the table has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InsidePod => "inside a pod",
            Self::SameNode => "pod to pod, same node",
            Self::OtherNode => "pod to pod, other node",
            Self::Service => "pod to Service",
            Self::Internet => "pod to internet",
            Self::NodePort => "outside to pod, NodePort",
        }
    }
}

/// One probe to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The way.
    pub path: Path,
    /// TCP, UDP or ICMP echo.
    pub protocol: ProbeProtocol,
    /// Who asks: a pod or host.
    pub from: String,
    /// Whom, for people.
    pub to: String,
    /// The address asked; unspecified when there is none.
    pub destination: Ipv4Addr,
    /// The port asked; 0 for echo.
    pub port: u16,
}

/// One hop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// The node, pod, host, router or network.
    pub node: String,
    /// The point there.
    pub point: String,
    /// What happened.
    pub action: &'static str,
}

/// Whether a way works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The answer came back whole.
    Ok,
    /// It did not.
    Failed,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The way.
    pub path: Path,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: &'static str,
    /// Who asked.
    pub from: String,
    /// Whom.
    pub to: String,
    /// The hops of the last packet that tells: one that arrived, or one that was dropped.
    pub hops: Vec<Hop>,
    /// Time to the whole answer, nanoseconds.
    pub rtt_ns: Option<u64>,
    /// Whether the way works.
    pub verdict: Verdict,
    /// Why the packet was dropped, or what the asking side saw.
    pub drop_reason: Option<String>,
}

/// Finds the ways of a topology: those for which it has somebody to ask.
pub fn plan(topology: &Topology, drive: &Drive) -> Vec<Check> {
    let network = Ways { topology, drive };
    [
        network.inside_pod(),
        network.between(Path::SameNode, true),
        network.between(Path::OtherNode, false),
        network.service(),
        network.internet(),
        network.node_port(),
    ]
    .concat()
}

struct Ways<'a> {
    topology: &'a Topology,
    drive: &'a Drive,
}

impl Ways<'_> {
    fn pods(&self) -> Vec<(String, &Pod)> {
        // What asks is a program of ours: a real pod only answers.
        let simulated = self.topology.pods.iter().filter(|pod| is_simulated(pod));
        let mut pods: Vec<_> = simulated.map(|pod| (pod_name(pod), pod)).collect();
        // A pod that no Service selects asks best: it is never its own backend. One that has ended cannot ask.
        pods.sort_by_key(|(name, pod)| {
            let services = self.topology.services.iter().filter(|it| selects(it, pod)).count();
            (self.address(name).is_none(), services)
        });
        pods
    }

    fn node(&self, pod: &str) -> Option<String> {
        self.drive.network.publisher.place(pod)?.node.as_ref().map(ToString::to_string)
    }

    fn address(&self, name: &str) -> Option<Ipv4Addr> {
        self.drive.network.publisher.place(name).map(|place| place.address)
    }

    fn inside_pod(&self) -> Vec<Check> {
        let echo = self.pods().into_iter().find(|(_, pod)| has_echo(pod));
        let Some((name, pod)) = echo else { return Vec::new() };
        ask(Path::InsidePod, &name, "localhost", Ipv4Addr::LOCALHOST, |protocol| answers(pod, protocol))
    }

    fn between(&self, path: Path, same: bool) -> Vec<Check> {
        let pods = &self.topology.pods;
        let names: Vec<String> = pods.iter().map(pod_name).collect();
        // The last that answers, asked by the last that may ask: in the tour, web-app-2 asks backend.
        for (to, pod) in names.iter().zip(pods).rev() {
            let askers =
                names.iter().zip(pods).rev().filter(|(_, pod)| is_simulated(pod)).map(|(name, _)| name);
            for from in askers.filter(|from| *from != to && has_echo(pod)) {
                let (near, far) = (self.node(from), self.node(to));
                if near.is_some()
                    && far.is_some()
                    && (near == far) == same
                    && let Some(address) = self.address(to)
                {
                    return ask(path, from, to, address, |protocol| answers(pod, protocol));
                }
            }
        }
        Vec::new()
    }

    fn service(&self) -> Vec<Check> {
        let Some((from, _)) = self.pods().into_iter().next() else { return Vec::new() };
        let ports = self.echo_ports();
        let checks = ports.into_iter().filter_map(|(service, port, protocol)| {
            let number = u16::try_from(port.port).ok()?;
            // One that got no address is asked all the same: that it does not answer is to be seen.
            let row = self.row(service, port);
            let address = row.and_then(|row| row.frontends.first().map(|frontend| frontend.address));
            let (to, address) =
                (format!("service {}", objects::name(service)), address.unwrap_or(Ipv4Addr::UNSPECIFIED));
            Some(check(Path::Service, protocol, &from, &to, address, number))
        });
        one_per_protocol(checks)
    }

    fn node_port(&self) -> Vec<Check> {
        let node = self.topology.nodes.first();
        let outsider = self.topology.hosts.iter().find(|host| {
            self.topology.nodes.iter().any(|node| node.interface.network == host.interface.network)
        });
        let (Some(node), Some(outsider)) = (node, outsider) else { return Vec::new() };
        let checks = self.echo_ports().into_iter().filter_map(|(service, port, protocol)| {
            let number = self.row(service, port)?.node_ports.first()?.port;
            Some(check(Path::NodePort, protocol, &outsider.name, &node.name, node.interface.address, number))
        });
        one_per_protocol(checks)
    }

    fn internet(&self) -> Vec<Check> {
        let outside = self.topology.hosts.iter().find(|host| {
            !self.topology.nodes.iter().any(|node| node.interface.network == host.interface.network)
        });
        let asking = self.topology.pods.iter().min_by_key(|pod| self.address(&pod_name(pod)).is_none());
        let (Some(host), Some(pod)) = (outside, asking) else { return Vec::new() };
        // Any host answers ICMP.
        let answers = |protocol| protocol == ProbeProtocol::IcmpEcho || host.image == Image::Echo;
        ask(Path::Internet, &pod_name(pod), &host.name, host.interface.address, answers)
    }

    /// The Service ports behind which an echo server is.
    fn echo_ports(&self) -> Vec<(&Service, &ServicePort, ProbeProtocol)> {
        let services = self.topology.services.iter();
        let ports = services.flat_map(|service| {
            let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
            ports.map(move |port| (service, port))
        });
        ports
            .filter(|(service, port)| {
                let selected: Vec<_> =
                    self.topology.pods.iter().filter(|pod| selects(service, pod)).collect();
                let protocol = protocol(port.protocol.as_deref());
                !selected.is_empty()
                    && selected.iter().all(|pod| answers(pod, protocol) && targets_echo(port, pod))
            })
            .map(|(service, port)| (service, port, protocol(port.protocol.as_deref())))
            .collect()
    }

    /// What became of a Service's port: its addresses and NodePorts as they are, whoever chose them.
    fn row(&self, service: &Service, port: &ServicePort) -> Option<Row> {
        let tables = self.drive.network.publisher.control.tables.current();
        let name = services::port_name(service, port);
        tables.services.list().into_iter().find(|row| *row.service.name == *name).cloned()
    }
}

fn pod_name(pod: &Pod) -> String {
    objects::pod_name(objects::namespace(pod), objects::name(pod))
}

fn selects(service: &Service, pod: &Pod) -> bool {
    objects::namespace(service) == objects::namespace(pod)
        && flatnet_agents::controllers::endpoints::selects(service, pod)
}

/// The containers of a pod that answer at [`ECHO_PORT`]: ports that are listed replace the image's.
fn echoes(pod: &Pod, protocol: ProbeProtocol) -> impl Iterator<Item = &Container> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers.filter(move |container| {
        let ports = container.ports.as_deref().unwrap_or_default();
        let is_it = |port: &ContainerPort| {
            port.container_port == i32::from(ECHO_PORT)
                && self::protocol(port.protocol.as_deref()) == protocol
        };
        container.image.as_deref().and_then(Image::find) == Some(Image::Echo)
            && (ports.is_empty() || ports.iter().any(is_it))
    })
}

/// Tells whether a pod answers; to ICMP any does.
fn answers(pod: &Pod, protocol: ProbeProtocol) -> bool {
    protocol == ProbeProtocol::IcmpEcho || echoes(pod, protocol).next().is_some()
}

fn has_echo(pod: &Pod) -> bool {
    [ProbeProtocol::Tcp, ProbeProtocol::Udp].into_iter().any(|protocol| answers(pod, protocol))
}

fn protocol(name: Option<&str>) -> ProbeProtocol {
    if name == Some("UDP") { ProbeProtocol::Udp } else { ProbeProtocol::Tcp }
}

fn targets_echo(port: &ServicePort, pod: &Pod) -> bool {
    match &port.target_port {
        None => port.port == i32::from(ECHO_PORT),
        Some(IntOrString::Int(number)) => *number == i32::from(ECHO_PORT),
        Some(IntOrString::String(name)) => echoes(pod, protocol(port.protocol.as_deref()))
            .flat_map(|container| container.ports.iter().flatten())
            .any(|port| port.name.as_deref() == Some(name) && port.container_port == i32::from(ECHO_PORT)),
    }
}

fn check(
    path: Path,
    protocol: ProbeProtocol,
    from: &str,
    to: &str,
    destination: Ipv4Addr,
    port: u16,
) -> Check {
    Check { path, protocol, from: from.to_owned(), to: to.to_owned(), destination, port }
}

/// TCP, UDP and ICMP echo, as far as they are answered.
fn ask(
    path: Path,
    from: &str,
    to: &str,
    destination: Ipv4Addr,
    answers: impl Fn(ProbeProtocol) -> bool,
) -> Vec<Check> {
    [(ProbeProtocol::Tcp, ECHO_PORT), (ProbeProtocol::Udp, ECHO_PORT), (ProbeProtocol::IcmpEcho, 0)]
        .into_iter()
        .filter(|&(protocol, _)| answers(protocol))
        .map(|(protocol, port)| check(path, protocol, from, to, destination, port))
        .collect()
}

fn one_per_protocol(checks: impl Iterator<Item = Check>) -> Vec<Check> {
    let mut kept: Vec<Check> = Vec::new();
    for check in checks {
        if !kept.iter().any(|other| other.protocol == check.protocol) {
            kept.push(check);
        }
    }
    kept
}

/// Sends a check's probe and tells what became of it.
///
/// # Errors
/// [`DriveError::Silent`].
pub fn run(drive: &mut Drive, check: &Check) -> Result<Report, DriveError> {
    take_events(drive)?;
    let place = drive.network.publisher.place(&check.from).cloned();
    let outcome = match &place {
        Some(place) if !check.destination.is_unspecified() => probe(drive, check, place)?,
        Some(_) | None => None,
    };
    let events = take_events(drive)?;
    let (hops, dropped) = telling(drive, &events, outcome.is_some_and(|outcome| outcome.result.is_ok()));
    let result = outcome.map(|outcome| outcome.result.map_err(|error| error.to_string()));
    let result = result.unwrap_or_else(|| {
        Err(String::from(match place {
            Some(_) if check.destination.is_unspecified() => "has no address",
            Some(_) => "no outcome",
            None => "not on the network",
        }))
    });
    Ok(Report {
        path: check.path,
        protocol: match check.protocol {
            ProbeProtocol::Tcp => "tcp",
            ProbeProtocol::Udp => "udp",
            ProbeProtocol::IcmpEcho => "icmp",
        },
        from: check.from.clone(),
        to: if check.port == 0 {
            format!("{} ({})", check.to, check.destination)
        } else {
            format!("{} ({}:{})", check.to, check.destination, check.port)
        },
        hops,
        rtt_ns: result.as_ref().ok().map(|rtt| u64::try_from(rtt.as_nanos()).unwrap_or(u64::MAX)),
        verdict: if result.is_ok() { Verdict::Ok } else { Verdict::Failed },
        drop_reason: result.err().map(|seen| dropped.map_or(seen, str::to_owned)),
    })
}

fn probe(drive: &mut Drive, check: &Check, from: &Place) -> Result<Option<ProbeOutcome>, DriveError> {
    let probe = Probe {
        protocol: check.protocol,
        destination: check.destination,
        port: check.port,
        timeout: PROBE_TIMEOUT,
        payload: PAYLOAD.to_vec(),
    };
    let Some(id) = hops::send(drive, from, probe)? else { return Ok(None) };
    let mut failed = None;
    let outcome = drive.wait_for(PROBE_TIMEOUT * 2, |drive| {
        hops::outcome(drive, from, id).unwrap_or_else(|error| {
            failed = Some(error);
            None
        })
    });
    match failed {
        Some(error) if outcome.is_none() => Err(error),
        Some(_) | None => Ok(outcome),
    }
}

/// Names the hops of the frame that tells, and why it was dropped if it was.
fn telling(drive: &Drive, events: &[Event], works: bool) -> (Vec<Hop>, Option<&'static str>) {
    let telling = pick(events, works);
    let tables = drive.network.publisher.control.tables.current();
    let named = telling.iter().map(|event| {
        let (node, point) = event.point.names(event.node, &tables);
        Hop { node, point, action: event.action.name() }
    });
    (named.collect(), reason(&telling).map(DropReason::name))
}

/// Picks the frame that tells: of a way that works the last one delivered, else the last one dropped; none of no events.
/// Where it was dropped because a neighbour stayed silent, and the request for the neighbour was dropped itself, the way
/// goes on with the request's. That tells more than a frame that began to wait when all requests had gone out.
fn pick(events: &[Event], works: bool) -> Vec<&Event> {
    let (mut frames, mut requests) = [false, true]
        .map(|asks| by_mark(events.iter().filter(|event| event.asks == asks), |event| event))
        .into();
    // On a slow link the end of the check before may still arrive: its frames set out before this one.
    frames.retain(|_, hops| hops.first().is_some_and(|event| event.hop == 1));
    for (mark, hops) in &mut frames {
        let request = requests.remove(mark).and_then(|request| until_drop(&request));
        if let Some(request) = request
            && reason(hops) == Some(DropReason::NeighborUnresolved)
        {
            hops.pop();
            hops.extend(request);
        }
    }
    // What a pod asked for packets that never left it; what else is left belongs to the check before.
    requests.retain(|_, hops| hops.first().is_some_and(|event| event.action == Action::Send));
    frames.extend(requests.into_iter().filter_map(|(mark, request)| Some((mark, until_drop(&request)?))));
    let mut by_time: Vec<Vec<&Event>> = frames.into_values().collect();
    by_time.sort_by_key(|hops| hops.first().map(|event| (event.time, event.mark)));
    let rank = |hops: &[&Event]| match hops.last().map(|event| event.action) {
        Some(Action::Deliver) if works => 3,
        Some(Action::Drop(DropReason::NeighborUnresolved)) if !works => 1,
        Some(Action::Drop(_)) if !works => 2,
        Some(_) | None => 0,
    };
    // The last of those that tell most.
    by_time.into_iter().max_by_key(|hops| rank(hops)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use flatnet_engine::clock::Instant;
    use flatnet_engine::tables::{NodeId, PortId};
    use flatnet_engine::trace::Point;

    use super::*;

    /// The events of one frame that a pod sent; its mark says when.
    fn way(mark: u32, asks: bool, actions: &[Action]) -> Vec<Event> {
        let hop = |(index, &action): (usize, &Action)| Event {
            mark,
            asks,
            hop: index as u16 + 1,
            time: Instant::from_nanos(u64::from(mark)),
            node: NodeId(0),
            point: Point::Port(PortId(0)),
            action,
        };
        actions.iter().enumerate().map(hop).collect()
    }

    fn actions(events: &[Event], works: bool) -> Vec<Action> {
        pick(events, works).iter().map(|event| event.action).collect()
    }

    const SILENT: Action = Action::Drop(DropReason::NeighborUnresolved);
    const LOST: Action = Action::Drop(DropReason::LinkLoss);

    #[test]
    fn a_lost_request_tells_more_than_a_packet_that_came_too_late_to_ask() {
        let first = way(1, false, &[Action::Send, Action::Resolve, SILENT]);
        let request = way(1, true, &[Action::Transmit, Action::Flood, LOST]);
        let again = way(2, false, &[Action::Send, Action::Resolve, SILENT]);
        let told = [Action::Send, Action::Resolve, Action::Transmit, Action::Flood, LOST];
        assert_eq!(actions(&[first.clone(), request, again.clone()].concat(), false), told);
        assert_eq!(actions(&[first, again].concat(), false), [Action::Send, Action::Resolve, SILENT]);
    }

    #[test]
    fn of_a_way_that_works_the_last_delivery_tells_and_of_a_broken_one_the_last_drop() {
        let request = way(1, false, &[Action::Send, Action::Deliver]);
        let lost = way(2, false, &[Action::Send, Action::Bridge, LOST]);
        let answer = way(3, false, &[Action::Send, Action::Bridge, Action::Deliver]);
        let late = Event { hop: 7, ..way(4, false, &[Action::Deliver])[0] };
        let events = [request, lost, answer, vec![late]].concat();
        assert_eq!(actions(&events, true), [Action::Send, Action::Bridge, Action::Deliver]);
        assert_eq!(actions(&events, false), [Action::Send, Action::Bridge, LOST]);
        assert!(actions(&[], true).is_empty());
    }
}
