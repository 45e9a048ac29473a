//! `flatnet link`: shows how links differ from perfect ones, and changes that while the network runs.
//!
//! Asks the instance. Invariants: what it prints as settings can be typed as settings; `-o json` is what the instance
//! sent.
//!
//! May depend on [`crate::client`]. Read first: [`crate::impairment`].

use std::fmt::Write as _;
use std::process::ExitCode;

use hyper::Method;

use crate::args::Link;
use crate::client::{self, Client, ClientError, encode};
use crate::output::print_as;
use crate::views::{LinkEntry, LinkRequest};

/// Runs the command.
///
/// # Errors
/// [`ClientError`].
pub fn run(arguments: &Link) -> miette::Result<ExitCode> {
    let client = Client::find(arguments.selection.name.as_deref())?;
    let entries = client::run(ask(&client, arguments))?;
    print_as(arguments.output, &entries[..], text)?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(client: &Client, arguments: &Link) -> Result<Vec<LinkEntry>, ClientError> {
    let Link { from: Some(from), to: Some(to), settings, one_way, .. } = arguments else {
        return client.ask(Method::GET, "/v1/links").await;
    };
    if settings.is_empty() {
        return client.ask(Method::GET, &format!("/v1/links?from={}&to={}", encode(from), encode(to))).await;
    }
    let (from, to, settings) = (from.clone(), to.clone(), settings.clone());
    client.tell("/v1/links", &LinkRequest { from, to, one_way: *one_way, settings }).await
}

/// Two lines a direction: its settings, and what happened on it.
fn text(entries: &[LinkEntry]) -> String {
    let mut text = String::new();
    for LinkEntry { from, to, settings, counters, .. } in entries {
        let _ = writeln!(text, "{from} → {to}  {settings}");
        let counts = [
            ("frames", counters.frames),
            ("bytes", counters.bytes),
            ("lost", counters.lost),
            ("duplicated", counters.duplicated),
            ("reordered", counters.reordered),
            ("corrupted", counters.corrupted),
            ("queue-full", counters.queue_full),
            ("too-long", counters.too_long),
            ("refused", counters.refused),
        ];
        let happened = counts.iter().filter(|(_, count)| *count > 0);
        let happened: Vec<String> = happened.map(|(name, count)| format!("{name} {count}")).collect();
        if !happened.is_empty() {
            let _ = writeln!(text, "    {}", happened.join("  "));
        }
    }
    if entries.is_empty() {
        text.push_str("all links are perfect\n");
    }
    text
}
