//! How long a binding lives without packets.
//!
//! Invariant: depends on profile, protocol, TCP state and what came back, on nothing else. Allowed dependencies: `tcp`, `wire`.
//! Read first: RFC 4787, 5382, 5508, 7857; conntrack's `nf_conntrack_*_timeout`.

use std::time::Duration;

use super::{Profile, TcpState};
use crate::wire::IpProtocol;

/// What has come back to who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Nothing: conntrack's UNREPLIED.
    Unreplied,
    /// An answer.
    Replied,
    /// More than one: conntrack's ASSURED. TCP is open, UDP goes both ways for more than two seconds.
    Assured,
}

/// How long a connection in profile `linux` lives that is open and at rest (`nf_conntrack_tcp_timeout_established`).
pub(super) const AT_REST: Duration = Duration::from_secs(432_000);
/// After which time UDP that goes both ways is a stream, and no more a question and its answer.
pub(super) const STREAM_AGE: Duration = Duration::from_secs(2);

/// Returns how long a binding lives after a packet, seconds; a connection at rest longer, see [`AT_REST`].
pub(super) fn timeout(profile: Profile, protocol: IpProtocol, state: TcpState, traffic: Traffic) -> u16 {
    match (profile, protocol) {
        (Profile::Linux, IpProtocol::Tcp) => match state {
            TcpState::SynSent | TcpState::SynSentBoth | TcpState::FinWait | TcpState::TimeWait => 120,
            TcpState::SynReceived | TcpState::CloseWait => 60,
            // `unacknowledged` and `max_retrans`.
            TcpState::Established => 300,
            TcpState::LastAck => 30,
            // What nothing but a reset answers is over at once.
            TcpState::Closed if traffic == Traffic::Unreplied => 0,
            TcpState::Closed => 10,
        },
        (Profile::Linux, IpProtocol::Udp) if traffic == Traffic::Assured => 120,
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
    }
}
