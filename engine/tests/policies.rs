//! Who may get a Service's flow: traffic policies, session affinity, ended backends, hairpins, least connections.
//!
//! The rules are kube-proxy's (`pkg/proxy/topology.go`, `pkg/proxy/iptables/proxier.go`) and LVS's; each test runs on one,
//! two and three workers.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::wire::{IcmpType, TcpFlags};
use flatnet_proxy::{Backend, Frontend, Load, Protocol, Scheduler, Service, TrafficPolicy};
use std::net::Ipv4Addr;
use std::time::Duration;

const PODS: [Ipv4Addr; 4] = [APP1, APP2, APP3, BACKEND];
const NODE_PORT: u16 = 30_080;

/// All four pods, each on its node, with its place in `PODS` as identity.
fn everyone() -> Vec<Backend> {
    let node = |index| if index < 2 { "node-1" } else { "node-2" };
    PODS.iter().enumerate().map(|(index, &pod)| on(node(index), pod, index as u64)).collect()
}

fn labs() -> impl Iterator<Item = Lab> {
    (1..=3).map(Lab::new)
}

/// A flow's packet: who sends from which port to what, over TCP or UDP.
#[derive(Debug, Clone, Copy)]
struct Flow {
    from: Ipv4Addr,
    port: u16,
    to: (Ipv4Addr, u16),
    tcp: bool,
}

impl Flow {
    fn new(from: Ipv4Addr, port: u16, to: (Ipv4Addr, u16)) -> Self {
        Self { from, port, to, tcp: true }
    }

    fn packet(&self, flags: TcpFlags) -> Vec<u8> {
        let ports = (self.port, self.to.1);
        match self.tcp {
            true => tcp_packet(self.from, self.to.0, ports, flags),
            false => udp_packet(self.from, self.to.0, ports, b"hello", 64),
        }
    }

    /// Sends a packet, from outside straight to the node that is asked.
    fn send(&self, lab: &mut Lab, flags: TcpFlags) {
        let next = if self.from == USER { mac(self.to.0) } else { lab.machines[&self.from].gateway };
        lab.send(self.from, &ethernet(next, mac(self.from), &self.packet(flags)));
        lab.receive(USER);
    }
}

/// A packet that a pod got: at which, its source, its ports.
type Got = (usize, Ipv4Addr, (u16, u16));

fn kept(lab: &mut Lab, pod: Ipv4Addr) -> Vec<(Ipv4Addr, (u16, u16))> {
    let frames = lab.receive(pod);
    let read = frames.iter().map(|frame| {
        let (source, to, _, payload) = packet(frame);
        assert_eq!(to, pod);
        (source, ports(&payload))
    });
    read.collect()
}

fn arrivals(lab: &mut Lab) -> Vec<Got> {
    let mut got = Vec::new();
    for (index, pod) in PODS.into_iter().enumerate() {
        // What is not for a server's port is a refusal to a client.
        let served = kept(lab, pod).into_iter().filter(|(.., (_, port))| *port == 80);
        got.extend(served.map(|(source, ports)| (index, source, ports)));
    }
    got
}

/// Opens a flow and says which pod got its first packet.
fn open(lab: &mut Lab, flow: Flow) -> Option<Got> {
    flow.send(lab, TcpFlags::SYN);
    let got = arrivals(lab);
    assert!(got.len() <= 1, "{got:?}");
    got.first().copied()
}

/// Has the pod answer, and checks that the client sees who it asked.
fn answer(lab: &mut Lab, flow: Flow, got: Got) {
    let (pod, source, (port, own)) = got;
    let pod = PODS[pod];
    let packet_of = |flags| match flow.tcp {
        true => tcp_packet(pod, source, (own, port), flags),
        false => udp_packet(pod, source, (own, port), b"answer", 64),
    };
    let next = if lab.same_segment(pod, source) && source != lab_gateway(pod) {
        mac(source)
    } else {
        lab.machines[&pod].gateway
    };
    lab.send(pod, &ethernet(next, mac(pod), &packet_of(TcpFlags::SYN.with(TcpFlags::ACK))));
    let mut frames = lab.receive(flow.from);
    if frames.is_empty() && flow.from == USER {
        frames = lab.settle(USER);
    }
    assert_eq!(frames.len(), 1, "{flow:?} {got:?}");
    let (from, to, _, payload) = packet(&frames[0]);
    assert_eq!((from, to, ports(&payload)), (flow.to.0, flow.from, (flow.to.1, flow.port)));
}

fn lab_gateway(pod: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = pod.octets();
    Ipv4Addr::new(a, b, c, 1)
}

/// Whether anybody was told of a refusal.
fn is_told(lab: &mut Lab, client: Ipv4Addr) -> bool {
    !lab.receive(client).is_empty()
}

#[test]
fn external_policy_local_keeps_the_client_and_stays_on_the_node() {
    for mut lab in labs() {
        lab.serve(|service| {
            service.external = TrafficPolicy::Local;
            service.backends = everyone().into();
        });
        for port in 1000..1006 {
            for tcp in [true, false] {
                let flow = Flow { tcp, ..Flow::new(USER, port, (NODE2, NODE_PORT)) };
                let got = open(&mut lab, flow).unwrap();
                assert!(got.0 >= 2, "node-2's pods only");
                assert_eq!((got.1, got.2), (USER, (port, 80)), "not masqueraded");
                answer(&mut lab, flow, got);
            }
        }
        lab.check();
    }
}

#[test]
fn external_policy_cluster_masquerades_and_goes_anywhere() {
    for mut lab in labs() {
        lab.serve(|service| service.backends = everyone().into());
        let mut seen = [0; 4];
        for port in 1000..1008 {
            let flow = Flow::new(USER, port, (NODE1, NODE_PORT));
            let got = open(&mut lab, flow).unwrap();
            assert_ne!(got.1, USER);
            seen[got.0] += 1;
            answer(&mut lab, flow, got);
        }
        assert_eq!(seen, [2; 4]);
        lab.check();
    }
}

#[test]
fn local_policies_without_a_backend_here_drop_in_silence_and_without_any_they_refuse() {
    for mut lab in labs() {
        let local = |service: &mut Service| {
            (service.external, service.internal) = (TrafficPolicy::Local, TrafficPolicy::Local);
        };
        lab.serve(|service| {
            local(service);
            service.backends = [on("node-2", BACKEND, 3)].into();
        });
        for flow in [Flow::new(USER, 1000, (NODE1, NODE_PORT)), Flow::new(APP2, 1000, (VIP, 80))] {
            assert_eq!(open(&mut lab, flow), None);
            assert!(!is_told(&mut lab, flow.from));
        }
        assert_eq!(lab.drops(DropReason::NoLocalBackend), 2);
        assert_eq!(open(&mut lab, Flow::new(APP3, 1000, (VIP, 80))).unwrap().0, 3, "where it is it serves");
        lab.serve(local);
        Flow::new(APP2, 1001, (VIP, 80)).send(&mut lab, TcpFlags::SYN);
        assert!(is_told(&mut lab, APP2));
        lab.check();
    }
}

/// kube-proxy, externalPolicyLocal: what a pod sends to a NodePort "is subject to neither form of traffic policy".
#[test]
fn a_pod_that_asks_a_node_port_of_its_node_is_under_neither_policy() {
    for mut lab in labs() {
        lab.serve(|service| {
            (service.external, service.internal) = (TrafficPolicy::Local, TrafficPolicy::Local);
            service.backends = [on("node-2", BACKEND, 3)].into();
        });
        let flow = Flow::new(APP2, 1000, (NODE1, NODE_PORT));
        let got = open(&mut lab, flow).unwrap();
        assert_eq!((got.0, got.1), (3, APP2), "and keeps its address where policy Local does");
        answer(&mut lab, flow, got);
        lab.check();
    }
}

/// kube-proxy, CategorizeEndpoints: for the cluster and for each node by itself terminating backends must do or not.
#[test]
fn terminating_backends_get_flows_only_where_none_is_ready() {
    for mut lab in labs() {
        let terminating = |index: usize| {
            let mut backend = everyone().swap_remove(index);
            backend.terminating = true;
            backend
        };
        lab.serve(|service| {
            service.external = TrafficPolicy::Local;
            service.backends = [terminating(1), terminating(2), everyone()[3].clone()].into();
        });
        for port in 1000..1004 {
            assert_eq!(open(&mut lab, Flow::new(APP1, port, (VIP, 80))).unwrap().0, 3);
            assert_eq!(open(&mut lab, Flow::new(USER, port, (NODE1, NODE_PORT))).unwrap().0, 1);
            assert_eq!(open(&mut lab, Flow::new(USER, port, (NODE2, NODE_PORT))).unwrap().0, 3);
        }
        lab.serve(|service| service.backends = [terminating(1), terminating(2)].into());
        let two = [
            open(&mut lab, Flow::new(APP1, 2000, (VIP, 80))),
            open(&mut lab, Flow::new(APP1, 2001, (VIP, 80))),
        ];
        let mut two = two.map(|got| got.unwrap().0);
        two.sort_unstable();
        assert_eq!(two, [1, 2]);
        lab.check();
    }
}

/// DESIGN: an ended backend's TCP flows live until they end or its pod is gone; UDP flows choose again.
#[test]
fn an_ended_backend_keeps_tcp_and_loses_udp_and_new_flows() {
    for mut lab in labs() {
        let only =
            |index: usize| move |service: &mut Service| service.backends = [everyone()[index].clone()].into();
        lab.serve(only(1));
        let tcp = Flow::new(APP3, 1000, (VIP, 80));
        let udp = Flow { tcp: false, ..tcp };
        let got = open(&mut lab, tcp).unwrap();
        answer(&mut lab, tcp, got);
        assert_eq!(open(&mut lab, udp).unwrap().0, 1);
        lab.serve(only(3));
        tcp.send(&mut lab, TcpFlags::ACK);
        assert_eq!(arrivals(&mut lab)[0].0, 1, "the connection lives on");
        assert_eq!(open(&mut lab, udp).unwrap().0, 3, "the UDP flow chose again");
        assert_eq!(open(&mut lab, Flow { port: 1001, ..tcp }).unwrap().0, 3);
        // Its pod goes, and another gets the address: the flow must come neither to it nor to another backend.
        let port = lab.machines[&APP2].port;
        lab.control.detach(port).unwrap();
        lab.run();
        let (node, worker) = (lab.node1, lab.workers.len() as u8 - 1);
        lab.pod(node, "successor", APP2, lab_gateway(APP2), worker);
        lab.run();
        tcp.send(&mut lab, TcpFlags::ACK);
        assert!(arrivals(&mut lab).is_empty());
        assert_eq!(lab.drops(DropReason::ServiceNoConnection), 1);
        lab.check();
    }
}

/// As kube-proxy, which clears what conntrack has of the Service's address and the backend (`proxier.go`,
/// `ClearEntriesForNAT`).
#[test]
fn a_backend_that_leaves_one_service_keeps_the_udp_flows_of_another() {
    for mut lab in labs() {
        lab.serve(|service| service.backends = [everyone()[1].clone()].into());
        let second = Ipv4Addr::new(10, 96, 0, 11);
        let service = Service {
            id: 7,
            backends: [everyone()[1].clone(), everyone()[3].clone()].into(),
            ..Service::default()
        };
        let frontend = Frontend { address: second, port: 80, protocol: Protocol::Udp };
        lab.control.set_service(service, vec![frontend], Vec::new()).unwrap();
        lab.run();
        let first = Flow { tcp: false, ..Flow::new(APP3, 1000, (VIP, 80)) };
        let of_second = |port| Flow { port, to: (second, 80), ..first };
        assert_eq!(open(&mut lab, first).unwrap().0, 1);
        let before = [2000, 2001, 2002, 2003].map(|port| open(&mut lab, of_second(port)).unwrap().0);
        lab.serve(|service| service.backends = [everyone()[3].clone()].into());
        assert_eq!(open(&mut lab, first).unwrap().0, 3, "its Service lost the backend");
        let after = [2000, 2001, 2002, 2003].map(|port| open(&mut lab, of_second(port)).unwrap().0);
        assert_eq!(before, after);
        assert!(before.contains(&1));
        lab.check();
    }
}

#[test]
fn a_removed_service_ends_its_udp_flows_only() {
    for mut lab in labs() {
        lab.serve(|service| service.backends = [everyone()[1].clone()].into());
        let tcp = Flow::new(APP3, 1000, (VIP, 80));
        let udp = Flow { tcp: false, ..tcp };
        let got = open(&mut lab, tcp).unwrap();
        answer(&mut lab, tcp, got);
        open(&mut lab, udp).unwrap();
        for id in [0, 1] {
            lab.control.remove_service(id).unwrap();
        }
        lab.run();
        tcp.send(&mut lab, TcpFlags::ACK);
        assert_eq!(arrivals(&mut lab).len(), 1);
        assert_eq!(open(&mut lab, udp), None);
        lab.check();
    }
}

/// Kubernetes, sessionAffinity ClientIP: one backend per client, until none of its new flows came for the timeout.
#[test]
fn a_client_with_affinity_keeps_its_backend_until_the_timeout_or_its_end() {
    for mut lab in labs() {
        let timeout = Duration::from_secs(100);
        let serve = |lab: &mut Lab, backends: Vec<Backend>| {
            lab.serve(|service| {
                service.affinity = Some(timeout);
                service.backends = backends.clone().into();
            });
        };
        serve(&mut lab, everyone());
        let first = open(&mut lab, Flow::new(APP3, 1000, (VIP, 80))).unwrap().0;
        for port in 1001..1006 {
            lab.pass(Duration::from_secs(60));
            assert_eq!(open(&mut lab, Flow::new(APP3, port, (VIP, 80))).unwrap().0, first, "each renews it");
            assert_eq!(open(&mut lab, Flow::new(APP3, port, (NODE2, NODE_PORT))).unwrap().0, first);
        }
        // Others are spread meanwhile; the next in turn is another than the first.
        lab.pass(timeout);
        let next = open(&mut lab, Flow::new(APP3, 2000, (VIP, 80))).unwrap().0;
        assert_ne!(next, first, "forgotten");
        serve(&mut lab, everyone().into_iter().filter(|backend| backend.identity != next as u64).collect());
        let other = open(&mut lab, Flow::new(APP3, 2001, (VIP, 80))).unwrap().0;
        assert_ne!(other, next, "ended");
        serve(&mut lab, everyone());
        assert_eq!(open(&mut lab, Flow::new(APP3, 2002, (VIP, 80))).unwrap().0, other, "and not taken again");
        lab.check();
    }
}

/// `ip_vs_sched_persist`, without `expire_quiescent_template`: a quiesced backend keeps its clients and gets no others.
#[test]
fn a_client_with_affinity_stays_at_a_quiesced_backend() {
    for local in [false, true] {
        for mut lab in labs() {
            let serve = |lab: &mut Lab, weights: [u16; 2]| {
                lab.serve(|service| {
                    if local {
                        service.internal = TrafficPolicy::Local;
                    }
                    service.affinity = Some(Duration::from_secs(100));
                    let on_node_2 = everyone().into_iter().skip(2).zip(weights);
                    let weighed = on_node_2.map(|(backend, weight)| Backend { weight, ..backend });
                    service.backends = weighed.collect();
                });
            };
            let mut port = 1000;
            let mut ask = |lab: &mut Lab, client| {
                port += 1;
                open(lab, Flow::new(client, port, (VIP, 80))).map(|got| got.0)
            };
            serve(&mut lab, [1, 0]);
            assert_eq!(ask(&mut lab, APP3), Some(2));
            serve(&mut lab, [0, 1]);
            for _ in 0..3 {
                lab.pass(Duration::from_secs(60));
                assert_eq!(ask(&mut lab, APP3), Some(2), "and each flow renews it");
                assert_eq!(ask(&mut lab, BACKEND), Some(3), "others go elsewhere");
            }
            serve(&mut lab, [0, 0]);
            lab.pass(Duration::from_secs(60));
            assert_eq!(ask(&mut lab, APP3), Some(2), "also where all are quiesced");
            assert_eq!(ask(&mut lab, BACKEND), Some(3));
            let refused = lab.drops(DropReason::NoBackend);
            lab.pass(Duration::from_secs(100));
            assert_eq!(ask(&mut lab, APP3), None, "it was silent too long");
            assert_eq!(lab.drops(DropReason::NoBackend), refused + 1);
            lab.check();
        }
    }
}

/// A Service's number is given again: the next one that has it begins with no clients and at the first of its backends.
#[test]
fn a_service_that_comes_with_the_number_of_another_knows_none_of_its_clients() {
    for mut lab in labs() {
        let serve = |lab: &mut Lab, backends: Vec<Backend>, affinity| {
            lab.serve(|service| {
                service.affinity = affinity;
                service.backends = backends.clone().into();
            });
        };
        let timeout = Some(Duration::from_secs(100));
        let client = |port| Flow::new(APP3, port, (VIP, 80));
        serve(&mut lab, everyone(), timeout);
        let first = open(&mut lab, client(1000)).unwrap().0;
        for id in [0, 1] {
            lab.control.remove_service(id).unwrap();
        }
        lab.run();
        // In the other order: the same turn is another pod's.
        serve(&mut lab, everyone().into_iter().rev().collect(), timeout);
        assert_eq!(open(&mut lab, client(1001)).unwrap().0, PODS.len() - 1 - first);
        lab.check();
    }
}

/// kube-proxy, session affinity: a session is a node's. A client outside that asks two nodes is two clients.
#[test]
fn a_client_has_a_session_at_each_node() {
    for mut lab in labs() {
        lab.serve(|service| {
            service.affinity = Some(Duration::from_secs(100));
            service.backends = everyone().into();
        });
        let mut port = 1000;
        let mut ask = |node| {
            port += 1;
            open(&mut lab, Flow::new(USER, port, (node, NODE_PORT))).unwrap().0
        };
        let (first, second) = (ask(NODE1), ask(NODE2));
        // By one worker in turn, by two from the places where each begins.
        assert_ne!(first, second);
        for _ in 0..3 {
            assert_eq!((ask(NODE1), ask(NODE2)), (first, second));
        }
        lab.check();
    }
}

/// Two VIPs' flows from one port cannot both have the reply tuple: the source port gives way, not the affinity.
#[test]
fn affinity_holds_when_the_reply_tuple_is_taken() {
    for mut lab in labs() {
        lab.serve(|service| {
            service.affinity = Some(Duration::from_secs(100));
            service.backends = everyone().into();
        });
        let direct = Flow::new(APP1, 999, (VIP, 80));
        let kept = open(&mut lab, direct).unwrap().0;
        let mut service = Service { id: 9, name: "default/other:80".into(), ..Service::default() };
        service.backends = [everyone()[kept].clone()].into();
        let other = Ipv4Addr::new(10, 96, 0, 11);
        let frontend =
            flatnet_proxy::Frontend { address: other, port: 80, protocol: flatnet_proxy::Protocol::Tcp };
        lab.control.set_service(service, vec![frontend], vec![]).unwrap();
        lab.run();
        assert_eq!(open(&mut lab, Flow::new(APP1, 1000, (other, 80))).unwrap().0, kept);
        let flow = Flow::new(APP1, 1000, (VIP, 80));
        let got = open(&mut lab, flow).unwrap();
        assert_eq!(got.0, kept);
        if kept != 0 {
            assert_ne!(got.2.0, 1000, "another port");
        }
        answer(&mut lab, flow, got);
        lab.check();
    }
}

/// Kubernetes, hairpin: a pod reaches itself through its VIP and NodePort, and sees the node as its client.
#[test]
fn a_pod_reaches_itself_through_its_vip_and_node_port() {
    for external in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
        for mut lab in labs() {
            lab.serve(|service| {
                service.external = external;
                service.backends = [everyone()[1].clone()].into();
            });
            for to in [(VIP, 80), (NODE1, NODE_PORT)] {
                for tcp in [true, false] {
                    let flow = Flow { tcp, ..Flow::new(APP2, 1000, to) };
                    let got = open(&mut lab, flow).unwrap();
                    assert_eq!((got.0, got.1), (1, lab_gateway(APP2)));
                    answer(&mut lab, flow, got);
                }
            }
            lab.check();
        }
    }
}

#[test]
fn a_vip_does_not_answer_ping() {
    for mut lab in labs() {
        lab.serve(|service| service.backends = everyone().into());
        let frame = ethernet(
            lab.machines[&APP2].gateway,
            mac(APP2),
            &echo_packet(APP2, VIP, IcmpType::EchoRequest, 1, 64),
        );
        lab.send(APP2, &frame);
        assert!(!is_told(&mut lab, APP2));
        assert_eq!(lab.drops(DropReason::ServiceUnsupported), 1);
        lab.check();
    }
}

/// `ip_vs_lc.c`: flows held by all workers count, established ones 256 times as much; ended ones do not.
#[test]
fn least_connection_counts_the_flows_of_all_workers() {
    for mut lab in labs() {
        let backends = [everyone()[0].clone(), everyone()[2].clone()];
        lab.serve(|service| {
            service.scheduler = Scheduler::LeastConnection;
            service.backends = backends.clone().into();
        });
        let loads = |lab: &Lab| {
            let tables = lab.control.tables.current();
            let numbers = tables.services.get(0).unwrap().service.counters.clone();
            [lab.control.load(numbers[0]), lab.control.load(numbers[1])]
        };
        // Two clients, whose flows different workers hold.
        for port in 0..6 {
            let from = if port % 2 == 0 { APP2 } else { BACKEND };
            let got = open(&mut lab, Flow::new(from, 1000 + port, (VIP, 80))).unwrap();
            assert_eq!(got.0, usize::from(port % 2 == 1) * 2, "in turn, as each adds one");
        }
        let half_open = Load { active: 0, inactive: 3 };
        assert_eq!(loads(&lab), [half_open; 2]);
        let flow = Flow::new(APP2, 2000, (VIP, 80));
        let got = open(&mut lab, flow).unwrap();
        answer(&mut lab, flow, got);
        flow.send(&mut lab, TcpFlags::ACK);
        arrivals(&mut lab);
        assert_eq!(loads(&lab), [Load { active: 1, inactive: 3 }, half_open]);
        for port in 0..20 {
            assert_eq!(open(&mut lab, Flow::new(BACKEND, 3000 + port, (VIP, 80))).unwrap().0, 2);
        }
        lab.serve(|service| {
            service.scheduler = Scheduler::WeightedLeastConnection;
            service.backends =
                [Backend { weight: 65_535, ..backends[0].clone() }, backends[1].clone()].into();
        });
        assert_eq!(
            open(&mut lab, Flow::new(APP2, 4000, (VIP, 80))).unwrap().0,
            0,
            "for its weight it has few"
        );
        lab.pass(Duration::from_secs(432_000));
        for _ in 0..64 {
            lab.now = lab.now + Duration::from_nanos(1);
            lab.run();
        }
        assert_eq!(loads(&lab), [Load::default(); 2]);
        lab.check();
    }
}

/// Netfilter, nat: only a connection's first packet is asked about. What came in by a route goes out as it is.
#[test]
fn the_answer_of_a_pod_that_was_asked_by_its_own_address_is_not_masqueraded() {
    for mut lab in labs() {
        for tcp in [true, false] {
            let question = |lab: &mut Lab, flags| {
                let packet = match tcp {
                    true => tcp_packet(USER, APP2, (1000, 80), flags),
                    false => udp_packet(USER, APP2, (1000, 80), b"hello", 64),
                };
                lab.send(USER, &ethernet(mac(NODE1), mac(USER), &packet));
                lab.receive(USER);
                assert_eq!(arrivals(lab), [(1, USER, (1000, 80))]);
            };
            for flags in [TcpFlags::SYN, TcpFlags::ACK, TcpFlags::ACK] {
                question(&mut lab, flags);
                let flow = Flow { tcp, ..Flow::new(USER, 1000, (APP2, 80)) };
                answer(&mut lab, flow, (1, USER, (1000, 80)));
            }
        }
        lab.check();
    }
}

/// Kubernetes, Service: a backend outside the cluster (an EndpointSlice by hand) need not know the way to pods.
#[test]
fn a_backend_outside_the_pod_network_sees_the_node_as_its_client() {
    for (mut lab, client) in labs().chain(labs()).zip([APP1, APP1, APP1, APP2, APP2, APP2]) {
        lab.serve(|service| service.backends = vec![Backend::new(INTERNET, 8080, 1)].into());
        let flow = Flow::new(client, 4000, (VIP, 80));
        for flags in [TcpFlags::SYN, TcpFlags::ACK] {
            flow.send(&mut lab, flags);
            let arrived = lab.settle(INTERNET);
            let (source, _, _, payload) = packet(&arrived[0]);
            let (outside, port) = ports(&payload);
            assert_eq!((arrived.len(), source, port), (1, NODE1, 8080));
            let reply = lab.tcp(INTERNET, NODE1, (8080, outside), flags.with(TcpFlags::ACK));
            lab.send(INTERNET, &reply);
            let (source, to, _, payload) = packet(&lab.receive(client)[0]);
            assert_eq!((source, to, ports(&payload)), (VIP, client, (80, 4000)));
        }
        lab.check();
    }
}
