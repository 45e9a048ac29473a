//! Leases that people change: those of nodes elsewhere, by a file of routes, and one that is taken from its node.
//!
//! Invariant: a lease is written as its node would write it.
//!
//! May depend on agents. Read first: `agents/src/lease/mod.rs`.

use flatnet_agents::lease::{self, Attributes, DEFAULT_PREFIX};
use flatnet_agents::{Store as _, StoreError};
use flatnet_engine::tunnel::vtep_mac;

use super::{Network, NetworkError};
use crate::topology::{Peer, Routes};

impl Network {
    /// Says which subnets nodes hold that are elsewhere: their leases, as they would write them. Those that are not said any
    /// more are withdrawn.
    ///
    /// # Errors
    /// [`NetworkError::Store`].
    pub fn set_routes(&mut self, routes: Routes) -> Result<(), NetworkError> {
        let before = std::mem::replace(&mut self.routes, routes.clone());
        let (store, backend) = (self.store.clone(), self.backend);
        self.pool.run_until(async move {
            for subnet in before.keys().filter(|subnet| !routes.contains_key(subnet)) {
                store.delete(&lease::subnet_key(DEFAULT_PREFIX, *subnet)).await?;
            }
            for (subnet, Peer { address, mac }) in &routes {
                let vtep = mac.unwrap_or_else(|| vtep_mac(subnet.address()));
                let value = Attributes::new(*address, backend, vtep).to_json().into_bytes();
                store.put(&lease::subnet_key(DEFAULT_PREFIX, *subnet), value).await?;
            }
            Ok::<_, StoreError>(())
        })?;
        Ok(())
    }

    /// Deletes a node's lease, as its expiry would.
    ///
    /// # Errors
    /// [`NetworkError::NoLease`], [`NetworkError::Store`].
    pub fn delete_lease(&mut self, node: &str) -> Result<(), NetworkError> {
        let missing = || NetworkError::NoLease(node.into());
        let id = self.publisher.node(node).ok_or_else(missing)?;
        let tables = self.publisher.control.tables.current();
        let subnet =
            tables.node(id).and_then(|node| node.bridge.as_ref()?.router).ok_or_else(missing)?.subnet;
        let key = lease::subnet_key(DEFAULT_PREFIX, subnet);
        let store = self.store.clone();
        self.pool.run_until(async move {
            let entry = store.get(&key).await?;
            let entry = entry.ok_or_else(|| NetworkError::NoLease(node.into()))?;
            store.delete(&entry.key).await?;
            Ok(())
        })
    }
}
