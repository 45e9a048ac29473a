//! What a trace found, as it is sent and printed.
//!
//! [`super::ask`] makes it, the server sends it, `table` prints it. Invariant: `-o json` is [`Report::hops`].
//!
//! May depend on serde. Read first: [`crate::views`].

use std::net::Ipv4Addr;

use flatnet_engine::pod::ProbeProtocol;
use serde::{Deserialize, Serialize};

use super::headers::Headers;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// A pod or host.
    pub from: String,
    /// A pod, host, node, Service, or address, with or without `:PORT`.
    pub to: String,
    /// How; none chooses.
    pub protocol: Option<ProbeProtocol>,
    /// The port.
    pub port: Option<u16>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Who asked.
    pub from: String,
    /// Whom, as it was said.
    pub to: String,
    /// `echo`, `tcp` or `udp`.
    pub protocol: String,
    /// The address asked.
    pub address: Ipv4Addr,
    /// The port asked.
    pub port: Option<u16>,
    /// Time to the whole answer, nanoseconds.
    pub rtt_ns: Option<u64>,
    /// What the asking side saw instead.
    pub error: Option<String>,
    /// All hops of the request, then of the answer.
    pub hops: Vec<Hop>,
}

/// Which packet a hop is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PacketKind {
    /// The packet that was sent.
    Request,
    /// What came back, or was to.
    Answer,
    /// The question for the MAC that the packet before waits for.
    Arp,
}

/// One hop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hop {
    /// Of which packet.
    pub packet: PacketKind,
    /// Nanoseconds since the request was sent.
    pub time_ns: u64,
    /// The node, pod, host, router or network.
    pub node: String,
    /// The point there.
    pub point: String,
    /// What happened.
    pub action: String,
    /// What the packet looked like there.
    pub headers: Headers,
    /// What of it changed since its hop before: `layer.field`, or `layer` where it came or went.
    pub changed: Vec<String>,
    /// Why it was dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop: Option<Cause>,
}

/// Why a packet was dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The reason's name.
    pub reason: String,
    /// What it means.
    pub meaning: String,
    /// What to do.
    pub hint: String,
    /// The Service, lease, link, pod or host that it is about, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
}
