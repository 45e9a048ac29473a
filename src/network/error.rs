//! What keeps a network from coming up, or from changing.
//!
//! Read first: [`super::Network`].

use flatnet_agents::StoreError;
use flatnet_agents::host::port::HostPortError;
use flatnet_agents::host::ports::PortsError;
use flatnet_agents::node::NodeError;
use flatnet_agents::objects::ObjectError;
use flatnet_agents::publisher::PublishError;
use flatnet_engine::link::tunnel_socket::TunnelSocketError;
use flatnet_proxy::Ipv4Prefix;

use super::UplinkFault;

/// Why a network does not come up.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum NetworkError {
    /// A node got no subnet.
    #[error("node {node} gets no pod subnet")]
    Claim {
        /// The node's name.
        node: String,
        /// Why.
        #[source]
        source: NodeError,
    },
    /// The network's configuration cannot be written.
    #[error("the pod network {network} cannot be used")]
    Config {
        /// The pod network.
        network: Ipv4Prefix,
        /// Why.
        #[source]
        source: NodeError,
    },
    /// An object cannot be stored.
    #[error("an object of the topology cannot be stored")]
    Object(#[from] ObjectError),
    /// The engine refused a part.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// A node cannot be on the host's own network.
    #[error("node {node} cannot be on this host's network")]
    Socket {
        /// The node's name.
        node: String,
        /// Why.
        #[source]
        source: TunnelSocketError,
        /// What to do.
        #[help]
        help: String,
    },
    /// The host cannot have its way to pods.
    #[error("this host gets no way to the pods through node {node}")]
    HostPort {
        /// The node's name.
        node: String,
        /// Why.
        #[source]
        source: HostPortError,
        /// What to do.
        #[help]
        help: String,
    },
    /// A node cannot use an interface of the host's.
    #[error("node {node} cannot use an interface of this host")]
    Uplink {
        /// The node's name.
        node: String,
        /// Why.
        #[source]
        source: UplinkFault,
        /// What to do.
        #[help]
        help: String,
    },
    /// The ports of a node's translations are not free.
    #[error("node {node} cannot use these ports beside this host's programs")]
    Ports {
        /// The node's name.
        node: String,
        /// Why.
        #[source]
        source: PortsError,
        /// What to do.
        #[help]
        help: String,
    },
    /// The host does not say what interfaces it has.
    #[error("the interfaces of this host cannot be listed")]
    Interfaces(#[source] std::io::Error),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// There is no such lease.
    #[error("node {0} has no lease to delete")]
    NoLease(String),
}
