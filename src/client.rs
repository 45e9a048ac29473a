//! The way from a command to a running network: HTTP over its Unix socket.
//!
//! Every command but `up` makes a [`Client`] and asks. Invariants: without `--name` the only running network is meant,
//! and an error lists them when there are several; what the instance refuses is printed as it said it.
//!
//! May depend on hyper, tokio. Read first: [`crate::instance::http`].

use std::io;
use std::path::PathBuf;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::instance::socket;
use crate::views::Problem;

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

/// A running network to ask.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its name.
    pub name: String,
    path: PathBuf,
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
        socket::running().into_iter().map(|(name, path)| Self { name, path }).collect()
    }

    /// Sends a request; what the network refuses is an error.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>, ClientError> {
        let broken = |source| ClientError::Connection { name: self.name.clone(), source };
        let stream = UnixStream::connect(&self.path).await.map_err(broken)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(io::Error::other(error)))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "flatnet")
            .header(header::TE, "trailers")
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| self.misunderstood(error))?;
        let response = sender.send_request(request).await.map_err(|error| broken(io::Error::other(error)))?;
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
        let response = self.send(method, path, Body::empty()).await?;
        let text = self.collect(response).await?;
        serde_json::from_slice(&text).map_err(|error| self.misunderstood(error))
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
        self.upload(path, Body::from(body)).await
    }

    /// Sends a body piece by piece and reads the whole answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn upload<T: DeserializeOwned>(&self, path: &str, body: Body) -> Result<T, ClientError> {
        let response = self.send(Method::POST, path, body).await?;
        let text = self.collect(response).await?;
        serde_json::from_slice(&text).map_err(|error| self.misunderstood(error))
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = response.into_body().collect().await;
        Ok(body.map_err(|error| self.misunderstood(error))?.to_bytes())
    }

    fn refused(&self, status: StatusCode, text: &[u8]) -> ClientError {
        match serde_json::from_slice::<Problem>(text) {
            Ok(Problem { error, help }) => ClientError::Refused { error, help },
            Err(_) => self.misunderstood(format!("status {status}")),
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
