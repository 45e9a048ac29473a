//! Whether a node lives, and whether it is of use: `/healthz` and `/readyz`, as Kubernetes' components answer them.
//!
//! The server opens the port that `flatnet node --health` names. Invariants: nothing else is answered there; who
//! asks waits for [`PATIENCE`] at most, also while the control thread or a worker is stuck.
//!
//! May depend on axum, tokio. Read first: Kubernetes' "API health endpoints".

use std::fmt::Write as _;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::time::{Instant, sleep, timeout};

use super::{Desk, Instance};
use crate::entrance::Entrance;

/// How long the control thread, and then the workers, may take: less than a kubelet's patience with its probe is.
const PATIENCE: Duration = Duration::from_millis(400);
/// Time between two looks for workers' answers.
const POLL: Duration = Duration::from_millis(2);

/// What was looked at, and what is wrong with it.
type Check = (&'static str, Result<(), String>);

/// Answers at a port as long as the server runs.
pub(super) async fn serve(entrance: Entrance, desk: Desk) {
    let router = Router::new()
        .route("/healthz", get(health))
        .route("/livez", get(health))
        .route("/readyz", get(ready))
        .with_state(desk);
    if let Ok(listener) = tokio::net::TcpListener::from_std(entrance.listener) {
        // It ends with the process only.
        let _ = axum::serve(listener, router).await;
    }
}

/// Lives: the control thread answers.
async fn health(State(desk): State<Desk>, RawQuery(query): RawQuery) -> Response {
    let alive = timeout(PATIENCE, desk.ask(|_| ())).await;
    answer("healthz", &[("control", alive.map_or_else(|_| Err(silent()), |_| Ok(())))], query)
}

/// Is of use: it has its lease, has heard of the others', and its workers answer.
async fn ready(State(desk): State<Desk>, RawQuery(query): RawQuery) -> Response {
    let asked = timeout(PATIENCE, desk.ask(Instance::begin_readiness)).await;
    let checks = match asked {
        Err(_) => vec![("control", Err(silent()))],
        Ok(Err(ending)) => vec![("control", Err(ending.to_string()))],
        Ok(Ok((mut checks, workers))) => {
            checks.push(("engine", wait_for(workers).await));
            checks
        }
    };
    answer("readyz", &checks, query)
}

fn silent() -> String {
    format!("the control thread does not answer within {PATIENCE:?}")
}

/// Waits for all workers.
async fn wait_for(workers: Vec<Option<Receiver<()>>>) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    for (number, answer) in workers.into_iter().enumerate() {
        let answer = answer.ok_or_else(|| format!("worker {number} takes no requests"))?;
        loop {
            match answer.try_recv() {
                Ok(()) => break,
                Err(TryRecvError::Empty) if Instant::now() < end => sleep(POLL).await,
                Err(TryRecvError::Empty) => {
                    return Err(format!("worker {number} does not answer within {PATIENCE:?}"));
                }
                Err(TryRecvError::Disconnected) => return Err(format!("worker {number} has ended")),
            }
        }
    }
    Ok(())
}

/// Writes the checks as Kubernetes does: `ok` alone where all is well, unless more is asked for.
fn answer(name: &str, checks: &[Check], query: Option<String>) -> Response {
    let is_well = checks.iter().all(|(_, outcome)| outcome.is_ok());
    let is_verbose =
        query.is_some_and(|query| query.split('&').any(|part| part.split('=').next() == Some("verbose")));
    let mut text = String::new();
    for (what, outcome) in checks {
        let _ = match outcome {
            Ok(()) => writeln!(text, "[+]{what} ok"),
            Err(why) => writeln!(text, "[-]{what} failed: {why}"),
        };
    }
    let (status, text) = match (is_well, is_verbose) {
        (true, false) => (StatusCode::OK, "ok".to_owned()),
        (true, true) => (StatusCode::OK, format!("{text}{name} check passed\n")),
        (false, _) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{text}{name} check failed\n")),
    };
    let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];
    (status, kind, text).into_response()
}

impl Instance {
    /// Says what of the cluster is well, and has every worker answer.
    fn begin_readiness(&mut self) -> (Vec<Check>, Vec<Option<Receiver<()>>>) {
        let checks = self.drive.network.readiness(self.drive.now());
        let posts = self.drive.network.publisher.control.posts.iter();
        (checks, posts.map(|post| post.visit(|_| ()).ok()).collect())
    }
}
