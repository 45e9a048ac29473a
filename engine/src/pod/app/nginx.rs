//! nginx: its welcome page, the files of a volume, or a proxy that turns HTTP into FastCGI.
//!
//! Where a volume is mounted at the document root (`--root PATH`), its files are given, with `Cache-Control` after `--expires SECONDS`. With
//! `--fastcgi HOST:PORT` each request (with a root: for a `.php` only) becomes a FastCGI request on a connection of its own, which is
//! what `localhost:9000` in one pod is for. Invariants: a request's upstream ends with its client; an upstream that fails is 502.
//! Depends on `document`, `fastcgi`, `http`, `session`. Read first: `http.rs`, `fastcgi.rs`.

use super::super::socket::{Event, TcpId};
use super::super::sockets::Sockets;
use super::connection;
use super::document;
use super::fastcgi::{self, Kind};
use super::http::{self, Parsed, Request};
use super::session::Session;
use super::upstream::Server;
use std::collections::BTreeMap;
use std::net::SocketAddrV4;

const SERVER: &str = "nginx";
/// Where the files are, as in the image `nginx`.
const ROOT: &str = "/usr/share/nginx/html";
const WELCOME: &str = "<!DOCTYPE html>\n<html>\n<head><title>Welcome to nginx!</title></head>\n<body>\n\
    <h1>Welcome to nginx!</h1>\n<p>If you see this page, the nginx web server is successfully installed and working.</p>\n\
    </body>\n</html>\n";
/// Octets of an upstream's answer.
const ANSWER_LIMIT: usize = 4 * 1024 * 1024;

/// Where FastCGI is, if nginx is a proxy and has found out.
type Remote = Option<Option<SocketAddrV4>>;

/// A client's connection and the request that is being answered.
#[derive(Debug, Default)]
struct Client {
    session: Session,
    waiting: Option<(Request, TcpId)>,
}

/// A connection to FastCGI.
#[derive(Debug)]
struct Upstream {
    client: TcpId,
    session: Session,
    answer: Vec<u8>,
    complete: bool,
}

/// The application.
#[derive(Debug)]
pub(in super::super) struct Nginx {
    fastcgi: Option<Server>,
    root: String,
    /// Fields that go with files.
    fields: String,
    clients: BTreeMap<TcpId, Client>,
    upstreams: BTreeMap<TcpId, Upstream>,
}

impl Nginx {
    /// Makes the application of its arguments.
    ///
    /// # Errors
    /// A text that says which argument makes no sense.
    pub(super) fn new(args: &[String]) -> Result<Self, String> {
        let mut nginx = Nginx {
            fastcgi: None,
            root: ROOT.to_owned(),
            fields: String::new(),
            clients: BTreeMap::new(),
            upstreams: BTreeMap::new(),
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let (option, value) = match arg.split_once('=') {
                Some((option, value)) => (option, Some(value)),
                None => (arg.as_str(), None),
            };
            // What else the real nginx takes, such as `-g "daemon off;"`, changes nothing here.
            if !["--fastcgi", "--root", "--expires"].contains(&option) {
                continue;
            }
            let value = value.or_else(|| args.next().map(String::as_str)).unwrap_or_default();
            match option {
                "--fastcgi" => {
                    let server = Server::parse(value);
                    nginx.fastcgi =
                        Some(server.ok_or_else(|| format!("--fastcgi needs HOST:PORT, not {value:?}"))?);
                }
                "--root" if value.starts_with('/') => value.clone_into(&mut nginx.root),
                "--root" => return Err(format!("--root needs a path from / on, not {value:?}")),
                _ => {
                    let seconds: u32 =
                        value.parse().map_err(|_| format!("--expires needs seconds, not {value:?}"))?;
                    nginx.fields = format!("Cache-Control: max-age={seconds}\r\n");
                }
            }
        }
        Ok(nginx)
    }

    /// Handles an event.
    pub(super) fn handle(&mut self, event: Event, sockets: &mut Sockets<'_, '_>) {
        let remote = self.fastcgi.as_mut().map(|server| server.find(sockets));
        let Some(id) = connection(event) else { return };
        if self.upstreams.contains_key(&id) {
            self.handle_upstream(id, remote, sockets);
        } else {
            self.handle_client(id, remote, sockets);
        }
    }

    fn handle_client(&mut self, id: TcpId, remote: Remote, sockets: &mut Sockets<'_, '_>) {
        let client = self.clients.entry(id).or_default();
        client.session.fill(id, sockets);
        while client.waiting.is_none() && !client.session.close_after {
            match http::parse_request(&client.session.input) {
                Parsed::Incomplete => break,
                Parsed::Malformed => {
                    client.session.push(&http::response(SERVER, 400, None, "text/plain", b"Bad Request\n"));
                    client.session.close_after = true;
                }
                Parsed::Request(request) => {
                    if client.session.input.len() < request.head + request.body {
                        break;
                    }
                    let body = client.session.input[request.head..request.head + request.body].to_vec();
                    client.session.input.drain(..request.head + request.body);
                    let has_files = sockets.files.is_mounted(&self.root);
                    let is_script = is_script(&request.target);
                    match remote {
                        Some(address) if is_script || !has_files => {
                            let upstream =
                                address.and_then(|address| sockets.tcp_connect(address, false).ok());
                            let Some(upstream) = upstream else {
                                respond(client, &request, 502, "text/plain", b"Bad Gateway\n");
                                continue;
                            };
                            let mut session = Session::default();
                            session.push(&fastcgi_request(&request, &self.root, &body, id, sockets));
                            self.upstreams.insert(
                                upstream,
                                Upstream { client: id, session, answer: Vec::new(), complete: false },
                            );
                            client.waiting = Some((request, upstream));
                        }
                        Some(_) | None if has_files => {
                            let answer =
                                document::serve(SERVER, &self.root, &self.fields, &request, &sockets.files);
                            client.session.push(&answer);
                            client.session.close_after = !request.keep_alive;
                        }
                        Some(_) | None => respond(client, &request, 200, "text/html", WELCOME.as_bytes()),
                    }
                }
            }
        }
        self.finish_client(id, sockets);
    }

    fn finish_client(&mut self, id: TcpId, sockets: &mut Sockets<'_, '_>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let waits = client.waiting.is_some() && client.session.failed.is_none();
        if !waits && client.session.drain(id, sockets) {
            let waiting = self.clients.remove(&id).and_then(|client| client.waiting);
            if let Some((_, upstream)) = waiting {
                self.upstreams.remove(&upstream);
                sockets.tcp_abort(upstream);
            }
        }
    }

    fn handle_upstream(&mut self, id: TcpId, remote: Remote, sockets: &mut Sockets<'_, '_>) {
        let Some(upstream) = self.upstreams.get_mut(&id) else { return };
        upstream.session.fill(id, sockets);
        loop {
            match fastcgi::parse(&upstream.session.input) {
                fastcgi::Parsed::Record(record, length) => {
                    upstream.session.input.drain(..length);
                    match record.kind {
                        Kind::Stdout if upstream.answer.len() < ANSWER_LIMIT => {
                            upstream.answer.extend_from_slice(&record.content);
                        }
                        Kind::EndRequest => upstream.complete = true,
                        Kind::BeginRequest
                        | Kind::AbortRequest
                        | Kind::Params
                        | Kind::Stdin
                        | Kind::Stdout
                        | Kind::Stderr
                        | Kind::Unknown(_) => {}
                    }
                }
                fastcgi::Parsed::Incomplete => break,
                fastcgi::Parsed::Malformed => {
                    upstream.session.ended = true;
                    break;
                }
            }
        }
        let done = upstream.complete || upstream.session.ended || upstream.session.failed.is_some();
        if !done {
            upstream.session.drain(id, sockets);
            return;
        }
        sockets.tcp_close(id);
        let Some(upstream) = self.upstreams.remove(&id) else { return };
        let Some(client) = self.clients.get_mut(&upstream.client) else { return };
        if let Some((request, _)) = client.waiting.take() {
            answer_client(client, &request, &upstream);
        }
        self.handle_client(upstream.client, remote, sockets);
    }
}

/// Gives the upstream's answer to the client.
fn answer_client(client: &mut Client, request: &Request, upstream: &Upstream) {
    let Some(length) = http::head_length(&upstream.answer).filter(|_| upstream.complete) else {
        respond(client, request, 502, "text/plain", b"Bad Gateway\n");
        return;
    };
    // A CGI head has no request line; one is put in front so that fields are found.
    let head = format!("CGI\r\n{}", String::from_utf8_lossy(&upstream.answer[..length]));
    let status = http::field(&head, "status").and_then(|text| text.get(..3)?.parse().ok()).unwrap_or(200);
    let kind = http::field(&head, "content-type").unwrap_or("text/html").to_owned();
    respond(client, request, status, &kind, &upstream.answer[length..]);
}

fn respond(client: &mut Client, request: &Request, status: u16, kind: &str, body: &[u8]) {
    client.session.push(&http::response(SERVER, status, Some(request), kind, body));
    client.session.close_after = !request.keep_alive;
}

/// Says whether a target names what FastCGI computes.
fn is_script(target: &str) -> bool {
    target.split('?').next().is_some_and(|path| path.ends_with(".php"))
}

fn fastcgi_request(
    request: &Request,
    root: &str,
    body: &[u8],
    client: TcpId,
    sockets: &Sockets<'_, '_>,
) -> Vec<u8> {
    const RESPONDER: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 0];
    let peer = sockets.tcp_peer(client).map(|peer| peer.ip().to_string()).unwrap_or_default();
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let length = body.len().to_string();
    // Above the root there is no script.
    let script = document::path(root, path).unwrap_or_default();
    let mut parameters = Vec::new();
    for (name, value) in [
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("SERVER_SOFTWARE", SERVER),
        ("SERVER_NAME", sockets.pod.name.as_str()),
        ("REQUEST_METHOD", request.method.as_str()),
        ("REQUEST_URI", request.target.as_str()),
        ("SCRIPT_NAME", path),
        ("DOCUMENT_ROOT", root),
        ("SCRIPT_FILENAME", script.as_str()),
        ("QUERY_STRING", query),
        ("CONTENT_LENGTH", length.as_str()),
        ("REMOTE_ADDR", peer.as_str()),
    ] {
        fastcgi::write_parameter(&mut parameters, name, value);
    }
    let mut bytes = Vec::new();
    fastcgi::write_record(&mut bytes, Kind::BeginRequest, 1, &RESPONDER);
    fastcgi::write_stream(&mut bytes, Kind::Params, 1, &parameters);
    fastcgi::write_stream(&mut bytes, Kind::Stdin, 1, body);
    bytes
}
