//! What became of every frame: one row of counters per node and worker, and the reasons of all drops.
//!
//! The worker counts, anyone reads. Invariants: per node received + originated + copied + split = sent +
//! consumed + merged + dropped + held; one worker writes a row, so counting is a plain load and store. A drop
//! always has a reason. Buffers allocated = freed + held. Allowed dependencies: none. Read first:
//! `docs/architecture.md`, "The ledger".

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! terms {
    ($($term:ident $name:literal $meaning:literal;)*) => {
        /// The terms of the ledger beside drops and what is held.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Term {
            $(#[doc = $meaning] $term,)*
        }

        impl Term {
            /// All terms, in the ledger's order.
            pub const ALL: [Self; 7] = [$(Self::$term,)*];

            /// Returns the term's name, as commands print it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$term => $name,)* }
            }

            /// Returns what is counted, in one sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$term => $meaning,)* }
            }
        }
    };
}

terms! {
    Received "received" "Came in from a link.";
    Originated "originated" "Made by the node itself: ICMP errors, ARP, answers.";
    Copied "copied" "Copies made by flooding, or by a link that duplicates.";
    Split "split" "Frames made by cutting a superframe, beyond the first.";
    Sent "sent" "Given to a link.";
    Consumed "consumed" "Taken by the node itself.";
    Merged "merged" "Frames that went into another: a superframe, or a datagram put together.";
}

/// Makes an enum of drop reasons: each with its name, its meaning and what to do about it.
macro_rules! drop_reasons {
    ($(#[$about:meta])* $reasons:ident; $($reason:ident $name:literal $meaning:literal $hint:literal;)*) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $reasons {
            $(#[doc = $meaning] $reason,)*
        }

        impl $reasons {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$reason,)*];

            /// Returns the reason's name, as counters, traces and JSON have it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$reason => $name,)* }
            }

            /// Returns what the reason means, in one sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$reason => $meaning,)* }
            }

            /// Returns what to do about it.
            #[must_use]
            pub const fn hint(self) -> &'static str {
                match self { $(Self::$reason => $hint,)* }
            }
        }
    };
}
pub(crate) use drop_reasons;

drop_reasons! {
    /// Why a node dropped a frame, in the order of the packet's way. There is no catch-all.
    DropReason;
    RuntFrame "runt-frame" "The frame is shorter than an Ethernet header." "Look at the sender's link.";
    MalformedOffload "malformed-offload" "What came with the frame about its checksum or segments is not true of it." "The machine behind the TAP offloads wrongly; switch its offloads off (ethtool -K).";
    MulticastSource "multicast-source" "The frame's source MAC is a group address." "No station may send from a group address (IEEE 802.3).";
    MalformedArp "malformed-arp" "The ARP packet is truncated or not for IPv4 over Ethernet." "RFC 826.";
    MalformedIpv4 "malformed-ipv4" "The IPv4 header is truncated or its lengths disagree." "RFC 791.";
    Ipv4Checksum "ipv4-checksum" "The IPv4 header's checksum is wrong." "The frame was damaged on its way.";
    MalformedTransport "malformed-transport" "The TCP, UDP or ICMP header is truncated or its lengths disagree." "RFC 9293, 768, 792.";
    NotForUs "not-for-us" "The frame's destination MAC is not the interface's." "A switch floods frames whose destination it does not know yet.";
    UnhandledProtocol "unhandled-protocol" "The frame is neither IPv4 nor ARP and came to a router." "flatnet routes IPv4; other protocols are bridged only.";
    SpoofedMac "spoofed-mac" "A pod sent from a MAC that is not its own." "A pod may send from its own MAC only; `flatnet replay` plays frames with the MACs of their file.";
    SpoofedAddress "spoofed-address" "A pod sent from an IPv4 address that is not its own, or a packet as from a pod came by an interface that does not lead back to it." "A pod may send from its own address only; other nodes' pods come by the tunnel, or with host-gw from the node that holds their lease.";
    SpoofedArp "spoofed-arp" "A pod claimed another's address in ARP." "A pod may claim its own address only (RFC 826).";
    Martian "martian" "Source or destination cannot be on the wire: loopback, multicast or broadcast source, the node's own address." "RFC 1812, 5.3.7.";
    RouterAdvertisement "router-advertisement" "A machine on the pods' bridge announced itself as an IPv6 router, or hid that it does." "RFC 6105, 7113: no pod is a router.";
    FloodLimit "flood-limit" "One port sends more frames than a bridge floods: 4,096 a second." "A storm, a loop, or a flood of frames for stations that do not exist.";
    BridgeSamePort "bridge-same-port" "The frame would leave by the port it came in by." "The destination is on the sender's side of the bridge.";
    BridgeNoPort "bridge-no-port" "The bridge has no other port to flood to." "Nothing else is attached to this bridge.";
    TtlExpired "ttl-expired" "The TTL ran out; the sender is told." "A routing loop, or a traceroute.";
    NoRoute "no-route" "The node has no route to the destination; the sender is told." "See `flatnet show routes NODE`.";
    NoLease "no-lease" "No node holds a lease for the destination's pod subnet; the sender is told." "See `flatnet show routes NODE`: the lease may have ended.";
    LeaseOffLink "lease-off-link" "The node that holds the lease of the destination's pod subnet is on no network of this node's own; the sender is told." "With host-gw all nodes must be on one network; udp and vxlan go through routers.";
    FragmentationNeeded "fragmentation-needed" "The packet is longer than the next link's MTU and must not be fragmented; the sender is told." "RFC 1191: the sender lowers its path MTU.";
    MtuExceeded "mtu-exceeded" "The packet does not fit the next link, not even in fragments." "RFC 791: every link takes 68 bytes.";
    FragmentMalformed "fragment-malformed" "The fragment is empty, not of whole eight bytes, or ends beyond 65,535." "RFC 791, 3.2; an attack, or a broken sender.";
    FragmentTiny "fragment-tiny" "The fragment leaves part of the transport header to another." "RFC 1858 and 3128: an attack on filters.";
    FragmentOverlap "fragment-overlap" "The fragment overlaps another of its datagram; nothing more of it passes." "RFC 1858, 4: an attack, or a link that duplicates.";
    FragmentLimit "fragment-limit" "Too many datagrams in fragments, or fragments of one, are on their way." "A flood of fragments, or a very small MTU.";
    FragmentTimeout "fragment-timeout" "The datagram's first fragment, or one for the node itself, did not come within 30 seconds." "One was lost: the sender should keep within the path's MTU.";
    NeighborQueueFull "neighbor-queue-full" "Too many packets wait for one neighbour's MAC." "RFC 1122, 2.3.2.2: only the latest few are kept.";
    NeighborUnresolved "neighbor-unresolved" "Nobody answered ARP for the next hop; the sender is told." "See `flatnet show neighbors NODE`; is the machine up.";
    TunnelMalformed "tunnel-malformed" "The tunnel datagram's payload is not a whole IPv4 packet, or, of vxlan, no frame with one behind a VXLAN header." "Something else sends to the tunnel's port; is the peer's backend the same.";
    TunnelChecksum "tunnel-checksum" "The tunnel datagram's UDP checksum is wrong." "The datagram was damaged on its way.";
    TunnelForeignSource "tunnel-foreign-source" "The outer source does not hold the lease of the inner source, or is not that node's tunnel." "An injection attempt, or a peer whose lease moved.";
    TunnelForeignDestination "tunnel-foreign-destination" "The inner destination is not one of this node's." "The peer routes by a lease that is not ours.";
    TunnelForeignNetwork "tunnel-foreign-network" "The VXLAN header's network number (VNI) is not this node's." "The peer's `vni` is another.";
    TunnelForeignMac "tunnel-foreign-mac" "The frame in the tunnel is for another MAC than flannel0's." "The peer believes this node's end to have another MAC; it is 02:42 and flannel0's address.";
    TunnelBroadcast "tunnel-broadcast" "The frame in the tunnel is for all, and no ARP." "flannel's overlay is routed: nobody's broadcasts are carried.";
    TunnelImitated "tunnel-imitated" "A packet to the vxlan tunnel's port of another node, and not by the tunnel." "A pod that would be taken for its node: an injection attempt.";
    NoBackend "no-backend" "The Service has no ready backend; the sender is told." "See `flatnet show services NODE`.";
    NoLocalBackend "no-local-backend" "The Service's traffic policy is Local and its ready backends are on other nodes." "Ask a node that has one, or set the policy to Cluster.";
    DirectRoutingOffSegment "direct-routing-off-segment" "The chosen backend is not on a network of the node's own: direct routing cannot reach it." "Set `flatnet.dev/forwarding` to `tun` or `nat`, or `internalTrafficPolicy` to Local.";
    ServicePortClosed "service-port-closed" "The Service address has no such port; the sender is told." "See `flatnet show services NODE`.";
    ServiceNoConnection "service-no-connection" "The TCP segment opens no connection, and the Service has none that it belongs to; the sender is told." "The backend's pod is gone, or the connection was silent for too long: open a new one.";
    ServiceUnsupported "service-unsupported" "A Service address takes TCP and UDP only." "VIPs do not answer echo.";
    BindingQuota "binding-quota" "The client has as many translated flows as one may have." "A flood of new flows, or a small `natQuota`; the translations that are not used any more end by themselves.";
    BindingTableFull "binding-table-full" "The worker's table of bindings is full." "Too many flows at once: `flatnet show flows NODE` lists whose.";
    TuplesExhausted "tuples-exhausted" "No source port is left that gives the reply a tuple of its own." "Too many flows to one destination through one address.";
    Untranslatable "untranslatable" "The protocol cannot be masqueraded." "Only TCP, UDP and ICMP queries have what a translation needs.";
    NatFiltered "nat-filtered" "The machine has not been asked by the pod behind that port (RFC 4787, REQ-8)." "The pod sends first; `nat: rfc` in the topology filters by address.";
    TcpResetOutOfWindow "tcp-reset-out-of-window" "A TCP reset of a translated flow that its receiver would not take." "A blind reset (RFC 5961, 3), or a very late one.";
    IcmpErrorUnmatched "icmp-error-unmatched" "The ICMP error belongs to no flow known here." "A late error, or a forged one.";
    TransportChecksum "transport-checksum" "The TCP, UDP or ICMP checksum of a packet for the node itself is wrong." "The frame was damaged on its way; what is only forwarded is left to its receiver.";
    HostClosed "host-closed" "The node itself has nothing on that port; the sender is told." "Nodes answer echo and traceroute only.";
    HostUnsupported "host-unsupported" "The node itself does not take this protocol." "Nodes answer echo and traceroute only.";
    NoUplink "no-uplink" "The packet leaves a node on the host's network otherwise than through the tunnel." "Without `--uplink` (`flatnet node`) a node on the host's network carries the tunnel only.";
    LinkDown "link-down" "The link is down, or was removed; or the host has no way to the peer." "See `flatnet link`; `flatnet link A B up` brings a pair's link up. Of a node on the host's network, `ip route get PEER`.";
    LinkLoss "link-loss" "The link lost the frame, as it is set to." "See `flatnet link` and the topology's `links`.";
    LinkMtu "link-mtu" "The frame is longer than the link takes." "See `flatnet link` and the topology's `links`.";
    LinkQueueFull "link-queue-full" "The link's queue is full." "The receiver, or the link's `rate`, is slower than the sender.";
    PodStopped "pod-stopped" "The pod is dead; nothing takes its frames." "An autonomous pod that dies stays dead.";
    WorkerRingFull "worker-ring-full" "The ring to the worker of the egress is full." "That worker is slower than this one: send more slowly.";
    PoolEmpty "pool-empty" "No buffer was free." "Too many frames wait: send more slowly, or lower the links' `delay` and `queue`.";
}

/// One worker's counters of one node.
#[derive(Debug)]
pub struct NodeCounters {
    terms: [AtomicU64; Term::ALL.len()],
    drops: [AtomicU64; DropReason::ALL.len()],
    /// Frames that began and that ended to wait inside the node.
    held: AtomicU64,
    released: AtomicU64,
    /// Bytes of the frames that came in.
    bytes: AtomicU64,
}

impl Default for NodeCounters {
    fn default() -> Self {
        Self {
            terms: [const { AtomicU64::new(0) }; Term::ALL.len()],
            drops: [const { AtomicU64::new(0) }; DropReason::ALL.len()],
            held: AtomicU64::new(0),
            released: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }
}

impl NodeCounters {
    /// Counts `frames` under a term.
    #[inline(always)]
    pub fn count(&self, term: Term, frames: u64) {
        add(&self.terms[term as usize], frames);
    }

    /// Counts bytes of frames that came in.
    #[inline(always)]
    pub fn count_bytes(&self, bytes: u64) {
        add(&self.bytes, bytes);
    }

    /// Counts one dropped frame.
    #[inline]
    pub fn drop_frame(&self, reason: DropReason) {
        add(&self.drops[reason as usize], 1);
    }

    /// Counts a frame that begins to wait: for a neighbour, or on the way to another worker.
    #[inline]
    pub fn hold(&self) {
        add(&self.held, 1);
    }

    /// Counts a frame that waits no longer.
    #[inline]
    pub fn release(&self) {
        add(&self.released, 1);
    }
}

/// One writer per counter: no read-modify-write is needed.
#[inline(always)]
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// A node's ledger, summed over its workers at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    terms: [u64; Term::ALL.len()],
    drops: [u64; DropReason::ALL.len()],
    /// Frames that wait inside the node: for a neighbour, or on the way to another worker.
    pub held: u64,
    /// Bytes of the frames that came in.
    pub bytes: u64,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { terms: [0; Term::ALL.len()], drops: [0; DropReason::ALL.len()], held: 0, bytes: 0 }
    }
}

impl Ledger {
    /// Sums the counters of several workers.
    #[must_use]
    pub fn sum<'a>(rows: impl IntoIterator<Item = &'a Arc<NodeCounters>>) -> Self {
        let mut ledger = Self::default();
        for row in rows {
            // One worker may release what another holds: the difference is right over all of them.
            let held = row.held.load(Ordering::Relaxed).wrapping_sub(row.released.load(Ordering::Relaxed));
            ledger.held = ledger.held.wrapping_add(held);
            ledger.bytes += row.bytes.load(Ordering::Relaxed);
            for (sum, counter) in ledger.terms.iter_mut().zip(&row.terms) {
                *sum += counter.load(Ordering::Relaxed);
            }
            for (sum, counter) in ledger.drops.iter_mut().zip(&row.drops) {
                *sum += counter.load(Ordering::Relaxed);
            }
        }
        ledger
    }

    /// Returns one term.
    #[must_use]
    pub fn term(&self, term: Term) -> u64 {
        self.terms[term as usize]
    }

    /// Returns the drops for one reason.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Returns all drops.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// Tells whether every frame is accounted for.
    #[must_use]
    pub fn balances(&self) -> bool {
        let [received, originated, copied, split, sent, consumed, merged] = self.terms;
        received + originated + copied + split == sent + consumed + merged + self.dropped() + self.held
    }
}

/// What became of the buffers, summed over pools when nothing runs any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Buffers {
    /// Taken from a pool.
    pub allocated: u64,
    /// Given back to a pool.
    pub freed: u64,
    /// Found where frames wait: on links and rings, for neighbours.
    pub held: u64,
}

impl Buffers {
    /// Adds another pool's.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            allocated: self.allocated + other.allocated,
            freed: self.freed + other.freed,
            held: self.held + other.held,
        }
    }

    /// Tells whether no buffer was lost.
    #[must_use]
    pub fn balances(&self) -> bool {
        self.allocated == self.freed + self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_reason_has_a_name_of_its_own_a_meaning_and_a_hint() {
        let names: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        for (index, &reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert!(reason.meaning().ends_with('.') && reason.hint().ends_with('.'), "{reason:?}");
        }
        for (index, term) in Term::ALL.into_iter().enumerate() {
            assert_eq!(term as usize, index);
        }
    }

    #[test]
    fn a_ledger_balances_only_when_nothing_is_missing() {
        let counters = Arc::new(NodeCounters::default());
        counters.count(Term::Received, 3);
        counters.count(Term::Sent, 1);
        counters.drop_frame(DropReason::NoRoute);
        assert!(!Ledger::sum([&counters]).balances());
        counters.hold();
        let ledger = Ledger::sum([&counters]);
        assert!(ledger.balances());
        assert_eq!((ledger.dropped(), ledger.drops(DropReason::NoRoute)), (1, 1));
    }
}
