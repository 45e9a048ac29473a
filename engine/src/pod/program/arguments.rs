//! Options as POSIX programs take them.
//!
//! Each program names its letters; `-c3`, `-c 3` and `-nq` are understood. Invariant: an unknown option is an error.
//! Depends on nothing. Read first: POSIX, utility syntax guidelines.

use std::str::FromStr;
use std::time::Duration;

/// The options and operands of a program.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    options: Vec<(char, String)>,
    /// What is no option.
    pub(super) operands: Vec<String>,
}

impl Arguments {
    /// Sorts words into options and operands: letters of `flags` stand alone, those of `valued` take a value.
    pub(super) fn parse(words: &[String], flags: &str, valued: &str) -> Result<Self, String> {
        let mut arguments = Arguments::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
                arguments.operands.push(word.clone());
                continue;
            };
            let mut rest = letters.chars();
            while let Some(letter) = rest.next() {
                if flags.contains(letter) {
                    arguments.options.push((letter, String::new()));
                } else if valued.contains(letter) {
                    let attached: String = rest.by_ref().collect();
                    let value = if attached.is_empty() {
                        words.next().cloned().ok_or_else(|| format!("option -{letter} needs a value"))?
                    } else {
                        attached
                    };
                    arguments.options.push((letter, value));
                } else {
                    return Err(format!("unknown option -{letter}"));
                }
            }
        }
        Ok(arguments)
    }

    /// Says whether an option was given.
    pub(super) fn has(&self, letter: char) -> bool {
        self.options.iter().any(|&(option, _)| option == letter)
    }

    /// Returns an option's value, the last one when it was given twice.
    pub(super) fn value<T: FromStr>(&self, letter: char) -> Result<Option<T>, String> {
        let last = self.options.iter().rev().find(|&&(option, _)| option == letter);
        last.map(|(_, text)| text.parse().map_err(|_| format!("invalid value {text:?} for -{letter}")))
            .transpose()
    }

    /// Returns all values of an option that may be given several times.
    pub(super) fn values(&self, letter: char) -> impl Iterator<Item = &str> {
        self.options.iter().filter(move |&&(option, _)| option == letter).map(|(_, text)| text.as_str())
    }

    /// Returns an option's value as a time in seconds.
    pub(super) fn seconds(&self, letter: char) -> Result<Option<Duration>, String> {
        let seconds: Option<f64> = self.value(letter)?;
        seconds
            .map(|seconds| {
                Duration::try_from_secs_f64(seconds)
                    .map_err(|_| format!("invalid time {seconds} for -{letter}"))
            })
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_stand_alone_together_or_with_their_values() {
        let words: Vec<String> = ["-nq", "-c3", "-i", "0.5", "10.1.1.1"].map(String::from).to_vec();
        let arguments = Arguments::parse(&words, "nq", "ci").unwrap();
        assert!(arguments.has('n') && arguments.has('q') && !arguments.has('x'));
        assert_eq!(arguments.value::<u32>('c'), Ok(Some(3)));
        assert_eq!(arguments.seconds('i'), Ok(Some(Duration::from_millis(500))));
        assert_eq!(arguments.operands, ["10.1.1.1"]);
        assert!(Arguments::parse(&words, "n", "c").is_err());
        assert!(Arguments::parse(&words[2..3], "", "i").is_err());
    }
}
