//! Whether each member of an etcd answers, and how far its clock is from this host's.
//!
//! A member says the time in the `Date` of its HTTP answers (RFC 9110, 6.6.1), to the second; half of how long the answer took is the way
//! back. Invariant: one member that is down hides none of the others.
//!
//! May depend on agents, hyper, tokio. Read first: [`super`].

use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime};

use flatnet_agents::Etcd;
use flatnet_agents::lease;
use flatnet_agents::node::{NodeError, read_config};
use flatnet_agents::store::etcd::Options;
use futures::executor::block_on;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Finding, Verdict};
use crate::args::EtcdFlags;
use crate::etcd::reach::{options, prefix};
use crate::network::with_sources;

/// How long a member may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How far clocks may be apart: certificates and logs take no harm yet.
const APART: Duration = Duration::from_secs(5);

/// What an etcd says of the cluster.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    /// The tunnel's port, if that is known; 0 without a tunnel.
    pub(super) backend_port: Option<u16>,
    /// Where nodes are reached.
    pub(super) peers: Vec<Ipv4Addr>,
}

/// Looks at each member, and at what lies below flannel's prefix.
pub(super) fn look(flags: &EtcdFlags) -> miette::Result<(Vec<Finding>, Cluster)> {
    let (mut findings, mut cluster) = (Vec::new(), Cluster::default());
    if flags.etcd.is_empty() {
        let note = Finding::new("etcd", "-", Verdict::Note, "not looked at: --etcd says where it is");
        return Ok((vec![note], cluster));
    }
    let all = options(flags, 0)?;
    for endpoint in &all.endpoints {
        let one = Options { endpoints: vec![endpoint.clone()], deadline: PATIENCE, ..all.clone() };
        match Etcd::open(&one) {
            Err(error) => findings.push(Finding::new("etcd", endpoint, Verdict::Wrong, with_sources(&error))),
            Ok(store) => findings.push(reach(endpoint, &store, prefix(flags))),
        }
        findings.extend(clock(endpoint));
    }
    if findings.iter().any(|finding| finding.check == "etcd" && finding.verdict != Verdict::Wrong)
        && let Ok(store) = Etcd::open(&all)
    {
        findings.extend(survey(&store, prefix(flags), &mut cluster));
    }
    Ok((findings, cluster))
}

/// Asks a member for something that it can say with a leader only.
fn reach(endpoint: &str, store: &Etcd, prefix: &str) -> Finding {
    let begin = Instant::now();
    match block_on(read_config(store, prefix)) {
        Err(NodeError::Store(error)) => Finding::new("etcd", endpoint, Verdict::Wrong, with_sources(&error))
            .with_help("see whether the member runs, the port is open on the way, and most members reach each other: etcdctl endpoint status --cluster"),
        Ok(_) | Err(_) => {
            let text = format!("answers in {} ms", begin.elapsed().as_millis());
            Finding::new("etcd", endpoint, Verdict::Ok, text)
        }
    }
}

/// Reads the configuration and the leases.
fn survey(store: &Etcd, prefix: &str, cluster: &mut Cluster) -> Vec<Finding> {
    let (mut findings, key) = (Vec::new(), lease::config_key(prefix));
    match block_on(read_config(store, prefix)) {
        Ok((config, _)) => {
            let text = format!("network {}, backend {}", config.network, config.backend);
            findings.push(Finding::new("network", key, Verdict::Ok, text));
            cluster.backend_port = Some(config.port);
        }
        Err(error) => {
            findings.push(Finding::new("network", key, Verdict::Wrong, with_sources(&error)).with_help(
                format!("etcdctl put {}/config '{{\"Network\":\"10.1.0.0/16\"}}' writes one", prefix),
            ))
        }
    }
    match block_on(crate::subnets::list(store, prefix, &std::collections::BTreeMap::new())) {
        Err(error) => findings.push(Finding::new("subnets", prefix, Verdict::Wrong, with_sources(&error))),
        Ok(report) => {
            cluster.peers = report.items.iter().map(|item| item.public_ip).collect();
            cluster.peers.sort_unstable();
            cluster.peers.dedup();
            let text = format!("{} leased", report.items.len());
            findings.push(Finding::new("subnets", prefix, Verdict::Ok, text));
            let wrong =
                report.warnings.into_iter().filter(|warning| warning.key != lease::config_key(prefix));
            findings.extend(wrong.map(|warning| {
                Finding::new("subnets", warning.key, Verdict::Wrong, warning.why)
                    .with_help("etcdctl del takes it away; nodes pass it over")
            }));
        }
    }
    findings
}

/// Compares a member's clock with this host's.
fn clock(endpoint: &str) -> Option<Finding> {
    let note = |text: String| Some(Finding::new("clock", endpoint, Verdict::Note, text));
    let Some(host) = endpoint.strip_prefix("http://") else {
        return note("not looked at: the member is asked by TLS".to_owned());
    };
    let host = host.trim_end_matches('/');
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let asked = runtime.block_on(async { tokio::time::timeout(PATIENCE, date(host)).await });
    match asked {
        Ok(Ok((theirs, ours))) => {
            let ahead = theirs.duration_since(ours).unwrap_or_default();
            let behind = ours.duration_since(theirs).unwrap_or_default();
            Some(judge(endpoint, ahead, behind))
        }
        Ok(Err(why)) => note(format!("not known: {why}")),
        Err(_) => note("not known: no answer".to_owned()),
    }
}

/// Says whether clocks are near enough.
fn judge(endpoint: &str, ahead: Duration, behind: Duration) -> Finding {
    let (apart, which) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
    if apart <= APART {
        return Finding::new("clock", endpoint, Verdict::Ok, "as this host's, to the second");
    }
    let text = format!("{} s {which} this host's", apart.as_secs());
    Finding::new("clock", endpoint, Verdict::Wrong, text)
        .with_help("leases last as long as they do, but certificates and logs go by it: have both hosts follow one clock (chrony, systemd-timesyncd)")
}

/// Asks a member for the time, and says what it was here meanwhile.
async fn date(host: &str) -> Result<(SystemTime, SystemTime), String> {
    let failed = |error: &dyn std::error::Error| with_sources(error);
    let stream = TcpStream::connect(host).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    tokio::spawn(connection);
    let request = Request::get("/version").header(header::HOST, host).body(Empty::<Bytes>::new());
    let begin = SystemTime::now();
    let answer = sender
        .send_request(request.map_err(|error| failed(&error))?)
        .await
        .map_err(|error| failed(&error))?;
    let way = begin.elapsed().unwrap_or_default() / 2;
    let said =
        answer.headers().get(header::DATE).and_then(|value| value.to_str().ok()).ok_or("it says no date")?;
    let theirs = httpdate::parse_http_date(said).map_err(|error| failed(&error))?;
    // What is said to the second is half a second ago on average.
    Ok((theirs + Duration::from_millis(500), begin + way))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_are_apart_are_told_by_how_much() {
        let seconds = Duration::from_secs;
        assert_eq!(judge("a", seconds(5), seconds(0)).verdict, Verdict::Ok);
        let found = judge("a", seconds(0), seconds(61));
        assert_eq!((found.verdict, &*found.text), (Verdict::Wrong, "61 s behind this host's"));
        assert_eq!(judge("a", seconds(7), seconds(0)).text, "7 s ahead of this host's");
    }
}
