//! Session affinity: which backend a client's flows went to before.
//!
//! One table per worker, asked and told by the engine for the first packet of each flow to a Service that has it. A
//! client's packets enter a node by one port, so that one worker decides about all its new flows.
//!
//! Invariants: at most [`MAX_CLIENTS`] are remembered; when there are more, the one whose last new flow is longest ago is
//! forgotten first, as the kernel's `xt_recent` does, and its next flow is scheduled anew. An entry whose backend may get
//! no flows any more is for nothing: who asks tries it against the Service.
//!
//! May depend on [`crate::service`]. Time is a parameter: since any fixed moment.
//!
//! Read first: `sessionAffinity` in Kubernetes' "Virtual IPs and Service Proxies"; kube-proxy's iptables mode counts its
//! timeout from the client's last new flow.

use std::{
    collections::{BTreeMap, HashMap},
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
    /// Every session once, by the number of its last new flow.
    order: BTreeMap<u64, Session>,
    /// New flows so far.
    flows: u64,
    /// The number that the sweep looks at next.
    swept: u64,
}

#[derive(Clone, Debug)]
struct Remembered {
    backend: Backend,
    expires: Duration,
    /// Its place in the order.
    flow: u64,
}

impl Affinity {
    /// Finds the backend of a client's last flow.
    pub fn lookup(&self, session: &Session, now: Duration) -> Option<&Backend> {
        self.sessions.get(session).filter(|found| found.expires > now).map(|found| &found.backend)
    }

    /// Notes whom a client's new flow goes to, for as long as the Service says.
    pub fn remember(&mut self, session: Session, backend: &Backend, timeout: Duration, now: Duration) {
        let flow = self.flows;
        self.flows += 1;
        let remembered = Remembered { backend: backend.clone(), expires: now + timeout, flow };
        if let Some(before) = self.sessions.insert(session, remembered) {
            self.order.remove(&before.flow);
        } else if self.order.len() >= MAX_CLIENTS
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.sessions.remove(&oldest);
        }
        self.order.insert(flow, session);
    }

    /// Looks at up to `sessions` sessions and forgets those that have expired.
    pub fn sweep(&mut self, sessions: usize, now: Duration) {
        for _ in 0..sessions.min(self.order.len()) {
            let next = self.order.range(self.swept..).next().or_else(|| self.order.first_key_value());
            let Some((&flow, &session)) = next else { return };
            self.swept = flow + 1;
            if self.lookup(&session, now).is_none() {
                self.order.remove(&flow);
                self.sessions.remove(&session);
            }
        }
    }

    /// Forgets a Service's clients: its id may come back with another.
    pub fn forget(&mut self, service: u32) {
        self.order.retain(|_, session| session.service != service);
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

    /// `recent_entry_update` of xt_recent: who asks again is the last to be forgotten.
    #[test]
    fn who_was_silent_longest_is_forgotten_at_the_limit() {
        let mut affinity = Affinity::default();
        let mut ask = |client| affinity.remember(session(0, client), &backend(1), SECOND, Duration::ZERO);
        (0..MAX_CLIENTS as u32).for_each(&mut ask);
        ask(0);
        ask(MAX_CLIENTS as u32);
        assert_eq!((affinity.sessions.len(), affinity.order.len()), (MAX_CLIENTS, MAX_CLIENTS));
        let known = |client| affinity.lookup(&session(0, client), Duration::ZERO).is_some();
        assert_eq!([0, 1, 2, MAX_CLIENTS as u32].map(known), [true, false, true, true]);
    }

    /// A sweep goes on where it was, so that some at a time come to all, however often others ask meanwhile.
    #[test]
    fn sweeps_come_to_every_session() {
        let mut affinity = Affinity::default();
        for client in 0..100 {
            let timeout = SECOND * if client % 3 == 0 { 1 } else { 9 };
            affinity.remember(session(0, client), &backend(1), timeout, Duration::ZERO);
        }
        for _ in 0..25 {
            affinity.remember(session(0, 1), &backend(1), SECOND * 9, SECOND);
            affinity.sweep(5, SECOND);
        }
        assert_eq!(affinity.sessions.len(), 66);
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
