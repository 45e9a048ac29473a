//! What programs say, and what they exit with.

use super::*;

#[test]
fn curl_gets_pages_and_says_what_is_wrong() {
    let mut segment = Segment::pair();
    segment.pods[1].start_container(container("web", Image::Httpd, "")).unwrap();
    let (text, code) = segment.exec(0, "curl -s http://10.1.15.3/a");
    assert_eq!(code, 0);
    assert!(text.contains("pod: second\n") && text.contains("path: /a\n"), "{text}");
    let (text, code) = segment.exec(0, "curl -sv http://10.1.15.3/a");
    assert_eq!(code, 0);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    assert_eq!(lines[..3], ["* Connected to 10.1.15.3 port 80", "> GET /a HTTP/1.1", "> Host: 10.1.15.3"]);
    assert!(text.contains("\n> \n< HTTP/1.1 200 OK\n"), "{text}");
    assert!(
        text.split("\n< \n").nth(1).unwrap().contains("pod: second\n"),
        "the body comes after the head: {text}"
    );
    let (text, code) = segment.exec(0, "curl http://10.1.15.3:81/");
    assert!(text.starts_with("curl: (7) Failed to connect to 10.1.15.3 port 81"), "{text}");
    assert_eq!(code, 7);
    let (text, code) = segment.exec(0, "curl -x nobody:3128 http://10.1.15.3/");
    assert_eq!((text.as_str(), code), ("curl: (5) Could not resolve proxy: nobody\n", 5));
    let (text, code) = segment.exec(0, "curl --proxy http://10.1.15.3 http://nobody/");
    assert!(code == 7 && text.contains("10.1.15.3 port 1080"), "{text}");
    segment.pods[1].kill();
    let (_, code) = segment.exec(0, "curl -s -m 2 http://10.1.15.3/");
    assert_eq!(code, 28);
    assert!(segment.pods[1].drops().get(PodDrop::Dead) > 0);
}

/// POSIX, cat: "If no file operands are specified, the standard input shall be used", and for an operand `-`.
#[test]
fn cat_without_files_copies_its_input() {
    let mut segment = Segment::pair();
    for argv in [vec!["cat"], vec!["cat", "-"], vec!["sh", "-c", "cat"]] {
        let argv: Vec<String> = argv.into_iter().map(String::from).collect();
        let now = segment.now;
        let id = segment.pods[0].exec(&argv, now);
        segment.pods[0].input(id, b"one\n");
        segment.run(Duration::from_secs(1));
        let first = segment.pods[0].output(id);
        assert_eq!((&first.bytes[..], first.exit_code), (&b"one\n"[..], None), "{argv:?}: there may be more");
        segment.pods[0].input(id, b"two\n");
        segment.pods[0].close_input(id);
        let (text, code) = segment.finish(0, id);
        assert_eq!((text.as_str(), code), ("two\n", 0), "{argv:?}");
    }
}

/// RFC 1122, 4.1.3.3 and 4.1.4: an error is about the datagram it quotes; one about a port that a damaged datagram went to ends no
/// connection to another.
#[test]
fn nc_ends_by_an_error_about_its_own_peer_only_and_says_it() {
    let refused = "hellonc: 10.1.15.3 port 7 (udp): Connection refused\n";
    let too_long = "hellonc: 10.1.15.3 port 7 (udp): Message too long\n";
    for (port, why, said, code) in
        [(8, 3, "hello", None), (7, 3, refused, Some(1)), (7, 4, too_long, Some(1))]
    {
        let mut segment = echo_pair();
        let id = segment.spawn(0, "nc -u 10.1.15.3 7");
        segment.pods[0].input(id, b"hello");
        segment.run(Duration::from_secs(1));
        let is_udp =
            |frame: &&Vec<u8>| frame.len() > 42 && frame[23] == 17 && frame[26..30] == FIRST.octets();
        let about = segment.log.iter().find(is_udp).unwrap().clone();
        let error = unreachable(&about, port, why);
        segment.with(0, |pod, now, out| pod.receive(&error, now, out));
        segment.run(Duration::from_secs(1));
        let output = segment.pods[0].output(id);
        assert_eq!((&output.bytes[..], output.exit_code), (said.as_bytes(), code), "{port}");
    }
}

/// RFC 792: time exceeded, port unreachable.
#[test]
fn traceroute_shows_hops_and_what_is_unreachable() {
    let mut segment = Segment::pair();
    let (text, code) = segment.exec(0, "traceroute -n -q 1 10.1.15.3");
    let expected =
        "traceroute to 10.1.15.3 (10.1.15.3), 30 hops max, 60 byte packets\n 1  10.1.15.3  0.200 ms\n";
    assert_eq!((text.as_str(), code), (expected, 0));
    let (text, _) = segment.exec(0, "traceroute -n -q 1 10.1.15.9");
    assert!(text.ends_with(" 1  10.1.15.2  3000.000 ms !H\n"), "{text}");
    segment.pods[1].kill();
    let (text, _) = segment.exec(0, "traceroute -n -q 2 -m 2 -w 1 10.1.15.3");
    assert!(text.ends_with(" 1  * *\n 2  * *\n"), "{text}");
}

/// RFC 9293, 3.6: who has closed may still be sent to.
#[test]
fn what_a_program_says_waits_for_its_reader_whole_and_the_program_with_it() {
    let input: Vec<u8> = (0..10u32 << 20).map(|number| number as u8).collect();
    for line in ["cat", "nc 10.1.15.3 7"] {
        let mut segment = echo_pair();
        let id = segment.spawn(0, line);
        segment.pods[0].input(id, &input);
        segment.pods[0].close_input(id);
        // Nobody reads for a minute.
        segment.run(Duration::from_secs(60));
        let mut output = segment.pods[0].output(id);
        let first = output.bytes.len();
        assert!(first < 2 << 20, "{line} has gone on reading: {first}");
        let until = segment.now + Duration::from_secs(600);
        let mut whole = output.bytes;
        while output.exit_code.is_none() {
            assert!(segment.step(until), "{line} never ends");
            output = segment.pods[0].output(id);
            whole.extend_from_slice(&output.bytes);
        }
        assert!(whole == input && output.exit_code == Some(0), "{line}: {} octets", whole.len());
    }
}

#[test]
fn nc_sends_all_its_input_to_a_listener_that_has_none() {
    let mut segment = echo_pair();
    let listener = segment.spawn(1, "nc -l 5556");
    segment.pods[1].close_input(listener);
    segment.run(Duration::from_millis(1));
    let sender = segment.spawn(0, "nc 10.1.15.3 5556");
    // The listener's end of input comes first.
    segment.run(Duration::from_millis(10));
    for _ in 0..30 {
        segment.pods[0].input(sender, &[b'x'; 10_000]);
        segment.run(Duration::from_millis(10));
    }
    segment.pods[0].close_input(sender);
    assert_eq!(segment.finish(0, sender).1, 0);
    let (text, code) = segment.finish(1, listener);
    assert_eq!((text.len(), code), (300_000, 0));
}

#[test]
fn programs_say_what_they_are_asked() {
    let mut segment = Segment::pair();
    for (line, text, code) in [
        ("true", "", 0),
        ("false", "", 1),
        ("echo a b", "a b\n", 0),
        ("hostname", "first\n", 0),
        ("sleep 2", "", 0),
        (
            "ip route",
            "default via 10.1.15.1 dev eth0\n10.1.15.0/24 dev eth0 proto kernel scope link src 10.1.15.2\n",
            0,
        ),
    ] {
        assert_eq!(segment.exec(0, line), (text.into(), code), "{line}");
    }
    assert_eq!(segment.now, Instant::ZERO + Duration::from_secs(2));
    let (text, code) = segment.exec(0, "vi");
    assert!(text.starts_with("vi: not found; there is: cat curl "), "{text}");
    assert_eq!(code, 127);
    segment.exec(0, "ping -c 1 10.1.15.3");
    let (text, _) = segment.exec(0, "ip neigh");
    assert_eq!(text, "10.1.15.3 dev eth0 lladdr 02:42:0a:01:0f:03 REACHABLE\n");
    assert!(segment.exec(0, "ip addr").0.contains("inet 10.1.15.2/24 brd 10.1.15.255 scope global eth0"));
}

#[test]
fn the_shell_runs_lists_loops_and_conditions() {
    let mut segment = Segment::pair();
    let mut sh = |script: &str| {
        let argv = ["sh", "-c", script].map(String::from);
        let id = segment.pods[0].exec(&argv, segment.now);
        segment.finish(0, id)
    };
    for (script, text, code) in [
        ("echo a; false && echo b || echo 'c  d'; exit 3", "a\nc  d\n", 3),
        ("for i in 1 2 3; do echo n$i; done", "n1\nn2\nn3\n", 0),
        ("if false; then echo yes; else echo no; fi", "no\n", 0),
        ("until true; do echo x; done; echo $HOSTNAME $?", "first 0\n", 0),
        ("echo hidden > /dev/null; ping -c 1 10.1.15.3 >/dev/null 2>&1 && echo reached", "reached\n", 0),
        ("# nothing\necho \"a \\\"b\"", "a \"b\n", 0),
        (
            "vi",
            "vi: not found; there is: cat curl date echo env exit false hostname ip iperf ls mkdir nc nslookup ping rm sh sleep touch traceroute true wget\n",
            127,
        ),
    ] {
        assert_eq!(sh(script), (text.into(), code), "{script}");
    }
    let argv = ["sh", "-c", "while true; do sleep 10; done"].map(String::from);
    let sleeping = segment.pods[0].exec(&argv, segment.now);
    let argv = ["sh", "-c", "while :; do :; done"].map(String::from);
    let busy = segment.pods[0].exec(&argv, segment.now);
    segment.run(Duration::from_millis(100));
    assert_eq!(segment.pods[0].output(sleeping).exit_code, None);
    segment.pods[0].signal(busy, segment.now);
    assert_eq!(segment.pods[0].output(busy).exit_code, Some(130));
}

#[test]
fn wget_prints_pages_too() {
    let mut segment = Segment::pair();
    segment.pods[1].start_container(container("web", Image::Nginx, "")).unwrap();
    let (text, code) = segment.exec(0, "wget -q -O - http://10.1.15.3");
    assert!(text.contains("Welcome to nginx!"), "{text}");
    assert_eq!(code, 0);
    let (text, code) = segment.exec(0, "wget --spider -T 1 http://10.1.15.3:81");
    assert!(text.starts_with("wget: Failed to connect to 10.1.15.3 port 81"), "{text}");
    assert_eq!(code, 1);
}

/// RFC 1034, 3.6.2; RFC 1035, 4.
#[test]
fn names_are_looked_up_with_the_search_list() {
    let search = ["default.svc.cluster.local", "svc.cluster.local"].map(String::from).to_vec();
    let first = PodConfig { nameserver: Some(SECOND), search, ..pod("first", FIRST) };
    let mut segment = Segment::new(vec![first, pod("second", SECOND)]);
    segment.pods[1].start_container(container("web", Image::Httpd, "")).unwrap();
    segment.pods[1].stack.udp.bind(53, Owner::Program(ProgramId(0))).unwrap();
    let mut run = |line: &str, queries: usize| {
        let id = segment.spawn(0, line);
        let mut count = 0;
        for _ in 0..20 {
            segment.run(Duration::from_millis(1));
            count += serve_dns(&mut segment);
        }
        assert_eq!(count, queries, "{line}");
        segment.finish(0, id)
    };
    let (text, code) = run("curl -s http://web/", 1);
    assert!(text.contains("pod: second"), "{text}");
    assert_eq!(code, 0);
    assert!(
        run("ping -c 1 web.default.svc.cluster.local", 3)
            .0
            .contains("PING web.default.svc.cluster.local (10.1.15.3)")
    );
    assert_eq!(run("curl http://web2/", 3), ("curl: (6) Could not resolve host: web2\n".into(), 6));
    assert!(run("nslookup web", 1).0.contains("Name:\tweb.default.svc.cluster.local\nAddress: 10.1.15.3\n"));
    assert_eq!(run("ping -c 1 first", 0).1, 0);
}

#[test]
fn a_silent_dns_server_ends_in_an_error() {
    let first = PodConfig { nameserver: Some(Ipv4Addr::new(10, 1, 15, 9)), ..pod("first", FIRST) };
    let mut segment = Segment::new(vec![first, pod("second", SECOND)]);
    let (text, code) = segment.exec(0, "ping -c 1 web");
    assert_eq!((text.as_str(), code), ("ping: web: Name or service not known\n", 2));
    segment.pods[0] = Pod::new(pod("first", FIRST));
    assert_eq!(segment.exec(0, "ping -c 1 web").1, 2);
}

#[test]
fn nc_talks_both_ways_by_tcp_and_udp() {
    for udp in ["", "-u "] {
        let mut segment = Segment::pair();
        let server = segment.spawn(1, &format!("nc {udp}-l -p 4000"));
        segment.run(Duration::from_millis(1));
        let client = segment.spawn(0, &format!("nc {udp}10.1.15.3 4000"));
        segment.pods[0].input(client, b"question");
        segment.run(Duration::from_millis(10));
        assert_eq!(segment.pods[1].output(server).bytes, b"question");
        segment.pods[1].input(server, b"answer");
        segment.run(Duration::from_millis(10));
        assert_eq!(segment.pods[0].output(client).bytes, b"answer");
        segment.pods[0].signal(client, segment.now);
        assert_eq!(segment.pods[0].output(client).exit_code, Some(130));
        segment.run(Duration::from_millis(100));
        assert_eq!(segment.pods[1].output(server).exit_code, if udp.is_empty() { Some(0) } else { None });
    }
}

#[test]
fn iperf_measures_by_tcp_and_udp() {
    let mut segment = Segment::pair();
    segment.spawn(1, "iperf -s");
    segment.spawn(1, "iperf -s -u");
    segment.run(Duration::from_millis(1));
    let (text, code) = segment.exec(0, "iperf -c 10.1.15.3 -n 1M");
    assert!(text.contains("1.00 MBytes") && text.contains("bits/sec"), "{text}");
    assert_eq!(code, 0);
    let (text, _) = segment.exec(0, "iperf -c 10.1.15.3 -u -t 1");
    assert!(text.contains("1.05 Mbits/sec"), "{text}");
    // However much is asked for, a turn is bounded: the other programs and pods get theirs.
    for (rate, code) in [("1e12", 0), ("1e13", 2), ("0", 2), ("1e300", 2)] {
        let (text, ended) = segment.exec(0, &format!("iperf -c 10.1.15.3 -u -t 0.001 -b {rate}"));
        assert_eq!(ended, code, "-b {rate}: {text}");
    }
    let (text, code) = segment.exec(0, "ping -c 0 10.1.15.3");
    assert_eq!(code, 2, "{text}");
    let (text, code) = segment.exec(0, "iperf -c 10.1.15.3 -p 5002");
    assert_eq!((text.as_str(), code), ("iperf: Connection refused\n", 1));
}

#[test]
fn a_client_container_ends_with_its_program() {
    let mut segment = Segment::pair();
    segment.pods[0].start_container(container("job", Image::Client, "ping -c 1 10.1.15.3")).unwrap();
    segment.run(Duration::from_secs(1));
    assert_eq!(segment.pods[0].containers().last().unwrap().state, ContainerState::Exited(0));
    let text = segment.pods[0].container_output("job");
    assert!(String::from_utf8(text).unwrap().contains("1 received"));
    segment.pods[0].start_container(container("job", Image::Client, "false")).unwrap();
    segment.run(Duration::from_secs(1));
    assert_eq!(segment.pods[0].containers().last().unwrap().state, ContainerState::Exited(1));
}
