//! What workers send each other: frames, empty buffers, and what they learned.
//!
//! Called once per batch, and wherever a frame is another's. Invariants: notices and frames keep their order;
//! a full ring drops by name. Read first: `mailbox.rs`, `ring.rs`.

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
            Parcel::Home(_) | Parcel::Notice => None,
        };
        match way.parcels.push(parcel) {
            Ok(()) => {
                way.alarm.ring();
                if let Some(counters) = node.and_then(|node| self.counters.get(usize::from(node))) {
                    counters.hold();
                }
            }
            Err(Parcel::Ingress(frame) | Parcel::Egress(frame)) => {
                self.drop_frame(frame, DropReason::WorkerRingFull, now);
            }
            Err(Parcel::Home(frame)) => self.pool.welcome(frame),
            Err(Parcel::Notice) => {}
        }
    }

    /// Tells all other workers, ahead of what is sent to them next.
    pub(super) fn tell(&mut self, notice: Notice) {
        // The control side, the last, takes no part in forwarding.
        let others = self.outgoing.iter_mut().take(usize::from(self.workers)).flatten();
        for way in others {
            // A lost notice costs a flood or an ARP request, nothing else.
            if way.notices.push(notice).is_ok() && way.parcels.push(Parcel::Notice).is_err() {
                way.notices.pop();
            }
            way.alarm.ring();
        }
    }

    /// Takes what the other workers sent.
    pub(super) fn receive_parcels(&mut self, now: Instant) -> usize {
        let mut moved = 0;
        for from in 0..self.incoming.len() {
            let mut parcels = std::mem::take(&mut self.parcels);
            self.incoming[from].parcels.pop(super::BATCH_LIMIT * 4, |parcel| parcels.push(parcel));
            moved += parcels.len();
            for parcel in parcels.drain(..) {
                match parcel {
                    Parcel::Ingress(frame) => self.take_over(frame, now),
                    Parcel::Egress(frame) => self.send_for_other(frame, now),
                    Parcel::Home(frame) => self.pool.welcome(frame),
                    Parcel::Notice => {
                        if let Some(notice) = self.incoming[from].notices.pop() {
                            self.heed(notice, now);
                        }
                    }
                }
            }
            self.parcels = parcels;
        }
        moved
    }

    fn send_for_other(&mut self, frame: Frame, now: Instant) {
        let record = self.arena.record(&frame);
        let (node, egress) = (record.node, PortId(record.egress));
        if let Some(counters) = self.counters.get(usize::from(node)) {
            counters.release();
        }
        self.send(frame, egress, now);
    }

    /// Decides about a frame that another worker took in: its bindings are here.
    fn take_over(&mut self, frame: Frame, now: Instant) {
        let record = *self.arena.record(&frame);
        if let Some(counters) = self.counters.get(usize::from(record.node)) {
            counters.release();
        }
        let Some(ingress) = self.ingress_of(PortId(record.ingress)) else {
            return self.drop_frame(frame, DropReason::LinkDown, now);
        };
        let mut frames = std::mem::take(&mut self.batch.frames);
        frames.push(frame);
        self.run_frames(&mut frames, NodeId(record.node), &ingress, true, now);
        self.batch.frames = frames;
    }

    fn heed(&mut self, notice: Notice, now: Instant) {
        match notice {
            Notice::Station(node, mac, port) => {
                let news = self.fdb.learn(&self.tables, node, mac, port, now);
                self.heed_station(news);
            }
            Notice::Neighbor(neighbor, mac) => self.learn_neighbor(neighbor, mac, now),
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
            way.alarm.ring();
        }
    }

    /// Tells whether another worker sent something.
    pub(super) fn has_parcels(&self) -> bool {
        self.incoming.iter().any(|incoming| !incoming.parcels.is_empty())
    }
}
