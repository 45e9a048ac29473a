//! Real members of an etcd, for tests: on loopback, with their data in a directory of their own, ended with the value.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use futures::executor::block_on;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::store::{
    Etcd, Store,
    etcd::{Options, Tls},
};

/// An address of this process's own, so that nobody else takes a port of it.
fn address() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | high, middle, low)
}

fn socket() -> SocketAddrV4 {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    SocketAddrV4::new(address(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A member of a cluster, which may be running.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) client: SocketAddrV4,
    peer: SocketAddrV4,
    pub(super) data: PathBuf,
    process: Option<Child>,
}

/// A cluster of this machine's own etcd.
pub(super) struct Cluster {
    pub(super) members: Vec<Member>,
    pub(super) tls: Option<Authority>,
    directory: TempDir,
}

impl Cluster {
    /// Starts so many members, and returns when they answer.
    pub(super) fn start(count: usize) -> Self {
        Self::start_with(count, None)
    }

    /// Starts so many members with certificates of an authority.
    pub(super) fn start_with(count: usize, tls: Option<Authority>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let member = |number| {
            let name = format!("member-{number}");
            let data = directory.path().join(&name);
            Member { name, client: socket(), peer: socket(), data, process: None }
        };
        let members = (1..=count).map(member).collect();
        let mut cluster = Self { members, tls, directory };
        (0..count).for_each(|at| cluster.run(at));
        let patient = Options { deadline: Duration::from_secs(60), ..cluster.options() };
        block_on(Etcd::open(&patient).unwrap().get("/")).expect("etcd answers");
        cluster
    }

    /// Starts a member that is not running.
    pub(super) fn run(&mut self, at: usize) {
        let scheme = self.scheme();
        let initial = self.initial();
        let log = File::create(self.directory.path().join(format!("log-{at}"))).unwrap();
        let member = &self.members[at];
        let (client, peer) = (format!("{scheme}://{}", member.client), format!("http://{}", member.peer));
        let mut command = Command::new("etcd");
        command.args(["--name", &member.name, "--data-dir"]).arg(&member.data);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args([
            "--initial-cluster",
            &initial,
            "--heartbeat-interval",
            "50",
            "--election-timeout",
            "500",
        ]);
        if let Some(tls) = &self.tls {
            if tls.wants_certificates {
                command.args(["--client-cert-auth", "--trusted-ca-file"]).arg(tls.ca());
            }
            command.arg("--cert-file").arg(tls.certificate()).arg("--key-file").arg(tls.key());
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let process = command.spawn().expect("etcd runs: scripts/install etcd-server etcd-client");
        self.members[at].process = Some(process);
    }

    /// Kills a member.
    pub(super) fn kill(&mut self, at: usize) {
        if let Some(mut process) = self.members[at].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Tells where all members are reached.
    pub(super) fn options(&self) -> Options {
        let endpoints = (0..self.members.len()).map(|at| self.endpoint(at)).collect();
        let tls = self.tls.as_ref().map(Authority::tls).unwrap_or_default();
        Options { endpoints, tls, ..Options::default() }
    }

    pub(super) fn endpoint(&self, at: usize) -> String {
        format!("{}://{}", self.scheme(), self.members[at].client)
    }

    /// Opens a store with all members.
    pub(super) fn store(&self) -> Etcd {
        Etcd::open(&self.options()).unwrap()
    }

    /// Names all members as they name each other.
    pub(super) fn initial(&self) -> String {
        let name = |member: &Member| format!("{}=http://{}", member.name, member.peer);
        self.members.iter().map(name).collect::<Vec<_>>().join(",")
    }

    /// Runs etcdctl and returns what it prints.
    pub(super) fn etcdctl<I: AsRef<std::ffi::OsStr>>(&self, at: usize, arguments: &[I]) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint(at)]).args(arguments);
        let output = command.output().expect("etcdctl runs: scripts/install etcd-client");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "etcdctl: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// Finds the member that leads.
    pub(super) fn leader(&self) -> usize {
        let leads = |&at: &usize| {
            let status = self.etcdctl(at, &["endpoint", "status", "--write-out", "json"]);
            let status: serde_json::Value = serde_json::from_str(&status).unwrap();
            let status = &status[0]["Status"];
            status["leader"] == status["header"]["member_id"]
        };
        (0..self.members.len()).find(leads).expect("somebody leads")
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|at| self.kill(at));
    }
}

/// Files of a certificate authority and of a certificate for this process's address, good for servers and clients.
pub(super) struct Authority {
    directory: TempDir,
    /// Whether members want to see one of clients.
    pub(super) wants_certificates: bool,
}

impl Authority {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        // Two with one name would be taken for one another.
        ca.distinguished_name.push(DnType::CommonName, directory.path().display().to_string());
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec![address().to_string()]).unwrap();
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let pem = own.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap().pem();
        let authority = Self { directory, wants_certificates: true };
        std::fs::write(authority.ca(), ca_pem).unwrap();
        std::fs::write(authority.certificate(), pem).unwrap();
        std::fs::write(authority.key(), key.serialize_pem()).unwrap();
        authority
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    fn certificate(&self) -> PathBuf {
        self.directory.path().join("certificate.pem")
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("key.pem")
    }

    /// Names all files.
    pub(super) fn tls(&self) -> Tls {
        Tls { ca: Some(self.ca()), certificate: Some(self.certificate()), key: Some(self.key()) }
    }
}
