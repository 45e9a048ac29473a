//! Why a pod threw something away, and how often.
//!
//! Every part of the pod counts here; the worker reads the sums. Invariant: nothing is discarded without a count, and there
//! is no catch-all. Depends on nothing. Read first: this enum.

macro_rules! pod_drops {
    ($($reason:ident $name:literal $meaning:literal;)*) => {
        /// Why a pod dropped a frame, a packet or a connection attempt.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum PodDrop {
            $(#[doc = $meaning] $reason,)*
        }

        impl PodDrop {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$reason,)*];

            /// Returns the reason's name, as counters and JSON have it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$reason => $name,)* }
            }

            /// Returns what the reason means, in one sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$reason => $meaning,)* }
            }
        }
    };
}

pod_drops! {
    Dead "pod-dead" "The pod is dead and takes no frames any more.";
    NotForUs "pod-not-for-us" "The frame's destination is another card.";
    Malformed "pod-malformed" "A header is truncated or its lengths disagree.";
    BadChecksum "pod-bad-checksum" "A checksum is wrong.";
    Martian "pod-martian" "An address cannot be on this interface: loopback or another's address from the wire.";
    UnknownProtocol "pod-unknown-protocol" "Neither ARP nor IPv4, or a transport that the pod does not speak.";
    ReassemblyFull "pod-reassembly-full" "Too many fragmented packets are waiting for their rest.";
    ReassemblyTimeout "pod-reassembly-timeout" "The rest of a fragmented packet did not come in 30 s.";
    HalfOpenFull "pod-half-open-full" "A listener or the pod holds as many half-open connections as it may.";
    HalfOpenTimeout "pod-half-open-timeout" "A half-open connection got no answer for 63 s.";
    SocketQueueFull "pod-socket-queue-full" "The application does not read its datagrams fast enough.";
    NeighborQueueFull "pod-neighbor-queue-full" "Too many packets wait for one neighbour's answer.";
    NeighborUnresolved "pod-neighbor-unresolved" "Nobody answered ARP for the next hop.";
    NoRoute "pod-no-route" "There is no route to the destination.";
    LoFull "pod-lo-full" "The queue of `lo` is full.";
    LinkFull "pod-link-full" "The link took no more frames, or no buffer was free.";
    ErrorUnmatched "pod-error-unmatched" "An ICMP error belongs to no socket of the pod.";
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
        PodDrop::ALL.iter().copied().zip(self.0).filter(|&(_, count)| count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        let mut drops = PodDrops::default();
        for (index, &reason) in PodDrop::ALL.iter().enumerate() {
            assert_eq!(reason as usize, index);
            drops.count(reason);
        }
        assert!(drops.iter().all(|(_, count)| count == 1));
        let names: std::collections::BTreeSet<_> = PodDrop::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), PodDrop::ALL.len());
    }
}
