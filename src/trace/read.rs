//! From what workers noted to hops that can be read: which frame is the request, which the answer, what each looked like.
//!
//! [`super::ask`] calls it when something has come of a packet.
//!
//! Invariants: the request is the first followed frame that the asker sent, the answer the first that came back to it, or
//! was to; a hop is what the engine did.
//!
//! May depend on agents and the engine. Read first: [`super::headers`], `engine/src/trace.rs`.

use std::net::Ipv4Addr;
use std::sync::Arc;

use flatnet_agents::publisher::{Place, Publisher};
use flatnet_engine::clock::Instant;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::tables::{Node, Tables};
use flatnet_engine::trace::{Action, Head, Point};
use flatnet_engine::tunnel::Encapsulation;
use flatnet_engine::wire::MacAddress;
use flatnet_proxy::{Protocol, Row};
use serde_json::Value;

use super::headers::{Headers, Layer, Tunnel};
use super::report::{Cause, Hop, PacketKind};
use crate::hops::by_mark;

/// The tunnel where no node has one.
const NO_TUNNEL: Tunnel = (8285, Encapsulation::Udp);

/// Turns heads into what can be read.
pub(super) struct Reader<'a> {
    publisher: &'a Publisher,
    tables: Arc<Tables>,
    tunnel: Tunnel,
}

impl<'a> Reader<'a> {
    /// Begins with the tables as they are.
    pub(super) fn new(publisher: &'a Publisher) -> Self {
        let tables = publisher.control.tables.current();
        let nodes = publisher.nodes();
        let tunnels = nodes.iter().filter_map(|(_, id)| tables.node(*id)?.tunnel);
        let tunnel = tunnels.map(|it| (it.port, it.encapsulation)).next().unwrap_or(NO_TUNNEL);
        Self { publisher, tables, tunnel }
    }

    /// Finds the packet that was asked with and its answer among all that were followed.
    pub(super) fn hops(&self, heads: &[Head], from: &Place) -> Vec<Hop> {
        let frames = by_mark(heads.iter().filter(|head| !head.event.asks), |head| &head.event);
        let is_asker = |head: &Head| {
            let point = head.event.point;
            point == Point::Port(from.port) || point == Point::Loopback(from.port)
        };
        let begins = |hops: &&Vec<&Head>| hops.first().map(|head| (head.event.time, head.event.mark));
        let whole = frames.values().filter(|hops| hops[0].event.hop == 1);
        let asked = whole.clone().filter(|hops| is_asker(hops[0])).min_by_key(begins);
        let requests = heads.iter().filter(|head| head.event.asks);
        let start = asked.map(|hops| hops[0].event.time);
        let start = start.or_else(|| requests.clone().map(|head| head.event.time).min()).unwrap_or_default();
        let mut hops = Vec::new();
        let Some(asked) = asked else {
            // A pod that does not find its neighbour sends the question for it and nothing else.
            self.read_requests(requests, start, &mut hops);
            return hops;
        };
        let mark = asked[0].event.mark;
        // A pod that is its own backend answers itself, from behind the node; one that asks itself, by `lo`.
        let whom = |head: &Head| self.headers(head)?.inner?.get("destination").cloned();
        let asked_whom = whom(asked[0]);
        let others = whole.filter(|hops| hops[0].event.mark != mark).filter(|hops| {
            !is_asker(hops[0]) || whom(hops[0]) != asked_whom || self.answers(hops[0], asked[0])
        });
        let comes_back = |hops: &&Vec<&Head>| {
            hops.last().is_some_and(|head| head.event.action == Action::Deliver && is_asker(head))
        };
        let answer = others.clone().filter(comes_back).min_by_key(begins);
        let answer = answer.or_else(|| others.min_by_key(begins));
        for (kind, frame) in [(PacketKind::Request, Some(asked)), (PacketKind::Answer, answer)] {
            let Some(frame) = frame else { continue };
            self.read(kind, frame, start, &mut hops);
            let mark = frame[0].event.mark;
            self.read_requests(requests.clone().filter(|head| head.event.mark == mark), start, &mut hops);
        }
        hops
    }

    /// Reads the questions for MACs, each on its own: who asks and for whom tells them apart. Of those that are flooded
    /// the way to whom is asked for is taken, or to where it was dropped.
    fn read_requests<'b>(&self, heads: impl Iterator<Item = &'b Head>, start: Instant, hops: &mut Vec<Hop>) {
        let mut questions: Vec<((Value, Value), Vec<&Head>)> = Vec::new();
        for head in heads {
            let arp = Headers::read(&head.bytes, false, self.tunnel).arp.unwrap_or_default();
            let field = |name: &str| arp.get(name).cloned().unwrap_or_default();
            let key = (field("sender"), field("target"));
            match questions.iter_mut().find(|(known, _)| known == &key) {
                Some((_, question)) => question.push(head),
                None => questions.push((key, vec![head])),
            }
        }
        questions.sort_by_key(|(_, question)| question.iter().map(|head| head.event.time).min());
        for ((_, target), mut question) in questions {
            question.sort_by_key(|head| head.event.hop);
            let asked = target.as_str().and_then(|target| self.machine_at(target.parse().ok()?));
            let is_end = |head: &Head| {
                matches!(head.event.action, Action::Drop(_))
                    || asked.as_ref() == Some(&head.event.point.names(head.event.node, &self.tables).0)
            };
            let end =
                question.iter().position(|head| is_end(head)).unwrap_or(question.len().saturating_sub(1));
            let last = question[end];
            let mut way: Vec<&Head> =
                question.into_iter().filter(|head| head.event.hop < last.event.hop).collect();
            way.dedup_by_key(|head| head.event.hop);
            way.push(last);
            self.read(PacketKind::Arp, &way, start, hops);
        }
    }

    /// Names the pod, host, node or router of an address.
    fn machine_at(&self, address: Ipv4Addr) -> Option<String> {
        let place = self.publisher.places().find(|(_, place)| place.address == address);
        let node = || {
            let nodes = self.publisher.nodes();
            let has = |id| {
                self.tables
                    .node(id)
                    .is_some_and(|node| node.interfaces.iter().any(|interface| interface.address == address))
            };
            nodes.iter().find(|(_, id)| has(*id)).map(|(name, _)| name.to_string())
        };
        place.map(|(name, _)| name.to_owned()).or_else(node)
    }

    /// Tells whether a packet goes back where another came from, by its ports, or by its type in ICMP.
    fn answers(&self, head: &Head, asked: &Head) -> bool {
        let transport = |head: &Head| self.headers(head)?.transport;
        let (Some(one), Some(other)) = (transport(head), transport(asked)) else { return false };
        let is_back = |from: &str, to: &str| one.get(from) == other.get(to);
        if one.contains_key("type") {
            // What quotes the question or replies to it.
            return one.get("type") != other.get("type");
        }
        is_back("source_port", "destination_port") && is_back("destination_port", "source_port")
    }

    fn headers(&self, head: &Head) -> Option<Headers> {
        if head.bytes.is_empty() {
            return None;
        }
        let is_raw = head.event.is_packet() || matches!(head.event.point, Point::Loopback(_));
        Some(Headers::read(&head.bytes, is_raw, self.tunnel))
    }

    fn read(&self, packet: PacketKind, heads: &[&Head], start: Instant, hops: &mut Vec<Hop>) {
        let (mut before, mut ethernet): (Option<Headers>, _) = (None, None);
        // The answer follows its request; a question for a MAC stands for itself.
        let follows = |hop: &&Hop| packet != PacketKind::Arp && hop.packet != PacketKind::Arp;
        let mut time_ns = hops.iter().rfind(follows).map_or(0, |hop| hop.time_ns);
        for head in heads {
            let event = head.event;
            // A worker reads the clock as a batch begins: what another sends it meanwhile came later than that.
            time_ns = time_ns.max(event.time.as_nanos().saturating_sub(start.as_nanos()));
            let headers = self.headers(head).or_else(|| before.clone()).unwrap_or_default();
            let changed = before.take().map_or_else(Vec::new, |mut before| {
                // A point without Ethernet neither adds nor removes it.
                before.ethernet = if headers.ethernet.is_some() { ethernet.take() } else { None };
                headers.changed_since(&before)
            });
            ethernet = headers.ethernet.clone().or(ethernet);
            let (node, point) = event.point.names(event.node, &self.tables);
            let drop = if let Action::Drop(reason) = event.action {
                Some(self.cause(reason, &headers, &node, &point))
            } else {
                None
            };
            hops.push(Hop {
                packet,
                time_ns,
                node,
                point,
                action: event.action.name().to_owned(),
                headers: headers.clone(),
                changed,
                drop,
            });
            before = Some(headers);
        }
    }

    /// Names what a drop is about.
    fn cause(&self, reason: DropReason, headers: &Headers, node: &str, point: &str) -> Cause {
        let field = |name: &str| headers.inner.as_ref()?.get(name)?.as_str()?.parse::<Ipv4Addr>().ok();
        let destination = field("destination");
        let machine = |address: Ipv4Addr| {
            self.publisher.places().find(|(_, place)| place.address == address).map(|(name, place)| {
                let node = place.node.as_ref().map_or(String::new(), |node| format!(" on {node}"));
                format!("{name} ({address}){node}")
            })
        };
        let object = match (reason, destination) {
            (DropReason::NoLease | DropReason::LeaseOffLink, Some(to)) => {
                Some(format!("lease of the subnet of {}", machine(to).unwrap_or_else(|| to.to_string())))
            }
            (
                DropReason::NoBackend
                | DropReason::NoLocalBackend
                | DropReason::DirectRoutingOffSegment
                | DropReason::ServicePortClosed
                | DropReason::ServiceNoConnection,
                Some(to),
            ) => self.service(to, headers.transport.as_ref().and_then(asked_port)),
            (
                DropReason::LinkLoss | DropReason::LinkDown | DropReason::LinkQueueFull | DropReason::LinkMtu,
                _,
            ) => Some(self.link(headers, node).unwrap_or_else(|| format!("link of {node} {point}"))),
            (DropReason::BindingQuota, _) => field("source").and_then(machine),
            (DropReason::Martian | DropReason::TunnelForeignSource, _) => {
                field("source").map(|it| it.to_string())
            }
            (DropReason::TunnelForeignDestination, Some(to)) => Some(to.to_string()),
            (DropReason::NeighborUnresolved, Some(to)) => Some(format!("neighbour on the way to {to}")),
            (DropReason::PodStopped | DropReason::HostClosed, Some(to)) => machine(to),
            (DropReason::SpoofedAddress | DropReason::SpoofedMac, _) => field("source").and_then(machine),
            _ => None,
        };
        Cause {
            reason: reason.name().to_owned(),
            meaning: reason.meaning().to_owned(),
            hint: reason.hint().to_owned(),
            object,
        }
    }

    /// Names the Service that was asked at an address and port; one that has no such port by its name alone, one of a
    /// NodePort by the port.
    fn service(&self, address: Ipv4Addr, port: Option<(Protocol, u16)>) -> Option<String> {
        let services = &self.tables.services;
        let exact = port.and_then(|(protocol, port)| services.lookup(address, port, protocol));
        let whole = || {
            let rows = services.list();
            let of = |row: &&&Row| row.frontends.iter().any(|it| it.address == address);
            let name = rows.iter().find(of)?.service.name.to_string();
            Some(name.rsplit_once(':').map_or(name.clone(), |(name, _)| name.to_owned()))
        };
        let by_node_port = || port.and_then(|(protocol, port)| services.lookup_node_port(port, protocol));
        let name = exact.map(|service| service.name.to_string()).or_else(whole);
        let name = name.or_else(|| by_node_port().map(|service| service.name.to_string()));
        name.map(|name| format!("Service {name}"))
    }

    /// Names the two machines of a link that lost a frame at one of them.
    fn link(&self, headers: &Headers, lost_at: &str) -> Option<String> {
        let mac = |end| headers.ethernet.as_ref()?.get(end)?.as_str()?.parse::<MacAddress>().ok();
        let name = |mac: MacAddress| {
            let has = |node: &Node| {
                node.interfaces.iter().any(|it| it.mac == mac)
                    || node.bridge.as_ref().and_then(|it| it.router).is_some_and(|it| it.mac == mac)
            };
            let nodes = self.publisher.nodes();
            let node = nodes.into_iter().find(|(_, id)| self.tables.node(*id).is_some_and(|node| has(node)));
            let place = self.publisher.places().find(|(_, place)| MacAddress::for_ipv4(place.address) == mac);
            node.map(|(name, _)| name).or_else(|| place.map(|(name, _)| name.to_owned()))
        };
        let from = name(mac("source")?)?;
        let to = if from == lost_at { name(mac("destination")?)? } else { lost_at.to_owned() };
        Some(format!("link from {from} to {to}"))
    }
}

/// Reads the protocol and port that a packet asks for.
fn asked_port(transport: &Layer) -> Option<(Protocol, u16)> {
    let protocol = match transport.get("protocol")?.as_str()? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    Some((protocol, transport.get("destination_port")?.as_u64()?.try_into().ok()?))
}
