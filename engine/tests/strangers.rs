//! Captures of strangers, frame by frame into every kind of link: nothing panics, and everything is accounted for.
//!
//! `scripts/test --long` fetches the captures that come with the source of tcpdump and names their directory in
//! `FLATNET_CAPTURES`. Whatever their link type: a frame is only bytes.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::*;
use flatnet_engine::binding::Profile;
use flatnet_engine::control::EngineConfig;
use flatnet_engine::tables::NodeId;
use pcap_file::pcap::PcapReader;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 200);
/// The longest frame that a small buffer takes.
const LONGEST: usize = 1900;

fn captures(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(captures(&path));
        } else if path.extension().is_some_and(|extension| extension == "pcap") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Reads what can be read of a capture: some are broken on purpose.
fn frames(path: &Path) -> Vec<Vec<u8>> {
    let Ok(mut reader) = PcapReader::new(File::open(path).unwrap()) else { return Vec::new() };
    let mut frames = Vec::new();
    while let Some(Ok(packet)) = reader.next_packet() {
        let length = packet.data.len().min(LONGEST);
        frames.push(packet.data[..length].to_vec());
    }
    frames
}

/// The same frame as somebody here would have sent it, so that it gets past the first questions.
fn addressed(frame: &[u8], to: Ipv4Addr, from: Ipv4Addr) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if frame.len() >= 14 {
        frame[..6].copy_from_slice(&mac(to).octets());
        frame[6..12].copy_from_slice(&mac(from).octets());
    }
    frame
}

#[test]
#[ignore = "scripts/test --long fetches the captures"]
fn captures_of_strangers_are_accounted_for_on_every_link() {
    let directory = std::env::var_os("FLATNET_CAPTURES").unwrap();
    let captures = captures(Path::new(&directory));
    let mut sent = 0u64;
    for (number, path) in captures.iter().enumerate() {
        let profile = if number % 2 == 0 { Profile::Linux } else { Profile::Rfc };
        let workers = 1 + (number % 3) as u8;
        let config =
            EngineConfig { workers, small_buffers: 4096, large_buffers: 2, ..EngineConfig::default() };
        let mut lab = Lab::build_with(&config, profile);
        let (node, docker0) = (lab.node1, Ipv4Addr::new(10, 1, 15, 1));
        lab.stranger(node, STRANGER, docker0, 0);
        for frame in frames(path) {
            // As it is, at a pod's port, an undeclared machine's and a switch's; then addressed to each of their routers.
            for (at, router) in [(APP2, docker0), (STRANGER, docker0), (USER, NODE1), (INTERNET, NODE2)] {
                for bytes in [frame.clone(), addressed(&frame, router, at)] {
                    lab.send(at, &bytes);
                    sent += 1;
                }
            }
            for at in [APP1, APP2, APP3, BACKEND, STRANGER, USER, INTERNET] {
                lab.take(at);
            }
        }
        lab.pass(Duration::from_secs(40));
        for node in 0..5 {
            let ledger = lab.ledger(NodeId(node));
            assert!(ledger.balances() && ledger.held == 0, "{}: node {node}: {ledger:?}", path.display());
        }
        lab.check();
    }
    println!("{} captures, {sent} frames sent", captures.len());
    assert!(captures.len() > 500 && sent > 20_000, "{} captures, {sent} frames", captures.len());
}
