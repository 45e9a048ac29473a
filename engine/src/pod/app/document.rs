//! Files as web servers give them: a request's target below a document root.
//!
//! nginx and httpd answer with it where a volume is mounted at their root, php-fpm finds its scripts there. Invariants: a target never
//! names anything above the root (`files.rs` keeps links inside the container's view); the same content has the same entity tag.
//! Depends on `files`, `http`. Read first: RFC 9110 sections 8.8.3, 13.1.2 and 15.4.5, RFC 3986 section 5.2.4.

use super::super::files::{FileError, Files};
use super::http::{self, Request};
use std::hash::Hasher;

/// Returns the path of a target below a root, without its query; `None` when it leads above the root or is no path.
pub(super) fn path(root: &str, target: &str) -> Option<String> {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let decoded = decode(path)?;
    if !decoded.starts_with('/') {
        return None;
    }
    let mut names: Vec<&str> = Vec::new();
    for name in decoded.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop()?;
            }
            name => names.push(name),
        }
    }
    let is_directory = decoded.ends_with('/') || decoded.ends_with("/.") || decoded.ends_with("/..");
    let end = if is_directory && !names.is_empty() { "/" } else { "" };
    Some(format!("{}/{}{end}", root.trim_end_matches('/'), names.join("/")))
}

/// Answers a request with a file. `fields` go with what was found.
pub(super) fn serve(server: &str, root: &str, fields: &str, request: &Request, files: &Files<'_>) -> Vec<u8> {
    let text = |status, text: &str| {
        let body = format!("{text}\n");
        http::response(server, status, Some(request), "text/plain", body.as_bytes())
    };
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return text(405, "Method Not Allowed");
    }
    let Some(path) = path(root, &request.target) else { return text(400, "Bad Request") };
    let index = format!("{}/index.html", path.trim_end_matches('/'));
    let (path, found) = match files.read(&path) {
        Err(FileError::IsADirectory) if !path.ends_with('/') => {
            let (target, query) = match request.target.split_once('?') {
                Some((target, query)) => (target, format!("?{query}")),
                None => (request.target.as_str(), String::new()),
            };
            let location = format!("Location: {target}/{query}\r\n");
            return http::response_with(
                server,
                301,
                Some(request),
                "text/plain",
                &location,
                b"Moved Permanently\n",
            );
        }
        Err(FileError::IsADirectory) => {
            let found = files.read(&index);
            // A directory without an index is not listed.
            (
                index,
                found.map_err(
                    |error| if error == FileError::NotFound { FileError::IsADirectory } else { error },
                ),
            )
        }
        found => (path, found),
    };
    let body = match found {
        Ok(body) => body,
        Err(FileError::IsADirectory) => return text(403, "Forbidden"),
        Err(_) => return text(404, "Not Found"),
    };
    let tag = entity_tag(&body);
    let unchanged = request.if_none_match.as_deref().is_some_and(|tags| matches(tags, &tag));
    let status = if unchanged { 304 } else { 200 };
    let fields = format!("ETag: {tag}\r\n{fields}");
    http::response_with(server, status, Some(request), content_type(&path), &fields, &body)
}

/// Says whether a list of entity tags has one, compared weakly (RFC 9110, 8.8.3.2 and 13.1.2).
pub(super) fn matches(tags: &str, tag: &str) -> bool {
    let strong = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    tags.trim() == "*" || tags.split(',').any(|known| strong(known) == strong(tag))
}

/// Makes the entity tag of a content: the same wherever and whenever it is served.
fn entity_tag(content: &[u8]) -> String {
    // Keyed with zeros, and so the same in every run.
    #[expect(deprecated, reason = "the only hash of the standard library whose function is fixed")]
    let mut hash = std::hash::SipHasher::new();
    hash.write(content);
    format!("\"{:x}-{:x}\"", hash.finish(), content.len())
}

fn content_type(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or_default();
    match name.rsplit_once('.').map(|(_, kind)| kind) {
        Some("html" | "htm") => "text/html",
        Some("css") => "text/css",
        Some("js") => "application/javascript",
        Some("json") => "application/json",
        Some("xml") => "text/xml",
        Some("txt") => "text/plain",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("gif") => "image/gif",
        Some("svg") => "image/svg+xml",
        Some("ico") => "image/x-icon",
        Some(_) | None => "application/octet-stream",
    }
}

/// Puts octets in place of `%XX`; `None` when one is malformed, a NUL, or the result is no text.
fn decode(path: &str) -> Option<String> {
    let mut bytes = path.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        };
        if byte == 0 {
            return None;
        }
        decoded.push(byte);
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3986, 5.2.4, and 2.1.
    #[test]
    fn a_target_never_leads_above_its_root() {
        for (target, found) in [
            ("/", Some("/html/")),
            ("/a/b.txt?x=/../..", Some("/html/a/b.txt")),
            ("/a/./b/../c/", Some("/html/a/c/")),
            ("/%61%2Fb", Some("/html/a/b")),
            ("/..", None),
            ("/a/../../etc/passwd", None),
            ("/%2e%2e/etc/passwd", None),
            ("/%2e%2e%2fetc/passwd", None),
            ("/%0", None),
            ("/a%00.html", None),
            ("/%ff", None),
            ("a", None),
            ("http://x/", None),
        ] {
            assert_eq!(path("/html/", target).as_deref(), found, "{target}");
        }
    }

    /// RFC 9110, 13.1.2.
    #[test]
    fn entity_tags_are_found_in_lists() {
        let tag = entity_tag(b"x");
        assert_eq!(tag, entity_tag(b"x"));
        assert_ne!(tag, entity_tag(b"y"));
        assert!(matches("*", &tag) && matches(&format!("\"a\", W/{tag}"), &tag));
        assert!(!matches("\"a\"", &tag));
    }
}
