//! A store on disk whose process is killed, and one whose disk is full: in processes of their own.
//!
//! The tests start this test program again to have something to kill; those of its tests that are ignored are what runs
//! there. `FLATNET_KILLS` says how many processes are killed (`scripts/test --long` kills many).

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the exemption for tests does not reach their helpers"
)]

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use flatnet_agents::{
    Embedded, Revision, Store, StoreError,
    store::{KeyValue, LeaseId, Op, Outcome, embedded::Options},
};
use flatnet_engine::random::Random;
use futures::executor::block_on;

/// Kills unless `FLATNET_KILLS` says otherwise.
const KILLS: u64 = 8;
/// Where a started process finds its store.
const DIRECTORY: &str = "FLATNET_STORE_UNDER_TEST";
/// How many changes were made; every change writes it.
const COUNT: &str = "/count";

fn open(directory: &Path) -> Embedded {
    Embedded::open(directory, Options::default()).unwrap()
}

/// Makes the change number so many, in one transaction, and returns its revision.
fn change(store: &Embedded, number: u64) -> Result<Revision, StoreError> {
    let key = |at: u64| -> Arc<str> { format!("/key/{}", at % 11).into() };
    // Now and then longer than a page of the file, or a few of them.
    let value =
        vec![number as u8; (number as usize * 1_009) % if number.is_multiple_of(13) { 40_000 } else { 200 }];
    let lease = if number % 7 == 3 { Some(block_on(store.grant(Duration::from_secs(60)))?) } else { None };
    let count = (number + 1).to_string().into_bytes();
    let mut ops = vec![
        Op::Put { key: COUNT.into(), value: count.into(), lease: None },
        Op::Put { key: key(number), value: value.into(), lease },
    ];
    if key(number * 3 + 5) != key(number) {
        ops.push(Op::Delete { key: key(number * 3 + 5) });
    }
    match block_on(store.transact(vec![], ops))? {
        Outcome::Done(at) => Ok(at),
        Outcome::Conflict => panic!("nothing was asked for"),
    }
}

fn count(store: &Embedded) -> u64 {
    let found = block_on(store.get(COUNT)).unwrap();
    found.map_or(0, |entry| String::from_utf8_lossy(&entry.value).parse().unwrap())
}

/// What there must be after so many changes; which lease a key has is another matter.
fn expected(changes: u64) -> (Vec<KeyValue>, Revision) {
    let store = Embedded::new();
    for number in 0..changes {
        change(&store, number).unwrap();
    }
    content(&store)
}

fn content(store: &Embedded) -> (Vec<KeyValue>, Revision) {
    let mut listing = block_on(store.list("")).unwrap();
    for entry in &mut listing.entries {
        if let Some(lease) = entry.lease {
            assert!(block_on(store.lease(lease)).unwrap().keys.contains(&entry.key), "{}", entry.key);
            entry.lease = Some(LeaseId(0));
        }
    }
    (listing.entries, listing.revision)
}

fn this_program(test: &str, directory: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env(DIRECTORY, directory);
    command
}

#[test]
#[ignore = "is started, and killed, by a_killed_process_loses_no_acknowledged_change"]
fn writes_until_it_is_killed() {
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
    let store = open(&directory);
    let mut output = std::io::stdout();
    for number in count(&store).. {
        let at = change(&store, number).unwrap();
        writeln!(output, "done {} {at}", number + 1).unwrap();
    }
}

/// Reads reports until so many came or there are no more: changes and revision of the last.
fn reports(lines: &mut impl Iterator<Item = String>, limit: u64, last: &mut (u64, u64)) {
    let done = lines.filter_map(|line| {
        let (changes, at) = line.strip_prefix("done ")?.split_once(' ')?;
        Some((changes.parse().unwrap(), at.parse().unwrap()))
    });
    for (changes, at) in done.take(limit as usize) {
        assert!(last.0 < changes && last.1 < at, "{changes} at {at} after {last:?}");
        *last = (changes, at);
    }
}

/// etcd API guarantees, durability: what was acknowledged is there after a kill at any instant.
#[test]
fn a_killed_process_loses_no_acknowledged_change() {
    let kills = std::env::var("FLATNET_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let (mut random, mut last) = (Random::new(7), (0, 0));
    for kill in 0..kills {
        let mut child: Child = this_program("writes_until_it_is_killed", directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        // Now and then while it still opens the store, else at any instant of a change.
        reports(&mut lines, random.next_u64() % 12, &mut last);
        std::thread::sleep(Duration::from_micros(random.next_u64() % 4_000));
        child.kill().unwrap();
        child.wait().unwrap();
        reports(&mut lines, u64::MAX, &mut last);

        let store = open(directory.path());
        let found = count(&store);
        assert!(found == last.0 || found == last.0 + 1, "kill {kill}: {found} of {last:?}");
        assert_eq!(content(&store), expected(found), "kill {kill}");
        last = (found, store.revision().0);
    }
    println!("{kills} kills, {} changes, revision {}", last.0, last.1);
    assert!(last.0 > kills, "the processes wrote next to nothing");
}

#[test]
#[ignore = "is started in a file system of its own by a_full_disk_refuses_changes_and_serves_reads"]
fn fills_its_disk() {
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
    let ballast = directory.join("ballast");
    std::fs::write(&ballast, vec![1; 2 << 20]).unwrap();
    let store = open(&directory);
    let fill = |number: usize| block_on(store.put(&format!("/fill/{number}"), vec![number as u8; 50_000]));
    let (filled, error) = (0..200).find_map(|number| Some((number, fill(number).err()?))).unwrap();
    assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
    assert!(error.to_string().contains("No space left on device"), "{error}");

    // What was acknowledged can be read and nothing else is there, however often it is tried.
    let before = content(&store);
    assert_eq!((before.0.len(), before.1), (filled, Revision(filled as u64)));
    for number in filled..filled + 3 {
        assert!(matches!(fill(number), Err(StoreError::ReadOnly { .. })));
        assert_eq!(content(&store), before);
    }
    std::fs::remove_file(&ballast).unwrap();
    for number in filled..filled + 5 {
        assert_eq!(fill(number), Ok(Outcome::Done(Revision(number as u64 + 1))));
    }
    let after = content(&store);
    drop(store);
    assert_eq!(content(&open(&directory)), after);
}

#[test]
fn a_full_disk_refuses_changes_and_serves_reads() {
    let directory = tempfile::tempdir().unwrap();
    let inside = this_program("fills_its_disk", directory.path());
    // The mount is gone with the namespace.
    let script = r#"mount -t tmpfs -o size=6m tmpfs "$0" && exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", script]).arg(directory.path());
    command.arg(inside.get_program()).args(inside.get_args()).env(DIRECTORY, directory.path());
    let output = command.output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
