//! Capture points by name: `[NAMESPACE/]POD[:eth0|lo]`, `NODE:docker0|flannel0|eth0`, `HOST`, or a network's prefix.
//!
//! [`resolve`] finds the engine's point for what a person wrote; `flatnet capture` and `flatnet up --check --capture`
//! call it. Invariant: a name that means nothing is an error that lists what there is.
//!
//! May depend on agents and engine. Read first: `docs/architecture.md`, "Capture and trace points".

use flatnet_agents::publisher::Publisher;
use flatnet_engine::tables::NodeId;
use flatnet_engine::trace::Point;

/// A point that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Its name, whole.
    pub name: String,
    /// The node it belongs to.
    pub node: NodeId,
    /// The point there.
    pub point: Point,
}

/// There is no such point.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("there is no point {name}")]
#[diagnostic(help("there are {}", known.join(", ")))]
pub struct NoPoint {
    /// What was asked for.
    pub name: String,
    /// All that there are.
    pub known: Vec<String>,
}

/// Finds a point.
///
/// # Errors
/// [`NoPoint`].
pub fn resolve(publisher: &Publisher, name: &str) -> Result<Resolved, NoPoint> {
    let (owner, interface) = match name.rsplit_once(':') {
        Some((owner, interface)) => (owner, Some(interface)),
        None => (name, None),
    };
    let found = machine(publisher, owner, interface).or_else(|| node(publisher, owner, interface));
    found.ok_or_else(|| NoPoint { name: name.to_owned(), known: list(publisher) })
}

fn machine(publisher: &Publisher, owner: &str, interface: Option<&str>) -> Option<Resolved> {
    let place = publisher.place(owner)?;
    let tables = publisher.control.tables.current();
    let node = tables.ports.get(&place.port)?.node;
    let interface = interface.unwrap_or("eth0");
    let point = match interface {
        "eth0" => Point::Port(place.port),
        "lo" => Point::Loopback(place.port),
        _ => return None,
    };
    Some(Resolved { name: format!("{owner}:{interface}"), node, point })
}

fn node(publisher: &Publisher, owner: &str, interface: Option<&str>) -> Option<Resolved> {
    let node = publisher.node(owner)?;
    points(publisher, owner, node).into_iter().find(|resolved| match interface {
        Some(interface) => resolved.name == format!("{owner}:{interface}"),
        None => resolved.name == owner,
    })
}

/// Lists the points of a node, router or network.
fn points(publisher: &Publisher, owner: &str, node: NodeId) -> Vec<Resolved> {
    let tables = publisher.control.tables.current();
    let Some(at) = tables.node(node) else { return Vec::new() };
    let mut points = Vec::new();
    if let Some(bridge) = &at.bridge {
        let name = match bridge.router {
            Some(_) => format!("{owner}:{}", bridge.name),
            None => owner.to_owned(),
        };
        points.push(Resolved { name, node, point: Point::Bridge });
    }
    if at.tunnel.is_some() {
        points.push(Resolved { name: format!("{owner}:flannel0"), node, point: Point::Tunnel });
    }
    for (index, interface) in at.interfaces.iter().enumerate() {
        let point = Point::Interface(index as u8);
        points.push(Resolved { name: format!("{owner}:{}", interface.name), node, point });
    }
    points
}

/// Lists all points by name.
fn list(publisher: &Publisher) -> Vec<String> {
    let machines = publisher.places().flat_map(|(name, _)| [name.to_owned(), format!("{name}:lo")]);
    machines.chain(of_nodes(publisher).into_iter().map(|resolved| resolved.name)).collect()
}

/// Lists the points of all nodes, routers and networks.
fn of_nodes(publisher: &Publisher) -> Vec<Resolved> {
    publisher.nodes().iter().flat_map(|(name, node)| points(publisher, name, *node)).collect()
}

/// Lists all points where frames come in or leave, but for loopbacks.
pub fn all(publisher: &Publisher) -> Vec<Resolved> {
    let machines = publisher.places().filter_map(|(name, _)| machine(publisher, name, None));
    machines.chain(of_nodes(publisher)).collect()
}
