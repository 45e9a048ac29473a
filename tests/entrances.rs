//! From this host into a network: published ports and the SOCKS proxy, with curl and other programs of this host.
//!
//! Needs curl.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use common::{Home, PATIENCE, await_that, content};

/// The tour's network, and where it is entered: in the flags' order.
struct Entered {
    home: Home,
    at: Vec<SocketAddrV4>,
    process: u64,
}

impl Entered {
    /// Brings it up with these flags; each asks for any free port.
    fn with(flags: &str) -> Self {
        let home = Home::new();
        assert!(home.text(&format!("up -d {flags}")).contains("5 pods"), "one of them stands for this host");
        let status = &home.json("status")[0];
        let entrances = status["entrances"].as_array().unwrap();
        let at = entrances.iter().map(|it| it["address"].as_str().unwrap().parse().unwrap()).collect();
        let process = status["pid"].as_u64().unwrap();
        Self { home, at, process }
    }

    fn connect(&self, index: usize) -> TcpStream {
        let stream = TcpStream::connect(self.at[index]).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// How a connection ends that nobody takes: while it is made or after that.
    fn refusal(&self, index: usize) -> ErrorKind {
        TcpStream::connect(self.at[index]).and_then(|mut stream| stream.read(&mut [0])).unwrap_err().kind()
    }

    fn curl(&self, words: &str) -> Output {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--noproxy", "", "--max-time", "20"]);
        command.args(words.split(' ')).env_remove("http_proxy").env_remove("all_proxy").output().unwrap()
    }

    /// Counts its sockets for TCP; whoever asked it something may have one of another kind for a moment more.
    fn tcp_sockets(&self) -> usize {
        let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.process)).unwrap();
        let inodes = table.lines().filter_map(|line| line.split_whitespace().nth(9));
        let sockets: BTreeSet<_> = inodes.map(|inode| PathBuf::from(format!("socket:[{inode}]"))).collect();
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.process)).unwrap();
        let targets = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
        targets.filter(|target| sockets.contains(target)).count()
    }

    fn resident_bytes(&self) -> usize {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.process)).unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }
}

/// What curl says, when it has nothing to complain about.
fn page(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_browser_opens_services_pods_and_hosts_at_published_ports() {
    let all = "--publish 0:web:80 --publish 127.0.0.2:0:backend:80 --publish 0:web.default.svc.cluster.local:80 \
               --publish 0:10.1.20.2:80 --publish 0:default/web-app-1:80 --publish 0:user:7 --publish 0:node-2:30080";
    let entered = Entered::with(all);
    assert_eq!((entered.at[0].ip().octets(), entered.at[1].ip().octets()), ([127, 0, 0, 1], [127, 0, 0, 2]));
    for (index, expected) in [
        (0, "Welcome to nginx!"),
        (1, "pod: backend"),
        (2, "nginx"),
        (3, "nginx"),
        (4, "nginx"),
        (6, "nginx"),
    ] {
        let text = page(&entered.curl(&format!("http://{}/", entered.at[index])));
        assert!(text.contains(expected), "{index}: {text}");
    }
    let mut echo = entered.connect(5);
    echo.write_all(b"hello").unwrap();
    let mut heard = [0; 5];
    echo.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
}

#[test]
fn pods_see_the_pod_that_stands_for_this_host() {
    let entered = Entered::with("--publish 0:web:80");
    page(&entered.curl(&format!("http://{}/", entered.at[0])));
    let pods = entered.home.json("status")[0]["pods"].clone();
    let client = pods.as_array().unwrap().iter().find(|pod| pod["name"] == "flatnet/client").unwrap().clone();
    let flows = entered.home.text("show flows node-1");
    let source = format!("src={} dst=10.96.0.10", client["address"].as_str().unwrap());
    assert!(client["node"] == "node-1" && flows.contains(&source), "{client} {flows}");
}

#[test]
fn what_is_sent_comes_back_whole_after_the_sender_has_ended() {
    let entered = Entered::with("--publish 0:web:7");
    let sent = content(30_000_000);
    let mut stream = entered.connect(0);
    let mut writer = stream.try_clone().unwrap();
    let thread = std::thread::spawn({
        let sent = sent.clone();
        move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        }
    });
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    thread.join().unwrap();
    assert!(heard == sent, "{} of {} bytes came back", heard.len(), sent.len());
}

/// 200 MB are more than all buffers on the way: those of two sockets here, and two connections there.
#[test]
fn who_does_not_read_is_made_to_wait_and_takes_no_memory() {
    let entered = Entered::with("--publish 0:web:7");
    let before = entered.resident_bytes();
    let mut stream = entered.connect(0);
    let (chunk, mut taken) = (content(1 << 20), 0_usize);
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let stopped = loop {
        match stream.write(&chunk[taken % chunk.len()..]) {
            Ok(count) => taken += count,
            Err(error) => break error.kind(),
        }
        assert!(taken < 200 << 20, "nobody waits");
    };
    assert_eq!(stopped, ErrorKind::WouldBlock);
    let grown = entered.resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes");
    let mut reader = stream.try_clone().unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut heard = Vec::new();
    reader.read_to_end(&mut heard).unwrap();
    let is_same = heard.iter().enumerate().all(|(index, &byte)| byte == chunk[index % chunk.len()]);
    assert!(heard.len() == taken && is_same, "{} of {taken}", heard.len());
}

#[test]
fn two_hundred_at_once_are_served_and_leave_no_socket_behind() {
    let entered = Entered::with("--publish 0:web:7 --socks 0");
    let before = entered.tcp_sockets();
    let mut all: Vec<_> = (0..200).map(|_| entered.connect(0)).collect();
    for (number, stream) in all.iter_mut().enumerate() {
        stream.write_all(format!("{number:08}").as_bytes()).unwrap();
    }
    for (number, stream) in all.iter_mut().enumerate() {
        let mut heard = [0; 8];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(heard, format!("{number:08}").as_bytes());
    }
    assert_eq!(entered.tcp_sockets(), before + 200);
    drop(all);
    await_that("all sockets are closed", || entered.tcp_sockets() == before);
}

#[test]
fn nobody_listens_is_a_reset_and_a_name_that_goes_is_too() {
    let entered = Entered::with("--publish 0:web-app-1:81 --publish 0:web-app-3:80");
    assert_eq!(entered.refusal(0), ErrorKind::ConnectionReset);
    page(&entered.curl(&format!("http://{}/", entered.at[1])));
    entered.home.text("delete pod web-app-3");
    assert_eq!(entered.refusal(1), ErrorKind::ConnectionReset);
}

#[test]
fn the_network_ends_and_so_does_what_came_in() {
    let entered = Entered::with("--publish 0:web:7 --socks 0");
    let mut open = entered.connect(0);
    open.write_all(b"x").unwrap();
    open.read_exact(&mut [0]).unwrap();
    let ledger = entered.home.text("down");
    assert!(ledger.contains("balances"), "{ledger}");
    assert!(matches!(open.read(&mut [0]), Ok(0) | Err(_)), "it has ended");
    for &address in &entered.at {
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        // At once: the next network may have the port.
        TcpListener::bind(address).unwrap();
    }
}

#[test]
fn curl_opens_any_name_of_the_cluster_by_socks() {
    let entered = Entered::with("--socks 0");
    let ask = |url: &str, how: &str| entered.curl(&format!("--{how} {} {url}", entered.at[0]));
    for (url, expected) in [
        ("http://web/", "nginx"),
        ("http://web.default/", "nginx"),
        ("http://web.default.svc/", "nginx"),
        ("http://web.default.svc.cluster.local/", "nginx"),
        ("http://backend/", "pod: backend"),
        ("http://web-app-3.default/", "nginx"),
        ("http://10-1-20-3.default.pod.cluster.local/", "pod: backend"),
        ("http://10.1.20.3/", "pod: backend"),
        ("http://10.96.0.10/", "nginx"),
        ("http://node-1:30080/", "nginx"),
    ] {
        let text = page(&ask(url, "socks5-hostname"));
        assert!(text.contains(expected), "{url}: {text}");
    }
    assert!(page(&ask("http://10.1.15.3/", "socks5")).contains("nginx"));
    // What became of it: 4, nobody has the name; 5, nobody listens.
    for (url, code) in
        [("http://nobody/", "(4)"), ("http://web.shop.svc/", "(4)"), ("http://backend:81/", "(5)")]
    {
        let output = ask(url, "socks5-hostname");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(97) && said.contains(code), "{url}: {output:?}");
    }
    let mut stranger = entered.connect(0);
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(matches!(stranger.read(&mut [0]), Ok(0) | Err(_)), "it speaks no SOCKS");
}

#[test]
fn mistakes_are_told_with_what_to_do() {
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for (flags, said, help) in [
        ("--publish 8080:web", "--publish 8080:web: it names no target", "write [ADDRESS:]PORT:NAME:PORT"),
        ("--publish 8080:web:http", "\"http\" is no port", "such as 8080:web:80"),
        ("--socks here", "--socks here: \"here\" is no port", "write [ADDRESS:]PORT"),
        (
            "--publish 0:wbe:80",
            "no Service, pod, host or node is called wbe",
            "internet, isp, node-1, node-2, user, web",
        ),
        (
            "--publish 203.0.113.77:0:web:80",
            "cannot listen at 203.0.113.77:0",
            "no interface of this host has the address",
        ),
    ] {
        let error = home.error(&format!("up {flags}"));
        let line = error.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
        assert!(line.contains(said) && line.contains(help), "{flags}: {error}");
    }
    let error = home.error(&format!("up --socks {port}"));
    assert!(error.contains(&format!("sport = :{port}")), "{error}");
    let text =
        include_str!("../scripts/topologies/two-nodes.yaml").replace("seed: 7", "seed: 7\n  time: virtual");
    std::fs::write(home.file("virtual.yaml"), text).unwrap();
    let error = home.error(&format!("up -f {} --publish 0:web:80", home.file("virtual.yaml").display()));
    assert!(error.contains("do not wait for virtual time") && error.contains("time: virtual"), "{error}");
}
