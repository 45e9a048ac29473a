//! What this host has for a node: ports, capabilities, devices.
//!
//! Invariant: a port is tried and let go at once.
//!
//! May depend on `rustix` and /proc. Read first: proc_pid_net(5), capabilities(7).

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};

use flatnet_agents::lease::config::{DEFAULT_UDP_PORT, DEFAULT_VXLAN_PORT};
use rustix::thread::{CapabilitySet, capabilities};

use super::{Finding, Verdict};

/// The device by which interfaces of programs are made.
const TUN: &str = "/dev/net/tun";

/// Looks at all; the cluster's tunnel has the port, or none if that is 0.
pub(super) fn look(wanted: Option<u16>) -> Vec<Finding> {
    let mut ports = vec![DEFAULT_UDP_PORT, DEFAULT_VXLAN_PORT];
    ports.extend(wanted.filter(|wanted| *wanted != 0 && !ports.contains(wanted)));
    let mut findings: Vec<Finding> =
        ports.into_iter().map(|number| port(number, wanted.is_none_or(|wanted| wanted == number))).collect();
    let own = capabilities(None).map_or(CapabilitySet::empty(), |own| own.effective);
    findings.extend(capability_findings(own));
    findings.push(device(own.contains(CapabilitySet::NET_ADMIN)));
    findings
}

/// Tries a port of a tunnel; it matters if the cluster uses it, or nobody knows which that is.
fn port(number: u16, matters: bool) -> Finding {
    let about = format!("{number}/udp");
    let found = |verdict, text: String| Finding::new("port", about.clone(), verdict, text);
    match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, number)) {
        Ok(_) => found(Verdict::Ok, "free".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let holder = holder(number);
            let is_node = holder.as_ref().is_some_and(|(name, _)| name == "flatnet");
            let text = match &holder {
                Some((name, id)) => format!("taken by {name}, process {id}"),
                None => "taken by the kernel, as by a vxlan device, or by a process that cannot be looked at"
                    .to_owned(),
            };
            if is_node || !matters {
                return found(if is_node { Verdict::Ok } else { Verdict::Note }, text);
            }
            found(Verdict::Wrong, text).with_help(match holder {
                Some((_, id)) => format!("end it (`kill {id}`), or give the cluster another port in its configuration's Backend"),
                None => "`ip -d link show type vxlan` shows devices, `ip link del NAME` removes one; root sees all processes".to_owned(),
            })
        }
        Err(error) => found(Verdict::Wrong, error.to_string()).with_help("a node needs to bind it"),
    }
}

/// Finds the process that has a UDP port: name and number.
fn holder(port: u16) -> Option<(String, u32)> {
    let inodes: Vec<String> = ["udp", "udp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/net/{table}")).ok())
        .flat_map(|text| text.lines().filter_map(|line| inode_of(line, port)).collect::<Vec<_>>())
        .collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find_map(|id: u32| {
        let files = fs::read_dir(format!("/proc/{id}/fd")).ok()?.flatten();
        let has = |link: std::path::PathBuf| inodes.iter().any(|inode| link.as_os_str() == &**inode);
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(has).then(|| {
            let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            (name.trim().to_owned(), id)
        })
    })
}

/// Reads a line of the system's table of sockets: if it has the port, what its file is called.
fn inode_of(line: &str, port: u16) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, local) = fields.get(1)?.split_once(':')?;
    (u16::from_str_radix(local, 16).ok()? == port)
        .then(|| format!("socket:[{}]", fields.get(9).unwrap_or(&"")))
}

/// What is possible with the process's capabilities.
fn capability_findings(own: CapabilitySet) -> Vec<Finding> {
    let all = [
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN", "--host-port, --uplink, real pods"),
        (CapabilitySet::NET_RAW, "CAP_NET_RAW", "--uplink"),
        (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN", "real pods"),
        (CapabilitySet::SYS_CHROOT, "CAP_SYS_CHROOT", "real pods"),
    ];
    let finding = |(flag, name, what)| {
        if own.contains(flag) {
            Finding::new("capability", name, Verdict::Ok, "there")
        } else {
            Finding::new(
                "capability",
                name,
                Verdict::Note,
                format!("missing: {what} need it, simulated pods do not"),
            )
        }
    };
    all.into_iter().map(finding).collect()
}

/// Looks at the device by which interfaces are made; who may make them should have it.
fn device(may_use: bool) -> Finding {
    let opened = fs::OpenOptions::new().read(true).write(true).open(TUN);
    let why = match opened {
        Ok(_) => return Finding::new("device", TUN, Verdict::Ok, "there"),
        Err(error) => error,
    };
    let verdict = if may_use { Verdict::Wrong } else { Verdict::Note };
    Finding::new("device", TUN, verdict, format!("cannot be opened: {why}"))
        .with_help("`modprobe tun`; in a container it is given by --device /dev/net/tun. --host-port and real pods need it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_told_with_its_process() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let number = taken.local_addr().unwrap().port();
        let found = port(number, true);
        assert_eq!(found.verdict, Verdict::Wrong);
        assert!(found.text.ends_with(&format!("process {}", std::process::id())), "{found:?}");
        assert_eq!(port(number, false).verdict, Verdict::Note);
        drop(taken);
        assert_eq!(port(number, true).verdict, Verdict::Ok);
    }

    #[test]
    fn who_may_do_nothing_is_told_what_that_means() {
        let found = capability_findings(CapabilitySet::NET_RAW);
        let notes: Vec<_> =
            found.iter().filter(|it| it.verdict == Verdict::Note).map(|it| &*it.about).collect();
        assert_eq!(notes, ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT"]);
    }
}
