//! `flatnet doctor`: what of this host and of an etcd keeps nodes from reaching each other, and what to do about it.
//!
//! Its files: `etcd`, members and their clocks; `host`, ports, capabilities and devices; `path`, how long a packet to other nodes
//! may be. Invariants: nothing is changed, and nothing is claimed or written; what a node may lack is a note, and the exit code is 0
//! unless something is wrong.
//!
//! May depend on agents and engine. Read first: `docs/topology.md`, "Real nodes"; `docs/adr/0036-what-doctor-finds.md`.

mod etcd;

mod host;

mod path;

use std::process::ExitCode;

use serde::Serialize;

use crate::args;
use crate::output::{plain_table, print_as};

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Ok,
    /// Something that not every node needs is not there, or was not looked at.
    Note,
    /// Nodes will not work as they should.
    Wrong,
}

/// What was looked at.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    /// What kind of thing.
    check: &'static str,
    /// Which of them.
    about: String,
    /// How it is.
    verdict: Verdict,
    /// In words.
    text: String,
    /// What to do, where there is something.
    help: Option<String>,
}

impl Finding {
    fn new(check: &'static str, about: impl Into<String>, verdict: Verdict, text: impl Into<String>) -> Self {
        Self { check, about: about.into(), verdict, text: text.into(), help: None }
    }

    fn with_help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

/// Runs the command.
///
/// # Errors
/// The etcd's flags are not as they should be; standard output takes nothing.
pub fn run(arguments: &args::Doctor) -> miette::Result<ExitCode> {
    let (mut findings, cluster) = etcd::look(&arguments.etcd)?;
    findings.extend(host::look(cluster.backend_port));
    findings.extend(path::look(&cluster.peers));
    print_as(arguments.output, &findings[..], table)?;
    let is_wrong = findings.iter().any(|finding| finding.verdict == Verdict::Wrong);
    Ok(if is_wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A line for each, and below it what to do.
fn table(findings: &[Finding]) -> String {
    let mut table = plain_table(["CHECK", "OF", "IS", "WHAT"]);
    table.column_iter_mut().for_each(|column| column.set_cell_alignment(comfy_table::CellAlignment::Left));
    for Finding { check, about, verdict, text, .. } in findings {
        let verdict = format!("{verdict:?}").to_lowercase();
        table.add_row([(*check).to_owned(), about.clone(), verdict, text.clone()]);
    }
    let mut text = table.trim_fmt() + "\n";
    for Finding { check, about, verdict, help, .. } in findings {
        if let Some(help) = help.as_ref().filter(|_| *verdict == Verdict::Wrong) {
            text += &format!("\n{check} of {about}: {help}\n");
        }
    }
    text
}
