//! `flatnet exec`: runs a program inside a pod or on a host, as if from its shell.
//!
//! Asks the instance to start it, prints what it writes while it runs, gives it standard input. Invariants: the exit
//! code is the program's; Ctrl-C ends the program, whose last words are still printed.
//!
//! May depend on [`crate::client`]. Read first: [`crate::instance::http`].

use std::io::{self, Read as _, Write as _};
use std::pin::pin;
use std::process::ExitCode;

use axum::body::{Body, Bytes};
use futures::stream;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::{HeaderMap, Method};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::args::Exec;
use crate::client::{self, Client, ClientError};
use crate::instance::http::{EXIT_CODE, PROGRAM};
use crate::views::ExecRequest;

/// Bytes of standard input read at once.
const CHUNK: usize = 16 * 1024;

/// Runs the command.
///
/// # Errors
/// [`ClientError`].
pub fn run(arguments: &Exec) -> miette::Result<ExitCode> {
    let client = Client::find(arguments.selection.name.as_deref())?;
    let request = ExecRequest { pod: arguments.pod.clone(), command: arguments.command.clone() };
    Ok(client::run(follow(&client, &request))?)
}

async fn follow(client: &Client, request: &ExecRequest) -> Result<ExitCode, ClientError> {
    let body = serde_json::to_vec(request).map_err(|error| client.misunderstood(error))?;
    let response = client.send(Method::POST, "/v1/exec", Body::from(body)).await?;
    let number = response.headers().get(PROGRAM).and_then(|value| value.to_str().ok());
    let number = number.ok_or_else(|| client.misunderstood("a program without a number"))?.to_owned();
    let interrupt = format!("/v1/programs/{number}/signal");
    let input = format!("/v1/programs/{number}/input");
    let speaker = client.clone();
    tokio::spawn(async move {
        // A program that has ended takes no input.
        let _ = speaker.feed(&input, standard_input()).await;
    });
    let deaf = |source| ClientError::Local { what: "Ctrl-C cannot be heard".into(), source };
    // One listener for the whole run, so that none is missed between two looks.
    let mut pressed = signal(SignalKind::interrupt()).map_err(deaf)?;
    let mut output = pin!(print_all(client, response.into_body()));
    loop {
        tokio::select! {
            code = &mut output => return code,
            Some(()) = pressed.recv() => {
                // A program that has ended in the meantime takes no signal; its last words are still on their way.
                let _ = client.send(Method::POST, &interrupt, Body::empty()).await;
            }
        }
    }
}

async fn print_all(client: &Client, mut body: Incoming) -> Result<ExitCode, ClientError> {
    loop {
        if let Some(code) = print_piece(client, &mut body).await? {
            return Ok(code);
        }
    }
}

/// Prints the next piece of output; returns the exit code with the last.
async fn print_piece(client: &Client, body: &mut Incoming) -> Result<Option<ExitCode>, ClientError> {
    let gone = || client.ended("the program had not ended yet");
    let frame = body.frame().await.ok_or_else(gone)?.map_err(|error| client.broke(error))?;
    match frame.into_data() {
        Ok(bytes) => {
            // On a thread of its own: a reader that pauses must not keep Ctrl-C from being heard.
            let write = move || {
                let mut output = io::stdout().lock();
                output.write_all(&bytes).and_then(|()| output.flush())
            };
            let written = tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| Err(error.into()));
            if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                // Whoever read has seen enough; the program in the pod ends with this connection.
                return Ok(Some(ExitCode::SUCCESS));
            }
            written
                .map_err(|source| ClientError::Local { what: "output cannot be written".into(), source })?;
            Ok(None)
        }
        Err(frame) => {
            let trailers = frame.into_trailers().unwrap_or_default();
            exit_code(&trailers).map(Some).ok_or_else(gone)
        }
    }
}

fn exit_code(trailers: &HeaderMap) -> Option<ExitCode> {
    let code: i32 = trailers.get(EXIT_CODE)?.to_str().ok()?.parse().ok()?;
    // As a shell sees it: the low eight bits.
    Some(ExitCode::from((code & 0xff) as u8))
}

/// Makes a body of standard input; a thread reads it, since a terminal cannot be waited for otherwise.
fn standard_input() -> Body {
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    std::thread::spawn(move || {
        let mut chunk = vec![0; CHUNK];
        while let Ok(count @ 1..) = io::stdin().lock().read(&mut chunk) {
            if sender.blocking_send(Bytes::copy_from_slice(&chunk[..count])).is_err() {
                return;
            }
        }
    });
    let chunks = stream::unfold(receiver, |mut receiver| async {
        let bytes = receiver.recv().await?;
        Some((Ok::<_, io::Error>(bytes), receiver))
    });
    Body::from_stream(chunks)
}
