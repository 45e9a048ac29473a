//! `flatnet etcd`: members that come, stay, are started again and go.
#![expect(clippy::unwrap_used, reason = "the exemption for tests does not reach their helpers")]

mod common;

use std::path::Path;

use common::Home;
use serde_json::Value;

fn processes(report: &Value) -> Vec<i64> {
    report["members"].as_array().unwrap().iter().map(|member| member["process"].as_i64().unwrap()).collect()
}

fn is_gone(process: i64) -> bool {
    // One that nobody waits for has no words any more.
    std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default().is_empty()
}

#[test]
fn a_local_etcd_comes_up_once_is_mended_and_goes_with_or_without_its_data() {
    let home = Home::new();
    let report = || -> Value { serde_json::from_str(&home.text("etcd up -o json")).unwrap() };
    assert!(home.text("etcd up --members 3").starts_with("etcd is up: http://127.0.0.1:"));
    let first = report();
    assert_eq!(first["endpoints"].as_array().unwrap().len(), 3);
    assert_eq!(processes(&report()), processes(&first), "who runs is left alone");

    // One that was killed comes back on its data.
    let killed = processes(&first)[0];
    let kill = std::process::Command::new("kill").args(["-KILL", &killed.to_string()]).status().unwrap();
    assert!(kill.success());
    while !is_gone(killed) {
        std::thread::yield_now();
    }
    let mended = report();
    assert_ne!(processes(&mended)[0], killed);
    assert_eq!(processes(&mended)[1..], processes(&first)[1..]);
    assert_eq!(mended["endpoints"], first["endpoints"]);

    let refused = home.run("etcd up --members 1");
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("has 3 members, not 1"), "{text}");

    let data = first["data"].as_str().unwrap();
    assert_eq!(home.text("etcd down"), format!("etcd is down; its data stays in {data}\n"));
    assert!(processes(&mended).into_iter().all(is_gone));
    assert_eq!(home.text("etcd down"), "etcd was not up\n");
    assert_eq!(report()["endpoints"], first["endpoints"]);
    assert_eq!(home.text("etcd down --delete"), "etcd is down; its data is deleted\n");
    assert!(!Path::new(data).exists());
}

#[test]
fn a_host_without_etcd_is_told_what_to_install() {
    let home = Home::new();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_flatnet"));
    command.args(["etcd", "up"]).env("PATH", "/nowhere").env("XDG_STATE_HOME", home.file(""));
    let output = command.env("NO_COLOR", "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("apt-get install etcd-server"), "{text}");
}
