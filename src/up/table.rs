//! What `flatnet up --check` prints for people: the ways, what became of each, and how its packet went.
//!
//! Invariant: a line is at most [`WIDTH`] characters long, unless a single name is longer; a way is broken where the packet
//! goes from one machine to the next.
//!
//! May depend on [`crate::check`]. Read first: the output in `README.md`.

use std::fmt::Write as _;
use std::time::Duration;

use flatnet_engine::control::SWITCH;
use flatnet_engine::ledger::DropReason;

use crate::check::{Hop, Report, Verdict};

/// Characters a line has at most.
const WIDTH: usize = 100;
/// What stands before the lines below a check.
const INDENT: &str = "         ";

/// Prints all checks.
pub(super) fn table(reports: &[Report]) -> String {
    let mut text = String::new();
    let mut last = None;
    for report in reports {
        if last != Some(report.path) {
            let _ = writeln!(text, "{}", report.path.name());
            last = Some(report.path);
        }
        let verdict = match report.verdict {
            Verdict::Ok => "ok",
            Verdict::Failed => "FAILED",
        };
        let found = match (&report.rtt_ns, &report.drop_reason) {
            (Some(rtt), _) => format!("{:?}", Duration::from_nanos(*rtt)),
            (None, Some(reason)) => reason.clone(),
            (None, None) => String::new(),
        };
        let _ =
            writeln!(text, "  {verdict:6} {:4} {} → {}  {found}", report.protocol, report.from, report.to);
        fill(&mut text, &way(&report.hops));
        if let Some(hint) = report.drop_reason.as_deref().and_then(hint) {
            fill(&mut text, &hint.split(' ').map(str::to_owned).collect::<Vec<_>>());
        }
    }
    if reports.is_empty() {
        text.push_str("nothing to ask: a way is tried with pods and hosts of the image flatnet/echo\n");
    }
    let failed = reports.iter().filter(|report| report.verdict == Verdict::Failed).count();
    let _ = writeln!(text, "{} checks, {} ok, {failed} failed", reports.len(), reports.len() - failed);
    text
}

/// Says what a drop means and what to do about it; nothing for what only the asking side saw.
fn hint(reason: &str) -> Option<String> {
    let reason = DropReason::ALL.iter().find(|known| known.name() == reason)?;
    Some(format!("{} {}", reason.meaning(), reason.hint()))
}

/// Writes a piece per machine, `node: point action, action, point action`, and an arrow before all but the first.
fn way(hops: &[Hop]) -> Vec<String> {
    let mut pieces = Vec::new();
    for at in hops.chunk_by(|hop, next| hop.node == next.node) {
        let mut piece = if pieces.is_empty() { String::new() } else { "→ ".to_owned() };
        let mut last = "";
        for Hop { node, point, action } in at {
            // A switch is its network's only point.
            let name = if point == SWITCH { "" } else { point.as_str() };
            match (last.is_empty(), name == last) {
                (true, _) if name.is_empty() => piece.push_str(&format!("{SWITCH} of {node}:")),
                (true, _) => piece.push_str(&format!("{node}: {name}")),
                (false, true) => piece.push(','),
                (false, false) => piece.push_str(&format!(", {name}")),
            }
            piece.push_str(&format!(" {action}"));
            last = point;
        }
        pieces.push(piece);
    }
    pieces
}

/// Writes pieces as indented lines, as many on each as there is room for; a piece too long for a line is broken at spaces.
fn fill(text: &mut String, pieces: &[String]) {
    let room = WIDTH - INDENT.len();
    let words = pieces.iter().flat_map(|piece| {
        if piece.chars().count() > room { piece.split(' ').collect() } else { vec![piece.as_str()] }
    });
    let mut line = String::new();
    for word in words {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
            let _ = writeln!(text, "{INDENT}{line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        let _ = writeln!(text, "{INDENT}{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(node: &str, point: &str, action: &'static str) -> Hop {
        Hop { node: node.to_owned(), point: point.to_owned(), action }
    }

    #[test]
    fn a_way_has_a_piece_per_machine_and_names_each_point_once() {
        let hops = [
            hop("web", "eth0", "send"),
            hop("node-1", "docker0", "receive"),
            hop("node-1", "eth0", "translate-source"),
            hop("node-1", "eth0", "transmit"),
            hop("192.168.66.0/24", SWITCH, "bridge"),
            hop("user", "eth0", "deliver"),
        ];
        let expected = [
            "web: eth0 send",
            "→ node-1: docker0 receive, eth0 translate-source, transmit",
            "→ switch of 192.168.66.0/24: bridge",
            "→ user: eth0 deliver",
        ];
        assert_eq!(way(&hops), expected);
        let mut text = String::new();
        fill(&mut text, &expected.map(str::to_owned));
        let lines = [expected[..2].join(" "), expected[2..].join(" ")];
        assert_eq!(text, format!("{INDENT}{}\n{INDENT}{}\n", lines[0], lines[1]));
    }

    #[test]
    fn a_piece_that_is_too_long_is_broken_between_words() {
        let mut text = String::new();
        fill(&mut text, &["to".to_owned(), "word ".repeat(50).trim_end().to_owned()]);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert_eq!(text.split_whitespace().count(), 51);
    }
}
