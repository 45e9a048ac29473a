//! Session affinity: which backend a client's flows went to before.
//!
//! One table per worker, asked and told by the engine for the first packet of each flow to a Service that has it. A
//! client's packets enter a node by one port, so that one worker decides about all its new flows.
//!
//! Invariants: at most [`MAX_CLIENTS`] are remembered; when there are more, the longest known is forgotten first, as the
//! kernel's `xt_recent` does, and its next flow is scheduled anew. An entry whose backend may get no flows any more is
//! for nothing: who asks tries it against the Service.
//!
//! May depend on [`crate::service`]. Time is a parameter: since any fixed moment.
//!
//! Read first: `sessionAffinity` in Kubernetes' "Virtual IPs and Service Proxies"; kube-proxy's iptables mode counts its
//! timeout from the client's last new flow.

use std::{
    collections::{HashMap, VecDeque},
    net::Ipv4Addr,
    time::Duration,
};

use crate::service::Backend;

/// Clients that a worker remembers.
pub const MAX_CLIENTS: usize = 1 << 16;

/// A client of a Service at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    /// The node, by its number.
    pub node: u16,
    /// The Service's id.
    pub service: u32,
    /// The client.
    pub client: Ipv4Addr,
}

/// A worker's memory of clients.
#[derive(Clone, Debug, Default)]
pub struct Affinity {
    sessions: HashMap<Session, Remembered>,
    /// Every session once, in the order in which the sweep looks at them.
    order: VecDeque<Session>,
}

#[derive(Clone, Debug)]
struct Remembered {
    backend: Backend,
    expires: Duration,
}

impl Affinity {
    /// Finds the backend of a client's last flow.
    pub fn lookup(&self, session: &Session, now: Duration) -> Option<&Backend> {
        self.sessions.get(session).filter(|found| found.expires > now).map(|found| &found.backend)
    }

    /// Notes whom a client's new flow goes to, for as long as the Service says.
    pub fn remember(&mut self, session: Session, backend: &Backend, timeout: Duration, now: Duration) {
        let remembered = Remembered { backend: backend.clone(), expires: now + timeout };
        if self.sessions.insert(session, remembered).is_some() {
            return;
        }
        if self.order.len() >= MAX_CLIENTS
            && let Some(oldest) = self.order.pop_front()
        {
            self.sessions.remove(&oldest);
        }
        self.order.push_back(session);
    }

    /// Looks at up to `sessions` sessions and forgets those that have expired.
    pub fn sweep(&mut self, sessions: usize, now: Duration) {
        for _ in 0..sessions.min(self.order.len()) {
            let Some(session) = self.order.pop_front() else { return };
            if self.lookup(&session, now).is_some() {
                self.order.push_back(session);
            } else {
                self.sessions.remove(&session);
            }
        }
    }

    /// Forgets a Service's clients: its id may come back with another.
    pub fn forget(&mut self, service: u32) {
        self.order.retain(|session| session.service != service);
        self.sessions.retain(|session, _| session.service != service);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn session(service: u32, client: u32) -> Session {
        Session { node: 1, service, client: client.into() }
    }

    fn backend(identity: u64) -> Backend {
        Backend::new([10, 1, 0, 1].into(), 80, identity)
    }

    const SECOND: Duration = Duration::from_secs(1);

    proptest! {
        /// Against a list of all that was ever said.
        #[test]
        fn agrees_with_a_plain_model(
            steps in prop::collection::vec((0u32..3, 0u32..4, 0u64..3, 1u32..9, 0u32..4, 0usize..4), 0..60),
        ) {
            let mut affinity = Affinity::default();
            let mut model: Vec<(Session, u64, Duration)> = Vec::new();
            let mut now = Duration::ZERO;
            for (service, client, identity, timeout, pass, swept) in steps {
                now += SECOND * pass;
                affinity.sweep(swept, now);
                let session = session(service, client);
                let known = model.iter().rev().find(|(of, ..)| *of == session);
                let known = known.filter(|(.., expires)| *expires > now).map(|&(_, identity, _)| identity);
                prop_assert_eq!(affinity.lookup(&session, now).map(|backend| backend.identity), known);
                affinity.remember(session, &backend(identity), SECOND * timeout, now);
                model.push((session, identity, now + SECOND * timeout));
                prop_assert_eq!(affinity.order.len(), affinity.sessions.len());
            }
            affinity.sweep(usize::MAX, now + SECOND * 9);
            prop_assert!(affinity.sessions.is_empty());
        }
    }

    #[test]
    fn the_longest_known_is_forgotten_at_the_limit() {
        let mut affinity = Affinity::default();
        for client in 0..=MAX_CLIENTS as u32 {
            affinity.remember(session(0, client), &backend(1), SECOND, Duration::ZERO);
        }
        assert_eq!(affinity.sessions.len(), MAX_CLIENTS);
        assert!(affinity.lookup(&session(0, 0), Duration::ZERO).is_none());
        assert!(affinity.lookup(&session(0, 1), Duration::ZERO).is_some());
    }

    #[test]
    fn a_removed_service_takes_its_clients_with_it() {
        let mut affinity = Affinity::default();
        affinity.remember(session(0, 1), &backend(1), SECOND, Duration::ZERO);
        affinity.remember(session(1, 1), &backend(1), SECOND, Duration::ZERO);
        affinity.forget(0);
        assert_eq!((affinity.sessions.len(), affinity.order.len()), (1, 1));
        assert!(affinity.lookup(&session(1, 1), Duration::ZERO).is_some());
    }
}
