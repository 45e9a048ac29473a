//! Why a pod threw something away, and how often.
//!
//! Every part of the pod counts here; the worker reads the sums. Invariant: nothing is discarded without a count, and there
//! is no catch-all. Depends on `ledger` for the form of the list. Read first: this list.

use crate::ledger::drop_reasons;

drop_reasons! {
    /// Why a pod dropped a frame, a packet or a connection attempt. There is no catch-all.
    PodDrop;
    Dead "pod-dead" "The pod is dead and takes no frames any more." "An autonomous pod that dies stays dead.";
    NotForUs "pod-not-for-us" "The frame's or packet's destination is another machine." "A switch floods frames whose destination it does not know yet.";
    Malformed "pod-malformed" "A header is truncated or its lengths disagree." "Capture at the pod's eth0 and look at the sender.";
    BadChecksum "pod-bad-checksum" "A checksum is wrong." "The packet was damaged on its way.";
    Martian "pod-martian" "An address cannot be on this interface: loopback, the pod's own, or a group's as source or of a TCP segment." "RFC 1122, 3.2.1.3: look for two machines with one address.";
    UnknownProtocol "pod-unknown-protocol" "Neither ARP nor IPv4, or a transport or ICMP type that the pod does not speak." "Pods speak TCP, UDP and ICMP echo and errors; nobody answers an echo to all.";
    ReassemblyFull "pod-reassembly-full" "Too many fragmented packets wait for their rest: the oldest gave way." "Send what fits the path's MTU; 1,024 packets and 4 MB may wait.";
    ReassemblyTimeout "pod-reassembly-timeout" "The rest of a fragmented packet did not come in 30 s." "A fragment was lost: look at `flatnet show drops NODE` on its way.";
    HalfOpenFull "pod-half-open-full" "A listener or the pod holds as many half-open connections as it may." "A SYN flood, or answers that do not reach the clients.";
    HalfOpenTimeout "pod-half-open-timeout" "A half-open connection got no answer for 63 s." "The answer does not reach the client: ping it from the pod.";
    SocketQueueFull "pod-socket-queue-full" "The application does not read its datagrams fast enough." "Send more slowly; 512 datagrams may wait.";
    NeighborQueueFull "pod-neighbor-queue-full" "Too many packets wait for one neighbour's answer." "RFC 1122, 2.3.2.2: only the latest few are kept.";
    NeighborUnresolved "pod-neighbor-unresolved" "Nobody answered ARP for the next hop; the application is told." "Is the machine up, and the link to it whole.";
    NoRoute "pod-no-route" "There is no route to the destination; the application is told." "The pod has no gateway: give the host one in the topology.";
    LoFull "pod-lo-full" "The queue of `lo` is full." "Send more slowly; 4,096 packets may wait.";
    LinkFull "pod-link-full" "The link took no more frames, or no buffer was free." "The pod sends faster than its node takes.";
    NotForwarded "pod-not-forwarded" "The destination is one that no router forwards to: link-local, nobody's, or of a class without hosts." "Ask for an address of the host's networks.";
    HostSocketsFull "pod-host-sockets-full" "No socket of the host's was left for another connection or flow." "1,024 connections may be at once, and as many files as `ulimit -n` says; let clients end theirs.";
    HostQueueFull "pod-host-queue-full" "The host's socket did not take a datagram." "Send more slowly, or less at once.";
    HostPingRefused "pod-host-ping-refused" "The host lets this process send no pings." "`sysctl net.ipv4.ping_group_range` says which groups may.";
    ErrorUnmatched "pod-error-unmatched" "An ICMP error or echo reply belongs to no socket of the pod." "A late answer, or a forged one.";
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
    fn every_reason_has_its_own_counter_name_meaning_and_hint() {
        let mut drops = PodDrops::default();
        for (index, &reason) in PodDrop::ALL.iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert!(reason.meaning().ends_with('.') && reason.hint().ends_with('.'), "{reason:?}");
            drops.count(reason);
        }
        assert!(drops.iter().all(|(_, count)| count == 1));
        let names: std::collections::BTreeSet<_> = PodDrop::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), PodDrop::ALL.len());
        assert!(names.iter().all(|name| name.starts_with("pod-")), "told apart from a node's");
    }
}
