//! What squid says itself: its error pages and the lines of its access log.
//!
//! Invariants: an error's name and status are squid's; a log line has the fields of squid's native format, in their widths.
//! Depends on `message`. Read first: <https://wiki.squid-cache.org/Features/LogFormat>.

use super::super::super::socket::SocketError;
use super::message::{Fields, write_head};
use crate::clock::Instant;
use std::net::Ipv4Addr;

/// Why a request has no answer of its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    InvalidRequest,
    InvalidUrl,
    AccessDenied,
    OnlyIfCachedMiss,
    DnsFail,
    /// The connection was not made; while a stored response waits to be validated that is a timeout of the gateway.
    ConnectFail {
        error: SocketError,
        validating: bool,
    },
    ReadTimeout,
    ReadError(SocketError),
    ZeroSizeObject,
    InvalidResponse,
}

impl Problem {
    /// Returns the name of squid's error page, the status code, and what happened in words.
    const fn facts(self) -> (&'static str, u16, &'static str) {
        match self {
            Problem::InvalidRequest => ("ERR_INVALID_REQ", 400, "The request is not valid."),
            Problem::InvalidUrl => ("ERR_INVALID_URL", 400, "The URL is not valid."),
            Problem::AccessDenied => ("ERR_ACCESS_DENIED", 403, "Access denied."),
            Problem::OnlyIfCachedMiss => {
                ("ERR_ONLY_IF_CACHED_MISS", 504, "A stored answer was asked for, and there is none.")
            }
            Problem::DnsFail => ("ERR_DNS_FAIL", 503, "The name of the host is not known."),
            Problem::ConnectFail { validating: false, .. } => {
                ("ERR_CONNECT_FAIL", 503, "The connection to the host failed.")
            }
            Problem::ConnectFail { validating: true, .. } => {
                ("ERR_CONNECT_FAIL", 504, "The connection to the host failed.")
            }
            Problem::ReadTimeout => ("ERR_READ_TIMEOUT", 504, "The host did not answer in time."),
            Problem::ReadError(_) => ("ERR_READ_ERROR", 502, "The connection to the host broke."),
            Problem::ZeroSizeObject => ("ERR_ZERO_SIZE_OBJECT", 502, "The host closed without an answer."),
            Problem::InvalidResponse => ("ERR_INVALID_RESP", 502, "The host's answer is not valid."),
        }
    }

    /// Returns the status code.
    pub(super) const fn status(self) -> u16 {
        self.facts().1
    }

    /// Returns Linux's error number, 0 when no system call failed.
    const fn error_number(self) -> u16 {
        match self {
            Problem::ConnectFail { error, .. } | Problem::ReadError(error) => match error {
                SocketError::NoPortLeft => 99,
                SocketError::NetworkUnreachable => 101,
                SocketError::ConnectionReset => 104,
                SocketError::TimedOut => 110,
                SocketError::ConnectionRefused => 111,
                SocketError::HostUnreachable => 113,
            },
            Problem::InvalidRequest
            | Problem::InvalidUrl
            | Problem::AccessDenied
            | Problem::OnlyIfCachedMiss
            | Problem::DnsFail
            | Problem::ReadTimeout
            | Problem::ZeroSizeObject
            | Problem::InvalidResponse => 0,
        }
    }

    /// Writes the answer; `fields` go with every answer of the proxy.
    pub(super) fn page(self, head_only: bool, fields: &Fields) -> Vec<u8> {
        let (name, status, words) = self.facts();
        let reason = match status {
            400 => "Bad Request",
            403 => "Forbidden",
            502 => "Bad Gateway",
            503 => "Service Unavailable",
            _ => "Gateway Timeout",
        };
        let body = format!(
            "<!DOCTYPE html>\n<html>\n<head><title>ERROR: The requested URL could not be retrieved</title></head>\n<body id=\"{name}\">\n\
             <p>{words}</p>\n</body>\n</html>\n"
        );
        let mut all = Fields::default();
        all.push("Server", "squid");
        all.push("Content-Type", "text/html;charset=utf-8");
        all.push("Content-Length", body.len().to_string());
        all.push("X-Squid-Error", format!("{name} {}", self.error_number()));
        all.replace_with(fields, &[]);
        let mut bytes = write_head(&format!("HTTP/1.1 {status} {reason}"), &all);
        if !head_only {
            bytes.extend_from_slice(body.as_bytes());
        }
        bytes
    }
}

/// What the access log says about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) started: Instant,
    /// The client.
    pub(super) client: Ipv4Addr,
    /// Squid's result code, such as `TCP_MISS`.
    pub(super) code: &'static str,
    /// Whether the client left before the end.
    pub(super) aborted: bool,
    pub(super) status: u16,
    /// Octets sent to the client.
    pub(super) octets: usize,
    pub(super) method: String,
    pub(super) uri: String,
    /// Where the answer came from, if not from here.
    pub(super) origin: Option<Ipv4Addr>,
    /// The type of the content, if there is one.
    pub(super) kind: Option<String>,
}

impl Entry {
    /// Writes the line, without its end. Elapsed time counts from the request's head to its answer's last octet.
    pub(super) fn line(&self, now: Instant) -> String {
        let milliseconds = now.as_nanos() / 1_000_000;
        let elapsed = now.saturating_duration_since(self.started).as_millis();
        let origin = self
            .origin
            .map_or_else(|| String::from("HIER_NONE/-"), |address| format!("HIER_DIRECT/{address}"));
        format!(
            "{:9}.{:03} {elapsed:6} {} {}{}/{:03} {} {} {} - {origin} {}",
            milliseconds / 1000,
            milliseconds % 1000,
            self.client,
            self.code,
            if self.aborted { "_ABORTED" } else { "" },
            self.status,
            self.octets,
            self.method,
            self.uri,
            self.kind.as_deref().unwrap_or("-"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Squid 6, `Log::Format::SquidNative`.
    #[test]
    fn log_lines_have_the_widths_of_the_native_format() {
        let mut entry = Entry {
            started: Instant::from_nanos(12_000_000_000),
            client: Ipv4Addr::new(10, 1, 15, 2),
            code: "TCP_MISS",
            aborted: false,
            status: 200,
            octets: 310,
            method: String::from("GET"),
            uri: String::from("http://web/a"),
            origin: Some(Ipv4Addr::new(10, 1, 15, 3)),
            kind: Some(String::from("text/html")),
        };
        let now = Instant::from_nanos(12_345_678_901);
        assert_eq!(
            entry.line(now),
            "       12.345    345 10.1.15.2 TCP_MISS/200 310 GET http://web/a - HIER_DIRECT/10.1.15.3 text/html"
        );
        entry = Entry { aborted: true, status: 0, origin: None, kind: None, ..entry };
        assert!(entry.line(now).ends_with("TCP_MISS_ABORTED/000 310 GET http://web/a - HIER_NONE/- -"));
    }
}
