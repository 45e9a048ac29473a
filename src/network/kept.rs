//! What a store on disk holds from before, and what becomes of it when a topology is brought up again.
//!
//! [`super::Network::bring_up`] calls these before and while it writes a topology's objects. With an empty store they
//! only create.
//!
//! Invariants: an object that is there and says what the topology says of it stays, with its uid, address and all; one
//! that says something else is replaced; objects that the topology does not name stay, except what a node that is gone
//! has had.
//!
//! May depend on agents. Read first: `docs/adr/0017-the-store-on-disk.md`.

use std::sync::Arc;

use flatnet_agents::lease;
use flatnet_agents::objects::{self, Object, ObjectError};
use flatnet_agents::{Store, pods};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::Value;

use crate::topology::Topology;

/// Removes the nodes that the topology does not have, their pods and their leases. Of a cluster whose nodes are these, `every`, the
/// leases are others' to end.
pub(super) async fn forget_nodes(
    store: &impl Store,
    prefix: &str,
    topology: &Topology,
    every: Option<&[String]>,
) -> Result<(), ObjectError> {
    let known = |name: &str| match every {
        Some(every) => every.iter().any(|known| known == name),
        None => topology.nodes.iter().any(|node| node.name == name),
    };
    for node in objects::list::<Node>(store).await?.iter().filter(|node| !known(objects::name(*node))) {
        store.delete(&objects::key_of(node)?).await?;
    }
    for pod in objects::list::<Pod>(store).await? {
        if pods::node_name(&pod).is_some_and(|node| !known(node)) {
            store.delete(&objects::key_of(&pod)?).await?;
        }
    }
    if every.is_some() {
        return Ok(());
    }
    for entry in store.list(&lease::subnets_prefix(prefix)).await?.entries {
        let holder = lease::parse_lease(prefix, &entry.key, &entry.value);
        let is_node = |address| topology.nodes.iter().any(|node| node.interface.address == address);
        let is_elsewhere = |lease: &lease::Lease| {
            let peer = topology.routes.get(&lease.subnet);
            peer.is_some_and(|peer| peer.address == lease.attributes.public_ip)
        };
        if holder.is_ok_and(|lease| !is_node(lease.attributes.public_ip) && !is_elsewhere(&lease)) {
            store.delete(&entry.key).await?;
        }
    }
    Ok(())
}

/// Creates an object, or leaves it as it is if it says what this one says.
pub(super) async fn ensure<T: Object>(store: &impl Store, object: &T, seed: u64) -> Result<(), ObjectError> {
    let key = objects::key_of(object)?;
    if let Some(entry) = store.get(&key).await? {
        if says(&json(&key, &entry.value)?, &json(&key, &objects::encode(object)?)?) {
            return Ok(());
        }
        store.delete(&key).await?;
    }
    match objects::create(store, object, seed).await {
        // By another process, which was told the same.
        Err(ObjectError::Exists { .. }) => Ok(()),
        created => created.map(|_| ()),
    }
}

fn json(key: &Arc<str>, bytes: &[u8]) -> Result<Value, ObjectError> {
    let failed = |source| ObjectError::Json { kind: "JSON object", key: Arc::clone(key), source };
    serde_json::from_slice(bytes).map_err(failed)
}

/// Tells whether all that is wanted is so; what controllers added beside it does not matter.
fn says(stored: &Value, wanted: &Value) -> bool {
    match (stored, wanted) {
        (Value::Object(stored), Value::Object(wanted)) => {
            wanted.iter().all(|(name, wanted)| stored.get(name).is_some_and(|stored| says(stored, wanted)))
        }
        (Value::Array(stored), Value::Array(wanted)) => {
            stored.len() == wanted.len() && stored.iter().zip(wanted).all(|(one, other)| says(one, other))
        }
        (stored, wanted) => stored == wanted,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_says_what_is_wanted_with_whatever_was_added_to_it() {
        let stored = json!({"a": 1, "ports": [{"port": 80, "nodePort": 30080}], "added": {"x": 1}});
        let cases = [
            (json!({}), true),
            (json!({"a": 1, "ports": [{"port": 80}]}), true),
            (json!({"a": 2}), false),
            (json!({"ports": [{"port": 81}]}), false),
            (json!({"ports": []}), false),
            (json!({"b": null}), false),
        ];
        for (wanted, expected) in cases {
            assert_eq!(says(&stored, &wanted), expected, "{wanted}");
        }
    }
}
