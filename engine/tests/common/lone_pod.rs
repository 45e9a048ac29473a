//! A pod without an engine around it: what it is sent, and what it sends.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

use flatnet_engine::clock::Instant;
use flatnet_engine::frame::{Arena, Frame, Pool};
use flatnet_engine::link::pod_ring::Outbox;
use flatnet_engine::pod::{Pod, PodConfig};
use flatnet_engine::wire::ArpOperation;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::common::*;

pub struct LonePod {
    pub pod: Pod,
    pub now: Instant,
    pool: Pool,
    sent: VecDeque<Frame>,
    mark: u32,
}

impl LonePod {
    /// Makes one with an address, which knows a neighbour.
    pub fn new(address: Ipv4Addr, neighbor: Ipv4Addr) -> Self {
        let (_, mut pools) = Arena::new(1, 2048, 16).unwrap();
        let pod = Pod::new(PodConfig { mac: mac(address), address, ..PodConfig::default() });
        let (pool, now) = (pools.pop().unwrap(), Instant::ZERO);
        let mut lone = Self { pod, now, pool, sent: VecDeque::new(), mark: 0 };
        lone.receive(&arp(ArpOperation::Request, (mac(neighbor), neighbor), (mac(address), address)));
        lone.take();
        lone
    }

    pub fn with(&mut self, act: impl FnOnce(&mut Pod, Instant, &mut Outbox<'_>)) {
        let Self { pod, pool, sent, mark, now } = self;
        let mut out = Outbox { pool, queue: sent, next_mark: mark, tracing: false, answers_traced: false };
        act(pod, *now, &mut out);
    }

    pub fn receive(&mut self, frame: &[u8]) {
        self.with(|pod, now, out| pod.receive(frame, now, out));
    }

    /// Makes the pod its network's way outside, to a host of this thread's own that has an address, and lets nobody send pings.
    pub fn lead_outside(&mut self, server: Ipv4Addr) {
        enter_namespace();
        ip(&format!("address add {server}/24 dev lo"));
        ip("link set lo up");
        self.pod.open_relays().unwrap();
        self.pod.forward_outside();
    }

    /// Takes what the pod sent.
    pub fn take(&mut self) -> Vec<Vec<u8>> {
        let frames = self.sent.drain(..);
        let taken = frames.map(|frame| {
            let bytes = self.pool.arena().bytes(&frame).to_vec();
            self.pool.free(frame);
            bytes
        });
        taken.collect()
    }
}

/// Moves this thread into a network namespace that is nobody else's.
fn enter_namespace() {
    // Says when it is there.
    let mut holder = Command::new("unshare");
    let mut holder =
        holder.args(["--net", "sh", "-c", "echo && exec sleep 600"]).stdout(Stdio::piped()).spawn().unwrap();
    holder.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let file = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
}

/// Says something to `ip`, in the network namespace of this thread.
pub fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(status.success(), "ip {words}");
}
