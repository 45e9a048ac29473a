//! Pods whose programs are the host's own, beside simulated ones: what they see, what they reach, how they end.
//!
//! Above 600 lines because real and attached pods are looked at with the same few helpers.
//!
//! Needs root, a shell, `ip`, `nsenter`, `unshare` and Python.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::real::{
    NODES, SIMULATED, fetch, files, files_of, is_there, log, network, pod, process, service, status,
};
use common::{Home, Namespace, await_that, tshark};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn real_and_simulated_pods_reach_each_other_through_services_and_tunnel() {
    let volumes = "  volumes: [{name: site, emptyDir: {}}]\n";
    let mounts = "      volumeMounts: [{name: site, mountPath: /mnt}]\n      workingDir: /mnt\n";
    let serve = "echo from a real pod > index.html; exec python3 -m http.server 80";
    let client = format!("{}; {}; exit 3", fetch("10.96.0.10"), fetch("10.96.0.20"));
    let home = network(&[
        NODES,
        &pod("server", "node-1", serve, (volumes, mounts)),
        &pod("client", "node-2", &client, ("  restartPolicy: Never\n", "")),
        SIMULATED,
        &service("server", "10.96.0.10"),
        &service("simulated", "10.96.0.20"),
    ]);
    // A simulated pod asks a real one on the other node.
    let asks = "exec simulated -- curl -s http://10.96.0.10/";
    await_that("the real server answers", || home.run(asks).stdout == b"from a real pod\n");
    // A real pod asks a real one on the other node, then a simulated one.
    await_that("the client ends", || status(&home, "client") == "Error");
    let said = log(&home, "client");
    assert!(said.starts_with("stdout F from a real pod\n"), "{said}");
    assert!(said.contains("Welcome to nginx!"), "{said}");
    let pods = home.json("get pods");
    let client = pods["items"].as_array().unwrap().iter().find(|pod| pod["metadata"]["name"] == "client");
    let state = &client.unwrap()["status"]["containerStatuses"][0]["state"];
    assert_eq!(state["terminated"]["exitCode"], 3, "{state}");
    assert_eq!(home.json("down")["balances"], true);
}

/// The kernel leaves checksums and segments to whoever is behind an interface; a capture has frames as a wire would.
#[test]
fn a_capture_at_a_real_pod_has_what_it_sends_and_what_it_gets() {
    let serve = "head -c 20000 /dev/zero > index.html; exec python3 -m http.server 80";
    let (volumes, mounts) = (
        "  volumes: [{name: site, emptyDir: {}}]\n",
        "      volumeMounts: [{name: site, mountPath: /mnt}]\n      workingDir: /mnt\n",
    );
    let home = network(&[
        NODES,
        &pod("server", "node-1", serve, (volumes, mounts)),
        &pod("client", "node-1", "exec sleep 1000", ("", "")),
        SIMULATED,
        &service("server", "10.96.0.10"),
    ]);
    let address = |name: &str| {
        let pods = home.json("get pods");
        let pod =
            pods["items"].as_array().unwrap().iter().find(|pod| pod["metadata"]["name"] == name).cloned();
        pod.unwrap()["status"]["podIP"].as_str().unwrap().to_owned()
    };
    let (server, askers) = (address("server"), [address("client"), address("simulated")]);
    await_that("it serves", || home.run("exec simulated -- curl -s http://10.96.0.10/").status.success());
    let capture = home.file("server.pcapng");
    let words = format!("capture server --count 120 --write {}", capture.display());
    let mut asks = home.command(&words).stderr(std::process::Stdio::null()).spawn().unwrap();
    await_that("they pass", || {
        // In turns, so that neither fills the capture alone.
        home.text("exec simulated -- curl -s http://10.96.0.10/");
        let fetches = home.command("exec client --").args(["sh", "-c", &fetch("10.96.0.10")]).output();
        assert!(fetches.unwrap().status.success());
        asks.try_wait().unwrap().is_some()
    });
    let frames = tshark(&capture, &["ip.src", "ip.dst", "tcp.checksum.status", "frame.len"]);
    let frames: Vec<Vec<&str>> = frames.iter().map(|line| line.split('\t').collect()).collect();
    let frames: Vec<_> = frames.into_iter().filter(|frame| !frame[0].is_empty()).collect();
    for asker in &askers {
        for (from, to) in [(asker, &server), (&server, asker)] {
            let passed = frames.iter().filter(|frame| frame[0] == from && frame[1] == to).count();
            assert!(passed >= 4, "{passed} from {from} to {to}: {frames:?}");
        }
    }
    assert!(frames.iter().all(|frame| frame[2] == "1"), "checksums are there: {frames:?}");
    assert!(frames.iter().all(|frame| frame[3].parse::<u32>().unwrap() <= 1486), "no superframe: {frames:?}");
    assert_eq!(home.json("down")["balances"], true);
}

#[test]
fn a_real_pod_has_names_an_interface_and_processes_of_its_own() {
    let environment = "      env: [{name: GREETING, value: hello there}, {name: AGAIN, value: \"$(GREETING), $$(GREETING)\"}]\n      securityContext: {runAsUser: 1234}\n";
    let home = network(&[NODES, &pod("alone", "node-1", "exec sleep 1000", ("", environment))]);
    let says = |command: &str| {
        let output = home.command("exec alone --").args(["sh", "-c", command]).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.code())
    };
    assert_eq!(
        says("hostname; echo $GREETING; echo $AGAIN; id -u; exit 7"),
        ("alone\nhello there\nhello there, $(GREETING)\n1234\n".to_owned(), Some(7))
    );
    let (hosts, _) = says("cat /etc/hosts /etc/hostname");
    assert!(hosts.contains("127.0.0.1\tlocalhost\n") && hosts.ends_with("\talone\nalone\n"), "{hosts}");
    let (interfaces, _) = says("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ls /sys/class/net");
    let address = home.text("get pods").lines().nth(1).unwrap().split_whitespace().nth(4).unwrap().to_owned();
    let octets: Vec<String> =
        address.split('.').map(|it| format!("{:02x}", it.parse::<u8>().unwrap())).collect();
    assert_eq!(interfaces, format!("02:42:{}\n1472\neth0\nlo\n", octets.join(":")));
    let (processes, _) = says("cat /proc/1/cmdline | tr '\\0' ' '; ls -d /proc/[0-9]* | wc -l");
    let (first, count) = processes.split_once("pod-init init ").unwrap();
    assert!(first.starts_with("flatnet"), "{processes}");
    assert!(count.trim().parse::<u32>().unwrap() < 10, "only the container's own processes: {processes}");
    assert_eq!(says("cat /proc/2/cmdline").0, "sleep\x001000\0", "the container's program is among them");
    assert_eq!(home.with_input("exec alone -- sort", "b\na\n").stdout, b"a\nb\n");
    let missing = home.run("exec alone -- no-such-program");
    assert_eq!(missing.status.code(), Some(128));
    let said = String::from_utf8(missing.stdout).unwrap();
    assert!(said.contains("no-such-program: No such file or directory"), "{said}");
    assert_eq!(home.json("down")["balances"], true);
}

#[test]
fn a_pods_program_has_nothing_open_of_whoever_started_the_network() {
    let home = Home::new();
    let (file, lock) = (home.file("real.yaml"), home.file("lock"));
    let lists = pod("lists", "node-1", "ls -l /proc/self/fd; exec sleep 1000", ("", ""));
    std::fs::write(&file, NODES.to_owned() + &lists).unwrap();
    let up = home.command(&format!("up -f {}", file.display()));
    let mut locked = std::process::Command::new("flock");
    locked.arg("--no-fork").arg(&lock).arg(up.get_program()).args(up.get_args());
    locked.envs(up.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = locked.stdout(std::process::Stdio::null()).spawn().unwrap();
    await_that("it answers", || String::from_utf8_lossy(&home.run("status").stdout).contains("real"));
    await_that("it lists", || log(&home, "lists").contains(" 2 -> "));
    let said = log(&home, "lists");
    assert!(!said.contains("lock"), "{said}");
    home.text("down");
    assert!(child.wait().unwrap().success());
}

#[test]
fn programs_are_told_to_stop_and_ended_when_their_time_is_over() {
    let polite = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let stubborn = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let home = network(&[
        NODES,
        &pod("polite", "node-1", polite, ("", "")),
        &pod("stubborn", "node-2", stubborn, ("  terminationGracePeriodSeconds: 1\n", "")),
    ]);
    for name in ["polite", "stubborn"] {
        await_that("it is ready", || log(&home, name) == "stdout F ready\n");
    }
    home.text("delete pod polite");
    await_that("it says so", || log(&home, "polite") == "stdout F ready\nstdout F bye\n");
    let before = Instant::now();
    let process = process(&files(&home, "stubborn").join("main"));
    home.text("delete pod stubborn");
    await_that("it is ended", || !is_there(process));
    assert!(before.elapsed() >= Duration::from_secs(1), "it had a second: {:?}", before.elapsed());
    assert_eq!(home.json("down")["balances"], true);
}

#[test]
fn who_is_told_twice_to_end_waits_no_longer() {
    let home = Home::new();
    let file = home.file("real.yaml");
    let deaf = pod("deaf", "node-1", "trap '' TERM; echo deaf; while :; do sleep 1; done", ("", ""));
    std::fs::write(&file, NODES.to_owned() + &deaf).unwrap();
    let mut child = home.piped(&format!("up -f {}", file.display()));
    let said = std::io::BufReader::new(child.stdout.take().unwrap());
    let said = said.lines().map_while(Result::ok).find(|line| line.starts_with("pod "));
    assert!(said.unwrap().contains("deaf"));
    await_that("it is deaf", || log(&home, "deaf") == "stdout F deaf\n");
    // Not the one that bounds its time: that hands signals on twice.
    let process = home.json("status")[0]["pid"].as_i64().unwrap();
    let process = Pid::from_raw(process.try_into().unwrap()).unwrap();
    kill_process(process, Signal::INT).unwrap();
    let mut said = std::io::BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let told = said.find(|line| line.starts_with("waiting for programs of real pods to end"));
    assert!(told.is_some());
    let begin = Instant::now();
    kill_process(process, Signal::INT).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(begin.elapsed() < Duration::from_secs(10), "and not its 30 s: {:?}", begin.elapsed());
}

#[test]
fn a_container_that_ends_starts_again_and_one_that_cannot_start_says_why() {
    let home = network(&[
        NODES,
        &pod("again", "node-1", "echo run; sleep 0.1", ("", "")),
        &pod("never", "node-1", "true", ("  restartPolicy: Never\n", "      workingDir: /no/such/place\n")),
    ]);
    await_that("it is started again", || files(&home, "again").join("main/1.log").exists());
    await_that("the restart is heard", || home.text("logs again") == "run\n");
    assert_eq!(home.text("logs again -c main -p"), "run\n");
    assert!(home.error("logs again -c other").contains("pod again has no container other"));
    await_that("it failed", || status(&home, "never") == "Error");
    let pods = home.json("get pods");
    let never = pods["items"].as_array().unwrap().iter().find(|pod| pod["metadata"]["name"] == "never");
    let ended = &never.unwrap()["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(ended["exitCode"], 128, "{ended}");
    assert!(ended["message"].as_str().unwrap().starts_with("working directory /no/such/place: "), "{ended}");
    home.text("down");
}

/// Who writes without end hinders nobody: not the control side, which answers at once, nor the end of a container or of the network.
#[test]
fn a_pod_that_writes_without_end_hinders_nobody() {
    let never = "  restartPolicy: Never\n";
    let home = network(&[
        NODES,
        &pod("left", "node-1", "yes & sleep 0.2; exit 3", (never, "")),
        &pod(
            "noisy",
            "node-1",
            "trap '' TERM; while :; do yes; done",
            ("  terminationGracePeriodSeconds: 1\n", ""),
        ),
        &pod("quiet", "node-2", "exec sleep 1000", ("", "")),
    ]);
    await_that("the one whose child wrote on has ended", || status(&home, "left") == "Error");
    await_that("the other is heard", || log(&home, "noisy").starts_with("stdout F y\nstdout F y\n"));
    let fastest = (0..5).map(|_| {
        let begin = Instant::now();
        home.text("exec quiet -- true");
        begin.elapsed()
    });
    let fastest = fastest.min().unwrap();
    assert!(fastest < Duration::from_millis(500), "{fastest:?}");
    let begin = Instant::now();
    assert_eq!(home.json("down")["balances"], true);
    assert!(begin.elapsed() >= Duration::from_secs(1), "it had a second");
}

#[test]
fn what_a_container_leaves_behind_ends_with_it() {
    let listen =
        "import socket,time; s=socket.create_server(('',8000)); print('bound',flush=True); time.sleep(1000)";
    let command = format!("python3 -c \"{listen}\" & sleep 2; exit 1");
    let home = network(&[NODES, &pod("again", "node-1", &command, ("", ""))]);
    let second = files(&home, "again").join("main/1.log");
    await_that("the port is free at the next start", || {
        std::fs::read_to_string(&second).is_ok_and(|text| text.ends_with(" stdout F bound\n"))
    });
    home.text("down");
}

#[test]
fn volumes_and_files_are_for_the_pods_user() {
    let volumes =
        "  volumes: [{name: v, emptyDir: {}}, {name: m, emptyDir: {medium: Memory, sizeLimit: 1Mi}}]\n";
    let of_container = "      securityContext: {runAsUser: 1234}\n      volumeMounts: [{name: v, mountPath: /mnt}, {name: m, \
                        mountPath: /media}, {name: m, mountPath: /srv, subPath: some/where}]\n";
    let mut text = pod("user", "node-1", "exec sleep 1000", (volumes, of_container));
    text = text.replace("metadata: {name: user", "metadata: {namespace: shop, name: user");
    let home = Home::new();
    let file = home.file("real.yaml");
    std::fs::write(&file, [NODES, &text].concat()).unwrap();
    // Whose files are for nobody else.
    let up = home.command(&format!("up -d -f {}", file.display()));
    let mut masked = std::process::Command::new("sh");
    masked.args(["-c", "umask 077; exec \"$0\" \"$@\""]).arg(up.get_program()).args(up.get_args());
    masked.envs(up.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = masked.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let says = |command: &str| {
        let output = home.command("exec shop/user --").args(["sh", "-c", command]).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.code())
    };
    assert_eq!(says("echo of the user > /mnt/file; cat /mnt/file").0, "of the user\n");
    assert_eq!(says("head -c 900000 /dev/zero > /media/file && wc -c < /media/file").0, "900000\n");
    assert_eq!(says("echo inside > /srv/file; cat /media/some/where/file").0, "inside\n");
    let (said, code) = says("head -c 2000000 /dev/zero > /media/file");
    assert!(said.contains("No space left on device") && code == Some(1), "{said}");
    let (said, code) = says("cat /etc/hosts /etc/hostname /etc/resolv.conf");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("search shop.svc.cluster.local svc.cluster.local cluster.local\n"), "{said}");
    // Programs that were run besides are no starts.
    assert!(!files_of(&home, "shop", "user").join("main/1.log").exists());
    home.text("down");
}

#[test]
fn nothing_is_left_when_the_network_is_killed() {
    // One program has left its parent, as daemons do.
    let daemon = "(setsid sh -c 'sleep 1000 & echo $! > /mnt/daemon' &) ; exec sleep 1000";
    let volume =
        ("  volumes: [{name: v, emptyDir: {}}]\n", "      volumeMounts: [{name: v, mountPath: /mnt}]\n");
    let home = network(&[NODES, &pod("daemon", "node-1", daemon, volume)]);
    let files = files(&home, "daemon");
    await_that("the daemon runs", || files.join(".volumes/v/daemon").exists());
    let program = process(&files.join("main"));
    let children = || {
        // Processes of the pod: whose network namespace is the program's.
        let namespace = |id: &str| std::fs::read_link(format!("/proc/{id}/ns/net")).ok();
        let own = namespace(&program.as_raw_nonzero().to_string());
        let all = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        all.filter(|id| id.parse::<i32>().is_ok() && own.is_some() && namespace(id) == own)
            .collect::<Vec<_>>()
    };
    let before = children();
    assert!(
        before.len() >= 5,
        "two of the pod, two of the container, the program and the daemon: {before:?}"
    );
    let mark = files.join("mark");
    std::fs::write(&mark, "of the first").unwrap();
    home.text("clean");
    assert!(files.join(".volumes/v/daemon").exists(), "what a running network has stays");
    let network: i32 = home.json("status")[0]["pid"].as_i64().unwrap().try_into().unwrap();
    kill_process(Pid::from_raw(network).unwrap(), Signal::KILL).unwrap();
    for id in before {
        let id = Pid::from_raw(id.parse().unwrap()).unwrap();
        await_that("every process ends", || !is_there(id));
    }
    // What it left on disk is taken away, but for what its programs said.
    let said = home.text("clean");
    let volumes = files.join(".volumes");
    assert!(said.contains(&format!("removed files of a pod in {}\n", volumes.display())), "{said}");
    assert!(!volumes.exists() && files.join("main/0.log").exists());
    let file = home.file("real.yaml");
    // The next network of the name finds nothing in its way, and no files of the one before.
    home.text(&format!("up -d -f {}", file.display()));
    assert!(!mark.exists());
    home.text("down");
}

/// As many as FLATNET_PODS says, on one node; each answers its neighbour at once. When they are deleted nothing is left of them:
/// neither files of the network's, nor processes, nor namespaces.
#[test]
fn many_pods_come_and_go_without_a_trace() {
    let count: usize = std::env::var("FLATNET_PODS").map_or(40, |count| count.parse().unwrap());
    let nodes =
        NODES.replace("address: 192.168.66.11/24}", "address: 192.168.66.11/24, podCIDR: 10.1.16.0/20}");
    let held = |home: &Home| {
        let id = home.json("status")[0]["pid"].clone();
        let files = std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().count();
        // A thread's own.
        let tasks = std::fs::read_dir(format!("/proc/{id}/task")).unwrap();
        let children = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("children")));
        (files, children.map(|text| text.unwrap_or_default().split_whitespace().count()).sum::<usize>())
    };
    // What a network has that never had a real pod but one.
    let one = pod("p0", "node-1", "exec sleep 1000", ("", ""));
    let home = network(&[&nodes, &one]);
    home.text("delete pod p0");
    await_that("its namespaces end", || held(&home).1 == 0);
    let (usual, _) = held(&home);
    let usual_memory = resident(&home);
    home.text("down");
    drop(home);

    let pods: String =
        (0..count).map(|number| pod(&format!("p{number}"), "node-1", "exec sleep 1000", ("", ""))).collect();
    let begin = Instant::now();
    let home = network(&[&nodes, &pods]);
    let up = begin.elapsed();
    let table = home.text("get pods");
    assert_eq!(table.lines().filter(|line| line.contains("Running")).count(), count);
    let (first, last) = (format!("p{}", count - 1), table.lines().last().unwrap().to_owned());
    let address = last.split_whitespace().find(|word| word.starts_with("10.1.")).unwrap();
    // Nobody listens there, which its neighbour says.
    let ask = format!("exec {first} -- python3 -c __import__('socket').create_connection(('{address}',9),5)");
    assert!(String::from_utf8(home.run(&ask).stdout).unwrap().contains("Connection refused"));
    let (files, children) = held(&home);
    assert!(files > usual + count && children >= count, "{files} {children}");
    let meanwhile = resident(&home);
    let begin = Instant::now();
    for number in 0..count {
        home.text(&format!("delete pod p{number}"));
    }
    await_that("all files are closed and all processes gone", || held(&home) == (usual, 0));
    let (gone, memory) = (begin.elapsed(), resident(&home));
    eprintln!(
        "{count} real pods: up in {up:.1?}, gone in {gone:.1?}; {files} files and {meanwhile} KiB meanwhile, {memory} KiB afterwards \
         ({usual_memory} where there was one)"
    );
    // What stays is the store's history and what the allocator keeps, of its makers' threads and between; a TAP alone is 64 KiB.
    let kept = 40 * 1024 + 48 * count as u64;
    assert!(memory <= usual_memory + kept, "{memory} KiB, {usual_memory} KiB before");
    let ledger = home.json("down");
    assert_eq!((&ledger["balances"], &ledger["buffers"]["held"]), (&true.into(), &0.into()), "{ledger}");
}

/// What a network's process has in memory, KiB.
fn resident(home: &Home) -> u64 {
    let id = home.json("status")[0]["pid"].clone();
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn mistakes_are_told_before_anything_runs() {
    let home = Home::new();
    let file = home.file("real.yaml");
    let text = NODES.replace("seed: 7", "time: virtual") + &pod("p", "node-1", "true", ("", ""));
    std::fs::write(&file, text).unwrap();
    let said = home.error(&format!("up --check -f {}", file.display()));
    assert!(said.contains("pod p runs programs of this host, which do not wait for virtual time"), "{said}");
    let in_background = home.error(&format!("up -d -f {}", file.display()));
    let (same, rest) = in_background.split_at(said.len());
    assert_eq!(same, said, "the same lines");
    assert!(rest.contains("the network real did not come up"), "{rest}");
}

#[test]
fn a_namespace_of_somebody_else_is_a_pod_while_the_network_runs() {
    let namespace = Namespace::new();
    let attached = format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: lab\n  annotations: {{\"flatnet.dev/attach\": \"netns:{}\", \
         \"flatnet.dev/mac\": \"02:00:00:00:00:07\"}}\nspec: {{nodeName: node-1, containers: [{{name: c, image: \
         flatnet/pause}}]}}\n",
        namespace.path()
    );
    let home = network(&[NODES, &attached, SIMULATED, &service("simulated", "10.96.0.20")]);
    assert!(namespace.says("ip link show eth0").contains("link/ether 02:00:00:00:00:07 "));
    assert!(namespace.says(&fetch("10.96.0.20")).contains("Welcome to nginx!"));
    let address = home.text("get pods").lines().nth(1).unwrap().split_whitespace().nth(4).unwrap().to_owned();
    home.text(&format!("exec simulated -- ping -c 1 -W 5 {address}"));
    let said = home.error("exec lab -- true");
    assert!(said.contains("no program can be started in lab: nothing of ours runs there"), "{said}");
    let said = home.error("trace lab simulated");
    assert!(said.contains("lab is not simulated: a trace follows a packet of ours"), "{said}");
    let said = home.error("link lab node-1 delay=1ms");
    assert!(said.contains("the link of lab is not simulated and cannot be changed"), "{said}");
    assert_eq!(home.json("down")["balances"], true);
    let left = namespace.says("ip -o link");
    assert_eq!(left.lines().count(), 1, "what was made there is gone: {left}");
    assert!(left.contains("state DOWN"), "lo is as it was: {left}");
    assert_eq!(namespace.says("ip -o address"), "", "lo is as it was");
}

#[test]
fn a_namespace_that_is_made_anew_is_the_pod_again() {
    let home = Home::new();
    let path = home.file("lab");
    std::fs::write(&path, "").unwrap();
    let attached = format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: lab, annotations: {{\"flatnet.dev/attach\": \"netns:{}\", \
         \"flatnet.dev/ip\": 10.1.47.9}}}}\nspec: {{nodeName: node-1, containers: [{{name: c, image: flatnet/pause}}]}}\n",
        path.display()
    );
    let nodes = NODES.replace("11/24}", "11/24, podCIDR: 10.1.47.0/24}");
    let topology = home.file("real.yaml");
    std::fs::write(&topology, [&nodes, &attached, SIMULATED].concat()).unwrap();
    home.text(&format!("up -d -f {}", topology.display()));
    assert_eq!(status(&home, "lab"), "FailedCreatePodSandBox");
    for _ in 0..2 {
        let namespace = Namespace::new();
        let mounted = Mounted::new(&namespace.path(), &path);
        await_that("it is reached", || {
            home.run("exec simulated -- ping -c 1 -W 1 10.1.47.9").status.success()
        });
        assert_eq!(status(&home, "lab"), "Running");
        drop(mounted);
    }
    await_that("its end is said", || status(&home, "lab") == "FailedCreatePodSandBox");
    assert_eq!(home.json("down")["balances"], true);
}

/// A file at the place of another, as `ip netns` has namespaces.
struct Mounted(PathBuf);

impl Mounted {
    fn new(from: &str, to: &Path) -> Self {
        rustix::mount::mount_bind(from, to).unwrap();
        Self(to.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

/// A route by an interface goes when that is down for a moment only.
#[test]
fn a_loopback_that_is_up_is_not_touched() {
    let namespace = Namespace::new();
    namespace.says("ip link set lo up && ip route add 203.0.113.0/24 dev lo");
    let attached = format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: lab, annotations: {{\"flatnet.dev/attach\": \"netns:{}\"}}}}\nspec: \
         {{nodeName: node-1, containers: [{{name: c, image: flatnet/pause}}]}}\n",
        namespace.path()
    );
    let home = network(&[NODES, &attached]);
    assert!(namespace.says("ip link show eth0").contains("UP"));
    let route = || namespace.says("ip route show dev lo");
    assert!(route().contains("203.0.113.0/24"), "{}", route());
    home.text("down");
    assert!(route().contains("203.0.113.0/24"), "{}", route());
}

/// What a killed network left of `lo` in namespaces of others is put back by the one who cleans up, or by the next of its name; but
/// not what is in use by somebody by then.
#[test]
fn a_loopback_is_put_back_when_the_network_was_killed() {
    let attached = |name: &str, namespace: &Namespace| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, annotations: {{\"flatnet.dev/attach\": \"netns:{}\"}}}}\n\
             spec: {{nodeName: node-1, containers: [{{name: c, image: flatnet/pause}}]}}\n",
            namespace.path()
        )
    };
    let [down, addressed, up, used] = [(); 4].map(|()| Namespace::new());
    addressed.says("ip address add 127.0.0.1/8 dev lo");
    up.says("ip link set lo up");
    let lo = |namespace: &Namespace| {
        let flags = namespace.says("ip -o link show lo");
        let addresses = namespace.says("ip -o -4 address show lo");
        let addresses = addresses.split_whitespace().skip_while(|word| *word != "inet").nth(1);
        (flags.contains(",UP"), addresses.map(str::to_owned))
    };
    let own = Some("127.0.0.1/8".to_owned());
    let all = [&down, &addressed, &up, &used];
    let pods: String = all.iter().enumerate().map(|(n, it)| attached(&format!("p{n}"), it)).collect();
    let home = network(&[NODES, &pods]);
    let kill = || {
        let process: i32 = home.json("status")[0]["pid"].as_i64().unwrap().try_into().unwrap();
        let process = Pid::from_raw(process).unwrap();
        kill_process(process, Signal::KILL).unwrap();
        await_that("it is gone", || !is_there(process));
        await_that("its interfaces are", || !down.says("ip -o link").contains("eth0"));
    };
    for namespace in all {
        assert_eq!(lo(namespace), (true, own.clone()));
    }
    home.text("clean");
    assert_eq!(lo(&down), (true, own.clone()), "what a running network has stays");
    kill();
    used.says("ip address add 192.0.2.1/32 dev lo");
    let said = home.text("clean");
    for (namespace, changed) in [(&down, true), (&addressed, true), (&up, false), (&used, false)] {
        let line = format!("removed what was changed of lo in {}\n", namespace.path());
        assert_eq!(said.contains(&line), changed, "{said}");
    }
    assert_eq!(lo(&down), (false, None));
    assert_eq!(lo(&addressed), (false, own.clone()));
    assert_eq!((lo(&up), lo(&used)), ((true, own.clone()), (true, own.clone())));
    assert_eq!(home.text("clean"), "nothing was left behind\n");
    // The next of the name finds it as the killed one left it.
    let again = format!("up -d -f {}", home.file("real.yaml").display());
    home.text(&again);
    kill();
    home.text(&again);
    assert_eq!(lo(&down), (true, own.clone()));
    home.text("down");
    assert_eq!((lo(&down), lo(&addressed)), ((false, None), (false, own.clone())));
    assert_eq!(lo(&up), (true, own));
    assert_eq!(home.text("clean"), "nothing was left behind\n");
}

#[test]
fn a_namespace_with_a_way_out_of_its_own_says_what_to_do_and_stays_as_it_was() {
    let namespace = Namespace::new();
    namespace
        .says("ip link add d0 type veth peer name d1 && ip link set d0 up && ip route add default dev d0");
    let attached = format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: lab, annotations: {{\"flatnet.dev/attach\": \"netns:{}\"}}}}\nspec: \
         {{nodeName: node-1, containers: [{{name: c, image: flatnet/pause}}]}}\n",
        namespace.path()
    );
    let home = network(&[NODES, &attached]);
    let state = &home.json("get pods")["items"][0]["status"]["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(state["reason"], "FailedCreatePodSandBox", "{state}");
    let message = state["message"].as_str().unwrap();
    let expected = format!("the network namespace {} has a default route already", namespace.path());
    assert!(message.contains(&expected) && message.contains("`ip route del default`"), "{message}");
    let left = namespace.says("ip -o link");
    assert!(!left.contains("eth0") && left.contains("lo: <LOOPBACK> "), "{left}");
    home.text("down");
}

/// What namespaces and interfaces take is said once, whatever many pods lack it; simulated pods run.
#[test]
fn who_may_not_make_namespaces_is_told_what_is_missing_and_what_works() {
    let home = Home::new();
    let file = home.file("real.yaml");
    let real = |name| pod(name, "node-1", "exec sleep 1000", ("", ""));
    std::fs::write(&file, [NODES, &real("one"), &real("two"), SIMULATED].concat()).unwrap();
    let up = |kept: &str| {
        let up = home.command(&format!("up -d -f {}", file.display()));
        let mut command = std::process::Command::new("setpriv");
        command.arg(format!("--bounding-set=-all{kept}")).arg(up.get_program()).args(up.get_args());
        command.envs(up.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said = up(",+net_admin,+sys_chroot");
    let expected = "warning: one is not simulated, for which this process lacks CAP_SYS_ADMIN; simulated pods need no capabilities\n";
    assert_eq!(said, expected);
    assert_eq!((&*status(&home, "two"), &*status(&home, "simulated")), ("FailedCreatePodSandBox", "Running"));
    home.text("down");
    assert_eq!(up(",+net_admin,+sys_chroot,+sys_admin"), "");
    await_that("those are enough", || status(&home, "two") == "Running");
    assert!(home.run("exec one -- true").status.success());
    home.text("down");
}

#[test]
fn a_tap_of_somebody_else_is_a_pod_and_stays_when_the_network_ends() {
    let host = Namespace::new();
    host.says("ip tuntap add dev vm0 mode tap && ip link set lo up");
    let attached = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: vm, annotations: {\"flatnet.dev/attach\": \"tap:vm0\"}}\nspec: \
                    {nodeName: node-1, containers: [{name: c, image: flatnet/pause}]}\n";
    let home = Home::new();
    let file = home.file("real.yaml");
    let text = [NODES, attached, SIMULATED, &service("simulated", "10.96.0.20")].concat();
    std::fs::write(&file, text).unwrap();
    // The network has the TAP in its own namespace of the host.
    let up = home.command(&format!("up -d -f {}", file.display()));
    let output = host.command(&up).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let pods = home.json("get pods");
    let pods = pods["items"].as_array().unwrap();
    let vm = pods.iter().find(|pod| pod["metadata"]["name"] == "vm").unwrap();
    let address: std::net::Ipv4Addr = vm["status"]["podIP"].as_str().unwrap().parse().unwrap();
    let [a, b, c, d] = address.octets();
    host.says(&format!(
        "ip link set vm0 address 02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x} mtu 1472 up && ip addr add {address}/24 dev vm0 && ip route add \
         default via {a}.{b}.{c}.1"
    ));
    assert!(host.says(&fetch("10.96.0.20")).contains("Welcome to nginx!"));
    home.text(&format!("exec simulated -- ping -c 1 -W 5 {address}"));
    assert_eq!(home.json("down")["balances"], true);
    host.says("ip link show vm0");
}
