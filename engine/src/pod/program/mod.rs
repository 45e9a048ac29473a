//! Programs that run inside a pod: what `exec` starts, and what a client container runs.
//!
//! The pod makes a [`Program`] of its words and hands it events; it writes to its console and ends with an exit code.
//! Invariant: a program that ended does nothing any more. Allowed dependencies: `sockets`; one file per program.
//! Read first: `ping.rs`.

mod arguments;
mod cat;
mod console;
mod curl;
mod files;
mod ip;
mod iperf;
mod names;
mod nc;
mod ping;
mod probe;
mod response;
mod script;
mod shell;
mod statistics;
mod traceroute;
mod url;
mod wget;

use super::socket::Event;
use super::sockets::Sockets;
use crate::clock::Instant;
pub(super) use console::Console;
use names::Names;
pub use probe::{Probe, ProbeError, ProbeOutcome, ProbeProtocol};
use std::net::Ipv4Addr;
use std::time::Duration;

/// The programs there are, for messages.
const NAMES: &str = "cat curl date echo env exit false hostname ip iperf ls mkdir nc nslookup ping rm sh sleep touch traceroute true wget";
/// Exit code of a program that does not exist.
const NOT_FOUND: i32 = 127;
/// Exit code of a program that was called wrongly.
const USAGE: i32 = 2;
/// Exit code of a program that a signal ended.
const INTERRUPTED: i32 = 130;

/// How long a program that does not have to wait rests between its turns.
const REST: Duration = Duration::from_millis(1);

/// What runs.
#[derive(Debug)]
enum Kind {
    /// Not begun.
    New(Vec<String>),
    /// Ended.
    Done,
    Ping(ping::Ping),
    Traceroute(traceroute::Traceroute),
    Curl(curl::Curl),
    Nc(nc::Nc),
    Iperf(iperf::Iperf),
    Nslookup(names::Lookup),
    Sleep(Instant),
    Cat(cat::Cat),
    Probe(probe::Run),
    Shell(shell::Shell),
}

/// A program and its console.
#[derive(Debug)]
pub(super) struct Program {
    kind: Kind,
    console: Console,
    names: Names,
}

impl Program {
    /// Makes a program of its words; it begins with [`Event::Start`].
    pub(super) fn new(argv: &[String]) -> Self {
        Program { kind: Kind::New(argv.to_vec()), console: Console::default(), names: Names::default() }
    }

    /// Has its output kept for somebody who takes it, and it wait for that one.
    pub(super) fn with_reader(mut self) -> Self {
        self.console.await_reader();
        self
    }

    /// Says whether it waits until its output is taken.
    pub(super) fn is_full(&self) -> bool {
        self.console.is_full()
    }

    /// Makes the program of a probe.
    pub(super) fn probe(probe: Probe) -> Self {
        Program {
            kind: Kind::Probe(probe::Run::new(probe)),
            console: Console::default(),
            names: Names::default(),
        }
    }

    /// Makes a program that ended before it began.
    pub(super) fn failed(message: &str, code: i32) -> Self {
        let mut program = Program { kind: Kind::Done, console: Console::default(), names: Names::default() };
        program.console.line(message);
        program.console.exit(code);
        program
    }

    /// Handles an event.
    pub(super) fn handle(&mut self, event: Event, sockets: &mut Sockets<'_, '_>) {
        let Program { kind, console, names } = self;
        let mut event = event;
        while let Kind::New(argv) = kind {
            if names.poll(sockets) {
                return;
            }
            event = Event::Start;
            match start(argv, names, console, sockets) {
                Err(_) if names.is_waiting() => {}
                Ok(started) => *kind = started,
                Err((problem, code)) => {
                    console.line(problem);
                    console.exit(code);
                    *kind = Kind::Done;
                }
            }
        }
        match kind {
            Kind::New(_) | Kind::Done => {}
            Kind::Ping(ping) => ping.handle(event, console, sockets),
            Kind::Traceroute(traceroute) => traceroute.handle(event, console, sockets),
            Kind::Curl(curl) => curl.handle(event, console, sockets),
            Kind::Nc(nc) => nc.handle(event, console, sockets),
            Kind::Iperf(iperf) => iperf.handle(event, console, sockets),
            Kind::Nslookup(lookup) => lookup.handle(console, sockets),
            Kind::Sleep(until) if *until <= sockets.now => console.exit(0),
            Kind::Sleep(until) => sockets.wake_at(*until),
            Kind::Cat(cat) => cat.handle(console, sockets),
            Kind::Probe(run) => run.handle(event, console, sockets),
            Kind::Shell(shell) => shell.handle(event, console, sockets),
        }
    }

    /// Ends the program as a signal does; `ping` and `iperf` say what they know.
    pub(super) fn interrupt(&mut self, now: Instant) {
        if self.console.exit_code().is_some() {
            return;
        }
        match &mut self.kind {
            Kind::Ping(ping) => ping.finish(&mut self.console, now),
            Kind::New(_)
            | Kind::Done
            | Kind::Traceroute(_)
            | Kind::Curl(_)
            | Kind::Nc(_)
            | Kind::Iperf(_)
            | Kind::Nslookup(_)
            | Kind::Sleep(_)
            | Kind::Cat(_)
            | Kind::Probe(_)
            | Kind::Shell(_) => self.console.exit(INTERRUPTED),
        }
    }

    /// Gives the program more standard input.
    pub(super) fn input(&mut self, bytes: &[u8]) {
        if self.exit_code().is_none() {
            self.console.push_input(bytes);
        }
    }

    /// Says whether more standard input should be given now: one that ended throws it away.
    pub(super) fn wants_input(&self) -> bool {
        self.exit_code().is_some() || self.console.wants_input()
    }

    /// Ends the standard input.
    pub(super) fn close_input(&mut self) {
        self.console.close_input();
    }

    /// Takes what was written so far.
    pub(super) fn take_output(&mut self) -> Vec<u8> {
        self.console.take_output()
    }

    /// Returns how it ended, if it did.
    pub(super) fn exit_code(&self) -> Option<i32> {
        self.console.exit_code()
    }

    /// Returns what a probe found.
    pub(super) fn probe_outcome(&self) -> Option<ProbeOutcome> {
        match &self.kind {
            Kind::Probe(run) => run.outcome(),
            Kind::New(_)
            | Kind::Done
            | Kind::Ping(_)
            | Kind::Traceroute(_)
            | Kind::Curl(_)
            | Kind::Nc(_)
            | Kind::Iperf(_)
            | Kind::Nslookup(_)
            | Kind::Sleep(_)
            | Kind::Cat(_)
            | Kind::Shell(_) => None,
        }
    }
}

/// Begins the program that the words name.
///
/// # Errors
/// What is wrong with the words, and the exit code for that.
fn start(
    argv: &[String],
    names: &mut Names,
    console: &mut Console,
    sockets: &mut Sockets<'_, '_>,
) -> Result<Kind, (String, i32)> {
    let Some((name, rest)) = argv.split_first() else {
        return Err((String::from("nothing to run"), NOT_FOUND));
    };
    let name = name.rsplit('/').next().unwrap_or(name);
    if let Some(code) = run_short(name, rest, console, sockets) {
        console.exit(code);
        return Ok(Kind::Done);
    }
    let pod = sockets.pod;
    let mut find = |host: &str| names.find(host, pod);
    let kind = match name {
        "cat" => cat::Cat::new(rest).map(Kind::Cat),
        "sleep" => sleep(rest, sockets.now).map(Kind::Sleep),
        "ping" => ping::Ping::new(rest, &mut find).map(Kind::Ping),
        "traceroute" => traceroute::Traceroute::new(rest, &mut find).map(Kind::Traceroute),
        "curl" => return curl::Curl::new(rest, &mut find).map(Kind::Curl),
        "wget" => return wget::new(rest, &mut find).map(Kind::Curl),
        "sh" | "bash" | "ash" => shell::Shell::new(rest).map(Kind::Shell),
        "nc" => nc::Nc::new(rest, &mut find).map(Kind::Nc),
        "iperf" => iperf::Iperf::new(rest, &mut find).map(Kind::Iperf),
        "nslookup" => names::Lookup::new(rest, pod).map(Kind::Nslookup),
        _ => return Err((format!("{name}: not found; there is: {NAMES}"), NOT_FOUND)),
    };
    kind.map_err(|problem| (format!("{name}: {problem}"), USAGE))
}

/// Finds a host's address or says what libc says.
type Find<'a> = dyn FnMut(&str) -> Result<Ipv4Addr, String> + 'a;

/// Runs a program that ends at once and returns its exit code; `None` when the name is none of theirs.
fn run_short(
    name: &str,
    rest: &[String],
    console: &mut Console,
    sockets: &mut Sockets<'_, '_>,
) -> Option<i32> {
    let pod = sockets.pod;
    match name {
        "true" => {}
        "false" => return Some(1),
        "exit" => return Some(rest.first().and_then(|code| code.parse().ok()).unwrap_or(0)),
        "echo" => console.line(rest.join(" ")),
        "date" => console.line(format!("{:.3} s", sockets.now.as_nanos() as f64 / 1e9)),
        "env" => console.line(format!("HOSTNAME={}", pod.name)),
        "hostname" if rest.iter().any(|word| word == "-i" || word == "-I") => {
            console.line(pod.address.to_string())
        }
        "hostname" => console.line(&pod.name),
        "ip" => return Some(ip::run(rest, console, sockets)),
        _ => return files::run(name, rest, console, sockets),
    }
    Some(0)
}

fn sleep(words: &[String], now: Instant) -> Result<Instant, String> {
    let mut total = Duration::ZERO;
    for word in words {
        if word == "infinity" {
            return Ok(Instant::from_nanos(u64::MAX));
        }
        let (number, unit) = match word.strip_suffix(['s', 'm', 'h', 'd']) {
            Some(number) => (number, &word[number.len()..]),
            None => (word.as_str(), "s"),
        };
        let factor = match unit {
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => 1.0,
        };
        let seconds: f64 = number.parse().map_err(|_| format!("invalid time interval {word:?}"))?;
        total += Duration::try_from_secs_f64(seconds * factor)
            .map_err(|_| format!("invalid time interval {word:?}"))?;
    }
    if words.is_empty() { Err(String::from("missing operand")) } else { Ok(now + total) }
}
