//! `curl`: one HTTP request, its body to the output.
//!
//! Exit codes are curl's: 3 URL, 5 proxy's name, 6 name, 7 refused or unreachable, 22 with `-f` from status 400, 28 timeout,
//! 52 empty reply, 56 broken.
//! Invariant: one connection, one request. Depends on `sockets`, `response`. Read first: curl(1).

use super::super::socket::{Event, Received, SocketError, TcpId};
use super::super::sockets::Sockets;
use super::Find;
use super::arguments::Arguments;
use super::console::Console;
use super::response::Response;
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
    discard: bool,
    write_out: Option<String>,
    timeout: Option<Duration>,
    started: Instant,
    connection: Option<TcpId>,
    response: Response,
}

/// Where a proxy listens when nothing else is said, as curl has it.
const PROXY_PORT: u16 = 1080;
/// Long options and their letters.
const LONG: [(&str, &str); 12] = [
    ("--silent", "-s"),
    ("--verbose", "-v"),
    ("--show-error", "-S"),
    ("--fail", "-f"),
    ("--include", "-i"),
    ("--head", "-I"),
    ("--max-time", "-m"),
    ("--output", "-o"),
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
        let arguments = Arguments::parse(&words, "sSfiIvLk4", "mowHXdx").map_err(usage)?;
        let [url] = arguments.operands.as_slice() else {
            return Err((
                String::from(
                    "curl: usage: curl [-sSfiIv] [-m SECONDS] [-o FILE] [-x PROXY] http://ADDRESS[:PORT]/PATH",
                ),
                2,
            ));
        };
        let url = Url::parse(url, 80)?;
        let (host, path) = (url.authority, url.path);
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
            discard: arguments.has('o'),
            write_out: arguments.value('w').map_err(usage)?,
            timeout: arguments.seconds('m').map_err(usage)?,
            started: Instant::ZERO,
            connection: None,
            response: Response::default(),
        })
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
        loop {
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
            if self.response.is_complete() {
                self.succeed(console, sockets);
                return;
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
        if self.fail && self.response.status >= 400 {
            let text = format!("The requested URL returned error: {}", self.response.status);
            self.end(22, &text, console, sockets);
            return;
        }
        if !self.discard {
            if self.with_head {
                console.print(self.response.head.as_deref().unwrap_or_default());
            }
            console.write(&self.response.body);
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

/// Makes a curl that does what `wget` is asked: `-q`, `-O -`, `-T SECONDS`, `--spider`.
///
/// # Errors
/// What is wrong with the words, and the exit code for that.
pub(super) fn wget(words: &[String], find: &mut Find<'_>) -> Result<Curl, (String, i32)> {
    let mut curl_words = vec![String::from("-f")];
    let mut words = words.iter();
    let mut to_file = true;
    while let Some(word) = words.next() {
        match word.as_str() {
            "-q" | "--quiet" => curl_words.push("-s".into()),
            "-O-" => to_file = false,
            "-qO-" => {
                curl_words.push("-s".into());
                to_file = false;
            }
            "-O" | "-qO" => to_file = words.next().is_none_or(|file| file != "-"),
            "--spider" => curl_words.push("-I".into()),
            "-T" => curl_words.extend(["-m".into(), words.next().cloned().unwrap_or_default()]),
            long => match long.strip_prefix("--timeout=") {
                Some(seconds) => curl_words.extend(["-m".into(), seconds.into()]),
                None => curl_words.push(word.clone()),
            },
        }
    }
    if to_file {
        curl_words.extend(["-o".into(), "file".into()]);
    }
    let curl = Curl::new(&curl_words, find).map_err(|(text, _)| (text.replacen("curl", "wget", 1), 1))?;
    Ok(Curl { as_wget: true, ..curl })
}

/// A URL in its parts.
struct Url<'a> {
    /// Host and port as they are written.
    authority: &'a str,
    name: &'a str,
    port: u16,
    path: String,
}

impl<'a> Url<'a> {
    /// Reads a URL; without a port it is the default.
    fn parse(url: &'a str, default: u16) -> Result<Self, (String, i32)> {
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some((scheme, _)) => return Err((format!("curl: (1) Protocol \"{scheme}\" not supported"), 1)),
            None => url,
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => (&rest[..at], rest[at..].to_owned()),
            None => (rest, String::from("/")),
        };
        const BAD_PORT: &str =
            "curl: (3) URL rejected: Port number was not a decimal number between 0 and 65535";
        let (name, port) = match authority.rsplit_once(':') {
            Some((name, port)) => (name, port.parse().map_err(|_| (String::from(BAD_PORT), 3))?),
            None => (authority, default),
        };
        Ok(Url { authority, name, port, path })
    }
}
