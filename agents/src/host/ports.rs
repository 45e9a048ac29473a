//! Which ports of this host its own programs are never given, so that a node may use them from the same addresses, and which
//! of them a program has nevertheless.
//!
//! Whoever puts a node on the host's network asks before it translates anything. Invariant: nothing is changed; what the host
//! does not keep free is an error that says how to have it kept free.
//!
//! Read first: the kernel's `Documentation/networking/ip-sysctl.rst`, `ip_local_port_range` and `ip_local_reserved_ports`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;

use flatnet_engine::masquerade::PortRange;
use thiserror::Error;

/// What nodes translate to where the host has their addresses, too: above what Linux gives programs.
pub const DEFAULT_PORTS: PortRange = PortRange { first: 61_000, last: 65_535 };

/// Why a node may not use some ports.
#[derive(Debug, Error)]
pub enum PortsError {
    /// The host gives one of them to programs that ask for any.
    #[error(
        "port {port} of {}-{} may be given to any program of this host, which gives {}-{} (net.ipv4.ip_local_port_range)",
        .wanted.first, .wanted.last, .local.first, .local.last
    )]
    Given {
        /// The first such.
        port: u16,
        /// What the node wants.
        wanted: PortRange,
        /// What the host gives.
        local: PortRange,
    },
    /// One of them is the tunnel's.
    #[error("port {port} of {}-{} is the tunnel's", .wanted.first, .wanted.last)]
    Tunnel {
        /// The tunnel's.
        port: u16,
        /// What the node wants.
        wanted: PortRange,
    },
    /// The host does not say what it gives.
    #[error("net.ipv4.{name} cannot be read")]
    Unknown {
        /// The setting.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Checks that this host gives none of these ports to programs that ask for any, and that none is the tunnel's.
///
/// # Errors
/// [`PortsError`].
pub fn check(wanted: PortRange, tunnel: u16) -> Result<(), PortsError> {
    if wanted.contains(tunnel) {
        return Err(PortsError::Tunnel { port: tunnel, wanted });
    }
    let read = |name: &'static str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/{name}"));
        text.map_err(|source| PortsError::Unknown { name, source })
    };
    let malformed = |name| {
        let source = io::Error::new(io::ErrorKind::InvalidData, "it is not as expected");
        PortsError::Unknown { name, source }
    };
    let local = read("ip_local_port_range")?;
    let local = range(local.split_whitespace()).ok_or_else(|| malformed("ip_local_port_range"))?;
    let reserved = read("ip_local_reserved_ports")?;
    let reserved = ranges(&reserved).ok_or_else(|| malformed("ip_local_reserved_ports"))?;
    match given(wanted, local, &reserved) {
        Some(port) => Err(PortsError::Given { port, wanted, local }),
        None => Ok(()),
    }
}

/// Returns the first of the wanted ports that programs may be given.
fn given(wanted: PortRange, local: PortRange, reserved: &[PortRange]) -> Option<u16> {
    let is_given = |&port: &u16| local.contains(port) && !reserved.iter().any(|it| it.contains(port));
    (wanted.first..=wanted.last).find(is_given)
}

/// Lists the ports of these that programs of this host take connections or datagrams at, for an address: as `30080/tcp`.
///
/// # Errors
/// The host does not say.
pub fn in_use(own: Ipv4Addr, ports: &[PortRange]) -> io::Result<Vec<String>> {
    let mut found = BTreeSet::new();
    for (table, protocol) in [("tcp", "tcp"), ("tcp6", "tcp"), ("udp", "udp"), ("udp6", "udp")] {
        let text = match fs::read_to_string(format!("/proc/net/{table}")) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            read => read?,
        };
        let sockets = text.lines().filter_map(|line| socket(line, own));
        let taken = sockets.filter(|&port| ports.iter().any(|range| range.contains(port)));
        found.extend(taken.map(|port| (port, protocol)));
    }
    Ok(found.into_iter().map(|(port, protocol)| format!("{port}/{protocol}")).collect())
}

/// Reads the port of a socket that takes what comes for an address, from a line of the system's table of them (proc_pid_net(5)): local
/// address and port, those of the other side, and the state, which says of one that waits that it listens or is not connected.
fn socket(line: &str, own: Ipv4Addr) -> Option<u16> {
    const LISTENS: [&str; 2] = ["0A", "07"];
    let mut fields = line.split_whitespace().skip(1);
    let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
    let (address, port) = local.split_once(':')?;
    let is_any = address.bytes().all(|digit| digit == b'0');
    // Four octets are a number in the host's order.
    let is_own = u32::from_str_radix(address, 16).is_ok_and(|number| number.to_ne_bytes() == own.octets());
    let port = u16::from_str_radix(port, 16).ok()?;
    (LISTENS.contains(&state) && (is_any || is_own)).then_some(port)
}

/// Reads ports and ranges of them, separated by commas; nothing is none.
fn ranges(text: &str) -> Option<Vec<PortRange>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',').map(|part| range(part.split('-'))).collect()
}

fn range<'a>(mut ends: impl Iterator<Item = &'a str>) -> Option<PortRange> {
    let first = ends.next()?.parse().ok()?;
    let last = ends.next().map_or(Some(first), |last| last.parse().ok())?;
    ends.next().is_none().then_some(PortRange { first, last })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(first: u16, last: u16) -> PortRange {
        PortRange { first, last }
    }

    #[test]
    fn ports_that_programs_may_be_given_are_found_unless_they_are_reserved() {
        let linux = ports(32_768, 60_999);
        assert_eq!(given(DEFAULT_PORTS, linux, &[]), None);
        assert_eq!(given(ports(60_000, 62_000), linux, &[]), Some(60_000));
        assert_eq!(given(ports(32_000, 40_000), linux, &[]), Some(32_768));
        let wide = ports(1024, 65_535);
        assert_eq!(given(DEFAULT_PORTS, wide, &[]), Some(61_000));
        assert_eq!(given(DEFAULT_PORTS, wide, &ranges("8080,61000-65535\n").unwrap()), None);
        assert_eq!(given(DEFAULT_PORTS, wide, &ranges("61000-65534").unwrap()), Some(65_535));
    }

    #[test]
    fn the_systems_lists_are_read_as_it_writes_them() {
        assert_eq!(ranges("\n"), Some(Vec::new()));
        assert_eq!(ranges("80,1000-1002\n"), Some(vec![ports(80, 80), ports(1000, 1002)]));
        assert_eq!(range("32768\t60999\n".split_whitespace()), Some(ports(32_768, 60_999)));
        assert_eq!((ranges("a"), ranges("1-2-3"), ranges("1,")), (None, None, None));
    }

    #[test]
    fn a_program_that_listens_is_found_at_its_address_only() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let (tcp, udp) = (listener.local_addr().unwrap().port(), socket.local_addr().unwrap().port());
        let found = |own: [u8; 4], port| in_use(own.into(), &[ports(port, port)]).unwrap().join(" ");
        assert!(found([127, 0, 0, 1], tcp).contains(&format!("{tcp}/tcp")));
        assert!(!found([192, 0, 2, 1], tcp).contains(&format!("{tcp}/tcp")), "another address");
        assert!(found([192, 0, 2, 1], udp).contains(&format!("{udp}/udp")), "all addresses");
        drop(listener);
        assert!(!found([127, 0, 0, 1], tcp).contains(&format!("{tcp}/tcp")), "nobody listens");
    }

    #[test]
    fn this_host_says_what_it_gives() {
        // Whatever it gives, its first port is one.
        let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let first = text.split_whitespace().next().unwrap().parse().unwrap();
        let reserved = fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap();
        let is_reserved = ranges(&reserved).unwrap().iter().any(|it| it.contains(first));
        assert_eq!(check(ports(first, first), 0).is_ok(), is_reserved);
        assert!(matches!(check(DEFAULT_PORTS, 62_000), Err(PortsError::Tunnel { port: 62_000, .. })));
    }
}
