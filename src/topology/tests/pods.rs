//! Pods: names, addresses, images, volumes, and what of them has no effect.

use super::*;

#[test]
fn a_pod_cannot_have_the_name_of_a_machine() {
    let topology = "apiVersion: flatnet.dev/v1\nkind: Topology\nmetadata: {name: t}\nspec:\n  nodes:\n    \
        - {name: alpha, address: 192.168.66.11/24}\n";
    let pod = |namespace: &str| {
        format!(
            "{topology}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: alpha, namespace: {namespace}}}\n\
             spec: {{containers: [{{name: echo, image: flatnet/echo}}]}}\n"
        )
    };
    let findings = parse(&[(PathBuf::from("t.yaml"), pod("default"))]).unwrap_err();
    assert_eq!(findings.errors.len(), 1);
    assert_eq!(findings.errors[0].to_string(), "a node is named alpha already");
    assert_eq!(findings.errors[0].place().line(), 10);
    assert!(parse(&[(PathBuf::from("t.yaml"), pod("other"))]).is_ok(), "it is named other/alpha");
}

#[test]
fn volumes_and_mounts_that_make_no_sense_are_found_at_their_places() {
    let text = format!(
        "{SHORT}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  volumes:\n    - {{name: html, emptyDir: {{}}}}\n    \
         - {{name: html, hostPath: {{path: srv}}}}\n    - {{name: A, hostPath: {{path: /srv, type: Socket}}}}\n    \
         - {{name: big, emptyDir: {{medium: Memory, sizeLimit: much}}}}\n    - {{name: conf, configMap: {{name: x}}}}\n  \
         containers:\n    - name: web\n      image: nginx\n      volumeMounts:\n        - {{name: html, mountPath: /html}}\n        \
         - {{name: none, mountPath: /html/}}\n        - {{name: html, mountPath: html}}\n        - {{name: html, mountPath: /a/../b}}\n        \
         - {{name: html, mountPath: /}}\n        - {{name: html, mountPath: /c, subPath: ../x, readOnly: true}}\n        \
         - {{name: conf, mountPath: /d, mountPropagation: None}}\n"
    );
    assert_eq!(
        findings(&text),
        [
            "12:14 volume name html is used twice",
            "12:37 hostPath \"srv\" is relative; it must begin with /",
            "13:14 volume name \"A\" is not a name",
            "13:46 hostPath type \"Socket\" is not supported; Directory, DirectoryOrCreate, File and FileOrCreate are",
            "14:57 sizeLimit \"much\" is not a size",
            "21:18 container web mounts \"none\", which is no volume of the pod",
            "21:35 mountPath /html is used twice",
            "22:35 mountPath \"html\" must begin with /",
            "23:35 mountPath \"/a/../b\" must not contain ..",
            "24:35 mountPath \"/\" must not be the container's root",
            "25:48 subPath \"../x\" must not contain ..",
            "15:20 warning: spec.volumes.configMap of a Pod has no effect yet",
            "26:39 warning: spec.containers.volumeMounts.mountPropagation of a Pod has no effect yet",
        ]
    );
}

/// Ports that are not written are the image's own; arguments may change them, and a command is another program.
#[test]
fn containers_of_a_pod_that_take_one_port_are_warned_of_without_their_ports_written() {
    let pod = |second: &str| {
        findings(&format!(
            "{SHORT}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  containers:\n\
             \x20   - {{name: c, image: nginx}}\n    - {{name: d, {second}}}\n"
        ))
    };
    let both = "12:24 warning: containers c and d of one pod both ask for port 80/TCP";
    assert_eq!(pod("image: httpd"), [both]);
    assert_eq!(pod("image: httpd, ports: [{containerPort: 81}]"), Vec::<String>::new());
    assert_eq!(pod("image: nginx, command: [sleep, 1d]"), Vec::<String>::new());
}

#[test]
fn pods_are_checked_against_their_node_and_each_other() {
    let text = "apiVersion: flatnet.dev/v1
kind: Topology
spec:
  nodes:
    - {name: n, address: 192.168.1.2/24, podCIDR: 10.1.15.0/24}
---
apiVersion: v1
kind: Pod
metadata: {name: a, annotations: {flatnet.dev/ip: 10.1.20.2}}
spec: {nodeName: n, containers: [{name: c, image: nginx}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, annotations: {flatnet.dev/ip: 10.1.15.1, flatnet.dev/colour: tap}}
spec: {nodeName: m, containers: [{name: c, image: nginx}, {name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: a, annotations: {flatnet.dev/ip: 10.1.15.1}}
spec:
  colour: null
  containers:
    - {name: c, image: nginx, ports: [{containerPort: 80}]}
    - {name: d, image: nginx, ports: [{containerPort: 80}, {containerPort: 80, protocol: UDP}, {containerPort: 0}]}
---
apiVersion: v1
kind: Pod
spec: {}
";
    assert_eq!(
        findings(text),
        [
            "9:51 address 10.1.20.2 is not one for pods of n (10.1.15.0/24)",
            "14:62 annotation flatnet.dev/colour of a Pod is not supported yet",
            "15:18 nodeName m is no node of the topology",
            "15:59 container \"c\" has no image",
            "15:66 container name c is used twice",
            "19:18 the name of Pod default/a is used twice",
            "19:51 address 10.1.15.1 is not one for pods of any node",
            "19:51 pod address 10.1.15.1 is used twice",
            "21:3 unknown field \"colour\"",
            "24:112 containerPort 0 is not between 1 and 65535",
            "26:1 Pod has no name",
            "28:7 a pod needs a container",
            "24:55 warning: containers c and d of one pod both ask for port 80/TCP",
        ]
    );
}

/// A topology with the nodes of one text, and a pod for each wish: node (or none) and address, from line 7 on, 4 lines each.
fn with_wishes(nodes: &str, wishes: &[(&str, &str)]) -> String {
    let mut text = format!("apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  nodes: [{nodes}]\n");
    for (index, (node, address)) in wishes.iter().enumerate() {
        let node = if node.is_empty() { String::new() } else { format!("nodeName: {node}, ") };
        text += &format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{index}, annotations: {{flatnet.dev/ip: {address}}}}}\n\
             spec: {{{node}containers: [{{name: c, image: nginx}}]}}\n"
        );
    }
    text
}

#[test]
fn a_wished_address_lies_in_a_subnet_of_its_node_or_of_any() {
    let fixed = "{name: a, address: 192.168.1.2/24, podCIDR: 10.1.15.0/24}, {name: b, address: 192.168.1.3/24, podCIDR: 10.1.20.0/24}";
    let wishes =
        [("", "10.1.20.9"), ("", "10.1.30.9"), ("a", "10.1.20.8"), ("", "10.1.20.1"), ("", "10.2.0.9")];
    assert_eq!(
        findings(&with_wishes(fixed, &wishes)),
        [
            "13:52 address 10.1.30.9 is not one for pods of any node",
            "18:52 address 10.1.20.8 is not one for pods of a (10.1.15.0/24)",
            "23:52 address 10.1.20.1 is not one for pods of any node",
            "28:52 address 10.2.0.9 is not in podNetwork 10.1.0.0/16",
        ]
    );
    // b may lease any subnet that is not a's; flannel leaves the network's first alone.
    let free =
        "{name: a, address: 192.168.1.2/24, podCIDR: 10.1.15.0/24}, {name: b, address: 192.168.1.3/24}";
    let wishes =
        [("", "10.1.30.9"), ("b", "10.1.30.8"), ("b", "10.1.15.9"), ("", "10.1.0.9"), ("", "10.1.15.8")];
    assert_eq!(
        findings(&with_wishes(free, &wishes)),
        [
            "18:52 address 10.1.15.9 is not one for pods of b (any subnet that no other node names)",
            "23:52 address 10.1.0.9 is not one for pods of any node",
        ]
    );
}

#[test]
fn unknown_images_are_found_at_their_places() {
    let text = "apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  nodes: [{name: n, address: 192.168.1.2/24}]\n  hosts:\n    \
                - {name: h, address: 192.168.1.3/24, image: apache}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\n\
                spec:\n  containers:\n    - {name: c, image: nginx}\n    - {name: d, image: \"mysql:8\"}\n";
    let found = findings(text);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].starts_with("6:49 image: \"apache\" is not known; there are flatnet/pause, "),
        "{found:?}"
    );
    assert_eq!(found[1], "14:24 warning: image mysql:8 is not known: container d will not start");
    let error = parse(&file(text)).unwrap_err();
    assert!(error.warnings[0].advice().unwrap().contains("flatnet/echo, "), "{error:?}");
}

#[test]
fn what_a_container_runs_has_an_effect_and_its_environment_has_none_yet() {
    let text = format!(
        "{SHORT}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  containers:\n    - {{name: c, image: busybox, command: \
         [sleep], args: ['9']}}\n    - {{name: d, image: busybox, env: [{{name: A, value: b}}]}}\n"
    );
    assert_eq!(findings(&text), ["12:33 warning: spec.containers.env of a Pod has no effect yet"]);
}

#[test]
fn a_pod_on_the_hosts_network_is_said_to_be_none() {
    let text = format!(
        "{SHORT}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  hostNetwork: true\n  containers: [{{name: c, \
         image: busybox}}]\n"
    );
    assert_eq!(findings(&text), ["10:16 warning: a pod on its node's network (hostNetwork) is not run yet"]);
}

#[test]
fn a_real_pods_volume_on_disk_has_no_limit_that_is_kept() {
    let text = format!(
        "{SHORT}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  runtimeClassName: netns\n  volumes:\n    \
         - {{name: disk, emptyDir: {{sizeLimit: 1Mi}}}}\n    - {{name: memory, emptyDir: {{medium: Memory, sizeLimit: 1Mi}}}}\n  \
         containers: [{{name: main, image: busybox, command: [\"true\"]}}]\n"
    );
    let expected = ["12:42 warning: the sizeLimit of volume \"disk\" is not kept: it is a directory on disk"];
    assert_eq!(findings(&text), expected);
    assert_eq!(findings(&text.replace("  runtimeClassName: netns\n", "")).len(), 0);
}

#[test]
fn real_and_attached_pods_say_what_they_are() {
    let pod = |fields: &str, container: &str| {
        let text = format!(
            "{SHORT}---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n{fields}  containers:\n    - {{name: c, {container}}}\n"
        );
        findings(&text)
            .into_iter()
            .map(|found| found.split_once(' ').unwrap().1.to_owned())
            .collect::<Vec<_>>()
    };
    let real = "spec:\n  runtimeClassName: netns\n";
    let attached = |text: &str| format!("  annotations: {{flatnet.dev/attach: \"{text}\"}}\nspec:\n");
    assert_eq!(
        pod(real, "command: ['true'], env: [{name: A, value: b}], workingDir: /tmp"),
        Vec::<String>::new()
    );
    assert_eq!(
        pod(real, "command: ['true'], env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]"),
        ["container \"c\" takes a variable from elsewhere: there is nowhere to take it from yet"]
    );
    assert_eq!(pod(real, "image: x"), ["container \"c\" of a real pod has no command"]);
    assert_eq!(
        pod("spec:\n  runtimeClassName: runc\n", "image: nginx"),
        ["runtimeClassName \"runc\" is not known"]
    );
    assert_eq!(pod(&attached("tap:vm0"), "image: flatnet/pause"), Vec::<String>::new());
    assert_eq!(
        pod(&attached("tap:vm0"), "image: nginx"),
        ["container \"c\" will not run: what is attached runs by itself"]
    );
    for nothing in ["vm0", "tap:", "netns:a/b", "vlan:7"] {
        let expected = format!("{nothing:?} is nothing that can be attached");
        assert_eq!(pod(&attached(nothing), "image: flatnet/pause"), [expected]);
    }
    let both = format!("{}  runtimeClassName: netns\n", attached("netns:lab"));
    let said = pod(&both, "image: flatnet/pause");
    assert_eq!(said, ["a pod with flatnet.dev/attach runs nothing of ours"]);
    let mac = "  annotations: {flatnet.dev/mac: \"01:00:5e:00:00:01\"}\nspec:\n";
    assert_eq!(pod(mac, "image: nginx"), ["\"01:00:5e:00:00:01\" is not a machine's MAC"]);
    let mac = "  annotations: {flatnet.dev/mac: \"02:00:00:00:00:01\"}\nspec:\n";
    assert_eq!(pod(mac, "image: nginx"), ["flatnet.dev/mac is for pods with flatnet.dev/attach"]);
}
