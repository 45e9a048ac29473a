//! `flatnet node -d`: what the process in the background is told.
//!
//! Invariant: it is told all that this one was, from flags and file alike, and no more of a cluster in an etcd than was said.
//!
//! May depend on [`crate::topology`]. Read first: [`crate::up::background`].

use std::ffi::OsString;

use flatnet_engine::masquerade::PortRange;

use crate::args::Node;
use crate::etcd::reach;
use crate::topology::{Interface, Topology};

/// The words of the process in the background.
pub(super) fn words(
    arguments: &Node,
    name: &str,
    interface: Interface,
    topology: &Topology,
) -> Vec<OsString> {
    let mut words: Vec<OsString> = ["node", "--detached", "--name", name].map(Into::into).into();
    let mut flag = |name: &str, value: String| words.extend([name.into(), value.into()]);
    flag("--address", format!("{}/{}", interface.address, interface.network.length()));
    flag("--service-network", topology.service_network.to_string());
    if arguments.etcd.etcd.is_empty() {
        flag("--pod-network", topology.pod_network.to_string());
        if topology.backend.is_some() {
            flag("--port", topology.port.to_string());
        }
    } else {
        // What is not said comes from there.
        let said = [
            ("--pod-network", arguments.pod_network.map(|network| network.to_string())),
            ("--port", arguments.port.map(|port| port.to_string())),
            ("--public-ip", arguments.public_ip.map(|address| address.to_string())),
            (
                "--subnet-lease-renew-margin",
                arguments.subnet_lease_renew_margin.map(|margin| (margin.as_secs() / 60).to_string()),
            ),
        ];
        said.into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .for_each(|(name, value)| flag(name, value));
    }
    if let Some(backend) = arguments.backend {
        flag("--backend", backend.name().to_owned());
    }
    if let Some(vni) = arguments.vni {
        flag("--vni", vni.to_string());
    }
    if let Some(subnet) = arguments.pod_cidr {
        flag("--pod-cidr", subnet.to_string());
    }
    if let Some(workers) = arguments.workers {
        flag("--workers", workers.to_string());
    }
    if let Some(poll) = arguments.poll {
        flag("--poll", format!("{}ns", poll.as_nanos()));
    }
    if let Some(address) = &arguments.health {
        flag("--health", address.clone());
    }
    if let Some(name) = &arguments.host_port {
        flag("--host-port", name.clone());
    }
    if let Some(PortRange { first, last }) = arguments.masquerade_ports {
        flag("--masquerade-ports", format!("{first}-{last}"));
    }
    if arguments.uplink {
        words.push("--uplink".into());
    }
    words.extend(reach::words(&arguments.etcd));
    words.extend(path_words(arguments));
    words
}

/// Those of them that name files.
fn path_words(arguments: &Node) -> Vec<OsString> {
    let flags = [("--routes", &arguments.routes), ("--subnet-file", &arguments.subnet_file)];
    let flags = flags.into_iter().filter_map(|(flag, path)| Some((flag, path.as_ref()?)));
    let files = arguments.files.iter().map(|path| ("--file", path));
    flags.chain(files).flat_map(|(flag, path)| [flag.into(), path.into()]).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Arguments, Command};
    use crate::node::document;
    use crate::topology::node::read_node;

    fn node(words: &str) -> Node {
        let Command::Node(node) = Arguments::parse_from(words.split(' ')).command else {
            unreachable!("that is what was written")
        };
        *node
    }

    #[test]
    fn the_background_process_is_told_all_that_this_one_was() {
        let all = "flatnet node --name n --address 192.168.66.11/24 --pod-network 10.2.0.0/16 --pod-cidr 10.2.3.0/24 \
                   --service-network 10.97.0.0/16 --backend vxlan --vni 7 --port 9000 --workers 3 --poll 50us --host-port flatnet0 --uplink --health 10256 --masquerade-ports 61000-62000 --file a --file b --routes r";
        let told = node(all);
        let interface = told.address.unwrap();
        let (topology, _) = read_node(document(&told, "n", interface), &[], "n").unwrap();
        let words = words(&told, "n", interface, &topology);
        let words: Vec<&str> = words.iter().map(|word| word.to_str().unwrap()).collect();
        let again = node(&format!("flatnet {}", words.join(" ")));
        assert!(again.detached);
        assert_eq!(format!("{:?}", Node { detached: false, ..again }), format!("{told:?}"));
    }

    #[test]
    fn a_background_process_with_etcd_is_told_of_the_network_only_what_was_said() {
        let told = node(
            "flatnet node --name n --address 192.168.66.11/24 --service-network 10.97.0.0/16 --etcd https://a:1,https://b:2 \
             --etcd-prefix /p --etcd-cafile c --etcd-certfile d --etcd-keyfile e --etcd-username u --public-ip 203.0.113.7 \
             --subnet-lease-renew-margin 90 --subnet-file s",
        );
        let interface = told.address.unwrap();
        let (topology, _) = read_node(document(&told, "n", interface), &[], "n").unwrap();
        let words = words(&told, "n", interface, &topology);
        let words: Vec<&str> = words.iter().map(|word| word.to_str().unwrap()).collect();
        let again = node(&format!("flatnet {}", words.join(" ")));
        assert_eq!(format!("{:?}", Node { detached: false, ..again }), format!("{told:?}"));
    }

    #[test]
    fn a_background_process_without_a_tunnel_is_told_no_port() {
        let told = node("flatnet node --name n --address 192.168.66.11/24 --backend host-gw");
        let interface = told.address.unwrap();
        let (topology, _) = read_node(document(&told, "n", interface), &[], "n").unwrap();
        assert_eq!((topology.backend, topology.port), (None, 0));
        let words = words(&told, "n", interface, &topology);
        assert!(words.iter().all(|word| word != "--port") && words.contains(&"host-gw".into()));
    }
}
