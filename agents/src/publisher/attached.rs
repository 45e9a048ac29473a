//! Pods that are something somebody else made, while it is there.
//!
//! Invariants: what stands behind a name is attached once; when something else stands there, or nothing any more, the pod is taken off
//! the network and tried again, so that it does not matter who starts first.
//!
//! May depend on [`crate::runtime::link`]. Read first: `docs/adr/0026-real-pods-are-processes.md`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use flatnet_engine::link::tap::Tap;

use super::real::MadePod;
use super::{NodeId, PublishError, Publisher, Start, objects};
use crate::netlink;
use crate::pods::{Attachment, PodView};
use crate::runtime::link::{self, LinkConfig, LinkError, PodNamespace};
use crate::runtime::loopback::Loopback;

/// A pod that somebody else made, or will.
#[derive(Debug)]
pub(super) struct Attached {
    view: Arc<PodView>,
    attachment: Attachment,
    /// What stood behind the name when the pod was tried last.
    tried: Option<Identity>,
    /// The namespace that it is, unless it is a TAP or could not be.
    namespace: Option<Taken>,
}

/// A namespace, and what is put back there when the pod goes.
type Taken = (PodNamespace, Option<Loopback>);

/// What stands behind a name; none has the same as one before it, which is held here until this one is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    /// The number of an interface.
    Interface(u32),
    /// Device and inode of a network namespace's file.
    File(u64, u64),
}

impl Identity {
    fn of(attachment: &Attachment) -> Option<Self> {
        match attachment {
            Attachment::Tap(name) => netlink::index(name).ok().map(Self::Interface),
            Attachment::Namespace(path) => {
                let file = fs::metadata(path).ok()?;
                Some(Self::File(file.dev(), file.ino()))
            }
        }
    }
}

impl Publisher {
    /// Puts what somebody else made on a node's bridge as a pod. Its containers count as running.
    pub(super) fn add_attached_pod(
        &mut self,
        view: &Arc<PodView>,
        node: NodeId,
        name: String,
        attachment: &Attachment,
    ) -> Result<Vec<Start>, PublishError> {
        // Asked for first: what changes from now on is seen by the next look.
        let tried = Identity::of(attachment);
        let waiting =
            Attached { view: Arc::clone(view), attachment: attachment.clone(), tried, namespace: None };
        self.attached.insert(view.uid.clone(), waiting);
        let config = self.link_config(view, node);
        let made = match attachment {
            Attachment::Tap(tap) => link::of_tap(tap).map(|tap| (tap, None)),
            Attachment::Namespace(path) => self.attach_namespace(path, &config),
        };
        let (tap, namespace) = made.map_err(|source| PublishError::Attach { pod: name.clone(), source })?;
        self.attach_tap(view, (node, name), config.mac, tap)?;
        if let Some(attached) = self.attached.get_mut(&view.uid) {
            attached.namespace = namespace;
        }
        Ok(view.containers.iter().map(|_| Start::Runs).collect())
    }

    fn attach_namespace(
        &mut self,
        path: &Path,
        config: &LinkConfig,
    ) -> Result<(Tap, Option<Taken>), LinkError> {
        let directory = self.runtime.claim().map_err(|source| LinkError::Set { what: "lo", source })?;
        let namespace = PodNamespace::open(path.to_owned())?;
        // Put back, too, when the interface cannot be made.
        let loopback = namespace.borrow_loopback(directory)?;
        Ok((namespace.make_interface(config)?, Some((namespace, loopback))))
    }

    /// Looks whether what attached pods are made of came, went, or is another by now, and tries those pods again; returns how that
    /// went. A namespace whose eth0 was deleted has another.
    pub fn follow_attached(&mut self) -> Vec<MadePod> {
        let mut again = self.take_unplugged_attached();
        // One that cannot have another eth0 is tried from the start, which says what is wrong.
        again.retain(|uid| self.plug_in_attached(uid).is_none());
        let changed = self
            .attached
            .iter()
            .filter(|(uid, it)| again.contains(uid) || Identity::of(&it.attachment) != it.tried);
        let changed: Vec<Arc<PodView>> = changed.map(|(_, it)| Arc::clone(&it.view)).collect();
        let tried = changed.into_iter().map(|pod| {
            let starts =
                self.remove_pod(&pod).and_then(|()| self.add_pod(&pod)).map(Option::unwrap_or_default);
            MadePod { pod, starts, again: None }
        });
        tried.collect()
    }

    fn take_unplugged_attached(&self) -> Vec<String> {
        let unplugged = self.attached.iter().filter(|(_, it)| {
            // Asked in this order: what changes after the look is heard next time.
            it.namespace.as_ref().is_some_and(|(it, _)| it.has_changed() && !it.has_interface())
        });
        unplugged.map(|(uid, _)| uid.clone()).collect()
    }

    fn plug_in_attached(&mut self, uid: &str) -> Option<()> {
        let attached = self.attached.get(uid)?;
        let view = Arc::clone(&attached.view);
        let name = objects::pod_name(&view.namespace, &view.name);
        let config = self.link_config(&view, self.node_of(&view, &name).ok()?);
        let tap = attached.namespace.as_ref()?.0.make_interface(&config).ok()?;
        self.replace_tap(&view, name, tap).ok()
    }
}
