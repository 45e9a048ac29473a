//! What `flatnet trace` prints, in virtual time: golden outputs, written anew by `UPDATE_DOCS=1`.

mod common;

use std::path::Path;

use common::Home;

/// Each file of `tests/traces`, and the command whose output it is.
const GOLDEN: [(&str, &str); 14] = [
    ("pod-to-pod-on-another-node", "trace web-app-2 backend"),
    ("pod-to-service", "trace web-app-2 web tcp 80"),
    ("pod-to-internet", "trace web-app-2 internet udp 7"),
    ("pod-to-itself", "trace web-app-1 10.1.15.3 tcp 7"),
    ("inside-a-pod", "trace web-app-1 127.0.0.1"),
    ("slow-link", "trace near far udp 7 -f scripts/topologies/slow-link.yaml"),
    ("tunnel-by-a-director", "trace user tun tcp 7 -f scripts/topologies/director.yaml"),
    ("tunnel-through-flannel", "trace client tun tcp 7 -f scripts/topologies/director.yaml"),
    ("direct-routing", "trace client dr udp 7 -f scripts/topologies/director.yaml"),
    ("lease-gone", "trace web-app-2 backend tcp 7 --fault lease:node-2"),
    ("link-broken", "trace web-app-2 backend --fault link:node-1:node-2"),
    ("nobody-on-the-link", "trace web-app-1 10.1.15.99"),
    ("nobody-far-away", "trace web-app-1 203.0.113.99"),
    ("no-route", "trace user web-app-3:9 tcp"),
];

#[test]
fn traces_print_what_the_golden_files_show() {
    let home = Home::new();
    let mut wrong = Vec::new();
    for (name, command) in GOLDEN {
        let output = String::from_utf8(home.run(command).stdout).unwrap();
        assert_eq!(output, String::from_utf8(home.run(command).stdout).unwrap(), "{command} repeats");
        let long = output.lines().find(|line| line.chars().count() > 100);
        assert_eq!(long, None, "{command}");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/traces/{name}.txt"));
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&file, &output).unwrap();
        }
        if std::fs::read_to_string(&file).unwrap_or_default() != output {
            wrong.push(format!("{name}: flatnet {command}\n{output}"));
        }
    }
    assert!(wrong.is_empty(), "these print something else now:\n\n{}", wrong.join("\n"));
}

#[test]
fn the_answer_and_the_exit_status_agree() {
    let home = Home::new();
    assert!(home.run("trace web-app-2 backend").status.success());
    assert!(home.run("trace web-app-1 localhost").status.code() != Some(0), "no such name");
    assert_eq!(home.run("trace web-app-2 backend --fault lease:node-2").status.code(), Some(1));
    for (command, first) in [
        ("trace web-app-2 10.96.0.10:80", "web-app-2 → 10.96.0.10:80  tcp"),
        ("trace web-app-2 10.96.0.10", "web-app-2 → 10.96.0.10:80  tcp"),
        ("trace user 192.168.66.11:30007", "user → 192.168.66.11:30007  tcp"),
        ("trace web-app-2 web-app-1:7", "web-app-2 → web-app-1:7 (10.1.15.3:7)  tcp"),
        ("trace web-app-2 web", "web-app-2 → web (10.96.0.10:80)  tcp"),
    ] {
        let output = String::from_utf8(home.run(command).stdout).unwrap();
        assert_eq!(output.lines().next(), Some(first), "{command}");
    }
    let alone = home.file("alone.yaml");
    let text = include_str!("../scripts/topologies/slow-link.yaml");
    let host = "spec:\n  hosts: [{name: alone, address: 192.168.66.50/24}]\n  nodes:";
    std::fs::write(&alone, text.replacen("spec:\n  nodes:", host, 1)).unwrap();
    let report = home.run(&format!("trace alone far -f {}", alone.display()));
    let report = String::from_utf8(report.stdout).unwrap();
    assert!(
        report.contains("alone eth0: drop\n") && report.contains("pod-no-route: route to 10.1."),
        "{report}"
    );
    let closed = String::from_utf8(home.run("trace web-app-2 10.96.0.10 udp 99").stdout).unwrap();
    assert!(closed.contains("service-port-closed: Service default/web\n"), "{closed}");
    let ports = home.file("ports.yaml");
    let service = |name: &str, port: u16, policy: &str, app: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: NodePort, externalTrafficPolicy: {policy}, \
             selector: {{app: {app}}}, ports: [{{port: 80, nodePort: {port}}}]}}\n"
        )
    };
    let services = service("none", 30180, "Cluster", "nobody") + &service("far", 30181, "Local", "backend");
    std::fs::write(&ports, include_str!("../scripts/topologies/two-nodes.yaml").to_owned() + &services)
        .unwrap();
    for (port, drop) in
        [(30180, "no-backend: Service default/none:80"), (30181, "no-local-backend: Service default/far:80")]
    {
        let command = format!("trace user node-1:{port} -f {}", ports.display());
        let text = String::from_utf8(home.run(&command).stdout).unwrap();
        assert!(text.contains(drop), "{text}");
    }
    let lost = home.run("trace web-app-2 backend --fault link:node-1:node-2 -o json").stdout;
    let lost: serde_json::Value = serde_json::from_slice(&lost).unwrap();
    assert!(lost["rtt_ns"].is_null() && lost["error"] == "host unreachable", "{lost}");
    let objects: Vec<_> =
        lost["hops"].as_array().unwrap().iter().filter_map(|hop| hop["drop"]["object"].as_str()).collect();
    assert!(objects.contains(&"link from node-1 to node-2"), "{objects:?}");
    let refused = home.run("trace web-app-1 10.1.15.3 udp 99");
    let text = String::from_utf8(refused.stdout).unwrap();
    assert!(refused.status.code() == Some(1) && text.contains("icmp unreachable"), "{text}");
    let error = home.error("trace web-app-2 nobody");
    assert!(error.contains("no pod, host, node or Service nobody") && error.contains("web"), "{error}");
    let error = home.error("trace web-app-2 web tcp 99");
    assert!(error.contains("Service web has no such port") && error.contains("tcp 80"), "{error}");
    let error = home.error("trace web-app-2 backend tcp");
    assert!(error.contains("tcp to backend needs a port"), "{error}");
}
