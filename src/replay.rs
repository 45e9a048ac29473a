//! `flatnet replay`: plays a pcap or pcapng file into a running network, as if the machine at the point had sent it.
//!
//! Sends the file as it is; the instance reads it. Invariant: the file is read piece by piece, once per loop.
//!
//! May depend on [`crate::client`]. Read first: [`crate::packets`], [`crate::instance`].

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::process::ExitCode;

use axum::body::{Body, Bytes};
use futures::stream;

use crate::args::Replay;
use crate::client::{self, Client, ClientError, encode};
use crate::output::print_as;
use crate::views::ReplayReport;

/// Bytes sent at once.
const PIECE: usize = 64 << 10;

/// Runs the command.
///
/// # Errors
/// [`ClientError`].
pub fn run(arguments: &Replay) -> miette::Result<ExitCode> {
    let client = Client::find(arguments.selection.name.as_deref())?;
    let mut whole = ReplayReport::default();
    for _ in 0..arguments.repeat {
        whole.add(client::run(play(&client, arguments))?);
    }
    print_as(arguments.output, &whole, text)?;
    Ok(ExitCode::SUCCESS)
}

async fn play(client: &Client, arguments: &Replay) -> Result<ReplayReport, ClientError> {
    let path = arguments.file.display();
    let failed = |source| ClientError::Local { what: format!("{path} cannot be read"), source };
    let file = File::open(&arguments.file).map_err(failed)?;
    // A directory opens, too.
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    let query = format!("/v1/replay?point={}&speed={}", encode(&arguments.point), encode(&arguments.speed));
    let pieces = stream::unfold(file, |mut file| async {
        let mut piece = vec![0; PIECE];
        match file.read(&mut piece) {
            Ok(0) => None,
            Ok(length) => {
                piece.truncate(length);
                Some((Ok(Bytes::from(piece)), file))
            }
            Err(error) => Some((Err(error), file)),
        }
    });
    client.upload(&query, Body::from_stream(pieces)).await
}

fn text(report: &ReplayReport) -> String {
    let ReplayReport { frames, bytes, sent, cut, too_long, seconds, drops } = report;
    let mut text = format!("{sent} of {frames} frames sent, {bytes} bytes in {seconds:.3} s\n");
    if *cut > 0 {
        let _ = writeln!(text, "{cut} left out: the file does not hold them whole");
    }
    if *too_long > 0 {
        let _ = writeln!(text, "{too_long} left out: longer than a frame can be");
    }
    if !drops.is_empty() {
        text.push_str("dropped in the whole network meanwhile:\n");
    }
    for drop in drops {
        let _ = writeln!(text, "  {:24} {}", drop.reason, drop.count);
    }
    text
}
