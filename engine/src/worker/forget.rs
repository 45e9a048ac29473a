//! What visits have a worker forget: translations, and what was chosen for a Service.
//!
//! The control side calls these between two batches, when pods and Services go. Invariant: a cached flow ends with its
//! binding. Read first: `mailbox.rs`, `binding.rs`.

use std::net::Ipv4Addr;

use super::Worker;
use crate::binding::Binding;

impl Worker {
    /// Ends all bindings that `ends` says so of; their cached flows end with them.
    pub fn end_bindings(&mut self, ends: impl Fn(&Binding) -> bool) {
        self.bindings.end_where(ends);
    }

    /// Ends the UDP bindings by which a Service led to backends, as [`crate::binding::Bindings::end_served`] does.
    pub fn end_served(&mut self, backends: &[(Ipv4Addr, u16)], is_theirs: impl Fn(&Binding) -> bool) {
        self.bindings.end_served(backends, is_theirs);
    }

    /// Forgets what was chosen for a Service: its number may belong to another one now.
    pub fn forget_service(&mut self, service: u32) {
        self.cursors.reset(service);
        self.affinity.forget(service);
    }
}
