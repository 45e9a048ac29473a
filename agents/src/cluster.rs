//! The store's content as a stream of plain changes for whoever moves packets.
//!
//! The publisher calls [`watch_cluster`] with a sink; leases, nodes, pods and Services arrive as what they mean, not as
//! JSON.
//!
//! Invariants: applying the changes in order gives the store's content; nothing is said twice; a pod that lost its
//! identity is removed before its successor appears; a burst of changes gives one change per Service; a VIP's port or a
//! NodePort belongs to one Service at any time, the older one, and to the next when that lets go.
//!
//! May depend on [`crate::controllers`], [`crate::services`], [`crate::node`].
//!
//! Read first: [`crate::store::follow`].

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::Ipv4Addr,
    sync::Arc,
};

use flatnet_engine::tunnel::Encapsulation;
use flatnet_proxy::{Frontend, Ipv4Prefix, NodePort};
use futures::TryStreamExt;
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};

use crate::{
    controllers::{Followers, Mirror, Warning, address::internal_address, created, endpoints::SERVICE_LABEL},
    lease,
    node::{Holder, RouteChange, Routes},
    objects::{self, Object},
    pods::PodView,
    services::{Converted, ServiceIds, WEIGHT_ANNOTATION, convert},
    store::{Followed, Revision, Store, StoreError},
};

/// What changed in the cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A node holds a subnet; replaces what was said about the subnet.
    Lease {
        /// The subnet.
        subnet: Ipv4Prefix,
        /// The holder.
        holder: Holder,
    },
    /// Nobody holds the subnet any more.
    LeaseRemoved {
        /// The subnet.
        subnet: Ipv4Prefix,
    },
    /// A node is there, with this address in the node network.
    Node {
        /// Its name.
        name: Arc<str>,
        /// Its InternalIP.
        address: Ipv4Addr,
    },
    /// A node is gone, or has no address any more.
    NodeRemoved {
        /// Its name.
        name: Arc<str>,
    },
    /// A pod has a node and an address; replaces what was said about the same identity.
    Pod(Arc<PodView>),
    /// A pod is gone, or all its containers have ended.
    PodRemoved(Arc<PodView>),
    /// A port of a Service; replaces what was said about the same id.
    Service {
        /// The Service with its id and backends.
        service: flatnet_proxy::Service,
        /// Its VIPs' ports.
        frontends: Vec<Frontend>,
        /// Its NodePorts.
        node_ports: Vec<NodePort>,
    },
    /// A port of a Service is gone; its id may come back with another.
    ServiceRemoved {
        /// Its id.
        id: u32,
        /// `namespace/name:port`.
        name: Arc<str>,
    },
    /// Something that a person should know; nothing changed.
    Warning(Warning),
}

/// Reports the cluster whose leases lie below `prefix`, of nodes that take packets carried like this, to the sink, first as it is, then every change, until the store
/// fails.
///
/// # Errors
/// [`StoreError`] other than a compaction; what was reported stays true as far as known. Calling it again reports
/// everything anew.
pub async fn watch_cluster<S: Store>(
    store: &S,
    prefix: &str,
    encapsulation: Option<Encapsulation>,
    mut sink: impl FnMut(Change),
) -> Result<Infallible, StoreError> {
    let directories = [
        lease::subnets_prefix(prefix),
        Node::DIRECTORY.into(),
        Pod::DIRECTORY.into(),
        Service::DIRECTORY.into(),
        EndpointSlice::DIRECTORY.into(),
    ];
    let mut followers = Followers::new(store, &directories);
    let mut picture = Picture::new(prefix, encapsulation);
    loop {
        while let Some(change) = followers.take_ready().or_else(restored)? {
            picture.apply(&change, &mut sink);
        }
        if followers.are_current() {
            picture.settle(&mut sink);
        }
        if let Some(change) = followers.try_next().await.or_else(restored)? {
            picture.apply(&change, &mut sink);
        }
    }
}

/// Goes on where the store is not the one it was: how that differs comes next.
fn restored(error: StoreError) -> Result<Option<Followed>, StoreError> {
    if matches!(error, StoreError::Restored { .. }) { Ok(None) } else { Err(error) }
}

/// What has been reported, and what it was made from.
struct Picture {
    leases: Routes,
    nodes: BTreeMap<Arc<str>, Ipv4Addr>,
    pods: BTreeMap<Arc<str>, Arc<PodView>>,
    services: Mirror<Service>,
    slices: Mirror<EndpointSlice>,
    /// The keys of slices by the key of the Service that they name.
    slices_of: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    reported: BTreeMap<Arc<str>, Vec<Converted>>,
    ids: ServiceIds,
    /// Services to convert again once the burst is over.
    pending: BTreeSet<Arc<str>>,
    /// When each Service came to exist.
    created: BTreeMap<Arc<str>, Revision>,
    /// Which Service answers at which key.
    holders: BTreeMap<Claim, Arc<str>>,
    /// Services that were refused a key of another.
    refused: BTreeSet<Arc<str>>,
}

/// A key of the proxy's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    Frontend(Frontend),
    NodePort(NodePort),
}

impl Picture {
    fn new(prefix: &str, encapsulation: Option<Encapsulation>) -> Self {
        Self {
            leases: Routes::new(prefix, None, encapsulation),
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            services: Mirror::default(),
            slices: Mirror::default(),
            slices_of: BTreeMap::new(),
            reported: BTreeMap::new(),
            ids: ServiceIds::default(),
            pending: BTreeSet::new(),
            created: BTreeMap::new(),
            holders: BTreeMap::new(),
            refused: BTreeSet::new(),
        }
    }

    fn apply(&mut self, change: &Followed, sink: &mut impl FnMut(Change)) {
        let key = change.key();
        let result = if key.starts_with(Node::DIRECTORY) {
            decode(change).map(|node| self.apply_node(change, node.as_ref(), sink))
        } else if key.starts_with(Pod::DIRECTORY) {
            decode(change).map(|pod| self.apply_pod(key, pod.as_ref(), sink))
        } else if key.starts_with(Service::DIRECTORY) {
            self.pending.insert(Arc::clone(key));
            self.created.insert(Arc::clone(key), created(change));
            self.services.apply(change).map(|_| ())
        } else if key.starts_with(EndpointSlice::DIRECTORY) {
            self.apply_slice(change)
        } else {
            self.apply_lease(change, sink);
            Ok(())
        };
        if let Err(error) = result {
            sink(warning(key, error.to_string()));
        }
    }

    fn apply_lease(&mut self, change: &Followed, sink: &mut impl FnMut(Change)) {
        match self.leases.apply(change) {
            Some(RouteChange::Add { subnet, holder }) => sink(Change::Lease { subnet, holder }),
            Some(RouteChange::Remove { subnet }) => sink(Change::LeaseRemoved { subnet }),
            Some(RouteChange::Skipped { key, reason }) => sink(warning(&key, reason.to_string())),
            // Without an own lease none can be lost.
            Some(RouteChange::OwnLost { .. }) | None => {}
        }
    }

    fn apply_node(&mut self, change: &Followed, node: Option<&Node>, sink: &mut impl FnMut(Change)) {
        let Some((_, name)) = objects::parse_key::<Node>(change.key()) else { return };
        let name: Arc<str> = name.into();
        match node.and_then(internal_address) {
            Some(address) => {
                if self.nodes.insert(Arc::clone(&name), address) != Some(address) {
                    sink(Change::Node { name, address });
                }
            }
            None => {
                if self.nodes.remove(&name).is_some() {
                    sink(Change::NodeRemoved { name });
                }
            }
        }
    }

    fn apply_pod(&mut self, key: &Arc<str>, pod: Option<&Pod>, sink: &mut impl FnMut(Change)) {
        let after = pod.and_then(PodView::read).map(Arc::new);
        let before = self.pods.get(key);
        if before == after.as_ref() {
            return;
        }
        let gone =
            before.filter(|before| after.as_ref().is_none_or(|after| after.identity != before.identity));
        let weight = |view: &Arc<PodView>| view.annotations.get(WEIGHT_ANNOTATION).cloned();
        if before.and_then(weight) != after.as_ref().and_then(weight)
            && let Some((namespace, _)) = objects::parse_key::<Pod>(key)
        {
            let services = self.services.in_namespace(namespace);
            self.pending.extend(services.map(|(key, _)| Arc::clone(key)));
        }
        if let Some(gone) = gone {
            sink(Change::PodRemoved(Arc::clone(gone)));
        }
        match after {
            Some(after) => {
                self.pods.insert(Arc::clone(key), Arc::clone(&after));
                sink(Change::Pod(after));
            }
            None => {
                self.pods.remove(key);
            }
        }
    }

    fn apply_slice(&mut self, change: &Followed) -> Result<(), objects::ObjectError> {
        let key = change.key();
        if let Some(service) = self.slices.get(key).and_then(service_of) {
            if let Some(slices) = self.slices_of.get_mut(&service) {
                slices.remove(key);
            }
            self.pending.insert(service);
        }
        self.slices.apply(change)?;
        if let Some(service) = self.slices.get(key).and_then(service_of) {
            self.slices_of.entry(Arc::clone(&service)).or_default().insert(Arc::clone(key));
            self.pending.insert(service);
        }
        Ok(())
    }

    /// Converts the Services that may have changed and reports those that did.
    fn settle(&mut self, sink: &mut impl FnMut(Change)) {
        while !self.pending.is_empty() {
            let mut keys: Vec<Arc<str>> = std::mem::take(&mut self.pending).into_iter().collect();
            keys.sort_by_key(|key| self.created.get(key).copied());
            for key in keys {
                self.convert_again(&key, sink);
            }
        }
    }

    fn convert_again(&mut self, key: &Arc<str>, sink: &mut impl FnMut(Change)) {
        let keys = self.slices_of.get(key).into_iter().flatten();
        let slices: Vec<&EndpointSlice> = keys.filter_map(|slice| self.slices.get(slice)).collect();
        let service = self.services.get(key);
        let namespace = objects::parse_key::<Service>(key).map_or("", |(namespace, _)| namespace);
        let pod = |name: &str| self.pods.get(&*objects::key::<Pod>(namespace, name));
        let annotations = |name: &str| pod(name).map(|view| &view.annotations);
        let (mut after, mut warnings) =
            service.map(|service| convert(service, &slices, &annotations)).unwrap_or_default();
        if service.is_none() {
            self.created.remove(key);
        }
        self.claim(key, &mut after, &mut warnings);
        let before = self.reported.remove(key).unwrap_or_default();

        for gone in
            before.iter().filter(|before| after.iter().all(|after| after.service.name != before.service.name))
        {
            if let Some(id) = self.ids.release(&gone.service.name) {
                sink(Change::ServiceRemoved { id, name: Arc::clone(&gone.service.name) });
            }
        }
        for new in after.iter().filter(|after| !before.contains(after)) {
            sink(Change::Service {
                service: new.with_id(self.ids.assign(&new.service.name)),
                frontends: new.frontends.clone(),
                node_ports: new.node_ports.clone(),
            });
        }
        if after != before {
            warnings.into_iter().for_each(|text| sink(warning(key, text)));
        }
        if !after.is_empty() {
            self.reported.insert(Arc::clone(key), after);
        }
    }

    /// Takes the keys that a Service may have and strikes those that another has; what it lets go, the refused try again.
    fn claim(&mut self, key: &Arc<str>, wanted: &mut [Converted], warnings: &mut Vec<String>) {
        let before: BTreeSet<Claim> = self.reported.get(key).into_iter().flatten().flat_map(claims).collect();
        self.refused.remove(key);
        let (holders, refused) = (&mut self.holders, &mut self.refused);
        let mut take = |claim: Claim, what: String| match holders.get(&claim) {
            Some(holder) if holder != key => {
                warnings.push(format!("{what} belongs to {holder}"));
                refused.insert(Arc::clone(key));
                false
            }
            Some(_) | None => {
                holders.insert(claim, Arc::clone(key));
                true
            }
        };
        for service in wanted.iter_mut() {
            service.frontends.retain(|&frontend| take(Claim::Frontend(frontend), frontend.to_string()));
            service.node_ports.retain(|&port| take(Claim::NodePort(port), port.to_string()));
        }
        let after: BTreeSet<Claim> = wanted.iter().flat_map(claims).collect();
        for claim in before.difference(&after) {
            self.holders.remove(claim);
            self.pending.extend(std::mem::take(&mut self.refused));
        }
    }
}

fn claims(service: &Converted) -> impl Iterator<Item = Claim> {
    let frontends = service.frontends.iter().copied().map(Claim::Frontend);
    frontends.chain(service.node_ports.iter().copied().map(Claim::NodePort))
}

fn decode<T: Object>(change: &Followed) -> Result<Option<T>, objects::ObjectError> {
    match change {
        Followed::Put(entry) => objects::decode(entry).map(Some),
        Followed::Delete(_) => Ok(None),
    }
}

fn service_of(slice: &EndpointSlice) -> Option<Arc<str>> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?;
    Some(objects::key::<Service>(objects::namespace(slice), service))
}

fn warning(key: &Arc<str>, text: String) -> Change {
    Change::Warning(Warning { controller: "cluster", key: Arc::clone(key), text })
}
