//! One TCP stream: from a pod through a Service to a pod of another node, and the same with nothing between.
//!
//! Both ends of the first are `iperf` in pods; those of the second are the stacks that pods use, bare. Invariant: a stream's
//! time ends when its last octet is acknowledged.
//!
//! May depend on `cluster` and smoltcp. Read first: `cluster.rs`, `engine/src/pod/tcp/connection.rs`.

mod bare;

use std::net::Ipv4Addr;
use std::time::Duration;

use flatnet_engine::pod::Image;
use flatnet_engine::tables::PortId;

use super::cluster::Cluster;
use super::core_time;
use crate::bench::BenchError;
use crate::bench::addresses::pod_address;

pub use bare::Bare;

/// Where iperf listens.
const PORT: u16 = 5001;

/// Two nodes, a pod that sends on the first, one behind a Service on the second.
#[derive(Debug)]
pub struct Stream {
    cluster: Cluster,
    client: PortId,
    vip: Ipv4Addr,
}

impl Stream {
    /// Makes the network.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn new() -> Result<Self, BenchError> {
        let mut cluster = Cluster::new(2)?;
        let client = cluster.add_pod(0, 0, Image::Client, &[])?;
        cluster.add_pod(1, 0, Image::Client, &["iperf", "-s"])?;
        let vip = cluster.add_service(pod_address(1, 0), PORT)?;
        while cluster.run_batch() > 0 {}
        Ok(Self { cluster, client, vip })
    }

    /// Sends so many octets; returns how long it took.
    ///
    /// # Errors
    /// [`BenchError::Unfinished`].
    pub fn carry(&mut self, octets: u64) -> Result<Duration, BenchError> {
        let Self { cluster, client, vip } = self;
        let words = ["iperf", "-c", &vip.to_string(), "-n", &octets.to_string()].map(str::to_owned);
        let start = core_time();
        let program = cluster.worker.with_pod(*client, |pod, now| pod.exec(&words, now));
        let program = program.ok_or(BenchError::Unfinished { what: "iperf", drops: String::new() })?;
        cluster.run_until("the stream", |cluster| {
            let output = cluster.worker.with_pod(*client, |pod, _| pod.output(program));
            let code = output.and_then(|output| output.exit_code);
            if code.is_some_and(|code| code != 0) {
                return Err(BenchError::Unfinished { what: "iperf", drops: cluster.drops() });
            }
            Ok(code.is_some())
        })?;
        Ok(core_time() - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_arrives_whole_by_both_ways() {
        assert!(Stream::new().unwrap().carry(3_000_001).unwrap() > Duration::ZERO);
        assert!(Bare::new().carry(3_000_001).unwrap() > Duration::ZERO);
    }
}
