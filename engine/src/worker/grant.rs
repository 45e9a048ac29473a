//! What workers do for each other's bindings: they grant ports, and know whose an answer is.
//!
//! Called where a binding begins or ends that others must know of, and for their notices. Invariants: a granted port
//! is a redirect at the worker it belongs to until the binding that uses it has ended, and is used for nothing
//! else; of these notices none is lost, however full the ways are. Read first: `masquerade.rs`, `binding.rs`.

use super::{DropReason, Frame, Instant, NodeId, Notice, PortPool, Worker};
use crate::binding::{Answers, News};
use crate::flow::FlowKey;
use crate::masquerade::{Choice, PortRange};

/// Frames that wait for a port at most.
const WAITING_LIMIT: usize = 256;

/// A frame whose source cannot be translated before another worker has granted a port.
#[derive(Debug)]
pub(super) struct Waiting {
    pool: PortPool,
    /// None of a frame that was made here.
    flow: Option<FlowKey>,
    pub(super) frame: Frame,
}

impl Worker {
    /// Tells the other workers what they must hear of this one's bindings.
    pub(super) fn spread_news(&mut self) {
        if self.bindings.news.is_empty() {
            return;
        }
        let mut news = std::mem::take(&mut self.bindings.news);
        for news in news.drain(..) {
            match news {
                News::Begun(reply) => self.notify_others(Notice::AnswersBegin(reply, self.id)),
                News::Ended(reply, answers) => {
                    match answers {
                        Answers::Steered => {}
                        Answers::Announced => self.notify_others(Notice::AnswersEnd(reply, self.id)),
                        Answers::Granted(lender) => self.notify(lender, Notice::AnswersEnd(reply, self.id)),
                    }
                    self.masquerade.free(&mut self.bindings, &reply);
                }
            }
        }
        self.bindings.news = news;
    }

    /// Lets a frame wait for a port, and asks the next worker for one.
    pub(super) fn ask_for_port(&mut self, frame: Frame, pool: PortPool, now: Instant) {
        if self.waiting_for_ports.len() >= WAITING_LIMIT {
            return self.drop_frame(frame, DropReason::TuplesExhausted, now);
        }
        self.hold(NodeId(self.arena.record(&frame).node));
        let flow = self.flow_of(&frame);
        self.waiting_for_ports.push_back(Waiting { pool, flow, frame });
        self.notify(self.next_worker(), Notice::PortWanted(pool, self.id));
    }

    /// Grants another worker a port, or passes its wish on.
    pub(super) fn grant_port(&mut self, pool: PortPool, asker: u8, now: Instant) {
        let node = self.tables.node(pool.node);
        let (range, reserved) =
            node.map_or((PortRange::ALL, 0), |node| (node.masquerade_ports(), node.reserved_port()));
        let random = self.random.next_u64();
        let choice = Choice { wish: 0, range, reserved, random, parity: false, opening: None };
        let found = self.masquerade.pick(&mut self.bindings, pool, &choice, now);
        match found.filter(|&port| self.bindings.redirect(pool.reply(port), asker, now)) {
            Some(port) => self.notify(asker, Notice::PortGranted(pool, port)),
            None if self.next_worker() == asker => self.notify(asker, Notice::PortRefused(pool)),
            None => self.notify(self.next_worker(), Notice::PortWanted(pool, asker)),
        }
    }

    /// Decides about the frame that a port was granted for.
    pub(super) fn use_granted_port(&mut self, pool: PortPool, port: u16, now: Instant) {
        self.masquerade.granted = Some((pool, port));
        self.resume_with(pool, now);
        // Not used: the frame went another way.
        if let Some((pool, port)) = self.masquerade.granted.take()
            && let Some(owner) = self.masquerade.other_owner(port)
        {
            self.notify(owner, Notice::AnswersEnd(pool.reply(port), self.id));
        }
    }

    /// Decides about a frame for which there is no port.
    pub(super) fn do_without_port(&mut self, pool: PortPool, now: Instant) {
        self.masquerade.note_refusal(&pool, now);
        self.resume_with(pool, now);
    }

    fn resume_with(&mut self, pool: PortPool, now: Instant) {
        let first = self.waiting_for_ports.iter().position(|waiting| waiting.pool == pool);
        let first = first.and_then(|first| self.waiting_for_ports.remove(first));
        let Some(Waiting { flow, frame, .. }) = first else { return };
        // It may have to wait again, but no more than once.
        let others = std::mem::take(&mut self.waiting_for_ports);
        self.resume(frame, now);
        // The next frame of this flow that comes in finds its binding: those that came before go before it.
        for waiting in others {
            if flow.is_some() && waiting.flow == flow {
                self.resume(waiting.frame, now);
            } else {
                self.waiting_for_ports.push_back(waiting);
            }
        }
    }

    fn next_worker(&self) -> u8 {
        (self.id + 1) % self.workers
    }

    fn notify_others(&mut self, notice: Notice) {
        let own = self.id;
        for worker in (0..self.workers).filter(|&worker| worker != own) {
            self.notify(worker, notice);
        }
    }

    /// Tells one worker what it must not miss.
    pub(super) fn notify(&mut self, worker: u8, notice: Notice) {
        let Some(Some(way)) = self.outgoing.get_mut(usize::from(worker)) else { return };
        way.unannounced = true;
        // Behind what waits already: the order holds.
        let waits = self.unsent.iter().any(|(other, _)| *other == worker);
        if waits || way.notices.push(notice).is_err() {
            self.unsent.push_back((worker, notice));
        }
    }

    /// Sends the notices that found no room; returns how many found it now.
    pub(super) fn send_unsent(&mut self) -> usize {
        let waiting = std::mem::take(&mut self.unsent);
        let before = waiting.len();
        for (worker, notice) in waiting {
            self.notify(worker, notice);
        }
        before - self.unsent.len()
    }
}
