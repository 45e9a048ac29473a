//! What a Service is: VIP to backends, schedulers; pure, no I/O and no clock.
//!
//! The leaf of the workspace: the engine calls it like any function, the agents fill it. It knows addresses and
//! numbers only; it depends on `std` alone. The files, in the order in which a packet to a Service asks them:
//!
//! - [`table`]: which Service answers at a VIP or NodePort, and whether an address is a VIP at all.
//! - [`service`]: the plain data of a Service: its frontends, backends, scheduler and policies.
//! - [`pool`]: what is worked out of it when it is published: who may get flows from where.
//! - [`affinity`]: which backend a client's flows went to before.
//! - [`schedule`]: which backend a new flow tries first, and which others after it.
//! - [`maglev`]: the lookup table of consistent hashing.
//! - [`shards`]: the copy-on-write map under the table, which the engine also uses for endpoints and routes.
//! - [`prefix`]: an IPv4 prefix, shared by every package above.

pub mod table;

pub mod service;

pub mod pool;

pub mod affinity;

pub mod schedule;

pub mod maglev;

pub mod shards;

pub mod prefix;

pub use affinity::{Affinity, Session};
pub use pool::{Balancer, Pool};
pub use prefix::{Ipv4Prefix, PrefixError};
pub use schedule::{Cursors, Load, Request, choose};
pub use service::{Backend, Forwarding, Frontend, NodePort, Protocol, Scheduler, Service, TrafficPolicy};
pub use shards::{SHARD_COUNT, Shards};
pub use table::{Row, Table, TableError};
