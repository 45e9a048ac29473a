//! Pods back to back over an in-memory link, in virtual time.

mod bad_links;
mod output;
mod programs;
mod squid;
mod streams;
mod time_wait;
mod volumes;

use super::*;
use crate::frame::{Arena, Frame, Pool};
use crate::link::impairment::{Impairment, Lane};
use crate::wire::{EtherType, EthernetFrame, IpProtocol, Ipv4Packet, MacAddress, TcpFlags, TcpSegment};
use std::net::Ipv4Addr;
use std::time::Duration;

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 2);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 3);

/// Pods on one segment: a frame reaches every other pod after a delay, if it is not lost.
struct Segment {
    pods: Vec<Pod>,
    pool: Pool,
    queue: VecDeque<Frame>,
    mark: u32,
    flight: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    sequence: u64,
    now: Instant,
    delay: Duration,
    loss_per_cent: u64,
    /// Longest further delay of a frame, in microseconds: they overtake each other.
    jitter: u64,
    /// What the cable does to each pod's frames, as between two nodes, instead of the three above.
    lanes: Vec<Lane>,
    random: crate::random::Random,
    traced: usize,
    log: Vec<Vec<u8>>,
}

impl Segment {
    fn new(configs: Vec<PodConfig>) -> Self {
        let (_, mut pools) = Arena::new(1, 4096, 16).unwrap();
        Segment {
            pods: configs.into_iter().map(Pod::new).collect(),
            pool: pools.pop().unwrap(),
            queue: VecDeque::new(),
            mark: 0,
            flight: BTreeMap::new(),
            sequence: 0,
            now: Instant::ZERO,
            delay: Duration::from_micros(50),
            loss_per_cent: 0,
            jitter: 0,
            lanes: Vec::new(),
            random: crate::random::Random::new(42),
            traced: 0,
            log: Vec::new(),
        }
    }

    fn pair() -> Self {
        Segment::new(vec![pod("first", FIRST), pod("second", SECOND)])
    }

    fn with(&mut self, index: usize, act: impl FnOnce(&mut Pod, Instant, &mut Outbox<'_>)) {
        let mut out = Outbox {
            pool: &mut self.pool,
            queue: &mut self.queue,
            next_mark: &mut self.mark,
            tracing: false,
            answers_traced: false,
        };
        act(&mut self.pods[index], self.now, &mut out);
        while let Some(frame) = self.queue.pop_front() {
            let arena = std::sync::Arc::clone(self.pool.arena());
            self.traced += usize::from(arena.record(&frame).mark != 0);
            let bytes = arena.bytes(&frame).to_vec();
            self.pool.free(frame);
            self.log.push(bytes.clone());
            if let Some(lane) = self.lanes.get_mut(index) {
                let random = &mut self.random;
                let arrivals = arrivals(lane, bytes, self.now, random);
                for (at, bytes) in arrivals {
                    self.sequence += 1;
                    self.flight.insert((at, self.sequence), (index, bytes));
                }
                continue;
            }
            if self.random.next_u64() % 100 < self.loss_per_cent {
                continue;
            }
            self.sequence += 1;
            let jitter = Duration::from_micros(self.random.next_u64() % (self.jitter + 1));
            self.flight.insert((self.now + self.delay + jitter, self.sequence), (index, bytes));
        }
    }

    /// Has a cable like this between the pods.
    fn impair(&mut self, impairment: Impairment, seed: u64) {
        self.lanes = vec![Lane::default(), Lane::default()];
        self.lanes.iter_mut().for_each(|lane| lane.impairment = impairment);
        self.random = crate::random::Random::new(seed);
    }

    /// Goes to the next thing that happens; false when nothing will.
    fn step(&mut self, until: Instant) -> bool {
        let polls =
            self.pods.iter().enumerate().filter_map(|(index, pod)| Some((pod.next_poll()?, index))).min();
        let arrival = self.flight.keys().next().map(|&(at, _)| at);
        let next = [polls.map(|(at, _)| at), arrival].into_iter().flatten().min();
        let Some(next) = next.filter(|&next| next <= until) else { return false };
        self.now = self.now.max(next);
        if arrival.is_some_and(|at| at <= self.now) {
            let (_, (from, bytes)) = self.flight.pop_first().unwrap();
            for index in (0..self.pods.len()).filter(|&index| index != from) {
                self.with(index, |pod, now, out| pod.receive(&bytes, now, out));
            }
        } else if let Some((_, index)) = polls {
            self.with(index, |pod, now, out| pod.poll(now, out));
        }
        true
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
        self.now = until;
    }

    /// Runs a program of a pod to its end.
    fn exec(&mut self, index: usize, line: &str) -> (String, i32) {
        let id = self.spawn(index, line);
        self.finish(index, id)
    }

    fn spawn(&mut self, index: usize, line: &str) -> ProgramId {
        let argv: Vec<String> = line.split(' ').map(String::from).collect();
        self.pods[index].exec(&argv, self.now)
    }

    fn finish(&mut self, index: usize, id: ProgramId) -> (String, i32) {
        let until = self.now + Duration::from_secs(600);
        let mut text = Vec::new();
        loop {
            let output = self.pods[index].output(id);
            text.extend_from_slice(&output.bytes);
            if let Some(code) = output.exit_code {
                return (String::from_utf8(text).unwrap(), code);
            }
            assert!(self.step(until), "the program never ends");
        }
    }

    fn probe(
        &mut self,
        index: usize,
        protocol: ProbeProtocol,
        destination: Ipv4Addr,
        port: u16,
    ) -> ProbeOutcome {
        let payload = b"probe".to_vec();
        let timeout = Duration::from_secs(5);
        let id = self.pods[index].probe(Probe { protocol, destination, port, timeout, payload }, self.now);
        let until = self.now + Duration::from_secs(60);
        loop {
            if let Some(outcome) = self.pods[index].probe_outcome(id) {
                return outcome;
            }
            assert!(self.step(until), "the probe never ends");
        }
    }
}

/// What arrives of a frame, and when.
fn arrivals(
    lane: &mut Lane,
    bytes: Vec<u8>,
    now: Instant,
    random: &mut crate::random::Random,
) -> Vec<(Instant, Vec<u8>)> {
    let mut arrived = Vec::new();
    if lane.admit(bytes.len(), bytes.len() - 14, random).is_err() {
        return arrived;
    }
    let copies = 1 + usize::from(random.chance(lane.impairment.duplicate));
    for _ in 0..copies {
        let mut bytes = bytes.clone();
        let Ok(at) = lane.send(bytes.len(), now, random) else { continue };
        if let Some(bit) = lane.corrupted_bit(bytes.len(), random) {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        arrived.push((at, bytes));
    }
    arrived
}

fn pod(name: &str, address: Ipv4Addr) -> PodConfig {
    PodConfig {
        name: name.into(),
        mac: MacAddress::for_ipv4(address),
        address,
        gateway: Some(Ipv4Addr::new(10, 1, 15, 1)),
        seed: u64::from(address.to_bits()),
        ..PodConfig::default()
    }
}

fn container(name: &str, image: Image, args: &str) -> ContainerConfig {
    let args = args.split_whitespace().map(String::from).collect();
    ContainerConfig { name: name.into(), image, ports: Vec::new(), args, mounts: Vec::new() }
}

fn echo_pair() -> Segment {
    let mut segment = Segment::pair();
    segment.pods[1].start_container(container("echo", Image::Echo, "")).unwrap();
    segment
}

/// Answers the DNS queries that came to the second pod: only `web.default.svc.cluster.local` exists.
fn serve_dns(segment: &mut Segment) -> usize {
    let mut count = 0;
    while let Some(query) = segment.pods[1].stack.udp.receive_from(53) {
        count += 1;
        let mut answer = query.payload.clone();
        answer[2] |= 0x80;
        let expected = super::dns::query(0, "web.default.svc.cluster.local").unwrap();
        if answer[12..] == expected[12..] {
            answer[7] = 1;
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4]);
            answer.extend_from_slice(&SECOND.octets());
        } else {
            answer[3] |= 3;
        }
        segment.with(1, |pod, now, out| {
            let from = std::net::SocketAddrV4::new(SECOND, 53);
            udp::send(&mut pod.stack.device, from, query.from, udp::Options::default(), &answer, now, out);
        });
    }
    count
}

/// A container with a volume at a place.
fn mounting(container: ContainerConfig, volume: &str, path: &str) -> ContainerConfig {
    let mount = Mount { volume: volume.into(), path: path.into(), ..Mount::default() };
    ContainerConfig { mounts: vec![mount], ..container }
}

#[test]
fn ping_reports_as_iputils_does() {
    let mut segment = Segment::pair();
    let (text, code) = segment.exec(0, "ping -c 2 10.1.15.3");
    let expected = "PING 10.1.15.3 (10.1.15.3) 56(84) bytes of data.\n\
        64 bytes from 10.1.15.3: icmp_seq=1 ttl=64 time=0.200 ms\n\
        64 bytes from 10.1.15.3: icmp_seq=2 ttl=64 time=0.100 ms\n\n\
        --- 10.1.15.3 ping statistics ---\n\
        2 packets transmitted, 2 received, 0% packet loss, time 1000ms\n\
        rtt min/avg/max/mdev = 0.100/0.150/0.200/0.050 ms\n";
    assert_eq!((text.as_str(), code), (expected, 0));
}

/// RFC 1812, 5.2.7.1.
#[test]
fn ping_of_a_silent_neighbour_is_host_unreachable_and_code_1() {
    let mut segment = Segment::pair();
    let (text, code) = segment.exec(0, "ping -c 1 10.1.15.9");
    assert!(text.contains("From 10.1.15.2 icmp_seq=1 Destination Host Unreachable"), "{text}");
    assert!(text.contains("1 packets transmitted, 0 received, +1 errors, 100% packet loss"), "{text}");
    assert_eq!(code, 1);
    assert_eq!(segment.pods[0].drops().get(PodDrop::NeighborUnresolved), 1);
}

/// RFC 791, 3.2.
#[test]
fn long_pings_go_in_fragments() {
    // The first packet to a neighbour waits for its MAC, and all its fragments with it.
    let mut segment = Segment::pair();
    let (text, code) = segment.exec(0, "ping -c 1 -s 60000 10.1.15.3");
    assert!(text.contains("60008 bytes from 10.1.15.3"), "{text}");
    assert_eq!(code, 0);
}

#[test]
fn probes_by_all_protocols_are_answered_and_traced() {
    let mut segment = echo_pair();
    for protocol in [ProbeProtocol::Tcp, ProbeProtocol::Udp, ProbeProtocol::IcmpEcho] {
        let traced = segment.traced;
        let outcome = segment.probe(0, protocol, SECOND, 7);
        assert!(outcome.result.is_ok(), "{protocol:?}: {outcome:?}");
        assert!(segment.traced > traced, "{protocol:?}");
    }
}

/// RFC 1122, 4.1.3.1; RFC 9293, 3.10.7.1.
#[test]
fn closed_ports_and_absent_hosts_have_their_names() {
    let mut segment = Segment::pair();
    for (protocol, to, expected) in [
        (ProbeProtocol::Tcp, SECOND, ProbeError::ConnectionRefused),
        (ProbeProtocol::Udp, SECOND, ProbeError::PortUnreachable),
        (ProbeProtocol::Tcp, Ipv4Addr::new(10, 1, 15, 9), ProbeError::HostUnreachable),
        (ProbeProtocol::Udp, Ipv4Addr::new(10, 1, 15, 9), ProbeError::HostUnreachable),
    ] {
        assert_eq!(segment.probe(0, protocol, to, 9).result, Err(expected), "{protocol:?} to {to}");
    }
    segment.pods[0] = Pod::new(PodConfig { gateway: None, ..pod("first", FIRST) });
    let away = Ipv4Addr::new(203, 0, 113, 10);
    for protocol in [ProbeProtocol::Tcp, ProbeProtocol::Udp, ProbeProtocol::IcmpEcho] {
        assert_eq!(segment.probe(0, protocol, away, 9).result, Err(ProbeError::NetworkUnreachable));
    }
}

/// RFC 1122, 3.2.1.3 (g): loopback never leaves the host.
#[test]
fn lo_is_immediate_by_both_addresses() {
    let mut segment = echo_pair();
    segment.pods[1].set_lo_capture(true);
    for to in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 5), SECOND] {
        for protocol in [ProbeProtocol::Tcp, ProbeProtocol::Udp, ProbeProtocol::IcmpEcho] {
            let outcome = segment.probe(1, protocol, to, 7);
            assert_eq!(outcome.result, Ok(Duration::ZERO), "{protocol:?} to {to}");
        }
    }
    assert!(segment.log.is_empty(), "nothing leaves by eth0");
    assert!(!segment.pods[1].take_lo_hops().is_empty());
    let frames = segment.pods[1].take_lo_capture();
    assert_eq!(EthernetFrame::new_checked(&frames[0][..]).unwrap().ethertype(), EtherType::Ipv4);
}

#[test]
fn nginx_reaches_php_fpm_of_its_pod_at_localhost() {
    let mut segment = Segment::pair();
    segment.pods[1].start_container(container("web", Image::Nginx, "--fastcgi localhost:9000")).unwrap();
    let (text, code) = segment.exec(0, "curl -s -i http://10.1.15.3/index.php?a=1");
    assert!(text.starts_with("HTTP/1.1 502 "), "{text}");
    assert_eq!(code, 0);
    segment.pods[1].start_container(container("php", Image::PhpFpm, "")).unwrap();
    let (text, code) = segment.exec(0, "curl -s http://10.1.15.3/index.php?a=1");
    assert!(text.contains("pod: second\n") && text.contains("script: /index.php?a=1\n"), "{text}");
    assert!(text.contains("client: 10.1.15.2\n"), "{text}");
    assert_eq!(code, 0);
}

#[test]
fn two_containers_cannot_have_one_port() {
    let mut pod = Pod::new(pod("first", FIRST));
    pod.start_container(container("a", Image::Httpd, "")).unwrap();
    let error = pod.start_container(container("b", Image::Nginx, "")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "container b cannot listen on port 80: address in use by container a of the same pod"
    );
    pod.stop_container("a", 0, Instant::ZERO).unwrap();
    pod.start_container(container("b", Image::Nginx, "")).unwrap();
    let states: Vec<_> = pod.containers().map(|container| (container.name, container.state)).collect();
    assert_eq!(
        states,
        [
            ("pause", ContainerState::Running),
            ("a", ContainerState::Exited(0)),
            ("b", ContainerState::Running)
        ]
    );
}

#[test]
fn a_pod_dies_with_its_pause_container_and_stays_dead() {
    let mut pod = Pod::new(pod("first", FIRST));
    pod.stop_container("pause", 0, Instant::ZERO).unwrap();
    assert_eq!(pod.state(), PodState::Dead);
    assert_eq!(pod.next_poll(), None);
    assert!(matches!(pod.start_container(container("a", Image::Httpd, "")), Err(PodError::Dead { .. })));
    let id = pod.exec(&["true".into()], Instant::ZERO);
    assert_eq!(pod.output(id).exit_code, Some(KILLED));
    assert!(pod.take_news() && !pod.take_news());
}

/// A SYN from an address of the segment that does not exist.
fn syn(source: Ipv4Addr, source_port: u16, port: u16) -> Vec<u8> {
    let mut bytes = vec![0; 54];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_destination(MacAddress::for_ipv4(SECOND));
    frame.set_source(MacAddress::for_ipv4(source));
    frame.set_ethertype(EtherType::Ipv4);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    packet.set_header_length(20);
    packet.set_total_length(40);
    packet.set_time_to_live(64);
    packet.set_protocol(IpProtocol::Tcp);
    packet.set_source(source);
    packet.set_destination(SECOND);
    packet.fill_header_checksum();
    let mut segment = TcpSegment::new_unchecked(packet.payload_mut());
    segment.set_source_port(source_port);
    segment.set_destination_port(port);
    segment.set_header_length(20);
    segment.set_flags(TcpFlags::SYN);
    segment.set_window(1000);
    segment.fill_checksum(source, SECOND);
    bytes
}

/// An unreachable of a code from the second pod about the first one's UDP frame, as if it had gone to another port.
fn unreachable(about: &[u8], port: u16, code: u8) -> Vec<u8> {
    let mut quote = about[14..42].to_vec();
    quote[22..24].copy_from_slice(&port.to_be_bytes());
    let mut bytes = vec![0; 42 + quote.len()];
    let length = bytes.len() as u16 - 14;
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_destination(MacAddress::for_ipv4(FIRST));
    frame.set_source(MacAddress::for_ipv4(SECOND));
    frame.set_ethertype(EtherType::Ipv4);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    packet.set_header_length(20);
    packet.set_total_length(length);
    packet.set_time_to_live(64);
    packet.set_protocol(IpProtocol::Icmp);
    packet.set_source(SECOND);
    packet.set_destination(FIRST);
    packet.fill_header_checksum();
    let message = packet.payload_mut();
    message[..2].copy_from_slice(&[3, code]);
    message[8..].copy_from_slice(&quote);
    crate::wire::IcmpPacket::new_unchecked(message).fill_checksum();
    bytes
}

/// RFC 4987, 2.2 and 3.4.
#[test]
fn a_syn_flood_is_bounded_and_harms_no_other_listener() {
    let mut segment = echo_pair();
    segment.pods[1].start_container(container("web", Image::Httpd, "")).unwrap();
    for port in 1000..2000 {
        let flood = syn(Ipv4Addr::new(10, 1, 15, 77), port, 80);
        segment.with(1, |pod, now, out| pod.receive(&flood, now, out));
    }
    assert_eq!(segment.pods[1].tcp_counts(), (0, HALF_OPEN_PER_LISTENER));
    assert_eq!(segment.pods[1].drops().get(PodDrop::HalfOpenFull), 1000 - HALF_OPEN_PER_LISTENER as u64);
    let resets = segment.log.iter().filter(|frame| frame.len() == 54 && frame[47] & 4 != 0).count();
    assert_eq!(resets, 0);
    assert!(segment.probe(0, ProbeProtocol::Tcp, SECOND, 7).result.is_ok());
    segment.run(HALF_OPEN_LIFETIME);
    assert_eq!(segment.pods[1].tcp_counts(), (0, 0));
    let (_, code) = segment.exec(0, "curl -s http://10.1.15.3/");
    assert_eq!(code, 0);
}

/// RFC 6298, 2.1.
#[test]
fn a_lost_ack_of_the_handshake_costs_one_second_and_no_connection() {
    let mut segment = echo_pair();
    segment.exec(0, "ping -c 1 10.1.15.3");
    let id = segment.spawn(0, "nc -v -z 10.1.15.3 7");
    segment.with(0, |pod, now, out| pod.poll(now, out));
    let until = segment.now + Duration::from_secs(1);
    assert!(segment.step(until), "the SYN arrives");
    segment.flight.clear();
    let (text, code) = segment.finish(0, id);
    assert_eq!((text.as_str(), code), ("Connection to 10.1.15.3 7 port [tcp/*] succeeded!\n", 0));
    assert_eq!(segment.now.as_nanos() / 1_000_000_000, 1);
}

/// RFC 1191, 3; below the smallest MTU that Linux believes (`net.ipv4.route.min_pmtu`) packets may be cut.
#[test]
fn a_router_that_wants_smaller_packets_is_believed() {
    for (mtu, longest, may_cut) in [(1000, 1000, false), (552, 552, false), (272, 552, true)] {
        believe_a_router(mtu, longest, may_cut);
    }
}

fn believe_a_router(mtu: u16, longest: usize, may_cut: bool) {
    let mut segment = echo_pair();
    segment.exec(0, "ping -c 1 10.1.15.3");
    let id = segment.spawn(0, "nc -w 5 10.1.15.3 7");
    segment.run(Duration::from_millis(1));
    segment.pods[0].input(id, &[7; 20_000]);
    segment.with(0, |pod, now, out| pod.poll(now, out));
    let (_, frame) = segment.flight.values().find(|(_, frame)| frame.len() > 1400).unwrap().clone();
    segment.flight.clear();
    segment.log.clear();
    let quoted = &frame[14..14 + 28];
    let mut bytes = vec![0; 14 + 20 + 8 + quoted.len()];
    let length = bytes.len() as u16 - 14;
    bytes[..6].copy_from_slice(&MacAddress::for_ipv4(FIRST).octets());
    bytes[12] = 8;
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[14..]);
    packet.set_header_length(20);
    packet.set_total_length(length);
    packet.set_protocol(IpProtocol::Icmp);
    packet.set_source(Ipv4Addr::new(10, 1, 15, 1));
    packet.set_destination(FIRST);
    packet.fill_header_checksum();
    let mut icmp = crate::wire::IcmpPacket::new_unchecked(packet.payload_mut());
    icmp.set_type(crate::wire::IcmpType::DestinationUnreachable, 4);
    icmp.set_next_hop_mtu(mtu);
    icmp.payload_mut().copy_from_slice(quoted);
    icmp.fill_checksum();
    segment.with(0, |pod, now, out| pod.receive(&bytes, now, out));
    let (text, _) = segment.finish(0, id);
    assert_eq!(text.len(), 20_000);
    let from_first = |frame: &&Vec<u8>| frame[6..12] == MacAddress::for_ipv4(FIRST).octets();
    for frame in segment.log.iter().filter(from_first).filter(|frame| frame[12..14] == [8, 0]) {
        let packet = Ipv4Packet::new_unchecked(&frame[14..]);
        assert!(packet.total_length() as usize <= longest, "{mtu}: {}", packet.total_length());
        assert_eq!(packet.dont_fragment(), !may_cut, "{mtu}");
    }
}

#[test]
fn anything_may_arrive() {
    let mut segment = echo_pair();
    segment.loss_per_cent = 0;
    segment.probe(0, ProbeProtocol::Tcp, SECOND, 7).result.unwrap();
    segment.probe(0, ProbeProtocol::Udp, SECOND, 7).result.unwrap();
    segment.exec(0, "ping -c 1 -s 3000 10.1.15.3");
    let originals = std::mem::take(&mut segment.log);
    let mut random = crate::random::Random::new(9);
    for _ in 0..200 {
        for original in &originals {
            let mut frame = original.clone();
            let changes = random.next_u64() % 4;
            for _ in 0..changes {
                let at = random.next_u64() as usize % frame.len();
                frame[at] = random.next_u64() as u8;
            }
            if random.chance(300_000) {
                frame.truncate(random.next_u64() as usize % frame.len());
            }
            if let Some(mut packet) =
                frame.get_mut(14..).and_then(|bytes| Ipv4Packet::new_checked(bytes).ok())
            {
                packet.fill_header_checksum();
                let (source, destination) = (packet.source(), packet.destination());
                if packet.protocol() == IpProtocol::Tcp
                    && let Ok(mut tcp) = TcpSegment::new_checked(packet.payload_mut())
                {
                    tcp.fill_checksum(source, destination);
                }
            }
            let index = usize::from(random.chance(500_000));
            segment.with(index, |pod, now, out| pod.receive(&frame, now, out));
        }
        segment.run(Duration::from_millis(random.next_u64() % 2000));
    }
}
