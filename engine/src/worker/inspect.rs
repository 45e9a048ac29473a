//! What visits may look at: a worker's learned and chosen state, read-only.
//!
//! `show` and tests call these between two batches. Invariant: nothing here changes what the packet path does; a buffer
//! handed back is one that was out. Read first: `mailbox.rs`.

use super::{Bindings, Fdb, Frame, Instant, Link, Neighbors, Worker};

impl Worker {
    /// Takes one of its own buffers back that a pool outside has freed.
    pub fn adopt(&mut self, frame: Frame) {
        self.pool.welcome(frame);
    }

    /// Returns how many of its buffers hold frames, wherever they are.
    #[must_use]
    pub fn outstanding_buffers(&self) -> usize {
        let links = self.links.iter().flatten().map(|attached| &attached.link);
        let idle = links.map(|link| match link {
            Link::TunnelSocket(socket) => socket.idle_buffers(),
            Link::Wire { .. } | Link::Rings(_) | Link::Pod(_) | Link::Tap(_) => 0,
        });
        self.pool.outstanding() - idle.sum::<usize>()
    }

    /// Returns what NAT and Services chose.
    #[must_use]
    pub fn bindings(&self) -> &Bindings {
        &self.bindings
    }

    /// Returns the next hops' MACs.
    #[must_use]
    pub fn neighbors(&self) -> &Neighbors {
        &self.neighbors
    }

    /// Returns what the bridges learned.
    #[must_use]
    pub fn fdb(&self) -> &Fdb {
        &self.fdb
    }

    /// Returns how many times the slow path decided about a frame: what the cache did not answer.
    #[must_use]
    pub fn decisions(&self) -> u64 {
        self.decisions
    }

    /// Returns the time of the present batch.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher as _;

    use crate::binding::HalfKey;
    use crate::binding::tests::hashes_of;
    use crate::control::{Control, EngineConfig};
    use crate::flow::{FlowKey, Tuple};
    use crate::tables::NodeId;

    /// Which flows share a place in a table must not be anybody's to know, who knows the seed.
    #[test]
    fn tables_that_packets_fill_are_keyed_by_the_secret_of_their_worker() {
        let tuple = Tuple { source: 1, destination: 2, source_port: 3, destination_port: 4, protocol: 17 };
        let hashes = |secret| {
            let config = EngineConfig { workers: 2, small_buffers: 64, secret, ..EngineConfig::default() };
            let (_, workers) = Control::build(&config).unwrap();
            let of = |worker: &super::Worker| {
                let half = HalfKey { node: NodeId(5), tuple };
                let [client, remote] = hashes_of(&worker.bindings, 5);
                [
                    worker.cache.hash(FlowKey::ipv4(&tuple, 5, false)),
                    worker.bindings.hash(&half),
                    client,
                    remote,
                    worker.adjacencies.numbers.hasher().hash_one(5u64),
                ]
            };
            workers.iter().map(of).collect::<Vec<_>>()
        };
        let (one, again, other, of_seed) = (hashes(Some(1)), hashes(Some(1)), hashes(Some(2)), hashes(None));
        assert_eq!(one, again);
        for table in 0..one[0].len() {
            let mut all: Vec<u64> = [&one, &other, &of_seed]
                .iter()
                .flat_map(|workers| workers.iter().map(|of| of[table]))
                .collect();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), 6, "table {table}: each worker of each secret has its own");
        }
        assert_eq!(of_seed, hashes(None), "by the seed where nothing else is said: a run can be had again");
    }
}
