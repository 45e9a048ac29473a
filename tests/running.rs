//! A network in the background, and the commands that ask it.

#![expect(clippy::unwrap_used, reason = "the exemption for tests does not reach their helpers")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use common::{Home, tshark};

#[test]
fn programs_run_in_pods_and_on_hosts() {
    let home = Home::with_network();
    let ping = home.text("exec web-app-2 -- ping -c 3 -i 0.2 10.1.20.3");
    assert!(ping.contains("3 packets transmitted, 3 received, 0% packet loss"), "{ping}");
    let page = home.text("exec backend -- curl -s http://10.1.15.3/");
    assert!(page.contains("Welcome to nginx!"), "{page}");
    let outside = home.text("exec user -- curl -s http://192.168.66.11:30080/");
    assert!(outside.contains("Welcome to nginx!"), "{outside}");
    let measured = home.text("exec web-app-2 -- iperf -c 10.1.20.3 -p 7 -n 100K");
    assert!(measured.contains("bits/sec"), "{measured}");
}

#[test]
fn traceroute_shows_docker0_flannel0_and_the_pod() {
    let home = Home::with_network();
    let text = home.text("exec web-app-2 -- traceroute 10.1.20.3");
    let hops: Vec<_> = text.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(hops, ["10.1.15.1", "10.1.20.0", "10.1.20.3"]);
}

#[test]
fn programs_take_input_and_give_their_exit_code() {
    let home = Home::with_network();
    let echoed = home.with_input("exec web-app-2 -- nc -w 2 10.1.20.3 7", "one\ntwo\n");
    assert_eq!((echoed.status.code(), &*echoed.stdout), (Some(0), &b"one\ntwo\n"[..]), "{echoed:?}");
    assert_eq!(home.run("exec user -- exit 7").status.code(), Some(7));
    assert_eq!(home.run("exec user -- emacs").status.code(), Some(127));
    let unknown = home.error("exec nobody -- true");
    assert!(unknown.contains("no pod or host nobody") && unknown.contains("web-app-1"), "{unknown}");
}

#[test]
fn a_network_in_the_background_takes_files_only() {
    let home = Home::new();
    let text = include_str!("../scripts/topologies/two-nodes.yaml");
    let refused = home.with_input("up -d -f /dev/stdin", text);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("-d takes files"), "{said}");
}

#[test]
fn ctrl_c_ends_the_program_in_the_pod_and_shows_its_last_words() {
    let home = Home::with_network();
    let mut child = home.piped("exec web-app-2 -- ping -i 0.2 10.1.20.3");
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("icmp_seq=2") {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "it streams");
    }
    interrupt(child.id());
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    // Whether an answer was still on its way is not this test's matter.
    assert!(rest.contains("packets transmitted") && rest.contains("packet loss"), "{rest}");
    assert!(child.wait().unwrap().success());
}

/// A pipe holds 64 KiB (pipe(7)): a reader that pauses must not keep Ctrl-C from the program.
#[test]
fn ctrl_c_is_heard_while_nobody_reads_the_output() {
    let home = Home::with_network();
    let mut command = home.command("exec web-app-2 -- sh -c");
    command.arg("while true; do echo a line that fills the pipe; done");
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut [0]).unwrap();
    interrupt(child.id());
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "it was ended, not killed for its time");
}

/// Sends SIGINT to the child of a `timeout`, through it.
fn interrupt(pid: u32) {
    assert!(Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap().success());
}

#[test]
fn tables_are_printed_as_the_usual_tools_do() {
    let home = Home::with_network();
    home.text("exec web-app-1 -- ping -c 1 203.0.113.10");
    home.text("exec user -- curl -s http://192.168.66.11:30080/");
    home.text("exec web-app-2 -- traceroute 10.1.20.3");
    for (words, expected) in [
        ("fdb node-1", "02:42:0a:01:0f:03 dev web-app-1 master docker0 static"),
        ("fdb 192.168.66.0/24", "02:42:c0:a8:42:0b dev node-1 master switch used"),
        ("neighbors node-1", "10.1.15.3 dev docker0 lladdr 02:42:0a:01:0f:03 PERMANENT"),
        ("neighbors node-1", "192.168.66.1 dev eth0 lladdr 02:42:c0:a8:42:01 REACHABLE"),
        ("routes node-1", "default via 192.168.66.1 dev eth0 proto static"),
        ("routes node-1", "10.1.15.0/24 dev docker0 proto kernel scope link src 10.1.15.1"),
        ("routes node-1", "10.1.20.0/24 via 192.168.66.12 dev flannel0 proto flannel"),
        ("routes isp", "203.0.113.0/24 dev eth1 proto kernel scope link src 203.0.113.1"),
        ("services node-2", "TCP  10.96.0.10:80 rr"),
        ("services node-2", "UDP  192.168.66.12:30007 rr"),
        ("services node-2", "  -> 10.1.20.2:80                 Masq    1      0          0"),
        ("flows node-1", "src=10.1.15.3 dst=203.0.113.10 type=8 code=0 id="),
        ("flows node-1", "src=203.0.113.10 dst=192.168.66.11 type=0 code=0 id="),
        ("flows node-1", "src=192.168.66.50 dst=192.168.66.11 sport="),
        ("drops node-1", "ttl-expired      3  The TTL ran out; the sender is told."),
    ] {
        let text = home.text(&format!("show {words}"));
        assert!(text.contains(expected), "show {words}:\n{text}");
    }
    let flows = home.json("show flows node-1");
    let through = flows.as_array().unwrap().iter().find(|flow| flow["original"]["destination_port"] == 30080);
    assert_eq!(through.unwrap()["protocol"], "tcp");
    assert!(home.error("show fdb node-9").contains("node-1, node-2, isp"));
    assert!(home.error("show routes web-app-1").contains("flatnet show routes node-1"));
}

#[test]
fn a_pods_own_drops_are_shown_and_stand_in_the_ledger() {
    let home = Home::with_network();
    assert_eq!(home.json("show drops web-app-2"), serde_json::json!([]));
    let ping = home.run("exec web-app-2 -- ping -c 1 -W 5 10.1.15.77");
    assert_eq!(ping.status.code(), Some(1), "{ping:?}");
    let text = home.text("show drops web-app-2");
    assert!(text.contains("pod-neighbor-unresolved      1  Nobody answered ARP for the next hop"), "{text}");
    let drops = home.json("show drops default/web-app-2");
    assert_eq!((&drops[0]["reason"], &drops[0]["count"]), (&"pod-neighbor-unresolved".into(), &1.into()));
    assert!(drops[0]["hint"].as_str().unwrap().ends_with('.'));
    assert_eq!(home.json("show drops user"), serde_json::json!([]), "a host, too");
    let ledger = home.text("down");
    assert!(ledger.contains("\nweb-app-2 dropped: pod-neighbor-unresolved 1\n"), "{ledger}");
}

#[test]
fn captures_are_read_by_tshark() {
    let home = Home::with_network();
    let echo = ["10.1.15.2\t10.1.20.3\t8", "10.1.20.3\t10.1.15.2\t0"].map(str::to_owned);
    let fields = ["ip.src", "ip.dst", "icmp.type"];
    // Once before, so that no ARP is in the way.
    home.text("exec web-app-2 -- ping -c 1 10.1.20.3");
    for point in ["web-app-2", "default/backend:eth0", "node-1:docker0", "node-2:flannel0"] {
        let file = captured(&home, &format!("capture {point} -c 2"), "10.1.20.3");
        assert_eq!(tshark(&file, &fields), echo, "{point}");
    }
    let file = captured(&home, "capture node-1:eth0 -c 2", "10.1.20.3");
    assert_eq!(tshark(&file, &["ip.src", "udp.dstport"]), ["192.168.66.11\t8285", "192.168.66.12\t8285"]);
    let file = captured(&home, "capture web-app-2:lo -c 2", "127.0.0.1");
    assert_eq!(tshark(&file, &fields), ["127.0.0.1\t127.0.0.1\t8", "127.0.0.1\t127.0.0.1\t0"]);
    let unknown = home.error("capture node-1:eth7");
    assert!(unknown.contains("no point node-1:eth7") && unknown.contains("node-1:flannel0"), "{unknown}");
}

#[test]
fn a_capture_ends_with_its_reader_where_no_frame_passes() {
    let home = Home::with_network();
    let mut child = home.piped("capture web-app-2:lo");
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut [0; 4]).unwrap();
    drop(output);
    // What does not end by itself is killed after a minute, and fails.
    let ended = child.wait().unwrap();
    assert!(ended.success(), "{ended}");
}

/// Captures while web-app-2 pings an address once; the capture runs when its first bytes are there.
fn captured(home: &Home, words: &str, address: &str) -> std::path::PathBuf {
    let mut child = home.piped(words);
    let mut output = child.stdout.take().unwrap();
    let mut bytes = vec![0; 4];
    output.read_exact(&mut bytes).unwrap();
    home.text(&format!("exec web-app-2 -- ping -c 1 {address}"));
    output.read_to_end(&mut bytes).unwrap();
    assert!(child.wait().unwrap().success());
    let file = home.file("capture.pcapng");
    std::fs::write(&file, bytes).unwrap();
    file
}

#[test]
fn down_prints_a_balanced_ledger_of_what_happened() {
    let home = Home::with_network();
    home.text("exec web-app-2 -- ping -c 5 -i 0.2 10.1.20.3");
    let ledger = home.json("down");
    assert_eq!((&ledger["balances"], &ledger["buffers"]["held"]), (&true.into(), &0.into()), "{ledger}");
    let node = ledger["nodes"].as_array().unwrap().iter().find(|row| row["node"] == "node-1").unwrap();
    assert!(node["received"].as_u64().unwrap() >= 10, "{node}");
    assert!(home.error("down").contains("no network runs"));
    let log = std::fs::read_to_string(home.file("flatnet/two-nodes.log")).unwrap();
    assert!(log.contains("balances: received + originated"), "{log}");
}

#[test]
fn a_capture_that_is_read_too_slowly_tells_how_many_frames_it_lacks() {
    const SENT: u64 = 200_000;
    let home = Home::with_network();
    // Frames of 1,000 bytes from the user to an address that nobody has.
    let mut bytes = Vec::from(*b"\xd4\xc3\xb2\xa1\x02\0\x04\0\0\0\0\0\0\0\0\0\xff\xff\0\0\x01\0\0\0");
    let mut frame = vec![0_u8; 1_000];
    frame[..14].copy_from_slice(&[2, 66, 192, 168, 66, 11, 2, 66, 192, 168, 66, 50, 0x86, 0xdd]);
    for second in 0..SENT as u32 / 2 {
        for word in [second, 0, 1_000, 1_000] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(&frame);
    }
    let file = home.file("many.pcap");
    std::fs::write(&file, bytes).unwrap();
    let mut child = home.piped("capture user");
    let mut output = child.stdout.take().unwrap();
    let mut captured = vec![0; 4];
    output.read_exact(&mut captured).unwrap();
    home.text(&format!("replay user {} --loop 2 --speed max", file.display()));
    let rest = std::thread::spawn(move || {
        output.read_to_end(&mut captured).unwrap();
        captured
    });
    // It hears Ctrl-C once what it was writing is read.
    interrupt(child.id());
    let captured = rest.join().unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let mut reader = pcap_file::pcapng::PcapNgReader::new(&captured[..]).unwrap();
    let mut frames = 0_u64;
    while let Some(block) = reader.next_block() {
        frames += u64::from(block.unwrap().into_enhanced_packet().is_some());
    }
    let said = String::from_utf8(output.stderr).unwrap();
    let lost = SENT.checked_sub(frames).unwrap();
    assert!(lost > 0, "the reader was slow");
    assert!(said.starts_with(&format!("warning: {lost} frames at user are not in the capture")), "{said}");
}

#[test]
fn who_does_not_answer_hides_no_other_network() {
    let home = Home::with_network();
    let _foreign = std::os::unix::net::UnixListener::bind(home.file("flatnet/x.sock")).unwrap();
    let output = home.run("status");
    let (text, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(text.contains("\ntwo-nodes ") && text.ends_with("\nx does not answer\n"), "{text}");
    assert!(said.contains("does not answer within 2s") && said.contains("kill -CONT"), "{said}");
    let listed = home.json("status");
    assert_eq!((&listed[0]["name"], &listed[0]["state"]), (&"two-nodes".into(), &"running".into()));
    assert_eq!(listed[1], serde_json::json!({"name": "x", "state": "silent"}));
}

#[test]
fn a_network_that_ends_while_a_program_runs_is_said_to_have_ended() {
    let home = Home::with_network();
    let mut child = home.piped("exec web-app-2 -- ping 10.1.20.3");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    home.text("down");
    let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    assert!(said.contains("network two-nodes ended") && !said.contains("another version"), "{said}");
}

#[test]
fn several_networks_run_side_by_side() {
    let home = Home::with_network();
    assert!(home.error("up -d").contains("a network two-nodes runs already"));
    assert!(
        home.text("up -d --name second --fault link:node-1:node-2").contains("flatnet down --name second\n")
    );
    let running = home.json("status");
    let named = |index: usize| running[index]["name"].as_str().unwrap().to_owned();
    assert_eq!([named(0), named(1)], ["second", "two-nodes"]);
    assert_eq!(running[0]["pods"].as_array().unwrap().len(), 4);
    assert!(home.error("exec user -- true").contains("second, two-nodes"), "one must be named");
    home.text("exec --name two-nodes web-app-2 -- ping -c 1 10.1.20.3");
    let lost = home.run("exec --name second web-app-2 -- ping -c 1 -W 1 10.1.20.3");
    assert_eq!(lost.status.code(), Some(1), "its link is down: {lost:?}");
    home.text("down --name second");
    home.text("exec user -- true");
    assert!(home.error("down --name second").contains("there are two-nodes"));
}

#[test]
fn a_socket_that_nobody_answers_at_is_replaced() {
    let home = Home::new();
    std::fs::create_dir(home.file("flatnet")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(home.file("flatnet/two-nodes.sock")).unwrap());
    assert!(home.text("status").contains("no network runs"));
    assert!(home.text("up -d").starts_with("network two-nodes is up"));
}

/// `flock FILE COMMAND` lets the lock go when nobody has the file open any more.
#[test]
fn what_the_caller_has_open_is_not_kept_by_a_network_in_the_background() {
    let home = Home::new();
    let lock = home.file("lock");
    let up = home.command("up -d");
    let mut locked = Command::new("flock");
    locked.arg(&lock).arg(up.get_program()).args(up.get_args());
    locked.envs(up.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = locked.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let is_free = Command::new("flock").arg("--nonblock").arg(&lock).arg("true").status().unwrap();
    assert!(is_free.success(), "the network has the lock");
    home.text("status");
    // By a number of the caller's a file is to be had only as long as that is.
    let file = home.file("lab.yaml");
    std::fs::write(&file, include_str!("../scripts/topologies/two-nodes.yaml")).unwrap();
    let mut by_number = home.command("up -d --name other -f /dev/fd/0");
    let output = by_number.stdin(std::fs::File::open(file).unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("/dev/fd/0 is no file") && said.contains("-d takes files"), "{said}");
}

#[test]
fn a_network_in_the_foreground_ends_on_ctrl_c_with_its_ledger() {
    let home = Home::new();
    let mut child = home.piped("up");
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("host     user") {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "it comes up");
    }
    // It answers before it ends, so its handlers of signals are there.
    home.text("status");
    home.text("exec user -- true");
    interrupt(child.id());
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("balances: received") && rest.contains("buffers: "), "{rest}");
    assert!(child.wait().unwrap().success());
    assert!(!home.file("flatnet/two-nodes.sock").exists());
}

#[test]
fn in_virtual_time_a_minute_of_ping_takes_no_minute() {
    let home = Home::new();
    let topology = home.file("virtual.yaml");
    let text =
        include_str!("../scripts/topologies/two-nodes.yaml").replace("seed: 7", "seed: 7\n  time: virtual");
    std::fs::write(&topology, text).unwrap();
    home.text(&format!("up -d -f {}", topology.display()));
    let started = std::time::Instant::now();
    let ping = home.text("exec web-app-2 -- ping -c 60 10.1.20.3");
    assert!(ping.contains("60 received, 0% packet loss, time 59000ms"), "{ping}");
    assert!(started.elapsed().as_secs() < 30);
    assert_eq!(home.json("status")[0]["time"], "virtual");
}

#[test]
fn what_is_kept_outlives_down_and_kill() {
    let home = Home::new();
    let facts = |home: &Home| {
        let status = home.json("status")[0].clone();
        let services = home.json("show services node-1");
        let subnets: Vec<_> =
            status["nodes"].as_array().unwrap().iter().map(|node| node["subnet"].clone()).collect();
        (status["pods"].clone(), services, subnets)
    };
    let two = std::fs::read_to_string("scripts/topologies/two-nodes.yaml").unwrap();
    // Subnets and addresses are what chance gives.
    let free: Vec<&str> = two.lines().filter(|line| !line.contains("flatnet.dev/ip")).collect();
    let free = free.join("\n").replace(", podCIDR: 10.1.15.0/24", "").replace(", podCIDR: 10.1.20.0/24", "");
    std::fs::write(home.file("free.yaml"), &free).unwrap();
    let up = format!("up -d --keep -f {}", home.file("free.yaml").display());
    home.text(&up);
    let before = facts(&home);
    home.text("down");
    // Another seed would choose others.
    std::fs::write(home.file("free.yaml"), free.replace("  seed: ", "  seed: 9")).unwrap();
    home.text(&up);
    assert_eq!(facts(&home), before);
    let pid = home.json("status")[0]["pid"].to_string();
    assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    home.text(&up);
    assert_eq!(facts(&home), before);
    home.text("down");

    let file = home.file("flatnet").join("two-nodes/store.redb");
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(100).unwrap();
    let error = home.error(&up);
    assert!(error.contains("store.redb is damaged") && error.contains("away to begin anew"), "{error}");
}

#[test]
fn a_packet_is_followed_through_a_running_network() {
    let home = Home::with_network();
    for _ in 0..3 {
        let report = home.json("trace web-app-2 web tcp 80");
        assert!(report["rtt_ns"].as_u64().unwrap() > 0 && report["error"].is_null(), "{report}");
        let hops = report["hops"].as_array().unwrap();
        let of = |packet: &str| hops.iter().filter(|hop| hop["packet"] == packet).collect::<Vec<_>>();
        let (request, answer) = (of("request"), of("answer"));
        assert_eq!((&request[0]["node"], &request[0]["action"]), (&"web-app-2".into(), &"send".into()));
        assert_eq!(request[0]["headers"]["inner"]["destination"], "10.96.0.10");
        let translated = request.iter().find(|hop| hop["action"] == "translate-destination").unwrap();
        let changed: Vec<_> = translated["changed"].as_array().unwrap().iter().collect();
        assert!(changed.contains(&&"inner.destination".into()), "{changed:?}");
        assert_eq!(request.last().unwrap()["action"], "deliver");
        let last = answer.last().unwrap();
        assert_eq!((&last["node"], &last["action"]), (&"web-app-2".into(), &"deliver".into()));
        assert_eq!(last["headers"]["inner"]["source"], "10.96.0.10");
        assert_eq!(last["headers"]["transport"]["flags"], "SYN ACK");
        let times = request.iter().chain(&answer).map(|hop| hop["time_ns"].as_u64().unwrap());
        assert!(times.collect::<Vec<_>>().is_sorted(), "{hops:#?}");
    }
    let error = home.error("trace nobody web");
    assert!(error.contains("no pod or host nobody") && error.contains("web-app-1"), "{error}");
    home.text("down");
}

/// Asks until it is so, for at most half a minute.
fn eventually(mut is_so: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !is_so() {
        assert!(started.elapsed().as_secs() < 30, "it never is");
    }
}

/// DESIGN's second container on a used port: it fails, and takes nobody with it.
#[test]
fn a_container_that_finds_its_port_in_use_leaves_its_pod_alive() {
    let home = Home::new();
    let file = home.file("ports.yaml");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: both}\nspec:\n  nodeName: node-1\n  containers:\n\
        \x20 - {name: first, image: nginx, ports: [{containerPort: 8080}]}\n\
        \x20 - {name: second, image: nginx, ports: [{containerPort: 8080}]}\n---\n";
    let network = include_str!("../scripts/topologies/two-nodes.yaml");
    std::fs::write(&file, format!("{pod}{network}")).unwrap();
    home.text(&format!("up -d -f {}", file.display()));
    let ip = home.text("exec both -- ip address");
    assert!(ip.contains("10.1.15."), "{ip}");
    let both = home.json("get pods both");
    let containers = &both["items"][0]["status"]["containerStatuses"];
    assert_eq!(containers[0]["ready"], true);
    assert_eq!(containers[1]["state"]["waiting"]["reason"], "CrashLoopBackOff");
    let message = containers[1]["lastState"]["terminated"]["message"].as_str().unwrap();
    assert!(message.contains("address in use by container first"), "{message}");
    assert_eq!(home.json("down")["balances"], true);
}

/// SEED's autonomous pod: what ends stays ended, and what is deleted is not replaced; endpoints follow.
#[test]
fn a_pod_without_a_controller_that_dies_stays_dead() {
    let home = Home::new();
    let file = home.file("job.yaml");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: job, labels: {app: web}}\nspec:\n  restartPolicy: Never\n\
        \x20 containers: [{name: main, image: busybox, command: [sh, -c, 'sleep 1; exit 3']}]\n---\n";
    let network = include_str!("../scripts/topologies/two-nodes.yaml");
    std::fs::write(&file, format!("{pod}{network}")).unwrap();
    home.text(&format!("up -d -f {}", file.display()));
    let pods = |home: &Home| home.text("get pods");
    eventually(|| pods(&home).contains("Error"));
    let job = &home.json("get pod job")["items"][0];
    assert_eq!(job["status"]["phase"], "Failed");
    assert_eq!(job["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    assert!(home.error("exec job -- true").contains("no pod or host job"));
    let endpoints = |home: &Home| home.text("get endpointslices");
    let address = job["status"]["podIP"].as_str().unwrap();
    assert!(!endpoints(&home).contains(address), "{}", endpoints(&home));

    assert!(endpoints(&home).contains("10.1.15.3"));
    assert_eq!(home.text("delete pod web-app-1"), "pod \"web-app-1\" deleted\n");
    assert!(!endpoints(&home).contains("10.1.15.3"));
    assert!(home.error("get pods web-app-1").contains("there is no pod web-app-1"));
    for _ in 0..20 {
        assert!(home.text("exec backend -- curl -s 10.96.0.10").contains("nginx"));
    }
    assert_eq!(pods(&home).matches("web-app-").count(), 2);
    assert!(home.error("delete node node-1").contains("a node cannot be deleted"));
    assert_eq!(home.json("down")["balances"], true);
}

/// Kubernetes' restartPolicy Always, the default: at once, then after ten seconds.
#[test]
fn a_container_that_ends_starts_again() {
    let home = Home::new();
    let file = home.file("again.yaml");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: again}\nspec:\n\
        \x20 containers: [{name: main, image: busybox, command: [sh, -c, 'exit 3']}, {name: web, image: nginx}]\n---\n";
    let network = include_str!("../scripts/topologies/two-nodes.yaml");
    std::fs::write(&file, format!("{pod}{network}")).unwrap();
    home.text(&format!("up -d -f {}", file.display()));
    let again = |home: &Home| home.text("get pods again");
    eventually(|| again(&home).contains("CrashLoopBackOff"));
    let fields: Vec<String> =
        again(&home).lines().nth(1).unwrap().split_whitespace().map(str::to_owned).collect();
    assert_eq!(fields[..4], ["again", "1/2", "CrashLoopBackOff", "1"]);
    assert!(home.text("exec again -- curl -s localhost").contains("nginx"));
    assert_eq!(home.json("down")["balances"], true);
}

/// RFC 9111, 4 and 4.3: missed, then hit, by whoever asks.
#[test]
fn a_page_comes_through_squid_and_then_from_it() {
    let home = Home::new();
    let site = home.file("site");
    std::fs::create_dir(&site).unwrap();
    std::fs::write(site.join("index.html"), "a page\n").unwrap();
    let pods = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: proxy}}\nspec: {{containers: [{{name: squid, image: 'ubuntu/squid:6.6'}}]}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: origin}}\nspec:\n  volumes: [{{name: html, hostPath: {{path: {}}}}}]\n  \
         containers:\n  - {{name: web, image: nginx, args: [--expires, '600'], volumeMounts: [{{name: html, mountPath: /usr/share/nginx/html}}]}}\n---\n",
        site.display(),
    );
    let file = home.file("proxy.yaml");
    std::fs::write(&file, format!("{pods}{}", include_str!("../scripts/topologies/two-nodes.yaml"))).unwrap();
    home.text(&format!("up -d -f {}", file.display()));
    let address = |pod: &str| {
        let pod = &home.json(&format!("get pod {pod}"))["items"][0];
        pod["status"]["podIP"].as_str().unwrap().to_owned()
    };
    let (proxy, origin) = (address("proxy"), address("origin"));
    let asked =
        |pod: &str, url: &str| home.text(&format!("exec {pod} -- curl -s -i -x http://{proxy}:3128 {url}"));
    let page = format!("http://{origin}/");
    for (pod, cache) in [("backend", "MISS"), ("backend", "HIT"), ("web-app-2", "HIT")] {
        let answer = asked(pod, &page);
        assert!(answer.contains(&format!("\r\nX-Cache: {cache} from proxy\r\n")), "{answer}");
        assert!(
            answer.contains("\r\nVia: 1.1 proxy (squid)\r\n") && answer.ends_with("\r\n\r\na page\n"),
            "{answer}"
        );
        assert_eq!(answer.contains("\r\nAge: "), cache == "HIT", "{answer}");
    }
    let refused = asked("backend", &format!("http://{origin}:8080/"));
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("ERR_CONNECT_FAIL 111"), "{refused}");
    assert_eq!(home.json("down")["balances"], true);
}

/// Kubernetes, "Volumes": an `emptyDir` outlives its containers' restarts; a `hostPath` that is not there keeps its container from
/// starting.
#[test]
fn a_static_site_is_written_by_one_container_and_served_by_another() {
    let home = Home::new();
    let site = home.file("site");
    std::fs::create_dir(&site).unwrap();
    std::fs::write(site.join("index.html"), "from the host\n").unwrap();
    let (site, none) = (site.display(), home.file("none"));
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: site}}\nspec:\n  volumes: [{{name: html, emptyDir: {{sizeLimit: 1Ki}}}}]\n  \
         containers:\n  - {{name: web, image: nginx, volumeMounts: [{{name: html, mountPath: /usr/share/nginx/html, readOnly: true}}]}}\n  \
         - {{name: author, image: busybox, command: [sh, -c, 'echo line >> /out/index.html; sleep 1'], \
         volumeMounts: [{{name: html, mountPath: /out}}]}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: host}}\nspec:\n  volumes:\n  - {{name: html, hostPath: {{path: {site}, type: Directory}}}}\n  \
         - {{name: none, hostPath: {{path: {none}, type: Directory}}}}\n  containers:\n  \
         - {{name: web, image: nginx, volumeMounts: [{{name: html, mountPath: /usr/share/nginx/html}}]}}\n  \
         - {{name: other, image: nginx, volumeMounts: [{{name: none, mountPath: /x}}]}}\n---\n",
        none = none.display(),
    );
    let file = home.file("site.yaml");
    std::fs::write(&file, format!("{pod}{}", include_str!("../scripts/topologies/two-nodes.yaml"))).unwrap();
    home.text(&format!("up -d -f {}", file.display()));
    let address = |pod: &str| {
        let pod = &home.json(&format!("get pod {pod}"))["items"][0];
        pod["status"]["podIP"].as_str().unwrap().to_owned()
    };
    // The author ends after a second and starts again at once: its second line joins the first.
    let served = format!("exec backend -- curl -s {}", address("site"));
    eventually(|| home.text(&served) == "line\nline\n");
    assert_eq!(home.text(&format!("exec backend -- curl -s {}", address("host"))), "from the host\n");
    let host = &home.json("get pod host")["items"][0]["status"];
    let statuses = host["containerStatuses"].as_array().unwrap();
    let other = statuses.iter().find(|status| status["name"] == "other").unwrap();
    assert!(other["state"]["running"].is_null(), "{other}");
    assert!(other.to_string().contains("volume"), "{other}");
    // It started again at once and failed as before.
    let message = |state: &serde_json::Value| state["terminated"]["message"].clone();
    eventually(|| {
        let host = &home.json("get pod host")["items"][0]["status"];
        let statuses = host["containerStatuses"].as_array().unwrap();
        let other = statuses.iter().find(|status| status["name"] == "other").unwrap();
        other["restartCount"] == 1 && message(&other["lastState"]).to_string().contains("volume none: ")
    });
    assert_eq!(home.json("down")["balances"], true);
}
