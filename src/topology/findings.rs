//! What is wrong with a file, and exactly where.
//!
//! Every reader of topology and manifests reports findings; the command line prints them all at once.
//!
//! Invariants: a finding has a file, a line and a column; findings print in the order of the files and their lines.
//!
//! May depend on `miette` and `thiserror`.
//!
//! Read first: the `Diagnostic` trait of `miette`.

use std::{
    collections::HashSet,
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use miette::{Diagnostic, LabeledSpan, NamedSource, Severity, SourceCode};
use thiserror::Error;

/// A file's name and text.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    named: NamedSource<Arc<str>>,
    /// Where each line begins, in bytes.
    lines: Vec<usize>,
}

impl Source {
    pub(crate) fn new(path: PathBuf, text: String) -> Arc<Self> {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let named = NamedSource::new(path.display().to_string(), Arc::from(text)).with_language("YAML");
        Arc::new(Self { path, named, lines })
    }

    pub(crate) fn text(&self) -> &str {
        self.named.inner()
    }

    /// Makes a place from a byte range.
    pub(crate) fn place(self: &Arc<Self>, range: Range<usize>) -> Place {
        Place { source: Arc::clone(self), range }
    }

    /// Finds the byte offset of a line and a column in characters, both from 1.
    pub(crate) fn offset(&self, line: usize, column: usize) -> usize {
        let start = self.lines.get(line.saturating_sub(1)).copied().unwrap_or(self.text().len());
        let rest = self.text().get(start..).unwrap_or_default();
        rest.char_indices().nth(column.saturating_sub(1)).map_or(self.text().len(), |(at, _)| start + at)
    }
}

/// A part of a file.
#[derive(Clone)]
pub struct Place {
    source: Arc<Source>,
    range: Range<usize>,
}

impl Place {
    /// Gives the file.
    pub fn file(&self) -> &Path {
        &self.source.path
    }

    /// Gives the line, from 1.
    pub fn line(&self) -> usize {
        self.source.lines.partition_point(|&start| start <= self.range.start)
    }

    /// Gives the column in characters, from 1.
    pub fn column(&self) -> usize {
        let start = self.source.lines.get(self.line().saturating_sub(1)).copied().unwrap_or_default();
        self.source.text().get(start..self.range.start).map_or(1, |before| before.chars().count() + 1)
    }

    /// Says whether it is the very same part of the same file.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.source, &other.source) && self.range == other.range
    }

    /// Gives the range in bytes.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file().display(), self.line(), self.column())
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One thing that is wrong or doubtful, at its place.
#[derive(Clone, Debug, Error)]
#[error("{message}")]
pub struct Finding {
    message: String,
    help: Option<String>,
    place: Place,
    /// Another place that belongs to it, e.g. where a name was first used.
    other: Option<(String, Place)>,
    severity: Severity,
}

/// A finding that does not keep the network from coming up.
pub type Warning = Finding;

impl Finding {
    pub(crate) fn error(place: Place, message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, place, other: None, severity: Severity::Error }
    }

    pub(crate) fn warning(place: Place, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(place, message) }
    }

    /// Says what to do.
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Shows another place.
    pub(crate) fn with(mut self, label: impl Into<String>, place: Place) -> Self {
        self.other = Some((label.into(), place));
        self
    }

    /// Gives the place.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Gives what to do about it, if that is known.
    pub fn advice(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// Says whether it is an error; else it is a warning.
    pub fn is_error(&self) -> bool {
        matches!(self.severity, Severity::Error)
    }
}

impl Diagnostic for Finding {
    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.place.source.named)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let here = LabeledSpan::new_primary_with_span(None, self.place.range());
        // A label can only show the same file; another file is named in words.
        let other = self.other.as_ref().map(|(label, place)| {
            if Arc::ptr_eq(&place.source, &self.place.source) {
                LabeledSpan::new_with_span(Some(label.clone()), place.range())
            } else {
                LabeledSpan::new_with_span(Some(format!("{label}: {place}")), self.place.range())
            }
        });
        Some(Box::new(std::iter::once(here).chain(other)))
    }
}

/// Lists names, each once: a name that is used twice is another finding's matter.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut seen = HashSet::new();
    let once: Vec<&str> = names.into_iter().filter(|name| seen.insert(*name)).collect();
    once.join(", ")
}

/// All that is wrong with some files.
#[derive(Debug, Error)]
#[error("{}", summary(errors.len(), warnings.len()))]
pub struct Findings {
    /// What must be changed, in the order of files and lines; at least one.
    pub errors: Vec<Finding>,
    /// What is doubtful, in the same order.
    pub warnings: Vec<Warning>,
}

impl Diagnostic for Findings {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.errors.iter().chain(&self.warnings).map(|finding| finding as &dyn Diagnostic)))
    }
}

/// Puts findings into the order of the files, then of their lines.
pub(crate) fn sort(findings: &mut [Finding], files: &[Arc<Source>]) {
    let index = |finding: &Finding| files.iter().position(|file| Arc::ptr_eq(file, &finding.place.source));
    findings.sort_by_key(|finding| (index(finding), finding.place.range.start, finding.message.clone()));
}

fn summary(errors: usize, warnings: usize) -> String {
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    match warnings {
        0 => count(errors, "error"),
        _ => format!("{} and {}", count(errors, "error"), count(warnings, "warning")),
    }
}
