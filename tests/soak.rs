//! Everything through all six ways at once, over links that do their worst: what arrives is what was sent, and no frame
//! and no buffer is missing afterwards.
//!
//! `FLATNET_SOAK_BYTES` says how many octets go there by all ways together; as many come back (`scripts/test --long`
//! sends 4 GB). What comes back is held against what was sent octet by octet. In virtual time: a seed does the same anywhere.

#![expect(clippy::unwrap_used, reason = "the exemption for tests does not reach their helpers")]

use std::path::PathBuf;
use std::time::Duration;

use flatnet::check;
use flatnet::drive::Drive;
use flatnet::topology::{self, TimeMode};
use flatnet::views::LedgerReport;
use flatnet_engine::pod::{Pod, ProbeProtocol, ProgramId, ProgramOutput};
use flatnet_engine::random::Random;
use flatnet_engine::tables::PortId;
use flatnet_engine::worker::Worker;

/// Octets that go there unless `FLATNET_SOAK_BYTES` says otherwise.
const BYTES: u64 = 6_000_000;
/// Of 8 octets one goes by UDP.
const UDP_SHARE: u64 = 8;
/// Octets of a stream that are not back yet, at most.
const IN_FLIGHT: u64 = 256 * 1024;
/// Datagrams: one that fits a frame, and one that goes in six fragments and is as long as `nc` makes them.
const DATAGRAMS: [usize; 2] = [1_024, 8_192];
/// Octets of datagrams sent in one round; less than a queue of a pod takes.
const BURST: u64 = 128 * 1024;
/// Virtual time between two looks: longer than any way there and back.
const ROUND: Duration = Duration::from_millis(50);
/// Rounds without an octet after which a stream stands still: longer than the longest retransmission timeout.
const STANDSTILL: u32 = 3_000;
/// After it no fragment, no neighbour and no TIME-WAIT holds a frame.
const QUIET: Duration = Duration::from_secs(300);
/// What every link does. Damage is so rare that hardly a frame is damaged twice: two bits can leave a checksum right, and
/// TCP has no better one.
const WORST: &str = "delay: 1ms, jitter: 300us, loss: 0.1%, duplicate: 0.1%, reorder: 0.1%, corrupt: 0.01%";
/// The quantile of the normal distribution that leaves 0.1 % outside.
const QUANTILE: f64 = 3.29;
/// The links that the six ways take; `lo` is none.
const LINKS: [(&str, &str); 9] = [
    ("node-1", "node-2"),
    ("node-1", "user"),
    ("node-1", "isp"),
    ("isp", "internet"),
    ("web-app-1", "node-1"),
    ("web-app-2", "node-1"),
    ("web-app-3", "node-2"),
    ("backend", "node-2"),
    ("node-2", "user"),
];

/// What a transfer sends: octets that a number decides, a word at a time.
#[derive(Debug, Clone)]
struct Content(Random);

impl Content {
    fn take(&mut self, length: usize) -> Vec<u8> {
        assert!(length.is_multiple_of(8), "whole words");
        (0..length / 8).flat_map(|_| self.0.next_u64().to_be_bytes()).collect()
    }

    /// The datagram of a number, which it begins with.
    fn datagram(seed: u64, number: u64, length: usize) -> Vec<u8> {
        let mut bytes = number.to_be_bytes().to_vec();
        bytes.extend(Self(Random::new(seed).fork(number)).take(length - 8));
        bytes
    }
}

/// What goes there and comes back.
enum Load {
    /// A stream: what came back so far, not yet a whole word, and what must come next.
    Stream { sends: Content, expects: Content, rest: Vec<u8> },
    /// Datagrams of one length: those that came back, one bit each, so that a second one is known.
    Datagrams { seed: u64, length: usize, back: Vec<bool>, twice: u64, rest: Vec<u8> },
}

/// One way, one protocol.
struct Transfer {
    name: String,
    worker: u8,
    port: PortId,
    program: ProgramId,
    load: Load,
    total: u64,
    sent: u64,
    back: u64,
    idle: u32,
    exit_code: Option<i32>,
}

impl Transfer {
    fn start(drive: &mut Drive, way: &check::Check, load: Load, total: u64) -> Self {
        let place = drive.network.publisher.place(&way.from).unwrap().clone();
        let udp = way.protocol == ProbeProtocol::Udp;
        let words = if udp { &["nc", "-u"][..] } else { &["nc"] };
        let mut words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        words.extend([way.destination.to_string(), way.port.to_string()]);
        let (worker, port) = (place.worker, place.port);
        let exec = move |worker: &mut Worker| worker.with_pod(port, |pod, now| pod.exec(&words, now));
        let program = drive.ask(worker, exec).unwrap().unwrap();
        let kind = match &load {
            Load::Stream { .. } => String::from("tcp"),
            Load::Datagrams { length, .. } => format!("udp {length}"),
        };
        let name = format!("{} {kind}", way.path.name());
        Self { name, worker, port, program, load, total, sent: 0, back: 0, idle: 0, exit_code: None }
    }

    fn is_stream(&self) -> bool {
        matches!(self.load, Load::Stream { .. })
    }

    /// Nothing more is to come: a stream has ended in order, the datagrams are all sent and were waited for.
    fn is_done(&self) -> bool {
        if self.is_stream() { self.exit_code.is_some() } else { self.sent == self.total && self.idle > 2 }
    }

    /// What is to be sent in this round, in pieces that `nc` takes one by one.
    fn next(&mut self) -> Vec<Vec<u8>> {
        let left = self.total - self.sent;
        let pieces: Vec<Vec<u8>> = match &mut self.load {
            Load::Stream { sends, .. } => {
                let room = IN_FLIGHT.saturating_sub(self.sent - self.back).min(left) as usize / 8 * 8;
                if room == 0 { Vec::new() } else { vec![sends.take(room)] }
            }
            Load::Datagrams { seed, length, .. } => {
                let first = self.sent / *length as u64;
                let count = BURST.min(left) / *length as u64;
                (first..first + count).map(|number| Content::datagram(*seed, number, *length)).collect()
            }
        };
        self.sent += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        pieces
    }

    /// Looks at what came back; all of it must be what was sent.
    fn compare(&mut self, bytes: &[u8]) {
        self.idle = if bytes.is_empty() { self.idle + 1 } else { 0 };
        match &mut self.load {
            Load::Stream { expects, rest, .. } => {
                rest.extend(bytes);
                let whole = rest.len() / 8 * 8;
                let expected = expects.take(whole);
                assert!(rest[..whole] == expected[..], "{}: other octets after {}", self.name, self.back);
                rest.drain(..whole);
                self.back += whole as u64;
            }
            Load::Datagrams { seed, length, back, twice, rest } => {
                rest.extend(bytes);
                while rest.len() >= *length {
                    let datagram: Vec<u8> = rest.drain(..*length).collect();
                    let number = u64::from_be_bytes(datagram[..8].try_into().unwrap());
                    assert!(
                        datagram == Content::datagram(*seed, number, *length),
                        "{}: another datagram {number}",
                        self.name
                    );
                    let seen = &mut back[usize::try_from(number).unwrap()];
                    *twice += u64::from(std::mem::replace(seen, true));
                    self.back += *length as u64;
                }
            }
        }
    }

    fn round(&mut self, drive: &mut Drive) {
        if self.is_done() {
            return;
        }
        for piece in self.next() {
            // A batch for each, so that `nc` makes a datagram of it.
            self.visit(drive, move |pod, program| pod.input(program, &piece));
        }
        if self.is_stream() && self.sent == self.total {
            self.visit(drive, Pod::close_input);
        }
        let ProgramOutput { bytes, exit_code } = self.visit(drive, Pod::output);
        self.exit_code = exit_code;
        self.compare(&bytes);
        assert!(self.idle < STANDSTILL, "{}: {} of {} are back", self.name, self.back, self.total);
    }

    fn visit<R: Send + 'static>(
        &self,
        drive: &mut Drive,
        visit: impl FnOnce(&mut Pod, ProgramId) -> R + Send + 'static,
    ) -> R {
        let (port, program) = (self.port, self.program);
        let visit = move |worker: &mut Worker| worker.with_pod(port, move |pod, _| visit(pod, program));
        drive.ask(self.worker, visit).unwrap().unwrap()
    }

    /// Prints a row.
    fn print(&self) {
        let fate = match &self.load {
            Load::Stream { .. } => String::new(),
            Load::Datagrams { twice, .. } => format!("{:>7.2} % lost, {twice} twice", 100.0 * self.lost()),
        };
        println!("{:34} {:>13} {:>13} {fate}", self.name, self.sent, self.back);
    }

    /// The share of datagrams that did not come back.
    fn lost(&self) -> f64 {
        let Load::Datagrams { back, .. } = &self.load else { return 0.0 };
        back.iter().filter(|&&seen| !seen).count() as f64 / back.len() as f64
    }

    /// What must hold at the end.
    fn check(&self) {
        match &self.load {
            Load::Stream { rest, .. } => {
                assert_eq!(
                    (self.exit_code, rest.len(), self.back),
                    (Some(0), 0, self.total),
                    "{}",
                    self.name
                );
            }
            Load::Datagrams { back, twice, length, .. } => {
                assert_eq!(self.exit_code, None, "{}: it ended by itself", self.name);
                // At most eight links there and back, each of which loses or damages one frame of 500 and doubles one of
                // 1,000.
                let frames = length.div_ceil(1_400) as f64;
                let limit = |expected: f64| {
                    let count = back.len() as f64;
                    expected + QUANTILE * (expected * (1.0 - expected) / count).sqrt() + 1.0 / count
                };
                let (lost, twice) = (self.lost(), *twice as f64 / back.len() as f64);
                assert!(lost <= limit(1.0 - 0.998_f64.powf(8.0 * frames)), "{}: {lost} lost", self.name);
                assert!(twice <= limit(0.008), "{}: {twice} came twice", self.name);
            }
        }
    }
}

fn topology() -> topology::Topology {
    let text = include_str!("../scripts/topologies/two-nodes.yaml");
    let links: Vec<String> =
        LINKS.iter().map(|(near, far)| format!("    - {{between: [{near}, {far}], {WORST}}}\n")).collect();
    let text = text.replace("seed: 7\n", &format!("seed: 7\n  links:\n{}", links.concat()));
    topology::parse(&[(PathBuf::from("soak.yaml"), text)]).unwrap().0
}

fn transfers(drive: &mut Drive, topology: &topology::Topology, bytes: u64) -> Vec<Transfer> {
    let plan = check::plan(topology, drive);
    let mut transfers = Vec::new();
    // Everybody, each of the Service's three backends too, has found their neighbours before the first datagram, which
    // would wait for an answer in a short queue.
    let streams: Vec<_> = plan.iter().filter(|way| way.protocol == ProbeProtocol::Tcp).collect();
    for way in streams.repeat(3) {
        assert_eq!(check::run(drive, way).unwrap().verdict, check::Verdict::Ok, "{way:?}");
    }
    for way in plan.iter().filter(|way| way.protocol != ProbeProtocol::IcmpEcho) {
        let seed = transfers.len() as u64 + 1;
        let by_way = bytes / 6;
        if way.protocol == ProbeProtocol::Tcp {
            let sends = Content(Random::new(seed));
            let load = Load::Stream { expects: sends.clone(), sends, rest: Vec::new() };
            let total = (by_way - by_way / UDP_SHARE).next_multiple_of(8);
            transfers.push(Transfer::start(drive, way, load, total));
        } else {
            for (number, length) in (seed..).zip(DATAGRAMS) {
                let count = (by_way / UDP_SHARE / 2).div_ceil(length as u64);
                let back = vec![false; usize::try_from(count).unwrap()];
                let load = Load::Datagrams { seed: number, length, back, twice: 0, rest: Vec::new() };
                transfers.push(Transfer::start(drive, way, load, count * length as u64));
            }
        }
    }
    transfers
}

#[test]
fn everything_arrives_by_all_six_ways_over_links_that_do_their_worst() {
    let bytes = std::env::var("FLATNET_SOAK_BYTES").map_or(BYTES, |text| text.parse().unwrap());
    let topology = topology();
    let mut drive = Drive::start(&topology, TimeMode::Virtual).unwrap();
    let mut transfers = transfers(&mut drive, &topology, bytes);
    assert_eq!(transfers.len(), 18, "six ways, by TCP and by UDP in two lengths");
    let started = std::time::Instant::now();
    while transfers.iter().any(|transfer| !transfer.is_done()) {
        transfers.iter_mut().for_each(|transfer| transfer.round(&mut drive));
        drive.wait_for(ROUND, |_| None::<()>);
    }
    let (took, passed) = (started.elapsed(), drive.now());
    println!("{:34} {:>13} {:>13}", "way", "octets there", "and back");
    transfers.iter().for_each(Transfer::print);
    let [sent, back] =
        [|it: &Transfer| it.sent, |it: &Transfer| it.back].map(|of| transfers.iter().map(of).sum::<u64>());
    println!("{:34} {sent:>13} {back:>13}", "all");
    drive.wait_for(QUIET, |_| None::<()>);
    let report = flatnet::ledger::close(drive);
    print!("{}", flatnet::ledger::table(&report));
    let seconds = took.as_secs_f64();
    println!(
        "{:.0} s, {:.0} MB a second; virtual time {passed:?}",
        seconds,
        (sent + back) as f64 / 1e6 / seconds
    );
    transfers.iter().for_each(Transfer::check);
    check_ledger(&report);
}

fn check_ledger(report: &LedgerReport) {
    assert!(report.balances);
    assert_eq!(report.buffers.held, 0, "all buffers are back");
    assert_eq!(report.nodes.iter().map(|row| row.held).sum::<u64>(), 0);
}
