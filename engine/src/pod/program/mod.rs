//! Programs that run inside a pod: what `exec` starts, and what a client container runs.
//!
//! The pod makes a [`Program`] of its words and hands it events; it writes to its console and ends with an exit code.
//! Invariant: a program that ended does nothing any more. Allowed dependencies: `sockets`; one file per program.
//! Read first: `ping.rs`.

mod arguments;
mod console;
mod curl;
mod ip;
mod iperf;
mod nc;
mod ping;
mod probe;
mod response;
mod script;
mod shell;
mod statistics;
mod traceroute;

use super::socket::Event;
use super::sockets::Sockets;
use crate::clock::Instant;
use console::Console;
pub use probe::{Probe, ProbeError, ProbeOutcome, ProbeProtocol};
use std::net::Ipv4Addr;
use std::time::Duration;

/// The programs there are, for messages.
const NAMES: &str =
    "cat curl date echo env exit false hostname ip iperf nc ping sh sleep traceroute true wget";
/// Exit code of a program that does not exist.
const NOT_FOUND: i32 = 127;
/// Exit code of a program that was called wrongly.
const USAGE: i32 = 2;
/// Exit code of a program that a signal ended.
const INTERRUPTED: i32 = 130;

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
    Sleep(Instant),
    Probe(probe::Run),
    Shell(shell::Shell),
}

/// A program and its console.
#[derive(Debug)]
pub(super) struct Program {
    kind: Kind,
    console: Console,
}

impl Program {
    /// Makes a program of its words; it begins with [`Event::Start`].
    pub(super) fn new(argv: &[String]) -> Self {
        Program { kind: Kind::New(argv.to_vec()), console: Console::default() }
    }

    /// Makes the program of a probe.
    pub(super) fn probe(probe: Probe) -> Self {
        Program { kind: Kind::Probe(probe::Run::new(probe)), console: Console::default() }
    }

    /// Makes a program that ended before it began.
    pub(super) fn failed(message: &str, code: i32) -> Self {
        let mut program = Program { kind: Kind::Done, console: Console::default() };
        program.console.line(message);
        program.console.exit(code);
        program
    }

    /// Handles an event.
    pub(super) fn handle(&mut self, event: Event, sockets: &mut Sockets<'_, '_>) {
        let Program { kind, console } = self;
        if let Kind::New(argv) = kind {
            let argv = std::mem::take(argv);
            *kind = start(&argv, console, sockets);
        }
        match kind {
            Kind::New(_) | Kind::Done => {}
            Kind::Ping(ping) => ping.handle(event, console, sockets),
            Kind::Traceroute(traceroute) => traceroute.handle(event, console, sockets),
            Kind::Curl(curl) => curl.handle(event, console, sockets),
            Kind::Nc(nc) => nc.handle(event, console, sockets),
            Kind::Iperf(iperf) => iperf.handle(event, console, sockets),
            Kind::Sleep(until) if *until <= sockets.now => console.exit(0),
            Kind::Sleep(until) => sockets.wake_at(*until),
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
            | Kind::Sleep(_)
            | Kind::Probe(_)
            | Kind::Shell(_) => self.console.exit(INTERRUPTED),
        }
    }

    /// Gives the program more standard input.
    pub(super) fn input(&mut self, bytes: &[u8]) {
        self.console.push_input(bytes);
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
            | Kind::Sleep(_)
            | Kind::Shell(_) => None,
        }
    }
}

/// Begins the program that the words name; short ones end at once.
fn start(argv: &[String], console: &mut Console, sockets: &Sockets<'_, '_>) -> Kind {
    let Some((name, rest)) = argv.split_first() else {
        return fail(console, "nothing to run", NOT_FOUND);
    };
    let name = name.rsplit('/').next().unwrap_or(name);
    let kind = match name {
        "true" => return end(console, 0),
        "date" => {
            console.line(format!("{:.3} s", sockets.now.as_nanos() as f64 / 1e9));
            return end(console, 0);
        }
        "env" => {
            console.line(format!("HOSTNAME={}", sockets.pod.name));
            return end(console, 0);
        }
        "cat" if rest == ["/etc/hostname"] => {
            console.line(&sockets.pod.name);
            return end(console, 0);
        }
        "exit" => return end(console, rest.first().and_then(|code| code.parse().ok()).unwrap_or(0)),
        "false" => return end(console, 1),
        "echo" => {
            console.line(rest.join(" "));
            return end(console, 0);
        }
        "hostname" => {
            console.line(if rest.iter().any(|word| word == "-i" || word == "-I") {
                sockets.pod.address.to_string()
            } else {
                sockets.pod.name.clone()
            });
            return end(console, 0);
        }
        "ip" => {
            let code = ip::run(rest, console, sockets);
            return end(console, code);
        }
        "sleep" => sleep(rest, sockets.now).map(Kind::Sleep),
        "ping" => ping::Ping::new(rest).map(Kind::Ping),
        "traceroute" => traceroute::Traceroute::new(rest).map(Kind::Traceroute),
        "curl" => {
            return curl::Curl::new(rest).map_or_else(|(text, code)| fail(console, &text, code), Kind::Curl);
        }
        "wget" => return curl::wget(rest).map_or_else(|(text, code)| fail(console, &text, code), Kind::Curl),
        "sh" | "bash" | "ash" => shell::Shell::new(rest).map(Kind::Shell),
        "nc" => nc::Nc::new(rest).map(Kind::Nc),
        "iperf" => iperf::Iperf::new(rest).map(Kind::Iperf),
        _ => return fail(console, &format!("{name}: not found; there is: {NAMES}"), NOT_FOUND),
    };
    kind.unwrap_or_else(|problem| fail(console, &format!("{name}: {problem}"), USAGE))
}

fn end(console: &mut Console, code: i32) -> Kind {
    console.exit(code);
    Kind::Done
}

fn fail(console: &mut Console, message: &str, code: i32) -> Kind {
    console.line(message);
    end(console, code)
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

/// Reads a host: an address or `localhost`.
fn host(text: &str) -> Result<Ipv4Addr, String> {
    if text == "localhost" {
        return Ok(Ipv4Addr::LOCALHOST);
    }
    text.parse().map_err(|_| format!("{text}: Name or service not known"))
}
