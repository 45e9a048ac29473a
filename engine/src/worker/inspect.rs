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
