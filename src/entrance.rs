//! Where a network is entered from this host: what `--publish` and `--socks` say, and the ports that they open.
//!
//! `flatnet up` opens them before anything else; [`crate::instance`] accepts there. Invariants: a port that cannot be had is an error
//! before the network comes up; without an address only this host's own programs come in.
//!
//! May depend on what its values stand for. Read first: `docs/adr/0030-the-host-by-ordinary-sockets.md`.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use miette::Diagnostic;
use rustix::io::Errno;

/// The namespace of the pod that stands for this host's programs.
pub const NAMESPACE: &str = "flatnet";
/// The pod's name: pods see its address.
pub const CLIENT: &str = "client";

/// A port of this host that leads into the network.
#[derive(Debug)]
pub struct Entrance {
    /// The flag that asked for it, as it was written.
    pub flag: String,
    /// The socket.
    pub listener: TcpListener,
    /// Where it listens.
    pub address: SocketAddrV4,
    /// Where it leads; where each client asks to, by SOCKS, if it does not say.
    pub target: Option<Target>,
}

/// What a connection is to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// A Service, pod, host, name of the cluster's or address.
    pub name: String,
    /// The port, host byte order.
    pub port: u16,
}

/// A port of this host cannot lead into the network.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum EntranceError {
    /// It is not written as it should be.
    #[error("{flag}: {why}")]
    #[diagnostic(help("write {form}; without an address it is this host's own: 127.0.0.1"))]
    Form {
        /// The flag.
        flag: String,
        /// What is wrong.
        why: String,
        /// How it should be written.
        form: &'static str,
    },
    /// It cannot be listened at.
    #[error("{flag} cannot listen at {address}")]
    #[diagnostic(help("{help}"))]
    Listen {
        /// The flag.
        flag: String,
        /// Where.
        address: SocketAddrV4,
        /// Why.
        #[source]
        source: io::Error,
        /// What to do.
        help: String,
    },
    /// Nobody has the name.
    #[error("{flag}: no Service, pod, host or node is called {name}")]
    #[diagnostic(help("there are {known}"))]
    Name {
        /// The flag.
        flag: String,
        /// The name.
        name: String,
        /// All that there are.
        known: String,
    },
    /// Programs of this host do not wait for virtual time.
    #[error("{0}: programs of this host do not wait for virtual time")]
    #[diagnostic(help("take `time: virtual` out of the topology"))]
    Virtual(String),
}

/// How `--publish` is written.
const PUBLISH: &str = "[ADDRESS:]PORT:NAME:PORT, such as 8080:web:80";
/// How `--socks` is written.
const SOCKS: &str = "[ADDRESS:]PORT, such as 1080";
/// How `--health` is written.
const HEALTH: &str = "[ADDRESS:]PORT, such as 10256";

/// Opens the ports that flags ask for, in their order.
///
/// # Errors
/// [`EntranceError::Form`], [`EntranceError::Listen`].
pub fn open(publish: &[String], socks: Option<&str>) -> Result<Vec<Entrance>, EntranceError> {
    let published = publish.iter().map(|text| {
        let flag = format!("--publish {text}");
        let (address, target) =
            published(text).map_err(|why| EntranceError::Form { flag: flag.clone(), why, form: PUBLISH })?;
        listen(flag, address, Some(target))
    });
    let socks = socks.map(|text| {
        let flag = format!("--socks {text}");
        let address =
            address(text).map_err(|why| EntranceError::Form { flag: flag.clone(), why, form: SOCKS })?;
        listen(flag, address, None)
    });
    published.chain(socks).collect()
}

/// Opens the port at which a node tells how it is.
///
/// # Errors
/// [`EntranceError::Form`], [`EntranceError::Listen`].
pub fn open_health(text: &str) -> Result<Entrance, EntranceError> {
    let flag = format!("--health {text}");
    let address =
        address(text).map_err(|why| EntranceError::Form { flag: flag.clone(), why, form: HEALTH })?;
    listen(flag, address, None)
}

/// Makes the pod in whose name this host's programs come in.
pub fn client(node: &str) -> Pod {
    let container =
        Container { name: CLIENT.into(), image: Some("flatnet/client".into()), ..Container::default() };
    Pod {
        metadata: ObjectMeta {
            name: Some(CLIENT.into()),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: Some(node.into()),
            containers: vec![container],
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

fn listen(flag: String, address: SocketAddrV4, target: Option<Target>) -> Result<Entrance, EntranceError> {
    let opened = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        Ok((listener, port))
    });
    match opened {
        Ok((listener, port)) => {
            Ok(Entrance { flag, listener, address: SocketAddrV4::new(*address.ip(), port), target })
        }
        Err(source) => {
            let help = advice(&source, address);
            Err(EntranceError::Listen { flag, address, source, help })
        }
    }
}

fn advice(error: &io::Error, address: SocketAddrV4) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::ADDRINUSE) => format!(
            "another program has the port (`ss -ltnp 'sport = :{}'` shows it); take another one",
            address.port()
        ),
        Some(Errno::ACCESS) => {
            "ports below 1024 need the capability CAP_NET_BIND_SERVICE; take one from 1024 on".to_owned()
        }
        Some(Errno::ADDRNOTAVAIL) => {
            "no interface of this host has the address (`ip -4 address` lists them)".to_owned()
        }
        Some(_) | None => "take another address or port".to_owned(),
    }
}

/// Reads `[ADDRESS:]PORT:NAME:PORT`.
fn published(text: &str) -> Result<(SocketAddrV4, Target), String> {
    let (rest, port) = text.rsplit_once(':').ok_or("it names no target")?;
    let (outside, name) = rest.rsplit_once(':').ok_or("it names no target")?;
    if name.is_empty() {
        return Err("the target has no name".to_owned());
    }
    let port = number(port)?;
    if port == 0 {
        return Err("nobody listens at port 0".to_owned());
    }
    Ok((address(outside)?, Target { name: name.to_owned(), port }))
}

/// Reads `[ADDRESS:]PORT`.
fn address(text: &str) -> Result<SocketAddrV4, String> {
    let (address, port) = text.rsplit_once(':').unwrap_or(("127.0.0.1", text));
    let address: Ipv4Addr = address.parse().map_err(|_| format!("{address:?} is no IPv4 address"))?;
    Ok(SocketAddrV4::new(address, number(port)?))
}

fn number(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("{text:?} is no port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_port_has_an_address_a_name_and_the_ports() {
        let target = |name: &str, port| Target { name: name.to_owned(), port };
        let at = |text: &str| text.parse::<SocketAddrV4>().unwrap();
        for (text, expected) in [
            ("8080:web:80", (at("127.0.0.1:8080"), target("web", 80))),
            ("0:shop/web-1:7", (at("127.0.0.1:0"), target("shop/web-1", 7))),
            (
                "0.0.0.0:80:web.default.svc.cluster.local:443",
                (at("0.0.0.0:80"), target("web.default.svc.cluster.local", 443)),
            ),
            ("127.0.0.2:1:10.1.15.3:65535", (at("127.0.0.2:1"), target("10.1.15.3", 65_535))),
        ] {
            assert_eq!(published(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_written_wrongly_is_said() {
        for (text, why) in [
            ("8080", "no target"),
            ("8080:web", "no target"),
            ("web:80:web:80", "\"web\" is no IPv4 address"),
            ("80x:web:80", "\"80x\" is no port"),
            ("8080:web:http", "\"http\" is no port"),
            ("8080:web:0", "port 0"),
            ("8080::80", "no name"),
            ("65536:web:80", "\"65536\" is no port"),
        ] {
            let said = published(text).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
        assert_eq!(address("1080"), Ok("127.0.0.1:1080".parse().unwrap()));
        assert!(address("[::1]:1080").unwrap_err().contains("no IPv4 address"));
    }

    #[test]
    fn a_port_that_is_taken_is_told_with_who_has_it() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = open(&[format!("{port}:web:80")], None).unwrap_err();
        let help = error.help().unwrap().to_string();
        assert!(help.contains(&format!("sport = :{port}")), "{help}");
        assert!(error.to_string().contains(&format!("--publish {port}:web:80 cannot listen")), "{error}");
    }
}
