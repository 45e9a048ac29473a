//! squid between a client and an origin, in virtual time.

use super::*;

const THIRD: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 4);
const PROXY: &str = "-x 10.1.15.4:3128";

/// A client, an origin's place, and the proxy.
fn network(args: &str) -> Segment {
    let volumes = vec![Volume::empty("html", 32 << 20)];
    let origin = PodConfig { volumes, ..pod("second", SECOND) };
    let mut segment = Segment::new(vec![pod("first", FIRST), origin, pod("squid", THIRD)]);
    segment.pods[2].start_container(container("squid", Image::Squid, args)).unwrap();
    segment
}

/// Gets a page through the proxy, from an origin that says one thing and ends; what the client got, and what the origin was asked.
fn fetch(segment: &mut Segment, origin: &str, curl: &str) -> (String, String) {
    let server = segment.spawn(1, "nc -l -p 80");
    segment.pods[1].input(server, origin.replace('\n', "\r\n").as_bytes());
    segment.pods[1].close_input(server);
    let (got, code) = segment.exec(0, &format!("curl -s -i {PROXY} {curl}"));
    assert_eq!(code, 0, "{got}");
    segment.run(Duration::from_millis(10));
    let asked = String::from_utf8(segment.pods[1].output(server).bytes).unwrap();
    segment.pods[1].signal(server, segment.now);
    (got, asked)
}

/// Gets a page through the proxy where no origin runs.
fn fetch_alone(segment: &mut Segment, curl: &str) -> String {
    let (got, code) = segment.exec(0, &format!("curl -s -i {PROXY} {curl}"));
    assert_eq!(code, 0, "{got}");
    got
}

fn log(segment: &mut Segment) -> Vec<String> {
    let text = String::from_utf8(segment.pods[2].container_output("squid")).unwrap();
    text.lines().map(|line| line.trim_start().to_owned()).collect()
}

/// The log's result codes.
fn codes(segment: &mut Segment) -> Vec<String> {
    log(segment).iter().map(|line| line.split_whitespace().nth(3).unwrap().to_owned()).collect()
}

fn serve_files(segment: &mut Segment, args: &str) {
    let web = mounting(container("web", Image::Nginx, args), "html", "/usr/share/nginx/html");
    segment.pods[1].start_container(web).unwrap();
}

/// Puts a file where nginx finds it.
fn write(segment: &mut Segment, name: &str, bytes: Vec<u8>) {
    segment.pods[1].volumes[0].put(&[name.to_owned()], Entry::File(bytes.to_vec().into()));
}

/// RFC 9111, 4, 4.2.3, 4.3.4 and 5.1; squid's `X-Cache` and native log.
#[test]
fn a_page_is_missed_then_hit_then_validated() {
    let mut segment = network("");
    serve_files(&mut segment, "--expires 60");
    write(&mut segment, "a", b"hello\n".to_vec());
    let got = fetch_alone(&mut segment, "http://10.1.15.3/a");
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("\r\n\r\nhello\n"), "{got}");
    assert!(got.contains("\r\nVia: 1.1 squid (squid)\r\nX-Cache: MISS from squid\r\n"), "{got}");
    assert!(
        got.contains("\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n") && !got.contains("\r\nAge: "),
        "{got}"
    );

    segment.run(Duration::from_secs(7));
    let got = fetch_alone(&mut segment, "http://10.1.15.3:80/a");
    assert!(got.contains("\r\nX-Cache: HIT from squid\r\n") && got.contains("\r\nAge: 7\r\n"), "{got}");
    assert!(got.ends_with("\r\n\r\nhello\n"), "{got}");

    let head = fetch_alone(&mut segment, "-I http://10.1.15.3/a");
    assert!(head.contains("\r\nContent-Length: 6\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    let tag = head.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap().to_owned();
    let known = fetch_alone(&mut segment, &format!("-H If-None-Match:{tag} http://10.1.15.3/a"));
    assert!(known.starts_with("HTTP/1.1 304 ") && known.ends_with("\r\n\r\n"), "{known}");
    assert!(
        known.contains("\r\nX-Cache: HIT from squid\r\n") && !known.contains("Content-Length"),
        "{known}"
    );

    segment.run(Duration::from_secs(60));
    let got = fetch_alone(&mut segment, "http://10.1.15.3/a");
    assert!(got.contains("\r\nX-Cache: HIT from squid\r\n") && got.contains("\r\nAge: 0\r\n"), "{got}");
    write(&mut segment, "a", b"other\n".to_vec());
    segment.run(Duration::from_secs(60));
    let got = fetch_alone(&mut segment, "http://10.1.15.3/a");
    assert!(got.contains("\r\nX-Cache: MISS from squid\r\n") && got.ends_with("other\n"), "{got}");
    let got = fetch_alone(&mut segment, "-H Cache-Control:no-cache http://10.1.15.3/a");
    assert!(got.contains("\r\nX-Cache: HIT from squid\r\n") && got.ends_with("other\n"), "{got}");

    let lines = log(&mut segment);
    let second: Vec<&str> = lines[1].split_whitespace().collect();
    assert_eq!(second[1..4], ["0", "10.1.15.2", "TCP_MEM_HIT/200"]);
    assert_eq!(second[5..], ["GET", "http://10.1.15.3/a", "-", "HIER_NONE/-", "application/octet-stream"]);
    assert!(lines[0].ends_with(" GET http://10.1.15.3/a - HIER_DIRECT/10.1.15.3 application/octet-stream"));
    let codes: Vec<&str> = lines.iter().map(|line| line.split_whitespace().nth(3).unwrap()).collect();
    let refreshed = ["TCP_REFRESH_UNMODIFIED/200", "TCP_REFRESH_MODIFIED/200", "TCP_REFRESH_UNMODIFIED/200"];
    assert_eq!(codes[..4], ["TCP_MISS/200", "TCP_MEM_HIT/200", "TCP_MEM_HIT/200", "TCP_INM_HIT/304"]);
    assert_eq!(codes[4..], refreshed);
}

/// RFC 9110, 7.6.1 and 7.6.3; RFC 9112, 3.2.1 and 3.2.2.
#[test]
fn the_origin_gets_the_request_without_what_is_for_the_proxy() {
    let mut segment = network("");
    let page = "HTTP/1.0 200 Fine\nConnection: close, X-Hop\nX-Hop: 1\nContent-Type: a/b; c\n\nbody";
    let curl = "-H Connection:X-Own -H X-Own:1 -H X-Kept:2 -d abc http://10.1.15.3/a?b";
    let (got, asked) = fetch(&mut segment, page, curl);
    assert_eq!(
        asked,
        "POST /a?b HTTP/1.1\r\nHost: 10.1.15.3\r\nUser-Agent: curl\r\nAccept: */*\r\nX-Kept: 2\r\nContent-Length: 3\r\n\
         Via: 1.1 squid (squid)\r\nX-Forwarded-For: 10.1.15.2\r\nConnection: close\r\n\r\nabc"
    );
    assert!(got.starts_with("HTTP/1.1 200 Fine\r\nContent-Type: a/b; c\r\nDate: "), "{got}");
    assert!(
        got.contains("Transfer-Encoding: chunked\r\nVia: 1.0 squid (squid)\r\n") && !got.contains("X-Hop")
    );
    assert!(got.ends_with("\r\n\r\nbody"), "{got}");
    assert!(log(&mut segment)[0].ends_with("POST http://10.1.15.3/a?b - HIER_DIRECT/10.1.15.3 a/b"));
}

/// RFC 9111, 5.2.1.7; RFC 9112, 3.2 and 3.2.1; squid's `err_type` and default rules for ports.
#[test]
fn errors_are_named_as_squid_names_them() {
    let mut segment = network("");
    for (curl, status, error, code) in [
        ("http://10.1.15.3:25/", 403, "ERR_ACCESS_DENIED 0", "TCP_DENIED/403"),
        ("http://10.1.15.3/", 503, "ERR_CONNECT_FAIL 111", "TCP_MISS/503"),
        ("http://10.1.15.9/", 503, "ERR_CONNECT_FAIL 113", "TCP_MISS/503"),
        ("http://nobody/", 503, "ERR_DNS_FAIL 0", "TCP_MISS/503"),
        (
            "-H Cache-Control:only-if-cached http://10.1.15.3/",
            504,
            "ERR_ONLY_IF_CACHED_MISS 0",
            "TCP_MISS/504",
        ),
        ("-H Content-Length:a http://10.1.15.3/", 400, "ERR_INVALID_REQ 0", "NONE_NONE/400"),
        ("-H Host:b http://10.1.15.3/", 400, "ERR_INVALID_REQ 0", "NONE_NONE/400"),
        ("-H a\u{1}b http://10.1.15.3/", 400, "ERR_INVALID_REQ 0", "NONE_NONE/400"),
        // To itself: what it forwards is no request to a proxy (RFC 9112, 3.2.1), so there is no circle.
        ("http://10.1.15.4:3128/", 400, "ERR_INVALID_URL 0", "NONE_NONE/400"),
    ] {
        let got = fetch_alone(&mut segment, curl);
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{curl}: {got}");
        assert!(got.contains(&format!("\r\nX-Squid-Error: {error}\r\n")), "{curl}: {got}");
        assert!(got.contains("\r\nX-Cache: MISS from squid\r\n"), "{got}");
        assert!(codes(&mut segment).contains(&code.to_owned()), "{curl}");
    }
    let (got, _) = segment.exec(0, "curl -s -i http://10.1.15.4:3128/");
    assert!(got.contains("X-Squid-Error: ERR_INVALID_URL 0\r\n"), "no proxy request: {got}");
    for (answer, error) in [("", "ERR_ZERO_SIZE_OBJECT 0"), ("nonsense\n\n", "ERR_INVALID_RESP 0")] {
        let (got, _) = fetch(&mut segment, answer, "http://10.1.15.3/");
        assert!(got.starts_with("HTTP/1.1 502 ") && got.contains(error), "{got}");
    }
}

/// RFC 9111, 4.2.4, 4.3.3 and 5.2.2.2.
#[test]
fn a_stale_page_serves_while_its_origin_fails_unless_it_must_not() {
    for (control, status, code) in [
        ("max-age=5", 200, "TCP_REFRESH_FAIL_OLD/200"),
        ("max-age=5, must-revalidate", 504, "TCP_REFRESH_FAIL_ERR/504"),
    ] {
        let mut segment = network("");
        let page = format!("HTTP/1.1 200 OK\nCache-Control: {control}\nContent-Length: 2\n\nhi");
        fetch(&mut segment, &page, "http://10.1.15.3/");
        segment.run(Duration::from_secs(6));
        let got = fetch_alone(&mut segment, "http://10.1.15.3/");
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{got}");
        assert_eq!(codes(&mut segment), ["TCP_MISS/200", code]);
    }
}

/// RFC 9111, 3.5, 4.1 and 4.4.
#[test]
fn variants_unsafe_methods_and_secrets_are_kept_apart() {
    let mut segment = network("");
    let page = |body: &str| {
        format!(
            "HTTP/1.1 200 OK\nCache-Control: max-age=60\nVary: Accept-Language\nContent-Length: 2\n\n{body}"
        )
    };
    for (body, curl) in [("de", "-H Accept-Language:de"), ("en", "-H Accept-Language:en")] {
        fetch(&mut segment, &page(body), &format!("{curl} http://10.1.15.3/"));
    }
    for (body, language) in [("de", "de"), ("en", "en")] {
        let got = fetch_alone(&mut segment, &format!("-H Accept-Language:{language} http://10.1.15.3/"));
        assert!(got.contains("X-Cache: HIT ") && got.ends_with(body), "{got}");
    }
    let secret = "HTTP/1.1 200 OK\nCache-Control: max-age=60\nContent-Length: 2\n\nhi";
    for _ in 0..2 {
        let (got, _) = fetch(&mut segment, secret, "-H Authorization:x http://10.1.15.3/secret");
        assert!(got.contains("X-Cache: MISS "), "{got}");
    }
    fetch(
        &mut segment,
        "HTTP/1.1 303 See Other\nLocation: /\nContent-Length: 0\n\n",
        "-d x http://10.1.15.3/form",
    );
    let got = fetch_alone(&mut segment, "-H Accept-Language:de http://10.1.15.3/");
    assert!(got.contains("X-Squid-Error: ERR_CONNECT_FAIL"), "nothing is left of it: {got}");
}

/// RFC 9110, 9.3.6; squid's `SSL_ports`.
#[test]
fn tunnels_carry_octets_both_ways_to_allowed_ports_only() {
    let mut segment = network("--ssl-ports 443,7");
    segment.pods[1].start_container(container("echo", Image::Echo, "")).unwrap();
    let client = segment.spawn(0, "nc 10.1.15.4 3128");
    segment.pods[0].input(client, b"CONNECT 10.1.15.3:7 HTTP/1.1\r\nHost: 10.1.15.3:7\r\n\r\nearly ");
    segment.run(Duration::from_millis(10));
    let octets: Vec<u8> = (0..300_000_u32).map(|number| number as u8).collect();
    segment.pods[0].input(client, &octets);
    segment.pods[0].close_input(client);
    let until = segment.now + Duration::from_secs(60);
    let mut got = Vec::new();
    loop {
        let output = segment.pods[0].output(client);
        got.extend_from_slice(&output.bytes);
        if output.exit_code.is_some() {
            break;
        }
        assert!(segment.step(until), "the tunnel never ends");
    }
    let expected = [&b"HTTP/1.1 200 Connection established\r\n\r\nearly "[..], &octets].concat();
    assert!(got == expected, "{} octets came, not {}", got.len(), expected.len());
    segment.run(Duration::from_secs(1));
    let line = log(&mut segment).pop().unwrap();
    let tail = format!("TCP_TUNNEL/200 {} CONNECT 10.1.15.3:7 - HIER_DIRECT/10.1.15.3 -", expected.len());
    assert!(line.ends_with(&tail), "{line}");

    let client = segment.spawn(0, "nc 10.1.15.4 3128");
    segment.pods[0].input(client, b"CONNECT 10.1.15.3:80 HTTP/1.1\r\nHost: a\r\n\r\n");
    segment.run(Duration::from_secs(1));
    let got = String::from_utf8(segment.pods[0].output(client).bytes).unwrap();
    assert!(
        got.starts_with("HTTP/1.1 403 ") && got.contains("X-Squid-Error: ERR_ACCESS_DENIED 0\r\n"),
        "{got}"
    );
    assert_eq!(codes(&mut segment), ["TCP_DENIED/403"]);
}

/// Squid's `maximum_object_size` and `cache_mem`.
#[test]
fn large_pages_pass_without_being_kept_and_the_oldest_gives_way() {
    let mut segment = network("--cache-mem 1");
    serve_files(&mut segment, "--expires 3600");
    write(&mut segment, "large", vec![b'x'; (4 << 20) + 1]);
    for name in ["a", "b"] {
        write(&mut segment, name, vec![b'y'; 600_000]);
    }
    let (got, _) = segment.exec(0, &format!("curl -s {PROXY} http://10.1.15.3/large"));
    assert_eq!(got.len(), (4 << 20) + 1);
    for name in ["a", "a", "b", "b", "a", "large"] {
        segment.exec(0, &format!("curl -s {PROXY} http://10.1.15.3/{name}"));
    }
    let hits: Vec<bool> = codes(&mut segment).iter().map(|code| code == "TCP_MEM_HIT/200").collect();
    assert_eq!(hits, [false, false, true, false, true, false, false]);
}

/// RFC 9112, 7.1 and 9.3.2: chunks in both directions, and two requests in one piece.
#[test]
fn chunks_and_pipelined_requests_pass() {
    let mut segment = network("");
    let server = segment.spawn(1, "nc -l -p 80");
    segment.pods[1].input(
        server,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    );
    let client = segment.spawn(0, "nc 10.1.15.4 3128");
    segment.pods[0].input(
        client,
        b"PUT http://10.1.15.3/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
          GET http://10.1.15.3:25/ HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    segment.run(Duration::from_secs(1));
    let asked = String::from_utf8(segment.pods[1].output(server).bytes).unwrap();
    assert!(asked.contains("\r\nTransfer-Encoding: chunked\r\n"), "{asked}");
    assert!(asked.ends_with("\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), "{asked}");
    let got = String::from_utf8(segment.pods[0].output(client).bytes).unwrap();
    assert!(got.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"), "{got}");
    assert!(got.contains("\r\n\r\n2\r\nhi\r\n0\r\n\r\nHTTP/1.1 403 Forbidden\r\n"), "{got}");
}

#[test]
fn silent_servers_and_clients_are_given_up() {
    let mut segment = network("");
    let silent = segment.spawn(1, "nc -l -p 80");
    let client = segment.spawn(0, &format!("curl -s -i {PROXY} http://10.1.15.3/"));
    let idle = segment.spawn(0, "nc 10.1.15.4 3128");
    segment.run(Duration::from_secs(119));
    assert_eq!(segment.pods[0].output(idle).exit_code, None);
    segment.run(Duration::from_secs(2));
    assert!(segment.pods[0].output(idle).exit_code.is_some());
    segment.run(Duration::from_secs(15 * 60));
    let got = String::from_utf8(segment.pods[0].output(client).bytes).unwrap();
    assert!(got.starts_with("HTTP/1.1 504 ") && got.contains("ERR_READ_TIMEOUT"), "{got}");
    let asked = segment.pods[1].output(silent);
    assert!(asked.bytes.starts_with(b"GET / HTTP/1.1\r\n") && asked.exit_code == Some(0));

    // A client that leaves takes its server's connection along.
    segment.spawn(1, "nc -l -p 80");
    let client = segment.spawn(0, &format!("curl -s {PROXY} http://10.1.15.3/"));
    segment.run(Duration::from_secs(1));
    log(&mut segment);
    segment.pods[0].signal(client, segment.now);
    segment.run(Duration::from_secs(1));
    let line = log(&mut segment).pop().unwrap();
    assert!(line.contains(" TCP_MISS_ABORTED/000 0 GET http://10.1.15.3/ "), "{line}");
    assert_eq!(segment.pods[2].tcp_counts(), (0, 0));
}

/// What clients and origins say, with octets changed, taken out and cut off: the proxy stays, and nothing of it is left over.
#[test]
fn nonsense_from_both_sides_leaves_nothing_behind() {
    let request = b"POST http://10.1.15.3/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nCache-Control: max-age=9\r\nVary: Host\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    let mut random = crate::random::Random::new(7);
    let mut damaged = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        for _ in 0..random.next_u64() % 4 {
            let at = (random.next_u64() % bytes.len() as u64) as usize;
            match random.next_u64() % 3 {
                0 => bytes[at] = random.next_u64() as u8,
                1 => drop(bytes.remove(at)),
                _ => bytes.truncate(at + 1),
            }
        }
        bytes
    };
    let mut segment = network("");
    for _ in 0..300 {
        let server = segment.spawn(1, "nc -l -p 80");
        segment.pods[1].input(server, &damaged(answer));
        segment.pods[1].close_input(server);
        let client = segment.spawn(0, "nc 10.1.15.4 3128");
        segment.pods[0].input(client, &damaged(request));
        segment.run(Duration::from_millis(20));
        segment.pods[0].signal(client, segment.now);
        segment.pods[1].signal(server, segment.now);
        segment.run(Duration::from_millis(20));
    }
    let mut codes = codes(&mut segment);
    codes.sort();
    codes.dedup();
    for code in ["TCP_MISS/200", "TCP_MISS/502", "NONE_NONE/400", "TCP_MISS_ABORTED/000"] {
        assert!(codes.contains(&code.to_owned()), "{codes:?}");
    }
    segment.run(Duration::from_secs(600));
    assert_eq!(segment.pods[2].tcp_counts(), (0, 0));
    let got = fetch(&mut segment, "HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", "http://10.1.15.3/").0;
    assert!(got.ends_with("\r\n\r\nhi"), "{got}");
}

/// The proxy looks names up, not the client; two clients at once, and one that leaves meanwhile.
#[test]
fn names_are_looked_up_by_the_proxy() {
    let search = vec![String::from("default.svc.cluster.local")];
    let proxy = PodConfig { nameserver: Some(SECOND), search, ..pod("squid", THIRD) };
    let mut segment = Segment::new(vec![pod("first", FIRST), pod("second", SECOND), proxy]);
    segment.pods[2].start_container(container("squid", Image::Squid, "")).unwrap();
    segment.pods[1].start_container(container("web", Image::Httpd, "")).unwrap();
    segment.pods[1].stack.udp.bind(53, Owner::Program(ProgramId(0))).unwrap();
    let [first, second, leaving] =
        ["web", "web", "web"].map(|name| segment.spawn(0, &format!("curl -s {PROXY} http://{name}/")));
    segment.run(Duration::from_millis(1));
    segment.pods[0].signal(leaving, segment.now);
    for _ in 0..20 {
        serve_dns(&mut segment);
        segment.run(Duration::from_millis(1));
    }
    for client in [first, second] {
        let (got, code) = segment.finish(0, client);
        assert!(code == 0 && got.contains("pod: second\n") && got.contains("client: 10.1.15.4:"), "{got}");
    }
    assert_eq!(codes(&mut segment), ["TCP_MISS_ABORTED/000", "TCP_MISS/200", "TCP_MISS/200"]);
    assert_eq!((1024..=65_535).find(|&port| segment.pods[2].stack.udp.holder(port).is_some()), None);
}

/// RFC 9111, 4.3.4: a 304 about something else is no answer; the request goes again, without conditions.
#[test]
fn a_confirmation_of_another_page_is_asked_again() {
    let mut segment = network("");
    let page =
        |tag: &str, body: &str| format!("HTTP/1.1 200 OK\nETag: \"{tag}\"\nContent-Length: 3\n\n{body}");
    fetch(&mut segment, &page("a", "old"), "http://10.1.15.3/");
    let first = segment.spawn(1, "nc -l -p 80");
    segment.pods[1].input(first, b"HTTP/1.1 304 Not Modified\r\nETag: \"b\"\r\n\r\n");
    let client = segment.spawn(0, &format!("curl -s {PROXY} http://10.1.15.3/"));
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        assert!(segment.step(segment.now + Duration::from_secs(1)), "nobody asked");
        asked.extend(segment.pods[1].output(first).bytes);
    }
    assert!(String::from_utf8(asked).unwrap().contains("\r\nIf-None-Match: \"a\"\r\n"));
    // Whoever is asked once has gone; the next one listens in time for the second request.
    segment.pods[1].signal(first, segment.now);
    let second = segment.spawn(1, "nc -l -p 80");
    segment.pods[1].input(second, page("b", "new").replace('\n', "\r\n").as_bytes());
    assert_eq!(segment.finish(0, client), (String::from("new"), 0));
    let asked = String::from_utf8(segment.pods[1].output(second).bytes).unwrap();
    assert!(asked.starts_with("GET / HTTP/1.1\r\n") && !asked.contains("If-None-Match"), "{asked}");
}

/// RFC 9110, 7.6.2 and 9.3.8; RFC 9112, 3.2.4.
#[test]
fn trace_and_options_end_where_max_forwards_says() {
    let mut segment = network("");
    let got = fetch_alone(&mut segment, "-X TRACE -H Max-Forwards:0 -H Cookie:secret http://10.1.15.3/a");
    assert!(
        got.starts_with("HTTP/1.1 200 OK\r\n") && got.contains("Content-Type: message/http\r\n"),
        "{got}"
    );
    assert!(got.contains("\r\n\r\nTRACE http://10.1.15.3/a HTTP/1.1\r\nHost: 10.1.15.3\r\n"), "{got}");
    assert!(got.contains("\r\nMax-Forwards: 0\r\n") && !got.contains("secret"), "{got}");
    let page = "HTTP/1.1 200 OK\nContent-Length: 0\n\n";
    // curl writes a path of its own, so this is about `/`.
    let (_, asked) = fetch(&mut segment, page, "-X OPTIONS -H Max-Forwards:3 http://10.1.15.3");
    assert!(
        asked.starts_with("OPTIONS / HTTP/1.1\r\n") && asked.contains("\r\nMax-Forwards: 2\r\n"),
        "{asked}"
    );
    let server = segment.spawn(1, "nc -l -p 80");
    let client = segment.spawn(0, "nc 10.1.15.4 3128");
    segment.pods[0].input(client, b"OPTIONS http://10.1.15.3 HTTP/1.1\r\nHost: a\r\n\r\n");
    segment.run(Duration::from_millis(10));
    assert!(segment.pods[1].output(server).bytes.starts_with(b"OPTIONS * HTTP/1.1\r\nHost: 10.1.15.3\r\n"));
}

/// Memory is bounded by buffers, whatever the answer's length: who does not take it slows its server.
#[test]
fn a_client_that_takes_nothing_stops_its_server() {
    let mut segment = network("");
    let server = segment.spawn(1, "nc -l -p 80");
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n";
    segment.pods[1].input(server, &[&head[..], &vec![b'x'; 20_000_000]].concat());
    segment.spawn(0, &format!("curl -s {PROXY} http://10.1.15.3/"));
    while segment.pods[1].output(server).bytes.is_empty() {
        assert!(segment.step(segment.now + Duration::from_secs(1)), "nobody asked");
    }
    segment.pods[0].kill();
    segment.run(Duration::from_secs(20));
    let octets: usize = segment.log.iter().map(Vec::len).sum();
    assert!((100_000..1_500_000).contains(&octets), "{octets} octets passed");
    segment.run(Duration::from_secs(300));
    assert_eq!((segment.pods[2].tcp_counts(), segment.pods[1].tcp_counts()), ((0, 0), (0, 0)));
}
