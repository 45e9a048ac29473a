//! A kernel's node beside one of ours: the same frames go into both.
//!
//! One network namespace holds docker0, two pods' cables and eth0, laid out as the tour's node-1, with MASQUERADE and Services as
//! kube-proxy writes them in nftables; raw sockets at the cables' far ends play the machines. Needs root, `ip`, `nft` and `unshare`.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use flatnet_engine::wire::IcmpType;
use flatnet_proxy::{Backend, Frontend, NodePort, Protocol, Service};
use pnet_datalink::{Channel, Config, DataLinkReceiver, DataLinkSender};

use crate::common::*;

pub const DOCKER0: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 1);
pub const NODE_MTU: u16 = 1400;
/// A Service without a backend.
pub const EMPTY_VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 11);
/// A Service whose backend is on the node network.
pub const OUTSIDE_VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 12);
/// Where frames go in and come out: two pods, and a machine on the node network.
pub const ENDS: [(Ipv4Addr, &str); 3] = [(APP1, "far1"), (APP2, "far2"), (USER, "far0")];

/// node-1 of the tour, as a kernel has it. What is asked once and remembered is told in advance.
const LAYOUT: &str = r"
set -e
sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 net.ipv4.ip_forward=1
sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
sysctl -qw net.bridge.bridge-nf-call-iptables=1
sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0
ip link set lo up
ip link add docker0 address 02:42:0a:01:0f:01 type bridge mcast_snooping 0
ip link add near1 type veth peer name far1
ip link add near2 type veth peer name far2
ip link add eth0 address 02:42:c0:a8:42:0b type veth peer name far0
for link in near1 near2; do ip link set $link master docker0; done
for link in docker0 near1 far1 near2 far2; do ip link set $link mtu 1472; done
ip link set eth0 mtu 1400
for link in far1 far2 far0; do ip link set $link arp off; done
for link in docker0 near1 far1 near2 far2 eth0 far0; do ip link set $link up; done
ip address add 10.1.15.1/24 dev docker0
ip address add 192.168.66.11/24 dev eth0
ip route add default via 192.168.66.1
ip neighbor add 10.1.15.3 lladdr 02:42:0a:01:0f:03 dev docker0
ip neighbor add 10.1.15.2 lladdr 02:42:0a:01:0f:02 dev docker0
ip neighbor add 192.168.66.50 lladdr 02:42:c0:a8:42:32 dev eth0
nft -f - <<'RULES'
table ip nat {
    chain out {
        type nat hook postrouting priority 100;
        ip saddr 10.1.0.0/16 ip daddr != 10.1.0.0/16 oifname eth0 masquerade
        meta mark 0x4000 masquerade
        ip saddr 10.1.15.3 ip daddr 10.1.15.3 masquerade
        ip saddr 10.1.15.2 ip daddr 10.1.15.2 masquerade
    }
    chain services {
        type nat hook prerouting priority -100;
        ip daddr 10.96.0.10 ip saddr != 10.1.0.0/16 meta mark set 0x4000
        ip daddr 192.168.66.11 th dport 30080 meta mark set 0x4000
        ip daddr 10.96.0.10 tcp dport 80 dnat to numgen inc mod 2 map { 0 : 10.1.15.3, 1 : 10.1.15.2 } : 8080
        ip daddr 10.96.0.10 udp dport 80 dnat to numgen inc mod 2 map { 0 : 10.1.15.3, 1 : 10.1.15.2 } : 8080
        ip daddr 10.96.0.12 tcp dport 80 dnat to 192.168.66.50:8080
        ip daddr 192.168.66.11 tcp dport 30080 dnat to 10.1.15.3:8080
        ip daddr 192.168.66.11 udp dport 30080 dnat to 10.1.15.3:8080
    }
    chain empty {
        type filter hook forward priority 0;
        ip daddr 10.96.0.11 reject
    }
}
RULES
";

/// A node to be compared: takes a frame at one end, gives what comes out at all.
pub trait Node {
    fn exchange(&mut self, at: Ipv4Addr, frames: &[Vec<u8>]) -> BTreeMap<Ipv4Addr, Vec<Vec<u8>>>;
}

/// A raw socket at the far end of a cable.
struct Socket {
    sender: Box<dyn DataLinkSender>,
    receiver: Box<dyn DataLinkReceiver>,
}

pub struct Kernel(BTreeMap<Ipv4Addr, Socket>);

impl Kernel {
    pub fn new() -> Self {
        let made = Command::new("sh").arg("-c").arg(LAYOUT).status().unwrap();
        assert!(made.success(), "the namespace could not be laid out");
        let interfaces = pnet_datalink::interfaces();
        let open = |name: &str| {
            let interface = interfaces.iter().find(|it| it.name == name).unwrap();
            let config = Config { read_timeout: Some(Duration::from_millis(20)), ..Config::default() };
            let Channel::Ethernet(sender, receiver) = pnet_datalink::channel(interface, config).unwrap()
            else {
                unreachable!("{name} is an Ethernet")
            };
            Socket { sender, receiver }
        };
        Self(ENDS.iter().map(|&(at, name)| (at, open(name))).collect())
    }

    fn send(&mut self, at: Ipv4Addr, frame: &[u8]) {
        self.0.get_mut(&at).unwrap().sender.send_to(frame, None).unwrap().unwrap();
    }
}

impl Node for Kernel {
    /// An echo from the node itself behind the frames, and its answer, say that they are through.
    fn exchange(&mut self, at: Ipv4Addr, frames: &[Vec<u8>]) -> BTreeMap<Ipv4Addr, Vec<Vec<u8>>> {
        for frame in frames {
            self.send(at, frame);
        }
        let own = if at == USER { NODE1 } else { DOCKER0 };
        let end = echo_packet(at, own, IcmpType::EchoRequest, 0xe0d, 64);
        self.send(at, &ethernet(mac(own), mac(at), &end));
        let is_end = |frame: &[u8]| {
            frame.len() > 38 && frame[23] == 1 && frame[34] == 0 && frame[38..40] == [0x0e, 0x0d]
        };
        let mut seen: BTreeMap<Ipv4Addr, Vec<Vec<u8>>> = BTreeMap::new();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        // The end where frames go in is read first: when the answer is there, all else is.
        let order = std::iter::once(at).chain(ENDS.iter().map(|end| end.0).filter(|&end| end != at));
        for end in order {
            let receiver = &mut self.0.get_mut(&end).unwrap().receiver;
            loop {
                match receiver.next() {
                    Ok(frame) if end == at && is_end(frame) => break,
                    // The kernel's own word on its groups.
                    Ok(frame) if frame[12..14] == [8, 0] && frame[23] == 2 => {}
                    Ok(frame) => seen.entry(end).or_default().push(frame.to_vec()),
                    Err(_) if end != at => break,
                    Err(_) => assert!(std::time::Instant::now() < deadline, "the kernel has not answered"),
                }
            }
        }
        seen
    }
}

pub struct Ours(pub Lab);

impl Ours {
    pub fn new() -> Self {
        let mut lab = Lab::new(1);
        let id = lab.node1;
        lab.control.tables.publish(|tables| {
            let mut node = (**tables.node(id).unwrap()).clone();
            node.interfaces[0].mtu = NODE_MTU;
            tables.set_node(id, Some(node));
        });
        let two = [(APP1, 1), (APP2, 2)].map(|(address, identity)| Backend::new(address, 8080, identity));
        let outside = [Backend::new(USER, 8080, 9)];
        for (id, protocol) in [(0, Protocol::Tcp), (1, Protocol::Udp)] {
            let vip = |address| vec![Frontend { address, port: 80, protocol }];
            let mut serve = |number: u32, backends: &[Backend], frontends, node_ports| {
                let service = Service { id: number + id, backends: backends.into(), ..Service::default() };
                lab.control.set_service(service, frontends, node_ports).unwrap();
            };
            serve(0, &two, vip(VIP), vec![]);
            serve(2, &[], vip(EMPTY_VIP), vec![]);
            serve(4, &two[..1], vec![], vec![NodePort { port: 30_080, protocol }]);
            serve(6, &outside, vip(OUTSIDE_VIP), vec![]);
        }
        // Who is asked for once is known from the start.
        let hello = lab.udp(APP2, USER, (9, 9), b"");
        lab.send(APP2, &hello);
        lab.settle(USER);
        Self(lab)
    }
}

impl Node for Ours {
    fn exchange(&mut self, at: Ipv4Addr, frames: &[Vec<u8>]) -> BTreeMap<Ipv4Addr, Vec<Vec<u8>>> {
        for frame in frames {
            self.0.send(at, frame);
        }
        let taken = ENDS.iter().map(|&(end, _)| (end, self.0.take(end)));
        taken.filter(|(_, frames)| !frames.is_empty()).collect()
    }
}

/// Runs an ignored test of this program in a network namespace of its own.
pub fn in_a_namespace(test: &str) {
    let this = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .arg("--net")
        .arg(this)
        .args(["--exact", test, "--ignored", "--nocapture"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "(needs root, ip, nft, unshare)\n{text}");
    assert!(text.contains("1 passed"), "{text}");
}
