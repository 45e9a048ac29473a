//! How an etcd is reached: endpoints, TLS files, user.
//!
//! [`super::Etcd::open`] takes them; `flatnet node` fills them from its arguments.
//!
//! Invariants: nothing here prints a password; whatever can be said without asking an etcd is said here.
//!
//! May depend on `etcd-client` and the standard library.
//!
//! Read first: flanneld's flags `etcd-*`; etcd's transport security model.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use thiserror::Error;

/// Pings of a connection with something under way. etcd refuses more than one in five seconds, and all of idle connections.
const PING_INTERVAL: Duration = Duration::from_millis(5500);
/// How long the answer of a ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// How an etcd is reached.
#[derive(Clone, Debug)]
pub struct Options {
    /// URLs of members, `http://` or `https://`; one is used at a time.
    pub endpoints: Vec<String>,
    /// Files for `https://`.
    pub tls: Tls,
    /// Who to be.
    pub user: Option<User>,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// How long a request may take, with all that is tried again.
    pub deadline: Duration,
    /// Which member comes first and how long is waited before trying again come from it.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            tls: Tls::default(),
            user: None,
            connect_timeout: Duration::from_secs(2),
            deadline: Duration::from_secs(5),
            seed: 0,
        }
    }
}

/// PEM files of TLS.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Whose certificates to believe; without it, those that the system believes.
    pub ca: Option<PathBuf>,
    /// The own certificate, for an etcd that asks for one.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// A user of etcd.
#[derive(Clone, Debug)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password.
    pub password: Password,
}

/// A password, which nothing prints.
#[derive(Clone)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

/// Why an etcd cannot even be asked.
#[derive(Debug, Error)]
pub enum OpenError {
    /// No endpoint is named.
    #[error("no endpoint of etcd is named")]
    NoEndpoint,
    /// An endpoint is no URL.
    #[error("{endpoint} is no endpoint: http://HOST:PORT or https://HOST:PORT is")]
    Endpoint {
        /// The endpoint.
        endpoint: String,
    },
    /// TLS files are named, and an endpoint has no TLS.
    #[error("{endpoint} has no TLS, and TLS files are named")]
    Plain {
        /// The endpoint.
        endpoint: String,
    },
    /// Of certificate and key only one is named.
    #[error("a certificate needs its key, and a key its certificate")]
    HalfIdentity,
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The thread cannot be started.
    #[error("no thread can be started")]
    Thread(#[source] io::Error),
}

/// Says it in etcd-client's words.
pub(super) fn connect_options(options: &Options) -> Result<ConnectOptions, OpenError> {
    let tls = &options.tls;
    let has_files = tls.ca.is_some() || tls.certificate.is_some() || tls.key.is_some();
    if options.endpoints.is_empty() {
        return Err(OpenError::NoEndpoint);
    }
    for endpoint in &options.endpoints {
        let is_plain = endpoint.starts_with("http://");
        let host = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
        if !host.is_some_and(|host| !host.is_empty() && !host.contains([' ', '@'])) {
            return Err(OpenError::Endpoint { endpoint: endpoint.clone() });
        }
        if is_plain && has_files {
            return Err(OpenError::Plain { endpoint: endpoint.clone() });
        }
    }
    // A member that has lost its leader says so at once and is left, and so is one that does not answer.
    let mut connect = ConnectOptions::new()
        .with_connect_timeout(options.connect_timeout)
        .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
        .with_keep_alive_while_idle(false)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some(user) = &options.user {
        connect = connect.with_user(&user.name, &user.password.0);
    }
    // Plain endpoints are refused any TLS options, even empty ones.
    if options.endpoints.iter().all(|endpoint| endpoint.starts_with("https://")) {
        connect = connect.with_tls(tls_options(tls)?);
    }
    Ok(connect)
}

fn tls_options(tls: &Tls) -> Result<TlsOptions, OpenError> {
    let mut options = match &tls.ca {
        Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?)),
        None => TlsOptions::new().with_native_roots(),
    };
    match (&tls.certificate, &tls.key) {
        (Some(certificate), Some(key)) => {
            options = options.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        (None, None) => {}
        _ => return Err(OpenError::HalfIdentity),
    }
    Ok(options)
}

fn read(path: &Path) -> Result<Vec<u8>, OpenError> {
    fs::read(path).map_err(|source| OpenError::File { path: path.into(), source })
}
