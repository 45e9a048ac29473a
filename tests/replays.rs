//! Recordings played into a running network by the real binary.

#![expect(clippy::unwrap_used, reason = "the exemption for tests does not reach their helpers")]

mod common;

use common::{Home, tshark};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const TWO_NODES: &str = include_str!("../scripts/topologies/two-nodes.yaml");

/// The tour's network with delays, so that the frames of a capture are apart in virtual time.
fn topology(home: &Home) -> PathBuf {
    let path = home.file("delays.yaml");
    let links =
        "seed: 7\n  time: virtual\n  links:\n    - {between: [node-1, node-2], delay: 3ms, jitter: 1ms}";
    std::fs::write(&path, TWO_NODES.replace("seed: 7", links)).unwrap();
    path
}

/// Bytes and time after the first one of every frame in a capture, as tshark reads it.
fn frames(file: &Path) -> Vec<String> {
    tshark(
        file,
        &[
            "frame.time_relative",
            "frame.len",
            "eth.src",
            "eth.dst",
            "ip.src",
            "ip.id",
            "icmp.seq",
            "data.data",
        ],
    )
}

/// Captures at a point while `run` runs; it ends after `count` frames.
fn captured(home: &Home, point: &str, count: usize, run: impl FnOnce()) -> PathBuf {
    let mut child = home.piped(&format!("capture {point} -c {count}"));
    let mut output = child.stdout.take().unwrap();
    let mut bytes = vec![0; 4];
    output.read_exact(&mut bytes).unwrap();
    run();
    output.read_to_end(&mut bytes).unwrap();
    assert!(child.wait().unwrap().success());
    let file = home.file("again.pcapng");
    std::fs::write(&file, bytes).unwrap();
    file
}

#[test]
fn a_capture_replays_byte_for_byte_at_the_same_distances() {
    let home = Home::new();
    let (topology, first) = (topology(&home), home.file("first.pcapng"));
    home.run(&format!("up --check -f {} --capture web-app-2={}", topology.display(), first.display()));
    let recorded = frames(&first);
    assert!(recorded.len() > 20 && recorded.last().unwrap() > &"0.05".to_owned(), "{recorded:?}");
    home.text(&format!("up -d -f {}", topology.display()));
    // The user's frames are for machines that are not on its network: nobody answers, and they pass alone.
    let again = captured(&home, "user", recorded.len(), || {
        let report = home.json(&format!("replay user {}", first.display()));
        assert_eq!(
            (report["frames"].as_u64(), &report["sent"]),
            (Some(recorded.len() as u64), &report["frames"])
        );
    });
    assert_eq!(frames(&again), recorded);
    let bytes = |file: &Path| std::fs::read(file).unwrap().len();
    assert_eq!(
        bytes(&again),
        bytes(&first) - "web-app-2:eth0".len().next_multiple_of(4) + "user:eth0".len().next_multiple_of(4)
    );
    let twice = captured(&home, "user", recorded.len(), || {
        home.text(&format!("replay user {} --speed 2x", first.display()));
    });
    let time = |lines: &[String]| lines.last().unwrap().split('\t').next().unwrap().parse::<f64>().unwrap();
    assert!((time(&recorded) / 2.0 - time(&frames(&twice))).abs() < 1e-8);
    assert_eq!(home.json("down")["balances"], true);
}

#[test]
fn what_a_pod_did_not_send_is_dropped_by_name_and_told() {
    let home = Home::with_network();
    let request = captured(&home, "web-app-2", 2, || {
        home.text("exec web-app-2 -- ping -c 1 10.1.15.3");
    });
    // The answer that the pod received has another's address, as source.
    let report = home.json(&format!("replay web-app-2 {} --loop 3 --speed max", request.display()));
    assert_eq!([&report["frames"], &report["sent"]], [6, 6]);
    let spoofed = report["drops"].as_array().unwrap().iter().find(|drop| drop["reason"] == "spoofed-mac");
    assert_eq!(spoofed.unwrap()["count"], 3, "{report}");
    let text = home.text(&format!("replay web-app-2 {}", request.display()));
    assert!(text.starts_with("2 of 2 frames sent, ") && text.contains("  spoofed-mac "), "{text}");
    let from_node = home.text(&format!("replay node-1:eth0 {}", request.display()));
    assert!(from_node.starts_with("2 of 2 frames sent"), "{from_node}");
    assert_eq!(home.json("down")["balances"], true);
}

#[test]
fn many_frames_go_at_full_speed_in_bounded_memory() {
    let home = Home::with_network();
    let file = home.file("many.pcap");
    // 200,000 frames of 1,000 bytes from the user to an address that nobody has.
    let mut bytes = Vec::from(*b"\xd4\xc3\xb2\xa1\x02\0\x04\0\0\0\0\0\0\0\0\0\xff\xff\0\0\x01\0\0\0");
    let mut frame = vec![0_u8; 1_000];
    frame[..14].copy_from_slice(&[2, 66, 192, 168, 66, 11, 2, 66, 192, 168, 66, 50, 0x86, 0xdd]);
    for second in 0..200_000_u32 {
        for word in [second, 0, 1_000, 1_000] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(&frame);
    }
    std::fs::write(&file, bytes).unwrap();
    let pid = home.json("status")[0]["pid"].clone();
    let kilobytes = |name: &str| -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    let before = kilobytes("VmRSS:");
    let report = home.json(&format!("replay user {} --speed max", file.display()));
    assert_eq!((&report["sent"], &report["bytes"]), (&200_000.into(), &200_000_000.into()));
    let drops: u64 =
        report["drops"].as_array().unwrap().iter().map(|drop| drop["count"].as_u64().unwrap()).sum();
    assert!(drops > 199_000, "node-1 takes IPv4 and ARP: {report}");
    // All buffers of control thread and worker may be in use at once, 33 MB each; which ones were, the scheduler decides.
    let growth = kilobytes("VmHWM:") - before;
    assert!(growth < 100_000, "the file alone has 200 MB, the process grew by {growth} kB");
    assert_eq!(home.json("down")["balances"], true);
}

#[test]
fn mistakes_are_named() {
    let home = Home::with_network();
    let (script, raw, cut) = (home.file("script.sh"), home.file("raw.pcap"), home.file("cut.pcapng"));
    std::fs::write(&script, "#!/bin/sh\necho this is no capture at all, whatever its name\n").unwrap();
    std::fs::write(&raw, b"\xd4\xc3\xb2\xa1\x02\0\x04\0\0\0\0\0\0\0\0\0\xff\xff\0\0\xe4\0\0\0").unwrap();
    std::fs::write(&cut, b"\x0a\x0d\x0d\x0a\xf0\xff\xff\xff\x4d\x3c\x2b\x1a").unwrap();
    for (words, expected) in [
        (format!("replay user {}", script.display()), "this is neither pcap nor pcapng"),
        (format!("replay user {}", raw.display()), "link type IPV4, not Ethernet frames"),
        (format!("replay user {}", cut.display()), "the file ends within a block that begins after 0 bytes"),
        (format!("replay user {}", home.file("none.pcap").display()), "cannot be read"),
        (format!("replay nobody {}", raw.display()), "there is no point nobody"),
        (format!("replay node-1:docker0 {}", raw.display()), "no machine sends there"),
        (format!("replay user {} --speed fast", raw.display()), "\"fast\" is no speed"),
    ] {
        let error = home.error(&words);
        let flat = error.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
        assert!(flat.contains(expected), "{words}: {error}");
    }
    assert_eq!(home.json("down")["balances"], true);
}

#[test]
fn a_replay_that_is_interrupted_leaves_nothing_behind() {
    let home = Home::with_network();
    let file = home.file("slow.pcap");
    // Two frames, an hour apart.
    let mut bytes = Vec::from(*b"\xd4\xc3\xb2\xa1\x02\0\x04\0\0\0\0\0\0\0\0\0\xff\xff\0\0\x01\0\0\0");
    for second in [0_u32, 3_600] {
        for word in [second, 0, 60, 60] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend([2; 60]);
    }
    std::fs::write(&file, bytes).unwrap();
    let mut child = home.piped(&format!("replay user {}", file.display()));
    let arrived = (0..200).any(|_| home.text("show fdb 192.168.66.0/24").contains("02:02:02:02:02:02"));
    assert!(arrived, "the first frame has set out");
    // Through the `timeout` that bounds it.
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    child.wait().unwrap();
    // The server hears of it before it hears what comes afterwards.
    home.text("exec user -- true");
    let ledger = home.json("down");
    assert_eq!((&ledger["balances"], &ledger["buffers"]["held"]), (&true.into(), &0.into()), "{ledger}");
}
