//! A web server whose page says which pod answered and whom, or that gives the files of a volume.
//!
//! Behind Services and NodePorts the page shows which backend was chosen and how the client's address looks from there. Where a volume is
//! mounted at Apache's document root, its files are given instead.
//! Invariant: one session per connection, gone with it. Depends on `document`, `http`, `session`. Read first: `http.rs`.

use super::super::socket::{Event, TcpId};
use super::super::sockets::Sockets;
use super::connection;
use super::document;
use super::http::{self, Parsed, Request};
use super::session::Session;
use std::collections::BTreeMap;

/// Where the files are, as in the image `httpd`.
const ROOT: &str = "/usr/local/apache2/htdocs";

/// The application.
#[derive(Debug, Default)]
pub(in super::super) struct Httpd {
    sessions: BTreeMap<TcpId, Session>,
}

impl Httpd {
    /// Handles an event.
    pub(super) fn handle(&mut self, event: Event, sockets: &mut Sockets<'_, '_>) {
        let Some(id) = connection(event) else { return };
        let session = self.sessions.entry(id).or_default();
        session.fill(id, sockets);
        while !session.close_after {
            match http::parse_request(&session.input) {
                Parsed::Incomplete => break,
                Parsed::Malformed => {
                    session.push(&http::response("httpd", 400, None, "text/plain", b"Bad Request\n"));
                    session.close_after = true;
                }
                Parsed::Request(request) => {
                    if session.input.len() < request.head + request.body {
                        break;
                    }
                    session.input.drain(..request.head + request.body);
                    session.close_after = !request.keep_alive;
                    let answer = answer(&request, id, sockets);
                    session.push(&answer);
                }
            }
        }
        if session.drain(id, sockets) {
            self.sessions.remove(&id);
        }
    }
}

fn answer(request: &Request, id: TcpId, sockets: &Sockets<'_, '_>) -> Vec<u8> {
    if sockets.files.is_mounted(ROOT) {
        return document::serve("httpd", ROOT, "", request, &sockets.files);
    }
    if !matches!(request.method.as_str(), "GET" | "HEAD" | "POST") {
        return http::response("httpd", 405, Some(request), "text/plain", b"Method Not Allowed\n");
    }
    let client = sockets.tcp_peer(id).map(|peer| peer.to_string()).unwrap_or_default();
    let pod = sockets.pod;
    let page = format!(
        "pod: {}\nnamespace: {}\naddress: {}\nclient: {client}\npath: {}\n",
        pod.name, pod.namespace, pod.address, request.target
    );
    http::response("httpd", 200, Some(request), "text/plain", page.as_bytes())
}
