//! Pods back to back over an in-memory link, in virtual time.

mod bad_links;
mod output;
mod squid;
mod time_wait;

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

fn transfer(loss_per_cent: u64) -> Segment {
    let mut segment = echo_pair();
    segment.loss_per_cent = loss_per_cent;
    let data: Vec<u8> = (0..1_000_000u32).map(|index| (index * 7 + index / 251) as u8).collect();
    let id = segment.spawn(0, "nc 10.1.15.3 7");
    segment.pods[0].input(id, &data);
    segment.pods[0].close_input(id);
    let until = segment.now + Duration::from_secs(3600);
    let mut received = Vec::new();
    let code = loop {
        let output = segment.pods[0].output(id);
        received.extend_from_slice(&output.bytes);
        if let Some(code) = output.exit_code {
            break code;
        }
        assert!(segment.step(until), "the transfer never ends");
    };
    assert_eq!(code, 0);
    assert!(received == data, "{} octets came back", received.len());
    segment
}

#[test]
fn a_megabyte_comes_back_unchanged_and_nothing_is_left() {
    let mut segment = transfer(0);
    assert!(segment.now < Instant::ZERO + Duration::from_secs(2), "{:?}", segment.now);
    segment.run(Duration::from_secs(1));
    assert_eq!(segment.pods[0].tcp_counts(), (0, 0));
    assert_eq!(segment.pods[1].tcp_counts(), (0, 0));
    assert_eq!(segment.pool.outstanding(), 0);
}

/// RFC 9293, 3.8.1: retransmission; RFC 6582: one round trip for each loss of a window, and not a timer.
#[test]
fn a_megabyte_survives_five_per_cent_loss() {
    let segment = transfer(5);
    assert!(segment.now < Instant::ZERO + Duration::from_secs(40), "{:?}", segment.now);
}

/// RFC 1071.
#[test]
fn every_frame_has_right_checksums() {
    let segment = transfer(0);
    for frame in &segment.log {
        let frame = EthernetFrame::new_checked(&frame[..]).unwrap();
        if frame.ethertype() == EtherType::Ipv4 {
            let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
            assert!(packet.verify_header_checksum() && packet.dont_fragment() && packet.time_to_live() == 64);
            let segment = TcpSegment::new_checked(packet.payload()).unwrap();
            assert!(segment.verify_checksum(packet.source(), packet.destination()));
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    assert!(transfer(5).log == transfer(5).log);
}

#[test]
fn curl_gets_pages_and_says_what_is_wrong() {
    let mut segment = Segment::pair();
    segment.pods[1].start_container(container("web", Image::Httpd, "")).unwrap();
    let (text, code) = segment.exec(0, "curl -s http://10.1.15.3/a");
    assert_eq!(code, 0);
    assert!(text.contains("pod: second\n") && text.contains("path: /a\n"), "{text}");
    let (text, code) = segment.exec(0, "curl -sv http://10.1.15.3/a");
    assert_eq!(code, 0);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    assert_eq!(lines[..3], ["* Connected to 10.1.15.3 port 80", "> GET /a HTTP/1.1", "> Host: 10.1.15.3"]);
    assert!(text.contains("\n> \n< HTTP/1.1 200 OK\n"), "{text}");
    assert!(
        text.split("\n< \n").nth(1).unwrap().contains("pod: second\n"),
        "the body comes after the head: {text}"
    );
    let (text, code) = segment.exec(0, "curl http://10.1.15.3:81/");
    assert!(text.starts_with("curl: (7) Failed to connect to 10.1.15.3 port 81"), "{text}");
    assert_eq!(code, 7);
    let (text, code) = segment.exec(0, "curl -x nobody:3128 http://10.1.15.3/");
    assert_eq!((text.as_str(), code), ("curl: (5) Could not resolve proxy: nobody\n", 5));
    let (text, code) = segment.exec(0, "curl --proxy http://10.1.15.3 http://nobody/");
    assert!(code == 7 && text.contains("10.1.15.3 port 1080"), "{text}");
    segment.pods[1].kill();
    let (_, code) = segment.exec(0, "curl -s -m 2 http://10.1.15.3/");
    assert_eq!(code, 28);
    assert!(segment.pods[1].drops().get(PodDrop::Dead) > 0);
}

/// POSIX, cat: "If no file operands are specified, the standard input shall be used", and for an operand `-`.
#[test]
fn cat_without_files_copies_its_input() {
    let mut segment = Segment::pair();
    for argv in [vec!["cat"], vec!["cat", "-"], vec!["sh", "-c", "cat"]] {
        let argv: Vec<String> = argv.into_iter().map(String::from).collect();
        let now = segment.now;
        let id = segment.pods[0].exec(&argv, now);
        segment.pods[0].input(id, b"one\n");
        segment.run(Duration::from_secs(1));
        let first = segment.pods[0].output(id);
        assert_eq!((&first.bytes[..], first.exit_code), (&b"one\n"[..], None), "{argv:?}: there may be more");
        segment.pods[0].input(id, b"two\n");
        segment.pods[0].close_input(id);
        let (text, code) = segment.finish(0, id);
        assert_eq!((text.as_str(), code), ("two\n", 0), "{argv:?}");
    }
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

/// RFC 1122, 4.1.3.3 and 4.1.4: an error is about the datagram it quotes; one about a port that a damaged datagram went to ends no
/// connection to another.
#[test]
fn nc_ends_by_an_error_about_its_own_peer_only_and_says_it() {
    let refused = "hellonc: 10.1.15.3 port 7 (udp): Connection refused\n";
    let too_long = "hellonc: 10.1.15.3 port 7 (udp): Message too long\n";
    for (port, why, said, code) in
        [(8, 3, "hello", None), (7, 3, refused, Some(1)), (7, 4, too_long, Some(1))]
    {
        let mut segment = echo_pair();
        let id = segment.spawn(0, "nc -u 10.1.15.3 7");
        segment.pods[0].input(id, b"hello");
        segment.run(Duration::from_secs(1));
        let is_udp =
            |frame: &&Vec<u8>| frame.len() > 42 && frame[23] == 17 && frame[26..30] == FIRST.octets();
        let about = segment.log.iter().find(is_udp).unwrap().clone();
        let error = unreachable(&about, port, why);
        segment.with(0, |pod, now, out| pod.receive(&error, now, out));
        segment.run(Duration::from_secs(1));
        let output = segment.pods[0].output(id);
        assert_eq!((&output.bytes[..], output.exit_code), (said.as_bytes(), code), "{port}");
    }
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

/// RFC 792: time exceeded, port unreachable.
#[test]
fn traceroute_shows_hops_and_what_is_unreachable() {
    let mut segment = Segment::pair();
    let (text, code) = segment.exec(0, "traceroute -n -q 1 10.1.15.3");
    let expected =
        "traceroute to 10.1.15.3 (10.1.15.3), 30 hops max, 60 byte packets\n 1  10.1.15.3  0.200 ms\n";
    assert_eq!((text.as_str(), code), (expected, 0));
    let (text, _) = segment.exec(0, "traceroute -n -q 1 10.1.15.9");
    assert!(text.ends_with(" 1  10.1.15.2  3000.000 ms !H\n"), "{text}");
    segment.pods[1].kill();
    let (text, _) = segment.exec(0, "traceroute -n -q 2 -m 2 -w 1 10.1.15.3");
    assert!(text.ends_with(" 1  * *\n 2  * *\n"), "{text}");
}

/// RFC 9293, 3.6: who has closed may still be sent to.
#[test]
fn what_a_program_says_waits_for_its_reader_whole_and_the_program_with_it() {
    let input: Vec<u8> = (0..10u32 << 20).map(|number| number as u8).collect();
    for line in ["cat", "nc 10.1.15.3 7"] {
        let mut segment = echo_pair();
        let id = segment.spawn(0, line);
        segment.pods[0].input(id, &input);
        segment.pods[0].close_input(id);
        // Nobody reads for a minute.
        segment.run(Duration::from_secs(60));
        let mut output = segment.pods[0].output(id);
        let first = output.bytes.len();
        assert!(first < 2 << 20, "{line} has gone on reading: {first}");
        let until = segment.now + Duration::from_secs(600);
        let mut whole = output.bytes;
        while output.exit_code.is_none() {
            assert!(segment.step(until), "{line} never ends");
            output = segment.pods[0].output(id);
            whole.extend_from_slice(&output.bytes);
        }
        assert!(whole == input && output.exit_code == Some(0), "{line}: {} octets", whole.len());
    }
}

#[test]
fn nc_sends_all_its_input_to_a_listener_that_has_none() {
    let mut segment = echo_pair();
    let listener = segment.spawn(1, "nc -l 5556");
    segment.pods[1].close_input(listener);
    segment.run(Duration::from_millis(1));
    let sender = segment.spawn(0, "nc 10.1.15.3 5556");
    // The listener's end of input comes first.
    segment.run(Duration::from_millis(10));
    for _ in 0..30 {
        segment.pods[0].input(sender, &[b'x'; 10_000]);
        segment.run(Duration::from_millis(10));
    }
    segment.pods[0].close_input(sender);
    assert_eq!(segment.finish(0, sender).1, 0);
    let (text, code) = segment.finish(1, listener);
    assert_eq!((text.len(), code), (300_000, 0));
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
fn programs_say_what_they_are_asked() {
    let mut segment = Segment::pair();
    for (line, text, code) in [
        ("true", "", 0),
        ("false", "", 1),
        ("echo a b", "a b\n", 0),
        ("hostname", "first\n", 0),
        ("sleep 2", "", 0),
        (
            "ip route",
            "default via 10.1.15.1 dev eth0\n10.1.15.0/24 dev eth0 proto kernel scope link src 10.1.15.2\n",
            0,
        ),
    ] {
        assert_eq!(segment.exec(0, line), (text.into(), code), "{line}");
    }
    assert_eq!(segment.now, Instant::ZERO + Duration::from_secs(2));
    let (text, code) = segment.exec(0, "vi");
    assert!(text.starts_with("vi: not found; there is: cat curl "), "{text}");
    assert_eq!(code, 127);
    segment.exec(0, "ping -c 1 10.1.15.3");
    let (text, _) = segment.exec(0, "ip neigh");
    assert_eq!(text, "10.1.15.3 dev eth0 lladdr 02:42:0a:01:0f:03 REACHABLE\n");
    assert!(segment.exec(0, "ip addr").0.contains("inet 10.1.15.2/24 brd 10.1.15.255 scope global eth0"));
}

#[test]
fn the_shell_runs_lists_loops_and_conditions() {
    let mut segment = Segment::pair();
    let mut sh = |script: &str| {
        let argv = ["sh", "-c", script].map(String::from);
        let id = segment.pods[0].exec(&argv, segment.now);
        segment.finish(0, id)
    };
    for (script, text, code) in [
        ("echo a; false && echo b || echo 'c  d'; exit 3", "a\nc  d\n", 3),
        ("for i in 1 2 3; do echo n$i; done", "n1\nn2\nn3\n", 0),
        ("if false; then echo yes; else echo no; fi", "no\n", 0),
        ("until true; do echo x; done; echo $HOSTNAME $?", "first 0\n", 0),
        ("echo hidden > /dev/null; ping -c 1 10.1.15.3 >/dev/null 2>&1 && echo reached", "reached\n", 0),
        ("# nothing\necho \"a \\\"b\"", "a \"b\n", 0),
        (
            "vi",
            "vi: not found; there is: cat curl date echo env exit false hostname ip iperf ls mkdir nc nslookup ping rm sh sleep touch traceroute true wget\n",
            127,
        ),
    ] {
        assert_eq!(sh(script), (text.into(), code), "{script}");
    }
    let argv = ["sh", "-c", "while true; do sleep 10; done"].map(String::from);
    let sleeping = segment.pods[0].exec(&argv, segment.now);
    let argv = ["sh", "-c", "while :; do :; done"].map(String::from);
    let busy = segment.pods[0].exec(&argv, segment.now);
    segment.run(Duration::from_millis(100));
    assert_eq!(segment.pods[0].output(sleeping).exit_code, None);
    segment.pods[0].signal(busy, segment.now);
    assert_eq!(segment.pods[0].output(busy).exit_code, Some(130));
}

#[test]
fn wget_prints_pages_too() {
    let mut segment = Segment::pair();
    segment.pods[1].start_container(container("web", Image::Nginx, "")).unwrap();
    let (text, code) = segment.exec(0, "wget -q -O - http://10.1.15.3");
    assert!(text.contains("Welcome to nginx!"), "{text}");
    assert_eq!(code, 0);
    let (text, code) = segment.exec(0, "wget --spider -T 1 http://10.1.15.3:81");
    assert!(text.starts_with("wget: Failed to connect to 10.1.15.3 port 81"), "{text}");
    assert_eq!(code, 1);
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

/// RFC 1034, 3.6.2; RFC 1035, 4.
#[test]
fn names_are_looked_up_with_the_search_list() {
    let search = ["default.svc.cluster.local", "svc.cluster.local"].map(String::from).to_vec();
    let first = PodConfig { nameserver: Some(SECOND), search, ..pod("first", FIRST) };
    let mut segment = Segment::new(vec![first, pod("second", SECOND)]);
    segment.pods[1].start_container(container("web", Image::Httpd, "")).unwrap();
    segment.pods[1].stack.udp.bind(53, Owner::Program(ProgramId(0))).unwrap();
    let mut run = |line: &str, queries: usize| {
        let id = segment.spawn(0, line);
        let mut count = 0;
        for _ in 0..20 {
            segment.run(Duration::from_millis(1));
            count += serve_dns(&mut segment);
        }
        assert_eq!(count, queries, "{line}");
        segment.finish(0, id)
    };
    let (text, code) = run("curl -s http://web/", 1);
    assert!(text.contains("pod: second"), "{text}");
    assert_eq!(code, 0);
    assert!(
        run("ping -c 1 web.default.svc.cluster.local", 3)
            .0
            .contains("PING web.default.svc.cluster.local (10.1.15.3)")
    );
    assert_eq!(run("curl http://web2/", 3), ("curl: (6) Could not resolve host: web2\n".into(), 6));
    assert!(run("nslookup web", 1).0.contains("Name:\tweb.default.svc.cluster.local\nAddress: 10.1.15.3\n"));
    assert_eq!(run("ping -c 1 first", 0).1, 0);
}

#[test]
fn a_silent_dns_server_ends_in_an_error() {
    let first = PodConfig { nameserver: Some(Ipv4Addr::new(10, 1, 15, 9)), ..pod("first", FIRST) };
    let mut segment = Segment::new(vec![first, pod("second", SECOND)]);
    let (text, code) = segment.exec(0, "ping -c 1 web");
    assert_eq!((text.as_str(), code), ("ping: web: Name or service not known\n", 2));
    segment.pods[0] = Pod::new(pod("first", FIRST));
    assert_eq!(segment.exec(0, "ping -c 1 web").1, 2);
}

#[test]
fn nc_talks_both_ways_by_tcp_and_udp() {
    for udp in ["", "-u "] {
        let mut segment = Segment::pair();
        let server = segment.spawn(1, &format!("nc {udp}-l -p 4000"));
        segment.run(Duration::from_millis(1));
        let client = segment.spawn(0, &format!("nc {udp}10.1.15.3 4000"));
        segment.pods[0].input(client, b"question");
        segment.run(Duration::from_millis(10));
        assert_eq!(segment.pods[1].output(server).bytes, b"question");
        segment.pods[1].input(server, b"answer");
        segment.run(Duration::from_millis(10));
        assert_eq!(segment.pods[0].output(client).bytes, b"answer");
        segment.pods[0].signal(client, segment.now);
        assert_eq!(segment.pods[0].output(client).exit_code, Some(130));
        segment.run(Duration::from_millis(100));
        assert_eq!(segment.pods[1].output(server).exit_code, if udp.is_empty() { Some(0) } else { None });
    }
}

/// RFC 9293, 3.8.3: only what waits for an answer may time out; who has been silent for long may still end in order.
#[test]
fn a_connection_that_was_idle_for_long_ends_in_order() {
    for idle in [1, 126, 128, 4000] {
        let mut segment = echo_pair();
        let id = segment.spawn(0, "nc 10.1.15.3 7");
        segment.pods[0].input(id, b"hello\n");
        segment.run(Duration::from_secs(idle));
        segment.pods[0].close_input(id);
        let (text, code) = segment.finish(0, id);
        assert_eq!((text.as_str(), code), ("hello\n", 0), "after {idle} s");
    }
}

#[test]
fn iperf_measures_by_tcp_and_udp() {
    let mut segment = Segment::pair();
    segment.spawn(1, "iperf -s");
    segment.spawn(1, "iperf -s -u");
    segment.run(Duration::from_millis(1));
    let (text, code) = segment.exec(0, "iperf -c 10.1.15.3 -n 1M");
    assert!(text.contains("1.00 MBytes") && text.contains("bits/sec"), "{text}");
    assert_eq!(code, 0);
    let (text, _) = segment.exec(0, "iperf -c 10.1.15.3 -u -t 1");
    assert!(text.contains("1.05 Mbits/sec"), "{text}");
    // However much is asked for, a turn is bounded: the other programs and pods get theirs.
    for (rate, code) in [("1e12", 0), ("1e13", 2), ("0", 2), ("1e300", 2)] {
        let (text, ended) = segment.exec(0, &format!("iperf -c 10.1.15.3 -u -t 0.001 -b {rate}"));
        assert_eq!(ended, code, "-b {rate}: {text}");
    }
    let (text, code) = segment.exec(0, "ping -c 0 10.1.15.3");
    assert_eq!(code, 2, "{text}");
    let (text, code) = segment.exec(0, "iperf -c 10.1.15.3 -p 5002");
    assert_eq!((text.as_str(), code), ("iperf: Connection refused\n", 1));
}

#[test]
fn a_client_container_ends_with_its_program() {
    let mut segment = Segment::pair();
    segment.pods[0].start_container(container("job", Image::Client, "ping -c 1 10.1.15.3")).unwrap();
    segment.run(Duration::from_secs(1));
    assert_eq!(segment.pods[0].containers().last().unwrap().state, ContainerState::Exited(0));
    let text = segment.pods[0].container_output("job");
    assert!(String::from_utf8(text).unwrap().contains("1 received"));
    segment.pods[0].start_container(container("job", Image::Client, "false")).unwrap();
    segment.run(Duration::from_secs(1));
    assert_eq!(segment.pods[0].containers().last().unwrap().state, ContainerState::Exited(1));
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

#[test]
fn ten_thousand_connections_are_not_scanned() {
    const COUNT: u64 = 10_000;
    let small = |name, address| PodConfig { tcp_buffer: 2048, ..pod(name, address) };
    let mut segment = Segment::new(vec![small("first", FIRST), small("second", SECOND)]);
    segment.pods[1].start_container(container("echo", Image::Echo, "")).unwrap();
    segment.exec(0, "ping -c 1 10.1.15.3");
    let remote = std::net::SocketAddrV4::new(SECOND, 7);
    let client = Owner::Program(ProgramId(0));
    for _ in 0..COUNT {
        segment.with(0, |pod, now, out| {
            let stack = &mut pod.stack;
            stack.tcp.connect(&stack.device, remote, client, false, now).unwrap();
            pod.poll(now, out);
        });
        segment.run(Duration::from_micros(200));
    }
    assert_eq!(segment.pods[1].tcp_counts(), (10_000, 0));
    let before = segment.pods[1].tcp_polls();
    assert!(segment.probe(0, ProbeProtocol::Tcp, SECOND, 7).result.is_ok());
    let polls = segment.pods[1].tcp_polls() - before;
    assert!(polls < 20, "{polls} polls for one more connection");
}

/// A container with a volume at a place.
fn mounting(container: ContainerConfig, volume: &str, path: &str) -> ContainerConfig {
    let mount = Mount { volume: volume.into(), path: path.into(), ..Mount::default() };
    ContainerConfig { mounts: vec![mount], ..container }
}

/// Kubernetes, tasks, "Communicate Between Containers in the Same Pod Using a Shared Volume".
#[test]
fn nginx_gives_what_another_container_wrote_into_their_volume() {
    let volumes = vec![Volume::empty("shared-data", DEFAULT_VOLUME_LIMIT)];
    let mut segment = Segment::new(vec![pod("first", FIRST), PodConfig { volumes, ..pod("second", SECOND) }]);
    let web = mounting(container("nginx", Image::Nginx, ""), "shared-data", "/usr/share/nginx/html");
    segment.pods[1].start_container(web).unwrap();
    let (text, _) = segment.exec(0, "curl -s -i http://10.1.15.3/");
    assert!(text.starts_with("HTTP/1.1 403 "), "{text}");

    let mut writer = mounting(container("debian", Image::Client, ""), "shared-data", "/pod-data");
    writer.args =
        ["/bin/sh", "-c", "echo Hello from the debian container > /pod-data/index.html; mkdir /pod-data/a"]
            .map(String::from)
            .to_vec();
    segment.pods[1].start_container(writer.clone()).unwrap();
    let (text, _) = segment.exec(0, "curl -s -i http://10.1.15.3/");
    assert!(text.contains("Content-Type: text/html\r\nETag: \""), "{text}");
    assert!(text.ends_with("\r\n\r\nHello from the debian container\n"), "{text}");
    let tag = text.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap();
    let (text, _) =
        segment.exec(0, &format!("curl -s -i -H If-None-Match:{tag} http://10.1.15.3/index.html"));
    assert!(text.starts_with("HTTP/1.1 304 ") && text.ends_with("\r\n\r\n"), "{text}");
    let (text, _) = segment.exec(0, "curl -s -i http://10.1.15.3/a?b");
    assert!(text.starts_with("HTTP/1.1 301 ") && text.contains("Location: /a/?b\r\n"), "{text}");
    for (target, status) in [("/none", 404), ("/a/", 403), ("/..%2fetc/hostname", 400), ("/%2e%2e/x", 400)] {
        let (text, _) = segment.exec(0, &format!("curl -s -i http://10.1.15.3{target}"));
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{target}: {text}");
    }
    assert_eq!(
        segment.exec(1, "cat /usr/share/nginx/html/index.html").0,
        "Hello from the debian container\n"
    );

    // The volume outlives its containers and ends with the pod; a container's own layer does not outlive it.
    writer.args =
        ["sh", "-c", "cat /pod-data/index.html && echo x > /own && cat /own"].map(String::from).to_vec();
    segment.pods[1].stop_container("nginx", 0, segment.now).unwrap();
    for _ in 0..2 {
        segment.pods[1].start_container(writer.clone()).unwrap();
        segment.run(Duration::from_secs(1));
        let text = segment.pods[1].container_output("debian");
        assert_eq!(String::from_utf8(text).unwrap(), "Hello from the debian container\nx\n");
        writer.args[2] = String::from("cat /pod-data/index.html; echo x >> /own && cat /own");
    }
    segment.pods[1].kill();
    assert!(segment.pods[1].volumes.is_empty());
}

#[test]
fn nginx_and_php_fpm_share_the_scripts_of_one_volume() {
    let script = "<h1>app</h1>\n<?php phpinfo(); ?>\n<p>end</p>\n";
    let names = [("index.php", script), ("style.css", "h1 {}")];
    let names = names.map(|(name, text)| (name.to_owned(), Entry::File(text.as_bytes().to_vec().into())));
    let volumes = vec![Volume::read_only("html", Entry::Directory(names.into()))];
    let mut segment = Segment::new(vec![pod("first", FIRST), PodConfig { volumes, ..pod("second", SECOND) }]);
    let args = "--root /var/www/html --fastcgi=localhost:9000 --expires 60";
    for container in [container("web", Image::Nginx, args), container("php", Image::PhpFpm, "")] {
        segment.pods[1].start_container(mounting(container, "html", "/var/www/html")).unwrap();
    }
    let (text, _) = segment.exec(0, "curl -s http://10.1.15.3/index.php?a=1");
    assert!(
        text.starts_with("<h1>app</h1>\npod: second\n") && text.ends_with("octets\n<p>end</p>\n"),
        "{text}"
    );
    let (text, _) = segment.exec(0, "curl -s -i http://10.1.15.3/style.css");
    assert!(text.contains("Content-Type: text/css\r\n") && text.ends_with("h1 {}"), "{text}");
    assert!(text.contains("Cache-Control: max-age=60\r\n"), "{text}");
    for target in ["/none.php", "/../index.php"] {
        let (text, _) = segment.exec(0, &format!("curl -s -i http://10.1.15.3{target}"));
        assert!(text.starts_with("HTTP/1.1 404 ") && text.ends_with("File not found.\n"), "{text}");
    }
    assert_eq!(segment.exec(1, "rm /var/www/html/index.php").1, 1);
}

#[test]
fn a_container_that_cannot_have_its_volume_does_not_start() {
    let mut pod = Pod::new(pod("first", FIRST));
    let error = pod.start_container(mounting(container("a", Image::Httpd, ""), "none", "/x")).unwrap_err();
    assert_eq!(error.to_string(), "container a mounts none, which is no volume of the pod");
    assert_eq!(pod.containers().count(), 1);
}

/// RFC 9293, 3.6 and 3.10.7.4; RFC 6298, 5.1: a FIN that overtook what it follows, or was lost, is sent again however often the
/// rest is acknowledged meanwhile, and both sides end in order.
#[test]
fn a_connection_over_a_bad_link_ends_in_order_whatever_is_lost() {
    let input = b"line of text\n".repeat(8000);
    for seed in 0..200 {
        let mut segment = echo_pair();
        // Neighbours are known: a lost question for a MAC is not what this is about.
        segment.exec(0, "ping -c 1 10.1.15.3");
        (segment.loss_per_cent, segment.jitter) = (5, 3000);
        segment.random = crate::random::Random::new(seed);
        let id = segment.spawn(0, "nc 10.1.15.3 7");
        segment.pods[0].input(id, &input);
        segment.pods[0].close_input(id);
        let (text, code) = segment.finish(0, id);
        assert!(text.as_bytes() == input && code == 0, "seed {seed}: {:?}, {code}", text.lines().last());
        segment.run(Duration::from_secs(300));
        assert_eq!([0, 1].map(|index| segment.pods[index].tcp_counts()), [(0, 0); 2], "seed {seed}");
    }
}
