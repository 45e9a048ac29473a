//! The commands of `README.md`, run as they stand there, and what they print.
//!
//! Every line `$ …` of a ```` ```console ```` block runs in a shell, in order, in one folder that has the repository's
//! `scripts` and is the runtime directory, too; `cargo run --release --` stands for the binary under test. What follows it, up to the next `$ `
//! or the block's end, is its whole output: `...` alone on a line stands for any lines, inside a line for any text.
//! `UPDATE_DOCS=1` writes outputs anew where nothing is elided. Why not a crate: `docs/adr/0010-own-readme-test.md`.

#![expect(clippy::unwrap_used, reason = "the exemption for tests does not reach their helpers")]

use std::path::Path;
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn commands_print_what_the_readme_shows() {
    let file = Path::new(ROOT).join("README.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let home = std::env::temp_dir().join(format!("flatnet-readme-{}", std::process::id()));
    std::fs::create_dir_all(&home).unwrap();
    std::os::unix::fs::symlink(Path::new(ROOT).join("scripts"), home.join("scripts")).unwrap();
    let (mut written, mut wrong, mut ran) = (String::new(), Vec::new(), 0);
    let mut lines = text.lines().enumerate().peekable();
    let mut console = false;
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    while let Some((number, line)) = lines.next() {
        written += &format!("{line}\n");
        if line.starts_with("```") {
            console = line == "```console";
        }
        let Some(command) = line.strip_prefix("$ ").filter(|_| console) else { continue };
        let mut expected = Vec::new();
        while let Some((_, line)) =
            lines.next_if(|(_, line)| !line.starts_with("$ ") && !line.starts_with("```"))
        {
            expected.push(line);
        }
        let output = run(command, &home);
        let found: Vec<_> = output.lines().map(str::trim_end).collect();
        let elided = expected.iter().any(|line| line.contains("..."));
        if !lines_match(&expected, &found) && (elided || !update) {
            wrong.push(format!("README.md:{}: {command}\n{output}", number + 1));
        }
        for line in if elided { &expected } else { &found } {
            written += &format!("{line}\n");
        }
        ran += 1;
    }
    std::fs::remove_dir_all(&home).unwrap();
    if update {
        std::fs::write(&file, written).unwrap();
    }
    assert!(ran > 0, "README.md has no commands");
    assert!(wrong.is_empty(), "these print something else now:\n\n{}", wrong.join("\n"));
}

#[test]
fn topologies_of_the_readme_are_files_that_can_be_used() {
    let text = std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let files: Vec<_> = std::fs::read_dir(Path::new(ROOT).join("scripts/topologies"))
        .unwrap()
        .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    for block in text.split("```yaml\n").skip(1) {
        let block = block.split("```").next().unwrap();
        assert!(files.iter().any(|file| file.contains(block)), "in no file of scripts/topologies:\n{block}");
    }
}

/// Runs a command as a reader would; returns what both outputs show.
fn run(command: &str, home: &Path) -> String {
    let flatnet = Path::new(env!("CARGO_BIN_EXE_flatnet"));
    let command = command.replace("cargo run --release --", "flatnet");
    let path = format!("{}:{}", flatnet.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let output = Command::new("sh")
        .args(["-c", &format!("exec 2>&1\n{command}")])
        .current_dir(home)
        .env("PATH", path)
        .env("XDG_RUNTIME_DIR", home)
        .env("XDG_STATE_HOME", home)
        .env("LC_ALL", "C.UTF-8")
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn lines_match(expected: &[&str], found: &[&str]) -> bool {
    match expected.split_first() {
        None => found.is_empty(),
        Some((&"...", rest)) => (0..=found.len()).any(|skipped| lines_match(rest, &found[skipped..])),
        Some((line, rest)) => found
            .split_first()
            .is_some_and(|(first, found)| line_matches(line.trim_end(), first) && lines_match(rest, found)),
    }
}

/// Compares a line in which `...` stands for any text.
fn line_matches(expected: &str, found: &str) -> bool {
    let Some((start, rest)) = expected.split_once("...") else { return expected == found };
    found.strip_prefix(start).is_some_and(|found| {
        found
            .char_indices()
            .map(|(index, _)| index)
            .chain([found.len()])
            .any(|index| line_matches(rest, &found[index..]))
    })
}
