//! How the links between machines differ from perfect ones, now and by the topology.
//!
//! A link is a pair of nodes, routers or hosts of one network, or a pod and its node; each direction has settings of its
//! own. Invariants: what the topology says of a pod holds for whoever gets its name, as long as it is on that node; a
//! setting is kept here and carried to the worker that owns the link, never read back.
//!
//! May depend on the engine. Read first: `docs/adr/0013-what-a-link-does.md`.

use flatnet_engine::{
    link::{Direction, impairment::Impairment},
    tables::{Node, NodeId, PortId},
};
use std::net::Ipv4Addr;

use super::{Place, PublishError, Publisher};

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
    /// [`PublishError::UnknownMachine`], [`PublishError::NoLink`], [`PublishError::RealLink`].
    pub fn link(&self, from: &str, to: &str) -> Result<LinkPlace, PublishError> {
        for name in [from, to] {
            if !self.stations.contains_key(name) && self.place(name).is_none() {
                return Err(PublishError::UnknownMachine(name.into()));
            }
        }
        for name in [from, to] {
            if self.place(name).is_some_and(|place| !place.is_simulated) {
                return Err(PublishError::RealLink(name.into()));
            }
        }
        let ends = (self.stations.get(from), self.stations.get(to));
        if let (Some(near), Some(far)) = ends
            && let Some(name) =
                [(near, from), (far, to)].iter().find_map(|(end, name)| end.is_empty().then_some(name))
        {
            return Err(PublishError::RealLink((*name).into()));
        }
        let found = match ends {
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
        self.tell_mtu(from, to, impairment.mtu)?;
        let ends = self.ends(from, to);
        self.links.entry(ends).or_default().present = impairment;
        Ok(())
    }

    /// Who sends knows what the link takes, as if it were the interface's MTU: a node or router tells its senders, or cuts; a
    /// pod or host makes nothing longer.
    fn tell_mtu(&mut self, from: &str, to: &str, mtu: Option<u16>) -> Result<(), PublishError> {
        let Some(place) = self.place(from) else {
            if let (Some(id), Some(address)) = (self.forwarder(from), self.address_beside(to, from)) {
                self.set_link_mtu(id, address, mtu);
            }
            return Ok(());
        };
        // A pod has one link, and all its ways begin with it; a host has one to each of its neighbours.
        let neighbor = if place.node.is_some() { None } else { self.address_beside(to, from) };
        let Place { worker, port, .. } = *place;
        self.visit(worker, move |worker| {
            worker.with_pod(port, |pod, _| pod.set_mtu(neighbor, mtu));
        })
    }

    /// Sets what a node's or router's link to a neighbour takes, where that is less than its interface or bridge does.
    pub(super) fn set_link_mtu(&mut self, id: NodeId, neighbor: Ipv4Addr, mtu: Option<u16>) {
        let tables = self.control.tables.current();
        let Some(node) = tables.node(id).filter(|node| node.link_mtus.get(&neighbor).copied() != mtu) else {
            return;
        };
        let mut node = Node::clone(node);
        match mtu {
            Some(mtu) => node.link_mtus.insert(neighbor, mtu),
            None => node.link_mtus.remove(&neighbor),
        };
        self.control.tables.publish(|tables| tables.set_node(id, Some(node)));
    }

    fn forwarder(&self, name: &str) -> Option<NodeId> {
        self.nodes.get(name).or_else(|| self.routers.get(name)).copied()
    }

    /// Returns the address that a machine has on a network of another one.
    fn address_beside(&self, name: &str, other: &str) -> Option<Ipv4Addr> {
        if let Some(place) = self.place(name) {
            return Some(place.address);
        }
        let tables = self.control.tables.current();
        let node = |name: &str| tables.node(self.forwarder(name)?);
        let mut addresses = node(name)?.interfaces.iter().map(|it| (it.network, it.address));
        let shared = match self.place(other) {
            Some(place) => addresses.find(|(network, _)| network.contains(place.address)),
            None => {
                let others = &node(other)?.interfaces;
                addresses.find(|(network, _)| others.iter().any(|it| network.contains(it.address)))
            }
        };
        shared.map(|(_, address)| address)
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
