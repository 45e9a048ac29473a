//! The packet ledger of a whole network: what became of every frame and every buffer.
//!
//! `flatnet up` prints it when it ends, `flatnet down` prints what the instance returns. Invariant: a row is what the
//! engine counted, never what it should have.
//!
//! May depend on engine and agents. Read first: `engine/src/ledger.rs`.

use std::fmt::Write as _;

use flatnet_agents::publisher::Publisher;
use flatnet_engine::ledger::{Buffers, DropReason, Ledger, Term};
use flatnet_engine::worker::Worker;

use crate::drive::Drive;
use crate::output::plain_table;
use crate::views::{BufferReport, DropCount, LedgerReport, LedgerRow, PodDropCounts};

/// Ends a network and tells what became of everything.
pub fn close(drive: Drive) -> LedgerReport {
    let (mut network, mut workers) = drive.stop();
    let pods = pods(&network.publisher, &mut workers);
    let control = &mut network.publisher.control;
    control.collect_buffers();
    let (allocated, freed) = control.pool.turnover();
    let own = Buffers { allocated, freed, held: 0 };
    let buffers = workers.iter_mut().map(|worker| worker.finish()).fold(own, Buffers::plus);
    let nodes = rows(&network.publisher);
    let balances = buffers.balances() && nodes.iter().all(|row| row.balances);
    let Buffers { allocated, freed, held } = buffers;
    let buffers = BufferReport { allocated, freed, held, balances: buffers.balances() };
    LedgerReport { nodes, pods, buffers, balances }
}

fn rows(publisher: &Publisher) -> Vec<LedgerRow> {
    let nodes = publisher.nodes();
    nodes.into_iter().map(|(name, id)| row(name, &publisher.control.ledger(id))).collect()
}

fn row(node: String, ledger: &Ledger) -> LedgerRow {
    LedgerRow {
        node,
        received: ledger.term(Term::Received),
        originated: ledger.term(Term::Originated),
        copied: ledger.term(Term::Copied),
        split: ledger.term(Term::Split),
        sent: ledger.term(Term::Sent),
        consumed: ledger.term(Term::Consumed),
        merged: ledger.term(Term::Merged),
        dropped: ledger.dropped(),
        held: ledger.held,
        drops: drops(ledger),
        balances: ledger.balances(),
    }
}

/// Lists the reasons for which a node dropped, with their counts.
fn drops(ledger: &Ledger) -> Vec<DropCount> {
    let reasons = DropReason::ALL.iter().map(|&reason| (reason, ledger.drops(reason)));
    let happened = reasons.filter(|&(_, count)| count > 0);
    happened.map(|(reason, count)| DropCount { reason: reason.name().to_owned(), count }).collect()
}

/// Lists what the pods and hosts dropped that did.
fn pods(publisher: &Publisher, workers: &mut [Worker]) -> Vec<PodDropCounts> {
    let mut pods = Vec::new();
    for (name, place) in publisher.places() {
        let worker = workers.get_mut(usize::from(place.worker));
        let drops = worker.and_then(|worker| worker.with_pod(place.port, |pod, _| pod.drops().clone()));
        let drops = drops.unwrap_or_default();
        let drops = drops.iter().map(|(reason, count)| DropCount { reason: reason.name().to_owned(), count });
        let drops: Vec<DropCount> = drops.collect();
        if !drops.is_empty() {
            pods.push(PodDropCounts { pod: name.to_owned(), drops });
        }
    }
    pods
}

/// Prints a ledger for people.
pub fn table(report: &LedgerReport) -> String {
    let mut table = plain_table([
        "NODE",
        "RECEIVED",
        "ORIGINATED",
        "COPIED",
        "SPLIT",
        "SENT",
        "CONSUMED",
        "MERGED",
        "DROPPED",
        "HELD",
    ]);
    for row in &report.nodes {
        let terms = [
            row.received,
            row.originated,
            row.copied,
            row.split,
            row.sent,
            row.consumed,
            row.merged,
            row.dropped,
            row.held,
        ];
        table.add_row(std::iter::once(row.node.clone()).chain(terms.map(|term| term.to_string())));
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    let nodes = report.nodes.iter().map(|row| (&row.node, &row.drops));
    let pods = report.pods.iter().map(|row| (&row.pod, &row.drops));
    for (name, drops) in nodes.chain(pods).filter(|(_, drops)| !drops.is_empty()) {
        let drops = drops.iter().map(|drop| format!("{} {}", drop.reason, drop.count));
        let _ = writeln!(text, "{name} dropped: {}", drops.collect::<Vec<_>>().join(", "));
    }
    for row in report.nodes.iter().filter(|row| !row.balances) {
        let _ = writeln!(text, "{} DOES NOT BALANCE", row.node);
    }
    if report.nodes.iter().all(|row| row.balances) {
        text.push_str(
            "balances: received + originated + copied + split = sent + consumed + merged + dropped + held\n",
        );
    }
    let BufferReport { allocated, freed, held, balances } = report.buffers;
    let equal = if balances { "=" } else { "≠" };
    let _ = writeln!(text, "buffers: {allocated} allocated {equal} {freed} freed + {held} held");
    text
}
