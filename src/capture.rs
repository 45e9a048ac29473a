//! `flatnet capture`: the frames that pass a point, as pcapng to a file or standard output.
//!
//! Asks the instance and copies what it sends. Invariant: every frame is flushed as it comes, so that
//! `flatnet capture web-app-1 | wireshark -k -i -` shows it at once; it ends when its reader does, also where no
//! frame passes; how many frames it lacks is told at the end.
//!
//! May depend on [`crate::client`]. Read first: [`crate::recorder`].

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;

use axum::body::Body;
use http_body_util::BodyExt as _;
use hyper::{HeaderMap, Method};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Capture;
use crate::client::{self, Client, ClientError, encode};
use crate::instance::http::{CAPTURE, LOST};
use crate::recorder::warn_of_loss;

/// Binary data must not go to a terminal.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("frames are not for a terminal")]
#[diagnostic(help("write to a file by -w FILE, or pipe into `tshark -r -` or `wireshark -k -i -`"))]
struct Terminal;

/// Runs the command.
///
/// # Errors
/// [`ClientError`]; standard output is a terminal.
pub fn run(arguments: &Capture) -> miette::Result<ExitCode> {
    let client = Client::find(arguments.selection.name.as_deref())?;
    if arguments.write.is_none() && io::stdout().is_terminal() {
        return Err(Terminal.into());
    }
    client::run(copy(&client, arguments))?;
    Ok(ExitCode::SUCCESS)
}

async fn copy(client: &Client, arguments: &Capture) -> Result<(), ClientError> {
    let mut path = format!("/v1/capture?point={}", encode(&arguments.point));
    if let Some(count) = arguments.count {
        path.push_str(&format!("&count={count}"));
    }
    let response = client.send(Method::GET, &path, Body::empty()).await?;
    let end = end_path(client, response.headers())?;
    let name = arguments.write.as_ref().map_or("standard output".to_owned(), |it| it.display().to_string());
    let failed = |source| ClientError::Local { what: format!("{name} cannot be written"), source };
    let is_piped = arguments.write.is_none();
    let mut output: Box<dyn Write> = match &arguments.write {
        Some(path) => Box::new(File::create(path).map_err(failed)?),
        None => Box::new(io::stdout()),
    };
    // Listens all the time: Ctrl-C may come while a frame is written.
    let mut interrupt = signal(SignalKind::interrupt())
        .map_err(|source| ClientError::Local { what: "Ctrl-C cannot be heard".into(), source })?;
    let mut gone = std::pin::pin!(reader_gone());
    let mut body = response.into_body();
    let (mut is_ending, mut is_read) = (false, true);
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            _ = interrupt.recv() => {
                if is_ending {
                    // Pressed again: what is still to come is not worth the wait.
                    return Ok(());
                }
                is_ending = true;
                ask_to_end(client, &end).await;
                continue;
            }
            () = &mut gone, if is_piped && is_read => {
                is_read = false;
                ask_to_end(client, &end).await;
                continue;
            }
        };
        let Some(frame) = frame else { return Ok(()) };
        match frame.map_err(|error| client.broke(error))?.into_data() {
            Ok(bytes) if is_read => match output.write_all(&bytes).and_then(|()| output.flush()) {
                // Whoever read has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    is_read = false;
                    ask_to_end(client, &end).await;
                }
                written => written.map_err(failed)?,
            },
            Ok(_) => {}
            Err(frame) => warn_of_loss(&arguments.point, lost(&frame.into_trailers().unwrap_or_default())),
        }
    }
}

/// Finds where the end of this capture is asked for.
fn end_path(client: &Client, headers: &HeaderMap) -> Result<String, ClientError> {
    let number = headers.get(CAPTURE).and_then(|value| value.to_str().ok());
    let number = number.ok_or_else(|| client.misunderstood("a capture without a number"))?;
    Ok(format!("/v1/captures/{number}/end"))
}

/// Has the network send what has passed already and how much is missing, and then no more.
async fn ask_to_end(client: &Client, path: &str) {
    // A network that is gone has ended the capture itself.
    let _ = client.send(Method::POST, path, Body::empty()).await;
}

fn lost(trailers: &HeaderMap) -> u64 {
    trailers.get(LOST).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// Waits until nobody can read standard output any more: a pipe's write end then reports POLLERR, asked for or not (poll(2)).
async fn reader_gone() {
    let waited = tokio::task::spawn_blocking(|| {
        let output = io::stdout();
        poll(&mut [PollFd::new(&output, PollFlags::empty())], None)
    });
    if !matches!(waited.await, Ok(Ok(_))) {
        // It cannot be waited for: the next frame will tell.
        std::future::pending().await
    }
}
