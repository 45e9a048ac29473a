//! How commands print: tables for people, JSON for programs, both to standard output.
//!
//! Invariant: a reader who has seen enough (`| head`) is no error.
//!
//! May depend on comfy-table, serde_json, miette, textwrap. Read first: [`crate::args::Output`].

use std::io::{self, Write as _};

use comfy_table::{CellAlignment, Table, presets};
use miette::{IntoDiagnostic, WrapErr};
use textwrap::{WordSeparator, WordSplitter};

use crate::args::Output;

/// Has errors and warnings wrapped between words only, so that names and paths can be copied.
///
/// # Errors
/// It was said before how they are printed.
pub fn keep_names_whole() -> Result<(), miette::InstallError> {
    miette::set_hook(Box::new(|_| {
        let options = miette::MietteHandlerOpts::new()
            .break_words(false)
            .word_separator(WordSeparator::AsciiSpace)
            .word_splitter(WordSplitter::NoHyphenation);
        Box::new(options.build())
    }))
}

/// Prints a text as it is.
///
/// # Errors
/// Standard output takes nothing, other than because nobody reads any more.
pub fn print(text: &str) -> miette::Result<()> {
    print_bytes(text.as_bytes())
}

/// Prints what may be no text.
///
/// # Errors
/// As [`print()`].
pub fn print_bytes(bytes: &[u8]) -> miette::Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.into_diagnostic().wrap_err("standard output cannot be written"),
    }
}

/// Prints anything for programs.
///
/// # Errors
/// As [`print()`]; or it has no form in JSON.
pub fn print_json(value: &(impl serde::Serialize + ?Sized)) -> miette::Result<()> {
    print(&(serde_json::to_string_pretty(value).into_diagnostic()? + "\n"))
}

/// Prints a value as it was asked for: as people read it, or for programs.
///
/// # Errors
/// As [`print_json()`].
pub fn print_as<T: serde::Serialize + ?Sized>(
    output: Output,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> miette::Result<()> {
    match output {
        Output::Json => print_json(value),
        Output::Table => print(&text(value)),
    }
}

/// Makes a table without lines: its first column is left, the others right.
pub fn plain_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
