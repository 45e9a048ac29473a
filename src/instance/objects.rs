//! The store's objects: listed as they are, deleted by name.
//!
//! `http` answers `/v1/objects` with it. Invariants: what is listed is what the store holds, with its revision; a store that is an
//! etcd is waited for by the server, never by the control thread.
//!
//! May depend on agents. Read first: `agents/src/objects.rs`.

use flatnet_agents::objects::{self, Object};
use flatnet_agents::{NetworkStore, Store as _};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;

use super::RequestError;
use crate::args::Kind;
use crate::network::with_sources;

/// Lists the objects of a kind, or the one of a name, `[NAMESPACE/]NAME`.
///
/// # Errors
/// [`RequestError::Object`], [`RequestError::Store`].
pub(super) async fn list(
    store: &NetworkStore,
    kind: Kind,
    name: Option<&str>,
) -> Result<Vec<Value>, RequestError> {
    match kind {
        Kind::Pods => list_of::<Pod>(store, kind, name).await,
        Kind::Services => list_of::<Service>(store, kind, name).await,
        Kind::Nodes => list_of::<Node>(store, kind, name).await,
        Kind::Endpointslices => list_of::<EndpointSlice>(store, kind, name).await,
        // Leases are no objects: `subnets` lists them.
        Kind::Subnets => Ok(Vec::new()),
    }
}

async fn list_of<T: Object>(
    store: &NetworkStore,
    kind: Kind,
    name: Option<&str>,
) -> Result<Vec<Value>, RequestError> {
    let failed = |error: &dyn std::error::Error| RequestError::Store(with_sources(error));
    let mut objects = objects::list::<T>(store).await.map_err(|error| failed(&error))?;
    if let Some(name) = name {
        let known = objects.iter().map(object_name).collect();
        objects.retain(|object| object_name(object) == name);
        if objects.is_empty() {
            return Err(RequestError::Object { kind: kind.singular(), name: name.to_owned(), known });
        }
    }
    objects.iter().map(|object| serde_json::to_value(object).map_err(|error| failed(&error))).collect()
}

/// Deletes an object by `[NAMESPACE/]NAME`; its pods and endpoints follow.
///
/// # Errors
/// [`RequestError::Object`], [`RequestError::Kept`], [`RequestError::Store`].
pub(super) async fn delete(store: &NetworkStore, kind: Kind, name: &str) -> Result<(), RequestError> {
    list(store, kind, Some(name)).await?;
    let (namespace, name) = name.split_once('/').unwrap_or((objects::DEFAULT_NAMESPACE, name));
    let key = match kind {
        Kind::Pods => objects::key::<Pod>(namespace, name),
        Kind::Services => objects::key::<Service>(namespace, name),
        Kind::Nodes | Kind::Endpointslices | Kind::Subnets => return Err(RequestError::Kept(kind)),
    };
    let deleted = store.delete(&key).await;
    deleted.map(drop).map_err(|error| RequestError::Store(with_sources(&error)))
}

fn object_name<T: Object>(object: &T) -> String {
    if T::NAMESPACED {
        objects::pod_name(objects::namespace(object), objects::name(object))
    } else {
        objects::name(object).to_owned()
    }
}
