//! What ports owe for decisions about their frames: this worker's, and others' at this one, which then wait, too.
//!
//! A port that owes another worker much is told, through its own, to ask before each batch. Called after decisions, where batches are
//! taken, and for the notices between the two. Invariants: nothing is dropped for it, what waits waits in the port's own link; who
//! asks is answered, at the latest when there is nothing else to do; a port that owes little asks nobody. Read first: `budget.rs`,
//! `docs/adr/0025-a-ports-decisions-are-a-share-of-the-work.md`.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::budget::{BURST_LIMIT, DEBT_LIMIT, DECISION, Debt, NEW_FLOW};
use super::{BATCH_LIMIT, Frame, NodeId, Notice, Parsed, PortId, Worker};
use crate::binding::Half;
use crate::decide::{Decision, Refusal, Verdict};
use crate::flow::FlowKey;
use crate::frame::Record;
use crate::parse::Side;
use crate::rewrite::{Step, Transform};

/// Debtors before those are looked for who owe nothing any more.
const DEBTORS: usize = 256;

/// What other workers' ports owe.
#[derive(Debug)]
pub(super) struct Strangers {
    debtors: HashMap<PortId, Debtor>,
    /// Those that ask for a batch, in the order in which they did.
    asking: Vec<PortId>,
    /// Debtors at which those are looked for who owe nothing any more.
    limit: usize,
}

#[derive(Debug, Default)]
struct Debtor {
    debt: Debt,
    manner: Manner,
}

/// How a debtor's worker takes frames from it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// As it likes.
    #[default]
    Free,
    /// As it likes, until it hears that it is to ask.
    Told,
    /// It asks.
    Asks,
    /// It was allowed a batch.
    Allowed,
}

impl Default for Strangers {
    fn default() -> Self {
        Self { debtors: HashMap::new(), asking: Vec::new(), limit: DEBTORS }
    }
}

impl Strangers {
    /// Tells whether somebody waits for an answer.
    pub(super) fn are_asking(&self) -> bool {
        !self.asking.is_empty()
    }

    /// Charges a port for decisions; returns whether it is to be told to ask from now on.
    fn charge(&mut self, port: PortId, decisions: u64, work: u64) -> bool {
        if self.debtors.len() >= self.limit {
            self.debtors.retain(|_, debtor| debtor.debt.batch_limit(work) < BATCH_LIMIT);
            self.limit = DEBTORS.max(2 * self.debtors.len());
        }
        let Debtor { debt, manner } = self.debtors.entry(port).or_default();
        // What was on its way before it was told to ask is not forgiven: else it would be a burst again after each.
        let limit = if matches!(manner, Manner::Free | Manner::Told) { BURST_LIMIT } else { DEBT_LIMIT };
        debt.charge(decisions, work, limit);
        let tell = *manner == Manner::Free && debt.batch_limit(work) < BATCH_LIMIT;
        if tell {
            *manner = Manner::Told;
        }
        tell
    }

    /// A port asks for a batch.
    fn ask(&mut self, port: PortId) {
        self.debtors.entry(port).or_default().manner = Manner::Asks;
        self.asking.push(port);
    }

    /// Takes out who may have a batch now, and who need not ask any more: of a worker that has nothing to do, nobody.
    fn answers(&mut self, is_idle: bool, work: u64) -> Vec<(PortId, Permission)> {
        let mut answers = Vec::new();
        let debtors = &mut self.debtors;
        self.asking.retain(|&port| {
            let Debtor { debt, manner } = debtors.entry(port).or_default();
            if is_idle {
                debt.forgive();
            }
            let limit = debt.batch_limit(work);
            if limit == BATCH_LIMIT {
                *manner = Manner::Free;
                answers.push((port, Permission::Free));
            } else if limit > 0 {
                *manner = Manner::Allowed;
                answers.push((port, Permission::Batch));
            }
            limit == 0
        });
        answers
    }
}

/// What a port may do that asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Take one small batch.
    Batch,
    /// Take what it likes, and not ask again.
    Free,
}

/// Another worker that a port asks before it takes frames.
#[derive(Debug, Clone, Copy)]
pub(super) struct Creditor {
    worker: u8,
    state: Asked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    NotYet,
    Waits,
    Allowed,
}

/// Tells whether all whom a port must ask have allowed it a batch, which is then spent.
#[cold]
pub(super) fn spend(creditors: &mut [Creditor]) -> bool {
    let all = creditors.iter().all(|creditor| creditor.state == Asked::Allowed);
    if all {
        creditors.iter_mut().for_each(|creditor| creditor.state = Asked::NotYet);
    }
    all
}

impl Worker {
    /// Charges the port that a frame came in by first for the decision about it, which was made just now: for nothing, if its flow was
    /// known before a change of the tables, or if it was the first answer of a binding.
    pub(super) fn pay(
        &mut self,
        record: &Record,
        parsed: &Parsed,
        is_known: bool,
        decided: (&Result<Verdict, Refusal>, &Transform),
    ) {
        let answers = std::mem::take(&mut self.bindings.answered);
        if is_known || answers {
            return;
        }
        if let Some(origin) = self.origin(record) {
            let decisions = self.price(NodeId(record.node), parsed, decided);
            self.charge(origin, decisions);
        }
    }

    /// Notes, where a frame leaves its node by a cable, the port that it came in by first.
    pub(super) fn note_origin(&mut self, frame: &mut Frame) {
        let record = *self.arena.record(frame);
        if record.origin == 0
            && let Some(origin) = self.origin(&record)
        {
            self.arena.open(frame).record.origin = origin.0 + 1;
        }
    }

    /// Returns the port of a bridge that a frame came in by first; none of what came from outside all bridges of this process.
    pub(super) fn origin(&self, record: &Record) -> Option<PortId> {
        if let Some(origin) = record.origin.checked_sub(1) {
            return Some(PortId(origin));
        }
        let ingress = PortId(record.ingress);
        let attached = self.links.get(record.ingress as usize).and_then(Option::as_ref);
        let side = attached.map(|attached| attached.ingress.side);
        let side = side.or_else(|| self.ingress_of(ingress).map(|ingress| ingress.side));
        (side == Some(Side::Bridge)).then_some(ingress)
    }

    /// Says what is owed for a decision: who opens a flow pays for its first answer, too.
    fn price(
        &mut self,
        node: NodeId,
        parsed: &Parsed,
        (verdict, transform): (&Result<Verdict, Refusal>, &Transform),
    ) -> u64 {
        let (egress, price) = match verdict {
            // Answers of a binding are its other half: there is no flow to look for, in memory that nobody has asked for.
            Ok(Verdict::Forward(Decision { binding: Some((_, Half::Original)), .. })) => (None, NEW_FLOW),
            Ok(Verdict::Forward(_)) => (Some(transform.egress), NEW_FLOW),
            Ok(Verdict::HandOver(..)) => {
                let to = Ipv4Addr::from_bits(parsed.tuple().destination);
                let endpoint = self.tables.endpoints.get(&to).filter(|endpoint| endpoint.node == node);
                (endpoint.map(|endpoint| endpoint.port), 1)
            }
            Ok(_) | Err(_) => (None, 1),
        };
        let Some(egress) = egress else { return price };
        // As it came, if this answers it: by the port that this leaves by.
        let is_tunneled = transform.steps().iter().any(|step| matches!(step, Step::Encapsulate(_)));
        let key = FlowKey::ipv4(&parsed.tuple().reversed(), egress.0, is_tunneled);
        if self.cache.note_answer(key) { 0 } else { price }
    }

    /// Charges a port of a node's bridge for decisions about its frames, whoever took them in. What comes in by interfaces and switches
    /// from elsewhere is from many.
    fn charge(&mut self, port: PortId, decisions: u64) {
        let work = self.work();
        if let Some(attached) = self.links.get_mut(port.0 as usize).and_then(Option::as_mut) {
            return attached.debt.charge(decisions, work, DEBT_LIMIT);
        }
        let owner = self.tables.ports.get(&port).map(|port| port.worker).filter(|&owner| owner != self.id);
        if let Some(owner) = owner
            && self.strangers.charge(port, decisions, work)
        {
            self.notify(owner, Notice::AskFirst(port, self.id));
        }
    }

    /// What the worker has done so far, in frames that the cache answers.
    #[inline(always)]
    pub(super) fn work(&self) -> u64 {
        self.frames + self.decisions * DECISION
    }

    /// Another worker wants to be asked before a port of this one takes frames.
    pub(super) fn begin_to_ask(&mut self, port: PortId, worker: u8) {
        if let Some(attached) = self.links.get_mut(port.0 as usize).and_then(Option::as_mut)
            && attached.creditors.iter().all(|creditor| creditor.worker != worker)
        {
            attached.creditors.push(Creditor { worker, state: Asked::NotYet });
        }
    }

    /// Asks whom a port must ask and has not yet.
    #[cold]
    pub(super) fn ask_creditors(&mut self, port: PortId) {
        let Some(attached) = self.links.get_mut(port.0 as usize).and_then(Option::as_mut) else { return };
        let mut creditors = std::mem::take(&mut attached.creditors);
        for creditor in creditors.iter_mut().filter(|creditor| creditor.state == Asked::NotYet) {
            creditor.state = Asked::Waits;
            self.notify(creditor.worker, Notice::MayTake(port));
        }
        if let Some(attached) = self.links.get_mut(port.0 as usize).and_then(Option::as_mut) {
            attached.creditors = creditors;
        }
    }

    /// A port of another worker asks for a batch.
    pub(super) fn hear_question(&mut self, port: PortId) {
        self.strangers.ask(port);
    }

    /// Answers who asks and need not wait, or need not any more; returns how many.
    pub(super) fn answer_strangers(&mut self, is_idle: bool) -> usize {
        if !self.strangers.are_asking() {
            return 0;
        }
        let answers = self.strangers.answers(is_idle, self.work());
        for &(port, permission) in &answers {
            if let Some(owner) = self.tables.ports.get(&port).map(|port| port.worker) {
                self.notify(owner, Notice::Take(port, self.id, permission));
            }
        }
        answers.len()
    }

    /// Another worker allows a port of this one to take frames.
    pub(super) fn hear_answer(&mut self, port: PortId, worker: u8, permission: Permission) {
        let Some(attached) = self.links.get_mut(port.0 as usize).and_then(Option::as_mut) else { return };
        match permission {
            Permission::Free => attached.creditors.retain(|creditor| creditor.worker != worker),
            Permission::Batch => {
                let creditors = attached.creditors.iter_mut();
                creditors
                    .filter(|creditor| creditor.worker == worker)
                    .for_each(|creditor| creditor.state = Asked::Allowed);
            }
        }
        self.make_ready(port);
    }
}

#[cfg(test)]
mod tests;
