//! `flatnet offload`: what links leave to the host's system, and whether they do.
//!
//! Asks the instance. Invariant: what it prints as settings can be typed as settings; `-o json` is what the instance sent.
//!
//! May depend on [`crate::client`]. Read first: `engine/src/link/feature.rs`.

use std::fmt::Write as _;
use std::process::ExitCode;

use hyper::Method;

use crate::args::Offload;
use crate::client::{self, Client, ClientError, encode};
use crate::output::print_as;
use crate::views::{OffloadEntry, OffloadRequest};

/// Runs the command.
///
/// # Errors
/// [`ClientError`].
pub fn run(arguments: &Offload) -> miette::Result<ExitCode> {
    let client = Client::find(arguments.selection.name.as_deref())?;
    let entries = client::run(ask(&client, arguments))?;
    print_as(arguments.output, &entries[..], text)?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(client: &Client, arguments: &Offload) -> Result<Vec<OffloadEntry>, ClientError> {
    let Some(point) = &arguments.point else { return client.ask(Method::GET, "/v1/offloads").await };
    if arguments.settings.is_empty() {
        return client.ask(Method::GET, &format!("/v1/offloads?point={}", encode(point))).await;
    }
    let request = OffloadRequest { point: point.clone(), settings: arguments.settings.clone() };
    client.tell("/v1/offloads", &request).await
}

/// A line each.
fn text(entries: &[OffloadEntry]) -> String {
    let mut text = String::new();
    for OffloadEntry { point, features } in entries {
        let words = features.iter().map(|(name, on)| format!("{name}={}", if *on { "on" } else { "off" }));
        let _ = writeln!(text, "{point}  {}", words.collect::<Vec<_>>().join(" "));
    }
    if entries.is_empty() {
        text.push_str("no link leaves anything to this host: all are in memory\n");
    }
    text
}
