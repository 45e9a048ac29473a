//! Who holds which pod subnet, as the store says that the node's own lease lies in.
//!
//! `http` answers `/v1/subnets` with it. Invariant: an etcd is waited for by the server, never by the control thread.
//!
//! May depend on agents. Read first: [`crate::subnets`].

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use flatnet_agents::lease::DEFAULT_PREFIX;
use flatnet_agents::{Embedded, Etcd};

use super::{Instance, RequestError};
use crate::network::with_sources;
use crate::subnets;
use crate::views::{NodeKind, SubnetReport};

/// Where the leases lie, and what is known of their holders.
pub(super) struct Source {
    store: Embedded,
    cluster: Option<(Etcd, String)>,
    names: BTreeMap<Ipv4Addr, String>,
}

impl Instance {
    /// Says where the leases are to be asked for.
    pub(super) fn subnet_source(&self) -> Source {
        let mut names = BTreeMap::new();
        let nodes = self.status().nodes.into_iter().filter(|node| node.kind == NodeKind::Node);
        let cluster = self.drive.network.cluster();
        for node in nodes {
            let told = cluster.as_ref().map(|(_, _, public_ip)| *public_ip);
            names.extend(
                node.addresses.iter().copied().chain(told).map(|address| (address, node.name.clone())),
            );
        }
        let store = self.drive.network.store.own().clone();
        Source { store, cluster: cluster.map(|(etcd, prefix, _)| (etcd, prefix)), names }
    }
}

impl Source {
    /// Lists them.
    pub(super) async fn list(&self) -> Result<SubnetReport, RequestError> {
        let listed = match &self.cluster {
            Some((etcd, prefix)) => subnets::list(etcd, prefix, &self.names).await,
            None => subnets::list(&self.store, DEFAULT_PREFIX, &self.names).await,
        };
        listed.map_err(|error| RequestError::Store(with_sources(&error)))
    }
}
