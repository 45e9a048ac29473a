//! What an instance does when it is told something by a signal: it ends, or reads its routes again.
//!
//! `http` hears signals. Invariant: routes that cannot be read leave those that there are.
//!
//! May depend on [`crate::topology::routes`]. Read first: `docs/topology.md`, "Real nodes".

use flatnet_engine::tables::Tables;
use tokio::signal::unix::SignalKind;

use super::Instance;
use crate::topology::routes::{Own, read_file};

impl Instance {
    /// Ends, but for SIGHUP to a node with a file of routes.
    pub fn heed(&mut self, signal: SignalKind) {
        match self.routes.clone().filter(|_| signal == SignalKind::hangup()) {
            None => self.end(None),
            Some(path) => {
                let network = &mut self.drive.network;
                let Some(own) = own(&network.publisher.control.tables.current()) else { return };
                let said = match read_file(&path, &own) {
                    Ok(routes) => network.set_routes(routes).err().map(miette::Report::new),
                    Err(findings) => Some(findings.into()),
                };
                if let Some(said) = said {
                    eprintln!("warning: the routes stay as they are: {said:?}");
                }
            }
        }
    }
}

/// Returns what the node has itself, the only one of its process.
fn own(tables: &Tables) -> Option<Own> {
    tables.nodes.iter().flatten().find_map(|node| {
        let (pod_network, address) = (node.masquerade?.pods, node.interfaces.first()?.address);
        let subnet = node.bridge.as_ref()?.router?.subnet;
        let backend = node.tunnel.map(|tunnel| tunnel.encapsulation);
        Some(Own { pod_network, address, backend, subnet: Some(subnet) })
    })
}
