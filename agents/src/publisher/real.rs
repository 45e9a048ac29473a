//! Pods and nodes that are not simulated: pods by their TAPs and what becomes of them, nodes by their tunnels' sockets.
//!
//! Invariant: a pod that is told to stop keeps its port until its programs have ended; its name is free at once.
//!
//! May depend on the engine and [`crate::runtime`]. Read first: `agents/src/runtime.rs`.

use std::sync::Arc;

use flatnet_engine::control::host::UplinkSpec;
use flatnet_engine::link::Link;
use flatnet_engine::link::tap::Tap;
use flatnet_engine::link::tunnel_socket::TunnelSocket;
use flatnet_engine::masquerade::PortRange;
use flatnet_engine::tables::NodeId;

use super::{ControlError, Guard, MacAddress, NodeSpec, PublishError, Publisher, Start, objects};
use crate::pods::{MAC_ANNOTATION, PodView};
use crate::runtime::link::LinkConfig;
use crate::runtime::{News, Prepared};

/// A pod that is not simulated, and was made or could not be.
#[derive(Debug)]
pub struct MadePod {
    /// The pod.
    pub pod: Arc<PodView>,
    /// How its containers started, in order; or why it is not there.
    pub starts: Result<Vec<Start>, PublishError>,
    /// Of a pod that was made again, which of its containers those are.
    pub again: Option<Vec<usize>>,
}

impl Publisher {
    /// Makes a cluster's node whose eth0 is on the host's own network, by its tunnel's socket; without one it has an uplink yet to
    /// come.
    ///
    /// # Errors
    /// [`PublishError::Control`].
    pub fn add_node_on_host(
        &mut self,
        spec: &NodeSpec,
        socket: Option<TunnelSocket>,
    ) -> Result<(), PublishError> {
        let failed = |source| PublishError::Control { what: format!("node {}", spec.name), source };
        let id = self.control.add_node(spec).map_err(failed)?;
        self.nodes.insert(Arc::clone(&spec.name), id);
        // Its pods' links are simulated, its own is none of ours.
        self.stations.insert(Arc::clone(&spec.name), Vec::new());
        let Some(socket) = socket else { return Ok(()) };
        let (worker, link) = (self.worker(), Link::TunnelSocket(Box::new(socket)));
        self.control.attach_interface(id, 0, worker, link).map_err(failed)?;
        // Which way a peer is the host knows.
        self.control.let_link_find_peers(id).map_err(failed)
    }

    /// Puts the host's own system behind a node, by the TAP that it reaches pods through. Translations of the node's keep to ports
    /// that the host's programs are not given.
    ///
    /// # Errors
    /// [`PublishError::Control`].
    pub fn add_host_port(&mut self, node: &str, tap: Tap, ports: PortRange) -> Result<(), PublishError> {
        let failed = |source| PublishError::Control { what: format!("the host's way to {node}"), source };
        let id = self.nodes.get(node).copied().ok_or_else(|| failed(ControlError::Missing))?;
        self.control.set_masquerade_ports(id, ports).map_err(failed)?;
        let (worker, name) = (self.worker(), Arc::clone(tap.name()));
        self.control.add_host_port(id, &name, worker, Link::Tap(Box::new(tap))).map_err(failed)?;
        Ok(())
    }

    /// Gives a node an interface of the host's for all that its tunnel does not carry. Its translations keep to ports that the host's
    /// programs are not given.
    ///
    /// # Errors
    /// [`PublishError::Control`].
    pub fn add_uplink(
        &mut self,
        node: &str,
        (spec, tap): (&UplinkSpec, Tap),
        ports: PortRange,
    ) -> Result<(), PublishError> {
        let failed = |source| PublishError::Control { what: format!("the uplink of {node}"), source };
        let id = self.nodes.get(node).copied().ok_or_else(|| failed(ControlError::Missing))?;
        self.control.set_masquerade_ports(id, ports).map_err(failed)?;
        let worker = self.worker();
        self.control.add_uplink(id, spec, worker, Link::Tap(Box::new(tap))).map_err(failed)?;
        Ok(())
    }

    /// Has a real pod made; [`Publisher::take_made_pods`] puts it on its node's bridge.
    pub(super) fn order_real_pod(
        &mut self,
        view: &Arc<PodView>,
        node: NodeId,
        name: String,
    ) -> Result<(), PublishError> {
        let config = self.link_config(view, node);
        self.runtime.add(view, config).map_err(|source| PublishError::Runtime { pod: name, source })
    }

    /// Puts real pods that have been made on their nodes' bridges and starts their containers; returns how that went.
    pub fn take_made_pods(&mut self) -> Vec<MadePod> {
        let made = self.runtime.take_made();
        made.into_iter()
            .map(|Prepared { view, tap, again }| {
                let name = objects::pod_name(&view.namespace, &view.name);
                let placed = tap
                    .map_err(|source| PublishError::Runtime { pod: name.clone(), source })
                    .and_then(|tap| self.replace_tap(&view, name, tap));
                if placed.is_err() {
                    self.runtime.end_sandbox(&view.uid);
                }
                let indices = || again.clone().unwrap_or_else(|| (0..view.containers.len()).collect());
                let starts = placed.map(|()| {
                    indices().into_iter().map(|index| self.runtime.start(&view.uid, index)).collect()
                });
                MadePod { pod: view, starts, again }
            })
            .collect()
    }

    /// Has a real pod whose sandbox died made again, for the container at this place that is to start in it;
    /// [`Publisher::take_made_pods`] puts it on its node's bridge.
    ///
    /// # Errors
    /// [`PublishError::Runtime`], [`PublishError::Node`].
    pub fn order_again(&mut self, uid: &str, index: usize) -> Result<(), PublishError> {
        let Some(view) = self.runtime.lost(uid).cloned() else { return Ok(()) };
        let name = objects::pod_name(&view.namespace, &view.name);
        let config = self.link_config(&view, self.node_of(&view, &name)?);
        let ordered = self.runtime.make_again(uid, index, config);
        ordered.map_err(|source| PublishError::Runtime { pod: name, source })
    }

    /// Gives real pods whose eth0 was deleted another; returns what could not be. Those are without.
    pub fn follow_interfaces(&mut self) -> Vec<PublishError> {
        let unplugged = self.runtime.take_unplugged().into_iter();
        unplugged.filter_map(|view| self.plug_in(&view).err()).collect()
    }

    fn plug_in(&mut self, view: &PodView) -> Result<(), PublishError> {
        let name = objects::pod_name(&view.namespace, &view.name);
        let config = self.link_config(view, self.node_of(view, &name)?);
        let tap = self.runtime.make_interface(&view.uid, &config);
        let tap = tap.map_err(|source| PublishError::Runtime { pod: name.clone(), source })?;
        tap.map_or(Ok(()), |tap| self.replace_tap(view, name, tap))
    }

    /// Puts a pod that is not simulated on its node's bridge by another TAP than it may have been there by.
    pub(super) fn replace_tap(&mut self, view: &PodView, name: String, tap: Tap) -> Result<(), PublishError> {
        let node = self.node_of(view, &name)?;
        let mac = self.link_config(view, node).mac;
        self.take_off(view)?;
        self.attach_tap(view, (node, name), mac, tap)
    }

    /// Takes a real pod off its node's bridge, if it is there by an eth0 that it lost.
    fn take_off(&mut self, view: &PodView) -> Result<(), PublishError> {
        let Some((port, name)) = self.pods.remove(&view.identity) else { return Ok(()) };
        self.places.remove(&name);
        let failed = |source| PublishError::Control { what: format!("the removal of pod {name}"), source };
        self.control.detach(port).map_err(failed)
    }

    pub(super) fn attach_tap(
        &mut self,
        view: &PodView,
        (id, name): (NodeId, String),
        mac: MacAddress,
        tap: Tap,
    ) -> Result<(), PublishError> {
        let worker = self.worker();
        let guard = Some(Guard { mac, address: view.address, vip: None });
        let attached = self.control.attach(id, &name, guard, worker, Link::Tap(Box::new(tap)));
        let port =
            attached.map_err(|source| PublishError::Control { what: format!("pod {name}"), source })?;
        self.enter(view, &name, (port, worker), false);
        Ok(())
    }

    /// Says what a pod's interface is, simulated or not.
    pub(super) fn link_config(&self, view: &PodView, node: NodeId) -> LinkConfig {
        let tables = self.control.tables.current();
        let bridge = tables.node(node).and_then(|node| node.bridge.as_ref());
        let (mtu, router) = bridge.map_or((1500, None), |bridge| (bridge.mtu, bridge.router));
        let mac = view.annotations.get(MAC_ANNOTATION).and_then(|text| text.parse().ok());
        LinkConfig {
            mac: mac.unwrap_or(MacAddress::for_ipv4(view.address)),
            address: view.address,
            prefix_length: router.map_or(24, |router| router.subnet.length()),
            gateway: router.map(|router| router.address),
            mtu,
        }
    }

    /// Takes what became of real pods since the last call; those that were told to stop and have are off the network then.
    ///
    /// # Errors
    /// [`PublishError::Control`].
    pub fn take_runtime_news(&mut self) -> Result<Vec<News>, PublishError> {
        let news = self.runtime.take_news();
        for stopped in &news {
            let News::Stopped { pod } = stopped else { continue };
            let name = objects::pod_name(&pod.namespace, &pod.name);
            if let Some(port) = self.stopping.remove(&pod.uid) {
                let failed =
                    |source| PublishError::Control { what: format!("the removal of pod {name}"), source };
                self.control.detach(port).map_err(failed)?;
            }
        }
        Ok(news)
    }
}
