//! `sh -c`: a small shell, so that containers of tutorials run as they stand.
//!
//! It knows lists (`;`, `&&`, `||`, newlines), `while`, `until`, `if` and `for` over words, quotes, `$HOSTNAME`, `$?` and redirections of output; `script.rs`
//! turns the text into instructions, this file runs them, one program at a time.
//!
//! Invariants: at most [`BURST`] instructions and about [`FULL`] octets an event, so that an endless loop stops nobody else; what a
//! program says is neither lost nor kept here, and nothing runs while nobody takes it; the programs' sockets end with them. Depends on `sockets`. Read first: POSIX, shell command language, section 2.9.

use super::super::socket::Event;
use super::super::sockets::Sockets;
use super::console::{Console, FULL};
use super::script::{self, Instruction, Output};
use super::{Program, REST};

/// Instructions of one event.
const BURST: usize = 256;

/// A running shell.
#[derive(Debug)]
pub(super) struct Shell {
    instructions: Vec<Instruction>,
    next: usize,
    status: i32,
    current: Option<Box<Program>>,
    output: Output,
    /// Whether some of the running program's output could not be stored.
    has_failed: bool,
    /// Octets that the present event's programs wrote.
    written: usize,
}

impl Shell {
    /// Makes a shell of its words.
    ///
    /// # Errors
    /// What is wrong with them or with the script.
    pub(super) fn new(words: &[String]) -> Result<Self, String> {
        let flags = words.iter().take_while(|word| word.starts_with('-'));
        if !flags.clone().any(|flag| flag.contains('c')) {
            return Err(String::from("only sh -c SCRIPT is understood"));
        }
        let script = words.get(flags.count()).ok_or("-c needs a script")?;
        let instructions = script::compile(script)?;
        Ok(Shell {
            instructions,
            next: 0,
            status: 0,
            current: None,
            output: Output::default(),
            written: 0,
            has_failed: false,
        })
    }

    /// Handles an event.
    pub(super) fn handle(&mut self, event: Event, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        self.written = 0;
        self.feed(event, console, sockets);
        for _ in 0..BURST {
            if self.current.is_some() || console.is_full() {
                return;
            }
            if self.written >= FULL {
                break;
            }
            let Some(instruction) = self.instructions.get(self.next).cloned() else {
                console.exit(self.status);
                return;
            };
            self.next += 1;
            match instruction {
                Instruction::Jump(to) => self.next = to,
                Instruction::JumpIfFailed(to) if self.status != 0 => self.next = to,
                Instruction::JumpIfDone(to) if self.status == 0 => self.next = to,
                Instruction::JumpIfFailed(_) | Instruction::JumpIfDone(_) => {}
                Instruction::Clear => self.status = 0,
                Instruction::Run { words, output } => {
                    if !self.run(&words, output, console, sockets) {
                        return;
                    }
                }
            }
        }
        sockets.wake_after(REST);
    }

    /// Starts a program; false when the shell ends.
    fn run(
        &mut self,
        words: &[String],
        output: Output,
        console: &mut Console,
        sockets: &mut Sockets<'_, '_>,
    ) -> bool {
        let words: Vec<String> = words.iter().map(|word| expand(word, self.status, sockets)).collect();
        match words.first().map(String::as_str) {
            Some("exit") => {
                console.exit(words.get(1).and_then(|code| code.parse().ok()).unwrap_or(self.status));
                return false;
            }
            Some(":" | "cd" | "set" | "export" | "trap" | "wait") if output == Output::Console => {
                self.status = 0;
            }
            Some(":" | "cd" | "set" | "export" | "trap" | "wait") => {
                self.begin(&[String::from("true")], output, console, sockets)
            }
            Some("exec") => self.begin(&words[1..], output, console, sockets),
            Some(_) => self.begin(&words, output, console, sockets),
            None if output != Output::Console => {
                self.begin(&[String::from("true")], output, console, sockets)
            }
            None => {}
        }
        true
    }

    fn begin(
        &mut self,
        words: &[String],
        output: Output,
        console: &mut Console,
        sockets: &mut Sockets<'_, '_>,
    ) {
        (self.output, self.has_failed) = (output, false);
        if let Output::File { path, append } = &mut self.output {
            *path = expand(path, self.status, sockets);
            if let Err(error) = sockets.files.write(path, &[], *append) {
                console.line(format!("sh: can't create {path}: {}", error.text()));
                self.status = 1;
                return;
            }
        }
        self.current = Some(Box::new(Program::new(words).with_reader()));
        self.feed(Event::Start, console, sockets);
    }

    /// Hands an event to the running program and takes what it wrote. The program has the shell's input for that time, so that what it
    /// leaves is for the next one.
    fn feed(&mut self, event: Event, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        let Some(program) = &mut self.current else { return };
        program.console.is_held = self.output == Output::Console && console.is_full();
        program.console.swap_input(console);
        program.handle(event, sockets);
        program.console.swap_input(console);
        let was_full = program.is_full();
        let written = program.take_output();
        self.written += written.len();
        let failed = match &self.output {
            Output::Console => {
                console.write(&written);
                None
            }
            Output::File { path, .. } if !written.is_empty() => {
                sockets.files.write(path, &written, true).err()
            }
            Output::Nowhere | Output::File { .. } => None,
        };
        let code = program.exit_code();
        if let Some(error) = failed {
            console.line(format!("sh: write error: {}", error.text()));
            (self.output, self.has_failed) = (Output::Nowhere, true);
        }
        if let Some(code) = code {
            self.status = if self.has_failed { 1 } else { code };
            self.current = None;
            sockets.close_all();
        } else if was_full && !console.is_full() {
            // It stopped for the sake of others alone.
            sockets.wake_after(REST);
        }
    }
}

/// Puts values in place of the few variables that there are.
fn expand(word: &str, status: i32, sockets: &Sockets<'_, '_>) -> String {
    let name = &sockets.pod.name;
    let mut text = word.replace("$?", &status.to_string());
    for variable in ["${HOSTNAME}", "$HOSTNAME", "$(hostname)", "`hostname`"] {
        text = text.replace(variable, name);
    }
    text.replace("$(hostname -i)", &sockets.pod.address.to_string())
}
