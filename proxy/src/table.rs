//! Which Service answers at a VIP or NodePort.
//!
//! The publisher changes a clone and publishes it; the engine asks it for the first packet of a flow. `show services`
//! prints it.
//!
//! Invariants: a frontend and a NodePort lead to one Service only; every key of a Service is in its record and the
//! reverse; an address is a VIP as long as one frontend has it. A clone is an O(1) snapshot, a change copies one shard
//! per key.
//!
//! May depend on [`crate::pool`], [`crate::service`] and [`crate::shards`].
//!
//! Read first: the service proxy of Kubernetes in its LVS mode.

use std::{error::Error, fmt, net::Ipv4Addr, sync::Arc};

use crate::{
    pool::Balancer,
    service::{Forwarding, Frontend, NodePort, Protocol, Service},
    shards::Shards,
};

/// All Services of a cluster.
#[derive(Clone, Debug, Default)]
pub struct Table {
    frontends: Shards<Frontend, Arc<Balancer>>,
    node_ports: Shards<NodePort, Arc<Balancer>>,
    vips: Shards<Ipv4Addr, u32>,
    rows: Shards<u32, Arc<Row>>,
}

/// A Service with the keys that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The Service, ready to be asked.
    pub service: Arc<Balancer>,
    /// Its VIPs' ports, sorted.
    pub frontends: Vec<Frontend>,
    /// Its NodePorts, sorted.
    pub node_ports: Vec<NodePort>,
}

/// Why a Service cannot be put into the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableError {
    /// Another Service already answers at the address.
    FrontendTaken {
        /// The wanted key.
        frontend: Frontend,
        /// The name of the Service that has it.
        holder: Arc<str>,
    },
    /// Another Service already answers at the node port.
    NodePortTaken {
        /// The wanted key.
        node_port: NodePort,
        /// The name of the Service that has it.
        holder: Arc<str>,
    },
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FrontendTaken { frontend, holder } => write!(f, "{frontend} belongs to Service {holder}"),
            Self::NodePortTaken { node_port, holder } => write!(f, "{node_port} belongs to Service {holder}"),
        }
    }
}

impl Error for TableError {}

impl Table {
    /// Makes a table without Services.
    pub fn new() -> Self {
        Self::default()
    }

    /// Finds the Service at a VIP's port (host byte order).
    pub fn lookup(&self, address: Ipv4Addr, port: u16, protocol: Protocol) -> Option<&Arc<Balancer>> {
        self.frontends.get(&Frontend { address, port, protocol })
    }

    /// Finds the Service at a port (host byte order) of a node.
    pub fn lookup_node_port(&self, port: u16, protocol: Protocol) -> Option<&Arc<Balancer>> {
        self.node_ports.get(&NodePort { port, protocol })
    }

    /// Says whether any Service has this address, at whatever port.
    pub fn is_vip(&self, address: Ipv4Addr) -> bool {
        self.vips.contains_key(&address)
    }

    /// Says whether backends answer by themselves from a VIP's port (host byte order): by direct routing or a tunnel.
    pub fn is_answered_directly(&self, address: Ipv4Addr, port: u16, protocol: Protocol) -> bool {
        self.lookup(address, port, protocol).is_some_and(|service| service.forwarding != Forwarding::Nat)
    }

    /// Finds a Service and its keys by id.
    pub fn get(&self, id: u32) -> Option<&Row> {
        self.rows.get(&id).map(Arc::as_ref)
    }

    /// Counts the Services.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Says whether there is no Service.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Lists all Services by name, then id, as `show services` prints them.
    pub fn list(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().map(|(_, row)| row.as_ref()).collect();
        rows.sort_by(|left, right| {
            (&left.service.name, left.service.id).cmp(&(&right.service.name, right.service.id))
        });
        rows
    }

    /// Puts a Service with exactly these keys, in place of the one with the same id, whose other keys go.
    ///
    /// # Errors
    /// [`TableError`] if another Service has one of the keys; the table is then as before.
    pub fn insert(
        &mut self,
        service: Service,
        mut frontends: Vec<Frontend>,
        mut node_ports: Vec<NodePort>,
    ) -> Result<(), TableError> {
        frontends.sort_unstable();
        frontends.dedup();
        node_ports.sort_unstable();
        node_ports.dedup();
        self.check_free(service.id, &frontends, &node_ports)?;

        self.remove(service.id);
        let service = Arc::new(Balancer::new(service));
        for &frontend in &frontends {
            self.frontends.insert(frontend, Arc::clone(&service));
            let users = self.vips.get(&frontend.address).map_or(1, |users| users + 1);
            self.vips.insert(frontend.address, users);
        }
        for &node_port in &node_ports {
            self.node_ports.insert(node_port, Arc::clone(&service));
        }
        self.rows.insert(service.id, Arc::new(Row { service, frontends, node_ports }));
        Ok(())
    }

    /// Removes a Service with all its keys and returns what it was.
    pub fn remove(&mut self, id: u32) -> Option<Arc<Row>> {
        let row = self.rows.remove(&id)?;
        for frontend in &row.frontends {
            self.frontends.remove(frontend);
            match self.vips.get(&frontend.address) {
                Some(&users) if users > 1 => self.vips.insert(frontend.address, users - 1),
                Some(_) | None => self.vips.remove(&frontend.address),
            };
        }
        for node_port in &row.node_ports {
            self.node_ports.remove(node_port);
        }
        Some(row)
    }

    fn check_free(&self, id: u32, frontends: &[Frontend], node_ports: &[NodePort]) -> Result<(), TableError> {
        for &frontend in frontends {
            if let Some(other) = self.frontends.get(&frontend).filter(|other| other.id != id) {
                return Err(TableError::FrontendTaken { frontend, holder: Arc::clone(&other.name) });
            }
        }
        for &node_port in node_ports {
            if let Some(other) = self.node_ports.get(&node_port).filter(|other| other.id != id) {
                return Err(TableError::NodePortTaken { node_port, holder: Arc::clone(&other.name) });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::service::Backend;

    fn service(id: u32) -> Service {
        let backend = Backend::new([10, 1, 15, 2].into(), 80, 1);
        Service {
            id,
            name: format!("default/s{id}:80").into(),
            backends: [backend].into(),
            ..Service::default()
        }
    }

    fn tcp(last: u8, port: u16) -> Frontend {
        Frontend { address: [10, 96, 0, last].into(), port, protocol: Protocol::Tcp }
    }

    #[test]
    fn service_is_found_by_vip_and_by_node_port() {
        let mut table = Table::new();
        table
            .insert(service(0), vec![tcp(10, 80)], vec![NodePort { port: 30080, protocol: Protocol::Tcp }])
            .unwrap();

        assert_eq!(table.lookup([10, 96, 0, 10].into(), 80, Protocol::Tcp).unwrap().id, 0);
        assert_eq!(table.lookup_node_port(30080, Protocol::Tcp).unwrap().id, 0);
        assert!(table.lookup([10, 96, 0, 10].into(), 80, Protocol::Udp).is_none());
        assert!(table.lookup_node_port(30080, Protocol::Udp).is_none());
        assert!(table.lookup([10, 96, 0, 10].into(), 81, Protocol::Tcp).is_none());
        assert!(table.is_vip([10, 96, 0, 10].into()));
        assert!(!table.is_vip([10, 96, 0, 11].into()));
    }

    #[test]
    fn replacement_drops_keys_that_the_new_one_lacks() {
        let mut table = Table::new();
        table.insert(service(0), vec![tcp(10, 80), tcp(11, 80)], vec![]).unwrap();
        table.insert(service(0), vec![tcp(11, 80)], vec![]).unwrap();

        assert!(!table.is_vip([10, 96, 0, 10].into()));
        assert!(table.is_vip([10, 96, 0, 11].into()));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn address_stays_a_vip_while_another_port_uses_it() {
        let mut table = Table::new();
        table.insert(service(0), vec![tcp(10, 80)], vec![]).unwrap();
        table.insert(service(1), vec![tcp(10, 81)], vec![]).unwrap();
        table.remove(0);
        assert!(table.is_vip([10, 96, 0, 10].into()));
        table.remove(1);
        assert!(!table.is_vip([10, 96, 0, 10].into()));
    }

    #[test]
    fn taken_key_is_refused_and_nothing_changes() {
        let mut table = Table::new();
        table.insert(service(0), vec![tcp(10, 80)], vec![]).unwrap();
        let error = table.insert(service(1), vec![tcp(9, 80), tcp(10, 80)], vec![]).unwrap_err();

        assert_eq!(error.to_string(), "TCP 10.96.0.10:80 belongs to Service default/s0:80");
        assert!(!table.is_vip([10, 96, 0, 9].into()));
        assert_eq!(table.len(), 1);
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_model_and_snapshots_never_change(
            steps in prop::collection::vec((0u32..6, any::<bool>(), prop::collection::btree_set((0u8..4, 80u16..83), 0..4)), 0..60),
        ) {
            let mut table = Table::new();
            let mut model: BTreeMap<u32, Vec<Frontend>> = BTreeMap::new();
            let mut history = Vec::new();
            for (id, remove, keys) in steps {
                history.push((table.clone(), model.clone()));
                let frontends: Vec<_> = keys.into_iter().map(|(last, port)| tcp(last, port)).collect();
                if remove {
                    prop_assert_eq!(table.remove(id).map(|row| row.frontends.clone()), model.remove(&id));
                } else {
                    let taken = model.iter().any(|(&other, held)| other != id && held.iter().any(|key| frontends.contains(key)));
                    prop_assert_eq!(table.insert(service(id), frontends.clone(), vec![]).is_err(), taken);
                    if !taken {
                        model.insert(id, frontends);
                    }
                }
            }
            history.push((table, model));
            for (table, model) in history {
                for (last, port) in (0..4).flat_map(|last| (80..83).map(move |port| (last, port))) {
                    let key = tcp(last, port);
                    let owner = model.iter().find(|(_, held)| held.contains(&key)).map(|(&id, _)| id);
                    prop_assert_eq!(table.lookup(key.address, port, Protocol::Tcp).map(|found| found.id), owner);
                    prop_assert_eq!(
                        table.is_vip(key.address),
                        model.values().flatten().any(|held| held.address == key.address)
                    );
                }
                prop_assert_eq!(
                    table.list().iter().map(|row| row.service.id).collect::<Vec<_>>(),
                    model.keys().copied().collect::<Vec<_>>()
                );
            }
        }
    }
}
