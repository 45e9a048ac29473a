//! Two nodes whose tunnel leads through the host's own network: sockets at loopback addresses, which need no privileges.

use std::net::{SocketAddrV4, UdpSocket};

use flatnet_engine::ledger::Term;
use flatnet_engine::link::tunnel_socket::TunnelSocket;

use super::*;

pub const PORT: u16 = 8285;

/// Addresses of the host's that no other test and no other run has.
pub fn address(test: u8, last: u8) -> Ipv4Addr {
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, test << 4 | last, high, low)
}

pub struct Sockets {
    pub lab: Lab,
    pub own: [Ipv4Addr; 2],
    pub ports: [PortId; 2],
}

impl Sockets {
    pub fn new(test: u8, large_buffers: u32) -> Self {
        Self::over(Encapsulation::Udp, test, large_buffers)
    }

    /// The same two nodes, carrying packets like this.
    pub fn over(encapsulation: Encapsulation, test: u8, large_buffers: u32) -> Self {
        Self::at(encapsulation, [1, 2].map(|last| address(test, last)), large_buffers)
    }

    /// The same at two of the host's addresses.
    pub fn at(encapsulation: Encapsulation, own: [Ipv4Addr; 2], large_buffers: u32) -> Self {
        let config =
            EngineConfig { workers: 1, small_buffers: 2048, large_buffers, ..EngineConfig::default() };
        let (mut control, workers) = Control::build(&config).unwrap();
        let mut ports = Vec::new();
        let mut node = |name: &str, address, subnet: &str| {
            let spec = NodeSpec {
                name: Arc::from(name),
                address,
                network: prefix("127.0.0.0/8"),
                gateway: None,
                subnet: prefix(subnet),
                pod_network: prefix("10.1.0.0/16"),
                profile: Profile::Linux,
                tunnel_port: PORT,
                encapsulation: Some(encapsulation),
                mtu: u16::MAX,
            };
            let id = control.add_node(&spec).unwrap();
            let socket = TunnelSocket::open(SocketAddrV4::new(address, PORT), encapsulation).unwrap();
            let link = Link::TunnelSocket(Box::new(socket));
            ports.push(control.attach_interface(id, 0, 0, link).unwrap());
            control.let_link_find_peers(id).unwrap();
            let lease = Lease { public_ip: address, vtep: None };
            control.tables.publish(|tables| tables.set_lease(prefix(subnet), Some(lease)));
            id
        };
        let (node1, node2) = (node("node-1", own[0], "10.1.15.0/24"), node("node-2", own[1], "10.1.20.0/24"));
        let mut lab = Lab {
            control,
            workers,
            machines: BTreeMap::new(),
            now: Instant::ZERO,
            switch: NodeId(u16::MAX),
            node1,
            node2,
            isp: NodeId(u16::MAX),
            wires: Vec::new(),
        };
        lab.pod(node1, "app-1", APP1, Ipv4Addr::new(10, 1, 15, 1), 0);
        lab.pod(node2, "app-3", APP3, Ipv4Addr::new(10, 1, 20, 1), 0);
        lab.run();
        Self { lab, own, ports: [ports[0], ports[1]] }
    }

    /// Takes the first node away, so that whoever likes sends from its tunnel's address and port.
    pub fn take_peer_away(&mut self) {
        self.lab.control.detach(self.ports[0]).unwrap();
        self.lab.run();
    }

    /// Sends datagrams to the second node from an address of the host's; returns what the node then dropped, by reason.
    pub fn hostile(&mut self, from: (Ipv4Addr, u16), payload: &[u8]) -> Vec<(DropReason, u64)> {
        let before = self.lab.ledger(self.lab.node2);
        let socket = UdpSocket::bind(from).unwrap();
        socket.send_to(payload, (self.own[1], PORT)).unwrap();
        self.lab.run();
        let after = self.lab.ledger(self.lab.node2);
        assert_eq!(after.term(Term::Received), before.term(Term::Received) + 1);
        let news = DropReason::ALL.iter().map(|&reason| (reason, after.drops(reason) - before.drops(reason)));
        news.filter(|&(_, count)| count > 0).collect()
    }
}
