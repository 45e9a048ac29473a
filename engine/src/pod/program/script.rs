//! Shell scripts as instructions.
//!
//! `shell.rs` runs what this makes of a text. Invariants: every jump stays inside the instructions or just behind them; at most
//! [`LIMIT`] instructions; what is not understood is an error that says so.
//! Depends on nothing. Read first: POSIX, shell command language, section 2.10.

/// Instructions of one script.
const LIMIT: usize = 10_000;
/// Blocks within blocks.
const DEPTH: usize = 32;

/// One step of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Instruction {
    /// Run a program.
    Run {
        /// Its words.
        words: Vec<String>,
        /// Where its output goes.
        output: Output,
    },
    /// Go on there.
    Jump(usize),
    /// Go on there when the last program failed.
    JumpIfFailed(usize),
    /// Go on there when it succeeded.
    JumpIfDone(usize),
    /// Count the last program as successful.
    Clear,
}

/// Where a program's output goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Output {
    /// To the console.
    #[default]
    Console,
    /// Nowhere: `/dev/null`.
    Nowhere,
    /// Into a file, anew or at its end.
    File {
        /// The file.
        path: String,
        /// Whether what is there stays.
        append: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    End,
    And,
    Or,
    Redirect(Output),
}

/// Turns a script into instructions.
///
/// # Errors
/// What is not understood.
pub(super) fn compile(script: &str) -> Result<Vec<Instruction>, String> {
    let tokens = tokens(script)?;
    let mut compiler = Compiler { tokens: &tokens, at: 0, depth: 0, instructions: Vec::new() };
    compiler.list(&[])?;
    match compiler.tokens.get(compiler.at) {
        Some(token) => Err(format!("syntax error near {token:?}")),
        None => Ok(compiler.instructions),
    }
}

fn tokens(script: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = script.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\'' | '"' => {
                let text = word.get_or_insert_default();
                loop {
                    match characters.next() {
                        None => return Err(String::from("unterminated quote")),
                        Some(end) if end == character => break,
                        Some('\\') if character == '"' => text.extend(characters.next()),
                        Some(other) => text.push(other),
                    }
                }
            }
            '\\' => word.get_or_insert_default().extend(characters.next().filter(|&next| next != '\n')),
            '$' if characters.peek() == Some(&'(') => {
                let text = word.get_or_insert_default();
                text.push('$');
                for next in characters.by_ref() {
                    text.push(next);
                    if next == ')' {
                        break;
                    }
                }
            }
            '#' if word.is_none() => while characters.next_if(|&next| next != '\n').is_some() {},
            '>' => {
                // A number before it names the stream; only standard output matters here.
                let stream = word.take_if(|text| text == "1" || text == "2");
                finish(&mut word, &mut tokens);
                let append = characters.next_if_eq(&'>').is_some();
                let is_stream = characters.next_if_eq(&'&').is_some();
                let target = redirect_target(&mut characters)?;
                if stream.as_deref() != Some("2") && !is_stream {
                    tokens.push(Token::Redirect(match target.as_str() {
                        "/dev/null" => Output::Nowhere,
                        "/dev/stdout" | "/dev/stderr" => Output::Console,
                        _ => Output::File { path: target, append },
                    }));
                }
            }
            ' ' | '\t' => finish(&mut word, &mut tokens),
            ';' | '\n' | '\r' => {
                finish(&mut word, &mut tokens);
                tokens.push(Token::End);
            }
            '&' | '|' if characters.next_if_eq(&character).is_some() => {
                finish(&mut word, &mut tokens);
                tokens.push(if character == '&' { Token::And } else { Token::Or });
            }
            '&' | '|' | '<' | '(' | ')' => return Err(format!("{character} is not understood")),
            other => word.get_or_insert_default().push(other),
        }
    }
    finish(&mut word, &mut tokens);
    Ok(tokens)
}

/// Reads the word behind `>`.
fn redirect_target(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<String, String> {
    while characters.next_if(|&next| next == ' ').is_some() {}
    let mut target = String::new();
    while let Some(next) = characters.next_if(|next| !next.is_whitespace() && !";&|".contains(*next)) {
        match next {
            '\'' | '"' => loop {
                match characters.next() {
                    None => return Err(String::from("unterminated quote")),
                    Some(end) if end == next => break,
                    Some(other) => target.push(other),
                }
            },
            other => target.push(other),
        }
    }
    if target.is_empty() { Err(String::from("> needs a file")) } else { Ok(target) }
}

fn finish(word: &mut Option<String>, tokens: &mut Vec<Token>) {
    tokens.extend(word.take().map(Token::Word));
}

struct Compiler<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
    instructions: Vec<Instruction>,
}

impl Compiler<'_> {
    /// Commands up to one of the words `ends`, which stays.
    fn list(&mut self, ends: &[&str]) -> Result<(), String> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(String::from("too many blocks within blocks"));
        }
        loop {
            while self.tokens.get(self.at) == Some(&Token::End) {
                self.at += 1;
            }
            match self.tokens.get(self.at) {
                None if ends.is_empty() => break,
                None => return Err(format!("{} is missing", ends.join(" or "))),
                Some(Token::Word(word)) if ends.contains(&word.as_str()) => break,
                Some(_) => self.chain()?,
            }
            if self.instructions.len() > LIMIT {
                return Err(String::from("the script is too long"));
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Commands joined by `&&` and `||`.
    fn chain(&mut self) -> Result<(), String> {
        self.command()?;
        loop {
            let jump = match self.tokens.get(self.at) {
                Some(Token::And) => Instruction::JumpIfFailed,
                Some(Token::Or) => Instruction::JumpIfDone,
                Some(Token::Word(_) | Token::End | Token::Redirect(_)) | None => return Ok(()),
            };
            self.at += 1;
            while self.tokens.get(self.at) == Some(&Token::End) {
                self.at += 1;
            }
            let from = self.reserve();
            self.command()?;
            self.instructions[from] = jump(self.instructions.len());
        }
    }

    fn command(&mut self) -> Result<(), String> {
        let Some(Token::Word(word)) = self.tokens.get(self.at) else {
            return Err(String::from("a command is missing"));
        };
        match word.as_str() {
            "while" => self.repeat(Instruction::JumpIfFailed),
            "until" => self.repeat(Instruction::JumpIfDone),
            "if" => self.condition(),
            "for" => self.each(),
            "do" | "done" | "then" | "else" | "elif" | "fi" => Err(format!("unexpected {word}")),
            _ => {
                self.simple();
                Ok(())
            }
        }
    }

    fn simple(&mut self) {
        let (mut words, mut output) = (Vec::new(), Output::default());
        loop {
            match self.tokens.get(self.at) {
                Some(Token::Word(word)) => words.push(word.clone()),
                Some(Token::Redirect(to)) => output = to.clone(),
                Some(Token::End | Token::And | Token::Or) | None => break,
            }
            self.at += 1;
        }
        self.instructions.push(Instruction::Run { words, output });
    }

    fn repeat(&mut self, leave: fn(usize) -> Instruction) -> Result<(), String> {
        self.at += 1;
        let start = self.instructions.len();
        self.list(&["do"])?;
        self.at += 1;
        let exit = self.reserve();
        self.list(&["done"])?;
        self.at += 1;
        self.instructions.push(Instruction::Jump(start));
        self.instructions[exit] = leave(self.instructions.len());
        self.instructions.push(Instruction::Clear);
        Ok(())
    }

    fn condition(&mut self) -> Result<(), String> {
        self.at += 1;
        self.list(&["then"])?;
        self.at += 1;
        let otherwise = self.reserve();
        self.list(&["else", "fi"])?;
        let end = self.reserve();
        self.instructions[otherwise] = Instruction::JumpIfFailed(self.instructions.len());
        if self.tokens.get(self.at) == Some(&Token::Word("else".into())) {
            self.at += 1;
            self.list(&["fi"])?;
        } else {
            self.instructions.push(Instruction::Clear);
        }
        self.at += 1;
        self.instructions[end] = Instruction::Jump(self.instructions.len());
        Ok(())
    }

    /// A loop over words is its body once for each.
    fn each(&mut self) -> Result<(), String> {
        let header = self.tokens.get(self.at + 1..self.at + 3);
        let Some([Token::Word(variable), Token::Word(keyword)]) = header else {
            return Err(String::from("for needs: for NAME in WORDS; do COMMANDS; done"));
        };
        if keyword != "in" {
            return Err(String::from("for needs: for NAME in WORDS; do COMMANDS; done"));
        }
        self.at += 3;
        let mut values = Vec::new();
        while let Some(Token::Word(word)) = self.tokens.get(self.at) {
            values.push(word.clone());
            self.at += 1;
        }
        while self.tokens.get(self.at) == Some(&Token::End) {
            self.at += 1;
        }
        if self.tokens.get(self.at) != Some(&Token::Word("do".into())) {
            return Err(String::from("do is missing"));
        }
        self.at += 1;
        let body = self.at;
        let forms = [format!("${{{variable}}}"), format!("${variable}")];
        for value in &values {
            self.at = body;
            let from = self.instructions.len();
            self.list(&["done"])?;
            for instruction in &mut self.instructions[from..] {
                if let Instruction::Run { words, output } = instruction {
                    let file = match output {
                        Output::File { path, .. } => Some(path),
                        Output::Console | Output::Nowhere => None,
                    };
                    for word in words.iter_mut().chain(file) {
                        *word = word.replace(&forms[0], value).replace(&forms[1], value);
                    }
                }
            }
        }
        if values.is_empty() {
            let from = self.instructions.len();
            self.list(&["done"])?;
            self.instructions.truncate(from);
        }
        self.at += 1;
        Ok(())
    }

    fn reserve(&mut self) -> usize {
        self.instructions.push(Instruction::Clear);
        self.instructions.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_understood_is_said() {
        for (script, problem) in [
            ("echo 'a", "unterminated quote"),
            ("a | b", "| is not understood"),
            ("while true; do x", "done is missing"),
            ("done", "unexpected done"),
            ("a && ", "a command is missing"),
            ("a > ", "> needs a file"),
        ] {
            assert_eq!(compile(script), Err(problem.into()), "{script}");
        }
    }

    #[test]
    fn output_goes_where_the_last_redirection_says() {
        let file = |path: &str, append| Output::File { path: path.into(), append };
        for (script, output) in [
            ("a", Output::Console),
            ("a >/dev/null 2>&1", Output::Nowhere),
            ("a > /b", file("/b", false)),
            ("a 1>>/b", file("/b", true)),
            ("a 2>/dev/null", Output::Console),
            ("a >&2", Output::Console),
            ("a > '/b c'", file("/b c", false)),
        ] {
            let words = vec![String::from("a")];
            assert_eq!(compile(script), Ok(vec![Instruction::Run { words, output }]), "{script}");
        }
    }

    proptest! {
        #[test]
        fn jumps_stay_inside(script in "(a|b|if|then|else|fi|while|do|done|for x in 1 2|;|&&|\\|\\||>|'| ){0,40}") {
            if let Ok(instructions) = compile(&script) {
                for instruction in &instructions {
                    match instruction {
                        Instruction::Jump(to) | Instruction::JumpIfFailed(to) | Instruction::JumpIfDone(to) => {
                            prop_assert!(*to <= instructions.len());
                        }
                        Instruction::Run { .. } | Instruction::Clear => {}
                    }
                }
            }
        }
    }
}
