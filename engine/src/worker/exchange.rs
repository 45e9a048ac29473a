//! What workers send each other: frames, empty buffers, and what they learned.
//!
//! Called once per batch, and wherever a frame is another's. Invariants: a notice is heeded before the
//! frames sent after it; a full ring drops by name. Read first: `mailbox.rs`, `ring.rs`.

use super::slow::heed_station;
use super::{DropReason, Frame, Instant, NodeId, PortId, Worker};
use crate::mailbox::{Notice, Parcel};

impl Worker {
    /// Sends a frame to another worker.
    pub(super) fn send_parcel(&mut self, worker: u8, parcel: Parcel, now: Instant) {
        let Some(Some(way)) = self.outgoing.get_mut(usize::from(worker)) else {
            if let Parcel::Ingress(frame) | Parcel::Egress(frame) = parcel {
                self.drop_frame(frame, DropReason::LinkDown, now);
            }
            return;
        };
        let node = match &parcel {
            Parcel::Ingress(frame) | Parcel::Egress(frame) => Some(self.arena.record(frame).node),
            Parcel::Home(_) => None,
        };
        // Counted first: the other may release it at once.
        if let Some(counters) = node.and_then(|node| self.counters.get(usize::from(node))) {
            counters.hold();
        }
        match way.parcels.push(parcel) {
            Ok(()) => way.unannounced = true,
            Err(Parcel::Ingress(frame) | Parcel::Egress(frame)) => {
                self.release(NodeId(self.arena.record(&frame).node));
                self.drop_frame(frame, DropReason::WorkerRingFull, now);
            }
            Err(Parcel::Home(frame)) => self.pool.welcome(frame),
        }
    }

    /// Tells all other workers what they can do without, ahead of what is sent to them next.
    pub(super) fn tell(&mut self, notice: Notice) {
        // The control side, the last, takes no part in forwarding.
        let others = self.outgoing.iter_mut().take(usize::from(self.workers)).flatten();
        for way in others {
            // A lost notice costs a flood or an ARP request, nothing else.
            let _ = way.notices.push(notice);
            way.unannounced = true;
        }
    }

    /// Takes what the other workers sent.
    pub(super) fn receive_parcels(&mut self, now: Instant) -> usize {
        let mut moved = 0;
        for from in 0..self.incoming.len() {
            let mut parcels = std::mem::take(&mut self.parcels);
            self.incoming[from].parcels.pop(super::BATCH_LIMIT * 4, |parcel| parcels.push(parcel));
            moved += parcels.len();
            // What was told before these frames were sent is there now; what comes later is heeded next time.
            for _ in 0..self.incoming[from].notices.len() {
                if let Some(notice) = self.incoming[from].notices.pop() {
                    self.heed(notice, now);
                    moved += 1;
                }
            }
            let mut batch = std::mem::take(&mut self.batch.frames);
            for parcel in parcels.drain(..) {
                // Frames that came in by one port are run together; whatever else comes keeps its place in the order.
                let continues = matches!(&parcel, Parcel::Ingress(frame) if self.is_of_batch(&batch, frame));
                if !continues {
                    self.take_over(&mut batch, now);
                }
                match parcel {
                    Parcel::Ingress(frame) => batch.push(frame),
                    Parcel::Egress(frame) => self.send_for_other(frame, now),
                    Parcel::Home(frame) => self.pool.welcome(frame),
                }
            }
            self.take_over(&mut batch, now);
            self.batch.frames = batch;
            self.parcels = parcels;
        }
        moved
    }

    /// Tells whether a frame came in by the same port as those of a batch that has room for it.
    fn is_of_batch(&self, batch: &[Frame], frame: &Frame) -> bool {
        let of = |frame: &Frame| (self.arena.record(frame).ingress, self.arena.record(frame).course);
        batch.len() < super::BATCH_LIMIT && batch.first().is_none_or(|first| of(first) == of(frame))
    }

    fn send_for_other(&mut self, frame: Frame, now: Instant) {
        let record = self.arena.record(&frame);
        let (node, egress) = (NodeId(record.node), PortId(record.egress));
        self.release(node);
        self.send(frame, egress, now);
    }

    /// Runs frames of one port that another worker took in: their bindings are here.
    fn take_over(&mut self, batch: &mut Vec<Frame>, now: Instant) {
        let Some(first) = batch.first() else { return };
        let record = *self.arena.record(first);
        for _ in 0..batch.len() {
            self.release(NodeId(record.node));
        }
        match self.ingress_of(PortId(record.ingress)) {
            Some(ingress) => {
                self.run_frames::<false>(batch, NodeId(record.node), &ingress, record.course, now);
            }
            None => batch.drain(..).for_each(|frame| self.drop_frame(frame, DropReason::LinkDown, now)),
        }
    }

    fn heed(&mut self, notice: Notice, now: Instant) {
        match notice {
            Notice::Station(node, mac, port) => {
                let news = self.fdb.learn(&self.tables, node, mac, port, now);
                heed_station(&mut self.cache, news);
            }
            Notice::Neighbor(neighbor, mac) => self.learn_neighbor(neighbor, mac, now),
            Notice::PathMtu(node, peer, mtu) => self.lower_path_mtu(node, peer, mtu, now),
            Notice::AnswersBegin(reply, worker) => {
                self.bindings.redirect(reply, worker, now);
            }
            Notice::AnswersEnd(reply, worker) => {
                self.bindings.end_redirect(&reply, worker);
                self.masquerade.free(&mut self.bindings, &reply);
            }
            Notice::PortWanted(pool, asker) => self.grant_port(pool, asker, now),
            Notice::PortGranted(pool, port) => self.use_granted_port(pool, port, now),
            Notice::PortRefused(pool) => self.do_without_port(pool, now),
            Notice::AskFirst(port, worker) => self.begin_to_ask(port, worker),
            Notice::MayTake(port) => self.hear_question(port),
            Notice::Take(port, worker, permission) => self.hear_answer(port, worker, permission),
        }
    }

    /// Sends other workers' empty buffers back to them.
    pub(super) fn send_buffers_home(&mut self) {
        if self.pool.foreign() == 0 {
            return;
        }
        for worker in 0..self.outgoing.len() {
            let Some(way) = &mut self.outgoing[worker] else { continue };
            let buffers = self.pool.homebound(worker);
            while let Some(frame) = buffers.pop() {
                if let Err(Parcel::Home(frame)) = way.parcels.push(Parcel::Home(frame)) {
                    buffers.push(frame);
                    break;
                }
            }
            way.unannounced = true;
        }
    }

    /// Wakes the workers that something was sent to, once per batch.
    pub(super) fn announce(&mut self) {
        for way in self.outgoing.iter_mut().flatten() {
            if std::mem::take(&mut way.unannounced)
                && let Some(alarm) = &way.alarm
            {
                alarm.ring();
            }
        }
    }

    /// Tells whether another worker sent something.
    pub(super) fn has_parcels(&self) -> bool {
        self.incoming.iter().any(|way| !way.parcels.is_empty() || !way.notices.is_empty())
    }
}
