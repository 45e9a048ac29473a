//! MASQUERADE's ports: which worker may hand out which, and in what order they are tried.
//!
//! `decide` asks for candidates when a source must be translated, and for a port's owner when an answer comes.
//! Invariants: a port belongs to one worker, by block; NodePorts and the tunnel's port are never used; a port
//! is preserved where it may be. Allowed dependencies: none. Read first: `docs/architecture.md`, "MASQUERADE ports";
//! RFC 4787, 4.2.

/// Ports in a block; all of a block belong to one worker.
pub const BLOCK: u16 = 256;
/// Ports that Services may use on every node.
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// The lowest port that is handed out: those below are for well-known services.
pub const FIRST_PORT: u16 = 1024;

/// Returns the worker that a port belongs to.
#[must_use]
pub fn owner(port: u16, workers: u8) -> u8 {
    ((port / BLOCK) % u16::from(workers.max(1))) as u8
}

/// Tells whether a port may be handed out.
#[must_use]
pub fn is_usable(port: u16, reserved: u16) -> bool {
    port >= FIRST_PORT && port != reserved && !NODE_PORTS.contains(&port)
}

/// Yields the ports a worker may use for a flow: the flow's own first, then all others from a random start.
pub fn candidates(
    worker: u8,
    workers: u8,
    own: u16,
    reserved: u16,
    random: u16,
) -> impl Iterator<Item = u16> {
    // The start lies in a block of this worker's, so that the first port tried is as random as any.
    let block = random / BLOCK;
    let own_block = block - block % u16::from(workers.max(1)) + u16::from(worker);
    let start = own_block.wrapping_mul(BLOCK).wrapping_add(random % BLOCK);
    let rest = (0..=u16::MAX).map(move |offset| start.wrapping_add(offset));
    std::iter::once(own)
        .chain(rest)
        .filter(move |&port| owner(port, workers) == worker && is_usable(port, reserved))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn workers_share_all_usable_ports_without_overlap() {
        let mut seen = BTreeSet::new();
        for worker in 0..3 {
            for port in candidates(worker, 3, 0, 8285, 77) {
                assert!(seen.insert(port), "{port} twice");
            }
        }
        let usable = (0..=u16::MAX).filter(|&port| is_usable(port, 8285)).count();
        assert_eq!(seen.len(), usable);
        assert_eq!(usable, 65_536 - 1024 - 2768 - 1);
    }

    #[test]
    fn a_flows_own_port_comes_first_when_it_may_be_used() {
        assert_eq!(candidates(0, 1, 40_000, 8285, 5_000).next(), Some(40_000));
        assert_eq!(candidates(0, 1, 80, 8285, 5_000).next(), Some(5_000), "too low");
        assert_eq!(candidates(0, 1, 8285, 8285, 5_000).next(), Some(5_000), "the tunnel's");
        assert_eq!(candidates(1, 2, 1024, 8285, 1280).next(), Some(1280), "another worker's block");
    }
}
