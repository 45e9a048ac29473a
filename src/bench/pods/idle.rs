//! Idle pods: what they hold, and how long it takes until all are ready.
//!
//! Ready is what a Kubernetes TCP probe calls so: the server answers. A prober on each docker0 sends a SYN to every pod, and
//! a RST once it has answered. Invariant: memory is measured after that, when every pod has heard from somebody.
//!
//! May depend on `cluster`, `segment`. Read first: `cluster.rs`.

use std::fs;
use std::net::SocketAddrV4;
use std::time::Duration;

use flatnet_engine::link::RingsPeer;
use flatnet_engine::pod::Image;
use flatnet_engine::wire::{MacAddress, TcpFlags};

use super::cluster::Cluster;
use super::core_time;
use super::segment::Segment;
use crate::bench::BenchError;
use crate::bench::addresses::pod_address;

/// Pods of a node.
const PER_NODE: u32 = 250;
/// The number of the prober among a node's pods.
const PROBER: u32 = 252;
/// Where the echo server listens.
const PORT: u16 = 7;
/// The prober's port.
const PROBER_PORT: u16 = 40_000;

/// Pods of a node that are asked between two turns of the worker.
const AT_ONCE: u32 = 16;

/// What idle pods came to.
#[derive(Debug, Clone, Copy)]
pub struct Idle {
    /// Resident bytes for each, nodes and engine included.
    pub bytes_a_pod: u64,
    /// From nothing to the last pod's answer.
    pub ready: Duration,
}

/// Makes so many pods and waits until all have answered.
///
/// # Errors
/// [`BenchError`].
pub fn measure(pods: u32) -> Result<Idle, BenchError> {
    let before = resident()?;
    let start = core_time();
    let mut cluster = Cluster::new(pods.div_ceil(PER_NODE))?;
    let mut probers = Vec::new();
    for first in (0..pods).step_by(PER_NODE as usize) {
        let node = first / PER_NODE;
        let count = PER_NODE.min(pods - first);
        for number in 0..count {
            cluster.add_pod(node, number, Image::Echo, &[])?;
        }
        probers.push(Prober { node, ring: cluster.add_rings(node, PROBER)?, asked: 0, count, answered: 0 });
    }
    cluster.run_until("the pods", |cluster| {
        let mut waits = false;
        for prober in &mut probers {
            prober.probe(cluster)?;
            waits |= prober.answered < prober.count;
        }
        Ok(!waits)
    })?;
    let ready = core_time() - start;
    // What the probers sent last reaches its pods.
    while cluster.run_batch() > 0 {}
    let bytes = resident()?.saturating_sub(before);
    Ok(Idle { bytes_a_pod: bytes / u64::from(pods.max(1)), ready })
}

/// Bytes of memory that the process holds.
pub(in crate::bench) fn resident() -> Result<u64, BenchError> {
    let status = fs::read_to_string("/proc/self/status").map_err(|_| BenchError::NoMemoryFigure)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.map(|kilobytes| kilobytes * 1024).ok_or(BenchError::NoMemoryFigure)
}

/// What asks the pods of a node.
struct Prober {
    node: u32,
    ring: RingsPeer,
    asked: u32,
    count: u32,
    answered: u32,
}

impl Prober {
    /// Asks a batch of pods and hears who has answered.
    fn probe(&mut self, cluster: &mut Cluster) -> Result<(), BenchError> {
        let Self { node, ring, asked, count, answered } = self;
        let control = &mut cluster.control;
        let from = SocketAddrV4::new(pod_address(*node, PROBER), PROBER_PORT);
        let until = (*asked + AT_ONCE).min(*count);
        while *asked < until {
            let to = SocketAddrV4::new(pod_address(*node, *asked), PORT);
            let syn =
                Segment { from, to, sequence: 0, acknowledgement: 0, flags: TcpFlags::SYN, payload: &[] };
            syn.send(MacAddress::for_ipv4(*to.ip()), control, ring)?;
            *asked += 1;
        }
        let mut answers = Vec::new();
        ring.from_node.pop(usize::MAX, |frame| {
            let segment = Segment::read(control.pool.arena().bytes(&frame));
            match segment.filter(|it| it.flags == TcpFlags::SYN.with(TcpFlags::ACK) && it.to == from) {
                Some(Segment { from, .. }) => answers.push((from, frame)),
                None => control.pool.free(frame),
            }
        });
        for (to, frame) in answers {
            *answered += 1;
            let reset =
                Segment { from, to, sequence: 1, acknowledgement: 0, flags: TcpFlags::RST, payload: &[] };
            reset.send_in(frame, MacAddress::for_ipv4(*to.ip()), control, ring)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pod_answers() {
        let Idle { ready, .. } = measure(600).unwrap();
        assert!(ready > Duration::ZERO);
    }
}
