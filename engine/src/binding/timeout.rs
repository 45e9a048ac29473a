//! How long a binding lives without packets.
//!
//! Invariant: depends on profile, protocol, TCP state and whether an answer came, on nothing else. Allowed dependencies:
//! `tcp`, `wire`. Read first: RFC 4787, 5382, 5508, 7857; conntrack's `nf_conntrack_*_timeout`.

use std::time::Duration;

use super::{Profile, TcpState};
use crate::wire::IpProtocol;

/// Returns how long a binding lives after a packet.
pub(super) fn timeout(profile: Profile, protocol: IpProtocol, state: TcpState, answered: bool) -> Duration {
    Duration::from_secs(match (profile, protocol) {
        (Profile::Linux, IpProtocol::Tcp) => match state {
            TcpState::SynSent | TcpState::SynSentBoth | TcpState::FinWait | TcpState::TimeWait => 120,
            TcpState::SynReceived | TcpState::CloseWait => 60,
            TcpState::Established => 432_000,
            TcpState::LastAck => 30,
            TcpState::Closed => 10,
        },
        (Profile::Linux, IpProtocol::Udp) if answered => 120,
        (Profile::Linux, IpProtocol::Udp | IpProtocol::Icmp | IpProtocol::Unknown(_)) => 30,
        (Profile::Rfc, IpProtocol::Tcp) => match state {
            // RFC 5382, REQ-5: two hours and four minutes.
            TcpState::Established => 7_440,
            // REQ-5: four minutes while it opens or closes; RFC 7857, 2.2: and after a reset.
            TcpState::SynSent
            | TcpState::SynSentBoth
            | TcpState::SynReceived
            | TcpState::FinWait
            | TcpState::CloseWait
            | TcpState::LastAck
            | TcpState::TimeWait
            | TcpState::Closed => 240,
        },
        // RFC 4787, REQ-5: five minutes are recommended.
        (Profile::Rfc, IpProtocol::Udp) => 300,
        // RFC 5508, REQ-2: not less than a minute.
        (Profile::Rfc, IpProtocol::Icmp | IpProtocol::Unknown(_)) => 60,
    })
}
