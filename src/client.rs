//! The way from a command to a running network: HTTP over its Unix socket.
//!
//! Every command but `up` makes a [`Client`] and asks. Invariants: without `--name` the only running network is meant,
//! and an error lists them when there are several; what the instance refuses is printed as it said it; no
//! command waits for ever for a process that is stopped or no network: but for streams, the whole answer has a limit, and of
//! a stream its beginning.
//!
//! May depend on hyper, tokio. Read first: [`crate::instance::http`].

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::instance::socket;
use crate::views::{Problem, Status};

/// How long a network may take to answer: longer than a trace waits for its packet, and than a stuck worker is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a request fails.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum ClientError {
    /// Nothing runs.
    #[error("no network runs")]
    #[diagnostic(help("start one by `flatnet up -d`"))]
    NothingRuns,
    /// Several run.
    #[error("several networks run: {}", .0.join(", "))]
    #[diagnostic(help("say which by --name"))]
    Several(Vec<String>),
    /// No network of the name runs.
    #[error("no network {name} runs")]
    #[diagnostic(help("{}", running(known)))]
    NotRunning {
        /// The name.
        name: String,
        /// Those that run.
        known: Vec<String>,
    },
    /// The network refused the request.
    #[error("{error}")]
    Refused {
        /// What it said.
        error: String,
        /// What it said to do.
        #[help]
        help: Option<String>,
    },
    /// The network does not answer.
    #[error("network {name} does not answer")]
    Connection {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The network does not answer in time.
    #[error("network {name} does not answer within {limit:?}")]
    #[diagnostic(help("{}", awake(*pid, path)))]
    Silent {
        /// Its name.
        name: String,
        /// How long it had.
        limit: Duration,
        /// Its socket.
        path: PathBuf,
        /// The process that listens there.
        pid: Option<i32>,
    },
    /// The network ended meanwhile.
    #[error("network {name} ended before it had answered")]
    #[diagnostic(help(
        "`flatnet down` or a signal ended it, or it failed; the log of one in the background is {}",
        socket::log(name).display()
    ))]
    Ended {
        /// Its name.
        name: String,
        /// How that was seen.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer cannot be understood.
    #[error("network {name} gave no proper answer")]
    #[diagnostic(help("it may run another version of flatnet"))]
    Answer {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The local end failed.
    #[error("{what}")]
    Local {
        /// What failed.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn running(known: &[String]) -> String {
    if known.is_empty() {
        return "start one by `flatnet up -d`".to_owned();
    }
    format!("there are {}", known.join(", "))
}

fn awake(pid: Option<i32>, path: &Path) -> String {
    let path = path.display();
    pid.map_or_else(
        || format!("too many wait at {path} already; `ss -xlp` shows the process that listens there"),
        |pid| {
            format!(
                "process {pid} listens at {path}: `kill -CONT {pid}` lets it go on if it was stopped, `kill -KILL {pid}` ends it \
                 if it is stuck"
            )
        },
    )
}

/// A running network to ask.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its name.
    pub name: String,
    path: PathBuf,
    patience: Duration,
}

impl Client {
    /// Finds the running network of a name, or the only one.
    ///
    /// # Errors
    /// [`ClientError::NothingRuns`], [`ClientError::Several`], [`ClientError::NotRunning`].
    pub fn find(name: Option<&str>) -> Result<Self, ClientError> {
        let mut running = Self::all();
        let names = running.iter().map(|client| client.name.clone()).collect();
        if let Some(name) = name {
            let missing = || ClientError::NotRunning { name: name.to_owned(), known: names };
            return running.into_iter().find(|client| client.name == name).ok_or_else(missing);
        }
        match (running.pop(), running.is_empty()) {
            (Some(client), true) => Ok(client),
            (Some(_), false) => Err(ClientError::Several(names)),
            (None, _) => Err(ClientError::NothingRuns),
        }
    }

    /// Finds all running networks.
    pub fn all() -> Vec<Self> {
        socket::running().into_iter().map(|(name, path)| Self { name, path, patience: PATIENCE }).collect()
    }

    /// Bounds how long the network may take to answer.
    pub fn within(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Sends a request and waits for the beginning of its answer; what the network refuses is an error.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>, ClientError> {
        self.bound(self.exchange(method, path, body)).await
    }

    /// Sends a body piece by piece, which takes as long as it takes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn feed(&self, path: &str, body: Body) -> Result<Response<Incoming>, ClientError> {
        self.exchange(Method::POST, path, body).await
    }

    async fn bound<T>(&self, work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        match tokio::time::timeout(self.patience, work).await {
            Ok(result) => result,
            Err(_) => {
                let stream = UnixStream::connect(&self.path).await.ok();
                Err(self.silent(stream.and_then(|stream| stream.peer_cred().ok()?.pid())))
            }
        }
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        UnixStream::connect(&self.path).await.map_err(|source| {
            if source.kind() == io::ErrorKind::WouldBlock {
                // Its queue is full (connect(2)).
                return self.silent(None);
            }
            ClientError::Connection { name: self.name.clone(), source }
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = http1::handshake(stream).await.map_err(|error| self.broke(error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "flatnet")
            .header(header::TE, "trailers")
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| self.misunderstood(error))?;
        let response = sender.send_request(request).await.map_err(|error| self.broke(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = self.collect(response).await?;
        Err(self.refused(status, &text))
    }

    /// Sends a request and reads its whole answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, ClientError> {
        self.bound(self.read(self.exchange(method, path, Body::empty()))).await
    }

    /// Sends a JSON body and reads the whole answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn tell<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl serde::Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| self.misunderstood(error))?;
        self.bound(self.read(self.feed(path, Body::from(body)))).await
    }

    /// Sends a body piece by piece and reads the whole answer, once the network has said that it is there.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn upload<T: DeserializeOwned>(&self, path: &str, body: Body) -> Result<T, ClientError> {
        self.ask::<Status>(Method::GET, "/v1/status").await?;
        self.read(self.feed(path, body)).await
    }

    async fn read<T: DeserializeOwned>(
        &self,
        response: impl Future<Output = Result<Response<Incoming>, ClientError>>,
    ) -> Result<T, ClientError> {
        let text = self.collect(response.await?).await?;
        serde_json::from_slice(&text).map_err(|error| self.misunderstood(error))
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = response.into_body().collect().await;
        Ok(body.map_err(|error| self.broke(error))?.to_bytes())
    }

    fn refused(&self, status: StatusCode, text: &[u8]) -> ClientError {
        match serde_json::from_slice::<Problem>(text) {
            Ok(Problem { error, help }) => ClientError::Refused { error, help },
            Err(_) => self.misunderstood(format!("status {status}")),
        }
    }

    fn silent(&self, pid: Option<i32>) -> ClientError {
        ClientError::Silent { name: self.name.clone(), limit: self.patience, path: self.path.clone(), pid }
    }

    /// Makes the error of a network that ended while a command waited for it.
    pub fn ended(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Ended { name: self.name.clone(), source: source.into() }
    }

    /// Makes the error of a connection that broke.
    pub fn broke(&self, error: hyper::Error) -> ClientError {
        if error.is_parse() {
            self.misunderstood(error)
        } else if error.is_user() {
            let what = "what was to be sent cannot be read".to_owned();
            ClientError::Local { what, source: io::Error::other(error) }
        } else {
            self.ended(error)
        }
    }

    /// Makes the error of an answer that cannot be understood.
    pub fn misunderstood(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Answer { name: self.name.clone(), source: source.into() }
    }
}

/// Runs a command's requests on this thread.
///
/// # Errors
/// The command's own; [`ClientError::Local`] when the system refuses what is needed.
pub fn run<T>(work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|source| ClientError::Local { what: "nothing can be asked".to_owned(), source })?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// Makes text safe as a value in a query (RFC 3986, 2.1).
pub fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn client(directory: &tempfile::TempDir) -> (Client, UnixListener) {
        let path = directory.path().join("x.sock");
        let listener = UnixListener::bind(&path).unwrap();
        (Client { name: "x".to_owned(), path, patience: Duration::from_millis(50) }, listener)
    }

    #[test]
    fn who_listens_but_does_not_answer_is_given_up_and_named() {
        let directory = tempfile::tempdir().unwrap();
        let (client, _listener) = client(&directory);
        let own = i32::try_from(std::process::id()).unwrap();
        let asked = run(client.ask::<Status>(Method::GET, "/v1/status")).map(drop);
        let told = run(client.tell::<Status>("/v1/links", &0)).map(drop);
        let streamed = run(client.send(Method::GET, "/v1/capture", Body::empty())).map(drop);
        let uploaded = run(client.upload::<Status>("/v1/replay", Body::empty())).map(drop);
        for result in [asked, told, streamed, uploaded] {
            let ClientError::Silent { pid, .. } = result.unwrap_err() else { panic!("it is silent") };
            assert_eq!(pid, Some(own));
        }
        assert!(awake(Some(own), &client.path).contains(&format!("kill -CONT {own}")));
    }

    #[test]
    fn an_answer_that_breaks_off_is_a_network_that_ended() {
        for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"] {
            let directory = tempfile::tempdir().unwrap();
            let (client, listener) = client(&directory);
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let read = stream.read(&mut [0; 4096]).unwrap();
                assert!(read > 0);
                stream.write_all(answer.as_bytes()).unwrap();
            });
            let client = client.within(PATIENCE);
            let error = run(client.ask::<Status>(Method::GET, "/v1/status")).unwrap_err();
            assert!(matches!(error, ClientError::Ended { .. }), "{answer:?}: {error:?}");
            server.join().unwrap();
        }
    }
}
