//! One packet sent and followed: whom it goes to, how it is sent, and what came of it.
//!
//! [`resolve`], [`begin`], [`Trace::outcome`], [`Trace::end`] in this order, by `flatnet trace` itself in virtual time or
//! by a running instance between other jobs.
//!
//! Invariants: a hop is what the engine did; heads are kept, and answers followed, only from `begin` to `end`.
//!
//! May depend on [`crate::drive`] and [`crate::hops`]. Read first: `engine/src/trace.rs`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use flatnet_agents::objects::DEFAULT_NAMESPACE;
use flatnet_agents::publisher::{Place, Publisher};
use flatnet_engine::ledger::DropReason;
use flatnet_engine::pod::{PodDrop, Probe, ProbeError, ProbeOutcome, ProbeProtocol, ProgramId};
use flatnet_engine::tables::{NodeId, Tables};
use flatnet_engine::trace::{Action, Point};
use flatnet_proxy::{Frontend, Protocol, Row};

use super::headers::Headers;
use super::read::Reader;
use super::report::{Cause, Hop, PacketKind, Question, Report};
use crate::drive::{Drive, DriveError};
use crate::hops;

/// How long the packet waits for its answer: longer than ARP is asked for the silent next hop of a pod, and then of a node.
pub const TIMEOUT: Duration = Duration::from_secs(7);
/// What becomes of a packet that is not sent; the reason is told beside it.
const DROP: Action = Action::Drop(DropReason::NeighborUnresolved);
/// What it carries.
const PAYLOAD: &[u8] = b"flatnet";

/// A question that cannot be asked.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum AskError {
    /// Nobody of the name sends.
    #[error("no pod or host {name} is on the network")]
    #[diagnostic(help("there are {}", known.join(", ")))]
    From {
        /// What was asked for.
        name: String,
        /// All that there are.
        known: Vec<String>,
    },
    /// It sends by itself.
    #[error("{name} is not simulated: a trace follows a packet of ours")]
    #[diagnostic(help("trace to it, from a simulated pod or a host; or `flatnet capture {name}`"))]
    Real {
        /// Who was to send.
        name: String,
    },
    /// The name means nothing.
    #[error("there is no pod, host, node or Service {name}, and it is no address")]
    #[diagnostic(help("there are {}", known.join(", ")))]
    To {
        /// What was asked for.
        name: String,
        /// All that there are.
        known: Vec<String>,
    },
    /// Nobody answers at no port.
    #[error("{protocol} to {name} needs a port")]
    #[diagnostic(help("write it behind {protocol}, or as ADDRESS:PORT"))]
    Port {
        /// Whom.
        name: String,
        /// By what.
        protocol: &'static str,
    },
    /// A Service has no such port.
    #[error("Service {name} has no such port")]
    #[diagnostic(help("its ports are {}", ports.join(", ")))]
    ServicePort {
        /// The Service.
        name: String,
        /// Its ports.
        ports: Vec<String>,
    },
}

/// Whom to ask, and how.
#[derive(Debug, Clone)]
pub struct Target {
    from: Place,
    protocol: ProbeProtocol,
    address: Ipv4Addr,
    port: u16,
}

/// A packet that is on its way.
#[derive(Debug)]
pub struct Trace {
    question: Question,
    target: Target,
    probe: Option<ProgramId>,
}

/// Finds who is to send.
fn asker(publisher: &Publisher, name: &str) -> Result<Place, AskError> {
    let missing = || AskError::From { name: name.to_owned(), known: machines(publisher) };
    let place = publisher.place(name).ok_or_else(missing)?;
    if place.is_simulated { Ok(place.clone()) } else { Err(AskError::Real { name: name.to_owned() }) }
}

fn machines(publisher: &Publisher) -> Vec<String> {
    publisher.places().map(|(name, _)| name.to_owned()).collect()
}

/// Finds out what a question means.
///
/// # Errors
/// [`AskError`].
pub fn resolve(publisher: &Publisher, question: &Question) -> Result<Target, AskError> {
    let from = asker(publisher, &question.from)?;
    let tables = publisher.control.tables.current();
    let (name, given) = split_port(&question.to);
    // Nobody listens at port 0, which is reserved (RFC 6335, 6).
    let port = question.port.or(given).filter(|&port| port != 0);
    let named = address_of(publisher, &tables, name);
    let frontends = match named {
        Some(address) => frontends(&tables, |_, it| it.address == address),
        None => {
            let (namespace, service) = name.split_once('/').unwrap_or((DEFAULT_NAMESPACE, name));
            let prefix = format!("{namespace}/{service}:");
            frontends(&tables, |row, _| row.service.name.starts_with(&prefix))
        }
    };
    if let Some(address) = named.filter(|_| frontends.is_empty()) {
        let is_asked =
            |protocol| port.is_some_and(|port| tables.services.lookup_node_port(port, protocol).is_some());
        // Whoever names a port and no protocol means the one that is there, else TCP.
        let protocol = question.protocol.unwrap_or(match port {
            None => ProbeProtocol::IcmpEcho,
            Some(_) if !is_asked(Protocol::Tcp) && is_asked(Protocol::Udp) => ProbeProtocol::Udp,
            Some(_) => ProbeProtocol::Tcp,
        });
        let asked = match protocol {
            ProbeProtocol::IcmpEcho => Some(0),
            ProbeProtocol::Tcp | ProbeProtocol::Udp => port,
        };
        let missing = || AskError::Port { name: name.to_owned(), protocol: name_of(protocol) };
        return Ok(Target { from, protocol, address, port: asked.ok_or_else(missing)? });
    }
    if frontends.is_empty() {
        let services = tables.services.list().into_iter().filter_map(|row| {
            let service = row.service.name.rsplit_once(':')?.0;
            Some(service.strip_prefix(&format!("{DEFAULT_NAMESPACE}/")).unwrap_or(service).to_owned())
        });
        let services: BTreeSet<String> = services.collect();
        let known = machines(publisher).into_iter().chain(services).collect();
        return Err(AskError::To { name: name.to_owned(), known });
    }
    // A VIP answers no echo: without a protocol its first port is asked. An address may be asked for what it has not.
    let protocol = question.protocol.map(transport);
    let fits = |it: &&Frontend| {
        protocol.is_none_or(|protocol| protocol == Some(it.protocol))
            && port.is_none_or(|port| port == it.port)
    };
    let missing = || AskError::ServicePort {
        name: name.to_owned(),
        ports: frontends.iter().map(|it| format!("{} {}", it.protocol, it.port).to_lowercase()).collect(),
    };
    let (protocol, address, port) = match (frontends.iter().find(fits), named) {
        (Some(it), _) => (probe(it.protocol), it.address, it.port),
        (None, Some(address)) => {
            let protocol = question.protocol.unwrap_or(ProbeProtocol::Tcp);
            let is_echo = protocol == ProbeProtocol::IcmpEcho;
            (protocol, address, if is_echo { 0 } else { port.ok_or_else(missing)? })
        }
        (None, None) => return Err(missing()),
    };
    Ok(Target { from, protocol, address, port })
}

/// Finds the address of a pod, host, node or router, or reads one.
fn address_of(publisher: &Publisher, tables: &Tables, name: &str) -> Option<Ipv4Addr> {
    let node = || tables.node(publisher.node(name)?)?.interfaces.first().map(|interface| interface.address);
    let place = publisher.place(name).map(|place| place.address);
    place.or_else(node).or_else(|| name.parse().ok())
}

fn split_port(text: &str) -> (&str, Option<u16>) {
    match text.rsplit_once(':').map(|(name, port)| (name, port.parse())) {
        Some((name, Ok(port))) => (name, Some(port)),
        Some((_, Err(_))) | None => (text, None),
    }
}

/// Lists the ports of VIPs, in the order in which their Services have them.
fn frontends(tables: &Tables, fits: impl Fn(&Row, &Frontend) -> bool) -> Vec<Frontend> {
    let mut rows = tables.services.list();
    rows.sort_by_key(|row| row.service.id);
    let all = rows.iter().flat_map(|row| row.frontends.iter().map(|&it| (*row, it)));
    all.filter(|(row, it)| fits(row, it)).map(|(_, it)| it).collect()
}

fn probe(protocol: Protocol) -> ProbeProtocol {
    match protocol {
        Protocol::Udp => ProbeProtocol::Udp,
        Protocol::Tcp => ProbeProtocol::Tcp,
    }
}

fn transport(protocol: ProbeProtocol) -> Option<Protocol> {
    match protocol {
        ProbeProtocol::Tcp => Some(Protocol::Tcp),
        ProbeProtocol::Udp => Some(Protocol::Udp),
        ProbeProtocol::IcmpEcho => None,
    }
}

fn name_of(protocol: ProbeProtocol) -> &'static str {
    match protocol {
        ProbeProtocol::Tcp => "tcp",
        ProbeProtocol::Udp => "udp",
        ProbeProtocol::IcmpEcho => "echo",
    }
}

/// Sends the packet.
///
/// # Errors
/// [`DriveError::Silent`].
pub fn begin(drive: &mut Drive, question: Question, target: Target) -> Result<Trace, DriveError> {
    drive.ask_all(|worker| {
        worker.observer.events.clear();
        worker.observer.set_tracing(true);
    })?;
    let probe = Probe {
        protocol: target.protocol,
        destination: target.address,
        port: target.port,
        timeout: TIMEOUT,
        // A connection is made and closed: what is followed is its first segment and the answer to it.
        payload: if target.protocol == ProbeProtocol::Tcp { Vec::new() } else { PAYLOAD.to_vec() },
    };
    let probe = hops::send(drive, &target.from, probe)?;
    Ok(Trace { question, target, probe })
}

impl Trace {
    /// Tells what came of it, once something has.
    ///
    /// # Errors
    /// [`DriveError::Silent`].
    pub fn outcome(&self, drive: &mut Drive) -> Result<Option<ProbeOutcome>, DriveError> {
        let Some(probe) = self.probe else { return Ok(None) };
        hops::outcome(drive, &self.target.from, probe)
    }

    /// Takes what was noted on its way; nothing more is.
    ///
    /// # Errors
    /// [`DriveError::Silent`].
    pub fn end(self, drive: &mut Drive, outcome: Option<ProbeOutcome>) -> Result<Report, DriveError> {
        let heads = drive.ask_all(|worker| {
            worker.observer.events.clear();
            let heads = std::mem::take(&mut worker.observer.heads);
            worker.observer.set_tracing(false);
            heads
        })?;
        let heads = heads.concat();
        // Whose answer comes by a link of the host's is not followed, but for its arrival.
        let took = outcome.map(|it| it.ended.as_nanos().saturating_sub(it.started.as_nanos()));
        let error = match outcome.map(|outcome| outcome.result) {
            Some(Ok(_)) => None,
            Some(Err(error)) => Some(error.to_string()),
            None => Some("nothing came".to_owned()),
        };
        let Question { from, to, .. } = self.question;
        let Target { protocol, address, port, .. } = self.target;
        let reader = Reader::new(&drive.network.publisher);
        let mut hops = reader.hops(&heads, &self.target.from);
        let was_sent = hops.iter().any(|hop| hop.packet == PacketKind::Request);
        if let Some(outcome) = outcome.filter(|_| !was_sent) {
            hops.extend(never_sent(
                &outcome,
                &self.target,
                &drive.network.publisher.control.tables.current(),
            ));
        }
        Ok(Report {
            from,
            to,
            protocol: name_of(protocol).to_owned(),
            address,
            port: (port != 0).then_some(port),
            rtt_ns: answered_at(&hops).or(took).filter(|_| error.is_none()),
            error,
            hops,
        })
    }
}

/// Tells what became of a packet that did not get onto its sender's link.
fn never_sent(outcome: &ProbeOutcome, target: &Target, tables: &Tables) -> Option<Hop> {
    let reason = match outcome.result {
        Err(ProbeError::HostUnreachable) => PodDrop::NeighborUnresolved,
        Err(ProbeError::NetworkUnreachable) => PodDrop::NoRoute,
        Ok(_) | Err(_) => return None,
    };
    let (node, point) = Point::Port(target.from.port).names(NodeId(0), tables);
    let way = if reason == PodDrop::NoRoute { "route" } else { "neighbour on the way" };
    Some(Hop {
        packet: PacketKind::Request,
        time_ns: outcome.ended.as_nanos().saturating_sub(outcome.started.as_nanos()),
        node,
        point,
        action: DROP.name().to_owned(),
        headers: Headers::default(),
        changed: Vec::new(),
        drop: Some(Cause {
            reason: reason.name().to_owned(),
            meaning: reason.meaning().to_owned(),
            hint: reason.hint().to_owned(),
            object: Some(format!("{way} to {}", target.address)),
        }),
    })
}

/// Tells when the answer arrived.
fn answered_at(hops: &[Hop]) -> Option<u64> {
    hops.iter().rev().find(|hop| hop.packet == PacketKind::Answer).map(|hop| hop.time_ns)
}
