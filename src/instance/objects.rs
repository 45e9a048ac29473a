//! The store's objects: listed as they are, deleted by name.
//!
//! `http` answers `/v1/objects` with it. Invariants: what is listed is what the store holds, with its revision; what is
//! deleted goes as the agents take it away, before the answer.
//!
//! May depend on agents. Read first: `agents/src/objects.rs`.

use flatnet_agents::objects::{self, Object};
use futures::executor::block_on;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;

use super::{Instance, RequestError};
use crate::args::Kind;
use crate::network::{NetworkError, with_sources};

impl Instance {
    /// Lists the objects of a kind, or the one of a name, `[NAMESPACE/]NAME`.
    ///
    /// # Errors
    /// [`RequestError::Object`], [`RequestError::Store`].
    pub fn objects(&self, kind: Kind, name: Option<&str>) -> Result<Vec<Value>, RequestError> {
        match kind {
            Kind::Pods => self.list::<Pod>(kind, name),
            Kind::Services => self.list::<Service>(kind, name),
            Kind::Nodes => self.list::<Node>(kind, name),
            Kind::Endpointslices => self.list::<EndpointSlice>(kind, name),
            // Leases are no objects: `subnets` lists them.
            Kind::Subnets => Ok(Vec::new()),
        }
    }

    fn list<T: Object>(&self, kind: Kind, name: Option<&str>) -> Result<Vec<Value>, RequestError> {
        let failed = |error: &dyn std::error::Error| RequestError::Store(with_sources(error));
        let store = &self.drive.network.store;
        let mut objects = block_on(objects::list::<T>(store)).map_err(|error| failed(&error))?;
        if let Some(name) = name {
            let known = objects.iter().map(object_name).collect();
            objects.retain(|object| object_name(object) == name);
            if objects.is_empty() {
                return Err(RequestError::Object { kind: kind.singular(), name: name.to_owned(), known });
            }
        }
        objects.iter().map(|object| serde_json::to_value(object).map_err(|error| failed(&error))).collect()
    }

    /// Deletes an object by `[NAMESPACE/]NAME`.
    ///
    /// # Errors
    /// [`RequestError::Object`], [`RequestError::Kept`], [`RequestError::Store`].
    pub fn delete_object(&mut self, kind: Kind, name: &str) -> Result<(), RequestError> {
        self.objects(kind, Some(name))?;
        let (namespace, name) = name.split_once('/').unwrap_or((objects::DEFAULT_NAMESPACE, name));
        let network = &mut self.drive.network;
        let deleted = match kind {
            Kind::Pods => network.delete::<Pod>(namespace, name),
            Kind::Services => network.delete::<Service>(namespace, name),
            Kind::Nodes | Kind::Endpointslices | Kind::Subnets => return Err(RequestError::Kept(kind)),
        };
        deleted.map_err(|error: NetworkError| RequestError::Store(with_sources(&error)))?;
        self.drive.settle();
        Ok(())
    }
}

fn object_name<T: Object>(object: &T) -> String {
    if T::NAMESPACED {
        objects::pod_name(objects::namespace(object), objects::name(object))
    } else {
        objects::name(object).to_owned()
    }
}
