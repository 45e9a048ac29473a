//! `flatnet capture`: the frames that pass a point, as pcapng to a file or standard output.
//!
//! Asks the instance and copies what it sends. Invariant: every frame is flushed as it comes, so that
//! `flatnet capture web-app-1 | wireshark -k -i -` shows it at once; it ends when its reader does, also where no frame passes.
//!
//! May depend on [`crate::client`]. Read first: [`crate::recorder`].

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;

use axum::body::Body;
use http_body_util::BodyExt as _;
use hyper::Method;
use rustix::event::{PollFd, PollFlags, poll};

use crate::args::Capture;
use crate::client::{self, Client, ClientError, encode};

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
    let name = arguments.write.as_ref().map_or("standard output".to_owned(), |it| it.display().to_string());
    let failed = |source| ClientError::Local { what: format!("{name} cannot be written"), source };
    let is_piped = arguments.write.is_none();
    let mut output: Box<dyn Write> = match &arguments.write {
        Some(path) => Box::new(File::create(path).map_err(failed)?),
        None => Box::new(io::stdout()),
    };
    let mut gone = std::pin::pin!(reader_gone());
    let mut body = response.into_body();
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            pressed = tokio::signal::ctrl_c() => return pressed.map_err(failed),
            () = &mut gone, if is_piped => return Ok(()),
        };
        let Some(frame) = frame else { return Ok(()) };
        if let Ok(bytes) = frame.map_err(|error| client.misunderstood(error))?.into_data() {
            match output.write_all(&bytes).and_then(|()| output.flush()) {
                // Whoever read has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.map_err(failed)?,
            }
        }
    }
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
