//! Any text as topology files: a topology, or at least one error; each finding lies inside its file and can be printed.
#![no_main]

#[path = "../../src"]
#[allow(dead_code, unused_imports, reason = "commands use the rest")]
mod source {
    pub mod impairment;
    pub mod topology;
}

use libfuzzer_sys::{Corpus, fuzz_target};
use miette::{GraphicalReportHandler, GraphicalTheme};
use source::{impairment, topology};
use std::path::PathBuf;
use topology::{Finding, Findings};

/// Parts one file from the next: YAML has no place for it.
const NEXT_FILE: char = '\0';
/// Files at most.
const FILES: usize = 3;

fuzz_target!(|data: &[u8]| -> Corpus {
    // What is no text is refused before.
    let Ok(text) = std::str::from_utf8(data) else { return Corpus::Reject };
    let texts = text.splitn(FILES, NEXT_FILE);
    let files: Vec<(PathBuf, String)> =
        texts.enumerate().map(|(number, text)| (format!("{number}.yaml").into(), text.into())).collect();
    let read = [topology::parse(&files).map(|(_, warnings)| warnings), {
        topology::parse_manifests(&files).map(|(_, warnings)| warnings)
    }];
    for result in read {
        let (errors, warnings) = match result {
            Ok(warnings) => (Vec::new(), warnings),
            Err(Findings { errors, warnings }) => {
                assert!(!errors.is_empty(), "refused, but nothing is wrong");
                (errors, warnings)
            }
        };
        assert!(errors.iter().all(Finding::is_error) && !warnings.iter().any(Finding::is_error));
        errors.iter().chain(&warnings).for_each(|finding| check_place(finding, &files));
        print(Findings { errors, warnings });
    }
    Corpus::Keep
});

fn check_place(finding: &Finding, files: &[(PathBuf, String)]) {
    let place = finding.place();
    let (_, text) = files.iter().find(|(path, _)| path == place.file()).expect("one of the files");
    assert!(text.get(place.range()).is_some(), "{finding:?} is outside of {} bytes", text.len());
    let line = text.split('\n').nth(place.line() - 1).expect("one of the lines");
    assert!((1..=line.chars().count() + 1).contains(&place.column()), "{finding:?} is outside its line");
    assert!(!finding.to_string().is_empty());
}

/// As the command line prints it.
fn print(findings: Findings) {
    let mut text = String::new();
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(100);
    handler.render_report(&mut text, &findings).expect("a string takes everything");
    assert!(!text.is_empty());
}
