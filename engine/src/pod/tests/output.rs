//! Where what programs write goes, and what waits for whom.

use super::*;

/// A file that no buffer holds whole.
const LONG: usize = 20_000_000;

fn content(length: usize) -> Vec<u8> {
    (0..length as u32).map(|index| (index * 7 + index / 251) as u8).collect()
}

/// A client with files at `/data` and room at `/out`, and a server of the same files.
fn files(names: &[(&str, usize)]) -> Segment {
    let entries = names.iter().map(|&(name, length)| (name.to_owned(), Entry::File(content(length).into())));
    let data = Volume::read_only("data", Entry::Directory(entries.collect()));
    let first = vec![data.clone(), Volume::empty("out", DEFAULT_VOLUME_LIMIT)];
    let mut segment = Segment::new(vec![
        PodConfig { volumes: first, ..pod("first", FIRST) },
        PodConfig { volumes: vec![data], ..pod("second", SECOND) },
    ]);
    let mut client = mounting(container("client", Image::Client, ""), "data", "/data");
    client.mounts.push(Mount { volume: "out".into(), path: "/out".into(), ..Mount::default() });
    segment.pods[0].start_container(client).unwrap();
    let web = mounting(container("web", Image::Nginx, ""), "data", "/usr/share/nginx/html");
    segment.pods[1].start_container(web).unwrap();
    segment.pods[1].start_container(container("echo", Image::Echo, "")).unwrap();
    segment
}

fn shell(segment: &mut Segment, script: &str) -> ProgramId {
    segment.pods[0].exec(&["sh", "-c", script].map(String::from), segment.now)
}

/// What a container of the first pod sees of a file in the volume at `/out`.
fn written<'a>(segment: &'a Segment, name: &str) -> Option<&'a [u8]> {
    match segment.pods[0].volumes[1].entry(&[name.to_owned()]) {
        Some(Entry::File(bytes)) => Some(bytes),
        _ => None,
    }
}

/// Reads a program's output to its end.
fn read_all(segment: &mut Segment, id: ProgramId, mut whole: Vec<u8>) -> (Vec<u8>, i32) {
    let until = segment.now + Duration::from_secs(600);
    loop {
        let output = segment.pods[0].output(id);
        whole.extend_from_slice(&output.bytes);
        if let Some(code) = output.exit_code {
            return (whole, code);
        }
        assert!(segment.step(until), "the program never ends: {} octets", whole.len());
    }
}

/// POSIX, shell command language, 2.12: a command has the shell's own standard output.
#[test]
fn a_shell_between_loses_nothing_and_waits_for_its_reader() {
    let long = content(LONG);
    for (script, times) in [
        ("curl -s http://10.1.15.3/big", 1),
        ("wget -q -O - http://10.1.15.3/big", 1),
        ("cat /data/big", 1),
        ("cat /data/big; cat /data/big /data/big", 3),
        ("sh -c 'curl -s http://10.1.15.3/big && cat /data/big'", 2),
        ("cat", 1),
        ("nc 10.1.15.3 7", 1),
    ] {
        let mut segment = files(&[("big", LONG)]);
        let id = shell(&mut segment, script);
        segment.pods[0].input(id, &long);
        segment.pods[0].close_input(id);
        // Nobody reads for a minute.
        segment.run(Duration::from_secs(60));
        let first = segment.pods[0].output(id);
        assert!(first.exit_code.is_none() && first.bytes.len() < 3 << 20, "{script}: {}", first.bytes.len());
        let (whole, code) = read_all(&mut segment, id, first.bytes);
        assert!(whole == long.repeat(times) && code == 0, "{script}: {code}, {} octets", whole.len());
    }
}

/// POSIX, shell command language, 2.7.2 and 2.7.3.
#[test]
fn redirections_store_everything_or_say_what_they_cannot() {
    let mut segment = files(&[("big", LONG), ("huge", 70_000_000)]);
    let script =
        "curl -s http://10.1.15.3/big > /out/a; cat /data/big > /out/b; cat /data/big >> /out/b; : > /out/c";
    let id = shell(&mut segment, script);
    assert_eq!(segment.finish(0, id), (String::new(), 0));
    let long = content(LONG);
    assert!(written(&segment, "a") == Some(&long) && written(&segment, "b") == Some(&long.repeat(2)));
    assert_eq!(written(&segment, "c"), Some(&[][..]));
    let id =
        shell(&mut segment, "rm /out/a /out/b; cat /data/huge > /out/d; echo $?; cat /data/big > /data/x");
    let (text, code) = segment.finish(0, id);
    let expected =
        "sh: write error: No space left on device\n1\nsh: can't create /data/x: Read-only file system\n";
    assert_eq!((text.as_str(), code), (expected, 1));
}

/// curl(1), wget(1); Kubernetes, tasks, "Configure Pod Initialization".
#[test]
fn curl_and_wget_write_files_or_say_why_not() {
    let mut segment = files(&[("big", LONG), ("page", 100)]);
    for (line, file, length) in [
        ("curl -s -o /out/a http://10.1.15.3/big", "a", LONG),
        ("curl -s --output /out/a http://10.1.15.3/page", "a", 100),
        ("wget -q -O /out/b http://10.1.15.3/big", "b", LONG),
        ("wget -qO/out/b http://10.1.15.3/page", "b", 100),
        ("wget -q -P /out http://10.1.15.3/page", "page", 100),
    ] {
        assert_eq!(segment.exec(0, line), (String::new(), 0), "{line}");
        assert!(written(&segment, file) == Some(&content(length)), "{line}");
    }
    assert_eq!(segment.exec(0, "curl -s -i -o /out/a http://10.1.15.3/none").1, 0);
    assert!(written(&segment, "a").unwrap().starts_with(b"HTTP/1.1 404 "));
    for (line, text, code) in [
        ("curl -O http://10.1.15.3/page", "", 0),
        ("curl -O http://10.1.15.3/", "curl: (23) Remote file name has no length\n", 23),
        ("cat page/x", "cat: page/x: Not a directory\n", 1),
        ("wget http://10.1.15.3/page", "wget: can't open 'page': File exists\n", 1),
        ("wget -P /out http://10.1.15.3/page", "wget: can't open '/out/page': File exists\n", 1),
        (
            "curl -o /none/a http://10.1.15.3/page",
            "curl: (23) Failure writing /none/a: No such file or directory\n",
            23,
        ),
        (
            "curl -sS -o /data/a http://10.1.15.3/page",
            "curl: (23) Failure writing /data/a: Read-only file system\n",
            23,
        ),
        // A container's own layer is small.
        ("wget http://10.1.15.3/big", "wget: can't open 'big': No space left on device\n", 1),
        ("curl -f -o /out/c http://10.1.15.3/none", "curl: (22) The requested URL returned error: 404\n", 22),
        ("curl -o /out/c http://10.1.15.3:81/", "", 7),
        ("wget -O", "wget: option -O needs a value\n", 1),
    ] {
        let (said, ended) = segment.exec(0, line);
        assert!(ended == code && said.ends_with(text), "{line}: {ended} {said}");
    }
    assert_eq!(written(&segment, "c"), None);
}

#[test]
fn a_loop_that_nobody_reads_stands_still_and_one_into_a_file_leaves_others_their_turn() {
    let mut segment = files(&[("k100", 100_000)]);
    for script in ["while true; do cat /data/k100; done", "while true; do hostname; hostname -i; done"] {
        let id = shell(&mut segment, script);
        for _ in 0..3 {
            segment.run(Duration::from_secs(10));
            let length = segment.pods[0].output(id).bytes.len();
            assert!((1 << 20..2 << 20).contains(&length), "{script}: {length}");
        }
        segment.pods[0].signal(id, segment.now);
    }
    // One MiB a millisecond at most, so that frames have their turn between.
    let begun = segment.now;
    let id = shell(&mut segment, "while true; do cat /data/k100 >> /out/log; done");
    let until = begun + Duration::from_millis(20);
    while segment.step(until) {
        let octets = written(&segment, "log").map_or(0, <[u8]>::len);
        let turns = 2 + segment.now.saturating_duration_since(begun).as_millis() as usize;
        assert!(octets <= turns * (100_000 + (1 << 20)), "{octets} after {turns} turns");
    }
    assert!(written(&segment, "log").unwrap().len() > 10 << 20);
    segment.pods[0].signal(id, segment.now);
}

#[test]
fn input_waits_for_the_program_that_reads_it_and_has_a_bound() {
    let mut segment = files(&[]);
    for script in ["sleep 1000", "ping 10.1.15.3"] {
        let id = shell(&mut segment, script);
        let mut given = 0;
        while segment.pods[0].wants_input(id) {
            segment.pods[0].input(id, &[0; 65_536]);
            segment.run(Duration::from_millis(1));
            given += 65_536;
            assert!(given <= 1 << 20, "{script}");
        }
        segment.pods[0].signal(id, segment.now);
        assert!(segment.pods[0].wants_input(id), "an end throws it away");
    }
    let id = shell(&mut segment, "sleep 1; cat");
    segment.pods[0].input(id, b"kept\n");
    segment.pods[0].close_input(id);
    assert_eq!(segment.finish(0, id), ("kept\n".into(), 0));
}
