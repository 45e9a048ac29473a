//! Why a pod threw something away, and how often.
//!
//! Every part of the pod counts here; the worker reads the sums. Invariant: nothing is discarded without a count, and there
//! is no catch-all. Depends on nothing. Read first: this enum.

/// Why a pod dropped a frame, a packet or a connection attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PodDrop {
    /// The pod is dead and takes no frames any more.
    Dead,
    /// The frame's destination is another card.
    NotForUs,
    /// A header is truncated or its lengths disagree.
    Malformed,
    /// A checksum is wrong.
    BadChecksum,
    /// An address cannot be on this interface: loopback or another's address from the wire.
    Martian,
    /// Neither ARP nor IPv4, or a transport that the pod does not speak.
    UnknownProtocol,
    /// Too many fragmented packets are waiting for their rest.
    ReassemblyFull,
    /// The rest of a fragmented packet did not come in 30 s.
    ReassemblyTimeout,
    /// A listener or the pod holds as many half-open connections as it may.
    HalfOpenFull,
    /// A half-open connection got no answer for 63 s.
    HalfOpenTimeout,
    /// The application does not read its datagrams fast enough.
    SocketQueueFull,
    /// Too many packets wait for one neighbour's answer.
    NeighborQueueFull,
    /// Nobody answered ARP for the next hop.
    NeighborUnresolved,
    /// There is no route to the destination.
    NoRoute,
    /// The queue of `lo` is full.
    LoFull,
    /// The link took no more frames, or no buffer was free.
    LinkFull,
    /// An ICMP error belongs to no socket of the pod.
    ErrorUnmatched,
}

impl PodDrop {
    /// Every reason, in the order of the counters.
    pub const ALL: [PodDrop; 17] = [
        PodDrop::Dead,
        PodDrop::NotForUs,
        PodDrop::Malformed,
        PodDrop::BadChecksum,
        PodDrop::Martian,
        PodDrop::UnknownProtocol,
        PodDrop::ReassemblyFull,
        PodDrop::ReassemblyTimeout,
        PodDrop::HalfOpenFull,
        PodDrop::HalfOpenTimeout,
        PodDrop::SocketQueueFull,
        PodDrop::NeighborQueueFull,
        PodDrop::NeighborUnresolved,
        PodDrop::NoRoute,
        PodDrop::LoFull,
        PodDrop::LinkFull,
        PodDrop::ErrorUnmatched,
    ];

    /// Returns the reason's name, as counters and JSON have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            PodDrop::Dead => "pod-dead",
            PodDrop::NotForUs => "pod-not-for-us",
            PodDrop::Malformed => "pod-malformed",
            PodDrop::BadChecksum => "pod-bad-checksum",
            PodDrop::Martian => "pod-martian",
            PodDrop::UnknownProtocol => "pod-unknown-protocol",
            PodDrop::ReassemblyFull => "pod-reassembly-full",
            PodDrop::ReassemblyTimeout => "pod-reassembly-timeout",
            PodDrop::HalfOpenFull => "pod-half-open-full",
            PodDrop::HalfOpenTimeout => "pod-half-open-timeout",
            PodDrop::SocketQueueFull => "pod-socket-queue-full",
            PodDrop::NeighborQueueFull => "pod-neighbor-queue-full",
            PodDrop::NeighborUnresolved => "pod-neighbor-unresolved",
            PodDrop::NoRoute => "pod-no-route",
            PodDrop::LoFull => "pod-lo-full",
            PodDrop::LinkFull => "pod-link-full",
            PodDrop::ErrorUnmatched => "pod-error-unmatched",
        }
    }
}

/// How often each reason happened in one pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodDrops([u64; PodDrop::ALL.len()]);

impl PodDrops {
    /// Counts one.
    pub(super) fn count(&mut self, reason: PodDrop) {
        self.0[reason as usize] += 1;
    }

    /// Returns how often a reason happened.
    #[must_use]
    pub fn get(&self, reason: PodDrop) -> u64 {
        self.0[reason as usize]
    }

    /// Returns the reasons that happened, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (PodDrop, u64)> {
        PodDrop::ALL.into_iter().zip(self.0).filter(|&(_, count)| count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        let mut drops = PodDrops::default();
        for (index, reason) in PodDrop::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            drops.count(reason);
        }
        assert!(drops.iter().all(|(_, count)| count == 1));
        let names: std::collections::BTreeSet<_> = PodDrop::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), PodDrop::ALL.len());
    }
}
