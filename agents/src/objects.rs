//! Kubernetes objects in the store: their keys, their JSON, their typed reading and writing.
//!
//! The topology file writes objects, controllers change them, [`crate::store::Follower`] shows them; everyone goes
//! through this file to name and to read them.
//!
//! Invariants: keys are those of Kubernetes' API server; `resourceVersion` is the store's revision and is never stored;
//! a namespaced object without a namespace lies in `default`; names cannot reach outside their directory.
//!
//! May depend on `k8s-openapi`, `serde_json` and [`crate::store`].
//!
//! Read first: the API conventions of Kubernetes, section "metadata".

use std::sync::Arc;

use k8s_openapi::{
    Metadata, Resource,
    api::{
        coordination::v1::Lease,
        core::v1::{Node, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::{
    seed,
    store::{Compare, KeyValue, Op, Outcome, Revision, Store, StoreError},
};

/// The namespace of objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The longest name of an object (RFC 1123 subdomain).
pub const NAME_LIMIT: usize = 253;

/// A kind of object that is kept in the store.
pub trait Object:
    Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Clone + Send + Sync + 'static
{
    /// The directory of its keys, with its final slash.
    const DIRECTORY: &'static str;
    /// Whether it lies in a namespace.
    const NAMESPACED: bool;
}

impl Object for Pod {
    const DIRECTORY: &'static str = "/registry/pods/";
    const NAMESPACED: bool = true;
}

impl Object for Service {
    const DIRECTORY: &'static str = "/registry/services/specs/";
    const NAMESPACED: bool = true;
}

impl Object for EndpointSlice {
    const DIRECTORY: &'static str = "/registry/endpointslices/";
    const NAMESPACED: bool = true;
}

/// Of nodes and of who decides for all; a subnet's lease is none of these.
impl Object for Lease {
    const DIRECTORY: &'static str = "/registry/leases/";
    const NAMESPACED: bool = true;
}

impl Object for Node {
    const DIRECTORY: &'static str = "/registry/minions/";
    const NAMESPACED: bool = false;
}

/// Why an object cannot be read or written.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// It has no name.
    #[error("{kind} has no name")]
    NoName {
        /// The kind.
        kind: &'static str,
    },
    /// Its name or namespace is not a lower-case DNS name.
    #[error("{kind} {name:?} is not a valid name: lower-case letters, digits, '-' and '.' only")]
    BadName {
        /// The kind.
        kind: &'static str,
        /// The name or namespace.
        name: String,
    },
    /// Its JSON is not of the kind.
    #[error("{key} does not hold a {kind}")]
    Json {
        /// The kind.
        kind: &'static str,
        /// The key.
        key: Arc<str>,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Another of that name exists.
    #[error("{kind} {name} exists already")]
    Exists {
        /// The kind.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// It was changed since it was read.
    #[error("{kind} {name} was changed by somebody else")]
    Conflict {
        /// The kind.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Names the key of an object; the namespace of a kind without one is ignored.
pub fn key<T: Object>(namespace: &str, name: &str) -> Arc<str> {
    if T::NAMESPACED {
        format!("{}{namespace}/{name}", T::DIRECTORY).into()
    } else {
        format!("{}{name}", T::DIRECTORY).into()
    }
}

/// Splits the key of a kind into namespace (empty if the kind has none) and name; `None` if it is not such a key.
pub fn parse_key<T: Object>(key: &str) -> Option<(&str, &str)> {
    let rest = key.strip_prefix(T::DIRECTORY)?;
    let (namespace, name) = if T::NAMESPACED { rest.split_once('/')? } else { ("", rest) };
    (!name.is_empty() && !name.contains('/') && (!T::NAMESPACED || !namespace.is_empty()))
        .then_some((namespace, name))
}

/// Writes a pod's name as commands take and print it, `[NAMESPACE/]POD`: [`DEFAULT_NAMESPACE`] is left out.
pub fn pod_name(namespace: &str, name: &str) -> String {
    if namespace == DEFAULT_NAMESPACE { name.to_owned() } else { format!("{namespace}/{name}") }
}

/// Gives an object's namespace, [`DEFAULT_NAMESPACE`] if it names none.
pub fn namespace<T: Object>(object: &T) -> &str {
    object.metadata().namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
}

/// Gives an object's name; empty if it has none.
pub fn name<T: Object>(object: &T) -> &str {
    object.metadata().name.as_deref().unwrap_or_default()
}

/// Names the key of an object.
///
/// # Errors
/// [`ObjectError::NoName`], [`ObjectError::BadName`].
pub fn key_of<T: Object>(object: &T) -> Result<Arc<str>, ObjectError> {
    let (namespace, name) = (namespace(object), name(object));
    if name.is_empty() {
        return Err(ObjectError::NoName { kind: T::KIND });
    }
    for part in [namespace, name] {
        if !is_dns_name(part) {
            return Err(ObjectError::BadName { kind: T::KIND, name: part.into() });
        }
    }
    Ok(key::<T>(namespace, name))
}

/// Says whether a text is an RFC 1123 subdomain, as Kubernetes wants names.
pub fn is_dns_name(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= NAME_LIMIT
        && text.split('.').all(|label| {
            label.bytes().all(|byte| alphanumeric(byte) || byte == b'-')
                && label.bytes().next().is_some_and(alphanumeric)
                && label.bytes().last().is_some_and(alphanumeric)
        })
}

/// Writes an object's JSON as it is stored.
///
/// # Errors
/// [`ObjectError::NoName`], [`ObjectError::BadName`], [`ObjectError::Json`].
pub fn encode<T: Object>(object: &T) -> Result<Arc<[u8]>, ObjectError> {
    let key = key_of(object)?;
    let mut object = object.clone();
    let metadata = object.metadata_mut();
    metadata.resource_version = None;
    if T::NAMESPACED && metadata.namespace.is_none() {
        metadata.namespace = Some(DEFAULT_NAMESPACE.into());
    }
    let json = serde_json::to_vec(&object).map_err(|source| ObjectError::Json {
        kind: T::KIND,
        key: Arc::clone(&key),
        source,
    })?;
    Ok(json.into())
}

/// Reads an object as it is stored and sets its `resourceVersion`.
///
/// # Errors
/// [`ObjectError::Json`].
pub fn decode<T: Object>(entry: &KeyValue) -> Result<T, ObjectError> {
    let mut object: T = serde_json::from_slice(&entry.value).map_err(|source| ObjectError::Json {
        kind: T::KIND,
        key: Arc::clone(&entry.key),
        source,
    })?;
    object.metadata_mut().resource_version = Some(entry.mod_revision.to_string());
    Ok(object)
}

/// Gives the revision at which an object was read; zero if it was not read from a store.
pub fn revision<T: Object>(object: &T) -> Revision {
    let text = object.metadata().resource_version.as_deref();
    Revision(text.and_then(|text| text.parse().ok()).unwrap_or_default())
}

/// Makes the condition and the change that write an object if it is still as it was read, or does not exist if it was
/// not read from a store.
///
/// # Errors
/// As [`encode`].
pub fn write_op<T: Object>(object: &T) -> Result<(Compare, Op), ObjectError> {
    let key = key_of(object)?;
    let value = encode(object)?;
    Ok((
        Compare { key: Arc::clone(&key), mod_revision: revision(object) },
        Op::Put { key, value, lease: None },
    ))
}

/// Reads one object.
///
/// # Errors
/// [`ObjectError::Json`], [`ObjectError::Store`].
pub async fn get<T: Object>(
    store: &impl Store,
    namespace: &str,
    name: &str,
) -> Result<Option<T>, ObjectError> {
    store.get(&key::<T>(namespace, name)).await?.as_ref().map(decode).transpose()
}

/// Reads all objects of a kind, in the order of their keys; those that cannot be read are left out.
///
/// # Errors
/// [`ObjectError::Store`].
pub async fn list<T: Object>(store: &impl Store) -> Result<Vec<T>, ObjectError> {
    let listing = store.list(T::DIRECTORY).await?;
    Ok(listing.entries.iter().filter_map(|entry| decode(entry).ok()).collect())
}

/// Creates an object; its uid comes from the seed, its names and the store's revision unless it has one.
///
/// # Errors
/// [`ObjectError::Exists`], and as [`encode`].
pub async fn create<T: Object>(store: &impl Store, object: &T, seed: u64) -> Result<T, ObjectError> {
    let mut object = object.clone();
    let key = key_of(&object)?;
    if object.metadata().uid.is_none() {
        // The revision makes an object that comes back under its name another one.
        let at = store.list(&key).await?.revision.to_string();
        object.metadata_mut().uid = Some(seed::uid(seed, &[T::KIND, namespace(&object), name(&object), &at]));
    }
    match store.put_if(&key, encode(&object)?, Revision::ZERO).await? {
        Outcome::Done(at) => {
            object.metadata_mut().resource_version = Some(at.to_string());
            Ok(object)
        }
        Outcome::Conflict => Err(ObjectError::Exists { kind: T::KIND, name: name(&object).into() }),
    }
}

/// Writes an object if it is still as it was read.
///
/// # Errors
/// [`ObjectError::Conflict`], and as [`encode`].
pub async fn update<T: Object>(store: &impl Store, object: &T) -> Result<Revision, ObjectError> {
    let (compare, op) = write_op(object)?;
    match store.transact(vec![compare], vec![op]).await? {
        Outcome::Done(at) => Ok(at),
        Outcome::Conflict => Err(ObjectError::Conflict { kind: T::KIND, name: name(object).into() }),
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::store::Embedded;

    fn pod(name: &str) -> Pod {
        Pod { metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }, ..Pod::default() }
    }

    #[test]
    fn keys_are_those_of_the_api_server() {
        assert_eq!(&*key::<Pod>("default", "web"), "/registry/pods/default/web");
        assert_eq!(&*key::<Service>("default", "web"), "/registry/services/specs/default/web");
        assert_eq!(&*key::<EndpointSlice>("a", "b"), "/registry/endpointslices/a/b");
        assert_eq!(&*key::<Node>("ignored", "node-1"), "/registry/minions/node-1");
        assert_eq!(parse_key::<Pod>("/registry/pods/default/web"), Some(("default", "web")));
        assert_eq!(parse_key::<Node>("/registry/minions/node-1"), Some(("", "node-1")));
        for key in
            ["/registry/pods/web", "/registry/pods//web", "/registry/pods/a/", "/registry/pods/a/b/c", "/x"]
        {
            assert_eq!(parse_key::<Pod>(key), None, "{key}");
        }
    }

    #[test]
    fn names_cannot_leave_their_directory() {
        for name in ["", "../x", "a/b", "A", "a..b", "-a", "a-", ".", &"a".repeat(254)] {
            assert!(key_of(&pod(name)).is_err(), "{name}");
        }
        assert!(key_of(&pod("web-app-1.x")).is_ok());
    }

    #[test]
    fn objects_read_back_with_their_revision() {
        block_on(async {
            let store = Embedded::new();
            let made = create(&store, &pod("web"), 7).await.unwrap();
            let mut read: Pod = get(&store, "default", "web").await.unwrap().unwrap();
            assert_eq!(revision(&read), Revision(1));
            assert_eq!(read.metadata.uid, made.metadata.uid);
            assert!(!String::from_utf8_lossy(&encode(&read).unwrap()).contains("resourceVersion"));

            read.metadata.labels = Some([("app".into(), "web".into())].into());
            assert_eq!(update(&store, &read).await.unwrap(), Revision(2));
            assert!(matches!(update(&store, &read).await, Err(ObjectError::Conflict { .. })));
            assert!(matches!(create(&store, &pod("web"), 7).await, Err(ObjectError::Exists { .. })));
        });
    }

    #[test]
    fn object_that_comes_back_is_another_one() {
        block_on(async {
            let store = Embedded::new();
            let first = create(&store, &pod("web"), 7).await.unwrap();
            store.delete("/registry/pods/default/web").await.unwrap();
            let second = create(&store, &pod("web"), 7).await.unwrap();
            assert_ne!(first.metadata.uid, second.metadata.uid);
        });
    }

    #[test]
    fn unreadable_objects_are_left_out_of_lists_and_named_alone() {
        block_on(async {
            let store = Embedded::new();
            create(&store, &pod("web"), 7).await.unwrap();
            store.put("/registry/pods/default/bad", *b"{").await.unwrap();
            assert_eq!(list::<Pod>(&store).await.unwrap().len(), 1);
            let error = get::<Pod>(&store, "default", "bad").await.unwrap_err();
            assert_eq!(error.to_string(), "/registry/pods/default/bad does not hold a Pod");
        });
    }
}
