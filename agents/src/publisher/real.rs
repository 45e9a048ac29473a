//! Pods that are real: put on the network by their TAPs, and what becomes of them.
//!
//! Invariant: a pod that is told to stop keeps its port until its programs have ended; its name is free at once.
//!
//! May depend on the engine and [`crate::runtime`]. Read first: `agents/src/runtime.rs`.

use std::sync::Arc;

use flatnet_engine::link::Link;
use flatnet_engine::tables::NodeId;

use super::{Guard, MacAddress, Place, PublishError, Publisher, Start, objects};
use crate::pods::PodView;
use crate::runtime::{News, link::LinkConfig};

impl Publisher {
    /// Makes a real pod, puts it on its node's bridge, and starts its containers.
    pub(super) fn add_real_pod(
        &mut self,
        view: &Arc<PodView>,
        node: NodeId,
        name: String,
    ) -> Result<Vec<Start>, PublishError> {
        let config = self.link_config(view, node);
        let failed = |source| PublishError::Runtime { pod: name.clone(), source };
        let tap = self.runtime.add(view, &config).map_err(failed)?;
        let worker = self.worker();
        let guard = Some(Guard { mac: config.mac, address: view.address, vip: None });
        let attached = self.control.attach(node, &name, guard, worker, Link::Tap(Box::new(tap)));
        let port =
            attached.map_err(|source| PublishError::Control { what: format!("pod {name}"), source })?;
        self.pods.insert(view.identity, (port, name.clone()));
        let place = Place { port, worker, address: view.address, node: Some(Arc::from(&*view.node)) };
        self.places.insert(name, place);
        Ok((0..view.containers.len()).map(|index| self.runtime.start(&view.uid, index)).collect())
    }

    fn link_config(&self, view: &PodView, node: NodeId) -> LinkConfig {
        let tables = self.control.tables.current();
        let bridge = tables.node(node).and_then(|node| node.bridge.as_ref());
        let (mtu, router) = bridge.map_or((1500, None), |bridge| (bridge.mtu, bridge.router));
        LinkConfig {
            mac: MacAddress::for_ipv4(view.address),
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
