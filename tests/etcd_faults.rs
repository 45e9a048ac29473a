//! Faults of an etcd and of the way to it, one after the other: what flows goes on, but for a moment to a node whose key somebody
//! deleted; no subnet gets two owners; what was missed is known soon after.
//!
//! `FLATNET_QUORUM_SECONDS` says for how long most members are gone, `FLATNET_NODE_KILLS` how often a node is killed, `FLATNET_SEED` when.
//! Needs root, `ip`, `nsenter`, `unshare`, `python3` and Debian's `etcd-server` and `etcd-client`.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::etcd::{Cluster, ETCD};
use common::{Program, await_that};

const CONFIG: &str = r#"{"Network":"10.7.0.0/16"}"#;

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

/// Nodes 11 and 12 that reach each other.
struct Pair {
    cluster: Cluster,
    addresses: [String; 2],
}

impl Pair {
    fn new(members: usize) -> Self {
        let cluster = Cluster::of(members, CONFIG);
        [11, 12].into_iter().for_each(|number| cluster.start(number));
        let pair = Self { addresses: [11, 12].map(|number| cluster.address(number)), cluster };
        await_that("both know each other", || pair.flows());
        pair
    }

    /// Whether both ways go.
    fn flows(&self) -> bool {
        let [of_11, of_12] = &self.addresses;
        self.cluster.pings(11, of_12) && self.cluster.pings(12, of_11)
    }

    /// Asserts that both ways go all the time.
    fn flows_for(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            assert!(self.flows(), "what flows goes on");
        }
    }

    /// Writes a lease of somebody else's and says how long it takes until both nodes have the route; ways go meanwhile.
    fn hears_of(&self, third: u8) -> Duration {
        self.cluster.put(&format!("10.7.{third}.0-24"), r#"{"PublicIP":"192.168.66.200","PublicIPv6":null}"#);
        self.comes(&format!("10.7.{third}.0/24"))
    }

    fn comes(&self, subnet: &str) -> Duration {
        let begin = Instant::now();
        await_that("the route comes", || {
            assert!(self.flows(), "what flows goes on");
            [11, 12].iter().all(|number| self.cluster.routes(*number).contains(subnet))
        });
        begin.elapsed()
    }

    /// The key of a node's lease.
    fn key(&self, number: u8) -> String {
        let address = &self.addresses[usize::from(number - 11)];
        format!("/coreos.com/network/subnets/{}.0-24", address.rsplit_once('.').unwrap().0)
    }

    fn end(self) {
        for number in [11, 12] {
            let report = self.cluster.home.json(&format!("down --name node-{number}"));
            assert_eq!(report["balances"], true, "{report}");
        }
    }
}

#[test]
fn etcd_without_most_of_its_members_stops_nothing_and_is_current_soon_after() {
    let mut pair = Pair::new(3);
    pair.cluster.kill_member(1);
    pair.cluster.kill_member(2);
    pair.flows_for(Duration::from_secs(setting("FLATNET_QUORUM_SECONDS", 4)));
    pair.cluster.start_etcd();
    await_that("most are there again", || pair.cluster.etcdctl(&["put", "/x", "y"]).is_some());
    let took = pair.hears_of(200);
    println!("quorum: current after {} ms", took.as_millis());
    assert!(took < Duration::from_secs(5), "{took:?}");
    pair.end();
}

#[test]
fn etcd_beyond_a_cut_wire_stops_nothing_and_is_current_soon_after() {
    let pair = Pair::new(1);
    pair.cluster.wire.0.says("ip link set port10 down");
    // On its machine etcd goes on.
    pair.cluster.put("10.7.200.0-24", r#"{"PublicIP":"192.168.66.200","PublicIPv6":null}"#);
    pair.flows_for(Duration::from_secs(4));
    assert!(!pair.cluster.routes(11).contains("10.7.200.0/24"));
    pair.cluster.wire.0.says("ip link set port10 up");
    let took = pair.comes("10.7.200.0/24");
    println!("cut: current after {} ms", took.as_millis());
    assert!(took < Duration::from_secs(10), "{took:?}");
    pair.end();
}

/// Hands on what comes, each piece later than it came.
const SLOW: &str = "
import asyncio
async def carry(reader, writer):
    loop, last = asyncio.get_running_loop(), 0
    while piece := await reader.read(65536):
        loop.call_later(0.3, writer.write, piece)
async def serve(reader, writer):
    there = await asyncio.open_connection('192.168.66.10', 2379)
    await asyncio.gather(carry(reader, there[1]), carry(there[0], writer))
async def main():
    server = await asyncio.start_server(serve, '192.168.66.10', 2400)
    print('', flush=True)
    await server.serve_forever()
asyncio.run(main())
";

#[test]
fn etcd_that_is_slow_gives_a_node_its_subnet_and_routes_nevertheless() {
    let cluster = Cluster::new(CONFIG);
    cluster.start(11);
    let mut python = Command::new("python3");
    let mut slow = cluster.machines[&10].command(python.args(["-c", SLOW]));
    let mut slow = Program(slow.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    std::io::Read::read_exact(slow.0.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let output = cluster.try_start(12, "http://192.168.66.10:2400");
    assert!(output.status.success(), "{output:?}");
    let pair = Pair { addresses: [11, 12].map(|number| cluster.address(number)), cluster };
    await_that("both know each other", || pair.flows());
    let took = pair.hears_of(200);
    println!("slow: current after {} ms", took.as_millis());
    assert!(took < Duration::from_secs(5), "{took:?}");
    pair.end();
}

#[test]
fn etcd_lease_that_is_revoked_is_claimed_again_with_the_same_subnet() {
    let pair = Pair::new(1);
    let of = |key: &str| {
        let all = pair.cluster.leases();
        let find = |lease: &&serde_json::Value| decoded(lease["key"].as_str().unwrap()) == key;
        all.iter().find(find).and_then(|lease| lease["lease"].as_i64())
    };
    let key = pair.key(11);
    let before = of(&key).unwrap();
    let begin = Instant::now();
    pair.cluster.etcdctl(&["lease", "revoke", &format!("{before:x}")]).unwrap();
    await_that("it is claimed again", || {
        assert!(pair.flows(), "what flows goes on");
        of(&key).is_some_and(|lease| lease != before)
    });
    println!("revoked: claimed again after {} ms", begin.elapsed().as_millis());
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    pair.flows_for(Duration::from_secs(1));
    await_that("that is said", || pair.cluster.log(11).contains("claimed again"));
    assert_eq!(pair.cluster.leases().len(), 2);
    pair.end();
}

/// Reads base64 (RFC 4648) without its padding, as etcdctl writes keys.
fn decoded(text: &str) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: Vec<u8> = text
        .bytes()
        .filter_map(|byte| digits.iter().position(|digit| *digit == byte))
        .flat_map(|value| (0..6).rev().map(move |bit| (value >> bit & 1) as u8))
        .collect();
    let bytes = bits.chunks_exact(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | bit)).collect();
    String::from_utf8(bytes).unwrap()
}

/// Those whose leases are in the backup never miss a packet of each other's; who came later claims its subnet again.
#[test]
fn etcd_that_is_restored_from_before_a_lease_has_it_claimed_again_and_routes_follow() {
    let mut pair = Pair::new(1);
    let saved = pair.cluster.home.file("saved").display().to_string();
    pair.cluster.etcdctl(&["snapshot", "save", &saved]).unwrap();
    pair.hears_of(200);
    pair.cluster.start(13);
    let late = pair.cluster.address(13);
    await_that("the late one is known", || {
        pair.cluster.pings(11, &late) && pair.cluster.pings(13, &pair.addresses[1])
    });
    pair.cluster.kill_etcd();
    let data = pair.cluster.home.file("etcd-0");
    std::fs::remove_dir_all(&data).unwrap();
    let mut restore = Command::new("etcdctl");
    restore
        .env("ETCDCTL_API", "3")
        .args(["snapshot", "restore", &saved, "--name", "m0", "--data-dir"])
        .arg(&data);
    restore.args(["--initial-cluster", "m0=http://192.168.66.10:2380"]);
    restore.args(["--initial-advertise-peer-urls", "http://192.168.66.10:2380"]);
    let output = restore.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    pair.cluster.start_etcd();
    await_that("what is not there is no route any more", || {
        assert!(pair.flows(), "what flows goes on");
        [11, 12].iter().all(|number| !pair.cluster.routes(*number).contains("10.7.200.0/24"))
    });
    await_that("the late one has its subnet again", || {
        assert!(pair.flows(), "what flows goes on");
        pair.cluster.leases().len() == 3
            && pair.cluster.pings(11, &late)
            && pair.cluster.pings(13, &pair.addresses[1])
    });
    assert_eq!(pair.cluster.address(13), late);
    await_that("that is said", || {
        [11, 12, 13].iter().all(|number| pair.cluster.log(*number).contains("store is not what it was"))
    });
    pair.cluster.home.text("down --name node-13");
    pair.end();
}

#[test]
fn etcd_keys_that_are_hostile_take_nobodys_packets_and_are_each_named() {
    let pair = Pair::new(1);
    let by = r#"{"PublicIP":"192.168.66.13","PublicIPv6":null}"#;
    let own = pair.key(11);
    let base = own.trim_start_matches("/coreos.com/network/subnets/").trim_end_matches(".0-24").to_owned();
    let (half, quarter) = (format!("{base}.0-25"), format!("{base}.64-26"));
    let hostile = [
        (&*half, by),
        (&*quarter, by),
        ("10.7.0.0-16", by),
        ("0.0.0.0-0", by),
        ("192.168.66.0-24", by),
        ("127.0.0.0-8", by),
        ("10.7.250.0-24", "{"),
        ("10.7.251.0-24", r#"{"PublicIP":{"a":[1]}}"#),
        ("10.7.252.0-33", by),
        ("../config", by),
    ];
    for (key, value) in hostile {
        pair.cluster.put(key, value);
    }
    pair.hears_of(200);
    for number in [11, 12] {
        let log = pair.cluster.log(number);
        for (key, _) in hostile {
            assert!(log.contains(&format!("/subnets/{key}: ")), "{key}: {log}");
        }
        assert!(!pair.cluster.routes(number).contains("192.168.66.13"), "{}", pair.cluster.routes(number));
    }
    pair.flows_for(Duration::from_secs(1));
    pair.end();
}

#[test]
fn etcd_node_that_is_killed_at_any_instant_has_its_subnet_again_and_alone() {
    let cluster = Cluster::new(CONFIG);
    cluster.start(11);
    let (kills, seed) =
        (setting("FLATNET_NODE_KILLS", 5), setting("FLATNET_SEED", u64::from(std::process::id())));
    println!("FLATNET_SEED={seed} does the same");
    let mut state = seed;
    let words = cluster.words(12, ETCD);
    let mut subnet = None;
    for kill in 0..kills {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let plain = cluster.home.command(&words);
        let mut command = Command::new(env!("CARGO_BIN_EXE_flatnet"));
        command
            .args(words.split(' '))
            .envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut inside = cluster.machines[&12].command(&command);
        let mut node = inside.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The instant is what is tried, not something that is waited for.
        std::thread::sleep(Duration::from_millis((state >> 33) % 700));
        node.kill().unwrap();
        node.wait().unwrap();
        let leases = cluster.leases();
        let keys: Vec<String> = leases.iter().map(|lease| decoded(lease["key"].as_str().unwrap())).collect();
        assert!(keys.len() <= 2, "kill {kill} of seed {seed}: {keys:?}");
        let others = keys.iter().filter(|key| !key.contains(cluster.address(11).rsplit_once('.').unwrap().0));
        for key in others {
            assert_eq!(subnet.get_or_insert_with(|| key.clone()), key, "kill {kill} of seed {seed}");
        }
    }
    cluster.start(12);
    let pair = Pair { addresses: [11, 12].map(|number| cluster.address(number)), cluster };
    await_that("both know each other", || pair.flows());
    assert!(subnet.is_none_or(|subnet| subnet == pair.key(12)));
    assert_eq!(pair.cluster.leases().len(), 2);
    println!("{kills} node kills that left one owner each");
    pair.end();
}
