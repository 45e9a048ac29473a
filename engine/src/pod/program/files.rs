//! `ls`, `mkdir`, `rm` and `touch`: what containers do with their files.
//!
//! `mod.rs` calls them; each ends at once. Invariant: nothing is read or written but by the container's own view of its files.
//! Depends on `files`. Read first: POSIX, utilities of these names.

use super::super::files::FileError;
use super::super::sockets::Sockets;
use super::USAGE;
use super::arguments::Arguments;
use super::console::Console;

/// Runs one of them and returns its exit code; `None` when the name is none of theirs.
pub(super) fn run(
    name: &str,
    words: &[String],
    console: &mut Console,
    sockets: &mut Sockets<'_, '_>,
) -> Option<i32> {
    let flags = match name {
        "ls" => "1aAl",
        "mkdir" => "p",
        "rm" => "rRf",
        "touch" => "c",
        _ => return None,
    };
    let arguments = match Arguments::parse(words, flags, "") {
        Ok(arguments) => arguments,
        Err(problem) => {
            console.line(format!("{name}: {problem}"));
            return Some(USAGE);
        }
    };
    let mut operands = arguments.operands.clone();
    if operands.is_empty() && name == "ls" {
        operands.push(String::from("/"));
    }
    let mut code = 0;
    for path in &operands {
        let done = match name {
            "ls" => sockets.files.list(path).map(|names| names.iter().for_each(|name| console.line(name))),
            "mkdir" => sockets.files.make_directory(path, arguments.has('p')),
            "rm" => {
                let recursive = arguments.has('r') || arguments.has('R');
                let forced = arguments.has('f');
                let removed = sockets.files.remove(path, recursive);
                if forced && removed == Err(FileError::NotFound) { Ok(()) } else { removed }
            }
            _ => sockets.files.write(path, &[], true),
        };
        if let Err(error) = done {
            console.line(format!("{name}: {path}: {}", error.text()));
            code = 1;
        }
    }
    Some(code)
}
