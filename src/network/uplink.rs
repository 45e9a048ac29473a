//! What a node on the host's own network has beside its tunnel: the host's way in, and a raw uplink.
//!
//! [`Network::bring_up`] calls it for nodes that are to have it. Invariant: what is changed of the host goes with the network, or
//! `flatnet clean` finds it.
//!
//! May depend on agents and engine. Read first: `docs/adr/0028-a-nodes-way-out-and-in.md`.

use flatnet_agents::host;
use flatnet_agents::host::firewall::{self, FirewallError};
use flatnet_agents::host::port::{self, HostPortConfig, HostPortError};
use flatnet_agents::host::ports::{self, DEFAULT_PORTS, PortsError};
use flatnet_engine::control::host::UplinkSpec;
use flatnet_engine::link::filter::filter;
use flatnet_engine::link::tap::TapError;
use flatnet_engine::link::uplink::{self, UplinkError};
use flatnet_engine::masquerade::{NODE_PORTS, PortRange};
use flatnet_engine::tunnel::Encapsulation;
use flatnet_proxy::Ipv4Prefix;

use super::{Network, NetworkError};
use crate::topology::{Node, Topology};

impl Network {
    /// Gives this host its way to pods and Services through a node.
    pub(super) fn add_host_port(
        &mut self,
        topology: &Topology,
        node: &Node,
        (name, subnet, mtu): (&str, Ipv4Prefix, u16),
    ) -> Result<(), NetworkError> {
        let failed = |source: HostPortError| {
            let help = host_port_advice(&source);
            NetworkError::HostPort { node: node.name.clone(), source, help }
        };
        let tap = port::make(&HostPortConfig {
            name: name.to_owned(),
            subnet,
            eth0: topology.backend.is_none().then_some(node.interface.address),
            pod_network: topology.pod_network,
            service_network: topology.service_network,
            mtu: mtu.saturating_sub(topology.backend.map_or(0, Encapsulation::overhead)),
        });
        let ports = masquerade_ports(topology, node)?;
        self.publisher.add_host_port(&node.name, tap.map_err(failed)?, ports)?;
        Ok(())
    }

    /// Lets a node send and receive by the host's interface that has its address; with host-gw what is for its pods' subnet, too.
    pub(super) fn add_uplink(
        &mut self,
        topology: &Topology,
        node: &Node,
        subnet: Ipv4Prefix,
    ) -> Result<(), NetworkError> {
        let ports = masquerade_ports(topology, node)?;
        let address = node.interface.address;
        let failed = |source: UplinkFault| {
            let help = uplink_advice(&source, topology.backend);
            NetworkError::Uplink { node: node.name.clone(), source, help }
        };
        let interfaces = host::interfaces().map_err(NetworkError::Interfaces)?;
        let found = interfaces.into_iter().find(|interface| interface.has(address));
        let Some(host::Interface { name, index, mac: Some(mac), .. }) = found else {
            let name = found.map(|interface| interface.name).unwrap_or_default();
            return Err(failed(UplinkFault::NoEthernet(name)));
        };
        let routes = host::routes(index).map_err(NetworkError::Interfaces)?;
        let own = [ports, PortRange { first: *NODE_PORTS.start(), last: *NODE_PORTS.end() }];
        let taken = ports::in_use(address, &own).map_err(NetworkError::Interfaces)?;
        if !taken.is_empty() {
            self.warnings.push(format!(
                "node {}: programs of this host listen at {} of {address}: what comes there by {name} is the node's",
                node.name,
                taken.join(", ")
            ));
        }
        // Opened first: who may not have it changes nothing.
        let pods = topology.backend.is_none().then_some(subnet);
        let tap = uplink::open((&name, index), &filter(address, &own, pods))
            .map_err(|error| failed(error.into()))?;
        let rules = firewall::keep_silent(&node.name, &name, address, &own, pods);
        self.rules.push(rules.map_err(|error| failed(error.into()))?);
        self.publisher.add_uplink(&node.name, (&UplinkSpec { mac, routes }, tap), ports)?;
        Ok(())
    }
}

/// Why a node has no uplink.
#[derive(Debug, thiserror::Error)]
pub enum UplinkFault {
    /// The interface of the address is none that a node can speak on.
    #[error("{0} is no Ethernet: it has no MAC, or no ARP")]
    NoEthernet(String),
    /// The interface's frames cannot be had.
    #[error(transparent)]
    Open(#[from] UplinkError),
    /// The host cannot be kept from answering.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
}

/// Returns the ports that a node's translations use beside this host's programs.
fn masquerade_ports(topology: &Topology, node: &Node) -> Result<PortRange, NetworkError> {
    let ports = node.host.masquerade_ports.unwrap_or(DEFAULT_PORTS);
    ports::check(ports, topology.port).map_err(|source| {
        let PortRange { first, last } = ports;
        let help = match &source {
            PortsError::Given { .. } => format!(
                "`sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last}` keeps them free; or give other ones \
                 (--masquerade-ports)"
            ),
            PortsError::Tunnel { .. } | PortsError::Unknown { .. } => {
                "give other ones (--masquerade-ports)".to_owned()
            }
        };
        NetworkError::Ports { node: node.name.clone(), source, help }
    })?;
    Ok(ports)
}

/// Says what to do about an interface that cannot be used.
fn uplink_advice(fault: &UplinkFault, backend: Option<Encapsulation>) -> String {
    match fault {
        UplinkFault::Open(UplinkError::NotAllowed { .. })
        | UplinkFault::Firewall(FirewallError::NotAllowed)
            if backend.is_none() =>
        {
            "host-gw needs the capabilities CAP_NET_RAW and CAP_NET_ADMIN; --backend udp and vxlan need none".to_owned()
        }
        UplinkFault::Open(UplinkError::NotAllowed { .. }) | UplinkFault::Firewall(FirewallError::NotAllowed) => {
            "without the capabilities CAP_NET_RAW and CAP_NET_ADMIN leave --uplink away: pods reach each other on all nodes, and \
             nothing outside"
                .to_owned()
        }
        UplinkFault::Firewall(FirewallError::Program(_)) => {
            "install nftables: without its rules this host would reset the node's connections".to_owned()
        }
        UplinkFault::Firewall(FirewallError::Taken { .. }) => {
            "give this node another --name, or end the other".to_owned()
        }
        UplinkFault::Firewall(FirewallError::Refused(_)) => {
            "this kernel needs nf_tables, with a table of the family ip and comments".to_owned()
        }
        UplinkFault::NoEthernet(_) | UplinkFault::Open(UplinkError::System { .. }) if backend.is_none() => {
            "give an --address of another interface, or --backend udp or vxlan".to_owned()
        }
        UplinkFault::NoEthernet(_) | UplinkFault::Open(UplinkError::System { .. }) => {
            "leave --uplink away, or give an --address of another interface".to_owned()
        }
    }
}

/// Says what to do about a way to pods that the host cannot have.
fn host_port_advice(error: &HostPortError) -> String {
    match error {
        HostPortError::Tap(TapError::NotAllowed { .. }) => {
            "without the capability CAP_NET_ADMIN leave --host-port away: pods and tunnel need none, `flatnet exec` and `flatnet \
             capture` work"
                .to_owned()
        }
        HostPortError::Tap(TapError::Taken { .. }) => {
            "another node of this host may have it: each needs a name of its own (--host-port)".to_owned()
        }
        HostPortError::Tap(TapError::Device { .. }) => "`chmod 0666 /dev/net/tun` is what systems do".to_owned(),
        HostPortError::Tap(TapError::Name(_) | TapError::System { .. }) => {
            "/dev/net/tun must be there: `modprobe tun`".to_owned()
        }
        HostPortError::RouteTaken(network) => {
            format!("`ip route show {network}` says by whom; two ways to one network cannot both be used")
        }
        HostPortError::Set { .. } => "it needs the capability CAP_NET_ADMIN".to_owned(),
    }
}
