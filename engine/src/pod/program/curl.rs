//! `curl`: one HTTP request, its body to the output or into a file.
//!
//! Exit codes are curl's: 3 URL, 5 proxy's name, 6 name, 7 refused or unreachable, 22 with `-f` from status 400, 23 file, 28 timeout,
//! 52 empty reply, 56 broken.
//! Invariants: one connection, one request; nothing is read while the output is full.
//! Depends on `sockets`, `response`. Read first: curl(1).

use super::super::files::FileError;
use super::super::socket::{Event, Received, SocketError, TcpId};
use super::super::sockets::Sockets;
use super::Find;
use super::arguments::Arguments;
use super::console::Console;
use super::response::Response;
use super::url::Url;
use crate::clock::Instant;
use std::net::SocketAddrV4;
use std::time::Duration;

/// A running curl.
#[derive(Debug)]
pub(super) struct Curl {
    to: SocketAddrV4,
    request: Vec<u8>,
    sent: usize,
    as_wget: bool,
    silent: bool,
    verbose: bool,
    show_error: bool,
    fail: bool,
    with_head: bool,
    head_only: bool,
    target: Target,
    /// The last name of the URL's path.
    file_name: String,
    /// Whether the head was passed on, and the file made.
    has_begun: bool,
    write_out: Option<String>,
    timeout: Option<Duration>,
    started: Instant,
    connection: Option<TcpId>,
    response: Response,
}

/// Where the body goes.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Console,
    Nowhere,
    File {
        path: String,
        /// Whether there must not be one yet.
        is_new: bool,
    },
}

impl Target {
    /// Understands the value of `-o` and `-O`.
    fn of(path: &str) -> Self {
        match path {
            "-" | "/dev/stdout" => Target::Console,
            "/dev/null" => Target::Nowhere,
            path => Target::File { path: path.to_owned(), is_new: false },
        }
    }
}

/// Where a proxy listens when nothing else is said, as curl has it.
const PROXY_PORT: u16 = 1080;
/// Long options and their letters.
const LONG: [(&str, &str); 13] = [
    ("--silent", "-s"),
    ("--verbose", "-v"),
    ("--show-error", "-S"),
    ("--fail", "-f"),
    ("--include", "-i"),
    ("--head", "-I"),
    ("--max-time", "-m"),
    ("--output", "-o"),
    ("--remote-name", "-O"),
    ("--write-out", "-w"),
    ("--header", "-H"),
    ("--request", "-X"),
    ("--proxy", "-x"),
];

impl Curl {
    /// Makes a curl of its words.
    ///
    /// # Errors
    /// What is wrong with them, and the exit code for that.
    pub(super) fn new(words: &[String], find: &mut Find<'_>) -> Result<Self, (String, i32)> {
        let words: Vec<String> = words
            .iter()
            .map(|word| {
                LONG.iter().find(|(long, _)| long == word).map_or(word.clone(), |(_, short)| (*short).into())
            })
            .collect();
        let usage = |problem: String| (format!("curl: {problem}"), 2);
        let arguments = Arguments::parse(&words, "sSfiIvLk4O", "mowHXdx").map_err(usage)?;
        let [url] = arguments.operands.as_slice() else {
            return Err((
                String::from(
                    "curl: usage: curl [-sSfiIvO] [-m SECONDS] [-o FILE] [-x PROXY] http://ADDRESS[:PORT]/PATH",
                ),
                2,
            ));
        };
        let url = Url::parse(url, 80)?;
        let (host, path) = (url.authority, url.path);
        let file_name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let target_file = match arguments.value::<String>('o').map_err(usage)? {
            Some(file) => Target::of(&file),
            None if !arguments.has('O') => Target::Console,
            None => match file_name.split('?').next().filter(|name| !name.is_empty()) {
                Some(name) => Target::File { path: name.to_owned(), is_new: false },
                None => return Err((String::from("curl: (23) Remote file name has no length"), 23)),
            },
        };
        let proxy: Option<String> = arguments.value('x').map_err(usage)?;
        let (to, target, proxy_field) = match proxy {
            None => {
                let unknown = |_| (format!("curl: (6) Could not resolve host: {}", url.name), 6);
                (SocketAddrV4::new(find(url.name).map_err(unknown)?, url.port), path, "")
            }
            // The proxy is the one who looks the host up.
            Some(proxy) => {
                let proxy = Url::parse(&proxy, PROXY_PORT)?;
                let unknown = |_| (format!("curl: (5) Could not resolve proxy: {}", proxy.name), 5);
                let to = SocketAddrV4::new(find(proxy.name).map_err(unknown)?, proxy.port);
                (to, format!("http://{host}{path}"), "Proxy-Connection: Keep-Alive\r\n")
            }
        };
        let data: Option<String> = arguments.value('d').map_err(usage)?;
        let head_only = arguments.has('I');
        let default = if head_only {
            "HEAD"
        } else if data.is_some() {
            "POST"
        } else {
            "GET"
        };
        let method: String = arguments.value('X').map_err(usage)?.unwrap_or_else(|| default.into());
        let mut request = format!(
            "{method} {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: curl\r\nAccept: */*\r\n{proxy_field}"
        );
        for field in arguments.values('H') {
            request += &format!("{field}\r\n");
        }
        let body = data.unwrap_or_default();
        if !body.is_empty() {
            request += &format!("Content-Length: {}\r\n", body.len());
        }
        request += &format!("\r\n{body}");
        Ok(Curl {
            to,
            request: request.into_bytes(),
            sent: 0,
            as_wget: false,
            silent: arguments.has('s'),
            verbose: arguments.has('v'),
            show_error: arguments.has('S'),
            fail: arguments.has('f'),
            with_head: arguments.has('i') || head_only,
            head_only,
            target: target_file,
            file_name,
            has_begun: false,
            write_out: arguments.value('w').map_err(usage)?,
            timeout: arguments.seconds('m').map_err(usage)?,
            started: Instant::ZERO,
            connection: None,
            response: Response::default(),
        })
    }

    /// Makes of it a wget that writes into a file, or looks only; without a name the file has the URL's last one below `directory`, and
    /// must not be there yet.
    pub(super) fn into_wget(self, file: Option<&str>, directory: &str, looks_only: bool) -> Self {
        let target = match file {
            _ if looks_only => Target::Nowhere,
            Some(file) => Target::of(file),
            None => {
                let name = if self.file_name.is_empty() { "index.html" } else { &self.file_name };
                Target::File { path: format!("{directory}{name}"), is_new: true }
            }
        };
        Curl { as_wget: true, target, ..self }
    }

    /// Handles an event.
    pub(super) fn handle(&mut self, event: Event, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        if event == Event::Start {
            self.started = sockets.now;
            match sockets.tcp_connect(self.to, false) {
                Ok(id) => self.connection = Some(id),
                Err(error) => self.end(7, error.text(), console, sockets),
            }
        }
        let Some(id) = self.connection else { return };
        self.receive(id, console, sockets);
        if console.exit_code().is_some() {
            return;
        }
        if sockets.tcp_is_open(id) {
            if self.verbose && self.sent == 0 {
                let (address, port) = (self.to.ip(), self.to.port());
                console.line(format!("* Connected to {address} port {port}"));
                print_head('>', head_of(&self.request), console);
            }
            self.sent += sockets.tcp_write(id, &self.request[self.sent..]);
        }
        if let Some(timeout) = self.timeout {
            let until = self.started + timeout;
            if until <= sockets.now {
                let text = format!("Operation timed out after {} milliseconds", timeout.as_millis());
                self.end(28, &text, console, sockets);
            } else {
                sockets.wake_at(until);
            }
        }
    }

    fn receive(&mut self, id: TcpId, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        while !self.waits(console) {
            let (response, head_only) = (&mut self.response, self.head_only);
            let received = sockets.tcp_read(id, |bytes| {
                response.push(bytes, head_only);
                bytes.len()
            });
            match received {
                Received::Data(_) => {}
                Received::Pending => return,
                Received::End => {
                    self.response.end();
                    if !self.response.is_complete() {
                        let (code, text) = if self.response.is_empty() {
                            (52, "Empty reply from server")
                        } else {
                            (18, "transfer closed with outstanding read data remaining")
                        };
                        self.end(code, text, console, sockets);
                        return;
                    }
                }
                Received::Failed(error) => {
                    self.end_broken(error, console, sockets);
                    return;
                }
            }
            if self.verbose
                && let Some(head) = self.response.head.as_deref()
            {
                print_head('<', head, console);
                self.verbose = false;
            }
            if self.response.is_malformed() {
                self.end(1, "Received HTTP/0.9 when not allowed", console, sockets);
                return;
            }
            if let Err((path, error)) = self.pass_on(console, sockets) {
                let text = match self.as_wget {
                    true => format!("can't open '{path}': {}", error.text()),
                    false => format!("Failure writing {path}: {}", error.text()),
                };
                self.end(23, &text, console, sockets);
                return;
            }
            if self.response.is_complete() {
                self.succeed(console, sockets);
                return;
            }
        }
    }

    /// Says whether what it writes to is full.
    fn waits(&self, console: &Console) -> bool {
        self.target == Target::Console && console.is_full()
    }

    /// Says whether the response is one of which nothing is wanted.
    fn is_refused(&self) -> bool {
        self.fail && self.response.status >= 400
    }

    /// Passes on what came of the head, once, and of the body.
    ///
    /// # Errors
    /// The file, and why it cannot be written.
    fn pass_on(
        &mut self,
        console: &mut Console,
        sockets: &mut Sockets<'_, '_>,
    ) -> Result<(), (String, FileError)> {
        let body = std::mem::take(&mut self.response.body);
        let Some(head) = self.response.head.as_deref().filter(|_| !self.is_refused()) else { return Ok(()) };
        let begins = !std::mem::replace(&mut self.has_begun, true);
        let shown = if begins && self.with_head { head.as_bytes() } else { &[] };
        match &self.target {
            Target::Nowhere => Ok(()),
            Target::Console => {
                console.write(shown);
                console.write(&body);
                Ok(())
            }
            Target::File { path, is_new } => {
                let failed = |error| (path.clone(), error);
                if begins && *is_new && sockets.files.read(path).is_ok() {
                    return Err(failed(FileError::Exists));
                }
                if begins {
                    sockets.files.write(path, shown, false).map_err(failed)?;
                }
                sockets.files.write(path, &body, true).map_err(failed)
            }
        }
    }

    fn end_broken(&mut self, error: SocketError, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        let elapsed = sockets.now.saturating_duration_since(self.started).as_millis();
        match error {
            SocketError::ConnectionReset => {
                self.end(56, "Recv failure: Connection reset by peer", console, sockets)
            }
            SocketError::TimedOut => {
                let text = format!(
                    "Failed to connect to {} port {} after {elapsed} ms: {}",
                    self.to.ip(),
                    self.to.port(),
                    error.text()
                );
                self.end(28, &text, console, sockets);
            }
            SocketError::ConnectionRefused
            | SocketError::HostUnreachable
            | SocketError::NetworkUnreachable
            | SocketError::NoPortLeft => {
                let text = format!(
                    "Failed to connect to {} port {} after {elapsed} ms: {}",
                    self.to.ip(),
                    self.to.port(),
                    error.text()
                );
                self.end(7, &text, console, sockets);
            }
        }
    }

    fn succeed(&mut self, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        if self.is_refused() {
            let text = format!("The requested URL returned error: {}", self.response.status);
            self.end(22, &text, console, sockets);
            return;
        }
        self.end(0, "", console, sockets);
    }

    fn end(&mut self, code: i32, text: &str, console: &mut Console, sockets: &mut Sockets<'_, '_>) {
        if let Some(id) = self.connection.take() {
            sockets.tcp_close(id);
        }
        if let Some(format) = &self.write_out {
            let status = format!("{:03}", self.response.status);
            console.print(format.replace("%{http_code}", &status).replace("\\n", "\n"));
        }
        if code != 0 && (!self.silent || self.show_error) {
            console.line(if self.as_wget {
                format!("wget: {text}")
            } else {
                format!("curl: ({code}) {text}")
            });
        }
        console.exit(if self.as_wget { code.min(1) } else { code });
    }
}

/// Gives the head of a request, without the empty line after it.
fn head_of(request: &[u8]) -> &str {
    let end = request.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(request.len());
    std::str::from_utf8(&request[..end]).unwrap_or_default()
}

/// Prints a head as `-v` does, line by line with its direction in front.
fn print_head(direction: char, head: &str, console: &mut Console) {
    for line in head.trim_end().lines() {
        console.line(format!("{direction} {line}"));
    }
    console.line(format!("{direction} "));
}
