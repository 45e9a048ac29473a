//! Golden rows: a topology, what its machines send, what they receive, and what every node counted.
//!
//! A row is run four ways, by one worker and by two, by the cached path and decided frame by frame; all must give
//! `data/ROW/out.pcapng` and `counters.json` to the byte. What one must see in them stands in `rows/` beside the rule: the
//! fields of every frame as tshark reads them, and every drop. tshark also judges each frame's form and checksums.
//! `UPDATE_GOLDEN=1 cargo test --test golden` writes the files anew; it cannot change what one must see. A row whose bytes
//! depend on the number of workers says why; machines, times, lengths and counters are then still the same.
//! `GOLDEN_ROW=NAME` runs only rows with that in their names.
//!
//! `in.pcapng` is made by pnet (`frames.rs`) and holds the machine's name as its interface's. Look at a row with
//! `tshark -r tests/golden/data/ROW/out.pcapng -d udp.port==8285,ip`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]
#![allow(unreachable_pub, reason = "the modules of one test")]

mod files;

mod frames;

mod network;

mod rows;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use frames::{Recorded, Script};
use network::{Counters, Network};

/// How long a row goes on after its last frame or deed.
const TAIL: Duration = Duration::from_secs(5);

/// A deed while a row runs: something outside the packets changes.
type Deed = fn(&mut Network);

/// A row.
struct Row {
    name: &'static str,
    /// What it shows, and whose rule that is.
    about: &'static str,
    /// A file in `topologies/`.
    topology: &'static str,
    /// Pods that are not silent: they run what the topology says.
    alive: &'static [&'static str],
    /// What happens before the recording.
    before: Deed,
    /// What the machines send.
    frames: fn(&mut Script),
    /// What happens meanwhile, by milliseconds after the beginning.
    deeds: &'static [(u64, Deed)],
    /// What tshark reads of every frame that is received.
    fields: &'static [&'static str],
    /// What it must read: the machine and the fields that a frame has, a line per frame; `3 x` before a line that comes
    /// three times in a row.
    seen: &'static [&'static str],
    /// All drops, by node.
    drops: &'static [(&'static str, &'static str, u64)],
    /// Frames that must arrive as damaged as they were sent.
    damaged: usize,
    /// Why two workers do not give the same as one, where they do not.
    differs: Option<&'static str>,
}

/// Addresses, ports and TTL; of an ICMP message the type and code, too, and what it quotes.
const FLOW: &[&str] = &[
    "ip.src",
    "udp.srcport",
    "tcp.srcport",
    "ip.dst",
    "udp.dstport",
    "tcp.dstport",
    "ip.ttl",
    "icmp.type",
    "icmp.code",
];

/// What most rows have.
const PLAIN: Row = Row {
    name: "",
    about: "",
    topology: "tour",
    alive: &[],
    before: |_| {},
    frames: |_| {},
    deeds: &[],
    fields: FLOW,
    seen: &[],
    drops: &[],
    damaged: 0,
    differs: None,
};

struct Outcome {
    received: Vec<Recorded>,
    counters: Counters,
}

fn run(row: &Row, sent: &[Recorded], workers: u16, decided: bool) -> Outcome {
    let mut network = Network::start(row.topology, workers, row.alive);
    (row.before)(&mut network);
    if decided {
        network.decide_always();
    }
    let before = network.begin();
    let mut deeds = row.deeds.iter().map(|&(at, deed)| (Duration::from_millis(at), deed)).peekable();
    for frame in sent {
        while let Some((at, deed)) = deeds.next_if(|(at, _)| *at <= frame.time) {
            network.pass_to(at);
            deed(&mut network);
        }
        network.pass_to(frame.time);
        network.send(&frame.machine, &frame.bytes);
    }
    for (at, deed) in deeds {
        network.pass_to(at);
        deed(&mut network);
    }
    network.pass(TAIL);
    let after = network.counters();
    let (mut received, ledger) = network.close();
    assert!(ledger.balances, "{}: {ledger:?}", row.name);
    received.sort_by(|one, other| (one.time, &one.machine).cmp(&(other.time, &other.machine)));
    Outcome { received, counters: difference(&before, &after) }
}

fn difference(before: &Counters, after: &Counters) -> Counters {
    let mut difference = Counters::new();
    for (node, counters) in after {
        let changed = counters.iter().map(|(name, count)| (name.clone(), count - before[node][name]));
        let changed: BTreeMap<_, _> = changed.filter(|(_, count)| *count > 0).collect();
        if !changed.is_empty() {
            difference.insert(node.clone(), changed);
        }
    }
    difference
}

/// Which of a row's fields some frame has.
type Used = Vec<bool>;

/// Runs a row all ways and holds it against its files; says what is wrong.
fn check(row: &Row) -> Result<Used, String> {
    let folder = folder(row);
    let (input, output, counters) =
        (folder.join("in.pcapng"), folder.join("out.pcapng"), folder.join("counters.json"));
    let mut script = Script::default();
    (row.frames)(&mut script);
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    if update {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(&input, files::written(&script.frames)).unwrap();
    }
    let sent = files::read(&input);
    if sent != script.frames {
        return Err("in.pcapng is not what the row's machines send".to_owned());
    }
    let first = run(row, &sent, 1, false);
    let text = serde_json::to_string_pretty(&first.counters).unwrap() + "\n";
    if update {
        std::fs::write(&output, files::written(&first.received)).unwrap();
        std::fs::write(&counters, &text).unwrap();
    }
    if std::fs::read(&output).unwrap_or_default() != files::written(&first.received) {
        return Err(explain(row, &files::read(&output), &first.received));
    }
    if std::fs::read_to_string(&counters).unwrap_or_default() != text {
        return Err(format!("counters.json has other counters than {text}"));
    }
    let used = judge(row, &output)?;
    let drops: Counters = row.drops.iter().fold(Counters::new(), |mut all, &(node, reason, count)| {
        all.entry(node.to_owned()).or_default().insert(reason.to_owned(), count);
        all
    });
    if dropped(&first.counters) != drops {
        let drops = dropped(&first.counters);
        let drops =
            drops.iter().flat_map(|(node, drops)| drops.iter().map(move |drop| (node, drop.0, drop.1)));
        return Err(format!("drops: &{:?},", drops.collect::<Vec<_>>()));
    }
    agree(row, &sent, &first)?;
    Ok(used)
}

/// The other three ways give the same.
fn agree(row: &Row, sent: &[Recorded], first: &Outcome) -> Result<(), String> {
    let (decided, two) = (run(row, sent, 1, true), run(row, sent, 2, false));
    let mut pairs = vec![("decided, not cached", first, &decided)];
    let two_decided = run(row, sent, 2, true);
    pairs.push(("two workers, decided", &two, &two_decided));
    if row.differs.is_none() {
        pairs.push(("two workers", first, &two));
    }
    for (way, one, other) in pairs {
        if one.received != other.received {
            return Err(format!("{way}: {}", explain(row, &one.received, &other.received)));
        }
        if one.counters != other.counters {
            return Err(format!("{way}: {:?} instead of {:?}", other.counters, one.counters));
        }
    }
    if row.differs.is_some() {
        if two.received == first.received {
            return Err("two workers give the same as one".to_owned());
        }
        if outline(&two.received) != outline(&first.received) || two.counters != first.counters {
            return Err("two workers: other frames or counters".to_owned());
        }
    }
    Ok(())
}

/// What is the same with any number of workers: who receives frames of which length, and when.
fn outline(frames: &[Recorded]) -> Vec<(Duration, &str, usize)> {
    frames.iter().map(|frame| (frame.time, frame.machine.as_str(), frame.bytes.len())).collect()
}

fn dropped(counters: &Counters) -> Counters {
    let is_drop =
        |name: &str| flatnet_engine::ledger::DropReason::ALL.iter().any(|reason| reason.name() == name);
    let mut drops = counters.clone();
    drops.values_mut().for_each(|node| node.retain(|name, _| is_drop(name)));
    drops.retain(|_, node| !node.is_empty());
    drops
}

/// Says where two recordings part, as tshark reads them.
fn explain(row: &Row, expected: &[Recorded], found: &[Recorded]) -> String {
    let lines = [expected, found].map(|frames| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), files::written(frames)).unwrap();
        read(row, file.path()).lines
    });
    let parting = expected.iter().zip(found).position(|(one, other)| one != other);
    let at = parting.unwrap_or(expected.len().min(found.len()));
    let line = |lines: &[String], frames: &[Recorded]| match (lines.get(at), frames.get(at)) {
        (Some(line), Some(frame)) => format!("{line} at {:?}: {:02x?}", frame.time, frame.bytes),
        _ => "nothing".to_owned(),
    };
    format!("frame {} is\n  {}\nnot\n  {}", at + 1, line(&lines[1], found), line(&lines[0], expected))
}

/// What is wrong with a frame's form or checksums, as tshark sees it.
const FAULTS: [&str; 5] = [
    "_ws.malformed",
    "ip.checksum.status",
    "udp.checksum.status",
    "tcp.checksum.status",
    "icmp.checksum.status",
];

/// What tshark reads.
struct Reading {
    /// One per frame.
    lines: Vec<String>,
    /// How many have faults.
    faults: usize,
    used: Used,
}

/// Reads a recording with tshark.
fn read(row: &Row, file: &Path) -> Reading {
    let mut command = Command::new("tshark");
    command.args(["-r", &file.display().to_string(), "-T", "fields", "-d", "udp.port==8285,ip"]);
    // What we send in UDP and TCP is nothing of theirs, even on port 53.
    for payload in ["udp.port==1-8284,data", "udp.port==8286-65535,data", "tcp.port==1-65535,data"] {
        command.args(["-d", payload]);
    }
    for option in ["ip.check_checksum:TRUE", "udp.check_checksum:TRUE", "tcp.check_checksum:TRUE"] {
        command.args(["-o", option]);
    }
    for field in ["frame.interface_name"].iter().chain(row.fields).chain(&FAULTS) {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark is installed by scripts/test");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut reading = Reading { lines: Vec::new(), faults: 0, used: vec![false; row.fields.len()] };
    for line in text.lines() {
        let values: Vec<&str> = line.split('\t').collect();
        let (shown, judged) = values.split_at(1 + row.fields.len());
        let is_bad = |status: &&str| status.split(',').any(|one| one == "0");
        reading.faults += usize::from(!judged[0].is_empty() || judged[1..].iter().any(is_bad));
        reading
            .lines
            .push(shown.iter().copied().filter(|value| !value.is_empty()).collect::<Vec<_>>().join(" "));
        reading.used.iter_mut().zip(&shown[1..]).for_each(|(used, value)| *used |= !value.is_empty());
    }
    reading
}

/// Holds a recording against what one must see in it.
fn judge(row: &Row, output: &Path) -> Result<Used, String> {
    let Reading { lines, faults, used } = read(row, output);
    let expected: Vec<&str> = row
        .seen
        .iter()
        .flat_map(|line| match line.split_once(" x ") {
            Some((times, line)) => vec![line; times.parse().unwrap()],
            None => vec![*line],
        })
        .collect();
    if lines != expected {
        let mut text = "tshark sees\n".to_owned();
        for some in lines.chunk_by(|one, other| one == other) {
            let times = if some.len() > 1 { format!("{} x ", some.len()) } else { String::new() };
            let _ = writeln!(text, "            \"{times}{}\",", some[0]);
        }
        return Err(text);
    }
    match faults == row.damaged {
        true => Ok(used),
        false => Err(format!("tshark finds {faults} frames malformed or with wrong checksums")),
    }
}

fn folder(row: &Row) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data").join(row.name)
}

#[test]
fn every_row_comes_out_as_it_is_written_by_both_paths_and_any_workers() {
    let rows = rows::all();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let wanted = std::env::var("GOLDEN_ROW").unwrap_or_default();
    let failed = std::sync::Mutex::new(Vec::new());
    let used = std::sync::Mutex::new(BTreeMap::<_, Used>::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from).min(8) {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    if !row.name.contains(&wanted) {
                        continue;
                    }
                    match check(row) {
                        Ok(fields) => {
                            let mut used = used.lock().unwrap();
                            let list = used.entry(row.fields).or_insert_with(|| vec![false; fields.len()]);
                            list.iter_mut().zip(fields).for_each(|(used, field)| *used |= field);
                        }
                        Err(problem) => {
                            failed.lock().unwrap().push(format!("{} ({}): {problem}", row.name, row.about));
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    // Rows share lists of fields: each field is there for one of them at least.
    if wanted.is_empty() {
        let lists = used.into_inner().unwrap();
        let idle: Vec<String> = lists
            .into_iter()
            .filter(|(_, used)| used.contains(&false))
            .map(|(fields, used)| {
                let idle: Vec<_> = fields.iter().zip(used).filter(|(_, used)| !used).map(|it| it.0).collect();
                format!("{idle:?} of {fields:?}")
            })
            .collect();
        assert!(idle.is_empty(), "no frame has {}", idle.join(", nor "));
    }
}

#[test]
fn every_folder_is_a_rows_and_every_row_has_frames_of_its_own() {
    let mut names: Vec<String> = rows::all().iter().map(|row| row.name.to_owned()).collect();
    names.sort();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data");
    let mut folders: Vec<String> = std::fs::read_dir(data)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort();
    assert_eq!(names, folders);
    assert!(rows::all().iter().all(|row| !row.about.is_empty()));
}
