//! What a person reads who asked for something that cannot be: the place, what there is, and what to do.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops at the first surprise")]

mod common;

use std::path::{Path, PathBuf};

use common::Home;

fn write(path: PathBuf, text: &str) -> PathBuf {
    std::fs::write(&path, text).unwrap();
    path
}

/// Joins what was wrapped, without the frame that reports have at the left.
fn unwrapped(said: &str) -> String {
    let lines = said.lines().map(|line| line.trim_start_matches([' ', '│', '×', '⚠', '·']).trim());
    lines.collect::<Vec<_>>().join(" ")
}

#[test]
fn every_file_that_cannot_be_read_is_named_beside_what_is_wrong_with_the_others() {
    let home = Home::new();
    let readable = write(home.file("pod.yaml"), "apiVersion: v1\nkind: Pod\nmetadata: {name: UPPER}\n");
    let (gone, binary) = (home.file("gone.yaml"), home.file("binary.yaml"));
    std::fs::write(&binary, [0xff, 0xfe]).unwrap();
    let files = [&gone, &readable, &binary].map(|path| format!("-f {}", path.display())).join(" ");
    let said = unwrapped(&home.error(&format!("up --check {files}")));
    for path in [&gone, &binary] {
        assert!(said.contains(&format!("{} cannot be read: ", path.display())), "{said}");
    }
    assert!(said.contains("pod.yaml:3:18]"), "{said}");
    assert!(!said.contains("no document of kind Topology"), "it may be in the file that is gone: {said}");
}

#[test]
fn a_fault_that_breaks_nothing_says_what_there_is() {
    let home = Home::new();
    for (fault, why) in [
        ("lease:node-9", "node node-9 has no lease to delete"),
        ("lease:internet", "node internet has no lease to delete"),
        ("link:node-1:nobody", "there is no node, router, host or pod nobody"),
        ("power:node-1", "it is neither a lease nor a link"),
    ] {
        for command in ["up --check", "up", "trace user internet"] {
            let said = unwrapped(&home.error(&format!("{command} --fault {fault}")));
            assert!(said.contains(&format!("--fault {fault} breaks nothing: {why}")), "{said}");
            let known = "nodes with a lease are node-1, node-2; machines with links ";
            assert!(said.contains("lease:NODE, link:A:B or link:POD:NODE") && said.contains(known), "{said}");
            assert!(said.contains("; pods backend, web-app-1, web-app-2, web-app-3"), "{said}");
        }
    }
}

#[test]
fn two_captures_into_one_file_are_refused_before_anything_starts() {
    let home = Home::new();
    let file = home.file("a.pcapng");
    let again = home.file("../").join(home.file("").file_name().unwrap()).join("a.pcapng");
    for second in [&file, &again] {
        let words = format!(
            "up --check --capture web-app-1={} --capture nowhere={}",
            file.display(),
            second.display()
        );
        let said = home.error(&words);
        assert!(said.contains("two captures would be written to "), "{said}");
        assert!(!file.exists());
    }
}

/// unix(7): a socket's path has 108 bytes, the zero at its end among them.
#[test]
fn a_socket_path_that_is_too_long_is_said_with_its_length() {
    let home = Home::new();
    let longest = |directory: &Path| 107 - directory.join("flatnet/.sock").as_os_str().len();
    let fits = "n".repeat(longest(&home.file("").components().collect::<PathBuf>()));
    for command in ["up -d", "up"] {
        let said = unwrapped(&home.error(&format!("{command} --name {fits}n")));
        assert!(said.contains("has 108 bytes in its path; 107 fit"), "{said}");
        assert!(said.contains("XDG_RUNTIME_DIR") && said.contains("--name"), "{said}");
    }
    home.text(&format!("up -d --name {fits}"));
    home.text("down");
}

/// RFC 6335, section 6: port 0 is reserved.
#[test]
fn nobody_is_asked_at_port_0() {
    let home = Home::new();
    let output = home.run("trace web-app-2 backend tcp 0");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("0 is not in 1..=65535"), "{said}");
    assert!(home.error("trace web-app-2 backend:0 tcp").contains("tcp to backend needs a port"));
}

#[test]
fn names_in_lists_are_never_broken() {
    let home = Home::new();
    let said = home.error(&format!("up --check --capture nowhere={}", home.file("x").display()));
    let names = ["web-app-1", "web-app-2", "web-app-3", "node-1:docker0", "node-2:flannel0", "web-app-3:lo"];
    for name in names {
        assert!(said.contains(name), "{name}: {said}");
    }
    assert!(said.lines().all(|line| !line.ends_with('-')), "{said}");
}
