//! What decides: the store, the node agent, controllers and the publisher.
//!
//! Everything asynchronous of flatnet lives here, and none of it belongs to a runtime: the futures run on a
//! single-threaded executor to quiescence (virtual time) as well as on a server's. The files, in the order in which a
//! change travels:
//!
//! - [`store`]: the revisioned key-value store that holds everything, as one trait.
//! - [`lease`]: flannel's configuration, keys and values, and which subnet a node should claim; pure.
//! - [`node`]: the node agent: claims the subnet, follows the others'.
//! - [`objects`]: Kubernetes objects as JSON in the store.
//! - [`pods`]: what a Pod object says.
//! - [`ipam`]: who has which address or port; pure.
//! - [`controllers`]: the reconcile framework; binding, addresses, endpoints, VIPs.
//! - [`services`]: Service and EndpointSlices as the proxy's plain data; pure.
//! - [`cluster`]: all of it as a stream of plain changes for the publisher.
//! - [`membership`]: which process runs which nodes of a cluster, and which one decides for all.
//! - [`kubelet`]: a pod's life on its node: which containers start again and when, and the status; pure.
//! - [`volumes`]: what a pod's containers can mount.
//! - [`runtime`]: pods whose programs are the host's own.
//! - [`host`]: what interfaces the host has, and its own way to pods.
//! - [`publisher`]: the owner of the engine's control side.
//! - [`seed`]: numbers and uids that a seed determines.

pub mod store;

pub mod lease;

pub mod node;

pub mod objects;

pub mod pods;

pub mod ipam;

pub mod controllers;

pub mod services;

pub mod cluster;

pub mod membership;

pub mod kubelet;

pub mod volumes;

pub mod runtime;

pub mod host;

mod netlink;

pub mod publisher;

pub mod seed;

pub use store::{Embedded, Etcd, NetworkStore, Revision, Store, StoreError};
