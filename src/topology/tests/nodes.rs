//! Nodes: where they are, how packets are carried between them, and what of the host they have.

use super::*;

/// RFC 6888, REQ-4: the limit of each subscriber is the administrator's.
#[test]
fn a_quota_of_translated_flows_is_read() {
    let quota = |text: &str| {
        let (topology, _) = parse(&file(&format!("{SHORT}  natQuota: {text}\n"))).unwrap();
        topology.nat_quota
    };
    assert_eq!([quota("1"), quota("262144"), quota("null")], [Some(1), Some(262_144), None]);
    for wrong in ["0", "-1", "262145"] {
        let expected = "5:13 natQuota: must be between 1 and 262144";
        assert_eq!(findings(&format!("{SHORT}  natQuota: {wrong}\n")), [expected], "{wrong}");
    }
    let expected = "5:13 natQuota: must be a whole number, not a number";
    assert_eq!(findings(&format!("{SHORT}  natQuota: 1.5\n")), [expected]);
}

#[test]
fn a_node_may_be_on_the_hosts_network_and_others_elsewhere() {
    let text = |underlay: &str, routes: &str| {
        format!(
            "apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  nodes: [{{name: n, address: 192.168.66.11/24, podCIDR: 10.1.5.0/24, \
             underlay: {underlay}}}]\n  routes:\n{routes}"
        )
    };
    let routes = "    10.1.20.0/24: 192.168.66.12\n    10.1.6.0/23: 203.0.113.7\n";
    let (topology, _) = parse(&file(&text("socket", routes))).unwrap();
    assert_eq!(topology.nodes[0].underlay, Underlay::Socket);
    let expected = [("10.1.6.0/23", [203, 0, 113, 7]), ("10.1.20.0/24", [192, 168, 66, 12])];
    let expected = expected
        .map(|(subnet, address)| (subnet.parse().unwrap(), Peer { address: address.into(), mac: None }));
    assert!(topology.routes.into_iter().eq(expected));

    let wrong = "    10.1.4.0/23: 192.168.66.12\n    10.2.0.0/24: 192.168.66.12\n    10.1.9.0/24: 192.168.66.11\n    10.1.9.0/33: here\n";
    assert_eq!(
        findings(&text("bridge", wrong)),
        [
            "4:80 underlay: \"bridge\" is not what a node can be on; switch and socket are",
            "6:5 route to 10.1.4.0/23 overlaps 10.1.5.0/24",
            "7:5 route to 10.2.0.0/24 is not in podNetwork 10.1.0.0/16",
            "8:5 192.168.66.11 is a node of this topology: it claims its subnet itself",
            "9:5 routes: \"10.1.9.0/33\" is not a network: length 33 is above 32",
            "9:18 routes: \"here\" is not an IPv4 address",
        ]
    );
    let findings = findings(&text("socket", "    - 10.1.20.0/24\n"));
    assert_eq!(findings, ["6:5 routes must be a mapping of subnets to addresses, not a list"]);
}

#[test]
fn a_backend_has_its_port_and_vxlan_a_network_and_peers_with_macs() {
    let with = |backend: &str, peer: &str| {
        format!("{SHORT}  backend: {backend}\n  routes:\n    10.1.20.0/24: {peer}\n")
    };
    let vxlan = |vni| Some(Encapsulation::Vxlan { vni });
    let cases = [
        ("{type: udp}", Some(Encapsulation::Udp), 8285),
        ("{type: host-gw}", None, 0),
        ("{type: vxlan}", vxlan(1), 8472),
        ("{type: vxlan, vni: 16777215, port: 4789}", vxlan(16_777_215), 4789),
        ("{type: vxlan, vni: 0}", vxlan(0), 8472),
    ];
    for (backend, encapsulation, port) in cases {
        let (topology, _) = parse(&file(&with(backend, "192.168.66.12"))).unwrap();
        assert_eq!((topology.backend, topology.port), (encapsulation, port), "{backend}");
    }
    let peer = "{address: 192.168.66.12, mac: '4e:41:e0:49:09:a4'}";
    let (topology, _) = parse(&file(&with("{type: vxlan}", peer))).unwrap();
    let mac = Some(MacAddress::new([0x4e, 0x41, 0xe0, 0x49, 0x09, 0xa4]));
    let expected = Peer { address: Ipv4Addr::new(192, 168, 66, 12), mac };
    assert_eq!(topology.routes.values().collect::<Vec<_>>(), [&expected]);

    assert_eq!(
        findings(&with("{type: udp, vni: 1}", peer)),
        ["5:29 vni: only vxlan has networks by number", "7:5 routes: only of vxlan a peer has a MAC",]
    );
    assert_eq!(
        findings(&with("{type: host-gw, vni: 1, port: 8285}", peer)),
        [
            "5:33 vni: only vxlan has networks by number",
            "5:42 port: host-gw has no tunnel, and so no port",
            "7:5 routes: only of vxlan a peer has a MAC",
        ]
    );
    assert_eq!(
        findings(&with("{type: vxlan, vni: 16777216, port: 0}", "{mac: '01:00:5e:00:00:01', colour: blue}")),
        [
            "5:31 vni: must be between 0 and 16777215",
            "5:47 port: must be between 1 and 65535",
            "7:19 a route has no address",
            "7:25 mac: 01:00:5e:00:00:01 is not one machine's MAC",
            "7:46 unknown field \"colour\" in a route",
        ]
    );
    let wrong = findings(&with("{type: vxlan}", "{address: 192.168.66.12, mac: blue}"));
    assert_eq!(
        wrong,
        ["7:49 mac: \"blue\": a MAC address is six hexadecimal octets with colons, like 02:42:0a:01:0f:02"]
    );
}

#[test]
fn what_a_node_has_of_the_host_needs_a_node_there() {
    let text = |fields: &str| {
        format!(
            "apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  nodes:\n  - name: n\n    address: 192.168.66.11/24\n{fields}"
        )
    };
    let all =
        "    underlay: socket\n    hostPort: flatnet0\n    uplink: true\n    masqueradePorts: 50000-50999\n";
    let (topology, _) = parse(&file(&text(all))).unwrap();
    let ports = PortRange { first: 50_000, last: 50_999 };
    let expected =
        HostAccess { port: Some("flatnet0".to_owned()), uplink: true, masquerade_ports: Some(ports) };
    assert_eq!(topology.nodes[0].host, expected);
    assert_eq!(
        findings(&text("    hostPort: flatnet0\n    masqueradePorts: 50000-50999\n")),
        [
            "7:15 only a node on the host's own network has that",
            "8:22 only a node on the host's own network has that"
        ]
    );
    for (ports, expected) in [
        ("50000", "\"50000\" is not a range of ports such as 61000-65535"),
        ("50999-50000", "\"50999-50000\" is not a range of ports such as 61000-65535"),
        ("1000-2000", "1000-2000 begins below 1024, where ports of services are"),
        ("29000-33000", "29000-33000 has ports that Services may have on every node"),
        ("31000-31001", "31000-31001 has ports that Services may have on every node"),
    ] {
        let written = text(&format!("    underlay: socket\n    masqueradePorts: {ports:?}\n"));
        assert_eq!(findings(&written), [format!("8:22 masqueradePorts: {expected}")]);
    }
    let written = text("    underlay: socket\n    hostPort: a-name-that-is-long\n");
    assert_eq!(findings(&written), ["8:15 hostPort: \"a-name-that-is-long\" cannot be an interface's name"]);
}

#[test]
fn a_node_for_which_no_subnet_is_left_is_named() {
    let text = "apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  podNetwork: 10.1.0.0/16\n  nodes:\n\
        \x20   - {name: n, address: 192.168.1.2/24, podCIDR: 10.1.0.0/16}\n    - {name: m, address: 192.168.1.3/24}\n";
    assert_eq!(findings(text), ["7:14 no subnet of podNetwork 10.1.0.0/16 is left for node m"]);
    assert_eq!(findings(&text.replace("podCIDR: 10.1.0.0/16", "podCIDR: 10.1.0.0/17")), Vec::<String>::new());
}
