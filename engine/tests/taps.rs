//! Real programs at real TAPs: pods are network namespaces, whose eth0 is a TAP of a node's, and the workers run on threads.
//!
//! A namespace lives as long as a process that sleeps in it, and has no name that could be left behind. Needs root, `ip`,
//! `nsenter` and `unshare`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, ScopedJoinHandle};
use std::time::{Duration, Instant};

use common::*;
use flatnet_engine::clock::Clock;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::link::Link;
use flatnet_engine::link::tap::{Tap, TapError};
use flatnet_engine::tables::{Guard, NodeId, PortId};
use flatnet_engine::worker::Worker;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// For whatever must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// A network namespace of nobody but its process.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        // Says when it is there.
        let script = "echo && exec sleep 600";
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "sh", "-c", script]).stdout(Stdio::piped());
        let mut child = unshare.spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let made = Self(child);
        made.run("ip link set lo up");
        made
    }

    fn run(&self, command: &str) {
        let id = self.0.id().to_string();
        let status =
            Command::new("nsenter").args(["--target", &id, "--net", "sh", "-ec", command]).status().unwrap();
        assert!(status.success(), "{command}");
    }

    /// Moves the calling thread here.
    fn enter(&self) {
        let file = File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The tour's network with some of its pods at TAPs, running.
struct Running {
    lab: Lab,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Worker>>,
    /// Where TAPs are made.
    host: Namespace,
    taps: Vec<PortId>,
    /// What was in the TAPs' places: frames may have been flooded there.
    before: Vec<Machine>,
}

impl Running {
    fn new(workers: u8) -> Self {
        let mut lab = Lab::new(workers);
        let stop = Arc::new(AtomicBool::new(false));
        let start = |mut worker: Worker| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                worker.run(&Clock::start(), &stop);
                worker
            })
        };
        let workers = lab.workers.drain(..).map(start).collect();
        Self { lab, stop, workers, host: Namespace::new(), taps: Vec::new(), before: Vec::new() }
    }

    /// Puts a namespace in the place of a pod; returns it and its port.
    fn pod(&mut self, node: NodeId, address: Ipv4Addr, worker: u8) -> (Namespace, PortId) {
        let control = &mut self.lab.control;
        let before = self.lab.machines.remove(&address).unwrap();
        control.detach(before.port).unwrap();
        self.before.push(before);
        let (pod, name) = (Namespace::new(), format!("tap{}", address.octets()[2]));
        let (host, wanted) = (&self.host, name.clone());
        let tap = std::thread::scope(|scope| {
            let opened = scope.spawn(|| {
                host.enter();
                Tap::open(&wanted).unwrap()
            });
            opened.join().unwrap()
        });
        self.host.run(&format!("ip link set {name} netns {} name eth0", pod.0.id()));
        let [a, b, c, _] = address.octets();
        pod.run(&format!(
            "ip link set eth0 address {} mtu 1472 up && ip address add {address}/24 dev eth0 && \
             ip route add default via {a}.{b}.{c}.1",
            mac(address)
        ));
        let guard = Guard { mac: mac(address), address, vip: None };
        let port = control.attach(node, "tap", Some(guard), worker, Link::Tap(Box::new(tap))).unwrap();
        self.taps.push(port);
        (pod, port)
    }

    fn drops(&self, reason: DropReason) -> u64 {
        [self.lab.node1, self.lab.node2].iter().map(|&node| self.lab.control.ledger(node).drops(reason)).sum()
    }

    /// Waits until more frames are dropped because an interface is down.
    fn await_drops(&self) {
        let (before, deadline) = (self.drops(DropReason::LinkDown), Instant::now() + PATIENCE);
        while self.drops(DropReason::LinkDown) <= before + 100 {
            assert!(Instant::now() < deadline, "no drop");
            std::thread::yield_now();
        }
    }

    /// Takes the TAPs away, so that nothing more comes in, and ends the workers; the ledger must be exact, and every buffer back.
    fn end(mut self) {
        for port in self.taps.drain(..) {
            self.lab.control.detach(port).unwrap();
        }
        self.stop.store(true, Ordering::Release);
        self.lab.control.posts.iter().for_each(|post| post.alarm.ring());
        self.lab.workers = self.workers.drain(..).map(|thread| thread.join().unwrap()).collect();
        self.lab.machines.extend(self.before.drain(..).map(|machine| (machine.address, machine)));
        self.lab.check();
    }
}

/// Runs something on a thread in a namespace.
fn within<'scope, T: Send + 'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    namespace: &'scope Namespace,
    task: impl FnOnce() -> T + Send + 'scope,
) -> ScopedJoinHandle<'scope, T> {
    scope.spawn(move || {
        namespace.enter();
        task()
    })
}

fn octet(index: usize) -> u8 {
    (index * 7 + index / 251) as u8
}

/// Waits for a connection, but not for ever.
fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                return stream;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < deadline, "nobody connects");
    }
}

/// A stream there and back, and datagrams of every length that fits.
fn talk(server: &Namespace, client: &Namespace, address: Ipv4Addr, octets: usize) {
    let payload: Vec<u8> = (0..octets).map(octet).collect();
    std::thread::scope(|scope| {
        let (ready, is_ready) = std::sync::mpsc::channel();
        within(scope, server, move || {
            let listener = TcpListener::bind((address, 7)).unwrap();
            let datagrams = UdpSocket::bind((address, 7)).unwrap();
            datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
            ready.send(()).unwrap();
            let mut buffer = [0; 2000];
            for _ in 0..1445 {
                let (length, from) = datagrams.recv_from(&mut buffer).unwrap();
                datagrams.send_to(&buffer[..length], from).unwrap();
            }
            let mut stream = accept(&listener);
            let (mut from, mut to) = (stream.try_clone().unwrap(), stream.try_clone().unwrap());
            std::io::copy(&mut from, &mut to).unwrap();
            stream.flush().unwrap();
        });
        is_ready.recv().unwrap();
        let (payload, peer) = (&payload, (address, 7));
        within(scope, client, move || {
            let datagrams = UdpSocket::bind("0.0.0.0:0").unwrap();
            datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
            datagrams.connect(peer).unwrap();
            let mut buffer = [0; 2000];
            for length in 0..1445 {
                datagrams.send(&payload[..length]).unwrap();
                assert_eq!(datagrams.recv(&mut buffer).unwrap(), length);
                assert_eq!(buffer[..length], payload[..length]);
            }
            let mut stream = TcpStream::connect(peer).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut sender = stream.try_clone().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    sender.write_all(payload).unwrap();
                    sender.shutdown(std::net::Shutdown::Write).unwrap();
                });
                let mut back = Vec::new();
                stream.read_to_end(&mut back).unwrap();
                assert!(&back == payload, "{} octets came back of {}", back.len(), payload.len());
            });
        });
    });
}

/// On one node, and through the tunnel to another; by one worker and by two.
#[test]
fn programs_talk_through_taps() {
    for workers in [1, 2] {
        let mut running = Running::new(workers);
        let (node1, node2, last) = (running.lab.node1, running.lab.node2, workers - 1);
        let (near, _) = running.pod(node1, APP1, 0);
        let (far, _) = running.pod(node2, APP3, last);
        talk(&far, &near, APP3, 4_000_000);
        talk(&near, &far, APP1, 4_000_000);
        running.end();
    }
}

/// Sends datagrams until told to stop, or nobody can wait for them any more; no more than go through, so that none is left in a
/// queue at the end.
fn flood(address: Ipv4Addr, stop: &AtomicBool) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let end = Instant::now() + 3 * PATIENCE;
    while !stop.load(Ordering::Acquire) && Instant::now() < end {
        // The interface may be down, and nobody may listen.
        (0..10).for_each(|_| drop(socket.send_to(&[7; 100], (address, 9))));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Does something while a pod sends another one datagrams.
fn while_flooded(from: &Namespace, task: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = within(scope, from, || flood(APP3, &stop));
        task();
        stop.store(true, Ordering::Release);
        flood.join().unwrap();
    });
}

#[test]
fn an_interface_that_goes_down_or_away_drops_by_name() {
    let mut running = Running::new(2);
    let (node1, node2) = (running.lab.node1, running.lab.node2);
    let (near, _) = running.pod(node1, APP1, 0);
    let (far, port) = running.pod(node2, APP3, 1);
    while_flooded(&near, || {
        far.run("ip link set eth0 down");
        running.await_drops();
        far.run("ip link set eth0 up && ip route add default via 10.1.20.1");
    });
    talk(&far, &near, APP3, 100_000);
    while_flooded(&near, || {
        far.run("ip link delete eth0");
        running.await_drops();
        running.lab.control.detach(port).unwrap();
        running.taps.retain(|&other| other != port);
    });
    running.end();
}

#[test]
fn frames_longer_than_a_small_buffer_come_whole() {
    let mut running = Running::new(1);
    let node1 = running.lab.node1;
    let ((near, _), (far, _)) = (running.pod(node1, APP1, 0), running.pod(node1, APP2, 0));
    for pod in [&near, &far] {
        pod.run("ip link set eth0 mtu 9000");
    }
    std::thread::scope(|scope| {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let server = within(scope, &far, move || {
            let socket = UdpSocket::bind((APP2, 7)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            ready.send(()).unwrap();
            let mut buffer = vec![0; 10_000];
            let length = socket.recv(&mut buffer).unwrap();
            buffer.truncate(length);
            buffer
        });
        is_ready.recv().unwrap();
        let sent: Vec<u8> = (0..8_900).map(octet).collect();
        let payload = sent.clone();
        within(scope, &near, move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(&payload, (APP2, 7)).unwrap();
        });
        assert!(server.join().unwrap() == sent);
    });
    running.end();
}

#[test]
fn a_tap_that_cannot_be_opened_says_why() {
    let host = Namespace::new();
    std::thread::scope(|scope| {
        let opened = within(scope, &host, || {
            let first = Tap::open("tap0").unwrap();
            assert_eq!(&**first.name(), "tap0");
            ["tap0", "lo", "", "a-name-of-16-byte"].map(|name| Tap::open(name).map(drop))
        });
        let said = opened.join().unwrap().map(|result| result.unwrap_err());
        assert!(matches!(&said[0], TapError::Taken { name } if name == "tap0"), "{:?}", said[0]);
        assert!(matches!(&said[1], TapError::Taken { .. }), "{:?}", said[1]);
        assert!(said[2..].iter().all(|error| matches!(error, TapError::Name(_))), "{said:?}");
    });
}
