//! The pods a worker polls: frames in, frames out, timers, visits; and sockets of the host's, of those that use any.
//!
//! Called when a frame reaches a pod's port, when its timer is due, when the system tells of its sockets, and by visits. Invariants: a
//! pod runs only here; many frames wake it once; after it has run its next timer is set; what passes its `lo` is told to whoever watches. Read first:
//! `pod/mod.rs`.

use std::io;

use super::{Attached, BATCH_LIMIT, DropReason, Frame, Instant, Link, NodeId, PortId, Term, Worker};
use crate::link::PodLink;
use crate::link::pod_ring::{Outbox, take_mark};
use crate::pod::{ContainerState, Pod, PodState};
use crate::trace::{Action, Event, Point, Taken};

/// A pod or host of which a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedContainers {
    /// Its namespace; empty for a host.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// All its containers, pause first, and what they are doing now.
    pub containers: Vec<(String, ContainerState)>,
}

impl Worker {
    /// Lets `visit` work on a pod or host of this worker, then has it polled; `None` when there is none at the
    /// port.
    pub fn with_pod<R>(&mut self, port: PortId, visit: impl FnOnce(&mut Pod, Instant) -> R) -> Option<R> {
        let now = self.now;
        let attached = self.links.get_mut(port.0 as usize).and_then(Option::as_mut)?;
        let Link::Pod(link) = &mut attached.link else { return None };
        let result = visit(&mut link.pod, now);
        self.timers.set(now, port);
        Some(result)
    }

    /// Lets a pod or host of this worker use sockets of the host's; `None` when there is none at the port. Once is enough.
    ///
    /// # Errors
    /// The system's, when it gives no more files.
    pub fn open_relays(&mut self, port: PortId) -> Option<io::Result<()>> {
        let Some(Attached { link: Link::Pod(link), .. }) =
            self.links.get_mut(port.0 as usize).and_then(Option::as_mut)
        else {
            return None;
        };
        if link.pod.relays().is_some() {
            return Some(Ok(()));
        }
        let watch = &mut self.mailbox.watch;
        Some(link.pod.open_relays().and_then(|file| watch.add(port, file)))
    }

    /// Has a pod polled of which the system tells; false when there is another link at the port.
    pub(super) fn hear_relays(&mut self, port: PortId) -> bool {
        let attached = self.links.get_mut(port.0 as usize).and_then(Option::as_mut);
        let Some(Attached { link: Link::Pod(link), .. }) = attached else { return false };
        link.pod.hear_host();
        self.timers.set(self.now, port);
        true
    }

    /// Watches a pod's sockets no more.
    pub(super) fn close_relays(&mut self, link: &PodLink) {
        if let Some(file) = link.pod.relays() {
            self.mailbox.watch.remove(file);
        }
    }

    /// Tells what became of the containers of those pods and hosts of which one ended since the last call.
    pub fn take_ended(&mut self) -> Vec<EndedContainers> {
        let ports = std::mem::take(&mut self.ended);
        let pods =
            ports.into_iter().filter_map(|port| match &self.links.get(port.0 as usize)?.as_ref()?.link {
                Link::Pod(link) => Some(&link.pod),
                Link::Wire { .. } | Link::Rings(_) | Link::Tap(_) | Link::TunnelSocket(_) => None,
            });
        pods.map(|pod| EndedContainers {
            namespace: pod.config().namespace.clone(),
            name: pod.config().name.clone(),
            containers: pod
                .containers()
                .map(|container| (container.name.to_owned(), container.state))
                .collect(),
        })
        .collect()
    }

    /// Starts a capture at a point; only the worker of a pod sees what passes its `lo`. Flows that pass the point are
    /// decided about packet by packet from now on.
    pub fn listen(&mut self, capture: u32, node: NodeId, point: Point) {
        self.observer.listen(capture, node, point);
        self.cache.clear();
        if let Point::Loopback(port) = point {
            self.with_pod(port, |pod, _| pod.set_lo_capture(true));
        }
    }

    /// Ends a capture at a point and returns what nobody has taken.
    pub fn ignore(&mut self, capture: u32, node: NodeId, point: Point) -> Taken {
        let left = self.observer.take(capture);
        self.observer.ignore(capture);
        if let Point::Loopback(port) = point
            && !self.observer.listens_at(node, point)
        {
            self.with_pod(port, |pod, _| pod.set_lo_capture(false));
        }
        left
    }

    pub(super) fn send_to_pod(&mut self, frame: Frame, port: PortId, now: Instant) {
        let Some(Attached { link: Link::Pod(link), node, .. }) =
            self.links.get_mut(port.0 as usize).and_then(Option::as_mut)
        else {
            return self.drop_at(frame, Point::Port(port), DropReason::LinkDown, now);
        };
        if link.pod.state() == PodState::Dead {
            return self.drop_at(frame, Point::Port(port), DropReason::PodStopped, now);
        }
        if link.wire.is_clear() {
            let node = *node;
            self.count(node, Term::Sent, 1);
            return self.deliver(frame, port, now);
        }
        self.send_by_cable(frame, port, now);
    }

    pub(super) fn deliver(&mut self, mut frame: Frame, port: PortId, now: Instant) {
        self.watch(&mut frame, Point::Port(port), Action::Deliver, now);
        let Some(Attached { link: Link::Pod(link), waiting, .. }) =
            self.links.get_mut(port.0 as usize).and_then(Option::as_mut)
        else {
            return self.pool.free(frame);
        };
        if self.arena.record(&frame).mark != 0 {
            // Nothing but its answers may be sent while it is handled.
            if link.taken > 0 {
                self.run_pod(port, now, |pod, _, out| pod.poll(now, out));
            }
            self.run_pod(port, now, |pod, arena, out| {
                out.answers_traced = out.tracing;
                pod.receive(arena.bytes(&frame), now, out)
            });
            return self.pool.free(frame);
        }
        let queue = link.uplink.as_mut().map_or(waiting, |uplink| &mut uplink.outbox);
        let next_mark = &mut self.next_mark;
        let tracing = self.observer.is_tracing();
        let mut out = Outbox { pool: &mut self.pool, queue, next_mark, tracing, answers_traced: false };
        link.pod.take(self.arena.bytes(&frame), now, &mut out);
        self.pool.free(frame);
        link.taken += 1;
        match link.taken {
            1 => self.woken.push(port),
            // What is heard is answered before more comes than any queue of the pod holds.
            BATCH_LIMIT => {
                self.run_pod(port, now, |pod, _, out| pod.poll(now, out));
            }
            _ => {}
        }
    }

    /// Runs the pods that have taken frames and have not run since.
    pub(super) fn run_woken(&mut self, now: Instant) {
        let mut woken = std::mem::take(&mut self.woken);
        for port in woken.drain(..) {
            let attached = self.links.get(port.0 as usize).and_then(Option::as_ref);
            if matches!(attached, Some(Attached { link: Link::Pod(link), .. }) if link.taken > 0) {
                self.run_pod(port, now, |pod, _, out| pod.poll(now, out));
            }
        }
        self.woken = woken;
    }

    pub(super) fn poll_pod(&mut self, port: PortId, now: Instant) {
        loop {
            let Some(Attached { link: Link::Pod(link), .. }) =
                self.links.get_mut(port.0 as usize).and_then(Option::as_mut)
            else {
                return;
            };
            match link.wire.arrival(now) {
                Some(frame) => self.deliver(frame, port, now),
                None => break,
            }
        }
        self.run_uplink(port, now);
        self.run_pod(port, now, |pod, _, out| pod.poll(now, out));
    }

    fn run_pod<R>(
        &mut self,
        port: PortId,
        now: Instant,
        run: impl FnOnce(&mut Pod, &crate::frame::Arena, &mut Outbox<'_>) -> R,
    ) -> Option<R> {
        let attached = self.links.get_mut(port.0 as usize).and_then(Option::as_mut)?;
        let Attached { link: Link::Pod(link), waiting, node, .. } = attached else { return None };
        let queue = link.uplink.as_mut().map_or(waiting, |uplink| &mut uplink.outbox);
        let next_mark = &mut self.next_mark;
        let tracing = self.observer.is_tracing();
        let mut out = Outbox { pool: &mut self.pool, queue, next_mark, tracing, answers_traced: false };
        link.taken = 0;
        let result = run(&mut link.pod, &self.arena, &mut out);
        if link.pod.take_news() {
            self.ended.insert(port);
            self.mailbox.announce_news();
        }
        let node = *node;
        if self.observer.is_listening() {
            let point = Point::Loopback(port);
            for frame in link.pod.take_lo_capture() {
                let event =
                    Event { mark: 0, asks: false, hop: 0, time: now, node, point, action: Action::Deliver };
                self.observer.pass(event, &frame);
            }
        }
        for packet in link.pod.take_lo_hops() {
            let mark = take_mark(&mut self.next_mark);
            for (hop, action) in [(1, Action::Send), (2, Action::Deliver)] {
                let point = Point::Loopback(port);
                // A packet without the zeros before it; captures take theirs above.
                let event = Event { mark, asks: false, hop, time: now, node, point, action };
                self.observer.note(event, &packet);
            }
        }
        if link.uplink.is_some() {
            self.send_up(port, now);
            self.schedule_pod(port, now);
            return Some(result);
        }
        if let Some(next) = link.schedule(now) {
            self.timers.set(next, port);
        }
        if !attached.waiting.is_empty() {
            self.make_ready(port);
        }
        Some(result)
    }

    /// Has a pod's link looked at when it wants to be next.
    pub(super) fn schedule_pod(&mut self, port: PortId, now: Instant) {
        if let Some(Attached { link: Link::Pod(link), .. }) =
            self.links.get_mut(port.0 as usize).and_then(Option::as_mut)
            && let Some(next) = link.schedule(now)
        {
            self.timers.set(next, port);
        }
    }

    /// Tells of the frames that a pod or host sends; other links' frames are told of further on.
    pub(super) fn watch_arrivals(
        &mut self,
        frames: &mut Vec<Frame>,
        node: NodeId,
        port: PortId,
        now: Instant,
    ) {
        let is_listening = self.observer.is_listening();
        if is_listening {
            self.finish_batch(frames, node, port, now);
        }
        let is_news = match self.links.get(port.0 as usize).and_then(Option::as_ref).map(|it| &it.link) {
            // Of a frame that took time on its way from the pod was told when the pod sent it.
            Some(Link::Pod(link)) => link.uplink.is_none(),
            Some(Link::Tap(_)) => is_listening && self.egress_point(port) == Point::Port(port),
            Some(Link::Wire { .. } | Link::Rings(_) | Link::TunnelSocket(_)) | None => false,
        };
        if !is_news {
            return;
        }
        for frame in frames {
            self.arena.open(frame).record.node = node.0;
            self.watch(frame, Point::Port(port), Action::Send, now);
        }
    }
}
