//! What a pod and its containers are made of, and what can be wrong with that.
//!
//! The control side fills these in; [`super::Pod`] takes them. Invariant: plain data, no behaviour.
//! Depends on `wire`. Read first: `docs/architecture.md`, "Pods".

use super::image::Image;
use super::volume::Volume;
use crate::wire::MacAddress;
use std::net::Ipv4Addr;

/// Bytes of either buffer of a TCP connection, unless configured.
pub const DEFAULT_TCP_BUFFER: usize = 64 * 1024;

/// A pod to be made.
#[derive(Debug, Clone)]
pub struct PodConfig {
    /// The pod's name, which is its host name too.
    pub name: String,
    /// The namespace the name lives in.
    pub namespace: String,
    /// The address of its card.
    pub mac: MacAddress,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// A Service's address on its `lo`: what comes for it is the pod's, but it asks and answers ARP for it never.
    pub vip: Option<Ipv4Addr>,
    /// Leading bits that its link's addresses share.
    pub prefix_length: u8,
    /// The router for everything else, if any.
    pub gateway: Option<Ipv4Addr>,
    /// The longest IPv4 packet of its link, in octets.
    pub mtu: u16,
    /// The DNS server, if any.
    pub nameserver: Option<Ipv4Addr>,
    /// What DNS names are completed with, first to last.
    pub search: Vec<String>,
    /// Names that need no DNS, as `/etc/hosts` has them.
    pub hosts: Vec<(String, Ipv4Addr)>,
    /// Where its random numbers start.
    pub seed: u64,
    /// Octets of either buffer of a TCP connection.
    pub tcp_buffer: usize,
    /// What its containers can mount, each by its own name.
    pub volumes: Vec<Volume>,
}

impl Default for PodConfig {
    fn default() -> Self {
        PodConfig {
            name: String::from("pod"),
            namespace: String::from("default"),
            mac: MacAddress::default(),
            address: Ipv4Addr::UNSPECIFIED,
            vip: None,
            prefix_length: 24,
            gateway: None,
            mtu: 1500,
            nameserver: None,
            search: Vec::new(),
            hosts: Vec::new(),
            seed: 0,
            tcp_buffer: DEFAULT_TCP_BUFFER,
            volumes: Vec::new(),
        }
    }
}

/// The transport of a container's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A container to be started in a pod.
#[derive(Debug, Clone)]
pub struct ContainerConfig {
    /// Its name, unique in the pod.
    pub name: String,
    /// What it runs.
    pub image: Image,
    /// The ports it listens on; the image's own when empty.
    pub ports: Vec<(Transport, u16)>,
    /// Arguments of its program.
    pub args: Vec<String>,
    /// The pod's volumes that it sees.
    pub mounts: Vec<Mount>,
}

/// A volume's place in a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// The volume's name.
    pub volume: String,
    /// Where it is in the container, from its root on.
    pub path: String,
    /// The part of the volume that is mounted; all of it when empty.
    pub sub_path: String,
    /// Whether the container may not change it.
    pub read_only: bool,
}

/// Why a container does not start or a pod does not do as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    /// The pod is dead.
    #[error("pod {pod} is dead")]
    Dead {
        /// The pod's name.
        pod: String,
    },
    /// Another container has the port; containers of a pod share one stack.
    #[error(
        "container {container} cannot listen on port {port}: address in use by container {holder} of the same pod"
    )]
    AddressInUse {
        /// The container that was to start.
        container: String,
        /// The container that holds the port.
        holder: String,
        /// The port.
        port: u16,
    },
    /// Another container has the name.
    #[error("the pod has a container {container} already")]
    ContainerExists {
        /// The name.
        container: String,
    },
    /// No container has the name.
    #[error("the pod has no container {container}")]
    NoSuchContainer {
        /// The name.
        container: String,
    },
    /// A mount names a volume that the pod does not have.
    #[error("container {container} mounts {volume}, which is no volume of the pod")]
    NoSuchVolume {
        /// The container that was to start.
        container: String,
        /// The volume's name.
        volume: String,
    },
    /// A mount's part of a volume is not there, or not a part of it.
    #[error("container {container}: volume {volume} has no {sub_path:?}, and none can be made")]
    BadSubPath {
        /// The container that was to start.
        container: String,
        /// The volume's name.
        volume: String,
        /// The part.
        sub_path: String,
    },
    /// An argument makes no sense to the image.
    #[error("container {container}: {problem}")]
    BadArgument {
        /// The container that was to start.
        container: String,
        /// What is wrong.
        problem: String,
    },
}
