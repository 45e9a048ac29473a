//! What the pages say about files is so: links lead somewhere, paths exist, and module docs name sections that there are.
#![expect(clippy::unwrap_used, reason = "the exemption for tests does not reach their helpers")]

use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Returns all files below a folder with an extension.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with(".git") {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|it| it == extension) {
            found.push(path);
        }
    }
    found
}

/// Returns what stands between two marks, wherever it does.
fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(open).skip(1).filter_map(move |rest| rest.split(close).next())
}

#[test]
fn links_of_the_pages_lead_to_files() {
    for page in files(Path::new(ROOT), "md") {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in between(&text, "](", ")").filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let target = page.parent().unwrap().join(link.split('#').next().unwrap());
            assert!(target.exists(), "{}: {link}", page.display());
        }
    }
}

#[test]
fn source_files_that_the_pages_name_exist() {
    let homes = ["", "engine/src", "agents/src", "proxy/src", "src"].map(|home| Path::new(ROOT).join(home));
    for page in files(Path::new(ROOT), "md") {
        let text = std::fs::read_to_string(&page).unwrap();
        for name in text.split('`').filter(|name| name.ends_with(".rs") && name.contains('/')) {
            assert!(homes.iter().any(|home| home.join(name).exists()), "{}: {name}", page.display());
        }
    }
}

#[test]
fn sections_that_module_docs_name_exist() {
    for file in files(Path::new(ROOT), "rs") {
        let text = std::fs::read_to_string(&file).unwrap();
        let docs: String =
            text.lines().map_while(|line| line.strip_prefix("//!")).collect::<Vec<_>>().join("");
        for reference in between(&docs, "`docs/", ".md`") {
            let page = Path::new(ROOT).join("docs").join(format!("{reference}.md"));
            let page = std::fs::read_to_string(&page).unwrap_or_else(|_| unreachable_page(&file, reference));
            let rest = docs.split(&format!("`docs/{reference}.md`")).nth(1).unwrap();
            if let Some(section) = rest.strip_prefix(", \"").and_then(|rest| rest.split('"').next()) {
                let exists = page.lines().any(|line| line.trim_start_matches('#') == format!(" {section}"));
                assert!(exists, "{}: docs/{reference}.md has no section {section:?}", file.display());
            }
        }
    }
}

#[expect(clippy::panic, reason = "a test's verdict")]
fn unreachable_page(file: &Path, reference: &str) -> String {
    panic!("{}: there is no docs/{reference}.md", file.display())
}
