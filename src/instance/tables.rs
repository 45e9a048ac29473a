//! A node's tables, and a pod's drops, as `show` prints them: what is published, and what the workers learned and chose.
//!
//! `http` answers `/v1/show/TABLE` with it. Invariants: what several workers know is one row; rows are sorted.
//!
//! May depend on agents and engine. Read first: bridge(8), ip-neighbour(8), ip-route(8), ipvsadm(8), conntrack(8).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use flatnet_engine::binding::{Binding, Traffic};
use flatnet_engine::clock::Instant;
use flatnet_engine::decide::{Hop, route};
use flatnet_engine::flow::Tuple;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::neighbor::Attachment;
use flatnet_engine::tables::{NextHop, Node, NodeId, PortId, Tables, Tunnel};
use flatnet_engine::tunnel::Encapsulation;
use flatnet_proxy::{Balancer, Frontend, Protocol, Row, TrafficPolicy};
use serde_json::Value;

use super::{Instance, RequestError};
use crate::views::{
    BackendEntry, DropEntry, FdbEntry, FlowEntry, Half, NeighborEntry, RouteEntry, ServiceEntry,
};

/// Protocol number of ICMP.
const ICMP: u8 = 1;

impl Instance {
    /// Lists the rows of one of a node's tables.
    ///
    /// # Errors
    /// [`RequestError::Node`], [`RequestError::Elsewhere`], [`RequestError::NoNode`], [`RequestError::Table`], [`RequestError::Drive`].
    pub fn show(&mut self, table: &str, name: &str) -> Result<Value, RequestError> {
        let publisher = &self.drive.network.publisher;
        let Some(id) = publisher.node(name) else {
            return self.show_machine(table, name);
        };
        let rows = match table {
            "fdb" => serde_json::to_value(self.fdb(id)?),
            "neighbors" => serde_json::to_value(self.neighbors(id)?),
            "routes" => serde_json::to_value(self.routes(id)),
            "services" => serde_json::to_value(self.services(id)?),
            "flows" => serde_json::to_value(self.flows(id)?),
            "drops" => serde_json::to_value(self.drops(id)),
            _ => return Err(RequestError::Table(table.to_owned())),
        };
        Ok(rows.unwrap_or_default())
    }

    /// Lists what a pod or host has of the tables.
    fn show_machine(&mut self, table: &str, name: &str) -> Result<Value, RequestError> {
        let publisher = &self.drive.network.publisher;
        let Some(place) = publisher.place(name).cloned() else {
            if self.drive.network.has_node_elsewhere(name) {
                return Err(RequestError::Elsewhere { name: name.to_owned() });
            }
            let known = publisher.nodes().into_iter().map(|(name, _)| name).collect();
            return Err(RequestError::Node { name: name.to_owned(), known });
        };
        if table != "drops" {
            let node = place.node.as_ref().map(ToString::to_string);
            return Err(RequestError::NoNode { name: name.to_owned(), table: table.to_owned(), node });
        }
        let drops = self.drive.ask(place.worker, move |worker| {
            worker.with_pod(place.port, |pod, _| pod.drops().clone()).unwrap_or_default()
        })?;
        let rows = drops
            .iter()
            .map(|(reason, count)| drop_entry(reason.name(), count, reason.meaning(), reason.hint()));
        Ok(serde_json::to_value(rows.collect::<Vec<_>>()).unwrap_or_default())
    }

    fn tables(&self) -> std::sync::Arc<Tables> {
        self.drive.network.publisher.control.tables.current()
    }

    fn fdb(&mut self, id: NodeId) -> Result<Vec<FdbEntry>, RequestError> {
        let learned = self.drive.ask_all(move |worker| {
            let now = worker.now();
            worker.fdb().list(id).map(|(mac, entry)| (mac, entry, now)).collect::<Vec<_>>()
        })?;
        let tables = self.tables();
        let Some(bridge) = tables.node(id).and_then(|node| node.bridge.as_ref()) else {
            return Ok(Vec::new());
        };
        let mut entries = BTreeMap::new();
        for (mac, entry, now) in learned.concat() {
            let age = now.saturating_duration_since(entry.seen).as_secs_f64();
            let newer = entries.get(&mac).is_none_or(|(_, older)| age < *older);
            if newer {
                entries.insert(mac, (entry.port, age));
            }
        }
        let learned = entries.into_iter().map(|(mac, (port, age))| (mac, port, Some(age)));
        let stations = tables.stations.iter().filter(|((node, _), _)| *node == id);
        let known = stations.map(|(&(_, mac), &port)| (mac, port, None));
        let mut rows: Vec<_> = known.chain(learned).collect();
        rows.sort_by_key(|&(mac, ..)| mac);
        let rows = rows.into_iter().map(|(mac, port, age)| FdbEntry {
            mac: mac.to_string(),
            device: port_name(&tables, port),
            bridge: bridge.name.to_string(),
            is_static: age.is_none(),
            age,
        });
        Ok(rows.collect())
    }

    fn neighbors(&mut self, id: NodeId) -> Result<Vec<NeighborEntry>, RequestError> {
        let heard = self.drive.ask_all(move |worker| worker.neighbors().list(id).collect::<Vec<_>>())?;
        let tables = self.tables();
        let Some(node) = tables.node(id) else { return Ok(Vec::new()) };
        let mut rows = BTreeMap::new();
        for (neighbor, mac) in heard.concat() {
            let device = device(node, neighbor.attachment);
            let state = if mac.is_some() { "REACHABLE" } else { "INCOMPLETE" };
            let known =
                rows.get(&(neighbor.address, device.clone())).is_some_and(|(mac, _)| Option::is_some(mac));
            if !known {
                rows.insert((neighbor.address, device), (mac, state));
            }
        }
        for (&address, endpoint) in tables.endpoints.iter().filter(|(_, endpoint)| endpoint.node == id) {
            let device = device(node, Attachment::Bridge);
            rows.insert((address, device), (Some(endpoint.mac), "PERMANENT"));
        }
        if let Some(Tunnel { encapsulation: Encapsulation::Vxlan { .. }, local, .. }) = node.tunnel {
            // As flannel has them: a peer's flannel0, by the MAC of its end.
            for (subnet, lease) in tables.leases.list() {
                if lease.public_ip != local {
                    let mac = Some(lease.vtep_mac(*subnet));
                    rows.insert((subnet.address(), "flannel0".to_owned()), (mac, "PERMANENT"));
                }
            }
        }
        let rows = rows.into_iter().map(|((address, device), (mac, state))| NeighborEntry {
            address,
            device,
            mac: mac.map(|mac| mac.to_string()),
            state: state.to_owned(),
        });
        Ok(rows.collect())
    }

    fn routes(&self, id: NodeId) -> Vec<RouteEntry> {
        let tables = self.tables();
        let Some(node) = tables.node(id) else { return Vec::new() };
        let mut rows: Vec<RouteEntry> = node
            .routes
            .list()
            .into_iter()
            .filter_map(|(prefix, hop)| {
                let destination =
                    if prefix.length() == 0 { "default".to_owned() } else { prefix.to_string() };
                route_entry(node, destination, *hop)
            })
            .collect();
        let local = node.interfaces.first().map(|interface| interface.address);
        let others = tables.leases.list().into_iter().filter(|(_, lease)| Some(lease.public_ip) != local);
        rows.extend(others.filter(|_| node.masquerade.is_some()).filter_map(|(prefix, lease)| {
            let device = match route(&tables, node, prefix.address()).ok()? {
                Hop::Tunnel { .. } => "flannel0".to_owned(),
                Hop::Interface { index, .. } => device(node, Attachment::Interface(index)),
                Hop::Local | Hop::Bridge { .. } => return None,
            };
            let (destination, protocol) = (prefix.to_string(), "flannel".to_owned());
            Some(RouteEntry { destination, via: Some(lease.public_ip), device, protocol, source: None })
        }));
        rows
    }

    fn bindings(&mut self, id: NodeId) -> Result<Vec<(Binding, Instant)>, RequestError> {
        let of_workers = self.drive.ask_all(move |worker| {
            let now = worker.now();
            let live = worker.bindings().iter(id).filter(|binding| binding.ends() > now);
            live.map(|binding| (*binding, now)).collect::<Vec<_>>()
        })?;
        Ok(of_workers.concat())
    }

    fn services(&mut self, id: NodeId) -> Result<Vec<ServiceEntry>, RequestError> {
        let bindings = self.bindings(id)?;
        let tables = self.tables();
        let Some(node) = tables.node(id).filter(|node| node.services) else { return Ok(Vec::new()) };
        let own = node.interfaces.first().map(|interface| interface.address);
        let mut rows = Vec::new();
        for Row { service, frontends, node_ports } in tables.services.list() {
            let at_node = node_ports.iter().filter_map(|node_port| {
                let (port, protocol) = (node_port.port, node_port.protocol);
                own.map(|address| Frontend { address, port, protocol })
            });
            let vips = frontends.iter().map(|&frontend| (frontend, service.internal));
            let node_ports = at_node.map(|frontend| (frontend, service.external));
            rows.extend(
                vips.chain(node_ports).map(|(at, policy)| service_entry(service, at, policy, &bindings)),
            );
        }
        rows.sort_by(|left, right| {
            let key = |row: &ServiceEntry| (row.protocol.clone(), row.address, row.port);
            key(left).cmp(&key(right))
        });
        Ok(rows)
    }

    fn flows(&mut self, id: NodeId) -> Result<Vec<FlowEntry>, RequestError> {
        let bindings = self.bindings(id)?;
        let mut rows: Vec<FlowEntry> = bindings.iter().map(|(binding, now)| flow(binding, *now)).collect();
        rows.sort_by_key(|row| (row.number, row.original));
        Ok(rows)
    }

    fn drops(&self, id: NodeId) -> Vec<DropEntry> {
        let ledger = self.drive.network.publisher.control.ledger(id);
        let counts = DropReason::ALL.iter().map(|&reason| (reason, ledger.drops(reason)));
        let happened = counts.filter(|&(_, count)| count > 0);
        let row = |(reason, count): (DropReason, u64)| {
            drop_entry(reason.name(), count, reason.meaning(), reason.hint())
        };
        happened.map(row).collect()
    }
}

fn drop_entry(reason: &str, count: u64, meaning: &str, hint: &str) -> DropEntry {
    DropEntry { reason: reason.to_owned(), count, meaning: meaning.to_owned(), hint: hint.to_owned() }
}

fn port_name(tables: &Tables, port: PortId) -> String {
    tables.ports.get(&port).map_or_else(|| "removed".to_owned(), |port| port.name.to_string())
}

fn device(node: &Node, attachment: Attachment) -> String {
    let name = match attachment {
        Attachment::Bridge => node.bridge.as_ref().map(|bridge| &bridge.name),
        Attachment::Interface(index) => node.interfaces.get(usize::from(index)).map(|it| &it.name),
    };
    name.map_or_else(String::new, ToString::to_string)
}

/// Writes a route of a node's own; none where the leases say it.
fn route_entry(node: &Node, destination: String, hop: NextHop) -> Option<RouteEntry> {
    let router = node.bridge.as_ref().and_then(|bridge| bridge.router);
    let (via, device, protocol, source) = match hop {
        NextHop::Bridge => {
            (None, device(node, Attachment::Bridge), "kernel", router.map(|router| router.address))
        }
        NextHop::Tunnel => (None, "flannel0".to_owned(), "kernel", node.tunnel.map(|tunnel| tunnel.address)),
        NextHop::Holder => return None,
        NextHop::Interface { index, gateway } => {
            let own = node.interfaces.get(usize::from(index)).map(|interface| interface.address);
            let (protocol, source) = if gateway.is_some() { ("static", None) } else { ("kernel", own) };
            (gateway, device(node, Attachment::Interface(index)), protocol, source)
        }
    };
    Some(RouteEntry { destination, via, device, protocol: protocol.to_owned(), source })
}

fn service_entry(
    service: &Balancer,
    frontend: Frontend,
    policy: TrafficPolicy,
    bindings: &[(Binding, Instant)],
) -> ServiceEntry {
    let is_through = |tuple: &Tuple| {
        Protocol::from_number(tuple.protocol) == Some(frontend.protocol)
            && Ipv4Addr::from_bits(tuple.destination) == frontend.address
            && tuple.destination_port == frontend.port
    };
    let through: Vec<&Binding> = bindings
        .iter()
        .map(|(binding, _)| binding)
        .filter(|binding| is_through(&binding.original.tuple))
        .collect();
    let used = service.used();
    let backends = service.backends.iter().map(|backend| {
        let (address, port) = (backend.address, backend.port);
        let flows = through.iter().filter(|binding| {
            binding.served.is_some_and(|served| (served.address, served.port) == (address, port))
        });
        let is_active = |binding: &&&Binding| binding.is_active();
        let (all, active) = (flows.clone().count() as u64, flows.filter(is_active).count() as u64);
        let weight = if used.contains(&backend.key()) { backend.weight } else { 0 };
        BackendEntry { address, port, weight, active, inactive: all - active }
    });
    ServiceEntry {
        protocol: frontend.protocol.to_string(),
        address: frontend.address,
        port: frontend.port,
        scheduler: service.scheduler.to_string(),
        forwarding: service.forwarding.to_string(),
        persistent: service.affinity.map(|timeout| timeout.as_secs()),
        policy: policy.to_string(),
        service: service.name.to_string(),
        backends: backends.collect(),
    }
}

fn flow(binding: &Binding, now: Instant) -> FlowEntry {
    let half = |tuple: Tuple| Half {
        source: Ipv4Addr::from_bits(tuple.source),
        destination: Ipv4Addr::from_bits(tuple.destination),
        source_port: tuple.source_port,
        destination_port: tuple.destination_port,
    };
    let number = binding.original.tuple.protocol;
    let protocol = match (Protocol::from_number(number), number) {
        (Some(Protocol::Tcp), _) => "tcp",
        (Some(Protocol::Udp), _) => "udp",
        (None, ICMP) => "icmp",
        (None, _) => "unknown",
    };
    let state = (number == Protocol::Tcp.number()).then(|| binding.tcp_state().name().to_owned());
    FlowEntry {
        protocol: protocol.to_owned(),
        number,
        timeout: binding.ends().saturating_duration_since(now).as_secs(),
        state,
        original: half(binding.original.tuple),
        reply: half(binding.reply.tuple),
        answered: binding.traffic != Traffic::Unreplied,
        assured: binding.traffic == Traffic::Assured,
    }
}
