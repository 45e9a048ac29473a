//! How long a packet may be on the way to other nodes.
//!
//! Each is sent two echo requests that may not be fragmented: one that any path takes, and one as long as the interface that leads there
//! takes, which is what the tunnel fills. Invariants: all are asked at once, and waited for together; nothing is learnt from what the
//! kernel remembers of a path.
//!
//! May depend on `rustix` and the engine's headers. Read first: RFC 1191; icmp(7).

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use flatnet_agents::host::{self, Interface};
use flatnet_engine::wire::checksum::checksum;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Timeout, set_ip_mtu_discover, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket};

use super::{Finding, Verdict};

/// How long all may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// An IPv4 packet that every path takes (RFC 791), in bytes.
const SHORT: u32 = 576;
/// The headers of IPv4 and ICMP.
const HEADERS: u32 = 28;
/// The longest packet of IPv4.
const LONGEST: u32 = 65_535;

/// A node to ask.
struct Peer {
    address: Ipv4Addr,
    interface: Interface,
}

/// Asks all nodes but this one.
pub(super) fn look(peers: &[Ipv4Addr]) -> Vec<Finding> {
    let interfaces = host::interfaces().unwrap_or_default();
    let peers: Vec<Peer> = peers.iter().filter_map(|&address| peer(address, &interfaces)).collect();
    if peers.is_empty() {
        return vec![Finding::new("mtu", "-", Verdict::Note, "not looked at: no other node is known")];
    }
    match ask(&peers) {
        Ok(heard) => peers.iter().enumerate().map(|(at, peer)| judge(at, peer, &heard)).collect(),
        Err(error) => {
            let text = format!("not looked at: no echo can be sent: {error}");
            vec![
                Finding::new("mtu", "-", Verdict::Note, text)
                    .with_help("it takes CAP_NET_RAW, or net.ipv4.ping_group_range"),
            ]
        }
    }
}

/// Finds the interface that leads to a node; none for this host's own address.
fn peer(address: Ipv4Addr, interfaces: &[Interface]) -> Option<Peer> {
    let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    probe.connect((address, 9)).ok()?;
    let std::net::IpAddr::V4(own) = probe.local_addr().ok()?.ip() else { return None };
    let interface = interfaces.iter().find(|interface| interface.has(own))?;
    (own != address).then(|| Peer { address, interface: interface.clone() })
}

/// Sends all requests and says whose were answered, and whether it was the long one.
fn ask(peers: &[Peer]) -> io::Result<BTreeSet<(usize, bool)>> {
    let open = |kind| socket(AddressFamily::INET, kind, Some(ipproto::ICMP));
    let echo: OwnedFd = open(SocketType::RAW).or_else(|_| open(SocketType::DGRAM))?;
    set_ip_mtu_discover(&echo, Ipv4PathMtuDiscovery::PROBE)?;
    let mut heard = BTreeSet::new();
    for (at, peer) in peers.iter().enumerate() {
        for is_long in [false, true] {
            let length = if is_long { peer.interface.mtu.min(LONGEST) } else { SHORT };
            let to = SocketAddrV4::new(peer.address, 0);
            // What cannot be sent is not answered.
            let _ = sendto(&echo, &request(length, &token(at, is_long)), SendFlags::empty(), &to);
        }
    }
    let end = Instant::now() + PATIENCE;
    let mut bytes = vec![0; LONGEST as usize];
    while heard.len() < 2 * peers.len() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        set_socket_timeout(&echo, Timeout::Recv, Some(left))?;
        let Ok((length, _)) = recv(&echo, &mut bytes[..], RecvFlags::empty()) else { break };
        // A raw socket has the header of IPv4, too; this host's own requests to itself are no answers.
        let answer = &bytes[..length];
        let body =
            if answer.first().is_some_and(|first| first >> 4 == 4) { answer.get(20..) } else { Some(answer) };
        if body.is_none_or(|body| body.first() != Some(&0)) {
            continue;
        }
        let all = (0..peers.len()).flat_map(|at| [(at, false), (at, true)]);
        heard.extend(all.filter(|&(at, is_long)| answer.ends_with(&token(at, is_long))));
    }
    Ok(heard)
}

/// What an answer is known by.
fn token(at: usize, is_long: bool) -> [u8; 16] {
    let mut token = *b"flatnet!........";
    token[8..12].copy_from_slice(&std::process::id().to_be_bytes());
    token[12..15].copy_from_slice(&(at as u32).to_be_bytes()[1..]);
    token[15] = u8::from(is_long);
    token
}

/// An echo request that is a packet of so many bytes with its headers (RFC 792).
fn request(length: u32, token: &[u8; 16]) -> Vec<u8> {
    let length = length.saturating_sub(HEADERS - 8).max(24) as usize;
    let mut bytes = vec![0; length];
    bytes[0] = 8;
    bytes[4..6].copy_from_slice(&(std::process::id() as u16).to_be_bytes());
    bytes[length - token.len()..].copy_from_slice(token);
    let sum = checksum(&bytes);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn judge(at: usize, peer: &Peer, heard: &BTreeSet<(usize, bool)>) -> Finding {
    let Interface { name, mtu, .. } = &peer.interface;
    let found = |verdict, text: String| Finding::new("mtu", peer.address.to_string(), verdict, text);
    match (heard.contains(&(at, true)), heard.contains(&(at, false))) {
        (true, _) => found(Verdict::Ok, format!("packets of {mtu} bytes by {name} arrive")),
        (false, true) => found(
            Verdict::Wrong,
            format!("packets of {mtu} bytes, which {name} takes, do not arrive; of {SHORT} do"),
        )
        .with_help(format!(
            "set the MTU of {name} to what the path takes (`tracepath -n {}` finds it), on all nodes",
            peer.address
        )),
        (false, false) => {
            found(Verdict::Note, "no answer: the node is gone, or a firewall takes echo requests".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 792: an echo request sums up to nothing with its checksum in it.
    #[test]
    fn a_request_is_as_long_as_it_should_be_and_its_checksum_right() {
        let bytes = request(1500, &token(7, true));
        assert_eq!((bytes.len(), checksum(&bytes)), (1480, 0));
        assert!(bytes.ends_with(&token(7, true)) && token(7, true) != token(7, false));
    }
}
