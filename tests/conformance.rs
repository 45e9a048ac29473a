//! `docs/conformance.md` lists the tests that hold a rule from elsewhere, by the rule. `UPDATE_DOCS=1` writes it.
//!
//! A test names its rule in its doc comment, a row of a table in its own name: an RFC, an IEEE standard, or what Linux,
//! LVS, Kubernetes and etcd do.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const HEAD: &str = "# Conformance\n\n\
Written by `UPDATE_DOCS=1 cargo test --test conformance`, checked by every test run. Each row is a test, or a row of a table in a\n\
test, that fails when the rule is broken. What differs from Linux on purpose is in [linux.md](linux.md).\n\n\
| rule | case | where |\n| --- | --- | --- |\n";

/// What begins the name of a rule.
const SOURCES: [&str; 9] =
    ["RFC ", "IEEE 802", "LVS", "ip_vs", "nf_conntrack", "Kubernetes", "kube-proxy", "CERT CA-", "etcd API"];

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    rule: String,
    case: String,
    file: String,
}

#[test]
fn the_page_of_rules_names_every_test_that_holds_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut rows = BTreeSet::new();
    for folder in ["proxy", "engine", "agents", "src", "tests"] {
        for file in sources(&root.join(folder)) {
            let text = std::fs::read_to_string(&file).unwrap();
            let name = file.strip_prefix(root).unwrap().display().to_string();
            collect(&name, tests_of(&name, &text), &mut rows);
        }
    }
    assert!(rows.len() >= 150, "{} cases name their rule", rows.len());
    let mut page = HEAD.to_owned();
    for Row { rule, case, file } in &rows {
        let _ = writeln!(page, "| {rule} | {case} | `{file}` |");
    }
    let path = root.join("docs/conformance.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page, "docs/conformance.md is old: UPDATE_DOCS=1 cargo test --test conformance");
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !path.ends_with("conformance.rs")
        {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The part of a file that is tests.
fn tests_of<'a>(name: &str, text: &'a str) -> &'a str {
    if name.contains("tests") || name.ends_with("store/history.rs") {
        return text;
    }
    text.find("#[cfg(test)]\nmod tests").map_or("", |start| &text[start..])
}

fn collect(file: &str, text: &str, rows: &mut BTreeSet<Row>) {
    let mut doc = String::new();
    let (mut is_test, mut is_ignored, mut before) = (false, false, "");
    // Whether the lines are of a test that does not run.
    let mut is_skipped = false;
    for line in text.lines().map(str::trim) {
        if let Some(more) = line.strip_prefix("///") {
            doc += more;
        } else if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]");
            is_ignored |= line.starts_with("#[ignore");
        } else {
            let name = line.split("fn ").nth(1).and_then(|rest| rest.split(['(', '<']).next());
            if name.is_some() {
                is_skipped = is_ignored;
            }
            if let Some(name) = name.filter(|_| is_test && !is_skipped && !rules(&doc).is_empty()) {
                let case = name.replace('_', " ");
                rows.insert(Row { rule: rules(&doc).join("; "), case, file: file.into() });
            }
            (doc, is_test, is_ignored) = (String::new(), false, false);
            let named = row_names(before, line).filter(|name| !is_skipped && !rules(name).is_empty());
            rows.extend(named.map(|name| {
                let (rule, case) = (rules(name).join("; "), name.replace('|', "\\|"));
                Row { rule, case, file: file.into() }
            }));
            before = line;
        }
    }
}

/// Finds the literals of a line that are names of rows: a golden row says what it is about, an oracle's is a `case`, any other
/// table's is a tuple that begins with its name. What else is written in a test, as why a row differs, is none.
fn row_names<'a>(before: &str, line: &'a str) -> impl Iterator<Item = &'a str> {
    let mut left = before;
    let mut parts = line.split('"');
    std::iter::from_fn(move || {
        loop {
            let ahead = parts.next()?.trim();
            let literal = parts.next()?;
            let ahead = if ahead.is_empty() { left } else { ahead };
            left = "";
            let tuple = ahead.strip_suffix('(').is_some_and(|callee| {
                !callee.ends_with(|last: char| last.is_alphanumeric() || "_!>".contains(last))
            });
            if tuple || ahead.ends_with("case(") || ahead.ends_with("about:") {
                return Some(literal);
            }
        }
    })
}

#[test]
fn only_names_of_tests_and_of_rows_are_cases() {
    let text = r#"
        /// RFC 1: holds.
        #[test]
        fn a_test() {
            let rows = [("a row (RFC 2)", 1, "why (RFC 90)"), ("RFC 3: another", 2, "")];
            differs(
                "why it differs (RFC 91)",
                case("side by side (RFC 4)", 1),
                case(
                    "side by side as well (RFC 5)",
                    1,
                ),
            );
            assert!(true, "RFC 92");
            let text = "RFC 93";
            print("RFC 94");
        }

        /// RFC 95, when somebody asks for it.
        #[test]
        #[ignore = "RFC 96"]
        fn an_ignored_test() {
            let rows = [("a row of it (RFC 97)", 1)];
        }

        /// RFC 98, by nobody.
        fn no_test() {}

        const ROWS: [Row; 2] = [
            Row { name: "RFC 99", about: "RFC 6: golden" },
            (
                "RFC 7: a long one",
                2,
            ),
        ];
    "#;
    let mut rows = BTreeSet::new();
    collect("file", text, &mut rows);
    let cases: Vec<&str> = rows.iter().map(|row| &*row.case).collect();
    let expected = [
        "a test",
        "a row (RFC 2)",
        "RFC 3: another",
        "side by side (RFC 4)",
        "side by side as well (RFC 5)",
        "RFC 6: golden",
        "RFC 7: a long one",
    ];
    assert_eq!(cases, expected);
}

/// Finds the rules that a text names, each up to where a sentence goes on.
fn rules(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = SOURCES.iter().filter_map(|source| rest.find(source)).min() {
        let named = &rest[start..];
        let end = named.find([':', ';', '(', ')', '`', '"']).unwrap_or(named.len());
        let end = named[..end].find(". ").unwrap_or(end);
        let rule = named[..end].trim().trim_end_matches(['.', ',']);
        let rule = rule.split(" for ").next().unwrap_or(rule).split(" has ").next().unwrap_or(rule);
        found.push(rule.trim().to_owned());
        rest = &named[end..];
        if end == 0 {
            break;
        }
    }
    found
}
