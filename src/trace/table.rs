//! A trace for people: a block per hop, outer and inner headers side by side, changed fields marked.
//!
//! Invariants: a line is at most 100 characters long unless a single name is longer; what did not change since the hop
//! before is printed once.
//!
//! May depend on [`super::report`]. Read first: the output in `README.md`.

use std::fmt::Write as _;
use std::time::Duration;

use flatnet_engine::control::SWITCH;
use flatnet_engine::trace::Action;
use serde_json::Value;

use super::headers::Layer;
use super::report::{Cause, Hop, PacketKind, Report};

/// Characters a line has at most.
const WIDTH: usize = 100;
/// Widths of the columns before the last: time, where, link and outer headers.
const COLUMNS: [usize; 3] = [8, 24, 31];

/// A field's text, and whether it is marked.
type Piece = (String, bool);
/// A column's lines within a hop.
type Cell = Vec<Vec<Piece>>;

/// Prints a report; changed fields in colour, else with a star.
pub(super) fn table(report: &Report, color: bool) -> String {
    let Report { from, to, protocol, address, port, .. } = report;
    let whom = port.map_or_else(|| address.to_string(), |port| format!("{address}:{port}"));
    let name = if to == &whom || to == &address.to_string() { whom } else { format!("{to} ({whom})") };
    let mut text = format!("{from} → {name}  {protocol}\n");
    let mut questions = Vec::new();
    for hops in packets(&report.hops) {
        // A question for a MAC that was answered is told of where the packet waits for it.
        if hops[0].packet == PacketKind::Arp && hops.iter().all(|hop| hop.drop.is_none()) {
            continue;
        }
        let title = match hops[0].packet {
            PacketKind::Request => "request",
            PacketKind::Answer => "answer",
            PacketKind::Arp => "arp, for the packet that waits",
        };
        let first = COLUMNS[0] + COLUMNS[1];
        let _ = writeln!(text, "\n{title:<first$}{:<1$}inner headers", "link, outer headers", COLUMNS[2]);
        if hops[0].packet != PacketKind::Arp {
            questions = waits(&report.hops, hops[0].packet);
        }
        let mut last = hops[0].time_ns;
        for (number, hop) in hops.iter().enumerate() {
            write_hop(&mut text, hop, number == 0, hop.time_ns.saturating_sub(last), color);
            if hop.action == Action::Resolve.name() {
                questions
                    .iter()
                    .filter(|(node, _)| node == &hop.node)
                    .for_each(|(_, way)| fill(&mut text, way));
            }
            last = hop.time_ns;
        }
    }
    if !color && report.hops.iter().any(|hop| !hop.changed.is_empty()) {
        text.push_str("\n* changed since the hop before");
    }
    text.push('\n');
    match (report.rtt_ns, &report.error) {
        (Some(rtt), _) => {
            let _ = writeln!(text, "answered after {:?}", Duration::from_nanos(rtt));
        }
        (None, error) => {
            let _ = writeln!(text, "no answer: {}", error.as_deref().unwrap_or("nothing came"));
        }
    }
    text
}

/// Splits hops into packets; each question for a MAC begins where it is sent.
fn packets(hops: &[Hop]) -> impl Iterator<Item = &[Hop]> {
    hops.chunk_by(|one, next| one.packet == next.packet && (one.packet != PacketKind::Arp || !is_sent(next)))
}

fn is_sent(hop: &Hop) -> bool {
    let first = [Action::Send, Action::Transmit, Action::Bridge];
    hop.headers.arp.is_some() && hop.changed.is_empty() && first.iter().any(|it| it.name() == hop.action)
}

/// Names the nodes where a packet waits, and the way of the question that they ask.
fn waits(hops: &[Hop], packet: PacketKind) -> Vec<(String, String)> {
    let after = packets(hops).skip_while(|hops| hops[0].packet != packet).skip(1);
    let questions = after.take_while(|hops| hops[0].packet == PacketKind::Arp);
    questions
        .filter(|way| way.iter().all(|hop| hop.drop.is_none()))
        .filter_map(|way| {
            let first = way.first()?;
            let target = first.headers.arp.as_ref()?.get("target").map_or_else(String::new, show);
            let ways: Vec<String> = way.iter().map(place).collect();
            Some((first.node.clone(), format!("arp: who has {target}? {}", ways.join(" → "))))
        })
        .collect()
}

fn place(hop: &Hop) -> String {
    if hop.point == SWITCH { hop.node.clone() } else { format!("{} {}", hop.node, hop.point) }
}

/// Writes words below a hop, as many on each line as there is room for.
fn fill(text: &mut String, words: &str) {
    let indent = " ".repeat(COLUMNS[0]);
    let mut line = String::new();
    for word in words.split(' ') {
        if !line.is_empty() && indent.len() + 3 + line.chars().count() + word.chars().count() > WIDTH {
            let _ = writeln!(text, "{indent}  {line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(text, "{indent}  {line}");
}

fn write_hop(text: &mut String, hop: &Hop, is_first: bool, since: u64, color: bool) {
    let plain = |text: String| vec![(text, false)];
    let (place, action) = (place(hop), hop.action.replace('-', " "));
    let time = plain(format!("+{}", rounded(since)));
    let (outer, inner) = (link_cell(hop, is_first), inner_cell(hop, is_first));
    // Where nothing changed a line is enough.
    let is_same = outer.is_empty() && inner.is_empty();
    let here =
        if is_same { vec![plain(format!("{place}: {action}"))] } else { vec![plain(place), plain(action)] };
    let cells = [vec![time], here, outer, inner];
    let lines = cells.iter().map(Vec::len).max().unwrap_or(0);
    for line in 0..lines {
        let mut row = String::new();
        let mut owed = 0;
        for (column, cell) in cells.iter().enumerate() {
            let pieces = cell.get(line).map_or(&[][..], Vec::as_slice);
            if !pieces.is_empty() {
                row.extend(std::iter::repeat_n(' ', owed));
                owed = 0;
            }
            let (written, width) = join(pieces, color);
            row.push_str(&written);
            // A column that is too narrow pushes the next one on by a space.
            owed += COLUMNS.get(column).map_or(0, |&room| room.saturating_sub(width).max(1));
        }
        let _ = writeln!(text, "{}", row.trim_end());
    }
    if let Some(cause) = &hop.drop {
        write_cause(text, cause);
    }
}

/// Writes nanoseconds in at most six characters: whole ones of a unit, with a tenth where there is one and room for it.
fn rounded(nanos: u64) -> String {
    let (unit, name) = match nanos {
        0..1_000 => (1, "ns"),
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    let tenths = nanos / (unit / 10).max(1);
    if unit >= 1_000_000 && tenths < 1_000 && !tenths.is_multiple_of(10) {
        return format!("{}.{}{name}", tenths / 10, tenths % 10);
    }
    format!("{}{name}", nanos / unit)
}

/// Writes pieces with a space between; returns the width that is seen, too.
fn join(pieces: &[Piece], color: bool) -> (String, usize) {
    let (mut text, mut width) = (String::new(), 0);
    for (piece, marked) in pieces {
        if !text.is_empty() {
            text.push(' ');
            width += 1;
        }
        width += piece.chars().count();
        match (marked, color) {
            (true, true) => {
                let _ = write!(text, "\x1b[1;33m{piece}\x1b[0m");
            }
            (true, false) => {
                let _ = write!(text, "{piece}*");
                width += 1;
            }
            (false, _) => text.push_str(piece),
        }
    }
    (text, width)
}

/// Tells whether a field is to be shown, and whether it is marked.
struct Shown<'a> {
    hop: &'a Hop,
    layer: &'static str,
    /// All of it: at the first hop, and where the layer has just come.
    whole: bool,
}

impl<'a> Shown<'a> {
    fn new(hop: &'a Hop, layer: &'static str, is_first: bool) -> Self {
        Self { hop, layer, whole: is_first || hop.changed.iter().any(|changed| changed == layer) }
    }

    fn is_changed(&self, field: &str) -> bool {
        let name = format!("{}.{field}", self.layer);
        self.hop.changed.iter().any(|changed| changed == &name)
    }

    /// A field that changed, or that came with its layer.
    fn is_marked(&self, field: &str) -> bool {
        self.is_changed(field) || self.hop.changed.iter().any(|changed| changed == self.layer)
    }

    /// A field with its label, if it is shown.
    fn piece(&self, layer: &Layer, label: &str, field: &str) -> Option<Piece> {
        let value = layer.get(field).filter(|_| self.whole || self.is_changed(field))?;
        let text = match field {
            "checksum" => value.as_u64().map_or_else(|| show(value), |sum| format!("{sum:04x}")),
            _ => show(value),
        };
        let label = if label.is_empty() { text } else { format!("{label} {text}") };
        Some((label, self.is_marked(field)))
    }

    /// Two ends and an arrow, if either is shown.
    fn ends(&self, layer: &Layer, label: &str, fields: [&str; 2]) -> Vec<Piece> {
        if !self.whole && !fields.iter().any(|field| self.is_changed(field)) {
            return Vec::new();
        }
        let [from, to] =
            fields.map(|field| (layer.get(field).map_or_else(String::new, show), self.is_marked(field)));
        let label = (!label.is_empty()).then(|| (label.to_owned(), false));
        label.into_iter().chain([from, ("→".to_owned(), false), to]).collect()
    }
}

fn show(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn keep(lines: Vec<Vec<Piece>>) -> Cell {
    lines.into_iter().filter(|line| !line.is_empty()).collect()
}

/// The headers of tunnels and the link's addresses.
fn link_cell(hop: &Hop, is_first: bool) -> Cell {
    let mut lines = Vec::new();
    let layers =
        [("outer", &hop.headers.outer, "outer headers"), ("wrapper", &hop.headers.wrapper, "IP in IP")];
    for (name, layer, title) in layers {
        let Some(layer) = layer else {
            if hop.changed.iter().any(|changed| changed == name) {
                lines.push(vec![(format!("{title} removed"), true)]);
            }
            continue;
        };
        let shown = Shown::new(hop, name, is_first);
        lines.push(shown.ends(layer, "", ["source", "destination"]));
        let fields = [("ttl", "ttl"), ("len", "length"), ("sum", "checksum")];
        lines.push(fields.iter().filter_map(|(label, field)| shown.piece(layer, label, field)).collect());
        if layer.contains_key("source_port") {
            lines.push(shown.ends(layer, "udp", ["source_port", "destination_port"]));
        }
    }
    if let Some(vxlan) = &hop.headers.vxlan {
        let shown = Shown::new(hop, "vxlan", is_first);
        lines.push(shown.piece(vxlan, "vxlan", "vni").into_iter().collect());
        lines.extend(macs(&shown, vxlan));
    }
    if let Some(ethernet) = &hop.headers.ethernet {
        let shown = Shown::new(hop, "ethernet", is_first);
        lines.extend(macs(&shown, ethernet));
    }
    keep(lines)
}

/// A frame's two MACs, a line each, if either is shown.
fn macs(shown: &Shown<'_>, layer: &Layer) -> Vec<Vec<Piece>> {
    if !shown.whole && !shown.is_changed("source") && !shown.is_changed("destination") {
        return Vec::new();
    }
    let line = |(label, field): (&str, &str)| {
        let value = layer.get(field).map_or_else(String::new, show);
        let label = if label.is_empty() { value } else { format!("{label} {value}") };
        vec![(label, shown.is_marked(field))]
    };
    [("", "source"), ("→", "destination")].map(line).into()
}

fn inner_cell(hop: &Hop, is_first: bool) -> Cell {
    let mut lines = Vec::new();
    if let Some(arp) = &hop.headers.arp
        && is_first
    {
        let value = |field: &str| arp.get(field).map_or_else(String::new, show);
        lines.push(vec![(format!("who has {}?", value("target")), false)]);
        lines.push(vec![(format!("tell {}", value("sender")), false)]);
    }
    if let Some(inner) = &hop.headers.inner {
        let shown = Shown::new(hop, "inner", is_first);
        lines.push(shown.ends(inner, "", ["source", "destination"]));
        let fields = [("ttl", "ttl"), ("len", "length"), ("sum", "checksum")];
        lines.push(fields.iter().filter_map(|(label, field)| shown.piece(inner, label, field)).collect());
    }
    if let Some(transport) = &hop.headers.transport {
        let shown = Shown::new(hop, "transport", is_first);
        let protocol = transport.get("protocol").map_or_else(String::new, show);
        let mut line = if transport.contains_key("source_port") {
            shown.ends(transport, &protocol, ["source_port", "destination_port"])
        } else {
            shown.piece(transport, &protocol, "type").into_iter().collect()
        };
        let fields = [("", "flags"), ("code", "code"), ("id", "identifier"), ("sum", "checksum")];
        line.extend(fields.iter().filter_map(|(label, field)| shown.piece(transport, label, field)));
        if let Some((first, _)) = line.first_mut()
            && !first.starts_with(&protocol)
        {
            *first = format!("{protocol} {first}");
        }
        lines.push(line);
    }
    keep(lines)
}

fn write_cause(text: &mut String, cause: &Cause) {
    let indent = " ".repeat(COLUMNS[0]);
    let about = cause.object.as_ref().map_or(String::new(), |object| format!(": {object}"));
    let _ = writeln!(text, "{indent}✗ {}{about}", cause.reason);
    fill(text, &format!("{} {}", cause.meaning, cause.hint));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fit_their_column() {
        let cases = [
            (0, "0ns"),
            (999, "999ns"),
            (632_516, "632µs"),
            (1_828_660, "1.8ms"),
            (20_000_000, "20ms"),
            (120_400_000, "120ms"),
            (3_000_000_000, "3s"),
            (3_140_000_000, "3.1s"),
        ];
        for (nanos, expected) in cases {
            assert_eq!(rounded(nanos), expected);
        }
    }
}
