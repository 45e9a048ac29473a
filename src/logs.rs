//! `flatnet logs`: what a real pod's container wrote, as kubectl shows it.
//!
//! Asks the instance which pod is meant and reads the files, which are on this host. Invariant: both streams' lines come as the program
//! wrote them, oldest first.
//!
//! May depend on agents, [`crate::client`], k8s-openapi. Read first: `agents/src/runtime/output.rs`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use flatnet_agents::objects;
use flatnet_agents::runtime::{output, pod_directory};
use hyper::Method;
use k8s_openapi::api::core::v1::Pod;
use miette::Diagnostic;

use crate::args::{Kind, Logs};
use crate::client::{self, Client};
use crate::get;
use crate::instance::socket;
use crate::output::print_bytes;

/// There is nothing to show.
#[derive(Debug, thiserror::Error, Diagnostic)]
enum LogsError {
    /// The pod has no such container.
    #[error("pod {pod} has no container {container}")]
    #[diagnostic(help("there are {known}"))]
    Container { pod: String, container: String, known: String },
    /// No program of this host wrote anything there.
    #[error("there is no log of container {container} of pod {pod}")]
    #[diagnostic(help(
        "real pods (`runtimeClassName: netns`) have logs, one for each start of a container that took place"
    ))]
    Missing { pod: String, container: String },
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Runs the command.
///
/// # Errors
/// [`client::ClientError`]; there is no such log.
pub fn run(arguments: &Logs) -> miette::Result<ExitCode> {
    let client = Client::find(arguments.selection.name.as_deref())?;
    let pods: Vec<Pod> = client::run(client.ask(Method::GET, &get::path(Kind::Pods, Some(&arguments.pod))))?;
    for pod in &pods {
        print_bytes(&log(pod, &socket::pods(&client.name), arguments)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn log(pod: &Pod, pods: &Path, Logs { container, previous, .. }: &Logs) -> Result<Vec<u8>, LogsError> {
    let name = objects::pod_name(objects::namespace(pod), objects::name(pod));
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let known: Vec<&str> = containers.map(|container| container.name.as_str()).collect();
    let container = container.as_deref().or(known.first().copied()).unwrap_or_default();
    if !known.contains(&container) {
        let (container, known) = (container.to_owned(), known.join(", "));
        return Err(LogsError::Container { pod: name, container, known });
    }
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let directory =
        pods.join(pod_directory(objects::namespace(pod), objects::name(pod), uid)).join(container);
    let start = output::last_start(&directory).and_then(|last| last.checked_sub(u32::from(*previous)));
    let missing = || LogsError::Missing { pod: name.clone(), container: container.to_owned() };
    let log = output::path_of(&directory, start.ok_or_else(missing)?);
    let mut said = Vec::new();
    for path in output::files(&log).filter(|path| path.exists()) {
        let bytes = fs::read(&path).map_err(|source| LogsError::File { path, source })?;
        bytes.split(|&byte| byte == b'\n').filter_map(line).for_each(|text| said.extend(text));
    }
    Ok(said)
}

/// Takes what the program wrote out of an entry: time, stream, `F` for all of a line or `P` for a part, text.
fn line(entry: &[u8]) -> Option<Vec<u8>> {
    let mut words = entry.splitn(4, |&byte| byte == b' ');
    let (tag, text) = (words.nth(2)?, words.next()?);
    Some([text, if tag == b"F" { b"\n" } else { b"" }].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_what_was_written() {
        assert_eq!(line(b"2026-01-01T00:00:00.000000000Z stdout F a b  c\xff\r").unwrap(), b"a b  c\xff\r\n");
        assert_eq!(line(b"2026-01-01T00:00:00.000000000Z stderr P half").unwrap(), b"half");
        assert_eq!(line(b"2026-01-01T00:00:00.000000000Z stdout F ").unwrap(), b"\n");
        assert_eq!(line(b"cut off"), None);
    }
}
