//! The leases of a cluster's subnets as a store has them.
//!
//! `flatnet get subnets` asks an etcd itself by it, or an instance, which asks what its node does. Invariants: nothing is
//! written; every key below `subnets/` is an item or a warning.
//!
//! May depend on agents. Read first: [`flatnet_agents::lease::admit`]; `docs/adr/0035-what-stands-beside-a-lease.md`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use flatnet_agents::lease::admit::Admission;
use flatnet_agents::lease::{self, config::DEFAULT_BACKEND, parse_lease};
use flatnet_agents::node::{NodeError, read_config};
use flatnet_agents::store::{Followed, KeyValue};
use flatnet_agents::{Store, StoreError};
use futures::{StreamExt as _, stream};

use crate::network::with_sources;
use crate::views::{KeyWarning, SubnetEntry, SubnetReport};

/// Leases whose time is asked for at once.
const AT_ONCE: usize = 64;

/// Lists the leases below a prefix; `names` are nodes' by their addresses.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub(crate) async fn list<S: Store>(
    store: &S,
    prefix: &str,
    names: &BTreeMap<Ipv4Addr, String>,
) -> Result<SubnetReport, StoreError> {
    let (mut report, mut network) = (SubnetReport::default(), None);
    match read_config(store, prefix).await {
        Ok((config, _)) => network = Some(config.network),
        Err(NodeError::Store(error)) => return Err(error),
        Err(error) => {
            report.warnings.push(KeyWarning { key: lease::config_key(prefix), why: with_sources(&error) })
        }
    }
    let entries = store.list(&lease::subnets_prefix(prefix)).await?.entries;
    let mut admission = Admission::new(prefix, network, None);
    for entry in &entries {
        admission.apply(&Followed::Put(entry.clone()));
    }
    let warnings = entries.iter().filter_map(|entry| {
        let why = with_sources(admission.refusal(&entry.key)?);
        Some(KeyWarning { key: entry.key.to_string(), why })
    });
    report.warnings.extend(warnings);
    let standing = entries.iter().filter(|entry| admission.stands(&entry.key));
    let asked: Vec<_> = standing.map(|entry| item(store, prefix, entry, names)).collect();
    let mut items = stream::iter(asked).buffered(AT_ONCE);
    while let Some(item) = items.next().await {
        report.items.extend(item?);
    }
    Ok(report)
}

/// Describes a lease; nothing of one that has ended meanwhile.
async fn item<S: Store>(
    store: &S,
    prefix: &str,
    entry: &KeyValue,
    names: &BTreeMap<Ipv4Addr, String>,
) -> Result<Option<SubnetEntry>, StoreError> {
    // What stands has been read.
    let Ok(found) = parse_lease(prefix, &entry.key, &entry.value) else { return Ok(None) };
    let state = match entry.lease {
        None => None,
        Some(id) => match store.lease(id).await {
            Ok(state) => Some(state),
            Err(StoreError::NoLease { .. }) => return Ok(None),
            Err(error) => return Err(error),
        },
    };
    let attributes = found.attributes;
    let backend = attributes.backend_type;
    Ok(Some(SubnetEntry {
        subnet: found.subnet.to_string(),
        public_ip: attributes.public_ip,
        node: names.get(&attributes.public_ip).cloned(),
        backend: if backend.is_empty() { DEFAULT_BACKEND.to_owned() } else { backend },
        age: state.as_ref().map(|state| state.granted.saturating_sub(state.remaining).as_secs()),
        left: state.as_ref().map(|state| state.remaining.as_secs()),
        revision: entry.mod_revision.0,
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flatnet_agents::Embedded;
    use flatnet_agents::store::Op;
    use flatnet_engine::clock::Instant;
    use futures::executor::block_on;

    use super::*;

    #[test]
    fn a_list_has_every_lease_with_its_time_and_every_other_key_with_its_fault() {
        block_on(async {
            let store = Embedded::new();
            store.put("/n/config", *br#"{"Network":"10.3.0.0/16"}"#).await.unwrap();
            let held = store.grant(Duration::from_secs(86_400)).await.unwrap();
            let value = |text: &str| text.as_bytes().into();
            let key = "/n/subnets/10.3.2.0-24".into();
            let put = Op::Put { key, value: value(r#"{"PublicIP":"192.168.66.12"}"#), lease: Some(held) };
            store.transact(Vec::new(), vec![put]).await.unwrap();
            let vxlan = r#"{"PublicIP":"192.168.66.13","BackendType":"vxlan"}"#;
            for (name, text) in
                [("10.3.3.0-24", vxlan), ("10.3.3.0-25", vxlan), ("10.4.0.0-24", vxlan), ("x", vxlan)]
            {
                store.put(&format!("/n/subnets/{name}"), text.as_bytes()).await.unwrap();
            }
            store.advance(Instant::ZERO + Duration::from_secs(3600)).unwrap();
            let names = BTreeMap::from([([192, 168, 66, 12].into(), "node-12".to_owned())]);
            let report = list(&store, "/n", &names).await.unwrap();
            let [leased, reserved] = &report.items[..] else { panic!("{report:?}") };
            assert_eq!((leased.age, leased.left), (Some(3600), Some(82_800)));
            assert_eq!((leased.node.as_deref(), &*leased.backend), (Some("node-12"), "udp"));
            assert_eq!((&*reserved.subnet, reserved.age, reserved.left), ("10.3.3.0/24", None, None));
            assert_eq!((reserved.node.as_deref(), &*reserved.backend), (None, "vxlan"));
            let wrong: Vec<&str> = report.warnings.iter().map(|warning| &*warning.key).collect();
            assert_eq!(wrong, ["/n/subnets/10.3.3.0-25", "/n/subnets/10.4.0.0-24", "/n/subnets/x"]);
        });
    }
}
