//! The six ways of README.md with real programs: every pod is nginx, socat and iperf3 behind a TAP, asked by curl, socat, ping, iperf3.
//!
//! Needs root, `ip` and those programs.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeSet;

use common::{Home, await_that};

/// Says by HTTP and UDP who it is and whom it sees, and takes streams.
const SERVER: &str = r#"
cat >nginx.conf <<CONF
daemon off; master_process off; pid $PWD/pid; error_log stderr;
events { worker_connections 512; }
http { access_log off; client_body_temp_path $PWD; proxy_temp_path $PWD; fastcgi_temp_path $PWD; uwsgi_temp_path $PWD; scgi_temp_path $PWD;
       server { listen 80; location / { return 200 "\$hostname sees \$remote_addr"; } } }
CONF
socat UDP4-RECVFROM:7,fork SYSTEM:'echo -n $(hostname) sees $SOCAT_PEERADDR' &
iperf3 -s &
exec nginx -c $PWD/nginx.conf -e stderr
"#;

/// The tour's network, in which all pods are real.
fn network() -> Home {
    let tour = include_str!("../scripts/topologies/two-nodes.yaml");
    let mut documents: Vec<String> = tour.split("---\n").map(str::to_owned).collect();
    for document in documents.iter_mut().filter(|document| document.contains("kind: Pod")) {
        let (before, _) = document.split_once("  containers:\n").unwrap();
        let command = serde_json::json!(["sh", "-c", SERVER]);
        *document = format!(
            "{before}  runtimeClassName: netns\n  volumes: [{{name: own, emptyDir: {{}}}}]\n  containers:\n    - name: main\n      command: \
             {command}\n      volumeMounts: [{{name: own, mountPath: /mnt}}]\n      workingDir: /mnt\n      ports:\n        - {{name: http, containerPort: 80}}\n        - {{name: echo-udp, containerPort: 7, protocol: UDP}}\n"
        );
    }
    let home = Home::new();
    let file = home.file("ways.yaml");
    let text = documents
        .join("---\n")
        .replace("    - {name: echo, port: 7, targetPort: echo, nodePort: 30007}\n", "");
    std::fs::write(&file, text).unwrap();
    home.text(&format!("up -d -f {}", file.display()));
    home
}

/// What a real pod is answered by HTTP or UDP, or by TCP when it says something.
fn asks(home: &Home, pod: &str, how: &str, address: &str, port: u16) -> String {
    let program = match how {
        "http" => format!("curl -s --max-time 5 http://{address}:{port}/"),
        "tcp" => format!("printf 'who is there' | socat -t 5 - TCP4:{address}:{port}"),
        _ => format!("printf 'who is there' | socat -t 1 - UDP4:{address}:{port}"),
    };
    let output = home.command(&format!("exec {pod} -- sh -c")).arg(program).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn pings(home: &Home, pod: &str, address: &str) -> bool {
    home.run(&format!("exec {pod} -- ping -c 2 -i 0.2 -W 5 {address}")).status.success()
}

#[test]
fn real_programs_go_all_six_ways() {
    let home = network();
    for (pod, address) in [
        ("web-app-1", "10.1.15.3"),
        ("web-app-2", "10.1.15.2"),
        ("web-app-3", "10.1.20.2"),
        ("backend", "10.1.20.3"),
    ] {
        await_that("its server is there", || {
            asks(&home, pod, "udp", address, 7) == format!("{pod} sees {address}")
                && asks(&home, pod, "http", address, 80) == format!("{pod} sees {address}")
        });
    }
    // Inside a pod; to another on its node; to one on the other node: nobody translates.
    for (to, address, sees) in [
        ("web-app-1", "127.0.0.1", "127.0.0.1"),
        ("web-app-2", "10.1.15.2", "10.1.15.3"),
        ("web-app-3", "10.1.20.2", "10.1.15.3"),
    ] {
        for (how, port) in [("http", 80), ("udp", 7)] {
            assert_eq!(asks(&home, "web-app-1", how, address, port), format!("{to} sees {sees}"), "{how}");
        }
        assert!(pings(&home, "web-app-1", address), "{address}");
    }
    let streams = |to: &str| {
        let report = home.text(&format!("exec web-app-1 -- iperf3 -c {to} -n 20M -J"));
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        report["end"]["sum_received"]["bytes"].as_u64().unwrap()
    };
    for to in ["10.1.15.2", "10.1.20.2"] {
        // It counts until the other has sent all.
        assert!(streams(to) > 15 << 20, "{to}");
    }
    // To a Service: its backends in turn, which see the pod.
    for (how, port) in [("http", 80), ("udp", 7)] {
        let said: BTreeSet<String> =
            (0..12).map(|_| asks(&home, "backend", how, "10.96.0.10", port)).collect();
        let expected = ["web-app-1", "web-app-2", "web-app-3"].map(|pod| format!("{pod} sees 10.1.20.3"));
        assert_eq!(said, expected.into(), "{how}");
    }
    // To the internet, as its node.
    for how in ["tcp", "udp"] {
        assert_eq!(asks(&home, "web-app-1", how, "203.0.113.10", 7), "who is there", "{how}");
        assert_eq!(asks(&home, "web-app-3", how, "203.0.113.10", 7), "who is there", "{how}");
    }
    assert!(pings(&home, "web-app-1", "203.0.113.10"));
    let flows = home.text("show flows node-1");
    let out = flows.lines().filter(|line| line.contains("dst=203.0.113.10 "));
    assert!(
        out.clone().count() >= 2 && out.clone().all(|line| line.contains("dst=192.168.66.11 ")),
        "{flows}"
    );
    // From outside to a NodePort of either node: backends see that node, on their own bridge or through the tunnel.
    for (node, subnet) in [("192.168.66.11", "10.1.15"), ("192.168.66.12", "10.1.20")] {
        let said: BTreeSet<String> =
            (0..12).map(|_| home.text(&format!("exec user -- curl -s http://{node}:30080/"))).collect();
        let expected = [("web-app-1", "10.1.15"), ("web-app-2", "10.1.15"), ("web-app-3", "10.1.20")];
        let sees = |of: &str| if of == subnet { format!("{subnet}.1") } else { format!("{subnet}.0") };
        let expected: BTreeSet<String> =
            expected.iter().map(|(pod, of)| format!("{pod} sees {}", sees(of))).collect();
        assert_eq!(said, expected, "{node}");
    }
    assert_eq!(home.json("down")["balances"], true);
}
