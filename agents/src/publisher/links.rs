//! How the links between machines differ from perfect ones, now and by the topology.
//!
//! A link is a pair of nodes, routers or hosts of one network, or a pod and its node; each direction has settings of its
//! own. Invariants: what the topology says of a pod holds for whoever gets its name, as long as it is on that node; a
//! setting is kept here and carried to the worker that owns the link, never read back.
//!
//! May depend on the engine. Read first: `docs/adr/0013-what-a-link-does.md`.

use flatnet_engine::{
    link::{Direction, impairment::Impairment},
    tables::{Node, PortId},
};
use std::net::Ipv4Addr;

use super::{PublishError, Publisher};

/// The settings of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    /// What the topology says.
    configured: Impairment,
    /// What holds now.
    present: Impairment,
}

/// Where one direction of a link is impaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkPlace {
    /// The worker that owns it.
    pub worker: u8,
    /// The port there.
    pub port: PortId,
    /// The direction, seen from the port.
    pub direction: Direction,
}

impl Publisher {
    /// Lists the nodes, routers and hosts: what has links on a network.
    pub fn machines(&self) -> impl Iterator<Item = &str> {
        self.stations.keys().map(|name| &**name)
    }

    /// Finds the direction of a link from one machine to another.
    ///
    /// # Errors
    /// [`PublishError::UnknownMachine`], [`PublishError::NoLink`].
    pub fn link(&self, from: &str, to: &str) -> Result<LinkPlace, PublishError> {
        for name in [from, to] {
            if !self.stations.contains_key(name) && self.place(name).is_none() {
                return Err(PublishError::UnknownMachine(name.into()));
            }
        }
        let found = match (self.stations.get(from), self.stations.get(to)) {
            (Some(near), Some(far)) => far.iter().find_map(|&(switch, port, worker)| {
                let origin = near.iter().find(|end| end.0 == switch && end.1 != port)?.1;
                Some(LinkPlace { worker, port, direction: Direction::OutFrom(origin) })
            }),
            (Some(_), None) => self.pod_link(to, from, Direction::Out),
            (None, Some(_)) => self.pod_link(from, to, Direction::In),
            (None, None) => None,
        };
        found.ok_or_else(|| PublishError::NoLink { from: from.into(), to: to.into() })
    }

    fn pod_link(&self, pod: &str, node: &str, direction: Direction) -> Option<LinkPlace> {
        let place = self.place(pod).filter(|place| place.node.as_deref() == Some(node))?;
        Some(LinkPlace { worker: place.worker, port: place.port, direction })
    }

    /// Returns how a link differs from a perfect one in one direction.
    pub fn impairment(&self, from: &str, to: &str) -> Impairment {
        self.links.get(&self.ends(from, to)).map(|settings| settings.present).unwrap_or_default()
    }

    /// Returns how the topology says that it differs.
    pub fn configured_impairment(&self, from: &str, to: &str) -> Impairment {
        self.links.get(&self.ends(from, to)).map(|settings| settings.configured).unwrap_or_default()
    }

    /// Lists the directions that differ from perfect ones: from, to, how.
    pub fn impaired_links(&self) -> impl Iterator<Item = (&str, &str, Impairment)> {
        let short = |name: &'_ str| name.len() - name.strip_prefix("default/").unwrap_or(name).len();
        let differing = self.links.iter().filter(|(_, settings)| !settings.present.is_perfect());
        differing
            .map(move |((from, to), settings)| (&from[short(from)..], &to[short(to)..], settings.present))
    }

    /// Sets how frames fare that set out from now on from one machine to another.
    ///
    /// # Errors
    /// As [`Publisher::link`]; [`PublishError::Control`].
    pub fn impair(&mut self, from: &str, to: &str, impairment: Impairment) -> Result<(), PublishError> {
        let LinkPlace { worker, port, direction } = self.link(from, to)?;
        self.visit(worker, move |worker| {
            worker.impair(port, direction, impairment);
        })?;
        if let Direction::OutFrom(_) = direction {
            self.tell_mtu(from, to, impairment.mtu);
        }
        let ends = self.ends(from, to);
        self.links.entry(ends).or_default().present = impairment;
        Ok(())
    }

    /// A node or router knows what its link to a neighbour takes, as if it were the interface's MTU: it tells senders, or
    /// cuts. Hosts do not: their link drops what is too long.
    fn tell_mtu(&mut self, from: &str, to: &str, mtu: Option<u16>) {
        let tables = self.control.tables.current();
        let node = |name: &str| self.nodes.get(name).or_else(|| self.routers.get(name)).copied();
        let Some((id, near)) = node(from).and_then(|id| Some((id, tables.node(id)?))) else { return };
        let on_network = |address: &Ipv4Addr| near.interfaces.iter().any(|it| it.network.contains(*address));
        let far = match node(to).and_then(|id| tables.node(id)) {
            Some(far) => far.interfaces.iter().map(|it| it.address).find(on_network),
            None => self.place(to).map(|place| place.address),
        };
        let Some(address) = far else { return };
        let mut node = Node::clone(near);
        let before = match mtu {
            Some(mtu) => node.link_mtus.insert(address, mtu),
            None => node.link_mtus.remove(&address),
        };
        if before != mtu {
            self.control.tables.publish(|tables| tables.set_node(id, Some(node)));
        }
    }

    /// Sets what the topology says of one direction; a pod may come later.
    ///
    /// # Errors
    /// As [`Publisher::impair`], between machines that are no pods.
    pub fn configure_link(
        &mut self,
        from: &str,
        to: &str,
        impairment: Impairment,
    ) -> Result<(), PublishError> {
        let ends = self.ends(from, to);
        self.links.insert(ends, Settings { configured: impairment, present: impairment });
        let is_pod = |name: &str| !self.stations.contains_key(name);
        if is_pod(from) || is_pod(to) { Ok(()) } else { self.impair(from, to, impairment) }
    }

    /// Carries the settings of a new pod's link to its worker.
    pub(super) fn impair_pod(&mut self, pod: &str, node: &str) -> Result<(), PublishError> {
        for (from, to) in [(pod, node), (node, pod)] {
            let impairment = self.impairment(from, to);
            if !impairment.is_perfect() {
                self.impair(from, to, impairment)?;
            }
        }
        Ok(())
    }

    /// The ends' names as settings are kept by: a pod's with its namespace.
    fn ends(&self, from: &str, to: &str) -> (String, String) {
        let full = |name: &str| {
            if self.stations.contains_key(name) || name.contains('/') {
                name.to_owned()
            } else {
                format!("default/{name}")
            }
        };
        (full(from), full(to))
    }
}
