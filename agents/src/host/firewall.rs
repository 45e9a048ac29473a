//! Rules of this host's own for a node: what is for the node's ports its system does not answer.
//!
//! A node with a raw uplink takes such packets itself, and the system gets them, too: without a rule it would reset connections that
//! it does not know. Invariants: all rules are in one table of the node's, `flatnet-NODE`, whose comment says whose it is; a table
//! of a process that runs is never taken away by another; nothing else is read or changed.
//!
//! By `nft`, which every distribution has. Read first: nft(8); `docs/adr/0028-a-nodes-way-out-and-in.md`.

use std::fs;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::process::{Command, Output, Stdio};

use flatnet_engine::masquerade::PortRange;
use flatnet_proxy::Ipv4Prefix;
use thiserror::Error;

/// What tables' names begin with.
const PREFIX: &str = "flatnet-";
/// What their comments do.
const OWNER: &str = "flatnet process";

/// Why the host's rules cannot be changed.
#[derive(Debug, Error)]
pub enum FirewallError {
    /// There is no such program.
    #[error("nft cannot be run")]
    Program(#[source] io::Error),
    /// The caller may not.
    #[error("the rules of this host need the capability CAP_NET_ADMIN")]
    NotAllowed,
    /// It refuses.
    #[error("nft refuses: {0}")]
    Refused(String),
    /// Another process has the table.
    #[error("the rules of {table} belong to process {process}, which runs")]
    Taken {
        /// The table.
        table: String,
        /// Its owner.
        process: u32,
    },
}

/// A node's table, until dropped.
#[derive(Debug)]
pub struct Rules {
    table: String,
}

/// Keeps this host from answering what is sent to these ports of its address on an interface, and from forwarding or answering what
/// comes there for pods of this subnet, if one is given. What a process of this node's name left behind that is gone is replaced.
///
/// # Errors
/// [`FirewallError`].
pub fn keep_silent(
    node: &str,
    interface: &str,
    own: Ipv4Addr,
    ports: &[PortRange],
    pods: Option<Ipv4Prefix>,
) -> Result<Rules, FirewallError> {
    let table = format!("{PREFIX}{node}");
    if let Some(process) = owner(&table)?.filter(|process| process.runs()) {
        return Err(FirewallError::Taken { table, process: process.number });
    }
    let process = Process::own();
    let ports: Vec<_> = ports.iter().map(|PortRange { first, last }| format!("{first}-{last}")).collect();
    let ports = ports.join(", ");
    let to_pods =
        pods.map_or_else(String::new, |pods| format!("    iifname \"{interface}\" ip daddr {pods} drop\n"));
    // In front of connection tracking, which would remember what the node has to remember. A fragment behind the first has no ports,
    // and nft would take its payload for some.
    run(&format!(
        "table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n  comment \"{OWNER} {} {}\"\n  chain prerouting {{\n    \
         type filter hook prerouting priority raw; policy accept;\n    iifname \"{interface}\" ip daddr {own} ip frag-off & 0x1fff == 0 \
         meta l4proto {{ tcp, udp }} th dport {{ {ports} }} drop\n{to_pods}  }}\n}}\n",
        process.number, process.started
    ))?;
    Ok(Rules { table })
}

impl Drop for Rules {
    fn drop(&mut self) {
        // `flatnet clean` finds what cannot be removed now.
        let _ = remove(&self.table);
    }
}

/// Removes the tables of processes that are gone; returns their names.
///
/// # Errors
/// [`FirewallError`].
pub fn clean() -> Result<Vec<String>, FirewallError> {
    let listed = match run("list tables ip") {
        // Without it nobody made any.
        Err(FirewallError::Program(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Vec::new());
        }
        listed => listed?,
    };
    let tables = listed.lines().filter_map(|line| line.trim().strip_prefix("table ip "));
    let mut removed = Vec::new();
    for table in tables.filter(|table| table.starts_with(PREFIX)) {
        // Somebody else's has a name like ours, but no such comment.
        if owner(table)?.is_some_and(|process| !process.runs()) {
            remove(table)?;
            removed.push(table.to_owned());
        }
    }
    Ok(removed)
}

fn remove(table: &str) -> Result<(), FirewallError> {
    run(&format!("delete table ip {table}")).map(drop)
}

/// Finds whose a table is; none when there is no such table, or it is none of ours.
fn owner(table: &str) -> Result<Option<Process>, FirewallError> {
    match run(&format!("list table ip {table}")) {
        Ok(text) => Ok(Process::of_comment(&text)),
        Err(FirewallError::Refused(said)) if said.contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

/// A process, told from others that had its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    number: u32,
    /// When it started, in the system's ticks.
    started: u64,
}

impl Process {
    fn own() -> Self {
        let number = std::process::id();
        Self { number, started: started(number).unwrap_or_default() }
    }

    fn of_comment(text: &str) -> Option<Self> {
        let comment =
            text.lines().find_map(|line| line.trim().strip_prefix("comment \"")?.strip_suffix('"'))?;
        let (number, started) = comment.strip_prefix(OWNER)?.trim().split_once(' ')?;
        Some(Self { number: number.parse().ok()?, started: started.parse().ok()? })
    }

    fn runs(&self) -> bool {
        started(self.number) == Some(self.started)
    }
}

/// Reads when a process started (proc_pid_stat(5), the 22nd field); none of one that has ended and is only waited for.
fn started(process: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, may have anything in it.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// Has `nft` do something in the network namespace of the caller.
fn run(script: &str) -> Result<String, FirewallError> {
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = nft.spawn().map_err(FirewallError::Program)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends at once says why.
        let _ = stdin.write_all(script.as_bytes());
    }
    let Output { status, stdout, stderr } = child.wait_with_output().map_err(FirewallError::Program)?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if status.success() {
        return Ok(text(stdout));
    }
    let said = text(stderr);
    if said.contains("Operation not permitted") {
        return Err(FirewallError::NotAllowed);
    }
    Err(FirewallError::Refused(said.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_others_of_its_number() {
        let own = Process::own();
        assert!(own.started > 0 && own.runs());
        assert!(!Process { started: own.started + 1, ..own }.runs());
        let mut child = Command::new("true").spawn().unwrap();
        let ended = Process { number: child.id(), started: started(child.id()).unwrap_or_default() };
        while started(child.id()).is_some() {
            std::thread::yield_now();
        }
        assert!(!ended.runs(), "nobody has waited for it yet");
        child.wait().unwrap();
    }

    #[test]
    fn only_a_comment_of_ours_names_an_owner() {
        let listed = |comment: &str| {
            format!("table ip flatnet-n {{\n\tcomment \"{comment}\"\n\tchain x {{\n\t}}\n}}\n")
        };
        let expected = Process { number: 12, started: 345 };
        assert_eq!(Process::of_comment(&listed("flatnet process 12 345")), Some(expected));
        for comment in ["somebody's", "flatnet process", "flatnet process 12", "flatnet process a b"] {
            assert_eq!(Process::of_comment(&listed(comment)), None, "{comment}");
        }
        assert_eq!(Process::of_comment("table ip flatnet-n {\n}\n"), None);
    }
}
