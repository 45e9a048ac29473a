//! Real pods that lost a part of what they are made of, and are given another: namespaces whose holder died, or an eth0 that was
//! deleted.
//!
//! The publisher asks for it: it knows what an eth0 is to be. Invariants: a pod without namespaces keeps its volumes, its logs and
//! the count of its starts; nobody waits.
//!
//! May depend on [`super::link`]. Read first: `docs/adr/0037-a-pod-is-given-again-what-it-lost.md`.

use std::collections::BTreeMap;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;

use flatnet_engine::link::tap::Tap;

use super::link::LinkConfig;
use super::sandbox::SandboxError;
use super::{RealPod, Runtime, RuntimeError};
use crate::pods::PodView;

/// Pods that are given another eth0 before the control thread has other things to do: each takes the system some milliseconds.
const AT_ONCE: usize = 4;

/// What is left of a pod whose namespaces are gone.
#[derive(Debug)]
pub(super) struct Lost {
    view: Arc<PodView>,
    pub(super) directory: PathBuf,
    pub(super) starts: BTreeMap<usize, u32>,
    pub(super) execs: u32,
    /// Its containers that start when it has others.
    due: Vec<usize>,
}

impl Runtime {
    /// Keeps what is left of a pod all of whose processes have ended; what is sent to it is refused from now on.
    pub(super) fn lose(&mut self, pod: RealPod) {
        let RealPod { view, directory, starts, execs, sandbox, .. } = pod;
        sandbox.unplug();
        let uid = view.uid.clone();
        self.lost.insert(uid, Lost { view, directory, starts, execs, due: Vec::new() });
    }

    /// Returns a pod whose namespaces are gone.
    #[must_use]
    pub fn lost(&self, uid: &str) -> Option<&Arc<PodView>> {
        self.lost.get(uid).map(|lost| &lost.view)
    }

    /// Begins to make such a pod other namespaces, unless that has begun; [`Runtime::take_made`] says when they are there, and that
    /// the container at this place is to start then.
    ///
    /// # Errors
    /// [`RuntimeError::File`].
    pub fn make_again(&mut self, uid: &str, index: usize, config: LinkConfig) -> Result<(), RuntimeError> {
        let Some(view) = self.lost(uid).cloned() else { return Ok(()) };
        if !self.making.contains(uid) {
            self.add(&view, config)?;
        }
        if let Some(lost) = self.lost.get_mut(uid) {
            lost.due.push(index);
        }
        Ok(())
    }

    /// Takes the containers of a pod that start now that it has other namespaces, or cannot; none of one that is new.
    pub(super) fn take_due(&mut self, uid: &str) -> Option<Vec<usize>> {
        self.lost.get_mut(uid).map(|lost| mem::take(&mut lost.due))
    }

    /// Ends what holds a pod's namespaces together: it is no use without its eth0.
    pub fn end_sandbox(&mut self, uid: &str) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.sandbox.end();
        }
    }

    /// Takes pods whose eth0 was deleted, those that changed first, and no more than four.
    pub fn take_unplugged(&mut self) -> Vec<Arc<PodView>> {
        let mut unplugged = Vec::new();
        while unplugged.len() < AT_ONCE
            && let Some(uid) = self.stirred.pop_front()
        {
            let Some(pod) = self.pods.get(&uid) else { continue };
            // First: what changes after the look is heard next time.
            pod.sandbox.network.has_changed();
            if !pod.sandbox.network.has_interface() {
                unplugged.push(Arc::clone(&pod.view));
            }
        }
        unplugged
    }

    /// Makes a pod another eth0.
    ///
    /// # Errors
    /// [`RuntimeError::Sandbox`].
    pub fn make_interface(&self, uid: &str, config: &LinkConfig) -> Result<Option<Tap>, RuntimeError> {
        let Some(pod) = self.pods.get(uid) else { return Ok(None) };
        Ok(Some(pod.sandbox.network.make_interface(config).map_err(SandboxError::from)?))
    }
}
