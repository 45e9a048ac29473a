//! What becomes of real pods, and of those beside them, when a part of one is taken away under load.
//!
//! Needs root, a shell, `ip`, iputils' `ping` and `iperf3`.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use common::real::{NODES, files, log, network, pod, process, status};
use common::{Home, Namespace, await_that};
use rustix::process::{Pid, Signal, kill_process};

/// Twice what is asked for: a test machine's cores have other things to do.
const RECOVERY: Duration = Duration::from_secs(2);

/// The cores are for one test at a time: what is measured is how long a pod is away, not how many tests there are.
static ALONE: Mutex<()> = Mutex::new(());

/// A real pod of node-1 with an address of its own.
fn at(address: &str, name: &str, command: &str, rest: (&str, &str)) -> String {
    let (labels, annotations) =
        (format!("labels: {{app: {name}}}"), format!("annotations: {{flatnet.dev/ip: {address}}}"));
    pod(name, "node-1", command, rest).replace(&labels, &format!("{labels}, {annotations}"))
}

fn nodes() -> String {
    NODES.replace("11/24}", "11/24, podCIDR: 10.1.47.0/24}")
}

/// Asks an address 100 times a second, and says when each answer came.
fn pings(address: &str) -> String {
    format!("until ping -c 1 -W 1 {address} > /dev/null; do :; done; exec ping -D -i 0.01 {address}")
}

/// When answers came to a pod that asks, seconds, by their numbers.
fn answers(home: &Home, pod: &str) -> BTreeMap<u64, f64> {
    let said = log(home, pod);
    let lines = said.lines().filter_map(|line| {
        let (time, rest) = line.strip_prefix("stdout F [")?.split_once("] ")?;
        let number = rest.split_once("icmp_seq=")?.1.split_once(' ')?.0;
        Some((number.parse().ok()?, time.parse().ok()?))
    });
    lines.collect()
}

/// The longest time without an answer.
fn longest_gap(answers: &BTreeMap<u64, f64>) -> Duration {
    let times: Vec<f64> = answers.values().copied().collect();
    Duration::from_secs_f64(times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max))
}

fn lost(answers: &BTreeMap<u64, f64>) -> u64 {
    let (first, last) = (answers.keys().next().unwrap(), answers.keys().last().unwrap());
    last - first + 1 - answers.len() as u64
}

/// What node-1 has dropped for which reason.
fn drops(home: &Home) -> BTreeMap<String, u64> {
    let table = home.json("show drops node-1");
    let rows = table.as_array().unwrap().iter();
    rows.map(|row| (row["reason"].as_str().unwrap().to_owned(), row["count"].as_u64().unwrap())).collect()
}

fn link_down(home: &Home) -> u64 {
    drops(home).get("link-down").copied().unwrap_or_default()
}

/// Waits until a pod that asks is answered for a second from now on.
fn await_answers(home: &Home, pod: &str) {
    let last = *answers(home, pod).last_key_value().unwrap().0;
    await_that("it is answered", || answers(home, pod).range(last + 1..).count() > 100);
}

/// The process that holds a pod's namespaces.
fn sandbox(home: &Home, pod: &str) -> Pid {
    let program = process(&files(home, pod).join("main")).as_raw_nonzero().to_string();
    let namespace = |id: &str| std::fs::read_link(format!("/proc/{id}/ns/net")).ok();
    let own = namespace(&program);
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|it| it.unwrap().file_name().into_string().ok());
    let mut holders = all.filter(|id| {
        let words = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        words.ends_with(b"pod-init\0sandbox\0") && namespace(id) == own
    });
    Pid::from_raw(holders.next().unwrap().parse().unwrap()).unwrap()
}

/// A pod's status for programs.
fn full_status(home: &Home, name: &str) -> serde_json::Value {
    let pods = home.json("get pods");
    let pod = pods["items"].as_array().unwrap().iter().find(|pod| pod["metadata"]["name"] == name).cloned();
    pod.unwrap()["status"].clone()
}

#[test]
fn a_pod_whose_sandbox_is_killed_has_another_and_nobody_else_hears_of_it() {
    let _alone = ALONE.lock();
    let volume =
        ("  volumes: [{name: v, emptyDir: {}}]\n", "      volumeMounts: [{name: v, mountPath: /mnt}]\n");
    let counts = "echo start >> /mnt/starts; cat /mnt/starts; exec sleep 1000";
    let home = network(&[
        &nodes(),
        &at("10.1.47.9", "server", counts, volume),
        &at("10.1.47.10", "never", "exec sleep 1000", ("  restartPolicy: Never\n", "")),
        &at("10.1.47.11", "failure", "exec sleep 1000", ("  restartPolicy: OnFailure\n", "")),
        &at("10.1.47.12", "asks", &pings("10.1.47.9"), ("", "")),
        &at("10.1.47.13", "beside", &pings("10.1.47.14"), ("", "")),
        &at("10.1.47.14", "peer", "exec sleep 1000", ("", "")),
    ]);
    for name in ["asks", "beside"] {
        await_that("it is answered", || answers(&home, name).len() > 100);
    }
    let restarts = |name: &str| full_status(&home, name)["containerStatuses"][0]["restartCount"].clone();
    for name in ["server", "failure", "never"] {
        kill_process(sandbox(&home, name), Signal::KILL).unwrap();
    }
    await_that("it is started again", || restarts("server") == 1);
    await_answers(&home, "asks");
    let gap = longest_gap(&answers(&home, "asks"));
    eprintln!("a pod is back {gap:.0?} after its sandbox was killed");
    assert!(gap < RECOVERY, "{gap:?}");
    let others = answers(&home, "beside");
    assert_eq!(lost(&others), 0, "{:?}, {:?} without an answer", drops(&home), longest_gap(&others));
    assert!(longest_gap(&others) < RECOVERY, "{:?}", longest_gap(&others));

    for name in ["server", "failure"] {
        await_that("it runs", || status(&home, name) == "Running");
        let now = full_status(&home, name);
        let container = &now["containerStatuses"][0];
        assert_eq!((&container["restartCount"], &now["phase"]), (&1.into(), &"Running".into()), "{now}");
        assert_eq!(container["lastState"]["terminated"]["exitCode"], 137, "{now}");
        assert!(home.run(&format!("exec {name} -- true")).status.success());
    }
    assert_eq!(full_status(&home, "server")["podIP"], "10.1.47.9");
    // Its volume is the pod's, and what it said before is still to be read.
    await_that("it counts", || home.text("logs server") == "start\nstart\n");
    assert_eq!(home.text("logs server -p"), "start\n");
    await_that("it has failed", || status(&home, "never") == "Error");
    let never = full_status(&home, "never");
    assert_eq!(
        (&never["phase"], &never["containerStatuses"][0]["restartCount"]),
        (&"Failed".into(), &0.into())
    );
    assert_eq!(never["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137, "{never}");

    // A second time it waits.
    kill_process(sandbox(&home, "failure"), Signal::KILL).unwrap();
    await_that("it waits", || status(&home, "failure") == "CrashLoopBackOff");
    let before = link_down(&home);
    assert!(!home.run("exec asks -- ping -c 1 -W 1 10.1.47.11").status.success());
    assert!(link_down(&home) > before, "what is sent to it is told");
    home.text("delete pod failure");
    await_that("its files are gone", || !files(&home, "failure").join(".etc").exists());
    home.text("delete pod server");
    await_that("its volumes are gone", || !files(&home, "server").join(".volumes").exists());
    assert_eq!(home.json("down")["balances"], true);
}

/// The stream survives, since the pod's address is there again before its TCP gives up.
#[test]
fn a_pod_whose_interface_is_deleted_under_load_has_another_and_nobody_else_hears_of_it() {
    let _alone = ALONE.lock();
    let serves = "exec iperf3 -s";
    // A server that has another test to end yet refuses the first.
    let sends =
        |address: &str| format!("until iperf3 -c {address} -t 1000 -b 100M --forceflush; do sleep 0.1; done");
    let home = network(&[
        &nodes(),
        &at("10.1.47.9", "server", serves, ("", "")),
        &at("10.1.47.10", "sends", &sends("10.1.47.9"), ("", "")),
        &at("10.1.47.11", "asks", &pings("10.1.47.9"), ("", "")),
        &at("10.1.47.12", "asks-too", &pings("10.1.47.10"), ("", "")),
        &at("10.1.47.13", "peer", serves, ("", "")),
        &at("10.1.47.14", "beside", &sends("10.1.47.13"), ("", "")),
        &at("10.1.47.15", "asks-beside", &pings("10.1.47.13"), ("", "")),
    ]);
    // What a pod's interface has received, octets.
    let received = |name: &str| -> u64 {
        let said = home.text(&format!("exec {name} -- cat /proc/net/dev"));
        let line = said.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
        line.map_or(0, |line| line.split_whitespace().next().unwrap().parse().unwrap())
    };
    for name in ["asks", "asks-too", "asks-beside"] {
        await_that("it is answered", || answers(&home, name).len() > 100);
    }
    for name in ["server", "peer"] {
        await_that("it is sent to", || received(name) > 10_000_000);
    }
    let streams = || ["sends", "beside"].map(|name| log(&home, name).matches("Connecting to host").count());
    await_that("both say that they send", || streams().iter().all(|&count| count > 0));
    let before = streams();
    for (victim, asks) in [("server", "asks"), ("sends", "asks-too")] {
        let before = link_down(&home);
        assert!(home.run(&format!("exec {victim} -- ip link del eth0")).status.success());
        await_that("what is sent to it is told", || link_down(&home) > before);
        await_answers(&home, asks);
        let (dropped, gap) = (link_down(&home) - before, longest_gap(&answers(&home, asks)));
        eprintln!("{victim} has another eth0 after {gap:.0?}; {dropped} dropped for link-down");
        assert!(gap < RECOVERY, "{gap:?}");
        let so_far = received("server");
        await_that("the stream goes on", || received("server") > so_far + 10_000_000);
    }
    let others = answers(&home, "asks-beside");
    assert_eq!(lost(&others), 0, "{:?}, {:?} without an answer", drops(&home), longest_gap(&others));
    assert!(longest_gap(&others) < RECOVERY, "{:?}", longest_gap(&others));
    assert_eq!(streams(), before, "both are the ones that they were");
    // A line a second ends with octets and rate.
    let said = log(&home, "beside");
    assert!(said.contains("its/sec") && !said.contains(" 0.00 Bytes "), "{said}");
    assert_eq!(home.json("down")["balances"], true);
}

/// Its `lo` stays up meanwhile; one that cannot have another says why.
#[test]
fn a_namespace_of_somebody_else_whose_interface_is_deleted_has_another() {
    let _alone = ALONE.lock();
    let namespace = Namespace::new();
    let attached = format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: lab, annotations: {{\"flatnet.dev/attach\": \"netns:{}\", \
         \"flatnet.dev/ip\": 10.1.47.9}}}}\nspec: {{nodeName: node-1, containers: [{{name: c, image: flatnet/pause}}]}}\n",
        namespace.path()
    );
    let home = network(&[&nodes(), &attached, &at("10.1.47.12", "asks", &pings("10.1.47.9"), ("", ""))]);
    await_that("it is answered", || answers(&home, "asks").len() > 100);
    namespace.says("ip route add 203.0.113.0/24 dev lo");
    for _ in 0..2 {
        let before = link_down(&home);
        namespace.says("ip link del eth0");
        await_that("what is sent to it is told", || link_down(&home) > before);
        await_answers(&home, "asks");
    }
    let gap = longest_gap(&answers(&home, "asks"));
    eprintln!("what is attached has another eth0 after {gap:.0?}");
    assert!(gap < RECOVERY, "{gap:?}");
    assert!(namespace.says("ip route show dev lo").contains("203.0.113.0/24"), "lo was down");
    assert_eq!(status(&home, "lab"), "Running");

    namespace.says("ip link add d0 type veth peer name d1 && ip link set d0 up && ip link del eth0 && ip route add default dev d0");
    await_that("what is wrong is said", || status(&home, "lab") == "FailedCreatePodSandBox");
    assert_eq!(home.json("down")["balances"], true);
    assert!(namespace.says("ip -o link show lo").contains("state DOWN"), "lo is as it was");
}
